"""Hugging Face's ResNet: names, config.json, hidden sizes, and the functions computed."""

import json

import numpy as np
import pytest
import safetensors.numpy
from fixtures import torch_files
from fixtures.conversion import assert_runs_alike, images_of, our_model, refuse, shapes_of

from checkpoints_tools import convert, from_transformers
from checkpoints_tools.source import Listing
from official_resnet import resnet_variants

SHAPES = torch_files.as_transformers(torch_files.net_shapes((1, 1, 1, 1), True, filters=4, classes=7))
# Two stages of equal size, which halve the resolution nevertheless, and a stem of another size.
ODD = torch_files.as_transformers(
    torch_files.net_shapes((1, 2), filters=4, classes=7)
    | {'layer2.0.conv1.weight': (4, 4, 3, 3), 'layer2.0.conv2.weight': (4, 4, 3, 3)}
    | {f'layer2.1.conv{i}.weight': (4, 4, 3, 3) for i in (1, 2)}
    | {'layer2.0.downsample.0.weight': (4, 4, 1, 1), 'fc.weight': (7, 4)}
    | {
        f'layer2.{module}.{part}': (4,)
        for module in ('0.bn1', '0.bn2', '1.bn1', '1.bn2', '0.downsample.1')
        for part in ('weight', 'bias', 'running_mean', 'running_var')
    }
)


def listing(shapes, **config):
    """Return {name: (shape, dtype)} with what config.json says."""
    found = Listing({name: (shape, 'float32') for name, shape in shapes.items()})
    found.config = {'model_type': 'resnet'} | config
    return found


def test_the_published_network_is_recognised():
    shapes = torch_files.as_transformers(torch_files.net_shapes((3, 4, 6, 3), True))
    source, _ = convert.fit(from_transformers, listing(shapes), 'x')
    assert source.variant == 'resnet-50' and source.labels == 'imagenet1000'
    spec = resnet_variants.imagenet_spec(50, bn_momentum=0.9)
    assert source.spec == spec


@pytest.mark.parametrize(
    'config,variant,version',
    [
        ({}, None, '1.5'),
        ({'downsample_in_bottleneck': False}, None, '1.5'),
        ({'downsample_in_bottleneck': True}, None, '1'),
        ({'downsample_in_bottleneck': True}, 'resnet14_v1.5', '1.5'),
        ({}, 'resnet14_v1', '1'),
    ],
)
def test_the_variant_or_the_config_places_the_stride(config, variant, version):
    assert from_transformers.describe(listing(SHAPES, **config), variant).spec.version == version


@pytest.mark.parametrize(
    'config,message',
    [
        ({'hidden_act': 'gelu'}, "hidden_act='gelu'.*'relu'"),
        ({'downsample_in_first_stage': True}, 'downsample_in_first_stage=True.*False'),
    ],
)
def test_a_config_that_no_network_of_ours_has(config, message):
    refuse(message, from_transformers.describe, listing(SHAPES, **config))


def test_sizes_that_no_network_of_ours_has():
    first = 'encoder.stages.0.layers.0'
    halved = {f'{first}.shortcut.convolution.weight': (4, 4, 1, 1)}
    refuse('downsample_in_first_stage', from_transformers.describe, listing(ODD | halved))
    odd = {f'{first}.layer.2.convolution.weight': (15, 4, 1, 1)}
    refuse(r'hidden_sizes \[15, 32, .*: 15 is not 4 times', from_transformers.describe, listing(SHAPES | odd))


@pytest.mark.parametrize('shapes,variant', [(SHAPES, None), (SHAPES, 'resnet14_v1'), (ODD, None)])
def test_our_network_computes_the_same(shapes, variant):
    variables = torch_files.random_weights(shapes)
    model, source = our_model(from_transformers, variables, variant=variant)
    assert_runs_alike(from_transformers, source, variables, model)


def test_the_stride_changes_the_function():
    variables = torch_files.random_weights(SHAPES)
    sources = [from_transformers.describe(shapes_of(variables), variant) for variant in (None, 'resnet14_v1')]
    logits, others = (from_transformers.run(variables, images_of(64), source) for source in sources)
    assert np.abs(logits - others).max() > 0.01 * np.abs(logits).max()


@pytest.mark.parametrize(
    'prefix,config,version',
    [
        ('resnet.', {'model_type': 'resnet', 'downsample_in_bottleneck': True}, '1'),
        ('', {'model_type': 'resnet', 'downsample_in_bottleneck': True}, '1'),
        ('module.resnet.', {'model_type': 'detr', 'downsample_in_bottleneck': True}, '1.5'),
        ('module.resnet.', None, '1.5'),
    ],
)
def test_folders_and_their_config(prefix, config, version, tmp_path):
    """The classifier has no `resnet.`, but the prefix before it, as under DataParallel."""
    head = prefix.removesuffix('resnet.')
    variables = {
        (head if name.startswith('classifier') else prefix) + name: value
        for name, value in torch_files.random_weights(SHAPES).items()
    }
    safetensors.numpy.save_file(variables, tmp_path / 'model.safetensors')
    if config:
        (tmp_path / 'config.json').write_text(json.dumps(config))
    module, shapes = convert.identify(tmp_path)
    assert module is from_transformers and {name: shape for name, (shape, _) in shapes.items()} == SHAPES
    assert convert.fit(module, shapes, tmp_path)[0].spec.version == version
    files = {'model.safetensors'} | ({'config.json'} if version == '1' else set())
    assert {path.name for path in module.list_files(tmp_path)} == files
