"""What hostile tar files can do to the readers of data sets, of boxes and of ImageNet's images: nothing but be refused.

Each row of the table is read by all three, with good members before it.
"""

import io
import tarfile
import time
import tracemalloc

import pytest
from fixtures import hostile_archives, ilsvrc
from fixtures.archives import FILES, FOLDER, MEMBERS

from official_resnet.building import boxes, tars
from official_resnet.errors import UserError
from official_resnet.inputs import archives, download

SYNSET = 'n01440764'


def members_of(files):
    """Return a tar file of {name: bytes} without its end."""
    data = ilsvrc.tar_bytes(files)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.getmembers()
        return data[: tar.offset]


def unpack(path):
    download.extract(path, path.parent, 'cifar10')
    return {name: (path.parent / FOLDER / name).read_bytes() for name in FILES}


def index(path):
    images = tars.index('train', path, [SYNSET], log=lambda line: None)
    return images.basename(0), images.read_bytes(0)


XML = ilsvrc.xml(objects=[(SYNSET, 50, 40, 250, 200)])
READERS = {  # (function, good members, what they come to, folder of some hostile ones, whether the tar is packed)
    'data set': (unpack, members_of(MEMBERS), FILES, FOLDER, True),
    'boxes': (
        lambda path: boxes.read_xml(path)[0][:1],
        members_of({f'{SYNSET}/a.xml': XML}),
        [b'a.JPEG,0.1000,0.1000,0.5000,0.5000'],
        SYNSET,
        True,
    ),
    'images': (
        index,
        members_of({f'{SYNSET}.tar': ilsvrc.tar_bytes({'a.JPEG': b'a'})}),
        ('a.JPEG', b'a'),
        SYNSET,
        False,
    ),
}


@pytest.fixture(autouse=True)
def tiny_archives(monkeypatch):
    row = download.Archive('http://127.0.0.1:1/x', 1, '', {name: len(data) for name, data in FILES.items()})
    monkeypatch.setitem(download.ARCHIVES, 'cifar10', row)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('what', hostile_archives.NAMES)
def test_a_hostile_tar_is_refused_or_does_not_matter(what, reader, tmp_path):
    """Within seconds, some MB of memory, and on the disk no more than the data set."""
    read, good, expected, folder, is_packed = READERS[reader]
    path = tmp_path / 'hostile.tar'
    hostile_archives.write(path, good, what, folder, is_packed)
    size, begin = path.stat().st_blocks * 512, time.monotonic()
    tracemalloc.start()
    try:
        assert read(path) == expected
    except UserError as error:
        text = str(error)
        assert str(path) in text and text.isprintable() and len(text) < 900, text
        assert list(tmp_path.iterdir()) == [path]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begin < 5 and peak < 20e6
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.rglob('*')) < size + 1e6


def test_is_tar():
    assert archives.is_tar(hostile_archives.header('x')) and archives.is_tar(ilsvrc.tar_bytes({'a': b''})[:512])
    for data in (b'', b'x', bytes(512), b'n01440764\n' * 60, hostile_archives.header('x')[:-1] + b'!'):
        assert not archives.is_tar(data[:512])
