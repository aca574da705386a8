"""Images -> names by a trained net and its card."""

import collections
import pathlib
import zlib
from zipfile import BadZipFile

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from official_resnet import layers
from official_resnet.errors import UserError
from official_resnet.inference import card_reader
from official_resnet.inputs import augmentation
from official_resnet.inputs.images import PREDICTION, decode
from official_resnet.inputs.normalization import NORMALIZATIONS

# One of the classes an image may belong to; id is WordNet's ('n01440764'), or None.
Guess = collections.namedtuple('Guess', 'index name id probability')
# What Keras raises for files that are cut short, changed, or something else.
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, zlib.error, BadZipFile)


def load(path):
    """Return (keras.Model of images [n, h, w, c], its Card) of a .keras file or of a training program's model_dir.

    Raises:
        UserError: there is no net or no card, one is damaged, or they do not belong together.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        path = path / 'model.keras'
        if not path.is_file():
            remedy = 'which the end of a training writes; let the training end, or pass a .keras file'
            raise UserError(f"'{path.parent}' has no model.keras, {remedy}")
    if path.suffix != '.keras' or not path.is_file():
        raise UserError(f"'{path}' is no .keras file and no model_dir; pass one of them")
    card = card_reader.read_card(path.with_suffix('.card.json'))
    try:
        with layers.deep_graph():
            model = keras.models.load_model(path, compile=False)
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'cannot load {path}: {reason[:200]}; pass a .keras model of ours') from error
    shapes = [tensor.shape for tensor in (*model.inputs, *model.outputs)]
    expected = [(None, *card.net_size, card.num_channels), (None, card.num_classes)]
    fit = (tf.TensorShape(want).is_compatible_with(shape) for want, shape in zip(expected, shapes, strict=False))
    if len(shapes) != 2 or not all(fit):
        said = f'inputs and outputs {shapes}, its card says {expected}'
        raise UserError(f'{path} has {said}: they do not belong together; {card_reader.REMEDY}')
    return model, card


def predict(model, card, pictures, top=5):
    """Return the `top` likeliest classes of each image: [[Guess, ...], ...].

    Args:
        model, card: from `load`; for `model` also what `compile_model` makes of it.
        pictures: what `prepare` takes; all in one batch.
        top: as many as there are classes, if fewer.

    Raises:
        UserError: an image cannot be read, or the net gives no numbers.
    """
    if not len(pictures):
        return []
    return guesses(card, probabilities(model, card, np.stack([prepare(picture, card) for picture in pictures])), top)


def prepare(picture, card):
    """Return an image as the net is to see it before normalisation: uint8 [h, w, c] of card.size.

    Turned as EXIF says; the first frame of an animation; transparency ignored; 16-bit grey by its upper byte: all as
    image_folder has it for training.

    Args:
        picture: a path, a PIL image, or an array uint8 [h, w, c] or [h, w], of any size.
        card: card_reader.Card.

    Raises:
        UserError: it cannot be read; names it, if it is a path.
    """
    try:
        image = decode(picture, PREDICTION, 'RGB' if card.num_channels == 3 else 'L')
    except ValueError as error:
        name = f"'{picture}'" if isinstance(picture, (str, pathlib.Path)) else 'the image'
        raise UserError(f'cannot read {name}: {error}') from error
    (width, height), (rows, columns) = image.size, card.size
    # One resizing of a part, `box`, not a resizing and a cut: an image of 1 x 5000 would fill the memory in between.
    left, top, box_width, box_height = 0, 0, width, height  # float pixels
    if card.resize == 'cover':
        scale = min(width / columns, height / rows)
        box_width, box_height = scale * columns, scale * rows
        left, top = (width - box_width) / 2, (height - box_height) / 2
    elif card.resize != 'squash':  # rounded as torchvision's Resize and CenterCrop do it
        new_width, new_height = (card.resize * side // min(width, height) for side in (width, height))
        left = round((new_width - columns) / 2) * width / new_width
        top = round((new_height - rows) / 2) * height / new_height
        box_width, box_height = columns * width / new_width, rows * height / new_height
    box = max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height)
    image = image.resize((columns, rows), Image.Resampling[card.interpolation.upper()], box=box)
    return np.asarray(image).reshape(rows, columns, card.num_channels)


def encoded_view(card):
    """Return the function (encoded image, string []) -> uint8 [h, w, c], a tensor, that is `prepare`."""
    return lambda picture: tf.ensure_shape(
        tf.numpy_function(lambda data: prepare(data, card), [picture], tf.uint8), [*card.size, card.num_channels]
    )


def network_input(card, images):
    """Return prepared images, uint8 [n, h, w, c], as the net is fed them: float32 [n, *card.net_size, c]."""
    return NORMALIZATIONS[card.normalization](augmentation.pad_to(tf.constant(images), *card.net_size))


def probabilities(model, card, images):
    """Return float32 [n, num_classes] of prepared images, uint8 [n, h, w, c].

    Raises:
        UserError: the net gives no finite numbers.
    """
    result = tf.nn.softmax(tf.cast(model(network_input(card, images)), tf.float32)).numpy()
    if not np.isfinite(result).all():
        raise UserError('the net gives no finite numbers; its training diverged, or its file is damaged')
    return result


def guesses(card, rows, top=5):
    """Return [[Guess, ...], ...], the likeliest first, of probabilities [n, num_classes]."""
    return [
        [Guess(int(i), card.names[i], card.ids[i], float(row[i])) for i in np.argsort(-row, kind='stable')[:top]]
        for row in rows
    ]
