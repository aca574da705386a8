"""Keras layers that Keras lacks or runs slowly, and the limit that Keras needs for deep networks."""

import collections
import contextlib
import sys
from collections.abc import Iterator

import keras
import tensorflow as tf

RECURSION_LEVELS = 40_000  # a level a layer: a network of 10,000 layers with weights has about 35,000
NHWC = 'channels_last'  # of every layer, whatever ~/.keras/keras.json says: [images, height, width, channels]


@contextlib.contextmanager
def deep_graph() -> Iterator[None]:
    """Raise Python's recursion limit while Keras walks a network, and put it back.

    Keras builds, clones and loads a functional model by recursion, a level a layer. 1202 layers with weights, and all
    between them, exceed Python's 1000 levels.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, RECURSION_LEVELS))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class ReplicaStatistics:
    """What the batch norms of a model find on each of several replicas, in one step of training.

    A batch norm that was handed this leaves its moving statistics alone and reports what it found instead. The step
    then takes the reports of its replica and makes the same update of them everywhere, in one exchange.

    Args:
        is_synchronized: batch norms also normalise by the batches of all replicas, which have one size.
    """

    def __init__(self, is_synchronized: bool):
        self.is_synchronized = is_synchronized
        self._found = collections.defaultdict(list)  # replica id -> reports

    @contextlib.contextmanager
    def handed_to(self, model: keras.Model) -> Iterator[None]:
        """Hand this to the batch norms of a model while the block traces a step for all replicas."""
        norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
        for norm in norms:
            norm.replica_statistics = self
        try:
            yield
        finally:
            self._found.clear()
            for norm in norms:
                norm.replica_statistics = None

    def report(self, moving: keras.Variable, batch: tf.Tensor, momentum: float) -> None:
        """Take down a moving statistic, the same of this replica's batch, and its momentum."""
        self._found[_replica_id()].append((moving, batch, momentum))

    def take(self) -> list[tuple[keras.Variable, tf.Tensor, float]]:
        """Return the reports of this replica, which are forgotten here."""
        return self._found.pop(_replica_id(), [])


def _replica_id() -> int:
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))


@keras.saving.register_keras_serializable(package='official_resnet')
class BatchNormalization(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization, computed by TensorFlow's fused kernel where it applies.

    Same weights, config, results and moving statistics as the stock layer (which on TensorFlow is a
    chain of a dozen ops and takes almost half of a ResNet's training step). The kernel applies to
    4-D inputs without a mask, [n, h, w, c], in float32, bfloat16 or float16; scale,
    offset and statistics are float32 throughout. Anything else falls back to the stock code.

    Attributes:
        replica_statistics: a ReplicaStatistics while a step for several replicas is traced, else None.

    Source: batch normalisation, arXiv:1502.03167 Algorithms 1 and 2.
    """

    replica_statistics: ReplicaStatistics | None = None

    def call(self, inputs, training=None, mask=None):
        if not self._is_fusable(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        is_training = bool(training and self.trainable)
        if is_training and self.replica_statistics and self.replica_statistics.is_synchronized:
            return self._call_synchronized(inputs)
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

    def _call_synchronized(self, inputs):
        """Normalise [n, h, w, c] by the statistics of the batches of all replicas."""
        values = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(values, [0, 1, 2], keepdims=True)
        # The variance of equal parts is the mean of theirs and the variance of their means: no small difference of
        # large numbers but between the parts.
        mean, variance, square = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.MEAN, [mean, variance, tf.square(mean)]
        )
        variance += tf.maximum(square - tf.square(mean), 0)
        scale = tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            scale *= tf.convert_to_tensor(self.gamma)
        outputs = (values - mean) * scale
        if self.center:
            outputs += tf.convert_to_tensor(self.beta)
        self._update_moving_statistics(tf.reshape(mean, [-1]), tf.reshape(variance, [-1]))
        return tf.cast(outputs, inputs.dtype)

    def _update_moving_statistics(self, mean, variance):
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            if self.replica_statistics:
                self.replica_statistics.report(moving, batch, self.momentum)
            else:
                moving.assign(tf.convert_to_tensor(moving) * self.momentum + batch * (1 - self.momentum))
