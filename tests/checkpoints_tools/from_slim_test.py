"""slim's checkpoints: recognised, mapped one to one, and computed as slim does."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from fixtures import tf_checkpoint_writer as writer
from fixtures.conversion import assert_equal, fitted, our_model

from checkpoints_tools import from_slim, operations
from official_resnet import resnet_variants
from official_resnet.errors import UserError

UNITS = (2, 1, 3)
FILTERS, CLASSES = 4, 7


def slim_shapes(version, units, filters=FILTERS, stem_filters=None, num_classes=CLASSES, scope=None):
    """Return {name: shape} of a slim ResNet, written down from its definition."""
    scope = f'resnet_v{version}_50' if scope is None else scope
    is_v2, channels = version == 2, stem_filters or filters
    found = {}

    def batch_norm(name, size):
        found.update({f'{name}/{part}': (size,) for part in ('gamma', 'beta', 'moving_mean', 'moving_variance')})

    def conv(name, kernel, ins, outs, has_bias):
        found[f'{name}/weights'] = (kernel, kernel, ins, outs)
        if has_bias:
            found[f'{name}/biases'] = (outs,)
        else:
            batch_norm(f'{name}/BatchNorm', outs)

    conv(f'{scope}/conv1', 7, 3, channels, is_v2)
    for block, num_units in enumerate(units, start=1):
        inner = filters * 2 ** (block - 1)
        for unit in range(1, num_units + 1):
            path = f'{scope}/block{block}/unit_{unit}/bottleneck_v{version}'
            if is_v2:
                batch_norm(f'{path}/preact', channels)
            if channels != 4 * inner:
                conv(f'{path}/shortcut', 1, channels, 4 * inner, is_v2)
            conv(f'{path}/conv1', 1, channels, inner, False)
            conv(f'{path}/conv2', 3, inner, inner, False)
            conv(f'{path}/conv3', 1, inner, 4 * inner, is_v2)
            channels = 4 * inner
    if is_v2:
        batch_norm(f'{scope}/postnorm', channels)
    conv(f'{scope}/logits', 1, channels, num_classes, True)
    return found


def slim_variables(version, units=UNITS, seed=0, **kwargs):
    random = np.random.default_rng(seed)
    return {
        name: writer.random_value(name, shape, random) for name, shape in slim_shapes(version, units, **kwargs).items()
    }


def with_types(shapes):
    return {name: (tuple(shape), 'float32') for name, shape in shapes.items()}


@pytest.mark.parametrize(
    'units,size', [((3, 4, 6, 3), 50), ((3, 4, 23, 3), 101), ((3, 8, 36, 3), 152), ((3, 24, 36, 3), 200)]
)
@pytest.mark.parametrize('version', [1, 2])
def test_published_nets_are_recognised(version, units, size):
    classes = 1001 if version == 2 else 1000
    shapes = with_types(slim_shapes(version, units, 64, num_classes=classes, scope=f'resnet_v{version}_{size}'))
    assert len(shapes) == {(1, 50): 267, (1, 101): 522, (1, 152): 777, (2, 50): 272, (2, 101): 544, (2, 152): 816}.get(
        (version, size), len(shapes)
    )
    assert from_slim.recognises(shapes)
    source = from_slim.describe(shapes, f'resnet_v{version}_{size}')
    assert (source.family, source.num_classes) == ('slim', classes)
    assert source.labels == f'imagenet{classes}'
    assert source.spec == resnet_variants.imagenet_spec(
        size, version=str(version), stride_block='last', stride_conv='3x3', stem_pool='same'
    )
    assert source.input.size == (224 if version == 1 else 299)
    used = {name for entry in from_slim.name_map(source, shapes) for name in entry.sources}
    assert used == shapes.keys() and not from_slim.ignored(shapes)
    with pytest.raises(UserError, match=f'by its variables the checkpoint is of resnet_v{version}_{size}'):
        from_slim.describe(shapes, 'resnet_v1_18')


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('units', [UNITS, (1, 1, 1, 1)])
@pytest.mark.parametrize('stem_filters', [None, 16])
def test_our_net_computes_what_slim_does(version, units, stem_filters):
    """16 stem filters: the first unit's shortcut is an identity, since the number of channels stays."""
    variables = slim_variables(version, units, stem_filters=stem_filters, scope='some/where')
    model, source = our_model(from_slim, variables)
    targets = [
        entry.target
        for entry in from_slim.name_map(source, with_types({name: value.shape for name, value in variables.items()}))
    ]
    assert sorted(targets) == sorted(variable.path for variable in model.variables)
    for size in (64, 75):
        images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype('float32')
        assert_equal(model(images).numpy(), from_slim.run(variables, images, source))


def test_biases_of_v2_are_not_zero_in_these_tests():
    variables = slim_variables(2)
    biases = [value for name, value in variables.items() if name.endswith('biases')]
    assert len(biases) == 1 + 3 + 6 + 1 and all(np.abs(value).max() > 0.01 for value in biases)


@pytest.mark.parametrize('version', [1, 2])
def test_read_from_both_formats(tmp_path, version):
    variables = slim_variables(1) | {
        'resnet_v1_50/mean_rgb': np.float32([123.5, 117.25, 104.0]),
        'global_step': np.int64(7),
        'resnet_v1_50/conv1/weights/Momentum': np.zeros((7, 7, 3, FILTERS), 'float32'),
        'beta1_power': np.float32(0.9),
    }
    path = writer.write(tmp_path / 'model.ckpt', variables, version)
    shapes = from_slim.shapes(path)
    assert shapes == {name: (value.shape, value.dtype.name) for name, value in variables.items()}
    source = from_slim.describe(shapes)
    assert source.input.mean == (123.5, 117.25, 104.0)
    assert from_slim.ignored(shapes).keys() == {
        'resnet_v1_50/mean_rgb',
        'global_step',
        'resnet_v1_50/conv1/weights/Momentum',
        'beta1_power',
    }
    model, _ = our_model(from_slim, from_slim.read(path), shapes)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype('float32')
    assert_equal(model(images).numpy(), from_slim.run(variables, images, source))


def test_mean_of_imagenet_where_the_file_has_none():
    assert from_slim.describe(with_types(slim_shapes(1, UNITS))).input.mean == (123.68, 116.78, 103.94)


def test_slots_without_their_variable_are_not_ignored():
    shapes = with_types(slim_shapes(1, UNITS)) | {'some/Momentum': ((3,), 'float32')}
    assert from_slim.ignored(shapes) == {}


def drop(name):
    return lambda shapes: shapes.pop(f'resnet_v1_50/{name}')


def reshape(name, shape):
    return lambda shapes: shapes.update({f'resnet_v1_50/{name}': (shape, 'float32')})


@pytest.mark.parametrize(
    'change,message',
    [
        (drop('logits/weights'), 'no variable resnet_v1_50/logits/weights'),
        (drop('conv1/BatchNorm/beta'), 'missing: resnet_v1_50/conv1/BatchNorm/beta'),
        (drop('block3/unit_2/bottleneck_v1/conv1/weights'), r'3: \[1, 3\]'),
        (reshape('conv1/weights', (7, 7, 3)), 'not 4 numbers above 0'),
        (reshape('conv1/weights', (7, 7, 3, 0)), 'not 4 numbers above 0'),
        (
            reshape('conv1/weights', (5, 5, 3, 4)),
            r'misshapen: resnet_v1_50/conv1/weights \(5, 5, 3, 4\), not \(7, 7, 3, 4\)',
        ),
        (reshape('block1/unit_1/bottleneck_v1/conv1/weights', (1, 1, 4, 2**40)), 'misshapen: .* and .* more'),
        (reshape('block999/unit_999/bottleneck_v1/conv1/weights', (1, 1, 4, 4)), r'999: \[999\]'),
        (
            lambda shapes: shapes.update(
                {'logits/weights': ((), 'float32'), 'block1/unit_1/bottleneck_v1/conv1/weights': ((), 'float32')}
            ),
            'holds 2 ResNets',
        ),
        (lambda shapes: shapes.update({'resnet_v1_50/conv1/weights': ((7, 7, 3, 4), 'int32')}), 'weights int32'),
    ],
)
def test_what_is_missing_or_misshapen_is_named(change, message):
    shapes = with_types(slim_shapes(1, UNITS))
    change(shapes)
    with pytest.raises(UserError, match=message) as error:
        fitted(from_slim, shapes)
    assert '\n' not in str(error.value)


def test_names_of_others_are_not_recognised():
    assert not from_slim.recognises({'conv2d/kernel': ((3, 3, 3, 16), 'float32')})
    with pytest.raises(UserError, match='no variable is named'):
        from_slim.describe({'conv2d/kernel': ((3, 3, 3, 16), 'float32')})


def test_document_names():
    names = from_slim.document_names(
        [
            'global_step',
            *(
                f'resnet_v1_50/{name}'
                for name in (
                    'mean_rgb',
                    'conv1/weights',
                    'conv1/BatchNorm/gamma',
                    'block1/unit_1/bottleneck_v1/shortcut/weights',
                    'block1/unit_1/bottleneck_v1/shortcut/BatchNorm/moving_mean',
                    'block1/unit_1/bottleneck_v1/conv2/weights',
                    'logits/weights',
                    'logits/biases',
                )
            ),
        ]
    )
    assert list(names.values()) == [
        'conv1/kernel',
        'conv1/BatchNorm/gamma',
        'block1/unit_1/shortcut/conv1/kernel',
        'block1/unit_1/shortcut/BatchNorm/moving_mean',
        'block1/unit_1/conv2/kernel',
    ]
    assert from_slim.rename('resnet_v1_50/some/biases') == 'some/bias'


def fit_statistics(monkeypatch, variables, images):
    """Set the moving statistics, in place, to those of the images, layer by layer, as training does."""

    def batch_norm(x, gamma, beta, mean, variance, epsilon):
        mean[:], variance[:] = tf.nn.moments(x, [0, 1, 2])
        return original(x, gamma, beta, mean, variance, epsilon)

    original = operations.batch_norm
    with monkeypatch.context() as patch:
        patch.setattr(operations, 'batch_norm', batch_norm)
        from_slim.run(variables, images, None)


@pytest.mark.parametrize('filters,size,fits,percent', [(16, 64, False, 27), (8, 128, True, 144)])
def test_how_wrong_it_is_to_load_them_as_v15(monkeypatch, filters, size, fits, percent):
    """The numbers of `rename`: norm of the difference of the pooled features / norm of slim's."""
    variables = slim_variables(1, (3, 4, 6, 3), filters=filters, num_classes=32 * filters)
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
