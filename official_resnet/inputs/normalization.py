"""Pixel values -> what a network is fed: pure functions of batches, found by name in NORMALIZATIONS.

TensorFlow is imported by the functions: the names alone are needed without it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def per_image_standardization(images: 'tf.Tensor') -> 'tf.Tensor':
    """Give each image mean 0 and standard deviation 1.

    Divides by max(std, 1 / sqrt(h * w * c)), so that an image of one colour becomes zeros:
    tf.image.per_image_standardization of a batch.

    Args:
        images: [b, h, w, c], any number type, any range.

    Returns:
        float32 [b, h, w, c].
    """
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    num_values = height * width * channels
    flat = tf.reshape(tf.cast(images, tf.float32), [-1, num_values])
    flat -= tf.reduce_mean(flat, axis=1, keepdims=True)
    variance = tf.reduce_mean(tf.square(flat), axis=1, keepdims=True)
    flat *= tf.math.rsqrt(tf.maximum(variance, 1 / num_values))
    return tf.reshape(flat, [-1, height, width, channels])


def no_normalization(images: 'tf.Tensor') -> 'tf.Tensor':
    """Only cast to float32: values 0..255 stay 0..255."""
    import tensorflow as tf

    return tf.cast(images, tf.float32)


def unit_range(images: 'tf.Tensor') -> 'tf.Tensor':
    """Scale 0..255 to 0..1: torchvision's ToTensor."""
    import tensorflow as tf

    return tf.cast(images, tf.float32) / 255


def affine_name(
    order: str = 'RGB', scale: float = 1.0, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> str:
    """Return the name in NORMALIZATIONS of (image * scale - mean) / std.

    Args:
        order: of the channels that the net is fed, 'RGB' or 'BGR'; mean and std are in this order.
        scale: of pixel values 0..255.
        mean, std: a number a channel, or one for all.
    """
    return ':'.join(['affine', order, repr(float(scale)), *(','.join(map(repr, map(float, v))) for v in (mean, std))])


def _affine(name):
    """Return the function of a name that `affine_name` made; KeyError where it did not."""
    try:
        kind, order, scale, *offsets = name.split(':')
        scale = float(scale)
        mean, std = ([float(number) for number in numbers.split(',')] for numbers in offsets)  # lists, repeated below
    except ValueError:
        raise KeyError(name) from None
    if kind != 'affine' or order not in ('RGB', 'BGR'):
        raise KeyError(name)

    def normalize(images):
        import tensorflow as tf

        images = tf.cast(images, tf.float32)
        images = images[..., ::-1] if order == 'BGR' else images
        width, channels = images.shape[-2:]
        if None in (width, channels):
            return (images * scale - tf.constant(mean)) / tf.constant(std)
        # The same numbers along a whole row of pixels: several times as fast as numbers for three channels.
        means, stds = (tf.constant(values * (width * channels // len(values))) for values in (mean, std))
        rows = tf.reshape(images, [-1, width * channels])
        return tf.reshape((rows * scale - means) / stds, tf.shape(images))

    return normalize


class _Normalizations(dict):
    """The table below, in which every name that `affine_name` makes can be looked up, too."""

    def __missing__(self, name):
        return _affine(name)


# name -> function of a batch [b, h, w, c], uint8 or float in 0..255, that returns float32
NORMALIZATIONS = _Normalizations(
    {
        'per_image_standardization': per_image_standardization,
        'unit_range': unit_range,
        'none': no_normalization,
    }
)

OFFICIAL = affine_name(mean=(123.68, 116.78, 103.94))  # official/resnet: RGB minus the means, 0..255
PUBLISHED = {
    'official': OFFICIAL,
    'torch': affine_name(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    'inception': affine_name(scale=1 / 127.5, mean=(1.0,)),  # -1..1
}
