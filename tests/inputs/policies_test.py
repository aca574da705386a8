"""The operations of policies against Pillow on a real image, and the tables of torchvision and of our own draws."""

import collections
import math

import numpy as np
import pytest
from fixtures.batches import message_of
from PIL import Image, ImageEnhance, ImageOps

from official_resnet.inputs import policies
from official_resnet.inputs.augment_options import Augmentation

# A photograph's smooth parts, edges and noise.
ROWS, COLUMNS = np.mgrid[:41, :57]
IMAGE = np.stack([40 + 3 * ROWS, 90 + 40 * np.sin(COLUMNS / 7), 200 - ROWS * COLUMNS // 17], -1)
IMAGE = np.clip(IMAGE + np.random.default_rng(0).normal(0, 9, IMAGE.shape), 20, 236).astype(np.uint8)
PICTURE = Image.fromarray(IMAGE)
NEAREST, CUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC


def affine(*matrix):
    return lambda resample, fill: PICTURE.transform(
        PICTURE.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill
    )


BY_PILLOW = {
    ('Identity', 0.0): PICTURE,
    ('Invert', 0.0): ImageOps.invert(PICTURE),
    ('AutoContrast', 0.0): ImageOps.autocontrast(PICTURE),
    ('Equalize', 0.0): ImageOps.equalize(PICTURE),
    **{('Posterize', bits): ImageOps.posterize(PICTURE, bits) for bits in (1, 4, 7, 8)},
    **{('Solarize', least): ImageOps.solarize(PICTURE, least) for least in (0, 1, 85.5, 128, 255, 256)},
    **{('SolarizeAdd', more): PICTURE.point([min(255, i + more) if i < 128 else i for i in range(256)] * 3)
       for more in (0, 30, 110)},
    **{(name, factor): getattr(ImageEnhance, name)(PICTURE).enhance(factor)
       for name in policies.ENHANCEMENTS for factor in (0.01, 0.7, 1.0, 1.99)},
    ('ShearX', -0.4): affine(1, -0.4, 0, 0, 1, 0),
    ('ShearY', 0.99): affine(1, 0, 0, 0.99, 1, 0),
    ('TranslateX', 13): affine(1, 0, 13, 0, 1, 0),
    ('TranslateY', -7.3): affine(1, 0, 0, 0, 1, -7.3),
    ('Rotate', 31.5): lambda resample, fill: PICTURE.rotate(31.5, resample, fillcolor=fill),
}  # fmt: skip


@pytest.mark.parametrize('name, argument', BY_PILLOW)
def test_an_operation_is_pillows(name, argument):
    for resample, fill in ((NEAREST, (0, 0, 0)), (CUBIC, (124, 116, 104))):
        expected = BY_PILLOW[name, argument]
        expected = expected if isinstance(expected, Image.Image) else expected(resample, fill)
        changed = policies.apply(IMAGE, name, argument, resample, fill)
        assert changed.dtype == np.uint8
        np.testing.assert_array_equal(changed, np.asarray(expected))


def test_no_bits_are_black():
    """Pillow refuses 0 bits since its version 13, but older ones, for which timm was written, made it black."""
    assert not policies.apply(IMAGE, 'Posterize', 0, NEAREST, (0, 0, 0)).any()


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
    changed = [policies.change(IMAGE, row[None], 'rand-n1-p0.25') is not IMAGE for row in draws[:800].astype('f4')]
    assert 150 < sum(changed) < 250  # of 800: 200 +- 12
    assert policies.num_layers('rand-m9-n3') == 3 and policies.num_layers('rand-m9') == 2
    assert math.isfinite(policies.rand([0.3, 0, 0, 0.0, 0], 'rand-m7-mstd0.5', (9, 9, 3))[1])


@pytest.mark.parametrize('policy', ['wide', 'rand-x3', 'rand-m7-mstd', 'rand-m-3', 'augmix'])
def test_unknown_policies(policy):
    assert f'--auto_augment={policy} ' in message_of(lambda: Augmentation(policy=policy))
