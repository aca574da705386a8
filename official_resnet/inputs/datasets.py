"""What is known about each data set, and how to open one split of it.

    split = open_split('cifar10', 'train', data_dir='/tmp/cifar10_data')
    for images, labels in split.training_batches(128, seed=1, num_epochs=2):
        ...

Every split has the methods of split.Split, whether its images are held in memory or streamed from the disk, so callers
need not know which. Importing this module imports no TensorFlow, because flags and messages use the table.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from official_resnet import errors

if TYPE_CHECKING:
    import numpy as np

    from official_resnet.inputs.split import Split
    from official_resnet.inputs.views import Views

MAX_IMAGE_SIZE = 4096  # pixels a side


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before any of it is read."""

    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    split_sizes: dict[str, int]  # number of images of the complete 'train' and 'test'
    class_names: tuple[str, ...] = ()  # in the order of the labels; empty if each split brings its own
    normalization: str = 'per_image_standardization'  # a name in NORMALIZATIONS
    folders: tuple[str, ...] = ()  # possible names below data_dir, ours first; empty: generated, or any folder
    files: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # of each split, in reading order
    format: str = 'cifar'  # or 'idx' (files may be compressed, NAME.gz), 'shards' (TFRecord), 'synthetic'
    label_bytes: int = 1  # of a CIFAR record
    fetcher: str = ''  # the command that fetches it, without --data_dir
    input_size: int | None = None  # height and width of the network's input; None keeps those of the images


CIFAR10 = DatasetInfo(
    num_classes=10,
    image_shape=(32, 32, 3),
    split_sizes={'train': 50000, 'test': 10000},
    class_names=tuple('airplane automobile bird cat deer dog frog horse ship truck'.split()),  # batches.meta.txt
    folders=('cifar-10-batches-bin',),
    files={'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)), 'test': ('test_batch.bin',)},
    fetcher='cifar10_download_and_extract.py',
)


def info_of(dataset: str) -> DatasetInfo:
    """Return what is known about a data set. An unknown name raises UserError."""
    if dataset == 'cifar10':
        return CIFAR10
    from official_resnet.inputs.other_datasets import DATASETS

    if dataset not in DATASETS:
        known = ', '.join(DATASETS)
        raise errors.UserError(f"dataset '{dataset}' is unknown; choose {known}, tfds:NAME or folder:PATH")
    return DATASETS[dataset]


def open_split(
    dataset: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    views: 'Views | None' = None,
    folder: Mapping[str, Any] | None = None,
) -> 'Split':
    """Open one split of a data set: read small images into memory, or find those that are streamed.

    Args:
        dataset: A key of other_datasets.DATASETS, 'tfds:NAME' for a data set of tensorflow_datasets, or 'folder:PATH'
            for your own images, in a subfolder of PATH for each class (see image_folder).
        split: 'train' or 'test'. If a TFDS data set has no 'test', its 'validation' is opened.
        data_dir: Where the data is: see `find_folder`, or the data_dir of TFDS. 'synthetic' and folders ignore it.
        download: For TFDS only: whether to fetch and prepare a data set that is not in data_dir.
        views: How encoded images become the network's input. If given, the images of a folder or of TFDS are streamed,
            otherwise they are read into memory. 'imagenet' is always streamed; None means Views().
        folder: For folders only: keyword arguments of image_folder.read.

    Raises:
        UserError: The name is unknown, or the data is missing, damaged or has images of different sizes.

    Example:
        >>> split = open_split('synthetic', 'test')
        >>> split.num_images, split.input_shape
        (2000, (32, 32, 3))
        >>> images, labels = next(iter(split.evaluation_batches(100)))
        >>> images.shape, labels.dtype
        (TensorShape([100, 32, 32, 3]), tf.int32)
    """
    if split not in ('train', 'test'):
        raise errors.UserError(f"split '{split}' is unknown; choose 'train' or 'test'")
    if dataset.startswith('tfds:'):
        from official_resnet.inputs import tfds_source

        return tfds_source.open_split(dataset, split, data_dir, download, views)
    if dataset.startswith('folder:'):
        from official_resnet.inputs import image_folder

        return image_folder.open_split(dataset, split, folder or {}, views)
    info = info_of(dataset)
    if info.format == 'shards':
        from official_resnet.inputs import shards

        return shards.open_split(dataset, split, data_dir, views)
    from official_resnet.inputs import in_memory

    images, labels = read_arrays(dataset, split, data_dir)
    split_of = in_memory.InMemorySplit(
        images, labels, info.num_classes, dataset, info.class_names, info.normalization, info.input_size
    )
    return dataclasses.replace(split_of, origin=dataset if info.format == 'synthetic' else None)


def require_data(
    dataset: str,
    data_dir: str | os.PathLike | None,
    folder: Mapping[str, Any] | None = None,
    splits: Sequence[str] = ('train', 'test'),
) -> None:
    """Raise the UserErrors of `open_split` that show in a second and without TensorFlow.

    Small images are read, large ones are only listed. The data sets of tensorflow_datasets are left to `open_split`.
    """
    if dataset != 'cifar10':
        from official_resnet.inputs import other_datasets

        return other_datasets.require_data(dataset, data_dir, folder or {}, splits)
    for split in splits:
        read_arrays(dataset, split, data_dir)


def read_arrays(dataset: str, split: str, data_dir: str | os.PathLike | None) -> tuple['np.ndarray', 'np.ndarray']:
    """Return (images uint8 [n, h, w, c], labels int32 [n]) of a data set that is held in memory."""
    info = info_of(dataset)
    if info.format == 'cifar':
        from official_resnet.inputs import cifar

        place = find_folder(dataset, data_dir)
        return cifar.read_cifar([place / name for name in info.files[split]], info.label_bytes, info.num_classes)
    from official_resnet.inputs import other_datasets

    return other_datasets.read(dataset, split, data_dir)


def find_folder(dataset: str, data_dir: str | os.PathLike | None) -> Path:
    """Return the data set's folder in `data_dir`, such as cifar-10-batches-bin, or `data_dir` itself.

    Both are accepted because official/resnet took the parent in 2018 and the folder from 2019.

    Raises:
        UserError: Neither is the data set's folder.
    """
    info = info_of(dataset)
    name = info.folders[0]
    if data_dir is None:
        raise errors.UserError(f'{dataset} needs a data_dir; pass --data_dir, the folder of {name}')
    path = Path(data_dir)
    incomplete = [folder for folder in (path / name, path) if folder.is_dir() and folder.match(name)]
    if found := _folders_with_files(info, path) or incomplete:
        return found[0]
    if path.exists() and not path.is_dir():
        raise errors.UserError(f"data_dir '{data_dir}' is not a folder; pass the folder of {name}")
    fault = f'has no {name}' if path.exists() else 'does not exist'
    remedy = f'run {info.fetcher} --data_dir {data_dir} or pass another --data_dir'
    raise errors.UserError(f"data_dir '{data_dir}' {fault}; {remedy}")


def describe(train: 'Split', test: 'Split') -> dict[str, Any]:
    """Return what a checkpoint says of the data of its run, as JSON values. Another run's must be equal to continue."""
    ids = {'class_ids': list(train.class_ids)} if train.class_ids else {}
    contents = {'train_content': train.content(), 'test_content': test.content()}
    return {'class_names': list(train.class_names), 'num_pictures': train.num_images, **ids, **contents}


def is_missing(dataset: str, data_dir: str | os.PathLike) -> bool:
    """Return whether files are needed and neither `data_dir` nor the data set's folder below it has any of them."""
    if dataset.startswith(('tfds:', 'folder:')) or not info_of(dataset).folders:
        return False
    return not _folders_with_files(info_of(dataset), Path(os.path.expanduser(data_dir)))


def _folders_with_files(info, path):
    """Return the folders, out of the data set's folders below `path` and `path` itself, that have any of its files."""
    names = [name + suffix for split in info.files.values() for name in split for suffix in ('', '.gz')]
    folders = [*(path / folder for folder in info.folders), path]
    return [folder for folder in folders if any((folder / name).exists() for name in names)]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch; which images are left over differs from epoch to epoch.

    Raises:
        UserError: The images do not fill one batch, or batch_size is below 1.
    """
    require_batch_size(batch_size)
    if num_images < batch_size:
        fault = f'is more than the {num_images} training images'
        raise errors.UserError(f'--batch_size={batch_size} {fault}; pass --batch_size=1..{num_images}')
    return num_images // batch_size


def require_batch_size(batch_size: int) -> None:
    """Raise UserError if batch_size is below 1."""
    if batch_size < 1:
        raise errors.UserError(f'--batch_size={batch_size} must be 1 or more')


def require_images(split: 'Split', num_images: int) -> None:
    """Raise UserError unless `num_images` is at least 1 and at most the number that the split has."""
    if not 1 <= num_images <= split.num_images:
        fault = f'--num_train_images={num_images} is out of range: {split.name} has {split.num_images} training images'
        raise errors.UserError(f'{fault}; pass 1..{split.num_images}')
