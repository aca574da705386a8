"""Processes that measure: how one is started, asked and ended, and with -m, what one of them does.

    python -m benchmarks.child benchmarks.scaling_measures:measure_net '["resnet50_v1.5"]'

calls that function and prints its result as a line of JSON. If the result is a function, null is printed instead, and
then what the function returns for each line of the standard input, a JSON list of its arguments. In between the process
sleeps in a read, so that whatever else is measured has the machine for itself.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection
from typing import Any

from official_resnet.errors import UserError


class Child(contextlib.AbstractContextManager):
    """A process that calls a function; it ends with this one, with `close`, or at the end of a `with`.

    Args:
        name: what errors call it.
        function: of a module; see this module's documentation.
        arguments: JSON.
        cores: that the process may use; None for those of this one.
        environment: more variables for it.
    """

    def __init__(
        self, name: str, function: Callable, *arguments, cores: Collection[int] | None = None, **environment: str
    ):
        self.name, self.errors = name, tempfile.TemporaryFile('w+')  # not a pipe, which blocks when nobody reads it
        target = f'{function.__module__}:{function.__name__}'
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.child', target, json.dumps(arguments), json.dumps(sorted(cores or ()))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '2'} | environment,
        )

    def answer(self, timeout: float | None = None) -> Any:
        """Wait for the next result and return it; in seconds.

        Raises:
            UserError: the process ended, with its last words, or took too long.
        """
        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().strip().splitlines() or ['no message']
        late = f'no end after {timeout} s' if timeout and code == -signal.SIGKILL else ''
        raise UserError(f'the process of {self.name} ended: {late or words[-1]}')

    def tell(self, *arguments) -> None:
        """Have it call the function that its function returned; `answer` has the result."""
        self.process.stdin.write(f'{json.dumps(arguments)}\n')
        self.process.stdin.flush()

    def ask(self, *arguments) -> Any:
        """Return what the function that its function returned returns."""
        self.tell(*arguments)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def __exit__(self, *_):
        self.close()


def main() -> None:
    """Be such a process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the process that started this one
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what else is printed is no answer
    target, arguments, *cores = sys.argv[1:]
    if cores and json.loads(cores[0]):
        os.sched_setaffinity(0, json.loads(cores[0]))
    module, _, name = target.partition(':')

    def reply(value):
        print(json.dumps(value), file=answers, flush=True)

    try:
        result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
        reply(None if callable(result) else result)
        for line in sys.stdin if callable(result) else ():
            reply(result(*json.loads(line)))
    except UserError as error:
        sys.exit(str(error))
    sys.stdout.flush()
    os._exit(0)  # what TensorFlow does for the end of a worker takes it many seconds


if __name__ == '__main__':
    main()
