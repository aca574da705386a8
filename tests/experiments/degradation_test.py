"""Plain against residual networks, and what the programs of the experiments share: settings, resume, mistakes."""

import itertools
import json
import os
import pathlib
import signal
import sys

import numpy as np
import pytest
from fixtures import programs

from official_resnet import resnet_model, resnet_run_loop, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import architecture_table, degradation_main, runs
from official_resnet.inputs import datasets
from official_resnet.training import callbacks, optimizers
from official_resnet.training.config import MachineConfig


@pytest.mark.whole_runs
def test_interrupted_continued_and_kept(cifar_dir, tmp_path, monkeypatch):
    line = f'experiments.degradation_main --data_dir {cifar_dir} --output_dir {tmp_path} --depths 8 -bs 16'
    line += ' --train_epochs 2 --dtype fp32 --runs 2 --filters 4 --warmup_epochs 0.5'

    def terminate(progress, epoch, logs):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, 'on_epoch_end', terminate)
        code, out, _ = programs.call(line)
    assert code == 128 + signal.SIGTERM and 'same command' in out
    assert not (tmp_path / 'degradation.json').exists()

    code, out, err = programs.call(line)
    assert code == 0, err
    assert 'plain-8, 1 of 4' in out and 'residual-8-run2, 4 of 4' in out
    assert (tmp_path / 'degradation.png').read_bytes()[:4] == b'\x89PNG'
    result = json.loads((tmp_path / 'degradation.json').read_text())
    assert result['settings']['train_epochs'] == 2 and result['machine']['cpu'] and result['claim'] is None
    assert result['settings']['schedule.warmup_epochs'] == 0.5
    assert result['nets']['plain-8']['curves'] != result['nets']['plain-8-run2']['curves']
    for net in result['nets'].values():
        assert net['curves']['epoch'] == [1, 2] and net['curves']['step'] == [7, 14]  # 120 images
        assert net['curves']['learning_rate'] == pytest.approx([0.1 * 16 / 128, 0.001 * 16 / 128])
        assert (
            net['parameters']
            == architecture_table.count(resnet_variants.cifar_spec(8, filters=4), 10, (32, 32, 3)).parameters
            and net['failed'] is None
        )  # option A adds none
        assert net['final']['train_error'] == net['curves']['train_error'][-1]
        assert 0 <= net['final']['train_error_inference'] <= 100
        assert net['final']['test_error'] == net['curves']['test_error'][-1]

    monkeypatch.setattr(resnet_run_loop, 'train', lambda *args: pytest.fail('trained again'))
    code, out, _ = programs.call(line)
    assert code == 0 and out.count('already finished') == 4
    assert json.loads((tmp_path / 'degradation.json').read_text()) == result

    for name in ('official_resnet.reports.figures', 'matplotlib'):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr('official_resnet.reports.figures')
    code, out, _ = programs.call(line)
    assert code == 0 and "pip install -e '.[plots]'" in out

    assert 'filters 4, not 16' in programs.mistake(line.replace('--filters 4', ''))
    err = programs.mistake(f'{line} --seed 5')
    assert 'seed 0, not 5' in err and '--output_dir' in err


def test_the_error_in_inference_is_that_of_the_training_images(cifar_dir):
    machine = MachineConfig(data_dir=str(cifar_dir))
    config = resnet_run_loop.TrainConfig(resnet_variants.cifar_spec(8), num_train_images=24, machine=machine)
    model = resnet_model.resnet(config.spec, 10, (32, 32, 3))
    model.get_layer('logits').set_weights([np.zeros((64, 10)), np.eye(10)[0]])
    data = datasets.open_split('cifar10', 'train', data_dir=str(cifar_dir))
    expected = 100 * (data.labels[:24] != 0).mean()  # it says 0 whatever it sees
    assert runs.inference_error(model, config) == pytest.approx(expected, abs=1e-3)


def test_a_folder_without_networks_takes_any_setting(tmp_path):
    runs.claim_folder(tmp_path, {'seed': 0})
    runs.claim_folder(tmp_path, {'seed': 1})  # as after a mistake that ended the first command
    (tmp_path / 'runs' / 'plain-20').mkdir(parents=True)
    runs.claim_folder(tmp_path, {'seed': 1})
    with pytest.raises(UserError, match='seed 1, not 2'):
        runs.claim_folder(tmp_path, {'seed': 2})


def test_the_papers_setting_and_quick():
    def config(*args):
        values = degradation_main.define_flags()
        values(['degradation_main.py', '--dtype', 'fp32', *args])
        return runs.train_config(values, 'cifar10', None, 6)

    def rates(config, steps, schedule=None):
        rate = optimizers.make_schedule(schedule or config.schedule, config.learning_rate, 50_000 / 128, 64_350)
        return [round(float(rate(step)), 6) for step in steps]

    paper = config()
    found = (paper.batch_size, paper.max_train_steps, paper.weight_decay, paper.decay, paper.momentum)
    assert found == (128, 64_000, 1e-4, 'all', 0.9)
    assert paper.train_epochs * 390 >= 64_000 and paper.num_train_images is None and paper.augment
    assert rates(paper, [0, 32_000, 32_001, 48_000, 48_001]) == [0.1, 0.1, 0.01, 0.01, 0.001]
    warmed_up = rates(paper, [0, 400, 401, 32_001, 48_001], runs.warmed_up(paper.schedule))
    assert warmed_up == [0.01, 0.01, 0.1, 0.01, 0.001]
    quick = config('--quick')
    assert (quick.train_epochs, quick.num_train_images, quick.max_train_steps) == (6, 10_000, None)
    assert quick.schedule.boundaries == (3, 4.5)
    assert config('--quick', '--train_epochs=2').schedule.boundaries == (1, 1.5)


@pytest.mark.parametrize(
    'runs,plain,residual',
    [
        ([(40.0, 55.5, 38.0, 35.0)], 'worse', 'better'),
        ([(40.0, 30.0, 1.0, 2.0)], 'better', 'worse'),
        ([(40.0, None, 1.0, 2.0)], 'not compared', 'worse'),
        ([(39.0, 55.5, 38.0, 35.0), (41.0, 42.0, 38.0, 39.0)], 'worse', 'neither worse nor better'),
        ([(39.0, 55.5, 2.0, 2.0), (41.0, None, 2.0, 2.0)], 'neither worse nor better', 'neither worse nor better'),
    ],
)
def test_the_claim_holds_in_every_run(runs, plain, residual):
    pairs = list(itertools.product(('plain', 'residual'), (20, 56)))
    nets = {}
    for run, errors in enumerate(runs):
        for pair, error in zip(pairs, errors, strict=True):
            test_error = None if error is None else 50 - error
            final = {'train_error_inference': error, 'test_error': test_error}
            nets[degradation_main.name_of(*pair, run)] = {'final': final}
    claim = degradation_main.judge(nets, 20, 56, len(runs))
    assert 'training error, plain: 20 layers 40.00 %' in claim['text']
    opposite = {'worse': 'better', 'better': 'worse'}
    for kind, expected in (('plain', plain), ('residual', residual)):
        assert claim[kind]['deep_is_train_error_inference'] == expected
        assert claim[kind]['deep_is_test_error'] == opposite.get(expected, expected)


def test_curves_are_means_of_the_runs():
    nets = {'plain-8': {'curves': {'epoch': [1, 2], 'test_error': [50.0, 40.0]}}}
    nets['plain-8-run2'] = {'curves': {'epoch': [1, 2], 'test_error': [60.0, 20.0]}}
    expected = {'epoch': [1, 2], 'test_error': [55, 30]}
    assert degradation_main.mean_curves(nets, 'plain', 8, 2) == expected


def test_every_way_to_start_a_program(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    path = pathlib.Path(degradation_main.__file__)
    for way, folder in ([path.name], path.parent), (['-m', degradation_main.__name__], tmp_path):
        end = programs.run([sys.executable, *way, '--depths='], cwd=folder, env=environment)
        assert end.code == 1 and '6n+2' in end.err
