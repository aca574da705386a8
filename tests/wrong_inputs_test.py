"""Everything that a user can get wrong, program by program: one line with the value and the remedy, exit code 1.

The table is in fixtures/wrong_inputs.py.
"""

import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from fixtures import data_commands, ilsvrc, imagenet_shards, loopback, programs, writers
from fixtures.program_table import EXPERIMENTS, PROGRAMS, TRAINING, canonical
from fixtures.wrong_inputs import ROWS
from PIL import Image

import official_resnet
import official_resnet.building
from benchmarks import build
from official_resnet import resnet_model, resnet_spec
from official_resnet.building import downloads
from official_resnet.command_line import flags
from official_resnet.command_line.flags import Number
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError
from official_resnet.inference import model_card
from official_resnet.training import devices

PACKAGE, TESTS = pathlib.Path(official_resnet.__file__).parent, pathlib.Path(__file__).parent
FREE_TEXT = {'benchmark_test_id', *(name for name, _, _ in flags.OBSOLETE)}  # stored as it is, or ignored
ELSEWHERE = {
    'scaling': 'benchmarks/scaling_test',
    'jpeg_cost': 'benchmarks/jpeg_cost_test',
    'ablation': 'benchmarks/ablation_test',
    'own_images': 'benchmarks/own_folders_test',
    'time_to_accuracy': 'benchmarks/time_to_accuracy_test',
    'measuring': 'a process of the benchmarks, without flags',
}
# A wrong path is told before TensorFlow is imported, but for what only TensorFlow or a large file's content tells.
PATHS = re.compile(r'eval_only|--\w*(data_dir|folder|model|path|input|list|labels|file|directory|tar|images|archive)=')
LATE = re.compile(r'--tfds|--num_train_images|shards_(cut|text)|--input={bytes}')


@pytest.fixture(scope='module')
def places(tmp_path_factory, cifar_dir, mnist_dir):
    """The files and folders that rows name: right ones and wrong ones."""
    folder = tmp_path_factory.mktemp('places')
    found = {'cifar': cifar_dir, 'mnist': mnist_dir, 'absent': folder / 'absent'}

    def made(name):
        found[name] = folder / name
        return found[name]

    for name, content in (('text', b'one'), ('bytes', b'\xff\xfe\xff'), ('nul', b'a\0b\n'), ('twice', b'cat\ncat\n')):
        made(name).write_bytes(content)
    made('empty').mkdir()
    made('indices').mkdir()
    for name, shard in (('outside', '../x.bin'), ('missing', 'x.bin'), ('list', 7)):
        (found['indices'] / f'{name}.index.json').write_text(json.dumps({'weight_map': {'conv1.weight': shard}}))
    made('image')
    Image.new('RGB', (20, 20)).save(folder / 'image', 'PNG')
    for path in (made('one') / 'cat', made('hollow') / 'cat', found['hollow'] / 'dog'):
        path.mkdir(parents=True)
    shutil.copy(folder / 'image', found['one'] / 'cat' / '1.png')
    for path in (made('own') / 'cat' / '1.png', found['own'] / 'dog' / '1.png'):
        path.parent.mkdir(parents=True)
        shutil.copy(folder / 'image', path)
    for name in 'abc':
        shutil.copytree(found['own'] / 'cat', folder / 'abc' / name)
    made('abc')
    (made('damaged') / 'checkpoints').mkdir(parents=True)
    (found['damaged'] / 'checkpoints' / 'step-000000001.npz').write_bytes(b'PK')
    shutil.copytree(mnist_dir / 'mnist', made('mnist_lost'))
    (found['mnist_lost'] / 'train-labels-idx1-ubyte').unlink()
    _make_cifar100(made)
    _make_shards(made)
    _make_networks(made)
    _make_ilsvrc(made)
    for name, content in (('other_experiment', '{"dataset": "mine"}'), ('bad_experiment', '{"dataset"')):
        (made(name) / 'runs' / 'plain-20').mkdir(parents=True)
        (found[name] / 'settings.json').write_text(content)
    found['refused'] = loopback.refused_url()
    return found


def _make_cifar100(made):
    images = np.zeros([40, 32, 32, 3], np.uint8)
    for name, last_label in (('cifar100', 39), ('cifar100_cut', 39), ('cifar100_label', 100)):
        folder = made(name) / 'cifar-100-binary'
        folder.mkdir(parents=True)
        for file in ('train.bin', 'test.bin'):
            writers.write_cifar(folder / file, images, [[0, label] for label in (*range(39), last_label)])
        if name == 'cifar100_cut':
            (folder / 'train.bin').write_bytes((folder / 'train.bin').read_bytes()[:-1])


def _make_shards(made):
    whole = made('shards')
    for split, number in (('train', 4), ('test', 2)):
        imagenet_shards.write_shards(whole, imagenet_shards.draw(20), split, number)
    broken = whole / 'train-00001-of-00004'
    for name, change in (
        ('shards_lost', lambda path: path.unlink()),
        ('shards_cut', lambda path: path.write_bytes(broken.read_bytes()[:-9])),
        ('shards_text', lambda path: path.write_bytes(b'no TFRecord file at all')),
        ('shards_list', lambda path: (path.parent / 'train.manifest.json').write_text('[1]')),
    ):
        shutil.copytree(whole, made(name))
        change(made(name) / broken.name)
    made('strangers').mkdir()
    for prefix in ('train', 'validation'):
        (made('strangers') / f'{prefix}-00000-of-00002').write_bytes(b'')


def _make_networks(made):
    folder = made('net')
    folder.mkdir()
    spec = resnet_spec.ResNetSpec((1, 1), filters=4)
    resnet_model.resnet(spec, 3, (16, 16, 3)).save(folder / 'model.keras')
    model_card.write_card(folder / 'model.card.json', spec, 'unit_range', (16, 16, 3), (16, 16, 3), ('a', 'b', 'c'))
    for name in ('no_card', 'bad_card', 'odd_card', 'cut_net'):
        shutil.copytree(folder, made(name))
    (made('no_card') / 'model.card.json').unlink()
    (made('bad_card') / 'model.card.json').write_text('{')
    (made('odd_card') / 'model.card.json').write_text('{"num_classes": "three"}')
    (made('cut_net') / 'model.keras').write_bytes((folder / 'model.keras').read_bytes()[:-500])


def _make_ilsvrc(made):
    ilsvrc.unpack(ilsvrc.make(made('ilsvrc')), made('raw'))


@pytest.fixture
def network(monkeypatch):
    """Refuse every connection but to this machine; return the list of the other hosts that were tried."""
    tried = []

    def guarded(real, host_of):
        def connect(*args, **options):
            host = host_of(*args)
            if host is not None and not re.match(r'localhost$|::1$|127\.', str(host)):
                tried.append(host)
                raise socket.gaierror('no network in this test')
            return real(*args, **options)

        return connect

    def host_of(self, address):
        return address[0] if isinstance(address, tuple) else None

    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), host_of))
    monkeypatch.setattr(socket, 'getaddrinfo', guarded(socket.getaddrinfo, lambda host, *args: host))
    return tried


def test_the_guard_of_the_network_works(network):
    with pytest.raises(OSError, match='no network'):
        socket.create_connection(('192.0.2.1', 80), timeout=1)  # of RFC 5737: nobody's
    with socket.socket() as one, pytest.raises(OSError, match='no network'):
        one.connect(('192.0.2.1', 80))
    assert network == ['192.0.2.1'] * 2


@pytest.fixture
def call(monkeypatch, capfd, network, places, tmp_path):
    """Run a program in this process, with its right arguments and more; return (code, stdout, stderr)."""

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)
    monkeypatch.setattr(os, '_exit', end)  # as a worker of several ends
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))  # which asks for no account
    beam = types.SimpleNamespace(to_local=lambda path, folder: path)  # wrong inputs get no further
    monkeypatch.setattr(official_resnet.building, 'beam', beam, raising=False)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    for name in ('TF_CONFIG', *downloads.CREDENTIALS):
        monkeypatch.delenv(name, raising=False)

    def run_here(program, args=''):
        line = f'{PROGRAMS[program].base} {args}'.format_map({**places, 'new': tmp_path})
        capfd.readouterr()
        try:
            code = PROGRAMS[program].main([f'{program}.py', *line.split()])
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    yield run_here
    sys.stdin.close()
    assert network == []


@pytest.mark.parametrize('row', ROWS, ids=[f'{row.program} {row.args}' for row in ROWS])
def test_a_mistake_is_one_line_and_exit_code_1(row, places, call, tmp_path):
    code, out, err = call(row.program, row.args)
    pattern = row.pattern
    for name, path in {**places, 'new': tmp_path}.items():
        pattern = pattern.replace(f'{{{name}}}', re.escape(str(path)))
    assert code == 1 and err.count('\n') == 1 and err.endswith('\n'), (code, out, err)
    assert err.startswith(f'{row.program}: ') and re.search(pattern, err), (pattern, err)
    assert 'Traceback' not in out and '\x1b' not in err


def test_a_wrong_path_is_told_before_tensorflow_is_imported(places, tmp_path):
    rows = [row for row in ROWS if PATHS.search(text := f'{row.program} {row.args}') and not LATE.search(text)]
    assert {row.program for row in rows} | {'bounding_boxes'} == PROGRAMS.keys()  # which has no flags
    lines = [f'{PROGRAMS[row.program].base} {row.args}'.format_map({**places, 'new': tmp_path}) for row in rows]
    calls = [[row.program, line.split()] for row, line in zip(rows, lines, strict=True)]
    command = [sys.executable, '-m', 'fixtures.early_answers', json.dumps(calls)]
    environment = {name: value for name, value in os.environ.items() if name != 'TF_ENABLE_ONEDNN_OPTS'}
    answers = programs.run(command, cwd=TESTS.parent, env=environment | {'PYTHONPATH': str(TESTS)})
    assert answers.code == 0, answers.err
    answers = zip(rows, map(json.loads, answers.out.splitlines()), strict=True)
    wrong = [(row, *answer) for row, answer in answers if answer[:2] != [1, []] or 'network  ' in answer[2]]
    assert wrong == [], '\n'.join(f'{line[:4]}' for line in wrong)


@pytest.mark.parametrize('program', PROGRAMS)
def test_every_flag_has_a_wrong_value_in_the_table_or_cannot_be_wrong(program):
    values = PROGRAMS[program].define_flags()
    typed = re.findall(r'(?<!\S)-+(\w+)', ' '.join(row.args for row in ROWS if row.program == program))
    used = {values[name].name for name in typed if name in values}
    assert canonical(values).keys() - used - FREE_TEXT == set()
    assert program not in TRAINING or not used & FREE_TEXT - {*flags.OBSOLETE_SWITCHES}


def test_every_program_is_in_the_table():
    benchmarks = pathlib.Path(build.__file__).parent
    folders = (PACKAGE.glob('*_main.py'), PACKAGE.glob('experiments/*_main.py'), data_commands.FOLDER.glob('*.py'))
    files = [*itertools.chain(*folders), *benchmarks.glob('*.py')]
    found = {path.stem for path in files if "if __name__ == '__main__':" in path.read_text(encoding='utf-8')}
    assert {row.program for row in ROWS} == PROGRAMS.keys()
    assert found - ELSEWHERE.keys() | {'cifar10_download_and_extract', 'read_ckpt'} == PROGRAMS.keys()


@pytest.mark.parametrize('program', [*TRAINING, *EXPERIMENTS, 'predict_main'])
def test_every_number_is_finite_and_has_bounds(program):
    """Where TensorFlow counts in 32 or 64 bits, a larger number would end in its traceback."""
    for flag in canonical(PROGRAMS[program].define_flags()).values():
        if isinstance(flag.parser, absl_flags.IntegerParser) and program != 'predict_main':
            assert flag.parser.lower_bound is not None and flag.parser.upper_bound is not None, flag.name
        if isinstance(flag.parser, absl_flags.FloatParser):
            assert isinstance(flag.parser, Number) and flag.parser.lower_bound is not None, flag.name


# --- what any program may meet -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'error,pattern',
    [
        (UserError('Löwe, 獅子\r\nb \x1b[2J\a\x7f\u202e\udcff\t'), r'Löwe, 獅子 b \?\[2J\?{5}'),
        (FileNotFoundError(2, 'No such file', 'a\nb'), 'No such file.*same command again'),
        (MemoryError(), '--batch_size'),
        (tf.errors.ResourceExhaustedError(None, None, 'OOM at [9]\nmore'), r'OOM at \[9\].*--batch_size'),
    ],
)
def test_what_ends_a_program_is_one_line(error, pattern, capsys):
    def body(values):
        raise error

    assert run_program(['x.py'], '', absl_flags.FlagValues(), body) == 1
    out, err = capsys.readouterr()
    assert out == '' and re.fullmatch(f'x: .*{pattern}.*\n', err) and 'more' not in err.replace('no more', '')


def test_a_path_that_is_no_text_can_be_printed(capfdbinary):
    """Linux has such paths; Python reads their bytes as lone surrogates, which no encoding writes."""
    assert run_program(['x.py'], '', absl_flags.FlagValues(), lambda values: print('/tmp/\udcff')) == 0
    assert capfdbinary.readouterr() == (b'/tmp/\\udcff\n', b'')


RESULT = '{"failed": null, "final": {"train_error": 1, "train_error_inference": 1, "test_error": 1}, "parameters": 9, '
RESULT += '"seconds": 1, "curves": {}}'  # without curves


@pytest.mark.parametrize(
    'content', ['', '{', '[]', '{"nets": NaN', b'\xff'.decode('latin-1'), '{}', '{"failed": null}', RESULT]
)
def test_a_damaged_result_of_an_experiment(content, call, tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # so that the program itself makes settings.json
        patch.setattr('official_resnet.experiments.runs.train_nets', lambda *args: {})
        with pytest.raises(KeyError):
            call('degradation_main')
    path = tmp_path / 'out' / 'runs' / 'plain-8' / 'result.json'
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding='latin-1')
    code, _, err = call('degradation_main')
    assert code == 1 and err.count('\n') == 1 and f"{path}'" in err and 'delete' in err, err
