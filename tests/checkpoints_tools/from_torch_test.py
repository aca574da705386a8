"""PyTorch's files without PyTorch: formats, names, and the functions computed."""

import dataclasses
import math
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from fixtures import torch_files
from fixtures.conversion import changed, images_of, our_model, refuse, shapes_of
from fixtures.torch_files import Call, Global

from checkpoints_tools import convert, from_timm_v2, from_torch, verify
from official_resnet import resnet_variants

# torchvision's arguments of each net, and its parameters (sources: models/resnet.py; the table).
PUBLISHED = {
    'resnet18': (((2, 2, 2, 2),), 11_689_512),
    'resnet34': (((3, 4, 6, 3),), 21_797_672),
    'resnet50': (((3, 4, 6, 3), True), 25_557_032),
    'resnet101': (((3, 4, 23, 3), True), 44_549_160),
    'resnet152': (((3, 8, 36, 3), True), 60_192_808),
    'resnext50_32x4d': (((3, 4, 6, 3), True, 64, 32, 4), 25_028_904),
    'resnext101_32x4d': (((3, 4, 23, 3), True, 64, 32, 4), 44_177_704),
    'resnext101_32x8d': (((3, 4, 23, 3), True, 64, 32, 8), 88_791_336),
    'resnext101_64x4d': (((3, 4, 23, 3), True, 64, 64, 4), 83_455_272),
    'wide_resnet50_2': (((3, 4, 6, 3), True, 64, 1, 128), 68_883_240),
    'wide_resnet101_2': (((3, 4, 23, 3), True, 64, 1, 128), 126_886_696),
}
RESNET26 = ((2, 2, 2, 2), True)
# timm's: the arguments of net_shapes and those of timm_shapes, and the parameters as timm counts them.
TIMM = {
    'resnet18d': (((2, 2, 2, 2),), ((32, 32, 64), '', True), 11_708_744),
    'resnet26': (RESNET26, (), 15_995_176),
    'resnet50c': (((3, 4, 6, 3), True), ((32, 32, 64),), 25_576_264),
    'resnet50s': (((3, 4, 6, 3), True), ((64, 64, 128),), 25_680_808),
    'seresnet18': (((2, 2, 2, 2),), ((), 'se'), 11_779_624),
    'seresnet50': (((3, 4, 6, 3), True), ((), 'se'), 28_088_024),
    'seresnext26d_32x4d': ((*RESNET26, 64, 32, 4), ((32, 32, 64), 'se', True), 16_809_512),
    'ecaresnet26t': (RESNET26, ((24, 32, 64), 'eca', True), 16_011_916),
    'ecaresnetlight': (((1, 1, 11, 3), True), ((), 'eca', True), 30_162_046),
}
CIFAR_A = torch_files.random_weights(torch_files.TINY['cifar_a'])


def typed(shapes):
    return {name: (shape, 'float32') for name, shape in shapes.items()}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_nets_are_recognised(name):
    arguments, num_parameters = PUBLISHED[name]
    shapes = torch_files.net_shapes(*arguments)
    assert sum(math.prod(shape) for variable, shape in shapes.items() if 'running' not in variable) == num_parameters
    source, _ = convert.fit(from_torch, typed(shapes), 'x')
    expected = dataclasses.replace(resnet_variants.VARIANTS[from_torch.NAMES[name]], bn_momentum=0.9)
    assert (source.variant, source.spec, source.labels) == (name, expected, 'imagenet1000')


@pytest.mark.parametrize('name', TIMM)
def test_nets_of_timm_are_recognised(name):
    arguments, changes, num_parameters = TIMM[name]
    shapes = torch_files.timm_shapes(torch_files.net_shapes(*arguments), *changes)
    assert sum(math.prod(shape) for variable, shape in shapes.items() if 'running' not in variable) == num_parameters
    source, _ = convert.fit(from_torch, typed(shapes), 'x')
    expected = dataclasses.replace(resnet_variants.VARIANTS[from_torch.NAMES[name]], bn_momentum=0.9)
    assert (source.variant, source.spec) == (name, expected)


@pytest.mark.parametrize(
    'name,arguments', [('resnetv2_34', ((3, 4, 6, 3), False)), ('resnetv2_50', ((3, 4, 6, 3), True))]
)
@pytest.mark.parametrize('letter,stem', [('', ()), ('d', (32, 32))])
def test_nets_of_version_2_are_recognised(name, arguments, letter, stem):
    source, _ = convert.fit(from_timm_v2, typed(torch_files.v2_shapes(*arguments, 64, stem)), 'x')
    expected = dataclasses.replace(resnet_variants.VARIANTS[name + letter], bn_momentum=0.9)
    assert (source.variant, source.spec) == (name + letter, expected)


RESNET50 = torch_files.net_shapes((3, 4, 6, 3), True)
NO_STATISTICS = dict.fromkeys(name for name in RESNET50 if name.endswith('running_mean'))
V2_NORM = 'stages.0.blocks.0.norm1'
NO_STATISTICS_V2 = dict.fromkeys(name for name in torch_files.V2['basic'] if name.endswith('running_mean'))


@pytest.mark.parametrize(
    'module,change,variant,message',
    [
        (from_torch, {}, 'resnetblur50', 'anti-aliasing'),
        (from_torch, {}, 'seresnextaa101d_32x8d', 'anti-aliasing'),
        (from_torch, {'layer2.0.aa.filt': (128, 1, 3, 3)}, None, 'anti-aliasing'),
        (from_torch, {'maxpool.0.weight': (64, 64, 3, 3)}, None, 'resnetrs'),
        (from_torch, {'attnpool.positional_embedding': (50, 2048)}, None, 'attention pooling'),
        (from_torch, {'layer1.0.conv2.fc1.weight': (32, 64, 1, 1)}, None, 'split attention'),
        (from_torch, {'layer1.0.conv2.attn.fc_reduce.weight': (32, 64, 1, 1)}, None, 'selective kernels'),
        (from_torch, {'layer1.0.se.channel.fc1.weight': (16, 256, 1, 1)}, None, 'neither SE nor ECA'),
        (from_torch, {}, 'senet154', 'senet154'),
        (from_torch, {}, 'vit_base', '--variant=vit_base is no network; leave it out for resnet50'),
        (from_torch, NO_STATISTICS, None, 'group normalisation'),
        (from_timm_v2, NO_STATISTICS_V2, None, 'group normalisation .*weight standardisation'),
        (from_timm_v2, NO_STATISTICS_V2 | {f'{V2_NORM}.v': (4,)}, None, 'EvoNorm'),
        (from_timm_v2, NO_STATISTICS_V2 | {f'{V2_NORM}.tau': (4,)}, None, 'filter response'),
    ],
)
def test_what_no_net_here_has_is_refused_by_name(module, change, variant, message):
    shapes = typed(changed(RESNET50 if module is from_torch else torch_files.V2['basic'], change))
    assert module.recognises(shapes)
    refuse(message, module.describe, shapes, variant)


def test_stems_that_are_neither_deep_nor_tiered():
    shapes = torch_files.timm_shapes(torch_files.net_shapes(*RESNET26), (24, 48, 64))  # timm's T of before
    refuse('24, 48 and 64 filters', from_torch.describe, typed(shapes))


def test_akamaster_is_recognised():
    shapes = torch_files.net_shapes((5, 5, 5), filters=16, classes=10, is_cifar=True, option='A')
    source = from_torch.describe(typed(shapes))
    assert source.variant == 'resnet32' and source.labels == 'cifar10' and source.input.size == 32
    assert (source.spec.shortcut, source.spec.shortcut_padding) == ('A', 'both')


@pytest.mark.parametrize(
    'module,shapes',
    [
        *(pytest.param(from_torch, shapes, id=name) for name, shapes in torch_files.TINY.items()),
        *(pytest.param(from_timm_v2, shapes, id=f'version 2, {name}') for name, shapes in torch_files.V2.items()),
    ],
)
def test_our_net_computes_the_same(module, shapes):
    variables = torch_files.random_weights(shapes)
    model, source = our_model(module, variables)
    found = verify.verify(model, module, variables, source)
    assert found['max_relative_difference'] < 1e-5 and found['max_logit'] > 0.1


def test_variant_moves_the_stride_and_nothing_else():
    shapes = typed(torch_files.net_shapes((3, 4, 6, 3), True))
    assert from_torch.describe(shapes, 'resnet50').spec.version == '1.5'
    assert from_torch.describe(shapes, 'resnet50_v1').spec.version == '1'
    refuse('--variant=resnet101 .* resnet50', from_torch.describe, shapes, 'resnet101')
    variables = torch_files.random_weights(torch_files.TINY['bottleneck'])
    source = from_torch.describe(shapes_of(variables))
    other = dataclasses.replace(source, spec=dataclasses.replace(source.spec, version='1'))
    logits, others = (from_torch.run(variables, images_of(64), each) for each in (source, other))
    assert np.abs(logits - others).max() > 0.01 * np.abs(logits).max()


def wrapped_in_an_ordered_dict(tensors):
    return {'model': Call(Global('collections', 'OrderedDict'), ([list(item) for item in tensors.items()],))}


def wrapped_in_a_training(tensors):
    return {'epoch': 3, 'state_dict': tensors, 'best_prec1': 91.78, 'optimizer': {}}


@pytest.mark.parametrize('write', [torch_files.write_zip, torch_files.write_legacy])
@pytest.mark.parametrize(
    'wrap,prefix',
    [(dict, ''), (wrapped_in_a_training, 'module.'), (wrapped_in_an_ordered_dict, 'module._orig_mod.')],
)
def test_formats_and_wrappers(write, wrap, prefix, tmp_path):
    path = tmp_path / 'net.th'
    write(path, {prefix + name: array for name, array in CIFAR_A.items()}, wrap)
    assert from_torch.shapes(path) == shapes_of(CIFAR_A)
    read = from_torch.read(path)
    assert read.keys() == CIFAR_A.keys() and all(np.array_equal(read[name], CIFAR_A[name]) for name in read)


@pytest.mark.parametrize('prefix', ['', 'module.backbone.'])
@pytest.mark.parametrize('name,first', [('basic', 4), ('bottleneck', 4), ('deep_d', 4), ('cifar_a', 2), ('cifar_b', 3)])
def test_a_sequence_of_modules_gets_their_names(name, first, prefix, tmp_path):
    weights = torch_files.random_weights(torch_files.TINY[name])
    head = {key: value for key, value in weights.items() if key.startswith(('fc', 'linear'))}
    numbered = {prefix + key: value for key, value in torch_files.in_sequence(weights, first).items()}
    torch_files.write_zip(tmp_path / 'net.pth', numbered)
    module, shapes = convert.identify(tmp_path / 'net.pth')
    assert module is from_torch and shapes == shapes_of(changed(weights, dict.fromkeys(head)))
    read = from_torch.read(tmp_path / 'net.pth')
    assert all(np.array_equal(read[key], weights[key]) for key in shapes)
    convert.fit(from_torch, shapes | shapes_of(head), 'x')


BASIC = torch_files.random_weights(torch_files.TINY['basic'])
ONE = np.ones((1, 1), 'float32')
TWICE = torch_files.in_sequence(CIFAR_A, 3)


@pytest.mark.parametrize(
    'weights',
    [
        torch_files.in_sequence(BASIC, 3),  # four layers without a place for a pool
        torch_files.in_sequence(BASIC, 5),
        torch_files.in_sequence(CIFAR_A, 4),  # three layers with a place for a pool
        torch_files.in_sequence(BASIC) | {'8.weight': ONE},
        torch_files.in_sequence(BASIC) | {'2.weight': ONE},
        torch_files.in_sequence(BASIC) | {'head.weight': ONE},
        {name: value for name, value in torch_files.in_sequence(BASIC).items() if not name.startswith('7')},
        {f'1{name}': value for name, value in torch_files.in_sequence(BASIC).items()},  # modules 10, 11, 14 ...
    ],
)
def test_other_sequences_are_not_guessed_at(weights, tmp_path):
    torch_files.write_zip(tmp_path / 'net.pth', weights)
    assert from_torch.shapes(tmp_path / 'net.pth') == shapes_of(weights)
    refuse('no family knows', convert.convert, tmp_path / 'net.pth', tmp_path / 'net.keras')


def test_two_sequences_in_a_file_are_refused(tmp_path):
    torch_files.write_zip(tmp_path / 'net.pth', {f'{i}.{name}': value for i in 'ab' for name, value in TWICE.items()})
    refuse(r'2 networks, a\.\*, b\.\*; save one', from_torch.shapes, tmp_path / 'net.pth')


def test_a_sequence_whose_stem_is_of_another_kind_is_refused():
    """Four layers behind a 3x3 stem, as in lightly's networks for CIFAR-10: with or without a pool, nobody knows."""
    shapes = typed(torch_files.TINY['basic'] | {'conv1.weight': (4, 3, 3, 3)})
    numbered = from_torch.named(torch_files.in_sequence(shapes))
    refuse('4 layers', from_torch.describe, numbered | {'fc.weight': shapes['fc.weight']})


def test_safetensors(tmp_path):
    path = tmp_path / 'net.safetensors'
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in CIFAR_A.items()}
    safetensors.numpy.save_file({f'module.{name}': array for name, array in half.items()}, path)
    assert from_torch.shapes(path) == shapes_of(half)
    assert all(np.array_equal(array, half[name]) for name, array in from_torch.read(path).items())
    path.rename(tmp_path / 'net.bin')
    assert from_torch.shapes(tmp_path / 'net.bin').keys() == half.keys()  # known by its content


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
    refuse(r"pip install -e '.\[convert\]'", from_torch.shapes, tmp_path / 'net.safetensors')
