"""Training, one function a system, for speed: by us, Keras and PyTorch; by two workers; and what checkpoints cost.

Each takes (dtype, resnet_size, batch_size), the first 'fp32' or 'bf16', and returns {measure: function of a number of
steps}. Steps of `ours`, `keras` and `torch`, all of CIFAR's nets, are fed with one batch that is ready in memory; the
input is a measure of its own. Steps of `one` and `several` read their input from the pipeline and agree with the other
worker after each call, as in training.
"""

import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.child import Child
from official_resnet import resnet_variants
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training import devices, workers

if TYPE_CHECKING:
    import tensorflow as tf

    from official_resnet import resnet_run_loop

Measures = dict[str, Callable[[int], object]]  # of a system: what takes so many steps
NUM_EPOCHS = 10**6  # more than any benchmark takes


def ours(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """resnet_run_loop's own compiled loop."""
    devices.start_tensorflow()
    trainer = synthetic_trainer(resnet_variants.cifar_spec(resnet_size), batch_size, dtype=dtype)
    pipeline, ready = iter(trainer.train_batches()), ready_batches(trainer)
    return {
        'train': stepping(trainer, ready),
        'forward': _forward(trainer.model, next(iter(ready))[0]),
        'input': lambda steps: [next(pipeline) for _ in range(steps)],
    }


def keras(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """The same net in stock Keras layers, with compile and fit, TensorFlow's own threads."""
    import keras

    with devices.hidden_stderr():
        trainer = synthetic_trainer(resnet_variants.cifar_spec(resnet_size), batch_size, dtype=dtype)
    from official_resnet.inference import rewrite

    model = rewrite.to_stock(trainer.model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=['accuracy'])
    ready = ready_batches(trainer)
    return {
        'train': lambda steps: model.fit(ready, steps_per_epoch=steps, epochs=1, verbose=0),
        'forward': _forward(model, next(iter(ready))[0]),
    }


def torch(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """PyTorch, channels_last and eager."""
    from torch import int64

    from benchmarks import torch_peer
    from official_resnet.inputs import datasets

    examples = datasets.open_split('synthetic', 'train')
    images, labels = next(iter(examples.training_batches(batch_size)))
    images, labels = torch_peer.to_torch(images.numpy()), torch_peer.torch.tensor(labels.numpy(), dtype=int64)
    step = torch_peer.TrainStep(torch_peer.CifarResNet(resnet_size), dtype)
    return {
        'train': lambda steps: [step.train(images, labels) for _ in range(steps)],
        'forward': lambda steps: [step.forward(images) for _ in range(steps)],
    }


def one(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """One process with all cores."""
    return {'workers': join(dtype, resnet_size, batch_size, 'default')}


def several(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """Two workers with half of the cores each, this process and another, which does as many steps as this one."""
    cores = sorted(os.sched_getaffinity(0))
    hosts = [f'localhost:{port}' for port in workers.free_ports(2)]
    mine, other = ({'TF_CONFIG': workers.tf_config(hosts, i), 'TF_CPP_MIN_LOG_LEVEL': '3'} for i in range(2))
    peer = Child('benchmarks.training:join', dtype, resnet_size, batch_size, cores=cores[1::2], **other)
    os.sched_setaffinity(0, cores[::2])
    os.environ |= mine
    run = join(dtype, resnet_size, batch_size)
    peer.answer()

    def steps(count):
        peer.tell(count)
        run(count)
        peer.answer()

    return {'workers': steps}


def join(
    dtype: str, resnet_size: int, batch_size: int, strategy: str = 'multi_worker_mirrored'
) -> Callable[[int], None]:
    """Be one of the workers that TF_CONFIG lists, or with another strategy the only one; return what takes steps."""
    devices.start_tensorflow()
    if strategy == 'multi_worker_mirrored':
        workers.join(None)
    trainer = synthetic_trainer(_spec(resnet_size), batch_size, {'distribution_strategy': strategy}, dtype=dtype)
    train = stepping(trainer, trainer.train_batches())

    def run(count):
        train(count)
        trainer.process.total(count)

    return run


def save(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """Checkpoints of a net of CIFAR (6n+2 layers) or ImageNet and of its momentum, to where temporary files are."""
    devices.start_tensorflow()
    folder = tempfile.TemporaryDirectory()
    trainer = synthetic_trainer(_spec(resnet_size), batch_size, {'model_dir': folder.name}, dtype=dtype)

    def saves(count):
        assert folder  # which is removed when nobody refers to it
        for _ in range(count):
            trainer.save()

    return {'save': saves}


def synthetic_trainer(
    spec: ResNetSpec, batch_size: int, machine: dict | None = None, **config
) -> 'resnet_run_loop.Trainer':
    """Return a trainer of synthetic images; `machine` and `config` are fields of the configurations."""
    from official_resnet import resnet_run_loop
    from official_resnet.training.config import MachineConfig, TrainConfig

    dataset = 'synthetic' if spec.stem == 'cifar' else 'synthetic224'
    config = {'dataset': dataset, 'train_epochs': NUM_EPOCHS, 'machine': MachineConfig(**machine or {}), **config}
    return resnet_run_loop.Trainer(TrainConfig(spec, batch_size=batch_size, **config))


def ready_batches(trainer: 'resnet_run_loop.Trainer') -> 'tf.data.Dataset':
    """Return one training batch over and over: no step waits for its input."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(next(iter(trainer.train_batches()))).repeat()


def stepping(trainer: 'resnet_run_loop.Trainer', batches: 'tf.data.Dataset') -> Callable[[int], object]:
    """Return the function that takes so many training steps with the next of the batches."""
    import tensorflow as tf

    iterator = iter(batches)
    return lambda steps: trainer.train_steps(iterator, tf.constant(steps)).numpy()


def _forward(model, images):
    import tensorflow as tf

    call = tf.function(lambda: model(images, training=False))
    return lambda steps: [call().numpy() for _ in range(steps)]


def _spec(resnet_size):
    is_small = resnet_size % 6 == 2 and resnet_size not in resnet_variants.IMAGENET_BLOCKS
    return resnet_variants.cifar_spec(resnet_size) if is_small else resnet_variants.imagenet_spec(resnet_size)
