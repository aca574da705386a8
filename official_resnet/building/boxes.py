"""Boxes of ILSVRC2012's training images: XML files -> one sorted CSV file -> arrays.

A line of the CSV is `name.JPEG,xmin,ymin,xmax,ymax`. Each number is a fraction of the image's size in the XML, with
four decimals. The lines are sorted by their bytes.

The official files have irregularities. A box with the id of another class of the list is left out. A box that is
called Scottish_deerhound is kept, because that is not an id. If the corners of a box are exchanged, they are swapped
back. Corners outside the image are moved to its edge, and a box without an area is left out. The name of the image
inside an XML file may be '%s', so the name of the XML file itself is used. Upstream's totals are 544,546 XML files and
615,299 boxes.
"""

import codecs
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from official_resnet import bounds, damage, files
from official_resnet.building.job import status
from official_resnet.building.progress import Log
from official_resnet.errors import UserError, one_line
from official_resnet.inputs import archives, images

BOXES, CSV = 'ILSVRC2012_bbox_train_v2.tar.gz', 'imagenet_2012_bounding_boxes.csv'
_NO_END = 1 << 62
_ROW = np.dtype([('name', 'S64'), ('box', '<f4', 4)])


class Boxes(NamedTuple):
    """Boxes of images: sorted names, bytes [n], and their xmin, ymin, xmax, ymax, float32 [n, 4], in 0..1."""

    names: np.ndarray
    coordinates: np.ndarray

    def for_image(self, basename: str) -> np.ndarray:
        """Return the coordinates of an image's boxes, float32 [boxes, 4]."""
        name = np.bytes_(os.fsencode(basename))
        begin, end = (np.searchsorted(self.names, name, side) for side in ('left', 'right'))
        return self.coordinates[begin:end]


NO_BOXES = Boxes(np.empty(0, 'S1'), np.empty((0, 4), np.float32))


def read_csv(path: str | os.PathLike) -> Boxes:
    """Return the Boxes of a CSV file. The boxes of one image keep their order.

    Raises:
        UserError: The file cannot be read, or a line is not a name and a box.
    """
    remedy = 'make it with data/bounding_boxes.py, or pass another --bounding_box_file'
    try:
        # numpy warns of an empty file. Given the path, it would also unpack a .gz file or fetch an address.
        with warnings.catch_warnings(action='ignore'), open(os.path.expanduser(path), 'rb', opener=files.plain) as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            table = np.loadtxt(file, _ROW, delimiter=',', comments=None, ndmin=1)
    except OSError as error:
        reason = f'({error.strerror}); {files.advice(error, remedy)}'
        raise UserError(f"bounding_box_file '{path}' cannot be read {reason}") from None
    except ValueError as error:
        raise UserError(f"bounding_box_file '{path}': {str(error).splitlines()[0].rstrip('.')}; {remedy}") from None
    xmin, ymin, xmax, ymax = table['box'].T
    is_right = (xmin >= 0) & (ymin >= 0) & (xmax >= xmin) & (ymax >= ymin) & (xmax <= 1) & (ymax <= 1)
    if not is_right.all():
        wrong = int(np.argmin(is_right))
        raise UserError(
            f"bounding_box_file '{path}' has the box {table['box'][wrong].tolist()} in line {wrong + 1}, "
            f'which must be xmin, ymin, xmax, ymax in 0..1; {remedy}'
        )
    order = np.argsort(table['name'], kind='stable')
    width = max(1, int(np.char.str_len(table['name']).max(initial=1)))
    return Boxes(table['name'][order].astype(f'S{width}'), table['box'][order])


def read_xml(path: str | os.PathLike, synsets: Collection[str] | None = None) -> tuple[list[bytes], list[str]]:
    """Return the sorted CSV lines, without line ends, of a tar file or folder of XML files, and the lines of a report.

    Args:
        path: ILSVRC2012_bbox_train_v2.tar.gz, or a tar file or folder that holds <synset>/<image>.xml.
        synsets: The listed classes. None takes all classes and every box.

    Raises:
        UserError: The file or folder cannot be read, is damaged or cut off, or has no XML file.
    """
    synsets, lines = None if synsets is None else frozenset(synsets), list[bytes]()
    counts, broken = collections.Counter[str](), list[str]()
    for name, data in _folder_files(path) if os.path.isdir(path) else tar_files(path):
        parts = pathlib.PurePosixPath(name).parts
        if len(parts) < 2 or not name.endswith('.xml') or parts[-1].startswith('.'):
            continue
        counts['all files'] += 1
        synset = parts[-2]
        if synsets is not None and synset not in synsets:
            counts['unlisted files'] += 1
            continue
        try:
            if ',' in parts[-1] or not parts[-1].isprintable():  # or not UTF-8
                raise ValueError('a line of a CSV file cannot hold its name')
            boxes = parse(data, synset, synsets, counts)
        except ValueError as error:
            shown = one_line(f'{synset}/{parts[-1]}'[:200])
            broken.append(f"left out the broken XML file '{shown}' ({damage.reason(error)})")
            continue
        counts['files'] += 1
        counts['images'] += bool(boxes)
        image = parts[-1].removesuffix('.xml')
        lines += [f'{image}.JPEG,{box[0]:.4f},{box[1]:.4f},{box[2]:.4f},{box[3]:.4f}'.encode() for box in boxes]
    if not counts['all files']:
        raise UserError(f"'{path}' has no <synset>/<image>.xml; pass {BOXES}, or the folder that it unpacks to")
    report = (
        f'{len(lines)} boxes of {counts["images"]} images from {counts["files"]} XML files; left out: '
        f'{counts["unlisted files"]} files of unlisted synsets, {counts["other boxes"]} boxes of another synset, '
        f'{counts["empty boxes"]} empty boxes, {len(broken)} broken files'
    )
    return sorted(lines), [report, *broken[:5]]


def update_csv(path: str | os.PathLike | None, folder: pathlib.Path, synsets: Collection[str], log: Log) -> Boxes:
    """Return the boxes of the CSV in `folder`, or NO_BOXES. It is made first if the tar file `path` is new."""
    csv, stamp_path = folder / CSV, folder / '.boxes.json'
    if path:
        stamp = {'status': status(path), 'synsets': hashlib.sha256(json.dumps(synsets).encode()).hexdigest()}
        if files.read_json(stamp_path) != {**stamp, 'csv': _sha256(csv)}:
            log(f'reading the boxes of {path}')
            stamp_path.unlink(missing_ok=True)
            lines, report = read_xml(path, synsets)
            files.write_text(csv, b''.join(line + b'\n' for line in lines).decode())
            for line in report:
                log(line)
            files.write_json(stamp_path, {**stamp, 'csv': _sha256(csv)})
    return read_csv(csv) if csv.exists() else NO_BOXES


def _sha256(path):
    """Return the SHA-256 of a file, or None if it is missing."""
    with contextlib.suppress(FileNotFoundError), open(path, 'rb', opener=files.plain) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
    return None


def parse(data: bytes, synset: str, synsets: Collection[str] | None, counts: collections.Counter) -> list[tuple]:
    """Return the boxes (xmin, ymin, xmax, ymax) of an XML file, each 0..1, and count in `counts` what is left out.

    Raises:
        ValueError: The bytes are not an XML file of boxes, or give the image no size.
    """
    root, boxes = xml(data), []
    width, height = _number(root, 'size/width'), _number(root, 'size/height')
    if not (width > 0 and height > 0):
        raise ValueError(f'the image has size {width:g} x {height:g}')
    for element in root.iter('object'):
        name = (element.findtext('name') or '').strip()
        if synsets is not None and name != synset and name in synsets:
            counts['other boxes'] += 1
            continue
        x, y = (
            [min(max(_number(element, f'bndbox/{axis}{end}') / size, 0), 1) for end in ('min', 'max')]
            for axis, size in (('x', width), ('y', height))
        )
        if x[0] == x[1] or y[0] == y[1]:
            counts['empty boxes'] += 1
        else:
            boxes.append((min(x), min(y), max(x), max(y)))
    return boxes


def xml(data: bytes) -> ET.Element:
    """Return the root of an XML document; ValueError if it is damaged, too long, or declares a document type."""
    if len(data) > (largest := bounds.limit('xml_bytes')):
        raise ValueError(f'more than {largest} bytes')
    try:
        return ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, LookupError) as error:
        raise ValueError(f'not XML: {error}') from None


class _NoDoctype(ET.TreeBuilder):
    """Refuse document types, because their entities could expand without limit or read a file."""

    def doctype(self, name, pubid, system) -> None:
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
    """Yield (path, content) of each XML file below a folder."""
    found, _ = images.find_files(path, lambda name: name.endswith('.xml'))
    for file_path in sorted(found, key=lambda path: (path.parent.parts, path.name)):
        with files.read_errors(file_path, 'remove it'), open(file_path, 'rb', opener=files.plain) as file:
            yield str(file_path), file.read(bounds.limit('xml_bytes') + 1)


def tar_files(path: str | os.PathLike) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each file in a tar file, by gzip or not; one byte above `kit_file_bytes` at most.

    Raises:
        UserError: The tar file cannot be read, is damaged or cut off. A cut-off file may raise it only at the end.
    """

    def require_size(size) -> None:
        bounds.require('unpacked_bytes', size, f"'{path}', unpacked,", 'get it again')

    with files.read_errors(path, f'pass {BOXES}, or the folder that it unpacks to'):
        try:
            with archives.unpacked(path) as tar:
                for member in archives.members(tar, 0, _NO_END, f"'{path}'"):
                    require_size(member.offset_data + member.size)
                    if member.isreg():
                        tar.seek(member.offset_data)
                        yield member.name, tar.read(min(member.size, bounds.limit('kit_file_bytes') + 1))
                archives.read_rest(tar, require_size)
        except archives.GZIP_ERRORS as error:
            raise UserError(f"'{path}' is a gzip file that is cut off or damaged ({error}); get it again") from None
