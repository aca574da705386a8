"""The figure of a training: a command of its own, and what a training says when it fails."""

import json
import subprocess
import sys

import pytest

from official_resnet.command_line import train_program
from official_resnet.reports import figures

RATES = {'accuracy': 0.5, 'learning_rate': 0.1}
LINES = [{'split': of, 'epoch': n, 'step': n, 'loss': 1 / n} | RATES for n in (1, 2) for of in ('train', 'test')]


@pytest.fixture
def model_dir(tmp_path):
    """A model_dir that a shell and a flag parser might mistake for something else."""
    folder = tmp_path / '-a b'
    folder.mkdir()
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, LINES)) + '\n{"split": "tr')  # a kill cut it short
    return folder


def call(*args, **options):
    command = [sys.executable, '-m', 'official_resnet.reports.figures', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_command_plots_what_a_training_plots(model_dir):
    assert train_program._draw_curves(model_dir) == [model_dir / 'curves.png']
    plotted = (model_dir / 'curves.png').read_bytes()
    assert plotted[:4] == b'\x89PNG'
    (model_dir / 'curves.png').unlink()
    result = call('--', '-a b', cwd=model_dir.parent)
    assert (result.returncode, result.stderr) == (0, '') and result.stdout.endswith('curves.png\n')
    assert (model_dir / 'curves.png').read_bytes() == plotted == figures.training_curves(model_dir).read_bytes()


def test_mistakes_are_one_line(tmp_path):
    for args, message in (((), 'MODEL_DIR'), ((tmp_path,), f"'{tmp_path}' has no metrics.jsonl")):
        result = call(*args)
        assert (result.returncode, result.stdout) == (1, '') and result.stderr.count('\n') == 1
        assert message in result.stderr


@pytest.mark.parametrize('reason', ['no epoch', 'no python', 'no matplotlib'])
def test_a_figure_that_fails_is_one_line_and_no_figure(model_dir, tmp_path, monkeypatch, capsys, reason):
    if reason == 'no epoch':
        (model_dir / 'metrics.jsonl').write_text('{"split": "train"}\n')
    elif reason == 'no python':
        monkeypatch.setattr(sys, 'executable', str(tmp_path / 'gone'))
    else:
        (tmp_path / 'matplotlib.py').write_text('raise ImportError')
        monkeypatch.syspath_prepend(tmp_path)
    assert train_program._draw_curves(model_dir) == [] and not (model_dir / 'curves.png').exists()
    out = capsys.readouterr().out
    words = {'no epoch': "KeyError: 'epoch'", 'no matplotlib': "pip install 'official-resnet[plots]'"}
    assert out.count('\n') == 1 and words.get(reason, 'curves.png') in out
