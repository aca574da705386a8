"""Which exceptions mean that a file is damaged: the one home of this question, around every parser of a file."""

import contextlib
import errno
import io
import os
import re
import sys
import zipfile
from collections.abc import Iterator

import numpy as np

from official_resnet import files, remedies
from official_resnet.errors import Damaged, UserError, one_line

# What seeking to a place outside of a file raises, which only damaged content asks for.
_OF_CONTENT = (None, 0, errno.EINVAL, errno.EOVERFLOW)
_OF_TENSORFLOW = re.compile(r'\{\{.*?\}\}|\[Op:\w*\].*', re.DOTALL)  # its internals around a message


def is_damage(error: BaseException) -> bool:
    """Return whether what a parser raises about a file means that the file's content is damaged.

    Every Exception does, since parsers of zips, JSON, HDF5 and networks raise most of Python's built-in ones for a few
    changed bytes. Only too little memory does not, nor does an OSError of the system; a parser's own has no errno.
    """
    if isinstance(error, OSError):
        return error.errno in _OF_CONTENT
    return isinstance(error, Exception) and not isinstance(error, out_of_memory())


def is_of_machine(error: OSError) -> bool:
    """Return whether an error would meet any file: too many are open, or the disk or its connection fails."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)


def reason(error: BaseException) -> str:
    """Return an exception's message on one line of at most 200 characters."""
    text = f'it has no {error}' if isinstance(error, KeyError) else getattr(error, 'message', '') or str(error)
    text = one_line(' '.join(_OF_TENSORFLOW.sub('', text).split())) or type(error).__name__
    return text if len(text) <= 200 else f'{text[:197]}...'


def out_of_memory() -> tuple[type[BaseException], ...]:
    """Return the exceptions for too little memory, with TensorFlow's if it is imported."""
    tensorflow = sys.modules.get('tensorflow')
    return (MemoryError, *([tensorflow.errors.ResourceExhaustedError] if tensorflow else []))


@contextlib.contextmanager
def reported(path: str | os.PathLike, remedy: str, what: str = '', kind: str = '') -> Iterator[None]:
    """Turn what reading and parsing a file raises into UserError: Damaged, if the file's content is at fault.

    A UserError passes unchanged, and so does too little memory, or an error of printing.

    Args:
        path: The file.
        remedy: What to do if it is damaged, missing or not a file.
        what: What the message calls the file, for example 'checkpoint '.
        kind: What the file should be, if it may never have been that: 'a .keras file'.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if remedies.of_output(error):
            raise
        if is_damage(error):
            fault = f'is damaged or not {kind}' if kind else 'is damaged'
            raise Damaged(f"{what}'{path}' {fault} ({reason(error)}); {remedy}") from error
        with files.read_errors(path, remedy, what):
            raise


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file that np.savez wrote. A damaged one raises any Exception: call it in `reported`.

    Each member's CRC is checked before it is parsed, and its shape is compared with its length, so that no changed byte
    decides how much memory is taken. The arrays cannot be written to.
    """
    arrays = {}
    with open(path, 'rb', opener=files.plain) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:  # np.savez compresses nothing, so nothing can grow
                raise ValueError(f'{member.filename} is compressed')
            data = archive.read(member)
            header = io.BytesIO(data)
            if np.lib.format.read_magic(header) != (1, 0):
                raise ValueError(f'{member.filename} has another version')
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(header)
            values = np.frombuffer(data, dtype, offset=header.tell())
            arrays[member.filename.removesuffix('.npy')] = values.reshape(shape, order='F' if is_fortran else 'C')
    return arrays
