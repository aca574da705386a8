"""The images of a data set and where their bytes are: an array with a row for each image.

A row takes about 60 bytes, so all of ImageNet takes 80 MB. Processes map a saved array into memory and share it.
An image is a file of its own, or is inside a tar file and is read there, without unpacking.
"""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np

from official_resnet import bounds, files, folders
from official_resnet.building.progress import Log, Progress
from official_resnet.building.sealed import seal, unseal
from official_resnet.errors import UserError
from official_resnet.inputs import classes
from official_resnet.inputs.images import SUFFIXES, find_files, is_image

# file: index in ImageList.files. offset and size: in bytes, both -1 for a plain file. label: from 1.
ROW_FIELDS = [('file', '<i4'), ('offset', '<i8'), ('size', '<i8'), ('label', '<i4')]
Opener = Callable[[str], IO[bytes]]  # path -> seekable binary file


def open_unbuffered(path: str) -> IO[bytes]:
    """Open a file of this machine. Images are far apart in it, so reading ahead would be useless."""
    return open(path, 'rb', buffering=0, opener=files.plain)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageList:
    """A list of images.

    Attributes:
        files: Paths of tar files, or of folders that hold plain files.
        rows: ROW_FIELDS and 'name' (bytes), the path of a plain file below its folder, or the file name in a tar file.
        synsets: The class of each label. The first is '', since labels begin with 1.
        skipped: Files of class folders that are not images, and folders that are not classes.
    """

    files: tuple[str, ...]
    rows: np.ndarray
    synsets: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path: str | os.PathLike) -> None:
        """Write `<path>.npy` and `<path>.json`."""
        with files.replacing(f'{path}.npy') as part:  # another process may have the old file mapped
            np.save(part, np.asarray(self.rows))
        files.write_text(f'{path}.json', json.dumps(seal({'files': self.files, 'synsets': self.synsets})))

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'ImageList':
        """Return what `save` wrote. The rows are mapped into memory, not read. A damaged one raises any Exception."""
        kept = unseal(json.loads(pathlib.Path(f'{path}.json').read_text()))
        return cls(tuple(kept['files']), np.load(f'{path}.npy', mmap_mode='r'), tuple(kept['synsets']))

    def name(self, i: int) -> str:
        """Return the path of image i below its folder, or its file name in the tar file."""
        return os.fsdecode(bytes(self.rows[i]['name']))

    def basename(self, i: int) -> str:
        """Return the file name of image i without folders."""
        return self.name(i).rpartition('/')[2]

    def label(self, i: int) -> int:
        """Return the label of image i, from 1."""
        return int(self.rows[i]['label'])

    def synset(self, i: int) -> str:
        """Return the class of image i."""
        return self.synsets[self.label(i)]

    def read_bytes(self, i: int, opener: Opener = open_unbuffered) -> bytes:
        """Return the bytes of image i.

        Raises:
            ValueError: What is in the place of a plain file is none, such as a FIFO.
            UserError: The file cannot be read, or the tar file ends inside the image.
        """
        row = self.rows[i]
        path, offset, size = self.files[row['file']], int(row['offset']), int(row['size'])
        if offset < 0:
            path = f'{path}/{self.name(i)}'
        try:
            with opener(path) as file:
                size = size if size >= 0 else file.seek(0, os.SEEK_END)
                bounds.require('image_bytes', size, f"image '{self.name(i)}'", 'fix or remove it')
                file.seek(max(offset, 0))
                data = file.read(size)
                while len(data) < size and (more := file.read(size - len(data))):
                    data += more  # a read may stop early, on network disks or above 2 GB
        except OSError as error:
            if offset < 0 and error.errno == errno.ENXIO:  # see files.plain
                raise ValueError(error.strerror) from None
            remedy = f'{files.advice(error, "fix that")} and run the same command again'
            raise UserError(f"'{path}' cannot be read ({error.strerror or error}); {remedy}") from None
        if size != len(data):
            raise UserError(f"'{path}' ends inside '{self.name(i)}' at byte {max(offset, 0)}; get it again")
        return data

    def digest(self) -> str:
        """Return the SHA-256 of the rows and classes, which does not depend on where the files are."""
        rows = np.ascontiguousarray(self.rows)
        digest = hashlib.sha256(json.dumps([self.synsets, len(self.files), str(rows.dtype.descr)]).encode())
        digest.update(rows.view(np.uint8).data)
        return digest.hexdigest()


def extract(images: ImageList, folder: pathlib.Path, log: Log = print) -> None:
    """Write each image to `<folder>/<class>/<name>`, unless it is there in full size."""
    count = 0
    files.make_folder(folder)
    with Progress(f'unpacking to {folder}', len(images), log) as progress, folders.temporary(folder, 'images') as new:
        for synset, group in itertools.groupby(range(len(images)), images.synset):
            part = new / synset
            part.mkdir(parents=True, exist_ok=True)
            for i in group:
                path = folder / synset / images.basename(i)
                if not path.is_file() or path.stat().st_size != images.rows[i]['size']:
                    (part / path.name).write_bytes(images.read_bytes(i))
                    count += 1
                progress.update()
            folders.put_in_place(part, folder / synset)  # a class at once, because flushing image by image is slow
    log(f'{len(images)} images are in {folder}, {count} of them newly written')


def from_folders(
    root: str | os.PathLike,
    synsets: Sequence[str],
    suffixes: Sequence[str] = SUFFIXES,
    *,
    by_bytes: bool = False,
    is_complete: bool = True,
) -> ImageList:
    """Return the images `<root>/<class>/<file>`, ordered by label, then name.

    Args:
        root: The folder that holds the class folders.
        synsets: Names of the class folders. The label of a class is its position here, from 1.
        suffixes: Suffixes of images, in lower case. Files may have them in upper case. Hidden files are left out.
        by_bytes: Whether a file with another suffix is an image, too, if it begins like one in images.FORMATS.
        is_complete: Whether each class must have a folder and an image.

    Raises:
        UserError: The folder of a class is missing, or has no images.
    """
    root = os.path.abspath(os.path.expanduser(root))
    remedy, parts, skipped = 'add some, or pass another --labels_file', [], list[str]()
    folders = {name: path.name for name, path in classes.folders(root).items()} if os.path.isdir(root) else {}

    def is_wanted(path) -> bool:
        return path.lower().endswith(tuple(suffixes)) or by_bytes and is_image(path)

    for synset in synsets:
        found: list[str] = []
        folder = folders.pop(classes.canonical(synset), synset)
        try:
            is_missing = not is_complete and os.path.isdir(root) and not os.path.isdir(f'{root}/{folder}')
            if by_bytes and not is_missing:  # your own images, which training also reads from subfolders
                images, others = find_files(f'{root}/{folder}', is_wanted)
                found += (os.path.relpath(path, root) for path in images)
                skipped += sorted(os.path.relpath(path, root) for path in others)
            elif not is_missing:
                entries = sorted(name for name in os.listdir(f'{root}/{folder}') if not name.startswith('.'))
                found += (f'{folder}/{name}' for name in entries if is_wanted(name))
                skipped += (f'{folder}/{name}' for name in entries if not is_wanted(name))
        except OSError as error:
            remedy = files.advice(error, 'make it, pass another folder, or another --labels_file')
            raise UserError(f"class folder '{root}/{synset}' cannot be read ({error.strerror}); {remedy}") from None
        if not found and is_complete:
            raise UserError(f"class folder '{root}/{synset}' has no images ({' '.join(suffixes)}); {remedy}")
        parts.append(np.array(sorted(map(os.fsencode, found)), 'S'))  # a fraction of the memory of a list
    counts, names = list(map(len, parts)), np.concatenate(parts)
    if not len(names):
        raise UserError(f"'{root}' has no images ({' '.join(suffixes)}) in its class folders; {remedy}")
    rows = np.empty(len(names), [*ROW_FIELDS, ('name', names.dtype)])
    rows['file'], rows['offset'], rows['size'], rows['name'] = 0, -1, -1, names
    rows['label'] = np.repeat(np.arange(1, len(synsets) + 1), counts)
    return ImageList((root,), rows, ('', *synsets), (*skipped, *(f'{name}/' for name in folders.values())))
