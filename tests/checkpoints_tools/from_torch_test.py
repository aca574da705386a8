"""PyTorch's files without PyTorch: formats, names, the functions computed, and what must be refused."""

import dataclasses
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from fixtures import torch_files
from fixtures.conversion import fitted
from fixtures.torch_files import Call, Global

from checkpoints_tools import convert, from_torch, verify
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
                fitted(from_torch, shapes)
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
        ({'fc.weight': None}, 'no variable fc.weight'),
    ],
)
def test_strange_shapes(change, message):
    shapes = torch_files.TINY['bottleneck'] | change
    with pytest.raises(UserError, match=message):
        described({name: shape for name, shape in shapes.items() if shape})
