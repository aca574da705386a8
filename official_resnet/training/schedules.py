"""Learning-rate schedules that Keras lacks."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from official_resnet.errors import UserError


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
    """Rise linearly from 0 over `steps` to the value of `schedule` there, then follow `schedule`."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule | dict, steps: float):
        self.schedule = keras.saving.deserialize_keras_object(schedule) if isinstance(schedule, dict) else schedule
        self.steps = float(steps)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        return self.schedule(tf.maximum(step, self.steps)) * tf.minimum(step / self.steps, 1.0)

    def get_config(self) -> dict:
        return {'schedule': keras.saving.serialize_keras_object(self.schedule), 'steps': self.steps}
