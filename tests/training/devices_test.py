"""Keras has one backend, floatx, policy and random seed in a process: what its user set decides nothing here."""

import importlib
import json
import os
import pathlib
import re
import sys
import threading

import keras
import numpy as np
import pytest
from fixtures import programs
from fixtures.tiny_training import StopAt, make_config

import official_resnet
from official_resnet import resnet_model, resnet_run_loop
from official_resnet.errors import UserError
from official_resnet.inference import predict
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training import devices


@pytest.fixture
def keras_in_16_bits():
    """Keras as it is after set_floatx('float16') in a new process."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx('float16')
    keras.config.set_dtype_policy('float16')
    yield
    assert keras.config.floatx() == 'float16' and keras.config.dtype_policy().name == 'float16'  # put back after a use
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.fixture(scope='module')
def short(cifar_dir, source):
    """{name: TrainConfig of four steps}."""
    common = {'train_epochs': 1, 'max_train_steps': 4}
    adam = {'optimizer': 'adam', 'base_learning_rate': 1e-3, 'weight_decay': 0.0}
    return {
        'momentum': make_config(cifar_dir, None, **common),
        'head': make_config(
            cifar_dir, None, **common, **adam, transfer='head', augment=False, pretrained=str(source / 'model.keras')
        ),
    }


@pytest.fixture(scope='module')
def expected(short):
    """{name: weights}, trained with Keras' defaults."""
    return {name: resnet_run_loop.train(config, ()).model.get_weights() for name, config in short.items()}


@pytest.mark.parametrize('name', ['momentum', 'head'])
def test_floatx_does_not_change_a_training(name, short, expected, keras_in_16_bits):
    model = resnet_run_loop.train(short[name], ()).model
    assert model.input.dtype == 'float32'
    for ours, theirs in zip(model.get_weights(), expected[name], strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('policy,computes_in', [('float16', 'float32'), ('mixed_bfloat16', 'bfloat16')])
def test_floatx_does_not_change_a_network_that_is_built(policy, computes_in, keras_in_16_bits):
    keras.config.set_dtype_policy(policy)  # one that is not floatx's counts
    model = resnet_model.resnet(ResNetSpec((1, 1), filters=4), 3, (8, 8, 3))
    keras.config.set_dtype_policy('float16')
    assert {variable.dtype for variable in model.variables} == {'float32'}
    assert model.get_layer('stem_conv').compute_dtype == computes_in and model.output.dtype == 'float32'


def test_floatx_does_not_change_a_prediction(source, request):
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3).astype(np.uint8)
    ours = predict.predict(*predict.load(source), images)
    request.getfixturevalue('keras_in_16_bits')
    assert predict.predict(*predict.load(source), images) == ours


def test_a_training_in_another_thread_is_refused(short, expected):
    errors = []

    class TrainsToo(StopAt):
        def on_train_batch_end(self, batch, logs=None):
            def other():
                with pytest.raises(UserError, match='another train.* wait') as caught:
                    resnet_run_loop.train(short['head'], ())
                errors.append(caught.value)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    model = resnet_run_loop.train(short['momentum'], [TrainsToo(0)]).model
    assert errors
    for ours, theirs in zip(model.get_weights(), expected['momentum'], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_policies_of_two_threads_do_not_mix():
    seen = []

    def other():
        with devices.dtype_policy('bf16'):
            seen.append(keras.config.dtype_policy().name)

    with devices.dtype_policy('fp32'):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        assert keras.config.dtype_policy().name == 'float32' and not seen
    thread.join()
    assert seen == ['mixed_bfloat16']


@pytest.fixture
def other_keras(tmp_path):
    """Environment variables of somebody who uses Keras without TensorFlow, in float16 and with the channels first."""
    settings = {'floatx': 'float16', 'image_data_format': 'channels_first', 'backend': 'jax', 'epsilon': 1e-7}
    (tmp_path / 'keras.json').write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if name != 'KERAS_BACKEND'}
    return environment | {'KERAS_HOME': str(tmp_path)}


@pytest.mark.whole_runs
def test_a_program_sets_keras_itself(other_keras):
    code = (
        'from official_resnet.training import devices; devices.start_tensorflow(); import keras; '
        'print(keras.config.backend(), keras.config.floatx(), keras.config.image_data_format())'
    )
    end = programs.run([sys.executable, '-c', code], env=other_keras | {'KERAS_BACKEND': 'numpy'})
    assert end == (0, 'tensorflow float32 channels_last\n', '')
    path = pathlib.Path(other_keras['KERAS_HOME'], 'keras.json')
    path.write_text('{"floatx": "float99"}')
    end = programs.run([sys.executable, '-c', code], env=other_keras)
    assert re.search(f"UserError: .*'{path}'; change or delete it$", end.err.strip())


def test_the_library_names_a_wrong_backend(other_keras):
    command = [sys.executable, '-c', 'import official_resnet; official_resnet.cifar_resnet(8)']
    code, _, err = programs.run(command, env=other_keras | {'KERAS_BACKEND': 'numpy'})
    assert code == 1
    assert 'Keras runs on numpy' in err.splitlines()[-1] and 'KERAS_BACKEND=tensorflow' in err.splitlines()[-1]
    command[2] = 'import os, official_resnet; print(os.environ["KERAS_BACKEND"])'
    assert programs.run(command, env=other_keras).out == 'tensorflow\n'  # not jax, as keras.json says


# --- oneDNN ---


@pytest.mark.parametrize('given', [None, '0', '1'])
def test_the_package_turns_onednn_on_unless_the_user_decided(given):
    environment = {name: value for name, value in os.environ.items() if name != 'TF_ENABLE_ONEDNN_OPTS'}
    environment |= {} if given is None else {'TF_ENABLE_ONEDNN_OPTS': given}
    code = 'import os, official_resnet; print(os.environ["TF_ENABLE_ONEDNN_OPTS"])'
    assert programs.run([sys.executable, '-c', code], env=environment) == (0, f'{given or 1}\n', '')


@pytest.mark.parametrize('given,is_on,count', [(None, False, 1), (None, True, 0), ('0', False, 0)])
def test_the_package_says_when_tensorflow_came_first(given, is_on, count, monkeypatch, caplog):
    monkeypatch.delenv('TF_ENABLE_ONEDNN_OPTS')
    if given:
        monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', given)
    monkeypatch.setattr(devices, 'uses_onednn', lambda: is_on)
    importlib.reload(official_resnet)
    assert len(caplog.messages) == count and all('TF_ENABLE_ONEDNN_OPTS=1' in text for text in caplog.messages)


def test_onednn_as_tensorflow_has_it():
    assert devices.machine_info()['uses_onednn'] is (os.environ['TF_ENABLE_ONEDNN_OPTS'] == '1')


@pytest.mark.parametrize(
    'flags,is_on,filters,is_wrong',
    [
        ({'avx2'}, True, 4, True),
        ({'avx2'}, True, 8, False),
        ({'avx2'}, False, 4, False),
        ({'avx2', 'avx512f'}, True, 4, False),
        (set(), True, 4, False),
    ],
)
def test_wrong_gradients_of_onednn_are_refused(monkeypatch, flags, is_on, filters, is_wrong):
    monkeypatch.setattr(devices, 'cpu_flags', lambda: flags)
    monkeypatch.setattr(devices, 'uses_onednn', lambda: is_on)
    spec = ResNetSpec((1, 1), filters=filters, shortcut='B')
    model = resnet_model.resnet(spec, 3, (8, 8, 3))
    if is_wrong:
        with pytest.raises(UserError, match='group2_block1_shortcut_conv .* 4 channels.*TF_ENABLE_ONEDNN_OPTS=0'):
            devices.require_right_gradients(model)
    else:
        devices.require_right_gradients(model)
    without = resnet_model.resnet(ResNetSpec((1, 1), filters=4, shortcut='A'), 3, (8, 8, 3))
    devices.require_right_gradients(without)
