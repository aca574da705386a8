"""Our losses against those of timm and PyTorch. CI installs the peers."""

import numpy as np
import pytest
import tensorflow as tf
from fixtures.networks import TINY
from fixtures.tiny_training import config_of
from fixtures.torch_peers import import_timm

from official_resnet.training import step

pytestmark = pytest.mark.parity
SMOOTHING, CLASSES, RATIO = 0.1, 20, 0.6
RANDOM = np.random.default_rng(3)
LOGITS = RANDOM.normal(0, 3, (64, CLASSES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, 64)
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[LABELS]
MIXED = (RATIO * ONE_HOT + (1 - RATIO) * ONE_HOT[::-1]).astype(np.float32)


def ours(labels, **fields):
    """The mean loss of the images, and its gradient."""
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(step.training_loss(tf.constant(labels), logits, config_of(TINY, **fields)))
    return loss.numpy(), tape.gradient(loss, logits).numpy()


def assert_equal(peer, labels, **fields):
    """`peer` is a torch loss, and `labels` are those that it gets, if they differ from ours, as (ours, theirs)."""
    import torch

    mine, theirs = labels if isinstance(labels, tuple) else (labels, labels)
    logits = torch.tensor(LOGITS, requires_grad=True)
    value = peer(logits, torch.tensor(theirs))
    value.backward()
    found = ours(mine, **fields)
    assert found[0] == pytest.approx(value.item(), rel=1e-6)
    np.testing.assert_allclose(found[1], logits.grad.numpy(), 0, 1e-6 * np.abs(found[1]).max())


def test_softmax_equals_pytorch_and_timm():
    import torch

    module = import_timm('loss.cross_entropy')
    assert_equal(torch.nn.CrossEntropyLoss(), LABELS)
    assert_equal(torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING), LABELS, label_smoothing=SMOOTHING)
    assert_equal(torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING), MIXED, label_smoothing=SMOOTHING)
    assert_equal(module.LabelSmoothingCrossEntropy(SMOOTHING), LABELS, label_smoothing=SMOOTHING)
    smoothed = (MIXED * (1 - SMOOTHING) + SMOOTHING / CLASSES).astype(np.float32)  # as timm's Mixup yields them
    assert_equal(module.SoftTargetCrossEntropy(), (MIXED, smoothed), label_smoothing=SMOOTHING)


@pytest.mark.parametrize('threshold', [0.0, 0.2, 0.5])
def test_sigmoid_equals_timm(threshold):
    """In timm, mixed labels come smoothed from the mixer. sigmoid is its loss of A1 to A3."""
    make = import_timm('loss.binary_cross_entropy').BinaryCrossEntropy
    smoothed = (MIXED * (1 - SMOOTHING) + SMOOTHING / CLASSES).astype(np.float32)
    for loss in ('sigmoid', 'sigmoid_sum'):
        theirs = make(SMOOTHING, threshold or None, sum_classes=loss == 'sigmoid_sum')
        fields = {'loss': loss, 'label_smoothing': SMOOTHING, 'target_threshold': threshold}
        assert_equal(theirs, LABELS, **fields)
        assert_equal(theirs, (MIXED, smoothed), **fields)
