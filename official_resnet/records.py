"""Bytes <-> (uint8 pictures, int32 labels): the CIFAR binary format, and IDX, the format of MNIST.

A CIFAR record is the label (CIFAR-10: one byte; CIFAR-100: the coarse, then the fine label) and 3072 bytes
of pixels: the red, the green and the blue plane, each 32 rows of 32. A file is records and nothing else.
Source: https://www.cs.toronto.edu/~kriz/cifar.html

An IDX file is two zero bytes, the type of the values (8: unsigned bytes), the number of dimensions, each
dimension as 4 bytes, high byte first, and the values in C order; often packed by gzip. Pictures are
[n, rows, columns], so begin with 0x00000803, labels [n], 0x00000801. Source: http://yann.lecun.com/exdb/mnist/
"""

import contextlib
import functools
import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from official_resnet import errors

IMAGE_SHAPE = (32, 32, 3)
IMAGE_BYTES = 3072
# In the order of the labels: batches.meta.txt and fine_label_names.txt of the archives.
CIFAR10_CLASSES = tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
MNIST_CLASSES = tuple('0123456789')
FASHION_MNIST_CLASSES = (  # of github.com/zalandoresearch/fashion-mnist, section Labels
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip

_IDX_LIMIT = 1 << 30  # bytes of values in a file; the largest of its kind, EMNIST's, has 547 million
_CHUNK = 1 << 20  # bytes
_IDX_REMEDY = 'replace it, or pass another --data_dir'
_REMEDY = 'delete it and run cifar10_download_and_extract.py again'


@functools.lru_cache
def imagenet_classes():
    """Return ((id, name), ...) of ILSVRC2012's 1000 classes in the order of their labels; ids are WordNet's."""
    text = Path(__file__).with_name('imagenet_labels.tsv').read_text(encoding='utf-8')
    return tuple(tuple(line.split('\t')) for line in text.splitlines())


def read_cifar(paths, label_bytes=1, num_classes=10):
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


def write_cifar(path, images, labels, label_bytes=1, coarse_labels=None):
    """Write pictures as one CIFAR binary file, which `read_cifar` reads back unchanged.

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


def read_idx(images_path, labels_path, num_classes=10, image_size=(28, 28)):
    """Read a pair of IDX files, each plain or packed by gzip, whatever its name.

    No more is read or unpacked than the header declares, and one byte.

    Args:
        images_path, labels_path: the files.
        num_classes: labels must lie in 0..num_classes-1.
        image_size: (rows, columns) that the pictures must have.

    Returns:
        (images, labels): uint8 [n, rows, columns, 1], 0..255, and int32 [n].

    Raises:
        UserError: a file is missing, unreadable, no IDX file, cut off, too long, or a damaged gzip file; the
            two disagree about n; pictures of another size; a label out of range.
    """
    images = _read_idx_file(images_path, 3)
    labels = _read_idx_file(labels_path, 1).astype(np.int32)
    if images.shape[1:] != tuple(image_size):
        rows, columns = images.shape[1:]
        raise errors.UserError(
            f"'{images_path}' has pictures of {rows} x {columns}, not {image_size[0]} x {image_size[1]}; {_IDX_REMEDY}"
        )
    if len(images) != len(labels):
        raise errors.UserError(
            f"'{images_path}' has {len(images)} pictures, '{labels_path}' {len(labels)} labels; "
            'take both files from the same source'
        )
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        raise errors.UserError(
            f"'{labels_path}' has label {labels[wrong[0]]} at {wrong[0]} (counted from 0), "
            f'outside 0..{num_classes - 1}; {_IDX_REMEDY}'
        )
    return images[..., None], labels


def write_idx(path, values):
    """Write bytes as one IDX file, packed by gzip if its name ends in .gz; `read_idx` reads them back.

    Args:
        path: the file, replaced if it exists.
        values: uint8 [n, rows, columns] pictures or [n] labels.

    Raises:
        ValueError: an array of another shape or type.
    """
    values = np.asarray(values)
    if values.dtype != np.uint8 or values.ndim not in (1, 3):
        raise ValueError(f'values must be uint8 [n, rows, columns] or [n]: {values.dtype} {values.shape}')
    data = struct.pack(f'>HBB{values.ndim}I', 0, 8, values.ndim, *values.shape) + values.tobytes()
    Path(path).write_bytes(gzip.compress(data, mtime=0) if Path(path).suffix == '.gz' else data)


def _read_idx_file(path, num_dimensions):
    """Return the values of an IDX file, uint8 of so many dimensions; the first is not 0."""
    with _file_errors(path, 'pass another --data_dir'), open(path, 'rb') as file:
        is_packed = file.read(2) == b'\x1f\x8b'
        file.seek(0)
        with gzip.open(file) if is_packed else contextlib.nullcontext(file) as unpacked:
            try:
                shape = _idx_shape(path, unpacked.read(4 + 4 * num_dimensions), num_dimensions)
                size = math.prod(shape)
                data = bytearray()  # grows with what is there: a header may promise anything
                while len(data) <= size and (chunk := unpacked.read(min(_CHUNK, size + 1 - len(data)))):
                    data += chunk
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise errors.UserError(f"'{path}' is a damaged gzip file ({error}); {_IDX_REMEDY}") from None
    if len(data) != size:
        found = f'is cut off after {len(data)} of' if len(data) < size else 'has more than'
        raise errors.UserError(f"'{path}' {found} the {size} bytes that its header declares; {_IDX_REMEDY}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_shape(path, header, num_dimensions):
    """Return the dimensions that an IDX header declares, each from 1."""
    kind = 'pictures' if num_dimensions == 3 else 'labels'
    if len(header) < 4 or header[:2] != b'\0\0':
        raise errors.UserError(f"'{path}' is no IDX file: it begins with 0x{header[:4].hex()}; {_IDX_REMEDY}")
    if header[2:4] != bytes([8, num_dimensions]):
        raise errors.UserError(
            f"'{path}' has type 0x{header[2]:02x} and {header[3]} dimensions; {kind} have 0x08, bytes, "
            f'and {num_dimensions}; {_IDX_REMEDY}'
        )
    if len(header) < 4 + 4 * num_dimensions:
        raise errors.UserError(f"'{path}' is cut off in its header, after {len(header)} bytes; {_IDX_REMEDY}")
    shape = struct.unpack(f'>{num_dimensions}I', header[4:])
    if 0 in shape or math.prod(shape) > _IDX_LIMIT:
        raise errors.UserError(
            f"'{path}' declares {' x '.join(map(str, shape))} bytes of {kind}, outside 1..{_IDX_LIMIT}; {_IDX_REMEDY}"
        )
    return shape


def _read_file(path, record_bytes):
    """Return the records of one file, uint8 [n, record_bytes]."""
    with _file_errors(path, 'run cifar10_download_and_extract.py, or pass another --data_dir'):
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


@contextlib.contextmanager
def _file_errors(path, remedy):
    """Turn what the operating system says about a file into a UserError; `remedy` is for a missing one."""
    try:
        yield
    except FileNotFoundError:
        raise errors.UserError(f"'{path}' does not exist; {remedy}") from None
    except OSError as error:
        raise errors.UserError(
            f"'{path}' cannot be read ({error.strerror}); make it a file that you may read"
        ) from None
