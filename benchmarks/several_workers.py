"""Training by several workers on this machine, and the price of a checkpoint: systems of speed_systems.

Each takes (dtype, resnet_size, batch_size) and returns {measure: function of a number of steps}, as the others do.
Here steps read their input from the pipeline and agree with the other workers after each call, as in training.
"""

import os
import tempfile
from collections.abc import Callable

from benchmarks import child
from benchmarks.trainers import Measures, synthetic_trainer
from official_resnet import resnet_variants
from official_resnet.training import devices, workers

COUNT = 2  # workers, of a share of the cores each


def one(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """One process with all cores."""
    devices.start_tensorflow()
    return {'workers': _steps(_trainer(dtype, resnet_size, batch_size))}


def several(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """COUNT workers, this process and what it starts, which do as many steps as this one tells them."""
    cores = sorted(os.sched_getaffinity(0))
    hosts = [f'localhost:{port}' for port in workers.free_ports(COUNT)]
    environments = [{'TF_CONFIG': workers.tf_config(hosts, i)} for i in range(COUNT)]
    peers = [
        child.Child(f'worker {i}', join, dtype, resnet_size, batch_size, cores=cores[i::COUNT], **environments[i])
        for i in range(1, COUNT)
    ]
    os.sched_setaffinity(0, cores[::COUNT])
    os.environ |= environments[0]
    run = join(dtype, resnet_size, batch_size)
    for peer in peers:
        peer.answer()

    def steps(count):
        for peer in peers:
            peer.tell(count)
        run(count)
        for peer in peers:
            peer.answer()

    return {'workers': steps}


def join(dtype: str, resnet_size: int, batch_size: int) -> Callable[[int], None]:
    """Be one of the workers that TF_CONFIG lists; return the function of a number of steps."""
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    devices.start_tensorflow()
    workers.join(None)
    return _steps(_trainer(dtype, resnet_size, batch_size, distribution_strategy='multi_worker_mirrored'))


def save(dtype: str, resnet_size: int, batch_size: int) -> Measures:
    """Checkpoints of a net of CIFAR (6n+2 layers) or ImageNet and of its momentum, to where temporary files are."""
    devices.start_tensorflow()
    folder = tempfile.TemporaryDirectory()
    trainer = _trainer(dtype, resnet_size, batch_size, model_dir=folder.name)

    def saves(count):
        assert folder
        for _ in range(count):
            trainer.save()

    return {'save': saves}


def _steps(trainer):
    import tensorflow as tf

    batches = iter(trainer.train_batches())

    def run(count):
        trainer.train_steps(batches, tf.constant(count)).numpy()
        trainer.process.total(count)

    return run


def _trainer(dtype, resnet_size, batch_size, **machine):
    is_small = resnet_size % 6 == 2 and resnet_size not in resnet_variants.IMAGENET_BLOCKS
    spec = resnet_variants.cifar_spec(resnet_size) if is_small else resnet_variants.imagenet_spec(resnet_size)
    return synthetic_trainer(spec, batch_size, machine, dtype=dtype)


SYSTEMS = {'workers:one': one, 'workers:several': several, 'save:seconds': save}
