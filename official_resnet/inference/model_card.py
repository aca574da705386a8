"""The card NAME.card.json beside NAME.keras: how images become the network's input, and what its outputs mean.

    spec          the fields of ResNetSpec
    num_classes   number of outputs
    labels        [name, ...], or 'imagenet1000', 'imagenet1001' (class 0 is the background), 'cifar10', 'unknown'
    input         In a card of our own programs (`write_card`): `normalization`, a name in NORMALIZATIONS; `size`,
                  [h, w] of the network's input; `channels`, 'RGB' or 'grey'; `pad_from`, [h, w] of images that are
                  padded with zeros to `size`, for example MNIST's 28 x 28 to 32 x 32.
                  In a card of a converted network (checkpoints_tools): the fields of card_reader.Input.

card_reader reads these fields and ignores all others.
"""

import dataclasses
import functools
import json
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

from official_resnet import files, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inputs.normalization import NORMALIZATIONS

MAX_SIZE = 4096  # pixels, of each side of a network's input
MAX_CLASSES = 1_000_000
NUM_CLASSES = (lambda value: type(value) is int and 1 <= value <= MAX_CLASSES), f'1..{MAX_CLASSES}'  # for get_field
REMEDY = 'train or convert the network again to write one'


def write_card(
    path: str | os.PathLike,
    spec: resnet_spec.ResNetSpec,
    normalization: str,
    image_shape: Sequence[int],
    input_shape: Sequence[int],
    class_names: Sequence[str],
    num_classes: int | None = None,
    resize: int | None = None,
    **others: Any,
) -> None:
    """Write the card of a network that we trained, whole or not at all.

    Args:
        path: NAME.card.json beside NAME.keras.
        spec: The spec of the network.
        normalization: A name in NORMALIZATIONS.
        image_shape: (h, w, c) of the images on which the network was trained.
        input_shape: (h, w, c) of the network's input. If it is larger than image_shape, images are padded.
        class_names: The names of the classes, in the order of the outputs.
        num_classes: Number of outputs, if there are more of them than names.
        resize: Length to which an image's shorter side is resized before image_shape is cropped. None resizes the
            largest central part of that shape.
        **others: Further fields for other readers.

    Raises:
        UserError: A value is wrong. Nothing was written.
    """
    channels = 'grey' if input_shape[2] == 1 else 'RGB'
    fed: dict[str, Any] = {'normalization': normalization, 'size': list(input_shape[:2]), 'channels': channels}
    if tuple(image_shape[:2]) != tuple(input_shape[:2]):
        fed['pad_from'] = list(image_shape[:2])
    if resize:
        fed['resize'] = resize
    num_classes = num_classes or len(class_names)
    labels = list(class_names)
    content = {'spec': dataclasses.asdict(spec), 'num_classes': num_classes, 'labels': labels, 'input': fed}
    get = functools.partial(get_field, path, content)
    get('num_classes', *NUM_CLASSES)
    get('labels', lambda names: len(names) <= num_classes, f'at most {num_classes} names')
    own_input(get)
    files.write_text(path, json.dumps(content | others, indent=1) + '\n')


def get_field(
    path: str | os.PathLike,
    content: dict[str, Any],
    name: str,
    is_right: Callable[[Any], bool],
    right: str,
    is_optional: bool = False,
) -> Any:
    """Return a field of a card, for example 'input.size', or None if it is optional and missing.

    Raises:
        UserError: The field is missing, or is_right(value) is false. The words `right` describe the right values.
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


def own_input(get: Callable[..., Any]) -> dict[str, Any]:
    """Return fields of card_reader.Card for a network that we trained; `get` is get_field of its card."""
    channels = get('input.channels', ('RGB', 'grey').__contains__, "'RGB' or 'grey'")
    net_size = get('input.size', _is_size, f'[height, width], each 1..{MAX_SIZE}')
    is_inside = (lambda size: _is_size(size) and all(map(operator.le, size, net_size))), f'[h, w], at most {net_size}'
    size = get('input.pad_from', *is_inside, is_optional=True) or net_size
    normalization = get('input.normalization', *NORMALIZATION)
    resize = get('input.resize', *resize_from(max(size)), is_optional=True) or 'cover'
    fields = {'normalization': normalization, 'num_channels': 3 if channels == 'RGB' else 1, 'resize': resize}
    return fields | {'size': tuple(size), 'net_size': tuple(net_size)}


def resize_from(least: int) -> tuple[Callable[[Any], bool], str]:
    """Return get_field's `is_right` and `right` for a `resize` before a crop of `least` pixels."""
    return lambda resize: resize is None or is_side(resize) and resize >= least, f'null or {least}..{MAX_SIZE}'


def is_side(value: Any) -> bool:
    """Return whether a value of a card is a possible height or width in pixels."""
    return type(value) is int and 1 <= value <= MAX_SIZE


def _is_size(size):
    return isinstance(size, list) and len(size) == 2 and all(map(is_side, size))


def _is_normalization(name):
    try:
        return NORMALIZATIONS[name] is not None
    except (KeyError, TypeError, AttributeError):
        return False


NORMALIZATION = _is_normalization, f'one of {", ".join(NORMALIZATIONS)}'
