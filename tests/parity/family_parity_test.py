"""Members of the family against nets we did not write, same random weights: PyTorch's pytorchcv, keras.applications."""

import importlib
import re

import keras
import numpy as np
import pytest
from fixtures.random_weights import randomize

from official_resnet import resnet_model, resnet_variants

pytestmark = pytest.mark.parity
IMAGENET_SIZES, CIFAR_SIZES = (64, 75), (32, 27)  # pixels; an even one and an odd one
# pytorchcv module, function -> ours
PEERS = [
    ('resnet', 'resnet18', resnet_variants.imagenet_spec(18, version='1')),
    ('resnet', 'resnet34', resnet_variants.imagenet_spec(34, version='1')),
    ('resnet', 'resnet50', resnet_variants.VARIANTS['resnet50_v1']),
    ('resnet', 'resnet50b', resnet_variants.VARIANTS['resnet50_v1.5']),
    (
        'preresnet',
        'preresnet50',
        resnet_variants.imagenet_spec(50, version='2', stem_bn=True, stem_pool='pad1', stride_conv='first'),
    ),
    ('preresnet', 'preresnet50b', resnet_variants.imagenet_spec(50, version='2', stem_bn=True, stem_pool='pad1')),
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


def in_block_order(model):
    """(convolutions, BNs) of ours as the papers write a net down: blocks in order, the shortcut's last."""

    def place(layer):
        found = re.match(r'(stem|group|head)(\d*)_?(?:block(\d+)_)?(se_|shortcut_)?(?:conv|bn)(\d*)', layer.name)
        part, group, block, branch, number = found.groups()
        # Of a stem's convolutions the last is called just stem_conv.
        return (
            ('stem', 'group', 'head').index(part),
            int(group or 0),
            int(block or 0),
            (None, 'se_', 'shortcut_').index(branch),
            int(number or 99),
        )

    convs = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return sorted(convs, key=place), sorted(norms, key=place)


@pytest.mark.parametrize('module,function,spec', PEERS, ids=[peer[1] for peer in PEERS])
def test_same_logits_as_pytorchcv(module, function, spec):
    import torch
    from torch import nn

    peer = getattr(importlib.import_module(f'pytorchcv.models.{module}'), function)().eval()
    peer.features.final_pool = nn.AdaptiveAvgPool2d(1)  # some have a 7x7 or 8x8 pool, for one image size only
    is_cifar = spec.stem == 'cifar'
    keras.utils.set_random_seed(0)
    model = resnet_model.resnet(spec, 10 if is_cifar else 1000, (None, None, 3))
    randomize(model)

    def give(values, parameter):
        assert values.shape == tuple(parameter.shape)
        parameter.data = torch.tensor(values)

    modules = list(peer.modules())
    convs, norms = in_block_order(model)
    for layer, conv in zip(convs, (m for m in modules if isinstance(m, nn.Conv2d)), strict=True):
        give(layer.kernel.numpy().transpose(3, 2, 0, 1), conv.weight)
        assert layer.use_bias == (conv.bias is not None)
        if layer.use_bias:
            give(layer.bias.numpy(), conv.bias)
    for layer, norm in zip(norms, (m for m in modules if isinstance(m, nn.BatchNorm2d)), strict=True):
        assert layer.epsilon == norm.eps
        for ours, theirs in (
            (layer.gamma, norm.weight),
            (layer.beta, norm.bias),
            (layer.moving_mean, norm.running_mean),
            (layer.moving_variance, norm.running_var),
        ):
            give(ours.numpy(), theirs)
    give(model.get_layer('logits').kernel.numpy().T, peer.output.weight)
    give(model.get_layer('logits').bias.numpy(), peer.output.bias)
    for size in CIFAR_SIZES if is_cifar else IMAGENET_SIZES:
        images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype('float32')
        with torch.inference_mode():
            expected = peer(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
        assert_equal(model(images).numpy(), expected)


@pytest.mark.parametrize('name', ['ResNet50', 'ResNet101', 'ResNet50V2', 'ResNet101V2'])
def test_same_logits_as_keras_applications(name):
    """Their convolutions have biases: ours are folded into the BN that comes next on each path."""
    is_v2 = name.endswith('V2')
    size = int(re.search(r'\d+', name)[0])
    axes = (
        {'version': '2', 'stride_block': 'last', 'stem_bias': True, 'stem_pool': 'pad1'} if is_v2 else {'version': '1'}
    )
    keras.utils.set_random_seed(0)
    model = resnet_variants.imagenet_resnet(size, bn_epsilon=1.001e-5, **axes)
    for pixels in IMAGENET_SIZES:  # theirs are for one size each, with a classifier
        peer = getattr(keras.applications, name)(
            weights=None, classifier_activation=None, input_shape=(pixels, pixels, 3)
        )
        randomize(peer)
        (copy_v2 if is_v2 else copy_v1)(model, peer, resnet_variants.IMAGENET_BLOCKS[size][1])
        images = np.random.default_rng(pixels).normal(size=(2, pixels, pixels, 3)).astype('float32')
        assert_equal(model(images).numpy(), peer(images).numpy())


def copy_bn(ours, theirs, bias=0.0):
    """Copy a BN whose input lacks `bias` in our net."""
    ours.set_weights(theirs.get_weights())
    ours.moving_mean.assign(theirs.moving_mean - bias)


def copy_v1(model, peer, group_blocks):
    pairs = [('stem', '', 'conv1')]
    for group, num_blocks in enumerate(group_blocks, start=1):
        for block in range(1, num_blocks + 1):
            ours, theirs = f'group{group}_block{block}', f'conv{group + 1}_block{block}'
            pairs += [(ours, str(i), f'{theirs}_{i}') for i in (1, 2, 3)]
            if block == 1:
                pairs.append((f'{ours}_shortcut', '', f'{theirs}_0'))
    for ours, number, theirs in pairs:
        conv = peer.get_layer(f'{theirs}_conv')
        model.get_layer(f'{ours}_conv{number}').kernel.assign(conv.kernel)
        copy_bn(model.get_layer(f'{ours}_bn{number}'), peer.get_layer(f'{theirs}_bn'), conv.bias.numpy())
    model.get_layer('logits').set_weights(peer.get_layer('predictions').get_weights())


def copy_v2(model, peer, group_blocks):
    model.get_layer('stem_conv').set_weights(peer.get_layer('conv1_conv').get_weights())
    missing = 0.0  # what the sum of our blocks so far lacks, channel by channel
    for group, num_blocks in enumerate(group_blocks, start=1):
        for block in range(1, num_blocks + 1):
            ours, theirs = f'group{group}_block{block}', f'conv{group + 1}_block{block}'
            copy_bn(model.get_layer(f'{ours}_bn1'), peer.get_layer(f'{theirs}_preact_bn'), missing)
            for i in (1, 2):
                copy_bn(model.get_layer(f'{ours}_bn{i + 1}'), peer.get_layer(f'{theirs}_{i}_bn'))
                model.get_layer(f'{ours}_conv{i}').kernel.assign(peer.get_layer(f'{theirs}_{i}_conv').kernel)
            last = peer.get_layer(f'{theirs}_3_conv')
            model.get_layer(f'{ours}_conv3').kernel.assign(last.kernel)
            if block == 1:
                projection = peer.get_layer(f'{theirs}_0_conv')
                model.get_layer(f'{ours}_shortcut_conv').kernel.assign(projection.kernel)
                missing = projection.bias.numpy()
            missing = missing + last.bias.numpy()
    copy_bn(model.get_layer('head_bn'), peer.get_layer('post_bn'), missing)
    model.get_layer('logits').set_weights(peer.get_layer('predictions').get_weights())


def assert_equal(got, expected):
    """Within 1e-4 of the largest logit."""
    assert got.shape == expected.shape and np.isfinite(expected).all() and expected.std() > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
