"""Strategies of one process do not disturb one another."""

import numpy as np
import tensorflow as tf

from official_resnet.training import replicas


def test_strategies_of_other_devices_and_of_others_exchange_in_one_process():
    """As after train with two GPUs, train with four, in a notebook that has a strategy of its own."""
    devices = tuple(tf.config.list_logical_devices('CPU'))
    ours = [replicas.mirror(some, None) for some in (devices, devices[::-1], devices[::1])]
    assert ours[0] is ours[2]
    theirs = tf.distribute.MirroredStrategy([device.name for device in devices])
    for size, strategy in enumerate((*ours, theirs), start=3):

        def add(size=size):
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([size]))

        sums = tf.function(lambda strategy=strategy, add=add: strategy.run(add))()
        for values in strategy.experimental_local_results(sums):
            np.testing.assert_array_equal(values, np.full(size, 2))
