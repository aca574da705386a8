"""download: resumed, checked and atomic; tried on archives of a few kB and a server on the loopback."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from official_resnet import cifar10_download_and_extract
from official_resnet.errors import UserError
from official_resnet.inputs import datasets, download

SCRIPT = cifar10_download_and_extract.__file__
FOLDER = 'cifar-10-batches-bin'
NAME = 'cifar-10-binary.tar.gz'
RECORD = 1 + 3072
FILES = {
    'data_batch_1.bin': random.Random(1).randbytes(2 * RECORD),  # does not compress
    'test_batch.bin': random.Random(2).randbytes(RECORD),
}


def tar_gz(members):
    """Return a tar.gz of {name: bytes}; a value may be a TarInfo, for members that are no plain files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                tar.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def official(files=None):
    return {f'{FOLDER}/{name}': data for name, data in (files or FILES).items()}


def link(kind, target):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


GOOD = tar_gz({**official(), f'{FOLDER}/batches.meta.txt': b'airplane\n'})
MD5 = hashlib.md5(GOOD).hexdigest()
IDX = {
    name: random.Random(name).randbytes(2000 + 100 * len(name))
    for name in (  # what they hold is not looked at
        'train-images-idx3-ubyte.gz',
        'train-labels-idx1-ubyte.gz',
        't10k-images-idx3-ubyte.gz',
        't10k-labels-idx1-ubyte.gz',
    )
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves IDX by name and GOOD at any other path; the server's attributes say how badly."""

    def do_GET(self):
        server, good = self.server, IDX.get(self.path.rpartition('/')[2], GOOD)
        server.ranges.append(self.headers.get('Range'))
        start = int(server.ranges[-1][len('bytes=') : -1]) if server.ranges[-1] and server.knows_range else 0
        status = server.status or (206 if start else 200)
        if status == 206 and start >= len(good):
            status = 416
        body = {200: good, 206: good[start:]}.get(status, b'')
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        if status == 206:
            self.send_header('Content-Range', f'bytes {start}-{len(good) - 1}/{len(good)}')
        if status == 416:
            self.send_header('Content-Range', f'bytes */{len(good)}')
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        self.wfile.flush()
        server.may_close.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A server that counts requests in .ranges; .cuts holds after how many bytes each response breaks off."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.ranges, server.cuts, server.knows_range, server.status = [], [], True, None
    server.may_close = threading.Event()
    server.may_close.set()
    server.url = f'http://127.0.0.1:{server.server_port}/{NAME}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.may_close.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def refused_url():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{free.getsockname()[1]}/{NAME}'


@pytest.fixture(autouse=True)
def tiny_archives(monkeypatch, refused_url):
    """Make the data sets some kB, their addresses unreachable, and the waiting short."""
    for dataset in download.ARCHIVES:
        monkeypatch.setitem(
            download.ARCHIVES,
            dataset,
            download.Archive(refused_url, len(GOOD), MD5, {name: len(data) for name, data in FILES.items()}),
        )
    monkeypatch.setitem(download.FILE_SETS, 'mnist', file_set(f'{refused_url}/'))
    monkeypatch.setattr(download, 'RETRY_SECONDS', 0)
    monkeypatch.setenv('no_proxy', '127.0.0.1')


def file_set(url):
    return url, {name: (len(data), hashlib.md5(data).hexdigest()) for name, data in IDX.items()}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / 'mine.tar.gz'
    path.write_bytes(GOOD)
    return path


@pytest.fixture
def data_dir(tmp_path):
    path = tmp_path / 'data'
    path.mkdir()
    return path


def assert_extracted(data_dir):
    assert {path.name: path.read_bytes() for path in (data_dir / FOLDER).iterdir()} == {
        **FILES,
        'batches.meta.txt': b'airplane\n',
    }
    assert not [path for path in data_dir.iterdir() if path.name.startswith('.') or path.suffix == '.part']


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The table.

REAL_ARCHIVES = dict(download.ARCHIVES)
REAL_FILE_SETS = dict(download.FILE_SETS)


def test_table_states_the_published_archives():
    cifar10, cifar100 = REAL_ARCHIVES['cifar10'], REAL_ARCHIVES['cifar100']
    assert (cifar10.size, cifar10.md5) == (170052171, 'c32a1d4ab5d03f1284b67883e8d87530')
    assert (cifar100.size, cifar100.md5) == (168513733, '03b5dce01913d631647c71ecec9e9cb8')
    assert [size / (1 + 3072) for size in cifar10.files.values()] == [10000] * 6
    assert {name: size / (2 + 3072) for name, size in cifar100.files.items()} == {'train.bin': 50000, 'test.bin': 10000}


# fetch: the network.


def test_fetch_downloads_and_leaves_no_part(server, data_dir):
    download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert (data_dir / NAME).read_bytes() == GOOD
    assert names(data_dir) == [NAME]
    assert server.ranges == [None]


def test_fetch_without_known_size_or_md5(server, data_dir):
    download.fetch(server.url, data_dir / NAME)
    assert (data_dir / NAME).read_bytes() == GOOD


def test_fetch_resumes_a_part_file(server, data_dir):
    (data_dir / f'{NAME}.part').write_bytes(GOOD[:1000])
    download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert server.ranges == ['bytes=1000-']
    assert (data_dir / NAME).read_bytes() == GOOD


def test_fetch_starts_over_where_the_server_ignores_range(server, data_dir):
    server.knows_range = False
    (data_dir / f'{NAME}.part').write_bytes(b'x' * 1000)
    download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert server.ranges == ['bytes=1000-']
    assert (data_dir / NAME).read_bytes() == GOOD


def test_fetch_needs_no_request_for_a_complete_part(refused_url, data_dir):
    (data_dir / f'{NAME}.part').write_bytes(GOOD)
    download.fetch(refused_url, data_dir / NAME, len(GOOD), MD5)
    assert names(data_dir) == [NAME]


def test_fetch_takes_416_at_the_right_size_as_complete(server, data_dir):
    (data_dir / f'{NAME}.part').write_bytes(GOOD)
    download.fetch(server.url, data_dir / NAME, None, MD5)
    assert server.ranges == [f'bytes={len(GOOD)}-']
    assert names(data_dir) == [NAME]


def test_fetch_drops_a_part_that_is_too_long(server, data_dir):
    (data_dir / f'{NAME}.part').write_bytes(GOOD + b'x')
    download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert server.ranges == [f'bytes={len(GOOD) + 1}-', None]
    assert (data_dir / NAME).read_bytes() == GOOD


def test_fetch_resumes_a_broken_connection_by_itself(server, data_dir):
    server.cuts = [1000, 500]
    download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert server.ranges == [None, 'bytes=1000-', 'bytes=1500-']
    assert (data_dir / NAME).read_bytes() == GOOD


def test_fetch_gives_up_after_three_breaks_and_the_next_call_resumes(server, data_dir):
    server.cuts = [1000, 500, 500]
    with pytest.raises(UserError, match='2000 bytes are kept.*run the same command again'):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert names(data_dir) == [f'{NAME}.part']
    download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert server.ranges[3:] == ['bytes=2000-']
    assert (data_dir / NAME).read_bytes() == GOOD


def test_fetch_removes_a_part_with_the_wrong_md5(server, data_dir):
    (data_dir / f'{NAME}.part').write_bytes(b'x' * 1000)
    with pytest.raises(UserError, match=f'has MD5 .* instead of {MD5} and was removed: run the same command'):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert names(data_dir) == []


def test_fetch_refuses_a_file_of_another_size_before_touching_the_part(server, data_dir):
    (data_dir / f'{NAME}.part').write_bytes(GOOD[:1000])
    server.knows_range = False
    with pytest.raises(UserError, match=f'{len(GOOD)} bytes instead of {len(GOOD) + 1}'):
        download.fetch(server.url, data_dir / NAME, len(GOOD) + 1, MD5)
    assert (data_dir / f'{NAME}.part').read_bytes() == GOOD[:1000]


@pytest.mark.parametrize('status, reason', [(404, 'Not Found'), (503, 'Service Unavailable')])
def test_fetch_reports_an_http_error(server, data_dir, status, reason):
    server.status = status
    with pytest.raises(UserError, match=f'answers {status} {reason}.*--archive'):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert names(data_dir) == []


def test_fetch_times_out(server, data_dir, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 0.05)
    server.may_close.clear()
    server.cuts = [1000, 0, 0]
    with pytest.raises(UserError, match='timed out; 1000 bytes are kept'):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)


def test_fetch_without_a_network(refused_url, data_dir):
    with pytest.raises(UserError, match='refused.*check the network.*--archive'):
        download.fetch(refused_url, data_dir / NAME, len(GOOD), MD5)
    assert names(data_dir) == []


@pytest.mark.parametrize('url', ['ftp://127.0.0.1/x', '/tmp/x.tar.gz', 'http://127.0.0.1:port/x', 'http://'])
def test_fetch_refuses_a_bad_url(url, data_dir):
    with pytest.raises(UserError, match='--archive'):
        download.fetch(url, data_dir / NAME, len(GOOD), MD5)


def test_ctrl_c_keeps_the_part(server, data_dir, monkeypatch):
    def interrupted(response):
        yield response.read(1000)
        raise KeyboardInterrupt

    monkeypatch.setattr(download, '_chunks', interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert (data_dir / f'{NAME}.part').read_bytes() == GOOD[:1000]


# extract: hostile and damaged archives.

DEVICE = tarfile.TarInfo()
DEVICE.type = tarfile.CHRTYPE
OUTSIDE = {
    '../evil.bin': b'x',
    f'{FOLDER}/../../evil.bin': b'x',
    '/evil.bin': b'x',
    'C:/evil.bin': b'x',
    '..\\evil.bin': b'x',
    f'{FOLDER}/link': link(tarfile.SYMTYPE, '../../evil.bin'),
    f'{FOLDER}/hard': link(tarfile.LNKTYPE, '/etc/passwd'),
    f'{FOLDER}/device': DEVICE,
}


@pytest.mark.parametrize('member', OUTSIDE)
def test_unsafe_member_is_refused_by_name(member, archive, data_dir):
    archive.write_bytes(tar_gz({**official(), member: OUTSIDE[member]}))
    with pytest.raises(UserError) as error:
        download.extract(archive, data_dir, 'cifar10')
    assert f"'{member}'" in str(error.value) and 'refused' in str(error.value)
    assert names(data_dir) == [] and names(data_dir.parent) == ['data', 'mine.tar.gz']


TEST_BATCH = FILES['test_batch.bin']
DAMAGED = {
    'truncated inside a member': GOOD[: len(GOOD) // 2],
    'without its last byte': GOOD[:-1],
    'a flipped bit': GOOD[:5000] + bytes([GOOD[5000] ^ 1]) + GOOD[5001:],
    'empty': b'',
    'a web page': b'<html>Please log in</html>',
    'gzip of something else': gzip.compress(b'no tar' * 1000),
}


@pytest.mark.parametrize('what', DAMAGED)
def test_damaged_archive_leaves_nothing(what, archive, data_dir):
    archive.write_bytes(DAMAGED[what])
    with pytest.raises(UserError, match='truncated, damaged or no tar.gz.*get it again'):
        download.extract(archive, data_dir, 'cifar10')
    assert names(data_dir) == []


@pytest.mark.parametrize(
    'files, problem',
    [
        ({'data_batch_1.bin': FILES['data_batch_1.bin']}, 'test_batch.bin is missing'),
        ({**FILES, 'test_batch.bin': TEST_BATCH[:-1]}, 'test_batch.bin has 3072 bytes instead of 3073'),
        ({**FILES, 'test_batch.bin': TEST_BATCH * 2}, 'test_batch.bin has 6146 bytes instead of 3073'),
    ],
)
def test_missing_or_missized_member_is_named(files, problem, archive, data_dir):
    archive.write_bytes(tar_gz(official(files)))
    with pytest.raises(UserError, match=f'{FOLDER}/{problem}.*get it again'):
        download.extract(archive, data_dir, 'cifar10')
    assert names(data_dir) == []


def test_only_the_folder_is_extracted_and_dots_are_fine(archive, data_dir):
    archive.write_bytes(
        tar_gz(
            {
                '.': link(tarfile.DIRTYPE, ''),
                './README': b'x',
                f'./{FOLDER}': link(tarfile.DIRTYPE, ''),
                **{f'./{name}': data for name, data in official().items()},
                f'./{FOLDER}/batches.meta.txt': b'airplane\n',
            }
        )
    )
    assert download.extract(archive, data_dir, 'cifar10') == data_dir / FOLDER
    assert_extracted(data_dir)
    assert names(data_dir) == [FOLDER]


def test_extract_replaces_an_incomplete_folder_and_keeps_foreign_files(archive, data_dir):
    (data_dir / FOLDER).mkdir()
    (data_dir / FOLDER / 'test_batch.bin').write_bytes(b'half')
    (data_dir / FOLDER / 'notes.txt').write_bytes(b'mine')
    download.extract(archive, data_dir, 'cifar10')
    assert (data_dir / FOLDER / 'notes.txt').read_bytes() == b'mine'
    (data_dir / FOLDER / 'notes.txt').unlink()
    assert_extracted(data_dir)


def test_old_folder_comes_back_when_the_rename_fails(archive, data_dir, monkeypatch):
    (data_dir / FOLDER).mkdir()
    (data_dir / FOLDER / 'test_batch.bin').write_bytes(b'half')
    rename = os.rename

    def failing(source, target):
        if (Path(source) / 'data_batch_1.bin').exists():
            raise PermissionError(errno.EACCES, 'Permission denied', str(target))
        rename(source, target)

    monkeypatch.setattr(os, 'rename', failing)
    with pytest.raises(UserError, match='Permission denied'):
        download.extract(archive, data_dir, 'cifar10')
    assert names(data_dir) == [FOLDER]
    assert (data_dir / FOLDER / 'test_batch.bin').read_bytes() == b'half'


def test_ctrl_c_while_extracting_leaves_no_folder(archive, data_dir, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, '_put_in_place', interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.extract(archive, data_dir, 'cifar10')
    assert names(data_dir) == []


# The disk.


def test_full_disk_is_noticed_before_anything_is_written(server, archive, data_dir, monkeypatch):
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda folder: type('Usage', (), {'free': 10}))
    with pytest.raises(UserError, match=f"'{data_dir}' has 10 bytes free, {len(GOOD)} are needed: free some"):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    with pytest.raises(UserError, match=f'{len(GOOD) + 3 * RECORD} are needed'):
        download.download_and_extract('cifar10', data_dir, url=server.url)
    with pytest.raises(UserError, match=f'{3 * RECORD} are needed'):
        download.extract(archive, data_dir, 'cifar10')
    assert names(data_dir) == [] and server.ranges == []


@pytest.mark.parametrize(
    'code, message',
    [
        (errno.ENOSPC, f"the disk of '.*data' is full, {3 * RECORD} bytes are needed: free some space"),
        (errno.EACCES, 'Permission denied.*pass another --data_dir'),
    ],
)
def test_disk_that_fails_while_extracting(code, message, archive, data_dir, monkeypatch):
    def failing_open(path, mode):
        file = open(path, mode)
        if mode != 'rb':
            file.close()
            raise OSError(code, os.strerror(code))
        return file

    monkeypatch.setattr(download, 'open', failing_open, raising=False)
    with pytest.raises(UserError, match=message):
        download.download_and_extract('cifar10', data_dir, archive=archive)
    assert names(data_dir) == []


def test_disk_that_fills_while_downloading_keeps_the_part(server, data_dir, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (data_dir / f'{NAME}.part').write_bytes(GOOD[:1000])
    monkeypatch.setattr(download, 'open', full, raising=False)
    with pytest.raises(UserError, match=f"the disk of '{data_dir}' is full, {len(GOOD) - 1000} bytes"):
        download.fetch(server.url, data_dir / NAME, len(GOOD), MD5)
    assert names(data_dir) == [f'{NAME}.part']


def test_data_dir_that_cannot_be_made(archive, tmp_path):
    with pytest.raises(UserError, match="data_dir '.*mine.tar.gz' is a file: pass a folder"):
        download.download_and_extract('cifar10', archive, archive=archive)
    with pytest.raises(UserError, match='No such file or directory.*another --data_dir'):
        download.fetch('http://127.0.0.1/x', tmp_path / 'absent' / NAME)
    with pytest.raises(UserError, match='Not a directory.*another --data_dir'):
        download.download_and_extract('cifar10', archive / 'below', archive=archive)
    assert names(tmp_path) == ['mine.tar.gz']


# download_and_extract.


def test_download_and_extract_then_nothing_to_do(server, data_dir, capsys, monkeypatch):
    assert download.download_and_extract('cifar10', data_dir, url=server.url) == data_dir / FOLDER
    assert_extracted(data_dir)
    assert not datasets.is_missing('cifar10', data_dir) and not datasets.is_missing('cifar10', data_dir / FOLDER)
    capsys.readouterr()
    monkeypatch.setattr(download.urllib.request, 'urlopen', None)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')}
    for folder in (data_dir, data_dir / FOLDER):
        assert download.download_and_extract('cifar10', folder) == data_dir / FOLDER
        out = capsys.readouterr().out
        assert out == f'cifar10 is already complete in {data_dir / FOLDER}: nothing to do\n'
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')} == before


def test_official_address_is_the_default(data_dir):
    with pytest.raises(UserError, match=f'cannot download {download.ARCHIVES["cifar10"].url}'):
        download.download_and_extract('cifar10', data_dir)


def test_archive_that_is_there_is_verified_and_not_downloaded_again(data_dir):
    (data_dir / NAME).write_bytes(GOOD)
    download.download_and_extract('cifar10', data_dir)
    assert_extracted(data_dir)


@pytest.mark.parametrize('content', [GOOD[:-100], GOOD[:-1] + b'x'], ids=['truncated', 'changed'])
def test_wrong_archive_that_is_there_is_not_trusted(content, data_dir):
    (data_dir / NAME).write_bytes(content)
    with pytest.raises(UserError, match='remove it to download it again'):
        download.download_and_extract('cifar10', data_dir)
    assert names(data_dir) == [NAME]


@pytest.mark.parametrize('as_url', [False, True])
def test_local_archive(as_url, archive, data_dir):
    archive = archive.rename(archive.with_name('mine, with 100% blanks.tar.gz'))
    given = archive.as_uri() if as_url else str(archive)
    download.download_and_extract('cifar10', data_dir, archive=given, md5=MD5.upper())
    assert_extracted(data_dir)


def test_local_archive_needs_no_official_checksum(archive, data_dir):
    archive.write_bytes(tar_gz({**official(), f'{FOLDER}/batches.meta.txt': b'airplane\n'}) + bytes(512))
    download.download_and_extract('cifar10', data_dir, archive=archive)
    assert_extracted(data_dir)


def test_local_archive_errors(archive, data_dir, tmp_path):
    new = tmp_path / 'new'
    with pytest.raises(UserError, match=f'MD5 {MD5} instead of {"0" * 32}.*correct --md5'):
        download.download_and_extract('cifar10', new, archive=archive, md5='0' * 32)
    with pytest.raises(UserError, match='is missing.*leave --archive out'):
        download.download_and_extract('cifar10', new, archive=tmp_path / 'absent.tar.gz')
    with pytest.raises(UserError, match='is no file'):
        download.download_and_extract('cifar10', new, archive=data_dir)
    assert not new.exists()


def test_mirror_with_its_own_md5(server, data_dir, monkeypatch):
    monkeypatch.setitem(
        download.ARCHIVES,
        'cifar10',
        download.Archive(server.url, 1, '0' * 32, {name: len(data) for name, data in FILES.items()}),
    )
    with pytest.raises(UserError, match=f'{len(GOOD)} bytes instead of 1'):
        download.download_and_extract('cifar10', data_dir, url=server.url)
    download.download_and_extract('cifar10', data_dir, url=server.url, md5=MD5)
    assert_extracted(data_dir)


def test_data_dir_named_like_the_folder_becomes_the_folder(archive, tmp_path):
    folder = tmp_path / FOLDER
    assert download.download_and_extract('cifar10', folder, archive=archive) == folder
    assert not (folder / FOLDER).exists() and not datasets.is_missing('cifar10', folder)


def test_home_is_expanded(archive, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    download.download_and_extract('cifar10', '~/new', archive='~/mine.tar.gz')
    assert_extracted(tmp_path / 'new')
    assert not datasets.is_missing('cifar10', '~/new')


# fetch_missing: sets of files.


@pytest.fixture
def mnist_server(server, monkeypatch):
    monkeypatch.setitem(download.FILE_SETS, 'mnist', file_set(f'{server.url.rpartition("/")[0]}/mirror/'))
    return server


def test_table_states_the_published_files_of_mnist():
    sizes = {name: [size for size, _ in files.values()] for name, (_, files) in REAL_FILE_SETS.items()}
    assert sizes == {'mnist': [9912422, 28881, 1648877, 4542], 'fashion_mnist': [26421880, 29515, 4422102, 5148]}
    sums = [md5 for _, files in REAL_FILE_SETS.values() for _, md5 in files.values()]
    assert len(set(sums)) == 8 and all(len(md5) == 32 and int(md5, 16) for md5 in sums)
    assert (sums[0], sums[4]) == ('f68b3c2dcbeaaa9fbdd348bbdeb94873', '8d4fb7e6c68d591d4c3dfef9ec88bf0d')


def assert_files(folder):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == IDX


@pytest.mark.parametrize('below', ['', 'mnist'])
def test_a_missing_set_of_files_is_fetched_once(below, mnist_server, tmp_path, capsys):
    data_dir = tmp_path / 'new'
    download.fetch_missing('mnist', data_dir / below)
    assert_files(data_dir / 'mnist')
    assert names(data_dir) == ['mnist']
    assert capsys.readouterr().out.endswith(f'mnist is in {data_dir / "mnist"}\n')
    for again in (data_dir, data_dir / 'mnist'):
        download.fetch_missing('mnist', again)
    assert len(mnist_server.ranges) == 4 and capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'name', ['train-labels-idx1-ubyte.gz', 'mnist/t10k-images-idx3-ubyte', 'MNIST/raw/t10k-labels-idx1-ubyte.gz']
)
def test_files_that_are_there_are_used_as_they_are(name, mnist_server, data_dir):
    (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (data_dir / name).write_bytes(b'mine')
    download.fetch_missing('mnist', data_dir)
    assert mnist_server.ranges == [] and (data_dir / name).read_bytes() == b'mine'
    assert len([path for path in data_dir.rglob('*') if path.is_file()]) == 1


def test_an_interrupted_set_goes_on_where_it_stopped(mnist_server, data_dir):
    first, second = list(IDX)[:2]
    mnist_server.cuts = [len(IDX[first]), 100, 0, 0]  # three attempts at the second
    with pytest.raises(
        UserError,
        match=f"cannot download .*/{second} .*100 bytes are kept.*or put {first}, .* into '{data_dir}/mnist' yourself",
    ):
        download.fetch_missing('mnist', data_dir)
    assert names(data_dir) == ['mnist.part'] and datasets.is_missing('mnist', data_dir)
    mnist_server.cuts, mnist_server.ranges[:] = [], []
    (data_dir / 'mnist').mkdir()
    (data_dir / 'mnist' / 'notes.txt').write_text('kept')
    download.fetch_missing('mnist', data_dir)
    assert mnist_server.ranges == ['bytes=100-', None, None]
    (data_dir / 'mnist' / 'notes.txt').unlink()
    assert_files(data_dir / 'mnist')
    assert names(data_dir) == ['mnist']


def test_a_wrong_file_of_a_set_is_not_kept(mnist_server, data_dir, monkeypatch):
    row = file_set(download.FILE_SETS['mnist'][0])
    row[1]['train-labels-idx1-ubyte.gz'] = (len(IDX['train-labels-idx1-ubyte.gz']), '0' * 32)
    monkeypatch.setitem(download.FILE_SETS, 'mnist', row)
    with pytest.raises(UserError, match=f'has MD5 .* instead of {"0" * 32} and was removed: run .* or put train-im'):
        download.fetch_missing('mnist', data_dir)
    assert names(data_dir) == ['mnist.part'] and names(data_dir / 'mnist.part') == ['train-images-idx3-ubyte.gz']


def test_set_of_files_without_a_network_or_a_place(data_dir, archive, mnist_server, monkeypatch):
    with pytest.raises(UserError, match="data_dir '.*mine.tar.gz' is a file: pass a folder"):
        download.fetch_missing('mnist', archive)
    mnist_server.status = 404
    with pytest.raises(UserError, match='answers 404 Not Found: try again later, or put train-images-idx3-ubyte.gz, '):
        download.fetch_missing('mnist', data_dir)
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda folder: type('Usage', (), {'free': 10}))
    with pytest.raises(UserError, match='has 10 bytes free'):
        download.fetch_missing('mnist', data_dir)


def test_fetch_missing_leaves_what_needs_no_download(mnist_server, data_dir, archive):
    download.fetch_missing('synthetic', data_dir)
    download.download_and_extract('cifar10', data_dir, archive=archive)
    download.fetch_missing('cifar10', data_dir)
    assert mnist_server.ranges == []


# The program, in a process of its own: here the sizes are the official ones.


def run_script(cwd, *args):
    command = [sys.executable, SCRIPT, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_importing_defines_no_flag_and_needs_no_tensorflow(tmp_path):
    code = (
        'import sys; from absl import flags; before = list(flags.FLAGS)\n'
        'from official_resnet import cifar10_download_and_extract as program\n'
        'program.define_flags(); program.define_flags(); assert list(flags.FLAGS) == before\n'
        'assert not {"tensorflow", "numpy", "keras"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], cwd=Path(SCRIPT).parents[1], check=True)


@pytest.mark.parametrize('flag, code', [('--help', 0), ('-h', 0), ('--datset=cifar10', 1)])
def test_help_and_flag_errors_answer_within_a_second(flag, code, tmp_path):
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        result = run_script(tmp_path, flag)
        seconds.append(time.monotonic() - start)
    assert result.returncode == code
    assert '--data_dir' in result.stdout or 'use --dataset ' in result.stderr
    assert min(seconds) < 1


def test_script_errors_are_one_line_and_exit_code_1(archive, data_dir, refused_url, tmp_path):
    truncated, evil, foreign = (tmp_path / f'{name}.tar.gz' for name in ('truncated', 'evil', 'foreign'))
    truncated.write_bytes(GOOD[: len(GOOD) // 2])
    evil.write_bytes(tar_gz({'../evil.bin': b'x'}))
    foreign.write_bytes(GOOD)
    for args, message in [
        (['--archive=absent.tar.gz'], "'absent.tar.gz' is missing"),
        ([f'--archive={truncated}'], 'truncated, damaged or no tar.gz'),
        ([f'--archive={evil}'], "'../evil.bin'"),
        ([f'--archive={foreign}'], f'{FOLDER}/data_batch_1.bin has 6146 bytes instead of 30730000'),
        ([f'--archive={foreign}', '--md5=00'], f'has MD5 {MD5} instead of 00'),
        ([f'--archive={foreign}', '--dataset=cifar100'], 'cifar-100-binary/train.bin is missing'),
        ([f'--archive={foreign}', f'--url={refused_url}'], 'exclude each other'),
        ([f'--url={refused_url}'], 'check the network'),
        (['--url=file:///x.tar.gz'], 'is not an http or https address'),
        ([f'--data_dir={foreign}'], 'is a file'),
        (['--dataset=mnist'], 'cifar10|cifar100'),
        (['extra'], "unexpected argument 'extra'"),
    ]:
        result = run_script(tmp_path, '--data_dir', data_dir, *args)
        assert result.returncode == 1, args
        assert result.stderr.startswith('cifar10_download_and_extract: ') and message in result.stderr
        assert result.stderr.count('\n') == 1 and result.stderr.endswith('\n'), result.stderr
        assert names(data_dir) == []


def test_script_leaves_a_complete_data_set_alone(data_dir):
    row = REAL_ARCHIVES['cifar10']
    (data_dir / FOLDER).mkdir()
    for name, size in row.files.items():
        with open(data_dir / FOLDER / name, 'wb') as file:
            file.truncate(size)  # sparse: no disk used
    result = run_script(data_dir, '--data_dir=.')
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        f'cifar10 is already complete in {FOLDER}: nothing to do\n',
        '',
    )


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_script_keeps_the_part_when_stopped(number, code, server, data_dir):
    server.may_close.clear()
    server.cuts = [2000]
    part = data_dir / f'{NAME}.part'
    command = [sys.executable, SCRIPT, f'--data_dir={data_dir}', f'--url={server.url}', f'--md5={MD5}']
    # As at a terminal: tests that run in the background of a shell have Ctrl-C ignored, and so would the program.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 10
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == code
    assert 'Traceback' not in errors and errors.count('\n') <= 1
    assert names(data_dir) == [part.name]
