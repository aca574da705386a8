"""Start from a pretrained network: what it is, which weights are loaded, which layers are trained.

There are three ways: 'all' trains all layers, 'last' the last groups and the head, 'head' only the last layer. The last
layer replaces the pretrained one, is appended to it, or is the pretrained one itself.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping

import keras

from official_resnet import checkpoints, layers, resnet_model, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, keras_files, network_files
from official_resnet.inputs import classes, other_datasets
from official_resnet.inputs.split import Split
from official_resnet.training import same_run
from official_resnet.training.config import PRETRAINED, TrainConfig
from official_resnet.training.more_optimizers import APPENDED_HEAD, HEAD

_OTHER = f'pass another --{PRETRAINED}'


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What is known about a trained network. None means unknown."""

    spec: resnet_spec.ResNetSpec | None = None
    num_classes: int | None = None  # number of logits
    normalization: str | None = None  # a name in NORMALIZATIONS
    image_size: int | None = None  # height and width of its input
    experiment: dict | None = None  # what a special block function changes, see TrainConfig


def describe(path: str | os.PathLike) -> Pretrained:
    """Return the Pretrained for a model_dir or a .keras file.

    The card beside a .keras file, NAME.card.json, describes it. Without a card, only the number of logits is known.

    Raises:
        UserError: There is no network, or its card is damaged.
    """
    weights, state = _read(path)
    num_classes = len(weights[f'{HEAD}/bias']) if f'{HEAD}/bias' in weights else None
    if state:
        config = same_run.stored_config(state, path, _OTHER)
        card_reader.require_buildable(config.spec, path)
        return Pretrained(config.spec, num_classes, _normalization(config), config.image_size, config.experiment)
    card_path = _card_path(path)
    if not card_path.is_file():
        return Pretrained(num_classes=num_classes)
    read = card_reader.read_card(card_path)
    return Pretrained(read.spec, num_classes, read.normalization, read.net_size[0], read.experiment)


def adopt(config: TrainConfig, pretrained: Pretrained, given: Mapping[str, str] | None = None) -> TrainConfig:
    """Return a TrainConfig with the network, normalisation and image size of a Pretrained.

    Raises:
        UserError: It contradicts a flag that the user passed; `given` is {flag: the field of the spec that it sets}.
    """
    if pretrained.experiment:
        raise UserError(
            f'{config.pretrained} has blocks of an experiment, {pretrained.experiment}, that no flag builds; {_OTHER}'
        )
    spec = config.spec
    if pretrained.spec:
        spec = pretrained.spec
        for flag, field in (given or {}).items():
            if field in ('bn_momentum', 'initializer'):  # do not change what the network computes in inference
                spec = dataclasses.replace(spec, **{field: getattr(config.spec, field)})
            elif getattr(config.spec, field) != getattr(spec, field):
                ours, theirs = (getattr(one, flag if flag == 'resnet_size' else field) for one in (config.spec, spec))
                raise UserError(
                    f'--{flag}={ours}, but {config.pretrained} has {theirs}; leave the flag out, or {_OTHER}'
                )
    normalization = config.normalization or pretrained.normalization
    if normalization == _normalization(dataclasses.replace(config, normalization=None)):
        normalization = None
    return dataclasses.replace(
        config,
        spec=spec,
        normalization=normalization,
        image_size=config.image_size or (pretrained.image_size if config.dataset.startswith('folder:') else None),
        pretrained_classes=pretrained.num_classes if config.head == 'append' else None,
    )


def build(config: TrainConfig, num_classes: int, input_shape: tuple, block: Callable | None = None) -> keras.Model:
    """Return the network of a config with its head. Layers that are not trained are frozen.

    Raises:
        UserError: A head must be appended, but the number of classes of the pretrained network is unknown.
    """
    is_appended = config.head == 'append'
    num_logits = config.pretrained_classes if is_appended else num_classes
    if not num_logits:
        raise UserError(
            f'--head=append: the classes of {config.pretrained or "the pretrained network"} are unknown; '
            'pass --head=replace, or another network'
        )
    model = resnet_model.resnet(config.spec, num_logits, input_shape, block)
    if is_appended:
        logits = keras.layers.Dense(num_classes, dtype='float32', name=APPENDED_HEAD)(model.output)
        with layers.deep_graph():
            model = keras.Model(model.input, logits, name=model.name)
    freeze(model, config.transfer, config.train_last_groups)
    return model


def with_same_classes(data: Split, test: Split, config: TrainConfig) -> tuple[Split, Split]:
    """Return both splits of a run with one list of classes: that of a kept head, or else of the training images.

    If the card of the network whose head is kept names no classes, its outputs are the classes in their order.
    """
    path = config.pretrained if config.head == 'keep' else None
    card_path = path and (pathlib.Path(path) / 'model.card.json' if pathlib.Path(path).is_dir() else _card_path(path))
    if card_path and card_path.is_file() and (card := card_reader.read_card(card_path)).has_names:
        data = classes.align(data, card.names, card.known_ids, str(path), ', or pass --head=replace')
    return data, classes.align(test, data.class_names, data.class_ids, 'the training images')


def freeze(model: keras.Model, transfer: str, train_last_groups: int = 1) -> None:
    """Freeze the layers that TrainConfig.transfer does not train. Frozen batch norms stay in inference mode.

    `train_last_groups` is the number of groups that 'last' trains, together with all layers after them. With 'last',
    stochastic depth still drops frozen blocks in training.
    """
    if transfer == 'all':
        return
    first = len(model.layers) - 1
    if transfer == 'last':
        names = [layer.name for layer in model.layers]
        num_groups = len({name.partition('_')[0] for name in names if name.startswith('group')})
        if not 1 <= train_last_groups <= num_groups:
            raise UserError(
                f'--train_last_groups={train_last_groups}, but the network has {num_groups}; pass 1..{num_groups}'
            )
        prefix = f'group{num_groups + 1 - train_last_groups}_'
        first = next(i for i, name in enumerate(names) if name.startswith(prefix))
    for i, layer in enumerate(model.layers):
        layer.trainable = i >= first


def parameters_of(model: keras.Model) -> str:
    """Return in words how many parameters a network has, and how many of them are trained; statistics do not count."""
    parameters = [variable for variable in model.weights if not variable.name.startswith('moving_')]
    total, trained = (sum(math.prod(v.shape) for v in some) for some in (parameters, model.trainable_variables))
    return f'{total:,} parameters' if trained == total else f'{trained:,} of {total:,} parameters trained'


def load_backbone(model: keras.Model, path: str | os.PathLike, head: str = 'replace') -> None:
    """Load the weights of a trained network of the same spec: a .keras file or the newest checkpoint of a model_dir.

    `head` 'replace' leaves the last layer as it is, 'append' leaves the appended one as it is, 'keep' loads all layers.

    Raises:
        UserError: The network cannot be read, or the two networks differ.
    """
    theirs, _ = _read(path)
    if head != 'replace' and any(name.startswith(f'{APPENDED_HEAD}/') for name in theirs):
        raise UserError(f'{path} already has an appended head; pass --head=replace')
    left_out = {'replace': (HEAD, APPENDED_HEAD), 'append': (APPENDED_HEAD,), 'keep': ()}[head]
    theirs = {name: array for name, array in theirs.items() if name.split('/')[0] not in left_out}
    named = checkpoints.named(model)
    ours = {name: variable for name, variable in named.items() if name.split('/')[0] not in left_out}
    other_head = '' if head == 'replace' else '--head=replace, '
    checkpoints.assign(ours, theirs, path, f'pass the flags of its network, {other_head}or another --{PRETRAINED}')


def _card_path(path):
    return pathlib.Path(path).with_suffix('.card.json')


def _normalization(config):
    """Return the normalisation of a config's images."""
    return config.normalization or other_datasets.default_normalization(config.dataset, config.views)


def _read(path):
    """Return ({variable path: ndarray}, state of the loop or None) for a model_dir or a .keras file."""
    if pathlib.Path(path).is_dir():
        weights, state, _ = network_files.restore_weights(path, 'pass a model_dir or a .keras file')
        return weights, state
    network_files.require_keras_file(path, 'pass a model_dir or a .keras file')
    model = keras_files.load(path, 'pass a model_dir or a .keras file')
    return {name: variable.numpy() for name, variable in checkpoints.named(model).items()}, None
