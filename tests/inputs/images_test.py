"""The rules of decoding, format by format, and how far the two decoders differ on real images."""

import os

import numpy as np
import pytest
import tensorflow as tf
from fixtures.ilsvrc import sample
from fixtures.imagenet_shards import encoded as file_of
from PIL import Image

from official_resnet.inputs import encoded, images
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
        with pytest.raises(ValueError, match='cannot identify'):
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
    np.testing.assert_array_equal(pixels(Image.fromarray(grey.astype(np.int32)), rules, 'L'), grey >> 8)  # mode I
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
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:, :4] = 255  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    got = pixels(file_of(stored, kind, exif=exif), rules)
    np.testing.assert_allclose(got, stored if rules is SHARDS else stored.swapaxes(0, 1), atol=4)


@RULES
def test_inks_without_adobes_marker(rules):
    """As they are, or taken for inverted as Photoshop writes them; TensorFlow has them as they are."""
    data = file_of(Image.new('CMYK', (8, 8), (255, 0, 0, 0)), 'JPEG', quality=100)  # cyan
    place = data.index(b'\xff\xee')
    plain = data[:place] + data[place + 16 :]
    np.testing.assert_allclose(pixels(data, rules)[4, 4], (0, 255, 255), atol=2)
    expected = (0, 255, 255) if rules.inverts_all_cmyk else tf.io.decode_jpeg(plain, channels=3)[4, 4]
    np.testing.assert_allclose(pixels(plain, rules)[4, 4], expected, atol=2)


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
    assert images.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
    monkeypatch.setattr(images, 'MAX_PIXELS', 20)
    for kind in ('PNG', 'JPEG'):
        data = file_of(Image.new('RGB', (7, 3)), kind)
        for function in (images.to_rgb_jpeg, lambda data: images.decode(data, FOLDER)):
            with pytest.raises(ValueError, match='7 x 3|21 pixels'):
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
