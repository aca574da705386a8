"""Collect everything that a report says about a network and its test images, and compare several networks.

The numbers are JSON values, which report.json holds and report_page shows. report_main.py calls this module.
"""

import collections
import dataclasses
import hashlib
import importlib.util
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from official_resnet import files
from official_resnet.errors import UserError
from official_resnet.inference import spreadsheets
from official_resnet.reports import evaluate

if TYPE_CHECKING:
    import keras

    from official_resnet.inference import card_reader
    from official_resnet.inputs.split import Split
    from official_resnet.training.config import TrainConfig

PACKAGES = {'jinja2': 'jinja2', 'matplotlib': 'matplotlib', 'scipy': 'scipy', 'sklearn': 'scikit-learn'}
NUM_BINS = 15  # of the calibration, as in arXiv:1706.04599 Sec. 5
CONFIDENCE = 0.95  # of the interval of the accuracy
# Of the settings of the machine, those that a comparison shows: they may change what is trained.
SHOWN_OF_MACHINE = ('machine.data_dir', 'machine.num_gpus', 'machine.distribution_strategy')


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network, the images that it is tested on, and the run that it is from."""

    name: str  # as the user calls it
    model: 'keras.Model'
    card: 'card_reader.Card'
    test: 'Split'  # with the network's classes
    content: Sequence[str] | str  # the files of the test images, or if they have none, the hash of all
    view: Callable | None = None  # of encoded images, see Split.evaluation_batches
    test_views: str = 'plain'
    batch_size: int = 64
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see about_run; 'origin': see hub_card.of_run,
    # with the 'file' of the network in the model_dir
    architecture: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # {label: lines}
    notes: Sequence[str] = ()  # lines on what limits the test, for example test images that are also training images


def require_packages() -> None:
    """Raise UserError if a package is missing that a report needs."""
    if missing := [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]:
        names = ', '.join(missing)
        remedy = "run pip install -e '.[report]' in the folder of the repository"
        raise UserError(f'a report needs {names} (not installed here); {remedy}')


def wilson_interval(hits: int, count: int) -> list[float]:
    """Return the 95 % confidence interval of an accuracy (Wilson's score interval).

    >>> [round(end, 4) for end in wilson_interval(9, 10)]
    [0.5958, 0.9821]
    """
    from scipy import stats

    return [float(end) for end in stats.binomtest(hits, count).proportion_ci(CONFIDENCE, 'wilson')]


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Compare two networks on the same images by McNemar's exact test.

    >>> mcnemar(np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool))['p']
    0.5

    Args:
        ours, theirs: Whether each network classifies each image correctly, bool [n].

    Returns:
        {'both', 'only_first', 'only_other', 'neither', 'p'}: numbers of images that both, one or none of them classify
        correctly, and the probability of a difference as large as this, or larger, if they are equally good.
    """
    from scipy import stats

    first, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = float(stats.binomtest(first, first + other).pvalue) if first + other else 1.0
    counts = {'both': int((ours & theirs).sum()), 'only_first': first, 'only_other': other}
    return counts | {'neither': int((~ours & ~theirs).sum()), 'p': p}


def calibration(confidences: np.ndarray, hits: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """Return how well the probability of the likeliest class says how often it is right (arXiv:1706.04599 Eq. 3).

    >>> calibration(np.array([0.9, 0.8, 0.8]), np.array([True, True, False]), num_bins=2)['ece']  # |2.5 - 2| / 3
    0.1666...

    Args:
        confidences: The probability of the likeliest class of each image, [n].
        hits: Whether it is right, bool [n].

    Returns:
        {'ece', 'bins'}: the expected calibration error, and {'low', 'high', 'count', 'confidence', 'accuracy'} of bins
        of the same width. A probability at the border of two bins is in the lower one.
    """
    confidences = np.asarray(confidences, np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.searchsorted(edges, confidences) - 1, 0, num_bins - 1)
    counts, sums, rights = (np.bincount(places, of, num_bins) for of in (None, confidences, hits))
    bins, parts = [], np.abs(sums - rights) / len(confidences)
    for i in range(num_bins):
        means = [float(of[i] / counts[i]) if counts[i] else None for of in (sums, rights)]
        row: dict[str, Any] = {'low': float(edges[i]), 'high': float(edges[i + 1]), 'count': int(counts[i])}
        bins.append(row | {'confidence': means[0], 'accuracy': means[1]})
    return {'ece': float(parts.sum()), 'bins': bins}


def about_run(model_dir: str | os.PathLike) -> dict[str, Any]:
    """Return what a run has recorded so far: recipe, config, machine and curves.

    Returns:
        {'recipe', 'config', 'machine', 'curves'}: the first three are those of config.json, and 'curves' are {'train',
        'test', 'steps'}: rows of metrics.jsonl for both splits, and those of figures.step_rows.
    """
    from official_resnet.reports import figures

    rows = figures.metrics_rows(model_dir)
    about = files.read_json(pathlib.Path(model_dir, 'config.json')) or {}
    curves = {split: [row for row in rows if row['split'] == split] for split in ('train', 'test')}
    curves['steps'] = figures.step_rows(pathlib.Path(model_dir), rows)
    return {name: about.get(name) for name in ('recipe', 'config', 'machine')} | {'curves': curves}


def progress(state: Mapping[str, Any], config: 'TrainConfig') -> dict[str, int]:
    """Return how far the run of a checkpoint's state has come: {'step', 'last_step', 'epoch' (finished ones)}."""
    per_epoch = max(state['data']['num_pictures'] // config.batch_size, 1)
    total = config.train_epochs * per_epoch
    last_step = min(total, config.max_train_steps or total)
    return {'step': state['step'], 'last_step': last_step, 'epoch': state['step'] // per_epoch}


def guess(subject: Subject) -> evaluate.Guesses:
    """Return what a network says about its test images."""
    with subject.test.input_errors():
        batches = subject.test.evaluation_batches(subject.batch_size, view=subject.view)
        found = evaluate.guess(subject.model, batches, subject.test_views)
    if not len(found.labels):
        raise UserError(f'{subject.test.name} has no image of a class of {subject.name}; pass images of its classes')
    if not np.isfinite(found.probabilities).all():
        raise UserError(f'the outputs of {subject.name} are not finite: its training diverged; train it again')
    return found


def collect(subject: Subject, found: evaluate.Guesses, num_images: int) -> dict[str, Any]:
    """Return the report on a network, ready for JSON.

    Args:
        subject: The network and its images.
        found: What `guess` returns.
        num_images: Number of images in each list of the gallery.

    Returns:
        What evaluate.report returns, whose classes also have 'precision' and 'f1' ('top1' is the recall), with 'name',
        'dataset', 'notes', 'left_out' (images of other classes), 'interval', 'loss', 'mean' over the classes,
        'calibration', 'gallery' ({list: entries of _entry}), 'architecture' and the keys of subject.about.
    """
    from sklearn import metrics

    names, ids = evaluate.names_of_outputs(subject.test, subject.model.output_shape[-1])
    report = evaluate.report(found.labels, found.classes, names, ids)
    guesses, hits = found.classes[:, 0], found.classes[:, 0] == found.labels
    precision, _, f1, counts = metrics.precision_recall_fscore_support(
        found.labels, guesses, labels=range(len(names)), zero_division=np.nan
    )
    for row, *scores in zip(report['classes'], precision, f1, strict=True):
        row |= {name: _number(score) for name, score in zip(('precision', 'f1'), scores, strict=True)}
    seen = [row for row in report['classes'] if row['count']]
    means = {name: _mean([row[name] for row in seen]) for name in ('precision', 'top1', 'f1')}
    with np.errstate(divide='ignore'):
        loss = float(-np.log(found.of_label.astype(np.float64)).mean())
    order = np.argsort(found.probabilities[:, 0], kind='stable')
    surest, least = order[~hits[order]][::-1][:num_images], order[hits[order]][:num_images]
    return {
        'name': subject.name,
        'dataset': subject.test.name,
        'notes': list(subject.notes),
        **report,
        'left_out': subject.test.num_images - len(found.labels),
        'interval': wilson_interval(int(hits.sum()), len(hits)),
        'loss': loss if math.isfinite(loss) else None,
        'mean': means,
        'calibration': calibration(found.probabilities[:, 0], hits),
        'gallery': {
            'surest_mistakes': [_entry(subject, found, i) for i in surest],
            'least_sure_hits': [_entry(subject, found, i) for i in least],
        },
        'architecture': {label: list(lines) for label, lines in subject.architecture.items()},
        **subject.about,
    }


def _number(value):
    return None if math.isnan(value) else float(value)


def _mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _entry(subject, found, i):
    """Return what the gallery and images.csv say about the i-th image of `found`."""
    row, paths = int(found.rows[i]), subject.test.paths
    return {
        'image': row,
        'file': paths[row] if paths else None,
        'label': int(found.labels[i]),
        'guess': int(found.classes[i, 0]),
        'probability': float(found.probabilities[i, 0]),
        'label_probability': float(found.of_label[i]),
    }


def write(report: Mapping[str, Any], subject: Subject, found: evaluate.Guesses, folder: str | os.PathLike) -> None:
    """Write report.json, per_class.csv, confusion.csv and images.csv, which has a row for each image, into a folder."""
    names = [row['name'] for row in report['classes']]
    rows = []
    paths = subject.test.paths or [''] * subject.test.num_images
    # Images of a folder are in a random order, so that the first are a fair sample.
    for i in sorted(range(len(found.labels)), key=lambda i: paths[int(found.rows[i])]):
        entry = _entry(subject, found, i)
        entry |= {name: names[entry[name]] for name in ('label', 'guess')}
        rows.append(entry.values())
    evaluate.write(dict(report), folder)
    columns = ('image', 'file', 'label', 'guess', 'probability', 'label_probability')
    evaluate.write_files(folder, {'images.csv': spreadsheets.file_text([columns, *rows])})


def images_at(test: 'Split', rows: Sequence[int], batch_size: int, view: Callable | None = None) -> np.ndarray:
    """Return test images by their numbers, float32 [n, h, w, c] in 0..255, of the size of the network's input.

    `view` is that of Split.evaluation_batches.
    """
    found: dict[int, np.ndarray] = {}
    start, last = 0, max(rows, default=-1)
    with test.input_errors():
        raw = test.with_normalization('none')
        for images, _ in raw.evaluation_batches(batch_size, view=view):
            found |= {row: images[row - start].numpy() for row in set(rows) if start <= row < start + len(images)}
            start += len(images)
            if start > last:
                break
    return np.stack([found[row] for row in rows]) if rows else np.zeros((0, *test.input_shape), np.float32)


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main results of a report, {name: number or None}."""
    rows = report['curves']['train'] + report['curves']['test'] if 'curves' in report else []
    epoch = report.get('origin', {}).get('epoch')  # of the network, for example the best one
    rows = [row for row in rows if epoch in (None, row['epoch'])]
    last: Mapping[str, Any] = max(rows, key=lambda row: row['step'], default={})
    results = {'accuracy': report['top1'], 'interval': report['interval'], 'top5': report['top5']}
    results |= {'loss': report['loss'], 'ece': report['calibration']['ece'], 'f1': report['mean']['f1']}
    results |= {'images': report['n'], 'epochs': last.get('epoch'), 'steps': last.get('step')}
    if point := report.get('checkpoint'):
        results |= {'epochs': point['epoch'], 'steps': point['step']}
    parameters = report['architecture'].get('parameters')
    return results | {'parameters': int(parameters[0].replace(',', '')) if parameters else None}


def compare(
    reports: Sequence[Mapping[str, Any]], subjects: Sequence[Subject], guesses: Sequence[evaluate.Guesses]
) -> dict[str, Any]:
    """Return the comparison of several networks, ready for JSON.

    Returns:
        'runs': [{'name', 'notes', 'file' (if it is from a run), 'has_configuration', 'results': `summary`, 'curves'}].
        'tests': for each network but the first, what `mcnemar` returns, or {'reason'} if the test needs the same images
        and classes: 'other_images', 'differing_images' with their 'count', or 'other_classes'.
        'differences': {field of the configuration: [its value in each run]}, for fields that differ between runs.
    """
    tests: list[dict[str, Any]] = []
    keys = [_image_keys(subject) for subject in subjects]
    hits = [
        dict(zip((of[row] for row in found.rows.tolist()), found.classes[:, 0] == found.labels, strict=True))
        for of, found in zip(keys, guesses, strict=True)
    ]
    for i in range(1, len(reports)):
        if differing := set(keys[i]) ^ set(keys[0]):
            has_files = not any(isinstance(subject.content, str) for subject in (subjects[0], subjects[i]))
            more = {'reason': 'differing_images', 'count': len(differing)}
            tests.append(more if has_files else {'reason': 'other_images'})
        elif hits[i].keys() != hits[0].keys():  # some have no class in one of the networks
            tests.append({'reason': 'other_classes'})
        else:
            tests.append(mcnemar(*(np.array([of[key] for key in hits[0]]) for of in (hits[0], hits[i]))))
    configs = [flatten({'recipe': report.get('recipe'), **(report.get('config') or {})}) for report in reports]
    known = [values for values in configs if len(values) > 1]
    differences, runs = {}, []
    for name in dict.fromkeys(name for values in known for name in values):
        is_shown = name in SHOWN_OF_MACHINE or not name.startswith('machine.')
        if is_shown and any(values.get(name) != known[0].get(name) for values in known):
            differences[name] = [values.get(name) for values in configs]
    for report, values in zip(reports, configs, strict=True):
        about = {'name': report['name'], 'notes': report['notes'], 'file': report.get('origin', {}).get('file')}
        about |= {'has_configuration': len(values) > 1}
        runs.append(about | {'results': summary(report), 'curves': report.get('curves')})
    return {'runs': runs, 'tests': tests, 'differences': differences}


def _image_keys(subject):
    """Return a key for each test image, which the same image of another subject also has: (its bytes, a number)."""
    if isinstance(subject.content, str):
        return [(subject.content, i) for i in range(subject.test.num_images)]
    seen, keys = collections.Counter[str](), []
    for path in subject.content:
        digest = hashlib.sha256(files.read_bytes(path, 'image_bytes')).hexdigest()
        keys.append((digest, seen[digest]))  # a file may be there twice
        seen[digest] += 1
    return keys


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return nested values by dotted names.

    >>> flatten({'spec': {'filters': 16}, 'seed': 0})
    {'spec.filters': 16, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {f'{prefix}{name}': value}
    return found


def write_comparison(found: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Write comparison.json, and comparison.csv with a column for each run, into a folder."""
    names = [run['name'] for run in found['runs']]
    ends = [dict(zip(('low', 'high'), run['results']['interval'], strict=True)) for run in found['runs']]
    columns = [flatten(run['results'] | {'interval': both}) for run, both in zip(found['runs'], ends, strict=True)]
    results = {name: [values[name] for values in columns] for name in columns[0]}
    tests = {name: [None, *(test.get(name) for test in found['tests'])] for name in ('p', 'only_first', 'only_other')}
    tests = {f'mcnemar.{name}': values for name, values in tests.items()}
    rows = [('field', *names)]
    rows += [(name, *values) for name, values in {**results, **tests, **found['differences']}.items()]
    texts = {'comparison.json': evaluate.json_text(found), 'comparison.csv': spreadsheets.file_text(rows)}
    evaluate.write_files(folder, texts)
