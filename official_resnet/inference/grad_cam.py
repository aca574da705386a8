"""Show where a network looks: Grad-CAM (arXiv:1610.02391 Sec. 3) on the output of the last residual group."""

import functools
import unicodedata
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from official_resnet import layers
from official_resnet.errors import UserError

# The colours of 0, 1/4, ..., 1, RGB in 0..255. A brighter colour means more.
COLOURS = ((0, 0, 130), (60, 20, 200), (220, 30, 120), (255, 130, 20), (255, 245, 120))
CAPTION, GAP = 32, 4  # pixels: height of the caption of a page, and width between its images
_FONTS = 'DejaVuSans.ttf', 'NotoSans-Regular.ttf', 'NotoSansCJK-Regular.ttc'  # of the system, if Pillow's lacks letters
OPACITY = 0.5  # opacity of the brightest colour; the object must stay visible


def grad_cam(
    model: keras.Model, images: np.ndarray | tf.Tensor, class_index: int | Sequence[int] | None = None
) -> np.ndarray:
    """Return how strongly each pixel of each image supports a class, float32 [n, h, w] in 0..1.

    The map of an image is the sum of the last group's feature maps, each weighted by the mean gradient of the class's
    logit with respect to it. Negative values become 0, and the largest value becomes 1 unless all are 0.

    Args:
        model: A network of resnet_model, whose batch norms may have been folded.
        images: The network's input, float32 [n, h, w, c].
        class_index: The class to explain, or one class for each image. None explains the likeliest class of each.

    Raises:
        UserError: The network has no such class, or is not a network of resnet_model.
    """
    images = tf.convert_to_tensor(images, tf.float32)
    try:
        outputs = features(model).output
        last = max(int(name.removeprefix('group')) for name in outputs if name.startswith('group'))
    except (ValueError, AttributeError) as error:  # from features: no functional model; from max: no group
        raise UserError(
            'Grad-CAM needs a network of resnet_model, with layers group1_block1_out to head_pool'
        ) from error
    with layers.deep_graph():
        both = keras.Model(model.input, [outputs[f'group{last}'], model.output])
    num_classes = model.output_shape[-1]
    with tf.GradientTape() as tape:
        tape.watch(images)  # because all weights may be frozen
        maps, logits = both(images, training=False)
        if class_index is None:
            class_index = tf.argmax(logits, -1)
        elif not np.all((0 <= np.asarray(class_index)) & (np.asarray(class_index) < num_classes)):
            raise UserError(f'class {class_index} is not a class of the network; pass 0..{num_classes - 1}')
        chosen = tf.reduce_sum(logits * tf.one_hot(class_index, num_classes, dtype=logits.dtype), -1)
    weights = tf.reduce_mean(tf.cast(tape.gradient(chosen, maps), tf.float32), [1, 2], keepdims=True)
    cam = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), -1, keepdims=True))
    cam = tf.image.resize(cam, images.shape[1:3], 'bilinear')[..., 0]
    largest = tf.reduce_max(cam, [1, 2], keepdims=True)
    return tf.math.divide_no_nan(cam, largest).numpy()


def heat_map(cam: np.ndarray) -> np.ndarray:
    """Return the colours of a map [h, w] in 0..1: float [h, w, 3] in 0..255."""
    stops = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(cam, stops, channel) for channel in np.transpose(COLOURS)], -1)


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Return an image coloured by its map, uint8 [h, w, 3]. Where the map is 0, the image is unchanged.

    Args:
        image: uint8 [h, w, 3], or [h, w, 1] for grey.
        cam: The map, [h, w] in 0..1.
    """
    opacity = OPACITY * np.asarray(cam, np.float32)[..., None]
    return np.round(image * (1 - opacity) + heat_map(cam) * opacity).astype(np.uint8)


def panels(image: np.ndarray, cam: np.ndarray, least: int = 224) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Return the image, its heat map and its overlay, which are enlarged if both sides are shorter than `least` pixels.

    `image` and `cam` are those of `overlay`.
    """
    factor = max(1, least // max(image.shape[:2]))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    enlarged = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3))).resize(size, Image.Resampling.BICUBIC)
    heat = np.asarray(Image.fromarray(np.asarray(cam, np.float32)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    coloured = overlay(np.asarray(enlarged), heat)
    return enlarged, Image.fromarray(heat_map(heat).round().astype(np.uint8)), Image.fromarray(coloured)


def page(image: np.ndarray, cam: np.ndarray, caption: str, least: int = 224) -> Image.Image:
    """Return the image, its heat map and its overlay side by side, below a caption, for example 'horse, 98.2 %'."""
    shown = panels(image, cam, least)
    width, height = shown[0].size
    canvas = Image.new('RGB', (len(shown) * (width + GAP) - GAP, CAPTION + height), 'white')
    caption, font = _drawable(caption)
    while font.getlength(caption) > canvas.width - CAPTION and len(caption) > 4:
        caption = f'{caption[:-4]}...'
    ImageDraw.Draw(canvas).text((canvas.width / 2, CAPTION / 2), caption, 'black', font, anchor='mm')
    for number, panel in enumerate(shown):
        canvas.paste(panel, (number * (width + GAP), CAPTION))
    return canvas


def can_draw(text: str) -> bool:
    """Return whether a font has the letters of a text, or letters that may replace them."""
    return _drawable(text)[0].count('?') == text.count('?')


def _drawable(text):
    """Return a text and a font that has all its letters. If there is none, other letters replace them, or '?'."""
    for font in filter(None, map(_font, ('', *_FONTS))):
        absent = bytes(font.getmask('\U0010ffff'))  # what it draws for a letter that it lacks
        if not any(bytes(font.getmask(letter)) == absent for letter in set(text)):
            return text, font
    letters = (letter for letter in unicodedata.normalize('NFKD', text) if not unicodedata.combining(letter))
    return ''.join(letters).encode('ascii', 'replace').decode(), _font('')


@functools.cache
def _font(name):
    """Return a font of the system, '': Pillow's own; or None."""
    try:
        return ImageFont.truetype(name, CAPTION // 2) if name else ImageFont.load_default(CAPTION // 2)
    except OSError:
        return None


def features(model: keras.Model) -> keras.Model:
    """Return a model with the same weights and the outputs {'stem', 'group1', ..., 'pre_logits', 'logits'}.

    >>> model = features(resnet.resnet(resnet.ResNetSpec((1, 1)), num_classes=10, input_shape=(32, 32, 3)))
    >>> {name: output.shape[1:] for name, output in model.output.items()}
    {'stem': (32, 32, 16), 'group1': (32, 32, 16), 'group2': (16, 16, 32), 'pre_logits': (32,), 'logits': (10,)}
    """
    outputs = {}
    for layer in model.layers:
        if layer.name in ('stem_conv', 'stem_relu', 'stem_pool'):
            outputs['stem'] = layer.output  # the last of them that the network has
        elif layer.name.startswith('group'):
            outputs[layer.name.partition('_')[0]] = layer.output  # the group's last layer
    outputs |= {'pre_logits': model.get_layer('head_pool').output, 'logits': model.output}
    with layers.deep_graph():
        return keras.Model(model.input, outputs, name=f'{model.name}_features')
