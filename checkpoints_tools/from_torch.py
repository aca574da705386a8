"""PyTorch's residual networks: torchvision's and timm's names, akamaster's CIFAR nets, .pth and .safetensors.

    conv1.weight  bn1.{weight,bias,running_mean,running_var}  layer1.0.conv1.weight  layer1.0.bn1.*
    layer1.0.downsample.{0,1}.*  fc.{weight,bias}

akamaster (github.com/akamaster/pytorch_resnet_cifar10) says linear for fc and has option A: x[:, :, ::2, ::2]
with zero channels on both sides; its option B says shortcut.{0,1} for downsample.{0,1}. Convolutions are
[out, in / groups, h, w], all bottlenecks halve on their 3x3 (version 1.5), and padding is symmetric.
"""

import contextlib
import dataclasses
import os
import pathlib
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools import layouts, operations, our_net, torch_pickle
from checkpoints_tools.source import Entry, Input, Lazy, Shapes, Source, Variables, reason, shape_of
from official_resnet import files, resnet_spec, resnet_variants
from official_resnet.errors import UserError

WRAPPERS = ('state_dict', 'model_state_dict', 'model', 'net')  # keys under which trainings save the weights
PREFIXES = ('module.', '_orig_mod.', 'model.')  # of DataParallel, of torch.compile, of Lightning
IGNORED = {
    'num_batches_tracked': 'count of training steps',
    'total_ops': 'of a profiler',
    'total_params': 'of a profiler',
}
EPSILON = 1e-5  # torch.nn.BatchNorm2d; its momentum of 0.1 is what Keras calls 0.9
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet in 0..1; akamaster's on CIFAR-10, too
IMAGENET_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD)
CIFAR_INPUT = Input(scale=1 / 255, mean=MEAN, std=STD, size=32, resize=None)
IMAGENET_NOTE = (
    'torchvision is BSD-3-Clause, timm Apache-2.0; both trained on ImageNet, for research only; '
    'arXiv:1512.03385, 1611.05431 (ResNeXt), 1605.07146 (wide)'
)
CIFAR_NOTE = 'akamaster/pytorch_resnet_cifar10, BSD-2-Clause; arXiv:1512.03385'
# torchvision's or timm's name -> ours
NAMES = {f'resnet{size}': f'resnet{size}_v1.5' for size in (18, 34, 50, 101, 152, 200)} | {
    name: name
    for name in (
        'resnext50_32x4d',
        'resnext101_32x4d',
        'resnext101_32x8d',
        'resnext101_64x4d',
        'wide_resnet50_2',
        'wide_resnet101_2',
    )
}
_SHAPE_FIELDS = ('group_blocks', 'filters', 'stem', 'block', 'base_width', 'cardinality')
_VARIABLES = {
    'kernel': 'weight',
    'bias': 'bias',
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}
_SAFETENSORS_DTYPES = {'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64', 'I64': 'int64'}


def recognises(shapes: Shapes) -> bool:
    """Tell whether these variables have torchvision's or akamaster's names."""
    return {'conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight'} <= shapes.keys()


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)}; wrappers are stripped, values are not read."""
    if _is_safetensors(path):
        with _safetensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {
                name: (tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
            return dict(zip(_stripped(found), found.values(), strict=True))
    saved, _ = torch_pickle.load(path)
    return {
        name: (tensor.shape, np.dtype(tensor.storage.dtype).name) for name, tensor in _state_dict(saved, path).items()
    }


def read(path: str | os.PathLike) -> Lazy:
    """Return {name: ndarray}, wrappers stripped, each value read from the file when it is asked for."""
    if _is_safetensors(path):
        with _safetensors(path) as file:
            stored = list(file.keys())
        names = dict(zip(_stripped(stored), stored, strict=True))
        return Lazy(names, lambda name: _tensor(path, names[name]))
    saved, values = torch_pickle.load(path)
    tensors = _state_dict(saved, path)
    return Lazy(tensors, lambda name: values(tensors[name]))


def _tensor(path, name):
    with _safetensors(path) as file:
        return file.get_tensor(name)


def describe(shapes: Shapes, variant: str | None = None) -> Source:
    """Return the Source; depth, width and cardinality are seen from names and shapes.

    Args:
        shapes: {name: (shape, dtype)}.
        variant: None, torchvision's name or one of ours; the only thing it can change is the version: weights do
            not tell whether a bottleneck halves on its 3x3 ('resnet50', 'resnet50_v1.5') or its 1x1 ('resnet50_v1').
    """
    stem, num_classes = shape_of(shapes, 'conv1.weight', 4), shape_of(shapes, f'{_head(shapes)}.weight', 2)[0]
    places = filter(None, (re.match(r'layer(\d{1,4})\.(\d{1,6})\.', name) for name in shapes))
    group_blocks = our_net.count_blocks((int(place[1]), int(place[2]) + 1) for place in places)
    is_bottleneck = 'layer1.0.conv3.weight' in shapes
    axes = {
        'filters': stem[0],
        'block': 'bottleneck' if is_bottleneck else 'basic',
        'bn_momentum': 0.9,
        'bn_epsilon': EPSILON,
        'shortcut': 'B' if any(re.search(r'\.(downsample|shortcut)\.0\.weight$', name) for name in shapes) else 'A',
        'shortcut_padding': 'both',
    }
    if is_bottleneck:
        axes |= _widths(stem[0], shape_of(shapes, 'layer1.0.conv2.weight', 4))
    if stem[2:] == (7, 7) and len(group_blocks) == 4:
        axes |= {'stem': 'imagenet', 'version': '1.5', 'shortcut': 'B', 'shortcut_padding': 'end'}
        labels, convention, note = 'imagenet1000' if num_classes == 1000 else 'unknown', IMAGENET_INPUT, IMAGENET_NOTE
    elif stem[2:] == (3, 3) and len(group_blocks) == 3:
        axes |= {'stem': 'cifar', 'version': '1.5' if is_bottleneck else '1'}
        labels, convention, note = 'cifar10' if num_classes == 10 else 'unknown', CIFAR_INPUT, CIFAR_NOTE
    else:
        raise UserError(
            f"conv1.weight of shape {stem} and {len(group_blocks)} layers are neither torchvision's (7x7, "
            "4) nor akamaster's (3x3, 3); convert another checkpoint"
        )
    spec = resnet_spec.ResNetSpec(group_blocks, **axes)
    spec = _with_version_of(spec, variant) if variant else spec
    return Source('torch', variant or _name(spec), spec, num_classes, convention, labels, note)


def name_map(source: Source, shapes: Shapes) -> list[Entry]:
    """Return the Entry of each variable that the source's spec has."""
    head, projection = _head(shapes), 'shortcut' if any('.shortcut.' in name for name in shapes) else 'downsample'
    return [
        Entry(
            target,
            (foreign_name(target, head, projection),),
            {4: layouts.from_oihw, 2: layouts.transposed}.get(len(shape), layouts.identity),
        )
        for target, shape in our_net.variables(source.spec, source.num_classes).items()
    ]


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of what is no weight."""
    return {name: IGNORED[name.rpartition('.')[2]] for name in shapes if name.rpartition('.')[2] in IGNORED}


def run(variables: Variables, images: np.ndarray, source: Source) -> np.ndarray:
    """Return logits [n, classes] by PyTorch's definition, a convolution at a time, from the names alone.

    Args:
        variables: {name: ndarray}.
        images: float32 [n, h, w, 3] as source.input has it.
        source: says whether a bottleneck has its stride on the first 1x1.
    """

    def get(name):
        return np.asarray(variables[name], 'float32')

    def conv(x, name, stride):  # nn.Conv2d with padding (kernel - 1) // 2
        return operations.conv2d(x, get(f'{name}.weight').transpose(2, 3, 1, 0), stride)

    def norm(x, name):  # nn.BatchNorm2d in inference
        return operations.batch_norm(x, *(get(f'{name}.{_VARIABLES[part]}') for part in our_net.BN_PARTS), EPSILON)

    def block(x, name, stride):  # BasicBlock or Bottleneck
        num_convs = 3 if f'{name}.conv3.weight' in variables else 2
        strided = 2 if num_convs == 3 and source.spec.version != '1' else 1
        y = x
        for i in range(1, num_convs + 1):
            y = norm(conv(y, f'{name}.conv{i}', stride if i == strided else 1), f'{name}.bn{i}')
            y = tf.nn.relu(y) if i < num_convs else y
        for projection in (f'{name}.downsample', f'{name}.shortcut'):
            if f'{projection}.0.weight' in variables:
                return tf.nn.relu(y + norm(conv(x, f'{projection}.0', stride), f'{projection}.1'))
        if stride > 1:  # akamaster's option A: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))
            pads = [y.shape[-1] // 4] * 2
            x = tf.pad(x[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], pads])
        return tf.nn.relu(y + x)

    is_cifar = source.spec.stem == 'cifar'
    x = tf.nn.relu(norm(conv(tf.constant(images), 'conv1', 1 if is_cifar else 2), 'bn1'))
    x = x if is_cifar else operations.max_pool(x, (1, 1))  # nn.MaxPool2d(3, 2, 1) pads with -infinity
    for layer, num_blocks in enumerate(source.spec.group_blocks, start=1):
        for i in range(num_blocks):
            x = block(x, f'layer{layer}.{i}', 2 if layer > 1 and i == 0 else 1)
    head = _head(variables)
    return operations.classify(x, get(f'{head}.weight').T, get(f'{head}.bias'))


def foreign_name(target: str, head: str, projection: str) -> str | None:
    """Return PyTorch's name of a variable of ours, or None: 'group1_block2_bn1/gamma' -> 'layer1.1.bn1.weight'.

    Args:
        target: 'LAYER/VARIABLE'.
        head: 'fc' or 'linear'.
        projection: 'downsample' or 'shortcut'.
    """
    layer, _, variable = target.rpartition('/')
    stem = re.fullmatch(r'stem_(conv|bn)', layer)
    block = re.fullmatch(r'group(\d+)_block(\d+)_(shortcut_)?(conv|bn)(\d*)', layer)
    if layer == 'logits':
        module = head
    elif stem:
        module = f'{stem[1]}1'
    elif block and bool(block[3]) != bool(block[5]):
        inner = f'{projection}.{("conv", "bn").index(block[4])}' if block[3] else block[4] + block[5]
        module = f'layer{block[1]}.{int(block[2]) - 1}.{inner}'
    else:
        return None
    return f'{module}.{_VARIABLES[variable]}' if variable in _VARIABLES else None


def write(path: pathlib.Path, variables: Variables, metadata: dict[str, str]) -> None:
    """Write {name: ndarray} as .safetensors, whole or not at all.

    Args:
        path: ends in .safetensors.
        variables: float32 arrays by PyTorch's names.
        metadata: {str: str}, stored in the file.
    """
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
        raise UserError(
            f'layer1.0.conv2.weight of shape {shape} is of no ResNet, ResNeXt or wide ResNet '
            f'that begins with {filters} filters'
        )
    return {'cardinality': cardinality, 'base_width': base_width}


def _with_version_of(spec, variant):
    name = NAMES.get(variant, variant)
    if name in resnet_variants.VARIANTS:
        named = resnet_variants.VARIANTS[name]
    elif variant == _name(spec):
        named = spec
    else:
        raise UserError(
            f'variant {variant!r} is none of {", ".join(NAMES)}, or of those of resnet_variants.VARIANTS; '
            f'leave it out for {_name(spec)}'
        )
    if named.version == '2' or any(getattr(named, field) != getattr(spec, field) for field in _SHAPE_FIELDS):
        raise UserError(f'variant {variant!r} does not fit: the variables are those of {_name(spec)}; leave it out')
    return dataclasses.replace(spec, version=named.version)


def _name(spec):
    """Return the name of a net that has one, or describe it."""
    for name, variant in NAMES.items():
        if all(getattr(resnet_variants.VARIANTS[variant], field) == getattr(spec, field) for field in _SHAPE_FIELDS):
            return name
    blocks = '_'.join(map(str, spec.group_blocks))
    if spec.stem == 'cifar' and spec.block == 'basic' and len(set(spec.group_blocks)) == 1 and spec.filters == 16:
        return f'resnet{6 * spec.group_blocks[0] + 2}'
    return f'resnet_{spec.block}_{blocks}_filters{spec.filters}'


def _state_dict(saved, path):
    """Return {name: Tensor} out of what was saved: the dict that has tensors, without prefixes."""
    for wrapper in WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
            saved = saved[wrapper]
            break
    tensors = (
        {
            name: value
            for name, value in saved.items()
            if isinstance(name, str) and isinstance(value, torch_pickle.Tensor)
        }
        if isinstance(saved, dict)
        else {}
    )
    if not tensors:
        raise UserError(f'{path} holds no weights by name; save them with torch.save(model.state_dict(), PATH)')
    return dict(zip(_stripped(tensors), tensors.values(), strict=True))


def _stripped(names):
    """Return the names without the prefixes that all of them have."""
    names = list(names)
    while names and (prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in names)), None)):
        names = [name.removeprefix(prefix) for name in names]
    return names


def _is_safetensors(path):
    """Tell a .safetensors file by its name, or by its start: 8 bytes of length, then JSON."""
    if str(path).endswith('.safetensors'):
        return True
    try:
        with open(path, 'rb') as file:
            return file.read(10)[8:] in (b'{"', b'{ ')
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}; pass a .pth, .th or .safetensors file') from error


def _library():
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(
            "a .safetensors file needs the package of that name: pip install 'official-resnet[convert]' "
            'or pip install safetensors'
        ) from None
    return safetensors


@contextlib.contextmanager
def _safetensors(path):
    """Yield the open file; what is wrong with it is a UserError, also when a tensor is read."""
    library = _library()
    try:
        with library.safe_open(path, framework='numpy') as file:
            yield file
    except (library.SafetensorError, OSError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is damaged or no .safetensors file ({reason(error)}); get it again') from error
