"""The blocks that arXiv:1603.05027 compares with the original one: other shortcuts (Fig. 2), other orders (Fig. 4).

    block = make_block({'gate': 'exclusive', 'gate_bias': -6.0})
    model = resnet_model.resnet(spec, num_classes, input_shape, block)

An experiment is a dict, which a run stores as TrainConfig.experiment. Two rows of the paper need no block of their
own: a 1x1 convolution as the shortcut is shortcut='C', full pre-activation is version='2'.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor as Tensor

from official_resnet import resnet_model
from official_resnet.errors import UserError
from official_resnet.layers import NHWC
from official_resnet.resnet_spec import block_convolutions

ORDERS = ('original', 'bn_after_addition', 'relu_before_addition', 'relu_only_preactivation')


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an experiment changes of the block of version 1; g is a sigmoid of a 1x1 convolution of the shortcut."""

    order: str = 'original'  # where batch norm, ReLU and the addition stand, one of ORDERS
    shortcut_scale: float = 1.0  # constants by which the two branches are multiplied (Fig. 2b)
    residual_scale: float = 1.0
    gate: str | None = None  # 'exclusive': (1 - g) x + g F(x) (Fig. 2c); 'shortcut_only': (1 - g) x + F(x) (Fig. 2d)
    gate_bias: float = 0.0  # what the bias of that convolution starts at
    shortcut_dropout: float = 0.0  # rate of dropout on the shortcut (Fig. 2f)

    def __post_init__(self):
        if self.order not in ORDERS:
            raise UserError(f'order={self.order!r} must be one of {", ".join(ORDERS)}')
        if self.gate not in ('exclusive', 'shortcut_only', None):
            raise UserError(f"gate={self.gate!r} must be 'exclusive', 'shortcut_only' or None")
        if not 0 <= self.shortcut_dropout < 1:
            raise UserError(f'shortcut_dropout={self.shortcut_dropout} must be a rate, 0 or more and below 1')
        others = (self.shortcut_scale, self.residual_scale, self.gate, self.gate_bias, self.shortcut_dropout)
        if self.order != 'original' and others != (1.0, 1.0, None, 0.0, 0.0):
            raise UserError(f'order={self.order!r} goes with no other change; leave the others out')


def make_block(experiment: dict[str, Any]) -> Callable[..., Tensor]:
    """Return the block function, called as residual_block, of the fields of Experiment that are not its defaults.

    >>> from official_resnet.resnet_spec import ResNetSpec
    >>> block = make_block({'order': 'relu_before_addition'})
    >>> block(keras.Input((8, 8, 16)), ResNetSpec((3, 3, 3)), filters=16, stride=1, name='block').shape
    (None, 8, 8, 16)

    Raises:
        UserError: an unknown field or a wrong value. The block function raises it for a network that no experiment
            is about.
    """
    unknown = experiment.keys() - {field.name for field in dataclasses.fields(Experiment)}
    if unknown:
        raise UserError(f'the experiment {experiment} has an unknown field, {min(unknown)}; leave it out')
    trial = Experiment(**experiment)

    def block(x, spec, filters, stride, name, *, is_first=False, dilation=1, drop_rate=0.0):
        others = (spec.version == '2', spec.shortcut is None, spec.se_reduction, spec.zero_gamma, drop_rate)
        if any(others) or dilation > 1:
            raise UserError(
                f'the experiment {experiment} is about blocks of version 1 with a shortcut; pass a spec without '
                'se_reduction, zero_gamma, stochastic_depth and output_stride'
            )
        return _block(x, spec, block_convolutions(spec, filters, stride), stride, name, is_first, trial)

    return block


def _block(x, spec, convs, stride, name, is_first, trial):
    """Return the output of a block whose order of batch norm, ReLU and addition is that of Fig. 4 (a) to (d).

    (a) ReLU(F(x) + shortcut(x)), its branches changed as in Fig. 2; (b) ReLU(BN(F(x) + shortcut(x))), where F ends with
    a convolution; (c) F(x) + shortcut(x), where F ends with a ReLU and so is never negative; (d) F(x) + shortcut(x),
    where F begins with a ReLU and ends with a batch norm. Of (d), the first block of the network has the batch norm
    that the stem lacks, which a spec with stem_bn=False says, and a ReLU follows the last block's addition (Appendix).
    """
    order, residual, first_bn = trial.order, x, 1
    if order == 'relu_only_preactivation':
        if spec.stem_bn is not False or spec.stem not in ('cifar', 'mnist'):
            raise UserError(f"order='{order}' needs stem_bn=False, not {spec.stem_bn}, and stem='cifar'")
        if name == 'group1_block1':
            x = resnet_model.batch_norm(x, spec, 'stem_bn')
        residual, first_bn = resnet_model.activation(x, spec, f'{name}_relu1'), 2
    shortcut = resnet_model.shortcut_of(
        x, spec, convs[-1].filters, stride, name, is_first=is_first, preactivated=residual
    )
    for i, conv in enumerate(convs):
        if i:
            residual = resnet_model.batch_norm(residual, spec, f'{name}_bn{i + first_bn - 1}')
            residual = resnet_model.activation(residual, spec, f'{name}_relu{i + first_bn - 1}')
        residual = resnet_model.convolution(residual, spec, conv, f'{name}_conv{i + 1}')
    if order == 'bn_after_addition':
        y = keras.layers.Add(name=f'{name}_add')([residual, shortcut])
        y = resnet_model.batch_norm(y, spec, f'{name}_bn{len(convs) + 1}')
        return resnet_model.activation(y, spec, f'{name}_out')
    residual = resnet_model.batch_norm(residual, spec, f'{name}_bn{len(convs) + first_bn - 1}')
    if order == 'original':
        y = keras.layers.Add(name=f'{name}_add')(_changed(residual, shortcut, spec, name, trial))
        return resnet_model.activation(y, spec, f'{name}_out')
    if order == 'relu_before_addition':
        residual = resnet_model.activation(residual, spec, f'{name}_relu{len(convs)}')
    y = keras.layers.Add(name=f'{name}_out')([residual, shortcut])
    is_last = name == f'group{len(spec.group_blocks)}_block{spec.group_blocks[-1]}'
    return resnet_model.activation(y, spec, 'head_relu') if order == 'relu_only_preactivation' and is_last else y


def _changed(residual, shortcut, spec, name, trial):
    """Return [F(x), shortcut(x)], scaled, gated or dropped (Fig. 2)."""
    if trial.gate:
        options = {'kernel_initializer': resnet_model.INITIALIZERS[spec.initializer](), 'activation': 'sigmoid'}
        options |= {'bias_initializer': keras.initializers.Constant(trial.gate_bias), 'data_format': NHWC}
        gate = keras.layers.Conv2D(residual.shape[-1], 1, **options, name=f'{name}_gate')(shortcut)
        rest = keras.layers.Rescaling(-1.0, 1.0, name=f'{name}_gate_rest')(gate)  # 1 - g
        shortcut = keras.layers.Multiply(name=f'{name}_gated_shortcut')([shortcut, rest])
        if trial.gate == 'exclusive':
            residual = keras.layers.Multiply(name=f'{name}_gated')([residual, gate])
    if trial.residual_scale != 1:
        residual = keras.layers.Rescaling(trial.residual_scale, name=f'{name}_scale')(residual)
    if trial.shortcut_scale != 1:
        shortcut = keras.layers.Rescaling(trial.shortcut_scale, name=f'{name}_shortcut_scale')(shortcut)
    if trial.shortcut_dropout:
        shortcut = keras.layers.Dropout(trial.shortcut_dropout, name=f'{name}_shortcut_dropout')(shortcut)
    return [residual, shortcut]
