"""Learning rates in steps, and SGD with coupled weight decay. more_optimizers has the others."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from official_resnet.errors import UserError
from official_resnet.training.config import Schedule, TrainConfig


def make_schedule(
    schedule: Schedule, base_rate: float, steps_per_epoch: float, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate as a function of the step, for a schedule given in epochs.

    Args:
        base_rate: The rate that the factors multiply; of cosine and one_cycle, the highest rate.
        steps_per_epoch: images / batch size, not rounded, although an epoch consists of whole batches.
            Boundaries and the warm-up are rounded down to whole steps, as in official/resnet: with 390.625 steps per
            epoch, epoch 91 is step 35,546.
        total_steps: Steps of the whole training, where cosine and one_cycle end.
    """

    def step_of(epoch) -> int:
        return int(min(epoch * steps_per_epoch + 1e-6, 2**62))  # 81.92 * 390.625 is 32,000 up to rounding

    warmup_steps, rate = step_of(schedule.warmup_epochs), None
    if schedule.boundaries:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [step_of(epoch) for epoch in schedule.boundaries], [base_rate * factor for factor in schedule.factors]
        )
        if not warmup_steps:
            return rate
    from official_resnet.training import schedules

    start = warmup_steps if schedule.is_after_warmup and not rate else 0
    rate = rate or schedules.continuous(schedule, base_rate, max(total_steps - start, 1))
    if not warmup_steps:
        return rate
    return schedules.WarmUp(rate, warmup_steps, schedule.start_factor * base_rate, start)


def build(config: TrainConfig, schedule: keras.optimizers.schedules.LearningRateSchedule) -> keras.optimizers.Optimizer:
    """Return the optimizer of a config, with loss scaling if the config asks for it."""
    scale = config.loss_scale or (128.0 if config.dtype == 'fp16' else 1.0)
    static = None if scale in (1, 'dynamic') else float(scale)
    factors = {config.backbone_learning_rate_factor, config.head_learning_rate_factor, config.bias_learning_rate_factor}
    plain = 'momentum', 'coupled', None, {1}
    if (config.optimizer, config.decay_form, config.clip_norm, factors) == plain and scale != 'dynamic':
        own: dict[str, Any] = {'l2': config.weight_decay, 'decay': config.decay, 'loss_scale_factor': static}
        return CoupledSGD(schedule, config.momentum, config.nesterov, **own)
    from official_resnet.training import more_optimizers

    optimizer = more_optimizers.build(config, schedule, static)
    return more_optimizers.DynamicLossScale(optimizer) if scale == 'dynamic' else optimizer


def decaying(variables: Iterable[keras.Variable], decay: str) -> list[keras.Variable]:
    """Return the variables that decay: 'all', 'no_batch_norm' or 'kernels', see CoupledSGD."""
    excluded = {'all': (), 'no_batch_norm': ('gamma', 'beta'), 'kernels': ('gamma', 'beta', 'bias')}[decay]
    return [variable for variable in variables if variable.name not in excluded]


@keras.saving.register_keras_serializable(package='official_resnet')
class CoupledSGD(keras.optimizers.SGD):
    """Momentum SGD whose weight decay is part of the gradient, as in every ResNet paper.

    Keras' own SGD differs in two ways. Its `weight_decay` is decoupled, w -= lr * decay * w outside the momentum, so at
    momentum 0.9 the papers' number decays ten times less. And its velocity contains the learning rate, so a
    drop of the rate takes about ten steps to take effect. Here, as in TensorFlow 1's MomentumOptimizer and
    torch.optim.SGD:

        g = gradient + l2 * w;  m = momentum * m + g;  w -= lr * m  (Nesterov: lr * (g + momentum * m))

    Args:
        momentum: Momentum of SGD, 0.9 in arXiv:1512.03385 Sec. 3.4.
        l2: The coefficient of w in the gradient, which equals a loss term l2 / 2 * |w|^2. TensorFlow 1's
            `l2 * tf.nn.l2_loss(w)` has the same l2; keras.regularizers.l2(c) corresponds to l2 = 2c.
        decay: The variables that decay: 'all' (official/resnet on CIFAR), 'kernels' (convolutions and
            dense) or 'no_batch_norm' (kernels and the dense bias; official/resnet on ImageNet).
        **kwargs: Arguments of keras.optimizers.SGD.
    """

    momentum: float

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        l2: float = 0.0,
        decay: str = 'all',
        **kwargs: Any,
    ):
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **{'name': 'coupled_sgd'} | kwargs)
        if decay not in ('all', 'kernels', 'no_batch_norm'):
            raise UserError(f'decay={decay} must be one of all, kernels, no_batch_norm')
        if l2 < 0:
            raise UserError(f'weight decay {l2} is negative; pass 0 or more')
        self.l2, self.decay = float(l2), decay

    def build(self, variables: Iterable[keras.Variable]) -> None:
        variables = list(variables)
        self._l2_of = {self._var_key(variable): self.l2 for variable in decaying(variables, self.decay)}
        momentum, self.momentum = self.momentum, self.momentum or 1.0  # Keras has no velocity at momentum 0
        super().build(variables)
        self.momentum = momentum

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        if l2 := self._l2_of.get(self._var_key(variable)):
            gradient = gradient + l2 * tf.convert_to_tensor(variable)
        self.apply_momentum(gradient, variable, learning_rate)

    def apply_momentum(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor | float) -> None:
        """Add a gradient to the momentum of a variable, and subtract that, times the learning rate, from it."""
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )

    def get_config(self) -> dict:
        config = super().get_config()
        config.pop('weight_decay', None)
        return config | {'l2': self.l2, 'decay': self.decay}
