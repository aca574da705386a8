"""Our mixing of a batch against timm's Mixup. CI installs the peers."""

import numpy as np
import pytest
import tensorflow as tf
from fixtures.torch_peers import import_timm

from official_resnet.inputs import batch_augmentation
from official_resnet.inputs.augment_options import Augmentation

pytestmark = pytest.mark.parity


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
@pytest.mark.parametrize('seed', range(8))
def test_the_same_draws_make_the_same_batch(kind, seed, monkeypatch):
    import torch

    images = np.random.default_rng(seed).normal(size=(6, 9, 14, 3)).astype(np.float32)
    rows = np.random.default_rng(seed).integers(0, 5, 6)
    options, seeds = Augmentation(**{kind: 1.0}), tf.constant([seed, 3], tf.int64)
    ours, labels = batch_augmentation.mix(tf.constant(images), tf.one_hot(rows, 5), seeds, options)

    fold_in = tf.random.experimental.stateless_fold_in
    weight = float(batch_augmentation.beta(fold_in(seeds, 1), 1.0))
    places = tf.random.stateless_uniform([4], fold_in(seeds, 0)).numpy()[2:]
    centre = iter((places * [9, 14]).astype(int))
    module = import_timm('data.mixup')
    monkeypatch.setattr(np.random, 'randint', lambda low, high, size: next(centre))
    mixup = module.Mixup(1.0, 1.0, label_smoothing=0, num_classes=5)
    monkeypatch.setattr(mixup, '_params_per_batch', lambda: (weight, kind == 'cutmix'))
    theirs, targets = mixup(torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(rows))
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(labels, targets, atol=1e-6)
