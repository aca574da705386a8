"""What must hold for any bytes and any server: read, refused in one line, or fetched whole."""

import contextlib
import gzip
import pathlib
import re
import struct
import tempfile
import threading

import download_test
import numpy as np
import pytest
from fixtures import ilsvrc
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from official_resnet.building import tars
from official_resnet.errors import UserError
from official_resnet.inputs import cifar, download, idx, images, jpeg, tfrecords

SEGMENTS = st.sampled_from([b'\xff\xfe\x00\x02', b'\xff\xfe\x00\x06\xff\xd9\xff\xd8', b'\xff\xe7\x00\x05abc', b'\xff'])
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 700), st.binary(max_size=600)), min_size=1, max_size=3
)  # (place, bytes to delete there, bytes to put there)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def edited(data, edits):
    """Return bytes after EDITS."""
    for place, deleted, inserted in edits:
        place %= len(data) + 1
        data = data[:place] + inserted + data[place + deleted :]
    return data


@contextlib.contextmanager
def files(*contents):
    """Write each of `contents` to a file of its own and give their paths."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f'file{i}') for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield paths


def refused(error, *paths):
    """Tell whether a UserError is one line that names a file and ends with a remedy."""
    text = str(error)
    return '\n' not in text and any(f"'{path}'" in text for path in paths) and re.search('; [a-z]', text)


# --- records -------------------------------------------------------------------------------------------------


@quick
@given(
    label_bytes=st.sampled_from([1, 2]),
    count=st.integers(0, 3),
    rest=st.binary(max_size=40),
    labels=st.lists(st.integers(0, 255), min_size=6, max_size=6),
    edits=st.none() | EDITS,
)
def test_any_bytes_are_cifar_records_or_refused(label_bytes, count, rest, labels, edits):
    size = label_bytes + cifar.IMAGE_BYTES
    data = b''.join(bytes(labels[2 * i : 2 * i + label_bytes]) + bytes(cifar.IMAGE_BYTES) for i in range(count)) + rest
    data = edited(data, edits) if edits else data
    with files(data) as [path]:
        try:
            images, found = cifar.read_cifar([path], label_bytes, num_classes=10)
        except UserError as error:
            assert refused(error, path)
            assert not data or len(data) % size or max(data[label_bytes - 1 :: size]) > 9
        else:
            assert images.shape == (len(data) // size, 32, 32, 3) and len(data) % size == 0
            assert found.tolist() == list(data[label_bytes - 1 :: size]) and found.max() <= 9
            np.testing.assert_array_equal(
                images.transpose(0, 3, 1, 2).reshape(len(images), -1),
                np.frombuffer(data, np.uint8).reshape(len(images), -1)[:, label_bytes:],
            )


@quick
@given(
    kind=st.sampled_from([8, 8, 8, 9, 0xFF]),
    num_dimensions=st.sampled_from([0, 1, 3, 3, 4]),
    packed=st.booleans(),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 28, 1 << 16, (1 << 32) - 1]), min_size=4, max_size=4),
    surplus=st.integers(-3, 3),
    rest=st.binary(max_size=8),
)
@example(8, 3, True, [2, 28, 28, 0], 0, b'')
@example(8, 3, True, [2, 28, 28, 0], 0, b'\0' * 8)
def test_any_idx_header_is_read_as_declared_or_refused(kind, num_dimensions, packed, shape, surplus, rest):
    """Also one that promises gigabytes, which takes no memory, and gzip files with something behind."""
    declared = shape[:num_dimensions]
    size = int(np.prod(declared, dtype=object)) if declared else 0
    data = struct.pack(f'>HBB{num_dimensions}I', 0, kind, num_dimensions, *declared)
    data += bytes(max(0, min(size + surplus, 1 << 16)))
    data = gzip.compress(data, mtime=0) + rest if packed else data
    labels = struct.pack('>HBBI', 0, 8, 1, 2) + b'\1\2'
    with files(data, labels) as paths:
        try:
            images, found = idx.read_idx(*paths)
        except UserError as error:
            assert refused(error, *paths)
            assert (kind, declared) != (8, [2, 28, 28]) or surplus or rest.strip(b'\0')
        else:
            assert (kind, declared, found.tolist()) == (8, [2, 28, 28], [1, 2]) and images.shape == (2, 28, 28, 1)


@quick
@given(contents=st.lists(st.binary(max_size=50), max_size=5))
def test_framed_records_come_back_in_either_way(contents):
    with files(b''.join(map(tfrecords.frame, contents))) as [path]:
        assert list(tfrecords.read(path)) == contents
        offsets = tfrecords.index(path).tolist()
        assert len(offsets) == len(contents) + 1 and offsets[-1] == path.stat().st_size
        with open(path, 'rb') as file:
            assert [
                tfrecords.read_at(file.fileno(), *bounds, path) for bounds in zip(offsets, offsets[1:], strict=False)
            ] == contents


@quick
@given(contents=st.lists(st.binary(max_size=50), min_size=1, max_size=5), edits=EDITS)
@example([b'x'], [(0, 12, struct.pack('<Q', 1 << 62) + tfrecords._masked_crc(struct.pack('<Q', 1 << 62)))])
def test_a_changed_tfrecord_file_gives_its_records_up_to_the_damage(contents, edits):
    """No record with a wrong checksum comes out, and none that was not written."""
    whole = b''.join(map(tfrecords.frame, contents))
    data = edited(whole, edits)
    with files(data) as [path]:
        found = []
        try:
            for record in tfrecords.read(path):
                found.append(record)
        except UserError as error:
            assert refused(error, path) and re.search(r'at byte \d+', str(error))
            assert data != whole
        else:
            assert b''.join(map(tfrecords.frame, found)) == data
        assert data.startswith(b''.join(map(tfrecords.frame, found)))
        try:
            offsets = tfrecords.index(path)
        except UserError as error:
            assert refused(error, path)
        else:
            assert offsets[-1] == len(data) and (np.diff(offsets) >= 16).all()


PICTURES = list(ilsvrc.sample().values())[:20]


@quick
@given(picture=st.sampled_from(PICTURES), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_jpeg_is_known_without_decoding(picture, share):
    data = picture[1]
    assert jpeg.inspect(data).is_whole
    with contextlib.suppress(ValueError):  # inside of the header
        info = jpeg.inspect(data[: int(share * (len(data) - 1))])
        assert not info.is_whole and info.problem
        with pytest.raises(ValueError, match=re.escape(info.problem)):
            images.to_rgb_jpeg(data[: int(share * (len(data) - 1))])


@quick
@given(picture=st.sampled_from(PICTURES), segments=st.lists(SEGMENTS, max_size=4), trailing=st.binary(max_size=20))
def test_segments_that_say_nothing_change_nothing(picture, segments, trailing):
    """Comments, even with markers inside, private segments, fill bytes, and what stands behind the end."""
    data = picture[1]
    more = data[:2] + b''.join(segments) + data[2:] + trailing
    assert jpeg.inspect(more) == jpeg.inspect(data)


# --- tar files -------------------------------------------------------------------------------------------------


SYNSETS = ('n01440764', 'n01443537')
NAMES = st.from_regex(r'[a-zA-Z0-9_ é]{1,60}', fullmatch=True).map('{}.JPEG'.format)


@quick
@given(
    pictures=st.tuples(*[st.dictionaries(NAMES, st.binary(max_size=1200), min_size=1, max_size=4)] * 2),
    tar_format=st.sampled_from([0, 1, 2]),
)
def test_pictures_in_a_tar_of_tars_are_found_where_they_are(pictures, tar_format):
    inner = {
        f'{synset}.tar': ilsvrc.tar_bytes(named, tar_format) for synset, named in zip(SYNSETS, pictures, strict=True)
    }
    with files(ilsvrc.tar_bytes(inner, tar_format)) as [path]:
        found = tars.index('train', path, SYNSETS, log=lambda line: None)
        assert {(found.synset(i), found.basename(i)): found.read_bytes(i) for i in range(len(found))} == {
            (synset, name): data
            for synset, named in zip(SYNSETS, pictures, strict=True)
            for name, data in named.items()
        }


TAR = ilsvrc.tar_bytes(
    {
        f'{synset}.tar': ilsvrc.tar_bytes({f'{synset}_{i}.JPEG': bytes([i]) * 700 for i in range(3)})
        for synset in SYNSETS
    }
)


@settings(quick, max_examples=150)
@given(edits=EDITS, aligned=st.booleans())
def test_a_changed_tar_is_indexed_or_refused(edits, aligned):
    """Never anything else: no picture beyond the end of the file, no exception but ours."""
    if aligned:  # a header that is gone or another: the likelier damage of a header
        edits = [(place // 512 * 512, deleted // 512 * 512, inserted) for place, deleted, inserted in edits]
    data = edited(TAR, edits)
    with files(data) as [path]:
        try:
            found = tars.index('train', path, SYNSETS, log=lambda line: None)
        except UserError as error:
            assert refused(error, path), error
        else:
            assert (found.rows['offset'] + found.rows['size'] <= len(data)).all()
            assert all(len(found.read_bytes(i)) == found.rows[i]['size'] for i in range(len(found)))


# --- download ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def server():
    """The server of download_test, for many downloads."""
    server = download_test.http.server.ThreadingHTTPServer(('127.0.0.1', 0), download_test.Handler)
    server.may_close = threading.Event()
    server.may_close.set()
    server.url = f'http://127.0.0.1:{server.server_port}/{download_test.NAME}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, 'RETRY_SECONDS', 0)
        patch.setenv('no_proxy', '127.0.0.1')
        yield server
    server.shutdown()
    thread.join()
    server.server_close()


GOOD, SIZE = download_test.GOOD, len(download_test.GOOD)
PLACES = st.integers(0, SIZE) | st.sampled_from([0, 1, SIZE - 1, SIZE])


@quick
@given(
    offset=PLACES,
    is_right=st.booleans(),
    surplus=st.sampled_from([0, 0, 1, 5000]),
    knows_range=st.booleans(),
    cuts=st.lists(PLACES, max_size=5),
    knows_size=st.booleans(),
    status=st.sampled_from([None, None, 404, 503]),
)
@example(SIZE, True, 0, True, [], False, None)
@example(SIZE, True, 1, True, [], True, None)
def test_a_download_ends_whole_however_often_it_is_cut(
    server, offset, is_right, surplus, knows_range, cuts, knows_size, status
):
    """From any .part, right or wrong: what stands under the final name is whole, and failures keep or drop the part.

    As many calls as the server cuts responses, and two, are enough: one may end with a wrong part that is removed.
    """
    server.ranges, server.cuts, server.knows_range, server.status = [], list(cuts), knows_range, status
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'archive')
        part = pathlib.Path(folder, 'archive.part')
        begun = (GOOD[:offset] if is_right else bytes(offset)) + b'x' * surplus
        part.write_bytes(begun)
        for _ in range(len(cuts) + 3):
            try:
                download.fetch(server.url, path, SIZE if knows_size else None, download_test.MD5)
                break
            except UserError as error:
                assert '\n' not in str(error) and '--archive' in str(error) and not path.exists()
                if status:  # which is not asked where the part is whole
                    assert f'answers {status}' in str(error) or 'was removed' in str(error)
                    server.status = status = None
        assert path.read_bytes() == GOOD and not part.exists()


@quick
@example(size=0, md5='0' * 32, knows_size=True)
@given(size=st.integers(0, 2 * SIZE), md5=st.from_regex('[0-9a-f]{32}', fullmatch=True), knows_size=st.booleans())
def test_a_file_of_another_size_or_sum_gets_no_name(server, size, md5, knows_size):
    server.ranges, server.cuts, server.knows_range, server.status = [], [], True, None
    size = size if size != SIZE and knows_size else None
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UserError, match='instead of') as caught:
        download.fetch(server.url, pathlib.Path(folder, 'archive'), size, md5)
    assert '\n' not in str(caught.value) and '--archive' in str(caught.value)
    assert not pathlib.Path(folder).exists()


@settings(quick, max_examples=100)
@given(edits=EDITS)
def test_a_changed_archive_is_unpacked_whole_or_not_at_all(edits):
    data = edited(GOOD, edits)
    row = download.Archive('', SIZE, '', {name: len(content) for name, content in download_test.FILES.items()})
    with files(data) as [path], pytest.MonkeyPatch.context() as patch:
        patch.setitem(download.ARCHIVES, 'cifar10', row)
        folder = path.parent / 'data'
        folder.mkdir()
        try:
            download.extract(path, folder, 'cifar10')
        except UserError as error:
            assert refused(str(error).replace(': ', '; '), path) and list(folder.iterdir()) == []
        else:
            assert {
                name: (folder / download_test.FOLDER / name).read_bytes() for name in row.files
            } == download_test.FILES
