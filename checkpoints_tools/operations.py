"""What the families' own definitions consist of, as plain formulas on [n, h, w, c]: layers, blocks, nothing fused.

The values of a checkpoint are computed with in float32, whatever their type.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf


def conv2d(x: tf.Tensor, kernel: np.ndarray, stride: int = 1, bias=None, padding: str = 'symmetric') -> tf.Tensor:
    """Convolve with a kernel [h, w, in / groups, out], one group of channels after the other.

    'symmetric' padding is (kernel - 1) // 2 on each side, whatever the stride and the size of the image: PyTorch's,
    Caffe's, slim's conv2d_same and the fixed padding of official/resnet. 'SAME' is TensorFlow's.
    """
    kernel = np.asarray(kernel, 'float32')
    if padding == 'symmetric':
        pads = [(kernel.shape[0] - 1) // 2] * 2
        padding = [[0, 0], pads, pads, [0, 0]]
    groups = x.shape[-1] // kernel.shape[2]
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    x = tf.concat([tf.nn.conv2d(*part, stride, padding) for part in parts], -1)
    return x if bias is None else x + np.asarray(bias, 'float32')


def batch_norm(x: tf.Tensor, gamma, beta, mean, variance, epsilon: float) -> tf.Tensor:
    """Normalise by moving statistics."""
    gamma, beta, mean, variance = (np.asarray(value, 'float32') for value in (gamma, beta, mean, variance))
    return (x - mean) / tf.sqrt(variance + np.float32(epsilon)) * gamma + beta


def max_pool(x: tf.Tensor, pads: Sequence[Sequence[int]], value: float = -np.inf) -> tf.Tensor:
    """Return the largest of each 3x3 at stride 2, with (before, after) rows and columns of a value around."""
    return tf.nn.max_pool2d(tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value), 3, 2, 'VALID')


def classify(x: tf.Tensor, kernel, bias) -> np.ndarray:
    """Return the logits, float32 [n, classes], of feature maps: a dense layer on their means."""
    return (tf.reduce_mean(x, [1, 2]) @ np.asarray(kernel, 'float32') + np.asarray(bias, 'float32')).numpy()


def blocks(group_blocks: Sequence[int], strides_last: bool = False) -> Iterator[tuple[int, int, int]]:
    """Yield (group, block, stride) of all blocks, counted from 1.

    The first block of each group but the first one halves the resolution, or with `strides_last` the last block of
    each group but the last one.
    """
    for group, num_blocks in enumerate(group_blocks, start=1):
        for block in range(1, num_blocks + 1):
            halves = block == num_blocks and group < len(group_blocks) if strides_last else block == 1 and group > 1
            yield group, block, 2 if halves else 1


def residual_block(
    x: tf.Tensor,
    names: Sequence[str | None],
    strides: Sequence[int],
    conv: Callable[[tf.Tensor, str, int], tf.Tensor],
    norm: Callable[[tf.Tensor, str], tf.Tensor],
    preact: str | None = None,
    identity: Callable[[tf.Tensor, int], tf.Tensor] = lambda x, stride: x[:, ::stride, ::stride],
    branch: Callable[[tf.Tensor], tf.Tensor] = lambda x: x,
) -> tf.Tensor:
    """Return the output of a block: of version 1 (arXiv:1512.03385), or with `preact` of version 2 (arXiv:1603.05027).

    Args:
        names: of the projection, None where there is none, and of the convolutions.
        strides: of the convolutions.
        conv: (x, name, stride) -> the convolution; called for the projection first, as the families create them.
        norm: (x, name) -> the BN behind the convolution of this name, or before all of them the one named `preact`.
        identity: (x, stride) -> the shortcut without a projection.
        branch: what becomes of the last convolution's output before the sum.
    """
    projection, *names = names
    y, stride = tf.nn.relu(norm(x, preact)) if preact else x, math.prod(strides)
    shortcut = conv(y, projection, stride) if projection else identity(x, stride)
    shortcut = norm(shortcut, projection) if projection and not preact else shortcut
    for i, (name, stride) in enumerate(zip(names, strides, strict=True), start=1):
        y, is_last = conv(y, name, stride), i == len(names)
        y = y if is_last and preact else norm(y, name)
        y = y if is_last else tf.nn.relu(y)
    y = shortcut + branch(y)
    return y if preact else tf.nn.relu(y)
