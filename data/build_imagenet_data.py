"""Build ImageNet's TFRecord shards from folders of JPEGs.

    python data/build_imagenet_data.py --train_directory=raw-data/train --validation_directory=raw-data/validation \\
        --output_directory=DIR --bounding_box_file=raw-data/imagenet_2012_bounding_boxes.csv

Reads <train_directory>/<synset>/*.JPEG, and validation images in folders of the same names; writes
train-00000-of-01024 ..., validation-00000-of-00128 ... and a manifest of each, validation first. A build that was
stopped continues with the same command. data/download_and_preprocess_imagenet.py does it all, without unpacking.
"""

import os
import sys

try:
    from official_resnet.building import boxes, image_list, labels
    from official_resnet.command_line import build_program, definer, program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

SUFFIXES = ('.jpeg',)


def define_flags():
    """Return the flags, in a set of their own."""
    values = build_program.define_folder_flags(
        (1024, 128),
        8,
        'imagenet_lsvrc_2015_synsets.txt',
        'Synsets, one a line; the label of each is its place, from 1. '
        "If there is no file of the default's name, the 1000 of ILSVRC2012.",
    )
    define = definer.Definer(values)
    define.string(
        'imagenet_metadata_file',
        'imagenet_metadata.txt',
        "Lines 'synset TAB text'. If there is no file of the default's name, the texts of ILSVRC2012's synsets.",
    )
    define.string(
        'bounding_box_file',
        './imagenet_2012_bounding_boxes.csv',
        "Lines name.JPEG,xmin,ymin,xmax,ymax. If there is no file of the default's name, records have no boxes.",
    )
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    synsets = labels.read_classes(_given(values, 'labels_file'))
    texts = labels.read_texts(_given(values, 'imagenet_metadata_file'), 'imagenet_metadata_file')
    box_file = _given(values, 'bounding_box_file')
    if box_file is None:
        build_program.log(f"'{values.bounding_box_file}' is not there: records have no boxes")
    options = build_program.options(values, texts=texts, boxes=boxes.read_csv(box_file) if box_file else boxes.NO_BOXES)
    return build_program.build_folders(
        values, lambda name, folder: image_list.from_folders(folder, synsets, SUFFIXES), options
    )


def _given(values, name):
    """Return the path in a flag, None if it is the default and there is no such file."""
    path = os.path.expanduser(values[name].value)
    return path if values[name].present or os.path.exists(path) else None


if __name__ == '__main__':
    sys.exit(main(sys.argv))
