"""The data sets besides CIFAR-10, and how those in memory are read. Importing this imports no TensorFlow."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from official_resnet import errors
from official_resnet.inputs import datasets, idx, synthetic
from official_resnet.inputs.affine import OFFICIAL
from official_resnet.inputs.datasets import DatasetInfo
from official_resnet.inputs.views import Views

_CIFAR100_CLASSES = tuple(  # from fine_label_names.txt in the archive
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
_FASHION_CLASSES = (  # from github.com/zalandoresearch/fashion-mnist, section Labels
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip
# What MNIST and Fashion-MNIST have in common. Images of 28 x 28 are cropped or padded to 32 x 32. The PyTorch program
# that recipes.MNIST follows pads training images by 4 and crops 32 from the 36, but leaves test images as they are and
# fails on them, because it averages 8 x 8 values and their last feature map has 7 x 7.
_MNIST = DatasetInfo(
    num_classes=10,
    image_shape=(28, 28, 1),
    split_sizes={'train': 60000, 'test': 10000},
    class_names=tuple('0123456789'),
    normalization='unit_range',
    folders=('mnist', 'MNIST/raw'),  # the latter is torchvision's
    files={
        'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
        'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
    },
    format='idx',
    fetcher='mnist_main.py',
    input_size=32,
)
_SYNTHETIC = DatasetInfo(10, (32, 32, 3), {'train': 10000, 'test': 2000}, tuple(synthetic.FIGURES), format='synthetic')

DATASETS = {
    'cifar10': datasets.CIFAR10,
    'cifar100': DatasetInfo(
        num_classes=100,
        image_shape=(32, 32, 3),
        split_sizes={'train': 50000, 'test': 10000},
        class_names=_CIFAR100_CLASSES,
        folders=('cifar-100-binary',),
        files={'train': ('train.bin',), 'test': ('test.bin',)},
        label_bytes=2,
        fetcher='cifar10_download_and_extract.py --dataset=cifar100',
    ),
    'mnist': _MNIST,
    'fashion_mnist': replace(
        _MNIST,
        class_names=_FASHION_CLASSES,
        folders=('fashion-mnist', 'FashionMNIST/raw'),
        fetcher='mnist_main.py --dataset=fashion_mnist',
    ),
    'imagenet': DatasetInfo(
        num_classes=1000,
        image_shape=(224, 224, 3),
        split_sizes={'train': 1281167, 'test': 50000},
        normalization=OFFICIAL,
        format='shards',
        fetcher='data/download_and_preprocess_imagenet.py',
    ),
    'synthetic': _SYNTHETIC,
    # the same with each pixel repeated 7 x 7 times, to measure the speed of ImageNet networks
    'synthetic224': replace(_SYNTHETIC, image_shape=(224, 224, 3), split_sizes={'train': 1280, 'test': 256}),
}


def read(dataset: str, split: str, data_dir: str | os.PathLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [n, h, w, c], labels int32 [n]) of a split of a data set of IDX files or synthetic images.

    Raises:
        UserError: data_dir belongs to another data set with the same file names; see also find_folder and idx.read_idx.
    """
    info = DATASETS[dataset]
    if info.format == 'synthetic':  # always the same images, as from a file; each split has a seed of its own
        images, labels = synthetic.draw(info.split_sizes[split], seed=('train', 'test').index(split))
        scale = info.image_shape[0] // synthetic.SIZE
        return images.repeat(scale, axis=1).repeat(scale, axis=2), labels
    folder = datasets.find_folder(dataset, data_dir)
    for other, row in DATASETS.items():
        if other != dataset and row.files == info.files and any(map(folder.absolute().match, row.folders)):
            raise errors.UserError(f"data_dir '{folder}' is the folder of {other}, not of {dataset}; pass another")
    pairs = [(folder / name, folder / f'{name}.gz') for name in info.files[split]]
    images_path, labels_path = (packed if packed.exists() and not path.exists() else path for path, packed in pairs)
    return idx.read_idx(images_path, labels_path, info.num_classes, info.image_shape[:2])


def default_normalization(dataset: str, views: Views | None = None) -> str:
    """Return the normalization of the splits that `datasets.open_split` opens with the same arguments."""
    if views:
        return OFFICIAL
    return DATASETS[dataset].normalization if dataset in DATASETS else 'per_image_standardization'


@functools.lru_cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Return ((WordNet id, name), ...) of ILSVRC2012's 1000 classes in the order of their labels."""
    lines = Path(__file__).with_name('imagenet_labels.tsv').read_text(encoding='utf-8').splitlines()
    return tuple((synset, name) for synset, name in (line.split('\t') for line in lines))


def require_data(
    dataset: str, data_dir: str | os.PathLike | None, folder: Mapping[str, Any], splits: Sequence[str]
) -> None:
    """Do what datasets.require_data does, for a data set other than CIFAR-10."""
    if dataset.startswith('tfds:'):
        return
    if dataset.startswith('folder:'):
        from official_resnet.inputs import image_folder

        image_folder.list_files(dataset.removeprefix('folder:'), folder.get('validation_fraction', 0.1))
        return
    info = datasets.info_of(dataset)
    for split in splits:
        if info.format == 'shards':
            from official_resnet.inputs import shard_files

            shard_files.find_shards(data_dir or '', split)
            shard_files.manifest_classes(data_dir or '', split)
        elif info.files:  # else the images are generated
            datasets.read_arrays(dataset, split, data_dir)
