"""Rewrite a network without changing its function: stock layers, folded batch norms, fewer pixels, compiled."""

import collections
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from official_resnet.layers import NHWC, BatchNormalization, deep_graph
from official_resnet.more_layers import Conv2D


def to_stock(model: keras.Model) -> keras.Model:
    """Return a functional model of stock Keras layers, which load without this package. `model` is not changed."""

    def clone(layer) -> keras.layers.Layer:
        kind = keras.layers.BatchNormalization if isinstance(layer, BatchNormalization) else _inference_class(layer)
        return kind.from_config(layer.get_config())

    return _rebuilt(model, clone)


def in_float32(model: keras.Model) -> keras.Model:
    """Return the network with all layers computing in float32: `model`, or a copy if it was trained in 16 bits."""
    if all(layer.compute_dtype == 'float32' for layer in model.layers):
        return model
    return _rebuilt(model, lambda layer: layer.__class__.from_config(layer.get_config() | {'dtype': 'float32'}))


def fold_batch_norm(model: keras.Model, dtype: str | None = None) -> keras.Model:
    """Return a model that computes the same in inference, with batch norms folded into the convolutions before them.

    If a batch norm is the only reader of a convolution, both become one convolution with a scaled kernel and a bias.
    No batch norm is left in versions 1 and 1.5. In version 2, those that follow a sum stay. Do not train the result.

    Args:
        model: A functional model, which is not changed.
        dtype: 'bfloat16' or 'float16' stores and computes in 16 bits, except for the logits and for the batch norms
            that are left. None keeps the policy of each layer.
    """
    makers = {id(layer.output): layer for layer in model.layers}
    readers = [tensor for layer in model.layers for tensor in keras.tree.flatten(layer.input)]
    num_readers = collections.Counter(id(tensor) for tensor in (*readers, *model.outputs))
    norms = {}  # name of a convolution -> the batch norm that is folded into it
    for norm in (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)):
        conv = makers.get(id(norm.input))
        if isinstance(conv, keras.layers.Conv2D) and num_readers[id(conv.output)] == 1:
            if conv.activation is keras.activations.linear:
                norms[conv.name] = norm
    folded = {norm.name for norm in norms.values()}

    def clone(layer) -> keras.layers.Layer:
        config = layer.get_config()
        if layer.name in norms:
            config['use_bias'] = True
        if dtype and layer.output is not model.output:
            config['dtype'] = f'mixed_{dtype}' if isinstance(layer, keras.layers.BatchNormalization) else dtype
        return _inference_class(layer).from_config(config)

    def call(layer, *args, **kwargs) -> tf.Tensor:
        return args[0] if layer.name in folded else layer(*args, **kwargs)

    def weights_of(layer) -> list[np.ndarray]:
        """Return [kernel, bias] of a convolution with its batch norm, computed in float64, or a layer's own weights."""
        if layer.name not in norms:
            return layer.get_weights()
        norm = norms[layer.name]
        mean, variance = (np.asarray(value, 'float64') for value in (norm.moving_mean, norm.moving_variance))
        scale = (np.asarray(norm.gamma, 'float64') if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
        bias = (np.asarray(layer.bias, 'float64') if layer.use_bias else 0.0) - mean
        offset = np.asarray(norm.beta, 'float64') if norm.center else 0.0
        return [np.asarray(layer.kernel, 'float64') * scale, bias * scale + offset]  # kernel [h, w, in, out]

    return _rebuilt(model, clone, call, weights_of)


def propagate_strides(model: keras.Model) -> keras.Model:
    """Return a model that computes the same in inference, without the pixels that no layer reads.

    If all readers of a feature map are 1x1 convolutions with stride 2, three quarters of its pixels are not needed. In
    version 1 this is so for the last block of each group. The stride moves up through ReLU, batch norm, sums and 1x1
    convolutions into the nearest convolution that reads neighbouring pixels, and identity shortcuts are subsampled.
    This turns He's ResNet-50 (arXiv:1512.03385) into slim's, where the last block of a group has the stride. Do not
    train the result, because batch norm would see fewer pixels. `model` is functional and is not changed.
    """
    makers = {id(layer.output): layer for layer in model.layers}
    read = collections.defaultdict(set)  # id of a tensor -> the strides at which it is read
    for output in model.outputs:
        read[id(output)].add(1)
    strides = {}  # name of a layer -> stride of the pixels that are computed
    for layer in reversed(model.layers):
        wanted, step = read[id(layer.output)], _pixel_stride(layer)
        is_conv = isinstance(layer, keras.layers.Conv2D) and layer.dilation_rate == (1, 1)
        # The padding of a strided convolution depends on the image size, so such a convolution cannot skip pixels.
        can_stride = step is not None or is_conv and (layer.padding == 'valid' or layer.strides == (1, 1))
        strides[layer.name] = max(wanted) if len(wanted) == 1 and can_stride else 1
        for tensor in keras.tree.flatten(layer.input):
            read[id(tensor)].add(strides[layer.name] * step if step else 1)

    def remaining(layer, tensor) -> int:
        """Return the stride at which `layer` has to read the new `tensor`."""
        return strides[layer.name] * _pixel_stride(layer) // strides[makers[id(tensor)].name]

    def clone(layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Conv2D):
            if _pixel_stride(layer):
                config['strides'] = remaining(layer, layer.input)
            elif strides[layer.name] > 1:
                config['strides'] = [stride * strides[layer.name] for stride in layer.strides]
                config['padding'] = 'valid'  # because `call` pads as at stride 1
        return _inference_class(layer).from_config(config)

    def call(layer, inputs, **kwargs) -> tf.Tensor:
        old, options = model.get_layer(layer.name), {'data_format': NHWC, 'dtype': layer.dtype_policy}

        def sample(old_tensor, tensor) -> tf.Tensor:
            stride = remaining(old, old_tensor)
            return keras.layers.MaxPooling2D(1, stride, **options)(tensor) if stride > 1 else tensor

        if not isinstance(old, keras.layers.Conv2D):
            if _pixel_stride(old):
                inputs = keras.tree.map_structure(sample, old.input, inputs)
        elif layer.padding != old.padding:
            pads = [((size - 1) // 2, size // 2) for size in old.kernel_size]
            inputs = keras.layers.ZeroPadding2D(pads, **options)(inputs)
        return layer(inputs, **kwargs)

    return _rebuilt(model, clone, call)


def _rebuilt(model, clone, call=None, weights_of=keras.layers.Layer.get_weights):
    """Return a copy of a model: clone(layer), called as call(layer, inputs), gets weights_of(layer of `model`)."""
    with deep_graph():
        rebuilt = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in rebuilt.layers:
        if layer.weights:
            layer.set_weights(weights_of(model.get_layer(layer.name)))
    return rebuilt


def _inference_class(layer):
    """Return the class of a layer, but Keras' own for a convolution: TensorFlow fuses its bias and ReLU into it."""
    return keras.layers.Conv2D if isinstance(layer, Conv2D) else layer.__class__


def _pixel_stride(layer):
    """Return a pointwise layer's stride: 1 for ReLU, addition and batch norm, the stride of a 1x1 convolution.

    Return None for a layer that mixes neighbouring pixels.
    """
    if isinstance(layer, keras.layers.Conv2D):
        is_1x1 = layer.kernel_size == layer.dilation_rate == (1, 1) and len(set(layer.strides)) == 1
        return layer.strides[0] if is_1x1 else None
    is_activation = isinstance(layer, keras.layers.Activation)
    is_relu = isinstance(layer, keras.layers.ReLU) or is_activation and layer.activation is keras.activations.relu
    is_sum = isinstance(layer, keras.layers.Add) and len({tensor.shape for tensor in layer.input}) == 1
    return 1 if is_relu or is_sum or isinstance(layer, keras.layers.BatchNormalization) else None


def compile_model(
    model: keras.Model, image_shape: Sequence[int] | None = None, dtype: str | None = None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a compiled function from images to outputs, for a model whose weights will not change any more.

    It computes propagate_strides(fold_batch_norm(model, dtype)). The weights are constants of its graph, so TensorFlow
    can fuse bias, addition and ReLU into the convolutions, and chooses the best layout of the kernels once.

    Args:
        model: A functional model with one input, float32 images. It is not changed.
        image_shape: (h, w, c) of the images, if the model allows any size. Without it, TensorFlow cannot tell that the
            two branches of a strided block have the same shape, and does not fuse their addition.
        dtype: See fold_batch_norm.
    """
    model = propagate_strides(fold_batch_norm(model, dtype))
    values = [[v.numpy() for v in part] for part in (model.trainable_variables, model.non_trainable_variables)]
    shape = (None, *image_shape) if image_shape else model.input.shape

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def call(images) -> tf.Tensor:
        constants = ([tf.constant(value) for value in part] for part in values)
        return model.stateless_call(*constants, images, training=False)[0]

    return call
