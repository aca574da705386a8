"""building.boxes handles every irregularity of the official XML files, from a folder and from a tar stream."""

import collections
import contextlib
import gzip
import tracemalloc

import numpy as np
import pytest
from fixtures import data_commands, ilsvrc
from fixtures.any_bytes import edited, quick
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet.building import boxes
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n02092002', 'n02105855')
OWN = SYNSETS[0]
INSIDE = (0.1, 0.1, 0.5, 0.5)


@pytest.fixture(scope='module')
def layout(tmp_path_factory):
    return ilsvrc.make(tmp_path_factory.mktemp('ilsvrc'))


@pytest.mark.parametrize(
    'objects,expected',
    [
        ([(OWN, 50, 40, 250, 200), (OWN, 0, 0, 500, 400)], [INSIDE, (0, 0, 1, 1)]),
        ([(OWN, 250, 40, 50, 200), (OWN, 50, 200, 250, 40)], [INSIDE, INSIDE]),  # exchanged corners
        ([(OWN, -7, -1, 501, 1000), (OWN, 50, 40, 250, 200)], [(0, 0, 1, 1), INSIDE]),  # moved to the edge
        ([(OWN, 600, 10, 700, 20), (OWN, 10, 50, 90, 50), (OWN, 0, 0, 0, 0)], []),  # nothing of them is inside
    ],
)
def test_parse(objects, expected):
    """The file of the fixture has the other irregularities."""
    counts = collections.Counter()
    assert boxes.parse(ilsvrc.xml(objects=objects), OWN, SYNSETS, counts) == expected
    assert counts['empty boxes'] == len(objects) - len(expected)


@pytest.mark.parametrize(
    'data,pattern',
    [
        (b'<annotation><size>', 'not XML'),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', 'not XML'),
        (b'<a/>', 'size/width .*None'),
        (ilsvrc.xml((0, 400)), '0 x 400'),
        (ilsvrc.xml(('nan', 400)), "width .*'nan'"),
        (
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a SYSTEM "file:///x"><a/>'.encode('utf-16'),
            'document type',
        ),
    ],
)
def test_broken_xml_is_a_value_error(data, pattern):
    with pytest.raises(ValueError, match=pattern):
        boxes.parse(data, OWN, None, collections.Counter())


@settings(quick, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 2), st.binary(max_size=2)), min_size=1, max_size=4))
def test_a_changed_xml_is_a_value_error_or_boxes(edits):
    with contextlib.suppress(ValueError):
        data = edited(ilsvrc.xml(objects=[(OWN, 50, 40, 250, 200)]), edits)
        found = boxes.parse(data, OWN, SYNSETS, collections.Counter())
        assert all(0 <= low < high <= 1 for box in found for low, high in (box[::2], box[1::2]))


def test_tar_stream_and_folder_give_the_same(layout, tmp_path):
    path = layout.folder / ilsvrc.BOXES
    lines, told = boxes.read_xml(path, layout.synsets)
    assert b''.join(line + b'\n' for line in lines) == layout.csv and lines == sorted(lines) and len(lines) >= 16
    for part in (f'{len(lines)} boxes', '1 files of unlisted', '4 boxes of another', '4 empty', '1 broken'):
        assert part in told[0]
    assert len(told) == 2 and f'{layout.synsets[0]}/{layout.synsets[0]}_900.xml' in told[1]
    plain, files = tmp_path / 'plain.tar', dict(boxes.tar_files(path))
    ilsvrc.write_tar(plain, {f'./annotations/{name}': data for name, data in files.items()})
    data_commands.write_files(tmp_path, files)
    assert boxes.read_xml(tmp_path, layout.synsets) == (lines, told)
    assert boxes.read_xml(plain, layout.synsets)[0] == lines
    every = boxes.read_xml(path)[0]  # without a list, all classes and all boxes are taken
    assert len(every) == len(lines) + 1 + 4 and any(line.startswith(ilsvrc.OTHER_SYNSET.encode()) for line in every)


@pytest.mark.parametrize(
    'spoil,pattern',
    [
        (lambda whole: whole[:-100], 'gzip'),
        (lambda whole: whole[:-8] + b'\0' * 8, 'CRC'),
        (lambda whole: gzip.decompress(whole)[:5000], "cut off: .*'n.*xml', byte"),
        (lambda whole: ilsvrc.tar_bytes({'a/readme.txt': b'x'}, mode='w:gz'), 'no <synset>/<image>.xml'),
    ],
)
def test_broken_inputs(layout, tmp_path, spoil, pattern):
    path = tmp_path / 'boxes.tar.gz'
    path.write_bytes(spoil((layout.folder / ilsvrc.BOXES).read_bytes()))
    with pytest.raises(UserError, match=pattern) as error:
        boxes.read_xml(path, layout.synsets)
    assert '\n' not in str(error.value)


def test_links_that_lead_back_are_followed_once(tmp_path):
    folder = tmp_path / 'n01440764'
    folder.mkdir()
    (folder / 'a.xml').write_bytes(ilsvrc.xml())
    (folder / 'n02085620').symlink_to(tmp_path)
    assert '1 XML files' in boxes.read_xml(tmp_path)[1][0]


def test_a_huge_xml_is_broken_not_read(tmp_path):
    path = tmp_path / 'boxes.tar'
    ilsvrc.write_tar(path, {'n01440764/a.xml': b' ' * (2 << 20), 'n01440764/b.xml': ilsvrc.xml()})
    told = boxes.read_xml(path)[1]
    assert len(told) == 2 and 'n01440764/a.xml' in told[1] and '1048576' in told[1]


def test_a_name_that_no_csv_can_hold_is_left_out(tmp_path):
    path, good = tmp_path / 'boxes.tar', ilsvrc.xml(objects=[(OWN, 50, 40, 250, 200)])
    names = ('a', 'b,1', 'c\n0', 'd\udc92', 'é')
    ilsvrc.write_tar(path, {f'{OWN}/{name}.xml': good for name in names})
    lines, told = boxes.read_xml(path)
    assert [line.decode().partition('.')[0] for line in lines] == ['a', 'é']
    assert '3 broken' in told[0] and len(told) == 4 and all(line.isprintable() for line in told)


def test_the_command_writes_the_csv(layout, tmp_path, capfdbinary):
    with_words = tmp_path / 'synsets.txt'  # the class is the first word of a line
    with_words.write_text(''.join(f'{synset}\tsome, words\n' for synset in layout.synsets))
    arguments = ['bounding_boxes.py', str(layout.folder / ilsvrc.BOXES), str(with_words)]
    assert data_commands.load('bounding_boxes').main(arguments) == 0
    out, err = capfdbinary.readouterr()
    assert out == layout.csv and b'1 files of unlisted' in err and b'Traceback' not in err


def test_memory_does_not_keep_tar_members(tmp_path):
    """tarfile keeps half a kB for each member it has passed, unless told otherwise."""
    ilsvrc.write_tar(tmp_path / 'a.tar', {f'n01440764/{k}.xml': b'' for k in range(2000)})
    tracemalloc.start()
    try:
        sizes = [tracemalloc.get_traced_memory()[0] for _ in boxes.tar_files(tmp_path / 'a.tar')]
    finally:
        tracemalloc.stop()
    assert len(sizes) == 2000 and sizes[-1] - sizes[100] < 100_000


def test_boxes_of_a_csv(tmp_path):
    (tmp_path / 'b.csv').write_text(
        'n2_1.JPEG,0.1,0.2,0.3,0.4\nn1_10.JPEG,0,0,1,1\nn1_1.JPEG,0.5,0.5,0.6,0.6\nn2_1.JPEG,0.0,0.1,0.2,0.3\n'
    )
    found = boxes.read_csv(tmp_path / 'b.csv')
    np.testing.assert_allclose(found.for_image('n2_1.JPEG'), [(0.1, 0.2, 0.3, 0.4), (0, 0.1, 0.2, 0.3)])
    assert found.for_image('n1_10.JPEG').tolist() == [[0, 0, 1, 1]] and len(found.for_image('n1_1.JPEG')) == 1
    for name in ('n1', '', 'n2_1.JPEGs', 'n1_10.JPEG and more'):
        assert found.for_image(name).shape == (0, 4)
    (tmp_path / 'b.csv').write_text('')
    assert boxes.read_csv(tmp_path / 'b.csv').for_image('n2_1.JPEG').shape == (0, 4)


def test_mistakes_in_boxes(tmp_path):
    """What is no CSV is in the table of wrong inputs."""
    path = tmp_path / 'b.csv'
    (tmp_path / 'b.csv.gz').write_bytes(gzip.compress(b'a,0,0,1,1\n'))  # which numpy would open in its place
    with pytest.raises(UserError, match="b.csv' cannot be read.*--bounding_box_file"):
        boxes.read_csv(path)
    for text, number in (('a,0,0,1,1\nb,0.5,0,0.4,1\n', 2), ('a,0,0,1,2\n', 1), ('a,nan,0,1,1\n', 1)):
        path.write_text(text)
        with pytest.raises(UserError, match=f"b.csv'.*line {number}.*--bounding_box_file"):
            boxes.read_csv(path)


def test_a_csv_is_made_again_if_it_is_not_what_was_written(layout, tmp_path):
    source, csv, lines = tmp_path / 'boxes', tmp_path / boxes.CSV, []
    (source / OWN).mkdir(parents=True)
    (source / OWN / f'{OWN}_1.xml').write_bytes(ilsvrc.xml(objects=[(OWN, 50, 40, 250, 200)]))

    def get():
        lines.clear()
        found = boxes.update_csv(source, tmp_path, SYNSETS, lines.append)
        return found.names.tolist(), found.coordinates.round(4).tolist(), bool(lines)

    good, data = (*get()[:2],), csv.read_bytes()
    assert get() == (*good, False)
    for size in range(len(data)):
        for changed in (data[:size], data[:size].ljust(len(data), b'\0')):
            csv.write_bytes(changed)
            assert get() == (*good, True) and csv.read_bytes() == data
