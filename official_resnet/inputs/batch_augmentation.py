"""What a run that asks for more than crops and flips does with whole batches of images, [b, h, w, c].

Everything is a function of the seed and the step. Each kind of draw has a number of its own, so that none of them
depends on another, nor on what else is switched on.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from official_resnet.inputs import augmentation, datasets
from official_resnet.inputs.augment_options import Augmentation

if TYPE_CHECKING:
    from official_resnet.inputs.split import Split

_FLIP, _CUTOUT = range(101, 103)  # below 101: encoded.train_view


@dataclasses.dataclass(frozen=True)
class Batches:
    """The training batches of a split; `share` is that of split.Split.training_batches."""

    options: Augmentation
    split: 'Split'
    seed: int
    batch_size: int
    share: tuple[int, int]

    def cropped(self, images: tf.Tensor, rows: tf.Tensor, step: tf.Tensor, flip: bool) -> tf.Tensor:
        """Pad, crop and, if `flip`, mirror images in memory, [b, h, w, c], whose numbers in the split are `rows`."""
        options, size, pad = self.options, self.split.input_shape[0], self.options.pad
        if options.pad_mode == 'reflect':
            images, pad = reflected(images, pad), 0
        if flip and options.alternating_flip:
            flip = self.alternating_flips(step, rows)
        part = self.share[0] * (self.batch_size // self.share[1]), self.batch_size
        return augmentation.pad_crop_flip(images, tf.stack([self.seed, step]), pad, flip, size, part)

    @functools.cached_property
    def first_flips(self) -> np.ndarray:
        """Whether alternating flips mirror each image of the split in the first epoch, bool [n]."""
        with tf.init_scope():  # once, not for each batch
            return tf.random.stateless_uniform([self.split.num_images], _fold([self.seed, 0], _FLIP)).numpy() < 0.5

    def alternating_flips(self, step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Return which of the images `rows`, int [b], to mirror at a step, bool [b]: each in every second epoch.

        Source: arXiv:2404.00498 Sec. 3.6.
        """
        epoch = step // datasets.steps_per_epoch(self.split.num_images, self.batch_size)
        return tf.not_equal(tf.gather(self.first_flips, rows), epoch % 2 == 1)

    def normalized(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Change a batch after its normalization: images float32 [b, h, w, c], labels int32 [b]."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        if self.options.cutout:
            images = cutout(images, self._draw(seed, _CUTOUT, 2), self.options.cutout)
        return images, labels

    def _draw(self, seed, number, count):
        """Return `count` uniform numbers in [0, 1) for each image of this worker's part, float32 [count, b]."""
        size = self.batch_size // self.share[1]
        draws = tf.random.stateless_uniform([count, self.batch_size], _fold(seed, number))
        return draws[:, self.share[0] * size : (self.share[0] + 1) * size]


def reflected(images: tf.Tensor, pad: int) -> tf.Tensor:
    """Add `pad` pixels on every side of images, [b, h, w, c]: what a mirror at the edge shows, as numpy's 'reflect'."""
    for axis in (1, 2):
        size = images.shape[axis]
        places = np.abs(np.arange(-pad, size + pad)) % max(2 * size - 2, 1)
        images = tf.gather(images, np.minimum(places, 2 * size - 2 - places), axis=axis)
    return images


def cutout(images: tf.Tensor, draws: tf.Tensor, side: int) -> tf.Tensor:
    """Set a square to 0 in each image. Its centre is any pixel, so a part of it may be outside the image.

    Source: arXiv:1708.04552 Sec. 3.2, and its program, which also does this after the normalization: 0 is the mean.

    Args:
        images: float32 [b, h, w, c].
        draws: Uniform numbers in [0, 1) for the row and the column of the centre, float32 [2, b].
        side: Side of the square in pixels.
    """
    size = tf.shape(images)[1:3]
    centres = tf.cast(draws * tf.cast(size, tf.float32)[:, None], tf.int32)
    rows, columns = (_within(centres[axis] - side // 2, side, size[axis]) for axis in (0, 1))
    is_cut = rows[:, :, None] & tf.repeat(columns, images.shape[3], 1)[:, None, :]  # without a broadcast, it is faster
    return images * tf.reshape(1 - tf.cast(is_cut, tf.float32), tf.shape(images))


def _within(starts, lengths, size):
    """Return which of 0..size-1 lie in [start, start + length), bool [b, size]."""
    places = tf.range(size) - starts[:, None]
    return (places >= 0) & (places < lengths)


def _fold(seed, number):
    return tf.random.experimental.stateless_fold_in(tf.convert_to_tensor(seed, tf.int64), number)
