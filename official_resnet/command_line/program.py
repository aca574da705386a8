"""A program from its arguments to its exit code: parse, run, one line for a mistake."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from official_resnet.errors import UserError, one_line

if TYPE_CHECKING:
    from official_resnet.command_line.flags import Program

_HELP = {'-h', '--help', '--helpshort', '--helpfull'}


def run_program(
    argv: Sequence[str],
    doc: str,
    values: flags.FlagValues,
    body: Callable[..., int | None],
    *,
    row: 'Program | None' = None,
    takes_arguments: bool = False,
) -> int:
    """Parse argv into `values` and call body(values); return the exit code.

    --help, a wrong flag, a UserError, an OSError and memory that is too small end without a traceback, with one line:
    0, 1, 1, 1 and 1. Ctrl-C gives 130.

    Args:
        argv: the program's name first.
        doc, row: the head of --help, and the row of a training program, whose --help groups the flags; --helpfull has
            all of them as absl shows them.
        values, body: the flags, and what the program does with them.
        takes_arguments: whether arguments may follow the flags; then body(values, arguments) is called.
    """
    name = os.path.basename(argv[0]).removesuffix('.py')
    with contextlib.suppress(AttributeError):  # of a stream that is no file: a path may have bytes that are no text
        sys.stdout.reconfigure(errors='backslashreplace')
    if _HELP.intersection(argv[1:]):
        with reader_may_leave():
            print(_help(argv, doc, values, row))
        return 0
    try:
        extra = values(argv)[1:]
        if extra and not takes_arguments:
            raise flags.Error(f'unexpected argument {extra[0]!r}')
    except flags.UnrecognizedFlagError as error:
        from official_resnet.command_line import usage

        return _fail(name, f'{usage.unknown(error.flagname, values)} (--help lists the flags)')
    except (flags.Error, ValueError) as error:  # the latter of --noflag=value, or a --flagfile that is no text
        return _fail(name, f'{error} (--help lists the flags)')
    except RecursionError:  # of absl, which looks for a name that is like it
        return _fail(name, 'a flag is unknown, with a name of a thousand characters (--help lists the flags)')
    try:
        return (body(values, extra) if takes_arguments else body(values)) or 0
    except UserError as error:
        return _fail(name, error)
    except BrokenPipeError:
        _drop_output()
        return _fail(name, 'nobody reads what it prints any more, so it stopped; run the same command again')
    except OSError as error:  # a disk that is full or goes away while a log is written
        return _fail(name, f'{error}; mend that and run the same command again')
    except _out_of_memory() as error:
        reason = (str(error).splitlines() or ['no more is free'])[0]
        return _fail(name, f'the memory is too small ({reason}); lower what takes it, as --batch_size')
    except KeyboardInterrupt:
        print(f'{name}: stopped; the same command continues', file=sys.stderr)
        return 130


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let whoever reads what the block prints, as `head`, have enough of it: that is no error, here or at the end."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()


def _fail(name, text):
    print(f'{name}: {one_line(text)}', file=sys.stderr)
    return 1


def _help(argv, doc, values, row):
    if '--helpfull' in argv:
        return f'{doc}\nflags:\n{values.get_help()}'
    from official_resnet.command_line import usage

    with contextlib.suppress(flags.Error, ValueError, RecursionError):  # wrong flags beside --help
        values([argument for argument in argv if argument not in _HELP])  # for --recipe
    return usage.text(doc, values, row)


def _drop_output():
    """Let Python's own flush at the end find a reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _out_of_memory():
    """Return the exceptions that say so; TensorFlow's if it is there."""
    tensorflow = sys.modules.get('tensorflow')
    return (MemoryError, *([tensorflow.errors.ResourceExhaustedError] if tensorflow else []))
