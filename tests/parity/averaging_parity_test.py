"""Our averages of weights against those of PyTorch, timm and airbench's lookahead. CI installs the peers."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.networks import TINY
from fixtures.tiny_training import config_of
from fixtures.torch_peers import import_timm

from official_resnet.training import weight_averaging

pytestmark = pytest.mark.parity
STEPS, SHAPE = 40, (3, 4)
WEIGHTS = np.random.default_rng(4).normal(size=(STEPS + 1, *SHAPE)).astype(np.float32)  # after each step


def ours(**fields):
    """Return the weights and their averages after the last step, where step t sets or (lookahead) changes them."""
    model = keras.Sequential([keras.Input(SHAPE[:1]), keras.layers.Dense(SHAPE[1], use_bias=False)])
    kernel, strategy = model.layers[0].kernel, tf.distribute.get_strategy()
    kernel.assign(WEIGHTS[0])
    process = types.SimpleNamespace(strategy=strategy)
    config = config_of(TINY, train_epochs=1, average_warmup=False, **fields)
    trainer = types.SimpleNamespace(config=config, model=model, process=process, steps_per_epoch=STEPS, card={})
    averages = weight_averaging.WeightAverages(trainer)
    update = tf.function(lambda: averages.update(strategy))
    for change in WEIGHTS[1:]:
        kernel.assign(kernel + change)
        update()
    return kernel.numpy(), averages.named()[f'average/{kernel.path}'].numpy()


def torch_net():
    import torch

    net = torch.nn.Linear(*SHAPE, bias=False).requires_grad_(False)
    net.weight.copy_(torch.tensor(WEIGHTS[0].T))
    return net


def train(net, update, every):
    """Change the weights of a torch net; call update(net, step) after every `every` steps and after the last."""
    import torch

    for step, change in enumerate(WEIGHTS[1:], 1):
        net.weight += torch.tensor(change.T)
        if step % every == 0 or step == STEPS:
            update(net, step)


@pytest.mark.parametrize('every', [1, 8])
@pytest.mark.parametrize('peer', ['torch', 'timm'])
def test_ema_equals_its_peer(peer, every):
    """torch's average begins with its first update, ours and timm's with the first weights."""
    from torch.optim import swa_utils

    decay, net = 0.97, torch_net()
    if peer == 'torch':
        average = swa_utils.get_ema_multi_avg_fn(decay**every)
        model = swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        model.update_parameters(net)
        train(net, lambda net, step: model.update_parameters(net), every)
    else:
        model = import_timm('utils.model_ema').ModelEmaV3(net, decay**every)
        train(net, lambda net, step: model.update(net), every)
    mine = ours(weight_averaging='ema', average_decay=decay, average_every=every)
    np.testing.assert_allclose(mine[0], net.weight.T.numpy(), 1e-6)
    np.testing.assert_allclose(mine[1], model.module.weight.T.numpy(), 1e-5, 1e-6)


@pytest.mark.parametrize('every', [5, 7])
def test_lookahead_equals_that_of_airbench(every):
    """Its update is one of linear interpolation, after which the network gets the average; 7 does not divide 40."""
    import torch

    net, slow = torch_net(), torch.tensor(WEIGHTS[0].T)

    def update(net, step) -> None:
        if step % every == 0:
            slow.lerp_(net.weight, 1 - 0.95**every * (step / STEPS) ** 3)
            net.weight.copy_(slow)
        if step == STEPS:
            net.weight.copy_(slow.lerp_(net.weight, 0))

    train(net, update, every)
    mine = ours(weight_averaging='lookahead', average_every=every)
    np.testing.assert_allclose(mine[0], net.weight.T.numpy(), 1e-5, 1e-6)
    np.testing.assert_allclose(mine[1], slow.T.numpy(), 1e-5, 1e-6)
