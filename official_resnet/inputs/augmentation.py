"""Image -> image: pure functions, the same eagerly and inside tf.data.

Small pictures of one size go as whole batches [b, h, w, c], because a map over single pictures costs many times the
arithmetic; encoded pictures, of whatever size, one by one.
"""

import tensorflow as tf


def pad_crop_flip(images, seed, pad=4, flip=True, size=None, part=None):
    """Pad each picture with zeros, crop it back to its size anywhere, mirror it half of the time.

    Each picture has its own offsets and its own coin. He et al. 2015, arXiv:1512.03385, Sec. 4.2.

    Args:
        images: [b, h, w, c] of any type, h, w and c static.
        seed: two integers, tensor or not; the only source of randomness.
        pad: zeros on every side, pixels.
        flip: whether to mirror at all.
        size: height and width of the crop; None crops to h x w.
        part: (first, total) where `images` are a part of a batch: the first's place in it, and its pictures. They
            get what they would get in the whole.

    Returns:
        Pictures of the type of `images`, [b, size, size, c] or [b, h, w, c].
    """
    height, width = images.shape[1:3]
    last_top, last_left = height + 2 * pad - (size or height), width + 2 * pad - (size or width)
    if min(last_top, last_left) < 0:
        raise ValueError(f'pictures of {height} x {width} padded by {pad} hold no crop of {size} x {size}')
    bits = tf.random.stateless_uniform(
        [3, part[1] if part else tf.shape(images)[0]], seed, minval=None, maxval=None, dtype=tf.int32, alg='philox'
    )
    if part:
        bits = bits[:, part[0] : part[0] + tf.shape(images)[0]]
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


LONGEST = 32  # times its width that a picture's length is looked at in evaluation


def train_view(jpeg, boxes, seed, views, flip=True):
    """Cut a random part out of a JPEG picture, mirror it half of the time, resize it to a square.

    The part contains, with views.use_boxes, a tenth of one of the boxes (of the picture, if there is none), has an
    aspect of 3/4 to 4/3 and views.min_area to all of the picture; after 100 vain attempts it is the whole picture.
    Only what is cut out is decoded. arXiv:1409.4842 Sec. 6, with the numbers of official/resnet.

    Args:
        jpeg: string [].
        boxes: float32 [n, 4], ymin, xmin, ymax, xmax in 0..1; n may be 0.
        seed: two integers, tensor or not; the only source of randomness.
        views: Views.
        flip: whether to mirror at all.

    Returns:
        float32 [size, size, 3], RGB, 0..255.
    """
    from official_resnet.inputs import images  # late: images in memory need no decoder

    shape = images.jpeg_shape(jpeg)
    if not views.use_boxes:
        boxes = tf.zeros([0, 4])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.expand_dims(boxes, 0),
        seed,
        min_object_covered=0.1 if views.use_boxes else 0.0,
        aspect_ratio_range=(0.75, 4 / 3),
        area_range=(views.min_area, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)  # top, left, height, width
    image = images.decode_jpeg(jpeg, views, window)
    coin = tf.random.stateless_uniform([], tf.random.experimental.stateless_fold_in(seed, 1))
    # before the resizing, as official/resnet: mirroring and the bilinear of TensorFlow 1 do not commute
    image = tf.cond(tf.logical_and(coin < 0.5, flip), lambda: tf.reverse(image, [1]), lambda: image)
    return _resize(image, [views.size, views.size], views)


def test_view(picture, views):
    """Resize the shorter side of an encoded picture to views.shorter_side, cut test_size x test_size out of the middle.

    Args:
        picture: string [], JPEG or PNG.
        views: Views.

    Returns:
        float32 [test_size, test_size, 3], RGB, 0..255.
    """
    size = views.test_size
    return tf.ensure_shape(_middle(_shorter_side(picture, views), views), [size, size, 3])


def ten_views(picture, views):
    """Return the corners and the middle of an encoded picture, and their mirror images, as `test_view` resizes it.

    arXiv:1512.03385 Sec. 3.4, after Krizhevsky 2012.

    Returns:
        float32 [10, test_size, test_size, 3].
    """
    image, size = _shorter_side(picture, views), views.test_size
    corners = [image[:size, :size], image[:size, -size:], image[-size:, :size], image[-size:, -size:]]
    crops = tf.stack([*corners, _middle(image, views)])
    return tf.ensure_shape(tf.concat([crops, tf.reverse(crops, [2])], 0), [10, size, size, 3])


def _shorter_side(picture, views):
    """Return an encoded picture, its shorter side resized: float32 [h, w, 3], each at least views.test_size.

    Of what is more than LONGEST times as long as wide, only the middle: a picture of 1 x 60000 would take 47 GB.
    """
    from official_resnet.inputs import images

    image = images.decode_jpeg(picture, views)
    shorter = tf.reduce_min(tf.shape(image)[:2])
    cut = tf.maximum(tf.shape(image)[:2] - LONGEST * shorter, 0) // 2
    image = image[cut[0] : tf.shape(image)[0] - cut[0], cut[1] : tf.shape(image)[1] - cut[1]]
    shape = tf.shape(image)[:2]
    if views.resize == 'antialias':
        size = shape * views.shorter_side // shorter  # in whole numbers, as torchvision
    else:  # in float32, as official/resnet: 255.99998 becomes 255
        size = tf.cast(tf.cast(shape, tf.float32) * (views.shorter_side / tf.cast(shorter, tf.float32)), tf.int32)
    return _resize(image, tf.maximum(size, views.test_size), views)


def _resize(image, size, views):
    """Return a picture [h, w, 3] bilinearly resized to size, int32 [2]: float32."""
    if views.resize == 'antialias':
        return tf.image.resize(image, size, antialias=True)
    resized = tf.raw_ops.ResizeBilinear(images=image[None], size=size, align_corners=False, half_pixel_centers=False)
    return resized[0]


def _middle(image, views):
    """Cut test_size x test_size out of the middle; what is half a pixel goes as the two models of `resize` have it."""
    spare = tf.shape(image)[:2] - views.test_size
    top, left = tf.unstack(tf.cast(tf.round(spare / 2), tf.int32) if views.resize == 'antialias' else spare // 2)
    return image[top : top + views.test_size, left : left + views.test_size]
