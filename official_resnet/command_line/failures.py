"""The one line and the exit code of a program that an error of the system, SIGTERM or Ctrl-C ends."""

import contextlib
import errno
import os
import re
import sys
from typing import NoReturn

from absl import flags

from official_resnet import damage, files, remedies
from official_resnet.errors import Interrupted, UserError, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
_AGAIN = 'run the same command again'
_CONTINUING = re.compile(r'same command again(; it continues| to continue)')


def ended(name: str, error: BaseException, is_process: bool, values: flags.FlagValues) -> int:
    """Print a line about an exception that ends the program `name`; return its exit code. Raise one that is a bug.

    If the program is a process of its own (`is_process`), a signal ends that at once. `values` are the flags: with
    --clean, a message says to continue without it, because it would delete the run again.
    """
    if 'clean' in values and values['clean'].present and isinstance(error, UserError | Interrupted):
        error.args = (_CONTINUING.sub(r'same command without --clean\1', str(error)),)
    if isinstance(error, UserError):
        return fail(name, error)
    code = _reported(name, error)
    return end_now(code) if is_process and isinstance(error, (Interrupted, KeyboardInterrupt)) else code


def _reported(name, error):
    """Print a line about an exception that ends the program `name`; return its exit code. Raise any other exception."""
    if isinstance(error, Interrupted):
        with contextlib.suppress(OSError):  # nothing reads its output any more
            print(error, end='\n' if str(error) else '', flush=True)
        return 128 + error.signal_number
    if isinstance(error, KeyboardInterrupt):
        is_sigterm = error.args == ('SIGTERM',)  # see program._terminate
        fail(name, f'stopped{" by SIGTERM" * is_sigterm}; {_AGAIN}')
        return 143 if is_sigterm else 130
    if isinstance(error, BrokenPipeError):
        drop_output()
        return fail(name, f'stopped, because nothing reads its output any more; {_AGAIN}')
    if isinstance(error, OSError):
        what, otherwise = '', 'move that away' if error.errno == errno.ENXIO else 'fix that'  # see files.plain
        if remedies.of_output(error) or error.errno in _FULL and not error.filename:  # files have names
            error = OSError(error.errno, error.strerror)
            what = 'standard output cannot be written: '
            drop_output()
        return fail(name, f'{what}{error}; {files.advice(error, otherwise)} and {_AGAIN}')
    if isinstance(error, damage.out_of_memory()):
        reason = (str(error).splitlines() or ['none is free'])[0]
        return fail(name, f'out of memory ({reason}); use less, for example by a smaller --batch_size')
    raise error


def fail(name: str, text: object) -> int:
    """Print why the program `name` ends, and return its exit code."""
    with contextlib.suppress(OSError):  # standard error is full, too
        print(f'{name}: {one_line(text)}', file=sys.stderr)
    return 1


def end_now(code: int) -> NoReturn:
    """End this process without the destructors, for which TensorFlow needs many seconds."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    for name, module in sys.modules.copy().items():
        if name.startswith('__autograph_generated_file'):  # a file that TensorFlow deletes at a usual end
            with contextlib.suppress(OSError):
                os.unlink(str(module.__file__))
    os._exit(code)


def drop_output() -> None:
    """Redirect standard output, so that Python's final flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
