"""Read PyTorch's .pt, .pth and .th without PyTorch, and run nothing that a file asks for.

A pickle is a program for a small stack machine. Python's own machine runs it here, narrowed to what a state dict
consists of: numbers, strings, tuples, lists, dicts and tensors, which stay descriptions until their values are asked
for. Any other function, class or instruction is refused by its name. What a file declares is checked against its size
first.

The machine is `pickle._Unpickler`, which is `pickle.Unpickler` written in Python: only that one lets its instructions
be chosen. The one written in C hashes a key before anybody can look at it, and a key of a million nested tuples
overflows its stack, one of 60 tuples that each hold the one before twice keeps it busy for ever; it fills a memo of
any length that a file names, and takes memory for a string before it knows whether the file has so many bytes.

Formats, of torch/serialization.py: a zip of data.pkl and data/KEY since PyTorch 1.6; before, five pickles in
a row (magic number, protocol, byte order, the object, the storages' keys) and then the storages.
"""

import contextlib
import functools
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from checkpoints_tools.source import reading
from official_resnet.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 8 << 20  # bytes; ResNet-152 has 150 KB of pickle
MAX_INSTRUCTIONS = 1_000_000  # ResNet-152 has 30,000
MAX_SIZE = 1 << 63  # of any dimension or offset
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


class Storage(NamedTuple):
    """A row of values in a file."""

    dtype: np.dtype
    key: str
    num_values: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Span(NamedTuple):
    """Where a storage is in its file; the checksum is None where the file has none."""

    start: int
    num_bytes: int
    crc: int | None


class _Refused(UserError):
    """A file that is whole, but asks for more than weights."""


def load(path: str | os.PathLike) -> tuple[object, Callable[[Tensor], np.ndarray]]:
    """Return (object, values): what was saved, of dicts and Tensors, and a function Tensor -> ndarray.

    Nothing but the pickle is read before a value is asked for.

    Raises:
        UserError: the file is damaged or not of PyTorch, or it holds more than data.
    """
    with _explained(path), open(path, 'rb') as file:
        is_zip = zipfile.is_zipfile(file)
        file.seek(0)
        saved, spans = _read_zip(file) if is_zip else _read_legacy(file)
    return saved, functools.partial(_value, path, spans)


@contextlib.contextmanager
def _explained(path) -> Iterator[None]:
    """Make a UserError of whatever a strange file leads to."""
    try:
        with reading(path, 'a .pt, .pth or .th file of PyTorch'):
            yield
    except _Refused as error:
        raise UserError(
            f'{path} {error}; nothing was run: save the weights alone, torch.save(model.state_dict(), '
            'PATH), or as .safetensors'
        ) from error


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
        order = entries.get(folder + 'byteorder')
        if order and (order.file_size > len('little') or archive.read(order) != b'little'):
            raise ValueError('written on a big-endian machine')
        machine = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        saved = machine.load()
    spans = {}
    for storage in machine.storages.values():
        info = entries[f'{folder}data/{storage.key}']
        if info.file_size != _num_bytes(storage):
            raise ValueError(f'storage {storage.key!r} has {info.file_size} bytes, not {_num_bytes(storage)}')
        file.seek(info.header_offset)
        header = struct.unpack('<4s22xHH', file.read(30))  # a local file header: the lengths of name and extra field
        if header[0] != b'PK\x03\x04':
            raise ValueError(f'storage {storage.key!r} is not where the zip says')
        spans[storage.key] = _Span(file.tell() + header[1] + header[2], info.file_size, info.CRC)
    return saved, spans


def _read_legacy(file):
    """Return (object, {key of a storage: _Span}) of the format before PyTorch 1.6."""
    head = io.BytesIO(file.read(MAX_PICKLE))
    if head.getbuffer()[:2] == b'PK':
        raise ValueError('a zip that is cut off')
    if _Unpickler(head).load() != LEGACY_MAGIC or _Unpickler(head).load() != LEGACY_PROTOCOL:
        raise ValueError('neither zip nor the magic number of older files')
    if _require(_Unpickler(head).load(), dict).get('little_endian') is not True:
        raise ValueError('written on a big-endian machine')
    machine = _Unpickler(head)
    saved = machine.load()
    keys = [_require(key, str) for key in _require(_Unpickler(head).load(), list)]
    position, spans = head.tell(), {}
    size = file.seek(0, io.SEEK_END)
    if set(keys) != machine.storages.keys() or len(keys) != len(machine.storages):
        raise ValueError('its list of storages is not that of its tensors')
    for key in keys:
        storage = machine.storages[key]
        file.seek(position)
        if struct.unpack('<q', file.read(8)) != (storage.num_values,):
            raise ValueError(f'storage {key!r} is not of the length declared')
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
            raise ValueError(f'storage {storage.key!r} has another checksum than the zip says')
        array = np.frombuffer(data, storage.dtype, storage.num_values)[tensor.offset :]
        strides = [stride * array.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(array, tensor.shape, strides, writeable=False)


def _num_bytes(storage):
    return storage.num_values * storage.dtype.itemsize


class _Unpickler(pickle._Unpickler):
    """Python's machine for pickles: `load` one pickle of a file and return what it built."""

    def __init__(self, file):
        super().__init__(file, encoding='latin-1')  # of strings from Python 2
        self.storages, self.dispatch = {}, _Instructions()

    def find_class(self, module, name):
        """Return the function of ours that stands for one of PyTorch's."""
        if (module, name) not in _FUNCTIONS:
            raise _Refused(f'holds more than weights: it asks for {f"{module}.{name}"[:100]!r}')
        return _FUNCTIONS[module, name]

    def persistent_load(self, pid):
        """Return the Storage that a file declares."""
        kind, storage_type, key, _, num_values, *view = _require(pid, tuple)
        if kind != 'storage' or view not in ([], [None]):
            raise ValueError('a storage that is part of another')
        storage = Storage(_require(storage_type, np.dtype), _require(key, str), _count(num_values))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f'storage {key!r} is declared twice, differently')
        return storage

    def _load_dict(self):
        self.append(_paired(self.pop_mark()))

    def _load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        _require(self.stack[-1], dict).update(_paired([key, value]))

    def _load_setitems(self):
        items = self.pop_mark()
        _require(self.stack[-1], dict).update(_paired(items))

    def _load_build(self):
        self.stack.pop()  # attributes of an OrderedDict, as a state dict's _metadata
        _require(self.stack[-1], dict)


# What is left of the machine. No instruction here calls or changes an object but REDUCE, which finds no function on
# the stack but those of `find_class`; those that look into dicts, of which BUILD would set attributes, are ours.
_KEPT = (
    'PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT '
    'UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES '
    'EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT '
    'PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BINPERSID'
)
_METHODS = {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _KEPT.split())} | {
    pickle.DICT[0]: _Unpickler._load_dict,
    pickle.SETITEM[0]: _Unpickler._load_setitem,
    pickle.SETITEMS[0]: _Unpickler._load_setitems,
    pickle.BUILD[0]: _Unpickler._load_build,
}


class _Instructions:
    """The table in which the machine looks up each instruction of one pickle."""

    def __init__(self):
        self.left = MAX_INSTRUCTIONS

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            raise _Refused(f'is a pickle of more than {MAX_INSTRUCTIONS} instructions')
        if code not in _METHODS:
            raise _Refused(f'holds more than weights: the pickle instruction {pickletools.code2op[chr(code)].name}')
        return _METHODS[code]


def _paired(items):
    """[key, value, key, value ...] -> dict; other keys than these are not even hashed, which may never end."""
    return {_require(key, (str, int)): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _require(value, kind):
    if not isinstance(value, kind):
        raise ValueError(f'a {type(value).__name__} where none belongs')
    return value


def _count(number):
    if not 0 <= _require(number, int) < MAX_SIZE:
        raise ValueError('a size below 0 or beyond 64 bits')
    return number


def _ordered_dict(pairs=()):
    return {_require(key, (str, int)): value for key, value in pairs}


def _parameter(data, requires_grad=False, backward_hooks=None):
    return _require(data, Tensor)


def _tensor(storage, offset, shape, strides, requires_grad=False, backward_hooks=None, metadata=None):
    """Return a Tensor that lies inside its storage and has no more values than that."""
    _require(storage, Storage)
    shape, strides = ([_count(n) for n in _require(numbers, tuple)] for numbers in (shape, strides))
    if len(shape) > 8 or math.prod(shape) > storage.num_values:
        raise ValueError(f'a tensor of {shape[:8]} values in a storage of {storage.num_values}')
    last = _count(offset) + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.num_values:
        raise ValueError(f'a tensor of {shape} ends outside of its storage')
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_FUNCTIONS = {
    ('collections', 'OrderedDict'): _ordered_dict,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): _parameter,
} | {('torch', name): np.dtype(dtype) for name, dtype in DTYPES.items()}
