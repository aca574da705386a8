"""Read IDX, the format of MNIST.

An IDX file is two zero bytes, the type of the values (8: unsigned bytes), the number of dimensions, each dimension as 4
bytes, high byte first, and the values in C order. It is often compressed by gzip. Images are [n, rows, columns], so
they begin with 0x00000803; labels are [n] and begin with 0x00000801. Source: http://yann.lecun.com/exdb/mnist/
"""

import math
import os
import struct

import numpy as np

from official_resnet import bounds, errors, files
from official_resnet.inputs import archives

_CHUNK = 1 << 20  # bytes
_REMEDY = 'replace it, or pass another --data_dir'


def read_idx(
    images_path: str | os.PathLike,
    labels_path: str | os.PathLike,
    num_classes: int = 10,
    image_size: tuple[int, int] = (28, 28),
) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [n, rows, columns, 1], 0..255, labels int32 [n]) of a pair of IDX files.

    Each file may be compressed by gzip, whatever its name. At most one byte more than its header declares is read or
    decompressed. Images must have the size `image_size`, (rows, columns), and labels must be in 0..num_classes-1.

    Raises:
        UserError: A file is missing or damaged, has images of another size or a wrong label, or the two differ in n.
    """
    images, labels = _read_idx_file(images_path, 3), _read_idx_file(labels_path, 1).astype(np.int32)
    rows, columns = images.shape[1:]
    if (rows, columns) != tuple(image_size):
        fault = f'has images of {rows} x {columns}, not {image_size[0]} x {image_size[1]}'
        raise errors.UserError(f"'{images_path}' {fault}; {_REMEDY}")
    if len(images) != len(labels):
        fault = f"has {len(images)} images, '{labels_path}' {len(labels)} labels"
        raise errors.UserError(f"'{images_path}' {fault}; take both files from the same source")
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        fault = f'has label {labels[wrong[0]]} at {wrong[0]} (counted from 0), outside 0..{num_classes - 1}'
        raise errors.UserError(f"'{labels_path}' {fault}; {_REMEDY}")
    return images[..., None], labels


def _read_idx_file(path, num_dimensions):
    """Return the values of an IDX file, a uint8 array with `num_dimensions` dimensions, each at least 1."""
    with files.read_errors(path, 'pass another --data_dir'), archives.unpacked(path) as file:
        try:
            shape = _idx_shape(path, file.read(4 + 4 * num_dimensions), num_dimensions)
            size = math.prod(shape)
            data = bytearray()  # grows as bytes arrive, because a header may declare any size
            while len(data) <= size and (chunk := file.read(min(_CHUNK, size + 1 - len(data)))):
                data += chunk
        except archives.GZIP_ERRORS as error:
            raise errors.UserError(f"'{path}' is a damaged gzip file ({error}); {_REMEDY}") from None
    if len(data) != size:
        found = f'is cut off after {len(data)} of' if len(data) < size else 'has more than'
        raise errors.UserError(f"'{path}' {found} the {size} bytes that its header declares; {_REMEDY}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_shape(path, header, num_dimensions):
    """Return the dimensions that an IDX header declares, each at least 1."""
    kind = 'images' if num_dimensions == 3 else 'labels'
    shape = struct.unpack(f'>{len(header) // 4 - 1}I', header[4 : len(header) // 4 * 4]) if len(header) >= 4 else ()
    if len(header) < 4 or header[:2] != b'\0\0':
        fault = f'is not an IDX file: it begins with 0x{header[:4].hex()}'
    elif header[2:4] != bytes([8, num_dimensions]):
        fault = f'has type 0x{header[2]:02x} and {header[3]} dimensions; {kind} have 0x08 (bytes) and {num_dimensions}'
    elif len(shape) < num_dimensions:
        fault = f'is cut off in its header, after {len(header)} bytes'
    elif 0 in shape or math.prod(shape) > bounds.limit('idx_bytes'):
        fault = f'declares {" x ".join(map(str, shape))} bytes of {kind}, outside 1..{bounds.limit("idx_bytes")}'
    else:
        return shape
    raise errors.UserError(f"'{path}' {fault}; {_REMEDY}")
