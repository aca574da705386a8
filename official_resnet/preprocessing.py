"""Image -> image: pure functions of whole batches [b, h, w, c], the same eagerly and inside tf.data.

Batches and not single pictures, because a map over single pictures costs many times the arithmetic.
"""

import tensorflow as tf


def pad_crop_flip(images, seed, pad=4, flip=True, size=None):
    """Pad each picture with zeros, crop it back to its size anywhere, mirror it half of the time.

    Each picture has its own offsets and its own coin. He et al. 2015, arXiv:1512.03385, Sec. 4.2.

    Args:
        images: [b, h, w, c] of any type, h, w and c static.
        seed: two integers, tensor or not; the only source of randomness.
        pad: zeros on every side, pixels.
        flip: whether to mirror at all.
        size: height and width of the crop; None crops to h x w.

    Returns:
        Pictures of the type of `images`, [b, size, size, c] or [b, h, w, c].
    """
    height, width = images.shape[1:3]
    last_top, last_left = height + 2 * pad - (size or height), width + 2 * pad - (size or width)
    if min(last_top, last_left) < 0:
        raise ValueError(f'pictures of {height} x {width} padded by {pad} hold no crop of {size} x {size}')
    bits = tf.random.stateless_uniform(
        [3, tf.shape(images)[0]], seed, minval=None, maxval=None, dtype=tf.int32, alg='philox'
    )
    # 2**32 is no multiple of the number of offsets: of 9 (pad 4), some are more frequent by 1 in 500 million.
    tops, lefts, coins = tf.unstack(tf.math.floormod(bits, [[last_top + 1], [last_left + 1], [2]]))
    flips = tf.logical_and(tf.equal(coins, 1), flip)
    return crop_flip(images, tops, lefts, flips, pad, size)


def crop_flip(images, tops, lefts, flips, pad, size=None):
    """Cut h x w, or size x size, out of each zero-padded picture, then mirror where asked.

    Args:
        images: [b, h, w, c] of any type, h, w and c static.
        tops, lefts: int32 [b], first row and column of the cut in the padded picture: 0..2*pad, or
            0..h+2*pad-size and 0..w+2*pad-size.
        flips: bool [b], which cuts to mirror left to right.
        pad: zeros on every side, pixels.
        size: height and width of the cut; None cuts h x w.

    Returns:
        Pictures of the type of `images`, [b, size, size, c] or [b, h, w, c].
    """
    num_images = tf.shape(images)[0]
    height, width, channels = images.shape[1:]
    padded_height, padded_width = height + 2 * pad, width + 2 * pad
    # tf.pad is several times faster with the channels folded into the width.
    rows_of_bytes = tf.reshape(images, [num_images, height, width * channels])
    padded = tf.pad(rows_of_bytes, [[0, 0], [pad, pad], [pad * channels, pad * channels]])
    pixels = tf.reshape(padded, [num_images * padded_height * padded_width, channels])

    height, width = size or height, size or width  # from here on of the cut
    rows = (tf.range(num_images) * padded_height + tops)[:, None] + tf.range(height)  # [b, h]
    columns = tf.where(flips[:, None], tf.range(width)[::-1], tf.range(width)) + lefts[:, None]  # [b, w]
    return tf.gather(pixels, rows[:, :, None] * padded_width + columns[:, None, :])


def pad_to(images, height, width):
    """Put each picture into the middle of height x width zeros; an odd row or column of them goes last.

    Args:
        images: [b, h, w, c] of any type, h and w static.
        height, width: of the result, not below h and w; None for those of `images`.
    """
    rows, columns = (height or images.shape[1]) - images.shape[1], (width or images.shape[2]) - images.shape[2]
    if rows == columns == 0:
        return images
    top, left = rows // 2, columns // 2
    return tf.pad(images, [[0, 0], [top, rows - top], [left, columns - left], [0, 0]])


def per_image_standardization(images):
    """Give each picture mean 0 and standard deviation 1.

    Divides by max(std, 1 / sqrt(h * w * c)), so that a picture of one colour becomes zeros:
    tf.image.per_image_standardization of a batch.

    Args:
        images: [b, h, w, c], any number type, any range.

    Returns:
        float32 [b, h, w, c].
    """
    height, width, channels = images.shape[1:]
    num_values = height * width * channels
    flat = tf.reshape(tf.cast(images, tf.float32), [-1, num_values])
    flat -= tf.reduce_mean(flat, axis=1, keepdims=True)
    variance = tf.reduce_mean(tf.square(flat), axis=1, keepdims=True)
    flat *= tf.math.rsqrt(tf.maximum(variance, 1 / num_values))
    return tf.reshape(flat, [-1, height, width, channels])


def no_normalization(images):
    """Only cast to float32: values 0..255 stay 0..255."""
    return tf.cast(images, tf.float32)


def unit_range(images):
    """Scale 0..255 to 0..1: torchvision's ToTensor."""
    return tf.cast(images, tf.float32) / 255


def affine_name(order='RGB', scale=1.0, mean=(0.0,), std=(1.0,)):
    """Return the name in NORMALIZATIONS of (picture * scale - mean) / std.

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
        mean, std = ([float(number) for number in numbers.split(',')] for numbers in offsets)
    except ValueError:
        raise KeyError(name) from None
    if kind != 'affine' or order not in ('RGB', 'BGR'):
        raise KeyError(name)

    def normalize(images):
        images = tf.cast(images, tf.float32)
        images = images[..., ::-1] if order == 'BGR' else images
        return (images * scale - tf.constant(mean)) / tf.constant(std)

    return normalize


class _Normalizations(dict):
    """The table below, in which every name that `affine_name` makes can be looked up, too."""

    def __missing__(self, name):
        return _affine(name)


# name -> function of a batch [b, h, w, c], uint8 or float in 0..255, that returns float32
NORMALIZATIONS = _Normalizations({
    'per_image_standardization': per_image_standardization,
    'unit_range': unit_range,
    'none': no_normalization,
})
