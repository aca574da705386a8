"""The loop's promises: it learns, n epochs are n epochs, and interrupted + resumed equals uninterrupted."""

import csv
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import signal
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import programs, tiny_training
from fixtures.tiny_training import BATCH, SendAt, StopAt, assert_equal_runs, final_arrays, metrics, step_rows
from fixtures.worker_processes import flags_of

from official_resnet import checkpoints, resnet_run_loop, resnet_spec
from official_resnet.errors import Interrupted, UserError
from official_resnet.inference import predict
from official_resnet.inputs import datasets
from official_resnet.training import callbacks, devices, same_run, step
from official_resnet.training.config import Schedule

SPEC = resnet_spec.ResNetSpec((1, 1), filters=4, bn_momentum=0.9)
STEPS = 120 // BATCH  # an epoch of the fixture's 120 images: 7
ADAM = {'optimizer': 'adam', 'base_learning_rate': 0.01, 'weight_decay': 0.0}
make_config = functools.partial(
    tiny_training.make_config, spec=SPEC, train_epochs=3, steps_per_call=2, weight_decay=5e-4, seed=7
)


def train(config, *callbacks):
    """Train without showing the progress."""
    return resnet_run_loop.train(config, callbacks)


def die(config, step):
    """Train up to a step and end as by SIGKILL; each step before it is saved."""
    with pytest.raises(RuntimeError, match='killed'):
        train(config.with_machine(save_checkpoint_minutes=0), StopAt(step))


@pytest.fixture(scope='module')
def uninterrupted(cifar_dir, tmp_path_factory):
    """(model_dir, TrainResult) of a run that nobody touched."""
    model_dir = tmp_path_factory.mktemp('uninterrupted')
    return model_dir, train(make_config(cifar_dir, model_dir))


def test_history_and_metrics(uninterrupted):
    model_dir, result = uninterrupted
    history = result.history.history
    assert result.history.epoch == [0, 1, 2] and result.step == 3 * STEPS
    assert len(history['loss']) == len(history['val_accuracy']) == 3 and history['loss'][-1] < history['loss'][0]
    lines = checkpoints.read_metrics(model_dir)
    assert [(line['split'], line['epoch'], line['step']) for line in lines] == [
        (split, epoch, epoch * STEPS) for epoch in (1, 2, 3) for split in ('train', 'test')
    ]
    assert set(lines[0]) == set('split epoch step loss accuracy learning_rate images_per_second seconds'.split())
    for name in ('loss', 'accuracy', 'images_per_second', 'seconds'):
        assert [line[name] for line in lines[::2]] == history[name]
        assert [line[name] for line in lines[1::2]] == history[f'val_{name}']
    assert result.best['accuracy'] == max(history['val_accuracy'])


# --- the end of a run, and its continuation ------------------------------------------------------------------


def test_killed_and_resumed_is_bit_identical(cifar_dir, tmp_path, uninterrupted):
    """At the first step, the end of an epoch, inside one and at the end, with other numbers of steps a call."""
    for i, death in enumerate((1, STEPS, 10, 3 * STEPS)):
        die(make_config(cifar_dir, tmp_path, steps_per_call=1 + i), death)
    train(make_config(cifar_dir, tmp_path))
    assert_equal_runs(uninterrupted[0], tmp_path)


@pytest.mark.parametrize('has_rows', [True, False])
def test_a_resumed_run_has_a_line_for_each_epoch(cifar_dir, tmp_path, uninterrupted, has_rows):
    """Whatever became of metrics.jsonl. Checkpoints of older versions have no rows, so the file's lines are taken."""
    config, path = make_config(cifar_dir, tmp_path), tmp_path / checkpoints.METRICS_FILE
    die(config, 2 * STEPS + 1)
    lines = path.read_bytes()
    assert len(lines.splitlines()) == 4
    path.write_bytes(bytes(len(lines)))  # after a power failure
    if not has_rows:
        path.write_bytes(lines + b'{"split": "train", "step": 99}\n{"spl')
        arrays, state, newest = checkpoints.restore_latest(tmp_path / 'checkpoints')
        del state['rows']
        checkpoints.save(newest.parent, state['step'], arrays, state)
    train(config)
    assert_equal_runs(uninterrupted[0], tmp_path)


def test_the_curve_by_step(cifar_dir, uninterrupted):
    """The mean over an epoch is the row of metrics.jsonl."""
    with open(uninterrupted[0] / checkpoints.STEPS_FILE, encoding='utf-8', newline='') as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row['step'] for row in rows] == [*range(1, 3 * STEPS + 1)]
    for line in checkpoints.read_metrics(uninterrupted[0])[::2]:
        of_epoch = rows[line['step'] - STEPS : line['step']]
        for name in ('loss', 'accuracy'):
            assert np.mean([row[name] for row in of_epoch]) == pytest.approx(line[name], rel=1e-4)
        assert of_epoch[-1]['learning_rate'] == pytest.approx(line['learning_rate'])


def test_a_finished_run_writes_a_damaged_curve_again(cifar_dir, tmp_path):
    config = make_config(cifar_dir, tmp_path, train_epochs=1)
    train(config)
    path = tmp_path / checkpoints.STEPS_FILE
    before = path.read_bytes()
    path.write_bytes(b'x')
    train(config)
    assert path.read_bytes() == before


def test_a_run_whose_first_steps_an_older_version_took_lacks_their_curve(cifar_dir, tmp_path):
    config = make_config(cifar_dir, tmp_path)
    train(dataclasses.replace(config, train_epochs=1))
    arrays, state, path = checkpoints.restore_latest(tmp_path / 'checkpoints')
    del state['curve']
    checkpoints.save(path.parent, state['step'], arrays, state)
    train(dataclasses.replace(config, train_epochs=2))
    assert [int(row.partition(',')[0]) for row in step_rows(tmp_path)] == [*range(STEPS + 1, 2 * STEPS + 1)]


def test_what_a_killed_training_left_is_deleted_at_the_next_start(tmp_path):
    """Under the lock, and nothing else."""
    ours = 'part.model.keras part.best.card.json part.metrics.jsonl checkpoints/part.step-000000007.npz'.split()
    ours += ['part.features-train.npz', 'part.config.json']
    kept = 'part.notes.json part.model.keras.txt step-1.part checkpoints/part.step-mine model.keras'.split()
    (tmp_path / 'checkpoints').mkdir()
    for name in (*ours, *kept):
        (tmp_path / name).write_text('x')
    with checkpoints.lock(tmp_path):
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()} == {*kept, '.lock'}
        (tmp_path / ours[0]).write_text('x')
        with pytest.raises(UserError, match='is in use'):
            checkpoints.lock(tmp_path)
        assert (tmp_path / ours[0]).exists()


@pytest.mark.whole_runs
def test_adam_killed_and_resumed_is_bit_identical(mnist_dir, tmp_path):
    """Also on images that are cropped to another size, without flips, and with the first 100 only."""
    fields = ADAM | {'dataset': 'mnist', 'num_train_images': 100, 'flip': False, 'train_epochs': 2}
    steps = 100 // BATCH
    die(make_config(mnist_dir, tmp_path / 'killed', **fields), steps + 2)
    for name in ('whole', 'killed'):
        result = train(make_config(mnist_dir, tmp_path / name, **fields))
    assert result.step == 2 * steps and result.model.input_shape == (None, 32, 32, 1)
    optimizer = result.model.optimizer
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
    arrays, _ = final_arrays(tmp_path / 'whole')
    moments = [name for name in arrays if name.startswith('optimizer/') and 'stem_conv_kernel' in name]
    assert len(moments) == 2 and all(arrays[name].any() for name in moments)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.whole_runs  # three processes, each of which starts TensorFlow; power_failure_test has one process
def test_a_killed_program_continues_bit_identically(cifar_dir, tmp_path):
    """Real processes, of which one gets SIGKILL inside the second epoch."""
    tests = pathlib.Path(tiny_training.__file__).parents[1]
    whole, flags = (flags_of(cifar_dir, tmp_path / name, 2) for name in ('whole', 'killed'))
    killer = [sys.executable, '-m', 'fixtures.killed_training', '9', *flags.split()]
    ends = programs.finish([programs.start(f'cifar10_main {whole}'), programs.start(killer, cwd=tests)])
    assert [code for code, _, _ in ends] == [0, -signal.SIGKILL], ends
    code, out, err = programs.run(f'cifar10_main {flags}')
    assert (code, err) == (0, '') and 'continuing from' in out and 'epoch 1, step ' in out
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.parametrize('step,number', [(9, signal.SIGINT), (3 * STEPS, signal.SIGTERM)])
def test_signals_save_and_the_run_continues(cifar_dir, tmp_path, uninterrupted, step, number):
    """The same at the end of an epoch that is not evaluated yet."""
    config = make_config(cifar_dir, tmp_path, steps_per_call=1)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f' {step}: .*step-{step:09d}.npz'):
        train(config, SendAt(step, number))
    assert signal.getsignal(number) is before
    train(config)
    assert_equal_runs(uninterrupted[0], tmp_path)


class AtEvaluation(keras.callbacks.Callback):
    """Send this process SIGTERM when the second evaluation begins, or, if it `dies`, die when it has been logged."""

    def __init__(self, dies=False):
        super().__init__()
        self.dies, self.num_evaluations = dies, 0

    def on_test_begin(self, logs=None):
        self.num_evaluations += 1
        if self.num_evaluations == 2 and not self.dies:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch_end(self, epoch, logs=None):
        if self.num_evaluations == 2:
            raise RuntimeError('killed')


def test_the_state_is_saved_before_an_evaluation_which_a_signal_ends(cifar_dir, tmp_path, uninterrupted, monkeypatch):
    """SIGTERM after one of two test batches, then SIGKILL after the lines of the epoch are written."""
    calls, make = [], step.make_evaluate_function

    def make_counting(*args):
        evaluate_batch = make(*args)
        return lambda images, labels: calls.append(len(labels)) or evaluate_batch(images, labels)

    monkeypatch.setattr(step, 'make_evaluate_function', make_counting)
    config = make_config(cifar_dir, tmp_path)
    with pytest.raises(Interrupted, match=rf'SIGTERM at step {2 * STEPS}: .*step-{2 * STEPS:09d}.npz; .*best.keras'):
        train(config, AtEvaluation())
    assert calls == [16, 14, 16]
    assert checkpoints.restore_latest(tmp_path / 'checkpoints')[1]['is_epoch_open']
    with pytest.raises(RuntimeError, match='killed'):
        train(config.with_machine(save_checkpoint_minutes=1e6), AtEvaluation(dies=True))
    assert [line['epoch'] for line in metrics(tmp_path)] == [1, 1, 2, 2, 3, 3]
    assert checkpoints.restore_latest(tmp_path / 'checkpoints')[1]['is_epoch_open']
    train(config)
    assert_equal_runs(uninterrupted[0], tmp_path)


def test_train_epochs_is_the_total_also_after_fields_were_added(cifar_dir, tmp_path, uninterrupted, caplog):
    config = make_config(cifar_dir, tmp_path)
    train(dataclasses.replace(config, train_epochs=1))
    arrays, state, path = checkpoints.restore_latest(tmp_path / 'checkpoints')
    onednn = devices.uses_onednn()
    assert state['uses_onednn'] is onednn
    state['uses_onednn'] = not onednn
    for name in ('optimizer', 'flip', 'num_train_images'):  # an older version stored none of them
        state['config'].pop(name)
    del state['data']['train_content'], state['data']['test_content']
    state['config']['spec'].pop('bn_epsilon')  # the same of the network's fields
    checkpoints.save(path.parent, state['step'], arrays, state)
    with pytest.raises(UserError, match='--flip True, not False'):
        resnet_run_loop.train(dataclasses.replace(config, flip=False))
    assert train(config).history.epoch == [1, 2]
    changed = f'--train_epochs 1, now 3, TF_ENABLE_ONEDNN_OPTS {int(not onednn)}, now {int(onednn)} '
    assert f'changed: {changed}(set it to {int(not onednn)} ' in caplog.text
    assert_equal_runs(uninterrupted[0], tmp_path)
    again = train(config)
    assert again.history.epoch == [] and again.step == 3 * STEPS


@pytest.mark.parametrize(
    'change,message',
    [
        ({'seed': 8}, '--seed 7, not 8'),
        ({'spec': dataclasses.replace(SPEC, filters=8)}, 'spec.filters 4, not 8'),
        ({'dataset': 'synthetic'}, "dataset 'cifar10', not dataset 'synthetic'"),
    ],
)
def test_a_model_dir_of_another_run_is_refused_and_left_as_it_is(cifar_dir, uninterrupted, change, message):
    files = [path for path in uninterrupted[0].rglob('*') if path.is_file() and path.name != '.lock']
    before = [path.read_bytes() for path in files]
    with pytest.raises(UserError, match=f'--model_dir=.*{message}.*--model_dir'):
        resnet_run_loop.train(dataclasses.replace(make_config(cifar_dir, uninterrupted[0]), **change))
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize('file,kind', [('data_batch_3.bin', 'training'), ('test_batch.bin', 'test')])
def test_a_run_whose_data_has_changed_is_refused(cifar_dir, tmp_path, file, kind):
    """One image of as many is another. In another folder, the same data is the same."""
    shutil.copytree(cifar_dir, tmp_path / 'data')
    config = make_config(cifar_dir, tmp_path / 'run', train_epochs=1)
    train(config)
    path = tmp_path / 'data' / 'cifar-10-batches-bin' / file
    moved = dataclasses.replace(config, train_epochs=2).with_machine(data_dir=str(tmp_path / 'data'))
    data = path.read_bytes()
    path.write_bytes(data[:-3073] + data[:3073])
    with pytest.raises(UserError, match=f'other {kind} images.*put back.*--model_dir'):
        train(moved)
    path.write_bytes(data)
    assert train(moved).step == 2 * STEPS


def test_nan_stops_with_step_and_rate_and_keeps_the_last_good_checkpoint(cifar_dir, tmp_path):
    resnet_run_loop.train(make_config(cifar_dir, tmp_path, train_epochs=1))
    with pytest.raises(UserError, match=r'step \d+, .*4e\+3\d.*--base_learning_rate'):
        resnet_run_loop.train(make_config(cifar_dir, tmp_path, base_learning_rate=3.2e38, steps_per_call=1))
    arrays, state = final_arrays(tmp_path)
    assert state['step'] == STEPS and all(np.all(np.isfinite(array)) for array in arrays.values())


def test_what_a_library_call_writes_and_load_reads(cifar_dir, tmp_path):
    """A run that is not finished is loaded from its newest checkpoint, or from one that is named."""
    config = make_config(cifar_dir, tmp_path)
    die(config, 9)
    for source, is_killed in ((tmp_path, True), (sorted(tmp_path.rglob('*.npz'))[-1], True), (tmp_path, False)):
        if not is_killed:
            train(config)
        model, card = predict.load(source)
        arrays, _ = final_arrays(tmp_path)
        assert card.spec == SPEC and card.names[0] == 'airplane'
        for variable in model.variables:
            np.testing.assert_array_equal(variable.numpy(), arrays[variable.path], err_msg=variable.path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *('.lock', 'checkpoints', 'config.json', 'steps.csv', 'metrics.jsonl'),
        *('model.card.json', 'model.keras', 'best.card.json', 'best.keras', 'network.json'),
    }


# --- how long it trains, and when it evaluates ---------------------------------------------------------------


def test_max_train_steps_stops_inside_an_epoch_and_evaluates(cifar_dir, tmp_path, uninterrupted):
    result = resnet_run_loop.train(make_config(cifar_dir, tmp_path, max_train_steps=9))
    assert result.step == 9 and 'val_accuracy' in result.history.history
    resnet_run_loop.train(make_config(cifar_dir, tmp_path))
    ours, theirs = (final_arrays(model_dir)[0]['logits/kernel'] for model_dir in (tmp_path, uninterrupted[0]))
    np.testing.assert_array_equal(ours, theirs)


def test_the_schedule_counts_fractions_of_epochs_and_ignores_max_train_steps(cifar_dir):
    """120 images in batches of 16: 7 steps an epoch, but epoch 2 of the schedule is at 15, not 14."""
    drop = Schedule(boundaries=(2,), factors=(1, 0.5))
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, schedule=drop, base_learning_rate=0.8))
    assert trainer.steps_per_epoch == 7
    assert [round(float(trainer.schedule(step)), 6) for step in (14, 15, 16)] == [0.1, 0.1, 0.05]
    short, whole = (
        resnet_run_loop.Trainer(make_config(cifar_dir, None, schedule=Schedule('one_cycle'), max_train_steps=steps))
        for steps in (STEPS, None)
    )
    assert short.last_step == STEPS and float(short.schedule(STEPS)) == float(whole.schedule(STEPS)) > 0


def test_epochs_between_evals_and_the_last(cifar_dir):
    epochs = []
    see = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epochs.append(epoch + 1) if 'val_loss' in logs else None
    )
    resnet_run_loop.train(make_config(cifar_dir, None, train_epochs=5, epochs_between_evals=2), [see])
    assert epochs == [2, 4, 5]


@pytest.mark.parametrize('hook,step', [('on_epoch_end', 2 * STEPS), ('on_train_batch_end', STEPS + 3)])
def test_a_callback_that_stops_between_evaluations_leaves_the_final_weights_evaluated(
    cifar_dir, tmp_path, capsys, hook, step
):
    stop = keras.callbacks.Callback()
    setattr(stop, hook, lambda index, logs: setattr(stop.model, 'stop_training', logs['step'] >= step))
    config = make_config(cifar_dir, tmp_path, train_epochs=9, epochs_between_evals=5, steps_per_call=1)
    result = resnet_run_loop.train(config, [stop, callbacks.Progress()])
    accuracy = resnet_run_loop.evaluate(config)['accuracy']
    assert result.step == step and result.best == {'accuracy': accuracy, 'epoch': 2}
    tests = [line for line in checkpoints.read_metrics(tmp_path) if line['split'] == 'test']
    assert [(line['epoch'], line['step'], line['accuracy']) for line in tests] == [(2, step, accuracy)]
    assert final_arrays(tmp_path)[1]['best'] == result.best
    assert re.search(rf'test loss \S+, {accuracy:.2%}', capsys.readouterr().out)


def test_stop_threshold_stops_and_stays_stopped(cifar_dir, tmp_path):
    config = make_config(cifar_dir, tmp_path, stop_threshold=0.0)
    assert resnet_run_loop.train(config).step == STEPS
    assert resnet_run_loop.train(config).step == STEPS


@pytest.mark.whole_runs
def test_the_best_network_is_kept_and_patience_stops_also_after_a_kill(cifar_dir, tmp_path, monkeypatch, caplog):
    caplog.set_level('INFO')
    accuracies = (0.3, 0.5, 0.4, 0.5, 0.6)  # after each epoch

    def evaluate(trainer, check):
        scores = dict.fromkeys(('loss', 'accuracy_top_5', 'seconds', 'images_per_second'), 1.0)
        return scores | {'accuracy': accuracies[trainer.step // STEPS - 1]}

    monkeypatch.setattr(resnet_run_loop.Trainer, 'evaluate', evaluate)
    configs = {
        name: make_config(cifar_dir, tmp_path / name, train_epochs=5, patience=2) for name in ('whole', 'killed')
    }
    for death in (STEPS + 2, 2 * STEPS, 3 * STEPS + 2):
        die(configs['killed'], death)
    for name in ('whole', 'killed', 'whole'):  # the last one has stopped, and stays stopped
        caplog.clear()
        result = train(configs[name])
        assert (result.step, result.best) == (4 * STEPS, {'accuracy': 0.5, 'epoch': 2})
        assert re.search('since epoch 2 .--patience=2', caplog.messages[-1])
    assert 'already finished' in caplog.messages[0] and f'step {4 * STEPS}' in caplog.messages[0]
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')
    shorter = make_config(cifar_dir, tmp_path / 'shorter', train_epochs=5, patience=9)
    die(shorter, 4 * STEPS)  # in the epoch after which a patience of 1 is used up, which is still evaluated
    assert train(dataclasses.replace(shorter, patience=1)).step == 4 * STEPS
    assert checkpoints.read_metrics(tmp_path / 'shorter')[-1]['epoch'] == 4
    train(make_config(cifar_dir, tmp_path / 'two', train_epochs=5, max_train_steps=2 * STEPS))
    paths = [tmp_path / name for name in ('two/model.keras', 'two/best.keras', 'whole/best.keras', 'killed/best.keras')]
    (expected, card), *others = [predict.load(path) for path in paths]
    for model, other_card in others:
        assert other_card == card
        for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    patient = dataclasses.replace(configs['whole'], patience=3)
    assert train(patient).best == {'accuracy': 0.6, 'epoch': 5}
    newest, _ = final_arrays(tmp_path / 'whole')
    np.testing.assert_array_equal(predict.load(paths[2])[0].get_layer('logits').kernel, newest['logits/kernel'])


def test_standard_keras_callbacks_work(cifar_dir, tmp_path):
    standard = [
        keras.callbacks.CSVLogger(tmp_path / 'log.csv'),
        keras.callbacks.TensorBoard(tmp_path / 'tb'),
        keras.callbacks.EarlyStopping('val_loss', patience=0, min_delta=100),
        keras.callbacks.ModelCheckpoint(tmp_path / '{epoch}.keras'),
    ]
    result = resnet_run_loop.train(make_config(cifar_dir, None, train_epochs=9), standard)
    assert result.history.epoch == [0, 1]  # EarlyStopping
    header = (tmp_path / 'log.csv').read_text().splitlines()[0].split(',')
    assert {'epoch', 'loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate'} <= set(header)
    assert list((tmp_path / 'tb').rglob('events.*'))
    loaded = keras.models.load_model(tmp_path / '2.keras')
    np.testing.assert_array_equal(loaded.get_weights()[0], result.model.get_weights()[0])


# --- what is computed ----------------------------------------------------------------------------------------


def test_evaluation_scores_every_image_once(cifar_dir, uninterrupted):
    results = resnet_run_loop.evaluate(make_config(cifar_dir, uninterrupted[0]))
    assert (results['num_images'], results['epoch'], results['step']) == (30, 3, 3 * STEPS)
    assert results['accuracy'] == uninterrupted[1].history.history['val_accuracy'][-1]
    model = results['model']
    test = datasets.open_split('cifar10', 'test', data_dir=str(cifar_dir))
    images, labels = next(iter(test.evaluation_batches(30)))
    expected = keras.losses.sparse_categorical_crossentropy(labels, model(images), from_logits=True)
    assert results['loss'] == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)
    assert results['accuracy'] == np.mean(np.argmax(model(images), -1) == labels)


@pytest.mark.parametrize(
    'fields',
    [
        {'dtype': 'bf16'},
        pytest.param(ADAM | {'dtype': 'fp16', 'loss_scale': 'dynamic'}, marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_learns_and_resumes(cifar_dir, tmp_path, fields):
    config = make_config(cifar_dir, tmp_path, **fields)
    die(config, 9)
    result = resnet_run_loop.train(config)
    assert result.history.history['loss'][-1] < 2.25 and np.isfinite(result.history.history['val_loss'][-1])
    policy = {'bf16': 'bfloat16', 'fp16': 'float16'}[config.dtype]
    assert result.model.get_layer('stem_conv').compute_dtype == policy
    assert keras.config.dtype_policy().name == 'float32'


def test_other_wrong_input(cifar_dir, tmp_path):
    with pytest.raises(UserError, match='batch_size=15.* 2 .*--batch_size=14'):
        resnet_run_loop.train(make_config(cifar_dir, None, batch_size=15, distribution_strategy='mirrored'))
    (tmp_path / 'precious.txt').write_text('x')
    with pytest.raises(UserError, match=f'--clean.*{tmp_path}'):
        same_run.clean(tmp_path)
    assert (tmp_path / 'precious.txt').exists()
