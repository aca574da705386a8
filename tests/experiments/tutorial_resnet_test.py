"""The tutorial's block and network to the letter, and the arithmetic of its text."""

import inspect

import keras
import numpy as np
import pytest
from fixtures.networks import model_of, normal

from official_resnet import resnet_model, resnet_spec
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


@pytest.mark.parametrize('out_channels', [2, 5])
def test_projection_at_stride_1_is_added_after_its_relu(out_channels):
    model, images = model_of(residual_block, (6, 6, 3), out_channels, True, True), normal(2, 6, 6, 3)
    projection = layer(model, '_shortcut_conv')
    assert (projection.kernel_size, projection.strides, projection.use_bias) == ((1, 1), (1, 1), True)
    projection.bias.assign(normal(out_channels, seed=1))
    shortcut = np.maximum(max_pooled(images) @ projection.kernel.numpy()[0, 0] + projection.bias.numpy(), 0)
    layer(model, '_bn2').gamma.assign(np.zeros(out_channels))  # F = 0
    np.testing.assert_allclose(model(images), shortcut, atol=1e-5)


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
        (lambda x: residual_group('g', x, 1, 3), 'projection=True'),
        (lambda x: residual_block(keras.Input((8,)), 16, True), 'pass [n, h, w, channels]'),
        (lambda x: residual_block(keras.Input((8, 8, None)), 16, True), 'pass [n, h, w, channels]'),
        (lambda x: block_as_printed(x, 32, True, True), '(4, 4, 32) and a shortcut of shape (2, 2, 32)'),
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
    names = [layer.name for layer in model.layers]
    assert [name for name in names if name.endswith('_pool')] == ['conv2_head_pool', 'conv3_head_pool']
    assert [name for name in names if 'shortcut' in name] == ['conv3_head_shortcut_pad']
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


@pytest.mark.parametrize('block,filters,weights', [('basic', 256, 1_179_648), ('bottleneck', 64, 69_632)])
def test_compare_blocks_counts_the_blocks_that_are_built(block, filters, weights):
    spec = resnet_spec.ResNetSpec((1,), block=block)
    model = model_of(resnet_model.residual_block, (4, 4, 256), spec, filters, 1, 'b')
    assert sum(int(np.prod(w.shape)) for w in model.weights if w.path.endswith('kernel')) == weights
    assert getattr(tutorial_resnet.compare_blocks(), block) == weights


def test_program(capsys):
    tutorial_resnet.main()
    first, *rows, last = capsys.readouterr().out.splitlines()
    header = ' '.join(tutorial_resnet.__doc__.split())
    assert first in header and last == '47,146 parameters' and last in header
    assert 'conv3_1_out                 7 x 7 x 32        0' in rows
