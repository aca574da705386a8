"""The most memory that something takes, watched from beside."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Callable


class Peak(contextlib.AbstractContextManager):
    """Calls a function every few milliseconds while the context lasts: `largest` is the most that it returned.

    Args:
        measure: returns bytes.
        seconds: between two calls.
    """

    def __init__(self, measure: Callable[[], int], seconds: float = 0.002):
        self._measure, self._seconds, self._is_done = measure, seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def grown(self) -> int:
        """Bytes that `largest` lies above the first value."""
        return self.largest - self._first

    def __enter__(self):
        self.largest = self._first = self._measure()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_done.set()
        self._thread.join()

    def _watch(self):
        while not self._is_done.wait(self._seconds):
            self.largest = max(self.largest, self._measure())


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def peak_bytes(process: int | str = 'self') -> int:
    """Return the most memory that a process has had, 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f'/proc/{process}/status').read_text().splitlines():
            if line.startswith('VmHWM'):
                return int(line.split()[1]) * 1024
    return 0


def largest_child() -> int:
    """Return peak_bytes of the largest child of this process; what they share (programs, rows) counts in each."""
    return max((peak_bytes(child) for path in _CHILDREN.glob('*/children') for child in _words(path)), default=0)


_CHILDREN = pathlib.Path('/proc/self/task')


def _words(path):
    with contextlib.suppress(OSError):  # of a thread that ended meanwhile
        return path.read_text().split()
    return []
