"""SGD with coupled L2, and learning rate schedules given in epochs."""

import dataclasses

import keras
import tensorflow as tf

from official_resnet.errors import UserError


@keras.saving.register_keras_serializable(package='official_resnet')
class CoupledSGD(keras.optimizers.SGD):
    """Momentum SGD whose weight decay is part of the gradient, as in every ResNet paper.

    Keras' own SGD differs twice. Its `weight_decay` is decoupled, w -= lr * decay * w outside the
    momentum, which at momentum 0.9 decays ten times less than the papers' number. And it stores the
    learning rate inside the velocity, so that a drop of the rate takes ten steps to arrive. Here

        g = gradient + l2 * w;  m = momentum * m + g;  w -= lr * m  (Nesterov: lr * (g + momentum * m))

    as TensorFlow 1's MomentumOptimizer and torch.optim.SGD have it.

    Args:
        learning_rate: a number or a Keras schedule in steps.
        momentum: 0.9 in 1512.03385 Sec. 3.4.
        nesterov: take Nesterov's step.
        l2: coefficient of w in the gradient: the loss holds l2 / 2 * |w|^2. TensorFlow 1's
            `l2 * tf.nn.l2_loss(w)` is the same l2; keras.regularizers.l2(c) is l2 = 2c.
        decay: which variables decay: 'all' (official/resnet on CIFAR), 'kernels' (convolutions and
            dense) or 'no_batch_norm' (kernels and the dense bias; official/resnet on ImageNet).
        backbone_factor: multiplies the learning rate of all variables but those of `head_layers`.
        head_layers: names of layers, the first part of a variable's path.
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        nesterov=False,
        l2=0.0,
        decay='all',
        backbone_factor=1.0,
        head_layers=(),
        name='coupled_sgd',
        **kwargs,
    ):
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, name=name, **kwargs)
        if decay not in ('all', 'kernels', 'no_batch_norm'):
            raise UserError(f"decay={decay!r} is none of 'all', 'kernels', 'no_batch_norm'")
        if l2 < 0:
            raise UserError(f'weight decay {l2} is negative')
        self.l2 = float(l2)
        self.decay = decay
        self.backbone_factor = float(backbone_factor)
        self.head_layers = tuple(head_layers)

    def build(self, variables):
        variables = list(variables)
        excluded = {'all': (), 'no_batch_norm': ('gamma', 'beta'), 'kernels': ('gamma', 'beta', 'bias')}
        self._l2_of = {self._var_key(v): 0.0 if v.name in excluded[self.decay] else self.l2 for v in variables}
        self._rate_factor_of = _rate_factors(self, variables)
        momentum, self.momentum = self.momentum, self.momentum or 1.0  # Keras has no velocity at momentum 0
        super().build(variables)
        self.momentum = momentum

    def update_step(self, gradient, variable, learning_rate):
        l2 = self._l2_of[self._var_key(variable)]
        if l2:
            gradient = gradient + l2 * tf.convert_to_tensor(variable)
        learning_rate = learning_rate * self._rate_factor_of[self._var_key(variable)]
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )

    def get_config(self):
        config = super().get_config()
        config.pop('weight_decay', None)
        return config | {
            'l2': self.l2,
            'decay': self.decay,
            'backbone_factor': self.backbone_factor,
            'head_layers': list(self.head_layers),
        }


@keras.saving.register_keras_serializable(package='official_resnet')
class Adam(keras.optimizers.Adam):
    """keras.optimizers.Adam (arXiv:1412.6980) with `backbone_factor` and `head_layers`, as in CoupledSGD."""

    def __init__(self, *args, backbone_factor=1.0, head_layers=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone_factor = float(backbone_factor)
        self.head_layers = tuple(head_layers)

    def build(self, variables):
        variables = list(variables)
        self._rate_factor_of = _rate_factors(self, variables)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = learning_rate * self._rate_factor_of[self._var_key(variable)]
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {'backbone_factor': self.backbone_factor, 'head_layers': list(self.head_layers)}


def _rate_factors(optimizer, variables):
    """Return {key: what multiplies the learning rate} of Keras variables."""
    return {
        optimizer._var_key(v): 1.0 if v.path.split('/')[0] in optimizer.head_layers else optimizer.backbone_factor
        for v in variables
    }


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


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over a training, in epochs and relative to its base (or peak) rate.

    Attributes:
        kind: 'piecewise': base * factors[i] between the boundaries; 'cosine': from base to 0
            (arXiv:1608.03983 Eq. 5, one period); 'one_cycle': 0 to base at peak_epoch, then to 0, in
            straight lines (after arXiv:1708.07120); 'constant'.
        boundaries: epochs at which the rate changes (piecewise).
        factors: one more than boundaries (piecewise).
        peak: share of the training at which one_cycle peaks, 0 to 1.
        warmup_epochs: linear rise from 0 before the schedule proper.
    """

    kind: str = 'piecewise'
    boundaries: tuple = ()
    factors: tuple = (1.0,)
    peak: float = 0.25
    warmup_epochs: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, 'boundaries', tuple(self.boundaries))  # lists, when read from JSON
        object.__setattr__(self, 'factors', tuple(self.factors))
        if self.kind not in ('piecewise', 'cosine', 'one_cycle', 'constant'):
            raise UserError(f"lr_schedule {self.kind!r} is none of 'piecewise', 'cosine', 'one_cycle', 'constant'")
        if self.kind == 'piecewise' and (
            len(self.factors) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(self.boundaries)
        ):
            raise UserError(f'lr_boundaries {self.boundaries} must rise, and lr_factors {self.factors} be one more')
        if not 0 < self.peak < 1 or self.warmup_epochs < 0:
            raise UserError(
                f'one_cycle peak {self.peak} must lie between 0 and 1, warmup_epochs {self.warmup_epochs} not below 0'
            )

    def build(self, base_rate, steps_per_epoch, total_steps):
        """Return the Keras schedule in steps.

        Args:
            base_rate: the rate that factors multiply, or the peak.
            steps_per_epoch: may be a fraction; boundaries are truncated to whole steps, as in
                official/resnet, whose 390.625 steps put epoch 91 at step 35,546.
            total_steps: of the whole training; cosine and one_cycle end there.
        """
        if self.kind == 'one_cycle':
            schedule = PiecewiseLinear([0, self.peak * total_steps, total_steps], [0.0, base_rate, 0.0])
        elif self.kind == 'cosine':
            schedule = keras.optimizers.schedules.CosineDecay(base_rate, max(total_steps, 1))
        elif self.kind == 'piecewise' and self.boundaries:
            # The small addend undoes float rounding: 32000 / 390 * 390 must not become 31999.
            steps = [int(epoch * steps_per_epoch + 1e-6) for epoch in self.boundaries]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
                steps, [base_rate * factor for factor in self.factors]
            )
        else:
            schedule = PiecewiseLinear([0], [base_rate])
        if self.warmup_epochs:
            schedule = WarmUp(schedule, self.warmup_epochs * steps_per_epoch)
        return schedule
