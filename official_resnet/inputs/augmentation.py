"""Batch of images [b, h, w, c] -> batch of images: pure functions, the same eagerly and inside tf.data.

They take whole batches, because a map over single small images costs many times the arithmetic.
"""

import tensorflow as tf


def pad_crop_flip(
    images: tf.Tensor,
    seed: tf.Tensor,
    pad: int = 4,
    flip: bool = True,
    size: int | None = None,
    part: tuple[int, int] | None = None,
) -> tf.Tensor:
    """Pad each image with zeros, crop it back to its size anywhere, mirror it half of the time if `flip`.

    Each image has its own offsets and its own coin. He et al. 2015, arXiv:1512.03385, Sec. 4.2.

    Args:
        images: [b, h, w, c] of any type, h, w and c static.
        seed: two integers, tensor or not; the only source of randomness.
        pad: zeros on every side, pixels.
        size: height and width of the crops, [b, size, size, c]; None crops h x w.
        part: (first, total) where `images` are a part of a batch of `total` images that begins with the image number
            `first` of it. They get what they would get in the whole.
    """
    height, width = images.shape[1:3]
    last_top, last_left = height + 2 * pad - (size or height), width + 2 * pad - (size or width)
    if min(last_top, last_left) < 0:
        raise ValueError(f'images of {height} x {width} padded by {pad} hold no crop of {size} x {size}')
    bits = tf.random.stateless_uniform(
        [3, part[1] if part else tf.shape(images)[0]], seed, minval=None, maxval=None, dtype=tf.int32, alg='philox'
    )
    if part:
        bits = bits[:, part[0] : part[0] + tf.shape(images)[0]]
    # 2**32 is no multiple of the number of offsets: of 9 (pad 4), some are more frequent by 1 in 500 million.
    tops, lefts, coins = tf.unstack(tf.math.floormod(bits, [[last_top + 1], [last_left + 1], [2]]))
    flips = tf.logical_and(tf.equal(coins, 1), flip)
    return crop_flip(images, tops, lefts, flips, pad, size)


def crop_flip(
    images: tf.Tensor, tops: tf.Tensor, lefts: tf.Tensor, flips: tf.Tensor, pad: int, size: int | None = None
) -> tf.Tensor:
    """Cut h x w, or size x size, out of each zero-padded image, then mirror where asked.

    Args:
        images, pad, size: see pad_crop_flip.
        tops, lefts: int32 [b], first row and column of the cut in the padded image: 0..2*pad, or
            0..h+2*pad-size and 0..w+2*pad-size.
        flips: bool [b], which cuts to mirror left to right.
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


def pad_to(images: tf.Tensor, height: int | None, width: int | None) -> tf.Tensor:
    """Put each image, h and w static, into the middle of height x width zeros; an odd row or column goes last.

    `height` and `width` are not below h and w; None keeps these.
    """
    rows, columns = (height or images.shape[1]) - images.shape[1], (width or images.shape[2]) - images.shape[2]
    if rows == columns == 0:
        return images
    top, left = rows // 2, columns // 2
    return tf.pad(images, [[0, 0], [top, rows - top], [left, columns - left], [0, 0]])
