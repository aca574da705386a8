"""Transfer learning from folders of images: a network trained on half of the classes learns the others from few images.

    python transfer_main.py --image_folder ~/images --quick     # minutes on two cores
    python transfer_main.py --image_folder ~/images

On two cores the first network took 17 minutes, pauses included, and all others one and a half: from scratch
70.46 %, all layers 83.28 %, last group 83.22 %, frozen backbone 73.92 % (n = 1; table in docs/results.md).

The folder has a subfolder for each class, or train/CLASS and test/CLASS, for example CIFAR-10's images as JPEG files. A
ResNet-20 learns the first half of the classes, in alphabetical order. Then networks learn the other half in several
ways (WAYS), from its weights or from scratch, all from the same few images. Times are those of training; they include
the features of a frozen backbone, but not the tests. --quick takes fewer images and epochs. If the program is
stopped, run the same command again to continue; finished networks are kept. The program prints a table, and
--output_dir receives transfer.json.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

try:
    from absl import flags as absl_flags

    from official_resnet import checkpoints, folders, resnet_variants
    from official_resnet.command_line import definer
    from official_resnet.errors import UserError
    from official_resnet.experiments import experiment_program
    from official_resnet.training import devices, recipes
    from official_resnet.training.config import TrainConfig
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

FAST = recipes.CIFAR['official'] | recipes.CIFAR['classic_fast']
FULL = {'source_epochs': 20, 'source_images': None, 'train_epochs': 40, 'images_per_class': 100}
QUICK = {'source_epochs': 8, 'source_images': 1000, 'train_epochs': 20, 'images_per_class': 50}


class Way(NamedTuple):
    """How a network learns the new classes."""

    label: str  # in the table
    rate: float  # peak learning rate for a batch of 128; not tuned, but lower where trained layers should be kept
    epochs: int = 1  # factor of --train_epochs; an epoch on features costs next to nothing
    fields: dict[str, Any] = {}  # of TrainConfig
    is_pretrained: bool = True  # whether it starts from the first network


WAYS = {
    'scratch': Way('from scratch', 0.4, is_pretrained=False),
    'all': Way('all layers', 0.1),
    'all_slow': Way('all layers, backbone at a tenth of the rate', 0.4, fields={'backbone_learning_rate_factor': 0.1}),
    'last': Way('last group and head', 0.1, fields={'transfer': 'last'}),
    'head': Way('new head, frozen backbone', 0.1, 5, {'transfer': 'head', 'augment': False}),
    'append': Way('head appended to the old one', 0.05, 5, {'transfer': 'head', 'augment': False, 'head': 'append'}),
}


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    define = definer.Definer(absl_flags.FlagValues())
    define.known('image_folder', None)
    text = 'Folder of the results in JSON and the networks; finished networks are kept.'
    define.string('output_dir', '/tmp/resnet_transfer', text)
    define.boolean('quick', False, 'Train for minutes on two cores.')
    define.known('seed', 0, text='Seed of the choice of images, initial weights, order and augmentation.')
    define.known('resnet_size', 20, text='Number of layers that have weights: 6n+2.', least=8)
    frozen = f', {WAYS["head"].epochs} times as many with a frozen backbone'
    for name, text in (
        ('source_epochs', 'Number of epochs of the first network'),
        ('source_images', 'Number of training images of a class for the first network'),
        ('train_epochs', f'Number of epochs of the others{frozen}'),
        ('images_per_class', 'Number of training images of a class for the others'),
    ):
        default = ', with --quick '.join('all' if sizes[name] is None else str(sizes[name]) for sizes in (FULL, QUICK))
        define.integer(name, None, f'{text}; {default}.', 'te' if name == 'train_epochs' else None, 1)
    define.known('batch_size', 32, text='Number of images in a step; 128 for the first network.')
    define.known('dtype', 'auto', choices=experiment_program.DTYPES)
    experiment_program.define_list(define, 'ways', ','.join(WAYS), 'Ways to learn; all by default.', WAYS)
    absl_flags.register_validator('image_folder', lambda path: path is not None, 'pass a folder', define.values)
    return define.values


def run_transfer(values: absl_flags.FlagValues) -> None:
    """Train the first network and the others, print the table, and write the results."""
    import tensorflow as tf

    from official_resnet.experiments import runs
    from official_resnet.training import transfer

    tf.get_logger().setLevel('ERROR')  # it warns because each network compiles a function
    output_dir = values.output_dir
    folder = pathlib.Path(os.path.expanduser(values.image_folder)).absolute()
    sizes: dict[str, Any] = {
        name: values[name].value or default for name, default in (QUICK if values.quick else FULL).items()
    }
    changes = {'train_epochs': sizes['source_epochs'], 'epochs_between_evals': 10**6}
    changes |= {'dtype': devices.known_dtype(values.dtype), 'resnet_size': values.resnet_size, 'seed': values.seed}
    config = TrainConfig.from_settings(FAST | changes, resnet_variants.cifar_spec)  # of the first network
    settings = sizes | {'image_folder': str(folder)}
    settings |= {name: values[name].value for name in ('seed', 'resnet_size', 'batch_size')} | {'dtype': config.dtype}
    runs.claim_folder(output_dir, settings)
    images = link_images(folder, pathlib.Path(output_dir, 'images'), sizes, values.seed)
    classes = {part: sorted(os.listdir(images[part] / 'train')) for part in images}
    most = len(classes['source']) * (sizes['source_images'] or config.batch_size)
    first: dict[str, Any] = {'dataset': f'folder:{images["source"]}', 'batch_size': min(config.batch_size, most)}
    print('source:')
    source = runs.train_net('source', dataclasses.replace(config, **first), output_dir)
    if source['failed']:
        raise UserError(f'the first network failed: {source["failed"]}; pass another --seed and --output_dir')
    first_dir = f'{output_dir}/runs/source'
    pretrained = transfer.describe(first_dir)
    others = {}
    for name, way in WAYS.items():
        if name in values.ways:
            fields: dict[str, Any] = {
                'dataset': f'folder:{images["target"]}',
                'train_epochs': way.epochs * sizes['train_epochs'],
            }
            fields |= {'batch_size': values.batch_size, 'base_learning_rate': way.rate}
            fields |= {'pretrained': first_dir} if way.is_pretrained else {}
            other = dataclasses.replace(config, **fields, **way.fields)
            others[name] = transfer.adopt(other, pretrained) if way.is_pretrained else other
    nets = {'source': source} | runs.train_nets(others, output_dir)
    for name, net in nets.items():
        lines = checkpoints.read_metrics(f'{output_dir}/runs/{name}')
        net['train_seconds'] = round(sum(line['seconds'] for line in lines if line['split'] == 'train'), 1)
    del nets['source']
    print(table(source, nets, classes, sizes))
    result = {'settings': settings, 'classes': classes, 'source': source, 'nets': nets}
    runs.finish(output_dir, 'transfer', result)


def link_images(
    folder: pathlib.Path, target: pathlib.Path, sizes: Mapping[str, int | None], seed: int
) -> dict[str, pathlib.Path]:
    """Make a folder of links to images for each half of the classes: target/source and target/target.

    Args:
        folder: The folder of all images, see image_folder.
        target: Each half goes below this folder, into train/CLASS and test/CLASS.
        sizes: 'source_images' and 'images_per_class', None for all images.
        seed: Seed of the choice of images, and of the split if the folder has none.

    Raises:
        UserError: There are fewer than four classes, or too few images.
    """
    import numpy as np

    from official_resnet.inputs import image_folder

    parts = {part: target / part for part in ('source', 'target')}
    if target.is_dir():
        return parts
    classes, listed, *_ = image_folder.list_files(folder, seed=seed)
    if len(classes) < 4:
        raise UserError(f"'{folder}' has {len(classes)} classes; pass a folder with 4 or more")
    part_folder = target.with_name('part.images')
    shutil.rmtree(part_folder, ignore_errors=True)
    for label, name in enumerate(classes):
        part = 'source' if label < len(classes) // 2 else 'target'
        limit = sizes['source_images' if part == 'source' else 'images_per_class']
        for split in ('train', 'test'):
            paths = [path for path, file_label in listed[split] if file_label == label]
            if split == 'train' and limit:
                if limit > len(paths):
                    found = f'{len(paths)} training images, not {limit}'
                    remedy = 'lower --images_per_class or --source_images'
                    raise UserError(f"class '{name}' in '{folder}' has {found}; {remedy}")
                paths = [paths[i] for i in np.random.default_rng([seed, label]).permutation(len(paths))[:limit]]
            (part_folder / part / split / name).mkdir(parents=True)
            for i, path in enumerate(sorted(paths)):
                (part_folder / part / split / name / f'{i:06}{path.suffix}').symlink_to(path.absolute())
    folders.put_in_place(part_folder, target)
    return parts


def table(
    source: dict[str, Any],
    nets: dict[str, dict[str, Any]],
    classes: Mapping[str, Sequence[str]],
    sizes: Mapping[str, Any],
) -> str:
    """Return the results as a Markdown table; `classes` has the names of 'source' and 'target'."""
    accuracy = {
        name: 'failed' if net['failed'] else f'{100 - net["final"]["test_error"]:.2f} %'
        for name, net in (nets | {'source': source}).items()
    }
    first = f'test accuracy {accuracy["source"]}, {source["train_seconds"]:.0f} s.'
    lines = [
        f'First network: {", ".join(classes["source"])}; {first}',
        f'Then {", ".join(classes["target"])}: {sizes["images_per_class"]} training images each (n = 1).',
        '',
        '| what is trained | parameters | epochs | test accuracy | time |',
        '|---|---|---|---|---|',
    ]
    for name, net in nets.items():
        way, time = WAYS[name], f'{net["train_seconds"]:.1f} s'
        epochs = way.epochs * sizes['train_epochs']
        lines.append(f'| {way.label} | {net["parameters"]:,} | {epochs} | {accuracy[name]} | {time} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_transfer))
