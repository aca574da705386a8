"""The command: what it lists, converts and refuses, and how fast it answers."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from fixtures import torch_files

from checkpoints_tools import FAMILIES, read_ckpt

PROGRAM = pathlib.Path(read_ckpt.__file__)


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny net of torchvision's names, with a counter."""
    variables = torch_files.random_weights(torch_files.TINY['basic'])
    torch_files.write_zip(tmp_path / 'net.pth', variables | {'bn1.num_batches_tracked': np.array(3)})
    return tmp_path / 'net.pth'


def call(*arguments):
    return read_ckpt.main(['read_ckpt.py', *map(str, arguments)])


def test_list(checkpoint, capsys):
    assert call('--list', checkpoint) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'conv1.weight  (4, 3, 7, 7) float32  stem_conv/kernel'
    assert 'layer2.0.downsample.1.running_var  (8,) float32  group2_block1_shortcut_bn/moving_variance' in lines
    assert 'bn1.num_batches_tracked  () int64  ignored: count of training steps' in lines
    assert lines[-1] == f'{len(lines) - 1} variables: torch resnet_basic_1_2_1_1_filters4, 7 classes'


def test_list_of_what_does_not_fit(tmp_path, capsys):
    shapes = {name: shape for name, shape in torch_files.TINY['basic'].items() if name != 'bn1.bias'}
    torch_files.write_zip(tmp_path / 'net.pth', torch_files.random_weights(shapes | {'odd\x1b[31m\nname': (2,)}))
    assert call('--list', tmp_path / 'net.pth') == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'odd?[31m name  (2,) float32  unknown' in lines
    assert 'missing: bn1.bias; unexpected: odd?[31m name: ' in lines[-1]
    torch_files.write_zip(tmp_path / 'net.pth', torch_files.random_weights({'a': (2,), 'b': (3,)}))
    assert call('--list', tmp_path / 'net.pth', '--source=torch') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['a  (2,) float32  unknown', 'b  (3,) float32  unknown']
    assert 'no variable conv1.weight' in lines[2]


def test_by_path_from_anywhere(checkpoint, tmp_path):
    """One process each, as a user has it; PYTHONPATH is empty, and what lies about is not imported."""
    folder = tmp_path / 'elsewhere'
    folder.mkdir()
    (folder / 'source.py').write_text('raise SystemExit("wrong module")')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    for arguments in (
        ['--input', '../net.pth', '--output', 'net.keras'],
        ['--input', 'net.keras', '--output', 'net.safetensors', '--to', 'torch'],
    ):
        result = subprocess.run(
            [sys.executable, PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert (result.returncode, result.stderr) == (0, '')
        assert result.stdout.startswith(arguments[3]) and len(result.stdout.splitlines()) == 1
    assert {path.name for path in folder.iterdir()} == {'source.py', 'net.keras', 'net.card.json', 'net.safetensors'}
    assert json.loads((folder / 'net.card.json').read_text())['variant'] == 'resnet_basic_1_2_1_1_filters4'


@pytest.mark.parametrize(
    'arguments,code,words',
    [
        (['--help'], 0, ['--list resnet50.pth', '--num_classes', '--variant']),
        ([], 1, ['pass --list PATH, or --input PATH and --output PATH']),
        (['--input', 'x'], 1, ['pass --list PATH']),
        (['--list', 'x', '--input', 'x', '--output', 'y'], 1, ['pass --list']),
        (['--source', 'chainer', '--list', 'x'], 1, ['chainer', 'tensorpack']),
        (['--list', 'y', 'x'], 1, ["unexpected argument 'x'"]),
    ],
)
def test_help_and_flag_errors_answer_at_once(arguments, code, words, tmp_path):
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', PROGRAM, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    seconds = time.monotonic() - start
    errors = [line for line in result.stderr.splitlines() if not line.startswith('import time:')]
    assert result.returncode == code and ' tensorflow' not in result.stderr
    assert all(word in result.stdout + ' '.join(errors) for word in words)
    assert len(errors) == code and seconds < 5  # a tenth of a second, where nothing else runs


@pytest.mark.parametrize(
    'arguments,message',
    [
        (['--input', 'missing.pth', '--output', 'x.keras'], 'there is no missing.pth'),
        (['--input', 'net.pth', '--output', 'x.h5'], 'does not end in .keras'),
        (['--input', 'net.pth', '--output', 'x.keras', '--variant', 'resnet50'], "variant 'resnet50' does not fit"),
        (['--input', 'net.pth', '--output', 'x.keras', '--num_classes', '6'], 'num_classes=6: the checkpoint has 7'),
        (
            ['--input', 'net.pth', '--output', 'x.safetensors', '--to', 'torch'],
            'net.pth is damaged or not a .keras model',
        ),
        (['--input', 'net.pth', '--output', 'net.pth/x.keras'], 'cannot write'),
        (['--list', '.', '--source', 'torch'], 'cannot read .'),
    ],
)
def test_mistakes_are_one_line_and_exit_code_1(arguments, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('read_ckpt: ') and message in captured.err and len(captured.err.splitlines()) == 1
    assert captured.out == '' and [path.name for path in tmp_path.iterdir()] == ['net.pth']


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evil = torch_files.Call(torch_files.Global('os', 'system'), ('touch RAN',))
    torch_files.write_zip_of('net.pth.tar', torch_files.pickled({'state_dict': evil}), {})
    for arguments in (['--input', 'net.pth.tar', '--output', 'net.keras'], ['--list', 'net.pth.tar']):
        assert call(*arguments) == 1
        assert "asks for 'os.system'; nothing was run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['net.pth.tar']


@pytest.mark.parametrize('seed', range(6))
def test_damaged_files_write_nothing(seed, checkpoint, tmp_path, capsys):
    data, random = bytearray(checkpoint.read_bytes()), np.random.default_rng(seed)
    if seed % 2:
        del data[random.integers(len(data)) :]
    else:
        for _ in range(20):
            data[random.integers(len(data))] ^= 1 << random.integers(8)
    checkpoint.write_bytes(data)
    assert call('--input', checkpoint, '--output', tmp_path / 'net.keras') == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['net.pth']


def test_sources_are_the_families():
    assert {f'from_{family}.py' for family in FAMILIES} == {path.name for path in PROGRAM.parent.glob('from_*.py')}
