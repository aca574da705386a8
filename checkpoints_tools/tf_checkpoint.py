"""Find, list and read TensorFlow 1 checkpoints, for from_slim and from_official_tf.

A checkpoint is one file (V1, slim's of 2016) or PREFIX.index and PREFIX.data-00000-of-00001 (V2). TensorFlow's own
reader checks the checksum of every block and tensor, and executes nothing.
"""

import glob
import math
import os
import re

import numpy as np

from checkpoints_tools.source import Lazy, Shapes, reading
from official_resnet import folders
from official_resnet.errors import UserError

KIND = 'a TensorFlow checkpoint'
_V2_SUFFIX = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')
# Variables that tf.train keeps beside a variable, for example 'conv2d/kernel/Momentum'.
SLOTS = {'Momentum', 'RMSProp', 'RMSProp_1', 'Adam', 'Adam_1', 'Adagrad', 'Adadelta', 'Adadelta_1', 'Ftrl', 'Ftrl_1'}
SLOTS |= {'ExponentialMovingAverage'}
COUNTERS = {'global_step': 'the number of steps', '_CHECKPOINTABLE_OBJECT_GRAPH': 'the nesting of objects'}
COUNTERS |= dict.fromkeys(('beta1_power', 'beta2_power'), "Adam's state")
COUNTERS |= dict.fromkeys(('current_loss_scale', 'loss_scale', 'good_steps'), "the loss scale's state")


def locate(path: str | os.PathLike) -> str:
    """Return the path for tf.train.load_checkpoint, from a prefix, one of its files, a V1 file or a folder."""
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
        raise UserError(f'{path}: there is no {prefix}.index, which lists the variables; also get it')
    raise UserError(f'there is no {path}; pass a checkpoint, for TensorFlow its prefix, .index file or folder')


def _latest(folder):
    """Return the checkpoint that a folder's file `checkpoint` names, or the only one in the folder."""
    listing = os.path.join(folder, 'checkpoint')
    if os.path.isfile(listing):
        with open(listing, encoding='utf-8-sig', errors='replace') as file:
            named = re.search(r'^model_checkpoint_path: *"(.*)"', file.read(1 << 20), re.MULTILINE)
        if not named:
            raise UserError(f'{listing} names no model_checkpoint_path; pass the checkpoint itself')
        # The file in a folder that was moved may still name the old place.
        for path in (os.path.join(folder, named[1]), os.path.join(folder, os.path.basename(named[1]))):
            if os.path.isfile(path) or os.path.isfile(f'{path}.index'):
                return path
        raise UserError(f'{listing} names {named[1]}, which is not there; pass the checkpoint itself')
    inside = glob.glob(os.path.join(glob.escape(folder), '*'))
    inside = [path for path in inside if path.endswith(('.index', '.ckpt')) and os.path.isfile(path)]
    found = {_V2_SUFFIX.sub('', path) for path in inside}
    if len(found) != 1:
        raise UserError(
            f'{folder} has no file "checkpoint", model.safetensors or pytorch_model.bin, and has {len(found)} '
            'checkpoints of TensorFlow; pass one checkpoint'
        )
    return found.pop()


def shapes(path: str | os.PathLike) -> Shapes:
    """Return {name: (shape, dtype)}, sorted by name.

    Raises:
        UserError: There is no checkpoint, it is damaged, or it declares more than its files can hold.
    """
    return _open(locate(path))[1]


def list_files(path: str | os.PathLike) -> list[str]:
    """Return a checkpoint's files, sorted: a single file, or the index and the data files."""
    prefix = locate(path)
    if os.path.isfile(f'{prefix}.index'):
        pattern = f'{glob.escape(prefix)}.data-{"[0-9]" * 5}-of-{"[0-9]" * 5}'
        return [f'{prefix}.index', *sorted(glob.glob(pattern))]
    return [prefix]


def read(path: str | os.PathLike) -> Lazy:
    """Return {name: ndarray}, sorted by name; each array is read on access.

    Raises:
        UserError: As in `shapes`; on access, a value does not agree with its checksum.
    """
    prefix = locate(path)
    reader, found = _open(prefix)

    def value(name) -> np.ndarray:
        with reading(f'{name} of {prefix}', KIND):
            return np.asarray(reader.get_tensor(name))

    return Lazy(found, value)


def _open(prefix):
    """Return (reader, {name: (shape, dtype)}). UserError: they need more bytes than the files have."""
    folders.require_no_pattern(prefix)
    with reading(prefix, KIND):
        import tensorflow as tf

        reader = tf.train.load_checkpoint(prefix)
        lengths, types = sorted(reader.get_variable_to_shape_map().items()), reader.get_variable_to_dtype_map()
        found = {name: (tuple(shape), types[name].name) for name, shape in lengths}
    index, *data_files = list_files(prefix)
    if index == f'{prefix}.index' and not data_files:
        raise UserError(f'{index} has no data file beside it, {prefix}.data-00000-of-00001; also get it')
    for file in data_files:
        if not os.path.isfile(file):  # TensorFlow would wait for a FIFO
            raise UserError(f'{file} is not a plain file; get the checkpoint again, or pass another')
    held = sum(os.path.getsize(file) for file in data_files or [index])
    # V1 stores a whole number, and both formats a character, in one byte or more.
    sizes = {'float32': 4, 'float64': 8}
    declared = sum(math.prod(shape) * sizes.get(dtype, 1) for shape, dtype in found.values())
    if declared > held:
        raise UserError(
            f'{prefix} declares variables of {declared:,} bytes, but has {held:,} bytes of data: '
            'it is damaged, or part of it is missing; get it again'
        )
    return reader, found


def ignored(found: Shapes) -> dict[str, str]:
    """Return {name: why} of counters, and of the optimizer's slots for variables that are there."""
    reasons = {}
    for name, (shape, dtype) in found.items():
        variable, _, last = name.rpartition('/')
        if last in COUNTERS:
            reasons[name] = COUNTERS[last]
        elif tuple(shape) == () and dtype.startswith('int'):
            reasons[name] = 'a counter'
        elif last in ('biased', 'local_step'):
            reasons[name] = 'state of a moving average'
        elif last in SLOTS and variable in found:
            reasons[name] = f'state that training kept for {variable}'
    return reasons
