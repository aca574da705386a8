"""Find, prepare and check data sets of tensorflow_datasets, and read them into memory or stream them."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from official_resnet import damage, folders
from official_resnet.errors import UserError
from official_resnet.inputs import jpeg
from official_resnet.inputs.images import FOLDER, SHARDS, require_size
from official_resnet.inputs.other_datasets import default_normalization
from official_resnet.inputs.split import Split

if TYPE_CHECKING:
    from official_resnet.inputs.views import Views

_AGAIN = 'get it again, or delete it and prepare it again'


def open_split(
    dataset: str, split: str, data_dir: str | os.PathLike | None, download: bool, views: 'Views | None'
) -> Split:
    """Open a split of 'tfds:NAME', see datasets.open_split. With views it is streamed."""
    builder, label = prepare(dataset, data_dir, download, has_one_size=views is None)
    subject, names, splits = _subject(dataset), tuple(label.names), list(builder.info.splits)
    if split == 'test' and ('test' not in splits or builder.name.startswith('imagenet')):  # its test has no labels
        split = 'validation'
    if split not in splits:
        raise UserError(f"{subject} has no split '{split}', only {', '.join(splits)}; choose another")
    normalization = default_normalization(dataset, views)
    is_own = not builder.name.startswith('imagenet')  # ILSVRC2012 stays as it was published
    if views is None:
        import tensorflow_datasets as tfds

        from official_resnet.inputs import in_memory

        with damage.reported(str(builder.data_path), _AGAIN, f'{subject} in '):
            encoded = builder.as_dataset(split=split, decoders={'image': tfds.decode.SkipDecoding()})
            with_exif = _with_exif((example['image'] for example in tfds.as_numpy(encoded)), subject)
            wanted = tfds.decode.PartialDecoding({'image': True, 'label': True})
            arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, decoders=wanted))
        images, labels = arrays['image'], arrays['label'].astype(np.int32)
        if labels.min() < 0:
            raise UserError(f"{subject} has no labels in its split '{split}'; choose another")
        if is_own:
            images = _upright(images, with_exif, subject)
        return in_memory.InMemorySplit(images, labels, label.num_classes, dataset, names, normalization)
    from official_resnet.inputs import shards, streamed

    file_format = builder.info.file_format.value
    if file_format != 'tfrecord':
        fault = f"in '{builder.data_path}' is stored as {file_format}, which cannot be streamed"
        raise UserError(f'{subject} {fault}; prepare it as tfrecord in another data_dir')
    records = shards.Records('image', 'label', first_label=0, rules=FOLDER if is_own else SHARDS)
    prepared = builder.info.splits[split]
    source = shards.Shards(prepared.filepaths, records, label.num_classes)
    source.require_counts(prepared.shard_lengths, 'its dataset_info.json', _AGAIN)
    return streamed.StreamedSplit(source, label.num_classes, dataset, names, normalization, views.with_exif(is_own))


def prepare(dataset: str, data_dir: str | os.PathLike | None, download: bool, has_one_size: bool) -> tuple[Any, Any]:
    """Return (builder, its ClassLabel) of a data set of images after preparing it.

    Args:
        dataset: Its name, with a config if it has several, such as 'tfds:mnist' or 'tfds:emnist/letters'.
        data_dir: Where it is, or with `download` will be. None is the folder where tensorflow_datasets keeps its data.
        has_one_size: Whether all images must have the same size.

    Raises:
        UserError: The name is unknown, the data set has no images or labels, or it is missing and cannot be fetched.
    """
    import tensorflow_datasets as tfds

    builder, subject = _builder(dataset, data_dir), _subject(dataset)
    features = dict(builder.info.features.items())  # checked before anything is fetched
    image, label = features.get('image'), features.get('label')
    is_class = isinstance(label, tfds.features.ClassLabel)
    if image is None or image.np_dtype != np.uint8 or (has_one_size and None in image.shape) or not is_class:
        found = ', '.join(f'{key} {feature.shape}' for key, feature in features.items())
        raise UserError(f'{subject} has {found}; choose one with an image (h, w, c), uint8, and a label')
    if not builder.is_prepared() and not download:
        raise UserError(f"{subject} is not prepared in '{builder.data_path}'; allow the download, or pass its data_dir")
    try:
        builder.download_and_prepare()  # does nothing if it is prepared
    except OSError as error:
        raise UserError(f'{subject} cannot be fetched ({str(error).splitlines()[0]}); try again') from None
    return builder, label


def is_prepared(dataset: str, data_dir: str | os.PathLike | None) -> bool:
    """Return whether a data set has been prepared. Raise UserError if TFDS has no such data set."""
    return _builder(dataset, data_dir).is_prepared()


def _with_exif(encoded_images, subject):
    """Return (i, data) of each encoded image with EXIF. Raise UserError for one that is too large to be decoded."""
    found = []
    for i, data in enumerate(encoded_images):
        try:
            info = jpeg.inspect(data, only_header=True)
            require_size(info.width, info.height)
        except ValueError as error:
            raise UserError(f'{subject} has a broken image, number {i} ({error}); prepare it again') from None
        if b'Exif\0\0' in data or b'eXIf' in data:
            found.append((i, data))
    return found


def _upright(images, found, subject):
    """Return decoded images [n, h, w, c]; those that `_with_exif` found are turned."""
    from official_resnet.inputs import encoded

    images = images.copy() if found else images
    for i, data in found:
        upright = np.asarray(encoded.upright(images[i], encoded.orientation(data)))
        if upright.shape != images[i].shape:
            fault = f'its EXIF turns an image of {images[i].shape} to {upright.shape}'
            raise UserError(f'{subject} has images of several sizes ({fault}); pass it to imagenet_main.py --tfds')
        images[i] = upright
    return images


def _builder(dataset, data_dir):
    folders.require_no_pattern(data_dir or '', '--data_dir=')
    import tensorflow_datasets as tfds  # here, because the import is slow and few programs need it

    try:
        return tfds.builder(dataset.removeprefix('tfds:'), data_dir=data_dir)
    except (ValueError, AssertionError) as error:  # unknown name, config or version
        reason = str(error).splitlines()[0]
        raise UserError(f'{_subject(dataset)}: {reason} See tensorflow.org/datasets/catalog') from None


def _subject(dataset):
    return f"tfds data set '{dataset.removeprefix('tfds:')}'"
