"""Decode an image from its bytes to its pixels. Only the functions that need Pillow import it.

There are two decoders. TensorFlow's (encoded.decode_jpeg) reads plain JPEG (8 bits, one or three components), and can
decode just part of an image, in the threads of tf.data. Therefore streamed images are converted to plain JPEG first, by
`to_rgb_jpeg`, unless they are plain already. Pillow reads all other images. From the same JPEG, TensorFlow's accurate
transform gives exactly Pillow's pixels. Its fast transform, the default of official/resnet, differs by at most 24 of
255, and by 1.2 on average, for ImageNet's images.

Rules for all formats: the first frame of an animation and the upper byte of 16-bit values are used; transparency is
ignored, even in a palette; an image of more than MAX_PIXELS is refused. Some rules depend on the caller:

| rule                            | FOLDER           | PREDICTION            | SHARDS                                  |
|---------------------------------|------------------|-----------------------|-----------------------------------------|
| used by                         | image_folder     | inference.predict     | streamed files, TFDS, building          |
| formats                         | FORMATS          | Pillow's, except EPS  | FORMATS                                 |
| turned as EXIF says             | yes              | yes                   | no, as in official/resnet               |
| inks of a CMYK JPEG are read    | always           | always                | only with Adobe's marker, as TensorFlow |
| as inverted                     |                  |                       | and libjpeg do                          |
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from official_resnet import files
from official_resnet.inputs import jpeg

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')  # Pillow's names
JPEG_SUFFIXES = ('.jpeg', '.jpg')
SUFFIXES = ('.bmp', '.gif', '.jpe', *JPEG_SUFFIXES, '.png', '.tif', '.tiff', '.webp')  # of files in FORMATS
MAX_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS, above which it refuses to decode
QUALITY = 100  # of images that are encoded again, as in TensorFlow's own build script


@dataclasses.dataclass(frozen=True)
class Rules:
    """How Pillow decodes where there is a choice; see the table above."""

    formats: tuple[str, ...] | None  # Pillow's names of formats; None is all except EPS, which would run Ghostscript
    uses_exif: bool
    inverts_all_cmyk: bool


FOLDER = Rules(FORMATS, uses_exif=True, inverts_all_cmyk=True)
PREDICTION = Rules(None, uses_exif=True, inverts_all_cmyk=True)
SHARDS = Rules(FORMATS, uses_exif=False, inverts_all_cmyk=False)


def decode(
    source: 'str | os.PathLike | bytes | np.ndarray | PIL.Image.Image', rules: Rules, mode: str = 'RGB'
) -> 'PIL.Image.Image':
    """Decode an image with Pillow.

    Args:
        source: A file, its bytes, an array, uint8 [h, w, c] or [h, w], or an image that Pillow opened.
        rules: FOLDER, PREDICTION or SHARDS.
        mode: Mode of the result, 'RGB' or 'L' (grey).

    Raises:
        ValueError: The image cannot be decoded; the message is the reason, one line without the file's name.
    """
    from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

    Image.init()  # registers all formats; costs nothing from the second time on
    formats = rules.formats or [name for name in Image.ID if name != 'EPS']
    try:
        if isinstance(source, np.ndarray):
            source = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
        if isinstance(source, Image.Image):
            opened: contextlib.AbstractContextManager[Image.Image] = contextlib.nullcontext(source)
        else:
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        with warnings.catch_warnings(), opened as image:
            warnings.simplefilter('ignore')  # Pillow warns of odd but readable files
            image.load()
            if rules.uses_exif:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith('I'):  # 16 bits: use the upper byte, as libpng does
                pixels = np.asarray(image).astype(np.int64)
                image = Image.fromarray(np.clip(pixels >> 8, 0, 255).astype(np.uint8))
            is_cmyk_jpeg = (image.format, image.mode) == ('JPEG', 'CMYK')
            if is_cmyk_jpeg and not rules.inverts_all_cmyk and 'adobe_transform' not in image.info:
                image = ImageChops.invert(image)  # Pillow has inverted it
            if image.mode in ('P', 'PA'):  # a palette may have transparent colours
                image = image.convert('RGBA')
            return image.convert(mode)
    except UnidentifiedImageError:  # its message contains a memory address
        raise ValueError('cannot identify image file') from None
    except Exception as error:  # noqa: BLE001  a broken file makes Pillow raise anything
        if isinstance(error, OSError) and files.is_of_machine(error):  # not the image's fault: it is not left out
            raise
        reason = getattr(error, 'strerror', None) or next(iter(str(error).splitlines()), '') or type(error).__name__
        raise ValueError(reason) from error


def to_rgb_jpeg(data: bytes, check: str = 'structure', keeps_grey: bool = False) -> tuple[bytes, int, int]:
    """Return an image as a JPEG of three components, (data, width, height). If it is one already, data is unchanged.

    Any other image (another format, grey, CMYK) is decoded by the rules of SHARDS and encoded again at quality 100.

    Args:
        check: 'structure' accepts a JPEG whose segments are in order and whose end is present. 'decode' decodes it and
            finds contradicting tables, but not all damage: libjpeg turns most damaged data into pixels.
        keeps_grey: Whether to keep a JPEG of one component, which tf.io.decode_jpeg converts to three by itself.

    Raises:
        ValueError: The image is broken; the message is the reason.
    """
    info = jpeg.inspect(data)
    if not info.is_whole:
        raise ValueError(info.problem)
    if info.width * info.height > MAX_PIXELS:
        raise ValueError(f'{info.width} x {info.height} pixels are too many; the limit is {MAX_PIXELS}')
    if info.precision not in (0, 8):
        raise ValueError(f'a JPEG of {info.precision} bits, which cannot be decoded')
    is_plain = info.is_rgb_jpeg or keeps_grey and info.can_be_decoded and info.colour == 'grey'
    if is_plain and check != 'decode':
        return data, info.width, info.height
    image = decode(bytes(data), SHARDS)
    if is_plain:
        return data, info.width, info.height
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=QUALITY, subsampling=0)
    return buffer.getvalue(), *image.size


def is_image(path: str) -> bool:
    """Return whether a file is an image in one of FORMATS: by its suffix, which decoding confirms, or by its bytes."""
    if path.lower().endswith(SUFFIXES):
        return True
    if not os.path.isfile(path):  # nothing is read from a FIFO or a device
        return False
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        head = file.read(12)
        return bool(jpeg.format_of(head)) and (head[:2] != b'BM' or head[6:10] == bytes(4))  # a text may begin with BM
    return False


def find_files(
    folder: str | os.PathLike[str], is_wanted: Callable[[str], bool] = is_image
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Return the image files below a folder and its other files, in any order.

    Hidden files, such as '._1.jpg' of macOS, belong to neither.
    """
    found: dict[bool, list[pathlib.Path]] = {True: [], False: []}
    for parent, _, names in os.walk(folder):
        for name in names:
            if not name.startswith('.'):
                found[is_wanted(f'{parent}/{name}')].append(pathlib.Path(parent, name))
    return found[True], found[False]


def is_jpeg_name(path: str) -> bool:
    """Return whether a path has a suffix of JPEG files."""
    return path.lower().endswith(JPEG_SUFFIXES)
