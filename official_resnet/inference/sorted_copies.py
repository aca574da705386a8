"""Sort copies of images into a folder for each class. Imports no TensorFlow.

A copy keeps the name of its image. If a file of that name has the same bytes, nothing is copied; if it has others, the
copy gets a number. So nothing is ever overwritten, and doing it again changes nothing.
"""

import collections
import contextlib
import errno
import filecmp
import os
import pathlib
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from official_resnet import files, folders

UNSURE = '_unsure'  # the folder of images whose class is not sure
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')  # in the name of a file, in Linux or in Windows
_MAX_BYTES = 200  # of a name; file systems allow 255
# Errors of os.link where the file system has no hard links, or allows no further one.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def folder_names(names: Sequence[str], ids: Sequence[str | None]) -> list[str]:
    """Return the name of a folder for each class; no two are equal, even if upper and lower case are the same.

    >>> folder_names(['cat', 'a/b', '..', 'crane', 'crane'], [None, None, None, 'n02012849', 'n03126707'])
    ['cat', 'a_b', '_', 'crane_n02012849', 'crane_n03126707']
    """
    plain = [_file_name(name) for name in names]
    counts = collections.Counter(map(_folded, [*plain, UNSURE]))
    taken, found = {name for name, count in counts.items() if count == 1}, []
    for number, (name, key) in enumerate(zip(plain, ids, strict=True)):
        if counts[_folded(name)] > 1:
            name = _file_name(f'{name}_{key or number}')
            while _folded(name) in taken | {UNSURE}:
                name = f'{name}_{number}'
            taken.add(_folded(name))
        found.append(name)
    return found


def _file_name(name):
    """Return a name without what a file system may refuse, and not hidden."""
    name = _FORBIDDEN.sub('_', name.encode('utf-8', 'replace')[:_MAX_BYTES].decode('utf-8', 'ignore'))
    return re.sub(r'^\.', '_', name.rstrip('. ')) or '_'


def _folded(name):
    return unicodedata.normalize('NFC', name).casefold()


@contextlib.contextmanager
def copying(root: str | os.PathLike) -> Iterator[Callable[[pathlib.Path, str], tuple[pathlib.Path, bool]]]:
    """Yield copy(path, name), which copies a file into the folder `name` of `root`, unless it has such a copy already.

    It returns the path of the copy and whether it is new.

    A folder is made when it gets its first file. A kill or a power failure leaves no part of a copy. If the file system
    has hard links, a copy never replaces a file that another process has made in the meantime.

    Raises:
        UserError: A folder or a file cannot be written.
    """
    root, part = pathlib.Path(root), None
    with contextlib.ExitStack() as stack:

        def copy(path: pathlib.Path, name: str) -> tuple[pathlib.Path, bool]:
            nonlocal part
            with files.write_errors(f"'{root / name}'", ', or pass another --copy_to'):
                files.make_folder(root / name)
                part = part or stack.enter_context(folders.temporary(root, 'copy')) / 'file'
                return _copy(path, root / name, part)

        yield copy


def _copy(path, folder, part):
    """Copy a file into a folder, by way of the file `part` on the same file system; return what `copying` says."""
    target, number = folder / path.name, 1
    while True:
        while os.path.lexists(target):
            if target.is_file() and filecmp.cmp(path, target, shallow=False):
                return target, False
            number += 1
            target = folder / folders.fitting_name(path.stem, f'_{number}{path.suffix}')
        shutil.copy2(path, part)
        files.sync(part)
        try:
            os.link(part, target)  # unlike a rename, it overwrites nothing
        except FileExistsError:  # another process was faster
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            files.put_in_place(part, target)
        part.unlink(missing_ok=True)
        files.sync(folder)
        return target, True
