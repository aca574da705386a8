"""The evaluation report on images that can be counted by hand."""

import csv
import json

import numpy as np
import pytest

from official_resnet.errors import UserError
from official_resnet.reports import evaluate

NAMES = ['ant', 'bee', 'cow', 'dog, wild', 'Käfer', 'fly', 'gnu']
IDS = [f'n{i:08}' for i in range(7)]
LABELS = [0, 0, 0, 0, 1, 1, 2, 3, 4, 6]
GUESSES = [
    [int(digit) for digit in word] for word in '01234 10234 12345 21340 10234 10234 01345 30124 40123 40126'.split()
]
# of 4 ants 1 is right, 3 among five


def found(**changes):
    return evaluate.report(**{'labels': LABELS, 'guesses': GUESSES, 'names': NAMES, 'ids': IDS} | changes)


def test_counted_by_hand():
    result = found()
    assert (result['n'], result['top1'], result['top5']) == (10, 0.5, 0.8)
    assert [row['class'] for row in result['classes']] == list(range(7))
    assert [row['name'] for row in result['classes']] == NAMES and [row['id'] for row in result['classes']] == IDS
    assert [row['count'] for row in result['classes']] == [4, 2, 1, 1, 1, 0, 1]
    assert [row['top1'] for row in result['classes']] == [0.25, 1, 0, 1, 1, None, 0]
    assert [row['top5'] for row in result['classes']] == [0.75, 1, 0, 1, 1, None, 1]
    pairs = [tuple(pair.values()) for pair in result['confusions']]  # equal ones by their classes
    assert pairs == [(0, 1, 2, 0.5), (0, 2, 1, 0.25), (2, 0, 1, 1.0), (6, 4, 1, 1.0)]


def test_few_classes_or_guesses_have_no_top5():
    few = evaluate.report(np.array([0, 4], np.int32), np.array([[0, 1, 2, 3, 4]] * 2), list('abcde'))
    assert few['top5'] is None and few['top1'] == 0.5 and {row['top5'] for row in few['classes']} == {None}
    assert {row['id'] for row in few['classes']} == {None}
    one = found(guesses=[row[:1] for row in GUESSES])
    assert one['top5'] is None and one['top1'] == 0.5 and one['confusions'] == found()['confusions']


def test_no_images():
    nothing = found(labels=np.zeros(0, np.int32), guesses=np.zeros((0, 5), np.int32))
    assert (nothing['n'], nothing['top1'], nothing['top5'], nothing['confusions']) == (0, None, None, [])
    assert len(evaluate.format_report(nothing)) == 1


def test_lines():
    head, _, *lines = evaluate.format_report(found())
    assert head.split()[:4] == ['10', 'images', 'of', '6'] and head.endswith('top-1 50.00%, top-5 80.00%')
    assert [' '.join(line.split()) for line in lines[:6] + lines[7:]] == [
        'top-1 0.00%, top-5 0.00% of 1 n00000002 cow',
        'top-1 0.00%, top-5 100.00% of 1 n00000006 gnu',
        'top-1 25.00%, top-5 75.00% of 4 n00000000 ant',
        'top-1 100.00%, top-5 100.00% of 2 n00000001 bee',
        'top-1 100.00%, top-5 100.00% of 1 n00000003 dog, wild',
        'top-1 100.00%, top-5 100.00% of 1 n00000004 Käfer',
        '2, 50.0% of n00000000 ant -> n00000001 bee',
        '1, 25.0% of n00000000 ant -> n00000002 cow',
        '1, 100.0% of n00000002 cow -> n00000000 ant',
        '1, 100.0% of n00000006 gnu -> n00000004 Käfer',
    ]
    short = evaluate.format_report(found(ids=None), rows=2)
    ends = ['cow', 'gnu', 'Käfer', 'dog, wild', 'ant  ->  bee', 'ant  ->  cow']  # the two worst, best, most confused
    rows = [line for line in short[1:] if not line.endswith(':')]
    assert len(rows) == len(ends) and all(line.endswith(end) for line, end in zip(rows, ends, strict=True))


def test_files(tmp_path):
    folder, result = tmp_path / 'new' / 'report', found()
    for _ in range(2):  # again, over the old ones
        evaluate.write(result, folder)
        assert sorted(path.name for path in folder.iterdir()) == ['confusion.csv', 'per_class.csv', 'report.json']
    assert json.loads((folder / 'report.json').read_text(encoding='utf-8')) == result
    tables = {}
    for name in ('per_class', 'confusion'):
        with open(folder / f'{name}.csv', encoding='utf-8-sig', newline='') as file:
            tables[name] = list(csv.DictReader(file))
    wild = {'class': '3', 'name': 'dog, wild', 'id': 'n00000003', 'count': '1', 'top1': '1.0', 'top5': '1.0'}
    assert tables['per_class'][3] == wild and len(tables['per_class']) == 7
    assert tables['per_class'][5]['top1'] == '' and tables['per_class'][4]['name'] == 'Käfer'
    ants = {'true': 'ant', 'true_id': IDS[0], 'guessed': 'bee', 'guessed_id': IDS[1], 'count': '2', 'share': '0.5'}
    assert tables['confusion'][0] == ants and len(tables['confusion']) == 4


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('x')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match=f"'{folder}'.* another folder"):
            evaluate.write(found(), folder)


@pytest.mark.parametrize(
    'changes,message',
    [
        ({'labels': LABELS[:-1]}, r'\(9,\).*\(10, 5\)'),
        ({'guesses': [row + [0] for row in GUESSES]}, r'1\.\.5'),
        ({'labels': [7] * 10}, r'0\.\.6'),
        ({'guesses': np.full((10, 1), -1)}, r'0\.\.6'),
        ({'ids': IDS[:-1]}, '6 ids'),
    ],
)
def test_wrong_arrays(changes, message):
    with pytest.raises(ValueError, match=message):
        found(**changes)
