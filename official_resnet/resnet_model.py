"""Residual networks in Keras. This is the file to read first.

    resnet            stem, groups and head: a ResNetSpec becomes a keras.Model
    residual_group    the blocks at one resolution
    residual_block    F(x) + shortcut(x): block_v1 or block_v2

Each function takes a tensor and returns a tensor, so the parts also work in a network of your own. Images and
feature maps are float [images, height, width, channels].

Version 1 is arXiv:1512.03385 (He et al. 2015) Sec. 3 and 4, version 2 is arXiv:1603.05027 (He et al. 2016) Sec. 4.
Version 1.5 is version 1 with the stride of a bottleneck on its 3x3 convolution; official/resnet calls it v1.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor as Tensor

from official_resnet.errors import UserError
from official_resnet.layers import NHWC, BatchNormalization, deep_graph, float32_weights
from official_resnet.resnet_spec import Convolution, ResNetSpec, block_convolutions, stem_convolutions

INITIALIZERS: dict[str, Callable[[], keras.Initializer]] = {
    'he': lambda: keras.initializers.VarianceScaling(2.0, 'fan_out', 'uniform'),
    'official': lambda: keras.initializers.VarianceScaling(1.0, 'fan_in', 'truncated_normal'),
    'torch': lambda: keras.initializers.VarianceScaling(1 / 3, 'fan_in', 'uniform'),  # up to 1 / sqrt(fan-in)
    'dirac': lambda: INITIALIZERS['torch'](),  # but for what pooled_block.dirac draws
    'normal_0.01': lambda: keras.initializers.RandomNormal(0.0, 0.01),
    'normal_1': lambda: keras.initializers.RandomNormal(0.0, 1.0),
}  # 'he' has the variance of arXiv:1502.01852 Sec. 2.2, backward form; sampling a normal distribution is 3 times slower
MIN_BLURRED = 16  # input channels from which ResNetSpec.blur_pool filters, as in composer and ffcv-imagenet


# --- the network ---


@float32_weights()
def resnet(
    spec: ResNetSpec, num_classes: int, input_shape: tuple[int | None, int | None, int], block: Callable | None = None
) -> keras.Model:
    """Return the network of a spec, from images to float32 logits. It has no softmax.

    >>> model = resnet(ResNetSpec((3, 3, 3)), num_classes=10, input_shape=(32, 32, 3))  # ResNet-20 for CIFAR-10
    >>> model.output_shape
    (None, 10)

    Args:
        spec: Depth, width, version, shortcuts and all other choices.
        num_classes: Number of logits.
        input_shape: (height, width, channels) of an image. None as height or width accepts any size.
        block: A function with the signature of residual_block that builds every block instead of it.
    """
    images = keras.Input(input_shape, name='images', dtype='float32')
    x = stem(images, spec)
    for i, (num_blocks, (stride, dilation)) in enumerate(zip(spec.group_blocks, spec.group_strides(), strict=True)):
        filters, name, first_block = spec.filters_of(i), f'group{i + 1}', sum(spec.group_blocks[:i])
        x = residual_group(
            x, spec, filters, num_blocks, stride, name, dilation=dilation, first_block=first_block, block=block
        )
    if spec.version == '2':  # no batch norm or ReLU has followed the last sum (1603.05027, Appendix)
        x = batch_norm(x, spec, 'head_bn')
        x = activation(x, spec, 'head_relu')
    is_max = spec.head_pool == 'max'
    pool = keras.layers.GlobalMaxPooling2D if is_max else keras.layers.GlobalAveragePooling2D
    x = pool(data_format=NHWC, name='head_pool')(x)
    # Keras' own draws, or, as airbench94_muon does, numbers of variance 1 that divide by the number of features.
    kernel = keras.initializers.RandomNormal(stddev=1 / x.shape[-1]) if spec.initializer == 'dirac' else None
    # float32 under every dtype policy, because a softmax in 16 bits loses small probabilities.
    dense = keras.layers.Dense(
        num_classes, kernel_initializer=kernel or 'glorot_uniform', dtype='float32', name='logits'
    )
    logits = dense(x)
    with deep_graph():
        return keras.Model(images, logits, name='resnet')


def residual_group(
    x: Tensor,
    spec: ResNetSpec,
    filters: int,
    num_blocks: int,
    stride: int,
    name: str,
    *,
    dilation: int = 1,
    first_block: int = 0,
    block: Callable | None = None,
) -> Tensor:
    """Return the output of several residual blocks in a row, one of which has the stride (spec.stride_block).

    >>> x = keras.Input((32, 32, 16))
    >>> residual_group(x, ResNetSpec((3, 3, 3)), filters=32, num_blocks=3, stride=2, name='group2').shape
    (None, 16, 16, 32)

    Args:
        x: Feature maps, [n, height, width, channels].
        filters: Filters of the group, before spec.width and the expansion of a bottleneck.
        stride: 2 halves the height and width, 1 keeps them.
        name: Prefix of the layers' names, for example 'group2'.
        dilation: Dilation of the 3x3 convolutions.
        first_block: Number of blocks before this group; the rates of stochastic depth grow with the depth.
        block: See resnet.

    Returns:
        Feature maps, [n, ceil(height / stride), ceil(width / stride), filters * spec.width * spec.expansion].
    """
    block = block or residual_block
    strided = 0 if spec.stride_block == 'first' else num_blocks - 1
    for i in range(num_blocks):
        options: dict[str, Any] = {
            'is_first': i == 0,
            'dilation': dilation if i else (dilation + 1) // 2,  # block 1 keeps the dilation of the group before
            'drop_rate': spec.stochastic_depth * (first_block + i + 1) / sum(spec.group_blocks),
        }
        x = block(x, spec, filters, stride if i == strided else 1, f'{name}_block{i + 1}', **options)
    return x


# --- the block ---


def residual_block(
    x: Tensor,
    spec: ResNetSpec,
    filters: int,
    stride: int,
    name: str,
    *,
    is_first: bool = False,
    dilation: int = 1,
    drop_rate: float = 0.0,
) -> Tensor:
    """Return one residual block, F(x) + shortcut(x), in the version of the spec.

    >>> x = keras.Input((56, 56, 64))
    >>> spec = ResNetSpec((3, 4, 6, 3), block='bottleneck', version='1.5', shortcut='B')
    >>> residual_block(x, spec, filters=64, stride=1, name='group1_block1').shape
    (None, 56, 56, 256)

    Args:
        x: Feature maps, [n, height, width, channels].
        filters: Filters of the group, before spec.width and the expansion of a bottleneck.
        stride: 2 halves the height and width, 1 keeps them.
        name: Prefix of the layers' names, for example 'group1_block1'.
        is_first: Whether this is the first block of its group, which has a projection with shortcut='group'.
        dilation: Dilation of the 3x3 convolutions.
        drop_rate: Rate at which F(x) is dropped in training, image by image (stochastic depth).

    Returns:
        Feature maps, [n, ceil(height / stride), ceil(width / stride), filters * spec.width * spec.expansion].
    """
    if spec.block == 'pooled':
        from official_resnet.pooled_block import block_pooled as block
    else:
        block = block_v2 if spec.version == '2' else block_v1
    return block(x, spec, filters, stride, name, is_first=is_first, dilation=dilation, drop_rate=drop_rate)


def block_v1(
    x: Tensor, spec: ResNetSpec, filters: int, stride: int, name: str, is_first: bool, dilation: int, drop_rate: float
) -> Tensor:
    """Return ReLU(F(x) + shortcut(x)), the block of 1512.03385 Fig. 2 and 5; arguments as in residual_block.

    F is two 3x3 convolutions, or 1x1, 3x3, 1x1 in a bottleneck. Batch norm follows each of them, and ReLU all but the
    last one. The last ReLU comes after the addition.
    """
    convs = block_convolutions(spec, filters, stride)
    # x, or W x where the shapes differ. Built before F, because initial weights are drawn in the order of the layers.
    shortcut = shortcut_of(x, spec, convs[-1].filters, stride, name, is_first=is_first)

    # F(x)
    residual = x
    for i, conv in enumerate(convs, start=1):
        is_last = i == len(convs)
        residual = convolution(residual, spec, conv, f'{name}_conv{i}', dilation=dilation)
        residual = batch_norm(residual, spec, f'{name}_bn{i}', starts_at_zero=is_last and spec.zero_gamma)
        if not is_last:
            residual = activation(residual, spec, f'{name}_relu{i}')
    residual = weigh_channels(residual, spec, name)
    residual = drop_whole(residual, drop_rate, f'{name}_drop')

    # y = F(x) + x, or F(x) + W x (Sec. 3.2, Eq. 1 and 2)
    y = residual if shortcut is None else keras.layers.Add(name=f'{name}_add')([residual, shortcut])
    return activation(y, spec, f'{name}_out')


def block_v2(
    x: Tensor, spec: ResNetSpec, filters: int, stride: int, name: str, is_first: bool, dilation: int, drop_rate: float
) -> Tensor:
    """Return F(x) + shortcut(x), the block of 1603.05027 Fig. 1b and 4e; arguments as in residual_block.

    F has the convolutions of block_v1, but batch norm and ReLU come before each of them (pre-activation). Nothing
    follows the addition, so where the shortcut is an identity, x reaches all later blocks unchanged.
    """
    convs = block_convolutions(spec, filters, stride)
    preactivated = batch_norm(x, spec, f'{name}_bn1')
    preactivated = activation(preactivated, spec, f'{name}_relu1')
    # x, or W x of the pre-activated x where the shapes differ. Built before the convolutions of F, as in block_v1.
    shortcut = shortcut_of(
        x, spec, convs[-1].filters, stride, name, is_first=is_first, preactivated=preactivated, has_bn=False
    )

    # F(x)
    residual = preactivated
    for i, conv in enumerate(convs, start=1):
        if i > 1:
            residual = batch_norm(residual, spec, f'{name}_bn{i}')
            residual = activation(residual, spec, f'{name}_relu{i}')
        residual = convolution(residual, spec, conv, f'{name}_conv{i}', dilation=dilation)
    residual = weigh_channels(residual, spec, name)
    residual = drop_whole(residual, drop_rate, f'{name}_drop')

    # y = F(x) + x (Sec. 2, Eq. 1)
    return residual if shortcut is None else keras.layers.Add(name=f'{name}_out')([residual, shortcut])


# --- the shortcut ---


def shortcut_of(
    x: Tensor,
    spec: ResNetSpec,
    channels: int,
    stride: int,
    name: str,
    *,
    is_first: bool = False,
    preactivated: Tensor | None = None,
    has_bn: bool = True,
) -> Tensor | None:
    """Return a block's shortcut: x itself, x with zero channels added, or a projection W x. None in a plain network.

    Args:
        x: The input of the block, [n, height, width, in_channels].
        channels: Number of channels of F(x).
        stride, name, is_first: See residual_block.
        preactivated: x after the batch norm and ReLU of a block of version 2. The shortcut starts there if it changes
            the number of channels, and is x itself if not (as in the authors' code, official/resnet, slim).
        has_bn: Whether batch norm follows a projection.

    Returns:
        [n, ceil(height / stride), ceil(width / stride), channels], or None.
    """
    if spec.shortcut is None:
        return None
    in_channels = x.shape[-1]
    preactivated = x if preactivated is None else preactivated
    if spec.is_projection(in_channels, channels, stride, is_first):
        projected = preactivated
        if spec.projection_pool and stride > 1:  # at an odd edge, 'same' averages only the pixels inside the image
            pool = keras.layers.AveragePooling2D(2, stride, 'same', data_format=NHWC, name=f'{name}_shortcut_pool')
            projected, stride = pool(projected), 1
        conv = Convolution(channels, spec.projection_kernel, stride)
        projected = convolution(projected, spec, conv, f'{name}_shortcut_conv')
        return batch_norm(projected, spec, f'{name}_shortcut_bn') if has_bn else projected
    if in_channels > channels:
        raise UserError(f"{name}: option A cannot reduce {in_channels} channels to {channels}; pass shortcut='B'")
    identity = x if in_channels == channels or spec.identity_pool == 'average' else preactivated
    if stride > 1 and spec.identity_pool == 'average':
        pool = keras.layers.AveragePooling2D(2, stride, 'same', data_format=NHWC, name=f'{name}_shortcut_pool')
        identity = pool(identity)
    elif stride > 1:  # every second pixel
        identity = keras.layers.MaxPooling2D(1, stride, data_format=NHWC, name=f'{name}_shortcut_pool')(identity)
    if in_channels < channels:
        identity = pad_channels(identity, spec, channels - in_channels, f'{name}_shortcut_pad')
    return identity


def pad_channels(x: Tensor, spec: ResNetSpec, num_zeros: int, name: str) -> Tensor:
    """Return x with zero channels added at the end or on both sides, by a stock layer of Keras."""
    before = num_zeros // 2 if spec.shortcut_padding == 'both' else 0
    # ZeroPadding2D pads the last two axes if it is told 'channels_first'. Here these are the width and the channels.
    pads = ((0, 0), (before, num_zeros - before))
    return keras.layers.ZeroPadding2D(pads, data_format='channels_first', name=name)(x)


# --- the layers ---


def stem(images: Tensor, spec: ResNetSpec) -> Tensor:
    """Return the first feature maps: [n, height, width, filters], a quarter as high and wide for ImageNet.

    Batch norm and ReLU follow, except in version 2, whose blocks begin with their own (1603.05027, Appendix).
    """
    x = images
    *first, last = stem_convolutions(spec)
    for i, conv in enumerate(first, start=1):
        x = convolution(x, spec, conv, f'stem_conv{i}')
        x = batch_norm(x, spec, f'stem_bn{i}')
        x = activation(x, spec, f'stem_relu{i}')
    if spec.stem == 'whitening':
        from official_resnet.more_layers import Conv2D

        conv = Conv2D(last.filters, last.kernel, data_format=NHWC, name='stem_conv')
        x = conv(x)
        conv.kernel.trainable = False  # training.whitening computes it; the bias is trained
        return activation(x, spec, 'stem_act')
    x = convolution(x, spec, last, 'stem_conv', has_bias=spec.stem_bias)
    if spec.version != '2' if spec.stem_bn is None else spec.stem_bn:
        x = batch_norm(x, spec, 'stem_bn')
        x = activation(x, spec, 'stem_relu')
    if spec.stem in ('cifar', 'mnist'):
        return x
    pads = {'pad1': ((1, 1), (1, 1)), 'ceil': ((0, 1), (0, 1))}.get(spec.stem_pool)
    if pads:
        x = keras.layers.ZeroPadding2D(pads, data_format=NHWC, name='stem_pad')(x)
    padding = 'valid' if pads else 'same'
    if spec.blur_pool != 'all' and spec.stem_pool != 'torch':
        return keras.layers.MaxPooling2D(3, 2, padding, data_format=NHWC, name='stem_pool')(x)
    from official_resnet.more_layers import blur

    x = keras.layers.MaxPooling2D(3, 1, padding, data_format=NHWC, name='stem_max')(x)
    every_second = keras.layers.MaxPooling2D(1, 2, data_format=NHWC, name='stem_pool')
    return blur(x, 2, 'stem_pool') if spec.blur_pool == 'all' else every_second(x)


def convolution(
    x: Tensor, spec: ResNetSpec, conv: Convolution, name: str, *, dilation: int = 1, has_bias: bool = False
) -> Tensor:
    """Return x convolved, [n, ceil(height / stride), ceil(width / stride), conv.filters]. A 1x1 is never dilated."""
    padding, stride = 'same', conv.stride
    if spec.blur_pool and stride > 1 and x.shape[-1] >= MIN_BLURRED:
        from official_resnet.more_layers import blur

        x = blur(x, stride if conv.kernel == 1 else 1, f'{name}_blur')
        stride = 1 if conv.kernel == 1 else stride  # a 1x1 convolution reads only the pixels that are left
    if spec.padding == 'symmetric' and stride > 1 and conv.kernel > 1:
        # The padding depends on the kernel size only, so that even and odd image sizes are aligned alike.
        before = (conv.kernel - 1) // 2
        pads = (before, conv.kernel - 1 - before)
        x = keras.layers.ZeroPadding2D((pads, pads), data_format=NHWC, name=f'{name}_pad')(x)
        padding = 'valid'
    kind = keras.layers.Conv2D
    if has_bias or not spec.batch_norm:
        from official_resnet import more_layers

        kind = more_layers.Conv2D
    layer = kind(
        conv.filters,
        conv.kernel,
        stride,
        padding,
        groups=conv.cardinality,
        data_format=NHWC,
        use_bias=has_bias or not spec.batch_norm,  # the offset of a batch norm takes the place of a bias
        dilation_rate=dilation if conv.kernel > 1 else 1,
        kernel_initializer=INITIALIZERS[spec.initializer](),
        name=name,
    )
    if spec.initializer != 'dirac':
        return layer(x)
    from official_resnet import pooled_block

    stock, layer.kernel_initializer = layer.kernel_initializer, pooled_block.dirac
    x = layer(x)
    layer.kernel_initializer = stock  # a file with the network names no initializer of ours
    return x


def batch_norm(x: Tensor, spec: ResNetSpec, name: str, *, starts_at_zero: bool = False) -> Tensor:
    """Return x normalised by the batch (arXiv:1502.03167), or x itself if the network has no batch norm."""
    if not spec.batch_norm:
        return x
    scale = 'zeros' if starts_at_zero else 'ones'
    options = {'momentum': spec.bn_momentum, 'epsilon': spec.bn_epsilon, 'scale': spec.bn_scale}
    return BatchNormalization(**options, gamma_initializer=scale, name=name)(x)


def activation(x: Tensor, spec: ResNetSpec, name: str) -> Tensor:
    """Return ReLU(x), or the function that spec.activation names."""
    if spec.activation == 'relu':
        return keras.layers.ReLU(name=name)(x)
    from official_resnet import more_layers

    return more_layers.Activation(spec.activation, name=name)(x)


def weigh_channels(x: Tensor, spec: ResNetSpec, name: str) -> Tensor:
    """Return x, or with SE or ECA x with each channel scaled by a factor that depends on the channels' means."""
    if not (spec.se_reduction or spec.eca):
        return x
    from official_resnet import channel_attention

    return channel_attention.weigh_channels(x, spec, name, INITIALIZERS['he'])


def drop_whole(x: Tensor, rate: float, name: str) -> Tensor:
    """Return x; in training, a fraction `rate` of the images gets 0 (stochastic depth, arXiv:1603.09382 Sec. 3)."""
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)(x) if rate else x
