"""The update by hand, and the schedules' numbers of official/resnet and the paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import updates

from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.training import optimizers, recipes, schedules
from official_resnet.training.config import Schedule, TrainConfig


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('momentum', [0.9, 0.0])
def test_update_with_a_drop_of_the_rate(momentum, nesterov):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=3), random.normal(size=(4, 3))
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01])  # 0.1 at steps 0 and 1
    optimizer = optimizers.CoupledSGD(schedule, momentum, nesterov, l2=0.3)
    variable = keras.Variable(start.astype('float32'), name='kernel')
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32')], [variable])
    expected = updates.momentum_sgd(start, gradients, [0.1, 0.1, 0.01, 0.01], momentum, nesterov, 0.3)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    'decay,decaying',
    [('all', {'kernel', 'bias', 'gamma', 'beta'}), ('kernels', {'kernel'}), ('no_batch_norm', {'kernel', 'bias'})],
)
def test_which_variables_decay(decay, decaying):
    variables = [keras.Variable(np.ones(2, 'float32'), name=name) for name in ('kernel', 'bias', 'gamma', 'beta')]
    optimizer = optimizers.CoupledSGD(1.0, l2=0.5, decay=decay)
    optimizer.apply([np.zeros(2, 'float32')] * 4, variables)
    assert {v.name for v in variables if v.numpy()[0] != 1} == decaying
    assert variables[0].numpy()[0] == 0.5


def test_config_round_trip():
    schedule = schedules.WarmUp(schedules.PiecewiseLinear([0, 10], [1, 0]), 5)
    optimizer = optimizers.CoupledSGD(schedule, 0.8, True, l2=1e-4, decay='kernels')
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert copy.get_config() == optimizer.get_config()
    assert float(copy._learning_rate(7)) == float(schedule(7)) == pytest.approx(0.3)


def _recipe_schedule(name, steps_per_epoch, total_steps):
    settings = recipes.CIFAR['official'] | recipes.CIFAR[name]
    config = TrainConfig.from_settings(settings, resnet_variants.cifar_spec)
    return optimizers.make_schedule(config.schedule, config.learning_rate, steps_per_epoch, total_steps)


@pytest.mark.parametrize(
    'name,total_steps,rates',
    [
        (
            'official',
            71_093,
            {0: 0.1, 35_546: 0.1, 35_547: 0.01, 53_125: 0.01, 53_126: 1e-3, 71_093: 1e-3, 71_094: 1e-4},
        ),
        ('paper', 64_000, {32_000: 0.1, 32_001: 0.01, 48_000: 0.01, 48_001: 1e-3, 63_999: 1e-3}),
    ],
)
def test_official_boundaries_and_those_of_the_paper(name, total_steps, rates):
    """official/resnet counts 390.625 steps an epoch: 35,546, 53,125 and 71,093 at batch 128."""
    schedule = _recipe_schedule(name, 50_000 / 128, total_steps)
    assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates)


def test_one_cycle():
    schedule = _recipe_schedule('classic_fast', 390, 7800)
    rates = [float(schedule(step)) for step in (0, 975, 1950, 4875, 7800, 9000)]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.2, 0, 0], atol=1e-6)


def test_cosine_and_warm_up():
    schedule = optimizers.make_schedule(Schedule('cosine', warmup_epochs=2), 0.2, 10, 100)
    rates = [float(schedule(step)) for step in (0, 10, 20, 50, 100)]
    at_20 = 0.1 * (1 + np.cos(np.pi * 0.2))
    np.testing.assert_allclose(rates, [0, at_20 / 2, at_20, 0.1, 0], atol=1e-6)


@pytest.mark.parametrize(
    'fields,rate,expected',
    [
        # airbench94: 0.2 -> 1 at 23 % -> 0.07; airbench94_muon: from 1 to 0; FFCV: epochs 0, 2, 16.
        ({'peak': 0.23, 'start_factor': 0.2, 'end_factor': 0.07}, 2.0, {0: 0.4, 230: 2, 615: 1.07, 1000: 0.14}),
        ({'peak': 0}, 0.24, {0: 0.24, 1: 0.24 * 0.999, 500: 0.12, 1000: 0}),
        ({'peak': 2 / 16}, 1.7, {0: 0, 125: 1.7, 1000: 0}),
        # MLPerf's LARS: 5 of 41 epochs of warm-up, then a polynomial of power 2; here 5 epochs of 20 steps.
        ({'peak': 0, 'power': 2, 'warmup_epochs': 5, 'is_after_warmup': True}, 10, {50: 5, 100: 10, 550: 2.5, 1000: 0}),
        ({'peak': 0.1, 'power': 2, 'start_factor': 0.5, 'end_factor': 0.1}, 10, {0: 5, 100: 10, 550: 3.25, 1000: 1}),
        # timm's A1 and A2: a warm-up from 1e-4 within the period of cosine, which ends at 1e-6.
        (
            {'kind': 'cosine', 'warmup_epochs': 5, 'start_factor': 1e-4 / 5e-3, 'end_factor': 1e-6 / 5e-3},
            5e-3,
            {0: 1e-4, 100: 1e-6 + (5e-3 - 1e-6) * 0.5 * (1 + np.cos(0.1 * np.pi)), 500: 2.5005e-3, 1000: 1e-6},
        ),
        # torchvision and MosaicML: the period begins at the whole rate after the warm-up.
        (
            {'kind': 'cosine', 'warmup_epochs': 5, 'is_after_warmup': True},
            0.5,
            {50: 0.25, 100: 0.5, 550: 0.25, 1000: 0},
        ),
        # What only continuous schedules have does not move the drops of a piecewise one.
        (
            {
                'kind': 'piecewise',
                'boundaries': (10,),
                'factors': (1, 0.1),
                'warmup_epochs': 1,
                'is_after_warmup': True,
            },
            1.0,
            {10: 0.5, 200: 1, 201: 0.1},
        ),
    ],
)
def test_rates_of_published_recipes(fields, rate, expected):
    schedule = optimizers.make_schedule(Schedule(**{'kind': 'one_cycle'} | fields), rate, 20, 1000)
    schedule = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    steps = np.array(list(expected))
    np.testing.assert_allclose(schedule(steps), list(expected.values()), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([float(schedule(step)) for step in expected], schedule(steps), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    'fields',
    [
        {'boundaries': (0, 1e30), 'factors': (1, 1, 0.1)},
        {'boundaries': (1e30,), 'factors': (1, 0.1), 'warmup_epochs': 1},
        *({'kind': 'one_cycle', 'warmup_epochs': 99, 'is_after_warmup': True, 'power': power} for power in (1, 2)),
        {'kind': 'cosine', 'warmup_epochs': 1e30, 'is_after_warmup': True},
    ],
)
def test_what_begins_after_the_end_of_a_training(fields):
    """A drop that never comes, and a warm-up that fills the training, are no mistakes. The step is that of a graph."""
    schedule = tf.function(optimizers.make_schedule(Schedule(**fields), 1.0, 20, 40))
    rates = [float(schedule(tf.constant(step, tf.int64))) for step in range(40)]
    assert all(0 <= rate <= 1 for rate in rates) and rates == sorted(rates)


@pytest.mark.parametrize(
    'make',
    [
        lambda: optimizers.CoupledSGD(decay='bn'),
        lambda: optimizers.CoupledSGD(l2=-1),
        lambda: schedules.PiecewiseLinear([2, 1], [0, 0]),
    ],
)
def test_wrong_values(make):
    with pytest.raises(UserError):
        make()
