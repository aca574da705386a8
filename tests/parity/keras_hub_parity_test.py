"""KerasHub's networks with random weights, converted and compared with KerasHub; and ours, loaded by KerasHub."""

import h5py
import keras
import numpy as np
import pytest
from fixtures.conversion import assert_equal, images_of
from fixtures.random_weights import randomize

from checkpoints_tools import convert, from_keras_hub
from official_resnet import resnet_model
from official_resnet.resnet_spec import ResNetSpec

pytestmark = pytest.mark.parity
SIZES = (64, 75)
# block_type, use_pre_activation, filters of the stem, blocks -> the name that is found
NETS = {
    'resnet_50': ('bottleneck_block', False, [64], [3, 4, 6, 3]),
    'resnet_v2_50': ('bottleneck_block', True, [64], [3, 4, 6, 3]),
    'resnet_vd_50': ('bottleneck_block_vd', False, [32, 32, 64], [3, 4, 6, 3]),
    'resnet_18': ('basic_block', False, [64], [2, 2, 2, 2]),
    'resnet_vd_18': ('basic_block_vd', False, [32, 32, 64], [2, 2, 2, 2]),
    'resnet_v2_8': ('basic_block', True, [64], [2, 1]),
    'resnet_v2_11': ('bottleneck_block', True, [32, 32, 64], [2, 1]),
    'resnet_11': ('bottleneck_block', False, [24, 32, 64], [2, 1]),
    'resnet_vd_11': ('bottleneck_block_vd', False, [64], [2, 1]),
}


def assert_same_logits(model, peer):
    for size in SIZES:
        assert_equal(model(images_of(size)).numpy(), peer(images_of(size)).numpy())


@pytest.mark.parametrize('name', NETS)
def test_same_logits_both_ways(name, tmp_path):
    """From KerasHub's file, and what is written of the result is again a network of KerasHub with these weights.

    A preset whose layers have no names, only Keras' numbers, is read as the file is.
    """
    import keras_hub

    block_type, is_v2, stem, blocks = NETS[name]
    keras.utils.set_random_seed(0)
    kernels, filters = [7] if len(stem) == 1 else [3] * 3, [64 * 2**i for i in range(len(blocks))]
    strides = [1] + [2] * (len(blocks) - 1)
    backbone = keras_hub.models.ResNetBackbone(stem, kernels, filters, blocks, strides, block_type, is_v2)
    pooling = 'max' if name == 'resnet_11' else 'avg'
    peer = randomize(keras_hub.models.ResNetImageClassifier(backbone=backbone, num_classes=20, pooling=pooling))
    peer.save(tmp_path / 'hub.keras')
    card = convert.convert(tmp_path / 'hub.keras', tmp_path / 'net.keras')
    assert (card['family'], card['variant'], card['num_classes']) == ('keras_hub', name, 20)
    model = keras.models.load_model(tmp_path / 'net.keras')
    assert_same_logits(model, peer)
    convert.to_family(tmp_path / 'net.keras', tmp_path / 'back.keras', 'keras_hub')
    back = keras.models.load_model(tmp_path / 'back.keras')
    assert isinstance(back, keras_hub.models.ResNetImageClassifier)
    assert (back.backbone.block_type, back.backbone.use_pre_activation) == (block_type, is_v2)
    assert len(back.variables) == len(peer.variables)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(back.weights, peer.weights, strict=True))
    assert_same_logits(model, back)
    check_preset(peer, tmp_path)


def check_preset(peer, tmp_path):
    """What save_to_preset writes is read like the file, also without the names of layers."""
    peer.save_to_preset(tmp_path / 'preset')
    expected = dict(from_keras_hub.read(tmp_path / 'hub.keras'))
    for has_names in (True, False):
        for path in () if has_names else (tmp_path / 'preset').glob('*.h5'):
            with h5py.File(path, 'r+') as file:
                file.visititems(lambda name, group: group.attrs.pop('name', None))
        assert convert.identify(tmp_path / 'preset')[0] is from_keras_hub
        found = from_keras_hub.read(tmp_path / 'preset')
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_network_of_ours_becomes_a_preset_of_keras_hub(tmp_path):
    """The input that KerasHub's image converter makes is that of the card."""
    import keras_hub

    spec = ResNetSpec((2, 1, 1), 64, 'imagenet', version='1.5', shortcut='B')
    model = randomize(resnet_model.resnet(spec, 7, (None, None, 3)))
    model.save(tmp_path / 'net.keras')
    convert.to_family(tmp_path / 'net.keras', tmp_path / 'hub.keras', 'keras_hub')
    task = keras.models.load_model(tmp_path / 'hub.keras')
    scale, offset = [1 / (255 * std) for std in (0.229, 0.224, 0.225)], [-2.1, -2.0, -1.8]
    converter = keras_hub.layers.ResNetImageConverter(image_size=(64, 64), scale=scale, offset=offset)
    task.preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(converter)
    task.save_to_preset(tmp_path / 'preset')
    loaded = keras_hub.models.ResNetImageClassifier.from_preset(str(tmp_path / 'preset'))
    assert_same_logits(model, loaded)
    card = convert.convert(tmp_path / 'preset', tmp_path / 'back.keras')
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype('float32')
    mean, std = (np.array(card['input'][name]) for name in ('mean', 'std'))
    expected = np.asarray(loaded.preprocessor(images))
    np.testing.assert_allclose((images * card['input']['scale'] - mean) / std, expected, atol=1e-4)
