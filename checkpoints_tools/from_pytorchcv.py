"""pytorchcv's residual networks: resnet, resnext, seresnet, seresnext, preresnet, sepreresnet, and those for CIFAR.

    features.init_block.conv.{conv,bn}.*    features.stage1.unit1.body.{conv1,conv2,conv3}.{conv,bn}.*    output.*
    features.stage1.unit1.identity_conv.{conv,bn}.*    features.stage1.unit1.se.{conv1,conv2}.*

The stems of CIFAR's networks and of those with pre-activation lack the first `.conv`, and of those with both, both;
pre-activation also drops the `.conv` of identity_conv, and adds features.post_activ.bn.*.
With pre-activation, a BN comes before the convolution beside it. Bottlenecks of the published ImageNet networks have
their stride in the first 1x1 (resnet50), or in the 3x3 (resnet50b), which the weights do not tell; those of the other
networks have it in the 3x3. Source: pytorchcv/models (resnet.py, preresnet.py, common/conv.py, common/att.py).
"""

import functools
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, torch_file
from checkpoints_tools.from_torch import IMAGENET_INPUT
from checkpoints_tools.source import Input, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet.errors import UserError
from official_resnet.resnet_spec import BOTTLENECK_EXPANSION, ResNetSpec

CORE = ('features.stage1.unit1.body.conv1.conv.weight',)
HEADS = re.compile(r'output\..*')
NOTE = 'osmr/pytorchcv, MIT; trained on ImageNet or CIFAR; arXiv:1512.03385, 1603.05027, 1611.05431, 1709.01507'
# osmr/imgclsmob, pytorch/datasets/cifar10_cls_dataset.py
CIFAR_INPUT = Input(scale=1 / 255, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), size=32, resize=None)
# The stem's convolution -> (side of the kernel, whether there is pre-activation): ImageNet's and CIFAR's of both.
_STEMS = {
    'features.init_block.conv.conv': {(7, False): 'imagenet'},
    'features.init_block.conv': {(7, True): 'imagenet', (3, False): 'cifar'},
    'features.init_block': {(3, True): 'cifar'},
}
_NUM_GROUPS = {'imagenet': 4, 'cifar': 3}
_PLACES = r'features\.stage(\d{1,4})\.unit(\d{1,6})\..*'
_PART = re.compile(
    r'features\.(init_block(\.conv|\.bn)?(\.conv|\.bn)?|post_activ\.bn|'
    r'stage\d+\.unit\d+\.(body\.conv[123]\.(conv|bn)|identity_conv(\.conv|\.bn)?|se\.conv[12]))\.\w+'
)
# Sizes of bottleneck networks of which pytorchcv has only the b -> what their names have before the size.
_ALWAYS_3X3 = {14: 'etbc', 26: 'etbc', 38: 'etbc', 269: 'et'}
_LIKE = 'pass one of resnet*, resnext*, seresnet*, seresnext*, preresnet*, sepreresnet* or wrn*_cifar*'
ignored, list_files = torch_file.ignored, torch_file.list_files
shapes, read = torch_file.readers(CORE, HEADS)


def recognises(shapes: Shapes) -> bool:
    """Return whether these variables have the names of a residual network of pytorchcv."""
    return shapes.keys() >= set(CORE)


def _is_preact(names):
    return 'features.post_activ.bn.weight' in names


def _num_convs(names):
    return 3 if 'features.stage1.unit1.body.conv3.conv.weight' in names else 2


def _stem(names):
    """Return the name of the stem's convolution."""
    for name in names:
        if name.startswith('features.') and not _PART.fullmatch(name):
            raise UserError(f'{name.rpartition(".")[0]} has no place in our networks; {_LIKE}')
    if not _is_preact(names) and any(name.endswith('.identity_conv.weight') for name in names):
        raise UserError(
            f'pre-activation without features.post_activ (sepreresnet*_cifar*) is not in our networks; {_LIKE}'
        )
    stem = next((stem for stem in _STEMS if f'{stem}.weight' in names), None)
    if stem is None:
        raise UserError(f'the checkpoint has no variable {"weight, ".join(_STEMS)}.weight; {_LIKE}')
    return stem


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant of pytorchcv, 'resnet50' or 'resnet50b', decides where a bottleneck has its stride.

    Raises:
        UserError: No network of ours computes the same, or the variables leave it open and no variant was passed.
    """
    stem, is_preact, is_bottleneck = _stem(shapes), _is_preact(shapes), _num_convs(shapes) == 3
    group_blocks, shape = our_net.named_blocks(shapes, _PLACES), shape_of(shapes, f'{stem}.weight', 4)
    kind = _STEMS[stem].get((shape[2], is_preact), '')
    if _NUM_GROUPS.get(kind) != len(group_blocks):
        raise UserError(f'{stem} of shape {shape} before {len(group_blocks)} stages; {_LIKE}')
    fields = our_net.filters_of(shape[0], _group_filters(shapes, group_blocks))
    if is_bottleneck:
        middle = 'features.stage1.unit1.body.conv2.conv.weight'
        widths = our_net.bottleneck_widths(middle, fields['filters'], shape_of(shapes, middle, 4))
        fields |= {'block': 'bottleneck', **widths}
    if 'features.stage1.unit1.se.conv1.weight' in shapes:
        reduced, outer = shape_of(shapes, 'features.stage1.unit1.se.conv1.weight', 4)[:2]
        fields['se_reduction'] = max(1, outer // reduced)
    num_classes = shape_of(shapes, 'output.weight', 2)[0]
    names = _variants(kind, is_preact, fields, group_blocks, num_classes)
    check_variant(variant, *names)
    name = variant or next(iter(names))
    if variant is None and names[name] == 'first':
        raise UserError(
            f'the variables are those of {name}, whose bottlenecks have their stride in the first 1x1, and of '
            f'{name}b, in the 3x3; pass --variant={name} or --variant={name}b'
        )
    if is_preact:
        fields |= {'version': '2', 'stride_conv': names[name], 'stem_bn': kind == 'imagenet'}
    else:
        fields['version'] = '1.5' if names[name] == '3x3' else '1'
    spec = ResNetSpec(group_blocks, stem=kind, shortcut='B', bn_momentum=0.9, **fields)
    labels = {'imagenet1000': 'imagenet1000', 'cifar10': 'cifar10'}.get(f'{kind}{num_classes}', 'unknown')
    labels = 'unknown' if name.endswith('svhn') else labels
    convention = IMAGENET_INPUT if kind == 'imagenet' else CIFAR_INPUT
    return Source('pytorchcv', name, spec, num_classes, convention, labels, NOTE)


def _group_filters(shapes, group_blocks):
    """Return the filters of each stage, before the expansion of a bottleneck."""
    num_convs, found = _num_convs(shapes), []
    for stage, num_blocks in enumerate(group_blocks, start=1):
        names = [f'features.stage{stage}.unit{i}.body.conv{num_convs}.conv.weight' for i in range(1, num_blocks + 1)]
        channels = [shape_of(shapes, name, 4)[0] for name in names]
        for name, number in zip(names, channels, strict=True):
            if number != channels[0] or num_convs == 3 and number % BOTTLENECK_EXPANSION:
                raise UserError(
                    f'{name} has {number} filters, and the first unit of its stage {channels[0]}: our groups have '
                    f'equal blocks, and bottlenecks {BOTTLENECK_EXPANSION} times as many filters outside as inside; '
                    f'{_LIKE} without _wd2, _w3d4 or _wd4'
                )
        found.append(channels[0] // (BOTTLENECK_EXPANSION if num_convs == 3 else 1))
    return found


def _variants(kind, is_preact, fields, group_blocks, num_classes):
    """Return {pytorchcv's name: stride_conv of its bottlenecks, None if it has no bottlenecks}, the likeliest first."""
    is_bottleneck, cardinality = 'block' in fields, fields.get('cardinality', 1)
    size = (3 if is_bottleneck else 2) * sum(group_blocks) + 2
    name = 'seresn' if 'se_reduction' in fields else 'resn'
    name = name.replace('resn', 'preresn') if is_preact else name
    is_grouped = is_bottleneck and (cardinality, fields['base_width']) != (1, 64)
    name += f'ext{size}_{cardinality}x{fields["base_width"]}d' if is_grouped else f'et{size}'
    stride_conv = '3x3' if is_bottleneck else None
    if kind == 'cifar':
        if is_preact and fields['stem_filters']:
            name = f'wrn{size + 2}_{fields["filters"] // fields["stem_filters"]}'
        name += 'bn' if is_bottleneck and not is_grouped and size < 1001 else ''
        return dict.fromkeys([f'{name}_cifar{num_classes}'] + [f'{name}_svhn'] * (num_classes == 10), stride_conv)
    if not is_bottleneck or is_grouped:
        return {name: stride_conv}
    if size in _ALWAYS_3X3:
        return {f'{name.replace("et", _ALWAYS_3X3[size])}b': stride_conv}
    return {name: 'first', f'{name}b': stride_conv}


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'output.weight': (features, features), 'output.bias': (features,)}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    return torch_file.entries(source, functools.partial(_their, _stem(shapes), _is_preact(shapes)))


def _their(stem, is_preact, layer):
    """Return pytorchcv's name of one of our layers."""
    if not layer.group:
        named = {'stem_conv': stem, 'stem_bn': f'{stem.rpartition(".")[0]}.bn', 'head_bn': 'features.post_activ.bn'}
        return named.get(layer.name, 'output')
    unit = f'features.stage{layer.group}.unit{layer.block}'
    if layer.kind == 'se_conv':
        return f'{unit}.se.conv{layer.index}'
    if is_preact and layer.kind == 'bn':  # of the convolution that comes after it
        return f'{unit}.body.conv{layer.index + 1}.bn'
    if not layer.index:
        return f'{unit}.identity_conv' if is_preact else f'{unit}.identity_conv.{layer.kind}'
    return f'{unit}.body.conv{layer.index}.{layer.kind}'


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits of images [n, h, w, 3] as pytorchcv computes them.

    The source tells whether a bottleneck has its stride in the first 1x1.
    """
    stem, is_preact, num_convs = _stem(variables), _is_preact(variables), _num_convs(variables)

    def conv(x, name, stride) -> tf.Tensor:
        name = f'{name}.conv.weight' if f'{name}.conv.weight' in variables else f'{name}.weight'
        return operations.conv2d(x, variables[name].transpose(2, 3, 1, 0), stride)

    def norm(x, name) -> tf.Tensor:
        if is_preact and '.body.' in name:  # a BN is named like the convolution after it
            name = f'{name[:-1]}{int(name[-1]) + 1}'
        parts = (variables[f'{name}.bn.{part}'] for part in torch_file.BN.values())
        return operations.batch_norm(x, *parts, epsilon=torch_file.EPSILON)

    def excited(name, x) -> tf.Tensor:
        if f'{name}.se.conv1.weight' not in variables:
            return x
        scale = tf.reduce_mean(x, (1, 2))
        for i, function in ((1, tf.nn.relu), (2, tf.sigmoid)):
            matrix = np.asarray(variables[f'{name}.se.conv{i}.weight'], 'float32')[:, :, 0, 0].T
            scale = function(scale @ matrix + np.asarray(variables[f'{name}.se.conv{i}.bias'], 'float32'))
        return x * scale[:, None, None]

    is_large, spec = variables[f'{stem}.weight'].shape[2] == 7, source.spec
    x = conv(tf.constant(images), stem, 2 if is_large else 1)
    if stem != 'features.init_block':
        x = tf.nn.relu(norm(x, stem.rpartition('.')[0]))
    x = operations.max_pool(x, [(1, 1), (1, 1)]) if is_large else x
    strided = 1 if num_convs == 3 and spec.version != '1' and spec.stride_conv != 'first' else 0
    for group, block, stride in operations.blocks(our_net.named_blocks(variables, _PLACES)):
        unit = f'features.stage{group}.unit{block}'
        names = [f'{unit}.body.conv{i + 1}' for i in range(num_convs)]
        strides = [stride if i == strided else 1 for i in range(num_convs)]
        has_projection = any(name.startswith(f'{unit}.identity_conv.') for name in variables)
        projection, preact = f'{unit}.identity_conv' if has_projection else None, f'{unit}.body.conv0'
        branch = functools.partial(excited, unit)
        x = operations.residual_block(
            x, projection, names, strides, conv, norm, preact if is_preact else None, branch=branch
        )
    x = tf.nn.relu(norm(x, 'features.post_activ')) if is_preact else x
    return operations.classify(x, variables['output.weight'].T, variables['output.bias'])
