"""What an evaluation found, class by class: the accuracies, the worst and best classes, what is taken for what."""

import csv
import io
import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from official_resnet import files
from official_resnet.errors import UserError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

TOP = 5
_COLUMNS = ('class', 'name', 'id', 'count', 'top1', 'top5')


def guess(model: 'keras.Model', batches: 'tf.data.Dataset') -> tuple[np.ndarray, np.ndarray]:
    """Return what a model takes images for: (labels int32 [n], guesses int32 [n, 5], the likeliest first).

    Args:
        model: of resnet_model.
        batches: of (images, labels), with a multiple of images for each label, over whose probabilities the mean is
            taken (ten-crop).
    """
    import tensorflow as tf

    num_guesses = min(TOP, model.output_shape[-1])

    @tf.function(reduce_retracing=True)
    def guess_batch(images, labels):
        probabilities = tf.nn.softmax(model(images, training=False))
        of_images = tf.reshape(probabilities, [tf.shape(labels)[0], -1, probabilities.shape[-1]])
        return tf.math.top_k(tf.reduce_mean(of_images, 1), num_guesses).indices

    parts = [(labels.numpy(), guess_batch(images, labels).numpy()) for images, labels in batches]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def report(labels, guesses, names, ids=None):
    """Return the counts of an evaluation, ready for JSON.

    Args:
        labels: int [n], 0..classes-1.
        guesses: int [n, k], k from 1 to 5, the likeliest class first.
        names: one a class.
        ids: one a class, as WordNet's, or None; or None for all.

    Returns:
        {'n', 'top1', 'top5', 'classes', 'confusions'}. Accuracies are shares of 1; top5 is None with fewer than six
        classes or five guesses, and both are None of no pictures. 'classes': {'class', 'name', 'id', 'count', 'top1',
        'top5'} of each, in their order. 'confusions': {'true', 'guessed', 'count', 'share'} of each pair of different
        classes that occurs, by the first guess; share is of the true class's pictures; the most frequent first.

    Raises:
        ValueError: arrays of other shapes, or classes without a name.
    """
    labels, guesses, classes = np.asarray(labels), np.asarray(guesses), len(names)
    ids = [None] * classes if ids is None else ids
    if labels.ndim != 1 or guesses.ndim != 2 or len(labels) != len(guesses) or not 1 <= guesses.shape[1] <= TOP:
        raise ValueError(f'labels {labels.shape} and guesses {guesses.shape} must be [n] and [n, 1..{TOP}]')
    if len(ids) != classes:
        raise ValueError(f'{len(ids)} ids are not one for each of {classes} classes')
    for values in (labels, guesses):
        is_whole = np.issubdtype(values.dtype, np.integer)
        if values.size and not (is_whole and 0 <= values.min() <= values.max() < classes):
            raise ValueError(f'classes must be integers in 0..{classes - 1}')
    hits = guesses == labels[:, None]
    counts, top1, top5 = (
        np.bincount(labels[chosen].astype(np.int64), minlength=classes)
        for chosen in (slice(None), hits[:, 0], hits.any(1))
    )
    has_top5 = classes > TOP and guesses.shape[1] == TOP
    rows = []
    for i, (name, id_, count) in enumerate(zip(names, ids, counts.tolist(), strict=True)):
        shares = _share(top1[i], count), _share(top5[i], count) if has_top5 else None
        rows.append(dict(zip(_COLUMNS, (i, name, id_, count, *shares), strict=True)))
    return {
        'n': len(labels),
        'top1': _share(top1.sum(), len(labels)),
        'top5': _share(top5.sum(), len(labels)) if has_top5 else None,
        'classes': rows,
        'confusions': _confusions(labels, guesses[:, 0], counts),
    }


def format_report(found, rows=10):
    """Return the lines to print: the totals, the worst and the best classes, the most frequent confusions.

    Args:
        found: what `report` returned.
        rows: at most, of each table.
    """
    seen = sorted((row for row in found['classes'] if row['count']), key=lambda row: row['top1'])
    lines = [f'{found["n"]:,} pictures of {len(seen):,} classes: {_accuracies(found)}']
    if len(seen) <= 2 * rows:
        tables = [('classes, the worst first', seen)]
    else:
        tables = [('the worst classes', seen[:rows]), ('the best classes', seen[-rows:][::-1])]
    for title, table in tables:
        if table:
            lines.append(f'{title}:')
            lines += [f'  {_accuracies(row, 7)}  of {row["count"]:4}  {_name(row)}' for row in table]
    if found['confusions']:
        lines.append('taken for another class most often:')
    for pair in found['confusions'][:rows]:
        true, guessed = (found['classes'][pair[which]] for which in ('true', 'guessed'))
        lines.append(f'  {pair["count"]:4}, {pair["share"]:6.1%} of  {_name(true)}  ->  {_name(guessed)}')
    return lines


def write(found, folder):
    """Write report.json, the whole of it, per_class.csv and confusion.csv into a folder, made if need be.

    Raises:
        UserError: they cannot be written.
    """
    folder = pathlib.Path(folder)
    classes = found['classes']
    confusions = []
    for pair in found['confusions']:
        true, guessed = classes[pair['true']], classes[pair['guessed']]
        confusions.append((true['name'], true['id'], guessed['name'], guessed['id'], pair['count'], pair['share']))
    texts = {
        'report.json': json.dumps(found, indent=1, ensure_ascii=False) + '\n',
        'per_class.csv': _csv(_COLUMNS, [row.values() for row in classes]),
        'confusion.csv': _csv(('true', 'true_id', 'guessed', 'guessed_id', 'count', 'share'), confusions),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            files.write_text(folder / name, text)
    except OSError as error:
        raise UserError(f"cannot write the report into '{folder}' ({error.strerror}); pass another folder") from error


def _share(part, whole):
    return float(part / whole) if whole else None


def _confusions(labels, guessed, counts):
    """Return the pairs of `report`, counting only those that occur."""
    classes = len(counts)
    wrong = labels != guessed
    pairs, numbers = np.unique(labels[wrong].astype(np.int64) * classes + guessed[wrong], return_counts=True)
    return [
        {
            'true': int(pairs[i] // classes),
            'guessed': int(pairs[i] % classes),
            'count': int(numbers[i]),
            'share': _share(numbers[i], counts[pairs[i] // classes]),
        }
        for i in np.argsort(-numbers, kind='stable')
    ]


def _accuracies(row, width=0):
    values = [(name, row[key]) for name, key in (('top-1', 'top1'), ('top-5', 'top5')) if row[key] is not None]
    return ', '.join(f'{name} {value:{width}.2%}' for name, value in values) or 'no accuracy'


def _name(row):
    return f'{row["id"]} {row["name"]}' if row['id'] else row['name']


def _csv(columns, rows):
    """Return a table as CSV, RFC 4180; None is empty."""
    file = io.StringIO()
    csv.writer(file).writerows([columns, *rows])
    return file.getvalue()
