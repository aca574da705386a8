"""Checkpoints of ry/tensorflow-resnet: ResNet-L50, L101 and L152, and the CIFAR networks of its train_cifar.py.

    scale1/{weights,gamma,beta,moving_mean,moving_variance}  scale2/block1/{a,b,c,shortcut}/*  fc/{weights,biases}

Basic blocks have A and B in place of a, b and c. CIFAR networks have their first group in scale1, too. The stride is in
the first 1x1, padding is SAME, and epsilon is 1e-3. The published files were made from He's Caffe files without the
bias of ResNet-50's conv1 and with other padding and epsilon, so they do not compute what He's networks do. They are
converted as their own program runs them; for He's function, convert the .caffemodel.

Source: resnet.py and convert.py at ccb9cc8.
"""

import re
from typing import Any

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, tf_checkpoint
from checkpoints_tools.source import Input, Shape, Shapes, Source, Variables, check_variant, shape_of
from official_resnet.resnet_spec import ResNetSpec

shapes, read, list_files = tf_checkpoint.shapes, tf_checkpoint.read, tf_checkpoint.list_files
ignored = tf_checkpoint.ignored

EPSILON = 1e-3
NOTE = 'ry/tensorflow-resnet, MIT license; its weights are those of KaimingHe/deep-residual-networks, MIT license'
INPUTS = {
    'imagenet': Input('BGR', mean=(103.0626, 115.9029, 123.1516)),
    'cifar': Input(size=32, resize=None, normalization='per_image_standardization'),
}
_LABELS = {('imagenet', 1000): 'imagenet1000', ('cifar', 10): 'cifar10'}
_FIRST = re.compile(r'scale([12])/block1/([aA])/weights')


def recognises(shapes: Shapes) -> bool:
    """Return whether these are variables of ry's networks."""
    return {'scale1/weights', 'scale1/gamma'} <= shapes.keys() and any(map(_FIRST.fullmatch, shapes))


def _places(names):
    """Return (number of the first scale with blocks, the names of a block's convolutions, blocks of each group)."""
    first = 1 if any(name.startswith('scale1/block') for name in names) else 2
    convs = 'abc' if any('/c/' in name for name in names) else 'AB'
    pattern = rf'scale(\d)/block([1-9]\d{{0,3}})/{convs[0]}/weights'
    return first, convs, our_net.named_blocks(names, pattern, (first, 1))


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. A variant, 'ResNet-L50' or 'resnet50_v1', must name the network found."""
    _, convs, group_blocks = _places(shapes)
    size, _, _, filters = shape_of(shapes, 'scale1/weights', 4)
    stem, block = ('imagenet' if size == 7 else 'cifar'), ('bottleneck' if convs == 'abc' else 'basic')
    axes: dict[str, Any] = {'stem_pool': 'same', 'padding': 'same', 'bn_epsilon': EPSILON, 'bn_momentum': 0.9997}
    spec = ResNetSpec(group_blocks, filters, stem, block, '1', 'B', **axes)
    name = f'ResNet-L{spec.resnet_size}'
    check_variant(variant, name, f'resnet{spec.resnet_size}_v1')
    num_classes = shape_of(shapes, 'fc/weights', 2)[1]
    return Source('ry', name, spec, num_classes, INPUTS[stem], _LABELS.get((stem, num_classes), 'unknown'), NOTE)


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {'fc/weights': (features, features), 'fc/biases': (features,)}


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return the Entries: a convolution and its BN share a scope."""
    first, convs, _ = _places(shapes)

    def their(layer) -> str:
        if not layer.group:
            return 'fc' if layer.kind == 'dense' else 'scale1'
        place = convs[layer.index - 1] if layer.index else 'shortcut'
        return f'scale{layer.group + first - 1}/block{layer.block}/{place}'

    return our_net.entries(source, their, {'kernel': 'weights', 'bias': 'biases'})


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] as resnet.py computes them; padding is SAME."""
    first, convs, group_blocks = _places(variables)

    def conv(x, name, stride) -> tf.Tensor:
        return operations.conv2d(x, variables[f'{name}/weights'], stride, padding='SAME')

    def norm(x, name) -> tf.Tensor:
        return operations.batch_norm(x, *(variables[f'{name}/{part}'] for part in our_net.BN_PARTS), epsilon=EPSILON)

    is_large = variables['scale1/weights'].shape[0] == 7
    x = tf.nn.relu(norm(conv(tf.constant(images, tf.float32), 'scale1', 2 if is_large else 1), 'scale1'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME') if is_large else x
    for group, block, stride in operations.blocks(group_blocks):
        name = f'scale{group + first - 1}/block{block}'
        projection = f'{name}/shortcut' if f'{name}/shortcut/weights' in variables else None
        strides = (stride, *(1 for _ in convs[1:]))
        x = operations.residual_block(x, projection, [f'{name}/{letter}' for letter in convs], strides, conv, norm)
    return operations.classify(x, variables['fc/weights'], variables['fc/biases'])
