"""A program from its arguments to its exit code: parse, run, one line for a mistake."""

import contextlib
import math
import os
import sys

from absl import flags

from official_resnet.errors import UserError, one_line

MAX_INTEGER = 2**31 - 1  # of counts: TensorFlow keeps some in 32 bits
MAX_THREADS = 4096
MAX_LAYERS = 10_000
MAX_CLASSES = 1_000_000
MAX_IMAGE_SIZE = 4096  # pixels a side


def run_program(argv, doc, values, body):
    """Parse argv into `values` and call body(values); return the exit code.

    --help, a wrong flag, a UserError, an OSError and memory that is too small end without a traceback, with one line:
    0, 1, 1, 1 and 1. Ctrl-C gives 130.
    """
    name = os.path.basename(argv[0]).removesuffix('.py')
    with contextlib.suppress(AttributeError):  # of a stream that is no file: a path may have bytes that are no text
        sys.stdout.reconfigure(errors='backslashreplace')
    if {'-h', '--help', '--helpshort', '--helpfull'}.intersection(argv[1:]):
        print(f'{doc}\nflags:\n{values.get_help()}')
        return 0
    try:
        extra = values(argv)[1:]
        if extra:
            raise flags.Error(f'unexpected argument {extra[0]!r}')
    except (flags.Error, ValueError) as error:  # the latter of --noflag=value, or a --flagfile that is no text
        print(f'{name}: {one_line(error)} (--help lists the flags)', file=sys.stderr)
        return 1
    except RecursionError:  # of absl, which looks for a name that is like it
        print(
            f'{name}: a flag is unknown, with a name of a thousand characters (--help lists the flags)', file=sys.stderr
        )
        return 1
    try:
        return body(values) or 0
    except UserError as error:
        print(f'{name}: {one_line(error)}', file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full or goes away while a log is written
        print(f'{name}: {one_line(error)}; mend that and run the same command again', file=sys.stderr)
        return 1
    except _out_of_memory() as error:
        reason = (str(error).splitlines() or ['no more is free'])[0]
        print(
            f'{name}: the memory is too small ({one_line(reason)}); lower what takes it, as --batch_size',
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f'{name}: stopped; the same command continues', file=sys.stderr)
        return 130


def _out_of_memory():
    """Return the exceptions that say so; TensorFlow's if it is there."""
    tensorflow = sys.modules.get('tensorflow')
    return (MemoryError, *([tensorflow.errors.ResourceExhaustedError] if tensorflow else []))


class Number(flags.FloatParser):
    """A finite number within bounds: absl's own takes nan for one."""

    def convert(self, argument):
        number = super().convert(argument)
        if not math.isfinite(number):
            raise ValueError(f'{argument} is no finite number; pass one')
        return number


class Definer:
    """absl's DEFINE functions with the flag set filled in."""

    def __init__(self, values):
        self.values = values

    def string(self, name, default, text, short=None):
        flags.DEFINE_string(name, default, text, short_name=short, flag_values=self.values)

    def boolean(self, name, default, text, short=None):
        flags.DEFINE_boolean(name, default, text, short_name=short, flag_values=self.values)

    def enum(self, name, default, choices, text, short=None):
        flags.DEFINE_enum(name, default, choices, text, short_name=short, flag_values=self.values)

    def integer(self, name, default, text, short=None, lower=None, upper=MAX_INTEGER):
        flags.DEFINE_integer(name, default, text, lower, upper, short_name=short, flag_values=self.values)

    def number(self, name, default, text, short=None, lower=None, upper=None):
        flags.DEFINE(Number(lower, upper), name, default, text, short_name=short, flag_values=self.values)

    def numbers(self, name, default, text):
        flags.DEFINE(_NumberList(), name, default, text, flag_values=self.values)


class _NumberList(flags.ArgumentParser):
    """'91,136' -> (91.0, 136.0)."""

    def parse(self, argument):
        if isinstance(argument, tuple):
            return argument
        try:
            numbers = tuple(float(part) for part in argument.split(',') if part)
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f'{argument!r} is no comma list of numbers')
        return numbers

    def flag_type(self):
        return 'comma list of numbers'
