"""Training input from JPEG files at 224x224, images/s, one function a system, for speed_systems.

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

from benchmarks.trainers import Measures
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


def ours(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """Training batches of encoded images, resized as TensorFlow 1 did it."""
    return _batches('tf1', batch_size, folder)


def antialias(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """The same, resized as Pillow does it."""
    return _batches('antialias', batch_size, folder)


def decode(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """TensorFlow's decoding of the whole image and nothing else, from memory."""
    devices.start_tensorflow()
    import tensorflow as tf

    contents = tf.constant([path.read_bytes() for path in list_files(folder)])

    @functools.cache
    def pipeline(steps):
        rows = tf.data.Dataset.range(steps * batch_size)
        decoded = rows.map(lambda i: tf.io.decode_jpeg(contents[i % len(contents)], channels=3), tf.data.AUTOTUNE)
        return decoded.map(tf.size)  # so that Python is not handed the images

    return {'jpeg': _running(lambda steps: pipeline(steps).batch(batch_size))}


def pillow(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """Pillow's decoding of the whole image and nothing else, in a thread a core."""
    from PIL import Image

    paths = list_files(folder)

    def load(path):
        with Image.open(path) as image:
            image.convert('RGB')

    def run(steps):
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(load, itertools.islice(itertools.cycle(paths), steps * batch_size)))

    return {'jpeg': run}


def torch(dtype: str, resnet_size: int, batch_size: int, folder: str) -> Measures:
    """A DataLoader with the usual transforms of torchvision by Pillow; on more than one core, a worker a core."""
    import torch
    from PIL import Image

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
    paths = list_files(folder)

    class Images(torch.utils.data.Dataset):
        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

        def __getitem__(self, i):
            with Image.open(paths[i % len(paths)]) as image:
                return transform(image.convert('RGB')), 0

    def run(steps):
        workers = num_cores() if num_cores() > 1 else 0
        return [
            None
            for _ in torch.utils.data.DataLoader(
                Images(steps * batch_size), batch_size, shuffle=True, num_workers=workers
            )
        ]

    return {'jpeg': run}


SYSTEMS = {f'jpeg:{function.__name__}': function for function in (ours, antialias, decode, torch, pillow)}
PARTS = {'ours': ('ours', 'antialias', 'decode'), 'torch': ('torch', 'pillow')}  # of a --system
NEEDS = {'torch': ('torch', 'torchvision')}  # packages of the [parity] extra


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def training_batches(resize: str, batch_size: int, steps: int, folder: str) -> 'tf.data.Dataset':
    """Return so many batches of training, tf.data.Dataset, normalised as torchvision's; files are repeated in turn."""
    from official_resnet.inputs import streamed
    from official_resnet.inputs.affine import PUBLISHED
    from official_resnet.inputs.views import Views

    files = list(itertools.islice(itertools.cycle(list_files(folder)), steps * batch_size))
    views = Views(SIZE, min_area=MIN_AREA, use_boxes=False, resize=resize)
    split = streamed.StreamedSplit(
        streamed.Files(files, [0] * len(files)), 1, 'folder', ('image',), PUBLISHED['torch'], views
    )
    return split.training_batches(batch_size)


def _batches(resize, batch_size, folder):
    devices.start_tensorflow()
    pipeline = functools.cache(lambda steps: training_batches(resize, batch_size, steps, folder))
    return {'jpeg': _running(pipeline)}


def _running(pipeline):
    """Return the function (steps) that draws all batches of pipeline(steps), a tf.data.Dataset."""
    iterators = []  # kept: the end of one waits for tf.data's tuning thread, which sleeps for seconds

    def run(steps):
        iterators.append(iter(pipeline(steps)))
        for _ in iterators[-1]:
            pass

    return run
