"""Strict both ways, verified before anything is written, all or nothing; and out again to PyTorch's names."""

import dataclasses
import hashlib
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from fixtures import foreign_files, programs, torch_files
from fixtures.conversion import assert_equal, changed, images_of, refuse, shapes_of

from checkpoints_tools import convert, from_torch
from official_resnet import resnet_model, resnet_spec, resnet_variants

VARIABLES = torch_files.random_weights(torch_files.TINY['bottleneck'])


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write variables to net.pth in the current folder and convert it; return the card."""
    monkeypatch.chdir(tmp_path)

    def run(variables=VARIABLES, output='net.keras', **options):
        torch_files.write_zip('net.pth', variables)
        return convert.convert('net.pth', output, **options)

    return run


def files():
    return sorted(str(path) for path in pathlib.Path().rglob('*') if path.is_file())


def test_model_and_card(write):
    card = write(VARIABLES | {'bn1.num_batches_tracked': np.array(7)}, 'out/net.keras')
    assert files() == ['net.pth', 'out/net.card.json', 'out/net.keras']
    written = json.loads(pathlib.Path('out/net.card.json').read_text())
    assert written == json.loads(json.dumps(card))
    expected = from_torch.describe(shapes_of(VARIABLES))
    assert written | json.loads(json.dumps(dataclasses.asdict(expected))) == written
    assert (expected.family, expected.num_classes, expected.labels) == ('torch', 7, 'unknown')
    assert expected.input == from_torch.IMAGENET_INPUT
    assert card['source_sha256'] == {'net.pth': hashlib.sha256(pathlib.Path('net.pth').read_bytes()).hexdigest()}
    assert card['verified']['max_relative_difference'] < 1e-5 and card['verified']['tolerance'] == 1e-4
    assert card['verified']['images'] == [[2, 96, 96, 3], [2, 75, 75, 3]] and 'keras' in card['versions']


@pytest.mark.parametrize('name', ['bottleneck', 'eca_t', 'se'])
def test_file_loads_without_this_package_and_computes_the_same(name, write):
    variables = torch_files.random_weights(torch_files.TINY[name])
    write(variables)
    np.save('images.npy', images_of(70))
    code = (
        'import keras, numpy as np, sys; m = keras.models.load_model("net.keras"); '
        'np.save("logits.npy", m(np.load("images.npy"))); print("official_resnet" in sys.modules, m.output.dtype)'
    )
    assert programs.run([sys.executable, '-c', code], cwd='.').out.split() == ['False', 'float32']
    expected = from_torch.run(variables, images_of(70), from_torch.describe(shapes_of(variables)))
    assert_equal(np.load('logits.npy'), expected)


def with_first(name, value, dtype='float32'):
    """Return the change of a variable whose first number is this value."""
    array = VARIABLES[name].astype(dtype)
    array.flat[0] = value
    return {name: array}


@pytest.mark.parametrize(
    'change,message',
    [
        (
            {'layer2.0.bn1.bias': None, 'layer2.0.bnX.bias': VARIABLES['layer2.0.bn1.bias']},
            r'missing: layer2\.0\.bn1\.bias; unexpected: layer2\.0\.bnX\.bias',
        ),
        (
            {name: None for name in VARIABLES if '.bn2.' in name},
            r'missing: (layer\d\.\d\.bn2\.\w+, ){7}layer\d\.\d\.bn2\.\w+ and 12 more',
        ),
        (with_first('layer1.0.conv1.weight', np.nan), r'NaN or infinite.*: layer1\.0\.conv1\.weight'),
        (with_first('fc.weight', 1e300, 'float64'), r'infinite.*: fc\.weight'),
        (with_first('bn1.running_var', -3), 'nothing was written'),
    ],
)
def test_what_does_not_fit_is_listed_by_name_and_nothing_is_written(change, message, write):
    refuse(message, write, changed(VARIABLES, change))
    assert files() == ['net.pth']


def test_a_net_that_computes_something_else_is_not_written(write, monkeypatch):
    found = from_torch.describe(shapes_of(VARIABLES))
    other = dataclasses.replace(found, spec=dataclasses.replace(found.spec, padding='same'))
    monkeypatch.setattr(from_torch, 'describe', lambda shapes, variant: other)
    refuse('differs .*at 96 x 96 pixels.*nothing was written', write)
    assert files() == ['net.pth']


@pytest.mark.parametrize('is_of_h5py', [False, True])
def test_a_full_disk_leaves_nothing(write, monkeypatch, is_of_h5py):
    def fail(model, path):
        pathlib.Path(path).write_bytes(b'half')
        try:
            raise OSError(28, 'No space left on device')
        except OSError as error:
            if is_of_h5py:
                raise RuntimeError("Can't decrement id ref count (file write failed: ...\n, errno = 28)") from error
            raise

    monkeypatch.setattr(keras.Model, 'save', fail)
    refuse("'net.keras': No space left on device; free some space, or pass another --output", write)
    assert files() == ['net.pth']


def test_outputs_that_cannot_be(write, tmp_path):
    (tmp_path / 'folder.keras').mkdir()
    refuse('folder.keras is a folder', write, VARIABLES, 'folder.keras')
    refuse('is .*the input; pass another', convert.convert, 'net.keras', tmp_path / 'net.keras')


def test_background_class_can_be_dropped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = foreign_files.slim_variables(1, (1,), 2, num_classes=1001)
    foreign_files.write_tf('x.ckpt', variables)
    card = convert.convert('x.ckpt', 'net.keras', num_classes=1000)
    assert (card['num_classes'], card['labels']) == (1000, 'imagenet1000')
    assert sorted(card['source_sha256']) == ['x.ckpt.data-00000-of-00001', 'x.ckpt.index']
    kernel = keras.models.load_model('net.keras').get_layer('logits').kernel.numpy()
    np.testing.assert_array_equal(kernel, variables['resnet_v1_50/logits/weights'][0, 0, :, 1:])
    assert convert.convert('x.ckpt', 'all.keras', num_classes=1001)['labels'] == 'imagenet1001'
    refuse('--num_classes=999.* 1001 c', convert.convert, 'x.ckpt', 'no.keras', num_classes=999)


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda first, *rest: rest, 'unexpected: fc.bias; no source.*: logits/bias'),
        (lambda first, *rest: [first, first, *rest], 'used twice: fc.bias; set twice: logits/bias'),
        (lambda first, *rest: [first._replace(target='logits/offset'), *rest], 'not in our network: logits/offset'),
        (
            lambda first, *rest: [first, *(entry._replace(sources=('conv1.weight',)) for entry in rest)],
            'used twice: conv1.weight',
        ),
        # A vector may be used again where it is one of several that are folded together, but not by itself.
        (lambda first, *rest: [first, *(entry._replace(sources=('bn1.bias',)) for entry in rest)], 'twice: bn1.bias'),
    ],
)
def test_a_faulty_name_map_is_caught(change, message, write, monkeypatch):
    name_map = from_torch.name_map
    monkeypatch.setattr(from_torch, 'name_map', lambda *args: list(change(*reversed(name_map(*args)))))
    refuse(message, write)
    assert files() == ['net.pth']


def test_unknown_files(tmp_path, monkeypatch, write):
    monkeypatch.setattr(convert, 'FAMILIES', {'torch': ('.pth',)})
    (tmp_path / 'x.pth').write_bytes(b'what is this')
    refuse("x.pth' is damaged .* .pth", convert.identify, 'x.pth')
    refuse('1 variables .*: strange; pass --source', write, {'strange': np.ones(3, 'float32')})


@pytest.mark.parametrize('name', ['basic', 'grouped', 'cifar_a', 'cifar_b', 'deep_d', 'deep_s', 'eca_t', 'se'])
def test_to_torch_and_back_bit_for_bit(name, write):
    variables = torch_files.random_weights(torch_files.TINY[name])
    write(variables)
    convert.to_family('net.keras', 'back.safetensors', 'torch')
    back = from_torch.read('back.safetensors')
    assert back.keys() == variables.keys()
    assert all(np.array_equal(back[key], variables[key]) for key in back)
    assert convert.identify('back.safetensors')[0] is from_torch
    assert not [name for name in files() if 'part' in name]


def tiny(**axes):
    axes = {'filters': 4, 'stem': 'imagenet', 'block': 'bottleneck', 'shortcut': 'B', 'version': '1.5'} | axes
    return resnet_spec.ResNetSpec((1, 1, 1, 1), **axes)


@pytest.mark.parametrize(
    'spec,message',
    [
        (tiny(version='1'), r'strides of group2_block1_conv1 is \(2, 2\)'),
        (tiny(version='2'), 'has head_bn/gamma, '),
        (tiny(padding='same'), 'layer stem_conv_pad '),
        (tiny(bn_epsilon=1e-3), 'epsilon of stem_bn is 0.001'),
        (tiny(stem_bias=True), 'unexpected: conv1.bias'),
        (tiny(se_reduction=4), r'misshapen: .*\.se\.fc1'),
        (resnet_variants.cifar_spec(8, eca=True), r'unexpected: layer1\.0\.se\.conv\.weight'),
        (tiny(shortcut=None, version='1', block='basic'), 'missing: layer2.0.downsample'),
        (resnet_variants.cifar_spec(8, filters=4), 'padding of group2_block1_shortcut_pad'),
        (resnet_variants.mnist_spec(), r'misshapen: conv1\.weight'),
    ],
)
def test_nets_that_pytorch_cannot_express_are_refused(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resnet_model.resnet(spec, 5, resnet_variants.IMAGE_SHAPES[spec.stem]).save('net.keras')
    refuse(message, convert.to_family, 'net.keras', 'net.safetensors', 'torch')
    assert files() == ['net.keras']


def test_to_torch_of_other_files(tmp_path):
    path = tmp_path / 'net.keras'
    path.write_bytes(b'PK\x05\x06' + bytes(18))
    refuse('not a .keras file', convert.to_family, path, tmp_path / 'net.safetensors', 'torch')
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    refuse(r'net.keras .*\[n, h, w, c\]', convert.to_family, path, tmp_path / 'net.safetensors', 'torch')
    model = resnet_model.resnet(resnet_variants.cifar_spec(8), 10, (32, 32, 3))
    variance = model.get_layer('stem_bn').moving_variance  # one that is infinite leaves the logits finite
    variance.assign(np.r_[np.inf, np.ones(15)].astype('float32'))
    model.save(path)
    refuse('NaN or infinite values: bn1.running_var', convert.to_family, path, tmp_path / 'net.safetensors', 'torch')
