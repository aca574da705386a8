"""The losses of labels that are not just classes, and binary cross-entropy, which asks about each class by itself."""

import math

import keras
import tensorflow as tf


def smoothed(labels: tf.Tensor, num_classes: int, smoothing: float) -> tf.Tensor:
    """Return labels as probabilities, float32 [n, num_classes], with `smoothing` spread evenly over all classes.

    As this is linear, mixed labels become what they are if the labels are smoothed first and then mixed.

    Args:
        labels: Classes, int [n], or probabilities, float32 [n, c]. Logits without images, after the first c, get 0.
        num_classes: Number of logits.
        smoothing: TrainConfig.label_smoothing.
    """
    if labels.shape.rank == 1:
        labels = tf.one_hot(labels, num_classes)
    probabilities = tf.pad(labels, [[0, 0], [0, num_classes - labels.shape[-1]]])
    return probabilities * (1 - smoothing) + smoothing / num_classes


def softmax(targets: tf.Tensor, logits: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """Return the softmax cross-entropy, float32 [n], of probabilities and logits, float32 [n, classes]."""
    del threshold  # TrainConfig refuses it
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def sigmoid(targets: tf.Tensor, logits: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """Return the mean over the classes of their binary cross-entropies, float32 [n].

    Args:
        targets: Probabilities, float32 [n, classes].
        logits: float32 [n, classes].
        threshold: Targets above it become 1, and the others 0, as in arXiv:2110.00476; 0 keeps them.
    """
    return sigmoid_sum(targets, logits, threshold) / logits.shape[-1]


def sigmoid_sum(targets: tf.Tensor, logits: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """Return the sum over the classes of their binary cross-entropies, float32 [n]; see `sigmoid`."""
    if threshold:
        targets = tf.cast(targets > threshold, tf.float32)
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), -1)


LOSSES = {'softmax': softmax, 'sigmoid': sigmoid, 'sigmoid_sum': sigmoid_sum}


def start_head(model: keras.Model) -> None:
    """Set the biases of the last layer to -log(classes), so that training begins with probabilities near 1 / classes.

    Otherwise they begin at 1/2, and the sum over many classes that are wrong decides the first steps.
    """
    bias = model.layers[-1].bias
    if bias is not None:
        bias.assign([-math.log(bias.shape[0])] * bias.shape[0])
