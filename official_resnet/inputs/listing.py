"""Which of your own images are for training and which for testing, whether a folder or a CSV file lists them."""

import itertools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from official_resnet.errors import UserError

TRAIN_NAMES = ('train', 'training')  # of folders, and in the column split of a list; the first that is there is used
TEST_NAMES = ('test', 'testing', 'val', 'validation', 'valid', 'dev', 'eval', 'evaluation')


class Listing(NamedTuple):
    """The files of a folder or of a list, in the order of their labels."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[pathlib.Path, int]]]  # {'train': [(path, label), ...], 'test': ...}
    others: dict[str, list[pathlib.Path]]  # what is not used: files that are not images, folders that are not classes
    test_name: str  # of the split of the test images; '' if they are set aside by a seed
    unlabelled: pathlib.Path | None = None  # a folder of test images without classes

    def files(self, split: str) -> list[tuple[pathlib.Path, int]]:
        """Return the files of a split. Raise UserError if all images are set aside for testing."""
        if not self.splits[split]:
            raise UserError('--validation_fraction=1 leaves no image for training; lower it')
        return self.splits[split]

    def counts(self, split: str) -> np.ndarray:
        """Return the number of images of each class in a split, int [classes]."""
        return np.bincount([label for _, label in self.splits[split]], minlength=len(self.classes))

    def untested(self) -> list[int]:
        """Return the labels whose only image is for training, although some of each class was to be set aside."""
        return [] if self.test_name else np.flatnonzero(self.counts('test') == 0).tolist()


def split_name(name: str) -> str:
    """Return which of TRAIN_NAMES and TEST_NAMES a name stands for, or ''.

    >>> split_name('Val'), split_name('train_images'), split_name('cats')
    ('val', 'train', '')
    """
    name = re.sub(r'[ _-](images?|set|data)$', '', name.strip().casefold())
    return name if name in TRAIN_NAMES + TEST_NAMES else ''


def set_aside(found: Listing, fraction: float, seed: int) -> Listing:
    """Return a listing with a fraction of each class moved from 'train' to 'test'.

    At least one image of a class is moved. Unless the fraction is 1, at least one is kept, if need be the only one.

    Raises:
        UserError: No class has two images.
    """
    parts: dict[str, list[tuple[pathlib.Path, int]]] = {'train': [], 'test': []}
    for label, files in itertools.groupby(found.splits['train'], lambda file: file[1]):
        of_class = list(files)
        order = np.random.default_rng([seed, 1, label]).permutation(len(of_class))
        num_test = max(1, round(fraction * len(of_class)))
        num_test = min(num_test, len(of_class) - 1) if fraction < 1 else len(of_class)
        parts['test'] += [of_class[k] for k in order[:num_test]]
        parts['train'] += [of_class[k] for k in order[num_test:]]
    if not parts['test']:
        raise UserError(f"each class has one image, as '{parts['train'][0][0]}', so none is left for testing; add more")
    return found._replace(splits=parts)
