"""Downloads are resumed, checked and atomic: archives of a few kB and a server on the loopback."""

import errno
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import pytest
from fixtures import loopback
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from fixtures.archives import FILES, FOLDER, GOOD, IDX, MD5, MEMBERS, NAME, SIZE, TOTAL, Handler, reset, special, tar_gz
from fixtures.batches import message_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from official_resnet import bounds, cifar10_download_and_extract, folders
from official_resnet.errors import UserError
from official_resnet.inputs import archives, datasets, download

REAL_ARCHIVES, REAL_FILE_SETS = dict(download.ARCHIVES), dict(download.FILE_SETS)


@pytest.fixture(scope='module')
def server():
    """A server that records requests in .ranges; .cuts says after how many bytes each response breaks off."""
    with loopback.serve(Handler, may_close=threading.Event()) as server:
        yield server
        server.may_close.set()


@pytest.fixture(autouse=True)
def tiny_archives(monkeypatch, server):
    """Make the data sets some kB, their addresses unreachable, and the waiting short."""
    reset(server)
    row = download.Archive(loopback.refused_url(NAME), SIZE, MD5, {name: len(data) for name, data in FILES.items()})
    for dataset in download.ARCHIVES:
        monkeypatch.setitem(download.ARCHIVES, dataset, row)
    rows = {name: (len(data), hashlib.md5(data).hexdigest()) for name, data in IDX.items()}
    monkeypatch.setitem(download.FILE_SETS, 'mnist', (f'{server.url}/mirror/', rows))
    monkeypatch.setattr(download, 'RETRY_SECONDS', 0)
    monkeypatch.setenv('no_proxy', '127.0.0.1')


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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_extracted(data_dir):
    found = {f'{FOLDER}/{path.name}': path.read_bytes() for path in (data_dir / FOLDER).iterdir()}
    assert found == MEMBERS
    assert not [path for path in data_dir.iterdir() if path.name.startswith('.') or path.suffix == '.part']


def test_the_tables_state_the_published_files():
    cifar10, cifar100 = (row.files for row in REAL_ARCHIVES.values())
    assert [size / (1 + 3072) for size in cifar10.values()] == [10000] * 6
    assert {name: size / (2 + 3072) for name, size in cifar100.items()} == {'train.bin': 50000, 'test.bin': 10000}
    rows = [(row.size, row.md5) for row in REAL_ARCHIVES.values()]
    rows += [row for _, files in REAL_FILE_SETS.values() for row in files.values()]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    assert len(rows) == 10 and digest.startswith('b337e5260e53'), rows


# --- fetch: the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'part, is_size_known, cuts, requests',
    [
        (GOOD[:1000], True, [], ['bytes=1000-']),
        (GOOD, True, [], []),
        (GOOD, False, [], [f'bytes={SIZE}-']),  # answered by 416 with the size
        (GOOD + b'x', True, [], [f'bytes={SIZE + 1}-', None]),
        (b'', True, [1000, 500], [None, 'bytes=1000-', 'bytes=1500-']),
    ],
)
def test_fetch_asks_for_what_is_missing(server, data_dir, part, is_size_known, cuts, requests):
    reset(server, cuts=cuts)
    (data_dir / f'{NAME}.part').write_bytes(part)
    download.fetch(server.url, data_dir / NAME, SIZE if is_size_known else None, MD5)
    assert server.ranges == requests and names(data_dir) == [NAME] and (data_dir / NAME).read_bytes() == GOOD


PLACES = st.integers(0, SIZE) | st.sampled_from([0, 1, SIZE - 1, SIZE])


@quick
@given(
    offset=PLACES,
    is_right=st.booleans(),
    surplus=st.sampled_from([0, 0, 1, 5000]),
    knows_range=st.booleans(),
    cuts=st.lists(PLACES, max_size=5),
    knows_size=st.booleans(),
    status=st.sampled_from([None, None, 404, 503]),
)
@example(SIZE, True, 0, True, [], False, None)
@example(SIZE, True, 1, True, [], True, None)
def test_a_download_ends_whole_however_often_it_is_cut(
    server, offset, is_right, surplus, knows_range, cuts, knows_size, status
):
    """From any .part, right or wrong: what stands under the final name is whole, and failures keep or drop the part.

    As many calls as the server cuts responses, and two, are enough: one may end with a wrong part that is removed.
    """
    reset(server, cuts=list(cuts), knows_range=knows_range, status=status)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'archive')
        part = pathlib.Path(folder, 'archive.part')
        begun = (GOOD[:offset] if is_right else bytes(offset)) + b'x' * surplus
        part.write_bytes(begun)
        for _ in range(len(cuts) + 3):
            try:
                download.fetch(server.url, path, SIZE if knows_size else None, MD5)
                break
            except UserError as error:
                assert '\n' not in str(error) and '--archive' in str(error) and not path.exists()
                if status:  # which is not asked where the part is whole
                    assert f'{status}' in str(error) or 'removed' in str(error)
                    server.status = status = None
        assert path.read_bytes() == GOOD and not part.exists()


@quick
@example(size=0, md5='0' * 32, knows_size=True)
@given(size=st.integers(0, 2 * SIZE), md5=st.binary(min_size=16, max_size=16).map(bytes.hex), knows_size=st.booleans())
def test_a_file_of_another_size_or_sum_gets_no_name(server, size, md5, knows_size):
    reset(server)
    size = size if size != SIZE and knows_size else None
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UserError, match='instead of') as caught:
        download.fetch(server.url, pathlib.Path(folder, 'archive'), size, md5)
    assert '\n' not in str(caught.value) and '--archive' in str(caught.value)


@pytest.mark.parametrize(
    'part, size, server_is, message, kept',
    [
        (0, SIZE, {'cuts': [1000, 500, 500]}, '2000 bytes are kept.*run the same command again', 2000),
        (1000, SIZE + 1, {'knows_range': False}, f'{SIZE} bytes instead of {SIZE + 1}', 1000),
        (0, SIZE, {'status': 404}, '404 Not Found.*--archive', 0),
        (0, SIZE, {'cuts': [1000, 0, 0], 'is_slow': True}, 'timed out; 1000 bytes are kept', 1000),
    ],
)
def test_fetch_says_what_failed_and_keeps_what_came(
    server, data_dir, monkeypatch, part, size, server_is, message, kept
):
    reset(server, **server_is)
    if 'is_slow' in server_is:
        monkeypatch.setitem(bounds.BOUNDS, 'silence_seconds', bounds.BOUNDS['silence_seconds']._replace(value=0.05))
        server.may_close.clear()
    (data_dir / f'{NAME}.part').write_bytes(GOOD[:part])
    with pytest.raises(UserError, match=message):
        download.fetch(server.url, data_dir / NAME, size, MD5)
    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == {f'{NAME}.part': GOOD[:kept]}


@pytest.mark.parametrize('url', ['ftp://127.0.0.1/x', '/tmp/x.tar.gz', 'http://127.0.0.1:port/x', 'http://', None])
def test_fetch_without_a_server(url, data_dir):
    with pytest.raises(UserError, match='--archive' if url else 'refused.*check the connection.*--archive'):
        download.fetch(url or loopback.refused_url(), data_dir / NAME, SIZE, MD5)
    assert names(data_dir) == []


@pytest.mark.parametrize('step', [512, 1 << 24])
def test_what_a_power_failure_took_from_a_part_is_fetched_again(step, server, data_dir, monkeypatch):
    """A tail that is zero is not continued, also without an MD5 that would tell."""
    monkeypatch.setattr(download, 'SYNC_BYTES', step)
    for size in (1, 31, 512, 1067, 5000, SIZE - 1, SIZE):
        most = size - max(size // step - 1, 0) * step  # bytes that may not have been flushed
        for lost in {1, min(100, most), most // 2, most}:
            reset(server)
            (data_dir / f'{NAME}.part').write_bytes(GOOD[: size - lost] + bytes(lost))
            download.fetch(server.url, data_dir / NAME, SIZE)
            assert (data_dir / NAME).read_bytes() == GOOD, (size, lost)


# --- extract: hostile and damaged archives -------------------------------------------------------------------

OUTSIDE = {
    f'{FOLDER}/../../evil.bin': b'x',
    '/evil.bin': b'x',
    'C:/evil.bin': b'x',
    f'{FOLDER}/link': special(tarfile.SYMTYPE, '../../evil.bin'),
    f'{FOLDER}/device': special(tarfile.CHRTYPE),
}
TEST_BATCH = f'{FOLDER}/test_batch.bin'
REFUSED = {  # archive, what the message says
    **{name: (tar_gz(MEMBERS | {name: data}), ('refused', f"'{name}'", 'trust')) for name, data in OUTSIDE.items()},
    'without its last byte': (GOOD[:-1], ('truncated, damaged or not a tar.gz', f'{SIZE - 1} bytes', 'get it again')),
    'a web page': (b'<html>Please log in</html>', ('truncated, damaged or not a tar.gz', '26 bytes', 'get it again')),
    'a member missing': (
        tar_gz({name: data for name, data in MEMBERS.items() if name != TEST_BATCH}),
        (f'{TEST_BATCH} is missing', 'get it again'),
    ),
    'a member doubled': (
        tar_gz(MEMBERS | {TEST_BATCH: bytes(6146)}),
        (f'{TEST_BATCH} has 6146 bytes instead of 3073',),
    ),
}


@pytest.mark.parametrize('what', REFUSED)
def test_a_bad_archive_is_refused_and_leaves_nothing(what, archive, data_dir):
    data, words = REFUSED[what]
    archive.write_bytes(data)
    with pytest.raises(UserError) as caught:
        download.extract(archive, data_dir, 'cifar10')
    assert [word for word in (f"'{archive}'", *words) if word not in str(caught.value)] == [], caught.value
    assert names(data_dir) == [] and names(data_dir.parent) == ['data', 'mine.tar.gz']


@settings(quick, max_examples=100)
@given(edits=EDITS)
def test_a_changed_archive_is_unpacked_whole_or_not_at_all(edits):
    with files(edited(GOOD, edits)) as [path]:
        folder = path.parent / 'data'
        folder.mkdir()
        try:
            download.extract(path, folder, 'cifar10')
        except UserError as error:
            assert refused(error, path) and list(folder.iterdir()) == []
        else:
            assert {name: (folder / FOLDER / name).read_bytes() for name in FILES} == FILES


def test_only_the_folder_is_extracted_and_dots_are_fine(archive, data_dir):
    folders = {'.': special(tarfile.DIRTYPE), f'./{FOLDER}': special(tarfile.DIRTYPE)}
    archive.write_bytes(tar_gz(folders | {'./README': b'x'} | {f'./{name}': data for name, data in MEMBERS.items()}))
    assert download.extract(archive, data_dir, 'cifar10') == data_dir / FOLDER
    assert_extracted(data_dir)
    assert names(data_dir) == [FOLDER]


@pytest.mark.parametrize('done', range(4))
def test_an_incomplete_folder_is_completed_file_by_file(done, archive, data_dir, monkeypatch):
    """And whatever stops it, each file is the old or the new one, those of the user stay, and the next run goes on."""
    incomplete, replace, old = data_dir / FOLDER, os.replace, {'test_batch.bin': b'half', 'notes.txt': b'mine'}
    incomplete.mkdir()
    for name, data in old.items():
        (incomplete / name).write_bytes(data)
    calls = []

    def failing(source, target):
        calls.append(target)
        if len(calls) > done:
            raise PermissionError(errno.EACCES, 'Permission denied', str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', failing)
        if done < len(MEMBERS):
            with pytest.raises(UserError, match='Permission denied'):
                download.extract(archive, data_dir, 'cifar10')
            assert names(data_dir) == [FOLDER]
            found = {path.name: path.read_bytes() for path in incomplete.iterdir()}
            new = {name.rpartition('/')[2]: data for name, data in MEMBERS.items()}
            assert found.keys() >= old.keys() and all(
                data in (old.get(name), new.get(name)) for name, data in found.items()
            )
    download.extract(archive, data_dir, 'cifar10')
    assert (incomplete / 'notes.txt').read_bytes() == b'mine'
    (incomplete / 'notes.txt').unlink()
    assert_extracted(data_dir)


def test_what_a_killed_extraction_left_is_deleted_at_the_next(archive, data_dir):
    """But no folder of a process that lives, and none that is called differently."""
    kept = [f'.part.{FOLDER}.mine', f'.part.{FOLDER}.abcdefghi', f'part.{FOLDER}.abcdefgh', f'.part.{FOLDER}.linklink']
    with folders.temporary(data_dir, FOLDER) as living:
        for name in (f'.part.{FOLDER}.abcdefgh', *kept[:-1]):
            (data_dir / name).mkdir()
            (data_dir / name / 'file').write_bytes(b'x')
        (data_dir / kept[-1]).symlink_to(data_dir / kept[0])
        download.extract(archive, data_dir, 'cifar10')
        assert names(data_dir) == sorted([FOLDER, living.name, *kept])
    assert names(data_dir / kept[0]) == ['file']


# --- the disk ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_noticed_before_anything_is_written(server, archive, data_dir, monkeypatch):
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda folder: type('Usage', (), {'free': 10}))
    for needed, function, args in (
        (SIZE, download.fetch, (server.url, data_dir / NAME, SIZE, MD5)),
        (SIZE + TOTAL, download.download_and_extract, ('cifar10', data_dir, None, None, server.url)),
        (TOTAL, download.extract, (archive, data_dir, 'cifar10')),
        (len(IDX['train-images-idx3-ubyte.gz']), download.fetch_missing, ('mnist', data_dir)),
    ):
        with pytest.raises(UserError, match=f"'{data_dir}.*' has 10 bytes free, .*free some") as caught:
            function(*args)
        assert f' {needed} ' in str(caught.value)
    assert server.ranges == [] and not [path for path in data_dir.rglob('*') if path.is_file()]


def test_a_folder_that_cannot_be_written_is_not_called_full(server, data_dir, monkeypatch):
    monkeypatch.setattr(download.os, 'access', lambda folder, mode: False)
    for function, args in (
        (download.fetch, (server.url, data_dir / NAME, SIZE, MD5)),
        (download.download_and_extract, ('cifar10', data_dir, None, None, server.url)),
    ):
        assert f"'{data_dir}' cannot be written: get the permission" in message_of(function, *args)


def test_a_disk_that_fills_keeps_the_part_and_leaves_no_folder(server, archive, data_dir, monkeypatch):
    def full(path, mode, **options):
        if mode == 'rb':
            return open(path, mode, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (data_dir / f'{NAME}.part').write_bytes(GOOD[:1000])
    for module in (download, archives):
        monkeypatch.setattr(module, 'open', full, raising=False)
    for needed, function, *args in (
        (SIZE - 1000, download.fetch, server.url, data_dir / NAME, SIZE, MD5),
        (TOTAL, download.extract, archive, data_dir, 'cifar10'),
    ):
        with pytest.raises(UserError, match=f"'{data_dir}' is full, {needed} bytes are needed: free some"):
            function(*args)
        assert names(data_dir) == [f'{NAME}.part']


def test_a_data_dir_that_cannot_be_made(archive, tmp_path):
    for data_dir, message in ((archive, "mine.tar.gz' is a file: pass a folder"), (archive / 'below', '--data_dir')):
        for function, *args in ((download.download_and_extract, 'cifar10'), (download.fetch_missing, 'mnist')):
            with pytest.raises(UserError, match=message):
                function(*args, data_dir)
    assert names(tmp_path) == ['mine.tar.gz']


# --- download_and_extract ------------------------------------------------------------------------------------


def test_download_and_extract_then_nothing_to_do(server, data_dir, caplog, monkeypatch):
    assert download.download_and_extract('cifar10', data_dir, url=server.url) == data_dir / FOLDER
    assert_extracted(data_dir)
    monkeypatch.setattr(download.web, 'Answer', None)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')}
    for folder in (data_dir, data_dir / FOLDER):
        assert not datasets.is_missing('cifar10', folder)
        assert download.download_and_extract('cifar10', folder) == data_dir / FOLDER
        assert str(data_dir / FOLDER) in caplog.messages[-1]
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')} == before


def test_an_archive_that_is_there_is_verified_and_not_downloaded_again(data_dir):
    with pytest.raises(UserError, match=download.ARCHIVES['cifar10'].url):  # the default address
        download.download_and_extract('cifar10', data_dir)
    for wrong in (GOOD[:-100], GOOD[:-1] + b'x'):
        (data_dir / NAME).write_bytes(wrong)
        with pytest.raises(UserError, match=f"'{data_dir / NAME}' .*remove it.*--archive"):
            download.download_and_extract('cifar10', data_dir)
        assert names(data_dir) == [NAME]
    (data_dir / NAME).write_bytes(GOOD)
    download.download_and_extract('cifar10', data_dir)
    assert_extracted(data_dir)


def test_a_local_archive_is_given_by_path_or_address(archive, tmp_path, monkeypatch):
    """Its checksum need not be the official one, its name may have blanks, and '~' is the home folder."""
    archive.write_bytes(GOOD + bytes(512))
    archive = archive.rename(tmp_path / 'mine, with 100% blanks.tar.gz')
    monkeypatch.setenv('HOME', str(tmp_path))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest().upper()
    for i, (name, expected) in enumerate(((str(archive), None), (archive.as_uri(), md5), (f'~/{archive.name}', None))):
        download.download_and_extract('cifar10', f'~/{i}', archive=name, md5=expected)
        assert_extracted(tmp_path / f'{i}')
    assert not datasets.is_missing('cifar10', '~/0')
    folder = tmp_path / FOLDER  # a data_dir of this name becomes the folder
    assert download.download_and_extract('cifar10', folder, archive=archive) == folder
    assert not (folder / FOLDER).exists() and not datasets.is_missing('cifar10', folder)


def test_a_mirror_with_its_own_md5(server, data_dir, monkeypatch):
    row = download.Archive(server.url, 1, '0' * 32, download.ARCHIVES['cifar10'].files)
    monkeypatch.setitem(download.ARCHIVES, 'cifar10', row)
    with pytest.raises(UserError, match=f'{SIZE} bytes instead of 1'):
        download.download_and_extract('cifar10', data_dir, url=server.url)
    download.download_and_extract('cifar10', data_dir, url=server.url, md5=MD5)
    assert_extracted(data_dir)


# --- fetch_missing: sets of files ----------------------------------------------------------------------------


def assert_files(folder):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == IDX


@pytest.mark.parametrize('below', ['', 'mnist'])
def test_a_missing_set_of_files_is_fetched_once(below, server, tmp_path, caplog):
    data_dir = tmp_path / 'new'
    download.fetch_missing('mnist', data_dir / below)
    assert_files(data_dir / 'mnist')
    assert names(data_dir) == ['mnist'] and str(data_dir / 'mnist') in caplog.messages[-1]
    caplog.clear()
    for again in (data_dir, data_dir / 'mnist'):
        download.fetch_missing('mnist', again)
    assert len(server.ranges) == 4 and not caplog.messages


@pytest.mark.parametrize(
    'name', ['train-labels-idx1-ubyte.gz', 'mnist/t10k-images-idx3-ubyte', 'MNIST/raw/t10k-labels-idx1-ubyte.gz']
)
def test_files_that_are_there_are_used_as_they_are(name, server, data_dir):
    (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (data_dir / name).write_bytes(b'mine')
    download.fetch_missing('mnist', data_dir)
    download.fetch_missing('synthetic', data_dir)
    assert server.ranges == [] and (data_dir / name).read_bytes() == b'mine'
    assert len([path for path in data_dir.rglob('*') if path.is_file()]) == 1


def test_an_interrupted_set_goes_on_where_it_stopped(server, data_dir):
    first, second = list(IDX)[:2]
    reset(server, cuts=[len(IDX[first]), 100, 0, 0])  # three attempts at the second
    with pytest.raises(UserError, match=f"/{second} .*100 bytes are kept.*put {first}, .* into '{data_dir}/mnist'"):
        download.fetch_missing('mnist', data_dir)
    assert names(data_dir) == ['mnist.part'] and datasets.is_missing('mnist', data_dir)
    reset(server)
    (data_dir / 'mnist').mkdir()
    (data_dir / 'mnist' / 'notes.txt').write_text('kept')
    download.fetch_missing('mnist', data_dir)
    assert server.ranges == ['bytes=100-', None, None]
    (data_dir / 'mnist' / 'notes.txt').unlink()
    assert_files(data_dir / 'mnist')
    assert names(data_dir) == ['mnist']


def test_a_wrong_file_of_a_set_is_not_kept(server, data_dir):
    first, second = list(IDX)[:2]
    download.FILE_SETS['mnist'][1][second] = len(IDX[second]), '0' * 32
    with pytest.raises(UserError, match=f'instead of {"0" * 32} .*put {first}'):
        download.fetch_missing('mnist', data_dir)
    assert names(data_dir) == ['mnist.part'] and names(data_dir / 'mnist.part') == [first]


# --- the program ---------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_exit_code_1(archive, data_dir, capsys):
    for args, words in (
        (['--archive=absent.tar.gz'], ["'absent.tar.gz'", 'leave --archive out']),
        ([f'--archive={data_dir}'], [f"'{data_dir}' is not a file"]),
        ([f'--archive={archive}', '--md5=00'], [f'MD5 {MD5} instead of 00', 'correct --md5']),
        ([f'--archive={archive}', '--dataset=cifar100'], ['cifar-100-binary/data_batch_1.bin is missing']),
    ):
        assert cifar10_download_and_extract.main(['x.py', f'--data_dir={data_dir}', *args]) == 1
        error = capsys.readouterr().err
        assert error.startswith('x: ') and error.count('\n') == 1, error
        assert [word for word in words if word not in error] == [], error
        assert names(data_dir) == []


COMMAND = [sys.executable, cifar10_download_and_extract.__file__]


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_program_keeps_the_part_when_stopped(number, code, server, data_dir):
    reset(server, cuts=[2000])
    server.may_close.clear()
    part = data_dir / f'{NAME}.part'
    # As at a terminal: tests that run in the background of a shell have Ctrl-C ignored, and so would the program.
    with subprocess.Popen(
        [*COMMAND, f'--data_dir={data_dir}', f'--url={server.url}', f'--md5={MD5}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 10
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)  # Python loses a KeyboardInterrupt that comes while it imports, which it does for the bar
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == code
    assert 'Traceback' not in errors and errors.count('\n') == 1
    assert names(data_dir) == [part.name]
