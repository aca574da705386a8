"""download_and_preprocess_imagenet: from tar files to shards by one command: stopped, repeated, by a network."""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fixtures import data_commands, ilsvrc

from official_resnet.building import downloads
from official_resnet.building.boxes import CSV
from official_resnet.inputs import download, tfrecords

SCRIPT = str(data_commands.FOLDER / 'download_and_preprocess_imagenet.py')
program = data_commands.load('download_and_preprocess_imagenet')
SHARDS = ['--train_shards=6', '--validation_shards=2', '--num_threads=1']
USER, KEY = 'someone', 'secret:word'


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in downloads.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(download, 'RETRY_SECONDS', 0)
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A layout that was built without a disturbance."""
    layout = ilsvrc.make(tmp_path_factory.mktemp('built'))
    assert run(layout.folder, layout) == 0
    return layout


def run(data_dir, layout, *arguments):
    return program.main([SCRIPT, str(data_dir), *layout.flags, *SHARDS, *arguments])


def command(data_dir, layout, *arguments):
    return [sys.executable, SCRIPT, str(data_dir), *layout.flags, *SHARDS, *arguments]


def link(layout, folder, names=None):
    """Make a DATA_DIR with the same files as a layout's, as another name of each."""
    folder.mkdir(exist_ok=True)
    for path in layout.folder.glob('*'):
        if path.name.startswith(('ILSVRC', 'imagenet_2012')) and (names is None or path.name in names):
            os.link(path, folder / path.name)
    return folder


def outputs(folder):
    """Return {name: bytes} of shards and manifests."""
    return {
        path.name: path.read_bytes()
        for path in pathlib.Path(folder).iterdir()
        if path.name.startswith(('train', 'validation'))
    }


def records(folder, name):
    paths = sorted(folder.glob(f'{name}-*'))
    return [tfrecords.decode_example(data) for path in paths for data in tfrecords.read(path)]


def copy(layout, folder):
    """Make a DATA_DIR as it is after a build: nothing is left to do."""
    return pathlib.Path(shutil.copytree(layout.folder, folder))


# --- what comes out -------------------------------------------------------------------------------------------


def test_records(built):
    train = records(built.folder, 'train')
    assert {row['image/filename'][0].decode(): row['image/encoded'][0] for row in train} == built.train
    assert [row['image/filename'] for row in train] != sorted(row['image/filename'] for row in train)
    csv = [line.split(',') for line in built.csv.decode().splitlines()]
    for row in train:
        name, synset = row['image/filename'][0].decode(), row['image/class/synset'][0].decode()
        assert name.startswith(synset) and row['image/class/label'] == [built.synsets.index(synset) + 1]
        boxes = [[float(value) for value in line[1:]] for line in csv if line[0] == name]
        found = zip(*(row[f'image/object/bbox/{side}'] for side in ('xmin', 'ymin', 'xmax', 'ymax')), strict=True)
        np.testing.assert_allclose(np.array(list(found)).reshape(-1, 4), np.array(boxes).reshape(-1, 4))
        assert row['image/object/bbox/label'] == row['image/class/label'] * len(boxes)
    validation = {row['image/filename'][0].decode(): row for row in records(built.folder, 'validation')}
    assert {name: row['image/encoded'][0] for name, row in validation.items()} == built.validation
    for number, synset in enumerate(built.validation_synsets, 1):
        row = validation[f'ILSVRC2012_val_{number:08d}.JPEG']
        assert row['image/class/synset'] == [synset.encode()] and row['image/object/bbox/xmin'] == []
    assert (built.folder / 'raw-data' / CSV).read_bytes() == built.csv


def test_nothing_is_unpacked_and_no_account_is_needed(built, capsys):
    assert sorted(path.name for path in (built.folder / 'raw-data').iterdir()) == ['.boxes.json', CSV]
    before = {path: path.stat().st_mtime_ns for path in built.folder.rglob('*') if path.is_file()}
    assert run(built.folder, built) == 0
    assert capsys.readouterr().out.count('nothing to do') == 2
    assert {path: path.stat().st_mtime_ns for path in built.folder.rglob('*') if path.is_file()} == before


def test_tars_may_stand_in_raw_data_and_their_order_does_not_matter(built, tmp_path, capsys):
    raw = link(built, tmp_path / 'data').rename(tmp_path / 'raw-data')
    assert run(tmp_path, built, '--verify') == 0
    assert outputs(tmp_path) == outputs(built.folder)
    assert capsys.readouterr().out.count('no faults') == 2 and raw.is_dir()


def test_labels_from_the_boxes_of_validation(built, tmp_path):  # and from the development kit: test_download
    layout = ilsvrc.make(tmp_path, labels='boxes')
    assert run(tmp_path, layout) == 0
    assert outputs(tmp_path) == outputs(built.folder)


def test_keep_extracted(built, tmp_path, capsys):
    data_dir = copy(built, tmp_path / 'data')
    files = {
        **{f'train/{name[:9]}/{name}': data for name, data in built.train.items()},
        **{
            f'validation/{built.validation_synsets[int(name[-13:-5]) - 1]}/{name}': data
            for name, data in built.validation.items()
        },
    }
    for _ in range(2):
        assert run(data_dir, built, '--keep_extracted') == 0
        raw = data_dir / 'raw-data'
        assert {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob('*.JPEG')} == files
        (raw / next(iter(files))).write_bytes(b'cut off')  # as of a run that was killed
    (raw / next(iter(files))).write_bytes(next(iter(files.values())))
    assert '24 of them written now' in capsys.readouterr().out
    folders = subprocess.run(
        [
            sys.executable,
            pathlib.Path(SCRIPT).with_name('build_imagenet_data.py'),
            f'--train_directory={raw}/train',
            '--validation_directory=',
            f'--output_directory={tmp_path}/again',
            '--train_shards=6',
            '--num_threads=1',
            built.flags[0],
            f'--bounding_box_file={raw}/{CSV}',
            f'--imagenet_metadata_file={built.folder}/imagenet_metadata.txt',
        ],
        check=True,
    )
    assert folders.returncode == 0
    for path in (tmp_path / 'again').glob('train-*'):
        assert path.read_bytes() == (data_dir / path.name).read_bytes()


def test_without_boxes(built, tmp_path, capsys):
    link(built, tmp_path, {ilsvrc.TRAIN, ilsvrc.VALIDATION, ilsvrc.LABELS})
    assert run(tmp_path, built) == 0
    assert f'{ilsvrc.BOXES} is not there: records have no boxes' in capsys.readouterr().out
    assert all(row['image/object/bbox/xmin'] == [] for row in records(tmp_path, 'train'))


def test_boxes_are_read_again_when_their_tar_changes(built, tmp_path, capsys):
    data_dir = copy(built, tmp_path / 'data')
    (data_dir / ilsvrc.BOXES).unlink()
    assert run(data_dir, built) == 0  # the CSV is there
    assert 'reading the boxes' not in (out := capsys.readouterr().out) and 'have no boxes' not in out
    (data_dir / ilsvrc.BOXES).write_bytes((built.folder / ilsvrc.BOXES).read_bytes())
    assert run(data_dir, built) == 0
    assert 'reading the boxes' in capsys.readouterr().out


# --- stopped and repeated -------------------------------------------------------------------------------------


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(built, tmp_path):
    link(built, tmp_path)
    kills = 0
    for seconds in (0.2, 0.3, 0.4, 0.5):
        process = subprocess.Popen(command(tmp_path, built, '--num_threads=2'), stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        kills += process.poll() is None
        process.kill()
        process.wait()
    done = subprocess.run(command(tmp_path, built), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kills and outputs(tmp_path) == outputs(built.folder)
    assert not [path for path in tmp_path.rglob('*') if path.name.endswith('.part') or path.name.startswith('part.')]


def test_killed_midway_finished_shards_stay(built, tmp_path):
    link(built, tmp_path)
    process = subprocess.Popen(command(tmp_path, built), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not list(tmp_path.glob('train-*-of-*')) and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    process.wait()
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob('validation-*-of-*')}
    assert first
    assert run(tmp_path, built) == 0
    assert outputs(tmp_path) == outputs(built.folder)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob('validation-*-of-*')} == first


@pytest.mark.parametrize('sent,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(built, tmp_path, sent, code):
    link(built, tmp_path)
    os.mkfifo(tmp_path / 'labels')  # it waits for someone to write, as for a slow disk
    process = subprocess.Popen(
        [*command(tmp_path, built), f'--labels_file={tmp_path}/labels'],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 20
    while not (tmp_path / 'raw-data').exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(sent)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == code and 'Traceback' not in error and len(error.splitlines()) <= 1


@pytest.mark.parametrize('lost', ['train.manifest.json', 'train-00002-of-00006', 'raw-data', '.train.index'])
def test_what_is_lost_is_made_again(built, tmp_path, lost):
    data_dir = copy(built, tmp_path / 'data')
    if lost == 'train.manifest.json':
        for path in data_dir.glob('train*'):
            path.unlink()
    else:
        subprocess.run(['rm', '-r', data_dir / lost], check=True)
    assert run(data_dir, built) == 0
    assert outputs(data_dir) == outputs(built.folder)


def test_complete_shards_need_no_tar_files(built, tmp_path, capsys):
    data_dir = copy(built, tmp_path / 'data')
    for path in data_dir.glob('ILSVRC2012*'):
        path.unlink()
    assert run(data_dir, built, '--verify') == 0
    out = capsys.readouterr().out
    assert out.count('is gone and not needed') == 2 and out.count('no faults') == 2
    (data_dir / 'train-00001-of-00006').unlink()
    assert run(data_dir, built) == 1
    assert 'lacks ILSVRC2012_img_train.tar; put it there' in capsys.readouterr().err


# --- what is wrong --------------------------------------------------------------------------------------------


def one_line(capsys, expected, name='download_and_preprocess_imagenet: '):
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.startswith(name) and expected in error, error


def test_usage(capsys):
    assert program.main([SCRIPT]) == 1
    assert 'DATA_DIR' in capsys.readouterr().err
    assert program.main([SCRIPT, '--help']) == 0
    assert '--keep_extracted' in capsys.readouterr().out
    for arguments, expected in (
        (['--train_shards=2'], 'DATA_DIR is missing'),
        (['a', 'b'], "unexpected argument 'b'"),
        (['a', '--train_shards=0'], 'train_shards'),
        (['a', '--shards=2'], 'shards'),
        (['a', '--check=all'], 'check'),
    ):
        assert program.main([SCRIPT, *arguments]) == 1
        one_line(capsys, expected)


@pytest.mark.parametrize(
    'case,expected',
    [
        ('file', 'is a file; pass a folder'),
        ('nothing', 'lacks ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar, ILS'),
        ('no train', 'lacks ILSVRC2012_img_train.tar; put it there, or set IMAGENET_USERNAME'),
        ('no labels', 'nothing in'),
        ('cut train', 'is cut off: unexpected end of data at member'),
        ('packed train', 'is packed by gzip'),
        ('garbage validation', 'damaged or no tar file'),
        ('cut boxes', 'cut off or damaged gzip file'),
        ('other labels', "val_00000008.JPEG' in"),
        ('missing class', 'lacks 996 synsets'),
        ('labels file', 'cannot be read'),
    ],
)
def test_mistakes(built, tmp_path, capsys, case, expected):
    def change(name, edit):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()  # another name of the built one's
        (tmp_path / name).write_bytes(edit(data))

    link(built, tmp_path)
    data_dir, flags = tmp_path, built.flags
    if case == 'file':
        data_dir = tmp_path / ilsvrc.TRAIN
    elif case == 'nothing':
        data_dir = tmp_path / 'new' / 'folder'
    elif case == 'no train':
        (tmp_path / ilsvrc.TRAIN).unlink()
    elif case == 'no labels':
        (tmp_path / ilsvrc.LABELS).unlink()
    elif case == 'cut train':
        change(ilsvrc.TRAIN, lambda data: data[: len(data) // 2])
    elif case == 'packed train':
        change(ilsvrc.TRAIN, lambda data: ilsvrc.tar_bytes({'a': data}, mode='w:gz'))
    elif case == 'garbage validation':
        change(ilsvrc.VALIDATION, lambda data: b'<html>' * 999)
    elif case == 'cut boxes':
        change(ilsvrc.BOXES, lambda data: data[:-20])
    elif case == 'other labels':
        change(ilsvrc.LABELS, lambda data: b'\n'.join(data.split()[:7]))
    elif case == 'missing class':
        flags = []
    elif case == 'labels file':
        flags = ['--labels_file=/nowhere']
    assert program.main([SCRIPT, str(data_dir), *flags, *SHARDS]) == 1
    one_line(capsys, expected)
    assert not list(tmp_path.glob('train-*')) and not list(tmp_path.glob('validation-*'))


def test_allow_partial(built, tmp_path, capsys):
    link(built, tmp_path)
    (tmp_path / 'half').write_text('\n'.join([*built.synsets, 'n99999999']))
    flags = [f'--labels_file={tmp_path}/half', '--allow_partial', *SHARDS]
    assert program.main([SCRIPT, str(tmp_path), *flags]) == 0
    assert 'lacks 1 synsets, as n99999999' in capsys.readouterr().out
    for name in (ilsvrc.TRAIN, ilsvrc.VALIDATION):
        for path in tmp_path.glob('[tv]*-of-*'):
            path.unlink()
        for path in tmp_path.glob('*.manifest.json'):
            path.unlink()
        (tmp_path / name).unlink()
        assert program.main([SCRIPT, str(tmp_path), *flags]) == (0 if name == ilsvrc.TRAIN else 1)
    assert 'lacks ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar' in capsys.readouterr().err


def test_no_room(built, tmp_path, capsys, monkeypatch):
    link(built, tmp_path)
    size = sum((tmp_path / name).stat().st_size for name in (ilsvrc.TRAIN, ilsvrc.VALIDATION))
    usage = type('', (), {'free': size - 1})
    monkeypatch.setattr(downloads.shutil, 'disk_usage', lambda folder: usage)
    assert run(tmp_path, built) == 1
    one_line(capsys, 'GB free')
    usage.free = 2 * size - 1
    assert run(tmp_path, built, '--keep_extracted') == 1
    one_line(capsys, 'extracted images')
    assert run(tmp_path, built) == 0
    usage.free = 0
    assert run(tmp_path, built) == 0  # nothing is left to write


def test_md5_is_compared_once_where_the_size_is_official(built, tmp_path, capsys, monkeypatch):
    data_dir = copy(built, tmp_path / 'data')
    data = (data_dir / ilsvrc.TRAIN).read_bytes()
    right = downloads.Tar(ilsvrc.TRAIN, len(data), hashlib.md5(data).hexdigest())
    monkeypatch.setitem(downloads.TARS, 'train', downloads.Tar(ilsvrc.TRAIN, len(data), '0' * 32))
    assert run(data_dir, built) == 1
    one_line(capsys, f'has MD5 {right.md5} instead of {"0" * 32}; remove it')
    assert run(data_dir, built, '--noverify_checksums') == 0
    monkeypatch.setitem(downloads.TARS, 'train', right)
    assert run(data_dir, built) == 0
    assert 'comparing the MD5' in capsys.readouterr().out
    assert run(data_dir, built) == 0
    assert 'comparing the MD5' not in capsys.readouterr().out


def test_official_files_are_stated():
    assert {name: (tar.size, tar.md5) for name, tar in downloads.TARS.items()} == {
        'train': (147897477120, '1d675b47d978889d74fa0da5fadfb00e'),
        'validation': (6744924160, '29b22e2961454d5413ddabcf34fc5622'),
    }
    assert downloads.URL == 'https://image-net.org/data/ILSVRC/2012/'


def test_tensorflow_is_not_imported(built):
    """A worker of a cluster has none, and a program that moves pictures should start at once."""
    code = (
        'import sys, runpy; sys.argv = [sys.argv[1], "--help"]\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'except SystemExit: pass\n'
        'print("tensorflow" in sys.modules, "keras" in sys.modules)'
    )
    for name in data_commands.NAMES:
        out = subprocess.run(
            [sys.executable, '-c', code, pathlib.Path(SCRIPT).with_name(f'{name}.py')],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.splitlines()[-1] == 'False False', name


# --- downloads ------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files of a folder, in ranges, to who knows USER and KEY."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get('Authorization'), self.headers.get('Range')))
        if server.moved_to:
            self.send_response(302)
            self.send_header('Location', server.moved_to + self.path)
            self.end_headers()
            return
        expected = 'Basic ' + base64.b64encode(f'{USER}:{KEY}'.encode()).decode()
        path = server.folder / self.path.lstrip('/')
        if server.is_locked and self.headers.get('Authorization') != expected:
            self.send_error(401)
        elif not path.is_file():
            self.send_error(404)
        else:
            data = path.read_bytes()
            start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
            self.send_response(206 if start else 200)
            self.send_header('Content-Length', str(len(data) - start))
            if start:
                self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
            self.end_headers()
            self.wfile.write(data[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def start_server(built):
    servers = []

    def start(**options):
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        server.folder, server.requests, server.is_locked, server.moved_to = built.folder, [], True, None
        vars(server).update(options)
        server.url = f'http://127.0.0.1:{server.server_port}'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def sign_in(monkeypatch, key=KEY):
    for name, value in zip(downloads.CREDENTIALS, (USER, key), strict=True):
        monkeypatch.setenv(name, value)


def test_download(built, tmp_path, start_server, monkeypatch):
    sign_in(monkeypatch)
    layout = ilsvrc.make(tmp_path / 'site', labels='devkit')
    server = start_server(folder=layout.folder)
    data_dir = tmp_path / 'data'
    assert run(data_dir, built, f'--url={server.url}/') == 0
    assert outputs(data_dir) == outputs(built.folder)
    assert [path for path, _, _ in server.requests] == [
        f'/{name}' for name in (ilsvrc.VALIDATION, ilsvrc.TRAIN, ilsvrc.DEVKIT, ilsvrc.BOXES)
    ]
    assert run(data_dir, built, f'--url={server.url}/') == 0
    assert len(server.requests) == 4  # what is there is not fetched again


def test_download_continues(built, tmp_path, start_server, monkeypatch):
    sign_in(monkeypatch)
    server = start_server()
    link(built, tmp_path, {ilsvrc.VALIDATION, ilsvrc.LABELS, ilsvrc.BOXES})
    (tmp_path / f'{ilsvrc.TRAIN}.part').write_bytes((built.folder / ilsvrc.TRAIN).read_bytes()[:5000])
    assert run(tmp_path, built, f'--url={server.url}') == 0
    assert [(path, range) for path, _, range in server.requests] == [(f'/{ilsvrc.TRAIN}', 'bytes=5000-')]
    assert outputs(tmp_path) == outputs(built.folder)


def test_wrong_password(built, tmp_path, start_server, monkeypatch, capsys):
    sign_in(monkeypatch, 'mistyped')
    assert run(tmp_path, built, f'--url={start_server().url}') == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and '401' in error and 'correct IMAGENET_USERNAME and IMAGENET_ACCESS_KEY' in error
    assert KEY not in error and USER not in error and 'mistyped' not in error


def test_a_redirect_does_not_get_the_password(built, tmp_path, start_server, monkeypatch):
    sign_in(monkeypatch)
    link(built, tmp_path, {ilsvrc.VALIDATION, ilsvrc.LABELS, ilsvrc.BOXES})
    other = start_server(is_locked=False)
    assert run(tmp_path, built, f'--url={start_server(moved_to=other.url).url}') == 0
    assert [authorization for _, authorization, _ in other.requests] == [None]


def test_a_mirror_needs_no_account(built, tmp_path, start_server):
    server = start_server(is_locked=False)
    link(built, tmp_path, {ilsvrc.VALIDATION, ilsvrc.LABELS})
    assert run(tmp_path, built, f'--url={server.url}') == 0
    assert [authorization for _, authorization, _ in server.requests] == [None, None]
    assert outputs(tmp_path) == outputs(built.folder)


def test_a_site_without_boxes(built, tmp_path, start_server, capsys):
    site = link(built, tmp_path / 'site', {ilsvrc.TRAIN})
    link(built, tmp_path / 'data', {ilsvrc.VALIDATION, ilsvrc.LABELS})
    assert run(tmp_path / 'data', built, f'--url={start_server(folder=site, is_locked=False).url}') == 0
    assert '404' in (out := capsys.readouterr().out) and 'going on without boxes' in out


def test_no_server(built, tmp_path, capsys):
    assert run(tmp_path, built, '--url=http://127.0.0.1:9') == 1
    one_line(capsys, 'cannot download http://127.0.0.1:9/ILSVRC2012_img_val.tar')


def test_a_login_page_is_no_tar(built, tmp_path, start_server, capsys):
    site = link(built, tmp_path / 'site', {ilsvrc.VALIDATION, ilsvrc.LABELS})
    (site / ilsvrc.TRAIN).write_text('<html>please sign in</html>')
    link(built, tmp_path / 'data', {ilsvrc.VALIDATION, ilsvrc.LABELS})
    assert run(tmp_path / 'data', built, f'--url={start_server(folder=site, is_locked=False).url}') == 1
    assert 'no tar file' in capsys.readouterr().err


def test_the_account_is_asked_for_on_a_terminal(built, tmp_path, start_server, monkeypatch):
    server = start_server()
    link(built, tmp_path, {ilsvrc.VALIDATION, ilsvrc.LABELS, ilsvrc.BOXES})
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, command(tmp_path, built, f'--url={server.url}'))
    shown = b''
    try:
        for prompt, answer in ((b'user name: ', USER), (b'access key: ', KEY)):
            while prompt not in shown:
                shown += os.read(terminal, 1000)
            os.write(terminal, answer.encode() + b'\n')
        while True:
            shown += os.read(terminal, 1000)
    except OSError:
        pass  # it ended
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    assert KEY.encode() not in shown and json.loads((tmp_path / 'train.manifest.json').read_text())['records'] == 24
