"""Augment a batch of images, [b, h, w, c], by pure functions that compute the same eagerly and inside tf.data.

They take whole batches because mapping over single small images costs many times as much as the arithmetic.
"""

import tensorflow as tf


def pad_crop_flip(
    images: tf.Tensor,
    seed: tf.Tensor,
    pad: int = 4,
    flip: bool | tf.Tensor = True,
    size: int | None = None,
    part: tuple[int, int] | None = None,
) -> tf.Tensor:
    """Pad each image with zeros, crop it at a random place and, if `flip`, mirror half of the images.

    Each image gets its own offsets and its own toss of a coin. Source: He et al. 2015, arXiv:1512.03385, Sec. 4.2.

    Args:
        images: Images of any dtype, which the crops keep, [b, h, w, c], where h, w and c are static.
        seed: Two integers, the only source of randomness: in training, --seed and the step.
        pad: Number of zero pixels added on every side.
        flip: Whether to mirror half of the images, or which of them to mirror, bool [b].
        size: Height and width of the crops, [b, size, size, c]. None crops h x w.
        part: (first, total) if `images` are only a part of a batch of `total` images, from its image `first` on. They
            get the offsets and coins that they would get in the whole batch.
    """
    height, width = images.shape[1:3]
    last_top, last_left = height + 2 * pad - (size or height), width + 2 * pad - (size or width)
    if min(last_top, last_left) < 0:
        raise ValueError(f'images of {height} x {width} padded by {pad} are smaller than a crop of {size} x {size}')
    bits = tf.random.stateless_uniform(
        [3, part[1] if part else tf.shape(images)[0]], seed, minval=None, maxval=None, dtype=tf.int32, alg='philox'
    )
    if part:
        bits = bits[:, part[0] : part[0] + tf.shape(images)[0]]
    # As 2**32 is not a multiple of the number of offsets, 9 for pad 4, some are more frequent by 1 in 500 million.
    tops, lefts, coins = tf.unstack(tf.math.floormod(bits, [[last_top + 1], [last_left + 1], [2]]))
    flips = flip if tf.is_tensor(flip) else tf.logical_and(tf.equal(coins, 1), flip)
    return crop_flip(images, tops, lefts, flips, pad, size)


def crop_flip(
    images: tf.Tensor, tops: tf.Tensor, lefts: tf.Tensor, flips: tf.Tensor, pad: int, size: int | None = None
) -> tf.Tensor:
    """Crop h x w, or size x size, out of each zero-padded image, then mirror the crops that `flips` selects.

    Args:
        images, pad, size: See pad_crop_flip.
        tops, lefts: First row and column of each crop in the padded image, int32 [b]: 0..2*pad, or with `size`
            0..h+2*pad-size and 0..w+2*pad-size.
        flips: Which crops to mirror left to right, bool [b].
    """
    num_images = tf.shape(images)[0]
    height, width, channels = images.shape[1:]
    padded_height, padded_width = height + 2 * pad, width + 2 * pad
    # tf.pad is several times faster with the channels folded into the width.
    folded = tf.reshape(images, [num_images, height, width * channels])
    padded = tf.pad(folded, [[0, 0], [pad, pad], [pad * channels, pad * channels]])
    pixels = tf.reshape(padded, [num_images * padded_height * padded_width, channels])

    height, width = size or height, size or width  # from here on, the size of a crop
    rows = (tf.range(num_images) * padded_height + tops)[:, None] + tf.range(height)  # [b, h]
    columns = tf.where(flips[:, None], tf.range(width)[::-1], tf.range(width)) + lefts[:, None]  # [b, w]
    return tf.gather(pixels, rows[:, :, None] * padded_width + columns[:, None, :])


def pad_to(images: tf.Tensor, height: int | None, width: int | None) -> tf.Tensor:
    """Put each image, [b, h, w, c], in the middle of height x width zeros. An odd row or column is added at the end.

    h, w and c are static. `height` and `width` are at least h and w; None keeps h or w.
    """
    rows, columns = (height or images.shape[1]) - images.shape[1], (width or images.shape[2]) - images.shape[2]
    if rows == columns == 0:
        return images
    top, left = rows // 2, columns // 2
    return tf.pad(images, [[0, 0], [top, rows - top], [left, columns - left], [0, 0]])
