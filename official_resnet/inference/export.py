"""Export a network as a SavedModel that contains its preprocessing, and compare both."""

import contextlib
import errno
import functools
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from official_resnet import damage, files, folders
from official_resnet.errors import UserError
from official_resnet.inputs import augmentation, encoded
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.inputs.views import Views

TOLERANCE = 1e-4  # largest difference between the probabilities of the model and of its export


def serving(
    model: keras.Model,
    normalization: str,
    image_shape: Sequence[int],
    views: Views | None = None,
    batch: int | None = None,
) -> tuple[tf.Module, dict[str, Any]]:
    """Return a module and its signatures, from images to classes int64 [n] and probabilities float32 [n, num_classes].

    `serving_default` and `predict` take `input`, float32 [n, h, w, c] in 0..255, and `predict_uint8` the same in uint8.
    Images smaller than the network's input, such as MNIST's, are surrounded by zeros, as in evaluation. With `views`,
    there is `predict_bytes`, which takes `image_bytes`, JPEG or PNG files, string [n], which encoded.test_view decodes.
    n is any number, or `batch`.
    """
    module = tf.Module(name='serving')
    module.model = model  # so that its variables are saved
    shape = (batch, *image_shape)

    def compute(images) -> dict[str, tf.Tensor]:
        count = tf.shape(images)[0]
        # TensorFlow 2.21's fused convolutions on a CPU fail on an empty batch, so that gets one image, later dropped.
        images = tf.pad(images, [[0, tf.cast(count == 0, tf.int32)], [0, 0], [0, 0], [0, 0]])
        images = NORMALIZATIONS[normalization](augmentation.pad_to(images, *model.input_shape[1:3]))
        probabilities = tf.nn.softmax(model(images, training=False))[:count]
        return {'classes': tf.argmax(probabilities, -1), 'probabilities': probabilities}

    serve = tf.function(compute, input_signature=[tf.TensorSpec(shape, tf.float32, name='input')])
    pixels = tf.TensorSpec(shape, tf.uint8, name='input')
    serve_uint8 = tf.function(lambda images: compute(tf.cast(images, tf.float32)), input_signature=[pixels])
    signatures = {'serving_default': serve, 'predict': serve, 'predict_uint8': serve_uint8}
    if views:
        content = tf.TensorSpec((batch,), tf.string, name='image_bytes')
        decode, view = functools.partial(encoded.test_view, views=views), tf.TensorSpec(image_shape, tf.float32)
        signatures['predict_bytes'] = tf.function(
            lambda data: compute(tf.map_fn(decode, data, fn_output_signature=view)), input_signature=[content]
        )
    return module, signatures


def network_alone(
    model: keras.Model, shape: Sequence[int], batch: int | None = None
) -> tuple[tf.Module, dict[str, Any]]:
    """Return a module and its signature, from `input`, float32 [n, *shape], to `logits`, float32 [n, num_classes]."""
    module = tf.Module(name='network')
    module.model = model
    spec = tf.TensorSpec((batch, *shape), tf.float32, name='input')
    call = tf.function(lambda images: {'logits': model(images, training=False)}, input_signature=[spec])
    return module, {'serving_default': call}


def save(module: tf.Module, signatures: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a SavedModel. What fails because of the disk raises OSError."""
    with os_errors():
        tf.saved_model.save(module, str(path), signatures=dict(signatures))


def export(
    model: keras.Model,
    normalization: str,
    image_shape: Sequence[int] | None,
    export_dir: str | os.PathLike,
    examples: np.ndarray | Sequence[bytes],
    views: Views | None = None,
) -> pathlib.Path:
    """Write a SavedModel, load it again, compare it with the model, and return its folder.

    Its signatures `serving_default`, `predict` and `predict_uint8` return `classes` and `probabilities` of any number
    of images, `input`, [n, h, w, c] in 0..255: float32, or uint8 for the last one. With `views` there is no
    `predict_uint8`, and the others take `image_bytes`, string [n], JPEG or PNG files of any size, which
    encoded.test_view resizes and crops. Bytes of other kinds raise InvalidArgumentError.

    Args:
        model: The network to export.
        normalization: A name in NORMALIZATIONS.
        image_shape: (h, w, c) of the images. Ignored with `views`, which decide it.
        export_dir: The SavedModel is written to export_dir/<unix time>, as in official/resnet.
        examples: Images on which the model and its export are compared: uint8 [n, h, w, c], or files with `views`.
        views: How encoded images become the network's input. None exports a network that takes pixels.

    Raises:
        UserError: The network cannot take what the views produce, the folder cannot be written, or the export does not
            compute the same.
    """
    if views:
        image_shape, wanted = (views.test_size, views.test_size, 3), model.input_shape[1:]
        if not tf.TensorShape(wanted).is_compatible_with(image_shape):
            remedy = 'export a network that takes pixels, or choose another size of the test image'
            raise UserError(f'the network takes images {wanted}, but decoded images are {image_shape}; {remedy}')
    folders.require_no_pattern(export_dir, '--export_dir=')
    assert image_shape is not None
    module, signatures = serving(model, normalization, image_shape, views)
    if views:
        signatures = dict.fromkeys(('serving_default', 'predict'), signatures['predict_bytes'])
    folder = pathlib.Path(export_dir)
    path = folder / str(int(time.time()))
    with files.write_errors(f"'{path}'", ', or pass another --export_dir'), contextlib.ExitStack() as stack:
        files.make_folder(folder)
        part = stack.enter_context(folders.temporary(folder, 'export')) / path.name
        save(module, signatures, part)
        loaded = tf.saved_model.load(str(part)).signatures
        for name, function in signatures.items():
            (spec,) = function.input_signature
            inputs = tf.constant(examples) if views else tf.cast(examples, spec.dtype)
            got = loaded[name](**{spec.name: inputs})['probabilities'].numpy()
            difference = float(np.max(np.abs(function(inputs)['probabilities'].numpy() - got)))
            if not difference <= TOLERANCE:
                text = f'{difference:.2g} in probability, more than {TOLERANCE:g}'
                raise UserError(f'the SavedModel would differ from the model by {text}; it was not written')
        while path.exists():
            path = folder / str(int(path.name) + 1)
        folders.put_in_place(part, path)
    return path


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turn TensorFlow's errors of writing into OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        code = next((code for code in errno.errorcode if os.strerror(code) in error.message), None)
        kinds = {tf.errors.ResourceExhaustedError: errno.ENOSPC, tf.errors.PermissionDeniedError: errno.EACCES}
        if code := code or kinds.get(type(error)):
            raise OSError(code, os.strerror(code)) from error
        raise OSError(damage.reason(OSError(error.message.splitlines()[0]))) from error
