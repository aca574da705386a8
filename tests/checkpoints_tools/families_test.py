"""What holds for every family: nothing missing, strange or damaged passes, and what is wrong is said in a line."""

import functools
import re

import numpy as np
import pytest
import safetensors.numpy
from fixtures import foreign_files, hub_files, torch_files
from fixtures.conversion import fuzz, refuse, shapes_of

from checkpoints_tools import (
    convert,
    from_caffe,
    from_keras_applications,
    from_keras_hub,
    from_official_tf,
    from_pytorchcv,
    from_ry,
    from_slim,
    from_tensorpack,
    from_timm_v2,
    from_torch,
    from_transformers,
    from_wenxinxu,
    our_net,
    selection,
)
from official_resnet import bounds

MODULES = (
    *(from_caffe, from_keras_applications, from_official_tf, from_ry, from_slim, from_tensorpack, from_torch),
    *(from_wenxinxu, from_transformers, from_pytorchcv, from_timm_v2, from_keras_hub),
)


def caffe():
    return shapes_of(foreign_files.caffe_variables((2, 1)))


def applications(is_v2):
    model = foreign_files.applications_net(is_v2, (2, 2))
    return shapes_of({f'{layer.name}/{v.name}': v.numpy() for layer in model.layers for v in layer.weights})


def hub(*arguments):
    model, _ = hub_files.hub_net(*arguments)
    layers = [*model.get_layer('res_net_backbone').layers, model.get_layer('predictions')]
    return shapes_of({f'{layer.name}/{v.name}': v.numpy() for layer in layers for v in layer.weights})


def official(*net):
    return foreign_files.official_shapes(*net, filters=16, num_classes=10)


def ry(blocks, convs):
    return shapes_of(foreign_files.ry_variables(blocks, convs))


def wenxinxu():
    return shapes_of(foreign_files.wenxinxu_variables(1))


def slim(version):
    return foreign_files.slim_shapes(version, (1, 2))


def tensorpack(mode, is_basic):
    return shapes_of(foreign_files.tensorpack_variables(mode, (1, 2), is_basic=is_basic))


def torch(name, names=dict, *options):
    return shapes_of(torch_files.random_weights(names(torch_files.TINY[name], *options)))


def timm_v2(name):
    return shapes_of(torch_files.random_weights(torch_files.V2[name]))


# module, function and its arguments that return {name: (shape, dtype)}, names of the variant
NETS = [
    (from_caffe, caffe, (), ('ResNet-11', 'resnet11_v1')),
    (from_keras_applications, applications, (False,), ('ResNet14', 'resnet14_v1')),
    (from_keras_applications, applications, (True,), ('ResNet14V2', 'resnet14_v2')),
    (from_keras_hub, hub, ('basic_block',), ('resnet_8',)),
    (from_keras_hub, hub, ('bottleneck_block_vd', False, (1, 1), 8, (4, 4, 8)), ('resnet_vd_8',)),
    (from_keras_hub, hub, ('bottleneck_block', True, (1, 1)), ('resnet_v2_8',)),
    (from_official_tf, official, (3, False, (1, 1, 1), 1), ('resnet8_v1',)),
    (from_official_tf, official, (7, False, (1, 1, 2, 1), 1), ('resnet12_v1.5', 'resnet12_v1')),
    (from_official_tf, official, (7, True, (1, 1, 2, 1), 2), ('resnet17_v2',)),
    (from_ry, ry, ((1, 2, 1, 1), 'abc'), ('ResNet-L17', 'resnet17_v1')),
    (from_ry, ry, ((1, 1, 1), 'AB'), ('ResNet-L8', 'resnet8_v1')),
    (from_slim, slim, (1,), ('resnet_v1_11',)),
    (from_slim, slim, (2,), ('resnet_v2_11',)),
    (from_tensorpack, tensorpack, ('resnet', True), ('ImageNet-ResNet8', 'resnet8_v1.5')),
    (from_tensorpack, tensorpack, ('resnet', False), ('ImageNet-ResNet11', 'resnet11_v1.5')),
    (from_tensorpack, tensorpack, ('se', False), ('ImageNet-ResNet11-SE', 'seresnet11_v1.5')),
    # With the published 64 filters, it is 32x4d.
    (from_tensorpack, tensorpack, ('resnext32x4d', False), ('ImageNet-ResNeXt11-32x1d', 'resnext11_32x4d')),
    (from_tensorpack, tensorpack, ('preact', True), ('ImageNet-PreActResNet8', 'resnet8_v2')),
    (from_tensorpack, tensorpack, ('preact', False), ('ImageNet-PreActResNet11', 'resnet11_v2')),
    (from_torch, torch, ('basic',), ('resnet_basic_1_2_1_1_filters4',)),
    (from_torch, torch, ('bottleneck',), ('resnet_bottleneck_1_1_2_1_filters4',)),
    (from_torch, torch, ('grouped',), ('resnet_bottleneck_1_1_1_1_filters16',)),
    (from_torch, torch, ('cifar_a',), ('resnet_basic_2_1_2_filters4',)),
    (from_torch, torch, ('cifar_b',), ('resnet_basic_1_1_1_filters4',)),
    (from_transformers, torch, ('basic', torch_files.as_transformers), ('resnet-12', 'resnet12_v1.5')),
    (from_transformers, torch, ('bottleneck', torch_files.as_transformers), ('resnet-17', 'resnet17_v1.5')),
    (from_pytorchcv, torch, ('basic', torch_files.as_pytorchcv), ('resnet12',)),
    (from_pytorchcv, torch, ('grouped', torch_files.as_pytorchcv), ('resnext14_4x8d',)),
    (from_pytorchcv, torch, ('cifar_b', torch_files.as_pytorchcv, False, 4), ('seresnet8_cifar10',)),
    (from_pytorchcv, torch, ('basic', torch_files.as_pytorchcv, True, 2), ('sepreresnet12',)),
    (from_pytorchcv, torch, ('cifar_b', torch_files.as_pytorchcv, True), ('preresnet8_cifar10',)),
    (from_torch, torch, ('deep_d',), ('resnet_basic_1_1_1_1_filters4',)),
    (from_torch, torch, ('eca_t',), ('resnet_bottleneck_1_2_1_1_filters8',)),
    (from_torch, torch, ('se',), ('resnet_basic_1_2_1_1_filters16',)),
    (from_timm_v2, timm_v2, ('basic',), ('resnet_basic_1_2_1_1_filters4',)),
    (from_timm_v2, timm_v2, ('tiered',), ('resnet_bottleneck_1_1_1_1_filters8',)),
    (from_wenxinxu, wenxinxu, (), ('model_8', 'resnet8_v2')),
]
OPTIONAL = re.compile(r'conv\d_.*conv/bias')  # without it, the network is another one that exists


@pytest.mark.parametrize('module,make,arguments,variants', NETS, ids=[names[0] for *_, names in NETS])
def test_every_variable_is_needed_in_its_shape_and_type(module, make, arguments, variants):
    shapes = make(*arguments)
    refused = functools.partial(refuse, function=convert.fit, module=module, path='x')
    unnamed = []
    for name, (shape, _) in shapes.items():
        others, named = {key: value for key, value in shapes.items() if key != name}, f'{re.escape(name)}| more'
        if not OPTIONAL.fullmatch(name) and name not in refused('.', shapes=others):
            unnamed.append(name)  # it says which blocks there are
        for strange in ((*shape, 1), shape[1:], (*shape[:-1], 0)):
            refused(named, shapes=others | {name: (strange, 'float32')})
        for strange in ((*shape[:-1], shape[-1] + 1), (2**40, *shape[1:])):  # others may be those that do not fit
            refused('.', shapes=others | {name: (strange, 'float32')})
        refused(f'{re.escape(name)} int64', shapes=others | {name: (shape, 'int64')})
    assert len(unnamed) <= 6
    refused('unexpected: strange/bias', shapes=shapes | {'strange/bias': ((3,), 'float32')})


@pytest.mark.parametrize('module,make,arguments,variants', NETS, ids=[names[0] for *_, names in NETS])
def test_family_and_variant_are_told(module, make, arguments, variants):
    shapes = make(*arguments)
    assert [other for other in MODULES if other.recognises(shapes)] == [module]
    source = module.describe(shapes)
    assert source.variant == variants[0] and not module.ignored(shapes)
    assert all(module.describe(shapes, variant) == source for variant in variants)
    refuse(re.escape(variants[0]), module.describe, shapes, 'resnet50_v9')


@pytest.mark.parametrize('module,make,arguments,variants', NETS, ids=[names[0] for *_, names in NETS])
def test_every_family_makes_features_of_a_net_without_its_classifier(module, make, arguments, variants):
    shapes = make(*arguments)
    head = module.classifier(shapes, 1)
    spec = module.describe(shapes).spec
    others = {name: shape for name, shape in shapes.items() if name not in head}
    assert len(others) == len(shapes) - 2 and module.recognises(others)
    for given in (shapes, others):
        selected = selection.select(module, given, 'x', selection.Choice(has_head=False))
        source, _ = convert.fit(module, selected.shapes, 'x')
        assert source.spec == spec
        assert selected.num_features == source.num_classes == our_net.layers(spec, 1)[-1].shape[0]
    name = next(iter(module.classifier(others, 1)))
    refuse(f'{re.escape(name)}.*--no_head', selection.select, module, others, 'x', selection.DEFAULT)


CAFFE = foreign_files.caffe_variables((1, 1), has_bias=True)
TENSORPACK = foreign_files.tensorpack_variables('resnet', (1, 1), 2, 3)
SLIM = foreign_files.slim_variables(1, (1, 1), 2)
TORCH = torch_files.random_weights(torch_files.net_shapes((1, 1, 1), filters=2, classes=3, is_cifar=True, option='A'))


def keras_net():
    return foreign_files.applications_net(False, (1, 1), 2, 3)


FILES = {
    'packed.caffemodel': (from_caffe, lambda path: path.write_bytes(foreign_files.caffe_file(CAFFE))),
    'unpacked.caffemodel': (from_caffe, lambda path: path.write_bytes(foreign_files.caffe_file(CAFFE, 'unpacked'))),
    'legacy.caffemodel': (from_caffe, lambda path: path.write_bytes(foreign_files.caffe_file(CAFFE, 'legacy'))),
    'plain.npz': (from_tensorpack, lambda path: np.savez(path, **TENSORPACK)),
    'compressed.npz': (from_tensorpack, lambda path: np.savez_compressed(path, **TENSORPACK)),
    'net.keras': (from_keras_applications, lambda path: keras_net().save(path)),
    'net.weights.h5': (from_keras_applications, lambda path: keras_net().save_weights(path)),
    'hub.keras': (from_keras_hub, lambda path: hub_files.write_hub(path, *hub_files.hub_net(blocks=(1, 1)))),
    'v1.ckpt': (from_slim, lambda path: foreign_files.write_tf(path, SLIM, 1)),
    'v2.ckpt.index': (from_slim, lambda path: foreign_files.write_tf(path.with_suffix(''), SLIM)),
    'v2.ckpt.data-00000-of-00001': (from_slim, lambda path: foreign_files.write_tf(path.with_suffix(''), SLIM)),
    'zip.pth': (from_torch, lambda path: torch_files.write_zip(path, TORCH)),
    'legacy.pth': (from_torch, lambda path: torch_files.write_legacy(path, TORCH)),
    'net.safetensors': (from_torch, lambda path: safetensors.numpy.save_file(TORCH, path)),
}


@pytest.mark.parametrize('name', FILES)
def test_damaged_files(name, tmp_path, monkeypatch):
    module, write = FILES[name]
    monkeypatch.setitem(bounds.BOUNDS, 'hdf5_seconds', bounds.BOUNDS['hdf5_seconds']._replace(value=4))
    write(tmp_path / name)
    fuzz(module, tmp_path / name, 6 if name.endswith(('.keras', '.h5')) else 90)  # Keras' need a process each
