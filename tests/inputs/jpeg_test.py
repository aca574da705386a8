"""What bytes are, and odd pictures as RGB JPEGs: every format and mode, against tf.io.decode_jpeg; damage."""

import io

import numpy as np
import pytest
import tensorflow as tf
from fixtures.ilsvrc import sample
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from official_resnet.inputs import images, jpeg

COLOUR = (200, 30, 60)


def encode(mode='RGB', kind='JPEG', size=(24, 16), **options):
    """Return a picture of one colour, as bytes."""
    buffer = io.BytesIO()
    Image.new('RGB', size, COLOUR).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    """Return what TensorFlow reads, uint8 [height, width, 3]."""
    return tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE').numpy()


def without(data, marker):
    """Return a JPEG without its first segment of that marker."""
    place = data.index(bytes([0xFF, marker]))
    return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], 'big') :]


def adobe(data, transform):
    """Return a JPEG with Adobe's marker and without JFIF's."""
    return b'\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00' + bytes([transform]) + without(data, 0xE0)[2:]


@pytest.mark.parametrize(
    'options',
    [
        {'quality': 90},
        {'progressive': True},
        {'restart_marker_blocks': 2},
        {'optimize': True},
        {'subsampling': 2},
        {'comment': b'\xff\xd9 in a comment'},
        {'exif': b'Exif\0\0\xff\xd8\xff\xd9'},
        {'keep_rgb': True},
    ],
)
def test_an_rgb_jpeg_stays_as_it_is(options):
    data = encode(size=(70, 40), **options)
    info = jpeg.inspect(data)
    assert (info.format, info.width, info.height, info.components, info.precision) == ('JPEG', 70, 40, 3, 8)
    assert info.is_whole and info.colour == ('RGB' if 'keep_rgb' in options else 'YCbCr')
    assert info.frame == (0xC2 if 'progressive' in options else 0xC0)
    got, width, height = images.to_rgb_jpeg(data, check='decode')
    assert got is data and (width, height) == (70, 40)
    assert pixels(data).shape == (40, 70, 3)


def test_adobe_marker_of_three_components():
    assert jpeg.inspect(adobe(encode(), 1)).colour == 'YCbCr'
    data = adobe(encode(keep_rgb=True, quality=100) if b'JFIF' in encode(keep_rgb=True) else encode(), 0)
    assert jpeg.inspect(data).colour == 'RGB' and images.to_rgb_jpeg(data)[0] is data and pixels(data).shape[-1] == 3


def test_bytes_after_the_end_are_left_alone():
    data = encode() + b'garbage \xff\xd8\xff'
    assert jpeg.inspect(data).is_whole and images.to_rgb_jpeg(data)[0] is data


@pytest.mark.parametrize(
    'mode,kind,options',
    [
        ('RGB', 'PNG', {}),
        ('RGBA', 'PNG', {}),
        ('P', 'PNG', {'transparency': bytes(256)}),
        ('P', 'GIF', {}),
        ('RGB', 'BMP', {}),
        ('P', 'BMP', {}),
        ('RGB', 'WEBP', {'lossless': True}),
        ('RGBA', 'WEBP', {'lossless': True}),
        ('CMYK', 'JPEG', {'quality': 100}),
        ('CMYK', 'JPEG', {'quality': 100, 'progressive': True}),
    ],
)
def test_other_formats_become_rgb(mode, kind, options):
    data = encode(mode, kind, **options)
    assert jpeg.inspect(data).format == kind and not jpeg.inspect(data).is_rgb_jpeg
    got, width, height = images.to_rgb_jpeg(data)
    info = jpeg.inspect(got)
    assert info.is_rgb_jpeg and (info.width, info.height) == (width, height) == (24, 16)
    assert images.to_rgb_jpeg(data)[0] == got
    np.testing.assert_allclose(pixels(got)[8, 12], COLOUR, atol=26 if mode == 'P' else 4)  # a palette has 216 colours


@pytest.mark.parametrize('mode,kind', [('L', 'JPEG'), ('L', 'PNG'), ('LA', 'PNG'), ('1', 'PNG'), ('1', 'BMP')])
def test_grey_becomes_rgb(mode, kind):
    data = encode(mode, kind, **({'quality': 100} if kind == 'JPEG' else {}))
    got = pixels(images.to_rgb_jpeg(data)[0])
    grey = np.asarray(Image.open(io.BytesIO(data)).convert('L'))
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 0] == got[..., 2]).all()
    np.testing.assert_allclose(got[..., 0], grey, atol=3)


def gradients():
    """Return a smooth picture in all four inks, uint8 [64, 64, 4]."""
    y, x = np.mgrid[:64, :64]
    return np.stack([4 * x, 4 * y, 255 - 4 * x, 2 * (x + y) // 2], -1).astype(np.uint8)


@pytest.mark.parametrize('kind', ['adobe', 'plain', 'ycck'])
def test_cmyk_has_the_colours_that_tensorflow_reads(kind):
    buffer = io.BytesIO()
    Image.fromarray(gradients(), 'CMYK').save(buffer, 'JPEG', quality=100, subsampling=0)
    data = without(buffer.getvalue(), 0xEE) if b'Adobe' in buffer.getvalue() else buffer.getvalue()
    if kind != 'plain':
        data = b'\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00' + bytes([2 * (kind == 'ycck')]) + data[2:]
    assert jpeg.inspect(data).colour == ('YCCK' if kind == 'ycck' else 'CMYK')
    difference = np.abs(pixels(images.to_rgb_jpeg(data)[0]).astype(int) - pixels(data))
    assert difference.max() <= 8 and difference.mean() < 1.5, (difference.max(), difference.mean())


def test_png_of_16_bits_keeps_its_upper_byte():
    grey = np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, 'PNG')
    got = pixels(images.to_rgb_jpeg(buffer.getvalue())[0])
    np.testing.assert_allclose(got[..., 0], grey >> 8, atol=2)
    np.testing.assert_allclose(got, tf.io.decode_png(buffer.getvalue(), channels=3).numpy(), atol=2)


def test_rgb_png_of_16_bits():
    data = tf.io.encode_png(np.uint16(COLOUR)[None, None].repeat(8, 0).repeat(8, 1) * 257).numpy()
    np.testing.assert_allclose(pixels(images.to_rgb_jpeg(data)[0])[4, 4], COLOUR, atol=3)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP'])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new('RGB', (16, 16), (level, level, level)) for level in (255, 0)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    assert pixels(images.to_rgb_jpeg(buffer.getvalue())[0]).min() > 250


def test_exif_does_not_turn():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.to_rgb_jpeg(encode('L', exif=exif))[1:] == (24, 16)


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda data: data[: len(data) // 2], 'cut off'),
        (lambda data: data[:-2], 'no end of image'),
        (lambda data: data[:-1], 'no end of image'),
        (lambda data: data[:30], 'cut off'),
        (lambda data: b'', 'empty'),
        (lambda data: b'text', 'no JPEG, PNG'),
        (lambda data: data[:2], 'cut off'),
        (lambda data: b'\xff\xd8\xff\xd9', 'without a scan'),
        (lambda data: without(data, 0xC0), 'before the frame'),
        (lambda data: without(data, 0xDA), 'without a scan'),
        (
            lambda data: data[: data.index(b'\xff\xc0') + 5] + bytes(4) + data[data.index(b'\xff\xc0') + 9 :],
            '0 x 0 pixels',
        ),
        (lambda data: data[:2] + data, 'second image'),
        (lambda data: data[: data.index(b'\xff\xc0') + 4] + b'\x0c' + data[data.index(b'\xff\xc0') + 5 :], '12 bits'),
        (
            lambda data: data[: data.index(b'\xff\xc0') + 5] + b'\xff' * 4 + data[data.index(b'\xff\xc0') + 9 :],
            'too many',
        ),
    ],
)
def test_broken_jpegs(change, message):
    with pytest.raises(ValueError, match=message) as error:
        images.to_rgb_jpeg(change(encode()))
    assert '\n' not in str(error.value)


def test_decoding_finds_what_markers_do_not_tell():
    data = bytearray(encode())
    data[data.index(b'\xff\xc4') + 8] ^= 255  # how many codes of a length a Huffman table has
    assert images.to_rgb_jpeg(bytes(data))[0] == data
    with pytest.raises(ValueError, match='broken'):
        images.to_rgb_jpeg(bytes(data), check='decode')
    with pytest.raises(tf.errors.InvalidArgumentError):
        pixels(bytes(data))


@pytest.mark.parametrize('kind', ['PNG', 'GIF', 'WEBP', 'BMP'])
def test_broken_files_of_other_formats(kind):
    data = encode(kind=kind, size=(200, 200))
    for broken in (data[: len(data) // 2], data[:12]):
        with pytest.raises(ValueError) as error:
            images.to_rgb_jpeg(broken)
        assert '\n' not in str(error.value)


def test_the_sample_of_imagenet():
    for _, data in sample().values():
        image = Image.open(io.BytesIO(data))
        info = jpeg.inspect(data)
        assert (info.width, info.height) == image.size and info.is_whole
        assert info.is_rgb_jpeg == (image.mode == 'RGB')


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80).map(lambda data: b'\xff\xd8' + data))
@example(b'\xff\xd8\xff')
@example(b'\xff\xd8' + b'\xff' * 20)
@example(b'\xff\xd8\xff\xc0\x00\x02\xff\xd9')
@example(b'\xff\xd8\xff\xda\x00\x02\xff\xd9')
def test_garbage_raises_value_errors_only(data):
    for check in (jpeg.inspect, images.to_rgb_jpeg):
        try:
            check(data)
        except ValueError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_raises_value_errors_only(data):
    good = bytearray(encode(data.draw(st.sampled_from(['RGB', 'L', 'CMYK'])), size=(9, 9)))
    for _ in range(data.draw(st.integers(1, 5))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        images.to_rgb_jpeg(bytes(good), data.draw(st.sampled_from(['structure', 'decode'])))
    except ValueError:
        pass
