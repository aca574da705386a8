"""Features of a frozen backbone, computed once for each image: training the head then costs almost nothing.

The features are an ordinary split in memory, float32 [n, 1, 1, d], so order, resume and evaluation work as usual. Each
split is kept in a file in model_dir, with a hash of everything that the features depend on; a resumed run reads it.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from official_resnet import damage, files, layers
from official_resnet.errors import Interrupted, UserError
from official_resnet.inputs.in_memory import InMemorySplit
from official_resnet.inputs.split import Split
from official_resnet.training import stopping

_LOG = logging.getLogger(__name__)

FILES = {'train': 'features-train.npz', 'test': 'features-test.npz'}
BATCH_SIZE = 128  # images for which features are computed at once


def head_of(model: keras.Model) -> keras.Model:
    """Return the last layer of a model as a model with the same variables: features [n, 1, 1, d] -> logits."""
    layer = model.layers[-1]
    flat = keras.layers.Flatten(dtype='float32')
    return keras.Sequential([keras.Input((1, 1, layer.input.shape[-1]), dtype='float32'), flat, layer])


def replace_images(trainer: Any, received: list[int]) -> None:
    """Make a resnet_run_loop.Trainer train only the last layer, on features that the frozen layers compute once.

    Its training split, test split and compiled functions are replaced. A signal in `received` interrupts the trainer.
    """

    def check() -> None:
        if received and trainer.process.count == 1:
            stopping.interrupt(trainer, received[0])
        if received:  # workers do not compute the same batches at the same time, so each leaves by itself
            text = f'{signal.Signals(received[0]).name} before the training: nothing has changed; run it again'
            raise Interrupted(received[0], text if trainer.process.is_chief else '')

    start = time.monotonic()
    folder = trainer.config.machine.model_dir if trainer.process.is_chief else None
    paths = {name: folder and pathlib.Path(folder) / file for name, file in FILES.items()}
    trainer.test = features(trainer.model, trainer.test, paths['test'], check, 'test')
    trainer.data = features(trainer.model, trainer.data, paths['train'], check, 'training')
    trainer.compile(head_of(trainer.model))
    if trainer.step == 0:
        trainer.sums['seconds'] += time.monotonic() - start  # counted in the first epoch


def features(
    model: keras.Model,
    examples: Split,
    path: str | os.PathLike | None = None,
    check: Callable[[], None] = lambda: None,
    kind: str = '',
) -> InMemorySplit:
    """Return a split in memory whose images are the inputs of the model's last layer.

    `path` is the .npz file to read or write; None uses no file. `check` is called after each batch and may raise.
    `kind` is what a log calls the images, 'training' or 'test'.
    """
    key = _key(model, examples)
    arrays = _load(path, key) if path else None
    if arrays is None:
        _LOG.info(f'computing the features of {examples.num_images:,}{kind and " "}{kind} images')
        arrays = compute(model, examples, check)
        if path:
            try:  # without the file, a resumed run computes the features again
                files.make_folder(pathlib.Path(path).parent)
                with files.replacing(path) as part, open(part, 'wb') as file:
                    np.savez(file, key=np.array(key), features=arrays[0], labels=arrays[1])
            except OSError as error:
                _LOG.warning(f'cannot keep the features in {path}: {error.strerror}; continuing without a file')
    else:
        _LOG.info(f'features of {examples.num_images:,} images read from {path}')
    images, labels = arrays[0][:, None, None, :], arrays[1]
    num_classes, name, class_names = examples.num_classes, examples.name, examples.class_names
    return InMemorySplit(images, labels, num_classes, name, class_names, normalization='none')


def compute(
    model: keras.Model, examples: Split, check: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (features float32 [n, d], labels int32 [n]): the inputs of the last layer in inference mode, in order."""
    with layers.deep_graph():
        backbone = keras.Model(model.input, model.layers[-1].input)

    @tf.function(reduce_retracing=True)
    def call(images) -> tf.Tensor:
        return tf.cast(backbone(images, training=False), tf.float32)

    parts, all_labels = [], []
    with examples.input_errors():
        for images, labels in examples.evaluation_batches(BATCH_SIZE):
            parts.append(call(images).numpy())
            all_labels.append(labels.numpy())
            check()
    return np.concatenate(parts), np.concatenate(all_labels)


def _key(model, examples):
    """Return a hash of the backbone's weights, its precision and its input."""
    digest = hashlib.sha256()
    head = {variable.path for variable in model.layers[-1].variables}
    for variable in model.variables:
        if variable.path not in head:
            digest.update(variable.path.encode())
            digest.update(np.ascontiguousarray(variable.numpy()))
    digest.update(repr(sorted({str(getattr(layer, 'compute_dtype', '')) for layer in model.layers})).encode())
    digest.update(examples.fingerprint().encode())
    return digest.hexdigest()


def _load(path, key):
    """Return the features and labels in a file, or None if it is missing, damaged or has another key."""
    with contextlib.suppress(UserError), damage.reported(path, ''):  # they are computed again
        kept = damage.read_arrays(path)
        if str(kept['key']) == key:
            return kept['features'], kept['labels']
    return None
