"""TrainConfig as JSON, its checks, and how two of them are told apart."""

import dataclasses
import json

import pytest

from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.inputs.datasets import FolderOptions
from official_resnet.training.config import IDENTITY, Schedule, TrainConfig, difference

CONFIG = TrainConfig(
    resnet_variants.cifar_spec(8),
    dataset='folder:/pictures',
    schedule=Schedule('one_cycle'),
    transfer='head',
    head='append',
    pretrained_classes=10,
    image_size=40,
    normalization='unit_range',
    num_classes=12,
)


def test_json_keeps_everything():
    assert TrainConfig.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG


def test_every_field_of_the_identity_exists():
    assert set(IDENTITY) <= {field.name for field in dataclasses.fields(CONFIG)}


@pytest.mark.parametrize('old', [{'fine_tune': True}, {'model_dir': '/tmp'}, {'machine': {'cores': 2}}])
def test_a_run_that_an_older_version_stored_is_refused(old):
    with pytest.raises(UserError, match=f'{list(old.get("machine", old))[0]}.*--model_dir'):
        TrainConfig.from_json(CONFIG.to_json() | old)


def test_a_field_that_was_added_since_has_its_default():
    values = CONFIG.to_json()
    del values['seed'], values['machine']['num_gpus']
    assert TrainConfig.from_json(values) == CONFIG


def test_the_machine_may_change():
    other = CONFIG.with_machine(model_dir='/tmp', num_gpus=2)
    assert (other.machine.model_dir, other.machine.num_gpus, other.machine.data_dir) == ('/tmp', 2, None)
    assert dataclasses.replace(other, machine=CONFIG.machine) == CONFIG


def test_learning_rate():
    assert dataclasses.replace(CONFIG, batch_size=64).learning_rate == 0.05
    assert dataclasses.replace(CONFIG, batch_size=64, optimizer='adam').learning_rate == 0.1


@pytest.mark.parametrize(
    'transfer,augment,expected',
    [('head', False, True), ('head', True, False), ('last', False, False), ('all', False, False)],
)
def test_trains_on_features(transfer, augment, expected):
    assert dataclasses.replace(CONFIG, transfer=transfer, augment=augment).trains_on_features is expected


def test_how_a_folder_is_read():
    def options(spec, **fields):
        return dataclasses.replace(CONFIG, spec=spec, **fields).folder_options()

    assert options(resnet_variants.cifar_spec(8)) == FolderOptions(40, 3, 0.1, 0)
    assert options(resnet_variants.cifar_spec(8), image_size=None).image_size == 32
    assert options(resnet_variants.imagenet_spec(18), image_size=None).image_size == 224
    assert options(resnet_variants.mnist_spec(), image_size=None, seed=3) == FolderOptions(32, 1, 0.1, 3)


@pytest.mark.parametrize(
    'ours,theirs,text',
    [
        (1, 2, 'x 2, not 1'),
        ({'a': 1, 'b': 2}, {'a': 1, 'b': 3}, 'x.b 3, not 2'),
        (['a', 'b'], ['a', 'c'], "x[1] 'c', not 'b'"),
        (['a'], ['a', 'c'], 'x 2, not 1'),
    ],
)
def test_difference(ours, theirs, text):
    assert difference('x', ours, theirs) == text


@pytest.mark.parametrize(
    'fields,message',
    [
        ({'transfer': 'some'}, "transfer 'some' is none of all, last, head"),
        ({'head': 'new'}, "head 'new' is none of replace, append, keep"),
        ({'backbone_learning_rate_factor': 0}, 'factor 0 must be above 0'),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **fields)
