"""What is added to crops and flips: its values and distributions; the same batches after a resume and with workers."""

import dataclasses
import re

import numpy as np
import pytest
import scipy.stats as stats
import tensorflow as tf
from fixtures.batches import assert_same_batches, message_of
from fixtures.imagenet_shards import draw, write_shards

from official_resnet.inputs import augmentation, batch_augmentation, datasets, in_memory
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.inputs.views import Views
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training.config import TrainConfig

EVERYTHING = Augmentation(pad=2, pad_mode='reflect', alternating_flip=True, cutout=3, erasing=0.5)
MIXED = dataclasses.replace(EVERYTHING, mixup=0.2, cutmix=1.0, policy='rand-m9-mstd0.5', repeats=2)


@pytest.fixture(scope='module')
def memory():
    """Images in memory whose labels are their numbers."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    return in_memory.InMemorySplit(images, np.arange(40, dtype=np.int32), 40, 'noise', (), 'none')


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    write_shards(folder, draw(40), 'train', 2)
    return datasets.open_split('imagenet', 'train', data_dir=folder, views=Views(12, 12)).with_normalization('none')


@pytest.mark.parametrize('split', ['memory', 'stream'])
def test_batches_are_functions_of_seed_and_step(split, request):
    """A late start gives the tail bit for bit, and parts make the whole."""
    split, options = request.getfixturevalue(split), {'options': EVERYTHING, 'num_epochs': 2}
    mixed = list(split.training_batches(12, seed=3, num_epochs=2, options=MIXED).as_numpy_iterator())  # 6 steps
    assert_same_batches(split.training_batches(12, seed=3, first_step=4, num_epochs=2, options=MIXED), mixed[4:])
    whole = list(split.training_batches(12, seed=3, **options).as_numpy_iterator())
    parts = [split.training_batches(12, seed=3, share=(i, 2), **options).as_numpy_iterator() for i in (0, 1)]
    for (images, labels), one, other in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(images, np.concatenate([one[0], other[0]]))
        np.testing.assert_array_equal(labels, np.concatenate([one[1], other[1]]))


def test_without_augmentation_its_options_change_nothing(memory):
    without = memory.training_batches(12, seed=3, augment=False).as_numpy_iterator()
    assert_same_batches(memory.training_batches(12, seed=3, augment=False, options=MIXED), list(without))


@pytest.mark.parametrize('pad', [0, 2, 7, 30])
def test_borders_that_reflect_are_those_of_numpy(memory, pad):
    images = memory.images[:, :5]
    expected = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), 'reflect')
    np.testing.assert_array_equal(batch_augmentation.reflected(images, pad), expected)


def test_crops_of_reflecting_borders(memory):
    options = Augmentation(pad=2, pad_mode='reflect')
    for images, labels in memory.training_batches(40, seed=5, options=options).as_numpy_iterator():
        padded = np.pad(memory.images[labels], ((0, 0), (2, 2), (2, 2), (0, 0)), 'reflect')
        np.testing.assert_array_equal(images, augmentation.pad_crop_flip(padded, [5, 0], pad=0, size=8))


def test_an_image_is_mirrored_in_every_second_epoch(memory):
    options = Augmentation(pad=0, alternating_flip=True)
    seen = []
    for images, labels in memory.training_batches(40, seed=5, num_epochs=4, options=options).as_numpy_iterator():
        is_same = (images == memory.images[labels]).all((1, 2, 3))
        is_mirrored = (images == memory.images[labels][:, :, ::-1]).all((1, 2, 3))
        assert (is_same != is_mirrored).all()
        seen.append(is_mirrored[np.argsort(labels)])
    assert 10 <= seen[0].sum() <= 30  # of 40 coins: 20 +- 3.2 standard deviations
    for epoch in (1, 2, 3):
        np.testing.assert_array_equal(seen[epoch], seen[0] ^ (epoch % 2 == 1))
    never = memory.training_batches(40, flip=False, options=options)
    for images, labels in never.as_numpy_iterator():
        np.testing.assert_array_equal(images, memory.images[labels])


@pytest.mark.parametrize('side', [1, 4, 5, 20])
def test_cutout_sets_a_clipped_square_to_0(side):
    draws = (np.stack(np.meshgrid(range(6), range(7), indexing='ij')).reshape(2, 42) + 0.5) / [[6], [7]]
    cut = batch_augmentation.cutout(tf.ones([42, 6, 7, 2]), tf.constant(draws, tf.float32), side)
    for image, row, column in zip(cut.numpy(), np.repeat(range(6), 7), np.tile(range(7), 6), strict=True):
        expected = np.ones((6, 7, 2))
        top, left = row - side // 2, column - side // 2
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = 0
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('alpha', [0.1, 0.2, 1.0, 3.0])
def test_lambda_is_of_the_beta_distribution(alpha):
    seeds = tf.data.Dataset.range(1500).map(lambda step: batch_augmentation.beta(tf.stack([7, step]), alpha))
    drawn = np.float64(list(seeds.as_numpy_iterator()))
    small = drawn[drawn < 0.5]  # those near 1 are 1 in float32
    assert 650 < len(small) < 850  # 750 +- 19
    assert stats.kstest(small, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 0.01


@pytest.mark.parametrize('alpha', [1e-45, 1e-30, 1e30, 2e38])
def test_lambda_of_an_extreme_alpha_is_a_number(alpha):
    drawn = [float(batch_augmentation.beta(tf.constant([7, i]), tf.constant(alpha))) for i in range(9)]
    assert all(0 <= weight <= 1 for weight in drawn)


@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
def test_images_that_even_the_padding_leaves_too_small(memory, mode):
    split = dataclasses.replace(memory, input_size=13)
    options = Augmentation(pad=2, pad_mode=mode)
    assert re.search('--crop_pad=2 .*pass 3 or more', message_of(lambda: split.training_batches(4, options=options)))
    images, _ = next(iter(split.training_batches(4, options=dataclasses.replace(options, pad=3))))
    assert images.shape[1:3] == (13, 13)


def mixed(memory, options, steps=40):
    """Return [(images of the batch, mixed images, mixed labels)] of one batch of 40 images a step; labels are rows."""
    batches = memory.training_batches(40, seed=2, num_epochs=steps, flip=False, options=options)
    plain = dataclasses.replace(options, mixup=0.0, cutmix=0.0)
    numbers = memory.training_batches(40, seed=2, num_epochs=steps, flip=False, options=plain)
    rows = zip(batches.as_numpy_iterator(), numbers.as_numpy_iterator(), strict=True)
    return [(memory.images[labels].astype(np.float32), labels, *batch) for batch, (_, labels) in rows]


def test_mixup_blends_images_and_labels(memory):
    weights = []
    for before, rows, images, labels in mixed(memory, Augmentation(pad=0, mixup=1.0, mix_probability=0.75)):
        weight = labels[0, rows[0]]
        np.testing.assert_allclose(images, weight * before + (1 - weight) * before[::-1], atol=1e-3)
        expected = weight * np.eye(40)[rows] + (1 - weight) * np.eye(40)[rows[::-1]]
        np.testing.assert_allclose(labels, expected, atol=1e-6)
        weights.append(weight)
    assert labels.dtype == np.float32 and len(set(weights)) > 20
    assert 2 <= sum(weight == 1 for weight in weights) <= 19  # 10 +- 2.7 standard deviations are not mixed


def test_cutmix_swaps_a_box_and_counts_its_pixels(memory):
    memory = dataclasses.replace(memory, images=np.arange(40 * 64 * 3).reshape(40, 8, 8, 3).astype(np.float32))
    clipped = 0
    for before, rows, images, labels in mixed(memory, Augmentation(pad=0, cutmix=1.0)):
        is_other = images[0] == before[-1]
        assert ((images == before) | (images == before[::-1])).all() and (is_other == is_other[..., :1]).all()
        where = np.argwhere(is_other[..., 0])
        if len(where):
            sides = np.ptp(where, axis=0) + 1
            assert len(where) == np.prod(sides)  # a box
            clipped += sides[0] != sides[1]
        np.testing.assert_allclose(labels[0, rows[0]], 1 - len(where) / 64, atol=1e-6)
        assert ((images == before[::-1])[:, ..., 0] == is_other[..., 0]).all()  # the same box in all images
    assert clipped > 5


def test_both_alternate(memory):
    steps = mixed(memory, Augmentation(pad=0, mixup=1.0, cutmix=1.0, mix_switch=0.25), 80)
    num_blended = sum(not ((images == before) | (images == before[::-1])).all() for before, _, images, _ in steps)
    assert 44 <= num_blended <= 76  # of 80: 60 +- 3.9 standard deviations
    assert all(abs(labels.sum(1) - 1).max() < 1e-6 for *_, labels in steps)


def test_workers_mix_within_their_parts_by_the_same_lambda(stream):
    options = Augmentation(mixup=0.5)
    parts = [next(iter(stream.training_batches(12, share=(i, 2), options=options))) for i in (0, 1)]
    lambdas = [np.sort(np.unique(labels.numpy().round(5)))[-2:] for _, labels in parts]
    np.testing.assert_array_equal(*lambdas)
    plain = next(iter(stream.training_batches(12)))[0].numpy()
    images, labels = (np.asarray(array) for array in parts[1])
    weight = labels[0].max()
    close = [
        np.allclose(images, one * plain[6:] + (1 - one) * plain[6:][::-1], atol=1e-2) for one in (weight, 1 - weight)
    ]
    assert any(close)


def test_erased_rectangles():
    """Their number, areas and aspect ratios, and that they are anywhere."""
    draws = tf.random.stateless_uniform([23, 3000], [1, 2])
    erased = batch_augmentation.erase(tf.ones([3000, 24, 30, 1]), draws, 0.25).numpy()[..., 0] == 0
    chosen = erased[erased.any((1, 2))]
    assert 660 < len(chosen) < 840  # 750 +- 24
    heights, widths = chosen.any(2).sum(1), chosen.any(1).sum(1)
    assert (heights * widths == chosen.sum((1, 2))).all() and heights.max() < 24 and widths.max() < 30
    areas, ratios = heights * widths / 720, np.log(heights / widths)
    assert areas.min() > 0.01 and areas.max() < 0.37 and 0.14 < areas.mean() < 0.19  # 0.177, without those that fail
    assert abs(ratios).max() < 1.5 and abs(ratios.mean()) < 0.1
    assert chosen.any(0).all()


@pytest.mark.parametrize('split', ['memory', 'stream'])
def test_repeated_images_come_in_a_row_each_changed_in_its_own_way(split, request):
    split, options = request.getfixturevalue(split), Augmentation(repeats=3)
    batches = list(split.training_batches(12, seed=3, num_epochs=2, options=options).as_numpy_iterator())
    assert len(batches) == 6  # 2 * (40 // 12), as without repeats
    epochs = np.stack([labels for _, labels in batches]).reshape(2, 12, 3)
    for epoch in epochs:
        assert (epoch == epoch[:, :1]).all()
    images = np.concatenate([images for images, _ in batches])
    assert len({image.tobytes() for image in images}) == len(images)


def test_a_policy_changes_crops_by_pillow(memory):
    options = Augmentation(pad=0, policy='trivial_wide')
    ((images, labels),) = memory.training_batches(40, seed=1, flip=False, options=options).as_numpy_iterator()
    same = (images == memory.images[labels]).all((1, 2, 3))
    assert 1 <= same.sum() < 30 and (images == images.round()).all()


def test_a_policy_needs_three_channels(memory):
    grey = dataclasses.replace(memory, images=memory.images[..., :1])
    message = message_of(lambda: grey.training_batches(12, options=Augmentation(policy='trivial_wide')))
    assert '--auto_augment=trivial_wide' in message and 'leave it out' in message
    assert list(grey.training_batches(12, options=Augmentation(mixup=0.2, erasing=1.0)))


def test_training_images_grow(stream):
    views = Views(72, 72, first_size=8, size_ramp=(0.25, 0.75))
    assert [views.size_in(epoch, 8) for epoch in range(8)] == [8, 8, 8, 40, 40, 72, 72, 72]
    assert [Views(24, 24, first_size=12, size_ramp=(1, 1)).size_in(epoch, 3) for epoch in range(3)] == [12] * 3
    split = dataclasses.replace(stream, views=Views(44, 44, first_size=12, size_ramp=(0.5, 0.5)))
    for epochs in (1, 2, 7, 100, 2**31 - 1):  # the list of all epochs would not fit into memory
        starts, sizes = split._training_sizes(epochs)
        assert starts.numpy().tolist() == [0, -(-epochs // 2)][:epochs] and len(sizes) == len(starts) <= 2
        assert sizes.numpy().tolist() == [split.views.size_in(epoch, epochs) for epoch in starts.numpy().tolist()]
    options = {'seed': 3, 'num_epochs': 2, 'options': Augmentation(cutmix=1.0, erasing=1.0, policy='trivial_wide')}
    whole = list(split.training_batches(12, **options).as_numpy_iterator())
    assert [images.shape[1:3] for images, _ in whole] == [(12, 12)] * 3 + [(44, 44)] * 3
    assert_same_batches(split.training_batches(12, first_step=2, **options), whole[2:])
    assert split.model_shape == (None, None, 3) and stream.model_shape == (12, 12, 3)


def test_the_centres_of_cutout_are_everywhere(memory):
    split = dataclasses.replace(memory, images=memory.images | 1)  # no pixel is 0
    batches = split.training_batches(40, seed=1, num_epochs=100, options=Augmentation(pad=0, cutout=1))
    counts = sum((images[..., 0] == 0).sum(0) for images, _ in batches.as_numpy_iterator())
    assert counts.sum() == 4000 and counts.min() > 25 and counts.max() < 105  # 62.5 +- 4.8 standard deviations


@pytest.mark.parametrize(
    'fields, words',
    [
        ({'pad': -1}, '--crop_pad=-1'),
        ({'pad_mode': 'edge'}, '--pad_mode=edge reflect'),
        ({'cutout': -2}, '--cutout=-2'),
        ({'mixup': -0.1}, '--mixup=-0.1'),
        ({'erasing': 2.0}, '--random_erasing=2.0'),
    ],
)
def test_what_is_refused(fields, words):
    message = message_of(lambda: TrainConfig(ResNetSpec((1, 1, 1)), augmentation=Augmentation(**fields)))
    assert all(word in message for word in words.split())
