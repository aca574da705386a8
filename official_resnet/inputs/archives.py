"""Tar and gzip files, read without trusting what they declare.

A tar file of a few kB may declare a member of terabytes, a name of a gigabyte or a map of a sparse file that fills the
memory, and a gzip file may unpack to a thousand times its size. So headers have a largest size, members a largest
number, sparse members are refused, and readers compare declared sizes with what they want before they read.
"""

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from official_resnet import bounds, damage, files
from official_resnet.errors import Damaged, UserError, one_line

BLOCK = 512  # bytes of a tar header
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)  # of a gzip file that is cut off or damaged
_PACKERS = (('gzip', b'\x1f\x8b'), ('bzip2', b'BZh'), ('xz', b'\xfd7zXZ'), ('zstd', b'\x28\xb5\x2f\xfd'))
UNPACK = 'images are read in place, so unpack it to a plain tar file first'
_CUT_OFF = 'unexpected end of data'  # tarfile's message if another header should follow


@contextlib.contextmanager
def unpacked(path: str | os.PathLike, always: bool = False) -> Iterator[IO[bytes]]:
    """Open a file, whose content is unpacked as it is read if it begins as gzip does, whatever its name, or `always`.

    A damaged gzip file raises one of GZIP_ERRORS when it is read, perhaps only at its end, where its checksum is.
    """
    with open(path, 'rb', opener=files.plain) as file:
        is_packed = always or file.read(2) == b'\x1f\x8b'
        file.seek(0)
        with _gunzipped(file) if is_packed else contextlib.nullcontext(file) as content:
            yield cast(IO[bytes], content)


def _gunzipped(file):
    """Return the content of a gzip file whose headers are small."""
    return gzip.GzipFile(fileobj=cast(IO[bytes], _GzipBytes(file)), mode='rb')


class _GzipBytes:
    """A file for gzip, which reads the names and comments of its headers byte by byte, and nothing else so."""

    def __init__(self, file):
        self.file, self.seek, self.num_single = file, file.seek, 0

    def read(self, size) -> bytes:
        self.num_single = self.num_single + 1 if size == 1 else 0
        if self.num_single > bounds.limit('gzip_header_bytes'):
            raise gzip.BadGzipFile(f'a header of more than {bounds.limit("gzip_header_bytes")} bytes')
        return self.file.read(size)


def is_tar(block: bytes) -> bool:
    """Return whether a file that begins with these BLOCK bytes is an unpacked tar file."""
    try:
        tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
    except tarfile.HeaderError:
        return False
    return True


def read_rest(file: IO[bytes], check: Callable[[int], None]) -> None:
    """Read a file to its end, where gzip has its checksum. `check` raises UserError if the position is too large."""
    while file.read(1 << 16):
        check(file.tell())


def members(file: IO[bytes], begin: int, end: int, where: str, most: str = 'tar_members') -> Iterator[tarfile.TarInfo]:
    """Yield the TarInfo of each member of the tar at bytes begin..end of a file. Offsets count from the file's start.

    Args:
        where: The tar's name in messages.
        most: The row of bounds for the number of members.

    Raises:
        UserError: The tar is compressed, damaged or cut off (Damaged), or it has too many members.
        One of GZIP_ERRORS: The file is a damaged gzip file.
    """
    file.seek(begin)
    magic = file.read(min(6, end - begin))
    for packer, start in _PACKERS:
        if magic.startswith(start):
            raise UserError(f'{where} is compressed by {packer}; {UNPACK}')
    file.seek(begin)
    headers, offset, count = _Headers(file, end), begin, 0
    last, place = None, ''  # the last member, and where it is seen from the fault
    try:
        tar: Any = tarfile.TarFile(fileobj=cast(IO[bytes], headers), mode='r')
        while (member := tar.next()) is not None:
            tar.members = []  # or tar would keep them all; the type stubs lack this list
            headers.left = bounds.limit('tar_header_bytes')
            last, place, offset, count = member, 'at', member.offset, count + 1
            if member.size < 0 or member.issparse():
                raise tarfile.ReadError('it has no plain size')
            if tar.offset > end:
                raise tarfile.ReadError(_CUT_OFF)
            bounds.require(most, count, where, 'get it again')
            yield member
            place, offset = 'after', tar.offset
        headers.seek(tar.offset)
        block = headers.read(BLOCK)
        if not block or block.strip(b'\0'):
            raise tarfile.ReadError('no header' if block else _CUT_OFF)
    except (UserError, *GZIP_ERRORS):
        raise
    except Exception as error:
        if not damage.is_damage(error):
            raise
        what = 'cut off' if str(error) == _CUT_OFF else 'damaged or not a tar file'
        inside = f" {place} member '{shown(last)}'" if last else ''
        raise Damaged(f'{where} is {what}: {damage.reason(error)}{inside}, byte {offset}; get it again') from None


def copy(
    file: IO[bytes], member: tarfile.TarInfo, path: str | os.PathLike, told: Callable[[int], Any] = lambda count: None
) -> None:
    """Write a plain member of a tar to a new file; call `told` with the number of bytes after each write."""
    file.seek(member.offset_data)
    left = member.size
    with open(path, 'wb') as target:
        while left and (chunk := file.read(min(left, 1 << 16))):
            target.write(chunk)
            left -= len(chunk)
            told(len(chunk))


def shown(member: tarfile.TarInfo) -> str:
    """Return a member's name for a message."""
    return one_line(member.name[:200])


class _Headers:
    """A file for tarfile, which reads only headers: those of a member are small, and end at byte `end`."""

    def __init__(self, file, end):
        self.file, self.end, self.tell, self.seek = file, end, file.tell, file.seek
        self.left = bounds.limit('tar_header_bytes')

    def read(self, size) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f'a header of more than {bounds.limit("tar_header_bytes")} bytes')
        return self.file.read(max(0, min(size, self.end - self.tell())))
