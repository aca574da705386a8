"""Decode an image from its bytes to its pixels. Only the functions that need Pillow import it.

There are two decoders. TensorFlow's (encoded.decode_jpeg) reads plain JPEG (8 bits, one or three components), and can
decode just part of an image, in the threads of tf.data. Therefore streamed images are converted to plain JPEG first, by
`to_rgb_jpeg`, unless they are plain already. Pillow reads all other images. From the same JPEG, TensorFlow's accurate
transform gives exactly Pillow's pixels. Its fast transform, the default of official/resnet, differs by at most 24 of
255, and by 1.2 on average, for ImageNet's images.

Rules for all formats: the first frame of an animation is used; transparency is ignored, even in a palette; inks of a
CMYK JPEG are read as inverted if it has Adobe's marker, as in libjpeg; an image beyond `bounds` is refused. Of 16-bit
values, the upper byte is used. Floating-point values outside 0..1 are refused, and so are 32-bit integers, because
nothing says which of them is white. Some rules depend on the caller:

| rule                | FOLDER                              | PREDICTION           | SHARDS                         |
|---------------------|-------------------------------------|----------------------|--------------------------------|
| used by             | your own images: image_folder, TFDS | inference.predict    | ILSVRC2012, also TFDS's        |
|                     | and build_image_data                |                      |                                |
| formats             | FORMATS                             | Pillow's, except EPS | FORMATS                        |
| turned as EXIF says | yes                                 | as the card says     | no, as in official/resnet      |

Threads decode at the same time while their images have at most PIXELS_AT_A_TIME pixels together.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import io
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from official_resnet import bounds, damage, files
from official_resnet.inputs import jpeg

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')  # Pillow's names
JPEG_SUFFIXES = ('.jpeg', '.jpg')
SUFFIXES = ('.bmp', '.gif', '.jpe', *JPEG_SUFFIXES, '.png', '.tif', '.tiff', '.webp')  # of files in FORMATS
_SIXTEEN_BITS = (None, 'PNG', 'PPM')  # formats whose values are 0..65535 if Pillow reads them as 32-bit integers
PIXELS_AT_A_TIME = 2**27  # most that all threads decode at once; Pillow needs 4 bytes for a pixel of RGB, so 0.5 GB
LARGE_PIXELS = 2**24  # the memory of a larger image is given back to the system at once
DRAFT_PIXELS = 2**25  # libjpeg reduces a JPEG that has more pixels as it decodes it, if a small image is wanted
NUM_SAMPLES, SAMPLE_BYTES = 200, 2**16  # by which a run knows that its images are still those with which it began
QUALITY = 100  # of images that are encoded again, as in TensorFlow's own build script
REDUCED_QUALITY = 95  # of large images that are reduced for training; takes half of the bytes of QUALITY


@dataclasses.dataclass(frozen=True)
class Rules:
    """How Pillow decodes where there is a choice; see the table above."""

    formats: tuple[str, ...] | None  # Pillow's names of formats; None is all except EPS, which would run Ghostscript
    uses_exif: bool


FOLDER = Rules(FORMATS, uses_exif=True)
PREDICTION = Rules(None, uses_exif=True)
SHARDS = Rules(FORMATS, uses_exif=False)


class _Budget:
    """Pixels that are decoded at the same time. A larger image waits until it is alone."""

    def __init__(self, limit: int):
        self.limit, self.used, self._changed = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + pixels <= self.limit)
            self.used += pixels
        try:
            yield
        finally:
            if pixels > LARGE_PIXELS:  # malloc keeps what it freed, for each thread
                with contextlib.suppress(AttributeError):  # other than glibc
                    ctypes.CDLL(None).malloc_trim(0)
            with self._changed:
                self.used -= pixels
                self._changed.notify_all()


_BUDGET = _Budget(PIXELS_AT_A_TIME)


def decode(
    source: 'str | os.PathLike | bytes | np.ndarray | PIL.Image.Image',
    rules: Rules,
    mode: str = 'RGB',
    finish: 'Callable[[PIL.Image.Image], Any]' = lambda image: image,
    least: int | None = None,
    reduced_from: int | None = None,
) -> Any:
    """Decode an image with Pillow.

    Args:
        source: A file, its bytes, an array, uint8 [h, w, c] or [h, w], or an image that Pillow opened.
        rules: FOLDER, PREDICTION or SHARDS.
        mode: Mode of the result, 'RGB' or 'L' (grey).
        finish: Called with the decoded image; its result is returned. It counts as a part of decoding, so that only
            small results of many large images are in memory. Default: the image itself.
        least: Height and width, in pixels, that `finish` needs. A JPEG of more than `reduced_from` pixels is then
            reduced to no less than twice this size as it is decoded.
        reduced_from: See `least`; None: DRAFT_PIXELS.

    Raises:
        ValueError: The image cannot be decoded; the message is the reason, one line without the file's name.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()  # registers all formats; costs nothing from the second time on
    formats = rules.formats or [name for name in Image.ID if name != 'EPS']
    try:
        given: Any = source
        if isinstance(source, np.ndarray):
            given = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter('ignore')  # Pillow warns of odd but readable files
            if isinstance(given, bytes):
                given = io.BytesIO(given)
            elif not isinstance(given, Image.Image):
                given = stack.enter_context(open(given, 'rb', opener=files.plain))
            image = given if isinstance(given, Image.Image) else Image.open(given, formats=formats)
            require_size(*image.size)
            most = DRAFT_PIXELS if reduced_from is None else reduced_from
            if least and image is not given and image.width * image.height > most:
                image.draft(None, (2 * least, 2 * least))
            stack.enter_context(_BUDGET.take(image.width * image.height))
            try:  # each image replaces the one before it, whose memory is free then
                image.load()
                if rules.uses_exif:
                    image = _upright(image)
                image = _to_8_bits(image)
                return finish(image if image.mode == mode else image.convert(mode))
            finally:
                del image  # before its pixels are given back
    except UnidentifiedImageError:  # its message contains a memory address
        head = _head(source)
        raise ValueError(jpeg.HEIC if jpeg.is_heic(head) else jpeg.UNKNOWN if head else jpeg.EMPTY) from None
    except Exception as error:  # noqa: BLE001  a broken file makes Pillow raise anything
        is_of_system = isinstance(error, OSError) and damage.is_of_machine(error)
        if is_of_system or isinstance(error, MemoryError):  # not the image's fault: it is not left out
            raise
        reason = getattr(error, 'strerror', None) or next(iter(str(error).splitlines()), '') or type(error).__name__
        remedy = files.advice(error, '') if isinstance(error, OSError) else ''
        raise ValueError(f'{reason}; {remedy}' if remedy else reason) from error


def _head(source):
    """Return the first 12 bytes of a file or of its bytes; b'?' of an image that is neither."""
    if not isinstance(source, str | os.PathLike):
        return source[:12] if isinstance(source, bytes) else b'?'
    with open(source, 'rb', opener=files.plain) as file:
        return file.read(12)


def _upright(image):
    """Return an image that was loaded, turned as its EXIF says. Pillow has turned a TIFF by itself."""
    from PIL import Image

    exif = image.info.get('exif')
    turns = [
        *(Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
        *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    ]
    orientation = jpeg.orientation(exif) if isinstance(exif, bytes) and image.format != 'TIFF' else 1
    return image if orientation == 1 else image.transpose(turns[orientation - 2])


def _to_8_bits(image):
    """Return an image that was loaded, with values of 8 bits and inks and a palette as the rules say."""
    from PIL import Image, ImageChops

    if image.mode.startswith('I'):
        pixels = np.asarray(image)
        if image.mode == 'I' and (image.format not in _SIXTEEN_BITS or not 0 <= pixels.min() <= pixels.max() < 1 << 16):
            raise ValueError('integers of 32 bits or with a sign, whose white is unknown; save it with 8 or 16 bits')
        return Image.fromarray((pixels >> 8).astype(np.uint8))  # the upper byte, as libpng does
    if image.mode == 'F':
        pixels = np.asarray(image)
        if not 0 <= pixels.min() <= pixels.max() <= 1:  # also refuses NaN
            raise ValueError(f'values {pixels.min():g}..{pixels.max():g}, not 0..1; save it with 8 or 16 bits')
        return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))
    if image.mode == 'CMYK' and image.format in ('JPEG', 'MPO') and 'adobe_transform' not in image.info:
        return ImageChops.invert(image)  # Pillow has inverted it
    if image.mode in ('P', 'PA'):  # a palette may have transparent colours
        return image.convert('RGBA')
    return image


def to_rgb_jpeg(
    data: bytes,
    check: str = 'structure',
    rules: Rules = SHARDS,
    keeps_grey: bool = False,
    keeps_exif: bool = False,
    side: int | None = None,
) -> tuple[bytes, int, int]:
    """Return an image as a JPEG of three components, (data, width, height). If it is one already, data is unchanged.

    Any other image (another format, grey, CMYK) is decoded by `rules` and encoded again at quality 100, without EXIF.

    Args:
        check: 'structure' accepts a JPEG whose segments are in order and whose end is present. 'decode' decodes it and
            finds contradicting tables, but not all damage: libjpeg turns most damaged data into pixels.
        rules: FOLDER, or SHARDS, which does not turn images as EXIF says.
        keeps_grey: Whether to keep a JPEG of one component, which tf.io.decode_jpeg converts to three by itself.
        keeps_exif: Whether to keep a JPEG that `rules` turn, because its decoder turns it (encoded.orientation).
        side: Pixels that are enough for the shorter side. If it has twice as many or more, the image is divided by a
            whole number that leaves at least this many, and encoded at quality REDUCED_QUALITY.

    Raises:
        ValueError: The image is broken; the message is the reason.
    """
    info = jpeg.inspect(data)
    require_whole(info)
    is_plain = info.is_rgb_jpeg or keeps_grey and info.can_be_decoded and info.colour == 'grey'
    is_large = side is not None and min(info.width, info.height) >= 2 * side
    if is_large or rules.uses_exif and not keeps_exif and info.orientation > 1:
        is_plain = False

    def encode(image) -> tuple[bytes, int, int]:
        buffer = io.BytesIO()
        factor = min(image.size) // side if side else 1  # libjpeg has already reduced a JPEG in part
        image = image.reduce(factor) if factor > 1 else image
        quality = REDUCED_QUALITY if is_large or factor > 1 else QUALITY
        image.save(buffer, 'JPEG', quality=quality, subsampling=0)
        return buffer.getvalue(), *image.size

    if is_plain:
        if check == 'decode':
            decode(bytes(data), rules, finish=lambda image: None)
        return data, info.width, info.height
    least, start = (side // 2, 0) if side and is_large else (None, None)
    return decode(bytes(data), rules, finish=encode, least=least, reduced_from=start)


def require_whole(info: jpeg.Info) -> None:
    """Raise ValueError if the pixels of an image cannot be decoded, as far as `jpeg.inspect` sees this."""
    if not info.is_whole:
        raise ValueError(info.problem)
    require_size(info.width, info.height)
    if info.precision not in (0, 8):
        raise ValueError(f'a JPEG of {info.precision} bits, which cannot be decoded')


def require_size(width: int, height: int) -> None:
    """Raise ValueError if an image has more pixels, or more on a side, than the table of bounds allows."""
    for row, size in (('image_pixels', width * height), ('image_side', max(width, height))):
        if size > bounds.limit(row):
            most = f'{bounds.limit(row)} {bounds.BOUNDS[row].unit}'
            raise ValueError(f'{width} x {height} pixels are too many; at most {most}')


def is_image(path: str) -> bool:
    """Return whether a file is an image in one of FORMATS: by its suffix, which decoding confirms, or by its bytes."""
    if path.lower().endswith(SUFFIXES):
        return True
    if not os.path.isfile(path):  # nothing is read from a FIFO or a device
        return False
    with contextlib.suppress(OSError):
        head = _head(path)
        return bool(jpeg.format_of(head)) and (head[:2] != b'BM' or head[6:10] == bytes(4))  # a text may begin with BM
    return False


def is_leftover(name: str) -> bool:
    """Return whether a file or folder is hidden, as '._1.jpg' of macOS, or was left by a system, as Thumbs.db."""
    is_of_system = name.casefold() in ('thumbs.db', 'desktop.ini', 'lost+found')
    return is_of_system or name.startswith(('.', '@eaDir', '__MACOSX', '$RECYCLE'))


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry]:
    """Return what is in a folder, in the order of the names. Raise UserError if the folder cannot be read."""
    with files.read_errors(folder, 'pass another folder', 'folder '):
        return sorted(os.scandir(os.fspath(folder)), key=lambda entry: entry.name)


def leads_above(link: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Return whether a link leads to a folder, or to one that holds it."""
    return pathlib.Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def find_files(
    folder: str | os.PathLike[str], is_wanted: Callable[[str], bool] = is_image
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Return the image files below a folder and its other files, in any order.

    What `is_leftover` says belongs to neither. Links are followed, but to no folder that holds this one; a folder is
    read once. A link to nothing is one of the other files.

    Raises:
        UserError: The folder, or one below it, cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # the caller reports a folder that is missing
            with files.read_errors(error.filename, 'pass another folder', 'folder '):
                raise error

    found: dict[bool, list[pathlib.Path]] = {True: [], False: []}
    folder, seen = os.fspath(folder), set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        is_loop = parent != folder and os.path.islink(parent) and leads_above(parent, folder)
        if is_loop or (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_leftover(name))
        for name in names:
            path = f'{parent}/{name}'
            if not is_leftover(name):
                found[(os.path.exists(path) or not os.path.islink(path)) and is_wanted(path)].append(pathlib.Path(path))
    return found[True], found[False]


def heic_line(others: Sequence[pathlib.Path]) -> str:
    """Return a line that counts the files that are HEIC by their names and says how to convert them; '' for none."""
    count = sum(path.suffix.lower() in ('.heic', '.heif') for path in others)
    return f'{count} of these: {jpeg.HEIC}' if count else ''


def content_of(paths: Sequence[str | os.PathLike]) -> str:
    """Return a hash of the sizes of files, in this order, and of the beginnings of some of them, see `samples`."""
    digest = hashlib.sha256()
    for i, path in enumerate(paths):
        with files.read_errors(path, 'put it back'):
            digest.update(b'%d ' % os.path.getsize(path))
            if i in samples(len(paths)):
                with open(path, 'rb', opener=files.plain) as file:
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def samples(count: int) -> range:
    """Return fewer than twice NUM_SAMPLES numbers in 0..count-1, evenly spread, from 0 on."""
    return range(0, count, max(1, count // NUM_SAMPLES))


def is_jpeg_name(path: str) -> bool:
    """Return whether a path has a suffix of JPEG files."""
    return path.lower().endswith(JPEG_SUFFIXES)
