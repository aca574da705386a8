"""Data sets of tensorflow_datasets, read into memory and streamed."""

import io
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fixtures.batches import labels_of
from fixtures.imagenet_shards import CLASSES, draw, write_folder, write_shards
from fixtures.imagenet_shards import encoded as encode
from PIL import Image

from official_resnet import errors
from official_resnet.inputs import datasets, tfds_source
from official_resnet.inputs.views import Views

with tfds.core.registered.skip_registration():  # so that it is found by its files only

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Twelve 6 x 5 pictures of three classes; picture i is filled with i."""

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
def tiny_pictures(tmp_path_factory):
    """Return the data_dir of TinyPictures, prepared as TFDS does it."""
    data_dir = tmp_path_factory.mktemp('tfds')
    TinyPictures(data_dir=data_dir).download_and_prepare()
    return data_dir


def test_read_tfds_by_name(tiny_pictures):
    train = datasets.open_split('tfds:tiny_pictures', 'train', data_dir=tiny_pictures)
    assert train.images.dtype == np.uint8 and train.images.shape == (12, 6, 5, 3)
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.labels, train.images[:, 5, 4, 2] % 3)
    assert sorted(train.images[:, 0, 0, 0]) == list(range(12))
    assert (train.num_classes, train.class_names) == (3, ('ant', 'bee', 'cat'))


def test_tfds_without_test_gives_validation(tiny_pictures):
    test = datasets.open_split('tfds:tiny_pictures', 'test', data_dir=str(tiny_pictures))
    assert [len(labels) for labels in labels_of(test.evaluation_batches(3))] == [3, 1]


def test_tfds_without_a_split(tiny_pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(TinyPictures, 'SPLITS', {'train': 2})
    TinyPictures(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(errors.UserError, match="has no split 'validation', only train; choose another"):
        datasets.open_split('tfds:tiny_pictures', 'test', data_dir=tmp_path)


def test_tfds_that_is_not_prepared_is_not_fetched_unasked(tmp_path):
    with pytest.raises(errors.UserError, match="'cifar10' is not prepared in '.*'; allow the download, or pass"):
        datasets.open_split('tfds:cifar10', 'train', data_dir=tmp_path)


def test_tfds_that_cannot_be_fetched(tmp_path, monkeypatch):
    def fail(self):
        raise ConnectionError('no route to host\nmore lines')

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', fail)
    with pytest.raises(errors.UserError, match=r'cannot be fetched \(no route to host\); try again') as caught:
        datasets.open_split('tfds:cifar10', 'train', data_dir=tmp_path, download=True)
    assert '\n' not in str(caught.value)


# --- streamed ------------------------------------------------------------------------------------------------

DRAWN = draw(26)
VIEWS = Views(12, 16)

with tfds.core.registered.skip_registration():

    class EncodedPictures(TinyPictures):
        """The drawn pictures as they are, of any size."""

        SPLITS = {'train': 26, 'test': 7}
        FORMAT = 'jpeg'

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(None, None, 3), encoding_format=self.FORMAT),
                'label': tfds.features.ClassLabel(names=[name for _, name in CLASSES]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _generate_examples(self, size):
            for i, (jpeg, label, _) in enumerate(DRAWN[:size]):
                if self.FORMAT == 'png':
                    jpeg = encode(Image.open(io.BytesIO(jpeg)), 'PNG')
                yield i, {'image': io.BytesIO(jpeg), 'label': label}


def test_shards_folders_and_tfds_give_the_same_pictures(tmp_path, monkeypatch):
    shard_dir = tmp_path / 'shards'
    write_shards(shard_dir, DRAWN, 'train', 13)
    write_shards(shard_dir, DRAWN[:7], 'test', 2)
    EncodedPictures(data_dir=tmp_path / 'jpeg').download_and_prepare()
    write_folder(tmp_path / 'folder' / 'train', DRAWN)
    write_folder(tmp_path / 'folder' / 'val', DRAWN[:7])

    def pictures(dataset, split, data_dir=None):
        read = datasets.open_split(dataset, split, data_dir=data_dir, views=VIEWS)
        batches = read.evaluation_batches(30).as_numpy_iterator()
        return {
            image.tobytes(): read.class_names[label]
            for images, labels in batches
            for image, label in zip(images, labels, strict=True)
        }

    for split, count in (('train', 26), ('test', 7)):
        expected = pictures('imagenet', split, shard_dir)
        assert len(expected) == count
        assert pictures(f'folder:{tmp_path / "folder"}', split) == expected
        assert pictures('tfds:encoded_pictures', split, tmp_path / 'jpeg') == expected

    monkeypatch.setattr(EncodedPictures, 'FORMAT', 'png')  # made JPEGs as they are read: training can crop no others
    EncodedPictures(data_dir=tmp_path / 'png').download_and_prepare()
    read = datasets.open_split('tfds:encoded_pictures', 'train', data_dir=tmp_path / 'png', views=VIEWS)
    assert sorted(labels_of(read.training_batches(26))[0]) == sorted(row[1] for row in DRAWN)
    ((images, labels),) = read.evaluation_batches(26).as_numpy_iterator()
    closest = [
        min(
            (
                (np.abs(np.frombuffer(other, np.float32) - image.ravel()).mean(), name)
                for other, name in pictures('imagenet', 'train', shard_dir).items()
            )
        )
        for image in images
    ]
    assert [name for _, name in closest] == [read.class_names[label] for label in labels]
    assert max(distance for distance, _ in closest) < 3


def test_tfds_in_another_file_format_cannot_be_streamed(monkeypatch):
    info = types.SimpleNamespace(file_format=types.SimpleNamespace(value='array_record'), splits=['train'])
    label = types.SimpleNamespace(names=['ant', 'bee'], num_classes=2)
    builder = types.SimpleNamespace(name='x', data_path='/x', info=info)
    monkeypatch.setattr(tfds_source, 'prepare', lambda *args, **options: (builder, label))
    with pytest.raises(errors.UserError, match="'x' in '/x' is kept as array_record, which cannot be streamed; prep"):
        datasets.open_split('tfds:x', 'train', views=VIEWS)
