"""Build ImageNet's TFRecord shards from folders of JPEGs.

    python data/build_imagenet_data.py --train_directory=raw-data/train \\
        --validation_directory=raw-data/validation --output_directory=DIR \\
        --bounding_box_file=raw-data/imagenet_2012_bounding_boxes.csv

The program reads <train_directory>/<synset>/*.JPEG and <validation_directory>/<synset>/*.JPEG. It writes first
validation-00000-of-00128 ..., then train-00000-of-01024 ..., and a manifest for each split. If a build is stopped, run
the same command again to continue. data/download_and_preprocess_imagenet.py does everything without unpacking.
"""

import os
import sys

try:
    from absl.flags import FlagValues

    from official_resnet.building import boxes, image_list, labels
    from official_resnet.command_line import build_program, program
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


STRINGS = {
    **build_program.FOLDERS,
    'labels_file': ('imagenet_lsvrc_2015_synsets.txt', "Synsets, one on each line. If missing: ILSVRC2012's 1000."),
    'imagenet_metadata_file': ('imagenet_metadata.txt', "Lines 'synset TAB name'. If missing: ILSVRC2012's names."),
    'bounding_box_file': (
        './imagenet_2012_bounding_boxes.csv',
        'Lines name.JPEG,xmin,ymin,xmax,ymax. If the default file is missing, records have no boxes.',
    ),
}


def define_flags() -> FlagValues:
    """Return the flags of this program."""
    return build_program.define_flags(STRINGS, build_program.VERIFY, num_threads=8)


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    classes, texts, box_file = (  # None for an empty flag, and for a default file that is missing
        (values[name].present or os.path.exists(values[name].value)) and values[name].value or None
        for name in ('labels_file', 'imagenet_metadata_file', 'bounding_box_file')
    )
    synsets, texts = labels.read_classes(classes), labels.read_texts(texts, 'imagenet_metadata_file')
    if box_file is None:
        build_program.log(f"'{values.bounding_box_file}' is missing, so records have no boxes")
    found = boxes.NO_BOXES if box_file is None else boxes.read_csv(box_file)
    options = build_program.options(values, texts=texts, boxes=found)
    return build_program.build_folders(
        values, lambda name, folder: image_list.from_folders(folder, synsets, ('.jpeg',)), options
    )


if __name__ == '__main__':
    sys.exit(main(sys.argv))
