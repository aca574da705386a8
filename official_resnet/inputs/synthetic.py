"""Synthetic images: a data set of ten classes that needs no download.

Each image shows one figure. Everything else is random: its position, size and colours, whether it is brighter or darker
than the background, the shades and waves of the background, and the noise. No pixel and no colour gives the class away,
so a linear model cannot learn it, but a small residual network learns it in a few epochs. The augmentation of training,
mirroring left to right and shifting by up to 4 pixels, keeps the class.
"""

from collections.abc import Sequence

import numpy as np

SIZE = 32  # pixels, height and width
NOISE = 30  # uniform noise of -NOISE..NOISE is added to values of 0..255
_CHUNK = 500  # number of images made at once, so that the arrays stay in the cache


def _plus(y, x):
    y, x = np.abs(y), np.abs(x)
    return np.maximum(np.minimum(y, x) - 0.25, np.maximum(y, x) - 1)


# A figure maps coordinates, 0 at its middle and 1 at its radius, to a value that is negative inside and, near the edge,
# the distance from it. The order of the figures is that of the labels.
FIGURES = {
    'disc': lambda y, x: np.sqrt(y * y + x * x) - 1,
    'ring': lambda y, x: np.abs(np.sqrt(y * y + x * x) - 0.75) - 0.25,
    'square': lambda y, x: np.maximum(np.abs(y), np.abs(x)) - 0.85,
    'diamond': lambda y, x: (np.abs(y) + np.abs(x)) * 0.75 - 0.85,
    'triangle': lambda y, x: np.maximum(y - 0.7, np.abs(x) * 0.85 - (y + 1) * 0.5),
    'plus': _plus,
    'saltire': lambda y, x: _plus((y + x) * 0.7071, (y - x) * 0.7071),
    'horizontal stripes': lambda y, x: np.sin(8 * y) / 8 + 0 * x,
    'vertical stripes': lambda y, x: np.sin(8 * x) / 8 + 0 * y,
    'checkerboard': lambda y, x: np.sin(6 * y) * np.sin(6 * x) / 6,
}


def draw(num_images: int, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [n, 32, 32, 3], RGB, 0..255, labels int32 [n]) in random order.

    The classes are equally frequent, up to one image if ten does not divide num_images. The seed is a non-negative
    integer or a sequence of them; different seeds give different images.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_images, dtype=np.int32) % len(FIGURES))
    images = np.empty((num_images, SIZE, SIZE, 3), np.uint8)
    for label, figure in enumerate(FIGURES.values()):
        places = np.flatnonzero(labels == label)
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            images[chunk] = _draw_figures(rng, figure, len(chunk))
    return images, labels


def _draw_figures(rng, figure, num_images):
    """Return images of one class, uint8 [n, 32, 32, 3]."""

    def uniform(low, high, *shape) -> np.ndarray:
        return rng.uniform(low, high, (num_images, *shape)).astype(np.float32)

    pixel = np.arange(SIZE, dtype=np.float32)
    y, x = pixel[:, None], pixel[None, :]
    radius = uniform(7, 11, 1, 1)
    middle_y, middle_x = uniform(11, 20, 2, 1, 1).swapaxes(0, 1)
    distance = figure((y - middle_y) / radius, (x - middle_x) / radius) * radius  # pixels, [n, 32, 32]
    inside = np.clip(0.5 - distance, 0, 1)

    # The figure is brighter or darker than the background by 60..110, and has another hue.
    ground = uniform(90, 165, 1) + uniform(-35, 35, 3)
    contrast = uniform(60, 110, 1) * rng.choice(np.float32([-1, 1]), (num_images, 1)) + uniform(-35, 35, 3)

    # A plane wave in any direction, with half a period (a shade) to four periods over the image.
    direction, phase = uniform(0, 2 * np.pi, 2, 1, 1).swapaxes(0, 1)
    frequency = uniform(0.5, 4, 1, 1) * (2 * np.pi / SIZE)  # radians per pixel
    wave = np.sin((np.cos(direction) * y + np.sin(direction) * x) * frequency + phase)
    wave *= uniform(5, 25, 1, 1)  # [n, 32, 32]

    images = inside[..., None] * contrast[:, None, None, :]
    images += ground[:, None, None, :]
    images += wave[..., None]
    images += rng.random(images.shape, np.float32) * (2 * NOISE) - NOISE
    return np.clip(images, 0, 255).astype(np.uint8)
