"""Boxes of ILSVRC2012's training images: XML files -> one sorted CSV file -> arrays.

A line of the CSV is `name.JPEG,xmin,ymin,xmax,ymax`, each a fraction of the image's size in the XML, with four
decimals; lines are in the order of their bytes.

What is odd in the official files: a box may belong to another class of the list (left out), while a box of a dog
carries the text Scottish_deerhound (kept); corners may be exchanged (put right), lie outside of the image (moved to
its edge), or enclose nothing (left out); the name inside may be '%s' (the file's own name counts). Upstream's totals
are 544,546 XML files and 615,299 boxes.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
import warnings
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Collection, Iterator

import numpy as np

from official_resnet import files
from official_resnet.building import tars
from official_resnet.building.progress import Log
from official_resnet.errors import UserError

BOXES, CSV = 'ILSVRC2012_bbox_train_v2.tar.gz', 'imagenet_2012_bounding_boxes.csv'
_LARGEST = 1 << 20  # bytes of an XML file or another member; an official XML has about 1000
_NO_END = 1 << 62
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_ROW = np.dtype([('name', 'S64'), ('box', '<f4', 4)])


class Boxes:
    """Boxes of images, as two arrays: names, bytes [n], sorted, and coordinates, float32 [n, 4]."""

    def __init__(self, names: np.ndarray, coordinates: np.ndarray):
        self.names, self.coordinates = names, coordinates

    def of(self, basename: str) -> list[tuple[float, float, float, float]]:
        """Return [(xmin, ymin, xmax, ymax)] of an image, each 0..1 of its size."""
        name = os.fsencode(basename)
        if len(name) > self.names.dtype.itemsize:
            return []  # longer than any here; numpy would cut it
        key = np.array(name, self.names.dtype)
        begin, end = (np.searchsorted(self.names, key, side) for side in ('left', 'right'))
        return [tuple(row) for row in self.coordinates[begin:end].tolist()]


def read_csv(path: str | os.PathLike) -> Boxes:
    """Return the Boxes of a CSV file; those of an image keep their order.

    Raises:
        UserError: it cannot be read, or a line is no name and box.
    """
    remedy = 'make it by data/bounding_boxes.py, or pass another --bounding_box_file'
    try:
        with warnings.catch_warnings(action='ignore'):  # numpy's, of an empty file
            table = np.loadtxt(path, _ROW, delimiter=',', comments=None, ndmin=1)
    except OSError as error:
        raise UserError(f"bounding_box_file '{path}' cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"bounding_box_file '{path}': {str(error).splitlines()[0].rstrip('.')}; {remedy}") from None
    xmin, ymin, xmax, ymax = table['box'].T
    is_right = (xmin >= 0) & (ymin >= 0) & (xmax >= xmin) & (ymax >= ymin) & (xmax <= 1) & (ymax <= 1)
    if not is_right.all():
        wrong = int(np.argmin(is_right))
        raise UserError(
            f"bounding_box_file '{path}' has the box {table['box'][wrong].tolist()} in line {wrong + 1}, "
            f'not xmin, ymin, xmax, ymax in 0..1; {remedy}'
        )
    order = np.argsort(table['name'], kind='stable')
    width = max(1, int(np.char.str_len(table['name']).max(initial=1)))
    return Boxes(table['name'][order].astype(f'S{width}'), table['box'][order])


@dataclasses.dataclass
class Counts:
    """What became of the XML files and of their boxes."""

    files: int = 0  # of listed synsets, read
    unlisted_files: int = 0
    broken_files: int = 0
    boxes: int = 0  # written
    other_boxes: int = 0  # of another listed synset
    empty_boxes: int = 0
    images: int = 0  # with a box
    first_broken: list = dataclasses.field(default_factory=list)  # (name, reason), at most 5

    def lines(self) -> list[str]:
        """Return what to tell the user."""
        lines = [
            f'{self.boxes} boxes of {self.images} images from {self.files} XML files; left out: '
            f'{self.unlisted_files} files of unlisted synsets, {self.other_boxes} boxes of another synset, '
            f'{self.empty_boxes} empty boxes, {self.broken_files} broken files'
        ]
        return lines + [f"broken XML, left out: '{name}' ({reason})" for name, reason in self.first_broken]


def read_xml(path: str | os.PathLike, synsets: Collection[str] | None = None) -> tuple[list[bytes], Counts]:
    """Return the CSV lines of a folder or tar file of XMLs, sorted, and the Counts.

    Args:
        path: ILSVRC2012_bbox_train_v2.tar.gz, or a tar file or folder of the same shape: <synset>/<image>.xml.
        synsets: the listed classes; None takes all, and every box.

    Returns:
        (lines, counts): bytes without a line end; Counts.

    Raises:
        UserError: it cannot be read, is damaged or cut off, or has no XML file.
    """
    synsets, lines, counts = None if synsets is None else frozenset(synsets), [], Counts()
    for synset, name, data in _folder_files(path) if os.path.isdir(path) else _synset_files(path):
        if synsets is not None and synset not in synsets:
            counts.unlisted_files += 1
            continue
        try:
            boxes = parse(data(), synset, synsets, counts)
        except ValueError as error:
            counts.broken_files += 1
            if len(counts.first_broken) < 5:
                counts.first_broken.append((f'{synset}/{name}', str(error)))
            continue
        counts.files += 1
        counts.boxes += len(boxes)
        counts.images += bool(boxes)
        image = name.removesuffix('.xml')
        lines += [f'{image}.JPEG,{box[0]:.4f},{box[1]:.4f},{box[2]:.4f},{box[3]:.4f}'.encode() for box in boxes]
    if not counts.files + counts.unlisted_files + counts.broken_files:
        raise UserError(f"'{path}' has no <synset>/<image>.xml; pass {BOXES}, or the folder it unpacks to")
    return sorted(lines), counts


def write_csv(path: str | os.PathLike, output: str | os.PathLike, synsets=None, log: Log = print) -> None:
    """Write the lines of `read_xml` to the file `output`, and log what was left out."""
    lines, counts = read_xml(path, synsets)
    with files.replacing(output) as part:
        part.write_bytes(b''.join(line + b'\n' for line in lines))
    for line in counts.lines():
        log(line)


def update_csv(path: pathlib.Path | None, folder: pathlib.Path, synsets: Collection[str], log: Log) -> Boxes | None:
    """Return the boxes of the CSV in a folder, made of the tar file `path` if that is new; None without both."""
    csv, stamp_path = folder / CSV, folder / '.boxes.json'
    if path:
        status, digest = os.stat(path), hashlib.sha256(json.dumps(synsets).encode()).hexdigest()
        stamp = {'size': status.st_size, 'mtime_ns': status.st_mtime_ns, 'synsets': digest}
        if not csv.exists() or files.read_json(stamp_path) != stamp:
            log(f'reading the boxes of {path}')
            stamp_path.unlink(missing_ok=True)
            write_csv(path, csv, synsets, log)
            files.write_json(stamp_path, stamp)
    return read_csv(csv) if csv.exists() else None


def parse(
    data: bytes, synset: str, synsets: Collection[str] | None = None, counts: Counts | None = None
) -> list[tuple]:
    """Return the boxes (xmin, ymin, xmax, ymax) of an XML's bytes, 0..1; `counts` gets what is left out.

    Raises:
        ValueError: it is no such XML, or gives the image no size.
    """
    counts, boxes = counts or Counts(), []
    root = xml(data)
    width, height = _number(root, 'size/width'), _number(root, 'size/height')
    if not (width > 0 and height > 0):
        raise ValueError(f'the image has size {width:g} x {height:g}')
    for element in root.iter('object'):
        name = (element.findtext('name') or '').strip()
        if synsets is not None and name != synset and name in synsets:
            counts.other_boxes += 1
            continue
        x, y = (
            [min(max(_number(element, f'bndbox/{axis}{end}') / size, 0), 1) for end in ('min', 'max')]
            for axis, size in (('x', width), ('y', height))
        )
        if x[0] == x[1] or y[0] == y[1]:
            counts.empty_boxes += 1
        else:
            boxes.append((min(x), min(y), max(x), max(y)))
    return boxes


def xml(data: bytes) -> ET.Element:
    """Return the root of an XML document; ValueError if it is none, or declares a document type or entities."""
    try:
        return ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, LookupError) as error:
        raise ValueError(f'no XML: {error}') from None


class _NoDoctype(ET.TreeBuilder):
    """A tree without a document type: with none, no entity can expand or read a file."""

    def doctype(self, name, pubid, system):
        raise ValueError('it declares a document type')


def _number(root, path):
    text = root.findtext(path)
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = float('nan')
    if not abs(number) < float('inf'):
        raise ValueError(f'{path} is {text!r}, not a number')
    return number


def _folder_files(path):
    """Yield (synset, name, reader) of each XML file below a folder."""
    for parent, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith('.xml') and not name.startswith('.'):
                yield os.path.basename(parent), name, functools.partial(_read, os.path.join(parent, name))


def _read(path):
    with open(path, 'rb') as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f'more than {_LARGEST} bytes')
    return data


def _synset_files(path):
    """Yield (synset, name, reader) of each XML file in a tar file; a reader holds until the next."""
    for name, data in tar_files(path):
        parts = pathlib.PurePosixPath(name).parts
        if len(parts) > 1 and name.endswith('.xml') and not parts[-1].startswith('.'):
            yield parts[-2], parts[-1], data


def tar_files(path: str | os.PathLike) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield (name, reader) of each file in a tar file, packed by gzip or not; a reader holds until the next.

    Raises:
        UserError: it cannot be read, is damaged or cut off, which is known for sure at the end only.
    """
    remedy = f'pass {BOXES}, or the folder it unpacks to'
    with files.read_errors(path, remedy), open(path, 'rb') as file:
        is_packed = file.read(2) == b'\x1f\x8b'
        file.seek(0)
        with gzip.open(file) if is_packed else contextlib.nullcontext(file) as tar:
            try:
                for member in tars.members(tar, 0, _NO_END, f"'{path}'"):
                    if member.isreg():
                        yield member.name, lambda member=member: _content(tar, member)
                while tar.read(1 << 16):  # the checksum of gzip stands at the very end
                    pass
            except _DAMAGED as error:
                raise UserError(f"'{path}' is a cut off or damaged gzip file ({error}); get it again") from None


def _content(tar, member):
    if member.size > _LARGEST:
        raise ValueError(f'more than {_LARGEST} bytes')
    tar.seek(member.offset_data)
    return tar.read(member.size)
