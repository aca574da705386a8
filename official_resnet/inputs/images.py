"""The home of decoding: from the bytes of an image to its pixels. What needs Pillow imports it.

Two decoders. TensorFlow's (encoded.decode_jpeg) reads plain JPEG (8 bits, one or three components), also a part of an
image alone, in the threads of tf.data; so whatever is streamed is made plain JPEG first, by `to_rgb_jpeg`, which leaves
alone what is one. Pillow reads everything else. Of the same JPEG, TensorFlow's accurate transform gives the very pixels
that Pillow gives; its fast one, the default of official/resnet, differs by at most 24 of 255, and by 1.2 on average
(ImageNet's images).

The rules, whatever the format: the first frame of an animation; the upper byte of 16 bits; transparency is ignored,
also that of a palette's colours; more than MAX_PIXELS are refused. Where callers differ:

| rule                            | FOLDER           | PREDICTION            | SHARDS                                  |
|---------------------------------|------------------|-----------------------|-----------------------------------------|
| used by                         | image_folder     | inference.predict     | files that are streamed, TFDS, building |
| formats                         | FORMATS          | Pillow's, without EPS | FORMATS                                 |
| turned as EXIF says             | yes              | yes                   | no, as in official/resnet               |
| inks of a CMYK JPEG are         | always           | always                | only with Adobe's marker, as TensorFlow |
| taken for inverted              |                  |                       | and libjpeg do                          |
"""

import dataclasses
import io
import os
import pathlib
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from official_resnet.inputs import jpeg

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'WEBP')  # Pillow's names
JPEG_SUFFIXES = ('.jpeg', '.jpg')
SUFFIXES = ('.bmp', '.gif', '.jpe', *JPEG_SUFFIXES, '.png', '.webp')  # of files of FORMATS
PREDICTION_SUFFIXES = tuple(sorted((*SUFFIXES, '.tif', '.tiff')))  # prediction reads other formats, too
MAX_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS, above which it refuses to decode
QUALITY = 100  # of what is encoded anew, as TensorFlow's own build script had it


@dataclasses.dataclass(frozen=True)
class Rules:
    """How Pillow decodes where there is a choice; see the table above."""

    formats: tuple[str, ...] | None  # Pillow's names of those that are read; None: all but EPS, which runs Ghostscript
    uses_exif: bool
    inverts_all_cmyk: bool


FOLDER = Rules(FORMATS, uses_exif=True, inverts_all_cmyk=True)
PREDICTION = Rules(None, uses_exif=True, inverts_all_cmyk=True)
SHARDS = Rules(FORMATS, uses_exif=False, inverts_all_cmyk=False)


def decode(
    source: 'str | os.PathLike | bytes | np.ndarray | PIL.Image.Image', rules: Rules, mode: str = 'RGB'
) -> 'PIL.Image.Image':
    """Decode an image by Pillow.

    Args:
        source: its file, its bytes, an array uint8 [h, w, c] or [h, w], or an image that Pillow opened.
        rules: FOLDER, PREDICTION or SHARDS.
        mode: of the result, 'RGB' or 'L', grey.

    Raises:
        ValueError: it cannot be decoded; the message is the reason, one line without the name of the file.
    """
    from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

    Image.init()  # knows only some formats before; costs nothing from the second time on
    formats = rules.formats or [name for name in Image.ID if name != 'EPS']
    try:
        if isinstance(source, np.ndarray):
            source = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
        source = io.BytesIO(source) if isinstance(source, bytes) else source
        is_open = isinstance(source, Image.Image)
        with (
            warnings.catch_warnings(),
            nullcontext(source) if is_open else Image.open(source, formats=formats) as image,
        ):
            warnings.simplefilter('ignore')  # Pillow's, of odd but readable files
            image.load()
            if rules.uses_exif:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith('I'):  # 16 bits: their upper byte, as libpng gives it
                pixels = np.asarray(image).astype(np.int64)
                image = Image.fromarray(np.clip(pixels >> 8, 0, 255).astype(np.uint8))
            if image.mode == 'CMYK' and not rules.inverts_all_cmyk and 'adobe_transform' not in image.info:
                image = ImageChops.invert(image)  # Pillow has inverted it
            if image.mode in ('P', 'PA'):  # a palette may hold transparent colours
                image = image.convert('RGBA')
            return image.convert(mode)
    except UnidentifiedImageError:  # its message has an address of memory
        raise ValueError('cannot identify image file') from None
    except Exception as error:  # noqa: BLE001  Pillow raises whatever a broken file provokes
        reason = getattr(error, 'strerror', None) or next(iter(str(error).splitlines()), '') or type(error).__name__
        raise ValueError(reason) from error


def to_rgb_jpeg(data: bytes, check: str = 'structure', keeps_grey: bool = False) -> tuple[bytes, int, int]:
    """Return (data, width, height): an image as JPEG of three components, the same bytes if it is one already.

    Everything else (other formats, grey, CMYK) is decoded by the rules of SHARDS and encoded anew at quality 100.

    Args:
        check: 'structure' trusts a JPEG whose segments are in order and whose end is there; 'decode' decodes it, which
            finds tables that contradict, but not every damage inside: libjpeg draws something for most.
        keeps_grey: whether a JPEG of one component stays as it is, which tf.io.decode_jpeg makes three of.

    Raises:
        ValueError: broken; the message is the reason.
    """
    info = jpeg.inspect(data)
    if not info.is_whole:
        raise ValueError(info.problem)
    if info.width * info.height > MAX_PIXELS:
        raise ValueError(f'{info.width} x {info.height} are too many pixels')
    if info.precision not in (0, 8):
        raise ValueError(f'a JPEG that cannot be decoded, of {info.precision} bits')
    is_plain = info.is_rgb_jpeg or keeps_grey and info.can_be_decoded and info.colour == 'grey'
    if is_plain and check != 'decode':
        return data, info.width, info.height
    image = decode(bytes(data), SHARDS)
    if is_plain:
        return data, info.width, info.height
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=QUALITY, subsampling=0)
    return buffer.getvalue(), *image.size


def find_files(folder: str | os.PathLike, suffixes: tuple[str, ...] = SUFFIXES) -> list[pathlib.Path]:
    """Return the image files below a folder, in no order; hidden ones are none ('._1.jpg' of macOS)."""
    return [
        pathlib.Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith('.')
    ]
