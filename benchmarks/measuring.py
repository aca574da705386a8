"""How the benchmarks measure: processes, started, asked and ended; their time and memory; the machine's name.

    python -m benchmarks.measuring benchmarks.scaling_measures:measure_net '["resnet50_v1.5"]'

calls that function and prints its result as a line of JSON. If the result is a function, null is printed instead, and
then what the function returns for each line of the standard input, a JSON list of its arguments. In between the process
sleeps in a read, so that whatever else is measured has the machine for itself.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pkgutil
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from official_resnet.errors import UserError
from official_resnet.training import devices


class Child(contextlib.AbstractContextManager):
    """A process that calls a function, 'module:name', as above, on some cores or all, with an environment of its own.

    It ends with this process, or at the end of a `with`.
    """

    def __init__(self, function: str, *arguments, cores: set[int] | list[int] | None = None, **environment: str):
        self.command = ['-m', 'benchmarks.measuring', function, json.dumps(arguments)]
        self.errors = tempfile.TemporaryFile('w+')  # not a pipe, which blocks when nobody reads it
        options = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': self.errors, 'text': True}
        self.process = subprocess.Popen([sys.executable, *self.command], env=os.environ | environment, **options)
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


def timed(function: Callable, *arguments) -> tuple[Any, float, float]:
    """Return (result of a call, its seconds by the clock, its seconds of the processor)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, time.perf_counter() - start, time.process_time() - cpu


def memory(field: str, process: int | str = 'self') -> int:
    """Return what a process has now ('VmRSS') or has had at most ('VmHWM'), in bytes; 0 once it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(rf'{field}:\s*(\d+) kB', pathlib.Path(f'/proc/{process}/status').read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def largest_child() -> int:
    """Return the peak memory of the largest child of this process, in bytes; what they share counts in each."""
    children = []
    for path in pathlib.Path('/proc/self/task').glob('*/children'):
        with contextlib.suppress(OSError):  # of a thread that ended meanwhile
            children += path.read_text().split()
    return max((memory('VmHWM', child) for child in children), default=0)


@contextlib.contextmanager
def sampled(measure: Callable[[], int] = lambda: memory('VmRSS'), seconds: float = 0.002) -> Iterator[list[int]]:
    """Yield a list of what a function returns, of the memory that this process has: now, and every so many seconds."""
    samples, is_done = [measure()], threading.Event()

    def watch():
        while not is_done.wait(seconds):
            samples.append(measure())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        is_done.set()
        thread.join()


def describe() -> str:
    """Return one line: CPU, cores, memory, versions."""
    names = filter(importlib.util.find_spec, ('tensorflow', 'keras', 'numpy', 'torch'))
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)
    gibibytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    cpu = f'{devices.cpu_model()}, {os.cpu_count()} cores, {gibibytes:.0f} GiB'
    return f'{cpu}; Python {sys.version.split()[0]}, {versions}'


def check_output(path: str | None) -> str:
    """Return the path in --output_json, '' without one; raise UserError if no file can be there."""
    path = os.path.expanduser(path or '')
    if path and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or '.')):
        raise UserError(f"output_json '{path}' is no file in a folder that is there; pass another")
    return path


def main() -> None:
    """Be the process of a Child."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the process that started this one
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # TensorFlow shall not speak before it fails
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what else is printed is no answer
    try:
        result = pkgutil.resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))
        print(json.dumps(None if callable(result) else result), file=answers, flush=True)
        for line in sys.stdin if callable(result) else ():
            print(json.dumps(result(*json.loads(line))), file=answers, flush=True)
    except UserError as error:
        sys.exit(str(error))
    sys.stdout.flush()
    os._exit(0)  # what TensorFlow does for the end of a worker takes it many seconds


if __name__ == '__main__':
    main()
