"""mnist_main as a user runs it, on tiny IDX files; wrong ones are in tests/inputs/idx_test.py."""

import json
import re
import shutil

import keras
import pytest
from fixtures.programs import succeed


def test_train_and_evaluate(mnist_dir, tmp_path):
    command = f'mnist_main --data_dir {mnist_dir} --model_dir {tmp_path}'
    out = succeed(f'{command} --train_epochs 1 --batch_size 16')
    assert 'documents: ' in out and 'adam' in out
    accuracy = re.search(r'test accuracy (0\.\d{4}) after epoch 1 \(step 7\)', out)[1]
    assert f'test accuracy {accuracy} (30 images)' in succeed(f'{command} --eval_only')
    stored = json.loads((tmp_path / 'config.json').read_text())
    assert (stored['recipe'], stored['config']['dataset']) == ('documents', 'mnist')
    assert keras.models.load_model(tmp_path / 'model.keras').input_shape == (None, 32, 32, 1)


@pytest.mark.whole_runs
def test_fast_on_fashion_mnist(mnist_dir, tmp_path):
    shutil.copytree(mnist_dir / 'mnist', tmp_path / 'data' / 'FashionMNIST' / 'raw')
    command = f'mnist_main --dataset fashion_mnist --recipe fast --data_dir {tmp_path}/data --model_dir {tmp_path}/m'
    assert '(step 4)' in succeed(f'{command} --num_train_images 64 --train_epochs 2 --batch_size 32')
    stored = json.loads((tmp_path / 'm' / 'config.json').read_text())['config']
    assert (stored['dataset'], stored['num_train_images'], stored['flip']) == ('fashion_mnist', 64, True)
