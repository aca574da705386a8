"""Classify images with a trained network and its card."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from official_resnet import checkpoints, layers
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, keras_files, network_files
from official_resnet.inputs import augmentation
from official_resnet.inputs.images import PREDICTION, decode
from official_resnet.inputs.normalization import NORMALIZATIONS

ImageLike = str | pathlib.Path | Image.Image | np.ndarray  # what can be classified: a file, a PIL image or pixels


class Guess(NamedTuple):
    """A class that an image may belong to. The id is WordNet's, for example 'n01440764', or None."""

    index: int  # type: ignore[assignment]  # the name of a method of tuples
    name: str
    id: str | None
    probability: float


def load(
    path: str | os.PathLike, use_weights: str = 'average', needs_head: bool = True
) -> tuple[keras.Model, card_reader.Card]:
    """Return the network of a .keras file, a model_dir or a checkpoint in it, and its card.

    A model_dir stands for its model.keras, which is written when a run ends, or else for its newest checkpoint.
    The network of the best test accuracy is model_dir/best.keras. If the training averaged its weights, the network has
    the averages; with use_weights='plain', it has the weights themselves, from the newest checkpoint.
    The network maps images [n, h, w, c], as network_input makes them, to logits [n, num_classes]. With
    needs_head=False it may have no classifier; then card.num_classes is 0, and it returns features.

    >>> model, card = load('demo_model')
    >>> card.num_classes
    10

    Raises:
        UserError: The network or its card is missing or damaged, or they do not belong together.
    """
    path, card, source, weights, _ = network_files.find(path, use_weights, needs_head)
    fast = {'BatchNormalization': layers.BatchNormalization}  # in place of Keras' own
    if weights is None:
        model = keras_files.load(path, network_files.REMEDY, fast)
    else:
        model = keras_files.from_json(source, weights, network_files.REMEDY, fast)
        checkpoints.assign(checkpoints.named(model), weights, path)
    shapes = [tensor.shape for tensor in (*model.inputs, *model.outputs)]
    expected = [(None, *card.net_size, card.num_channels), (None, card.num_classes or None)]
    fit = (tf.TensorShape(want).is_compatible_with(shape) for want, shape in zip(expected, shapes, strict=False))
    if len(shapes) != 2 or not all(fit):
        said = f'has inputs and outputs {shapes}, but its card has {expected}'
        raise UserError(f'{path} {said}; {card_reader.REMEDY}')
    return model, card


def predict(
    model: Callable[..., tf.Tensor], card: card_reader.Card, images: Sequence[ImageLike], top: int = 5
) -> list[list[Guess]]:
    """Return the likeliest classes of each image, the likeliest first.

    >>> model, card = resnet.load('demo_model')
    >>> images = np.zeros((1, 32, 32, 3), 'uint8')
    >>> [[guess]] = predict(model, card, images, top=1)
    >>> guess.name in card.names
    True

    Args:
        model: The network from `load`, or what rewrite.compile_model makes of it.
        card: The card from `load`.
        images: Files, PIL images or arrays, see `prepare`. They are processed in one batch.
        top: Number of classes for each image. All of them are returned if there are fewer.

    Raises:
        UserError: An image cannot be read, or the network's outputs are not finite.
    """
    if not len(images):
        return []
    return guesses(card, probabilities(model, card, np.stack([prepare(image, card) for image in images])), top)


def prepare(source: ImageLike, card: card_reader.Card) -> np.ndarray:
    """Return an image as the network sees it before normalisation, uint8 [h, w, c] of card.size.

    An image is turned as its EXIF says if card.uses_exif. Only the first frame of an animation counts, transparency is
    ignored, and 16-bit values lose their lower byte, as in training; see inputs.images.

    Args:
        source: A path, a PIL image, or an array uint8 [h, w, c] or [h, w], of any size.
        card: The card of the network.

    Raises:
        UserError: The image cannot be read. The message has its path if it has one.
    """
    mode, rules = 'RGB' if card.num_channels == 3 else 'L', dataclasses.replace(PREDICTION, uses_exif=card.uses_exif)
    least = max(card.size) if isinstance(card.resize, str) else card.resize
    try:
        pixels = decode(source, rules, mode, functools.partial(_resized, card=card), least)
    except ValueError as error:
        name = f"'{source}'" if isinstance(source, (str, pathlib.Path)) else 'the image'
        raise UserError(f'cannot read {name}: {error}') from error
    return pixels.reshape(*card.size, card.num_channels)


def _resized(image, card):
    """Return the part of an image that the network sees, resized: uint8 [h, w, c] or [h, w]."""
    (width, height), (rows, columns) = image.size, card.size
    # Only the part that is needed, `box`, is resized. Resizing a 1 x 5000 image as a whole could fill the memory.
    left, top, box_width, box_height = 0.0, 0.0, float(width), float(height)  # pixels
    if card.resize == 'cover':
        scale = min(width / columns, height / rows)
        box_width, box_height = scale * columns, scale * rows
        left, top = (width - box_width) / 2, (height - box_height) / 2
    elif isinstance(card.resize, int):  # rounded as in torchvision's Resize and CenterCrop
        new_width, new_height = (card.resize * side // min(width, height) for side in (width, height))
        left = round((new_width - columns) / 2) * width / new_width
        top = round((new_height - rows) / 2) * height / new_height
        box_width, box_height = columns * width / new_width, rows * height / new_height
    box = max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height)
    return np.asarray(image.resize((columns, rows), Image.Resampling[card.interpolation.upper()], box=box))


def encoded_view(card: card_reader.Card) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return `prepare` as a function of tensors: (encoded image, string []) -> uint8 [h, w, c]."""
    return lambda image: tf.ensure_shape(
        tf.numpy_function(lambda data: prepare(data, card), [image], tf.uint8), [*card.size, card.num_channels]
    )


def network_input(card: card_reader.Card, images: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Return prepared images, uint8 [n, h, w, c], padded and normalised: float32 [n, *card.net_size, c]."""
    return NORMALIZATIONS[card.normalization](augmentation.pad_to(tf.convert_to_tensor(images), *card.net_size))


def probabilities(model: Callable[..., tf.Tensor], card: card_reader.Card, images: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float32 [n, num_classes], for prepared images, uint8 [n, h, w, c].

    Raises:
        UserError: The network's outputs are not finite.
    """
    result = tf.nn.softmax(tf.cast(model(network_input(card, images)), tf.float32)).numpy()
    if not np.isfinite(result).all():
        raise UserError('the outputs of the network are not finite: its training diverged; train it again')
    return result


def guesses(card: card_reader.Card, rows: np.ndarray, top: int = 5) -> list[list[Guess]]:
    """Return the likeliest classes of each row of probabilities [n, num_classes], the likeliest first."""
    return [
        [Guess(int(i), card.names[i], card.ids[i], float(row[i])) for i in np.argsort(-row, kind='stable')[:top]]
        for row in rows
    ]
