"""Converted networks against PyTorch: torchvision's, timm's, Hugging Face's, pytorchcv's, akamaster's trained one."""

import argparse
import datetime
import importlib
import pathlib
import subprocess
import sys
import tarfile
import types

import keras
import numpy as np
import pytest
from fixtures import torch_files
from fixtures.torch_peers import assert_same_logits, import_timm
from PIL import Image

from checkpoints_tools import convert, from_torch, from_transformers, read_ckpt, selection, source
from official_resnet.inference import card_reader, predict
from official_resnet.inputs import cifar

pytestmark = pytest.mark.parity
DATA = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


@pytest.mark.parametrize('name,is_zip', [('resnet18', False), ('resnet50', True)])
def test_same_logits_as_torchvision(name, is_zip, tmp_path):
    from benchmarks import torch_peer

    check_both_ways(name, getattr(torch_peer.import_torchvision().models, name), tmp_path, is_zip)


@pytest.mark.parametrize(
    'name', ['resnet26d', 'seresnet50', 'ecaresnet26t', 'wide_resnet50_2', 'resnext50_32x4d', 'resnetv2_50']
)
def test_same_logits_as_timm(name, tmp_path):
    check_both_ways(name, getattr(import_timm('models'), name), tmp_path)


def check_both_ways(name, make, tmp_path, is_zip=True):
    """A network with random weights computes the same after a conversion, and has its weights again after another."""
    import torch

    torch.manual_seed(0)
    peer = with_statistics(make(num_classes=20).eval())
    path = tmp_path / 'net.pth'
    torch.save({'state_dict': peer.state_dict()}, path, _use_new_zipfile_serialization=is_zip)
    card = convert.convert(path, tmp_path / 'net.keras')
    assert card['variant'] == name
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), peer, (64, 75))
    if card['family'] != 'torch':
        return
    convert.to_family(tmp_path / 'net.keras', tmp_path / 'net.safetensors', 'torch')
    back = from_torch.read(tmp_path / 'net.safetensors')
    state = peer.state_dict()
    assert back.keys() == {key for key in state if not key.endswith('num_batches_tracked')}
    assert all(np.array_equal(back[key], state[key].numpy()) for key in back)
    peer.load_state_dict({key: torch.tensor(value) for key, value in back.items()}, strict=True)


def test_same_features_as_a_sequence_of_modules(tmp_path):
    """A backbone as lightly's programs make it, in a checkpoint of Lightning with its momentum twin."""
    import torch

    from benchmarks import torch_peer

    torch.manual_seed(0)
    net = with_statistics(torch_peer.import_torchvision().models.resnet18().eval())
    backbone = torch.nn.Sequential(*list(net.children())[:-1], torch.nn.Flatten())
    state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    state |= {f'backbone_momentum.{name}': value + 1 for name, value in backbone.state_dict().items()}
    state |= {'projection_head.layers.0.weight': torch.ones(8, 512)}
    torch.save({'state_dict': state, 'pytorch-lightning_version': '2.5.0', 'loops': {}}, tmp_path / 'net.ckpt')
    card = convert.convert(tmp_path / 'net.ckpt', tmp_path / 'net.keras', choice=selection.Choice(has_head=False))
    assert (card['variant'], card['num_features'], card['other_weights']) == ('resnet18', 512, ('ema',))
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), backbone, (64, 75))


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('is_zip', [True, False])
def test_checkpoints_as_trainings_save_them(is_zip, protocol, tmp_path):
    """By torch.save, with optimizer, schedule and scaler, and with the arguments of the program."""
    import torch

    weights = torch_files.random_weights(torch_files.TINY['cifar_a'])
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(
        arch='resnet20',
        output_dir=tmp_path,
        device=torch.device('cuda', 1),
        dtype=torch.bfloat16,
        shape=torch.ones(2).shape,
    )
    saved = {
        'state_dict': {f'module.{name}': torch.tensor(value) for name, value in weights.items()},
        'optimizer': optimizer.state_dict(),
        'lr_scheduler': torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60]).state_dict(),
        'scaler': torch.amp.GradScaler('cpu').state_dict(),
        'args': args,
        'more': types.SimpleNamespace(
            args=args, mean=np.array([0.5]), metric=np.float64(76.1), when=datetime.datetime.now()
        ),
    }
    path = tmp_path / 'checkpoint.pth.tar'
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    read = from_torch.read(path)
    assert read.keys() == weights.keys() and all(np.array_equal(read[name], weights[name]) for name in read)
    assert convert.convert(path, tmp_path / 'net.keras')['num_classes'] == 10


@pytest.mark.parametrize(
    'depths,filters,layer_type,in_first',
    [
        ((2, 2, 2, 2), (16, 32, 64, 128), 'basic', False),
        ((3, 4, 6, 3), (64, 128, 256, 512), 'bottleneck', False),
        ((1, 2, 1, 1), (64, 128, 256, 512), 'bottleneck', True),
        ((1, 2, 1), (24, 24, 40), 'basic', False),
    ],
)
def test_same_logits_as_transformers(depths, filters, layer_type, in_first, tmp_path):
    """What save_pretrained writes: a folder with one file or with shards, with the classifier or without it."""
    import torch

    from benchmarks import torch_peer

    torch_peer.import_torchvision()  # transformers imports it
    import transformers

    torch.manual_seed(0)
    options = {'layer_type': layer_type, 'downsample_in_bottleneck': in_first, 'num_labels': 20}
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=filters, depths=depths, **options)
    peer = with_statistics(transformers.ResNetForImageClassification(config).eval())
    backbone = transformers.AutoBackbone.from_config(config)
    backbone.load_state_dict(peer.resnet.state_dict())
    peer.save_pretrained(tmp_path / 'one')
    card = convert.convert(tmp_path / 'one', tmp_path / 'net.keras')
    assert card['source_sha256'].keys() == {'model.safetensors', 'config.json'}
    assert card['spec']['version'] == ('1' if in_first else '1.5')
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), lambda images: peer(images).logits, (64, 75))
    for i, (saved, size) in enumerate(((peer, '300KB'), (peer.resnet, '50GB'), (backbone, '50GB'))):
        saved.save_pretrained(tmp_path / str(i), max_shard_size=size)
        module, shapes = convert.identify(tmp_path / str(i))
        assert module is from_transformers and shapes.config['depths'] == list(depths)
        read = module.read(tmp_path / str(i))
        for name, value in peer.resnet.state_dict().items():
            np.testing.assert_array_equal(read[name], value.numpy())
        assert ('classifier.1.bias' in read) == (saved is peer)


def same_input(folder, peer_input, tmp_path):
    """The card of a converted folder turns an image into what the peer makes of it, but for the rounding of pixels."""
    convert.convert(folder, tmp_path / 'net.keras')
    card = card_reader.read_card(tmp_path / 'net.card.json')
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    image = Image.fromarray(noise).resize((500, 400), Image.Resampling.BICUBIC)
    ours = predict.network_input(card, predict.prepare(image, card)[None]).numpy()[0].transpose(2, 0, 1)
    theirs = peer_input(image)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 1e-3 * theirs.std()


@pytest.mark.parametrize('tag,size', [('a1_in1k', 288), ('tv_in1k', 224), ('ra4_e3600_r224_in1k', 288)])
def test_same_input_as_timm(tag, size, tmp_path):
    """Of a folder that timm writes: test sizes, other interpolations, mean and std of .5."""
    timm = import_timm('models')
    name = 'resnet50d' if 'ra4' in tag else 'resnet50'
    net = timm.create_model(name, pretrained_cfg=timm.get_pretrained_cfg(f'{name}.{tag}').to_dict())
    timm.save_for_hf(net, tmp_path / 'folder', safe_serialization=True)
    options = import_timm('data').resolve_data_config(model=net, use_test_size=True)
    transform = import_timm('data').create_transform(**options)
    assert options['input_size'] == (3, size, size)
    same_input(tmp_path / 'folder', lambda image: transform(image).numpy(), tmp_path)


@pytest.mark.parametrize('size,crop_pct,mean', [(224, 0.875, 0.4), (240, 0.9375, 0.5), (384, 0.95, 0.5)])
def test_same_input_as_transformers(size, crop_pct, mean, tmp_path):
    """Where a margin has an odd number of pixels, transformers crops one pixel beside torchvision and us."""
    from benchmarks import torch_peer

    torch_peer.import_torchvision()  # transformers imports it
    import transformers

    options = {'size': {'shortest_edge': size}, 'crop_pct': crop_pct, 'image_mean': [mean] * 3, 'image_std': [0.2] * 3}
    processor = transformers.ConvNextImageProcessor(**options)
    processor.save_pretrained(tmp_path / 'folder')
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=(16, 32), depths=(1, 1), layer_type='basic')
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / 'folder')
    same_input(tmp_path / 'folder', lambda image: processor(image, return_tensors='np')['pixel_values'][0], tmp_path)


FOUR, THREE = (16, 32, 64, 128), (16, 32, 64)
FIRST, SECOND = {'bottleneck': True, 'conv1_stride': True}, {'bottleneck': True, 'conv1_stride': False}
BASIC, GROUPED = {'bottleneck': False, 'conv1_stride': False}, {'cardinality': 4, 'bottleneck_width': 8}
# pytorchcv's module, class and arguments, filters of its stages, the name that is found
NARROW = [
    ('resnet', 'ResNet', FIRST, FOUR, 'resnet17'),
    ('resnet', 'ResNet', SECOND, FOUR, 'resnet17b'),
    ('resnet', 'ResNet', BASIC, FOUR, 'resnet12'),
    ('resnext', 'ResNeXt', GROUPED, FOUR, 'resnext17_4x8d'),
    ('seresnet', 'SEResNet', FIRST, FOUR, 'seresnet17'),
    ('seresnext', 'SEResNeXt', GROUPED, FOUR, 'seresnext17_4x8d'),
    ('preresnet', 'PreResNet', FIRST, FOUR, 'preresnet17'),
    ('preresnet', 'PreResNet', SECOND, FOUR, 'preresnet17b'),
    ('sepreresnet', 'SEPreResNet', BASIC, FOUR, 'sepreresnet12'),
    ('resnet_cifar', 'CIFARResNet', {'bottleneck': False}, THREE, 'resnet10_cifar10'),
    ('resnet_cifar', 'CIFARResNet', {'bottleneck': True}, THREE, 'resnet14bn_cifar10'),
    ('resnext_cifar', 'CIFARResNeXt', GROUPED, THREE, 'resnext14_4x8d_cifar10'),
    ('seresnet_cifar', 'CIFARSEResNet', {'bottleneck': False}, THREE, 'seresnet10_cifar10'),
    ('preresnet_cifar', 'CIFARPreResNet', {'bottleneck': False}, THREE, 'preresnet10_cifar10'),
    ('wrn_cifar', 'CIFARWRN', {}, (32, 64, 128), 'wrn12_2_cifar10'),
]


@pytest.mark.parametrize('module,cls,arguments,filters,name', NARROW, ids=[row[-1] for row in NARROW])
def test_same_logits_as_pytorchcv(module, cls, arguments, filters, name, tmp_path):
    import torch

    torch.manual_seed(0)
    is_basic = arguments.get('bottleneck') is False or not arguments
    blocks = [[n if is_basic else 4 * n] * (2 if i == 0 else 1) for i, n in enumerate(filters)]
    make = getattr(importlib.import_module(f'pytorchcv.models.{module}'), cls)
    peer = with_statistics(make(blocks, 16, num_classes=10, **arguments).eval())
    peer.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is for one size of image only
    torch.save(peer.state_dict(), tmp_path / 'net.pth')
    is_open = 'cifar' not in name and arguments in (FIRST, SECOND)
    card = convert.convert(tmp_path / 'net.pth', tmp_path / 'net.keras', variant=name if is_open else None)
    assert (card['family'], card['variant']) == ('pytorchcv', name)
    sizes = (32,) if 'cifar' in name else (64, 75)
    assert_same_logits(keras.models.load_model(tmp_path / 'net.keras'), peer, sizes)


def with_statistics(peer):
    """Give a network BNs that are no identity; return it. In timm, the last scale of a block is 0 at first."""
    from torch import nn

    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
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
