"""Folders: temporary ones, which a killed process leaves only until the next starts, and names that are patterns."""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from official_resnet import files
from official_resnet.errors import UserError

MAX_NAME_BYTES = 250  # of 255, because a file that is being written has 'part.' before its name


def require_no_pattern(path: str | os.PathLike, what: str = '', reader: str = 'TensorFlow') -> None:
    """Raise UserError if `reader` would take a path for the pattern of several, or takes none that is not text.

    `what` precedes the path in the message.
    """
    require_text(path, what, reader)
    if re.search(r'[*?\[\\]', str(path)):
        raise UserError(
            f'{what}{path}: to {reader}, *, ?, [ and \\ in a path are a pattern; rename it, or pass another'
        )


def require_text(path: str | os.PathLike, what: str = '', reader: str = 'TensorFlow') -> None:
    """Raise UserError if a path has bytes that are not UTF-8, which `reader` does not take."""
    if re.search('[\udc80-\udcff]', str(path)):  # how Python keeps such bytes
        raise UserError(f'{what}{path}: to {reader}, a path must be UTF-8 text; rename it, or pass another')


def existing_parent(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """Return `path`, or the nearest one above it that exists. UserError: it is a file; the flag names `path`."""
    found = pathlib.Path(os.path.abspath(path))
    while not found.exists():
        found = found.parent
    if not found.is_dir():
        raise UserError(f"--{flag}={path}: '{found}' is a file; pass another --{flag}")
    return found


def require_writable(path: str | os.PathLike, flag: str) -> None:
    """Raise UserError if a folder cannot be written into, or cannot be made. It is not made."""
    place = existing_parent(path, flag)
    with files.write_errors(f"{flag} '{path}'", f', or pass another --{flag}'):
        tempfile.TemporaryFile(dir=place).close()


def fitting_name(stem: str, end: str) -> str:
    """Return a file's name of a stem and an end, the stem cut to what file systems take, as files.replacing writes it.

    >>> fitting_name('x' * 255, '_2.png') == 'x' * 244 + '_2.png'
    True
    """
    most = MAX_NAME_BYTES - len(os.fsencode(end))
    if len(os.fsencode(stem)) <= most:
        return stem + end
    return os.fsencode(stem)[: max(most, 0)].decode(errors='ignore') + end


@contextlib.contextmanager
def temporary(place: str | os.PathLike | None = None, name: str = 'official_resnet') -> Iterator[pathlib.Path]:
    """Yield a new folder `.part.<name>.<8 characters>` in `place`, which is deleted at the end.

    First, those of this name that killed processes left are deleted: a process locks its folder as long as it lives.
    Where a file system has no such locks, they stay. The default of `place` is the system's folder for such files.
    """
    place, prefix = place or tempfile.gettempdir(), f'.part.{name}.'
    for left in os.listdir(place):
        if re.fullmatch(re.escape(prefix) + '[a-z0-9_]{8}', left):
            with contextlib.suppress(OSError), _locked(f'{place}/{left}'):  # BlockingIOError if its process lives
                shutil.rmtree(f'{place}/{left}')
    with contextlib.ExitStack() as stack:
        path = ''
        while not os.path.isdir(path):  # another process may take it for a left one before it is locked
            path = tempfile.mkdtemp(prefix=prefix, dir=place)
            try:
                stack.enter_context(_locked(path))
            except BlockingIOError:
                path = ''
            except OSError:  # no such locks
                pass
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield pathlib.Path(path)


def put_in_place(part: str | os.PathLike, path: str | os.PathLike) -> None:
    """Flush a folder with its files to the disk and rename it, so that a power failure leaves no file zero or cut.

    If there is a folder `path` already, the new files replace those of the same names one by one; other files stay.
    """
    for parent, _, names in os.walk(os.fspath(part)):
        for name in names:
            if not os.path.islink(f'{parent}/{name}'):
                files.sync(f'{parent}/{name}')
        files.sync(parent)
    _move(os.fspath(part), os.fspath(path))


def _move(part, path):
    if not os.path.isdir(path):
        files.put_in_place(part, path)
        return
    for name in sorted(os.listdir(part)):
        (_move if os.path.isdir(f'{part}/{name}') else os.replace)(f'{part}/{name}', f'{path}/{name}')
    files.sync(path)
    os.rmdir(part)


@contextlib.contextmanager
def _locked(path):
    """Lock a folder. It is no link, so what is locked is what is deleted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
