"""What each network consists of and costs: 1512.03385 Table 1; see resnet_variants, which prints it."""

import itertools
import math

import keras

from official_resnet import resnet_model, resnet_variants
from official_resnet.errors import UserError

IMAGE_SIZE = 224  # pixels, where the variant does not say
NUM_CLASSES = {'cifar': 10, 'mnist': 10, 'imagenet': 1000, 'deep': 1000}  # by stem
COLUMNS, LABEL_WIDTH, WIDTH = 6, 17, 23  # networks side by side; characters


def main(argv=()):
    """Print the table of the variants named in argv, or of all."""
    for name in argv:
        if name not in resnet_variants.VARIANTS:
            raise UserError(f'variant={name!r} must be one of {", ".join(resnet_variants.VARIANTS)}')
    for columns in in_tables(argv or resnet_variants.VARIANTS):
        print(format_table(columns) + '\n', flush=True)


def in_tables(names):
    """Return lists of (name, rows of describe), each list for one table: six at most that share their sizes."""
    columns = ((name, describe(name)) for name in names)
    for _, alike in itertools.groupby(columns, key=lambda column: list(column[1])):
        while table := list(itertools.islice(alike, COLUMNS)):
            yield table


def describe(name):
    """Return {what and its output size: lines} of a variant: stem, groups, parameters, multiply-adds, blocks.

    The network is built without values in its weights, which takes a fraction of the time and no memory.
    """
    spec = resnet_variants.VARIANTS[name]
    shape = tuple(size or IMAGE_SIZE for size in resnet_variants.IMAGE_SHAPES[spec.stem])
    with keras.StatelessScope(initialize_variables=False):
        model = resnet_model.resnet(spec, NUM_CLASSES[spec.stem], shape)

    def label(part):
        last = [layer for layer in model.layers if layer.name.startswith(part)][-1]
        return f'{part.removesuffix("_")} {last.output.shape[1]}x{last.output.shape[2]}'

    stem = []
    for layer in model.layers:
        if layer.name.startswith('stem') and isinstance(layer, keras.layers.Conv2D):
            (side, _), (stride, _) = layer.kernel_size, layer.strides
            stem.append(f'{side}x{side}, {layer.filters}' + (f', /{stride}' if stride > 1 else ''))
    stem += ['3x3 max-pool, /2' for layer in model.layers if layer.name == 'stem_pool']
    rows = {'images ' + 'x'.join(map(str, shape)): [''], label('stem'): stem}
    for i, num_blocks in enumerate(spec.group_blocks):
        lines = [
            f'[{kernel}x{kernel}, {filters}' + (f', C={groups}]' if groups > 1 else ']')
            for filters, kernel, _, groups in resnet_model.block_convolutions(spec, spec.filters * 2**i, 1)
        ]
        lines[len(lines) // 2] += f' x{num_blocks}'
        rows[label(f'group{i + 1}_')] = lines
    return rows | {
        'head': [f'mean, {NUM_CLASSES[spec.stem]} logits'],
        'parameters': [f'{count_parameters(model):,}'],
        'blocks': [str(sum(spec.group_blocks))],
        'multiply-adds': [f'{count_multiply_adds(model) / 1e6:,.0f} M'],
    }


def format_table(columns):
    """Return the text of a table from a list of (name, rows of describe)."""
    lines = [('', *(name for name, _ in columns))]
    for label in columns[0][1]:
        lines += itertools.zip_longest([label], *(rows[label] for _, rows in columns), fillvalue='')
    widths = [LABEL_WIDTH] + [WIDTH] * len(columns)
    return '\n'.join(''.join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def count_parameters(model):
    """Return the trainable parameters: BN scale and offset counted, moving statistics not."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def count_multiply_adds(model):
    """Return the multiplications in convolutions and the last layer, as the papers count; the image size is fixed."""
    counted = (layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense))
    return sum(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in counted)
