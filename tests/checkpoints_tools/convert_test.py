"""Strict both ways, verified before anything is written, all or nothing; and out again to PyTorch's names."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from fixtures import torch_files
from fixtures.conversion import assert_equal, changed, images_of, refuse, shapes_of

from checkpoints_tools import convert, from_torch, our_net, source, verify
from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.errors import UserError

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


def test_file_loads_without_this_package_and_computes_the_same(write):
    write()
    np.save('images.npy', images_of(70))
    code = (
        'import keras, numpy as np, sys; m = keras.models.load_model("net.keras"); '
        'np.save("logits.npy", m(np.load("images.npy"))); print("official_resnet" in sys.modules, m.output.dtype)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ['False', 'float32']
    expected = from_torch.run(VARIABLES, images_of(70), from_torch.describe(shapes_of(VARIABLES)))
    assert_equal(np.load('logits.npy'), expected)


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_other_floats_become_float32(dtype, write):
    write({name: array.astype(dtype) for name, array in VARIABLES.items()})
    kernel = keras.models.load_model('net.keras').get_layer('stem_conv').kernel.numpy()
    expected = VARIABLES['conv1.weight'].astype(dtype).astype('float32')
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


def with_first(name, value, dtype='float32'):
    """Return the change of a variable whose first number is this value."""
    array = VARIABLES[name].astype(dtype)
    array.flat[0] = value
    return {name: array}


@pytest.mark.parametrize(
    'change,message',
    [
        ({'layer2.0.bn1.weight': None}, r'missing: layer2\.0\.bn1\.weight: '),
        ({'aux.weight': np.ones(3, 'float32')}, r'unexpected: aux\.weight: '),
        (
            {'layer2.0.bn1.bias': None, 'layer2.0.bnX.bias': VARIABLES['layer2.0.bn1.bias']},
            r'missing: layer2\.0\.bn1\.bias; unexpected: layer2\.0\.bnX\.bias',
        ),
        (
            {name: None for name in VARIABLES if '.bn2.' in name},
            r'missing: (layer\d\.\d\.bn2\.\w+, ){7}layer\d\.\d\.bn2\.\w+ and 12 more',
        ),
        (
            {'bn1.bias': np.ones(5, 'float32'), 'fc.bias': np.ones((7, 1), 'float32')},
            r'misshapen: bn1\.bias \(5,\), not \(4,\), fc\.bias \(7, 1\), not \(7,\)',
        ),
        ({'conv1.weight': np.zeros((99_999, 3, 7, 7), 'float32')}, '99999 filters'),  # 10^12 weights
        (with_first('layer1.0.conv1.weight', np.nan), r'NaN or infinite.*: layer1\.0\.conv1\.weight'),
        (with_first('fc.weight', -np.inf), r'infinite.*: fc\.weight'),
        (with_first('fc.weight', 1e300, 'float64'), r'infinite.*: fc\.weight'),
        ({'bn1.bias': np.ones(4, 'int64')}, r'bn1\.bias int64'),
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


def test_a_full_disk_leaves_nothing(write, monkeypatch):
    def fail(model, path, **options):
        pathlib.Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(keras.Model, 'save', fail)
    refuse('No space left on device; free some space', write)
    assert files() == ['net.pth']


def test_outputs_that_cannot_be(write, tmp_path):
    (tmp_path / 'folder.keras').mkdir()
    for output, message in (('net.h5', r'net\.h5 .*\.keras'), ('.', r'\.keras'), ('folder.keras', 'folder.*another')):
        refuse(message, write, VARIABLES, output)


def fake_family():
    """A family whose last layer has the background's column first, in one variable of ours each."""
    spec = resnet_spec.ResNetSpec((1,), filters=2)
    model = convert._build(spec, 11)
    random = np.random.default_rng(0)
    variables = {
        variable.path: random.uniform(0.5, 1, variable.shape).astype('float32') for variable in model.variables
    }
    entries = [our_net.Entry(name, (name,), our_net.identity) for name in variables]
    found = source.Source('slim', 'tiny', spec, 11, source.Input(), 'imagenet1001')

    def run(values, images, _):
        for variable in model.variables:
            variable.assign(values[variable.path])
        return model(images).numpy()

    return types.SimpleNamespace(
        shapes=lambda path: shapes_of(variables),
        recognises=lambda shapes: True,
        read=lambda path: variables,
        ignored=lambda shapes: {},
        list_files=lambda path: [f'{path}.data-00000-of-00001', f'{path}.index'],
        run=run,
        describe=lambda shapes, variant: found,
        name_map=lambda source, shapes: list(entries),
        entries=entries,
        variables=variables,
    )


@pytest.fixture
def family(monkeypatch, tmp_path):
    """A fake family, for which x.ckpt in the current folder is a checkpoint."""
    fake = fake_family()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert, '_module', lambda name: fake)
    for name in ('x.ckpt.index', 'x.ckpt.data-00000-of-00001', 'x.ckpt-2.index'):
        (tmp_path / name).write_bytes(name.encode())
    return fake


def test_background_class_can_be_dropped(family):
    card = convert.convert('x.ckpt', 'net.keras', num_classes=10)
    assert (card['num_classes'], card['labels']) == (10, 'imagenet1000')
    assert sorted(card['source_sha256']) == ['x.ckpt.data-00000-of-00001', 'x.ckpt.index']
    kernel = keras.models.load_model('net.keras').get_layer('logits').kernel.numpy()
    np.testing.assert_array_equal(kernel, family.variables['logits/kernel'][:, 1:])
    assert convert.convert('x.ckpt', 'all.keras', num_classes=11)['labels'] == 'imagenet1001'
    for num_classes in (9, 1000):
        refuse(f'--num_classes={num_classes}.* 11 c', convert.convert, 'x.ckpt', 'no.keras', num_classes=num_classes)
    other = dataclasses.replace(family.describe(None, None), labels='unknown')
    family.describe = lambda shapes, variant: other
    refuse('--num_classes=10.* unknown', convert.convert, 'x.ckpt', 'no.keras', num_classes=10)


def test_mean_image_beside_the_checkpoint(family, tmp_path):
    (tmp_path / 'mean.binaryproto').write_bytes(b'mean')
    family.list_files = lambda path: [f'{path}.index', 'mean.binaryproto']
    family.with_mean = lambda source, path: dataclasses.replace(
        source, input=dataclasses.replace(source.input, mean=(1.0, 2.0, 3.0))
    )
    card = convert.convert('x.ckpt', 'net.keras')
    assert card['input']['mean'] == (1.0, 2.0, 3.0) and 'mean.binaryproto' in card['source_sha256']


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda entries: entries[:-1], 'unexpected: logits/bias'),
        (lambda entries: [*entries, entries[0]], 'used twice: stem_conv/kernel'),
        (
            lambda entries: [*entries[:-1], entries[-1]._replace(target='logits/offset')],
            'no source.*: logits/bias; not in .*: logits/offset',
        ),
        (
            lambda entries: [entries[0], entries[1]._replace(target='stem_bn/beta'), *entries[2:]],
            'no source.*: stem_bn/gamma; set twice: stem_bn/beta',
        ),
        (
            lambda entries: [entries[0]._replace(sources=('stem_conv/kernel', 'logits/kernel')), *entries[1:]],
            'used twice: logits/kernel',
        ),
    ],
)
def test_a_faulty_name_map_is_caught(family, change, message):
    entries = change(family.entries)
    family.name_map = lambda source, shapes: entries
    refuse(message, convert.convert, 'x.ckpt', 'no.keras')
    assert 'no.keras' not in files()


def test_a_vector_may_be_folded_into_several():
    fake = fake_family()
    shapes = fake.shapes('x') | {'bias': ((2,), 'float32')}
    fold = [
        entry._replace(sources=(*entry.sources, 'bias'), convert=our_net.less_biases)
        if entry.target.startswith('group1') and entry.target.endswith('/moving_mean')
        else entry
        for entry in fake.entries
    ]
    assert sum('bias' in entry.sources for entry in fold) == 2
    fake.name_map = lambda source, shapes: fold
    assert convert.fit(fake, shapes, 'x') == (fake.describe(shapes, None), fold)
    twice = [entry._replace(sources=('bias',)) if entry.target.endswith('/gamma') else entry for entry in fold]
    fake.name_map = lambda source, shapes: twice
    refuse('used twice: bias', convert.fit, fake, shapes, 'x')


def test_unknown_files(tmp_path, monkeypatch, write):
    monkeypatch.setattr(convert, 'FAMILIES', {'torch': ('.pth',)})
    for name in ('x.bin', 'x.pth'):
        (tmp_path / name).write_bytes(b'what is this')
    refuse('there is no nothing; pass', convert.identify, 'nothing')
    refuse('x.bin .*torch.*--source', convert.identify, 'x.bin')
    refuse('x.pth is damaged .* .pth', convert.identify, 'x.pth')
    refuse('1 variables .*: strange; pass --source', write, {'strange': np.ones(3, 'float32')})
    refuse('--source=tf .*auto, torch', convert.identify, 'x.pth', 'tf')


@pytest.mark.parametrize('name', torch_files.TINY)
def test_to_torch_and_back_bit_for_bit(name, write):
    variables = torch_files.random_weights(torch_files.TINY[name])
    write(variables)
    convert.to_torch('net.keras', 'back.safetensors')
    back = from_torch.read('back.safetensors')
    assert back.keys() == variables.keys()
    assert all(np.array_equal(back[key], variables[key]) for key in back)
    convert.convert('back.safetensors', 'again.keras')
    first, again = (keras.models.load_model(name).get_weights() for name in ('net.keras', 'again.keras'))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
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
        (tiny(stem_pool='same'), 'layer stem_pad '),
        (tiny(bn_epsilon=1e-3), 'epsilon of stem_bn is 0.001'),
        (tiny(se_reduction=4), 'has group1_block1_se_conv1/kernel, .* and 8 more'),
        (tiny(stem='deep'), 'has stem_conv1/kernel'),
        (tiny(stem_bias=True), 'unexpected: conv1.bias'),
        (tiny(shortcut='C', block='basic'), 'unexpected: layer1.0.downsample.0.weight'),
        (tiny(shortcut=None, version='1', block='basic'), 'missing: layer2.0.downsample'),
        (tiny(output_stride=16), 'layer group4_block1_conv2_pad '),
        (resnet_variants.cifar_spec(8, filters=4), 'padding of group2_block1_shortcut_pad'),
        (resnet_variants.mnist_spec(), r'misshapen: conv1\.weight'),
    ],
)
def test_nets_that_pytorch_cannot_express_are_refused(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resnet_model.resnet(spec, 5, resnet_variants.IMAGE_SHAPES[spec.stem]).save('net.keras')
    refuse(message, convert.to_torch, 'net.keras', 'net.safetensors')
    assert files() == ['net.keras']


def test_to_torch_of_other_files(tmp_path):
    path = tmp_path / 'net.keras'
    for content in (b'', b'not a model', b'PK\x05\x06' + bytes(18)):
        path.write_bytes(content)
        refuse('not a .keras model', convert.to_torch, path, tmp_path / 'net.safetensors')
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    refuse(r'net.keras .*\[n, h, w, c\]', convert.to_torch, path, tmp_path / 'net.safetensors')
    model = resnet_model.resnet(resnet_variants.cifar_spec(8), 10, (32, 32, 3))
    variance = model.get_layer('stem_bn').moving_variance  # one that is infinite leaves the logits finite
    variance.assign(np.r_[np.inf, np.ones(15)].astype('float32'))
    model.save(path)
    refuse('NaN or infinite values: bn1.running_var', convert.to_torch, path, tmp_path / 'net.safetensors')


def test_images_are_as_the_source_wants_them():
    images = np.array([[[[255, 0, 51]]]], np.uint8)
    fed = source.normalized(images, from_torch.IMAGENET_INPUT)
    np.testing.assert_allclose(fed[0, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-5)
    caffe = source.Input('BGR', mean=(103.0, 115.0, 123.0))
    np.testing.assert_array_equal(source.normalized(images, caffe)[0, 0, 0], [51 - 103, -115, 255 - 123])
    random = verify.random_images(caffe, 2, 75)
    assert random.shape == (2, 75, 75, 3) and random.dtype == np.float32
    np.testing.assert_array_equal(random, verify.random_images(caffe, 2, 75))


@pytest.mark.parametrize(
    'spec',
    [
        *map(resnet_variants.VARIANTS.get, ('resnet20_v1', 'resnet50_v1.5', 'resnext50_32x4d', 'wide_resnet50_2')),
        *map(resnet_variants.VARIANTS.get, ('resnet18_v1', 'resnet34_v2', 'resnet50_v2', 'seresnet50_v1')),
        *(tiny(version=version, shortcut='group') for version in ('1', '2')),
        tiny(version='2', stem_bn=True, stem_bias=True, se_reduction=4, stem_filters=16),
        tiny(version='2', block='basic', stride_block='last', cardinality=1),
    ],
)
def test_what_our_net_consists_of_is_known_before_it_is_made(spec):
    model = resnet_model.resnet(spec, 5, resnet_variants.IMAGE_SHAPES[spec.stem])
    assert our_net.variables(spec, 5) == {variable.path: tuple(variable.shape) for variable in model.variables}


def test_blocks_are_counted_and_none_is_left_out():
    assert our_net.count_blocks([(1, 1), (2, 2), (2, 1), (1, 1)]) == (1, 2)
    for places in ([], [(2, 1)], [(1, 2)], [(1, 1), (1, 3)], [(1, 1), (3, 1)], [(0, 1), (1, 1)]):
        with pytest.raises(UserError):
            our_net.count_blocks(places)
