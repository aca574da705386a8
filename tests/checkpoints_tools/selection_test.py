"""What is taken of a checkpoint: plain weights or averages, behind which prefix, with or without a classifier."""

import argparse
import collections
import json
import pathlib

import keras
import numpy as np
import pytest
from fixtures import foreign_files, torch_files
from fixtures.conversion import assert_equal, images_of, refuse

from checkpoints_tools import convert, from_slim, from_torch, read_ckpt, selection
from checkpoints_tools.selection import Choice
from official_resnet.inference import predict
from official_resnet.training import transfer

SHAPES = torch_files.TINY['cifar_a']
PLAIN, EMA = (torch_files.random_weights(SHAPES, seed) for seed in (0, 1))
COUNT = {'n_averaged': np.array(7)}
STRAY = {'criterion.weight': np.ones(10, 'float32')}
QUEUE = {'module.queue': np.ones((4, 5), 'float32')}
MLP = {'fc.0.weight': np.ones((16, 16), 'float32'), 'fc.2.weight': np.ones((4, 16), 'float32')}


DINO = {'module.dino_head.weight': np.ones(4, 'float32')}
PREDICTOR = {'online_predictor.0.weight': np.ones((4, 4), 'float32')}


def under(prefix, values):
    return {prefix + name: value for name, value in values.items()}


def body(values):
    return {name: value for name, value in values.items() if not name.startswith('linear')}


AVERAGED = under('module.', EMA) | COUNT
HEAD = {name: value for name, value in PLAIN.items() if name not in body(PLAIN)}
HEAD_EMA = {f'ema.{name}': EMA[name] for name in HEAD}
LIGHTLY = [under('backbone.', torch_files.in_sequence(PLAIN, first)) for first in (2, 3)]
ARGS = torch_files.Pickled(argparse.Namespace(arch='resnet50', output_dir=pathlib.Path('/a'), lr=0.1, seed=None))
STEPS = torch_files.Pickled({'milestones': collections.Counter({30: 1}), 'last_epoch': 3, '_last_lr': [0.1]})
# What an optimizer stores. Its tensors are in a dict of each weight, and no network.
SGD = {'state': {0: {'momentum_buffer': np.ones(3, 'float32')}}, 'param_groups': [{'lr': 0.1, 'params': [0, 1]}]}
# What was saved: an object of dicts of arrays -> weights, others, names that are left out
SAVED = {
    'timm': (
        {'epoch': 3, 'arch': 'resnet50', 'state_dict': PLAIN, 'optimizer': SGD, 'version': 2, 'args': ARGS}
        | {'amp_scaler': {'scale': 65536.0}, 'state_dict_ema': EMA, 'metric': 76.1},
        *('plain', ['ema'], []),
    ),
    'torchvision': (
        {'model': PLAIN, 'optimizer': SGD, 'lr_scheduler': STEPS, 'epoch': 3, 'args': ARGS, 'model_ema': AVERAGED},
        *('plain', ['ema'], ['n_averaged']),
    ),
    'one dict': ({'state_dict': under('net.', PLAIN) | under('net_ema.module.', EMA)}, 'plain', ['ema'], []),
    'nested': ({'model': {'module': PLAIN}, 'ema': {'shadow': EMA}}, 'plain', ['ema'], []),
    'AveragedModel': (AVERAGED, 'ema', [], ['n_averaged']),
    'only averages': ({'ema_state_dict': EMA}, 'ema', [], []),
    'loss': (PLAIN | STRAY, 'plain', [], ['criterion.weight']),
    'Lightning': ({'state_dict': under('model.', PLAIN) | STRAY}, 'plain', [], ['criterion.weight']),
    'MoCo': (
        {'epoch': 200, 'arch': 'resnet50', 'optimizer': SGD}
        | {'state_dict': under('module.encoder_q.', PLAIN) | under('module.encoder_k.', EMA) | QUEUE},
        *('plain', ['ema'], ['module.queue']),
    ),
    'torch.compile': (under('_orig_mod.', PLAIN), 'plain', [], []),
    'DataParallel, torch.compile, Lightning': (
        {'state_dict': under('model.module._orig_mod.', PLAIN)},
        'plain',
        [],
        [],
    ),
    'DINO': (
        {'student': under('module.backbone.', PLAIN) | DINO, 'teacher': under('backbone.', EMA) | DINO, 'args': ARGS}
        | {'optimizer': SGD, 'epoch': 3, 'fp16_scaler': {}, 'dino_loss': {'center': np.ones((1, 4), 'float32')}},
        *('plain', ['ema'], ['module.dino_head.weight']),
    ),
    'BYOL': (
        under('online_encoder.net.', PLAIN) | under('target_encoder.net.', EMA) | PREDICTOR,
        *('plain', ['ema'], ['online_predictor.0.weight']),
    ),
    'solo-learn': ({'state_dict': under('backbone.', PLAIN) | under('momentum_backbone.', EMA)}, 'plain', ['ema'], []),
    'MoCo v3': (under('module.base_encoder.', PLAIN) | under('module.momentum_encoder.', EMA), 'plain', ['ema'], []),
    'distillation': ({'teacher': PLAIN, 'args': 7}, 'plain', [], []),
    'lightly': ({'state_dict': LIGHTLY[0] | HEAD}, 'plain', [], []),
    'lightly with relu': ({'state_dict': LIGHTLY[1] | HEAD | STRAY}, 'plain', [], ['criterion.weight']),
    'a head beside the backbone': (
        under('module.backbone.', body(PLAIN)) | under('module.', HEAD) | under('ema.backbone.', body(EMA)) | HEAD_EMA,
        *('plain', ['ema'], []),
    ),
}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Write nested dicts of arrays to net.pth in the current folder."""
    monkeypatch.chdir(tmp_path)

    def run(saved):
        arrays = []

        def described(value):
            if isinstance(value, dict):
                return {name: described(item) for name, item in value.items()}
            if not isinstance(value, np.ndarray):
                return value
            arrays.append(value)
            return torch_files.tensor(str(len(arrays) - 1), value.dtype.name, value.size, value.shape)

        pickle = torch_files.pickled(described(saved))
        torch_files.write_zip_of('net.pth', pickle, {str(i): array.tobytes() for i, array in enumerate(arrays)})

    return run


def taken(choice=selection.DEFAULT, path='net.pth'):
    """Return (Selection, {name: array}) of a checkpoint that fits."""
    module, shapes = convert.identify(path)
    selected = selection.select(module, shapes, path, choice)
    convert.fit(module, selected.shapes, path)
    return selected, selected.variables(module.read(path))


@pytest.mark.parametrize('name', SAVED)
def test_weights_and_prefixes(name, save):
    saved, kind, others, left_out = SAVED[name]
    save(saved)
    selected, variables = taken()
    assert (selected.weights, list(selected.others)) == (kind, others)
    used = {
        name
        for entry in from_torch.name_map(from_torch.describe(selected.shapes), selected.shapes)
        for name in entry.sources
    }
    assert sorted(from_torch.ignored(selected.shapes).keys() - used) == left_out
    weights = {'plain': PLAIN, 'ema': EMA}
    for choice in (selection.DEFAULT, *map(Choice, [kind, *others])):
        variables = taken(choice)[1]
        assert all(np.array_equal(variables[name], value) for name, value in weights[choice.weights or kind].items())
    for missing in {'plain', 'ema'} - {kind, *others}:
        refuse(f'--weights={missing}, but net.pth has only {kind} weights', taken, Choice(missing))


OTHER = torch_files.random_weights(torch_files.TINY['basic'])  # no average of PLAIN, by its shapes


@pytest.mark.parametrize('first,second,other', [('student', 'teacher', OTHER), ('a', 'b', EMA)])
def test_two_networks_are_not_guessed_at(first, second, other, save):
    save({first: PLAIN, second: other})
    refuse(rf'2 networks, {first}\.\*, {second}\.\*; save one', from_torch.shapes, 'net.pth')


def test_a_head_outside_of_the_prefix_is_used_and_not_called_left_out(save):
    head = {name: value for name, value in PLAIN.items() if name.startswith('linear')}
    save(under('backbone.', body(PLAIN)) | head | STRAY)
    assert read_ckpt.main(['read_ckpt.py', '--input', 'net.pth', '--output', 'net.keras']) == 0
    assert json.loads(pathlib.Path('net.card.json').read_text())['left_out'] == ['criterion.weight']
    bias = keras.models.load_model('net.keras').get_layer('logits').bias
    np.testing.assert_array_equal(bias, PLAIN['linear.bias'])


def test_the_command_prints_and_the_card_says_which(save, capsys):
    save({'state_dict': PLAIN | STRAY, 'state_dict_ema': EMA})
    for flags, value in ((), PLAIN), (('--weights=ema',), EMA):
        assert read_ckpt.main(['read_ckpt.py', '--input', 'net.pth', '--output', 'net.keras', *flags]) == 0
        card, out = json.loads(pathlib.Path('net.card.json').read_text()), capsys.readouterr().out
        kinds = ('ema', ['plain']) if flags else ('plain', ['ema'])
        assert (card['weights'], card['other_weights']) == kinds
        assert f'{kinds[0]} weights' in out and f'--weights={kinds[1][0]}' in out
        assert 'left out: criterion.weight' in out and card['left_out'] == ['criterion.weight']
        bias = keras.models.load_model('net.keras').get_layer('logits').bias
        np.testing.assert_array_equal(bias, value['linear.bias'])
        assert read_ckpt.main(['read_ckpt.py', '--list', 'net.pth', *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        name = 'linear.bias' + ('' if flags else '/ExponentialMovingAverage')
        assert [line for line in lines if line.startswith(name + ' ')] == [
            f'{name}  (10,) float32  ignored: --weights={kinds[1][0]} takes it'
        ]


def test_averages_in_a_tensorflow_checkpoint(tmp_path):
    """Statistics that are not averaged are taken as they are; a kernel without an average is not."""
    plain = foreign_files.slim_variables(1, (1, 1), 2)
    averages = {f'{name}/ExponentialMovingAverage': value + 1 for name, value in plain.items() if 'moving' not in name}
    loss = {'total_loss/ExponentialMovingAverage': np.float32(3)}
    path = foreign_files.write_tf(tmp_path / 'x.ckpt', plain | averages | loss)
    for choice, shift in ((selection.DEFAULT, 0), (Choice('ema'), 1)):
        selected, variables = taken(choice, path)
        assert selected.weights == (choice.weights or 'plain') and len(selected.others) == 1
        for name, value in plain.items():
            np.testing.assert_array_equal(variables[name], value + (0 if 'moving' in name else shift), name)
    assert convert.convert(path, tmp_path / 'x.keras', choice=Choice('ema'))['weights'] == 'ema'
    del averages['resnet_v1_50/block2/unit_1/bottleneck_v1/conv2/weights/ExponentialMovingAverage']
    path = foreign_files.write_tf(tmp_path / 'y.ckpt', plain | averages)
    message = 'without an average: .*block2/unit_1/bottleneck_v1/conv2/weights'
    refuse(message, convert.convert, path, tmp_path / 'y.keras', choice=Choice('ema'))
    path = foreign_files.write_tf(tmp_path / 'z.ckpt', plain | loss)
    assert selection.kinds_of(from_slim, from_slim.shapes(path)).keys() == {'plain'}


SWAV = under('module.', body(PLAIN) | {'prototypes.weight': MLP['fc.2.weight']})
MOMENTUM = {'state_dict': LIGHTLY[0] | under('backbone_momentum.', torch_files.in_sequence(EMA, 2))}
FEATURES = [body(PLAIN), under('backbone.', body(PLAIN)), body(PLAIN) | MLP, PLAIN, SWAV, MOMENTUM]
FEATURES += [torch_files.in_sequence(PLAIN, 3)]


@pytest.mark.parametrize('saved', FEATURES)
def test_features_of_a_checkpoint_without_its_classifier(saved, save):
    save(saved)
    if saved is not PLAIN:
        refuse(r'fc\.weight.*pass --no_head', convert.convert, 'net.pth', 'net.keras')
    card = convert.convert('net.pth', 'net.keras', choice=Choice(has_head=False))
    assert (card['num_classes'], card['num_features'], card['labels']) == (0, 16, 'unknown')
    features = keras.models.load_model('net.keras')(images_of(32)).numpy()
    logits = from_torch.run(PLAIN, images_of(32), from_torch.describe({n: (s, '') for n, s in SHAPES.items()}))
    assert_equal(features @ PLAIN['linear.weight'].T + PLAIN['linear.bias'], logits)
    refuse('no classifier; train one, with --pretrained_model_checkpoint_path', predict.load, 'net.keras')
    described = transfer.describe('net.keras')
    assert described.num_classes is None and described.spec.group_blocks == (2, 1, 2)
    refuse('--num_classes=3', convert.convert, 'net.pth', 'net.keras', num_classes=3, choice=Choice(has_head=False))
