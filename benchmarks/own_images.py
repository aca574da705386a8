"""Train image_folder_main on folders of real images, and measure accuracy, time and peak memory.

    python -m benchmarks.own_images --image_folder=DIR --output_dir=OUT --per_class=100 --per_class=1000 --per_class=0
    python -m benchmarks.own_images --data_dir=/usr/share/datasets/fashion-mnist --output_dir=OUT --per_class=100
    python -m benchmarks.own_images --image_folder=DIR --output_dir=OUT --runs=3 \\
        --set=pretrained_model_checkpoint_path=NET --set=transfer=head,all

Each run trains on the first images of each class of DIR/train, in a random order of its seed (0, 1, ...), and is tested
on all of DIR/test. If DIR is not split, image_folder_main sets test images aside. With --data_dir, the IDX files of
Fashion-MNIST or MNIST are first written as folders of PNG files below OUT. Each line of the table has, as means over
the seeds, the accuracy after the last epoch and the time of training and testing, and the highest peak of a process's
memory. If the command is stopped, the same command continues with the run that was stopped; finished runs are kept.
"""

import collections
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
from absl import flags as absl_flags

from benchmarks import measuring
from official_resnet import checkpoints, files
from official_resnet.command_line import program
from official_resnet.command_line.definer import Definer
from official_resnet.errors import UserError
from official_resnet.inputs import idx, image_folder

SPLITS = {'train': 'train', 'test': 't10k'}  # folder: beginning of the names of the IDX files
OWN = ('image_list', 'model_dir', 'seed')  # flags of image_folder_main that this program passes itself


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    values = absl_flags.FlagValues()
    define = Definer(values)
    define.string('image_folder', None, 'Folder that has train/CLASS and test/CLASS, or CLASS.')
    define.string('data_dir', None, 'Instead: folder of the IDX files of MNIST or Fashion-MNIST.')
    text = 'Number of training images of each class, 0 for all; repeat the flag for more numbers.'
    absl_flags.DEFINE_multi_integer('per_class', [0], text, lower_bound=0, flag_values=values)
    define.integer('runs', 1, 'Number of runs with each number of images.', lower=1)
    text = 'A flag of image_folder_main and its value, for example train_epochs=5; repeat --set for more flags.'
    absl_flags.DEFINE_multi_string('set', [], text, flag_values=values)
    define.string('output_dir', None, 'Folder of the runs, which are kept. The same command continues them.')
    define.string('output_json', None, 'JSON file for all figures.')
    return values


def write_folders(data_dir: str | os.PathLike, folder: pathlib.Path) -> None:
    """Write the images of IDX files as folder/SPLIT/CLASS/NUMBER.png, lossless."""
    from PIL import Image

    for split, prefix in SPLITS.items():
        start = os.path.join(data_dir, prefix)
        found = idx.read_idx(f'{start}-images-idx3-ubyte.gz', f'{start}-labels-idx1-ubyte.gz')
        for number, (pixels, label) in enumerate(zip(*found, strict=True)):
            place = folder / split / f'class_{label}'
            files.make_folder(place)
            Image.fromarray(pixels[..., 0]).save(place / f'{number:05}.png')


def write_list(path: pathlib.Path, source: pathlib.Path, per_class: int, seed: int) -> int:
    """Write an --image_list of images of a folder, and return the number of training images.

    Those are `per_class` of each class, in a random order of the seed, or all for 0; all test images are listed. The
    images of a folder that is not split have no split here either, so that image_folder_main sets some aside.
    """
    listing = image_folder.list_files(source)
    tests = listing.splits['test']
    train = listing.splits['train'] if listing.test_name else sorted(listing.splits['train'] + tests)
    rows, counts = [], collections.Counter[int]()
    for i in np.random.default_rng(seed).permutation(len(train)):
        file, label = train[i]
        counts[label] += 1
        if not per_class or counts[label] <= per_class:
            rows.append((file, label, 'train'))
    rows += [(*row, 'test') for row in tests if listing.test_name]
    table = [(os.path.abspath(file), listing.classes[label], split) for file, label, split in rows]
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(row[: 3 if listing.test_name else 2] for row in [('path', 'label', 'split'), *table])
    return sum(row[2] == 'train' for row in rows)


def train_once(
    source: pathlib.Path, folder: pathlib.Path, per_class: int, seed: int, given: list[str]
) -> dict[str, Any]:
    """Train with a seed in `folder`, unless that is done, and return the figures of the run."""
    done = folder / 'figures.json'
    if done.exists():
        return json.loads(done.read_text())
    files.make_folder(folder)
    num_images = write_list(folder / 'images.csv', source, per_class, seed)
    own = dict(zip(OWN, (folder / 'images.csv', folder / 'model', seed), strict=True))
    arguments = [f'--{name}={value}' for name, value in own.items()] + [f'--{pair}' for pair in given]
    command = [sys.executable, '-m', 'official_resnet.image_folder_main', *arguments]
    with open(folder / 'log.txt', 'w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"'{' '.join(command)}' failed; see {folder / 'log.txt'}")
    stages = [path for path in (folder / 'model_head', folder / 'model') if path.exists()]  # of --transfer=head,all
    metrics = [checkpoints.read_metrics(path) for path in stages]
    tests = [[row for row in rows if row['split'] == 'test'][-1] for rows in metrics]
    figures = {
        'seed': seed,
        'images': num_images,
        'epochs': [row['epoch'] for row in tests],
        'accuracies': [row['accuracy'] for row in tests],
        'seconds': sum(row['seconds'] for rows in metrics for row in rows),
        'images_per_second': statistics.median(
            row['images_per_second'] for row in metrics[-1] if row['split'] == 'train'
        ),
        'peak_bytes': usage.ru_maxrss * 1024,
    }
    files.write_json(done, figures)
    return figures


def format_table(results: list[dict[str, Any]]) -> str:
    """Return the results of `measure` as lines of text."""
    heads = f'{"images":>7} {"epochs":>8} {"n":>2} {"accuracy":>15} {"(least, greatest)":>19}'
    lines = [f'{heads} {"minutes":>8} {"images/s":>9} {"peak GB":>8}']
    for result in results:
        runs = result['runs']
        stages = list(zip(*(run['accuracies'] for run in runs), strict=True))
        extent = f'({min(stages[-1]):.2%}, {max(stages[-1]):.2%})'
        means = ', '.join(f'{statistics.fmean(stage):.2%}' for stage in stages)
        minutes, rate = (statistics.fmean(run[key] for run in runs) for key in ('seconds', 'images_per_second'))
        lines.append(
            f'{runs[0]["images"]:7,} {"+".join(map(str, runs[0]["epochs"])):>8} {len(runs):2} {means:>15} {extent:>19} '
            f'{minutes / 60:8.1f} {rate:9,.0f} {max(run["peak_bytes"] for run in runs) / 1e9:8.2f}'
        )
    return '\n'.join(lines)


def measure(values: absl_flags.FlagValues) -> None:
    """Train what the flags ask for, and print the table."""
    output = measuring.check_output(values.output_json)
    if bool(values.image_folder) == bool(values.data_dir) or not values.output_dir:
        raise UserError('pass --output_dir, and either --image_folder or --data_dir')
    if own := [pair for pair in values.set if pair.partition('=')[0] in OWN or '=' not in pair]:
        raise UserError(f"set '{own[0]}' must be flag=value, with another flag than {', '.join(OWN)}")
    folder = pathlib.Path(values.output_dir).expanduser()
    with files.write_errors(f"output_dir '{folder}'", ' or pass another --output_dir'):
        files.make_folder(folder)
    source = pathlib.Path(values.image_folder or folder / 'images').expanduser()
    if values.data_dir and not source.exists():
        write_folders(values.data_dir, part := folder / 'part.images')
        part.rename(source)  # complete
    results = []
    for per_class in values.per_class:
        place = folder / f'{per_class or "all"}_per_class' / ('_'.join(values.set).replace('/', '_') or 'default')
        runs = [train_once(source, place / f'seed_{seed}', per_class, seed, values.set) for seed in range(values.runs)]
        results.append({'per_class': per_class, 'runs': runs})
        print(format_table(results), flush=True)
    about = f'{measuring.describe()}, load {os.getloadavg()[0]:.1f}'
    print(about)
    if output:
        files.write_json(output, {'flags': values.flag_values_dict(), 'machine': about, 'results': results})


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), measure))
