"""Write NAME.keras, a network, and NAME.card.json: how images become its input, and what its outputs mean.

    spec          the fields of ResNetSpec
    num_classes   number of outputs
    labels        [name, ...], or 'imagenet1000', 'imagenet1001' (class 0 is the background), 'cifar10', 'unknown'
    ids           optional: [id, ...] of WordNet, one for each label, or null
    input         In a card of our own programs (`write_card`): `normalization`, a name in NORMALIZATIONS; `size`,
                  [h, w] of the network's input; `channels`, 'RGB' or 'grey'; `pad_from`, [h, w] of images that are
                  padded with zeros to `size`, for example MNIST's 28 x 28 to 32 x 32; `exif`, whether images are
                  turned as their EXIF says (default true); `interpolation`: 'bilinear' (the default) or 'bicubic'.
                  In a card of a converted network (checkpoints_tools): the fields of card_reader.Input.

card_reader reads these fields and ignores all others.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from official_resnet import files, resnet_spec

if TYPE_CHECKING:
    import keras


def write_card(
    path: str | os.PathLike,
    spec: resnet_spec.ResNetSpec,
    normalization: str,
    image_shape: Sequence[int],
    input_shape: Sequence[int],
    class_names: Sequence[str],
    num_classes: int | None = None,
    view: Mapping[str, Any] | None = None,
    **others: Any,
) -> None:
    """Write the card of a network that we trained, atomically.

    Args:
        path: NAME.card.json beside NAME.keras.
        spec: The spec of the network.
        normalization: A name in NORMALIZATIONS.
        image_shape: (h, w, c) of the images on which the network was trained.
        input_shape: (h, w, c) of the network's input. If it is larger than image_shape, images are padded.
        class_names: The names of the classes, in the order of the outputs.
        num_classes: Number of outputs, if there are more of them than names.
        view: `exif`, `interpolation`, see above; `resize`, the length to which an image's shorter side is resized
            before image_shape is cropped. Without `resize`, the largest central part of that shape is resized.
        **others: Further fields for other readers.
    """
    channels = 'grey' if input_shape[2] == 1 else 'RGB'
    fields: dict[str, Any] = {'normalization': normalization, 'size': list(input_shape[:2]), 'channels': channels}
    if tuple(image_shape[:2]) != tuple(input_shape[:2]):
        fields['pad_from'] = list(image_shape[:2])
    fields |= {'exif': True, **{name: value for name, value in (view or {}).items() if value is not None}}
    content = {'spec': dataclasses.asdict(spec), 'num_classes': num_classes or len(class_names)}
    content |= {'labels': list(class_names), 'input': fields}
    files.write_text(path, json.dumps(content | others, indent=1) + '\n')


def write_network(path: str | os.PathLike, model: 'keras.Model', remedy: str, card: dict | None = None) -> None:
    """Write a network as a .keras file, without its optimizer: the whole file, or nothing.

    Args:
        path: NAME.keras. A card belongs beside it.
        model: The network. The file loads without this package.
        remedy: What the message of an error says after its advice, for example ' and run the same command again'.
        card: The content of its card, written before the network has its name, so that it is never without a card.

    Raises:
        UserError: The file cannot be written.
    """
    of_training = {name: getattr(model, name) for name in ('compiled', 'optimizer') if hasattr(model, name)}
    try:
        for name in of_training:
            setattr(model, name, None)
        with files.write_errors(f"'{path}'", remedy), files.replacing(path) as part:
            model.save(part)
            if card is not None:
                files.write_text(pathlib.Path(path).with_suffix('.card.json'), json.dumps(card, indent=2) + '\n')
    finally:
        for name, value in of_training.items():
            setattr(model, name, value)
