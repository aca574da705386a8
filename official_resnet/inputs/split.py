"""The methods of every split of a data set, whether its images are held in memory or streamed from the disk."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from official_resnet.inputs.augment_options import Augmentation
    from official_resnet.inputs.views import Views


class Split(Protocol):
    """One split of a data set, as in_memory.InMemorySplit and streamed.StreamedSplit implement it.

    The order and the augmentation of every training batch are pure functions of (seed, epoch, step), so a run resumes
    at any step by passing `first_step`. A shape is (height, width, channels).
    """

    @property
    def name(self) -> str: ...  # a key of DATASETS, 'tfds:NAME' or 'folder:PATH'
    @property
    def num_images(self) -> int: ...
    @property
    def num_classes(self) -> int: ...  # labels are 0..num_classes-1
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def class_ids(self) -> tuple[str | None, ...] | None: ...  # one for each class, such as WordNet's
    @property
    def image_shape(self) -> tuple[int, int, int]: ...  # of an image before it is padded to the network's input
    @property
    def input_shape(self) -> tuple[int, int, int]: ...  # of the images in evaluation's batches
    @property
    def model_shape(self) -> tuple[int | None, int | None, int]: ...  # (None, None, 3) if training has another size
    @property
    def normalization(self) -> str: ...  # a name in NORMALIZATIONS
    @property
    def resize(self) -> int | None: ...  # pixels of the shorter side before evaluation crops; None: it does not crop
    @property
    def views(self) -> 'Views | None': ...  # how encoded images become the input; None: they are held in memory
    @property
    def paths(self) -> Sequence[str] | None: ...  # of the images; None: they have no files of their own
    @property
    def num_cpu_threads(self) -> int: ...  # that tf.data needs: one to copy from memory, one per core to decode

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        first_step: int = 0,
        num_epochs: int = 1,
        augment: bool = True,
        flip: bool = True,
        options: 'Augmentation | None' = None,
        share: tuple[int, int] = (0, 1),
    ) -> 'tf.data.Dataset':
        """Return a dataset of shuffled batches: (images float32 [batch_size, h, w, c], labels int32 [batch_size]).

        The dataset knows its cardinality. The epochs follow each other without a break. Each is a new permutation, in
        which no image comes twice. The images that do not fill a batch are dropped; they differ from epoch to epoch.

        Args:
            batch_size: Number of images in a batch, over all replicas.
            seed: Seed of the order and the augmentation, 0..2**63-1.
            first_step: The step to begin with, counted from 0 over all epochs. A late start costs no time.
            num_epochs: Epochs from step 0 on: the last step is num_epochs * steps_per_epoch - 1, whatever the first is.
            augment: Whether to crop images at random, and to flip them.
            flip: Whether augmentation flips. A mirrored digit is a different digit, or none.
            options: What else augmentation does; None: nothing.
            share: (i, n) returns part i of n equal parts of every batch, for worker i of n, counted from 0.

        Raises:
            UserError: There are fewer images than batch_size, or batch_size or seed is out of range.
        """

    def evaluation_batches(
        self, batch_size: int, *, view: Callable | None = None, share: tuple[int, int] = (0, 1)
    ) -> 'tf.data.Dataset':
        """Return batches of (images float32 [b, *input_shape], labels int32 [b]): every image once, in order.

        Args:
            batch_size: Number of images in a batch, over all replicas. The last batch may be smaller.
            view: For encoded images, a function to use instead of encoded.test_view: string [] -> [h, w, c] or, for
                several views with one label, [k, h, w, c].
            share: As in training. If the last batch is too small for all workers, it is filled with images of label -1.

        Raises:
            UserError: batch_size is below 1, or there is a `view` but the images are not encoded.
        """

    def first(self, num_images: int | None) -> Self:
        """Return the first `num_images`, or all for None. Raise UserError if there are fewer."""

    def with_normalization(self, name: str) -> Self:
        """Return the same images with another normalization."""

    def with_background(self) -> Self:
        """Return a split with an empty class 0, the background. A split in memory raises UserError."""

    def with_classes(self, names: Sequence[str], ids: Sequence[str | None] | None, outputs: Sequence[int]) -> Self:
        """Return a split with other classes, see classes.match; outputs[i] is the new label of class i.

        Images of a class whose output is -1 have no class any more, so they cannot be scored.
        """

    def fingerprint(self) -> str:
        """Return a hash of everything that evaluation's batches depend on; of the images, of their `content`."""

    def content(self) -> str:
        """Return a hash of a sample of the images, of their number and sizes, and of the labels, in milliseconds.

        It is the same on all machines and wherever the data is, and changes if images are replaced or reordered.
        """

    def input_errors(self) -> AbstractContextManager:
        """Return a context manager that turns TensorFlow's report of an unreadable image into a UserError."""

    def example_images(self, count: int) -> 'np.ndarray':
        """Return the first images as an exported network takes them, [count, *image_shape], 0..255."""

    def example_bytes(self, count: int) -> list[bytes] | None:
        """Return the first images, encoded, or None if they are held in memory."""
