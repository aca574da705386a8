"""Read a card: what images become, and what outputs mean. model_card says what stands in one, and writes it."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable

from official_resnet import resnet_spec
from official_resnet.errors import UserError
from official_resnet.inference.model_card import (
    MAX_CLASSES,
    NORMALIZATION,
    REMEDY,
    SIDES,
    get_field,
    is_side,
    own_input,
    resize_from,
)
from official_resnet.inputs import datasets, other_datasets
from official_resnet.inputs.affine import affine_name

_TABLES = {'imagenet1000': 1000, 'imagenet1001': 1001, 'cifar10': 10, 'unknown': None}  # name -> its classes


@dataclasses.dataclass(frozen=True)
class Input:
    """What a converted net is fed: an image in RGB and 0..255 in another order, times `scale`, less `mean`, by `std`.

    Attributes:
        channels: 'RGB' or 'BGR', the order of `mean`, `std` and the net's input.
        scale: of values in 0..255, as 1 or 1/255.
        mean, std: a number a channel, after `scale`.
        size: height and width, pixels, of the published evaluation.
        resize: shorter side before the central crop of `size`; None resizes the whole image to `size`.
        interpolation: 'bilinear' or 'bicubic'.
        normalization: a name in NORMALIZATIONS, in place of channels, scale, mean and std where they cannot say it.
    """

    channels: str = 'RGB'
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: int = 224
    resize: int | None = 256
    interpolation: str = 'bilinear'
    normalization: str | None = None

    @property
    def name(self) -> str:
        """The name in NORMALIZATIONS of what turns RGB in 0..255 into the net's input."""
        return self.normalization or affine_name(self.channels, self.scale, self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class Card:
    """What a net makes of pictures, and what its outputs mean.

    Attributes:
        spec: ResNetSpec.
        num_classes: outputs.
        names: of the classes, in their order; ids: WordNet's, or None for each.
        normalization: a name in NORMALIZATIONS.
        num_channels: 3, or 1 for grey.
        size: (h, w) of what is cut out of a picture.
        net_size: (h, w) of the net's input; zeros fill the rest.
        resize: 'cover' cuts the largest middle of the shape of `size` and resizes it; 'squash' resizes the whole;
            a number resizes the shorter side to it, then cuts `size` out of the middle.
        interpolation: 'bilinear' or 'bicubic', antialiased.
        experiment: what a block function of its own changes of the net; None if it has none.
    """

    spec: resnet_spec.ResNetSpec
    num_classes: int
    names: tuple
    ids: tuple
    normalization: str
    num_channels: int
    size: tuple
    net_size: tuple
    resize: int | str = 'cover'
    interpolation: str = 'bilinear'
    experiment: dict | None = None


def read_card(path: str | os.PathLike) -> Card:
    """Return the Card in a file.

    Raises:
        UserError: it is missing or damaged; says where.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(
            f'there is no card {path}, and without it nobody knows what images the net wants; {REMEDY}'
        ) from None
    except OSError as error:
        raise UserError(f'cannot read the card {path}: {error.strerror}; {REMEDY}') from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f'the card {path} is no JSON object; {REMEDY}')
    get = functools.partial(get_field, path, content)
    num_classes = get('num_classes', lambda n: type(n) is int and 1 <= n <= MAX_CLASSES, f'1..{MAX_CLASSES}')
    words = f'at most {num_classes} names, or one of {", ".join(_TABLES)} that has {num_classes} classes'
    labels = get('labels', lambda labels: _are_labels(labels, num_classes), words)
    rows = [(None, name) for name in labels] if isinstance(labels, list) else _label_rows(labels)
    rows += [(None, f'class {i}') for i in range(len(rows), num_classes)]  # those beyond a list are called so
    ids, names = zip(*rows, strict=True)
    fed = get('input', lambda fed: isinstance(fed, dict), 'an object')
    convention = _converted_input(get) if 'scale' in fed else own_input(get)
    experiment = get('experiment', lambda value: value is None or isinstance(value, dict), 'an object', default=None)
    spec = get('spec', *_ANYTHING)
    try:
        spec = resnet_spec.ResNetSpec.from_json(spec)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f'the card {path} has a spec of no net ({error}); {REMEDY}') from error
    return Card(spec, num_classes, names, ids, **convention, experiment=experiment)


def with_names(card: Card, path: str | os.PathLike) -> Card:
    """Return the card with the class names of a text file, one a line.

    Raises:
        UserError: it cannot be read, or has another number of lines than the net classes.
    """
    remedy = 'pass a file with the name of a class on each line'
    try:
        names = tuple(pathlib.Path(path).expanduser().read_text(encoding='utf-8-sig').splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', 'it is no text in UTF-8')
        raise UserError(f"cannot read the names of the classes in '{path}': {reason}; {remedy}") from error
    if len(names) != card.num_classes:
        raise UserError(f"'{path}' has {len(names)} lines, the net {card.num_classes} classes; {remedy}")
    return dataclasses.replace(card, names=names, ids=(None,) * len(names))


def _converted_input(get: Callable) -> dict:
    """Return fields of Card of a converted net; `get` is get_field of its card."""
    values = {name: get(f'input.{name}', *check) for name, check in _CONVERTED.items()}
    values['resize'] = get('input.resize', *resize_from(values['size']))
    if get('input.normalization', *_ANYTHING, default=None) is not None:
        values['normalization'] = get('input.normalization', *NORMALIZATION)
    fed = Input(**values)
    return {
        'normalization': fed.name,
        'num_channels': 3,
        'size': (fed.size, fed.size),
        'net_size': (fed.size, fed.size),
        'resize': fed.resize or 'squash',
        'interpolation': fed.interpolation,
    }


def _are_labels(labels, num_classes):
    if isinstance(labels, list):
        return len(labels) <= num_classes and all(isinstance(name, str) for name in labels)
    return isinstance(labels, str) and _TABLES.get(labels, 0) in (num_classes, None)


def _is_number(value):
    return type(value) in (int, float) and abs(value) < 1e30  # finite, also as float32


def _are_numbers(values):
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


# Fields of the input: which values are right, and how that is said.
_ANYTHING = lambda value: True, ''
_CONVERTED = {
    'channels': (('RGB', 'BGR').__contains__, "'RGB' or 'BGR'"),
    'scale': (lambda scale: _is_number(scale) and scale > 0, 'a number above 0'),
    'mean': (_are_numbers, 'three numbers'),
    'std': (lambda std: _are_numbers(std) and min(std) > 0, 'three numbers above 0'),
    'size': (is_side, SIDES),
    'interpolation': (('bilinear', 'bicubic').__contains__, "'bilinear' or 'bicubic'"),
}


def _label_rows(table):
    """Return [(id, name), ...] of a named table, [] of 'unknown'."""
    if table == 'cifar10':
        return [(None, name) for name in datasets.CIFAR10.class_names]
    rows = list(other_datasets.imagenet_classes())
    return {'imagenet1000': rows, 'imagenet1001': [(None, 'background'), *rows], 'unknown': []}[table]
