"""The table of data sets; finding and opening CIFAR and MNIST."""

import re

import numpy as np
import pytest
from fixtures import writers
from fixtures.batches import labels_of, message_of
from fixtures.imagenet_shards import encoded, write_shards
from PIL import Image

from official_resnet.inputs import augmentation, datasets, download, other_datasets
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.inputs.views import Views

MNIST = 'train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte'.split()


def write_cifar10(folder):
    """Write six small files, each record's label telling its file; return the folder."""
    folder.mkdir(parents=True)
    for label, name in enumerate([f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']):
        writers.write_cifar(folder / name, np.full((2, 32, 32, 3), label, np.uint8), [label, label])
    return folder


def test_cifar10_in_its_folder_or_in_one_of_any_name(tmp_path):
    folder = write_cifar10(tmp_path / 'cifar-10-batches-bin')
    renamed = write_cifar10(tmp_path / 'any name')
    for data_dir in (tmp_path, str(folder), renamed):
        assert datasets.find_folder('cifar10', data_dir) == (renamed if data_dir == renamed else folder)
        train = datasets.open_split('cifar10', 'train', data_dir=data_dir)
        assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert (train.images[:, 0, 0, 0] == train.labels).all()
        assert (train.num_classes, train.name, train.class_names[9]) == (10, 'cifar10', 'truck')
        test = datasets.open_split('cifar10', 'test', data_dir=data_dir).evaluation_batches(8)
        assert labels_of(test) == [[5, 5]]


def test_cifar100_takes_the_fine_label_and_has_its_own_command(tmp_path):
    command = f'run cifar10_download_and_extract.py --dataset=cifar100 --data_dir {tmp_path} or'
    assert command in message_of(datasets.find_folder, 'cifar100', tmp_path)
    folder = tmp_path / 'cifar-100-binary'
    folder.mkdir()
    writers.write_cifar(folder / 'test.bin', np.zeros((1, 32, 32, 3), np.uint8), [[4, 99]])
    examples = datasets.open_split('cifar100', 'test', data_dir=tmp_path)
    assert (examples.labels.tolist(), examples.num_classes) == ([99], 100)


@pytest.mark.parametrize('data_dir', ['x', 'x/cifar-10-batches-bin'])
def test_an_incomplete_folder_is_said_to_lack_its_first_file(tmp_path, data_dir):
    (tmp_path / 'x' / 'cifar-10-batches-bin').mkdir(parents=True)
    message = message_of(lambda: datasets.open_split('cifar10', 'train', data_dir=tmp_path / data_dir))
    assert re.match("'.*/x/cifar-10-batches-bin/data_batch_1.bin' does not exist; run", message), message


@pytest.mark.parametrize(
    'dataset, split, pattern',
    [
        ('cifar11', 'train', "'cifar11' .* cifar10, .*synthetic224, tfds:NAME or folder:PATH"),
        ('cifar10', 'validation', "'validation' .*'train' or 'test'"),
        ('cifar10', 'train', 'pass --data_dir'),
        ('imagenet', 'train', 'pass --data_dir'),
        ('tfds:imagenet2012', 'train', r"'imagenet2012' .*image \(None, None, 3\).*; choose"),
    ],
)
def test_wrong_names(dataset, split, pattern):
    message = message_of(datasets.open_split, dataset, split)
    assert re.search(pattern, message), message


def test_the_tables_are_consistent():
    for info in other_datasets.DATASETS.values():
        assert len(set(info.class_names)) in (info.num_classes, 0) and callable(NORMALIZATIONS[info.normalization])
        assert set(info.split_sizes) == {'train', 'test'} and bool(info.folders) == bool(info.files)
    for name, (_, files) in download.FILE_SETS.items():
        info = other_datasets.DATASETS[name]
        assert list(files) == [f'{file}.gz' for split in ('train', 'test') for file in info.files[split]]


# --- MNIST ---------------------------------------------------------------------------------------------------


def write_mnist(folder, names=MNIST, suffix='', num_images=6):
    """Write tiny IDX files, every pixel of image i 40 * i, its label i; return the folder."""
    folder.mkdir(parents=True)
    labels = np.arange(num_images, dtype=np.uint8)
    for name in names:
        images = np.tile(40 * labels[:, None, None], (1, 28, 28))
        writers.write_idx(folder / (name + suffix), images if 'images' in name else labels)
    return folder


@pytest.mark.parametrize(
    'below, dataset, suffix',
    [
        ('mnist', 'mnist', ''),
        ('MNIST/raw', 'mnist', '.gz'),
        ('fashion-mnist', 'fashion_mnist', '.gz'),
        ('FashionMNIST/raw', 'fashion_mnist', ''),
    ],
)
def test_mnist_in_every_place(tmp_path, below, dataset, suffix):
    folder = write_mnist(tmp_path / below, suffix=suffix)
    (tmp_path / 'mnist').mkdir(exist_ok=True)  # an empty one is not taken for it
    for data_dir in (tmp_path, folder):
        test = datasets.open_split(dataset, 'test', data_dir=data_dir)
        assert test.images.shape == (6, 28, 28, 1) and test.labels.tolist() == list(range(6))
        assert (test.input_size, test.input_shape, test.num_classes) == (32, (32, 32, 1), 10)
    assert test.class_names[9] == {'mnist': '9', 'fashion_mnist': 'Ankle boot'}[dataset]
    renamed = folder.rename(tmp_path / 'anything')
    assert datasets.find_folder(dataset, renamed) == renamed


def test_the_folder_of_the_other_is_refused(tmp_path, monkeypatch):
    folder = write_mnist(tmp_path / 'fashion-mnist')
    monkeypatch.chdir(folder)
    message = message_of(lambda: datasets.open_split('mnist', 'test', data_dir='.'))
    assert re.search(r"'\.' is the folder of fashion_mnist, .*; pass another", message), message


def test_a_plain_file_comes_before_a_packed_one_and_both_may_be_mixed(tmp_path):
    folder = write_mnist(tmp_path / 'mnist', MNIST[2:], '.gz', 3)
    writers.write_idx(folder / 't10k-labels-idx1-ubyte', np.uint8([3, 2, 1]))
    assert datasets.open_split('mnist', 'test', data_dir=tmp_path).labels.tolist() == [3, 2, 1]
    message = message_of(lambda: datasets.open_split('mnist', 'train', data_dir=tmp_path))
    assert "train-images-idx3-ubyte' does not exist; pass another --data_dir" in message


def test_mnist_batches_are_32_x_32_in_0_to_1(tmp_path):
    write_mnist(tmp_path / 'mnist')
    train = datasets.open_split('mnist', 'train', data_dir=tmp_path)
    middle = np.pad(np.ones((28, 28)), 2)[..., None]
    for dataset in (train.evaluation_batches(6), train.training_batches(6, augment=False)):
        images, labels = next(dataset.as_numpy_iterator())
        np.testing.assert_allclose(images, labels[:, None, None, None] * 40 / 255 * middle, rtol=1e-6)
    for flip in (True, False):
        dataset = train.training_batches(6, seed=6, num_epochs=3, flip=flip)
        for step, (images, labels) in enumerate(dataset.as_numpy_iterator()):
            crops = augmentation.pad_crop_flip(train.images[labels], np.array([6, step]), flip=flip, size=32)
            np.testing.assert_allclose(images, crops / np.float32(255), rtol=1e-6)


def content(folder, kind, change=0):
    """Write 15 images with 3 labels as a kind of data, with another value in one row of one image, and hash a split."""
    images = np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3)).astype(np.uint8)
    images[7, 20] += np.uint8(change)
    labels, name, views = np.arange(15) % 3, f'folder:{folder}', Views() if kind == 'streamed' else None
    folder.mkdir()
    if kind == 'cifar10':
        for i in range(5):
            writers.write_cifar(
                folder / f'data_batch_{i + 1}.bin', images[3 * i : 3 * i + 3], labels[3 * i : 3 * i + 3]
            )
    elif kind in ('mnist', 'packed mnist'):
        for file, values in zip(MNIST, (images[:, :28, :28, 0], labels.astype(np.uint8)), strict=False):
            writers.write_idx(folder / (file + '.gz' * (kind != 'mnist')), values)
    elif kind == 'imagenet':
        encoded_images = [encoded(image, quality=90) for image in images]
        write_shards(folder, [(image, label, []) for image, label in zip(encoded_images, labels.tolist(), strict=True)])
    elif kind != 'synthetic':  # files of the same size
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            for split in ('train', 'test'):
                (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / split / str(label) / f'{i}.bmp')
    name = kind.removeprefix('packed ') if kind not in ('folder', 'streamed') else name
    return datasets.open_split(name, 'train', data_dir=folder, views=views).content()


@pytest.mark.parametrize(
    'kind, expected',
    [
        ('cifar10', 'acf76c4e'),
        ('mnist', 'c7238bf2'),
        ('packed mnist', 'c7238bf2'),
        ('folder', 'd308b1d0'),
        ('streamed', '2d4325b8'),
        ('imagenet', ''),
        ('synthetic', 'bafbcf6d'),
    ],
)
def test_content_is_the_same_in_another_folder_and_on_another_machine(tmp_path, kind, expected):
    """It changes with 96 (MNIST: 28) of 46,080 values."""
    found = [content(tmp_path / name, kind, change) for name, change in (('one', 0), ('other', 0), ('changed', 1))]
    assert found[0].startswith(expected) and found[1] == found[0] and (found[2] == found[0]) == (kind == 'synthetic')
