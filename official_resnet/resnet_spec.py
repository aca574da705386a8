"""ResNetSpec: what distinguishes one residual network from another. Needs no Keras."""

import collections
import dataclasses

from official_resnet.errors import UserError

BOTTLENECK_EXPANSION = 4  # output filters of a bottleneck / filters of its group, 1512.03385 Sec. 4.1

# Where a block has its BN and ReLU: before the first convolution, after each but the last, after the
# last, after the sum. 1603.05027 Fig. 4 a to e.
Order = collections.namedtuple('Order', 'before between last after_sum')
ORDERS = {
    'original': Order((), ('bn', 'relu'), ('bn',), ('relu',)),
    'bn_after_addition': Order((), ('bn', 'relu'), (), ('bn', 'relu')),
    'relu_before_addition': Order((), ('bn', 'relu'), ('bn', 'relu'), ()),
    'relu_only_preactivation': Order(('relu',), ('bn', 'relu'), ('bn',), ()),
    'full_preactivation': Order(('bn', 'relu'), ('bn', 'relu'), (), ()),
}
_VERSION_ORDERS = {'1': 'original', '1.5': 'original', '2': 'full_preactivation'}
_CHOICES = {
    'stem': ('cifar', 'mnist', 'imagenet', 'deep'),
    'block': ('basic', 'bottleneck', 'single'),
    'version': ('1', '1.5', '2'),
    'shortcut': ('A', 'B', 'C', 'group', None),
    'shortcut_padding': ('end', 'both'),
    'stride_block': ('first', 'last'),
    'stride_conv': ('first', '3x3', None),
    'projection_kernel': (1, 3),
    'padding': ('symmetric', 'same'),
    'stem_pool': ('pad1', 'same', 'ceil'),
    'stem_bn': (True, False, None),
    'output_stride': (8, 16, None),
    'order': (*ORDERS, None),
    'gate': ('exclusive', 'shortcut_only', None),
    'activation': ('relu', 'sigmoid'),
    'init': ('he', 'normal_0.01', 'normal_1'),
}
_REMOVED = {'data_format': 'channels_last'}  # fields of earlier versions, each with the value that changes nothing


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What only the papers' experiments change of a network.

    Attributes:
        order: of BN, ReLU and addition, a name in ORDERS; None as the version says.
        shortcut_scale, residual_scale: constants before the sum (1603.05027 Fig. 2b).
        gate: 'exclusive', (1-g) x + g F; 'shortcut_only', (1-g) x + F; g a sigmoid of a 1x1 convolution
            of the shortcut, with a bias that starts at gate_bias (Fig. 2c and d).
        shortcut_dropout: rate of dropout on the shortcut (Fig. 2f).
        activation: 'relu', or 'sigmoid' in its place.
        batch_norm: False leaves BN out and gives the convolutions biases.
        init: of the convolutions, 'he' or a normal distribution of the standard deviation in its name.
    """

    order: str | None = None
    shortcut_scale: float = 1.0
    residual_scale: float = 1.0
    gate: str | None = None
    gate_bias: float = 0.0
    shortcut_dropout: float = 0.0
    activation: str = 'relu'
    batch_norm: bool = True
    init: str = 'he'

    def __post_init__(self):
        _check_choices(self)
        _check_rates(self, 'shortcut_dropout')


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """What distinguishes one residual network from another; stored with every checkpoint.

    Attributes:
        group_blocks: residual blocks in each group.
        filters: of the first group; each further group has twice as many.
        stem: 'cifar' or 'mnist', a 3x3 convolution; 'imagenet', 7x7 at stride 2 and a 3x3 max-pool at
            stride 2; 'deep', three 3x3 in place of the 7x7 (-C of arXiv:1812.01187).
        block: 'basic', two 3x3 convolutions; 'bottleneck', 1x1, 3x3, 1x1; 'single', one 3x3, of which
            1512.03385 Sec. 3.2 found no advantage.
        version: '1' or '1.5', ReLU after the addition; '2', pre-activation.
        shortcut: 'A' zero-padded channels, 'B' projections where the shape changes, 'C' projections
            everywhere (1512.03385 Sec. 4.1); 'group' a projection in the first block of every group
            (official/resnet); None a plain network.
        shortcut_padding: where option A puts its zero channels, 'end' or 'both' sides.
        stride_block: the block of a group that halves the resolution; 'last' as in slim, which then
            halves at the end of every group but the last one.
        stride_conv: of a bottleneck, the convolution that halves: 'first' (1x1) or '3x3'; None, 'first' in
            version 1 only. The authors' v2 code has it on the first, official/resnet on the 3x3.
        width: multiplies the filters of every group (k of arXiv:1605.07146).
        base_width, cardinality: of bottlenecks, ResNeXt's d and C (arXiv:1611.05431): 32x4d is 4 and 32.
        padding: of strided convolutions; 'symmetric' pads from the kernel size alone, 'same' as
            TensorFlow does, at the bottom and right only.
        stem_pool: padding of the stem's pool: 'pad1', a row of zeros on each side; TensorFlow's 'same';
            'ceil', Caffe's: windows that begin inside, cut off at the bottom and right.
        stem_filters: of the stem; None as in the first group, before width.
        stem_bn: whether BN and ReLU follow the stem; None, where blocks do not begin with their own.
        stem_bias: the stem's convolution has a bias (He's ResNet-50, keras.applications' V2).
        projection_kernel: 1, or 3 for projections by a 3x3 convolution.
        projection_pool: halve by a 2x2 average before a projection without stride (-D of 1812.01187).
        output_stride: of the feature maps, at the most: further groups dilate instead (1606.00915 Sec. 3.1).
        se_reduction: squeeze-and-excitation (arXiv:1709.01507) with this reduction; 0 for none, 16 there.
        stochastic_depth: rate at which the last block is dropped in training, 0 for none; it grows linearly
            with the depth (arXiv:1603.09382 Sec. 3), and what is kept is scaled up, inference unchanged.
        zero_gamma: the last BN of each block starts at 0, the block as its shortcut (1706.02677 Sec. 5.1).
        bn_momentum, bn_epsilon: 0.997 and 1e-5 in official/resnet.
        experiment: Experiment, or None.
    """

    group_blocks: tuple
    filters: int = 16
    stem: str = 'cifar'
    block: str = 'basic'
    version: str = '1'
    shortcut: str | None = 'A'
    shortcut_padding: str = 'end'
    stride_block: str = 'first'
    stride_conv: str | None = None
    width: int = 1
    base_width: int = 64
    cardinality: int = 1
    padding: str = 'symmetric'
    stem_pool: str = 'pad1'
    stem_filters: int | None = None
    stem_bn: bool | None = None
    stem_bias: bool = False
    projection_kernel: int = 1
    projection_pool: bool = False
    output_stride: int | None = None
    se_reduction: int = 0
    stochastic_depth: float = 0.0
    zero_gamma: bool = False
    bn_momentum: float = 0.997
    bn_epsilon: float = 1e-5
    experiment: Experiment | None = None

    def __post_init__(self):
        object.__setattr__(self, 'group_blocks', tuple(self.group_blocks))  # a list, when read from JSON
        if isinstance(self.experiment, dict):
            object.__setattr__(self, 'experiment', Experiment(**self.experiment))
        _check_choices(self)
        _check_rates(self, 'stochastic_depth')
        for field in ('filters', 'width', 'base_width', 'cardinality', 'stem_filters', 'se_reduction'):
            value = getattr(self, field)
            least = 0 if field == 'se_reduction' else 1
            if value is not None and (not isinstance(value, int) or value < least):
                raise UserError(f'{field}={value!r}: pass a whole number from {least}')
        if not self.group_blocks or any(not isinstance(n, int) or n < 1 for n in self.group_blocks):
            raise UserError(f'group_blocks={self.group_blocks!r}: pass the blocks of each group, each from 1')
        if not 0 < self.bn_momentum < 1 or not self.bn_epsilon > 0:
            raise UserError(
                f'bn_momentum={self.bn_momentum}, bn_epsilon={self.bn_epsilon}: '
                'the momentum lies between 0 and 1, the epsilon above 0'
            )
        if self.block != 'bottleneck' and (self.base_width, self.cardinality) != (64, 1):
            raise UserError(
                f'base_width={self.base_width}, cardinality={self.cardinality} '
                "belong to bottlenecks; use width, or block='bottleneck'"
            )
        if self.shortcut is None and self.stochastic_depth:
            raise UserError(f'stochastic_depth={self.stochastic_depth} drops blocks, which needs a shortcut')
        if self.zero_gamma and 'bn' not in self.order.last:
            raise UserError('zero_gamma=True needs a BN at the end of each block; use version 1 or 1.5')
        if self.output_stride and self.stride_block == 'last':
            raise UserError(f"output_stride={self.output_stride} needs stride_block='first'")

    @classmethod
    def from_json(cls, values):
        """Return the ResNetSpec of the plain values in a checkpoint or a card.

        Raises:
            UserError: it has a field that this version does not know, or a value that is wrong.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known and (name, value) not in _REMOVED.items():
                raise UserError(
                    f'{name}={value!r} of a network that another version wrote: this one has no such field; '
                    'train or convert the network again'
                )
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def expansion(self):
        """Output filters of a block / filters of its group."""
        return BOTTLENECK_EXPANSION if self.block == 'bottleneck' else 1

    @property
    def trial(self):
        """The Experiment, or one that changes nothing."""
        return self.experiment or Experiment()

    @property
    def order(self):
        """The Order of BN, ReLU and addition."""
        return ORDERS[self.trial.order or _VERSION_ORDERS[self.version]]


def _check_choices(instance):
    for field in dataclasses.fields(instance):
        value, choices = getattr(instance, field.name), _CHOICES.get(field.name)
        if choices and value not in choices:
            raise UserError(f'{field.name}={value!r} is none of {choices}')


def _check_rates(instance, field):
    if not 0 <= getattr(instance, field) < 1:
        raise UserError(f'{field}={getattr(instance, field)}: pass a rate from 0 to below 1')
