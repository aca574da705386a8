"""Show the progress of a long task: as tqdm's bar on a terminal, otherwise as a line every SECONDS."""

import sys
import types
from collections.abc import Callable

from tqdm import tqdm

Log = Callable[[str], object]  # takes a line for the user
SECONDS = 30  # between two lines if there is no terminal


class Progress(tqdm):
    """A bar, or lines for `log`, with tqdm's `update(n)` and `set_postfix_str(text, refresh=False)`.

    Args:
        task: The task, in a word or two.
        done: How much of the total was done before.
        unit: The unit of the total: ' images', or 'B', which is printed with k, M, G.
    """

    def __init__(self, task: str, total: int, log: Log, done: int = 0, unit: str = ' images'):
        self._log = log
        if sys.stderr.isatty():
            display = {'file': sys.stderr, 'dynamic_ncols': True}
        else:  # a stream that passes each line on to the log
            file = types.SimpleNamespace(write=self._write, flush=lambda: None)
            display = {'file': file, 'leave': False, 'ncols': 0, 'mininterval': SECONDS, 'delay': SECONDS}
        super().__init__(desc=task, total=total, initial=done, unit=unit, unit_scale=unit == 'B', miniters=1, **display)

    def update_to(self, place: int, postfix: str = '') -> None:
        """Advance to a position, and show a text after the bar."""
        self.set_postfix_str(postfix, refresh=False)
        self.update(place - self.n)

    def log(self, line: str) -> None:
        """Pass a line to `log` without spoiling the bar."""
        self.clear()
        self._log(line)

    def _write(self, text):
        if text.strip():
            self._log(text.strip())
