"""Find out what an encoded image is without decoding it.

A JPEG is a chain of segments: 0xFF, a marker, two bytes of length, content. A start of scan precedes entropy coding, in
which 0xFF occurs only before 0x00, a restart marker or the next segment. Source: ITU-T T.81, annex B. Walking over
the segments takes 0.1 ms and finds size, components and whether the end is present; decoding takes some milliseconds.
"""

import contextlib
import dataclasses
import struct

import numpy as np

_MAGIC = {
    b'\xff\xd8': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG', b'GIF87a': 'GIF', b'GIF89a': 'GIF', b'BM': 'BMP',
    b'II*\0': 'TIFF', b'MM\0*': 'TIFF',
}  # fmt: skip
_START, _END, _SCAN, _EXIF, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
ORIENTATION = 0x0112  # a tag of EXIF
HEIC = "HEIC, which is not read; convert it to JPEG, for example with ImageMagick's mogrify -format jpg"
UNKNOWN, EMPTY = 'not an image in a known format; save it as JPEG or PNG', 'the file is empty; get it again'
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive: those that TensorFlow decodes
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without content: TEM, and restarts
_ENDS_SCAN = np.ones(256, bool)
_ENDS_SCAN[[0x00, *range(0xD0, 0xD8), 0xFF]] = False  # 0xFF itself, restarts, and fill bytes before a marker


@dataclasses.dataclass(frozen=True)
class Info:
    """The properties of an encoded image: of a PNG the format and the size, of the others but JPEG the format."""

    format: str  # 'JPEG', 'PNG', 'GIF', 'WEBP', 'BMP' or 'TIFF'
    width: int = 0  # pixels
    height: int = 0
    components: int = 0
    precision: int = 0  # bits of a component
    colour: str = ''  # 'grey', 'YCbCr', 'RGB', 'CMYK' or 'YCCK'
    frame: int = 0  # the marker of the frame header: 0xC0 baseline, 0xC2 progressive
    is_whole: bool = True  # whether its end is present
    problem: str = ''  # why it is not whole
    orientation: int = 1  # see `orientation`

    @property
    def is_rgb_jpeg(self) -> bool:
        """Whether tf.io.decode_jpeg decodes it to three channels without a conversion."""
        return self.can_be_decoded and self.colour in ('YCbCr', 'RGB')

    @property
    def can_be_decoded(self) -> bool:
        """Whether it is a JPEG of a kind that TensorFlow decodes."""
        return self.format == 'JPEG' and self.precision == 8 and self.frame in _HUFFMAN_FRAMES


def inspect(data: bytes, only_header: bool = False) -> Info:
    """Return the Info of an encoded image without decoding it.

    With `only_header`, a JPEG is read up to its frame header, and the Info has only its size.

    Raises:
        ValueError: The format is unknown, or a JPEG's header is cut off or makes no sense.
    """
    data = bytes(data)
    name = format_of(data)
    if name == 'JPEG':
        return _inspect_jpeg(data, only_header)
    if name:
        return Info(name, *struct.unpack('>II', data[16:24])) if name == 'PNG' and len(data) > 23 else Info(name)
    if is_heic(data):
        raise ValueError(HEIC)
    raise ValueError(UNKNOWN if data else EMPTY)


def format_of(head: bytes) -> str | None:
    """Return the format of an image from its first 12 bytes, as in Info, or None if they are not an image's."""
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return 'WEBP'
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def is_heic(head: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of a HEIC image, as phones take them."""
    return head[4:8] == b'ftyp' and head[8:12] in (b'heic', b'heix', b'hevc', b'heim', b'heis', b'mif1', b'msf1')


def reason(info: Info) -> str:
    """Return why an image has to be encoded again, such as 'PNG', 'JPEG, CMYK' or 'JPEG, EXIF orientation 6'."""
    if info.is_rgb_jpeg and info.orientation > 1:
        return f'JPEG, EXIF orientation {info.orientation}'
    return info.format if info.format != 'JPEG' else f'JPEG, {info.colour}'


def orientation(exif: bytes) -> int:
    """Return how a block of EXIF says that an image is to be turned, 1..8; 1 (not at all) if it does not say so.

    EXIF is a TIFF file, possibly after 'Exif' and two zeros. Only its first directory counts, as in TIFF 6.0.
    """
    exif = bytes(exif).removeprefix(b'Exif\0\0')
    order = {b'II*\0': '<', b'MM\0*': '>'}.get(exif[:4])
    if order is None:
        return 1
    with contextlib.suppress(struct.error):  # it is cut off
        (place,) = struct.unpack_from(f'{order}I', exif, 4)
        (count,) = struct.unpack_from(f'{order}H', exif, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, _, short, second = struct.unpack_from(f'{order}HHIHH', exif, entry)
            if tag == ORIENTATION:
                value = second if kind == 4 and order == '>' else short  # 4: an integer of 32 bits
                return value if 1 <= value <= 8 else 1
    return 1


def _inspect_jpeg(data, only_header):
    """Return the Info of a JPEG, by walking over its segments."""
    frame, adobe, exif, markers, has_jfif, has_scan, place, end = None, None, b'', None, False, False, 2, len(data)
    while True:
        place = data.find(b'\xff', place)  # bytes before it are skipped, as in libjpeg
        while 0 <= place < end and data[place] == 0xFF:
            place += 1
        if not 0 <= place < end:
            return _info(frame, adobe, exif, has_jfif, 'cut off: it has no end of image')
        marker, place = data[place], place + 1
        if marker == _END:
            return _info(frame, adobe, exif, has_jfif, '' if has_scan else 'it ends without a scan')
        if marker in _BARE or marker == 0:
            continue
        if marker == _START:
            raise ValueError(f'a second image begins inside, at byte {place - 2}')
        size = int.from_bytes(data[place : place + 2], 'big')
        if place + max(size, 2) > end:
            return _info(frame, adobe, exif, has_jfif, f'cut off in the segment at byte {place - 2}')
        if size < 2:
            raise ValueError(f'the segment at byte {place - 2} has the length {size}')
        if marker == _EXIF and not (frame or has_scan or exif) and data[place + 2 : place + 8] == b'Exif\0\0':
            exif = data[place + 2 : place + size]
        content, place = data[place + 2 : min(place + size, place + 64)], place + size
        if marker in _FRAMES:
            frame = _frame(marker, content, frame)
            if only_header:
                return Info('JPEG', frame[3], frame[2])
        elif marker == _ADOBE and content[:5] == b'Adobe' and len(content) >= 12:
            adobe = content[11]
        elif marker == 0xE0 and content[:5] == b'JFIF\0':
            has_jfif = True
        elif marker == _SCAN:
            if not frame:
                raise ValueError('it has a scan before the frame header')
            if not content or not 1 <= content[0] <= len(frame[4]) or len(content) != 4 + 2 * content[0]:
                raise ValueError('its scan header makes no sense')
            if not set(content[1 : 1 + 2 * content[0] : 2]) <= set(frame[4]):
                raise ValueError('it has a scan of an unknown component')
            if not has_scan:  # find each 0xFF before a marker that ends a scan; some of them are inside segments
                values = np.frombuffer(data, np.uint8)
                places = np.flatnonzero(values[:-1] == 0xFF)
                has_scan, markers = True, places[_ENDS_SCAN[values[places + 1]]]
            following = markers[markers.searchsorted(place) :][:1]
            place = int(following[0]) if len(following) else end


def _frame(marker, content, earlier):
    """Return (marker, precision, height, width, component identifiers) of a frame header."""
    if earlier:
        raise ValueError('it has two frame headers')
    if len(content) < 6 or len(content) < 6 + 3 * min(content[5], 4):
        raise ValueError('its frame header is cut off')
    precision, height, width, components = struct.unpack('>BHHB', content[:6])
    if not height or not width or components not in (1, 3, 4):
        raise ValueError(f'its frame header declares {width} x {height} pixels of {components} components')
    return marker, precision, height, width, content[6 : 6 + 3 * components : 3]


def _info(frame, adobe, exif, has_jfif, problem):
    if not frame:
        raise ValueError(problem or 'it has no frame header')
    marker, precision, height, width, identifiers = frame
    components = len(identifiers)
    if components == 3:  # libjpeg decides in this order
        is_rgb = not has_jfif and (identifiers == b'RGB' if adobe is None else adobe == 0)
        colour = 'RGB' if is_rgb else 'YCbCr'
    else:
        colour = 'grey' if components == 1 else 'YCCK' if adobe == 2 else 'CMYK'
    is_whole = not problem
    return Info('JPEG', width, height, components, precision, colour, marker, is_whole, problem, orientation(exif))
