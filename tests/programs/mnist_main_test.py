"""mnist_main as a user runs it, on tiny IDX files."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from official_resnet import mnist_main
from official_resnet.command_line import train_program
from official_resnet.inputs import datasets, download, writers
from official_resnet.training import devices

TINY = ['--train_epochs', '2', '--batch_size', '16']


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program in this process, which has TensorFlow already."""
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)

    def run_here(*args):
        code = train_program.main(['mnist_main.py', *map(str, args)], mnist_main.__doc__, mnist_main.PROGRAM)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


def test_train_continue_evaluate_export(call, mnist_dir, tmp_path):
    args = ['--data_dir', mnist_dir, '--model_dir', tmp_path / 'model', *TINY]
    code, out, err = call(*args, '--train_epochs', '1')
    assert (code, err) == (0, '') and 'recipe documents:' in out and 'optimizer=adam' in out
    code, out, err = call(*args, '--export_dir', tmp_path / 'export')
    assert code == 0 and 'continuing from' in out and 'epoch 1, step 7' in out, err
    assert re.search(r'epoch 2/2: loss .*; test loss .*, test accuracy 0\.\d{4}', out)
    assert 'SavedModel, reloaded and compared' in out
    stored = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert (stored['recipe'], stored['config']['dataset']) == ('documents', 'mnist')
    accuracy = re.search(r'test accuracy (\S+) after epoch 2', out)[1]

    code, out, err = call('--eval_only', '--data_dir', mnist_dir, '--model_dir', tmp_path / 'model')
    assert code == 0 and f'test accuracy {accuracy} (30 images)' in out, err

    model = keras.models.load_model(tmp_path / 'model' / 'model.keras')
    assert model.input_shape == (None, 32, 32, 1)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 195_450
    test = datasets.open_split('mnist', 'test', data_dir=mnist_dir)
    centred = np.pad(test.images, ((0, 0), (2, 2), (2, 2), (0, 0))) / np.float32(255)
    served = tf.saved_model.load(str(next((tmp_path / 'export').iterdir()))).signatures['serving_default']
    got = served(input=tf.constant(test.images, tf.float32))
    np.testing.assert_allclose(got['probabilities'], tf.nn.softmax(model(centred)), atol=1e-4)
    assert np.mean(got['classes'] == test.labels) == pytest.approx(float(accuracy), abs=1e-4)


def test_fast_on_fashion_mnist(call, mnist_dir, tmp_path):
    shutil.copytree(mnist_dir / 'mnist', tmp_path / 'data' / 'FashionMNIST' / 'raw')
    code, out, err = call(
        '--dataset',
        'fashion_mnist',
        '--recipe',
        'fast',
        '--data_dir',
        tmp_path / 'data',
        '--model_dir',
        tmp_path / 'model',
        '--num_train_images',
        '64',
        *TINY,
        '--batch_size',
        '32',
    )
    assert code == 0 and '(step 4)' in out, err
    stored = json.loads((tmp_path / 'model' / 'config.json').read_text())['config']
    assert (stored['dataset'], stored['num_train_images'], stored['flip']) == ('fashion_mnist', 64, True)


def test_no_download_of_what_is_there_or_forbidden(call, mnist_dir, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(download, 'fetch', lambda url, *args: asked.append(url))
    call('--data_dir', mnist_dir / 'mnist', '--model_dir', tmp_path, '--batch_size', '999')
    code, _, err = call('--data_dir', tmp_path / 'new', '--nodownload', '--model_dir', tmp_path)
    assert asked == [] and code == 1 and "new' does not exist; run mnist_main.py --data_dir" in err
    call('--dataset', 'fashion_mnist', '--data_dir', tmp_path / 'new', '--model_dir', tmp_path)
    folder, rows = download.FILE_SETS['fashion_mnist']
    assert asked == [folder + name for name in rows]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


MISTAKES = {
    'a file is missing': (lambda folder: (folder / 'train-labels-idx1-ubyte').unlink(), [], 'does not exist; pass'),
    'cut off': (lambda folder: _truncate(folder / 'train-images-idx3-ubyte'), [], 'is cut off after 94079 of the'),
    'damaged gzip': (lambda folder: _truncate(folder / 't10k-images-idx3-ubyte.gz'), [], 'is a damaged gzip file'),
    'too few labels': (
        lambda folder: writers.write_idx(folder / 'train-labels-idx1-ubyte', np.zeros(9, np.uint8)),
        [],
        "' 9 labels; take both files",
    ),
    'label 10': (
        lambda folder: writers.write_idx(folder / 't10k-labels-idx1-ubyte.gz', np.full(30, 10, np.uint8)),
        [],
        'has label 10 at 0',
    ),
    'too many': (None, ['--num_train_images', '121'], '--num_train_images=121 of the 120 training images of mnist'),
    'too few': (None, ['--num_train_images', '15'], '--batch_size=16 with 15 training images'),
    'decay': (None, ['--weight_decay', '1e-4'], 'pass --weight_decay=0, or --optimizer=momentum'),
    'the other': (None, ['--dataset', 'fashion_mnist'], 'is the folder of mnist, not of fashion_mnist; pass another'),
    'no such data set': (None, ['--dataset', 'kmnist'], 'mnist|fashion_mnist'),
    'no such recipe': (None, ['--recipe', 'official'], 'documents|fast|demo'),
    'no size': (None, ['--resnet_size', '20'], 'there is no flag --resnet_size'),
}


@pytest.mark.parametrize('spoil, args, message', MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_1(call, mnist_dir, tmp_path, spoil, args, message):
    folder = mnist_dir / 'mnist'
    if spoil:
        folder = shutil.copytree(folder, tmp_path / 'mnist')
        spoil(folder)
    code, _, err = call('--data_dir', folder, '--model_dir', tmp_path / 'model', *TINY, *args)
    assert code == 1 and err.count('\n') == 1 and message in err and err.startswith('mnist_main: '), err
    assert not list((tmp_path / 'model').glob('checkpoints/*'))
