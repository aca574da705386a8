"""Check that a converted network computes the same as its source, on the same images."""

import types

import keras
import numpy as np

from checkpoints_tools.source import Input, Source, Variables, normalized
from official_resnet.errors import UserError

TOLERANCE = 1e-4  # of the largest logit; float32 sums in another order differ by 1e-6 to 1e-5
SIZES = (96, 75)  # pixels, if the size is free; paddings that agree at even sizes differ at odd ones


def verify(
    model: keras.Model,
    family: types.ModuleType,
    variables: Variables,
    source: Source,
    tolerance: float = TOLERANCE,
    remedy: str = 'pass another --variant, or none',
) -> dict:
    """Compare the logits of our model with those of the source's own definition.

    Args:
        model: Images [n, h, w, 3] -> logits [n, classes]. If it has one class fewer than a source with the labels
            'imagenet1001', class 0 of the source, the background, is left out.
        family: The family's module, from_FAMILY.
        variables, source: The checkpoint's.
        tolerance: The largest difference that is allowed, as a fraction of the largest logit.
        remedy: What the user can do if they differ.

    Returns:
        {'max_difference', 'max_relative_difference', 'max_logit', 'tolerance', 'images': [n, h, w, c] each}.

    Raises:
        UserError: A difference is above the tolerance, or a logit is not finite.
    """
    found, shapes, fixed = [], [], model.input_shape[1]
    for size in (fixed,) if fixed else SIZES:
        images = random_images(source.input, 2, size)
        shapes.append(list(images.shape))
        expected = np.asarray(family.run(variables, images, source), np.float32)
        got = np.asarray(model(images, training=False))
        if got.shape[-1] == expected.shape[-1] - 1 and source.labels == 'imagenet1001':
            expected = expected[:, 1:]
        if got.shape != expected.shape:
            raise UserError(
                f'the converted network has {got.shape[-1]} logits and the source {expected.shape[-1]}: '
                f'nothing was written; {remedy}'
            )
        if not (np.isfinite(got).all() and np.isfinite(expected).all()):
            raise UserError(
                'the logits of random images are not finite numbers: nothing was written; the weights are '
                'damaged, or belong to another network'
            )
        difference, largest = float(np.abs(got - expected).max()), float(np.abs(expected).max())
        relative = difference / max(largest, float(np.finfo(np.float32).tiny))
        if relative > tolerance:
            raise UserError(
                f'the converted network differs from its source by {relative:.2g} of the largest logit at {size} x '
                f'{size} pixels, more than {tolerance:g}: nothing was written; {remedy}'
            )
        found.append((difference, relative, largest))
    names = ('max_difference', 'max_relative_difference', 'max_logit')
    return dict(zip(names, np.max(found, 0).tolist(), strict=True)) | {'tolerance': tolerance, 'images': shapes}


def random_images(convention: Input, count: int, size: int) -> np.ndarray:
    """Return seeded random images as the source network's input: float32 [count, size, size, 3].

    They mix coarse and fine noise, so that every layer sees structure at its own scale.
    """
    random = np.random.default_rng(size)
    coarse = random.uniform(0, 255, (count, -(-size // 8), -(-size // 8), 3)).repeat(8, 1).repeat(8, 2)
    fine = random.uniform(0, 255, (count, size, size, 3))
    return normalized((coarse[:, :size, :size] + fine) / 2, convention)
