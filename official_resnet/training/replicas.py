"""Several devices that train together, each on its part of a batch: one process' mirrored strategy, and batch norm.

Imported only where there is more than one.
"""

import collections
import contextlib
import functools
from collections.abc import Iterator

import keras
import tensorflow as tf

from official_resnet.layers import BatchNormalization


@functools.lru_cache
def mirror(devices: tuple[str, ...], all_reduce_alg: str | None) -> tf.distribute.Strategy:
    """Return the one MirroredStrategy of these devices: a second would number its collective ops from the start."""
    ops = {'nccl': tf.distribute.NcclAllReduce, 'ring': tf.distribute.HierarchicalCopyAllReduce}
    return tf.distribute.MirroredStrategy(devices, ops[all_reduce_alg]() if all_reduce_alg else None)


class ReplicaStatistics:
    """What the batch norms of a model find on each of several replicas, in one step of training.

    A batch norm that was handed this leaves its moving statistics alone and reports what it found instead. At the end
    of the step, the reports of all replicas become the same update everywhere, in one exchange. With is_synchronized,
    batch norms also normalise by the batches of all replicas, which have one size.
    """

    def __init__(self, is_synchronized: bool):
        self.is_synchronized = is_synchronized
        self._found = collections.defaultdict(list)  # replica id -> reports

    @contextlib.contextmanager
    def handed_to(self, model: keras.Model) -> Iterator[None]:
        """Hand this to the batch norms of a model while the block traces a step for all replicas."""
        norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
        for norm in norms:
            norm.replicas = self
        try:
            yield
        finally:
            self._found.clear()
            for norm in norms:
                norm.replicas = None

    def normalize(self, norm: BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
        """Return [n, h, w, c] normalised by the statistics of the batches of all replicas, which are reported."""
        values = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(values, [0, 1, 2], keepdims=True)
        # The variance of equal parts is the mean of theirs and the variance of their means: no small difference of
        # large numbers but between the parts.
        mean, variance, square = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.MEAN, [mean, variance, tf.square(mean)]
        )
        variance += tf.maximum(square - tf.square(mean), 0)
        scale = tf.math.rsqrt(variance + norm.epsilon)
        if norm.scale:
            scale *= tf.convert_to_tensor(norm.gamma)
        outputs = (values - mean) * scale
        if norm.center:
            outputs += tf.convert_to_tensor(norm.beta)
        self.report(norm.moving_mean, tf.reshape(mean, [-1]), norm.momentum)
        self.report(norm.moving_variance, tf.reshape(variance, [-1]), norm.momentum)
        return tf.cast(outputs, inputs.dtype)

    def report(self, moving: keras.Variable, batch: tf.Tensor, momentum: float) -> None:
        """Take down a moving statistic, the same of this replica's batch, and its momentum."""
        self._found[_replica_id()].append((moving, batch, momentum))

    def update_moving(self) -> None:
        """Update the moving statistics on every replica by the mean of what the replicas reported."""
        reports = self._found.pop(_replica_id(), [])
        if not reports:  # every batch norm is frozen
            return
        batches = [batch for _, batch, _ in reports]
        mean = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, tf.concat(batches, 0))
        parts = tf.split(mean, [batch.shape[0] for batch in batches])
        for (moving, _, momentum), batch in zip(reports, parts, strict=True):
            moving.assign(tf.convert_to_tensor(moving) * momentum + batch * (1 - momentum))


def _replica_id():
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))
