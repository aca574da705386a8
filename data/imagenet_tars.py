"""Where the pictures lie inside ILSVRC2012's tar files, so that they are read there: no copy on the disk, no unpacking.

ILSVRC2012_img_train.tar holds a tar file `<synset>.tar` for each class, and each of these pictures
`<synset>_<number>.JPEG`; ILSVRC2012_img_val.tar holds ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG.
Only headers are read. The pictures come out by label, then name, however the tar files are ordered: as
pictures.from_folders gives them for the unpacked folders.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import tarfile
import time

import numpy as np
from pictures import ROW_DTYPE_FIELDS, Pictures

from official_resnet.errors import UserError

BLOCK = 512  # bytes of a tar header
_LARGEST_HEADER = 1 << 20  # bytes; of long names and pax records. Names are short here: more is damage
_CHUNK = 1 << 16  # pictures gathered in lists before they become an array
_SECONDS = 10  # between two lines of progress
_VALIDATION_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')
_BROKEN = (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError)


def train_pictures(path, synsets, *, allow_partial=False, log=print, opener=None):
    """Return the Pictures of a tar of tars.

    Args:
        path: of ILSVRC2012_img_train.tar, or a tar of the same shape.
        synsets: the classes; the label of each is its place, from 1.
        allow_partial: take it also if classes are missing, which then have no picture.
        log: called with lines.
        opener: path -> seekable binary file; the file system's without it.

    Raises:
        UserError: it cannot be read, is no tar, packed, damaged or cut off, which names member and byte; classes are
            missing.
    """
    labels = {synset: label for label, synset in enumerate(synsets, 1)}
    rows, skipped, found, progress = _Rows(), _Skipped(), set(), _Progress(log)
    with _open(path, opener) as file:
        size = file.seek(0, os.SEEK_END)
        for member in members(file, 0, size, f"'{path}'"):
            name = member.name.rpartition('/')[2]
            synset, suffix = os.path.splitext(name)
            if not member.isreg() or suffix != '.tar' or synset not in labels:
                _refuse_packed(name, path)
                if not member.isdir():
                    skipped.add(name)
                continue
            found.add(synset)
            where = f"'{name}' in '{path}'"
            begin = member.offset_data
            for inner in members(file, begin, begin + member.size, where):
                if _is_picture(inner):
                    rows.add(inner.name.rpartition('/')[2], begin + inner.offset_data, inner.size, labels[synset])
                elif not inner.isdir():
                    skipped.add(inner.name)
            progress.show(path, len(rows), begin + member.size, size)
    skipped.log(f"'{path}'", 'no tar file of a listed synset, or no .JPEG', log)
    if not found:
        raise UserError(
            f"'{path}' has no <synset>.tar of a listed synset, as '{synsets[0]}.tar'; pass "
            'ILSVRC2012_img_train.tar as it was downloaded'
        )
    _report_missing(path, 'synsets', [synset for synset in synsets if synset not in found], allow_partial, log)
    return rows.pictures(path, synsets, log)


def validation_pictures(path, image_synsets, synsets, *, allow_partial=False, log=print, opener=None):
    """Return the Pictures of a tar of ILSVRC2012_val_<number>.JPEG.

    Args:
        path: of ILSVRC2012_img_val.tar, or a tar of the same shape.
        image_synsets: the synset of picture 1, 2, ...; validation_labels reads it.
        synsets, allow_partial, log, opener: as for train_pictures. Pictures of unlisted synsets are left out.

    Raises:
        UserError: as train_pictures; a picture has no synset; pictures are missing.
    """
    labels = {synset: label for label, synset in enumerate(synsets, 1)}
    rows, skipped, progress = _Rows(), _Skipped(), _Progress(log)
    is_missing = np.array([synset in labels for synset in image_synsets], bool)
    with _open(path, opener) as file:
        size = file.seek(0, os.SEEK_END)
        for member in members(file, 0, size, f"'{path}'"):
            name = member.name.rpartition('/')[2]
            match = _VALIDATION_NAME.fullmatch(name)
            if not match or not member.isreg():
                _refuse_packed(name, path)
                if not member.isdir():
                    skipped.add(name)
                continue
            number = int(match[1])
            if not 1 <= number <= len(image_synsets):
                raise UserError(
                    f"'{name}' in '{path}' has no label, there are {len(image_synsets)}; pass the labels "
                    'that belong to this tar file'
                )
            is_missing[number - 1] = False
            synset = image_synsets[number - 1]
            if synset in labels:
                rows.add(name, member.offset_data, member.size, labels[synset])
            else:
                skipped.add(name)
            progress.show(path, len(rows), member.offset_data + member.size, size)
    skipped.log(f"'{path}'", 'not named as a validation picture, or of no listed synset', log)
    if not len(rows):
        raise UserError(
            f"'{path}' has no ILSVRC2012_val_<number>.JPEG of a listed synset; pass ILSVRC2012_img_val.tar "
            'as it was downloaded'
        )
    missing = [f'ILSVRC2012_val_{index + 1:08d}.JPEG' for index in np.flatnonzero(is_missing)]
    _report_missing(path, 'pictures', missing, allow_partial, log)
    return rows.pictures(path, synsets, log)


def indexed(folder, name, path, synsets, make, log=print):
    """Return make(), kept as `<folder>/.<name>.index` for the next call with the same file and synsets.

    Args:
        folder: exists.
        name: 'train' or 'validation'.
        path: of the tar file; another size or time of it makes the index anew.
        synsets: whatever else the index depends upon, JSON.
        make: () -> Pictures.
    """
    status = os.stat(path)
    key = {
        'path': os.path.abspath(path),
        'size': status.st_size,
        'mtime_ns': status.st_mtime_ns,
        'synsets': hashlib.sha256(json.dumps(synsets).encode()).hexdigest(),
    }
    index = pathlib.Path(folder, f'.{name}.index')
    try:
        if json.loads((index / 'key.json').read_text()) == key:
            pictures = Pictures.load(index / 'pictures')
            log(f"'{path}' is indexed already: {len(pictures)} pictures")
            return pictures
    except (OSError, ValueError, KeyError):
        pass  # none yet, or a damaged one
    pictures = make()
    part = index.with_name(f'{index.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    pictures.save(part / 'pictures')
    (part / 'key.json').write_text(json.dumps(key))
    shutil.rmtree(index, ignore_errors=True)
    os.replace(part, index)
    return Pictures.load(index / 'pictures')


def members(file, begin, end, where):
    """Yield the TarInfo of each member of the tar at bytes begin..end of a file, with offsets from `begin`.

    Raises:
        UserError: packed, damaged, or cut off; `where` names it.
    """
    file.seek(begin)
    magic = file.read(min(6, end - begin))
    for packer, start in (('gzip', b'\x1f\x8b'), ('bzip2', b'BZh'), ('xz', b'\xfd7zXZ'), ('zstd', b'\x28\xb5\x2f\xfd')):
        if magic.startswith(start):
            raise UserError(
                f'{where} is packed by {packer}; pictures are read in their place, so unpack it to a plain tar first'
            )
    window, name, offset = _Window(file, begin, end), '', 0
    try:
        tar = tarfile.TarFile(fileobj=window, mode='r')
        while (member := tar.next()) is not None:
            tar.members = []  # else it keeps all
            name, offset = member.name, member.offset
            if member.size < 0 or member.issparse():
                raise UserError(
                    f"{where} is damaged: '{name}' at byte {begin + offset} has no plain size; get it again"
                )
            if member.isreg() and member.offset_data + member.size > end - begin:
                raise _cut_off(where, name, begin + offset)
            yield member
            offset = tar.offset
        last = window.block(tar.offset)
    except _BROKEN as error:
        if isinstance(error, UserError):
            raise
        if str(error) == 'unexpected end of data':  # tarfile's, of the data before the next header
            raise _cut_off(where, name, begin + offset) from None
        raise _damaged(where, name, begin + offset, f' ({error})') from None
    if not last:
        raise _cut_off(where, name, begin + tar.offset)
    if last.strip(b'\0'):
        raise _damaged(where, name, begin + tar.offset, '')


def _cut_off(where, name, offset):
    inside = f" at member '{name}'," if name else ''
    return UserError(f'{where} is cut off{inside} byte {offset}; get it again')


def _damaged(where, name, offset, reason):
    after = f" after member '{name}'" if name else ''
    return UserError(f'{where} is damaged or no tar file: no header at byte {offset}{after}{reason}; get it again')


class _Window:
    """Bytes begin..end of a file, as tarfile reads them: its reads are of headers only, and so small."""

    def __init__(self, file, begin, end):
        self.file, self.begin, self.end, self.place = file, begin, end, 0

    def tell(self):
        return self.place

    def seek(self, place):
        self.place = place
        return place

    def read(self, size):
        if size > _LARGEST_HEADER:
            raise tarfile.ReadError(f'a header of {size} bytes')
        start = self.begin + self.place
        size = max(0, min(size, self.end - start))
        self.file.seek(start)
        data = self.file.read(size) if size else b''
        self.place += len(data)
        return data

    def block(self, place):
        self.seek(place)
        return self.read(BLOCK)


class _Rows:
    """Growing rows of Pictures: arrays, because a million Python objects take fifty times the memory."""

    def __init__(self):
        self.chunks, self.names, self.numbers, self.count = [], [], [], 0

    def __len__(self):
        return self.count

    def add(self, name, offset, size, label):
        self.names.append(os.fsencode(name))
        self.numbers.append((offset, size, label))
        self.count += 1
        if len(self.names) == _CHUNK:
            self._flush()

    def pictures(self, path, synsets, log):
        """Return them as Pictures of one tar file, by label, then name; of two of one name the later stays."""
        self._flush()
        names = np.concatenate([names for names, _ in self.chunks])  # of the longest width
        numbers = np.concatenate([numbers for _, numbers in self.chunks])
        order = np.lexsort((names, numbers[:, 2]))  # stable: the later of two stands behind
        names, numbers = names[order], numbers[order]
        is_last = np.ones(len(names), bool)
        is_last[:-1] = (names[1:] != names[:-1]) | (numbers[1:, 2] != numbers[:-1, 2])
        if not is_last.all():
            log(
                f"'{path}' has {np.sum(~is_last)} pictures twice, as '{os.fsdecode(names[~is_last][0])}'; the later of "
                'two is used, as tar would leave it'
            )
        rows = np.zeros(np.sum(is_last), [*ROW_DTYPE_FIELDS, ('name', names.dtype)])
        rows['name'] = names[is_last]
        for column, field in enumerate(('offset', 'size', 'label')):
            rows[field] = numbers[is_last, column]
        return Pictures((str(path),), rows, ('', *synsets))

    def _flush(self):
        if self.names:
            self.chunks.append((np.array(self.names), np.array(self.numbers, np.int64)))
            self.names, self.numbers = [], []


class _Skipped:
    """Members that are left out: counted, the first ones named."""

    def __init__(self):
        self.count, self.first = 0, []

    def add(self, name):
        self.count += 1
        if len(self.first) < 3:
            self.first.append(name)

    def log(self, where, reason, log):
        if self.count:
            log(f'{where}: left out {self.count} members ({reason}), as {", ".join(map(repr, self.first))}')


class _Progress:
    """A line every _SECONDS."""

    def __init__(self, log):
        self.log, self.start = log, time.monotonic()
        self.last = self.start

    def show(self, path, count, done, total):
        now = time.monotonic()
        if now - self.last >= _SECONDS:
            self.last = now
            left = (now - self.start) * (total - done) / max(done, 1)
            self.log(
                f"indexing '{path}': {count} pictures in {done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left"
            )


def _open(path, opener):
    try:
        return opener(path) if opener else open(path, 'rb', buffering=0)  # headers lie far apart: no reading ahead
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror or error}); pass a tar file that you may read"
        ) from None


def _is_picture(member):
    name = member.name.rpartition('/')[2]
    return member.isreg() and name.endswith('.JPEG') and not name.startswith('.')


def _refuse_packed(name, path):
    if re.fullmatch(r'n\d{8}\.(tar\.\w+|t[gbx]z2?|zip)', name):
        raise UserError(
            f"'{name}' in '{path}' is packed; pictures are read in their place, so unpack it to a plain tar first"
        )


def _report_missing(path, what, missing, allow_partial, log):
    if missing:
        text = f"'{path}' lacks {len(missing)} {what}, as {', '.join(missing[:3])}"
        if not allow_partial:
            raise UserError(f'{text}; get it again, or pass --allow_partial to use what is there')
        log(f'{text}; going on with what is there')
