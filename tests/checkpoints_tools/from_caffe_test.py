"""Caffe files written here byte by byte: values, layouts of the wire format, the net they make, damaged ones."""

import math
import struct
import time

import numpy as np
import pytest
import tensorflow as tf
from fixtures.conversion import assert_runs_alike, converted, fitted, fuzz

from checkpoints_tools import convert, from_caffe
from official_resnet.errors import UserError


def varint(value):
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def field(number, payload, wire_type=2):
    """One field: bytes with their length, or a number."""
    key = varint(number << 3 | wire_type)
    return key + varint(payload) if wire_type == 0 else key + varint(len(payload)) + payload


def blob(array, form='packed'):
    """A BlobProto: 'packed'; 'unpacked', a tag before each value; 'double'; 'legacy', num to width and no shape."""
    shape = field(7, field(1, b''.join(map(varint, array.shape))))
    if form == 'legacy':
        sizes = (1,) * (4 - array.ndim) + array.shape
        shape = b''.join(field(i, size, 0) for i, size in enumerate(sizes, start=1))
    values = array.astype('<f8' if form == 'double' else '<f4').reshape(-1)
    if form == 'unpacked':
        return shape + b''.join(b'\x2d' + struct.pack('<f', value) for value in values)
    return shape + field(8 if form == 'double' else 5, values.tobytes())


def net(variables, form='packed', is_v1=False):
    """A NetParameter of {'LAYER/i': array}; is_v1 in the message that layers had before 2014's end."""
    layers = {}
    for name, array in variables.items():
        layers.setdefault(name.rpartition('/')[0], []).append(blob(array, form))
    number, name_number, blobs_number = (2, 4, 6) if is_v1 else (100, 1, 7)
    messages = [field(1, b'ResNet'), field(number, field(name_number, b'data') + field(10, 1, 0))]
    for name, blobs in layers.items():
        body = field(name_number, name.encode()) + b''.join(field(blobs_number, data) for data in blobs)
        messages.append(field(number, body + field(106, field(1, 3, 0))))
    return b''.join(messages)


def he_blocks(group_blocks, is_numbered):
    """[(group from 2, '2a')]: letters, or from group 3 on a, b1, b2 as in ResNet-101."""
    return [
        (group, f'{group}a' if not i else f'{group}b{i}' if is_numbered and group > 2 else f'{group}{"abcdef"[i]}')
        for group, count in enumerate(group_blocks, start=2)
        for i in range(count)
    ]


def he_convs(group_blocks, filters, is_numbered):
    """[(name of a convolution, shape)] in the order of the prototxt."""
    convs, taken = [('conv1', (filters, 3, 7, 7))], filters
    for group, block in he_blocks(group_blocks, is_numbered):
        inner = filters * 2 ** (group - 2)
        if block.endswith('a'):
            convs.append((f'res{block}_branch1', (4 * inner, taken, 1, 1)))
        convs += [
            (f'res{block}_branch2a', (inner, taken, 1, 1)),
            (f'res{block}_branch2b', (inner, inner, 3, 3)),
            (f'res{block}_branch2c', (4 * inner, inner, 1, 1)),
        ]
        taken = 4 * inner
    return convs


def he_net(group_blocks, filters, num_classes, has_bias=False, is_numbered=False):
    """{'LAYER/i': array} of random values, at which signals neither die nor grow."""
    random = np.random.default_rng(0)
    variables = {}
    for name, shape in he_convs(group_blocks, filters, is_numbered):
        suffix = '_conv1' if name == 'conv1' else name[3:]
        channels, factor = shape[0], random.uniform(0.5, 2, 1)
        variables[f'{name}/0'] = random.standard_normal(shape, 'float32') * math.sqrt(2 / math.prod(shape[1:]))
        if has_bias and name == 'conv1':
            variables['conv1/1'] = random.normal(0, 0.5, channels)
        variables |= {
            f'bn{suffix}/0': random.normal(0, 0.1, channels) * factor,
            f'bn{suffix}/1': random.uniform(0.5, 1.5, channels) * factor,
            f'bn{suffix}/2': factor,
            f'scale{suffix}/0': random.uniform(0.2, 0.9, channels),
            f'scale{suffix}/1': random.normal(0, 0.1, channels),
        }
    features = 4 * filters * 2 ** (len(group_blocks) - 1)
    variables['fc1000/0'] = random.normal(0, 0.05, (num_classes, features))
    variables['fc1000/1'] = random.normal(0, 0.05, num_classes)
    return {name: value.astype('float32') for name, value in variables.items()}


def tiny(**options):
    return he_net((2, 3, 1), 4, 7, **options)


def test_resnet50_with_a_bias(tmp_path):
    path = tmp_path / 'ResNet-50-model.caffemodel'
    path.write_bytes(net(he_net((3, 4, 6, 3), 64, 1000, has_bias=True)))
    assert convert.identify(path)[0] is from_caffe
    source, variables, model = converted(from_caffe, path)
    assert (source.variant, source.labels, source.num_classes) == ('ResNet-50', 'imagenet1000', 1000)
    assert source.input.channels == 'BGR' and source.input.mean == (103.0626, 115.9029, 123.1516)
    assert sum(math.prod(weight.shape) for weight in model.trainable_variables) == 25_557_032
    assert_runs_alike(from_caffe, source, variables, model)


@pytest.mark.parametrize('form,is_v1', [('packed', False), ('unpacked', False), ('double', False), ('legacy', True)])
def test_forms_of_the_wire_format(tmp_path, form, is_v1):
    path, expected = tmp_path / 'net.caffemodel', tiny(is_numbered=True)
    path.write_bytes(net(expected, form, is_v1))
    source, variables, model = converted(from_caffe, path)
    assert list(variables) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value, name)
    assert source.spec.group_blocks == (2, 3, 1) and source.labels == 'unknown'
    assert source.variant == 'ResNet-20' and from_caffe.shapes(path)['conv1/0'] == (
        (4, 3, 7, 7),
        'float64' if form == 'double' else 'float32',
    )
    assert_runs_alike(from_caffe, source, variables, model, (64, 75, 77))  # the pool sees 32, 38 and 39 pixels


def test_blocks_of_101_and_152_are_numbered():
    shapes = {f'{name}/0': (shape, 'float32') for name, shape in he_convs((3, 4, 23, 3), 64, True)}
    blocks = from_caffe._blocks(shapes)
    assert [sum(group == i for group, _ in blocks) for i in (1, 2, 3, 4)] == [3, 4, 23, 3]
    assert [blocks[3, i] for i in (1, 2, 3, 23)] == ['4a', '4b1', '4b2', '4b22']


def test_statistics_are_divided_by_the_third_blob_and_nought_means_nought(tmp_path):
    variables = tiny(has_bias=True)
    variables['bn2a_branch1/2'][:] = 0
    (tmp_path / 'net.caffemodel').write_bytes(net(variables))
    _, _, model = converted(from_caffe, tmp_path / 'net.caffemodel')
    factor = variables['bn_conv1/2'][0]
    np.testing.assert_allclose(
        model.get_layer('stem_bn').moving_mean, variables['bn_conv1/0'] / factor - variables['conv1/1'], atol=1e-6
    )
    np.testing.assert_allclose(model.get_layer('stem_bn').moving_variance, variables['bn_conv1/1'] / factor, atol=1e-6)
    norm = model.get_layer('group1_block1_shortcut_bn')
    assert not norm.moving_mean.numpy().any() and not norm.moving_variance.numpy().any()


def test_the_mean_image(tmp_path):
    mean = np.random.default_rng(0).uniform(90, 130, (3, 4, 5)).astype('float32')
    path = tmp_path / 'ResNet_mean.binaryproto'
    path.write_bytes(blob(mean, 'legacy'))
    (tmp_path / 'net.caffemodel').write_bytes(net(tiny()))
    np.testing.assert_array_equal(from_caffe.read_mean(path), mean.transpose(1, 2, 0))
    source = from_caffe.describe(from_caffe.shapes(tmp_path / 'net.caffemodel'))
    with_mean = from_caffe.with_mean(source, tmp_path / 'net.caffemodel')
    np.testing.assert_allclose(with_mean.input.mean, mean.mean((1, 2)), rtol=1e-6)
    assert from_caffe.list_files(tmp_path / 'net.caffemodel') == [tmp_path / 'net.caffemodel', path]
    path.write_bytes(blob(mean[:2]))
    with pytest.raises(UserError, match='3 channels'):
        from_caffe.read_mean(path)
    (tmp_path / 'another.binaryproto').write_bytes(b'')
    assert from_caffe.with_mean(source, tmp_path / 'net.caffemodel') == source
    assert from_caffe.list_files(tmp_path / 'net.caffemodel') == [tmp_path / 'net.caffemodel']


def test_ceil_pool_is_caffes():
    for length in (3, 4, 5, 6, 7):
        x = np.arange(-length, 0, dtype='float32')
        pooled = from_caffe._ceil_pool(tf.constant(np.broadcast_to(x[:, None, None], (1, length, length, 1))))
        windows = -(-(length - 3) // 2) + 1  # pooling_layer.cpp
        assert pooled.shape[1:3] == (windows, windows)
        np.testing.assert_array_equal(pooled[0, :, 0, 0], [x[2 * i : 2 * i + 3].max() for i in range(windows)])


@pytest.mark.parametrize(
    'change,message',
    [
        ({'res2b_branch2b/0': None}, 'missing: res2b_branch2b/0'),
        ({'bn2a_branch1/2': None}, 'missing: bn2a_branch1/2'),
        ({'bn2a_branch1/2': np.zeros(2, 'float32')}, r'misshapen: bn2a_branch1/2 \(2,\), not \(1,\)'),
        ({'scale3a_branch1/1': np.zeros(3, 'float32')}, r'misshapen: scale3a_branch1/1 \(3,\), not \(32,\)'),
        ({'res2a_branch1/1': np.zeros(1, 'float32')}, r'misshapen: res2a_branch1/1 \(1,\), not \(16,\)'),
        ({'fc1000/0': None, 'fc1000/1': None}, 'fc1000'),
        ({'res3b_branch2a/0': None}, 'blocks'),
        ({'conv1/0': np.zeros(4, 'float32')}, 'conv1'),
    ],
)
def test_missing_and_misshapen(tmp_path, change, message):
    variables = {name: value for name, value in (tiny() | change).items() if value is not None}
    (tmp_path / 'net.caffemodel').write_bytes(net(variables))
    with pytest.raises(UserError, match=message):
        fitted(from_caffe, from_caffe.shapes(tmp_path / 'net.caffemodel'))


def test_variant_must_be_right(tmp_path):
    (tmp_path / 'net.caffemodel').write_bytes(net(tiny()))
    shapes = from_caffe.shapes(tmp_path / 'net.caffemodel')
    assert from_caffe.describe(shapes, 'resnet20_v1') == from_caffe.describe(shapes, 'ResNet-20')
    with pytest.raises(UserError, match='ResNet-20'):
        from_caffe.describe(shapes, 'ResNet-50')


HUGE = 2**62


@pytest.mark.parametrize(
    'data,message',
    [
        (b'', 'empty file'),
        (b'not a protobuf message', 'not a Caffe file'),
        (field(100, b'')[:1], 'no number at byte'),
        (b'\xff' * 20, 'no number at byte'),
        (varint(100 << 3 | 2) + varint(HUGE) + b'abc', 'missing'),
        (field(100, field(1, b'x') + varint(7 << 3 | 2) + varint(HUGE)), 'missing'),
        (field(100, field(1, b'x') + field(7, varint(5 << 3 | 2) + varint(HUGE))), 'missing'),
        (field(100, field(1, b'x') + field(7, field(7, field(1, varint(HUGE) * 3)))), 'has 0 values'),
        (field(100, field(1, b'x') + field(7, field(7, field(1, HUGE, 0)) + field(5, b'1234'))), 'has 1 values'),
        (field(100, field(1, b'x') + field(7, field(5, b'123'))), '3 bytes'),
        (field(100, field(1, b'x') + field(7, field(1, HUGE, 0) + field(2, HUGE, 0))), 'has 0 values'),
        (field(100, field(1, b'x') + field(7, b'')) * 2, 'two layers'),
        (field(100, field(1, b'x')), 'no layer has blobs'),
        (field(1, 0, 0) * 300_000, 'fields'),
        (field(100, field(1, b'x') + field(7, b'\x2d1234\x30\x00' * 300_000)), 'fields'),
        (b'\x0b' * 9, 'wire type 3'),
    ],
)
def test_damaged_files(tmp_path, data, message):
    (tmp_path / 'net.caffemodel').write_bytes(data)
    start = time.monotonic()
    for function in (from_caffe.shapes, from_caffe.read):
        with pytest.raises(UserError, match=message) as caught:
            function(tmp_path / 'net.caffemodel')
        assert '\n' not in str(caught.value)
    assert time.monotonic() - start < 20


def test_no_file(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        from_caffe.read(tmp_path / 'none.caffemodel')


@pytest.mark.parametrize('form', ['packed', 'unpacked', 'legacy'])
def test_fuzz(tmp_path, form):
    fuzz(from_caffe, net(tiny(has_bias=True), form), tmp_path / 'net.caffemodel')
