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
LISTS = {
    'labels_file': (None, "Classes, one a line; the label of each is its place, from 1. Without it ILSVRC2012's 1000."),
    'metadata_file': (None, "Lines 'class TAB name'. Without it the names of ILSVRC2012's classes."),
}
FOLDERS = {
    'train_directory': ('/tmp/', 'Training images, <class>/<file>; empty for none.'),
    'validation_directory': ('/tmp/', 'Validation images, <class>/<file>; empty for none.'),
    'output_directory': ('/tmp/', 'Where the shards go.'),
}
VERIFY = {'verify': (False, 'Read all shards back and compare; what has a manifest is not built, and needs no images.')}
log = functools.partial(print, flush=True)


def define_flags(
    strings: dict[str, tuple],
    booleans: dict[str, tuple],
    num_shards: tuple[int, int] = (1024, 128),
    num_threads: int | None = None,
    values: flags.FlagValues | None = None,
) -> flags.FlagValues:
    """Return a set of flags: strings and booleans, {name: (default, help)}, and what decides the bytes of the shards.

    Args:
        strings, booleans: flags of this program alone, or a table of this module.
        num_shards: defaults of training and validation.
        num_threads: default of the flag of that name, which Beam does without.
        values: the set, if it is not a plain one.
    """
    values = flags.FlagValues() if values is None else values
    values.set_gnu_getopt(True)  # flags may follow an argument
    define = Definer(values)
    for name, (default, text) in strings.items():
        define.string(name, default, text)
    if num_threads:
        define.integer('num_threads', num_threads, 'Processes.', lower=1, upper=1000)
    for name, default, kind in zip(('train', 'validation'), num_shards, ('training', 'validation'), strict=True):
        define.integer(f'{name}_shards', default, f'Files of {kind} images.', lower=1, upper=99999)
    define.integer('seed', 12345, 'Of the order of the images.', lower=0, upper=None)
    checks = ['structure', 'decode']
    define.enum('check', checks[0], checks, 'How images are looked at: whole by their markers, or decoded.')
    define.enum('on_broken', 'skip', ['skip', 'fail'], 'What to do about a broken image.')
    for name, (default, text) in booleans.items():
        define.boolean(name, default, text)
    return values


def options(values: flags.FlagValues, **more) -> Options:
    """Return the Options that flags and other arguments describe."""
    return Options(seed=values.seed, check=values.check, on_broken=values.on_broken, **more)


def build_folders(values: flags.FlagValues, list_images: Callable[[str, str], ImageList], options: Options) -> int:
    """Build the shards of each split of list_images(split, folder), and verify them if asked to; return the exit code.

    `values` has the flags FOLDERS and VERIFY.
    """
    code, output_dir = 0, os.path.expanduser(values.output_directory)
    for name in SPLITS:
        folder, num_shards = values[f'{name}_directory'].value, values[f'{name}_shards'].value
        if values.verify and os.path.exists(f'{output_dir}/{name}.manifest.json'):
            code |= verify(output_dir, name, log)
        elif folder:
            images = list_images(name, folder)
            shards.build(images, name, output_dir, num_shards, values.num_threads, options=options, log=log)
            code |= verify(output_dir, name, log) if values.verify else 0
    return code
