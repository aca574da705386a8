"""Grad-CAM on networks whose answer is known, and its colours."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.networks import TINY, normal

from official_resnet import resnet_model
from official_resnet.errors import UserError
from official_resnet.inference import grad_cam, rewrite

IMAGES = normal(2, 8, 8, 3)


def pooled(kernel):
    """A network whose last group is its input, averaged: mean of each channel, then a dense layer without bias."""
    inputs = keras.Input((2, 2, len(kernel)))
    x = keras.layers.AveragePooling2D(1, name='group1_block1_out')(inputs)
    x = keras.layers.GlobalAveragePooling2D(name='head_pool')(x)
    outputs = keras.layers.Dense(len(kernel[0]), use_bias=False, name='logits')(x)
    model = keras.Model(inputs, outputs)
    model.get_layer('logits').kernel.assign(kernel)
    return model


def test_behind_a_mean_it_is_cam():
    """The weights are the class's column of the kernel / (h * w), whatever the image."""
    model = pooled([[1.0, -3.0], [2.0, 5.0]])
    image = np.array([[[1, 0], [0, 1]], [[1, 1], [-4, 1]]], np.float32)  # [2, 2, 2]
    # By hand, times 4: class 0 is maps 1, 2; class 1 is -3, 5.
    expected = np.maximum([[[1, 2], [3, -2]], [[-3, 5], [2, 17]]], 0) / np.array([3, 17])[:, None, None]
    got = grad_cam.grad_cam(model, np.stack([image, image]), [0, 1])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert model(image[None]).numpy().argmax() == 1
    for index in (None, 1):  # None takes the likeliest
        np.testing.assert_allclose(grad_cam.grad_cam(model, image[None], index), expected[1:], rtol=1e-6)


def test_nothing_that_speaks_for_a_class_is_zeros():
    got = grad_cam.grad_cam(pooled([[-1.0, 1.0]]), np.ones((1, 2, 2, 1), np.float32), 0)
    np.testing.assert_array_equal(got, np.zeros((1, 2, 2)))


@pytest.mark.parametrize('version', ['1', '2'])
def test_a_residual_network_is_cam_before_its_head_also_folded_and_frozen(version):
    """In version 1, head_pool follows the last group; in version 2 a BN and a ReLU lie between."""
    keras.utils.set_random_seed(3)
    spec = dataclasses.replace(TINY, version=version, shortcut='B')
    model = resnet_model.resnet(spec, 3, (8, 8, 3))
    maps = keras.Model(model.input, model.get_layer('group2_block1_out').output)(IMAGES).numpy()
    weights = model.get_layer('logits').kernel.numpy()[:, 1]
    if version == '2':  # fresh BN: gradients pass where the ReLU lets them, each channel with its share
        weights = ((maps > 0) * weights).mean((1, 2), keepdims=True)
    cam = np.maximum((maps * weights).sum(-1, keepdims=True), 0)
    expected = tf.image.resize(cam, (8, 8)).numpy()[..., 0]
    expected /= expected.max((1, 2), keepdims=True)
    folded = rewrite.fold_batch_norm(model)
    folded.trainable = False
    for network in (model, folded):
        np.testing.assert_allclose(grad_cam.grad_cam(network, IMAGES, 1), expected, atol=1e-5)


def test_mistakes():
    images = np.zeros((1, 2, 2, 2), np.float32)
    with pytest.raises(UserError, match=r'class 2 .*pass 0\.\.1'):
        grad_cam.grad_cam(pooled([[1.0, 1.0], [1.0, 1.0]]), images, 2)
    inputs = keras.Input((2, 2, 2))
    pool = keras.layers.GlobalAveragePooling2D(name='head_pool')(inputs)
    for model in (keras.Sequential([inputs, keras.layers.Flatten()]), keras.Model(inputs, pool)):
        with pytest.raises(UserError, match='resnet_model'):
            grad_cam.grad_cam(model, images)


def test_overlay():
    image = np.full((1, 3, 3), 100, np.uint8)
    got = grad_cam.overlay(image, np.array([[0, 0.5, 1]]))
    assert got.dtype == np.uint8
    # 0 leaves the image; 1/2 has opacity 0.25 of the middle colour, 1 0.5 of the last.
    np.testing.assert_array_equal(got, [[[100, 100, 100], [130, 82, 105], [178, 172, 110]]])
    np.testing.assert_array_equal(grad_cam.overlay(image[..., :1], np.array([[0, 0.5, 1]])), got)


def test_a_page_has_the_image_the_map_the_overlay_and_a_caption():
    image, cam = np.full((2, 3, 1), 100, np.uint8), np.zeros((2, 3), np.float32)
    cam[:, 2] = 1
    page = np.asarray(grad_cam.page(image, cam, 'horse, 98.2%', least=30))
    assert page.shape == (32 + 20, 3 * 30 + 2 * 4, 3)  # enlarged ten times
    caption, ours, heat, theirs = page[:32], page[32:, :30], page[32:, 34:64], page[32:, 68:]
    assert caption.min() < 100 and (caption[0] == 255).all()
    assert (ours == 100).all() and (page[32:, 30:34] == 255).all() and (page[32:, 64:68] == 255).all()
    assert (heat[:, 0] == grad_cam.COLOURS[0]).all() and (heat[:, -1] == grad_cam.COLOURS[-1]).all()
    assert (theirs[:, 0] == 100).all() and (theirs[:, -1] == [178, 172, 110]).all()


def test_a_long_caption_is_cut_at_the_width_of_a_page():
    page = np.asarray(grad_cam.page(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), 'x' * 999, least=100))
    assert page.shape[1] == 3 * 96 + 2 * 4 and (page[:32, :2] == 255).all()


@pytest.mark.parametrize('fonts', [grad_cam._FONTS, ()])
def test_letters_that_no_font_has_are_replaced(fonts, monkeypatch):
    """Pillow's own font draws a box for all but ASCII, and CJK fonts are seldom installed."""
    monkeypatch.setattr(grad_cam, '_FONTS', fonts)
    caption, font = grad_cam._drawable('Käse 猫\U0010fffe, 9%')
    assert caption == 'Kase ??, 9%' and font == grad_cam._font('')
    assert grad_cam._drawable('cat, 98.2%') == ('cat, 98.2%', grad_cam._font(''))
