"""Turn an encoded image into a network's input, by pure functions that compute the same eagerly and inside tf.data."""

import dataclasses
import math

import tensorflow as tf

from official_resnet.inputs import augmentation
from official_resnet.inputs import jpeg as jpeg_format
from official_resnet.inputs.views import Views

DECODER = 'decode_image'  # name scope of TensorFlow's decoder, which identifies its errors
SEARCHED_BYTES, _EXIF = 2**17, r'\C*(Exif\x00\x00|eXIf)\C*'  # \C is any byte
LONGEST = 32  # evaluation crops an image that is longer than this many times its shorter side


def train_view(
    image: tf.Tensor,
    boxes: tf.Tensor,
    seed: tf.Tensor,
    views: Views,
    flip: bool = True,
    size: int | tf.Tensor | None = None,
) -> tf.Tensor:
    """Return a random part of an image, resized and mirrored half of the time: float32 [size, size, 3], RGB, 0..255.

    `official_crop` or `torch_crop` draws the part, as views.crop says, and of a JPEG only the part is decoded. With
    'pad', the part is as large as the image's middle, see `padded_crop`.

    Args:
        image: A JPEG, string [], or what `decode_jpeg` makes of it, uint8 [h, w, 3]. At the edges of the part, the
            pixels of both may differ, because libjpeg interpolates the colours of their neighbours.
        boxes: ymin, xmin, ymax, xmax of each box, float32 [n, 4] in 0..1; n may be 0.
        seed: Two integers, a tensor or a list. They are the only source of randomness.
        flip: Whether to mirror at all.
        size: Height and width of the result, where they change; None: views.size.
    """
    if views.crop == 'pad':
        return padded_crop(image, seed, views, flip)
    image = tf.convert_to_tensor(image)
    turn = _turn(image, views)
    if image.dtype == tf.uint8:
        shape = tf.shape(image)
    else:
        with tf.name_scope(DECODER):
            shape = tf.io.extract_jpeg_shape(image)  # reads the header only
    if turn is not None:
        shape = tf.where(turn > 4, tf.gather(shape, [1, 0, 2]), shape)
    window = torch_crop(shape, seed, views) if views.crop == 'torch' else official_crop(shape, boxes, seed, views)
    image = _decode(image, views, window, turn)
    coin = tf.random.stateless_uniform([], tf.random.experimental.stateless_fold_in(seed, 1))
    # Mirror before resizing, as official/resnet does: with TensorFlow 1's bilinear resize, the order matters.
    image = tf.cond(tf.logical_and(coin < 0.5, flip), lambda: tf.reverse(image, [1]), lambda: image)
    size = views.size if size is None else size
    return _resize(image, [size, size], views)


def padded_crop(image: tf.Tensor, seed: tf.Tensor, views: Views, flip: bool = True) -> tf.Tensor:
    """Return the middle of an image, shifted by up to an eighth of its size, and mirrored half of the time.

    The shorter side is resized to views.size. What comes in from outside of the middle is 0.
    """
    middle = test_view(image, dataclasses.replace(views, test_size=views.size, test_resize=views.size))
    return augmentation.pad_crop_flip(middle[None], seed, views.size // 8, flip)[0]


def official_crop(shape: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor, views: Views) -> tf.Tensor:
    """Return a random part of an image of `shape` [h, w, c] as official/resnet draws it: top, left, height, width.

    The part has an aspect ratio of 0.75 to 1.33 and an area from views.min_area to all of the image. With
    views.use_boxes it contains a tenth of one of the boxes (or of the image, if it has none). After 100 failed attempts
    it is the whole image. arXiv:1409.4842 Sec. 6, with the numbers of official/resnet.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.expand_dims(boxes if views.use_boxes else tf.zeros([0, 4]), 0),
        seed,
        min_object_covered=0.1 if views.use_boxes else 0.0,
        aspect_ratio_range=(0.75, 1.33),
        area_range=(views.min_area, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def torch_crop(shape: tf.Tensor, seed: tf.Tensor, views: Views) -> tf.Tensor:
    """Return a random part of an image as torchvision's RandomResizedCrop draws it; see official_crop.

    Its area is uniform from views.min_area to 1, and the logarithm of its aspect ratio is uniform between those of 3/4
    and 4/3. After ten attempts that do not fit into the image, it is the largest part of such a ratio in the middle.
    """
    # [10] each. TensorFlow's sampler instead draws the height among those that fit, which prefers small parts.
    areas, ratios, tops, lefts = tf.unstack(tf.random.stateless_uniform([4, 10], seed))
    image = tf.cast(shape[:2], tf.float32)  # height, width
    areas = (views.min_area + (1 - views.min_area) * areas) * image[0] * image[1]
    ratios = tf.exp((2 * ratios - 1) * math.log(4 / 3))
    sizes = tf.round(tf.sqrt(tf.stack([areas / ratios, areas * ratios], 1)))  # [10, 2]
    fits = tf.reduce_all((sizes > 0) & (sizes <= image), 1)
    middle = tf.minimum(image, tf.round(image[::-1] * 4 / 3))
    first = tf.argmax(fits)
    size = tf.where(fits[first], sizes[first], middle)
    place = tf.where(fits[first], tf.stack([tops[first], lefts[first]]) * (image - size + 1), (image - size) / 2)
    return tf.cast(tf.concat([tf.minimum(tf.floor(place), image - size), size], 0), tf.int32)


def test_view(image: tf.Tensor, views: Views) -> tf.Tensor:
    """Resize the shorter side of an image to views.shorter_side and crop test_size in the middle.

    Args:
        image: A JPEG or PNG, string [], or what `decode_jpeg` makes of it, uint8 [h, w, 3].
        views: See Views. The result is float32 [test_size, test_size, 3], RGB, 0..255.
    """
    size = views.test_size
    return tf.ensure_shape(_middle(_shorter_side(image, views), views), [size, size, 3])


def ten_views(image: tf.Tensor, views: Views) -> tf.Tensor:
    """Return crops of the corners and the middle of an image resized as in `test_view`, and their mirror images.

    The result is float32 [10, test_size, test_size, 3], RGB, 0..255. arXiv:1512.03385 Sec. 3.4, after Krizhevsky 2012.
    """
    resized, size = _shorter_side(image, views), views.test_size
    corners = [resized[:size, :size], resized[:size, -size:], resized[-size:, :size], resized[-size:, -size:]]
    crops = tf.stack([*corners, _middle(resized, views)])
    return tf.ensure_shape(tf.concat([crops, tf.reverse(crops, [2])], 0), [10, size, size, 3])


def decode_jpeg(data: tf.Tensor, views: Views, window: tf.Tensor | None = None) -> tf.Tensor:
    """Decode a JPEG, string [], to uint8 [h, w, 3], RGB. Without a window, it also decodes PNG.

    An image that is decoded already is returned, or its window.
    With views.uses_exif, the image is turned. A window, int32 [4], is the part to decode: top, left, height and width
    in pixels of the turned image.
    """
    data = tf.convert_to_tensor(data)
    return _decode(data, views, window, _turn(data, views))


def _turn(data, views):
    """Return the orientation of an image; None if it is not turned, or is decoded and has been turned already."""
    return orientation(data) if views.uses_exif and data.dtype == tf.string else None


def _decode(data, views, window, turn):
    """Compute decode_jpeg, or take the window from an image that is decoded; `turn` is the orientation, None for 1."""
    if data.dtype == tf.uint8:
        return data if window is None else tf.slice(data, [*tf.unstack(window[:2]), 0], [*tf.unstack(window[2:]), 3])
    options = {'channels': 3, 'dct_method': views.dct_method}
    with tf.name_scope(DECODER):
        if turn is None:
            if window is None:
                return tf.io.decode_jpeg(data, **options)
            return tf.io.decode_and_crop_jpeg(data, window, **options)
        swaps, flips = _swaps_and_flips(turn)
        if window is None:
            stored = tf.io.decode_jpeg(data, **options)
        else:
            begin, size = (tf.where(swaps, part[::-1], part) for part in (window[:2], window[2:]))
            begin = tf.where(flips, tf.io.extract_jpeg_shape(data)[:2] - begin - size, begin)
            stored = tf.io.decode_and_crop_jpeg(data, tf.concat([begin, size], 0), **options)
    return tf.cond(turn == 1, lambda: stored, lambda: upright(stored, turn))  # most images are upright


def upright(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turn an image [h, w, c] by its orientation, int32 [] in 1..8."""
    swaps, flips = _swaps_and_flips(turn)
    for axis, flip in enumerate(flips):
        image = tf.cond(flip, lambda image=image, axis=axis: tf.reverse(image, [axis]), lambda image=image: image)
    return tf.cond(swaps, lambda: _transposed(image), lambda: image)


def _transposed(image):
    """Swap the rows and columns of an image [h, w, c]. tf.transpose of bytes prints a line about oneDNN."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    places = tf.range(width)[:, None] + tf.range(height) * width  # [w, h]
    return tf.gather(tf.reshape(image, [height * width, image.shape[-1]]), places)


def _swaps_and_flips(turn):
    """Return whether an orientation swaps rows and columns, and whether it flips the stored rows and columns first."""
    return turn > 4, [tf.reduce_any(turn == list(some)) for some in ((3, 4, 6, 7), (2, 3, 7, 8))]


def orientation(data: tf.Tensor) -> tf.Tensor:
    """Return how EXIF says that a JPEG or PNG, string [], is to be turned, as jpeg.orientation does: int32 [], 1..8.

    Only ops of TensorFlow, because a SavedModel contains it.
    """
    # The loop takes ten times as long as decoding a small image. In a large one, the search takes longer than the loop.
    may_turn = (tf.strings.length(data) > SEARCHED_BYTES) | tf.strings.regex_full_match(data, _EXIF)
    return tf.cond(may_turn, lambda: _orientation(data), lambda: 1)


def _orientation(data):
    size, is_png = tf.strings.length(data), tf.strings.substr(data, 0, 4) == b'\x89PNG'

    def step(place, begin) -> tuple[tf.Tensor, tf.Tensor]:
        """Go from one segment of a JPEG or chunk of a PNG to the next; `begin` is where EXIF begins, 0 if unknown."""
        head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, place, 8), tf.uint8), tf.int32)
        is_png_exif = tf.strings.substr(data, place + 4, 4) == b'eXIf'
        if_png = tf.where(is_png_exif, place + 8, 0), place + 12 + _integer(head[:4], True, size)
        is_exif = (head[1] == 0xE1) & (tf.strings.substr(data, place + 4, 6) == b'Exif\0\0')
        is_last = (head[0] != 0xFF) | (head[1] // 16 == 0xC) | (head[1] == 0xDA)  # the frame header or a scan
        if_jpeg = tf.where(is_exif, place + 10, 0), tf.where(is_last, size, place + 2 + _integer(head[2:4], True, size))
        begin, place = (tf.where(is_png, *either) for either in zip(if_png, if_jpeg, strict=True))
        return place, begin

    start = tf.where(is_png, 8, 2), tf.constant(0)
    place, begin = tf.while_loop(lambda place, begin: (begin == 0) & (place <= size - 8), step, start)
    begin, end = tf.minimum(begin, size), tf.minimum(place - tf.where(is_png, 4, 0), size)
    exif = tf.strings.substr(data, begin, tf.maximum(end - begin, 0))
    is_big, is_small = (tf.strings.substr(exif, 0, 4) == order for order in (b'MM\0*', b'II*\0'))
    digits = tf.cast(tf.io.decode_raw(exif, tf.uint8), tf.int32)
    return tf.cond((begin > 0) & (is_big | is_small), lambda: _tag_of_exif(digits, is_big), lambda: 1)


def _tag_of_exif(exif, is_big):
    """Return the orientation in the first directory of EXIF, int32 [n] of its bytes."""
    length = tf.size(exif)
    place = _integer(exif[4:8], is_big, length)
    count = _integer(exif[place : place + 2], is_big, length)
    entries = exif[place + 2 : place + 2 + 12 * count]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])

    def shorts(column) -> tf.Tensor:  # of 16 bits
        pair = entries[:, column : column + 2]
        return tf.where(is_big, pair[:, 0] * 256 + pair[:, 1], pair[:, 1] * 256 + pair[:, 0])

    values = tf.where(is_big & (shorts(2) == 4), shorts(10), shorts(8))  # 4: an integer of 32 bits
    found = tf.boolean_mask(values, shorts(0) == jpeg_format.ORIENTATION)[:1]
    return tf.reduce_sum(tf.where((1 <= found) & (found <= 8), found, 1)) + tf.cast(tf.size(found) == 0, tf.int32)


def _integer(digits, is_big, most):
    """Return the number that bytes, int32 [n], are, but at most `most`: int32 []."""
    digits = tf.cast(tf.where(is_big, digits[::-1], digits), tf.int64)  # the least significant first
    value = tf.reduce_sum(digits * tf.constant([1, 1 << 8, 1 << 16, 1 << 24], tf.int64)[: tf.size(digits)])
    return tf.cast(tf.minimum(value, tf.cast(most, tf.int64)), tf.int32)


def _shorter_side(encoded, views):
    """Decode an image and resize its shorter side: float32 [h, w, 3], where h and w are at least views.test_size.

    If an image is more than LONGEST times as long as wide, only its middle is used: 1 x 60000 would take 47 GB.
    """
    image = decode_jpeg(encoded, views)
    shorter = tf.reduce_min(tf.shape(image)[:2])
    cut = tf.maximum(tf.shape(image)[:2] - LONGEST * shorter, 0) // 2
    image = image[cut[0] : tf.shape(image)[0] - cut[0], cut[1] : tf.shape(image)[1] - cut[1]]
    shape = tf.shape(image)[:2]
    if views.resize != 'tf1':
        size = shape * views.shorter_side // shorter  # in whole numbers, as torchvision does
    else:  # in float32, as official/resnet does: 255.99998 becomes 255
        size = tf.cast(tf.cast(shape, tf.float32) * (views.shorter_side / tf.cast(shorter, tf.float32)), tf.int32)
    return _resize(image, tf.maximum(size, views.test_size), views)


def _resize(image, size, views):
    """Resize an image [h, w, 3] to `size`, int32 [2], as views.resize says; return float32."""
    if views.resize == 'bicubic':  # overshoots at edges
        return tf.clip_by_value(antialiased(image, size, 'keyscubic'), 0, 255)
    if views.resize == 'antialias':
        return antialiased(image, size)
    return tf.raw_ops.ResizeBilinear(images=image[None], size=size, align_corners=False, half_pixel_centers=False)[0]


def antialiased(image: tf.Tensor, size: tf.Tensor | list[int], kernel: str = 'triangle') -> tf.Tensor:
    """Return tf.image.resize(image, size, antialias=True), equal to the last bit, in less than half of the time.

    TensorFlow's op adds up whole rows, but columns pixel by pixel. So each direction is a call of the op for an image
    of a single column, whose pixels are the rows and whose channels are all that is in a row.

    Args:
        image: uint8 or float32 [h, w, c].
        size: New height and width, int32 [2]. The result is float32.
        kernel: 'triangle', which is bilinear, or 'keyscubic', which is bicubic.
    """
    height, width, channels = tf.shape(image)[0], tf.shape(image)[1], image.shape[-1]
    wide = tf.reshape(_resized_rows(tf.reshape(image, [height, -1]), size[0], kernel), [size[0], width, channels])
    columns = tf.reshape(tf.transpose(wide, [1, 2, 0]), [width, channels * size[0]])  # [w, c, new h]
    return tf.transpose(tf.reshape(_resized_rows(columns, size[1], kernel), [size[1], channels, size[0]]), [2, 0, 1])


def _resized_rows(rows, size, kernel):
    """Resize [n, values] to float32 [size, values], antialiased."""
    scale = tf.cast(size, tf.float32) / tf.cast(tf.shape(rows)[0], tf.float32)
    return tf.raw_ops.ScaleAndTranslate(
        images=rows[None, :, None],
        size=tf.stack([size, 1]),
        scale=tf.stack([scale, 1.0]),
        translation=[0.0, 0.0],
        kernel_type=kernel,
        antialias=True,
    )[0, :, 0]


def _middle(image, views):
    """Crop test_size x test_size from the middle. Half pixels are rounded as torchvision or official/resnet does it."""
    spare = tf.shape(image)[:2] - views.test_size
    top, left = tf.unstack(tf.cast(tf.round(spare / 2), tf.int32) if views.resize != 'tf1' else spare // 2)
    return image[top : top + views.test_size, left : left + views.test_size]
