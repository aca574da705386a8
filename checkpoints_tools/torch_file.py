"""What the families of PyTorch's checkpoints share: files, shards, folders, containers and prefixes.

A checkpoint is a .pth, .pt, .th, .bin or .safetensors file, an index of shards (model.safetensors.index.json or
pytorch_model.bin.index.json), or a folder in which Hugging Face's save_pretrained has written one of these. Each family
has `core`, names that all its networks have, and `heads`, the pattern of the names of classifiers. A network is found
wherever its core names share a prefix, in nested dicts and behind the names of wrappers: module. (DataParallel),
_orig_mod. (torch.compile), model. (Lightning), encoder_q. (MoCo), backbone. (DINO), online_encoder. (BYOL) ...
"""

import collections
import contextlib
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from checkpoints_tools import our_net, torch_pickle
from checkpoints_tools.source import AVERAGE, Lazy, Listing, Shapes, Source, Variables, reading
from official_resnet import bounds, files
from official_resnet.errors import UserError

EPSILON = 1e-5  # torch.nn.BatchNorm2d's, and ResNetSpec's default; PyTorch's momentum of 0.1 is 0.9 in Keras
BN = dict(zip(our_net.BN_PARTS, ('weight', 'bias', 'running_mean', 'running_var'), strict=True))
VARIABLES = {'kernel': 'weight', 'bias': 'bias', **BN}
IGNORED = {'num_batches_tracked': 'count of training steps'}
IGNORED |= dict.fromkeys(('total_ops', 'total_params'), 'count of a profiler')
# In the keys and prefixes of averages: timm's state_dict_ema, torchvision's model_ema, MoCo's encoder_k, solo-learn's
# momentum_backbone, lightly's backbone_momentum.
_AVERAGES = re.compile(r'(^|[._])(ema|swa|encoder_k|momentum_(encoder|backbone)|(encoder|backbone)_momentum)[._]')
# An average if a network of the same shapes is beside it (DINO's student, BYOL's online_encoder), else a network.
_TEACHERS = re.compile(r'(^|[._])(teacher|target(_\w+)?)[._]')
_LOSSES = re.compile(r'(criterion|loss\w*)\..*')
_WHOLE = 'get the whole checkpoint'
# What a folder may have, in the order in which Hugging Face's from_pretrained looks for it; the last is KerasHub's.
_OF_FOLDERS = (
    *('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json'),
    'model.weights.h5',
)
_SAFETENSORS_DTYPES = {'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64', 'I64': 'int64'}


def locate(path: str | os.PathLike) -> pathlib.Path:
    """Return the file or index that is read of a folder, or the path itself."""
    path = pathlib.Path(path)
    return next((path / name for name in _OF_FOLDERS if os.path.isfile(path / name)), path)


def list_files(path: str | os.PathLike) -> list[pathlib.Path]:
    """Return the files that are read: one, or an index and its shards."""
    path = locate(path)
    return [path, *sorted(set(_shards(path).values()))] if _is_index(path) else [path]


def readers(
    core: tuple[str, ...],
    heads: re.Pattern,
    named: Callable[[Mapping], Mapping] = lambda values: values,
    config: Callable[[str | os.PathLike], Mapping[str, Any]] = lambda path: {},
) -> tuple[Callable[[str | os.PathLike], Listing], Callable[[str | os.PathLike], Lazy]]:
    """Return a family's functions `shapes` and `read`, whose names are without wrappers and prefixes.

    `shapes` reads no values, and `read` each array on access. `named` returns the {name: value} of a dict of tensors
    with the family's names, if it has other ones. `config` reads what a file beside the weights says.
    """

    def networks(path) -> tuple[dict, dict]:
        containers = {place: named(values) for place, values in _contents(locate(path)).items()}
        return _networks(containers, path, core, heads)

    def shapes(path: str | os.PathLike) -> Listing:
        found, outside = networks(path)
        listing = Listing({name: (shape, dtype) for name, (shape, dtype, _) in found.items()})
        listing.outside, listing.config, listing.file = outside, config(path), os.path.basename(path)
        return listing

    def read(path: str | os.PathLike) -> Lazy:
        found, _ = networks(path)
        return Lazy(found, lambda name: found[name][2]())

    return shapes, read


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of the variables that are not weights."""
    counts = {name: IGNORED[name.rpartition('.')[2]] for name in shapes if name.rpartition('.')[2] in IGNORED}
    return counts | dict(getattr(shapes, 'outside', {}))


def entries(source: Source, their: Callable[[our_net.Layer], str]) -> list[our_net.Entry]:
    """Return the Entries of a network whose modules have the names that `their` gives to our layers."""
    kernels = {'conv': our_net.from_oihw, 'se_conv': our_net.from_oihw, 'dense': our_net.transposed}
    return our_net.entries(source, their, VARIABLES, kernels, separator='.')


def write(path: pathlib.Path, variables: Variables, source: Source) -> None:
    """Write {PyTorch's name: float32 array} and the variant to a .safetensors file, whole or not at all."""
    arrays = {name: np.ascontiguousarray(array) for name, array in variables.items()}
    with files.replacing(path) as part:
        part.write_bytes(_library().numpy.save(arrays, {'format': 'pt', 'variant': source.variant}))


# --- files ---


def _contents(path):
    """Return {place: {name: (shape, dtype, function that reads the values)}} of each dict in a checkpoint."""
    if _is_index(path):
        return {'': _sharded(path)}
    if _is_safetensors(path):
        found = {}
        with _safetensors(path) as file:
            for name in file.keys():
                part, value = file.get_slice(name), functools.partial(_safetensor, path, name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype())
                found[name] = tuple(part.get_shape()), dtype, value
        return {'': found}
    saved, values = torch_pickle.load(path)
    return {
        place: {
            name: (tensor.shape, tensor.storage.dtype.name, functools.partial(values, tensor))
            for name, tensor in tensors.items()
        }
        for place, tensors in _containers(saved)
    }


def _sharded(path):
    """Return {name: (shape, dtype, function)} of all shards, which have the tensors that the index says."""
    found, named_of = {}, collections.defaultdict(set)
    for name, shard in _shards(path).items():
        named_of[shard].add(name)
    for shard, named in named_of.items():
        tensors = _contents(shard).get('', {})
        for names, where, other in ((named - tensors.keys(), path, shard), (tensors.keys() - named, shard, path)):
            if names:
                raise UserError(f"'{where}' has {min(names)[:99]!r}, which '{other.name}' lacks; {_WHOLE}")
        found |= tensors
    return found


def _shards(path):
    """Return {name of a tensor: path of its shard} of an index. Shards are files beside it."""
    with reading(path, 'an index of shards'):
        named = json.loads(files.read_bytes(path, 'json_bytes'))['weight_map']
        if not all(isinstance(shard, str) for shard in named.values()):
            raise ValueError('its weight_map has other values than names of files')
    bounds.require('torch_shards', len(set(named.values())), f"'{path}'", 'pass another checkpoint')
    for shard in set(named.values()):
        if shard != os.path.basename(shard) or shard in ('', '.', '..') or shard.endswith('.json'):
            raise UserError(f"'{path}' names {shard[:99]!r}, which is no shard in its folder; {_WHOLE}")
        if not os.path.isfile(path.with_name(shard)):
            raise UserError(f"'{path}' names {shard[:99]!r}, which is not beside it; {_WHOLE}")
    return {name: path.with_name(shard) for name, shard in named.items()}


def _is_index(path):
    return str(path).endswith('.index.json')


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
        remedy = "pip install -e '.[convert]' in the folder of the repository"
        raise UserError(f'a .safetensors file needs safetensors: {remedy}') from None
    return safetensors


@contextlib.contextmanager
def _safetensors(path):
    """Yield the open file. A damaged file raises UserError, also when a tensor is read."""
    with reading(path, 'a .safetensors file'), _library().safe_open(path, framework='numpy') as file:
        yield file


def _safetensor(path, name):
    with _safetensors(path) as file:
        return file.get_tensor(name)


# --- containers and prefixes ---


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


def _networks(containers, path, core, heads):
    """Return {name: value} of the network's variables and averages, and {name: why} of what else is beside them.

    A network is where all core names share a prefix. If no container has one, all names of the largest are returned.
    """
    if not containers:
        raise UserError(f'{path} has no weights by name; save them with torch.save(model.state_dict(), PATH)')
    endings = {}  # (place, prefix) -> what its names get
    for place, values in containers.items():
        for prefix in shared_prefixes(values, core):
            is_average = 'n_averaged' in values or _AVERAGES.search(place + prefix)
            endings[place, prefix] = AVERAGE if is_average else ''
    if not endings:
        return max(containers.values(), key=len), {}
    _set_teachers_apart(endings, containers)
    for ending in ('', AVERAGE):
        if (count := list(endings.values()).count(ending)) > 1:
            names = ', '.join(f'{place}{prefix}*' for (place, prefix), other in endings.items() if other == ending)
            raise UserError(f'{path} has {count} networks, {names}; save one of them by itself')
    found, outside = {}, {}
    for place in dict.fromkeys(place for place, _ in endings):
        prefixes = {prefix: ending for (other, prefix), ending in endings.items() if other == place}
        for name, value in containers[place].items():
            owner = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
            if owner is not None:
                inner = name.removeprefix(owner)
                found[inner + prefixes[owner]] = value
                if _LOSSES.fullmatch(inner):
                    outside[inner] = 'part of the loss'
                continue
            prefix = max(prefixes, key=lambda prefix: (len(_shared(name, prefix)), not prefixes[prefix]))
            inner = name.removeprefix(_shared(name, prefix))
            is_head = heads.fullmatch(inner) is not None  # module.fc.bias beside module.backbone.*
            outside[inner if is_head else name] = f'outside of the network, whose names start with {prefix}'
            found.setdefault(inner + prefixes[prefix] if is_head else name, value)
    return found, outside


def _shared(name, prefix):
    """Return the wrappers that a name and a prefix share: 'module.' of 'module.fc.bias' and 'module.backbone.'."""
    common = os.path.commonprefix([name, prefix])
    return common[: common.rfind('.') + 1]


def _set_teachers_apart(endings: dict[tuple[str, str], str], containers: Mapping[str, Mapping]) -> None:
    """Count a teacher as an average, if there is one, and one network of the same shapes beside it."""

    def is_teacher(key) -> bool:
        return _TEACHERS.search(''.join(key)) is not None

    def shapes_of(key) -> dict:
        place, prefix = key
        return {
            name.removeprefix(prefix): value[0] for name, value in containers[place].items() if name.startswith(prefix)
        }

    plain = sorted((key for key, ending in endings.items() if not ending), key=is_teacher)
    if [is_teacher(key) for key in plain] == [False, True] and shapes_of(plain[0]) == shapes_of(plain[1]):
        endings[plain[1]] = AVERAGE


def shared_prefixes(names: Mapping, core: tuple[str, ...]) -> list[str]:
    """Return the prefixes that all core names have: ['module.'] in a checkpoint of DataParallel."""
    found = [name.removesuffix(core[-1]) for name in names if name.endswith(core[-1])]
    return [prefix for prefix in found if all(prefix + name in names for name in core)]
