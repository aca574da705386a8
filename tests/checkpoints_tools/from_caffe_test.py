"""Caffe files written here byte by byte: values, layouts of the wire format, their network, damaged files."""

import math

import numpy as np
import pytest
import tensorflow as tf
from fixtures.conversion import assert_runs_alike, converted, refuse, refuse_file
from fixtures.foreign_files import blob, caffe_file, caffe_variables, field, he_convs

from checkpoints_tools import convert, from_caffe
from official_resnet.inputs.protobuf_wire import varint


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'net.caffemodel'


def test_resnet50_with_a_bias(path):
    path.write_bytes(caffe_file(caffe_variables((3, 4, 6, 3), 64, 1000, has_bias=True)))
    assert convert.identify(path)[0] is from_caffe
    source, variables, model = converted(from_caffe, path)
    assert (source.variant, source.labels, source.num_classes) == ('ResNet-50', 'imagenet1000', 1000)
    assert source.input.channels == 'BGR' and source.input.mean == (103.0626, 115.9029, 123.1516)
    assert sum(math.prod(weight.shape) for weight in model.trainable_variables) == 25_557_032
    assert_runs_alike(from_caffe, source, variables, model)


@pytest.mark.parametrize('form,is_v1', [('packed', False), ('unpacked', False), ('double', False), ('legacy', True)])
def test_forms_of_the_wire_format(path, form, is_v1):
    expected = caffe_variables(is_numbered=True)
    path.write_bytes(caffe_file(expected, form, is_v1))
    source, variables, model = converted(from_caffe, path)
    assert list(variables) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value, name)
    assert source.spec.group_blocks == (2, 3, 1) and source.labels == 'unknown'
    assert from_caffe.shapes(path)['conv1/0'] == ((4, 3, 7, 7), 'float64' if form == 'double' else 'float32')
    assert_runs_alike(from_caffe, source, variables, model, (64, 75, 77))  # the pool sees 32, 38 and 39 pixels


def test_blocks_of_101_are_numbered():
    shapes = {f'{name}/0': (shape, 'float32') for name, shape in he_convs((3, 4, 23, 3), 64, True)}
    shapes |= {'fc1000/0': ((1000, 2048), 'float32')}
    source = from_caffe.describe(shapes)
    assert source.spec.group_blocks == (3, 4, 23, 3)
    sources = {entry.target: entry.sources for entry in from_caffe.name_map(source, shapes)}
    found = [sources[f'group3_block{i}_conv1/kernel'] for i in (1, 2, 23)]
    assert found == [('res4a_branch2a/0',), ('res4b1_branch2a/0',), ('res4b22_branch2a/0',)]


def test_statistics_are_divided_by_the_third_blob_and_nought_means_nought(path):
    variables = caffe_variables(has_bias=True)
    variables['bn2a_branch1/2'][:] = 0
    path.write_bytes(caffe_file(variables))
    _, _, model = converted(from_caffe, path)
    stem, (mean, variance, factor) = model.get_layer('stem_bn'), (variables[f'bn_conv1/{i}'] for i in range(3))
    np.testing.assert_allclose(stem.moving_mean, mean / factor - variables['conv1/1'], atol=1e-6)
    np.testing.assert_allclose(stem.moving_variance, variance / factor, atol=1e-6)
    norm = model.get_layer('group1_block1_shortcut_bn')
    assert not norm.moving_mean.numpy().any() and not norm.moving_variance.numpy().any()


def test_the_mean_image(path):
    mean = np.random.default_rng(0).uniform(90, 130, (3, 4, 5)).astype('float32')
    image = path.with_name('ResNet_mean.binaryproto')
    image.write_bytes(blob(mean, 'legacy'))
    path.write_bytes(caffe_file(caffe_variables()))
    np.testing.assert_array_equal(from_caffe.read_mean(image), mean.transpose(1, 2, 0))
    source = from_caffe.describe(from_caffe.shapes(path))
    np.testing.assert_allclose(from_caffe.with_mean(source, path).input.mean, mean.mean((1, 2)), rtol=1e-6)
    assert from_caffe.list_files(path) == [path, image]
    image.write_bytes(blob(mean[:2]))
    refuse(r'\(2, 4, 5\).*3 channels', from_caffe.read_mean, image)
    path.with_name('another.binaryproto').write_bytes(b'')
    assert from_caffe.with_mean(source, path) == source and from_caffe.list_files(path) == [path]


def test_ceil_pool_is_caffes():
    for length in (3, 4, 5, 6, 7):
        x = np.arange(-length, 0, dtype='float32')
        pooled = from_caffe._ceil_pool(tf.constant(np.broadcast_to(x[:, None, None], (1, length, length, 1))))
        windows = -(-(length - 3) // 2) + 1  # pooling_layer.cpp
        assert pooled.shape[1:3] == (windows, windows)
        np.testing.assert_array_equal(pooled[0, :, 0, 0], [x[2 * i : 2 * i + 3].max() for i in range(windows)])


def layer(body):
    return field(100, field(1, b'x') + body)


def declared(number, size):
    """Return the start of a field that declares to be so long."""
    return varint(number << 3 | 2) + varint(size)


HUGE = 2**62


@pytest.mark.parametrize(
    'data,message',
    [
        (b'', 'empty file'),
        (b'not a protobuf message', 'not a Caffe file'),
        (layer(b'')[:1], 'byte'),
        (b'\xff' * 20, 'byte'),
        (declared(100, HUGE) + b'abc', 'missing'),
        (layer(declared(7, HUGE)), 'missing'),
        (layer(field(7, declared(5, HUGE))), 'missing'),
        (layer(field(7, field(7, field(1, varint(HUGE) * 3)))), '0 values'),
        (layer(field(7, field(7, field(1, HUGE)) + field(5, b'1234'))), '1 values'),
        (layer(field(7, field(5, b'123'))), '3 bytes'),
        (layer(field(7, field(1, HUGE) + field(2, HUGE))), '0 values'),
        (layer(field(7, b'')) * 2, "two layers 'x'"),
        (layer(b''), 'no layer'),
        (field(1, 0) * 300_000, '100000'),
        (layer(field(7, b'\x2d1234\x30\x00' * 300_000)), '100000'),
        (b'\x0b' * 9, 'wire type 3'),
    ],
)
def test_damaged_files(path, data, message):
    path.write_bytes(data)
    refuse_file(message, from_caffe, path)
