"""Read PyTorch's .pt, .pth and .th without PyTorch, and run nothing that a file asks for.

A pickle is a program for a small stack machine. The one below knows what a state dict consists of: numbers,
strings, tuples, lists, dicts and tensors, which stay descriptions until their values are asked for. Any other
function, class or instruction is refused by its name. What a file declares is checked against its size first.

Formats, of torch/serialization.py: a zip of data.pkl and data/KEY since PyTorch 1.6; before, five pickles in
a row (magic number, protocol, byte order, the object, the storages' keys) and then the storages.
"""

import collections
import contextlib
import functools
import io
import math
import pickletools
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np

from official_resnet.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 8 << 20  # bytes; ResNet-152 has 150 KB of pickle
MAX_INSTRUCTIONS = 1_000_000  # ResNet-152 has 30,000
DTYPES = {
    'FloatStorage': '<f4',
    'DoubleStorage': '<f8',
    'HalfStorage': '<f2',
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': '<i8',
    'IntStorage': '<i4',
    'ShortStorage': '<i2',
    'CharStorage': 'i1',
    'ByteStorage': 'u1',
    'BoolStorage': '?',
}
_FUNCTIONS = {
    ('collections', 'OrderedDict'),
    ('torch._utils', '_rebuild_tensor'),
    ('torch._utils', '_rebuild_tensor_v2'),
    ('torch._utils', '_rebuild_parameter'),
} | {('torch', name) for name in DTYPES}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
_VALUES = {
    'BININT',
    'BININT1',
    'BININT2',
    'INT',
    'LONG',
    'LONG1',
    'LONG4',
    'FLOAT',
    'BINFLOAT',
    'UNICODE',
    'BINUNICODE',
    'SHORT_BINUNICODE',
    'BINUNICODE8',
    'BINSTRING',
    'SHORT_BINSTRING',
    'BINBYTES',
    'SHORT_BINBYTES',
}
_DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)

Storage = collections.namedtuple('Storage', 'dtype key num_values')
Tensor = collections.namedtuple('Tensor', 'storage offset shape strides')
_Span = collections.namedtuple('_Span', 'start num_bytes crc')  # of a storage in its file
_Global = collections.namedtuple('_Global', 'module name')


class _Refused(Exception):
    """A file that is whole, but asks for more than weights."""


def load(path):
    """Return (object, values): what was saved, of dicts and Tensors, and a function Tensor -> ndarray.

    Nothing but the pickle is read before a value is asked for.

    Raises:
        UserError: damaged, no file of PyTorch's, or one that holds more than data.
    """
    with _explained(path), open(path, 'rb') as file:
        is_zip = zipfile.is_zipfile(file)
        file.seek(0)
        saved, spans = _read_zip(file) if is_zip else _read_legacy(file)
    return saved, functools.partial(_value, path, spans)


@contextlib.contextmanager
def _explained(path):
    """Make a UserError of whatever a strange file leads to."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'cannot read {path}: {error.strerror or error}; pass a .pt, .pth, .th or .safetensors file'
        ) from error
    except _Refused as error:
        raise UserError(
            f'{path} {error}; nothing was run: save the weights alone, torch.save(model.state_dict(), '
            'PATH), or as .safetensors'
        ) from error
    except _DAMAGE as error:
        reason = ' '.join(str(error).split())[:120] or type(error).__name__
        raise UserError(f'{path} is damaged or no file of PyTorch ({reason}); get it again') from error


def _read_zip(file):
    """Return (object, {key of a storage: _Span}) of the zip format."""
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        for name, info in entries.items():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise ValueError(f'{name[:80]!r} is compressed or longer than the file')
        if sum(info.file_size for info in entries.values()) > size:
            raise ValueError('its parts are longer than the file')
        pickles = [name for name in entries if name.endswith('/data.pkl')]
        if len(pickles) != 1 or entries[pickles[0]].file_size > MAX_PICKLE:
            raise ValueError('a zip without data.pkl, or one of more than 8 MB')
        folder = pickles[0].removesuffix('data.pkl')
        if folder + 'byteorder' in entries and archive.read(folder + 'byteorder') != b'little':
            raise ValueError('written on a big-endian machine')
        machine = _Machine()
        saved = machine.run(io.BytesIO(archive.read(pickles[0])))
    spans = {}
    for storage in machine.storages.values():
        info = entries[f'{folder}data/{storage.key}']
        if info.file_size != _num_bytes(storage):
            raise ValueError(f'storage {storage.key} has {info.file_size} bytes, not {_num_bytes(storage)}')
        file.seek(info.header_offset)
        header = struct.unpack('<4s22xHH', file.read(30))  # a local file header: the lengths of name and extra field
        if header[0] != b'PK\x03\x04':
            raise ValueError(f'storage {storage.key} is not where the zip says')
        spans[storage.key] = _Span(file.tell() + header[1] + header[2], info.file_size, info.CRC)
    return saved, spans


def _read_legacy(file):
    """Return (object, {key of a storage: _Span}) of the format before PyTorch 1.6."""
    head = io.BytesIO(file.read(MAX_PICKLE))
    if _Machine().run(head) != LEGACY_MAGIC or _Machine().run(head) != LEGACY_PROTOCOL:
        raise ValueError('neither zip nor the magic number of older files')
    if _require(_Machine().run(head), dict).get('little_endian') is not True:
        raise ValueError('written on a big-endian machine')
    machine = _Machine()
    saved = machine.run(head)
    keys, position, spans = _Machine().run(head), head.tell(), {}
    size = file.seek(0, io.SEEK_END)
    if set(keys) != machine.storages.keys() or len(keys) != len(machine.storages):
        raise ValueError('its list of storages is not that of its tensors')
    for key in keys:
        storage = machine.storages[key]
        file.seek(position)
        if struct.unpack('<q', file.read(8)) != (storage.num_values,):
            raise ValueError(f'storage {key} is not of the length declared')
        spans[key] = _Span(position + 8, _num_bytes(storage), None)
        position += 8 + _num_bytes(storage)
        if position > size:
            raise ValueError(f'cut off: {size} bytes, {position} and more are declared')
    return saved, spans


def _value(path, spans, tensor):
    """Return the values of a Tensor, read-only."""
    storage, span = tensor.storage, spans[tensor.storage.key]
    with _explained(path), open(path, 'rb') as file:
        file.seek(span.start)
        data = file.read(span.num_bytes)
        if span.crc is not None and zlib.crc32(data) != span.crc:
            raise ValueError(f'storage {storage.key} has another checksum than the zip says')
        array = np.frombuffer(data, storage.dtype, storage.num_values)[tensor.offset :]
        strides = [stride * array.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(array, tensor.shape, strides, writeable=False)


def _num_bytes(storage):
    return storage.num_values * np.dtype(storage.dtype).itemsize


class _Machine:
    """The stack machine: `run` one pickle of a file and return what it built."""

    def __init__(self):
        self.stack, self.outer, self.memo, self.storages = [], [], {}, {}

    def run(self, file):
        """Return the object of the pickle at the file's position, and leave the file behind its end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_INSTRUCTIONS:
                raise _Refused(f'is a pickle of more than {MAX_INSTRUCTIONS} instructions')
            self._step(opcode.name, argument)
        return self.stack.pop()

    def _step(self, name, argument):
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            self.memo[len(self.memo) if name == 'MEMOIZE' else argument] = self.stack[-1]
        elif name in ('GET', 'BINGET', 'LONG_BINGET'):
            self.stack.append(self.memo[argument])
        elif name not in ('PROTO', 'FRAME', 'STOP'):
            method = getattr(self, '_' + name.lower(), None)
            if method is None:
                raise _Refused(f'holds more than weights: the pickle instruction {name}')
            method(*([] if argument is None else [argument]))

    def _mark(self):
        self.outer.append(self.stack)
        self.stack = []

    def _since_mark(self):
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _empty_dict(self):
        self.stack.append({})

    def _empty_list(self):
        self.stack.append([])

    def _tuple(self):
        items = tuple(self._since_mark())
        self.stack.append(items)

    def _list(self):
        items = self._since_mark()
        self.stack.append(items)

    def _dict(self):
        items = self._since_mark()
        self.stack.append(_paired(items))

    def _tuple1(self):
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self):
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self):
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _append(self):
        item = self.stack.pop()
        _require(self.stack[-1], list).append(item)

    def _appends(self):
        items = self._since_mark()
        _require(self.stack[-1], list).extend(items)

    def _setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        _require(self.stack[-1], dict).update(_paired([key, value]))

    def _setitems(self):
        items = self._since_mark()
        _require(self.stack[-1], dict).update(_paired(items))

    def _build(self):
        self.stack.pop()  # attributes of an OrderedDict, as a state dict's _metadata
        _require(self.stack[-1], dict)

    def _global(self, name):
        self._push_global(*name.split(' ', 1))

    def _stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        self._push_global(_require(module, str), _require(name, str))

    def _push_global(self, module, name):
        if (module, name) not in _FUNCTIONS:
            raise _Refused(f'holds more than weights: it asks for {f"{module}.{name}"[:100]!r}')
        self.stack.append(_Global(module, name))

    def _reduce(self):
        arguments, function = _require(self.stack.pop(), tuple), _require(self.stack.pop(), _Global)
        if function.name == 'OrderedDict':
            pairs = arguments[0] if arguments else []
            self.stack.append(_paired([item for pair in pairs for item in pair]))
        elif function.name == '_rebuild_parameter':
            self.stack.append(_require(arguments[0], Tensor))
        elif function.name.startswith('_rebuild_tensor'):
            self.stack.append(_tensor(*arguments[:4]))
        else:
            raise _Refused(f'holds more than weights: it calls {function.name!r}')

    def _binpersid(self):
        kind, storage_type, key, _, num_values, *view = _require(self.stack.pop(), tuple)
        if kind != 'storage' or view not in ([], [None]):
            raise ValueError('a storage that is part of another')
        storage = Storage(DTYPES[_require(storage_type, _Global).name], _require(key, str), _count(num_values))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f'storage {key} is declared twice, differently')
        self.stack.append(storage)


def _paired(items):
    """[key, value, key, value ...] -> dict."""
    return {_require(key, (str, int)): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _require(value, kind):
    if not isinstance(value, kind):
        raise ValueError(f'a {type(value).__name__} where none belongs')
    return value


def _count(number):
    if _require(number, int) < 0:
        raise ValueError(f'a negative size {number}')
    return number


def _tensor(storage, offset, shape, strides):
    """Return a Tensor that lies inside its storage and has no more values than that."""
    _require(storage, Storage)
    shape, strides = ([_count(n) for n in _require(numbers, tuple)] for numbers in (shape, strides))
    if len(shape) > 8 or math.prod(shape) > storage.num_values:
        raise ValueError(f'a tensor of {shape[:8]} values in a storage of {storage.num_values}')
    last = _count(offset) + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.num_values:
        raise ValueError(f'a tensor of {shape} ends outside of its storage')
    return Tensor(storage, offset, tuple(shape), tuple(strides))
