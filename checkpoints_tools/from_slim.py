"""tf-slim's ResNets: checkpoints of resnet_v1_50, 101, 152, 200 and resnet_v2_*, V1 and V2 files, converted exactly.

slim halves the resolution in the last unit of block1 to 3, on its 3x3 convolution, where its shortcut is sub-sampled
by a 1x1 max-pool. In v1 that is the same function as the paper's, which halves on the first 1x1 of the next group;
it is not v1.5, which halves on the 3x3 of the next group. Other marks: conv2d_same pads from the kernel alone, the
stem's pool is SAME, logits are a 1x1 convolution, and in v2 conv1, shortcut and conv3 have biases, which go into the
moving mean of whatever BN reads their sum.

Source: tf_slim/nets/resnet_v1.py, resnet_v2.py, resnet_utils.py of tf-slim 1.1.0.
"""

import dataclasses
import os
import re
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, tf_checkpoint
from checkpoints_tools.source import Input, Shapes, Source, Variables, check_variant, shape_of
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

read, list_files = tf_checkpoint.read, tf_checkpoint.list_files

EPSILON = 1e-5
# v1 was converted from He's Caffe files, v2 trained with Inception's preprocessing: [-1, 1], the central
# 87.5 % resized to 299, which is the centre of an image whose shorter side is 342.
INPUTS = {
    '1': Input(mean=(123.68, 116.78, 103.94)),
    '2': Input(scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3, size=299, resize=342),
}
LABELS = {1000: 'imagenet1000', 1001: 'imagenet1001'}
_FIRST = re.compile(r'((?:.*/)?)block1/unit_1/bottleneck_v([12])/conv1/weights')
_UNIT = r'block([1-9]\d{0,3})/unit_([1-9]\d{0,3})/bottleneck_v[12]/conv1/weights'
_AXES = {'stride_block': 'last', 'stride_conv': '3x3', 'stem_pool': 'same', 'bn_epsilon': EPSILON}

# The tutorial's list of what it leaves out.
DOCUMENT_EXCEPT = ('global_step', 'resnet_v1_50/mean_rgb', 'resnet_v1_50/logits/biases', 'resnet_v1_50/logits/weights')

NOTE = (
    'slim of tensorflow/models, Apache-2.0; its released v1 weights are those of KaimingHe/deep-residual-networks, '
    'MIT, arXiv:1512.03385'
)


class _Shapes(dict):
    """{name: (shape, dtype)}; mean_rgb is what the file's variable of this name holds, if there is one."""


def rename(name: str) -> str | None:
    """Return the name that the document's read_ckpt.py gives a variable of resnet_v1_50, or None for one it drops.

    The renamed weights load into a Keras net whose layers have these names, but the document's net is a v1.5, where
    the same weights are another function. Pooled features of [3, 4, 6, 3] nets with random weights, loaded as v1.5,
    differ from slim's by 27 % (norm of the difference / norm; 16 filters, 64 x 64 pixels, random BN statistics), and
    by 144 % where the statistics fit the weights, as after training (8 filters, 128 x 128); of the net that `describe`
    finds, by rounding, 0.001 %.

    Source: the document's `read_ckpt.py`, its except list and five `replace` in their order; 'weights' comes after
    'shortcut/weights', which would not be found any more.
    """
    if name in DOCUMENT_EXCEPT:
        return None
    name = name.replace('resnet_v1_50/', '').replace('bottleneck_v1/', '')
    name = name.replace('shortcut/weights', 'shortcut/conv1/kernel')
    return name.replace('weights', 'kernel').replace('biases', 'bias')


def document_names(names: Iterable[str]) -> dict[str, str]:
    """Return {their name: the document's name} of those that the document keeps, in the order given."""
    return {name: kept for name in names if (kept := rename(name)) is not None}


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)} of a checkpoint; of the values only three numbers are read, mean_rgb."""
    found = _Shapes(tf_checkpoint.shapes(path))
    for name in found:
        if name.rpartition('/')[2] == 'mean_rgb' and found[name] == ((3,), 'float32'):
            found.mean_rgb = tuple(round(float(number), 4) for number in tf_checkpoint.read(path)[name])
    return found


def recognises(shapes: Shapes) -> bool:
    """Return whether these are variables of a slim ResNet, under any scope."""
    return any(_FIRST.fullmatch(name) for name in shapes)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source; a variant, as 'resnet_v1_50', must be what is found.

    A mean_rgb of the file's own is the input's mean in place of ImageNet's.
    """
    scope, version = _scope(shapes)
    group_blocks = our_net.named_blocks(shapes, re.escape(scope) + _UNIT)
    filters, stem, num_classes = (
        shape_of(shapes, f'{scope}{name}/weights', 4)[3]
        for name in (f'block1/unit_1/bottleneck_v{version}/conv1', 'conv1', 'logits')
    )
    found = f'resnet_v{version}_{2 + 3 * sum(group_blocks)}'
    check_variant(variant, found)
    axes = {'stem_filters': None if stem == filters else stem, **_AXES}
    spec = ResNetSpec(group_blocks, filters, 'imagenet', 'bottleneck', version, 'B', **axes)
    convention, mean_rgb = INPUTS[version], getattr(shapes, 'mean_rgb', None)
    if version == '1' and mean_rgb and np.isfinite(mean_rgb).all():
        convention = dataclasses.replace(convention, mean=mean_rgb)
    return Source('slim', found, spec, num_classes, convention, LABELS.get(num_classes, 'unknown'), NOTE)


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of variables that carry no weight of the network."""
    means = [name for name in shapes if name.rpartition('/')[2] == 'mean_rgb']
    return tf_checkpoint.ignored(shapes) | dict.fromkeys(means, 'the mean of the images, which the input lacks already')


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries; the biases of v2 come off the moving means of all BNs that read a sum they are part of."""
    scope, version = _scope(shapes)
    words = {'kernel': 'weights', 'bias': 'biases'}
    return our_net.entries(
        source,
        lambda layer: f'{scope}{_their(layer, version)}',
        words,
        {'dense': our_net.squeezed},
        lambda layer: version == '2' and layer.index in (0, 3),
    )


def _their(layer, version):
    """Return slim's name of a layer of ours, below its scope."""
    if not layer.group:
        named = {'stem_conv': 'conv1', 'stem_bn': 'conv1/BatchNorm', 'head_bn': 'postnorm', 'logits': 'logits'}
        return named[layer.name]
    unit = f'block{layer.group}/unit_{layer.block}/bottleneck_v{version}'
    if version == '2' and layer.kind == 'bn' and layer.index == 0:
        return f'{unit}/preact'
    conv = f'{unit}/conv{layer.index}' if layer.index else f'{unit}/shortcut'
    return f'{conv}/BatchNorm' if layer.kind == 'bn' else conv


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return logits, float32 [n, classes], of float32 [n, h, w, 3] by slim's definition, from slim's names alone."""
    scope, version = _scope(variables)
    is_v2 = version == '2'

    def conv(x, name, stride):
        kernel, bias = (variables.get(f'{scope}{name}/{part}') for part in ('weights', 'biases'))
        return operations.conv2d(x, kernel, stride, bias)

    def norm(x, name):
        name = f'{scope}{name}' if name.endswith(('preact', 'postnorm')) else f'{scope}{name}/BatchNorm'
        return operations.batch_norm(x, *(variables[f'{name}/{part}'] for part in our_net.BN_PARTS), EPSILON)

    x = conv(tf.constant(images, tf.float32), 'conv1', 2)
    x = x if is_v2 else tf.nn.relu(norm(x, 'conv1'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    group_blocks = our_net.named_blocks(variables, re.escape(scope) + _UNIT)
    for block, unit, stride in operations.blocks(group_blocks, strides_last=True):
        name = f'block{block}/unit_{unit}/bottleneck_v{version}'
        projection = f'{name}/shortcut' if f'{scope}{name}/shortcut/weights' in variables else None
        names = [projection, *(f'{name}/conv{i}' for i in (1, 2, 3))]
        x = operations.residual_block(x, names, (1, stride, 1), conv, norm, f'{name}/preact' if is_v2 else None)
    x = tf.nn.relu(norm(x, 'postnorm')) if is_v2 else x
    return operations.classify(x, variables[f'{scope}logits/weights'][0, 0], variables[f'{scope}logits/biases'])


def _scope(names):
    """Return ('resnet_v1_50/', '1'): under what the only ResNet is, and its version."""
    found = [match for match in map(_FIRST.fullmatch, names) if match]
    if not found:
        raise UserError('no variable is named as block1/unit_1/bottleneck_v1/conv1/weights of a slim ResNet')
    if len(found) > 1:
        raise UserError(f'the checkpoint holds {len(found)} ResNets: {", ".join(match[1] for match in found)}')
    return found[0].groups()
