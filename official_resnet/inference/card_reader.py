"""Read a card: how images become a network's input, and what its outputs mean. model_card describes and writes it."""

import dataclasses
import functools
import json
import operator
import os
import pathlib

from official_resnet import bounds, damage, files, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inputs import datasets, other_datasets
from official_resnet.inputs.affine import affine_name
from official_resnet.inputs.normalization import NORMALIZATIONS

_MAX_SIZE = 4096  # pixels, of each side of a network's input
_MAX_CLASSES = 1_000_000
# For _get_field. 0: the network has no classifier, and returns features.
_NUM_CLASSES = (lambda value: type(value) is int and 0 <= value <= _MAX_CLASSES), f'0..{_MAX_CLASSES}'
REMEDY = 'train or convert the network again to write one'
_TABLES = {'imagenet1000': 1000, 'imagenet1001': 1001, 'cifar10': 10, 'unknown': None}  # name -> number of classes


@dataclasses.dataclass(frozen=True)
class Input:
    """The input of a converted network: (RGB in 0..255, or BGR, times `scale`, minus `mean`) / `std`."""

    channels: str = 'RGB'  # or 'BGR': the order of `mean`, `std` and the network's input
    scale: float = 1.0  # factor of the values 0..255, for example 1 or 1/255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # one number for each channel, as in `std`; subtracted after scaling
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: int = 224  # height and width in pixels, as in the published evaluation
    resize: int | None = 256  # shorter side before the central crop of `size`; None resizes the whole image to `size`
    interpolation: str = 'bilinear'  # or 'bicubic'
    normalization: str | None = None  # a name in NORMALIZATIONS that replaces channels, scale, mean, std
    exif: bool = True  # whether images are turned as EXIF says: yes for a user's own, though training images were not

    @property
    def name(self) -> str:
        """The name in NORMALIZATIONS of the function that turns RGB in 0..255 into the network's input."""
        return self.normalization or affine_name(self.channels, self.scale, self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class Card:
    """How images become a network's input, and what its outputs mean."""

    spec: resnet_spec.ResNetSpec
    num_classes: int  # number of outputs; 0 if they are features
    names: tuple[str, ...]  # names of the classes, in the order of the outputs
    ids: tuple[str | None, ...]  # WordNet's ids of the classes, or None for each
    normalization: str  # a name in NORMALIZATIONS
    num_channels: int  # 3, or 1 for grey
    size: tuple[int, int]  # (h, w) of the crop that is taken from an image
    net_size: tuple[int, int]  # (h, w) of the network's input; zeros surround a smaller crop
    # 'cover' resizes the largest central part that has the shape of `size`. 'squash' resizes the whole image. A number
    # is the length to which the shorter side is resized before `size` is cropped from the centre.
    resize: int | str = 'cover'
    interpolation: str = 'bilinear'  # or 'bicubic', antialiased
    experiment: dict | None = None  # what a special block function changes, see experiments.blocks
    uses_exif: bool = True  # whether an image is turned as its EXIF says

    @property
    def has_names(self) -> bool:
        """Whether the card names classes, other than by their numbers."""
        return any(name != f'class {i}' for i, name in enumerate(self.names))

    @property
    def known_ids(self) -> tuple[str | None, ...] | None:
        """The ids, or None if no class has one."""
        return self.ids if any(self.ids) else None


def read_card(path: str | os.PathLike) -> Card:
    """Return the card in a file.

    Raises:
        UserError: The file is missing or damaged. The message names the field.
    """
    path = pathlib.Path(path)
    with files.read_errors(path, f'only this card says how images become the input of the network; {REMEDY}'):
        text = files.read_bytes(path, 'json_bytes')
    with damage.reported(path, REMEDY, 'the card '):
        return _card(path, json.loads(text))


def require_buildable(spec: resnet_spec.ResNetSpec, source: str | os.PathLike) -> None:
    """Raise UserError if the network of a spec that `source` holds has more layers or weights than anybody builds."""
    what, longest = f"the network of '{source}'", 1 << 64  # so that a message does not print a number without end
    bounds.require('network_layers', min(spec.resnet_size, longest), what, REMEDY)
    before, weights, most = spec.stem_filters or spec.filters, 0, bounds.limit('network_weights')
    for group, blocks in enumerate(spec.group_blocks):
        convolutions = resnet_spec.block_convolutions(spec, spec.filters_of(group), stride=1)
        inside = sum(  # of each block but the first
            one.kernel**2 * last.filters * one.filters // one.cardinality
            for last, one in zip((convolutions[-1], *convolutions), convolutions, strict=False)
        )
        weights += blocks * inside + before * convolutions[-1].filters * spec.projection_kernel**2
        before = convolutions[-1].filters
        if weights > most:
            break
    bounds.require('network_weights', min(weights, longest), what, REMEDY)


def _card(path, content):
    """Return the card of parsed JSON."""
    if not isinstance(content, dict):
        raise UserError(f'the card {path} is not a JSON object; {REMEDY}')
    get = functools.partial(_get_field, path, content)
    num_classes = get('num_classes', *_NUM_CLASSES)
    words = f'at most {num_classes} names, or one of {", ".join(_TABLES)} that has {num_classes} classes'
    labels = get('labels', lambda labels: _are_labels(labels, num_classes), words)
    rows = [(None, name) for name in labels] if isinstance(labels, list) else _label_rows(labels)
    ids = get('ids', lambda ids: _are_ids(ids, len(rows)), f'{len(rows)} ids or nulls', is_optional=True)
    rows = rows if ids is None else [(key, name) for key, (_, name) in zip(ids, rows, strict=True)]
    rows += [(None, f'class {i}') for i in range(len(rows), num_classes)]  # if the list is shorter
    ids, names = zip(*rows, strict=True) if rows else ((), ())
    fields = get('input', lambda value: isinstance(value, dict), 'an object')
    convention = _converted_input(get) if 'scale' in fields else _own_input(get)
    experiment = get('experiment', lambda value: isinstance(value, dict), 'an object', is_optional=True)
    exif = get('input.exif', lambda value: isinstance(value, bool), 'true or false', is_optional=True)
    spec = get('spec', lambda value: True, '')
    try:
        spec = resnet_spec.ResNetSpec.from_json(spec)
    except Exception as error:
        if not damage.is_damage(error):
            raise
        raise UserError(f'the card {path} has a wrong spec ({damage.reason(error)}); {REMEDY}') from error
    require_buildable(spec, path)
    return Card(spec, num_classes, names, ids, **convention, experiment=experiment, uses_exif=exif is not False)


def with_names(card: Card, path: str | os.PathLike) -> Card:
    """Return the card with the class names of a UTF-8 text file that has one name on each line.

    Raises:
        UserError: The file cannot be read, or its number of lines is not the network's number of classes.
    """
    remedy = 'pass a file with the name of a class on each line'
    try:
        names = tuple(files.read_text(path).splitlines())
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the names of the classes in '{path}': it is not UTF-8 text; {remedy}") from error
    except OSError as error:
        reason = f'{error.strerror}; {files.advice(error, remedy)}'
        raise UserError(f"cannot read the names of the classes in '{path}': {reason}") from error
    if len(names) != card.num_classes:
        raise UserError(f"'{path}' has {len(names)} lines, but the network has {card.num_classes} classes; {remedy}")
    return dataclasses.replace(card, names=names, ids=(None,) * len(names))


def _converted_input(get):
    """Return fields of Card for a converted network; `get` is _get_field of its card."""
    values = {name: get(f'input.{name}', *check) for name, check in INPUT_CHECKS.items()}
    values['resize'] = get('input.resize', *_resize_from(values['size']))
    convention = Input(**values, normalization=get('input.normalization', *_NORMALIZATION, is_optional=True))
    fields = {'normalization': convention.name, 'num_channels': 3, 'resize': convention.resize or 'squash'}
    size = (convention.size, convention.size)
    return fields | {'interpolation': convention.interpolation, 'size': size, 'net_size': size}


def _are_labels(labels, num_classes):
    if isinstance(labels, list):
        return len(labels) <= num_classes and all(isinstance(name, str) for name in labels)
    return isinstance(labels, str) and _TABLES.get(labels, 0) in (num_classes, None)


def _are_ids(ids, count):
    return isinstance(ids, list) and len(ids) == count and all(key is None or isinstance(key, str) for key in ids)


def _is_number(value):
    return type(value) in (int, float) and abs(value) < 1e30  # finite, also as float32


def _are_numbers(values):
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


def _get_field(path, content, name, is_right, right, is_optional=False):
    """Return a field of a card, for example 'input.size', or None if it is optional and missing.

    If the field is missing or is_right(value) is false, raise UserError. `right` describes the allowed values.
    """
    parent, _, key = name.rpartition('.')
    fields = content[parent] if parent else content
    value = fields.get(key)
    if value is None and is_optional:
        return None
    if key not in fields:
        raise UserError(f'the card {path} has no {name}; {REMEDY}')
    if not is_right(value):
        raise UserError(f'the card {path} has {name} {json.dumps(value):.60}, not {right}; {REMEDY}')
    return value


def _own_input(get):
    """Return fields of Card for a network that we trained; `get` is _get_field of its card."""
    channels = get('input.channels', ('RGB', 'grey').__contains__, "'RGB' or 'grey'")
    net_size = get('input.size', _is_size, f'[height, width], each 1..{_MAX_SIZE}')
    is_inside = (lambda size: _is_size(size) and all(map(operator.le, size, net_size))), f'[h, w], at most {net_size}'
    size = get('input.pad_from', *is_inside, is_optional=True) or net_size
    normalization = get('input.normalization', *_NORMALIZATION)
    resize = get('input.resize', *_resize_from(max(size)), is_optional=True) or 'cover'
    fields = {'normalization': normalization, 'num_channels': 3 if channels == 'RGB' else 1, 'resize': resize}
    fields['interpolation'] = get('input.interpolation', *INPUT_CHECKS['interpolation'], is_optional=True) or 'bilinear'
    return fields | {'size': tuple(size), 'net_size': tuple(net_size)}


def _resize_from(least):
    """Return _get_field's `is_right` and `right` for a `resize` before a crop of `least` pixels."""
    return lambda resize: resize is None or is_side(resize) and resize >= least, f'null or {least}..{_MAX_SIZE}'


def is_side(value):
    """Return whether a value of a card is a possible height or width in pixels."""
    return type(value) is int and 1 <= value <= _MAX_SIZE


def _is_size(size):
    return isinstance(size, list) and len(size) == 2 and all(map(is_side, size))


def _is_normalization(name):
    try:
        return NORMALIZATIONS[name] is not None
    except (KeyError, TypeError, AttributeError):
        return False


_NORMALIZATION = _is_normalization, f'one of {", ".join(NORMALIZATIONS)}'
# Field of the input -> (check of its value, description of the allowed values).
INPUT_CHECKS = {
    'channels': (('RGB', 'BGR').__contains__, "'RGB' or 'BGR'"),
    'scale': (lambda scale: _is_number(scale) and scale > 0, 'a number above 0'),
    'mean': (_are_numbers, 'three numbers'),
    'std': (lambda std: _are_numbers(std) and min(std) > 0, 'three numbers above 0'),
    'size': (is_side, f'1..{_MAX_SIZE}'),
    'interpolation': (('bilinear', 'bicubic').__contains__, "'bilinear' or 'bicubic'"),
}


def _label_rows(table):
    """Return [(id, name), ...] of a named table, or [] for 'unknown'."""
    if table == 'cifar10':
        return [(None, name) for name in datasets.CIFAR10.class_names]
    rows = list(other_datasets.imagenet_classes())
    return {'imagenet1000': rows, 'imagenet1001': [(None, 'background'), *rows], 'unknown': []}[table]
