"""Write a network as a file of another runtime, by that runtime's own converter; int8 by post-training quantisation.

The network is first rewritten: batch norms are folded and no pixel is computed that nothing reads. The graph maps
`input` to `logits`, or, with preprocessing, uint8 images to `probabilities`.
"""

import contextlib
import importlib
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.inference import card_reader, export, model_card, predict, rewrite
from official_resnet.inputs.views import Views

_QUANTIZED = ['Conv', 'MatMul', 'Gemm', 'Add', 'MaxPool', 'AveragePool', 'GlobalAveragePool', 'Pad', 'Concat']


def rewritten(model: keras.Model, dtype: str | None = None) -> keras.Model:
    """Return the network as it is exported; `dtype` as in rewrite.fold_batch_norm."""
    return rewrite.propagate_strides(rewrite.fold_batch_norm(model, dtype))


def write(
    model: keras.Model,
    card: card_reader.Card,
    to: str,
    path: pathlib.Path,
    dtype: str = 'float32',
    preprocessing: bool = False,
    batch_size: int | None = None,
    calibration: np.ndarray | None = None,
) -> None:
    """Write a network to `path`, whose folder exists.

    Args:
        model: The network, as predict.load returns it.
        card: Its card.
        to: A key of formats.FORMATS, but not 'torch'.
        path: The file, or the folder of a SavedModel. OpenVINO's weights are beside it, with the suffix .bin.
        dtype: One of formats.DTYPES that the format has.
        preprocessing: Whether the graph takes uint8 [n, h, w, c] of card.size, not the network's own input.
        batch_size: The number of images that the graph takes. None: any number.
        calibration: For int8: inputs of the graph from which the ranges of activations are measured.

    Raises:
        UserError: The converter cannot convert this network.
        OSError: The file cannot be written.
    """
    if to in ('savedmodel', 'keras'):
        network = rewritten(model, None if dtype == 'float32' else dtype)
        if to == 'keras':
            model_card.write_network(path, rewrite.to_stock(network), ', or pass another --output')
        elif preprocessing:
            views = views_of(card)
            shape = (*card.size, card.num_channels)
            export.save(*export.serving(network, card.normalization, shape, views, batch_size), path)
        else:
            shape = (*card.net_size, card.num_channels)
            export.save(*export.network_alone(network, shape, batch_size), path)
        return
    graph = _graph(rewritten(model), card, preprocessing, batch_size)
    with export.os_errors(), _one_line(to), _quiet():
        if to == 'litert':
            write_litert(graph, path, dtype, preprocessing, calibration)
        else:
            with tempfile.TemporaryDirectory() as folder:
                source = path if to == 'onnx' else pathlib.Path(folder, 'network.onnx')
                write_onnx(graph, source, 'float32' if (to, dtype) == ('openvino', 'float16') else dtype, calibration)
                if to == 'openvino':
                    openvino = importlib.import_module('openvino')
                    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=dtype == 'float16')


def views_of(card: card_reader.Card) -> Views | None:
    """Return how a graph of TensorFlow turns a JPEG or PNG file into pixels as `card` says, or None if it cannot."""
    (rows, columns), resize = card.size, card.size[0] if card.resize == 'cover' else card.resize
    if rows != columns or card.num_channels != 3 or not isinstance(resize, int):
        return None
    kernel = 'antialias' if card.interpolation == 'bilinear' else 'bicubic'
    return Views(test_size=rows, test_resize=resize, resize=kernel, uses_exif=card.uses_exif)


def write_onnx(
    graph: keras.Model, path: str | os.PathLike, dtype: str = 'float32', calibration: np.ndarray | None = None
) -> None:
    """Write a network as an ONNX file: 'float32', 'float16' inside, or 'int8' (QDQ, one scale for each channel)."""
    (spec,) = graph.inputs
    signature = [keras.InputSpec(spec.dtype, spec.shape, name=spec.name)]
    importlib.import_module('tf2onnx')  # needed by Keras
    graph.export(str(path), format='onnx', verbose=False, input_signature=signature)
    if dtype == 'float16':
        onnx, float16 = map(importlib.import_module, ('onnx', 'onnxruntime.transformers.float16'))
        onnx.save(float16.convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
    elif dtype == 'int8':
        assert calibration is not None
        quantization = importlib.import_module('onnxruntime.quantization')
        size = graph.inputs[0].shape[0] or 1
        batches = ({spec.name: batch} for batch in _batches(calibration, size))
        with tempfile.TemporaryDirectory() as folder:
            prepared = os.path.join(folder, 'prepared.onnx')
            quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                path,
                type('Reader', (), {'get_next': lambda self: next(batches, None)})(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=_QUANTIZED,  # not what a normalisation of images consists of
                per_channel=True,
                reduce_range=True,  # weights of 7 bits: sums of products overflow on CPUs without VNNI
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )


def write_litert(
    graph: keras.Model, path: pathlib.Path, dtype: str, preprocessing: bool, calibration: np.ndarray | None
) -> None:
    """Write a network as a LiteRT file of built-in ops; 'float16' weights, or 'int8' weights and activations."""
    ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    options: dict[str, Any] = {}
    if dtype != 'float32':
        options['optimizations'] = [tf.lite.Optimize.DEFAULT]
    target = {'supported_types': [tf.float16]} if dtype == 'float16' else {}
    if dtype == 'int8':
        assert calibration is not None
        size = graph.inputs[0].shape[0] or 1
        options['representative_dataset'] = lambda: ([batch] for batch in _batches(calibration, size))
        # The cast of uint8 pixels has no integer kernel; everything else has.
        ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, *(ops if preprocessing else [])]
    graph.export(path, format='litert', verbose=False, target_spec={'supported_ops': ops, **target}, **options)


def _graph(network, card, preprocessing, batch_size):
    """Return a keras.Model from `input` to `logits`, or from uint8 `input` to `probabilities`."""
    if not preprocessing:
        images = keras.Input((*card.net_size, card.num_channels), batch_size, 'float32', name='input')
        return keras.Model(images, {'logits': network(images)})
    images = keras.Input((*card.size, card.num_channels), batch_size, 'uint8', name='input')
    shape = (*card.net_size, card.num_channels)

    def prepare(pixels) -> tf.Tensor:
        return predict.network_input(card, tf.cast(pixels, tf.float32))

    prepared = keras.layers.Lambda(prepare, output_shape=shape, dtype='float32', name='prepared')(images)
    probabilities = keras.layers.Softmax(dtype='float32', name='probabilities')(network(prepared))
    return keras.Model(images, {'probabilities': probabilities})


def _batches(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield batches of exactly this size; the last one is filled up with the first values."""
    for start in range(0, len(values), size):
        yield values[np.arange(start, start + size) % len(values)]


@contextlib.contextmanager
def _one_line(to):
    """Turn what a converter cannot convert into UserError."""
    try:
        yield
    except (UserError, OSError, MemoryError, tf.errors.OpError):
        raise
    except Exception as error:
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f'--to={to}: the converter refuses the network ({text[:200]}); pass another --to') from error


@contextlib.contextmanager
def _quiet():
    """Silence what the converters log and warn about: their own deprecated calls, and each op they convert."""
    loggers = [logging.getLogger(name) for name in ('tf2onnx', 'root', 'tensorflow', 'absl')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
