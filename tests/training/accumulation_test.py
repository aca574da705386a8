"""A step in several passes: the weights of one pass, batch norms that see the parts, errors."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from official_resnet import layers, resnet_spec
from official_resnet.errors import UserError
from official_resnet.training import optimizers, replicas, step
from official_resnet.training.config import TrainConfig

CONFIG = TrainConfig(
    resnet_spec.ResNetSpec((1,)), batch_size=16, clip_norm=0.5, nesterov=True, optimizer='momentum', head='keep'
)
ONE = tf.distribute.get_strategy


def two():
    return replicas.mirror(tuple(tf.config.list_logical_devices('CPU')), None)


def train(config, strategy, num_steps=3, norm=False):
    """Return the variables of a network without or with a batch norm after steps, and the sums of each step."""
    random = np.random.default_rng(0)
    images = random.normal(size=(num_steps, 16, 2, 2, 3)).astype('float32')
    labels = random.integers(0, 4, (num_steps, 16)).astype('int32')
    keras.utils.set_random_seed(0)
    with strategy.scope():
        parts = [layers.BatchNormalization(momentum=0.5, name='norm')] if norm else []
        parts += [keras.layers.Flatten(), keras.layers.Dense(5, 'tanh', name='one'), keras.layers.Dense(4, name='two')]
        model = keras.Sequential([keras.Input((2, 2, 3)), *parts], name='net')
        optimizer = optimizers.build(config, keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.2]))
        optimizer.build(model.trainable_variables)
    train_steps = step.make_train_function(strategy, model, optimizer, config)
    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    sums = train_steps(iter(strategy.experimental_distribute_dataset(batches)), tf.constant(num_steps))
    inner = getattr(optimizer, 'inner_optimizer', optimizer)
    assert inner.iterations.numpy() == num_steps  # passes are not counted
    return {variable.path: variable.numpy() for variable in model.variables}, sums.numpy(), images


@pytest.mark.parametrize(
    'make_strategy,scale',
    [
        (ONE, None),
        (two, 'dynamic'),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in ((ONE, 'dynamic'), (two, 8))),
    ],
)
def test_four_passes_make_the_weights_of_one(make_strategy, scale):
    """With clipping, momentum and a drop of the rate; also on two devices, each with its half of the batch."""
    config = dataclasses.replace(CONFIG, loss_scale=scale)
    expected, sums, _ = train(config, ONE())
    got, others, _ = train(dataclasses.replace(config, gradient_accumulation_steps=4), make_strategy())
    np.testing.assert_allclose(others, sums, rtol=1e-5)
    for path, values in expected.items():
        np.testing.assert_allclose(got[path], values, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('make_strategy', [pytest.param(ONE, marks=pytest.mark.slow), two])
def test_a_batch_norm_sees_the_parts(make_strategy):
    """Its moving statistics are those of one update for each pass."""
    config = dataclasses.replace(CONFIG, gradient_accumulation_steps=2)
    variables, _, images = train(config, make_strategy(), 1, norm=True)
    mean = 0
    # On two devices, the first pass has the first quarter of the batch on one and the third on the other.
    order = np.arange(16) if make_strategy is ONE else np.arange(16).reshape(2, 2, 4).transpose(1, 0, 2).ravel()
    for part in images[0][order].reshape(2, 8, 2, 2, 3):
        mean = 0.5 * mean + 0.5 * part.mean((0, 1, 2))
    np.testing.assert_allclose(variables['net/norm/moving_mean'], mean, rtol=1e-5, atol=1e-7)


def test_a_batch_that_cannot_be_split():
    with pytest.raises(UserError, match='steps=3 .*--batch_size=16; pass --batch_size=15'):
        dataclasses.replace(CONFIG, gradient_accumulation_steps=3)
    with pytest.raises(UserError, match='--batch_size=16 .*steps=16 on 2 devices.*--batch_size=32'):
        train(dataclasses.replace(CONFIG, gradient_accumulation_steps=16), two())
