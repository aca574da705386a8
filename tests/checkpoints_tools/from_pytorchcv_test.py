"""pytorchcv's networks: names, variants that weights do not tell, what is refused, and the functions computed."""

import pytest
from fixtures import torch_files
from fixtures.conversion import assert_runs_alike, our_model, refuse

from checkpoints_tools import convert, from_pytorchcv

BOTTLENECK, BASIC, GROUPED = (torch_files.TINY[name] for name in ('bottleneck', 'basic', 'grouped'))
CIFAR = torch_files.net_shapes((1, 1, 1), filters=4, classes=10, is_cifar=True)
WIDE = torch_files.net_shapes((1, 1, 1), filters=8, classes=10, is_cifar=True) | {'conv1.weight': (4, 3, 3, 3)}
WIDE |= {'layer1.0.conv1.weight': (8, 4, 3, 3), 'layer1.0.shortcut.0.weight': (8, 4, 1, 1)}
UNIT = 'features.stage1.unit1'


def typed(shapes):
    return {name: (shape, 'float32') for name, shape in shapes.items()}


# torchvision's shapes, options of as_pytorchcv, variant -> fields of the spec
NETS = {
    'resnet17': (BOTTLENECK, (), 'resnet17', {'version': '1'}),
    'resnet17b': (BOTTLENECK, (), 'resnet17b', {'version': '1.5'}),
    'preresnet17': (BOTTLENECK, (True,), 'preresnet17', {'version': '2', 'stride_conv': 'first', 'stem_bn': True}),
    'preresnet17b': (BOTTLENECK, (True,), 'preresnet17b', {'version': '2', 'stride_conv': '3x3', 'stem_bn': True}),
    'seresnet12': (BASIC, (False, 2), None, {'version': '1', 'se_reduction': 2}),
    'seresnext14_4x8d': (GROUPED, (False, 8), None, {'version': '1.5', 'cardinality': 4, 'se_reduction': 8}),
    'resnet8_cifar10': (CIFAR, (), None, {'stem': 'cifar', 'version': '1'}),
    'wrn10_2_cifar10': (WIDE, (True,), None, {'version': '2', 'filters': 8, 'stem_filters': 4}),
}


@pytest.mark.parametrize('name', NETS)
def test_our_network_computes_the_same(name):
    shapes, options, variant, fields = NETS[name]
    variables = torch_files.random_weights(torch_files.as_pytorchcv(shapes, *options))
    model, source = our_model(from_pytorchcv, variables, variant=variant)
    assert source.variant == name and {field: getattr(source.spec, field) for field in fields} == fields
    assert_runs_alike(from_pytorchcv, source, variables, model, (32,) if source.spec.stem == 'cifar' else (64, 75))


@pytest.mark.parametrize('is_preact', [False, True])
def test_a_bottleneck_whose_stride_is_open_needs_a_variant(is_preact):
    shapes = typed(torch_files.as_pytorchcv(torch_files.net_shapes((3, 4, 6, 3), True), is_preact))
    name = 'preresnet50' if is_preact else 'resnet50'
    refuse(f'--variant={name} or --variant={name}b', from_pytorchcv.describe, shapes)
    refuse(f'--variant=resnet18.*{name}', from_pytorchcv.describe, shapes, 'resnet18')
    sources = [convert.fit(from_pytorchcv, shapes, 'x', variant)[0] for variant in (name, f'{name}b')]
    assert [source.variant for source in sources] == [name, f'{name}b']
    assert sources[0].spec != sources[1].spec and sources[0].labels == 'imagenet1000'


def test_data_sets_of_ten_classes():
    shapes = typed(torch_files.as_pytorchcv(CIFAR))
    assert from_pytorchcv.describe(shapes).labels == 'cifar10'
    assert from_pytorchcv.describe(shapes, 'resnet8_svhn').labels == 'unknown'


DEEP = {'features.init_block.conv.conv.weight': None, 'features.init_block.conv1.conv.weight': (8, 3, 3, 3)}


@pytest.mark.parametrize(
    'shapes,change,message',
    [
        (BASIC, DEEP, r'features\.init_block\.conv1\.conv has no place'),  # resnetd, resneta, senet
        (BASIC, {f'{UNIT}.cbam.ch_gate.mlp.fc1.weight': (1, 4)}, r'unit1\.cbam\.ch_gate\.mlp\.fc1 has no place'),
        (BASIC, {f'{UNIT}.se.fc1.weight': (1, 4)}, r'unit1\.se\.fc1 has no place'),  # fastseresnet
        (BASIC, {'features.stage1.unit1.body.conv1.ibn.inst_norm.weight': (2,)}, r'conv1\.ibn\.inst_norm has no place'),
        (BASIC, {'features.stage2.unit2.body.conv2.conv.weight': (32, 8, 3, 3)}, 'unit2.* has 32 filters.*_wd4'),
        (CIFAR, {'features.init_block.conv.weight': (4, 3, 7, 7)}, r'\(4, 3, 7, 7\) before 3 stages; pass'),  # drn
        (BASIC, {'features.init_block.conv.conv.weight': (4, 3, 3, 3)}, r'\(4, 3, 3, 3\) before 4 stages; pass'),
        (BASIC, {'features.init_block.conv.conv.weight': None}, 'no variable features.init_block'),
        (CIFAR, {'features.stage2.unit1.identity_conv.weight': (8, 4, 1, 1)}, 'without features.post_activ'),
    ],
)
def test_what_our_networks_cannot_express_is_named(shapes, change, message):
    shapes = torch_files.as_pytorchcv(shapes) | change
    shapes = typed({name: shape for name, shape in shapes.items() if shape})
    refuse(message, from_pytorchcv.describe, shapes)
