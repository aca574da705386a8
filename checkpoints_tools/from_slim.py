"""tf-slim's ResNets: checkpoints of resnet_v1_50, 101, 152, 200 and resnet_v2_*, in V1 and V2 files.

slim halves the resolution in the 3x3 convolution of the last unit of block1 to block3, where a 1x1 max-pool sub-samples
the shortcut. In v1 that is the same function as the paper's, which halves in the first 1x1 of the next group; it is not
v1.5, which halves in the 3x3 of the next group. Further, conv2d_same pads by the kernel's size alone, the stem's pool
is SAME, the logits are a 1x1 convolution, and in v2 conv1, shortcut and conv3 have biases, which go into the moving
mean of each BN that reads their sum.

Source: tf_slim/nets/resnet_v1.py, resnet_v2.py, resnet_utils.py of tf-slim 1.1.0.
"""

import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, tf_checkpoint
from checkpoints_tools.source import Input, Listing, Shape, Shapes, Source, Variables, check_variant, shape_of
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
_AXES: dict[str, Any] = {'stride_block': 'last', 'stride_conv': '3x3', 'stem_pool': 'same', 'bn_epsilon': EPSILON}

# The variables that the document's read_ckpt.py leaves out.
DOCUMENT_EXCEPT = ('global_step', 'resnet_v1_50/mean_rgb', 'resnet_v1_50/logits/biases', 'resnet_v1_50/logits/weights')

NOTE = (
    'slim of tensorflow/models, Apache-2.0; its released v1 weights are those of KaimingHe/deep-residual-networks, '
    'MIT, arXiv:1512.03385'
)


class _Shapes(Listing):
    mean_rgb: tuple[float, ...] | None = None  # the value of the file's variable of this name, if there is one


def rename(name: str) -> str | None:
    """Return the name that the document's read_ckpt.py gives a variable of resnet_v1_50, or None if it drops it.

    The renamed weights load into a Keras network with layers of these names. But the document's network is a v1.5, in
    which the same weights compute another function. The pooled features of [3, 4, 6, 3] networks with random weights,
    loaded as v1.5, differ from slim's by 27 % (norm of the difference / norm; 16 filters, 64 x 64 pixels, random BN
    statistics), and by 144 % if the statistics fit the weights, as after training (8 filters, 128 x 128). Those of the
    network that `describe` finds differ by rounding, 0.001 %.

    Source: the document's `read_ckpt.py`, its except list and its five `replace` in their order: 'shortcut/weights'
    would not be found after 'weights'.
    """
    if name in DOCUMENT_EXCEPT:
        return None
    name = name.replace('resnet_v1_50/', '').replace('bottleneck_v1/', '')
    name = name.replace('shortcut/weights', 'shortcut/conv1/kernel')
    return name.replace('weights', 'kernel').replace('biases', 'bias')


def document_names(names: Iterable[str]) -> dict[str, str]:
    """Return {slim's name: the document's name} of the variables that the document keeps, in the order given."""
    return {name: kept for name in names if (kept := rename(name)) is not None}


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)} of a checkpoint. The only value read is mean_rgb, three numbers."""
    found = _Shapes(tf_checkpoint.shapes(path))
    for name in found:
        if name.rpartition('/')[2] == 'mean_rgb' and found[name] == ((3,), 'float32'):
            found.mean_rgb = tuple(round(float(number), 4) for number in tf_checkpoint.read(path)[name])
    return found


def recognises(shapes: Shapes) -> bool:
    """Return whether these are variables of a slim ResNet, under any scope."""
    return any(_FIRST.fullmatch(name) for name in shapes)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, for example 'resnet_v1_50', must name the network found.

    If the file has a mean_rgb, it is the input's mean in place of ImageNet's.
    """
    scope, version = _scope(shapes)
    group_blocks = our_net.named_blocks(shapes, re.escape(scope) + _UNIT)
    filters, stem, num_classes = (
        shape_of(shapes, f'{scope}{name}/weights', 4)[3]
        for name in (f'block1/unit_1/bottleneck_v{version}/conv1', 'conv1', 'logits')
    )
    found = f'resnet_v{version}_{2 + 3 * sum(group_blocks)}'
    check_variant(variant, found)
    axes = _AXES | {'stem_filters': None if stem == filters else stem}
    spec = ResNetSpec(group_blocks, filters, 'imagenet', 'bottleneck', version, 'B', **axes)
    convention, mean_rgb = INPUTS[version], getattr(shapes, 'mean_rgb', None)
    if version == '1' and mean_rgb and np.isfinite(mean_rgb).all():
        convention = dataclasses.replace(convention, mean=mean_rgb)
    return Source('slim', found, spec, num_classes, convention, LABELS.get(num_classes, 'unknown'), NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    scope, _ = _scope(shapes)
    return {f'{scope}logits/weights': (1, 1, features, features), f'{scope}logits/biases': (features,)}


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of the variables that are not weights of the network."""
    means = [name for name in shapes if name.rpartition('/')[2] == 'mean_rgb']
    return tf_checkpoint.ignored(shapes) | dict.fromkeys(means, 'mean of the images, part of the input')


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries. The biases of v2 are subtracted from the moving means of all BNs that read their sums."""
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
    """Return slim's name of one of our layers, without the scope."""
    if not layer.group:
        named = {'stem_conv': 'conv1', 'stem_bn': 'conv1/BatchNorm', 'head_bn': 'postnorm', 'logits': 'logits'}
        return named[layer.name]
    unit = f'block{layer.group}/unit_{layer.block}/bottleneck_v{version}'
    if version == '2' and layer.kind == 'bn' and layer.index == 0:
        return f'{unit}/preact'
    conv = f'{unit}/conv{layer.index}' if layer.index else f'{unit}/shortcut'
    return f'{conv}/BatchNorm' if layer.kind == 'bn' else conv


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] by slim's definition and slim's names."""
    scope, version = _scope(variables)
    is_v2 = version == '2'

    def conv(x, name, stride) -> tf.Tensor:
        bias = variables.get(f'{scope}{name}/biases')
        return operations.conv2d(x, variables[f'{scope}{name}/weights'], stride, bias)

    def norm(x, name) -> tf.Tensor:
        name = f'{scope}{name}' if name.endswith(('preact', 'postnorm')) else f'{scope}{name}/BatchNorm'
        return operations.batch_norm(x, *(variables[f'{name}/{part}'] for part in our_net.BN_PARTS), epsilon=EPSILON)

    x = conv(tf.constant(images, tf.float32), 'conv1', 2)
    x = x if is_v2 else tf.nn.relu(norm(x, 'conv1'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    group_blocks = our_net.named_blocks(variables, re.escape(scope) + _UNIT)
    for block, unit, stride in operations.blocks(group_blocks, strides_last=True):
        name = f'block{block}/unit_{unit}/bottleneck_v{version}'
        projection = f'{name}/shortcut' if f'{scope}{name}/shortcut/weights' in variables else None
        names, preact = [f'{name}/conv{i}' for i in (1, 2, 3)], f'{name}/preact' if is_v2 else None
        x = operations.residual_block(x, projection, names, (1, stride, 1), conv, norm, preact)
    x = tf.nn.relu(norm(x, 'postnorm')) if is_v2 else x
    return operations.classify(x, variables[f'{scope}logits/weights'][0, 0], variables[f'{scope}logits/biases'])


def _scope(names):
    """Return the scope of the only ResNet and its version, for example ('resnet_v1_50/', '1')."""
    found = [match for match in map(_FIRST.fullmatch, names) if match]
    if not found:
        raise UserError('no variable ends in block1/unit_1/bottleneck_v1/conv1/weights; pass a checkpoint of slim')
    if len(found) > 1:
        raise UserError(f'{len(found)} ResNets, {", ".join(match[1] for match in found)}; pass a checkpoint of one')
    return found[0].groups()
