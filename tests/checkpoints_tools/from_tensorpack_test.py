"""tensorpack's nets in .npz files written here: every family against their own definition; damaged files."""

import io
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
from fixtures.conversion import assert_equal, assert_runs_alike, converted, fitted, fuzz, images_of

from checkpoints_tools import convert, from_tensorpack
from official_resnet import resnet_variants
from official_resnet.errors import UserError


def variables_of(mode='resnet', blocks=(2, 3), filters=16, num_classes=7, is_basic=False):
    """{name: array} as resnet_model.py of tensorpack creates them, random values; mode as its flag --mode."""
    random, variables = np.random.default_rng(0), {}

    def conv(name, side, taken, given, split=1):
        variables[f'{name}/W'] = random.standard_normal((side, side, taken // split, given), 'float32') * math.sqrt(
            2 * split / (side * side * taken)
        )

    def norm(name, channels):
        for part, low, high in (
            ('gamma', 0.3, 0.9),
            ('beta', -0.2, 0.2),
            ('mean/EMA', -0.2, 0.2),
            ('variance/EMA', 0.5, 1.5),
        ):
            variables[f'{name}/bn/{part}'] = random.uniform(low, high, channels)

    def dense(name, taken, given):
        variables[f'{name}/W'] = random.normal(0, 1 / math.sqrt(taken), (taken, given))
        variables[f'{name}/b'] = random.normal(0, 0.5, given)

    def conv_norm(name, side, taken, given, split=1):
        conv(name, side, taken, given, split)
        norm(name, given)

    is_preact = mode == 'preact'
    conv_norm('conv0', 7, 3, filters)
    taken = filters
    for group, count in enumerate(blocks):
        ch = filters * 2**group
        outer = ch if is_basic else 4 * ch
        for block in range(count):
            name = f'group{group}/block{block}'
            if is_preact and block:
                norm(f'{name}/preact', taken)
            last = conv if is_preact else conv_norm
            if is_basic:
                conv_norm(f'{name}/conv1', 3, taken, ch)
                last(f'{name}/conv2', 3, ch, ch)
            else:
                inner, split = (2 * ch, 32) if mode == 'resnext32x4d' else (ch, 1)
                conv_norm(f'{name}/conv1', 1, taken, inner)
                conv_norm(f'{name}/conv2', 3, inner, inner, split)
                last(f'{name}/conv3', 1, inner, outer)
            if mode == 'se':
                dense(f'{name}/fc1', outer, ch // 4)
                dense(f'{name}/fc2', ch // 4, outer)
            if taken != outer:
                last(f'{name}/convshortcut', 1, taken, outer)
            taken = outer
        if is_preact:
            norm(f'group{group}/bnlast', taken)
    dense('linear', taken, num_classes)
    return {name: value.astype('float32') for name, value in variables.items()}


def test_resnet50(tmp_path):
    path = tmp_path / 'ImageNet-ResNet50.npz'
    np.savez(path, **variables_of(blocks=(3, 4, 6, 3), filters=64, num_classes=1000))
    assert convert.identify(path)[0] is from_tensorpack
    source, variables, model = converted(from_tensorpack, path)
    assert (source.variant, source.labels, source.input.channels) == ('ImageNet-ResNet50', 'imagenet1000', 'BGR')
    assert sum(math.prod(weight.shape) for weight in model.trainable_variables) == 25_557_032
    assert_runs_alike(from_tensorpack, source, variables, model)


@pytest.mark.parametrize(
    'mode,is_basic,variant,ours',
    [
        ('resnet', True, 'ImageNet-ResNet12', 'resnet12_v1.5'),
        ('resnet', False, 'ImageNet-ResNet17', 'resnet17_v1.5'),
        ('se', False, 'ImageNet-ResNet17-SE', 'seresnet17_v1.5'),
        ('resnext32x4d', False, 'ImageNet-ResNeXt17-32x1d', 'resnext17_32x4d'),  # d is 4 with the published 64 filters
        ('preact', True, 'ImageNet-PreActResNet12', 'resnet12_v2'),
        ('preact', False, 'ImageNet-PreActResNet17', 'resnet17_v2'),
    ],
)
@pytest.mark.parametrize('suffix', ['', ':0'])
def test_families(tmp_path, mode, is_basic, variant, ours, suffix):
    expected = variables_of(mode, is_basic=is_basic)
    extra = {'global_step': np.int64(7), 'learning_rate': np.float32(0.1), 'conv0/W/Momentum': expected['conv0/W']}
    saved = {f'{name}{suffix}': value for name, value in (expected | extra).items()}
    np.savez_compressed(tmp_path / 'net.npz', **saved)
    source, variables, model = converted(from_tensorpack, tmp_path / 'net.npz')
    assert source.variant == variant
    shapes = from_tensorpack.shapes(tmp_path / 'net.npz')
    assert set(from_tensorpack.ignored(shapes)) == set(extra)
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value)
    assert_runs_alike(from_tensorpack, source, variables, model, (64, 75))
    assert from_tensorpack.describe(shapes, ours) == source
    with pytest.raises(UserError, match=variant):
        from_tensorpack.describe(shapes, 'ImageNet-ResNet50')


@pytest.mark.parametrize(
    'mode,size,variant',
    [
        ('resnet', 18, 'resnet18_v1.5'),
        ('resnet', 34, 'resnet34_v1.5'),
        ('resnet', 101, 'resnet101_v1.5'),
        ('resnet', 152, 'resnet152_v1.5'),
        ('se', 50, 'seresnet50_v1.5'),
        ('resnext32x4d', 101, 'resnext101_32x4d'),
    ],
)
def test_published_nets(mode, size, variant):
    kind, blocks = resnet_variants.IMAGENET_BLOCKS[size]
    shapes = {
        name: (value.shape, 'float32') for name, value in variables_of(mode, blocks, 64, 1000, kind == 'basic').items()
    }
    spec = from_tensorpack.describe(shapes, variant).spec
    ours = resnet_variants.VARIANTS[variant]
    for field in ('group_blocks', 'filters', 'block', 'version', 'base_width', 'cardinality', 'se_reduction'):
        assert getattr(spec, field) == getattr(ours, field)
    assert spec.padding == spec.stem_pool == 'same' and spec.bn_epsilon == 1e-5


def test_the_bn_that_preactivated_files_lack_changes_nothing(tmp_path):
    np.savez(tmp_path / 'net.npz', **variables_of('preact'))
    _, _, model = converted(from_tensorpack, tmp_path / 'net.npz')
    x = images_of(8)
    np.testing.assert_allclose(
        model.get_layer('group1_block1_bn1')(np.tile(x, (1, 1, 1, 6))[..., :16]),
        np.tile(x, (1, 1, 1, 6))[..., :16],
        rtol=3e-7,
    )


def test_caffes_dialects_are_told():
    shapes = {name: ((1,), 'float32') for name in ('conv1/W', 'bn_conv1/gamma', 'res2a_branch1/W')}
    assert from_tensorpack.recognises(shapes)
    with pytest.raises(UserError, match='loadcaffe.*caffemodel'):
        from_tensorpack.describe(shapes)
    with pytest.raises(UserError, match='load-resnet.py.*caffemodel'):
        from_tensorpack.describe({'conv0/b': ((64,), 'float32'), 'conv0/W': ((7, 7, 3, 64), 'float32')})


@pytest.mark.parametrize(
    'change,message',
    [
        ({'group0/block1/conv2/W': None}, 'missing: group0/block1/conv2/W'),
        ({'group1/block0/convshortcut/bn/beta': None}, 'missing: group1/block0/convshortcut/bn/beta'),
        ({'conv0/bn/gamma': np.zeros(3)}, 'misshapen: conv0/bn/gamma'),
        ({'linear/b': None}, 'linear/b'),
        ({'conv0/W': np.zeros(3)}, 'conv0/W'),
        ({'group1/block1/conv1/W': None}, 'groups'),
        ({'group0/block0/conv2/W': np.zeros((3, 3, 0, 16))}, 'conv2/W'),
    ],
)
def test_missing_and_misshapen(change, message):
    shapes = {name: (value.shape, 'float32') for name, value in (variables_of() | change).items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        fitted(from_tensorpack, shapes)
    assert '\n' not in str(caught.value)


class Trap:
    """A pickle of which, when opened, makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(header, data=b''):
    """The bytes of an .npy with this text for a header."""
    header = header.encode()
    return b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') + header + data


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    'data,message',
    [
        (npy(HEADER % ('<f4', f'({2**60},)'), bytes(16)), 'has 16 bytes'),
        (npy(HEADER % ('<f4', '(-4, -1)'), bytes(16)), 'has 16 bytes'),
        (npy(HEADER % ('<f4', '(4,)'), bytes(20)), 'has 20 bytes'),
        (npy(HEADER % ('|S4', '(4,)'), bytes(16)), 'not numbers'),
        (npy(HEADER % ('<f4', '(open("x", "w"),)'), bytes(16)), 'damaged'),
        (npy('(' * 9000), 'damaged'),
        (b'\x93NUMPY\x09\0' + bytes(20), 'version'),
        (b'no array', 'damaged'),
        (b'', 'damaged'),
    ],
)
def test_hostile_arrays(tmp_path, data, message):
    with zipfile.ZipFile(tmp_path / 'net.npz', 'w') as archive:
        archive.writestr('conv0/W.npy', data)
    refuse(tmp_path / 'net.npz', message)


def refuse(path, message):
    for function in (from_tensorpack.shapes, from_tensorpack.read):
        with pytest.raises(UserError, match=message) as caught:
            function(path)
        assert '\n' not in str(caught.value)


def test_pickles_are_not_opened(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Trap(tmp_path / 'trap')]))
    with zipfile.ZipFile(tmp_path / 'net.npz', 'w') as archive:
        archive.writestr('conv0/W.npy', file.getvalue())
    refuse(tmp_path / 'net.npz', 'pickled objects are not opened')
    (tmp_path / 'net.npz').write_bytes(pickle.dumps(Trap(tmp_path / 'trap')))
    refuse(tmp_path / 'net.npz', 'not an .npz file')
    assert not (tmp_path / 'trap').exists()


def test_hostile_zips(tmp_path):
    path = tmp_path / 'net.npz'
    np.savez_compressed(path, zeros=np.zeros(30 << 20, 'uint8'))
    refuse(path, 'declares')
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(20_001):
            archive.writestr(f'{i}.npy', b'')
    refuse(path, 'declares 20001 arrays')
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('a.npy', 'a:0.npy'):
            archive.writestr(name, npy(HEADER % ('<f4', '(1,)'), bytes(4)))
    refuse(path, 'twice')
    refuse(tmp_path / 'none.npz', 'No such file')


def test_fortran_order_and_half_precision(tmp_path):
    expected = variables_of()
    np.savez(
        tmp_path / 'net.npz', **{name: np.asfortranarray(value.astype('float16')) for name, value in expected.items()}
    )
    _, variables, _ = converted(from_tensorpack, tmp_path / 'net.npz')
    assert_equal(variables['linear/W'], expected['linear/W'].astype('float16').astype('float32'))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_fuzz(tmp_path, save):
    save(tmp_path / 'net.npz', **variables_of(blocks=(1, 1), filters=2, num_classes=3))
    fuzz(from_tensorpack, (tmp_path / 'net.npz').read_bytes(), tmp_path / 'net.npz')
