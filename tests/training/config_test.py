"""TrainConfig as JSON and from settings, its checks, and how two of them are told apart."""

import dataclasses
import json
import math

import pytest

from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.inputs.views import Views
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training.config import MachineConfig, Schedule, TrainConfig, flags_of
from official_resnet.training.same_run import IDENTITY, difference, from_json

CONFIG = TrainConfig(
    resnet_variants.cifar_spec(8),
    dataset='folder:/images',
    schedule=Schedule('one_cycle'),
    transfer='head',
    head='append',
    pretrained_classes=10,
    image_size=40,
    normalization='unit_range',
    num_classes=12,
)


def test_json_keeps_everything():
    assert from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG


def test_the_identity_of_a_run_is_what_a_checkpoint_depends_on():
    assert set(IDENTITY) == {
        *('spec', 'dataset', 'num_train_images', 'image_size', 'validation_fraction', 'normalization', 'num_classes'),
        *('batch_size', 'seed', 'optimizer', 'augment', 'flip', 'augmentation', 'transfer', 'train_last_groups'),
        *(
            'head',
            'pretrained_classes',
            'views',
            'background',
            'balance',
            'sync_batch_norm',
            'experiment',
            'weight_averaging',
        ),
    }


@pytest.mark.parametrize('old', [{'fine_tune': True}, {'machine': {'cores': 2}}])
def test_a_run_that_an_older_version_stored_is_refused(old):
    with pytest.raises(UserError, match=f'{list(old.get("machine", old))[0]}.*--model_dir'):
        from_json(CONFIG.to_json() | old)


@pytest.mark.parametrize(
    'transfer,augment,expected',
    [('head', False, True), ('head', True, False), ('last', False, False), ('all', False, False)],
)
def test_trains_on_features(transfer, augment, expected):
    assert dataclasses.replace(CONFIG, transfer=transfer, augment=augment).trains_on_features is expected


def test_how_a_folder_is_read():
    def options(spec, **fields):
        return dataclasses.replace(CONFIG, spec=spec, **fields).folder_options()

    own = options(resnet_variants.cifar_spec(8), seed=3)
    assert own == {'image_size': 40, 'channels': 3, 'validation_fraction': 0.1, 'seed': 3, 'balance': False}
    sizes = {resnet_variants.cifar_spec(8): (32, 3), resnet_variants.imagenet_spec(18): (224, 3)}
    for spec, expected in (sizes | {resnet_variants.mnist_spec(): (32, 1)}).items():
        made = options(spec, image_size=None)
        assert (made['image_size'], made['channels']) == expected


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
    assert difference('views', {'size': 48}, {'size': 32}) == '--image_size 32, not 48'


@pytest.mark.parametrize(
    'change,name,text',
    [
        ({'spec': resnet_variants.cifar_spec(8, shortcut=None)}, 'spec', '--shortcut A, not None'),
        ({'spec': resnet_variants.imagenet_spec(50)}, 'spec', '--resnet_size 8, not 50, --shortcut A, not B'),
        ({'spec': resnet_variants.cifar_spec(11, block='bottleneck')}, 'spec', '--resnet_size 8, not 11'),
        ({'schedule': Schedule('constant')}, 'schedule', '--lr_schedule one_cycle, not constant'),
        ({'dataset': f'folder:{__file__}'}, 'dataset', f'--image_folder /images, not --image_list {__file__}'),
        ({'dataset': 'tfds:x'}, 'dataset', '--image_folder /images, not --tfds x'),
        ({'dataset': 'mnist'}, 'dataset', "--image_folder /images, not dataset 'mnist'"),
        ({'views': Views(64)}, 'views', "views None, not {'size': 64"),
        ({'normalization': None}, 'normalization', '--input_normalization unit_range, not None'),
    ],
)
def test_a_difference_has_the_name_of_its_flag(change, name, text):
    ours, theirs = dataclasses.replace(CONFIG, **change).to_json(), CONFIG.to_json()
    assert difference(name, ours[name], theirs[name]).startswith(text)
    assert [field for field in ours if ours[field] != theirs[field]] == [name]


def test_settings_by_the_names_of_flags_make_a_config():
    settings = {'resnet_size': 20, 'shortcut': 'none', 'lr_schedule': 'one_cycle', 'lr_boundaries': (1, 2)}
    settings |= {'steps_per_loop': 3, 'use_synthetic_data': True}
    made = TrainConfig.from_settings(settings, resnet_variants.cifar_spec, dataset='synthetic')
    assert made == TrainConfig(
        resnet_variants.cifar_spec(20, shortcut=None),
        dataset='synthetic',
        schedule=Schedule('one_cycle'),
        machine=MachineConfig(steps_per_call=3),
    )


def test_no_two_fields_have_the_same_flag():
    flags = [flag for part in (TrainConfig, Schedule, MachineConfig, ResNetSpec) for flag in flags_of(part)]
    assert len(flags) == len(set(flags))
    assert flags_of(Views).keys() & set(flags) == {'image_size'}  # of a folder's images, held in memory or streamed


@pytest.mark.parametrize(
    'fields,message',
    [
        ({'transfer': 'some'}, '--transfer=some .*all, last, head'),
        ({'backbone_learning_rate_factor': 0.5}, 'factor=0.5 .*--transfer=head'),
        ({'momentum': 1.5}, '--momentum=1.5 .* 1'),
        ({'base_learning_rate': math.nan}, '--base_learning_rate=nan .* 0'),
        ({'background': True}, '--background_class '),
        (
            {'decay_form': 'decoupled', 'optimizer': 'lamb', 'transfer': 'all'},
            '--optimizer=lamb; .*--decay_form=coupled',
        ),
        ({'optimizer': 'adam', 'transfer': 'all'}, '--optimizer=adam; pass --weight_decay=0'),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **fields)
