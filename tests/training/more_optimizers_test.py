"""LAMB, LARS and Muon by hand; rates by kind of variable, clipping; each continues bit for bit and loads without us."""

import functools
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import updates
from fixtures.tiny_training import StopAt, assert_equal_runs, make_config
from fixtures.updates import variables_of

from official_resnet import resnet_run_loop, resnet_spec
from official_resnet.training import more_optimizers, replicas


def test_rates_of_head_and_backbone_by_hand():
    """The factor scales the step, not the velocity: m is that of the whole rate, and decay is in it."""
    start, gradients = np.array([1.0, -2.0]), np.array([[0.5, 1.0], [-1.0, 0.25], [2.0, 0.0]])
    paths = ('stem_conv/kernel', 'logits/kernel', 'logits_of_another/kernel')
    variables = variables_of(dict.fromkeys(paths, start))
    optimizer = more_optimizers.SGD(0.1, 0.9, l2=0.3, backbone_factor=0.25, head_layers=('logits',))
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32')] * 3, variables)
    slow, fast = (updates.momentum_sgd(start, gradients, [rate] * 3, 0.9, False, 0.3) for rate in (0.025, 0.1))
    for variable, expected in zip(variables, (slow, fast, slow), strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)
    again = more_optimizers.SGD.from_config(optimizer.get_config())
    assert (again.backbone_factor, again.head_layers) == (0.25, ('logits',))


def test_rates_and_decay_by_kind_of_variable():
    """Biases and offsets have a factor of their own, the head another; decay is divided by it, so lr * decay stays."""
    start, gradients = np.array([1.0, -2.0]), np.array([[0.5, 1.0], [-1.0, 0.25]])
    paths = ('conv/kernel', 'bn/gamma', 'bn/beta', 'stem/bias', 'logits/kernel', 'logits/bias')
    variables = variables_of(dict.fromkeys(paths, start))
    options = {'head_factor': 4.0, 'bias_factor': 64.0, 'backbone_factor': 0.5, 'head_layers': ('logits',)}
    optimizer = more_optimizers.SGD(0.01, 0.9, True, l2=0.3, **options)
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32')] * 6, variables)
    for variable, factor, backbone in zip(variables, (1, 1, 64, 64, 4, 4), (0.5,) * 4 + (1, 1), strict=True):
        expected = updates.momentum_sgd(start, gradients, [0.01 * factor * backbone] * 2, 0.9, True, 0.3 / factor)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, err_msg=variable.path)
    assert more_optimizers.SGD.from_config(optimizer.get_config()).get_config() == optimizer.get_config()


def test_decoupled_decay_shrinks_the_weights_by_its_share_of_the_base_rate():
    """As MosaicML's DecoupledSGDW: the momentum does not see the decay, and the factors of rates do not scale it."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [2.0, 0.5])
    kernel, bias = variables_of({'conv/kernel': [1.0], 'conv/bias': [1.0]})
    optimizer = more_optimizers.SGD(schedule, 0.5, l2=0.1, decoupled_rate=2.0, bias_factor=3.0)
    for _ in range(2):
        optimizer.apply([np.array([0.2], 'float32')] * 2, [kernel, bias])
    # 1 * 0.9 - 2 * 0.2, then * (1 - 0.1 / 4) - 0.5 * (0.5 * 0.2 + 0.2)
    np.testing.assert_allclose(kernel.numpy(), [0.5 * 0.975 - 0.15], rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), [(0.9 - 1.2) * 0.975 - 0.45], rtol=1e-6)


@pytest.mark.parametrize('scale', [None, 8.0, 'dynamic'])
def test_the_gradients_of_all_replicas_are_clipped_together(scale):
    """By the norm of their sum, without the loss scale; Keras would clip those of each replica."""
    strategy = replicas.mirror(tuple(tf.config.list_logical_devices('CPU')), None)
    with strategy.scope():
        one, other = keras.Variable([0.0, 0.0], name='kernel'), keras.Variable([0.0], name='bias')
        optimizer = more_optimizers.SGD(1.0, 0.0, max_norm=2.0, loss_scale_factor=8.0 if scale == 8.0 else None)
        if scale == 'dynamic':
            optimizer = more_optimizers.DynamicLossScale(optimizer, initial_scale=8.0)
        optimizer.build([one, other])

    def apply():
        first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
        gradients = [tf.where(first, [9.0, 0.0], [-6.0, 4.0]), tf.where(first, [0.0], [0.0])]  # sum: 3, 4, 0
        optimizer.apply([optimizer.scale_loss(gradient) for gradient in gradients], [one, other])

    tf.function(lambda: strategy.run(apply))()
    for copy in strategy.experimental_local_results(one.value):
        np.testing.assert_allclose(copy.numpy(), [-1.2, -1.6], rtol=1e-6)
    assert other.numpy()[0] == 0


@pytest.mark.parametrize('wrong', [np.inf, np.nan])
@pytest.mark.parametrize('replica', [0, 1])
def test_a_gradient_that_overflows_on_one_replica_is_left_out_by_all(replica, wrong):
    """The next step, with half of the scale, is as usual."""
    strategy = replicas.mirror(tuple(tf.config.list_logical_devices('CPU')), None)
    with strategy.scope():
        variable = keras.Variable([1.0], name='kernel')
        optimizer = more_optimizers.DynamicLossScale(more_optimizers.SGD(1.0, 0.0), initial_scale=8.0)
        optimizer.build([variable])

    def apply(value):
        is_this = tf.distribute.get_replica_context().replica_id_in_sync_group == replica
        optimizer.apply([tf.where(is_this, [value], optimizer.scale_loss(tf.constant([0.25])))], [variable])

    step = tf.function(lambda value: strategy.run(apply, args=(value,)))
    for value, expected in ((wrong, 1.0), (0.0, 0.75)):
        step(tf.constant(value))
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_allclose(copy.numpy(), [expected], rtol=1e-6)
    assert (optimizer.dynamic_scale.numpy(), optimizer.iterations.numpy()) == (4.0, 1)


def test_adams_rates_of_head_and_backbone():
    """Its first step is the rate, whatever the gradient."""
    variables = variables_of({'conv/kernel': [0, 0], 'logits/kernel': [0, 0]})
    optimizer = more_optimizers.Adam(0.01, epsilon=1e-8, backbone_factor=0.1, head_layers=['logits'])
    optimizer.apply([np.array([0.5, -3], 'float32')] * 2, variables)
    np.testing.assert_allclose(variables[0].numpy(), [-0.001, 0.001], rtol=1e-4)
    np.testing.assert_allclose(variables[1].numpy(), [-0.01, 0.01], rtol=1e-4)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert copy.get_config() == optimizer.get_config()


# --- LAMB, LARS, Muon ------------------------------------------------------------------------------------------------


def _norm(x):
    return np.sqrt(np.sum(np.square(x)))


def test_two_steps_of_lamb():
    """A kernel has the ratio of norms, a bias has neither that nor decay; a weight of norm 0 has the ratio 1."""
    gradients, rate, l2 = (np.array([3.0, -4.0]), np.array([1.0, 1.0])), 0.1, 0.2
    kernel, bias, zero = variables_of({'a/kernel': [1, 2], 'a/bias': [1, 2], 'b/kernel': [0, 0]})
    optimizer = more_optimizers.Lamb(rate, l2=l2)
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32')] * 3, [kernel, bias, zero])
    expected = []
    for start, decay in (([1, 2], l2), ([1, 2], 0), ([0, 0], l2)):
        w, m, v = np.array(start, float), np.zeros(2), np.zeros(2)
        for step, gradient in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            update = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + decay * w
            w = w - rate * update * (_norm(w) / _norm(update) if decay and w.any() else 1)
        expected.append(w)
    np.testing.assert_allclose([kernel.numpy(), bias.numpy(), zero.numpy()], expected, rtol=1e-5)


@pytest.mark.parametrize('nesterov', [False, True])
def test_two_steps_of_lars(nesterov):
    """The momentum has the rate in it, so that a drop of the rate takes effect slowly."""
    gradients, rates, l2 = (np.array([3.0, -4.0]), np.array([1.0, 1.0])), (10.0, 1.0), 0.2
    kernel, offset = variables_of({'a/kernel': [1, 2], 'a/beta': [1, 2]})
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], list(rates))
    optimizer = more_optimizers.Lars(schedule, 0.9, nesterov, l2=l2, decay='kernels')
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32')] * 2, [kernel, offset])
    for variable, decays in ((kernel, True), (offset, False)):
        w, m = np.array([1.0, 2.0]), 0
        for rate, gradient in zip(rates, gradients, strict=True):
            ratio = 0.001 * _norm(w) / (_norm(gradient) + l2 * _norm(w)) if decays else 1
            step = rate * ratio * (gradient + l2 * w * decays)
            m = 0.9 * m + step
            w = w - (step + 0.9 * m if nesterov else m)
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5)


@pytest.mark.parametrize('shape', [(3, 3, 2, 5), (1, 1, 2, 5)])
def test_muon_steps_along_an_orthogonal_matrix_from_a_kernel_of_norm_sqrt_of_filters(shape):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=shape), random.normal(size=(2, *shape))
    kernel, dense = variables_of({'conv/kernel': start, 'logits/kernel': [1.0, 2.0]})
    options = {'l2': 0.3, 'head_factor': 10.0, 'head_layers': ('logits',)}
    optimizer = more_optimizers.Muon(0.1, 0.85, True, muon_momentum=0.6, **options)
    for gradient in gradients:
        optimizer.apply([gradient.astype('float32'), np.ones(2, 'float32')], [kernel, dense])
    w, m = start, 0
    for gradient in gradients:
        m = 0.6 * m + gradient
        u, s, v = np.linalg.svd((gradient + 0.6 * m).reshape(-1, 5), full_matrices=False)
        s /= _norm(s)
        for _ in range(3):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        w = w * 5**0.5 / _norm(w) - 0.1 * ((u * s) @ v).reshape(shape)
    np.testing.assert_allclose(kernel.numpy(), w, rtol=1e-4, atol=1e-5)
    expected = updates.momentum_sgd(np.array([1.0, 2.0]), np.ones((2, 2)), [1.0, 1.0], 0.85, True, 0.03)
    np.testing.assert_allclose(dense.numpy(), expected, rtol=1e-5)


def test_a_matrix_becomes_nearly_orthogonal():
    """Its singular values, if they are not tiny, become 0.68 to 1.21."""
    matrix = np.random.default_rng(1).normal(size=(8, 30)).astype('float32')
    made = more_optimizers.orthogonalize(tf.constant(matrix)).numpy()
    values = np.linalg.svd(made)[1]
    assert 0.68 < values.min() and values.max() < 1.21
    np.testing.assert_allclose(more_optimizers.orthogonalize(tf.constant(matrix.T)).numpy(), made.T, atol=1e-5)


@pytest.mark.parametrize('name', ['Lamb', 'Lars', 'Muon'])
def test_two_replicas_make_the_step_of_one_device(name):
    """The norms are those of the sum of their gradients, and the variables stay the same on both."""
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(3, 3, 2, 4)), random.normal(size=(2, 2, 3, 3, 2, 4)).astype('float32')
    options = {'l2': 0.1, 'decay': 'kernels', 'backbone_factor': 0.5, 'max_norm': 1.0}
    make = functools.partial(getattr(more_optimizers, name), 0.1, **options)
    (expected,), optimizer = variables_of({'conv/kernel': start}), make()
    for one, other in gradients:
        optimizer.apply([one + other], [expected])
    strategy = replicas.mirror(tuple(tf.config.list_logical_devices('CPU')), None)
    with strategy.scope():
        (kernel,), optimizer = variables_of({'conv/kernel': start}), make()
        optimizer.build([kernel])

    def apply(pair):
        i = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.gather(pair, i)], [kernel])

    step = tf.function(lambda pair: strategy.run(apply, args=(pair,)))
    for pair in gradients:
        step(tf.constant(pair))
    for copy in strategy.experimental_local_results(kernel.value):
        np.testing.assert_allclose(copy.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


# --- whole trainings -------------------------------------------------------------------------------------------------

SPEC = resnet_spec.ResNetSpec((1,), filters=4, bn_momentum=0.9)
TRAININGS = {
    'muon': {'base_learning_rate': 0.02, 'bias_learning_rate_factor': 4.0, 'gradient_accumulation_steps': 2},
    'lamb': {'base_learning_rate': 0.005, 'decay': 'kernels', 'loss_scale': 'dynamic'},
    'lars': {'base_learning_rate': 0.3, 'decay': 'kernels', 'dtype': 'bf16'},
    'momentum': {'decay_form': 'decoupled', 'head_learning_rate_factor': 2.0, 'clip_norm': 1.0},
}


@pytest.mark.slow  # weight_averaging_test resumes with muon
@pytest.mark.parametrize('name', TRAININGS)
def test_killed_and_resumed_is_bit_identical_with_each(cifar_dir, tmp_path, name):
    fields = {'spec': SPEC, 'optimizer': name, 'weight_decay': 1e-3, 'steps_per_call': 1} | TRAININGS[name]
    fields |= {'max_train_steps': 9}
    with pytest.raises(RuntimeError, match='killed'):
        resnet_run_loop.train(
            make_config(cifar_dir, tmp_path / 'killed', save_checkpoint_minutes=0, **fields), (StopAt(4),)
        )
    for folder in ('killed', 'whole'):
        result = resnet_run_loop.train(make_config(cifar_dir, tmp_path / folder, **fields), ())
    assert_equal_runs(tmp_path / 'killed', tmp_path / 'whole')
    history = result.history.history['loss']
    assert history[-1] < history[0]
    assert b'official_resnet' not in zipfile.ZipFile(tmp_path / 'whole' / 'model.keras').read('config.json')
