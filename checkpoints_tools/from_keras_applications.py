"""Keras' own ResNet50, 101, 152 and their V2: .h5 files of Keras 1 to 3, .weights.h5 and .keras files.

No model config is used. Layers are named conv2_block1_1_conv, or res2a_branch2a before keras-applications 1.0.7, whose
BN had an epsilon of 1e-3 and whose pool had no padding. Both are computed as today.
Source: keras/src/applications/resnet.py.
"""

import functools
import re
from typing import Any

import numpy as np
import tensorflow as tf

from checkpoints_tools import h5_file, operations, our_net
from checkpoints_tools.our_net import BN_PARTS
from checkpoints_tools.source import Input, Lazy, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

EPSILON = 1.001e-5
NOTE = (
    'keras.applications; weights of v1 are those of KaimingHe/deep-residual-networks, MIT license; '
    'arXiv:1512.03385, 1603.05027'
)
_OLD_NAMES = {'conv1': 'conv1_conv', 'bn_conv1': 'conv1_bn', 'fc1000': 'predictions'}
_PLACES = r'conv([2-9])_block(\d{1,3})_1_conv/kernel', (2, 1)
_BLOCKS = [blocks for kind, blocks in resnet_variants.IMAGENET_BLOCKS.values() if kind == 'bottleneck']
_DEPTHS = {sum(blocks) * 3 + len(blocks) + 1: blocks for blocks in _BLOCKS}  # convolutions, projections among them


def _layers_in_order(kinds):
    """Return {'conv2d_7': 'conv2_block2_1_conv', ...}: Keras numbers the layers of a ResNet in this order."""
    num_convs = sum(re.fullmatch(r'conv2d(_\d+)?', kind) is not None for kind in kinds)
    num_norms = sum(re.fullmatch(r'batch_normalization(_\d+)?', kind) is not None for kind in kinds)
    if num_convs not in _DEPTHS:
        raise UserError(f'{num_convs} convolutions without names form no ResNet50, 101 or 152; save the weights again')
    is_v2 = num_norms != num_convs
    convs, norms = ['conv1_conv'], [] if is_v2 else ['conv1_bn']
    for group, block, _ in operations.blocks(_DEPTHS[num_convs]):
        order = ('1', '2', '0', '3') if block == 1 else ('1', '2', '3')  # the projection comes before the third
        convs += [f'conv{group + 1}_block{block}_{i}_conv' for i in order]
        norms += [f'conv{group + 1}_block{block}_{i}_bn' for i in (('preact', '1', '2') if is_v2 else order)]
    norms += ['post_bn'] if is_v2 else []
    return h5_file.numbered({'conv2d': convs, 'batch_normalization': norms, 'dense': ['predictions']})


shapes, read = (functools.partial(function, in_order=_layers_in_order) for function in (h5_file.shapes, h5_file.read))
ignored = h5_file.ignored


def recognises(shapes: Shapes) -> bool:
    """Return whether these are the variables of a ResNet from keras.applications."""
    return 'conv2_block1_1_conv/kernel' in _by_current_name(shapes)


def _by_current_name(names):
    """Return {current name: name in the file}; keras-applications before 1.0.7 had other names."""
    return {_current_name(name) if 'res2a_branch2a/kernel' in names else name: name for name in names}


def _current_name(name):
    """Return the name since keras-applications 1.0.7 of a variable in an older file."""
    layer, _, role = name.rpartition('/')
    found = re.fullmatch(r'(res|bn)([2-9])([a-z])_branch(1|2[abc])', layer)
    if found:
        kind, group, letter, branch = found.groups()
        index, block = ('1', '2a', '2b', '2c').index(branch), ord(letter) - ord('a') + 1
        layer = f'conv{group}_block{block}_{index}_{"conv" if kind == "res" else "bn"}'
    return f'{_OLD_NAMES.get(layer, layer)}/{role}' if layer else name


def _is_v2(names):
    return 'conv2_block1_preact_bn/gamma' in names


def _their(layer, is_v2):
    """Return the name in the file of one of our layers."""
    if not layer.group:
        named = {'stem_conv': 'conv1_conv', 'stem_bn': 'conv1_bn', 'head_bn': 'post_bn', 'logits': 'predictions'}
        return named[layer.name]
    index = 'preact' if is_v2 and layer.kind == 'bn' and layer.index == 0 else layer.index
    return f'conv{layer.group + 1}_block{layer.block}_{index}_{layer.kind}'


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, 'ResNet50V2' or 'resnet50_v2', must name the network found."""
    shapes = {name: shapes[theirs] for name, theirs in _by_current_name(shapes).items()}
    group_blocks, is_v2 = our_net.named_blocks(shapes, *_PLACES), _is_v2(shapes)
    num_classes = shape_of(shapes, 'predictions/kernel', 2)[-1]
    stem, filters = (shape_of(shapes, f'{name}/kernel', 4)[-1] for name in ('conv1_conv', 'conv2_block1_1_conv'))
    axes: dict[str, Any] = {'version': '1', 'bn_momentum': 0.99, 'stem_filters': None if stem == filters else stem}
    if is_v2:
        axes |= {'version': '2', 'stride_block': 'last', 'stem_bias': 'conv1_conv/bias' in shapes}
    spec = ResNetSpec(group_blocks, filters, 'imagenet', 'bottleneck', shortcut='B', bn_epsilon=EPSILON, **axes)
    name = f'ResNet{spec.resnet_size}{"V2" if is_v2 else ""}'
    check_variant(variant, name, f'resnet{spec.resnet_size}_v{spec.version}')
    v1, v2 = Input('BGR', mean=(103.939, 116.779, 123.68)), Input('RGB', 1 / 127.5, mean=(1.0, 1.0, 1.0))
    labels = 'imagenet1000' if num_classes == 1000 else 'unknown'
    return Source('keras_applications', name, spec, num_classes, v2 if is_v2 else v1, labels, NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    layer = 'fc1000' if 'res2a_branch2a/kernel' in shapes else 'predictions'
    return {f'{layer}/kernel': (features, features), f'{layer}/bias': (features,)}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries. Biases go into the means of the BNs that come next on each path."""
    in_file, is_v2 = _by_current_name(shapes), _is_v2(shapes)

    def is_folded(layer) -> bool:
        return not layer.has_bias and f'{_their(layer, is_v2)}/bias' in in_file

    entries = our_net.entries(source, lambda layer: _their(layer, is_v2), is_folded=is_folded)
    return [entry._replace(sources=tuple(in_file.get(name, name) for name in entry.sources)) for entry in entries]


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits of images [n, h, w, 3] as keras/src/applications/resnet.py computes them, with all biases."""
    in_file, of_file = _by_current_name(variables), variables
    variables = Lazy(in_file, lambda name: of_file[in_file[name]])
    is_v2, group_blocks = _is_v2(variables), our_net.named_blocks(variables, *_PLACES)

    def conv(x, name, stride) -> tf.Tensor:
        bias = variables.get(f'{name}_conv/bias')
        return operations.conv2d(x, variables[f'{name}_conv/kernel'], stride, bias)

    def norm(x, name) -> tf.Tensor:
        return operations.batch_norm(x, *(variables[f'{name}_bn/{role}'] for role in BN_PARTS), epsilon=EPSILON)

    x = conv(tf.constant(images, tf.float32), 'conv1', 2)
    x = x if is_v2 else tf.nn.relu(norm(x, 'conv1'))
    x = operations.max_pool(x, [(1, 1), (1, 1)], 0.0)
    for group, block, stride in operations.blocks(group_blocks, strides_last=is_v2):
        name = f'conv{group + 1}_block{block}'
        projection, names = f'{name}_0' if block == 1 else None, [f'{name}_{i}' for i in (1, 2, 3)]
        strides, preact = ((1, stride, 1), f'{name}_preact') if is_v2 else ((stride, 1, 1), None)
        x = operations.residual_block(x, projection, names, strides, conv, norm, preact)
    x = tf.nn.relu(norm(x, 'post')) if is_v2 else x
    return operations.classify(x, variables['predictions/kernel'], variables['predictions/bias'])
