"""TFRecord files of tf.train.Example, without TensorFlow: written, indexed, read at any place, checked.

A TFRecord file is records and nothing else. A record is the length of its data (uint64), the masked CRC-32C of those
eight bytes (uint32), the data, and the data's masked CRC-32C; all low byte first.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord, section TFRecords format details.

The data is a serialized tf.train.Example: a map from keys to lists of bytes, float32 or int64.
Source: tensorflow/core/example/feature.proto and https://protobuf.dev/programming-guides/encoding.

Plain functions of bytes, because a program that only moves pictures should start at once and fit into small memory.
"""

import os
import struct

import google_crc32c
import numpy as np

from official_resnet.errors import UserError

HEADER_BYTES = 12  # of a record before its data
FOOTER_BYTES = 4  # after it
_MAX_VARINT = (1 << 64) - 1
_SMALL = [bytes([number]) for number in range(128)]
_BYTES, _FLOATS, _INTS = 1, 2, 3  # field numbers of a tf.train.Feature
_KINDS = {bytes: _BYTES, float: _FLOATS, int: _INTS}
_REMEDY = 'build the file again'


def frame(data):
    """Return the bytes of a record."""
    length = struct.pack('<Q', len(data))
    return b''.join((length, _masked_crc(length), data, _masked_crc(data)))


def read(path):
    """Yield the data of each record of a file, checked.

    Raises:
        UserError: it cannot be read, is cut off, or a checksum is wrong; names the place.
    """
    with _open(path) as file:
        offset, end = 0, os.fstat(file.fileno()).st_size  # a length may promise anything
        while header := file.read(HEADER_BYTES):
            size = _data_bytes(path, offset, header)
            yield _data(path, offset, file.read(min(size + FOOTER_BYTES, end)), size)
            offset += HEADER_BYTES + size + FOOTER_BYTES


def index(path):
    """Return where the records of a file begin, and where the last ends: int64 [records + 1], reading only headers.

    Raises:
        UserError: it cannot be read, is cut off, or a header is damaged.
    """
    offsets = [0]
    with _open(path) as file:
        descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
        while offsets[-1] < end:
            offset = offsets[-1]
            size = _data_bytes(path, offset, os.pread(descriptor, HEADER_BYTES, offset))
            offsets.append(offset + HEADER_BYTES + size + FOOTER_BYTES)
    if offsets[-1] > end:
        raise _cut_off(path, offsets[-2])
    return np.array(offsets, np.int64)


def read_at(descriptor, offset, end, path):
    """Return the data of the record at bytes offset..end of an open file, checked; `path` is for errors."""
    record = os.pread(descriptor, end - offset, offset)
    size = _data_bytes(path, offset, record[:HEADER_BYTES])
    return _data(path, offset, record[HEADER_BYTES:], size)


def encode_example(features):
    """Return a tf.train.Example of {key: values}, the same bytes for the same features.

    Args:
        features: a value is bytes, an int or a float, a list of one of these, or an array of floats or ints, which may
            be empty. Keys are written in their sorted order.

    Raises:
        ValueError: a value of another type, or an int outside of 64 bits.
    """
    parts = [part for key in sorted(features) for part in _entry(key, features[key])]
    return b''.join((_head(1, sum(map(len, parts))), *parts))


def decode_example(data):
    """Return {key: list of bytes, floats or ints} of a tf.train.Example.

    Raises:
        ValueError: it is none.
    """
    result = {}
    for features in _contents(data, 1):
        for entry in _contents(features, 1):
            key, feature = b'', b''
            for number, wire, content in _fields(entry):
                if number in (1, 2):
                    _require_bytes(wire)
                    key, feature = (content, feature) if number == 1 else (key, content)
            result[key.decode()] = _values(feature)
    return result


def _entry(key, values):
    """Return an entry of the map as pieces, so that a picture is copied once, when they are joined."""
    name = _field(1, key.encode())
    if not isinstance(values, bytes):
        return [_field(1, name + _field(2, _feature(key, values)))]
    head = _head(1, len(values))
    head = _head(_BYTES, len(head) + len(values)) + head
    head = name + _head(2, len(head) + len(values)) + head
    return [_head(1, len(head) + len(values)) + head, values]


def _feature(key, values):
    if isinstance(values, np.ndarray):
        kind, values = {'f': _FLOATS, 'i': _INTS}.get(values.dtype.kind), values.tolist()
    else:
        values = values if isinstance(values, (list, tuple)) else [values]
        kinds = {_KINDS.get(type(value)) for value in values}
        kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f'{key} has {values!r}, not bytes, floats or ints of one kind')
    if kind == _BYTES:
        return _field(kind, b''.join(_field(1, value) for value in values))
    if kind == _FLOATS:
        content = struct.pack(f'<{len(values)}f', *values)
    elif all(-1 << 63 <= value < 1 << 63 for value in values):
        content = b''.join(_varint(value % (1 << 64)) for value in values)
    else:
        raise ValueError(f'{key} has {values!r}, outside of 64 bits')
    return _field(kind, _field(1, content) if content else b'')


def _values(feature):
    """Return the list in a tf.train.Feature; numbers may be packed or not."""
    result = []
    for kind, wire, values in _fields(feature):
        if kind not in (_BYTES, _FLOATS, _INTS):
            continue
        _require_bytes(wire)
        for number, wire, content in _fields(values):
            if number != 1:
                continue
            if kind == _INTS and wire == 0:
                result.append(_signed(content))
                continue
            if not (kind == _FLOATS and wire == 5):
                _require_bytes(wire)
            if kind == _BYTES:
                result.append(content)
            elif kind == _INTS:
                result += map(_signed, _varints(content))
            elif len(content) % 4:
                raise ValueError(f'{len(content)} bytes are no floats')
            else:
                result += struct.unpack(f'<{len(content) // 4}f', content)
    return result


def _contents(data, number):
    """Yield the bytes of each field of that number."""
    for found, wire, content in _fields(data):
        if found == number:
            _require_bytes(wire)
            yield content


def _require_bytes(wire):
    if wire != 2:
        raise ValueError(f'a field has the wire type {wire}, not 2')


def _field(number, content):
    """Return a length-delimited field."""
    return _head(number, len(content)) + content


def _head(number, size):
    """Return what stands before the content of a length-delimited field."""
    return _SMALL[number << 3 | 2] + _varint(size)


def _varint(number):
    if number < 128:
        return _SMALL[number]
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    result.append(number)
    return bytes(result)


def _fields(data):
    """Yield (number, wire type, content) of each field: an int below 2**64 for varints, else bytes."""
    data, place = memoryview(data), 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        wire = tag & 7
        if wire == 0:
            content, place = _read_varint(data, place)
        else:
            size, place = (4 if wire == 5 else 8, place) if wire in (1, 5) else _read_varint(data, place)
            if wire not in (1, 2, 5) or place + size > len(data):
                raise ValueError(f'no field at byte {place}')
            content, place = bytes(data[place : place + size]), place + size
        yield tag >> 3, wire, content


def _read_varint(data, place):
    """Return (number, the place after it)."""
    number = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError(f'no number at byte {place}')
        byte, place = data[place], place + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number & _MAX_VARINT, place


def _signed(number):
    return number - (1 << 64) if number >> 63 else number


def _varints(data):
    numbers, place = [], 0
    while place < len(data):
        number, place = _read_varint(data, place)
        numbers.append(number)
    return numbers


def _masked_crc(data):
    crc = google_crc32c.value(data)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _open(path):
    try:
        return open(path, 'rb')
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); pass the folder of the TFRecord files") from None


def _data_bytes(path, offset, header):
    """Return the length that a record's header gives, checked."""
    if len(header) < HEADER_BYTES:
        raise _cut_off(path, offset)
    if header[8:] != _masked_crc(header[:8]):
        raise UserError(
            f"'{path}' is damaged or no TFRecord file: wrong checksum of the length at byte {offset}; {_REMEDY}"
        )
    return struct.unpack('<Q', header[:8])[0]


def _data(path, offset, rest, size):
    if len(rest) < size + FOOTER_BYTES:
        raise _cut_off(path, offset)
    data = rest[:size]
    if rest[size : size + FOOTER_BYTES] != _masked_crc(data):
        raise UserError(f"'{path}' is damaged: wrong checksum of the record at byte {offset}; {_REMEDY}")
    return data


def _cut_off(path, offset):
    return UserError(f"'{path}' is cut off inside the record at byte {offset}; {_REMEDY}")
