"""Which of your own images are for training and which for testing, whether a folder or a CSV file lists them."""

import collections
import contextlib
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np

from official_resnet import files
from official_resnet.errors import UserError

TRAIN_NAMES = ('train', 'training')  # of folders, and in the column split of a list; the first that is there is used
END_BYTES = 4096  # compared before files are read whole; the beginnings of a camera's files are alike
TEST_NAMES = ('test', 'testing', 'val', 'validation', 'valid', 'dev', 'eval', 'evaluation')


def lists(path: str | os.PathLike) -> list[str]:
    """Return the CSV files of an --image_list, which may name several with commas between; or a folder.

    >>> lists('train.csv'), lists('train.csv,test.csv')
    (['train.csv'], ['train.csv', 'test.csv'])
    """
    path = os.fspath(path)
    return [path] if os.path.exists(path) else [part.strip() for part in path.split(',')]


def absolute(path: str) -> str:
    """Return the path of a folder, or of each list, from the root of the file system on.

    Raises:
        UserError: There is nothing before or after a comma.
    """
    if '' in lists(path):
        raise UserError(f"'{path}' lacks a list before or after a comma; pass one list, or two: train.csv,test.csv")
    return ','.join(os.path.abspath(os.path.expanduser(part)) for part in lists(path))


def root_of(path: str | os.PathLike) -> str:
    """Return the folder relative to which the images of a folder, or of lists, are named: the folder, or the list's."""
    first = lists(path)[0]
    return os.path.dirname(first) if os.path.isfile(first) else os.fspath(path)


class Listing(NamedTuple):
    """The files of a folder or of a list, in the order of their labels."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[pathlib.Path, int]]]  # {'train': [(path, label), ...], 'test': ...}
    others: dict[str, list[pathlib.Path]]  # what is not used: files that are not images, folders that are not classes
    test_name: str  # of the split of the test images; '' if they are set aside by a seed
    unlabelled: pathlib.Path | None = None  # a folder of test images without classes
    notes: tuple[str, ...] = ()  # lines on what else is not used

    def files(self, split: str) -> list[tuple[pathlib.Path, int]]:
        """Return the files of a split. Raise UserError if all images are for testing."""
        if not self.splits[split] and self.test_name:
            raise UserError('all rows of the list are for testing; write train into the column split of others')
        if not self.splits[split]:
            raise UserError('--validation_fraction=1 leaves no image for training; lower it')
        return self.splits[split]

    def counts(self, split: str) -> np.ndarray:
        """Return the number of images of each class in a split, int [classes]."""
        return np.bincount([label for _, label in self.splits[split]], minlength=len(self.classes))

    def untested(self) -> list[int]:
        """Return the labels of which no image could be set aside for testing, because each has only one."""
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

    At least one image of a class is moved. Unless the fraction is 1, at least one is kept, if need be the only one; if
    it is 1, the images stay in their order.

    Raises:
        UserError: No class has two images.
    """
    if fraction == 1:
        return found._replace(splits={'train': [], 'test': found.splits['train']})
    parts: dict[str, list[tuple[pathlib.Path, int]]] = {'train': [], 'test': []}
    for label, group in itertools.groupby(found.splits['train'], lambda file: file[1]):
        of_class = list(group)
        order = np.random.default_rng([seed, 1, label]).permutation(len(of_class))
        num_test = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        parts['test'] += [of_class[k] for k in order[:num_test]]
        parts['train'] += [of_class[k] for k in order[num_test:]]
    if not parts['test']:
        raise UserError(f"each class has one image, as '{parts['train'][0][0]}', so none is left for testing; add more")
    return found._replace(splits=parts)


def copies(sides: Iterable[Iterable[pathlib.Path]]) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Return (a file, the first file with the same bytes) for each file that has such a file in an earlier side.

    Only files of the same size are read, and only those with the same end are read whole. Empty files, and those that
    cannot be read, are no copies.
    """
    groups = [[(side, path) for side, paths in enumerate(sides) for path in paths]]
    keys: tuple[Callable[[pathlib.Path], Hashable], ...] = (os.path.getsize, _end_of, _digest_of)
    for key in keys:
        finer = []
        for group in groups:
            by_key: dict[Hashable, list[tuple[int, pathlib.Path]]] = collections.defaultdict(list)
            for side, path in group:
                with contextlib.suppress(OSError):
                    by_key[key(path)].append((side, path))
            by_key.pop(0, None)  # a size
            finer += [group for group in by_key.values() if group[0][0] != group[-1][0]]
        groups = finer
    return [(path, group[0][1]) for group in groups for side, path in group if side != group[0][0]]


def _end_of(path):
    with open(path, 'rb', opener=files.plain) as file:
        file.seek(max(os.fstat(file.fileno()).st_size - END_BYTES, 0))
        return file.read()


def _digest_of(path):
    with open(path, 'rb', opener=files.plain) as file:
        return hashlib.file_digest(file, 'sha256').digest()
