"""What each network consists of and costs, as in 1512.03385 Table 1. resnet_variants prints the table.

Everything is counted from the ResNetSpec, without Keras, so that the table takes no time. A test compares the counts
with those of the networks that resnet_model builds.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from official_resnet import channel_attention, resnet_variants
from official_resnet.resnet_spec import POOLED_STEMS, Convolution, ResNetSpec, block_convolutions, stem_convolutions

if TYPE_CHECKING:
    import keras

IMAGE_SIZE = 224  # pixels, if the variant does not fix it
NUM_CLASSES = {'cifar': 10, 'mnist': 10, 'whitening': 10} | dict.fromkeys(POOLED_STEMS, 1000)  # by stem
COLUMNS, LABEL_WIDTH, WIDTH = 6, 17, 23  # number of networks side by side; characters


class Counts(NamedTuple):
    """What a network costs: trainable parameters, multiply-adds of an image, (height, width) after stem and groups."""

    parameters: int
    multiply_adds: int
    sizes: list[tuple[int, ...]]


def main(values: flags.FlagValues, names: Sequence[str]) -> None:
    """Print the table of the named variants, or of all. `values` is empty; program.run_program passes it."""
    for name in names:
        resnet_variants.find_spec(name)
    for columns in in_tables(names or resnet_variants.VARIANTS):
        print(format_table(columns) + '\n')


def in_tables(names: Iterable[str]) -> Iterator[list[tuple[str, dict[str, list[str]]]]]:
    """Yield a list of (name, rows of describe) for each table: at most six networks that share their sizes."""
    columns = ((name, describe(name)) for name in names)
    for _, alike in itertools.groupby(columns, key=lambda column: list(column[1])):
        while table := list(itertools.islice(alike, COLUMNS)):
            yield table


def describe(name: str) -> dict[str, list[str]]:
    """Return the rows of a variant, see rows_of."""
    spec = resnet_variants.find_spec(name)
    height, width, channels = resnet_variants.IMAGE_SHAPES[spec.stem]
    return rows_of(spec, NUM_CLASSES[spec.stem], (height or IMAGE_SIZE, width or IMAGE_SIZE, channels))


def rows_of(spec: ResNetSpec, num_classes: int, shape: tuple[int, int, int]) -> dict[str, list[str]]:
    """Return the rows of a network, {label: lines}: stem and groups with their output sizes, then the totals."""
    counts = count(spec, num_classes, shape)
    stem = [
        f'{conv.kernel}x{conv.kernel}, {conv.filters}' + ', /2' * (conv.stride > 1) for conv in stem_convolutions(spec)
    ]
    stem += ['3x3 max-pool, /2'] * (spec.stem in POOLED_STEMS)
    parts = [stem]
    for i, num_blocks in enumerate(spec.group_blocks):
        lines = [
            f'[{conv.kernel}x{conv.kernel}, {conv.filters}'
            + (f', C={conv.cardinality}]' if conv.cardinality > 1 else '] max-pool' if conv.pool > 1 else ']')
            for conv in block_convolutions(spec, spec.filters_of(i), spec.group_strides()[i][0])
        ]
        lines[len(lines) // 2] += f' x{num_blocks}'
        parts.append(lines)
    labels = ['stem', *(f'group{i + 1}' for i in range(len(spec.group_blocks)))]
    rows = {'images ' + 'x'.join(map(str, shape)): ['']}
    rows |= {f'{label} {h}x{w}': part for label, (h, w), part in zip(labels, counts.sizes, parts, strict=True)}
    return rows | {
        'head': [f'{"maximum" if spec.head_pool == "max" else "mean"}, {num_classes} logits'],
        'version/shortcut': [f'{spec.version}/{spec.shortcut or "none"}'],
        'parameters': [f'{counts.parameters:,}'],
        'blocks': [str(sum(spec.group_blocks))],
        'multiply-adds': [f'{counts.multiply_adds / 1e6:,.0f} M'],
    }


def format_table(columns: Sequence[tuple[str, dict[str, list[str]]]]) -> str:
    """Return the text of a table from a list of (name, rows of describe)."""
    lines: list[Sequence[str]] = [('', *(name for name, _ in columns))]
    for label in columns[0][1]:
        lines += itertools.zip_longest([label], *(rows[label] for _, rows in columns), fillvalue='')
    widths = [LABEL_WIDTH] + [WIDTH] * len(columns)
    return '\n'.join(''.join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def count(spec: ResNetSpec, num_classes: int, image_shape: tuple[int, int, int]) -> Counts:
    """Return what the network of a spec costs, for images of (height, width, channels).

    Parameters are counted as by count_parameters, multiply-adds as by count_multiply_adds.
    """
    is_v2 = spec.version == '2'
    (*size, channels), sizes = image_shape, []
    parameters = multiply_adds = 0

    def convolve(size: list[int], channels: int, conv: Convolution, has_bias: bool = not spec.batch_norm) -> list[int]:
        nonlocal parameters, multiply_adds
        is_cut = spec.stem == 'whitening' and conv.kernel == 2  # its stem has no padding
        size = [-(-side // conv.stride) - is_cut for side in size]
        weights = conv.kernel**2 * channels // conv.cardinality * conv.filters
        parameters += weights + conv.filters * has_bias
        multiply_adds += weights * math.prod(size)
        return [side // conv.pool for side in size]

    def normalize(channels: int) -> None:
        nonlocal parameters
        parameters += (1 + spec.bn_scale) * channels * spec.batch_norm

    *deep, last = stem_convolutions(spec)
    for conv in (*deep, last):
        has_bias = conv is last and (spec.stem_bias or spec.stem == 'whitening')
        size = convolve(size, channels, conv, has_bias or not spec.batch_norm)
        channels = conv.filters
        if spec.stem == 'whitening':
            parameters -= 4 * image_shape[2] * channels  # its kernel is not trained
        elif conv is not last or (not is_v2 if spec.stem_bn is None else spec.stem_bn):
            normalize(channels)
    if spec.stem in POOLED_STEMS:
        size = [side // 2 if spec.stem_pool == 'ceil' else -(-side // 2) for side in size]
    sizes.append(tuple(size))
    for i, (num_blocks, (group_stride, _)) in enumerate(zip(spec.group_blocks, spec.group_strides(), strict=True)):
        strided = 0 if spec.stride_block == 'first' else num_blocks - 1
        for j in range(num_blocks):
            stride = group_stride if j == strided else 1
            convs = block_convolutions(spec, spec.filters_of(i), stride)
            outer = convs[-1].filters
            if spec.is_projection(channels, outer, stride, is_first=j == 0):
                projection = Convolution(outer, spec.projection_kernel, stride)
                convolve(size, channels, projection)
                normalize(0 if is_v2 else outer)
            for conv in convs:
                normalize(channels if is_v2 else conv.filters)
                size = convolve(size, channels, conv)
                channels = conv.filters
            if spec.se_reduction:
                narrow = channel_attention.se_filters(spec, channels)
                convolve([1, 1], channels, Convolution(narrow, 1), True)
                convolve([1, 1], narrow, Convolution(channels, 1), True)
            elif spec.eca:
                parameters += channel_attention.eca_kernel(channels)
                multiply_adds += channel_attention.eca_kernel(channels) * channels
        sizes.append(tuple(size))
    normalize(channels if is_v2 else 0)
    convolve([1, 1], channels, Convolution(num_classes, 1), True)  # the last layer
    return Counts(parameters, multiply_adds, sizes)


def count_parameters(model: 'keras.Model | keras.layers.Layer') -> int:
    """Return the number of trainable parameters: BN scale and offset counted, moving statistics not."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def count_multiply_adds(model: 'keras.Model') -> int:
    """Return the multiplications in convolutions and the last layer, as the papers do. The image size must be fixed."""
    import keras

    kinds = keras.layers.Conv2D | keras.layers.Conv1D | keras.layers.Dense
    counted = (layer for layer in model.layers if isinstance(layer, kinds))
    return sum(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in counted)
