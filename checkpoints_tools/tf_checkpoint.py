"""TensorFlow 1 checkpoints: finding, listing and reading them; what from_slim and from_official_tf share.

A checkpoint is one file (V1, as slim's of 2016) or PREFIX.index and PREFIX.data-00000-of-00001 (V2). TensorFlow's
own reader checks the checksum of every block and tensor, and executes nothing.
"""

import glob
import os
import re

import numpy as np
import tensorflow as tf

from checkpoints_tools.source import Lazy
from official_resnet.errors import UserError

_V2_SUFFIX = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')
# What TensorFlow's reader is seen to raise on damaged files; TypeError is of a type that does not exist.
_READ_ERRORS = (tf.errors.OpError, IndexError, TypeError, ValueError, RuntimeError)
# tf.train optimizers' and averages' variables of a variable, as 'conv2d/kernel/Momentum'.
SLOTS = (
    'Momentum',
    'Adam',
    'Adam_1',
    'RMSProp',
    'RMSProp_1',
    'Adagrad',
    'Adadelta',
    'Adadelta_1',
    'Ftrl',
    'Ftrl_1',
    'ExponentialMovingAverage',
)
COUNTERS = {
    'global_step': 'counts steps',
    'beta1_power': "Adam's state",
    'beta2_power': "Adam's state",
    'current_loss_scale': "the loss scale's state",
    'loss_scale': "the loss scale's state",
    'good_steps': "the loss scale's state",
    '_CHECKPOINTABLE_OBJECT_GRAPH': 'says how objects were nested',
}
NAMES_IN_A_MESSAGE = 5


def locate(path):
    """Return what tf.train.load_checkpoint takes, of a prefix, one of its files, a V1 file or a folder of one."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return _latest(path)
    if os.path.basename(path) == 'checkpoint' and os.path.isfile(path):
        return _latest(os.path.dirname(path))
    if os.path.isfile(f'{path}.index'):
        return path
    prefix = _V2_SUFFIX.sub('', path)
    if prefix != path:
        if os.path.isfile(f'{prefix}.index') or os.path.isfile(prefix):
            return prefix
        raise UserError(f'{path}: there is no {prefix}.index, which says what the data files hold')
    if os.path.isfile(path):
        return path
    raise UserError(f'{path}: no checkpoint there; pass a prefix, its .index file, a .ckpt file or a folder')


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
        raise UserError(f'{listing} names {named[1]}, which is not there')
    inside = sorted(glob.glob(os.path.join(glob.escape(folder), '*')))
    found = {_V2_SUFFIX.sub('', path) for path in inside if path.endswith(('.index', '.ckpt'))}
    if len(found) != 1:
        raise UserError(f'{folder} has no file "checkpoint" and {len(found)} checkpoints; pass one of them')
    return found.pop()


def shapes(path):
    """Return {name: (shape, dtype)}, sorted by name: tuples of ints, and names as 'float32'.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it declares more than its files can hold.
    """
    prefix = locate(path)
    _, found = _open(prefix)
    _check_size(prefix, found)
    return found


def list_files(path):
    """Return the files of a checkpoint, sorted: one, or the index and the data files."""
    prefix = locate(path)
    if os.path.isfile(f'{prefix}.index'):
        return [f'{prefix}.index', *_data_files(prefix)]
    return [prefix]


def read(path, names=None):
    """Return {name: ndarray}, sorted by name, each value read when it is asked for.

    Args:
        path: as locate takes it.
        names: variables to read; None reads all.

    Raises:
        UserError: as in shapes; when asked for, a value is missing or does not agree with its checksum.
    """
    prefix = locate(path)
    reader, found = _open(prefix)
    _check_size(prefix, found)

    def value(name):
        try:
            return np.asarray(reader.get_tensor(name))
        except _READ_ERRORS as error:
            raise UserError(f'{prefix}: {name} cannot be read: {_one_line(error)}') from None

    return Lazy(found if names is None else names, value)


def _open(prefix):
    """Return (reader, {name: (shape, dtype)})."""
    if re.search(r'[*?\[\]\\]', prefix):
        raise UserError(f'{prefix}: TensorFlow takes *, ?, [, ] and \\ in a path for patterns; rename or move it')
    try:
        reader = tf.train.load_checkpoint(prefix)
        types = reader.get_variable_to_dtype_map()
        return reader, {
            name: (tuple(shape), types[name].name) for name, shape in sorted(reader.get_variable_to_shape_map().items())
        }
    except _READ_ERRORS as error:
        raise UserError(f'{prefix} is no TensorFlow checkpoint, or a damaged one: {_one_line(error)}') from None


def _check_size(prefix, found):
    """Raise UserError if the variables need more bytes than the files have: a lie, or a file cut off."""
    if os.path.isfile(f'{prefix}.index'):
        data_files = _data_files(prefix)
        if not data_files:
            raise UserError(f'{prefix}.index has no data file beside it, as {prefix}.data-00000-of-00001')
    else:
        data_files = [prefix]
    held = sum(os.path.getsize(file) for file in data_files)
    # V1 stores whole numbers, and both text, in one byte or more each.
    sizes = {'float32': 4, 'float64': 8}
    declared = sum(int(np.prod(shape, dtype=object)) * sizes.get(dtype, 1) for shape, dtype in found.values())
    if declared > held:
        raise UserError(
            f'{prefix} declares variables of {declared:,} bytes, but its data are {held:,}: '
            'part of it is missing, or it is damaged'
        )


def _data_files(prefix):
    return sorted(glob.glob(f'{glob.escape(prefix)}.data-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]'))


def _one_line(error):
    text = ' '.join((getattr(error, 'message', '') or str(error)).split())
    return text if len(text) <= 200 else f'{text[:197]}...'


def ignored(found):
    """Return {name: why} of counters, and of slots whose variable is there too."""
    reasons = {}
    for name in found:
        variable, _, last = name.rpartition('/')
        if last in COUNTERS:
            reasons[name] = COUNTERS[last]
        elif last in SLOTS and variable in found:
            reasons[name] = f'what training kept of {variable}'
    return reasons


def count_from_one(numbers, what):
    """Return how many there are of 1, 2, 3, ...; UserError where one is left out.

    Args:
        numbers: ints in any order, as of 'unit_1', 'unit_2'.
        what: of the message, as 'block1/unit_'.
    """
    numbers = set(numbers)
    for i in range(1, len(numbers) + 1):
        if i not in numbers:
            raise UserError(f'the checkpoint has {what}{max(numbers)}, but no {what}{i}')
    return len(numbers)


def shape_of(found, name, rank):
    """Return the shape of a variable; UserError if it is not there, of another rank, or empty."""
    if name not in found:
        raise UserError(f'the checkpoint has no variable {name}')
    shape = found[name][0]
    if len(shape) != rank or min(shape) < 1:
        raise UserError(f'{name} has the shape {shape}; expected {rank} numbers from 1')
    return shape


def check(expected, found, variant):
    """Raise UserError that lists the variables of `expected` which are not there, or misshapen.

    Args:
        expected: {name: shape} of the network.
        found: {name: (shape, dtype)} of the checkpoint.
        variant: the network's name.
    """
    missing = [name for name in expected if name not in found]
    misshapen = [
        f'{name} {found[name][0]} instead of {tuple(shape)}'
        for name, shape in expected.items()
        if name in found and found[name][0] != tuple(shape)
    ]
    for fault, names in (('lacks', missing), ('has misshapen', misshapen)):
        if names:
            some = ', '.join(names[:NAMES_IN_A_MESSAGE])
            more = f' and {len(names) - NAMES_IN_A_MESSAGE} more' if len(names) > NAMES_IN_A_MESSAGE else ''
            raise UserError(f'taken for {variant}, the checkpoint {fault} {some}{more}')
    wrong = [name for name in expected if found[name][1] not in ('float16', 'bfloat16', 'float32', 'float64')]
    if wrong:
        raise UserError(f'{wrong[0]} is of type {found[wrong[0]][1]}; weights are floating-point numbers')


def conv2d(x, kernel, stride=1):
    """Convolve without bias as slim's conv2d_same and official/resnet's fixed padding do: from the kernel alone."""
    if stride == 1:
        return tf.nn.conv2d(x, kernel, 1, 'SAME')
    total = kernel.shape[0] - 1
    before, after = total // 2, total - total // 2
    x = tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])
    return tf.nn.conv2d(x, kernel, stride, 'VALID')


def batch_norm(x, values, scope, epsilon=1e-5):
    """Normalise by the moving statistics under a scope of `values`, as the formula has it, unfused."""
    mean, variance, gamma, beta = (
        values[f'{scope}/{name}'] for name in ('moving_mean', 'moving_variance', 'gamma', 'beta')
    )
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta
