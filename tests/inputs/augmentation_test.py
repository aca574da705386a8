"""Each function on values a reader can compute, eagerly and inside tf.data, which can differ."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from official_resnet.inputs import augmentation
from official_resnet.inputs.affine import affine_name
from official_resnet.inputs.normalization import NORMALIZATIONS, per_image_standardization


@pytest.fixture(params=['eager', 'tf.data'])
def run(request):
    """Return run(function, *arrays): the function of whole batches, as an array."""

    def inside_tf_data(function, *arrays):
        dataset = tf.data.Dataset.from_tensors(arrays).map(function)
        return dataset.get_single_element().numpy()

    def eagerly(function, *arrays):
        return function(*map(tf.constant, arrays)).numpy()

    return eagerly if request.param == 'eager' else inside_tf_data


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_standardization_is_tensorflows_for_each_image_by_itself(run):
    images = noise(6, 4, 7, 2)
    images[1] = 255  # of one colour
    images[2] = 0
    images[2, 2, 1, 0] = 1  # of 56 values: std 0.132 is below 1 / sqrt(56) = 0.134, the least divisor
    standard = run(per_image_standardization, images)
    expected = tf.stack([tf.image.per_image_standardization(image) for image in images])
    np.testing.assert_allclose(standard, expected, atol=2e-6)
    assert not standard[1].any()
    np.testing.assert_allclose(standard[2, 2, 1, 0], (1 - 1 / 56) * np.sqrt(56), rtol=1e-6)


MEAN_AND_STD = [0.1, 0.2, 0.3], [1, 2, 4]


@pytest.mark.parametrize(
    'name, expected',
    [
        ('none', [51, 102, 255]),
        ('unit_range', [0.2, 0.4, 1]),
        (affine_name('RGB', 1 / 255, *MEAN_AND_STD), [0.2 - 0.1, (0.4 - 0.2) / 2, (1 - 0.3) / 4]),
        (affine_name('BGR', 1 / 255, *MEAN_AND_STD), [1 - 0.1, (0.4 - 0.2) / 2, (0.2 - 0.3) / 4]),
        ('affine:RGB:1.0:0.0:1.0', [51, 102, 255]),
    ],
)
def test_normalizations_by_name(run, name, expected):
    normalized = run(NORMALIZATIONS[name], np.uint8([51, 102, 255]).reshape(1, 1, 1, 3))
    assert normalized.dtype == np.float32 and affine_name() == 'affine:RGB:1.0:0.0:1.0'
    np.testing.assert_allclose(normalized.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize('name', ['', 'affine', 'affine:GBR:1:0:1', 'affine:RGB:x:0:1', 'affine:RGB:1:0'])
def test_unknown_normalizations(name):
    with pytest.raises(KeyError):
        NORMALIZATIONS[name]


@pytest.mark.parametrize('shape, size, dtype', [((28, 28, 1), None, np.uint8), ((5, 8, 3), 7, np.float32)])
def test_crop_flip_is_slicing_a_padded_array(run, shape, size, dtype):
    images = noise(6, *shape).astype(dtype)
    tops, lefts = np.int32([0, 1, 2, 0, 1, 2]), np.int32([4, 3, 2, 1, 0, 2])
    flips = np.array([False, True, False, True, False, True])
    crops = run(lambda *arguments: augmentation.crop_flip(*arguments, pad=2, size=size), images, tops, lefts, flips)
    assert crops.dtype == dtype
    for i, padded in enumerate(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))):
        crop = padded[tops[i] : tops[i] + (size or shape[0]), lefts[i] : lefts[i] + (size or shape[1])]
        np.testing.assert_array_equal(crops[i], crop[:, ::-1] if flips[i] else crop)


IMAGE = np.arange(1, 82, dtype=np.uint8).reshape(1, 9, 9, 1)  # all pixels differ, so all its crops do
PADDED = np.pad(IMAGE[0, :, :, 0], 4)
CROPS = {  # bytes of a crop of 9 x 9 or 13 x 13 -> (top, left, flip)
    PADDED[top : top + size, left : left + size][:, :: -1 if flip else 1].tobytes(): (top, left, flip)
    for size in (9, 13)
    for top in range(18 - size)
    for left in range(18 - size)
    for flip in (False, True)
}


def places(crops):
    """Return (top, left, flip) of each crop of IMAGE."""
    return [CROPS[crop.tobytes()] for crop in np.asarray(crops)]


@pytest.mark.parametrize('size, num_offsets', [(None, 9), (13, 5)])
def test_every_image_has_its_own_offsets_and_coin(run, size, num_offsets):
    num_ways = 2 * num_offsets**2
    images = np.tile(IMAGE, (50 * num_ways, 1, 1, 1))
    counts = collections.Counter(places(run(lambda x: augmentation.pad_crop_flip(x, [5, 1], size=size), images)))
    assert len(counts) == num_ways  # each way, about 50 times: 50 +- 4.5 standard deviations
    assert min(counts.values()) > 18 and max(counts.values()) < 82


def test_a_crop_larger_than_the_padded_image_is_refused():
    with pytest.raises(ValueError, match='18 x 18'):
        augmentation.pad_crop_flip(IMAGE, [3, 1], size=18)


def test_pad_crop_flip_has_not_changed():
    """The numbers that runs of earlier versions were augmented with: a resumed run must go on with them."""
    tops, lefts, flips = zip(*places(augmentation.pad_crop_flip(np.tile(IMAGE, (6, 1, 1, 1)), [7, 11])), strict=True)
    assert (tops, lefts) == ((5, 0, 4, 4, 6, 4), (0, 3, 2, 5, 7, 3))
    assert flips == (True, True, True, True, False, False)


def test_pad_and_flip_can_be_switched_off(run):
    images = np.tile(IMAGE, (200, 1, 1, 1))
    crops = run(lambda x: augmentation.pad_crop_flip(x, [1, 2], flip=False), images)
    assert {flip for _, _, flip in places(crops)} == {False}
    crops = run(lambda x: augmentation.pad_crop_flip(x, [1, 2], pad=0), images)
    assert set(places(crops)) == {(4, 4, False), (4, 4, True)}
    same = run(lambda x: augmentation.pad_crop_flip(x, [1, 2], pad=0, flip=False), images)
    np.testing.assert_array_equal(same, images)


def test_pad_to_centres_in_zeros(run):
    images = np.array([[1, 2], [3, 4], [5, 6]], np.uint8).reshape(1, 3, 2, 1)
    padded = run(lambda x: augmentation.pad_to(x, 4, 4), images)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[0, ..., 0], [[0, 1, 2, 0], [0, 3, 4, 0], [0, 5, 6, 0], [0, 0, 0, 0]])
    for size in ((3, 2), (None, None)):
        np.testing.assert_array_equal(run(lambda x, size=size: augmentation.pad_to(x, *size), images), images)
