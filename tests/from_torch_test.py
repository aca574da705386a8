"""PyTorch's files without PyTorch: formats, names, the functions computed, and what must be refused."""

import dataclasses
import struct
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from torch_files import Call, Global, Stored, pickled

from checkpoints_tools import convert, from_torch, torch_pickle, verify
from official_resnet import resnet_variants
from official_resnet.errors import UserError

# torchvision's arguments of each net, and its parameters (sources: models/resnet.py; the table).
PUBLISHED = {
    'resnet18': (((2, 2, 2, 2),), 11_689_512),
    'resnet34': (((3, 4, 6, 3),), 21_797_672),
    'resnet50': (((3, 4, 6, 3), True), 25_557_032),
    'resnet101': (((3, 4, 23, 3), True), 44_549_160),
    'resnet152': (((3, 8, 36, 3), True), 60_192_808),
    'resnext50_32x4d': (((3, 4, 6, 3), True, 64, 32, 4), 25_028_904),
    'resnext101_32x4d': (((3, 4, 23, 3), True, 64, 32, 4), 44_177_704),
    'resnext101_32x8d': (((3, 4, 23, 3), True, 64, 32, 8), 88_791_336),
    'resnext101_64x4d': (((3, 4, 23, 3), True, 64, 64, 4), 83_455_272),
    'wide_resnet50_2': (((3, 4, 6, 3), True, 64, 1, 128), 68_883_240),
    'wide_resnet101_2': (((3, 4, 23, 3), True, 64, 1, 128), 126_886_696),
}


def described(shapes, variant=None):
    return from_torch.describe({name: (shape, 'float32') for name, shape in shapes.items()}, variant)


@pytest.fixture(scope='module')
def cifar_a():
    return torch_files.random_weights(torch_files.TINY['cifar_a'])


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_nets_are_recognised(name):
    arguments, num_parameters = PUBLISHED[name]
    shapes = torch_files.net_shapes(*arguments)
    assert sum(np.prod(shape) for variable, shape in shapes.items() if 'running' not in variable) == num_parameters
    source = described(shapes)
    expected = dataclasses.replace(resnet_variants.VARIANTS[from_torch.NAMES[name]], bn_momentum=0.9)
    assert (source.variant, source.spec, source.labels) == (name, expected, 'imagenet1000')
    entries = from_torch.name_map(source, shapes)
    assert sorted(entry.sources[0] for entry in entries) == sorted(shapes)


def test_akamaster_is_recognised():
    source = described(torch_files.net_shapes((5, 5, 5), filters=16, classes=10, is_cifar=True, option='A'))
    assert source.variant == 'resnet32' and source.labels == 'cifar10' and source.input.size == 32
    assert (source.spec.shortcut, source.spec.shortcut_padding) == ('A', 'both')


@pytest.mark.parametrize('name', torch_files.TINY)
def test_our_net_computes_the_same(name):
    variables = torch_files.random_weights(torch_files.TINY[name])
    source = described(torch_files.TINY[name])
    model = convert._build(source.spec, source.num_classes)
    convert.assign(model, from_torch.name_map(source, variables), variables, 'x.pth')
    found = verify.verify(model, from_torch, variables, source)
    assert found['max_relative_difference'] < 1e-5 and found['max_logit'] > 0.1


def test_variant_moves_the_stride_and_nothing_else():
    shapes = torch_files.net_shapes((3, 4, 6, 3), True)
    assert described(shapes, 'resnet50').spec.version == '1.5'
    assert described(shapes, 'resnet50_v1').spec.version == '1'
    with pytest.raises(UserError, match="'resnet101' does not fit: the variables are those of resnet50"):
        described(shapes, 'resnet101')
    with pytest.raises(UserError, match="variant 'resnet51' is none of"):
        described(shapes, 'resnet51')
    variables = torch_files.random_weights(torch_files.TINY['bottleneck'])
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype('float32')
    source = described(torch_files.TINY['bottleneck'])
    other = dataclasses.replace(source, spec=dataclasses.replace(source.spec, version='1'))
    logits = from_torch.run(variables, images, source)
    assert np.abs(logits - from_torch.run(variables, images, other)).max() > 0.01 * np.abs(logits).max()


@pytest.mark.parametrize('write', [torch_files.write_zip, torch_files.write_legacy])
@pytest.mark.parametrize(
    'wrap,prefix',
    [
        (lambda tensors: tensors, ''),
        (lambda tensors: {'epoch': 3, 'state_dict': tensors, 'best_prec1': 91.78, 'optimizer': {}}, 'module.'),
        (
            lambda tensors: {
                'model': Call(Global('collections', 'OrderedDict'), ([list(i) for i in tensors.items()],))
            },
            'module._orig_mod.',
        ),
    ],
    ids=['plain', 'state_dict', 'model'],
)
def test_formats_and_wrappers(write, wrap, prefix, cifar_a, tmp_path):
    path = tmp_path / 'net.th'
    write(path, {prefix + name: array for name, array in cifar_a.items()}, wrap)
    assert from_torch.shapes(path) == {name: (array.shape, 'float32') for name, array in cifar_a.items()}
    read = from_torch.read(path)
    assert read.keys() == cifar_a.keys()
    assert all(np.array_equal(read[name], cifar_a[name]) for name in read)


def test_safetensors(cifar_a, tmp_path):
    path = tmp_path / 'net.safetensors'
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in cifar_a.items()}
    safetensors.numpy.save_file({f'module.{name}': array for name, array in half.items()}, path)
    assert from_torch.shapes(path) == {name: (array.shape, 'bfloat16') for name, array in half.items()}
    assert all(np.array_equal(array, half[name]) for name, array in from_torch.read(path).items())
    path.rename(tmp_path / 'net.bin')
    assert from_torch.shapes(tmp_path / 'net.bin').keys() == half.keys()  # known by its content


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


MARK = 'RAN'
EVIL = {
    'os.system': Call(Global('os', 'system'), (f'touch {MARK}',)),
    'builtins.eval': Call(Global('builtins', 'eval'), (f'open({MARK!r}, "w")',)),
    'torch.hub.load': Call(Global('torch.hub', 'load'), ('x/y',)),
    'torch.storage._load_from_bytes': Call(Global('torch.storage', '_load_from_bytes'), ('x',)),
    'torchvision.models.resnet.ResNet': Global('torchvision.models.resnet', 'ResNet'),
}


@pytest.mark.parametrize('is_zip', [True, False])
@pytest.mark.parametrize('name', EVIL)
def test_what_would_run_code_is_refused_by_name(name, is_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = {'conv1.weight': EVIL[name]}
    if is_zip:
        torch_files.write_zip_of('evil.pth', pickled(value), {})
    else:
        torch_files.write_legacy('evil.pth', {}, lambda tensors: value)
    for function in (from_torch.shapes, from_torch.read):
        with pytest.raises(UserError, match=f"asks for '{name}'; nothing was run") as caught:
            function('evil.pth')
        assert '\n' not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ['evil.pth']


@pytest.mark.parametrize(
    'pickle,reason',
    [
        (b'\x80\x02(X\x01\x00\x00\x00acos\nsystem\no.', "asks for 'os.system'"),  # OBJ
        (b'\x80\x02(X\x01\x00\x00\x00aios\nsystem\n.', 'instruction INST'),
        (b'\x80\x02}\x81.', 'instruction NEWOBJ'),
        (b'\x80\x02\x82\x01.', 'instruction EXT1'),
        (b'\x80\x04\x8c\x02os\x8c\x06system\x93.', "asks for 'os.system'"),  # STACK_GLOBAL
        (b'\x80\x02}(h\x07u.', 'damaged'),  # memo that was never set
        (b'\x80\x02Q.', 'damaged'),
        (b'\x80\x02N}s.', 'damaged'),
        (b'\x80\x02}}Ns.', 'damaged'),  # a dict as key
        (b'\x80\x02}r\xff\xff\xff\xff.', 'no weights by name'),  # a memo of 4 billion places, if it were an array
        (b'\x80\x02B\xff\xff\xff\x7fabc.', 'damaged'),  # 2 GB of bytes declared
        (b'\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x3fabc.', 'damaged'),
        (b'\x80\x02' + b'\x8a\x01\x01' * 10 + b'.', 'no weights by name'),
        (b'\x80\x02' + b'}' * 1_000_010 + b'.', 'more than 1000000 instructions'),
    ],
)
def test_pickles_by_hand(pickle, reason, tmp_path):
    path = tmp_path / 'net.pth'
    torch_files.write_zip_of(path, pickle, {})
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=reason):
            from_torch.shapes(path)
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()


def storage(num_values, kind='FloatStorage'):
    return Stored(('storage', Global('torch', kind), '0', 'cpu', num_values))


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
        (0, (2, 2), (1,), 4),
        (0, ('x',), (1,), 4),
        (0, (1,) * 40, (1,) * 40, 4),
        (0, (4,), (1,), -4),
    ],
)
def test_tensors_outside_of_their_storage(offset, shape, strides, num_values, tmp_path):
    path = tmp_path / 'net.pth'
    call = Call(Global('torch._utils', '_rebuild_tensor'), (storage(num_values), offset, shape, strides))
    torch_files.write_zip_of(path, pickled({'x': call}), {'0': bytes(16)})
    with pytest.raises(UserError, match='is damaged or no file of PyTorch'):
        from_torch.shapes(path)


def test_compressed_zip_is_refused(tmp_path):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', pickled({'x': torch_files.tensor('0', 'float32', 1 << 24, (1 << 24,))}))
        archive.writestr('archive/data/0', bytes(1 << 26))
    with pytest.raises(UserError, match='compressed or longer than the file'):
        from_torch.read(path)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'\x80\x02.', b'hello, world', bytes(1000), b'\x89HDF\r\n'])
@pytest.mark.parametrize('name', ['net.pth', 'net.safetensors'])
def test_other_files(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match='get it again'):
        from_torch.shapes(tmp_path / name)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_fuzz(kind, tmp_path):
    """Cut off anywhere and with bits flipped anywhere: read in full, or one UserError; never anything else."""
    variables = {
        name: array
        for name, array in torch_files.random_weights(
            torch_files.net_shapes((1, 1, 1), filters=2, classes=3, is_cifar=True, option='A')
        ).items()
    }
    path, random = tmp_path / ('net.safetensors' if kind == 'safetensors' else 'net.pth'), np.random.default_rng(0)
    if kind == 'safetensors':
        safetensors.numpy.save_file(variables, path)
    else:
        (torch_files.write_zip if kind == 'zip' else torch_files.write_legacy)(path, variables)
    whole = path.read_bytes()
    assert from_torch.read(path).keys() == variables.keys()
    refused = 0
    for trial in range(150):
        data = bytearray(whole[: random.integers(len(whole))] if trial % 3 == 0 else whole)
        for _ in range(0 if trial % 3 == 0 else random.integers(1, 4)):
            data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            shapes = from_torch.shapes(path)
            read = from_torch.read(path)
            assert {name: array.shape for name, array in read.items()} == {name: row[0] for name, row in shapes.items()}
            if from_torch.recognises(shapes):
                source = from_torch.describe(shapes)
                convert.check_sources(from_torch.name_map(source, shapes), from_torch.ignored(shapes), shapes, path)
                convert._check_extent(source.spec, shapes, path)
        except UserError as error:
            refused += 1
            assert '\n' not in str(error) and len(str(error)) < 3000
    assert refused >= 50


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
    with pytest.raises(UserError, match=r"pip install 'official-resnet\[convert\]'"):
        from_torch.shapes(tmp_path / 'net.safetensors')


@pytest.mark.parametrize(
    'change,message',
    [
        ({'conv1.weight': (4, 3, 5, 5)}, 'neither torchvision'),
        ({'conv1.weight': (4, 3)}, 'not 4 numbers above 0'),
        ({'conv1.weight': (0, 3, 7, 7)}, 'not 4 numbers above 0'),
        ({'layer1.0.conv2.weight': (5, 3, 3, 3)}, 'is of no ResNet, ResNeXt or wide ResNet'),
        ({'fc.weight': None}, 'fc.weight is missing'),
    ],
)
def test_strange_shapes(change, message):
    shapes = torch_files.TINY['bottleneck'] | change
    with pytest.raises(UserError, match=message):
        described({name: shape for name, shape in shapes.items() if shape})


def test_unpickling_builds_nothing_but_data():
    """What the machine lets through names no function that does anything."""
    assert {name for module, name in torch_pickle._FUNCTIONS if not name.endswith('Storage')} == {
        'OrderedDict',
        '_rebuild_tensor',
        '_rebuild_tensor_v2',
        '_rebuild_parameter',
    }
