"""Build TFRecord shards from your own images, with a folder for each class.

    python data/build_image_data.py --train_directory=pets/train \\
        --validation_directory=pets/validation --output_directory=shards

The program reads <train_directory>/<class>/<file> and <validation_directory>/<class>/<file>, and recognises JPEG, PNG,
GIF (the first frame), WebP, BMP and TIFF by their bytes. labels_file has one class on each line; labels begin with 1,
as 0 is the background. Both splits have the same classes, also if they are built by two commands, training first. The
output is train-00000-of-00002 ..., validation-00000-of-00002 ... and manifests, which list the images that were left
out. If a build is stopped, run the same command again to continue.
"""

import functools
import os
import sys

try:
    from absl.flags import FlagValues

    from official_resnet import files
    from official_resnet.building import image_list, labels
    from official_resnet.building.job import is_manifest
    from official_resnet.command_line import build_program, program
    from official_resnet.errors import UserError
    from official_resnet.inputs import classes
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def define_flags() -> FlagValues:
    """Return the flags of this program."""
    text = 'Classes, one on each line. Default: the folders of train_directory, or the classes of the training shards '
    text += 'that are in output_directory, or the folders of validation_directory.'
    strings = {**build_program.FOLDERS, 'labels_file': ('', text)}
    return build_program.define_flags(strings, build_program.VERIFY, num_shards=(2, 2), num_threads=2)


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def folders_of(root: str) -> list[str]:
    """Return the names of the classes of a folder of folders. Raise UserError if it cannot be read."""
    root = os.path.expanduser(root)
    try:
        return list(classes.folders(root))
    except OSError as error:
        remedy = files.advice(error, 'pass a folder that has one for each class')
        raise UserError(f"'{root}' cannot be read ({error.strerror}); {remedy}") from None


def _run(values):
    @functools.cache  # called only if there is something to build
    def class_names() -> list[str]:
        if values.labels_file:
            return labels.read_classes(values.labels_file)
        path = os.path.expanduser(f'{values.output_directory}/train.manifest.json')
        if not values.train_directory and os.path.lexists(path):
            if not is_manifest(built := files.read_json(path)):
                raise UserError(f"'{path}' is damaged; put it back, or build the training images again")
            return built['synsets'][1:]
        names = folders_of(values.train_directory or values.validation_directory)
        if not names:
            root = os.path.expanduser(values.train_directory or values.validation_directory)
            raise UserError(f"'{root}' has no folders; put the images of each class into a folder of their own")
        return names

    def list_images(name, folder) -> image_list.ImageList:
        unknown = [] if values.labels_file else [one for one in folders_of(folder) if one not in class_names()]
        if unknown:
            fault = f"--{name}_directory='{folder}' has {classes.listed(unknown)}, which the training images lack"
            remedy = f'rename or remove what is not a class of theirs, or pass --labels_file or --{name}_directory='
            raise UserError(f'{fault}; {remedy}')
        return image_list.from_folders(folder, class_names(), by_bytes=True, is_complete=name == 'train')

    return build_program.build_folders(values, list_images, build_program.options(values, layout='folder'))


if __name__ == '__main__':
    sys.exit(main(sys.argv))
