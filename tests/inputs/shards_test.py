"""TFRecord shards: finding, reading by number, and every kind of damage to encoded images."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from fixtures import odd_images
from fixtures.batches import labels_of, message_of, read_all
from fixtures.flips import damaged_copies
from fixtures.imagenet_shards import CLASSES, draw, write_shards
from fixtures.tiny_training import config_of

from official_resnet import resnet_run_loop, resnet_spec
from official_resnet.inputs import datasets, in_memory, shard_files, shards, streamed, tfrecords
from official_resnet.inputs.views import Views

NUM_IMAGES = 22
IMAGES = draw(NUM_IMAGES)
BROKEN = [(jpeg[: jpeg.index(b'\xff\xc0') + 19], label, boxes) for jpeg, label, boxes in IMAGES]  # up to the size
VIEWS = Views(16, 16)


@pytest.fixture
def folder(tmp_path):
    """Four training shards, two of validation, and the manifests."""
    write_shards(tmp_path / 'data', IMAGES)
    write_shards(tmp_path / 'data', IMAGES[:7], 'test', 2)
    return tmp_path / 'data'


def open_shards(folder, **options):
    return shards.Shards(shard_files.find_shards(folder, 'train'), **options)


def open_train(folder, views=VIEWS):
    return datasets.open_split('imagenet', 'train', data_dir=folder, views=views)


# --- finding shards ------------------------------------------------------------------------------------------


def test_shards_are_found_in_their_order_whatever_else_is_there(folder):
    for name in (
        *('train-00001-of-00004.part', 'train.manifest.json.part', '.train-00000-of-00009', 'train-1-of-4'),
        *('train-00000-of-00004.index', 'xtrain-00000-of-00007', 'training-00000-of-00003'),
    ):
        (folder / name).touch()
    assert shard_files.find_shards(str(folder), 'train') == [folder / f'train-0000{i}-of-00004' for i in range(4)]
    assert shard_files.find_shards(folder, 'test') == [folder / f'validation-0000{i}-of-00002' for i in range(2)]


def test_shards_that_are_missing_or_of_two_sets_are_said_in_one_line(folder):
    (folder / 'train-00001-of-00004').rename(folder / 'train-00001-of-00004.part')
    (folder / 'train-00003-of-00004').unlink()
    message = message_of(shard_files.find_shards, folder, 'train')
    assert f"'{folder}' lacks 2 of 4 train shards" in message and '00001; build them' in message
    (folder / 'train-00000-of-00008').touch()
    message = message_of(shard_files.find_shards, folder, 'train')
    assert 'set of 4 ' in message and 'of 8; remove the shards of one set' in message


def test_the_manifest_names_the_classes(folder):
    assert shard_files.manifest_classes(folder, 'train') == list(CLASSES)
    read = datasets.open_split('imagenet', 'test', data_dir=folder, views=VIEWS)
    assert (read.num_classes, read.class_names) == (6, tuple(name for _, name in CLASSES))
    assert read.class_ids == tuple(synset for synset, _ in CLASSES)
    path = folder / 'validation.manifest.json'
    path.write_text('{"synsets": ["", "n01443537", "cats of mine"], "more": 1}')
    assert shard_files.manifest_classes(folder, 'test') == [('n01443537', 'goldfish'), ('cats of mine', 'cats of mine')]
    for text in ('{', '[]', '{"synsets": 3}', '{}', '\xff'):
        path.write_text(text, encoding='latin-1')
        assert f"the manifest '{path}' is damaged (" in message_of(shard_files.manifest_classes, folder, 'test')
    path.unlink()
    read = datasets.open_split('imagenet', 'test', data_dir=folder)  # ImageNet's own thousand
    assert (read.num_classes, read.class_ids[0], read.class_names[0]) == (1000, 'n01440764', 'tench')


def test_shards_are_as_long_as_their_manifest_says(folder):
    """Before TensorFlow is imported. One cut off between two records, or empty, looks whole otherwise."""
    paths, path = sorted(folder.glob('train-*')), folder / 'train.manifest.json'
    about, whole = json.loads(path.read_text()), paths[1].read_bytes()
    sizes = [(one.stat().st_size, len(tfrecords.index(one)) - 1) for one in paths]
    names = [{'name': one.name, 'bytes': size, 'records': n} for one, (size, n) in zip(paths, sizes, strict=True)]
    path.write_text(json.dumps(about | {'shards': names}))
    assert open_train(folder).num_images == NUM_IMAGES
    for wrong in (b'', whole[: tfrecords.index(paths[1])[3]], whole + whole):
        paths[1].write_bytes(wrong)
        for find in (lambda: datasets.require_data('imagenet', folder), lambda: open_train(folder)):
            assert f"'{paths[1]}' has {len(wrong)} bytes, not {len(whole)} as the manifest says; " in message_of(find)
    assert datasets.open_split('imagenet', 'test', data_dir=folder).num_images == 7  # its manifest has no sizes
    paths[1].write_bytes(whole)
    names[3]['records'] += 1
    path.write_text(json.dumps(about | {'shards': names}))
    assert f"'{paths[3]}' has 5 records, not 6 as the manifest says; " in message_of(open_train, folder)
    for shards_of in (3, [3], [{}], [{'name': 'a', 'bytes': 'x', 'records': 3}]):
        path.write_text(json.dumps(about | {'shards': shards_of}))
        assert f"the manifest '{path}' is damaged (" in message_of(shard_files.find_shards, folder, 'train')
    path.unlink()
    paths[1].write_bytes(b'')
    assert open_shards(folder).num_images == NUM_IMAGES - 6  # nothing says how many there should be


@pytest.mark.parametrize(
    'added, words',
    [
        ({'text': 'dog'}, "'dog' with the label 2|n01443537 (goldfish)|train.manifest.json|build_image_data"),
        ({'synset': 'n02084071', 'text': 'goldfish'}, "'n02084071' with the label 2"),
        ({'synset': 'n01443537', 'text': ''}, ''),
        ({'text': 'goldfish, Carassius auratus'}, ''),
    ],
)
def test_shards_without_a_manifest_are_ilsvrc2012s(tmp_path, added, words):
    jpeg = draw(1)[0][0]
    features = {'image/encoded': jpeg, 'image/class/label': 2}
    features |= {f'image/class/{key}': value.encode() for key, value in added.items()}
    for prefix in ('train', 'validation'):
        (tmp_path / f'{prefix}-00000-of-00001').write_bytes(tfrecords.frame(tfrecords.encode_example(features)))
    if words:
        message = message_of(lambda: datasets.open_split('imagenet', 'train', data_dir=tmp_path))
        assert all(word in message for word in words.split('|')), message
    else:
        assert datasets.open_split('imagenet', 'train', data_dir=tmp_path).num_classes == 1000


# --- reading -------------------------------------------------------------------------------------------------


def test_any_image_can_be_read_by_its_number(folder):
    source = open_shards(folder)
    assert source.num_images == NUM_IMAGES and source.shard_numbers.tolist() == [0] * 6 + [1] * 6 + [2] * 5 + [3] * 5
    rows = np.random.default_rng(0).permutation(NUM_IMAGES)
    jpegs, labels, boxes = source.load(tf.constant(rows))
    assert jpegs.numpy().tolist() == [IMAGES[row][0] for row in rows]
    assert labels.dtype == tf.int32 and labels.numpy().tolist() == [IMAGES[row][1] for row in rows]
    assert boxes.dtype == tf.float32 and boxes.shape.as_list() == [NUM_IMAGES, None, 4]
    for row, found in zip(rows, boxes, strict=True):
        np.testing.assert_array_equal(found, np.float32(IMAGES[row][2]).reshape(-1, 4))
    assert len(source.read(np.array([], np.int64))) == 0


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'OPEN_FILES', 2)
    write_shards(tmp_path, IMAGES, num_shards=11)
    source = open_shards(tmp_path)
    descriptors = pathlib.Path('/proc/self/fd')
    before = len(list(descriptors.iterdir()))
    rows = np.tile(np.random.default_rng(0).permutation(NUM_IMAGES), 20)
    dataset = tf.data.Dataset.from_tensor_slices(rows).batch(4, drop_remainder=True)
    read = dataset.map(lambda some: source.load(some)[1], num_parallel_calls=8)
    labels = np.concatenate(list(read.as_numpy_iterator()))
    assert labels.tolist() == [IMAGES[row][1] for row in rows]
    assert len(list(descriptors.iterdir())) <= before + 2
    del read, dataset


def test_empty_shards_are_allowed(tmp_path):
    write_shards(tmp_path, IMAGES[:3], num_shards=5)
    source = open_shards(tmp_path)
    assert source.num_images == 3 and source.load(tf.constant([2]))[1].numpy().tolist() == [2]
    write_shards(tmp_path / 'none', [], num_shards=2)
    empty = open_train(tmp_path / 'none', views=None)
    assert '--batch_size=4 is more than the 0 training images' in message_of(empty.training_batches, 4)


# --- the index -----------------------------------------------------------------------------------------------


@pytest.fixture
def searched(monkeypatch):
    """The paths of the files whose records were searched."""
    paths, index = [], tfrecords.index
    monkeypatch.setattr(tfrecords, 'index', lambda path: paths.append(path) or index(path))
    return paths


def test_the_places_are_kept_and_found_anew_when_a_file_changes(folder, tmp_path, searched):
    kept = tmp_path / 'index.npz'
    for _ in range(2):
        jpegs, _, _ = open_shards(folder, index_file=kept).load(tf.range(NUM_IMAGES))
        assert jpegs.numpy().tolist() == [jpeg for jpeg, _, _ in IMAGES]
        assert len(searched) == 4 and kept.is_file() and not list(tmp_path.glob('part.*'))
    write_shards(folder, IMAGES[:9] + IMAGES[10:], num_shards=4)
    changed = open_shards(folder, index_file=kept)
    assert len(searched) == 8 and changed.num_images == NUM_IMAGES - 1
    assert changed.load(tf.constant([9]))[0].numpy().tolist() == [IMAGES[10][0]]


def test_each_split_keeps_an_index_unless_the_folder_may_not_be_written(folder, monkeypatch, searched):
    def refuse(path, **options):
        raise PermissionError(13, 'Permission denied', str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shards.files, 'replacing', refuse)
        assert open_train(folder).num_images == NUM_IMAGES and not list(folder.glob('.*'))
    searched.clear()
    for _ in range(2):
        for split, count in (('train', NUM_IMAGES), ('test', 7)):
            assert datasets.open_split('imagenet', split, data_dir=folder).num_images == count
    assert len(searched) == 6
    assert {path.name for path in folder.glob('.*.npz')} == {'.train.index.npz', '.validation.index.npz'}


@pytest.mark.parametrize('content', [b'garbage', b'PK\x03\x04 and no more', None])
def test_a_damaged_index_is_made_again(folder, tmp_path, searched, content):
    kept = tmp_path / 'index.npz'
    open_shards(folder, index_file=kept)
    kept.write_bytes(kept.read_bytes()[:-30] if content is None else content)
    for _ in range(2):
        assert open_shards(folder, index_file=kept).num_images == NUM_IMAGES and len(searched) == 8


def test_no_damaged_index_is_believed(folder, tmp_path):
    kept = tmp_path / 'index.npz'
    expected = open_shards(folder, index_file=kept).read(np.arange(NUM_IMAGES)).tolist()
    for data in damaged_copies(kept.read_bytes(), 200):
        kept.write_bytes(data)
        assert open_shards(folder, index_file=kept).read(np.arange(NUM_IMAGES)).tolist() == expected


# --- what changes the images ---------------------------------------------------------------------------------


def test_the_fingerprint_tells_what_evaluation_depends_on(folder):
    read = open_train(folder)
    assert read.fingerprint() == open_train(folder).fingerprint()
    others = [read.with_normalization('none'), read.first(5), dataclasses.replace(read, views=Views(16, 24))]
    with open(folder / 'train-00002-of-00004', 'ab') as file:
        file.write(tfrecords.frame(b''))
    others.append(open_train(folder))
    assert len({read.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_the_background_comes_before_all_classes(folder):
    background = open_train(folder).with_background()
    assert (background.num_classes, background.class_names[:2]) == (7, ('background', CLASSES[0][1]))
    assert background.class_ids[:2] == (None, CLASSES[0][0])
    assert labels_of(background.evaluation_batches(30)) == [[label + 1 for _, label, _ in IMAGES]]
    assert background.image_shape == background.input_shape == (16, 16, 3)


def test_the_labels_of_test_shards_are_those_of_the_training_shards(folder):
    """Their manifest lacks a class and has the others in another order; the card has all classes."""
    images, order = draw(7, seed=1), [5, 1, 2, 4, 3]
    write_shards(
        folder, [(jpeg, order.index(label), boxes) for jpeg, label, boxes in images if label], 'test', 2,
        classes=[CLASSES[i] for i in order],
    )  # fmt: skip
    trainer = resnet_run_loop.Trainer(config(folder, batch_size=22))
    assert labels_of(trainer.test.evaluation_batches(30)) == [[1, 2, 3, 4, 5]]
    assert trainer.card['class_names'] == trainer.test.class_names == tuple(name for _, name in CLASSES)
    assert trainer.card['ids'] == tuple(synset for synset, _ in CLASSES) and trainer.model.output_shape == (None, 6)
    trainer = resnet_run_loop.Trainer(dataclasses.replace(config(folder, batch_size=22), background=True))
    assert labels_of(trainer.test.evaluation_batches(30)) == [[2, 3, 4, 5, 6]]
    write_shards(folder, images, 'test', 2, classes=[*CLASSES[:5], ('cats of mine', '')])
    message = message_of(resnet_run_loop.Trainer, config(folder, batch_size=22))
    assert "'cats of mine', which" in message and 'rename or remove' in message


# --- damage --------------------------------------------------------------------------------------------------


def place_of(folder, row):
    """Return (path, first byte, end) of an image's record."""
    source = open_shards(folder)
    return pathlib.Path(source.paths[source.shard_numbers[row]]), int(source._begins[row]), int(source._ends[row])


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('row', [0, 9])
def test_a_damaged_record_is_named_with_its_place(folder, row):
    path, begin, end = place_of(folder, row)
    source = open_shards(folder)
    flip(path, (begin + end) // 2)
    message = message_of(source.read, np.arange(NUM_IMAGES))
    assert f"'{path}' is damaged: " in message and f'checksum of the record at byte {begin}; build' in message
    flip(path, (begin + end) // 2)
    flip(path, begin + 3)
    assert f'checksum of the length at byte {begin}' in message_of(source.read, np.array([row]))
    if begin:  # found at once where there is no index
        assert f'checksum of the length at byte {begin}' in message_of(open_shards, folder)


def test_a_file_that_is_cut_off_or_goes_away(folder, tmp_path):
    kept = tmp_path / 'index.npz'
    path, begin, _ = place_of(folder, 3)
    source = open_shards(folder, index_file=kept)
    with open(path, 'r+b') as file:
        file.truncate(begin + 40)
    expected = f"'{path}' is cut off inside the record at byte {begin}"
    assert expected in message_of(source.read, np.array([3]))
    assert expected in message_of(lambda: open_shards(folder, index_file=kept))
    gone = pathlib.Path(source.paths[2])
    gone.unlink()
    assert message_of(source.read, np.array([13])) == f"'{gone}' does not exist; put it back"
    assert f"'{gone}' does not exist; put it back" in message_of(streamed.files_fingerprint, source.paths)
    assert 'lacks 1 of 4 train shards' in message_of(open_shards, folder)


def config(folder, batch_size):
    return config_of(
        resnet_spec.ResNetSpec((1, 1), filters=4), dataset='imagenet', data_dir=str(folder), model_dir=None,
        views=VIEWS, train_epochs=1, distribution_strategy='mirrored', batch_size=batch_size,
    )  # fmt: skip


def test_a_training_ends_with_the_line_of_the_damaged_record(folder):
    path, begin, _ = place_of(folder, 9)
    trainer = resnet_run_loop.Trainer(config(folder, batch_size=22))
    flip(path, begin + 60)
    message = message_of(trainer.run, [], [])
    if 'cannot be read' in message:  # the other of the two devices was first to end
        assert '--verify' in message
    else:
        assert message.startswith(f"'{path}' is damaged: ") and f'at byte {begin}; build' in message


def test_a_training_ends_with_a_line_where_an_image_cannot_be_decoded(folder):
    write_shards(folder, BROKEN)
    message = message_of(resnet_run_loop.train, config(folder, batch_size=8))
    assert 'imagenet cannot be decoded; find it with' in message


def test_an_image_that_the_decoder_refuses(folder):
    write_shards(folder, BROKEN)
    for view in (None, lambda jpeg: tf.ensure_shape(tf.io.decode_jpeg(jpeg, channels=3), [16, 16, 3])):
        message = message_of(read_all, open_train(folder), view)
        assert 'imagenet cannot be decoded; find it with' in message and '--verify' in message


def large(count):
    """Return the beginning of a JPEG of 60000 x 60000 pixels, with `count` comments of 60 kB before its size."""
    comment = b'\xff\xfe' + (60_000).to_bytes(2, 'big') + bytes(59_998)
    frame = b'\xff\xc0\0\x11\x08\xea\x60\xea\x60\3\1\x22\0\2\x11\1\3\x11\1'
    return b'\xff\xd8' + count * comment + frame + b'\xff\xda'


@pytest.mark.parametrize(
    'data, text',
    [
        (large(0), '60000 x 60000 pixels are too many'),
        (large(3), '60000 x 60000 pixels are too many'),
        (b'\xff\xd8 no image', 'no end of image'),
    ],
)
def test_a_jpeg_whose_header_is_refused_is_named_with_its_shard_before_it_is_decoded(folder, data, text):
    paths = write_shards(folder, [*IMAGES[:5], (data, 2, [])])
    split = open_train(folder)
    message = message_of(read_all, split)
    assert message.startswith(f"'{paths[3]}' has a record at byte {int(split.source._begins[5])} ") and text in message


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'PPM'])
def test_an_image_that_is_not_a_jpeg_is_named_with_its_shard_and_the_remedy(folder, kind):
    paths = write_shards(folder, [*IMAGES[:5], (odd_images.encode(odd_images.SHOWN, kind), 2, [])])
    split = open_train(folder)
    begin = int(split.source._begins[5])

    def train():
        with split.input_errors():
            list(split.training_batches(6))

    for message in (message_of(read_all, split), message_of(train)):
        assert message.startswith(f"'{paths[3]}' has a record at byte {begin} ") and 'build_image_data.py' in message
        assert ('begins with 0x50360a33' if kind == 'PPM' else kind) in message


@pytest.mark.parametrize('layout', ['imagenet', 'folder'])
def test_own_images_are_turned_and_ilsvrc_is_not(folder, layout):
    """Those of shards that were built before build_image_data turned images, too."""
    data, stored = odd_images.with_exif('JPEG', 6)
    write_shards(folder, [(data, 2, [])] * 2, 'test', 2)
    path = folder / 'validation.manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'layout': layout}))
    size = odd_images.SIZE
    views = Views(size, size, size, resize='antialias')
    split = datasets.open_split('imagenet', 'test', data_dir=folder, views=views)
    assert split.views.uses_exif == (layout == 'folder')
    expected = odd_images.SHOWN if layout == 'folder' else stored
    np.testing.assert_allclose(split.example_images(1)[0], expected, atol=4)
    forced = datasets.open_split('imagenet', 'test', data_dir=folder, views=dataclasses.replace(views, uses_exif=False))
    np.testing.assert_allclose(forced.example_images(1)[0], stored, atol=4)


@pytest.mark.parametrize('label', [None, 0, 7, 2**40])
def test_a_record_without_an_image_or_with_a_label_of_no_class_is_refused(folder, label):
    path = folder / 'train-00000-of-00004'
    features = {'something': 1} if label is None else {'image/encoded': IMAGES[0][0], 'image/class/label': label}
    path.write_bytes(tfrecords.frame(tfrecords.encode_example(features)))
    message = message_of(read_all, open_train(folder))
    assert message.startswith(f"'{path}' ")
    assert ('image/encoded; pass' if label is None else f'label {label}, not 1..6; put the manifest') in message


BLAMELESS = [
    tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating an image, [[{{node decode_image/DecodeJpeg}}]]'),
    tf.errors.UnavailableError(None, None, 'the worker with /images/decode_image/x.jpeg is gone'),
    tf.errors.InvalidArgumentError(None, None, 'Incompatible shapes: JPEG images, [[{{node image/jpeg/MatMul}}]]'),
]


@pytest.mark.parametrize('error', BLAMELESS, ids=lambda error: type(error).__name__)
def test_images_are_blamed_for_what_their_decoder_says_alone(folder, error):
    for split in (in_memory.InMemorySplit(None, None, 0, '', (), 'none'), open_train(folder)):
        with pytest.raises(type(error)) as caught, split.input_errors():
            raise error
        assert caught.value is error


def test_a_log_line_before_what_takes_long(tmp_path):
    lines = []
    for num_shards in (100, 101):
        write_shards(tmp_path / f'{num_shards}', IMAGES, num_shards=num_shards)
        open_shards(tmp_path / f'{num_shards}', log=lines.append)
    assert len(lines) == 1 and f'101 shards in {tmp_path}' in lines[0]
