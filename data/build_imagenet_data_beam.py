"""Build the shards of ILSVRC2012 with Apache Beam, on one machine or a cluster.

    python data/build_imagenet_data_beam.py \\
        --train_tar=gs://BUCKET/ILSVRC2012_img_train.tar \\
        --validation_tar=gs://BUCKET/ILSVRC2012_img_val.tar \\
        --validation_labels_file=ILSVRC2012_devkit_t12.tar.gz \\
        --bounding_box_file=ILSVRC2012_bbox_train_v2.tar.gz \\
        --output_directory=gs://BUCKET/imagenet --runner=DataflowRunner \\
        --project=... --region=... --temp_location=gs://BUCKET/tmp

The shards have the same bytes as those of build_imagenet_data.py. Flags that are not listed below go to Beam. The tar
files and the output may be anywhere Beam can read and write (gs://, s3://, hdfs://, a folder). Each worker reads the
images of its shards inside the tar files. If the program is stopped, run the same command again: finished shards stay.
It needs `pip install '.[beam]'`; data/README.md describes clusters.
"""

import functools
import sys
from collections.abc import Sequence

try:
    from absl import flags

    from official_resnet import folders
    from official_resnet.building import boxes, job, labels, shards, tars
    from official_resnet.command_line import build_program, program
    from official_resnet.errors import UserError
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


class _Flags(flags.FlagValues):
    """The flags of this program. All other flags become arguments, for Beam."""

    def __call__(self, argv: Sequence[str], known_only: bool = True) -> list[str]:
        return super().__call__(argv, known_only=True)


STRINGS = {
    'train_tar': (None, 'Path of ILSVRC2012_img_train.tar.'),
    'validation_tar': (None, 'Path of ILSVRC2012_img_val.tar.'),
    'validation_labels_file': (None, f'Path of {", ".join(labels.FILES[:-1])} or {labels.FILES[-1]}.'),
    'bounding_box_file': (None, 'ILSVRC2012_bbox_train_v2.tar.gz, or a CSV from bounding_boxes.py. Default: no boxes.'),
    'output_directory': (None, 'Folder of the shards.'),
    **build_program.LISTS,
}


def define_flags() -> flags.FlagValues:
    """Return the flags of this program."""
    booleans = {'allow_partial': (False, 'Accept tar files that lack classes or images.')}
    return build_program.define_flags(STRINGS, booleans, values=_Flags())


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run, takes_arguments=True)


def _run(values, arguments):
    lacks_one, argument = bool(values.validation_tar) != bool(values.validation_labels_file), [*arguments, '-'][0]
    for is_wrong, message in (
        (not values.output_directory, '--output_directory= is empty; pass the folder of the shards'),
        (not (values.train_tar or values.validation_tar), 'pass --train_tar, --validation_tar or both'),
        (lacks_one, '--validation_tar and --validation_labels_file need each other; pass both or neither'),
        (not argument.startswith('-'), f"unexpected argument '{argument}'; --help lists the flags"),
    ):
        if is_wrong:
            raise UserError(message)
    for name in ('output_directory', 'train_tar', 'validation_tar'):
        folders.require_no_pattern(values[name].value or '', f'--{name}=', 'Beam')
    try:
        from official_resnet.building import beam
    except ImportError:
        raise UserError(
            "apache_beam is not installed; run `pip install '.[beam]'` in the folder of the repository, or "
            'use build_imagenet_data.py, which does not need it'
        ) from None
    synsets, texts = labels.read_classes(values.labels_file or None), labels.read_texts(values.metadata_file or None)
    log = build_program.log
    with folders.temporary() as temp_dir:
        for name in build_program.SPLITS:
            tar, found, order = getattr(values, f'{name}_tar'), boxes.NO_BOXES, []
            if not tar:
                continue
            if name == 'validation':
                order = labels.read_validation(beam.to_local(values.validation_labels_file, str(temp_dir)))
            elif values.bounding_box_file:
                path = beam.to_local(values.bounding_box_file, str(temp_dir))
                is_csv = path.endswith('.csv')
                found = boxes.read_csv(path) if is_csv else boxes.update_csv(path, temp_dir, synsets, log)
            options = build_program.options(values, texts=texts, boxes=found)
            made = beam.BeamJob(values.output_directory, name, getattr(values, f'{name}_shards'))
            images = tars.kept_index(made, job.absolute(tar), synsets, order, values.allow_partial, log)
            write = functools.partial(beam.write_shards, made, arguments)
            shards.complete(made, images, options, write, log)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
