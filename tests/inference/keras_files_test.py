"""What Keras would load is loaded; a hostile .keras file or card is one line, and takes no memory."""

import errno
import json
import os
import pathlib
import resource
import tempfile

import keras
import numpy as np
import pytest
from fixtures import hostile_networks
from fixtures.networks import TINY, save_network
from keras.src.backend.common import global_state

from official_resnet import layers, resnet_model, resnet_variants
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, keras_files, network_files, predict
from official_resnet.training import transfer

MOST_MEMORY = 1 << 20  # kB more than before, at any time of the tests in this file
DEPTHS = {'stochastic_depth': 0.5, 'se_reduction': 4, 'version': '2'}


@pytest.mark.parametrize('axes', [{}, DEPTHS])
@pytest.mark.parametrize('custom_objects', [None, {'BatchNormalization': layers.BatchNormalization}])
def test_a_network_is_loaded_as_keras_does(tmp_path, axes, custom_objects):
    model, path = resnet_model.resnet(resnet_variants.cifar_spec(8, **axes), 3, (8, 8, 3)), tmp_path / 'a.keras'
    model.compile('sgd', 'mse')
    model.save(path)
    expected = keras.models.load_model(path, custom_objects, compile=False)
    found = keras_files.load(path, 'x', custom_objects)
    assert found.get_config() == expected.get_config() and not found.compiled
    assert [type(layer) for layer in found.layers] == [type(layer) for layer in expected.layers]
    for one, other in zip(found.weights, expected.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """The folder of a whole network."""
    folder = tmp_path_factory.mktemp('good')
    save_network(folder, 'abc', (8, 8, 3))
    return folder


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_hostile_network_is_refused(good, tmp_path):
    path, before, count = tmp_path / 'x.keras', peak(), 0
    pending = global_state.get_global_attribute('uninitialized_variables')  # of earlier tests
    for name, content in hostile_networks.networks((good / 'model.keras').read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'^[^\n]{1,700}$') as caught:
            keras_files.load(path, 'pass another')
        assert global_state.get_global_attribute('uninitialized_variables') is pending, name  # or the next gets them
        said, count = str(caught.value), count + 1
        assert f"'{path}'" in said and said.endswith('; pass another'), name
    assert count >= 60 and peak() - before < MOST_MEMORY
    assert keras_files.load(good / 'model.keras', '').count_params() == 1399  # nothing of the others is left


def test_a_full_folder_for_temporary_files_is_named(good, tmp_path, monkeypatch):
    def write_bytes(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(pathlib.Path, 'write_bytes', write_bytes)
    with pytest.raises(UserError, match=f"into '{tmp_path}': No space.*free some space, or set TMPDIR") as caught:
        keras_files.load(good / 'model.keras', 'x')
    assert 'cannot write a temporary copy of' in str(caught.value) and not os.listdir(tmp_path)


def test_a_hostile_card_is_refused(good, tmp_path):
    path = tmp_path / 'x.card.json'
    for name, content in hostile_networks.cards(json.loads((good / 'model.card.json').read_bytes())):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'^[^\n]{1,700}$') as caught:
            card_reader.read_card(path)
        assert str(path) in str(caught.value) and card_reader.REMEDY in str(caught.value), name


def test_the_programs_refuse_what_the_reader_refuses(good, tmp_path):
    """predict_main, --pretrained_model_checkpoint_path, and the layers beside a checkpoint."""
    card = (good / 'model.card.json').read_bytes()
    cases = dict(hostile_networks.networks((good / 'model.keras').read_bytes()))
    (tmp_path / 'x.card.json').write_bytes(card)
    for name in ('config is deep lists', '1000000000 units', 'the weights have gzip chunks of 4 GB and more'):
        (tmp_path / 'x.keras').write_bytes(cases[name])
        for function in (predict.load, transfer.describe):
            with pytest.raises(UserError, match='x.keras.*; pass a'):
                function(tmp_path / 'x.keras')


@pytest.mark.parametrize('text', ['[' * 100_000, '{}', '7', '{"module":"keras","class_name":"Wings","config":{}}'])
def test_hostile_layers_beside_a_checkpoint(good, tmp_path, text):
    (tmp_path / 'network.json').write_text(text)
    with pytest.raises(UserError, match='network.json.*; x'):
        keras_files.from_json(tmp_path / 'network.json', {}, 'x', {})


def test_more_layers_than_weights_of_a_checkpoint(tmp_path):
    model = resnet_model.resnet(TINY, 3, (8, 8, 3))
    (tmp_path / 'network.json').write_text(model.to_json())
    arrays = {variable.path: variable.numpy() for variable in model.variables}
    assert len(keras_files.from_json(tmp_path / 'network.json', arrays, 'x', {}).variables) == len(arrays)
    arrays.popitem()
    with pytest.raises(UserError, match='1399 weights, but only 1396 '):
        keras_files.from_json(tmp_path / 'network.json', arrays, 'x', {})


def test_what_is_no_zip(tmp_path):
    (tmp_path / 'a.keras').write_bytes(b'PK')
    for function in (network_files.require_keras_file, transfer.describe):
        with pytest.raises(UserError, match=r'a\.keras'):
            function(tmp_path / 'a.keras')
    os.mkfifo(tmp_path / 'b.keras')
    with pytest.raises(UserError, match=r'b\.keras.*not a plain file'):
        keras_files.load(tmp_path / 'b.keras', 'x')
