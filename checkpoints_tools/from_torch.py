"""PyTorch's residual networks with the names of torchvision, timm and akamaster (CIFAR).

    conv1.weight  bn1.{weight,bias,running_mean,running_var}  layer1.0.conv1.weight  layer1.0.bn1.*
    layer1.0.downsample.{0,1}.*  fc.{weight,bias}

akamaster (github.com/akamaster/pytorch_resnet_cifar10) has linear in place of fc. Its option A is x[:, :, ::2, ::2]
with zero channels on both sides, and its option B has shortcut.{0,1} in place of downsample.{0,1}. Kernels are
[out, in / groups, h, w], every bottleneck has its stride in the 3x3 (version 1.5), and padding is symmetric.
"""

import dataclasses
import functools
import operator
import os
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, torch_file
from checkpoints_tools.source import Input, Lazy, Listing, Shape, Shapes, Source, Variables, shape_of
from checkpoints_tools.torch_file import BN as _BN
from checkpoints_tools.torch_file import EPSILON
from checkpoints_tools.torch_file import VARIABLES as _VARIABLES
from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

CORE = ('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight')  # names that every network has
# Beside classifiers, what self-supervised training puts after the network: SwAV's prototypes, SimCLR's projector ...
HEADS = re.compile(r'(fc|linear|head|classifier|projection_head|projector|prototypes|predictor)\..*')
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in 0..1; akamaster also uses them for CIFAR-10
IMAGENET_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD)
CIFAR_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD, size=32, resize=None)
IMAGENET_NOTE = (
    'torchvision is BSD-3-Clause, timm Apache-2.0; both trained on ImageNet, for research only; '
    'arXiv:1512.03385, 1611.05431 (ResNeXt), 1605.07146 (wide)'
)
CIFAR_NOTE = 'akamaster/pytorch_resnet_cifar10, BSD-2-Clause; arXiv:1512.03385'
# torchvision's or timm's name -> ours
NAMES = {f'resnet{size}': f'resnet{size}_v1.5' for size in resnet_variants.IMAGENET_BLOCKS}
NAMES |= {name: name for name in resnet_variants.VARIANTS if name.startswith(('resnext50', 'resnext101', 'wide_'))}
_shape = operator.attrgetter('group_blocks', 'filters', 'stem', 'block', 'base_width', 'cardinality')
# What all families of PyTorch share.
list_files, ignored, write = torch_file.list_files, torch_file.ignored, torch_file.write


def recognises(shapes: Shapes) -> bool:
    """Return whether these variables have torchvision's or akamaster's names."""
    return shapes.keys() >= set(CORE)


def shapes(path: str | os.PathLike) -> Listing:
    """Return {name: (shape, dtype)} without wrappers and prefixes, and without reading the values."""
    return torch_file.shapes(path, CORE, HEADS)


def read(path: str | os.PathLike) -> Lazy:
    """Return {name: ndarray} without wrappers and prefixes; each array is read on access."""
    return torch_file.read(path, CORE, HEADS)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. Names and shapes tell the depth, the width and the cardinality.

    A variant is torchvision's name or one of ours. It can change only the version, because weights do not tell whether
    a bottleneck has its stride in the 3x3 ('resnet50', 'resnet50_v1.5') or in the first 1x1 ('resnet50_v1').
    """
    stem, num_classes = shape_of(shapes, 'conv1.weight', 4), shape_of(shapes, f'{_head(shapes)}.weight', 2)[0]
    group_blocks = our_net.named_blocks(shapes, r'layer(\d{1,4})\.(\d{1,6})\..*', (1, 0))
    is_bottleneck = 'layer1.0.conv3.weight' in shapes
    widths = _widths(stem[0], shape_of(shapes, 'layer1.0.conv2.weight', 4)) if is_bottleneck else {}
    if stem[2:] == (7, 7) and len(group_blocks) == 4:
        kind, version, shortcut, padding = 'imagenet', '1.5', 'B', 'end'
        labels, convention, note = {1000: 'imagenet1000'}, IMAGENET_INPUT, IMAGENET_NOTE
    elif stem[2:] == (3, 3) and len(group_blocks) == 3:
        projects = any(re.search(r'\.(downsample|shortcut)\.0\.weight$', name) for name in shapes)
        kind, version, shortcut, padding = 'cifar', '1.5' if is_bottleneck else '1', 'B' if projects else 'A', 'both'
        labels, convention, note = {10: 'cifar10'}, CIFAR_INPUT, CIFAR_NOTE
    else:
        raise UserError(
            f"conv1.weight of shape {stem} and {len(group_blocks)} layers are neither torchvision's (7x7, "
            "4 layers) nor akamaster's (3x3, 3 layers); convert another checkpoint"
        )
    block = 'bottleneck' if is_bottleneck else 'basic'
    spec = ResNetSpec(group_blocks, stem[0], kind, block, version, shortcut, padding, bn_momentum=0.9, **widths)
    spec = _with_version_of(spec, variant) if variant else spec
    name, label = variant or _name(spec), labels.get(num_classes, 'unknown')
    return Source('torch', name, spec, num_classes, convention, label, note)


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    head, projection = _head(shapes), 'shortcut' if any('.shortcut.' in name for name in shapes) else 'downsample'
    by_rank = {1: our_net.identity, 2: our_net.transposed, 4: our_net.from_oihw}
    return [
        our_net.Entry(target, (name,), by_rank[len(shape)])
        for target, shape in our_net.variables(source.spec, source.num_classes).items()
        if (name := foreign_name(target, head, projection))
    ]


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {f'{_head(shapes)}.weight': (features, features), f'{_head(shapes)}.bias': (features,)}


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] by PyTorch's definition and names.

    The source tells whether a bottleneck has its stride in the first 1x1.
    """

    def conv(x, name, stride) -> tf.Tensor:  # nn.Conv2d with padding (kernel - 1) // 2
        return operations.conv2d(x, variables[f'{name}.weight'].transpose(2, 3, 1, 0), stride)

    def norm(x, name) -> tf.Tensor:  # nn.BatchNorm2d in inference; bn1 follows conv1, downsample.1 follows downsample.0
        name = f'{name[:-1]}1' if name.endswith('.0') else name.replace('conv', 'bn')
        return operations.batch_norm(x, *(variables[f'{name}.{part}'] for part in _BN.values()), epsilon=EPSILON)

    def option_a(
        x, stride
    ) -> tf.Tensor:  # akamaster's F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))
        pads = [x.shape[-1] // 2 if stride > 1 else 0] * 2  # planes are twice as many as the channels of x
        return tf.pad(x[:, ::stride, ::stride], [[0, 0], [0, 0], [0, 0], pads])

    is_cifar, num_convs = source.spec.stem == 'cifar', 3 if 'layer1.0.conv3.weight' in variables else 2
    strided = 2 if num_convs == 3 and source.spec.version != '1' else 1
    x = tf.nn.relu(norm(conv(tf.constant(images), 'conv1', 1 if is_cifar else 2), 'conv1'))
    x = x if is_cifar else operations.max_pool(x, [(1, 1), (1, 1)])  # nn.MaxPool2d(3, 2, 1) pads with -infinity
    for layer, i, stride in operations.blocks(source.spec.group_blocks):
        name = f'layer{layer}.{i - 1}'
        projections = (f'{name}.downsample.0', f'{name}.shortcut.0')
        projection = next((p for p in projections if f'{p}.weight' in variables), None)
        names = [f'{name}.conv{i}' for i in range(1, num_convs + 1)]
        strides = [stride if i == strided else 1 for i in range(1, num_convs + 1)]
        x = operations.residual_block(x, projection, names, strides, conv, norm, identity=option_a)
    head = _head(variables)
    return operations.classify(x, variables[f'{head}.weight'].T, variables[f'{head}.bias'])


def foreign_name(target: str, head: str, projection: str) -> str | None:
    """Return PyTorch's name of one of our variables, or None: 'group1_block2_bn1/gamma' -> 'layer1.1.bn1.weight'.

    The head is 'fc' or 'linear', the projection 'downsample' or 'shortcut'.
    """
    layer, _, variable = target.rpartition('/')
    module = {'stem_conv': 'conv1', 'stem_bn': 'bn1', 'logits': head}.get(layer)
    block = re.fullmatch(r'group(\d+)_block(\d+)_(shortcut_)?(conv|bn)(\d*)', layer)
    if block and bool(block[3]) != bool(block[5]):
        inner = f'{projection}.{("conv", "bn").index(block[4])}' if block[3] else block[4] + block[5]
        module = f'layer{block[1]}.{int(block[2]) - 1}.{inner}'
    return f'{module}.{_VARIABLES[variable]}' if module and variable in _VARIABLES else None


def _head(names):
    return 'linear' if 'linear.weight' in names else 'fc'


_widths = functools.partial(our_net.bottleneck_widths, 'layer1.0.conv2.weight')


def _with_version_of(spec, variant):
    named = resnet_variants.VARIANTS.get(NAMES.get(variant, variant), spec if variant == _name(spec) else None)
    if named is None:
        raise UserError(
            f'--variant={variant} must be one of {", ".join(NAMES)}, or one of resnet_variants.VARIANTS; '
            f'leave it out for {_name(spec)}'
        )
    if named.version == '2' or _shape(named) != _shape(spec):
        raise UserError(f'--variant={variant} does not fit: the variables are those of {_name(spec)}; leave it out')
    return dataclasses.replace(spec, version=named.version)


def _name(spec):
    """Return the network's published name, or else a description."""
    for name, variant in NAMES.items():
        if _shape(resnet_variants.VARIANTS[variant]) == _shape(spec):
            return name
    if spec.stem == 'cifar' and spec.block == 'basic' and len(set(spec.group_blocks)) == 1 and spec.filters == 16:
        return f'resnet{6 * spec.group_blocks[0] + 2}'
    return f'resnet_{spec.block}_{"_".join(map(str, spec.group_blocks))}_filters{spec.filters}'
