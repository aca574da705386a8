"""Training input from JPEG files at 224x224, images/s, one function a system, for speed.

Each takes (dtype, resnet_size, batch_size, folder), of which the first two do not matter, and returns {'jpeg':
function of a number of steps}. A turn begins with nothing prepared and makes steps * batch_size images, each file
as often as any other. It works on the cores that its process may use.
"""

import concurrent.futures
import functools
import itertools
import os
import pathlib
from typing import TYPE_CHECKING

from benchmarks.training import Measures
from official_resnet.errors import UserError
from official_resnet.inputs import images
from official_resnet.training import devices

if TYPE_CHECKING:
    import tensorflow as tf

SIZE = 224
MIN_AREA = 0.05  # official/resnet's, of a training crop
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of 0..1


def list_files(folder: str | None) -> list[pathlib.Path]:
    """Return the JPEG files below a folder, sorted.

    Raises:
        UserError: there is no folder, or no JPEG in it.
    """
    if not folder:
        raise UserError('measure=jpeg needs images; pass --image_folder with any folder of JPEG files')
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"image_folder '{folder}' is no folder; pass one of JPEG files")
    paths = sorted(images.find_files(folder, images.JPEG_SUFFIXES))
    if not paths:
        raise UserError(f"image_folder '{folder}' has no JPEG file ({' '.join(images.JPEG_SUFFIXES)}); pass another")
    return paths


def ours(dtype: str, resnet_size: int, batch_size: int, folder: str, resize: str = 'tf1') -> Measures:
    """Training batches of encoded images, resized as TensorFlow 1 did it."""
    devices.start_tensorflow()
    return _drawing(lambda steps: training_batches(resize, batch_size, steps, folder))


def antialias(*arguments) -> Measures:
    """The same, resized as Pillow does it."""
    return ours(*arguments, resize='antialias')


def decode(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """TensorFlow's decoding of the whole image and nothing else, from memory."""
    devices.start_tensorflow()
    import tensorflow as tf

    contents = tf.constant([path.read_bytes() for path in list_files(folder)])

    def pipeline(steps):
        rows = tf.data.Dataset.range(steps * batch_size)
        decoded = rows.map(lambda i: tf.io.decode_jpeg(contents[i % len(contents)], channels=3), tf.data.AUTOTUNE)
        return decoded.map(tf.size).batch(batch_size)  # of sizes, so that Python is not handed the images

    return _drawing(pipeline)


def pillow(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """Pillow's decoding of the whole image and nothing else, in a thread a core."""
    paths = list_files(folder)

    def run(steps):
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(lambda path: _load(path).size, _in_turn(paths, steps * batch_size)))

    return {'jpeg': run}


def torch(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """A DataLoader with the usual transforms of torchvision by Pillow; on more than one core, a worker a core."""
    from torch.utils import data

    from benchmarks import torch_peer

    transforms = torch_peer.import_torchvision().transforms
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(MIN_AREA, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEANS, DEVIATIONS),
        ]
    )
    paths, num_workers = list_files(folder), num_cores() if num_cores() > 1 else 0

    def collate(batch):  # called by the workers
        return data.default_collate([(transform(_load(path)), 0) for path in batch])

    def run(steps):
        files = _in_turn(paths, steps * batch_size)
        loader = data.DataLoader(files, batch_size, shuffle=True, num_workers=num_workers, collate_fn=collate)
        return [None for _ in loader]

    return {'jpeg': run}


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def training_batches(resize: str, batch_size: int, steps: int, folder: str) -> 'tf.data.Dataset':
    """Return so many batches of training, normalised as torchvision's; files are repeated in turn."""
    from official_resnet.inputs import streamed
    from official_resnet.inputs.affine import PUBLISHED
    from official_resnet.inputs.views import Views

    files = _in_turn(list_files(folder), steps * batch_size)
    views = Views(SIZE, min_area=MIN_AREA, use_boxes=False, resize=resize)
    source = streamed.Files(files, [0] * len(files))
    split = streamed.StreamedSplit(source, 1, 'folder', ('image',), PUBLISHED['torch'], views)
    return split.training_batches(batch_size)


def _in_turn(paths, count):
    return list(itertools.islice(itertools.cycle(paths), count))


def _load(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert('RGB')


def _drawing(make):
    """Return the Measures that draw all batches of make(steps), a tf.data.Dataset, which is made once."""
    pipeline, iterators = functools.cache(make), []  # kept: the end of one waits for tf.data's tuning thread, seconds

    def run(steps):
        iterators.append(iter(pipeline(steps)))
        for _ in iterators[-1]:
            pass

    return {'jpeg': run}
