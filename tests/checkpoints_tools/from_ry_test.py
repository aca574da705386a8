"""ry's checkpoints: published names, mapped one to one, and computed as its program does."""

import numpy as np
import pytest
from fixtures.conversion import assert_runs_alike, our_model, shapes_of
from fixtures.foreign_files import ry_variables, write_tf

from checkpoints_tools import convert, from_ry
from official_resnet import resnet_variants


@pytest.mark.parametrize('size', [50, 101, 152])
def test_published_nets_are_recognised(size):
    _, blocks = resnet_variants.IMAGENET_BLOCKS[size]
    shapes = shapes_of(ry_variables(blocks, filters=8, num_classes=1000))
    assert {'scale1/moving_variance', 'scale2/block1/shortcut/weights', f'scale5/block{blocks[3]}/c/beta'} <= set(
        shapes
    )
    source, entries = convert.fit(from_ry, shapes, 'x', f'ResNet-L{size}')
    axes = {'stem_pool': 'same', 'padding': 'same', 'bn_epsilon': 1e-3, 'bn_momentum': 0.9997}
    assert source.spec == resnet_variants.imagenet_spec(size, version='1', filters=8, **axes)
    assert (source.labels, source.input.channels) == ('imagenet1000', 'BGR')
    assert source.input.mean == (103.0626, 115.9029, 123.1516)
    sources = {entry.target: entry.sources for entry in entries}
    assert sources['group3_block6_conv2/kernel'] == ('scale4/block6/b/weights',)
    assert sources['group2_block1_shortcut_bn/gamma'] == ('scale3/block1/shortcut/gamma',)


@pytest.mark.parametrize('blocks,convs', [((1, 2, 1, 1), 'abc'), ((1, 1, 2, 1), 'AB'), ((2, 1, 2), 'AB')])
def test_our_net_computes_what_ry_does(blocks, convs):
    variables = ry_variables(blocks, convs)
    model, source = our_model(from_ry, variables)
    assert_runs_alike(from_ry, source, variables, model)
    assert source.spec.stem == ('cifar' if len(blocks) == 3 else 'imagenet')


def test_a_file_of_its_training(tmp_path):
    """Slots, counters and averages of losses are no weights."""
    extra = {
        'global_step': np.int32(7),
        'val_step': np.int32(7),
        'scale1/weights/Momentum': np.zeros((3, 3, 3, 4), 'float32'),
        'add_9/ExponentialMovingAverage': np.float32(3),
        'scale1/moving_mean/biased': np.zeros(4, 'float32'),
        'scale1/moving_mean/local_step': np.float32(3),
    }
    path = write_tf(tmp_path / 'x.ckpt', ry_variables((1, 1, 1), 'AB', num_classes=10) | extra)
    card = convert.convert(path, tmp_path / 'x.keras')
    assert (card['family'], card['variant'], card['labels']) == ('ry', 'ResNet-L8', 'cifar10')
    assert card['weights'] == 'plain' and 'other_weights' not in card
