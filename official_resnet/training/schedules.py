"""Learning-rate schedules that Keras lacks."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.training.config import Schedule


def continuous(schedule: Schedule, base_rate: float, num_steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate of cosine, one_cycle or constant over `num_steps`, without the warm-up.

    one_cycle with power 2 falls as LARS does in MLPerf's ResNet, if its peak is where the warm-up ends.
    """
    end = base_rate * schedule.end_factor
    if schedule.kind == 'cosine':
        return keras.optimizers.schedules.CosineDecay(base_rate, num_steps, schedule.end_factor)
    if schedule.kind != 'one_cycle':
        return PiecewiseLinear([0.0], [base_rate])
    start, peak = base_rate * schedule.start_factor, schedule.peak * num_steps
    if schedule.power == 1:
        points = [(0, start)] * bool(peak) + [(peak, base_rate), (num_steps, end)]
        return PiecewiseLinear(*zip(*points, strict=True))
    fall = keras.optimizers.schedules.PolynomialDecay(base_rate, max(num_steps - peak, 1), end, schedule.power)
    return WarmUp(fall, peak, start, peak) if peak else fall


@keras.saving.register_keras_serializable(package='official_resnet')
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Interpolate linearly between (step, value) points; constant before the first and after the last."""

    def __init__(self, steps: Sequence[float], values: Sequence[float]):
        if len(steps) != len(values) or list(steps) != sorted(steps):
            raise UserError(f'schedule steps {list(steps)} must increase, one for each of values {list(values)}')
        self.steps = [float(step) for step in steps]
        self.values = [float(value) for value in values]

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.values[0])
        for i in range(1, len(self.steps)):
            start, length = self.steps[i - 1], max(self.steps[i] - self.steps[i - 1], 1e-9)
            fraction = tf.clip_by_value((step - start) / length, 0.0, 1.0)
            rate += (self.values[i] - self.values[i - 1]) * fraction
        return rate

    def get_config(self) -> dict:
        return {'steps': self.steps, 'values': self.values}


@keras.saving.register_keras_serializable(package='official_resnet')
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly over `steps` from `start` to the value of `schedule` there, then follow `schedule`.

    `schedule` begins at the step `shift`: 0, or `steps` if it begins where the warm-up ends.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | dict,
        steps: float,
        start: float = 0.0,
        shift: float = 0.0,
    ):
        self.schedule = keras.saving.deserialize_keras_object(schedule) if isinstance(schedule, dict) else schedule
        self.steps, self.start, self.shift = float(steps), float(start), float(shift)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rate = self.schedule(tf.maximum(step, self.steps) - self.shift)
        return self.start + (rate - self.start) * tf.minimum(step / self.steps, 1.0)

    def get_config(self) -> dict:
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {'schedule': schedule, 'steps': self.steps, 'start': self.start, 'shift': self.shift}
