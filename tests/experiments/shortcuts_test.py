"""The shortcuts and orders of 1603.05027: the rows, a network of each kind trained, a network that fails."""

import json

import pytest
from fixtures import programs

from official_resnet import resnet_variants
from official_resnet.experiments import runs, shortcuts_main

# 1603.05027, ResNet-110 on CIFAR-10, %: Table 1 and Table 2; None is "fail". The order is that of the tables.
PAPER = [6.61, None, 12.35, 8.70, 12.86, 6.91, 12.22, None, 8.17, 7.84, 6.71, 6.37]


@pytest.fixture
def call(cifar_dir, tmp_path):
    line = f'experiments.shortcuts_main --data_dir {cifar_dir} --output_dir {tmp_path} -rs 8 -bs 60 --train_epochs 1'
    return lambda rows: programs.call(f'{line} --dtype fp32 --rows {rows}')


def test_rows_are_the_papers():
    rows = shortcuts_main.ROWS
    assert [row.paper_error for row in rows.values()] == PAPER
    networks = {name: runs.network(110, row.experiment, **row.axes) for name, row in rows.items()}
    assert len({str(network) for network in networks.values()}) == len(PAPER)  # no two networks are the same
    specs = {name: network['spec'] for name, network in networks.items()}
    experiments = {name: network['experiment'] for name, network in networks.items() if network['experiment']}
    assert specs['original'] == resnet_variants.cifar_spec(110, bn_momentum=0.9)
    assert all(spec.group_blocks == (18, 18, 18) for spec in specs.values())
    assert specs['conv_shortcut'].shortcut == 'C' and specs['full_preactivation'].version == '2'
    assert rows.keys() - experiments.keys() == {'original', 'conv_shortcut', 'full_preactivation'}
    assert experiments['exclusive_gate'] == {'gate': 'exclusive', 'gate_bias': -6.0}
    assert experiments['scaled_both'] == {'shortcut_scale': 0.5, 'residual_scale': 0.5}
    assert experiments['dropout_shortcut'] == {'shortcut_dropout': 0.5}


@pytest.mark.whole_runs
def test_two_rows_end_to_end(call, tmp_path):
    code, out, err = call('full_preactivation,original')
    assert code == 0, err
    result = json.loads((tmp_path / 'shortcuts.json').read_text())
    assert list(result['nets']) == ['original', 'full_preactivation']  # in the order of the table
    assert result['settings']['resnet_size'] == 8
    assert result['nets']['original']['paper_error'] == 6.61 and result['nets']['original']['failed'] is None
    assert result['claim']['full_preactivation_is_better_than_the_original'] in (True, False)
    assert result['claim']['identity_is_the_best_shortcut'] is None  # no other shortcut was trained
    assert (tmp_path / 'shortcuts.png').read_bytes()[:4] == b'\x89PNG'
    code, out, _ = call('original')  # fewer rows of the same setting: nothing to train
    assert code == 0 and out.count('already finished') == 1


def test_a_network_that_diverges_is_recorded_as_failed(call, tmp_path, monkeypatch):
    monkeypatch.setitem(runs.PAPER, 'base_learning_rate', 1e30)
    for words in ('failed: ', 'already finished, kept: failed: '):
        code, out, err = call('shortcut_gate')
        assert code == 0 and words in out, (out, err)
    net = json.loads((tmp_path / 'shortcuts.json').read_text())['nets']['shortcut_gate']
    assert 'not finite' in net['failed'] or 'nan' in net['failed']
    assert set(net['final'].values()) == {None} and net['parameters'] == 80_778
    assert (tmp_path / 'shortcuts.png').exists()


@pytest.mark.parametrize(
    'errors,is_identity_best,is_preactivation_better',
    [
        ({'original': 6.6, 'conv_shortcut': 12.2, 'dropout_shortcut': None, 'full_preactivation': 6.4}, True, True),
        ({'original': 6.6, 'shortcut_gate': 6.0}, False, None),
        ({'original': None, 'full_preactivation': 6.0}, None, None),
    ],
)
def test_conclusions(errors, is_identity_best, is_preactivation_better):
    claim = shortcuts_main.judge({name: {'final': {'test_error': error}} for name, error in errors.items()})
    assert list(claim.values()) == [is_identity_best, is_preactivation_better]
