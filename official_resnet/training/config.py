"""TrainConfig: everything that decides the course of a training, as plain values."""

import dataclasses
import json

from official_resnet import resnet_spec
from official_resnet.errors import UserError
from official_resnet.inputs.datasets import FolderOptions
from official_resnet.inputs.images import Views

# What makes two runs different runs: a checkpoint continues only where these agree.
IDENTITY = (
    'spec',
    'experiment',
    'dataset',
    'num_train_images',
    'image_size',
    'validation_fraction',
    'normalization',
    'num_classes',
    'batch_size',
    'seed',
    'optimizer',
    'augment',
    'flip',
    'transfer',
    'train_last_groups',
    'head',
    'pretrained_classes',
    'views',
    'background',
    'sync_batch_norm',
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over a training, in epochs and relative to its base (or peak) rate.

    Attributes:
        kind: 'piecewise': base * factors[i] between the boundaries; 'cosine': from base to 0
            (arXiv:1608.03983 Eq. 5, one period); 'one_cycle': 0 to base at peak_epoch, then to 0, in
            straight lines (after arXiv:1708.07120); 'constant'.
        boundaries: epochs at which the rate changes (piecewise).
        factors: one more than boundaries (piecewise).
        peak: share of the training at which one_cycle peaks, 0 to 1.
        warmup_epochs: linear rise from 0 before the schedule proper.
    """

    kind: str = 'piecewise'
    boundaries: tuple = ()
    factors: tuple = (1.0,)
    peak: float = 0.25
    warmup_epochs: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, 'boundaries', tuple(self.boundaries))  # lists, when read from JSON
        object.__setattr__(self, 'factors', tuple(self.factors))
        if self.kind not in ('piecewise', 'cosine', 'one_cycle', 'constant'):
            raise UserError(f"lr_schedule {self.kind!r} is none of 'piecewise', 'cosine', 'one_cycle', 'constant'")
        if self.kind == 'piecewise' and (
            len(self.factors) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(self.boundaries)
        ):
            raise UserError(f'lr_boundaries {self.boundaries} must rise, and lr_factors {self.factors} be one more')
        if not 0 < self.peak < 1 or self.warmup_epochs < 0:
            raise UserError(
                f'one_cycle peak {self.peak} must lie between 0 and 1, warmup_epochs {self.warmup_epochs} not below 0'
            )


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Where a training runs, which may change when it is continued; `TrainConfig.machine`.

    Attributes:
        data_dir: where the data set is; None for 'synthetic' and folders.
        model_dir: checkpoints, metrics, final model; a run found there is continued. None: nothing is kept.
        save_checkpoint_minutes: between checkpoints inside an epoch; there is one after each epoch anyway.
        steps_per_call: steps the compiled loop runs before Python sees its results; 0 aims at a second.
        num_gpus: None takes one if there is one, -1 all.
        distribution_strategy: 'off', 'default' (by num_gpus), 'one_device', 'mirrored' or 'multi_worker_mirrored'.
        all_reduce_alg: how replicas add up gradients, 'ring' or 'nccl'; None is TensorFlow's choice.
        enable_xla: compile the step with XLA (on a CPU it is slower).
        input_threads: of tf.data, 0 for one.
    """

    data_dir: str | None = None
    model_dir: str | None = None
    save_checkpoint_minutes: float = 10.0
    steps_per_call: int = 0
    num_gpus: int | None = None
    distribution_strategy: str = 'default'
    all_reduce_alg: str | None = None
    enable_xla: bool = False
    input_threads: int = 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the course of a training; JSON in `config.json` and in each checkpoint.

    Attributes:
        spec: the network.
        experiment: what the block function that is passed to the loop changes; None if there is no such function.
        dataset: a name in datasets.DATASETS, 'tfds:NAME', or 'folder:PATH' with a subfolder for each class.
        image_size: of the pictures of a folder; None: 224 for ImageNet's stems, 32 for the others.
        validation_fraction: of each class of a folder, the test split, unless the folder has its own.
        normalization: a name in NORMALIZATIONS; None takes the data set's.
        views: how encoded pictures become the net's input, which are then streamed; None reads them into memory.
        background: logit 0 is of no class, as in TensorFlow's own ImageNet nets; encoded pictures only.
        num_classes: logits, if more than the data set has classes; None takes as many.
        num_train_images: use the first so many training images; None uses all.
        train_epochs: in total, over all restarts.
        max_train_steps: stop at this global step, if that comes first.
        batch_size: images a step, over all devices.
        epochs_between_evals: evaluate after so many epochs, and after the last.
        stop_threshold: stop when the test accuracy, 0..1, reaches it.
        optimizer: 'momentum', optimizers.CoupledSGD; or 'adam' (arXiv:1412.6980), without weight decay.
        base_learning_rate: per 128 images of batch, as official/resnet counts on CIFAR; Adam's is the rate itself.
        schedule: its course, in epochs.
        momentum, nesterov, weight_decay, decay: see optimizers.CoupledSGD.
        label_smoothing: 0 for none (arXiv:1512.00567 Sec. 7).
        augment: pad, crop and flip the training images.
        flip: whether augmentation flips.
        dtype: 'fp32', or 'bf16' or 'fp16' for mixed precision (variables and logits stay float32).
        loss_scale: a number, 'dynamic', or None for 128 with fp16 and 1 otherwise.
        seed: of initial weights, order and augmentation.
        sync_batch_norm: BN in training normalises by the batches of all replicas, not of its own.
        pretrained: model_dir or .keras file whose weights a new run starts from.
        transfer: what is trained, 'all', 'last' (the last groups and the head) or 'head' (the last layer); the rest
            is frozen, its BN in inference mode. 'head' without augment trains on features computed once.
        train_last_groups: of transfer 'last'.
        head: 'replace' the last layer of the pretrained net by a new one, 'append' a new one to it, or 'keep' it.
        pretrained_classes: logits of the pretrained net, to which 'append' appends; transfer.adopt sets it.
        backbone_learning_rate_factor: multiplies the rate of all layers but the new one.
        machine: where it runs.
    """

    spec: resnet_spec.ResNetSpec
    dataset: str = 'cifar10'
    num_train_images: int | None = None
    train_epochs: int = 182
    max_train_steps: int | None = None
    batch_size: int = 128
    epochs_between_evals: int = 1
    stop_threshold: float | None = None
    optimizer: str = 'momentum'
    base_learning_rate: float = 0.1
    schedule: Schedule = Schedule()
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    decay: str = 'all'
    label_smoothing: float = 0.0
    augment: bool = True
    flip: bool = True
    dtype: str = 'fp32'
    loss_scale: float | str | None = None
    seed: int = 0
    sync_batch_norm: bool = False
    pretrained: str | None = None
    transfer: str = 'all'
    train_last_groups: int = 1
    head: str = 'replace'
    pretrained_classes: int | None = None
    backbone_learning_rate_factor: float = 1.0
    image_size: int | None = None
    validation_fraction: float = 0.1
    normalization: str | None = None
    num_classes: int | None = None
    views: Views | None = None
    background: bool = False
    experiment: dict | None = None
    machine: MachineConfig = MachineConfig()

    def __post_init__(self):
        for field, choices in (('transfer', ('all', 'last', 'head')), ('head', ('replace', 'append', 'keep'))):
            if getattr(self, field) not in choices:
                raise UserError(f'{field} {getattr(self, field)!r} is none of {", ".join(choices)}')
        if self.background and not self.views:
            raise UserError(f'background with {self.dataset}, whose pictures are not encoded; leave it out')
        if not self.backbone_learning_rate_factor > 0:
            raise UserError(
                f'backbone_learning_rate_factor {self.backbone_learning_rate_factor} must be above 0; '
                "transfer 'last' or 'head' freezes layers"
            )

    @property
    def learning_rate(self):
        """The base rate for this batch size; Adam's steps do not grow with it."""
        return self.base_learning_rate * (1 if self.optimizer == 'adam' else self.batch_size / 128)

    @property
    def trains_on_features(self):
        """Whether what is trained sees the same features of a picture in every epoch."""
        return self.transfer == 'head' and not self.augment

    def with_machine(self, **changes):
        """Return the same training on a machine with these fields of MachineConfig changed."""
        return dataclasses.replace(self, machine=dataclasses.replace(self.machine, **changes))

    def folder_options(self):
        """Return the datasets.FolderOptions of 'folder:PATH'."""
        is_large = self.spec.stem in ('imagenet', 'deep')
        return FolderOptions(
            image_size=self.image_size or (224 if is_large else 32),
            channels=1 if self.spec.stem == 'mnist' else 3,
            validation_fraction=self.validation_fraction,
            seed=self.seed,
        )

    def to_json(self):
        """Return a dict of plain values that `from_json` reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values):
        """Return the TrainConfig that `to_json` wrote; a field that was added since has its default.

        Raises:
            UserError: it has a field that is gone since.
        """
        values = values | {'spec': resnet_spec.ResNetSpec.from_json(values['spec'])}
        parts = {'schedule': Schedule, 'machine': MachineConfig, 'views': Views}
        try:
            return cls(**values | {name: part(**values[name]) for name, part in parts.items() if values.get(name)})
        except TypeError as error:
            reason = str(error).partition('() ')[2]
            raise UserError(
                f'an older version of this program stored the run ({reason}); train it again in another --model_dir'
            ) from None


def difference(name, ours, theirs):
    """Return 'name old, not new', going into the field of a spec or schedule that differs."""
    if isinstance(ours, list) and isinstance(theirs, list):  # a sentence holds no thousand class names
        i = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
        return difference(name, len(ours), len(theirs)) if i is None else difference(f'{name}[{i}]', ours[i], theirs[i])
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ', '.join(
            difference(f'{name}.{key}', ours.get(key), theirs.get(key))
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        )
    return f'{name} {theirs!r}, not {ours!r}'
