"""TrivialAugment-wide (2103.10158) as torchvision has it, and RandAugment (1909.13719) as timm has it, by Pillow.

An image is uint8 [h, w, 3]. A policy maps uniform numbers in [0, 1), [layers, 5], to operations: which, whether at all,
its sign, how strong, and how pixels are interpolated. So the same numbers change an image in the same way everywhere.
Pillow computes all operations but those that only look up a pixel; it holds Python's lock, so one core works at a time.
"""

import functools
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NUM_DRAWS = 5
ENHANCEMENTS = ('Color', 'Contrast', 'Brightness', 'Sharpness')
GEOMETRY = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
RAND = 'AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd'.split() + [*ENHANCEMENTS, *GEOMETRY[:4]]
WIDE = ['Identity', *GEOMETRY, 'Brightness', 'Color', 'Contrast', 'Sharpness', 'Posterize', 'Solarize']
WIDE += ['AutoContrast', 'Equalize']
RAND_FILL = 124, 116, 104  # ImageNet's mean, which timm passes to its operations
_NEAREST, _SMOOTH = Image.Resampling.NEAREST, (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def num_layers(policy: str) -> int:
    """Return the number of operations that a policy applies to an image one after the other."""
    return 1 if policy == 'trivial_wide' else int(_options(policy).get('n', 2))


def change(image: np.ndarray, draws: np.ndarray, policy: str) -> np.ndarray:
    """Apply a policy to an image with the numbers of its `draws`, float32 [num_layers, 5]."""
    for row in draws.tolist():
        if policy == 'trivial_wide':
            image = apply(image, *wide(row), _NEAREST, (0, 0, 0))
        elif row[1] < float(_options(policy).get('p', 0.5)):
            name, argument = rand(row, policy, image.shape)
            image = apply(image, name, argument, _SMOOTH[int(2 * row[4])], RAND_FILL)
    return image


def wide(draws: list[float]) -> tuple[str, Any]:
    """Return an operation of TrivialAugment-wide and its argument: torchvision's table, of 31 strengths."""
    name, strength, sign = WIDE[int(draws[0] * len(WIDE))], int(draws[3] * 31) / 30, 1 if draws[2] < 0.5 else -1
    if name == 'Posterize':
        return name, 8 - round(strength * 6)
    if name == 'Solarize':
        return name, 255 - 255 * strength
    if name.startswith('Translate'):
        return name, -sign * int(32 * strength)  # torchvision's sign is where the image goes
    if name in ENHANCEMENTS:
        return name, 1 + sign * 0.99 * strength
    return name, sign * (135 if name == 'Rotate' else 0.99) * strength


def rand(draws: list[float], policy: str, shape: tuple[int, ...]) -> tuple[str, Any]:
    """Return an operation of RandAugment for an image of `shape` and its argument: timm's table, of strengths 0..10."""
    options = _options(policy)
    noise = statistics.NormalDist().inv_cdf(max(draws[3], 1e-8))
    strength = min(max(float(options.get('m', 10)) + float(options.get('mstd', 0)) * noise, 0), 10) / 10
    name, sign, rises = RAND[int(draws[0] * len(RAND))], 1 if draws[2] < 0.5 else -1, options.get('inc') == '1'
    if name == 'Posterize':
        return name, 4 - int(4 * strength) if rises else int(4 * strength)
    if name == 'Solarize':
        return name, 256 - int(256 * strength) if rises else int(256 * strength)
    if name == 'SolarizeAdd':
        return name, int(110 * strength)
    if name in ENHANCEMENTS:
        return name, max(0.1, 1 + sign * 0.9 * strength) if rises else 0.1 + 1.8 * strength
    if name.startswith('Translate'):
        return name, sign * 0.45 * strength * shape[name == 'TranslateX']
    return name, sign * (30 if name == 'Rotate' else 0.3) * strength


def apply(image: np.ndarray, name: str, argument: Any, resample: Image.Resampling, fill: tuple[int, ...]) -> np.ndarray:
    """Return an image after an operation, as Pillow computes it.

    Args:
        image: uint8 [h, w, 3].
        argument: Rotate: degrees; Shear: pixels per pixel; Translate: pixels to the left or up; Posterize: bits that
            are kept; Solarize: the least value that is inverted; SolarizeAdd: what is added to values below 128;
            Color, Contrast, Brightness, Sharpness: the factor, where 1 changes nothing.
        resample, fill: Pillow's interpolation and the colour of the pixels that come from outside the image.
    """
    if name in _LOOK_UPS:
        return _LOOK_UPS[name](image, argument)
    picture = Image.fromarray(image)
    if name == 'Rotate':
        changed = picture.rotate(argument, resample, fillcolor=fill)
    elif name in GEOMETRY:
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # x = m0 * x' + m1 * y' + m2, y = m3 * x' + m4 * y' + m5
        matrix[{'ShearX': 1, 'TranslateX': 2, 'ShearY': 3, 'TranslateY': 5}[name]] = argument
        changed = picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)
    elif name in ENHANCEMENTS:
        changed = getattr(ImageEnhance, name)(picture).enhance(argument)
    else:
        changed = ImageOps.autocontrast(picture) if name == 'AutoContrast' else ImageOps.equalize(picture)
    return np.asarray(changed)


_LOOK_UPS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    'Identity': lambda image, _: image,
    'Invert': lambda image, _: 255 - image,
    'Posterize': lambda image, bits: image & np.uint8(256 - 2 ** (8 - bits)) if bits else np.zeros_like(image),
    'Solarize': lambda image, least: np.where(image < least, image, 255 - image),
    'SolarizeAdd': lambda image, more: np.where(image < 128, image + np.uint8(more), image),  # at most 127 + 110
}


@functools.lru_cache
def _options(policy):
    """Return {'m': '7', 'mstd': '0.5', 'inc': '1'} for rand-m7-mstd0.5-inc1."""
    return dict(re.findall(r'-([a-z]+)([\d.]+)', policy))
