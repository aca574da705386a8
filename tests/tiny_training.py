"""A training of seconds, and a sudden end to it."""

import dataclasses

import keras
import numpy as np

from official_resnet import resnet_run_loop, resnet_spec
from official_resnet.inputs import in_memory
from official_resnet.training.config import MachineConfig

SPEC = resnet_spec.ResNetSpec((1, 1, 1), filters=4, bn_momentum=0.9)
BATCH = 16


def make_config(cifar_dir, model_dir, **fields):
    """Return a TrainConfig of two epochs, but for the fields given, of it and of its MachineConfig."""
    fields = {'train_epochs': 2, 'batch_size': BATCH, 'steps_per_call': 3, 'base_learning_rate': 0.4} | fields
    folders = {'data_dir': str(cifar_dir), 'model_dir': None if model_dir is None else str(model_dir)}
    return config_of(SPEC, **folders, **fields)


def config_of(spec, **fields):
    """Return a TrainConfig of fields of it and of its MachineConfig."""
    machine = {
        field.name: fields.pop(field.name) for field in dataclasses.fields(MachineConfig) if field.name in fields
    }
    return resnet_run_loop.TrainConfig(spec, machine=MachineConfig(**machine), **fields)


def drawn_examples(count, num_classes=10):
    """Return Examples of noise."""
    random = np.random.default_rng(count)
    names = tuple(map(str, range(num_classes)))
    return in_memory.InMemorySplit(
        random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8),
        random.integers(0, num_classes, count).astype(np.int32),
        num_classes,
        'drawn',
        names,
        'per_image_standardization',
    )


class StopAt(keras.callbacks.Callback):
    """Drop dead at a step: nothing after it is saved, as after SIGKILL."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if logs['step'] >= self.step:
            raise RuntimeError('killed')
