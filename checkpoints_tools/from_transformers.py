"""Hugging Face's ResNetForImageClassification, ResNetModel and AutoBackbone, as save_pretrained writes them.

    embedder.embedder.{convolution,normalization}.*          classifier.1.{weight,bias}
    encoder.stages.0.layers.0.{layer.0,layer.1,layer.2,shortcut}.{convolution,normalization}.*

ResNetForImageClassification has `resnet.` before all names but those of the classifier. Whether a bottleneck has its
stride in the first 1x1 (downsample_in_bottleneck) is not in the weights: config.json beside them tells it, and
--variant decides. preprocessor_config.json tells how images become the input. Source:
transformers/models/resnet/modeling_resnet.py and configuration_resnet.py.
"""

import dataclasses
import os
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, torch_config, torch_file
from checkpoints_tools.from_torch import IMAGENET_INPUT
from checkpoints_tools.source import Listing, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet.errors import UserError
from official_resnet.resnet_spec import BOTTLENECK_EXPANSION, ResNetSpec

STEM = 'embedder.embedder.convolution.weight'
CORE = (STEM, 'embedder.embedder.normalization.weight', 'encoder.stages.0.layers.0.layer.0.convolution.weight')
HEADS = re.compile(r'classifier\..*')
NOTE = 'Hugging Face transformers and microsoft/resnet-*, Apache-2.0; trained on ImageNet; arXiv:1512.03385'
_PLACES = r'encoder\.stages\.(\d{1,4})\.layers\.(\d{1,6})\..*', (0, 0)
# Fields of config.json that change what is computed, with the only value that our networks have.
_COMPUTED = {'hidden_act': 'relu', 'downsample_in_first_stage': False}
ignored = torch_file.ignored


_shapes, read = torch_file.readers(CORE, HEADS)


def recognises(shapes: Shapes) -> bool:
    """Return whether these variables have the names of Hugging Face's ResNet."""
    return shapes.keys() >= set(CORE)


def list_files(path: str | os.PathLike) -> list:
    """Return the files that are read: the weights, config.json and preprocessor_config.json, if they are there."""
    config, processor = _beside(path)
    names = [name for name, found in ((torch_config.CONFIG, config), (torch_config.PROCESSOR, processor)) if found]
    return torch_file.list_files(path) + [torch_file.locate(path).with_name(name) for name in names]


def shapes(path: str | os.PathLike) -> Listing:
    """Return {name: (shape, dtype)} without wrappers and prefixes, and with what the files beside the weights say."""
    listing = _shapes(path)
    listing.config, listing.processor = _beside(path)
    return listing


def _beside(path):
    """Return what config.json and preprocessor_config.json beside the weights say, {} of another network."""
    config = torch_config.read(path, torch_config.CONFIG)
    if config and config.get('model_type') != 'resnet':
        return {}, {}
    return config, torch_config.read(path, torch_config.PROCESSOR)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, 'resnet50_v1.5' or 'resnet50_v1', decides where a bottleneck has its stride."""
    config = getattr(shapes, 'config', {})
    torch_config.require(config, _COMPUTED)
    group_blocks, is_bottleneck = our_net.named_blocks(shapes, *_PLACES), _num_convs(shapes) == 3
    stem, num_classes = shape_of(shapes, STEM, 4)[0], shape_of(shapes, 'classifier.1.weight', 2)[0]
    last, expansion = f'layer.{_num_convs(shapes) - 1}', BOTTLENECK_EXPANSION if is_bottleneck else 1
    channels = [
        shape_of(shapes, f'encoder.stages.{i}.layers.0.{last}.convolution.weight', 4)[0]
        for i in range(len(group_blocks))
    ]
    if stem == channels[0] and 'encoder.stages.0.layers.0.shortcut.convolution.weight' in shapes:
        raise UserError(
            'the first stage halves the resolution (downsample_in_first_stage), which no network of ours does'
        )
    if wrong := [n for n in channels if n % expansion]:
        raise UserError(f'hidden_sizes {channels}: {wrong[0]} is not {expansion} times a number of filters')
    block = 'bottleneck' if is_bottleneck else 'basic'
    fields = our_net.filters_of(stem, [n // expansion for n in channels])
    spec = ResNetSpec(group_blocks, stem='imagenet', block=block, shortcut='B', bn_momentum=0.9, **fields)
    size = spec.resnet_size
    check_variant(variant, f'resnet-{size}', f'resnet{size}_v1.5', f'resnet{size}_v1')
    in_first = variant.endswith('_v1') if variant else config.get('downsample_in_bottleneck') is True
    spec = dataclasses.replace(spec, version='1' if is_bottleneck and in_first else '1.5')
    labels = 'imagenet1000' if num_classes == 1000 else 'unknown'
    # ConvNextImageProcessor with size 224 and crop_pct 0.875, as in microsoft/resnet-50's preprocessor_config.json.
    convention = dataclasses.replace(IMAGENET_INPUT, interpolation='bicubic')
    convention = torch_config.processor_input(getattr(shapes, 'processor', {}), convention)
    return Source('transformers', f'resnet-{size}', spec, num_classes, convention, labels, NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'classifier.1.weight': (features, features), 'classifier.1.bias': (features,)}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    return torch_file.entries(source, _their)


def _their(layer):
    """Return the name of one of our layers."""
    if layer.kind == 'dense':
        return 'classifier.1'
    module = {'conv': 'convolution', 'bn': 'normalization'}[layer.kind]
    if not layer.group:
        return f'embedder.embedder.{module}'
    inner = f'layer.{layer.index - 1}' if layer.index else 'shortcut'
    return f'encoder.stages.{layer.group - 1}.layers.{layer.block - 1}.{inner}.{module}'


def _num_convs(names):
    return 3 if 'encoder.stages.0.layers.0.layer.2.convolution.weight' in names else 2


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits of images [n, h, w, 3] as modeling_resnet.py computes them.

    The source tells whether downsample_in_bottleneck is true.
    """

    def conv(x, name, stride) -> tf.Tensor:
        return operations.conv2d(x, variables[f'{name}.convolution.weight'].transpose(2, 3, 1, 0), stride)

    def norm(x, name) -> tf.Tensor:
        parts = (variables[f'{name}.normalization.{part}'] for part in torch_file.BN.values())
        return operations.batch_norm(x, *parts, epsilon=torch_file.EPSILON)

    num_convs = _num_convs(variables)
    strided = 1 if num_convs == 3 and source.spec.version != '1' else 0
    x = tf.nn.relu(norm(conv(tf.constant(images), 'embedder.embedder', 2), 'embedder.embedder'))
    x = operations.max_pool(x, [(1, 1), (1, 1)])
    for group, block, stride in operations.blocks(our_net.named_blocks(variables, *_PLACES)):
        name = f'encoder.stages.{group - 1}.layers.{block - 1}'
        projection = f'{name}.shortcut' if f'{name}.shortcut.convolution.weight' in variables else None
        names = [f'{name}.layer.{i}' for i in range(num_convs)]
        strides = [stride if i == strided else 1 for i in range(num_convs)]
        x = operations.residual_block(x, projection, names, strides, conv, norm)
    return operations.classify(x, variables['classifier.1.weight'].T, variables['classifier.1.bias'])
