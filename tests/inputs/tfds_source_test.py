"""Data sets of tensorflow_datasets, read into memory and streamed."""

import io
import pathlib
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fixtures import odd_images
from fixtures.batches import labels_of, message_of, read_all
from fixtures.imagenet_shards import CLASSES, draw, write_folder, write_shards
from fixtures.imagenet_shards import encoded as encode
from PIL import Image

from official_resnet import bounds
from official_resnet.inputs import datasets, tfds_source, tfrecords
from official_resnet.inputs.views import Views

with tfds.core.registered.skip_registration():  # so that it is found by its files only

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        """Twelve 6 x 5 images of three classes; image i is filled with i."""

        VERSION = tfds.core.Version('1.0.0')
        SPLITS = {'train': 12, 'validation': 4}

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(6, 5, 3)),
                    'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cat']),
                    'note': tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(size) for split, size in self.SPLITS.items()}

        def _generate_examples(self, size):
            for i in range(size):
                yield i, {'image': np.full((6, 5, 3), i, np.uint8), 'label': i % 3, 'note': 'x' * i}


@pytest.fixture(scope='module')
def tiny_images(tmp_path_factory):
    """Return the data_dir of TinyImages, prepared as TFDS does it."""
    data_dir = tmp_path_factory.mktemp('tfds')
    TinyImages(data_dir=data_dir).download_and_prepare()
    return data_dir


def test_a_split_of_tfds_by_name(tiny_images):
    train = datasets.open_split('tfds:tiny_images', 'train', data_dir=tiny_images)
    assert train.images.dtype == np.uint8 and train.images.shape == (12, 6, 5, 3)
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.labels, train.images[:, 5, 4, 2] % 3)
    assert sorted(train.images[:, 0, 0, 0]) == list(range(12))
    assert (train.num_classes, train.class_names) == (3, ('ant', 'bee', 'cat'))
    test = datasets.open_split('tfds:tiny_images', 'test', data_dir=str(tiny_images))  # that is, 'validation'
    assert [len(labels) for labels in labels_of(test.evaluation_batches(3))] == [3, 1]
    again = datasets.open_split('tfds:tiny_images', 'train', data_dir=tiny_images)
    assert again.content() == train.content() != test.content()


def test_what_is_missing_is_said_and_not_fetched_unasked(tmp_path, monkeypatch):
    def refusal(name, split, **options):
        return message_of(lambda: datasets.open_split(f'tfds:{name}', split, data_dir=tmp_path, **options))

    monkeypatch.setattr(TinyImages, 'SPLITS', {'train': 2})
    TinyImages(data_dir=tmp_path).download_and_prepare()
    assert "'validation', only train; choose another" in refusal('tiny_images', 'test')
    message = refusal('cifar10', 'train')
    assert f"'cifar10' is not prepared in '{tmp_path}" in message and 'allow the download, or pass' in message

    def fail(self):
        raise ConnectionError('no route to host\nmore lines')

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', fail)
    assert '(no route to host); try again' in refusal('cifar10', 'train', download=True)


# --- streamed ------------------------------------------------------------------------------------------------

IMAGES = draw(26)
VIEWS = Views(12, 16)

with tfds.core.registered.skip_registration():

    class EncodedImages(TinyImages):
        """The synthetic images as they are, of any size."""

        SPLITS = {'train': 26, 'test': 7}
        FORMAT, SHAPE = 'jpeg', (None, None, 3)

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=self.SHAPE, encoding_format=self.FORMAT),
                'label': tfds.features.ClassLabel(names=[name for _, name in CLASSES]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _generate_examples(self, size):
            for i, (jpeg, label, _) in enumerate(IMAGES[:size]):
                if self.FORMAT == 'png' and not jpeg.startswith(b'\x89PNG'):
                    jpeg = encode(Image.open(io.BytesIO(jpeg)), 'PNG')
                yield i, {'image': io.BytesIO(jpeg), 'label': label}


def test_shards_folders_and_tfds_give_the_same_images(tmp_path, monkeypatch):
    shard_dir = tmp_path / 'shards'
    write_shards(shard_dir, IMAGES, 'train', 13)
    write_shards(shard_dir, IMAGES[:7], 'test', 2)
    EncodedImages(data_dir=tmp_path / 'jpeg').download_and_prepare()
    write_folder(tmp_path / 'folder' / 'train', IMAGES)
    write_folder(tmp_path / 'folder' / 'val', IMAGES[:7])

    def images_of(dataset, split, data_dir=None):
        read = datasets.open_split(dataset, split, data_dir=data_dir, views=VIEWS)
        batches = read.evaluation_batches(30).as_numpy_iterator()
        return {
            image.tobytes(): read.class_names[label]
            for images, labels in batches
            for image, label in zip(images, labels, strict=True)
        }

    for split, count in (('train', 26), ('test', 7)):
        expected = images_of('imagenet', split, shard_dir)
        assert len(expected) == count
        assert images_of(f'folder:{tmp_path / "folder"}', split) == expected
        assert images_of('tfds:encoded_images', split, tmp_path / 'jpeg') == expected

    monkeypatch.setattr(EncodedImages, 'FORMAT', 'png')  # made JPEGs as they are read: training can crop no others
    EncodedImages(data_dir=tmp_path / 'png').download_and_prepare()
    read = datasets.open_split('tfds:encoded_images', 'train', data_dir=tmp_path / 'png', views=VIEWS)
    assert sorted(labels_of(read.training_batches(26))[0]) == sorted(row[1] for row in IMAGES)
    ((images, _),) = read.evaluation_batches(26).as_numpy_iterator()
    originals = np.stack([np.frombuffer(image, np.float32) for image in images_of('imagenet', 'train', shard_dir)])
    distances = np.abs(images.reshape(26, 1, -1) - originals).mean(2)
    assert distances.min(1).max() < 3 and len(set(distances.argmin(1))) == 26


@pytest.mark.parametrize('views', [VIEWS, None], ids=['streamed', 'in memory'])
def test_a_file_that_was_cut_off_between_two_records(tmp_path, views):
    name, kind = ('encoded_images', EncodedImages) if views else ('tiny_images', TinyImages)
    (builder := kind(data_dir=tmp_path)).download_and_prepare()
    (path,) = builder.info.splits['train'].filepaths
    path = pathlib.Path(path)
    places, count = tfrecords.index(path), builder.info.splits['train'].num_examples
    path.write_bytes(path.read_bytes()[: places[-3]])
    message = message_of(lambda: datasets.open_split(f'tfds:{name}', 'train', data_dir=tmp_path, views=views))
    if views:
        assert f"'{path}' has {count - 2} records, not {count} as its dataset_info.json says; " in message
    else:  # TFDS counts them
        assert f"'{path.parent}' is damaged (Input" in message and f' only {count - 2} elements.);' in message


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_images_are_turned_as_exif_says(tmp_path, monkeypatch, kind):
    """In memory and streamed."""
    images = [(odd_images.with_exif(kind, orientation)[0], 0, []) for orientation in (1, 3, 6, 7)]
    size = odd_images.SIZE
    monkeypatch.setattr(EncodedImages, 'SPLITS', {'train': 4, 'test': 4})
    monkeypatch.setattr(EncodedImages, 'SHAPE', (size, size, 3))
    monkeypatch.setitem(globals(), 'IMAGES', images)
    monkeypatch.setattr(EncodedImages, 'FORMAT', kind.lower())
    EncodedImages(data_dir=tmp_path).download_and_prepare()
    held = datasets.open_split('tfds:encoded_images', 'test', data_dir=tmp_path)
    views = Views(size, size, size, resize='antialias')
    stream = datasets.open_split('tfds:encoded_images', 'test', data_dir=tmp_path, views=views)
    for found in (held.images, stream.example_images(4)):
        np.testing.assert_allclose(found, np.broadcast_to(odd_images.SHOWN, [4, size, size, 3]), atol=12)


def test_images_that_are_too_large_are_not_decoded(tiny_images, tmp_path, monkeypatch):
    EncodedImages(data_dir=tmp_path).download_and_prepare()
    monkeypatch.setitem(bounds.BOUNDS, 'image_side', bounds.BOUNDS['image_side']._replace(value=4))
    message = message_of(lambda: datasets.open_split('tfds:tiny_images', 'train', data_dir=tiny_images))
    assert 'number 0 (5 x 6 pixels' in message and '4 pixels a side' in message
    message = message_of(read_all, datasets.open_split('tfds:encoded_images', 'train', data_dir=tmp_path, views=VIEWS))
    assert 'in the record at byte 0 (' in message and '4 pixels a side' in message


def test_tfds_in_another_file_format_cannot_be_streamed(monkeypatch):
    info = types.SimpleNamespace(file_format=types.SimpleNamespace(value='array_record'), splits=['train'])
    label = types.SimpleNamespace(names=['ant', 'bee'], num_classes=2)
    builder = types.SimpleNamespace(name='x', data_path='/x', info=info)
    monkeypatch.setattr(tfds_source, 'prepare', lambda *args, **options: (builder, label))
    message = message_of(lambda: datasets.open_split('tfds:x', 'train', views=VIEWS))
    assert "'x' in '/x'" in message and 'array_record' in message and 'prepare it as tfrecord' in message
