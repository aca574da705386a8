"""Atomic writes, locks, and one-line messages for errors of reading and writing. All modules that write use it."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import IO

from official_resnet.errors import UserError

# Errors of flock on a file system that does not support locks, usually a network file system.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, part: str | os.PathLike | None = None) -> Iterator[pathlib.Path]:
    """Yield the path of a temporary file to write; when the block ends, `put_in_place` gives it the name `path`.

    A kill, a crash, a power failure or a full disk leaves the old `path` unchanged. If the block raises an exception,
    the new file is deleted. A kill leaves it, until the next call overwrites it.

    Args:
        path: The final name. Its folder must exist.
        part: The temporary name, on the same file system. By default it is in the folder of `path`.

    Example:
        >>> with replacing('/tmp/answer.txt') as part:
        ...     _ = part.write_text('42')
    """
    path = pathlib.Path(path)
    part = pathlib.Path(part or path.with_name(f'part.{path.name}'))
    try:
        yield part
        put_in_place(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)  # a full disk has none
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def put_in_place(part: str | os.PathLike, path: str | os.PathLike) -> None:
    """Flush a file to the disk and rename it: after a power failure, `path` is the old or the new file, whole."""
    sync(part)
    os.replace(part, path)
    sync(os.path.dirname(path) or '.')


def make_folder(path: str | os.PathLike) -> None:
    """Make a folder, and those above it that are missing, so that a power failure does not remove what is put there."""
    missing = [folder for folder in (pathlib.Path(path), *pathlib.Path(path).parents) if not folder.exists()]
    os.makedirs(path, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a small UTF-8 text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Write a small JSON file atomically."""
    write_text(path, json.dumps(value, indent=1))


def plain(path: str, flags: int) -> int:
    """Open a file for open(opener=plain); refuse what is no file, such as a FIFO, for which open() may wait forever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode) and not stat.S_ISDIR(mode):  # open() refuses a folder
        os.close(descriptor)
        raise OSError(errno.ENXIO, 'not a plain file', path)
    return descriptor


def read_bytes(path: str | os.PathLike, row: str = '') -> bytes:
    """Return the content of a plain file. UserError: it has more bytes than this row of bounds allows."""
    with open(path, 'rb', opener=plain) as file:
        if row:
            from official_resnet import bounds

            bounds.require(row, os.fstat(file.fileno()).st_size, f"'{path}'", 'pass another file')
        return file.read()


def read_text(path: str | os.PathLike) -> str:
    """Return the content of a UTF-8 text file, without the byte order mark that some editors write."""
    text = str(read_bytes(pathlib.Path(path).expanduser(), 'text_bytes'), 'utf-8-sig')
    return text.replace('\r\n', '\n').replace('\r', '\n')


def read_json(path: str | os.PathLike) -> dict | None:
    """Return what `write_json` wrote, or None if the file is missing or does not hold a JSON object."""
    try:
        value = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lock(path: str | os.PathLike) -> IO[str]:
    """Open and lock the file `path`, creating it if necessary. Closing it or ending the process releases the lock.

    If the file system does not support locks, a warning says so, and the file is returned unlocked.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file cannot be written.
    """
    file = open(path, 'a+', encoding='utf-8')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        folder = pathlib.Path(path).parent
        logging.getLogger(__name__).warning(
            f"cannot lock '{folder}': its file system does not support locks ({error.strerror}); make sure that no "
            'other job uses this folder'
        )
    return file


def advice(error: OSError, otherwise: str) -> str:
    """Return what to do about an error: what its cause demands, or else `otherwise`."""
    from official_resnet.remedies import ADVICE

    return ADVICE.get(error.errno or 0, otherwise)


def say(text: str) -> None:
    """Print a line at once. An error of that has a file name, by which remedies.of_output knows it."""
    try:
        print(text, flush=True)
    except OSError as error:
        error.filename = '<stdout>'
        raise


@contextlib.contextmanager
def read_errors(path: str | os.PathLike, remedy: str, what: str = '') -> Iterator[None]:
    """Turn an OSError from reading a file into UserError.

    Args:
        path: The file.
        remedy: What to do if it is missing or not a file.
        what: What the message calls the file, for example 'labels_file '.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what}'{path}' does not exist; {remedy}") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{what}'{path}' cannot be read ({reason}); {advice(error, remedy)}") from None


@contextlib.contextmanager
def write_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn an OSError from writing, or a RuntimeError that it causes in h5py, into UserError.

    Args:
        what: What is being written, for example 'checkpoint /tmp/x'.
        remedy: The text that follows the advice in the message, for example 'make it writable' or 'free some space'.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        from official_resnet.remedies import of_writing

        if not (said := of_writing(error)):
            raise
        raise UserError(f'cannot write {what}: {said}{remedy}') from error


def sync(path: str | os.PathLike) -> None:
    """Flush a file's content, or the names in a folder, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):  # so it is for folders of some file systems
            raise
