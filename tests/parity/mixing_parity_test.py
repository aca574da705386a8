"""Our mixing of a batch against timm's Mixup. CI installs the peers."""

import importlib.util
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from official_resnet.inputs import batch_augmentation
from official_resnet.inputs.augment_options import Augmentation

pytestmark = pytest.mark.parity


def timm_mixup():
    """The module timm/data/mixup.py. Of timm as a whole, this needs no torchvision."""
    spec = importlib.util.find_spec('timm')
    if spec is None:
        pytest.skip('timm is not installed')
    path = pathlib.Path(spec.submodule_search_locations[0], 'data', 'mixup.py')
    found = importlib.util.spec_from_file_location('timm_mixup', path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


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
    module = timm_mixup()
    monkeypatch.setattr(np.random, 'randint', lambda low, high, size: next(centre))
    mixup = module.Mixup(1.0, 1.0, label_smoothing=0, num_classes=5)
    monkeypatch.setattr(mixup, '_params_per_batch', lambda: (weight, kind == 'cutmix'))
    theirs, targets = mixup(torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(rows))
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(labels, targets, atol=1e-6)
