"""Convert a foreign checkpoint to a .keras model, strictly and verified, and ours back to PyTorch's or KerasHub's.

The modules from_FAMILY.py know the formats. This module uses each weight exactly once, compares the result
with the source's own definition, and only then writes it, with a card beside it.
"""

import collections
import dataclasses
import hashlib
import importlib
import os
import pathlib
import types

import keras
import numpy as np
import tensorflow as tf

import official_resnet
from checkpoints_tools import FAMILIES, TARGETS, our_net, selection, tf_checkpoint, torch_file, verify
from checkpoints_tools.selection import Choice
from checkpoints_tools.source import Lazy, Listing, Shapes, Source, Variables, output_path
from official_resnet import files, layers, resnet_model, resnet_variants
from official_resnet.errors import UserError
from official_resnet.inference import keras_files, model_card, rewrite

FLOATS = ('float16', 'bfloat16', 'float32', 'float64')
MAX_NAMES = 8  # of variables in an error message, which is one line
WHOLE = 'get the whole checkpoint, or pass another --source or --variant'
# A family of TARGETS -> whose names it has, and the remedy for a network that it cannot express.
_WHOSE = {
    'torch': ('PyTorch', 'pass a network that torchvision, timm or akamaster has'),
    'keras_hub': ('KerasHub', 'pass a network that ResNetBackbone of KerasHub has'),
}
# Endings of the keys in a layer's config that do not change what the layer computes in inference.
_IRRELEVANT = ('initializer', 'regularizer', 'constraint', 'dtype', 'trainable', 'momentum', 'synchronized')


def convert(
    path: str | os.PathLike,
    output: str | os.PathLike,
    family: str = 'auto',
    variant: str | None = None,
    num_classes: int | None = None,
    tolerance: float = verify.TOLERANCE,
    choice: Choice = selection.DEFAULT,
) -> dict:
    """Convert a checkpoint to a .keras file and its card (.card.json), or write nothing; return the card.

    Args:
        path: The checkpoint's path. For a TensorFlow checkpoint, leave out .index.
        output: The .keras file to write. Its folder is created if it is missing.
        family: 'auto' or a key of FAMILIES.
        variant: The variant's name. It decides what the variables leave open.
        num_classes: 1000 drops the background class of a source with the labels 'imagenet1001'.
        tolerance: The largest difference that `verify` allows, as a fraction of the largest logit.
        choice: Which of its weights, and whether with the classifier.

    Raises:
        UserError: The checkpoint cannot be read or converted exactly. Nothing was written.
    """
    path, output = pathlib.Path(path).expanduser(), output_path(path, output, '.keras')
    module, shapes = identify(path, family)
    if module is None:
        raise UserError(
            f'{path} has {len(shapes)} variables that no family knows: {_some(shapes)}; '
            'pass --source, or convert another checkpoint'
        )
    if num_classes and not choice.has_head:
        raise UserError(
            f'--num_classes={num_classes} is the size of a classifier, which --no_head leaves out; pass one'
        )
    selected = selection.select(module, shapes, path, choice, variant)
    source, entries = fit(module, selected.shapes, path, variant)
    _raise_listed({'without an average': selected.without_average(entries)}, path, 'leave --weights out')
    source = module.with_mean(source, path) if hasattr(module, 'with_mean') else source
    model = _build(source.spec, num_classes or source.num_classes)
    if choice.has_head:
        entries = _with_classes(entries, source, num_classes)
    else:
        model, entries = _without_head(model, entries)
    variables, statistics = _with_statistics(module, selected, source, path, choice.data_dir)
    assign(model, entries, variables, path)
    verified = verify.verify(model, module, variables, source, tolerance)
    del variables
    sources = module.list_files(path) if hasattr(module, 'list_files') else [path]
    card = _card(source, num_classes, verified, map(pathlib.Path, sources)) | _selected(selected, entries) | statistics
    _write(model, card, output)
    return card


def identify(path: str | os.PathLike, family: str = 'auto') -> tuple[types.ModuleType | None, Shapes]:
    """Return a checkpoint's (module, {name: (shape, dtype)}); the module is None if no family knows the names.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    path = torch_file.locate(pathlib.Path(path).expanduser())
    if not path.is_file():
        tf_checkpoint.locate(path)
    if family != 'auto':
        module = _module(family)
        return module, module.shapes(path)
    likely = [name for name in FAMILIES if path.name.endswith(FAMILIES[name])]
    unknown, problems = None, {}
    for name in dict.fromkeys([*likely, *FAMILIES]):
        module = _module(name)
        try:
            shapes = module.shapes(path)
        except UserError as error:
            problems[name] = error
            continue
        if selection.kinds_of(module, shapes):
            return module, shapes
        unknown = unknown or shapes
    for name in likely:
        if name in problems:
            raise problems[name]
    if unknown:
        return None, unknown
    raise UserError(f'{path} is not a checkpoint of {", ".join(FAMILIES)}; if it is one, pass its family as --source')


def fit(
    module: types.ModuleType, shapes: Shapes, path: object, variant: str | None = None, remedy: str = WHOLE
) -> tuple[Source, list[our_net.Entry]]:
    """Return the Source of a checkpoint and the Entries that say where its variables go.

    Each of our variables is set once. Each variable of the checkpoint is used once or ignored, and has the shape that
    our variable needs, so a checkpoint that passes is as large as its network. A vector may be folded into several of
    our variables, for example a bias into the means of all BNs that follow.

    Args:
        module: The family's module, from_FAMILY.
        shapes: The checkpoint's variables.
        path, remedy: The file that an error names, and what it tells the user to do.
        variant: As in `convert`.

    Raises:
        UserError: Variables do not fit. The message lists them.
    """
    source = module.describe(shapes, variant)
    entries = module.name_map(source, shapes)
    ours, ignored = our_net.variables(source.spec, source.num_classes), module.ignored(shapes)
    uses = collections.Counter(name for entry in entries for name in entry.sources)
    alone = collections.Counter(entry.sources for entry in entries if len(entry.sources) == 1)
    targets = collections.Counter(entry.target for entry in entries)
    used = {name: shapes[name] for name in uses if name in shapes}
    wanted = {
        name: tuple(shape)
        for entry in entries
        if entry.target in ours
        for name, shape in zip(entry.sources, entry.convert.shapes(ours[entry.target]), strict=False)
    }
    misshapen = {name: shape for name, (shape, _) in used.items() if tuple(shape) != wanted.get(name, tuple(shape))}
    problems = {
        'missing': [name for name in uses if name not in shapes],
        'unexpected': [name for name in shapes if name not in uses and name not in ignored],
        'not floating-point numbers': [f'{name} {dtype}' for name, (_, dtype) in used.items() if dtype not in FLOATS],
        'used twice': [n for n in used if uses[n] > 1 and (alone[n,] > 1 or len(used[n][0]) > 1)],
        'misshapen': [f'{name} {shape}, not {wanted[name]}' for name, shape in misshapen.items()],
        'no source for ours': [name for name in ours if name not in targets],
        'not in our network': [name for name in targets if name not in ours],
        'set twice': [name for name, count in targets.items() if count > 1],
    }
    _raise_listed(problems, path, remedy)
    return source, entries


def assign(model: keras.Model, entries: list[our_net.Entry], variables: Variables, path: str | os.PathLike) -> None:
    """Set every variable of a model once, by the Entries of `fit`.

    Raises:
        UserError: The message lists the variables that are not finite or not set.
    """
    ours, infinite = {variable.path: variable for variable in model.variables}, []
    for entry in entries:
        with np.errstate(over='ignore'):  # a number too large for float32 becomes infinite
            arrays = [np.asarray(variables[name]).astype(np.float32, copy=False) for name in entry.sources]
        array = np.asarray(entry.convert(*arrays), np.float32)
        ours.pop(entry.target).assign(array)
        if not np.isfinite(array).all():
            infinite.append(' + '.join(entry.sources))
    _raise_listed({'with NaN or infinite values': infinite, 'no source for ours': list(ours)}, path, WHOLE)


def to_family(path: str | os.PathLike, output: str | os.PathLike, family: str) -> Source:
    """Write one of our .keras models as a family of TARGETS stores it.

    Of 'torch', the file has torchvision's names, or timm's, those of CIFAR networks akamaster's.

    Returns:
        The Source as which the file will be recognised.

    Raises:
        UserError: No network of the family computes the same. Nothing was written.
    """
    whose, remedy = _WHOSE[family]
    module = _module(family)
    path, target = pathlib.Path(path).expanduser(), output_path(path, output, TARGETS[family])
    if not path.is_file():
        raise UserError(f'there is no file {path}; pass a .keras model')
    model = keras_files.load(path, 'get it again, or pass another')
    if model.get_config()['layers'][0]['class_name'] != 'InputLayer' or len(model.input_shape) != 4:
        raise UserError(f'{path} does not take images [n, h, w, c]; pass one of our models')
    model = rewrite.in_float32(model)
    named, config = module.exported(model)
    if strange := [ours for ours, (name, _) in named.items() if name is None]:
        raise UserError(f'{path} has {_some(strange)}, for which {whose} has no name: {remedy}')
    variables = dict(named.values())
    infinite = [name for name in variables if not np.isfinite(variables[name]).all()]
    _raise_listed({'with NaN or infinite values': infinite}, path, remedy)
    shapes = Listing({name: (array.shape, array.dtype.name) for name, array in variables.items()})
    shapes.config = config
    source, _ = fit(module, shapes, f"{path} in {whose}'s names", remedy=remedy)
    if different := _first_difference(model, _build(source.spec, source.num_classes)):
        raise UserError(f"{path} differs from {whose}'s {source.variant}, {different}: {remedy}")
    verify.verify(model, module, variables, source, remedy=remedy)
    with files.write_errors(f"'{target}'", ', or pass another --output'):
        files.make_folder(target.parent)
        module.write(target, variables, source)
    return source


def _first_difference(model, twin):
    """Return a description of the first difference in what the layers of two models compute, or None."""

    def configs(net) -> dict[str, dict]:
        return {
            layer.name: {key: value for key, value in layer.get_config().items() if not key.endswith(_IRRELEVANT)}
            for layer in net.layers
            if not isinstance(layer, keras.layers.InputLayer)
        }

    ours, theirs = configs(model), configs(twin)
    for name in [*theirs, *ours]:
        if name not in ours or name not in theirs:
            return f'layer {name} is in only one of them'
        for key in ours[name].keys() & theirs[name].keys():
            if ours[name][key] != theirs[name][key]:
                return f'{key} of {name} is {ours[name][key]}, not {theirs[name][key]}'
    return None


def _module(family):
    if family not in FAMILIES:
        raise UserError(f'--source={family} must be one of auto, {", ".join(FAMILIES)}')
    return importlib.import_module(f'checkpoints_tools.from_{family}')


def _with_classes(entries, source, num_classes):
    """Return the Entries for a network of num_classes, which may leave out the background."""
    if num_classes in (None, source.num_classes):
        return entries
    if source.labels != 'imagenet1001' or num_classes != source.num_classes - 1:
        raise UserError(
            f'--num_classes={num_classes}, but the checkpoint has {source.num_classes} classes (labels '
            f'{source.labels}), and only the background of imagenet1001 can be dropped; leave --num_classes out'
        )
    return [
        entry._replace(convert=lambda *arrays, convert=entry.convert: convert(*arrays)[..., 1:])
        if entry.target.startswith('logits/')
        else entry
        for entry in entries
    ]


def _with_statistics(module, selected, source, path, data_dir):
    """Return the variables of a selection with the statistics that it lacks, and what the card says about them."""
    variables = selected.variables(module.read(path))
    if not selected.unstored:
        if data_dir:
            raise UserError(f'{path} has statistics of its batch norms; leave --data_dir out')
        return variables, {}
    if not data_dir:
        raise UserError(
            f'{path} has no moving statistics, because its program normalises by the batch; pass --data_dir, the '
            'folder of its data set, to estimate them from training images'
        )
    found, words = module.estimate(variables, source, data_dir)
    names = [*variables, *selected.unstored]
    return Lazy(names, lambda name: found[name] if name in selected.unstored else variables[name]), {
        'statistics': words
    }


def _without_head(model, entries):
    """Return a network up to the means of its feature maps, float32 [n, features], and the Entries of its variables."""
    with layers.deep_graph():
        model = keras.Model(model.input, model.get_layer('head_pool').output, name=model.name)
    return model, [entry for entry in entries if not entry.target.startswith('logits/')]


def _selected(selected, entries):
    """Return what the card says about the part of a checkpoint that was converted, from which `entries` were made."""
    outside = getattr(selected.shapes, 'outside', {}).keys() - {name for entry in entries for name in entry.sources}
    outside = [name for name in selected.shapes if name in outside]
    chosen = {'weights': selected.weights, 'other_weights': selected.others, 'left_out': outside}
    if selected.stand_in:
        chosen |= {'num_classes': 0, 'labels': 'unknown', 'num_features': selected.num_features}
    return {name: value for name, value in chosen.items() if value not in ((), [])}


def _build(spec, num_classes):
    """Return the network in stock Keras layers, so that its file loads without this package."""
    model = resnet_model.resnet(spec, num_classes, resnet_variants.IMAGE_SHAPES[spec.stem])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):  # like rewrite.to_stock, but without a second set of weights
            layer.__class__ = keras.layers.BatchNormalization
    return model


def _card(source, num_classes, verified, files):
    """Return the content of the card, which describes the model to its users, as JSON values."""
    if num_classes not in (None, source.num_classes):
        source = dataclasses.replace(source, labels='imagenet1000', num_classes=num_classes)
    return dataclasses.asdict(source) | {
        'source_sha256': {file.name: _sha256(file) for file in files},
        'verified': verified,
        'versions': {module.__name__: module.__version__ for module in (official_resnet, tf, keras, np)},
    }


def _sha256(path):
    with open(path, 'rb', opener=files.plain) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _write(model, card, output):
    """Write the card and then the model, atomically, so that a model is never without its card."""
    with files.write_errors(f"'{output}'", ', or pass another --output'):
        files.make_folder(output.parent)
    model_card.write_network(output, model, ', or pass another --output', card)


def _raise_listed(problems, path, remedy):
    """Raise one UserError that lists all problems, {kind: names}, if there are any."""
    if listed := [f'{what}: {_some(names)}' for what, names in problems.items() if names]:
        raise UserError(f'{path} does not fit, {"; ".join(listed)}: {remedy}')


def _some(names):
    names = list(names)
    rest = f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
    return ', '.join(str(name)[:120] for name in names[:MAX_NAMES]) + rest
