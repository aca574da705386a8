"""Run a program: parse its arguments, call it, print one line for an error, return the exit code."""

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from official_resnet import files
from official_resnet.errors import UserError

if TYPE_CHECKING:
    from official_resnet.command_line.flags import Program

HELP = {'-h', '--help', '--helpshort', '--helpfull'}


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

    The exit code is 0 for --help, 130 for Ctrl-C and 143 for SIGTERM. A wrong flag, a UserError, an OSError and too
    little memory print one line instead of a traceback and give 1. If `argv` is sys.argv, SIGTERM is handled, and both
    signals end the process at once, without destroying what the work made, for which TensorFlow needs many seconds.

    Args:
        argv: The arguments, with the program's name first.
        doc, row: The first part of --help, and the `Program` that describes a training program, whose --help groups
            the flags. --helpfull shows all flags in absl's format.
        values, body: The flags, and the function to call with them.
        takes_arguments: Whether arguments may follow the flags; then body(values, arguments) is called.
    """
    name, is_process = os.path.basename(argv[0]).removesuffix('.py'), argv is sys.argv
    if is_process and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from official_resnet.command_line import closed_streams

        closed_streams.replace()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may have bytes that are not text, and a pipe shall not wait
        sys.stdout.reconfigure(errors='backslashreplace', line_buffering=True)
    try:
        with _printed_log():
            code = _run(argv, doc, values, body, row, takes_arguments)
            sys.stdout.flush()  # whose errors would be a traceback after the end
            return code
    except BaseException as error:
        from official_resnet.command_line import failures

        return failures.ended(name, error, is_process, values)


def _terminate(number, frame):
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise KeyboardInterrupt('SIGTERM')  # which, like that of Ctrl-C, nobody takes for a damaged file


def _run(argv, doc, values, body, row, takes_arguments):
    """Print the help, or parse argv and call the body; return the exit code."""
    if HELP.intersection(argv[1:]):
        from official_resnet.command_line import usage

        with reader_may_leave():
            print(usage.help_of(argv, doc, values, row))
        return 0
    try:
        if any('flagfile' in argument for argument in argv):
            from official_resnet.command_line import usage

            argv = usage.with_flag_files(argv, values)
        extra = values(argv)[1:]
        if extra and not takes_arguments:
            raise flags.Error(f'unexpected argument {extra[0]!r}')
    except (flags.Error, ValueError, RecursionError) as error:
        from official_resnet.command_line import usage

        raise UserError(f'{usage.fault(error, values)} (--help lists the flags)') from None
    return (body(values, extra) if takes_arguments else body(values)) or 0


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let the reader of the output, for example `head`, close it early without an error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        from official_resnet.command_line import failures

        failures.drop_output()


class _Printer(logging.Handler):
    """Print what the library logs."""

    def emit(self, record) -> None:
        files.say(self.format(record))


@contextlib.contextmanager
def _printed_log():
    logger, printer = logging.getLogger('official_resnet'), _Printer(logging.INFO)
    before = logger.level, logger.propagate
    logger.level, logger.propagate = logging.INFO, False
    logger.addHandler(printer)
    try:
        yield
    finally:
        logger.removeHandler(printer)
        logger.level, logger.propagate = before
