"""How the benchmarks measure: separate processes, their time and memory, and a description of the machine.

    python -m benchmarks.measuring benchmarks.scaling_measures:measure_net '["resnet50_v1.5"]'

calls that function and prints its result as a line of JSON. If the result is itself a function, it prints null, reads
lines of standard input, JSON lists of arguments, and prints for each what that function returns. Between the lines the
process waits, so that other measurements have the machine to themselves.
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
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

from official_resnet.errors import UserError
from official_resnet.training import devices


class Child(contextlib.AbstractContextManager):
    """A process that calls a function, 'module:name', as above. It may be limited to some cores.

    It ends with this process, or at the end of a `with`.
    """

    def __init__(self, function: str, *arguments: Any, cores: Iterable[int] | None = None, **environment: str):
        self.command = ['-m', 'benchmarks.measuring', function, json.dumps(arguments)]
        self.errors = tempfile.TemporaryFile('w+')  # not a pipe, which blocks when nobody reads it
        command, pipe, variables = [sys.executable, *self.command], subprocess.PIPE, os.environ | environment
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=variables)
        self.input, self.output = (cast(IO[str], end) for end in (self.process.stdin, self.process.stdout))
        if cores:
            os.sched_setaffinity(self.process.pid, cores)  # before it imports anything that starts threads

    def answer(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds for the next result and return it.

        Raises:
            UserError: The process ended, with the last line of its errors, or took too long.
        """
        if not select.select([self.output], [], [], timeout)[0]:
            raise UserError(f'python {" ".join(self.command)}: no result after {timeout} s')
        if line := self.output.readline():
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().strip().splitlines() or ['no message']
        raise UserError(f'python {" ".join(self.command)} ended: {words[-1]}')

    def tell(self, *arguments: Any) -> None:
        """Make the process call the function that its function returned; `answer` returns the result."""
        with contextlib.suppress(BrokenPipeError):  # it has ended; `answer` says why
            self.input.write(f'{json.dumps(arguments)}\n')
            self.input.flush()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def timed(function: Callable, *arguments: Any) -> tuple[Any, float, float]:
    """Return (result of a call, its wall-clock seconds, its CPU seconds)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, time.perf_counter() - start, time.process_time() - cpu


def memory(field: str, process: int | str = 'self') -> int:
    """Return the memory of a process in bytes, now ('VmRSS') or at its peak ('VmHWM'); 0 once it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(rf'{field}:\s*(\d+) kB', pathlib.Path(f'/proc/{process}/status').read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def largest_child() -> int:
    """Return the peak memory in bytes of the largest child of this process; shared memory counts in each child."""
    children = []
    for path in pathlib.Path('/proc/self/task').glob('*/children'):
        with contextlib.suppress(OSError):  # the thread has ended
            children += path.read_text().split()
    return max((memory('VmHWM', child) for child in children), default=0)


@contextlib.contextmanager
def sampled(measure: Callable[[], int] = lambda: memory('VmRSS'), seconds: float = 0.002) -> Iterator[list[int]]:
    """Yield a growing list of what a function returns every `seconds`; by default the memory of this process."""
    samples, is_done = [measure()], threading.Event()

    def watch() -> None:
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
    """Return one line with the CPU, cores, memory, versions and whether TensorFlow uses oneDNN in our processes."""
    names = filter(importlib.util.find_spec, ('tensorflow', 'keras', 'numpy', 'torch'))
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)
    gibibytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    cpu = f'{devices.cpu_model()}, {os.cpu_count()} cores, {gibibytes:.0f} GiB'
    onednn = f'TF_ENABLE_ONEDNN_OPTS={os.environ["TF_ENABLE_ONEDNN_OPTS"]}'  # set by importing official_resnet
    return f'{cpu}; Python {sys.version.split()[0]}, {versions}, {onednn}'


def check_output(path: str | None) -> str:
    """Return the path of --output_json, '' without one; raise UserError if a file cannot be written there."""
    path = os.path.expanduser(path or '')
    if path and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or '.')):
        raise UserError(f"output_json '{path}' is a folder, or its folder is missing; pass another --output_json")
    return path


def main() -> None:
    """Run as the process of a Child."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the process that started this one
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # so that TensorFlow prints nothing before an error
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # everything else that is printed goes to stderr
    try:
        result = pkgutil.resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))
        print(json.dumps(None if callable(result) else result), file=answers, flush=True)
        for line in sys.stdin if callable(result) else ():
            print(json.dumps(result(*json.loads(line))), file=answers, flush=True)
    except UserError as error:
        sys.exit(str(error))
    sys.stdout.flush()
    os._exit(0)  # TensorFlow needs many seconds to shut a worker down, and nothing is left to do


if __name__ == '__main__':
    main()
