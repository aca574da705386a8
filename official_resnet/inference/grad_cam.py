"""Show where a network looks: Grad-CAM (arXiv:1610.02391 Sec. 3) on the output of the last residual group."""

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


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Return an image coloured by its map, uint8 [h, w, 3]. Where the map is 0, the image is unchanged.

    Args:
        image: uint8 [h, w, 3], or [h, w, 1] for grey.
        cam: The map, [h, w] in 0..1.
    """
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(cam, stops, channel) for channel in np.transpose(COLOURS)], -1)
    opacity = OPACITY * np.asarray(cam, np.float32)[..., None]
    return np.round(image * (1 - opacity) + colours * opacity).astype(np.uint8)


def pair(image: np.ndarray, cam: np.ndarray, least: int = 224) -> tuple[Image.Image, Image.Image]:
    """Return the image and its overlay, which are enlarged if both sides are shorter than `least` pixels.

    `image` and `cam` are those of `overlay`.
    """
    factor = max(1, least // max(image.shape[:2]))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    enlarged = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3))).resize(size, Image.Resampling.BICUBIC)
    heat = np.asarray(Image.fromarray(np.asarray(cam, np.float32)).resize(size, Image.Resampling.BILINEAR))
    return enlarged, Image.fromarray(overlay(np.asarray(enlarged), np.clip(heat, 0, 1)))


def page(image: np.ndarray, cam: np.ndarray, caption: str, least: int = 224) -> Image.Image:
    """Return the image and its overlay of `pair` side by side, below a caption, for example 'horse, 98.2 %'."""
    enlarged, coloured = pair(image, cam, least)
    size = enlarged.size
    font = ImageFont.load_default(CAPTION // 2)
    while font.getlength(caption) > 2 * size[0] - CAPTION and len(caption) > 4:
        caption = f'{caption[:-4]}...'
    canvas = Image.new('RGB', (2 * size[0] + GAP, CAPTION + size[1]), 'white')
    ImageDraw.Draw(canvas).text((canvas.width / 2, CAPTION / 2), caption, 'black', font, anchor='mm')
    canvas.paste(enlarged, (0, CAPTION))
    canvas.paste(coloured, (size[0] + GAP, CAPTION))
    return canvas


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
