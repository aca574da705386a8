"""Each row of the table of bounds has a case here, which goes beyond the bound and is refused.

`@case('row')` adds a case: a function of (tmp_path, set_limit). `set_limit(row, value)` lowers a bound that is too
large for a test. A case of a row that is counted in seconds gets the marker `timed`.
"""

import concurrent.futures
import contextlib
import gzip
import io
import itertools
import json
import os
import socket
import struct
import tarfile
import time
import zlib

import h5py
import numpy as np
import pytest
from absl import flags as absl_flags
from fixtures import foreign_files, hostile_servers, ilsvrc, torch_files
from fixtures.archives import tar_gz
from fixtures.batches import message_of
from fixtures.bound_cases import CASES, case
from PIL import Image

from checkpoints_tools import (
    from_caffe,
    from_keras_applications,
    from_tensorpack,
    h5_file,
    h5_listing,
    torch_file,
    torch_pickle,
)
from official_resnet import bounds, files
from official_resnet.building import boxes, downloads, image_list, labels, tars
from official_resnet.command_line import usage
from official_resnet.inputs import datasets, download, idx, image_folder, images, streamed, tfrecords, web
from official_resnet.inputs.views import Views
from official_resnet.training import meeting, workers
from official_resnet.weights import pretrained


@case('idx_bytes')
def _(tmp_path, set_limit):
    shape = 1, 1 << 15, (1 << 15) + 1
    (tmp_path / 'images').write_bytes(struct.pack('>HBB3I', 0, 8, 3, *shape))
    assert f'1..{1 << 30}' in message_of(idx.read_idx, tmp_path / 'images', tmp_path / 'labels')


def _sparse(path, size, begin=b''):
    """Write a file of this size that takes no place on the disk."""
    path.write_bytes(begin)
    os.truncate(path, size)
    return path


@case('image_bytes')
def _(tmp_path, set_limit):
    (tmp_path / 'a').mkdir()
    path = _sparse(tmp_path / 'a' / '1.png', (1 << 30) + 1, b'\x89PNG\r\n\x1a\n')
    message = f'{(1 << 30) + 1} bytes, more than the {1 << 30} '
    assert message in image_folder._fault_of(path)
    assert message in message_of(streamed.Files([path], [0]).read, [0])
    assert message in message_of(image_list.from_folders(tmp_path, ['a']).read_bytes, 0)


@case('record_bytes')
def _(tmp_path, set_limit):
    set_limit('record_bytes', 999)
    path = tmp_path / 'train-00000-of-00001'
    for size in (999, 1000):
        path.write_bytes(tfrecords.frame(b'x') + tfrecords.frame(bytes(size)))
        if size == 999:
            assert len(tfrecords.index(path)) == 3
    for read in (tfrecords.index, lambda path: list(tfrecords.read(path))):
        assert 'at byte 17 ' in (message := message_of(read, path)) and '1000 bytes, more than the 999 ' in message


@case('text_bytes')
def _(tmp_path, set_limit):
    path = _sparse(tmp_path / 'labels.txt', (1 << 28) + 1)
    assert f'{(1 << 28) + 1} bytes' in message_of(labels.read_classes, path)
    assert f'{(1 << 28) + 1} bytes' in message_of(files.read_text, path)
    assert files.read_json(path) is None


@case('flag_files')
def _(tmp_path, set_limit):
    for n in range(8):  # 2 + 4 + ... + 256
        (tmp_path / f'{n}').write_text(f'--flagfile={tmp_path}/{n + 1}\n' * 2)
    (tmp_path / '8').touch()
    for first, count in ((3, 62), (0, 101)):
        arguments = ['x', *[f'--flagfile={tmp_path}/{first + 1}'] * 2]
        if count == 62:
            usage.with_flag_files(arguments, absl_flags.FlagValues())
    assert '101 flag files' in message_of(usage.with_flag_files, arguments, absl_flags.FlagValues())


@case('pickle_bytes')
def _(tmp_path, set_limit):
    set_limit('pickle_bytes', 999)
    for size in (999, 1000):
        torch_files.write_zip_of(tmp_path / 'x.pth', torch_files.pickled('a' * (size - 8)), {})
        if size == 999:
            torch_pickle.load(tmp_path / 'x.pth')
    assert '1000 bytes, more than the 999 ' in message_of(torch_pickle.load, tmp_path / 'x.pth')
    (tmp_path / 'x.pth').write_bytes(torch_files.pickled('a' * 1000))
    assert 'damaged' in message_of(torch_pickle.load, tmp_path / 'x.pth')


@case('pickle_instructions')
def _(tmp_path, set_limit):
    set_limit('pickle_instructions', 99)
    for count in (97, 98):  # beside PROTO and STOP
        torch_files.write_zip_of(tmp_path / 'x.pth', b'\x80\2' + b'N' * count + b'.', {})
        if count == 97:
            torch_pickle.load(tmp_path / 'x.pth')
    assert 'more than 99 instructions' in message_of(torch_pickle.load, tmp_path / 'x.pth')


WEIGHTS = {'w': torch_pickle.Tensor(torch_pickle.Storage(np.dtype('f4'), '0', 1), 0, (1,), (1,))}


@case('pickle_dicts')
def _(tmp_path, set_limit):
    set_limit('pickle_dicts', 9)
    assert len([*torch_file._containers({f'{i}': dict(WEIGHTS) for i in range(9)})]) == 8  # the ninth is around them


@case('pickle_depth')
def _(tmp_path, set_limit):
    assert [*torch_file._containers({'a': {'b': {'c': {'d': WEIGHTS}}}})] == [('a.b.c.d.', WEIGHTS)]
    assert not [*torch_file._containers({'a': {'b': {'c': {'d': {'e': WEIGHTS}}}}})]


@case('torch_shards')
def _(tmp_path, set_limit):
    set_limit('torch_shards', 2)
    index = tmp_path / 'x.index.json'
    for count in (2, 3):
        for i in range(count):
            (tmp_path / f'{i}.bin').touch()
        index.write_text(json.dumps({'weight_map': {f'w{i}': f'{i}.bin' for i in range(count)}}))
        if count == 2:
            assert len(torch_file.list_files(index)) == 3
    assert '3 shards, more than the 2 ' in message_of(torch_file.list_files, index)


@case('caffe_fields')
def _(tmp_path, set_limit):
    set_limit('caffe_fields', 99)
    layer = foreign_files.caffe_file({'conv1/0': np.zeros(1, 'f4')})
    for count in (1, 100):
        (tmp_path / 'x.caffemodel').write_bytes(layer + b'\x08\1' * count)
        if count == 1:
            from_caffe.shapes(tmp_path / 'x.caffemodel')
    assert 'more than 99 fields' in message_of(from_caffe.shapes, tmp_path / 'x.caffemodel')


@case('npz_members')
def _(tmp_path, set_limit):
    set_limit('npz_members', 9)
    for count in (9, 10):
        np.savez(tmp_path / 'x.npz', **{f'w{i}': np.zeros(1, 'f4') for i in range(count)})
        if count == 9:
            from_tensorpack.shapes(tmp_path / 'x.npz')
    assert '10 arrays, more than the 9 ' in message_of(from_tensorpack.shapes, tmp_path / 'x.npz')


@case('npz_inflation')
def _(tmp_path, set_limit):
    for count, name in ((1 << 17, 'few'), (1 << 20, 'many')):  # and 1 MB for any file
        np.savez_compressed(tmp_path / name, w=np.zeros(count, 'f4'))
    from_tensorpack.shapes(tmp_path / 'few.npz')
    size = os.path.getsize(tmp_path / 'many.npz')
    assert f'more than the {8 * size + (1 << 20)} ' in message_of(from_tensorpack.shapes, tmp_path / 'many.npz')


def _listing(path, content):
    with h5py.File(path, 'w') as file:
        for name in content:
            file[name] = np.zeros(1)
    return h5_listing.listing(str(path), {name: row.value for name, row in bounds.BOUNDS.items()})


def _case_of_listing(name, fitting, refused):
    @case(name)
    def _(tmp_path, set_limit):
        set_limit('hdf5_objects', 20)
        _listing(tmp_path / 'x.h5', fitting)
        with pytest.raises(ValueError, match='20 objects, 12 groups in one another, or 200 characters'):
            _listing(tmp_path / 'x.h5', refused)


_case_of_listing('hdf5_objects', [*'abcdefghijklmnopqrst'], [*'abcdefghijklmnopqrstu'])
_case_of_listing('hdf5_depth', ['/'.join('abcdefghijkl')], ['/'.join('abcdefghijklm')])
_case_of_listing('hdf5_name', ['a' * 200], ['a' * 201])


@case('hdf5_memory')
def _(tmp_path, set_limit):
    set_limit('hdf5_memory', 1 << 20)  # less than the process has when it begins
    _listing(tmp_path / 'x.h5', ['a' * 200])
    with pytest.raises(ValueError, match='HDF5 ended with|memory'):
        h5_file._listing(tmp_path / 'x.h5')


@case('hdf5_seconds')
def _(tmp_path, set_limit):
    set_limit('hdf5_seconds', 1)
    path = tmp_path / 'net.h5'
    with h5py.File(path, 'w') as file:
        file['layers/conv2d/vars/0'] = np.zeros(2)
        file['layers/conv2d/vars'].attrs['name'] = 'conv1_conv'
        file['layers/dense/vars/0'] = np.zeros(10_000)
    data = bytearray(path.read_bytes())
    data[data.index(b'GCOL') + 9] = 0x43  # a heap of strings that is longer than it was, which makes HDF5 loop
    path.write_bytes(data)
    for read in (from_keras_applications.shapes, from_keras_applications.read):
        assert '1 s' in message_of(read, path)


@case('gzip_header_bytes')
def _(tmp_path, set_limit):
    data, path = tar_gz({'n01440764/a.xml': ilsvrc.xml()}), tmp_path / 'boxes.tar.gz'
    for length in (60_000, 400_000):
        named = data[:3] + b'\x08' + data[4:10] + b'n' * length + b'\0' + data[10:]  # without a name before
        for content in (named, gzip.compress(b'') + named):
            path.write_bytes(content)
            if length == 60_000:
                assert len(list(boxes.tar_files(path))) == 1
            else:
                assert 'a header of more than 65536 bytes' in message_of(list, boxes.tar_files(path))


@case('tar_header_bytes')
def _(tmp_path, set_limit):
    path = tmp_path / 'boxes.tar'
    path.write_bytes(ilsvrc.tar_bytes({'n01440764/' + 'a' * (1 << 20) + '.xml': ilsvrc.xml()}))
    assert 'a header of more than 1048576 bytes' in message_of(list, boxes.tar_files(path))
    path.write_bytes(ilsvrc.tar_bytes({'n01440764/' + 'a' * 4000 + '.xml': ilsvrc.xml()}, tarfile.PAX_FORMAT))
    assert len(list(boxes.tar_files(path))) == 1


def _chief(token='', seconds=20):
    """Start the chief of two workers; return a future of its message, and the addresses."""
    hosts = [f'127.0.0.1:{port}' for port in workers.free_ports(2)]
    pool = concurrent.futures.ThreadPoolExecutor(1)
    chief = pool.submit(message_of, meeting.meet, hosts, 0, token, seconds)
    pool.shutdown(wait=False)
    return chief, hosts


def _call(host):
    for _ in range(1000):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(meeting.split(host))
        time.sleep(0.01)
    raise AssertionError(host)


@case('meeting_bytes')
def _(tmp_path, set_limit):
    chief, hosts = _chief(seconds=2)
    line = meeting._line('', 'call', worker=1, of='host1:1 sum')
    with _call(hosts[0]) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(b' ' * ((1 << 16) + 1 - len(line)) + line)
        with pytest.raises(ConnectionError):
            one.recv(1)
    assert not chief.done()
    with _call(hosts[0]) as two:
        two.sendall(b' ' * ((1 << 16) - len(line)) + line)
        assert 'host1:1' in chief.result(10)


@case('meeting_callers')
def _(tmp_path, set_limit):
    chief, hosts = _chief(seconds=1)
    callers = [_call(hosts[0]) for _ in range(65)]
    callers[0].settimeout(5)
    callers[1].settimeout(0.1)
    with pytest.raises(ConnectionError):  # closed for the 65th
        callers[0].recv(1)
    with pytest.raises(TimeoutError):
        callers[1].recv(1)
    assert 'worker 1' in chief.result(10)


@case('meeting_seconds')
def _(tmp_path, set_limit):
    set_limit('meeting_seconds', 1)
    begin = time.monotonic()
    chief, hosts = _chief(seconds=None)
    with _call(hosts[0]) as one:
        while not chief.done():
            with contextlib.suppress(ConnectionError):
                one.sendall(b'a')
            time.sleep(0.1)
    assert 'worker 1' in chief.result() and time.monotonic() - begin < 2


def _download_error(steps, seconds):
    """Return what ends the reading of an answer, which must come within the seconds given."""
    begin = time.monotonic()
    with hostile_servers.serve(steps) as url, pytest.raises(ConnectionError) as caught:
        with contextlib.closing(web.Answer(url, {})) as answer:
            list(answer.chunks())
    assert time.monotonic() - begin < seconds
    return str(caught.value)


@case('download_bytes')
def _(tmp_path, set_limit):
    set_limit('download_bytes', 4999)
    for name in ('no length', 'a length', 'chunks'):
        with hostile_servers.serve(hostile_servers.RIGHT[name]) as url:
            assert ' 4999 ' in message_of(download.fetch, url, tmp_path / 'file')
    assert not list(tmp_path.iterdir())
    set_limit('download_bytes', 5000)
    with hostile_servers.serve(hostile_servers.RIGHT['no length']) as url:
        download.fetch(url, tmp_path / 'file')


@case('kit_bytes')
def _(tmp_path, set_limit):
    for limit in (4999, 5000):
        set_limit('kit_bytes', limit)
        for name in ('no length', 'a length'):
            with hostile_servers.serve(hostile_servers.RIGHT[name]) as url:
                args = downloads.Plan(tmp_path, {}, url), [downloads.DEVKIT], None, print
                if limit == 5000:
                    downloads._download(*args)
                else:
                    assert ' 4999 ' in message_of(downloads._download, *args) and not list(tmp_path.iterdir())


@case('noise_bytes')
def _(tmp_path, set_limit):
    assert 'bytes beside ' in _download_error(hostile_servers.WRONG['continue for ever'], 20)
    chunked = [hostile_servers.OK, b'Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n']
    assert 'bytes beside ' in _download_error([*chunked, (b'T: ' + b't' * 60_000 + b'\r\n', 0)], 20)
    assert ' bytes of the file' in _download_error(hostile_servers.WRONG['chunk extensions'], 20)


@case('least_speed')
def _(tmp_path, set_limit):
    set_limit('slow_seconds', 1)
    begin = [hostile_servers.OK, hostile_servers.length(3000), b'\r\n']
    assert 'less than 1000 bytes/s' in _download_error([*begin, (b'x' * 80, 0.1)], 3)
    with hostile_servers.serve([*begin, (b'x' * 200, 0.1)]) as url:
        assert len(b''.join(web.Answer(url, {}).chunks())) == 3000


@case('slow_seconds')
def _(tmp_path, set_limit):
    set_limit('slow_seconds', 1)
    for name in ('a drip', 'a drip of chunks', 'a header byte at times'):
        assert 'in 1 seconds, less than 1000 bytes/s' in _download_error(hostile_servers.WRONG[name], 2)


@case('silence_seconds')
def _(tmp_path, set_limit):
    set_limit('silence_seconds', 1)
    for name in ('a stop in the middle', 'nothing after the status'):
        assert 'timed out' in _download_error(hostile_servers.WRONG[name], 2)


@case('weights_bytes')
def _(tmp_path, set_limit):
    set_limit('weights_bytes', 4000)
    (tmp_path / 'a.tar.gz').write_bytes(tar_gz({'a.ckpt': bytes(5000)}))
    assert ' more than the 4000 ' in message_of(pretrained._unpack, tmp_path / 'a.tar.gz', tmp_path)
    assert not (tmp_path / 'a.ckpt').exists()


def _unpack(tmp_path, **members):
    path, row = tmp_path / 'x.tar.gz', download.Archive('', 1, '', {'a': 5000})
    path.write_bytes(tar_gz({'folder/a': bytes(5000), **members}))
    download._unpack(path, tmp_path / 'folder', row)


@case('archive_rest_bytes')
def _(tmp_path, set_limit):
    set_limit('archive_rest_bytes', 50_000)  # with headers, the end, and what pads a tar file
    assert 'beside the files of the data set, has ' in message_of(lambda: _unpack(tmp_path, b=bytes(50_000)))
    assert os.listdir(tmp_path / 'folder') == ['a']
    _unpack(tmp_path, b=bytes(30_000))


@case('archive_members')
def _(tmp_path, set_limit):
    assert 'has 1001 members' in message_of(lambda: _unpack(tmp_path, **{f'{n}': b'' for n in range(1000)}))
    _unpack(tmp_path, **{f'{n}': b'' for n in range(999)})


@case('tar_members')
def _(tmp_path, set_limit):
    set_limit('tar_members', 3)
    for count in (3, 4):
        ilsvrc.write_tar(tmp_path / 'boxes.tar', {f'n01440764/{n}.xml': ilsvrc.xml() for n in range(count)})
        if count == 3:
            boxes.read_xml(tmp_path / 'boxes.tar')
    assert 'has 4 members, more than the 3 ' in message_of(boxes.read_xml, tmp_path / 'boxes.tar')


@case('unpacked_bytes')
def _(tmp_path, set_limit):
    set_limit('unpacked_bytes', 20_000)
    path = tmp_path / 'boxes.tar.gz'
    for rest in (bytes(9000), b''):  # of the end, with its padding, and of a member
        data = gzip.decompress(tar_gz({'n01440764/a.xml': ilsvrc.xml() + b' ' * (5000 if rest else 20_000)}))
        path.write_bytes(gzip.compress(data + rest + bytes(2000)))
        assert 'more than the 20000 that are read' in message_of(boxes.read_xml, path)
    path.write_bytes(tar_gz({'n01440764/a.xml': ilsvrc.xml()}))
    boxes.read_xml(path)


@case('file_name_bytes')
def _(tmp_path, set_limit):
    for length in (255, 256):
        inner = ilsvrc.tar_bytes({'a' * (length - 5) + '.JPEG': b'x'})
        ilsvrc.write_tar(tmp_path / 'train.tar', {'n01440764.tar': inner})
        if length == 255:
            tars.index('train', tmp_path / 'train.tar', ['n01440764'])
    assert 'has 256 bytes' in message_of(tars.index, 'train', tmp_path / 'train.tar', ['n01440764'])


@case('xml_bytes')
def _(tmp_path, set_limit):
    path = tmp_path / 'boxes.tar'
    ilsvrc.write_tar(path, {f'n01440764/{n}.xml': ilsvrc.xml() + b' ' * n for n in (0, 1 << 20)})
    lines, report = boxes.read_xml(path)
    assert '1 XML files' in report[0] and report[1].count('1048576') == 2


@case('kit_file_bytes')
def _(tmp_path, set_limit):
    set_limit('kit_file_bytes', 1 << 21)
    for size, said in ((1 << 21, 'has neither'), ((1 << 21) + 1, f'has {(1 << 21) + 1} bytes')):
        ilsvrc.write_tar(tmp_path / 'kit.tar', {'kit/meta.mat': b'x' * size})
        assert said in message_of(labels.read_validation, tmp_path / 'kit.tar')


def _require_image_is_refused(tmp_path, width, height, text):
    """At every door, before a pixel is decoded: the file ends after its header."""
    header = struct.pack('>IIBBBBB', width, height, 16, 0, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + b'IHDR' + header
    data += struct.pack('>I', zlib.crc32(b'IHDR' + header)) + struct.pack('>I', 100_000_000) + b'IDAT'
    for split, label in itertools.product(('train', 'test'), 'ab'):
        (tmp_path / split / label).mkdir(parents=True)
        Image.new('RGB', (9, 9)).save(tmp_path / split / label / '1.png')
    path = tmp_path / 'train' / 'a' / '2.png'
    path.write_bytes(data)
    lines: list[str] = []
    image_folder.read(tmp_path, 'train', log=lines.append)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        split = datasets.open_split(f'folder:{tmp_path}', 'train', views=Views())
    assert split.num_images == 2 and f'{path} ({text}' in out.getvalue() and f'{path} ({text}' in ''.join(lines)
    for door in (images.to_rgb_jpeg, lambda data: images.decode(path, images.PREDICTION)):
        with pytest.raises(ValueError, match=text):
            door(data)
    assert text in message_of(streamed.Files([path], [0]).read, [0])


@case('image_pixels')
def _(tmp_path, set_limit):
    _require_image_is_refused(tmp_path, 13_300, 13_300, f'13300 x 13300 pixels are too many; at most {1 << 27} pixels')


@case('image_side')
def _(tmp_path, set_limit):
    _require_image_is_refused(tmp_path, 1, 65_536, '1 x 65536 pixels are too many; at most 65535 pixels a side')


def _mark(name):
    return pytest.param(name, marks=pytest.mark.timed if 'second' in bounds.BOUNDS[name].unit else ())


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
