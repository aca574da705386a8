"""Writing TF1 checkpoints with tf.compat.v1, and random weights to fill them."""

import numpy as np
import tensorflow as tf


def write(path, variables, version=2):
    """Write {name: array} with tf.compat.v1.train.Saver, V1 as the one file `path`, V2 with it as the prefix."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in variables.items():
            tf.compat.v1.get_variable(name, initializer=tf.constant(value))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(write_version=version).save(session, str(path), write_meta_graph=False)
    return path


def random_value(name, shape, random):
    """Return float32 weights and statistics at which no layer is an identity and signals neither die nor grow."""
    last = name.rpartition('/')[2]
    if last in ('gamma', 'moving_variance'):
        value = random.uniform(0.5, 1.5, shape)
    elif last in ('beta', 'moving_mean', 'biases', 'bias'):
        value = random.normal(0, 0.1, shape)
    else:
        value = random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)  # He's
    return value.astype('float32')
