"""Our CIFAR net against PyTorch: the same function, and the same training step. CI installs the peer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.torch_peers import assert_same_logits, copy_weights, pairs

from official_resnet import resnet_model, resnet_variants
from official_resnet.training import optimizers

SEED = 0
pytestmark = pytest.mark.parity
RATE, L2 = 0.01, 0.5  # small steps, since float32 noise grows at every ReLU's kink; an L2 that shows


def test_same_logits_at_an_even_and_an_odd_size():
    from benchmarks import torch_peer

    keras.utils.set_random_seed(SEED)
    model = resnet_model.resnet(resnet_variants.cifar_spec(20), 10, (None, None, 3))
    peer = torch_peer.CifarResNet(20).eval()
    assert sum(p.numel() for p in peer.parameters()) == 269_722
    copy_weights(model, peer)
    assert_same_logits(model, peer, (32, 27))


@pytest.mark.parametrize('nesterov', [False, True])
def test_same_weights_after_three_steps(nesterov):
    """Three steps pin the loss, the gradients, the coupled L2, momentum and BN's statistics."""
    import torch

    from benchmarks import torch_peer

    keras.utils.set_random_seed(SEED)
    model = resnet_variants.cifar_resnet(8, bn_momentum=0.9)
    peer = torch_peer.CifarResNet(8).train()
    copy_weights(model, peer)
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
