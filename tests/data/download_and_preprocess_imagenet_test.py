"""download_and_preprocess_imagenet: from tar files to shards by one command: stopped, repeated, over a network."""

import base64
import contextlib
import hashlib
import http.server
import os
import pathlib
import pty
import shutil
import sys
import types

import numpy as np
import pytest
from fixtures import data_commands, ilsvrc, loopback, programs, slow_files
from fixtures.data_commands import examples, outputs

from official_resnet.building import boxes, downloads
from official_resnet.building.boxes import CSV
from official_resnet.errors import UserError
from official_resnet.inputs import download

NAME = 'download_and_preprocess_imagenet'
program = data_commands.load(NAME)
NUM_SHARDS = {'train': 6, 'validation': 2}
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
    return program.main([NAME, str(data_dir), *layout.flags, *SHARDS, *arguments])


def command(data_dir, layout, *arguments):
    return data_commands.command(NAME, data_dir, *layout.flags, *SHARDS, *arguments)


def link(layout, folder, names=None):
    """Make a DATA_DIR with links to the files of a layout."""
    folder.mkdir(exist_ok=True)
    for path in layout.folder.glob('*'):
        if path.name.startswith(('ILSVRC', 'imagenet_2012')) and (names is None or path.name in names):
            os.link(path, folder / path.name)
    return folder


@pytest.fixture
def data_dir(built, tmp_path):
    """A DATA_DIR as it is after a build: nothing is left to do."""
    return pathlib.Path(shutil.copytree(built.folder, tmp_path / 'data'))


def one_line(capsys, *expected):
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.startswith(f'{NAME}: ') and all(part in error for part in expected), error


# --- what comes out -------------------------------------------------------------------------------------------


def test_records(built):
    """Each has its image, label and boxes; building_shards_test has the rest."""
    assert (built.folder / 'raw-data' / CSV).read_bytes() == built.csv
    found = boxes.read_csv(built.folder / 'raw-data' / CSV)
    synsets = {name: name[:9] for name in built.train}
    synsets |= zip(built.validation, built.validation_synsets, strict=True)
    for split in ('train', 'validation'):
        rows = examples(built.folder, split)
        assert {name: row['image/encoded'][0] for name, row in rows.items()} == getattr(built, split)
        assert list(rows) != sorted(rows)
        for name, row in rows.items():
            label = built.synsets.index(synsets[name]) + 1
            assert row['image/class/synset'] == [synsets[name].encode()] and row['image/class/label'] == [label]
            sides = [row[f'image/object/bbox/{side}'] for side in ('xmin', 'ymin', 'xmax', 'ymax')]
            np.testing.assert_array_equal(
                np.transpose(sides), found.for_image(name) if split == 'train' else np.empty((0, 4))
            )
            assert row['image/object/bbox/label'] == [label] * len(sides[0])


def test_nothing_is_unpacked_and_no_account_is_needed(built, capsys):
    assert sorted(path.name for path in (built.folder / 'raw-data').iterdir()) == ['.boxes.json', CSV]
    before = {path: path.stat().st_mtime_ns for path in built.folder.rglob('*') if path.is_file()}
    assert run(built.folder, built) == 0
    assert capsys.readouterr().out.count('nothing to do') == 2
    assert {path: path.stat().st_mtime_ns for path in built.folder.rglob('*') if path.is_file()} == before


def test_keep_extracted_from_tars_in_raw_data(built, data_dir, tmp_path, capsys):
    """The images of the folders give the same shards by build_imagenet_data."""
    raw = data_dir / 'raw-data'
    ilsvrc.unpack(built, tmp_path / 'expected')
    for path in data_dir.glob('ILSVRC2012*'):
        path.rename(raw / path.name)
    for _ in range(2):
        assert run(data_dir, built, '--keep_extracted') == 0
        for path in (paths := list((tmp_path / 'expected').rglob('*.JPEG'))):
            assert (raw / path.relative_to(tmp_path / 'expected')).read_bytes() == path.read_bytes()
        assert len(paths) == len(list(raw.rglob('*.JPEG'))) == 32
        next(raw.glob('train/*/*.JPEG')).write_bytes(b'cut off')  # as of a run that was killed
    assert run(data_dir, built, '--keep_extracted') == 0
    told = capsys.readouterr().out
    assert '24 of them' in told and told.count(' 1 of them') == 2
    flags = [f'--{name}_directory={raw / name}' for name in ('train', 'validation')]
    flags += [f'--output_directory={tmp_path}', f'--bounding_box_file={raw / CSV}', built.flags[0]]
    flags += [f'--imagenet_metadata_file={built.folder}/imagenet_metadata.txt']
    assert data_commands.load('build_imagenet_data').main(['x', *flags, *SHARDS]) == 0
    assert len(shards := list(tmp_path.glob('*-of-*'))) == 8
    assert all(path.read_bytes() == (data_dir / path.name).read_bytes() for path in shards)


def test_boxes_are_read_again_when_their_tar_changes(built, data_dir, capsys):
    (data_dir / ilsvrc.BOXES).unlink()
    assert run(data_dir, built) == 0  # the CSV is there
    assert 'reading the boxes' not in (out := capsys.readouterr().out) and 'no boxes' not in out
    shutil.copyfile(built.folder / ilsvrc.BOXES, data_dir / ilsvrc.BOXES)
    assert run(data_dir, built) == 0
    assert f'reading the boxes of {data_dir}' in capsys.readouterr().out


# --- stopped and repeated -------------------------------------------------------------------------------------


def test_killed_at_any_step_it_continues_to_the_same_bytes(built, tmp_path):
    link(built, tmp_path)
    for name in (f'raw-data/{CSV}', '.train.index', 'train-00000-of-00006'):
        process = programs.start(command(tmp_path, built))
        programs.wait_for((tmp_path / name).exists, process)
        process.kill()
        programs.finish([process])
    assert run(tmp_path, built) == 0
    assert outputs(tmp_path) == outputs(built.folder)
    assert not [path for path in tmp_path.rglob('*') if path.name.endswith('.part') or path.name.startswith('part.')]


def test_sigterm(built, tmp_path):
    link(built, tmp_path)
    (gate := tmp_path / 'gate').mkdir()
    environment = slow_files.hold(gate, tmp_path / 'labels')
    process = programs.start(command(tmp_path, built, f'--labels_file={tmp_path}/labels'), env=environment)
    programs.wait_for((tmp_path / 'raw-data').exists, process)
    process.terminate()
    [(code, _, error)] = programs.finish([process])
    assert (code, error.count('\n')) == (143, 1) and 'SIGTERM; run the same command again' in error


def test_what_is_lost_is_made_again(built, data_dir):
    for lost in ('train-00002-of-00006', 'raw-data/*', '.train.index/*', 'validation*'):
        for path in [*data_dir.glob(lost)]:
            path.unlink()
    assert run(data_dir, built) == 0
    assert outputs(data_dir) == outputs(built.folder)


def test_complete_shards_need_no_tar_files(built, data_dir, capsys):
    for path in data_dir.glob('ILSVRC2012*'):
        path.unlink()
    assert run(data_dir, built, '--verify') == 0
    out = capsys.readouterr().out
    assert out.count('not needed') == 2 and out.count('no faults') == 2
    (data_dir / 'train-00001-of-00006').unlink()
    assert run(data_dir, built) == 1
    one_line(capsys, ilsvrc.TRAIN, 'put it there')


# --- what is wrong; the table of wrong inputs has more ----------------------------------------------------------


@pytest.mark.parametrize(
    'name,edit,expected',
    [
        (ilsvrc.LABELS, lambda data: None, f'put {ilsvrc.LABELS}'),
        (ilsvrc.BOXES, lambda data: data[:-20], 'gzip'),
        (ilsvrc.LABELS, lambda data: b'\n'.join(data.split()[:7]), "val_00000008.JPEG'"),
    ],
)
def test_mistakes(built, tmp_path, capsys, name, edit, expected):
    """A DATA_DIR with a file that is missing or wrong gets no shards."""
    link(built, tmp_path)
    data = edit((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()  # a link to the built one's
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert run(tmp_path, built) == 1
    one_line(capsys, expected)
    assert not outputs(tmp_path)


def test_usage(built, tmp_path, capsys):
    assert run('a', built, 'b') == 1
    one_line(capsys, "'b'")
    assert program.main([NAME, str(link(built, tmp_path)), *SHARDS]) == 1  # without a list, of all 1000 classes
    one_line(capsys, '996 synsets', '--allow_partial')


def test_allow_partial_and_no_boxes(built, tmp_path, capsys):
    link(built, tmp_path, {ilsvrc.TRAIN, ilsvrc.VALIDATION, ilsvrc.LABELS})
    (tmp_path / 'more').write_text('\n'.join([*built.synsets, 'n99999999']))
    arguments = [f'--labels_file={tmp_path}/more', '--allow_partial']
    assert run(tmp_path, built, *arguments) == 0
    out = capsys.readouterr().out
    assert 'lacks 1 synsets' in out and f'{ilsvrc.BOXES} is missing' in out
    assert all(row['image/object/bbox/xmin'] == [] for row in examples(tmp_path).values())
    for name, tar, code in (('train', ilsvrc.TRAIN, 0), ('validation', ilsvrc.VALIDATION, 1)):
        for path in [*tmp_path.glob(f'{name}*'), tmp_path / tar]:
            path.unlink()
        assert run(tmp_path, built, *arguments) == code
    one_line(capsys, ilsvrc.VALIDATION, ilsvrc.TRAIN)


def test_no_room(built, tmp_path, capsys, monkeypatch):
    link(built, tmp_path)
    size = sum((tmp_path / name).stat().st_size for name in (ilsvrc.TRAIN, ilsvrc.VALIDATION))
    usage = types.SimpleNamespace(free=size - 1)
    monkeypatch.setattr(downloads.shutil, 'disk_usage', lambda folder: usage)
    assert run(tmp_path, built) == 1
    one_line(capsys, 'GB free')
    usage.free = 2 * size - 1
    assert run(tmp_path, built, '--keep_extracted') == 1
    one_line(capsys, 'extracted images')
    plan = downloads.Plan(tmp_path, NUM_SHARDS)
    usage.free = size
    plan.require_space(plan.find_tars())
    usage.free = 0
    assert run(built.folder, built) == 0  # nothing is left to write


def test_md5_is_compared_once_where_the_size_is_official(built, data_dir, capsys, monkeypatch):
    data = (data_dir / ilsvrc.TRAIN).read_bytes()
    right = downloads.Tar(ilsvrc.TRAIN, len(data), hashlib.md5(data).hexdigest())
    monkeypatch.setitem(downloads.TARS, 'train', downloads.Tar(ilsvrc.TRAIN, len(data), '0' * 32))
    assert run(data_dir, built) == 1
    one_line(capsys, right.md5, '0' * 32, '--noverify_checksums')
    assert run(data_dir, built, '--noverify_checksums') == 0
    monkeypatch.setitem(downloads.TARS, 'train', right)
    assert run(data_dir, built) == run(data_dir, built) == 0
    assert capsys.readouterr().out.count(f'MD5 of {data_dir / ilsvrc.TRAIN}') == 1


def test_official_files_are_stated():
    assert {name: (tar.size, tar.md5) for name, tar in downloads.TARS.items()} == {
        'train': (147897477120, '1d675b47d978889d74fa0da5fadfb00e'),
        'validation': (6744924160, '29b22e2961454d5413ddabcf34fc5622'),
    }
    assert downloads.URL == 'https://image-net.org/data/ILSVRC/2012/'


# --- downloads ------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder to those who know USER and KEY, or tells where they are now."""

    def do_GET(self):
        server, account = self.server, self.headers.get('Authorization')
        server.requests.append((self.path.lstrip('/'), account))
        if server.moved_to:
            self.send_response(302)
            self.send_header('Location', server.moved_to + self.path)
            self.end_headers()
        elif server.is_locked and account != f'Basic {base64.b64encode(f"{USER}:{KEY}".encode()).decode()}':
            self.send_error(401)
        else:
            super().do_GET()

    def translate_path(self, path):
        return str(self.server.folder / path.lstrip('/'))

    def log_message(self, *args):
        pass


@pytest.fixture
def start_server(built):
    with contextlib.ExitStack() as stack:

        def start(**changed):
            attributes = {'folder': built.folder, 'requests': [], 'is_locked': True, 'moved_to': None, **changed}
            return stack.enter_context(loopback.serve(Handler, **attributes))

        yield start


@pytest.fixture
def account(monkeypatch):
    for name, value in zip(downloads.CREDENTIALS, (USER, KEY), strict=True):
        monkeypatch.setenv(name, value)


def acquire(folder, server):
    """Download what is missing; return what is told of it."""
    lines = []
    downloads.acquire(downloads.Plan(folder, NUM_SHARDS, server.url), lines.append)
    return '\n'.join(lines)


def test_download(built, tmp_path, start_server, account):
    server = start_server(folder=ilsvrc.make(tmp_path / 'site', labels='devkit').folder)
    for _ in range(2):  # what is there is not fetched again
        assert run(tmp_path / 'data', built, f'--url={server.url}/') == 0
        assert outputs(tmp_path / 'data') == outputs(built.folder)
        names = [name for name, _ in server.requests]
        assert names == [ilsvrc.VALIDATION, ilsvrc.TRAIN, ilsvrc.DEVKIT, ilsvrc.BOXES]


def test_wrong_password(tmp_path, start_server, account, monkeypatch):
    monkeypatch.setenv(downloads.CREDENTIALS[1], 'mistyped')
    with pytest.raises(UserError, match=f'401.*{".*".join(downloads.CREDENTIALS)}') as error:
        acquire(tmp_path, start_server())
    assert not any(secret in str(error.value) for secret in (USER, KEY, 'mistyped', '\n'))


@pytest.mark.parametrize('is_moved', [False, True])
def test_a_mirror_needs_no_account_and_no_boxes(built, tmp_path, start_server, account, monkeypatch, is_moved):
    """Nor does it get an account where the official address redirects to it."""
    mirror = start_server(folder=link(built, tmp_path / 'site', {ilsvrc.TRAIN}), is_locked=False)
    link(built, tmp_path / 'data', {ilsvrc.VALIDATION, ilsvrc.LABELS})
    if not is_moved:
        monkeypatch.delenv(downloads.CREDENTIALS[1])
    told = acquire(tmp_path / 'data', start_server(moved_to=mirror.url) if is_moved else mirror)
    assert mirror.requests == [(ilsvrc.TRAIN, None), (ilsvrc.BOXES, None)]
    assert '404' in told and 'without boxes' in told
    assert (tmp_path / 'data' / ilsvrc.TRAIN).read_bytes() == (built.folder / ilsvrc.TRAIN).read_bytes()


def test_the_account_is_asked_for_on_a_terminal(built, data_dir, start_server, monkeypatch):
    server = start_server()
    for name in (ilsvrc.TRAIN, 'train-00000-of-00006'):
        (data_dir / name).unlink()
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, command(data_dir, built, f'--url={server.url}'))
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
    assert KEY.encode() not in shown and outputs(data_dir) == outputs(built.folder)
