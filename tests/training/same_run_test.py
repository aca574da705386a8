"""A stored run: what of its state is read."""

import pytest
from fixtures.batches import message_of
from fixtures.networks import TINY
from fixtures.tiny_training import config_of

from official_resnet import checkpoints, resnet_run_loop
from official_resnet.training import same_run, transfer


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
