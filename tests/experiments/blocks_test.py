"""The blocks of 1603.05027 Fig. 2 and 4: their layers, their arithmetic, and what is refused."""

import dataclasses

import keras
import numpy as np
import pytest
from fixtures.networks import model_of, normal
from fixtures.tiny_training import make_config

from official_resnet import checkpoints, resnet_model, resnet_run_loop, resnet_spec
from official_resnet.errors import UserError
from official_resnet.experiments import blocks
from official_resnet.inference import predict
from official_resnet.training import same_run, transfer

SPEC = resnet_spec.ResNetSpec((1,), filters=2)


def block_model(experiment, spec=SPEC):
    return model_of(blocks.make_block(experiment), (4, 4, 2), spec, 2, 1, 'b')


@pytest.mark.parametrize(
    'trial,names',
    [
        ({}, 'conv1 bn1 relu1 conv2 bn2 add out'),
        ({'order': 'bn_after_addition'}, 'conv1 bn1 relu1 conv2 add bn3 out'),
        ({'order': 'relu_before_addition'}, 'conv1 bn1 relu1 conv2 bn2 relu2 out'),
        ({'order': 'relu_only_preactivation'}, 'relu1 conv1 bn2 relu2 conv2 bn3 out'),
        ({'shortcut_scale': 0.5, 'residual_scale': 0.5}, 'conv1 bn1 relu1 conv2 bn2 scale shortcut_scale add out'),
        ({'gate': 'shortcut_only'}, 'gate conv1 gate_rest bn1 relu1 conv2 bn2 gated_shortcut add out'),
        ({'gate': 'exclusive'}, 'gate conv1 bn1 relu1 conv2 bn2 gate_rest gated gated_shortcut add out'),
        ({'shortcut_dropout': 0.5}, 'conv1 bn1 relu1 conv2 bn2 shortcut_dropout add out'),
    ],
)
def test_experiments_are_what_figures_2_and_4_draw(trial, names):
    """1603.05027: which operations a block has; their order where one follows the other."""
    model = block_model(trial, dataclasses.replace(SPEC, stem_bn=False if 'order' in trial else None))
    found = [layer.name.removeprefix('b_') for layer in model.layers[1:]]
    assert sorted(found) == sorted(names.split())
    chain = [name for name in names.split() if name.startswith(('conv', 'bn', 'relu', 'add', 'out'))]
    assert [name for name in found if name in chain] == chain


@pytest.mark.parametrize('gate', ['exclusive', 'shortcut_only'])
def test_gates_compute_what_they_say(gate):
    model = block_model({'gate': gate, 'gate_bias': -1.0})
    images = normal(2, 4, 4, 2)
    layer = model.get_layer('b_gate')
    g = 1 / (1 + np.exp(-(images @ layer.kernel.numpy()[0, 0] - 1.0)))
    residual = keras.Model(model.input, model.get_layer('b_bn2').output)(images).numpy()
    expected = (1 - g) * images + (g * residual if gate == 'exclusive' else residual)
    np.testing.assert_allclose(model(images), np.maximum(expected, 0), atol=1e-5)


def test_without_a_change_it_is_the_block_of_version_1():
    ours, theirs = block_model({}), model_of(resnet_model.residual_block, (4, 4, 2), SPEC, 2, 1, 'b')
    assert [layer.name for layer in ours.layers[1:]] == [layer.name for layer in theirs.layers[1:]]
    theirs.set_weights(ours.get_weights())
    images = normal(2, 4, 4, 2)
    np.testing.assert_array_equal(ours(images), theirs(images))


def test_relu_only_preactivation_in_a_network():
    """1603.05027, Appendix: the first block has the stem's batch norm, and ReLU follows the last block's addition."""
    spec = resnet_spec.ResNetSpec((1, 2), filters=2, stem_bn=False)
    model = resnet_model.resnet(spec, 3, (8, 8, 3), blocks.make_block({'order': 'relu_only_preactivation'}))
    names = [layer.name for layer in model.layers]
    assert names[1:4] == ['stem_conv', 'stem_bn', 'group1_block1_relu1']
    assert names[-4:] == ['group2_block2_out', 'head_relu', 'head_pool', 'logits']
    assert 'head_bn' not in names and 'stem_relu' not in names
    assert model.get_layer('group1_block1_out').input[1] is model.get_layer('stem_bn').output


@pytest.mark.parametrize(
    'experiment,changes,message',
    [
        ({'order': 'x'}, {}, "order='x'"),
        ({'gate': 'x'}, {}, "gate='x'"),
        ({'shortcut_dropout': -0.1}, {}, 'shortcut_dropout=-0.1'),
        ({'no_such_field': 1}, {}, 'no_such_field'),
        ({'order': 'bn_after_addition', 'gate': 'exclusive'}, {}, "order='bn_after_addition'"),
        ({'order': 'relu_only_preactivation'}, {}, 'stem_bn=False'),
        ({'gate': 'exclusive'}, {'version': '2'}, 'version 1'),
        ({'gate': 'exclusive'}, {'shortcut': None}, 'shortcut'),
        ({'gate': 'exclusive'}, {'se_reduction': 2}, 'se_reduction'),
        ({'gate': 'exclusive'}, {'eca': True}, 'eca'),
    ],
)
def test_wrong_experiments(experiment, changes, message):
    with pytest.raises(UserError) as error:
        block_model(experiment, dataclasses.replace(SPEC, **changes))
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_run_is_not_rebuilt_without_its_block(cifar_dir, tmp_path):
    experiment = {'gate': 'exclusive', 'gate_bias': -6.0}
    block = blocks.make_block(experiment)
    config = make_config(cifar_dir, tmp_path, train_epochs=1, experiment=experiment)
    trained = resnet_run_loop.train(config, block=block)
    evaluated = resnet_run_loop.evaluate(config, block=block)['model']
    for ours, theirs in zip(evaluated.get_weights(), trained.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 'group1_block1_gate' in [layer.name for layer in evaluated.layers]

    stored = same_run.from_json(checkpoints.restore_latest(tmp_path / 'checkpoints')[1]['config'])
    checkpoint, _ = predict.load(next(tmp_path.rglob('step-*.npz')))  # which needs no block
    for ours, theirs in zip(checkpoint.get_weights(), trained.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    plain = make_config(cifar_dir, None, pretrained=str(tmp_path))
    other = {'gate': 'shortcut_only'}
    for call, message in (
        (lambda: resnet_run_loop.evaluate(stored), "{'gate': 'exclusive'.* pass block="),
        (lambda: resnet_run_loop.evaluate(dataclasses.replace(stored, experiment=None)), 'group1_block1_gate'),
        (lambda: resnet_run_loop.train(plain, block=block), 'config.experiment'),
        (
            lambda: resnet_run_loop.train(
                dataclasses.replace(config, experiment=other), block=blocks.make_block(other)
            ),
            "holds a run with experiment.gate 'exclusive', not 'shortcut_only'",
        ),
        *(
            (lambda name=name: transfer.adopt(plain, transfer.describe(tmp_path / name)), 'of an experiment, .*; pass')
            for name in ('', 'model.keras')
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert '\n' not in str(error.value)
