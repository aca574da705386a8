"""Build TFRecord shards from own images: a folder for each class.

    python data/build_image_data.py --train_directory=pets/train --validation_directory=pets/validation \\
        --output_directory=shards --labels_file=labels.txt

Reads <train_directory>/<class>/<file> and validation images in folders of the same names: JPEG, PNG, GIF (its first
frame), WebP and BMP, by their bytes, whatever they are called. labels_file has a class a line, the label of each is its
place, from 1; label 0 is kept for the background. Writes train-00000-of-00002 ..., validation-00000-of-00002 ... and a
manifest of each, which also names what was left out. A build that was stopped continues with the same command.
"""

import os
import sys

try:
    from official_resnet.building import image_list, labels
    from official_resnet.command_line import build_program, program
    from official_resnet.errors import UserError
    from official_resnet.inputs import images
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def define_flags():
    """Return the flags, in a set of their own."""
    return build_program.define_folder_flags(
        (2, 2),
        2,
        '',
        'Classes, one a line. Without it the folders in train_directory, or else validation_directory, by name.',
    )


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    classes = []

    def list_images(name, folder):
        if not classes:  # not before there is something to build
            classes.extend(
                labels.read_classes(os.path.expanduser(values.labels_file))
                if values.labels_file
                else _folders(values.train_directory or values.validation_directory)
            )
        return image_list.from_folders(folder, classes, images.SUFFIXES, is_complete=name == 'train')

    return build_program.build_folders(values, list_images, build_program.options(values, layout='folder'))


def _folders(root):
    """Return the names of the folders in a folder, sorted."""
    root = os.path.expanduser(root)
    try:
        with os.scandir(root) as entries:
            names = sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(('.', '__MACOSX'))
            )
    except OSError as error:
        raise UserError(
            f"'{root}' cannot be read ({error.strerror}); pass a folder that has one for each class"
        ) from None
    if not names:
        raise UserError(f"'{root}' has no folders; put the images of each class into one of its own")
    return names


if __name__ == '__main__':
    sys.exit(main(sys.argv))
