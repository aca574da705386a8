"""Read and write the fields of a message in protobuf's wire format, without the message's schema.

A message is a sequence of fields. A field is a tag, the varint number << 3 | wire type, and its content: a varint (wire
type 0), 8 bytes (1), 4 bytes (5), or a length as a varint and that many bytes (2), which may be a message itself.
Source: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

import numpy as np

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types; 3 and 4 have not been in use since 2008
_SIZES = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
_SMALL = [bytes([number]) for number in range(128)]  # varints of one byte


def fields(message: bytes | memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (number, wire type, content) of each field, without copying.

    The content of a varint is an int below 2**64; any other content is a memoryview. Consecutive fields of fixed size
    with the same number below 16 are yielded as one, tags included, because a repeated float may have millions of
    them. Read such content with `numbers`.

    Raises:
        ValueError: The bytes are cut off, or are not a message.
    """
    message, place = memoryview(message), 0
    while place < len(message):
        begin = place
        tag, place = read_varint(message, place)
        wire = tag & 7
        if wire == VARINT:
            content, place = read_varint(message, place)
            yield tag >> 3, wire, content
            continue
        if wire == BYTES:
            size, place = read_varint(message, place)
        elif wire in _SIZES:
            size = _SIZES[wire]
            if tag < 128:
                place, size = begin, (1 + size) * _run_length(message[begin:], 1 + size)
        else:
            raise ValueError(f'wire type {wire} at byte {begin} of a message')
        begin, place = place, place + size
        if place > len(message):
            raise ValueError(f'{place - len(message)} bytes are missing at the end of a message')
        yield tag >> 3, wire, message[begin:place]


def numbers(wire: int, content: memoryview, dtype: str) -> np.ndarray:
    """Return the numbers in the content of fields of fixed size or of a packed field (BYTES), as a view if possible.

    The dtype is '<f4', '<f8', ... ValueError is raised if the content does not consist of such numbers.
    """
    size = np.dtype(dtype).itemsize
    if wire != BYTES and _SIZES.get(wire) != size:
        raise ValueError(f'wire type {wire} has no numbers of {size} bytes')
    if wire != BYTES and len(content) != size:  # a tag of a byte before each number
        content = memoryview(np.frombuffer(content, np.uint8).reshape(-1, 1 + size)[:, 1:].tobytes())
    if len(content) % size:
        raise ValueError(f'{len(content)} bytes do not make numbers of {size} bytes')
    return np.frombuffer(content, dtype)


def varints(content: memoryview) -> list[int]:
    """Return the numbers of a packed field of varints."""
    result, place = [], 0
    while place < len(content):
        number, place = read_varint(content, place)
        result.append(number)
    return result


def read_varint(message: bytes | memoryview, place: int) -> tuple[int, int]:
    """Return the number at byte `place`, below 2**64, and the place after it. ValueError is raised if there is none."""
    number = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError(f'no number at byte {place} of a message')
        byte, place = message[place], place + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number % (1 << 64), place


def field(number: int, *parts: bytes) -> list[bytes]:
    """Return a field of wire type BYTES as a list of bytes to join. The first item is the tag and the length."""
    return [varint(number << 3 | BYTES) + varint(sum(map(len, parts))), *parts]


def varint(number: int) -> bytes:
    """Return a number in 0..2**64-1 as a varint."""
    if number < 128:
        return _SMALL[number]
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    result.append(number)
    return bytes(result)


def _run_length(message: memoryview, size: int) -> int:
    """Return how many records of `size` bytes, at least 1, begin with the message's first byte."""
    data, count = np.frombuffer(message, np.uint8), 1
    while True:  # checks twice as many each time, so the cost is proportional to the run
        same = data[count * size : 2 * count * size : size] == data[0]
        if len(same) == count and same.all():
            count *= 2
        else:
            return count + (len(same) if same.all() else int(same.argmin()))
