"""SavedModel with the preprocessing inside, compared with the model it was written from."""

import functools
import pathlib
import time

import numpy as np
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.inputs import augmentation, encoded
from official_resnet.inputs.normalization import NORMALIZATIONS

TOLERANCE = 1e-4  # of probabilities, between the model and its export


def _serving(model, normalization, image_shape, views):
    """Return a module whose `serve` gives classes int64 [n] and probabilities float32 [n, num_classes] of images.

    Images are [n, h, w, c], 0..255; smaller than the net's input, as MNIST's, they are centred in zeros, as the
    evaluation does it. With `views` they are JPEG or PNG bytes, string [n], seen by encoded.test_view.
    """
    module = tf.Module(name='serving')
    module.model = model  # whose variables are saved
    spec = tf.TensorSpec((None, *image_shape), tf.float32, name='input')
    if views:
        spec = tf.TensorSpec((None,), tf.string, name='image_bytes')

    @tf.function(input_signature=[spec])
    def serve(images):
        if views:
            seen = tf.TensorSpec(image_shape, tf.float32)
            images = tf.map_fn(functools.partial(encoded.test_view, views=views), images, fn_output_signature=seen)
        count = tf.shape(images)[0]
        # TensorFlow 2.21's fused convolutions on a CPU fail on no images: they get one of zeros, which is dropped
        images = tf.pad(images, [[0, tf.cast(count == 0, tf.int32)], [0, 0], [0, 0], [0, 0]])
        images = NORMALIZATIONS[normalization](augmentation.pad_to(images, *model.input_shape[1:3]))
        probabilities = tf.nn.softmax(model(images, training=False))[:count]
        return {'classes': tf.argmax(probabilities, -1), 'probabilities': probabilities}

    module.serve = serve
    return module


def export(model, normalization, image_shape, export_dir, examples, views=None):
    """Write a SavedModel below export_dir, load it again and compare; return its folder.

    Its signatures `serving_default` and `predict` give `classes` and `probabilities` of any number of images: of
    `input`, float32 [n, h, w, c] in 0..255; with `views` of `image_bytes`, string [n], JPEG or PNG of any size, which
    are resized and cut as by encoded.test_view. A batch with anything else among it is an InvalidArgumentError.

    Args:
        normalization: a name in NORMALIZATIONS.
        image_shape: (h, w, c); with `views`, which decide it, it is not looked at.
        export_dir: the SavedModel becomes export_dir/<unix time>, as in official/resnet.
        examples: uint8 [n, h, w, c], or with `views` [bytes], that both are run on.
        views: Views of encoded images.

    Raises:
        UserError: the net takes other images than the views make, the folder cannot be written, or the export does
            not compute the same.
    """
    if views:
        image_shape, wanted = (views.test_size, views.test_size, 3), model.input_shape[1:]
        if not tf.TensorShape(wanted).is_compatible_with(image_shape):
            remedy = 'export it without their bytes, or with another size of the test image'
            raise UserError(f'the net takes images {wanted}, not {image_shape}, which encoded ones become; {remedy}')
    serving = _serving(model, normalization, image_shape, views)
    folder, stamp = pathlib.Path(export_dir), int(time.time())
    while (folder / str(stamp)).exists():
        stamp += 1
    path = folder / str(stamp)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tf.saved_model.save(serving, str(path), signatures={'serving_default': serving.serve, 'predict': serving.serve})
    except OSError as error:
        raise UserError(f'cannot export to {path}: {error}; pass another --export_dir') from error
    (spec,) = serving.serve.input_signature
    examples = tf.constant(examples, spec.dtype)
    expected = serving.serve(examples)['probabilities'].numpy()
    got = tf.saved_model.load(str(path)).signatures['serving_default'](**{spec.name: examples})
    difference = float(np.max(np.abs(expected - got['probabilities'].numpy())))
    if not difference <= TOLERANCE:
        difference = f'{difference:.2g} in probability, more than {TOLERANCE:g}'
        raise UserError(f'the SavedModel {path} differs from the model by {difference}; do not use it')
    return path
