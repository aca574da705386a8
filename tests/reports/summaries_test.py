"""What TensorBoard is shown: read back from the event files, and compared with what the run itself has recorded."""

import dataclasses
import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from fixtures import tiny_training
from fixtures.tiny_training import BATCH, assert_equal_runs, synthetic_split
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from official_resnet import checkpoints, resnet_run_loop, resnet_spec
from official_resnet.command_line import more_logging
from official_resnet.command_line.flags import RunOptions
from official_resnet.reports import evaluate, summaries
from official_resnet.training import gradient_norm, replicas

make_config = functools.partial(tiny_training.make_config, spec=resnet_spec.ResNetSpec((1, 1), filters=4))
STEPS = 120 // BATCH


def train(config):
    """Train with the callbacks of --enable_tensorboard."""
    config = config.with_machine(enable_tensorboard=True)
    resnet_run_loop.train(config, more_logging.callbacks_of(config, RunOptions(), set()))


def events(folder):
    found = EventAccumulator(str(folder), {'tensors': 0})
    found.Reload()
    return found


def curve(found, tag):
    """[(step, value)] of a scalar."""
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in found.Tensors(tag)]


@pytest.fixture(scope='module')
def shown(cifar_dir, tmp_path_factory):
    """(model_dir of a run that TensorBoard was shown, its train events, its test events)."""
    folder = tmp_path_factory.mktemp('shown')
    train(make_config(cifar_dir, folder))
    return folder, events(folder / 'train'), events(folder / 'test')


def test_the_curves_are_the_loops_own_numbers(shown):
    model_dir, train_events, test_events = shown
    tags = {'loss', 'accuracy', 'learning_rate', 'images_per_second', 'gradient_norm'}
    assert set(train_events.Tags()['tensors']) == tags
    curves = {tag: curve(train_events, tag) for tag in tags}
    for rows in curves.values():
        assert [step for step, _ in rows] == [*range(1, 2 * STEPS + 1)] and min(rows)[1] >= 0
    for line in checkpoints.read_metrics(model_dir):
        if line['split'] == 'train':
            for name in ('loss', 'accuracy'):
                of_epoch = [value for step, value in curves[name] if line['step'] - STEPS < step <= line['step']]
                assert np.mean(of_epoch) == pytest.approx(line[name], rel=1e-5)
            assert dict(curves['learning_rate'])[line['step']] == line['learning_rate']
        else:
            for name in ('loss', 'accuracy', 'accuracy_top_5'):
                assert dict(curve(test_events, name))[line['step']] == pytest.approx(line[name], rel=1e-6)
    assert [step for step, _ in curve(test_events, 'loss')] == [STEPS, 2 * STEPS]


def images_of(event):
    """The images of an event, uint8 [n, h, w, c]."""
    width, height, *files = tf.make_ndarray(event.tensor_proto)
    images = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    assert images.shape[1:3] == (int(height), int(width))
    return images


def test_what_is_confused_and_some_mistakes(shown, cifar_dir):
    model_dir, _, found = shown
    config = make_config(cifar_dir, model_dir)
    results = resnet_run_loop.evaluate(config)
    guesses = evaluate.guess(results['model'], results['test'].evaluation_batches(30))
    about = evaluate.report(guesses.labels, guesses.classes, results['test'].class_names)
    last = {tag: found.Tensors(tag)[-1] for tag in ('confusion_matrix', 'confusions', 'mistakes')}
    assert {event.step for event in last.values()} == {2 * STEPS}
    [matrix] = images_of(last['confusion_matrix'])
    cells = matrix[:: summaries.CELL, :: summaries.CELL].squeeze()
    counts = np.array(evaluate.matrix(about))
    np.testing.assert_allclose(cells / 255, counts / np.maximum(counts.sum(1, keepdims=True), 1), atol=1 / 255)
    table = tf.make_ndarray(last['confusions'].tensor_proto)[()].decode().splitlines()[2:]
    pair = about['confusions'][0]
    names = [about['classes'][pair[which]]['name'] for which in ('true', 'guessed')]
    assert table[0] == f'{names[0]} | {names[1]} | {pair["count"]} | {pair["share"]:.1%}'
    assert len(table) == min(len(about['confusions']), summaries.MAX_PAIRS)
    tiles = images_of(last['mistakes'])
    assert len(tiles) == min(summaries.MAX_MISTAKES, int((guesses.classes[:, 0] != guesses.labels).sum())) > 0
    wrong = np.flatnonzero(guesses.classes[:, 0] != guesses.labels)
    surest = wrong[np.argmax(guesses.probabilities[wrong, 0])]
    [image] = list(results['test'].with_normalization('none').evaluation_batches(30).take(1))[0][0].numpy()[[surest]]
    middle = tiles[0][: summaries.TILE].astype(float).mean((0, 1))
    np.testing.assert_allclose(middle, image.mean((0, 1)), atol=2)  # enlarged
    assert tiles[0][summaries.TILE :].min() < 100 < tiles[0][summaries.TILE :].mean()  # black on white


def test_many_classes_have_a_table_only(tmp_path):
    """Of grey images with names that break a table, and a gallery that has fewer mistakes than its most."""
    split = dataclasses.replace(synthetic_split(24, 30), class_names=tuple(f'{i}|猫\n' for i in range(30)))
    trainer = resnet_run_loop.Trainer(make_config(None, None, dataset='synthetic'))
    trainer.test = split
    callback = summaries.Summaries(str(tmp_path))
    callback.set_params({'trainer': trainer, 'test': split})
    net = resnet_run_loop.build_model(trainer.config, split)
    callback.set_model(net)
    with callback:
        callback.on_epoch_end(0, {'val_loss': 1, 'val_accuracy': 0, 'val_accuracy_top_5': 0, 'step': 5.0})
    found = events(tmp_path / 'test')
    assert set(found.Tags()['tensors']) == {'loss', 'accuracy', 'accuracy_top_5', 'confusions', 'mistakes'}
    table = tf.make_ndarray(found.Tensors('confusions')[0].tensor_proto)[()].decode().splitlines()
    assert all(line.replace(r'\|', '').count('|') == 3 for line in table)


def test_a_run_that_is_shown_has_the_weights_of_one_that_is_not(shown, cifar_dir, tmp_path):
    resnet_run_loop.train(make_config(cifar_dir, tmp_path), ())
    assert_equal_runs(shown[0], tmp_path)


@pytest.mark.parametrize(
    'fields',
    [{'gradient_accumulation_steps': 2, 'loss_scale': 'dynamic'}, {'distribution_strategy': 'mirrored'}],
    ids=['accumulated and scaled', 'mirrored'],
)
def test_the_norm_is_that_of_the_whole_batchs_gradient(cifar_dir, fields):
    """Batch norms see halves of the batch: passes one after the other, or the parts of two devices."""
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, enable_tensorboard=True, **fields))
    [(images, labels)] = trainer.data.training_batches(BATCH, seed=trainer.config.seed).take(1)
    with tf.GradientTape() as tape:
        logits = tf.concat([trainer.model(half, training=True) for half in tf.split(images, 2)], 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss = tf.reduce_sum(losses) / BATCH
    total = tape.gradient(loss, [variable.value for variable in trainer.model.trainable_variables])
    trainer.train_steps(iter(trainer.train_batches()), tf.constant(1))
    np.testing.assert_allclose(trainer.watched.newest(1), [tf.linalg.global_norm(total)], rtol=1e-4)


def test_the_norms_of_the_newest_steps(monkeypatch):
    """In order, also when the oldest have been overwritten."""
    monkeypatch.setattr(gradient_norm, 'LEAST', 5)

    class Optimizer:
        scale_loss = staticmethod(lambda loss: 4 * loss)
        apply = staticmethod(lambda gradients, variables: None)

    two = replicas.mirror(tuple(tf.config.list_logical_devices('CPU')), None)
    for strategy in (tf.distribute.get_strategy(), two):
        watched = gradient_norm.Watched(Optimizer(), strategy, 0)

        @tf.function
        def step(number, strategy=strategy, watched=watched):
            strategy.run(lambda: watched.apply([tf.identity(number), tf.zeros([2, 2])], []))

        for number in range(1, 8):
            step(tf.constant(4.0 * number))
        assert watched.newest(4).tolist() == [strategy.num_replicas_in_sync * norm for norm in (4, 5, 6, 7)]


def test_features_are_shown_with_their_images(source, cifar_dir, tmp_path):
    """The head that is trained on features makes the guesses, and the images are those of the data set."""
    fields = {'transfer': 'head', 'augment': False, 'pretrained': str(source), 'max_train_steps': 2}
    train(tiny_training.make_config(cifar_dir, tmp_path, **fields))
    found = events(tmp_path / 'test')
    assert images_of(found.Tensors('mistakes')[0]).shape[1:] == (summaries.TILE + summaries.CAPTION, summaries.TILE, 3)
