"""What each network consists of and costs: 1512.03385 Table 1; see resnet_variants, which prints it."""

import keras
import numpy as np

from official_resnet import resnet_model, resnet_variants
from official_resnet.errors import UserError

IMAGE_SIZE = 224  # pixels, where the variant does not say
NUM_CLASSES = {'cifar': 10, 'mnist': 10, 'imagenet': 1000, 'deep': 1000}  # by stem
COLUMNS, LABEL_WIDTH, WIDTH = 6, 17, 23  # networks side by side; characters


def main(argv=()):
    """Print the table of the variants named in argv, or of all."""
    names = list(argv) or list(resnet_variants.VARIANTS)
    for name in names:
        if name not in resnet_variants.VARIANTS:
            raise UserError(f'variant={name!r} is none of {", ".join(resnet_variants.VARIANTS)}')
    for columns in in_tables(names):
        print(format_table(columns) + '\n', flush=True)


def in_tables(names):
    """Return lists of (name, rows of describe), each list for one table: six at most that share their sizes."""
    tables = []
    for name in names:
        rows = describe(name)
        if not tables or len(tables[-1]) == COLUMNS or list(tables[-1][0][1]) != list(rows):
            if tables:
                yield tables[-1]
            tables.append([])
        tables[-1].append((name, rows))
    yield tables[-1]


def describe(name):
    """Return {what and its output size: lines} of a variant: stem, groups, parameters, multiply-adds, blocks.

    The network is built without values in its weights, which takes a fraction of the time and no memory.
    """
    spec = resnet_variants.VARIANTS[name]
    shape = tuple(size or IMAGE_SIZE for size in resnet_variants.IMAGE_SHAPES[spec.stem])
    with keras.StatelessScope(initialize_variables=False):
        model = resnet_model.resnet(spec, NUM_CLASSES[spec.stem], shape)
    rows = {f'images {shape[0]}x{shape[1]}x{shape[2]}': ['']}
    stem = [layer for layer in model.layers if layer.name.startswith('stem')]
    rows[_label('stem', stem)] = [
        f'{layer.kernel_size[0]}x{layer.kernel_size[0]}, {layer.filters}{_stride(layer)}'
        for layer in stem
        if isinstance(layer, keras.layers.Conv2D)
    ]
    rows[_label('stem', stem)] += ['3x3 max-pool, /2' for layer in stem if layer.name == 'stem_pool']
    for i, num_blocks in enumerate(spec.group_blocks):
        convs = resnet_model.block_convolutions(spec, spec.filters * 2**i, 1)
        lines = [
            f'[{kernel}x{kernel}, {filters}' + (f', C={groups}]' if groups > 1 else ']')
            for filters, kernel, _, groups in convs
        ]
        lines[len(lines) // 2] += f' x{num_blocks}'
        group = [layer for layer in model.layers if layer.name.startswith(f'group{i + 1}_')]
        rows[_label(f'group{i + 1}', group)] = lines
    rows['head'] = [f'mean, {NUM_CLASSES[spec.stem]} logits']
    return rows | {
        'parameters': [f'{count_parameters(model):,}'],
        'blocks': [str(sum(spec.group_blocks))],
        'multiply-adds': [f'{count_multiply_adds(model) / 1e6:,.0f} M'],
    }


def format_table(columns):
    """Return the text of a table from a list of (name, rows of describe)."""
    lines = [''.ljust(LABEL_WIDTH) + ''.join(name.ljust(WIDTH) for name, _ in columns)]
    for label in columns[0][1]:
        for i in range(max(len(rows[label]) for _, rows in columns)):
            cells = [rows[label][i] if i < len(rows[label]) else '' for _, rows in columns]
            lines.append((label if i == 0 else '').ljust(LABEL_WIDTH) + ''.join(cell.ljust(WIDTH) for cell in cells))
    return '\n'.join(line.rstrip() for line in lines)


def _label(name, layers):
    height, width = layers[-1].output.shape[1:3]
    return f'{name} {height}x{width}'


def _stride(layer):
    return f', /{layer.strides[0]}' if layer.strides[0] > 1 else ''


def count_parameters(model):
    """Return the trainable parameters: BN scale and offset counted, moving statistics not."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def count_multiply_adds(model):
    """Return the multiplications of an image through the convolutions and the last layer, as the papers count.

    Args:
        model: a network of fixed image size.
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
        elif isinstance(layer, keras.layers.Dense):
            total += int(np.prod(layer.kernel.shape))
    return total
