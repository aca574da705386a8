"""The operations that the families' definitions (`run`) use, as plain formulas on [n, h, w, c].

Whatever the type of a checkpoint's values, they are used in float32.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

Array = np.ndarray


def conv2d(x: tf.Tensor, kernel: Array, stride: int, bias: Array | None = None, padding: str = 'fixed') -> tf.Tensor:
    """Convolve with a kernel [h, w, in / cardinality, out], one group of channels after the other.

    'fixed' padding is (kernel - 1) // 2 on each side, whatever the stride and the size of the image, as in PyTorch,
    Caffe, slim's conv2d_same and official/resnet. 'SAME' is TensorFlow's.
    """
    kernel = np.asarray(kernel, 'float32')
    side = [(kernel.shape[0] - 1) // 2] * 2
    pads = [[0, 0], side, side, [0, 0]] if padding == 'fixed' else padding
    cardinality = x.shape[-1] // kernel.shape[2]
    parts = zip(tf.split(x, cardinality, -1), tf.split(kernel, cardinality, -1), strict=True)
    x = tf.concat([tf.nn.conv2d(*part, stride, pads) for part in parts], -1)
    return x if bias is None else x + np.asarray(bias, 'float32')


def batch_norm(x: tf.Tensor, gamma: Array, beta: Array, mean: Array, variance: Array, *, epsilon: float) -> tf.Tensor:
    """Normalise by moving statistics, [channels] each."""
    gamma, beta, mean, variance = (np.asarray(value, 'float32') for value in (gamma, beta, mean, variance))
    return (x - mean) / tf.sqrt(variance + np.float32(epsilon)) * gamma + beta


def max_pool(x: tf.Tensor, pads: Sequence[Sequence[int]], value: float = -np.inf) -> tf.Tensor:
    """Pool 3x3 windows at stride 2. `pads` are (before, after) for rows and columns, filled with `value`."""
    return tf.nn.max_pool2d(tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value), 3, 2, 'VALID')


def mean_pool(x: tf.Tensor) -> tf.Tensor:
    """Average 2x2 windows at stride 2; at odd edges, only the pixels inside (PyTorch's ceil_mode)."""
    pads = [(0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)]
    sums, counts = (tf.nn.avg_pool2d(tf.pad(values, pads), 2, 2, 'VALID') for values in (x, tf.ones_like(x)))
    return sums / counts


def classify(x: tf.Tensor, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the logits of feature maps, float32 [n, classes]: a dense layer on the maps' means."""
    return (tf.reduce_mean(x, [1, 2]) @ np.asarray(kernel, 'float32') + np.asarray(bias, 'float32')).numpy()


def blocks(group_blocks: Sequence[int], strides_last: bool = False) -> Iterator[tuple[int, int, int]]:
    """Yield (group, block, stride) of all blocks, counted from 1.

    The first block of each group after group 1 halves the resolution. With `strides_last` it is the last block of each
    group before the last one.
    """
    for group, num_blocks in enumerate(group_blocks, start=1):
        for block in range(1, num_blocks + 1):
            halves = block == num_blocks and group < len(group_blocks) if strides_last else block == 1 and group > 1
            yield group, block, 2 if halves else 1


def residual_block(
    x: tf.Tensor,
    projection: str | None,
    names: Sequence[str],
    strides: Sequence[int],
    conv: Callable[[tf.Tensor, str, int], tf.Tensor],
    norm: Callable[[tf.Tensor, str], tf.Tensor],
    preact: str | None = None,
    identity: Callable[[tf.Tensor, int], tf.Tensor] = lambda x, stride: x[:, ::stride, ::stride],
    branch: Callable[[tf.Tensor], tf.Tensor] = lambda x: x,
) -> tf.Tensor:
    """Return a block's output: version 1 (arXiv:1512.03385), or with `preact` version 2 (arXiv:1603.05027).

    Args:
        projection: The name of the projection, None if there is none.
        names, strides: Those of the other convolutions.
        conv: (x, name, stride) -> the convolution. The projection comes first, as the families create them.
        norm: (x, name) -> the BN after the convolution of this name, or the one named `preact` before all of them.
        preact: The name of the BN at the start of a block of version 2.
        identity: (x, stride) -> the shortcut without a projection.
        branch: What to do with the last convolution's output before the sum, for example SE.
    """
    y, stride = tf.nn.relu(norm(x, preact)) if preact else x, math.prod(strides)
    shortcut = conv(y, projection, stride) if projection else identity(x, stride)
    shortcut = norm(shortcut, projection) if projection and not preact else shortcut
    for i, (name, stride) in enumerate(zip(names, strides, strict=True), start=1):
        y, is_last = conv(y, name, stride), i == len(names)
        y = y if is_last and preact else norm(y, name)
        y = y if is_last else tf.nn.relu(y)
    y = shortcut + branch(y)
    return y if preact else tf.nn.relu(y)
