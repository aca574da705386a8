"""Runs with everything that changes images or mixes them are killed and continue to the same weights."""

import pytest
from fixtures import tiny_training
from fixtures.imagenet_shards import draw, write_shards
from fixtures.tiny_training import StopAt, assert_equal_runs

from official_resnet import resnet_run_loop, resnet_spec
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.inputs.views import Views

MIXED = Augmentation(mixup=0.2, cutmix=1.0, policy='rand-m9-mstd0.5-inc1', erasing=0.5, repeats=3)
pytestmark = pytest.mark.slow


def assert_resumes(make_config, folder, deaths):
    """A run that dies at each of some steps, without anything saved after it, ends as one that nobody touched."""
    resnet_run_loop.train(make_config(folder / 'whole'), ())
    killed = make_config(folder / 'killed')
    for death in deaths:
        with pytest.raises(RuntimeError, match='killed'):
            resnet_run_loop.train(killed.with_machine(save_checkpoint_minutes=0), (StopAt(death),))
    resnet_run_loop.train(killed, ())
    assert_equal_runs(folder / 'whole', folder / 'killed')


@pytest.mark.parametrize('augmentation', [MIXED, Augmentation(policy='trivial_wide', alternating_flip=True, cutout=8)])
def test_images_in_memory(cifar_dir, tmp_path, augmentation):
    """At the first step, the end of an epoch of 7 steps, and inside the second."""
    make = lambda folder: tiny_training.make_config(cifar_dir, folder, augmentation=augmentation)  # noqa: E731
    assert_resumes(make, tmp_path, (1, 7, 10))


def test_streamed_images_that_grow(tmp_path):
    """Two epochs of 5 steps, of images of 24 and of 40 pixels: inside the first, between them, and in the second."""
    images = draw(20)
    for split in ('train', 'test'):
        write_shards(tmp_path / 'shards', images, split, 2)
    spec = resnet_spec.ResNetSpec((1, 1), filters=4, stem='imagenet', bn_momentum=0.9)
    views = Views(40, 40, first_size=24, size_ramp=(0.5, 0.5), resize='bicubic')
    assert [views.size_in(epoch, 2) for epoch in (0, 1)] == [24, 40]

    def make_config(folder):
        fields = {'dataset': 'imagenet', 'views': views, 'augmentation': MIXED, 'batch_size': 4}
        return tiny_training.make_config(tmp_path / 'shards', folder, spec, **fields)

    assert_resumes(make_config, tmp_path, (3, 5, 8))
