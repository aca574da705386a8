"""A faster BatchNormalization, and the settings of Keras and Python under which networks are built."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

import official_resnet

official_resnet.require_tensorflow()

RECURSION_LEVELS = 40_000  # one per Keras layer: a network of 10,000 layers with weights has about 35,000
NHWC = 'channels_last'  # [images, height, width, channels] in every layer, whatever ~/.keras/keras.json says


@contextlib.contextmanager
def deep_graph() -> Iterator[None]:
    """Raise Python's recursion limit while Keras walks a network, and put it back.

    Keras builds, clones and loads a functional model by recursion, one level for each layer. ResNet-1202 exceeds
    Python's limit of 1000 levels.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, RECURSION_LEVELS))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextlib.contextmanager
def float32_weights() -> Iterator[None]:
    """Ignore Keras' floatx, which ~/.keras/keras.json may have for other networks. A dtype policy of its own counts."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx('float32')
    keras.config.set_dtype_policy('float32' if policy.name == floatx else policy)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class BatchNormalization(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization, computed by TensorFlow's fused kernel where it applies.

    Weights, config, results and moving statistics equal those of the stock layer, which on TensorFlow is a chain of a
    dozen ops and takes almost half of a ResNet's training step. The kernel applies to inputs [n, h, w, c] without a
    mask, in float32, bfloat16 or float16. Scale, offset and statistics are always float32. For all other inputs, the
    stock code runs.

    Keras saves this layer under the name of its own, so that a file loads, as the stock layer, without this package.

    Source: batch normalisation, arXiv:1502.03167 Algorithms 1 and 2.
    """

    __module__ = 'keras.layers'
    replicas: Any = None  # a training.replicas.ReplicaStatistics while a step for several replicas is traced

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        if not self._is_fusable(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        is_training = bool(training and self.trainable)
        if is_training and self.replicas and self.replicas.is_synchronized:
            return self.replicas.normalize(self, inputs)
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
            is_training=is_training,
        )
        if is_training:
            # The kernel returns the unbiased variance, sum / (count - 1); Keras averages the biased one.
            count = tf.cast(tf.size(inputs) // tf.size(mean), tf.float32)
            self._update_moving_statistics(mean, variance * (tf.maximum(count - 1, 1) / count))
        return outputs

    def _is_fusable(self, inputs, mask):
        return (
            mask is None
            and len(inputs.shape) == 4
            and self.axis in (3, -1)
            and inputs.dtype in ('float32', 'bfloat16', 'float16')
            and self.moving_mean.dtype == 'float32'
            and not self.synchronized
            and not self.renorm
        )

    def _update_moving_statistics(self, mean, variance):
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            if self.replicas:
                self.replicas.report(moving, batch, self.momentum)
            else:
                moving.assign(tf.convert_to_tensor(moving) * self.momentum + batch * (1 - self.momentum))


# Its name in files that were written before 2026-11-29.
keras.saving.get_custom_objects()['official_resnet>BatchNormalization'] = BatchNormalization
