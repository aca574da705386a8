"""Caffe files written here byte by byte: values, layouts of the wire format, their network, damaged files."""

import numpy as np
import pytest
from fixtures.conversion import assert_runs_alike, converted, refuse, refuse_file, shapes_of
from fixtures.foreign_files import blob, caffe_file, caffe_variables, field

from checkpoints_tools import convert, from_caffe
from official_resnet import resnet_variants
from official_resnet.inputs.protobuf_wire import varint


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'net.caffemodel'


def numbered(group, last):
    return [f'{group}a', *(f'{group}b{i}' for i in range(1, last + 1))]


# The blocks of the published prototxts, in the order of computation.
HE_BLOCKS = {
    50: ['2a', '2b', '2c', '3a', '3b', '3c', '3d', '4a', '4b', '4c', '4d', '4e', '4f', '5a', '5b', '5c'],
    101: ['2a', '2b', '2c', *numbered(3, 3), *numbered(4, 22), '5a', '5b', '5c'],
    152: ['2a', '2b', '2c', *numbered(3, 7), *numbered(4, 35), '5a', '5b', '5c'],
}


@pytest.mark.parametrize('size', HE_BLOCKS)
def test_published_nets_are_recognised(size):
    """By their real names: only res3 and res4 of the deeper two are numbered."""
    _, blocks = resnet_variants.IMAGENET_BLOCKS[size]
    shapes = shapes_of(caffe_variables(blocks, 8, 1000, has_bias=size == 50, is_numbered=size > 50))
    assert {name for name in shapes if name.endswith('_branch2a/0') and name.startswith('res')} == {
        f'res{block}_branch2a/0' for block in HE_BLOCKS[size]
    }
    source, entries = convert.fit(from_caffe, shapes, 'x')
    spec = resnet_variants.imagenet_spec(size, version='1', filters=8, stem_pool='ceil', bn_momentum=0.999)
    assert (source.variant, source.labels, source.spec) == (f'ResNet-{size}', 'imagenet1000', spec)
    assert source.input.channels == 'BGR' and source.input.mean == (103.0626, 115.9029, 123.1516)
    sources = {entry.target: entry.sources for entry in entries}
    places = [(group, block) for group, count in enumerate(blocks, 1) for block in range(1, count + 1)]
    for name, (group, block) in zip(HE_BLOCKS[size], places, strict=True):
        target = f'group{group}_block{block}_bn3/moving_mean'
        assert sources[target] == (f'bn{name}_branch2c/0', f'bn{name}_branch2c/2')
        assert sources[f'group{group}_block{block}_conv1/kernel'] == (f'res{name}_branch2a/0',)
    stem = ('bn_conv1/0', 'bn_conv1/2', 'conv1/1') if size == 50 else ('bn_conv1/0', 'bn_conv1/2')
    assert sources['stem_bn/moving_mean'] == stem  # only ResNet-50 has a bias in conv1


@pytest.mark.parametrize('form,is_v1', [('packed', False), ('unpacked', False), ('double', False), ('legacy', True)])
def test_forms_of_the_wire_format(path, form, is_v1):
    expected = caffe_variables(has_bias=True, is_numbered=True)
    if form == 'double':
        expected['bn2a_branch1/2'][:] = 0  # Caffe does not divide by 0: the statistics are also 0
    path.write_bytes(caffe_file(expected, form, is_v1))
    assert convert.identify(path)[0] is from_caffe
    source, variables, model = converted(from_caffe, path)
    assert list(variables) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value, name)
    assert source.spec.group_blocks == (2, 3, 1) and source.labels == 'unknown'
    assert from_caffe.shapes(path)['conv1/0'] == ((4, 3, 7, 7), 'float64' if form == 'double' else 'float32')
    assert_runs_alike(from_caffe, source, variables, model, (64, 75, 77))  # the pool sees 32, 38 and 39 pixels


def test_the_mean_image(path):
    mean = np.random.default_rng(0).uniform(90, 130, (3, 4, 5)).astype('float32')
    image = path.with_name('ResNet_mean.binaryproto')
    image.write_bytes(blob(mean, 'legacy'))
    path.write_bytes(caffe_file(caffe_variables()))
    np.testing.assert_array_equal(from_caffe.read_mean(image), mean.transpose(1, 2, 0))
    card = convert.convert(path, path.with_name('net.keras'))
    np.testing.assert_allclose(card['input']['mean'], mean.mean((1, 2)), rtol=1e-6)
    assert list(card['source_sha256']) == [path.name, image.name]
    image.write_bytes(blob(mean[:2]))
    refuse(r'\(2, 4, 5\).*3 channels', from_caffe.read_mean, image)
    path.with_name('another.binaryproto').write_bytes(b'')
    assert from_caffe.list_files(path) == [path]  # which of the two it is cannot be told


def layer(body):
    return field(100, field(1, b'x') + body)


HUGE = 2**62


@pytest.mark.parametrize(
    'data,message',
    [
        (b'', 'empty file'),
        (b'not a protobuf message', 'not a Caffe file'),
        (layer(field(7, field(7, field(1, varint(HUGE) * 3)))), '0 values'),
        (layer(field(7, field(1, HUGE) + field(2, HUGE))), '0 values'),
        (layer(field(7, b'')) * 2, "two layers 'x'"),
        (layer(b''), 'no layer'),
        (field(1, 0) * 300_000, '100000'),
    ],
)
def test_damaged_files(path, data, message):
    path.write_bytes(data)
    refuse_file(message, from_caffe, path)
