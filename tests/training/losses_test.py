"""The losses, of classes and of mixed labels, by hand and in a compiled step."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.batches import message_of
from fixtures.networks import TINY
from fixtures.tiny_training import config_of

from official_resnet import resnet_run_loop
from official_resnet.training import losses, optimizers, step

LOGITS = np.array([[0, 1, -1], [2, 0, 0], [0.5, 0.5, 3]], np.float32)
LABELS = np.array([1, 0, 2], np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT[::-1]


def loss_of(labels, logits=LOGITS, **fields):
    return step.training_loss(tf.constant(labels), tf.constant(logits), config_of(TINY, **fields)).numpy()


def by_hand(targets, loss):
    """The loss in NumPy, from its definition."""
    if loss == 'softmax':
        return -(targets * np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))).sum(1)
    probabilities = 1 / (1 + np.exp(-LOGITS))
    each = -targets * np.log(probabilities) - (1 - targets) * np.log(1 - probabilities)
    return each.sum(1) if loss == 'sigmoid_sum' else each.mean(1)


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid', 'sigmoid_sum'])
@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_the_loss_is_that_of_its_definition(loss, smoothing):
    """Of classes, of the same as probabilities, and of mixed labels, which are smoothed once, before or after."""
    fields = {'loss': loss, 'label_smoothing': smoothing}
    expected = by_hand(ONE_HOT * (1 - smoothing) + smoothing / 3, loss)
    for labels in (LABELS, ONE_HOT):
        np.testing.assert_allclose(loss_of(labels, **fields), expected, 2e-6)
    smoothed = ONE_HOT * (1 - smoothing) + smoothing / 3
    np.testing.assert_allclose(loss_of(MIXED, **fields), by_hand(0.7 * smoothed + 0.3 * smoothed[::-1], loss), 2e-6)


def test_a_threshold_makes_targets_yes_or_no():
    """In 0.7 and 0.3 of two classes, smoothed by 0.1, both are above 0.2, and only one is above 0.4."""
    assert MIXED[0].tolist() == pytest.approx([0, 0.7, 0.3])
    for threshold, row in ((0.2, [0, 1, 1]), (0.4, [0, 1, 0])):
        fields = {'loss': 'sigmoid', 'label_smoothing': 0.1, 'target_threshold': threshold}
        assert loss_of(MIXED, **fields)[0] == pytest.approx(by_hand(np.array([row]), 'sigmoid')[0], rel=1e-6)
    assert '--target_threshold=0.2' in (text := message_of(lambda: config_of(TINY, target_threshold=0.2)))
    assert '--loss=sigmoid' in text


def test_a_step_takes_classes_or_probabilities():
    """Of which there may be fewer than logits; the hits are those of the likeliest class."""
    config = config_of(TINY, loss='sigmoid', batch_size=3, label_smoothing=0.1)
    images, wide = np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32)[LABELS]
    found = []
    for labels in (LABELS, ONE_HOT, wide):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, kernel_initializer='ones')])
        optimizer = optimizers.CoupledSGD(0.5)
        optimizer.build(model.trainable_variables)
        train = step.make_train_function(tf.distribute.get_strategy(), model, optimizer, config)
        batches = tf.data.Dataset.from_tensors((images, labels)).repeat(2)
        found.append((train(iter(batches), tf.constant(2)).numpy(), *model.get_weights()))
    for other in found[1:]:
        for one, theirs in zip(found[0], other, strict=True):
            np.testing.assert_allclose(theirs, one, 1e-6)
    assert found[0][0][1, 1] == 3 and found[0][0][1, 0] < found[0][0][0, 0]  # it has learned
    assert step.count_correct(tf.constant(MIXED), tf.constant(LOGITS)).numpy() == 3


@pytest.mark.slow
def test_sigmoid_sum_starts_at_one_in_as_many_classes():
    config = config_of(TINY, dataset='synthetic', data_dir=None, loss='sigmoid_sum')
    bias = resnet_run_loop.Trainer(config).model.layers[-1].bias
    np.testing.assert_allclose(bias, -math.log(10), 1e-6)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, use_bias=False)])
    losses.start_head(model)  # which has none
