"""What the bytes of a picture are, told from the bytes alone, and what TensorFlow cannot read made into a JPEG.

A JPEG is a chain of segments: 0xFF, a marker, two bytes of length, content; after a start of scan comes entropy-coded
data, in which 0xFF stands only before 0x00, a restart marker or the next segment. Source: ITU-T T.81, annex B. Walking
over it tells size, components and whether the end is there in 0.1 ms; decoding takes some milliseconds.
"""

import dataclasses
import io
import struct
import warnings

import numpy as np

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'WEBP')  # Pillow's names; others could start programs (EPS)
QUALITY = 100  # of what is encoded anew, as upstream had it
MAX_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS, above which it refuses to decode

_START, _END, _SCAN, _ADOBE = 0xD8, 0xD9, 0xDA, 0xEE
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive: what TensorFlow decodes
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without content: TEM, and restarts
_ENDS_SCAN = np.ones(256, bool)
_ENDS_SCAN[[0x00, *range(0xD0, 0xD8), 0xFF]] = False  # 0xFF itself, restarts, and fill bytes before a marker
_CMYK_COMPONENTS = 4


@dataclasses.dataclass(frozen=True)
class Info:
    """What a picture is; all but the format only of a JPEG."""

    format: str  # 'JPEG', 'PNG', 'GIF', 'WEBP' or 'BMP'
    width: int = 0  # pixels
    height: int = 0
    components: int = 0
    precision: int = 0  # bits of a component
    colour: str = ''  # 'grey', 'YCbCr', 'RGB', 'CMYK' or 'YCCK'
    frame: int = 0  # the marker of the frame header: 0xC0 baseline, 0xC2 progressive
    has_adobe: bool = False
    is_whole: bool = True  # its end is there
    problem: str = ''  # why it is not whole

    @property
    def is_rgb_jpeg(self):
        """Whether tf.io.decode_jpeg gives three channels of it without a conversion."""
        return self._is_plain_jpeg and self.colour in ('YCbCr', 'RGB')

    @property
    def is_grey_jpeg(self):
        """Whether it is a grey one that TensorFlow can decode."""
        return self._is_plain_jpeg and self.colour == 'grey'

    @property
    def _is_plain_jpeg(self):
        return self.format == 'JPEG' and self.precision == 8 and self.frame in _HUFFMAN_FRAMES


def inspect(data):
    """Return the Info of a picture, from its bytes, without decoding it.

    Raises:
        ValueError: no picture of a known format, or a JPEG whose header is cut off or makes no sense.
    """
    data = bytes(data)
    if data[:2] == b'\xff\xd8':
        return _inspect_jpeg(data)
    for name, magic in (('PNG', b'\x89PNG\r\n\x1a\n'), ('GIF', b'GIF87a'), ('GIF', b'GIF89a'), ('BMP', b'BM')):
        if data.startswith(magic):
            return Info(name)
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        return Info('WEBP')
    raise ValueError(f'no JPEG, PNG, GIF, WebP or BMP: it begins with 0x{data[:4].hex()}' if data else 'it is empty')


def to_rgb_jpeg(data, check='structure', keeps_grey=False):
    """Return (data, width, height): a picture as JPEG of three components, the same bytes if it is one already.

    Everything else (other formats, grey, CMYK) is decoded and encoded anew at quality 100; of an animation its first
    frame, without transparency, not turned by EXIF.

    Args:
        data: bytes of the file.
        check: 'structure' trusts a JPEG whose segments are in order and whose end is there; 'decode' decodes it, which
            finds tables that contradict, but not every damage inside: libjpeg draws something for most.
        keeps_grey: whether a JPEG of one component stays as it is, which tf.io.decode_jpeg makes three of.

    Raises:
        ValueError: broken; the message is the reason.
    """
    info = inspect(data)
    if not info.is_whole:
        raise ValueError(info.problem)
    if info.width * info.height > MAX_PIXELS:
        raise ValueError(f'{info.width} x {info.height} are too many pixels')
    if not info.is_rgb_jpeg and not (keeps_grey and info.is_grey_jpeg):
        image = _decode(data, info)
        buffer = io.BytesIO()
        image.save(buffer, 'JPEG', quality=QUALITY, subsampling=0)
        return buffer.getvalue(), *image.size
    if check == 'decode':
        _decode(data, info)
    return data, info.width, info.height


def reason(info):
    """Return why a picture has to be encoded anew, as 'PNG' or 'JPEG, CMYK'."""
    return info.format if info.format != 'JPEG' else f'JPEG, {info.colour}'


def _inspect_jpeg(data):
    """Walk over the segments."""
    frame, adobe, markers, has_jfif, has_scan, place, end = None, None, None, False, False, 2, len(data)
    while True:
        place = data.find(b'\xff', place)  # bytes before it are skipped, as libjpeg does
        while 0 <= place < end and data[place] == 0xFF:
            place += 1
        if not 0 <= place < end:
            return _info(frame, adobe, has_jfif, 'cut off: it has no end of image')
        marker, place = data[place], place + 1
        if marker == _END:
            return _info(frame, adobe, has_jfif, '' if has_scan else 'it ends without a scan')
        if marker in _BARE or marker == 0:
            continue
        if marker == _START:
            raise ValueError(f'a second picture begins inside, at byte {place - 2}')
        size = int.from_bytes(data[place : place + 2], 'big')
        if place + max(size, 2) > end:
            return _info(frame, adobe, has_jfif, f'cut off in the segment at byte {place - 2}')
        if size < 2:
            raise ValueError(f'the segment at byte {place - 2} has the length {size}')
        content, place = data[place + 2 : min(place + size, place + 64)], place + size
        if marker in _FRAMES:
            frame = _frame(marker, content, frame)
        elif marker == _ADOBE and content[:5] == b'Adobe' and len(content) >= 12:
            adobe = content[11]
        elif marker == 0xE0 and content[:5] == b'JFIF\0':
            has_jfif = True
        elif marker == _SCAN:
            _require_scan(frame, content)
            has_scan, markers = True, _markers(data) if markers is None else markers
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
        raise ValueError(f'its frame header says {width} x {height} pixels of {components} components')
    return marker, precision, height, width, content[6 : 6 + 3 * components : 3]


def _require_scan(frame, content):
    if not frame:
        raise ValueError('it has a scan before the frame header')
    if not content or not 1 <= content[0] <= len(frame[4]) or len(content) != 4 + 2 * content[0]:
        raise ValueError('its scan header makes no sense')
    if not set(content[1 : 1 + 2 * content[0] : 2]) <= set(frame[4]):
        raise ValueError('it has a scan of an unknown component')


def _markers(data):
    """Return where 0xFF stands before a marker that ends a scan, sorted; some of these places lie inside segments."""
    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    return places[_ENDS_SCAN[values[places + 1]]]


def _info(frame, adobe, has_jfif, problem):
    if not frame:
        raise ValueError(problem or 'it has no frame header')
    marker, precision, height, width, identifiers = frame
    components = len(identifiers)
    if components == 1:
        colour = 'grey'
    elif components == _CMYK_COMPONENTS:
        colour = 'YCCK' if adobe == 2 else 'CMYK'
    elif has_jfif:  # in the order in which libjpeg decides
        colour = 'YCbCr'
    elif adobe is not None:
        colour = 'RGB' if adobe == 0 else 'YCbCr'
    else:
        colour = 'RGB' if identifiers == b'RGB' else 'YCbCr'
    return Info('JPEG', width, height, components, precision, colour, marker, adobe is not None, not problem, problem)


def _decode(data, info):
    """Return a picture as Pillow's RGB image."""
    from PIL import Image, ImageChops, UnidentifiedImageError

    Image.init()  # knows only some formats before; costs nothing from the second time on
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's, of odd but readable files
            with Image.open(io.BytesIO(data), formats=[info.format]) as image:
                image.load()
                if image.mode.startswith('I'):  # 16 bits: their upper byte, as libpng gives it
                    image = image.point(lambda value: value * (1 / 256)).convert('L')
                if image.mode == 'CMYK' and not info.has_adobe:
                    image = ImageChops.invert(image)  # Pillow takes all for inverted, as only Adobe's are
                if image.mode in ('P', 'PA'):  # a palette may hold transparent colours
                    image = image.convert('RGBA')
                return image.convert('RGB')
    except UnidentifiedImageError:  # its message has an address of memory
        what = f', of {info.precision} bits' if info.precision not in (0, 8) else ''
        raise ValueError(f'a {info.format} that cannot be decoded{what}') from None
    except Exception as error:  # Pillow raises whatever a broken file provokes
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
