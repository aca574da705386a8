"""The operations of policies against Pillow on a real image, and the tables of torchvision and of our own draws."""

import collections
import io
import math

import numpy as np
import pytest
from fixtures import ilsvrc
from fixtures.batches import message_of
from PIL import Image, ImageEnhance, ImageOps

from official_resnet.inputs import policies
from official_resnet.inputs.augment_options import Augmentation

# A photograph's smooth parts, edges and noise; the same upside down; and an image of one colour.
ROWS, COLUMNS = np.mgrid[:41, :57]
IMAGE = np.stack([40 + 3 * ROWS, 90 + 40 * np.sin(COLUMNS / 7), 200 - ROWS * COLUMNS // 17], -1)
IMAGE = np.clip(IMAGE + np.random.default_rng(0).normal(0, 9, IMAGE.shape), 20, 236).astype(np.uint8)
IMAGES = np.stack([IMAGE, IMAGE[::-1], np.full_like(IMAGE, 77)])
NEAREST, BILINEAR, CUBIC = (getattr(Image.Resampling, name) for name in ('NEAREST', 'BILINEAR', 'BICUBIC'))


def affine(make):
    """`make` of an argument returns the matrix."""

    def by_pillow(image, argument, resample, fill):
        return image.transform(image.size, Image.Transform.AFFINE, make(argument), resample, fillcolor=fill)

    return by_pillow


BY_PILLOW = {  # name: (the operation, arguments)
    'Identity': (lambda image, *_: image, [0]),
    'Invert': (lambda image, *_: ImageOps.invert(image), [0]),
    'AutoContrast': (lambda image, *_: ImageOps.autocontrast(image), [0]),
    'Equalize': (lambda image, *_: ImageOps.equalize(image), [0]),
    'Posterize': (lambda image, bits, *_: ImageOps.posterize(image, bits), [1, 4, 7, 8]),
    'Solarize': (lambda image, least, *_: ImageOps.solarize(image, least), [0, 1, 85.5, 128, 255, 256]),
    'SolarizeAdd': (lambda image, more, *_: image.point([i + more if i < 128 else i for i in range(256)] * 3),
                    [0, 30, 110]),
    **{name: (lambda image, factor, *_, name=name: getattr(ImageEnhance, name)(image).enhance(factor),
              [0.01, 0.1, 0.7, 1.0, 1.13, 1.99]) for name in policies.ENHANCEMENTS},
    'ShearX': (affine(lambda slope: (1, slope, 0, 0, 1, 0)), [-0.99, -0.4, 0, 0.033, 0.99]),
    'ShearY': (affine(lambda slope: (1, 0, 0, slope, 1, 0)), [-0.99, -0.4, 0, 0.033, 0.99]),
    'TranslateX': (affine(lambda shift: (1, 0, shift, 0, 1, 0)), [-32, -7.3, 0, 13, 300]),
    'TranslateY': (affine(lambda shift: (1, 0, 0, 0, 1, shift)), [-32, -7.3, 0, 13, 300]),
    'Rotate': (lambda image, angle, resample, fill: image.rotate(angle, resample, fillcolor=fill),
               [-135, -90, -4.5, 0, 31.5, 90, 135]),
}  # fmt: skip


def assert_pillows(name, images):
    """An operation changes the images of one batch, each with another argument, as Pillow changes each alone."""
    by_pillow, arguments = BY_PILLOW[name]
    for *how, shift in ((NEAREST, (0, 0, 0), 0), (BILINEAR, (124, 116, 104), 1), (CUBIC, (124, 116, 104), 2)):
        chosen = [arguments[(i + shift) % len(arguments)] for i in range(len(images))]
        changed = policies.apply(images, [(name, argument, *how) for argument in chosen])
        assert changed.dtype == np.uint8
        for image, argument, found in zip(images, chosen, changed, strict=True):
            expected = np.asarray(by_pillow(Image.fromarray(image), argument, *how))
            np.testing.assert_array_equal(found, expected, err_msg=f'{name} {argument} {how}')


@pytest.mark.parametrize('name', BY_PILLOW)
@pytest.mark.parametrize('size', [(41, 57), (1, 1), (2, 33), (32, 32)])
def test_an_operation_is_pillows(name, size):
    assert_pillows(name, np.tile(IMAGES, (3, 1, 1, 1))[:, : size[0], : size[1]])


@pytest.mark.slow
@pytest.mark.parametrize('name', BY_PILLOW)
@pytest.mark.parametrize('size', [32, 224])
def test_an_operation_is_pillows_on_real_images(name, size):
    pictures = [Image.open(io.BytesIO(data)).convert('RGB') for _, data in ilsvrc.sample().values()]
    assert_pillows(name, np.stack([np.asarray(image.resize((size, size))) for image in pictures]))


def test_images_of_a_batch_change_each_in_its_own_way():
    operations = [('Invert', 0, NEAREST, (0, 0, 0)), None, ('Rotate', 30, CUBIC, (1, 2, 3))]
    before = IMAGES.copy()
    changed = policies.apply(IMAGES, operations)
    np.testing.assert_array_equal(IMAGES, before)
    np.testing.assert_array_equal(changed[:2], np.stack([255 - IMAGES[0], IMAGES[1]]))
    np.testing.assert_array_equal(changed[2:], policies.apply(IMAGES[2:], operations[2:]))
    draws = np.random.default_rng(2).random((3, 2, 5), np.float32)
    together = policies.change(IMAGES, draws, 'rand-m9-mstd0.5-p1')
    alone = [policies.change(IMAGES[i : i + 1], draws[i : i + 1], 'rand-m9-mstd0.5-p1')[0] for i in range(3)]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_no_bits_are_black():
    """Pillow refuses 0 bits since its version 13, but older ones, for which timm was written, made it black."""
    assert not policies.apply(IMAGES[:1], [('Posterize', 0, NEAREST, (0, 0, 0))]).any()


# torchvision 0.24, transforms/autoaugment.py, TrivialAugmentWide._augmentation_space(31): first and last strength.
WIDE = {
    **{name: (0, 0.99, -0.99) for name in ('ShearX', 'ShearY')},
    **{name: (0, 32, -32) for name in ('TranslateX', 'TranslateY')},
    'Rotate': (0, 135, -135),
    **{name: (1, 1.99, 0.01) for name in ('Brightness', 'Color', 'Contrast', 'Sharpness')},
    'Posterize': (8, 2, 2),
    'Solarize': (255, 0, 0),
    **{name: None for name in ('Identity', 'AutoContrast', 'Equalize')},
}


def test_the_table_of_trivial_augment():
    found = collections.defaultdict(lambda: collections.defaultdict(set))
    for op in range(14):
        for bin in range(31):
            for sign in (0.2, 0.7):
                name, argument = policies.wide([(op + 0.5) / 14, 0, sign, (bin + 0.5) / 31, 0])
                found[name][bin].add(argument)
    assert found.keys() == WIDE.keys()
    for name, expected in WIDE.items():
        if expected:
            assert found[name][0] == {expected[0]} or found[name][0] == {0, -0.0}
            assert sorted(found[name][30]) == pytest.approx(sorted({*expected[1:]})), name
    assert [found['Posterize'][bin] for bin in (2, 3, 7, 8, 15)] == [{8}, {7}, {7}, {6}, {5}]
    assert [found['Solarize'][bin] for bin in (1, 15)] == [{246.5}, {127.5}]
    assert found['TranslateX'][16] == {17, -17}  # 17.07, cut to a whole pixel


def test_the_draws_of_a_policy():
    draws = np.random.default_rng(1).random((6000, 5))
    names = collections.Counter(policies.wide(row)[0] for row in draws)
    assert len(names) == 14 and 340 < min(names.values()) and max(names.values()) < 515  # 429 +- 20
    arguments = [policies.rand([5.5 / 15, 0, 0, row[3], 0], 'rand-m5-mstd0.5-inc1', (9, 9, 3))[1] for row in draws]
    strengths = (256 - np.array(arguments)) / 25.6
    assert abs(strengths.mean() - 5) < 0.05 and abs(strengths.std() - 0.5) < 0.03
    images = np.tile(IMAGES[:1, :9, :9], (800, 1, 1, 1))
    changed = policies.change(images, draws[:800, None].astype('f4'), 'rand-n1-p0.25') != images
    assert 140 < changed.any((1, 2, 3)).sum() < 250  # of 800: 200 +- 12, of which Posterize and others change few less
    assert policies.num_layers('rand-m9-n3') == 3 and policies.num_layers('rand-m9') == 2
    assert math.isfinite(policies.rand([0.3, 0, 0, 0.0, 0], 'rand-m7-mstd0.5', (9, 9, 3))[1])


@pytest.mark.parametrize(
    'policy',
    ['wide', 'rand-x3', 'rand-m7-mstd', 'rand-m-3', 'augmix', 'rand-m11', 'rand-p5', 'rand-mstd101', 'rand-m٣'],
)
def test_unknown_policies(policy):
    assert f'--auto_augment={policy} ' in message_of(lambda: Augmentation(policy=policy))
