"""The CIFAR binary format: the documented layout, and every way a file can be wrong."""

import random

import numpy as np
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from fixtures.batches import message_of
from hypothesis import given
from hypothesis import strategies as st

from official_resnet.errors import UserError
from official_resnet.inputs import cifar


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
    label_bytes=st.sampled_from([1, 2]),
    count=st.integers(0, 3),
    rest=st.binary(max_size=40),
    labels=st.lists(st.integers(0, 10), min_size=6, max_size=6),
    edits=st.none() | EDITS,
)
def test_any_bytes_are_cifar_records_or_refused(label_bytes, count, rest, labels, edits):
    size = label_bytes + cifar.IMAGE_BYTES
    pixels = random.Random(0).randbytes(cifar.IMAGE_BYTES)
    data = b''.join(bytes(labels[2 * i : 2 * i + label_bytes]) + pixels for i in range(count)) + rest
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


def test_a_file_that_may_not_be_read(monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied')  # as users other than root get it

    monkeypatch.setattr(cifar.files, 'read_bytes', refuse)
    assert message_of(cifar.read_cifar, ['a.bin']).startswith("'a.bin' cannot be read (Permission denied); ")
