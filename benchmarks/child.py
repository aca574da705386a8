"""Processes that measure: how one is started, asked and ended, and with -m, what one of them does.

    python -m benchmarks.child benchmarks.scaling_measures:measure_net '["resnet50_v1.5"]'

calls that function and prints its result as a line of JSON. If the result is a function, null is printed instead, and
then what the function returns for each line of the standard input, a JSON list of its arguments. In between the process
sleeps in a read, so that whatever else is measured has the machine for itself.
"""

import contextlib
import ctypes
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from typing import Any

from official_resnet.errors import UserError


class Child(contextlib.AbstractContextManager):
    """A process that calls a function; it ends with this one, or at the end of a `with`.

    Args:
        function: 'module:name'; see this module's documentation.
        arguments: JSON.
        cores: that the process may use; None for those of this one.
        environment: more variables for it.
    """

    def __init__(self, function: str, *arguments, cores: Collection[int] | None = None, **environment: str):
        self.command = ['-m', 'benchmarks.child', function, json.dumps(arguments)]
        self.errors = tempfile.TemporaryFile('w+')  # not a pipe, which blocks when nobody reads it
        self.process = subprocess.Popen(
            [sys.executable, *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '2'} | environment,
        )
        if cores:
            os.sched_setaffinity(self.process.pid, cores)  # before it has imported anything that starts threads

    def answer(self, timeout: float | None = None) -> Any:
        """Wait for the next result, at most `timeout` seconds, and return it.

        Raises:
            UserError: the process ended, with its last words, or took too long.
        """
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise UserError(f'python {" ".join(self.command)}: no end after {timeout} s')
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().strip().splitlines() or ['no message']
        raise UserError(f'python {" ".join(self.command)} ended: {words[-1]}')

    def tell(self, *arguments) -> None:
        """Have it call the function that its function returned; `answer` has the result."""
        self.process.stdin.write(f'{json.dumps(arguments)}\n')
        self.process.stdin.flush()

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def main() -> None:
    """Be such a process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the process that started this one
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what else is printed is no answer

    def reply(value):
        print(json.dumps(value), file=answers, flush=True)

    try:
        result = pkgutil.resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))
        reply(None if callable(result) else result)
        for line in sys.stdin if callable(result) else ():
            reply(result(*json.loads(line)))
    except UserError as error:
        sys.exit(str(error))
    sys.stdout.flush()
    os._exit(0)  # what TensorFlow does for the end of a worker takes it many seconds


if __name__ == '__main__':
    main()
