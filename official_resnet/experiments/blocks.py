"""The residual blocks of arXiv:1603.05027: other shortcuts (Fig. 2), and batch norm and ReLU in other orders (Fig. 4).

    block = make_block({'gate': 'exclusive', 'gate_bias': -6.0})
    model = resnet_model.resnet(spec, num_classes, input_shape, block)

An experiment is a dict of fields of Experiment, which a run stores as TrainConfig.experiment. Two rows of the paper
need only a spec: a 1x1 convolution as the shortcut is shortcut='C', full pre-activation is version='2'.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor as Tensor

from official_resnet import resnet_model
from official_resnet.errors import UserError
from official_resnet.layers import NHWC
from official_resnet.more_layers import Conv2D
from official_resnet.resnet_spec import block_convolutions

ORDERS = ('original', 'bn_after_addition', 'relu_before_addition', 'relu_only_preactivation')


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The changes to the block of version 1. A gate g is the sigmoid of a 1x1 convolution of the shortcut, 0..1."""

    order: str = 'original'  # of batch norm, ReLU and addition, one of ORDERS
    shortcut_scale: float = 1.0  # constant factor of the shortcut (Fig. 2b)
    residual_scale: float = 1.0  # constant factor of F(x) (Fig. 2b)
    gate: str | None = None  # 'exclusive': (1 - g) x + g F(x) (Fig. 2c); 'shortcut_only': (1 - g) x + F(x) (Fig. 2d)
    gate_bias: float = 0.0  # initial bias of the convolution of the gate
    shortcut_dropout: float = 0.0  # rate of the dropout on the shortcut (Fig. 2f), 0 or more and below 1

    def __post_init__(self):
        if self.order not in ORDERS:
            raise UserError(f'order={self.order!r} must be one of {", ".join(ORDERS)}')
        if self.gate not in ('exclusive', 'shortcut_only', None):
            raise UserError(f"gate={self.gate!r} must be 'exclusive', 'shortcut_only' or None")
        if not 0 <= self.shortcut_dropout < 1:
            raise UserError(f'shortcut_dropout={self.shortcut_dropout} must be a rate, 0 or more and below 1')
        changes = (self.shortcut_scale, self.residual_scale, self.gate, self.gate_bias, self.shortcut_dropout)
        if self.order != 'original' and changes != (1.0, 1.0, None, 0.0, 0.0):
            raise UserError(f'order={self.order!r} cannot be combined with other changes; leave them out')


def make_block(experiment: dict[str, Any]) -> Callable[..., Tensor]:
    """Return a block function, called like residual_block, for the fields of Experiment that `experiment` changes.

    >>> from official_resnet.resnet_spec import ResNetSpec
    >>> block = make_block({'order': 'relu_before_addition'})
    >>> block(keras.Input((8, 8, 16)), ResNetSpec((3, 3, 3)), filters=16, stride=1, name='block').shape
    (None, 8, 8, 16)

    Raises:
        UserError: A field is unknown or a value is wrong. The block function raises it for an unsuitable spec.
    """
    unknown = experiment.keys() - {field.name for field in dataclasses.fields(Experiment)}
    if unknown:
        raise UserError(f'the experiment {experiment} has an unknown field, {min(unknown)}; leave it out')
    changes = Experiment(**experiment)

    def block(x, spec, filters, stride, name, *, is_first=False, dilation=1, drop_rate=0.0) -> keras.KerasTensor:
        unfit = (spec.version == '2', spec.shortcut is None, spec.se_reduction, spec.eca, spec.zero_gamma, drop_rate)
        if any(unfit) or dilation > 1:
            raise UserError(
                f'the experiment {experiment} needs blocks of version 1 with a shortcut; pass a spec without '
                'se_reduction, eca, zero_gamma, stochastic_depth and output_stride'
            )
        return _block(x, spec, block_convolutions(spec, filters, stride), stride, name, is_first, changes)

    return block


def _block(x, spec, convs, stride, name, is_first, changes):
    """Return the output of a block with one of the four orders of Fig. 4 (a) to (d), the rows of ORDERS.

    (a) ReLU(F(x) + shortcut(x)), where an experiment may change the branches as in Fig. 2.
    (b) ReLU(BN(F(x) + shortcut(x))), where F ends with a convolution.
    (c) F(x) + shortcut(x), where F ends with a ReLU, so it is never negative.
    (d) F(x) + shortcut(x), where F begins with a ReLU and ends with a batch norm. The stem has no batch norm
    (stem_bn=False), so the first block begins with one, and a ReLU follows the addition of the last block (Appendix).
    """
    order, residual, first_bn = changes.order, x, 1
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
        y = keras.layers.Add(name=f'{name}_add')(_change_branches(residual, shortcut, spec, name, changes))
        return resnet_model.activation(y, spec, f'{name}_out')
    if order == 'relu_before_addition':
        residual = resnet_model.activation(residual, spec, f'{name}_relu{len(convs)}')
    y = keras.layers.Add(name=f'{name}_out')([residual, shortcut])
    is_last = name == f'group{len(spec.group_blocks)}_block{spec.group_blocks[-1]}'
    return resnet_model.activation(y, spec, 'head_relu') if order == 'relu_only_preactivation' and is_last else y


def _change_branches(residual, shortcut, spec, name, changes):
    """Return [F(x), shortcut(x)] after scaling, gating or dropout (Fig. 2)."""
    if changes.gate:
        options = {'kernel_initializer': resnet_model.INITIALIZERS[spec.initializer](), 'activation': 'sigmoid'}
        options |= {'bias_initializer': keras.initializers.Constant(changes.gate_bias), 'data_format': NHWC}
        gate = Conv2D(residual.shape[-1], 1, **options, name=f'{name}_gate')(shortcut)
        one_minus_gate = keras.layers.Rescaling(-1.0, 1.0, name=f'{name}_gate_rest')(gate)
        shortcut = keras.layers.Multiply(name=f'{name}_gated_shortcut')([shortcut, one_minus_gate])
        if changes.gate == 'exclusive':
            residual = keras.layers.Multiply(name=f'{name}_gated')([residual, gate])
    if changes.residual_scale != 1:
        residual = keras.layers.Rescaling(changes.residual_scale, name=f'{name}_scale')(residual)
    if changes.shortcut_scale != 1:
        shortcut = keras.layers.Rescaling(changes.shortcut_scale, name=f'{name}_shortcut_scale')(shortcut)
    if changes.shortcut_dropout:
        shortcut = keras.layers.Dropout(changes.shortcut_dropout, name=f'{name}_shortcut_dropout')(shortcut)
    return [residual, shortcut]
