"""The update by hand, and the schedules' numbers of official/resnet and the paper."""

import keras
import numpy as np
import pytest

from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.training import optimizers, recipes, schedules
from official_resnet.training.config import Schedule, TrainConfig


def _by_hand(w, gradients, rates, momentum, nesterov, l2):
    m = np.zeros_like(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient + l2 * w
        m = momentum * m + g
        w = w - rate * ((g + momentum * m) if nesterov else m)
    return w


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
    expected = _by_hand(start, gradients, [0.1, 0.1, 0.01, 0.01], momentum, nesterov, 0.3)
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
    schedule = _recipe_schedule('fast', 390, 7800)
    rates = [float(schedule(step)) for step in (0, 975, 1950, 4875, 7800, 9000)]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.2, 0, 0], atol=1e-6)


def test_cosine_and_warm_up():
    schedule = optimizers.make_schedule(Schedule('cosine', warmup_epochs=2), 0.2, 10, 100)
    rates = [float(schedule(step)) for step in (0, 10, 20, 50, 100)]
    at_20 = 0.1 * (1 + np.cos(np.pi * 0.2))
    np.testing.assert_allclose(rates, [0, at_20 / 2, at_20, 0.1, 0], atol=1e-6)


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


def test_rates_of_head_and_backbone_by_hand():
    """The factor scales the step, not the velocity: m is that of the whole rate, and decay is in it."""
    start, gradients = np.array([1.0, -2.0]), np.array([[0.5, 1.0], [-1.0, 0.25], [2.0, 0.0]])
    variables = [keras.Variable(start.astype('float32'), name='kernel') for _ in range(3)]
    for variable, layer in zip(variables, ('stem_conv', 'logits', 'logits_of_another'), strict=True):
        variable._path = f'{layer}/kernel'
    optimizer = optimizers.CoupledSGD(0.1, 0.9, l2=0.3, backbone_factor=0.25, head_layers=('logits',))
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32')] * 3, variables)
    slow, fast = (_by_hand(start, gradients, [rate] * 3, 0.9, False, 0.3) for rate in (0.025, 0.1))
    for variable, expected in zip(variables, (slow, fast, slow), strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)
    again = optimizers.CoupledSGD.from_config(optimizer.get_config())
    assert (again.backbone_factor, again.head_layers) == (0.25, ('logits',))


def test_adams_rates_of_head_and_backbone():
    """Its first step is the rate, whatever the gradient."""
    variables = [keras.Variable(np.zeros(2, 'float32'), name='kernel') for _ in range(2)]
    variables[1]._path = 'logits/kernel'
    optimizer = optimizers.Adam(0.01, epsilon=1e-8, backbone_factor=0.1, head_layers=['logits'])
    optimizer.apply([np.array([0.5, -3], 'float32')] * 2, variables)
    np.testing.assert_allclose(variables[0].numpy(), [-0.001, 0.001], rtol=1e-4)
    np.testing.assert_allclose(variables[1].numpy(), [-0.01, 0.01], rtol=1e-4)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert copy.get_config() == optimizer.get_config()
