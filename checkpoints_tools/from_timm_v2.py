"""timm's pre-activation networks with batch norm (timm/models/resnetv2.py), in .pth and .safetensors.

    stem.conv.weight, or stem.{conv1,norm1,conv2,norm2,conv3}.*  stages.0.blocks.0.{norm1,conv1,norm2,...}.*
    stages.0.blocks.0.downsample.conv.weight  norm.*  head.fc.{weight,bias}, a 1x1 convolution

Kernels, padding and files are as in from_torch. Names do not tell whether an average pool takes the stride of
projections; in timm, the networks with a deep or tiered stem have it, and the others do not.
"""

import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import from_torch, operations, our_net, torch_config, torch_file
from checkpoints_tools.from_torch import HEADS
from checkpoints_tools.source import Input, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

CORE = ('stages.0.blocks.0.norm1.weight', 'stages.0.blocks.0.conv1.weight')  # names that every network has
NAMES = {name: name for name in resnet_variants.TIMM_NAMES if name.startswith('resnetv2')}
INPUT = Input(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic')  # Inception's
NOTE = 'timm, Apache-2.0, trained on ImageNet, for research only; arXiv:1603.05027'
_STEM = {'stem_conv1': 'conv1', 'stem_bn1': 'norm1', 'stem_conv2': 'conv2', 'stem_bn2': 'norm2'}
# [out, in, 1, 1] -> [in, out]
_as_dense = our_net.Layout(lambda kernel: kernel[:, :, 0, 0].T, lambda shape: [(*shape[::-1], 1, 1)])
# What all families of PyTorch share.
list_files, ignored = torch_config.list_files, torch_file.ignored
shapes, read = torch_file.readers(CORE, HEADS, config=torch_config.of_timm)
_NORMS = {
    'stages.0.blocks.0.norm1.v': 'EvoNorm (resnetv2_50d_evos)',
    'stages.0.blocks.0.norm1.tau': 'filter response normalisation (resnetv2_50d_frn)',
}


def recognises(shapes: Shapes) -> bool:
    """Return whether these variables have the names of timm's pre-activation networks."""
    return shapes.keys() >= set(CORE)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, for example 'resnetv2_50', must name the network found."""
    if not any(name.endswith('.running_mean') for name in shapes):
        groups = 'group normalisation with or without weight standardisation (resnetv2_50x1_bit, resnetv2_50d_gn)'
        thing = next((thing for name, thing in _NORMS.items() if name in shapes), groups)
        raise UserError(f'the network has {thing} in place of batch norm, which none here has; convert another')
    first, is_deep = 'stages.0.blocks.0', 'stem.conv1.weight' in shapes
    is_bottleneck = f'{first}.conv3.weight' in shapes
    filters = shape_of(shapes, f'{first}.conv{3 if is_bottleneck else 2}.weight', 4)[0] // (4 if is_bottleneck else 1)
    stem = shape_of(shapes, 'stem.conv3.weight' if is_deep else 'stem.conv.weight', 4)[0]
    kind = 'imagenet'
    if is_deep:
        kind = from_torch.stem_kind(stem, *(shape_of(shapes, f'stem.conv{i}.weight', 4)[0] for i in (1, 2)))
    spec = ResNetSpec(
        our_net.named_blocks(shapes, r'stages\.(\d{1,4})\.blocks\.(\d{1,6})\..*', (0, 0)),
        filters,
        kind,
        'bottleneck' if is_bottleneck else 'basic',
        version='2',
        shortcut='B',
        stem_filters=None if stem == filters else stem,
        projection_pool=is_deep,
        stem_pool='torch',
        bn_momentum=0.9,
    )
    name, head = from_torch.published_name(spec, NAMES), shape_of(shapes, 'head.fc.weight', 4)
    check_variant(variant, name)
    convention = torch_config.timm_input(getattr(shapes, 'config', {}), head, INPUT)
    return Source('timm_v2', name, spec, head[0], convention, 'imagenet1000' if head[0] == 1000 else 'unknown', NOTE)


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    entries = []
    for target, shape in our_net.variables(source.spec, source.num_classes).items():
        layer, _, variable = target.rpartition('/')
        layout = _as_dense if layer == 'logits' and len(shape) == 2 else from_torch.BY_RANK[len(shape)]
        entries.append(our_net.Entry(target, (f'{_module(layer, shapes)}.{torch_file.VARIABLES[variable]}',), layout))
    return entries


def _module(layer, shapes):
    """Return timm's name of one of our layers: 'group1_block1_bn2' -> 'stages.0.blocks.0.norm2'."""
    if block := re.fullmatch(r'group(\d+)_block(\d+)_(\w+)', layer):
        inner = block[3].replace('shortcut_', 'downsample.').replace('bn', 'norm')
        return f'stages.{int(block[1]) - 1}.blocks.{int(block[2]) - 1}.{inner}'
    last = 'conv3' if 'stem.conv1.weight' in shapes else 'conv'
    return {'logits': 'head.fc', 'head_bn': 'norm'}.get(layer) or f'stem.{_STEM.get(layer, last)}'


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'head.fc.weight': (features, features, 1, 1), 'head.fc.bias': (features,)}


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] as timm's ResNetV2 computes them."""
    is_deep = 'stem.conv1.weight' in variables

    def conv(x, name, stride) -> tf.Tensor:
        if is_deep and stride > 1 and name.endswith('downsample.conv'):  # DownsampleAvg
            x, stride = operations.mean_pool(x), 1
        return operations.conv2d(x, variables[f'{name}.weight'].transpose(2, 3, 1, 0), stride)

    def norm(x, name) -> tf.Tensor:  # norm2 follows conv1
        place, _, number = name.rpartition('conv')
        name = f'{place}norm{int(number) + 1}' if place else name
        parts = (variables[f'{name}.{torch_file.VARIABLES[part]}'] for part in our_net.BN_PARTS)
        return operations.batch_norm(x, *parts, epsilon=torch_file.EPSILON)

    x = tf.constant(images)
    if is_deep:
        x = tf.nn.relu(norm(conv(x, 'stem.conv1', 2), 'stem.norm1'))
        x = tf.nn.relu(norm(conv(x, 'stem.conv2', 1), 'stem.norm2'))
    x = conv(x, 'stem.conv3', 1) if is_deep else conv(x, 'stem.conv', 2)
    x = operations.max_pool(x, [(1, 1), (1, 1)])
    num_convs = 3 if 'stages.0.blocks.0.conv3.weight' in variables else 2
    for group, block, stride in operations.blocks(source.spec.group_blocks):
        name = f'stages.{group - 1}.blocks.{block - 1}'
        projection = f'{name}.downsample.conv' if f'{name}.downsample.conv.weight' in variables else None
        names = [f'{name}.conv{i}' for i in range(1, num_convs + 1)]
        strides = (1, stride, 1)[3 - num_convs :]  # a bottleneck has its stride in the second convolution
        x = operations.residual_block(x, projection, names, strides, conv, norm, f'{name}.norm1')
    x = tf.nn.relu(norm(x, 'norm'))
    return operations.classify(x, variables['head.fc.weight'][:, :, 0, 0].T, variables['head.fc.bias'])
