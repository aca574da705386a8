"""Our CIFAR net against PyTorch: the same function, and the same training step. CI installs the peer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.conversion import assert_equal, images_of
from fixtures.random_weights import randomize

from official_resnet import resnet_model, resnet_variants
from official_resnet.training import optimizers

SEED = 0
pytestmark = pytest.mark.parity
RATE, L2 = 0.01, 0.5  # small steps, since float32 noise grows at every ReLU's kink; an L2 that shows


@pytest.fixture(scope='module')
def torch():
    import torch  # no importorskip: where these tests run, the peer has to be there

    return torch


def copy_weights(torch, model, peer):
    """Copy our weights into the peer, with random statistics and scales, so that no layer is an identity."""
    randomize(model)
    for ours, theirs in pairs(model, peer):
        theirs.data = torch.tensor(ours).contiguous()


def pairs(model, peer):
    """Return [(our value in torch's layout, the peer's tensor)] of all convolutions, BN and the dense layer."""
    from torch import nn

    ours = [layer for layer in model.layers if layer.weights]
    theirs = [module for module in peer.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    assert len(ours) == len(theirs)
    result = []
    for layer, module in zip(ours, theirs, strict=True):
        # Kernels [h, w, in, out] -> [out, in, h, w], and [in, out] -> [out, in].
        values = [value.transpose((3, 2, 0, 1) if value.ndim == 4 else None) for value in layer.get_weights()]
        parameters = [module.weight] if isinstance(module, nn.Conv2d) else [module.weight, module.bias]
        if isinstance(module, nn.BatchNorm2d):
            parameters += [module.running_mean, module.running_var]
        result += zip(values, parameters, strict=True)
    return result


@pytest.mark.parametrize('size', [32, 27])
def test_same_logits_at_an_even_and_an_odd_size(torch, size):
    from benchmarks import torch_peer

    keras.utils.set_random_seed(SEED)
    model = resnet_model.resnet(resnet_variants.cifar_spec(20), 10, (size, size, 3))
    peer = torch_peer.CifarResNet(20).eval()
    assert sum(p.numel() for p in peer.parameters()) == 269_722
    copy_weights(torch, model, peer)
    with torch.inference_mode():
        expected = peer(torch_peer.to_torch(images_of(size))).numpy()
    assert_equal(model(images_of(size)).numpy(), expected)


@pytest.mark.parametrize('nesterov', [False, True])
def test_same_weights_after_three_steps(torch, nesterov):
    """Three steps pin the loss, the gradients, the coupled L2, momentum and BN's statistics."""
    from benchmarks import torch_peer

    keras.utils.set_random_seed(SEED)
    model = resnet_variants.cifar_resnet(8, bn_momentum=0.9)
    peer = torch_peer.CifarResNet(8).train()
    copy_weights(torch, model, peer)
    ours = optimizers.CoupledSGD(RATE, 0.9, nesterov, l2=L2)
    theirs = torch.optim.SGD(peer.parameters(), RATE, 0.9, weight_decay=L2, nesterov=nesterov)
    random = np.random.default_rng(2)
    for _ in range(3):
        images, labels = random.normal(size=(16, 32, 32, 3)).astype('float32'), random.integers(0, 10, 16)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True)))
        ours.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        theirs.zero_grad()
        their_loss = torch.nn.functional.cross_entropy(peer(torch_peer.to_torch(images)), torch.tensor(labels))
        their_loss.backward()
        theirs.step()
        assert float(loss) == pytest.approx(their_loss.item(), rel=1e-4)
    for got, expected in pairs(model, peer):
        # PyTorch averages the unbiased variance, Keras the biased one: 1 / (16 * 8 * 8 - 1) apart at the most.
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=2e-3, atol=2e-4)
