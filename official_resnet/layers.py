"""Keras layers that Keras lacks or runs slowly, and what rewrites a network as an equal one."""

import collections
import contextlib
import threading

import keras
import numpy as np
import tensorflow as tf

_replica = threading.local()  # of a replica: MirroredStrategy has a thread for each


@contextlib.contextmanager
def across_replicas(synchronized):
    """Make BN in training know of the other replicas.

    Inside, moving statistics are left alone; those of the batch are collected in the list that this yields, as
    (variable, value, momentum), for whoever makes the same of them on every replica.

    Args:
        synchronized: also normalise by the statistics of the batches of all replicas, which are of one size.
    """
    _replica.updates, _replica.is_synchronized = [], synchronized
    try:
        yield _replica.updates
    finally:
        _replica.updates, _replica.is_synchronized = None, False


@keras.saving.register_keras_serializable(package='official_resnet')
class BatchNormalization(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization, computed by TensorFlow's fused kernel where it applies.

    Same weights, config, results and moving statistics as the stock layer (which on TensorFlow is a
    chain of a dozen ops and takes almost half of a ResNet's training step). The kernel applies to
    4-D inputs without a mask, [n, h, w, c] or [n, c, h, w], in float32, bfloat16 or float16; scale,
    offset and statistics are float32 throughout. Anything else falls back to the stock code.

    Source: batch normalisation, arXiv:1502.03167 Algorithms 1 and 2.
    """

    def call(self, inputs, training=None, mask=None):
        if not self._is_fusable(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        is_channels_first = self.axis in (1, -3)
        needs_transpose = is_channels_first and not tf.config.list_logical_devices('GPU')
        if needs_transpose:  # the CPU kernel knows NHWC only
            inputs = tf.transpose(inputs, [0, 2, 3, 1])  # [n, c, h, w] -> [n, h, w, c]
        is_training = bool(training and self.trainable)
        if is_training and getattr(_replica, 'is_synchronized', False):
            outputs = self._call_synchronized(inputs, 1 if is_channels_first and not needs_transpose else 3)
            return tf.transpose(outputs, [0, 3, 1, 2]) if needs_transpose else outputs
        moving_mean = tf.convert_to_tensor(self.moving_mean)
        moving_variance = tf.convert_to_tensor(self.moving_variance)
        empty = tf.zeros([0], tf.float32)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(moving_mean),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(moving_mean),
            mean=empty if is_training else moving_mean,
            variance=empty if is_training else moving_variance,
            epsilon=self.epsilon,
            data_format='NCHW' if is_channels_first and not needs_transpose else 'NHWC',
            is_training=is_training,
        )
        if is_training:
            # The kernel returns the unbiased variance, sum / (count - 1); Keras averages the biased one.
            count = tf.cast(tf.size(inputs) // tf.size(mean), tf.float32)
            self._update_moving_statistics(mean, variance * (tf.maximum(count - 1, 1) / count))
        return tf.transpose(outputs, [0, 3, 1, 2]) if needs_transpose else outputs

    def _is_fusable(self, inputs, mask):
        return (
            mask is None
            and len(inputs.shape) == 4
            and self.axis in (1, -3, 3, -1)
            and inputs.dtype in ('float32', 'bfloat16', 'float16')
            and self.moving_mean.dtype == 'float32'
            and not self.synchronized
            and not self.renorm
        )

    def _call_synchronized(self, inputs, channel_axis):
        """Normalise 4-D inputs by the statistics of the batches of all replicas."""
        values = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(values, [axis for axis in range(4) if axis != channel_axis], keepdims=True)
        # The variance of equal parts is the mean of theirs and the variance of their means: no small difference of
        # large numbers but between the parts.
        mean, variance, square = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.MEAN, [mean, variance, tf.square(mean)]
        )
        variance += tf.maximum(square - tf.square(mean), 0)
        scale = tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            scale *= tf.reshape(self.gamma, mean.shape)
        outputs = (values - mean) * scale
        if self.center:
            outputs += tf.reshape(self.beta, mean.shape)
        self._update_moving_statistics(tf.reshape(mean, [-1]), tf.reshape(variance, [-1]))
        return tf.cast(outputs, inputs.dtype)

    def _update_moving_statistics(self, mean, variance):
        updates = getattr(_replica, 'updates', None)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            if updates is None:
                moving.assign(tf.convert_to_tensor(moving) * self.momentum + batch * (1 - self.momentum))
            else:
                updates.append((moving, batch, self.momentum))


@keras.saving.register_keras_serializable(package='official_resnet')
class Conv2D(keras.layers.Conv2D):
    """keras.layers.Conv2D, whose bias belongs to the filters in channels_first too.

    Keras 3.15 adds it along the width of an image that is as wide as there are filters.
    """

    def call(self, inputs):
        if not self.use_bias or self.data_format == 'channels_last':
            return super().call(inputs)
        outputs = tf.nn.bias_add(self.convolution_op(inputs, self.kernel), self.bias, 'NCHW')
        return outputs if self.activation is None else self.activation(outputs)


def conv_class(data_format, use_bias):
    """Return the layer of a convolution: Keras' own, but where that adds the bias to the wrong axis."""
    return Conv2D if use_bias and data_format == 'channels_first' else keras.layers.Conv2D


def to_stock(model):
    """Return the same functional model in stock Keras layers only: equal weights and outputs.

    The result needs nothing of this package to be loaded. `model` is left as it is. (Where Keras errs, so does
    the result: see Conv2D.)
    """

    def clone(layer):
        for ours in (BatchNormalization, Conv2D):
            if isinstance(layer, ours):
                stock = ours.__base__.from_config(layer.get_config())
                stock.trainable = layer.trainable
                return stock
        return layer.__class__.from_config(layer.get_config())

    stock = keras.models.clone_model(model, clone_function=clone)
    stock.set_weights(model.get_weights())
    return stock


def fold_batch_norm(model, dtype=None):
    """Return a functional model that computes the same in inference, with BN inside the convolutions before it.

    A convolution followed by BN alone becomes one with scaled kernel and a bias, in stock Keras layers (in
    channels_last: see Conv2D); of v1 and v1.5 nothing is left of BN, of v2 the BNs that follow a sum or another
    BN's ReLU stay. Not for training.

    Args:
        model: a functional keras.Model; left as it is.
        dtype: 'bfloat16' or 'float16' stores and computes in 16 bits (BN that stays and logits apart);
            None keeps each layer's own policy.
    """
    producers = _producers(model)
    num_readers = collections.Counter(
        id(tensor)
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
        for tensor in keras.tree.flatten(layer.input)
    )
    num_readers.update(id(tensor) for tensor in model.outputs)
    norms = {}  # name of a convolution -> the BN that it swallows
    for norm in model.layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            conv = producers.get(id(norm.input))
            if (
                isinstance(conv, keras.layers.Conv2D)
                and conv.activation is keras.activations.linear
                and (num_readers[id(conv.output)] == 1)
            ):
                norms[conv.name] = norm
    swallowed = {norm.name for norm in norms.values()}

    def clone(layer):
        config = layer.get_config()
        if layer.name in norms:
            config['use_bias'] = True
        if dtype and layer.output is not model.output:
            config['dtype'] = f'mixed_{dtype}' if isinstance(layer, keras.layers.BatchNormalization) else dtype
        cls = layer.__class__
        if cls is keras.layers.Conv2D:
            cls = conv_class(layer.data_format, config['use_bias'])
        return cls.from_config(config)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in swallowed else layer(*args, **kwargs)

    folded = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in folded.layers:
        if layer.weights:
            old = model.get_layer(layer.name)
            layer.set_weights(_folded_weights(old, norms[layer.name]) if layer.name in norms else old.get_weights())
    return folded


def _folded_weights(conv, norm):
    """Return [kernel, bias] of a convolution and the BN behind it, computed in float64."""
    mean, variance = (np.asarray(value, 'float64') for value in (norm.moving_mean, norm.moving_variance))
    scale = (np.asarray(norm.gamma, 'float64') if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    bias = (np.asarray(conv.bias, 'float64') if conv.use_bias else 0.0) - mean
    offset = np.asarray(norm.beta, 'float64') if norm.center else 0.0
    return [np.asarray(conv.kernel, 'float64') * scale, bias * scale + offset]  # kernel [h, w, in, out]


def propagate_strides(model):
    """Return a functional model that computes the same in inference, without the pixels that nobody reads.

    Where all readers of a map are 1x1 convolutions of stride 2, three of four of its pixels are made in vain: in
    version 1, those of each group's last block. Here the stride moves up through ReLU, BN, sums and 1x1
    convolutions, into the convolution that reads neighbours; an identity shortcut is sub-sampled. He's ResNet-50
    (arXiv:1512.03385) so becomes slim's, whose stride is in a group's last unit. Not for training, where BN
    normalises by all pixels.

    Args:
        model: a functional keras.Model; left as it is.
    """
    producers = _producers(model)
    read = collections.defaultdict(set)  # id of a tensor -> the strides at which it is read
    for output in model.outputs:
        read[id(output)].add(1)
    strides = {}  # name of a layer -> of its pixels, those at this stride are computed
    for layer in reversed(model.layers):
        wanted, step = read[id(layer.output)], _pixel_stride(layer)
        strides[layer.name] = max(wanted) if len(wanted) == 1 and _can_stride(layer) else 1
        for tensor in keras.tree.flatten(layer.input):
            read[id(tensor)].add(strides[layer.name] * step if step else 1)
    data_format = next((layer.data_format for layer in model.layers if isinstance(layer, keras.layers.Conv2D)), None)

    def remaining(layer, tensor):
        """Return the stride at which `layer` has to read what becomes of `tensor`."""
        return strides[layer.name] * _pixel_stride(layer) // strides[producers[id(tensor)].name]

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Conv2D):
            if _pixel_stride(layer):
                config['strides'] = remaining(layer, layer.input)
            elif strides[layer.name] > 1:
                config['strides'] = [stride * strides[layer.name] for stride in layer.strides]
                config['padding'] = 'valid'  # padded by `call`, at any stride as at stride 1
        return layer.__class__.from_config(config)

    def call(layer, inputs, **kwargs):
        old, options = model.get_layer(layer.name), {'data_format': data_format, 'dtype': layer.dtype_policy}

        def sample(old_tensor, tensor):
            stride = remaining(old, old_tensor)
            return keras.layers.MaxPooling2D(1, stride, **options)(tensor) if stride > 1 else tensor

        if not isinstance(old, keras.layers.Conv2D):
            if _pixel_stride(old):
                inputs = keras.tree.map_structure(sample, old.input, inputs)
        elif layer.padding != old.padding:
            pads = [((size - 1) // 2, size // 2) for size in old.kernel_size]
            inputs = keras.layers.ZeroPadding2D(pads, **options)(inputs)
        return layer(inputs, **kwargs)

    rewritten = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in model.layers:
        if layer.weights:
            rewritten.get_layer(layer.name).set_weights(layer.get_weights())
    return rewritten


def _producers(model):
    """Return {id of a tensor: the layer that makes it}."""
    return {id(layer.output): layer for layer in model.layers}


def _pixel_stride(layer):
    """Return the stride at which a layer reads the pixels of which it makes one each; None if it is no such layer."""
    if isinstance(layer, keras.layers.Conv2D):
        is_1x1 = layer.kernel_size == layer.dilation_rate == (1, 1) and len(set(layer.strides)) == 1
        return layer.strides[0] if is_1x1 else None
    is_relu = isinstance(layer, keras.layers.ReLU) or (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    )
    is_sum = isinstance(layer, keras.layers.Add) and len({tensor.shape for tensor in layer.input}) == 1
    return 1 if is_relu or is_sum or isinstance(layer, keras.layers.BatchNormalization) else None


def _can_stride(layer):
    """Return whether a layer can leave out pixels: not where it pads by the image size, nor in other layers."""
    return (
        _pixel_stride(layer) is not None
        or isinstance(layer, keras.layers.Conv2D)
        and (layer.dilation_rate == (1, 1) and (layer.padding == 'valid' or layer.strides == (1, 1)))
    )
