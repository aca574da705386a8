"""Splits in memory: order, resume, augmentation, evaluation and speed of the batches."""

import collections
import time

import numpy as np
import pytest
import tensorflow as tf
from fixtures.batches import assert_same_batches, labels_of, message_of

from official_resnet.inputs import augmentation, datasets, in_memory
from official_resnet.inputs.normalization import per_image_standardization


def noise(num_images, shape=(8, 8, 3)):
    """Return a split of noise, in which the label of an image is its number."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, *shape), np.uint8)
    labels = np.arange(num_images, dtype=np.int32)
    return in_memory.InMemorySplit(images, labels, num_images, 'noise', (), 'per_image_standardization')


def test_no_image_comes_twice_in_an_epoch():
    dataset = noise(23).training_batches(5, seed=1, num_epochs=40)
    assert len(dataset) == 40 * 4  # 23 // 5 = 4 steps, three images left out
    epochs = np.array(labels_of(dataset)).reshape(40, 20)
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40  # no order comes back
    assert set(epochs.ravel()) == set(range(23))  # the three are others each time
    assert collections.Counter(epochs.ravel()).most_common()[-1][1] > 25


def test_all_orders_are_equally_likely():
    dataset = noise(3).training_batches(3, num_epochs=600)
    counts = collections.Counter(map(tuple, labels_of(dataset)))
    assert len(counts) == 6 and min(counts.values()) > 60 and max(counts.values()) < 140  # 100 +- 9


def test_a_batch_is_gather_augment_normalize():
    examples = noise(40)
    dataset = examples.training_batches(8, seed=6, num_epochs=2)
    for step, (images, labels) in enumerate(dataset.as_numpy_iterator()):
        augmented = augmentation.pad_crop_flip(examples.images[labels], np.array([6, step]))
        np.testing.assert_allclose(images, per_image_standardization(augmented), atol=1e-5)
    for images, labels in examples.training_batches(8, augment=False).as_numpy_iterator():
        np.testing.assert_allclose(images, per_image_standardization(examples.images[labels]), atol=1e-5)


THREE_EPOCHS = {'batch_size': 8, 'seed': 3, 'num_epochs': 3}  # of 5 steps


@pytest.fixture(scope='module')
def uninterrupted():
    return list(noise(43).training_batches(**THREE_EPOCHS).as_numpy_iterator())


@pytest.mark.parametrize('first_step', [0, 1, 5, 7, 15])
def test_first_step_gives_the_tail_bit_for_bit(uninterrupted, first_step):
    tail = noise(43).training_batches(first_step=first_step, **THREE_EPOCHS)
    assert len(tail) == 15 - first_step
    assert_same_batches(tail, uninterrupted[first_step:])


def test_num_epochs_only_says_where_to_end(uninterrupted):
    two_epochs = noise(43).training_batches(**THREE_EPOCHS | {'num_epochs': 2})
    assert_same_batches(two_epochs, uninterrupted[:10])


def test_a_late_first_step_costs_nothing():
    dataset = noise(100).training_batches(10, first_step=10**10 + 3, num_epochs=10**9 + 1)
    assert len(dataset) == 7 and len(labels_of(dataset)) == 7


def test_order_and_augmentation_depend_on_seed_and_epoch():
    def first_batch(**options):
        return next(noise(64).training_batches(64, **options).as_numpy_iterator())

    batches = [first_batch(seed=seed) for seed in (0, 256, 2**32, 2**63 - 1)]
    batches.append(first_batch(seed=0, first_step=1, num_epochs=2))
    assert len({labels.tobytes() for _, labels in batches}) == len(batches)
    in_order = [images[np.argsort(labels)] for images, labels in batches]
    assert len({images.tobytes() for images in in_order}) == len(batches)
    np.testing.assert_array_equal(first_batch(seed=256)[0], batches[1][0])


def test_evaluation_scores_every_image_once_in_order():
    batches = noise(23).evaluation_batches(5)
    assert len(batches) == 5 and labels_of(batches) == [*np.arange(20).reshape(4, 5).tolist(), [20, 21, 22]]
    unchanged = noise(23).with_normalization('none').evaluation_batches(5).as_numpy_iterator()
    np.testing.assert_array_equal(np.concatenate([images for images, _ in unchanged]), noise(23).images)
    assert labels_of(noise(3).evaluation_batches(5)) == [[0, 1, 2]]


@pytest.mark.parametrize('method, size', [('training_batches', 5), ('evaluation_batches', None)])
def test_types_and_static_shapes(method, size):
    images, labels = getattr(noise(23, (28, 28, 1)), method)(5).element_spec
    assert images == tf.TensorSpec([size, 28, 28, 1], tf.float32) and labels == tf.TensorSpec([size], tf.int32)


def test_the_first_images_and_steps():
    examples = noise(9).first(4)
    assert examples.labels.tolist() == [0, 1, 2, 3] and len(examples.images) == 4
    assert examples.first(None) is examples
    assert [datasets.steps_per_epoch(*sizes) for sizes in ((50000, 128), (10000, 128), (5, 5))] == [390, 78, 1]
    assert examples.example_bytes(3) is None
    np.testing.assert_array_equal(examples.example_images(3), examples.images[:3])


@pytest.mark.parametrize(
    'method, arguments, words',
    [
        ('evaluation_batches', {'batch_size': 0}, '--batch_size=0 |1 or more'),
        ('training_batches', {'batch_size': 5, 'seed': 2**63}, f'seed {2**63} |0..'),
        ('with_background', {}, 'noise|in memory|leave out --background_class'),
        ('evaluation_batches', {'batch_size': 3, 'view': len}, 'noise|in memory|leave out --ten_crop'),
    ],
)
def test_what_is_refused(method, arguments, words):
    message = message_of(lambda: getattr(noise(10), method)(**arguments))
    assert all(word in message for word in words.split('|')), message


@pytest.mark.timed
def test_one_core_makes_20000_training_images_a_second():
    images = np.random.default_rng(0).integers(0, 256, (50000, 32, 32, 3), np.uint8)
    split = in_memory.InMemorySplit(images, np.zeros(50000, np.int32), 10, '', (), 'per_image_standardization')
    options = tf.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    batches = iter(split.training_batches(128, num_epochs=10).with_options(options))
    rates = []
    for _ in range(5):  # of two epochs but two steps each
        start = time.perf_counter()
        for _ in range(778):
            next(batches)
        rates.append(778 * 128 / (time.perf_counter() - start))
    assert max(rates) >= 20000, rates  # the best of five: others may be using the core
