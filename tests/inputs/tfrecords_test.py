"""TFRecord files and tf.train.Example without TensorFlow: the same bytes as TensorFlow's, and no surprise on damage."""

import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet import errors
from official_resnet.inputs import tfrecords

RECORDS = [b'', b'a', bytes(range(256)) * 5]
VALUES = st.one_of(
    st.lists(st.binary(max_size=300), min_size=1, max_size=3),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
)


def write(path, records=RECORDS):
    path.write_bytes(b''.join(map(tfrecords.frame, records)))
    return path


def tensorflow_example(features):
    """Return the bytes of a tf.train.Example, made by TensorFlow."""
    example = tf.train.Example()
    for key, values in features.items():
        values = values.tolist() if isinstance(values, np.ndarray) else values if isinstance(values, list) else [values]
        kind = {bytes: 'bytes_list', float: 'float_list', int: 'int64_list'}[type(values[0])]
        getattr(example.features.feature[key], kind).value.extend(values)
    return example.SerializeToString(deterministic=True)


def test_files_are_those_of_tensorflow(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / 'theirs')) as writer:
        for record in RECORDS:
            writer.write(record)
    assert write(tmp_path / 'ours').read_bytes() == (tmp_path / 'theirs').read_bytes()
    assert list(tfrecords.read(tmp_path / 'theirs')) == RECORDS
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / 'ours'))] == RECORDS


def test_index_and_reading_at_a_place(tmp_path):
    path = write(tmp_path / 'a')
    offsets = tfrecords.index(path)
    assert offsets.dtype == np.int64 and offsets.tolist() == [0, 16, 33, 33 + 16 + 1280]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for i in (2, 0, 1):
            assert tfrecords.read_at(descriptor, offsets[i], offsets[i + 1], path) == RECORDS[i]
    finally:
        os.close(descriptor)
    empty = write(tmp_path / 'empty', [])
    assert tfrecords.index(empty).tolist() == [0] and not list(tfrecords.read(empty))


@pytest.mark.parametrize(
    'place,message',
    [
        (16, 'wrong checksum of the length at byte 16'),
        (26, 'wrong checksum of the length at byte 16'),
        (28, 'wrong checksum of the record at byte 16'),
        (31, 'wrong checksum of the record at byte 16'),
    ],
)
def test_a_flipped_bit_is_found(tmp_path, place, message):
    path = write(tmp_path / 'a')
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(errors.UserError, match=message) as error:
        list(tfrecords.read(path))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('size,offset', [(10, 0), (20, 16), (40, 33), (33 + 12 + 1280, 33), (33 + 15 + 1280, 33)])
def test_a_cut_off_file_is_found(tmp_path, size, offset):
    path = write(tmp_path / 'a')
    path.write_bytes(path.read_bytes()[:size])
    for read in (tfrecords.index, lambda path: list(tfrecords.read(path))):
        with pytest.raises(errors.UserError, match=f'cut off inside the record at byte {offset}; build'):
            read(path)


def test_a_missing_file(tmp_path):
    for read in (tfrecords.index, lambda path: list(tfrecords.read(path))):
        with pytest.raises(errors.UserError, match='does not exist; pass the folder'):
            read(tmp_path / 'absent')


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=3, max_size=3), VALUES, min_size=1, max_size=6))
def test_examples_are_those_of_tensorflow(features):
    """Keys of one length: of two that begin alike, Python's protobuf puts the longer one first."""
    data = tfrecords.encode_example(features)
    assert data == tensorflow_example(features)
    assert tfrecords.decode_example(data) == features


def test_values_that_are_no_list_and_arrays():
    features = {'b': b'x', 'i': -3, 'f': 0.5, 'a': np.float32([0.25, 1]), 'n': np.int64([-1, 2**40])}
    data = tfrecords.encode_example(features)
    assert data == tensorflow_example(features)
    assert tfrecords.decode_example(data) == {'b': [b'x'], 'i': [-3], 'f': [0.5], 'a': [0.25, 1], 'n': [-1, 2**40]}


def test_empty_arrays_keep_their_kind():
    """TensorFlow's parser refuses a list of floats where it expects ints, also an empty one."""
    example = tf.train.Example()
    example.features.feature['f'].float_list.SetInParent()
    example.features.feature['i'].int64_list.SetInParent()
    data = tfrecords.encode_example({'f': np.zeros(0, np.float32), 'i': np.zeros(0, np.int64)})
    assert data == example.SerializeToString(deterministic=True)
    kinds = {'f': tf.float32, 'i': tf.int64}
    parsed = tf.io.parse_single_example(data, {key: tf.io.VarLenFeature(kind) for key, kind in kinds.items()})
    assert parsed['f'].shape == parsed['i'].shape == (0,)
    assert tfrecords.decode_example(data) == {'f': [], 'i': []}


def test_numbers_that_are_not_packed_are_read():
    value = struct.pack('<f', 1.5)
    floats = b'\x12' + bytes([10]) + b'\x0d' + value + b'\x0d' + value
    ints = b'\x1a\x04\x08\x05\x08\x07'
    entries = [
        b'\x0a\x01' + name + b'\x12' + bytes([len(feature)]) + feature
        for name, feature in ((b'f', floats), (b'i', ints))
    ]
    features = b''.join(b'\x0a' + bytes([len(entry)]) + entry for entry in entries)
    data = b'\x0a' + bytes([len(features)]) + features
    assert tf.train.Example.FromString(data).features.feature['i'].int64_list.value == [5, 7]
    assert tfrecords.decode_example(data) == {'f': [1.5, 1.5], 'i': [5, 7]}


@pytest.mark.parametrize(
    'value', ['text', None, [1, 2.0], [b'x', 1], [], True, 1 << 63, -(1 << 63) - 1, np.array(['x'])]
)
def test_values_of_other_types(value):
    with pytest.raises(ValueError, match='^key has'):
        tfrecords.encode_example({'key': value})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_no_example(data):
    try:
        tfrecords.decode_example(data)
    except ValueError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_examples(data):
    good = bytearray(tfrecords.encode_example({'b': [b'x', b'yy'], 'f': [1.0, 2.0], 'i': [1, -1, 300]}))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        tfrecords.decode_example(bytes(good))
    except ValueError:
        pass
