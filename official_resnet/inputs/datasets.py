"""The data sets: what is known of each, and how one split of it is opened.

    split = open_split('cifar10', 'train', data_dir='/tmp/cifar10_data')
    for images, labels in split.training_batches(128, seed=1, num_epochs=2):
        ...

Every split, whether its images are held in memory or streamed from the disk, offers what split.Split lists; nobody
needs to know which kind it is. No TensorFlow at import: flags and messages use the table.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from official_resnet import errors
from official_resnet.inputs.normalization import OFFICIAL

if TYPE_CHECKING:
    from official_resnet.inputs.split import Split
    from official_resnet.inputs.views import Views

SPLITS = ('train', 'test')
MAX_IMAGE_SIZE = 4096  # pixels a side
IMAGENET_TABLE = Path(__file__).with_name('imagenet_labels.tsv')  # WordNet id, tab, name of each class, by label

# In the order of the labels: batches.meta.txt and fine_label_names.txt of the archives.
_CIFAR10_CLASSES = tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())
_CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
_FASHION_CLASSES = (  # of github.com/zalandoresearch/fashion-mnist, section Labels
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip


@functools.lru_cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Return ((id, name), ...) of ILSVRC2012's 1000 classes in the order of their labels; ids are WordNet's."""
    lines = IMAGENET_TABLE.read_text(encoding='utf-8').splitlines()
    return tuple(tuple(line.split('\t')) for line in lines)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a byte of it is read."""

    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    split_sizes: dict[str, int]  # 'train' and 'test' -> images, when complete
    class_names: tuple[str, ...] = ()  # in the order of the labels; none where a split brings its own
    normalization: str = 'per_image_standardization'  # a name in NORMALIZATIONS
    folder: str | None = None  # None: generated, or in any folder
    other_folders: tuple[str, ...] = ()  # where others put it, below data_dir
    files: dict[str, tuple[str, ...]] | None = None  # 'train' and 'test' -> names in the folder, in reading order
    format: str = 'cifar'  # 'idx', whose files may also be packed: NAME.gz; 'shards' of TFRecord; 'synthetic'
    label_bytes: int = 1  # of a CIFAR record
    fetcher: str = ''  # the command that fetches it, without --data_dir
    input_size: int | None = None  # height and width of the network's input; None: those of the images


# What MNIST and its double have in common. The images are cropped or padded from 28 x 28 to 32 x 32: the
# PyTorch program of which recipes.MNIST tells pads training images by 4 and crops 32 out of the 36, feeds
# those of the test as they are, and fails on them, since its last feature map of 7 x 7 has no 8 x 8 to average.
_MNIST = {
    'num_classes': 10,
    'image_shape': (28, 28, 1),
    'split_sizes': {'train': 60000, 'test': 10000},
    'normalization': 'unit_range',
    'files': {
        'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
        'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
    },
    'format': 'idx',
    'input_size': 32,
}

DATASETS = {
    'cifar10': DatasetInfo(
        num_classes=10,
        image_shape=(32, 32, 3),
        split_sizes={'train': 50000, 'test': 10000},
        class_names=_CIFAR10_CLASSES,
        folder='cifar-10-batches-bin',
        files={'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)), 'test': ('test_batch.bin',)},
        fetcher='cifar10_download_and_extract.py',
    ),
    'cifar100': DatasetInfo(
        num_classes=100,
        image_shape=(32, 32, 3),
        split_sizes={'train': 50000, 'test': 10000},
        class_names=_CIFAR100_CLASSES,
        folder='cifar-100-binary',
        files={'train': ('train.bin',), 'test': ('test.bin',)},
        label_bytes=2,
        fetcher='cifar10_download_and_extract.py --dataset=cifar100',
    ),
    'mnist': DatasetInfo(
        class_names=tuple('0123456789'),
        folder='mnist',
        other_folders=('MNIST/raw',),  # torchvision's
        fetcher='mnist_main.py',
        **_MNIST,
    ),
    'fashion_mnist': DatasetInfo(
        class_names=_FASHION_CLASSES,
        folder='fashion-mnist',
        other_folders=('FashionMNIST/raw',),
        fetcher='mnist_main.py --dataset=fashion_mnist',
        **_MNIST,
    ),
    'imagenet': DatasetInfo(
        num_classes=1000,
        image_shape=(224, 224, 3),
        split_sizes={'train': 1281167, 'test': 50000},
        normalization=OFFICIAL,
        format='shards',
        fetcher='data/download_and_preprocess_imagenet.py',
    ),
    'synthetic': DatasetInfo(
        num_classes=10,
        image_shape=(32, 32, 3),
        split_sizes={'train': 10000, 'test': 2000},
        format='synthetic',
    ),
    'synthetic224': DatasetInfo(  # the same, each pixel 7 x 7 times: for the speed of ImageNet networks
        num_classes=10,
        image_shape=(224, 224, 3),
        split_sizes={'train': 1280, 'test': 256},
        format='synthetic',
    ),
}


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """How a folder of images, 'folder:PATH', is split and read.

    Attributes:
        image_size: height and width of images held in memory, pixels.
        channels: of images held in memory, 3 for RGB or 1 for grey.
        validation_fraction: of each class, for 'test', unless the folder says what is test.
        seed: of the split and the order.
    """

    image_size: int = 32
    channels: int = 3
    validation_fraction: float = 0.1
    seed: int = 0


def open_split(
    dataset: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    views: 'Views | None' = None,
    folder: FolderOptions | None = None,
) -> 'Split':
    """Open one split of a data set: read small images into memory, or find those that are streamed.

    Args:
        dataset: a key of DATASETS, 'tfds:NAME' for a data set of tensorflow_datasets, or 'folder:PATH' for own
            images, a subfolder of PATH for each class (image_folder).
        split: 'train' or 'test'. A TFDS data set without 'test' gives its 'validation'.
        data_dir: where the data is; see `find_folder`; for TFDS its data_dir. Not used by 'synthetic' and folders.
        download: for TFDS only, whether to fetch and prepare a data set that is not in data_dir.
        views: how encoded images become the network's input: 'imagenet', and those of a folder or of TFDS, are then
            streamed. None: Views() for 'imagenet'; the others are read into memory.
        folder: for folders only.

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
    if split not in SPLITS:
        raise errors.UserError(f"split '{split}' is unknown; choose 'train' or 'test'")
    if dataset.startswith('tfds:'):
        from official_resnet.inputs import tfds_source

        return tfds_source.open_split(dataset, split, data_dir, download, views)
    if dataset.startswith('folder:'):
        from official_resnet.inputs import image_folder

        return image_folder.open_split(dataset, split, folder or FolderOptions(), views)
    if dataset not in DATASETS:
        known = ', '.join(DATASETS)
        raise errors.UserError(f"dataset '{dataset}' is unknown; choose {known}, tfds:NAME or folder:PATH")
    if DATASETS[dataset].format == 'shards':
        from official_resnet.inputs import shards

        return shards.open_split(dataset, split, data_dir, views)
    return _read_into_memory(dataset, split, data_dir)


def _read_into_memory(dataset, split, data_dir):
    from official_resnet.inputs import in_memory

    info = DATASETS[dataset]
    names = info.class_names
    if info.format == 'synthetic':
        from official_resnet.inputs import synthetic

        # Always the same images, like a file; those of the splits differ by the seed.
        images, labels = synthetic.draw(info.split_sizes[split], seed=SPLITS.index(split))
        scale = info.image_shape[0] // synthetic.SIZE
        images, names = images.repeat(scale, axis=1).repeat(scale, axis=2), synthetic.CLASS_NAMES
    elif info.format == 'idx':
        from official_resnet.inputs import idx

        folder = find_folder(dataset, data_dir)
        paths = [_packed_or_not(folder / name) for name in info.files[split]]
        images, labels = idx.read_idx(*paths, info.num_classes, info.image_shape[:2])
    else:
        from official_resnet.inputs import cifar

        folder = find_folder(dataset, data_dir)
        paths = [folder / name for name in info.files[split]]
        images, labels = cifar.read_cifar(paths, info.label_bytes, info.num_classes)
    return in_memory.InMemorySplit(
        images, labels, info.num_classes, dataset, names, info.normalization, info.input_size
    )


def default_normalization(dataset: str, views: 'Views | None' = None) -> str:
    """Return the normalization of the splits that `open_split` opens with the same arguments."""
    if views:
        return OFFICIAL
    return DATASETS[dataset].normalization if dataset in DATASETS else 'per_image_standardization'


def find_folder(dataset: str, data_dir: str | os.PathLike | None) -> Path:
    """Return the data set's folder in `data_dir`, as cifar-10-batches-bin, or `data_dir` itself.

    Both, because official/resnet took the parent in 2018 and the folder from 2019.

    Raises:
        UserError: neither is such a folder, or `data_dir` is that of another data set with the same file names.
    """
    info = DATASETS[dataset]
    if data_dir is None:
        raise errors.UserError(f'{dataset} needs a data_dir; pass --data_dir, the folder of {info.folder}')
    path = Path(data_dir)
    folders = [path / name for name in (info.folder, *info.other_folders)]
    for folder in (*folders, path):
        if _has_a_file(info, folder):
            _require_own_folder(dataset, folder)
            return folder
    for folder in (*folders, path):
        if folder.is_dir() and folder.match(info.folder):  # where something is missing
            return folder
    if path.exists() and not path.is_dir():
        raise errors.UserError(f"data_dir '{data_dir}' is not a folder; pass the folder of {info.folder}")
    fault = f'has no {info.folder}' if path.exists() else 'does not exist'
    remedy = f'run {info.fetcher} --data_dir {data_dir} or pass another --data_dir'
    raise errors.UserError(f"data_dir '{data_dir}' {fault}; {remedy}")


def is_missing(dataset: str, data_dir: str | os.PathLike) -> bool:
    """Tell whether `data_dir`, or the data set's folder below it, has no file of the data set, of any size."""
    info = DATASETS.get(dataset)
    if info is None or info.folder is None:
        return False
    path = Path(os.path.expanduser(data_dir))
    return not any(_has_a_file(info, path / name) for name in ('', info.folder, *info.other_folders))


def _has_a_file(info, folder):
    return any(_packed_or_not(folder / name).exists() for names in info.files.values() for name in names)


def _require_own_folder(dataset, folder):
    """Refuse the folder of a data set whose files have the same names, as MNIST and Fashion-MNIST have."""
    for other, info in DATASETS.items():
        names = (info.folder, *info.other_folders) if info.folder else ()
        if other != dataset and any(map(folder.absolute().match, names)):
            raise errors.UserError(f"data_dir '{folder}' is the folder of {other}, not of {dataset}; pass another")


def _packed_or_not(path):
    """Return the path, or that of its packed twin `path`.gz if only this exists."""
    packed = path.with_name(f'{path.name}.gz')
    return packed if packed.exists() and not path.exists() else path


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches; which images are left over differs from epoch to epoch.

    Raises:
        UserError: there is none.
    """
    require_batch_size(batch_size)
    if num_images < batch_size:
        raise errors.UserError(
            f'--batch_size={batch_size} with {num_images} training images gives an epoch without a batch; '
            f'pass --batch_size=1..{num_images}'
        )
    return num_images // batch_size


def require_batch_size(batch_size: int) -> None:
    """Refuse a batch without images."""
    if batch_size < 1:
        raise errors.UserError(f'--batch_size={batch_size} must be 1 or more')


def require_images(split: 'Split', num_images: int) -> None:
    """Refuse to take more images of a split than there are, or none."""
    if not 1 <= num_images <= split.num_images:
        raise errors.UserError(
            f'--num_train_images={num_images} of the {split.num_images} training images of {split.name}; '
            f'pass 1..{split.num_images}'
        )
