"""keras.applications' own networks with random weights and biases, saved in each of Keras' formats; hostile files."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from fixtures.batches import message_of
from fixtures.conversion import assert_runs_alike, converted, refuse_file
from fixtures.foreign_files import applications_net, write_old_applications

from checkpoints_tools import convert, from_keras_applications, h5_file
from checkpoints_tools.source import normalized


def write_unnamed(path, peer):
    """Write a weights file without the names of its layers."""
    peer.save_weights(path)
    with h5py.File(path, 'r+') as file:
        for group in file['layers'].values():
            del group['vars'].attrs['name']


def write_without_biases(path, peer):
    """Write a weights file without the biases of the convolutions, which are made 0."""
    for layer in peer.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(0 * layer.bias)
    peer.save_weights(path)
    with h5py.File(path, 'r+') as file:
        for group in list(file['layers'].values()):
            if 'conv' in group['vars'].attrs['name'] and len(group['vars']) == 2:
                del group['vars/1']


def write_with_another_config(path, peer):
    """Write a whole model whose config would run code; it is not looked at."""
    peer.save(path)
    with zipfile.ZipFile(path) as archive:
        weights = archive.read('model.weights.h5')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('config.json', '{"class_name": "Lambda", "module": "builtins", "config": "exec"')
        archive.writestr('model.weights.h5', weights)


def write_trained(path, peer):
    """Write a whole model with its optimizer's variables."""
    peer.compile('adam', 'mse')
    peer.optimizer.build(peer.trainable_variables)
    peer.save(path)


@pytest.mark.parametrize(
    'write,suffix,is_v2',
    [
        (write_trained, '.keras', True),
        (write_trained, '.h5', False),
        (write_old_applications, '.h5', False),
        (write_unnamed, '.weights.h5', False),
        (write_unnamed, '.weights.h5', True),
        (write_with_another_config, '.keras', False),
        (write_without_biases, '.weights.h5', True),
    ],
)
def test_formats(tmp_path, write, suffix, is_v2):
    # Only in a published network does the order tell the layers.
    blocks, filters = ((3, 4, 6, 3), 4) if write is write_unnamed else ((2, 3), 8)
    peer, path = applications_net(is_v2, blocks, filters, 1000), tmp_path / f'net{suffix}'
    write(path, peer)
    assert convert.identify(path)[0] is from_keras_applications
    source, variables, model = converted(from_keras_applications, path)
    assert source.spec.group_blocks == blocks and source.spec.stem_filters == 64
    assert source.spec.stem_bias == (is_v2 and write is not write_without_biases)
    assert source.variant == f'ResNet{3 * sum(blocks) + 2}{"V2" * is_v2}' and source.labels == 'imagenet1000'
    assert_runs_alike(from_keras_applications, source, variables, model, (64,), peer)
    if write is write_trained:
        assert_runs_alike(from_keras_applications, source, variables, model, (75,))
    module = keras.applications.resnet_v2 if is_v2 else keras.applications.resnet
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, 3, 3)).astype('float32')
    np.testing.assert_allclose(normalized(images, source.input), module.preprocess_input(images.copy()), atol=1e-4)
    optimizer = {name for name in from_keras_applications.shapes(path) if name.startswith('optimizer')}
    assert (len(optimizer) > 10) == (write is write_trained) and not optimizer & set(variables)


def circle(file):
    group = file.create_group('a')
    group['a'] = group


def twice(file):
    file['a/kernel'] = np.zeros(2000)
    for i in range(9):
        file[f'{i}/kernel'] = file['a/kernel']


def two_names(file):
    file['a/kernel'], file['a/kernel:0'] = np.zeros(2), np.zeros(2)


def named(name):
    def fill(file):
        file['layers/conv2d/vars/0'] = np.zeros(2)
        if name:
            file['layers/conv2d/vars'].attrs['name'] = name

    return fill


@pytest.mark.parametrize(
    'fill,message',
    [
        (lambda file: file.__setitem__('a', h5py.ExternalLink('other.h5', '/a')), "'a' is a link"),
        (lambda file: file.create_dataset('a', (1,), h5py.ref_dtype), 'array of numbers'),
        (lambda file: file.create_dataset('a', (4,), 'f4', external=[('/etc/passwd', 0, 16)]), 'not in the file'),
        (lambda file: file.create_dataset('a/kernel', data=np.zeros(9), compression='gzip'), 'compressed'),
        (circle, '20000 objects, 12 groups'),
        (twice, '160000 bytes'),
        (two_names, "'a/kernel'"),
        (named('x' * 5000), 'layers/conv2d/vars.* string'),
        (named(None), '1 convolutions'),
    ],
)
def test_hostile_hdf5(tmp_path, fill, message):
    with h5py.File(tmp_path / 'net.h5', 'w') as file:
        fill(file)
    refuse_file(message, from_keras_applications, tmp_path / 'net.h5')


def test_hostile_zips(tmp_path):
    path = tmp_path / 'net.keras'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('model.weights.h5', bytes(50 << 20))
    refuse_file('52428800 bytes', from_keras_applications, path)
    for declared in (0, 100, 2**31):  # the directory lies about the size
        lie = bytearray(path.read_bytes())
        start = lie.index(b'PK\1\2') + 24
        lie[start : start + 4] = declared.to_bytes(4, 'little')
        path.write_bytes(lie)
        refuse_file('net.keras', from_keras_applications, path)
    path.write_bytes(b'text')
    refuse_file('not an HDF5 or .keras file', from_keras_applications, path)


def test_a_full_folder_for_temporary_files_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.keras', 'w') as archive:
        archive.writestr('model.weights.h5', bytes(1000))
    (tmp_path / 'part').mkdir()
    (tmp_path / 'part' / 'weights.h5').symlink_to('/dev/full')
    message = message_of(h5_file._unzip_weights, tmp_path / 'x.keras', tmp_path / 'part' / 'weights.h5')
    assert f"into '{tmp_path}': No space" in message and 'set TMPDIR' in message
