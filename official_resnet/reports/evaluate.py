"""Report an evaluation class by class: accuracies, the worst and best classes, and confused classes."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from official_resnet import files
from official_resnet.inference import spreadsheets

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from official_resnet.inputs.split import Split

TOP = 5  # guesses for each image, at most
MAX_MATRIX = 20  # most classes for which a matrix can be read
Report = dict[str, Any]  # see `report`


class Guesses(NamedTuple):
    """What a model says about n images. `rows` are their numbers in the split, some of whose images may be left out."""

    labels: np.ndarray  # int32 [n]
    classes: np.ndarray  # int32 [n, 5]: the likeliest class first
    probabilities: np.ndarray  # float32 [n, 5]: of `classes`
    of_label: np.ndarray  # float32 [n]: the probability of the label
    rows: np.ndarray  # int64 [n]


def guess(model: 'keras.Model', batches: 'tf.data.Dataset', test_views: str = 'plain') -> Guesses:
    """Return the labels of a split's images, and the model's guesses; see make_guess."""
    return make_guess(model, test_views)(batches)


def make_guess(model: 'keras.Model', test_views: str = 'plain') -> 'Callable[[tf.data.Dataset], Guesses]':
    """Return the function that makes Guesses of batches. It is compiled once.

    Its batches are pairs (images, labels). Images with the label -1, of no class, are left out. If there are several
    images for each label, as in ten-crop evaluation, their probabilities are averaged.

    Args:
        model: A network of resnet_model.
        test_views: TrainConfig.test_views, for which logits are averaged.
    """
    import tensorflow as tf

    from official_resnet.inference import view_average

    num_guesses = min(TOP, model.output_shape[-1])

    @tf.function(reduce_retracing=True)
    def guess_batch(images, labels) -> tuple['tf.Tensor', ...]:
        probabilities = tf.nn.softmax(view_average.logits_of(model, images, test_views))
        per_image = tf.reshape(probabilities, [tf.shape(labels)[0], -1, probabilities.shape[-1]])
        mean = tf.reduce_mean(per_image, 1)
        best = tf.math.top_k(mean, num_guesses)
        return labels, best.indices, best.values, tf.gather(mean, tf.maximum(labels, 0), batch_dims=1)

    def guess_all(batches) -> Guesses:
        parts = [[part.numpy() for part in guess_batch(images, labels)] for images, labels in batches]
        labels, *others = map(np.concatenate, zip(*parts, strict=True))
        rows = np.flatnonzero(labels >= 0)
        classes, probabilities, of_label = (part[rows] for part in others)
        return Guesses(labels[rows], classes, probabilities, of_label, rows)

    return guess_all


def names_of_outputs(test: 'Split', num_outputs: int) -> tuple[list[str], list[str | None] | None]:
    """Return (names, ids) of a network's outputs, of which the last may have no images."""
    unnamed = num_outputs - test.num_classes
    names = [*test.class_names, *(f'class {test.num_classes + i}' for i in range(unnamed))]
    return names, [*test.class_ids, *[None] * unnamed] if test.class_ids else None


def report(
    labels: np.ndarray | Sequence[int],
    guesses: np.ndarray | Sequence[Sequence[int]],
    names: Sequence[str],
    ids: Sequence[str | None] | None = None,
) -> Report:
    """Return the counts and accuracies of an evaluation, ready for JSON.

    Args:
        labels: The true classes, int [n] in 0..classes-1.
        guesses: int [n, k] with k in 1..5, the likeliest class first.
        names: One name for each class.
        ids: One id for each class, such as WordNet's, or None. None means that no class has an id.

    Returns:
        {'n', 'top1', 'top5', 'classes', 'confusions'}. Accuracies are in 0..1. top5 is None if there are fewer than
        six classes or five guesses. Without images both accuracies are None.
        'classes' has {'class', 'name', 'id', 'count', 'top1', 'top5'} for each class, in order.
        'confusions' has {'true', 'guessed', 'count', 'share'} for each pair of classes that the first guesses confuse,
        the most frequent pair first. share is the fraction of the true class's images.

    Raises:
        ValueError: The shapes do not fit each other, or a label or guess is not one of the classes.
    """
    labels, guesses, classes = np.asarray(labels), np.asarray(guesses), len(names)
    ids = [None] * classes if ids is None else ids
    if labels.ndim != 1 or guesses.ndim != 2 or len(labels) != len(guesses) or not 1 <= guesses.shape[1] <= TOP:
        raise ValueError(f'labels {labels.shape} and guesses {guesses.shape} must be [n] and [n, 1..{TOP}]')
    if len(ids) != classes:
        raise ValueError(f'{len(ids)} ids for {classes} classes; pass one for each class')
    for values in (labels, guesses):
        is_whole = np.issubdtype(values.dtype, np.integer)
        if values.size and not (is_whole and 0 <= values.min() <= values.max() < classes):
            raise ValueError(f'classes must be integers in 0..{classes - 1}')
    labels, hits = labels.astype(np.int64), guesses == labels[:, None]
    has_top5 = classes > TOP and guesses.shape[1] == TOP
    counts, top1, top5 = (np.bincount(labels[i], minlength=classes) for i in (slice(None), hits[:, 0], hits.any(1)))

    def accuracies(which) -> dict[str, Any]:
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


def matrix(found: Mapping[str, Any]) -> list[list[int]]:
    """Return the confusion matrix of a report: for each true class, the number of images of each guess."""
    counts = [[0] * len(found['classes']) for _ in found['classes']]
    for row in found['classes']:
        counts[row['class']][row['class']] = round((row['top1'] or 0) * row['count'])
    for pair in found['confusions']:
        counts[pair['true']][pair['guessed']] = pair['count']
    return counts


def format_report(found: Report, rows: int = 10) -> list[str]:
    """Return a report as lines of text: the totals, and up to `rows` worst, best and most confused classes."""
    seen = sorted((row for row in found['classes'] if row['count']), key=lambda row: row['top1'])
    lines = [f'{found["n"]:,} images of {len(seen):,} classes: {_accuracies(found)}']
    tables = {'classes, worst first': seen} if seen else {}
    if len(seen) > 2 * rows:
        tables = {'the worst classes': seen[:rows], 'the best classes': seen[-rows:][::-1]}
    for title, table in tables.items():
        lines.append(f'{title}:')
        lines += [f'  {_accuracies(row, 7)}  of {row["count"]:4}  {_name(row)}' for row in table]
    if found['confusions']:
        lines.append('most frequent confusions:')
    for pair in found['confusions'][:rows]:
        true, guessed = (_name(found['classes'][pair[which]]) for which in ('true', 'guessed'))
        lines.append(f'  {pair["count"]:4}, {pair["share"]:6.1%} of  {true}  ->  {guessed}')
    return lines


def write(found: Report, folder: str | os.PathLike) -> None:
    """Write the whole report as report.json, and its tables as per_class.csv and confusion.csv, into a folder.

    Raises:
        UserError: The files cannot be written.
    """
    folder, classes, pairs = pathlib.Path(folder), found['classes'], []
    columns = tuple(classes[0]) if classes else ('class', 'name', 'id', 'count', 'top1', 'top5')
    for pair in found['confusions']:
        true, guessed = classes[pair['true']], classes[pair['guessed']]
        pairs.append((true['name'], true['id'], guessed['name'], guessed['id'], pair['count'], pair['share']))
    tables = {'per_class': spreadsheets.file_text([columns, *(row.values() for row in classes)])}
    tables['confusion'] = spreadsheets.file_text(
        [('true', 'true_id', 'guessed', 'guessed_id', 'count', 'share'), *pairs]
    )
    write_files(folder, {'report.json': json_text(found)} | {f'{name}.csv': text for name, text in tables.items()})


def write_files(folder: str | os.PathLike, texts: Mapping[str, str]) -> None:
    """Write {name: text} into a folder, which is made if it is missing. UserError: they cannot be written."""
    with files.write_errors(f"the report into '{folder}'", ' or pass another folder'):
        files.make_folder(folder)
        for name, text in texts.items():
            # A name that is not valid text in the file system, or in a card, has lone surrogates, which UTF-8 lacks.
            files.write_text(pathlib.Path(folder, name), text.encode('utf-8', 'backslashreplace').decode())


def json_text(value: Mapping[str, Any]) -> str:
    """Return a value as JSON for readers."""
    return json.dumps(value, indent=1, ensure_ascii=False) + '\n'


def _accuracies(row, width=0):
    values = [(name, row[key]) for name, key in (('top-1', 'top1'), ('top-5', 'top5')) if row[key] is not None]
    return ', '.join(f'{name} {value:{width}.2%}' for name, value in values) or 'no accuracy'


def _name(row):
    return f'{row["id"]} {row["name"]}' if row['id'] else row['name']
