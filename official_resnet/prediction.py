"""A trained net for those who have pictures only: SavedModel with the preprocessing inside."""
import pathlib
import time

import numpy as np
import tensorflow as tf

from official_resnet import preprocessing
from official_resnet.errors import UserError

TOLERANCE = 1e-4  # of probabilities, between the model and its export


class Serving(tf.Module):
    """Pictures [n, h, w, c], 0..255 -> classes int64 [n] and probabilities float32 [n, num_classes].

    Pictures smaller than the net's input, as MNIST's, are centred in zeros, as the evaluation does it.
    """

    def __init__(self, model, normalization, image_shape):
        super().__init__(name='serving')
        self.model = model
        self.normalize = preprocessing.NORMALIZATIONS[normalization]
        self.is_channels_first = model.get_layer('head_pool').data_format == 'channels_first'
        self.input_size = model.input_shape[2:] if self.is_channels_first else model.input_shape[1:3]
        self.serve = tf.function(self._serve, input_signature=[
            tf.TensorSpec((None, *image_shape), tf.float32, name='input')])

    def _serve(self, images):
        images = self.normalize(preprocessing.pad_to(images, *self.input_size))
        if self.is_channels_first:
            images = tf.transpose(images, [0, 3, 1, 2])
        probabilities = tf.nn.softmax(self.model(images, training=False))
        return {'classes': tf.argmax(probabilities, -1), 'probabilities': probabilities}


def export(model, normalization, image_shape, export_dir, examples):
    """Write a SavedModel below export_dir, load it again and compare.

    Its signatures `serving_default` and `predict` take `input`, float32 [n, h, w, c] in 0..255 for any n,
    NHWC whatever the model's layout, and give `classes` and `probabilities`.

    Args:
        model: a net of resnet_model.
        normalization: a name in preprocessing.NORMALIZATIONS.
        image_shape: (h, w, c).
        export_dir: the SavedModel becomes export_dir/<unix time>, as in official/resnet.
        examples: uint8 [n, h, w, c] that both are run on.

    Returns:
        The folder's path.

    Raises:
        UserError: the folder cannot be written, or the export does not compute the same.
    """
    serving = Serving(model, normalization, image_shape)
    folder = pathlib.Path(export_dir)
    stamp = int(time.time())
    while (folder / str(stamp)).exists():
        stamp += 1
    path = folder / str(stamp)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tf.saved_model.save(serving, str(path), signatures={
            'serving_default': serving.serve, 'predict': serving.serve})
    except OSError as error:
        raise UserError(f'cannot export to {path}: {error}; pass another --export_dir') from error
    images = tf.constant(examples, tf.float32)
    expected = serving.serve(images)['probabilities'].numpy()
    got = tf.saved_model.load(str(path)).signatures['serving_default'](input=images)
    difference = float(np.max(np.abs(expected - got['probabilities'].numpy())))
    if not difference <= TOLERANCE:
        raise UserError(f'the SavedModel {path} differs from the model by {difference:.2g} in probability, '
                        f'more than {TOLERANCE:g}; do not use it')
    return path


def compile_model(model):
    """Return the compiled function images -> outputs of a model whose weights will not change any more.

    The weights are constants of its graph: TensorFlow fuses bias, addition and ReLU into the convolutions
    (layers.fold_batch_norm gives the biases) and brings the kernels into their best layout once.

    Args:
        model: a keras.Model of one input, images float32 as model.input.
    """
    trainable, others = ([variable.numpy() for variable in variables]
                         for variables in (model.trainable_variables, model.non_trainable_variables))

    @tf.function(input_signature=[tf.TensorSpec(model.input.shape, tf.float32)])
    def call(images):
        outputs, _ = model.stateless_call([tf.constant(value) for value in trainable],
                                          [tf.constant(value) for value in others], images, training=False)
        return outputs

    return call
