"""Find and index TFRecord shards of encoded images, and read any image by its number."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from official_resnet import damage, errors, files
from official_resnet.inputs import images, jpeg, other_datasets, shard_files, streamed, tfrecords
from official_resnet.inputs.views import Views

OPEN_FILES = 256  # number of files that are kept open
_HEAD_BYTES = 4096  # of an image, which usually has its size in them


def open_split(
    dataset: str, split: str, data_dir: str | os.PathLike | None, views: Views | None
) -> streamed.StreamedSplit:
    """Open a split of a folder of shards, see datasets.open_split."""
    if data_dir is None:
        raise errors.UserError(f'{dataset} needs a data_dir; pass --data_dir, the folder of its TFRecord shards')
    paths = shard_files.find_shards(data_dir, split)
    ids, names = zip(*shard_files.manifest_classes(data_dir, split), strict=True)
    index_file = pathlib.Path(data_dir) / f'.{shard_files.PREFIXES[split]}.index.npz'
    source = Shards(paths, num_classes=len(names), index_file=index_file)
    counts = shard_files.manifest_counts(data_dir, split)
    source.require_counts([counts.get(path.name, (None, None))[1] for path in paths], 'the manifest', shard_files.AGAIN)
    manifest = shard_files.manifest_path(data_dir, split)
    if not manifest.exists():
        _require_ilsvrc(source, ids, names, manifest)
    normalization = other_datasets.default_normalization(dataset)
    views = (views or Views()).with_exif(shard_files.are_own_images(data_dir, split))
    return streamed.StreamedSplit(source, len(names), dataset, names, normalization, views, class_ids=ids)


@dataclasses.dataclass(frozen=True)
class Records:
    """The keys of the tf.train.Example in each record, and what their values are."""

    image: str = 'image/encoded'
    label: str = 'image/class/label'
    first_label: int = 1  # label of class 0 in the files
    rules: images.Rules | None = None  # by which images become RGB JPEGs as they are read; None: all are JPEGs


class Shards(streamed.Source):
    """TFRecord files as a source of images.

    Args:
        records: What the records contain. The default is what data/build_imagenet_data.py writes.
        num_classes: Number of classes. A larger label is refused when it is read. None allows any label.
        index_file: File in which to keep the positions of the records. Without it, they are found again each time.
        log: Called with a line before a step that takes a while.
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
        offsets = _index([str(path) for path in paths], index_file and pathlib.Path(index_file), log)
        counts = [len(places) - 1 for places in offsets]
        super().__init__(paths, sum(counts), np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._records = records
        self._last_label = records.first_label + num_classes - 1 if num_classes else np.iinfo(np.int32).max
        self._begins = np.concatenate([places[:-1] for places in offsets])
        self._ends = np.concatenate([places[1:] for places in offsets])
        self._open = functools.lru_cache(OPEN_FILES)(
            lambda i: open(self.paths[i], 'rb', buffering=0, opener=files.plain)
        )

    def require_counts(self, counts: Sequence[int | None], where: str, remedy: str) -> None:
        """Raise UserError if a file has another number of records than `where` says. None is any number."""
        found = np.bincount(self.shard_numbers, minlength=len(self.paths))
        for path, has, wanted in zip(self.paths, found, counts, strict=True):
            if wanted not in (None, has):
                raise errors.UserError(f"'{path}' has {has} records, not {wanted} as {where} says; {remedy}")

    def content(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            with files.read_errors(path, 'put it back'):
                digest.update(b'%d ' % os.path.getsize(path))
        for row in images.samples(self.num_images):
            with files.read_errors(self.paths[self.shard_numbers[row]], 'put it back'):
                file = self._open(self.shard_numbers[row])
                digest.update(tfrecords.checksum_at(file.fileno(), int(self._ends[row])))
        return digest.hexdigest()

    def _read_one(self, row):
        path = self.paths[self.shard_numbers[row]]
        with files.read_errors(path, 'put it back'):
            file = self._open(self.shard_numbers[row])  # closed when neither the cache nor a reader holds it any more
            return tfrecords.read_at(file.fileno(), int(self._begins[row]), int(self._ends[row]), path)

    def load(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.RaggedTensor]:
        """Return (JPEGs string [n], labels int32 [n], boxes float32 [n, (k), 4]) of int rows [n]."""
        records = self._records
        sides = [f'image/object/bbox/{side}' for side in ('ymin', 'xmin', 'ymax', 'xmax')]
        features = {
            records.image: tf.io.FixedLenFeature([], tf.string, ''),  # _check refuses records without it
            records.label: tf.io.FixedLenFeature([], tf.int64, records.first_label - 1),
        }
        features |= {side: tf.io.RaggedFeature(tf.float32) for side in sides}
        parsed = tf.io.parse_example(streamed.call_python(self.read, [rows], tf.string), features)
        boxes = parsed[sides[0]].with_flat_values(tf.stack([parsed[side].flat_values for side in sides], -1))
        jpegs = parsed[records.image]
        sizes = tf.strings.length(jpegs)
        heads = tf.strings.substr(jpegs, 0, _HEAD_BYTES)
        labels = streamed.call_python(self._check, [rows, parsed[records.label], sizes, heads], tf.int32)
        if records.rules:
            jpegs = streamed.call_python(self._convert, [rows, jpegs], tf.string)
        return jpegs, labels - records.first_label, boxes

    def _check(self, rows, labels, sizes, heads):
        """Return the labels, int32 [n]. Raise UserError for a record without a JPEG, or with a wrong label."""
        records = self._records
        for row, label, size, head in zip(rows, labels, sizes, heads, strict=True):
            fault = None if size else f'without the key {records.image}; pass the folder of the data set'
            if size and not records.first_label <= label <= self._last_label:
                fault = f'with the label {label}, not {records.first_label}..{self._last_label}; put the '
                fault += 'manifest.json that its builder wrote beside it, or build it again'
            if not size or fault or records.rules:
                pass
            elif not head.startswith(b'\xff\xd8'):
                kind = jpeg.format_of(head) or f'it begins with 0x{head[:4].hex()}'
                fault = f'at byte {self._begins[row]} whose image is not a JPEG ({kind}); build the shards again with '
                fault += 'data/build_imagenet_data.py or data/build_image_data.py, which convert such images'
            elif reason := self._fault_of(row, head, size):
                fault = f'at byte {self._begins[row]} with a broken image ({reason}); build the shards again'
            if fault:
                raise errors.UserError(f"'{self.paths[self.shard_numbers[row]]}' has a record {fault}")
        return labels.astype(np.int32)

    def _fault_of(self, row, head, size):
        """Return why a JPEG that begins with `head` is not decoded, or ''."""
        try:
            info = jpeg.inspect(head, only_header=True)
            images.require_size(info.width, info.height)
        except ValueError as error:
            if len(head) == size:
                return str(error)
            return self._fault_of(row, tfrecords.decode_example(self._read_one(row))[self._records.image][0], size)
        return ''

    def _convert(self, rows, encoded):
        """Return the encoded images as RGB JPEGs."""
        result = np.empty(len(rows), object)
        for i, (row, image) in enumerate(zip(rows, encoded, strict=True)):
            try:
                result[i] = images.to_rgb_jpeg(image, rules=self._records.rules, keeps_exif=True)[0]
            except ValueError as error:
                place = f'in the record at byte {self._begins[row]}'
                path = self.paths[self.shard_numbers[row]]
                raise errors.UserError(f"'{path}' has a broken image {place} ({error}); fetch it again") from None
        return result


def _require_ilsvrc(source, ids, names, manifest):
    """Raise UserError if a sample of records, which have no manifest, names other classes than ILSVRC2012's."""
    rows = np.array(images.samples(source.num_images))
    keys = {'synset': 'image/class/synset', 'text': 'image/class/text', 'label': Records().label}
    kinds = {'synset': (tf.string, ''), 'text': (tf.string, ''), 'label': (tf.int64, 0)}
    features = {keys[key]: tf.io.FixedLenFeature([], *kinds[key]) for key in keys}
    parsed = tf.io.parse_example(source.read(rows), features)
    columns = (parsed[keys[key]].numpy().tolist() for key in ('synset', 'text', 'label'))
    for row, synset, text, label in zip(rows, *columns, strict=True):
        if not 1 <= label <= len(ids) or not (synset or text):  # a wrong label is refused when it is read
            continue
        known, name = ids[label - 1], names[label - 1]
        if synset.decode(errors='replace') != known if synset else name not in text.decode(errors='replace'):
            said, path = (synset or text).decode(errors='replace'), source.paths[source.shard_numbers[row]]
            raise errors.UserError(
                f"'{path}' has an image of '{said}' with the label {label}, which is {known} ({name}) in ILSVRC2012; "
                f"put '{manifest.name}', which the builder wrote, beside it, or build the shards again with "
                'data/build_image_data.py'
            )


def _index(paths, index_file, log):
    """Return the positions of the records of each file, from index_file if it was made from these files."""
    key = streamed.files_fingerprint(paths)
    if index_file:
        with contextlib.suppress(errors.UserError), damage.reported(index_file, ''):  # it is made again
            kept = damage.read_arrays(index_file)
            if str(kept['key']) == key:
                return np.split(kept['offsets'], np.cumsum(kept['counts'])[:-1])
    if len(paths) > 100:
        log(f'finding the records of {len(paths)} shards in {os.path.dirname(paths[0])}')
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # the threads mostly wait for the disk
        offsets = list(pool.map(tfrecords.index, paths))
    if index_file:
        # The data_dir may be read-only. If another process writes the same file, its CRCs tell whether it is whole.
        with contextlib.suppress(OSError):
            with files.replacing(index_file) as part, open(part, 'wb') as file:
                np.savez(file, key=key, offsets=np.concatenate(offsets), counts=[len(places) for places in offsets])
    return offsets
