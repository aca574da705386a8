"""Write tables as CSV (RFC 4180) whose texts no spreadsheet runs as formulas: the one home of csv.writer."""

import csv
import io
import numbers
from collections.abc import Iterable
from typing import Any

_STARTS = ('=', '+', '-', '@', '\t', '\r', '\n')  # of a cell that a spreadsheet may run


def text(rows: Iterable[Iterable[Any]]) -> str:
    r"""Return rows as CSV, in which None is an empty cell. A text that begins like a formula gets an apostrophe.

    >>> text([['file', 'probability'], ['=1+1.png', -0.5], [None, 1]])
    "file,probability\r\n'=1+1.png,-0.5\r\n,1\r\n"
    """
    file = io.StringIO()
    csv.writer(file).writerows(map(_safe, row) for row in rows)
    return file.getvalue()


def mark(texts: Iterable[str]) -> str:
    """Return what must precede a table with these texts, so that Excel reads it as UTF-8: '' if all are ASCII."""
    return '' if all(text.isascii() for text in texts) else '\ufeff'


def file_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return `text` of all rows of a file, with its `mark`."""
    whole = text(rows)
    return mark([whole]) + whole


def _safe(cell):
    is_text = cell is not None and not isinstance(cell, numbers.Real)
    return f"'{cell}" if is_text and str(cell).startswith(_STARTS) else cell
