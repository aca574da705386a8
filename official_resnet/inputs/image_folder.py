"""Your own images: a folder with a subfolder for each class, read into memory at one size or streamed.

    DIR/cats/1.jpg, DIR/dogs/a/b.png ...                   split at random by a seed, class by class
    DIR/train/cats/1.jpg ..., DIR/test/cats/7.jpg ...      already split; test may also be called val or validation

Each image is decoded once, by images.decode. An image that cannot be decoded is reported and left out.
"""

import concurrent.futures
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from official_resnet.errors import UserError
from official_resnet.inputs import images
from official_resnet.inputs.other_datasets import default_normalization
from official_resnet.inputs.split import Split
from official_resnet.inputs.views import Views

TEST_NAMES = ('test', 'val', 'validation')
MEMORY_SHARE = 1 / 4  # the images may take this fraction of the machine's memory


def open_split(dataset: str, split: str, options: Mapping[str, Any], views: Views | None) -> Split:
    """Open a split of 'folder:PATH', see datasets.open_split. With views it is streamed."""
    folder, seed = dataset.removeprefix('folder:'), options.get('seed', 0)
    normalization = default_normalization(dataset, views)
    if views is None:
        from official_resnet.inputs import in_memory

        pixels, labels, classes = read(folder, split, **options)
        return in_memory.InMemorySplit(pixels, labels, len(classes), dataset, classes, normalization)
    from official_resnet.inputs import streamed

    classes, splits = list_files(folder, options.get('validation_fraction', 0.1), seed)
    files = streamed.Files(*_shuffled(splits[split], seed))
    return streamed.StreamedSplit(files, len(classes), dataset, classes, normalization, views)


def read(
    folder: str | os.PathLike,
    split: str,
    *,
    image_size: int = 32,
    channels: int = 3,
    validation_fraction: float = 0.1,
    seed: int = 0,
    log: Callable = print,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return one split: (images uint8 [n, image_size, image_size, channels], labels int32 [n], class names).

    Classes are numbered in the order of their names. The images are in a random order that depends on `seed` alone, so
    that the first n of them are a fair sample.

    Args:
        image_size: Height and width, see `decode`.
        channels: 3 for RGB, 1 for grey.
        validation_fraction: Fraction of each class for 'test', at least one image. Ignored if there is a test folder.
        seed: Seed of the split and of the order.
        log: Called with a line for each file that cannot be read, and with one that counts them.

    Raises:
        UserError: There are fewer than two classes, a class has no readable image, or the images need too much memory.
    """
    from PIL import Image

    classes, splits = list_files(folder, validation_fraction, seed)
    _require_memory(folder, sum(map(len, splits.values())), image_size, channels)
    paths, labels = _shuffled(splits[split], seed)
    pixels, failures = np.empty([len(paths), image_size, image_size, channels], np.uint8), {}

    def decode_one(i):
        try:
            pixels[i] = decode(paths[i], image_size, channels)
        except ValueError as error:
            failures[i] = error

    Image.init()  # before the threads
    # Pillow's warnings are caught once, here, because catching them inside threads is not safe.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(decode_one, range(len(paths))))
    for i in sorted(failures, key=paths.__getitem__):
        log(f'unreadable, left out: {paths[i]} ({failures[i]})')
    if failures:
        log(f'{len(failures)} of {len(paths)} images for {split} in {folder} are unreadable')
        pixels, labels = np.delete(pixels, list(failures), axis=0), np.delete(labels, list(failures))
    for label, name in enumerate(classes):
        if label not in labels and (split == 'train' or not len(labels)):
            raise UserError(f"no image of class '{name}' for {split} in '{folder}' can be read; fix or remove it")
    return pixels, labels, classes


def list_files(
    folder: str | os.PathLike, validation_fraction: float = 0.1, seed: int = 0
) -> tuple[tuple[str, ...], dict[str, list[tuple[pathlib.Path, int]]]]:
    """Return (class names, {'train': [(path, label), ...], 'test': ...}) without opening a file; raises like `read`."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"image_folder '{folder}' is not a folder; pass one that has a subfolder for each class")
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if test and (folder / 'train').is_dir():
        classes = _classes(folder / 'train')
        if unknown := [name for name in _subfolders(test) if name not in classes]:
            raise UserError(f"'{test / unknown[0]}' is not a class of '{folder / 'train'}'; remove or rename it")
        return classes, {'train': _files(folder / 'train', classes), 'test': _files(test, classes, is_complete=False)}
    parts: dict[str, list[tuple[pathlib.Path, int]]] = {'train': [], 'test': []}
    classes = _classes(folder)
    listed = dict.fromkeys(range(len(classes)), ())
    listed |= {label: tuple(files) for label, files in itertools.groupby(_files(folder, classes), lambda file: file[1])}
    for label, name in enumerate(classes):
        found = listed[label]
        if len(found) < 2:
            fault = 'has one image, which cannot be split into training and test'
            raise UserError(f"class '{name}' in '{folder}' {fault}; add more")
        order = np.random.default_rng([seed, 1, label]).permutation(len(found))
        num_test = min(max(1, round(validation_fraction * len(found))), len(found) - 1)
        parts['test'] += [found[k] for k in order[:num_test]]
        parts['train'] += [found[k] for k in order[num_test:]]
    return classes, parts


def decode(path: str | os.PathLike, image_size: int, channels: int = 3) -> np.ndarray:
    """Return an image as uint8 [image_size, image_size, channels], decoded by the rules of images.FOLDER.

    The shorter side is resized, bilinearly and antialiased, and the middle is cropped. An image that already
    has this size is left as it is.

    Raises:
        ValueError: The image cannot be decoded; the message is the reason.
    """
    from PIL import Image, ImageOps

    image = images.decode(path, images.FOLDER, 'RGB' if channels == 3 else 'L')
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image_size, image_size, channels)


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _require_memory(folder, count, image_size, channels):
    needed, limit = count * image_size**2 * channels, MEMORY_SHARE * memory_bytes()
    if needed > limit:
        size = f'{needed / 1e9:.1f} GB at {image_size} x {image_size}, more than a quarter of the memory'
        raise UserError(f"the {count:,} images of '{folder}' take {size}; lower --image_size, or pass fewer images")


def _classes(folder):
    """Return the class names of a folder, sorted."""
    names = _subfolders(folder)
    if not names:
        raise UserError(f"'{folder}' has no subfolders; put the images of each class into a subfolder of its own")
    if len(names) == 1:
        raise UserError(f"'{folder}' has one class only, '{names[0]}'; add a subfolder for another")
    return tuple(names)


def _subfolders(folder):
    hidden = ('.', '__MACOSX')
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(hidden))


def _files(folder, classes, is_complete=True):
    """Return [(path, label), ...] of the image files of all classes, sorted."""
    result = []
    for label, name in enumerate(classes):
        place = folder / name
        paths = sorted(images.find_files(place), key=lambda path, place=place: path.relative_to(place).as_posix())
        if not paths and is_complete:
            suffixes = ' '.join(images.SUFFIXES)
            raise UserError(f"class folder '{place}' has no images ({suffixes}); add some, or remove it")
        result += [(path, label) for path in paths]
    if not result:
        raise UserError(f"'{folder}' has no images ({' '.join(images.SUFFIXES)}); add some")
    return result


def _shuffled(files, seed):
    """Return (paths, labels int32) in a random order, so that the first n are a fair sample."""
    order = np.random.default_rng([seed, 2]).permutation(len(files))
    return [files[i][0] for i in order], np.array([files[i][1] for i in order], np.int32)
