"""IDX, the format of MNIST: round trips, the documented layout, and every way a file can be wrong."""

import gzip
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet import errors
from official_resnet.inputs import idx, writers

HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])  # of two pictures of 28 x 28
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])
PICTURES = HEADER + bytes(1568)


def write_pair(folder, images=PICTURES, labels=LABELS):
    """Write two files of these bytes (None: none) and return their paths."""
    paths = Path(folder, 'images'), Path(folder, 'labels')
    for path, data in zip(paths, (images, labels), strict=True):
        if data is not None:
            path.write_bytes(data)
    return paths


def test_idx_is_a_big_endian_header_and_rows_of_bytes(tmp_path):
    values = bytes(range(6)) + bytes([250, 251, 252, 253, 254, 255])
    images, labels = idx.read_idx(
        *write_pair(tmp_path, bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + values), image_size=(2, 3)
    )
    assert images.dtype == np.uint8 and images.shape == (2, 2, 3, 1)
    assert images[..., 0].tolist() == [[[0, 1, 2], [3, 4, 5]], [[250, 251, 252], [253, 254, 255]]]
    assert labels.dtype == np.int32 and labels.tolist() == [7, 9]


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    suffixes=st.tuples(*[st.sampled_from(['', '.gz'])] * 2),
    renamed=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_reading_idx_gives_back_what_was_written(labels, size, suffixes, renamed, seed):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), *size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f'{name}{suffix}') for name, suffix in zip(('i', 'l'), suffixes, strict=True)]
        for path, values in zip(paths, (images, np.uint8(labels)), strict=True):
            writers.write_idx(path, values)
            assert (path.read_bytes()[:2] == b'\x1f\x8b') == (path.suffix == '.gz')
        if renamed:  # the bytes tell, not the name
            paths = [path.rename(path.with_suffix('.gz' if path.suffix == '' else '')) for path in paths]
        read_images, read_labels = idx.read_idx(*paths, image_size=size)
    np.testing.assert_array_equal(read_images[..., 0], images)
    assert read_labels.tolist() == labels


@settings(max_examples=200, deadline=None)
@given(
    packed=st.booleans(),
    is_labels=st.booleans(),
    place=st.integers(0, 2**16),
    cut=st.integers(0, 2**16),
    junk=st.binary(max_size=4),
)
def test_a_changed_idx_file_is_read_whole_or_refused_in_one_line(packed, is_labels, place, cut, junk):
    pair = [PICTURES, LABELS]
    data = gzip.compress(pair[is_labels], mtime=0) if packed else pair[is_labels]
    place %= len(data) + 1
    pair[is_labels] = data[:place] + junk + data[place + cut % (len(data) + 1) :]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pair(folder, *pair)
        try:
            images, labels = idx.read_idx(*paths)
        except errors.UserError as error:
            assert '\n' not in str(error) and any(f"'{path}' " in str(error) for path in paths)
        else:
            assert images.shape == (2, 28, 28, 1) and labels.shape == (2,) and labels.max() <= 9
            if packed:  # only what the checksum does not cover may differ: the header of gzip
                assert not images.any() and labels.tolist() == [7, 9]


PACKED = gzip.compress(PICTURES)
WRONG_IDX = {
    'missing': (None, 'does not exist; pass another --data_dir'),
    'empty': (b'', 'is no IDX file: it begins with 0x; replace it'),
    'a web page': (b'<html>', 'is no IDX file: it begins with 0x3c68746d; replace it'),
    'low byte first': (b'\x03\x08\0\0', 'is no IDX file: it begins with 0x03080000'),
    'floats': (b'\0\0\x0d\x03' + PICTURES[4:], 'has type 0x0d and 3 dimensions; images have 0x08, bytes, and 3'),
    'labels': (LABELS, 'has type 0x08 and 1 dimensions; images have'),
    'half a header': (HEADER[:10], 'is cut off in its header, after 10 bytes; replace'),
    'no pictures': (HEADER[:7] + b'\0' + HEADER[8:], 'declares 0 x 28 x 28 bytes of images, outside 1..'),
    '2**31 pictures': (HEADER[:4] + b'\x80\0\0\0' + HEADER[8:], 'declares 2147483648 x 28 x 28 bytes of images'),
    '27 columns': (HEADER[:15] + b'\x1b' + bytes(1512), 'has images of 28 x 27, not 28 x 28; replace it'),
    'cut off': (PICTURES[:-1], 'is cut off after 1567 of the 1568 bytes that its header declares; replace it'),
    'too long': (PICTURES + b'x', 'has more than the 1568 bytes that its header declares; replace it'),
    'packed, cut off': (PACKED[:-9], 'is a damaged gzip file .*; replace it'),
    'packed, changed': (PACKED[:-8] + b'abcd' + PACKED[-4:], r'is a damaged gzip file \(CRC check failed'),
    'packed, and more': (PACKED + b'more', 'is a damaged gzip file'),
    'packed, too long': (gzip.compress(PICTURES + bytes(9)), 'has more than the 1568 bytes'),
    'packed, too short': (gzip.compress(PICTURES[:-9]), 'is cut off after 1559 of the 1568 bytes'),
    'packed twice': (gzip.compress(PACKED), 'is no IDX file: it begins with 0x1f8b'),
}


@pytest.mark.parametrize('content, message', WRONG_IDX.values(), ids=WRONG_IDX)
def test_wrong_idx_file_is_one_line_with_its_name_and_the_remedy(tmp_path, content, message):
    images, labels = write_pair(tmp_path, content)
    with pytest.raises(errors.UserError, match=message) as caught:
        idx.read_idx(images, labels)
    assert str(caught.value).startswith(f"'{images}' ") and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'labels, message',
    [
        (b'\0\0\x08\x01\0\0\0\x03\1\2\3', "images' has 2 images, '.*/labels' 3 labels; take both"),
        (LABELS[:-1] + b'\x0a', r"labels' has label 10 at 1 \(counted from 0\), outside 0\.\.9; replace it"),
        (PICTURES, 'has type 0x08 and 3 dimensions; labels have 0x08, bytes, and 1'),
    ],
)
def test_labels_must_fit_the_pictures(tmp_path, labels, message):
    with pytest.raises(errors.UserError, match=message):
        idx.read_idx(*write_pair(tmp_path, labels=labels))


def test_idx_folder_in_place_of_a_file(tmp_path):
    images, labels = write_pair(tmp_path)
    labels.unlink()
    labels.mkdir()
    with pytest.raises(errors.UserError, match=r"labels' cannot be read \(Is a directory\); make it"):
        idx.read_idx(images, labels)


@pytest.mark.parametrize('count', [b'\0\0\0\2', b'\0\x14\0\0'])
def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path, count):
    """64 MB of zeros in 64 kB: with a header of 2 pictures, and of 1,310,720 (1 GB), which must not be believed."""
    bomb = gzip.compress(HEADER[:4] + count + HEADER[8:] + bytes(64_000_000), 9)
    images, labels = write_pair(tmp_path, bomb)
    tracemalloc.start()
    with pytest.raises(errors.UserError, match='has more than|is cut off after 64000000 of the 1027604480 bytes'):
        idx.read_idx(images, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1e6 if count[-1] else 200e6), peak


@pytest.mark.parametrize('values', [np.zeros((2, 3), np.uint8), np.zeros(3), np.zeros((1, 2, 2, 1), np.uint8)])
def test_idx_writer_refuses_what_is_neither_pictures_nor_labels(tmp_path, values):
    with pytest.raises(ValueError, match='must be uint8'):
        writers.write_idx(tmp_path / 'x', values)
    assert not (tmp_path / 'x').exists()
