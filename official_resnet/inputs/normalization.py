"""Turn pixel values into a network's input, by pure functions of batches. Only the functions import TensorFlow."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def per_image_standardization(images: 'tf.Tensor') -> 'tf.Tensor':
    """Give each image, [h, w, c] of any dtype and range, mean 0 and standard deviation 1: float32 [b, h, w, c].

    The divisor is max(std, 1 / sqrt(h * w * c)), so an image of one colour becomes zeros. This is
    tf.image.per_image_standardization of a batch.
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
    """Cast to float32 only: values 0..255 stay 0..255."""
    import tensorflow as tf

    return tf.cast(images, tf.float32)


def unit_range(images: 'tf.Tensor') -> 'tf.Tensor':
    """Scale 0..255 to 0..1, as torchvision's ToTensor does."""
    return no_normalization(images) / 255


class _Normalizations(dict):
    """The table below, which also knows every name that affine.affine_name makes."""

    def __missing__(self, name):
        from official_resnet.inputs import affine

        return affine.function_of(name)


# Each function takes a batch [b, h, w, c], uint8 or float in 0..255, and returns float32.
NORMALIZATIONS = _Normalizations(
    per_image_standardization=per_image_standardization, unit_range=unit_range, none=no_normalization
)
