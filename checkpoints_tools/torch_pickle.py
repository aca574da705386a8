"""Read PyTorch's .pt, .pth and .th files without PyTorch, and without running code that a file asks for.

A pickle is a program for a small stack machine. Here Python's own machine runs it, restricted to the parts of a state
dict: numbers, strings, tuples, lists, dicts and tensors, which are only descriptions until their values are read. What
training programs store beside the weights, such as an argparse.Namespace, a path or a number of numpy, is passed over:
it is known by its class, and never made. Any other function, class or instruction is refused by its name. What a file
declares is first compared with its size.

The machine is `pickle._Unpickler`, the `pickle.Unpickler` written in Python, because only its instructions can be
chosen. The one in C hashes any key: a million nested tuples overflow its stack, and 60 tuples, each with the one before
in it twice, keep it busy forever. It also makes a memo of any length that a file names, and takes memory for a string
before it knows whether the file has so many bytes.

The formats are those of torch/serialization.py. Since PyTorch 1.6 it is a zip of data.pkl and data/KEY. Before, it was
five pickles (magic number, protocol, byte order, the object, the storages' keys) and then the storages.
"""

import functools
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from checkpoints_tools.source import reading
from official_resnet import bounds, files
from official_resnet.errors import UserError

KIND = 'a .pt, .pth or .th file of PyTorch'
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
MAX_SIZE = 1 << 63  # of a dimension, an offset, or a number that is a key
MAX_NAME = 1000  # characters of a key; a network's longest has about 60
_ONLY_WEIGHTS = 'save only the weights, by torch.save(model.state_dict(), PATH) or as .safetensors'
_FLOATS = {'Float': '<f4', 'Double': '<f8', 'Half': '<f2', 'BFloat16': ml_dtypes.bfloat16}
_INTEGERS = {'Long': '<i8', 'Int': '<i4', 'Short': '<i2', 'Char': 'i1', 'Byte': 'u1', 'Bool': '?'}


class Storage(NamedTuple):
    """Consecutive values in a file."""

    dtype: np.dtype
    key: str
    num_values: int

    @property
    def num_bytes(self) -> int:
        """The number of bytes in the file."""
        return self.num_values * self.dtype.itemsize


class Tensor(NamedTuple):
    """A view of a storage. Offset and strides are in values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Inert:
    """A class that is data but no part of the weights, and whatever a file makes of it; nothing is kept of either."""


def _refused(path, what):
    """Return the error for a file that is not damaged, but asks for more than weights."""
    return UserError(f'{path} {what}; nothing was run: {_ONLY_WEIGHTS}')


def load(path: str | os.PathLike) -> tuple[object, Callable[[Tensor], np.ndarray]]:
    """Return (object, values): the saved object with Tensors in it, and a function Tensor -> ndarray.

    Only the pickle is read; the function reads the values.

    Raises:
        UserError: The file is damaged or not PyTorch's, or it holds more than data.
    """
    with reading(path, KIND), open(path, 'rb', opener=files.plain) as file:
        saved, data = _read_zip(path) if zipfile.is_zipfile(file) else _read_legacy(path)
    return saved, functools.partial(_value, path, data)


def _read_zip(path):
    """Return (object, function Storage -> its bytes) of the zip format; zipfile checks the bytes' checksum."""
    archive, size = zipfile.ZipFile(path), os.path.getsize(path)
    entries = {info.filename: info for info in archive.infolist()}
    for name, info in entries.items():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise ValueError(f'{name[:80]!r} is compressed or longer than the file')
    if sum(info.file_size for info in entries.values()) > size:
        raise ValueError('its parts are longer than the file')
    pickles = [name for name in entries if name.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise ValueError('a zip without data.pkl')
    bounds.require('pickle_bytes', entries[pickles[0]].file_size, f"the pickle in '{path}'", _ONLY_WEIGHTS)
    folder = pickles[0].removesuffix('data.pkl')
    order = entries.get(folder + 'byteorder')
    if order and (order.file_size > len('little') or archive.read(order) != b'little'):
        raise ValueError('written on a big-endian machine')
    machine = _Unpickler(io.BytesIO(archive.read(pickles[0])), path)
    saved = machine.load()
    for storage in machine.storages.values():
        found = entries[f'{folder}data/{storage.key}'].file_size
        if found != storage.num_bytes:
            raise ValueError(f'storage {storage.key!r} has {found} bytes, not {storage.num_bytes}')
    return saved, lambda storage: archive.read(f'{folder}data/{storage.key}')


def _read_legacy(path):
    """Return (object, function Storage -> its bytes) of the format before PyTorch 1.6."""
    with open(path, 'rb', opener=files.plain) as file:
        head, size = io.BytesIO(file.read(bounds.limit('pickle_bytes'))), file.seek(0, io.SEEK_END)
    if head.getbuffer()[:2] == b'PK':
        raise ValueError('a zip that is cut off')
    if _Unpickler(head, path).load() != LEGACY_MAGIC or _Unpickler(head, path).load() != LEGACY_PROTOCOL:
        raise ValueError('neither zip nor the magic number of older files')
    if _require(_Unpickler(head, path).load(), dict).get('little_endian') is not True:
        raise ValueError('written on a big-endian machine')
    machine = _Unpickler(head, path)
    saved = machine.load()
    keys = [_require(key, str) for key in _require(_Unpickler(head, path).load(), list)]
    position, starts = head.tell(), {}
    if set(keys) != machine.storages.keys() or len(keys) != len(machine.storages):
        raise ValueError('its list of storages differs from that of its tensors')
    for key in keys:
        storage = machine.storages[key]
        if struct.unpack('<q', _bytes(path, position, 8)) != (storage.num_values,):
            raise ValueError(f'storage {key!r} does not have the declared length')
        starts[key] = position + 8
        position += 8 + storage.num_bytes
        if position > size:
            raise ValueError(f'cut off: {size} bytes, but at least {position} are declared')
    return saved, lambda storage: _bytes(path, starts[storage.key], storage.num_bytes)


def _bytes(path, start, count):
    with open(path, 'rb', opener=files.plain) as file:
        file.seek(start)
        return file.read(count)


def _value(path, data, tensor):
    """Return the values of a Tensor, read-only."""
    storage = tensor.storage
    with reading(path, KIND):
        array = np.frombuffer(data(storage), storage.dtype, storage.num_values)[tensor.offset :]
        strides = [stride * array.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(array, tensor.shape, strides, writeable=False)


class _Unpickler(pickle._Unpickler):
    """Python's machine for pickles: `load` runs one pickle of a file and returns what it built."""

    def __init__(self, file, path):
        super().__init__(file, encoding='latin-1')  # for strings from Python 2
        self.path, self.storages, self.dispatch = path, {}, _Instructions(path)

    def find_class(self, module, name) -> Any:
        """Return our function in place of PyTorch's."""
        if (module, name) not in _FUNCTIONS:
            raise _refused(self.path, f'holds more than weights: it asks for {f"{module}.{name}"[:100]!r}')
        return _FUNCTIONS[module, name]

    def persistent_load(self, pid) -> Any:
        """Return the Storage that a file declares."""
        kind, storage_type, key, _, num_values, *view = _require(pid, tuple)
        if kind != 'storage' or view not in ([], [None]):
            raise ValueError('a storage is part of another')
        storage = Storage(_require(storage_type, np.dtype), _require(key, str), _count(num_values))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f'storage {key!r} is declared twice, differently')
        return storage

    def update(self, items):
        """Put [key, value, key, value, ...] into the dict on the stack."""
        _require(self.stack[-1], dict).update(_dict(zip(items[::2], items[1::2], strict=True)))

    def _load_dict(self):
        items = self.pop_mark()
        self.append({})
        self.update(items)

    def _load_build(self):
        self.stack.pop()  # attributes of an OrderedDict, for example a state dict's _metadata, or of an Inert value
        _require(self.stack[-1], (dict, Inert))

    def _load_reduce(self):
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, Inert):  # of which nothing is made: the class stands for its values
            long = (one for one in _require(arguments, tuple) if isinstance(one, (list, tuple, dict)))
            self.dispatch.left -= sum(map(len, long))  # a list that is built once can be copied in each call
            self.stack[-1] = function(*arguments)

    def _load_put(self):
        self.memo[_count(int(self.readline()[:-1]))] = self.stack[-1]


# The instructions that are kept. The instructions that fill dicts are ours, and so are PUT, which takes numbers of any
# length, BUILD, which would set attributes, and REDUCE and NEWOBJ. They alone call functions, and the only ones on the
# stack are those of `find_class`.
_KEPT = (
    'PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT '
    'UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES '
    'EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT '
    'BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID'
)
_METHODS = {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _KEPT.split())} | {
    pickle.DICT[0]: _Unpickler._load_dict,
    pickle.SETITEM[0]: lambda machine: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    pickle.SETITEMS[0]: lambda machine: machine.update(machine.pop_mark()),
    pickle.PUT[0]: _Unpickler._load_put,
    pickle.BUILD[0]: _Unpickler._load_build,
    pickle.REDUCE[0]: _Unpickler._load_reduce,
    pickle.NEWOBJ[0]: _Unpickler._load_reduce,
}


class _Instructions:
    """The table in which the machine looks up the instructions of one pickle, and counts them."""

    def __init__(self, path):
        self.path, self.left = path, bounds.limit('pickle_instructions')

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            most = bounds.limit('pickle_instructions')
            raise _refused(self.path, f'has a pickle of more than {most} instructions')
        if code not in _METHODS:
            name = pickletools.code2op[chr(code)].name
            raise _refused(self.path, f'holds more than weights: the pickle instruction {name}')
        return _METHODS[code]


def _dict(pairs=()):
    """Return the dict of (key, value) pairs."""
    return {_key(key): value for key, value in pairs}


def _key(value):
    """Return a short string or a number of 64 bits. Others are refused unhashed: hashing might never end.

    Of longer numbers, any quantity has the same hash, and names are joined with those of the dicts around theirs.
    """
    if isinstance(value, int):
        _count(abs(value))
    elif len(_require(value, str)) > MAX_NAME:
        raise ValueError(f'a key has {len(value)} characters, more than the {MAX_NAME} that are read')
    return value


def _require(value, kind):
    if not isinstance(value, kind):
        raise ValueError(f'a {type(value).__name__} is out of place')
    return value


def _count(number):
    if not 0 <= _require(number, int) < MAX_SIZE:
        raise ValueError('a size is below 0 or beyond 64 bits')
    return number


def _tensor(storage, offset, shape, strides, requires_grad=False, backward_hooks=None, metadata=None):
    """Return a Tensor that lies inside its storage and has no more values than the storage."""
    _require(storage, Storage)
    shape, strides = ([_count(n) for n in _require(numbers, tuple)] for numbers in (shape, strides))
    if len(shape) > 8 or math.prod(shape) > storage.num_values:
        raise ValueError(f'a tensor of {shape[:8]} values in a storage of {storage.num_values}')
    last = _count(offset) + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.num_values:
        raise ValueError(f'a tensor of {shape} ends outside of its storage')
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_FUNCTIONS = {
    ('collections', 'OrderedDict'): _dict,
    ('collections', 'defaultdict'): lambda factory=None: {},
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): lambda data, requires_grad=False, backward_hooks=None: _require(
        data, Tensor
    ),
} | {('torch', f'{name}Storage'): np.dtype(dtype) for name, dtype in (_FLOATS | _INTEGERS).items()}
# Module -> the classes that training programs store beside the weights: in arguments, schedules and records. Under
# protocol 2, Python calls builtins __builtin__ and range xrange, and writes bytes by _codecs.encode.
_BUILTINS = 'bool bytes complex dict float frozenset int list range set slice str tuple xrange'
_ARRAYS, _PATHS = '_reconstruct scalar', 'Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath'
_DATA = {
    '__builtin__': _BUILTINS,
    'builtins': _BUILTINS,
    '_codecs': 'encode',
    'argparse': 'Namespace',
    'collections': 'Counter',
    'datetime': 'date datetime time timedelta timezone',
    'numpy': 'dtype ndarray',
    'numpy.core.multiarray': _ARRAYS,
    'numpy._core.multiarray': _ARRAYS,
    'pathlib': _PATHS,
    'pathlib._local': _PATHS,
    'torch': 'Size device bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128',
    'types': 'SimpleNamespace',
}
_FUNCTIONS |= {(module, name): Inert() for module, names in _DATA.items() for name in names.split()}
