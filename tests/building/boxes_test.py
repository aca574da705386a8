"""building.boxes: every oddity of the official XML files, from a folder and from a tar stream."""

import collections
import gzip
import io
import random
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
from fixtures import data_commands, ilsvrc

from official_resnet.building import boxes
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n02092002', 'n02105855')
SCRIPT = data_commands.FOLDER / 'bounding_boxes.py'


@pytest.fixture(scope='module')
def layout(tmp_path_factory):
    return ilsvrc.make(tmp_path_factory.mktemp('ilsvrc'))


def parse(*objects, size=(500, 400), synset=SYNSETS[0], synsets=SYNSETS, counts=None):
    return boxes.parse(ilsvrc.xml(size, objects), synset, synsets, collections.Counter() if counts is None else counts)


def test_a_plain_box():
    assert parse((SYNSETS[0], 50, 40, 250, 200)) == [(0.1, 0.1, 0.5, 0.5)]
    assert parse((SYNSETS[0], 50, 40, 250, 200), (SYNSETS[0], 0, 0, 500, 400)) == [(0.1, 0.1, 0.5, 0.5), (0, 0, 1, 1)]
    assert parse() == []


@pytest.mark.parametrize('corners', [(250, 200, 50, 40), (250, 40, 50, 200), (50, 200, 250, 40)])
def test_exchanged_corners_are_put_right(corners):
    assert parse((SYNSETS[0], *corners)) == [(0.1, 0.1, 0.5, 0.5)]


def test_corners_outside_are_moved_to_the_edge():
    assert parse((SYNSETS[0], -7, -1, 501, 1000)) == [(0, 0, 1, 1)]
    counts = collections.Counter()
    assert parse((SYNSETS[0], 600, 10, 700, 20), counts=counts) == []  # wholly outside: nothing is left
    assert counts['empty boxes'] == 1


@pytest.mark.parametrize('corners', [(10, 10, 10, 50), (10, 50, 90, 50), (0, 0, 0, 0)])
def test_empty_boxes_are_left_out(corners):
    counts = collections.Counter()
    assert parse((SYNSETS[0], *corners), counts=counts) == [] and counts['empty boxes'] == 1


def test_boxes_of_other_classes():
    counts = collections.Counter()
    assert len(parse(('Scottish_deerhound', 1, 1, 9, 9), synset=SYNSETS[1], counts=counts)) == 1
    assert len(parse(('n00000001', 1, 1, 9, 9), counts=counts)) == 1  # of no listed synset
    assert parse((SYNSETS[1], 1, 1, 9, 9), counts=counts) == [] and counts['other boxes'] == 1
    assert len(parse((SYNSETS[1], 1, 1, 9, 9), synsets=None, counts=counts)) == 1


@pytest.mark.parametrize(
    'data,message',
    [
        (b'', 'no XML'),
        (b'<annotation><size>', 'no XML'),
        (b'\xff\xfe\x00garbage', 'no XML'),
        (b'<a/>', 'size/width is None'),
        (ilsvrc.xml((0, 400)), 'size 0 x 400'),
        (ilsvrc.xml(('nan', 400)), "width is 'nan'"),
        (ilsvrc.xml(objects=[('n1', 'x', 1, 2, 3)]), "bndbox/xmin is 'x'"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', 'document type'),
        (
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'.encode('utf-16'),
            'document type',
        ),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', 'no XML'),
    ],
)
def test_broken_xml_is_a_value_error(data, message):
    with pytest.raises(ValueError, match=message):
        boxes.parse(data, SYNSETS[0], None, collections.Counter())


def test_random_bytes_are_a_value_error_or_boxes():
    whole, generator = ilsvrc.xml(objects=[(SYNSETS[0], 50, 40, 250, 200)]), random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            found = boxes.parse(bytes(data), SYNSETS[0], SYNSETS, collections.Counter())
        except ValueError:
            continue
        assert all(0 <= low < high <= 1 for box in found for low, high in (box[::2], box[1::2]))


def test_tar_stream_and_folder_give_the_same(layout, tmp_path):
    path = layout.folder / ilsvrc.BOXES
    lines, told = boxes.read_xml(path, layout.synsets)
    assert b''.join(line + b'\n' for line in lines) == layout.csv and lines == sorted(lines) and len(lines) >= 16
    num_images = len({line.split(b',')[0] for line in lines})
    assert told[0].startswith(f'{len(lines)} boxes of {num_images} images from ')
    assert told[0].endswith('1 files of unlisted synsets, 4 boxes of another synset, 4 empty boxes, 1 broken files')
    assert len(told) == 2 and f'{layout.synsets[0]}/{layout.synsets[0]}_900.xml' in told[1]
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter='data')
    assert boxes.read_xml(tmp_path, layout.synsets) == (lines, told)
    plain = tmp_path / 'plain.tar'
    with tarfile.open(path) as tar, tarfile.open(plain, 'w') as copy:
        for member in tar:
            member.name, data = f'./annotations/{member.name}', tar.extractfile(member)
            copy.addfile(member, data)
    assert boxes.read_xml(plain, layout.synsets)[0] == lines


def test_write_is_atomic_and_says_what_it_did(layout, tmp_path):
    lines = []
    found = boxes.update_csv(layout.folder / ilsvrc.BOXES, tmp_path, layout.synsets, lines.append)
    assert (tmp_path / boxes.CSV).read_bytes() == layout.csv and len(found.names) == layout.csv.count(b'\n')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.boxes.json', boxes.CSV]
    assert 'left out: 1 files of unlisted synsets, 4 boxes of another synset, 4 empty' in lines[1]
    assert '_900.xml' in lines[2]


@pytest.mark.parametrize(
    'case,message',
    [
        ('missing', 'does not exist; pass ILSVRC2012_bbox'),
        ('cut off', 'cut off or damaged gzip file'),
        ('crc', 'CRC'),
        ('garbage', 'no tar file'),
        ('empty', 'no tar file'),
        ('half', "cut off: .* member 'n.*xml', byte"),
        ('no xml', 'has no <synset>'),
        ('folder', 'has no <synset>'),
    ],
)
def test_broken_inputs(layout, tmp_path, case, message):
    path, whole = tmp_path / 'boxes.tar.gz', (layout.folder / ilsvrc.BOXES).read_bytes()
    if case == 'folder':
        path.mkdir()
    elif case != 'missing':
        path.write_bytes(
            {
                'cut off': whole[:-100],
                'crc': whole[:-8] + b'\0' * 8,
                'garbage': b'<html>' * 300,
                'empty': b'',
                'half': gzip.decompress(whole)[:5000],
                'no xml': ilsvrc.tar_bytes({'a/readme.txt': b'x'}, mode='w:gz'),
            }[case]
        )
    with pytest.raises(UserError, match=message) as error:
        boxes.read_xml(path, layout.synsets)
    assert '\n' not in str(error.value)


def test_a_huge_xml_is_broken_not_read(tmp_path):
    path = tmp_path / 'boxes.tar'
    ilsvrc.write_tar(path, {'n01440764/a.xml': b' ' * (2 << 20), 'n01440764/b.xml': ilsvrc.xml()})
    told = boxes.read_xml(path)[1]
    assert len(told) == 2 and 'n01440764/a.xml' in told[1] and 'more than' in told[1]


def run(*arguments, **options):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, **options)


def test_command(layout, tmp_path):
    done = run(layout.folder / ilsvrc.BOXES, layout.folder / 'imagenet_lsvrc_2015_synsets.txt')
    assert done.returncode == 0 and done.stdout == layout.csv
    assert b'1 files of unlisted' in done.stderr and b'Traceback' not in done.stderr
    for arguments, word in (([], b'SYNSETS'), (['a', 'b', 'c'], b"unexpected argument 'c'")):
        done = run(*arguments)
        assert done.returncode == 1 and word in done.stderr
    assert run('--help').returncode == 0
    for arguments in ([tmp_path / 'absent'], [layout.folder / ilsvrc.BOXES, tmp_path / 'absent']):
        done = run(*arguments)
        assert done.returncode == 1 and done.stdout == b'' and len(done.stderr.splitlines()) == 1


def test_without_synsets_all_are_taken(layout):
    lines = boxes.read_xml(layout.folder / ilsvrc.BOXES)[0]
    assert any(line.startswith(ilsvrc.OTHER_SYNSET.encode()) for line in lines)
    assert len(lines) == layout.csv.count(b'\n') + 1 + 4


def test_memory_does_not_keep_tar_members(tmp_path):
    """tarfile keeps the header of each member it has passed, half a kB, unless told otherwise."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for k in range(2000):
            tar.addfile(tarfile.TarInfo(f'n01440764/{k}.xml'))
    (tmp_path / 'a.tar').write_bytes(buffer.getvalue())
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
    np.testing.assert_allclose(found.of('n2_1.JPEG'), [(0.1, 0.2, 0.3, 0.4), (0, 0.1, 0.2, 0.3)])
    assert found.of('n1_10.JPEG').tolist() == [[0, 0, 1, 1]] and len(found.of('n1_1.JPEG')) == 1
    for name in ('n1', '', 'n2_1.JPEGs', 'n1_10.JPEG and more'):
        assert found.of(name).shape == (0, 4)
    (tmp_path / 'b.csv').write_text('')
    assert boxes.read_csv(tmp_path / 'b.csv').of('n2_1.JPEG').shape == (0, 4)


@pytest.mark.parametrize(
    'text,message',
    [
        ('a,0,0,1\n', 'columns'),
        ('a,0,0,1,x\n', "'x'"),
        ('a,0,0,1,1\nb,0.5,0,0.4,1\n', 'in line 2'),
        ('a,0,0,1,2\n', 'in line 1'),
        ('a,nan,0,1,1\n', 'in line 1'),
        (None, 'cannot be read'),
    ],
)
def test_mistakes_in_boxes(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'b.csv').write_text(text)
    with pytest.raises(UserError, match=message) as error:
        boxes.read_csv(tmp_path / 'b.csv')
    assert '\n' not in str(error.value)
