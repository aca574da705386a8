"""Averages of a network's weights and of its batch statistics, which the compiled step updates on the devices.

'ema' keeps an exponential moving average beside the weights (arXiv:1803.05407 averages them, too). With 'lookahead',
the weights themselves become the average at each update, and the training continues from there (arXiv:1907.08610).
The `use_ema` of Keras' optimizers leaves out the batch statistics, has no warm-up, and averages after every step.
"""

from typing import Any

import keras
import tensorflow as tf

from official_resnet.inference.network_files import AVERAGE
from official_resnet.training.config import TrainConfig

DEFAULTS = {'ema': (0.999, 1), 'lookahead': (0.95, 5)}  # average_decay, average_every


class WeightAverages:
    """The averages of the variables of a resnet_run_loop.Trainer's network, which the network can hold in their place.

    They begin as its weights. The trainer's card gets the field `weights`: which ones the network's files hold.

    Attributes:
        steps: Number of steps done; it is saved, so that an update comes at its step however a run was interrupted.
        is_shown: Whether the network holds the averages, and this object the weights.
    """

    def __init__(self, trainer: Any):
        config: TrainConfig = trainer.config
        decay, every = DEFAULTS[config.weight_averaging]
        self._decay = decay if config.average_decay is None else config.average_decay
        self._every = config.average_every or every
        self._is_lookahead, self._has_warmup = config.weight_averaging == 'lookahead', config.average_warmup
        self._total_steps = config.train_epochs * trainer.steps_per_epoch  # where the schedule of the rate ends
        self._is_used, self.is_shown = config.use_weights == 'average', False
        trainer.card['weights'] = config.weight_averaging if self._is_used else 'plain'
        trained = trainer.model.layers[-1] if config.transfer == 'head' else trainer.model
        # The state of a random generator is no number to average.
        variables = [variable for variable in trained.variables if tf.as_dtype(variable.dtype).is_floating]
        with trainer.process.strategy.scope():
            self._pairs = [(variable, tf.Variable(variable.numpy(), trainable=False)) for variable in variables]
            self.steps = tf.Variable(0, trainable=False, dtype=tf.int64)

    def decay(self, step: tf.Tensor) -> tf.Tensor:
        """Return the share of the average, float64 [], that an update after `step` steps, int64 [], keeps.

        It is d**n for n steps, as MosaicML (a half-life of 100 steps is d = 0.5**0.01) and Page's ResNet-9 have it.
        torchvision's rescaled decay is 1 - n * batch / epochs * (1 - decay), n steps at once. The warm-up is that of
        tf.train.ExponentialMovingAverage. The factor (step / total)**3 of lookahead is that of airbench
        (arXiv:2404.00498), and so is its end: after the last step the weights become the average, even if it is not
        yet time for an update, which then keeps all of it.
        """
        now = tf.cast(step, tf.float64)
        decay = tf.constant(self._decay, tf.float64)
        if self._is_lookahead:
            done = now / self._total_steps
            return tf.where(step % self._every == 0, decay**self._every * done**3, tf.ones_like(done))
        return (tf.minimum(decay, (1 + now) / (10 + now)) if self._has_warmup else decay) ** self._every

    def update(self, strategy: tf.distribute.Strategy) -> None:
        """Count a step and, if it is time, update the averages on each device. Call it in cross-replica context."""
        self.steps.assign_add(1)
        step = self.steps.read_value()
        is_end = self._is_lookahead & (step == self._total_steps)

        def approach() -> None:
            share = 1 - self.decay(step)
            for variable, average in self._pairs:
                # An average that equals its variable, for example of a frozen layer, stays equal to the last bit.
                strategy.extended.update(average, _lerp, (variable.value, tf.cast(share, average.dtype)))
                if self._is_lookahead:
                    strategy.extended.update(variable.value, lambda one, other: one.assign(other), (average,))

        tf.cond((step % self._every == 0) | is_end, approach, lambda: None)

    def show(self, is_shown: bool) -> None:
        """Make the network hold the averages, unless --use_weights=plain, or the weights; `named` follows."""
        if is_shown == self.is_shown or not self._is_used:
            return
        for variable, average in self._pairs:
            kept = variable.numpy()
            variable.assign(average.numpy())
            average.assign(kept)
        self.is_shown = is_shown

    def named(self) -> dict[str, tf.Variable | keras.Variable]:
        """Return {name in a checkpoint: variable} of the averages, their weights and the number of steps."""
        found = {f'{AVERAGE}steps': self.steps}
        for variable, average in self._pairs:
            plain, mean = (average, variable) if self.is_shown else (variable, average)
            found |= {variable.path: plain, AVERAGE + variable.path: mean}
        return found


def _lerp(average, variable, share):
    average.assign_add(share * (variable - average))
