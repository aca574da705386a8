"""Measure the gradients of a network's convolutions before and during a short run."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from official_resnet import errors, resnet_variants
from official_resnet.inference import grad_cam
from official_resnet.inputs import datasets
from official_resnet.inputs.in_memory import InMemorySplit
from official_resnet.layers import NHWC, deep_graph
from official_resnet.training import optimizers, step

NUM_CLASSES = 10
AUXILIARY_WEIGHT = 0.3  # weight of each auxiliary loss, arXiv:1409.4842 Sec. 5
NUM_SAMPLES = 5  # gradients are stored before training and after each quarter of it
LOSS_STEPS = 10  # number of steps over which the final loss is averaged


def measure_net(
    case: tuple[str, bool, bool, int], examples: InMemorySplit, settings: dict[str, Any], received: Sequence[int]
) -> dict[str, Any]:
    """Train a network for a few steps and record the gradients of its convolutions.

    Args:
        case: (activation, has_bn, is_residual, depth).
        examples: The training images.
        settings: 'steps', 'batch_size', 'learning_rate', 'init', 'auxiliary_loss', 'seed'.
        received: The signals that have arrived, from devices.catch_signals.

    Returns:
        'layers': The names of the convolutions, from input to output.
        'samples': [{'step': number of steps done, 'gradients': root mean square of each kernel's gradient, or None if
            it is not finite}, ...].
        'losses': The loss of each step.
        'final_loss': The mean of the last losses, or None if training diverged.
        'diverged_at': The step whose loss is not finite, or None.
        'seconds': How long it took.

    Raises:
        errors.Interrupted: A signal has arrived.
    """
    begin = time.monotonic()
    layers, train_step = make_step(case, settings)
    steps, batch_size = settings['steps'], settings['batch_size']
    wanted = {round(i * steps / (NUM_SAMPLES - 1)) for i in range(NUM_SAMPLES)}
    num_epochs = steps // datasets.steps_per_epoch(examples.num_images, batch_size) + 1
    batches = examples.training_batches(batch_size, seed=settings['seed'], num_epochs=num_epochs)
    samples, losses, diverged_at = [], [], None
    for done, (images, labels) in zip(range(steps + 1), batches, strict=False):
        loss, gradients = (tensor.numpy().tolist() for tensor in train_step(images, labels))
        if done in wanted:
            samples.append({'step': done, 'gradients': [g if math.isfinite(g) else None for g in gradients]})
        if received:
            text = f'{signal.Signals(received[0]).name}: finished networks kept; run the same command again to continue'
            raise errors.Interrupted(received[0], text)
        if not math.isfinite(loss):
            diverged_at = done
            break
        losses.append(loss)
    last = losses[-LOSS_STEPS:]
    final_loss = sum(last) / len(last) if last and diverged_at is None else None
    result = {'layers': layers, 'samples': samples, 'losses': losses, 'diverged_at': diverged_at}
    return result | {'final_loss': final_loss, 'seconds': round(time.monotonic() - begin, 1)}


def make_step(
    case: tuple[str, bool, bool, int], settings: dict[str, Any]
) -> tuple[list[str], Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """Return the names of the convolutions and a compiled training step, (images, labels) -> loss, gradients [layers].

    Gradients are computed before the step changes the weights. The loss is that of the last classifier only.
    """
    activation, has_bn, is_residual, depth = case
    keras.utils.set_random_seed(settings['seed'] % 2**32)
    axes = {'activation': activation, 'batch_norm': has_bn, 'initializer': settings['init'], 'bn_momentum': 0.9}
    net = resnet_variants.cifar_resnet(depth, NUM_CLASSES, shortcut='A' if is_residual else None, **axes)
    convolutions = [layer for layer in net.layers if isinstance(layer, keras.layers.Conv2D)]
    model = with_auxiliary_heads(net) if settings['auxiliary_loss'] else net
    variables = model.trainable_variables
    places = {id(variable): index for index, variable in enumerate(variables)}
    kernels = [places[id(layer.kernel)] for layer in convolutions]
    optimizer = optimizers.CoupledSGD(settings['learning_rate'], 0.9)
    optimizer.build(variables)

    @tf.function
    def train_step(images, labels) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(images, training=True))
            losses = [tf.reduce_mean(step.cross_entropy(labels, logits)) for logits in outputs]
            loss = losses[0] + AUXILIARY_WEIGHT * sum(losses[1:])
        gradients = tape.gradient(loss, variables)
        optimizer.apply(gradients, variables)
        return losses[0], tf.stack([root_mean_square(gradients[index]) for index in kernels])

    return [layer.name for layer in convolutions], train_step


def with_auxiliary_heads(net: keras.Model) -> keras.Model:
    """Return a model with the network's logits and those of new mean and dense layers after all groups but the last."""
    maps = grad_cam.features(net)(net.input)
    outputs = [maps['logits']]
    for name in sorted(name for name in maps if name.startswith('group'))[:-1]:
        means = keras.layers.GlobalAveragePooling2D(data_format=NHWC)(maps[name])
        outputs.append(keras.layers.Dense(NUM_CLASSES, name=f'{name}_logits')(means))
    with deep_graph():
        return keras.Model(net.input, outputs)


def root_mean_square(tensor: tf.Tensor) -> tf.Tensor:
    """Return the root of the mean square, computed from scaled values: in float32, the square of 1e-30 is 0."""
    largest = tf.reduce_max(tf.abs(tensor))
    return largest * tf.sqrt(tf.reduce_mean(tf.square(tf.math.divide_no_nan(tensor, largest))))
