"""TrivialAugment-wide (2103.10158) as torchvision has it, and RandAugment (1909.13719) as timm has it, bit for bit.

A policy maps uniform numbers in [0, 1), [layers, 5], to operations: which, whether at all, its sign, how strong, and
how pixels are interpolated. So the same numbers change an image in the same way everywhere. The images of a batch that
get the same operation are changed together, by numpy, in the arithmetic of Pillow's C code. Only interpolated
geometry is left to Pillow itself.
"""

import collections
import functools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

NUM_DRAWS = 5
ENHANCEMENTS = ('Color', 'Contrast', 'Brightness', 'Sharpness')
GEOMETRY = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
RAND = 'AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd'.split() + [*ENHANCEMENTS, *GEOMETRY[:4]]
WIDE = ['Identity', *GEOMETRY, 'Brightness', 'Color', 'Contrast', 'Sharpness', 'Posterize', 'Solarize']
WIDE += ['AutoContrast', 'Equalize']
RAND_FILL = 124, 116, 104  # ImageNet's mean, which timm passes to its operations
_NORMAL = statistics.NormalDist()
_NEAREST, _SMOOTH = Image.Resampling.NEAREST, (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def num_layers(policy: str) -> int:
    """Return the number of operations that a policy applies to an image one after the other."""
    return 1 if policy == 'trivial_wide' else _rand_options(policy)['n']


def change(images: np.ndarray, draws: np.ndarray, policy: str) -> np.ndarray:
    """Apply a policy to images, uint8 [b, h, w, 3], with the numbers of their `draws`, float32 [b, num_layers, 5]."""
    for layer in range(draws.shape[1]):
        operations: list[tuple | None] = [None] * len(images)
        for i, row in enumerate(draws[:, layer].tolist()):
            if policy == 'trivial_wide':
                operations[i] = (*wide(row), _NEAREST, (0, 0, 0))
            elif row[1] < _rand_options(policy)['p']:
                operations[i] = (*rand(row, policy, images.shape[1:]), _SMOOTH[int(2 * row[4])], RAND_FILL)
        images = apply(images, operations)
    return images


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
    options = _rand_options(policy)
    noise = _NORMAL.inv_cdf(max(draws[3], 1e-8))
    strength = min(max(options['m'] + options['mstd'] * noise, 0), 10) / 10
    name, sign, rises = RAND[int(draws[0] * len(RAND))], 1 if draws[2] < 0.5 else -1, options['inc']
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


def apply(images: np.ndarray, operations: Sequence[tuple | None]) -> np.ndarray:
    """Return images after an operation each, as Pillow computes it.

    Args:
        images: uint8 [b, h, w, 3].
        operations: For each image None, or (name, argument, interpolation, fill): Pillow's interpolation, and the
            colour of the pixels that come from outside the image. The argument is, for Rotate: degrees; Shear: pixels
            per pixel; Translate: pixels to the left or up; Posterize: bits that are kept; Solarize: the least value
            that is inverted; SolarizeAdd: what is added to values below 128; Color, Contrast, Brightness, Sharpness:
            the factor, where 1 changes nothing.
    """
    groups = collections.defaultdict(list)  # {(function, interpolation, fill): [(number of an image, argument)]}
    for i, operation in enumerate(operations):
        if operation:
            name, argument, *how = operation
            function = _VALUES.get(name)
            if name in GEOMETRY:
                argument = _matrix(name, argument, images.shape[1:3])
                function = _nearest if how[0] == _NEAREST else _moved
            groups[function, *how].append((i, argument))
    images = images.copy()
    for (function, *how), members in groups.items():
        numbers, arguments = map(list, zip(*members, strict=True))
        images[numbers] = function(images[numbers], np.array(arguments), *how)
    return images


def _matrix(name, argument, size):
    """Return m of x = m0 * x' + m1 * y' + m2, y = m3 * x' + m4 * y' + m5: where a pixel at (x', y') comes from."""
    matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    if name != 'Rotate':
        matrix[{'ShearX': 1, 'TranslateX': 2, 'ShearY': 3, 'TranslateY': 5}[name]] = argument
        return matrix
    angle, (y, x) = -math.radians(argument % 360), (side / 2 for side in size)  # rounded as in Image.rotate
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y]


def _nearest(images, matrices, _, fill):
    """Move pixels as Pillow's affine_fixed does: with whole numbers of 1/65536 pixel."""
    count, height, width, _ = images.shape
    m = list(matrices.T[..., None, None])
    m[2], m[5] = m[2] + m[0] * 0.5 + m[1] * 0.5, m[5] + m[3] * 0.5 + m[4] * 0.5
    m = [np.floor(number * 65536 + 0.5).astype(np.int32) for number in m]
    y, x = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    columns, rows = (m[i] * x + m[i + 1] * y + m[i + 2] >> 16 for i in (0, 3))
    places = np.arange(0, count * height * width, height * width)[:, None, None] + rows * width + columns
    is_outside = (columns.view(np.uint32) >= width) | (rows.view(np.uint32) >= height)  # or negative
    places[is_outside] = count * height * width
    return np.append(images, np.array(fill, np.uint8)).reshape(-1, 3).take(places, 0)


def _moved(images, matrices, resample, fill):
    """Move pixels by Pillow itself: where they are interpolated, numpy in float64 gains little."""
    how = images.shape[2:0:-1], Image.Transform.AFFINE
    pictures = zip(map(Image.fromarray, images), matrices, strict=True)
    return np.stack([picture.transform(*how, matrix, resample, fillcolor=fill) for picture, matrix in pictures])


def _enhanced(make):
    """Return an operation of ImageEnhance: a factor of 0 gives `make(images)`, and 1 changes nothing."""

    def change(images, factors, *_) -> np.ndarray:
        without = make(images)
        lines = images - without.astype(np.float32)
        lines *= factors[:, None, None, None].astype(np.float32)
        lines += without
        return np.clip(lines, 0, 255, out=lines).astype(np.uint8)

    return change


def _grey(images):
    """Return the luminance of images, uint8 [k, h, w, 1], as Pillow's convert('L')."""
    red, green, blue = (images[..., i].astype(np.int32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]


def _smooth(images):
    """Return images after ImageFilter.SMOOTH: a mean in which the pixel counts 5 times, and its 8 neighbours once."""
    wide, smooth = images.astype(np.uint16), images.copy()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    smooth[:, 1:-1, 1:-1] = (2 * sums + 13) // 26  # rounded; borders stay
    return smooth


def _through_tables(make):
    """Return an operation that looks up values in tables; `make` makes them of histograms, both int [k * 3, 256]."""

    def change(images, *_) -> np.ndarray:
        starts = np.arange(0, len(images) * 3 * 256, 256).reshape(-1, 3)
        places = np.tile(starts, images[0].size // 3)  # numpy is slow where a row has only 3 numbers
        places += images.reshape(places.shape)
        histograms = np.bincount(places.ravel(), minlength=starts.size * 256).reshape(-1, 256)
        return make(histograms).astype(np.uint8).ravel().take(places).reshape(images.shape)

    return change


def _stretched(histograms):
    """Return the tables of ImageOps.autocontrast."""
    low, high = (histograms > 0).argmax(1)[:, None], 255 - (histograms[:, ::-1] > 0).argmax(1)[:, None]
    scale = 255.0 / np.maximum(high - low, 1)
    return np.where(high > low, np.clip(np.arange(256) * scale + -low * scale, 0, 255), np.arange(256))


def _equal(histograms):
    """Return the tables of ImageOps.equalize."""
    high = 255 - (histograms[:, ::-1] > 0).argmax(1)[:, None]
    step = (histograms.sum(1, keepdims=True) - np.take_along_axis(histograms, high, 1)) // 255
    before = np.cumsum(histograms, 1) - histograms
    return np.where(step, np.minimum((step // 2 + before) // np.maximum(step, 1), 255), np.arange(256))


def _by_value(change):
    """Return the operation that `change` is for arguments of this shape: [k, 1, 1, 1]."""
    return lambda images, arguments, *_: change(images, arguments[:, None, None, None])


_VALUES: dict[str, Callable] = {  # (images [k, h, w, 3], arguments [k], interpolation, fill) -> images
    'Identity': lambda images, *_: images,
    'Invert': lambda images, *_: 255 - images,
    'Posterize': _by_value(lambda images, bits: images & (256 - 2 ** (8 - bits)).astype(np.uint8)),  # 0: black
    'Solarize': _by_value(lambda images, least: images ^ -(images >= least).view(np.uint8)),
    'SolarizeAdd': _by_value(lambda images, more: images + (images < 128) * more.astype(np.uint8)),  # at most 127 + 110
    'AutoContrast': _through_tables(_stretched),
    'Equalize': _through_tables(_equal),
    'Brightness': _enhanced(lambda images: np.zeros((), np.uint8)),
    'Color': _enhanced(lambda images: _grey(images).repeat(3, -1)),
    'Contrast': _enhanced(lambda images: np.floor(_grey(images).mean((1, 2, 3), keepdims=True) + 0.5)),
    'Sharpness': _enhanced(_smooth),
}


@functools.lru_cache
def _rand_options(policy):
    """Return {'m': 7.0, 'mstd': 0.5, 'inc': True, 'n': 2, 'p': 0.5} for rand-m7-mstd0.5-inc1."""
    given = dict(re.findall(r'-([a-z]+)([\d.]+)', policy))
    numbers = {name: float(given.get(name, default)) for name, default in (('m', 10), ('mstd', 0), ('p', 0.5))}
    return numbers | {'n': int(given.get('n', 2)), 'inc': given.get('inc') == '1'}
