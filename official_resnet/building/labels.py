"""Lists of classes and of their names, and the class of each of ILSVRC2012's validation images.

The classes of the validation images come from one of three files: imagenet_2012_validation_synset_labels.txt of the
Inception pipeline has a synset on each line; the development kit ILSVRC2012_devkit_t12.tar.gz has a number for each
image and a MATLAB table of their meaning; ILSVRC2012_bbox_val_v3.tgz has an XML file for each image.
"""

import codecs
import collections
import io
import os
import pathlib
import re

from official_resnet import bounds, damage, files
from official_resnet.building import boxes
from official_resnet.errors import UserError
from official_resnet.inputs import archives, other_datasets
from official_resnet.inputs.classes import canonical

FILES = ('imagenet_2012_validation_synset_labels.txt', 'ILSVRC2012_devkit_t12.tar.gz', 'ILSVRC2012_bbox_val_v3.tgz')
REMEDY = f'put {FILES[0]}, {FILES[1]} or {FILES[2]} beside ILSVRC2012_img_val.tar'  # the end of a message
_TRUTH, _META = 'ILSVRC2012_validation_ground_truth.txt', 'meta.mat'  # files of the development kit
_SYNSET = re.compile(r'n\d{8}')
_XML = re.compile(r'ILSVRC2012_val_(\d{8})\.xml')


def read_classes(path: str | os.PathLike | None = None, flag: str = 'labels_file') -> list[str]:
    """Return the classes of a file with one class on each line, or ILSVRC2012's 1000 synsets if there is no path.

    Error messages call the file `flag`.

    Raises:
        UserError: The file cannot be read, is empty, or has a class twice.
    """
    if path is None:
        return list(read_texts())
    classes = [canonical(line.strip()) for line in _lines(path, flag) if line.strip()]
    nul = next((name for name in classes if '\0' in name), None)  # no folder's name can have one
    if nul:
        raise UserError(f"{flag} '{path}' has a NUL byte in {nul[:40]!r}; write one class on each line")
    if not classes:
        raise UserError(f"{flag} '{path}' is empty; write one class on each line")
    name, count = collections.Counter(classes).most_common(1)[0]
    if count > 1:
        raise UserError(f"{flag} '{path}' has '{name}' {count} times; keep one of them")
    return classes


def read_texts(path: str | os.PathLike | None = None, flag: str = 'metadata_file') -> dict[str, str]:
    """Return {class: its name in words} of a file of lines 'class TAB text', or ILSVRC2012's if there is no path.

    Error messages call the file `flag`.

    Raises:
        UserError: The file cannot be read, or a line has no tab.
    """
    if path is None:
        return dict(other_datasets.imagenet_classes())
    texts = {}
    for number, line in enumerate(_lines(path, flag), 1):
        name, tab, text = line.rstrip('\r\n').partition('\t')
        if not tab and line.strip():
            raise UserError(f"{flag} '{path}' has no tab in line {number}; write 'class TAB text'")
        if tab:
            texts[canonical(name)] = text
    return texts


def _lines(path, flag):
    try:
        return files.read_text(path).splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{flag} '{path}' cannot be read (not UTF-8); pass another") from None
    except OSError as error:
        remedy = files.advice(error, 'pass another')
        raise UserError(f"{flag} '{path}' cannot be read ({error.strerror}); {remedy}") from None


def read_validation(path: str | os.PathLike) -> list[str]:
    """Return the synsets of validation images 1, 2, ... from a list, the development kit or the validation boxes.

    Raises:
        UserError: The file cannot be read, is damaged, lacks a part, or has a class that is not a synset.
    """
    path = pathlib.Path(path).expanduser()
    with files.read_errors(path, REMEDY):
        with open(path, 'rb', opener=files.plain) as file:
            begin = file.read(archives.BLOCK)
        return _from_tar(path) if begin.startswith(b'\x1f\x8b') or archives.is_tar(begin) else _from_list(path)


def _from_list(path):
    synsets = files.read_bytes(path, 'text_bytes').removeprefix(codecs.BOM_UTF8).decode('latin-1').split()
    for number, synset in enumerate(synsets, 1):
        if not _SYNSET.fullmatch(synset):
            raise UserError(f"'{path}' has {synset[:20]!r} in line {number}, not a synset like n01440764; {REMEDY}")
    if not synsets:
        raise UserError(f"'{path}' is empty; {REMEDY}")
    return synsets


def _from_tar(path):
    """Return the synsets from the development kit or the XML files, whichever the tar file holds."""
    parts, synsets = {}, {}
    for path_inside, data in boxes.tar_files(path):
        name = os.path.basename(path_inside)
        match = _XML.fullmatch(name)
        if match:
            synsets[int(match[1])] = _synset_of_xml(path, name, data)
        elif name in (_TRUTH, _META):
            bounds.require('kit_file_bytes', len(data), f"{name} in '{path}'", REMEDY)
            parts[name] = data
    if synsets:
        missing = set(range(1, max(synsets) + 1)) - set(synsets)
        if missing:
            raise UserError(
                f"'{path}' lacks {len(missing)} XML files, such as ILSVRC2012_val_{min(missing):08d}.xml; get it again"
            )
        return [synsets[number] for number in range(1, len(synsets) + 1)]
    for name in (_TRUTH, _META):
        if name not in parts:
            raise UserError(f"'{path}' has neither {name} nor ILSVRC2012_val_00000001.xml; {REMEDY}")
    meta, numbers = _meta(path, parts[_META]), parts[_TRUTH].decode('latin-1').split()
    for place, number in enumerate(numbers, 1):
        if number not in meta:
            raise UserError(
                f"'{path}' has {number[:20]!r} as the class of image {place}, but its meta.mat lacks it; get it again"
            )
    if not numbers:
        raise UserError(f"'{path}' has an empty list of classes; get it again")
    return [meta[number] for number in numbers]


def _meta(path, data):
    """Return {ILSVRC2012_ID as text: synset} from the bytes of meta.mat."""
    try:
        import scipy.io
    except ImportError:
        raise UserError(
            f"meta.mat in '{path}' is a MATLAB file; run `pip install scipy` to read it, or put "
            f'{FILES[0]} or {FILES[2]} beside it'
        ) from None
    try:
        table = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, variable_names=['synsets'])['synsets']
        ids, names = table['ILSVRC2012_ID'].ravel(), table['WNID'].ravel()
        return {str(int(number)): str(name) for number, name in zip(ids, names, strict=True)}
    except Exception as error:  # on a damaged file, scipy may raise anything
        if not damage.is_damage(error):
            raise
        raise UserError(f"meta.mat in '{path}' is damaged ({damage.reason(error)}); get it again") from None


def _synset_of_xml(path, name, data):
    try:
        found = boxes.xml(data).findtext('object/name')
    except ValueError as error:
        raise UserError(f"'{name}' in '{path}' is broken ({error}); get it again") from None
    if not found or not _SYNSET.fullmatch(found.strip()):
        raise UserError(f"'{name}' in '{path}' names {found!r}, which is not a synset; {REMEDY}")
    return found.strip()
