"""The compiled functions of the loop: a step of training, and a batch of evaluation."""

import contextlib
from collections.abc import Callable

import keras
import tensorflow as tf

from official_resnet.training.config import TrainConfig

NUM_GUESSES = 5  # likeliest classes that top-5 accuracy considers


def make_train_function(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    config: TrainConfig,
    after_step: Callable[[tf.distribute.Strategy], None] | None = None,  # called in cross-replica context
) -> Callable:
    """Return the compiled (iterator, num_steps) -> float32 [num_steps, 2]: summed loss and number of hits per step."""
    variables = model.trainable_variables
    statistics = None
    if strategy.num_replicas_in_sync > 1:
        from official_resnet.training import replicas

        statistics = replicas.ReplicaStatistics(config.sync_batch_norm)
    is_training = config.transfer != 'head'  # a frozen backbone drops no blocks (stochastic depth)

    def gradients_of(images, labels) -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(images, training=is_training)
            losses = training_loss(labels, logits, config)
            # Divided by the global batch size, because the optimizer adds up the replicas' gradients.
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / config.batch_size)
        gradients = tape.gradient(loss, variables)
        if statistics:
            statistics.update_moving()
        return gradients, tf.stack([tf.reduce_sum(losses), count_correct(labels, logits)])

    def update(gradients) -> None:
        optimizer.apply(gradients, variables)

    def replica_step(images, labels) -> tf.Tensor:
        gradients, sums = gradients_of(images, labels)
        update(gradients)
        return sums

    if config.machine.enable_xla:
        replica_step = tf.function(replica_step, jit_compile=True)

    def step(images, labels) -> tf.Tensor:
        per_replica = strategy.run(replica_step, args=(images, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    if config.gradient_accumulation_steps > 1:
        from official_resnet.training import accumulation

        step = accumulation.make_step(strategy, gradients_of, update, variables, config)

    @tf.function
    def train_steps(iterator, num_steps) -> tf.Tensor:
        results = tf.TensorArray(tf.float32, num_steps, element_shape=[2])
        with statistics.handed_to(model) if statistics else contextlib.nullcontext():
            for i in tf.range(num_steps):
                results = results.write(i, step(*next(iterator)))
                if after_step:
                    after_step(strategy)
        return results.stack()

    return train_steps


def make_evaluate_function(strategy: tf.distribute.Strategy, model: keras.Model, test_views: str = 'plain') -> Callable:
    """Return the compiled (images, labels) -> float32 [3]: summed cross-entropy, hits, hits in the top 5.

    Images with label -1 are not counted. `test_views` is that of view_average.logits_of.
    """

    def replica_step(images, labels) -> tf.Tensor:
        if test_views == 'plain':
            logits = model(images, training=False)
        else:
            from official_resnet.inference import view_average

            logits = view_average.logits_of(model, images, test_views)
        is_counted = labels >= 0
        losses = tf.where(is_counted, cross_entropy(tf.maximum(labels, 0), logits), 0.0)
        is_in_top = tf.logical_and(tf.math.in_top_k(tf.maximum(labels, 0), logits, NUM_GUESSES), is_counted)
        return tf.stack(
            [tf.reduce_sum(losses), count_correct(labels, logits), tf.reduce_sum(tf.cast(is_in_top, tf.float32))]
        )

    @tf.function(reduce_retracing=True)
    def evaluate_batch(images, labels) -> tf.Tensor:
        per_replica = strategy.run(replica_step, args=(images, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    return evaluate_batch


def training_loss(labels: tf.Tensor, logits: tf.Tensor, config: TrainConfig) -> tf.Tensor:
    """Return the config's loss, float32 [n], of labels, int [n] or float32 [n, classes], which mixed images have."""
    if config.loss == 'softmax' and labels.shape.rank == 1:
        return cross_entropy(labels, logits, config.label_smoothing)
    from official_resnet.training import losses

    targets = losses.smoothed(labels, logits.shape[-1], config.label_smoothing)
    return losses.LOSSES[config.loss](targets, logits, config.target_threshold)


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Return the softmax cross-entropy, float32 [n], of labels, int [n], and logits, float32 [n, classes]."""
    if not smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    num_classes = logits.shape[-1]
    targets = tf.one_hot(labels, num_classes, 1 - smoothing + smoothing / num_classes, smoothing / num_classes)
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def count_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the number of images whose largest logit is that of their (likeliest) label, as float32."""
    labels = tf.argmax(labels, -1) if labels.shape.rank == 2 else labels
    is_correct = tf.equal(tf.argmax(logits, -1, tf.int32), tf.cast(labels, tf.int32))
    return tf.reduce_sum(tf.cast(is_correct, tf.float32))
