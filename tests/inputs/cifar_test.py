"""The CIFAR binary format: round trips, the documented layout, and every way a file can be wrong."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet import errors
from official_resnet.inputs import cifar, writers


def pictures(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, 32, 32, 3), np.uint8)


def test_record_is_the_label_then_the_red_green_and_blue_plane(tmp_path):
    planes = bytes([1]) * 1024 + bytes([2]) * 1023 + bytes([9]) + bytes([3]) * 1024
    (tmp_path / 'one.bin').write_bytes(bytes([7]) + planes)
    images, labels = cifar.read_cifar([tmp_path / 'one.bin'])
    assert images.dtype == np.uint8 and images.shape == (1, 32, 32, 3)
    assert labels.dtype == np.int32 and labels.tolist() == [7]
    assert images[0, 0, 0].tolist() == [1, 2, 3]
    assert images[0, 31, 31].tolist() == [1, 9, 3]  # the last byte of the green plane


def test_second_byte_is_the_label_when_there_are_two(tmp_path):
    path = tmp_path / 'train.bin'
    writers.write_cifar(path, pictures(2), [[19, 99], [0, 3]])
    data = path.read_bytes()
    assert len(data) == 2 * 3074 and data[:2] == bytes([19, 99])
    assert cifar.read_cifar([path], label_bytes=2, num_classes=100)[1].tolist() == [99, 3]


def test_files_are_read_in_the_order_given(tmp_path):
    for name, label in (('a', 1), ('b', 2)):
        writers.write_cifar(tmp_path / name, pictures(2), [label, label])
    assert cifar.read_cifar([tmp_path / 'b', tmp_path / 'a'])[1].tolist() == [2, 2, 1, 1]


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 99), min_size=1, max_size=5),
    label_bytes=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
)
def test_reading_gives_back_what_was_written(labels, label_bytes, seed):
    images = pictures(len(labels), seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'batch.bin'
        writers.write_cifar(path, images, [[0, label] for label in labels] if label_bytes == 2 else labels)
        assert path.stat().st_size == len(labels) * (label_bytes + 3072)
        read_images, read_labels = cifar.read_cifar([path], label_bytes, num_classes=100)
    np.testing.assert_array_equal(read_images, images)
    assert read_labels.tolist() == labels


WRONG_FILES = {
    'missing': (None, 'does not exist; run cifar10_download_and_extract.py'),
    'empty': (b'', 'is empty; delete it'),
    'less than a record': (bytes(100), 'has 100 bytes: record 0 .* after 100 of its 3073 bytes; delete it'),
    'cut off': (bytes(3073 * 2 + 5), 'has 6151 bytes: record 2 .* after 5 of its 3073 bytes; delete it'),
    'one byte too few': (bytes(3072), 'record 0 .* after 3072 of its 3073 bytes'),
    'label 10': (bytes(3073) + b'\x0a' + bytes(3072), r'has label 10 in record 1 .* outside 0\.\.9; delete it'),
    'a folder': ('folder', r'cannot be read \(Is a directory\); make it a file'),
}


@pytest.mark.parametrize('content, message', WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file_is_one_line_with_its_name_and_the_remedy(tmp_path, content, message):
    path = tmp_path / 'data_batch_3.bin'
    if content == 'folder':
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.UserError, match=message) as caught:
        cifar.read_cifar([path])
    assert str(caught.value).startswith(f"'{path}' ") and '\n' not in str(caught.value)


def test_file_without_permission_is_one_line(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, 'Permission denied')  # what others than root get

    path = tmp_path / 'test_batch.bin'
    path.write_bytes(bytes(3073))
    monkeypatch.setattr(Path, 'read_bytes', refuse)
    message = re.escape(f"'{path}' cannot be read (Permission denied); make it a file that you may read")
    with pytest.raises(errors.UserError, match=message):
        cifar.read_cifar([path])


@pytest.mark.parametrize(
    'images, labels',
    [
        (pictures(2), [1]),
        (pictures(1).astype(np.float32), [1]),
        (pictures(1)[:, :28], [1]),
        (pictures(1), [256]),
        (pictures(1), [-1]),
        (pictures(1), [[1, 1, 1]]),
        (pictures(2), [[1, 1]]),
        (pictures(1), [[256, 1]]),
    ],
)
def test_writer_refuses_what_the_format_cannot_hold(tmp_path, images, labels):
    with pytest.raises(ValueError, match='must be'):
        writers.write_cifar(tmp_path / 'x', images, labels)
    assert not (tmp_path / 'x').exists()
