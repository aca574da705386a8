"""The configuration of a run (TrainConfig) and of the machine that runs it (MachineConfig).

A field holds its default and, in its metadata, everything else about it (see `setting`). The flags of the programs,
their --help, the checks, the JSON of a run and the comparison of two runs are made from the fields; recipes are changes
of the defaults. This module imports neither TensorFlow nor absl.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from official_resnet.errors import UserError
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.inputs.datasets import MAX_IMAGE_SIZE
from official_resnet.resnet_spec import POOLED_STEMS, ResNetSpec

if TYPE_CHECKING:
    from official_resnet.inputs.views import Views

MAX_THREADS = 4096
MAX_CLASSES = 1_000_000
PRETRAINED = 'pretrained_model_checkpoint_path'


def setting(default: Any, text: str, **about: Any) -> Any:
    """Return a field of a configuration.

    Args:
        default: The field's default.
        text: Its meaning and unit, in whole sentences. This is the help text of its flag.
        **about: Everything else about the field:
            group: The heading under which --help lists it.
            flag, short: The flag's name (by default the field's) and short name. flag=None: there is no flag.
            choices: The allowed values. `words`: those of the flag, if they differ.
            least, most, above, below: Bounds of the value.
            is_open: The flag has no default of its own; the recipe or the field provides it.
            needs: Flags without which this one has no effect, as 'augment, mixup or cutmix' or 'optimizer=lars|muon'.
            streams: True: only programs that stream encoded images have the flag. False: only the others.
            is_path: '~' is expanded.
            is_identity: A checkpoint can be continued only if this field is unchanged.
    """
    return dataclasses.field(default=default, metadata={'text': text, **about})


_BOUNDS = {'least': ('at least', operator.ge), 'most': ('at most', operator.le)}
_BOUNDS |= {'above': ('above', operator.gt), 'below': ('below', operator.lt)}


def flags_of(part: type) -> dict[str, dataclasses.Field]:
    """Return {flag name: field} for a configuration class."""
    flags = {field.metadata.get('flag', field.name): field for field in dataclasses.fields(part) if field.metadata}
    return {flag: field for flag, field in flags.items() if flag}


def part_of(part: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return {field name: value} for the fields of `part`, from settings named by their flags."""
    return {field.name: settings[flag] for flag, field in flags_of(part).items() if flag in settings}


def check(config: Any) -> None:
    """Raise UserError, which names the flag, if a field's value is outside its choices or bounds."""
    for field in dataclasses.fields(config):
        about, value = field.metadata, getattr(config, field.name)
        name = f'--{flag}' if (flag := about.get('flag', field.name)) else field.name
        if 'choices' in about and value not in (*about['choices'], field.default):
            raise UserError(f'{name}={value} must be one of {", ".join(about["choices"])}')
        for bound, (words, is_right) in _BOUNDS.items():
            if bound in about and value is not None and not is_right(value, about[bound]):
                raise UserError(f'{name}={value} must be {words} {about[bound]}')


_data = functools.partial(setting, group='Data', is_identity=True)
_own = functools.partial(_data, needs='image_folder or image_list')
_network = functools.partial(setting, group='Network', is_identity=True)
_training = functools.partial(setting, group='Training')
_rate = functools.partial(setting, group='Training', is_open=True)
_part = functools.partial(_rate, least=0, most=1)
_piecewise = functools.partial(_rate, needs='lr_schedule=piecewise')
_one_cycle = functools.partial(_rate, needs='lr_schedule=one_cycle')
_average = functools.partial(_rate, needs='weight_averaging')
_FALLS, _RISES = 'lr_schedule=cosine|one_cycle', 'lr_schedule=one_cycle or warmup_epochs'
_folder = functools.partial(setting, group='Data', is_path=True)
_machine = functools.partial(setting, group='Machine')
_transfer = functools.partial(setting, group='Transfer', is_identity=True, needs=PRETRAINED)
_threads = functools.partial(_machine, 0, least=0, most=MAX_THREADS)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over a run, in epochs and relative to its base (or peak) rate."""

    kind: str = _rate(
        'piecewise',
        'Learning-rate schedule: piecewise changes the rate at --lr_boundaries, cosine lowers it to 0 (one period of '
        'arXiv:1608.03983 Eq. 5), one_cycle raises it linearly from 0 and lowers it again (after arXiv:1708.07120), '
        'constant keeps it.',
        flag='lr_schedule',
        choices=('piecewise', 'cosine', 'one_cycle', 'constant'),
    )
    boundaries: tuple[float, ...] = _piecewise((), 'Epochs at which a piecewise rate changes.', flag='lr_boundaries')
    factors: tuple[float, ...] = _piecewise((1.0,), 'Factors of the base rate: one more than drops.', flag='lr_factors')
    peak: float = _one_cycle(
        0.25, 'Fraction of the training at which one_cycle peaks; 0: it only falls.', flag='lr_peak', least=0, below=1
    )
    start_factor: float = _part(
        0.0, 'Factor of the base rate at which one_cycle and a warm-up begin.', flag='lr_start_factor', needs=_RISES
    )
    end_factor: float = _part(0.0, 'Factor at which cosine and one_cycle end.', flag='lr_end_factor', needs=_FALLS)
    power: float = _one_cycle(
        1.0, 'one_cycle falls with this power of the steps that remain.', flag='lr_power', above=0, most=10
    )
    is_after_warmup: bool = _rate(
        False, 'cosine and one_cycle begin after the warm-up.', flag='lr_after_warmup', needs=f'warmup_epochs, {_FALLS}'
    )
    warmup_epochs: float = _rate(0.0, 'Number of epochs over which the rate first rises linearly.', least=0)

    def __post_init__(self):
        is_piecewise = self.kind == 'piecewise'  # the other kinds have neither boundaries nor factors
        object.__setattr__(self, 'boundaries', tuple(self.boundaries) if is_piecewise else ())  # lists, from JSON
        object.__setattr__(self, 'factors', tuple(self.factors) if is_piecewise else (1.0,))
        check(self)
        if len(self.factors) != len(self.boundaries) + 1 or [0, *self.boundaries] != sorted((0, *self.boundaries)):
            boundaries, factors = (','.join(f'{value:g}' for value in row) for row in (self.boundaries, self.factors))
            raise UserError(
                f'--lr_boundaries={boundaries} must increase from 0 on; --lr_factors={factors} needs one more number'
            )


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Where and how a training runs. This may change when a run is continued. See `TrainConfig.machine`."""

    data_dir: str | None = _folder(None, 'Folder of the data set, downloaded if missing (except ImageNet).', short='dd')
    model_dir: str | None = _folder(None, 'Folder of the run. A run that is already there is continued.', short='md')
    save_checkpoint_minutes: float = _machine(10.0, 'Minutes between checkpoints inside an epoch.', least=0)
    steps_per_call: int = _machine(0, 'Steps per TensorFlow call; 0 fills a second.', flag='steps_per_loop', least=0)
    num_gpus: int | None = _machine(None, 'Number of GPUs; -1: all; default: 1 if there is one.', short='ng', least=-1)
    distribution_strategy: str = _machine(
        'default',
        'How the devices share the work. default follows --num_gpus and --worker_hosts; multi_worker_mirrored uses the '
        'workers in --worker_hosts or TF_CONFIG.',
        short='ds',
        choices=('off', 'default', 'one_device', 'mirrored', 'multi_worker_mirrored'),
    )
    all_reduce_alg: str | None = _machine(
        None, 'How replicas add up gradients; by default TensorFlow chooses.', short='ara', choices=('ring', 'nccl')
    )
    enable_tensorboard: bool = setting(False, 'Write TensorBoard summaries into --model_dir.', group='Logging')
    enable_xla: bool = _machine(False, 'Compile the training step with XLA; this is slower on a CPU.')
    inter_op_threads: int = _threads(
        'Operations that run at the same time; 0: one per core.', flag='inter_op_parallelism_threads', short='inter'
    )
    intra_op_threads: int = _threads(
        'Threads per operation; 0: one per core.', flag='intra_op_parallelism_threads', short='intra'
    )
    input_threads: int = _threads('Threads for the input; 0: as needed.', flag='datasets_num_private_threads')

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the trained weights; stored as JSON in `config.json` and in each checkpoint.

    >>> TrainConfig(resnet.ResNetSpec((3, 3, 3)), batch_size=256).learning_rate  # 0.1 for 128 images
    0.2
    """

    spec: ResNetSpec = dataclasses.field(metadata={'text': 'The network.', 'flag': None, 'is_identity': True})
    dataset: str = _data(
        'cifar10', "A name in DATASETS, 'tfds:NAME', or 'folder:PATH' with a subfolder for each class.", flag=None
    )
    num_train_images: int | None = _data(None, 'Train only on the first N images.', least=1)
    image_size: int | None = _own(
        None,
        'Height and width in pixels to which --image_folder is resized; 32, or 224 for an ImageNet network.',
        least=8,
        most=MAX_IMAGE_SIZE,
        streams=False,
    )
    validation_fraction: float = _own(
        0.1,
        'Fraction of each class in --image_folder that is set aside for testing, chosen by --seed. 1 evaluates a '
        'pretrained network on all. If the folder has a test folder, that is used instead.',
        above=0,
        most=1,
        is_open=True,
    )
    balance: bool = _own(
        False,
        'Repeat the training images of small classes in --image_folder, so that an epoch has as many of each class as '
        'of the largest (oversampling, arXiv:1710.05381).',
    )
    normalization: str | None = _data(
        None,
        'Scaling of the input: official subtracts the mean of each colour channel of ImageNet, torch also divides by '
        'its standard deviation, cifar10 does so with the numbers of CIFAR-10, inception scales to -1..1.',
        flag='input_normalization',
        words=('official', 'torch', 'inception', 'cifar10'),
        is_open=True,
    )
    views: 'Views | None' = _data(
        None, 'How streamed, encoded images become the input; None: the images are held in memory.', flag=None
    )
    augment: bool = _data(True, 'Crop and flip the training images at random.')
    flip: bool = _data(True, 'Whether --augment also mirrors images at random. Not for digits.', is_open=True)
    augmentation: Augmentation = _data(Augmentation(), 'What else --augment does.', flag=None)
    num_classes: int | None = _network(None, 'Number of logits; by default one per class.', least=2, most=MAX_CLASSES)
    background: bool = _network(
        False,
        'Logit 0 stands for the background (1001 logits), as in official/resnet.',
        flag='background_class',
        streams=True,
        is_open=True,
    )
    experiment: dict | None = _network(None, 'What a special block function changes.', flag=None)
    train_epochs: int = _rate(182, 'Number of epochs to train in total, over all restarts.', short='te', least=1)
    max_train_steps: int | None = _training(None, 'Stop after so many steps, over all restarts.', short='mts', least=1)
    batch_size: int = _rate(128, 'Number of images in a step, over all devices.', short='bs', least=1, is_identity=True)
    epochs_between_evals: int = _rate(1, 'Evaluate every N epochs, and after the last.', short='ebe', least=1)
    stop_threshold: float | None = _training(None, 'Stop at this test accuracy, 0 to 1.', short='st', least=0, most=1)
    patience: int | None = _training(None, 'Stop when the test accuracy has not risen for N epochs.', least=1)
    optimizer: str = _rate(
        'momentum',
        'SGD with momentum, Adam (arXiv:1412.6980), LAMB (1904.00962), LARS (1708.03888), or Muon for convolutions.',
        choices=('momentum', 'adam', 'lamb', 'lars', 'muon'),
        is_identity=True,
    )
    base_learning_rate: float = _rate(
        0.1,
        'Highest rate of the schedule: with momentum for 128 images, scaled to the batch size. Other optimizers '
        'use it as it is, so also pass it with them: for example 0.001 with adam, 0.005 with lamb.',
        least=0,
    )
    schedule: Schedule = setting(Schedule(), 'Learning-rate schedule, in epochs.', flag=None)
    momentum: float = _rate(0.9, 'Momentum of SGD.', least=0, most=1, needs='optimizer=momentum|lars|muon')
    nesterov: bool = _rate(False, "Use Nesterov's momentum, as muon always does.", needs='optimizer=momentum|lars')
    weight_decay: float = _rate(
        2e-4, 'L2 weight decay: this times the weight is added to the gradient; by lamb, to the step.', least=0
    )
    decay: str = _rate(
        'all',
        'Which weights decay.',
        choices=('all', 'kernels', 'no_batch_norm'),
        needs='optimizer=momentum|lamb|lars|muon',
    )
    decay_form: str = _rate(
        'coupled',
        'decoupled: weights shrink by --weight_decay in a step at the base rate, outside the momentum (MosaicML).',
        choices=('coupled', 'decoupled'),
        needs='optimizer=momentum',
    )
    bias_learning_rate_factor: float = _rate(
        1.0,
        'Factor of the learning rate of biases and batch norm offsets, but for the last layer; divides their decay.',
        above=0,
        needs='transfer=all|last',
    )
    head_learning_rate_factor: float = _rate(1.0, 'The same for the last layer.', above=0)
    clip_norm: float | None = _rate(
        None, 'Scale all gradients down if their common norm is larger. Default: 1 with lamb, otherwise none.', above=0
    )
    gradient_accumulation_steps: int = _training(
        1,
        'Split a batch into N passes and add up their gradients, which needs less memory. The weights are those of one '
        'pass, except that batch norms see the parts of the batch.',
        least=1,
    )
    muon_momentum: float = _rate(0.6, 'Momentum of muon for convolutions.', least=0, most=1, needs='optimizer=muon')
    label_smoothing: float = _rate(
        0.0, 'Probability that is spread evenly over all classes (arXiv:1512.00567 Sec. 7).', least=0, most=0.999
    )
    loss: str = _rate(
        'softmax',
        'Loss of training: softmax cross-entropy, or sigmoid, the mean of the binary cross-entropies of all classes '
        '(arXiv:2110.00476). sigmoid_sum adds them up, and starts the biases of the head at -log(classes).',
        choices=('softmax', 'sigmoid', 'sigmoid_sum'),
    )
    target_threshold: float = _rate(
        0.0, 'With --loss=sigmoid, targets above this become 1, and the others 0; 0 keeps them.', least=0, below=1
    )
    weight_averaging: str = _rate(
        'none',
        'Average weights and batch statistics. ema keeps the average apart; lookahead continues the training from it.',
        choices=('none', 'ema', 'lookahead'),
        is_identity=True,
    )
    average_decay: float | None = _average(
        None, 'Share of the average that a step keeps. Default: 0.999, or 0.95 for lookahead.', least=0, below=1
    )
    average_every: int | None = _average(None, 'Steps from one average to the next. Default: 1 or 5.', least=1)
    average_warmup: bool = _rate(
        True, 'Until --average_decay is reached, step t of ema keeps (1 + t) / (10 + t).', needs='weight_averaging=ema'
    )
    use_weights: str = _training(
        'average', 'Which to evaluate and export.', choices=('average', 'plain'), needs='weight_averaging or eval_only'
    )
    test_views: str = _training(
        'plain',
        'Evaluate mean logits of an image and its mirror image, or also of both shifted by a pixel. Not for digits.',
        choices=('plain', 'flip', 'flip_shift'),
    )
    seed: int = _training(0, 'Seed of weights, order and augmentation.', least=0, most=2**63 - 1, is_identity=True)
    dtype: str = _rate(
        'fp32',
        'Precision of the computation; weights and logits stay fp32. auto is bf16 if the device has it, else fp32.',
        short='dt',
        choices=('fp32', 'bf16', 'fp16', 'auto'),
    )
    loss_scale: float | str | None = _training(
        None, "Loss scale: a number or 'dynamic'. Default: 128 with fp16, otherwise 1.", short='ls'
    )
    sync_batch_norm: bool = _machine(False, 'Batch norms use the statistics of all devices.', is_identity=True)
    pretrained: str | None = setting(
        None,
        'Start from the network and weights in this model_dir or .keras file, or from the published weights of this '
        'name; python -m official_resnet.weights.pretrained lists them. With --eval_only, evaluate the network.',
        group='Transfer',
        flag=PRETRAINED,
        short='pmcp',
        is_path=True,
    )
    transfer: str = _transfer(
        'all',
        'What to train: the whole pretrained network, its last groups and the head, or only the head (the last layer), '
        'on features that are computed once. head turns --augment off unless you pass it. head,all trains the head in '
        'a run of its own, in the folder --model_dir with _head after its name, and then all layers from there.',
        choices=('all', 'last', 'head'),
        words=('all', 'last', 'head', 'head,all'),
        is_open=True,
    )
    train_last_groups: int = _transfer(
        1, 'Number of groups that --transfer=last trains.', least=1, needs='transfer=last', is_open=True
    )
    head: str = _transfer(
        'replace',
        'Whether a new last layer replaces the pretrained one, is appended to it, or the pretrained one is kept.',
        choices=('replace', 'append', 'keep'),
    )
    pretrained_classes: int | None = _transfer(None, 'Number of logits below an appended head.', flag=None)
    backbone_learning_rate_factor: float = _transfer(
        1.0, 'Factor of the learning rate of all layers but the last.', above=0, is_identity=False
    )
    machine: MachineConfig = setting(MachineConfig(), 'Where the training runs.', flag=None)

    def __post_init__(self):
        check(self)
        check(self.augmentation)
        if self.background and not self.views:
            raise UserError(f'--background_class needs encoded images, and {self.dataset} has none; leave it out')
        if self.target_threshold and self.loss == 'softmax':
            fault = f'--target_threshold={self.target_threshold} has no effect with --loss=softmax'
            raise UserError(f'{fault}; pass --loss=sigmoid, or --target_threshold=0')
        if self.target_threshold >= 1 - self.label_smoothing > 0:  # a label smoothed becomes about that
            fault = f'--target_threshold={self.target_threshold} leaves no target of 1'
            raise UserError(f'{fault} with --label_smoothing={self.label_smoothing}; lower one of them')
        if self.test_views != 'plain' and self.trains_on_features:
            raise UserError(f'--test_views={self.test_views} with --transfer=head needs --augment, or leave it out')
        if self.transfer == 'head' and (factor := self.backbone_learning_rate_factor) != 1:
            fault = f'--backbone_learning_rate_factor={factor} with --transfer=head, which freezes the backbone'
            raise UserError(f'{fault}; leave one of them out')
        if self.batch_size % (steps := self.gradient_accumulation_steps):
            fault = f'--gradient_accumulation_steps={steps} does not divide --batch_size={self.batch_size}'
            raise UserError(f'{fault}; pass --batch_size={max(self.batch_size // steps, 1) * steps}')
        if self.decay_form == 'decoupled' and self.optimizer != 'momentum':
            raise UserError(
                f'--decay_form=decoupled is not for --optimizer={self.optimizer}; pass --decay_form=coupled'
            )
        if self.optimizer == 'adam' and self.weight_decay:
            fault = f'--weight_decay={self.weight_decay} cannot be combined with --optimizer=adam'
            raise UserError(f'{fault}; pass --weight_decay=0, or --optimizer=momentum')

    @property
    def learning_rate(self) -> float:
        """The base rate for this batch size. The rates of Adam, LAMB, LARS and Muon do not depend on the batch size."""
        return self.base_learning_rate * (self.batch_size / 128 if self.optimizer == 'momentum' else 1)

    @property
    def trains_on_features(self) -> bool:
        """Whether the trained layer sees the same features of an image in every epoch."""
        return self.transfer == 'head' and not self.augment

    def with_machine(self, **changes: Any) -> 'TrainConfig':
        """Return this config with the given fields of its MachineConfig changed."""
        return dataclasses.replace(self, machine=dataclasses.replace(self.machine, **changes))

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], make_spec: Callable[..., ResNetSpec], **fields: Any
    ) -> 'TrainConfig':
        """Return the TrainConfig for settings that are named by their flags, as in recipes. `fields` override them.

        `make_spec(resnet_size, **fields)` returns the ResNetSpec; resnet_size is left out if the settings lack it.
        """
        spec = part_of(ResNetSpec, settings)
        size = [spec.pop('group_blocks')] if 'group_blocks' in spec else []
        spec |= {name: None for name in ('shortcut', 'blur_pool') if spec.get(name) == 'none'}
        parts = {'schedule': Schedule, 'machine': MachineConfig, 'augmentation': Augmentation}
        own = {name: part(**part_of(part, settings)) for name, part in parts.items()} | part_of(cls, settings) | fields
        return cls(make_spec(*size, **spec), **own)

    def folder_options(self) -> dict[str, Any]:
        """Return how the images of 'folder:PATH' are read: the arguments of image_folder.read."""
        is_large = self.spec.stem in POOLED_STEMS
        return {
            'image_size': self.image_size or (224 if is_large else 32),
            'channels': 1 if self.spec.stem == 'mnist' else 3,
            'validation_fraction': self.validation_fraction,
            'seed': self.seed,
            'balance': self.balance,
        }

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values, which same_run.from_json reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
