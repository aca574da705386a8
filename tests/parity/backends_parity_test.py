"""What we save loads and predicts on every backend of Keras, in a process that cannot import this package."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from fixtures import torch_files
from fixtures.networks import normal
from fixtures.random_weights import randomize

from checkpoints_tools import convert
from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.inference import rewrite

pytestmark = pytest.mark.parity
LOAD = """
import sys
sys.modules['official_resnet'] = None  # importing it fails
import keras, numpy
folder, backend = sys.argv[1:]
assert keras.backend.backend() == backend
found = {}
with numpy.load(f'{folder}/images.npz') as images:
    for name in images.files:
        net = keras.models.load_model(f'{folder}/{name}.keras')
        found[name] = keras.ops.convert_to_numpy(net(images[name], training=False))
numpy.savez(f'{folder}/{backend}.npz', **found)
"""
SPECS = {  # of networks with random weights and statistics
    'version_1_option_A': resnet_spec.ResNetSpec((1, 1, 1), filters=4, shortcut='A'),
    'version_2': resnet_spec.ResNetSpec((1, 1), filters=4, version='2', shortcut='B'),
    'se_blur': resnet_spec.ResNetSpec(
        (1, 1, 1), filters=4, shortcut='B', version='1.5', se_reduction=2, blur_pool='all'
    ),
    'deep_stem': resnet_variants.imagenet_spec(18, filters=8, stem='deep'),
    'grouped': resnet_spec.ResNetSpec(
        (1, 1), filters=8, block='bottleneck', cardinality=2, base_width=64, shortcut='B'
    ),
    'pooled': resnet_variants.VARIANTS['resnet8_pooled'],
}


@pytest.fixture(scope='module')
def saved(source, tmp_path_factory):
    """A folder of networks and of their images, and {name: logits on TensorFlow}."""
    folder, nets = tmp_path_factory.mktemp('nets'), {}
    for name in ('cifar_a', 'bottleneck'):
        torch_files.write_zip(folder / 'net.pth', torch_files.random_weights(torch_files.TINY[name]))
        convert.convert(folder / 'net.pth', folder / f'converted_{name}.keras')
        nets[f'converted_{name}'] = keras.models.load_model(folder / f'converted_{name}.keras')
    nets['trained'] = keras.models.load_model(source / 'model.keras')
    nets['folded'] = rewrite.propagate_strides(rewrite.fold_batch_norm(nets['converted_bottleneck']))
    for name, spec in SPECS.items():
        shape = resnet_variants.IMAGE_SHAPES[spec.stem]
        nets[name] = rewrite.to_stock(randomize(resnet_model.resnet(spec, 5, shape), scales=(0.5, 1.2), deviation=0.2))
    images = {name: normal(2, *[side or 64 for side in net.input_shape[1:]]) for name, net in nets.items()}
    for name, net in nets.items():
        net.save(folder / f'{name}.keras')
    np.savez(folder / 'images.npz', **images)
    return folder, {name: net(images[name], training=False).numpy() for name, net in nets.items()}


@pytest.mark.parametrize('backend', ['tensorflow', 'jax', 'torch'])
def test_the_same_logits_on_every_backend(saved, backend):
    folder, expected = saved
    environment = os.environ | {'KERAS_BACKEND': backend, 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', LOAD, str(folder), backend]
    subprocess.run(command, env=environment, check=True, cwd='/', capture_output=True)
    with np.load(folder / f'{backend}.npz') as found:
        assert set(found.files) == set(expected)
        for name, logits in expected.items():
            assert np.ptp(logits, axis=0).max() > 1e-3, name  # the images are told from each other
            np.testing.assert_allclose(found[name], logits, atol=1e-4 * np.abs(logits).max(), rtol=0, err_msg=name)
