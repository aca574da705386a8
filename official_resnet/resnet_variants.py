"""The named networks, each with its ResNetSpec.

    python -m official_resnet.resnet_variants                            # table of all networks, in about a second
    python -m official_resnet.resnet_variants resnet50_v1 resnet50_v1.5  # these two

The specs need no Keras. build_model, cifar_resnet, imagenet_resnet and mnist_resnet import Keras when called.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from official_resnet.errors import UserError
from official_resnet.resnet_spec import POOLED_STEMS, ResNetSpec, cifar_spec, spec_of

if TYPE_CHECKING:
    import keras

IMAGENET_BLOCKS = {
    18: ('basic', (2, 2, 2, 2)),
    34: ('basic', (3, 4, 6, 3)),
    50: ('bottleneck', (3, 4, 6, 3)),
    101: ('bottleneck', (3, 4, 23, 3)),
    152: ('bottleneck', (3, 8, 36, 3)),
    200: ('bottleneck', (3, 24, 36, 3)),
}  # layers -> block, group_blocks: 1512.03385 Table 1; 200 is from 1603.05027 Sec. 5
# stem -> (height, width, channels) of the images; None accepts any size
IMAGE_SHAPES: dict[str, tuple[int | None, int | None, int]] = {
    'cifar': (32, 32, 3),
    'whitening': (32, 32, 3),
    'mnist': (32, 32, 1),
    **dict.fromkeys(POOLED_STEMS, (None, None, 3)),
}
TIMM_BLOCKS = IMAGENET_BLOCKS | {
    10: ('basic', (1, 1, 1, 1)),
    14: ('bottleneck', (1, 1, 1, 1)),
    26: ('bottleneck', (2, 2, 2, 2)),
    269: ('bottleneck', (3, 30, 48, 8)),
}  # layers -> block, group_blocks of timm
# The names of timm whose networks have no other name here.
TIMM_NAMES = """
    resnet10t resnet14t resnet18d resnet26 resnet26d resnet26t resnet34d resnet50c resnet50d resnet50s resnet50t
    resnet101c resnet101d resnet101s resnet152c resnet152d resnet152s resnet200d resnext50d_32x4d
    seresnet18 seresnet34 seresnet50t seresnet152d seresnet200d seresnet269d seresnext26d_32x4d seresnext26t_32x4d
    seresnext50_32x4d seresnext101_32x4d seresnext101_32x8d seresnext101_64x4d seresnext101d_32x8d
    ecaresnet26t ecaresnet50d ecaresnet50t ecaresnet101d ecaresnet200d ecaresnet269d ecaresnetlight
    ecaresnext26t_32x4d ecaresnext50t_32x4d
    resnetv2_18 resnetv2_18d resnetv2_34 resnetv2_34d resnetv2_50 resnetv2_50d resnetv2_50t resnetv2_101 resnetv2_101d
    resnetv2_152 resnetv2_152d
    """.split()


def imagenet_spec(resnet_size: int, **axes: Any) -> ResNetSpec:
    """Return the spec of an ImageNet network (1512.03385 Table 1), by default of version 1.5 with option B.

    >>> imagenet_spec(50).group_blocks
    (3, 4, 6, 3)

    Args:
        resnet_size: 18, 34, 50, 101, 152 or 200 layers.
        **axes: Further fields of ResNetSpec.

    Raises:
        UserError: No network has this number of layers, or a field is wrong.
    """
    if resnet_size not in IMAGENET_BLOCKS:
        raise UserError(f'resnet_size={resnet_size} must be one of {", ".join(map(str, IMAGENET_BLOCKS))}')
    block, group_blocks = IMAGENET_BLOCKS[resnet_size]
    fields = {'filters': 64, 'stem': 'imagenet', 'block': block, 'shortcut': 'B', 'version': '1.5'} | axes
    if fields['version'] == '2':
        fields.setdefault('stem_pool', 'same')
    return spec_of(group_blocks, fields)


def timm_spec(name: str) -> ResNetSpec:
    """Return the spec of a network of timm (github.com/huggingface/pytorch-image-models) by its name there.

    A letter after the depth tells the stem: c and d have a deep one, s one of twice the filters, t a tiered one. In d
    and t, an average pool takes the stride of projections.

    >>> timm_spec('seresnext26t_32x4d').stem
    'tiered'
    """
    if name == 'ecaresnetlight':
        return dataclasses.replace(imagenet_spec(50, projection_pool=True, eca=True), group_blocks=(1, 1, 11, 3))
    parts = re.fullmatch(r'(se|eca|)resnex?t(v2_)?(\d+)([cdst]?)(?:_(\d+)x(\d+)d)?', name)
    assert parts, name
    attention, is_v2, size, letter, cardinality, base_width = parts.groups()
    block, group_blocks = TIMM_BLOCKS[int(size)]
    axes: dict[str, Any] = {'projection_pool': letter in ('d', 't')}
    if letter:
        axes |= {'stem': 'tiered' if letter == 't' else 'deep', 'stem_filters': 128 if letter == 's' else None}
    if is_v2:
        axes |= {'version': '2', 'stem_pool': 'torch'}
    if attention == 'se':  # reduced widths are multiples of 8; those of bottlenecks are anyway
        axes |= {'se_reduction': 16, 'se_divisor': 8 if block == 'basic' else 1}
    if cardinality:
        axes |= {'cardinality': int(cardinality), 'base_width': int(base_width)}
    spec = imagenet_spec(50, block=block, eca=attention == 'eca', **axes)
    return dataclasses.replace(spec, group_blocks=group_blocks)


def mnist_spec(**axes: Any) -> ResNetSpec:
    """Return the spec of a network for MNIST: two blocks with 16, 32 and 64 filters each, projections by 3x3.

    >>> mnist_spec().group_blocks
    (2, 2, 2)
    """
    fields = {'stem': 'mnist', 'shortcut': 'B', 'projection_kernel': 3, 'bn_momentum': 0.9} | axes
    return spec_of((2, 2, 2), fields)


# The network of airbench94 (2404.00498 Sec. 3), with an identity around the second convolution of each group.
_POOLED = ResNetSpec(
    (1, 1, 1),
    group_filters=(64, 256, 256),
    stem='whitening',
    stem_filters=24,
    block='pooled',
    activation='gelu',
    head_pool='max',
    initializer='dirac',
    bn_momentum=0.6,
    bn_scale=False,
)
_RESNEXT29 = {'block': 'bottleneck', 'version': '1.5', 'shortcut': 'B', 'filters': 64}
VARIANTS = {
    **{f'resnet{n}_v{v}': cifar_spec(n, version=v) for v in '12' for n in (20, 32, 44, 56, 110, 1202)},
    **{f'plain{n}': cifar_spec(n, shortcut=None) for n in (20, 32, 44, 56, 110)},
    # 1603.05027 Sec. 5
    **{f'resnet{n}_v2': cifar_spec(n, block='bottleneck', version='2', shortcut='B') for n in (164, 1001)},
    # 1611.05431 Sec. 5.3
    **{
        f'resnext29_{cardinality}x{width}d': cifar_spec(29, cardinality=cardinality, base_width=width, **_RESNEXT29)
        for cardinality, width in ((32, 4), (8, 64), (16, 64))
    },
    # 1605.07146 Sec. 3
    **{
        f'wrn{n}_{width}': ResNetSpec(((n - 4) // 6,) * 3, version='2', shortcut='B', width=width)
        for n, width in ((16, 4), (28, 10), (40, 4))
    },
    'resnet8_pooled': _POOLED,
    'plain8_pooled': dataclasses.replace(
        _POOLED, shortcut=None
    ),  # airbench94 of 2404.00498, but for the bias of logits
    # airbench96 of 2404.00498: its widths and three convolutions a group, with an identity around each but the first
    'resnet11_pooled': dataclasses.replace(_POOLED, group_blocks=(2, 2, 2), group_filters=(128, 384, 512)),
    'mnist_resnet14': mnist_spec(),
    **{f'resnet{n}_v{v}': imagenet_spec(n, version=v) for v in ('1', '1.5', '2') for n in IMAGENET_BLOCKS},
    **{f'plain{n}': imagenet_spec(n, shortcut=None, version='1') for n in (18, 34)},
    # 1611.05431 Sec. 5.1; 32x8d is torchvision's
    **{
        f'resnext{n}_{cardinality}x{width}d': imagenet_spec(n, cardinality=cardinality, base_width=width)
        for n, cardinality, width in ((50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4))
    },
    **{f'wide_resnet{n}_2': imagenet_spec(n, base_width=128) for n in (50, 101)},  # 1605.07146 Sec. 3
    # 1709.01507 Sec. 3
    **{f'seresnet{n}_v{v}': imagenet_spec(n, version=v, se_reduction=16) for v in ('1', '1.5') for n in (50, 101, 152)},
    # 1812.01187 Sec. 4
    **{f'resnet{n}_d': timm_spec(f'resnet{n}d') for n in (50, 101, 152)},
    **{name: timm_spec(name) for name in TIMM_NAMES},
}


def find_spec(variant: str) -> ResNetSpec:
    """Return the spec of a named network, for example 'resnet50_v1.5'.

    Raises:
        UserError: No network has this name. The message suggests similar names, version 1.5 first.
    """
    if variant not in VARIANTS:
        import difflib

        wanted = variant.lower().replace('-', '')
        near = [name for name in VARIANTS if name.startswith(f'{wanted}_')]
        near = near or difflib.get_close_matches(wanted, VARIANTS, 6) or list(VARIANTS)
        near.sort(key=lambda name: not name.endswith('_v1.5'))
        raise UserError(f'there is no network {variant!r}; pass {", ".join(near[:-1])} or {near[-1]}')
    return VARIANTS[variant]


def with_flags(variant: str, given: Mapping[str, str], *resnet_size: int, **axes: Any) -> ResNetSpec:
    """Return the spec of a named network, with the fields that recipe and flags may change (`names`).

    >>> with_flags('seresnet50_v1', {}, 18, version='2', bn_momentum=0.9).bn_momentum
    0.9

    Args:
        variant: A name in VARIANTS.
        given: {flag: field of ResNetSpec} of the flags that the user passed.
        *resnet_size, **axes: The number of layers, if there is one, and the fields, by the recipe and the flags.

    Raises:
        UserError: No network has this name, or a flag contradicts it.
    """
    spec = find_spec(variant)
    names = 'bn_momentum', 'zero_gamma', 'initializer', 'stochastic_depth', 'blur_pool'
    changes = {name: axes[name] for name in names if name in axes}
    # The blocks of version 2 do not end in a batch norm, and those of pooled networks in one without a scale.
    if (spec.version == '2' or not spec.bn_scale) and 'zero_gamma' not in given:
        changes.pop('zero_gamma', None)
    if spec.shortcut is None and 'stochastic_depth' not in given:
        changes.pop('stochastic_depth', None)
    asked = axes | dict(zip(['resnet_size'], resnet_size, strict=False))
    for flag, field in given.items():
        name = flag if flag == 'resnet_size' else field
        if name not in changes and asked[name] != getattr(spec, name):
            fault = f'--{flag}={asked[name]}, but the network {variant} has {getattr(spec, name)}'
            raise UserError(f'{fault}; leave --{flag} out, or pass another --recipe or --variant')
    return dataclasses.replace(spec, **changes)


def build_model(variant: str, num_classes: int) -> keras.Model:
    """Return the network with a name in VARIANTS, for images of the shape that IMAGE_SHAPES has for its stem.

    >>> build_model('resnet20_v1', num_classes=10).output_shape
    (None, 10)

    Raises:
        UserError: No network has this name.
    """
    return _model(find_spec(variant), num_classes)


def cifar_resnet(resnet_size: int, num_classes: int = 10, **axes: Any) -> keras.Model:
    """Return a network for float [n, 32, 32, 3] images. The arguments are those of cifar_spec.

    >>> cifar_resnet(8, num_classes=100, version='2').output_shape
    (None, 100)
    """
    return _model(cifar_spec(resnet_size, **axes), num_classes)


def imagenet_resnet(resnet_size: int, num_classes: int = 1000, **axes: Any) -> keras.Model:
    """Return a network for float [n, height, width, 3] images of any size. The arguments are those of imagenet_spec.

    >>> imagenet_resnet(18, filters=4).output_shape
    (None, 1000)
    """
    return _model(imagenet_spec(resnet_size, **axes), num_classes)


def mnist_resnet(num_classes: int = 10, **axes: Any) -> keras.Model:
    """Return a network for float [n, 32, 32, 1] images, for example 28x28 digits padded with zeros.

    >>> mnist_resnet().input_shape
    (None, 32, 32, 1)
    """
    return _model(mnist_spec(**axes), num_classes)


def _model(spec, num_classes):
    from official_resnet import resnet_model  # imports Keras, which the specs do not need

    return resnet_model.resnet(spec, num_classes, IMAGE_SHAPES[spec.stem])


if __name__ == '__main__':
    import sys

    from absl import flags

    from official_resnet.command_line import program
    from official_resnet.experiments import architecture_table

    show = program.reader_may_leave()(architecture_table.main)
    sys.exit(program.run_program(sys.argv, __doc__, flags.FlagValues(), show, takes_arguments=True))
