"""keras.applications' own nets with random weights, biases included, saved in each of Keras' formats; damaged files."""

import functools
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from fixtures import random_weights
from fixtures.conversion import assert_equal, assert_runs_alike, converted, fitted, fuzz, images_of
from keras.src.applications import resnet as peers

from checkpoints_tools import convert, from_keras_applications
from official_resnet.errors import UserError

randomize = functools.partial(random_weights.randomize, scales=(0.5, 1.2), deviation=0.2)  # biases like a signal
OLD_ROLES = {
    'kernel': 'W',
    'bias': 'b',
    'gamma': 'gamma',
    'beta': 'beta',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_std',
}


def tiny(is_v2, group_blocks=(2, 3), filters=8, num_classes=7):
    """A net of keras.applications' own code, but for its size; the stem has 64 filters whatever the groups have."""
    keras.utils.set_random_seed(0)

    def stack(x):
        for i, blocks in enumerate(group_blocks):
            if is_v2:
                stride = 2 if i < len(group_blocks) - 1 else 1
                x = peers.stack_residual_blocks_v2(x, filters * 2**i, blocks, stride, f'conv{i + 2}')
            else:
                x = peers.stack_residual_blocks_v1(x, filters * 2**i, blocks, 2 if i else 1, f'conv{i + 2}')
        return x

    return randomize(
        peers.ResNet(
            stack, is_v2, True, weights=None, classes=num_classes, input_shape=(64, 64, 3), classifier_activation=None
        )
    )


def old_name(layer, role):
    """Return the layer's and the variable's names before keras-applications 1.0.7."""
    parts = layer.split('_')
    kind = 'res' if parts[-1] == 'conv' else 'bn'
    if layer == 'predictions':
        layer = 'fc1000'
    elif layer.startswith('conv1'):
        layer = 'conv1' if kind == 'res' else 'bn_conv1'
    else:
        group, block, number = parts[0][4:], 'abcdef'[int(parts[1][5:]) - 1], int(parts[2])
        layer = f'{kind}{group}{block}_branch{("1", "2a", "2b", "2c")[number]}'
    return layer, f'{layer}_{OLD_ROLES[role]}_1:0'


def write_old(path, model):
    """A weights file of Keras 1, as keras.applications first published them."""
    with h5py.File(path, 'w') as file:
        for layer in model.layers:
            names = [old_name(layer.name, weight.name) for weight in layer.weights]
            for (group, name), weight in zip(names, layer.weights, strict=True):
                file.require_group(group)[name] = weight.numpy()
            if names:
                file[names[0][0]].attrs['weight_names'] = [name.encode() for _, name in names]


@pytest.mark.parametrize('name,suffix', [('ResNet50', '.keras'), ('ResNet50V2', '.weights.h5')])
def test_equals_keras_applications(tmp_path, name, suffix):
    keras.utils.set_random_seed(0)
    peer = randomize(
        getattr(keras.applications, name)(weights=None, classifier_activation=None, input_shape=(64, 64, 3))
    )
    path = tmp_path / f'net{suffix}'
    peer.save(path) if suffix == '.keras' else peer.save_weights(path)
    assert convert.identify(path)[0] is from_keras_applications
    source, variables, model = converted(from_keras_applications, path)
    assert (source.variant, source.labels) == (name, 'imagenet1000')
    expected = peer(images_of(64)).numpy()
    assert_equal(model(images_of(64)).numpy(), expected)
    assert_equal(from_keras_applications.run(variables, images_of(64), source), expected)
    assert_runs_alike(from_keras_applications, source, variables, model, (75,))


@pytest.mark.parametrize(
    'form,is_v2',
    [
        ('.keras', True),
        ('.weights.h5', False),
        ('.h5', False),
        ('.h5', True),
        ('old', False),
        ('unnamed', False),
        ('unnamed', True),
        ('without biases', False),
        ('without biases', True),
    ],
)
def test_formats(tmp_path, form, is_v2):
    blocks = (3, 4, 6, 3) if form == 'unnamed' else (2, 3)  # order tells the layers of published nets only
    peer = tiny(is_v2, blocks, 4 if form == 'unnamed' else 8)
    if form in ('.keras', '.h5'):
        peer.compile('adam', 'mse')
        peer.optimizer.build(peer.trainable_variables)
    path = tmp_path / f'net{form if form.startswith(".") else ".h5" if form == "old" else ".weights.h5"}'
    if form == 'old':
        write_old(path, peer)
    else:
        peer.save(path) if form in ('.keras', '.h5') else peer.save_weights(path)
    if form in ('unnamed', 'without biases'):
        with h5py.File(path, 'r+') as file:
            for group in list(file['layers'].values()):
                if form == 'unnamed':
                    del group['vars'].attrs['name']
                elif 'conv' in group['vars'].attrs['name'] and len(group['vars']) == 2:
                    del group['vars/1']
        if form == 'without biases':
            for layer in peer.layers:
                if isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
                    layer.bias.assign(0 * layer.bias)
    source, variables, model = converted(from_keras_applications, path)
    assert source.spec.group_blocks == blocks and source.spec.stem_filters == 64
    assert source.spec.stem_bias == (is_v2 and form != 'without biases')
    expected = peer(images_of(64)).numpy()
    assert_equal(model(images_of(64)).numpy(), expected)
    assert_equal(from_keras_applications.run(variables, images_of(64), source), expected)
    optimizer = [name for name in from_keras_applications.shapes(path) if name.startswith('optimizer')]
    assert (len(optimizer) > 10) == (form in ('.keras', '.h5')) and not set(optimizer) & set(variables)


def test_inputs():
    v1, v2 = (from_keras_applications.describe(shapes_of(tiny(is_v2))) for is_v2 in (False, True))
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, 3, 3)).astype('float32')
    for source, module in ((v1, keras.applications.resnet), (v2, keras.applications.resnet_v2)):
        convention = source.input
        ordered = images[..., ::-1] if convention.channels == 'BGR' else images
        np.testing.assert_allclose(
            (ordered * convention.scale - convention.mean) / convention.std,
            module.preprocess_input(images.copy()),
            atol=1e-4,
        )


def shapes_of(model):
    return {
        f'{layer.name}/{weight.name}': (tuple(weight.shape), 'float32')
        for layer in model.layers
        for weight in layer.weights
    }


@pytest.mark.parametrize(
    'change,message',
    [
        ({'conv2_block2_2_conv/kernel': None}, 'missing: conv2_block2_2_conv/kernel'),
        ({'conv2_block2_2_conv/bias': ((3,), 'float32')}, r'misshapen: conv2_block2_2_conv/bias \(3,\), not \(8,\)'),
        ({'predictions/kernel': None}, 'classifier'),
        ({'conv3_block2_1_conv/kernel': None}, 'groups'),
        ({'conv1_conv/kernel': ((64,), 'float32')}, 'conv1_conv'),
        ({'conv1_conv/kernel': ((7, 7, 3, 0), 'float32')}, 'numbers above 0'),
        ({'predictions/kernel': ((64, 7), 'int32')}, 'int32'),
    ],
)
def test_missing_and_misshapen(change, message):
    shapes = {name: value for name, value in (shapes_of(tiny(False)) | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        fitted(from_keras_applications, shapes)


def test_variant_must_be_right():
    shapes = shapes_of(tiny(True))
    assert from_keras_applications.describe(shapes, 'resnet17_v2') == from_keras_applications.describe(
        shapes, 'ResNet17V2'
    )
    with pytest.raises(UserError, match='ResNet17V2'):
        from_keras_applications.describe(shapes, 'ResNet50')


def refuse(path, message):
    for function in (from_keras_applications.shapes, from_keras_applications.read):
        with pytest.raises(UserError, match=message) as caught:
            function(path)
        assert '\n' not in str(caught.value)


def chunked(file):
    file.create_dataset('a/kernel', data=np.zeros(9), compression='gzip')


def huge(file):
    file.create_dataset('a/kernel', (2**40,), 'float32')  # no byte of it is written


def virtual(file):
    layout = h5py.VirtualLayout((4,), 'float32')
    layout[:] = h5py.VirtualSource('/etc/passwd', 'a', (4,))
    file.create_virtual_dataset('a/kernel', layout)


def circle(file):
    group = file.create_group('a')
    group['a'] = group


def deep(file):
    file['/'.join('a' * 20)] = np.zeros(2)


def twice(file):
    file['a/kernel'] = np.zeros(2000)
    for i in range(9):
        file[f'{i}/kernel'] = file['a/kernel']


def two_names(file):
    file['a/kernel'], file['a/kernel:0'] = np.zeros(2), np.zeros(2)


def long_name(file):
    file['layers/conv2d/vars/0'] = np.zeros(2)
    file['layers/conv2d/vars'].attrs['name'] = 'x' * 5000


@pytest.mark.parametrize(
    'fill,message',
    [
        (lambda file: file.__setitem__('a', h5py.ExternalLink('other.h5', '/a')), 'link'),
        (lambda file: file.__setitem__('a', h5py.SoftLink('/b')), 'link'),
        (lambda file: file.create_dataset('a', (1,), h5py.ref_dtype), 'no array of numbers'),
        (lambda file: file.__setitem__('a', 'text'), 'no array of numbers'),
        (lambda file: file.create_dataset('a', (4,), 'f4', external=[('/etc/passwd', 0, 16)]), 'not in the file'),
        (chunked, 'compressed'),
        (huge, 'not in the file'),
        (virtual, 'compressed or chunked'),
        (circle, 'objects'),
        (deep, 'objects'),
        (twice, 'declares'),
        (two_names, 'two variables'),
        (long_name, 'short string'),
        (lambda file: file.__setitem__('layers/conv2d/vars/0', np.zeros(2)), '1 convolutions without names'),
    ],
)
def test_hostile_hdf5(tmp_path, fill, message):
    with h5py.File(tmp_path / 'net.h5', 'w') as file:
        fill(file)
    refuse(tmp_path / 'net.h5', message)


def test_hdf5s_library_is_ended_when_it_does_not_come_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(from_keras_applications, 'MAX_SECONDS', 3)
    with h5py.File(tmp_path / 'net.h5', 'w') as file:
        file['layers/conv2d/vars/0'] = np.zeros(2)
        file['layers/conv2d/vars'].attrs['name'] = 'conv1_conv'
        file['layers/dense/vars/0'] = np.zeros(10_000)
    data = bytearray((tmp_path / 'net.h5').read_bytes())
    data[data.index(b'GCOL') + 9] = 0x43  # a heap of strings that is longer than it was
    (tmp_path / 'net.h5').write_bytes(data)
    refuse(tmp_path / 'net.h5', 'does not come to an end')


def test_hostile_zips(tmp_path):
    path = tmp_path / 'net.keras'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('model.weights.h5', bytes(50 << 20))
    refuse(path, 'declares 52428800 bytes')
    for declared in (0, 100, 2**31):  # the directory lies about the size
        lie = bytearray(path.read_bytes())
        start = lie.index(b'PK\1\2') + 24
        lie[start : start + 4] = declared.to_bytes(4, 'little')
        path.write_bytes(lie)
        refuse(path, 'net.keras')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('config.json', json.dumps({'module': 'os', 'class_name': 'system'}))
    refuse(path, 'no item named .model.weights.h5')
    path.write_bytes(b'PK\3\4 and no more')
    refuse(path, 'damaged')
    path.write_bytes(b'text')
    refuse(path, 'not an HDF5 or .keras file')
    refuse(tmp_path / 'none.keras', 'No such file')


def test_a_models_config_is_not_looked_at(tmp_path):
    peer = tiny(False)
    peer.save(tmp_path / 'net.keras')
    with zipfile.ZipFile(tmp_path / 'net.keras') as archive:
        weights = archive.read('model.weights.h5')
    with zipfile.ZipFile(tmp_path / 'evil.keras', 'w') as archive:
        archive.writestr('config.json', '{"class_name": "Lambda", "module": "builtins", "config": "exec"')
        archive.writestr('model.weights.h5', weights)
    _, _, model = converted(from_keras_applications, tmp_path / 'evil.keras')
    assert_equal(model(images_of(64)).numpy(), peer(images_of(64)).numpy())


@pytest.mark.parametrize('form', ['.keras', '.weights.h5', 'old.h5'])
def test_fuzz(tmp_path, monkeypatch, form):
    monkeypatch.setattr(from_keras_applications, 'MAX_SECONDS', 4)
    peer, path = tiny(False, (1, 1), 2, 3), tmp_path / f'net{form}'
    if form == 'old.h5':
        write_old(path, peer)
    elif form == '.keras':
        peer.save(path)
    else:
        peer.save_weights(path)
    fuzz(from_keras_applications, path.read_bytes(), path, 10)  # a process each
