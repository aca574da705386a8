"""Checkpoints of wenxinxu/resnet-in-tensorflow: CIFAR networks of 6n+2 layers with pre-activation, and no statistics.

    conv0/{conv,gamma,beta}  conv1_0/conv1_in_block/{conv,gamma,beta}  conv1_0/conv2_in_block/*  ...
    fc/{gamma,beta,fc_weights,fc_bias}

Where the resolution halves, the shortcut is a 2x2 average of the block's input with zero channels on both sides. The
first block begins with its convolution. Padding is SAME, and epsilon is 1e-3.

The program normalises by the batch, in evaluation, too, so its checkpoints have no moving statistics: `estimate` makes
them from training images. Source: resnet.py, cifar10_train.py and cifar10_input.py at 8ba8d89.
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, tf_checkpoint
from checkpoints_tools.source import Input, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.resnet_spec import ResNetSpec

shapes, read, list_files = tf_checkpoint.shapes, tf_checkpoint.read, tf_checkpoint.list_files
ignored = tf_checkpoint.ignored

EPSILON = 1e-3
NOTE = 'wenxinxu/resnet-in-tensorflow, MIT license; arXiv:1603.05027'
NUM_IMAGES, BATCH = 2_000, 125  # training images for the statistics; the batch is that of the program's evaluation
_DATASETS = {10: 'cifar10', 100: 'cifar100'}
_PLACES = r'conv([1-9])_(\d{1,3})/conv1_in_block/conv', (1, 0)
_FIRST = 'conv1_0/conv1_in_block'


def recognises(shapes: Shapes) -> bool:
    """Return whether these are variables of wenxinxu's networks."""
    return {'conv0/conv', 'conv0/gamma', f'{_FIRST}/conv'} <= shapes.keys()


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, 'model_110' or 'resnet110_v2', must name the network found."""
    group_blocks, filters = our_net.named_blocks(shapes, *_PLACES), shape_of(shapes, 'conv0/conv', 4)[3]
    axes: dict[str, Any] = {'shortcut_padding': 'both', 'identity_pool': 'average', 'stem_bn': True, 'padding': 'same'}
    spec = ResNetSpec(group_blocks, filters, version='2', shortcut='A', bn_epsilon=EPSILON, **axes)
    name = f'model_{spec.resnet_size}'
    check_variant(variant, name, f'resnet{spec.resnet_size}_v2')
    num_classes = shape_of(shapes, 'fc/fc_weights', 2)[1]
    convention = Input(size=32, resize=None, normalization='per_image_standardization')
    labels = 'cifar10' if num_classes == 10 else 'unknown'
    return Source('wenxinxu', name, spec, num_classes, convention, labels, NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'fc/fc_weights': (features, features), 'fc/fc_bias': (features,)}


def unstored(shapes: Shapes) -> dict[str, Shape]:
    """Return {name: shape} of the moving statistics that a checkpoint lacks, one of each kind for each gamma."""
    gammas = {name.removesuffix('gamma'): tuple(shapes[name][0]) for name in shapes if name.endswith('/gamma')}
    wanted = {f'{scope}{part}': shape for scope, shape in gammas.items() for part in our_net.BN_PARTS[2:]}
    return {name: shape for name, shape in wanted.items() if name not in shapes}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries. The first block begins without BN and ReLU; ours has a BN there that changes nothing."""

    def their(layer) -> str | None:
        if not layer.group:
            return {'head_bn': 'fc', 'logits': None}.get(layer.name, 'conv0')
        if layer.kind == 'bn' and (layer.group, layer.block, layer.index) == (1, 1, 0):
            return None
        return f'conv{layer.group}_{layer.block - 1}/conv{layer.index + (layer.kind == "bn")}_in_block'

    parts = {'kernel': 'fc/fc_weights', 'bias': 'fc/fc_bias'}
    head = [our_net.Entry(f'logits/{ours}', (theirs,)) for ours, theirs in parts.items()]
    statistics = ('conv0/moving_mean', 'conv0/moving_variance')
    constant = our_net.constant_bn('group1_block1_bn1', statistics, EPSILON)
    return [*our_net.entries(source, their, {'kernel': 'conv'}), *constant, *head]


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3], normalised by the moving statistics."""

    def norm(x, scope) -> tf.Tensor:
        return operations.batch_norm(x, *(variables[f'{scope}/{part}'] for part in our_net.BN_PARTS), epsilon=EPSILON)

    return _logits(variables, images, source, norm)


def estimate(variables: Variables, source: Source, data_dir: str | os.PathLike) -> tuple[Variables, str]:
    """Return {name: array} of the statistics, and in words what they were estimated from.

    As in training and in the program's own evaluation, each batch is normalised by itself. The statistics are those of
    all batches together, layer by layer.

    Raises:
        UserError: There is no CIFAR-10 in data_dir, or the network has another number of classes.
    """
    if source.num_classes not in _DATASETS:
        raise UserError(f'a network of {source.num_classes} classes has no training images; pass one of 10 or 100')
    dataset = _DATASETS[source.num_classes]
    split = datasets.open_split(dataset, 'train', data_dir=data_dir).with_normalization(source.input.name)
    sums: dict[str, list[np.ndarray]] = {}  # scope -> sums of [x] and [x^2] over images

    def norm(x, scope) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        sums.setdefault(scope, []).append(len(x) * np.stack([mean, variance + mean**2]).astype('float64'))
        return operations.batch_norm(
            x, variables[f'{scope}/gamma'], variables[f'{scope}/beta'], mean, variance, epsilon=EPSILON
        )

    count = 0
    for images, _ in split.evaluation_batches(BATCH).take(NUM_IMAGES // BATCH):
        _logits(variables, images, source, norm)
        count += len(images)
    found: dict[str, np.ndarray] = {}
    for scope, parts in sums.items():
        mean, square = np.sum(parts, 0) / count
        found |= {f'{scope}/moving_mean': mean, f'{scope}/moving_variance': np.maximum(square - mean**2, 0)}
    arrays = {name: value.astype('float32') for name, value in found.items()}
    return arrays, f'statistics of batch norms estimated from {count:,} training images of {dataset}'


def _logits(variables, images, source, norm):
    """Return the logits by the program's definition; norm(x, scope) normalises."""

    def conv(x, name, stride) -> tf.Tensor:
        return operations.conv2d(x, variables[f'{name}/conv'], stride, padding='SAME')

    def norm_at(x, name) -> tf.Tensor:
        """Normalise at the start of a block or, by the name of its first convolution, before the second."""
        block, _, place = name.partition('/')
        if place == 'start':
            return x if f'{block}/conv1_in_block' == _FIRST else norm(x, f'{block}/conv1_in_block')
        return norm(x, f'{block}/conv2_in_block')

    def identity(x, stride) -> tf.Tensor:
        if stride == 1:
            return x
        side = [x.shape[-1] // 2] * 2
        return tf.pad(tf.nn.avg_pool2d(x, 2, 2, 'VALID'), [[0, 0], [0, 0], [0, 0], side])

    x = tf.nn.relu(norm(conv(tf.constant(images, tf.float32), 'conv0', 1), 'conv0'))
    for group, block, stride in operations.blocks(source.spec.group_blocks):
        name = f'conv{group}_{block - 1}'
        names = [f'{name}/conv{i}_in_block' for i in (1, 2)]
        x = operations.residual_block(x, None, names, (stride, 1), conv, norm_at, f'{name}/start', identity)
    return operations.classify(tf.nn.relu(norm(x, 'fc')), variables['fc/fc_weights'], variables['fc/fc_bias'])
