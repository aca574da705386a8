"""Data sets of tensorflow_datasets: found, prepared, checked, and read into memory or streamed."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from official_resnet import errors
from official_resnet.inputs.other_datasets import default_normalization
from official_resnet.inputs.split import Split

if TYPE_CHECKING:
    from official_resnet.inputs.views import Views


def open_split(
    dataset: str, split: str, data_dir: str | os.PathLike | None, download: bool, views: 'Views | None'
) -> Split:
    """Open a split of 'tfds:NAME'; see datasets.open_split. With views it is streamed."""
    builder, label = prepare(dataset.removeprefix('tfds:'), data_dir, download, has_one_size=views is None)
    split, names = find_split(builder, split), tuple(label.names)
    normalization = default_normalization(dataset, views)
    if views is None:
        from official_resnet.inputs import in_memory

        images, labels = read(builder, split)
        return in_memory.InMemorySplit(images, labels, label.num_classes, dataset, names, normalization)
    from official_resnet.inputs import shards, streamed

    records = shards.Records('image', 'label', first_label=0, is_rgb_jpeg=False)
    source = shards.Shards(tfrecord_paths(builder, split), records, label.num_classes)
    return streamed.StreamedSplit(source, label.num_classes, dataset, names, normalization, views)


def prepare(name: str, data_dir: str | os.PathLike | None, download: bool, has_one_size: bool) -> tuple[Any, Any]:
    """Return (builder, its ClassLabel) of a data set of images, prepared.

    Args:
        name: of the data set, and of its config: 'mnist', 'emnist/letters'.
        data_dir: where it is or shall be; None: where tensorflow_datasets keeps its data.
        download: whether to fetch it when it is not there.
        has_one_size: whether all images must be of one size.

    Raises:
        UserError: an unknown name, something else than images, no data or no network.
    """
    builder, subject = _builder(name, data_dir), _subject(name)
    label = _label_feature(builder, has_one_size)  # before anything is fetched
    if not builder.is_prepared() and not download:
        raise errors.UserError(
            f"{subject} is not prepared in '{builder.data_path}'; allow the download, or pass its data_dir"
        )
    try:
        builder.download_and_prepare()  # does nothing when prepared
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise errors.UserError(f'{subject} cannot be fetched ({reason}); try again') from None
    return builder, label


def is_prepared(name: str, data_dir: str | os.PathLike | None) -> bool:
    """Tell whether a data set is there. UserError: there is no such data set."""
    return _builder(name, data_dir).is_prepared()


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # here, because it takes a while and few need it

    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:  # unknown name, config or version
        reason = str(error).splitlines()[0]
        raise errors.UserError(f'{_subject(name)}: {reason} See tensorflow.org/datasets/catalog') from None


def _label_feature(builder, has_one_size):
    """Return the ClassLabel of a data set of images; refuse one of something else."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    image, label = features.get('image'), features.get('label')
    is_class = isinstance(label, tfds.features.ClassLabel)
    if image is None or image.np_dtype != np.uint8 or (has_one_size and None in image.shape) or not is_class:
        found = ', '.join(f'{key} {feature.shape}' for key, feature in features.items())
        raise errors.UserError(
            f'{_subject(_name(builder))} has {found}; choose one with an image (h, w, c), uint8, and a label'
        )
    return label


def find_split(builder: Any, split: str) -> str:
    """Return the data set's name of 'train' or 'test', which is called 'validation' where the test has no labels.

    Raises:
        UserError: it has none.
    """
    splits = list(builder.info.splits)
    has_no_labels = 'test' not in splits or builder.name.startswith('imagenet')
    chosen = 'validation' if split == 'test' and has_no_labels else split
    if chosen not in splits:
        raise errors.UserError(
            f"{_subject(_name(builder))} has no split '{chosen}', only {', '.join(splits)}; choose another"
        )
    return chosen


def tfrecord_paths(builder: Any, split: str) -> list[str]:
    """Return the files of a split.

    Raises:
        UserError: they are in another format than TFRecord.
    """
    file_format = builder.info.file_format.value
    if file_format != 'tfrecord':
        raise errors.UserError(
            f"{_subject(_name(builder))} in '{builder.data_path}' is kept as {file_format}, which "
            'cannot be streamed; prepare it as tfrecord in another data_dir'
        )
    return builder.info.splits[split].filepaths


def read(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [n, h, w, c], labels int32 [n]) of a split.

    Raises:
        UserError: it has no labels.
    """
    import tensorflow_datasets as tfds

    wanted = tfds.decode.PartialDecoding({'image': True, 'label': True})
    arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, decoders=wanted))
    if arrays['label'].min() < 0:
        raise errors.UserError(f"{_subject(_name(builder))} has no labels in its split '{split}'; choose another")
    return arrays['image'], arrays['label'].astype(np.int32)


def _name(builder):
    """Return what `prepare` calls it."""
    return builder.name + (f'/{builder.builder_config.name}' if builder.builder_config else '')


def _subject(name):
    return f"tfds data set '{name}'"
