"""Converted networks against PyTorch: torchvision's with random weights, akamaster's trained ResNet-20."""

import pathlib
import subprocess
import sys
import tarfile

import keras
import numpy as np
import pytest
from fixtures.torch_peers import assert_same_logits

from checkpoints_tools import convert, from_torch, read_ckpt, source
from official_resnet.inputs import cifar

pytestmark = pytest.mark.parity
DATA = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


@pytest.mark.parametrize(
    'name,is_zip', [('resnet18', False), ('resnet50', True), ('resnext50_32x4d', True), ('wide_resnet50_2', True)]
)
def test_same_logits_as_torchvision(name, is_zip, tmp_path):
    import torch

    from benchmarks import torch_peer

    torch.manual_seed(0)
    models = torch_peer.import_torchvision().models
    peer = with_statistics(getattr(models, name)(num_classes=20).eval())
    path = tmp_path / 'net.pth'
    torch.save({'state_dict': peer.state_dict()}, path, _use_new_zipfile_serialization=is_zip)
    card = convert.convert(path, tmp_path / 'net.keras')
    assert card['variant'] == name
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), peer, (64, 75))
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


def test_akamaster_gives_the_published_predictions(tmp_path, capsys):
    """One command converts; PyTorch's own logits, predictions and accuracy are stored beside the checkpoint."""
    script = DATA / 'make_cifar10_binary.py'
    assert script.is_file(), 'this test needs the data folder beside the repository'
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)  # takes a minute
    with tarfile.open(tmp_path / 'cifar-10-binary.tar.gz') as archive:
        archive.extract('cifar-10-batches-bin/test_batch.bin', tmp_path, filter='data')
    images, labels = cifar.read_cifar([tmp_path / 'cifar-10-batches-bin' / 'test_batch.bin'])
    assert len(images) == 10_000
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
