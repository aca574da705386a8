"""The figure of a run: it is plotted by a process of its own, and a run says when that fails."""

import json
import os
import pathlib
import re
import sys

import pytest
from fixtures.batches import message_of

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


def test_the_process_of_a_training_plots_what_the_function_does(model_dir, monkeypatch):
    monkeypatch.chdir(model_dir.parent)
    made = train_program.made('reports.figures', pathlib.Path(model_dir.name), 'curves.png')
    assert made == [pathlib.Path(model_dir.name, 'curves.png')]
    plotted = (model_dir / 'curves.png').read_bytes()
    assert plotted[:4] == b'\x89PNG' and plotted == figures.training_curves(model_dir).read_bytes()


def write_steps(folder, *rows):
    (folder / 'steps.csv').write_text('\n'.join(['step,loss,accuracy,learning_rate', *rows]))


@pytest.fixture
def drawn(monkeypatch):
    """A function that plots the curves of a model_dir and returns their axes."""
    figures_drawn = []
    monkeypatch.setattr(figures, '_save', lambda figure, *args: figures_drawn.append(figure))

    def draw(folder):
        figures.training_curves(folder)
        return figures_drawn[-1].axes

    yield draw
    figures.pyplot.close('all')


def test_the_learning_rate_is_plotted_by_step(model_dir, drawn):
    write_steps(model_dir, '2,1.5,0.2,0.4', '3,1.25,0.3,0.04')  # an older version took the first step
    errors, losses, rate = drawn(model_dir)
    assert rate.lines[0].get_xydata().tolist() == [[2, 0.4], [3, 0.04]] and rate.get_xlabel() == 'step'
    assert [axis.get_title() for axis in (errors, losses, rate)] == ['error (%)', 'loss', 'learning rate']
    assert errors.lines[1].get_xydata().tolist() == [[1, 50], [2, 50]]
    texts = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in (errors, losses, rate)]
    ends = [['50', '50'], ['0.5', '0.5'], ['0.04']]
    assert [[re.search(r'([\d.]+) at the end', text)[1] for text in row] for row in texts] == ends


@pytest.mark.parametrize('count,points', [(0, 0), (1, 1), (50, 50), (51, 26), (192, 48), (1000, 50)])
def test_a_curve_of_many_steps_is_drawn_by_means(count, points):
    rows = [{'step': i + 1, 'loss': i % 2, 'accuracy': 0.5, 'learning_rate': i} for i in range(count)]
    found = figures._fewer(rows)
    assert len(found) == points and (not rows or found[-1]['step'] == count)
    assert count != 192 or {row['loss'] for row in found} == {0.5}


def test_one_epoch_has_whole_ticks_and_a_margin(model_dir, drawn):
    (model_dir / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, LINES[:2])))
    for axis in drawn(model_dir):  # the last from metrics.jsonl, as of an older run
        assert axis.get_xlim() == (0, 2) and set(axis.get_xticks()) == {0, 1, 2}
        assert axis.get_ylim() == (0, pytest.approx(1.05 * axis.dataLim.y1))


@pytest.mark.parametrize('row', ['1,1,1,inf', '1,1e300,1,1', '1,1,nan,1', '1' * 400 + ',1,1,0'])
def test_a_number_that_cannot_be_plotted_is_damage(model_dir, drawn, row):
    write_steps(model_dir, row)
    assert "steps.csv' is damaged" in message_of(figures.training_curves, model_dir)


def test_a_damaged_header_and_a_damaged_row_of_metrics_are_said(model_dir, drawn, capsys):
    (model_dir / 'steps.csv').write_text('step;loss\n')
    assert "steps.csv' is damaged" in message_of(figures.training_curves, model_dir)
    (model_dir / 'steps.csv').unlink()
    path = model_dir / 'metrics.jsonl'
    for text, said in ((path.read_text(), 'row 5 of 5'), (path.read_text().rpartition('\n')[0], '')):
        path.write_text(text)
        capsys.readouterr()
        drawn(model_dir)
        out = capsys.readouterr().out
        assert said in out and bool(out) == bool(said)


def test_no_rate_at_all_and_rates_in_a_fifo(model_dir, drawn):
    write_steps(model_dir)
    assert drawn(model_dir)[2].get_ylim() == (0, 1)
    (model_dir / 'steps.csv').unlink()
    os.mkfifo(model_dir / 'steps.csv')
    assert 'not a plain file' in message_of(figures.training_curves, model_dir)


def test_mistakes_are_one_line(tmp_path):
    assert 'MODEL_DIR' in message_of(figures.main, None, ())
    assert f"'{tmp_path}' has no metrics.jsonl" in message_of(figures.main, None, (tmp_path,))
    (tmp_path / 'metrics.jsonl').write_text('{"split": "train"}\n')
    assert "metrics.jsonl' has no whole row" in message_of(figures.main, None, (tmp_path,))


@pytest.mark.parametrize('reason', ['no rate', 'no python', 'no matplotlib'])
def test_a_figure_that_fails_is_one_line_and_no_figure(model_dir, tmp_path, monkeypatch, capsys, reason):
    if reason == 'no rate':
        write_steps(model_dir, '1')
    elif reason == 'no python':
        monkeypatch.setattr(sys, 'executable', str(tmp_path / 'gone'))
    else:
        (tmp_path / 'matplotlib.py').write_text('raise ImportError')
        monkeypatch.syspath_prepend(tmp_path)
    made = train_program.made('reports.figures', model_dir, 'curves.png')
    assert made == [] and not (model_dir / 'curves.png').exists()
    out = capsys.readouterr().out
    words = {'no rate': "steps.csv' is damaged", 'no matplotlib': "pip install -e '.[plots]'"}
    assert out.count('\n') == 1 and words.get(reason, 'curves.png') in out


WORDS = {'train': 'training', 'test': 'test', 'step': 'step', 'confidence': 'probability', 'accuracy': 'right'}
ROW = {'step': 1, 'loss': 1.5, 'accuracy': 0.5, 'learning_rate': 0.1}


@pytest.mark.parametrize('count', [1, 2, 7])
@pytest.mark.parametrize('is_tested', [True, False])
def test_legends_are_outside_of_the_axes_and_name_each_run_once(monkeypatch, count, is_tested):
    """And curves stand out from the grid."""
    monkeypatch.setattr(figures, '_svg', lambda figure, name: figure)
    run = {'curves': {'steps': [ROW, ROW | {'step': 9}], 'test': [ROW] * is_tested}}
    drawn = figures.run_curves([run | {'name': f'run {i}'} for i in range(count)], WORDS)
    bins = [{'low': i / 2, 'high': (i + 1) / 2, 'count': 3, 'confidence': 0.3, 'accuracy': 0.4} for i in (0, 1)]
    drawn['calibration'] = figures.reliability(bins, WORDS | {'perfect': 'calibrated', 'images': 'images'})
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        if name == 'calibration':
            assert sorted(texts) == ['calibrated', 'right']
        elif count > 1:
            assert texts == [f'{i + 1} run {i}' for i in range(count)]
        else:
            assert texts == ([] if name == 'learning_rate' else ['training', 'test'][: 1 + is_tested])
        for axis in figure.axes:
            legends = [legend.get_window_extent() for legend in figure.legends]
            assert not axis.get_legend() and not any(axis.bbox.overlaps(legend) for legend in legends)
            assert axis.bbox.height > 0.15 * figure.bbox.height
            grid = max(line.get_linewidth() for line in axis.get_xgridlines())
            assert all(line.get_linewidth() > 2 * grid for line in axis.lines)
    figures.pyplot.close('all')
