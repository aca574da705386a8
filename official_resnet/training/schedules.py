"""Learning rate schedules as Keras objects, in steps."""

import keras
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.training import config


@keras.saving.register_keras_serializable(package='official_resnet')
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between (step, value) points; constant before the first and after the last."""

    def __init__(self, steps, values):
        if len(steps) != len(values) or list(steps) != sorted(steps):
            raise UserError(f'schedule steps {list(steps)} must rise, one for each of values {list(values)}')
        self.steps = [float(step) for step in steps]
        self.values = [float(value) for value in values]

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.values[0])
        for i in range(1, len(self.steps)):
            start, length = self.steps[i - 1], max(self.steps[i] - self.steps[i - 1], 1e-9)
            part = tf.clip_by_value((step - start) / length, 0.0, 1.0)
            rate += (self.values[i] - self.values[i - 1]) * part
        return rate

    def get_config(self):
        return {'steps': self.steps, 'values': self.values}


@keras.saving.register_keras_serializable(package='official_resnet')
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly from 0 over `steps`, to what `schedule` gives there, then follow `schedule`."""

    def __init__(self, schedule, steps):
        self.schedule = keras.saving.deserialize_keras_object(schedule) if isinstance(schedule, dict) else schedule
        self.steps = float(steps)

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        return self.schedule(tf.maximum(step, self.steps)) * tf.minimum(step / self.steps, 1.0)

    def get_config(self):
        return {'schedule': keras.saving.serialize_keras_object(self.schedule), 'steps': self.steps}


def build(
    schedule: config.Schedule, base_rate: float, steps_per_epoch: float, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the Keras schedule, in steps, of a schedule in epochs.

    Args:
        schedule: in epochs.
        base_rate: the rate that factors multiply, or the peak.
        steps_per_epoch: images / batch size, a fraction, although an epoch has whole batches only. Boundaries and the
            warm-up are cut to whole steps, as in official/resnet: 390.625 steps put epoch 91 at step 35,546.
        total_steps: of the whole training; cosine and one_cycle end there.
    """

    def step_of(epoch):
        return int(epoch * steps_per_epoch + 1e-6)  # 81.92 * 390.625 is 32,000 but for rounding

    if schedule.kind == 'one_cycle':
        rate = PiecewiseLinear([0, schedule.peak * total_steps, total_steps], [0.0, base_rate, 0.0])
    elif schedule.kind == 'cosine':
        rate = keras.optimizers.schedules.CosineDecay(base_rate, max(total_steps, 1))
    elif schedule.kind == 'piecewise' and schedule.boundaries:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [step_of(epoch) for epoch in schedule.boundaries], [base_rate * factor for factor in schedule.factors]
        )
    else:
        rate = PiecewiseLinear([0], [base_rate])
    warmup_steps = step_of(schedule.warmup_epochs)
    return WarmUp(rate, warmup_steps) if warmup_steps else rate
