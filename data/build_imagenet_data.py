"""Build ImageNet's TFRecord shards from folders of JPEGs.

    python data/build_imagenet_data.py --train_directory=raw-data/train --validation_directory=raw-data/validation \\
        --output_directory=DIR --bounding_box_file=raw-data/imagenet_2012_bounding_boxes.csv

Reads <train_directory>/<synset>/*.JPEG, and validation pictures in folders of the same names; writes
train-00000-of-01024 ..., validation-00000-of-00128 ... and a manifest of each, validation first. A build that was
stopped continues with the same command. data/download_and_preprocess_imagenet.py does it all, without unpacking.
"""

import collections
import functools
import os
import pathlib
import sys

import pictures
import shards
from absl import flags

from official_resnet.command_line import program
from official_resnet.errors import UserError
from official_resnet.inputs import class_tables

SUFFIXES = ('.jpeg',)
LABELS_FILE, METADATA_FILE = 'imagenet_lsvrc_2015_synsets.txt', 'imagenet_metadata.txt'
BOUNDING_BOX_FILE = './imagenet_2012_bounding_boxes.csv'
_TABLE = pathlib.Path(class_tables.__file__).with_name('imagenet_labels.tsv')  # synset TAB name, by label
_log = functools.partial(print, flush=True)


def read_labels(path=None):
    """Return the classes of a file, one a line; without a path ILSVRC2012's 1000 synsets.

    Raises:
        UserError: it cannot be read, is empty, or has a class twice.
    """
    if path is None:
        return list(read_texts())
    labels = [line.strip() for line in _lines(path, 'labels_file')]
    labels = [label for label in labels if label]
    nul = next((label for label in labels if '\0' in label), None)  # which no folder's name can have
    if nul:
        raise UserError(f"labels_file '{path}' has a NUL byte in {nul[:40]!r}; write a class a line")
    if not labels:
        raise UserError(f"labels_file '{path}' is empty; write a class a line")
    label, count = collections.Counter(labels).most_common(1)[0]
    if count > 1:
        raise UserError(f"labels_file '{path}' has '{label}' {count} times; keep one of them")
    return labels


def read_texts(path=None):
    """Return {class: what people call it} of a file of lines 'class TAB text'; without a path ILSVRC2012's.

    Raises:
        UserError: it cannot be read, or a line has no tabulator.
    """
    texts = {}
    for number, line in enumerate(_lines(path or _TABLE, 'imagenet_metadata_file'), 1):
        synset, tab, text = line.rstrip('\r\n').partition('\t')
        if not tab and line.strip():
            raise UserError(
                f"imagenet_metadata_file '{path}' has no tabulator in line {number}; write 'class TAB text'"
            )
        if tab:
            texts[synset] = text
    return texts


def define_build_flags(values, train_shards, validation_shards, num_threads, labels_file, labels_text):
    """Define the flags of both programs that build shards from folders."""
    for name, default, text in (
        ('train_directory', '/tmp/', 'Training pictures, <class>/<file>; empty for none.'),
        ('validation_directory', '/tmp/', 'Validation pictures, <class>/<file>; empty for none.'),
        ('output_directory', '/tmp/', 'Where the shards go.'),
        ('labels_file', labels_file, labels_text),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, default, lower, upper, text in (
        ('train_shards', train_shards, 1, 99999, 'Files of training pictures.'),
        ('validation_shards', validation_shards, 1, 99999, 'Files of validation pictures.'),
        ('num_threads', num_threads, 1, 1000, 'Processes.'),
        ('seed', 12345, 0, None, 'Of the order of the pictures.'),
    ):
        flags.DEFINE_integer(name, default, text, lower, upper, flag_values=values)
    flags.DEFINE_enum(
        'check',
        'structure',
        ['structure', 'decode'],
        'How pictures are looked at: whole by their markers, or decoded.',
        flag_values=values,
    )
    flags.DEFINE_enum('on_broken', 'skip', ['skip', 'fail'], 'What to do about a broken picture.', flag_values=values)
    flags.DEFINE_boolean(
        'verify',
        False,
        'Read all shards back and compare; what has a manifest is not built, and needs no pictures.',
        flag_values=values,
    )


def build_splits(values, list_pictures, options):
    """Build the shards of validation, then train, and verify them if asked to; return the exit code.

    Args:
        values: the flags of define_build_flags.
        list_pictures: (name, folder) -> Pictures.
        options: name -> more arguments of shards.build.
    """
    code = 0
    output_dir = os.path.expanduser(values.output_directory)
    for name in ('validation', 'train'):
        folder = values[f'{name}_directory'].value
        if values.verify and os.path.exists(f'{output_dir}/{name}.manifest.json'):
            code |= shards.verify(output_dir, name, _log)
        elif folder:
            shards.build(
                list_pictures(name, folder),
                name,
                output_dir,
                values[f'{name}_shards'].value,
                values.num_threads,
                seed=values.seed,
                check=values.check,
                on_broken=values.on_broken,
                log=_log,
                **options(name),
            )
            code |= shards.verify(output_dir, name, _log) if values.verify else 0
    return code


def define_flags():
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    define_build_flags(
        values,
        1024,
        128,
        8,
        LABELS_FILE,
        'Synsets, one a line; the label of each is its place, from '
        "1. If there is no file of the default's name, the 1000 of ILSVRC2012.",
    )
    flags.DEFINE_string(
        'imagenet_metadata_file',
        METADATA_FILE,
        "Lines 'synset TAB text'. If there is no file of the default's name, the texts of ILSVRC2012's synsets.",
        flag_values=values,
    )
    flags.DEFINE_string(
        'bounding_box_file',
        BOUNDING_BOX_FILE,
        "Lines name.JPEG,xmin,ymin,xmax,ymax. If there is no file of the default's name, records have no boxes.",
        flag_values=values,
    )
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    synsets = read_labels(_given(values, 'labels_file'))
    texts = read_texts(_given(values, 'imagenet_metadata_file'))
    box_file = _given(values, 'bounding_box_file')
    if box_file is None:
        _log(f"'{values.bounding_box_file}' is not there: records have no boxes")
    boxes = shards.read_boxes(box_file) if box_file else None
    return build_splits(
        values,
        lambda name, folder: pictures.from_folders(folder, synsets, SUFFIXES),
        lambda name: {'texts': texts, 'boxes': boxes},
    )


def _given(values, name):
    """Return the path in a flag, None if it is the default and there is no such file."""
    path = os.path.expanduser(values[name].value)
    return path if values[name].present or os.path.exists(path) else None


def _lines(path, flag):
    try:
        with open(path, encoding='utf-8') as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not UTF-8'
        raise UserError(f"{flag} '{path}' cannot be read ({reason}); pass another") from None


if __name__ == '__main__':
    sys.exit(main(sys.argv))
