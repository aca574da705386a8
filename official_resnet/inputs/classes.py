"""Match the classes of two sources of images, such as a folder and a manifest: by id, then by name, never by position.

Names are compared in Unicode's form NFC, because macOS writes 'é' as two characters.
"""

import collections
import difflib
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence

from official_resnet.errors import UserError
from official_resnet.inputs import images, other_datasets
from official_resnet.inputs.split import Split

Ids = Sequence[str | None] | None


def canonical(name: str) -> str:
    """Return a name in the form in which equal names are equal strings."""
    return unicodedata.normalize('NFC', name)


def listed(names: Iterable[object], most: int = 3) -> str:
    """Return the first names of a list as text, and the number of the others.

    >>> listed(['cat', 'dog', 'cow', 'ant', 'bee'])
    "'cat', 'dog', 'cow' and 2 more"
    """
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(f"'{name}'" for name in names[:most]) + more


def nearest(unknown: Sequence[str], names: Sequence[str], most: int = 20) -> str:
    """Return names as text, for comparison with unknown ones: all, or if they are many, those most like the unknown.

    >>> nearest(['Cat'], ['ant', 'bee', 'cat', 'cow', 'dog'], most=2)
    "'cat', 'ant' and 3 more"
    """
    if len(names) <= most:
        return listed(names, most)
    near = dict.fromkeys(
        match for name in unknown[:5] for match in difflib.get_close_matches(name, names, most // 5 or 2, 0)
    )
    return f'{listed(near, len(near))} and {len(names) - len(near)} more'


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ only in upper and lower case.

    >>> alike(['FROG', 'cat', 'frog'])
    [['FROG', 'frog']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def folders(root: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Return {class: its folder} for the subfolders of a folder, in the order of their names.

    What images.is_leftover says is left out, and so is a link to the folder itself, or to one above it.

    Raises:
        UserError: Two names are equal, but written in different characters; or the folder cannot be read.
    """
    found: dict[str, pathlib.Path] = {}
    root = pathlib.Path(root)
    for entry in images.entries(root):
        is_folder = os.path.isdir(entry.path) and not images.is_leftover(entry.name)
        if is_folder and not (entry.is_symlink() and images.leads_above(entry.path, root)):
            path = root / entry.name
            other = found.setdefault(canonical(entry.name), path)
            if other != path:
                raise UserError(f"'{root}' has two folders '{other.name}', in different Unicode forms; join them")
    return dict(sorted(found.items()))


def match(names: Sequence[str], ids: Ids, their_names: Sequence[str], their_ids: Ids) -> list[int]:
    """Return the position of each class in another list of classes, or -1 for a class that is not there.

    Classes with the same id are the same. A name may be an id, as in a folder n01440764 or a data set of TFDS, and then
    also matches the name that ILSVRC2012 has for it. A name that the other list has twice ('crane') matches neither.
    """
    their_names = [canonical(name) for name in their_names]
    if [canonical(name) for name in names] == their_names and (not ids or not their_ids or list(ids) == [*their_ids]):
        return list(range(len(names)))
    known = dict(other_datasets.imagenet_classes())
    counts = collections.Counter(their_names)
    by_id = {key: i for i, key in enumerate(their_ids or ()) if key}
    by_name = {name: i for i, name in enumerate(their_names) if counts[name] == 1}
    result = []
    for name, key in zip(map(canonical, names), ids or [None] * len(names), strict=True):
        key = key or name
        found = [by_id.get(key), by_name.get(key), by_name.get(name), by_name.get(known.get(key, ''))]
        result.append(next((i for i in found if i is not None), -1))
    return result


def align(split: Split, names: Sequence[str], ids: Ids, whose: str, other: str = '') -> Split:
    """Return a split whose labels are the positions of its classes in `names`, the classes of `whose`.

    Raises:
        UserError: A class of the split is not among them. The message ends with `other`, another remedy.
    """
    if list(names) == list(split.class_names):
        return split
    outputs = match(split.class_names, split.class_ids, names, ids)
    if unknown := [name for name, i in zip(split.class_names, outputs, strict=True) if i < 0]:
        fault = f'{split.name} has the classes {listed(unknown)}, which are not among those of {whose}'
        raise UserError(f'{fault}, {nearest(unknown, names)}; rename or remove them{other}')
    return split.with_classes(names, ids, outputs)
