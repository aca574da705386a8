"""IDX, the format of MNIST: the documented layout, plain and packed files, and every way a file can be wrong."""

import gzip
import re
import struct
import tracemalloc

import numpy as np
import pytest
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from fixtures.batches import message_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from official_resnet.errors import UserError
from official_resnet.inputs import idx

HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])  # of two images of 28 x 28
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])
IMAGES = HEADER + bytes(1568)


@quick
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    is_packed=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32),
)
def test_a_big_endian_header_and_rows_of_bytes_packed_or_not(labels, size, is_packed, seed):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), *size), np.uint8)
    pair = struct.pack('>HBB3I', 0, 8, 3, *images.shape) + images.tobytes(), LABELS[:7] + bytes([len(labels), *labels])
    pair = [gzip.compress(data) if packed else data for data, packed in zip(pair, is_packed, strict=True)]
    with files(*pair) as paths:
        read_images, read_labels = idx.read_idx(*paths, image_size=size)
    assert read_images.dtype == np.uint8 and read_labels.dtype == np.int32 and read_labels.tolist() == labels
    np.testing.assert_array_equal(read_images, images[..., None])


@settings(quick, max_examples=100)
@given(packed=st.booleans(), is_labels=st.booleans(), edits=EDITS)
def test_a_changed_idx_file_is_read_whole_or_refused(packed, is_labels, edits):
    pair = [IMAGES, LABELS]
    pair[is_labels] = edited(gzip.compress(pair[is_labels], mtime=0) if packed else pair[is_labels], edits)
    with files(*pair) as paths:
        try:
            images, labels = idx.read_idx(*paths)
        except UserError as error:
            assert refused(error, *paths)
        else:
            assert images.shape == (2, 28, 28, 1) and labels.shape == (2,) and labels.max() <= 9
            if packed and pair[is_labels][:2] == b'\x1f\x8b':  # the checksum covers all but the header of gzip
                assert not images.any() and labels.tolist() == [7, 9]


@quick
@given(
    kind=st.sampled_from([8, 8, 8, 9, 0xFF]),
    num_dimensions=st.sampled_from([0, 1, 3, 3, 4]),
    packed=st.booleans(),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 28, 1 << 16, (1 << 32) - 1]), min_size=4, max_size=4),
    surplus=st.integers(-3, 3),
    rest=st.binary(max_size=8),
)
@example(8, 3, True, [2, 28, 28, 0], 0, b'')
@example(8, 3, True, [2, 28, 28, 0], 0, b'\0' * 8)
def test_any_idx_header_is_read_as_declared_or_refused(kind, num_dimensions, packed, shape, surplus, rest):
    """Also one that promises gigabytes, which takes no memory, and gzip files with something behind."""
    declared = shape[:num_dimensions]
    size = int(np.prod(declared, dtype=object)) if declared else 0
    data = struct.pack(f'>HBB{num_dimensions}I', 0, kind, num_dimensions, *declared)
    data += bytes(max(0, min(size + surplus, 1 << 16)))
    data = gzip.compress(data, mtime=0) + rest if packed else data
    with files(data, struct.pack('>HBBI', 0, 8, 1, 2) + b'\1\2') as paths:
        try:
            images, found = idx.read_idx(*paths)
        except UserError as error:
            assert refused(error, *paths)
            assert (kind, declared) != (8, [2, 28, 28]) or surplus or rest.strip(b'\0')
        else:
            assert (kind, declared, found.tolist()) == (8, [2, 28, 28], [1, 2]) and images.shape == (2, 28, 28, 1)


@pytest.mark.parametrize(
    'images, pattern',
    [
        (b'<html>', '0x3c68746d; replace it'),
        (b'\0\0\x0d\x03' + IMAGES[4:], '0x0d .* 0x08'),  # floats
        (HEADER[:15] + b'\x1b' + bytes(1512), '28 x 27, not 28 x 28; replace it'),
        (IMAGES[:-1], 'after 1567 of the 1568 bytes .*; replace it'),
        (gzip.compress(IMAGES, mtime=0)[:-9], 'gzip file .*; replace it'),
    ],
)
def test_wrong_idx_files_are_named_with_the_fault_and_the_remedy(images, pattern):
    with files(images, LABELS) as paths:
        assert re.match(f"'{paths[0]}' .*{pattern}", message := message_of(idx.read_idx, *paths)), message


@pytest.mark.parametrize('count', [b'\0\0\0\2', b'\0\x14\0\0'])
def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(count):
    """64 MB of zeros in 64 kB: with a header of 2 images, and of 1,310,720 (1 GB), which must not be believed."""
    with files(gzip.compress(HEADER[:4] + count + HEADER[8:] + bytes(64_000_000), 9), LABELS) as paths:
        tracemalloc.start()
        assert re.search('more than|after 64000000 of the 1027604480 bytes', message_of(idx.read_idx, *paths))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (1e6 if count[-1] else 200e6), peak
