"""Converted nets against PyTorch: torchvision with random weights, and akamaster's trained ResNet-20."""
import contextlib
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from checkpoints_tools import convert, from_torch, read_ckpt, source
from official_resnet import records

pytestmark = pytest.mark.parity
DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
CIFAR_TEST_IMAGES = 10_000


@pytest.fixture(scope='module')
def models():
    """torchvision.models; its compiled operators, of which classification needs none, may be of another torch."""
    name = 'torchvision._meta_registrations'
    with contextlib.suppress(ImportError, RuntimeError):
        import torchvision
        return torchvision.models
    for module in [module for module in sys.modules if module.startswith('torchvision')]:
        del sys.modules[module]
    sys.modules[name] = types.ModuleType(name)
    import torchvision
    return torchvision.models


@pytest.mark.parametrize('name,is_zip', [('resnet18', False), ('resnet50', True), ('resnext50_32x4d', True),
                                         ('wide_resnet50_2', True)])
def test_same_logits_as_torchvision(name, is_zip, models, tmp_path):
    import torch
    torch.manual_seed(0)
    peer = getattr(models, name)(num_classes=20).eval()
    for buffer_name, buffer in peer.named_buffers():
        if buffer_name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
        elif buffer_name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    path = tmp_path / 'net.pth'
    torch.save({'state_dict': peer.state_dict()}, path, _use_new_zipfile_serialization=is_zip)
    card = convert.convert(path, tmp_path / 'net.keras')
    assert card['variant'] == name
    model = keras.models.load_model(tmp_path / 'net.keras')
    for size in (64, 75):
        images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype('float32')
        with torch.inference_mode():
            expected = peer(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    convert.to_torch(tmp_path / 'net.keras', tmp_path / 'net.safetensors')
    back = from_torch.read(tmp_path / 'net.safetensors')
    state = peer.state_dict()
    assert back.keys() == {key for key in state if not key.endswith('num_batches_tracked')}
    assert all(np.array_equal(back[key], state[key].numpy()) for key in back)
    peer.load_state_dict({key: torch.tensor(value) for key, value in back.items()}, strict=True)


@pytest.fixture(scope='module')
def cifar_test_pictures(tmp_path_factory):
    """(pictures uint8 [10000, 32, 32, 3], labels) made from the JPEG files, a minute."""
    script = DATA / 'make_cifar10_binary.py'
    if not script.is_file():
        pytest.fail(f'{script} is missing: this test needs the data folder beside the repository')
    folder = tmp_path_factory.mktemp('cifar')
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    subprocess.run(['tar', '-xzf', folder / 'cifar-10-binary.tar.gz', '-C', folder,
                    'cifar-10-batches-bin/test_batch.bin'], check=True)
    os.remove(folder / 'cifar-10-binary.tar.gz')
    images, labels = records.read_cifar([folder / 'cifar-10-batches-bin' / 'test_batch.bin'])
    assert len(images) == CIFAR_TEST_IMAGES
    return images, labels


def test_akamaster_gives_the_published_predictions(cifar_test_pictures, tmp_path, capsys):
    """By one command; PyTorch's own logits, predictions and accuracy are stored beside the checkpoint."""
    images, labels = cifar_test_pictures
    output = tmp_path / 'resnet20.keras'
    path = DATA / 'akamaster-resnet20.th'
    assert read_ckpt.main(['read_ckpt.py', '--input', str(path), '--output', str(output)]) == 0
    assert 'torch resnet20, 10 classes (cifar10)' in capsys.readouterr().out
    model = keras.models.load_model(output)
    logits = model.predict(source.normalized(images, from_torch.CIFAR_INPUT), batch_size=500, verbose=0)
    with np.load(DATA / 'akamaster-resnet20-expected.npz') as expected:
        np.testing.assert_allclose(logits[:256], expected['logits'], rtol=0, atol=1e-3)
        np.testing.assert_array_equal(logits.argmax(1), expected['predictions'])
        assert (logits.argmax(1) == labels).mean() == pytest.approx(float(expected['accuracy'])) == 0.8103
