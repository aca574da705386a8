"""Splits whose images stay encoded on the disk until a batch needs them: TFRecord shards and folders.

The training images of a small folder are decoded once instead, and stay in memory.
Any image can be read at any time, by its number, so a resumed run has no shuffle buffer to fill again.
"""

import abc
import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from official_resnet import errors, files
from official_resnet.inputs import datasets, encoded, images, in_memory
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.inputs.views import Views

_FAULT = 'input fault: '  # marks the text of a UserError, as JSON, in TensorFlow's error
_AT_DECODER = re.compile(rf'{{{{node [^}}]*\b{encoded.DECODER}/')  # how TensorFlow names the operation that failed
KEPT_BYTES = 2**28  # most that is kept of the images of a folder that were converted or reduced
DECODED_BYTES = 2**28  # most that all training images of a folder may take to be decoded only once
SHARDS_AT_A_TIME = 16  # number of shards that training mixes: 20,000 images or 2 GB of ImageNet's 1024 shards


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """One split of encoded images; see split.Split for its methods."""

    source: 'Source'
    num_classes: int
    name: str
    class_names: tuple[str, ...]
    normalization: str
    views: Views
    outputs: Sequence[int] | None = None  # the network's output for each class of the source; None: in order; -1: none
    count: int | None = None  # number of images to use, from the first on; None uses all
    class_ids: tuple[str | None, ...] | None = None

    @property
    def num_images(self) -> int:
        return self.source.num_images if self.count is None else self.count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.views.test_size, self.views.test_size, 3

    input_shape = image_shape

    @property
    def model_shape(self) -> tuple[int | None, int | None, int]:
        is_fixed = self.views.size == self.views.test_size and self.views.first_size is None
        return self.image_shape if is_fixed else (None, None, 3)

    @property
    def resize(self) -> int:
        return self.views.shorter_side

    @property
    def paths(self) -> list[str] | None:
        return self.source.paths[: self.num_images] if isinstance(self.source, Files) else None

    @property
    def num_cpu_threads(self) -> int:
        return os.cpu_count() or 1

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        first_step: int = 0,
        num_epochs: int = 1,
        augment: bool = True,
        flip: bool = True,
        options: Augmentation | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """Return shuffled batches of encoded.train_view, or of test_view if not `augment`. See split.Split."""
        size = batch_size // share[1]  # of this worker's part of a batch
        with self.input_errors():
            source = self.source.for_training(self.num_images, self.views) if augment else self.source

        def load(step, rows) -> tuple[tf.Tensor, ...]:
            stored, labels, boxes = source.load(rows)
            numbers = step * batch_size + share[0] * size + tf.range(size, dtype=tf.int64)  # counted over all steps
            return stored, self._outputs_of(labels), boxes, numbers

        more, sizes = None, self._training_sizes(num_epochs)
        if augment and options not in (None, Augmentation()):
            from official_resnet.inputs.batch_augmentation import Batches

            more = Batches(options, self, seed, batch_size, share)

        def apply_view(image, label, boxes, number) -> tuple[tf.Tensor, tf.Tensor]:
            if not augment:
                return encoded.test_view(image, self.views), label
            epoch = number // (datasets.steps_per_epoch(self.num_images, batch_size) * batch_size)
            side = self.views.size if sizes is None else sizes[1][tf.searchsorted(sizes[0], [epoch], 'right')[0] - 1]
            view = encoded.train_view(source.image(image), boxes, tf.stack([seed, number]), self.views, flip, side)
            return more.changed(view, tf.stack([seed, number])) if more else view, label

        reorder = mix_shards(self.source.shard_numbers[: self.num_images])
        order = (reorder, more.options.repeats) if more else (reorder,)
        steps = in_memory.training_rows(self.num_images, batch_size, seed, first_step, num_epochs, share, *order)
        batches = self._batches(steps.map(load, tf.data.AUTOTUNE, deterministic=True), apply_view, size, True)
        if not more:
            return batches
        numbered = batches.enumerate(first_step)
        return numbered.map(
            lambda step, batch: more.normalized(batch[0], batch[1], step), tf.data.AUTOTUNE, deterministic=True
        )

    def evaluation_batches(
        self, batch_size: int, *, view: Callable | None = None, share: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Return batches of encoded.test_view, or of `view`, of every image once, in order. See split.Split."""

        def load(rows, is_filling) -> tuple[tf.Tensor, ...]:
            jpegs, labels, _ = self.source.load(rows)
            return jpegs, tf.where(is_filling, -1, self._outputs_of(labels))

        def apply_view(image, label) -> tuple[tf.Tensor, tf.Tensor]:
            if view is None:
                return encoded.test_view(image, self.views), label
            with tf.name_scope(encoded.DECODER):  # the caller's view may decode by itself
                return view(image), label

        batches = in_memory.evaluation_rows(self.num_images, batch_size, share)
        loaded = batches.map(load, tf.data.AUTOTUNE, deterministic=True)
        return self._batches(loaded, apply_view, batch_size // share[1], False)

    def _training_sizes(self, num_epochs):
        """Return (epochs int64 [n], the height and width of training images from each on), or None: views.size."""
        if self.views.first_size is None:
            return None
        size_in, starts = functools.partial(self.views.size_in, num_epochs=num_epochs), [0]
        while (i := bisect.bisect(range(num_epochs), size_in(starts[-1]), starts[-1], key=size_in)) < num_epochs:
            starts.append(i)
        return tf.constant(starts, tf.int64), tf.constant([size_in(epoch) for epoch in starts])

    def _outputs_of(self, labels):
        return labels if self.outputs is None else tf.gather(tf.constant(self.outputs, tf.int32), labels)

    def _batches(self, loaded, apply_view, batch_size, drop_remainder):
        """Call `apply_view` for each image of a dataset of batches; batch and normalize the views."""
        normalize, parallel = NORMALIZATIONS[self.normalization], tf.data.AUTOTUNE
        views = loaded.unbatch().map(apply_view, parallel, deterministic=True)
        batched = views.batch(batch_size, drop_remainder, num_parallel_calls=parallel, deterministic=True)
        shape = views.element_spec[0].shape
        if shape.rank == 4:  # several views of an image become images of their own
            batched = batched.map(lambda batch, labels: (tf.reshape(batch, (-1, *shape[1:])), labels))
        normalized = batched.map(lambda batch, labels: (normalize(batch), labels), parallel, deterministic=True)
        return normalized.apply(tf.data.experimental.assert_cardinality(loaded.cardinality())).prefetch(parallel)

    def first(self, num_images: int | None) -> Self:
        if num_images is None:
            return self
        datasets.require_images(self, num_images)
        return dataclasses.replace(self, count=num_images)

    def with_normalization(self, name: str) -> Self:
        return dataclasses.replace(self, normalization=name)

    def with_background(self) -> Self:
        names, ids = ('background', *self.class_names), self.class_ids and (None, *self.class_ids)
        return self.with_classes(names, ids, range(1, len(names)))

    def with_classes(self, names: Sequence[str], ids: Sequence[str | None] | None, outputs: Sequence[int]) -> Self:
        before = range(self.num_classes) if self.outputs is None else self.outputs
        after, kept = [-1 if i < 0 else outputs[i] for i in before], tuple(ids) if ids else None
        split = dataclasses.replace(self, class_names=tuple(names), class_ids=kept, num_classes=len(names))
        return dataclasses.replace(split, outputs=after)

    def fingerprint(self) -> str:
        """Return a hash of everything evaluation depends on. A sample of the images stands for all, see `content`."""
        outputs = () if self.outputs is None else (self.outputs,)
        text = repr((files_fingerprint(self.source.paths), self.content(), self.normalization, self.views, *outputs))
        return hashlib.sha256(text.encode()).hexdigest()

    def content(self) -> str:
        return hashlib.sha256(f'{self.source.content()} {self.num_images}'.encode()).hexdigest()

    @contextlib.contextmanager
    def input_errors(self) -> Iterator[None]:
        """Turn TensorFlow's errors about images that the source or decoder refused into UserError; pass on others."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            _, mark, text = error.message.partition(_FAULT)
            if mark:
                raise errors.UserError(json.JSONDecoder().raw_decode(text)[0]) from None
            if not _AT_DECODER.search(error.message):
                raise
            place = self.source.first_damaged(self.views) or f'an image of {self.name}'
            raise errors.UserError(f'{place} cannot be decoded; {self.source.remedy}') from error
        except tf.errors.OutOfRangeError as error:  # what one of several devices may see of an error of another
            raise errors.UserError(f'an image of {self.name} cannot be read; {self.source.remedy}') from error

    def example_images(self, count: int) -> np.ndarray:
        return next(iter(self.with_normalization('none').evaluation_batches(count)))[0].numpy()

    def example_bytes(self, count: int) -> list[bytes]:
        return self.source.load(tf.range(count))[0].numpy().tolist()


def mix_shards(shard_numbers: np.ndarray) -> Callable:
    """Return a `reorder` for in_memory.training_rows that mixes the images of SHARDS_AT_A_TIME random shards at a time.

    Reads from the disk are then close to each other. `shard_numbers` has the shard of each image, see Source.
    """

    def reorder(order, seeds) -> tf.Tensor:
        num_shards = int(shard_numbers[-1]) + 1
        if num_shards <= SHARDS_AT_A_TIME:
            return order
        ranks = tf.random.experimental.stateless_shuffle(tf.range(num_shards), seeds, alg='philox')
        windows = tf.gather(ranks, shard_numbers) // SHARDS_AT_A_TIME  # of each image
        return tf.gather(order, tf.argsort(tf.gather(windows, order), stable=True))

    return reorder


def call_python(function: Callable, tensors: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Apply a Python function of arrays [n] to tensors and return its result, [n].

    TensorFlow keeps only the text of an exception, so the text of a UserError is marked for StreamedSplit.input_errors.
    """

    def call(*arrays) -> Any:
        try:
            return function(*arrays)
        except errors.UserError as error:  # as JSON, because a path may contain bytes that are not text
            raise errors.UserError(_FAULT + json.dumps(str(error))) from None

    return tf.ensure_shape(tf.numpy_function(call, tensors, dtype, stateful=False), tensors[0].shape)


class Source(abc.ABC):
    """Encoded images that are read by number.

    `shard_numbers` has the shard of each image, int32 [num_images], ascending. Images of a shard are close on the disk.
    """

    remedy = 'fix or remove it'  # what to do with an image that cannot be decoded

    def __init__(self, paths: Sequence[str | os.PathLike], num_images: int, shard_numbers: np.ndarray):
        self.paths, self.num_images, self.shard_numbers = [str(path) for path in paths], num_images, shard_numbers

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the encoded images of these numbers, as an object array of bytes."""
        result = np.empty(len(rows), object)
        result[:] = [self._read_one(row) for row in rows]
        return result

    def for_training(self, num_images: int, views: Views) -> 'Source | Decoded':
        """Return the same images, of which the first `num_images` will be cropped at random again and again."""
        return self

    def image(self, stored: tf.Tensor) -> tf.Tensor:
        """Return the image, as encoded.train_view takes it, of an element of what `load` returns."""
        return stored

    def first_damaged(self, views: Views) -> str | None:
        """Return the quoted path of the first image whose pixels cannot be decoded; None if that takes too long."""
        return None

    @abc.abstractmethod
    def content(self) -> str:
        """Return a hash of the sizes of the files and of a sample of images, see split.Split.content."""

    @abc.abstractmethod
    def _read_one(self, row: int) -> bytes:
        """Return one encoded image."""

    @abc.abstractmethod
    def load(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.RaggedTensor]:
        """Return (JPEGs string [n], labels int32 [n], boxes float32 [n, (k), 4]) of the images `rows`, int [n]."""


class Files(Source):
    """Image files. An image that is not an RGB or grey JPEG is converted to one as it is read.

    For training, large images are reduced as well, see images.to_rgb_jpeg. What was converted or reduced is kept, up to
    KEPT_BYTES, because both take far longer than reading a file.

    Args:
        paths, labels: The files and their classes.
        side: That of images.to_rgb_jpeg; None: no image is reduced.
        decodes_once: Whether training gets Decoded images, if all of them are few enough.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        labels: Sequence[int] | np.ndarray,
        side: int | None = None,
        decodes_once: bool = False,
    ):
        super().__init__(paths, len(paths), np.zeros(len(paths), np.int32))
        self._labels, self._side, self._decodes_once = np.asarray(labels, np.int32), side, decodes_once
        self._kept: dict[str, bytes] = {}
        self._kept_bytes = 0

    def for_training(self, num_images: int, views: Views) -> 'Files | Decoded':
        reduced = Files(self.paths, self._labels, 2 * views.size)
        return (self._decodes_once and reduced._decoded(num_images, views)) or reduced

    def first_damaged(self, views: Views) -> str | None:
        logging.getLogger(__name__).info(f'looking for an image that cannot be decoded, among {self.num_images:,}')
        num_whole = 0
        try:
            for _ in self._pixels(range(self.num_images), views):
                num_whole += 1
        except tf.errors.InvalidArgumentError:
            return f"'{self.paths[num_whole]}'"
        return None

    def _pixels(self, rows, views):
        """Yield the images of these numbers as encoded.decode_jpeg decodes them, uint8 [h, w, 3]."""

        def decode(row) -> tf.Tensor:
            return encoded.decode_jpeg(self.load(row[None])[0][0], views)

        numbers = tf.data.Dataset.range(rows.start, rows.stop, rows.step)
        decoded = numbers.map(decode, tf.data.AUTOTUNE, deterministic=True)
        return decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _decoded(self, num_images, views):
        """Return the first images as encoded.decode_jpeg decodes them; None if they take more than DECODED_BYTES.

        The images alone decide, because a part of a decoded image may differ from a decoded part. A few of them, evenly
        spread, tell first how large all will be.
        """
        rows = range(num_images)
        sizes = [image.size for image in self._pixels(rows[:: max(1, num_images // 16)], views)]
        if sum(sizes) * num_images > DECODED_BYTES * len(sizes):
            return None
        logging.getLogger(__name__).info(f'decoding {num_images:,} training images, which stay in memory')
        pixels, ends, shapes = np.empty(DECODED_BYTES, np.uint8), [0], []
        for image in self._pixels(rows, views):
            ends.append(ends[-1] + image.size)
            if ends[-1] > DECODED_BYTES:
                return None
            pixels[ends[-2] : ends[-1]] = image.ravel()
            shapes.append(image.shape)
        return Decoded(pixels[: ends[-1]], ends, shapes, self._labels)

    def content(self) -> str:
        return images.content_of(self.paths) + hashlib.sha256(self._labels.astype('<i4').tobytes()).hexdigest()

    def _read_one(self, row):
        path = self.paths[row]
        if path in self._kept:
            return self._kept[path]
        with files.read_errors(path, 'put it back'):
            data = files.read_bytes(path, 'image_bytes')
        try:
            options: Any = {'rules': images.FOLDER, 'keeps_grey': True, 'keeps_exif': True, 'side': self._side}
            jpeg = images.to_rgb_jpeg(data, **options)[0]
        except ValueError as error:
            raise errors.UserError(f"'{path}' is not a whole image ({error}); fix or remove it") from None
        if jpeg is not data and self._kept_bytes + len(jpeg) <= KEPT_BYTES:
            self._kept[path] = jpeg
            self._kept_bytes += len(jpeg)
        return jpeg

    def load(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.RaggedTensor]:
        return call_python(self.read, [rows], tf.string), tf.gather(self._labels, rows), _no_boxes(rows)


class Decoded:
    """The decoded images of a small set, all in memory, in the place of a Source.

    Args:
        pixels: Those of all images, uint8 [n], one image after the other.
        ends: Where each image begins, and where the last one ends.
        shapes: Height, width and 3 of each image.
        labels: The class of each image.
    """

    def __init__(self, pixels: np.ndarray, ends: Sequence[int], shapes: Sequence[tuple[int, ...]], labels: np.ndarray):
        self._pixels, self._ends, self._shapes = tf.constant(pixels), tf.constant(ends), tf.constant(shapes)
        self._labels = tf.constant(labels)

    def load(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.RaggedTensor]:
        """Return (the rows, labels int32 [n], no boxes)."""
        return rows, tf.gather(self._labels, rows), _no_boxes(rows)

    def image(self, row: tf.Tensor) -> tf.Tensor:
        """Return an image, uint8 [h, w, 3], RGB."""
        pixels = self._pixels[self._ends[row] : self._ends[row + 1]]
        return tf.ensure_shape(tf.reshape(pixels, self._shapes[row]), [None, None, 3])


def _no_boxes(rows):
    return tf.RaggedTensor.from_row_lengths(tf.zeros([0, 4]), tf.zeros_like(rows))


def files_fingerprint(paths: Sequence[str]) -> str:
    """Return a hash of the names and sizes of files."""
    digest = hashlib.sha256()
    for path in paths:
        with files.read_errors(path, 'put it back'):
            digest.update(b'%s %d\n' % (os.fsencode(os.path.basename(path)), os.path.getsize(path)))
    return digest.hexdigest()
