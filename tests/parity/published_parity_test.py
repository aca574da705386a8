"""Every row of the published weights, the whole way: from a file of the publisher's own structure to an export.

The files have random weights, and are made by the publishers' programs where those still run, else by our writers of
their formats. Rows of the same family and network share one file. The deeper networks need -m slow. `exports` says
which networks are exported.
"""

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile

import h5py
import keras
import numpy as np
import pytest
from fixtures import foreign_files, torch_files
from fixtures.torch_peers import import_timm
from keras.src.legacy.saving import legacy_h5_format

import official_resnet as resnet
from checkpoints_tools import convert
from official_resnet.inference import exporters, formats, predict, rewrite, runtimes
from official_resnet.weights import pretrained
from official_resnet.weights.published import PUBLISHED

GROUPS: dict = {}
for row in PUBLISHED.values():
    GROUPS.setdefault((row.family, row.network), []).append(row)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


DEEPEST = 56  # layers; deeper networks of the same families are `-m slow`, because they have up to 130 million weights
CASES = [
    pytest.param(
        family,
        network,
        id=f'{family}-{network}',
        marks=pytest.mark.parity if resnet.VARIANTS[network].resnet_size <= DEEPEST else pytest.mark.slow,
    )
    for family, network in GROUPS
]
FIRST = {family: network for family, network in reversed(GROUPS)}  # of each family, which is exported to ONNX, too


@pytest.mark.parametrize('family,network', CASES)
def test_the_whole_way(family, network, monkeypatch, tmp_path):
    rows, converted = GROUPS[family, network], []
    content = FILES[family](rows[0], tmp_path)
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setenv(pretrained.MIRROR, str(tmp_path / 'mirror'))

    def convert_once(weights, source, output) -> None:  # in this process, which has TensorFlow already
        if not converted:
            convert.convert(source, output, weights.family)
            converted.extend(shutil.copy(path, tmp_path) for path in (output, output.with_suffix('.card.json')))
        for kept, path in zip(converted, (output, output.with_suffix('.card.json')), strict=True):
            shutil.copy(kept, path)

    monkeypatch.setattr(pretrained, '_convert', convert_once)
    for row in rows:
        place = tmp_path / 'mirror' / row.url.partition('://')[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        checked = dataclasses.replace(row, checksum=f'sha256:{sha256[:8]}' if row.checksum else '')
        path = pretrained.fetch(checked, tmp_path / 'cache')
        card = json.loads(path.with_suffix('.card.json').read_text())
        assert card['published'] == row.facts() | {'sha256': sha256}
        if convention := row.card_input():
            assert card['input'] == json.loads(json.dumps(dataclasses.asdict(convention)))
        place.unlink()
    model, card = predict.load(path)
    expected = resnet.VARIANTS[network]
    assert card.spec.group_blocks == expected.group_blocks and card.num_classes in (10, 1000, 1001)
    [guesses] = predict.predict(model, card, [np.random.default_rng(0).integers(0, 256, (300, 240, 3), np.uint8)], 3)
    assert len(guesses) == 3 and all(np.isfinite(guess.probability) for guess in guesses)
    export(model, card, exports(family, network), tmp_path)


def exports(family, network):
    """Return the formats to export to. A ResNet-50 takes 4 s for Keras and 14 s for ONNX, so not all are exported."""
    size, is_first = resnet.VARIANTS[network].resnet_size, network == FIRST[family]
    return ['keras'] * (is_first or size <= 26 or size > DEEPEST) + ['onnx'] * is_first


def export(model, card, names, folder):
    """What export_main writes computes the same in its runtime, for an image of the size in the card."""
    model = rewrite.in_float32(model)
    pixels = np.random.default_rng(1).integers(0, 256, (1, *card.size, 3), np.uint8)
    expected = runtimes.expected(model, card, pixels, 1)
    assert np.ptp(expected) > 0
    for to in names:
        path = folder / f'exported{formats.FORMATS[to].suffix}'
        exporters.write(model, card, to, path)
        got = runtimes.probabilities(runtimes.load(to, path, False), card, pixels, False, 1)
        runtimes.compare(got, expected).require('float32', path.name)


def of_torch(row, folder):
    """A file of torchvision, timm or akamaster. The publisher's own class makes the names."""
    import torch

    place, name = row.name.split('/')
    if place == 'akamaster':
        num_layers = int(name.removeprefix('resnet'))
        blocks = [(num_layers - 2) // 6] * 3
        shapes = torch_files.net_shapes(blocks, filters=16, classes=10, is_cifar=True, option='A')
        named = {f'module.{key}': value for key, value in torch_files.random_weights(shapes).items()}
        file = io.BytesIO()
        torch_files.write_zip(file, named, lambda tensors: {'state_dict': tensors})
        return file.getvalue()
    timm = import_timm('models')
    name = name.rpartition('_v')[0] if place == 'torchvision' else name.partition('.')[0]
    torch.manual_seed(0)
    return saved(timm.create_model(name).state_dict())


def of_transformers(row, folder):
    from benchmarks import torch_peer

    torch_peer.import_torchvision()  # transformers imports it
    import transformers

    size = int(row.name.rpartition('-')[2])
    is_basic = size in BASIC
    filters = [n if is_basic else 4 * n for n in (64, 128, 256, 512)]
    options = {'layer_type': 'basic' if is_basic else 'bottleneck', 'num_labels': 1000}
    config = transformers.ResNetConfig(hidden_sizes=filters, depths=(BASIC | BLOCKS)[size], **options)
    net = transformers.ResNetForImageClassification(config)
    if row.url.endswith('.bin'):
        return saved(net.state_dict())
    net.save_pretrained(folder / 'saved')
    return (folder / 'saved' / 'model.safetensors').read_bytes()


def saved(state):
    """Return the bytes of torch.save of a network's weights, with statistics that are no identity."""
    import torch

    for name, value in state.items():
        if name.endswith('running_mean'):
            value.normal_(0, 0.1)
        elif name.endswith('running_var'):
            value.uniform_(0.5, 1.5)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def of_keras(row, folder):
    name = row.name.rpartition('/')[2].replace('resnet', 'ResNet').replace('v2', 'V2')
    model = foreign_files.with_biases(getattr(keras.applications, name)(weights=None))
    with h5py.File(folder / 'weights.h5', 'w') as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return (folder / 'weights.h5').read_bytes()


def of_slim(row, folder):
    scope = row.name.rpartition('/')[2]  # resnet_v1_50
    version, size = (int(part.removeprefix('v')) for part in scope.split('_')[1:])
    num_classes = 1000 if version == 1 else 1001
    variables = foreign_files.slim_variables(version, BLOCKS[size], 64, num_classes=num_classes, scope=scope)
    return archive(folder, variables, f'{scope}.ckpt', version=1)


def of_official(row, folder):
    shapes = foreign_files.official_shapes(7, True, BLOCKS[50], 2 if '_v2_' in row.name else 1)
    variables = foreign_files.random_variables({name: shape for name, (shape, _) in shapes.items()})
    return archive(folder, variables, 'resnet_imagenet/model.ckpt-225207', version=2)


def archive(folder, variables, name, version):
    """Return a tar.gz of a checkpoint of TensorFlow 1."""
    (folder / 'tf' / name).parent.mkdir(parents=True)
    foreign_files.write_tf(folder / 'tf' / name, variables, version)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w:gz', compresslevel=1) as tar:
        tar.add(folder / 'tf', arcname='')
    return file.getvalue()


def of_caffe(row, folder):
    size = int(row.name.rpartition('-')[2])
    options = {'has_bias': size == 50, 'is_numbered': size > 50, 'num_classes': 1000}
    return foreign_files.caffe_file(foreign_files.caffe_variables(BLOCKS[size], 64, **options))


def of_tensorpack(row, folder):
    mode = 'se' if row.name.endswith('-SE') else 'resnext32x4d' if 'ResNeXt' in row.name else 'resnet'
    size = int(''.join(filter(str.isdigit, row.name.removeprefix('tensorpack/ImageNet-').partition('-')[0])))
    is_basic = size in BASIC
    blocks = (BASIC | BLOCKS)[size]
    file = io.BytesIO()
    np.savez(file, **foreign_files.tensorpack_variables(mode, blocks, 64, 1000, is_basic))
    return file.getvalue()


FILES = {
    'torch': of_torch,
    'timm_v2': of_torch,
    'transformers': of_transformers,
    'keras_applications': of_keras,
    'slim': of_slim,
    'official_tf': of_official,
    'caffe': of_caffe,
    'tensorpack': of_tensorpack,
}
