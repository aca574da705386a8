"""How far a long task is: tqdm's bar on a terminal, elsewhere one of its lines from time to time."""

import sys
import types
from collections.abc import Callable

from tqdm import tqdm

Log = Callable[[str], object]  # what takes a line for the user
SECONDS = 30  # between two lines where there is no terminal


class Progress(tqdm):
    """A bar or lines of `log`. `update(n)` and `set_postfix_str(text, refresh=False)` as tqdm has them.

    Args:
        what: the task, in a word or two.
        done: how many of the total were done before.
        unit: of the total: ' images', or 'B', which is printed with k, M, G.
    """

    def __init__(self, what: str, total: int, log: Log, done: int = 0, unit: str = ' images'):
        self._log = log
        if sys.stderr.isatty():
            where = {'file': sys.stderr, 'dynamic_ncols': True}
        else:  # a stream that hands what is written to it to the log, line by line
            file = types.SimpleNamespace(write=self._write, flush=lambda: None)
            where = {'file': file, 'leave': False, 'ncols': 0, 'mininterval': SECONDS, 'delay': SECONDS}
        super().__init__(desc=what, total=total, initial=done, unit=unit, unit_scale=unit == 'B', miniters=1, **where)

    def update_to(self, place: int, postfix: str = '') -> None:
        """Count up to a place, and show a text behind it."""
        self.set_postfix_str(postfix, refresh=False)
        self.update(place - self.n)

    def log(self, line: str) -> None:
        """Give a line to `log`, beside the bar."""
        self.clear()
        self._log(line)

    def _write(self, text):
        if text.strip():
            self._log(text.strip())
