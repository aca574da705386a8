"""Bytes <-> (uint8 images, int32 labels): the CIFAR binary format.

A CIFAR record is the label (CIFAR-10: one byte; CIFAR-100: the coarse, then the fine label) and 3072 bytes
of pixels: the red, the green and the blue plane, each 32 rows of 32. A file is records and nothing else.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from official_resnet import errors, files

IMAGE_SHAPE = (32, 32, 3)
IMAGE_BYTES = 3072
_REMEDY = 'delete it and run cifar10_download_and_extract.py again'


def read_cifar(
    paths: Iterable[str | os.PathLike], label_bytes: int = 1, num_classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Read CIFAR binary files, in the order given.

    Args:
        paths: the files.
        label_bytes: label bytes of a record, 1 (CIFAR-10) or 2 (CIFAR-100); the last one is the label.
        num_classes: labels must lie in 0..num_classes-1.

    Returns:
        (images, labels): uint8 [n, 32, 32, 3], RGB, 0..255, and int32 [n].

    Raises:
        UserError: a file is missing, unreadable, empty or cut off inside a record; a label is out of range.
    """
    images, labels = [], []
    for path in paths:
        records = _read_file(path, label_bytes + IMAGE_BYTES)
        file_labels = records[:, label_bytes - 1].astype(np.int32)
        wrong = np.flatnonzero(file_labels >= num_classes)
        if wrong.size:
            raise errors.UserError(
                f"'{path}' has label {file_labels[wrong[0]]} in record {wrong[0]} (counted from 0), "
                f'outside 0..{num_classes - 1}; {_REMEDY}'
            )
        planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
        images.append(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))  # [3, 32, 32] -> [32, 32, 3]
        labels.append(file_labels)
    return np.concatenate(images), np.concatenate(labels)


def write_cifar(
    path: str | os.PathLike,
    images: np.ndarray,
    labels: Sequence[int],
    label_bytes: int = 1,
    coarse_labels: Sequence[int] | None = None,
) -> None:
    """Write images as one CIFAR binary file, which `read_cifar` reads back unchanged.

    Args:
        path: the file, replaced if it exists.
        images: uint8 [n, 32, 32, 3], RGB.
        labels: integers [n] in 0..255; with two label bytes the fine ones.
        label_bytes: 1 or 2.
        coarse_labels: integers [n] in 0..255, the first of two label bytes; None writes zeros.

    Raises:
        ValueError: arrays of another shape or type, or coarse labels without a byte to hold them.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.shape != (len(labels), *IMAGE_SHAPE):
        raise ValueError(f'images must be uint8 [{len(labels)}, 32, 32, 3]: {images.dtype} {images.shape}')
    if label_bytes not in (1, 2) or (coarse_labels is not None and label_bytes == 1):
        raise ValueError(f'label_bytes must be 1, or 2 with coarse labels, not {label_bytes}')
    columns = [labels]
    if label_bytes == 2:
        columns.insert(0, np.zeros_like(labels) if coarse_labels is None else np.asarray(coarse_labels))
    for column in columns:
        if column.shape != labels.shape or np.any((column < 0) | (column > 255)):
            raise ValueError(f'labels must be {len(labels)} integers in 0..255')
    planes = images.transpose(0, 3, 1, 2).reshape(-1, IMAGE_BYTES)  # [32, 32, 3] -> [3, 32, 32]
    label_columns = np.stack(columns, axis=1).astype(np.uint8)
    Path(path).write_bytes(np.concatenate([label_columns, planes], axis=1).tobytes())


def _read_file(path, record_bytes):
    """Return the records of one file, uint8 [n, record_bytes]."""
    with files.read_errors(path, 'run cifar10_download_and_extract.py, or pass another --data_dir'):
        data = Path(path).read_bytes()
    if not data:
        raise errors.UserError(f"'{path}' is empty; {_REMEDY}")
    num_records, rest = divmod(len(data), record_bytes)
    if rest:
        raise errors.UserError(
            f"'{path}' has {len(data)} bytes: record {num_records} (counted from 0) is cut off after "
            f'{rest} of its {record_bytes} bytes; {_REMEDY}'
        )
    return np.frombuffer(data, np.uint8).reshape(num_records, record_bytes)
