"""He's ResNet-50, 101 and 152 for Caffe: the .caffemodel files of github.com/KaimingHe/deep-residual-networks.

They are read without Caffe, by protobuf's wire format and the field numbers of BVLC/caffe's caffe.proto. Variables are
blobs with names 'LAYER/i'. A convolution has its kernel in conv1/0 and a bias in conv1/1. A BatchNorm has sums of means
and variances in 0 and 1, and their divisor in 2. A Scale has gamma in 0 and beta in 1.
"""

import dataclasses
import math
import mmap
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net
from checkpoints_tools.source import Input, Lazy, Shape, Shapes, Source, Variables, check_variant, reading, shape_of
from official_resnet import bounds, files
from official_resnet.errors import UserError
from official_resnet.inputs import protobuf_wire as wire_format
from official_resnet.resnet_spec import ResNetSpec

KIND = 'a Caffe file'
EPSILON = 1e-5  # the default of Caffe's BatchNorm and of ResNetSpec
CHANNEL_MEANS = (103.0626, 115.9029, 123.1516)  # B, G, R: the means of the published ResNet_mean.binaryproto
NOTE = 'KaimingHe/deep-residual-networks, MIT license; arXiv:1512.03385'
MAX_SHAPE_BYTES = 320  # 32 numbers
# Field numbers: a NetParameter's layers -> the layer's name and blobs. Older files have V1LayerParameter.
_LAYERS = {100: (1, 7), 2: (4, 6)}
_DIMENSIONS = (1, 2, 3, 4)  # num, channels, height and width, which a BlobProto had before `shape`
_VALUES = {5: '<f4', 8: '<f8'}  # data and double_data
_SHAPE = 7


class _File:
    """A memory-mapped Caffe file, with the number of fields that may still be read."""

    def __init__(self, path):
        self.fields_left = bounds.limit('caffe_fields')
        with open(path, 'rb', opener=files.plain) as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def fields(self, message) -> Iterator[tuple]:
        """Yield (number, wire type, content) of a message."""
        for field in wire_format.fields(message):
            self.fields_left -= 1
            if self.fields_left < 0:
                raise ValueError(f'more than {bounds.limit("caffe_fields")} fields')
            yield field

    def blob(self, message, name) -> tuple:
        """Return a BlobProto's (shape, arrays of its values in order)."""
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
            while len(shape) > 1 and shape[0] == 1:  # vectors and matrices also had four dimensions
                shape = shape[1:]
        elif shape is None:
            shape = (count,)
        if math.prod(shape) != count:
            raise ValueError(f'blob {name!r} of shape {shape} has {count} values')
        return shape, pieces

    def dimensions(self, message) -> tuple[int, ...]:
        """Return the sizes in a BlobShape: field 1, packed or not."""
        sizes = []
        for number, wire, content in self.fields(message):
            if number == 1 and wire == wire_format.VARINT:
                sizes.append(content)
            elif number == 1 and wire == wire_format.BYTES and len(content) <= MAX_SHAPE_BYTES:
                sizes += wire_format.varints(content)
        if len(sizes) > 32:
            raise ValueError(f'a shape has {len(sizes)} numbers')
        return tuple(sizes)

    def blobs(self) -> dict:
        """Return {'LAYER/i': (shape, pieces)} of a NetParameter."""
        found = {}
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
            if blobs and f'{name}/0' in found:
                raise ValueError(f'two layers {name!r}')
            for i, blob in enumerate(blobs):
                found[f'{name}/{i}'] = self.blob(blob, f'{name}/{i}')
        if not found:
            raise ValueError('no layer has blobs')
        return found


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {'LAYER/i': (shape, dtype)} of a .caffemodel without reading the values."""
    with reading(path, KIND):
        return {
            name: (shape, 'float64' if any(piece.dtype == 'f8' for piece in pieces) else 'float32')
            for name, (shape, pieces) in _File(path).blobs().items()
        }


def read(path: str | os.PathLike) -> Lazy:
    """Return {'LAYER/i': float32 array} of a .caffemodel; each array is copied from the file on access."""
    with reading(path, KIND):
        file = _File(path)
        blobs = file.blobs()

    def value(name) -> np.ndarray:
        array = _array(*blobs[name])
        file.map.madvise(mmap.MADV_DONTNEED)  # else the file's pages would stay in memory beside the copy
        return array

    return Lazy(blobs, value)


def _array(shape, pieces):
    # Always copy, because the file may be deleted, and its values are not aligned.
    return np.concatenate([np.asarray(piece, 'float32') for piece in [*pieces, np.zeros(0, '<f4')]]).reshape(shape)


def read_mean(path: str | os.PathLike) -> np.ndarray:
    """Return the mean image of a .binaryproto: float32 [h, w, 3], BGR, 0..255."""
    with reading(path, KIND):
        file = _File(path)
        mean = _array(*file.blob(memoryview(file.map), 'mean'))
    if mean.ndim != 3 or mean.shape[0] != 3:
        raise UserError(f'{path} has the shape {mean.shape}, not (3 channels, height, width); get it again')
    return np.ascontiguousarray(mean.transpose(1, 2, 0))


def list_files(path: str | os.PathLike) -> list[str | os.PathLike]:
    """Return the .caffemodel and, if there is exactly one .binaryproto (a mean image) beside it, that one."""
    found = sorted(pathlib.Path(path).parent.glob('*.binaryproto'))
    return [path, *found] if len(found) == 1 else [path]


def with_mean(source: Source, path: str | os.PathLike) -> Source:
    """Return the Source with the means of the mean image beside a .caffemodel, if there is one."""
    for file in list_files(path)[1:]:
        means = tuple(float(value) for value in np.mean(read_mean(file), (0, 1), 'float64'))
        source = dataclasses.replace(source, input=dataclasses.replace(source.input, mean=means))
    return source


def recognises(shapes: Shapes) -> bool:
    """Return whether these are the blobs of He's networks."""
    return {'conv1/0', 'bn_conv1/0', 'scale_conv1/0', 'res2a_branch2a/0'} <= set(shapes)


def _blocks(names: Iterable[str]):
    """Return {(group, block): '2a', ...}. Short groups have blocks a, b, c and so on, long ones a, b1, b2 and so on."""
    found = {}
    for match in filter(None, map(re.compile(r'res([2-9])([a-z])(\d{0,3})_branch2a/0').fullmatch, names)):
        group, letter, digits = match.groups()
        found[int(group) - 1, int(digits) + 1 if digits else ord(letter) - ord('a') + 1] = ''.join(match.groups())
    return found


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source of these blobs. A variant, 'ResNet-50' or 'resnet50_v1', must name the network found."""
    blocks = our_net.count_blocks(_blocks(shapes))
    filters, num_classes = shape_of(shapes, 'conv1/0', 4)[0], shape_of(shapes, 'fc1000/0', 2)[0]
    spec = ResNetSpec(blocks, filters, 'imagenet', 'bottleneck', shortcut='B', stem_pool='ceil', bn_momentum=0.999)
    name = f'ResNet-{spec.resnet_size}'
    check_variant(variant, name, f'resnet{spec.resnet_size}_v1')
    labels = 'imagenet1000' if num_classes == 1000 else 'unknown'
    return Source('caffe', name, spec, num_classes, Input('BGR', mean=CHANNEL_MEANS), labels, NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'fc1000/0': (features, features), 'fc1000/1': (features,)}


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {}: each blob is part of the network."""
    return {}


def _divide(total, factor, bias=0.0):
    """Return a BatchNorm's sum divided by its factor, minus the bias that our convolutions lack."""
    factor = float(factor[0])
    return (np.asarray(total, 'float64') * (1 / factor if factor else 0.0) - bias).astype('float32')


_statistic = our_net.Layout(_divide, lambda shape: (shape, (1,), shape))


def _norm_names(conv):
    """Return the names of the BatchNorm and the Scale after a convolution."""
    return ('bn_conv1', 'scale_conv1') if conv == 'conv1' else (f'bn{conv[3:]}', f'scale{conv[3:]}')


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries. The divisor of the statistics, and a bias, are in several of them."""
    blocks, entry = _blocks(shapes), our_net.Entry
    entries = [entry('logits/kernel', ('fc1000/0',), our_net.transposed), entry('logits/bias', ('fc1000/1',))]
    for layer in our_net.layers(source.spec, source.num_classes):
        conv = 'conv1'
        if layer.group:
            conv = f'res{blocks[layer.group, layer.block]}_branch{("1", "2a", "2b", "2c")[layer.index]}'
        norm, scale = _norm_names(conv)
        if layer.kind == 'conv':
            entries.append(entry(f'{layer.name}/kernel', (f'{conv}/0',), our_net.from_oihw))
        elif layer.kind == 'bn':
            bias = [f'{conv}/1'] if f'{conv}/1' in shapes else []
            entries += [
                entry(f'{layer.name}/gamma', (f'{scale}/0',)),
                entry(f'{layer.name}/beta', (f'{scale}/1',)),
                entry(f'{layer.name}/moving_mean', (f'{norm}/0', f'{norm}/2', *bias), _statistic),
                entry(f'{layer.name}/moving_variance', (f'{norm}/1', f'{norm}/2'), _statistic),
            ]
    return entries


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits of images, [n, h, w, 3], BGR minus the mean, layer by layer as in the prototxts.

    A 7x7 convolution pads 3 and a 3x3 one 1 on all sides. pool1 covers its whole input, and its last window may be cut
    off (pooling_layer.cpp). In groups 3 to 5, both 1x1 convolutions that read the first block's input have stride 2.
    """

    def conv(x, name, stride) -> tf.Tensor:
        return operations.conv2d(x, variables[f'{name}/0'].transpose(2, 3, 1, 0), stride, variables.get(f'{name}/1'))

    def norm(x, name) -> tf.Tensor:
        norm, scale = _norm_names(name)
        factor = variables[f'{norm}/2'][0]
        factor = 0.0 if factor == 0 else 1 / factor
        mean, variance = (variables[f'{norm}/{i}'] * factor for i in (0, 1))
        return operations.batch_norm(
            x, variables[f'{scale}/0'], variables[f'{scale}/1'], mean, variance, epsilon=EPSILON
        )

    x = _ceil_pool(tf.nn.relu(norm(conv(tf.constant(images, tf.float32), 'conv1', 2), 'conv1')))
    for (group, block), name in sorted(_blocks(variables).items()):
        projection = f'res{name}_branch1' if block == 1 else None
        names = [f'res{name}_branch{branch}' for branch in ('2a', '2b', '2c')]
        x = operations.residual_block(x, projection, names, (2 if group > 1 and block == 1 else 1, 1, 1), conv, norm)
    return operations.classify(x, variables['fc1000/0'].T, variables['fc1000/1'])


def _ceil_pool(x):
    return operations.max_pool(x, [(0, 1 - length % 2) for length in x.shape[1:3]], x.dtype.min)
