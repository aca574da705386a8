"""tensorpack's ImageNet nets, the .npz of models.tensorpack.com: ResNet 18 to 152, SE, ResNeXt 32x4d, pre-activation.

Arrays are read without pickle, after what their headers declare is compared with the file. Variables are named as
in it, conv0/W, group0/block0/conv1/bn/mean/EMA, linear/b, without the ':0' that older files append.
Source: tensorpack/examples/ResNet/resnet_model.py. Two files of other origin share the suffix and are told by their
names: what tensorpack.utils.loadcaffe makes of a .caffemodel, and what load-resnet.py --convert makes of that.
"""

import collections
import contextlib
import os
import re
import zipfile

import numpy as np
import tensorflow as tf

from checkpoints_tools import tf_checkpoint
from checkpoints_tools.source import Entry, Input, Lazy, Source, identity
from official_resnet import resnet_spec
from official_resnet.errors import UserError

EPSILON = 1e-5
NOTE = (
    'tensorpack/examples/ResNet, weights without a stated license; arXiv:1512.03385, 1709.01507 (SE), '
    '1611.05431 (ResNeXt)'
)
MAX_MEMBERS = 20_000
MAX_INFLATION = 8  # bytes of arrays to one of the file; trained weights compress to nine tenths
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Parts of a BN in tensorpack's names -> ours.
_BN = {'gamma': 'gamma', 'beta': 'beta', 'mean/EMA': 'moving_mean', 'variance/EMA': 'moving_variance'}
_IGNORED = r'global_step|learning_rate|beta[12]_power|EMA/.*|tower.*|.*/(Momentum|Adam(_1)?|AccumGrad)'

_Conv = collections.namedtuple('_Conv', 'ours theirs shape')  # ours as group1_block1_conv1; shape [h, w, in, out]


def _members(path, wanted=None):
    """Yield (name, shape, dtype, function that returns the array) of the arrays of an .npz, or of those wanted."""
    with _opened(path) as archive:
        infos = archive.infolist()
        limit = MAX_INFLATION * os.path.getsize(path) + (1 << 20)
        total = sum(info.file_size for info in infos)
        if len(infos) > MAX_MEMBERS or total > limit:
            raise UserError(
                f'{str(path)!r} declares {len(infos)} arrays, {total} bytes; '
                f'no more than {MAX_MEMBERS} and {limit} are read'
            )
        names = set()
        for info in infos:
            name = info.filename.removesuffix('.npy').removesuffix(':0')
            if name in names or name == info.filename:
                raise UserError(f'{str(path)!r}: {info.filename!r} occurs twice, or is no array')
            names.add(name)
            if wanted and name not in wanted:
                continue
            with archive.open(info) as file:
                shape, is_fortran, dtype = _header(file, info)
                yield name, shape, dtype, lambda file=file, header=(shape, is_fortran, dtype): _values(file, *header)


@contextlib.contextmanager
def _opened(path):
    """Give the ZipFile of a path; whatever is wrong with it is a UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f'{str(path)!r}: {error.strerror}') from error
    except Exception as error:  # zipfile, zlib and numpy raise most of Python's built-in exceptions
        raise UserError(f'{str(path)!r} is no .npz, or a damaged one: {" ".join(str(error).split())[:200]}') from error


def _header(file, info):
    """Return (shape, is_fortran, dtype) of an .npy; numpy takes its header for a literal, not for code."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise UserError(f'{info.filename!r} is of .npy version {version}')
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.kind not in 'fiu' or dtype.hasobject:
        raise UserError(f'{info.filename!r} has {dtype}, not numbers; pickled objects are not opened')
    declared = dtype.itemsize
    for length in shape:
        declared *= length
    if min(shape, default=0) < 0 or declared != info.file_size - file.tell():
        raise UserError(f'{info.filename!r} of shape {shape} has {info.file_size - file.tell()} bytes')
    return shape, is_fortran, dtype


def _values(file, shape, is_fortran, dtype):
    count = int(np.prod(shape, dtype='int64'))
    data = file.read(count * dtype.itemsize)  # CRC is checked at the end
    if len(data) != count * dtype.itemsize or file.read(1):
        raise UserError(f'an array of shape {shape} ends early')
    array = np.frombuffer(data, dtype).reshape(shape, order='F' if is_fortran else 'C')
    return np.array(array, 'float32', order='C')


def shapes(path):
    """Return {name: (shape, dtype)}; the values stay on the disk."""
    return {name: (shape, dtype.name) for name, shape, dtype, _ in _members(path)}


def read(path):
    """Return {name: float32 array}, without what `ignored` names, each read when it is asked for."""

    def value(name):
        (array,) = (values() for *_, values in _members(path, {name}))
        return array

    return Lazy([name for name, *_ in _members(path) if not re.fullmatch(_IGNORED, name)], value)


def _is_caffe(names):
    return 'conv1/W' in names and 'bn_conv1/gamma' in names


def recognises(shapes):
    """Return whether these are variables of tensorpack's nets, of loadcaffe's dialect among them."""
    return {'conv0/W', 'group0/block0/conv1/W'} <= set(shapes) or _is_caffe(shapes)


def _group_blocks(names):
    """Return the blocks of each group, as the names have them."""
    found = collections.defaultdict(set)
    for name in names:
        match = re.fullmatch(r'group(\d)/block(\d{1,3})/conv1/W', name)
        if match:
            found[int(match[1])].add(int(match[2]))
    if (
        not found
        or sorted(found) != list(range(len(found)))
        or any(blocks != set(range(len(blocks))) for blocks in found.values())
    ):
        raise UserError(f"no ResNet of tensorpack's: groups of blocks {dict(sorted(found.items()))}")
    return tuple(len(found[group]) for group in sorted(found))


def _blocks(group_blocks):
    """Yield (group, block, ours, the file's) of each block, group and block from 0."""
    for group, num_blocks in enumerate(group_blocks):
        for block in range(num_blocks):
            yield group, block, f'group{group + 1}_block{block + 1}', f'group{group}/block{block}'


def _convs(spec):
    """Yield _Conv for each convolution, and for each layer of squeeze-and-excitation."""
    in_filters = spec.filters
    yield _Conv('stem_conv', 'conv0', (7, 7, 3, in_filters))
    for group, _, ours, theirs in _blocks(spec.group_blocks):
        filters = spec.filters * 2**group
        outer = filters * spec.expansion
        inner = filters * spec.base_width // 64 * spec.cardinality
        sides = (
            ((1, in_filters, inner), (3, inner // spec.cardinality, inner), (1, inner, outer))
            if (spec.block == 'bottleneck')
            else ((3, in_filters, filters), (3, filters, filters))
        )
        for i, (side, taken, given) in enumerate(sides, start=1):
            yield _Conv(f'{ours}_conv{i}', f'{theirs}/conv{i}', (side, side, taken, given))
        if in_filters != outer:
            yield _Conv(f'{ours}_shortcut_conv', f'{theirs}/convshortcut', (1, 1, in_filters, outer))
        if spec.se_reduction:
            reduced = max(1, outer // spec.se_reduction)
            yield _Conv(f'{ours}_se_conv1', f'{theirs}/fc1', (outer, reduced))
            yield _Conv(f'{ours}_se_conv2', f'{theirs}/fc2', (reduced, outer))
        in_filters = outer


def _norms(spec):
    """Return [(our BN, the file's)]; None for the one BN of ours, of V2, that the file lacks."""
    if spec.version != '2':
        return [(conv.ours.replace('conv', 'bn'), f'{conv.theirs}/bn') for conv in _convs(spec) if len(conv.shape) == 4]
    norms, previous, num_convs = [('stem_bn', 'conv0/bn')], None, 3 if spec.block == 'bottleneck' else 2
    for group, block, ours, theirs in _blocks(spec.group_blocks):
        norms.append((f'{ours}_bn1', f'{theirs}/preact/bn' if block else previous))
        norms += [(f'{ours}_bn{i + 1}', f'{theirs}/conv{i}/bn') for i in range(1, num_convs)]
        previous = f'group{group}/bnlast/bn'
    return [*norms, ('head_bn', previous)]


def _check(shapes, spec, num_classes, variant):
    """Refuse a file without all of the net; what a net of its names would need is then no more than it holds."""
    channels = spec.filters * 2 ** (len(spec.group_blocks) - 1) * spec.expansion
    expected = {'linear/W': (channels, num_classes), 'linear/b': (num_classes,)}
    for conv in _convs(spec):
        expected[f'{conv.theirs}/W'] = conv.shape
        if len(conv.shape) == 2:
            expected[f'{conv.theirs}/b'] = conv.shape[1:]
    for _, theirs in _norms(spec):
        if theirs:
            expected |= {f'{theirs}/{part}': _channels(expected, spec, theirs) for part in _BN}
    tf_checkpoint.check(expected, shapes, variant)


def _channels(expected, spec, norm):
    """Return the shape of the parts of a BN: of what it follows."""
    layer = norm.removesuffix('/bn')
    if f'{layer}/W' in expected:
        return expected[f'{layer}/W'][-1:]
    return (spec.filters * 2 ** int(layer[len('group')]) * spec.expansion,)  # preact, bnlast: of the group's sums


def describe(shapes, variant=None):
    """Return the Source of these variables; a variant, as 'ImageNet-ResNet50-SE', must be what they are."""
    if _is_caffe(shapes):
        raise UserError(
            "names of Caffe's layers: an .npz of tensorpack.utils.loadcaffe; convert its .caffemodel "
            'with --source caffe'
        )
    if 'conv0/b' in shapes:
        raise UserError(
            "conv0/b: an .npz that load-resnet.py made of He's ResNet-50; convert its .caffemodel with --source caffe"
        )
    blocks = _group_blocks(shapes)
    spec, family = _spec(shapes, blocks)
    num_classes = shapes.get('linear/b', ((0,),))[0][0] if len(shapes.get('linear/b', ((),))[0]) == 1 else 0
    size = 2 + (3 if spec.block == 'bottleneck' else 2) * sum(blocks)
    name = f'ImageNet-{family.format(size)}'
    _check(shapes, spec, num_classes, name)
    ours = (
        f'{"se" if spec.se_reduction else ""}resnet{size}_v{spec.version}'
        if spec.cardinality == 1
        else (f'resnext{size}_{spec.cardinality}x{spec.base_width}d')
    )
    if variant not in (None, name, ours):
        raise UserError(f'variant={variant!r}: the variables are of {name}')
    convention = Input('BGR', 1 / 255, mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229), interpolation='bicubic')
    return Source(
        'tensorpack', name, spec, num_classes, convention, 'imagenet1000' if num_classes == 1000 else 'unknown', NOTE
    )


def _spec(shapes, blocks):
    """Return the ResNetSpec and a pattern of tensorpack's name."""

    def shape(name, rank):
        found = shapes.get(f'{name}/W', ((),))[0]
        if len(found) != rank or not all(found):
            raise UserError(f"no ResNet of tensorpack's: {name}/W is missing or misshapen")
        return found

    filters, first = shape('conv0', 4)[-1], 'group0/block0'
    fields = {
        'filters': filters,
        'stem': 'imagenet',
        'shortcut': 'B',
        'version': '1.5',
        'padding': 'same',
        'stem_pool': 'same',
        'bn_momentum': 0.9,
        'bn_epsilon': EPSILON,
    }
    family = 'ResNet{}'
    if f'{first}/conv3/W' in shapes:
        fields['block'] = 'bottleneck'
        _, _, taken, given = shape(f'{first}/conv2', 4)
        if taken != given:
            fields |= {'cardinality': given // taken, 'base_width': taken * 64 // filters}
            family = f'ResNeXt{{}}-{given // taken}x{taken}d'
        if f'{first}/fc1/W' in shapes:
            outer, reduced = shape(f'{first}/fc1', 2)
            fields['se_reduction'] = max(1, outer // reduced)
            family += '-SE'
    if 'group0/bnlast/bn/gamma' in shapes:
        fields |= {'version': '2', 'stem_bn': True}
        family = 'PreAct' + family
    return resnet_spec.ResNetSpec(blocks, **fields), family


def ignored(shapes):
    """Return {name: why}: slots of the optimizer, averages of losses, counters."""
    return {name: "training's, not the network's" for name in shapes if re.fullmatch(_IGNORED, name)}


def _as_1x1(matrix):
    """Return [in, out] as the kernel of a convolution, [1, 1, in, out]."""
    return matrix[None, None]


def _first(mean, variance):
    return mean


def _second(mean, variance):
    return variance


def name_map(source, shapes):
    """Return the Entries.

    Of V2 the first block begins without BN and ReLU, and ours with both: a BN that changes nothing and the ReLU of
    what is positive already. Its values are written as made from the statistics of the stem's BN before it, since
    each value has a source.
    """
    spec = source.spec
    entries = [Entry('logits/kernel', ('linear/W',), identity), Entry('logits/bias', ('linear/b',), identity)]
    for conv in _convs(spec):
        is_matrix = len(conv.shape) == 2
        entries.append(Entry(f'{conv.ours}/kernel', (f'{conv.theirs}/W',), _as_1x1 if is_matrix else identity))
        if is_matrix:
            entries.append(Entry(f'{conv.ours}/bias', (f'{conv.theirs}/b',), identity))
    statistics = ('conv0/bn/mean/EMA', 'conv0/bn/variance/EMA')
    for ours, theirs in _norms(spec):
        if theirs is None:  # gamma 1, beta 0, mean 0, variance + epsilon 1
            values = (1.0, 0.0, 0.0, 1 - EPSILON)
            entries += [
                Entry(
                    f'{ours}/{part}',
                    statistics,
                    lambda mean, variance, value=value: np.full(mean.shape, value, 'float32'),
                )
                for part, value in zip(_BN.values(), values, strict=True)
            ]
            continue
        for part, our_part in _BN.items():
            name = f'{theirs}/{part}'
            if ours == 'stem_bn' and spec.version == '2' and name in statistics:
                entries.append(Entry(f'{ours}/{our_part}', statistics, _first if 'mean' in part else _second))
            else:
                entries.append(Entry(f'{ours}/{our_part}', (name,), identity))
    return entries


def run(variables, images, source):
    """Return the logits of [n, h, w, 3] images as tensorpack's resnet_model.py computes them, all padding SAME."""
    is_preact = 'group0/bnlast/bn/gamma' in variables
    num_convs = 3 if 'group0/block0/conv3/W' in variables else 2

    def norm(x, name):
        gamma, beta, mean, variance = (variables[f'{name}/bn/{part}'] for part in _BN)
        return (x - mean) / tf.sqrt(variance + EPSILON) * gamma + beta

    def conv(x, name, stride=1):
        kernel = variables[f'{name}/W']
        split = x.shape[-1] // kernel.shape[2]
        parts = zip(tf.split(x, split, -1), tf.split(kernel, split, -1), strict=True)
        return tf.concat([tf.nn.conv2d(*part, stride, 'SAME') for part in parts], -1)

    def block_of(x, name, stride, has_preact):
        shortcut, last = x, f'{name}/conv{num_convs}'
        if has_preact:
            x = tf.nn.relu(norm(x, f'{name}/preact'))
        for i in range(1, num_convs):
            x = conv(x, f'{name}/conv{i}', stride if i == num_convs - 1 else 1)  # of a bottleneck the second
            x = tf.nn.relu(norm(x, f'{name}/conv{i}'))
        x = conv(x, last)
        if not is_preact:
            x = norm(x, last)
        if f'{name}/fc1/W' in variables:
            scale = tf.nn.relu(tf.reduce_mean(x, (1, 2)) @ variables[f'{name}/fc1/W'] + variables[f'{name}/fc1/b'])
            scale = tf.sigmoid(scale @ variables[f'{name}/fc2/W'] + variables[f'{name}/fc2/b'])
            x = x * scale[:, None, None]
        if f'{name}/convshortcut/W' in variables:
            shortcut = conv(shortcut, f'{name}/convshortcut', stride)
            shortcut = shortcut if is_preact else norm(shortcut, f'{name}/convshortcut')
        return x + shortcut if is_preact else tf.nn.relu(x + shortcut)

    x = tf.nn.relu(norm(conv(tf.constant(images, tf.float32), 'conv0', 2), 'conv0'))
    x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    for group, num_blocks in enumerate(_group_blocks(variables)):
        for block in range(num_blocks):
            x = block_of(x, f'group{group}/block{block}', 2 if group and not block else 1, is_preact and block)
        if is_preact:
            x = tf.nn.relu(norm(x, f'group{group}/bnlast'))
    return (tf.reduce_mean(x, (1, 2)) @ variables['linear/W'] + variables['linear/b']).numpy()
