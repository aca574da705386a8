"""TFRecord shards of encoded images: found, indexed, and read at any place."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from official_resnet import errors, files
from official_resnet.inputs import images, other_datasets, streamed, tfrecords
from official_resnet.inputs.views import Views

OPEN_FILES = 256  # kept open at a time
_PREFIXES = {'train': 'train', 'test': 'validation'}  # of a split's files
_SHARD = re.compile(r'-(\d{5})-of-(\d{5})$')
_BUILD = 'build them with data/build_imagenet_data.py'


def open_split(
    dataset: str, split: str, data_dir: str | os.PathLike | None, views: Views | None
) -> streamed.StreamedSplit:
    """Find a split of a folder of shards; see datasets.open_split."""
    if data_dir is None:
        raise errors.UserError(f'{dataset} needs a data_dir; pass --data_dir, the folder of its TFRecord shards')
    paths = find_shards(data_dir, split)
    ids, names = zip(*manifest_classes(data_dir, split), strict=True)
    index_file = pathlib.Path(data_dir) / f'.{_PREFIXES[split]}.index.npz'
    source = Shards(paths, num_classes=len(names), index_file=index_file)
    normalization = other_datasets.default_normalization(dataset)
    return streamed.StreamedSplit(source, len(names), dataset, names, normalization, views or Views(), class_ids=ids)


@dataclasses.dataclass(frozen=True)
class Records:
    """What the records of a kind of files hold: tf.train.Example with these keys."""

    image: str = 'image/encoded'
    label: str = 'image/class/label'
    first_label: int = 1  # the label in the files of the class that is 0 here
    is_rgb_jpeg: bool = True  # whether all images are; else they are made so as they are read, as in streamed.Files


class Shards(streamed.Source):
    """TFRecord files.

    Args:
        records: what they hold; without, what data/build_imagenet_data.py writes.
        num_classes: labels beyond are refused as they are read; None takes all.
        index_file: where to keep the places of the records; None: they are found anew each time.
        log: called with a line before something that takes a while.
    """

    remedy = 'find it with data/build_imagenet_data.py --verify'

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        records: Records = Records(),
        num_classes: int | None = None,
        index_file: str | os.PathLike | None = None,
        log: Callable = print,
    ):
        paths = [str(path) for path in paths]
        offsets = _index(paths, index_file and pathlib.Path(index_file), log)
        counts = [len(places) - 1 for places in offsets]
        super().__init__(paths, sum(counts), np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._records = records
        self._last_label = records.first_label + num_classes - 1 if num_classes else np.iinfo(np.int32).max
        self._begins = np.concatenate([places[:-1] for places in offsets])
        self._ends = np.concatenate([places[1:] for places in offsets])
        self._open = functools.lru_cache(OPEN_FILES)(lambda i: open(self.paths[i], 'rb', buffering=0))

    def _read_one(self, row):
        path = self.paths[self.groups[row]]
        with files.read_errors(path, 'put it back'):
            file = self._open(self.groups[row])  # closed when the cache and the last reader let go of it
            return tfrecords.read_at(file.fileno(), int(self._begins[row]), int(self._ends[row]), path)

    def load(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.RaggedTensor]:
        """Return (JPEG string [n], labels int32 [n], boxes float32 [n, (k), 4]) of int rows [n]."""
        records = self._records
        sides = [f'image/object/bbox/{side}' for side in ('ymin', 'xmin', 'ymax', 'xmax')]
        features = {
            records.image: tf.io.FixedLenFeature([], tf.string, ''),  # what is missing is found by _check
            records.label: tf.io.FixedLenFeature([], tf.int64, records.first_label - 1),
        }
        features |= {side: tf.io.RaggedFeature(tf.float32) for side in sides}
        parsed = tf.io.parse_example(streamed.call_python(self.read, [rows], tf.string), features)
        boxes = parsed[sides[0]].with_flat_values(tf.stack([parsed[side].flat_values for side in sides], -1))
        jpegs = parsed[records.image]
        sizes = tf.strings.length(jpegs)
        labels = streamed.call_python(self._check, [rows, parsed[records.label], sizes], tf.int32)
        if not records.is_rgb_jpeg:
            jpegs = streamed.call_python(self._convert, [rows, jpegs], tf.string)
        return jpegs, labels - records.first_label, boxes

    def _check(self, rows, labels, sizes):
        """Return the labels, int32 [n]; refuse records of other things, or of other classes."""
        records = self._records
        for row, label, size in zip(rows, labels, sizes, strict=True):
            fault = None if size else f'without an image {records.image}; pass the folder of the data set'
            if size and not records.first_label <= label <= self._last_label:
                fault = f'with the label {label}, not {records.first_label}..{self._last_label}; put the '
                fault += 'manifest.json that its builder wrote beside it, or build it again'
            if fault:
                raise errors.UserError(f"'{self.paths[self.groups[row]]}' has a record {fault}")
        return labels.astype(np.int32)

    def _convert(self, rows, encoded):
        """Return the images as RGB JPEGs."""
        result = np.empty(len(rows), object)
        for i, (row, image) in enumerate(zip(rows, encoded, strict=True)):
            try:
                result[i] = images.to_rgb_jpeg(image)[0]
            except ValueError as error:
                place = f'in the record at byte {self._begins[row]}'
                path = self.paths[self.groups[row]]
                raise errors.UserError(f"'{path}' has a broken image {place} ({error}); fetch it again") from None
        return result


def find_shards(data_dir: str | os.PathLike, split: str) -> list[pathlib.Path]:
    """Return the paths of train-00000-of-01024 ... in a folder, or for 'test' of validation-..., all there are.

    Raises:
        UserError: there are none, or not all, or those of two builds.
    """
    folder, prefix = pathlib.Path(data_dir), _PREFIXES[split]
    if not folder.is_dir():
        fault = 'is not a folder' if folder.exists() else 'does not exist'
        raise errors.UserError(f"data_dir '{folder}' {fault}; pass the folder of {prefix}-00000-of-..., or {_BUILD}")
    found = sorted(path for path in folder.glob(f'{prefix}-*-of-*') if _SHARD.search(path.name))
    if not found:
        raise errors.UserError(f"data_dir '{folder}' has no {prefix}-00000-of-...; {_BUILD}, or pass another")
    totals = sorted({int(_SHARD.search(path.name)[2]) for path in found})
    if len(totals) > 1:
        fault = f'has {prefix} shards of a set of {totals[0]} and of one of {totals[1]}'
        raise errors.UserError(f"data_dir '{folder}' {fault}; remove one of them")
    missing = sorted(set(range(totals[0])) - {int(_SHARD.search(path.name)[1]) for path in found})
    if missing:
        fault = f'lacks {len(missing)} of {totals[0]} {prefix} shards, the first is {missing[0]:05d}'
        raise errors.UserError(f"data_dir '{folder}' {fault}; {_BUILD}, which goes on where it stopped")
    return found


def manifest_classes(data_dir: str | os.PathLike, split: str) -> list[tuple[str, str]]:
    """Return [(id, name), ...] of the classes of a folder of shards: ILSVRC2012's, where no builder left a manifest."""
    prefix = _PREFIXES[split]
    known = dict(other_datasets.imagenet_classes())
    try:
        manifest = json.loads((pathlib.Path(data_dir) / f'{prefix}.manifest.json').read_text(encoding='utf-8'))
        return [(synset, known.get(synset, synset)) for synset in manifest['synsets'][1:]]
    except FileNotFoundError:
        return list(known.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.UserError(f"the manifest of {prefix} in '{data_dir}' is damaged ({error}); {_BUILD}") from None


def _index(paths, index_file, log):
    """Return the places of the records of each file; from index_file, if it is of these files."""
    key = streamed.files_fingerprint(paths)
    if index_file:
        faults = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
        with contextlib.suppress(*faults), np.load(index_file, allow_pickle=False) as archive:
            if str(archive['key']) == key:
                return np.split(archive['offsets'], np.cumsum(archive['counts'])[:-1])
    if len(paths) > 100:
        log(f'finding the records of {len(paths)} shards in {os.path.dirname(paths[0])}')
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # waits for the disk
        offsets = list(pool.map(tfrecords.index, paths))
    if index_file:
        with contextlib.suppress(OSError):  # a data_dir that may only be read
            with files.replacing(index_file, is_shared=True) as part, open(part, 'wb') as file:
                np.savez(file, key=key, offsets=np.concatenate(offsets), counts=[len(places) for places in offsets])
    return offsets
