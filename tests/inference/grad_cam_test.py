"""Grad-CAM on nets whose answer is known, and its colours."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from official_resnet import resnet_model, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inference import grad_cam, rewrite


def pooled(kernel, size=2):
    """A net whose last group is its input: mean of each channel, then a dense layer without bias."""
    inputs = keras.Input((size, size, len(kernel)))
    x = keras.layers.Activation('linear', name='group1_block1_out')(inputs)
    x = keras.layers.GlobalAveragePooling2D(name='head_pool')(x)
    outputs = keras.layers.Dense(len(kernel[0]), use_bias=False, name='logits')(x)
    model = keras.Model(inputs, outputs)
    model.get_layer('logits').kernel.assign(kernel)
    return model


def test_behind_a_mean_it_is_cam():
    """The weights are the class's column of the kernel / (h * w), whatever the picture."""
    model = pooled([[1.0, -3.0], [2.0, 5.0]])
    image = np.array([[[1, 0], [0, 1]], [[1, 1], [-4, 1]]], np.float32)  # [2, 2, 2]
    # By hand, times 4: class 0 is maps 1, 2; class 1 is -3, 5.
    zero = np.array([[1, 2], [3, -2]])
    one = np.array([[-3, 5], [2, 17]])
    for index, expected in ((0, zero), (1, one)):
        got = grad_cam.grad_cam(model, image[None], index)
        assert got.shape == (1, 2, 2) and got.dtype == np.float32
        np.testing.assert_allclose(got[0], np.maximum(expected, 0) / expected.max(), rtol=1e-6)
    assert model(image[None]).numpy().argmax() == 1
    np.testing.assert_array_equal(grad_cam.grad_cam(model, image[None]), grad_cam.grad_cam(model, image[None], 1))
    both = grad_cam.grad_cam(model, np.stack([image, image]), [0, 1])
    np.testing.assert_allclose(both, np.maximum([zero, one], 0) / np.array([3, 17])[:, None, None], rtol=1e-6)


def test_nothing_that_speaks_for_a_class_is_zeros():
    got = grad_cam.grad_cam(pooled([[-1.0, 1.0]]), np.ones((1, 2, 2, 1), np.float32), 0)
    np.testing.assert_array_equal(got, np.zeros((1, 2, 2)))


def test_it_is_enlarged_bilinearly():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.AveragePooling2D(2, name='group1_block1_out')(inputs)
    x = keras.layers.GlobalAveragePooling2D(name='head_pool')(x)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer='ones', name='logits')(x))
    image = np.zeros((1, 4, 4, 1), np.float32)
    image[:, :2, 2:] = 4
    column = np.array([1, 3 / 4, 1 / 4, 0])  # pixels 2 apart, centres at 1/2 and 5/2 of 4
    np.testing.assert_allclose(grad_cam.grad_cam(model, image)[0], np.outer(column, column[::-1]), atol=1e-6)


@pytest.mark.parametrize('version', ['1', '2'])
def test_a_residual_net_is_cam_before_its_head(version):
    """In version 1, head_pool follows the last group; in version 2 a BN and a ReLU lie between."""
    keras.utils.set_random_seed(3)
    model = resnet_model.resnet(resnet_spec.ResNetSpec((1, 1), filters=4, version=version), 3, (8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype('float32')
    maps = keras.Model(model.input, model.get_layer('group2_block1_out').output)(images).numpy()
    kernel = model.get_layer('logits').kernel.numpy()[:, 1]
    if version == '1':
        cam = np.maximum((maps * kernel).sum(-1), 0)
    else:  # fresh BN: gradients pass where the ReLU lets them, each channel with its share
        weights = ((maps > 0) * kernel).mean((1, 2), keepdims=True)
        cam = np.maximum((maps * weights).sum(-1), 0)
    expected = tf.image.resize(cam[..., None], (8, 8)).numpy()[..., 0]
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(grad_cam.grad_cam(model, images, 1), expected, atol=1e-5)


def test_folded_and_frozen_nets_give_the_same():
    model = resnet_model.resnet(resnet_spec.ResNetSpec((1, 1), filters=4, shortcut='B'), 3, (8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype('float32')
    expected = grad_cam.grad_cam(model, images, 2)
    folded = rewrite.fold_batch_norm(model)
    folded.trainable = False
    np.testing.assert_allclose(grad_cam.grad_cam(folded, images, 2), expected, atol=1e-5)


def test_mistakes():
    images = np.zeros((1, 2, 2, 2), np.float32)
    with pytest.raises(UserError, match=r'class 2 is none of the 2 of the net; pass 0\.\.1'):
        grad_cam.grad_cam(pooled([[1.0, 1.0], [1.0, 1.0]]), images, 2)
    inputs = keras.Input((2, 2, 2))
    pool = keras.layers.GlobalAveragePooling2D(name='head_pool')(inputs)
    for model in (keras.Sequential([inputs, keras.layers.Flatten()]), keras.Model(inputs, pool)):
        with pytest.raises(UserError, match='needs the layers of resnet_model'):
            grad_cam.grad_cam(model, images)


def test_overlay():
    image = np.full((1, 3, 3), 100, np.uint8)
    got = grad_cam.overlay(image, np.array([[0, 0.5, 1]]))
    assert got.dtype == np.uint8
    # 0 leaves the picture; 1/2 has opacity 0.325 of the middle colour, 1 0.65 of the last.
    np.testing.assert_array_equal(got, [[[100, 100, 100], [139, 77, 106], [201, 194, 113]]])
    np.testing.assert_array_equal(grad_cam.overlay(image[..., :1], np.array([[0, 0.5, 1]])), got)
