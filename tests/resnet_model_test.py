"""Parameter counts, layer names, shapes, the arithmetic of blocks and shortcuts, and the table of all networks."""

import dataclasses
import json
import re
import resource
import sys

import keras
import numpy as np
import pytest
from fixtures import programs
from fixtures.networks import model_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet import more_layers, resnet_model, resnet_spec, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import architecture_table
from official_resnet.experiments.architecture_table import count_multiply_adds, count_parameters
from official_resnet.inference import grad_cam

ResNetSpec = resnet_spec.ResNetSpec


def weightless(spec, num_classes, image_shape):
    """The model of a spec, built without values in its weights: counts need none."""
    with keras.StatelessScope(initialize_variables=False):
        return resnet_model.resnet(spec, num_classes, image_shape)


@pytest.mark.parametrize(
    'axes,parameters',
    [
        ({}, {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}),
        ({'shortcut': None}, {20: 269_722, 56: 853_018}),
        ({'shortcut': 'B'}, {20: 272_474, 56: 855_770}),
        ({'shortcut': 'C'}, {20: 283_962, 56: 900_858}),
        ({'shortcut': 'group'}, {20: 272_762, 32: 467_194, 56: 856_058, 110: 1_731_002}),
        ({'shortcut': 'group', 'version': '2'}, {32: 466_970, 56: 855_834}),
    ],
)
def test_cifar_parameters(axes, parameters):
    models = {size: weightless(resnet_variants.cifar_spec(size, **axes), 10, (32, 32, 3)) for size in parameters}
    assert {size: count_parameters(model) for size, model in models.items()} == parameters


@pytest.mark.slow  # 15 s
def test_1202_and_1001_layers_build():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for variant, parameters in (('resnet1202_v1', 19_421_274), ('resnet1001_v2', 10_327_706)):
        assert count_parameters(resnet_variants.build_model(variant, 10)) == parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: 1 GiB for both


# 10^9 multiply-adds; 1512.03385 has 1.8, 3.6, 3.8, 7.6 and 11.3, some of them without the projections.
TABLE_1 = {'resnet18_v1': 1.8, 'resnet34_v1': 3.7, 'resnet50_v1': 3.9, 'resnet101_v1': 7.6, 'resnet152_v1': 11.3}


@pytest.mark.parametrize(
    'variant,parameters,projections',
    [
        ('resnet18_v1', 11_689_512, 3),
        ('resnet34_v1', 21_797_672, 3),
        ('resnet50_v1', 25_557_032, 4),
        ('resnet101_v1', 44_549_160, 4),
        ('resnet152_v1', 60_192_808, 4),
        ('resnet50_v1.5', 25_557_032, 4),
        ('resnext50_32x4d', 25_028_904, 4),
        ('resnext101_32x8d', 88_791_336, 4),
        ('wide_resnet50_2', 68_883_240, 4),
        ('seresnet50_v1', 28_088_024, 4),
        ('resnet50_d', 25_576_264, 4),
        ('resnet50s', 25_680_808, 4),
        ('seresnet18', 11_779_624, 3),
        ('ecaresnet26t', 16_011_916, 4),
        ('resnetv2_18d', 11_706_952, 3),
        ('plain34', 21_623_848, 0),
        ('resnext29_32x4d', 4_775_754, 3),
        ('wrn28_10', 36_479_194, 3),
        ('resnet164_v2', 1_703_258, 3),
        ('mnist_resnet14', 195_450, 2),
        ('resnet11_pooled', 9_915_426, 0),
    ],
)
def test_variants_have_the_published_sizes_and_the_table_says_so(variant, parameters, projections):
    """A layer has weights and is neither a batch norm nor in a shortcut."""
    spec = resnet_variants.VARIANTS[variant]
    shape = tuple(size or 224 for size in resnet_variants.IMAGE_SHAPES[spec.stem])
    model = weightless(spec, architecture_table.NUM_CLASSES[spec.stem], shape)
    assert count_parameters(model) == parameters
    weighted = [layer.name for layer in model.layers if layer.weights and 'bn' not in layer.name]
    assert sum(name.endswith('shortcut_conv') for name in weighted) == projections
    layers = sum(not re.search('shortcut|_se_|_eca_', name) for name in weighted)
    assert layers == spec.resnet_size + 2 * (spec.stem in ('deep', 'tiered'))
    billions = count_multiply_adds(model) / 1e9
    assert billions == pytest.approx(TABLE_1.get(variant, billions), abs=0.05)
    rows = architecture_table.describe(variant)
    assert rows['parameters'] == [f'{parameters:,}'] and rows['multiply-adds'] == [f'{1000 * billions:,.0f} M']
    sizes = [model.get_layer(f'group{i + 1}_block1_out').output.shape[1] for i in range(len(spec.group_blocks))]
    assert [f'group{i + 1} {size}x{size}' for i, size in enumerate(sizes)] == [row for row in rows if 'group' in row]


# As timm 1.0.31 counts them, for each name of timm in the order of the table.
TIMM_PARAMETERS = """
    5435488 10081632 11708744 15995176 16014408 16011872 21816904 25576264 25576264 25680808 25573728
    44568392 44568392 44672936 60212040 60212040 60316584 64693064 25048136
    11779624 21960416 28104720 66841080 71855096 113672760 16809512 16806976
    27559896 48955416 93569048 88232984 93588280
    16011916 25576350 25573814 44568563 64693400 102093077 30162046
    15406220 25045686
    11687720 11706952 21795880 21815112 25549352 25568584 25566048 44541480 44560712
    60185128 60204360
    """.split()


def test_nets_of_timm_have_its_parameters():
    specs = [resnet_variants.VARIANTS[name] for name in resnet_variants.TIMM_NAMES]
    counts = [architecture_table.count(spec, 1000, (224, 224, 3)).parameters for spec in specs]
    assert counts == list(map(int, TIMM_PARAMETERS))


@pytest.mark.parametrize(
    'initializer,fan,variance,bound',
    [
        ('he', 1, 2, 3**0.5),  # arXiv:1502.01852 Sec. 2.2, backward form, uniform: up to sqrt(3) deviations
        (
            'official',
            0,
            1,
            2 / 0.87962566,
        ),  # as tf.compat.v1.variance_scaling_initializer(): cut off at 2 of the normal
    ],
)
def test_initial_kernels(initializer, fan, variance, bound):
    keras.utils.set_random_seed(1)
    model = resnet_variants.cifar_resnet(14, initializer=initializer)
    for name, fans in {'group2_block1_conv1': (144, 288), 'group3_block1_conv1': (288, 576)}.items():
        kernel = model.get_layer(name).kernel.numpy()
        deviation = (variance / fans[fan]) ** 0.5
        assert kernel.std() == pytest.approx(deviation, rel=0.02)
        assert 0.98 * bound * deviation < abs(kernel).max() < 1.001 * bound * deviation


def possible(**axes):
    """The ResNetSpec, or None where no network has these axes."""
    try:
        return ResNetSpec(**axes)
    except UserError:
        return None


CHOICES = {name: st.sampled_from(choices) for name, choices in resnet_spec._CHOICES.items() if name != 'initializer'}
SPECS = st.builds(
    possible,
    group_blocks=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    filters=st.sampled_from([4, 16]),
    width=st.integers(1, 2),
    base_width=st.sampled_from([64, 128]),
    cardinality=st.sampled_from([1, 2]),
    stem_filters=st.sampled_from([None, 6]),
    se_reduction=st.sampled_from([0, 2]),
    se_divisor=st.sampled_from([1, 8]),
    eca=st.booleans(),
    stem_bias=st.booleans(),
    projection_pool=st.booleans(),
    batch_norm=st.booleans(),
    bn_scale=st.booleans(),
    **CHOICES,
).filter(bool)


@settings(max_examples=40, deadline=None)
@given(spec=SPECS, sides=st.tuples(st.integers(20, 40), st.integers(20, 40)), num_classes=st.integers(1, 5))
def test_a_spec_is_counted_as_its_network(spec, sides, num_classes):
    shape = (*sides, resnet_variants.IMAGE_SHAPES[spec.stem][2])
    try:
        model = weightless(spec, num_classes, shape)
    except UserError:  # option A cannot reduce channels
        return
    counts = architecture_table.count(spec, num_classes, shape)
    assert counts[:2] == (count_parameters(model), count_multiply_adds(model))
    maps = grad_cam.features(model).output
    assert counts.sizes == [tuple(maps[name].shape[1:3]) for name in maps if name.startswith(('stem', 'group'))]


def test_layer_names_are_pinned():
    first = 'conv1 bn1 relu1 conv2 bn2 add out'
    others = 'conv1_pad conv1 bn1 relu1 conv2 shortcut_conv bn2 shortcut_bn add out'
    groups = [f'group{i}_block1_{name}' for i in (1, 2, 3) for name in (first if i == 1 else others).split()]
    names = [layer.name for layer in resnet_variants.cifar_resnet(8, shortcut='B').layers]
    assert names == ['images', 'stem_conv', 'stem_bn', 'stem_relu', *groups, 'head_pool', 'logits']
    names = [layer.name for layer in resnet_variants.cifar_resnet(8, shortcut=None).layers]
    assert not any(name.endswith('_add') or 'shortcut' in name for name in names)


def test_v2_has_no_bn_after_the_stem_and_projects_the_preactivated_input():
    model = resnet_variants.cifar_resnet(8, version='2', shortcut='B')
    names = [layer.name for layer in model.layers]
    assert 'stem_bn' not in names and not any(name.endswith('shortcut_bn') for name in names)
    assert names[-4:] == ['head_bn', 'head_relu', 'head_pool', 'logits']
    assert model.get_layer('group2_block1_shortcut_conv').input is model.get_layer('group2_block1_relu1').output
    addends = model.get_layer('group1_block1_out').input  # an identity carries the raw stem
    assert any(addend is model.get_layer('stem_conv').output for addend in addends)


@pytest.mark.parametrize('side,before', [('end', 0), ('both', 1)])
def test_option_a_takes_every_second_pixel_and_adds_zero_channels(side, before):
    spec = ResNetSpec((1,), filters=4, shortcut_padding=side)
    images = normal(2, 4, 4, 2)
    expected = np.zeros((2, 2, 2, 4), 'float32')
    expected[..., before : before + 2] = images[:, ::2, ::2]
    model = model_of(resnet_model.shortcut_of, (4, 4, 2), spec, 4, 2, 'x', is_first=True)
    np.testing.assert_array_equal(model(images), expected)


def test_block_computes_what_the_paper_says():
    model = model_of(resnet_model.residual_block, (5, 5, 2), ResNetSpec((1,), filters=2), 2, 1, 'b')
    images = normal(2, 5, 5, 2)

    def conv_bn(x, i):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = model.get_layer(f'b_conv{i}').kernel.numpy()  # [3, 3, in, out]
        y = sum(padded[:, r : r + 5, c : c + 5] @ kernel[r, c] for r in range(3) for c in range(3))
        return y / np.sqrt(1 + model.get_layer(f'b_bn{i}').epsilon)  # fresh batch norm: mean 0, variance 1

    expected = np.maximum(conv_bn(np.maximum(conv_bn(images, 1), 0), 2) + images, 0)
    np.testing.assert_allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize('version,strides', [('1', [2, 1, 1]), ('1.5', [1, 2, 1]), ('2', [1, 2, 1])])
def test_where_a_bottleneck_strides(version, strides):
    convs = resnet_spec.block_convolutions(ResNetSpec((1,), block='bottleneck', version=version), 64, 2)
    assert [conv.stride for conv in convs] == strides
    assert [conv[:2] for conv in convs] == [(64, 1), (64, 3), (256, 1)]


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


@pytest.mark.parametrize('zero_gamma', [False, True])
def test_zero_residual_blocks_change_nothing(zero_gamma):
    """The constructive argument of 1512.03385 Sec. 1: a block with F = 0 is an identity after a ReLU."""
    spec = ResNetSpec((3,), filters=4, zero_gamma=zero_gamma)
    model = model_of(resnet_model.residual_group, (8, 8, 4), spec, 4, 3, 1, 'g')
    for i in (1, 2, 3) if not zero_gamma else ():  # which are zeros from the start
        model.get_layer(f'g_block{i}_bn2').gamma.assign(np.zeros(4))
    images = np.abs(normal(2, 8, 8, 4))
    np.testing.assert_array_equal(model(images), images)


@pytest.mark.parametrize(
    'make,message',
    [
        (lambda: resnet_variants.cifar_spec(30, block='bottleneck'), '9n+2; the nearest are 29 and 38'),
        (lambda: ResNetSpec((3,), shortcut='D'), "shortcut='D' must be one of 'A', 'B'"),
        (lambda: ResNetSpec((3, 0)), 'group_blocks'),
        (lambda: ResNetSpec((3,), bn_momentum=1.0), 'bn_momentum'),
        (lambda: ResNetSpec((3,), cardinality=32), 'bottleneck'),
        (lambda: ResNetSpec((3,), stochastic_depth=1.0), 'stochastic_depth=1.0'),
        (lambda: ResNetSpec((3,), shortcut=None, stochastic_depth=0.5), 'shortcut'),
        (lambda: ResNetSpec((3,), version='2', zero_gamma=True), 'zero_gamma'),
        (lambda: ResNetSpec((3,), output_stride=4), 'output_stride=4'),
        (lambda: ResNetSpec((3,), output_stride=8, stride_block='last'), 'stride_block'),
        (lambda: ResNetSpec((3, 3), group_filters=(4,)), 'group_filters=(4,): pass 2'),
        (lambda: ResNetSpec((3,), block='pooled', version='2'), "version='2'"),
        (lambda: ResNetSpec((3,), zero_gamma=True, bn_scale=False), 'bn_scale'),
        (lambda: ResNetSpec((3,), se_reduction=-1), 'se_reduction=-1'),
        (lambda: ResNetSpec((3,), se_reduction=16, se_divisor=0), 'se_divisor=0'),
        (lambda: ResNetSpec((3,), se_reduction=16, eca=True), 'eca=True'),
        (lambda: resnet_variants.cifar_resnet(20, versoin='2'), "versoin='2' is not a field"),
        (lambda: resnet_variants.imagenet_resnet(50, blocks='basic'), "blocks='basic'"),
        (lambda: resnet_variants.mnist_resnet(filter=8), 'pass filters'),
        (lambda: resnet_variants.build_model('resnet50', 10), "'resnet50'; pass resnet50_v1.5, resnet50_v1, "),
        (lambda: resnet_variants.build_model('ResNet-101', 10), "'ResNet-101'; pass resnet101_v1.5, "),
        (lambda: resnet_variants.build_model('vgg', 10), 'resnet20_v1, '),
    ],
)
def test_wrong_specs(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_spec_of_an_earlier_version_is_read_or_refused_in_one_line():
    spec = resnet_variants.cifar_spec(8, activation='sigmoid', batch_norm=False, output_stride=8)
    content = json.loads(json.dumps(dataclasses.asdict(spec)))
    for same in ({}, {'data_format': 'channels_last', 'experiment': None}):
        assert ResNetSpec.from_json(content | same) == spec
    for field in ({'data_format': 'channels_first'}, {'experiment': {'gate': None}}, {'no_such_field': 1}):
        with pytest.raises(UserError, match=f'{next(iter(field))}=.*train or convert') as error:
            ResNetSpec.from_json(content | field)
        assert '\n' not in str(error.value)


def test_stochastic_depth_drops_whole_images_in_training_only():
    spec = ResNetSpec((4,), filters=2, stochastic_depth=0.8)
    model = model_of(resnet_model.residual_group, (4, 4, 2), spec, 2, 4, 1, 'g')
    last = model.get_layer('g_block4_drop')
    ones = np.ones((1000, 4, 4, 2), 'float32')
    kept = np.asarray(last(ones, training=True))
    assert np.all(kept == kept[:, :1, :1, :1])  # all of an image or nothing
    assert kept[:, 0, 0, 0].mean() == pytest.approx(1, abs=0.2)  # what is kept is scaled up
    assert (kept[:, 0, 0, 0] == 0).mean() == pytest.approx(0.8, abs=0.05)
    np.testing.assert_array_equal(last(ones, training=False), ones)


@pytest.mark.parametrize('size', [10, 11])
@pytest.mark.parametrize('pool', ['pad1', 'torch', 'same', 'ceil'])
def test_stem_pools(size, pool):
    """'ceil' is Caffe's: equal to TensorFlow's 'same' where the map is even, one smaller where it is odd."""
    model = resnet_model.resnet(resnet_variants.imagenet_spec(18, stem_pool=pool, filters=1), 2, (2 * size,) * 2 + (3,))
    before, after = (model.get_layer(name).output for name in ('stem_relu', 'stem_pool'))
    image = normal(1, 2 * size, 2 * size, 3)
    maps, pooled = (np.asarray(maps)[0, ..., 0] for maps in keras.Model(model.input, [before, after])(image))
    pool = pool.replace('torch', 'pad1')  # which differ in negative maps only
    start, count = {'pad1': (-1, (size + 1) // 2), 'same': (-(size % 2), (size + 1) // 2), 'ceil': (0, size // 2)}[pool]
    padded = np.pad(maps, 1)  # zeros do not show, because no map is negative
    rows = [slice(start + 1 + 2 * i, start + 4 + 2 * i) for i in range(count)]
    np.testing.assert_array_equal(pooled, [[padded[row, column].max() for column in rows] for row in rows])


def test_blur_pool_filters_before_strides():
    model = resnet_model.resnet(resnet_variants.imagenet_spec(18, blur_pool='all', filters=16), 2, (32, 32, 3))
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    blocks = [f'group{i}_block1_{conv}_blur' for i in (2, 3, 4) for conv in ('shortcut_conv', 'conv1')]
    assert sorted(names) == sorted(['stem_pool', *blocks])  # the stem's convolution has 3 input channels
    image = normal(1, 8, 8, 2)
    blurred = np.asarray(model_of(more_layers.blur, (8, 8, 2), 2, 'blur')(image))[0]
    padded, rows = np.pad(image[0], ((1, 1), (1, 1), (0, 0))), np.outer([1, 2, 1], [1, 2, 1])[:, :, None] / 16
    for i, j in np.ndindex(4, 4):
        np.testing.assert_allclose(blurred[i, j], (padded[2 * i :][:3, 2 * j :][:, :3] * rows).sum((0, 1)), rtol=1e-5)
    assert not any('blur' in variable.path for variable in model.trainable_variables)


@pytest.mark.parametrize('variant', ['resnet8_pooled', 'plain8_pooled'])
def test_a_pooled_block_has_its_identity_in_the_shortcut_or_in_its_kernel(variant):
    model = resnet_variants.build_model(variant, 10)
    conv = model.get_layer('group2_block1_conv2')
    if variant == 'resnet8_pooled':
        conv.kernel.assign(conv.kernel * 0)
    reduced, out = (model.get_layer(f'group2_block1_{name}').output for name in ('act1', 'out'))
    before, after = keras.Model(model.input, [reduced, out])(normal(2, 32, 32, 3))
    np.testing.assert_allclose(after, keras.activations.gelu(before), rtol=1e-3, atol=1e-4)  # BN's epsilon
    assert not any(name in path for path in weights_of(model) for name in ('gamma', 'stem_conv/kernel'))
    tables = [architecture_table.describe(f'{name}8_pooled') for name in ('resnet', 'plain')]
    assert [table['version/shortcut'] for table in tables] == [['1/A'], ['1/none']]


def weights_of(model):
    return [variable.path for variable in model.trainable_variables]


def test_output_stride_dilates_instead():
    model = resnet_model.resnet(resnet_variants.imagenet_spec(18, output_stride=8, filters=4), 10, (64, 64, 3))
    assert [model.get_layer(f'group{g}_block1_out').output.shape[1] for g in (1, 2, 3, 4)] == [16, 8, 8, 8]
    dilations = [model.get_layer(f'group{g}_block{b}_conv2').dilation_rate[0] for g in (1, 2, 3, 4) for b in (1, 2)]
    assert dilations == [1, 1, 1, 1, 1, 2, 2, 4]


def test_without_batch_norm_and_relu_names_stay():
    spec = ResNetSpec((1,), filters=2, batch_norm=False, activation='sigmoid')
    model = model_of(resnet_model.residual_block, (4, 4, 2), spec, 2, 1, 'b')
    assert [layer.name for layer in model.layers[1:]] == ['b_conv1', 'b_relu1', 'b_conv2', 'b_add', 'b_out']
    assert model.get_layer('b_conv1').use_bias and model.get_layer('b_out').activation is keras.activations.sigmoid


def test_a_network_may_have_another_block():
    def block(x, spec, filters, stride, name, **options):
        seen.append((filters, stride, name, *options.values()))
        return keras.layers.Conv2D(filters, 1, stride, name=f'{name}_conv')(x)

    seen = []
    spec = ResNetSpec((2, 1), filters=4, stochastic_depth=0.6)
    model = resnet_model.resnet(spec, 3, (8, 8, 3), block=block)
    assert seen == [
        (4, 1, 'group1_block1', True, 1, pytest.approx(0.2)),
        (4, 1, 'group1_block2', False, 1, pytest.approx(0.4)),
        (8, 2, 'group2_block1', True, 1, pytest.approx(0.6)),
    ]
    assert model.get_layer('group2_block1_conv').output.shape == (None, 4, 4, 8)


def test_the_command_prints_table_1_without_tensorflow(tmp_path):
    code = (
        'import atexit, runpy, sys; atexit.register(lambda: print({"tensorflow", "keras"} & set(sys.modules))); '
        'runpy.run_module("official_resnet.resnet_variants", run_name="__main__", alter_sys=True)'
    )

    def call(*names):
        return programs.run([sys.executable, '-c', code, *names], cwd=tmp_path).out

    lines = call('resnet50_v1', 'resnet50_v1.5').splitlines()
    assert lines[0].split() == ['resnet50_v1', 'resnet50_v1.5'] and lines[-1] == 'set()'
    assert 'group1 56x56     [1x1, 64]              [1x1, 64]' in lines
    groups = [line.split()[1] for line in lines if line.startswith('group')]
    assert groups == ['56x56', '28x28', '14x14', '7x7']
    assert any(line.split() == ['[3x3,', '64]', 'x3'] * 2 for line in lines)
    assert any(line.split() == ['parameters', '25,557,032', '25,557,032'] for line in lines)
    assert any(line.split() == ['multiply-adds', '3,858', 'M', '4,089', 'M'] for line in lines)
    assert set(resnet_variants.VARIANTS) <= set(call().split())
