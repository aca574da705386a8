"""What the readers of foreign checkpoints have in common.

Each module from_FAMILY has

    recognises(shapes)                  whether these variables are of the family
    shapes(path)                        {name: (shape, dtype)}, without reading values where the format allows
    read(path)                          {name: ndarray}, nothing executed, bounded by the file's size; or Lazy
    describe(shapes, variant=None)      Source: what network the variables are of, and what it is fed
    name_map(source, shapes)            [Entry]: where each variable goes; every variable in one entry or in `ignored`
    ignored(shapes)                     names that carry no weight of the network, {name: why}
    run(variables, images, source)      logits by the source's own definition, not by our model

and may have

    list_files(path)                    the files that are read, where it is not the path alone
    with_mean(source, path)             the Source with the means of a mean image beside the checkpoint, if there is one

`convert.fit` sees to it that all variables are there and of the right shape, for all families. Whatever is wrong with
a file is a UserError.
"""

import collections.abc
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from official_resnet import resnet_spec
from official_resnet.errors import UserError, one_line
from official_resnet.inference.card_reader import Input
from official_resnet.inputs.normalization import NORMALIZATIONS

Shape = tuple[int, ...]
Shapes = collections.abc.Mapping[str, tuple[Shape, str]]  # of a checkpoint: {name: (shape, dtype)}
Variables = collections.abc.Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """What a checkpoint is.

    Attributes:
        family: a key of FAMILIES.
        variant: a name a person knows it by, as 'resnet_v1_50'.
        spec: of our net that computes the same function.
        labels: 'imagenet1000', 'imagenet1001' (0 is background), 'cifar10', or 'unknown'.
        note: license and citation, as far as known.
    """

    family: str
    variant: str
    spec: resnet_spec.ResNetSpec
    num_classes: int
    input: Input
    labels: str
    note: str = ''


class Lazy(collections.UserDict):
    """{name: ndarray} that reads a value each time it is asked for: a checkpoint is never in memory as a whole."""

    def __init__(self, names: Iterable[str], read: Callable[[str], np.ndarray]):
        self.data, self._read = dict.fromkeys(names), read

    def __getitem__(self, name):
        return self._read(name) if name in self.data else super().__getitem__(name)


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Make one UserError of whatever a strange file leads to; `kind` says what it should be, as 'an .npz file'."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or reason(error)}; pass {kind}') from error
    except Exception as error:  # the readers of zips, HDF5 and TensorFlow raise most of Python's built-in exceptions
        raise UserError(f'{path} is damaged or not {kind} ({reason(error)}); get it again') from error


def reason(error: BaseException) -> str:
    """Return what an exception says, on a line that is not too long."""
    text = one_line(' '.join((getattr(error, 'message', '') or str(error)).split())) or type(error).__name__
    return text if len(text) <= 200 else f'{text[:197]}...'


def shape_of(shapes: Shapes, name: str, rank: int) -> Shape:
    """Return the shape of a variable; UserError if it is not there, of another rank, or empty."""
    if name not in shapes:
        raise UserError(f'the checkpoint has no variable {name}; get the whole checkpoint')
    shape = tuple(shapes[name][0])
    if len(shape) != rank or min(shape) < 1:
        raise UserError(f'{name} has the shape {shape}, not {rank} numbers above 0; get the checkpoint again')
    return shape


def check_variant(variant: str | None, *names: str) -> None:
    """Raise UserError if a variant is asked for that is not called by one of these names."""
    if variant not in (None, *names):
        raise UserError(f'variant {variant!r}: by its variables the checkpoint is of {names[0]}; leave the variant out')


def normalized(images: np.ndarray, convention: Input) -> np.ndarray:
    """Return images, [n, h, w, 3] in RGB and 0..255, as a net is fed them: float32, in the convention's order."""
    return np.asarray(NORMALIZATIONS[convention.name](np.asarray(images)))
