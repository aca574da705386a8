"""List the layers of our network without building it, so that no number in a file can use up memory."""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from checkpoints_tools.source import Shape, Source
from official_resnet import channel_attention
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec, stem_convolutions

BN_PARTS = ('gamma', 'beta', 'moving_mean', 'moving_variance')


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that has weights.

    Attributes:
        name: 'group1_block2_conv1'.
        kind: 'conv', 'bn', 'se_conv', 'eca_conv' or 'dense'.
        group, block: Counted from 1; 0 outside of the groups.
        index: The convolution's place in its block, from 1; 0 on the shortcut and in the stem. A BN has the index of
            the convolution before it; in version 2, 0 at the start of a block and in the head, where it reads a sum.
        shape: The kernel's shape, [h, w, in, out], [in, out] or ECA's [width, 1, 1], or that of each part of a BN,
            [channels].
        has_bias: Whether the layer has a bias beside the kernel.
    """

    name: str
    kind: str
    group: int
    block: int
    index: int
    shape: Shape
    has_bias: bool = False

    def variables(self) -> dict[str, Shape]:
        """Return {'kernel': shape, ...} of the layer's variables."""
        if self.kind == 'bn':
            return dict.fromkeys(BN_PARTS, self.shape)
        return {'kernel': self.shape} | ({'bias': self.shape[-1:]} if self.has_bias else {})


def layers(spec: ResNetSpec, num_classes: int) -> list[Layer]:
    """Return the layers in the order of computation, a projection before the convolutions beside it."""
    is_v2, channels, found = spec.version == '2', 3, []
    *first, last = stem_convolutions(spec)
    for i, conv in enumerate(first, start=1):
        found.append(Layer(f'stem_conv{i}', 'conv', 0, 0, 0, (conv.kernel, conv.kernel, channels, conv.filters)))
        found.append(Layer(f'stem_bn{i}', 'bn', 0, 0, 0, (conv.filters,)))
        channels = conv.filters
    shape, channels = (last.kernel, last.kernel, channels, last.filters), last.filters
    found.append(Layer('stem_conv', 'conv', 0, 0, 0, shape, spec.stem_bias))
    if spec.stem_bn or spec.stem_bn is None and not is_v2:
        found.append(Layer('stem_bn', 'bn', 0, 0, 0, (channels,)))
    for group, num_blocks in enumerate(spec.group_blocks, start=1):
        for block in range(1, num_blocks + 1):
            found += _block(spec, group, block, channels)
            channels = spec.filters_of(group - 1) * spec.width * spec.expansion
    if is_v2:
        found.append(Layer('head_bn', 'bn', 0, 0, 0, (channels,)))
    return [*found, Layer('logits', 'dense', 0, 0, 0, (channels, num_classes), True)]


def _block(spec, group, block, channels):
    filters, stride = spec.filters_of(group - 1) * spec.width, 2 if block == 1 < group else 1
    outer, is_v2, found = filters * spec.expansion, spec.version == '2', []

    def add(name, kind, index, *shape) -> None:
        found.append(Layer(f'group{group}_block{block}_{name}', kind, group, block, index, shape, kind == 'se_conv'))

    if is_v2:
        add('bn1', 'bn', 0, channels)
    if spec.is_projection(channels, outer, stride, block == 1):
        add('shortcut_conv', 'conv', 0, 1, 1, channels, outer)
        if not is_v2:
            add('shortcut_bn', 'bn', 0, outer)
    convs = [(3, channels, filters), (3, filters, filters)]
    if spec.block == 'bottleneck':
        inner = filters * spec.base_width // 64 * spec.cardinality
        convs = [(1, channels, inner), (3, inner // spec.cardinality, inner), (1, inner, outer)]
    for i, (size, num_in, num_out) in enumerate(convs, start=1):
        add(f'conv{i}', 'conv', i, size, size, num_in, num_out)
        if not is_v2 or i < len(convs):
            add(f'bn{i + is_v2}', 'bn', i, num_out)
    if spec.se_reduction:
        reduced = channel_attention.se_filters(spec, outer)
        add('se_conv1', 'se_conv', 1, 1, 1, outer, reduced)
        add('se_conv2', 'se_conv', 2, 1, 1, reduced, outer)
    elif spec.eca:
        add('eca_conv', 'eca_conv', 1, channel_attention.eca_kernel(outer), 1, 1)
    return found


def bottleneck_widths(name: str, filters: int, shape: Shape) -> dict[str, Any]:
    """Return cardinality and base_width from PyTorch's shape [inner, inner / cardinality, 3, 3] of the first 3x3."""
    inner, per_group = shape[:2]
    cardinality, base_width = inner // per_group, 64 * per_group // filters
    if per_group * cardinality != inner or filters * base_width // 64 * cardinality != inner:
        raise UserError(f'{name} {shape} fits no network of {filters} filters; get the checkpoint again')
    return {'cardinality': cardinality, 'base_width': base_width}


def filters_of(stem: int, groups: Sequence[int]) -> dict[str, Any]:
    """Return the fields of ResNetSpec for a stem and groups of these numbers of filters."""
    first = groups[0]
    doubles = all(n == first * 2**i for i, n in enumerate(groups))
    fields = {'filters': first, 'stem_filters': None if stem == first else stem}
    return fields if doubles else fields | {'group_filters': tuple(groups)}


def variables(spec: ResNetSpec, num_classes: int) -> dict[str, Shape]:
    """Return {'LAYER/VARIABLE': shape} of all layers."""
    return {
        f'{layer.name}/{part}': shape
        for layer in layers(spec, num_classes)
        for part, shape in layer.variables().items()
    }


def named_blocks(names: Iterable[str], pattern: str, first: tuple[int, int] = (1, 1)) -> tuple[int, ...]:
    """Return `count_blocks` of the (group, block) that a pattern finds in names; `first` is the first pair there."""
    found = filter(None, map(re.compile(pattern).fullmatch, names))
    return count_blocks((int(place[1]) - first[0] + 1, int(place[2]) - first[1] + 1) for place in found)


def count_blocks(places: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return the number of blocks in each group from (group, block), counted from 1. UserError: one is left out."""
    found = collections.defaultdict(set)
    for group, block in places:
        found[group].add(block)
    blocks = tuple(len(found[group]) for group in sorted(found))
    if not found or any(found.get(i) != set(range(1, 1 + n)) for i, n in enumerate(blocks, start=1)):
        some = {group: sorted(found[group])[:40] for group in sorted(found)[:9]}
        raise UserError(f'groups and blocks {some} have gaps, or do not start at 1; get the whole checkpoint')
    return blocks


class Layout(NamedTuple):
    """How arrays of a source become one of our variables: `layout(*arrays)`.

    Attributes:
        function: arrays -> the variable.
        shapes: The variable's shape -> the arrays' shapes, and perhaps more.
    """

    function: Callable[..., np.ndarray]
    shapes: Callable[[Shape], Iterable[Shape]]

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        return self.function(*arrays)


def _minus(mean, *biases):
    return (np.asarray(mean, 'float64') - np.sum(biases, axis=0, dtype='float64')).astype('float32')


identity = Layout(lambda array: array, lambda shape: [shape])
from_oihw = Layout(lambda kernel: np.transpose(kernel, (2, 3, 1, 0)), lambda shape: [(*shape[:1:-1], *shape[:2])])
transposed = Layout(np.transpose, lambda shape: [shape[::-1]])
squeezed = Layout(lambda kernel: kernel[0, 0], lambda shape: [(1, 1, *shape)])  # a dense layer stored as a convolution
as_1x1 = Layout(lambda matrix: matrix[None, None], lambda shape: [shape[2:]])  # a convolution stored as a dense layer
minus_biases = Layout(_minus, itertools.repeat)  # the moving mean of a BN whose input in our network lacks the biases


class Entry(NamedTuple):
    """One of our variables, and the variables of the source that it is made from.

    Attributes:
        target: One of our variables as 'LAYER/VARIABLE', for example 'group1_block1_conv1/kernel'.
        sources: The names of one or more variables in the order in which `convert` takes them. Each is used once, but
            a vector may be folded into several targets, for example a bias into the means of BNs.
        convert: Makes the target from the sources.
    """

    target: str
    sources: tuple[str, ...]
    convert: Layout = identity


def entries(
    source: Source,
    their: Callable[[Layer], str | None],
    words: Mapping[str, str] | None = None,
    kernels: Mapping[str, Layout] | None = None,
    is_folded: Callable[[Layer], bool] = lambda layer: False,
    separator: str = '/',
) -> list[Entry]:
    """Return the Entries of a source that has a variable LAYER/WORD for each of ours.

    Our convolutions have no bias. A bias of the source lowers the moving means of the BNs that read it. A BN reads the
    convolution before it, or in version 2, at the start of a block and in the head, the sum of the blocks so far; a
    projection starts a new sum. The stem's pool pads with -inf, so its maxima move with a bias.

    Args:
        their: Layer -> its name in the source, or None if the source lacks it. Called once for each layer, in order.
        words: The source's words for 'kernel', 'bias' and the parts of a BN, if they differ.
        kernels: Kind of layer -> Layout of its kernel, if it is not `identity`.
        is_folded: Whether the source's convolution has a bias and ours has none.
        separator: What the source has between LAYER and WORD.
    """
    words, found, sums, latest = words or {}, [], list[str](), list[str]()
    num_convs = 3 if source.spec.block == 'bottleneck' else 2
    for layer in layers(source.spec, source.num_classes):
        name = their(layer)
        if layer.kind == 'conv':
            latest = [f'{name}{separator}{words.get("bias", "bias")}'] if is_folded(layer) else []
            if layer.index in (0, num_convs):
                sums = latest if layer.index == 0 else sums + latest
        for part in layer.variables() if name else ():
            names, layout = [f'{name}{separator}{words.get(part, part)}'], identity
            if part == 'kernel':
                layout = (kernels or {}).get(layer.kind, layout)
            elif part == 'moving_mean':
                names += sums if source.spec.version == '2' and layer.index == 0 else latest
                layout = minus_biases if len(names) > 1 else layout
            found.append(Entry(f'{layer.name}/{part}', tuple(names), layout))
    return found


def constant_bn(name: str, statistics: tuple[str, str], epsilon: float) -> list[Entry]:
    """Return the Entries of a BN that changes nothing, where the source has none.

    Every Entry needs a source, so these have the statistics of another BN with as many channels.
    """
    found = []
    for part, value in zip(BN_PARTS, (1.0, 0.0, 0.0, 1 - epsilon), strict=True):  # variance + epsilon is 1
        constant = functools.partial(lambda value, mean, _: np.full(mean.shape, value, 'float32'), value)
        found.append(Entry(f'{name}/{part}', statistics, Layout(constant, lambda shape: (shape, shape))))
    return found
