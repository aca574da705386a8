"""wenxinxu's checkpoints: names, the function computed, and the statistics that they lack."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.conversion import assert_equal, assert_runs_alike, our_model, refuse, shapes_of
from fixtures.foreign_files import wenxinxu_variables, write_tf

from checkpoints_tools import convert, from_wenxinxu, operations, read_ckpt
from checkpoints_tools.selection import Choice
from official_resnet import resnet_model, resnet_variants
from official_resnet.inputs import datasets

BARE = wenxinxu_variables(has_statistics=False)


@pytest.mark.parametrize('size', [32, 110])
def test_published_nets_are_recognised(size):
    shapes = shapes_of(wenxinxu_variables((size - 2) // 6, 16))
    source, _ = convert.fit(from_wenxinxu, shapes, 'x', f'model_{size}')
    axes = {'shortcut_padding': 'both', 'identity_pool': 'average', 'stem_bn': True, 'padding': 'same'}
    assert source.spec == resnet_variants.cifar_spec(size, version='2', bn_epsilon=1e-3, **axes)
    assert (source.labels, source.input.normalization) == ('cifar10', 'per_image_standardization')


def test_our_net_computes_what_the_program_does():
    variables = wenxinxu_variables()
    model, source = our_model(from_wenxinxu, variables)
    assert_runs_alike(from_wenxinxu, source, variables, model, (32, 64))


def test_the_shortcut_is_an_average_with_zeros_on_both_sides():
    """Without weights in F, a block of stride 2 is its shortcut, of which each value can be computed by hand."""
    spec = resnet_variants.cifar_spec(8, version='2', identity_pool='average', shortcut_padding='both')
    x = keras.Input((4, 4, 2))
    model = keras.Model(x, resnet_model.residual_block(x, spec, 4, 2, 'block'))
    model.get_layer('block_conv2').kernel.assign(tf.zeros((3, 3, 4, 4)))
    image = np.arange(32, dtype='float32').reshape(1, 4, 4, 2) - 16  # a ReLU before the shortcut would change it
    expected = [[[0, a, a + 1, 0] for a in row] for row in ([-11, -7], [5, 9])]
    np.testing.assert_array_equal(model(image)[0], expected)


def images(cifar_dir, count):
    split = datasets.open_split('cifar10', 'train', data_dir=cifar_dir)
    return next(iter(split.evaluation_batches(count)))[0]


def with_batch_statistics(batch, monkeypatch):
    """The logits by the program's own definition, in which every batch is normalised by itself."""
    variables, original = wenxinxu_variables() | BARE, operations.batch_norm

    def batch_norm(x, gamma, beta, mean, variance, epsilon):
        return original(x, gamma, beta, *tf.nn.moments(x, [0, 1, 2]), epsilon=epsilon)

    with monkeypatch.context() as patch:
        patch.setattr(operations, 'batch_norm', batch_norm)
        return from_wenxinxu.run(variables, batch, from_wenxinxu.describe(shapes_of(variables)))


def test_statistics_are_estimated_from_training_images(cifar_dir, tmp_path, monkeypatch, capsys):
    """On the images of a single batch, the converted net computes what the program does on that batch."""
    monkeypatch.setattr(from_wenxinxu, 'BATCH', 50)
    monkeypatch.setattr(from_wenxinxu, 'NUM_IMAGES', 50)
    extra = {'Variable': np.int32(79999), 'truediv/ExponentialMovingAverage': np.float32(0.1)}
    path = write_tf(tmp_path / 'model.ckpt-79999', BARE | extra)
    refuse('no moving statistics.*pass --data_dir', convert.convert, path, tmp_path / 'net.keras')
    assert not (tmp_path / 'net.keras').exists()
    flags = ['--input', str(path), '--output', str(tmp_path / 'net.keras'), '--data_dir', str(cifar_dir)]
    assert read_ckpt.main(['read_ckpt.py', *flags]) == 0
    words = 'statistics of batch norms estimated from 50 training images of cifar10'
    assert words in capsys.readouterr().out
    assert json.loads((tmp_path / 'net.card.json').read_text())['statistics'] == words
    batch = images(cifar_dir, 50)
    assert_equal(
        keras.models.load_model(tmp_path / 'net.keras')(batch).numpy(), with_batch_statistics(batch, monkeypatch)
    )


def test_statistics_are_those_of_all_batches(cifar_dir, monkeypatch):
    monkeypatch.setattr(from_wenxinxu, 'BATCH', 20)
    monkeypatch.setattr(from_wenxinxu, 'NUM_IMAGES', 60)
    source = from_wenxinxu.describe(shapes_of(wenxinxu_variables()))
    found, _ = from_wenxinxu.estimate(BARE, source, cifar_dir)
    assert found.keys() == from_wenxinxu.unstored(shapes_of(BARE)).keys()
    stem = tf.nn.conv2d(images(cifar_dir, 60), BARE['conv0/conv'], 1, 'SAME')
    mean, variance = tf.nn.moments(stem, [0, 1, 2])
    np.testing.assert_allclose(found['conv0/moving_mean'], mean, atol=1e-5)
    np.testing.assert_allclose(found['conv0/moving_variance'], variance, rtol=1e-4)


def test_data_dir_is_refused_where_it_has_no_effect(cifar_dir, tmp_path):
    path = write_tf(tmp_path / 'x.ckpt', wenxinxu_variables(1))
    choice = Choice(data_dir=str(cifar_dir))
    refuse('leave --data_dir out', convert.convert, path, tmp_path / 'x.keras', choice=choice)
