"""Pictures that stay encoded, and on the disk, until a batch needs them: TFRecord shards, or folders.

Any picture can be read at any time, by its number. So the order of training is a pure function of seed and epoch, as
with pictures in memory, and a run that is resumed has no shuffle buffer to fill again.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import zipfile

import numpy as np
import tensorflow as tf

from official_resnet import errors, files
from official_resnet.inputs import class_tables, jpeg, tfrecords
from official_resnet.inputs.images import Views

_SHARD = re.compile(r'-(\d{5})-of-(\d{5})$')
_BUILD = 'build them with data/build_imagenet_data.py'
OPEN_FILES = 256  # kept open at a time


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExamples:
    """One split of encoded pictures: what datasets.Examples is of those in memory.

    Attributes:
        source: Shards or Files.
        num_classes: labels are 0..num_classes-1.
        name: 'imagenet', 'tfds:NAME' or 'folder:PATH'.
        class_names: one string a class.
        class_ids: one string a class, as WordNet's, or None.
        normalization: a name in NORMALIZATIONS.
        views: Views.
        label_shift: outputs of the net before that of the first class: 1 where output 0 is the background.
        count: pictures to use, the first of the source; None for all.
    """

    source: object
    num_classes: int
    name: str
    class_names: tuple
    normalization: str
    views: Views
    label_shift: int = 0
    count: int | None = None
    class_ids: tuple | None = None

    @property
    def num_images(self):
        """Pictures."""
        return self.source.num_images if self.count is None else self.count

    @property
    def image_shape(self):
        """(height, width, channels) of a picture in evaluation."""
        return self.views.test_size, self.views.test_size, 3

    input_shape = image_shape

    def with_background(self):
        """Return the same with a class 0 of which there are no pictures, as TensorFlow's own nets have it."""
        return dataclasses.replace(
            self,
            num_classes=self.num_classes + 1,
            label_shift=self.label_shift + 1,
            class_names=('background', *self.class_names),
            class_ids=self.class_ids and (None, *self.class_ids),
        )

    @property
    def groups(self):
        """The number of each picture's shard, int32 [num_images]; training mixes a few shards at a time."""
        return self.source.groups[: self.num_images]

    def fingerprint(self):
        """Return a hash of what evaluation makes of them depends on."""
        text = repr((self.source.fingerprint(), self.num_images, self.normalization, self.views))
        return hashlib.sha256(text.encode()).hexdigest()


class Source:
    """Encoded pictures that are read by their numbers."""

    def __init__(self, num_images, groups):
        self.num_images = num_images
        self.groups = groups
        self.fault = None  # the UserError that ended the reading: TensorFlow passes on no exceptions

    def read(self, rows):
        """Return an object array of bytes, one of each number in rows."""
        result = np.empty(len(rows), object)
        with self._noting_faults():
            result[:] = [self._read_one(row) for row in rows]
        return result

    def read_tensor(self, rows):
        """Return `read` as a tensor, string [n]."""
        records = tf.numpy_function(self.read, [rows], tf.string, stateful=False)
        return tf.ensure_shape(records, rows.shape)

    @contextlib.contextmanager
    def _noting_faults(self):
        try:
            yield
        except errors.UserError as error:
            self.fault = error
            raise


class Shards(Source):
    """TFRecord files of tf.train.Example.

    Args:
        paths: the files, in their order.
        picture, label: keys of the JPEG bytes and of the label.
        first_label: the label in the files of the class that is 0 here.
        num_classes: labels beyond are refused as they are read; None takes all.
        is_rgb_jpeg: whether all pictures are; else they are made so as they are read, as those of Files.
        index_file: where to keep the places of the records; None: they are found anew each time.
        log: called with a line before something that takes a while.
    """

    def __init__(
        self,
        paths,
        picture='image/encoded',
        label='image/class/label',
        first_label=1,
        num_classes=None,
        is_rgb_jpeg=True,
        index_file=None,
        log=print,
    ):
        self.paths = [str(path) for path in paths]
        self._keys = picture, label, first_label
        self._last_label = first_label + num_classes - 1 if num_classes else np.iinfo(np.int32).max
        self._is_rgb_jpeg = is_rgb_jpeg
        offsets = _index(self.paths, index_file and pathlib.Path(index_file), log)
        counts = [len(places) - 1 for places in offsets]
        super().__init__(sum(counts), np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._begins = np.concatenate([places[:-1] for places in offsets])
        self._ends = np.concatenate([places[1:] for places in offsets])
        self._open = functools.lru_cache(OPEN_FILES)(lambda i: open(self.paths[i], 'rb', buffering=0))

    def _read_one(self, row):
        path = self.paths[self.groups[row]]
        try:
            file = self._open(self.groups[row])  # closed when the cache and the last reader let go of it
            return tfrecords.read_at(file.fileno(), int(self._begins[row]), int(self._ends[row]), path)
        except OSError as error:
            raise errors.UserError(f"'{path}' cannot be read any more ({error.strerror}); put it back") from None

    def load(self, rows):
        """Return (JPEG string [n], labels int32 [n], boxes float32 [n, (k), 4] ragged) of int rows [n], as tensors."""
        picture, label, first_label = self._keys
        sides = [f'image/object/bbox/{side}' for side in ('ymin', 'xmin', 'ymax', 'xmax')]
        features = {
            picture: tf.io.FixedLenFeature([], tf.string, ''),  # what is missing is found by _check
            label: tf.io.FixedLenFeature([], tf.int64, first_label - 1),
        }
        features |= {side: tf.io.RaggedFeature(tf.float32) for side in sides}
        parsed = tf.io.parse_example(self.read_tensor(rows), features)
        boxes = parsed[sides[0]].with_flat_values(tf.stack([parsed[side].flat_values for side in sides], -1))
        jpegs = parsed[picture]
        labels = tf.numpy_function(self._check, [rows, parsed[label], tf.strings.length(jpegs)], tf.int32, False)
        if not self._is_rgb_jpeg:
            jpegs = tf.ensure_shape(tf.numpy_function(self._convert, [rows, jpegs], tf.string, False), rows.shape)
        return jpegs, tf.ensure_shape(labels, rows.shape) - first_label, boxes

    def _check(self, rows, labels, sizes):
        """Return the labels, int32 [n]; refuse records of other things, or of other classes."""
        for row, label, size in zip(rows, labels, sizes, strict=True):
            fault = None if size else f'without a picture {self._keys[0]}; pass the folder of the data set'
            if size and not self._keys[2] <= label <= self._last_label:
                fault = (
                    f'with the label {label}, not {self._keys[2]}..{self._last_label}; put the manifest.json '
                    'that its builder wrote beside it, or build it again'
                )
            if fault:
                with self._noting_faults():
                    raise errors.UserError(f"'{self.paths[self.groups[row]]}' has a record {fault}")
        return labels.astype(np.int32)

    def _convert(self, rows, pictures):
        """Return the pictures as RGB JPEGs."""
        result = np.empty(len(rows), object)
        with self._noting_faults():
            for i, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
                try:
                    result[i] = jpeg.to_rgb_jpeg(picture)[0]
                except ValueError as error:
                    raise errors.UserError(
                        f"'{self.paths[self.groups[row]]}' has a broken picture in the record at "
                        f'byte {self._begins[row]} ({error}); fetch it again'
                    ) from None
        return result

    def labels(self):
        """Yield the label of each record, 0..; reads everything."""
        for path in self.paths:
            for record in tfrecords.read(path):
                yield tfrecords.decode_example(record)[self._keys[1]][0] - self._keys[2]

    def fingerprint(self):
        """Return a hash of names and sizes."""
        return _fingerprint(self.paths)


class Files(Source):
    """Picture files; what is no RGB JPEG is turned into one as it is read.

    Args:
        paths: the files.
        labels: 0.., one a file.
    """

    def __init__(self, paths, labels):
        super().__init__(len(paths), np.zeros(len(paths), np.int32))
        self.paths = [str(path) for path in paths]
        self._labels = np.asarray(labels, np.int32)

    def _read_one(self, row):
        path = self.paths[row]
        try:
            return jpeg.to_rgb_jpeg(pathlib.Path(path).read_bytes(), keeps_grey=True)[0]
        except OSError as error:
            raise errors.UserError(f"'{path}' cannot be read ({error.strerror}); put it back") from None
        except ValueError as error:
            raise errors.UserError(f"'{path}' is no whole picture ({error}); mend or remove it") from None

    def load(self, rows):
        """Return what Shards.load returns; there are no boxes."""
        boxes = tf.RaggedTensor.from_row_lengths(tf.zeros([0, 4]), tf.zeros_like(rows))
        return self.read_tensor(rows), tf.gather(self._labels, rows), boxes

    def labels(self):
        """Return the label of each file, 0.. ."""
        return self._labels

    def fingerprint(self):
        """Return a hash of names and sizes."""
        return _fingerprint(self.paths)


@contextlib.contextmanager
def input_errors(examples, remedy='mend or remove it'):
    """Turn what TensorFlow says of encoded pictures that cannot be read into one line; of other Examples nothing.

    Raises:
        UserError: what their source said, or that a picture cannot be decoded.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if getattr(getattr(examples, 'source', None), 'fault', None):
            raise examples.source.fault from None
        if 'jpeg' not in error.message.lower() and 'image' not in error.message.lower():
            raise
        raise errors.UserError(f'a picture of {examples.name} cannot be decoded; {remedy}') from error


def find_shards(data_dir, split):
    """Return the paths of train-00000-of-01024 ... in a folder, or of validation-..., however many there are.

    Args:
        data_dir: the folder.
        split: 'train' or 'test', whose files are called validation.

    Raises:
        UserError: there are none, or not all, or those of two builds.
    """
    folder, prefix = pathlib.Path(data_dir), {'train': 'train', 'test': 'validation'}[split]
    if not folder.is_dir():
        fault = 'is not a folder' if folder.exists() else 'does not exist'
        raise errors.UserError(f"data_dir '{folder}' {fault}; pass the folder of {prefix}-00000-of-..., or {_BUILD}")
    found = sorted(path for path in folder.glob(f'{prefix}-*-of-*') if _SHARD.search(path.name))
    if not found:
        raise errors.UserError(f"data_dir '{folder}' has no {prefix}-00000-of-...; {_BUILD}, or pass another")
    totals = sorted({int(_SHARD.search(path.name)[2]) for path in found})
    if len(totals) > 1:
        raise errors.UserError(
            f"data_dir '{folder}' has {prefix} shards of a set of {totals[0]} and of one of "
            f'{totals[1]}; remove one of them'
        )
    missing = sorted(set(range(totals[0])) - {int(_SHARD.search(path.name)[1]) for path in found})
    if missing:
        raise errors.UserError(
            f"data_dir '{folder}' lacks {len(missing)} of {totals[0]} {prefix} shards, the first is "
            f'{missing[0]:05d}; {_BUILD}, which goes on where it stopped'
        )
    return found


def manifest_classes(data_dir, split):
    """Return [(id, name), ...] of the classes of a folder of shards: ILSVRC2012's, where no builder left a manifest."""
    prefix = {'train': 'train', 'test': 'validation'}[split]
    known = dict(class_tables.imagenet_classes())
    try:
        manifest = json.loads((pathlib.Path(data_dir) / f'{prefix}.manifest.json').read_text(encoding='utf-8'))
        return [(synset, known.get(synset, synset)) for synset in manifest['synsets'][1:]]
    except FileNotFoundError:
        return list(known.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.UserError(f"the manifest of {prefix} in '{data_dir}' is damaged ({error}); {_BUILD}") from None


def _index(paths, index_file, log):
    """Return the places of the records of each file; from index_file, if it is of these files."""
    key = _fingerprint(paths)
    if index_file and index_file.is_file():
        try:
            with np.load(index_file, allow_pickle=False) as archive:
                if str(archive['key']) == key:
                    return np.split(archive['offsets'], np.cumsum(archive['counts'])[:-1])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
    if len(paths) > 100:
        log(f'finding the records of {len(paths)} shards in {os.path.dirname(paths[0])}')
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # waits for the disk
        offsets = list(pool.map(tfrecords.index, paths))
    if index_file:
        with contextlib.suppress(OSError):  # a data_dir that may only be read
            with files.replacing(index_file, is_shared=True) as part, open(part, 'wb') as file:
                np.savez(file, key=key, offsets=np.concatenate(offsets), counts=[len(places) for places in offsets])
    return offsets


def _fingerprint(paths):
    """Return a hash of files, by their names and sizes."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(f'{os.path.basename(path)} {os.path.getsize(path)}\n'.encode())
        except OSError as error:
            raise errors.UserError(f"'{path}' cannot be read ({error.strerror}); put it back") from None
    return digest.hexdigest()
