"""The checkpoint file: whole or absent, strict when assigned."""

import dataclasses
import errno
import fcntl
import json
import os

import keras
import numpy as np
import pytest
from fixtures.networks import TINY
from fixtures.tiny_training import StopAt, assert_equal_runs, make_config

from official_resnet import checkpoints, files, resnet_run_loop
from official_resnet.errors import UserError
from official_resnet.inference import network_files, predict

ARRAYS = {'a/kernel': np.arange(6, dtype='float32').reshape(2, 3), 'count': np.int64(7)}


def test_round_trip_and_the_oldest_go(tmp_path):
    for step in range(1, 8):
        checkpoints.save(tmp_path, step, ARRAYS, {'step': step, 'sum': 0.1 + 0.2}, max_to_keep=3)
    assert [path.name for path in checkpoints.paths(tmp_path)] == [f'step-{i:09d}.npz' for i in (5, 6, 7)]
    arrays, state, path = checkpoints.restore_latest(tmp_path)
    assert state == {'step': 7, 'sum': 0.1 + 0.2} and path.name == 'step-000000007.npz'
    np.testing.assert_array_equal(arrays['a/kernel'], ARRAYS['a/kernel'])
    assert not list(tmp_path.glob('part.*'))


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'empty'])
def test_a_damaged_file_is_named_and_passed_over(tmp_path, damage, caplog):
    assert checkpoints.restore_latest(tmp_path / 'absent') is None
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-0"')  # of TensorFlow
    with pytest.raises(UserError, match='read_ckpt.py.*--model_dir'):
        network_files.restore_weights(tmp_path)
    checkpoints.save(tmp_path, 1, ARRAYS, {'step': 1})
    path = checkpoints.save(tmp_path, 2, ARRAYS, {'step': 2})
    data = path.read_bytes()
    place = data.index(b'kernel.npy') + 150
    flipped = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    path.write_bytes({'truncate': data[: len(data) // 2], 'flip': flipped, 'empty': b''}[damage])
    _, state, _ = checkpoints.restore_latest(tmp_path)
    assert state['step'] == 1 and len(caplog.messages) == 1 and str(path) in caplog.text
    checkpoints.paths(tmp_path)[0].unlink()
    with pytest.raises(UserError, match=f'{tmp_path} .*delete'):
        checkpoints.restore_latest(tmp_path)


@pytest.mark.parametrize(
    'error,raised,message',
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError, 'No space left on device; free some space'),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_full_disk_or_a_kill_while_writing_leaves_only_whole_checkpoints(
    tmp_path, monkeypatch, error, raised, message
):
    checkpoints.save(tmp_path, 1, ARRAYS, {'step': 1})

    def write_half(file, **arrays):
        file.write(b'half')
        file.flush()
        assert len(checkpoints.paths(tmp_path)) == 1  # what SIGKILL would leave, which deletes nothing
        raise error

    monkeypatch.setattr(np, 'savez', write_half)
    with pytest.raises(raised, match=message):
        checkpoints.save(tmp_path, 2, ARRAYS, {'step': 2})
    assert [path.name for path in tmp_path.iterdir()] == ['step-000000001.npz']


def test_metrics_end_before_the_first_damaged_row(tmp_path):
    row = {'split': 'test', 'epoch': 1, 'step': 7, 'loss': 0.5, 'accuracy': 0.25, 'learning_rate': 0.1}
    lines = [json.dumps(row | {'step': step}) for step in (7, 14, 21)]
    for bad in ('[' * 100_000, '7', '[]', '{}', lines[0][:-5], lines[0].replace('step', 'stop'), 'NaN', '{"split": 3}',
        *(json.dumps(row | {'step': step}) for step in (-3, 1e300, 10**400, float('nan')))):  # fmt: skip
        (tmp_path / checkpoints.METRICS_FILE).write_text('\n'.join([*lines[:2], bad, lines[2]]))
        assert [line['step'] for line in checkpoints.read_metrics(tmp_path)] == [7, 14], bad
        assert checkpoints.read_metrics(tmp_path, 7) == [row]


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_metrics_that_are_no_plain_file_are_refused(tmp_path, make):
    make(tmp_path / checkpoints.METRICS_FILE)
    with pytest.raises(UserError, match=f'{checkpoints.METRICS_FILE}.*; pass another'):
        checkpoints.read_metrics(tmp_path)


def test_a_lock_of_any_bytes(tmp_path):
    with files.lock(tmp_path / checkpoints.LOCK):
        for owner in (b'\xff', b'a\x1b[2J\nb', b''):
            (tmp_path / checkpoints.LOCK).write_bytes(owner)
            with pytest.raises(UserError, match=r'is in use by [ -~\ufffd]+; wait'):
                checkpoints.lock(tmp_path)


def test_a_model_dir_has_one_job_at_a_time(tmp_path):
    with checkpoints.lock(tmp_path):
        with pytest.raises(UserError, match=f'process {os.getpid()} .*--model_dir'):
            checkpoints.lock(tmp_path)
    checkpoints.lock(tmp_path).close()


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_not_another_job(tmp_path, monkeypatch, caplog, code):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with checkpoints.lock(tmp_path):
        pass
    [warning] = caplog.messages
    assert os.strerror(code) in warning and str(tmp_path) in warning


def test_assign_is_strict_both_ways(tmp_path):
    variable = keras.Variable(np.zeros((2, 3), 'float32'))
    checkpoints.assign({'a': variable}, {'a': np.ones((2, 3))}, 'x')
    assert variable.numpy().sum() == 6
    for arrays, message in (
        ({}, ' a: .*--model_dir'),
        ({'a': np.ones((2, 3)), 'b': 1}, ' b: .*--model_dir'),
        ({'a': np.ones((3, 2))}, r'\(3, 2\), not \(2, 3\).*--model_dir'),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.assign({'a': variable}, arrays, 'x')


@pytest.mark.parametrize('is_compared', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_random_layers_continues_in_a_process_that_has_other_networks(cifar_dir, tmp_path, is_compared):
    """Keras numbers the generators of stochastic depth within a process."""
    spec = dataclasses.replace(TINY, stochastic_depth=0.5)
    fields = {'spec': spec, 'max_train_steps': 4, 'steps_per_call': 1, 'num_train_images': 48}
    one, other = (make_config(cifar_dir, tmp_path / name, **fields) for name in ('one', 'other'))
    with pytest.raises(RuntimeError, match='killed'):
        resnet_run_loop.train(one.with_machine(save_checkpoint_minutes=0), [StopAt(2)])
    if not is_compared:
        assert resnet_run_loop.evaluate(one)['step'] == 1
        return
    resnet_run_loop.train(one, ())
    resnet_run_loop.train(other, ())
    assert_equal_runs(tmp_path / 'one', tmp_path / 'other')
    assert predict.load(tmp_path / 'one', use_weights='plain')[0].name
