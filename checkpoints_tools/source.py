"""The types and functions that the readers of foreign checkpoints share.

Each module from_FAMILY has

    recognises(shapes)                  whether these variables belong to the family
    shapes(path)                        {name: (shape, dtype)}, without the values if the format allows it
    read(path)                          {name: ndarray} or Lazy; executes nothing, and is bounded by the file's size
    describe(shapes, variant=None)      Source: which network the variables belong to, and its input
    name_map(source, shapes)            [Entry]: where each variable goes; each is in an Entry or in `ignored`
    ignored(shapes)                     {name: why} of the variables that are not weights of the network
    run(variables, images, source)      the logits by the source's own definition, not by our model
    classifier(shapes, features)        {name: shape} of a classifier with as many outputs as features, kernel first

and may have

    list_files(path)                    the files that are read, if the path is not the only one
    with_mean(source, path)             the Source with the means of a mean image beside the checkpoint, if there is one
    unstored(shapes)                    {name: shape} of statistics of BNs that the family's checkpoints lack, and
    estimate(variables, source, data_dir)       ({name: array} of them, in words what they were estimated from)
    HEADS                               pattern of the names of further classifiers, which --no_head leaves out, too

and those of TARGETS, as which our networks can be written,

    exported(model)                     {our variable: (its name there or None, its value)}, and a config
    write(path, variables, source)      writes {name: value} as a file of the family

The moving average of a variable NAME is listed as NAME and AVERAGE; `selection` takes one of the two.

For all families, `convert.fit` checks that every variable is there and has the right shape. A file that is damaged, or
not what it should be, raises UserError.
"""

import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np

from official_resnet import damage, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inference.card_reader import INPUT_CHECKS, Input
from official_resnet.inputs.normalization import NORMALIZATIONS

Shape = tuple[int, ...]
Shapes = MutableMapping[str, tuple[Shape, str]]  # a checkpoint's {name: (shape, dtype)}
Variables = Mapping[str, np.ndarray]
AVERAGE = '/ExponentialMovingAverage'  # what TensorFlow appends to the name of a variable


@dataclasses.dataclass(frozen=True)
class Source:
    """What a checkpoint contains.

    Attributes:
        family: A key of FAMILIES.
        variant: The name under which it was published, for example 'resnet_v1_50'.
        spec: Our network that computes the same function.
        input: How images become the network's input.
        labels: 'imagenet1000', 'imagenet1001' (0 is the background), 'cifar10' or 'unknown'.
        note: License and citation, as far as they are known.
    """

    family: str
    variant: str
    spec: resnet_spec.ResNetSpec
    num_classes: int
    input: Input
    labels: str
    note: str = ''


class Listing(dict[str, tuple[Shape, str]]):
    """{name: (shape, dtype)}, with what else a reader has found.

    Attributes:
        outside: {name: why} of the variables among them that lie outside of the network.
        file: The name of the checkpoint.
        config: What a file beside the checkpoint says about the network.
        processor: What a file beside the checkpoint says about the network's input.
    """

    outside: Mapping[str, str] = types.MappingProxyType({})
    file: str = ''
    config: Mapping[str, Any] = types.MappingProxyType({})
    processor: Mapping[str, Any] = types.MappingProxyType({})


class Lazy(collections.UserDict):
    """{name: ndarray} that reads a value on each access, so that a checkpoint is never in memory as a whole."""

    def __init__(self, names: Iterable[str], read: Callable[[str], np.ndarray]):
        self.data, self._read = dict.fromkeys(names), read

    def __getitem__(self, name):
        return self._read(name) if name in self.data else super().__getitem__(name)


def reading(path: str | os.PathLike, kind: str) -> contextlib.AbstractContextManager[None]:
    """Turn all exceptions that a damaged file causes into UserError. `kind` is what it should be: 'an .npz file'."""
    return damage.reported(path, 'get it again, or pass another', kind=kind)


def shape_of(shapes: Shapes, name: str, rank: int) -> Shape:
    """Return the shape of a variable. UserError: it is not there, has another rank, or is empty."""
    if name not in shapes:
        raise UserError(f'the checkpoint has no variable {name}; get the whole checkpoint')
    shape = tuple(shapes[name][0])
    if len(shape) != rank or min(shape) < 1:
        raise UserError(f'{name} has the shape {shape}, not {rank} numbers above 0; get the checkpoint again')
    return shape


def check_variant(variant: str | None, *names: str) -> None:
    """Raise UserError if a variant was asked for that is not one of these names of the network."""
    if variant not in (None, *names):
        raise UserError(f'--variant={variant}, but the variables are those of {names[0]}; leave --variant out')


def check_input(where: str, found: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError if a field of an Input has a value that no card can have. `where` is what says so."""
    for field, value in found.items():
        is_right, right = INPUT_CHECKS[field]
        if not is_right(value):
            raise UserError(f'{where} has {field} {value!r:.60}, not {right}; {remedy}')


def normalized(images: np.ndarray, convention: Input) -> np.ndarray:
    """Return RGB images, [n, h, w, 3] in 0..255, as a network's input: float32, with its order of channels."""
    return np.asarray(NORMALIZATIONS[convention.name](np.asarray(images)))


def output_path(path: str | os.PathLike, output: str | os.PathLike, suffix: str) -> pathlib.Path:
    """Return the path of the file to write. UserError: it has another suffix, is a folder, or is the input, `path`."""
    output = pathlib.Path(output).expanduser()
    if output.suffix != suffix:
        raise UserError(f'--output={output} must end in {suffix}; pass another name')
    if output.is_dir() or output.resolve() == pathlib.Path(path).expanduser().resolve():
        raise UserError(f'--output={output} is a folder or the input; pass another name')
    return output
