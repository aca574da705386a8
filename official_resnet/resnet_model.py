"""The networks: residual networks of every kind are one ResNetSpec and the few functions below.

    residual_block   one shortcut's worth of convolutions
    residual_group   the blocks at one resolution
    resnet           stem, groups, head: spec -> keras.Model

Sources: v1 arXiv:1512.03385 Sec. 3, 4; v2 (pre-activation) arXiv:1603.05027 Sec. 4; 1.5 moves the
stride of a bottleneck from its first 1x1 to its 3x3 (official/resnet calls that "v1").
"""

import sys

import keras

from official_resnet.errors import UserError
from official_resnet.layers import NHWC, BatchNormalization
from official_resnet.resnet_spec import BOTTLENECK_EXPANSION

_INITIALIZERS = {
    'he': lambda: keras.initializers.VarianceScaling(2.0, 'fan_out', 'uniform'),
    'normal_0.01': lambda: keras.initializers.RandomNormal(0.0, 0.01),
    'normal_1': lambda: keras.initializers.RandomNormal(0.0, 1.0),
}  # he: the variance of arXiv:1502.01852 Sec. 2.2, backward form; a normal distribution takes 3 times as long to draw


def resnet(spec, num_classes, input_shape):
    """Return the functional keras.Model of a spec: images -> float32 logits, no softmax.

    Args:
        spec: a ResNetSpec.
        num_classes: number of logits.
        input_shape: (height, width, channels).
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
    x = keras.layers.GlobalAveragePooling2D(data_format=NHWC, name='head_pool')(x)
    # float32 whatever the policy: a softmax in 16 bits loses small probabilities.
    logits = keras.layers.Dense(num_classes, dtype='float32', name='logits')(x)
    # Keras walks a model's graph by recursion, a level or two a layer: 1202 layers exceed Python's 1000.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 25 * sum(spec.group_blocks)))
    return keras.Model(inputs, logits, name='resnet')


def residual_group(x, spec, filters, num_blocks, stride, name, dilation=1, first_block=0):
    """Return `num_blocks` residual blocks in a row, one of which (spec.stride_block) has the stride.

    Args:
        x: feature maps, [n, h, w, c].
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
        x: feature maps, [n, h, w, c].
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
    in_filters = x.shape[-1]
    is_same_shape = stride == 1 and in_filters == filters
    if spec.shortcut == 'C' or (spec.shortcut == 'group' and is_first):
        is_projection = True
    elif spec.stride_block == 'last' and in_filters == filters:
        is_projection = False  # slim: an identity that is sub-sampled
    else:
        is_projection = spec.shortcut != 'A' and not is_same_shape
    if is_projection:
        if spec.projection_pool and stride > 1:  # 'same' cuts the windows at an odd edge and averages what is inside
            x = keras.layers.AveragePooling2D(2, stride, 'same', data_format=NHWC, name=f'{name}_shortcut_pool')(x)
            stride = 1
        x = _conv(x, spec, filters, spec.projection_kernel, f'{name}_shortcut_conv', stride)
        return x if 'bn' in spec.order.before else _activate(x, spec, ('bn',), f'{name}_shortcut')
    if in_filters == filters:
        x = raw
    if stride > 1:
        x = keras.layers.MaxPooling2D(1, stride, data_format=NHWC, name=f'{name}_shortcut_pool')(x)
    if in_filters < filters:
        x = _pad_channels(x, spec, filters - in_filters, f'{name}_shortcut_pad')
    elif in_filters > filters:
        raise UserError(f'{name}: option A cannot reduce {in_filters} channels to {filters}; use shortcut B')
    return x


def _impede(x, shortcut, spec, name):
    """Return F and the shortcut as they are, or as one of the experiments of 1603.05027 Sec. 3 has them."""
    trial = spec.trial
    if trial.gate:
        gate = keras.layers.Conv2D(
            x.shape[-1],
            1,
            data_format=NHWC,
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
    filters = x.shape[-1]
    scale = keras.layers.GlobalAveragePooling2D(data_format=NHWC, keepdims=True, name=f'{name}_se_pool')(x)
    for i, (units, activation) in enumerate(((max(1, filters // spec.se_reduction), 'relu'), (filters, 'sigmoid')), 1):
        scale = keras.layers.Conv2D(
            units,
            1,
            data_format=NHWC,
            activation=activation,
            kernel_initializer=_INITIALIZERS['he'](),
            name=f'{name}_se_conv{i}',
        )(scale)
    return keras.layers.Multiply(name=f'{name}_se_out')([x, scale])


def _pad_channels(x, spec, num_zeros, name):
    """Return x with zero channels added, by a stock layer that every Keras can load."""
    before = num_zeros // 2 if spec.shortcut_padding == 'both' else 0
    channels = (before, num_zeros - before)
    # ZeroPadding2D pads axes 1 and 2; told that axis 1 holds the channels, it pads axes 2 and 3.
    return keras.layers.ZeroPadding2D(((0, 0), channels), data_format='channels_first', name=name)(x)


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
        x = keras.layers.ZeroPadding2D(pads, data_format=NHWC, name='stem_pad')(x)
    padding = 'same' if spec.stem_pool == 'same' else 'valid'
    return keras.layers.MaxPooling2D(3, 2, padding, data_format=NHWC, name='stem_pool')(x)


def _conv(x, spec, filters, kernel, name, stride=1, groups=1, dilation=1, has_bias=False):
    padding = 'same'
    if spec.padding == 'symmetric' and stride > 1 and kernel > 1:
        # From the kernel alone, so that the result does not depend on the parity of the image size.
        before = (kernel - 1) // 2
        pads = (before, kernel - 1 - before)
        x = keras.layers.ZeroPadding2D((pads, pads), data_format=NHWC, name=f'{name}_pad')(x)
        padding = 'valid'
    has_bias = has_bias or not spec.trial.batch_norm  # elsewhere the following BN's offset takes its place
    return keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        padding,
        groups=groups,
        data_format=NHWC,
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
                momentum=spec.bn_momentum,
                epsilon=spec.bn_epsilon,
                gamma_initializer='zeros' if is_zero else 'ones',
                name=layer_name,
            )(x)
    return x


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
