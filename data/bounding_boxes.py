"""Convert the boxes of ILSVRC2012's training images from XML files to one sorted CSV file.

    python data/bounding_boxes.py ILSVRC2012_bbox_train_v2.tar.gz SYNSETS \\
        > imagenet_2012_bounding_boxes.csv

The first argument is the tar file, which is read without unpacking it, or a folder <synset>/<image>.xml. The first word
of each line of the file SYNSETS is a class; without it, all classes are taken. A line of the result is
`name.JPEG,xmin,ymin,xmax,ymax`. Each number is a fraction of the image's size in the XML, with four decimals. The lines
are sorted by their bytes. A report of what was left out is printed to standard error.
"""

import sys

try:
    from absl import flags

    from official_resnet.building import boxes, labels
    from official_resnet.command_line import program
    from official_resnet.errors import UserError
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, flags.FlagValues(), _run, takes_arguments=True)


def _run(_, arguments):
    if not 1 <= len(arguments) <= 2:
        extra = f'unexpected argument {arguments[2]!r}; ' if arguments else ''
        raise UserError(f'{extra}pass the tar file or folder of boxes, and optionally SYNSETS')
    synsets = [line.split()[0] for line in labels.read_classes(arguments[1], 'SYNSETS')] if arguments[1:] else None
    lines, report = boxes.read_xml(arguments[0], synsets)
    with program.reader_may_leave():
        sys.stdout.buffer.writelines(line + b'\n' for line in lines)
    print(*report, sep='\n', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
