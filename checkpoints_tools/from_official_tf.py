"""Checkpoints of TensorFlow's official/resnet (TF1): v1, which is 1.5, and v2; ImageNet 18 to 200 and CIFAR 6n+2.

Its variables are numbered in the order of their creation, `resnet_model/conv2d_7/kernel`; in the first block of every
group the projection is made before the block's own convolutions, in v2 after the block's first BN and without one of
its own. Until April 2018 there was no `resnet_model/`. From stem kernel, shapes and counts follows what network it is.

Source: official/resnet/resnet_model.py and imagenet_main.py, May 2018 to 2019.
"""

import collections
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import tf_checkpoint
from checkpoints_tools.source import Entry, Input, Lazy, Source, identity
from official_resnet import resnet_spec
from official_resnet.errors import UserError

shapes, read, list_files, ignored = (
    tf_checkpoint.shapes,
    tf_checkpoint.read,
    tf_checkpoint.list_files,
    tf_checkpoint.ignored,
)

_SCOPE = 'resnet_model/'
_BN = ('gamma', 'beta', 'moving_mean', 'moving_variance')
LABELS = {1001: 'imagenet1001', 1000: 'imagenet1000'}
CIFAR_LABELS = {10: 'cifar10'}
IMAGENET_INPUT = Input(mean=(123.68, 116.78, 103.94))
CIFAR_INPUT = Input(size=32, resize=None, normalization='per_image_standardization')
NOTE = 'official/resnet of tensorflow/models, Apache-2.0'

_Net = collections.namedtuple('_Net', 'scope stem block version group_blocks filters num_classes')
# In the order of creation: is_conv, our layer, the shape of the kernel or of each of BN's four variables.
_Layer = collections.namedtuple('_Layer', 'is_conv name shape')


def recognises(shapes):
    """Return whether these are variables of official/resnet."""
    return any(
        {
            f'{scope}conv2d/kernel',
            f'{scope}conv2d_1/kernel',
            f'{scope}batch_normalization/gamma',
            f'{scope}dense/kernel',
        }
        <= shapes.keys()
        for scope in (_SCOPE, '')
    )


def describe(shapes, variant=None):
    """Return the Source of a checkpoint.

    Args:
        shapes: {name: (shape, dtype)}.
        variant: 'resnet50_v1.5', or by its official name 'resnet50_v1', to insist on; None takes what is found.

    Raises:
        UserError: variables are missing or misshapen, or it is another variant.
    """
    net = _net(shapes)
    is_imagenet = net.stem == 'imagenet'
    per_block = 3 if net.block == 'bottleneck' else 2
    size = 2 + per_block * sum(net.group_blocks)
    found = f'resnet{size}_v{net.version if is_imagenet else net.version[0]}'
    if variant is not None and variant.replace('_v1.5', '_v1') != found.replace('_v1.5', '_v1'):
        raise UserError(f'variant {variant}: by its variables the checkpoint is of {found}')
    tf_checkpoint.check(_expected(net), shapes, found)
    spec = resnet_spec.ResNetSpec(
        net.group_blocks,
        filters=net.filters,
        stem=net.stem,
        block=net.block,
        version=net.version if is_imagenet else net.version[0],
        shortcut='group',
        padding='symmetric',
        stem_pool='same' if is_imagenet else 'pad1',
        bn_momentum=0.997,
        bn_epsilon=1e-5,
    )
    labels = (LABELS if is_imagenet else CIFAR_LABELS).get(net.num_classes, 'unknown')
    convention = IMAGENET_INPUT if is_imagenet else CIFAR_INPUT
    return Source('official_tf', found, spec, net.num_classes, convention, labels, NOTE)


def name_map(source, shapes):
    """Return [Entry], one for each of our variables."""
    net = _net(shapes)
    entries = []
    for layer, name in _numbered(net):
        if layer.is_conv:
            entries.append(Entry(f'{layer.name}/kernel', (f'{name}/kernel',), identity))
        else:
            entries += [Entry(f'{layer.name}/{part}', (f'{name}/{part}',), identity) for part in _BN]
    return entries + [Entry(f'logits/{part}', (f'{net.scope}dense/{part}',), identity) for part in ('kernel', 'bias')]


def run(variables, images, source):
    """Return logits, float32 [n, classes], by official/resnet's definition: in its order, with plain TensorFlow ops.

    Args:
        variables: {name: ndarray} of a checkpoint.
        images: float32 [n, h, w, 3], preprocessed as source.input says.
        source: Source; its spec says how many blocks of what kind.
    """
    spec, scope = source.spec, _SCOPE if f'{_SCOPE}dense/kernel' in variables else ''
    values = Lazy(variables, lambda name: np.asarray(variables[name], 'float32'))  # read as they are needed
    made = collections.Counter()

    def next_name(kind):
        made[kind] += 1
        return f'{scope}{kind}' if made[kind] == 1 else f'{scope}{kind}_{made[kind] - 1}'

    def conv(x, stride=1):
        return tf_checkpoint.conv2d(x, values[f'{next_name("conv2d")}/kernel'], stride)

    def norm(x):
        return tf_checkpoint.batch_norm(x, values, next_name('batch_normalization'))

    is_v2, relu = spec.version == '2', tf.nn.relu
    block_fn = _run_block_v2 if is_v2 else _run_block_v1
    strides = (1, 2, 1) if spec.block == 'bottleneck' else (2, 1)  # 2: where a stride takes effect
    x = conv(tf.constant(images, tf.float32), 2 if spec.stem == 'imagenet' else 1)
    x = x if is_v2 else relu(norm(x))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME') if spec.stem == 'imagenet' else x
    for group, num_blocks in enumerate(spec.group_blocks):
        for block in range(num_blocks):
            stride = 2 if group and not block else 1
            x = block_fn(x, conv, norm, [min(stride, most) for most in strides], None if block else stride)
    x = relu(norm(x)) if is_v2 else x
    x = tf.reduce_mean(x, [1, 2])
    return (x @ values[f'{scope}dense/kernel'] + values[f'{scope}dense/bias']).numpy()


def _run_block_v1(x, conv, norm, strides, projection):
    shortcut = x if projection is None else norm(conv(x, projection))
    for i, stride in enumerate(strides):
        x = norm(conv(x, stride))
        x = tf.nn.relu(x if i < len(strides) - 1 else x + shortcut)
    return x


def _run_block_v2(x, conv, norm, strides, projection):
    shortcut, x = x, tf.nn.relu(norm(x))
    shortcut = shortcut if projection is None else conv(x, projection)
    for i, stride in enumerate(strides):
        x = conv(tf.nn.relu(norm(x)) if i else x, stride)
    return x + shortcut


def _net(shapes):
    """Return the _Net of these variables; whether all of them are as in it is for `check` to say."""
    scope = _SCOPE if any(name.startswith(_SCOPE) for name in shapes) else ''
    num_convs = _count(shapes, scope, 'conv2d', 'kernel')
    num_norms = _count(shapes, scope, 'batch_normalization', 'gamma')
    if num_convs < 3:
        raise UserError(f'{num_convs} convolutions named as {scope}conv2d_1/kernel; official/resnet has more')
    convs = [tf_checkpoint.shape_of(shapes, f'{_name(scope, "conv2d", i)}/kernel', 4) for i in range(num_convs)]
    block, group_blocks = _blocks(convs)
    num_groups = len(group_blocks)
    versions = {len(convs): '1.5', len(convs) - num_groups: '2'}
    if num_norms == len(convs) + 1:
        raise UserError(
            f'{num_norms} BNs for {len(convs)} convolutions: a v1 from before May 2018, with a BN and a '
            'ReLU after its last block, which no ResNetSpec has'
        )
    if num_norms not in versions:
        raise UserError(
            f'{num_norms} BNs for {len(convs)} convolutions in {num_groups} groups: v1 has '
            f'{len(convs)}, v2 {len(convs) - num_groups}'
        )
    if convs[0][0] not in (3, 7):
        raise UserError(f'{scope}conv2d/kernel has the shape {convs[0]}; expected 3x3 (CIFAR) or 7x7 (ImageNet)')
    return _Net(
        scope,
        'imagenet' if convs[0][0] == 7 else 'cifar',
        block,
        versions[num_norms],
        group_blocks,
        convs[0][3],
        tf_checkpoint.shape_of(shapes, f'{scope}dense/kernel', 2)[1],
    )


def _blocks(convs):
    """Return (block, group_blocks) from the kernels' shapes: 3x3 ones are counted by their filters."""
    filters = convs[0][3]
    block = 'bottleneck' if convs[2][0] == 1 else 'basic'  # 0 is the stem, 1 a projection
    num_3x3 = collections.Counter(shape[3] for shape in convs[1:] if shape[0] == 3)
    group_blocks = []
    while num_3x3[filters * 2 ** len(group_blocks)]:
        group_blocks.append(num_3x3[filters * 2 ** len(group_blocks)] // (1 if block == 'bottleneck' else 2))
    if not group_blocks or not all(group_blocks):
        raise UserError(f'the convolutions after the stem, with {filters} filters, do not form groups of blocks')
    return block, tuple(group_blocks)


def _count(shapes, scope, kind, part):
    """Return how many layers of a kind there are; UserError where a number is left out."""
    pattern = re.compile(rf'{scope}{kind}(?:_([1-9]\d{{0,4}}))?/{part}')
    numbers = {int(match[1] or 0) for match in map(pattern.fullmatch, shapes) if match}
    for i in range(len(numbers)):
        if i not in numbers:
            raise UserError(
                f'the checkpoint has {len(numbers)} of {scope}{kind}*/{part}, but no {_name(scope, kind, i)}/{part}'
            )
    return len(numbers)


def _name(scope, kind, number):
    return f'{scope}{kind}_{number}' if number else f'{scope}{kind}'


def _layers(net):
    """Return [_Layer], our layers in the order in which official/resnet creates its own."""
    is_v2, channels = net.version == '2', net.filters
    kernel = 7 if net.stem == 'imagenet' else 3
    layers = [_Layer(True, 'stem_conv', (kernel, kernel, 3, channels))]
    if not is_v2:
        layers.append(_Layer(False, 'stem_bn', (channels,)))
    for i, num_blocks in enumerate(net.group_blocks):
        for block in range(1, num_blocks + 1):
            name, filters = f'group{i + 1}_block{block}', net.filters * 2**i
            layers += (_block_layers_v2 if is_v2 else _block_layers_v1)(
                name, _block_shapes(net.block, channels, filters), channels, block == 1
            )
            channels = layers[-1].shape[-1]
    return layers + ([_Layer(False, 'head_bn', (channels,))] if is_v2 else [])


def _block_shapes(block, channels, filters):
    if block == 'basic':
        return (3, 3, channels, filters), (3, 3, filters, filters)
    return (1, 1, channels, filters), (3, 3, filters, filters), (1, 1, filters, 4 * filters)


def _block_layers_v1(name, kernels, channels, has_projection):
    layers = []
    if has_projection:
        out = kernels[-1][3]
        layers += [
            _Layer(True, f'{name}_shortcut_conv', (1, 1, channels, out)),
            _Layer(False, f'{name}_shortcut_bn', (out,)),
        ]
    for i, shape in enumerate(kernels, start=1):
        layers += [_Layer(True, f'{name}_conv{i}', shape), _Layer(False, f'{name}_bn{i}', shape[3:])]
    return layers


def _block_layers_v2(name, kernels, channels, has_projection):
    layers = []
    for i, shape in enumerate(kernels, start=1):
        layers.append(_Layer(False, f'{name}_bn{i}', shape[2:3]))
        if has_projection and i == 1:
            layers.append(_Layer(True, f'{name}_shortcut_conv', (1, 1, channels, kernels[-1][3])))
        layers.append(_Layer(True, f'{name}_conv{i}', shape))
    return layers


def _numbered(net):
    """Return [(_Layer, its name there)]."""
    made, pairs = collections.Counter(), []
    for layer in _layers(net):
        kind = 'conv2d' if layer.is_conv else 'batch_normalization'
        pairs.append((layer, _name(net.scope, kind, made[kind])))
        made[kind] += 1
    return pairs


def _expected(net):
    """Return {name: shape} of all variables of the network."""
    expected, channels = {}, net.filters
    for layer, name in _numbered(net):
        expected |= {f'{name}/{part}': layer.shape for part in (('kernel',) if layer.is_conv else _BN)}
        channels = layer.shape[-1]
    return expected | {
        f'{net.scope}dense/kernel': (channels, net.num_classes),
        f'{net.scope}dense/bias': (net.num_classes,),
    }
