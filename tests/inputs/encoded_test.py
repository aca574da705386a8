"""Encoded images -> the network's input: by hand, against TensorFlow 1's resize and Pillow, and over many seeds."""

import io

import numpy as np
import pytest
import tensorflow as tf
from fixtures import ilsvrc, imagenet_shards
from fixtures.batches import message_of
from PIL import Image

from official_resnet.inputs import encoded
from official_resnet.inputs.views import RESIZES, Views

NO_BOXES = np.zeros([0, 4], np.float32)
# test_size 2 out of the shorter side resized to 4
SMALL = {resize: Views(size=2, test_size=2, test_resize=4, resize=resize) for resize in RESIZES}
KERNELS = {'bilinear': 'triangle', 'bicubic': 'keyscubic'}
FILTERS = {'antialias': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
BOTH = pytest.mark.parametrize('resize', ['tf1', 'antialias'])


def encode(pixels, kind='PNG'):
    """Return an image's bytes; JPEGs are as exact as they can be."""
    return imagenet_shards.encoded(pixels, kind, **({'quality': 100, 'subsampling': 0} if kind == 'JPEG' else {}))


def noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def coordinates(height=256, width=256):
    """Return a JPEG whose red is its column and whose green is its row, as shares of 255."""
    rows, columns = np.indices((height, width)) * 255 / np.array([height - 1, width - 1])[:, None, None]
    return encode(np.stack([columns, rows, np.full_like(rows, 128)], -1).round(), 'JPEG')


def sample():
    """Return [JPEG] of ImageNet's images, in the order of their synsets."""
    return [jpeg for _, (_, jpeg) in sorted(ilsvrc.sample().items())]


def train_views(jpeg, seeds, views, boxes=NO_BOXES):
    """Return train_view of each seed, by tf.data."""
    dataset = tf.data.Dataset.range(seeds).map(
        lambda i: encoded.train_view(jpeg, tf.constant(boxes), tf.stack([7, i]), views), num_parallel_calls=2
    )
    return np.stack(list(dataset.as_numpy_iterator()))


def windows(images, side=256):
    """Return ymin, xmin, ymax, xmax in pixels and whether mirrored, of train views of `coordinates`, resize 'tf1'.

    That takes its first column from the left edge of the window, and column j from j / size of its width.
    """
    size = images.shape[1]
    steps = np.arange(size)
    scale = (side - 1) / 255
    slope, left = np.polyfit(steps, images[..., 0].mean(1).T * scale, 1)
    height, top = np.polyfit(steps, images[..., 1].mean(2).T * scale, 1)
    mirrored = slope < 0  # and then its first column is the right edge
    left = np.where(mirrored, left + 1 + slope * size, left)
    return np.stack([top, left, top + height * size, left + abs(slope) * size], 1), mirrored


# --- by hand ---------------------------------------------------------------------------------------------------


@BOTH
def test_ten_views_of_sixteen_pixels(resize):
    views = encoded.ten_views(encode(np.arange(16).reshape(4, 4)), SMALL[resize])
    assert views.shape == (10, 2, 2, 3) and views.dtype == tf.float32
    expected = [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]], [[5, 6], [9, 10]]]
    np.testing.assert_allclose(views[:5, :, :, 1], expected, atol=1e-5)
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])


@pytest.mark.parametrize(
    'resize,expected',
    [
        ('tf1', {False: [0, 100, 200, 40], True: [40, 200, 100, 0]}),  # the first of eight columns, each time
        # a triangle over 16 columns: 3/4 of its own block, 1/8 of either neighbour; 6/7 and 1/7 at the border
        ('antialias', {False: [100 / 7, 100, 167.5, 440 / 7], True: [440 / 7, 167.5, 100, 100 / 7]}),
    ],
)
def test_the_whole_image_and_its_mirror_image(resize, expected):
    """No part has all of the area and another aspect, so it is the image. It is mirrored before it is resized."""
    blocks = encode(np.kron([[0, 100, 200, 40]] * 4, np.ones([8, 8])), 'JPEG')  # which keeps these levels exactly
    seen = train_views(blocks, 40, Views(size=4, min_area=1.0, resize=resize))[..., 0]
    mirrored = [bool(row[0, 0] > row[0, 3]) for row in seen]
    assert 10 < sum(mirrored) < 30
    for row, is_mirrored in zip(seen, mirrored, strict=True):
        np.testing.assert_allclose(row, [expected[is_mirrored]] * 4, atol=1e-4)


# --- against others --------------------------------------------------------------------------------------------


def shapes_of_official(height, width, side):
    """Return (h, w) by official/resnet's rule: float32 throughout, truncated."""
    ratio = np.float32(side) / np.float32(min(height, width))
    return int(np.float32(height) * ratio), int(np.float32(width) * ratio)


SHORT_BY_ONE = next(n for n in range(100, 3000) if shapes_of_official(n, n, 256)[0] == 255)


@pytest.mark.parametrize(
    'height,width,crop',
    [
        *((375, 500, 224), (500, 333, 224), (100, 100, 224), (300, 1000, 224), (SHORT_BY_ONE, 400, 224)),
        (SHORT_BY_ONE, SHORT_BY_ONE, 256),  # official's 255.99998 would leave 255 of 256 pixels
    ],
)
def test_official_evaluation(height, width, crop):
    """tf.compat.v1.image.resize to official's size, but no less than the crop, cut out in whole numbers."""
    rows, columns = np.maximum(shapes_of_official(height, width, 256), crop)
    resized = tf.compat.v1.image.resize(noise(height, width), [rows, columns]).numpy()
    top, left = (rows - crop) // 2, (columns - crop) // 2
    view = encoded.test_view(encode(noise(height, width)), Views(test_size=crop, test_resize=256))
    np.testing.assert_array_equal(view, resized[top : top + crop, left : left + crop])


def test_antialiased_evaluation_of_imagenet_is_pillows():
    """Within a level; Pillow rounds after either direction."""
    views = Views(test_size=56, resize='antialias')
    for jpeg in sample()[::3]:
        image = Image.open(io.BytesIO(jpeg)).convert('RGB')
        size = tuple(int(64 * side / min(image.size)) for side in image.size)
        left, top = (round((side - 56) / 2) for side in size)
        expected = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 56, top + 56))
        view = encoded.test_view(jpeg, views).numpy()
        assert np.abs(view - np.asarray(expected)).max() <= 1.001


@pytest.mark.parametrize(
    'shape,size',
    [
        *(((37, 50, 3), (16, 16)), ((50, 37, 3), (23, 8)), ((8, 9, 3), (20, 31)), ((30, 7, 3), (10, 14))),
        *(
            ((1, 1, 3), (4, 5)),
            ((1, 40, 3), (4, 4)),
            ((40, 1, 3), (3, 1)),
            ((16, 16, 3), (16, 16)),
            ((9, 8, 1), (3, 5)),
        ),
    ],
)
@pytest.mark.parametrize('kind', ['uint8', 'float32'])
@pytest.mark.parametrize('method,kernel', KERNELS.items())
def test_antialiased_is_that_of_tensorflow_to_the_last_bit(shape, size, kind, method, kernel):
    image = np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(kind)
    expected = tf.image.resize(image, size, method, antialias=True)
    for new_size in (list(size), tf.constant(size)):
        found = encoded.antialiased(tf.constant(image), new_size, kernel)
        assert found.dtype == tf.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('method,kernel', KERNELS.items())
def test_antialiased_imagenet_is_that_of_tensorflow_to_the_last_bit(method, kernel):
    for jpeg in sample()[::9]:
        image = tf.io.decode_jpeg(jpeg, channels=3)
        expected = tf.image.resize(image, [224, 160], method, antialias=True)
        np.testing.assert_array_equal(encoded.antialiased(image, [224, 160], kernel), expected)


@pytest.mark.parametrize('resize', RESIZES)
def test_training_views_of_imagenet_are_of_the_decoded_image(resize):
    """What is decoded is only the part, resized as TensorFlow 1 and Pillow do it."""
    views = Views(size=64, resize=resize, use_boxes=False)
    for i, jpeg in enumerate(sample()[::5]):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(jpeg),
            NO_BOXES[None],
            [7, i],
            min_object_covered=0.0,
            aspect_ratio_range=(0.75, 1.33),
            area_range=(0.05, 1),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        (top, left, _), (height, width, _) = begin.numpy(), size.numpy()
        part = tf.io.decode_and_crop_jpeg(jpeg, [top, left, height, width], 3, dct_method=views.dct_method).numpy()
        view = encoded.train_view(jpeg, NO_BOXES, [7, i], views).numpy()
        differences = []
        for either in (part, part[:, ::-1]):
            if resize == 'tf1':
                resized = tf.compat.v1.image.resize(either, [64, 64]).numpy()
            else:
                # Pillow rounds bytes after each of its two passes, and floats never.
                channels = [Image.fromarray(either[..., c].astype('float32')) for c in range(3)]
                channels = [np.asarray(channel.resize((64, 64), FILTERS[resize])) for channel in channels]
                resized = np.clip(np.stack(channels, -1), 0, 255)
            differences.append(np.abs(view - resized).max())
        assert min(differences) <= (0 if resize == 'tf1' else 1e-3), (i, differences)


# --- over many seeds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options,least',
    [({'use_boxes': False}, 0.05), ({'min_area': 0.5}, 0.5), ({'min_area': 0.3, 'use_boxes': False}, 0.3), ({}, 0.1)],
)  # without a box, the image is one, and a tenth of it must be in the part
def test_parts_have_the_area_and_the_aspect_that_were_asked_for(options, least):
    parts, mirrored = windows(train_views(coordinates(), 300, Views(size=32, **options)))
    heights, widths = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    areas, aspects = heights * widths / 256**2, widths / heights
    assert parts.min() > -2 and parts.max() < 258  # JPEG has clipped the ends of the ramps
    assert least * 0.94 < areas.min() < least + 0.06 and areas.max() > 0.8  # they are whole pixels
    assert 0.73 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.37
    assert 115 < mirrored.sum() < 185  # 4 standard deviations
    for edge in (0, 1):  # parts lie anywhere
        assert np.ptp(parts[areas < least + 0.25][:, edge]) > 120 * (1 - least)


def draw_windows(draw, shape, count=2000):
    """Return top, left, height, width of `count` crops of an image of a shape, [count, 4]."""
    dataset = tf.data.Dataset.range(count).map(lambda i: draw(tf.constant([*shape, 3]), tf.stack([7, i])))
    return np.stack(list(dataset.as_numpy_iterator()))


@pytest.mark.parametrize(
    'views,aspect,mean,deciles',  # deciles 1, 5 and 9 of the area
    [
        # torchvision 0.28, 4,000 crops by RandomResizedCrop((0.08, 1)) of this image: 0.435; 0.149, 0.423, 0.735
        (Views(min_area=0.08, use_boxes=False, crop='torch'), 4 / 3, 0.435, (0.149, 0.423, 0.735)),
        (Views(), 1.33, 0.384, (0.139, 0.346, 0.688)),  # official/resnet: 0.75 to 1.33
    ],
)
def test_the_areas_and_aspects_of_both_samplers(views, aspect, mean, deciles):
    def draw(shape, seed):
        return (
            encoded.torch_crop(shape, seed, views)
            if views.crop == 'torch'
            else encoded.official_crop(shape, tf.zeros([0, 4]), seed, views)
        )

    tops, lefts, heights, widths = draw_windows(draw, (3000, 4000)).T
    assert min(tops.min(), lefts.min()) >= 0 and (tops + heights).max() <= 3000 and (lefts + widths).max() <= 4000
    assert min(tops.min(), lefts.min()) < 10 and (tops + heights).max() > 2990 and (lefts + widths).max() > 3990
    areas = heights * widths / 12e6
    assert [areas.mean(), *np.quantile(areas, (0.1, 0.5, 0.9))] == pytest.approx([mean, *deciles], abs=0.015)
    aspects = widths / heights
    assert 0.749 < aspects.min() < 0.752 and aspect - 0.002 < aspects.max() < aspect + 0.001


@pytest.mark.parametrize(
    'shape,window',
    [
        ((100, 1000), (0, 433, 100, 133)),
        ((1000, 100), (433, 0, 133, 100)),
        ((1, 60000), (0, 29999, 1, 1)),
    ],
)
def test_without_a_part_that_fits_torchs_sampler_takes_the_middle(shape, window):
    """4/3 as long as wide, because half of the area has no part of such a ratio."""
    views = Views(min_area=0.5, use_boxes=False, crop='torch')
    assert encoded.torch_crop(tf.constant([*shape, 3]), [7, 0], views).numpy().tolist() == list(window)


def test_a_small_image_is_shifted_by_up_to_an_eighth_and_mirrored():
    """Sixteen pixels padded by two: five places in each direction, and the mirror images."""
    pixels = np.random.default_rng(0).integers(1, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    padded = np.pad(pixels, [(2, 2), (2, 2), (0, 0)]).astype(np.float32)
    crops = [padded[i : i + 16, j : j + 16, :][:, ::step] for i in range(5) for j in range(5) for step in (1, -1)]
    crops = np.array(crops)
    views = Views(16, 16, crop='pad', use_boxes=False)
    draws = [encoded.train_view(file.getvalue(), np.zeros([0, 4]), [7, i], views).numpy() for i in range(300)]
    found = [np.flatnonzero((crops == draw).all((1, 2, 3))) for draw in draws]
    assert {len(numbers) for numbers in found} == {1} and {int(numbers[0]) for numbers in found} == {*range(50)}
    still = [encoded.train_view(file.getvalue(), np.zeros([0, 4]), [7, i], views, flip=False) for i in range(99)]
    assert all((crops[::2] == draw.numpy()).all((1, 2, 3)).any() for draw in still)
    assert '--first_image_size=8' in message_of(lambda: Views(16, 16, crop='pad', use_boxes=False, first_size=8))


BOXES = np.array([[0, 0, 0.125, 0.125], [0.5, 0.625, 0.75, 1]], np.float32)


def covered(parts, boxes):
    """Return the share of each box that lies in each part: [parts, boxes]."""
    edges = boxes * 256
    low, high = np.maximum(parts[:, None, :2], edges[:, :2]), np.minimum(parts[:, None, 2:], edges[:, 2:])
    return np.maximum(high - low, 0).prod(-1) / (edges[:, 2:] - edges[:, :2]).prod(-1)


@pytest.mark.parametrize('boxes', [BOXES[:1], BOXES])
def test_parts_contain_a_tenth_of_a_box(boxes):
    parts, _ = windows(train_views(coordinates(), 300, Views(size=32), boxes))
    shares = covered(parts, boxes)
    assert (shares.max(1) > 0.08).all()  # a tenth, but for whole pixels
    assert shares.max(1).min() < 0.9
    if len(boxes) == 2:
        assert shares.min(0).max() == 0  # of any one, and not always of the same
    without, _ = windows(train_views(coordinates(), 300, Views(size=32, use_boxes=False), boxes))
    assert (covered(without, boxes).max(1) < 0.05).any()


def test_a_seed_is_a_view():
    views = Views(size=32)
    seen = [encoded.train_view(coordinates(), NO_BOXES, seed, views).numpy() for seed in ([7, 0], [7, 1], [8, 0])]
    assert len({view.tobytes() for view in seen}) == 3
    np.testing.assert_array_equal(train_views(coordinates(), 2, views), seen[:2])  # inside tf.data


@BOTH
@pytest.mark.parametrize('function', [encoded.test_view, encoded.ten_views])
def test_the_same_eagerly_and_inside_tf_data(function, resize):
    views = Views(test_size=48, resize=resize)
    images = [*sample()[:6], encode(noise(2, 4)), coordinates(70, 300)]
    dataset = tf.data.Dataset.from_tensor_slices(images).map(lambda image: function(image, views))
    assert dataset.element_spec.shape == ((48, 48, 3) if function is encoded.test_view else (10, 48, 48, 3))
    for image, mapped in zip(images, dataset, strict=True):
        np.testing.assert_array_equal(mapped, function(image, views))


# --- odd images, mistakes ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize('shape', [(60, 90), (500, 1, 3), (1, 1), (1, 60000)])
def test_odd_images(shape, resize):
    """Grey ones, ones smaller than the crop, and ones of a single row, which would take gigabytes when resized."""
    views = Views(size=32, test_size=28, resize=resize)
    png, jpeg = (encode(np.full(shape, 80), kind) for kind in ('PNG', 'JPEG'))
    train = encoded.train_view(jpeg, NO_BOXES, [0, 0], views)
    for view, size in ((train, 32), *((encoded.test_view(image, views), 28) for image in (jpeg, png))):
        np.testing.assert_allclose(view, np.full([size, size, 3], 80), atol=1e-3)
    assert encoded.ten_views(jpeg, views).shape == (10, 28, 28, 3)


@BOTH
@pytest.mark.parametrize('length', [500, 501])
def test_of_a_very_long_image_only_the_middle_is_resized(length, resize):
    """The same pixels as the middle of the whole: what is cut off before is as long on both sides."""
    views = Views(test_size=28, test_resize=32, resize=resize)
    whole = encoded._resize(tf.constant(noise(1, length)), [32, 32 * length], views)
    left = (32 * length - 28) // 2
    view = encoded.test_view(encode(noise(1, length)), views)
    np.testing.assert_allclose(view, whole[2:30, left : left + 28], atol=1e-2)


def test_views():
    assert Views() == Views(224, 224, None, 0.05, True, 'tf1', 'tensorflow') and Views().dct_method == 'INTEGER_FAST'
    assert Views(resize='antialias').dct_method == 'INTEGER_ACCURATE'
    assert [Views(test_size=size).shorter_side for size in (224, 112, 299, 7)] == [256, 128, 342, 8]
    assert Views(test_resize=232).shorter_side == 232
    for options, words in (
        ({'crop': 'torch'}, '--crop_sampler=torch |--nouse_boxes|--crop_sampler=tensorflow'),
        ({'crop': 'tf'}, '--crop_sampler=tf |tensorflow, torch'),
        ({'min_area': 1.5}, '--min_crop_area=1.5 |above 0 and at most 1'),
        ({'first_size': 300}, '--first_image_size=300 |--image_size=224'),
        ({'size_ramp': (0.8, 0.4)}, '--size_ramp=0.8,0.4 '),
        ({'test_size': 224, 'test_resize': 223}, '--eval_resize=223 |224 or more'),
    ):
        message = message_of(lambda options=options: Views(**options))
        assert all(word in message for word in words.split('|')), message
