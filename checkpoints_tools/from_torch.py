"""PyTorch's residual networks with the names of torchvision, timm and akamaster (CIFAR), in .pth and .safetensors.

    conv1.weight  bn1.{weight,bias,running_mean,running_var}  layer1.0.conv1.weight  layer1.0.bn1.*
    layer1.0.downsample.{0,1}.*  fc.{weight,bias}

akamaster (github.com/akamaster/pytorch_resnet_cifar10) has linear in place of fc. Its option A is x[:, :, ::2, ::2]
with zero channels on both sides, and its option B has shortcut.{0,1} in place of downsample.{0,1}. Kernels are
[out, in / groups, h, w], every bottleneck has its stride in the 3x3 (version 1.5), and padding is symmetric.
"""

import contextlib
import dataclasses
import functools
import operator
import os
import pathlib
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import operations, our_net, torch_pickle
from checkpoints_tools.source import AVERAGE, Input, Lazy, Listing, Shape, Shapes, Source, Variables, reading, shape_of
from official_resnet import bounds, files, resnet_variants
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

CORE = ('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight')  # names that every network has
HEADS = re.compile(r'(fc|linear|head|classifier)\..*')
# In the keys and prefixes of averages: timm's state_dict_ema, torchvision's model_ema, MoCo's encoder_k.
_AVERAGES = re.compile(r'(^|[._])(ema|swa|encoder_k|momentum_encoder)[._]')
_LOSSES = re.compile(r'(criterion|loss\w*)\..*')
IGNORED = {'num_batches_tracked': 'count of training steps'}
IGNORED |= dict.fromkeys(('total_ops', 'total_params'), 'count of a profiler')
EPSILON = 1e-5  # torch.nn.BatchNorm2d's, and ResNetSpec's default; PyTorch's momentum of 0.1 is 0.9 in Keras
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in 0..1; akamaster also uses them for CIFAR-10
IMAGENET_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD)
CIFAR_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD, size=32, resize=None)
IMAGENET_NOTE = (
    'torchvision is BSD-3-Clause, timm Apache-2.0; both trained on ImageNet, for research only; '
    'arXiv:1512.03385, 1611.05431 (ResNeXt), 1605.07146 (wide)'
)
CIFAR_NOTE = 'akamaster/pytorch_resnet_cifar10, BSD-2-Clause; arXiv:1512.03385'
# torchvision's or timm's name -> ours
NAMES = {f'resnet{size}': f'resnet{size}_v1.5' for size in resnet_variants.IMAGENET_BLOCKS}
NAMES |= {name: name for name in resnet_variants.VARIANTS if name.startswith(('resnext50', 'resnext101', 'wide_'))}
_shape = operator.attrgetter('group_blocks', 'filters', 'stem', 'block', 'base_width', 'cardinality')
_BN = dict(zip(our_net.BN_PARTS, ('weight', 'bias', 'running_mean', 'running_var'), strict=True))
_VARIABLES = {'kernel': 'weight', 'bias': 'bias', **_BN}
_SAFETENSORS_DTYPES = {'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64', 'I64': 'int64'}


def recognises(shapes: Shapes) -> bool:
    """Return whether these variables have torchvision's or akamaster's names."""
    return shapes.keys() >= set(CORE)


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)} without wrappers and prefixes, and without reading the values."""
    found, outside = _tensors(path)
    listing = Listing({name: (shape, dtype) for name, (shape, dtype, _) in found.items()})
    listing.outside = outside
    return listing


def read(path: str | os.PathLike) -> Lazy:
    """Return {name: ndarray} without wrappers and prefixes; each array is read on access."""
    tensors, _ = _tensors(path)
    return Lazy(tensors, lambda name: tensors[name][2]())


def _tensors(path):
    """Return {name: (shape, dtype, function that reads the values)} and {name: why} of those outside of the network."""
    if _is_safetensors(path):
        found = {}
        with _safetensors(path) as file:
            for name in file.keys():
                part, value = file.get_slice(name), functools.partial(_safetensor, path, name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype())
                found[name] = tuple(part.get_shape()), dtype, value
        return _networks({'': found}, path)
    saved, values = torch_pickle.load(path)
    tensors, outside = _networks(dict(_containers(saved)), path)
    return {
        name: (tensor.shape, tensor.storage.dtype.name, functools.partial(values, tensor))
        for name, tensor in tensors.items()
    }, outside


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source. Names and shapes tell the depth, the width and the cardinality.

    A variant is torchvision's name or one of ours. It can change only the version, because weights do not tell whether
    a bottleneck has its stride in the 3x3 ('resnet50', 'resnet50_v1.5') or in the first 1x1 ('resnet50_v1').
    """
    stem, num_classes = shape_of(shapes, 'conv1.weight', 4), shape_of(shapes, f'{_head(shapes)}.weight', 2)[0]
    group_blocks = our_net.named_blocks(shapes, r'layer(\d{1,4})\.(\d{1,6})\..*', (1, 0))
    is_bottleneck = 'layer1.0.conv3.weight' in shapes
    widths = _widths(stem[0], shape_of(shapes, 'layer1.0.conv2.weight', 4)) if is_bottleneck else {}
    if stem[2:] == (7, 7) and len(group_blocks) == 4:
        kind, version, shortcut, padding = 'imagenet', '1.5', 'B', 'end'
        labels, convention, note = {1000: 'imagenet1000'}, IMAGENET_INPUT, IMAGENET_NOTE
    elif stem[2:] == (3, 3) and len(group_blocks) == 3:
        projects = any(re.search(r'\.(downsample|shortcut)\.0\.weight$', name) for name in shapes)
        kind, version, shortcut, padding = 'cifar', '1.5' if is_bottleneck else '1', 'B' if projects else 'A', 'both'
        labels, convention, note = {10: 'cifar10'}, CIFAR_INPUT, CIFAR_NOTE
    else:
        raise UserError(
            f"conv1.weight of shape {stem} and {len(group_blocks)} layers are neither torchvision's (7x7, "
            "4 layers) nor akamaster's (3x3, 3 layers); convert another checkpoint"
        )
    block = 'bottleneck' if is_bottleneck else 'basic'
    spec = ResNetSpec(group_blocks, stem[0], kind, block, version, shortcut, padding, bn_momentum=0.9, **widths)
    spec = _with_version_of(spec, variant) if variant else spec
    name, label = variant or _name(spec), labels.get(num_classes, 'unknown')
    return Source('torch', name, spec, num_classes, convention, label, note)


def name_map(source: Source, shapes: Shapes) -> list[our_net.Entry]:
    """Return an Entry for each variable of the source's spec."""
    head, projection = _head(shapes), 'shortcut' if any('.shortcut.' in name for name in shapes) else 'downsample'
    by_rank = {1: our_net.identity, 2: our_net.transposed, 4: our_net.from_oihw}
    return [
        our_net.Entry(target, (name,), by_rank[len(shape)])
        for target, shape in our_net.variables(source.spec, source.num_classes).items()
        if (name := foreign_name(target, head, projection))
    ]


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of the variables that are not weights."""
    counts = {name: IGNORED[name.rpartition('.')[2]] for name in shapes if name.rpartition('.')[2] in IGNORED}
    return counts | dict(getattr(shapes, 'outside', {}))


def classifier(shapes: Shapes, features: int) -> dict[str, Shape]:
    """Return the shapes of a classifier that has as many outputs as features."""
    return {f'{_head(shapes)}.weight': (features, features), f'{_head(shapes)}.bias': (features,)}


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return the logits, float32 [n, classes], of images [n, h, w, 3] by PyTorch's definition and names.

    The source tells whether a bottleneck has its stride in the first 1x1.
    """

    def conv(x, name, stride) -> tf.Tensor:  # nn.Conv2d with padding (kernel - 1) // 2
        return operations.conv2d(x, variables[f'{name}.weight'].transpose(2, 3, 1, 0), stride)

    def norm(x, name) -> tf.Tensor:  # nn.BatchNorm2d in inference; bn1 follows conv1, downsample.1 follows downsample.0
        name = f'{name[:-1]}1' if name.endswith('.0') else name.replace('conv', 'bn')
        return operations.batch_norm(x, *(variables[f'{name}.{part}'] for part in _BN.values()), epsilon=EPSILON)

    def option_a(
        x, stride
    ) -> tf.Tensor:  # akamaster's F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))
        pads = [x.shape[-1] // 2 if stride > 1 else 0] * 2  # planes are twice as many as the channels of x
        return tf.pad(x[:, ::stride, ::stride], [[0, 0], [0, 0], [0, 0], pads])

    is_cifar, num_convs = source.spec.stem == 'cifar', 3 if 'layer1.0.conv3.weight' in variables else 2
    strided = 2 if num_convs == 3 and source.spec.version != '1' else 1
    x = tf.nn.relu(norm(conv(tf.constant(images), 'conv1', 1 if is_cifar else 2), 'conv1'))
    x = x if is_cifar else operations.max_pool(x, [(1, 1), (1, 1)])  # nn.MaxPool2d(3, 2, 1) pads with -infinity
    for layer, i, stride in operations.blocks(source.spec.group_blocks):
        name = f'layer{layer}.{i - 1}'
        projections = (f'{name}.downsample.0', f'{name}.shortcut.0')
        projection = next((p for p in projections if f'{p}.weight' in variables), None)
        names = [f'{name}.conv{i}' for i in range(1, num_convs + 1)]
        strides = [stride if i == strided else 1 for i in range(1, num_convs + 1)]
        x = operations.residual_block(x, projection, names, strides, conv, norm, identity=option_a)
    head = _head(variables)
    return operations.classify(x, variables[f'{head}.weight'].T, variables[f'{head}.bias'])


def foreign_name(target: str, head: str, projection: str) -> str | None:
    """Return PyTorch's name of one of our variables, or None: 'group1_block2_bn1/gamma' -> 'layer1.1.bn1.weight'.

    The head is 'fc' or 'linear', the projection 'downsample' or 'shortcut'.
    """
    layer, _, variable = target.rpartition('/')
    module = {'stem_conv': 'conv1', 'stem_bn': 'bn1', 'logits': head}.get(layer)
    block = re.fullmatch(r'group(\d+)_block(\d+)_(shortcut_)?(conv|bn)(\d*)', layer)
    if block and bool(block[3]) != bool(block[5]):
        inner = f'{projection}.{("conv", "bn").index(block[4])}' if block[3] else block[4] + block[5]
        module = f'layer{block[1]}.{int(block[2]) - 1}.{inner}'
    return f'{module}.{_VARIABLES[variable]}' if module and variable in _VARIABLES else None


def write(path: pathlib.Path, variables: Variables, metadata: dict[str, str]) -> None:
    """Write {PyTorch's name: float32 array} and metadata to a .safetensors file, whole or not at all."""
    arrays = {name: np.ascontiguousarray(array) for name, array in variables.items()}
    with files.replacing(path) as part:
        part.write_bytes(_library().numpy.save(arrays, {'format': 'pt'} | metadata))


def _head(names):
    return 'linear' if 'linear.weight' in names else 'fc'


def _widths(filters, shape):
    """Return cardinality and base_width from layer1.0.conv2.weight, [inner, inner / cardinality, 3, 3]."""
    inner, per_group = shape[:2]
    cardinality, base_width = inner // per_group, 64 * per_group // filters
    if per_group * cardinality != inner or filters * base_width // 64 * cardinality != inner:
        raise UserError(f'layer1.0.conv2.weight {shape} fits no network of {filters} filters; get the checkpoint again')
    return {'cardinality': cardinality, 'base_width': base_width}


def _with_version_of(spec, variant):
    named = resnet_variants.VARIANTS.get(NAMES.get(variant, variant), spec if variant == _name(spec) else None)
    if named is None:
        raise UserError(
            f'--variant={variant} must be one of {", ".join(NAMES)}, or one of resnet_variants.VARIANTS; '
            f'leave it out for {_name(spec)}'
        )
    if named.version == '2' or _shape(named) != _shape(spec):
        raise UserError(f'--variant={variant} does not fit: the variables are those of {_name(spec)}; leave it out')
    return dataclasses.replace(spec, version=named.version)


def _name(spec):
    """Return the network's published name, or else a description."""
    for name, variant in NAMES.items():
        if _shape(resnet_variants.VARIANTS[variant]) == _shape(spec):
            return name
    if spec.stem == 'cifar' and spec.block == 'basic' and len(set(spec.group_blocks)) == 1 and spec.filters == 16:
        return f'resnet{6 * spec.group_blocks[0] + 2}'
    return f'resnet_{spec.block}_{"_".join(map(str, spec.group_blocks))}_filters{spec.filters}'


def _containers(saved, place='', seen=None):
    """Yield (place, {name: Tensor}) of each dict in the object that was saved. That of 'model_ema' is 'model_ema.'."""
    seen = set() if seen is None else seen
    if not isinstance(saved, dict) or id(saved) in seen or len(seen) >= bounds.limit('pickle_dicts'):
        return
    seen.add(id(saved))
    named = {name: value for name, value in saved.items() if isinstance(name, str)}
    if tensors := {name: value for name, value in named.items() if isinstance(value, torch_pickle.Tensor)}:
        yield place, tensors
    for name, value in named.items():
        if place.count('.') + 1 < bounds.limit('pickle_depth'):
            yield from _containers(value, f'{place}{name}.', seen)


def _networks(containers, path):
    """Return {name: value} of the network's variables and averages, and {name: why} of what else is beside them.

    A network is where all CORE names share a prefix. If no container has one, all names of the largest are returned.
    """
    if not containers:
        raise UserError(f'{path} has no weights by name; save them with torch.save(model.state_dict(), PATH)')
    prefixes = {place: _prefixes(values) for place, values in containers.items()}
    networks: dict[str, list] = {'': [], AVERAGE: []}
    for place, values in containers.items():
        for prefix in prefixes[place]:
            is_average = 'n_averaged' in values or _AVERAGES.search(place + prefix)
            networks[AVERAGE if is_average else ''].append((place, prefix))
    if not any(networks.values()):
        return max(containers.values(), key=len), {}
    found, outside = {}, {}
    for ending, places in networks.items():
        if len(places) > 1:
            names = ', '.join(f'{place}{prefix}*' for place, prefix in places)
            raise UserError(f'{path} has {len(places)} networks, {names}; save one of them by itself')
        for place, prefix in places:
            for name, value in containers[place].items():
                owner = max((p for p in prefixes[place] if name.startswith(p)), key=len, default=None)
                inner = name.removeprefix(prefix)
                if owner is None:
                    outside[name] = f'outside of the network, whose names start with {prefix}'
                    found.setdefault(name, value)
                elif owner == prefix:
                    found[inner + ending] = value
                    if _LOSSES.fullmatch(inner):
                        outside[inner] = 'part of the loss'
    return found, outside


def _prefixes(names):
    """Return the prefixes that all CORE names have: ['module.'] in a checkpoint of DataParallel."""
    found = [name.removesuffix(CORE[-1]) for name in names if name.endswith(CORE[-1])]
    return [prefix for prefix in found if all(prefix + name in names for name in CORE)]


def _is_safetensors(path):
    """Return whether a file is a .safetensors file, by its name or its start: 8 bytes of length, then JSON."""
    if str(path).endswith('.safetensors'):
        return True
    with reading(path, 'a .pth, .th or .safetensors file'), open(path, 'rb', opener=files.plain) as file:
        return file.read(10)[8:] in (b'{"', b'{ ')


def _library():
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError("a .safetensors file needs safetensors: pip install 'official-resnet[convert]'") from None
    return safetensors


@contextlib.contextmanager
def _safetensors(path):
    """Yield the open file. A damaged file raises UserError, also when a tensor is read."""
    with reading(path, 'a .safetensors file'), _library().safe_open(path, framework='numpy') as file:
        yield file


def _safetensor(path, name):
    with _safetensors(path) as file:
        return file.get_tensor(name)
