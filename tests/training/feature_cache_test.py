"""Features computed once: equal to those of the net, kept on the disk, and training on them is the same training."""

import dataclasses
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from fixtures.flips import damaged_copies
from fixtures.tiny_training import StopAt, assert_equal_runs, make_config, synthetic_split

from official_resnet import checkpoints, resnet_run_loop
from official_resnet.errors import Interrupted
from official_resnet.inference import grad_cam
from official_resnet.inputs.normalization import per_image_standardization
from official_resnet.training import feature_cache

HEAD_ONLY = {'transfer': 'head', 'augment': False}


@pytest.mark.parametrize(
    'fields', [{}, {'dtype': 'bf16', 'head': 'append', 'pretrained_classes': 10, 'train_epochs': 1}]
)
def test_training_on_features_equals_training_on_images(cifar_dir, source, monkeypatch, fields):
    config = make_config(cifar_dir, None, pretrained=str(source), **HEAD_ONLY | fields)
    cached = resnet_run_loop.train(config)
    monkeypatch.setattr(resnet_run_loop.TrainConfig, 'trains_on_features', False)
    plain = resnet_run_loop.train(config)
    for one, other in zip(cached.model.variables, plain.model.variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-4, err_msg=one.path)
    np.testing.assert_allclose(cached.history.history['loss'], plain.history.history['loss'], rtol=1e-4)
    assert cached.history.history['val_accuracy'] == plain.history.history['val_accuracy']


@pytest.mark.whole_runs
def test_head_training_killed_and_resumed_is_bit_identical(cifar_dir, source, tmp_path, caplog):
    fields = HEAD_ONLY | {'pretrained': str(source)}
    config = make_config(cifar_dir, tmp_path / 'killed', save_checkpoint_minutes=0, **fields)
    with pytest.raises(RuntimeError, match='killed'):
        resnet_run_loop.train(config, [StopAt(8)])
    for name in ('whole', 'killed'):
        caplog.clear()
        resnet_run_loop.train(make_config(cifar_dir, tmp_path / name, **fields), ())
        out = caplog.text
        for count in (120, 30):
            assert (f'features of {count}' in out and 'computing' not in out) == (name == 'killed')
            assert (f'computing the features of {count}' in out) == (name == 'whole')
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')
    results = resnet_run_loop.evaluate(make_config(cifar_dir, tmp_path / 'whole', **fields))  # on the images
    evaluation = checkpoints.restore_latest(tmp_path / 'whole' / 'checkpoints')[1]['evaluation']
    assert results['accuracy'] == evaluation['accuracy']
    assert results['loss'] == pytest.approx(evaluation['loss'], rel=1e-4)


def test_features_are_computed_anew_where_they_are_of_something_else(source, tmp_path, caplog):
    model = keras.models.load_model(source / 'model.keras')

    path = tmp_path / 'features.npz'

    def lines(examples):
        caplog.clear()
        feature_cache.features(model, examples, path)
        return caplog.messages[0].partition(' ')[0]

    examples = synthetic_split(5)
    assert lines(examples) == 'computing' and lines(examples) == 'features'
    assert lines(dataclasses.replace(examples, images=examples.images + 1)) == 'computing'
    assert lines(dataclasses.replace(examples, normalization='unit_range')) == 'computing'
    model.get_layer('logits').bias.assign(np.ones(10))  # the last layer does not matter
    assert lines(dataclasses.replace(examples, normalization='unit_range')) == 'features'
    assert lines(examples) == 'computing' and lines(examples) == 'features'
    model.get_layer('stem_bn').moving_mean.assign(np.ones(4))
    assert lines(examples) == 'computing'
    path.write_bytes(path.read_bytes()[:-100])
    assert lines(examples) == 'computing' and lines(examples) == 'features'
    path.unlink()
    path.mkdir()  # cannot be written
    assert lines(examples) == 'computing'


def test_no_damaged_features_are_believed(source, tmp_path, monkeypatch):
    model, examples, path = keras.models.load_model(source / 'model.keras'), synthetic_split(3), tmp_path / 'a.npz'
    expected = feature_cache.features(model, examples, path).images
    computed = expected[:, 0, 0], examples.labels
    monkeypatch.setattr(feature_cache, 'compute', lambda *given: computed)
    for data in damaged_copies(path.read_bytes(), 200):
        path.write_bytes(data)
        np.testing.assert_array_equal(feature_cache.features(model, examples, path).images, expected)


def test_features_are_what_the_last_layer_is_fed(source):
    model = keras.models.load_model(source / 'model.keras')
    examples = synthetic_split(feature_cache.BATCH_SIZE + 3)
    made = feature_cache.features(model, examples)
    assert made.images.shape == (len(examples.labels), 1, 1, 16) and made.images.dtype == np.float32
    images = per_image_standardization(examples.images)
    expected = grad_cam.features(model)(images, training=False)
    np.testing.assert_allclose(made.images[:, 0, 0], expected['pre_logits'], atol=1e-4)
    np.testing.assert_allclose(feature_cache.head_of(model)(made.images), expected['logits'], atol=1e-4)


def test_a_signal_while_features_are_computed_saves(cifar_dir, source, tmp_path):
    config = make_config(cifar_dir, tmp_path, pretrained=str(source), **HEAD_ONLY)
    with pytest.raises(Interrupted, match='SIGTERM at step 0: '):
        resnet_run_loop.Trainer(config).run([], [signal.SIGTERM])
    assert resnet_run_loop.train(config).step == 14


def test_each_of_several_workers_leaves_by_itself(cifar_dir, source, tmp_path):
    """They compute different batches, so they cannot agree in between."""
    config = make_config(cifar_dir, tmp_path, pretrained=str(source), **HEAD_ONLY)
    trainer = resnet_run_loop.Trainer(config)
    trainer.process = SimpleNamespace(count=2, is_chief=False)
    with pytest.raises(KeyboardInterrupt) as raised:
        feature_cache.replace_images(trainer, [signal.SIGTERM])
    assert (raised.value.signal_number, str(raised.value)) == (signal.SIGTERM, '')
