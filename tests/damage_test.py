"""Every damaged file is called damaged, and nothing else is."""

import errno
import io
import zipfile
import zlib

import flips
import numpy as np
import pytest
import tensorflow as tf
from fixtures.flips import damaged_copies

from official_resnet import checkpoints, damage
from official_resnet.building.job import is_manifest
from official_resnet.errors import Damaged, UserError


def raised_by(function, *args):
    """Return the exception that a call raises."""
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError('it raised nothing')


OF_CONTENT = [
    *(OSError(), OSError('truncated file'), OSError(errno.EINVAL, 'x'), EOFError(), KeyError('a'), RecursionError()),
    raised_by(zipfile.ZipFile, io.BytesIO(), 'w', 99),  # another method of compression
    *(RuntimeError('File is encrypted'), zlib.error()),
    *(zipfile.BadZipFile(), AttributeError(), TypeError(), AssertionError(), ValueError(), SyntaxError()),
    tf.errors.DataLossError(None, None, 'x'),
]
OF_THE_SYSTEM = [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOENT, errno.ENOSPC, errno.ESTALE, errno.EPERM]


@pytest.mark.parametrize('error', OF_CONTENT, ids=repr)
def test_what_a_parser_raises_is_damage(error):
    with pytest.raises(Damaged, match="x 'a' is damaged or not b .*; put it back"):
        with damage.reported('a', 'put it back', 'x ', 'b'):
            raise error


@pytest.mark.parametrize('code', OF_THE_SYSTEM, ids=errno.errorcode.get)
def test_an_error_of_the_system_is_not(code):
    with pytest.raises(UserError, match="'a'") as caught, damage.reported('a', 'put it back'):
        raise OSError(code, 'x')
    assert not isinstance(caught.value, Damaged) and 'damaged' not in str(caught.value)


@pytest.mark.parametrize(
    'kind', [MemoryError, KeyboardInterrupt, SystemExit, UserError, tf.errors.ResourceExhaustedError]
)
def test_what_passes(kind):
    error = kind(None, None, 'x') if issubclass(kind, tf.errors.OpError) else kind('x')
    with pytest.raises(kind) as caught, damage.reported('a', 'put it back'):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    'array',
    [
        np.float32([[1, 2], [3, 4]]),
        np.asfortranarray(np.float64([[1, 2], [3, 4]])),
        np.int64(7),
        np.zeros((0, 3), 'f2'),
    ],
)
def test_arrays_are_read_as_they_were_written(array, tmp_path):
    np.savez(tmp_path / 'a.npz', **{'a/b': array, 'c': np.array('ä')})
    read = damage.read_arrays(tmp_path / 'a.npz')
    assert list(read) == ['a/b', 'c'] and read['c'] == 'ä'
    assert read['a/b'].dtype == array.dtype and read['a/b'].shape == array.shape
    np.testing.assert_array_equal(read['a/b'], array)


def npz(**members):
    """The bytes of a zip of .npy files, compressed where the name begins with 'packed'."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in members.items():
            kind = zipfile.ZIP_DEFLATED if name.startswith('packed') else zipfile.ZIP_STORED
            archive.writestr(f'{name}.npy', content, kind)
    return file.getvalue()


def npy(array=None, shape=None):
    """The bytes of an .npy file; with `shape`, one that declares it and has no values."""
    file = io.BytesIO()
    if shape:
        np.lib.format.write_array_header_1_0(file, {'descr': '<f4', 'fortran_order': False, 'shape': shape})
    else:
        np.lib.format.write_array(file, array)
    return file.getvalue()


STATE = npy(np.array('{}'))
HOSTILE = {
    'a plain .npy': npy(np.zeros(3)),
    'a text': b'step 3',
    'no state': npz(a=npy(np.zeros(3))),
    'deep JSON': npz(**{'state.json': npy(np.array('[' * 100_000))}),
    'a list': npz(**{'state.json': npy(np.array('[1]'))}),
    'a terabyte': npz(**{'state.json': STATE, 'a': npy(shape=(1 << 38,))}),
    'objects': npz(**{'state.json': STATE, 'a': npy(np.array([None], object))}),
    'packed zeros': npz(**{'state.json': STATE, 'packed': npy(np.zeros(1 << 20))}),
    'no array': npz(**{'state.json': STATE, 'a': b'\x93NUMPY\x01\x00\xff\xff'}),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_checkpoint_is_passed_over(name, tmp_path, caplog):
    checkpoints.save(tmp_path, 1, {}, {'step': 1})
    (tmp_path / 'step-000000002.npz').write_bytes(HOSTILE[name])
    assert checkpoints.restore_latest(tmp_path)[1] == {'step': 1}
    assert len(caplog.messages) == 1 and 'step-000000002.npz' in caplog.text


def test_only_a_whole_manifest_is_one():
    shard = {'name': 'train-00000-of-00001', 'records': 3, 'bytes': 9, 'sha256': ''}
    whole = {'records': 3, 'bytes': 9, 'layout': 'folder', 'synsets': ['', 'a'], 'classes': {'a': 3}, 'shards': [shard]}
    assert is_manifest(whole)
    assert not any(is_manifest({key: whole[key] for key in whole if key != name}) for name in whole)
    assert not any(is_manifest(whole | {'shards': [shard | {name: None}]}) for name in shard)
    for other in (None, [], 7, whole | {'layout': 'x'}, whole | {'synsets': [3]}, whole | {'shards': [3]}):
        assert not is_manifest(other)


def test_a_checkpoint_is_read_whole_or_passed_over(tmp_path):
    """400 files with a changed bit, or cut off: the same content, or the checkpoint before."""
    arrays = {'a/kernel': np.arange(6, dtype='float32').reshape(2, 3), 'count': np.int64(7)}
    checkpoints.save(tmp_path, 1, arrays, {'step': 1})
    path = checkpoints.save(tmp_path, 2, arrays, {'step': 2, 'sums': {'loss': 0.1}})
    same = 0
    for data in damaged_copies(path.read_bytes(), 400):
        path.write_bytes(data)
        found, state, used = checkpoints.restore_latest(tmp_path)
        assert state == ({'step': 2, 'sums': {'loss': 0.1}} if used == path else {'step': 1})
        assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
        same += used == path
    assert same < 150  # a zip has about as many bits that mean nothing, as its dates


def test_the_count_of_damaged_copies_of_all_formats_runs(capsys):
    assert flips.main(1) == 0
    assert len(capsys.readouterr().out.splitlines()) == 13
