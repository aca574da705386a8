"""TensorFlow 1 checkpoints: finding, listing and reading them, for from_slim and from_official_tf.

A checkpoint is one file (V1, as slim's of 2016) or PREFIX.index and PREFIX.data-00000-of-00001 (V2). TensorFlow's
own reader checks the checksum of every block and tensor, and executes nothing.
"""

import glob
import math
import os
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools.source import Lazy, Shapes, reading
from official_resnet.errors import UserError

KIND = 'a TensorFlow checkpoint'
_V2_SUFFIX = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')
# tf.train optimizers' and averages' variables of a variable, as 'conv2d/kernel/Momentum'.
SLOTS = {'Momentum', 'RMSProp', 'RMSProp_1', 'Adam', 'Adam_1', 'Adagrad', 'Adadelta', 'Adadelta_1', 'Ftrl', 'Ftrl_1'}
SLOTS |= {'ExponentialMovingAverage'}
COUNTERS = {'global_step': 'counts steps', '_CHECKPOINTABLE_OBJECT_GRAPH': 'says how objects were nested'}
COUNTERS |= dict.fromkeys(('beta1_power', 'beta2_power'), "Adam's state")
COUNTERS |= dict.fromkeys(('current_loss_scale', 'loss_scale', 'good_steps'), "the loss scale's state")


def locate(path: str | os.PathLike) -> str:
    """Return what tf.train.load_checkpoint takes, of a prefix, one of its files, a V1 file or a folder of one."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return _latest(path)
    if os.path.basename(path) == 'checkpoint' and os.path.isfile(path):
        return _latest(os.path.dirname(path))
    prefix = _V2_SUFFIX.sub('', path)
    for name in (path, prefix):
        if os.path.isfile(f'{name}.index'):
            return name
    if os.path.isfile(prefix):
        return prefix
    if prefix != path:
        raise UserError(f'{path}: there is no {prefix}.index, which says what the data files hold; get it, too')
    raise UserError(f'there is no {path}; pass a checkpoint, of TensorFlow its prefix, its .index file or its folder')


def _latest(folder):
    """Return the checkpoint that the file `checkpoint` of a folder names, or the only one that is there."""
    listing = os.path.join(folder, 'checkpoint')
    if os.path.isfile(listing):
        with open(listing, encoding='utf-8', errors='replace') as file:
            named = re.search(r'^model_checkpoint_path: *"(.*)"', file.read(1 << 20), re.MULTILINE)
        if not named:
            raise UserError(f'{listing} names no model_checkpoint_path; pass the checkpoint itself')
        # A folder that has been moved may still name its old place.
        for path in (os.path.join(folder, named[1]), os.path.join(folder, os.path.basename(named[1]))):
            if os.path.isfile(path) or os.path.isfile(f'{path}.index'):
                return path
        raise UserError(f'{listing} names {named[1]}, which is not there; pass the checkpoint itself')
    inside = glob.glob(os.path.join(glob.escape(folder), '*'))
    found = {_V2_SUFFIX.sub('', path) for path in inside if path.endswith(('.index', '.ckpt'))}
    if len(found) != 1:
        raise UserError(f'{folder} has no file "checkpoint" and {len(found)} checkpoints; pass one of them')
    return found.pop()


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)}, sorted by name.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it declares more than its files can hold.
    """
    return _open(locate(path))[1]


def list_files(path: str | os.PathLike) -> list[str]:
    """Return the files of a checkpoint, sorted: one, or the index and the data files."""
    prefix = locate(path)
    if os.path.isfile(f'{prefix}.index'):
        pattern = f'{glob.escape(prefix)}.data-{"[0-9]" * 5}-of-{"[0-9]" * 5}'
        return [f'{prefix}.index', *sorted(glob.glob(pattern))]
    return [prefix]


def read(path: str | os.PathLike) -> Lazy:
    """Return {name: ndarray}, sorted by name, each value read when it is asked for.

    Raises:
        UserError: as in shapes; when asked for, a value does not agree with its checksum.
    """
    prefix = locate(path)
    reader, found = _open(prefix)

    def value(name):
        with reading(f'{name} of {prefix}', KIND):
            return np.asarray(reader.get_tensor(name))

    return Lazy(found, value)


def _open(prefix):
    """Return (reader, {name: (shape, dtype)}); UserError if they need more bytes than there are: a lie, or cut off."""
    if re.search(r'[*?\[\]\\]', prefix):
        raise UserError(f'{prefix}: TensorFlow takes *, ?, [, ] and \\ in a path for patterns; rename or move it')
    with reading(prefix, KIND):
        reader = tf.train.load_checkpoint(prefix)
        lengths, types = sorted(reader.get_variable_to_shape_map().items()), reader.get_variable_to_dtype_map()
        found = {name: (tuple(shape), types[name].name) for name, shape in lengths}
    index, *data_files = list_files(prefix)
    if index == f'{prefix}.index' and not data_files:
        raise UserError(f'{index} has no data file beside it, as {prefix}.data-00000-of-00001; get it, too')
    held = sum(os.path.getsize(file) for file in data_files or [index])
    # V1 stores whole numbers, and both text, in one byte or more each.
    sizes = {'float32': 4, 'float64': 8}
    declared = sum(math.prod(shape) * sizes.get(dtype, 1) for shape, dtype in found.values())
    if declared > held:
        raise UserError(
            f'{prefix} declares variables of {declared:,} bytes, but its data are {held:,}: '
            'part of it is missing, or it is damaged; get it again'
        )
    return reader, found


def ignored(found: Shapes) -> dict[str, str]:
    """Return {name: why} of counters, and of slots whose variable is there too."""
    reasons = {}
    for name in found:
        variable, _, last = name.rpartition('/')
        if last in COUNTERS:
            reasons[name] = COUNTERS[last]
        elif last in SLOTS and variable in found:
            reasons[name] = f'what training kept of {variable}'
    return reasons
