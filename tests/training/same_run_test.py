"""A stored run: what of its state is read, and what of its folder is deleted."""

import dataclasses
import json
import os
import shutil

import pytest
from fixtures.batches import message_of
from fixtures.networks import TINY
from fixtures.tiny_training import config_of

from official_resnet import checkpoints, resnet_run_loop
from official_resnet.errors import UserError
from official_resnet.training import same_run, transfer
from official_resnet.training.config import TrainConfig

BIGGER = dataclasses.replace(TINY, group_blocks=(2, 2, 2), filters=99)


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    """Return (config, arrays, state) of a run of a step."""
    model_dir = tmp_path_factory.mktemp('run')
    config = config_of(TINY, dataset='synthetic', model_dir=str(model_dir), data_dir=None, max_train_steps=1)
    resnet_run_loop.train(config, [])
    return config, *checkpoints.restore_latest(model_dir / 'checkpoints')[:2]


CHANGES = {
    'config': [None, {}, [], 'x', {'spec': None}, {'spec': {'filters': []}}],
    'step': [None, '3', -1, 1.5],
    'sums': [None, {}, [], 3],
    'best': [None, {'accuracy': 0}],
    'data': [None, {'class_names': ['a']}],
    'evaluation': [None, 7],
}


def test_a_state_that_lacks_a_value_is_damaged(stored):
    _, _, state = stored
    assert same_run.stored_config(state, '/x').to_json() == state['config']
    for name, values in CHANGES.items():
        changed = [{**state, name: value} for value in values] + [{k: v for k, v in state.items() if k != name}]
        for other in changed:
            assert message_of(same_run.stored_config, other, '/x.npz').startswith("checkpoint '/x.npz' is damaged (")


@pytest.mark.parametrize('name', ['config', 'step'])
def test_each_door_says_so_in_a_line(stored, name, tmp_path):
    config, arrays, state = stored
    config = config.with_machine(model_dir=str(tmp_path))
    path = checkpoints.save(tmp_path / 'checkpoints', 1, arrays, {k: v for k, v in state.items() if k != name})
    for door in (resnet_run_loop.Trainer, resnet_run_loop.evaluate):
        assert f"checkpoint '{path}' is damaged (it has no '{name}'); pass another" in message_of(door, config)
    assert f"is damaged (it has no '{name}'); pass another" in message_of(transfer.describe, tmp_path)


def test_a_finished_run_keeps_its_files_whatever_is_asked_of_it(stored, tmp_path, caplog):
    """Also its config, if fewer epochs are asked for; without a network that is newer, it was killed at its end."""
    shutil.copytree(stored[0].machine.model_dir, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    config = dataclasses.replace(stored[0].with_machine(model_dir=str(tmp_path)), max_train_steps=2)
    resnet_run_loop.train(config, [])
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    for fewer in ({'max_train_steps': 1}, {'base_learning_rate': 0.3}):
        caplog.clear()
        with caplog.at_level('INFO'):
            result = resnet_run_loop.train(dataclasses.replace(config, **fewer), [])
        assert result.step == 2 and result.history.epoch == []
        [line] = caplog.messages
        words = 'already finished', 'step 2;', '--max_train_steps', '--clean'
        assert all(word in line for word in words) and 'changed' not in line
        assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before
    (tmp_path / 'model.keras').unlink()  # or an older one, as in a copy that lost the times of its files
    caplog.clear()
    resnet_run_loop.train(dataclasses.replace(config, base_learning_rate=0.3), [])
    assert (tmp_path / 'model.keras').exists()
    assert (tmp_path / 'config.json').read_bytes() == before['config.json'] and 'changed' not in caplog.text


def test_a_report_that_is_older_than_the_network_is_told(tmp_path):
    folder = tmp_path / 'a run'
    write(folder, ('model.keras', 'report.html'))
    assert same_run.report_note(tmp_path) == same_run.report_note(folder) == []
    os.utime(folder / 'report.html', (1, 1))
    [line] = same_run.report_note(folder)
    assert f'{folder}/report.html' in line and f"resnet-report '{folder}'" in line


@pytest.mark.parametrize(
    'changes,words,others',
    [
        (
            {'dataset': 'folder:/b', 'seed': 3, 'spec': BIGGER},
            '--image_folder /a, not --image_folder /b',
            '--seed|spec',
        ),
        ({'spec': BIGGER}, '--resnet_size 6, not 14', 'filters|group_blocks|dataset|--image_folder'),
        ({'spec': dataclasses.replace(TINY, filters=99)}, 'spec.filters', '--image_folder'),  # no flag differs
    ],
)
def test_how_another_run_differs_is_said_by_flags(changes, words, others):
    ours = TrainConfig(TINY, dataset='folder:/a').with_machine(model_dir='x')
    message = message_of(same_run.require_same_run, dataclasses.replace(ours, **changes), ours)
    assert words in message and '--model_dir=x' in message and '--clean' in message
    assert not any(word in message for word in others.split('|'))


OURS = ('model.keras', 'features-train.npz', 'train/events.out.tfevents.1', 'train/plugins/profile/1/vm.xplane.pb')
THEIRS = ('notes.txt', 'images/cat/1.png', 'train/cat/1.png', 'checkpoints/notes.txt', 'export/saved_model.pb')
REPORT = ('report.json', 'per_class.csv', 'confusion.csv', 'images.csv')


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{}')


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()} - {checkpoints.LOCK}


@pytest.mark.parametrize('has_report', [False, True])
def test_clean_deletes_what_a_run_wrote_and_no_more(stored, tmp_path, has_report):
    folder = tmp_path / 'run'
    shutil.copytree(stored[0].machine.model_dir, folder)
    write(folder, (*OURS, *THEIRS, *REPORT, *['report.html'] * has_report))
    same_run.clean(folder)
    assert files_in(folder) == {*THEIRS, *(() if has_report else REPORT)}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {'images', 'train', 'checkpoints', 'export'}
    same_run.clean(tmp_path / 'absent')
    assert not (tmp_path / 'absent').exists()


@pytest.mark.parametrize(
    'about', [None, {'architectures': []}, {'config': 'x'}, {'config': {'filters': 4}}, {'config': {'spec': 'x'}}]
)
def test_clean_refuses_a_folder_of_something_else(tmp_path, about):
    write(tmp_path, ('weights/w.bin', 'checkpoints/global.pt', 'model.keras'))
    if about is not None:
        (tmp_path / 'config.json').write_text(json.dumps(about))
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=f'--clean: {tmp_path} .*; leave --clean out'):
        same_run.clean(tmp_path)
    assert files_in(tmp_path) == before


def test_clean_deletes_a_run_whose_config_is_lost(tmp_path):
    write(tmp_path, ('checkpoints/step-000000001.npz', 'model.keras'))
    same_run.clean(tmp_path)
    assert files_in(tmp_path) == set()
