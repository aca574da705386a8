"""Reading TF1 checkpoints: whatever a path may be, and damage of every kind, in bounded time."""

import random
import shutil
import struct
import time

import numpy as np
import pytest
from fixtures import tf_checkpoint_writer as writer

from checkpoints_tools import tf_checkpoint
from official_resnet.errors import UserError

VARIABLES = {
    f'scope/conv{i}/weights': np.random.default_rng(i).normal(size=(3, 3, 16, 8)).astype('float32') for i in range(20)
} | {'global_step': np.int64(1234), 'double': np.float64([1.5, 2])}
NUM_DAMAGED = 60


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """v1.ckpt, one file, and v2.ckpt.index, v2.ckpt.data-00000-of-00001; `checkpoint` names v2.ckpt."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for version in (1, 2):
        writer.write(folder / f'v{version}.ckpt', VARIABLES, version)
    return folder


def assert_read(path):
    values = dict(tf_checkpoint.read(path))
    assert values.keys() == VARIABLES.keys()
    for name, value in VARIABLES.items():
        assert values[name].dtype == value.dtype
        np.testing.assert_array_equal(values[name], value)


@pytest.mark.parametrize(
    'name', ['v1.ckpt', 'v2.ckpt', 'v2.ckpt.index', 'v2.ckpt.data-00000-of-00001', 'checkpoint', '']
)
def test_every_name_of_a_checkpoint(folder, name):
    assert_read(folder / name)
    shapes = tf_checkpoint.shapes(str(folder / name))
    assert shapes['scope/conv3/weights'] == ((3, 3, 16, 8), 'float32')
    assert shapes['global_step'] == ((), 'int64') and shapes['double'] == ((2,), 'float64')


def test_one_value(folder):
    assert tf_checkpoint.read(folder)['global_step'] == 1234


def test_files(folder):
    names = [[file.rpartition('/')[2] for file in tf_checkpoint.list_files(folder / name)] for name in ('v1.ckpt', '')]
    assert names == [['v1.ckpt'], ['v2.ckpt.index', 'v2.ckpt.data-00000-of-00001']]


def test_folders(folder, tmp_path):
    """A folder that was moved, with or without the file `checkpoint`."""
    moved = tmp_path / 'moved here'
    shutil.copytree(folder, moved)
    (moved / 'checkpoint').write_text('model_checkpoint_path: "/elsewhere/v2.ckpt"\n')
    assert_read(moved)
    (moved / 'checkpoint').write_text('model_checkpoint_path: "v3.ckpt"\n')
    with pytest.raises(UserError, match='names v3.ckpt, which is not there'):
        tf_checkpoint.read(moved)
    (moved / 'checkpoint').write_bytes(b'\xff\x00')
    with pytest.raises(UserError, match='names no model_checkpoint_path'):
        tf_checkpoint.read(moved)
    (moved / 'checkpoint').unlink()
    with pytest.raises(UserError, match='2 checkpoints; pass one of them'):
        tf_checkpoint.read(moved)
    (moved / 'v1.ckpt').unlink()
    assert_read(moved)


@pytest.mark.parametrize(
    'make,message',
    [
        (lambda path: None, 'there is no .*; pass a checkpoint'),
        (lambda path: path.mkdir(), '0 checkpoints'),
        (lambda path: path.write_bytes(b''), 'damaged or not a TensorFlow checkpoint'),
        (lambda path: path.write_bytes(b'PK\x03\x04' * 500), 'damaged or not a TensorFlow checkpoint'),
        (
            lambda path: path.with_name('x.ckpt.index').write_bytes(b'no index' * 50),
            'damaged or not a TensorFlow checkpoint',
        ),
        (
            lambda path: path.with_name('x.ckpt.data-00000-of-00001').write_bytes(b''),
            'there is no .*; pass a checkpoint',
        ),
    ],
)
def test_no_checkpoint_at_all(tmp_path, make, message):
    make(tmp_path / 'x.ckpt')
    assert_refused(tmp_path / 'x.ckpt', message)


def test_patterns_in_a_path(tmp_path):
    writer.write(tmp_path / 'x.ckpt', {'a': np.float32([1])})
    (tmp_path / 'x.ckpt.index').rename(tmp_path / 'x[1].ckpt.index')
    assert_refused(tmp_path / 'x[1].ckpt', 'for patterns; rename or move it')


def test_data_without_their_index(tmp_path):
    (tmp_path / 'x.data-00000-of-00001').write_bytes(b'1')
    assert_refused(tmp_path / 'x.data-00000-of-00001', 'there is no .*x.index, which says what the data files hold')


def test_missing_data(folder, tmp_path):
    shutil.copy(folder / 'v2.ckpt.index', tmp_path)
    assert_refused(tmp_path / 'v2.ckpt', 'has no data file beside it')
    shutil.copy(folder / 'v2.ckpt.data-00000-of-00001', tmp_path / 'v2.ckpt.data-00001-of-00002')
    assert_refused(tmp_path / 'v2.ckpt', 'damaged or not .*No such file')


def test_cut_off_data(folder, tmp_path):
    shutil.copy(folder / 'v2.ckpt.index', tmp_path)
    data = (folder / 'v2.ckpt.data-00000-of-00001').read_bytes()
    (tmp_path / 'v2.ckpt.data-00000-of-00001').write_bytes(data[:-1])
    assert_refused(tmp_path / 'v2.ckpt', 'Read less bytes|part of it is missing')
    (tmp_path / 'v2.ckpt.data-00000-of-00001').write_bytes(data[: len(data) // 2])
    assert_refused(tmp_path / 'v2.ckpt', 'declares variables of .* part of it is missing')


@pytest.mark.parametrize('damaged', ['v1.ckpt', 'v2.ckpt.index', 'v2.ckpt.data-00000-of-00001'])
@pytest.mark.parametrize('damage', ['cut', 'flip', 'noise'])
def test_damage(folder, tmp_path, damaged, damage):
    """Read as it was, where the damage hit nothing that is used, or refused in one line."""
    for file in folder.glob('v*'):
        shutil.copy(file, tmp_path)
    whole, dice = (folder / damaged).read_bytes(), random.Random(damaged + damage)
    path, start = tmp_path / (damaged.split('.')[0] + '.ckpt'), time.monotonic()
    num_refused = 0
    for _ in range(NUM_DAMAGED):
        data = bytearray(whole)
        place = dice.randrange(len(data))
        if damage == 'cut':
            data = data[:place]
        elif damage == 'flip':
            data[place] ^= 1 << dice.randrange(8)
        else:
            data[place : place + 100] = dice.randbytes(len(data[place : place + 100]))
        (tmp_path / damaged).write_bytes(data)
        try:
            assert_read(path)
        except UserError as error:
            num_refused += 1
            assert '\n' not in str(error) and len(str(error)) < 1000
    assert num_refused > NUM_DAMAGED / 2
    assert time.monotonic() - start < 30


def test_huge_declared_size(tmp_path):
    """An index with right checksums that declares 4 TiB: refused before memory is asked for."""
    length = 2**40
    path = writer.write(tmp_path / 'x.ckpt', {'a': np.zeros((length, 0), 'float32')})
    index = tmp_path / 'x.ckpt.index'
    data = bytearray(index.read_bytes())
    end = next(i for i in range(len(data)) if struct.pack('<I', masked_crc(data[: i + 1])) == data[i + 1 : i + 5])
    dimensions = data.index(b'\x12\x07\x08\x80\x80')  # of 7 bytes; the second, `12 00`, becomes an empty name of this
    data[dimensions + 1] = 9
    data[end + 1 : end + 5] = struct.pack('<I', masked_crc(data[: end + 1]))
    index.write_bytes(data)
    for read in (tf_checkpoint.read, tf_checkpoint.shapes):
        with pytest.raises(UserError, match='declares variables of 4,398,046,511,104 bytes, but its data are 0'):
            read(path)


def masked_crc(data):
    """Return the CRC-32C of a table's block as LevelDB's format masks it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def assert_refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        dict(tf_checkpoint.read(path))
    assert '\n' not in str(error.value)
