"""Change a bit of our own files, or cut them off, many times: `python tests/flips.py [COPIES]`; 500 of each by default.

It prints a row for each format: how many copies were read as the whole file, refused or made again, and read as
something else ("wrong"), or raised anything but UserError ("traceback"). The last two must be 0, but for the formats
without a checksum (card, network.json, manifest, metrics.jsonl, settings.json), where a changed digit may be another
right one. On two cores 10,000 copies take three to seven minutes.
"""

import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import sys
import tempfile

import keras
import numpy as np
from fixtures.flips import damaged_copies
from fixtures.imagenet_shards import draw, write_shards
from fixtures.networks import save_network
from fixtures.tiny_training import synthetic_split

from official_resnet import checkpoints
from official_resnet.building import verify
from official_resnet.errors import Damaged, UserError
from official_resnet.experiments import runs
from official_resnet.inference import card_reader, keras_files
from official_resnet.inputs import shard_files, shards, tfrecords
from official_resnet.reports import figures
from official_resnet.training import feature_cache

HAS_CHECKSUM = {'checkpoint', '.keras', 'feature cache', 'shard index', 'TFRecord'}


def formats(folder):
    """Yield (name, path of a whole file, function that reads it and returns comparable values)."""
    arrays = {'a/kernel': np.arange(60, dtype='float32').reshape(2, 30), 'count': np.int64(7)}
    whole = checkpoints.save(folder / 'run', 2, arrays, {'step': 2, 'sums': {'loss': 0.1}, 'config': {'seed': 3}})

    def checkpoint():
        read, state = checkpoints.read(whole)
        return {name: array.tolist() for name, array in read.items()}, state

    yield 'checkpoint', whole, checkpoint
    model = save_network(folder, 'abc', (32, 32, 3))
    path = folder / 'model.keras'
    yield '.keras', path, lambda: [variable.numpy().tolist() for variable in keras_files.load(path, 'x').variables]
    card = folder / 'model.card.json'
    yield 'card', card, lambda: card_reader.read_card(card)
    layers, weights = folder / 'network.json', {variable.path: variable.numpy() for variable in model.variables}
    layers.write_text(model.to_json())
    yield 'network.json', layers, lambda: keras_files.from_json(layers, weights, 'x', {}).to_json()

    examples, kept = synthetic_split(3), folder / 'features.npz'
    feature_cache.features(model, examples, kept)
    key = feature_cache._key(model, examples)

    def cached():
        found = feature_cache._load(kept, key)
        if found is None:
            raise Damaged('made again')
        return [array.tolist() for array in found]

    yield 'feature cache', kept, cached
    data = folder / 'shards'
    data.mkdir()
    write_shards(data, draw(6), num_shards=2)
    paths, index = sorted(map(str, data.glob('train-*'))), folder / 'index.npz'
    expected = shards.Shards(paths, index_file=index).read(np.arange(6)).tolist()

    def indexed():
        found = shards.Shards(paths, index_file=index).read(np.arange(6)).tolist()
        assert found == expected
        return found

    yield 'shard index', index, indexed
    yield 'TFRecord', pathlib.Path(paths[0]), lambda: list(tfrecords.read(paths[0]))
    manifest = data / 'train.manifest.json'
    contents = [pathlib.Path(path).read_bytes() for path in paths]
    entries = [
        {'name': os.path.basename(path), 'records': 3, 'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
        for path, data in zip(paths, contents, strict=True)
    ]
    about = {
        'records': 6,
        'bytes': sum(map(len, contents)),
        'layout': 'imagenet',
        'synsets': ['', 'a'],
        'classes': {'a': 6},
        'shards': entries,
    }
    manifest.write_text(json.dumps(about))
    yield 'manifest', manifest, lambda: shard_files.manifest_classes(data, 'train')
    yield 'manifest, verified', manifest, lambda: verify.verify(data, 'train', lambda line: None)
    rows = [
        {'split': split, 'epoch': epoch, 'step': 7 * epoch, 'loss': 0.5, 'accuracy': 0.25, 'learning_rate': 0.1}
        for epoch in range(3)
        for split in ('train', 'test')
    ]
    metrics = folder / checkpoints.METRICS_FILE
    metrics.write_text(''.join(json.dumps(row) + '\n' for row in rows))

    def curves():
        read = checkpoints.read_metrics(folder)
        figures.training_curves(folder)
        return read

    yield 'metrics.jsonl', metrics, curves
    steps = folder / checkpoints.STEPS_FILE
    head = 'step,loss,accuracy,learning_rate\n'
    steps.write_text(head + ''.join(f'{step},0.5,0.25,0.1\n' for step in range(0, 20, 7)))
    yield 'steps.csv', steps, lambda: figures.step_rows(folder, rows)
    settings = {'seed': 3, 'train_epochs': 2, 'dataset': 'cifar10'}
    (folder / 'runs' / 'a').mkdir(parents=True)
    runs.claim_folder(folder, settings)
    yield 'settings.json', folder / 'settings.json', lambda: runs.claim_folder(folder, settings)


def outcome(read, expected):
    """Return what became of a damaged copy."""
    try:
        with contextlib.redirect_stdout(None):
            return 'whole' if read() == expected else 'wrong'
    except UserError:
        return 'refused'
    except Exception as error:  # noqa: BLE001  it is what is counted
        return f'traceback {type(error).__name__}'


def main(count: int = 500) -> int:
    """Print the table and return 1 if a copy is wrong that a checksum tells, or raised a traceback."""
    num_faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, path, read in formats(pathlib.Path(folder)):
            data, expected, results = path.read_bytes(), read(), collections.Counter()
            for copy in damaged_copies(data, min(count, 300) if 'keras' in name or 'network' in name else count):
                path.write_bytes(copy)
                results[outcome(read, expected)] += 1
            path.write_bytes(data)
            print(f'{name:20} {dict(results)}', flush=True)
            num_faults += sum(n for result, n in results.items() if result.startswith('traceback'))
            num_faults += results['wrong'] if name in HAS_CHECKSUM else 0
    print(f'{num_faults} faults')
    return int(num_faults > 0)


if __name__ == '__main__':
    logging.disable(logging.WARNING)
    keras.utils.set_random_seed(1)
    sys.exit(main(*map(int, sys.argv[1:])))
