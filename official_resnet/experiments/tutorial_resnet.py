"""The residual block of a widely read tutorial, the small MNIST network it comes from, and the tutorial's arithmetic.

    python -m official_resnet.experiments.tutorial_resnet
        # compare two kinds of block, list the network's layers; takes seconds on any CPU

    basic 1,179,648 weights, bottleneck 69,632 at 256 channels: 16.94 to 1; basic at its inner 64: 73,728, 0.94 of it
    47,146 parameters

The block is the tutorial's, not a paper's. It halves the input by a 2x2 max-pool before both branches, so every
convolution has stride 1. New channels are zeros at the end. Batch norm and ReLU follow both convolutions and nothing
follows the addition, so F >= 0 and the output is never below the shortcut ('relu_before_addition' of
experiments/blocks.py, arXiv:1603.05027 Fig. 4c, which that paper found to be worse). The first block of every group
halves its input, also in the first group. For the networks of the papers use resnet_model.
"""

import functools
from typing import Any, NamedTuple

import keras
from keras import KerasTensor as Tensor

from official_resnet import layers, resnet_model, resnet_spec
from official_resnet.errors import UserError
from official_resnet.experiments.architecture_table import count_parameters

# The tutorial's batch norm has decay 0.999 and epsilon 0.001.
SPEC = resnet_spec.ResNetSpec(
    (2, 2), filters=16, stem='mnist', shortcut='A', shortcut_padding='end', bn_momentum=0.999, bn_epsilon=1e-3
)
IMAGE_SHAPE = (28, 28, 1)  # float32, 0..1
# Kernels start from a normal distribution with deviation 0.1 that is truncated at 0.2, biases from 0.
INITIALIZER = functools.partial(keras.initializers.TruncatedNormal, 0.0, 0.1)
MAX_POOL = functools.partial(keras.layers.MaxPooling2D, 2, 2, 'same', data_format=layers.NHWC)

# How the tutorial's program trains the network. Nothing here reads it. Not yet measured.
TRAINING: dict[str, Any] = {
    'optimizer': 'adam',
    'learning_rate': 1e-3,
    'epsilon': 1e-8,  # TensorFlow 1's default; Keras' is 1e-7
    'loss': 'softmax cross entropy, mean of the batch',
    'batch_size': 120,
    'train_steps': 799,  # `step = 1; while step < 800`: 1.7 epochs of its 55,000 training images
    'test_images': 256,  # the first ones of the test set, tested every 10 steps; there is no other test
    # The tutorial never changes this. That is an error: its test also normalises by the batch, so the class of an image
    # depends on the other images, and it updates the moving averages, which nothing reads. model(images, training=True)
    # does the same. The averages would be useless: after 799 updates, 0.999 ** 799 = 45 % of each is its initial value.
    'is_training': True,
}


def residual_block(x: Tensor, out_channels: int, down_sample: bool, projection: bool = False) -> Tensor:
    """Return F(x) + shortcut(x), where F is conv, BN, ReLU, conv, BN, ReLU.

    The tutorial's own projection has stride 2 although the max-pool has halved its input already, so the addition fails
    (block_as_printed). Here the stride is 1.

    Args:
        x: Feature maps, [n, h, w, c].
        out_channels: Filters of both convolutions. If there are c, the shortcut is the (pooled) input itself.
        down_sample: Whether to max-pool x to [n, ceil(h / 2), ceil(w / 2), c] first.
        projection: Whether a 1x1 convolution with bias and ReLU, instead of zero channels, changes the channels.

    Raises:
        UserError: x is not a feature map, or it has more than out_channels channels and there is no projection.
    """
    return _block(x, out_channels, down_sample, projection)


def block_as_printed(x: Tensor, out_channels: int, down_sample: bool, projection: bool = False) -> Tensor:
    """Return residual_block as the tutorial prints it, with a projection of stride 2.

    Raises:
        UserError: As in residual_block, and for every projection unless x is pooled to a single pixel.
    """
    return _block(x, out_channels, down_sample, projection, projection_stride=2)


def residual_group(name: str, x: Tensor, num_block: int, out_channels: int) -> Tensor:
    """Return the output of `num_block` blocks in a row. The first one halves its input, and none has a projection.

    Args:
        name: Prefix of the layers' names, unique in the network, without '/': 'conv2' gives 'conv2_head_conv1', ...,
            'conv2_head_out', 'conv2_1_conv1', ..., 'conv2_1_out', ...
        x: Feature maps, [n, h, w, c], where c is at most out_channels.

    Raises:
        UserError: As in residual_block, or num_block is below 1. (The tutorial asserts this in the words of the
            message, but allows 1.)
    """
    if num_block < 1:
        raise UserError(f'num_block must greater than 1: group {name!r} was given {num_block}; pass 1 or more')
    for i in range(num_block):
        x = _block(x, out_channels, i == 0, False, f'{name}_{i or "head"}')
    return x


def tutorial_net(num_classes: int = 10) -> keras.Model:
    """Return the tutorial's network for MNIST, from images [n, 28, 28, 1] in 0..1 to float32 logits.

    It has 47,146 parameters with 10 classes. The names conv1, conv2, conv3 are the tutorial's.
    """
    images = keras.Input(IMAGE_SHAPE, name='images')
    x = _conv(images, SPEC.filters, 3, 'conv1', has_bias=True)  # [28, 28, 1] -> [28, 28, 16]
    for i, num_block in enumerate(SPEC.group_blocks):  # -> [14, 14, 16] -> [7, 7, 32]
        x = residual_group(f'conv{i + 2}', x, num_block, SPEC.filters * 2**i)
    x = MAX_POOL(name='pool')(x)  # -> [4, 4, 32], the last row and column being pools of 2x1, 1x2 and 1x1
    x = keras.layers.Flatten(data_format=layers.NHWC, name='flatten')(x)  # -> [512]
    logits = keras.layers.Dense(num_classes, kernel_initializer=INITIALIZER(), dtype='float32', name='logits')(x)
    return keras.Model(images, logits, name='tutorial_net')


class BlockComparison(NamedTuple):
    """The numbers of convolution weights, without biases and batch norm, of blocks from `channels` to `channels`."""

    channels: int
    basic: int  # of two 3x3 convolutions
    bottleneck: int  # of 1x1, 3x3, 1x1, where a quarter of the channels is between them
    ratio: float  # basic / bottleneck
    inner_basic: int  # of a basic block with a quarter of the channels
    inner_ratio: float  # bottleneck / inner_basic


def compare_blocks(channels: int = 256) -> BlockComparison:
    """Return the BlockComparison at `channels`, a multiple of 4 (1512.03385 Sec. 4.1, Fig. 5).

    Tutorials say that a bottleneck has "about half the parameters", which holds in neither comparison. Compared with a
    basic block of 256 channels it has a 17th, and compared with one of 64, the paper's pair of similar cost, 0.94.

    >>> blocks = compare_blocks(256)
    >>> blocks.basic       # 3*3*256*256*2
    1179648
    >>> blocks.bottleneck  # 1*1*256*64 + 3*3*64*64 + 1*1*64*256
    69632
    >>> round(blocks.ratio, 2)
    16.94
    >>> blocks.inner_basic, round(blocks.inner_ratio, 2)  # 3*3*64*64*2
    (73728, 0.94)
    """
    expansion = resnet_spec.BOTTLENECK_EXPANSION
    if channels < expansion or channels % expansion:
        raise UserError(f'channels={channels}: pass a multiple of {expansion}, which a bottleneck can divide')
    inner = channels // expansion
    basic, inner_basic = (2 * 9 * count**2 for count in (channels, inner))
    bottleneck = 2 * channels * inner + 9 * inner**2
    return BlockComparison(channels, basic, bottleneck, basic / bottleneck, inner_basic, bottleneck / inner_basic)


def _block(x, out_channels, down_sample, projection, name=None, projection_stride=1):
    name = name or f'residual_block{keras.backend.get_uid("residual_block")}'
    if len(x.shape) != 4 or x.shape[-1] is None:
        raise UserError(f'{name}: x of shape {tuple(x.shape)} is not a feature map; pass [n, h, w, channels]')
    if down_sample:
        x = MAX_POOL(name=f'{name}_pool')(x)
    in_channels, shortcut = x.shape[-1], x
    if in_channels != out_channels and projection:
        shortcut = _conv(x, out_channels, 1, f'{name}_shortcut_conv', projection_stride, has_bias=True)
    elif in_channels > out_channels:
        reduced = f'{in_channels} channels to {out_channels}'
        raise UserError(f'{name}: zero padding cannot reduce {reduced}; pass projection=True to residual_block')
    elif in_channels < out_channels:
        shortcut = resnet_model.pad_channels(x, SPEC, out_channels - in_channels, f'{name}_shortcut_pad')
    for i in (1, 2):
        x = _conv(x, out_channels, 3, f'{name}_conv{i}')
        x = resnet_model.batch_norm(x, SPEC, f'{name}_bn{i}')
        x = resnet_model.activation(x, SPEC, f'{name}_relu{i}')
    shapes = [tuple(tensor.shape[1:]) for tensor in (x, shortcut)]
    if shapes[0] != shapes[1]:
        raise UserError(f'{name}: F of shape {shapes[0]} and a shortcut of shape {shapes[1]} cannot be added')
    return keras.layers.Add(name=f'{name}_out')([x, shortcut])


def _conv(x, filters, kernel, name, stride=1, has_bias=False):
    # Unlike resnet_model's, it has another initial distribution, and a ReLU where a bias replaces the batch norm.
    options = {'use_bias': has_bias, 'activation': 'relu' if has_bias else None, 'kernel_initializer': INITIALIZER()}
    return keras.layers.Conv2D(filters, kernel, stride, 'same', data_format=layers.NHWC, **options, name=name)(x)


def main() -> None:
    """Print the comparison of the blocks and the layers of the network."""
    blocks = compare_blocks()
    print(
        f'basic {blocks.basic:,} weights, bottleneck {blocks.bottleneck:,} at {blocks.channels} channels: '
        f'{blocks.ratio:.2f} to 1; basic at its inner {blocks.channels // resnet_spec.BOTTLENECK_EXPANSION}: '
        f'{blocks.inner_basic:,}, {blocks.inner_ratio:.2f} of it\n'
    )
    model = tutorial_net()
    for layer in model.layers:
        shape = ' x '.join(str(size) for size in layer.output.shape[1:])
        print(f'{layer.name:24}{shape:>14}{count_parameters(layer):>9,}')
    print(f'{count_parameters(model):,} parameters')


if __name__ == '__main__':
    main()
