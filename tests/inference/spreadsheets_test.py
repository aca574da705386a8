"""CSV that a spreadsheet reads as texts and numbers."""

import csv
import io
import pathlib

import numpy as np
import pytest

from official_resnet.inference import spreadsheets


def test_numbers_stay_and_nothing_is_an_empty_cell():
    text = spreadsheets.text([['a, b', 'c'], [-0.5, None], [np.float32(-0.1), np.float64(-2)], ['', 'x=-1']])
    rows = list(csv.reader(io.StringIO(text, newline='')))
    assert rows == [['a, b', 'c'], ['-0.5', ''], ['-0.1', '-2.0'], ['', 'x=-1']]


@pytest.mark.parametrize('cell', ['=1+1', '+1', '-1+1', '@SUM(A1)', '\t=1', '\r=1', '\n=1'])
def test_a_text_is_no_formula(cell):
    """Nor is a path."""
    [row] = csv.reader(io.StringIO(spreadsheets.text([[cell, pathlib.Path(cell)]]), newline=''))
    assert row == [f"'{cell}"] * 2
