"""The data sets: what is known of each, and how one split of it is opened.

    split = open_split('cifar10', 'train', data_dir='/tmp/cifar10_data')
    for images, labels in split.training_batches(128, seed=1, num_epochs=2):
        ...

Every split, whether its images are held in memory or streamed from the disk, offers what split.Split lists; nobody
needs to know which kind it is. No TensorFlow at import: flags and messages use the table.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from official_resnet import errors

if TYPE_CHECKING:
    from official_resnet.inputs.split import Split
    from official_resnet.inputs.views import Views

MAX_IMAGE_SIZE = 4096  # pixels a side


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a byte of it is read."""

    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    split_sizes: dict[str, int]  # 'train' and 'test' -> images, when complete
    class_names: tuple[str, ...] = ()  # in the order of the labels; none where a split brings its own
    normalization: str = 'per_image_standardization'  # a name in NORMALIZATIONS
    folders: tuple[str, ...] = ()  # below data_dir, ours first; none: generated, or in any folder
    files: dict[str, tuple[str, ...]] | None = None  # 'train' and 'test' -> names in the folder, in reading order
    format: str = 'cifar'  # 'idx', whose files may also be packed: NAME.gz; 'shards' of TFRecord; 'synthetic'
    label_bytes: int = 1  # of a CIFAR record
    fetcher: str = ''  # the command that fetches it, without --data_dir
    input_size: int | None = None  # height and width of the network's input; None: those of the images


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
    """Return what is known of a data set by its name. UserError: there is none of that name."""
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
        dataset: a key of other_datasets.DATASETS, 'tfds:NAME' for a data set of tensorflow_datasets, or 'folder:PATH'
            for own images, a subfolder of PATH for each class (image_folder).
        split: 'train' or 'test'. A TFDS data set without 'test' gives its 'validation'.
        data_dir: where the data is; see `find_folder`; for TFDS its data_dir. Not used by 'synthetic' and folders.
        download: for TFDS only, whether to fetch and prepare a data set that is not in data_dir.
        views: how encoded images become the network's input: 'imagenet', and those of a folder or of TFDS, are then
            streamed. None: Views() for 'imagenet'; the others are read into memory.
        folder: for folders only, arguments of image_folder.read.

    Raises:
        UserError: an unknown name, or data that is missing, damaged or of no fixed image size.

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

    if info.format == 'cifar':
        from official_resnet.inputs import cifar

        folder = find_folder(dataset, data_dir)
        images, labels = cifar.read_cifar(
            [folder / name for name in info.files[split]], info.label_bytes, info.num_classes
        )
    else:
        from official_resnet.inputs import other_datasets

        images, labels = other_datasets.read(dataset, split, data_dir)
    return in_memory.InMemorySplit(
        images, labels, info.num_classes, dataset, info.class_names, info.normalization, info.input_size
    )


def find_folder(dataset: str, data_dir: str | os.PathLike | None) -> Path:
    """Return the data set's folder in `data_dir`, as cifar-10-batches-bin, or `data_dir` itself.

    Both, because official/resnet took the parent in 2018 and the folder from 2019.

    Raises:
        UserError: neither is such a folder.
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


def is_missing(dataset: str, data_dir: str | os.PathLike) -> bool:
    """Tell whether `data_dir`, or the data set's folder below it, has no file of the data set, of any size."""
    if dataset.startswith(('tfds:', 'folder:')) or not info_of(dataset).folders:
        return False
    return not _folders_with_files(info_of(dataset), Path(os.path.expanduser(data_dir)))


def _folders_with_files(info, path):
    """Return which of the data set's folders below `path`, and `path` itself, have any of its files, packed or not."""
    names = [name + suffix for split in info.files.values() for name in split for suffix in ('', '.gz')]
    folders = [*(path / folder for folder in info.folders), path]
    return [folder for folder in folders if any((folder / name).exists() for name in names)]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches; which images are left over differs from epoch to epoch.

    Raises:
        UserError: there is none.
    """
    require_batch_size(batch_size)
    if num_images < batch_size:
        fault = f'with {num_images} training images gives an epoch without a batch'
        raise errors.UserError(f'--batch_size={batch_size} {fault}; pass --batch_size=1..{num_images}')
    return num_images // batch_size


def require_batch_size(batch_size: int) -> None:
    """Refuse a batch without images."""
    if batch_size < 1:
        raise errors.UserError(f'--batch_size={batch_size} must be 1 or more')


def require_images(split: 'Split', num_images: int) -> None:
    """Refuse to take more images of a split than there are, or none."""
    if not 1 <= num_images <= split.num_images:
        fault = f'--num_train_images={num_images} of the {split.num_images} training images of {split.name}'
        raise errors.UserError(f'{fault}; pass 1..{split.num_images}')
