"""The ablation leaves one part out at a time, and nothing else."""

import dataclasses
import json

import pytest

from benchmarks import ablation, time_to_accuracy
from official_resnet.command_line.program import run_program


def flat(config):
    return {
        **dataclasses.asdict(config),
        **{f'spec.{name}': value for name, value in dataclasses.asdict(config.spec).items()},
        **{f'augmentation.{name}': value for name, value in dataclasses.asdict(config.augmentation).items()},
        'spec': None,
        'augmentation': None,
    }


def test_one_part_is_left_out(cifar_dir):
    values = ablation.define_flags()
    values(['ablation.py', f'--data_dir={cifar_dir}'])
    whole = time_to_accuracy.config_of(values, 'cifar10', 'fast')
    before = flat(whole)
    for part in ablation.WITHOUT:
        config = ablation.left_out(whole, part)
        found = flat(config)
        changed = {name for name in before if found[name] != before[name]}
        assert len(changed) == {ablation.WHOLE: 0, 'muon': 6}.get(part, 1), (part, changed)
        for name in ('bias_learning_rate_factor', 'head_learning_rate_factor'):  # the rates of these weights stay
            products = [getattr(one, name) * one.learning_rate for one in (config, whole)]
            assert part == 'bias_rate' or products[0] == pytest.approx(products[1]), (part, name)
    sgd = ablation.left_out(whole, 'muon')
    assert sgd.learning_rate == pytest.approx(11.5 / 7.67 * 2000 / 1024, rel=1e-3)  # airbench94's, for a batch of 2000


@pytest.mark.slow  # 10 s, of which most compile two networks
def test_the_table_has_a_line_for_each_part(cifar_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, 'MATRIX_SIZE', 64)
    sets = [f'--set={pair}' for pair in ('train_epochs=2', 'batch_size=24', 'dtype=fp32')]
    arguments = ['--without=nothing', '--without=gelu', '--runs=1', f'--data_dir={cifar_dir}', *sets]
    arguments += [f'--output_dir={tmp_path}/out', f'--output_json={tmp_path}/table.json']
    assert run_program(['ablation.py', *arguments], '', ablation.define_flags(), ablation.run_changes) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads((tmp_path / 'table.json').read_text())['results']
    difference = 100 * (rows[1]['accuracy'] - rows[0]['accuracy'])
    assert [row['recipe'] for row in rows] == ['nothing', 'gelu']
    assert any(line.startswith('gelu ') and line.endswith(f'{difference:+.2f}') for line in lines)


@pytest.mark.parametrize(
    'arguments,words',
    [
        ([], ['--output_dir']),
        (['--output_dir=/tmp/out', '--without=cutout'], ['cutout', 'gelu', 'muon']),
        (['--output_dir=/tmp/out', '--set=seed=3'], ['seed=3', 'flag=value']),
        (['--output_dir=/tmp/out', '--set=train_epochs=-1'], ['train_epochs', '-1']),
        (['--output_dir=/tmp/out', '--data_dir=/nowhere', '--set=download=false'], ['/nowhere']),
    ],
)
def test_wrong_flags(capsys, arguments, words):
    code = run_program(['ablation.py', *arguments], '', ablation.define_flags(), ablation.run_changes)
    errors = capsys.readouterr().err
    assert code == 1 and errors.count('\n') == 1 and all(word in errors for word in words), errors
