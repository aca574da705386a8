"""The parts that the commands in data/ share: their flags, and building both splits from folders."""

import os
from collections.abc import Callable
from typing import Any

from absl import flags

from official_resnet import files
from official_resnet.building import shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.records import Options
from official_resnet.building.verify import verify
from official_resnet.command_line.definer import Definer

SPLITS = ('validation', 'train')  # in the order in which they are built
LISTS = {
    'labels_file': (None, "Classes, one on each line, with labels from 1. Default: ILSVRC2012's 1000."),
    'metadata_file': (None, "Lines 'class TAB name'. Default: the names of ILSVRC2012's classes."),
}
FOLDERS = {
    'train_directory': ('/tmp/', 'Training images, <class>/<file>. If empty, their shards are not built.'),
    'validation_directory': ('/tmp/', 'Validation images, <class>/<file>. If empty, their shards are not built.'),
    'output_directory': ('/tmp/', 'Folder of the shards.'),
}
VERIFY = {'verify': (False, 'Read all shards back and check them. A split that has a manifest is not built again.')}
log = files.say


def define_flags(
    strings: dict[str, tuple],
    booleans: dict[str, tuple],
    num_shards: tuple[int, int] = (1024, 128),
    num_threads: int | None = None,
    values: flags.FlagValues | None = None,
) -> flags.FlagValues:
    """Return a set of flags: `strings`, `booleans`, and the flags that decide the bytes of the shards.

    Args:
        strings, booleans: {name: (default, help)} of this program, or a table of this module.
        num_shards: Defaults of --train_shards and --validation_shards.
        num_threads: Default of --num_threads. None leaves the flag out.
        values: The set to extend; None makes a new one.
    """
    values = flags.FlagValues() if values is None else values
    values.set_gnu_getopt(True)  # flags may follow an argument
    define = Definer(values)
    for name, (default, text) in strings.items():
        define.string(name, default, text)
    if num_threads:
        define.integer('num_threads', num_threads, 'Number of processes.', lower=1, upper=1000)
    for name, default, kind in zip(('train', 'validation'), num_shards, ('training', 'validation'), strict=True):
        define.integer(f'{name}_shards', default, f'Number of files of {kind} images.', lower=1, upper=99999)
    define.integer('seed', 12345, 'Seed of the order of the images.', lower=0, upper=None)
    checks = ['structure', 'decode']
    define.enum('check', checks[0], checks, 'How to check images: by their markers, or by decoding them.')
    define.enum('on_broken', 'skip', ['skip', 'fail'], 'What to do with a broken image.')
    for name, (default, text) in booleans.items():
        define.boolean(name, default, text)
    return values


def options(values: flags.FlagValues, **more: Any) -> Options:
    """Return the Options that the flags and the other arguments describe."""
    return Options(seed=values.seed, check=values.check, on_broken=values.on_broken, **more)


def build_folders(values: flags.FlagValues, list_images: Callable[[str, str], ImageList], options: Options) -> int:
    """Build the shards of each split from list_images(split, folder), and verify them if asked; return the exit code.

    `values` has the flags FOLDERS and VERIFY.
    """
    code, output_dir = 0, os.path.expanduser(values.output_directory)
    for name in SPLITS:
        folder, num_shards = getattr(values, f'{name}_directory'), getattr(values, f'{name}_shards')
        if values.verify and os.path.exists(f'{output_dir}/{name}.manifest.json'):
            code |= verify(output_dir, name, log)
        elif folder:
            images = list_images(name, folder)
            shards.build(images, name, output_dir, num_shards, values.num_threads, options=options, log=log)
            code |= verify(output_dir, name, log) if values.verify else 0
    return code
