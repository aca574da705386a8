"""Remedies that follow the cause of an error, and the texts of a user."""

import contextlib
import errno
import json
import os
import signal
import socket

import pytest
from absl import flags as absl_flags
from fixtures.batches import message_of

from checkpoints_tools import convert
from official_resnet import checkpoints, damage, files
from official_resnet.building import boxes, image_list, labels
from official_resnet.command_line import usage
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, network_files
from official_resnet.inputs import archives, cifar, idx, images, shard_files, streamed, tfrecords

REMEDIES = {
    errno.EMFILE: 'ulimit -n',
    errno.ENFILE: 'close other programs',
    errno.EIO: 'check its disk',
    errno.ESTALE: 'mount',
    errno.EACCES: 'chmod',
    errno.ENOSPC: 'free some space',
}


def fail_with(code):
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize('code', REMEDIES, ids=errno.errorcode.get)
def test_the_remedy_follows_the_cause(code, tmp_path, monkeypatch):
    """Also of a checkpoint: one that cannot be read is not passed over for the one before, as a damaged one is."""
    for context in (files.read_errors('a', 'put it back'), files.write_errors("'a'", ' and run it again')):
        with pytest.raises(UserError) as error, context:
            fail_with(code)()
        said = str(error.value)
        assert "'a'" in said and os.strerror(code) in said and REMEDIES[code] in said
        assert 'put it back' not in said and 'make it writable' not in said
    for step in (1, 2):
        path = checkpoints.save(tmp_path, step, {}, {})
    for home, name, named in ((damage, 'read_arrays', path), (os, 'listdir', tmp_path)):
        monkeypatch.setattr(home, name, fail_with(code))
        said = message_of(checkpoints.restore_latest, tmp_path)
        assert f"'{named}'" in said and REMEDIES[code] in said and 'delete' not in said and 'damaged' not in said


@pytest.mark.parametrize('code,words', [(errno.ENOENT, 'does not exist'), (errno.ENOTDIR, 'does not exist')])
def test_what_is_missing_has_the_remedy_of_its_reader(code, words):
    with pytest.raises(UserError, match=f"'a' {words}; put it back"), files.read_errors('a', 'put it back'):
        fail_with(code)()


@pytest.mark.parametrize('code,kind', [(errno.EMFILE, OSError), (errno.EIO, OSError), (errno.EACCES, ValueError)])
def test_an_image_is_not_called_broken_if_no_file_can_be_opened(code, kind, monkeypatch):
    monkeypatch.setattr(images, 'open', fail_with(code), raising=False)
    with pytest.raises(kind, match=os.strerror(code)):
        images.decode('a.png', images.FOLDER, 'RGB')


def test_an_image_is_not_called_broken_if_no_memory_is_free(monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(images, 'open', fail, raising=False)
    with pytest.raises(MemoryError):
        images.decode('a.png', images.FOLDER, 'RGB')


def read_manifest(path):
    return shard_files.manifest_classes(path.parent, 'train')


def read_names(path):
    card = card_reader.Card(None, 2, ('a', 'b'), (None,) * 2, 'none', 3, (8, 8), (8, 8))
    return card_reader.with_names(card, path).names


TEXTS = [
    (files.read_json, '{"a": 1}', {'a': 1}),
    (labels.read_classes, 'cat\ndog\n', ['cat', 'dog']),
    (labels.read_texts, 'n1\tcat\n', {'n1': 'cat'}),
    (labels.read_validation, 'n01440764\n', ['n01440764']),
    (lambda path: boxes.read_csv(path).names.tolist(), 'a.JPEG,0,0,1,1\n', [b'a.JPEG']),
    (read_names, 'Katze\nHünd\n', ('Katze', 'Hünd')),
    (read_manifest, json.dumps({'synsets': ['', 'cat', 'dog']}), [('cat', 'cat'), ('dog', 'dog')]),
]


@pytest.mark.parametrize('read,text,expected', TEXTS)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_a_byte_order_mark_is_no_part_of_a_text(read, text, expected, encoding, tmp_path):
    path = tmp_path / 'train.manifest.json'
    path.write_text(text, encoding=encoding)
    assert read(path) == expected


@pytest.mark.parametrize('text', ['--size=3\n', '# a comment\n--size=3', '\n--size=3', '--flagfile={folder}/plain'])
def test_a_byte_order_mark_in_a_flagfile(text, tmp_path, capsys):
    (tmp_path / 'plain').write_text('--size=3')
    (tmp_path / 'flags').write_text(text.format(folder=tmp_path), encoding='utf-8-sig')
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_integer('size', 1, 'A number.', flag_values=values)
    assert run_program(['x.py', f'--flagfile={tmp_path}/flags'], '', values, lambda values: print(values.size)) == 0
    assert capsys.readouterr() == ('3\n', '')


@pytest.mark.parametrize('line', ['--flagfile={}', '  -flagfile={}', '--flagfile\n{}', '\ufeff--flagfile={}'])
def test_what_a_flagfile_names_is_a_plain_file_too(line, tmp_path):
    for name, inner, words in (
        ('a', tmp_path / 'fifo', f"'{tmp_path}/fifo' cannot be read (not a plain file)"),
        ('b', tmp_path / 'absent', f"'{tmp_path}/absent' does not exist"),
        ('c', tmp_path, 'Is a directory'),
        ('d', tmp_path / 'd', f'--flagfile={tmp_path}/d is in that file itself'),
    ):
        (tmp_path / name).write_text(line.format(inner))
        if name == 'a':
            os.mkfifo(inner)
        argv = ['x', '--flagfile', str(tmp_path / name)]
        assert words in message_of(usage.with_flag_files, argv, absl_flags.FlagValues())


def _doors():
    """Functions of a path, one for each way to open a file that a user names or puts into a folder."""
    return [
        files.read_bytes, files.read_text, archives.unpacked, checkpoints.read, image_list.open_unbuffered,
        lambda path: images.decode(path, images.FOLDER), lambda path: streamed.Files([path], [0]).read([0]),
        lambda path: images.content_of([path]), tfrecords.index, lambda path: cifar.read_cifar([path]),
        lambda path: idx.read_idx(path, path), boxes.read_csv, lambda path: boxes.read_xml(path.parent.parent),
        boxes.read_xml, labels.read_classes, labels.read_validation, card_reader.read_card, network_files.find,
        lambda path: card_reader.with_names(None, path), network_files.require_keras_file, convert.identify,
        lambda path: usage.with_flag_files(['x', f'--flagfile={path}'], absl_flags.FlagValues()),
    ]  # fmt: skip


@pytest.mark.parametrize('kind', ['FIFO', 'socket', 'device'])
def test_what_is_no_plain_file_is_refused_at_every_door(tmp_path, kind):
    path = tmp_path / 'n01440764' / 'a.xml'
    path.parent.mkdir()
    if kind == 'FIFO':
        os.mkfifo(path)
    elif kind == 'socket':
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.path.relpath(path))  # a long path does not fit
    else:
        path.symlink_to('/dev/zero')

    def stop(number, frame):
        raise AssertionError(f'{path} is opened for ever')

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for door in _doors():
            signal.setitimer(signal.ITIMER_REAL, 10)
            with pytest.raises((UserError, ValueError, OSError, absl_flags.Error)):
                with contextlib.ExitStack() as stack:
                    opened = door(path)
                    if hasattr(opened, '__enter__'):
                        stack.enter_context(opened)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
