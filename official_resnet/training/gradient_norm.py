"""The norm of the gradients of each step, which TensorBoard shows. Other runs do not import this module."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

LEAST = 1000  # norms that are kept; the loop decides itself for at most as many steps a call


class Watched:
    """An optimizer that keeps the global norms of the gradients that it applies, for step.make_train_function.

    The norm is that of the gradient of the whole batch, before clipping and weight decay, without the loss scale.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy, steps_per_call: int):
        self._optimizer, self._size = optimizer, max(LEAST, steps_per_call)
        kind = {
            'trainable': False,
            'synchronization': tf.VariableSynchronization.ON_READ,  # each replica has the same values
            'aggregation': tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        with strategy.scope():
            self._norms = tf.Variable(tf.zeros([self._size]), **kind)
            self._count = tf.Variable(tf.zeros([], tf.int64), **kind)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """See keras.optimizers.Optimizer."""
        return self._optimizer.scale_loss(loss)

    def apply(self, gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable]) -> None:
        """Apply the gradients of a replica, and keep the norm of the sum over all replicas."""
        whole, context = list(gradients), tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            whole = context.all_reduce(tf.distribute.ReduceOp.SUM, whole)
        squares = [tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32))) for gradient in whole]
        norm = tf.sqrt(tf.add_n(squares)) / self._optimizer.scale_loss(tf.ones([]))
        is_here = tf.equal(tf.range(self._size, dtype=tf.int64), self._count % self._size)
        self._norms.assign(tf.where(is_here, norm, self._norms))
        self._count.assign_add(1)
        self._optimizer.apply(gradients, variables)

    def newest(self, count: int) -> np.ndarray:
        """Return the norms of the last `count` steps, float32 [count]."""
        last = int(self._count.numpy())
        return self._norms.numpy()[np.arange(last - count, last) % self._size]
