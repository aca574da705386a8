"""The evaluation report on pictures that can be counted by hand."""

import csv
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from official_resnet.errors import UserError
from official_resnet.reports import evaluate

NAMES = ['ant', 'bee', 'cow', 'dog, wild', 'Käfer', 'fly', 'gnu']
IDS = [f'n{i:08}' for i in range(7)]
LABELS = [0, 0, 0, 0, 1, 1, 2, 3, 4, 6]
GUESSES = [
    [0, 1, 2, 3, 4],
    [1, 0, 2, 3, 4],
    [1, 2, 3, 4, 5],
    [2, 1, 3, 4, 0],  # of 4 ants 1 is right, 3 among five
    [1, 0, 2, 3, 4],
    [1, 0, 2, 3, 4],
    [0, 1, 3, 4, 5],
    [3, 0, 1, 2, 4],
    [4, 0, 1, 2, 3],
    [4, 0, 1, 2, 6],
]


def found(**changes):
    return evaluate.report(**{'labels': LABELS, 'guesses': GUESSES, 'names': NAMES, 'ids': IDS} | changes)


def test_counted_by_hand():
    result = found()
    assert (result['n'], result['top1'], result['top5']) == (10, 0.5, 0.8)
    assert result['classes'][0] == {
        'class': 0,
        'name': 'ant',
        'id': 'n00000000',
        'count': 4,
        'top1': 0.25,
        'top5': 0.75,
    }
    assert [row['count'] for row in result['classes']] == [4, 2, 1, 1, 1, 0, 1]
    assert [row['top1'] for row in result['classes']] == [0.25, 1, 0, 1, 1, None, 0]
    assert [row['top5'] for row in result['classes']] == [0.75, 1, 0, 1, 1, None, 1]
    assert [tuple(pair.values()) for pair in result['confusions']] == [
        (0, 1, 2, 0.5),
        (0, 2, 1, 0.25),
        (2, 0, 1, 1.0),
        (6, 4, 1, 1.0),
    ]  # equal ones by their classes
    assert json.loads(json.dumps(result)) == result


def test_few_classes_or_guesses_have_no_top5():
    few = evaluate.report(np.array([0, 4], np.int32), np.array([[0, 1, 2, 3, 4]] * 2), list('abcde'))
    assert few['top5'] is None and few['top1'] == 0.5 and {row['top5'] for row in few['classes']} == {None}
    assert {row['id'] for row in few['classes']} == {None}
    one = found(guesses=[row[:1] for row in GUESSES])
    assert one['top5'] is None and one['top1'] == 0.5 and one['confusions'] == found()['confusions']


def test_no_pictures():
    nothing = found(labels=np.zeros(0, np.int32), guesses=np.zeros((0, 5), np.int32))
    assert (nothing['n'], nothing['top1'], nothing['top5'], nothing['confusions']) == (0, None, None, [])
    assert evaluate.format_report(nothing) == ['0 images of 0 classes: no accuracy']


def test_lines():
    assert evaluate.format_report(found()) == [
        '10 images of 6 classes: top-1 50.00%, top-5 80.00%',
        'classes, the worst first:',
        '  top-1   0.00%, top-5   0.00%  of    1  n00000002 cow',
        '  top-1   0.00%, top-5 100.00%  of    1  n00000006 gnu',
        '  top-1  25.00%, top-5  75.00%  of    4  n00000000 ant',
        '  top-1 100.00%, top-5 100.00%  of    2  n00000001 bee',
        '  top-1 100.00%, top-5 100.00%  of    1  n00000003 dog, wild',
        '  top-1 100.00%, top-5 100.00%  of    1  n00000004 Käfer',
        'taken for another class most often:',
        '     2,  50.0% of  n00000000 ant  ->  n00000001 bee',
        '     1,  25.0% of  n00000000 ant  ->  n00000002 cow',
        '     1, 100.0% of  n00000002 cow  ->  n00000000 ant',
        '     1, 100.0% of  n00000006 gnu  ->  n00000004 Käfer',
    ]
    short = evaluate.format_report(found(ids=None), rows=2)
    assert [line.rpartition('of ')[2].split(None, 1)[-1] for line in short[2:4]] == ['cow', 'gnu']
    assert short[1] == 'the worst classes:' and short[4] == 'the best classes:' and len(short) == 10
    assert short[5].endswith('Käfer') and short[6].endswith('dog, wild') and short[8].endswith('ant  ->  bee')


def test_files(tmp_path):
    folder = tmp_path / 'new' / 'report'
    result = found()
    for _ in range(2):  # again, over the old ones
        evaluate.write(result, folder)
        assert sorted(path.name for path in folder.iterdir()) == ['confusion.csv', 'per_class.csv', 'report.json']
    assert json.loads((folder / 'report.json').read_text(encoding='utf-8')) == result
    with open(folder / 'per_class.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows[3] == {'class': '3', 'name': 'dog, wild', 'id': 'n00000003', 'count': '1', 'top1': '1.0', 'top5': '1.0'}
    assert rows[5]['top1'] == '' and rows[4]['name'] == 'Käfer' and len(rows) == 7
    with open(folder / 'confusion.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert (
        rows[0]
        == {
            'true': 'ant',
            'true_id': 'n00000000',
            'guessed': 'bee',
            'guessed_id': 'n00000001',
            'count': '2',
            'share': '0.5',
        }
        and len(rows) == 4
    )


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('x')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match=f"^cannot write the report into '{folder}': .* pass another folder$"):
            evaluate.write(found(), folder)


@pytest.mark.parametrize(
    'changes,message',
    [
        ({'labels': LABELS[:-1]}, r'labels \(9,\) and guesses \(10, 5\)'),
        ({'guesses': LABELS}, 'guesses'),
        ({'guesses': [row + [0] for row in GUESSES]}, r'\[n, 1\.\.5\]'),
        ({'labels': [7] * 10}, r'in 0\.\.6'),
        ({'labels': [-1] * 10}, r'in 0\.\.6'),
        ({'guesses': np.full((10, 1), 9)}, r'in 0\.\.6'),
        ({'labels': np.zeros(10)}, 'integers'),
        ({'ids': IDS[:-1]}, '6 ids'),
    ],
)
def test_wrong_arrays(changes, message):
    with pytest.raises(ValueError, match=message):
        found(**changes)


def test_a_thousand_classes_take_no_time():
    random = np.random.default_rng(0)
    labels, guesses = np.arange(50_000) % 1000, random.integers(0, 1000, (50_000, 5))
    start = time.perf_counter()
    result = evaluate.report(labels, guesses, [f'class {i}' for i in range(1000)])
    lines = evaluate.format_report(result)
    assert time.perf_counter() - start < 10
    assert len(lines) == 1 + 11 + 11 + 11 and len(result['confusions']) < 50_000
    assert sum(pair['count'] for pair in result['confusions']) == (guesses[:, 0] != labels).sum()
    assert sum(row['count'] for row in result['classes']) == 50_000


def test_it_needs_no_tensorflow():
    code = (
        'import sys; from official_resnet.reports import evaluate; print({"tensorflow", "keras"} & sys.modules.keys())'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout == 'set()\n'
