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

from checkpoints_tools import convert, from_torch, our_net, source, verify
from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.errors import UserError

PACKAGE = pathlib.Path(convert.__file__).parent
SHAPES = torch_files.TINY['bottleneck']


@pytest.fixture
def variables():
    return torch_files.random_weights(SHAPES)


@pytest.fixture
def write(tmp_path):
    """Write variables to a .pth and convert it; return the folder's files after, and the output."""

    def run(variables, output='out/net.keras', **options):
        torch_files.write_zip(tmp_path / 'net.pth', variables)
        return convert.convert(tmp_path / 'net.pth', tmp_path / output, **options)

    return run


def files(folder):
    return sorted(path.name for path in folder.rglob('*'))


def test_model_and_card(write, variables, tmp_path):
    counter = {'bn1.num_batches_tracked': np.array(7)}
    card = write(variables | counter)
    assert files(tmp_path / 'out') == ['net.card.json', 'net.keras']
    assert json.loads((tmp_path / 'out/net.card.json').read_text()) == json.loads(json.dumps(card))
    assert card['family'] == 'torch' and card['num_classes'] == 7 and card['labels'] == 'unknown'
    assert (
        resnet_spec.ResNetSpec(**card['spec'])
        == from_torch.describe({name: (shape, '') for name, shape in SHAPES.items()}).spec
    )
    assert (
        source.Input(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in card['input'].items()}
        )
        == from_torch.IMAGENET_INPUT
    )
    assert card['source_sha256'] == {'net.pth': hashlib.sha256((tmp_path / 'net.pth').read_bytes()).hexdigest()}
    assert card['verified']['max_relative_difference'] < 1e-5 and card['verified']['tolerance'] == 1e-4
    assert card['verified']['images'] == [[2, 96, 96, 3], [2, 75, 75, 3]] and 'keras' in card['versions']


def test_file_loads_without_this_package_and_computes_the_same(write, variables, tmp_path):
    write(variables)
    images = np.random.default_rng(0).normal(size=(1, 70, 70, 3)).astype('float32')
    np.save(tmp_path / 'images.npy', images)
    code = (
        'import keras, numpy as np, sys; m = keras.models.load_model("out/net.keras"); '
        'np.save("logits.npy", m(np.load("images.npy"))); print("official_resnet" in sys.modules, m.output.dtype)'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ['False', 'float32']
    shapes = {name: (array.shape, 'float32') for name, array in variables.items()}
    expected = from_torch.run(variables, images, from_torch.describe(shapes))
    np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_other_floats_become_float32(dtype, write, variables, tmp_path):
    write({name: array.astype(dtype) for name, array in variables.items()})
    kernel = keras.models.load_model(tmp_path / 'out/net.keras').get_layer('stem_conv').kernel.numpy()
    expected = variables['conv1.weight'].astype(dtype).astype('float32')
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


def without(variables, *names):
    return {name: array for name, array in variables.items() if name not in names}


def with_value(variables, name, value):
    array = variables[name].copy()
    array.flat[0] = value
    return variables | {name: array}


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda v: without(v, 'layer2.0.bn1.weight'), r'missing: layer2\.0\.bn1\.weight: '),
        (lambda v: v | {'aux.weight': np.ones(3, 'float32')}, r'unexpected: aux\.weight: '),
        (
            lambda v: without(v, 'layer2.0.bn1.bias') | {'layer2.0.bnX.bias': v['layer2.0.bn1.bias']},
            r'missing: layer2\.0\.bn1\.bias; unexpected: layer2\.0\.bnX\.bias',
        ),
        (
            lambda v: {name: array for name, array in v.items() if '.bn2.' not in name},
            r'missing: (layer\d\.\d\.bn2\.\w+, ){7}layer\d\.\d\.bn2\.\w+ and 12 more',
        ),
        (
            lambda v: v | {'bn1.bias': np.ones(5, 'float32'), 'fc.bias': np.ones((7, 1), 'float32')},
            r'misshapen: bn1\.bias \(5,\), not \(4,\), fc\.bias \(7, 1\), not \(7,\)',
        ),
        (lambda v: with_value(v, 'layer1.0.conv1.weight', np.nan), r'NaN or infinite values: layer1\.0\.conv1\.weight'),
        (lambda v: with_value(v, 'fc.weight', -np.inf), r'infinite values: fc\.weight'),
        (
            lambda v: with_value(v | {'fc.weight': v['fc.weight'].astype('float64')}, 'fc.weight', 1e300),
            r'infinite values: fc\.weight',
        ),
        (lambda v: v | {'bn1.bias': v['bn1.bias'].astype('int64')}, r'of no number type: bn1\.bias int64'),
        (lambda v: with_value(v, 'bn1.running_var', -3), r'not finite numbers: nothing was written'),
    ],
)
def test_what_does_not_fit_is_listed_by_name_and_nothing_is_written(change, message, write, variables, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        write(change(variables))
    assert '\n' not in str(caught.value)
    assert files(tmp_path) == ['net.pth']


def test_shapes_that_promise_a_net_far_beyond_the_file(write, tmp_path):
    """A hundred thousand filters in the first convolution alone: the model would have 10^12 weights."""
    variables = torch_files.random_weights(torch_files.TINY['basic'])
    variables['conv1.weight'] = np.zeros((100_000, 3, 7, 7), 'float32')
    with pytest.raises(UserError, match=r'misshapen: bn1\.weight \(4,\), not \(100000,\), .* and \d\d more'):
        write(variables)


def test_a_net_that_computes_something_else_is_not_written(write, variables, tmp_path, monkeypatch):
    describe = from_torch.describe
    monkeypatch.setattr(
        from_torch,
        'describe',
        lambda shapes, variant: dataclasses.replace(
            describe(shapes), spec=dataclasses.replace(describe(shapes).spec, padding='same')
        ),
    )
    with pytest.raises(UserError, match=r'differs from its source by .* of the largest logit at 96 x 96 pixels'):
        write(variables)
    assert files(tmp_path) == ['net.pth']


def test_a_full_disk_leaves_nothing(write, variables, tmp_path, monkeypatch):
    def fail(model, path, **options):
        pathlib.Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(keras.Model, 'save', fail)
    with pytest.raises(UserError, match='No space left on device; free some space'):
        write(variables, 'net.keras')
    assert files(tmp_path) == ['net.pth']


@pytest.mark.parametrize(
    'output,message',
    [('net.h5', r'does not end in \.keras'), ('.', 'does not end in'), ('folder.keras', 'is a folder or the input')],
)
def test_outputs_that_cannot_be(output, message, write, variables, tmp_path):
    (tmp_path / 'folder.keras').mkdir()
    with pytest.raises(UserError, match=message):
        write(variables, output)


def fake_family(labels='imagenet1001', num_classes=11, bias=True):
    """A family whose last layer has the background's column first, in one variable of ours each."""
    spec = resnet_spec.ResNetSpec((1,), filters=2)
    model = convert._build(spec, num_classes)
    random = np.random.default_rng(0)
    variables = {
        variable.path: random.uniform(0.5, 1, variable.shape).astype('float32') for variable in model.variables
    }
    entries = [our_net.Entry(name, (name,), our_net.identity) for name in variables]

    def run(values, images, _):
        for variable in model.variables:
            variable.assign(values[variable.path])
        return model(images).numpy()

    return types.SimpleNamespace(
        shapes=lambda path: {name: (array.shape, 'float32') for name, array in variables.items()},
        recognises=lambda shapes: True,
        read=lambda path: variables,
        ignored=lambda shapes: {},
        list_files=lambda path: [f'{path}.data-00000-of-00001', f'{path}.index'],
        run=run,
        describe=lambda shapes, variant: source.Source('slim', 'tiny', spec, num_classes, source.Input(), labels),
        name_map=lambda source, shapes: list(entries),
        entries=entries,
        variables=variables,
    )


@pytest.fixture
def family(monkeypatch, tmp_path):
    fake = fake_family()
    monkeypatch.setattr(convert, '_module', lambda name: fake)
    (tmp_path / 'x.ckpt.index').write_bytes(b'index')
    (tmp_path / 'x.ckpt.data-00000-of-00001').write_bytes(b'data')
    (tmp_path / 'x.ckpt-2.index').write_bytes(b'another')
    return fake


def test_background_class_can_be_dropped(family, tmp_path):
    card = convert.convert(tmp_path / 'x.ckpt', tmp_path / 'net.keras', num_classes=10)
    assert (card['num_classes'], card['labels']) == (10, 'imagenet1000')
    assert sorted(card['source_sha256']) == ['x.ckpt.data-00000-of-00001', 'x.ckpt.index']
    kernel = keras.models.load_model(tmp_path / 'net.keras').get_layer('logits').kernel.numpy()
    np.testing.assert_array_equal(kernel, family.variables['logits/kernel'][:, 1:])
    assert convert.convert(tmp_path / 'x.ckpt', tmp_path / 'all.keras', num_classes=11)['labels'] == 'imagenet1001'
    for num_classes in (9, 1000):
        with pytest.raises(UserError, match=rf'num_classes={num_classes}: the checkpoint has 11 classes'):
            convert.convert(tmp_path / 'x.ckpt', tmp_path / 'no.keras', num_classes=num_classes)


def test_mean_image_beside_the_checkpoint(family, tmp_path):
    file = tmp_path / 'mean.binaryproto'
    file.write_bytes(b'mean')
    family.list_files = lambda path: [f'{path}.index', file]
    family.with_mean = lambda source, path: dataclasses.replace(
        source, input=dataclasses.replace(source.input, mean=(1.0, 2.0, 3.0))
    )
    card = convert.convert(tmp_path / 'x.ckpt', tmp_path / 'net.keras')
    assert card['input']['mean'] == (1.0, 2.0, 3.0) and 'mean.binaryproto' in card['source_sha256']
    del family.with_mean
    assert convert.convert(tmp_path / 'x.ckpt', tmp_path / 'net.keras')['input']['mean'] == (0.0, 0.0, 0.0)


def test_num_classes_only_where_there_is_a_background(family, tmp_path):
    family.describe = fake_family('unknown').describe
    with pytest.raises(UserError, match='labels unknown'):
        convert.convert(tmp_path / 'x.ckpt', tmp_path / 'no.keras', num_classes=10)


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda entries: entries[:-1], 'unexpected: logits/bias'),
        (lambda entries: [*entries, entries[0]], 'used twice: stem_conv/kernel'),
        (
            lambda entries: [*entries[:-1], entries[-1]._replace(target='logits/offset')],
            'no source of ours: logits/bias; not in our net: logits/offset',
        ),
        (
            lambda entries: [entries[0], entries[1]._replace(target='stem_bn/beta'), *entries[2:]],
            'no source of ours: stem_bn/gamma; set twice: stem_bn/beta',
        ),
        (
            lambda entries: [entries[0]._replace(sources=('stem_conv/kernel', 'logits/kernel')), *entries[1:]],
            'used twice: logits/kernel',
        ),
    ],
)
def test_a_faulty_name_map_is_caught(family, tmp_path, change, message):
    entries = change(family.entries)
    family.name_map = lambda source, shapes: entries
    with pytest.raises(UserError, match=message):
        convert.convert(tmp_path / 'x.ckpt', tmp_path / 'no.keras')
    assert not (tmp_path / 'no.keras').exists()


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
    with pytest.raises(UserError, match='used twice: bias'):
        convert.fit(fake, shapes, 'x')


def test_unknown_files(tmp_path, monkeypatch, write):
    monkeypatch.setattr(convert, 'FAMILIES', {'torch': ('.pth',)})
    with pytest.raises(UserError, match='there is no .*nothing'):
        convert.identify(tmp_path / 'nothing')
    (tmp_path / 'x.bin').write_bytes(b'what is this')
    with pytest.raises(UserError, match='is no checkpoint of torch'):
        convert.identify(tmp_path / 'x.bin')
    (tmp_path / 'x.pth').write_bytes(b'what is this')
    with pytest.raises(UserError, match='is damaged or not a .pt, .pth or .th file'):
        convert.identify(tmp_path / 'x.pth')
    with pytest.raises(UserError, match='holds 1 variables of no known family: strange'):
        write({'strange': np.ones(3, 'float32')})
    with pytest.raises(UserError, match="source 'tf' is none of auto, torch"):
        convert.identify(tmp_path / 'x.pth', 'tf')


@pytest.mark.parametrize('name', torch_files.TINY)
def test_to_torch_and_back_bit_for_bit(name, write, tmp_path):
    variables = torch_files.random_weights(torch_files.TINY[name])
    write(variables, 'net.keras')
    convert.to_torch(tmp_path / 'net.keras', tmp_path / 'back.safetensors')
    back = from_torch.read(tmp_path / 'back.safetensors')
    assert back.keys() == variables.keys()
    assert all(np.array_equal(back[key], variables[key]) for key in back)
    convert.convert(tmp_path / 'back.safetensors', tmp_path / 'again.keras')
    first, again = (keras.models.load_model(tmp_path / name).get_weights() for name in ('net.keras', 'again.keras'))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not list(tmp_path.glob('*.part'))


def tiny(**axes):
    return resnet_spec.ResNetSpec(
        (1, 1, 1, 1),
        **{'filters': 4, 'stem': 'imagenet', 'block': 'bottleneck', 'shortcut': 'B', 'version': '1.5'} | axes,
    )


@pytest.mark.parametrize(
    'spec,message',
    [
        (tiny(version='1'), r'strides of group2_block1_conv1 is \(2, 2\), there \(1, 1\)'),
        (tiny(version='2'), 'has head_bn/gamma, '),
        (tiny(padding='same'), 'layer stem_conv_pad is in one'),
        (tiny(stem_pool='same'), 'layer stem_pad is in one'),
        (tiny(bn_epsilon=1e-3), 'epsilon of stem_bn is 0.001, there 1e-05'),
        (tiny(se_reduction=4), 'has group1_block1_se_conv1/kernel, .* and 8 more, for which PyTorch has no name'),
        (tiny(stem='deep'), 'has stem_conv1/kernel'),
        (tiny(stem_bias=True), 'unexpected: conv1.bias'),
        (tiny(shortcut='C', block='basic'), 'unexpected: layer1.0.downsample.0.weight'),
        (tiny(shortcut=None, version='1', block='basic'), 'missing: layer2.0.downsample'),
        (tiny(output_stride=16), 'layer group4_block1_conv2_pad is in one'),
        (resnet_variants.cifar_spec(8, filters=4), 'padding of group2_block1_shortcut_pad'),
        (resnet_variants.mnist_spec(), r'misshapen: conv1\.weight'),
    ],
)
def test_nets_that_pytorch_cannot_express_are_refused_in_one_line(spec, message, tmp_path):
    resnet_model.resnet(spec, 5, resnet_variants.IMAGE_SHAPES[spec.stem]).save(tmp_path / 'net.keras')
    with pytest.raises(UserError, match=message) as caught:
        convert.to_torch(tmp_path / 'net.keras', tmp_path / 'net.safetensors')
    assert '\n' not in str(caught.value) and files(tmp_path) == ['net.keras']


@pytest.mark.parametrize('content', [b'', b'not a model', b'PK\x05\x06' + bytes(18)])
def test_to_torch_of_other_files(content, tmp_path):
    (tmp_path / 'net.keras').write_bytes(content)
    with pytest.raises(UserError, match='not a .keras model of ours'):
        convert.to_torch(tmp_path / 'net.keras', tmp_path / 'net.safetensors')


def test_to_torch_of_another_model(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / 'net.keras')
    with pytest.raises(UserError, match='is no'):
        convert.to_torch(tmp_path / 'net.keras', tmp_path / 'net.safetensors')


def test_images_are_as_the_source_wants_them():
    images = np.array([[[[255, 0, 51]]]], np.uint8)
    torch_input = source.normalized(images, from_torch.IMAGENET_INPUT)
    np.testing.assert_allclose(
        torch_input[0, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-5
    )
    caffe = source.Input('BGR', mean=(103.0, 115.0, 123.0))
    np.testing.assert_array_equal(source.normalized(images, caffe)[0, 0, 0], [51 - 103, -115, 255 - 123])
    random = verify.random_images(caffe, 2, 75)
    assert random.shape == (2, 75, 75, 3) and random.dtype == np.float32
    np.testing.assert_array_equal(random, verify.random_images(caffe, 2, 75))


@pytest.mark.parametrize(
    'spec',
    [
        *(
            resnet_variants.VARIANTS[name]
            for name in ('resnet20_v1', 'resnet50_v1.5', 'resnext50_32x4d', 'wide_resnet50_2')
        ),
        *(resnet_variants.VARIANTS[name] for name in ('resnet18_v1', 'resnet34_v2', 'resnet50_v2', 'seresnet50_v1')),
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
        with pytest.raises(UserError, match='left out'):
            our_net.count_blocks(places)
