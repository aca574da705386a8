"""Read the CIFAR binary format.

A CIFAR record is the label (CIFAR-10: one byte; CIFAR-100: the coarse, then the fine label) and 3072 bytes of pixels:
the red, the green and the blue plane, each 32 rows of 32. A file contains only records.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
from collections.abc import Iterable

import numpy as np

from official_resnet import errors, files

IMAGE_BYTES = 3072
_REMEDY = 'delete it and run cifar10_download_and_extract.py again'


def read_cifar(
    paths: Iterable[str | os.PathLike], label_bytes: int = 1, num_classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [n, 32, 32, 3], RGB, 0..255, labels int32 [n]) of CIFAR binary files, in the order given.

    A record begins with 1 (CIFAR-10) or 2 (CIFAR-100) label bytes; the last of them is the label, 0..num_classes-1.

    Raises:
        UserError: A file is missing, unreadable, empty or cut off inside a record, or a label is out of range.
    """
    images, labels = [], []
    for path in paths:
        with files.read_errors(path, 'run cifar10_download_and_extract.py, or pass another --data_dir'):
            data = files.read_bytes(path)
        if not data:
            raise errors.UserError(f"'{path}' is empty; {_REMEDY}")
        num_records, rest = divmod(len(data), label_bytes + IMAGE_BYTES)
        if rest:
            fault = f'record {num_records} (counted from 0) is cut off after {rest} of its {label_bytes + IMAGE_BYTES}'
            raise errors.UserError(f"'{path}' has {len(data)} bytes: {fault} bytes; {_REMEDY}")
        records = np.frombuffer(data, np.uint8).reshape(num_records, -1)
        file_labels = records[:, label_bytes - 1].astype(np.int32)
        wrong = np.flatnonzero(file_labels >= num_classes)
        if wrong.size:
            place = f'in record {wrong[0]} (counted from 0), outside 0..{num_classes - 1}'
            raise errors.UserError(f"'{path}' has label {file_labels[wrong[0]]} {place}; {_REMEDY}")
        planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
        images.append(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))  # [3, 32, 32] -> [32, 32, 3]
        labels.append(file_labels)
    return np.concatenate(images), np.concatenate(labels)
