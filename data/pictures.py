"""Which pictures a data set has and where their bytes lie: an array of rows, one a picture.

A row takes about 60 bytes, so that all of ImageNet fits into 80 MB; saved, it is mapped into memory, which processes
share. A picture is a file of its own or lies in a tar file, where it is read without unpacking.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np

from official_resnet.errors import UserError

# file: of Pictures.files; offset and size in bytes, both -1 for a plain file; label from 1.
ROW_DTYPE_FIELDS = [('file', '<i4'), ('offset', '<i8'), ('size', '<i8'), ('label', '<i4')]


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """A list of pictures.

    Args:
        files: tar files, or folders that hold plain files.
        rows: ROW_DTYPE_FIELDS and 'name', bytes: the path of a plain file below its folder, the basename in a tar file.
        synsets: the class by label; the first is '', since labels begin with 1.
    """

    files: tuple
    rows: np.ndarray
    synsets: tuple

    def __len__(self):
        return len(self.rows)

    def save(self, path):
        """Write `<path>.npy` and `<path>.json`."""
        np.save(f'{path}.npy', np.asarray(self.rows))
        pathlib.Path(f'{path}.json').write_text(json.dumps({'files': self.files, 'synsets': self.synsets}))

    @classmethod
    def load(cls, path):
        """Return what `save` wrote; the rows are mapped into memory, not read."""
        kept = json.loads(pathlib.Path(f'{path}.json').read_text())
        return cls(tuple(kept['files']), np.load(f'{path}.npy', mmap_mode='r'), tuple(kept['synsets']))

    def name(self, i):
        """Return the path below the folder, or the basename in the tar file."""
        return os.fsdecode(bytes(self.rows[i]['name']))

    def basename(self, i):
        """Return the file name without folders."""
        return self.name(i).rpartition('/')[2]

    def label(self, i):
        """Return the label, from 1."""
        return int(self.rows[i]['label'])

    def synset(self, i):
        """Return the class."""
        return self.synsets[self.label(i)]

    def read_bytes(self, i, opener=None):
        """Return the bytes of a picture.

        Args:
            i: its row.
            opener: path -> seekable binary file; the file system's without it.

        Raises:
            UserError: it cannot be read, or the tar file ends before it.
        """
        row = self.rows[i]
        path, offset, size = self.files[row['file']], int(row['offset']), int(row['size'])
        if offset < 0:
            path = f'{path}/{self.name(i)}'
        try:
            if opener is None:
                data = _read(path, offset, size)
            else:
                with opener(path) as file:
                    file.seek(max(offset, 0))
                    data = file.read(size)
        except OSError as error:
            raise UserError(
                f"'{path}' cannot be read ({error.strerror or error}); mend that and run the same command again"
            ) from None
        if 0 <= size != len(data):
            raise UserError(f"'{path}' ends inside '{self.name(i)}' at byte {offset}; get it again")
        return data

    def digest(self):
        """Return the SHA-256 of rows and classes; where the files lie does not count."""
        rows = np.ascontiguousarray(self.rows)
        digest = hashlib.sha256(json.dumps([self.synsets, len(self.files), str(rows.dtype.descr)]).encode())
        digest.update(rows.view(np.uint8))
        return digest.hexdigest()


def from_folders(root, synsets, suffixes, *, is_complete=True):
    """Return the Pictures of `<root>/<class>/<file>`, by label, then name.

    Args:
        root: the folder.
        synsets: names of the class folders; the label of each is its place, from 1.
        suffixes: of pictures, in small letters; a file's may be in capitals. Hidden files are left out.
        is_complete: whether each class must have a picture.

    Raises:
        UserError: the folder, one of a class, or pictures are missing.
    """
    root = os.path.abspath(os.path.expanduser(root))
    chunks = [_class_rows(root, synset, label, tuple(suffixes), is_complete) for label, synset in enumerate(synsets, 1)]
    width = max((chunk['name'].dtype.itemsize for chunk in chunks), default=1)
    rows = np.empty(sum(map(len, chunks)), [*ROW_DTYPE_FIELDS, ('name', f'S{width}')])
    place = 0
    for chunk in chunks:
        rows[place : place + len(chunk)] = chunk
        place += len(chunk)
    if not len(rows):
        raise UserError(f"'{root}' has no picture ({' '.join(suffixes)}) in the folders of its classes; add some")
    return Pictures((root,), rows, ('', *synsets))


def _class_rows(root, synset, label, suffixes, is_complete):
    try:
        with os.scandir(f'{root}/{synset}') as entries:
            names = sorted(
                os.fsencode(f'{synset}/{entry.name}')
                for entry in entries
                if entry.name.lower().endswith(suffixes) and not entry.name.startswith('.')
            )
    except OSError as error:
        raise UserError(
            f"class folder '{root}/{synset}' cannot be read ({error.strerror}); make it, pass another "
            'folder, or another --labels_file'
        ) from None
    if not names and is_complete:
        raise UserError(
            f"class folder '{root}/{synset}' has no picture ({' '.join(suffixes)}); add some, or pass "
            'another --labels_file'
        )
    rows = np.empty(len(names), [*ROW_DTYPE_FIELDS, ('name', f'S{max(map(len, names), default=1)}')])
    rows['file'], rows['offset'], rows['size'], rows['label'], rows['name'] = 0, -1, -1, label, names
    return rows


def _read(path, offset, size):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if offset < 0:
            offset, size = 0, os.fstat(descriptor).st_size
        data = os.pread(descriptor, size, offset)
        while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
            data += more  # a read may stop early, on network disks and above 2 GB
        return data
    finally:
        os.close(descriptor)
