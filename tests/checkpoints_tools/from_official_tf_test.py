"""official/resnet's checkpoints, written in graph mode as it did: recognised, mapped one to one, computed alike."""

import collections
import contextlib

import numpy as np
import pytest
import tensorflow as tf
from fixtures import tf_checkpoint_writer as writer
from fixtures.conversion import assert_equal, fitted, our_model

from checkpoints_tools import from_official_tf
from official_resnet import resnet_variants
from official_resnet.errors import UserError

# stem kernel, block is a bottleneck, blocks of each group, version, scope
NETS = {
    'cifar v1': (3, False, (2, 2, 2), 1, 'resnet_model'),
    'cifar v2': (3, False, (2, 2, 2), 2, 'resnet_model'),
    'cifar v1, before April 2018': (3, False, (1, 1, 1), 1, ''),
    'imagenet basic v1': (7, False, (2, 2, 2, 2), 1, 'resnet_model'),
    'imagenet basic v2': (7, False, (1, 2, 1, 1), 2, 'resnet_model'),
    'imagenet bottleneck v1': (7, True, (3, 4, 6, 3), 1, 'resnet_model'),
    'imagenet bottleneck v2': (7, True, (1, 2, 1, 1), 2, 'resnet_model'),
    'imagenet bottleneck v2, before April 2018': (7, True, (1, 1, 1, 1), 2, ''),
}
CLASSES = 11


class OfficialNet:
    """The network in the graph mode of TF1, layers named as tf.layers counts them."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)
        self.made = collections.Counter()

    def variable(self, layer, name, shape, trainable=True):
        value = writer.random_value(name, shape, self.random)
        return tf.compat.v1.get_variable(f'{layer}/{name}', initializer=tf.constant(value), trainable=trainable)

    def layer(self, kind):
        number = self.made[kind]
        self.made[kind] += 1
        return f'{kind}_{number}' if number else kind

    def conv(self, x, filters, kernel, stride):
        padding = 'SAME'
        if stride > 1:
            total = kernel - 1
            pads = [total // 2, total - total // 2]
            x, padding = tf.pad(x, [[0, 0], pads, pads, [0, 0]]), 'VALID'
        weights = self.variable(self.layer('conv2d'), 'kernel', (kernel, kernel, x.shape[3], filters))
        return tf.nn.conv2d(x, weights, stride, padding)

    def bn(self, x):
        layer, size = self.layer('batch_normalization'), (x.shape[3],)
        gamma, beta = (self.variable(layer, name, size) for name in ('gamma', 'beta'))
        mean, variance = (self.variable(layer, name, size, False) for name in ('moving_mean', 'moving_variance'))
        return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, 1e-5, is_training=False)[0]

    def block(self, x, filters, stride, projects, version, is_bottleneck):
        out = filters * 4 if is_bottleneck else filters
        shapes = (
            [(filters, 1, 1), (filters, 3, stride), (out, 1, 1)]
            if is_bottleneck
            else [(filters, 3, stride), (filters, 3, 1)]
        )
        shortcut = x
        if version == 2:
            x = tf.nn.relu(self.bn(x))
        if projects:
            shortcut = self.conv(x, out, 1, stride)
            shortcut = self.bn(shortcut) if version == 1 else shortcut
        for i, shape in enumerate(shapes):
            if version == 2 and i:
                x = tf.nn.relu(self.bn(x))
            x = self.conv(x, *shape)
            if version == 1:
                x = self.bn(x)
                x = tf.nn.relu(x) if i < len(shapes) - 1 else x
        return tf.nn.relu(x + shortcut) if version == 1 else x + shortcut

    def logits(self, x, kernel, is_bottleneck, group_blocks, version, filters=4):
        x = self.conv(x, filters, kernel, 2 if kernel == 7 else 1)
        x = tf.nn.relu(self.bn(x)) if version == 1 else x
        x = tf.nn.max_pool2d(x, 3, 2, 'SAME') if kernel == 7 else x
        for group, num_blocks in enumerate(group_blocks):
            for block in range(num_blocks):
                x = self.block(
                    x, filters * 2**group, 2 if group and not block else 1, not block, version, is_bottleneck
                )
        x = tf.nn.relu(self.bn(x)) if version == 2 else x
        x = tf.reduce_mean(x, [1, 2])
        kernel = self.variable('dense', 'kernel', (x.shape[1], CLASSES))
        return x @ kernel + self.variable('dense', 'bias', (CLASSES,))


def save(path, name, images):
    """Write the checkpoint of a net of NETS before its first step, Momentum slots and all; return its logits."""
    *net, scope = NETS[name]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        step = tf.compat.v1.train.create_global_step()
        with tf.compat.v1.variable_scope(scope) if scope else contextlib.nullcontext():
            logits = OfficialNet().logits(tf.constant(images), *net)
        tf.compat.v1.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_sum(logits), step)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(path), write_meta_graph=False)
        return session.run(logits)


@pytest.mark.parametrize('name', NETS)
def test_our_net_computes_what_the_graph_does(tmp_path, name):
    kernel, is_bottleneck, group_blocks, version, _ = NETS[name]
    sizes = (64, 75) if kernel == 7 else (32, 27)
    pictures = [np.random.default_rng(size).normal(size=(2, size, size, 3)).astype('float32') for size in sizes]
    expected = save(tmp_path / 'model.ckpt-0', name, pictures[0])
    shapes = from_official_tf.shapes(tmp_path)
    assert from_official_tf.recognises(shapes)
    variables = from_official_tf.read(tmp_path)
    ignored = from_official_tf.ignored(shapes)
    assert 'global_step' in ignored and sum(name.endswith('/Momentum') for name in ignored) == len(ignored) - 1
    model, source = our_model(from_official_tf, variables, shapes)
    assert source.spec.group_blocks == group_blocks and source.spec.shortcut == 'group'
    assert source.spec.block == ('bottleneck' if is_bottleneck else 'basic')
    used = [name for entry in from_official_tf.name_map(source, shapes) for name in entry.sources]
    assert sorted([*used, *ignored]) == sorted(shapes) and len(used) == len(model.variables)
    assert_equal(model(pictures[0]).numpy(), expected)
    for images in pictures:
        assert_equal(model(images).numpy(), from_official_tf.run(variables, images, source))


def official_shapes(kernel, is_bottleneck, group_blocks, version, filters=64, num_classes=1001, scope='resnet_model/'):
    """Return {name: (shape, dtype)} as official/resnet has them, written down from its definition."""
    found, made, out = {}, collections.Counter(), 4 if is_bottleneck else 1

    def add(kind, **shapes):
        number = made[kind]
        made[kind] += 1
        for name, shape in shapes.items():
            found[f'{scope}{kind}_{number}/{name}' if number else f'{scope}{kind}/{name}'] = shape, 'float32'

    def conv(size, ins, outs):
        add('conv2d', kernel=(size, size, ins, outs))

    def bn(size):
        add('batch_normalization', gamma=(size,), beta=(size,), moving_mean=(size,), moving_variance=(size,))

    conv(kernel, 3, filters)
    if version == 1:
        bn(filters)
    channels = filters
    for group, num_blocks in enumerate(group_blocks):
        inner = filters * 2**group
        for block in range(num_blocks):
            convs = (
                [(1, channels, inner), (3, inner, inner), (1, inner, 4 * inner)]
                if is_bottleneck
                else [(3, channels, inner), (3, inner, inner)]
            )
            if version == 2:
                bn(channels)
            if not block:
                conv(1, channels, inner * out)
            if not block and version == 1:
                bn(inner * out)
            for i, (size, ins, outs) in enumerate(convs):
                if version == 2 and i:
                    bn(ins)
                conv(size, ins, outs)
                if version == 1:
                    bn(outs)
            channels = inner * out
    if version == 2:
        bn(channels)
    add('dense', kernel=(channels, num_classes), bias=(num_classes,))
    return found


@pytest.mark.parametrize('size', [18, 34, 50, 101, 152, 200])
@pytest.mark.parametrize('version', [1, 2])
def test_published_nets_of_imagenet_are_recognised(size, version):
    block, group_blocks = resnet_variants.IMAGENET_BLOCKS[size]
    shapes = official_shapes(7, block == 'bottleneck', group_blocks, version)
    ours = {1: '1.5', 2: '2'}[version]
    source = from_official_tf.describe(shapes, f'resnet{size}_v{ours}')
    assert source.spec == resnet_variants.imagenet_spec(size, version=ours, shortcut='group', stem_pool='same')
    assert source.labels == 'imagenet1001' and source.num_classes == 1001
    assert source.input.mean == (123.68, 116.78, 103.94)
    entries = from_official_tf.name_map(source, shapes)
    assert {name for entry in entries for name in entry.sources} == shapes.keys()
    assert len({entry.target for entry in entries}) == len(entries)
    if size == 50:  # in v2 the last BN has the number 48; convolutions go from 0 to 52 in both
        last = [entry for entry in entries if entry.target.endswith('/gamma')][-1]
        assert (
            last
            == {
                1: ('group4_block3_bn3/gamma', ('resnet_model/batch_normalization_52/gamma',), last.convert),
                2: ('head_bn/gamma', ('resnet_model/batch_normalization_48/gamma',), last.convert),
            }[version]
        )


@pytest.mark.parametrize('size', [8, 32, 56, 110])
@pytest.mark.parametrize('version', [1, 2])
def test_published_nets_of_cifar_are_recognised(size, version):
    shapes = official_shapes(3, False, ((size - 2) // 6,) * 3, version, 16, 10, scope='')
    source = from_official_tf.describe(shapes)
    spec = resnet_variants.cifar_spec(size, version=str(version), shortcut='group')
    assert (source.spec, source.variant, source.labels) == (spec, f'resnet{size}_v{version}', 'cifar10')
    assert source.input.normalization == 'per_image_standardization' and source.input.size == 32
    if size in (32, 56):  # the published numbers of trainable parameters
        trainable = sum(np.prod(shape) for name, (shape, _) in shapes.items() if '/moving' not in name)
        assert trainable == {(32, 1): 467194, (32, 2): 466970, (56, 1): 856058, (56, 2): 855834}[size, version]


def test_the_official_name_of_a_variant():
    shapes = official_shapes(7, False, (2, 2, 2, 2), 1)
    assert from_official_tf.describe(shapes, 'resnet18_v1').variant == 'resnet18_v1.5'
    with pytest.raises(UserError, match='by its variables the checkpoint is of resnet18_v1.5'):
        from_official_tf.describe(shapes, 'resnet18_v2')


def drop(name):
    def change(shapes):
        for found in [found for found in shapes if found.startswith(f'resnet_model/{name}/')]:
            del shapes[found]

    return change


def reshape(name, shape):
    return lambda shapes: shapes.update({f'resnet_model/{name}': (shape, 'float32')})


def add_final_bn(shapes):
    """As in v1 until May 2018."""
    shapes |= {
        f'resnet_model/batch_normalization_10/{name}': ((16,), 'float32')
        for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')
    }


@pytest.mark.parametrize(
    'change,message',
    [
        (drop('conv2d_3'), 'but no resnet_model/conv2d_3/kernel'),
        (drop('conv2d_9'), 'do not form groups of blocks'),
        (drop('batch_normalization_9'), '9 BNs for 10 convolutions in 3 groups: v1 has 10, v2 7'),
        (drop('dense'), 'no variable resnet_model/dense/kernel'),
        (add_final_bn, 'a v1 from before May 2018, with a BN and a ReLU after its last block'),
        (lambda shapes: shapes.pop('resnet_model/batch_normalization_3/beta'), 'missing: .*batch_normalization_3/beta'),
        (reshape('conv2d/kernel', (3, 3, 3)), 'not 4 numbers above 0'),
        (reshape('conv2d/kernel', (5, 5, 3, 16)), r'expected 3x3 \(CIFAR\) or 7x7'),
        (reshape('conv2d/kernel', (3, 3, 3, 2**40)), 'do not form groups'),
        (reshape('conv2d_2/kernel', (3, 3, 8, 16)), r'misshapen: resnet_model/conv2d_2/kernel \(3, 3, 8, 16\), not'),
        (reshape('dense/kernel', (64, 0)), 'not 2 numbers above 0'),
        (lambda shapes: shapes.update({'resnet_model/dense/bias': ((10,), 'int64')}), 'dense/bias int64'),
    ],
)
def test_what_is_missing_or_misshapen_is_named(change, message):
    shapes = official_shapes(3, False, (1, 1, 1), 1, filters=16, num_classes=10)
    change(shapes)
    with pytest.raises(UserError, match=message) as error:
        fitted(from_official_tf, shapes)
    assert '\n' not in str(error.value)


def test_names_of_others_are_not_recognised():
    assert not from_official_tf.recognises({'resnet_v1_50/conv1/weights': ((7, 7, 3, 64), 'float32')})
    with pytest.raises(UserError, match='0 convolutions named as conv2d_1/kernel'):
        from_official_tf.describe({'resnet_v1_50/conv1/weights': ((7, 7, 3, 64), 'float32')})
