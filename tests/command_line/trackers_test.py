"""--track with a stand-in for wandb: what it is told, that a run continues, and that a failure ends no training."""

import importlib.util
import pathlib
import sys
import types

import numpy as np
import pytest
from fixtures.batches import message_of
from fixtures.tiny_training import BATCH, StopAt, make_config

from official_resnet import checkpoints, resnet_run_loop
from official_resnet.command_line import evaluate_program, more_logging, trackers
from official_resnet.command_line.flags import RunOptions

STEPS = 120 // BATCH


class Run:
    """A run of the stand-in. `fails` is the name of the method that raises."""

    def __init__(self, fails, **about):
        self.about, self.fails, self.logged, self.codes, self.id = about, fails, [], [], about['id'] or 'new'

    def log(self, metrics, step):
        if self.fails == 'log':
            raise ConnectionError('no\nroute')
        self.logged.append((step, metrics))

    def finish(self, code):
        if self.fails == 'finish':
            raise OSError('gone')
        self.codes.append(code)


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb; its runs are in `runs`."""
    module = types.ModuleType('wandb')
    module.runs, module.fails = [], ''
    module.login, module.Settings = lambda prompt: False, dict

    def init(**about):
        if module.fails == 'init':
            raise RuntimeError('no server')
        module.runs.append(Run(module.fails, **about))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, 'wandb', module)
    for name in ('WANDB_MODE', 'WANDB_PROJECT', 'WANDB_ERROR_REPORTING'):
        monkeypatch.delenv(name, raising=False)
    return module


def train(config, *callbacks):
    chosen = more_logging.callbacks_of(config, RunOptions(track='wandb'), set())
    return resnet_run_loop.train(config, [*chosen, *callbacks])


def test_a_run_that_was_killed_continues_its_run_with_the_numbers_of_the_loop(cifar_dir, tmp_path, wandb):
    config = make_config(cifar_dir, tmp_path / 'name', steps_per_call=1)
    with pytest.raises(RuntimeError, match='killed'):
        train(config, StopAt(STEPS + 3))
    train(config)
    killed, whole = wandb.runs
    assert (killed.about['id'], killed.about['mode'], killed.codes) == (None, 'offline', [1])
    assert (whole.about['id'], whole.about['resume'], whole.codes) == ('new', 'allow', [0])
    assert whole.about['name'] == 'name' and whole.about['config'] == config.to_json()
    assert whole.logged[0][0] == STEPS + 1  # the first step after the last checkpoint
    logged = [step for step, metrics in killed.logged[: STEPS + 1] + whole.logged if 'train/loss' in metrics]
    assert logged == [*range(1, 2 * STEPS + 1)]
    [train_row, test_row] = checkpoints.read_metrics(tmp_path / 'name')[-2:]
    losses = [metrics['train/loss'] for _, metrics in whole.logged if 'train/loss' in metrics]
    assert sum(losses) / STEPS == pytest.approx(train_row['loss'], rel=1e-6)
    names = ('loss', 'accuracy', 'accuracy_top_5')
    assert whole.logged[-1] == (2 * STEPS, {f'test/{name}': test_row[name] for name in names})
    assert whole.logged[-2][1]['learning_rate'] == train_row['learning_rate']
    assert set(whole.logged[-2][1]) == {'train/loss', 'train/accuracy', 'learning_rate', 'images_per_second'}


def test_a_call_of_several_steps_logs_their_mean_at_the_last(cifar_dir, tmp_path, wandb):
    train(make_config(cifar_dir, tmp_path, steps_per_call=5, train_epochs=1))
    rows = [(step, metrics) for step, metrics in wandb.runs[0].logged if 'train/loss' in metrics]
    [line] = [row for row in checkpoints.read_metrics(tmp_path) if row['split'] == 'train']
    assert [step for step, _ in rows] == [5, 7]
    for name in ('loss', 'accuracy'):
        assert sum(rows[i][1][f'train/{name}'] * (5, 2)[i] for i in (0, 1)) / 7 == pytest.approx(line[name], rel=1e-6)


@pytest.mark.parametrize('fails,num_logged', [('init', 0), ('log', 0), ('finish', 1)])
def test_a_tracker_that_fails_is_one_line(tmp_path, wandb, capsys, fails, num_logged):
    wandb.fails = fails
    callback = trackers.Track('wandb', make_config(tmp_path, tmp_path))
    callback.set_params({'trainer': types.SimpleNamespace(results=np.ones([2, 2], np.float32))})
    with callback:
        callback.on_train_begin()
        callback.on_train_batch_end(1, {'learning_rate': 0.1, 'images_per_second': 9.0, 'step': 2.0})
        callback.on_train_end()
    assert sum(len(run.logged) for run in wandb.runs) == num_logged
    out, err = capsys.readouterr()
    assert out.count('\n') == 1 and '--track=wandb' in out and 'goes on' in out and err == ''


def test_wandb_is_offline_unless_there_is_an_account_or_a_mode(wandb, monkeypatch):
    trackers.Wandb().start('a', {}, None)
    wandb.login = lambda prompt: True
    trackers.Wandb().start('b', {}, None)
    wandb.login = lambda prompt: False
    monkeypatch.setenv('WANDB_MODE', 'disabled')
    trackers.Wandb().start('c', {}, None)
    assert [run.about['mode'] for run in wandb.runs] == ['offline', None, None]


@pytest.mark.parametrize('name', trackers.TRACKERS)
def test_a_missing_package_is_told_with_its_command(monkeypatch, name):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda module: None)
    said = message_of(evaluate_program.check_outputs, RunOptions(track=name))
    assert f"pip install -e '.[{name}]'" in said
    setup = pathlib.Path(__file__).parents[2] / 'setup.py'
    assert f"'{name}': [" in setup.read_text(encoding='utf-8')
