"""What the benchmarks ask of the machine: time, memory, its name; and the file that takes all figures."""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from official_resnet import files

if TYPE_CHECKING:
    from absl import flags


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
def sampled(measure: Callable[[], int], seconds: float = 0.002) -> Iterator[list[int]]:
    """Yield a list of what a function returns: at the start of the block, then every so many seconds until its end."""
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
    from official_resnet.training import devices

    versions = [
        f'{name} {importlib.metadata.version(name)}'
        for name in ('tensorflow', 'keras', 'numpy', 'torch')
        if importlib.util.find_spec(name)
    ]
    gibibytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return (
        f'{devices.cpu_model()}, {os.cpu_count()} cores, {gibibytes:.0f} GiB; Python {sys.version.split()[0]}, '
        f'{", ".join(versions)}'
    )


def define_output(values: 'flags.FlagValues') -> None:
    """Define --output_json, whose folder must exist."""
    from absl import flags

    full = os.path.expanduser
    flags.DEFINE_string('output_json', None, 'Also write every single figure there.', flag_values=values)
    flags.register_validator(
        'output_json',
        lambda path: not path or os.path.isdir(os.path.dirname(full(path)) or '.') and not os.path.isdir(full(path)),
        'is no file in a folder that is there; pass another',
        values,
    )


def write_output(values: 'flags.FlagValues', machine: str, **figures) -> None:
    """Write figures as JSON, with the flags and the machine they are of; without --output_json nothing."""
    if values.output_json:
        figures = {'flags': values.flag_values_dict(), 'machine': machine, **figures}
        files.write_json(os.path.expanduser(values.output_json), figures)
