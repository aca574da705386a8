"""What an evaluation found, class by class: the accuracies, the worst and best classes, what is taken for what."""

import csv
import io
import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from official_resnet import files

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

TOP = 5


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
        classes or five guesses, and both are None of no images. 'classes': {'class', 'name', 'id', 'count', 'top1',
        'top5'} of each, in their order. 'confusions': {'true', 'guessed', 'count', 'share'} of each pair of different
        classes that occurs, by the first guess; share is of the true class's images; the most frequent first.

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
    labels, hits = labels.astype(np.int64), guesses == labels[:, None]
    has_top5 = classes > TOP and guesses.shape[1] == TOP
    counts, top1, top5 = (np.bincount(labels[of], minlength=classes) for of in (slice(None), hits[:, 0], hits.any(1)))

    def accuracies(which):
        count = int(counts[which].sum())
        shares = [float(hit[which].sum() / count) if count else None for hit in (top1, top5)]
        return {'count': count, 'top1': shares[0], 'top5': shares[1] if has_top5 else None}

    wrong = ~hits[:, 0]
    pairs, numbers = np.unique(labels[wrong] * classes + guesses[wrong, 0], return_counts=True)
    confusions = []
    for i in np.argsort(-numbers, kind='stable'):
        true, guessed = divmod(int(pairs[i]), classes)
        share = float(numbers[i] / counts[true])
        confusions.append({'true': true, 'guessed': guessed, 'count': int(numbers[i]), 'share': share})
    whole = accuracies(slice(None))
    return {
        'n': whole.pop('count'),
        **whole,
        'classes': [{'class': i, 'name': names[i], 'id': ids[i], **accuracies(i)} for i in range(classes)],
        'confusions': confusions,
    }


def format_report(found, rows=10):
    """Return the lines to print of a report: totals, and up to `rows` worst, best and most confused classes."""
    seen = sorted((row for row in found['classes'] if row['count']), key=lambda row: row['top1'])
    lines = [f'{found["n"]:,} images of {len(seen):,} classes: {_accuracies(found)}']
    tables = {'classes, the worst first': seen} if seen else {}
    if len(seen) > 2 * rows:
        tables = {'the worst classes': seen[:rows], 'the best classes': seen[-rows:][::-1]}
    for title, table in tables.items():
        lines.append(f'{title}:')
        lines += [f'  {_accuracies(row, 7)}  of {row["count"]:4}  {_name(row)}' for row in table]
    if found['confusions']:
        lines.append('taken for another class most often:')
    for pair in found['confusions'][:rows]:
        true, guessed = (_name(found['classes'][pair[which]]) for which in ('true', 'guessed'))
        lines.append(f'  {pair["count"]:4}, {pair["share"]:6.1%} of  {true}  ->  {guessed}')
    return lines


def write(found, folder):
    """Write report.json, the whole of it, per_class.csv and confusion.csv into a folder, made if need be.

    Raises:
        UserError: they cannot be written.
    """
    folder, classes, pairs = pathlib.Path(folder), found['classes'], []
    for pair in found['confusions']:
        true, guessed = classes[pair['true']], classes[pair['guessed']]
        pairs.append((true['name'], true['id'], guessed['name'], guessed['id'], pair['count'], pair['share']))
    columns = ('class', 'name', 'id', 'count', 'top1', 'top5')
    with files.write_errors(f"the report into '{folder}'", ' or pass another folder'):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / 'report.json', json.dumps(found, indent=1, ensure_ascii=False) + '\n')
        files.write_text(folder / 'per_class.csv', _csv(columns, [row.values() for row in classes]))
        columns = ('true', 'true_id', 'guessed', 'guessed_id', 'count', 'share')
        files.write_text(folder / 'confusion.csv', _csv(columns, pairs))


def _accuracies(row, width=0):
    values = [(name, row[key]) for name, key in (('top-1', 'top1'), ('top-5', 'top5')) if row[key] is not None]
    return ', '.join(f'{name} {value:{width}.2%}' for name, value in values) or 'no accuracy'


def _name(row):
    return f'{row["id"]} {row["name"]}' if row['id'] else row['name']


def _csv(columns, rows):
    """Return a table of tuples as CSV, RFC 4180; None is empty."""
    file = io.StringIO()
    csv.writer(file).writerows([columns, *rows])
    return file.getvalue()
