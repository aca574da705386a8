"""Data set -> batches: `read` brings a split into memory, or finds it, `batches` makes a tf.data.Dataset of it.

The order and the augmentation of every training batch are a pure function of (seed, epoch, step), so a run
resumes at any step by asking for `first_step`.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import tensorflow as tf

from official_resnet import errors
from official_resnet.inputs import (
    augmentation,
    cifar,
    class_tables,
    idx,
    image_folder,
    streamed,
    synthetic,
    tfds_source,
)
from official_resnet.inputs.images import Views
from official_resnet.inputs.normalization import NORMALIZATIONS, OFFICIAL


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a byte of it is read."""

    num_classes: int
    image_shape: tuple  # height, width, channels
    split_sizes: dict  # 'train' and 'test' -> pictures, when complete
    class_names: tuple
    normalization: str = 'per_image_standardization'  # a name in NORMALIZATIONS
    folder: str | None = None  # None: drawn, not read
    other_folders: tuple = ()  # where others put it, below data_dir
    files: dict | None = None  # 'train' and 'test' -> names in the folder, in reading order
    format: str = 'cifar'  # 'idx', whose files may also be packed: NAME.gz; 'shards' of TFRecord, which are streamed
    label_bytes: int = 1  # of a CIFAR record
    fetcher: str = ''  # the command that fetches it, less --data_dir
    input_size: int | None = None  # height and width that the net sees; None: those of the pictures


GROUPS_AT_A_TIME = 16  # shards that training mixes: 20,000 pictures, 2 GB, of ImageNet's 1024

# What MNIST and its double have in common. The pictures are cropped or padded from 28 x 28 to 32 x 32: the
# PyTorch program of which recipes.MNIST tells pads training pictures by 4 and crops 32 out of the 36, feeds
# those of the test as they are, and dies of it, since its last feature map of 7 x 7 has no 8 x 8 to average.
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
        class_names=class_tables.CIFAR10_CLASSES,
        folder='cifar-10-batches-bin',
        files={'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)), 'test': ('test_batch.bin',)},
        fetcher='cifar10_download_and_extract.py',
    ),
    'cifar100': DatasetInfo(
        num_classes=100,
        image_shape=(32, 32, 3),
        split_sizes={'train': 50000, 'test': 10000},
        class_names=class_tables.CIFAR100_CLASSES,
        folder='cifar-100-binary',
        files={'train': ('train.bin',), 'test': ('test.bin',)},
        label_bytes=2,
        fetcher='cifar10_download_and_extract.py --dataset=cifar100',
    ),
    'mnist': DatasetInfo(
        class_names=class_tables.MNIST_CLASSES,
        folder='mnist',
        other_folders=('MNIST/raw',),  # torchvision's
        fetcher='mnist_main.py',
        **_MNIST,
    ),
    'fashion_mnist': DatasetInfo(
        class_names=class_tables.FASHION_MNIST_CLASSES,
        folder='fashion-mnist',
        other_folders=('FashionMNIST/raw',),
        fetcher='mnist_main.py --dataset=fashion_mnist',
        **_MNIST,
    ),
    'imagenet': DatasetInfo(
        num_classes=1000,
        image_shape=(224, 224, 3),
        split_sizes={'train': 1281167, 'test': 50000},
        class_names=tuple(name for _, name in class_tables.imagenet_classes()),
        normalization=OFFICIAL,
        format='shards',
        fetcher='data/download_and_preprocess_imagenet.py',
    ),
    'synthetic': DatasetInfo(
        num_classes=10,
        image_shape=(32, 32, 3),
        split_sizes={'train': 10000, 'test': 2000},
        class_names=synthetic.CLASS_NAMES,
    ),
    'synthetic224': DatasetInfo(  # the same, each pixel 7 x 7 times: for the speed of ImageNet nets
        num_classes=10,
        image_shape=(224, 224, 3),
        split_sizes={'train': 1280, 'test': 256},
        class_names=synthetic.CLASS_NAMES,
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """One split in memory."""

    images: np.ndarray  # uint8 [n, h, w, c], 0..255
    labels: np.ndarray  # int32 [n], 0..num_classes-1
    num_classes: int
    name: str  # a key of DATASETS, 'tfds:NAME' or 'folder:PATH'
    class_names: tuple  # one string a class
    normalization: str  # a name in NORMALIZATIONS
    input_size: int | None = None  # height and width that `batches` makes of them; None: h and w

    @property
    def num_images(self):
        """Pictures."""
        return len(self.labels)

    @property
    def image_shape(self):
        """(height, width, channels) of a picture."""
        return self.images.shape[1:]

    @property
    def input_shape(self):
        """(height, width, channels) of what `batches` makes."""
        height, width, channels = self.images.shape[1:]
        return self.input_size or height, self.input_size or width, channels

    def fingerprint(self):
        """Return a hash of the pictures as a net is fed them."""
        digest = hashlib.sha256(repr((self.images.shape, self.input_size, self.normalization)).encode())
        digest.update(np.ascontiguousarray(self.images))
        return digest.hexdigest()


def load(dataset, split, *, data_dir=None, download=False, **options):
    """Read a split and batch it: `batches(read(...), **options)`."""
    return batches(read(dataset, split, data_dir=data_dir, download=download), **options)


def read(dataset, split, *, data_dir=None, download=False, folder_options=None, views=None):
    """Read one split into memory, or find it where it is to be streamed.

    Args:
        dataset: a key of DATASETS, 'tfds:NAME' for a data set of tensorflow_datasets, or 'folder:PATH' for own
            pictures, a subfolder of PATH for each class (image_folder).
        split: 'train' or 'test'. A TFDS data set without 'test' gives its 'validation'.
        data_dir: where the data is; see `find_folder`; for TFDS its data_dir. Not used by 'synthetic' and folders.
        download: for TFDS only, whether to fetch and prepare a data set that is not in data_dir.
        folder_options: for folders only, keyword arguments of image_folder.read; image_size is 32 without.
        views: Views, how encoded pictures become the net's input: 'imagenet', and those of a folder or
            of TFDS, are then streamed as streamed.EncodedExamples. None: Views() for 'imagenet', else into memory.

    Returns:
        Examples, or EncodedExamples.

    Raises:
        UserError: an unknown name, or data that is missing, damaged or of no fixed picture size.
    """
    if split not in ('train', 'test'):
        raise errors.UserError(f"split '{split}' is unknown; choose 'train' or 'test'")
    if dataset.startswith('tfds:'):
        return _read_tfds(dataset, split, data_dir, download, views)
    if dataset.startswith('folder:'):
        path = dataset.removeprefix('folder:')
        if views:
            return _stream_folder(dataset, split, folder_options or {}, views)
        images, labels, names = image_folder.read(path, split, **{'image_size': 32} | (folder_options or {}))
        return Examples(images, labels, len(names), dataset, names, 'per_image_standardization')
    if dataset not in DATASETS:
        known = ', '.join(DATASETS)
        raise errors.UserError(f"dataset '{dataset}' is unknown; choose {known}, tfds:NAME or folder:PATH")
    info = DATASETS[dataset]
    if info.format == 'shards':
        return _stream_shards(dataset, split, data_dir, views or Views())
    if info.folder is None:
        # Always the same pictures, like a file; those of the splits differ by the seed.
        images, labels = synthetic.draw(info.split_sizes[split], seed=('train', 'test').index(split))
        scale = info.image_shape[0] // synthetic.SIZE
        images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    else:
        folder = find_folder(dataset, data_dir)
        if info.format == 'idx':
            paths = [_packed_or_not(folder / name) for name in info.files[split]]
            images, labels = idx.read_idx(*paths, info.num_classes, info.image_shape[:2])
        else:
            paths = [folder / name for name in info.files[split]]
            images, labels = cifar.read_cifar(paths, info.label_bytes, info.num_classes)
    return Examples(
        images, labels, info.num_classes, dataset, info.class_names, info.normalization, info.input_size
    )  # fmt: skip


def first(examples, num_images):
    """Return the first `num_images` of Examples; None takes them all.

    Raises:
        UserError: there are fewer.
    """
    if num_images is None:
        return examples
    count = examples.num_images
    if not 1 <= num_images <= count:
        raise errors.UserError(
            f'num_train_images {num_images} of the {count} training pictures of {examples.name}; pass 1..{count}'
        )
    if isinstance(examples, streamed.EncodedExamples):
        return dataclasses.replace(examples, count=num_images)
    return dataclasses.replace(examples, images=examples.images[:num_images], labels=examples.labels[:num_images])


def find_folder(dataset, data_dir):
    """Return the data set's folder in `data_dir`, as cifar-10-batches-bin, or `data_dir` itself.

    Both, because official/resnet took the parent in 2018 and the folder from 2019.

    Raises:
        UserError: neither is such a folder, or `data_dir` is that of another data set with the same file names.
    """
    info = DATASETS[dataset]
    if data_dir is None:
        raise errors.UserError(f'{dataset} needs a data_dir; pass --data_dir, the folder of {info.folder}')
    path = Path(data_dir)
    names = info.files['train'] + info.files['test']
    folders = [path / name for name in (info.folder, *info.other_folders)]
    for folder in (*folders, path):
        if any(_packed_or_not(folder / name).exists() for name in names):
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


def steps_per_epoch(num_images, batch_size):
    """Return the number of full batches; which pictures the rest is differs from epoch to epoch.

    Raises:
        UserError: there is none.
    """
    if num_images < batch_size:
        raise errors.UserError(
            f'batch_size {batch_size} with {num_images} training pictures gives an epoch without a batch; '
            f'pass a batch_size in 1..{num_images}'
        )
    return num_images // batch_size


def batches(
    examples,
    batch_size,
    *,
    training,
    seed=0,
    first_step=0,
    num_epochs=1,
    augment=True,
    flip=True,
    view=None,
    share=(0, 1),
):
    """Make batches of (images float32 [b, *examples.input_shape], labels int32 [b]).

    Training: step s of the run (counted from 0 over all epochs) is a pure function of (seed, s); the epochs
    follow each other without a break, each a fresh permutation in which no picture comes twice.
    Evaluation: every picture once, in order, the last batch smaller if need be.
    Where examples.input_size is larger than the pictures, training crops it out of the padded ones; what is
    not augmented is centred in zeros.

    Encoded pictures: training takes augmentation.train_view of each, evaluation test_view.

    Args:
        examples: Examples or EncodedExamples.
        batch_size: pictures in a batch, over all replicas.
        training: shuffle, augment and drop the remainder, or do none of it.
        seed: 0..2**63-1; training only, like what follows.
        first_step: the step to begin with, at no cost however late.
        num_epochs: where to end: after step num_epochs * steps_per_epoch - 1, wherever it began.
        augment: whether training pads, crops and flips (augmentation.pad_crop_flip).
        flip: whether it flips; digits are others in the mirror.
        view: for evaluation of encoded pictures, in place of augmentation.test_view: string [] -> [h, w, c] or, for
            several images with one label, [k, h, w, c].
        share: (i, n), the i-th of n equal parts of every batch, for worker i of n; where evaluation's last batch has
            too few pictures for that, the rest is filled with some of label -1.

    Returns:
        tf.data.Dataset with a known cardinality.

    Raises:
        UserError: fewer pictures than batch_size in training, batch_size below 1, or a seed out of range.
    """
    if batch_size < 1:
        raise errors.UserError(f'batch_size {batch_size} is too small; pass 1 or more')
    if isinstance(examples, streamed.EncodedExamples):
        return _encoded_batches(
            examples, batch_size, training, seed, first_step, num_epochs, augment, flip, view, share
        )
    normalize = NORMALIZATIONS[examples.normalization]
    input_size = examples.input_shape[:2]
    with tf.device('CPU:0'):  # held once, captured by reference; a GPU has no use for it
        images, labels = tf.constant(examples.images), tf.constant(examples.labels)

    def train_batch(step, rows):
        rows, first = _part(rows, share)
        pictures = tf.gather(images, rows)
        if augment:
            seeds, part = tf.stack([seed, step]), (first, batch_size)
            pictures = augmentation.pad_crop_flip(pictures, seeds, flip=flip, size=examples.input_size, part=part)
        else:
            pictures = augmentation.pad_to(pictures, *input_size)
        return normalize(pictures), tf.gather(labels, rows)

    def test_batch(start):
        rows, is_filling = _test_rows(start, batch_size, examples.num_images, share)
        pictures = augmentation.pad_to(tf.gather(images, rows), *input_size)
        return normalize(pictures), tf.where(is_filling, -1, tf.gather(labels, rows))

    if training:
        steps = _steps_and_rows(examples.num_images, batch_size, seed, first_step, num_epochs)
        dataset = steps.map(train_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    else:
        starts = tf.data.Dataset.range(0, examples.num_images, batch_size)
        dataset = starts.map(test_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _encoded_batches(examples, batch_size, training, seed, first_step, num_epochs, augment, flip, view, share):
    """Return `batches` of EncodedExamples."""
    normalize = NORMALIZATIONS[examples.normalization]
    views, source, parallel = examples.views, examples.source, tf.data.AUTOTUNE

    def load(step, rows):
        rows, first = _part(rows, share)
        jpegs, labels, boxes = source.load(rows)
        numbers = step * batch_size + first + tf.range(tf.shape(rows, tf.int64)[0])  # of a picture in the training
        return jpegs, labels + examples.label_shift, boxes, numbers

    def load_test(start):
        rows, is_filling = _test_rows(start, batch_size, examples.num_images, share)
        jpegs, labels, boxes = source.load(rows)
        return jpegs, tf.where(is_filling, -1, labels + examples.label_shift), boxes, rows

    def see(picture, label, boxes, number):
        if training and augment:
            return augmentation.train_view(picture, boxes, tf.stack([seed, number]), views, flip), label
        return view(picture) if view else augmentation.test_view(picture, views), label

    if training:
        steps = _steps_and_rows(examples.num_images, batch_size, seed, first_step, num_epochs, examples.groups)
    else:
        steps = tf.data.Dataset.range(0, examples.num_images, batch_size)
    loaded = steps.map(load if training else load_test, parallel, deterministic=True)
    pictures = loaded.unbatch().map(see, parallel, deterministic=True)
    batched = pictures.batch(
        batch_size // share[1], drop_remainder=training, num_parallel_calls=parallel, deterministic=True
    )
    count = steps.cardinality()
    shape = (-1, *pictures.element_spec[0].shape[-3:])  # several views of a picture become images of their own
    normalized = batched.map(
        lambda images, labels: (normalize(tf.reshape(images, shape)), labels), parallel, deterministic=True
    )
    return normalized.apply(tf.data.experimental.assert_cardinality(count)).prefetch(parallel)


def _part(rows, share):
    """Return (the part of a batch's rows that is a worker's share, the place of its first in the batch)."""
    size = rows.shape[0] // share[1]
    return rows[share[0] * size : (share[0] + 1) * size], share[0] * size


def _test_rows(start, batch_size, num_images, share):
    """Return (rows int64 [b] of a share of the evaluation batch from `start`, bool [b]: which only fill it)."""
    if share[1] == 1:
        rows = tf.range(start, tf.minimum(start + batch_size, num_images))
        return rows, tf.zeros_like(rows, tf.bool)
    size = batch_size // share[1]
    rows = start + share[0] * size + tf.range(size, dtype=tf.int64)
    return tf.minimum(rows, num_images - 1), rows >= num_images


def encoded_pictures(examples, batch_size):
    """Return the encoded pictures themselves in their order, string [b]."""
    rows = tf.data.Dataset.range(examples.num_images).batch(batch_size)
    return rows.map(lambda numbers: examples.source.load(numbers)[0])


def _steps_and_rows(num_images, batch_size, seed, first_step, num_epochs, groups=None):
    """Which pictures make a step: a dataset of (step int64 [], rows int32 [batch_size]).

    With groups, int [num_images], each epoch takes GROUPS_AT_A_TIME random ones after another, so that the disk is read
    in neighbouring places.
    """
    if not 0 <= seed < 2**63:
        raise errors.UserError(f'seed {seed} is out of range; pass one in 0..{2**63 - 1}')
    num_steps = steps_per_epoch(num_images, batch_size)
    num_groups = 1 if groups is None else int(groups[-1]) + 1

    def epoch_rows(epoch):
        # Steps >= 0 seed the augmentation, so -1 - epoch gives numbers of their own. Not index_shuffle, which
        # spares the permutation in memory but gives the same order for seeds that are equal modulo 256.
        seeds = tf.stack([seed, -1 - epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(num_images), seeds, alg='philox')
        if groups is not None and num_groups > GROUPS_AT_A_TIME:
            ranks = tf.random.experimental.stateless_shuffle(tf.range(num_groups), seeds, alg='philox')
            windows = tf.gather(ranks, groups) // GROUPS_AT_A_TIME  # of each picture
            order = tf.gather(order, tf.argsort(tf.gather(windows, order), stable=True))
        rows = tf.reshape(order[: num_steps * batch_size], [num_steps, batch_size])
        return tf.data.Dataset.from_tensor_slices(rows)

    first_epoch, steps_into_epoch = divmod(first_step, num_steps)
    end = num_epochs * num_steps
    rows = tf.data.Dataset.range(first_epoch, num_epochs).flat_map(epoch_rows).skip(steps_into_epoch)
    steps = tf.data.Dataset.zip(tf.data.Dataset.range(first_step, end), rows)
    return steps.apply(tf.data.experimental.assert_cardinality(max(0, end - first_step)))


def _stream_shards(dataset, split, data_dir, views):
    """Find a split of TFRecord shards: EncodedExamples."""
    info = DATASETS[dataset]
    if data_dir is None:
        raise errors.UserError(f'{dataset} needs a data_dir; pass --data_dir, the folder of its TFRecord shards')
    paths = streamed.find_shards(data_dir, split)
    ids, names = zip(*streamed.manifest_classes(data_dir, split), strict=True)
    index_file = Path(data_dir) / f'.{paths[0].name.partition("-")[0]}.index.npz'
    source = streamed.Shards(paths, num_classes=len(names), index_file=index_file)
    return streamed.EncodedExamples(source, len(names), dataset, names, info.normalization, views, class_ids=ids)


def _stream_folder(dataset, split, options, views):
    """Find a split of a folder of pictures: EncodedExamples."""
    keys = {'validation_fraction', 'seed'} & options.keys()
    classes, splits = image_folder.list_files(dataset.removeprefix('folder:'), **{key: options[key] for key in keys})
    files = splits[split]
    # In a random order, so that the first n of them are a fair sample.
    order = np.random.default_rng([options.get('seed', 0), 2]).permutation(len(files))
    source = streamed.Files([files[i][0] for i in order], [files[i][1] for i in order])
    return streamed.EncodedExamples(source, len(classes), dataset, classes, OFFICIAL, views)


def _read_tfds(dataset, split, data_dir, download, views):
    """Read a split of a tensorflow_datasets data set: Examples, or with views EncodedExamples."""
    builder, label = tfds_source.prepare(dataset.removeprefix('tfds:'), data_dir, download, has_one_size=views is None)
    split, names = tfds_source.find_split(builder, split), tuple(label.names)
    if views:
        source = streamed.Shards(
            tfds_source.tfrecord_paths(builder, split),
            'image',
            'label',
            first_label=0,
            num_classes=label.num_classes,
            is_rgb_jpeg=False,
        )
        return streamed.EncodedExamples(source, label.num_classes, dataset, names, OFFICIAL, views)
    images, labels = tfds_source.read(builder, split)
    return Examples(images, labels, label.num_classes, dataset, names, 'per_image_standardization')
