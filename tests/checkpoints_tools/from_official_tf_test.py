"""official/resnet's checkpoints, written in graph mode as it did: recognised, mapped one to one, computed alike."""

import pytest
from fixtures.conversion import assert_equal, assert_runs_alike, changed, images_of, our_model, refuse
from fixtures.foreign_files import BN_PARTS, OFFICIAL_NETS, official_shapes, write_official

from checkpoints_tools import convert, from_official_tf
from official_resnet import resnet_variants


@pytest.mark.parametrize('name', OFFICIAL_NETS)
def test_our_net_computes_what_the_graph_does(tmp_path, name):
    kernel, is_bottleneck, group_blocks, *_ = OFFICIAL_NETS[name]
    sizes = (64, 75) if kernel == 7 else (32, 27)
    expected = write_official(tmp_path / 'model.ckpt-0', name, images_of(sizes[0]))
    shapes, variables = from_official_tf.shapes(tmp_path), from_official_tf.read(tmp_path)
    assert from_official_tf.recognises(shapes)
    ignored = from_official_tf.ignored(shapes)
    assert 'global_step' in ignored and sum(name.endswith('/Momentum') for name in ignored) == len(ignored) - 1
    model, source = our_model(from_official_tf, variables, shapes)
    assert source.spec.group_blocks == group_blocks and source.spec.shortcut == 'group'
    assert source.spec.block == ('bottleneck' if is_bottleneck else 'basic')
    assert_equal(model(images_of(sizes[0])).numpy(), expected)
    assert_runs_alike(from_official_tf, source, variables, model, sizes)


@pytest.mark.parametrize('size', [18, 50, 200])
@pytest.mark.parametrize('version,ours', [(1, '1.5'), (2, '2')])
def test_published_nets_of_imagenet_are_recognised(size, version, ours):
    block, group_blocks = resnet_variants.IMAGENET_BLOCKS[size]
    shapes = official_shapes(7, block == 'bottleneck', group_blocks, version)
    source, _ = convert.fit(from_official_tf, shapes, 'x', f'resnet{size}_v{ours}')
    assert source.spec == resnet_variants.imagenet_spec(size, version=ours, shortcut='group', stem_pool='same')
    assert source.labels == 'imagenet1001' and source.num_classes == 1001
    assert source.input.mean == (123.68, 116.78, 103.94)


@pytest.mark.parametrize('size', [8, 32, 56])
@pytest.mark.parametrize('version', [1, 2])
def test_published_nets_of_cifar_are_recognised(size, version):
    shapes = official_shapes(3, False, ((size - 2) // 6,) * 3, version, scope='', filters=16, num_classes=10)
    source, _ = convert.fit(from_official_tf, shapes, 'x')
    spec = resnet_variants.cifar_spec(size, version=str(version), shortcut='group')
    assert (source.spec, source.variant, source.labels) == (spec, f'resnet{size}_v{version}', 'cifar10')
    assert source.input.normalization == 'per_image_standardization' and source.input.size == 32


SHAPES = official_shapes(3, False, (1, 1, 1), 1, filters=16, num_classes=10)


@pytest.mark.parametrize(
    'names,shape,message',
    [
        (['conv2d_9/kernel'], None, '16 filters'),
        (['conv2d/kernel'], (5, 5, 3, 16), r'\(5, 5, 3, 16\).* 3x3 .* 7x7'),
        ([f'batch_normalization_9/{part}' for part in BN_PARTS], None, '9 BNs for 10 .*v1 has 10, v2 7'),
        # As in v1 until May 2018.
        ([f'batch_normalization_10/{part}' for part in BN_PARTS], (16,), '11 BNs for 10 .* before May 2018'),
    ],
)
def test_what_does_not_fit_is_named(names, shape, message):
    change = {f'resnet_model/{name}': shape and (shape, 'float32') for name in names}
    refuse(message, convert.fit, from_official_tf, changed(SHAPES, change), 'x')
    refuse('0 convolutions', from_official_tf.describe, {'resnet_v1_50/conv1/weights': ((7, 7, 3, 64), 'float32')})
