"""Streamed splits: order, resume, views and evaluation of encoded images; image files as a source."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from fixtures.batches import assert_same_batches, labels_of, message_of, read_all
from fixtures.imagenet_shards import draw, write_shards
from fixtures.imagenet_shards import encoded as encode
from PIL import Image

from official_resnet.inputs import datasets, encoded, streamed
from official_resnet.inputs.affine import OFFICIAL
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.inputs.views import Views

IMAGES = [(jpeg, number, boxes) for number, (jpeg, _, boxes) in enumerate(draw(26))]  # labels are numbers
CLASSES = [(f'n{number:08}', f'{number}') for number in range(26)]
VIEWS = Views(12, 16)


@pytest.fixture(scope='module')
def shard_dir(tmp_path_factory):
    """Thirteen training shards of two images, and two of validation with seven of them."""
    folder = tmp_path_factory.mktemp('shards')
    write_shards(folder, IMAGES, 'train', 13, CLASSES)
    write_shards(folder, IMAGES[:7], 'test', 2, CLASSES)
    return folder


def stream(folder, split='train', views=VIEWS):
    return datasets.open_split('imagenet', split, data_dir=folder, views=views)


@pytest.fixture
def encoded_train(shard_dir):
    return stream(shard_dir).with_normalization('none')


def numbers_of(dataset):
    return np.concatenate(labels_of(dataset))


@pytest.mark.parametrize('at_a_time', [2, 16])
def test_every_encoded_image_once_in_an_epoch_each_in_another_order(encoded_train, monkeypatch, at_a_time):
    monkeypatch.setattr(streamed, 'SHARDS_AT_A_TIME', at_a_time)
    tiny = dataclasses.replace(encoded_train, views=Views(2, 2))
    dataset = tiny.training_batches(13, num_epochs=20, seed=4)
    assert len(dataset) == 40
    epochs = numbers_of(dataset).reshape(20, 26)
    assert all(sorted(epoch) == list(range(26)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    windows = epochs[:, :24].reshape(20, 6, 4) // 2  # the shards of each four images, and two of one are left
    is_of_two = [len(set(window)) == 2 for window in windows.reshape(-1, 4)]
    if at_a_time == 2:
        assert all(is_of_two) and (epochs[:, 24] // 2 == epochs[:, 25] // 2).all()
        assert len({frozenset(window) for window in windows.reshape(-1, 4)}) > 40  # of 78 pairs
        assert any(window[0] == window[2] for window in windows.reshape(-1, 4))  # and mixed
    else:
        assert sum(is_of_two) < 20


def test_an_encoded_training_batch_is_its_views_normalized(shard_dir):
    train = stream(shard_dir)
    for flip in (True, False):
        dataset = train.training_batches(8, seed=6, flip=flip)
        for step, (images, rows) in enumerate(dataset.as_numpy_iterator()):
            views = [
                encoded.train_view(
                    IMAGES[row][0], np.float32(IMAGES[row][2]).reshape(-1, 4), [6, 8 * step + i], VIEWS, flip
                )
                for i, row in enumerate(rows)
            ]
            np.testing.assert_allclose(images, NORMALIZATIONS[OFFICIAL](tf.stack(views)), atol=1e-3)


ENCODED_EPOCHS = {'batch_size': 6, 'seed': 3, 'num_epochs': 3}  # of 4 steps


@pytest.fixture(scope='module')
def encoded_uninterrupted(shard_dir):
    return list(stream(shard_dir).training_batches(**ENCODED_EPOCHS).as_numpy_iterator())


@pytest.mark.parametrize('first_step, num_threads', [(0, 1), (1, 8), (4, 2), (12, 8)])
def test_encoded_batches_resume_bit_for_bit_with_any_number_of_threads(
    shard_dir, encoded_uninterrupted, first_step, num_threads
):
    assert len(encoded_uninterrupted) == 12
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_threads
    tail = stream(shard_dir).training_batches(first_step=first_step, **ENCODED_EPOCHS).with_options(options)
    assert len(tail) == 12 - first_step
    assert_same_batches(tail, encoded_uninterrupted[first_step:])


def test_a_seed_and_an_epoch_change_encoded_batches(shard_dir, encoded_uninterrupted):
    other = next(stream(shard_dir).training_batches(**ENCODED_EPOCHS | {'seed': 4}).as_numpy_iterator())
    assert not np.array_equal(other[1], encoded_uninterrupted[0][1])
    images = np.concatenate([images for images, _ in encoded_uninterrupted])
    assert len({image.tobytes() for image in images}) == len(images) == 72  # no view comes back


def test_evaluation_of_encoded_images(shard_dir):
    test = stream(shard_dir, 'test')
    dataset = test.evaluation_batches(3)
    assert dataset.element_spec[0].shape.as_list() == [None, 16, 16, 3]
    assert len(dataset) == 3 and labels_of(dataset) == [[0, 1, 2], [3, 4, 5], [6]]
    expected = tf.stack([encoded.test_view(jpeg, VIEWS) for jpeg, _, _ in IMAGES[:7]])
    found = np.concatenate([images for images, _ in dataset.as_numpy_iterator()])
    np.testing.assert_allclose(found, expected - np.float32([123.68, 116.78, 103.94]), atol=1e-3)
    outputs = [6, 3, -1, 0, 5, 4, 2, *[1] * (test.num_classes - 7)]
    moved = test.with_classes([*test.class_names, 'cat'], None, outputs)
    assert labels_of(moved.evaluation_batches(7)) == [[6, 3, -1, 0, 5, 4, 2]]
    assert moved.num_classes == test.num_classes + 1
    assert moved.fingerprint() != test.fingerprint() and moved.class_ids is None
    assert test.example_bytes(4) == [jpeg for jpeg, _, _ in IMAGES[:4]]
    np.testing.assert_allclose(test.example_images(4), expected[:4], atol=1e-3)


def test_a_name_that_is_no_text_has_a_fingerprint_and_others_keep_theirs(tmp_path):
    paths = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b'/\xff.jpg', b'/\xfe.jpg', b'/l\xc3\xb6we.jpg')]
    for path in paths:
        pathlib.Path(path).write_bytes(b'1234')
    assert len({streamed.files_fingerprint([path]) for path in paths}) == 3
    assert streamed.files_fingerprint(paths[2:]) == hashlib.sha256('löwe.jpg 4\n'.encode()).hexdigest()


def test_several_views_of_an_image_are_several_images_with_one_label(shard_dir):
    test = dataclasses.replace(stream(shard_dir, 'test'), normalization='none')
    dataset = test.evaluation_batches(3, view=lambda jpeg: encoded.ten_views(jpeg, VIEWS))
    batches = list(dataset.as_numpy_iterator())
    assert [(len(images), len(labels)) for images, labels in batches] == [(30, 3), (30, 3), (10, 1)]
    for (images, _), first in zip(batches, (0, 3, 6), strict=True):
        expected = [encoded.ten_views(jpeg, VIEWS) for jpeg, _, _ in IMAGES[first : min(first + 3, 7)]]
        np.testing.assert_allclose(images, np.concatenate(expected), atol=1e-3)


def test_training_without_augmentation_sees_the_middle(encoded_train):
    dataset = encoded_train.training_batches(6, augment=False)
    assert dataset.element_spec[0].shape.as_list() == [6, 16, 16, 3]
    for images, numbers in dataset.take(2).as_numpy_iterator():
        expected = [encoded.test_view(IMAGES[number][0], VIEWS) for number in numbers]
        np.testing.assert_allclose(images, expected, atol=1e-3)


def test_training_on_the_first_encoded_images(encoded_train):
    dataset = encoded_train.first(7).training_batches(3, num_epochs=9)
    epochs = numbers_of(dataset).reshape(9, 6)
    assert set(epochs.ravel()) == set(range(7)) and all(len(set(epoch)) == 6 for epoch in epochs)


# --- image files ---------------------------------------------------------------------------------------------


def test_files_are_read_as_jpegs(tmp_path):
    """A JPEG is kept, even a grey one; other images become RGB JPEGs, as in jpeg_test."""
    image = Image.open(io.BytesIO(IMAGES[0][0]))
    kinds = (('JPEG', 'RGB', 3), ('JPEG', 'L', 1), ('PNG', 'RGBA', 3), ('JPEG', 'CMYK', 3))
    paths = [tmp_path / f'{i}' for i in range(len(kinds))]
    for path, (kind, mode, _) in zip(paths, kinds, strict=True):
        path.write_bytes(encode(image.convert(mode), kind))
    source = streamed.Files(paths, range(4))
    jpegs, labels, boxes = source.load(tf.constant([3, 2, 1, 0]))
    assert labels.numpy().tolist() == [3, 2, 1, 0] and boxes.to_list() == [[]] * 4
    assert source.shard_numbers.tolist() == [0] * 4
    assert list(jpegs.numpy()[2:]) == [paths[1].read_bytes(), paths[0].read_bytes()]
    for (_, _, channels), jpeg in zip(kinds[::-1], jpegs.numpy(), strict=True):
        assert tf.io.extract_jpeg_shape(jpeg).numpy().tolist() == [image.height, image.width, channels]
        assert encoded.train_view(jpeg, tf.zeros([0, 4]), [1, 2], VIEWS).shape == (12, 12, 3)  # takes JPEGs only


@pytest.mark.parametrize(
    'kind,shape,side,expected',  # height and width
    [
        ('JPEG', (79, 200), 40, (79, 200)),
        ('JPEG', (80, 200), 40, (40, 100)),
        ('JPEG', (500, 365), 40, (63, 46)),  # libjpeg rounds up
        ('JPEG', (500, 1004), 40, (63, 126)),  # an eighth is the least that libjpeg makes
        ('JPEG', (1280, 800), 40, (80, 50)),  # an eighth of it again divided by 2
        ('PNG', (500, 365), 40, (56, 41)),  # a ninth, rounded up
        ('WEBP', (80, 200), 40, (40, 100)),
        ('PNG', (79, 200), 40, (79, 200)),
    ],
)
def test_training_gets_large_images_smaller_and_keeps_them(tmp_path, monkeypatch, kind, shape, side, expected):
    smooth = np.add.outer(np.linspace(0, 100, shape[0]), np.linspace(0, 100, shape[1]))
    image = Image.fromarray(np.stack([smooth, smooth + 50, 200 - smooth], -1).astype(np.uint8))
    path = tmp_path / 'image'
    path.write_bytes(encode(image, kind))
    source = streamed.Files([path], [0])
    reduced = source.for_training(1, Views(side // 2))
    first = reduced.read([0])[0]
    found = Image.open(io.BytesIO(first))
    assert found.size == expected[::-1] and found.format == 'JPEG'
    resized = image.resize(found.size, Image.Resampling.BOX)
    np.testing.assert_allclose(np.asarray(found, int), np.asarray(resized, int), atol=10)
    is_unchanged = kind == 'JPEG' and expected == shape
    assert (first == path.read_bytes()) == is_unchanged
    whole = Image.open(io.BytesIO(source.read([0])[0]))
    assert whole.size == image.size  # evaluation sees all pixels
    monkeypatch.setattr(streamed, 'KEPT_BYTES', len(first) - 1)
    assert source.for_training(1, Views(side // 2)).read([0])[0] == first  # whether it is kept makes no difference
    path.unlink()
    if is_unchanged:
        assert 'put it back' in message_of(reduced.read, [0])
    else:
        assert reduced.read([0])[0] == first


def test_what_is_kept_of_files_has_a_limit(tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / f'{i}.png').write_bytes(encode(Image.new('RGB', (8, 8)), 'PNG'))
    source = streamed.Files(sorted(tmp_path.iterdir()), [0, 0, 0])
    size = len(source.read([0])[0])
    monkeypatch.setattr(streamed, 'KEPT_BYTES', 2 * size)
    source.read([0, 1, 2])
    for path in tmp_path.iterdir():
        path.unlink()
    assert len(source.read([0, 1])) == 2 and '2.png' in message_of(source.read, [2])


def test_crops_of_training_come_from_reduced_images_and_its_middle_does_not(tmp_path):
    """The middle is what evaluation sees, for example for the features of a new head."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    for i in range(4):
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    views = Views(16, 16, 16, 0.9, False, 'tf1', crop='torch')
    source = streamed.Files(sorted(tmp_path.iterdir()), [0, 0, 1, 1])
    split = streamed.StreamedSplit(source, 2, 'x', ('a', 'b'), 'none', views)
    crops, middle = (next(iter(split.training_batches(4, augment=augment)))[0] for augment in (True, False))
    assert np.std(crops) < 20 < np.std(middle)  # means of 12 x 12 pixels; of noise, TensorFlow 1's resize averages 4
    np.testing.assert_array_equal(middle, next(iter(split.evaluation_batches(4)))[0])


@pytest.mark.parametrize('crop,size', [('torch', 12), ('tensorflow', 12), ('pad', 24)])
@pytest.mark.parametrize('kind,mode', [('PNG', 'RGB'), ('PNG', 'L'), ('JPEG', 'RGB')])
def test_a_small_set_is_decoded_once_and_gives_the_same_crops(crop, size, kind, mode, tmp_path, monkeypatch):
    """Without subsampled colours, whose interpolation is another at the edge of a part, they are equal."""
    random = np.random.default_rng(0)
    for i in range(6):
        image = Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), np.uint8)).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 1 + i  # how to turn it
        image.save(tmp_path / f'{i}.{kind.lower()}', exif=exif, **({'subsampling': 0} if kind == 'JPEG' else {}))
    paths, labels = sorted(tmp_path.iterdir()), [0, 0, 0, 1, 1, 1]
    views = Views(size, min_area=0.3, use_boxes=False, resize='antialias', crop=crop, uses_exif=True)
    splits = [
        streamed.StreamedSplit(
            streamed.Files(paths, labels, decodes_once=once), 2, 'x', ('a', 'b'), 'none', views, (1, 0)
        )
        for once in (True, False)
    ]
    reads = []
    read = streamed.Files.read
    monkeypatch.setattr(streamed.Files, 'read', lambda source, rows: reads.extend(rows) or read(source, rows))
    batches = [split.first(5).training_batches(2, num_epochs=3, seed=1) for split in splits]
    assert sorted(reads) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # to tell how large they are, and to keep them
    assert_same_batches(batches[0], list(batches[1].as_numpy_iterator()))
    assert len(reads) == 10 + 3 * 4


@pytest.mark.parametrize('sizes,is_kept', [((8, 8, 8), True), ((8, 8, 9), False), ((80, 80, 80), False)])
def test_how_much_is_decoded_once_has_a_limit(sizes, is_kept, tmp_path, monkeypatch):
    for i, size in enumerate(sizes):
        Image.new('RGB', (size, 8)).save(tmp_path / f'{i}.png')
    monkeypatch.setattr(streamed, 'DECODED_BYTES', 3 * 8 * 8 * 3)
    source = streamed.Files(sorted(tmp_path.iterdir()), [0, 0, 1], decodes_once=True)
    assert isinstance(source.for_training(3, Views(4)), streamed.Decoded) == is_kept


def test_a_broken_file_is_named(tmp_path):
    good, text = tmp_path / 'good.jpg', tmp_path / 'text.png'
    cut = pathlib.Path(os.fsdecode(bytes(tmp_path) + b'/caf\xe9 "1".jpg'))  # a name that is no text
    good.write_bytes(IMAGES[0][0])
    cut.write_bytes(IMAGES[0][0][:500])
    text.write_text('no image')
    absent = tmp_path / 'absent.jpg'
    damaged = tmp_path / 'damaged.jpg'
    tables = IMAGES[0][0].index(b'\xff\xc4')  # the first of Huffman's, which would have 255 codes of one bit
    damaged.write_bytes(IMAGES[0][0][: tables + 5] + b'\xff' + IMAGES[0][0][tables + 6 :])
    for path, reason in (
        (damaged, 'fix or remove it'),
        (cut, 'cut off'),
        (text, 'known format; save it as JPEG'),
        (absent, 'does not exist; put it back'),
    ):
        for once in (False, True):
            source = streamed.Files([good, path], [0, 1], decodes_once=once)
            split = streamed.StreamedSplit(source, 2, 'x', ('a', 'b'), 'none', VIEWS)
            read = functools.partial(split.training_batches, 2) if once else functools.partial(read_all, split)
            message = message_of(read)
            assert message.startswith(f"'{path}' ") and reason in message
