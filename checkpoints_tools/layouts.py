"""How arrays of a foreign checkpoint become variables of ours, and which shapes they must have for it."""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How arrays of a source become a variable of ours: `layout(*arrays)`.

    Attributes:
        function: arrays -> the variable.
        shapes: the variable's shape -> those that the arrays must have; may be more than there are arrays.
    """

    function: Callable[..., np.ndarray]
    shapes: Callable[[Shape], Iterable[Shape]]

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        return self.function(*arrays)


def _less(mean, *biases):
    return (np.asarray(mean, 'float64') - np.sum(biases, axis=0, dtype='float64')).astype('float32')


identity = Layout(lambda array: array, lambda shape: [shape])
from_oihw = Layout(lambda kernel: np.transpose(kernel, (2, 3, 1, 0)), lambda shape: [(*shape[:1:-1], *shape[:2])])
transposed = Layout(np.transpose, lambda shape: [shape[::-1]])
squeezed = Layout(lambda kernel: kernel[0, 0], lambda shape: [(1, 1, *shape)])  # a dense layer stored as a convolution
as_1x1 = Layout(lambda matrix: matrix[None, None], lambda shape: [shape[2:]])  # a convolution stored as a dense layer
less_biases = Layout(_less, itertools.repeat)  # the moving mean of a BN whose input lacks these biases in our net
