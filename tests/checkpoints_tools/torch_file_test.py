"""Shards and folders of PyTorch's checkpoints; selection_test.py has containers and prefixes."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from fixtures import torch_files
from fixtures.conversion import fuzz, refuse, shapes_of

from checkpoints_tools import convert, from_torch, torch_file

NET = torch_files.random_weights(torch_files.net_shapes((1, 1, 1), filters=2, classes=3, is_cifar=True, option='A'))
WRITERS = {'safetensors': lambda path, arrays: safetensors.numpy.save_file(arrays, path), 'bin': torch_files.write_zip}


def write_shards(folder, ending, arrays=NET, count=3, change=dict):
    """Write the shards of save_pretrained and their index; `change` may change {name: shard}. Return the index."""
    stem = {'safetensors': 'model', 'bin': 'pytorch_model'}[ending]
    shards = {name: f'{stem}-{i % count + 1:05}-of-{count:05}.{ending}' for i, name in enumerate(arrays)}
    for shard in set(shards.values()):
        WRITERS[ending](folder / shard, {name: arrays[name] for name in arrays if shards[name] == shard})
    index = folder / f'{stem}.{ending}.index.json'
    index.write_text(json.dumps({'metadata': {'total_size': 7}, 'weight_map': change(shards)}))
    return index


@pytest.mark.parametrize('dtype', ['float32', 'float16', ml_dtypes.bfloat16])
@pytest.mark.parametrize('ending', WRITERS)
def test_shards(ending, dtype, tmp_path):
    arrays = {f'module.{name}': array.astype(dtype) for name, array in NET.items()}
    index = write_shards(tmp_path, ending, arrays)
    for path in (index, tmp_path):
        module, shapes = convert.identify(path)
        assert module is from_torch and shapes == shapes_of({n: arrays[f'module.{n}'] for n in NET})
        read = module.read(path)
        assert all(np.array_equal(read[name], arrays[f'module.{name}']) for name in NET)
        assert module.list_files(path) == [index, *sorted(tmp_path.glob(f'*-of-00003.{ending}'))]


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_a_folder_with_one_file(name, tmp_path):
    WRITERS[name.rpartition('.')[2]](tmp_path / name, NET)
    assert convert.identify(tmp_path)[1] == shapes_of(NET)
    card = convert.convert(tmp_path, tmp_path / 'net.keras')
    assert card['source_sha256'].keys() == {name}


def test_what_a_folder_is_read_from(tmp_path):
    assert torch_file.locate(tmp_path) == tmp_path
    refuse('no file .*model.safetensors or pytorch_model.bin', convert.identify, tmp_path)
    for name in ('pytorch_model.bin.index.json', 'pytorch_model.bin', 'model.safetensors.index.json'):
        (tmp_path / name).touch()
        assert torch_file.locate(tmp_path).name == name
    assert torch_file.locate(tmp_path / 'pytorch_model.bin').name == 'pytorch_model.bin'


FIRST, SHARD = 'conv1.weight', 'model-00001-of-00003.safetensors'


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda shards: shards | {FIRST: f'../{SHARD}'}, rf"index.json' names '\.\./{SHARD}'.* in its folder; get"),
        (lambda shards: shards | {FIRST: f'/etc/{SHARD}'}, f"names '/etc/{SHARD}'.* in its folder"),
        (lambda shards: shards | {FIRST: '..'}, r"names '\.\.'.* in its folder"),
        (lambda shards: shards | {FIRST: 'model.safetensors.index.json'}, 'index.json.* in its folder'),
        (lambda shards: shards | {FIRST: 'lost.bin'}, "names 'lost.bin', which is not beside it; get"),
        (lambda shards: shards | {'more.weight': SHARD}, f"index.json' has 'more.weight', which '{SHARD}' lacks; get"),
        (
            lambda shards: {n: s for n, s in shards.items() if n != FIRST},
            f"{SHARD}' has '{FIRST}', which 'model.*lacks",
        ),
        (lambda shards: shards | {FIRST: 7}, 'an index of shards.*get'),
        (lambda shards: [7], 'an index of shards.*get'),
    ],
)
def test_an_index_that_does_not_fit_its_shards(change, message, tmp_path):
    index = write_shards(tmp_path, 'safetensors', change=change)
    for path in (index, tmp_path):
        refuse(message, from_torch.shapes, path)
        refuse(message, convert.identify, path)


def test_a_damaged_index(tmp_path):
    fuzz(from_torch, write_shards(tmp_path, 'safetensors'), 60)
