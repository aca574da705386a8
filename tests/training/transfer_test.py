"""Weights of another net: what is taken, what is frozen, bit for bit."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from fixtures.tiny_training import SPEC, make_config, synthetic_split

from official_resnet import checkpoints, resnet_model, resnet_run_loop, resnet_variants
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, network_files
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.training import transfer


@pytest.fixture(scope='module')
def weights(source):
    """{path: array} of that net."""
    return network_files.restore_weights(source)[0]


def changed(model, before):
    """Return the names of the layers of which a variable is not what it was, bit for bit; new ones are left out."""
    return {
        variable.path.split('/')[0]
        for variable in model.variables
        if variable.path in before and not np.array_equal(variable.numpy(), before[variable.path])
    }


# --- what is loaded, what is trained -------------------------------------------------------------------------


@pytest.mark.parametrize('name,head', [('', 'replace'), ('model.keras', 'append'), ('', 'keep')])
def test_what_is_loaded(source, weights, name, head):
    config = dataclasses.replace(make_config('', None, head=head, pretrained_classes=10), num_classes=10)
    examples = synthetic_split(4, num_classes=10)
    model = resnet_run_loop.build_model(config, examples)
    before = {variable.path: variable.numpy() for variable in model.variables}
    transfer.load_backbone(model, source / name, head)
    new = {
        'replace': {'logits/kernel', 'logits/bias'},
        'keep': set(),
        'append': {'appended_logits/kernel', 'appended_logits/bias'},
    }[head]
    for variable in model.variables:
        expected = before if variable.path in new else weights
        np.testing.assert_array_equal(variable.numpy(), expected[variable.path], err_msg=variable.path)


def test_a_kept_head_keeps_its_classes(source):
    """The images of two classes of CIFAR-10, in another order, train the outputs of these classes."""
    two = dataclasses.replace(synthetic_split(8, num_classes=2), class_names=('dog', 'cat'))
    config = make_config('', None, head='keep', pretrained=str(source))
    for split in transfer.with_same_classes(two, two, config):
        assert split.labels.tolist() == [{0: 5, 1: 3}[label] for label in two.labels.tolist()]
        assert split.num_classes == 10
    own = dataclasses.replace(two, class_names=('lion', 'cat'))
    with pytest.raises(UserError, match="'lion', which .* or pass --head=replace"):
        transfer.with_same_classes(own, own, config)


@pytest.mark.parametrize(
    'fields,still',
    [
        ({'transfer': 'all'}, set()),
        ({'transfer': 'last', 'train_last_groups': 2, 'dtype': 'bf16'}, {'stem', 'group1'}),
        ({'transfer': 'head'}, {'stem', 'group1', 'group2', 'group3'}),
        (
            {'transfer': 'head', 'augment': False, 'head': 'append', 'pretrained_classes': 10},
            {'stem', 'group1', 'group2', 'group3', 'logits'},
        ),
    ],
)
def test_frozen_weights_and_statistics_are_bit_identical(cifar_dir, source, weights, fields, still):
    model = resnet_run_loop.train(make_config(cifar_dir, None, pretrained=str(source), train_epochs=1, **fields)).model
    layers = {path.split('/')[0] for path in weights}  # BN with its moving statistics
    assert changed(model, weights) == {name for name in layers if name.partition('_')[0] not in still}


@pytest.mark.parametrize(
    'axes,count,trained',
    [
        ({'version': '2'}, 1, {'group3', 'head'}),  # with its last normalisation
        ({'shortcut': 'C', 'projection_pool': True}, 2, {'group2', 'group3'}),
        ({'block': 'bottleneck', 'shortcut': 'B', 'se_reduction': 4}, 2, {'group2', 'group3'}),
    ],
)
def test_freezing_goes_by_group(axes, count, trained):
    model = resnet_model.resnet(dataclasses.replace(SPEC, **axes), 10, (32, 32, 3))
    transfer.freeze(model, 'last', count)
    variables = [variable.path for layer in model.layers if layer.trainable for variable in layer.variables]
    assert {path.replace('/', '_').partition('_')[0] for path in variables} == trained | {'logits'}


@pytest.mark.parametrize('kind,expected', [('all', '5,006 parameters'), ('head', '170 of 5,006 parameters trained')])
def test_how_many_parameters_are_trained(kind, expected):
    config = dataclasses.replace(make_config('', None, transfer=kind), pretrained='NET')
    model = resnet_run_loop.build_model(config, synthetic_split(4))
    assert transfer.parameters_of(model) == expected


def test_appended_head_is_a_dense_layer_of_the_original_logits(source, weights):
    config = make_config('', None, head='append', pretrained_classes=10, transfer='head')
    model = resnet_run_loop.build_model(config, synthetic_split(4, num_classes=3))
    transfer.load_backbone(model, source, 'append')
    assert [v.path for v in model.trainable_variables] == ['appended_logits/kernel', 'appended_logits/bias']
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype('float32')
    original = keras.models.load_model(source / 'model.keras')(images, training=False).numpy()
    layer = model.get_layer('appended_logits')
    expected = original @ layer.kernel.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(model(images, training=False), expected, atol=1e-5)


def test_num_classes():
    config = make_config('', None, num_classes=7)
    assert resnet_run_loop.build_model(config, synthetic_split(4, num_classes=3)).output_shape == (None, 7)
    own = resnet_run_loop.build_model(make_config('', None), synthetic_split(4, num_classes=3))
    assert own.output_shape == (None, 3)


# --- the pretrained net decides the network ------------------------------------------------------------------


def test_the_network_is_that_of_the_pretrained_model_dir(cifar_dir, source):
    described = transfer.describe(source)
    assert (described.spec, described.num_classes) == (SPEC, 10)
    other = dataclasses.replace(
        make_config(cifar_dir, None, pretrained=str(source), head='append'), spec=resnet_variants.cifar_spec(20)
    )
    adopted = transfer.adopt(other, described)
    assert adopted.spec == SPEC and adopted.pretrained_classes == 10
    assert adopted.normalization is None  # what CIFAR's is anyway
    mnist = transfer.adopt(dataclasses.replace(other, dataset='mnist'), described)
    assert mnist.normalization == 'per_image_standardization'
    own = dataclasses.replace(other, normalization='unit_range')
    assert transfer.adopt(own, described).normalization == 'unit_range'
    momentum = dataclasses.replace(other, spec=resnet_variants.cifar_spec(20, bn_momentum=0.5))
    assert transfer.adopt(momentum, described, {'bn_momentum': 'bn_momentum'}).spec.bn_momentum == 0.5
    with pytest.raises(UserError, match='--resnet_size=20, .* 8'):
        transfer.adopt(other, described, {'resnet_size': 'group_blocks'})


def test_a_converted_net_brings_its_card(source, tmp_path):
    """As checkpoints_tools writes it: the spec, and how the source fed its net."""
    (tmp_path / 'net.keras').write_bytes((source / 'model.keras').read_bytes())
    assert transfer.describe(tmp_path / 'net.keras') == transfer.Pretrained(num_classes=10)
    image = {'channels': 'BGR', 'scale': 1 / 255, 'mean': [0.1, 0.2, 0.3], 'std': [1, 2, 4]}
    image |= {'size': 32, 'resize': None, 'interpolation': 'bilinear'}
    card = {'variant': 'resnet20', 'spec': dataclasses.asdict(SPEC), 'num_classes': 10, 'labels': 'cifar10'}
    card['input'] = image
    (tmp_path / 'net.card.json').write_text(json.dumps(card))
    described = transfer.describe(tmp_path / 'net.keras')
    assert described.spec == SPEC and described.image_size == 32
    got = NORMALIZATIONS[described.normalization](np.array([255, 51, 102], np.uint8).reshape(1, 1, 1, 3))
    np.testing.assert_allclose(np.ravel(got), [0.4 - 0.1, (0.2 - 0.2) / 2, (1 - 0.3) / 4], atol=1e-6)
    config = make_config('', None, pretrained=str(tmp_path / 'net.keras'))
    assert transfer.adopt(config, described).normalization == described.normalization


def test_a_card_of_ours_is_read_again(source):
    assert transfer.describe(source / 'model.keras') == transfer.Pretrained(SPEC, 10, 'per_image_standardization', 32)
    card = card_reader.read_card(source / 'model.card.json')
    assert card.names[3] == 'cat' and card.size == card.net_size == (32, 32)


def test_wrong_sources(tmp_path, source):
    model = resnet_variants.cifar_resnet(8)
    for read in (transfer.describe, lambda path: transfer.load_backbone(model, path)):
        with pytest.raises(UserError, match='has no checkpoint'):
            read(tmp_path)
        with pytest.raises(UserError, match='cannot load'):
            read(tmp_path / 'absent.keras')
    other = {variable.path: variable.numpy() for variable in resnet_variants.cifar_resnet(14).variables}
    checkpoints.save(tmp_path / 'checkpoints', 1, other, {})
    three = resnet_model.resnet(SPEC, 3, (32, 32, 3))
    for target, path, head, message in (
        (model, tmp_path, 'replace', 'group1_block2.*--pretrained_model_checkpoint_path'),
        (model, source, 'replace', r'stem_conv/kernel .*\(3, 3, 3, 4\), not \(3, 3, 3, 16\); pass .*another'),
        (three, source, 'keep', 'logits/.* --head=replace'),
    ):
        with pytest.raises(UserError, match=message):
            transfer.load_backbone(target, path, head)
    config = make_config('', None, head='append', pretrained_classes=10)
    appended = resnet_run_loop.build_model(config, synthetic_split(4, num_classes=3))
    appended.save(tmp_path / 'appended.keras')
    with pytest.raises(UserError, match='appended.keras .*--head=replace'):
        transfer.load_backbone(appended, tmp_path / 'appended.keras', 'append')
    assert transfer.describe(tmp_path / 'appended.keras').num_classes == 10
    transfer.load_backbone(three, tmp_path / 'appended.keras')  # its backbone can be used


def test_append_needs_to_know_the_classes():
    with pytest.raises(UserError, match='--head=append.*--head=replace'):
        resnet_run_loop.build_model(make_config('', None, head='append'), synthetic_split(4))


# --- what a checkpoint of another transfer answers -----------------------------------------------------------


def test_a_model_dir_of_another_transfer_is_refused(cifar_dir, source, tmp_path):
    config = make_config(cifar_dir, tmp_path / 'run', pretrained=str(source), train_epochs=1, transfer='last')
    resnet_run_loop.train(config)
    resnet_run_loop.train(dataclasses.replace(config, backbone_learning_rate_factor=0.1, train_epochs=1))
    for change, message in (
        ({'train_last_groups': 2}, '--train_last_groups 1, not 2'),
        ({'pretrained': str(tmp_path)}, '--pretrained_model_checkpoint_path'),
    ):
        with pytest.raises(UserError, match=message):
            resnet_run_loop.train(dataclasses.replace(config, **change))
    arrays, state, path = checkpoints.restore_latest(tmp_path / 'run' / 'checkpoints')
    state['config']['pretrained'] = str(tmp_path / 'moved since')
    state['data']['class_names'][3] = 'lion'
    checkpoints.save(path.parent, state['step'] + 1, arrays, state)
    with pytest.raises(UserError, match="'cat'.*'lion'.*put back"):
        resnet_run_loop.train(config)
