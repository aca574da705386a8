"""tensorpack's ImageNet networks, .npz of models.tensorpack.com: ResNet 18 to 152, SE, ResNeXt 32x4d, pre-activation.

Arrays are read without pickle, after their headers have been compared with the file. Variables keep the names of the
file, conv0/W, group0/block0/conv1/bn/mean/EMA, linear/b, without the ':0' that older files append.
Source: tensorpack/examples/ResNet/resnet_model.py. Two other kinds of file have this suffix and are recognised by
their names: those that tensorpack.utils.loadcaffe makes from a .caffemodel, and load-resnet.py --convert from these.
"""

import functools
import math
import os
import re
import zipfile
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net
from checkpoints_tools.source import Input, Lazy, Shape, Shapes, Source, Variables, check_variant, reading, shape_of
from official_resnet import bounds, files
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

KIND = 'an .npz file of numbers'
EPSILON = 1e-5
NOTE = (
    'tensorpack/examples/ResNet, weights without a stated license; arXiv:1512.03385, 1709.01507 (SE), '
    '1611.05431 (ResNeXt)'
)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BN = dict(zip(our_net.BN_PARTS, ('bn/gamma', 'bn/beta', 'bn/mean/EMA', 'bn/variance/EMA'), strict=True))
_PLACES = r'group(\d)/block(\d{1,3})/conv1/W', (0, 0)
_IGNORED = r'global_step|learning_rate|beta[12]_power|EMA/.*|tower.*|.*/(Momentum|Adam(_1)?|AccumGrad)'


def _members(path) -> Iterator[tuple]:
    """Yield (name, name in the zip, shape, dtype) of each array in an .npz."""
    with reading(path, KIND), open(path, 'rb', opener=files.plain) as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        bounds.require('npz_members', len(infos), f"'{path}'", 'get it again')
        total = sum(info.file_size for info in infos)
        if total > (most := bounds.limit('npz_inflation') * os.path.getsize(path) + (1 << 20)):
            raise UserError(f"'{path}' declares {total} bytes, more than the {most} that are read; get it again")
        names = set()
        for info in infos:
            name = info.filename.removesuffix('.npy').removesuffix(':0')
            if name in names or name == info.filename:
                raise ValueError(f'{info.filename!r} is there twice, or is not an array')
            names.add(name)
            with archive.open(info) as member:
                yield name, info.filename, *_header(member, info)


def _header(file, info):
    """Return (shape, dtype) of an .npy; numpy reads the header as a literal, not as code."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f'{info.filename!r} has the .npy version {version}')
    shape, _, dtype = _HEADERS[version](file)
    if dtype.kind not in 'fiu' or dtype.hasobject:
        raise ValueError(f'{info.filename!r} has {dtype}, not numbers; pickled objects are not opened')
    size = info.file_size - file.tell()
    if min(shape, default=0) < 0 or dtype.itemsize * math.prod(shape) != size:
        raise ValueError(f'{info.filename!r} has the shape {shape}, but {size} bytes')
    return shape, dtype


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)} without reading the values."""
    return {name: (shape, dtype.name) for name, _, shape, dtype in _members(path)}


def read(path: str | os.PathLike) -> Lazy:
    """Return {name: float32 array} without those that `ignored` names; each array is read on access."""
    members = {name: member for name, member, *_ in _members(path) if not re.fullmatch(_IGNORED, name)}

    def value(name) -> np.ndarray:
        with reading(path, KIND), zipfile.ZipFile(path) as archive, archive.open(members[name]) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), 'float32', order='C')

    return Lazy(members, value)


def _is_caffe(names):
    return 'conv1/W' in names and 'bn_conv1/gamma' in names


def recognises(shapes: Shapes) -> bool:
    """Return whether these are variables of tensorpack's networks, or of Caffe's as loadcaffe writes them."""
    return {'conv0/W', 'group0/block0/conv1/W'} <= set(shapes) or _is_caffe(shapes)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, for example 'ImageNet-ResNet50-SE', must name the network found."""
    for is_caffe, maker in ((_is_caffe(shapes), 'tensorpack.utils.loadcaffe'), ('conv0/b' in shapes, 'load-resnet.py')):
        if is_caffe:
            raise UserError(f"{maker} wrote this from Caffe's variables; convert the .caffemodel, with --source=caffe")
    spec, family = _spec(shapes, our_net.named_blocks(shapes, *_PLACES))
    num_classes, size = shape_of(shapes, 'linear/b', 1)[0], spec.resnet_size
    name = f'ImageNet-{family.format(size)}'
    ours = f'{"se" if spec.se_reduction else ""}resnet{size}_v{spec.version}'
    ours = ours if spec.cardinality == 1 else f'resnext{size}_{spec.cardinality}x{spec.base_width}d'
    check_variant(variant, name, ours)
    convention = Input('BGR', 1 / 255, mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229), interpolation='bicubic')
    labels = 'imagenet1000' if num_classes == 1000 else 'unknown'
    return Source('tensorpack', name, spec, num_classes, convention, labels, NOTE)


def _spec(shapes, blocks):
    """Return the ResNetSpec, and tensorpack's name with '{}' for the size."""
    filters, first, family = shape_of(shapes, 'conv0/W', 4)[-1], 'group0/block0', 'ResNet{}'
    fields = {'version': '1.5', 'padding': 'same', 'stem_pool': 'same', 'bn_momentum': 0.9, 'bn_epsilon': EPSILON}
    if f'{first}/conv3/W' in shapes:
        fields['block'] = 'bottleneck'
        _, _, num_in, num_out = shape_of(shapes, f'{first}/conv2/W', 4)
        if num_in != num_out:
            fields |= {'cardinality': num_out // num_in, 'base_width': num_in * 64 // filters}
            family = f'ResNeXt{{}}-{num_out // num_in}x{num_in}d'
        if f'{first}/fc1/W' in shapes:
            outer, reduced = shape_of(shapes, f'{first}/fc1/W', 2)
            fields['se_reduction'] = max(1, outer // reduced)
            family += '-SE'
    if 'group0/bnlast/bn/gamma' in shapes:
        fields |= {'version': '2', 'stem_bn': True}
        family = 'PreAct' + family
    return ResNetSpec(blocks, filters, 'imagenet', shortcut='B', **fields), family


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'linear/W': (features, features), 'linear/b': (features,)}


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of the optimizer's slots, averages of losses and counters."""
    return dict.fromkeys(filter(re.compile(_IGNORED).fullmatch, shapes), 'state of the training')


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries.

    The first block of V2 begins without BN and ReLU. Ours begins with both: a BN that changes nothing, and a ReLU of
    values that are not negative.
    """
    words, kernels = {'kernel': 'W', 'bias': 'b', **_BN}, {'se_conv': our_net.as_1x1}
    entries = our_net.entries(source, lambda layer: _their(layer, source.spec), words, kernels)
    if source.spec.version == '2':
        statistics = ('conv0/bn/mean/EMA', 'conv0/bn/variance/EMA')
        entries += our_net.constant_bn('group1_block1_bn1', statistics, EPSILON)
    return entries


def _their(layer, spec):
    """Return tensorpack's name of one of our layers; None for the one BN of V2 that the file lacks."""
    group, block, index = layer.group - 1, layer.block - 1, layer.index
    if layer.name == 'head_bn':
        return f'group{len(spec.group_blocks) - 1}/bnlast'
    if not layer.group:
        return 'linear' if layer.kind == 'dense' else 'conv0'
    if spec.version == '2' and layer.kind == 'bn' and index == 0:  # that of a first block belongs to the group before
        return f'group{group}/block{block}/preact' if block else f'group{group - 1}/bnlast' if group else None
    kind = f'fc{index}' if layer.kind == 'se_conv' else f'conv{index or "shortcut"}'
    return f'group{group}/block{block}/{kind}'


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits of images [n, h, w, 3] as tensorpack's resnet_model.py computes them; padding is SAME."""
    is_preact = 'group0/bnlast/bn/gamma' in variables
    num_convs = 3 if 'group0/block0/conv3/W' in variables else 2

    def norm(x, name) -> tf.Tensor:
        if name.endswith('/block0/preact'):  # a group's first block has none: `bnlast` or the stem's BN comes before it
            return x
        return operations.batch_norm(x, *(variables[f'{name}/{part}'] for part in _BN.values()), epsilon=EPSILON)

    def conv(x, name, stride) -> tf.Tensor:
        return operations.conv2d(x, variables[f'{name}/W'], stride, padding='SAME')

    def excited(name, x) -> tf.Tensor:
        if f'{name}/fc1/W' not in variables:
            return x
        scale = tf.nn.relu(tf.reduce_mean(x, (1, 2)) @ variables[f'{name}/fc1/W'] + variables[f'{name}/fc1/b'])
        scale = tf.sigmoid(scale @ variables[f'{name}/fc2/W'] + variables[f'{name}/fc2/b'])
        return x * scale[:, None, None]

    x = tf.nn.relu(norm(conv(tf.constant(images, tf.float32), 'conv0', 2), 'conv0'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    group_blocks = our_net.named_blocks(variables, *_PLACES)
    for group, block, stride in operations.blocks(group_blocks):
        name = f'group{group - 1}/block{block - 1}'
        projection = f'{name}/convshortcut' if f'{name}/convshortcut/W' in variables else None
        names = [f'{name}/conv{i + 1}' for i in range(num_convs)]
        strides = (1, stride, 1)[3 - num_convs :]  # a bottleneck has its stride in the second convolution
        preact = f'{name}/preact' if is_preact else None
        branch = functools.partial(excited, name)
        x = operations.residual_block(x, projection, names, strides, conv, norm, preact, branch=branch)
        if is_preact and block == group_blocks[group - 1]:
            x = tf.nn.relu(norm(x, f'group{group - 1}/bnlast'))
    return operations.classify(x, variables['linear/W'], variables['linear/b'])
