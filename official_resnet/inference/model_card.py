"""The card beside a .keras file, NAME.card.json: how images become its input, and what its outputs are called.

    spec          fields of ResNetSpec
    num_classes   outputs
    labels        [name, ...], or 'imagenet1000', 'imagenet1001' (0 is the background), 'cifar10', 'unknown'
    input         of our own programs (`write_card`): `normalization`, a name in NORMALIZATIONS;
                  `size`, [h, w] of the net's input; `channels`, 'RGB' or 'grey'; `pad_from`, [h, w] of the
                  images that zeros around them bring to `size`, as MNIST's 28 x 28 to 32 x 32
                  of a converted net (checkpoints_tools): the fields of card_reader.Input

card_reader reads it. What else the writers of a card know is not read there.
"""

import dataclasses
import functools
import json
import operator
import os
from collections.abc import Callable, Sequence

from official_resnet import files, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inputs.normalization import NORMALIZATIONS

MAX_SIZE = 4096  # of a net's input, pixels a side
MAX_CLASSES = 1_000_000
NUM_CLASSES = (lambda value: type(value) is int and 1 <= value <= MAX_CLASSES), f'1..{MAX_CLASSES}'  # for get_field
REMEDY = 'train or convert the net again, which writes one'


def write_card(
    path: str | os.PathLike,
    spec: resnet_spec.ResNetSpec,
    normalization: str,
    image_shape: Sequence[int],
    input_shape: Sequence[int],
    class_names: Sequence[str],
    num_classes: int | None = None,
    resize: int | None = None,
    **others,
):
    """Write the card of a net of our own, whole or not at all.

    Args:
        path: NAME.card.json beside NAME.keras.
        normalization: a name in NORMALIZATIONS.
        image_shape: (h, w, c) of the images it was trained on.
        input_shape: (h, w, c) of its input; where larger, images are padded.
        num_classes: where the net has more outputs than there are names.
        resize: what the shorter side of an image is resized to before image_shape is cut out; None for the whole.
        **others: further fields, for other readers.

    Raises:
        UserError: no card could say this; nothing was written.
    """
    channels = 'grey' if input_shape[2] == 1 else 'RGB'
    fed = {'normalization': normalization, 'size': list(input_shape[:2]), 'channels': channels}
    if tuple(image_shape[:2]) != tuple(input_shape[:2]):
        fed['pad_from'] = list(image_shape[:2])
    if resize:
        fed['resize'] = resize
    num_classes = num_classes or len(class_names)
    content = {'spec': dataclasses.asdict(spec), 'num_classes': num_classes, 'labels': list(class_names), 'input': fed}
    get = functools.partial(get_field, path, content)
    get('num_classes', *NUM_CLASSES)
    get('labels', lambda names: len(names) <= num_classes, f'at most {num_classes} names')
    own_input(get)
    files.write_text(path, json.dumps(content | others, indent=1) + '\n')


def get_field(path: str | os.PathLike, content: dict, name: str, is_right: Callable, right: str, is_optional=False):
    """Return a field of a card, as 'input.size', for which is_right(value) holds; None of one that may be missing.

    Raises:
        UserError: there is none, or a wrong one; `right` says what would be right.
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


def own_input(get: Callable) -> dict:
    """Return the fields of card_reader.Card of a net of our own; `get` is get_field of its card."""
    channels = get('input.channels', ('RGB', 'grey').__contains__, "'RGB' or 'grey'")
    net_size = get('input.size', _is_size, f'[height, width], each 1..{MAX_SIZE}')
    is_inside = (lambda size: _is_size(size) and all(map(operator.le, size, net_size))), f'[h, w], at most {net_size}'
    size = get('input.pad_from', *is_inside, is_optional=True) or net_size
    normalization = get('input.normalization', *NORMALIZATION)
    resize = get('input.resize', *resize_from(max(size)), is_optional=True) or 'cover'
    fields = {'normalization': normalization, 'num_channels': 3 if channels == 'RGB' else 1, 'resize': resize}
    return fields | {'size': tuple(size), 'net_size': tuple(net_size)}


def resize_from(least: int) -> tuple[Callable, str]:
    """Return for get_field what a shorter side may be resized to before `least` pixels are cut out of it."""
    return lambda resize: resize is None or is_side(resize) and resize >= least, f'null or {least}..{MAX_SIZE}'


def is_side(value) -> bool:
    """Return whether a value of a card is a number of pixels."""
    return type(value) is int and 1 <= value <= MAX_SIZE


def _is_size(size):
    return isinstance(size, list) and len(size) == 2 and all(map(is_side, size))


def _is_normalization(name):
    try:
        return NORMALIZATIONS[name] is not None
    except (KeyError, TypeError, AttributeError):
        return False


NORMALIZATION = _is_normalization, f'one of {", ".join(NORMALIZATIONS)}'
