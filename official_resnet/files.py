"""Files that are there whole or not at all, and locks: what every writer of this package needs, written once."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from official_resnet.errors import UserError

# What flock says where a file system, mostly one of a network, has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, is_shared: bool = False, part: str | os.PathLike | None = None
) -> Iterator[pathlib.Path]:
    """Yield the path of a file to write; when the block ends, that file becomes `path` in one step.

    A kill, a crash, a power cut or a full disk leaves the old `path` as it was: the new file is flushed to the disk
    before the rename, and so is the folder after it. If the block raises, the new file is deleted.

    Args:
        path: the final name. Its folder exists.
        is_shared: several processes may write `path` at once, so each needs a name of its own until the rename.
        part: the name until then, on the same file system; without it one beside `path`.

    Example:
        >>> with replacing('/tmp/answer.txt') as part:
        ...     _ = part.write_text('42')
    """
    path = pathlib.Path(path)
    part = pathlib.Path(part or path.with_name(f'part.{os.getpid()}.{path.name}' if is_shared else f'part.{path.name}'))
    try:
        yield part
        _sync(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a small UTF-8 text file, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Write a small JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path: str | os.PathLike) -> dict | None:
    """Return what `write_json` wrote; None if the file is missing, or holds anything else."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def lock(path: str | os.PathLike) -> IO[str]:
    """Return the file `path`, made if need be, open and locked; closing it, or the end of the process, unlocks it.

    Where the file system has no locks, a line says so and the file is returned without one.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be written.
    """
    file = open(path, 'a+', encoding='utf-8')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        folder = pathlib.Path(path).parent
        print(
            f"no lock for '{folder}': its file system has none ({error.strerror}); make sure that no other job uses "
            'this folder',
            flush=True,
        )
    return file


@contextlib.contextmanager
def read_errors(path: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Turn what the operating system says about reading a file into a UserError; `remedy` is for a missing one."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; {remedy}") from None
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror or error}); make it a file that you may read"
        ) from None


@contextlib.contextmanager
def write_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn what the operating system says about writing into a UserError.

    Args:
        what: is written, as 'checkpoint /tmp/x'.
        remedy: what follows the advice to make it writable or, if the disk is full, to free some space.
    """
    try:
        yield
    except OSError as error:
        advice = 'free some space' if error.errno in _FULL else 'make it writable'
        raise UserError(f'cannot write {what}: {error.strerror or error}; {advice}{remedy}') from error


def _sync(path: pathlib.Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a file system that cannot do it for folders
            raise
    finally:
        os.close(descriptor)
