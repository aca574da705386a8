"""The rules of decoding, odd images through every door, and how far the two decoders differ on real images."""

import concurrent.futures
import dataclasses
import errno
import io
import os
import threading

import numpy as np
import pytest
import tensorflow as tf
from fixtures.any_bytes import EDITS, edited, quick
from fixtures.batches import message_of
from fixtures.ilsvrc import sample
from fixtures.imagenet_shards import encoded as file_of
from fixtures.odd_images import SHOWN, SIZE, odd_images, with_exif, without_adobe
from hypothesis import example, given
from PIL import Image

from official_resnet import bounds, resnet_spec
from official_resnet.building import image_list, shards
from official_resnet.building.records import Options
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, predict
from official_resnet.inputs import encoded, image_folder, images, jpeg, streamed, tfrecords
from official_resnet.inputs.images import FOLDER, PREDICTION, SHARDS
from official_resnet.inputs.views import Views

RED = (200, 30, 60)
RULES = pytest.mark.parametrize('rules', [FOLDER, PREDICTION, SHARDS], ids=['folder', 'prediction', 'shards'])


def pixels(source, rules, mode='RGB'):
    return np.asarray(images.decode(source, rules, mode))


@RULES
@pytest.mark.parametrize(
    'kind,mode,options',
    [
        ('PNG', 'RGBA', {}),
        ('PNG', 'P', {'transparency': bytes(256)}),
        ('JPEG', 'RGB', {'quality': 100}),
        ('JPEG', 'CMYK', {'quality': 100}),
        ('GIF', 'P', {'transparency': 0}),
        ('BMP', 'RGB', {}),
        ('WEBP', 'RGBA', {'lossless': True}),
        ('TIFF', 'CMYK', {}),
        ('PPM', 'RGB', {}),
    ],
)
def test_formats_and_modes(rules, kind, mode, options, tmp_path):
    data = file_of(Image.new('RGB', (8, 6), RED).convert(mode), kind, **options)
    path = tmp_path / 'whatever.jpg'  # names tell nothing
    path.write_bytes(data)
    if rules.formats and kind not in rules.formats:
        with pytest.raises(ValueError, match='known format.*JPEG'):
            images.decode(path, rules)
        return
    for source in (path, str(path), data, Image.open(path)):
        got = pixels(source, rules)
        assert got.shape == (6, 8, 3) and got.dtype == np.uint8
        # A palette of GIF or PNG has 216 colours, at distances of 51; JPEG and WebP round.
        np.testing.assert_allclose(got[4, 4], RED, atol=26 if mode == 'P' else 4)


@RULES
@pytest.mark.parametrize('kind,mode', [('PNG', 'L'), ('JPEG', 'L'), ('PNG', 'LA'), ('PNG', '1'), ('PNG', 'RGB')])
def test_grey(rules, kind, mode):
    data = file_of(Image.new('RGB', (8, 8), (255, 255, 255)).convert(mode), kind)
    np.testing.assert_array_equal(pixels(data, rules), np.full((8, 8, 3), 255))
    np.testing.assert_array_equal(pixels(data, rules, 'L'), np.full((8, 8), 255))


@RULES
def test_all_greys_of_16_bits_keep_their_upper_byte(rules):
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(pixels(file_of(Image.fromarray(grey), 'PNG'), rules, 'L'), grey >> 8)
    wide = Image.fromarray(grey.astype(np.int32))  # mode I
    np.testing.assert_array_equal(pixels(wide, rules, 'L'), grey >> 8)
    with pytest.raises(ValueError, match='32 bits or with a sign'):
        images.decode(wide.point(lambda value: value + 1), rules)
    if not rules.formats:  # TIFF, in either byte order
        for dtype in ('<u2', '>u2'):
            tiff = file_of(Image.fromarray(grey.astype(dtype)), 'TIFF')
            np.testing.assert_array_equal(pixels(tiff, rules)[..., 1], grey >> 8)


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1), (2, 3, 3)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(pixels(array, PREDICTION), np.broadcast_to(array.reshape(2, 3, -1), (2, 3, 3)))


@RULES
@pytest.mark.parametrize('kind', ['GIF', 'WEBP'])
def test_first_frame_of_an_animation(rules, kind):
    frames = [Image.new('RGB', (4, 4), (level, level, level)) for level in (0, 255)]
    assert pixels(file_of(frames[0], kind, save_all=True, append_images=frames[1:]), rules).max() < 5


@RULES
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_exif_orientation(rules, kind):
    for orientation in range(1, 9):
        data, stored = with_exif(kind, orientation)
        np.testing.assert_allclose(pixels(data, rules), stored if rules is SHARDS else SHOWN, atol=4)


@RULES
def test_inks_without_adobes_marker(rules):
    """As TensorFlow and libjpeg read them: only Adobe's are inverted."""
    for data in (row := without_adobe(odd_images()['CMYK, Adobe'][1]), odd_images()['CMYK, no marker'][1]):
        expected = tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE')
        np.testing.assert_allclose(pixels(data, rules), expected, atol=4)
    assert pixels(row, rules).max() < 5  # black: the ink that Adobe's marker inverts is none


# --- every door --------------------------------------------------------------------------------------------------

# No resizing; the only training crop is the whole image, and it is not mirrored.
VIEWS = Views(SIZE, SIZE, SIZE, 1.0, False, 'antialias', uses_exif=True)
CARD = card_reader.Card(
    resnet_spec.ResNetSpec((1, 1)), 2, ('a', 'b'), (None, None), 'none', 3, (SIZE, SIZE), (SIZE, SIZE), SIZE
)
TEST_VIEW = tf.function(lambda data: encoded.test_view(data, VIEWS), input_signature=[tf.TensorSpec([], tf.string)])
TRAIN_VIEW = tf.function(
    lambda data: encoded.train_view(data, tf.zeros([0, 4]), [0, 0], VIEWS, flip=False),
    input_signature=[tf.TensorSpec([], tf.string)],
)


def streamed_file(path):
    return streamed.Files([path], [0]).read([0])[0]


def built(path):
    """Return the JPEG in a shard of build_image_data."""
    found, file = image_list.from_folders(path.parent.parent, [path.parent.name], ['.jpg']), io.BytesIO()
    shards.build_shard(found, 0, 1, Options(layout='folder', on_broken='fail'), file)
    record = file.getvalue()[tfrecords.HEADER_BYTES : -tfrecords.FOOTER_BYTES]
    return tfrecords.decode_example(record)['image/encoded'][0]


DOORS = {  # name -> (formats, function of a path)
    'folder in memory': (images.FORMATS, lambda path: image_folder.decode(path, SIZE)),
    'training': (images.FORMATS, lambda path: TRAIN_VIEW(streamed_file(path))),
    'evaluation': (images.FORMATS, lambda path: TEST_VIEW(streamed_file(path))),
    'builder': (images.FORMATS, lambda path: tf.io.decode_jpeg(built(path), dct_method='INTEGER_ACCURATE')),
    'serving': (('JPEG', 'PNG'), lambda path: TEST_VIEW(path.read_bytes())),
    'prediction': ((*images.FORMATS, 'TIFF'), lambda path: predict.prepare(path, CARD)),
}


@pytest.mark.parametrize('door', DOORS)
def test_odd_images_are_the_same_through_every_door(door, tmp_path):
    """They are refused where their format is, or their values have no scale. Encoding as JPEG changes 4 of 255."""
    formats, function = DOORS[door]
    for i, (name, (kind, data, shown)) in enumerate(odd_images().items()):
        path = tmp_path / 'images' / f'{i}' / '0.jpg'
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        if shown is None or kind not in formats:
            with pytest.raises((ValueError, UserError, tf.errors.InvalidArgumentError)):
                print(f'{name} is accepted', function(path))
        else:
            np.testing.assert_allclose(np.asarray(function(path)).astype(int), shown, atol=4, err_msg=name)


def test_the_card_decides_whether_prediction_turns_an_image():
    data, stored = with_exif('PNG', 6)
    for uses_exif, expected in ((True, SHOWN), (False, stored)):
        card = dataclasses.replace(CARD, uses_exif=uses_exif)
        np.testing.assert_array_equal(predict.prepare(Image.open(io.BytesIO(data)), card), expected)


@pytest.mark.parametrize('order', '<>')
def test_both_parsers_of_exif_agree_on_any_bytes(order):
    """Python's, for images that Pillow decodes, and that of TensorFlow's ops; neither fails."""
    data = with_exif('PNG', 6, order)[0]
    exif = data[data.index(b'eXIf') + 4 :][:50]
    parse = tf.function(encoded.orientation, input_signature=[tf.TensorSpec([], tf.string)])
    seen = set()

    @quick
    @given(EDITS)
    @example([])
    @example([(18, 2, b'\0\4')])
    def check(edits):
        block = edited(exif, edits)[:60000]
        size = len(block)
        expected = jpeg.orientation(b'Exif\0\0' + block)
        seen.add(expected)
        start = b'\xff\xd8\xff\xe0\0\4ab\xff\xe1' + (size + 8).to_bytes(2, 'big') + b'Exif\0\0'
        for size_of_rest in (8, encoded.SEARCHED_BYTES):
            assert parse(start + block + b'\xff\xda' + bytes(size_of_rest)) == expected
        assert parse(b'\x89PNG\r\n\x1a\n' + size.to_bytes(4, 'big') + b'eXIf' + block + bytes(4)) == expected
        assert 1 <= parse(edited(data, edits)) <= 8

    check()
    assert {1, 6} <= seen


# --- memory ------------------------------------------------------------------------------------------------------


def test_threads_decode_a_number_of_pixels_at_a_time(monkeypatch):
    monkeypatch.setattr(images, '_BUDGET', images._Budget(100))
    data = [file_of(Image.new('RGB', (side, side)), 'PNG') for side in (5, 6, 7, 20, 5, 3, 8, 20, 9)]
    used, barrier = [], threading.Event()

    def finish(image):
        used.append((images._BUDGET.used, image.width**2))
        barrier.wait(0.02)  # so that others would run
        return image.width

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda one: images.decode(one, FOLDER, finish=finish), data))
    assert found == [5, 6, 7, 20, 5, 3, 8, 20, 9] and images._BUDGET.used == 0
    assert all(total <= 100 or total == own == 400 for total, own in used), used
    assert max(total for total, own in used if own < 400) > 49  # of several at the same time


def test_an_upright_rgb_image_is_not_copied(monkeypatch):
    for name in ('convert', 'copy', 'transpose'):
        monkeypatch.setattr(Image.Image, name, None)
    for kind in ('PNG', 'JPEG'):
        assert images.decode(file_of(SHOWN, kind), PREDICTION).size == (SIZE, SIZE)


def test_a_huge_jpeg_is_reduced_as_it_is_decoded(tmp_path, monkeypatch):
    """To no less than twice the size that is needed, and to the same image within 3 of 255."""
    y, x = np.mgrid[:400, :600] / 400
    smooth = np.stack([x * 160, y * 250, 120 + 60 * np.sin(9 * x)], -1).astype(np.uint8)
    (tmp_path / 'a.jpg').write_bytes(file_of(smooth, quality=100))
    card = dataclasses.replace(CARD, size=(28, 28), net_size=(28, 28))
    doors = [lambda: image_folder.decode(tmp_path / 'a.jpg', 32), lambda: predict.prepare(tmp_path / 'a.jpg', card)]
    whole = [door().astype(int) for door in doors]
    monkeypatch.setattr(images, 'DRAFT_PIXELS', 1000)
    for least, size in ((None, (600, 400)), (32, (150, 100)), (101, (600, 400))):
        assert images.decode(tmp_path / 'a.jpg', FOLDER, least=least).size == size
    for door, expected in zip(doors, whole, strict=True):
        np.testing.assert_allclose(door(), expected, atol=3)


@RULES
def test_what_cannot_be_decoded_is_a_reason_in_one_line(rules, tmp_path):
    whole = file_of(Image.effect_noise((64, 64), 90))
    program = file_of(Image.new('RGB', (8, 8)), 'EPS')  # which Ghostscript would run
    for data in (whole[:900], b'hello', b'', program):
        with pytest.raises(ValueError, match='^[^\n<]+$'):
            images.decode(data, rules)
    for path, reason in ((tmp_path / 'none.png', 'No such file or directory'), (tmp_path, 'Is a directory')):
        with pytest.raises(ValueError, match=f'^{reason}$'):
            images.decode(path, rules)


def test_both_decoders_refuse_what_has_too_many_pixels(monkeypatch):
    assert bounds.limit('image_pixels') < 2 * Image.MAX_IMAGE_PIXELS  # which Pillow refuses
    for row, value in (('image_pixels', 20), ('image_side', 6)):
        with monkeypatch.context() as patch:
            patch.setitem(bounds.BOUNDS, row, bounds.BOUNDS[row]._replace(value=value))
            for kind in images.FORMATS:
                data = file_of(Image.new('RGB', (7, 3)), kind)
                for function in (images.to_rgb_jpeg, lambda data: images.decode(data, FOLDER)):
                    with pytest.raises(ValueError, match=f'7 x 3 pixels are too many; at most {value} pixels'):
                        function(data)


def test_the_two_decoders_agree_on_real_images():
    """TensorFlow's accurate transform gives Pillow's very pixels; its fast one other ones, by a little."""
    greatest, means = [], []
    for _, data in [*sample().values()][::3]:
        expected = pixels(data, SHARDS).astype(int)
        np.testing.assert_array_equal(encoded.decode_jpeg(data, Views(resize='antialias')), expected)
        difference = np.abs(encoded.decode_jpeg(data, Views(resize='tf1')).numpy() - expected)
        greatest.append(difference.max())
        means.append(difference.mean())
    assert 0 < max(greatest) <= 24 and max(means) < 2.1 and np.mean(means) < 1.3


def test_files_are_found_by_their_bytes(tmp_path):
    for name in ('b/1.JPG', 'a/2.png', 'a/c/3.webp', 'a/._2.png', 'a/4.tif', 'a/5.txt', 'jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for kind in images.FORMATS:
        Image.new('RGB', (2, 2)).save(tmp_path / f'{kind}.download', kind)
    (tmp_path / 'bmw.txt').write_text('BMW makes cars.')
    os.mkfifo(tmp_path / 'fifo')

    def found(*is_wanted):
        return [
            sorted(path.relative_to(tmp_path).as_posix() for path in paths)
            for paths in images.find_files(tmp_path, *is_wanted)
        ]

    by_bytes = [f'{kind}.download' for kind in images.FORMATS]
    others = ['a/5.txt', 'bmw.txt', 'fifo', 'jpg']
    assert found() == [[*by_bytes, 'a/2.png', 'a/4.tif', 'a/c/3.webp', 'b/1.JPG'], others]
    assert found(images.is_jpeg_name)[0] == ['b/1.JPG']


def test_folders_of_tools_are_left_out_and_links_are_followed_once(tmp_path):
    for name in ('a/1.png', 'a/.ipynb_checkpoints/1.png', 'a/@eaDir/1.png', 'a/__MACOSX/1.png', 'else/2.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'a' / 'more').symlink_to(tmp_path / 'else')
    (tmp_path / 'else' / 'back').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'all').symlink_to(tmp_path)  # which has the other classes
    (tmp_path / 'a' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    found, others = images.find_files(tmp_path / 'a')
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found) == ['a/1.png', 'a/more/2.png']
    assert others == [tmp_path / 'a' / 'gone.png']


@pytest.mark.parametrize('at', ['', 'cat', 'cat/old'])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, at):
    """Its images would be missing in silence. Root can read everything, so the error is simulated."""
    for name in ('cat/1.png', 'cat/old/2.png', 'dog/3.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (2, 2)).save(tmp_path / name)
    scan = os.scandir

    def refuse(path):
        if os.fspath(path) == str(tmp_path / at):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    for read in (images.find_files, image_folder.list_files):
        message = message_of(read, tmp_path)
        assert f"'{tmp_path / at}' cannot be read" in message and 'chmod' in message and '\n' not in message
