"""Parameter counts, names, shapes and the shortcuts' arithmetic."""

import dataclasses
import doctest
import json
import resource
import time

import keras
import numpy as np
import pytest

from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import architecture_table

AXES = {
    'A': {},
    'plain': {'shortcut': None},
    'B': {'shortcut': 'B'},
    'C': {'shortcut': 'C'},
    'group': {'shortcut': 'group'},
    'group v2': {'shortcut': 'group', 'version': '2'},
}
CIFAR_PARAMETERS = [
    (20, 'A', 269_722),
    (32, 'A', 464_154),
    (44, 'A', 658_586),
    (56, 'A', 853_018),
    (110, 'A', 1_727_962),
    (20, 'plain', 269_722),
    (56, 'plain', 853_018),
    (20, 'B', 272_474),
    (20, 'C', 283_962),
    (56, 'B', 855_770),
    (56, 'C', 900_858),
    (20, 'group', 272_762),
    (32, 'group', 467_194),
    (32, 'group v2', 466_970),
    (56, 'group', 856_058),
    (56, 'group v2', 855_834),
    (110, 'group', 1_731_002),
]


def trainable(model):
    """BN scale and offset counted, moving statistics not."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize('size,axes,parameters', CIFAR_PARAMETERS)
def test_cifar_parameters(size, axes, parameters):
    assert trainable(resnet_variants.cifar_resnet(size, **AXES[axes])) == parameters


def weightless(variant):
    """The model of a variant for its smallest use, built without values in its weights: counts need none."""
    num_classes = architecture_table.NUM_CLASSES[resnet_variants.VARIANTS[variant].stem]
    with keras.StatelessScope(initialize_variables=False):
        return resnet_variants.build_model(variant, num_classes)


@pytest.mark.slow  # 15 s; the time and the memory that README states
def test_1202_and_1001_layers_build():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for variant, parameters in (('resnet1202_v1', 19_421_274), ('resnet1001_v2', 10_327_706)):
        start = time.monotonic()
        assert trainable(resnet_variants.build_model(variant, 10)) == parameters
        assert time.monotonic() - start < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: 1 GiB for both


@pytest.mark.parametrize(
    'variant,parameters',
    [
        ('resnet18_v1', 11_689_512),
        ('resnet34_v1', 21_797_672),
        ('resnet50_v1', 25_557_032),
        ('resnet50_v1.5', 25_557_032),
        ('resnet101_v1.5', 44_549_160),
        ('resnet152_v1', 60_192_808),
        ('resnet200_v1', 64_673_832),
        ('resnext50_32x4d', 25_028_904),
        ('resnext101_32x4d', 44_177_704),
        ('resnext101_32x8d', 88_791_336),
        ('resnext101_64x4d', 83_455_272),
        ('wide_resnet50_2', 68_883_240),
        ('seresnet50_v1', 28_088_024),
        ('resnext29_32x4d', 4_775_754),
        ('wrn28_10', 36_479_194),
        ('resnet164_v2', 1_703_258),
        ('plain20', 269_722),
        ('mnist_resnet14', 195_450),
    ],
)
def test_parameters_of_variants(variant, parameters):
    assert trainable(weightless(variant)) == parameters


@pytest.mark.parametrize(
    'variant,projections',
    [
        ('resnet18_v1', 3),
        ('resnet34_v1', 3),
        ('resnet50_v1', 4),
        ('resnet101_v1.5', 4),
        ('resnet20_v1', 0),
        ('mnist_resnet14', 2),
        ('wrn28_10', 3),
        ('resnext29_32x4d', 3),
        ('plain34', 0),
    ],
)
def test_projections_of_variants(variant, projections):
    names = [layer.name for layer in weightless(variant).layers]
    assert sum(name.endswith('shortcut_conv') for name in names) == projections


def test_he_2015_counts_layers_and_multiply_adds():
    """1512.03385 Table 1: 1.8, 3.6, 3.8, 7.6 and 11.3 times 10^9; the depth counts convolutions and the last layer."""
    for size, billions in ((18, 1.8), (34, 3.7), (50, 3.9), (101, 7.6), (152, 11.3)):
        spec = resnet_variants.imagenet_spec(size, version='1')
        with keras.StatelessScope(initialize_variables=False):
            model = resnet_model.resnet(spec, 1000, (224, 224, 3))
        layers = [layer.name for layer in model.layers if layer.weights and 'bn' not in layer.name]
        assert sum('shortcut' not in name for name in layers) == size
        assert architecture_table.count_multiply_adds(model) / 1e9 == pytest.approx(billions, abs=0.05)
        sizes = [model.get_layer(f'group{g}_block1_out').output.shape[1] for g in (1, 2, 3, 4)]
        assert sizes == [56, 28, 14, 7]


def test_layer_names_are_pinned():
    names = [layer.name for layer in resnet_variants.cifar_resnet(8, shortcut='B').layers]
    assert (
        names
        == """images stem_conv stem_bn stem_relu
        group1_block1_conv1 group1_block1_bn1 group1_block1_relu1 group1_block1_conv2 group1_block1_bn2
        group1_block1_add group1_block1_out
        group2_block1_conv1_pad group2_block1_conv1 group2_block1_bn1 group2_block1_relu1
        group2_block1_conv2 group2_block1_shortcut_conv group2_block1_bn2 group2_block1_shortcut_bn
        group2_block1_add group2_block1_out
        group3_block1_conv1_pad group3_block1_conv1 group3_block1_bn1 group3_block1_relu1
        group3_block1_conv2 group3_block1_shortcut_conv group3_block1_bn2 group3_block1_shortcut_bn
        group3_block1_add group3_block1_out
        head_pool logits""".split()
    )


def test_v2_has_no_bn_after_the_stem_and_projects_the_preactivated_input():
    model = resnet_variants.cifar_resnet(8, version='2', shortcut='B')
    names = [layer.name for layer in model.layers]
    assert 'stem_bn' not in names and not any(name.endswith('shortcut_bn') for name in names)
    assert names[-4:] == ['head_bn', 'head_relu', 'head_pool', 'logits']
    assert model.get_layer('group2_block1_shortcut_conv').input is model.get_layer('group2_block1_relu1').output
    addends = model.get_layer('group1_block1_out').input  # an identity carries the raw stem
    assert any(addend is model.get_layer('stem_conv').output for addend in addends)


@pytest.mark.parametrize(
    'shortcut,first,others',
    [('A', [0, 0, 0], 0), ('B', [0, 1, 1], 0), ('group', [1, 1, 1], 0), ('C', [1, 1, 1], 1), (None, [0, 0, 0], 0)],
)
def test_where_projections_are(shortcut, first, others):
    model = resnet_variants.cifar_resnet(14, shortcut=shortcut)
    names = {layer.name for layer in model.layers}
    assert [int(f'group{g}_block1_shortcut_conv' in names) for g in (1, 2, 3)] == first
    assert all((f'group{g}_block2_shortcut_conv' in names) == bool(others) for g in (1, 2, 3))
    assert any(name.endswith('_add') for name in names) == (shortcut is not None)


@pytest.mark.parametrize('side,before', [('end', 0), ('both', 1)])
def test_option_a_takes_every_second_pixel_and_adds_zero_channels(side, before):
    spec = resnet_spec.ResNetSpec((1,), filters=4, shortcut_padding=side)
    images = np.arange(2 * 4 * 4 * 2, dtype='float32').reshape(2, 4, 4, 2)
    inputs = keras.Input(images.shape[1:])
    outputs = resnet_model.shortcut_of(inputs, spec, 4, 2, 'x', is_first=True)
    result = keras.Model(inputs, outputs)(images).numpy()
    expected = np.zeros((2, 2, 2, 4), 'float32')
    expected[..., before : before + 2] = images[:, ::2, ::2]
    np.testing.assert_array_equal(result, expected)


def test_block_computes_what_the_paper_says():
    spec = resnet_spec.ResNetSpec((1,), filters=2)
    inputs = keras.Input((5, 5, 2))
    model = keras.Model(inputs, resnet_model.residual_block(inputs, spec, 2, 1, 'b'))
    images = np.random.default_rng(3).normal(size=(2, 5, 5, 2)).astype('float32')

    def conv_bn(x, i):
        bn = model.get_layer(f'b_bn{i}')
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = model.get_layer(f'b_conv{i}').kernel.numpy()  # [3, 3, in, out]
        y = sum(padded[:, r : r + 5, c : c + 5] @ kernel[r, c] for r in range(3) for c in range(3))
        return y / np.sqrt(1 + bn.epsilon)  # fresh BN: mean 0, variance 1

    expected = np.maximum(conv_bn(np.maximum(conv_bn(images, 1), 0), 2) + images, 0)
    np.testing.assert_allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize('version,strides', [('1', [2, 1, 1]), ('1.5', [1, 2, 1]), ('2', [1, 2, 1])])
def test_where_a_bottleneck_strides(version, strides):
    spec = resnet_spec.ResNetSpec((1,), block='bottleneck', version=version)
    convs = resnet_model.block_convolutions(spec, 64, 2)
    assert [conv.stride for conv in convs] == strides
    assert [conv[:2] for conv in convs] == [(64, 1), (64, 3), (256, 1)]


def test_stride_last_gives_the_same_resolutions_one_group_earlier():
    first = resnet_spec.ResNetSpec((2, 2, 2), shortcut='B')
    last = resnet_spec.ResNetSpec((2, 2, 2), shortcut='B', stride_block='last')
    models = [resnet_model.resnet(spec, 10, (32, 32, 3)) for spec in (first, last)]
    assert trainable(models[0]) == trainable(models[1])
    assert [models[1].get_layer(f'group{g}_block2_out').output.shape[1] for g in (1, 2, 3)] == [16, 8, 8]


def test_logits_are_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        model = resnet_variants.cifar_resnet(8)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.output.dtype == 'float32'
    assert model.get_layer('group1_block1_conv1').compute_dtype == 'bfloat16'
    assert all(variable.dtype == 'float32' for variable in model.variables)


def test_features():
    model = resnet_variants.cifar_resnet(8)
    features = resnet_model.features(model)(np.zeros((1, 32, 32, 3), 'float32'))
    shapes = {name: tuple(value.shape[1:]) for name, value in features.items()}
    assert shapes == {
        'stem': (32, 32, 16),
        'group1': (32, 32, 16),
        'group2': (16, 16, 32),
        'group3': (8, 8, 64),
        'pre_logits': (64,),
        'logits': (10,),
    }


def test_zero_residual_blocks_change_nothing():
    """The constructive argument of 1512.03385 Sec. 1: a block with F = 0 is an identity after a ReLU."""
    spec = resnet_spec.ResNetSpec((1,), filters=4)
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, resnet_model.residual_group(inputs, spec, 4, 3, 1, 'g'))
    for i in (1, 2, 3):
        model.get_layer(f'g_block{i}_bn2').gamma.assign(np.zeros(4))
    images = np.random.default_rng(4).uniform(0, 1, (2, 8, 8, 4)).astype('float32')
    np.testing.assert_array_equal(model(images), images)


@pytest.mark.parametrize(
    'make,message',
    [
        (lambda: resnet_variants.cifar_spec(21), 'resnet_size=21 is not 6n+2; the nearest are 20 and 26'),
        (lambda: resnet_variants.cifar_spec(2), 'the nearest are 8 and 14'),
        (lambda: resnet_variants.imagenet_spec(51), 'resnet_size=51 must be one of 18, 34'),
        (lambda: resnet_spec.ResNetSpec((3,), shortcut='D'), "shortcut='D' must be one of 'A', 'B'"),
        (lambda: resnet_spec.ResNetSpec(()), 'group_blocks'),
        (lambda: resnet_spec.ResNetSpec((3, 0)), 'group_blocks'),
        (lambda: resnet_spec.ResNetSpec((3,), filters=0), 'filters=0'),
        (lambda: resnet_spec.ResNetSpec((3,), bn_momentum=1.0), 'bn_momentum'),
        (lambda: resnet_spec.ResNetSpec((3,), cardinality=32), 'bottleneck'),
        (lambda: resnet_variants.build_model('resnet51_v1', 10), "variant='resnet51_v1' must be one of resnet20_v1"),
        (lambda: resnet_variants.cifar_spec(30, block='bottleneck'), '9n+2; the nearest are 29 and 38'),
        (lambda: resnet_spec.ResNetSpec((3,), stochastic_depth=1.0), 'stochastic_depth=1.0'),
        (lambda: resnet_spec.ResNetSpec((3,), shortcut=None, stochastic_depth=0.5), 'needs a shortcut'),
        (lambda: resnet_spec.ResNetSpec((3,), version='2', zero_gamma=True), 'zero_gamma'),
        (lambda: resnet_spec.ResNetSpec((3,), output_stride=4), 'output_stride=4'),
        (lambda: resnet_spec.ResNetSpec((3,), output_stride=8, stride_block='last'), 'stride_block'),
        (lambda: resnet_spec.ResNetSpec((3,), batch_norm=False, zero_gamma=True), 'zero_gamma'),
        (lambda: resnet_spec.ResNetSpec((3,), activation='tanh'), "activation='tanh'"),
        (lambda: resnet_spec.ResNetSpec((3,), se_reduction=-1), 'se_reduction=-1'),
    ],
)
def test_wrong_specs(make, message):
    with pytest.raises(UserError, match='.*') as error:
        make()
    assert message in str(error.value) and '\n' not in str(error.value)


def test_variants_build_by_name():
    assert trainable(resnet_variants.build_model('resnet20_v1', 10)) == 269_722
    assert resnet_variants.VARIANTS['resnet50_v1.5'].version == '1.5'


def test_a_spec_survives_json():
    spec = resnet_variants.cifar_spec(8, activation='sigmoid', batch_norm=False, output_stride=8)
    assert resnet_spec.ResNetSpec.from_json(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_a_spec_of_an_earlier_version_is_read_or_refused_in_one_line():
    spec = resnet_variants.cifar_spec(8)
    same = {'data_format': 'channels_last', 'experiment': None}
    assert resnet_spec.ResNetSpec.from_json(dataclasses.asdict(spec) | same) == spec
    for field in ({'data_format': 'channels_first'}, {'experiment': {'gate': None}}, {'no_such_field': 1}):
        with pytest.raises(UserError, match=f'{next(iter(field))}=.*train or convert the network again') as error:
            resnet_spec.ResNetSpec.from_json(dataclasses.asdict(spec) | field)
        assert '\n' not in str(error.value)


def test_stochastic_depth_drops_whole_pictures_in_training_only():
    spec = resnet_spec.ResNetSpec((4,), filters=2, stochastic_depth=0.8)
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, resnet_model.residual_group(inputs, spec, 2, 4, 1, 'g'))
    rates = [model.get_layer(f'g_block{i}_drop').rate for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8])
    last = model.get_layer('g_block4_drop')
    ones = np.ones((1000, 4, 4, 2), 'float32')
    kept = np.asarray(last(ones, training=True))
    assert np.all(kept == kept[:, :1, :1, :1])  # all of a picture or nothing
    assert kept[:, 0, 0, 0].mean() == pytest.approx(1, abs=0.2)  # what is kept is scaled up
    assert (kept[:, 0, 0, 0] == 0).mean() == pytest.approx(0.8, abs=0.05)
    np.testing.assert_array_equal(last(ones, training=False), ones)


def test_zero_gamma_makes_every_block_its_shortcut():
    spec = resnet_spec.ResNetSpec((2,), filters=4, zero_gamma=True)
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, resnet_model.residual_group(inputs, spec, 4, 2, 1, 'g'))
    images = np.random.default_rng(5).uniform(0, 1, (2, 6, 6, 4)).astype('float32')
    np.testing.assert_array_equal(model(images), images)


@pytest.mark.parametrize('size', [10, 11])
def test_stem_pools(size):
    """'ceil' is Caffe's: equal to TensorFlow's 'same' where the map is even, one smaller where it is odd."""
    inputs = keras.Input((size, size, 1))
    maps = np.random.default_rng(6).uniform(0, 1, (1, size, size, 1)).astype('float32')
    results = {}
    for pool in ('pad1', 'same', 'ceil'):
        spec = resnet_variants.imagenet_spec(18, stem_pool=pool)
        images = keras.Input((2 * size, 2 * size, 3))
        layers = keras.Model(images, resnet_model.stem(images, spec)).layers
        x = inputs
        for layer in layers[-2:] if pool != 'same' else layers[-1:]:
            x = layer.__class__.from_config(layer.get_config())(x)
        results[pool] = keras.Model(inputs, x)(maps).numpy()[0, ..., 0]
    padded = np.pad(maps[0, ..., 0], 3)  # zeros do not show: the maps are positive
    windows = {'pad1': (size - 1) // 2 + 1, 'same': (size + 1) // 2, 'ceil': -(-(size - 3) // 2) + 1}
    starts = {'pad1': -1, 'same': 0 if size % 2 == 0 else -1, 'ceil': 0}
    for pool, count in windows.items():
        expected = [
            [padded[r : r + 3, c : c + 3].max() for c in range(starts[pool] + 3, starts[pool] + 3 + 2 * count, 2)]
            for r in range(starts[pool] + 3, starts[pool] + 3 + 2 * count, 2)
        ]
        np.testing.assert_array_equal(results[pool], expected)


def test_output_stride_dilates_instead():
    model = resnet_model.resnet(resnet_variants.imagenet_spec(18, output_stride=8, filters=4), 10, (64, 64, 3))
    assert [model.get_layer(f'group{g}_block1_out').output.shape[1] for g in (1, 2, 3, 4)] == [16, 8, 8, 8]
    dilations = [model.get_layer(f'group{g}_block{b}_conv2').dilation_rate[0] for g in (1, 2, 3, 4) for b in (1, 2)]
    assert dilations == [1, 1, 1, 1, 1, 2, 2, 4]


def test_without_batch_norm_and_relu_names_stay():
    spec = resnet_spec.ResNetSpec((1,), filters=2, batch_norm=False, activation='sigmoid')
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, resnet_model.residual_block(inputs, spec, 2, 1, 'b'))
    assert [layer.name for layer in model.layers[1:]] == ['b_conv1', 'b_relu1', 'b_conv2', 'b_add', 'b_out']
    assert model.get_layer('b_conv1').use_bias and model.get_layer('b_out').activation is keras.activations.sigmoid


@pytest.mark.parametrize('module', [resnet_spec, resnet_variants, resnet_model], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 2 and not result.failed


def test_a_network_may_have_another_block():
    def block(x, spec, filters, stride, name, *, is_first=False, dilation=1, drop_rate=0.0):
        seen.append((filters, stride, name, is_first, dilation, drop_rate))
        return keras.layers.Conv2D(filters, 1, stride, name=f'{name}_conv')(x)

    seen = []
    spec = resnet_spec.ResNetSpec((2, 1), filters=4, stochastic_depth=0.6)
    model = resnet_model.resnet(spec, 3, (8, 8, 3), block=block)
    assert seen == [
        (4, 1, 'group1_block1', True, 1, pytest.approx(0.2)),
        (4, 1, 'group1_block2', False, 1, pytest.approx(0.4)),
        (8, 2, 'group2_block1', True, 1, pytest.approx(0.6)),
    ]
    assert model.get_layer('group2_block1_conv').output.shape == (None, 4, 4, 8)


def test_squeeze_and_excitation_by_hand():
    spec = resnet_spec.ResNetSpec((1,), filters=4, se_reduction=2)
    inputs = keras.Input((4, 4, 4))
    model = keras.Model(inputs, resnet_model.squeeze_and_excite(inputs, spec, 'b'))
    images = np.random.default_rng(8).normal(size=(2, 4, 4, 4)).astype('float32')
    first, second = (model.get_layer(f'b_se_conv{i}').kernel.numpy()[0, 0] for i in (1, 2))
    scale = 1 / (1 + np.exp(-np.maximum(images.mean((1, 2)) @ first, 0) @ second))
    np.testing.assert_allclose(model(images), images * scale[:, None, None, :], atol=1e-5)


def test_table_has_the_layout_of_table_1():
    (columns,) = architecture_table.in_tables(['resnet50_v1', 'resnet50_v1.5'])
    lines = architecture_table.format_table(columns).splitlines()
    assert lines[0].split() == ['resnet50_v1', 'resnet50_v1.5']
    assert 'group1 56x56     [1x1, 64]              [1x1, 64]' in lines
    assert any(line.split() == ['[3x3,', '64]', 'x3'] * 2 for line in lines)
    assert lines[-1].split() == ['multiply-adds', '3,858', 'M', '4,089', 'M']
    assert any(line.split() == ['parameters', '25,557,032', '25,557,032'] for line in lines)
    with pytest.raises(UserError, match='resnet51'):
        architecture_table.main(['resnet51'])
