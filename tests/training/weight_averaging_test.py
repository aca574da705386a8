"""Averages of weights: their numbers by hand, exact resume, and which weights are evaluated and written."""

import functools
import json
import pathlib
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.batches import message_of
from fixtures.networks import TINY
from fixtures.tiny_training import StopAt, assert_equal_runs, config_of, make_config, metrics

from official_resnet import checkpoints, resnet_run_loop
from official_resnet.inference import network_files, predict
from official_resnet.training import weight_averaging

TOTAL = 10  # steps of a training
SLOW = pytest.mark.slow


def averages_of(model, strategy=None, **fields):
    """Return the WeightAverages of a training of TOTAL steps."""
    config = config_of(TINY, train_epochs=2, **fields)
    process = types.SimpleNamespace(strategy=strategy or tf.distribute.get_strategy())
    trainer = types.SimpleNamespace(config=config, model=model, process=process, steps_per_epoch=TOTAL // 2, card={})
    return weight_averaging.WeightAverages(trainer)


def net():
    dropout = keras.layers.Dropout(0.5)  # the state of its random generator is no number to average
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), keras.layers.BatchNormalization(), dropout])


CASES = {  # fields, {step: decay of an update}
    'ema': ({'average_warmup': False}, {1: 0.999, 9: 0.999}),
    'warm-up': ({'average_decay': 0.9}, {1: 2 / 11, 8: 0.5, 80: 0.9, 10**6: 0.9}),
    'half-life of 100 steps': (
        {'average_decay': 0.5**0.01, 'average_every': 20, 'average_warmup': False},
        {20: 0.5**0.2},
    ),
    'airbench': ({'weight_averaging': 'lookahead'}, {5: 0.95**5 / 8, 9: 1.0, 10: 0.95**5}),
}


@pytest.mark.parametrize('name', CASES)
def test_the_decay_of_an_update(name):
    fields, decays = CASES[name]
    averages = averages_of(net(), **{'weight_averaging': 'ema'} | fields)
    assert {step: float(averages.decay(tf.constant(step, tf.int64))) for step in decays} == pytest.approx(decays)


def weights_at(step):
    """Two of the network's variables after a step, a kernel and a batch statistic."""
    return np.array([[step], [step**2]], np.float32), np.array([0.5 * step], np.float32)


@pytest.mark.parametrize('kind,every', [('ema', 2), ('lookahead', 3)])
def test_averages_by_hand(kind, every):
    """Of weights and batch statistics; lookahead continues from them, and ends with them."""
    model = net()
    kernel, mean = model.layers[0].kernel, model.layers[1].moving_mean
    expected = [kernel.numpy(), mean.numpy()]
    fields = {'average_warmup': False, 'average_decay': 0.8, 'average_every': every}
    averages = averages_of(model, weight_averaging=kind, **fields)
    update = tf.function(lambda: averages.update(tf.distribute.get_strategy()))
    for step in range(1, TOTAL + 1):
        now = weights_at(step)
        kernel.assign(now[0])
        mean.assign(now[1])
        update()
        decay = 0.8**every * ((step / TOTAL) ** 3 if kind == 'lookahead' else 1)
        if step % every == 0:
            expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
        is_replaced = kind == 'lookahead' and (step % every == 0 or step == TOTAL)
        for variable, new, average in zip((kernel, mean), now, expected, strict=True):
            np.testing.assert_allclose(variable, average if is_replaced else new, 1e-6)
            np.testing.assert_allclose(averages.named()[f'average/{variable.path}'], average, 1e-6)
    assert averages.steps.numpy() == TOTAL
    assert not any('seed' in name for name in averages.named())


def test_a_network_that_holds_its_averages_is_saved_with_both():
    averages = averages_of(net(), weight_averaging='ema')
    for variable in averages.named().values():
        variable.assign(tf.cast(tf.random.stateless_uniform(variable.shape, [1, 2]) * 9, variable.dtype))
    before, variables = {name: variable.numpy() for name, variable in averages.named().items()}, averages.named()
    averages.show(True)
    assert averages.named().keys() == before.keys()
    for name, variable in averages.named().items():
        np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)
        assert (variable is not variables[name]) == (name != 'average/steps')  # the two have changed places


@pytest.fixture(scope='module')
def runs(cifar_dir, tmp_path_factory):
    """A function: (kind, strategy) -> the configs of an undisturbed run and of one that was killed inside intervals."""

    @functools.cache
    def run(kind, strategy='default', deaths=(4, 8), **fields):
        folder = tmp_path_factory.mktemp(kind)
        fields = {'spec': TINY, 'weight_averaging': kind, 'average_every': 3, 'max_train_steps': 9} | fields
        fields['distribution_strategy'] = strategy
        one, other = (make_config(cifar_dir, folder / name, **fields) for name in ('one', 'other'))
        resnet_run_loop.train(one, ())
        for death in deaths:
            with pytest.raises(RuntimeError, match='killed'):
                resnet_run_loop.train(other.with_machine(save_checkpoint_minutes=0, steps_per_call=1), [StopAt(death)])
        resnet_run_loop.train(other, ())
        return one, other

    return run


def assert_holds(path, arrays, prefix, **options):
    """The network in a file has the arrays of a checkpoint whose names begin with a prefix."""
    for variable in predict.load(path, **options)[0].variables:
        np.testing.assert_array_equal(variable, arrays[prefix + variable.path])


@pytest.mark.whole_runs
def test_a_killed_and_resumed_run_with_lookahead_and_muon_in_two_passes_is_bit_identical(runs):
    muon = {'optimizer': 'muon', 'base_learning_rate': 0.02, 'bias_learning_rate_factor': 4.0}
    one, other = runs('lookahead', deaths=(4,), max_train_steps=6, gradient_accumulation_steps=2, **muon)
    folder = one.machine.model_dir
    assert_equal_runs(folder, other.machine.model_dir)
    arrays = checkpoints.restore_latest(f'{folder}/checkpoints')[0]
    assert_holds(f'{folder}/best.keras', arrays, 'average/')


@SLOW
@pytest.mark.parametrize('strategy', ['default', 'mirrored'])
@pytest.mark.parametrize('kind', ['lookahead', 'ema'])
def test_averages_resume_are_evaluated_and_are_written(runs, kind, strategy):
    """On one device and on two; the weights themselves are there for those who ask."""
    one, other = runs(kind, strategy)
    folder, arrays = one.machine.model_dir, checkpoints.restore_latest(f'{one.machine.model_dir}/checkpoints')[0]
    assert_equal_runs(folder, other.machine.model_dir)
    names = [name for name in arrays if name.startswith('average/') and name != 'average/steps']
    differ = [name for name in names if (arrays[name] != arrays[name.removeprefix('average/')]).any()]
    assert any('moving_variance' in name for name in names) and differ == (names if kind == 'ema' else [])
    tests = [line for line in metrics(folder) if line['split'] == 'test']
    assert resnet_run_loop.evaluate(one)['loss'] == pytest.approx(tests[-1]['loss'], rel=1e-6)
    assert_holds(folder, arrays, 'average/')
    assert_holds(folder, arrays, '', use_weights='plain')
    assert json.loads(pathlib.Path(folder, 'model.card.json').read_text())['weights'] == kind


@SLOW
def test_the_flag_chooses_the_weights(runs, capsys):
    from official_resnet import cifar10_main
    from official_resnet.command_line import train_program

    folder = runs('ema')[0].machine
    losses = {}
    for use in ('average', 'plain'):
        flags = [f'--data_dir={folder.data_dir}', f'--model_dir={folder.model_dir}', '--eval_only']
        code = train_program.main(['x', *flags, f'--use_weights={use}'], '', cifar10_main.PROGRAM)
        assert code == 0
        losses[use] = capsys.readouterr().out
    assert losses['average'] != losses['plain']


@SLOW
def test_use_weights_plain_trains_as_without_averages(cifar_dir, tmp_path):
    """The averages of ema change nothing of the training; the evaluated and written weights are then its own."""
    fields = {'spec': TINY, 'max_train_steps': 9}
    configs = {
        'none': make_config(cifar_dir, tmp_path / 'none', **fields),
        'ema': make_config(cifar_dir, tmp_path / 'ema', weight_averaging='ema', use_weights='plain', **fields),
    }
    models = {name: resnet_run_loop.train(config, ()).model for name, config in configs.items()}
    for one, other in zip(*(model.get_weights() for model in models.values()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert metrics(tmp_path / 'none') == metrics(tmp_path / 'ema')
    assert json.loads((tmp_path / 'ema/model.card.json').read_text())['weights'] == 'plain'
    assert 'weights' not in json.loads((tmp_path / 'none/model.card.json').read_text())
    changed = make_config(cifar_dir, tmp_path / 'none', weight_averaging='ema', **fields)
    assert '--weight_averaging none, not ema' in message_of(resnet_run_loop.Trainer, changed)
    assert network_files.restore_weights(tmp_path / 'none', use_weights='plain')[0].keys() == {
        variable.path for variable in models['none'].variables
    }


def test_a_run_without_averages_has_no_others_to_evaluate(source, cifar_dir, capsys):
    from official_resnet import cifar10_main
    from official_resnet.command_line import train_program

    argv = ['x', f'--data_dir={cifar_dir}', f'--model_dir={source}', '--eval_only', '--use_weights=plain']
    assert train_program.main(argv, '', cifar10_main.PROGRAM) == 1
    assert '--use_weights=plain' in capsys.readouterr().err
