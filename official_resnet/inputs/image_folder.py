"""Your own images, in a folder for each class or listed in a CSV file: read into memory at one size, or streamed.

    DIR/cats/1.jpg, DIR/dogs/a/b.png ...                   split at random by a seed, class by class
    DIR/train/cats/1.jpg ..., DIR/test/cats/7.jpg ...      already split; see listing.split_name

CSV files may stand for the folder, see image_csv. Upper and lower case of train and test do not matter. In memory,
each image is decoded once, by images.decode; before streaming, it is only inspected. What is not an image by its bytes,
or turns out to be damaged then, is reported and left out.
"""

import concurrent.futures
import itertools
import os
import pathlib
import shlex
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from official_resnet.damage import is_of_machine
from official_resnet.errors import UserError, one_line
from official_resnet.files import read_bytes
from official_resnet.inputs import classes, images, jpeg
from official_resnet.inputs.listing import (
    TEST_NAMES,
    TRAIN_NAMES,
    Listing,
    copies,
    lists,
    root_of,
    set_aside,
    split_name,
)
from official_resnet.inputs.other_datasets import default_normalization
from official_resnet.inputs.split import Split
from official_resnet.inputs.views import Views

MEMORY_SHARE = 1 / 4  # the images may take this fraction of the machine's memory


def _say(line):
    """Print a line with names of files, which may have control characters."""
    print(one_line(line))


def open_split(dataset: str, split: str, options: Mapping[str, Any], views: Views | None) -> Split:
    """Open a split of 'folder:PATH', see datasets.open_split. With views it is streamed."""
    folder, seed = dataset.removeprefix('folder:'), options.get('seed', 0)
    normalization = default_normalization(dataset, views)
    if views is None:
        from official_resnet.inputs import in_memory

        pixels, labels, names, paths = _read(folder, split, **options)
        origin = f'{images.content_of(paths)} {pixels.shape}'  # the files', because Pillow's versions differ in pixels
        return in_memory.InMemorySplit(
            pixels, labels, len(names), dataset, names, normalization, origin=origin, paths=[*map(str, paths)]
        )
    from official_resnet.inputs import streamed

    listing = list_files(folder, options.get('validation_fraction', 0.1), seed)
    _report(listing, folder, split, views.size, _say, views.test_size)
    paths, labels = _shuffled(listing.files(split), seed)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        faults = {i: fault for i, fault in enumerate(pool.map(_fault_of, paths)) if fault}
    rows = _rows(faults, paths, labels, listing, split, folder, _say, options)
    files = streamed.Files([paths[row] for row in rows], labels[rows], decodes_once=True)
    views = views.with_exif(True)
    return streamed.StreamedSplit(files, len(listing.classes), dataset, listing.classes, normalization, views)


def read(folder: str | os.PathLike, split: str, **options: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return one split: (images uint8 [n, image_size, image_size, channels], labels int32 [n], class names).

    Classes are numbered in the order of their names. The images are in a random order that depends on `seed` alone, so
    that the first n of them are a fair sample.

    Args:
        folder, split: The folder or CSV file, and 'train' or 'test'.
        image_size: Height and width, see `decode`.
        channels: 3 for RGB, 1 for grey.
        validation_fraction: Fraction of each class for 'test', at least one image; 1 leaves none for 'train'. Ignored
            if there is a test folder.
        seed: Seed of the split and of the order.
        balance: Whether small classes of 'train' are repeated, see `balanced`.
        log: Called with each line about the split and about what is left out, such as an image that cannot be read.

    Raises:
        UserError: There are fewer than two classes, a class has no readable image, or the images need too much memory.
    """
    return _read(folder, split, **options)[:3]


def balanced(labels: np.ndarray, seed: int = 0, log: Callable[[str], None] | None = None) -> np.ndarray:
    """Return rows of labels, int [n], that hold each class as often as the largest (oversampling, arXiv:1710.05381).

    Within a class, the counts of two images differ by one at most. The order is random, so that the first rows are a
    fair sample of the classes.

    >>> rows = balanced(np.array([0, 0, 0, 1, 1]))
    >>> np.bincount(np.array([0, 0, 0, 1, 1])[rows])
    array([3, 3])
    """
    counts = np.bincount(labels)
    if log:
        log(f'--balance: an epoch has {counts.max():,} images of each class')
    rows = [np.resize(np.flatnonzero(labels == label), counts.max()) for label in np.flatnonzero(counts)]
    return np.random.default_rng([seed, 3]).permutation(np.concatenate(rows))


def _read(folder, split, *, image_size=32, channels=3, validation_fraction=0.1, seed=0, balance=False, log=_say):
    """Return what `read` returns, and the paths of its images."""
    from PIL import Image

    listing = list_files(folder, validation_fraction, seed)
    _report(listing, folder, split, image_size, log)
    _require_memory(folder, sum(map(len, listing.splits.values())), image_size, channels)
    paths, labels = _shuffled(listing.files(split), seed)
    pixels, failures = np.empty([len(paths), image_size, image_size, channels], np.uint8), {}

    def decode_one(i) -> None:
        try:
            pixels[i] = decode(paths[i], image_size, channels)
        except ValueError as error:
            failures[i] = error

    Image.init()  # before the threads
    # Pillow's warnings are caught once, here, because catching them inside threads is not safe.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(decode_one, range(len(paths))))
    rows = _rows(failures, paths, labels, listing, split, folder, log, {'seed': seed, 'balance': balance})
    pixels = pixels[rows] if failures or balance else pixels  # a copy
    return pixels, labels[rows], listing.classes, [paths[row] for row in rows]


def _fault_of(path):
    """Return why a file is not an image, or is a JPEG that is cut off; '' for a good one. No pixels are decoded."""
    try:
        images.require_whole(jpeg.inspect(read_bytes(path, 'image_bytes')))
    except ValueError as error:
        return str(error)
    except OSError as error:
        if is_of_machine(error):  # not the image's fault: it is not left out
            raise
        return error.strerror
    return ''


def _rows(faults, paths, labels, listing, split, folder, log, options):
    """Log the images that cannot be read, {their row: why}; return the rows of the others, with those of --balance."""
    for i in sorted(faults, key=paths.__getitem__):
        log(f'unreadable, left out: {paths[i]} ({faults[i]})')
    if faults:
        kind, they_are = 'training' if split == 'train' else 'test', 'they are' if len(faults) > 1 else 'it is'
        log(f'{len(faults)} of {len(paths)} {kind} images in {folder} cannot be read, so {they_are} left out')
    rows = np.delete(np.arange(len(paths)), list(faults))
    counts = np.bincount(labels[rows], minlength=len(listing.classes))
    if not counts.any() or split == 'train' and not counts.all():
        name = listing.classes[int(counts.argmin())]
        raise UserError(f"no image of class '{name}' for {split} in '{folder}' can be read; fix or remove it")
    if split == 'train' and options.get('balance'):
        return rows[balanced(labels[rows], options.get('seed', 0), log)]
    return rows


def list_files(folder: str | os.PathLike, validation_fraction: float = 0.1, seed: int = 0) -> Listing:
    """Return the Listing of a folder, or of CSV files with commas between their paths, see image_csv.

    No file with the suffix of an image is opened. It raises what `read` and image_csv.list_files raise.
    """
    if os.path.isdir(folder):
        found = _list_folder(pathlib.Path(folder))
    else:
        from official_resnet.inputs import image_csv

        paths = lists(folder)
        if missing := [path for path in paths if not os.path.isfile(path)]:
            if len(paths) > 1:
                raise UserError(f"'{missing[0]}' is not a file; correct its path (a comma separates two lists)")
            remedy = 'pass --image_folder with a subfolder for each class, or --image_list with the columns path and '
            raise UserError(f"'{missing[0]}' is neither a folder nor a file; {remedy}label")
        found = image_csv.list_files(paths)
    return found if found.test_name else set_aside(found, validation_fraction, seed)


def _list_folder(folder):
    """Return the Listing of a folder; without a test folder, all images are in 'train'."""
    found = classes.folders(folder)
    by_name = {split_name(name): path for name, path in reversed(found.items())}
    train = next(filter(None, map(by_name.get, TRAIN_NAMES)), None)
    tests = [by_name[name] for name in TEST_NAMES if name in by_name]
    unlabelled = next(filter(_holds_only_images, tests), None)
    test = next((path for path in tests if path != unlabelled), None)
    if not train and unlabelled and not (split_name(unlabelled.name).startswith('test') and len(found) > 2):
        unlabelled = None  # a class may be called valid
    if not (train and test):
        place = train if train and unlabelled else folder
        ours = _classes(place, unlabelled)
        files, others = _files(place, ours, unlabelled)
        beside, notes = _beside(folder, (train, unlabelled), ours) if place != folder else ([], [])
        unused = {'train': others + beside, 'test': []}
        return Listing(tuple(ours), {'train': files, 'test': []}, unused, '', unlabelled, notes)
    ours, theirs = _classes(train), classes.folders(test)
    if unknown := [name for name in theirs if name not in ours]:
        raise UserError(f"'{theirs[unknown[0]]}' is not a class of '{train}'; remove or rename it")
    files, others = _files(train, ours)
    test_files, test_others = _files(test, {name: theirs.get(name) for name in ours}, is_complete=False)
    beside, notes = _beside(folder, (train, test, unlabelled), ours)
    splits, unused = {'train': files, 'test': test_files}, {'train': others + beside, 'test': test_others}
    return Listing(tuple(ours), splits, unused, test.name, unlabelled, notes)


def decode(path: str | os.PathLike, image_size: int, channels: int = 3) -> np.ndarray:
    """Return an image as uint8 [image_size, image_size, channels], decoded by the rules of images.FOLDER.

    The shorter side is resized, bilinearly and antialiased, and the middle is cropped. An image that already
    has this size is left as it is.

    Raises:
        ValueError: The image cannot be decoded; the message is the reason.
    """
    from PIL import Image, ImageOps

    def fit(image) -> np.ndarray:
        return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR))

    pixels = images.decode(path, images.FOLDER, 'RGB' if channels == 3 else 'L', fit, image_size)
    return pixels.reshape(image_size, image_size, channels)


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _require_memory(folder, count, image_size, channels):
    needed, limit = count * image_size**2 * channels, MEMORY_SHARE * memory_bytes()
    if needed > limit:
        size = f'{needed / 1e9:.1f} GB at {image_size} x {image_size}, more than a quarter of the memory'
        raise UserError(f"the {count:,} images of '{folder}' take {size}; lower --image_size, or pass fewer images")


def _classes(folder, unlabelled=None):
    """Return {class: its folder} of a folder, in order, without `unlabelled`.

    Raise UserError if the subfolders do not look like classes.
    """
    found = {name: path for name, path in classes.folders(folder).items() if path != unlabelled}
    if not found:
        remedy = 'put the images of each class into a subfolder of its own, or name their classes in an --image_list'
        raise UserError(f"'{folder}' has no subfolders; {remedy}")
    nested = [name for name, path in found.items() if _holds_only_folders(path)]
    splits = [name for name in found if split_name(name)]
    # A class may be called train, as in CIFAR-100.
    if splits and (len(splits) == len(found) or set(splits) & set(nested)):
        train = next((found[name] for name in splits if split_name(name) in TRAIN_NAMES), None)
        remedy = _split_remedy(train, found) if train else 'put the others into a folder train'
        raise UserError(f"{classes.listed(splits)} in '{folder}' is a split, not a class; {remedy}")
    if len(nested) == len(found):
        fault = f"the subfolders {classes.listed(nested)} of '{folder}' hold only folders"
        raise UserError(f'{fault}; pass the folder of the classes, or if these are classes, put their images into them')
    if len(found) == 1:
        raise UserError(f"'{folder}' has one class only, '{next(iter(found))}'; add a subfolder for another")
    return found


def _split_remedy(train, found):
    """Return what to do about a folder that has the folder `train`, but no folder test, among those `found`."""
    ours, others = classes.folders(train).keys(), {name: path for name, path in found.items() if path != train}
    by_name = [name for name in others if 'test' in name.casefold() or 'val' in name.casefold()]
    by_classes = [name for name, path in others.items() if classes.folders(path).keys() & ours]
    test = next(iter([name for name in by_name if name in by_classes] or by_classes or by_name), '')
    remedy = f"rename '{test}' to 'test'" if test else 'add a folder test'
    drops = f', without the images of {classes.listed(others)}' if others else ''
    return f'{remedy}, or pass --image_folder={shlex.quote(str(train))} to set test images aside from it{drops}'


def _holds_only_folders(folder):
    kinds = {os.path.isdir(entry.path) for entry in images.entries(folder) if not images.is_leftover(entry.name)}
    return kinds == {True}


def _holds_only_images(folder):
    return not classes.folders(folder) and any(images.is_image(entry.path) for entry in images.entries(folder))


def _unused(folder, used):
    """Return what is in a folder, besides leftovers and the folders that are used."""
    paths = [pathlib.Path(entry.path) for entry in images.entries(folder) if not images.is_leftover(entry.name)]
    return [path for path in paths if path not in used]


def _beside(folder, used, ours):
    """Return what else is in a folder, and a line on each folder there that has images of the classes `ours`.

    The latter are not among the former.
    """
    others, notes = [], []
    for path in _unused(folder, used):
        found = classes.folders(path) if path.is_dir() else {}
        theirs = [place for name, place in found.items() if name in ours]
        count = sum(len(images.find_files(place)[0]) for place in theirs)
        if not count:
            others.append(path)
            continue
        text = f"'{path.name}' is not used; it has {count:,} image{'s' * (count > 1)} of {len(theirs)} of your classes"
        command = 'resnet-images --eval_only --validation_fraction=1 --pretrained_model_checkpoint_path=MODEL_DIR'
        notes.append(f'{text}; to evaluate them: {command} --image_folder={shlex.quote(str(path))}')
    return others, tuple(notes)


def _files(folder, places, unlabelled=None, is_complete=True):
    """Return ([(path, label), ...], other files) of all classes, sorted. `places` has the folder of each class."""
    result, others = [], _unused(folder, {*places.values(), unlabelled})
    for label, place in enumerate(places.values()):
        paths, more = images.find_files(place) if place else ([], [])
        if not paths and is_complete:
            fault = f"class folder '{place}' has no images ({' '.join(images.SUFFIXES)}); add some, or remove it"
            raise UserError(f"class folder '{place}': {jpeg.HEIC}" if images.heic_line(more) else fault)
        result += [(path, label) for path in sorted(paths, key=str)]
        others += more
    if not result:
        raise UserError(f"'{folder}' has no images ({' '.join(images.SUFFIXES)}); add some")
    return result, others


def _report(listing, folder, split, image_size, log, test_size=None):
    """Log what was understood, with the training split only, and what each split does not use."""
    root = root_of(folder)
    if split == 'train':
        where = f"test images from '{listing.test_name}'" if listing.test_name else 'test images set aside at random'
        train, test = (_span(listing, name) for name in ('train', 'test'))
        names = classes.listed(listing.classes, 10)
        pixels = f'{image_size} x {image_size} pixels'
        if test_size not in (None, image_size):
            pixels += f' in training, {test_size} x {test_size} in tests'
        text = f'{len(listing.classes):,} classes in {folder}: {names}; {train} training and {test} test images of each'
        log(f'{text} ({where}); {pixels}')
        if listing.unlabelled:
            command = f'resnet-predict --model MODEL_DIR {shlex.quote(str(listing.unlabelled))}'
            log(f"'{listing.unlabelled.name}' has no classes, so it is not used; to classify its images: {command}")
        if alike := [' = '.join(names) for names in classes.alike(listing.classes)]:
            fault = f'classes that differ only in upper and lower case ({len(alike)}): {classes.listed(alike)}'
            log(f'{fault}; if those of a pair are one class, give it one name')
        if single := [listing.classes[label] for label in listing.untested()]:
            log(f'classes of one image, used for training and not tested ({len(single)}): {classes.listed(single)}')
        for line in copy_notes(listing, folder):
            log(line)
    if others := sorted(os.path.relpath(path, root) for path in listing.others[split]):
        log(f'not images of a class, so not used ({len(others)}): {classes.listed(others)}')
    if heic := images.heic_line(listing.others[split]):
        log(heic)
    for note in listing.notes if split == 'train' else ():
        log(note)


def copy_notes(listing: Listing, folder: str | os.PathLike) -> list[str]:
    """Return lines on how many test images are also training images, and how many training images have two classes.

    Each line names some of them.
    """
    lines, root = [], root_of(folder)
    tests = [path for path, _ in listing.splits['test']]
    by_class = itertools.groupby(listing.splits['train'], lambda file: file[1])
    pairs, known = copies([*([path for path, _ in group] for _, group in by_class), tests]), set(tests)
    of_tests = f'test images with the bytes of training images: {{}} of {len(tests)}, so the test accuracy is too high'
    of_train = 'training images with the bytes of an image of another class: {}, so one of the two classes is wrong'
    for is_test, text in ((True, of_tests), (False, of_train)):
        if found := [pair for pair in pairs if (pair[0] in known) == is_test]:
            few = classes.listed(' = '.join(os.path.relpath(path, root) for path in pair) for pair in found)
            lines.append(f'{text.format(len(found))}; remove one of each pair: {few}')
    return lines


def _span(listing, split):
    """Return the least and the greatest number of images of a class, as text."""
    counts = listing.counts(split)
    return f'{counts.min()} to {counts.max()}' if counts.min() < counts.max() else f'{counts.max()}'


def _shuffled(files, seed):
    """Return (paths, labels int32) in a random order, so that the first n are a fair sample."""
    order = np.random.default_rng([seed, 2]).permutation(len(files))
    return [files[i][0] for i in order], np.array([files[i][1] for i in order], np.int32)
