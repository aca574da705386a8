"""The benchmark measures and prints what it says, and ends its processes."""

import contextlib
import functools
import json
import os
import re

import numpy as np
import pytest
from fixtures import programs
from fixtures.data_commands import write_files
from fixtures.imagenet_shards import encoded
from PIL import Image

from benchmarks import inference, jpeg_input, measuring, speed
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError


@pytest.fixture
def run(capsys):
    """Run the program; return what it printed."""

    def run_here(*arguments):
        code = run_program(['speed.py', *arguments], '', speed.define_flags(), speed.run_benchmark)
        out, err = capsys.readouterr()
        assert (code, err) == (0, '')
        return out

    return run_here


@pytest.fixture
def images(tmp_path):
    """A folder of five JPEGs of different sizes, one of them grey, and of other things."""
    files = {'more/notes.txt': b'x'}
    for i, name in enumerate(('a.JPEG', 'b.jpg', 'c.jpeg', 'more/d.jpg', 'more/e.JPG')):
        files[name] = encoded(Image.effect_noise((40 + 10 * i, 50), 60).convert('L' if i == 2 else 'RGB'))
    write_files(tmp_path / 'images', files)
    return tmp_path / 'images'


def test_table_and_ratios():
    rates = {'ours': [10.0, 40.0, 30.0], 'keras': [5.0, 10.0, 20.0]}
    lines = speed.format_table([('train', 'fp32', rates), ('input', 'fp32', {'ours': [7.0]})]).splitlines()
    assert lines[1].split() == ['train', 'fp32', 'ours', '3', '10.0', '30.0', '40.0']
    assert lines[2].split() == ['train', 'fp32', 'keras', '3', '5.0', '10.0', '20.0', '2.00']  # median of 2, 4, 1.5
    assert lines[3].split() == ['input', 'fp32', 'ours', '1', '7.0', '7.0', '7.0']


class ChildHere(contextlib.AbstractContextManager):
    """Does the work of a measuring.Child in this process, which has TensorFlow already; equal work is shared."""

    serve = staticmethod(functools.cache(speed.serve))

    def __init__(self, _, *arguments, **environment):
        self.function, self.result = self.serve(*arguments), None

    def __exit__(self, *_):
        pass

    def answer(self):
        return self.result

    def tell(self, *arguments):
        self.result = self.function(*arguments)


@pytest.mark.parametrize('systems', [['ours'], pytest.param(['keras', 'ours'], marks=pytest.mark.slow)])
def test_a_tiny_run(tmp_path, monkeypatch, run, systems):
    monkeypatch.setattr(measuring, 'Child', ChildHere)
    sizes = ['-rs=8', '-bs=16', '--runs=1', '--steps=1', '--dtype=fp32', f'--output_json={tmp_path}/b.json']
    measures = [f'--measure={name}' for name in ('input', 'forward', 'train')]
    out = run(*sizes, *measures, *(f'--system={name}' for name in systems))
    stored = json.loads((tmp_path / 'b.json').read_text())['results']
    names = [(row['measure'], sorted(row['images_per_second'])) for row in stored]
    assert names == [('input', ['ours']), ('forward', systems), ('train', systems)]
    assert all(rate > 0 for row in stored for rates in row['images_per_second'].values() for rate in rates)
    assert 'tensorflow 2.21' in out and 'cores' in out


def test_each_step_is_a_batch_of_training_images(images):
    """Also where the steps take more images than there are."""
    batches = list(jpeg_input.training_batches('tf1', 3, 4, images))
    assert [rows.shape for rows, _ in batches] == [(3, 224, 224, 3)] * 4
    assert max(float(abs(rows.numpy()).max()) for rows, _ in batches) < 2.7  # normalised as torchvision's
    names = ['a.JPEG', 'b.jpg', 'c.jpeg', 'd.jpg', 'e.JPG']
    assert [path.name for path in jpeg_input.list_files(images)] == names


def test_processes_answer_or_say_in_one_line_why_not():
    with measuring.Child('operator:itemgetter', 1) as child:  # returns a function
        assert child.answer() is None
        child.tell('abc')
        assert child.answer() == 'b'
    with measuring.Child('operator:nothing', 'fp32', 8) as child:
        with pytest.raises(UserError, match='operator:nothing .*"fp32", 8.*AttributeError: .*nothing'):
            child.answer()
    with measuring.Child('time:sleep', 60) as child, pytest.raises(UserError, match='0.1 s'):
        child.answer(0.1)


@pytest.mark.parity
def test_input_from_jpegs_beside_pytorch(images, tmp_path, run):
    arguments = ['--measure=jpeg', '-bs=4', '--runs=2', '--steps=2', f'--image_folder={images}']
    out = run(*arguments, f'--output_json={tmp_path}/b.json')
    rows = [line.split('fp32') for line in out.splitlines() if line.startswith('jpeg')]
    names = ['jpeg', 'jpeg all'][: len(os.sched_getaffinity(0))]
    systems = ('ours', 'antialias', 'decoded', 'decode', 'torch', 'pillow')
    expected = [(name, system) for name in names for system in systems]
    assert [(name.strip(), rest.split()[0]) for name, rest in rows] == expected
    stored = json.loads((tmp_path / 'b.json').read_text())['results']
    assert [row['measure'] for row in stored] == names
    assert all(min(rates) > 0 and len(rates) == 2 for row in stored for rates in row['images_per_second'].values())


@pytest.mark.parity
@pytest.mark.parametrize('label', ['augment', 'augment jpeg'])
def test_input_with_policies(images, run, label):
    folder = [f'--image_folder={images}'] if 'jpeg' in label else []
    out = run('--measure=augment', '-bs=4', '--runs=1', '--steps=1', *folder)
    rows = [line.split('fp32') for line in out.splitlines() if line.startswith('augment')]
    expected = [(label, name) for name in ('ours', 'trivial_wide', 'randaugment')]
    assert [(name.strip(), rest.split()[0]) for name, rest in rows] == expected


@pytest.mark.parity
def test_inference_against_every_peer(monkeypatch, run):
    """All systems run and answer; their speeds are for quieter machines."""
    monkeypatch.setattr(speed, 'INFERENCE_BATCH', 1)
    out = run('--measure=inference', '--runs=1', '--steps=1')
    rows = [line.split()[:3] for line in out.splitlines() if line.startswith('inference')]
    systems = ['ours', 'applications', 'predict', 'torch', 'onnx', 'openvino']
    expected = [(dtype, name) for dtype in ('fp32', 'bf16') for name in systems if (dtype, name) != ('bf16', 'onnx')]
    assert rows == [['inference', *row] for row in expected]


@pytest.mark.parity
@pytest.mark.parametrize('version', ['1', '1.5'])
def test_openvino_computes_our_network(version):
    """In float32 its logits are those of ONNX Runtime, and have not been computed in bfloat16."""
    (logits,), ((expected,),) = (
        function('fp32', 50, 2, version)['inference'](1) for function in (inference.openvino, inference.onnx)
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.whole_runs
def test_workers_and_checkpoints(tmp_path, monkeypatch, run):
    """It measures both, says what the figures mean, and leaves no process behind."""
    monkeypatch.setattr(speed, 'INFERENCE_SIZE', 14)  # not minutes, either
    sizes = ['-rs=8', '-bs=16', '--runs=2', '--steps=2', '--dtype=fp32', f'--output_json={tmp_path}/b.json']
    out = run('--measure=workers', '--measure=save', *sizes)
    rows = json.loads((tmp_path / 'b.json').read_text())['results']
    names = [('workers', ['several', 'one']), ('save', ['resnet8']), ('workers', ['one']), ('save', ['resnet14'])]
    assert [(row['measure'], list(row['images_per_second'])) for row in rows] == names
    rates = [row['images_per_second'] for row in rows]
    several, one = rates[0].values()
    assert len(several) == len(one) == 2
    assert f'2 workers reach {(several[0] / one[0] + several[1] / one[1]) / 2:.0%} of the images/s' in out
    seconds = sum(1 / rate for rate in rates[1]['resnet8']) / 2
    epoch = 50_000 / (sum(rates[2]['one']) / 2)
    numbers = (f'{seconds:.3f} s', f'{seconds / 600:.3%}', rf'\({epoch:.0f} s here\)', f'{seconds / epoch:.3%}')
    assert re.search(f'ResNet-8: {".*".join(numbers)}\n', out) and 'ResNet-14: ' in out
    assert not [line for line in programs.command_lines() if b'training:join' in line]
