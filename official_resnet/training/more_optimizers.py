"""What a plain run does not import: LAMB, LARS, Muon and Adam; rates by kind of variable; clipping; loss scales."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from official_resnet.training.config import TrainConfig
from official_resnet.training.optimizers import CoupledSGD, decaying

HEAD, APPENDED_HEAD = 'logits', 'appended_logits'  # a network's last layer, and the layer that transfer appends


def build(config: TrainConfig, schedule: Any, loss_scale: float | None) -> keras.optimizers.Optimizer:
    """Return the optimizer of a config that is not plain SGD; see optimizers.build."""
    options: dict[str, Any] = {
        'loss_scale_factor': loss_scale,
        'backbone_factor': config.backbone_learning_rate_factor,
        'head_factor': config.head_learning_rate_factor,
        'bias_factor': config.bias_learning_rate_factor,
        'head_layers': (APPENDED_HEAD,) if config.head == 'append' else (HEAD,),
        'max_norm': config.clip_norm or (1.0 if config.optimizer == 'lamb' else None),
    }
    if config.optimizer == 'adam':
        # The numbers of arXiv:1412.6980 Alg. 1, as in torch.optim.Adam; Keras' default epsilon is 1e-7.
        return Adam(schedule, beta_1=0.9, beta_2=0.999, epsilon=1e-8, **options)
    options |= {'l2': config.weight_decay, 'decay': config.decay}
    if config.optimizer == 'lamb':
        return Lamb(schedule, **options)
    if config.optimizer == 'lars':
        return Lars(schedule, config.momentum, config.nesterov, **options)
    if config.optimizer == 'muon':
        return Muon(schedule, config.momentum, True, muon_momentum=config.muon_momentum, **options)
    decoupled_rate = config.learning_rate if config.decay_form == 'decoupled' else None
    return SGD(schedule, config.momentum, config.nesterov, decoupled_rate=decoupled_rate, **options)


@keras.saving.register_keras_serializable(package='official_resnet')
class DynamicLossScale(keras.optimizers.LossScaleOptimizer):
    """Keras' LossScaleOptimizer, for several devices: if a gradient of one is not finite, all of them leave out a step.

    Keras asks only the first replica of each worker, as if the gradients had been added up. So a weight of all would
    become infinite, and workers whose answers differ would wait for each other for ever.
    """

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Any = None) -> None:
        replica = tf.distribute.get_replica_context()
        is_wrong = tf.cast(tf.logical_not(self.check_finite(grads)), tf.float32)
        is_wrong = replica.all_reduce(tf.distribute.ReduceOp.SUM, is_wrong) > 0
        first, *others = grads
        super().apply([tf.where(is_wrong, math.nan, first), *others], trainable_variables)


class _Rates:
    """Mixin for Keras optimizers: the learning rate of each variable, and clipping.

    Args:
        backbone_factor: Factor of the learning rate of all layers but `head_layers`.
        head_factor, bias_factor: Factors of the rate of `head_layers`, and of the biases and batch norm offsets of all
            other layers. The weight decay of these is divided by the factor.
        head_layers: Names of layers.
        max_norm: Largest norm of all gradients together; None: they are not clipped.
    """

    def __init__(
        self,
        *args,
        backbone_factor: float = 1.0,
        head_factor: float = 1.0,
        bias_factor: float = 1.0,
        head_layers: Sequence[str] = (),
        max_norm: float | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.backbone_factor, self.head_factor, self.bias_factor = backbone_factor, head_factor, bias_factor
        self.head_layers, self.max_norm = tuple(head_layers), max_norm

    def build(self, variables):
        variables = list(variables)
        super().build(variables)
        self._rate_factor_of = {}
        for variable in variables:
            key, is_in_head = self._var_key(variable), variable.path.split('/')[0] in self.head_layers
            own = self.bias_factor if variable.name in ('bias', 'beta') else 1.0
            own = self.head_factor if is_in_head else own
            self._rate_factor_of[key] = own * (1.0 if is_in_head else self.backbone_factor)
            if key in self._l2_of:
                self._l2_of[key] /= own

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Clip the sum of the replicas' gradients; Keras' global_clipnorm clips those of each, before the sum."""
        pairs = super()._all_reduce_sum_gradients(grads_and_vars)
        if not self.max_norm:
            return pairs
        gradients, variables = zip(*pairs, strict=True)
        return list(zip(tf.clip_by_global_norm(gradients, self.max_norm)[0], variables, strict=True))

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * self._rate_factor_of[self._var_key(variable)])

    def get_config(self):
        names = ('backbone_factor', 'head_factor', 'bias_factor', 'max_norm')
        own = {name: getattr(self, name) for name in names}
        return super().get_config() | own | {'head_layers': list(self.head_layers)}


@keras.saving.register_keras_serializable(package='official_resnet')
class Adam(_Rates, keras.optimizers.Adam):
    """keras.optimizers.Adam (arXiv:1412.6980) with the rates and the clipping of _Rates."""

    _l2_of: dict[str, float] = {}


@keras.saving.register_keras_serializable(package='official_resnet')
class SGD(_Rates, CoupledSGD):
    """CoupledSGD with the rates and the clipping of _Rates.

    Args:
        decoupled_rate: If given, the decay is decoupled as in MosaicML's DecoupledSGDW: before the step,
            w -= lr / decoupled_rate * l2 * w, and the gradient has no l2 in it.
        **kwargs: Arguments of CoupledSGD and of _Rates.
    """

    def __init__(self, *args: Any, decoupled_rate: float | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decoupled_rate = decoupled_rate

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        if not self.decoupled_rate:
            super().update_step(gradient, variable, learning_rate)
            return
        key = self._var_key(variable)
        if key in self._l2_of:
            share = learning_rate / self.decoupled_rate * self.l2
            self.assign_sub(variable, share * tf.convert_to_tensor(variable))
        self.apply_momentum(gradient, variable, learning_rate * self._rate_factor_of[key])

    def get_config(self) -> dict:
        return super().get_config() | {'decoupled_rate': self.decoupled_rate}


def _trust_ratio(weight_norm, update_norm, factor=1.0):
    """Return factor * weight_norm / update_norm, or 1 if a norm is 0."""
    is_known = tf.logical_and(weight_norm > 0, update_norm > 0)
    return tf.where(is_known, factor * tf.math.divide_no_nan(weight_norm, update_norm), 1.0)


@keras.saving.register_keras_serializable(package='official_resnet')
class Lars(_Rates, CoupledSGD):
    """LARS (arXiv:1708.03888 Alg. 1) as in TensorFlow 1's LARSOptimizer, MLPerf's ResNet and official/resnet.

        ratio = 0.001 * |w| / (|gradient| + l2 * |w|);  m = momentum * m + lr * ratio * (gradient + l2 * w);  w -= m

    Weights that do not decay, by `decay`, have no l2 and the ratio 1. The momentum contains the learning rate, unlike
    CoupledSGD's.

    Args:
        **kwargs: Arguments of CoupledSGD and of _Rates.
    """

    trust_coefficient = 0.001

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        key = self._var_key(variable)
        learning_rate = learning_rate * self._rate_factor_of[key]
        if key in self._l2_of:
            l2, weights = self._l2_of[key], tf.convert_to_tensor(variable)
            norm = tf.norm(weights)
            learning_rate *= _trust_ratio(norm, tf.norm(gradient) + l2 * norm, self.trust_coefficient)
            gradient = gradient + l2 * weights
        self.apply_momentum(learning_rate * gradient, variable, 1.0)


@keras.saving.register_keras_serializable(package='official_resnet')
class Muon(_Rates, CoupledSGD):
    """Muon for the kernels of convolutions, as in airbench94_muon (arXiv:2404.00498's programs); else Nesterov SGD.

    A kernel has a matrix with a row for each filter. Its step is the Nesterov momentum of the gradient, made nearly
    orthogonal; before it, the kernel is scaled to the norm sqrt(filters), which takes the place of the weight decay.
    This changes what a network computes if no batch norm follows a convolution, as in SE blocks.

    Args:
        muon_momentum: Momentum of the kernels of convolutions.
        **kwargs: Arguments of CoupledSGD, for the other variables, and of _Rates.
    """

    def __init__(self, *args: Any, muon_momentum: float = 0.6, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.muon_momentum = muon_momentum

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)]
        momentum = gradient + self.muon_momentum * tf.convert_to_tensor(velocity)
        self.assign(velocity, momentum)
        filters, kernel = variable.shape[-1], tf.convert_to_tensor(variable)
        kernel *= tf.math.divide_no_nan(filters**0.5, tf.norm(kernel))
        # [h, w, in, filters] -> [h * w * in, filters]
        matrix = tf.reshape(gradient + self.muon_momentum * momentum, [-1, filters])
        step = learning_rate * self._rate_factor_of[self._var_key(variable)]
        self.assign(variable, kernel - step * tf.reshape(orthogonalize(matrix), variable.shape))

    def get_config(self) -> dict:
        return super().get_config() | {'muon_momentum': self.muon_momentum}


def orthogonalize(matrix: tf.Tensor, steps: int = 3, epsilon: float = 1e-7) -> tf.Tensor:
    """Return U S V', float32 [m, n], of a matrix with the singular value decomposition U D V', where S is near 1.

    This is the quintic Newton-Schulz iteration of airbench94_muon. It draws the singular values of the matrix, divided
    by its norm, towards 1, large and small ones alike: after three steps, all above 0.02 are within 0.68 to 1.21.
    """
    # In float32: of airbench94's step of 2,000 images it is 6 of 1,700 GFLOP, so bfloat16 would gain nothing.
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (tf.norm(matrix) + epsilon)
    is_tall = x.shape[0] > x.shape[1]  # then x'x is smaller than xx'
    for _ in range(steps):
        square = tf.matmul(x, x, transpose_a=is_tall, transpose_b=not is_tall)
        factor = b * square + c * tf.matmul(square, square)
        x = a * x + (tf.matmul(x, factor) if is_tall else tf.matmul(factor, x))
    return x


@keras.saving.register_keras_serializable(package='official_resnet')
class Lamb(_Rates, keras.optimizers.Optimizer):
    """LAMB (arXiv:1904.00962 Alg. 2) as timm has it, for the recipes of arXiv:2110.00476.

    The step of Adam with bias correction, plus l2 * w, is multiplied by |w| / |step| and the learning rate. Weights
    that do not decay, by `decay`, have neither l2 nor this ratio; timm's are those that 'kernels' leaves out.

    Args:
        l2: The coefficient of w in the step.
        decay: The variables that decay, as in CoupledSGD.
        **kwargs: Arguments of keras.optimizers.Optimizer and of _Rates.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        l2: float = 0.01,
        decay: str = 'kernels',
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **{'name': 'lamb'} | kwargs)
        self.l2, self.decay, self.beta_1, self.beta_2, self.epsilon = l2, decay, beta_1, beta_2, epsilon

    def build(self, variables: Iterable[keras.Variable]) -> None:
        variables = list(variables)
        self._l2_of = {self._var_key(variable): self.l2 for variable in decaying(variables, self.decay)}
        super().build(variables)
        self.moments = self.add_optimizer_variables(variables, ['momentum', 'velocity'])

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        key, i = self._var_key(variable), self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        mean, square = (tf.convert_to_tensor(moment[i]) for moment in self.moments)
        mean += (1 - self.beta_1) * (gradient - mean)
        square += (1 - self.beta_2) * (gradient**2 - square)
        for moment, value in zip(self.moments, (mean, square), strict=True):
            self.assign(moment[i], value)
        mean, square = mean / (1 - self.beta_1**step), square / (1 - self.beta_2**step)
        update, weights = mean / (tf.sqrt(square) + self.epsilon), tf.convert_to_tensor(variable)
        if l2 := self._l2_of.get(key):
            update += l2 * weights
            update *= _trust_ratio(tf.norm(weights), tf.norm(update))
        self.assign_sub(variable, learning_rate * self._rate_factor_of[key] * update)

    def get_config(self) -> dict:
        names = ('l2', 'decay', 'beta_1', 'beta_2', 'epsilon')
        config = super().get_config() | {name: getattr(self, name) for name in names}
        config.pop('weight_decay', None)
        return config
