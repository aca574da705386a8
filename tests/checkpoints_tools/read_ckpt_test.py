"""The command: what it lists, converts and refuses; wrong_inputs_test.py has more of its mistakes."""

import os
import pathlib
import sys

import numpy as np
import pytest
from fixtures import programs, torch_files

from checkpoints_tools import FAMILIES, from_torch, read_ckpt

PROGRAM = pathlib.Path(read_ckpt.__file__)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """net.pth, a tiny net of torchvision's names with a counter, in the current folder."""
    monkeypatch.chdir(tmp_path)
    variables = torch_files.random_weights(torch_files.TINY['basic'])
    torch_files.write_zip('net.pth', variables | {'bn1.num_batches_tracked': np.array(3)})


def call(*arguments):
    return read_ckpt.main(['read_ckpt.py', *arguments])


def test_list(checkpoint, capsys):
    assert call('--list', 'net.pth') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'conv1.weight  (4, 3, 7, 7) float32  stem_conv/kernel'
    assert 'layer2.0.downsample.1.running_var  (8,) float32  group2_block1_shortcut_bn/moving_variance' in lines
    assert [line for line in lines if line.startswith('bn1.num_batches_tracked  () int64  ignored: ')]
    assert lines[-1] == f'{len(lines) - 1} variables: torch resnet_basic_1_2_1_1_filters4, 7 classes'


def test_list_of_what_does_not_fit(checkpoint, capsys):
    shapes = {name: shape for name, shape in torch_files.TINY['basic'].items() if name != 'bn1.bias'}
    torch_files.write_zip('net.pth', torch_files.random_weights(shapes | {'odd\x1b[31m\nname': (2,)}))
    assert call('--list', 'net.pth') == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'odd?[31m name  (2,) float32  unknown' in lines
    assert 'missing: bn1.bias; unexpected: odd?[31m name: ' in lines[-1]
    torch_files.write_zip('net.pth', torch_files.random_weights({'a': (2,), 'b': (3,)}))
    assert call('--list', 'net.pth', '--source=torch') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['a  (2,) float32  unknown', 'b  (3,) float32  unknown']
    assert 'no variable conv1.weight' in lines[2]


def test_by_path_from_anywhere(checkpoint, tmp_path, capsys):
    """A process, as a user has it; PYTHONPATH is empty, and what lies about is not imported."""
    folder = tmp_path / 'elsewhere'
    folder.mkdir()
    (folder / 'source.py').write_text('raise SystemExit("wrong module")')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    command = [sys.executable, PROGRAM, '--input', '../net.pth', '--output', 'net.keras']
    code, out, err = programs.run(command, cwd=folder, env=environment)
    assert (code, err) == (0, '') and out.startswith('reading ../net.pth') and out.count('\n') == 2
    assert out.splitlines()[1].startswith('net.keras: torch resnet_basic')
    output = folder / 'net.safetensors'
    assert call('--input', str(folder / 'net.keras'), '--output', str(output), '--to', 'torch') == 0
    assert capsys.readouterr().out.endswith(f'\n{output}: resnet_basic_1_2_1_1_filters4, 7 classes\n')
    assert {path.name for path in folder.iterdir()} == {'source.py', 'net.keras', 'net.card.json', 'net.safetensors'}


@pytest.mark.parametrize(
    'arguments,code,words',
    [
        (['--help'], 0, ['--list resnet50.pth', '--num_classes', '--variant']),
        (['--source', 'chainer', '--list', 'x'], 1, ['chainer', 'tensorpack']),
    ],
)
def test_help_and_flag_errors_need_no_tensorflow(arguments, code, words, tmp_path):
    end = programs.run([sys.executable, '-X', 'importtime', PROGRAM, *arguments], cwd=tmp_path)
    errors = [line for line in end.err.splitlines() if not line.startswith('import time:')]
    assert end.code == len(errors) == code and ' tensorflow' not in end.err
    assert all(word in end.out + ' '.join(errors) for word in words)


@pytest.mark.parametrize(
    'arguments,message',
    [
        ('--input net.pth --output x.keras --num_classes 6', '--num_classes=6, but the checkpoint has 7'),
        ('--input net.pth --output net.pth/x.keras', 'cannot write'),
        ('--input evil.pth.tar --output x.keras', "'os.system'; nothing was run"),
        ('--list evil.pth.tar', "'os.system'; nothing was run"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_1(arguments, message, checkpoint, tmp_path, capsys):
    evil = torch_files.Call(torch_files.Global('os', 'system'), ('touch RAN',))
    torch_files.write_zip_of('evil.pth.tar', torch_files.pickled({'state_dict': evil}), {})
    assert call(*arguments.split()) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('read_ckpt: ') and message in captured.err and len(captured.err.splitlines()) == 1
    assert captured.out.count('\n') == ('--input' in arguments)
    assert {path.name for path in tmp_path.iterdir()} == {'net.pth', 'evil.pth.tar'}


def test_sources_are_the_families():
    assert {f'from_{family}.py' for family in FAMILIES} == {path.name for path in PROGRAM.parent.glob('from_*.py')}


def test_a_network_that_differs_in_pytorch_is_not_written_and_no_flag_would_help(checkpoint, monkeypatch, capsys):
    assert call('--input', 'net.pth', '--output', 'net.keras') == 0
    real = from_torch.run
    monkeypatch.setattr(from_torch, 'run', lambda *arguments: 2 * np.asarray(real(*arguments)))
    assert call('--input', 'net.keras', '--output', 'back.safetensors', '--to', 'torch') == 1
    error = capsys.readouterr().err
    assert 'pass a network that torchvision' in error and '--variant' not in error
    assert not pathlib.Path('back.safetensors').exists()
