"""Squeeze-and-excitation (SE) and efficient channel attention (ECA), in stock Keras layers.

Both scale each channel of F(x) by a factor that depends on the means of the channels. A plain network imports nothing
from here. What is counted needs no Keras, so it is imported only where layers are made.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from official_resnet.resnet_spec import ResNetSpec

if TYPE_CHECKING:
    import keras


def se_filters(spec: ResNetSpec, channels: int) -> int:
    """Return the reduced number of channels of SE: channels / reduction, rounded to a multiple of spec.se_divisor.

    >>> [se_filters(ResNetSpec((2, 2, 2, 2), se_reduction=16, se_divisor=8), n) for n in (64, 128, 192, 512)]
    [8, 8, 16, 32]
    """
    divisor = spec.se_divisor
    return max(1, (channels // spec.se_reduction + divisor // 2) // divisor) * divisor


def eca_kernel(channels: int) -> int:
    """Return the width of ECA's convolution: (log2(channels) + 1) / 2, made odd (arXiv:1910.03151 Sec. 3.2.3).

    It is rounded up, and at least 3, as in the authors' code and timm.

    >>> [eca_kernel(channels) for channels in (4, 256, 512, 1024, 2048)]
    [3, 5, 5, 5, 7]
    """
    return max(3, int((math.log2(channels) + 1) / 2) | 1)


def weigh_channels(
    x: 'keras.KerasTensor', spec: ResNetSpec, name: str, initializer: 'Callable[[], keras.Initializer]'
) -> 'keras.KerasTensor':
    """Return x, [n, height, width, channels], times one factor in 0..1 for each channel.

    SE computes the factors by two dense layers (arXiv:1709.01507 Sec. 3), ECA by a convolution over the channels in
    their order (arXiv:1910.03151 Sec. 3.2).
    """
    import keras

    from official_resnet.layers import NHWC
    from official_resnet.more_layers import Conv2D

    channels, kind = x.shape[-1], 'eca' if spec.eca else 'se'
    # [n, h, w, c] -> [n, 1, 1, c]
    scale = keras.layers.GlobalAveragePooling2D(data_format=NHWC, keepdims=True, name=f'{name}_{kind}_pool')(x)
    if spec.eca:
        scale = keras.layers.Reshape((channels, 1), name=f'{name}_eca_row')(scale)
        options = {'use_bias': False, 'data_format': NHWC, 'kernel_initializer': initializer()}
        conv = keras.layers.Conv1D(
            1, eca_kernel(channels), padding='same', activation='sigmoid', **options, name=f'{name}_eca_conv'
        )
        scale = keras.layers.Reshape((1, 1, channels), name=f'{name}_eca_factors')(conv(scale))
    else:
        for i, (filters, function) in enumerate(((se_filters(spec, channels), 'relu'), (channels, 'sigmoid')), start=1):
            options = {'data_format': NHWC, 'kernel_initializer': initializer(), 'name': f'{name}_se_conv{i}'}
            scale = Conv2D(filters, 1, activation=function, **options)(scale)
    return keras.layers.Multiply(name=f'{name}_{kind}_out')([x, scale])
