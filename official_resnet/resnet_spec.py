"""ResNetSpec: the fields that distinguish one residual network from another.

It does not import Keras, so a program can check a requested network before TensorFlow starts.
resnet_variants names the published networks, resnet_model builds the keras.Model of a spec.
"""

import dataclasses
from typing import Any, NamedTuple, Self

from official_resnet.errors import UserError

BOTTLENECK_EXPANSION = 4  # output channels of a bottleneck / filters of its group, 1512.03385 Sec. 4.1
_CHOICES = {
    'stem': ('cifar', 'mnist', 'imagenet', 'deep', 'tiered', 'whitening'),
    'block': ('basic', 'bottleneck', 'single', 'pooled'),
    'version': ('1', '1.5', '2'),
    'shortcut': ('A', 'B', 'C', 'group', None),
    'shortcut_padding': ('end', 'both'),
    'identity_pool': ('sample', 'average'),
    'stride_block': ('first', 'last'),
    'stride_conv': ('first', '3x3', None),
    'padding': ('symmetric', 'same'),
    'stem_pool': ('pad1', 'same', 'ceil', 'torch'),
    'stem_bn': (True, False, None),
    'projection_kernel': (1, 3),
    'output_stride': (8, 16, None),
    'activation': ('relu', 'sigmoid', 'gelu'),
    'blur_pool': ('convolutions', 'all', None),
    'head_pool': ('average', 'max'),
    'initializer': ('he', 'official', 'torch', 'dirac', 'normal_0.01', 'normal_1'),
}
_LEAST = {'se_reduction': 0} | dict.fromkeys('filters width base_width cardinality stem_filters se_divisor'.split(), 1)
POOLED_STEMS = ('imagenet', 'deep', 'tiered')  # those that end in a max-pool; their stride is 4
MAX_LAYERS = 10_000
_CONVOLUTIONS = {'single': 1, 'basic': 2, 'bottleneck': 3, 'pooled': 1}  # number in a block without a pool
# Fields that earlier versions had, each with the value that describes the networks of this version.
_REMOVED = {'data_format': 'channels_last', 'experiment': None}


def _flag(default, text, **about):
    """Return a field that has a flag; see training.config.setting."""
    return dataclasses.field(default=default, metadata={'text': text, 'group': 'Network', 'is_open': True, **about})


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """The fields that distinguish one residual network from another. Each checkpoint and each card holds them.

    >>> spec = ResNetSpec(group_blocks=(3, 3, 3))  # the ResNet-20 of 1512.03385 Sec. 4.2: 2 * 9 + 2 layers
    >>> spec.filters, spec.block, spec.shortcut
    (16, 'basic', 'A')

    Attributes:
        group_blocks: Number of residual blocks in each group.
        filters: Filters of the first group. Each further group has twice as many.
        group_filters: Filters of each group, where they do not double. None: `filters` decides.
        stem: 'cifar' or 'mnist' is a 3x3 convolution. 'imagenet' is a 7x7 convolution and a 3x3 max-pool, both with
            stride 2. 'deep' replaces the 7x7 by three 3x3 convolutions (ResNet-C of arXiv:1812.01187); in 'tiered', the
            first of them has 3/8 of the filters, not 1/2 (timm's T). 'whitening' is a 2x2 convolution whose kernel is
            not trained: it decorrelates the patches of the training images, each with both signs, so stem_filters must
            be 8 times the image's channels (arXiv:2404.00498 Sec. 3.1).
        block: 'basic' is two 3x3 convolutions, 'bottleneck' is 1x1, 3x3, 1x1 (1512.03385 Fig. 5). 'single' is one
            3x3, which Sec. 3.2 found to have no advantage over a plain layer. 'pooled' is one 3x3, and its shortcut
            ends before its batch norm. Where the resolution halves, a 3x3 convolution and a max-pool come before it.
        version: '1' (arXiv:1512.03385) and '1.5' have their last ReLU after the addition, '2' (arXiv:1603.05027) is
            pre-activation. '1.5' moves the stride of a bottleneck from its first 1x1 to its 3x3 convolution.
        shortcut: 'A' pads with zero channels, 'B' projects where the shape changes, 'C' projects everywhere
            (1512.03385 Sec. 4.1). 'group' projects in the first block of every group (official/resnet). None is a
            plain network.
        shortcut_padding: Where option A adds its zero channels, at the 'end' or on 'both' sides.
        identity_pool: How option A halves the resolution: 'sample' takes every second pixel, 'average' the means of 2x2
            pixels, in version 2 of a block's input before its batch norm (wenxinxu's CIFAR networks).
        stride_block: Which block of a group halves the resolution, the 'first', or as in slim the 'last' (of every
            group but the last one).
        stride_conv: Which convolution of a bottleneck halves the resolution, the 'first' (1x1) or the '3x3'. None
            follows the version: 'first' in version 1 only.
        width: Multiplies the filters of every group (k of arXiv:1605.07146).
        base_width: d of ResNeXt (arXiv:1611.05431), bottlenecks only. A 32x4d network has base_width 4.
        cardinality: C of ResNeXt, the number of groups of the 3x3 convolution. A 32x4d network has cardinality 32.
        padding: Padding of convolutions with a stride. 'symmetric' depends on the kernel size alone, 'same' pads as
            TensorFlow does, which for an even image is at the bottom and right only.
        stem_pool: Padding of the stem's max-pool. 'pad1' adds a row of zeros on each side, 'torch' of -infinity,
            which differs where no ReLU comes before. 'same' is TensorFlow's, 'ceil' Caffe's at the bottom and right.
        stem_filters: Filters of the stem. None: as many as in the first group, before width.
        stem_bn: Whether batch norm and ReLU follow the stem. None: in all versions but 2, whose blocks begin
            with their own.
        stem_bias: Whether the stem's convolution has a bias (He's ResNet-50, V2 of keras.applications).
        projection_kernel: Kernel size of projections, 1 or 3.
        projection_pool: Whether a 2x2 average pool replaces the stride of projections (ResNet-D of arXiv:1812.01187).
        output_stride: The largest ratio of image size to feature map size, 8 or 16. Further groups dilate their
            convolutions instead of halving the resolution (arXiv:1606.00915 Sec. 3.1). None is no limit.
        se_reduction: Reduction ratio of squeeze-and-excitation (16 in arXiv:1709.01507). 0 leaves it out.
        se_divisor: The reduced number of channels is rounded to a multiple of it (8 in timm).
        eca: Whether each block has efficient channel attention (arXiv:1910.03151) in place of squeeze-and-excitation.
        stochastic_depth: Rate at which the last block is dropped in training (arXiv:1603.09382 Sec. 3). It grows
            linearly with the depth. Blocks that are kept are scaled up, so inference needs no change. 0 drops none.
        zero_gamma: The scale of the last batch norm in each block starts at 0, so the block starts as its shortcut
            (arXiv:1706.02677 Sec. 5.1).
        blur_pool: Whether a fixed 3x3 low-pass filter precedes convolutions with a stride and 16 or more input channels
            ('convolutions'), and also takes over the stride of the stem's max-pool ('all') (arXiv:1904.11486 Sec. 3).
        bn_momentum, bn_epsilon: Parameters of batch norm. 0.997 and 1e-5 are official/resnet's.
        bn_scale: Whether batch norms have a scale (gamma) beside their offset.
        batch_norm: False leaves batch norm out and gives the convolutions biases.
        activation: 'relu', or 'sigmoid' or 'gelu' (arXiv:1606.08415) in its place.
        head_pool: Whether the features are the means or the maxima of the last feature maps.
        initializer: Initial kernels: 'he' (arXiv:1502.01852, variance 2 / fan-out), 'official' (variance 1 / fan-in, as
            official/resnet draws them), 'torch' (variance 1 / (3 fan-in), as torch.nn.Conv2d draws them), or a normal
            distribution with this standard deviation. 'dirac' is 'torch', but passes the input on in the first filters,
            as many as there are input channels (arXiv:2404.00498 Sec. 3.2).

    Raises:
        UserError: No network can have this value. The message names the value and what to pass.
    """

    group_blocks: tuple[int, ...] = _flag(
        dataclasses.MISSING,
        'Number of layers that have weights.',
        flag='resnet_size',
        short='rs',
        type=int,
        least=1,
        most=MAX_LAYERS,
    )
    filters: int = 16
    stem: str = 'cifar'
    block: str = 'basic'
    version: str = _flag(
        '1',
        '1 has the ReLU after the addition; 1.5 is 1 with the stride of a bottleneck in its 3x3 convolution; 2 has BN '
        'and ReLU before each convolution (pre-activation).',
        flag='resnet_version',
        short='rv',
        words=('1', '1.5', '2'),
    )
    shortcut: str | None = _flag(
        'A',
        'A pads with zeros where the shape changes, B projects there, C projects everywhere, group projects in the '
        'first block of each group (official/resnet), none is a plain network.',
        words=('A', 'B', 'C', 'group', 'none'),
    )
    shortcut_padding: str = 'end'
    identity_pool: str = 'sample'
    stride_block: str = 'first'
    stride_conv: str | None = None
    width: int = 1
    base_width: int = 64
    cardinality: int = 1
    padding: str = 'symmetric'
    stem_pool: str = _flag(
        'pad1',
        "Padding of the stem's pool: a row of zeros on each side, or TensorFlow's same.",
        words=('pad1', 'same'),
        streams=True,
    )
    stem_filters: int | None = None
    stem_bn: bool | None = None
    stem_bias: bool = False
    projection_kernel: int = 1
    projection_pool: bool = False
    output_stride: int | None = None
    se_reduction: int = 0
    se_divisor: int = 1
    eca: bool = False
    stochastic_depth: float = _flag(
        0.0, 'Rate at which training drops the last block; it grows linearly with the depth.', least=0, below=1
    )
    zero_gamma: bool = _flag(False, 'The scale of the last BN in each block starts at 0.', streams=True)
    bn_momentum: float = _flag(0.997, 'Momentum of the moving statistics of batch norms.', least=0, most=1)
    bn_epsilon: float = 1e-5
    batch_norm: bool = True
    activation: str = 'relu'
    initializer: str = _flag(
        'he',
        "Initial kernels of convolutions: variance 2 / fan-out (arXiv:1502.01852), 1 / fan-in (official/resnet's), "
        "1 / (3 fan-in) (PyTorch's), or identities (arXiv:2404.00498).",
        words=('he', 'official', 'torch', 'dirac'),
    )
    group_filters: tuple[int, ...] | None = None
    bn_scale: bool = True
    head_pool: str = 'average'
    blur_pool: str | None = _flag(
        None,
        "Fixed low-pass filters before convolutions with a stride, or also in the stem's pool (arXiv:1904.11486).",
        words=('convolutions', 'all', 'none'),
    )

    def __post_init__(self):
        for name in ('group_blocks', 'group_filters'):
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if (
            not isinstance(self.group_blocks, tuple)
            or not self.group_blocks
            or any(not isinstance(n, int) or n < 1 for n in self.group_blocks)
        ):
            raise UserError(f'group_blocks={self.group_blocks!r}: pass the number of blocks of each group, 1 or more')
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f'{name}={getattr(self, name)!r} must be one of {", ".join(map(repr, choices))}')
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least or name == 'stem_filters' and value is None):
                raise UserError(f'{name}={value!r} must be a whole number, {least} or more')
        if not 0 <= self.stochastic_depth < 1:
            raise UserError(f'stochastic_depth={self.stochastic_depth} must be a rate, 0 or more and below 1')
        if not 0 < self.bn_momentum < 1:
            raise UserError(f'bn_momentum={self.bn_momentum} must lie between 0 and 1')
        if not self.bn_epsilon > 0:
            raise UserError(f'bn_epsilon={self.bn_epsilon} must be above 0')
        if self.block != 'bottleneck' and (self.base_width, self.cardinality) != (64, 1):
            raise UserError(
                f'base_width={self.base_width}, cardinality={self.cardinality} need bottlenecks; '
                "pass block='bottleneck', or use width instead"
            )
        if self.shortcut is None and self.stochastic_depth:
            raise UserError(
                f'stochastic_depth={self.stochastic_depth} drops blocks, which needs a shortcut; pass one, or 0'
            )
        if self.zero_gamma and (self.version == '2' or not self.batch_norm):
            raise UserError(
                "zero_gamma=True needs a batch norm at the end of each block; pass --resnet_version=1, or version '1.5'"
            )
        if self.group_filters is not None and (
            len(self.group_filters) != len(self.group_blocks)
            or any(type(n) is not int or n < 1 for n in self.group_filters)
        ):
            raise UserError(f'group_filters={self.group_filters!r}: pass {len(self.group_blocks)} numbers, 1 or more')
        if self.block == 'pooled':
            stems = 'cifar', 'mnist', 'whitening'
            allowed = {'version': '1', 'shortcut': ('A', None), 'stride_block': 'first', 'output_stride': None}
            allowed |= {'stem': stems, 'zero_gamma': False}
            for name, values in allowed.items():
                if getattr(self, name) not in (values if isinstance(values, tuple) else (values,)):
                    raise UserError(f"{name}={getattr(self, name)!r} with block='pooled'; pass {values!r}")
        if self.zero_gamma and not self.bn_scale:
            raise UserError('zero_gamma=True needs batch norms with a scale; pass bn_scale=True')
        if self.eca and self.se_reduction:
            raise UserError(f'eca=True takes the place of se_reduction={self.se_reduction}; pass one of them')
        if self.output_stride and self.stride_block == 'last':
            raise UserError(f"output_stride={self.output_stride} needs stride_block='first'")

    @property
    def resnet_size(self) -> int:
        """Number of layers that have weights, not counting shortcuts: 56 for ResNet-56."""
        pooled = len(self.group_blocks) if self.block == 'pooled' else 0  # convolutions before a pool
        return _CONVOLUTIONS[self.block] * sum(self.group_blocks) + pooled + 2

    @property
    def expansion(self) -> int:
        """Output channels of a block / filters of its group: 4 for a bottleneck, else 1."""
        return BOTTLENECK_EXPANSION if self.block == 'bottleneck' else 1

    def filters_of(self, group: int) -> int:
        """Return the filters of a group, counted from 0, before width and the expansion of a bottleneck."""
        return self.group_filters[group] if self.group_filters else self.filters * 2**group

    def group_strides(self) -> list[tuple[int, int]]:
        """Return (stride, dilation) of each group. Dilation replaces the strides that output_stride forbids.

        >>> ResNetSpec((3, 4, 6, 3), stem='imagenet').group_strides()
        [(1, 1), (2, 1), (2, 1), (2, 1)]
        >>> ResNetSpec((3, 4, 6, 3), stem='imagenet', output_stride=8).group_strides()
        [(1, 1), (2, 1), (1, 2), (1, 4)]
        """
        strides = [2 if self.block == 'pooled' else 1] + [2] * (len(self.group_blocks) - 1)
        if self.stride_block == 'last':  # a group ends with the stride that the next one would begin with
            strides = strides[1:] + [1]
        total_stride, dilation = 4 if self.stem in POOLED_STEMS else 1, 1
        pairs = []
        for stride in strides:
            if self.output_stride and total_stride * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            total_stride *= stride
            pairs.append((stride, dilation))
        return pairs

    def is_projection(self, in_channels: int, channels: int, stride: int, is_first: bool) -> bool:
        """Return whether a block's shortcut has weights (options A, B and C of 1512.03385 Sec. 4.1).

        Args:
            in_channels, channels: Numbers of channels of the block's input and output.
            stride: Stride of the block.
            is_first: Whether the block is the first one of its group.
        """
        if self.shortcut == 'C' or (self.shortcut == 'group' and is_first):
            return True
        if self.stride_block == 'last' and in_channels == channels:
            return False  # slim takes every second pixel of the identity
        return self.shortcut not in ('A', None) and (stride > 1 or in_channels != channels)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the ResNetSpec that a checkpoint or a card holds as {field: value}.

        Raises:
            UserError: This version does not know a field, or a value is wrong.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known and (name, value) not in _REMOVED.items():
                raise UserError(
                    f'the network has {name}={value!r}, a field that this version does not know; '
                    'train or convert the network again'
                )
        return cls(**{name: value for name, value in values.items() if name in known})


class Convolution(NamedTuple):
    """A convolution: its filters, the side of its kernel, its stride, and its cardinality (number of groups).

    `pool` is the side of the max-pool that follows it at once.
    """

    filters: int
    kernel: int
    stride: int = 1
    cardinality: int = 1
    pool: int = 1


def block_convolutions(spec: ResNetSpec, filters: int, stride: int) -> tuple[Convolution, ...]:
    """Return the convolutions of a block in the order in which they are computed.

    >>> for convolution in block_convolutions(ResNetSpec((3, 4, 6, 3), block='bottleneck'), filters=128, stride=2):
    ...     print(convolution)
    Convolution(filters=128, kernel=1, stride=2, cardinality=1, pool=1)
    Convolution(filters=128, kernel=3, stride=1, cardinality=1, pool=1)
    Convolution(filters=512, kernel=1, stride=1, cardinality=1, pool=1)
    """
    filters *= spec.width
    if spec.block == 'single':
        return (Convolution(filters, 3, stride),)
    if spec.block == 'pooled':
        return (Convolution(filters, 3, pool=stride),) * (stride > 1) + (Convolution(filters, 3),)
    if spec.block == 'basic':
        return Convolution(filters, 3, stride), Convolution(filters, 3)
    inner = filters * spec.base_width // 64 * spec.cardinality  # arXiv:1611.05431 Table 1: C = 32 paths of d = 4
    stride_conv = spec.stride_conv or ('first' if spec.version == '1' else '3x3')
    first, second = (stride, 1) if stride_conv == 'first' else (1, stride)
    return (
        Convolution(inner, 1, first),
        Convolution(inner, 3, second, spec.cardinality),
        Convolution(filters * BOTTLENECK_EXPANSION, 1),
    )


def stem_convolutions(spec: ResNetSpec) -> tuple[Convolution, ...]:
    """Return the convolutions of the stem in order. In ImageNet networks, a max-pool follows them."""
    filters = spec.stem_filters or spec.filters
    if spec.stem in ('deep', 'tiered'):  # two more convolutions, with half of the filters (arXiv:1812.01187 Fig. 2b)
        first = filters // 2 if spec.stem == 'deep' else filters * 3 // 8
        return Convolution(first, 3, 2), Convolution(filters // 2, 3), Convolution(filters, 3)
    kernel, stride = {'imagenet': (7, 2), 'whitening': (2, 1)}.get(spec.stem, (3, 1))
    return (Convolution(filters, kernel, stride),)


def spec_of(group_blocks: tuple[int, ...], axes: dict[str, Any]) -> ResNetSpec:
    """Return ResNetSpec(group_blocks, **axes). For an unknown name, UserError suggests the most similar field."""
    known = [field.name for field in dataclasses.fields(ResNetSpec)]
    for name, value in axes.items():
        if name not in known:
            import difflib

            remedy = ' or '.join(difflib.get_close_matches(name, known, 1) or [f'one of {", ".join(known)}'])
            raise UserError(f'{name}={value!r} is not a field of ResNetSpec; pass {remedy}')
    return ResNetSpec(group_blocks, **axes)


def cifar_spec(resnet_size: int, **axes: Any) -> ResNetSpec:
    """Return the spec of a CIFAR network with 6n+2 layers, or 9n+2 with bottlenecks (1512.03385 Sec. 4.2).

    >>> cifar_spec(20).group_blocks
    (3, 3, 3)

    Args:
        resnet_size: Number of layers that have weights, without those of shortcuts: 8, 14, 20, ...
        **axes: Further fields of ResNetSpec, for example version='2', shortcut='group'.

    Raises:
        UserError: No network has this number of layers, or a field is wrong.
    """
    layers = 9 if axes.get('block') == 'bottleneck' else 6
    if resnet_size < layers + 2 or resnet_size % layers != 2:
        below = max(layers + 2, (resnet_size - 2) // layers * layers + 2)
        raise UserError(f'resnet_size={resnet_size} is not {layers}n+2; the nearest are {below} and {below + layers}')
    return spec_of(((resnet_size - 2) // layers,) * 3, axes)
