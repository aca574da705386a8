"""PyTorch's file formats and nets written without PyTorch, after torch/serialization.py and torchvision."""

import collections
import struct
import zipfile

import numpy as np

Global = collections.namedtuple('Global', 'module name')
Call = collections.namedtuple('Call', 'function arguments')
Stored = collections.namedtuple('Stored', 'identifier')  # a persistent id
STORAGES = {
    'float32': 'FloatStorage',
    'float64': 'DoubleStorage',
    'float16': 'HalfStorage',
    'bfloat16': 'BFloat16Storage',
    'int64': 'LongStorage',
}
MAGIC = 0x1950A86A20F9469CFC6C


def pickled(value):
    """Return a pickle of protocol 2."""
    return b'\x80\x02' + _dump(value) + b'.'


def _dump(value):
    if value is None or isinstance(value, bool):
        return {None: b'N', True: b'\x88', False: b'\x89'}[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
        return b'\x8a' + bytes([len(data)]) + data
    if isinstance(value, float):
        return b'G' + struct.pack('>d', value)
    if isinstance(value, str):
        return b'X' + struct.pack('<I', len(value.encode())) + value.encode()
    if isinstance(value, Global):
        return f'c{value.module}\n{value.name}\n'.encode()
    if isinstance(value, Call):
        return _dump(value.function) + _dump(value.arguments) + b'R'
    if isinstance(value, Stored):
        return _dump(value.identifier) + b'Q'
    if isinstance(value, tuple):
        return b'(' + b''.join(map(_dump, value)) + b't'
    if isinstance(value, list):
        return b'](' + b''.join(map(_dump, value)) + b'e'
    return b'}(' + b''.join(_dump(key) + _dump(item) for key, item in value.items()) + b'u'


def tensor(key, dtype, num_values, shape, strides=None, offset=0, function='_rebuild_tensor_v2', legacy=False):
    """Return the pickle's call that makes a tensor."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    stored = ('storage', Global('torch', STORAGES[dtype]), key, 'cpu', num_values) + ((None,) if legacy else ())
    extra = (False, Call(Global('collections', 'OrderedDict'), ())) if function.endswith('v2') else ()
    return Call(Global('torch._utils', function), (Stored(stored), offset, tuple(shape), strides, *extra))


def write_zip(path, variables, wrap=lambda tensors: tensors):
    """Write {name: array} as torch.save does since 1.6."""
    tensors = {
        name: tensor(str(i), array.dtype.name, array.size, array.shape)
        for i, (name, array) in enumerate(variables.items())
    }
    write_zip_of(path, pickled(wrap(tensors)), {str(i): array.tobytes() for i, array in enumerate(variables.values())})


def write_zip_of(path, pickle, storages):
    """Write a zip of PyTorch's of a given pickle and storages, {key: bytes}."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle)
        archive.writestr('archive/byteorder', 'little')
        for key, data in storages.items():
            archive.writestr(f'archive/data/{key}', data)
        archive.writestr('archive/version', '3\n')


def write_legacy(path, variables, wrap=lambda tensors: tensors):
    """Write {name: array} as torch.save did before 1.6."""
    tensors = {
        name: tensor(f'9{i}', array.dtype.name, array.size, array.shape, function='_rebuild_tensor', legacy=True)
        for i, (name, array) in enumerate(variables.items())
    }
    system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}
    keys = [f'9{i}' for i in range(len(variables))]
    with open(path, 'wb') as file:
        for value in (MAGIC, 1001, system, wrap(tensors), keys):
            file.write(pickled(value))
        for array in variables.values():
            file.write(struct.pack('<q', array.size) + array.tobytes())


def net_shapes(
    layers, is_bottleneck=False, filters=64, groups=1, width_per_group=64, classes=1000, is_cifar=False, option='B'
):
    """Return {name: shape} of torchvision's ResNet (models/resnet.py), or of akamaster's for CIFAR."""
    expansion = 4 if is_bottleneck else 1
    head, projection = ('linear', 'shortcut') if is_cifar else ('fc', 'downsample')
    shapes = {'conv1.weight': (filters, 3, 3, 3) if is_cifar else (filters, 3, 7, 7)} | _norm('bn1', filters)
    inplanes = filters
    for layer, blocks in enumerate(layers, start=1):
        planes = filters * 2 ** (layer - 1)
        width = planes * width_per_group // 64 * groups
        for block in range(blocks):
            name = f'layer{layer}.{block}'
            convs = (
                [(width, inplanes, 1, 1), (width, width // groups, 3, 3), (planes * 4, width, 1, 1)]
                if (is_bottleneck)
                else [(planes, inplanes, 3, 3), (planes, planes, 3, 3)]
            )
            for i, shape in enumerate(convs, start=1):
                shapes |= {f'{name}.conv{i}.weight': shape} | _norm(f'{name}.bn{i}', shape[0])
            if block == 0 and (layer > 1 or inplanes != planes * expansion) and option == 'B':
                shapes |= {f'{name}.{projection}.0.weight': (planes * expansion, inplanes, 1, 1)}
                shapes |= _norm(f'{name}.{projection}.1', planes * expansion)
            inplanes = planes * expansion
    return shapes | {f'{head}.weight': (classes, inplanes), f'{head}.bias': (classes,)}


def _norm(name, filters):
    return {f'{name}.{part}': (filters,) for part in ('weight', 'bias', 'running_mean', 'running_var')}


def random_weights(shapes, seed=0):
    """Return float32 arrays at which no layer is an identity and signals neither die nor grow."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            array = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith(('running_mean', 'bias')):
            array = random.normal(0, 0.1, shape)
        else:
            array = random.uniform(0.5, 1.5, shape)
        arrays[name] = array.astype(np.float32)
    return arrays


TINY = {
    'basic': net_shapes((1, 2, 1, 1), filters=4, classes=7),
    'bottleneck': net_shapes((1, 1, 2, 1), True, filters=4, classes=7),
    'grouped': net_shapes((1, 1, 1, 1), True, filters=16, groups=4, width_per_group=8, classes=7),
    'wide': net_shapes((1, 1, 1, 1), True, filters=4, width_per_group=128, classes=7),
    'cifar_a': net_shapes((2, 1, 2), filters=4, classes=10, is_cifar=True, option='A'),
    'cifar_b': net_shapes((1, 1, 1), filters=4, classes=10, is_cifar=True),
}
