"""What bytes are, and odd images as RGB JPEGs: every format and mode, against tf.io.decode_jpeg; damage."""

import contextlib
import io
import re

import numpy as np
import pytest
import tensorflow as tf
from fixtures.any_bytes import quick
from fixtures.ilsvrc import sample
from fixtures.imagenet_shards import encoded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from official_resnet.inputs import images, jpeg

COLOUR = (200, 30, 60)


def encode(mode='RGB', kind='JPEG', size=(24, 16), **options):
    """Return an image of one colour, as bytes."""
    return encoded(Image.new('RGB', size, COLOUR).convert(mode), kind, **options)


def pixels(data):
    """Return what TensorFlow reads, uint8 [height, width, 3]."""
    return tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE').numpy()


def without(data, marker):
    """Return a JPEG without its first segment of that marker."""
    place = data.index(bytes([0xFF, marker]))
    return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], 'big') :]


def adobe(data, transform):
    """Return a JPEG with Adobe's marker in front."""
    return b'\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00' + bytes([transform]) + data[2:]


@pytest.mark.parametrize(
    'options',
    [
        {'progressive': True},
        {'restart_marker_blocks': 2, 'subsampling': 2},
        {'exif': b'Exif\0\0\xff\xd8\xff\xd9', 'comment': b'\xff\xd9 in a comment'},
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


@pytest.mark.parametrize('transform, colour', [(0, 'RGB'), (1, 'YCbCr')])
def test_adobe_marker_of_three_components(transform, colour):
    data = adobe(without(encode(), 0xE0), transform)  # and without JFIF's, which would say YCbCr
    assert jpeg.inspect(data).colour == colour and images.to_rgb_jpeg(data)[0] is data and pixels(data).shape[-1] == 3


@pytest.mark.parametrize(
    'mode,kind,options',
    [
        ('P', 'GIF', {}),
        ('RGBA', 'WEBP', {'lossless': True}),
        ('CMYK', 'JPEG', {'quality': 100, 'progressive': True}),
        ('L', 'JPEG', {'quality': 100}),
        ('LA', 'PNG', {}),
        ('1', 'BMP', {}),
    ],
)
def test_other_formats_become_rgb(mode, kind, options):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned, which is left to others
    data = encode(mode, kind, **options | ({'exif': exif} if kind == 'JPEG' else {}))
    assert jpeg.inspect(data).format == kind and not jpeg.inspect(data).is_rgb_jpeg
    got, width, height = images.to_rgb_jpeg(data)
    info = jpeg.inspect(got)
    assert info.is_rgb_jpeg and (info.width, info.height) == (width, height) == (24, 16)
    expected = images.decode(data, images.SHARDS)  # of which images_test has the rules
    np.testing.assert_allclose(pixels(got).astype(int), np.asarray(expected), atol=4)


@pytest.mark.parametrize('kind', ['adobe', 'plain', 'ycck'])
def test_cmyk_has_the_colours_that_tensorflow_reads(kind):
    y, x = np.mgrid[:64, :64]
    inks = np.stack([4 * x, 4 * y, 255 - 4 * x, 2 * (x + y) // 2], -1).astype(np.uint8)
    data = encoded(Image.fromarray(inks, 'CMYK'), quality=100, subsampling=0)
    data = without(data, 0xEE) if b'Adobe' in data else data
    data = data if kind == 'plain' else adobe(data, 2 * (kind == 'ycck'))
    assert jpeg.inspect(data).colour == ('YCCK' if kind == 'ycck' else 'CMYK')
    difference = np.abs(pixels(images.to_rgb_jpeg(data)[0]).astype(int) - pixels(data))
    assert difference.max() <= 8 and difference.mean() < 1.5, (difference.max(), difference.mean())


FRAME = encode().index(b'\xff\xc0')


@pytest.mark.parametrize(
    'broken, message',
    [
        (b'', 'empty'),
        (b'text', 'known format; save it as JPEG'),
        (b'\xff\xd8\xff\xd9', 'without a scan'),
        (without(encode(), 0xC0), 'before the frame'),
        (without(encode(), 0xDA), 'without a scan'),
        (encode()[: FRAME + 5] + bytes(4) + encode()[FRAME + 9 :], '0 x 0 pixels'),
        (encode()[:2] + encode(), 'second image'),
        (encode()[: FRAME + 4] + b'\x0c' + encode()[FRAME + 5 :], '12 bits'),
        (encode()[: FRAME + 5] + b'\xff' * 4 + encode()[FRAME + 9 :], 'too many'),
        *((encode(kind=kind, size=(200, 200))[:80], '.') for kind in ('PNG', 'GIF', 'WEBP', 'BMP')),
    ],
    ids=lambda value: value if isinstance(value, str) else len(value),
)
def test_broken_images(broken, message):
    with pytest.raises(ValueError, match=message) as error:
        images.to_rgb_jpeg(broken)
    assert '\n' not in str(error.value)


def test_decoding_finds_what_markers_do_not_tell():
    data = bytearray(encode())
    data[data.index(b'\xff\xc4') + 8] ^= 255  # how many codes of a length a Huffman table has
    assert images.to_rgb_jpeg(bytes(data))[0] == data
    with pytest.raises(ValueError, match='broken'):
        images.to_rgb_jpeg(bytes(data), check='decode')
    with pytest.raises(tf.errors.InvalidArgumentError):
        pixels(bytes(data))


def test_the_sample_of_imagenet():
    for _, data in sample().values():
        image = Image.open(io.BytesIO(data))
        info = jpeg.inspect(data)
        assert (info.width, info.height) == image.size and info.is_whole
        assert info.is_rgb_jpeg == (image.mode == 'RGB')


JPEGS = st.sampled_from([data for _, data in list(sample().values())[:20]])
SEGMENTS = st.sampled_from([b'\xff\xfe\x00\x02', b'\xff\xfe\x00\x06\xff\xd9\xff\xd8', b'\xff\xe7\x00\x05abc', b'\xff'])


@quick
@given(data=JPEGS, share=st.floats(0, 1, exclude_max=True))
def test_a_cut_jpeg_is_known_without_decoding(data, share):
    cut = data[: int(share * (len(data) - 1))]
    with contextlib.suppress(ValueError):  # inside of the header
        info = jpeg.inspect(cut)
        assert not info.is_whole and info.problem
        with pytest.raises(ValueError, match=re.escape(info.problem)):
            images.to_rgb_jpeg(cut)


@quick
@given(data=JPEGS, segments=st.lists(SEGMENTS, max_size=4), trailing=st.binary(max_size=20))
def test_segments_that_say_nothing_change_nothing(data, segments, trailing):
    """Comments, even with markers inside, private segments, fill bytes, and what stands behind the end."""
    assert jpeg.inspect(data[:2] + b''.join(segments) + data[2:] + trailing) == jpeg.inspect(data)


@st.composite
def damaged(draw):
    data = bytearray(encode(draw(st.sampled_from(['RGB', 'L', 'CMYK'])), size=(9, 9)))
    for _ in range(draw(st.integers(1, 5))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(quick, max_examples=150)
@given(
    damaged() | st.binary(max_size=80).map(lambda data: b'\xff\xd8' + data), st.sampled_from(['structure', 'decode'])
)
@example(b'\xff\xd8\xff', 'structure')
@example(b'\xff\xd8' + b'\xff' * 20, 'structure')
@example(b'\xff\xd8\xff\xc0\x00\x02\xff\xd9', 'structure')
@example(b'\xff\xd8\xff\xda\x00\x02\xff\xd9', 'structure')
def test_damage_and_garbage_raise_value_errors_only(data, check):
    with contextlib.suppress(ValueError):
        jpeg.inspect(data)
        images.to_rgb_jpeg(data, check)
