"""The CIFAR binary format: round trips, the documented layout, and every way a file can be wrong."""

import numpy as np
import pytest
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from fixtures.batches import message_of
from hypothesis import given
from hypothesis import strategies as st

from official_resnet.errors import UserError
from official_resnet.inputs import cifar, writers


def noise(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, 32, 32, 3), np.uint8)


def test_record_is_the_label_then_the_red_green_and_blue_plane(tmp_path):
    planes = bytes([1]) * 1024 + bytes([2]) * 1023 + bytes([9]) + bytes([3]) * 1024
    (tmp_path / 'one.bin').write_bytes(bytes([7]) + planes)
    images, labels = cifar.read_cifar([tmp_path / 'one.bin'])
    assert images.dtype == np.uint8 and images.shape == (1, 32, 32, 3)
    assert labels.dtype == np.int32 and labels.tolist() == [7]
    assert images[0, 0, 0].tolist() == [1, 2, 3]
    assert images[0, 31, 31].tolist() == [1, 9, 3]  # the last byte of the green plane


@quick
@given(
    labels=st.tuples(*[st.lists(st.integers(0, 99), min_size=1, max_size=3)] * 2),
    label_bytes=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
)
def test_files_come_back_in_the_order_given(labels, label_bytes, seed):
    images = [noise(len(some), seed + i) for i, some in enumerate(labels)]
    with files(b'', b'') as paths:
        for path, pixels, some in zip(paths, images, labels, strict=True):
            writers.write_cifar(path, pixels, [[19, label] for label in some] if label_bytes == 2 else some)
            assert path.stat().st_size == len(some) * (label_bytes + 3072)
            assert path.read_bytes()[:label_bytes] == bytes([19, some[0]])[2 - label_bytes :]
        found_images, found_labels = cifar.read_cifar(paths[::-1], label_bytes, num_classes=100)
    np.testing.assert_array_equal(found_images, np.concatenate(images[::-1]))
    assert found_labels.tolist() == [*labels[1], *labels[0]]


@quick
@given(
    label_bytes=st.sampled_from([1, 2]),
    count=st.integers(0, 3),
    rest=st.binary(max_size=40),
    labels=st.lists(st.integers(0, 255), min_size=6, max_size=6),
    edits=st.none() | EDITS,
)
def test_any_bytes_are_cifar_records_or_refused(label_bytes, count, rest, labels, edits):
    size = label_bytes + cifar.IMAGE_BYTES
    data = b''.join(bytes(labels[2 * i : 2 * i + label_bytes]) + bytes(cifar.IMAGE_BYTES) for i in range(count)) + rest
    data = edited(data, edits) if edits else data
    with files(data) as [path]:
        try:
            images, found = cifar.read_cifar([path], label_bytes, num_classes=10)
        except UserError as error:
            assert refused(error, path)
            assert not data or len(data) % size or max(data[label_bytes - 1 :: size]) > 9
        else:
            assert images.shape == (len(data) // size, 32, 32, 3) and len(data) % size == 0
            assert found.tolist() == list(data[label_bytes - 1 :: size]) and found.max() <= 9
            np.testing.assert_array_equal(
                images.transpose(0, 3, 1, 2).reshape(len(images), -1),
                np.frombuffer(data, np.uint8).reshape(len(images), -1)[:, label_bytes:],
            )


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'does not exist; run cifar10_download_and_extract.py'),
        (b'', 'empty; delete it and run cifar10_download_and_extract.py'),
        (bytes(3073 * 2 + 5), '6151 bytes: record 2 |after 5 of its 3073 bytes; delete it'),
        (bytes(3073) + b'\x0a' + bytes(3072), 'label 10 in record 1 |outside 0..9; delete it'),
        ('folder', '(Is a directory); '),
        (PermissionError(13, 'Permission denied'), '(Permission denied); '),  # what users other than root get
    ],
)
def test_wrong_file_is_one_line_with_its_name_and_the_remedy(tmp_path, monkeypatch, content, words):
    path = tmp_path / 'data_batch_3.bin'
    if content == 'folder':
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        monkeypatch.setattr(cifar.Path, 'read_bytes', lambda self: (_ for _ in ()).throw(content))
    message = message_of(cifar.read_cifar, [path])
    assert message.startswith(f"'{path}' ") and all(word in message for word in words.split('|')), message


@pytest.mark.parametrize(
    'images, labels',
    [
        (noise(2), [1]),
        (noise(1).astype(np.float32), [1]),
        (noise(1)[:, :28], [1]),
        (noise(1), [256]),
        (noise(1), [-1]),
        (noise(1), [[1, 1, 1]]),
        (noise(2), [[1, 1]]),
        (noise(1), [[256, 1]]),
    ],
)
def test_writer_refuses_what_the_format_cannot_hold(tmp_path, images, labels):
    with pytest.raises(ValueError, match='must be'):
        writers.write_cifar(tmp_path / 'x', images, labels)
    assert not (tmp_path / 'x').exists()
