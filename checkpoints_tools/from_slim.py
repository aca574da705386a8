"""tf-slim's ResNets: checkpoints of resnet_v1_50, 101, 152, 200 and resnet_v2_*, V1 and V2 files, converted exactly.

slim halves the resolution in the last unit of block1 to 3, on its 3x3 convolution, where its shortcut is sub-sampled
by a 1x1 max-pool. In v1 that is the same function as the paper's, which halves on the first 1x1 of the next group;
it is not v1.5, which halves on the 3x3 of the next group. Other marks: conv2d_same pads from the kernel alone, the
stem's pool is SAME, logits are a 1x1 convolution, and in v2 conv1, shortcut and conv3 have biases, which go into the
moving mean of whatever BN reads their sum.

Source: tf_slim/nets/resnet_v1.py, resnet_v2.py, resnet_utils.py of tf-slim 1.1.0.

    rename(name)     the names that a tutorial gives the variables of resnet_v1_50
"""

import collections
import dataclasses
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import tf_checkpoint
from checkpoints_tools.source import Entry, Input, Lazy, Source, identity
from official_resnet import resnet_spec
from official_resnet.errors import UserError

read, list_files = tf_checkpoint.read, tf_checkpoint.list_files

_FIRST = re.compile(r'((?:.*/)?)block1/unit_1/bottleneck_v([12])/conv1/weights')
_UNIT = re.compile(r'block([1-9]\d{0,3})/unit_([1-9]\d{0,3})/bottleneck_v[12]/conv1/weights')
_BN = ('gamma', 'beta', 'moving_mean', 'moving_variance')
_EXPANSION = resnet_spec.BOTTLENECK_EXPANSION
# v1 was converted from He's Caffe files, v2 trained with Inception's preprocessing: [-1, 1], the central
# 87.5 % resized to 299, which is the centre of a picture whose shorter side is 342.
INPUTS = {
    '1': Input(mean=(123.68, 116.78, 103.94)),
    '2': Input(scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3, size=299, resize=342),
}
LABELS = {1000: 'imagenet1000', 1001: 'imagenet1001'}

# The tutorial's list of what it leaves out, and its replacements in its order.
DOCUMENT_EXCEPT = ('global_step', 'resnet_v1_50/mean_rgb', 'resnet_v1_50/logits/biases', 'resnet_v1_50/logits/weights')
DOCUMENT_RENAMES = (
    ('resnet_v1_50/', ''),
    ('bottleneck_v1/', ''),
    ('shortcut/weights', 'shortcut/conv1/kernel'),
    ('weights', 'kernel'),
    ('biases', 'bias'),
)

NOTE = (
    'slim of tensorflow/models, Apache-2.0; its released v1 weights are those of KaimingHe/deep-residual-networks, '
    'MIT, arXiv:1512.03385'
)

# What a checkpoint says of its network; scope with its slash, 'resnet_v1_50/'.
_Net = collections.namedtuple('_Net', 'scope version units filters stem_filters num_classes')
# Variables of theirs under a scope: kind is 'weights', 'biases' or 'BatchNorm'; layer is ours, None for biases.
_Row = collections.namedtuple('_Row', 'kind scope layer shape')


class Shapes(dict):
    """{name: (shape, dtype)}; mean_rgb is what the file's variable of this name holds, or None."""

    mean_rgb = None


def rename(name):
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
    for old, new in DOCUMENT_RENAMES:
        name = name.replace(old, new)
    return name


def document_names(names):
    """Return {their name: the document's name} of those that the document keeps, in the order given."""
    return {name: rename(name) for name in names if rename(name) is not None}


def shapes(path):
    """Return Shapes of a checkpoint, {name: (shape, dtype)}; of the values only three numbers are read, mean_rgb."""
    found = Shapes(tf_checkpoint.shapes(path))
    for name in found:
        if name.rpartition('/')[2] == 'mean_rgb' and found[name] == ((3,), 'float32'):
            found.mean_rgb = tuple(round(float(number), 4) for number in tf_checkpoint.read(path, [name])[name])
    return found


def recognises(shapes):
    """Return whether these are variables of a slim ResNet, under any scope."""
    return any(_FIRST.fullmatch(name) for name in shapes)


def describe(shapes, variant=None):
    """Return the Source of a checkpoint.

    Args:
        shapes: {name: (shape, dtype)}; a mean_rgb of the file's own is the input's mean in place of ImageNet's.
        variant: 'resnet_v1_50', to insist on; None takes what is found.

    Raises:
        UserError: variables are missing or misshapen, or it is another variant.
    """
    net = _net(shapes)
    found = f'resnet_v{net.version}_{2 + 3 * sum(net.units)}'
    if variant not in (None, found):
        raise UserError(f'variant {variant}: by its variables the checkpoint is of {found}')
    tf_checkpoint.check(_expected(net), shapes, found)
    spec = resnet_spec.ResNetSpec(
        net.units,
        filters=net.filters,
        stem='imagenet',
        block='bottleneck',
        version=net.version,
        shortcut='B',
        stride_block='last',
        stride_conv='3x3',
        padding='symmetric',
        stem_pool='same',
        bn_momentum=0.997,
        bn_epsilon=1e-5,
        stem_filters=None if net.stem_filters == net.filters else net.stem_filters,
    )
    convention, mean_rgb = INPUTS[net.version], getattr(shapes, 'mean_rgb', None)
    if net.version == '1' and mean_rgb and np.isfinite(mean_rgb).all():
        convention = dataclasses.replace(convention, mean=mean_rgb)
    return Source('slim', found, spec, net.num_classes, convention, LABELS.get(net.num_classes, 'unknown'), NOTE)


def ignored(shapes):
    """Return {name: why} of variables that carry no weight of the network."""
    means = {
        name: 'the mean of the pictures, which the input lacks already'
        for name in shapes
        if name.rpartition('/')[2] == 'mean_rgb'
    }
    return tf_checkpoint.ignored(shapes) | means


def name_map(source, shapes):
    """Return [Entry], one for each of our variables.

    A bias of v2 is in the entries of all BNs that read a sum it is part of: it comes off their moving means. The
    stem's is one of them, since its pool pads with -inf and the maxima move with the bias.
    """
    net = _net(shapes)
    entries, missing = [], []
    for row in _rows(net):
        name = f'{net.scope}{row.scope}'
        if row.kind == 'weights':
            entries.append(Entry(f'{row.layer}/kernel', (f'{name}/weights',), identity))
        elif row.kind == 'biases':
            is_new_sum = name.endswith(('/shortcut', f'{net.scope}conv1'))
            missing = [*([] if is_new_sum else missing), f'{name}/biases']
        else:
            reads_sum = name.endswith(('/preact', f'{net.scope}postnorm'))
            entries += _bn_entries(row.layer, name, missing if reads_sum else [])
    weights, biases = (f'{net.scope}logits/{name}' for name in ('weights', 'biases'))
    return entries + [Entry('logits/kernel', (weights,), _squeeze), Entry('logits/bias', (biases,), identity)]


def run(variables, images, source):
    """Return logits, float32 [n, classes], by slim's definition: from slim's names, with plain TensorFlow ops.

    Args:
        variables: {name: ndarray} of a checkpoint.
        images: float32 [n, h, w, 3], preprocessed as source.input says.
        source: Source; not looked at, since the names say it all.
    """
    first = next(_FIRST.fullmatch(name) for name in variables if _FIRST.fullmatch(name))
    is_v2 = first[2] == '2'
    scope_name = first[1]  # values are read as they are needed: all of them would be the checkpoint once more
    values = Lazy(
        [name.removeprefix(scope_name) for name in variables if name.startswith(scope_name)],
        lambda name: np.asarray(variables[scope_name + name], 'float32'),
    )
    x = tf_checkpoint.conv2d(tf.constant(images, tf.float32), values['conv1/weights'], 2)
    x = x + values['conv1/biases'] if is_v2 else tf.nn.relu(tf_checkpoint.batch_norm(x, values, 'conv1/BatchNorm'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    unit_fn, block = _run_unit_v2 if is_v2 else _run_unit_v1, 1
    while f'block{block}/unit_1/bottleneck_v{first[2]}/conv1/weights' in values:
        is_last_block, unit = f'block{block + 1}/unit_1/bottleneck_v{first[2]}/conv1/weights' not in values, 1
        while (scope := f'block{block}/unit_{unit}/bottleneck_v{first[2]}') + '/conv1/weights' in values:
            is_last = f'block{block}/unit_{unit + 1}/bottleneck_v{first[2]}/conv1/weights' not in values
            x = unit_fn(x, values, scope, 2 if is_last and not is_last_block else 1)
            unit += 1
        block += 1
    if is_v2:
        x = tf.nn.relu(tf_checkpoint.batch_norm(x, values, 'postnorm'))
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    logits = tf.nn.conv2d(x, values['logits/weights'], 1, 'SAME') + values['logits/biases']
    return tf.squeeze(logits, [1, 2]).numpy()


def _run_unit_v1(x, values, scope, stride):
    def conv_bn(x, name, stride=1):
        x = tf_checkpoint.conv2d(x, values[f'{scope}/{name}/weights'], stride)
        return tf_checkpoint.batch_norm(x, values, f'{scope}/{name}/BatchNorm')

    has_projection = f'{scope}/shortcut/weights' in values
    shortcut = conv_bn(x, 'shortcut', stride) if has_projection else tf.nn.max_pool2d(x, 1, stride, 'VALID')
    x = tf.nn.relu(conv_bn(x, 'conv1'))
    x = tf.nn.relu(conv_bn(x, 'conv2', stride))
    return tf.nn.relu(shortcut + conv_bn(x, 'conv3'))


def _run_unit_v2(x, values, scope, stride):
    def conv(x, name, stride=1):
        return tf_checkpoint.conv2d(x, values[f'{scope}/{name}/weights'], stride)

    def bn_relu(x, name):
        return tf.nn.relu(tf_checkpoint.batch_norm(x, values, f'{scope}/{name}'))

    preact = bn_relu(x, 'preact')
    if f'{scope}/shortcut/weights' in values:
        shortcut = conv(preact, 'shortcut', stride) + values[f'{scope}/shortcut/biases']
    else:
        shortcut = tf.nn.max_pool2d(x, 1, stride, 'VALID')
    x = bn_relu(conv(preact, 'conv1'), 'conv1/BatchNorm')
    x = bn_relu(conv(x, 'conv2', stride), 'conv2/BatchNorm')
    return shortcut + conv(x, 'conv3') + values[f'{scope}/conv3/biases']


def _net(shapes):
    """Return the _Net of these variables; what they lack beyond its marks is for _rows and `check` to say."""
    first = [_FIRST.fullmatch(name) for name in shapes if _FIRST.fullmatch(name)]
    if not first:
        raise UserError('no variable is named as block1/unit_1/bottleneck_v1/conv1/weights of a slim ResNet')
    if len(first) > 1:
        raise UserError(f'the checkpoint holds {len(first)} ResNets: {", ".join(match[1] for match in first)}')
    scope, version = first[0].groups()
    units = collections.defaultdict(list)
    for name in shapes:
        if name.startswith(scope) and (unit := _UNIT.fullmatch(name.removeprefix(scope))):
            units[int(unit[1])].append(int(unit[2]))
    num_blocks = tf_checkpoint.count_from_one(units, f'{scope}block')
    return _Net(
        scope,
        version,
        tuple(
            tf_checkpoint.count_from_one(units[block], f'{scope}block{block}/unit_')
            for block in range(1, num_blocks + 1)
        ),
        filters=tf_checkpoint.shape_of(shapes, first[0][0], 4)[3],
        stem_filters=tf_checkpoint.shape_of(shapes, f'{scope}conv1/weights', 4)[3],
        num_classes=tf_checkpoint.shape_of(shapes, f'{scope}logits/weights', 4)[3],
    )


def _rows(net):
    """Return [_Row] of all variables but the logits', in the order of computation."""
    is_v2, channels = net.version == '2', net.stem_filters
    rows = [
        _Row('weights', 'conv1', 'stem_conv', (7, 7, 3, channels)),
        _Row('biases', 'conv1', None, (channels,))
        if is_v2
        else _Row('BatchNorm', 'conv1/BatchNorm', 'stem_bn', (channels,)),
    ]
    for i, num_units in enumerate(net.units):
        filters = net.filters * 2**i
        for unit in range(1, num_units + 1):
            scope, layer = f'block{i + 1}/unit_{unit}/bottleneck_v{net.version}', f'group{i + 1}_block{unit}'
            rows += (_unit_rows_v2 if is_v2 else _unit_rows_v1)(scope, layer, channels, filters)
            channels = filters * _EXPANSION
    return rows + ([_Row('BatchNorm', 'postnorm', 'head_bn', (channels,))] if is_v2 else [])


def _unit_convs(channels, filters):
    """Return {name: shape} of a unit's kernels; a unit projects where it changes the number of channels."""
    out = filters * _EXPANSION
    projection = {'shortcut': (1, 1, channels, out)} if channels != out else {}
    return projection | {
        'conv1': (1, 1, channels, filters),
        'conv2': (3, 3, filters, filters),
        'conv3': (1, 1, filters, out),
    }


def _unit_rows_v1(scope, layer, channels, filters):
    rows = []
    for name, shape in _unit_convs(channels, filters).items():
        ours = ('shortcut_conv', 'shortcut_bn') if name == 'shortcut' else (name, name.replace('conv', 'bn'))
        rows += [
            _Row('weights', f'{scope}/{name}', f'{layer}_{ours[0]}', shape),
            _Row('BatchNorm', f'{scope}/{name}/BatchNorm', f'{layer}_{ours[1]}', shape[3:]),
        ]
    return rows


def _unit_rows_v2(scope, layer, channels, filters):
    rows = [_Row('BatchNorm', f'{scope}/preact', f'{layer}_bn1', (channels,))]
    for name, shape in _unit_convs(channels, filters).items():
        ours = 'shortcut_conv' if name == 'shortcut' else name
        rows.append(_Row('weights', f'{scope}/{name}', f'{layer}_{ours}', shape))
        norm = {'conv1': 'bn2', 'conv2': 'bn3'}.get(name)
        rows.append(
            _Row('BatchNorm', f'{scope}/{name}/BatchNorm', f'{layer}_{norm}', shape[3:])
            if norm
            else _Row('biases', f'{scope}/{name}', None, shape[3:])
        )
    return rows


def _expected(net):
    """Return {name: shape} of all variables of the network."""
    expected = {}
    for row in _rows(net):
        for name in _BN if row.kind == 'BatchNorm' else (row.kind,):
            expected[f'{net.scope}{row.scope}/{name}'] = row.shape
    channels = net.filters * 2 ** (len(net.units) - 1) * _EXPANSION
    return expected | {
        f'{net.scope}logits/weights': (1, 1, channels, net.num_classes),
        f'{net.scope}logits/biases': (net.num_classes,),
    }


def _bn_entries(layer, scope, biases):
    sources = {name: (f'{scope}/{name}',) for name in _BN}
    sources['moving_mean'] += tuple(biases)
    return [Entry(f'{layer}/{name}', sources[name], _less if len(sources[name]) > 1 else identity) for name in _BN]


def _less(mean, *biases):
    """Return the moving mean of a BN whose input lacks these biases."""
    return (np.asarray(mean, 'float64') - np.sum(biases, axis=0, dtype='float64')).astype('float32')


def _squeeze(kernel):
    """Return a 1x1 convolution's kernel, [1, 1, in, out], as a dense layer's."""
    return kernel[0, 0]
