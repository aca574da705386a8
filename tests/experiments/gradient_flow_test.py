"""Gradients of networks: measured as GradientTape has them, before and during training; the program end to end."""

import json
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import programs
from fixtures.batches import message_of

from official_resnet import files, resnet_variants
from official_resnet.errors import Interrupted
from official_resnet.experiments import gradient_flow_main, net_gradients, runs
from official_resnet.inputs import datasets

SETTINGS = {'steps': 4, 'batch_size': 8, 'learning_rate': 0.01, 'init': 'he', 'auxiliary_loss': False, 'seed': 0}


@pytest.fixture
def examples(cifar_dir):
    return datasets.open_split('cifar10', 'train', data_dir=str(cifar_dir))


def test_small_gradients_do_not_become_zero():
    for scale in (1e-30, 1.0, 1e30):
        values = tf.constant([3.0, -4.0, 0.0, 0.0]) * scale
        assert float(net_gradients.root_mean_square(values)) == pytest.approx(2.5 * scale, rel=1e-5)
    assert float(net_gradients.root_mean_square(tf.zeros(3))) == 0


def test_gradients_before_training_are_those_of_the_tape(examples):
    result = net_gradients.measure_net(('sigmoid', False, False, 8), examples, SETTINGS, [])
    assert [sample['step'] for sample in result['samples']] == [0, 1, 2, 3, 4]
    assert result['layers'][0] == 'stem_conv' and result['layers'][-1] == 'group3_block1_conv2'
    assert len(result['losses']) == 5 and result['diverged_at'] is None

    keras.utils.set_random_seed(0)
    model = resnet_variants.cifar_resnet(8, shortcut=None, activation='sigmoid', batch_norm=False)
    images, labels = next(iter(examples.training_batches(8)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True)))
    kernels = [model.get_layer(name).kernel for name in result['layers']]
    expected = [np.sqrt(np.mean(np.square(gradient))) for gradient in tape.gradient(loss, kernels)]
    np.testing.assert_allclose(result['samples'][0]['gradients'], expected, rtol=1e-3)
    assert result['losses'][0] == pytest.approx(float(loss), rel=1e-5)


def test_a_network_that_diverges_ends_there(examples):
    settings = SETTINGS | {'learning_rate': 1e30}
    result = net_gradients.measure_net(('relu', False, True, 8), examples, settings, [])
    assert result['diverged_at'] in (1, 2) and result['final_loss'] is None
    json.dumps(result, allow_nan=False)


def test_a_signal_ends_the_measurement(examples):
    with pytest.raises(Interrupted, match='SIGTERM.*same command'):
        net_gradients.measure_net(('relu', False, True, 8), examples, SETTINGS, [signal.SIGTERM])


def test_auxiliary_heads_reach_the_weights_behind_which_they_stand():
    net = resnet_variants.cifar_resnet(8)
    model = net_gradients.with_auxiliary_heads(net)
    assert [output.shape for output in model.outputs] == [(None, 10)] * 3
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.ones((1, 32, 32, 3)))[1] ** 2)  # the head of group 1
    near, far = tape.gradient(loss, [net.get_layer(f'group{i}_block1_conv1').kernel for i in (1, 2)])
    assert float(tf.reduce_max(tf.abs(near))) > 0 and far is None


@pytest.mark.whole_runs
def test_end_to_end_with_every_remedy_switched(monkeypatch, tmp_path):
    line = f'experiments.gradient_flow_main --output_dir {tmp_path} --depths 8 --steps 2 -bs 8 --batch_norm off'
    line += ' --activations relu --use_synthetic_data --init normal_0.01 --nostandardize --auxiliary_loss'
    code, _, err = programs.call(line)
    assert code == 0, err
    result = json.loads((tmp_path / 'gradient_flow.json').read_text())
    assert list(result['nets']) == ['relu-nobn-plain-8', 'relu-nobn-residual-8']
    assert result['settings']['standardize'] is False and result['settings']['auxiliary_loss'] is True
    assert len(result['chain']['random']) == 32 and 'largest' in result['chain']['three_layers']
    for name in ('gradient_flow.png', 'chain.png'):
        assert (tmp_path / name).read_bytes()[:4] == b'\x89PNG'
    monkeypatch.setattr(net_gradients, 'measure_net', lambda *args: pytest.fail('measured again'))
    assert programs.call(line).code == 0
    assert "init 'normal_0.01', not 'he'" in programs.mistake(f'{line} --init he')


def test_conclusions():
    def net(first, loss, diverged_at=None):
        return {'samples': [{'gradients': [first, 1.0]}], 'final_loss': loss, 'diverged_at': diverged_at}

    nets = {
        'sigmoid-nobn-plain-20': net(1e-4, 2.3),
        'sigmoid-nobn-plain-56': net(1e-20, 2.3),
        'relu-nobn-plain-20': net(1.0, 2.0),
        'relu-nobn-plain-56': net(0.5, 2.0),
        'relu-bn-plain-20': net(1.0, 1.8),
        'relu-bn-plain-56': net(1.0, 2.2),
        'relu-bn-residual-56': net(1.0, 1.7),
    }
    assert set(gradient_flow_main.judge(nets, 20, 56).values()) == {True}
    nets['relu-bn-residual-56'] = net(1.0, None, 7)
    assert gradient_flow_main.judge(nets, 20, 56)['deep_residual_relu_trains_better_than_deep_plain'] is False
    assert gradient_flow_main.judge({}, 20, 56)['relu_gradients_vanish_less_than_sigmoid'] is None


def test_a_stored_network_that_lacks_a_value_is_damaged(tmp_path):
    sample = {'step': 1, 'gradients': [0.5, None, 2]}
    net = {'samples': [sample], 'diverged_at': None, 'final_loss': 2.5}
    files.write_json(tmp_path / 'net.json', net)
    assert runs.read_json(tmp_path / 'net.json', gradient_flow_main._require_whole) == net
    wrong = [{k: v for k, v in net.items() if k != name} for name in net]
    wrong += [{**net, 'samples': value} for value in ([], [{'step': 1}], [{**sample, 'gradients': 3}], {'a': 1})]
    for content in wrong:
        files.write_json(tmp_path / 'net.json', content)
        message = message_of(runs.read_json, tmp_path / 'net.json', gradient_flow_main._require_whole)
        assert message.startswith(f"'{tmp_path}/net.json' is damaged (") and 'delete it' in message
