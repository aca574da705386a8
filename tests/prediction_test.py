"""The export computes what the model computes, from plain pictures, in any batch size."""
import numpy as np
import pytest
import tensorflow as tf

from official_resnet import layers, prediction, resnet_model
from official_resnet.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def test_export(tmp_path):
    model = resnet_model.cifar_resnet(8, num_classes=7)
    path = prediction.export(model, 'per_image_standardization', (32, 32, 3), tmp_path / 'new' / 'folder', IMAGES)
    other = prediction.export(model, 'per_image_standardization', (32, 32, 3), tmp_path / 'new' / 'folder', IMAGES)
    assert path != other and path.name.isdigit()
    loaded = tf.saved_model.load(str(path))
    assert set(loaded.signatures) == {'serving_default', 'predict'}
    expected = tf.nn.softmax(model(tf.image.per_image_standardization(tf.cast(IMAGES, tf.float32))))
    for count in (1, 5):
        got = loaded.signatures['predict'](input=tf.constant(IMAGES[:count], tf.float32))
        assert got['classes'].dtype == tf.int64 and got['probabilities'].shape == (count, 7)
        np.testing.assert_allclose(got['probabilities'], expected[:count], atol=1e-5)


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    model = resnet_model.cifar_resnet(8)

    class Broken:
        signatures = {'serving_default': lambda input: {'probabilities': tf.fill([len(input), 10], 0.5)}}

    monkeypatch.setattr(tf.saved_model, 'load', lambda path: Broken)
    with pytest.raises(UserError, match='differs from the model by .* do not use it'):
        prediction.export(model, 'none', (32, 32, 3), tmp_path, IMAGES)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='pass another --export_dir'):
        prediction.export(resnet_model.cifar_resnet(8), 'none', (32, 32, 3), tmp_path / 'file', IMAGES)


@pytest.mark.parametrize('shape', [(28, 28, 1), (6, 5, 1)])
def test_small_pictures_are_centred_in_what_the_net_takes(tmp_path, shape):
    net_shape = (32, 32, 1) if shape[0] == 28 else shape
    model = resnet_model.resnet(resnet_model.ResNetSpec((1, 1), filters=4), 10, net_shape)
    images = IMAGES[:, :shape[0], :shape[1], :1]
    path = prediction.export(model, 'unit_range', shape, tmp_path, images)
    got = tf.saved_model.load(str(path)).signatures['serving_default'](input=tf.constant(images, tf.float32))
    rows, columns = ((net_shape[axis] - shape[axis]) // 2 for axis in (0, 1))
    centred = np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0))) / np.float32(255)
    np.testing.assert_allclose(got['probabilities'], tf.nn.softmax(model(centred)), atol=1e-5)


def test_compiled_model_is_equal_and_keeps_its_weights():
    model = resnet_model.cifar_resnet(8)
    call = prediction.compile_model(layers.fold_batch_norm(model))
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype('float32')
    expected = model(images).numpy()
    np.testing.assert_allclose(call(images), expected, atol=1e-5)
    model.get_layer('logits').bias.assign_add(np.ones(10))
    np.testing.assert_allclose(call(images[:2]), expected[:2], atol=1e-5)
