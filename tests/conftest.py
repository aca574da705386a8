"""Shared fixtures. TensorFlow is started here once, quietly, with two logical CPUs for the tests of replicas."""

import os
import pathlib
import re

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# As in programs; but on some CPUs their gradients are wrong for networks as small as the tests', which devices refuses.
os.environ.setdefault(
    'TF_ENABLE_ONEDNN_OPTS',
    '0' if re.search(r'(?m)^flags(?!.* avx512f ).* avx2 ', pathlib.Path('/proc/cpuinfo').read_text()) else '1',
)
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')  # the numbers in the tests are a CPU's
if 'PYTEST_XDIST_WORKER' in os.environ:  # as many of them as there are cores
    os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')

import numpy as np
import pytest
import tensorflow as tf
from fixtures import writers

MNIST_FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'),
}

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope='session')
def cifar_dir(tmp_path_factory):
    """A data_dir in CIFAR-10's layout: 5 x 24 training and 30 test images, whose brightness shows the class."""
    folder = tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in [*((f'data_batch_{i}.bin', 24) for i in range(1, 6)), ('test_batch.bin', 30)]:
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 32, 32, 3)) + 19 * labels[:, None, None, None]
        images[:, 8:16, 8:16] //= 3  # so that standardisation leaves something to see
        writers.write_cifar(folder / name, images.astype(np.uint8), labels)
    return folder.parent


@pytest.fixture(scope='session')
def mnist_dir(tmp_path_factory):
    """A data_dir with a folder mnist: 120 training images in plain files and 30 test images in packed ones."""
    folder = tmp_path_factory.mktemp('data') / 'mnist'
    folder.mkdir()
    random = np.random.default_rng(1)
    for split, count in (('train', 120), ('test', 30)):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 28, 28)) + 19 * labels[:, None, None]
        for name, values in zip(MNIST_FILES[split], (images, labels), strict=True):
            writers.write_idx(folder / name, values.astype(np.uint8))
    return folder.parent


@pytest.fixture(scope='session')
def source(cifar_dir, tmp_path_factory):
    """The model_dir of a tiny network trained on CIFAR's ten classes."""
    from fixtures.tiny_training import make_config

    from official_resnet import resnet_run_loop

    model_dir = tmp_path_factory.mktemp('source')
    resnet_run_loop.train(make_config(cifar_dir, model_dir, train_epochs=1), ())
    return model_dir
