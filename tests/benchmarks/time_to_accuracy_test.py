"""The benchmark trains recipes to their end, counts their arithmetic, and keeps what it has trained."""

import json

import pytest

from benchmarks import time_to_accuracy
from official_resnet import resnet_variants
from official_resnet.command_line.program import run_program
from official_resnet.experiments import architecture_table


def run(capsys, *arguments):
    """Run the program; return its exit code, what it printed, and its errors."""
    values = time_to_accuracy.define_flags()
    code = run_program(['time_to_accuracy.py', *map(str, arguments)], '', values, time_to_accuracy.run_recipes)
    return code, *capsys.readouterr()


def test_arithmetic_of_the_paper():
    """ResNet-20 (arXiv:1512.03385 Sec. 4.2): 41 million multiply-adds of an image; 64,000 steps of 128."""
    count = architecture_table.count(resnet_variants.cifar_spec(20, shortcut='A'), 10, (32, 32, 3)).multiply_adds
    assert count == pytest.approx(41e6, rel=0.02)
    assert time_to_accuracy.training_flop(count, 64_000 * 128) == pytest.approx(2e15, rel=0.005)


def test_figures_by_hand():
    runs = [
        {'parameters': 7, 'multiply_adds': 3, 'flop': 3e15, 'epochs': 2, 'accuracy': accuracy}
        | {'train_seconds': seconds, 'seconds': seconds + 20}
        for accuracy, seconds in ((0.5, 100), (0.75, 50), (0.25, 100))
    ]
    rates = [9e13, 8e13, 1e13]  # of which the median counts
    row = time_to_accuracy.summary({'recipe': 'r', 'dtype': 'bf16', 'runs': runs, 'matrix_flop_per_second': rates})
    assert (row['n'], row['accuracy'], row['least_accuracy'], row['greatest_accuracy']) == (3, 0.5, 0.25, 0.75)
    assert row['petaflop'] == 3 and row['minutes'] == pytest.approx((120 + 70 + 120) / 3 / 60)
    assert row['gigaflop_per_second'] == pytest.approx((30e3 + 60e3 + 30e3) / 3)
    assert row['share_of_matrix_product'] == pytest.approx(0.5)
    words = time_to_accuracy.format_table([row]).splitlines()[1].split()
    assert words == ['r', 'bf16', '7', '3', '2', '3', '50.00%', '(25.00%,', '75.00%)', '1.7', '40000.0', '50%']


def test_help_shows_repeated_flags_as_they_are_typed(capsys):
    code, printed, errors = run(capsys, '--help')
    assert (code, errors) == (0, '') and '--recipe TEXT\n' in printed and '--set TEXT\n' in printed
    assert 'A,B' not in printed and 'repeat this option' not in printed


@pytest.mark.slow  # 5 s, of which most compile the same small network again
def test_runs_are_kept_and_continued(tmp_path, capsys, cifar_dir, monkeypatch):
    """The second command trains only the second run; its figures are those of the metrics."""
    monkeypatch.setattr(time_to_accuracy, 'MATRIX_SIZE', 64)
    out, changes = tmp_path / 'runs', ('resnet_size=8', 'batch_size=24', 'train_epochs=1', 'bn_momentum=0.5')
    arguments = ['--recipe=demo', f'--output_dir={out}', f'--data_dir={cifar_dir}', f'--output_json={tmp_path}/t.json']
    arguments += [f'--set={change}' for change in (*changes, 'use_synthetic_data=false')]
    stored, written = [], []
    for count in (1, 2):
        code, printed, errors = run(capsys, *arguments, f'--runs={count}')
        assert (code, errors) == (0, '') and 'demo' in printed
        stored.append(json.loads((tmp_path / 't.json').read_text())['results'][0])
        written.append((out / 'demo/runs/seed_0/metrics.jsonl').read_text())
    assert written[0] == written[1] and stored[0]['runs'] == stored[1]['runs'][:1]
    first, second = stored[1]['runs']
    assert [first['seed'], second['seed'], second['images'], second['epochs']] == [0, 1, 120, 1]
    rows = [json.loads(line) for line in (out / 'demo/runs/seed_1/metrics.jsonl').read_text().splitlines()]
    assert second['accuracy'] == rows[-1]['accuracy'] and second['seconds'] == sum(row['seconds'] for row in rows)
    assert second['flop'] == 6 * second['multiply_adds'] * 120
    assert second['train_seconds'] == rows[0]['seconds'] and stored[1]['share_of_matrix_product'] > 0
    code, _, errors = run(capsys, *arguments, '--set=base_learning_rate=1')
    assert code == 1 and 'base_learning_rate' in errors and '--output_dir' in errors  # a run of other settings


@pytest.mark.parametrize(
    'arguments,words',
    [
        ((), ('--output_dir',)),
        (('--output_dir=x', '--recipe=quick'), ('--recipe=quick', 'demo')),
        (('--output_dir=x', '--set=seed=3'), ('seed=3',)),
        (('--output_dir=x', '--set=sed=3'), ('--sed',)),
        (('--output_dir=x', '--set=batch_size'), ('batch_size',)),
    ],
)
def test_wrong_flags(capsys, arguments, words):
    code, _, errors = run(capsys, *arguments)
    assert code == 1 and errors.count('\n') == 1 and all(word in errors for word in words)
