"""tensorpack's networks in .npz files written here, each compared with its own definition; hostile files."""

import zipfile

import numpy as np
import pytest
from fixtures.conversion import assert_runs_alike, converted, refuse, refuse_file, shapes_of
from fixtures.foreign_files import tensorpack_variables
from fixtures.torch_files import Call, Global, pickled

from checkpoints_tools import convert, from_tensorpack
from official_resnet import resnet_variants


@pytest.mark.parametrize(
    'mode,is_basic,suffix,dtype',
    [
        ('resnet', True, '', 'float32'),
        ('resnet', False, ':0', 'float16'),
        ('se', False, '', 'float32'),
        ('resnext32x4d', False, ':0', 'float32'),
        ('preact', True, '', 'float64'),
        ('preact', False, ':0', 'float32'),
    ],
)
def test_families(tmp_path, mode, is_basic, suffix, dtype):
    expected = {
        name: np.asfortranarray(value.astype(dtype))
        for name, value in tensorpack_variables(mode, is_basic=is_basic).items()
    }
    extra = {'global_step': np.int64(7), 'learning_rate': np.float32(0.1), 'conv0/W/Momentum': expected['conv0/W']}
    saved = {f'{name}{suffix}': value for name, value in (expected | extra).items()}
    np.savez_compressed(tmp_path / 'net.npz', **saved)
    assert convert.identify(tmp_path / 'net.npz')[0] is from_tensorpack
    source, variables, model = converted(from_tensorpack, tmp_path / 'net.npz')
    assert set(from_tensorpack.ignored(from_tensorpack.shapes(tmp_path / 'net.npz'))) == set(extra)
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value.astype('float32'))
    assert_runs_alike(from_tensorpack, source, variables, model)


@pytest.mark.parametrize(
    'mode,size,variant',
    [
        ('resnet', 18, 'resnet18_v1.5'),
        ('resnet', 50, 'resnet50_v1.5'),
        ('se', 50, 'seresnet50_v1.5'),
        ('resnext32x4d', 50, 'resnext50_32x4d'),
    ],
)
def test_published_nets(mode, size, variant):
    kind, blocks = resnet_variants.IMAGENET_BLOCKS[size]
    shapes = shapes_of(tensorpack_variables(mode, blocks, 64, 1000, kind == 'basic'))
    source, _ = convert.fit(from_tensorpack, shapes, 'x', variant)
    assert (source.labels, source.input.channels) == ('imagenet1000', 'BGR')
    spec, ours = source.spec, resnet_variants.VARIANTS[variant]
    for field in ('group_blocks', 'filters', 'block', 'version', 'base_width', 'cardinality', 'se_reduction'):
        assert getattr(spec, field) == getattr(ours, field)
    assert spec.padding == spec.stem_pool == 'same' and spec.bn_epsilon == 1e-5


def test_caffes_dialects_are_told():
    shapes = {name: ((1,), 'float32') for name in ('conv1/W', 'bn_conv1/gamma', 'res2a_branch1/W')}
    assert from_tensorpack.recognises(shapes)
    refuse('loadcaffe.*caffemodel', from_tensorpack.describe, shapes)
    shapes = {'conv0/b': ((64,), 'float32'), 'conv0/W': ((7, 7, 3, 64), 'float32')}
    refuse('load-resnet.py.*caffemodel', from_tensorpack.describe, shapes)


TRAP = pickled(Call(Global('os', 'mkdir'), ('trap',)))


def npy(dtype, shape, data=b'', header="{'descr': '%s', 'fortran_order': False, 'shape': %s}"):
    """Return the bytes of an .npy that declares an array."""
    header = (header % (dtype, shape)).encode()
    return b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') + header + data


@pytest.mark.parametrize(
    'data,message',
    [
        (npy('<f4', f'({2**60},)', bytes(16)), '16 bytes'),
        (npy('<f4', '(-4, -1)', bytes(16)), '16 bytes'),
        (npy('|S4', '(4,)', bytes(16)), r'\|S4'),
        (npy('<f4', '(open("x", "w"),)', bytes(16)), 'damaged'),
        (npy('', '', header='(%s%s' + '(' * 9000), 'damaged'),
        (b'\x93NUMPY\x09\0' + bytes(20), 'version'),
        (npy('|O', '(1,)', TRAP), 'pickle'),
    ],
)
def test_hostile_arrays(tmp_path, data, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile('net.npz', 'w') as archive:
        archive.writestr('conv0/W.npy', data)
    refuse_file(message, from_tensorpack, tmp_path / 'net.npz')
    assert [path.name for path in tmp_path.iterdir()] == ['net.npz']


def test_hostile_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'net.npz'
    path.write_bytes(TRAP)
    refuse_file('not an .npz file', from_tensorpack, path)
    assert not (tmp_path / 'trap').exists()
    np.savez_compressed(path, zeros=np.zeros(30 << 20, 'uint8'))
    refuse_file('31457408 bytes', from_tensorpack, path)
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(20_001):
            archive.writestr(f'{i}.npy', b'')
    refuse_file('20001 arrays', from_tensorpack, path)
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('a.npy', 'a:0.npy'):
            archive.writestr(name, npy('<f4', '(1,)', bytes(4)))
    refuse_file("'a:0.npy'", from_tensorpack, path)
