"""Let a program run even if its caller closed a standard stream, for example by `2>&-`."""

import os
import sys


def replace() -> None:
    """Open /dev/null in the place of each closed standard stream.

    Python makes its object None, and the next file that is opened, for example a checkpoint, would take its number,
    under which TensorFlow's C++ code prints.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: that of the stream
        os.set_inheritable(null, True)  # our own processes have it, too
        setattr(sys, name, open(null, 'w' if number else 'r', encoding='utf-8', errors='replace'))
