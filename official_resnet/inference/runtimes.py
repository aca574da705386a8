"""Load exported files in their own runtimes, and compare what they compute, and how fast, with our network."""

import contextlib
import functools
import importlib
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from official_resnet import damage, files
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, keras_files, predict, rewrite
from official_resnet.inputs import jpeg

Run = Callable[[np.ndarray], np.ndarray]  # a batch of inputs -> its logits or probabilities
FILES = 'JPEG and PNG files'
TURNS, TURN_SECONDS = 5, 0.3  # how often, and for at least how long each time, the speed is measured


class Tolerance(NamedTuple):
    """How much an exported network may differ from ours. If it differs by more, it is not written."""

    difference: float  # largest difference of a probability
    agreement: float  # least fraction of images with the same likeliest class


# 16 bits round each activation by 2**-12 (float16) or 2**-9 (bfloat16) of its value, and a network adds that up; int8
# has 256 levels for each tensor, so only the classes can be expected to agree.
TOLERANCES = {
    'float32': Tolerance(1e-4, 0.0),
    'float16': Tolerance(0.02, 0.95),
    'bfloat16': Tolerance(0.1, 0.9),
    'int8': Tolerance(1.0, 0.9),
    FILES: Tolerance(1.0, 0.9),  # TensorFlow and Pillow round differently when they resize
}


class Comparison(NamedTuple):
    """How an exported network and ours compare, on `num_images` images."""

    num_images: int
    difference: float  # largest, of a probability
    agreement: float  # fraction of images with the same likeliest class

    def require(self, dtype: str, what: str) -> None:
        """Raise UserError unless the comparison is within the tolerance of a precision."""
        most, least = TOLERANCES[dtype]
        if not (self.difference <= most and self.agreement >= least):
            allowed = f'at most {most:g} and at least {least:.0%} are allowed for {dtype}'
            if dtype == 'int8':
                allowed = f'int8 needs at least {least:.0%}; pass more --calibration_images, or --dtype=float16'
            raise UserError(
                f'{what} would differ from the network by {self.difference:.2g} in probability, with the same class '
                f'for {self.agreement:.1%} of {self.num_images} images ({allowed}); it was not written'
            )


def load(to: str, path: pathlib.Path, preprocessing: bool) -> Run:
    """Return an exported network as a function of batches, which also raises UserError if the file is damaged.

    Args:
        to: A key of formats.FORMATS, but not 'torch'.
        path: The file, or the folder of a SavedModel.
        preprocessing: Whether it takes pixels, which decides the signature of a SavedModel.

    Raises:
        UserError: The runtime cannot load the file.
    """
    reported = functools.partial(damage.reported, path, 'it is not kept; export it again', 'the exported ')
    with reported():
        if to == 'savedmodel':
            call = _signature(path, 'predict_uint8' if preprocessing else 'serving_default')
        else:
            call = {'onnx': _onnx, 'litert': _litert, 'openvino': _openvino, 'keras': _keras}[to](path)

    def run(inputs) -> np.ndarray:
        with reported():
            return call(inputs)

    return run


def _signature(path, name):
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[name]
    (argument,) = function.structured_input_signature[1]

    def run(inputs) -> np.ndarray:
        outputs = function(**{argument: tf.constant(inputs)})
        return outputs.get('logits', outputs.get('probabilities')).numpy()

    run.keep = loaded  # type: ignore[attr-defined]  # or its variables would be deleted
    return run


def signature_of_bytes(path: pathlib.Path) -> Callable[[Sequence[bytes]], np.ndarray] | None:
    """Return the signature of a SavedModel that takes files: their bytes -> probabilities; None if it has none."""
    if 'predict_bytes' not in tf.saved_model.load(str(path)).signatures:
        return None
    return _signature(path, 'predict_bytes')


def _onnx(path):
    runtime = importlib.import_module('onnxruntime')
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})[0]


def _litert(path):
    interpreter = importlib.import_module('ai_edge_litert.interpreter').Interpreter(
        str(path), num_threads=len(os.sched_getaffinity(0))
    )
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape = []

    def run(inputs) -> np.ndarray:
        if shape != [inputs.shape]:
            interpreter.resize_tensor_input(given['index'], inputs.shape, strict=True)
            interpreter.allocate_tensors()
            shape[:] = [inputs.shape]
        interpreter.set_tensor(given['index'], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(result['index'])

    return run


def _openvino(path):
    openvino = importlib.import_module('openvino')
    # Without the first hint, it computes in bfloat16 where the CPU has it.
    hints = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    request = openvino.Core().compile_model(path, 'CPU', hints).create_infer_request()
    return lambda inputs: request.infer([inputs], share_inputs=True)[0].copy()


def _keras(path):
    model = keras_files.load(path, 'export it again')
    call = tf.function(lambda images: model(images, training=False))
    return lambda inputs: call(tf.constant(inputs)).numpy()


def probabilities(
    run: Run, card: card_reader.Card, images: np.ndarray, preprocessing: bool, batch_size: int
) -> np.ndarray:
    """Return what an exported network makes of prepared images, uint8 [n, h, w, c]: float32 [n, num_classes].

    Each batch has batch_size images, because a graph may demand that; the last one is filled up.
    """
    rows = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        filled = batch[np.arange(batch_size) % len(batch)]
        inputs = filled if preprocessing else predict.network_input(card, filled).numpy()
        values = np.asarray(run(inputs), np.float32)
        rows.append((values if preprocessing else tf.nn.softmax(values).numpy())[: len(batch)])
    return np.concatenate(rows)


def expected(model: keras.Model, card: card_reader.Card, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return what the network makes of prepared images, as predict.probabilities."""
    call = tf.function(lambda inputs: model(inputs, training=False))
    starts = range(0, len(images), batch_size)
    return np.concatenate([predict.probabilities(call, card, images[start : start + batch_size]) for start in starts])


def of_files(
    run: Callable[[np.ndarray], np.ndarray], paths: Sequence[pathlib.Path], batch_size: int
) -> tuple[np.ndarray, list[int]]:
    """Return what a signature makes of those files that are JPEG or PNG, and their numbers."""
    contents = {i: files.read_bytes(path, 'image_bytes') for i, path in enumerate(paths)}
    kept = [i for i, content in contents.items() if jpeg.format_of(content[:12]) in ('JPEG', 'PNG')]
    rows = []
    for start in range(0, len(kept), batch_size):
        chosen = [contents[i] for i in kept[start : start + batch_size]]
        filled = [chosen[i % len(chosen)] for i in range(batch_size)]
        rows.append(run(np.array(filled, object))[: len(chosen)])
    return np.concatenate(rows) if rows else np.zeros((0,)), kept


def compare(got: np.ndarray, expected: np.ndarray) -> Comparison:
    """Compare probabilities [n, num_classes]. NaN, or another shape, counts as the largest difference."""
    if got.shape != expected.shape:
        return Comparison(len(expected), 1.0, 0.0)
    difference = np.abs(got - expected).max()
    agreement = np.mean(got.argmax(-1) == expected.argmax(-1))
    return Comparison(len(expected), float(np.nan_to_num(difference, nan=1.0)), float(agreement))


def rates(
    model: keras.Model, card: card_reader.Card, theirs: Run, images: np.ndarray, preprocessing: bool, batch_size: int
) -> tuple[float, float]:
    """Return images per second of rewrite.compile_model and of `theirs`, medians of turns in which they alternate."""
    images = images[np.arange(batch_size) % len(images)]
    call = rewrite.compile_model(model, (*card.net_size, card.num_channels))
    if preprocessing:
        runs = [lambda: call(predict.network_input(card, images)).numpy(), lambda: theirs(images)]
    else:
        inputs = predict.network_input(card, images)
        array = inputs.numpy()
        runs = [lambda: call(inputs).numpy(), lambda: theirs(array)]
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(-1, TURNS):  # the first one compiles
        for run, times in zip(runs, seconds, strict=True):
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < TURN_SECONDS:
                run()
                count += 1
            if turn >= 0:
                times.append((time.perf_counter() - start) / count)
    ours, others = (batch_size / statistics.median(times) for times in seconds)
    return ours, others


def size(path: pathlib.Path) -> int:
    """Return the number of bytes of a file, with OpenVINO's weights beside it, or of all files in a folder."""
    paths = path.rglob('*') if path.is_dir() else [path, path.with_suffix('.bin')]
    total = 0
    for one in paths:
        with contextlib.suppress(FileNotFoundError):
            total += one.stat().st_size if one.is_file() else 0
    return total
