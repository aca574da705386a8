"""The arithmetic of scaling: by hand, against simulations, against published figures; and the program."""

import json
import math
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import scaling, scaling_measures, scaling_model
from official_resnet.command_line.program import run_program

RESNET50 = {'parameters': 25557032, 'state': 53120, 'multiply_adds': 4089184256, 'activations': 20923392}
FREE = {'decode': 1e9, 'read': 1e12, 'save': 0, 'save_byte': 0, 'evaluate': 0, 'order': 0, 'kept': 1.25}
GRADIENTS, LATENCY = 4 * RESNET50['parameters'], 5e-6


def constants(**changes):
    """The assumptions, with an input, checkpoints and evaluations that cost nothing."""
    return {name: value for name, (value, *_) in scaling_model.ASSUMED.items()} | FREE | changes


def predict(n=8, **changes):
    return scaling_model.predict(RESNET50, constants(**changes), n)


# --- the arithmetic ------------------------------------------------------------------------------------------


def test_expected_maximum():
    for n in (2, 8, 64, 1024):
        sampled = np.random.default_rng(0).standard_normal((4000, n)).max(1).mean()
        assert scaling_model.expected_maximum(n) == pytest.approx(sampled, abs=0.03)


def test_published_figures():
    """NVIDIA's README of ResNet-50 v1.5 for TensorFlow: 2375 images/s on one A100, from which the efficiency comes."""
    one = predict(1)
    assert one['images_per_second'] == pytest.approx(2375, rel=0.01)
    assert one['all_reduce'] == 0 and one['batch'] == 256 and one['memory'] < 40e9
    for packs in (1, 4):  # 17400 on eight, to which nothing here was fitted
        assert predict(8, packs=packs)['images_per_second'] == pytest.approx(17400, rel=0.05)


def test_the_parts_are_an_epoch():
    c = constants(decode=100.0, save=1.0, save_byte=1e-9, evaluate=2.0, order=1e-6)
    for n in (1, 8, 12, 1024, 10**6):
        row = scaling_model.predict(RESNET50, c, n)
        assert sum(row['parts'].values()) == pytest.approx(1) and min(row['parts'].values()) >= 0
        assert row['step'] * (c['images'] // row['global_batch'] or 1) <= row['epoch']
        assert row['global_batch'] <= max(c['max_batch'], n)


@pytest.mark.parametrize(
    'changes,bottleneck',
    [
        ({'link': 1e15, 'latency': 0, 'jitter': 0}, 'arithmetic'),
        ({'link': 1e9}, 'all-reduce'),
        ({'jitter': 0.5}, 'stragglers'),
        ({'decode': 50.0}, 'input cores'),
        ({'read': 5000.0}, 'reading thread'),
        ({'disk': 1e8}, 'disk'),
        ({'memory': 8e9}, 'memory'),
        ({'save': 60.0}, 'checkpoints'),
        ({'evaluate': 60.0}, 'evaluation'),
        ({'order': 1e-4}, 'epoch order'),
        ({'overhead': 0.1}, 'overhead'),
    ],
)
def test_each_bottleneck_is_named(changes, bottleneck):
    assert predict(**changes)['bottleneck'] == bottleneck and bottleneck in scaling_model.ADVICE


def test_a_slow_input_sets_the_step():
    row = predict(16, decode=10.0)
    assert row['images_per_second'] == pytest.approx(2 * 128 * 10)  # two hosts of 128 cores
    assert row['cores'] > 128  # what it would take


def test_checkpoints_of_an_epoch():
    """There is one at its end, and one after every ten minutes of it."""
    row = predict(save=1.0, flops=1e12, efficiency=1.0)
    inside = row['epoch'] * (1 - row['parts']['checkpoints']) // 600
    assert inside > 1 and row['parts']['checkpoints'] * row['epoch'] == pytest.approx(1 + inside)


# --- the same, simulated -------------------------------------------------------------------------------------


def simulate_ring(starts, size, link, latency=LATENCY):
    """Return when each worker has the sum, from when each begins: chunks travel separately, none overtakes another."""
    chunk, have, free = size / len(starts) / link, np.array(starts, float), np.array(starts, float)
    for _ in range(2 * (len(starts) - 1)):
        free = np.maximum(have, free) + chunk
        have = np.roll(free, 1) + latency
    return np.maximum(have, free)


def simulate_step(n, forward, backward, link, packs=1, jitter=0.0, steps=50):
    """Return the mean seconds of steps of n workers, each with a random speed."""
    random, now = np.random.default_rng(0), np.zeros(n)
    for _ in range(steps):
        pace = 1 + jitter * random.standard_normal(n)
        network = now
        for pack in range(packs):
            ready = now + pace * (forward + backward * (pack + 1) / packs)
            network = simulate_ring(np.maximum(ready, network), GRADIENTS / packs, link)
        now = np.maximum(network, now + pace * (forward + backward))
    return float(now.max() / steps)


@pytest.mark.parametrize('n', [3, 64])
@pytest.mark.parametrize('packs', [1, 4])
def test_simulated_steps(n, packs):
    """Exact without stragglers; with them within 3 %: the slowest of n sets the pace of all."""
    for link, jitter, steps, error in ((2e10, 0, 3, 1e-6), (2e9, 0, 3, 1e-6), (2e10, 0.05, 40, 0.03)):
        exchange = scaling_model.ring_seconds(n, GRADIENTS, link, packs * LATENCY)
        wait = 0.09 * jitter * scaling_model.expected_maximum(n)
        simulated = simulate_step(n, 0.03, 0.06, link, packs, jitter, steps)
        assert simulated == pytest.approx(scaling_model.step_seconds(0.03, 0.06, exchange, packs) + wait, rel=error)


# --- what is measured ----------------------------------------------------------------------------------------


def test_the_line_through_measurements():
    assert scaling_model.line([{'x': x, 'y': 3 + 2 * x} for x in (1, 2, 4)], 'x', 'y') == pytest.approx((3, 2))
    assert scaling_model.line([{'x': x, 'y': 5 - x} for x in (1, 2, 4)], 'x', 'y') == pytest.approx((5, 0))  # no gain


def test_a_network_is_described():
    assert scaling_measures.measure_net('resnet50_v1.5') == RESNET50
    arrays = 2 * RESNET50['parameters'] + RESNET50['state']  # weights, momentum, BN
    assert scaling_model.checkpoint_bytes(RESNET50) == 4 * arrays == 204668736


def test_two_workers_are_predicted_from_their_constants():
    def worker(slowness):
        turns = {'alone': [1.0 * slowness, 1.2], 'together': [1.5, 1.6], '256': [0.01, 0.01], '1000256': [0.11, 0.11]}
        rows = [{'turn': name, 'seconds': values} for name, values in turns.items()]
        return {'turns': rows, 'gradient_bytes': 2_900_000, 'state_bytes': 100_000}

    found = scaling.predict_pair([worker(1), worker(1.1)])
    assert found['alone'] == pytest.approx(1.15)  # of the slower one in each turn
    assert found['predicted'] == pytest.approx(1.15 + 3 * 0.01 + 0.3) and found['measured'] == 1.55


# --- the program ---------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """What --output_json writes, of invented measurements."""

    def rows(x, y, slope, **more):
        return [{x: count, y: slope * count, 'bytes': 20 * count, **more} for count in (1, 2, 4)]

    checkpoint = [{'bytes': n, 'save_seconds': 1e-9 * n, 'restore_seconds': 20 * n} for n in (1, 2, 4)]
    found = {
        'index': rows('records', 'seconds', 1e-6),
        'order': rows('images', 'seconds', 1e-7),
        'checkpoint': checkpoint,
        'evaluation': rows('images', 'seconds', 1e-3),
        'memory': rows('batch', 'peak_bytes', 1e8, activations=2e7),
        'input': {'images_per_core_second': [390.0, 400.0, 410.0], 'records_per_second': 5e4},
    }
    path = tmp_path / 'stored.json'
    path.write_text(json.dumps({'found': found, 'machine': 'of a test'}))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the program, which describes networks in this process; return (code, standard output, standard error)."""
    monkeypatch.setattr(scaling, 'result', lambda task, name: getattr(scaling_measures, f'measure_{task}')(name))

    def run_here(*arguments):
        argv = ['scaling.py', *arguments]
        code = run_program(argv, scaling.__doc__, scaling.define_flags(), scaling.run_scaling)
        return code, *capsys.readouterr()

    return run_here


def test_estimate_from_stored_measurements(stored, tmp_path, run):
    output = tmp_path / 'out.json'
    arguments = [f'--output_json={output}', '--set=link=1e9', '--accelerators=8,64']
    code, out, err = run(f'--input_json={stored}', *arguments)
    assert (code, err) == (0, '')
    assert 'link 1,000,000,000 ' in out and '(--set)' in out and 'decode 400 ' in out and out.endswith('of a test\n')
    written = json.loads(output.read_text())
    bottlenecks = [(row['accelerators'], row['bottleneck']) for row in written['rows']]
    assert bottlenecks == [(8, 'all-reduce'), (64, 'all-reduce')] and scaling_model.ADVICE['all-reduce'] in out
    assert all(math.isfinite(value) for value in written['constants'].values())
    assert run(f'--input_json={output}')[0] == 0  # what it writes it reads


@pytest.mark.parametrize(
    'argument,expected',
    [
        ('--set=speed=3', "'speed=3'"),
        ('--set=link=nan', "'link=nan'"),
        ('--set=link', "'link'"),
        ('--accelerators=8,x', '1..1000000'),
        ('--accelerators=9999999', '1..1000000'),
        ('--variant=resnet51', "'resnet51'"),
        ('--input_json=/nowhere/a.json', "'/nowhere/a.json'"),
        ('--input_json={tmp_path}/list.json', "list.json'"),
        ('--input_json={tmp_path}/half.json', "half.json'"),
    ],
)
def test_mistakes_are_one_line(argument, expected, tmp_path, run):
    """Those that it shares with speed are in the table of wrong inputs."""
    (tmp_path / 'list.json').write_text('[1]')
    half = {'found': {'order': [], 'input': {}, 'checkpoint': []}, 'machine': ''}
    (tmp_path / 'half.json').write_text(json.dumps(half))
    code, _, err = run(argument.format(tmp_path=tmp_path))
    assert code == 1 and expected.format(tmp_path=tmp_path) in err and err.count('\n') == 1 and 'Traceback' not in err


@pytest.mark.slow
def test_the_whole_measurement_at_a_tenth(tmp_path):
    """Counts and bytes are exact, and two real workers send what the arithmetic says."""
    output = tmp_path / 'out.json'
    command = [sys.executable, '-m', 'benchmarks.scaling', '--size=0.1', f'--output_json={output}']
    subprocess.run(command, check=True, env=os.environ | {'CUDA_VISIBLE_DEVICES': '-1'}, timeout=600)
    found = json.loads(output.read_text())['found']
    assert [row['records'] for row in found['index']] == [2000, 4000, 8000]
    assert scaling_model.line(found['index'], 'records', 'bytes')[1] == pytest.approx(20, rel=0.15)  # 2 int64, an int32
    assert [row['images'] for row in found['order']] == [32029, 64058, 128116]
    sizes = [row['bytes'] for row in found['checkpoint']]
    assert sizes[2] - sizes[0] == 3 * 100 * 12800 * 4  # of float32
    assert [row['images'] for row in found['evaluation']] == [50, 100, 200]
    assert found['input']['images'] == 8 and 50e3 < found['input']['image_bytes'] < 200e3
    turns = {row['turn']: row for row in found['workers'][0]['turns']}
    largest = max((name for name in turns if name.isdigit()), key=int)
    assert turns[largest]['loopback_bytes'] == pytest.approx(2 * int(largest), rel=0.05)  # 2 workers send all of it
    assert 0.5 < scaling.predict_pair(found['workers'], 'cpu_seconds')['ratio'] < 2
    assert statistics.median(turns['together']['seconds']) > 0
