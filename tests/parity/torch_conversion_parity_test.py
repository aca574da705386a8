"""Converted nets against PyTorch: torchvision and pytorchcv with random weights, akamaster's trained ResNet-20."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from fixtures.conversion import assert_equal, images_of

from checkpoints_tools import convert, from_torch, read_ckpt, source
from official_resnet.inputs import cifar

pytestmark = pytest.mark.parity
DATA = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
CIFAR_TEST_IMAGES = 10_000


@pytest.fixture(scope='module')
def models():
    """torchvision.models."""
    from benchmarks import torch_peer

    return torch_peer.import_torchvision().models


@pytest.mark.parametrize(
    'name,is_zip', [('resnet18', False), ('resnet50', True), ('resnext50_32x4d', True), ('wide_resnet50_2', True)]
)
def test_same_logits_as_torchvision(name, is_zip, models, tmp_path):
    import torch

    torch.manual_seed(0)
    peer = with_statistics(getattr(models, name)(num_classes=20).eval())
    path = tmp_path / 'net.pth'
    torch.save({'state_dict': peer.state_dict()}, path, _use_new_zipfile_serialization=is_zip)
    card = convert.convert(path, tmp_path / 'net.keras')
    assert card['variant'] == name
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), peer)
    convert.to_torch(tmp_path / 'net.keras', tmp_path / 'net.safetensors')
    back = from_torch.read(tmp_path / 'net.safetensors')
    state = peer.state_dict()
    assert back.keys() == {key for key in state if not key.endswith('num_batches_tracked')}
    assert all(np.array_equal(back[key], state[key].numpy()) for key in back)
    peer.load_state_dict({key: torch.tensor(value) for key, value in back.items()}, strict=True)


def with_statistics(peer):
    """Give a network BN statistics that are no identity; return it."""
    for name, buffer in peer.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    return peer


def assert_same_logits(model, peer):
    import torch

    for size in (64, 75):
        with torch.inference_mode():
            expected = peer(torch.tensor(images_of(size).transpose(0, 3, 1, 2))).numpy()
        assert_equal(model(images_of(size)).numpy(), expected)


# pytorchcv's names -> torchvision's
RENAMES = (
    (r'features\.init_block\.conv\.conv\.', 'conv1.'),
    (r'features\.init_block\.conv\.bn\.', 'bn1.'),
    (r'features\.stage(\d)\.unit(\d+)\.', lambda found: f'layer{found[1]}.{int(found[2]) - 1}.'),
    (r'body\.conv(\d)\.conv\.', r'conv\1.'),
    (r'body\.conv(\d)\.bn\.', r'bn\1.'),
    (r'identity_conv\.conv\.', 'downsample.0.'),
    (r'identity_conv\.bn\.', 'downsample.1.'),
    (r'output\.', 'fc.'),
)


@pytest.mark.parametrize(
    'function,variant',
    [('resnet34', 'resnet34'), ('resnet50', 'resnet50_v1'), ('resnet50b', 'resnet50'), ('resnext50_32x4d', None)],
)
def test_same_logits_as_pytorchcv(function, variant, tmp_path):
    """Networks with torchvision's names that are not torchvision's own; version 1 has to be told."""
    import torch

    torch.manual_seed(0)
    module = importlib.import_module(f'pytorchcv.models.{"resnext" if "resnext" in function else "resnet"}')
    peer = with_statistics(getattr(module, function)().eval())
    peer.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    state = {}
    for name, tensor in peer.state_dict().items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    torch.save(state, tmp_path / 'net.pth')
    card = convert.convert(tmp_path / 'net.pth', tmp_path / 'net.keras', variant=variant)
    assert card['variant'] == (variant or function)
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), peer)


@pytest.fixture(scope='module')
def cifar_test_images(tmp_path_factory):
    """Return (images uint8 [10000, 32, 32, 3], labels), made from the JPEG files in a minute."""
    script = DATA / 'make_cifar10_binary.py'
    assert script.is_file(), 'this test needs the data folder beside the repository'
    folder = tmp_path_factory.mktemp('cifar')
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    subprocess.run(
        ['tar', '-xzf', folder / 'cifar-10-binary.tar.gz', '-C', folder, 'cifar-10-batches-bin/test_batch.bin'],
        check=True,
    )
    os.remove(folder / 'cifar-10-binary.tar.gz')
    images, labels = cifar.read_cifar([folder / 'cifar-10-batches-bin' / 'test_batch.bin'])
    assert len(images) == CIFAR_TEST_IMAGES
    return images, labels


def test_akamaster_gives_the_published_predictions(cifar_test_images, tmp_path, capsys):
    """One command converts; PyTorch's own logits, predictions and accuracy are stored beside the checkpoint."""
    images, labels = cifar_test_images
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
