"""The shortcuts and orders of 1603.05027: the rows, a net of each kind trained, a net that fails."""

import dataclasses
import json

import pytest

from official_resnet import resnet_model, resnet_variants
from official_resnet.experiments import blocks, experiment_program, runs, shortcuts_main
from official_resnet.reports import figures
from official_resnet.training import devices

# 1603.05027, ResNet-110 on CIFAR-10, %: Table 1 and Table 2; None is "fail".
PAPER = {
    'original': 6.61,
    'scaled_shortcut': None,
    'scaled_both': 12.35,
    'exclusive_gate': 8.70,
    'shortcut_gate_0': 12.86,
    'shortcut_gate': 6.91,
    'conv_shortcut': 12.22,
    'dropout_shortcut': None,
    'bn_after_addition': 8.17,
    'relu_before_addition': 7.84,
    'relu_only_preactivation': 6.71,
    'full_preactivation': 6.37,
}


@pytest.fixture
def call(monkeypatch, capsys, cifar_dir, tmp_path):
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)

    def run_here(*args):
        argv = [
            'shortcuts_main.py',
            '--data_dir',
            str(cifar_dir),
            '--output_dir',
            str(tmp_path),
            '-rs',
            '8',
            '-bs',
            '60',
            '--train_epochs',
            '1',
            '--dtype',
            'fp32',
            *args,
        ]
        code = experiment_program.run_experiment(argv, '', shortcuts_main.define_flags(), shortcuts_main.run_shortcuts)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


def test_rows_are_the_papers():
    assert {name: row.paper_error for name, row in shortcuts_main.ROWS.items()} == PAPER
    networks = {name: runs.network(110, row.experiment, **row.axes) for name, row in shortcuts_main.ROWS.items()}
    assert len({str(network) for network in networks.values()}) == len(PAPER)  # no two nets are the same
    specs = {name: network['spec'] for name, network in networks.items()}
    experiments = {name: network['experiment'] for name, network in networks.items() if network['experiment']}
    assert specs['original'] == resnet_variants.cifar_spec(110, bn_momentum=0.9)
    assert all(spec.group_blocks == (18, 18, 18) for spec in specs.values())
    assert specs['conv_shortcut'].shortcut == 'C' and specs['full_preactivation'].version == '2'
    assert PAPER.keys() - experiments.keys() == {'original', 'conv_shortcut', 'full_preactivation'}
    assert experiments['exclusive_gate'] == {'gate': 'exclusive', 'gate_bias': -6.0}
    assert experiments['scaled_both'] == {'shortcut_scale': 0.5, 'residual_scale': 0.5}
    assert experiments['dropout_shortcut'] == {'shortcut_dropout': 0.5}
    for name, experiment in experiments.items():
        resnet_model.resnet(
            dataclasses.replace(specs[name], group_blocks=(1, 1)), 10, (8, 8, 3), blocks.make_block(experiment)
        )


def test_two_rows_end_to_end(call, tmp_path):
    code, out, err = call('--rows', 'full_preactivation,original')
    assert code == 0, err
    result = json.loads((tmp_path / 'shortcuts.json').read_text())
    assert list(result['nets']) == ['original', 'full_preactivation']  # in the order of the table
    assert result['settings']['resnet_size'] == 8
    assert result['nets']['original']['paper_error'] == 6.61 and result['nets']['original']['failed'] is None
    assert result['claim']['full_preactivation_is_better_than_the_original'] in (True, False)
    assert result['claim']['identity_is_the_best_shortcut'] is None  # no other shortcut was trained
    assert (tmp_path / 'shortcuts.png').read_bytes()[:4] == b'\x89PNG'
    code, out, _ = call('--rows', 'original')  # fewer rows of the same setting: nothing to train
    assert code == 0 and out.count('finished before') == 1


def test_a_net_that_diverges_is_recorded_as_failed(call, tmp_path, monkeypatch):
    monkeypatch.setitem(runs.PAPER, 'base_learning_rate', 1e30)
    for words in ('failed: ', 'finished before, kept: failed: '):
        code, out, err = call('--rows', 'shortcut_gate')
        assert code == 0 and words in out, (out, err)
    net = json.loads((tmp_path / 'shortcuts.json').read_text())['nets']['shortcut_gate']
    assert 'not finite' in net['failed'] or 'nan' in net['failed']
    assert set(net['final'].values()) == {None} and net['parameters'] == 80_778
    assert (tmp_path / 'shortcuts.png').exists()


def test_conclusions():
    def judge(**errors):
        return shortcuts_main.judge({name: {'final': {'test_error': error}} for name, error in errors.items()})

    assert judge(original=6.6, conv_shortcut=12.2, dropout_shortcut=None, full_preactivation=6.4) == {
        'identity_is_the_best_shortcut': True,
        'full_preactivation_is_better_than_the_original': True,
    }
    assert judge(original=6.6, shortcut_gate=6.0)['identity_is_the_best_shortcut'] is False
    assert judge(original=None, full_preactivation=6.0)['full_preactivation_is_better_than_the_original'] is None


def test_the_figure_of_the_papers_numbers(tmp_path):
    rows = [
        (row.label, {'train_error': 0.0, 'test_error': row.paper_error}, row.paper_error)
        for row in shortcuts_main.ROWS.values()
    ]
    path = figures.error_bars(rows, tmp_path / 'bars.png', ('ours', 'theirs'))
    assert path.read_bytes()[:4] == b'\x89PNG'
