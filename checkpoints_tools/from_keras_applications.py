"""Keras' own ResNet50, 101, 152 and their V2: .h5 of Keras 1 to 3, .weights.h5 and .keras files.

Only arrays are read: no model config is looked at, no link followed, no compressed data inflated (Keras writes none).
Where they lie in a file is found by h5_listing, in a process of its own.
Variables are named 'LAYER/kernel', bias, gamma, beta, moving_mean, moving_variance, the layer as in the file:
conv2_block1_1_conv, or res2a_branch2a in files before keras-applications 1.0.7. The function is that of today's
keras.applications for both; code of the older names had BN with epsilon 1e-3 and a pool of 112 to 55 without padding.
Source: keras/src/applications/resnet.py, keras/src/saving/saving_lib.py.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import tensorflow as tf

from checkpoints_tools import tf_checkpoint
from checkpoints_tools.source import Entry, Input, Lazy, Source, identity
from official_resnet import resnet_spec, resnet_variants
from official_resnet.errors import UserError

EPSILON = 1.001e-5
NOTE = (
    'keras.applications; weights of v1 are those of KaimingHe/deep-residual-networks, MIT license; '
    'arXiv:1512.03385, 1603.05027'
)
MAX_SECONDS = 60  # for the list of an HDF5 file's arrays
MAX_INFLATION = 16  # of model.weights.h5 in a .keras file, which Keras does not compress
_BN_ROLES = ('gamma', 'beta', 'moving_mean', 'moving_variance')
# How a variable's name ends, without a number as of conv1_W_1:0 -> its role. running_std is a variance.
_ROLES = {
    'kernel': 'kernel',
    '_W': 'kernel',
    'bias': 'bias',
    '_b': 'bias',
    'gamma': 'gamma',
    'beta': 'beta',
    'moving_mean': 'moving_mean',
    'running_mean': 'moving_mean',
    'moving_variance': 'moving_variance',
    'running_std': 'moving_variance',
}
_DEPTHS = {
    sum(blocks) * 3 + len(blocks) + 1: blocks
    for kind, blocks in resnet_variants.IMAGENET_BLOCKS.values()
    if kind == 'bottleneck'
}  # convolutions, projections among them -> blocks

_Array = collections.namedtuple('_Array', 'shape dtype offset')  # offset in the file, bytes
_Conv = collections.namedtuple('_Conv', 'ours theirs shape')  # theirs as conv2_block1_1; shape [h, w, in, out]


@contextlib.contextmanager
def _plain(path):
    """Give the path of the HDF5 file that a path is, or that a .keras file has in it."""
    try:
        with open(path, 'rb') as file, contextlib.ExitStack() as stack:
            magic = file.read(8)
            if magic.startswith(b'PK'):
                file = stack.enter_context(tempfile.NamedTemporaryFile())
                _unzip_weights(path, file)
                path = file.name
            elif magic != b'\x89HDF\r\n\x1a\n':
                raise UserError(f'{str(path)!r} is neither HDF5 nor a .keras file')
            yield path
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f'{str(path)!r}: {error.strerror}') from error
    except Exception as error:  # zipfile and zlib raise most of Python's built-in exceptions
        raise UserError(f'{str(path)!r} is damaged: {" ".join(str(error).split())[:200]}') from error


def _unzip_weights(path, target):
    """Copy a .keras file's HDF5 to an open file, not to memory."""
    name = 'model.weights.h5'
    with zipfile.ZipFile(path) as archive:
        if name not in archive.namelist():
            raise UserError(f'{str(path)!r} has no {name}')
        info = archive.getinfo(name)
        limit = MAX_INFLATION * os.path.getsize(path)
        if info.file_size > limit:
            raise UserError(f'{str(path)!r} declares {info.file_size} bytes of {name}; no more than {limit} are read')
        with archive.open(info) as file:  # which gives no more bytes than are declared
            shutil.copyfileobj(file, target, 1 << 20)
    target.flush()
    if target.tell() != info.file_size:
        raise UserError(f'{str(path)!r} is damaged: {info.file_size - target.tell()} bytes of {name} are missing')


def _listing(path, name):
    """Return what h5_listing says of an HDF5 file; `name` is for errors."""
    command = [sys.executable, '-P', str(pathlib.Path(__file__).with_name('h5_listing.py')), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f'{str(name)!r} is damaged: HDF5 does not come to an end with it') from None
    if done.returncode:  # the library crashed or was stopped
        raise UserError(f'{str(name)!r} is damaged: HDF5 ended with {done.returncode}')
    found = json.loads(done.stdout)
    if 'error' in found:
        raise UserError(f'{str(name)!r}: {found["error"]}')
    return found


def _variables(path, name):
    """Return {'LAYER/ROLE': _Array} of an HDF5 file; `name` is for errors."""
    listing, size = _listing(path, name), os.path.getsize(path)
    arrays = {
        tuple(place): _Array(tuple(shape), np.dtype(dtype), offset) for place, shape, dtype, offset in listing['arrays']
    }
    lengths = [array.dtype.itemsize * math.prod(array.shape) for array in arrays.values()]
    if sum(lengths) > size or any(
        array.offset + length > size for array, length in zip(arrays.values(), lengths, strict=True)
    ):
        raise UserError(f'{str(name)!r} has {size} bytes and declares {sum(lengths)} of arrays, or some beyond its end')
    siblings = collections.Counter(place[:-1] for place in arrays)
    named = {place: _name(place, listing['layers'], siblings[place[:-1]]) for place in arrays}
    kinds = {found[0] for found in named.values() if isinstance(found, tuple)}
    layers, variables = _layers_in_order(kinds) if kinds else {}, {}
    for place, found in named.items():
        if isinstance(found, tuple):
            kind, index = found
            found = f'{layers.get(kind, kind)}/{_role(index, 4 if kind.startswith("batch") else 2)}'
        if found in variables:
            raise UserError(f'{str(name)!r} has two variables {found!r}')
        variables[found] = arrays[place]
    return variables


def _name(place, layers, num_siblings):
    """Return 'LAYER/ROLE' of an array; (kind of the layer, index) where a file does not name its layers."""
    *parents, last = place
    if not parents or parents[0].startswith('optimizer'):
        return '/'.join(place)
    if parents[-1] == 'vars' and len(parents) > 1 and re.fullmatch(r'[0-9]{1,2}', last):
        layer = layers.get('/'.join(parents))  # Keras 3: layers/conv2d_7/vars/0
        return f'{layer}/{_role(int(last), num_siblings)}' if layer else (parents[-2], int(last))
    if parents[0] == 'model_weights':  # a whole model in .h5
        parents = parents[1:]
    word = re.sub(r'(_\d+)?(:\d+)?$', '', last)
    role = next((role for ending, role in _ROLES.items() if word.endswith(ending)), None)
    return f'{parents[0]}/{role}' if parents and role else '/'.join(place)


def _role(index, num_variables):
    """Return the role of a layer's variable, of which BN has four."""
    roles = _BN_ROLES if num_variables == 4 else ('kernel', 'bias')
    return roles[index] if index < len(roles) else index


def _layers_in_order(kinds):
    """Return {'conv2d_7': 'conv2_block2_1_conv', ..}: Keras' numbers of a ResNet's layers, which go by depth."""
    num_convs = sum(re.fullmatch(r'conv2d(_\d+)?', kind) is not None for kind in kinds)
    num_norms = sum(re.fullmatch(r'batch_normalization(_\d+)?', kind) is not None for kind in kinds)
    if num_convs not in _DEPTHS:
        raise UserError(f'{num_convs} convolutions without names: no ResNet50, 101 or 152 of keras.applications')
    is_v2 = num_norms != num_convs
    convs, norms = ['conv1_conv'], [] if is_v2 else ['conv1_bn']
    for group, num_blocks in enumerate(_DEPTHS[num_convs], start=2):
        for block in range(1, num_blocks + 1):
            order = ('1', '2', '0', '3') if block == 1 else ('1', '2', '3')  # the projection beside the third
            convs += [f'conv{group}_block{block}_{i}_conv' for i in order]
            norms += [f'conv{group}_block{block}_{i}_bn' for i in (('preact', '1', '2') if is_v2 else order)]
    norms += ['post_bn'] if is_v2 else []
    layers = {'dense': 'predictions'}
    for kind, names in (('conv2d', convs), ('batch_normalization', norms)):
        layers |= {f'{kind}_{i}' if i else kind: name for i, name in enumerate(names)}
    return layers


def shapes(path):
    """Return {'LAYER/ROLE': (shape, dtype)}; the values stay on the disk."""
    with _plain(path) as plain:
        return {name: (array.shape, array.dtype.name) for name, array in _variables(plain, path).items()}


def read(path):
    """Return {'LAYER/ROLE': float32 array}, without an optimizer's, each read when it is asked for."""
    opened = contextlib.ExitStack()  # lives as long as `value`: what was unzipped goes when nobody can ask any more
    plain = opened.enter_context(_plain(path))
    file = opened.enter_context(open(plain, 'rb'))
    variables = {name: array for name, array in _variables(plain, path).items() if not _is_optimizer(name)}

    def value(name, keep=opened):
        array = variables[name]
        file.seek(array.offset)
        return np.asarray(np.fromfile(file, array.dtype, math.prod(array.shape)).reshape(array.shape), 'float32')

    return Lazy(variables, value)


def _is_optimizer(name):
    return name.startswith(('optimizer/', 'optimizer_weights/'))


def recognises(shapes):
    """Return whether these are the variables of a ResNet of keras.applications."""
    return 'conv2_block1_1_conv/kernel' in shapes or 'res2a_branch2a/kernel' in shapes


def _is_old(names):
    return 'res2a_branch2a/kernel' in names


def _is_v2(names):
    return 'conv2_block1_preact_bn/gamma' in names


def _layer(name, kind, is_old):
    """Return the file's name of a layer: of 'conv2_block1_1' and 'bn', conv2_block1_1_bn or bn2a_branch2a."""
    if not is_old:
        return name if name in ('predictions', 'post') and kind != 'bn' else f'{name}_{kind}'
    if name == 'conv1':
        return {'conv': 'conv1', 'bn': 'bn_conv1'}[kind]
    group, block, i = re.fullmatch(r'conv(\d)_block(\d+)_(\d)', name).groups()
    branch = {'0': '1', '1': '2a', '2': '2b', '3': '2c'}[i]
    return f'{"res" if kind == "conv" else "bn"}{group}{chr(ord("a") + int(block) - 1)}_branch{branch}'


def _head(names):
    return 'fc1000' if _is_old(names) else 'predictions'


def _group_blocks(names):
    """Return the blocks of each group, as the layers' names have them."""
    found = collections.defaultdict(set)
    for name in names:
        match = re.fullmatch(r'res([2-9])([a-z])_branch2a/kernel|conv([2-9])_block(\d{1,3})_1_conv/kernel', name)
        if match:
            old_group, letter, group, block = match.groups()
            found[int(old_group or group)].add(ord(letter) - ord('a') + 1 if letter else int(block))
    if (
        not found
        or sorted(found) != list(range(2, 2 + len(found)))
        or any(blocks != set(range(1, 1 + len(blocks))) for blocks in found.values())
    ):
        raise UserError(f'no ResNet of keras.applications: groups of blocks {dict(sorted(found.items()))}')
    return tuple(len(found[group]) for group in sorted(found))


def _convs(group_blocks, filters, stem_filters):
    """Yield _Conv for each convolution."""
    yield _Conv('stem', 'conv1', (7, 7, 3, stem_filters))
    in_filters = stem_filters
    for group, num_blocks in enumerate(group_blocks, start=1):
        inner = filters * 2 ** (group - 1)
        outer = inner * resnet_spec.BOTTLENECK_EXPANSION
        for block in range(1, num_blocks + 1):
            ours, theirs = f'group{group}_block{block}', f'conv{group + 1}_block{block}'
            if block == 1:
                yield _Conv(f'{ours}_shortcut', f'{theirs}_0', (1, 1, in_filters, outer))
            yield _Conv(f'{ours}_1', f'{theirs}_1', (1, 1, in_filters, inner))
            yield _Conv(f'{ours}_2', f'{theirs}_2', (3, 3, inner, inner))
            yield _Conv(f'{ours}_3', f'{theirs}_3', (1, 1, inner, outer))
            in_filters = outer


def _norms(spec):
    """Return [(our BN, the file's as conv2_block1_preact, channels)] of V2, in the order of computation."""
    norms, channels = [], spec.stem_filters or spec.filters
    for group, num_blocks in enumerate(spec.group_blocks, start=1):
        inner = spec.filters * 2 ** (group - 1)
        for block in range(1, num_blocks + 1):
            ours, theirs = f'group{group}_block{block}', f'conv{group + 1}_block{block}'
            norms += [
                (f'{ours}_bn1', f'{theirs}_preact', channels),
                (f'{ours}_bn2', f'{theirs}_1', inner),
                (f'{ours}_bn3', f'{theirs}_2', inner),
            ]
            channels = inner * resnet_spec.BOTTLENECK_EXPANSION
    return [*norms, ('head_bn', 'post', channels)]


def _check(shapes, spec, num_classes, variant):
    """Refuse a file without all of the net; what a net of its names would need is then no more than it holds."""
    is_old, head = _is_old(shapes), _head(shapes)
    channels = spec.filters * 2 ** (len(spec.group_blocks) - 1) * resnet_spec.BOTTLENECK_EXPANSION
    expected = {f'{head}/kernel': (channels, num_classes), f'{head}/bias': (num_classes,)}
    norms = [(theirs, channels) for _, theirs, channels in _norms(spec)] if spec.version == '2' else []
    for conv in _convs(spec.group_blocks, spec.filters, spec.stem_filters or spec.filters):
        name = _layer(conv.theirs, 'conv', is_old)
        expected[f'{name}/kernel'] = conv.shape
        if f'{name}/bias' in shapes:
            expected[f'{name}/bias'] = conv.shape[-1:]
        if spec.version == '1':
            norms.append((conv.theirs, conv.shape[-1]))
    for theirs, channels in norms:
        expected |= {f'{_layer(theirs, "bn", is_old)}/{role}': (channels,) for role in _BN_ROLES}
    tf_checkpoint.check(expected, shapes, variant)


def describe(shapes, variant=None):
    """Return the Source of these variables; a variant, 'ResNet50V2' or 'resnet50_v2', must be what they are."""
    blocks, is_old, is_v2 = _group_blocks(shapes), _is_old(shapes), _is_v2(shapes)
    head, stem, first = (
        f'{name}/kernel'
        for name in (_head(shapes), _layer('conv1', 'conv', is_old), _layer('conv2_block1_1', 'conv', is_old))
    )
    if head not in shapes:
        raise UserError(f'no classifier {head}: a file of a net without its top, or of another one')
    if any(len(shapes.get(name, ((),))[0]) != rank for name, rank in ((head, 2), (stem, 4), (first, 4))):
        raise UserError(f'no ResNet of keras.applications: {stem}, {first} or {head} is missing or misshapen')
    num_classes, stem_filters, filters = (shapes[name][0][-1] for name in (head, stem, first))
    version = (
        {'version': '2', 'stride_block': 'last', 'stem_bias': 'conv1_conv/bias' in shapes}
        if is_v2
        else {'version': '1'}
    )
    if not all((num_classes, stem_filters, filters)):
        raise UserError('a layer without outputs')
    spec = resnet_spec.ResNetSpec(
        blocks,
        filters,
        stem='imagenet',
        block='bottleneck',
        shortcut='B',
        stem_pool='pad1',
        bn_momentum=0.99,
        bn_epsilon=EPSILON,
        stem_filters=None if stem_filters == filters else stem_filters,
        **version,
    )
    size = 2 + 3 * sum(blocks)
    name = f'ResNet{size}{"V2" if is_v2 else ""}'
    _check(shapes, spec, num_classes, name)
    if variant not in (None, name, f'resnet{size}_v{spec.version}'):
        raise UserError(f'variant={variant!r}: the variables are of {name}')
    convention = (
        Input('RGB', 1 / 127.5, mean=(1.0, 1.0, 1.0)) if is_v2 else Input('BGR', mean=(103.939, 116.779, 123.68))
    )
    return Source(
        'keras_applications',
        name,
        spec,
        num_classes,
        convention,
        'imagenet1000' if num_classes == 1000 else 'unknown',
        NOTE,
    )


def ignored(shapes):
    """Return the optimizer's variables, {name: why}."""
    return {name: "the optimizer's" for name in shapes if _is_optimizer(name)}


def _less(mean, *biases):
    """Return the mean of what lacks these biases."""
    return (mean.astype('float64') - sum(bias.astype('float64') for bias in biases)).astype('float32')


def name_map(source, shapes):
    """Return the Entries; biases go into the means of the BNs that come next on each path."""
    spec, is_old, head = source.spec, _is_old(shapes), _head(shapes)
    entries = [Entry(f'logits/{role}', (f'{head}/{role}',), identity) for role in ('kernel', 'bias')]
    biases, norms = {}, []  # biases: the file's conv2_block1_1 -> [name of its bias], [] without one
    for conv in _convs(spec.group_blocks, spec.filters, spec.stem_filters or spec.filters):
        name = _layer(conv.theirs, 'conv', is_old)
        place, _, number = conv.ours.rpartition('_')
        is_main = number.isdecimal()
        ours = f'{place}_conv{number}' if is_main else f'{conv.ours}_conv'
        entries.append(Entry(f'{ours}/kernel', (f'{name}/kernel',), identity))
        biases[conv.theirs] = [f'{name}/bias'] if f'{name}/bias' in shapes else []
        norms.append((f'{place}_bn{number}' if is_main else f'{conv.ours}_bn', conv.theirs, biases[conv.theirs]))
    if spec.version == '2':
        norms = _folded(spec, biases)
        entries += [Entry('stem_conv/bias', (name,), identity) for name in biases['conv1']]
    for ours, theirs, folded in norms:
        name = _layer(theirs, 'bn', is_old)
        entries += [
            Entry(f'{ours}/{role}', (f'{name}/{role}',), identity) for role in _BN_ROLES if role != 'moving_mean'
        ]
        entries.append(Entry(f'{ours}/moving_mean', (f'{name}/moving_mean', *folded), _less if folded else identity))
    return entries


def _folded(spec, biases):
    """Return [(our BN, the file's, biases that its input lacks)] of V2."""
    norms, missing = [], []  # missing: what the sum of our blocks so far lacks
    for ours, theirs, _ in _norms(spec):
        block, _, which = theirs.rpartition('_')
        is_sum = which == 'preact' or theirs == 'post'
        norms.append((ours, theirs, list(missing) if is_sum else biases[theirs]))
        if which == '2':  # the last BN of its block
            if block.endswith('_block1'):
                missing = list(biases[f'{block}_0'])
            missing = missing + biases[f'{block}_3']
    return norms


def run(variables, images, source):
    """Return the logits of [n, h, w, 3] images as keras/src/applications/resnet.py computes them, biases and all."""
    is_old, is_v2 = _is_old(variables), _is_v2(variables)

    def conv(x, name, stride=1, pad=0):
        layer = _layer(name, 'conv', is_old)
        x = tf.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        return tf.nn.conv2d(x, variables[f'{layer}/kernel'], stride, 'VALID') + variables.get(f'{layer}/bias', 0.0)

    def norm(x, name):
        gamma, beta, mean, variance = (variables[f'{_layer(name, "bn", is_old)}/{role}'] for role in _BN_ROLES)
        return (x - mean) / tf.sqrt(variance + EPSILON) * gamma + beta

    def block_v1(x, name, stride, is_first):
        shortcut = norm(conv(x, f'{name}_0', stride), f'{name}_0') if is_first else x
        y = tf.nn.relu(norm(conv(x, f'{name}_1', stride), f'{name}_1'))
        y = tf.nn.relu(norm(conv(y, f'{name}_2', pad=1), f'{name}_2'))
        return tf.nn.relu(shortcut + norm(conv(y, f'{name}_3'), f'{name}_3'))

    def block_v2(x, name, stride, is_first):
        y = tf.nn.relu(norm(x, f'{name}_preact'))
        shortcut = conv(y, f'{name}_0', stride) if is_first else x[:, ::stride, ::stride]
        y = tf.nn.relu(norm(conv(y, f'{name}_1'), f'{name}_1'))
        y = tf.nn.relu(norm(conv(y, f'{name}_2', stride, pad=1), f'{name}_2'))
        return shortcut + conv(y, f'{name}_3')

    x = conv(tf.constant(images, tf.float32), 'conv1', 2, pad=3)
    if not is_v2:
        x = tf.nn.relu(norm(x, 'conv1'))
    x = tf.nn.max_pool2d(tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2, 'VALID')
    group_blocks = _group_blocks(variables)
    for group, num_blocks in enumerate(group_blocks, start=2):
        for block in range(1, num_blocks + 1):
            strided = group <= len(group_blocks) and block == num_blocks if is_v2 else group > 2 and block == 1
            x = (block_v2 if is_v2 else block_v1)(x, f'conv{group}_block{block}', 2 if strided else 1, block == 1)
    x = tf.reduce_mean(tf.nn.relu(norm(x, 'post')) if is_v2 else x, (1, 2))
    head = _head(variables)
    return (tf.matmul(x, variables[f'{head}/kernel']) + variables[f'{head}/bias']).numpy()
