"""The figures; the only importer of matplotlib."""

import math

import matplotlib

matplotlib.use('Agg')  # a file, whatever display there is
from matplotlib import pyplot  # noqa: E402

# Told apart by the colour-blind too: Okabe and Ito 2008.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def training_curves(metrics, path, title):
    """Draw error (%) and loss of both splits, and the learning rate, over epochs; return the path.

    Args:
        metrics: the lines of a metrics.jsonl, as dicts.
        path: of the PNG.
        title: above the figure.
    """
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout='constrained')
    for split, color in (('train', 'tab:blue'), ('test', 'tab:orange')):
        lines = [line for line in metrics if line['split'] == split]
        epochs = [line['epoch'] for line in lines]
        marker = 'o' if len(lines) < 2 else None  # one point draws no line
        axes[0].plot(epochs, [100 * (1 - line['accuracy']) for line in lines], color=color, label=split, marker=marker)
        axes[1].plot(epochs, [line['loss'] for line in lines], color=color, label=split, marker=marker)
        if split == 'train':
            axes[2].plot(epochs, [line['learning_rate'] for line in lines], color='tab:gray', marker=marker)
    for axis, label in zip(axes, ('error (%)', 'cross-entropy', 'learning rate'), strict=True):
        axis.set(xlabel='epoch', ylabel=label, ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def error_curves(panels, path, title):
    """Draw training (thin, dashed) and test error (bold) in % over epochs, as 1512.03385 Fig. 6; return the path.

    Args:
        panels: {name of a panel: {name of a net: {'epoch', 'train_error', 'test_error'}, lists}}.
        path: of the PNG.
        title: above the figure.
    """
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6 * len(panels), 4.5), layout='constrained', sharey=True, squeeze=False
    )
    highest = 0
    for axis, (name, nets) in zip(axes[0], panels.items(), strict=True):
        for color, (net, curves) in zip(_colors(nets), nets.items(), strict=True):
            epochs = curves['epoch']
            marker = 'o' if len(epochs) < 2 else None  # one point draws no line
            axis.plot(
                epochs, curves['train_error'], '--', color=color, linewidth=1.2, marker=marker, label=f'{net}, training'
            )
            tested = epochs[: len(curves['test_error'])]
            axis.plot(tested, curves['test_error'], color=color, linewidth=2.4, marker=marker, label=f'{net}, test')
            highest = max([highest, *curves['train_error'], *curves['test_error']])
        axis.set(title=name, xlabel='epoch', ylim=(0, highest * 1.05 or 1))
        axis.yaxis.set_tick_params(labelleft=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    axes[0][0].set_ylabel('error (%)')
    return _save(figure, path, title)


def error_bars(rows, path, titles):
    """Draw the final errors of nets as bars, beside the published ones; return the path.

    Args:
        rows: (label, {'train_error', 'test_error'} in % or None where the net failed, published test error in %
            or None where it failed), from top to bottom.
        path: of the PNG.
        titles: of our panel and of the published one.
    """
    places = range(len(rows))
    figure, axes = pyplot.subplots(
        1, 2, figsize=(13, 1.8 + 0.42 * len(rows)), layout='constrained', sharey=True, width_ratios=(3, 2)
    )
    trained = [final['train_error'] for _, final, _ in rows]
    bars = (
        ([final['test_error'] for _, final, _ in rows], 'loss not finite'),
        ([published for *_, published in rows], 'fails (above 20)'),
    )
    for axis, (values, failure), color, title in zip(axes, bars, _COLORS, titles, strict=False):
        axis.barh(places, [value or 0 for value in values], color=color, height=0.7, label='test error')
        for place, value in zip(places, values, strict=True):  # inside the bar, clear of the training errors
            text, text_color = (failure, 'black') if value is None else (f'{value:.2f}', 'white')
            axis.annotate(
                text, (0, place), (6, 0), textcoords='offset points', va='center', fontsize='small', color=text_color
            )
        axis.set_title(title, fontsize='medium')
        axis.set(xlabel='error (%)')
        axis.grid(axis='x', alpha=0.3)
        axis.set_axisbelow(True)
    marks = [math.nan if error is None else error for error in trained]
    axes[0].plot(marks, places, 'D', color='black', markersize=5, label='training error, last epoch')
    for axis in axes:
        axis.set_xlim(0)
    axes[0].set_yticks(places, [label for label, *_ in rows])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize='small')
    return _save(figure, path)


def gradient_norms(nets, path, title):
    """Draw each layer's gradient over its place in the net, before and after training; return the path.

    Args:
        nets: {'ACTIVATION-bn|nobn-plain|residual-DEPTH': {'samples': [{'step', 'gradients': [layers], None where
            not finite}], 'diverged_at'}}.
        path: of the PNG.
        title: above the figure.
    """
    keys = [name.split('-') for name in nets]
    columns = list(dict.fromkeys((activation, norm) for activation, norm, *_ in keys))
    depths = sorted({int(depth) for *_, depth in keys})
    color_of = dict(zip(depths, _colors(depths), strict=True))
    figure, axes = pyplot.subplots(
        2, len(columns), figsize=(max(4 * len(columns), 7), 8), layout='constrained', squeeze=False, sharex='col'
    )
    for i, column in enumerate(columns):
        for name, net in nets.items():
            activation, norm, kind, depth = name.split('-')
            if (activation, norm) != column:
                continue
            style = {
                'color': color_of[int(depth)],
                'linestyle': '-' if kind == 'residual' else '--',
                'linewidth': 1.8,
                'label': f'{kind}, {depth} layers',
            }
            for axis, sample in zip(axes[:, i], (net['samples'][0], net['samples'][-1]), strict=True):
                is_left_out = sample is net['samples'][-1] and net['diverged_at'] is not None
                gradients = sample['gradients'] if not is_left_out else []
                logs = [math.log10(gradient) if gradient else math.nan for gradient in gradients]
                axis.plot(range(1, len(logs) + 1), logs, **style)
        diverged = [
            f'{name.split("-", 2)[2]} (step {net["diverged_at"]})'
            for name, net in nets.items()
            if tuple(name.split('-')[:2]) == column and net['diverged_at'] is not None
        ]
        if diverged:
            axes[1, i].text(
                0.03,
                0.03,
                '\n'.join(['loss not finite:', *diverged]),
                transform=axes[1, i].transAxes,
                fontsize='x-small',
                va='bottom',
            )
        axes[0, i].set_title(f'{column[0]}, {"batch norm" if column[1] == "bn" else "no batch norm"}')
        axes[1, i].set_xlabel('convolution, from input to output')
    steps = [max(net['samples'][j]['step'] for net in nets.values()) for j in (0, -1)]
    for row, step in zip(axes, steps, strict=True):
        row[0].set_ylabel(
            f'{f"after {step} steps" if step else "before training"}:\nlog10 of the gradient (root mean square)'
        )
        for axis in row:
            axis.grid(alpha=0.3)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=len(depths) * 2, fontsize='small'
    )
    return _save(figure, path, title)


def chain_gradients(rows, path):
    """Draw |d output / d input| of random chains of one neuron a layer over their length; return the path.

    Args:
        rows: of gradient_chain.chain_table.
        path: of the PNG.
    """
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    for i, (activation, shortcut) in enumerate(dict.fromkeys((row['activation'], row['shortcut']) for row in rows)):
        part = [
            row
            for row in rows
            if (row['activation'], row['shortcut']) == (activation, shortcut) and row['median'] is not None
        ]
        lengths = [row['layers'] for row in part]
        logs = {name: [math.log10(row[name]) for row in part] for name in ('low', 'median', 'high')}
        label = activation + (' with shortcuts' if shortcut else '')
        if any(row['zero_share'] for row in part):
            label += ' (those not 0; half of them die in each layer)'
        axis.plot(lengths, logs['median'], color=_COLORS[i], linewidth=2, marker='o', markersize=4, label=label)
        axis.fill_between(lengths, logs['low'], logs['high'], color=_COLORS[i], alpha=0.15, linewidth=0)
    axis.set(xlabel='layers, one neuron each', ylabel='log10 of |d output / d input|')
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
    return _save(figure, path, 'Chains with weights, biases and inputs of N(0, 1): median and quartiles')


def _colors(names):
    """Return a colour for each name, the same for the same place."""
    return [_COLORS[i % len(_COLORS)] for i in range(len(names))]


def _save(figure, path, title=None):
    if title:
        figure.suptitle(title, fontsize='medium')
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
