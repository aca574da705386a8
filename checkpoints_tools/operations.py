"""The layers of which the families' own definitions consist, as plain formulas on [n, h, w, c]: nothing fused."""

import numpy as np
import tensorflow as tf


def conv2d(x: tf.Tensor, kernel: np.ndarray, stride: int = 1, padding: str = 'symmetric') -> tf.Tensor:
    """Convolve with a kernel [h, w, in / groups, out], without bias, one group of channels after the other.

    'symmetric' padding is (kernel - 1) // 2 on each side, whatever the stride and the size of the image: PyTorch's,
    Caffe's, slim's conv2d_same and the fixed padding of official/resnet. 'SAME' is TensorFlow's.
    """
    kernel = np.asarray(kernel, 'float32')
    if padding == 'symmetric':
        pads = [(kernel.shape[0] - 1) // 2] * 2
        padding = [[0, 0], pads, pads, [0, 0]]
    groups = x.shape[-1] // kernel.shape[2]
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([tf.nn.conv2d(*part, stride, padding) for part in parts], -1)


def batch_norm(x: tf.Tensor, gamma, beta, mean, variance, epsilon: float) -> tf.Tensor:
    """Normalise by moving statistics."""
    return (x - mean) / tf.sqrt(variance + np.float32(epsilon)) * gamma + beta


def max_pool(x: tf.Tensor, pads: tuple[int, int], value: float = -np.inf) -> tf.Tensor:
    """Return the largest of each 3x3 at stride 2, after `pads` rows and columns of a value before and behind."""
    x = tf.pad(x, [[0, 0], pads, pads, [0, 0]], constant_values=value)
    return tf.nn.max_pool2d(x, 3, 2, 'VALID')


def classify(x: tf.Tensor, kernel, bias) -> np.ndarray:
    """Return the logits, float32 [n, classes], of feature maps: a dense layer on their means."""
    return (tf.reduce_mean(x, [1, 2]) @ kernel + bias).numpy()
