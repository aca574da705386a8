"""The figure of a training: a command of its own, and what a training says when it fails."""

import json
import subprocess
import sys

import pytest

from official_resnet.command_line import train_program
from official_resnet.reports import figures

LINES = [
    {'split': split, 'epoch': epoch, 'step': epoch, 'loss': 1 / epoch, 'accuracy': 0.5, 'learning_rate': 0.1}
    for epoch in (1, 2)
    for split in ('train', 'test')
]


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


def test_the_command_draws_what_a_training_draws(model_dir):
    assert train_program._draw_curves(model_dir) == [model_dir / 'curves.png']
    drawn = (model_dir / 'curves.png').read_bytes()
    assert drawn[:4] == b'\x89PNG'
    (model_dir / 'curves.png').unlink()
    result = call('--', '-a b', cwd=model_dir.parent)
    assert (result.returncode, result.stderr) == (0, '') and result.stdout.endswith('curves.png\n')
    assert (model_dir / 'curves.png').read_bytes() == drawn == figures.training_curves(model_dir).read_bytes()


def test_mistakes_are_one_line(tmp_path):
    for args, message in (((), 'pass one MODEL_DIR'), ((tmp_path,), f"'{tmp_path}' has no metrics.jsonl")):
        result = call(*args)
        assert (result.returncode, result.stdout) == (1, '') and result.stderr.count('\n') == 1
        assert message in result.stderr


def test_a_figure_that_fails_is_one_line(model_dir, tmp_path, monkeypatch, capsys):
    (model_dir / 'metrics.jsonl').write_text('{"split": "train"}\n')  # no epoch
    assert train_program._draw_curves(model_dir) == []
    assert capsys.readouterr().out == "no curves.png: KeyError: 'epoch'\n"
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'gone'))
    assert train_program._draw_curves(model_dir) == []
    assert capsys.readouterr().out.count('\n') == 1


def test_without_matplotlib_the_line_says_what_to_install(model_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / 'matplotlib.py').write_text('raise ImportError')
    monkeypatch.syspath_prepend(tmp_path)
    assert train_program._draw_curves(model_dir) == []
    assert capsys.readouterr().out == "curves.png needs matplotlib: pip install 'official-resnet[plots]'\n"
    assert not (model_dir / 'curves.png').exists()
