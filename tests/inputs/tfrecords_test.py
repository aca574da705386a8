"""TFRecord files and tf.train.Example without TensorFlow: the same bytes as TensorFlow's, and no surprise on damage."""

import contextlib
import re
import struct

import numpy as np
import pytest
import tensorflow as tf
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st

from official_resnet.errors import UserError
from official_resnet.inputs import tfrecords
from official_resnet.inputs.protobuf_wire import field

RECORDS = [b'', b'a', bytes(range(256)) * 5]
VALUES = st.one_of(
    st.lists(st.binary(max_size=300), min_size=1, max_size=3),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
)


def framed(records):
    return b''.join(map(tfrecords.frame, records))


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
    assert (tmp_path / 'theirs').read_bytes() == framed(RECORDS)
    offsets = tfrecords.index(tmp_path / 'theirs')
    assert offsets.dtype == np.int64 and offsets.tolist() == [0, 16, 33, 33 + 16 + 1280]


@quick
@given(contents=st.lists(st.binary(max_size=50), max_size=5))
def test_framed_records_come_back_in_either_way(contents):
    with files(framed(contents)) as [path]:
        assert list(tfrecords.read(path)) == contents
        offsets = tfrecords.index(path).tolist()
        assert len(offsets) == len(contents) + 1 and offsets[-1] == path.stat().st_size
        with open(path, 'rb') as file:
            for content, *bounds in reversed(list(zip(contents, offsets, offsets[1:], strict=False))):
                assert tfrecords.read_at(file.fileno(), *bounds, path) == content


@quick
@given(contents=st.lists(st.binary(max_size=50), min_size=1, max_size=5), edits=EDITS)
@example([b'x'], [(0, 12, struct.pack('<Q', 1 << 62) + tfrecords._masked_crc(struct.pack('<Q', 1 << 62)))])
def test_a_changed_tfrecord_file_gives_its_records_up_to_the_damage(contents, edits):
    """No record with a wrong checksum comes out, and none that was not written."""
    whole = framed(contents)
    data = edited(whole, edits)
    with files(data) as [path]:
        found = []
        try:
            for record in tfrecords.read(path):
                found.append(record)
        except UserError as error:
            assert refused(error, path) and re.search(r'at byte \d+', str(error))
            assert data != whole
        else:
            assert framed(found) == data
        assert data.startswith(framed(found))
        try:
            offsets = tfrecords.index(path)
        except UserError as error:
            assert refused(error, path)
        else:
            assert offsets[-1] == len(data) and (np.diff(offsets) >= 16).all()


@settings(quick, max_examples=100)
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
    assert tfrecords.decode_example(data) == {'f': [], 'i': []}


def test_numbers_that_are_not_packed_are_read():
    floats = field(2, *[b'\x0d' + struct.pack('<f', 1.5)] * 2)
    ints = field(3, b'\x08\x05\x08\x07')
    entries = (field(1, *field(1, name), *field(2, *feature)) for name, feature in ((b'f', floats), (b'i', ints)))
    data = b''.join(field(1, *(part for entry in entries for part in entry)))
    assert tf.train.Example.FromString(data).features.feature['i'].int64_list.value == [5, 7]
    assert tfrecords.decode_example(data) == {'f': [1.5, 1.5], 'i': [5, 7]}


@pytest.mark.parametrize(
    'value', ['text', None, [1, 2.0], [b'x', 1], [], True, 1 << 63, -(1 << 63) - 1, np.array(['x'])]
)
def test_values_of_other_types(value):
    with pytest.raises(ValueError, match='^key has'):
        tfrecords.encode_example({'key': value})


EXAMPLE = tfrecords.encode_example({'b': [b'x', b'yy'], 'f': [1.0, 2.0], 'i': [1, -1, 300]})
SMALL_EDITS = st.lists(
    st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 2), st.binary(max_size=2)), min_size=1, max_size=3
)


@settings(quick, max_examples=150)
@given(st.binary(max_size=60) | SMALL_EDITS.map(lambda edits: edited(EXAMPLE, edits)))
def test_garbage_is_an_example_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        assert all(isinstance(values, list) for values in tfrecords.decode_example(data).values())
