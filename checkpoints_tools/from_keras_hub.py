"""KerasHub's ResNetBackbone and ResNetImageClassifier: .keras files, and the folders of save_to_preset.

    conv1_conv/kernel  conv1_bn/{gamma,beta,moving_mean,moving_variance}  stack0_block0_{0,1,2,3}_{conv,bn}/*
    post_bn/*  predictions/{kernel,bias}

The number 0 is the projection's. Pre-activation adds stack0_block0_pre_activation_bn, deep stems conv2_conv and
conv3_conv. config.json tells what the weights do not: the strides of the stacks, how the features are pooled, and
whether a projection averages 2x2 pixels in place of its stride (the block types with _vd). KerasHub is not needed.
Source: keras_hub/src/models/resnet/resnet_backbone.py and image_classifier.py (0.32).
"""

import collections
import functools
import io
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from checkpoints_tools import h5_file, operations, our_net, torch_config, torch_file
from checkpoints_tools.from_torch import stem_kind
from checkpoints_tools.our_net import BN_PARTS
from checkpoints_tools.source import (
    Input,
    Listing,
    Shape,
    Shapes,
    Source,
    Variables,
    check_input,
    check_variant,
    reading,
    shape_of,
)
from official_resnet import files
from official_resnet.errors import UserError
from official_resnet.resnet_spec import BOTTLENECK_EXPANSION, MAX_LAYERS, ResNetSpec, stem_convolutions

EPSILON = 1e-5
NOTE = 'KerasHub, Apache-2.0; arXiv:1512.03385, 1603.05027 (V2), 1812.01187 (vd)'
FILTERS = 64  # of the first stack: ResNetBackbone accepts no other number
_PLACES = r'stack(\d{1,4})_block(\d{1,6})_.*', (0, 0)
_TYPES = ('basic_block', 'bottleneck_block', 'basic_block_vd', 'bottleneck_block_vd')
_ARGUMENTS = 'input_conv_filters stackwise_num_blocks stackwise_num_strides block_type use_pre_activation'.split()
_POOLS = {'avg': 'average', 'max': 'max'}
_TASK, _TASK_WEIGHTS = 'task.json', 'task.weights.h5'  # the classifier of a preset
ignored = h5_file.ignored


def recognises(shapes: Shapes) -> bool:
    """Return whether these are the variables of a ResNet of KerasHub."""
    return 'stack0_block0_1_conv/kernel' in shapes


def list_files(path: str | os.PathLike) -> list[pathlib.Path]:
    """Return the files that are read: a .keras file, or those of a preset that exist."""
    path = torch_file.locate(path)
    beside = (h5_file.CONFIG, _TASK, _TASK_WEIGHTS) if path.name == h5_file.WEIGHTS else ()
    return [path, *(path.with_name(name) for name in beside if path.with_name(name).is_file())]


def _weights(path):
    """Return the files among them that hold weights."""
    return [file for file in list_files(path) if file.suffix != '.json']


def shapes(path: str | os.PathLike) -> Listing:
    """Return {'LAYER/ROLE': (shape, dtype)} with what the config says."""
    config, listing = _config(path), Listing()
    for file in _weights(path):
        listing |= h5_file.shapes(file, functools.partial(_in_order, config))
    listing.config = config
    return listing


def read(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Return {'LAYER/ROLE': float32 array} without the optimizer's; each array is read on access."""
    in_order = functools.partial(_in_order, _config(path))
    return collections.ChainMap(*(h5_file.read(file, in_order) for file in _weights(path)))


def _config(path):
    """Return the arguments of the backbone and its classifier in one dict, {} if the file has none of KerasHub."""
    path = list_files(path)[0]
    found = h5_file.config(path)
    with reading(path, 'a config of KerasHub'):
        if path.name == h5_file.WEIGHTS:
            found = torch_config.read(path, _TASK) or torch_config.read(path, h5_file.CONFIG)
        outer = found['config'] if found else {}
        backbone = outer.get('backbone', found)
        if not outer or not str(backbone['registered_name']).endswith('>ResNetBackbone'):
            return {}
        config = {name: backbone['config'][name] for name in _ARGUMENTS}
        config['stackwise_num_blocks'] = [int(n) for n in config['stackwise_num_blocks']]
        config['num_convs'] = len(config['input_conv_filters'])
        if backbone is not found:
            config |= {'pooling': outer.get('pooling', 'avg'), 'activation': outer.get('activation')}
            preprocessor = outer.get('preprocessor') or {'config': {}}
            converter = preprocessor['config'].get('image_converter')
            config['input'] = _input(path, converter['config']) if converter else Input()
        return config


def _input(path, converter):
    """Return the Input of an ImageConverter, which multiplies by `scale` and adds `offset`; `path` is for errors."""
    scale, offset = (
        [float(n) for n in (value if isinstance(value, list) else [value] * 3)]
        for value in (converter.get('scale') or 1, converter.get('offset') or 0)
    )
    if 'variance' in converter:  # in files of its first versions
        std = [math.sqrt(n) for n in converter['variance']]
        offset = [-mean / n for mean, n in zip(converter['mean'], std, strict=True)]
        scale = [one / n for one, n in zip(scale, std, strict=True)]
    mean = [-added / factor for added, factor in zip(offset, scale, strict=True)]
    height, width = converter.get('image_size') or (224, 224)
    size = int(height) if height == width else 224
    resize = size if converter.get('crop_to_aspect_ratio', True) else None
    found: dict[str, Any] = {'mean': mean, 'std': [1 / factor for factor in scale], 'size': size}
    found['interpolation'] = converter.get('interpolation', 'bilinear')
    check_input(f'the image converter of {path}', found, 'pass a network without its preprocessor')
    return Input(resize=resize, **found | {'mean': tuple(mean), 'std': tuple(found['std'])})


def _in_order(config, kinds):
    """Return {'conv2d_7': 'stack0_block1_1_conv', ...}, the names of layers by the numbers that Keras gives them."""
    if not config:
        raise UserError('its layers have no names, and no config of KerasHub is beside them; pass the preset or .keras')
    blocks, block_type = config['stackwise_num_blocks'], config['block_type']
    if sum(map(abs, blocks)) + config['num_convs'] > MAX_LAYERS:
        raise UserError(f'stackwise_num_blocks={blocks!r:.99} are more than {MAX_LAYERS} layers; get the file again')
    is_v2, num_convs = bool(config['use_pre_activation']), 3 if 'bottleneck' in block_type else 2
    convs = [f'conv{i}_conv' for i in range(1, config['num_convs'] + 1)]
    norms = [name.replace('_conv', '_bn') for name in (convs[:-1] if is_v2 else convs)]
    for stack, count in enumerate(blocks):
        for block in range(count):
            order = [str(i) for i in range(1, num_convs + 1)]
            if block == 0 and (stack or block_type != 'basic_block'):
                order.insert(-1, '0')  # the projection comes before the last one
            name = f'stack{stack}_block{block}'
            convs += [f'{name}_{i}_conv' for i in order]
            norms += [f'{name}_{i}_bn' for i in (['pre_activation', *'12'[: num_convs - 1]] if is_v2 else order)]
    norms += ['post_bn'] * is_v2
    return h5_file.numbered({'conv2d': convs, 'batch_normalization': norms, 'dense': ['predictions']})


def _is_v2(names):
    return 'stack0_block0_pre_activation_bn/gamma' in names


def _num_convs(names):
    return 3 if 'stack0_block0_3_conv/kernel' in names else 2


def _num_stem(names):
    return max(i for i in (1, 2, 3) if i == 1 or f'conv{i}_conv/kernel' in names)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. Without a config, --variant=resnet_50 or resnet_vd_50 decides how projections halve.

    Raises:
        UserError: The config has what no network of ours has.
    """
    config = getattr(shapes, 'config', {})
    is_v2, num_convs, group_blocks = _is_v2(shapes), _num_convs(shapes), our_net.named_blocks(shapes, *_PLACES)
    expansion = BOTTLENECK_EXPANSION if num_convs == 3 else 1
    stem = [shape_of(shapes, f'conv{i + 1}_conv/kernel', 4) for i in range(_num_stem(shapes))]
    kernels, filters = [shape[0] for shape in stem], [shape[3] for shape in stem]
    if kernels not in ([7], [3, 3, 3]):
        raise UserError(
            f'input_conv_kernel_sizes={kernels}: only [7] and [3, 3, 3], the stems for ImageNet, can be '
            'converted; pass another network'
        )
    outer = [
        shape_of(shapes, f'stack{i}_block0_{num_convs}_conv/kernel', 4)[3] // expansion
        for i in range(len(group_blocks))
    ]
    fields = our_net.filters_of(filters[-1], outer)
    fields |= {'stem': stem_kind(filters[-1], *filters[:-1])} if len(filters) == 3 else {'stem': 'imagenet'}
    # Only the deep stems of the presets come with averages; in a basic network, these have a projection more.
    is_vd = 'stack0_block0_0_conv/kernel' in shapes and (num_convs == 2 or len(stem) == 3 and not is_v2)
    if config:
        is_vd = str(config['block_type']).endswith('_vd')
        _check(config, len(group_blocks), is_v2)
    elif num_convs == 3 and re.fullmatch(r'resnet_(vd_)?\d+', variant or ''):
        is_vd = 'vd' in str(variant)
    if is_vd:
        fields |= {'projection_pool': True, 'shortcut': 'group'}
    else:
        fields['shortcut'] = 'B'
    fields['head_pool'] = _POOLS[config.get('pooling', 'avg')]
    fields |= {'version': '2', 'stem_pool': 'torch'} if is_v2 else {'version': '1.5'}
    block = 'bottleneck' if num_convs == 3 else 'basic'
    spec = ResNetSpec(group_blocks, block=block, bn_momentum=0.9, bn_epsilon=EPSILON, **fields)
    name = f'resnet_{"v2_" if is_v2 else "vd_" if is_vd else ""}{spec.resnet_size}'
    check_variant(variant, name)
    num_classes = shape_of(shapes, 'predictions/kernel', 2)[1]
    labels = 'imagenet1000' if num_classes == 1000 else 'unknown'
    return Source('keras_hub', name, spec, num_classes, config.get('input', Input()), labels, NOTE)


def _check(config, num_stacks, is_v2):
    """Raise UserError for an argument that only one of KerasHub and our networks has."""
    allowed: dict[str, Any] = {
        'block_type': _TYPES[:2] if is_v2 else _TYPES,  # KerasHub's own _vd blocks lose their stride there
        'stackwise_num_strides': ([1] + [2] * (num_stacks - 1),),
        'use_pre_activation': (is_v2,),
        'pooling': tuple(_POOLS),
        'activation': (None, 'linear', 'softmax'),  # what is converted ends before it
    }
    for name, values in allowed.items():
        if name in config and config[name] not in values:
            choices = ' or '.join(map(repr, values))
            raise UserError(
                f"KerasHub's {name}={config[name]!r:.99} cannot be converted; pass a network with {choices}"
            )


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'predictions/kernel': (features, features), 'predictions/bias': (features,)}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    return our_net.entries(source, functools.partial(_their, _num_stem(shapes), source.spec.version == '2'))


def _their(num_stem, is_v2, layer):
    """Return KerasHub's name of one of our layers."""
    return _foreign_layer(layer.name, num_stem, is_v2) or layer.name


def _foreign_layer(name, num_stem, is_v2):
    """Return KerasHub's name of the layer that we call so, or None: 'group1_block2_bn1' -> 'stack0_block1_1_bn'."""
    if found := re.fullmatch(r'stem_(conv|bn)([12])?', name):
        return f'conv{found[2] or num_stem}_{found[1]}'
    if found := re.fullmatch(r'group(\d+)_block(\d+)_(shortcut_)?(conv|bn)([123])?', name):
        group, block, shortcut, kind, index = found.groups()
        place = 0 if shortcut else int(index) - (is_v2 and kind == 'bn')  # in version 2, bn1 is before conv1
        inner = 'pre_activation' if not (place or shortcut) else place
        return f'stack{int(group) - 1}_block{int(block) - 1}_{inner}_{kind}'
    return {'head_bn': 'post_bn', 'logits': 'predictions'}.get(name)


def exported(model: keras.Model) -> tuple[dict[str, tuple[str | None, np.ndarray]], dict[str, Any]]:
    """Return {our variable: (KerasHub's name or None, its value)} of one of our models, and the arguments it tells."""
    layers = {layer.name: layer for layer in model.layers}
    is_v2, num_stem, named = 'head_bn' in layers, 3 if 'stem_conv1' in layers else 1, {}
    for variable in model.variables:
        layer, _, part = variable.path.rpartition('/')
        name = _foreign_layer(layer, num_stem, is_v2)
        named[variable.path] = f'{name}/{part}' if name else None, np.asarray(variable, np.float32)
    block_type = 'bottleneck_block' if 'group1_block1_conv3' in layers else 'basic_block'
    block_type += '_vd' * any(isinstance(layer, keras.layers.AveragePooling2D) for layer in model.layers)
    is_max = isinstance(layers.get('head_pool'), keras.layers.GlobalMaxPooling2D)
    return named, {'block_type': block_type, 'pooling': 'max' if is_max else 'avg'}


def write(path: pathlib.Path, variables: Variables, source: Source) -> None:
    """Write {KerasHub's name: float32 array} as the .keras file of a ResNetImageClassifier, whole or not at all."""
    config = _classifier_config(source)
    backbone = config['config']['backbone']['config']
    places = _in_order(backbone | {'num_convs': len(backbone['input_conv_filters'])}, variables)
    with io.BytesIO() as weights, files.replacing(path) as part:
        with h5py.File(weights, 'w') as file:
            for place, layer in places.items():
                folder = 'layers' if layer == 'predictions' else 'layers/res_net_backbone/layers'
                group = file.create_group(f'{folder}/{place}/vars')
                group.attrs['name'] = layer
                roles = [role for role in ('kernel', 'bias', *BN_PARTS) if f'{layer}/{role}' in variables]
                for i, role in enumerate(roles):
                    group[str(i)] = variables[f'{layer}/{role}']
        with zipfile.ZipFile(part, 'w') as archive:
            archive.writestr('metadata.json', json.dumps({'keras_version': keras.__version__}))
            archive.writestr(h5_file.CONFIG, json.dumps(config))
            archive.writestr(h5_file.WEIGHTS, weights.getbuffer())


def _classifier_config(source):
    """Return the config of the ResNetImageClassifier that computes what the source does."""
    spec, stem = source.spec, stem_convolutions(source.spec)
    if spec.filters_of(0) != FILTERS:
        raise UserError(
            f"the network has {spec.filters_of(0)} filters in its first group, and KerasHub's ResNetBackbone only "
            f'{FILTERS}; pass a network of {FILTERS} filters'
        )
    dtype = {'module': 'keras', 'class_name': 'DTypePolicy', 'config': {'name': 'float32'}, 'registered_name': None}
    backbone = {
        'name': 'res_net_backbone',
        'trainable': True,
        'dtype': dtype,
        'input_conv_filters': [conv.filters for conv in stem],
        'input_conv_kernel_sizes': [conv.kernel for conv in stem],
        'stackwise_num_filters': [spec.filters_of(i) for i in range(len(spec.group_blocks))],
        'stackwise_num_blocks': list(spec.group_blocks),
        'stackwise_num_strides': [1] + [2] * (len(spec.group_blocks) - 1),
        'block_type': f'{spec.block}_block{"_vd" if spec.projection_pool else ""}',
        'use_pre_activation': spec.version == '2',
        'image_shape': [None, None, 3],
    }
    head = {'num_classes': source.num_classes, 'activation': None, 'dropout': 0.0, 'preprocessor': None}
    head['pooling'] = next(name for name, pool in _POOLS.items() if pool == spec.head_pool)
    backbone_config = _serialized('backbone', 'ResNetBackbone', backbone)
    named = {'name': 'res_net_image_classifier', 'backbone': backbone_config}
    return _serialized('image_classifier', 'ResNetImageClassifier', head | named)


def _serialized(module, name, config):
    """Return what Keras stores of an object of KerasHub."""
    return {
        'module': f'keras_hub.src.models.resnet.resnet_{module}',
        'class_name': name,
        'config': config,
        'registered_name': f'keras_hub>{name}',
    }


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits of images [n, h, w, 3] as resnet_backbone.py and image_classifier.py compute them.

    The source tells what is pooled: projections, and the features by their maxima.
    """
    is_v2, num_convs, num_stem = _is_v2(variables), _num_convs(variables), _num_stem(variables)

    def conv(x, name, stride) -> tf.Tensor:
        if source.spec.projection_pool and name.endswith('_0') and stride > 1:
            x, stride = operations.mean_pool(x), 1
        return operations.conv2d(x, variables[f'{name}_conv/kernel'], stride)

    def norm(x, name) -> tf.Tensor:
        return operations.batch_norm(x, *(variables[f'{name}_bn/{part}'] for part in BN_PARTS), epsilon=EPSILON)

    x = tf.constant(images, tf.float32)
    for i in range(1, num_stem + 1):
        x = conv(x, f'conv{i}', 2 if i == 1 else 1)
        x = x if is_v2 and i == num_stem else tf.nn.relu(norm(x, f'conv{i}'))
    x = operations.max_pool(x, [(1, 1), (1, 1)], -np.inf if is_v2 else 0.0)
    for group, block, stride in operations.blocks(our_net.named_blocks(variables, *_PLACES)):
        name = f'stack{group - 1}_block{block - 1}'
        projection = f'{name}_0' if f'{name}_0_conv/kernel' in variables else None
        names = [f'{name}_{i + 1}' for i in range(num_convs)]
        strides = [stride if i == num_convs - 2 else 1 for i in range(num_convs)]  # in the first 3x3
        preact = f'{name}_pre_activation' if is_v2 else None
        x = operations.residual_block(x, projection, names, strides, conv, norm, preact)
    x = tf.nn.relu(norm(x, 'post')) if is_v2 else x
    x = tf.reduce_max(x, (1, 2), keepdims=True) if source.spec.head_pool == 'max' else x
    return operations.classify(x, variables['predictions/kernel'], variables['predictions/bias'])
