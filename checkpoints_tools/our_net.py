"""What our net of a spec consists of, by arithmetic: no layer is made, so no number in a file can make it large."""

import collections
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from checkpoints_tools import layouts
from checkpoints_tools.layouts import Shape
from checkpoints_tools.source import Entry
from official_resnet.errors import UserError
from official_resnet.resnet_spec import ResNetSpec

BN_PARTS = ('gamma', 'beta', 'moving_mean', 'moving_variance')


class Layer(NamedTuple):
    """A layer that has weights.

    Attributes:
        name: 'group1_block2_conv1'.
        kind: 'conv', 'bn', 'se_conv' or 'dense'.
        group, block: from 1; 0 outside of the groups.
        index: of a convolution or a BN in its block, from 1; 0 on the shortcut and in the stem. The last BN of version
            2, which like the first of a block reads the sum of all before, has 1.
        shape: of the kernel, [h, w, in, out] or [in, out], or of each part of a BN, [channels].
    """

    name: str
    kind: str
    group: int
    block: int
    index: int
    shape: Shape


def layers(spec: ResNetSpec, num_classes: int) -> list[Layer]:
    """Return the layers in the order of computation, a projection before the convolutions beside it."""
    size, channels = 7 if spec.stem == 'imagenet' else 3, spec.stem_filters or spec.filters
    is_v2 = spec.version == '2'
    found = [Layer('stem_conv', 'conv', 0, 0, 0, (size, size, 3, channels))]
    if spec.stem_bn or spec.stem_bn is None and not is_v2:
        found.append(Layer('stem_bn', 'bn', 0, 0, 0, (channels,)))
    for group, num_blocks in enumerate(spec.group_blocks, start=1):
        for block in range(1, num_blocks + 1):
            found += _block(spec, group, block, channels)
            channels = spec.filters * spec.width * 2 ** (group - 1) * spec.expansion
    if is_v2:
        found.append(Layer('head_bn', 'bn', 0, 0, 1, (channels,)))
    return [*found, Layer('logits', 'dense', 0, 0, 0, (channels, num_classes))]


def _block(spec, group, block, channels):
    filters = spec.filters * spec.width * 2 ** (group - 1)
    outer, is_v2, found = filters * spec.expansion, spec.version == '2', []

    def add(kind, index, *shape):
        name = f'{"" if index else "shortcut_"}{kind}{index or ""}'
        found.append(Layer(f'group{group}_block{block}_{name}', kind, group, block, index, shape))

    if is_v2:
        add('bn', 1, channels)
    if block == 1 if spec.shortcut == 'group' else spec.shortcut == 'B' and channels != outer:
        add('conv', 0, 1, 1, channels, outer)
        if not is_v2:
            add('bn', 0, outer)
    convs = [(3, channels, filters), (3, filters, filters)]
    if spec.block == 'bottleneck':
        inner = filters * spec.base_width // 64 * spec.cardinality
        convs = [(1, channels, inner), (3, inner // spec.cardinality, inner), (1, inner, outer)]
    for i, (size, taken, given) in enumerate(convs, start=1):
        if is_v2 and i > 1:
            add('bn', i, convs[i - 2][2])
        add('conv', i, size, size, taken, given)
        if not is_v2:
            add('bn', i, given)
    if spec.se_reduction:
        reduced = max(1, outer // spec.se_reduction)
        add('se_conv', 1, 1, 1, outer, reduced)
        add('se_conv', 2, 1, 1, reduced, outer)
    return found


def variables(spec: ResNetSpec, num_classes: int) -> dict[str, Shape]:
    """Return {'LAYER/VARIABLE': shape} of all layers."""
    found = {}
    for layer in layers(spec, num_classes):
        if layer.kind == 'bn':
            found |= {f'{layer.name}/{part}': layer.shape for part in BN_PARTS}
            continue
        found[f'{layer.name}/kernel'] = layer.shape
        if layer.kind in ('se_conv', 'dense') or layer.name == 'stem_conv' and spec.stem_bias:
            found[f'{layer.name}/bias'] = layer.shape[-1:]
    return found


def count_blocks(places: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return the number of blocks of each group, of (group, block) as names have them, both from 1.

    Raises:
        UserError: there are none, or one is left out.
    """
    found = collections.defaultdict(set)
    for group, block in places:
        found[group].add(block)
    blocks = tuple(len(found[group]) for group in sorted(found))
    if not found or any(found.get(i) != set(range(1, 1 + n)) for i, n in enumerate(blocks, start=1)):
        some = {group: sorted(found[group])[:40] for group in sorted(found)[:9]}
        raise UserError(f'no residual network: groups and blocks as {some}, of which some are left out')
    return blocks


def lacking(spec: ResNetSpec, net: list[Layer], biases: Mapping[str, str]) -> dict[str, list[str]]:
    """Return {BN: names of the biases that its input lacks}: our convolutions have none, so its moving mean is lower.

    A BN reads the convolution before it, or in version 2, at the start of a block and at the end, the sum of the
    blocks so far, which a projection begins anew. The stem's pool pads with -inf, and its maxima move with a bias.

    Args:
        spec: of our net.
        net: its layers.
        biases: {our convolution: name of its bias}, of those that have one in the source and not in our net.
    """
    sums, latest, found = [], [], {}
    num_convs = 3 if spec.block == 'bottleneck' else 2
    for layer in net:
        if layer.kind == 'conv':
            latest = [biases[layer.name]] if layer.name in biases else []
            if layer.index in (0, num_convs):
                sums = latest if layer.index == 0 else sums + latest
        elif layer.kind == 'bn':
            found[layer.name] = sums if spec.version == '2' and layer.index == 1 else latest
    return found


def bn_entries(layer: str, name: str, parts: Mapping[str, str] | None = None, biases=()) -> list[Entry]:
    """Return the Entries of a BN.

    Args:
        layer: of ours.
        name: what the source's four variables begin with.
        parts: {part: the source's word for it}, where they are other words.
        biases: names of what is folded into the moving mean.
    """
    words = parts or dict(zip(BN_PARTS, BN_PARTS, strict=True))
    sources = {part: (f'{name}{words[part]}',) for part in BN_PARTS}
    sources['moving_mean'] += tuple(biases)
    return [
        Entry(f'{layer}/{part}', names, layouts.less_biases if len(names) > 1 else layouts.identity)
        for part, names in sources.items()
    ]
