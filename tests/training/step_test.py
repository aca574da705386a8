"""What a step computes: its batch, its gradients and its sums, against stock Keras, float32 and one replica."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import tiny_training
from fixtures.tiny_training import BATCH

from official_resnet import resnet_run_loop, resnet_spec
from official_resnet.inference import rewrite
from official_resnet.inputs import datasets
from official_resnet.training import step

SPEC = resnet_spec.ResNetSpec((1, 1), filters=4, bn_momentum=0.9)
ADAM = {'optimizer': 'adam', 'base_learning_rate': 0.01, 'weight_decay': 0.0}
make_config = functools.partial(
    tiny_training.make_config, spec=SPEC, train_epochs=3, steps_per_call=2, weight_decay=5e-4, seed=7
)


def test_an_image_that_only_fills_a_batch_is_not_scored():
    """Its label is -1. The logits are the images here."""
    evaluate = step.make_evaluate_function(tf.distribute.get_strategy(), lambda images, training: images)
    logits = np.eye(6, dtype='float32')[[0, 1, 2, 0]] - np.eye(6, dtype='float32')[5]  # 5 is never among the top 5
    sums = evaluate(tf.constant(logits), tf.constant([0, 3, 5, -1])).numpy()
    expected = -tf.nn.log_softmax(logits).numpy()[[0, 1, 2], [0, 3, 5]].sum()
    np.testing.assert_allclose(sums, [expected, 1, 2], rtol=1e-6)


@pytest.mark.parametrize('fields,num_images', [({'flip': False, 'seed': 8}, 120), ({'augment': False}, 40)])
def test_training_takes_the_batches_that_its_config_describes(cifar_dir, fields, num_images):
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, num_train_images=num_images, **fields))
    assert (trainer.steps_per_epoch, trainer.test.num_images) == (num_images // BATCH, 30)
    split = datasets.open_split('cifar10', 'train', data_dir=str(cifar_dir)).first(num_images)
    expected = split.training_batches(BATCH, **{'seed': 7} | fields)
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


def test_fp16_gradients_equal_float32_ones(cifar_dir):
    models = [
        resnet_run_loop.train(make_config(cifar_dir, None, train_epochs=1, max_train_steps=2, dtype=dtype)).model
        for dtype in ('fp32', 'fp16')
    ]
    for one, other in zip(*(model.trainable_variables for model in models), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=0.03, err_msg=one.path)


# The replicas sum up a batch in another order, of which large steps would make more.
@pytest.mark.whole_runs
@pytest.mark.parametrize(
    'fields,tolerance',
    [
        pytest.param(ADAM | {'transfer': 'head'}, 1e-6, marks=pytest.mark.slow),
        ({'sync_batch_norm': True, 'base_learning_rate': 0.005}, 1e-4),
    ],
    ids=['frozen_bn', 'synchronized_bn'],
)
def test_two_replicas_equal_one(cifar_dir, fields, tolerance):
    """The global batch is what counts: gradients, evaluation."""
    config = make_config(cifar_dir, None, train_epochs=1, **fields)
    one, two = (resnet_run_loop.train(c) for c in (config, config.with_machine(distribution_strategy='mirrored')))
    for variable, other in zip(one.model.variables, two.model.variables, strict=True):
        np.testing.assert_allclose(other.numpy(), variable.numpy(), atol=tolerance, err_msg=variable.path)
    assert two.history.history['val_accuracy'] == one.history.history['val_accuracy']
