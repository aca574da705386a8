"""The logits of an image as the mean over several views of it: itself, its mirror image, and both shifted by a pixel.

Evaluation calls it for --test_views. It costs two or six times as much as one view. Not for digits.
"""

from collections.abc import Callable

import tensorflow as tf

SHIFTS = (0, 2)  # of a crop in an image with a border of a pixel: down and to the right, up and to the left


def logits_of(model: Callable[..., tf.Tensor], images: tf.Tensor, test_views: str) -> tf.Tensor:
    """Return the mean logits, float32 [n, classes], of views of normalised images, float32 [n, h, w, c].

    Args:
        model: A network of resnet_model, which is called in inference mode.
        images: They are mirrored left to right; at a border, a shifted image is continued by its reflection.
        test_views: 'plain' is the image itself; 'flip' the mean of it and its mirror image; 'flip_shift' half of that,
            and an eighth of each of four more views, both shifted by a pixel down and to the right, and up and to the
            left. These are the levels of evaluation 0, 1 and 2 of airbench (arXiv:2404.00498).
    """
    if test_views == 'plain':
        return model(images, training=False)

    def mirrored(images) -> tf.Tensor:
        return (model(images, training=False) + model(tf.reverse(images, [2]), training=False)) / 2

    logits = mirrored(images)
    if test_views == 'flip':
        return logits
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], 'REFLECT')
    shifted = [mirrored(padded[:, shift : shift + height, shift : shift + width]) for shift in SHIFTS]
    return logits / 2 + (shifted[0] + shifted[1]) / 4
