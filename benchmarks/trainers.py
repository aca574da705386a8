"""What is measured of a training: trainers of synthetic images, and batches that no step waits for."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from official_resnet.resnet_spec import ResNetSpec

if TYPE_CHECKING:
    import tensorflow as tf

    from official_resnet import resnet_run_loop

NUM_EPOCHS = 10**6  # more than any benchmark takes
Measures = dict[str, Callable[[int], object]]  # of a system: what takes so many steps


def synthetic_trainer(
    spec: ResNetSpec, batch_size: int, machine: dict | None = None, **config
) -> 'resnet_run_loop.Trainer':
    """Return the resnet_run_loop.Trainer of a ResNetSpec; `machine` and `config` are fields of the configurations."""
    from official_resnet import resnet_run_loop
    from official_resnet.training.config import MachineConfig, TrainConfig

    dataset = 'synthetic' if spec.stem == 'cifar' else 'synthetic224'
    config = {'dataset': dataset, 'train_epochs': NUM_EPOCHS, 'machine': MachineConfig(**machine or {}), **config}
    return resnet_run_loop.Trainer(TrainConfig(spec, batch_size=batch_size, **config))


def ready_batches(trainer: 'resnet_run_loop.Trainer') -> 'tf.data.Dataset':
    """Return a tf.data.Dataset of one batch over and over: no step waits for its input."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(next(iter(trainer.train_batches()))).repeat()
