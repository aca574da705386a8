"""Plot figures. No other module imports matplotlib.

    python -m official_resnet.reports.figures MODEL_DIR    # plot MODEL_DIR/curves.png, or replace it

The command reads metrics.jsonl and steps.csv, and takes about a second. Training programs run it when they end.
"""

import csv
import io
import itertools
import logging
import math
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

try:
    import matplotlib
except ImportError:
    if __name__ != '__main__':
        raise
    sys.exit("curves.png needs matplotlib: pip install -e '.[plots]' in the folder of the repository")

from official_resnet import checkpoints, damage, files
from official_resnet.errors import UserError, one_line

matplotlib.use('Agg')  # write files, with or without a display
from matplotlib import pyplot  # noqa: E402

# Colour-blind readers can also distinguish these (Okabe and Ito 2008).
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_SMALL = {'fontsize': 'small'}
_INK = '#0a0b0c'  # in an SVG, it stands for the colour of the page's text
_ROLES = ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'grid.color')
_OF_SVG: Any = dict.fromkeys(_ROLES, _INK) | {
    'svg.fonttype': 'none',  # text stays text, in the font of the page
    'text.parse_math': False,
    'font.size': 9,
    'legend.frameon': False,  # legends are outside of the axes
    'grid.linewidth': 0.4,
    'legend.fontsize': 8,
    'axes.spines.top': False,
    'axes.spines.right': False,
}
_PANEL = (3.6, 2.6)  # inches; a phone is as wide
_ROW = 0.17  # inches: a row of a legend
_MARKERS = 'osD^vP'
MOST_POINTS, NAME_LENGTH = 50, 36  # of a training's curve; characters of a run's name in a legend
STEP_ROW = ('step', 'loss', 'accuracy', 'learning_rate')
_LOSSES = {'train': ' (what is trained)', 'test': ' (cross-entropy)'}  # they may differ, as with smoothed labels
_MARKER = {1: 'o'}  # by the number of points, because a single point makes no line


def training_curves(model_dir: str | os.PathLike) -> pathlib.Path:
    """Plot error (%) and loss of both splits over epochs, the learning rate over steps; return model_dir/curves.png.

    Raises:
        UserError: model_dir has no metrics.jsonl.
    """
    model_dir = pathlib.Path(model_dir)
    if not (model_dir / checkpoints.METRICS_FILE).is_file():
        raise UserError(f"'{model_dir}' has no {checkpoints.METRICS_FILE}; pass the model_dir of a run")
    metrics = metrics_rows(model_dir)
    if not metrics:
        raise UserError(
            f"no curves.png: '{model_dir / checkpoints.METRICS_FILE}' has no whole row; train an epoch first"
        )
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout='constrained')
    for split, color in (('train', 'tab:blue'), ('test', 'tab:orange')):
        lines = [line for line in metrics if line['split'] == split]
        epochs = [line['epoch'] for line in lines]
        errors, losses = [100 * (1 - line['accuracy']) for line in lines], [line['loss'] for line in lines]
        for axis, values, kind in zip(axes, (errors, losses), ('', _LOSSES[split]), strict=False):
            label = f'{split}{kind}, {values[-1]:.4g} at the end' if values else split
            axis.plot(epochs, values, color=color, label=label, marker=_MARKER.get(len(lines)))
    rows = step_rows(model_dir, metrics)
    steps, rates = [row['step'] for row in rows], [row['learning_rate'] for row in rows]
    label = f'{rates[-1]:.4g} at the end' if rates else 'none'
    axes[2].plot(steps, rates, color='tab:gray', label=label, marker=_MARKER.get(len(steps)))
    panels = (('error (%)', 'epoch'), ('loss', 'epoch'), ('learning rate', 'step'))
    for axis, (title, place) in zip(axes, panels, strict=True):
        highest = 1.05 * axis.dataLim.y1 if axis.dataLim.y1 > 0 else 1  # y1 is -inf if there is no point
        _frame(axis, title=title, xlabel=place, ylim=(0, highest))
        axis.legend(**_SMALL)
    tested = [line['accuracy'] for line in metrics if line['split'] == 'test']
    best = f': best test accuracy {max(tested):.2%}' if tested else ''
    figure.suptitle(one_line(model_dir.name) + best)
    _save(figure, model_dir / 'curves.png')
    return model_dir / 'curves.png'


def metrics_rows(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of checkpoints.read_metrics, which end at a damaged row; if there is one, print a line."""
    rows, path = checkpoints.read_metrics(model_dir), pathlib.Path(model_dir, checkpoints.METRICS_FILE)
    num_lines = len(files.read_bytes(path).splitlines()) if path.is_file() else 0
    if len(rows) < num_lines:
        remedy = 'run the training again, which writes it'
        print(f"'{path}' is damaged in row {len(rows) + 1} of {num_lines}, where its curves end; {remedy}")
    return rows


def step_rows(model_dir: pathlib.Path, metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of steps.csv as {'step', 'loss', 'accuracy', 'learning_rate'}; for older runs, one per epoch.

    `metrics` are the rows of metrics.jsonl. Each row is about the steps since the row before it.
    """
    path = model_dir / checkpoints.STEPS_FILE
    if not path.exists():
        return [{name: line[name] for name in STEP_ROW} for line in metrics if line['split'] == 'train']
    with damage.reported(path, 'run the training again, which writes it'):
        table = csv.DictReader(files.read_text(path).splitlines())
        if missing := [name for name in STEP_ROW if name not in (table.fieldnames or ())]:
            raise ValueError(f'its first line has no {missing[0]}')
        rows = [{name: float(row[name]) for name in STEP_ROW} for row in table]
        if not all(abs(number) < checkpoints.MOST for row in rows for number in row.values()):
            raise ValueError('a number is not finite')
        return [row | {'step': int(row['step'])} for row in rows]


def run_curves(runs: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> dict[str, str]:
    """Return {'loss', 'accuracy', 'learning_rate'}: SVGs of the curves of one run, or of several over each other.

    Args:
        runs: {'curves': {'steps', 'test'}} of each run, see report.about_run.
        words: The labels 'train', 'test' and 'step'. With several runs, the number (from 1) and name of
            each are the labels instead. Training is dashed.
    """
    with matplotlib.rc_context(_OF_SVG):
        size = _PANEL[0], _PANEL[1] + _ROW * len(runs)
        names = ('loss', 'accuracy', 'learning_rate')
        panels = {name: pyplot.subplots(figsize=size, layout='constrained') for name in names}
        for number, run in enumerate(runs):
            color, marker = (palette[number % len(palette)] for palette in (_COLORS, _MARKERS))
            mark = f'{number + 1} {one_line(run.get("name", ""))[:NAME_LENGTH]}'.strip() if len(runs) > 1 else ''
            for split, part, line, width in (('train', 'steps', '--', 1.3), ('test', 'test', '-', 2)):
                rows = _fewer(run['curves'][part]) if part == 'steps' else run['curves'][part]
                steps = [row['step'] for row in rows]
                of_split = _COLORS[1] if split == 'train' and len(runs) == 1 else color
                style: dict[str, Any] = {'color': of_split, 'linewidth': width}
                style['marker'] = marker if split == 'test' else None
                style |= {'markersize': 3.5, 'markevery': max(1, len(rows) // 8)}
                names_run = split == 'test' or not run['curves']['test']
                style['label'] = words[split] if len(runs) == 1 else mark if names_run else None
                for name in ('loss', 'accuracy') if rows else ():
                    panels[name][1].plot(steps, [row[name] for row in rows], line, **style)
            if rows := run['curves']['steps']:
                style = {'color': color, 'marker': marker, 'markersize': 3.5, 'markevery': max(1, len(rows) // 8)}
                points = [[row[name] for row in rows] for name in ('step', 'learning_rate')]
                panels['learning_rate'][1].plot(*points, label=mark, **style)
        for name, (figure, axis) in panels.items():
            if name != 'accuracy':
                axis.set_ylim(0, 1.05 * axis.dataLim.y1 if 0 < axis.dataLim.y1 < math.inf else 1)
            _frame(axis, xlabel=words['step'])
            if (entries := axis.get_legend_handles_labels())[0]:
                figure.legend(*entries, loc='outside upper left', ncols=2 if len(runs) == 1 else 1)
        return {name: _svg(figure, f'curves.{name}') for name, (figure, _) in panels.items()}


def _fewer(rows):
    """Return at most MOST_POINTS means of successive rows of steps.csv, each at the step of its last row."""
    every = -(-len(rows) // MOST_POINTS) or 1
    groups = [rows[start : start + every] for start in range(0, len(rows), every)]
    names = ('loss', 'accuracy')
    return [of[-1] | {name: sum(row[name] for row in of) / len(of) for name in names} for of in groups]


def reliability(bins: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> str:
    """Return the SVG of a reliability diagram (arXiv:1706.04599 Fig. 1), with the number of images of each bin below.

    `bins` are those of report.calibration; `words` the labels 'confidence', 'accuracy', 'perfect' and 'images'.
    """
    seen = [row for row in bins if row['count']]
    width = bins[0]['high'] - bins[0]['low']
    with matplotlib.rc_context(_OF_SVG):
        figure, (axis, below) = pyplot.subplots(
            2, 1, figsize=(_PANEL[0], 3.6), layout='constrained', sharex=True, height_ratios=(3, 1)
        )
        places = [row['low'] for row in seen]
        common = {'width': width, 'align': 'edge', 'color': _COLORS[0], 'edgecolor': _INK, 'linewidth': 0.5}
        axis.bar(places, [row['accuracy'] for row in seen], alpha=0.75, label=words['accuracy'], **common)
        axis.plot((0, 1), (0, 1), '--', color=_INK, linewidth=1, label=words['perfect'])
        axis.set(xlim=(0, 1), ylim=(0, 1), ylabel=words['accuracy'])
        figure.legend(*axis.get_legend_handles_labels(), loc='outside upper left', ncols=2)
        below.bar(places, [row['count'] for row in seen], alpha=0.75, **common)
        below.set(xlabel=words['confidence'], ylabel=words['images'])
        return _svg(figure, 'reliability')


def _svg(figure, name):
    """Return a figure as the text of an SVG element, whose texts take the colour and font of the page around it."""
    file, log = io.StringIO(), logging.getLogger('matplotlib.font_manager')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), matplotlib.rc_context({'svg.hashsalt': name}):
            warnings.filterwarnings('ignore', 'Glyph')  # the reader's browser has the font
            figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
    finally:
        log.setLevel(level)
    pyplot.close(figure)
    text = file.getvalue()
    text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', text[text.index('<svg') :], flags=re.DOTALL)
    text = re.sub(r'<g id="[\w.]+_\d+">', '<g>', text)  # the next figure would have the same ids
    text = re.sub(r' (width|height)="[\d.]+pt"', '', text)
    text = re.sub(r"'[^'\";]*(Sans|Serif)[^'\";]*'(, [^;\"]*)?", 'inherit', text)
    return re.sub(r'\n\s*', '\n', text.replace(_INK, 'currentColor'))


def error_curves(panels: Mapping[str, Mapping[str, Any]], path: str | os.PathLike, title: str) -> str | os.PathLike:
    """Plot training error (thin, dashed) and test error (bold) in % over epochs, as in 1512.03385 Fig. 6.

    `panels` are {name of the panel: {name of the network: {'epoch': list, 'train_error': list, 'test_error': list}}}.
    The legend has the last value of each curve. Return the path.
    """
    size = (6 * len(panels), 4.5)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, layout='constrained', sharey=True, squeeze=False)
    highest = 0
    for axis, (name, nets) in zip(axes[0], panels.items(), strict=True):
        for color, (net, curves) in zip(itertools.cycle(_COLORS), nets.items(), strict=False):
            epochs, trained, tested = curves['epoch'], curves['train_error'], curves['test_error']
            style = {'color': color, 'marker': _MARKER.get(len(epochs))}
            axis.plot(epochs, trained, '--', linewidth=1.2, label=f'{net}, training{_last(trained)}', **style)
            axis.plot(epochs[: len(tested)], tested, linewidth=2.4, label=f'{net}, test{_last(tested)}', **style)
            highest = max([highest, *trained, *tested])
        _frame(axis, title=name, xlabel='epoch', ylim=(0, highest * 1.05 or 1))
        axis.yaxis.set_tick_params(labelleft=True)
        axis.legend(**_SMALL)
    axes[0][0].set_ylabel('error (%)')
    return _save(figure, path, title)


def error_bars(
    rows: Sequence[tuple[str, Mapping[str, float | None], float | None]],
    path: str | os.PathLike,
    titles: tuple[str, str],
) -> str | os.PathLike:
    """Plot the final errors of networks as bars beside the published ones; return the path.

    `rows` are (label, {'train_error', 'test_error'}, published test error), from top to bottom. Errors are in %, and
    None where training failed. `titles` are the titles of our panel and of the published one.
    """
    places, size = range(len(rows)), (13, 1.8 + 0.42 * len(rows))
    figure, axes = pyplot.subplots(1, 2, figsize=size, layout='constrained', sharey=True, width_ratios=(3, 2))
    labels, finals, published = zip(*rows, strict=True)
    bars = (([final['test_error'] for final in finals], 'loss not finite'), (published, 'fails (above 20)'))
    for axis, (values, failure), color, title in zip(axes, bars, _COLORS[:2], titles, strict=True):
        axis.barh(places, [value or 0 for value in values], color=color, height=0.7, label='test error')
        for place, value in enumerate(values):  # inside the bar, away from the training error
            text, text_color = (failure, 'black') if value is None else (f'{value:.2f}', 'white')
            axis.annotate(text, (0, place), (6, 0), textcoords='offset points', va='center', color=text_color, **_SMALL)
        axis.set_title(title, fontsize='medium')
        axis.set(xlabel='error (%)', axisbelow=True)
        axis.grid(axis='x', alpha=0.3)
    marks = [math.nan if final['train_error'] is None else final['train_error'] for final in finals]
    axes[0].plot(marks, places, 'D', color='black', markersize=5, label='training error, last epoch')
    for axis in axes:
        axis.set_xlim(0)
    axes[0].set_yticks(places, labels)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, **_SMALL)
    return _save(figure, path)


def gradient_norms(nets: Mapping[str, Mapping[str, Any]], path: str | os.PathLike, title: str) -> str | os.PathLike:
    """Plot each convolution's gradient over its place in the network, before and after training; return the path.

    `nets` are {'ACTIVATION-bn|nobn-plain|residual-DEPTH': {'samples': [{'step', 'gradients'}], 'diverged_at'}}, where
    'gradients' has one number for each convolution, or None if it is not finite.
    """
    columns: dict[tuple[str, str], list] = {}  # (activation, norm) -> [(kind, depth, net)]
    for name, net in nets.items():
        activation, norm, kind, depth = name.split('-')
        columns.setdefault((activation, norm), []).append((kind, int(depth), net))
    depths = sorted({depth for rows in columns.values() for _, depth, _ in rows})
    size = (max(4 * len(columns), 7), 8)
    figure, axes = pyplot.subplots(2, len(columns), figsize=size, layout='constrained', squeeze=False, sharex='col')
    for (before, after), ((activation, norm), rows) in zip(axes.T, columns.items(), strict=True):
        diverged = ['loss not finite:']
        for kind, depth, net in rows:
            samples = {before: net['samples'][0]['gradients'], after: net['samples'][-1]['gradients']}
            if net['diverged_at'] is not None:
                samples[after] = []
                diverged.append(f'{kind}-{depth} (step {net["diverged_at"]})')
            color, style = _COLORS[depths.index(depth) % len(_COLORS)], '-' if kind == 'residual' else '--'
            for axis, gradients in samples.items():
                logs = [math.log10(gradient) if gradient else math.nan for gradient in gradients]
                places, label = range(1, len(logs) + 1), f'{kind}, {depth} layers'
                axis.plot(places, logs, style, color=color, linewidth=1.8, label=label)
        if len(diverged) > 1:
            after.text(0.03, 0.03, '\n'.join(diverged), transform=after.transAxes, fontsize='x-small', va='bottom')
        before.set_title(f'{activation}, {"batch norm" if norm == "bn" else "no batch norm"}')
        after.set_xlabel('convolution, from input to output')
    for row, sample in zip(axes, (0, -1), strict=True):
        step = max(net['samples'][sample]['step'] for net in nets.values())
        when = f'after {step} steps' if step else 'before training'
        row[0].set_ylabel(f'{when}:\nlog10 of the gradient (root mean square)')
        for axis in row:
            axis.grid(alpha=0.3)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc='outside lower center', ncols=len(depths) * 2, **_SMALL)
    return _save(figure, path, title)


def chain_gradients(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> str | os.PathLike:
    """Plot |d output / d input| of gradient_chain.chain_table over the lengths of the chains; return the path."""
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    chains = dict.fromkeys((row['activation'], row['shortcut']) for row in rows)
    for color, chain in zip(_COLORS, chains, strict=False):
        known = [row for row in rows if (row['activation'], row['shortcut']) == chain and row['median'] is not None]
        lengths = [row['layers'] for row in known]
        low, median, high = ([math.log10(row[name]) for row in known] for name in ('low', 'median', 'high'))
        label = chain[0] + ' with shortcuts' * chain[1]
        if any(row['zero_share'] for row in known):
            label += ' (those that are not 0; half of them die in each layer)'
        axis.plot(lengths, median, color=color, linewidth=2, marker='o', markersize=4, label=label)
        axis.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(xlabel='layers, one neuron each', ylabel='log10 of |d output / d input|')
    axis.grid(alpha=0.3)
    axis.legend(**_SMALL)
    return _save(figure, path, 'Chains with weights, biases and inputs drawn from N(0, 1): median and quartiles')


def _last(curve):
    return f' ({curve[-1]:.1f} %)' if curve else ''


def _frame(axis, **texts):
    """Set the texts and limits of axes over epochs or steps, with ticks at whole numbers and a grid."""
    axis.set(**texts)
    if axis.dataLim.x0 == axis.dataLim.x1:  # one epoch only
        axis.set_xlim(axis.dataLim.x0 - 1, axis.dataLim.x1 + 1)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def _save(figure, path, title=None):
    if title:
        figure.suptitle(title, fontsize='medium')
    with files.replacing(path) as part:
        figure.savefig(part, dpi=120)
    pyplot.close(figure)
    return path


def main(values: Any, arguments: Sequence[str]) -> None:
    """Plot the curves of the model_dir in `arguments` and print their path; for program.run_program."""
    if len(arguments) != 1:
        raise UserError('pass one MODEL_DIR, the model_dir of a run')
    print(training_curves(*arguments))


if __name__ == '__main__':
    from absl import flags

    from official_resnet.command_line import program

    sys.exit(program.run_program(sys.argv, __doc__, flags.FlagValues(), main, takes_arguments=True))
