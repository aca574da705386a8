"""Boxes of ILSVRC2012's training images: XML files -> one sorted CSV file.

    python data/bounding_boxes.py ILSVRC2012_bbox_train_v2.tar.gz SYNSETS > imagenet_2012_bounding_boxes.csv

The first argument is the tar file, read as a stream without unpacking it, or a folder <synset>/<image>.xml. SYNSETS
is a list of classes, one a line; without it all are taken. A line of the result is `name.JPEG,xmin,ymin,xmax,ymax`,
each a fraction of the image's size in the XML, with four decimals; lines are in the order of their bytes. What was
left out is counted on standard error.
"""

import os
import sys

try:
    from official_resnet.building import boxes, labels
    from official_resnet.command_line import build_program, definer, program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def define_flags():
    """Return the flags, in a set of their own."""
    values = build_program.ArgumentFlags(
        {'boxes': 'pass the tar file or folder of boxes, and perhaps SYNSETS, a list of classes', 'synsets': ''}
    )
    define = definer.Definer(values)
    define.string('boxes', None, 'The first argument by name.')
    define.string('synsets', None, 'The second argument by name.')
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    synsets = labels.read_classes(values.synsets, 'synsets') if values.synsets else None
    lines, counts = boxes.read_xml(os.path.expanduser(values.boxes), synsets)
    try:
        sys.stdout.buffer.writelines(line + b'\n' for line in lines)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    for line in counts.lines():
        print(line, file=sys.stderr)


def run():
    """Run with the arguments of the command line and exit."""
    sys.exit(main(sys.argv))


if __name__ == '__main__':
    run()
