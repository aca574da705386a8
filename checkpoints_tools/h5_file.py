"""The files of Keras 1 to 3: .h5, .weights.h5, and .keras, a zip with config.json and model.weights.h5.

Only arrays are read: no network is built, no link is followed, and no compressed data is inflated (Keras writes none).
h5_listing finds the arrays in a process of its own. Variables are named 'LAYER/kernel', bias, gamma, beta, moving_mean
or moving_variance, with the layer as in the file. Source: keras/src/saving/saving_lib.py.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from checkpoints_tools.our_net import BN_PARTS
from checkpoints_tools.source import Lazy, Shapes, reading
from official_resnet import bounds, files, folders
from official_resnet.inference import keras_files

KIND = 'an HDF5 or .keras file'
WEIGHTS, CONFIG = 'model.weights.h5', 'config.json'  # the members of a .keras file
# The end of a variable's name, without a number as in conv1_W_1:0 -> its role. running_std is a variance.
_ROLES = {'_W': 'kernel', '_b': 'bias', 'running_mean': 'moving_mean', 'running_std': 'moving_variance'}
_ROLES |= {role: role for role in ('kernel', 'bias', *BN_PARTS)}
# {'conv2d_7': name} of a file that does not name its layers, from the set of 'conv2d_7' that it has.
InOrder = Callable[[Set[str]], dict[str, str]]


def shapes(path: str | os.PathLike, in_order: InOrder) -> Shapes:
    """Return {'LAYER/ROLE': (shape, dtype)} without reading the values."""
    with reading(path, KIND), _plain(path) as plain:
        return {name: (shape, dtype.name) for name, (shape, dtype, _) in _variables(plain, in_order).items()}


def read(path: str | os.PathLike, in_order: InOrder) -> Lazy:
    """Return {'LAYER/ROLE': float32 array} without the optimizer's; each array is read on access."""
    opened = contextlib.ExitStack()  # lives as long as `value`, and so does the unzipped file
    with reading(path, KIND):
        plain = opened.enter_context(_plain(path))
        variables = {name: found for name, found in _variables(plain, in_order).items() if not _is_optimizer(name)}

    def value(name, keep=opened) -> np.ndarray:
        shape, dtype, offset = variables[name]
        return np.fromfile(plain, dtype, math.prod(shape), offset=offset).reshape(shape).astype('float32', copy=False)

    return Lazy(variables, value)


def ignored(shapes: Shapes) -> dict[str, str]:
    """Return {name: why} of the optimizer's variables."""
    return dict.fromkeys(filter(_is_optimizer, shapes), 'state of the optimizer')


def numbered(names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return {'conv2d': name, 'conv2d_1': name ...} as Keras numbers the layers of a kind, from {kind: names}."""
    return {f'{kind}_{i}' if i else kind: name for kind, some in names.items() for i, name in enumerate(some)}


def config(path: str | os.PathLike) -> Any:
    """Return what config.json in a .keras file says, or None if the file is no zip."""
    with reading(path, KIND):
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            most = min(bounds.limit('json_bytes'), bounds.limit('keras_inflation') * os.path.getsize(path))
            return json.loads(keras_files.read_member(archive, CONFIG, most))


def _is_optimizer(name):
    return name.startswith(('optimizer/', 'optimizer_weights/'))


@contextlib.contextmanager
def _plain(path):
    """Yield the path of an HDF5 file: the path itself, or that of the file inside a .keras file, unzipped."""
    with open(path, 'rb', opener=files.plain) as file:
        magic = file.read(8)
    if magic == b'\x89HDF\r\n\x1a\n':
        yield path
    elif magic.startswith(b'PK'):
        with folders.temporary() as folder:
            _unzip_weights(path, folder / 'weights.h5')
            yield folder / 'weights.h5'
    else:
        raise ValueError('its first bytes belong to neither')


def _unzip_weights(path, target):
    """Copy the HDF5 file inside a .keras file to `target`, in a temporary folder, without holding it in memory."""
    with zipfile.ZipFile(path) as archive:
        info, limit = archive.getinfo(WEIGHTS), bounds.limit('keras_inflation') * os.path.getsize(path)
        if info.file_size > limit:
            raise ValueError(f'it declares {info.file_size} bytes of {WEIGHTS}, and at most {limit} are read')
        what = f"a temporary copy of '{path}' into '{target.parents[1]}'"
        with archive.open(info) as file, files.write_errors(what, ', or set TMPDIR to another folder'):
            with open(target, 'wb') as copy:
                shutil.copyfileobj(file, copy, 1 << 20)  # zipfile returns at most as many bytes as are declared
    if missing := info.file_size - os.path.getsize(target):
        raise ValueError(f'{missing} bytes of {WEIGHTS} are missing')


def _listing(path):
    """Return the rows that h5_listing prints of an HDF5 file."""
    limits = {name: row.value for name, row in bounds.BOUNDS.items() if name.startswith('hdf5_')}
    program = str(pathlib.Path(__file__).with_name('h5_listing.py'))
    command = [sys.executable, '-P', program, str(path), json.dumps(limits)]
    code, seconds = None, limits['hdf5_seconds']
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, timeout=seconds)
        code = done.returncode
    if code in (None, -signal.SIGXCPU):
        raise ValueError(f'HDF5 has not listed its arrays in {seconds} s')
    if code:  # the library crashed or was stopped
        raise ValueError(f'HDF5 ended with {code}')
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        raise ValueError(found['error'])
    return found


def _variables(path, in_order):
    """Return {'LAYER/ROLE': (shape, dtype, offset in the file)} of an HDF5 file."""
    rows, size = _listing(path), os.path.getsize(path)
    ends = [(offset, np.dtype(dtype).itemsize * math.prod(shape)) for _, shape, dtype, offset, _ in rows]
    total = sum(length for _, length in ends)
    if total > size or any(offset + length > size for offset, length in ends):
        raise ValueError(f'it has {size} bytes, but declares {total} bytes of arrays, or some beyond its end')
    siblings = collections.Counter(tuple(place[:-1]) for place, *_ in rows)
    named = [_name(place, layer, siblings[tuple(place[:-1])]) for place, *_, layer in rows]
    kinds = {found[0] for found in named if isinstance(found, tuple)}
    layers, variables = in_order(kinds) if kinds else {}, {}
    for found, (_, shape, dtype, offset, _) in zip(named, rows, strict=True):
        if isinstance(found, tuple):
            kind, index = found
            found = f'{layers.get(kind, kind)}/{_role(index, 4 if kind.startswith("batch") else 2)}'
        if found in variables:
            raise ValueError(f'it has two variables {found!r}')
        variables[found] = tuple(shape), np.dtype(dtype), offset
    return variables


def _name(place, layer, num_siblings):
    """Return an array's 'LAYER/ROLE', or (the layer's kind, index) if the file does not name its layers."""
    *parents, last = place
    if not parents or parents[0].startswith('optimizer'):
        return '/'.join(place)
    if parents[-1] == 'vars' and len(parents) > 1 and re.fullmatch(r'[0-9]{1,2}', last):  # layers/conv2d_7/vars/0
        return f'{layer}/{_role(int(last), num_siblings)}' if layer else (parents[-2], int(last))
    if parents[0] == 'model_weights':  # a whole model in .h5
        parents = parents[1:]
    word = re.sub(r'(_\d+)?(:\d+)?$', '', last)
    role = next((role for ending, role in _ROLES.items() if word.endswith(ending)), None)
    return f'{parents[0]}/{role}' if parents and role else '/'.join(place)


def _role(index, num_variables):
    """Return the role of a layer's variable by its index. A BN has four variables."""
    roles = BN_PARTS if num_variables == 4 else ('kernel', 'bias')
    return roles[index] if index < len(roles) else index
