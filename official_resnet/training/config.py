"""What a training is (TrainConfig) and where it runs (MachineConfig): each hyperparameter, written once.

A field has its default and, in its metadata, all else that there is to say of it (see `setting`). The flags of the
programs, their --help, the checks, the JSON of a run and what two runs differ in are made from the fields; recipes are
changes of the defaults. Neither TensorFlow nor absl is imported here.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from official_resnet.errors import UserError
from official_resnet.inputs.datasets import MAX_IMAGE_SIZE
from official_resnet.resnet_spec import ResNetSpec

if TYPE_CHECKING:
    from official_resnet.inputs.views import Views

MAX_THREADS = 4096
MAX_CLASSES = 1_000_000
PRETRAINED = 'pretrained_model_checkpoint_path'


def setting(default: Any, text: str, **about: Any) -> Any:
    """Return a field of a configuration.

    Args:
        default: its value where nothing else is said.
        text: what it means and its unit, in whole sentences; the help of its flag.
        **about: what else there is to say of it:
            group: its heading in --help.
            flag, short: the names of its flag; without, the field's own. None: it has no flag.
            choices: the values that it may have; `words`: those of the flag, where they differ.
            least, most, above, below: its bounds.
            is_open: the flag itself has no default, since the recipe, or the field, has it.
            needs: the flag without which this one means nothing, as 'image_folder' or 'transfer=last'.
            streams: True, or False, for a flag only of programs that stream encoded images, or that do not.
            is_path: '~' is expanded.
            is_identity: a checkpoint continues only where this field agrees.
    """
    return dataclasses.field(default=default, metadata={'text': text, **about})


_BOUNDS = {
    'least': ('at least', operator.ge),
    'most': ('at most', operator.le),
    'above': ('above', operator.gt),
    'below': ('below', operator.lt),
}


def flags_of(part: type) -> dict[str, dataclasses.Field]:
    """Return {name of the flag: field} of a configuration, or of a part of one."""
    flags = {field.metadata.get('flag', field.name): field for field in dataclasses.fields(part) if field.metadata}
    return {flag: field for flag, field in flags.items() if flag}


def part_of(part: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name of a field of `part`: value} of settings by the names of their flags."""
    return {field.name: settings[flag] for flag, field in flags_of(part).items() if flag in settings}


def check(config: Any) -> None:
    """Raise a UserError, with the name of the flag, if a field has a value outside its choices or bounds."""
    for field in dataclasses.fields(config):
        about, value = field.metadata, getattr(config, field.name)
        name = f'--{flag}' if (flag := about.get('flag', field.name)) else field.name
        if 'choices' in about and value not in (*about['choices'], field.default):
            raise UserError(f'{name}={value} must be one of {", ".join(about["choices"])}')
        for bound, (words, is_right) in _BOUNDS.items():
            if bound in about and value is not None and not is_right(value, about[bound]):
                raise UserError(f'{name}={value} must be {words} {about[bound]}')


_data = functools.partial(setting, group='Data', is_identity=True)
_network = functools.partial(setting, group='Network', is_identity=True)
_training = functools.partial(setting, group='Training')
_rate = functools.partial(setting, group='Training', is_open=True)
_transfer = functools.partial(setting, **{'group': 'Transfer', 'is_identity': True, 'needs': PRETRAINED})
_folder = functools.partial(setting, group='Data', is_path=True)
_machine = functools.partial(setting, group='Machine')


def _threads(text, flag, short=None):
    return _machine(0, text, flag=flag, short=short, least=0, most=MAX_THREADS)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over a training, in epochs and relative to its base (or peak) rate."""

    kind: str = _rate(
        'piecewise',
        'Course of the learning rate: piecewise changes it at --lr_boundaries, cosine lowers it to 0 (arXiv:1608.03983 '
        'Eq. 5, one period), one_cycle raises it from 0 and lowers it again in straight lines (after '
        'arXiv:1708.07120), constant leaves it as it is.',
        flag='lr_schedule',
        choices=('piecewise', 'cosine', 'one_cycle', 'constant'),
    )
    boundaries: tuple[float, ...] = _rate((), 'Epochs at which a piecewise rate changes.', flag='lr_boundaries')
    factors: tuple[float, ...] = _rate((1.0,), 'Factors of the rate, one more than boundaries.', flag='lr_factors')
    peak: float = setting(0.25, 'Fraction of the training at which one_cycle peaks.', flag=None, above=0, below=1)
    warmup_epochs: float = _rate(0.0, 'Number of epochs in which the rate first rises linearly from 0.', least=0)

    def __post_init__(self):
        is_piecewise = self.kind == 'piecewise'  # the other courses have neither boundaries nor factors
        object.__setattr__(self, 'boundaries', tuple(self.boundaries) if is_piecewise else ())  # lists, from JSON
        object.__setattr__(self, 'factors', tuple(self.factors) if is_piecewise else (1.0,))
        check(self)
        if len(self.factors) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(self.boundaries):
            boundaries, factors = (','.join(f'{value:g}' for value in of) for of in (self.boundaries, self.factors))
            raise UserError(f'--lr_boundaries={boundaries} must rise, with one number more in --lr_factors={factors}')


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Where a training runs, which may change when it is continued; `TrainConfig.machine`."""

    data_dir: str | None = _folder(None, 'Folder of the data set; a missing one is fetched into it.', short='dd')
    model_dir: str | None = _folder(None, 'Folder of the run, which is continued if it is there.', short='md')
    save_checkpoint_minutes: float = _machine(10.0, 'Minutes between checkpoints inside an epoch.', least=0)
    steps_per_call: int = _machine(0, 'Steps in a call of TensorFlow; 0: a second.', flag='steps_per_loop', least=0)
    num_gpus: int | None = _machine(None, 'Number of GPUs: one if there is one, -1 for all.', short='ng', least=-1)
    distribution_strategy: str = _machine(
        'default',
        'How devices share the work. default goes by --num_gpus and --worker_hosts; multi_worker_mirrored takes the '
        'workers of --worker_hosts or TF_CONFIG.',
        short='ds',
        choices=('off', 'default', 'one_device', 'mirrored', 'multi_worker_mirrored'),
    )
    all_reduce_alg: str | None = _machine(
        None, 'How replicas add up gradients; without, TensorFlow chooses.', short='ara', choices=('ring', 'nccl')
    )
    enable_xla: bool = _machine(False, 'Compile the training step with XLA, which is slower on a CPU.')
    inter_op_threads: int = _threads(
        'Operations side by side; 0 for one a core.', 'inter_op_parallelism_threads', 'inter'
    )
    intra_op_threads: int = _threads(
        'Threads of an operation; 0 for all cores.', 'intra_op_parallelism_threads', 'intra'
    )
    input_threads: int = _threads('Threads of the input; 0 for as many as it needs.', 'datasets_num_private_threads')

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights of a training; JSON in `config.json` and in each checkpoint."""

    spec: ResNetSpec = dataclasses.field(metadata={'text': 'The network.', 'flag': None, 'is_identity': True})
    dataset: str = _data(
        'cifar10', "A name in DATASETS, 'tfds:NAME', or 'folder:PATH' with a subfolder for each class.", flag=None
    )
    num_train_images: int | None = _data(None, 'Train on so many images only, the first ones.', least=1)
    image_size: int | None = _data(
        None,
        'Height and width, in pixels, of the images of --image_folder; 32, or 224 for a net of ImageNet.',
        least=8,
        most=MAX_IMAGE_SIZE,
        needs='image_folder',
        streams=False,
    )
    validation_fraction: float = _data(
        0.1,
        'Fraction of each class of --image_folder that is set aside for testing, by --seed. A folder that has a '
        'test folder uses that.',
        above=0,
        below=1,
        needs='image_folder',
        is_open=True,
    )
    normalization: str | None = _data(
        None,
        'Input of the net: official subtracts the mean of each colour, torch also divides by its deviation, inception '
        'scales to -1..1.',
        flag='input_normalization',
        words=('official', 'torch', 'inception'),
        streams=True,
        is_open=True,
    )
    views: 'Views | None' = _data(
        None, 'How encoded images, which are then streamed, become the input; None reads them into memory.', flag=None
    )
    augment: bool = _data(True, 'Crop and flip the training images at random.')
    flip: bool = _data(True, 'Whether --augment flips. A mirrored digit is a different digit, or none.', is_open=True)
    num_classes: int | None = _network(None, 'Number of logits; without, one a class.', least=2, most=MAX_CLASSES)
    background: bool = _network(
        False,
        'Logit 0 stands for no class (1001 logits), as in official/resnet.',
        flag='background_class',
        streams=True,
        is_open=True,
    )
    experiment: dict | None = _network(None, 'What the block function that the loop is passed changes.', flag=None)
    train_epochs: int = _rate(182, 'Number of epochs to train in total, over all restarts.', short='te', least=1)
    max_train_steps: int | None = _training(None, 'Stop at this step, over all restarts.', short='mts', least=1)
    batch_size: int = _rate(128, 'Number of images in a step, over all devices.', short='bs', least=1, is_identity=True)
    epochs_between_evals: int = _rate(1, 'Evaluate after so many epochs, and after the last.', short='ebe', least=1)
    stop_threshold: float | None = _training(None, 'Stop at this test accuracy, 0 to 1.', short='st', least=0, most=1)
    optimizer: str = _rate(
        'momentum', 'SGD with momentum, or Adam (arXiv:1412.6980).', choices=('momentum', 'adam'), is_identity=True
    )
    base_learning_rate: float = _rate(
        0.1,
        'Learning rate for a batch of 128 images, to which it is scaled; with --optimizer=adam the rate itself. '
        'cosine and one_cycle have it as their highest.',
        least=0,
    )
    schedule: Schedule = setting(Schedule(), 'Course of the learning rate, in epochs.', flag=None)
    momentum: float = _rate(0.9, 'Momentum of SGD.', least=0, most=1)
    nesterov: bool = _rate(False, "Use Nesterov's momentum.")
    weight_decay: float = _rate(2e-4, 'L2 weight decay: the gradient grows by it times the weight.', least=0)
    decay: str = _rate('all', 'Which weights decay.', choices=('all', 'kernels', 'no_batch_norm'))
    label_smoothing: float = _rate(
        0.0, 'Probability that is spread over all classes (arXiv:1512.00567 Sec. 7).', least=0, most=0.999
    )
    seed: int = _training(0, 'Seed of weights, order and augmentation.', least=0, most=2**63 - 1, is_identity=True)
    dtype: str = _rate(
        'fp32',
        'Precision of the computation; weights and logits stay fp32. auto is bf16 where the device has it, else fp32.',
        short='dt',
        choices=('fp32', 'bf16', 'fp16', 'auto'),
    )
    loss_scale: float | str | None = _training(
        None, "Factor of the loss, a number or 'dynamic'; 128 with fp16 and 1 otherwise.", short='ls'
    )
    sync_batch_norm: bool = _machine(False, 'Batch norms use the statistics of all devices.', is_identity=True)
    pretrained: str | None = setting(
        None,
        'Start from the weights of this model_dir or .keras file; the network is its network. With --eval_only, '
        'evaluate it.',
        group='Transfer',
        flag=PRETRAINED,
        short='pmcp',
        is_path=True,
    )
    transfer: str = _transfer(
        'all',
        'What is trained of the pretrained net: all of it, the last groups and the head, or the head (the last layer) '
        'alone, on features that are computed once. head turns --augment off unless that is given.',
        choices=('all', 'last', 'head'),
        is_open=True,
    )
    train_last_groups: int = _transfer(
        1, 'Number of groups that --transfer=last trains.', least=1, needs='transfer=last', is_open=True
    )
    head: str = _transfer(
        'replace',
        'A new last layer replaces the pretrained one, or is appended to it, or the pretrained one is kept.',
        choices=('replace', 'append', 'keep'),
    )
    pretrained_classes: int | None = _transfer(None, 'Logits of a pretrained net with an appended head.', flag=None)
    backbone_learning_rate_factor: float = _transfer(
        1.0, 'Factor of the rate of all layers but the last.', above=0, is_identity=False
    )
    machine: MachineConfig = setting(MachineConfig(), 'Where it runs.', flag=None)

    def __post_init__(self):
        check(self)
        if self.background and not self.views:
            raise UserError(f'--background_class needs encoded images, which {self.dataset} has not; leave it out')
        if self.transfer == 'head' and self.backbone_learning_rate_factor != 1:
            raise UserError(
                f'--backbone_learning_rate_factor={self.backbone_learning_rate_factor} with --transfer=head, which '
                'freezes the backbone; leave one of them out'
            )

    @property
    def learning_rate(self) -> float:
        """The base rate for this batch size; Adam's steps do not grow with it."""
        return self.base_learning_rate * (1 if self.optimizer == 'adam' else self.batch_size / 128)

    @property
    def trains_on_features(self) -> bool:
        """Whether what is trained sees the same features of an image in every epoch."""
        return self.transfer == 'head' and not self.augment

    def with_machine(self, **changes: Any) -> 'TrainConfig':
        """Return the same training on a machine with these fields of MachineConfig changed."""
        return dataclasses.replace(self, machine=dataclasses.replace(self.machine, **changes))

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], make_spec: Callable[..., ResNetSpec], **fields: Any
    ) -> 'TrainConfig':
        """Return the TrainConfig of settings by the names of their flags, as recipes have them; `fields` overrule them.

        `make_spec` is (resnet_size, **fields of the spec) -> ResNetSpec, without resnet_size where there is none.
        """
        spec = part_of(ResNetSpec, settings)
        size = [spec.pop('group_blocks')] if 'group_blocks' in spec else []
        if spec.get('shortcut') == 'none':
            spec['shortcut'] = None
        parts = {'schedule': Schedule, 'machine': MachineConfig}
        own = {name: part(**part_of(part, settings)) for name, part in parts.items()} | part_of(cls, settings) | fields
        return cls(make_spec(*size, **spec), **own)

    def folder_options(self) -> dict[str, Any]:
        """Return how the images of 'folder:PATH' are read: arguments of image_folder.read."""
        is_large = self.spec.stem in ('imagenet', 'deep')
        return {
            'image_size': self.image_size or (224 if is_large else 32),
            'channels': 1 if self.spec.stem == 'mnist' else 3,
            'validation_fraction': self.validation_fraction,
            'seed': self.seed,
        }

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain values that `from_json` reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> 'TrainConfig':
        """Return the TrainConfig that `to_json` wrote; a field that was added since has its default.

        Raises:
            UserError: it has a field that is gone since.
        """
        values = values | {'spec': ResNetSpec.from_json(values['spec'])}
        parts = {'schedule': Schedule, 'machine': MachineConfig}
        if values.get('views'):
            from official_resnet.inputs.views import Views

            parts['views'] = Views
        try:
            return cls(**values | {name: part(**values[name]) for name, part in parts.items() if values.get(name)})
        except TypeError as error:
            reason = str(error).partition('() ')[2]
            raise UserError(
                f'an older version of this program stored the run ({reason}); train it again in another --model_dir'
            ) from None
