"""The mean logits of views of an image, by hand, in a training's evaluations and after it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from fixtures.batches import message_of
from fixtures.networks import TINY
from fixtures.tiny_training import config_of, make_config
from fixtures.writers import write_cifar

from official_resnet import resnet_run_loop
from official_resnet.inference import view_average
from official_resnet.reports import evaluate
from official_resnet.training import step

IMAGES = np.random.default_rng(1).normal(size=(2, 4, 5, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=(60, 6)).astype(np.float32)


def model(images, training):
    """A linear classifier of pixels, so that each view has other logits."""
    assert training is False
    return tf.reshape(images, [-1, 60]) @ WEIGHTS


model.output_shape = (None, 6)


def by_hand(test_views):
    """The mean of the logits of the views, made one by one with NumPy."""
    padded = np.pad(IMAGES, [(0, 0), (1, 1), (1, 1), (0, 0)], 'reflect')
    still, one, other = padded[:, 1:5, 1:6], padded[:, 0:4, 0:5], padded[:, 2:6, 2:7]
    views = {'plain': {0: 1}, 'flip': {0: 1 / 2}, 'flip_shift': {0: 1 / 4, 1: 1 / 8, 2: 1 / 8}}[test_views]
    total = 0
    for which, weight in views.items():
        for view in [(still, one, other)[which]] + [(still, one, other)[which][:, :, ::-1]] * (test_views != 'plain'):
            total = total + weight * (view.reshape(2, 60) @ WEIGHTS)
    return total


@pytest.mark.parametrize('test_views', ['plain', 'flip', 'flip_shift'])
def test_the_logits_are_the_mean_of_the_views(test_views):
    expected = by_hand(test_views)
    np.testing.assert_allclose(view_average.logits_of(model, tf.constant(IMAGES), test_views), expected, 1e-4, 1e-5)
    labels = np.array([3, 1], np.int32)
    found = step.make_evaluate_function(tf.distribute.get_strategy(), model, test_views)(tf.constant(IMAGES), labels)
    loss = np.log(np.exp(expected).sum(1)) - expected[[0, 1], labels]
    hits = (expected.argmax(1) == labels).sum()
    np.testing.assert_allclose(found[:2], [loss.sum(), hits], 1e-5)  # of the mean, not means of losses and hits
    guesses = evaluate.guess(model, tf.data.Dataset.from_tensors((IMAGES, labels)), test_views)[1]
    np.testing.assert_array_equal(guesses, np.argsort(-expected, kind='stable')[:, :5])


def test_features_have_no_mirror_image():
    fields = {'test_views': 'flip', 'transfer': 'head', 'pretrained': 'x', 'augment': False}
    assert '--test_views=flip' in (text := message_of(lambda: config_of(TINY, **fields))) and '--augment' in text
    assert config_of(TINY, **fields | {'augment': True}).test_views == 'flip'


@pytest.mark.slow
def test_a_run_is_evaluated_as_its_config_says(tmp_path, capsys):
    """In the training, after it, and by --eval_only, which may ask for other views."""
    from official_resnet import cifar10_main
    from official_resnet.command_line import train_program

    random, folder = np.random.default_rng(0), tmp_path / 'cifar-10-batches-bin'
    folder.mkdir()
    for name in (*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin'):
        images = random.integers(0, 40, (30, 32, 32, 3)) + 200 * np.linspace(0, 1, 32)[:, None]  # dark on the left
        write_cifar(folder / name, images.astype(np.uint8), random.integers(0, 10, 30))

    def evaluated(*more):
        flags = [f'--data_dir={tmp_path}', f'--model_dir={tmp_path}/run', '--eval_only', *more]
        assert train_program.main(['x', *flags], '', cifar10_main.PROGRAM) == 0
        return capsys.readouterr().out

    config = make_config(tmp_path, tmp_path / 'run', spec=TINY, max_train_steps=9, test_views='flip_shift', flip=False)
    loss = resnet_run_loop.train(config, ()).history.history['val_loss'][-1]
    assert resnet_run_loop.evaluate(config)['loss'] == pytest.approx(loss, rel=1e-6)
    assert f'test loss {loss:.4f}' in evaluated()
    assert f'test loss {loss:.4f}' not in evaluated('--test_views=plain')
    pretrained = f'--pretrained_model_checkpoint_path={tmp_path}/run/model.keras'
    for views in ('plain', 'flip_shift'):
        accuracy = resnet_run_loop.evaluate(dataclasses.replace(config, test_views=views))['accuracy']
        assert f'top-1 {accuracy:.4f}' in evaluated(pretrained, f'--test_views={views}')
