"""What the commands in data/ share: their flags, and how the two splits are built from folders."""

import functools
import os
from collections.abc import Callable

from absl import flags

from official_resnet.building import shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.records import Options
from official_resnet.building.verify import verify
from official_resnet.command_line.definer import Definer

SPLITS = ('validation', 'train')  # in the order in which they are built
LABELS_TEXT = 'Classes, one a line; the label of each is its place, from 1. Without it the 1000 of ILSVRC2012.'
METADATA_TEXT = "Lines 'class TAB name'. Without it the names of ILSVRC2012's classes."
log = functools.partial(print, flush=True)


def define_shard_flags(define: Definer, num_shards: tuple[int, int] = (1024, 128)) -> None:
    """Define what decides the bytes of the shards; `num_shards` are the defaults of training and validation."""
    for name, default, kind in zip(('train', 'validation'), num_shards, ('training', 'validation'), strict=True):
        define.integer(f'{name}_shards', default, f'Files of {kind} images.', lower=1, upper=99999)
    define.integer('seed', 12345, 'Of the order of the images.', lower=0, upper=None)
    define.enum(
        'check',
        'structure',
        ['structure', 'decode'],
        'How images are looked at: whole by their markers, or decoded.',
    )
    define.enum('on_broken', 'skip', ['skip', 'fail'], 'What to do about a broken image.')


def define_folder_flags(
    num_shards: tuple[int, int], num_threads: int, labels_file: str, labels_text: str
) -> flags.FlagValues:
    """Return the flags of both commands that build shards from folders, in a set of their own."""
    values = flags.FlagValues()
    define = Definer(values)
    define.string('train_directory', '/tmp/', 'Training images, <class>/<file>; empty for none.')
    define.string('validation_directory', '/tmp/', 'Validation images, <class>/<file>; empty for none.')
    define.string('output_directory', '/tmp/', 'Where the shards go.')
    define.string('labels_file', labels_file, labels_text)
    define.integer('num_threads', num_threads, 'Processes.', lower=1, upper=1000)
    define_shard_flags(define, num_shards)
    define.boolean(
        'verify', False, 'Read all shards back and compare; what has a manifest is not built, and needs no images.'
    )
    return values


def options(values: flags.FlagValues, **more) -> Options:
    """Return the Options that flags and other arguments describe."""
    return Options(seed=values.seed, check=values.check, on_broken=values.on_broken, **more)


def build_folders(values: flags.FlagValues, list_images: Callable[[str, str], ImageList], options: Options) -> int:
    """Build the shards of validation, then train, and verify them if asked to; return the exit code.

    Args:
        values: the flags of define_folder_flags.
        list_images: (split, folder) -> its images.
        options: what goes into the records.
    """
    code = 0
    output_dir = os.path.expanduser(values.output_directory)
    for name in SPLITS:
        folder, num_shards = values[f'{name}_directory'].value, values[f'{name}_shards'].value
        if values.verify and os.path.exists(f'{output_dir}/{name}.manifest.json'):
            code |= verify(output_dir, name, log)
        elif folder:
            images = list_images(name, folder)
            shards.build(images, name, output_dir, num_shards, values.num_threads, options=options, log=log)
            code |= verify(output_dir, name, log) if values.verify else 0
    return code
