"""Protobuf's wire format: fields of every type, runs of numbers, and damage."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from official_resnet.inputs import protobuf_wire as wire_format


def fixed(number, value):
    """Return a field of a float (4 bytes) or of a double (8)."""
    wire = {4: wire_format.FOUR_BYTES, 8: wire_format.EIGHT_BYTES}[len(value)]
    return wire_format.varint(number << 3 | wire) + value


@given(st.integers(0, 2**64 - 1) | st.sampled_from([127, 128, 2**32, 2**64 - 1]))
def test_varints_come_back(number):
    data = wire_format.varint(number)
    assert wire_format.read_varint(b'x' + data + b'y', 1) == (number, 1 + len(data))
    assert wire_format.varints(memoryview(data * 3)) == [number] * 3


def test_fields_of_every_type():
    text, empty = (b''.join(wire_format.field(*content)) for content in ((1, b'ab'), (1000, b'')))
    number = wire_format.varint(2 << 3) + b'\x05'
    message = text + number + fixed(3, b'1234') + fixed(4, b'8' * 8) + empty + fixed(16, b'5678')
    fields = [
        (number, wire, content if isinstance(content, int) else bytes(content))
        for number, wire, content in wire_format.fields(message)
    ]
    assert fields[:4] == [(1, 2, b'ab'), (2, 0, 5), (3, 5, b'\x1d1234'), (4, 1, b'!' + b'8' * 8)]
    assert fields[4:] == [(1000, 2, b''), (16, 5, b'5678')]


@pytest.mark.parametrize('count', [1, 2, 3, 4, 7, 1000])
@pytest.mark.parametrize('letter', 'fd')
@pytest.mark.parametrize('number', [5, 20])
def test_runs_of_numbers(count, letter, number):
    """Numbers that are not packed come as one field if their tag has one byte."""
    values, dtype = [float(i) for i in range(count)], {'f': '<f4', 'd': '<f8'}[letter]
    run = b''.join(fixed(number, struct.pack(f'<{letter}', value)) for value in values)
    found = list(wire_format.fields(run + b''.join(wire_format.field(6, b'x'))))
    assert len(found) == (2 if number == 5 else count + 1) and found[-1][0] == 6
    assert [x for _, wire, content in found[:-1] for x in wire_format.numbers(wire, content, dtype)] == values
    packed = struct.pack(f'<{count}{letter}', *values)
    assert wire_format.numbers(wire_format.BYTES, memoryview(packed), dtype).tolist() == values


@pytest.mark.parametrize(
    'message',
    [b'\x08', b'\x80' * 11 + b'\x01', b'\x0a\x05abc', b'\x0d123', b'\x0d1234\x0d12', b'\x0b', b'\x09' + bytes(7)],
)
def test_a_message_that_is_cut_off_or_none(message):
    with pytest.raises(ValueError):
        list(wire_format.fields(message))


@pytest.mark.parametrize('wire, size, dtype', [(0, 0, '<f4'), (1, 9, '<f4'), (2, 5, '<f8'), (5, 5, '<f8')])
def test_what_is_no_numbers(wire, size, dtype):
    with pytest.raises(ValueError):
        wire_format.numbers(wire, memoryview(bytes(size)) if wire else 7, dtype)
