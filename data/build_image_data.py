"""Build TFRecord shards from your own images, with a folder for each class.

    python data/build_image_data.py --train_directory=pets/train \\
        --validation_directory=pets/validation --output_directory=shards

The program reads <train_directory>/<class>/<file> and <validation_directory>/<class>/<file>, and recognises JPEG, PNG,
GIF (the first frame), WebP and BMP by their bytes. labels_file has one class on each line; labels begin with 1, as 0 is
the background. The output is train-00000-of-00002 ..., validation-00000-of-00002 ... and manifests, which list the
images that were left out. If a build is stopped, run the same command again to continue.
"""

import functools
import os
import sys

try:
    from absl.flags import FlagValues

    from official_resnet import files
    from official_resnet.building import image_list, labels
    from official_resnet.command_line import build_program, program
    from official_resnet.errors import UserError
    from official_resnet.inputs import images
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def define_flags() -> FlagValues:
    """Return the flags of this program."""
    text = 'Classes, one on each line. Default: the folders of train_directory, or of validation_directory.'
    strings = {**build_program.FOLDERS, 'labels_file': ('', text)}
    return build_program.define_flags(strings, build_program.VERIFY, num_shards=(2, 2), num_threads=2)


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    @functools.cache  # called only if there is something to build
    def classes():
        if values.labels_file:
            return labels.read_classes(values.labels_file)
        root = os.path.expanduser(values.train_directory or values.validation_directory)
        try:
            found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        except OSError as error:
            remedy = files.advice(error, 'pass a folder that has one for each class')
            raise UserError(f"'{root}' cannot be read ({error.strerror}); {remedy}") from None
        names = [name for name in found if not name.startswith(('.', '__MACOSX'))]
        if not names:
            raise UserError(f"'{root}' has no folders; put the images of each class into a folder of their own")
        return names

    def list_images(name, folder):
        return image_list.from_folders(folder, classes(), images.SUFFIXES, is_complete=name == 'train')

    return build_program.build_folders(values, list_images, build_program.options(values, layout='folder'))


if __name__ == '__main__':
    sys.exit(main(sys.argv))
