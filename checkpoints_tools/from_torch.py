"""PyTorch's residual networks with the names of torchvision, timm and akamaster (CIFAR).

    conv1.weight  bn1.{weight,bias,running_mean,running_var}  layer1.0.conv1.weight  layer1.0.bn1.*
    layer1.0.downsample.{0,1}.*  fc.{weight,bias}

nn.Sequential(*list(resnet.children())[:-1]), as in lightly's programs, has numbers in place of the first words; they
are read as these names (`named`).

timm (timm/models/resnet.py) also has conv1.{0,1,3,4,6} in place of conv1 (deep stem), downsample.{1,2} after an average
pool, and layer1.0.se.{fc1,fc2} (SE) or layer1.0.se.conv (ECA) after the last BN of a block. akamaster
(github.com/akamaster/pytorch_resnet_cifar10) has linear in place of fc. Its option A is x[:, :, ::2, ::2] with zero
channels on both sides, and its option B has shortcut.{0,1} in place of downsample.{0,1}. Kernels are [out, in / groups,
h, w], every bottleneck has its stride in the 3x3 (version 1.5), and padding is symmetric.
"""

import dataclasses
import difflib
import functools
import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, torch_config, torch_file
from checkpoints_tools.source import Input, Shape, Shapes, Source, Variables, shape_of
from checkpoints_tools.torch_file import BN as _BN
from checkpoints_tools.torch_file import EPSILON, VARIABLES
from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec, stem_convolutions

CORE = ('bn1.weight', 'layer1.0.conv1.weight')  # names that every network has
# Beside classifiers, what self-supervised training puts after the network: SwAV's prototypes, SimCLR's projector ...
HEADS = re.compile(r'(fc|linear|head|classifier|projection_head|projector|prototypes|predictor)\..*')
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in 0..1; akamaster also uses them for CIFAR-10
IMAGENET_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD)
CIFAR_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD, size=32, resize=None)
IMAGENET_NOTE = (
    'torchvision is BSD-3-Clause, timm Apache-2.0; both trained on ImageNet, for research only; '
    'arXiv:1512.03385, 1611.05431 (ResNeXt), 1605.07146 (wide), 1812.01187 (C, D), 1709.01507 (SE), 1910.03151 (ECA)'
)
CIFAR_NOTE = 'akamaster/pytorch_resnet_cifar10, BSD-2-Clause; arXiv:1512.03385'
# torchvision's or timm's name -> ours
NAMES = {f'resnet{size}': f'resnet{size}_v1.5' for size in resnet_variants.IMAGENET_BLOCKS}
NAMES |= {f'seresnet{size}': f'seresnet{size}_v1.5' for size in (50, 101, 152)}
NAMES |= {name: name for name in resnet_variants.VARIANTS if name.startswith(('resnext50_', 'resnext101_', 'wide_'))}
NAMES |= {name: name for name in resnet_variants.TIMM_NAMES if not name.startswith('resnetv2')}
_shape = operator.attrgetter(
    *('group_blocks', 'filters', 'stem', 'stem_filters', 'block', 'base_width', 'cardinality'),
    *('projection_pool', 'se_reduction', 'eca'),
)
# What no network here has: patterns of timm's names of variables, and of its names of networks. The weights of an
# anti-aliased network have the names of a plain one.
_STRANGE = {
    'anti-aliasing layers (resnetblur, resnetaa)': (r'.*\.filt', r'.*(blur|aa)\d+.*'),
    "a convolution in place of the stem's pool (resnetrs)": (r'maxpool\.\d\.weight', r'resnetrs\d+'),
    'group normalisation (resnet50_gn)': ('', r'.*_gn'),
    'split attention (resnest)': (r'layer1\.0\.conv2\.(bn0|fc1|radix)\..*', r'resnest.*'),
    'selective kernels (skresnet)': (r'layer1\.0\.conv\d\.(paths|attn)\..*', r'sk.*'),
    'attention pooling (CLIP)': (r'attnpool\..*', r'.*_clip.*'),
    'an attention that is neither SE nor ECA': (r'layer1\.0\.se\.(?!fc[12]\.|conv\.weight$).*', r'(cbam|gc|ge).*'),
    'blocks of senet154': ('', r'senet154'),
}
# Rank of our variable -> its layout there; a kernel of ECA is [width, 1, 1] here and [1, 1, width] there.
BY_RANK = {1: our_net.identity, 2: our_net.transposed, 3: our_net.transposed, 4: our_net.from_oihw}
# Number of the first layer in a sequence of a network's modules, and the number of layers. Before it are conv1, bn1,
# relu and maxpool, or in CIFAR networks, which have no pool, conv1 and bn1 with or without relu.
_SEQUENCES = (4, 4), (3, 3), (2, 3)
_MAX_SEQUENCES = 9  # in a file; of more than two networks, none is chosen
# What all families of PyTorch share.
list_files, ignored, write = torch_config.list_files, torch_file.ignored, torch_file.write


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name: value} with torchvision's names for numbers of modules in a sequence: 4.0.* becomes layer1.0.*.

    A sequence is what has the modules of a whole network and no others; anything else keeps its names.
    """
    renamed = dict(values)
    for first, count in _SEQUENCES:
        words = {'0': 'conv1', '1': 'bn1'} | {str(first + i): f'layer{i + 1}' for i in range(count)}
        core = ('1.running_mean', *(f'{first + i}.0.conv1.weight' for i in range(count)))
        for prefix in torch_file.shared_prefixes(values, core)[:_MAX_SEQUENCES]:
            inside = [name.removeprefix(prefix) for name in values if name.startswith(prefix)]
            if prefix[-1:] in ('', '.') and {name.partition('.')[0] for name in inside} == words.keys():
                for name in inside:
                    number, _, rest = name.partition('.')
                    renamed[f'{prefix}{words[number]}.{rest}'] = renamed.pop(prefix + name)
    return renamed


shapes, read = torch_file.readers(CORE, HEADS, named, torch_config.of_timm)


def recognises(shapes: Shapes) -> bool:
    """Return whether these variables have torchvision's, timm's or akamaster's names."""
    return CORE[0] in shapes and any(name.startswith('layer1.0.') for name in shapes)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. Names and shapes tell all but the version.

    A variant is torchvision's name or one of ours. It can change only the version, because weights do not tell whether
    a bottleneck has its stride in the 3x3 ('resnet50', 'resnet50_v1.5') or in the first 1x1 ('resnet50_v1').

    Nor do weights tell of anti-aliasing. The network is refused if the variant, timm's config.json or else the name of
    the file tells of it.
    """
    _refuse_strange(shapes, _named_networks(shapes, variant))
    is_deep = 'conv1.0.weight' in shapes
    stem = shape_of(shapes, 'conv1.6.weight' if is_deep else 'conv1.weight', 4)
    head = shape_of(shapes, f'{_head(shapes)}.weight', 2)
    group_blocks = our_net.named_blocks(shapes, r'layer(\d{1,4})\.(\d{1,6})\..*', (1, 0))
    is_bottleneck = 'layer1.0.conv3.weight' in shapes
    inner = shape_of(shapes, 'layer1.0.conv2.weight', 4)
    filters = shape_of(shapes, 'layer1.0.conv3.weight', 4)[0] // 4 if is_bottleneck else inner[0]
    axes = _widths(filters, inner) if is_bottleneck else {}
    if (is_deep or stem[2:] == (7, 7)) and len(group_blocks) == 4:
        kind, version, shortcut, padding = 'imagenet', '1.5', 'B', 'end'
        if is_deep:
            kind = stem_kind(stem[0], *(shape_of(shapes, f'conv1.{i}.weight', 4)[0] for i in (0, 3)))
        axes |= {'stem_filters': None if stem[0] == filters else stem[0]} | _timm_axes(shapes, group_blocks)
        labels, convention, note = {1000: 'imagenet1000'}, IMAGENET_INPUT, IMAGENET_NOTE
    elif stem[2:] == (3, 3) and len(group_blocks) == 3:
        projects = any(re.search(r'\.(downsample|shortcut)\.0\.weight$', name) for name in shapes)
        kind, version, shortcut, padding = 'cifar', '1.5' if is_bottleneck else '1', 'B' if projects else 'A', 'both'
        labels, convention, note = {10: 'cifar10'}, CIFAR_INPUT, CIFAR_NOTE
    else:
        raise UserError(
            f"a stem of the shape {stem} and {len(group_blocks)} layers are neither torchvision's or timm's (4 "
            "layers) nor akamaster's (3x3, 3 layers); convert another checkpoint"
        )
    block = 'bottleneck' if is_bottleneck else 'basic'
    spec = ResNetSpec(group_blocks, filters, kind, block, version, shortcut, padding, bn_momentum=0.9, **axes)
    spec = _with_version_of(spec, variant) if variant else spec
    convention = torch_config.timm_input(getattr(shapes, 'config', {}), head, convention)
    name, label = variant or published_name(spec, NAMES), labels.get(head[0], 'unknown')
    return Source('torch', name, spec, head[0], convention, label, note)


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    projection = 'shortcut' if any('.shortcut.' in name for name in shapes) else 'downsample'
    words = Words(_head(shapes), projection, source.spec.projection_pool, 'conv1.0.weight' in shapes)
    return [
        our_net.Entry(target, (name,), BY_RANK[len(shape)])
        for target, shape in our_net.variables(source.spec, source.num_classes).items()
        if (name := foreign_name(target, words))
    ]


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {f'{_head(shapes)}.weight': (features, features), f'{_head(shapes)}.bias': (features,)}


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] by PyTorch's definition and names.

    The source tells whether a bottleneck has its stride in the first 1x1.
    """

    def conv(x, name, stride) -> tf.Tensor:  # nn.Conv2d with padding (kernel - 1) // 2
        if name.endswith('downsample.1') and stride > 1:  # after nn.AvgPool2d, timm's downsample_avg
            x, stride = operations.mean_pool(x), 1
        return operations.conv2d(x, variables[f'{name}.weight'].transpose(2, 3, 1, 0), stride)

    def norm(x, name) -> tf.Tensor:  # nn.BatchNorm2d in inference; bn1 follows conv1, downsample.1 follows downsample.0
        place, _, number = name.rpartition('.')
        name = f'{place}.{int(number) + 1}' if number.isdigit() else name.replace('conv', 'bn')
        return operations.batch_norm(x, *(variables[f'{name}.{part}'] for part in _BN.values()), epsilon=EPSILON)

    def option_a(
        x, stride
    ) -> tf.Tensor:  # akamaster's F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))
        pads = [x.shape[-1] // 2 if stride > 1 else 0] * 2  # planes are twice as many as the channels of x
        return tf.pad(x[:, ::stride, ::stride], [[0, 0], [0, 0], [0, 0], pads])

    is_cifar, num_convs = source.spec.stem == 'cifar', 3 if 'layer1.0.conv3.weight' in variables else 2
    strided = 2 if num_convs == 3 and source.spec.version != '1' else 1
    x, is_deep = tf.constant(images), 'conv1.0.weight' in variables
    if is_deep:
        x = tf.nn.relu(norm(conv(x, 'conv1.0', 2), 'conv1.0'))
        x = tf.nn.relu(norm(conv(x, 'conv1.3', 1), 'conv1.3'))
    x = conv(x, 'conv1.6', 1) if is_deep else conv(x, 'conv1', 1 if is_cifar else 2)
    x = tf.nn.relu(norm(x, 'conv1'))
    x = x if is_cifar else operations.max_pool(x, [(1, 1), (1, 1)])  # nn.MaxPool2d(3, 2, 1) pads with -infinity
    for layer, i, stride in operations.blocks(source.spec.group_blocks):
        name = f'layer{layer}.{i - 1}'
        projections = (f'{name}.downsample.0', f'{name}.downsample.1', f'{name}.shortcut.0')
        projection = next((p for p in projections if f'{p}.weight' in variables), None)
        names = [f'{name}.conv{i}' for i in range(1, num_convs + 1)]
        strides = [stride if i == strided else 1 for i in range(1, num_convs + 1)]
        branch = functools.partial(_attended, variables, f'{name}.se')
        x = operations.residual_block(x, projection, names, strides, conv, norm, identity=option_a, branch=branch)
    head = _head(variables)
    return operations.classify(x, variables[f'{head}.weight'].T, variables[f'{head}.bias'])


def _attended(variables, name, x):
    """Return x after timm's SEModule or EcaModule of this name, if there is one."""
    means = tf.reduce_mean(x, [1, 2])  # [n, channels]
    if f'{name}.fc1.weight' in variables:  # two 1x1 convolutions, [out, in, 1, 1]
        for layer, function in (('fc1', tf.nn.relu), ('fc2', tf.sigmoid)):
            weight, bias = (np.asarray(variables[f'{name}.{layer}.{part}'], 'float32') for part in ('weight', 'bias'))
            means = function(means @ weight[:, :, 0, 0].T + bias)
        return x * means[:, None, None]
    if f'{name}.conv.weight' in variables:  # nn.Conv1d over the channels, [1, 1, width]
        (weight,) = np.asarray(variables[f'{name}.conv.weight'], 'float32')[0]
        side, channels = len(weight) // 2, x.shape[-1]
        padded = tf.pad(means, [[0, 0], [side, side]])
        means = tf.add_n([value * padded[:, i : i + channels] for i, value in enumerate(weight)])
        return x * tf.sigmoid(means)[:, None, None]
    return x


class Words(NamedTuple):
    """Where the names of PyTorch's networks differ."""

    head: str  # 'fc' or 'linear'
    projection: str  # 'downsample' or 'shortcut'
    has_pool: bool = False  # whether the first module of a projection is an average pool
    is_deep: bool = False  # whether the stem has three convolutions


def foreign_name(target: str, words: Words) -> str | None:
    """Return PyTorch's name of one of our variables, or None: 'group1_block2_bn1/gamma' -> 'layer1.1.bn1.weight'."""
    layer, _, variable = target.rpartition('/')
    stem = {'stem_conv1': 'conv1.0', 'stem_bn1': 'conv1.1', 'stem_conv2': 'conv1.3', 'stem_bn2': 'conv1.4'}
    stem |= {'stem_conv': 'conv1.6' if words.is_deep else 'conv1', 'stem_bn': 'bn1'}
    module = (stem | {'logits': words.head}).get(layer)
    if block := re.fullmatch(r'group(\d+)_block(\d+)_(?:(conv\d|bn\d)|shortcut_(conv|bn)|se_conv(\d)|eca_conv)', layer):
        group, index, inner, projected, dense = block.groups()
        if projected:
            inner = f'{words.projection}.{("conv", "bn").index(projected) + words.has_pool}'
        elif not inner:
            inner = f'se.fc{dense}' if dense else 'se.conv'
        module = f'layer{group}.{int(index) - 1}.{inner}'
    return f'{module}.{VARIABLES[variable]}' if module and variable in VARIABLES else None


def exported(model: keras.Model) -> tuple[dict[str, tuple[str | None, np.ndarray]], dict[str, Any]]:
    """Return {our variable: (PyTorch's name or None, its value in PyTorch's layout)} of one of our models, and {}."""
    layer_names = {layer.name for layer in model.layers}
    words = Words('linear', 'shortcut')
    if 'stem_pool' in layer_names:
        has_pool = any(name.endswith('_shortcut_pool') for name in layer_names)
        words = Words('fc', 'downsample', has_pool, 'stem_conv1' in layer_names)
    named = {}
    for variable in model.variables:
        array = np.asarray(variable, np.float32)
        # Convolutions [h, w, in, out] -> [out, in, h, w]; the last layer and ECA's kernels are reversed.
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else None)
        named[variable.path] = foreign_name(variable.path, words), array
    return named, {}


def _head(names):
    return 'linear' if 'linear.weight' in names else 'fc'


_widths = functools.partial(our_net.bottleneck_widths, 'layer1.0.conv2.weight')


def _refuse_strange(shapes, networks):
    """Raise UserError, which names what no network here has, if names of variables or of the network tell of it."""
    found = [
        thing
        for thing, (name, network) in _STRANGE.items()
        if any(re.fullmatch(name, variable) for variable in shapes) or any(re.fullmatch(network, n) for n in networks)
    ]
    is_whole = any(name.startswith('conv1.') for name in shapes)
    if is_whole and not any(name.endswith('.running_mean') for name in shapes):
        found.append('norms without running_mean (group normalisation, as in resnet50_gn)')
    if found:
        raise UserError(f'the network has {found[0]}, which none here has; convert another checkpoint')


def _named_networks(shapes, variant):
    """Return the names of networks that the variant, timm's config.json and the file's own name give.

    A file's name tells only of anti-aliasing, which nothing else does, and only if no variant is passed.
    """
    of_file = [] if variant else re.findall(r'res[a-z]*(?:aa|blur)\d+', getattr(shapes, 'file', ''))
    return [variant or '', getattr(shapes, 'config', {}).get('architecture', '').partition('.')[0], *of_file]


def stem_kind(filters: int, *first: int) -> str:
    """Return 'deep' or 'tiered' for the filters of a stem's last convolution and of those before it."""
    for kind in ('deep', 'tiered'):
        if first == tuple(conv.filters for conv in stem_convolutions(ResNetSpec((1,), filters, kind))[:2]):
            return kind
    raise UserError(
        f'the stem has {first[0]}, {first[1]} and {filters} filters, which is neither deep (1/2, 1/2, 1) nor tiered '
        '(3/8, 1/2, 1); convert another checkpoint'
    )


def _timm_axes(shapes, group_blocks):
    """Return the fields of ResNetSpec that only timm's networks have: pools before projections, SE, ECA."""
    axes: dict[str, Any] = {'projection_pool': any(name.endswith('.downsample.2.weight') for name in shapes)}
    axes['eca'] = any(name.endswith('.se.conv.weight') for name in shapes)
    if any('.se.fc1.' in name for name in shapes):
        last = f'layer{len(group_blocks)}.{group_blocks[-1] - 1}.se.fc1.weight'
        reduced, channels, *_ = shape_of(shapes, last, 4)
        axes['se_reduction'] = max(1, channels // reduced)
        first = channels // 2 ** (len(group_blocks) - 1)  # of the blocks of the first group
        axes['se_divisor'] = 8 if first % (8 * axes['se_reduction']) else 1  # timm's 8; if it changes nothing, 1
    return axes


def _with_version_of(spec, variant):
    found = published_name(spec, NAMES)
    named = resnet_variants.VARIANTS.get(NAMES.get(variant, variant), spec if variant == found else None)
    if named is None:
        near = difflib.get_close_matches(variant, [*NAMES, *resnet_variants.VARIANTS], 3)
        others = ''.join(f', or pass {name}' for name in near)
        raise UserError(f'--variant={variant} is no network; leave it out for {found}{others}')
    if named.version == '2' or _shape(named) != _shape(spec):
        raise UserError(f'--variant={variant} does not fit: the variables are those of {found}; leave it out')
    return dataclasses.replace(spec, version=named.version)


def published_name(spec: ResNetSpec, names: Mapping[str, str]) -> str:
    """Return the network's published name in {published name: ours}, or else a description."""
    for name, variant in names.items():
        if _shape(resnet_variants.VARIANTS[variant]) == _shape(spec):
            return name
    if spec.stem == 'cifar' and spec.block == 'basic' and len(set(spec.group_blocks)) == 1 and spec.filters == 16:
        return f'resnet{6 * spec.group_blocks[0] + 2}'
    return f'resnet_{spec.block}_{"_".join(map(str, spec.group_blocks))}_filters{spec.filters}'
