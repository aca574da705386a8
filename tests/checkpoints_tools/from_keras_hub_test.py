"""KerasHub's ResNets in its files and presets, with names of layers or without, in and out; what is refused."""

import json
import zipfile

import keras
import numpy as np
import pytest
from fixtures.conversion import assert_equal, assert_runs_alike, converted, images_of, refuse
from fixtures.foreign_files import applications_net
from fixtures.hub_files import hub_net, write_hub, write_hub_preset
from fixtures.random_weights import randomize

from checkpoints_tools import convert, from_keras_applications, from_keras_hub
from checkpoints_tools.selection import Choice
from checkpoints_tools.source import Input, normalized
from official_resnet import resnet_model
from official_resnet.resnet_spec import ResNetSpec

DEEP, TIERED = (4, 4, 8), (3, 4, 8)
# arguments of hub_net -> the variant, fields of the spec
NETS = {
    'basic': ({'block_type': 'basic_block'}, 'resnet_8', {'shortcut': 'B', 'version': '1.5'}),
    'bottleneck': ({}, 'resnet_11', {'block': 'bottleneck', 'head_pool': 'average'}),
    'maxima': ({'pooling': 'max'}, 'resnet_11', {'head_pool': 'max'}),
    'basic vd': ({'block_type': 'basic_block_vd', 'stem': DEEP}, 'resnet_vd_8', {'shortcut': 'group'}),
    'vd': ({'block_type': 'bottleneck_block_vd', 'stem': DEEP}, 'resnet_vd_11', {'projection_pool': True}),
    'vd, 7x7': ({'block_type': 'bottleneck_block_vd'}, 'resnet_vd_11', {'stem': 'imagenet'}),
    'tiered': ({'stem': TIERED}, 'resnet_11', {'stem': 'tiered', 'projection_pool': False}),
    'basic v2': ({'block_type': 'basic_block', 'is_v2': True}, 'resnet_v2_8', {'version': '2'}),
    'v2': ({'is_v2': True, 'stem': (16,)}, 'resnet_v2_11', {'stem_filters': 16, 'stem_pool': 'torch'}),
    'deep v2': ({'is_v2': True, 'stem': DEEP}, 'resnet_v2_11', {'stem': 'deep', 'projection_pool': False}),
}


@pytest.mark.parametrize('name', NETS)
def test_our_network_computes_the_same(name, tmp_path):
    """From a .keras file, and from a preset whose layers have only the numbers that Keras itself gives them."""
    arguments, variant, fields = NETS[name]
    net, config = hub_net(**arguments)
    write_hub(tmp_path / 'net.keras', net, config)
    assert convert.identify(tmp_path / 'net.keras')[0] is from_keras_hub
    source, variables, model = converted(from_keras_hub, tmp_path / 'net.keras')
    assert source.variant == variant and {field: getattr(source.spec, field) for field in fields} == fields
    assert_runs_alike(from_keras_hub, source, variables, model, peer=net)
    write_hub_preset(tmp_path / 'preset', net, config, has_names=False)
    assert convert.identify(tmp_path / 'preset')[0] is from_keras_hub
    numbered = from_keras_hub.read(tmp_path / 'preset')
    assert numbered.keys() == variables.keys()
    assert all(np.array_equal(numbered[key], variables[key]) for key in variables)


def test_a_preset_and_its_backbone_alone(tmp_path):
    net, config = hub_net()
    write_hub_preset(tmp_path / 'preset', net, config)
    card = convert.convert(tmp_path / 'preset', tmp_path / 'net.keras')
    names = {'model.weights.h5', 'config.json', 'task.json', 'task.weights.h5'}
    assert card['source_sha256'].keys() == names and (card['family'], card['num_classes']) == ('keras_hub', 7)
    assert_equal(keras.models.load_model(tmp_path / 'net.keras')(images_of(64)).numpy(), net(images_of(64)).numpy())
    for name in ('task.json', 'task.weights.h5'):
        (tmp_path / 'preset' / name).unlink()
    refuse('predictions/kernel.*--no_head', convert.convert, tmp_path / 'preset', tmp_path / 'x.keras')
    for path in (tmp_path / 'preset', tmp_path / 'preset' / 'model.weights.h5'):
        card = convert.convert(path, tmp_path / 'features.keras', choice=Choice(has_head=False))
        assert (card['num_features'], card['source_sha256'].keys()) == (64, {'model.weights.h5', 'config.json'})
        features = net.get_layer('res_net_backbone')(images_of(64)).numpy().mean((1, 2))
        assert_equal(keras.models.load_model(tmp_path / 'features.keras')(images_of(64)).numpy(), features)


def test_weights_without_a_config(tmp_path):
    """Names tell the network, but not how a bottleneck's projection halves; without names, nothing does."""
    net, _ = hub_net(stem=DEEP)
    path = tmp_path / 'net.weights.h5'
    net.save_weights(path)
    shapes = from_keras_hub.shapes(path)
    variants = {variant: from_keras_hub.describe(shapes, variant) for variant in (None, 'resnet_11', 'resnet_vd_11')}
    assert [source.variant for source in variants.values()] == ['resnet_vd_11', 'resnet_11', 'resnet_vd_11']
    assert [source.spec.projection_pool for source in variants.values()] == [True, False, True]
    assert variants[None].input == Input()
    net, config = hub_net()
    write_hub_preset(tmp_path / 'preset', net, config, has_names=False)
    for name in ('config.json', 'task.json'):
        (tmp_path / 'preset' / name).unlink()
    refuse('no names.*no config', from_keras_hub.shapes, tmp_path / 'preset')


def test_files_of_keras_applications_are_no_files_of_keras_hub(tmp_path):
    applications_net(False, (1, 1), 4, 3).save(tmp_path / 'net.keras')
    assert convert.identify(tmp_path / 'net.keras')[0] is from_keras_applications


@pytest.mark.parametrize(
    'change,message',
    [
        ({'stackwise_num_strides': [2, 2]}, r'stackwise_num_strides=\[2, 2\].*\[1, 2\]'),
        ({'block_type': 'resnest_block'}, "block_type='resnest_block'.*'basic_block'"),
        ({'use_pre_activation': True}, 'use_pre_activation=True.*False'),
        ({'pooling': 'gem'}, "pooling='gem'.*'avg' or 'max'"),
        ({'activation': 'sigmoid'}, "activation='sigmoid'.*None or 'linear' or 'softmax'"),
        ({'stackwise_num_blocks': None}, 'damaged.*get it again'),
        ({'input_conv_filters': None}, 'damaged.*get it again'),
        ({'block_type': None}, "block_type=None.*'basic_block'"),
    ],
)
def test_what_our_networks_cannot_express_is_named(change, message, tmp_path):
    net, config = hub_net()
    for name, value in change.items():
        (config['config'] if name in config['config'] else config['config']['backbone']['config'])[name] = value
    write_hub(tmp_path / 'net.keras', net, config)
    refuse(message, convert.convert, tmp_path / 'net.keras', tmp_path / 'x.keras', 'keras_hub')
    assert [path.name for path in tmp_path.iterdir()] == ['net.keras']


@pytest.mark.parametrize('name', ['task.json', 'config.json'])
@pytest.mark.parametrize('text', ['{"config": ', '[]'])
def test_a_damaged_config_of_a_preset_is_not_passed_over(name, text, tmp_path):
    """Without it, a network that pools maxima would become one that pools means."""
    net, config = hub_net(pooling='max')
    write_hub_preset(tmp_path / 'preset', net, config)
    if name == 'config.json':  # which is read if there is no task
        (tmp_path / 'preset' / 'task.json').unlink()
    (tmp_path / 'preset' / name).write_text(text)
    refuse(f'{name}.*damaged', from_keras_hub.shapes, tmp_path / 'preset')


@pytest.mark.parametrize(
    'change', [{'stackwise_num_blocks': [10**9, 1 - 10**9]}, {'input_conv_filters': [8] * 1_000_000}]
)
def test_a_config_declares_no_more_layers_than_a_network_has(change, tmp_path):
    net, config = hub_net()
    config['config']['backbone']['config'] |= change
    write_hub_preset(tmp_path / 'preset', net, config, has_names=False)
    refuse('more than 10000 layers', from_keras_hub.shapes, tmp_path / 'preset')


@pytest.mark.parametrize(
    'converter,message',
    [
        ({'image_size': [-5, -5]}, r'size -5, not 1\.\.4096'),
        ({'image_size': [10**9, 10**9]}, r'size 1000000000, not'),
        ({'scale': -1.0}, r'std \[-1\.0'),
        ({'scale': 1e-300}, r'std \[9\.9+e\+299'),
        ({'scale': float('nan')}, r'mean \[nan'),
        ({'interpolation': 'nearest'}, "interpolation 'nearest', not 'bilinear' or 'bicubic'"),
    ],
)
def test_an_input_that_no_card_can_express_is_refused(converter, message, tmp_path):
    net, config = hub_net()
    config['config']['preprocessor'] = {'config': {'image_converter': {'config': converter}}}
    write_hub(tmp_path / 'net.keras', net, config)
    refuse(f'net.keras has {message}.*preprocessor', from_keras_hub.shapes, tmp_path / 'net.keras')


def test_pre_activation_with_averages_is_refused(tmp_path):
    """KerasHub builds this network, but its sums have two resolutions, so no image passes."""
    net, config = hub_net(is_v2=True)
    config['config']['backbone']['config']['block_type'] = 'bottleneck_block_vd'
    write_hub(tmp_path / 'net.keras', net, config)
    message = "block_type='bottleneck_block_vd'.*'basic_block' or 'bottleneck_block'$"
    refuse(message, convert.convert, tmp_path / 'net.keras', tmp_path / 'x.keras')


def test_stems_of_other_kernels_are_refused():
    net, _ = hub_net()
    shapes = {name: (shape, 'float32') for name, shape in _shapes(net).items()}
    refuse(r'kernel_sizes=\[5\].*\[7\]', from_keras_hub.describe, shapes | {'conv1_conv/kernel': ((5, 5, 3, 8), '')})


def _shapes(net):
    layers = [*net.get_layer('res_net_backbone').layers, net.get_layer('predictions')]
    return {f'{layer.name}/{weight.name}': tuple(weight.shape) for layer in layers for weight in layer.weights}


STD = (0.229, 0.224, 0.225)
PER_CHANNEL = {'scale': [1 / (255 * std) for std in STD], 'offset': [-0.5 / std for std in STD]}


@pytest.mark.parametrize(
    'converter,expected',
    [
        ({'scale': 1 / 127.5, 'offset': -1.0, 'image_size': [160, 160]}, Input(size=160, resize=160)),
        ({**PER_CHANNEL, 'crop_to_aspect_ratio': False}, Input(size=224, resize=None)),
        ({'scale': 1 / 255, 'mean': [0.5] * 3, 'variance': [0.04] * 3}, Input(size=224, resize=224)),
        ({'scale': None, 'offset': None, 'interpolation': 'bicubic'}, Input(resize=224, interpolation='bicubic')),
    ],
)
def test_the_input_is_that_of_the_image_converter(converter, expected, tmp_path):
    net, config = hub_net()
    config['config']['preprocessor'] = {'config': {'image_converter': {'config': converter}}}
    write_hub(tmp_path / 'net.keras', net, config)
    found = from_keras_hub.describe(from_keras_hub.shapes(tmp_path / 'net.keras')).input
    names = ('size', 'resize', 'interpolation')
    assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
    images = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype('float32')
    values = images * np.float32(converter['scale'] or 1)
    if 'mean' in converter:
        values = (values - converter['mean']) / np.sqrt(converter['variance'])
    values = values + np.float32(converter.get('offset') or 0)
    np.testing.assert_allclose(normalized(images, found), values, atol=1e-4)


# --- from our networks ---


def ours(path, **axes):
    """Write a network of ours with two groups of 64 and 128 filters; return it."""
    axes = {'filters': 64, 'stem': 'imagenet', 'version': '1.5', 'shortcut': 'B'} | axes
    model = randomize(resnet_model.resnet(ResNetSpec((2, 1), **axes), 5, (None, None, 3)))
    model.save(path)
    return model


VD = {'stem': 'deep', 'projection_pool': True}
WRITTEN = {
    'resnet_8': {},
    'resnet_11': {'block': 'bottleneck', 'stem': 'tiered', 'head_pool': 'max'},
    'resnet_vd_8': {**VD, 'shortcut': 'group'},
    'resnet_vd_11': {**VD, 'block': 'bottleneck'},
    'resnet_v2_11': {'block': 'bottleneck', 'version': '2', 'stem_pool': 'torch', 'group_filters': (64, 96)},
}


@pytest.mark.parametrize('name', WRITTEN)
def test_to_keras_hub_and_back_bit_for_bit(name, tmp_path):
    model = ours(tmp_path / 'net.keras', **WRITTEN[name])
    source = convert.to_family(tmp_path / 'net.keras', tmp_path / 'hub.keras', 'keras_hub')
    assert (source.variant, source.num_classes) == (name, 5)
    with zipfile.ZipFile(tmp_path / 'hub.keras') as archive:
        config = json.loads(archive.read('config.json'))
    assert config['registered_name'] == 'keras_hub>ResNetImageClassifier'
    backbone = config['config']['backbone']['config']
    assert backbone['stackwise_num_filters'] == [64, 96 if 'v2' in name else 128]
    assert backbone['stackwise_num_blocks'] == [2, 1] and backbone['stackwise_num_strides'] == [1, 2]
    module, shapes = convert.identify(tmp_path / 'hub.keras')
    back, entries = convert.fit(module, shapes, 'x')
    assert module is from_keras_hub and back == source
    values = from_keras_hub.read(tmp_path / 'hub.keras')
    weights = {variable.path: variable.numpy() for variable in model.variables}
    assert weights.keys() == {entry.target for entry in entries}
    assert all(np.array_equal(values[entry.sources[0]], weights[entry.target]) for entry in entries)


def test_a_network_that_was_trained_in_16_bits_is_compared_in_float32(tmp_path):
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        model = ours(tmp_path / 'net.keras')
    finally:
        keras.config.set_dtype_policy('float32')
    assert model.get_layer('stem_conv').compute_dtype == 'bfloat16'
    convert.to_family(tmp_path / 'net.keras', tmp_path / 'hub.keras', 'keras_hub')
    bias = from_keras_hub.read(tmp_path / 'hub.keras')['predictions/bias']
    assert np.array_equal(bias, model.get_layer('logits').bias)


@pytest.mark.parametrize(
    'axes,message',
    [
        ({'filters': 32}, '32 filters.*64'),
        ({'stem': 'cifar'}, r'kernel_sizes=\[3\].*ImageNet.*pass another'),
        ({'block': 'bottleneck', 'version': '1'}, r'strides of group2_block1_conv1 is \(2, 2\)'),
        ({'se_reduction': 16}, 'group1_block1_se_conv1/kernel.*KerasHub has no name'),
        ({'block': 'bottleneck', 'cardinality': 4}, r'misshapen: stack0_block0_.*_conv/kernel'),
        ({'shortcut': 'A', 'version': '1'}, 'missing: stack1_block0_0_conv/kernel'),
        ({'padding': 'same'}, 'layer stem_conv_pad '),
        ({'bn_epsilon': 1e-3}, 'epsilon of stem_bn is 0.001'),
        ({**VD}, 'missing: stack0_block0_0_conv/kernel'),  # only KerasHub projects in the first block of a basic vd
        ({**VD, 'version': '2'}, "block_type='basic_block_vd'.*'basic_block'"),
        ({'version': '2'}, 'layer stem_max '),  # zeros around what no ReLU has made positive
    ],
)
def test_what_keras_hub_cannot_express_is_named(axes, message, tmp_path):
    ours(tmp_path / 'net.keras', **axes)
    refuse(message, convert.to_family, tmp_path / 'net.keras', tmp_path / 'hub.keras', 'keras_hub')
    assert [path.name for path in tmp_path.iterdir()] == ['net.keras']
