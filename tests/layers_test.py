"""The fused BatchNormalization against Keras' own, and rewritten networks against what they were."""

import dataclasses
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import programs
from fixtures.networks import normal
from fixtures.random_weights import randomize
from hypothesis import example, given, settings
from hypothesis import strategies as st

from official_resnet import layers, more_layers, resnet_model, resnet_spec, resnet_variants
from official_resnet.inference import grad_cam, model_card, rewrite
from official_resnet.training import replicas

POLICY = {'float32': 'float32', 'bfloat16': 'mixed_bfloat16', 'float16': 'mixed_float16'}
TOLERANCE = {'float32': 2e-5, 'bfloat16': 4e-2, 'float16': 4e-3}


def batch_norms(dtype='float32', shape=(None, 6, 6, 6), **options):
    """The stock and the fused layer, built, with equal weights that are no special case."""
    pair = []
    for kind in (keras.layers.BatchNormalization, layers.BatchNormalization):
        pair.append(kind(momentum=0.9, epsilon=1e-5, dtype=POLICY[dtype], **options))
        pair[-1].build(shape)
        pair[-1].set_weights([np.random.default_rng(1).uniform(0.5, 1.5, w.shape) for w in pair[-1].weights])
    return pair


@pytest.mark.parametrize('dtype', POLICY)
def test_the_gradient_of_a_bias_is_added_up_in_float32(dtype):
    """Of many numbers, TensorFlow's BiasAddGrad loses most in bfloat16, and its sum of float16 does in float16."""
    layer = more_layers.Conv2D(2, 1, kernel_initializer='ones', bias_initializer='ones', dtype=POLICY[dtype])
    images = np.ones((8, 96, 96, 1), 'float32')
    with tf.GradientTape() as tape:
        outputs = layer(images)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32)) / 1e3
    np.testing.assert_array_equal(outputs.numpy(), np.full((8, 96, 96, 2), 2))
    kernel, bias = tape.gradient(loss, layer.trainable_variables)
    np.testing.assert_allclose([bias, bias], [[8 * 96 * 96 / 1e3] * 2] * 2, rtol=5e-3)
    assert (
        kernel.shape == (1, 1, 1, 2)
        and layer.get_config() == keras.layers.Conv2D.from_config(layer.get_config()).get_config()
    )


@pytest.mark.parametrize('dtype,rounding', zip(POLICY, (1e-5, 0.01, 0.002), strict=True))
def test_gelu_is_that_of_keras(dtype, rounding):
    """keras.activations.gelu in float32, but for the rounding of outputs, and of the gradient that comes from above."""
    numbers = np.random.default_rng(0).normal(0, 4, (5, 6, 7)).astype('float32')
    numbers[0, 0] = [-30, -9, -1e-4, 0, 1e-4, 9, 30]
    numbers = tf.cast(tf.cast(numbers, dtype), 'float32')
    results = []
    for kind, policy in ((more_layers.Activation, dtype), (keras.layers.Activation, 'float32')):
        layer = kind('gelu', dtype=POLICY[policy])
        inputs = tf.cast(numbers, layer.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
        results.append([outputs, tape.gradient(loss, inputs)])
        assert {result.dtype.name for result in results[-1]} == {layer.compute_dtype}
        assert keras.saving.serialize_keras_object(layer)['module'] == 'keras.layers'
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(tf.cast(ours, tf.float32), theirs, rtol=rounding, atol=1e-6)


def run(layer, inputs, training, **options):
    """Outputs, gradients of input and trainable weights, and the moving statistics after one call."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training, **options)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)  # cubed: a plain sum has gradient 0
    gradients = tape.gradient(loss, [inputs, *(v.value for v in layer.trainable_variables)])
    values = (outputs, *gradients, layer.moving_mean.value, layer.moving_variance.value)
    return [np.asarray(tf.cast(value, tf.float32)) for value in values]


def assert_alike(stock, fused, inputs, training, tolerance=2e-5, **options):
    results = (run(layer, inputs, training, **options) for layer in (stock, fused))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize('dtype', POLICY)
@pytest.mark.parametrize('mode', ['training', 'inference', 'frozen'])
def test_equals_stock_layer(dtype, mode):
    stock, fused = batch_norms(dtype)
    stock.trainable = fused.trainable = mode != 'frozen'
    inputs = tf.cast(tf.random.stateless_normal([5, 6, 6, 6], [1, 2], 1.0, 2.0), dtype)
    assert_alike(stock, fused, inputs, mode != 'inference', TOLERANCE[dtype])
    assert fused(inputs).dtype == dtype
    assert fused.get_config() | {'name': ''} == stock.get_config() | {'name': ''}


@pytest.mark.parametrize(
    'shape,options',
    [
        ((3, 4, 4, 6), {'scale': False}),
        ((3, 4, 4, 6), {'center': False}),
        ((16, 6), {}),  # the stock code
        ((3, 6, 4, 4), {'axis': 1}),  # the stock code
        ((1, 1, 1, 6), {}),  # one value of each channel, whose unbiased variance does not exist
    ],
)
def test_equals_stock_layer_of_other_options_and_shapes(shape, options):
    stock, fused = batch_norms(shape=(None, *shape[1:]), **options)
    assert_alike(stock, fused, tf.constant(normal(*shape)), True, 1e-4)


def test_equals_stock_layer_with_a_mask():
    mask = tf.constant([[[True] * 6] * 3 + [[False] * 6] * 3] * 2)
    assert_alike(*batch_norms(), tf.constant(normal(2, 6, 6, 6)), True, mask=mask)


def test_statistics_stay_float32_and_finite_where_float16_overflows():
    _, fused = batch_norms('float16')
    fused(tf.fill([2, 8, 8, 6], tf.cast(6e4, tf.float16)), training=True)
    mean = fused.moving_mean.numpy()
    assert mean.dtype == 'float32' and np.all(np.isfinite(mean)) and mean.max() > 5e3


def test_a_saved_network_and_to_stock_need_nothing_of_ours(tmp_path):
    """A file that an earlier version wrote under the layer's own name loads, too."""
    model = resnet_variants.cifar_resnet(8, version='2', shortcut='group')
    model.set_weights([np.random.default_rng(2).uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    model.get_layer('group1_block1_bn1').trainable = False
    images = normal(2, 32, 32, 3)
    expected = model(images).numpy()

    model.save(tmp_path / 'saved.keras')
    text, fast = model.to_json(), {'BatchNormalization': layers.BatchNormalization}
    assert 'official_resnet' not in text and set(re.findall('"module": "(.*?)[.".]', text)) == {'keras'}
    loaded = keras.models.load_model(tmp_path / 'saved.keras', fast)
    np.testing.assert_array_equal(loaded(images), expected)
    name = '"registered_name": "BatchNormalization"'
    older = keras.models.model_from_json(text.replace(name, name.replace('Batch', 'official_resnet>Batch')))
    assert type(older.get_layer('head_bn')) is layers.BatchNormalization

    for stock in (keras.models.load_model(tmp_path / 'saved.keras'), rewrite.to_stock(model)):
        assert type(stock.get_layer('head_bn')) is keras.layers.BatchNormalization
        assert not stock.get_layer('group1_block1_bn1').trainable
        np.testing.assert_allclose(stock(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_replicas_update_alike_and_the_layers_forget_them():
    """Also where the step fails: a batch norm that is used alone afterwards must update its own statistics again."""
    strategy = replicas.mirror(tuple(tf.config.list_logical_devices('CPU')), None)
    with strategy.scope():
        model = keras.Sequential([keras.Input((1, 1, 2)), layers.BatchNormalization(momentum=0.5)])
    norm, statistics = model.layers[0], replicas.ReplicaStatistics(is_synchronized=False)

    def replica_step():
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        model(tf.fill([3, 1, 1, 2], 1.0 + tf.cast(number, tf.float32)), training=True)
        before = tf.identity(norm.moving_mean)
        statistics.update_moving()
        return before

    @tf.function
    def step():
        with statistics.handed_to(model):
            return strategy.run(replica_step)

    before = strategy.experimental_local_results(step())
    after = strategy.experimental_local_results(norm.moving_mean.value)
    np.testing.assert_allclose([before, after], [[[0, 0]] * 2, [[0.75, 0.75]] * 2])  # half of (1 + 2) / 2
    assert norm.replicas is None
    with pytest.raises(RuntimeError), statistics.handed_to(model):
        norm(tf.ones([3, 1, 1, 2]), training=True)
        raise RuntimeError
    norm(tf.ones([3, 1, 1, 2]), training=True)
    np.testing.assert_allclose(norm.moving_mean.numpy(), [0.875, 0.875])


def test_the_recursion_limit_is_put_back():
    before = sys.getrecursionlimit()
    with pytest.raises(ZeroDivisionError), layers.deep_graph():
        assert sys.getrecursionlimit() > 10 * before
        raise ZeroDivisionError
    assert sys.getrecursionlimit() == before


@pytest.mark.slow  # 20 s, half of them the start of a second process
def test_a_network_deeper_than_pythons_limit_is_built_saved_and_loaded_elsewhere(tmp_path):
    before = sys.getrecursionlimit()
    spec = resnet_spec.ResNetSpec((before // 6, 1), filters=1, shortcut=None)  # 6 layers a block, a level each
    model = resnet_model.resnet(spec, 3, (8, 8, 3))
    assert sys.getrecursionlimit() == before < len(model.layers)
    model.save(tmp_path / 'deep.keras')
    model_card.write_card(tmp_path / 'deep.card.json', spec, 'none', (8, 8, 3), (8, 8, 3), 'abc')
    code = (
        'import sys; from official_resnet.inference import predict, rewrite; '
        f'model, card = predict.load({str(tmp_path / "deep.keras")!r}); rewrite.fold_batch_norm(model); '
        'print(len(model.layers), sys.getrecursionlimit())'
    )
    assert programs.run([sys.executable, '-c', code]).out.split() == [str(len(model.layers)), str(before)]


def assert_same_outputs(model, rewritten, *sizes, channels=3, tolerance=1e-5):
    for size in sizes:
        images = normal(2, size, size, channels, seed=size)
        results = (keras.tree.flatten(network(images)) for network in (model, rewritten))
        for expected, got in zip(*results, strict=True):
            largest = max(np.abs(expected).max(), 1 if tolerance == 1e-5 else 0)
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    'variant,num_left',
    [('resnet50_v1.5', 0), ('resnet20_v2', 4), ('seresnet50_v1', 0), ('ecaresnet26t', 0), ('mnist_resnet14', 0)],
)
def test_folded_model_is_equal(variant, num_left):
    """Of v2, the BN before each block's first convolution follows a sum, and the last one too."""
    spec = resnet_variants.VARIANTS[variant]
    height, _, channels = resnet_variants.IMAGE_SHAPES[spec.stem]
    spec = dataclasses.replace(spec, group_blocks=(1, 2), filters=8)
    model = randomize(resnet_model.resnet(spec, 10, (height, height, channels)))
    before = model.get_weights()
    folded = rewrite.fold_batch_norm(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert_same_outputs(model, folded, height or 33, channels=channels)
    assert sum(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers) == num_left
    assert num_left or {type(layer).__module__.split('.')[0] for layer in folded.layers} == {'keras'}
    assert 'pre_logits' in grad_cam.features(folded).output


def test_folded_in_bfloat16_stores_half_and_answers_in_float32():
    model = randomize(resnet_variants.cifar_resnet(8, version='2'))
    folded = rewrite.fold_batch_norm(model, 'bfloat16')
    assert folded.output.dtype == 'float32' and folded.get_layer('stem_conv').kernel.dtype == 'bfloat16'
    assert_same_outputs(model, folded, 32, tolerance=0.05)


BOTTLENECKS = resnet_spec.ResNetSpec((2, 2, 1), 8, 'imagenet', 'bottleneck', '1', 'B')


def conv_strides(model):
    return {layer.name: layer.strides[0] for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}


@pytest.mark.parametrize('is_folded', [False, True])
def test_version_1_without_unread_pixels_is_slims_resnet(is_folded):
    """slim has the stride of a group in its last unit's 3x3 convolution: the same function, if BN does not train."""
    model = randomize(resnet_model.resnet(BOTTLENECKS, 10, (None, None, 3)))
    spec = dataclasses.replace(BOTTLENECKS, version='1.5', stride_block='last')
    slim = resnet_model.resnet(spec, 10, (None, None, 3))
    slim.set_weights(model.get_weights())
    rewritten = rewrite.propagate_strides(rewrite.fold_batch_norm(model) if is_folded else model)
    assert conv_strides(rewritten) == conv_strides(slim) != conv_strides(model)
    assert_same_outputs(model, rewritten, 32, 43)
    assert_same_outputs(model, slim, 32, 43)


@pytest.mark.parametrize('changes', [{'version': '1.5'}, {'version': '2'}, {'block': 'basic'}])
def test_where_every_pixel_is_read_strides_stay(changes):
    model = resnet_model.resnet(dataclasses.replace(BOTTLENECKS, **changes), 10, (None, None, 3))
    assert conv_strides(rewrite.propagate_strides(model)) == conv_strides(model)


def test_unread_pixels_in_bfloat16():
    model = randomize(resnet_model.resnet(BOTTLENECKS, 10, (64, 64, 3)))
    half = rewrite.propagate_strides(rewrite.fold_batch_norm(model, 'bfloat16'))
    assert half.get_layer('group1_block2_out').output.shape == (None, 8, 8, 32)
    assert all(layer.output.dtype == 'bfloat16' for layer in half.layers[1:-1]) and half.output.dtype == 'float32'


LAYERS = st.tuples(
    st.sampled_from(['conv', 'conv', 'add', 'add a pixel', 'relu', 'bn', 'pool']),
    st.sampled_from([1, 1, 1, 2]),  # how far back its input is
    st.integers(0, 2),  # which tensor of its size is added to it
    st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]),  # kernel, stride
    st.sampled_from(['same', 'valid']),
    st.sampled_from([None, 'relu']),
    st.sampled_from([1, 1, 2]),  # dilation
)


REST = ((1, 1), 'same', None, 1)


@settings(max_examples=30, deadline=None)
@example([('conv', 1, 0, *REST), ('bn', 1, 0, *REST), ('add', 1, 1, *REST)], 11, False)  # the sum reads both
@given(steps=st.lists(LAYERS, min_size=3, max_size=10), size=st.integers(11, 16), is_shown=st.booleans())
def test_any_network_rewritten_is_equal(steps, size, is_shown):
    tensors = [keras.Input((None, None, 3))]
    sizes = [size]  # of the maps on the way: those of one size can be added
    for kind, place, other, (kernel, stride), padding, activation, dilation in steps:
        place = max(len(tensors) - place, 0)
        x, pixels = tensors[place], sizes[place]
        if kind == 'conv' and (padding == 'same' or pixels > dilation * (kernel - 1)):
            dilation = dilation if stride == 1 and kernel > 1 else 1
            x = keras.layers.Conv2D(3, kernel, stride, padding, dilation_rate=dilation, activation=activation)(x)
            covered = 0 if padding == 'same' else dilation * (kernel - 1)
            pixels = (pixels - covered - 1) // stride + 1
        elif kind == 'add':
            fitting = [tensor for tensor, its in zip(tensors, sizes, strict=True) if its == pixels]
            x = keras.layers.Add()([x, fitting[-1 - other % len(fitting)]])
        elif kind == 'add a pixel':
            x = keras.layers.Add()([x, keras.layers.GlobalAveragePooling2D(keepdims=True)(x)])
        elif kind == 'relu':
            x = keras.layers.ReLU()(x)
        elif kind == 'bn':
            x = layers.BatchNormalization()(x)
        elif kind == 'pool' and pixels > 1:
            x = keras.layers.MaxPooling2D(2, 1, 'same')(x)
        tensors.append(x)
        sizes.append(pixels)
    outputs = [keras.layers.Conv2D(2, 1, 2)(tensors[-1]), *([tensors[-1]] if is_shown else [])]
    model = randomize(keras.Model(tensors[0], outputs))
    assert_same_outputs(model, rewrite.propagate_strides(model), size)
    assert_same_outputs(model, rewrite.propagate_strides(rewrite.fold_batch_norm(model)), size)
