"""Our variants against networks that others wrote, with the same random weights: pytorchcv and keras.applications."""

import importlib

import keras
import pytest
from fixtures.conversion import assert_runs_alike, converted
from fixtures.foreign_files import with_biases
from fixtures.torch_peers import assert_same_logits, copy_weights

from checkpoints_tools import from_keras_applications
from official_resnet import resnet_model, resnet_variants

pytestmark = pytest.mark.parity
IMAGENET_SIZES, CIFAR_SIZES = (64, 75), (32, 27)  # pixels; an even one and an odd one
PREACT = {'version': '2', 'stem_bn': True, 'stem_pool': 'pad1'}
# pytorchcv module, function -> ours
PEERS = [
    ('resnet', 'resnet18', resnet_variants.imagenet_spec(18, version='1')),
    ('resnet', 'resnet34', resnet_variants.imagenet_spec(34, version='1')),
    ('resnet', 'resnet50', resnet_variants.VARIANTS['resnet50_v1']),
    ('resnet', 'resnet50b', resnet_variants.VARIANTS['resnet50_v1.5']),
    ('preresnet', 'preresnet50', resnet_variants.imagenet_spec(50, **PREACT, stride_conv='first')),
    ('preresnet', 'preresnet50b', resnet_variants.imagenet_spec(50, **PREACT)),
    ('resnext', 'resnext50_32x4d', resnet_variants.VARIANTS['resnext50_32x4d']),
    ('seresnet', 'seresnet50', resnet_variants.VARIANTS['seresnet50_v1']),
    # Its D is for dilation: a deep stem of twice the filters, and groups 3 and 4 dilated in place of strides.
    ('resnetd', 'resnetd50b', resnet_variants.imagenet_spec(50, stem='deep', stem_filters=128, output_stride=8)),
    ('resneta', 'resneta50b', resnet_variants.VARIANTS['resnet50_d']),
    ('resnet_cifar', 'resnet20_cifar10', resnet_variants.cifar_spec(20, shortcut='B')),
    ('resnet_cifar', 'resnet56_cifar10', resnet_variants.cifar_spec(56, shortcut='B')),
    ('preresnet_cifar', 'preresnet20_cifar10', resnet_variants.cifar_spec(20, shortcut='B', version='2')),
    ('resnext_cifar', 'resnext29_32x4d_cifar10', resnet_variants.VARIANTS['resnext29_32x4d']),
    ('wrn_cifar', 'wrn28_10_cifar10', resnet_variants.VARIANTS['wrn28_10']),
]


@pytest.mark.parametrize('module,function,spec', PEERS, ids=[peer[1] for peer in PEERS])
def test_same_logits_as_pytorchcv(module, function, spec):
    from torch import nn

    peer = getattr(importlib.import_module(f'pytorchcv.models.{module}'), function)().eval()
    peer.features.final_pool = nn.AdaptiveAvgPool2d(1)  # some have a 7x7 or 8x8 pool, for one image size only
    is_cifar = spec.stem == 'cifar'
    keras.utils.set_random_seed(0)
    model = resnet_model.resnet(spec, 10 if is_cifar else 1000, (None, None, 3))
    copy_weights(model, peer)
    assert_same_logits(model, peer, CIFAR_SIZES if is_cifar else IMAGENET_SIZES)


@pytest.mark.parametrize('name', ['ResNet50', 'ResNet101V2'])
def test_same_logits_as_keras_applications(name, tmp_path):
    """Their convolutions have biases: the converter folds them into the BN that comes next on each path."""
    keras.utils.set_random_seed(0)
    make, path = getattr(keras.applications, name), tmp_path / 'net.weights.h5'
    for size in IMAGENET_SIZES:  # theirs are for one size each, with a classifier
        peer = with_biases(make(weights=None, classifier_activation=None, input_shape=(size, size, 3)))
        peer.save_weights(path)
        source, variables, model = converted(from_keras_applications, path)
        assert_runs_alike(from_keras_applications, source, variables, model, (size,), peer)
