"""Published weights by name: from a server of this machine through the checks and the conversion to a prediction."""

import collections
import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import urllib.parse

import numpy as np
import pytest
from fixtures import loopback, programs, torch_files
from PIL import Image

import official_resnet as resnet
from checkpoints_tools import FAMILIES
from official_resnet.errors import UserError
from official_resnet.inference import predict
from official_resnet.weights import pretrained
from official_resnet.weights.published import ALIASES, PUBLISHED

NAME = 'akamaster/resnet20'  # its file has 1 MB


class _Mirror(http.server.BaseHTTPRequestHandler):
    """Serve the files of server.files, {place: bytes}, and note in server.asked what is asked for."""

    def do_GET(self):
        self.server.asked.append(self.path.lstrip('/'))
        content = self.server.files.get(self.path.lstrip('/'))
        begin = int(self.headers.get('Range', 'bytes=0-')[6:-1])
        self.send_response(404 if content is None else 206 if begin else 200)
        if begin:
            self.send_header('Content-Range', f'bytes {begin}-{len(content or b"") - 1}/{len(content or b"")}')
        body = (content or b'')[begin:]
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A server of files that is the mirror, and an empty cache that nobody named."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    with loopback.serve(_Mirror, files={}, asked=[]) as server:
        monkeypatch.setenv(pretrained.MIRROR, server.url)
        yield server


def place_of(name):
    parts = urllib.parse.urlsplit(PUBLISHED[name].url)
    return parts.netloc + parts.path


def offer(mirror, monkeypatch, name, content, checksum=None):
    """Serve a file as the published one of a name, whose row gets the file's own checksum."""
    checksum = checksum or 'sha256:' + hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], checksum=checksum))
    if isinstance(mirror, pathlib.Path):
        path = mirror / place_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        mirror.files[place_of(name)] = content


def akamaster_file(num_layers=20):
    """Return a checkpoint as akamaster saves it, with random weights, and the weights."""
    shapes = torch_files.net_shapes([(num_layers - 2) // 6] * 3, filters=16, classes=10, is_cifar=True, option='A')
    weights, file = torch_files.random_weights(shapes), io.BytesIO()
    named = {f'module.{name}': array for name, array in weights.items()}
    torch_files.write_zip(file, named, lambda tensors: {'state_dict': tensors, 'best_prec1': 91.7})
    return file.getvalue(), weights


@pytest.fixture(scope='module')
def published_file():
    return akamaster_file()


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('image') / 'cat.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return path


def test_from_a_name_to_a_prediction(mirror, monkeypatch, published_file, image, tmp_path, capsys):
    content, weights = published_file
    offer(mirror, monkeypatch, NAME, content)
    code, out, err = programs.call(f'predict_main --model resnet20 --json {image}')
    assert code == 0 and len(out.splitlines()) == 1, err  # what is fetched is told on standard error
    assert f'resnet20 is {NAME}' in err and hashlib.sha256(content).hexdigest() in err
    folder = tmp_path / 'cache' / 'official-resnet' / NAME
    assert {path.name for path in folder.iterdir()} == {'resnet20.keras', 'resnet20.card.json', '.lock'}
    card = json.loads((folder / 'resnet20.card.json').read_text())
    assert card['published'] == PUBLISHED[NAME].facts() | {'sha256': hashlib.sha256(content).hexdigest()}
    model, card = resnet.load('resnet20')  # now from the cache
    assert mirror.asked == [place_of(NAME)]
    kernel = model.get_layer('group2_block1_conv2').kernel.numpy()
    np.testing.assert_array_equal(kernel, weights['layer2.0.conv2.weight'].transpose(2, 3, 1, 0))
    [[guess]] = predict.predict(model, card, [image], top=1)
    assert json.loads(out)['classes'][0]['name'] == guess.name in ('airplane', 'automobile', *card.names)


def test_a_training_starts_from_a_name(mirror, monkeypatch, published_file, tmp_path):
    offer(mirror, monkeypatch, NAME, published_file[0])
    common = f'--use_synthetic_data --cache_dir={tmp_path}/mine'
    out = programs.succeed(
        f'cifar10_main {common} --pretrained_model_checkpoint_path={NAME} --model_dir={tmp_path}/run '
        '--max_train_steps=1 --batch_size=8 --num_train_images=16 --recipe=official --transfer=head'
    )
    assert f'{tmp_path}/mine/{NAME}/resnet20.keras' in out
    said = programs.mistake(f'cifar10_main {common} --pretrained_model_checkpoint_path=resnet20 --eval_only')
    assert "'airplane'" in said and 'resnet20.keras' in said and len(mirror.asked) == 1  # it names no disc or ring


def test_nothing_is_fetched_for_a_path(mirror, tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'resnet20').mkdir()
    for text in ('resnet20', './resnet20', 'absent/model.keras', 'a.keras', '/absent', '~/absent'):
        assert pretrained.resolve(text) == text
    assert "'resnet20'" in programs.mistake(f'predict_main --model resnet20 {image}')
    assert mirror.asked == []
    with pytest.raises(UserError, match='resnet51.*resnet50.*lists'):
        pretrained.resolve('resnet51')


def test_what_is_wrong_with_the_file_is_one_line(mirror, monkeypatch, published_file, tmp_path, image):
    content = published_file[0]
    rows = [
        ('moved', None, None, '404'),
        ('another file', content, 'sha256:' + '0' * 8, 'SHA256 .* instead of 00000000'),
        ('damaged', content[: len(content) // 2], None, 'cannot be converted'),
        ('another network', akamaster_file(32)[0], None, r'group_blocks=\(5, 5, 5\).*\(3, 3, 3\)'),
    ]
    for what, served, checksum, message in rows:
        mirror.files.clear()
        if served:
            offer(mirror, monkeypatch, NAME, served, checksum)
        with pytest.raises(UserError, match=message) as error:
            pretrained.fetch(PUBLISHED[NAME])
        assert '\n' not in str(error.value), what
        assert not list(tmp_path.rglob('*.keras'))
        (left,) = [path for path in tmp_path.rglob('*') if path.is_file() and path.suffix == '.th'] or [None]
        if left:  # the file is what the table says, so it is kept; another one has to be served next time
            left.unlink()
    monkeypatch.setenv(pretrained.MIRROR, loopback.refused_url(''))
    with pytest.raises(UserError, match=f'cannot download.*FOLDER/{place_of(NAME)} and set {pretrained.MIRROR}'):
        pretrained.fetch(PUBLISHED[NAME])


def test_a_folder_is_a_mirror_without_a_network(monkeypatch, published_file, tmp_path):
    monkeypatch.setenv(pretrained.MIRROR, str(tmp_path / 'mirror'))
    with pytest.raises(UserError, match='is missing.*unset'):
        pretrained.fetch(PUBLISHED[NAME], tmp_path / 'cache')
    offer(tmp_path / 'mirror', monkeypatch, NAME, published_file[0])
    path = pretrained.fetch(PUBLISHED[NAME], tmp_path / 'cache')
    assert path.is_file() and (tmp_path / 'mirror' / place_of(NAME)).is_file()  # the mirror keeps its file
    offer(tmp_path / 'mirror', monkeypatch, 'akamaster/resnet32', b'another')
    monkeypatch.setitem(
        PUBLISHED, 'akamaster/resnet32', dataclasses.replace(PUBLISHED[NAME], name='akamaster/resnet32')
    )


def test_what_no_program_can_fetch_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv(pretrained.MIRROR, raising=False)
    with pytest.raises(UserError, match='ResNet-50-model.caffemodel from https://github.com/KaimingHe.*FOLDER'):
        pretrained.fetch(PUBLISHED['caffe/ResNet-50'], tmp_path)


def test_two_processes_convert_once(mirror, monkeypatch, published_file, tmp_path):
    """The rows are those of the package, so the file that is served has the published name but no published sum."""
    offer(mirror, monkeypatch, NAME, published_file[0])
    code = (
        'import dataclasses, logging, sys\n'
        'from official_resnet.weights import pretrained\n'
        'logging.basicConfig(level=logging.INFO)\n'
        f'row = dataclasses.replace(pretrained.PUBLISHED[{NAME!r}], checksum="")\n'
        'print(pretrained.fetch(row))\n'
    )
    start = [sys.executable, '-c', code]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    ends = programs.finish([subprocess.Popen(start, **pipes) for _ in range(2)])
    assert [end.code for end in ends] == [0, 0], ends
    assert len({end.out for end in ends}) == 1 and mirror.asked == [place_of(NAME)]
    assert sum('waiting for another process' in end.err for end in ends) == 1


def test_the_checkpoint_of_an_archive(tmp_path):
    def archive(*names):
        path = tmp_path / 'a.tar.gz'
        with tarfile.open(path, 'w:gz') as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(name)
                tar.addfile(info, io.BytesIO(name.encode()))
        return path

    v2 = [f'x/{name}' for name in ('model.ckpt-5.index', 'model.ckpt-5.data-00000-of-00001', 'checkpoint')]
    outside = ['../../a.ckpt', '/etc/b']  # no path of an archive is followed
    for i, (names, found) in enumerate(((['v1_50.ckpt'], 'v1_50.ckpt'), (v2, 'model.ckpt-5'), (outside, 'a.ckpt'))):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert pretrained._unpack(archive(*names), folder) == folder / found
        assert {path.name for path in folder.iterdir()} == {pathlib.PurePosixPath(name).name for name in names}
        assert all(path.parent == folder for path in tmp_path.rglob('*.ckpt'))
        for path in folder.iterdir():
            path.unlink()
    for names in ((), ('a.ckpt', 'b.ckpt')):
        with pytest.raises(UserError, match='checkpoints'):
            pretrained._unpack(archive(*names), folder)
    content = archive('a.ckpt').read_bytes()
    (tmp_path / 'a.tar.gz').write_bytes(content[:-9])
    with pytest.raises(UserError, match=r'a\.tar\.gz'):
        pretrained._unpack(tmp_path / 'a.tar.gz', folder)


def test_every_row_is_whole():
    assert len(PUBLISHED) > 100
    places = collections.Counter(place_of(name) for name in PUBLISHED)
    for name, row in PUBLISHED.items():
        assert row.family in FAMILIES and row.network in resnet.VARIANTS and row.licence and row.citation, name
        kind, _, digits = row.checksum.rpartition(':')
        assert row.checksum == '' or (set(digits) <= set('0123456789abcdef') and len(digits) >= (8 if kind else 32)), (
            name
        )
        assert row.url.startswith(('http://', 'https://')) and (row.checksum or row.url.count('/') > 3), name
        assert (row.top1 == '') == (row.top1_source == ''), name
        convention = row.card_input()
        assert convention is None or convention.resize >= convention.size >= 160, name
        same = [other for other in PUBLISHED.values() if other.url == row.url]
        assert places[place_of(name)] == len(same) and len({other.network for other in same}) == 1, name
    assert all(name in PUBLISHED for name in ALIASES.values()) and not ALIASES.keys() & PUBLISHED.keys()


def test_the_listing(capsys, tmp_path):
    lines = pretrained.list_rows(['timm/resnet50.', 'a1_in1k'])
    assert lines[0].split() == ['name', 'top-1', 'MB', 'licence'] and len(lines) == 2
    assert lines[1].split()[:2] == ['timm/resnet50.a1_in1k', '81.24']
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-m', 'official_resnet.weights.pretrained']
    for arguments, message in (
        (['fetch'], 'pass names'),
        (['fetch', 'resnet20', 'resnet21'], "'resnet21'"),
        (['nosuch'], 'nosuch'),
    ):
        end = subprocess.run(
            [*command, *arguments, f'--cache_dir={tmp_path}/c'], capture_output=True, text=True, env=environment
        )
        assert end.returncode == 1 and end.stderr.count('\n') == 1 and message in end.stderr, end
    assert not (tmp_path / 'c').exists()
