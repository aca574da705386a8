"""The loop's promises: it learns, n epochs are n epochs, and interrupted + resumed equals uninterrupted."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import tiny_training
from fixtures.tiny_training import StopAt, config_of

from official_resnet import checkpoints, resnet_run_loop, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inference import rewrite
from official_resnet.inputs import datasets
from official_resnet.training import callbacks, same_run, step
from official_resnet.training.config import Schedule

SPEC = resnet_spec.ResNetSpec((1, 1), filters=4, bn_momentum=0.9)
BATCH = 16
STEPS = 120 // BATCH  # an epoch of the fixture's 120 pictures: 7


def make_config(cifar_dir, model_dir, **fields):
    fields = {
        'train_epochs': 3,
        'batch_size': BATCH,
        'steps_per_call': 2,
        'base_learning_rate': 0.4,
        'weight_decay': 5e-4,
        'seed': 7,
    } | fields
    return config_of(SPEC, data_dir=str(cifar_dir), model_dir=None if model_dir is None else str(model_dir), **fields)


class SendAt(StopAt):
    """Send this process a signal at a step."""

    def __init__(self, step, number):
        super().__init__(step)
        self.number = number

    def on_train_batch_end(self, batch, logs=None):
        if logs['step'] == self.step:
            os.kill(os.getpid(), self.number)


ADAM = {'optimizer': 'adam', 'base_learning_rate': 0.01, 'weight_decay': 0.0}


def final_arrays(model_dir):
    arrays, state, _ = checkpoints.restore_latest(pathlib.Path(model_dir) / 'checkpoints')
    for name in ('config', 'evaluation', 'sums'):  # hold seconds and paths
        state.pop(name)
    return arrays, state


def metrics(model_dir):
    """The lines without what depends on the clock."""
    return [
        {key: line[key] for key in line if key not in ('seconds', 'images_per_second')}
        for line in checkpoints.read_metrics(model_dir)
    ]


def assert_equal_runs(one, other):
    (arrays, state), (others, other_state) = final_arrays(one), final_arrays(other)
    assert state == other_state and arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)
    assert metrics(one) == metrics(other)


@pytest.fixture(scope='module')
def uninterrupted(cifar_dir, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp('uninterrupted')
    config = make_config(cifar_dir, model_dir)
    result = resnet_run_loop.train(config, [callbacks.MetricsJSON(model_dir)])
    return model_dir, result


def test_history_and_metrics(uninterrupted):
    model_dir, result = uninterrupted
    assert result.history.epoch == [0, 1, 2] and result.step == 3 * STEPS
    assert len(result.history.history['loss']) == len(result.history.history['val_accuracy']) == 3
    assert result.history.history['loss'][-1] < result.history.history['loss'][0]
    lines = checkpoints.read_metrics(model_dir)
    assert [(line['split'], line['epoch'], line['step']) for line in lines] == [
        (split, epoch, epoch * STEPS) for epoch in (1, 2, 3) for split in ('train', 'test')
    ]
    assert set(lines[0]) == {
        'split',
        'epoch',
        'step',
        'loss',
        'accuracy',
        'learning_rate',
        'images_per_second',
        'seconds',
    }
    assert result.best['accuracy'] == max(line['accuracy'] for line in lines if line['split'] == 'test')


@pytest.mark.parametrize('deaths', [(1,), (STEPS,), (4, 10, 16), (3 * STEPS,)])
def test_killed_and_resumed_is_bit_identical(cifar_dir, tmp_path, uninterrupted, deaths):
    """Also with other numbers of steps a call, before and after: the result must not depend on them."""
    for i, death in enumerate(deaths):
        config = make_config(cifar_dir, tmp_path, save_checkpoint_minutes=0, steps_per_call=1 + i)
        with pytest.raises(RuntimeError, match='killed'):
            resnet_run_loop.train(config, [callbacks.MetricsJSON(tmp_path), StopAt(death)])
    resnet_run_loop.train(make_config(cifar_dir, tmp_path), [callbacks.MetricsJSON(tmp_path)])
    assert_equal_runs(uninterrupted[0], tmp_path)


def test_adam_killed_and_resumed_is_bit_identical(mnist_dir, tmp_path):
    """Also on pictures that are cropped to another size, without flips, and with the first 100 only."""
    fields = ADAM | {'dataset': 'mnist', 'num_train_images': 100, 'flip': False}
    steps = 100 // BATCH
    for name, deaths in (('whole', ()), ('killed', (1, steps + 2, 2 * steps))):
        (tmp_path / name).mkdir()
        for death in deaths:
            config = make_config(mnist_dir, tmp_path / name, save_checkpoint_minutes=0, **fields)
            with pytest.raises(RuntimeError, match='killed'):
                resnet_run_loop.train(config, [callbacks.MetricsJSON(tmp_path / name), StopAt(death)])
        result = resnet_run_loop.train(
            make_config(mnist_dir, tmp_path / name, **fields), [callbacks.MetricsJSON(tmp_path / name)]
        )
    assert result.step == 3 * steps and result.model.input_shape == (None, 32, 32, 1)
    arrays, _ = final_arrays(tmp_path / 'whole')
    moments = [name for name in arrays if name.startswith('optimizer/') and 'stem_conv_kernel' in name]
    assert len(moments) == 2 and all(arrays[name].any() for name in moments)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')


def test_sigkill_at_several_steps_is_bit_identical(cifar_dir, tmp_path):
    """Real processes, SIGKILLed mid-epoch, at the end of an epoch and while nothing is saved yet."""

    def run(model_dir, kill_at=None):
        program = [sys.executable, str(pathlib.Path(tiny_training.__file__).with_name('killed_training.py'))]
        return subprocess.run(
            [*program, str(cifar_dir), str(model_dir), str(kill_at)], capture_output=True, text=True, timeout=120
        )

    runs = [
        subprocess.Popen(
            [
                sys.executable,
                str(pathlib.Path(tiny_training.__file__).with_name('killed_training.py')),
                str(cifar_dir),
                str(tmp_path / 'whole'),
                'None',
            ]
        )
    ]
    for kill_at in (2, 5, STEPS + 1):
        result = run(tmp_path / 'killed', kill_at)
        assert result.returncode == -signal.SIGKILL, result.stderr
    result = run(tmp_path / 'killed')
    assert result.returncode == 0, result.stderr
    assert 'continuing from' in result.stdout
    assert runs[0].wait(120) == 0
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.parametrize(
    'step,number', [(9, signal.SIGTERM), (9, signal.SIGINT), (STEPS, signal.SIGTERM), (3 * STEPS, signal.SIGTERM)]
)
def test_signals_save_and_the_run_continues(cifar_dir, tmp_path, uninterrupted, step, number):
    """At the end of an epoch, which is not evaluated yet, too."""
    config = make_config(cifar_dir, tmp_path, steps_per_call=1)
    before = signal.getsignal(number)
    with pytest.raises(resnet_run_loop.Interrupted, match=f'at step {step}: state saved in .*step-{step:09d}.npz'):
        resnet_run_loop.train(config, [callbacks.MetricsJSON(tmp_path), SendAt(step, number)])
    assert signal.getsignal(number) is before
    resnet_run_loop.train(config, [callbacks.MetricsJSON(tmp_path)])
    assert_equal_runs(uninterrupted[0], tmp_path)


def test_train_epochs_is_the_total(cifar_dir, tmp_path, uninterrupted):
    resnet_run_loop.train(make_config(cifar_dir, tmp_path, train_epochs=1), [callbacks.MetricsJSON(tmp_path)])
    result = resnet_run_loop.train(make_config(cifar_dir, tmp_path), [callbacks.MetricsJSON(tmp_path)])
    assert result.history.epoch == [1, 2]
    assert_equal_runs(uninterrupted[0], tmp_path)
    again = resnet_run_loop.train(make_config(cifar_dir, tmp_path))
    assert again.history.epoch == [] and again.step == 3 * STEPS


def test_max_train_steps_stops_inside_an_epoch_and_evaluates(cifar_dir, tmp_path, uninterrupted):
    result = resnet_run_loop.train(make_config(cifar_dir, tmp_path, max_train_steps=9))
    assert result.step == 9 and 'val_accuracy' in result.history.history
    resnet_run_loop.train(make_config(cifar_dir, tmp_path))
    np.testing.assert_array_equal(
        final_arrays(tmp_path)[0]['logits/kernel'], final_arrays(uninterrupted[0])[0]['logits/kernel']
    )


def test_max_train_steps_does_not_bend_the_schedule(cifar_dir):
    one_cycle = Schedule('one_cycle')
    rates = [
        resnet_run_loop.train(make_config(cifar_dir, None, schedule=one_cycle, max_train_steps=steps)).history.history[
            'learning_rate'
        ][0]
        for steps in (STEPS, None)
    ]
    assert rates[0] == rates[1]


def test_an_epoch_of_the_schedule_has_the_fraction_of_a_batch_that_training_leaves_out(cifar_dir):
    """120 images in batches of 16: 7 steps an epoch, but epoch 2 of the schedule is at 15, not 14."""
    schedule = Schedule(boundaries=(2,), factors=(1, 0.5))
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, schedule=schedule, base_learning_rate=0.8))
    assert trainer.steps_per_epoch == 7
    assert [round(float(trainer.schedule(step)), 6) for step in (14, 15, 16)] == [0.1, 0.1, 0.05]


def test_epochs_between_evals_and_the_last(cifar_dir):
    class Seen(keras.callbacks.Callback):
        epochs = []

        def on_epoch_end(self, epoch, logs=None):
            if 'val_loss' in logs:
                self.epochs.append(epoch + 1)

    resnet_run_loop.train(make_config(cifar_dir, None, train_epochs=5, epochs_between_evals=2), [Seen()])
    assert Seen.epochs == [2, 4, 5]


@pytest.mark.parametrize(
    'error',
    [
        tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating a tensor for the image'),
        tf.errors.UnavailableError(None, None, 'the image of the process is gone'),
        tf.errors.InvalidArgumentError(None, None, 'images and jpegs do not match'),
    ],
)
def test_an_error_that_speaks_of_images_keeps_its_own_text(cifar_dir, monkeypatch, error):
    """No image in memory is damaged; one process has lost no other."""

    def fail(*args):
        raise error

    monkeypatch.setattr(resnet_run_loop.step, 'make_train_function', lambda *args: fail)
    with pytest.raises(type(error)) as caught:
        resnet_run_loop.train(make_config(cifar_dir, None))
    assert caught.value is error


@pytest.mark.parametrize('hook,step', [('on_epoch_end', 2 * STEPS), ('on_train_batch_end', STEPS + 3)])
def test_a_callback_that_stops_between_evaluations_leaves_the_final_weights_evaluated(
    cifar_dir, tmp_path, capsys, hook, step
):
    stop = keras.callbacks.Callback()
    setattr(stop, hook, lambda index, logs: setattr(stop.model, 'stop_training', logs['step'] >= step))
    config = make_config(cifar_dir, tmp_path, train_epochs=9, epochs_between_evals=5, steps_per_call=1)
    result = resnet_run_loop.train(config, [stop, callbacks.MetricsJSON(tmp_path), callbacks.Progress()])
    accuracy = resnet_run_loop.evaluate(config)['accuracy']
    assert result.step == step and result.best == {'accuracy': accuracy, 'epoch': 2}
    tests = [line for line in checkpoints.read_metrics(tmp_path) if line['split'] == 'test']
    assert [(line['epoch'], line['step'], line['accuracy']) for line in tests] == [(2, step, accuracy)]
    assert final_arrays(tmp_path)[1]['best'] == result.best
    assert f'test accuracy {accuracy:.4f}' in capsys.readouterr().out


def test_stop_threshold_stops_and_stays_stopped(cifar_dir, tmp_path):
    config = make_config(cifar_dir, tmp_path, stop_threshold=0.0)
    assert resnet_run_loop.train(config).step == STEPS
    assert resnet_run_loop.train(config).step == STEPS


def test_evaluation_scores_every_image_once(cifar_dir, uninterrupted):
    results = resnet_run_loop.evaluate(make_config(cifar_dir, uninterrupted[0], train_epochs=3))
    assert results['num_images'] == 30 and results['epoch'] == 3 and results['step'] == 3 * STEPS
    assert results['accuracy'] == uninterrupted[1].history.history['val_accuracy'][-1]
    model = results['model']
    test = datasets.open_split('cifar10', 'test', data_dir=str(cifar_dir))
    images, labels = next(iter(test.evaluation_batches(30)))
    expected = keras.losses.sparse_categorical_crossentropy(labels, model(images), from_logits=True)
    assert results['loss'] == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)
    assert results['accuracy'] == np.mean(np.argmax(model(images), -1) == labels)


def test_an_image_that_only_fills_a_batch_is_not_scored():
    """Its label is -1. The logits are the images here."""
    evaluate = step.make_evaluate_function(tf.distribute.get_strategy(), lambda images, training: images)
    logits = np.eye(6, dtype='float32')[[0, 1, 2, 0]] - np.eye(6, dtype='float32')[5]  # 5 is never among the top 5
    sums = evaluate(tf.constant(logits), tf.constant([0, 3, 5, -1])).numpy()
    expected = -tf.nn.log_softmax(logits).numpy()[[0, 1, 2], [0, 3, 5]].sum()
    np.testing.assert_allclose(sums, [expected, 1, 2], rtol=1e-6)


@pytest.mark.parametrize('fields', [{'flip': False}, {'augment': False}, {'seed': 8}])
def test_training_takes_the_batches_that_its_config_describes(cifar_dir, fields):
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, **fields))
    expected = trainer.data.training_batches(BATCH, **{'seed': 7} | fields)
    for ours, theirs in zip(next(iter(trainer.train_batches())), next(iter(expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_step_is_the_stock_step(cifar_dir):
    """One step of the loop against a plain gradient step on stock layers with the L2 written into the loss."""
    config = make_config(cifar_dir, None, train_epochs=1, max_train_steps=1, label_smoothing=0.1)
    trainer = resnet_run_loop.Trainer(config)
    stock = rewrite.to_stock(trainer.model)
    images, labels = next(iter(trainer.data.training_batches(BATCH, seed=config.seed)))
    with tf.GradientTape() as tape:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(
            tf.one_hot(labels, 10), stock(images, training=True)
        )
        penalty = tf.add_n([tf.nn.l2_loss(v.value) for v in stock.trainable_variables])
        total = loss + config.weight_decay * penalty
    gradients = tape.gradient(total, [v.value for v in stock.trainable_variables])
    expected = [v.numpy() - config.learning_rate * g for v, g in zip(stock.trainable_variables, gradients, strict=True)]
    result = trainer.run([], [])
    for variable, value in zip(trainer.model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=2e-5, err_msg=variable.path)
    assert result.history.history['loss'][0] == pytest.approx(float(loss), rel=1e-5)
    for ours, theirs in zip(trainer.model.non_trainable_variables, stock.non_trainable_variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-3, atol=1e-5)


def test_a_step_of_adam_is_that_of_the_paper(cifar_dir):
    """The first step is lr * g / (|g| + epsilon), whatever the batch size; the loss is not scaled to it either."""
    config = make_config(cifar_dir, None, train_epochs=1, max_train_steps=1, **ADAM)
    assert config.learning_rate == 0.01
    trainer = resnet_run_loop.Trainer(config)
    assert isinstance(trainer.optimizer, keras.optimizers.Adam)
    assert (trainer.optimizer.beta_1, trainer.optimizer.beta_2, trainer.optimizer.epsilon) == (0.9, 0.999, 1e-8)
    before = [variable.numpy() for variable in trainer.model.trainable_variables]
    trainer.run([], [])
    steps = [
        np.abs(variable.numpy() - old) for variable, old in zip(trainer.model.trainable_variables, before, strict=True)
    ]
    assert max(step.max() for step in steps) == pytest.approx(0.01, rel=1e-3)
    assert np.median(steps[0]) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize('fields', [{'dtype': 'fp16'}, {'dtype': 'fp16', 'loss_scale': 'dynamic'}])
def test_adam_in_mixed_precision(cifar_dir, fields):
    result = resnet_run_loop.train(make_config(cifar_dir, None, **ADAM | fields))
    assert result.history.history['loss'][-1] < result.history.history['loss'][0]


@pytest.mark.parametrize('dtype,scale', [('bf16', None), ('fp16', None), ('fp16', 'dynamic'), ('fp16', 1024.0)])
def test_mixed_precision_learns_and_resumes(cifar_dir, tmp_path, dtype, scale):
    config = make_config(cifar_dir, tmp_path, dtype=dtype, loss_scale=scale, train_epochs=3)
    with pytest.raises(RuntimeError):
        resnet_run_loop.train(config.with_machine(save_checkpoint_minutes=0), [StopAt(9)])
    result = resnet_run_loop.train(config)
    assert result.history.history['loss'][-1] < 2.25 and np.isfinite(result.history.history['val_loss'][-1])
    assert result.model.get_layer('stem_conv').compute_dtype == {'bf16': 'bfloat16', 'fp16': 'float16'}[dtype]
    assert keras.config.dtype_policy().name == 'float32'


def test_fp16_gradients_equal_float32_ones(cifar_dir):
    models = [
        resnet_run_loop.train(make_config(cifar_dir, None, train_epochs=1, max_train_steps=2, dtype=dtype)).model
        for dtype in ('fp32', 'fp16')
    ]
    for one, other in zip(*(model.trainable_variables for model in models), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=0.03, err_msg=one.path)


@pytest.mark.parametrize('fields', [{}, ADAM])
def test_two_replicas_equal_one(cifar_dir, fields):
    """The global batch is what counts: gradients, evaluation; BN statistics are per replica and so differ."""
    frozen_bn = dict(train_epochs=1, transfer='head') | fields
    one = resnet_run_loop.train(make_config(cifar_dir, None, **frozen_bn))
    two = resnet_run_loop.train(make_config(cifar_dir, None, distribution_strategy='mirrored', **frozen_bn))
    for variable, other in zip(one.model.variables, two.model.variables, strict=True):
        np.testing.assert_allclose(other.numpy(), variable.numpy(), atol=1e-6, err_msg=variable.path)
    assert two.history.history['val_accuracy'] == one.history.history['val_accuracy']
    resnet_run_loop.train(make_config(cifar_dir, None, train_epochs=1, distribution_strategy='mirrored'))


def test_two_replicas_with_synchronized_bn_equal_one(cifar_dir):
    """Small steps: the replicas sum up a batch in another order, which larger ones would make more of."""
    config = make_config(cifar_dir, None, train_epochs=1, sync_batch_norm=True, base_learning_rate=0.005)
    one = resnet_run_loop.train(config)
    two = resnet_run_loop.train(config.with_machine(distribution_strategy='mirrored'))
    for variable, other in zip(one.model.variables, two.model.variables, strict=True):
        np.testing.assert_allclose(other.numpy(), variable.numpy(), atol=1e-4, err_msg=variable.path)


def test_fine_tune_trains_the_head_only_from_pretrained_weights(cifar_dir, tmp_path, uninterrupted):
    source = final_arrays(uninterrupted[0])[0]
    result = resnet_run_loop.train(
        make_config(cifar_dir, tmp_path, pretrained=str(uninterrupted[0]), transfer='head', train_epochs=1)
    )
    for variable in result.model.variables:
        is_same = np.array_equal(variable.numpy(), source[variable.path])
        assert is_same == (not variable.path.startswith('logits/')), variable.path


def test_nan_stops_with_step_and_rate_and_keeps_the_last_good_checkpoint(cifar_dir, tmp_path):
    resnet_run_loop.train(make_config(cifar_dir, tmp_path, train_epochs=1))
    message = r'(the loss is (nan|inf) at step \d+|not finite after step \d+), learning rate 4e\+3\d'
    with pytest.raises(UserError, match=message):
        resnet_run_loop.train(make_config(cifar_dir, tmp_path, base_learning_rate=3.2e38, steps_per_call=1))
    arrays, state = final_arrays(tmp_path)
    assert state['step'] == STEPS and all(np.all(np.isfinite(array)) for array in arrays.values())


def test_an_epoch_without_a_batch_is_an_error(cifar_dir):
    with pytest.raises(UserError, match='121.*120|120.*121'):
        resnet_run_loop.train(make_config(cifar_dir, None, batch_size=121))


@pytest.mark.parametrize(
    'change,message',
    [
        ({'seed': 8}, '--seed 7, not 8'),
        ({'batch_size': 8}, '--batch_size 16, not 8'),
        ({'spec': dataclasses.replace(SPEC, filters=8)}, 'spec.filters 4, not 8'),
        ({'flip': False}, '--flip True, not False'),
        ({'num_train_images': 100}, '--num_train_images None, not 100'),
        (ADAM, '--optimizer momentum, not adam'),
    ],
)
def test_a_model_dir_of_another_run_is_refused(cifar_dir, uninterrupted, change, message):
    config = dataclasses.replace(make_config(cifar_dir, uninterrupted[0]), **change)
    with pytest.raises(UserError, match=message):
        resnet_run_loop.train(config)


def test_a_checkpoint_from_before_a_field_was_added_goes_on(cifar_dir, tmp_path, uninterrupted, capsys):
    config = make_config(cifar_dir, tmp_path)
    resnet_run_loop.train(dataclasses.replace(config, train_epochs=1), [callbacks.MetricsJSON(tmp_path)])
    arrays, state, path = checkpoints.restore_latest(tmp_path / 'checkpoints')
    for name in ('optimizer', 'flip', 'num_train_images'):
        state['config'].pop(name)
    state['config']['spec'].pop('bn_epsilon')  # the same of the network's fields
    checkpoints.save(path.parent, state['step'], arrays, state)
    with pytest.raises(UserError, match='--flip True, not False'):
        resnet_run_loop.train(dataclasses.replace(config, flip=False))
    resnet_run_loop.train(config, [callbacks.MetricsJSON(tmp_path)])
    assert 'changed: --train_epochs 1, not 3\n' in capsys.readouterr().out
    assert_equal_runs(uninterrupted[0], tmp_path)


def test_num_train_images_takes_the_first(cifar_dir):
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, num_train_images=40))
    assert (len(trainer.data.labels), len(trainer.test.labels), trainer.steps_per_epoch) == (40, 30, 2)
    with pytest.raises(UserError, match='--num_train_images=121 of the 120 training images of cifar10; pass 1..120'):
        resnet_run_loop.train(make_config(cifar_dir, None, num_train_images=121))
    with pytest.raises(UserError, match='--batch_size=16 with 15 training images .* pass --batch_size=1..15'):
        resnet_run_loop.train(make_config(cifar_dir, None, num_train_images=15))


def test_wrong_optimizers(cifar_dir):
    with pytest.raises(UserError, match='--weight_decay=0.0005 with --optimizer=adam, .*; pass --weight_decay=0'):
        resnet_run_loop.train(make_config(cifar_dir, None, optimizer='adam'))
    with pytest.raises(UserError, match='sgd must be one of momentum, adam'):
        resnet_run_loop.train(make_config(cifar_dir, None, optimizer='sgd'))


def test_other_wrong_input(cifar_dir, tmp_path):
    with pytest.raises(UserError, match='sees 0; lower --num_gpus'):
        resnet_run_loop.train(make_config(cifar_dir, None, num_gpus=2))
    with pytest.raises(UserError, match='batch_size=15 does not divide by 2 devices; try --batch_size=14'):
        resnet_run_loop.train(make_config(cifar_dir, None, batch_size=15, distribution_strategy='mirrored'))
    with pytest.raises(UserError, match='has no checkpoint'):
        resnet_run_loop.evaluate(make_config(cifar_dir, tmp_path))
    (tmp_path / 'precious.txt').write_text('x')
    with pytest.raises(UserError, match='holds no checkpoints'):
        same_run.clean(tmp_path)


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


def test_config_survives_json(cifar_dir):
    config = make_config(cifar_dir, None)
    assert resnet_run_loop.TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
