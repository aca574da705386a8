"""Select what of a checkpoint is converted, where it leaves a choice: which weights, with or without a classifier."""

import copy
import dataclasses
import types
from typing import NamedTuple

import numpy as np

from checkpoints_tools import our_net
from checkpoints_tools.source import AVERAGE, Lazy, Shape, Shapes, Variables
from official_resnet.errors import UserError

KINDS = ('plain', 'ema')


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the user wants of a checkpoint.

    Attributes:
        weights: 'plain' as they were trained, or 'ema', their moving averages. None: plain, if the checkpoint has both.
        has_head: Whether the network keeps its classifier. Without it, the outputs are the features.
        data_dir: Where the training images are from which statistics are estimated that the checkpoint lacks.
    """

    weights: str | None = None
    has_head: bool = True
    data_dir: str | None = None


DEFAULT = Choice()


class Selection(NamedTuple):
    """The part of a checkpoint that is converted.

    Attributes:
        shapes: Its {name: (shape, dtype)} under the names that the family's module knows.
        names: {such a name: the name in the file} of what is read from the file.
        stand_in: {name: shape} of a classifier that copies the features, in place of the one that is left out.
        weights: 'plain' or 'ema'.
        others: The kinds of weights that the checkpoint has beside these.
        left_out: {name in the file: why} of what is not converted.
        unstored: {name: shape} of the statistics of BNs that the checkpoint lacks.
    """

    shapes: Shapes
    names: dict[str, str]
    stand_in: dict[str, Shape]
    weights: str
    others: tuple[str, ...]
    left_out: dict[str, str]
    unstored: dict[str, Shape]

    def variables(self, read: Variables) -> Lazy:
        """Return {name: ndarray} of the selection from what the family's `read` returned."""
        return Lazy([*self.names, *self.stand_in], lambda name: self._value(read, name))

    @property
    def num_features(self) -> int:
        """The number of outputs of a network without its classifier."""
        return max(next(iter(self.stand_in.values())))  # of a matrix, or of a 1x1 convolution in any order of axes

    def _value(self, read, name):
        if name not in self.stand_in:
            return read[self.names[name]]
        shape = self.stand_in[name]
        return np.zeros(shape, 'float32') if len(shape) == 1 else np.eye(max(shape), dtype='float32').reshape(shape)

    def without_average(self, entries: list[our_net.Entry]) -> list[str]:
        """Return the variables, statistics of BNs apart, of which a selection of averages has only the plain value."""
        if self.weights == 'plain':
            return []
        used = [name for entry in entries if '/moving_' not in entry.target for name in entry.sources]
        return [name for name in used if not self.names.get(name, AVERAGE).endswith(AVERAGE)]


def kinds_of(module: types.ModuleType, shapes: Shapes) -> dict[str, dict[str, str]]:
    """Return {'plain' or 'ema': {the family's name: name in the file}} of the networks that a checkpoint has.

    The averages may lack statistics of BNs, which training programs do not average; the plain ones take their place.
    """
    plain = {name: name for name in shapes if not name.endswith(AVERAGE)}
    averages = {name.removesuffix(AVERAGE): name for name in shapes if name.endswith(AVERAGE)}
    kinds = {'plain': plain} if module.recognises(plain) else {}
    if module.recognises(averages):  # and not only losses are averaged
        kinds['ema'] = plain | {name: theirs for name, theirs in averages.items() if name in plain or not kinds}
    return kinds


def select(
    module: types.ModuleType, shapes: Shapes, path: object, choice: Choice, variant: str | None = None
) -> Selection:
    """Return what is converted of a checkpoint, from all its variables.

    Raises:
        UserError: The checkpoint does not have what was asked for. The message says what to pass.
    """
    kinds = kinds_of(module, shapes) or {'plain': {name: name for name in shapes}}
    weights = choice.weights or next(iter(kinds))
    if weights not in kinds:
        raise UserError(f'--weights={weights}, but {path} has only {", ".join(kinds)} weights; leave --weights out')
    names, stand_in = kinds[weights], {}
    heads = getattr(module, 'HEADS', None)
    if not choice.has_head and heads:
        names = {name: theirs for name, theirs in names.items() if not heads.fullmatch(name)}
    chosen = {name: shapes[theirs] for name, theirs in names.items()}
    head = {name: (shape, 'float32') for name, shape in module.classifier(chosen, 1).items()}
    if not choice.has_head:
        features = our_net.layers(module.describe(chosen | head, variant).spec, 1)[-1].shape[0]
        stand_in = module.classifier(chosen, features)
        names = {name: theirs for name, theirs in names.items() if name not in stand_in}
    elif module.recognises(chosen) and not any(name in chosen for name in head):
        raise UserError(
            f'{path} has no classifier ({", ".join(head)}); pass --no_head to convert it to a network that returns '
            'features, or get the whole checkpoint'
        )
    others = {theirs: kind for kind in kinds if kind != weights for theirs in kinds[kind].values()}
    left_out = {name: 'part of the classifier' for name in kinds[weights].values()}
    left_out |= {name: f'--weights={kind} takes it' for name, kind in others.items()}
    left_out = {name: left_out.get(name, 'average of another value') for name in shapes.keys() - set(names.values())}
    listing = copy.copy(shapes)  # with what a reader has noted beside the shapes
    listing.clear()
    listing.update({name: shapes[theirs] for name, theirs in names.items()})
    unstored = module.unstored(listing) if hasattr(module, 'unstored') else {}
    listing.update({name: (shape, 'float32') for name, shape in (stand_in | unstored).items()})
    return Selection(listing, names, stand_in, weights, tuple(set(others.values())), left_out, unstored)
