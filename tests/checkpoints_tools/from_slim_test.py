"""slim's checkpoints: recognised, mapped one to one, and computed as slim does."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from fixtures.conversion import assert_runs_alike, our_model, refuse, shapes_of
from fixtures.foreign_files import slim_shapes, slim_variables, write_tf

from checkpoints_tools import convert, from_slim, operations
from official_resnet import resnet_variants

BLOCKS = {size: blocks for size, (kind, blocks) in resnet_variants.IMAGENET_BLOCKS.items() if kind == 'bottleneck'}


@pytest.mark.parametrize('size', BLOCKS)
@pytest.mark.parametrize('version,classes', [(1, 1000), (2, 1001)])
def test_published_nets_are_recognised(version, classes, size):
    variant = f'resnet_v{version}_{size}'
    shapes = slim_shapes(version, BLOCKS[size], 64, num_classes=classes, scope=variant)
    source, _ = convert.fit(from_slim, shapes, 'x', variant)
    assert (source.family, source.num_classes, source.labels) == ('slim', classes, f'imagenet{classes}')
    assert source.spec == resnet_variants.imagenet_spec(
        size, version=str(version), stride_block='last', stride_conv='3x3', stem_pool='same'
    )
    assert source.input.size == (224 if version == 1 else 299)
    assert version == 2 or source.input.mean == (123.68, 116.78, 103.94)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('stem_filters', [None, 16])
def test_our_net_computes_what_slim_does(version, stem_filters):
    """16 stem filters: the first unit's shortcut is an identity, since the number of channels stays."""
    variables = slim_variables(version, stem_filters=stem_filters, scope='some/where')
    assert all(np.abs(value).max() > 0.01 for name, value in variables.items() if name.endswith('biases'))
    model, source = our_model(from_slim, variables)
    assert_runs_alike(from_slim, source, variables, model)


def test_what_is_not_a_weight(tmp_path):
    """The file's mean_rgb is the input's mean; slots and counters are ignored, but not a slot without its variable."""
    extra = {
        'resnet_v1_50/mean_rgb': np.float32([123.5, 117.25, 104.0]),
        'global_step': np.int64(7),
        'resnet_v1_50/conv1/weights/Momentum': np.zeros((7, 7, 3, 4), 'float32'),
        'beta1_power': np.float32(0.9),
    }
    variables = slim_variables(1) | extra
    shapes = from_slim.shapes(write_tf(tmp_path / 'model.ckpt', variables))
    assert shapes == shapes_of(variables)
    assert from_slim.ignored(shapes | {'some/Momentum': ((3,), 'float32')}).keys() == extra.keys()
    model, source = our_model(from_slim, from_slim.read(tmp_path / 'model.ckpt'), shapes)
    assert source.input.mean == (123.5, 117.25, 104.0)
    assert_runs_alike(from_slim, source, variables, model)


def test_there_is_one_net():
    first = 'block1/unit_1/bottleneck_v1/conv1/weights'
    refuse('2 ResNets', from_slim.describe, slim_shapes() | {first: ((1, 1, 4, 4), 'float32')})
    refuse(first, from_slim.describe, {'conv2d/kernel': ((3, 3, 3, 16), 'float32')})


def test_document_names():
    expected = {
        'resnet_v1_50/conv1/weights': 'conv1/kernel',
        'resnet_v1_50/conv1/BatchNorm/gamma': 'conv1/BatchNorm/gamma',
        'resnet_v1_50/block1/unit_1/bottleneck_v1/shortcut/weights': 'block1/unit_1/shortcut/conv1/kernel',
        'resnet_v1_50/block1/unit_1/bottleneck_v1/shortcut/BatchNorm/beta': 'block1/unit_1/shortcut/BatchNorm/beta',
        'resnet_v1_50/block1/unit_1/bottleneck_v1/conv2/weights': 'block1/unit_1/conv2/kernel',
        'resnet_v1_50/some/biases': 'some/bias',
    }
    assert from_slim.document_names([*from_slim.DOCUMENT_EXCEPT, *expected]) == expected


def fit_statistics(monkeypatch, variables, images):
    """Set the moving statistics, in place, to those of the images, layer by layer, as training does."""

    def batch_norm(x, gamma, beta, mean, variance, epsilon):
        mean[:], variance[:] = tf.nn.moments(x, [0, 1, 2])
        return original(x, gamma, beta, mean, variance, epsilon=epsilon)

    original = operations.batch_norm
    with monkeypatch.context() as patch:
        patch.setattr(operations, 'batch_norm', batch_norm)
        from_slim.run(variables, images, None)


@pytest.mark.slow
@pytest.mark.parametrize('filters,size,fits,percent', [(16, 64, False, 27), (8, 128, True, 144)])
def test_how_wrong_it_is_to_load_them_as_v15(monkeypatch, filters, size, fits, percent):
    """The numbers of `rename`: norm of the difference of the pooled features / norm of slim's."""
    variables = slim_variables(1, BLOCKS[50], filters, num_classes=32 * filters)
    variables['resnet_v1_50/logits/weights'] = np.eye(32 * filters, dtype='float32')[None, None]
    variables['resnet_v1_50/logits/biases'][:] = 0  # so that logits are the features
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype('float32')
    if fits:
        fit_statistics(monkeypatch, variables, images)
    ours, source = our_model(from_slim, variables)
    v15 = dataclasses.replace(source.spec, version='1.5', stride_block='first', stride_conv=None)
    wrong, _ = our_model(from_slim, variables, source=dataclasses.replace(source, spec=v15))
    expected = from_slim.run(variables, images, source)
    error, ours_error = (
        100 * np.linalg.norm(model(images).numpy() - expected) / np.linalg.norm(expected) for model in (wrong, ours)
    )
    assert abs(error - percent) < 2 and f'{percent} %' in from_slim.rename.__doc__
    assert ours_error < 0.005
