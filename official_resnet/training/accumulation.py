"""Gradient accumulation: a step of a large batch in passes of small ones, which need less memory."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.training.config import TrainConfig


def make_step(
    strategy: tf.distribute.Strategy,
    gradients_of: Callable,
    update: Callable,
    variables: Sequence[keras.Variable],
    config: TrainConfig,
) -> Callable:
    """Return the step (images, labels) -> float32 [2], summed loss and number of hits, of a batch on all replicas.

    The gradients of --gradient_accumulation_steps equal parts of the batch are added up. The loss of a part is divided
    by the size of the whole batch, so this is the gradient of the whole batch; then the variables are updated once.
    Keras' own gradient_accumulation_steps is not used, since it counts passes as steps: its optimizer.iterations, and
    so our checkpoints, the seeds of the input, epochs and dynamic loss scaling would count them too.

    Args:
        gradients_of: (images, labels) -> (the gradients of the variables, float32 [2]), on a replica.
        update: Gradients -> None, the update of the variables on a replica, which adds up the replicas' gradients.

    Raises:
        UserError: The batch cannot be split evenly.
    """
    count, replicas = config.gradient_accumulation_steps, strategy.num_replicas_in_sync
    if config.batch_size % (count * replicas):
        remedy = f'pass --batch_size={max(config.batch_size // (count * replicas), 1) * count * replicas}'
        steps = f'--gradient_accumulation_steps={count}'
        raise UserError(f'--batch_size={config.batch_size} with {steps} on {replicas} devices: {remedy}')
    if config.machine.enable_xla:
        gradients_of = tf.function(gradients_of, jit_compile=True)
    with strategy.scope():  # each replica has its own
        kind = {'synchronization': tf.VariableSynchronization.ON_READ, 'trainable': False}
        totals = [tf.Variable(tf.zeros(variable.shape, variable.dtype), **kind) for variable in variables]

    def add_pass(images, labels, i) -> tf.Tensor:
        size = tf.shape(images)[0] // count
        gradients, sums = gradients_of(images[i * size : (i + 1) * size], labels[i * size : (i + 1) * size])
        for total, gradient in zip(totals, gradients, strict=True):
            total.assign_add(gradient)
        return sums

    def update_and_reset() -> None:
        update([tf.convert_to_tensor(total) for total in totals])
        for total in totals:
            total.assign(tf.zeros_like(total))

    def step(images, labels) -> tf.Tensor:
        sums = tf.zeros([2])
        for i in tf.range(count):
            per_replica = strategy.run(add_pass, args=(images, labels, i))
            sums += strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)
        strategy.run(update_and_reset)
        return sums

    return step
