"""The benchmark of workers and of checkpoints measures, says what it means, and leaves no process behind."""

import contextlib
import json
import pathlib
import re

import pytest

from benchmarks import speed
from official_resnet.command_line.program import run_program

pytestmark = pytest.mark.workers


def test_a_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, 'INFERENCE_SIZE', 14)  # not minutes, either
    argv = ['speed.py', '--measure=workers', '--measure=save', '-rs=8', '-bs=16', '--runs=2', '--steps=2']
    argv += ['--dtype=fp32', f'--output_json={tmp_path}/b.json']
    code = run_program(argv, '', speed.define_flags(), speed.run_benchmark)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
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
    for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # of one that has gone
            assert b'training:join' not in path.read_bytes()
