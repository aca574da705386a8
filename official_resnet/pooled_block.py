"""The block of fast CIFAR networks: a max-pool takes the place of a stride, and kernels begin as identities.

After airbench94 (arXiv:2404.00498), whose network has no shortcuts.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import KerasTensor as Tensor

from official_resnet.errors import UserError
from official_resnet.layers import NHWC
from official_resnet.resnet_model import (
    INITIALIZERS,
    activation,
    batch_norm,
    convolution,
    drop_whole,
    weigh_channels,
)
from official_resnet.resnet_spec import ResNetSpec, block_convolutions


def block_pooled(
    x: Tensor, spec: ResNetSpec, filters: int, stride: int, name: str, is_first: bool, dilation: int, drop_rate: float
) -> Tensor:
    """Return GELU(BN(F(x) + x)), where F is one convolution; arguments as in residual_block.

    The batch norm after the addition is that of arXiv:1603.05027 Fig. 4(b). In a block with a stride, x first becomes
    GELU(BN(max-pool(conv(x)))), as in arXiv:2404.00498 Sec. 3. So every shortcut is an identity, and the network has no
    projections. With initializer='dirac', F has random kernels, because the identity is in the shortcut; a block
    without a shortcut begins as an identity and computes what the second half of a block of airbench94 does.
    """
    *reducing, last = block_convolutions(spec, filters, stride)
    for conv in reducing:
        if any(side == 1 for side in x.shape[1:3]):
            raise UserError(
                f'the images are too small: {name} is to halve {x.shape[1]} x {x.shape[2]}; pass larger ones'
            )
        x = convolution(x, spec, conv, f'{name}_conv1')
        x = keras.layers.MaxPooling2D(conv.pool, data_format=NHWC, name=f'{name}_pool')(x)
        x = batch_norm(x, spec, f'{name}_bn1')
        x = activation(x, spec, f'{name}_act1')

    # F(x)
    has_identity = spec.shortcut is not None
    random = dataclasses.replace(spec, initializer='torch') if spec.initializer == 'dirac' else spec
    y = convolution(x, random if has_identity else spec, last, f'{name}_conv2')
    y = weigh_channels(y, spec, name)
    y = drop_whole(y, drop_rate, f'{name}_drop')

    # y = GELU(BN(F(x) + x))
    if has_identity:
        y = keras.layers.Add(name=f'{name}_add')([y, x])
    return activation(batch_norm(y, spec, f'{name}_bn2'), spec, f'{name}_out')


def dirac(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Return a kernel [h, w, in, out] whose first filters pass one input channel each on (arXiv:2404.00498 Sec. 3.2).

    The other filters are drawn as with 'torch'.
    """
    height, width, channels, filters = shape
    kernel = np.array(INITIALIZERS['torch']()(shape))
    count = min(channels, filters)
    kernel[:, :, :, :count] = 0
    kernel[(height - 1) // 2, (width - 1) // 2, range(count), range(count)] = 1
    return keras.ops.convert_to_tensor(kernel, dtype)
