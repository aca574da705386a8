"""mnist_main as a user runs it, on tiny IDX files."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import writers
from fixtures.programs import mistake, succeed

from official_resnet.inputs import datasets, download

TINY = '--train_epochs 2 --batch_size 16'


def test_train_continue_evaluate_export(mnist_dir, tmp_path):
    command = f'mnist_main --data_dir {mnist_dir} --model_dir {tmp_path}/model'
    out = succeed(f'{command} {TINY} --train_epochs 1')
    assert 'documents: ' in out and 'adam' in out
    out = succeed(f'{command} {TINY} --export_dir {tmp_path}/export')
    assert 'continuing from' in out and 'epoch 1, step 7' in out and 'SavedModel' in out
    assert re.search(r'epoch 2/2: loss .*; test loss .*, test accuracy 0\.\d{4}', out)
    stored = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert (stored['recipe'], stored['config']['dataset']) == ('documents', 'mnist')
    accuracy = re.search(r'test accuracy (\S+) after epoch 2', out)[1]
    assert f'test accuracy {accuracy} (30 images)' in succeed(f'{command} --eval_only')

    model = keras.models.load_model(tmp_path / 'model' / 'model.keras')
    assert model.input_shape == (None, 32, 32, 1)
    test = datasets.open_split('mnist', 'test', data_dir=mnist_dir)
    centred = np.pad(test.images, ((0, 0), (2, 2), (2, 2), (0, 0))) / np.float32(255)
    served = tf.saved_model.load(str(next((tmp_path / 'export').iterdir()))).signatures['serving_default']
    got = served(input=tf.constant(test.images, tf.float32))
    np.testing.assert_allclose(got['probabilities'], tf.nn.softmax(model(centred)), atol=1e-4)
    assert np.mean(got['classes'] == test.labels) == pytest.approx(float(accuracy), abs=1e-4)


def test_fast_on_fashion_mnist(mnist_dir, tmp_path):
    shutil.copytree(mnist_dir / 'mnist', tmp_path / 'data' / 'FashionMNIST' / 'raw')
    command = f'mnist_main --dataset fashion_mnist --recipe fast --data_dir {tmp_path}/data --model_dir {tmp_path}/m'
    assert '(step 4)' in succeed(f'{command} --num_train_images 64 {TINY} --batch_size 32')
    stored = json.loads((tmp_path / 'm' / 'config.json').read_text())['config']
    assert (stored['dataset'], stored['num_train_images'], stored['flip']) == ('fashion_mnist', 64, True)


def test_no_download_of_what_is_there_or_forbidden(mnist_dir, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(download, 'fetch', lambda url, *args: asked.append(url))
    mistake(f'mnist_main --data_dir {mnist_dir}/mnist --model_dir {tmp_path} --batch_size 999')
    mistake(f'mnist_main --data_dir {tmp_path}/new --nodownload --model_dir {tmp_path}')
    assert asked == []
    mistake(f'mnist_main --dataset fashion_mnist --data_dir {tmp_path}/new --model_dir {tmp_path}')
    folder, rows = download.FILE_SETS['fashion_mnist']
    assert asked == [folder + name for name in rows]


MISTAKES = {
    'a file is missing': (lambda folder: (folder / 'train-labels-idx1-ubyte').unlink(), "idx1-ubyte' .*pass"),
    'too few labels': (
        lambda folder: writers.write_idx(folder / 'train-labels-idx1-ubyte', np.zeros(9, np.uint8)),
        "' 9 .*both files",
    ),
    'label 10': (
        lambda folder: writers.write_idx(folder / 't10k-labels-idx1-ubyte.gz', np.full(30, 10, np.uint8)),
        "idx1-ubyte.gz' .*10",
    ),
}


@pytest.mark.parametrize('spoil,message', MISTAKES.values(), ids=MISTAKES)
def test_files_that_do_not_fit_are_one_line(mnist_dir, tmp_path, spoil, message):
    folder = shutil.copytree(mnist_dir / 'mnist', tmp_path / 'mnist')
    spoil(folder)
    error = mistake(f'mnist_main --data_dir {folder} --model_dir {tmp_path}/model {TINY}')
    assert re.search(message, error) and not list((tmp_path / 'model').glob('checkpoints/*')), error


def test_the_folder_of_the_other_data_set_is_refused(mnist_dir, tmp_path):
    command = f'mnist_main --dataset fashion_mnist --data_dir {mnist_dir}/mnist --model_dir {tmp_path} {TINY}'
    assert re.search('mnist, .*fashion_mnist', mistake(command))
