"""Boxes of ILSVRC2012's training pictures: XML files -> one sorted CSV file.

    python data/bounding_boxes.py ILSVRC2012_bbox_train_v2.tar.gz SYNSETS > imagenet_2012_bounding_boxes.csv

The first argument is the tar file, read as a stream without unpacking it, or a folder <synset>/<picture>.xml. SYNSETS
is a list of classes, one a line; without it all are taken. A line of the result is `name.JPEG,xmin,ymin,xmax,ymax`,
each a fraction of the picture's size in the XML, with four decimals; lines are in the order of their bytes.

What is odd in the official files: a box may belong to another class of the list (left out), while a box of a dog
carries the text Scottish_deerhound (kept); corners may be exchanged (put right), lie outside of the picture (moved to
its edge), or enclose nothing (left out); the name inside may be '%s' (the file's own name counts). Upstream's totals
are 544,546 XML files and 615,299 boxes.
"""

import contextlib
import dataclasses
import functools
import gzip
import os
import pathlib
import sys
import xml.etree.ElementTree as ET
import zlib

import imagenet_tars

from official_resnet.command_line.program import one_line
from official_resnet.errors import UserError

_LARGEST = 1 << 20  # bytes of an XML file or another member; an official XML has about 1000
_NO_END = 1 << 62
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclasses.dataclass
class Counts:
    """What became of the XML files and of their boxes."""

    files: int = 0  # of listed synsets, read
    unlisted_files: int = 0
    broken_files: int = 0
    boxes: int = 0  # written
    other_boxes: int = 0  # of another listed synset
    empty_boxes: int = 0
    pictures: int = 0  # with a box
    first_broken: list = dataclasses.field(default_factory=list)  # (name, reason), at most 5

    def lines(self):
        """Return what to tell the user."""
        lines = [
            f'{self.boxes} boxes of {self.pictures} pictures from {self.files} XML files; left out: '
            f'{self.unlisted_files} files of unlisted synsets, {self.other_boxes} boxes of another synset, '
            f'{self.empty_boxes} empty boxes, {self.broken_files} broken files'
        ]
        return lines + [f"broken XML, left out: '{name}' ({reason})" for name, reason in self.first_broken]


def read(path, synsets=None):
    """Return the CSV lines of a folder or tar file of XMLs, sorted, and the Counts.

    Args:
        path: ILSVRC2012_bbox_train_v2.tar.gz, or a tar file or folder of the same shape: <synset>/<picture>.xml.
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
        counts.pictures += bool(boxes)
        picture = name.removesuffix('.xml')
        lines += [f'{picture}.JPEG,{box[0]:.4f},{box[1]:.4f},{box[2]:.4f},{box[3]:.4f}'.encode() for box in boxes]
    if not counts.files + counts.unlisted_files + counts.broken_files:
        raise UserError(
            f"'{path}' has no <synset>/<picture>.xml; pass ILSVRC2012_bbox_train_v2.tar.gz, or the folder it unpacks to"
        )
    return sorted(lines), counts


def write(path, output, synsets=None, log=print):
    """Write the CSV of `read` to the file `output`, which appears in one rename; return the Counts."""
    lines, counts = read(path, synsets)
    output = pathlib.Path(output)
    part = output.with_name(f'{output.name}.part')
    with open(part, 'wb') as file:
        file.writelines(line + b'\n' for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, output)
    for line in counts.lines():
        log(line)
    return counts


def parse(data, synset, synsets=None, counts=None):
    """Return the boxes (xmin, ymin, xmax, ymax) of an XML's bytes, 0..1; `counts` gets what is left out.

    Raises:
        ValueError: it is no such XML, or gives the picture no size.
    """
    counts, boxes = counts or Counts(), []
    root = xml(data)
    width, height = _number(root, 'size/width'), _number(root, 'size/height')
    if not (width > 0 and height > 0):
        raise ValueError(f'the picture has size {width:g} x {height:g}')
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


def xml(data):
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


def tar_files(path):
    """Yield (name, reader) of each file in a tar file, packed by gzip or not; a reader holds until the next.

    Raises:
        UserError: it cannot be read, is damaged or cut off, which is known for sure at the end only.
    """
    with _open(path) as file:
        is_packed = file.read(2) == b'\x1f\x8b'
        file.seek(0)
        with gzip.open(file) if is_packed else contextlib.nullcontext(file) as tar:
            try:
                for member in imagenet_tars.members(tar, 0, _NO_END, f"'{path}'"):
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


def _open(path):
    try:
        return open(path, 'rb')
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}); pass ILSVRC2012_bbox_train_v2.tar.gz, or the "
            'folder it unpacks to'
        ) from None


def main(argv):
    """Print the CSV of argv[1]; return the exit code."""
    if {'-h', '--help'}.intersection(argv):
        print(__doc__)
        return 0
    if len(argv) not in (2, 3) or argv[1].startswith('-'):
        given = ' '.join(argv[1:]) or 'nothing'
        print(
            f'bounding_boxes: {one_line(given)} is not the tar file or folder of boxes, and perhaps SYNSETS, a list '
            'of classes; pass these (--help tells more)',
            file=sys.stderr,
        )
        return 1
    try:
        lines, counts = read(argv[1], _synsets(argv[2]) if len(argv) == 3 else None)
        sys.stdout.buffer.writelines(line + b'\n' for line in lines)
        sys.stdout.flush()
    except UserError as error:
        print(f'bounding_boxes: {one_line(error)}', file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f'bounding_boxes: {one_line(error)}; mend that and run the same command again', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for line in counts.lines():
        print(line, file=sys.stderr)
    return 0


def _synsets(path):
    try:
        with open(path, encoding='utf-8') as file:
            return [line.split()[0] for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); pass a list of synsets, one a line") from None


if __name__ == '__main__':
    sys.exit(main(sys.argv))
