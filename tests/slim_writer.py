"""Write a checkpoint of one of tf-slim's nets, random weights and statistics, and expected.npz: images and logits.

    TF_USE_LEGACY_KERAS=1 python tests/slim_writer.py resnet_v1_50 1000 1 FOLDER 64 75     net, classes, V1 or V2, sizes

slim imports TensorFlow's old layers, which need the Keras of then; tf_keras still has them. They are put in place for
this process, and all that it imports afterwards.
"""

import importlib
import pathlib
import sys

import numpy as np
import tensorflow as tf

layers = importlib.import_module('tensorflow.python.layers')

for name in ('base', 'convolutional', 'core', 'normalization', 'pooling'):
    module = importlib.import_module(f'tf_keras.src.legacy_tf_layers.{name}')
    sys.modules[f'tensorflow.python.layers.{name}'] = module
    setattr(layers, name, module)

import tf_slim as slim  # noqa: E402, I001 - wants the names above
from tf_slim.nets import resnet_v1, resnet_v2  # noqa: E402

net, num_classes, version, folder, *sizes = sys.argv[1:]
module = {'1': resnet_v1, '2': resnet_v2}[net[8]]
random = np.random.default_rng(0)
images = {size: random.normal(size=(2, int(size), int(size), 3)).astype('float32') for size in sizes}
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    step = tf.compat.v1.train.create_global_step()
    logits = {}
    with slim.arg_scope(module.resnet_arg_scope()):
        for size in sizes:
            logits[size] = tf.squeeze(
                getattr(module, net)(
                    tf.constant(images[size]), int(num_classes), is_training=False, reuse=bool(logits)
                )[0],
                [1, 2],
            )
    session.run(tf.compat.v1.global_variables_initializer())
    for variable in tf.compat.v1.global_variables():
        name, shape = variable.op.name.rpartition('/')[2], variable.shape
        if name in ('gamma', 'moving_variance'):
            variable.load(random.uniform(0.5, 1.5, shape).astype('float32'), session)
        elif name in ('beta', 'moving_mean', 'biases'):
            variable.load(random.normal(0, 0.1, shape).astype('float32'), session)
    tf.compat.v1.train.Saver(write_version=int(version)).save(session, folder + '/model.ckpt', step)
    np.savez(
        pathlib.Path(folder, 'expected.npz'),
        **{f'images{size}': images[size] for size in sizes},
        **{f'logits{size}': session.run(logits[size]) for size in sizes},
    )
