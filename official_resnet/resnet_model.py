"""The networks: residual networks of every kind are one ResNetSpec and the few functions below.

    residual_block   one shortcut's worth of convolutions
    residual_group   the blocks at one resolution
    resnet           stem, groups, head: spec -> keras.Model
    VARIANTS         the named networks; `python -m official_resnet.resnet_model` prints them as a table

Sources: v1 arXiv:1512.03385 Sec. 3, 4; v2 (pre-activation) arXiv:1603.05027 Sec. 4; 1.5 moves the
stride of a bottleneck from its first 1x1 to its 3x3 (official/resnet calls that "v1").
"""

import collections
import dataclasses
import sys

import keras

from official_resnet.errors import UserError
from official_resnet.layers import BatchNormalization, conv_class

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
_INITIALIZERS = {
    'he': lambda: keras.initializers.VarianceScaling(2.0, 'fan_out', 'uniform'),
    'normal_0.01': lambda: keras.initializers.RandomNormal(0.0, 0.01),
    'normal_1': lambda: keras.initializers.RandomNormal(0.0, 1.0),
}  # he: the variance of arXiv:1502.01852 Sec. 2.2, backward form; a normal distribution takes 3 times as long to draw
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
    'data_format': ('channels_last', 'channels_first'),
    'order': (*ORDERS, None),
    'gate': ('exclusive', 'shortcut_only', None),
    'activation': ('relu', 'sigmoid'),
    'init': tuple(_INITIALIZERS),
}


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
        data_format: layout of the images and all between; weights do not depend on it.
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
    data_format: str = 'channels_last'
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

    @property
    def channel_axis(self):
        """Index of the channels in a batch of images: -1, or 1 for channels_first."""
        return -1 if self.data_format == 'channels_last' else 1

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


def resnet(spec, num_classes, input_shape):
    """Return the functional keras.Model of a spec: images -> float32 logits, no softmax.

    Args:
        spec: a ResNetSpec.
        num_classes: number of logits.
        input_shape: (height, width, channels), or (channels, height, width) for channels_first.
    """
    inputs = keras.Input(input_shape, name='images')
    x = _stem(inputs, spec)
    num_groups = len(spec.group_blocks)
    strides = [1] + [2] * (num_groups - 1)
    if spec.stride_block == 'last':  # the same resolutions, each halved one group earlier
        strides = strides[1:] + [1]
    total_stride, dilation = 4 if spec.stem in ('imagenet', 'deep') else 1, 1
    for i, (num_blocks, stride) in enumerate(zip(spec.group_blocks, strides, strict=True)):
        if spec.output_stride and total_stride * stride > spec.output_stride:
            stride, dilation = 1, dilation * stride
        total_stride *= stride
        x = residual_group(
            x, spec, spec.filters * 2**i, num_blocks, stride, f'group{i + 1}', dilation, sum(spec.group_blocks[:i])
        )
    x = _activate(x, spec, spec.order.before, 'head')
    x = keras.layers.GlobalAveragePooling2D(data_format=spec.data_format, name='head_pool')(x)
    # float32 whatever the policy: a softmax in 16 bits loses small probabilities.
    logits = keras.layers.Dense(num_classes, dtype='float32', name='logits')(x)
    # Keras walks a model's graph by recursion, a level or two a layer: 1202 layers exceed Python's 1000.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 25 * sum(spec.group_blocks)))
    return keras.Model(inputs, logits, name='resnet')


def residual_group(x, spec, filters, num_blocks, stride, name, dilation=1, first_block=0):
    """Return `num_blocks` residual blocks in a row, one of which (spec.stride_block) has the stride.

    Args:
        x: feature maps, [n, h, w, c] or [n, c, h, w] by spec.data_format.
        filters: of the group, before width and expansion.
        name: prefix of the layers' names, as 'group1'.
        dilation: of the 3x3 convolutions, half of it in the first block, where a stride would take effect.
        first_block: blocks of the network before these; matters to stochastic depth only.
    """
    strided = 0 if spec.stride_block == 'first' else num_blocks - 1
    for i in range(num_blocks):
        drop_rate = spec.stochastic_depth * (first_block + i + 1) / sum(spec.group_blocks)
        x = residual_block(
            x,
            spec,
            filters,
            stride if i == strided else 1,
            f'{name}_block{i + 1}',
            is_first=i == 0,
            dilation=dilation if i else (dilation + 1) // 2,
            drop_rate=drop_rate,
        )
    return x


def residual_block(x, spec, filters, stride, name, is_first=False, dilation=1, drop_rate=0.0):
    """Return one residual block, F(x) + shortcut(x), its BN and ReLU where spec.order has them.

    Args:
        x: feature maps, [n, h, w, c] or [n, c, h, w] by spec.data_format.
        filters: of the group, before width and expansion.
        stride: 1 or 2.
        name: prefix of the layers' names, as 'group1_block1'.
        is_first: this is the first block of its group; matters to shortcut='group' only.
        dilation: of the 3x3 convolutions.
        drop_rate: of F, picture by picture, in training (stochastic depth).
    """
    order, convs, raw = spec.order, _block_convs(spec, filters, stride), x
    x = _activate(x, spec, order.before, name, 1)
    shortcut = _shortcut(x, raw, spec, convs[-1][0], stride, name, is_first)
    for i, (out_filters, kernel, conv_stride, groups) in enumerate(convs, start=1):
        x = _conv(x, spec, out_filters, kernel, f'{name}_conv{i}', conv_stride, groups, dilation)
        is_last = i == len(convs)
        x = _activate(
            x,
            spec,
            order.last if is_last else order.between,
            name,
            i + bool(order.before),
            is_zero=is_last and spec.zero_gamma,
        )
    if spec.se_reduction:
        x = _squeeze_and_excite(x, spec, name)
    if shortcut is not None:
        if drop_rate:
            x = keras.layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f'{name}_drop')(x)
        x, shortcut = _impede(x, shortcut, spec, name)
        x = keras.layers.Add(name=f'{name}_add' if order.after_sum else f'{name}_out')([x, shortcut])
    return _activate(x, spec, order.after_sum, name, len(convs) + 1, last_name=f'{name}_out')


def _block_convs(spec, filters, stride):
    """Return (filters, kernel, stride, groups) of each convolution of a block."""
    filters *= spec.width
    if spec.block != 'bottleneck':
        return ((filters, 3, stride, 1), (filters, 3, 1, 1))[: 1 if spec.block == 'single' else 2]
    inner = filters * spec.base_width // 64 * spec.cardinality
    is_first = (spec.stride_conv or ('first' if spec.version == '1' else '3x3')) == 'first'
    first, second = (stride, 1) if is_first else (1, stride)
    return ((inner, 1, first, 1), (inner, 3, second, spec.cardinality), (filters * BOTTLENECK_EXPANSION, 1, 1, 1))


def _shortcut(x, raw, spec, filters, stride, name, is_first):
    """Return what is added to a block's output: its input, that reshaped without or with weights, or None.

    Of the pre-activated input x and the raw one, an identity carries the raw one, also sub-sampled; what
    changes the channels starts from x (as in the authors' and official code, slim, keras.applications).
    """
    if spec.shortcut is None:
        return None
    in_filters = x.shape[spec.channel_axis]
    is_same_shape = stride == 1 and in_filters == filters
    if spec.shortcut == 'C' or (spec.shortcut == 'group' and is_first):
        is_projection = True
    elif spec.stride_block == 'last' and in_filters == filters:
        is_projection = False  # slim: an identity that is sub-sampled
    else:
        is_projection = spec.shortcut != 'A' and not is_same_shape
    if is_projection:
        if spec.projection_pool and stride > 1:  # 'same' cuts the windows at an odd edge and averages what is inside
            x = keras.layers.AveragePooling2D(
                2, stride, 'same', data_format=spec.data_format, name=f'{name}_shortcut_pool'
            )(x)
            stride = 1
        x = _conv(x, spec, filters, spec.projection_kernel, f'{name}_shortcut_conv', stride)
        return x if 'bn' in spec.order.before else _activate(x, spec, ('bn',), f'{name}_shortcut')
    if in_filters == filters:
        x = raw
    if stride > 1:
        x = keras.layers.MaxPooling2D(1, stride, data_format=spec.data_format, name=f'{name}_shortcut_pool')(x)
    if in_filters < filters:
        x = _pad_channels(x, spec, filters - in_filters, f'{name}_shortcut_pad')
    elif in_filters > filters:
        raise UserError(f'{name}: option A cannot reduce {in_filters} channels to {filters}; use shortcut B')
    return x


def _impede(x, shortcut, spec, name):
    """Return F and the shortcut as they are, or as one of the experiments of 1603.05027 Sec. 3 has them."""
    trial = spec.trial
    if trial.gate:
        gate = conv_class(spec.data_format, True)(
            x.shape[spec.channel_axis],
            1,
            data_format=spec.data_format,
            activation='sigmoid',
            name=f'{name}_gate',
            kernel_initializer=_INITIALIZERS[trial.init](),
            bias_initializer=keras.initializers.Constant(trial.gate_bias),
        )(shortcut)
        rest = keras.layers.Rescaling(-1.0, 1.0, name=f'{name}_gate_rest')(gate)  # 1 - g
        shortcut = keras.layers.Multiply(name=f'{name}_gated_shortcut')([shortcut, rest])
        if trial.gate == 'exclusive':
            x = keras.layers.Multiply(name=f'{name}_gated')([x, gate])
    if trial.residual_scale != 1:
        x = keras.layers.Rescaling(trial.residual_scale, name=f'{name}_scale')(x)
    if trial.shortcut_scale != 1:
        shortcut = keras.layers.Rescaling(trial.shortcut_scale, name=f'{name}_shortcut_scale')(shortcut)
    if trial.shortcut_dropout:
        shortcut = keras.layers.Dropout(trial.shortcut_dropout, name=f'{name}_shortcut_dropout')(shortcut)
    return x, shortcut


def _squeeze_and_excite(x, spec, name):
    """Return x, each channel scaled by a sigmoid of two layers on all channels' means (1709.01507 Sec. 3)."""
    filters = x.shape[spec.channel_axis]
    scale = keras.layers.GlobalAveragePooling2D(data_format=spec.data_format, keepdims=True, name=f'{name}_se_pool')(x)
    for i, (units, activation) in enumerate(((max(1, filters // spec.se_reduction), 'relu'), (filters, 'sigmoid')), 1):
        scale = keras.layers.Conv2D(
            units,
            1,
            data_format=spec.data_format,
            activation=activation,
            kernel_initializer=_INITIALIZERS['he'](),
            name=f'{name}_se_conv{i}',
        )(scale)
    return keras.layers.Multiply(name=f'{name}_se_out')([x, scale])


def _pad_channels(x, spec, num_zeros, name):
    """Return x with zero channels added, by a stock layer that every Keras can load."""
    before = num_zeros // 2 if spec.shortcut_padding == 'both' else 0
    channels = (before, num_zeros - before)
    # ZeroPadding2D pads axes 1 and 2, or 2 and 3: told the other layout, one of the two is the channels.
    if spec.data_format == 'channels_last':
        return keras.layers.ZeroPadding2D(((0, 0), channels), data_format='channels_first', name=name)(x)
    return keras.layers.ZeroPadding2D((channels, (0, 0)), data_format='channels_last', name=name)(x)


def _stem(x, spec):
    """Convolve the images; no BN or ReLU where the first block brings its own (1603.05027, Appendix)."""
    filters = spec.stem_filters or spec.filters
    after = tuple(op for op in ('bn', 'relu') if op not in spec.order.before)
    if spec.stem_bn is not None:
        after = ('bn', 'relu') if spec.stem_bn else ()
    if spec.stem in ('cifar', 'mnist'):
        x = _conv(x, spec, filters, 3, 'stem_conv', has_bias=spec.stem_bias)
        return _activate(x, spec, after, 'stem')
    if spec.stem == 'imagenet':
        x = _conv(x, spec, filters, 7, 'stem_conv', 2, has_bias=spec.stem_bias)
    else:  # a bias of the last one only, which alone may lack a BN
        for i, stride in ((1, 2), (2, 1)):
            x = _activate(_conv(x, spec, filters // 2, 3, f'stem_conv{i}', stride), spec, ('bn', 'relu'), 'stem', i)
        x = _conv(x, spec, filters, 3, 'stem_conv', has_bias=spec.stem_bias)
    x = _activate(x, spec, after, 'stem')
    if spec.stem_pool != 'same':
        pads = ((1, 1), (1, 1)) if spec.stem_pool == 'pad1' else ((0, 1), (0, 1))  # ceil: as good as no row if odd
        x = keras.layers.ZeroPadding2D(pads, data_format=spec.data_format, name='stem_pad')(x)
    padding = 'same' if spec.stem_pool == 'same' else 'valid'
    return keras.layers.MaxPooling2D(3, 2, padding, data_format=spec.data_format, name='stem_pool')(x)


def _conv(x, spec, filters, kernel, name, stride=1, groups=1, dilation=1, has_bias=False):
    padding = 'same'
    if spec.padding == 'symmetric' and stride > 1 and kernel > 1:
        # From the kernel alone, so that the result does not depend on the parity of the image size.
        before = (kernel - 1) // 2
        pads = (before, kernel - 1 - before)
        x = keras.layers.ZeroPadding2D((pads, pads), data_format=spec.data_format, name=f'{name}_pad')(x)
        padding = 'valid'
    has_bias = has_bias or not spec.trial.batch_norm  # elsewhere the following BN's offset takes its place
    return conv_class(spec.data_format, has_bias)(
        filters,
        kernel,
        stride,
        padding,
        groups=groups,
        data_format=spec.data_format,
        use_bias=has_bias,
        dilation_rate=dilation if kernel > 1 else 1,
        kernel_initializer=_INITIALIZERS[spec.trial.init](),
        name=name,
    )(x)


def _activate(x, spec, operations, name, number='', is_zero=False, last_name=None):
    """Return x after 'bn' and 'relu' as listed; the last is named last_name, others name_bn1, name_relu1."""
    for operation in operations:
        layer_name = last_name if last_name and operation == operations[-1] else f'{name}_{operation}{number}'
        if operation == 'relu':
            x = (
                keras.layers.ReLU(name=layer_name)
                if spec.trial.activation == 'relu'
                else keras.layers.Activation(spec.trial.activation, name=layer_name)
            )(x)
        elif spec.trial.batch_norm:
            x = BatchNormalization(
                axis=spec.channel_axis,
                momentum=spec.bn_momentum,
                epsilon=spec.bn_epsilon,
                gamma_initializer='zeros' if is_zero else 'ones',
                name=layer_name,
            )(x)
    return x


def _check_choices(instance):
    for field in dataclasses.fields(instance):
        value, choices = getattr(instance, field.name), _CHOICES.get(field.name)
        if choices and value not in choices:
            raise UserError(f'{field.name}={value!r} is none of {choices}')


def _check_rates(instance, field):
    if not 0 <= getattr(instance, field) < 1:
        raise UserError(f'{field}={getattr(instance, field)}: pass a rate from 0 to below 1')


# The rows. An ImageNet net's published form: option B, one row of zeros around the stem's pool.
IMAGENET_BLOCKS = {
    18: ('basic', (2, 2, 2, 2)),
    34: ('basic', (3, 4, 6, 3)),
    50: ('bottleneck', (3, 4, 6, 3)),
    101: ('bottleneck', (3, 4, 23, 3)),
    152: ('bottleneck', (3, 8, 36, 3)),
    200: ('bottleneck', (3, 24, 36, 3)),
}  # 1512.03385 Table 1; 200: 1603.05027 Sec. 5


def cifar_spec(resnet_size, **axes):
    """Return the spec of a CIFAR net of 6n+2 layers, or 9n+2 with bottlenecks (1512.03385 Sec. 4.2).

    Args:
        resnet_size: 8, 14, 20, ...: 6n+2 layers that have weights, n blocks in each of three groups.
        **axes: further fields of ResNetSpec, as version='2', shortcut='group'.
    """
    layers = 9 if axes.get('block') == 'bottleneck' else 6
    if resnet_size < layers + 2 or resnet_size % layers != 2:
        below = max(layers + 2, (resnet_size - 2) // layers * layers + 2)
        raise UserError(f'resnet_size={resnet_size} is not {layers}n+2; the nearest are {below} and {below + layers}')
    return ResNetSpec(((resnet_size - 2) // layers,) * 3, **axes)


def mnist_spec(**axes):
    """Return the spec of a [2, 2, 2] net for MNIST: 16, 32, 64 filters, 3x3 projections; axes as in cifar_spec."""
    fields = {'stem': 'mnist', 'shortcut': 'B', 'projection_kernel': 3, 'bn_momentum': 0.9} | axes
    return ResNetSpec((2, 2, 2), **fields)


def imagenet_spec(resnet_size, **axes):
    """Return the spec of an ImageNet net of 18, 34, 50, 101, 152 or 200 layers (1512.03385 Table 1)."""
    if resnet_size not in IMAGENET_BLOCKS:
        raise UserError(f'resnet_size={resnet_size} is none of {tuple(IMAGENET_BLOCKS)}')
    block, group_blocks = IMAGENET_BLOCKS[resnet_size]
    fields = {'filters': 64, 'stem': 'imagenet', 'block': block, 'shortcut': 'B', 'version': '1.5'} | axes
    if fields['version'] == '2':
        fields.setdefault('stem_pool', 'same')
    return ResNetSpec(group_blocks, **fields)


VARIANTS = {
    f'resnet{size}_v{version}': cifar_spec(size, version=version)
    for version in '12'
    for size in (20, 32, 44, 56, 110, 1202)
}
VARIANTS |= {f'plain{size}': cifar_spec(size, shortcut=None) for size in (20, 32, 44, 56, 110)}
VARIANTS |= {
    f'resnet{size}_v2': cifar_spec(size, block='bottleneck', version='2', shortcut='B') for size in (164, 1001)
}  # 1603.05027 Sec. 5
VARIANTS |= {
    f'resnext29_{cardinality}x{base_width}d': cifar_spec(
        29, block='bottleneck', version='1.5', shortcut='B', filters=64, cardinality=cardinality, base_width=base_width
    )
    for cardinality, base_width in ((32, 4), (8, 64), (16, 64))
}  # 1611.05431 Sec. 5.3
VARIANTS |= {
    f'wrn{size}_{width}': ResNetSpec(((size - 4) // 6,) * 3, version='2', shortcut='B', width=width)
    for size, width in ((16, 4), (28, 10), (40, 4))
}  # 1605.07146 Sec. 3
VARIANTS |= {'mnist_resnet14': mnist_spec()}
VARIANTS |= {
    f'resnet{size}_v{version}': imagenet_spec(size, version=version)
    for version in ('1', '1.5', '2')
    for size in IMAGENET_BLOCKS
}
VARIANTS |= {f'plain{size}': imagenet_spec(size, shortcut=None, version='1') for size in (18, 34)}
VARIANTS |= {
    f'resnext{size}_{cardinality}x{base_width}d': imagenet_spec(size, cardinality=cardinality, base_width=base_width)
    for size, cardinality, base_width in ((50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4))
}
VARIANTS |= {f'wide_resnet{size}_2': imagenet_spec(size, base_width=128) for size in (50, 101)}
VARIANTS |= {
    f'seresnet{size}_v{version}': imagenet_spec(size, version=version, se_reduction=16)
    for version in ('1', '1.5')
    for size in (50, 101, 152)
}
VARIANTS |= {f'resnet{size}_d': imagenet_spec(size, stem='deep', projection_pool=True) for size in (50, 101, 152)}
IMAGE_SHAPES = {'cifar': (32, 32, 3), 'mnist': (32, 32, 1), 'imagenet': (None, None, 3), 'deep': (None, None, 3)}


def cifar_resnet(resnet_size, num_classes=10, **axes):
    """Return the keras.Model of a 6n+2 CIFAR net for [n, 32, 32, 3] images; axes as in cifar_spec."""
    return _model(cifar_spec(resnet_size, **axes), num_classes)


def imagenet_resnet(resnet_size, num_classes=1000, **axes):
    """Return the keras.Model of an ImageNet net for images of any size; axes as in imagenet_spec."""
    return _model(imagenet_spec(resnet_size, **axes), num_classes)


def build_model(variant, num_classes):
    """Return the keras.Model of a row of VARIANTS, as 'resnet20_v1' or 'resnet50_v1.5'."""
    if variant not in VARIANTS:
        raise UserError(f'variant={variant!r} is none of {", ".join(VARIANTS)}')
    return _model(VARIANTS[variant], num_classes)


def _model(spec, num_classes):
    return resnet(spec, num_classes, image_shape(spec, IMAGE_SHAPES[spec.stem]))


def image_shape(spec, shape):
    """Return (height, width, channels) in the order of spec.data_format."""
    height, width, channels = shape
    return shape if spec.data_format == 'channels_last' else (channels, height, width)


def features(model):
    """Return a model of the same weights that gives {'stem', 'group1', ..., 'pre_logits', 'logits'}."""
    outputs = {}
    for layer in model.layers:
        if layer.name in ('stem_conv', 'stem_relu', 'stem_pool'):
            outputs['stem'] = layer.output  # the last of them that the net has
        elif layer.name.startswith('group'):
            outputs[layer.name.partition('_')[0]] = layer.output  # of the group's last layer
    return keras.Model(
        model.input,
        outputs | {'pre_logits': model.get_layer('head_pool').output, 'logits': model.output},
        name=f'{model.name}_features',
    )


if __name__ == '__main__':
    from official_resnet import resnet_table

    resnet_table.main()
