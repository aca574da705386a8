"""PyTorch's pickles without PyTorch: both formats; nothing runs, crashes or takes memory, whatever a file asks for."""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import pathlib
import pickle
import pickletools
import struct
import sys
import time
import tracemalloc
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from fixtures import torch_files
from fixtures.conversion import refuse
from fixtures.torch_files import Call, Global, Pickled, Stored, dumped, pickled
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_tools import from_torch, torch_pickle
from official_resnet.errors import UserError

MAX_MEMORY, MAX_SECONDS = 300e6, 60  # bytes and CPU time of the worst of these files; most take a millisecond
EVENTS = None  # what Python's audit reports while it is a list
RUNS = {'import', 'exec', 'compile', 'os', 'subprocess', 'socket', 'ctypes', 'marshal', 'pickle', 'shutil', 'code'}


def _audit(name, arguments):
    if EVENTS is not None:
        EVENTS.append((name, arguments))


sys.addaudithook(_audit)  # for good: a hook cannot be taken away


@contextlib.contextmanager
def nothing_but(path):
    """Fail if anything is run or opened but `path`, a function is changed, or much memory or CPU time is taken."""
    global EVENTS
    start, EVENTS = time.process_time(), []
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        events, EVENTS = EVENTS, None
    assert {str(arguments[0]) for name, arguments in events if name == 'open'} <= {str(path)}
    assert not [event for event in events if event[0].split('.')[0] in RUNS or event[0] == 'object.__setattr__']
    assert peak < MAX_MEMORY and time.process_time() - start < MAX_SECONDS


def refuse_quietly(path, message):
    """Reading a file ends in one line with `message` in it, and does nothing else."""
    with nothing_but(path):
        refuse(message, from_torch.read, path)


def test_types_views_and_strides(tmp_path):
    path = tmp_path / 'net.pt'
    data = np.arange(12, dtype='float32')
    tensors = {
        'transposed': torch_files.tensor('a', 'float32', 12, (4, 3), (1, 4)),
        'tail': torch_files.tensor('a', 'float32', 12, (2, 2), None, 8),
        'parameter': Call(
            Global('torch._utils', '_rebuild_parameter'), (torch_files.tensor('a', 'float32', 12, (12,)), True, None)
        ),
        'brain': torch_files.tensor('b', 'bfloat16', 2, (2,)),
        'count': torch_files.tensor('c', 'int64', 1, ()),
    }
    torch_files.write_zip_of(
        path,
        pickled(tensors),
        {'a': data.tobytes(), 'b': np.array([1.5, -2], ml_dtypes.bfloat16).tobytes(), 'c': struct.pack('<q', 7)},
    )
    read = from_torch.read(path)
    np.testing.assert_array_equal(read['transposed'], data.reshape(3, 4).T)
    np.testing.assert_array_equal(read['tail'], [[8, 9], [10, 11]])
    np.testing.assert_array_equal(read['parameter'], data)
    np.testing.assert_array_equal(read['brain'].astype('float32'), [1.5, -2])
    assert read['count'] == 7 and from_torch.shapes(path)['count'] == ((), 'int64')


# What training programs store beside the weights.
NOON = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)
ARGS = argparse.Namespace(
    arch='resnet50', lr=0.1, output_dir=pathlib.Path('/a/b'), milestones=[30, 60], inner=argparse.Namespace(x=None)
)
BESIDE = {
    'Namespace': ARGS,
    'SimpleNamespace': types.SimpleNamespace(lr=0.1, inner={'x': (1, 2)}),
    'Counter': collections.Counter({30: 1, 60: 1}),
    'defaultdict': collections.defaultdict(list, {'loss': [1.5, 2.5]}),
    'OrderedDict': collections.OrderedDict(a=1),
    'paths': [pathlib.Path('a'), pathlib.PurePath('/b'), pathlib.PureWindowsPath('C:/c')],
    'times': [NOON, NOON.date(), NOON.time(), datetime.timedelta(1)],
    'numbers': [
        np.float64(0.5),
        np.float32(0.5),
        np.int64(7),
        np.bool_(True),
        np.dtype('f4'),
        1j,
        b'',
        b'ab',
        range(3),
    ],
    'arrays': [np.arange(3.0), np.zeros((2, 2), 'int64', 'F'), np.array(['a', 'bc']), np.array(5)],
    'sets': [{'a', 'b'}, frozenset('c')],
}
NEW = {'sets': (2,)}  # from protocol 4 on, sets have instructions of their own, which are refused


@pytest.mark.parametrize(
    'value',
    [
        *(
            pytest.param(Pickled(value, protocol), id=f'{name}, protocol {protocol}')
            for name, value in BESIDE.items()
            for protocol in NEW.get(name, (2, 4))
        ),
        pytest.param(Call(Global('torch', 'Size'), ((2, 3),)), id='torch.Size'),
        pytest.param(Call(Global('torch', 'device'), ('cuda', 0)), id='torch.device'),
        pytest.param(Global('torch', 'bfloat16'), id='torch.dtype'),
        pytest.param(Call(Global('numpy.core.multiarray', 'scalar'), (Global('numpy', 'dtype'), 'x')), id='NumPy 1'),
        pytest.param(Call(Global('pathlib._local', 'PosixPath'), ('/', 'a')), id='Python 3.13'),
    ],
)
@pytest.mark.parametrize('is_zip', [True, False])
def test_what_is_stored_beside_the_weights_is_passed_over(value, is_zip, tmp_path):
    path, array = tmp_path / 'net.pth', np.ones(3, 'float32')
    write = torch_files.write_zip if is_zip else torch_files.write_legacy
    write(path, {'a': array}, lambda tensors: {'args': value, 'state_dict': tensors, 'again': [value, {'args': value}]})
    with nothing_but(path):
        read = from_torch.read(path)
        np.testing.assert_array_equal(read['a'], array)
        saved, _ = torch_pickle.load(path)
    assert list(read) == ['a'] and list(saved) == ['args', 'state_dict', 'again']
    made = saved['args'] if isinstance(saved['args'], list) else [saved['args']]
    assert all(
        isinstance(one, (dict, bytes, torch_pickle.Inert)) and not getattr(one, '__dict__', None) for one in made
    )


@pytest.mark.parametrize('is_zip', [True, False])
@pytest.mark.parametrize(
    'module,function',
    [
        ('os', 'system'),
        ('torch.storage', '_load_from_bytes'),
        ('torchvision.models.resnet', 'ResNet'),
        ('collections', 'OrderedDict.__init__'),
        ('argparse', 'FileType'),
        ('builtins', 'getattr'),
        ('__builtin__', 'eval'),
        ('_codecs', 'decode'),
        ('numpy', 'load'),
        ('pathlib', 'Path.unlink'),
        ('datetime', 'sys'),
        ('torch', 'load'),
    ],
)
def test_what_would_run_code_is_refused_by_name(module, function, is_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = {'conv1.weight': Call(Global(module, function), ('touch RAN',))}
    if is_zip:
        torch_files.write_zip_of('evil.pth', pickled(value), {})
    else:
        torch_files.write_legacy('evil.pth', {}, lambda tensors: value)
    refuse_quietly('evil.pth', f"'{module}.{function}'; nothing was run")
    assert [path.name for path in tmp_path.iterdir()] == ['evil.pth']


DEEP_TUPLE = b')' + b'\x85' * 250_000  # whose hash overflows the stack of Python itself
ENDLESS_TUPLE = b')' + b'q\x00h\x00\x86' * 60  # of 2**60 leaves, for whoever takes its hash
ORDERED = b'ccollections\nOrderedDict\n'
HASH_MODULUS = sys.hash_info.modulus
TENSOR_IN = (
    b'X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n'
    b'X\x01\x00\x00\x000NK\x01tQK\x00))tRs'
)


def _long(number):
    return number.to_bytes(11, 'little', signed=True)


@pytest.mark.parametrize(
    'instructions,reason',
    [
        (b'(X\x01\x00\x00\x00acos\nsystem\no', "asks for 'os.system'"),
        (b'\x8c\x02os\x8c\x06system\x93', "asks for 'os.system'"),
        (ORDERED + b'}X\x0b\x00\x00\x00__globals__Nsb', 'damaged'),  # BUILD would set attributes of a function
        (b'cargparse\nNamespace\n}X\x08\x00\x00\x00__call__Nsb', 'no weights by name'),  # ... of a class
        (b'cargparse\nNamespace\n)\x81(X\x01\x00\x00\x00aNu', 'damaged'),  # not even dicts of that class are filled
        (b'}r\xff\xff\xff\xff', 'no weights by name'),  # a memo of 4 billion places, if it were an array
        (b'B\xff\xff\xff\x7fabc', 'damaged'),  # 2 GB of bytes declared
        (b'\x8b\xff\xff\xff\x7fabc', 'damaged'),
        (b'\x95\xff\xff\xff\xff\xff\xff\xff\x7f}', 'no weights by name|damaged'),
        (b'}' * 1_000_010, 'more than 1000000 instructions'),
        (DEEP_TUPLE, 'no weights by name'),
        (b']' * 200_000 + b'a' * 200_000, 'no weights by name|damaged'),
        (b'}' + DEEP_TUPLE + b'Ns', 'damaged'),
        *(
            (before + ENDLESS_TUPLE + after, 'damaged')
            for before, after in (
                *((b'}', b'Ns'), (b'}(', b'Nu'), (b'(', b'Nd')),
                (ORDERED + b'](', b'N\x86e\x85R'),
                (b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\n', b'NK\x01tQ'),
            )
        ),
        # A list of many times one long list of pairs: all pairs are more than there is memory for.
        (ORDERED + b'](' + b'N' * 400_000 + b'eq\x00](' + b'h\x00' * 100_000 + b'e\x85R', 'damaged'),
        # A function that takes as many arguments as there are, called very often.
        (
            b'ctorch._utils\n_rebuild_tensor\nq\x01]((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000N'
            b'K\x01tQK\x00))' + b'N' * 400_000 + b'eq\x00' + b'h\x01h\x00R' * 30_000,
            'damaged',
        ),
        # Numbers of eight million digits, multiplied.
        (
            b'ctorch._utils\n_rebuild_tensor\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000N'
            b'\x8b\x00\x00\x10\x00' + b'\x7f' * (1 << 20) + b'q\x00tQK\x00(' + b'h\x00' * 7 + b'K\x00t(K\x00ttR',
            'damaged',
        ),
        # Numbers with the same hash: as many comparisons as the square of their number.
        (b'}(' + b''.join(b'\x8a\x0b%sN' % _long(n * HASH_MODULUS) for n in range(1, 40_000)) + b'u', 'damaged'),
        (b'}' + b''.join(b'p%d\n' % (n * HASH_MODULUS) for n in range(1, 40_000)), 'damaged'),
        # A number of eight million digits, hashed again for each key.
        (b'\x8b\x00\x00\x10\x00' + b'\x7f' * (1 << 20) + b'q\x00}(' + b'h\x00N' * 100_000 + b'u', 'damaged'),
        # One list of pairs, copied into many dicts.
        (
            b']('
            + b''.join(b'J%sN\x86' % struct.pack('<i', n) for n in range(10_000))
            + b'eq\x00'
            + ORDERED
            + b'q\x01('
            + b'h\x01h\x00\x85R' * 2000
            + b't',
            'more than 1000000 instructions',
        ),
        # One long name, before the names of many dicts in its own.
        (
            b'}X\x00\x00\x20\x00'
            + b'a' * (1 << 21)
            + b'}('
            + b''.join(b'X\x04\x00\x00\x00%04d}' % n + TENSOR_IN for n in range(2000))
            + b'us',
            'damaged',
        ),
    ],
)
def test_pickles_by_hand(instructions, reason, tmp_path):
    path = tmp_path / 'net.pth'
    torch_files.write_zip_of(path, b'\x80\x04' + instructions + b'.', {})
    refuse_quietly(path, reason)


SYSTEM = {'protocol_version': 1001, 'little_endian': True}
LEGACY_START = b''.join(map(pickled, (torch_files.MAGIC, 1001, SYSTEM)))


def test_list_of_storages(tmp_path):
    (tmp_path / 'net.th').write_bytes(LEGACY_START + pickled({'a': 1}) + b'\x80\x02](' + ENDLESS_TUPLE + b'e.')
    refuse_quietly(tmp_path / 'net.th', 'damaged')


@pytest.mark.parametrize(
    'offset,shape,strides,num_values',
    [
        (0, (1 << 40,), (1,), 1 << 40),  # more than the file has
        (0, (1 << 20, 1 << 20), (0, 0), 4),  # more than the storage has, one value over and over
        (2, (3,), (1,), 4),
        (0, (2, 2), (3, 1), 4),
        (-1, (2,), (1,), 4),
        (0, (-2,), (1,), 4),
        (0, (2,), (-1,), 4),
        (0, (4,), (1,), -4),
    ],
)
def test_tensors_outside_of_their_storage(offset, shape, strides, num_values, tmp_path):
    path = tmp_path / 'net.pth'
    storage = Stored(('storage', Global('torch', 'FloatStorage'), '0', 'cpu', num_values))
    call = Call(Global('torch._utils', '_rebuild_tensor'), (storage, offset, shape, strides))
    torch_files.write_zip_of(path, pickled({'x': call}), {'0': bytes(16)})
    refuse_quietly(path, 'is damaged')


def test_compressed_zip_is_refused(tmp_path):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', pickled({'x': torch_files.tensor('0', 'float32', 1 << 24, (1 << 24,))}))
        archive.writestr('archive/data/0', bytes(1 << 26))
    refuse_quietly(path, 'compressed or longer than the file')


def test_cut_off_zip_is_said_to_be_damaged(tmp_path):
    """Its first letter is an instruction of pickles, but the message does not say that it holds more than weights."""
    path = tmp_path / 'net.pth'
    torch_files.write_zip(path, {'a': np.ones(100, 'float32')})
    path.write_bytes(path.read_bytes()[:-100])
    refuse_quietly(path, 'is damaged .*; get it again')


@dataclasses.dataclass
class Pairs:
    """A dict, whatever its keys."""

    pairs: list

    def items(self):
        return self.pairs


NAMES = st.sampled_from(['a', '0', 'storage', 'cpu', 'fc.bias', '__class__', '\ud800'])
OTHERS = [('os', 'system'), ('builtins', 'exec'), ('torch', 'Tensor'), ('collections', 'deque')]
GLOBALS = st.sampled_from([Global(*names) for names in [*torch_pickle._FUNCTIONS, *OTHERS]])
NUMBERS = st.integers(-2, 9) | st.sampled_from([1 << 31, 1 << 62, 1 << 64, -(1 << 63)])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | NAMES | GLOBALS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(st.tuples(NAMES | inner, inner), max_size=3).map(Pairs),
        st.builds(Call, GLOBALS | inner, st.lists(inner, max_size=6).map(tuple)),
        st.builds(Stored, st.tuples(st.just('storage'), GLOBALS, NAMES, NAMES, NUMBERS) | inner),
    ),
    max_leaves=25,
)
INSTRUCTIONS = st.sampled_from([opcode.code.encode('latin-1') for opcode in pickletools.opcodes])


@pytest.fixture(scope='module', autouse=True)
def folder(tmp_path_factory):
    """A folder in which a file has been read, so that all is imported that reading imports."""
    folder = tmp_path_factory.mktemp('fuzz')
    for write in (torch_files.write_zip, torch_files.write_legacy):
        write(folder / 'net.pth', {'a': np.ones(2, 'float32')})
        assert from_torch.read(folder / 'net.pth')['a'].sum() == 2
    torch_files.write_zip_of(folder / 'net.pth', b'\x80\x02Va\nU\x01a.', {})
    with pytest.raises(UserError):
        from_torch.shapes(folder / 'net.pth')
    return folder


def read_or_refuse(path):
    with nothing_but(path):
        try:
            for array in from_torch.read(path).values():
                assert isinstance(array, np.ndarray)
        except UserError as error:
            assert '\n' not in str(error)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.booleans())
def test_any_values_in_any_place(folder, value, is_zip):
    data = b'\x80\x02' + b'}(X\x01\x00\x00\x00a' + dumped(value) + b'u.'
    if is_zip:
        torch_files.write_zip_of(folder / 'net.pth', data, {'0': bytes(16)})
    else:
        (folder / 'net.pth').write_bytes(LEGACY_START + data + b'\x80\x02' + dumped(value) + b'.' + bytes(20))
    read_or_refuse(folder / 'net.pth')


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(INSTRUCTIONS, VALUES.map(dumped), st.binary(max_size=9)), max_size=12))
def test_any_instructions(folder, parts):
    torch_files.write_zip_of(folder / 'net.pth', b'\x80\x04}' + b''.join(parts) + b'.', {'0': bytes(16)})
    read_or_refuse(folder / 'net.pth')


REFUSED = (
    'INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID DUP POP POP_MARK EMPTY_SET ADDITEMS FROZENSET NEXT_BUFFER '
    'READONLY_BUFFER BYTEARRAY8 BINBYTES8'
)


def test_other_instructions_are_refused_by_name(tmp_path):
    """Nothing calls but REDUCE and NEWOBJ, and nothing sets attributes but BUILD; all are ours."""
    others = [opcode for opcode in pickletools.opcodes if ord(opcode.code) not in torch_pickle._METHODS]
    assert set(REFUSED.split()) <= {opcode.name for opcode in others}
    for opcode in others:
        torch_files.write_zip_of(tmp_path / 'net.pth', b'\x80\x04}' + opcode.code.encode('latin-1') + b'.', {})
        refuse_quietly(tmp_path / 'net.pth', f'instruction {opcode.name}\\b')
    for code in b'dsubR\x81':
        assert torch_pickle._METHODS[code] is not pickle._Unpickler.dispatch[code]
    functions = {name for (_, name), made in torch_pickle._FUNCTIONS.items() if callable(made)}
    assert functions == {'OrderedDict', 'defaultdict', '_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'}
    assert not callable(torch_pickle.Inert())
