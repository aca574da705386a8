"""Synthetic images: reproducible, balanced, and to be learned by a network but not by a linear model."""

import keras
import numpy as np
import pytest
from fixtures.tiny_training import config_of

from official_resnet import resnet_run_loop, resnet_variants
from official_resnet.inputs import datasets, synthetic
from official_resnet.training.config import Schedule


@pytest.fixture(scope='module')
def train():
    return datasets.open_split('synthetic', 'train')


@pytest.fixture(scope='module')
def test():
    return datasets.open_split('synthetic', 'test')


def test_images_are_a_pure_function_of_the_seed():
    images, labels = synthetic.draw(123, seed=5)
    assert images.dtype == np.uint8 and images.shape == (123, 32, 32, 3)
    assert labels.dtype == np.int32 and labels.shape == (123,)
    again, labels_again = synthetic.draw(123, seed=5)
    assert images.tobytes() == again.tobytes() and labels.tolist() == labels_again.tolist()
    assert labels.tolist() != synthetic.draw(123, seed=6)[1].tolist()
    assert synthetic.draw(0, seed=1)[0].shape == (0, 32, 32, 3)


def test_classes_are_balanced_in_random_order_and_no_image_comes_twice(train, test):
    assert np.bincount(train.labels).tolist() == [1000] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert np.bincount(synthetic.draw(13, seed=0)[1]).tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert len(set(train.labels[:50])) == 10
    assert len({image.tobytes() for split in (train, test) for image in split.images}) == 10000 + 2000


def test_neither_colour_nor_brightness_tells_the_class(train):
    colours = train.images.mean(axis=(1, 2))  # [n, 3]
    means = np.stack([colours[train.labels == label].mean(axis=0) for label in range(10)])
    assert np.abs(means - colours.mean(axis=0)).max() < 6  # of 0..255; one image's std is about 30
    assert colours.std(axis=0).min() > 20


def test_a_linear_model_stays_far_below(train, test):
    """Softmax regression on standardised pixels, not augmented."""
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10, kernel_initializer='zeros')])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.003), loss, metrics=['accuracy'])
    model.fit(train.training_batches(500, augment=False, num_epochs=3), shuffle=False, verbose=0)
    _, seen = model.evaluate(train.evaluation_batches(500), verbose=0)
    _, unseen = model.evaluate(test.evaluation_batches(500), verbose=0)
    assert seen > 0.25 and 0.2 < unseen < 0.35, (seen, unseen)  # it did learn what it could


@pytest.mark.slow
def test_a_small_residual_network_learns_them_in_5_epochs(tmp_path):
    """ResNet-8, batch 128: two to three minutes on two cores. Chance is 0.1."""
    config = config_of(
        resnet_variants.cifar_spec(8, bn_momentum=0.9), dataset='synthetic', model_dir=str(tmp_path), train_epochs=5,
        schedule=Schedule(kind='cosine'),
    )  # fmt: skip
    assert resnet_run_loop.train(config).best['accuracy'] > 0.95
