"""The tutorial's block and network to the letter, the arithmetic of its text, and ResNeXt's three equal forms."""

import doctest
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.networks import model_of, normal

from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import blocks, tutorial_resnet
from official_resnet.experiments.architecture_table import count_parameters
from official_resnet.experiments.tutorial_resnet import block_as_printed, residual_block, residual_group


def max_pooled(x):
    """2x2 at stride 2, SAME: at an odd edge the last window is cut off."""
    n, h, w, c = x.shape
    x = np.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-np.inf)
    return x.reshape(n, (h + 1) // 2, 2, (w + 1) // 2, 2, c).max((2, 4))


def layer(model, suffix):
    (found,) = [layer for layer in model.layers if layer.name.endswith(suffix)]
    return found


def test_signatures_are_the_tutorials():
    assert list(inspect.signature(residual_block).parameters) == ['x', 'out_channels', 'down_sample', 'projection']
    assert list(inspect.signature(residual_group).parameters) == ['name', 'x', 'num_block', 'out_channels']
    assert inspect.signature(block_as_printed) == inspect.signature(residual_block)
    assert inspect.signature(residual_block).parameters['projection'].default is False


@pytest.mark.parametrize(
    'size,channels,down_sample,projection,expected',
    [
        (28, 6, True, False, 14),
        (14, 6, True, False, 7),
        (7, 6, True, False, 4),
        (7, 6, False, False, 7),
        (14, 6, True, True, 7),
        (8, 3, True, True, 4),  # fewer channels, by a projection
    ],
)
def test_shapes(size, channels, down_sample, projection, expected):
    outputs = residual_block(keras.Input((size, size, 4)), channels, down_sample, projection)
    assert outputs.shape == (None, expected, expected, channels)


@pytest.mark.parametrize('size', [6, 7])
@pytest.mark.parametrize('out_channels', [3, 5])
def test_shortcut_is_the_pooled_input_with_zero_channels_at_the_end(size, out_channels):
    model, images = model_of(residual_block, (size, size, 3), out_channels, True), normal(2, size, size, 3)
    shortcut = np.pad(max_pooled(images), ((0, 0), (0, 0), (0, 0), (0, out_channels - 3)))
    residual = keras.Model(model.input, layer(model, '_relu2').output)(images).numpy()
    assert residual.shape == shortcut.shape and residual.min() == 0 and residual.max() > 0
    outputs = model(images).numpy()
    np.testing.assert_allclose(outputs, residual + shortcut, atol=1e-6)
    assert (outputs >= shortcut).all() and outputs.min() < 0  # no ReLU after the addition


@pytest.mark.parametrize('in_channels', [3, 4])
def test_without_pooling_it_is_the_block_of_the_order_relu_before_addition(in_channels):
    model, images = model_of(residual_block, (5, 5, in_channels), 4, False), normal(2, 5, 5, in_channels)
    block = blocks.make_block({'order': 'relu_before_addition'})
    ours = model_of(block, (5, 5, in_channels), tutorial_resnet.SPEC, 4, 1, 'b')
    ours.set_weights(model.get_weights())
    for training in (False, True):
        np.testing.assert_allclose(model(images, training=training), ours(images, training=training), atol=1e-5)


def test_layers_are_the_tutorials():
    model = model_of(residual_block, (8, 8, 3), 200, True)
    for i in (1, 2):
        conv, bn = layer(model, f'_conv{i}'), layer(model, f'_bn{i}')
        assert (conv.kernel_size, conv.strides, conv.padding, conv.use_bias) == ((3, 3), (1, 1), 'same', False)
        assert (bn.momentum, bn.epsilon) == (0.999, 1e-3)
    kernel = conv.kernel.numpy()  # 360,000 values
    assert np.abs(kernel).max() <= 0.2 and abs(kernel.mean()) < 1e-3
    assert abs(kernel.std() - 0.088) < 1e-3  # of a normal distribution of 0.1, cut off at two of these


def test_blocks_have_names_of_their_own():
    inputs = keras.Input((8, 8, 3))
    x = residual_block(inputs, 4, True)
    model = keras.Model(inputs, residual_block(x, 4, False))  # Keras refuses equal names
    assert len([layer for layer in model.layers if layer.name.endswith('_out')]) == 2


@pytest.mark.parametrize('num_block', [1, 3])
def test_group(num_block):
    model = model_of(lambda x: residual_group('g', x, num_block, 6), (8, 8, 4))
    names = [layer.name for layer in model.layers]
    assert model.output.shape == (None, 4, 4, 6)
    assert [name for name in names if name.endswith('_out')] == ['g_head_out', 'g_1_out', 'g_2_out'][:num_block]
    assert [name for name in names if name.endswith('_pool')] == ['g_head_pool']
    assert [name for name in names if 'shortcut' in name] == ['g_head_shortcut_pad']


def test_projection_at_stride_1_is_added_after_its_relu():
    model, images = model_of(residual_block, (6, 6, 3), 5, True, True), normal(2, 6, 6, 3)
    projection = layer(model, '_shortcut_conv')
    assert (projection.kernel_size, projection.strides, projection.use_bias) == ((1, 1), (1, 1), True)
    projection.bias.assign(normal(5, seed=1))
    shortcut = np.maximum(max_pooled(images) @ projection.kernel.numpy()[0, 0] + projection.bias.numpy(), 0)
    layer(model, '_bn2').gamma.assign(np.zeros(5))  # F = 0
    np.testing.assert_allclose(model(images), shortcut, atol=1e-5)


@pytest.mark.parametrize('size,down_sample,residual,projected', [(28, True, 14, 7), (14, True, 7, 4), (7, False, 7, 4)])
def test_projection_as_printed_cannot_be_added(size, down_sample, residual, projected):
    with pytest.raises(UserError) as error:
        block_as_printed(keras.Input((size, size, 16)), 32, down_sample, True)
    for side in (residual, projected):
        assert f'({side}, {side}, 32)' in str(error.value)
    assert '\n' not in str(error.value)


def test_block_as_printed_is_the_block_where_it_works():
    pixel = block_as_printed(keras.Input((2, 2, 3)), 5, True, True)
    padded = block_as_printed(keras.Input((8, 8, 3)), 5, True)
    assert pixel.shape == (None, 1, 1, 5) and padded.shape == (None, 4, 4, 5)
    for block in (residual_block, block_as_printed):  # between equal channels a projection is an identity
        model = model_of(block, (6, 6, 3), 3, True, True)
        assert not any('shortcut' in layer.name for layer in model.layers)


@pytest.mark.parametrize(
    'make,message',
    [
        (lambda x: residual_group('g', x, 0, 16), 'num_block must greater than 1'),
        (lambda x: residual_group('g', x, -1, 16), 'given -1'),
        (lambda x: residual_group('g', x, 1, 3), 'projection=True'),
        (lambda x: residual_block(keras.Input((8,)), 16, True), 'pass [n, h, w, channels]'),
        (lambda x: residual_block(keras.Input((8, 8, None)), 16, True), 'pass [n, h, w, channels]'),
        (lambda x: tutorial_resnet.compare_blocks(254), 'channels=254: pass a multiple of 4'),
        (lambda x: tutorial_resnet.compare_blocks(0), 'channels=0'),
    ],
)
def test_errors_are_one_line(make, message):
    with pytest.raises(UserError) as error:
        make(keras.Input((8, 8, 4)))
    assert message in str(error.value) and '\n' not in str(error.value)


def test_network():
    model = tutorial_resnet.tutorial_net()
    shapes = {'images': (28, 28, 1), 'conv1': (28, 28, 16), 'conv2_head_out': (14, 14, 16), 'conv2_1_out': (14, 14, 16)}
    shapes |= {'conv3_head_out': (7, 7, 32), 'conv3_1_out': (7, 7, 32), 'pool': (4, 4, 32), 'flatten': (4 * 4 * 32,)}
    assert {name: model.get_layer(name).output.shape[1:] for name in shapes} == shapes
    # conv1          9 * 1 * 16 + 16                            =    160
    # conv2          4 convolutions 9 * 16 * 16, 4 BN 2 * 16    =  9,344
    # conv3          9 * 16 * 32, 3 of 9 * 32 * 32, 4 BN 2 * 32 = 32,512
    # logits         512 * 10 + 10                              =  5,130
    assert count_parameters(model) == 160 + 9_344 + 32_512 + 5_130 == 47_146
    assert model.count_params() == 47_146 + 2 * 4 * (16 + 32)  # and the moving averages
    assert model.get_layer('conv1').activation is keras.activations.relu
    assert tutorial_resnet.tutorial_net(7).output.shape == (None, 7)


def test_logits_are_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        assert tutorial_resnet.tutorial_net().output.dtype == 'float32'
    finally:
        keras.config.set_dtype_policy(before)


def test_training_settings():
    settings = tutorial_resnet.TRAINING
    assert (settings['optimizer'], settings['learning_rate'], settings['batch_size']) == ('adam', 1e-3, 120)
    assert (settings['train_steps'], settings['test_images'], settings['is_training']) == (799, 256, True)
    assert settings['train_steps'] * settings['batch_size'] / 55_000 == pytest.approx(1.7, abs=0.05)
    assert tutorial_resnet.SPEC.bn_momentum ** settings['train_steps'] == pytest.approx(0.45, abs=0.005)


def test_one_step_changes_every_weight_and_lowers_the_loss():
    keras.utils.set_random_seed(3)
    model, settings = tutorial_resnet.tutorial_net(), tutorial_resnet.TRAINING
    optimizer = keras.optimizers.Adam(settings['learning_rate'], epsilon=settings['epsilon'])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    random = np.random.default_rng(3)
    images, labels = random.uniform(0, 1, (12, 28, 28, 1)).astype('float32'), random.integers(0, 10, 12)
    before = model.get_weights()
    loss = float(model.train_on_batch(images, labels))
    after = model.get_weights()
    assert float(model.train_on_batch(images, labels)) < loss
    for variable, old, new in zip(model.weights, before, after, strict=True):
        assert (old != new).any(), variable.path


def test_hard_wired_training_makes_a_class_depend_on_its_batch():
    model, images = tutorial_resnet.tutorial_net(), np.abs(normal(6, 28, 28, 1))
    alone, beside = model(images[:2], training=True), model(images, training=True)[:2]
    assert np.abs(alone - beside).max() > 1e-3
    np.testing.assert_allclose(model(images[:2]), model(images)[:2], atol=1e-4)


@pytest.mark.parametrize('block,filters,weights', [('basic', 256, 1_179_648), ('bottleneck', 64, 69_632)])
def test_compare_blocks_counts_the_blocks_that_are_built(block, filters, weights):
    spec = resnet_spec.ResNetSpec((1,), block=block)
    model = model_of(resnet_model.residual_block, (4, 4, 256), spec, filters, 1, 'b')
    assert sum(int(np.prod(w.shape)) for w in model.weights if w.path.endswith('kernel')) == weights
    assert getattr(tutorial_resnet.compare_blocks(), block) == weights


def test_doctest():
    result = doctest.testmod(tutorial_resnet)
    assert result.attempted == 5 and not result.failed


def test_program(capsys):
    tutorial_resnet.main()
    first, *rows, last = capsys.readouterr().out.splitlines()
    header = ' '.join(tutorial_resnet.__doc__.split())
    assert first in header and last == '47,146 parameters' and last in header
    assert 'conv3_1_out                 7 x 7 x 32        0' in rows


def test_resnext_is_one_sum_in_three_forms():
    """1611.05431 Fig. 3: branches that are summed (a), joined before their last 1x1 (b), a grouped convolution (c)."""
    branches, depth = 4, 2
    axes = {'base_width': depth, 'cardinality': branches, 'batch_norm': False}
    spec = resnet_spec.ResNetSpec((1,), block='bottleneck', version='1.5', shortcut=None, **axes)
    model = model_of(resnet_model.residual_block, (5, 5, 12), spec, 64, 1, 'b')
    model.set_weights([normal(*w.shape, seed=i) for i, w in enumerate(model.weights)])
    (w1, b1), (w2, b2), (w3, b3) = (model.get_layer(f'b_conv{i}').get_weights() for i in (1, 2, 3))
    assert (w1.shape, w2.shape, w3.shape) == ((1, 1, 12, 8), (3, 3, 2, 8), (1, 1, 8, 256))
    images = normal(2, 5, 5, 12, seed=9)

    def branch(i):
        own = slice(i * depth, (i + 1) * depth)
        x = tf.nn.relu(tf.nn.conv2d(images, w1[..., own], 1, 'SAME') + b1[own])
        return tf.nn.relu(tf.nn.conv2d(x, w2[..., own], 1, 'SAME') + b2[own])

    insides = [branch(i) for i in range(branches)]
    summed = sum(tf.nn.conv2d(x, w3[:, :, i * depth : (i + 1) * depth], 1, 'SAME') for i, x in enumerate(insides))
    joined = tf.nn.conv2d(tf.concat(insides, -1), w3, 1, 'SAME')
    grouped = keras.Model(model.input, layer(model, 'b_conv3').output)(images) - b3
    np.testing.assert_allclose(summed, joined, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(joined, grouped, rtol=1e-4, atol=1e-3)
    assert np.abs(grouped).max() > 10


def test_resnext_doubles_the_inner_filters_alone():
    spec = resnet_variants.imagenet_spec(50, cardinality=32, base_width=4)
    resnet, resnext = (
        resnet_spec.block_convolutions(each, 64, 1) for each in (resnet_variants.imagenet_spec(50), spec)
    )
    assert [filters for filters, *_ in resnet] == [64, 64, 256]
    assert [filters for filters, *_ in resnext] == [128, 128, 256]
    assert [groups for *_, groups in resnext] == [1, 32, 1]
    # A grouped convolution has 1 / groups of the weights: 3*3*128*128 / 32.
    model = model_of(resnet_model.residual_block, (4, 4, 256), spec, 64, 1, 'b')
    assert model.get_layer('b_conv2').kernel.shape == (3, 3, 4, 128)
