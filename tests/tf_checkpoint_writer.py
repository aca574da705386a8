"""Writing TF1 checkpoints with tf.compat.v1, filling networks with random weights, building ours from a source."""

import numpy as np
import tensorflow as tf

from checkpoints_tools import convert
from official_resnet import resnet_model


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


def our_model(module, variables, shapes=None, source=None):
    """Return (our keras.Model with the weights of {name: array}, Source) of one of the from_FAMILY."""
    shapes = shapes or {name: (np.shape(value), str(np.asarray(value).dtype)) for name, value in variables.items()}
    source = source or module.describe(shapes)
    entries = module.name_map(source, shapes)
    convert.check_sources(entries, module.ignored(shapes), shapes, 'the checkpoint')
    model = resnet_model.resnet(source.spec, source.num_classes, (None, None, 3))
    convert.assign(model, entries, variables, 'the checkpoint')
    return model, source


def assert_equal(got, expected, tolerance=1e-4):
    """Within `tolerance` of the largest logit."""
    assert got.shape == expected.shape and np.isfinite(expected).all() and expected.std() > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())
