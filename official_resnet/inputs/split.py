"""What a split of a data set offers, whether its images are held in memory or streamed from the disk."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf


class Split(Protocol):
    """One split of a data set, as in_memory.InMemorySplit and streamed.StreamedSplit implement it.

    The order and the augmentation of every training batch are a pure function of (seed, epoch, step), so a run resumes
    at any step by asking for `first_step`. A shape is (height, width, channels).
    """

    name: str  # a key of DATASETS, 'tfds:NAME' or 'folder:PATH'
    num_images: int
    num_classes: int  # labels are 0..num_classes-1
    class_names: tuple[str, ...]
    class_ids: tuple[str | None, ...] | None  # one a class, as WordNet's
    image_shape: tuple[int, int, int]  # of an image before it is padded to the network's input
    input_shape: tuple[int, int, int]  # of the images in evaluation's batches
    # what a network for both kinds of batches needs: input_shape, but (None, None, 3) where training has another size
    model_shape: tuple[int | None, int | None, int]
    normalization: str  # a name in NORMALIZATIONS
    resize: int | None  # what evaluation resizes the shorter side to before it crops, pixels; None: it does neither
    num_cpu_threads: int  # that tf.data needs to make batches: one copies out of memory, decoding needs each core

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        first_step: int = 0,
        num_epochs: int = 1,
        augment: bool = True,
        flip: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> 'tf.data.Dataset':
        """Make shuffled batches of (images float32 [batch_size, h, w, c], labels int32 [batch_size]), of known number.

        The epochs follow each other without a break, each a fresh permutation in which no image comes twice; what
        does not fill a batch is dropped, other images in each epoch.

        Args:
            batch_size: images in a batch, over all replicas.
            seed: of order and augmentation, 0..2**63-1.
            first_step: the step to begin with, counted from 0 over all epochs; a late one costs nothing.
            num_epochs: where to end: after step num_epochs * steps_per_epoch - 1, wherever it began.
            augment: whether images are cropped at random, and flipped.
            flip: whether augmentation flips; a mirrored digit is a different digit, or none.
            share: (i, n), the i-th of n equal parts of every batch, for worker i of n.

        Raises:
            UserError: fewer images than batch_size, batch_size below 1, or a seed out of range.
        """

    def evaluation_batches(
        self, batch_size: int, *, view: Callable | None = None, share: tuple[int, int] = (0, 1)
    ) -> 'tf.data.Dataset':
        """Make batches of (images float32 [b, *input_shape], labels int32 [b]): every image once, in order.

        Args:
            batch_size: images in a batch, over all replicas; the last one is smaller if need be.
            view: for encoded images, in place of encoded.test_view: string [] -> [h, w, c] or, for several views
                with one label, [k, h, w, c].
            share: as in training; where the last batch has too few images for that, a worker's part is filled with
                some of label -1.

        Raises:
            UserError: batch_size below 1, or a view of images that are not encoded.
        """

    def first(self, num_images: int | None) -> Self:
        """Return the first `num_images`; None takes them all. UserError: there are fewer."""

    def with_normalization(self, name: str) -> Self:
        """Return the same images with another normalization."""

    def with_background(self) -> Self:
        """Return encoded images with a class 0 that has none, as TensorFlow's own ImageNet networks have it."""

    def fingerprint(self) -> str:
        """Return a hash of all that evaluation's batches depend on."""

    def input_errors(self) -> AbstractContextManager:
        """Return a context that turns TensorFlow's report of an unreadable image into a UserError of one line."""

    def example_images(self, count: int) -> 'np.ndarray':
        """Return the first images as a network's export takes them, [count, *image_shape], 0..255."""

    def example_bytes(self, count: int) -> list[bytes] | None:
        """Return the first images encoded; None where they are held in memory."""
