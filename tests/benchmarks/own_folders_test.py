"""The measurement on own images trains what it says, and its table says what the runs did."""

import csv
import json

import numpy as np
import pytest
from fixtures import writers
from PIL import Image

from benchmarks import own_images
from official_resnet.command_line.program import run_program

COUNTS = {'train': 30, 't10k': 10}


@pytest.fixture
def data_dir(tmp_path):
    """A folder of compressed IDX files with the labels 0, 1, 2, 0, 1, ..."""
    folder = tmp_path / 'idx'
    folder.mkdir()
    for prefix, count in COUNTS.items():
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        for kind, values in (('images-idx3', pixels), ('labels-idx1', np.arange(count, dtype=np.uint8) % 3)):
            writers.write_idx(folder / f'{prefix}-{kind}-ubyte.gz', values)
    return folder


def run(*arguments):
    return run_program(['own_images.py', *arguments], '', own_images.define_flags(), own_images.measure)


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return [(row['path'], row['label'], row['split']) for row in csv.DictReader(file)]


def test_folders_and_lists_of_idx_files(data_dir, tmp_path):
    own_images.write_folders(data_dir, tmp_path / 'images')
    files = sorted((tmp_path / 'images').rglob('*.png'))
    assert len(files) == sum(COUNTS.values())
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
    np.testing.assert_array_equal(Image.open(tmp_path / 'images/train/class_1/00004.png'), pixels[4])
    lists = {}
    for per_class, seed in ((4, 0), (4, 1), (0, 0)):
        path = tmp_path / 'list.csv'
        count = own_images.write_list(path, tmp_path / 'images', per_class, seed)
        rows = lists[per_class, seed] = rows_of(path)
        train = [label for _, label, split in rows if split == 'train']
        assert count == len(train) and {train.count(f'class_{i}') for i in range(3)} == {per_class or 10}
        assert sum(split == 'test' for *_, split in rows) == 10 and len(set(rows)) == len(rows)
    assert set(lists[4, 0]) != set(lists[4, 1]) and set(lists[4, 0]) < set(lists[0, 0]) == set(lists[0, 0])
    assert own_images.write_list(path, tmp_path / 'images' / 'train', 4, 0) == 12  # a folder that is not split
    assert path.read_text(encoding='utf-8').startswith('path,label\n') and path.read_text().count('class_2\n') == 4


@pytest.mark.slow  # 40 s, of which most start image_folder_main
def test_the_table_has_a_line_for_each_number_of_images(data_dir, tmp_path, capsys):
    arguments = [f'--data_dir={data_dir}', f'--output_dir={tmp_path}/out', '--per_class=4', '--per_class=0']
    arguments += ['--set=train_epochs=1', f'--output_json={tmp_path}/table.json']
    assert run(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / 'table.json').read_text())['results']
    for result, count in zip(results, (12, 30), strict=True):
        (figures,) = result['runs']
        assert figures['images'] == count and figures['epochs'] == [1]
        line = next(line for line in reversed(lines) if line.startswith(f'{count:7,}'))
        assert f'{figures["accuracies"][0]:.2%}' in line and f'{figures["peak_bytes"] / 1e9:.2f}' in line
        assert 1e8 < figures['peak_bytes'] < 1e10
    assert run(*arguments) == 0  # nothing is trained again
    assert json.loads((tmp_path / 'table.json').read_text())['results'] == results


@pytest.mark.parametrize(
    'arguments,words',
    [
        ([], ['--output_dir', '--image_folder', '--data_dir']),
        (['--image_folder=x', '--data_dir=y', '--output_dir={tmp}/out'], ['either', '--image_folder', '--data_dir']),
        (['--image_folder=x', '--output_dir={tmp}/out', '--set=seed=3'], ['seed=3', 'flag=value']),
        (['--image_folder=/nowhere', '--output_dir={tmp}/out'], ['/nowhere']),
        (['--data_dir=/nowhere', '--output_dir={tmp}/out'], ['/nowhere', '--data_dir']),
        (['--data_dir=/nowhere', '--output_dir=/proc/1/no'], ['/proc/1/no', '--output_dir']),
        (['--data_dir={data}', '--output_dir={tmp}/out', '--set=resnet_size=-3'], ['--resnet_size=-3', 'log.txt']),
    ],
)
def test_wrong_flags(data_dir, tmp_path, capsys, arguments, words):
    code = run(*(argument.format(tmp=tmp_path, data=data_dir) for argument in arguments))
    errors = capsys.readouterr().err
    assert code == 1 and errors.count('\n') == 1 and all(word in errors for word in words), errors
