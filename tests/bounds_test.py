"""Each row of the table of bounds has a case here, which goes beyond the bound and is refused.

`@case('row')` adds a case: a function of (tmp_path, set_limit). `set_limit(row, value)` lowers a bound that is too
large for a test. A case of a row that is counted in seconds gets the marker `timed`.
"""

import struct
import tarfile

import pytest
from fixtures import ilsvrc
from fixtures.batches import message_of

from official_resnet import bounds
from official_resnet.building import boxes
from official_resnet.inputs import idx

CASES = {}


def case(name):
    def add(function):
        assert name not in CASES
        CASES[name] = function
        return function

    return add


@case('idx_bytes')
def _(tmp_path, set_limit):
    shape = 1, 1 << 15, (1 << 15) + 1
    (tmp_path / 'images').write_bytes(struct.pack('>HBB3I', 0, 8, 3, *shape))
    assert f'1..{1 << 30}' in message_of(idx.read_idx, tmp_path / 'images', tmp_path / 'labels')


@case('tar_header_bytes')
def _(tmp_path, set_limit):
    path = tmp_path / 'boxes.tar'
    path.write_bytes(ilsvrc.tar_bytes({'n01440764/' + 'a' * (1 << 20) + '.xml': ilsvrc.xml()}))
    assert f'a header of {(1 << 20) + 512} bytes' in message_of(list, boxes.tar_files(path))
    path.write_bytes(ilsvrc.tar_bytes({'n01440764/' + 'a' * 4000 + '.xml': ilsvrc.xml()}, tarfile.PAX_FORMAT))
    assert len(list(boxes.tar_files(path))) == 1


@case('xml_bytes')
def _(tmp_path, set_limit):
    path = tmp_path / 'boxes.tar'
    ilsvrc.write_tar(path, {f'n01440764/{n}.xml': ilsvrc.xml() + b' ' * n for n in (0, 1 << 20)})
    lines, report = boxes.read_xml(path)
    assert '1 XML files' in report[0] and report[1].count('1048576') == 2


def _mark(name):
    return pytest.param(name, marks=pytest.mark.timed if bounds.BOUNDS[name].unit == 'seconds' else ())


@pytest.mark.parametrize('name', map(_mark, CASES))
def test_what_goes_beyond_a_bound_is_refused(name, tmp_path, monkeypatch):
    def set_limit(name, value):
        monkeypatch.setitem(bounds.BOUNDS, name, bounds.BOUNDS[name]._replace(value=value))

    CASES[name](tmp_path, set_limit)


def test_each_row_has_a_case_and_says_what_and_why():
    assert CASES.keys() == bounds.BOUNDS.keys()
    for name, row in bounds.BOUNDS.items():
        assert row.value > 0 and row.unit and row.what and row.why, name


def test_require():
    bounds.require('xml_bytes', 1 << 20, "'x'", 'pass another')
    message = message_of(bounds.require, 'xml_bytes', (1 << 20) + 1, "'x'", 'pass another')
    assert message == "'x' has 1048577 bytes, more than the 1048576 that are read; pass another"
