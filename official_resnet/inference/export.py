"""SavedModel with the preprocessing inside, compared with the model it was written from."""

import pathlib
import time

import numpy as np
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.inputs import augmentation
from official_resnet.inputs.normalization import NORMALIZATIONS

TOLERANCE = 1e-4  # of probabilities, between the model and its export


class Serving(tf.Module):
    """Pictures -> classes int64 [n] and probabilities float32 [n, num_classes].

    Pictures are [n, h, w, c], 0..255; smaller than the net's input, as MNIST's, they are centred in zeros, as the
    evaluation does it. With `views` they are JPEG or PNG bytes, string [n], seen by augmentation.test_view.
    """

    def __init__(self, model, normalization, image_shape, views=None):
        super().__init__(name='serving')
        self.model = model
        self.normalize = NORMALIZATIONS[normalization]
        self.input_size = model.input_shape[1:3]
        self.views = views
        function, spec = (
            (self._serve, tf.TensorSpec((None, *image_shape), tf.float32, name='input'))
            if views is None
            else (self._serve_bytes, tf.TensorSpec((None,), tf.string, name='image_bytes'))
        )
        self.serve = tf.function(function, input_signature=[spec])

    def _serve(self, images):
        count = tf.shape(images)[0]
        # TensorFlow 2.21's fused convolutions on a CPU fail on no pictures: they get one of zeros, which is dropped
        images = tf.pad(images, [[0, tf.cast(count == 0, tf.int32)], [0, 0], [0, 0], [0, 0]])
        images = self.normalize(augmentation.pad_to(images, *self.input_size))
        probabilities = tf.nn.softmax(self.model(images, training=False))[:count]
        return {'classes': tf.argmax(probabilities, -1), 'probabilities': probabilities}

    def _serve_bytes(self, image_bytes):
        shape = (self.views.test_size, self.views.test_size, 3)
        return self._serve(
            tf.map_fn(
                lambda picture: augmentation.test_view(picture, self.views),
                image_bytes,
                fn_output_signature=tf.TensorSpec(shape, tf.float32),
            )
        )


def export(model, normalization, image_shape, export_dir, examples):
    """Write a SavedModel below export_dir, load it again and compare.

    Its signatures `serving_default` and `predict` take `input`, float32 [n, h, w, c] in 0..255 for any n,
    and give `classes` and `probabilities`.

    Args:
        model: a net of resnet_model.
        normalization: a name in NORMALIZATIONS.
        image_shape: (h, w, c).
        export_dir: the SavedModel becomes export_dir/<unix time>, as in official/resnet.
        examples: uint8 [n, h, w, c] that both are run on.

    Returns:
        The folder's path.

    Raises:
        UserError: the folder cannot be written, or the export does not compute the same.
    """
    return _export(Serving(model, normalization, image_shape), export_dir, tf.constant(examples, tf.float32))


def export_bytes(model, normalization, views, export_dir, examples):
    """Write a SavedModel of encoded pictures; otherwise as `export`.

    Its signatures take `image_bytes`, string [n] for any n, JPEG or PNG of any size; a batch with anything else among
    it is an InvalidArgumentError. A picture is resized and cut as by augmentation.test_view.

    Args:
        model: a net of resnet_model for pictures of 3 channels.
        normalization: a name in NORMALIZATIONS.
        views: Views.
        export_dir: see `export`.
        examples: [bytes] of pictures that both are run on.

    Returns:
        The folder's path.

    Raises:
        UserError: the net takes other pictures, the folder cannot be written, or the export does not compute the same.
    """
    shape = (views.test_size, views.test_size, 3)
    serving = Serving(model, normalization, shape, views)
    wanted = model.input_shape[1:]
    if any(n not in (None, m) for n, m in zip(wanted, shape, strict=True)):
        raise UserError(
            f'the net takes pictures {wanted}, not {shape}, which encoded ones become; export it without '
            'their bytes, or with another size of the test picture'
        )
    return _export(serving, export_dir, tf.constant(examples, tf.string))


def _export(serving, export_dir, examples):
    """Write a Serving, load it and compare the probabilities of a tensor of examples; return the folder."""
    folder = pathlib.Path(export_dir)
    stamp = int(time.time())
    while (folder / str(stamp)).exists():
        stamp += 1
    path = folder / str(stamp)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tf.saved_model.save(serving, str(path), signatures={'serving_default': serving.serve, 'predict': serving.serve})
    except OSError as error:
        raise UserError(f'cannot export to {path}: {error}; pass another --export_dir') from error
    expected = serving.serve(examples)['probabilities'].numpy()
    name = serving.serve.input_signature[0].name
    got = tf.saved_model.load(str(path)).signatures['serving_default'](**{name: examples})
    difference = float(np.max(np.abs(expected - got['probabilities'].numpy())))
    if not difference <= TOLERANCE:
        raise UserError(
            f'the SavedModel {path} differs from the model by {difference:.2g} in probability, '
            f'more than {TOLERANCE:g}; do not use it'
        )
    return path
