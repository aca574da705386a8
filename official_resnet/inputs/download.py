"""Fetch CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST: downloads are resumed, checked, and put in place by a rename.

A file is written as `<name>.part` and renamed when its size and MD5 are right. An archive (CIFAR) is unpacked into a
temporary folder beside its destination; a set of files (MNIST) is collected in `<folder>.part`. So whatever has its
final name is complete. Errors that the user can fix (network, disk, damaged archive) raise UserError with the remedy.
"""

import contextlib
import dataclasses
import errno
import hashlib
import http
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from official_resnet import bounds, damage, files, folders, remedies
from official_resnet.errors import Damaged, UserError, one_line
from official_resnet.inputs import archives, datasets, web

_LOG = logging.getLogger(__name__)
SYNC_BYTES = 1 << 24  # bytes of a download after which it is flushed to the disk
ATTEMPTS = 3  # connections per call of fetch
RETRY_SECONDS = 1  # before the second attempt; twice that before the third
DROPPED = (urllib.error.URLError, ConnectionError)  # raised when a connection fails
# Errors of a file system which only the names in an archive cause, as each is unpacked into an empty folder.
_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
LOCAL_COPY = 'pass cifar10_download_and_extract.py another --url or a local --archive'
MAKE_ROOM = 'free some space, or pass a {flag} on another disk'


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where an archive is, how it is recognized, and what it contains."""

    url: str
    size: int  # bytes
    md5: str
    files: dict[str, int]  # size in bytes of each file, by its name in the data set's folder


# Each file of CIFAR-10 has 10,000 records of 1 + 3072 bytes; those of CIFAR-100 have 50,000 and 10,000 of 2 + 3072.
ARCHIVES = {
    'cifar10': Archive(
        url='https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
        size=170_052_171,
        md5='c32a1d4ab5d03f1284b67883e8d87530',
        files={**{f'data_batch_{i}.bin': 30_730_000 for i in range(1, 6)}, 'test_batch.bin': 30_730_000},
    ),
    'cifar100': Archive(
        url='https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
        size=168_513_733,
        md5='03b5dce01913d631647c71ecec9e9cb8',
        files={'train.bin': 153_700_000, 'test.bin': 30_740_000},
    ),
}
# Files that are used as they are: (address of their folder, {name: (bytes, MD5)}). torchvision has the same MD5 sums.
FILE_SETS = {
    'mnist': (
        'https://ossci-datasets.s3.amazonaws.com/mnist/',
        {
            'train-images-idx3-ubyte.gz': (9_912_422, 'f68b3c2dcbeaaa9fbdd348bbdeb94873'),
            'train-labels-idx1-ubyte.gz': (28_881, 'd53e105ee54ea40749a09fcbcd1e9432'),
            't10k-images-idx3-ubyte.gz': (1_648_877, '9fb629c4189551a2d022fa330f9573f3'),
            't10k-labels-idx1-ubyte.gz': (4_542, 'ec29112dd5afa0611ce80d1b7f02629c'),
        },
    ),
    'fashion_mnist': (
        'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
        {
            'train-images-idx3-ubyte.gz': (26_421_880, '8d4fb7e6c68d591d4c3dfef9ec88bf0d'),
            'train-labels-idx1-ubyte.gz': (29_515, '25c81989df183df01b3e8a0aad5dffbe'),
            't10k-images-idx3-ubyte.gz': (4_422_102, 'bef4ecab320f06d8554ea6380940ec79'),
            't10k-labels-idx1-ubyte.gz': (5_148, 'bb300cfdad3c16e7a12a480ee83cd310'),
        },
    ),
}


def fetch_missing(dataset: str, data_dir: str | os.PathLike) -> None:
    """Download a data set of the tables above if data_dir has none of its files. Its reader checks files that exist."""
    if not datasets.is_missing(dataset, data_dir):
        return
    if dataset in ARCHIVES:
        download_and_extract(dataset, data_dir)
        return
    (url, rows), name = FILE_SETS[dataset], datasets.info_of(dataset).folders[0]
    parent = _parent_of(name, Path(os.path.expanduser(data_dir)))
    folder, part = parent / name, parent / f'{name}.part'  # `part` is renamed to `folder` when it is complete
    remedy, total = f"put {', '.join(rows)} into '{folder}' yourself", sum(size for size, _ in rows.values())
    with _disk_errors(parent, total):
        files.make_folder(part)
        _LOG.info(f'downloading {url} ({total / 1e6:.0f} MB) to {folder}')
        for name, (size, md5) in rows.items():
            if _size(part / name) != size:  # otherwise an interrupted run has fetched and checked it
                fetch(url + name, part / name, size, md5, remedy)
        folders.put_in_place(part, folder)
    _LOG.info(f'{dataset} is in {folder}')


def download_and_extract(
    dataset: str,
    data_dir: str | os.PathLike,
    archive: str | None = None,
    md5: str | None = None,
    url: str | None = None,
) -> Path:
    """Make sure that data_dir has a complete data set, log what was done, and return its folder.

    Args:
        dataset: A key of ARCHIVES.
        data_dir: The folder to fill, which is created if it is missing, or the extracted folder itself.
        archive: Path or file:// URL of a local tar.gz in the official layout, used instead of a download.
        md5: The MD5 to require. Without it, a download must have the official one; an `archive` is not checked.
        url: Another address of the archive.

    Raises:
        UserError: No internet connection, a damaged or wrong archive, a full disk, or a folder that cannot be written.
    """
    row, name = ARCHIVES[dataset], datasets.info_of(dataset).folders[0]
    place = Path(os.path.expanduser(data_dir))
    for folder in (place / name, place):
        if all(_size(folder / file) == size for file, size in row.files.items()):
            _LOG.info(f'{dataset} is already complete in {folder}: nothing to do')
            return folder
    place = _parent_of(name, place)
    with _disk_errors(place, sum(row.files.values())):
        if archive is not None:
            archive = _local_archive(archive, md5)
        files.make_folder(place)
        folder = extract(archive or _downloaded(row, place, md5, url), place, dataset)
    _LOG.info(f'{dataset} is in {folder}')
    return folder


def fetch(
    url: str,
    path: str | os.PathLike,
    size: int | None = None,
    checksum: str | None = None,
    remedy: str = LOCAL_COPY,
    authorization: str | None = None,
    most: int | None = None,
    flag: str = '--data_dir',
) -> None:
    """Download `url` to `path`, continuing the `<path>.part` that an interrupted run left.

    A dropped or slow connection is resumed after a pause, with ATTEMPTS connections in all. After that, the next run
    continues. What is above `size`, or the size that the server declares, is not written.

    Args:
        path: The final name. It appears in one rename, after the checks.
        size, checksum: The expected size in bytes, and MD5 in hexadecimal digits or 'sha256:' and the first digits of
            the SHA-256. None is not checked.
        remedy: What the user can do if the connection fails; errors end with it.
        authorization: Value of the HTTP header of that name. It is not sent to the target of a redirect.
        most: The largest number of bytes if `size` is None, by default `download_bytes`.
        flag: The flag that chooses the folder of `path`, for messages.

    Raises:
        UserError: No internet connection, an HTTP error, a wrong size or checksum, or too little space on the disk.
    """
    path = Path(path)
    part = path.with_name(path.name + '.part')
    if not web.is_address(url):
        fault = 'is not an http or https address in ASCII without a user name'
        raise UserError(f"url '{web.shown(url)}' {fault}: correct it, or {remedy}")
    if checksum is None and part.is_file():  # with one, what was lost is found at the end
        with _disk_errors(path.parent, size or 0, flag):
            _drop_lost(part)
    missing = (size or 0) - _size(part)
    with _disk_errors(path.parent, missing, flag):
        _require_space(path.parent, missing, flag)
        for attempt in range(ATTEMPTS):
            time.sleep(attempt * RETRY_SECONDS)
            try:
                _download_rest(url, part, size, remedy, authorization, most, flag)
                break
            except DROPPED as error:
                if isinstance(error, urllib.error.URLError) or attempt == ATTEMPTS - 1:
                    reason = f'{one_line(getattr(error, "reason", error))}; {_size(part)} bytes are kept'
                    advice = f'check the connection and run the same command again, or {remedy}'
                    raise UserError(f'cannot download {url} ({reason}): {advice}') from error
        if fault := mismatch(part, size, checksum):
            part.unlink()
            raise UserError(f'the file from {url} {fault} and was removed: run the same command again, or {remedy}')
        files.put_in_place(part, path)


def extract(archive: str | os.PathLike, data_dir: str | os.PathLike, dataset: str) -> Path:
    """Unpack an archive of the official layout into data_dir and return the data set's folder.

    Only plain files of that folder are written. An archive with absolute paths, `..`, links or devices is refused, and
    data_dir is as it was. The files of an incomplete folder are replaced one by one; other files in it are kept.

    Raises:
        UserError: The archive is damaged, a member is unsafe, missing or has a wrong size, or the disk is full.
    """
    row, folder = ARCHIVES[dataset], Path(data_dir, datasets.info_of(dataset).folders[0])
    total, remedy = sum(row.files.values()), 'get it again (without --archive the official one is downloaded)'
    with _disk_errors(data_dir, total), folders.temporary(data_dir, folder.name) as temp_dir:
        _require_space(data_dir, total)
        unpacked = temp_dir / folder.name
        try:
            _unpack(archive, unpacked, row)
        except Exception as error:
            if not _is_of_archive(error):
                raise
            sizes = f'{_size(archive)} bytes, the official one has {row.size}'
            raise UserError(f"archive '{archive}' is truncated, damaged or not a tar.gz ({sizes}): {remedy}") from error
        for name, size in row.files.items():
            if problem := mismatch(unpacked / name, size, None):
                raise UserError(f"archive '{archive}': {folder.name}/{name} {problem}; {remedy}")
        folders.put_in_place(unpacked, folder)
    return folder


def _parent_of(name, data_dir):
    """Return the folder in which to make the data set's folder `name`: data_dir, or its parent if it has that name."""
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"data_dir '{data_dir}' is a file: pass a folder")
    return data_dir.parent if data_dir.name == name else data_dir


def _is_of_archive(error):
    """Return whether an error of unpacking is the archive's fault, and not yet told."""
    if isinstance(error, UserError):
        return isinstance(error, Damaged)
    return damage.is_damage(error) or (isinstance(error, OSError) and error.errno in _OF_NAMES)


def _size(path):
    """Return the size of a plain file in bytes, or 0 for anything else."""
    return os.path.getsize(path) if os.path.isfile(path) else 0


def mismatch(path: str | os.PathLike, size: int | None, checksum: str | None) -> str:
    """Return what is wrong with a file, in words that follow its name in a message, or '' if nothing is.

    `size` and `checksum` are those of `fetch`.
    """
    if not os.path.isfile(path):
        return 'is not a file' if os.path.lexists(path) else 'is missing'
    if size is not None and _size(path) != size:
        return f'has {_size(path)} bytes instead of {size}'
    if checksum is not None:
        kind, _, expected = checksum.strip().lower().rpartition(':')
        with open(path, 'rb') as file:
            found = hashlib.file_digest(file, lambda: hashlib.new(kind or 'md5', usedforsecurity=False)).hexdigest()
        if found[: len(expected) if kind else None] != expected:
            return f'has {(kind or "md5").upper()} {found} instead of {checksum.rpartition(":")[2]}'
    return ''


def _local_archive(archive, md5):
    """Return the path of a user's archive, given as a path or a file:// URL."""
    archive = str(archive)
    if archive.startswith('file:'):
        archive = urllib.request.url2pathname(re.sub('^file:(//[^/]*)?', '', archive))
    path = Path(os.path.expanduser(archive))
    if fault := mismatch(path, None, md5):
        advice = 'get it again, or correct --md5' if path.is_file() else 'pass a tar.gz, or leave --archive out'
        raise UserError(f"archive '{archive}' {fault}: {advice}")
    return path


def _downloaded(row, data_dir, md5, url):
    """Return the path of the verified archive in data_dir, downloading it if it is missing."""
    path, url, md5 = data_dir / row.url.rsplit('/', 1)[-1], url or row.url, md5 or row.md5
    size = row.size if md5 == row.md5 else None
    if path.exists():
        if fault := mismatch(path, size, md5):
            advice = 'remove it to download it again, or pass it as --archive to use it as it is'
            raise UserError(f"'{path}' {fault}: {advice}")
        return path
    _require_space(data_dir, row.size + sum(row.files.values()) - _size(f'{path}.part'))
    _LOG.info(f'downloading {url} ({row.size / 1e6:.0f} MB) to {path}')
    fetch(url, path, size, md5, most=sum(row.files.values()) + bounds.limit('archive_rest_bytes'))
    return path


def _download_rest(url, part, size, remedy, authorization, most, flag):
    """Append the missing bytes to `part`. Raise one of DROPPED if the server stops early."""
    offset = _size(part)
    if offset and offset == size:
        return
    with contextlib.closing(_ask(url, offset, remedy, authorization)) as answer:
        if (
            answer.content_range == f'bytes */{offset}'
            and answer.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        ):
            return  # the file was complete
        resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if answer.status != http.HTTPStatus.OK and not (
            resumed and answer.content_range.startswith(f'bytes {offset}-')
        ):
            part.unlink(missing_ok=True)
            raise ConnectionError('the server cannot continue the file')
        start = offset if resumed else 0  # status 200: the server ignores Range
        total = size if answer.length is None else start + answer.length
        if size is not None and total != size:
            problem = f'has {total} bytes instead of {size} (a login page, or another file)'
            raise UserError(f'{url} {problem}: correct the address, or {remedy}')
        most = most or bounds.limit('download_bytes')
        if size is None and (total or 0) > most:
            raise UserError(f'{url} has {total} bytes, more than the {most} that are read; {remedy}')
        most = most if total is None else total
        _require_space(part.parent, (total or 0) - start, flag)
        num_bytes = start
        with open(part, 'ab' if resumed else 'wb') as file, _progress(part.stem, total, start) as bar:
            for chunk in answer.chunks():
                num_bytes += len(chunk)
                if num_bytes > most:
                    break
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() % SYNC_BYTES < len(chunk):
                    file.flush()
                    os.fsync(file.fileno())
    if num_bytes > most:
        part.unlink()
        raise UserError(f'{url} sends more than the {most} bytes that it should have: correct the address, or {remedy}')
    if total is not None and num_bytes < total:
        raise ConnectionError(f'the connection ended after {num_bytes} of {total} bytes')


def _drop_lost(part):
    """Cut off a `.part` where its end is zero: a power failure leaves that of what was not on the disk yet."""
    begin = max(_size(part) // SYNC_BYTES - 1, 0) * SYNC_BYTES
    with open(part, 'r+b') as file:
        file.seek(begin)
        tail, _, _ = file.read().partition(bytes(32))
        file.truncate(begin + len(tail.rstrip(b'\0')))


def _ask(url, offset, remedy, authorization):
    """Return the web.Answer to a GET of `url` from byte `offset` on."""
    try:
        return web.Answer(url, {'Range': f'bytes={offset}-'} if offset else {}, authorization)
    except urllib.error.HTTPError as error:
        raise UserError(
            f'{url} answers {error.code} {one_line(error.reason)[:200]}: try again later, or {remedy}'
        ) from error
    except web.Malformed as error:
        raise UserError(
            f'{url} does not answer as a web server should ({error}): correct the address, or {remedy}'
        ) from error


def _unpack(archive, folder, row):
    """Unpack the files of the archive's folder of that name into `folder`. Refuse an archive with an unsafe member."""
    wanted = sum(row.files.values())

    def require_size(size) -> None:
        what = f"archive '{archive}', beside the files of the data set,"
        bounds.require('archive_rest_bytes', size - wanted, what, 'get it from a source you trust')

    with archives.unpacked(archive, always=True) as tar, _progress('extracting', wanted) as bar:
        for member in archives.members(tar, 0, 1 << 62, f"archive '{archive}'", 'archive_members'):
            name = PureWindowsPath(member.name)  # understands /, \ and drive letters, so it is safe on every system
            if name.anchor or '..' in name.parts or not (member.isreg() or member.isdir()):
                fault = f"'{archives.shown(member)}' is a link, a device or a path outside of the folder"
                raise UserError(f"archive '{archive}' is refused: {fault}; get it from a source you trust")
            require_size(member.offset_data + member.size)
            if member.isdir() or name.parts[:1] != (folder.name,):
                continue
            target = folder.joinpath(*name.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            told = [bar.update] if target.name in row.files else []
            archives.copy(tar, member, target, *told)
        archives.read_rest(tar, require_size)


def _progress(what, total, done=0):
    """Return a progress bar, which is silent if standard error is not a terminal."""
    return tqdm(desc=what, total=total, initial=done, unit='B', unit_scale=True, disable=None)


def _require_space(folder, num_bytes, flag='--data_dir'):
    if os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise UserError(f"'{folder}' cannot be written: get the permission for it, or pass another {flag}")
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(f"'{folder}' has {free} bytes free, {num_bytes} are needed: {MAKE_ROOM.format(flag=flag)}")


@contextlib.contextmanager
def _disk_errors(folder, num_bytes, flag='--data_dir'):
    """Turn the operating system's errors about files into a UserError with the remedy."""
    try:
        yield
    except OSError as error:
        if remedies.of_output(error):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            said = f"the disk of '{folder}' is full, {num_bytes} bytes are needed: {MAKE_ROOM.format(flag=flag)}"
            raise UserError(said) from error
        reason = f"'{error.filename or folder}': {error.strerror or error}"
        raise UserError(f'{reason}; correct the path or its permissions, or pass another {flag}') from error
