"""The benchmark of workers and of checkpoints measures, says what it means, and leaves no process behind."""

import json
import pathlib
import re

import pytest

from benchmarks import speed
from official_resnet.command_line.program import run_program

pytestmark = pytest.mark.workers


def test_a_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, 'INFERENCE_SIZE', 14)  # not minutes, either
    argv = [
        'speed.py',
        '--measure=workers',
        '--measure=save',
        '-rs',
        '8',
        '-bs',
        '16',
        '--runs',
        '2',
        '--steps',
        '2',
        '--dtype',
        'fp32',
        '--output_json',
        str(tmp_path / 'b.json'),
    ]
    code = run_program(argv, '', speed.define_flags(), speed.run_benchmark)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    stored = [
        (row['measure'], row['images_per_second']) for row in json.loads((tmp_path / 'b.json').read_text())['results']
    ]
    assert [(measure, list(rates)) for measure, rates in stored] == [
        ('workers', ['several', 'one']),
        ('save', ['resnet8']),
        ('workers', ['one']),
        ('save', ['resnet14']),
    ]
    several, one = stored[0][1].values()
    assert len(several) == len(one) == 2
    share = (several[0] / one[0] + several[1] / one[1]) / 2
    assert f'fp32: 2 workers reach {share:.0%} of the images/s of one process' in out
    seconds = sum(1 / rate for rate in stored[1][1]['resnet8']) / 2
    epoch = 50_000 / (sum(stored[2][1]['one']) / 2)
    assert re.search(
        rf'ResNet-8: {seconds:.3f} s a checkpoint; every 10 minutes that is {seconds / 600:.3%} of the '
        rf'time, after each epoch of 50000 images \({epoch:.0f} s here\) {seconds / epoch:.3%}\n',
        out,
    )
    assert 'ResNet-14: ' in out
    assert not [path for path in pathlib.Path('/proc').glob('[0-9]*/cmdline') if b'training:join' in read(path)]


def read(path):
    """Return the command line of a process, b'' of one that has gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b''
