"""Write images and labels to files that cifar.read_cifar and idx.read_idx read back unchanged."""

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_cifar(path: str | os.PathLike, images: np.ndarray, labels: np.ndarray | Sequence[int]) -> None:
    """Write images to one CIFAR binary file. An existing file is replaced.

    Args:
        images: uint8 [n, 32, 32, 3], RGB.
        labels: Integers in 0..255: [n] for CIFAR-10, or [n, 2], coarse and fine, for CIFAR-100.

    Raises:
        ValueError: An array has another shape or dtype, or a label is out of range.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
        raise ValueError(f'images must be uint8 [{len(labels)}, 32, 32, 3]: {images.dtype} {images.shape}')
    if labels.shape[1:] not in ((), (2,)) or np.any((labels < 0) | (labels > 255)):
        raise ValueError(f'labels must be integers in 0..255, [n] or [n, 2]: {labels.shape}')
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)  # [32, 32, 3] -> [3, 32, 32]
    columns = labels.reshape(len(labels), -1).astype(np.uint8)
    Path(path).write_bytes(np.concatenate([columns, planes], axis=1).tobytes())


def write_idx(path: str | os.PathLike, values: np.ndarray) -> None:
    """Write uint8 images [n, rows, columns] or labels [n] to one IDX file, packed by gzip if its name ends in .gz.

    Raises:
        ValueError: The array has another shape or dtype.
    """
    values = np.asarray(values)
    if values.dtype != np.uint8 or values.ndim not in (1, 3):
        raise ValueError(f'values must be uint8 [n, rows, columns] or [n]: {values.dtype} {values.shape}')
    data = struct.pack(f'>HBB{values.ndim}I', 0, 8, values.ndim, *values.shape) + values.tobytes()
    Path(path).write_bytes(gzip.compress(data, mtime=0) if Path(path).suffix == '.gz' else data)
