"""The whitening stem of fast CIFAR networks, computed from the training images (arXiv:2404.00498 Sec. 3.1)."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from official_resnet.errors import UserError
from official_resnet.inputs.normalization import NORMALIZATIONS

if TYPE_CHECKING:
    from official_resnet.inputs.split import Split

NUM_IMAGES = 5000  # the first ones of the training split, as in airbench94
EPSILON = 5e-4  # added to the variances


def set_stem(model: keras.Model, split: 'Split') -> None:
    """Set the kernel of a network's whitening stem by the first images of a split, normalized as for training.

    Raises:
        UserError: The stem has not two filters for each value of a patch.
    """
    layer = model.get_layer('stem_conv')
    side, _, channels, filters = layer.kernel.shape
    needed = 2 * side * side * channels
    if filters != needed:
        raise UserError(f'stem_filters={filters} with images of {channels} channels; a whitening stem needs {needed}')
    images = NORMALIZATIONS[split.normalization](split.example_images(min(NUM_IMAGES, split.num_images)))
    layer.kernel.assign(whitening_kernel(np.asarray(images), side))


def whitening_kernel(images: np.ndarray, side: int, epsilon: float = EPSILON) -> np.ndarray:
    """Return the convolution that decorrelates patches: the eigenvectors of their second moments, with both signs.

    >>> whitening_kernel(np.random.default_rng(0).normal(size=(10, 8, 8, 3)), side=2).shape
    (2, 2, 3, 24)

    Args:
        images: Normalized images, float [n, h, w, c].
        side: Height and width of a patch in pixels.
        epsilon: What is added to an eigenvalue before the root, by which the eigenvector is divided.

    Returns:
        A kernel, float32 [side, side, c, 2 * side * side * c]. The responses of its first half have the second moments
        lambda / (lambda + epsilon) and are not correlated; the second half is their negative.
    """
    size = side * side * images.shape[-1]
    moments, count = np.zeros((size, size)), 0
    for part in np.array_split(images, -(-len(images) // 500)):  # a patch takes 12 times the memory of a pixel
        patches = np.lib.stride_tricks.sliding_window_view(part, (side, side), (1, 2))  # [n, h', w', c, side, side]
        flat = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype('float64')
        moments, count = moments + flat.T @ flat, count + len(flat)
    values, vectors = np.linalg.eigh(moments / count)
    # The sign of an eigenvector is free: its largest entry is positive, so that every machine finds the same kernel.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(size)])
    kernel = (vectors / np.sqrt(values + epsilon)).reshape(side, side, images.shape[-1], size)
    return np.concatenate([kernel, -kernel], -1).astype('float32')
