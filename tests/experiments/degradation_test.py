"""Plain against residual nets, and what the programs of the experiments share: settings, resume, mistakes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from official_resnet import resnet_model, resnet_run_loop, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import degradation_main, experiment_program, gradient_flow_main, runs, shortcuts_main
from official_resnet.training import callbacks, devices, optimizers
from official_resnet.training.config import MachineConfig

FOLDER = pathlib.Path(degradation_main.__file__).parent
PROGRAMS = {
    'degradation_main': (degradation_main, degradation_main.run_degradation),
    'gradient_flow_main': (gradient_flow_main, gradient_flow_main.run_gradient_flow),
    'shortcuts_main': (shortcuts_main, shortcuts_main.run_shortcuts),
}
TINY = ('--depths', '8', '-bs', '16', '--train_epochs', '2', '--dtype', 'fp32')


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program in this process, which has TensorFlow already; return exit code, output, errors."""
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)

    def run_here(program, *args):
        module, body = PROGRAMS[program]
        argv = [f'{program}.py', *map(str, args)]
        code = experiment_program.run_experiment(argv, module.__doc__, module.define_flags(), body)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


def test_interrupted_continued_and_kept(call, cifar_dir, tmp_path, monkeypatch):
    args = ['degradation_main', '--data_dir', cifar_dir, '--output_dir', tmp_path, *TINY]

    def terminate(progress, epoch, logs):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, 'on_epoch_end', terminate)
        code, out, _ = call(*args)
    assert code == 128 + signal.SIGTERM and 'the same command continues' in out
    assert not (tmp_path / 'degradation.json').exists()

    code, out, err = call(*args)
    assert code == 0, err
    assert 'continuing from' in out and 'plain-8, 1 of 2' in out and 'residual-8, 2 of 2' in out
    assert (tmp_path / 'degradation.png').read_bytes()[:4] == b'\x89PNG'
    result = json.loads((tmp_path / 'degradation.json').read_text())
    assert result['settings']['train_epochs'] == 2 and result['machine']['cpu'] and result['claim'] is None
    for net in result['nets'].values():
        assert net['curves']['epoch'] == [1, 2] and net['curves']['step'] == [7, 14]  # 120 pictures
        assert net['curves']['learning_rate'] == pytest.approx([0.1 * 16 / 128, 0.001 * 16 / 128])
        assert net['parameters'] == 75_290 and net['failed'] is None  # option A adds none
        assert net['final']['train_error'] == net['curves']['train_error'][-1]
        assert 0 <= net['final']['train_error_inference'] <= 100
        assert net['final']['test_error'] == net['curves']['test_error'][-1]

    monkeypatch.setattr(resnet_run_loop, 'train', lambda *args: pytest.fail('trained again'))
    code, out, _ = call(*args)
    assert code == 0 and out.count('finished before') == 2
    assert json.loads((tmp_path / 'degradation.json').read_text()) == result

    for name in ('official_resnet.reports.figures', 'matplotlib'):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr('official_resnet.reports.figures')
    code, out, _ = call(*args)
    assert code == 0 and "pip install 'official-resnet[plots]'" in out

    code, _, err = call(*args, '--seed', '5')
    assert code == 1 and err.count('\n') == 1 and 'seed 0, not 5' in err and '--output_dir' in err


def test_the_error_in_inference_is_that_of_the_training_pictures(cifar_dir):
    config = resnet_run_loop.TrainConfig(
        resnet_variants.cifar_spec(8), num_train_images=24, machine=MachineConfig(data_dir=str(cifar_dir))
    )
    model = resnet_model.resnet(config.spec, 10, (32, 32, 3))
    model.get_layer('logits').set_weights([np.zeros((64, 10)), np.eye(10)[0]])
    data = runs.datasets.open_split('cifar10', 'train', data_dir=str(cifar_dir))
    expected = 100 * (data.labels[:24] != 0).mean()  # it says 0 whatever it sees
    assert runs.inference_error(model, config) == pytest.approx(expected, abs=1e-3)


def test_a_folder_without_nets_takes_any_setting(tmp_path):
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
    assert (paper.batch_size, paper.max_train_steps, paper.weight_decay, paper.decay, paper.momentum) == (
        128,
        64000,
        1e-4,
        'all',
        0.9,
    )
    assert paper.train_epochs * 390 >= 64000 and paper.num_train_images is None and paper.augment
    assert rates(paper, [0, 32000, 32001, 48000, 48001]) == [0.1, 0.1, 0.01, 0.01, 0.001]
    assert rates(paper, [0, 400, 401, 32001, 48001], runs.warmed_up(paper.schedule)) == [0.01, 0.01, 0.1, 0.01, 0.001]
    quick = config('--quick')
    assert (quick.train_epochs, quick.num_train_images, quick.max_train_steps) == (6, 10_000, None)
    assert quick.schedule.boundaries == (3, 4.5)
    assert config('--quick', '--train_epochs=2').schedule.boundaries == (1, 1.5)


def test_the_claim():
    def claim(*errors):
        names = ('plain-20', 'plain-56', 'residual-20', 'residual-56')
        return degradation_main.judge(
            {name: {'final': {'train_error_inference': error}} for name, error in zip(names, errors, strict=True)},
            20,
            56,
        )

    seen = claim(40.0, 55.5, 38.0, 35.0)
    assert seen['plain']['is_deep_worse'] is True and seen['residual']['is_deep_worse'] is False
    assert '20 layers 40.00 %, 56 layers 55.50 %: degradation' in seen['text']
    assert claim(40.0, 30.0, 1.0, 2.0)['residual']['is_deep_worse'] is True
    assert claim(40.0, None, 1.0, 2.0)['plain']['is_deep_worse'] is None


@pytest.mark.parametrize('program', PROGRAMS)
def test_mistakes_are_one_line_and_help_answers_at_once(call, program, tmp_path):
    wrong = [
        (['--no_such_flag'], 'no_such_flag'),
        (['--data_dir', tmp_path, '--nodownload'], 'cifar-10-batches-bin'),
        (['--use_synthetic_data', '--output_dir', tmp_path / 'file'], 'output_dir'),
    ]
    wrong += {
        'degradation_main': [
            (['--depths', '20,57'], '6n+2'),
            (['--depths='], '6n+2'),
            (['--train_epochs', '0'], 'train_epochs'),
            (['--use_synthetic_data', '--num_train_images', '99999'], '99999'),
        ],
        'shortcuts_main': [(['--rows', 'original,no_such'], 'conv_shortcut'), (['-rs', '9'], '6n+2')],
        'gradient_flow_main': [(['--activations', 'tanh'], 'sigmoid'), (['--init', 'zeros'], 'normal_0.01')],
    }[program]
    (tmp_path / 'file').write_text('x')
    for args, message in wrong:
        code, _, err = call(program, '--output_dir', tmp_path / 'out', *args)
        assert code == 1 and err.count('\n') == 1 and message in err, (args, err)

    def seconds():
        begin = time.monotonic()
        subprocess.run([sys.executable, str(FOLDER / f'{program}.py'), '--help'], check=True, capture_output=True)
        return time.monotonic() - begin

    assert min(seconds() for _ in range(3)) < 1  # the best of three: the machine may be busy


def test_every_way_to_start_a_program(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    for command, folder in (
        ([sys.executable, 'degradation_main.py'], FOLDER),
        ([sys.executable, '-m', 'official_resnet.experiments.degradation_main'], tmp_path),
    ):
        result = subprocess.run(
            [*command, '--depths', '9'], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 1 and '6n+2' in result.stderr, result.stderr


def test_no_module_hides_another(tmp_path):
    names = [path.stem for path in FOLDER.glob('*.py') if path.stem != '__init__']
    code = f'import importlib.util; print([n for n in {names} if importlib.util.find_spec(n)])'
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
