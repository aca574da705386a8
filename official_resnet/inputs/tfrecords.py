"""Write, index, check and read TFRecord files of tf.train.Example without TensorFlow.

A TFRecord file contains only records. A record is the length of its data (uint64), the masked CRC-32C of those eight
bytes (uint32), the data, and the data's masked CRC-32C, all low byte first.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord, section TFRecords format details.

The data is a serialized tf.train.Example: a map from keys to lists of bytes, float32 or int64.
Source: tensorflow/core/example/feature.proto.

These are plain functions of bytes, so that a program that only moves images starts at once and needs little memory.
"""

import os
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

from official_resnet import bounds, files
from official_resnet.errors import UserError
from official_resnet.inputs import protobuf_wire as wire_format

HEADER_BYTES = 12  # of a record, before its data
FOOTER_BYTES = 4  # after its data
_BYTES, _FLOATS, _INTS = 1, 2, 3  # field numbers of a tf.train.Feature
_KINDS = {bytes: _BYTES, float: _FLOATS, int: _INTS}
_FOLDER, _REMEDY = 'pass the folder of the TFRecord files', 'build the file again'


def frame(data: bytes) -> bytes:
    """Return the bytes of the record that contains `data`."""
    length = struct.pack('<Q', len(data))
    return b''.join((length, _masked_crc(length), data, _masked_crc(data)))


def read(path: str | os.PathLike) -> Iterator[bytes]:
    """Yield the data of each record of a file after checking it.

    Raises:
        UserError: The file cannot be read, is cut off, or has a wrong checksum; the message names the position.
    """
    with files.read_errors(path, _FOLDER), open(path, 'rb', opener=files.plain) as file:
        for begin, end in _places(path, file.fileno()):
            yield read_at(file.fileno(), begin, end, path)


def index(path: str | os.PathLike) -> np.ndarray:
    """Return where the records of a file begin, and where the last one ends, int64 [records + 1]. Reads only headers.

    Raises:
        UserError: The file cannot be read or is cut off, or a header is damaged.
    """
    with files.read_errors(path, _FOLDER), open(path, 'rb', opener=files.plain) as file:
        return np.array([0, *(end for _, end in _places(path, file.fileno()))], np.int64)


def read_at(descriptor: int, offset: int, end: int, path: str | os.PathLike) -> bytes:
    """Return the data of the record at bytes offset..end of an open file. Raise UserError about `path` if damaged."""
    record = os.pread(descriptor, end - offset, offset)
    size, rest = _data_bytes(path, offset, record[:HEADER_BYTES]), record[HEADER_BYTES:]
    if len(rest) < size + FOOTER_BYTES:
        raise _cut_off(path, offset)
    data = rest[:size]
    if rest[size : size + FOOTER_BYTES] != _masked_crc(data):
        raise UserError(f"'{path}' is damaged: wrong checksum of the record at byte {offset}; {_REMEDY}")
    return data


def checksum_at(descriptor: int, end: int) -> bytes:
    """Return the checksum that stands at the end of a record, of which nothing else is read."""
    return os.pread(descriptor, FOOTER_BYTES, end - FOOTER_BYTES)


def encode_example(features: dict[str, Any]) -> bytes:
    """Return the serialized tf.train.Example of {key: values}, always the same bytes for the same features.

    Args:
        features: A value is bytes, an int or a float, a list of one of these, or an array of floats or ints, which may
            be empty. Keys are written in sorted order.

    Raises:
        ValueError: A value has another type, or an int needs more than 64 bits.
    """
    field, parts = wire_format.field, []
    for key in sorted(features):
        parts += field(1, *field(1, key.encode()), *field(2, *_feature(key, features[key])))
    return b''.join(field(1, *parts))


def decode_example(data: bytes) -> dict[str, list]:
    """Return {key: list of bytes, floats or ints} of a tf.train.Example.

    Raises:
        ValueError: The bytes are not a tf.train.Example.
    """
    result = {}
    for features in _contents(data, 1):
        for entry in _contents(features, 1):
            key, feature = ([b'', *_contents(entry, number)][-1] for number in (1, 2))  # the last one is valid
            result[str(key, 'utf-8')] = _values(feature)
    return result


def _feature(key, values):
    """Return the parts of a tf.train.Feature. They are joined only once, because images are large."""
    if isinstance(values, np.ndarray):
        kind, values = {'f': _FLOATS, 'i': _INTS}.get(values.dtype.kind), values.tolist()
    else:
        values = values if isinstance(values, (list, tuple)) else [values]
        kinds = {_KINDS.get(type(value)) for value in values}
        kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f'{key} has {values!r}, not bytes, floats or ints of one kind')
    if kind == _BYTES:
        return wire_format.field(kind, *(part for value in values for part in wire_format.field(1, value)))
    if kind == _FLOATS:
        content = struct.pack(f'<{len(values)}f', *values)
    elif all(-1 << 63 <= value < 1 << 63 for value in values):
        content = b''.join(wire_format.varint(value % (1 << 64)) for value in values)
    else:
        raise ValueError(f'{key} has {values!r}, outside of 64 bits')
    return wire_format.field(kind, *wire_format.field(1, content) if content else ())


def _values(feature):
    """Return the list in a tf.train.Feature, whose numbers may be packed or not."""
    result = []
    for kind in _KINDS.values():
        fields = [field for values in _contents(feature, kind) for field in wire_format.fields(values)]
        for wire, content in (field[1:] for field in fields if field[0] == 1):
            if kind == _FLOATS:
                result += wire_format.numbers(wire, content, '<f4').tolist()
            elif kind == _INTS:
                found = [content] if wire == wire_format.VARINT else wire_format.varints(_require_bytes(wire, content))
                result += [number - (1 << 64) if number >> 63 else number for number in found]
            else:
                result.append(bytes(_require_bytes(wire, content)))
    return result


def _contents(data, number):
    """Yield the content of each field with this number."""
    for found, wire, content in wire_format.fields(data):
        if found == number:
            yield _require_bytes(wire, content)


def _require_bytes(wire, content):
    if wire != wire_format.BYTES:
        raise ValueError(f'a field has the wire type {wire}, not {wire_format.BYTES}')
    return content


def _masked_crc(data):
    crc = google_crc32c.value(data)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _places(path, descriptor):
    """Yield where each record begins and ends. Reads only headers."""
    begin, size = 0, os.fstat(descriptor).st_size  # as a damaged length may have any value
    while begin < size:
        end = begin + HEADER_BYTES + _data_bytes(path, begin, os.pread(descriptor, HEADER_BYTES, begin)) + FOOTER_BYTES
        if end > size:
            raise _cut_off(path, begin)
        yield begin, end
        begin = end


def _data_bytes(path, offset, header):
    """Check a record's header and return the length in it."""
    if len(header) < HEADER_BYTES:
        raise _cut_off(path, offset)
    if header[8:] != _masked_crc(header[:8]):
        fault = f'is damaged or not a TFRecord file: wrong checksum of the length at byte {offset}'
        raise UserError(f"'{path}' {fault}; {_REMEDY}")
    (size,) = struct.unpack('<Q', header[:8])
    bounds.require('record_bytes', size, f"the record at byte {offset} of '{path}'", _REMEDY)
    return size


def _cut_off(path, offset):
    return UserError(f"'{path}' is cut off inside the record at byte {offset}; {_REMEDY}")
