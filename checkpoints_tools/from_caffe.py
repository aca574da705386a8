"""He's ResNet-50, 101 and 152 for Caffe: the .caffemodel of github.com/KaimingHe/deep-residual-networks.

Read without Caffe, from protobuf's wire format and the field numbers of BVLC/caffe's caffe.proto. Variables are blobs,
named 'LAYER/i': conv1/0 is the kernel, conv1/1 a bias; of BatchNorm 0 and 1 are sums of means and variances, and 2 is
what to divide them by; of Scale 0 is gamma and 1 beta.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import mmap
import pathlib
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import tf_checkpoint
from checkpoints_tools.source import Entry, Input, Lazy, Source, from_oihw, identity, transposed
from official_resnet import resnet_spec
from official_resnet.errors import UserError
from official_resnet.inputs import protobuf_wire as wire_format

EPSILON = 1e-5  # of Caffe's BatchNorm, where the prototxt says nothing else
CHANNEL_MEANS = (103.0626, 115.9029, 123.1516)  # B, G, R: of the published ResNet_mean.binaryproto
NOTE = 'KaimingHe/deep-residual-networks, MIT license; arXiv:1512.03385'
MAX_FIELDS = 100_000  # of one file; ResNet-152 has about 30,000
MAX_SHAPE_BYTES = 320  # of 32 numbers
# Field numbers: a NetParameter's layers -> the layer's name and blobs (V1LayerParameter in older files).
_LAYERS = {100: (1, 7), 2: (4, 6)}
_DIMENSIONS = (1, 2, 3, 4)  # of a BlobProto before it had a shape: num, channels, height, width
_VALUES = {5: '<f4', 8: '<f8'}  # data and double_data
_SHAPE = 7

_Conv = collections.namedtuple('_Conv', 'ours our_bn theirs shape')  # shape [out, in, h, w]


class _File:
    """A Caffe file in memory as far as it is looked at, and how many more fields may be read of it."""

    def __init__(self, path):
        self.path, self.fields_left = path, MAX_FIELDS
        with open(path, 'rb') as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def fields(self, message):
        """Yield (number, wire type, content) of a message."""
        for field in wire_format.fields(message):
            self.fields_left -= 1
            if self.fields_left < 0:
                raise ValueError(f'more than {MAX_FIELDS} fields')
            yield field

    def blob(self, message, name):
        """Return (shape, pieces of its values) of a BlobProto."""
        shape, legacy, pieces = None, {}, []
        for number, wire, content in self.fields(message):
            if number in _VALUES and wire != wire_format.VARINT:
                pieces.append(wire_format.numbers(wire, content, _VALUES[number]))
            elif number == _SHAPE and wire == wire_format.BYTES:
                shape = self.dimensions(content)
            elif number in _DIMENSIONS and wire == wire_format.VARINT:
                legacy[number] = content
        count = sum(len(piece) for piece in pieces)
        if shape is None and legacy:
            shape = tuple(legacy.get(number, 1) for number in _DIMENSIONS)
            while len(shape) > 1 and shape[0] == 1:  # vectors and matrices were four-dimensional, too
                shape = shape[1:]
        elif shape is None:
            shape = (count,)
        if math.prod(shape) != count:
            raise ValueError(f'blob {name!r} of shape {shape} has {count} values')
        return shape, pieces

    def dimensions(self, message):
        """Return the sizes in a BlobShape: field 1, packed or not."""
        sizes = []
        for number, wire, content in self.fields(message):
            if number == 1 and wire == wire_format.VARINT:
                sizes.append(content)
            elif number == 1 and wire == wire_format.BYTES and len(content) <= MAX_SHAPE_BYTES:
                sizes += wire_format.varints(content)
        if len(sizes) > 32:
            raise ValueError(f'a shape of {len(sizes)} numbers')
        return tuple(sizes)

    def blobs(self):
        """Return {'LAYER/i': (shape, pieces)} of a NetParameter."""
        found, layers = {}, set()
        for number, wire, layer in self.fields(memoryview(self.map)):
            if number not in _LAYERS or wire != wire_format.BYTES:
                continue
            name_number, blobs_number = _LAYERS[number]
            name, blobs = None, []
            for field, kind, content in self.fields(layer):
                if kind == wire_format.BYTES and field == name_number:
                    name = bytes(content[:200]).decode('utf-8', 'replace')
                elif kind == wire_format.BYTES and field == blobs_number:
                    blobs.append(content)
            if blobs and name in layers:
                raise ValueError(f'two layers {name!r}')
            layers |= {name} if blobs else set()
            for i, blob in enumerate(blobs):
                found[f'{name}/{i}'] = self.blob(blob, f'{name}/{i}')
        if not found:
            raise ValueError('no layer has blobs')
        return found


@contextlib.contextmanager
def _opened(path):
    """Yield the _File; whatever is wrong with it is a UserError."""
    try:
        yield _File(path)
    except OSError as error:
        raise UserError(f'{str(path)!r}: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'{str(path)!r} is no Caffe file, or a damaged one: {error}; get it again') from error


def shapes(path):
    """Return {'LAYER/i': (shape, dtype)} of a .caffemodel; the values stay on the disk."""
    with _opened(path) as file:
        return {
            name: (shape, 'float64' if any(piece.dtype == 'f8' for piece in pieces) else 'float32')
            for name, (shape, pieces) in file.blobs().items()
        }


def read(path):
    """Return {'LAYER/i': float32 array} of a .caffemodel, each copied out of the file when it is asked for."""
    with _opened(path) as file:
        blobs = file.blobs()

    def value(name):
        array = _array(*blobs[name])
        file.map.madvise(mmap.MADV_DONTNEED)  # or the file would count as memory beside its copy
        return array

    return Lazy(blobs, value)


def _array(shape, pieces):
    # A copy always: the file may go, and its values lie at any address.
    return np.concatenate([np.asarray(piece, 'float32') for piece in [*pieces, np.zeros(0, '<f4')]]).reshape(shape)


def read_mean(path):
    """Return the mean image of a .binaryproto, [h, w, 3] float32, BGR, 0..255."""
    with _opened(path) as file:
        mean = _array(*file.blob(memoryview(file.map), 'mean'))
    if mean.ndim != 3 or mean.shape[0] != 3:
        raise UserError(f'{str(path)!r} holds an array of shape {mean.shape}, not of 3 channels, height, width')
    return np.ascontiguousarray(mean.transpose(1, 2, 0))


def find_mean(path):
    """Return the only .binaryproto beside a .caffemodel, or None."""
    found = sorted(pathlib.Path(path).parent.glob('*.binaryproto'))
    return found[0] if len(found) == 1 else None


def with_mean(source, mean):
    """Return a Source whose input is less the channel means of a mean image, [h, w, 3]."""
    means = tuple(float(value) for value in np.mean(mean, (0, 1), 'float64'))
    return dataclasses.replace(source, input=dataclasses.replace(source.input, mean=means))


def recognises(shapes):
    """Return whether these are the blobs of He's nets."""
    return {'conv1/0', 'bn_conv1/0', 'scale_conv1/0', 'res2a_branch2a/0'} <= set(shapes)


def _groups(names):
    """Return [['2a', '2b', '2c'], ['3a', '3b1', ..], ..]: the blocks of each group, as in layers' names."""
    found = collections.defaultdict(dict)
    for name in names:
        match = re.fullmatch(r'res([2-9])([a-z])(\d{0,3})_branch2a/0', name)
        if match:  # a, b, c.. in short groups; a, b1, b2.. in long ones
            group, letter, digits = match.groups()
            place = int(digits) + 1 if digits else ord(letter) - ord('a') + 1
            found[int(group)][place] = f'{group}{letter}{digits}'
    groups = [[found[group][place] for place in sorted(found[group])] for group in sorted(found)]
    if (
        not groups
        or sorted(found) != list(range(2, 2 + len(groups)))
        or any(sorted(found[group]) != list(range(1, 1 + len(found[group]))) for group in found)
    ):
        raise UserError(f'no net of He: blocks {groups}, where 2a, 2b.. and so on are wanted')
    return groups


def _convs(groups, filters):
    """Yield _Conv for each convolution but the classifier."""
    yield _Conv('stem_conv', 'stem_bn', 'conv1', (filters, 3, 7, 7))
    in_filters = filters
    for group, blocks in enumerate(groups, start=1):
        inner = filters * 2 ** (group - 1)
        outer = inner * resnet_spec.BOTTLENECK_EXPANSION
        for block, theirs in enumerate(blocks, start=1):
            ours = f'group{group}_block{block}'
            if block == 1:
                yield _Conv(
                    f'{ours}_shortcut_conv', f'{ours}_shortcut_bn', f'res{theirs}_branch1', (outer, in_filters, 1, 1)
                )
            for i, shape in enumerate(((inner, in_filters, 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1)), start=1):
                yield _Conv(f'{ours}_conv{i}', f'{ours}_bn{i}', f'res{theirs}_branch2{"abc"[i - 1]}', shape)
            in_filters = outer


def _norm_names(conv):
    """Return the names of the BatchNorm and the Scale behind a convolution."""
    return ('bn_conv1', 'scale_conv1') if conv == 'conv1' else (f'bn{conv[3:]}', f'scale{conv[3:]}')


def _check(shapes, groups, filters, num_classes, variant):
    """Refuse a file without all of the net; what a net of its names would need is then no more than it holds."""
    expected = {
        'fc1000/0': (num_classes, filters * 2 ** (len(groups) - 1) * resnet_spec.BOTTLENECK_EXPANSION),
        'fc1000/1': (num_classes,),
    }
    for conv in _convs(groups, filters):
        norm, scale = _norm_names(conv.theirs)
        vector = conv.shape[:1]
        expected |= {
            f'{conv.theirs}/0': conv.shape,
            f'{norm}/0': vector,
            f'{norm}/1': vector,
            f'{norm}/2': (1,),
            f'{scale}/0': vector,
            f'{scale}/1': vector,
        }
        if f'{conv.theirs}/1' in shapes:
            expected[f'{conv.theirs}/1'] = vector
    tf_checkpoint.check(expected, shapes, variant)


def describe(shapes, variant=None):
    """Return the Source of these blobs; a variant, 'ResNet-50' or 'resnet50_v1', must be what they are."""
    groups = _groups(shapes)
    if 'fc1000/0' not in shapes or len(shapes.get('conv1/0', ((),))[0]) != 4:
        raise UserError('no net of He: layers conv1 and fc1000 are wanted')
    filters, num_classes = shapes['conv1/0'][0][0], shapes['fc1000/0'][0][0]
    size = 2 + 3 * sum(map(len, groups))
    name = f'ResNet-{size}'
    _check(shapes, groups, filters, num_classes, name)
    if variant not in (None, name, f'resnet{size}_v1'):
        raise UserError(f'variant={variant!r}: the blobs are of {name}')
    spec = resnet_spec.ResNetSpec(
        tuple(map(len, groups)),
        filters,
        stem='imagenet',
        block='bottleneck',
        version='1',
        shortcut='B',
        stem_pool='ceil',
        bn_momentum=0.999,
        bn_epsilon=EPSILON,
    )
    return Source(
        'caffe',
        name,
        spec,
        num_classes,
        Input('BGR', mean=CHANNEL_MEANS),
        'imagenet1000' if num_classes == 1000 else 'unknown',
        NOTE,
    )


def ignored(shapes):
    """Return {}: each blob is part of the network."""
    return {}


def _statistic(total, factor, bias=0.0):
    """Return what BatchNorm stores as a sum, less the convolution's bias, which our convolutions lack."""
    factor = float(factor[0])
    return (np.asarray(total, 'float64') * (1 / factor if factor else 0.0) - bias).astype('float32')


def name_map(source, shapes):
    """Return the Entries; the statistics' divisors and the biases are in more than one."""
    entries = []
    for conv in _convs(_groups(shapes), source.spec.filters):
        norm, scale = _norm_names(conv.theirs)
        biases = [f'{conv.theirs}/1'] if f'{conv.theirs}/1' in shapes else []
        entries += [
            Entry(f'{conv.ours}/kernel', (f'{conv.theirs}/0',), from_oihw),
            Entry(f'{conv.our_bn}/gamma', (f'{scale}/0',), identity),
            Entry(f'{conv.our_bn}/beta', (f'{scale}/1',), identity),
            Entry(f'{conv.our_bn}/moving_mean', (f'{norm}/0', f'{norm}/2', *biases), _statistic),
            Entry(f'{conv.our_bn}/moving_variance', (f'{norm}/1', f'{norm}/2'), _statistic),
        ]
    return entries + [Entry('logits/kernel', ('fc1000/0',), transposed), Entry('logits/bias', ('fc1000/1',), identity)]


def run(variables, images, source):
    """Return the logits of [n, h, w, 3] images, BGR less the mean, layer by layer as the prototxts have them.

    Convolutions pad 3 of 7x7 and 1 of 3x3 on all sides; pool1 covers its input, the last window cut off
    (pooling_layer.cpp); the first block of groups 3 to 5 has its stride in both 1x1s.
    """
    layer = functools.partial(_conv_norm, variables)
    x = tf.nn.relu(layer(tf.constant(images, tf.float32), 'conv1', 2))
    x = _ceil_pool(x)
    for group, blocks in enumerate(_groups(variables), start=2):
        for name in blocks:
            stride = 2 if group > 2 and name.endswith('a') else 1
            shortcut = layer(x, f'res{name}_branch1', stride) if name.endswith('a') else x
            y = tf.nn.relu(layer(x, f'res{name}_branch2a', stride))
            y = tf.nn.relu(layer(y, f'res{name}_branch2b', 1))
            x = tf.nn.relu(shortcut + layer(y, f'res{name}_branch2c', 1))
    x = tf.reduce_mean(x, (1, 2))
    return (tf.matmul(x, variables['fc1000/0'], transpose_b=True) + variables['fc1000/1']).numpy()


def _conv_norm(variables, x, name, stride):
    kernel = variables[f'{name}/0'].transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
    pad = (len(kernel) - 1) // 2
    x = tf.nn.conv2d(tf.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), kernel, stride, 'VALID')
    if f'{name}/1' in variables:
        x += variables[f'{name}/1']
    norm, scale = _norm_names(name)
    factor = variables[f'{norm}/2'][0]
    factor = 0.0 if factor == 0 else 1 / factor
    x = (x - variables[f'{norm}/0'] * factor) / tf.sqrt(variables[f'{norm}/1'] * factor + EPSILON)
    return x * variables[f'{scale}/0'] + variables[f'{scale}/1']


def _ceil_pool(x, size=3, stride=2):
    pads = []
    for length in x.shape[1:3]:
        windows = -((size - length) // stride) + 1  # rounded up
        pads.append((0, max(0, (windows - 1) * stride + size - length)))
    x = tf.pad(x, ((0, 0), *pads, (0, 0)), constant_values=x.dtype.min)
    return tf.nn.max_pool2d(x, size, stride, 'VALID')
