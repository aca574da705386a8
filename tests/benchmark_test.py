"""The benchmark measures and prints what it says, and ends its processes."""
import json

import pytest

from official_resnet import benchmark_main, resnet_flags
from official_resnet.errors import UserError


def test_table_and_ratios():
    rates = {'ours': [10.0, 40.0, 30.0], 'keras': [5.0, 10.0, 20.0]}
    lines = benchmark_main.format_table([('train', 'fp32', rates), ('input', 'fp32', {'ours': [7.0]})]).splitlines()
    assert lines[1].split() == ['train', 'fp32', 'ours', '3', '10.0', '30.0', '40.0']
    assert lines[2].split() == ['train', 'fp32', 'keras', '3', '5.0', '10.0', '20.0', '2.00']  # median of 2, 4, 1.5
    assert lines[3].split() == ['input', 'fp32', 'ours', '1', '7.0', '7.0', '7.0']


def test_a_tiny_run(tmp_path, capsys):
    argv = ['benchmark_main.py', '-rs', '8', '-bs', '16', '--runs', '2', '--steps', '1', '--dtype', 'fp32',
            '--system', 'ours', '--system', 'keras', '--measure', 'input', '--measure', 'forward', '--measure', 'train',
            '--output_json', str(tmp_path / 'b.json')]
    code = resnet_flags.run_program(argv, '', benchmark_main.define_flags(), benchmark_main.run_benchmark)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    stored = json.loads((tmp_path / 'b.json').read_text())['results']
    assert [(row['measure'], sorted(row['images_per_second'])) for row in stored] == [
        ('input', ['ours']), ('forward', ['keras', 'ours']), ('train', ['keras', 'ours'])]
    assert all(rate > 0 for row in stored for rates in row['images_per_second'].values() for rate in rates)
    assert 'tensorflow 2.21' in out and 'cores' in out


def test_a_process_that_ends_is_one_line():
    with pytest.raises(UserError, match='the process of nothing ended: KeyError'):
        benchmark_main.Worker('nothing', 'fp32', 8, 1)


@pytest.mark.parity
def test_inference_against_every_peer(monkeypatch, capsys):
    """All five systems run and answer; their speeds are for quieter machines."""
    monkeypatch.setattr(benchmark_main, 'INFERENCE_BATCH', 1)
    argv = ['benchmark_main.py', '--measure=inference', '--runs', '1', '--steps', '1']
    code = resnet_flags.run_program(argv, '', benchmark_main.define_flags(), benchmark_main.run_benchmark)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    rows = [line.split()[:3] for line in out.splitlines() if line.startswith('inference')]
    systems = ['ours', 'applications', 'predict', 'torch', 'onnx']
    assert rows == [['inference', 'fp32', name] for name in systems] + [
        ['inference', 'bf16', name] for name in systems[:-1]]
