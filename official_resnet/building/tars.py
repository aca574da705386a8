"""The positions of the images inside ILSVRC2012's tar files, so that they are read in place, without unpacking.

ILSVRC2012_img_train.tar holds a tar file `<synset>.tar` for each class, and each of these holds images
`<synset>_<number>.JPEG`. ILSVRC2012_img_val.tar holds ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG.
Only headers are read. The images are ordered by label, then name, whatever the order in the tar files, as
image_list.from_folders orders those of the unpacked folders.
"""

import contextlib
import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from official_resnet import bounds, damage, files
from official_resnet.building.image_list import ROW_FIELDS, ImageList, Opener, open_unbuffered
from official_resnet.building.job import Job
from official_resnet.building.progress import Log, Progress
from official_resnet.errors import UserError
from official_resnet.inputs import archives

_VALIDATION_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')
_PACKED_NAME = re.compile(r'n\d{8}\.(tar\.\w+|t[gbx]z2?|zip)')


def index(
    split: str,
    path: str | os.PathLike,
    synsets: Sequence[str],
    image_synsets: Sequence[str] = (),
    *,
    allow_partial: bool = False,
    log: Log = print,
    opener: Opener = open_unbuffered,
) -> ImageList:
    """Return the images of a tar file.

    Args:
        split: 'train' for a tar of tars, 'validation' for a tar of ILSVRC2012_val_<number>.JPEG.
        path: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or a tar file with the same structure.
        synsets: The classes. The label of a class is its position here, from 1. Images of other classes are left out.
        image_synsets: The synsets of validation images 1, 2, ..., from labels.read_validation.
        allow_partial: Whether classes or images may be missing.

    Raises:
        UserError: The file cannot be read, or is compressed, damaged or cut off; the message names the member and the
            byte. Classes or images are missing. A validation image has no synset.
    """
    labels = {synset: label for label, synset in enumerate(synsets, 1)}
    with files.read_errors(path, 'pass the tar file as it was downloaded'):
        file = opener(str(path))
    with file, Progress(f"indexing '{path}'", file.seek(0, os.SEEK_END), log, unit='B') as progress:
        rows = _Rows(path, progress)
        if split == 'train':
            missing = _add_train(rows, file, labels)
            name, kind, what = 'ILSVRC2012_img_train.tar', 'a <synset>.tar', 'synsets'
            why = 'not the tar file of a listed synset, or not a .JPEG'
        else:
            missing = _add_validation(rows, file, labels, image_synsets)
            name, kind, what = 'ILSVRC2012_img_val.tar', 'ILSVRC2012_val_<number>.JPEG', 'images'
            why = 'not named like a validation image, or not of a listed synset'
    if rows.num_skipped:
        log(f"'{path}': left out {rows.num_skipped} members ({why}), such as {', '.join(map(repr, rows.skipped))}")
    if not rows.names:
        what = f'image in {kind} of a listed synset, such as {synsets[0]}'
        raise UserError(f"'{path}' has no {what}; pass {name} as it was downloaded")
    if missing:
        text = f"'{path}' lacks {len(missing)} {what}, such as {', '.join(missing[:3])}"
        if not allow_partial:
            raise UserError(f'{text}; get it again, or pass --allow_partial to do without them')
        log(f'{text}; continuing without them')
    return ImageList((str(path),), rows.sorted(log), ('', *synsets))


def kept_index(
    job: Job, path: str, synsets: Sequence[str], image_synsets: Sequence[str], allow_partial: bool, log: Log = print
) -> ImageList:
    """Return `index` of a job's tar file, and keep it beside the output for the next call with the same arguments."""
    kept, arguments = f'{job.output_dir}/.{job.name}.index', [synsets, image_synsets, allow_partial]
    digest = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()
    status = job.status(path)
    key = {'path': path, 'status': status, 'arguments': digest}
    if status[0] < 0:
        raise UserError(f"'{path}' does not exist; pass the tar file as it was downloaded")
    stored = job.read_json(f'{kept}/key.json') or {}
    content = stored.pop('content', None)
    if stored == key:
        with contextlib.suppress(UserError), damage.reported(kept, ''):  # it is made again
            images = job.load(ImageList, f'{kept}/images')
            if (images.files, images.digest()) == ((path,), content):
                log(f"'{kept}' already has the index of {len(images)} images")
                return images
    images = index(job.name, path, synsets, image_synsets, allow_partial=allow_partial, log=log, opener=job.open_file)
    job.write_json(f'{kept}/key.json', {})
    job.save(images, f'{kept}/images')
    job.write_json(f'{kept}/key.json', {**key, 'content': images.digest()})
    return job.load(ImageList, f'{kept}/images')


def _add_train(rows, file, labels):
    """Add the rows of a tar of tars; return the missing synsets."""
    found = set()
    for member in rows.outer_members(file):
        synset, suffix = os.path.splitext(_basename(member))
        if not member.isreg() or suffix != '.tar' or synset not in labels:
            rows.skip(member)
            continue
        found.add(synset)
        end = member.offset_data + member.size
        for inner in archives.members(file, member.offset_data, end, f"'{_basename(member)}' in '{rows.path}'"):
            name = _basename(inner)
            if inner.isreg() and name.endswith('.JPEG') and not name.startswith('.'):
                rows.add(inner, labels[synset])
            else:
                rows.skip(inner)
    return [synset for synset in labels if synset not in found]


def _add_validation(rows, file, labels, image_synsets):
    """Add the rows of a tar of numbered images; return the names of the missing images."""
    is_missing = np.array([synset in labels for synset in image_synsets], bool)
    for member in rows.outer_members(file):
        name = _basename(member)
        match = _VALIDATION_NAME.fullmatch(name)
        if not match or not member.isreg():
            rows.skip(member)
            continue
        number = int(match[1])
        if not 1 <= number <= len(image_synsets):
            raise UserError(
                f"'{name}' in '{rows.path}' has no label, as there are only {len(image_synsets)}; pass the labels "
                'that belong to this tar file'
            )
        is_missing[number - 1] = False
        synset = image_synsets[number - 1]
        if synset in labels:
            rows.add(member, labels[synset])
        else:
            rows.skip(member)
    return [f'ILSVRC2012_val_{place + 1:08d}.JPEG' for place in np.flatnonzero(is_missing)]


class _Rows:
    """Growing rows of an ImageList. Numbers are in arrays, as a million Python objects take fifty times the memory."""

    def __init__(self, path, progress):
        self.path, self.progress = path, progress
        self.names, self.numbers = [], array('q')  # offset, size and label of each name
        self.num_skipped, self.skipped = 0, []

    def outer_members(self, file) -> Iterator[Any]:
        """Yield the members of the outer tar."""
        for member in archives.members(file, 0, self.progress.total, f"'{self.path}'"):
            if _PACKED_NAME.fullmatch(_basename(member)):
                raise UserError(f"'{_basename(member)}' in '{self.path}' is compressed; {archives.UNPACK}")
            yield member
            self.progress.update_to(member.offset_data + member.size, f'{len(self.names)} images')

    def add(self, member, label) -> None:
        name = os.fsencode(_basename(member))
        bounds.require('file_name_bytes', len(name), f"a name in '{self.path}'", 'get it again')
        self.names.append(name)
        self.numbers.extend((member.offset_data, member.size, label))

    def skip(self, member) -> None:
        """Leave out a member: count it, and keep the names of the first ones. Folders are not counted."""
        if not member.isdir():
            self.num_skipped += 1
            self.skipped += [_basename(member)[:200]] if len(self.skipped) < 3 else []

    def sorted(self, log) -> np.ndarray:
        """Return the rows ordered by label, then name. If two images have the same name, the later one stays."""
        names, self.names = np.array(self.names), []  # an array needs a third of a list's memory, or less
        rows = np.zeros(len(names), [*ROW_FIELDS, ('name', names.dtype)])
        rows['offset'], rows['size'], rows['label'] = np.reshape(self.numbers, (-1, 3)).T
        rows['name'] = names
        rows = rows[np.lexsort((names, rows['label']))]  # stable: the later of two comes last
        is_last = np.ones(len(rows), bool)
        is_last[:-1] = (rows['name'][1:] != rows['name'][:-1]) | (rows['label'][1:] != rows['label'][:-1])
        if not is_last.all():
            name = os.fsdecode(rows['name'][~is_last][0])
            twice = f"'{self.path}' has {np.sum(~is_last)} images twice, such as '{name}'"
            log(f'{twice}; the later one is used, as tar itself would do')
        return rows[is_last]


def _basename(member):
    return member.name.rpartition('/')[2]
