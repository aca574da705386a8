"""Where a net looks: Grad-CAM, arXiv:1610.02391 Sec. 3, on what the last group of residual blocks gives."""

import keras
import numpy as np
import tensorflow as tf

from official_resnet import layers, resnet_model
from official_resnet.errors import UserError

# Of 0, 1/4 .. 1: RGB, 0..255; the brighter the more.
COLOURS = ((0, 0, 130), (60, 20, 200), (220, 30, 120), (255, 130, 20), (255, 245, 120))
OPACITY = 0.65  # of the brightest colour


def grad_cam(model, images, class_index=None):
    """Return how much each place of each image speaks for a class: float32 [n, h, w], 0..1.

    The feature maps of the last group, weighted by the mean gradient of the class's logit with respect to each;
    what is negative becomes 0, the largest value of an image 1 (where anything speaks for the class at all).

    Args:
        model: a net of resnet_model, also one with its BN folded.
        images: as the net is fed them, float32 [n, h, w, c].
        class_index: of the class, or one for each image; None takes the likeliest of each.

    Raises:
        UserError: a class that the net does not have, or a net of other layers.
    """
    images = tf.convert_to_tensor(images, tf.float32)
    try:
        outputs = resnet_model.features(model).output
        last = max(int(name.removeprefix('group')) for name in outputs if name.startswith('group'))
    except (ValueError, AttributeError) as error:  # of features: no functional model; of max: no group
        raise UserError('Grad-CAM needs the layers of resnet_model, from group1_block1_out to head_pool') from error
    with layers.deep_graph():
        both = keras.Model(model.input, [outputs[f'group{last}'], model.output])
    num_classes = model.output_shape[-1]
    with tf.GradientTape() as tape:
        tape.watch(images)  # the weights may all be frozen
        maps, logits = both(images, training=False)
        if class_index is None:
            class_index = tf.argmax(logits, -1)
        elif not np.all((0 <= np.asarray(class_index)) & (np.asarray(class_index) < num_classes)):
            raise UserError(f'class {class_index} is none of the {num_classes} of the net; pass 0..{num_classes - 1}')
        chosen = tf.reduce_sum(logits * tf.one_hot(class_index, num_classes, dtype=logits.dtype), -1)
    weights = tf.reduce_mean(tf.cast(tape.gradient(chosen, maps), tf.float32), [1, 2], keepdims=True)
    cam = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), -1, keepdims=True))
    cam = tf.image.resize(cam, images.shape[1:3], 'bilinear')[..., 0]
    largest = tf.reduce_max(cam, [1, 2], keepdims=True)
    return tf.math.divide_no_nan(cam, largest).numpy()


def overlay(image, cam):
    """Return an image coloured by its map: uint8 [h, w, 3]; where the map is 0, the image as it is.

    The image is uint8 [h, w, 3], or [h, w, 1] for grey, `cam` [h, w], 0..1.
    """
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(cam, stops, channel) for channel in np.transpose(COLOURS)], -1)
    opacity = OPACITY * np.asarray(cam, np.float32)[..., None]
    return np.uint8(np.round(image * (1 - opacity) + colours * opacity))
