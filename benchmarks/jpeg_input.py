"""Training input from JPEG files at 224x224, with one function for each system, for benchmarks.speed.

Each function takes (dtype, resnet_size, batch_size, folder), ignores the first two, and returns {'jpeg':
function of a number of steps}. A turn starts with nothing prepared and makes steps * batch_size images, using all files
equally often. It runs on the cores that its process may use.
"""

import concurrent.futures
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from official_resnet.errors import UserError
from official_resnet.inputs import images

SIZE, MIN_AREA = 224, 0.05  # of a training crop, as in official/resnet
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, for 0..1


def list_files(folder: str | None) -> list[pathlib.Path]:
    """Return the JPEG files below a folder, sorted.

    Raises:
        UserError: The folder is missing, or has no JPEG.
    """
    paths = sorted(images.find_files(os.path.expanduser(folder or ''), images.is_jpeg_name)[0])
    if not paths:
        names = ' '.join(images.JPEG_SUFFIXES)
        raise UserError(f"image_folder '{folder}' has no JPEG files ({names}); pass --image_folder with one that has")
    return paths


def ours(dtype: str, resnet_size: int, batch_size: int, folder: str, resize: str = 'tf1') -> dict:
    """Our training batches of encoded images, resized as in TensorFlow 1."""
    return {'jpeg': iterating(lambda steps: training_batches(resize, batch_size, steps, folder))}


def antialias(dtype: str, resnet_size: int, batch_size: int, folder: str) -> dict:
    """Our training batches, resized as in Pillow."""
    return ours(dtype, resnet_size, batch_size, folder, resize='antialias')


def decoded(dtype: str, resnet_size: int, batch_size: int, folder: str) -> dict:
    """Our training batches of a small set, whose images are decoded before the first turn and stay in memory."""
    files = list_files(folder)
    split = _split(_in_turn(files, max(len(files), batch_size)), 'tf1', decodes_once=True)
    steps_per_epoch = split.num_images // batch_size

    def pipeline(steps) -> Iterable:
        return split.training_batches(batch_size, num_epochs=math.ceil(steps / steps_per_epoch)).take(steps)

    return {'jpeg': iterating(pipeline)}


def decode(dtype: str, resnet_size: int, batch_size: int, folder: str) -> dict:
    """TensorFlow's decoding of whole images from memory, and nothing else."""
    import tensorflow as tf

    contents = tf.constant([path.read_bytes() for path in list_files(folder)])

    def pipeline(steps) -> 'tf.data.Dataset':
        rows = tf.data.Dataset.range(steps * batch_size)
        decoded = rows.map(lambda i: tf.io.decode_jpeg(contents[i % len(contents)], channels=3), tf.data.AUTOTUNE)
        return decoded.map(tf.size).batch(batch_size)  # sizes, so that the images do not come to Python

    return {'jpeg': iterating(pipeline)}


def pillow(dtype: str, resnet_size: int, batch_size: int, folder: str) -> dict:
    """Pillow's decoding of whole images, and nothing else, in a thread for each core."""
    paths = list_files(folder)

    def run(steps) -> None:
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda path: _load(path).size, _in_turn(paths, steps * batch_size)))

    return {'jpeg': run}


def torch(dtype: str, resnet_size: int, batch_size: int, folder: str) -> dict:
    """A DataLoader with torchvision's usual transforms on Pillow; on several cores, a worker for each core."""
    from torch.utils import data

    from benchmarks import torch_peer

    transforms = torch_peer.import_torchvision().transforms
    augment = transforms.RandomResizedCrop(SIZE, scale=(MIN_AREA, 1.0)), transforms.RandomHorizontalFlip()
    transform = transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(MEANS, DEVIATIONS)])
    paths, cores = list_files(folder), len(os.sched_getaffinity(0))

    def collate(batch) -> Any:  # the workers call it
        return data.default_collate([(transform(_load(path)), 0) for path in batch])

    def run(steps) -> None:
        files = _in_turn(paths, steps * batch_size)
        loader = data.DataLoader(files, batch_size, True, num_workers=cores if cores > 1 else 0, collate_fn=collate)
        for _ in loader:
            pass

    return {'jpeg': run}


def training_batches(resize: str, batch_size: int, steps: int, folder: str, options: Any = None) -> Iterable:
    """Return a tf.data.Dataset of `steps` training batches, normalised as in torchvision; files are used in turn.

    `options` is that of split.Split.training_batches.
    """
    files = _in_turn(list_files(folder), steps * batch_size)
    return _split(files, resize).training_batches(batch_size, options=options)


def _split(files, resize, **options):
    """Return a StreamedSplit of files, which are of one class."""
    from official_resnet.inputs import streamed
    from official_resnet.inputs.affine import PUBLISHED
    from official_resnet.inputs.views import Views

    views = Views(SIZE, min_area=MIN_AREA, use_boxes=False, resize=resize, crop='torch')
    source = streamed.Files(files, [0] * len(files), **options)
    return streamed.StreamedSplit(source, 1, 'folder', ('image',), PUBLISHED['torch'], views)


def _in_turn(paths, count):
    return list(itertools.islice(itertools.cycle(paths), count))


def _load(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert('RGB')


def iterating(make: Callable) -> Callable[[int], None]:
    """Return the function of a number of steps that iterates over make(steps), a tf.data.Dataset, made once."""
    pipeline, iterators = functools.cache(make), []  # kept: ending one waits seconds for tf.data

    def run(steps) -> None:
        iterators.append(iter(pipeline(steps)))
        for _ in iterators[-1]:
            pass

    return run
