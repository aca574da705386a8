"""Splits whose images are held in memory (CIFAR, MNIST, synthetic images, small folders), and the order of batches."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import tensorflow as tf

from official_resnet import errors
from official_resnet.inputs import augmentation, datasets
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.inputs.normalization import NORMALIZATIONS

SAMPLED_BYTES = 2**21  # of all images, by which a run knows that they are still those with which it began


@dataclasses.dataclass(frozen=True, eq=False)
class InMemorySplit:
    """One split in memory; see split.Split for its methods.

    `input_size` is the height and width of the batches' images; None keeps the size of `images`. If it is larger,
    training crops it from the padded images, and images that are not augmented are centred in zeros. `origin` says what
    the images are, where another machine or library might draw or decode slightly other pixels; None: the pixels do.
    """

    images: np.ndarray  # uint8 [n, h, w, c], 0..255, or float32 that is not normalized, such as features
    labels: np.ndarray  # int32 [n], 0..num_classes-1
    num_classes: int
    name: str
    class_names: tuple[str, ...]
    normalization: str
    input_size: int | None = None
    origin: str | None = None
    paths: Sequence[str] | None = None  # paths[i] is the file of images[i], if each has its own
    class_ids: ClassVar[None] = None
    resize: ClassVar[None] = None
    views: ClassVar[None] = None
    num_cpu_threads: ClassVar[int] = 1  # slicing memory needs no more

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return self.input_size or height, self.input_size or width, channels

    model_shape = input_shape

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
        """Return shuffled, augmented batches: gather, pad_crop_flip, normalize. See split.Split."""
        normalize = NORMALIZATIONS[self.normalization]
        all_images, all_labels = self._tensors()
        first = share[0] * (batch_size // share[1])  # position in the batch of this worker's first image
        more = None
        if augment and options not in (None, Augmentation()):
            from official_resnet.inputs import batch_augmentation

            more = batch_augmentation.Batches(options, self, seed, batch_size, share)

        def make_batch(step, rows) -> tuple[tf.Tensor, tf.Tensor]:
            images = tf.gather(all_images, rows)
            if more:
                images = more.cropped(images, rows, step, flip)
            elif augment:
                seeds, part = tf.stack([seed, step]), (first, batch_size)
                images = augmentation.pad_crop_flip(images, seeds, flip=flip, size=self.input_size, part=part)
            else:
                images = augmentation.pad_to(images, *self.input_shape[:2])
            images, labels = normalize(images), tf.gather(all_labels, rows)
            return more.normalized(images, labels, step) if more else (images, labels)

        repeats = more.options.repeats if more else 1
        steps = training_rows(self.num_images, batch_size, seed, first_step, num_epochs, share, repeats=repeats)
        return steps.map(make_batch, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def evaluation_batches(
        self, batch_size: int, *, view: Callable | None = None, share: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Return batches of every image once, in order: gather, pad_to, normalize. See split.Split."""
        if view:
            fault = f'{self.name} is held in memory, which allows only one view of each image'
            raise errors.UserError(f'{fault}; leave out --ten_crop')
        normalize = NORMALIZATIONS[self.normalization]
        all_images, all_labels = self._tensors()

        def make_batch(rows, is_filling) -> tuple[tf.Tensor, tf.Tensor]:
            images = augmentation.pad_to(tf.gather(all_images, rows), *self.input_shape[:2])
            return normalize(images), tf.where(is_filling, -1, tf.gather(all_labels, rows))

        batches = evaluation_rows(self.num_images, batch_size, share)
        return batches.map(make_batch, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def first(self, num_images: int | None) -> Self:
        if num_images is None:
            return self
        datasets.require_images(self, num_images)
        return dataclasses.replace(self, images=self.images[:num_images], labels=self.labels[:num_images])

    def with_normalization(self, name: str) -> Self:
        return dataclasses.replace(self, normalization=name)

    def with_background(self) -> Self:
        fault = f'{self.name} is held in memory, which allows no background class'
        raise errors.UserError(f'{fault}; leave out --background_class')

    def with_classes(self, names: Sequence[str], ids: Sequence[str | None] | None, outputs: Sequence[int]) -> Self:
        labels = np.array([*outputs, -1], np.int32)[self.labels]  # -1 stays
        return dataclasses.replace(self, labels=labels, num_classes=len(names), class_names=tuple(names))

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.content(), self.input_size, self.normalization)).encode()).hexdigest()

    def content(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.origin)).encode())
        digest.update(self.labels.astype('<i4').tobytes())
        if self.origin is None:
            values = np.ascontiguousarray(self.images).reshape(-1).view(np.uint8)
            digest.update(values[:: values.size // SAMPLED_BYTES | 1].tobytes())  # some of each image
        return digest.hexdigest()

    def input_errors(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()  # no image in memory can be damaged

    def example_images(self, count: int) -> np.ndarray:
        return self.images[:count]

    def example_bytes(self, count: int) -> None:
        """Return None: the images are not encoded."""

    def _tensors(self):
        with tf.device('CPU:0'):  # held once and captured by reference; a GPU does not need them
            return tf.constant(self.images), tf.constant(self.labels)


def training_rows(
    num_images: int,
    batch_size: int,
    seed: int,
    first_step: int,
    num_epochs: int,
    share: tuple[int, int],
    reorder: Callable | None = None,
    repeats: int = 1,
) -> tf.data.Dataset:
    """Return which images each step of training uses: a dataset of (step int64 [], rows int32 [batch_size / n]).

    `share` is (i, n); see split.Split. `reorder` maps (order int32 [num_images], seeds of the epoch) to another order.
    If an image comes `repeats` times in a row, an epoch has only the first of its order.
    """
    num_steps, size = datasets.steps_per_epoch(num_images, batch_size), batch_size // share[1]
    if not 0 <= seed < 2**63:
        raise errors.UserError(f'seed {seed} is out of range; pass one in 0..{2**63 - 1}')

    def epoch_rows(epoch) -> tf.data.Dataset:
        # The augmentation is seeded by steps >= 0, so -1 - epoch is a seed of its own. index_shuffle would need no
        # permutation in memory, but it gives the same order for seeds that are equal modulo 256.
        seeds = tf.stack([seed, -1 - epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(num_images), seeds, alg='philox')
        if reorder:
            order = reorder(order, seeds)
        if repeats > 1:
            order = tf.repeat(order, repeats)
        rows = tf.reshape(order[: num_steps * batch_size], [num_steps, batch_size])
        return tf.data.Dataset.from_tensor_slices(rows[:, share[0] * size : (share[0] + 1) * size])

    first_epoch, steps_into_epoch = divmod(first_step, num_steps)
    end = num_epochs * num_steps
    rows = tf.data.Dataset.range(first_epoch, num_epochs).flat_map(epoch_rows).skip(steps_into_epoch)
    steps = tf.data.Dataset.zip(tf.data.Dataset.range(first_step, end), rows)
    return steps.apply(tf.data.experimental.assert_cardinality(max(0, end - first_step)))


def evaluation_rows(num_images: int, batch_size: int, share: tuple[int, int]) -> tf.data.Dataset:
    """Return a dataset of (rows int64 [b] of worker i of n, bool [b]: whether a row only fills the batch)."""
    datasets.require_batch_size(batch_size)
    size = batch_size // share[1]

    def rows_of(start) -> tuple[tf.Tensor, tf.Tensor]:
        if share[1] == 1:
            rows = tf.range(start, tf.minimum(start + batch_size, num_images))
            return rows, tf.zeros_like(rows, tf.bool)
        rows = start + share[0] * size + tf.range(size, dtype=tf.int64)
        return tf.minimum(rows, num_images - 1), rows >= num_images

    return tf.data.Dataset.range(0, num_images, batch_size).map(rows_of)
