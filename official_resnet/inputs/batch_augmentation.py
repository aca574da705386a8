"""What a run that asks for more than crops and flips does with whole batches of images, [b, h, w, c].

Everything is a function of the seed and the step. Each kind of draw has a number of its own, so that none of them
depends on another, nor on what else is switched on.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.inputs import augmentation, datasets, policies
from official_resnet.inputs.augment_options import Augmentation

if TYPE_CHECKING:
    from official_resnet.inputs.split import Split

_fold = tf.random.experimental.stateless_fold_in
_FLIP, _CUTOUT, _MIX, _POLICY, _ERASING = range(101, 106)  # below 101: encoded.train_view


@dataclasses.dataclass(frozen=True)
class Batches:
    """The training batches of a split; `share` is that of split.Split.training_batches."""

    options: Augmentation
    split: 'Split'
    seed: int
    batch_size: int
    share: tuple[int, int]

    def __post_init__(self):
        if self.options.policy and (channels := self.split.input_shape[2]) != 3:
            fault = f'--auto_augment={self.options.policy} is for RGB images, and those of {self.split.name} have'
            raise UserError(f'{fault} {channels} channel; leave it out')
        size, needed = self.split.image_shape[0], self.split.input_shape[0]
        if size + 2 * self.options.pad < needed:
            fault = f'--crop_pad={self.options.pad} is too little for images of {size} pixels in {self.split.name}'
            raise UserError(f'{fault}, as the network takes {needed}; pass {-(-(needed - size) // 2)} or more')

    def cropped(self, images: tf.Tensor, rows: tf.Tensor, step: tf.Tensor, flip: bool) -> tf.Tensor:
        """Pad, crop and, if `flip`, mirror images in memory, [b, h, w, c], whose numbers in the split are `rows`."""
        options, size, pad = self.options, self.split.input_shape[0], self.options.pad
        if options.pad_mode == 'reflect':
            images, pad = reflected(images, pad), 0
        if flip and options.alternating_flip:
            flip = self.alternating_flips(step, rows)
        part = self.share[0] * (self.batch_size // self.share[1]), self.batch_size
        seed = tf.stack([self.seed, step])
        images = augmentation.pad_crop_flip(images, seed, pad, flip, size, part)
        if not options.policy:
            return images
        draws = tf.transpose(self._draw(seed, _POLICY, self._draws_of_policy()))
        return self._by_policy(images, draws)

    def changed(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Apply the policy to a streamed image, float32 [h, w, 3], 0..255; `seed` is that of encoded.train_view."""
        if not self.options.policy:
            return image
        draws = tf.random.stateless_uniform([1, self._draws_of_policy()], _fold(seed, _POLICY))
        rounded = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)  # as torchvision's resize rounds
        return tf.cast(self._by_policy(rounded[None], draws)[0], tf.float32)

    def _draws_of_policy(self):
        return policies.num_layers(self.options.policy) * policies.NUM_DRAWS

    def _by_policy(self, images, draws):
        """Apply the policy to images, uint8 [b, h, w, 3], with draws, float32 [b, layers * 5]."""

        def change(images, draws) -> np.ndarray:
            draws = draws.reshape(len(images), -1, policies.NUM_DRAWS)
            return policies.change(images, draws, self.options.policy)

        return tf.ensure_shape(tf.numpy_function(change, [images, draws], tf.uint8, stateful=False), images.shape)

    @functools.cached_property
    def first_flips(self) -> np.ndarray:
        """Whether alternating flips mirror each image of the split in the first epoch, bool [n]."""
        with tf.init_scope():  # once, not for each batch
            seed = _fold(tf.constant([self.seed, 0], tf.int64), _FLIP)
            return tf.random.stateless_uniform([self.split.num_images], seed).numpy() < 0.5

    def alternating_flips(self, step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Return which of the images `rows`, int [b], to mirror at a step, bool [b]: each in every second epoch.

        Source: arXiv:2404.00498 Sec. 3.6.
        """
        epoch = step // datasets.steps_per_epoch(self.split.num_images, self.batch_size)
        return tf.not_equal(tf.gather(self.first_flips, rows), epoch % 2 == 1)

    def normalized(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Change a batch after its normalization: images float32 [b, h, w, c], labels int32 [b].

        If images are mixed, the labels become probabilities, float32 [b, classes].
        """
        seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        if self.options.cutout:
            images = cutout(images, self._draw(seed, _CUTOUT, 2), self.options.cutout)
        if self.options.erasing:
            images = erase(images, self._draw(seed, _ERASING, 23), self.options.erasing)
        if self.options.mixup or self.options.cutmix:
            images, labels = mix(images, tf.one_hot(labels, self.split.num_classes), _fold(seed, _MIX), self.options)
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
    centres = tf.cast(draws * tf.cast(tf.shape(images)[1:3], tf.float32)[:, None], tf.int32)
    return _cut(images, centres - side // 2, tf.fill(tf.shape(centres), side))


def erase(images: tf.Tensor, draws: tf.Tensor, probability: float) -> tf.Tensor:
    """Set a random rectangle to 0 in some of the images, as timm and torchvision do. Source: arXiv:1708.04896.

    It has 2 % to 1/3 of the area, and the logarithm of its aspect ratio is uniform between those of 0.3 and 1/0.3. It
    is the first of ten attempts that is smaller than the image; if there is none, nothing is erased.

    Args:
        images: float32 [b, h, w, c].
        draws: Uniform numbers in [0, 1), float32 [23, b].
        probability: The fraction of the images that change.
    """
    size = tf.cast(tf.shape(images)[1:3], tf.float32)
    areas, ratios = (
        (0.02 + draws[:10] * (1 / 3 - 0.02)) * size[0] * size[1],
        tf.exp((1 - 2 * draws[10:20]) * math.log(0.3)),
    )
    sides = tf.round(tf.sqrt(tf.stack([areas * ratios, areas / ratios])))  # [2, 10, b]
    fits = tf.reduce_all(sides < size[:, None, None], 0)
    first = tf.one_hot(tf.argmax(fits), 10, axis=0)  # [10, b]
    is_erased = tf.reduce_any(fits, 0) & (draws[20] < probability)
    sides = tf.where(is_erased, tf.reduce_sum(sides * first, 1), 0.0)
    starts = tf.floor(draws[21:] * (size[:, None] - sides + 1))
    return _cut(images, tf.cast(starts, tf.int32), tf.cast(sides, tf.int32))


def _cut(images, starts, sides):
    """Set a rectangle to 0 in each image; starts and sides, int32 [2, b], are its first row and column and its size."""
    size = tf.shape(images)[1:3]
    rows, columns = (_within(starts[axis], sides[axis][:, None], size[axis]) for axis in (0, 1))
    is_cut = rows[:, :, None] & tf.repeat(columns, images.shape[3], 1)[:, None, :]  # without a broadcast, it is faster
    return images * tf.reshape(1 - tf.cast(is_cut, tf.float32), tf.shape(images))


def mix(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, options: Augmentation) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix each image of a batch, and its label, with the one at the other end of the batch, as timm's Mixup does.

    Either all images are blended, with the weights lambda and 1 - lambda (mixup, arXiv:1710.09412), or a box of each
    comes from the other (CutMix, arXiv:1905.04899 Sec. 3). The box has a fraction 1 - lambda of the area, and lambda is
    corrected if it is clipped. All of the batch has one lambda, Beta(alpha, alpha), and one box.

    Args:
        images: float32 [b, h, w, c].
        labels: Probabilities, float32 [b, classes].
        seed: Two integers. Workers pass the same, and so have the same lambda and box.
    """
    draws = tf.random.stateless_uniform([4], _fold(seed, 0))
    uses_boxes = tf.constant(options.cutmix > 0)
    if options.mixup and options.cutmix:
        uses_boxes = draws[1] < options.mix_switch
    weight = beta(_fold(seed, 1), tf.where(uses_boxes, float(options.cutmix), float(options.mixup)))
    weight = tf.where(draws[0] < options.mix_probability, weight, 1.0)
    size = tf.cast(tf.shape(images)[1:3], tf.float32)
    middle, reach = tf.floor(draws[2:] * size), tf.floor(size * tf.sqrt(1 - weight))
    start = tf.maximum(middle - reach // 2, 0)
    end = tf.minimum(middle + (reach + 1) // 2, size)

    flat = tf.reshape(images, [tf.shape(images)[0], -1])  # so that the arithmetic broadcasts only rows
    others = tf.gather(flat, tf.range(tf.shape(flat)[0])[::-1])  # faster than tf.reverse

    def with_boxes() -> tuple[tf.Tensor, tf.Tensor]:
        places = [tf.range(size[axis]) for axis in (0, 1)]
        rows, columns = ((places[axis] >= start[axis]) & (places[axis] < end[axis]) for axis in (0, 1))
        is_inside = tf.repeat(rows[:, None] & columns, images.shape[3], 1)
        is_inside = tf.reshape(tf.cast(is_inside, tf.float32), [-1])
        return (1 - is_inside) * flat + is_inside * others, 1 - tf.reduce_prod((end - start) / size)

    blended, weight = tf.cond(uses_boxes, with_boxes, lambda: (weight * flat + (1 - weight) * others, weight))
    blended = tf.reshape(blended, tf.shape(images))
    return tf.ensure_shape(blended, images.shape), weight * labels + (1 - weight) * labels[::-1]


def beta(seed: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Return a number of the distribution Beta(alpha, alpha), float32 []; alpha is above 0.

    It is X / (X + Y) of two numbers of the distribution Gamma(alpha). For a small alpha these would be 0 in float32.
    Their logarithms are not: Gamma(alpha) is Gamma(alpha + 1) times a uniform number to the power of 1 / alpha.
    """
    gammas = tf.random.stateless_gamma([2], _fold(seed, 0), alpha + 1)
    uniform = 1 - tf.random.stateless_uniform([2], _fold(seed, 1))  # above 0
    # Of an alpha that is hardly above 0, both would be -infinity.
    logarithms = tf.math.log(gammas) + tf.math.log(uniform) / tf.maximum(alpha, 1e-36)
    return tf.sigmoid(logarithms[0] - logarithms[1])


def _within(starts, lengths, size):
    """Return which of 0..size-1 lie in [start, start + length), bool [b, size]."""
    places = tf.range(size) - starts[:, None]
    return (places >= 0) & (places < lengths)
