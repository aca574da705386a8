"""Checkpoints of TensorFlow's official/resnet (TF1): v1, which is 1.5 here, and v2; ImageNet 18 to 200, CIFAR 6n+2.

Variables are numbered in the order of their creation, as in `resnet_model/conv2d_7/kernel`. The first block of every
group has a projection, which is made before the block's own convolutions; in v2 it comes after the block's first BN and
has no BN of its own. Until April 2018 there was no `resnet_model/`. The shapes and counts tell which network it is.

Source: official/resnet/resnet_model.py and imagenet_main.py, May 2018 to 2019.
"""

import collections
import itertools
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, tf_checkpoint
from checkpoints_tools.source import Input, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

shapes, read, list_files = tf_checkpoint.shapes, tf_checkpoint.read, tf_checkpoint.list_files
ignored = tf_checkpoint.ignored

EPSILON = 1e-5
LABELS = {'imagenet': {1001: 'imagenet1001', 1000: 'imagenet1000'}, 'cifar': {10: 'cifar10'}}
INPUTS = {
    'imagenet': Input(mean=(123.68, 116.78, 103.94)),
    'cifar': Input(size=32, resize=None, normalization='per_image_standardization'),
}
NOTE = 'official/resnet of tensorflow/models, Apache-2.0'
_SCOPE = 'resnet_model/'
_Numbers = collections.defaultdict[str, 'itertools.count[int]']  # kind of layer -> its next number


def recognises(shapes: Shapes) -> bool:
    """Return whether these are variables of official/resnet."""
    names = ('conv2d/kernel', 'conv2d_1/kernel', 'batch_normalization/gamma')
    return any(all(f'{scope}{name}' in shapes for name in names) for scope in (_SCOPE, ''))


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, 'resnet50_v1.5' or officially 'resnet50_v1', must name the network found."""
    scope = _scope(shapes)
    num_convs = _count(shapes, f'{scope}conv2d{{}}/kernel')
    num_norms = _count(shapes, f'{scope}batch_normalization{{}}/gamma')
    if num_convs < 3:
        raise UserError(f'{num_convs} convolutions named like {scope}conv2d_1/kernel, fewer than in official/resnet')
    convs = [shape_of(shapes, f'{_name(scope, "conv2d", i)}/kernel', 4) for i in range(num_convs)]
    size, filters = convs[0][0], convs[0][3]
    if size not in (3, 7):
        raise UserError(f'{scope}conv2d/kernel has the shape {convs[0]}, not 3x3 (CIFAR) or 7x7 (ImageNet)')
    stem = 'imagenet' if size == 7 else 'cifar'
    block, group_blocks = _blocks(convs)
    versions = {num_convs: '1.5' if stem == 'imagenet' else '1', num_convs - len(group_blocks): '2'}
    if num_norms not in versions:
        raise UserError(
            f'{num_norms} BNs for {num_convs} convolutions in {len(group_blocks)} groups: v1 has {num_convs}, v2 '
            f'{num_convs - len(group_blocks)}; a v1 from before May 2018 has {num_convs + 1}, the last one after the '
            'last block, and cannot be converted'
        )
    version = versions[num_norms]
    pool = 'same' if stem == 'imagenet' else 'pad1'
    spec = ResNetSpec(group_blocks, filters, stem, block, version, 'group', stem_pool=pool)
    name = f'resnet{spec.resnet_size}_v'
    check_variant(variant, *(name + known_as for known_as in (version, *(('1.5', '1') if version != '2' else ()))))
    num_classes = shape_of(shapes, f'{scope}dense/kernel', 2)[1]
    labels = LABELS[stem].get(num_classes, 'unknown')
    return Source('official_tf', f'{name}{version}', spec, num_classes, INPUTS[stem], labels, NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {f'{_scope(shapes)}dense/kernel': (features, features), f'{_scope(shapes)}dense/bias': (features,)}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries. Our layers are in the order in which official/resnet creates its own."""
    scope, numbers = _scope(shapes), _Numbers(itertools.count)
    kinds = {'conv': 'conv2d', 'bn': 'batch_normalization', 'dense': 'dense'}
    return our_net.entries(source, lambda layer: _name(scope, kinds[layer.kind], next(numbers[layer.kind])))


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] in the order of official/resnet."""
    spec, scope, numbers = source.spec, _scope(variables), _Numbers(itertools.count)
    is_v2, relu = spec.version == '2', tf.nn.relu

    def get(kind, *parts) -> list[np.ndarray]:
        name = _name(scope, kind, next(numbers[kind]))
        return [variables[f'{name}/{part}'] for part in parts]

    def conv(x, _, stride) -> tf.Tensor:
        return operations.conv2d(x, get('conv2d', 'kernel')[0], stride)

    def norm(x, _) -> tf.Tensor:
        return operations.batch_norm(x, *get('batch_normalization', *our_net.BN_PARTS), epsilon=EPSILON)

    x = conv(tf.constant(images, tf.float32), 'stem', 2 if spec.stem == 'imagenet' else 1)
    x = x if is_v2 else relu(norm(x, 'stem'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME') if spec.stem == 'imagenet' else x
    for _, block, stride in operations.blocks(spec.group_blocks):
        strides = (1, stride, 1) if spec.block == 'bottleneck' else (stride, 1)
        projection, names = 'projection' if block == 1 else None, ['conv'] * len(strides)  # only the order matters
        x = operations.residual_block(x, projection, names, strides, conv, norm, 'preact' if is_v2 else None)
    x = relu(norm(x, 'head')) if is_v2 else x
    return operations.classify(x, *get('dense', 'kernel', 'bias'))


def _scope(names):
    return _SCOPE if any(name.startswith(_SCOPE) for name in names) else ''


def _name(scope, kind, number):
    return f'{scope}{kind}_{number}' if number else f'{scope}{kind}'


def _count(shapes, name):
    """Return the number of layers with a name, where '{}' is a layer's number. UserError: one is left out."""
    pattern = re.compile(name.format(r'(?:_([1-9]\d{0,4}))?'))
    numbers = {int(match[1] or 0) for match in map(pattern.fullmatch, shapes) if match}
    for i in range(len(numbers)):
        if i not in numbers:
            raise UserError(f'the checkpoint has {len(numbers)} of {name.format("*")}, but no {name.format(f"_{i}")}')
    return len(numbers)


def _blocks(convs):
    """Return (block, group_blocks) from the kernels' shapes: the 3x3 kernels are counted by their filters."""
    filters = convs[0][3]
    block = 'bottleneck' if convs[2][0] == 1 else 'basic'  # 0 is the stem, 1 is a projection
    num_3x3 = collections.Counter(shape[3] for shape in convs[1:] if shape[0] == 3)
    group_blocks = []
    while num_3x3[filters * 2 ** len(group_blocks)]:
        group_blocks.append(num_3x3[filters * 2 ** len(group_blocks)] // (1 if block == 'bottleneck' else 2))
    if not group_blocks or not all(group_blocks):
        raise UserError(f'the convolutions after a stem of {filters} filters form no groups; get the whole checkpoint')
    return block, tuple(group_blocks)
