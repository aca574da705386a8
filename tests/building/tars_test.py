"""building.tars: offsets of images in tars of tars, whatever wrote them; what is wrong with one, in one line."""

import gzip
import io
import json
import os
import pathlib
import random
import subprocess
import tarfile

import numpy as np
import pytest
from fixtures import ilsvrc

from official_resnet.building import tars
from official_resnet.building.job import Job
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n02092002', 'n02105855')
FILES = {
    f'{synset}_{number}.JPEG': random.Random(number).randbytes(300 * number + index)
    for index, synset in enumerate(SYNSETS)
    for number in (3, 1, 12)
}


@pytest.fixture(scope='module')
def layout(tmp_path_factory):
    return ilsvrc.make(tmp_path_factory.mktemp('ilsvrc'))


def inner(synset, tar_format=tarfile.GNU_FORMAT):
    files = {name: data for name, data in FILES.items() if name.startswith(synset)}
    return ilsvrc.tar_bytes(files, tar_format)


def outer(tar_format=tarfile.GNU_FORMAT, synsets=SYNSETS, prefix='', **changed):
    files = {f'{prefix}{synset}.tar': inner(synset, tar_format) for synset in synsets}
    return ilsvrc.tar_bytes({**files, **changed}, tar_format)


def train(path, data=None, synsets=SYNSETS, **options):
    if data is not None:
        path.write_bytes(data)
    options.setdefault('log', lambda line: None)
    return tars.index('train', path, synsets, **options)


def contents(pictures):
    return {pictures.basename(i): pictures.read_bytes(i) for i in range(len(pictures))}


def names(pictures):
    return [pictures.basename(i) for i in range(len(pictures))]


@pytest.mark.parametrize('tar_format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_pictures_are_read_where_they_lie(tmp_path, tar_format):
    path = tmp_path / 'train.tar'
    pictures = train(path, outer(tar_format))
    assert contents(pictures) == FILES and pictures.files == (str(path),) and pictures.synsets == ('', *SYNSETS)
    for i in range(len(pictures)):
        assert pictures.basename(i).startswith(pictures.synset(i))
    assert [row['label'] for row in pictures.rows] == [1] * 3 + [2] * 3 + [3] * 3
    assert list(os.listdir(tmp_path)) == ['train.tar']  # no copy


def test_the_layout_of_the_sample(layout):
    assert contents(train(layout.folder / ilsvrc.TRAIN, synsets=layout.synsets)) == layout.train
    pictures = tars.index('validation', layout.folder / ilsvrc.VALIDATION, layout.synsets, layout.validation_synsets)
    assert contents(pictures) == layout.validation
    for i in range(len(pictures)):
        number = int(pictures.basename(i)[-13:-5])
        assert pictures.synset(i) == layout.validation_synsets[number - 1]


def test_the_order_of_the_tar_does_not_matter(tmp_path):
    one = train(tmp_path / 'a.tar', outer())
    other = train(tmp_path / 'b.tar', outer(synsets=SYNSETS[::-1], prefix='./train/'))
    assert names(one) == names(other) == [f'{synset}_{number}.JPEG' for synset in SYNSETS for number in (1, 12, 3)]


def test_tar_of_the_system_with_long_names(tmp_path):
    """GNU tar by itself: with folders, a long name in a header of its own, blocked by 20."""
    folder = tmp_path / ('long' * 30)
    for synset in SYNSETS:
        (folder / synset).mkdir(parents=True)
        for name, data in FILES.items():
            if name.startswith(synset):
                (folder / synset / name).write_bytes(data)
        subprocess.run(['tar', 'cf', folder / f'{synset}.tar', '-C', tmp_path, f'{folder.name}/{synset}'], check=True)
    members = [f'{folder.name}/{synset}.tar' for synset in SYNSETS]
    for options in (['--format=gnu'], ['--format=posix', '--pax-option=comment=x'], ['-b', '1']):
        subprocess.run(['tar', 'cf', tmp_path / 'train.tar', *options, '-C', tmp_path, *members], check=True)
        assert contents(train(tmp_path / 'train.tar')) == FILES, options


def test_members_that_are_no_pictures_are_left_out_and_said(tmp_path):
    lines = []
    changed = {
        'n09999999.tar': inner(SYNSETS[0]),
        'notes.txt': b'x' * 700,
        '._n01440764.tar': b'of macOS',
        'n01440764.tar': ilsvrc.tar_bytes(
            {
                **{name: data for name, data in FILES.items() if name.startswith('n01440764')},
                'README': b'x',
                '._n01440764_1.JPEG': b'x',
                'thumbs.jpg': b'x',
            }
        ),
    }
    assert contents(train(tmp_path / 'a.tar', outer(**changed), log=lines.append)) == FILES
    assert len(lines) == 1 and 'left out 6 members' in lines[0] and 'README' in lines[0]


def test_links_and_folders_are_no_pictures(tmp_path):
    buffer = io.BytesIO(inner(SYNSETS[0]))
    with tarfile.open(fileobj=buffer, mode='a') as tar:
        for kind, name in (
            (tarfile.SYMTYPE, 'n01440764_77.JPEG'),
            (tarfile.LNKTYPE, 'n01440764_78.JPEG'),
            (tarfile.DIRTYPE, 'n01440764_79.JPEG'),
            (tarfile.FIFOTYPE, 'n01440764_80.JPEG'),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, '/etc/passwd'
            tar.addfile(member)
    assert contents(train(tmp_path / 'a.tar', outer(**{'n01440764.tar': buffer.getvalue()}))) == FILES


def test_of_two_of_one_name_the_later_is_used(tmp_path):
    buffer, lines = io.BytesIO(inner(SYNSETS[0])), []
    with tarfile.open(fileobj=buffer, mode='a') as tar:
        member = tarfile.TarInfo('n01440764_3.JPEG')
        member.size = 4
        tar.addfile(member, io.BytesIO(b'late'))
    got = contents(train(tmp_path / 'a.tar', outer(**{'n01440764.tar': buffer.getvalue()}), log=lines.append))
    assert got == {**FILES, 'n01440764_3.JPEG': b'late'} and 'has 1 images twice' in lines[0]


def test_any_opener_serves(tmp_path):
    data = outer()
    pictures = tars.index('train', 'gs://bucket/train.tar', SYNSETS, opener=lambda path: io.BytesIO(data))
    assert pictures.files == ('gs://bucket/train.tar',)
    for row in pictures.rows:
        assert data[row['offset'] : row['offset'] + row['size']] == FILES[os.fsdecode(row['name'])]


# --- what is missing or wrong ---------------------------------------------------------------------------------


def test_missing_synsets(tmp_path):
    path, lines = tmp_path / 'a.tar', []
    with pytest.raises(UserError, match='lacks 2 synsets, as n02092002, n02105855; .* --allow_partial'):
        train(path, outer(synsets=SYNSETS[:1]))
    pictures = train(path, allow_partial=True, log=lines.append)
    assert len(pictures) == 3 and 'lacks 2 synsets' in lines[-1] and pictures.synsets == ('', *SYNSETS)


def _with_sparse():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        member = tarfile.TarInfo('n01440764_5.JPEG')
        member.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(member)
    return buffer.getvalue()


def _spoil(data, place, value):
    return data[:place] + value + data[place + len(value) :]


TRAIN_CASES = {
    'absent': (None, 'does not exist; pass the tar file'),
    'empty': (b'', 'damaged or no tar file'),
    'garbage': (random.Random(0).randbytes(5000), 'damaged or no tar file: .*, byte 0'),
    'login page': (b'<html>' * 500, 'damaged or no tar file'),
    'zeros': (bytes(10240), 'has no image in a <synset>.tar of a listed'),
    'packed': (lambda: gzip.compress(outer()), 'is packed by gzip; .* unpack it'),
    'inner packed': (
        lambda: outer(**{'n01440764.tar': gzip.compress(inner(SYNSETS[0]))}),
        "'n01440764.tar' in .* is packed by gzip",
    ),
    'inner tar.gz': (lambda: outer(**{'n01440764.tar.gz': b'x'}), "'n01440764.tar.gz' in .* is packed"),
    'cut in the last': (
        lambda: outer()[: len(outer().rstrip(b'\0')) - 50],
        "cut off: .* at member 'n02105855.tar', byte",
    ),
    'cut in the first': (lambda: outer()[:700], "cut off: .* at member 'n01440764.tar', byte 0"),
    'cut in a header': (lambda: outer()[:300], 'no tar file: .*, byte 0'),
    'no end': (lambda: outer()[: len(outer().rstrip(b'\0')) // 512 * 512 + 512], 'is cut off: .* (at|after) member'),
    'header overwritten': (
        lambda: _spoil(outer(), 512 + len(inner(SYNSETS[0])), b'garbage' * 40),
        "no header after member 'n01440764.tar', byte 10752",
    ),
    'inner garbage': (lambda: outer(**{'n01440764.tar': b'<html>' * 500}), "'n01440764.tar' in .* no tar file"),
    'inner empty': (lambda: outer(**{'n01440764.tar': b''}), "'n01440764.tar' in .* cut off: .*, byte 512"),
    'inner cut': (
        lambda: outer(**{'n01440764.tar': inner(SYNSETS[0])[:1500]}),
        "'n01440764.tar' in .* cut off: .* at member 'n01440764_3.JPEG', byte 512",
    ),
    'inner header': (
        lambda: outer(**{'n01440764.tar': _spoil(inner(SYNSETS[0]), 1536, b'garbage' * 20)}),
        "'n01440764.tar' in .* no header after member 'n01440764_3.JPEG', byte 2048",
    ),
    'negative size': (lambda: outer(**{'n01440764.tar': negative_size()}), 'no plain size|no header'),
    'sparse': (lambda: outer(**{'n01440764.tar': _with_sparse()}), "no plain size at member 'n01440764_5.JPEG'"),
    'folders': (lambda: ilsvrc.tar_bytes(FILES), 'has no image in a <synset>.tar of a listed'),
}


def negative_size():
    member = tarfile.TarInfo('n01440764_5.JPEG')
    member.size = -512
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize('case', TRAIN_CASES)
def test_broken_train_tars(tmp_path, case):
    data, message = TRAIN_CASES[case]
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path / 'train.tar', data() if callable(data) else data)
    assert '\n' not in str(error.value) and 'train.tar' in str(error.value)


def test_any_cut_is_found(tmp_path):
    whole = outer()
    end = len(whole.rstrip(b'\0'))
    for size in random.Random(1).sample(range(end), 60):
        with pytest.raises(UserError):
            train(tmp_path / 'train.tar', whole[:size])


def test_any_damage_of_a_header_is_found_or_harmless(tmp_path):
    """Never another exception, an endless loop, or a picture outside of the file."""
    whole, generator = outer(), random.Random(2)
    for _ in range(300):
        data = bytearray(whole)
        place = generator.choice([0, 512, 512 + len(inner(SYNSETS[0]))])  # the first, its first, the second header
        for _ in range(generator.randint(1, 8)):
            data[place + generator.randrange(512)] = generator.randrange(256)
        header = data[place : place + 512]
        header[148:156] = b'%06o\0 ' % (sum(header[:148]) + 256 + sum(header[156:]))  # as if it were meant
        data[place : place + 512] = header
        try:
            pictures = train(tmp_path / 'train.tar', bytes(data), allow_partial=True)
        except UserError:
            continue
        assert all(0 <= row['offset'] and row['offset'] + row['size'] <= len(whole) for row in pictures.rows)


def validation(path, files, labels, **options):
    ilsvrc.write_tar(path, files)
    options.setdefault('log', lambda line: None)
    return tars.index('validation', path, SYNSETS, labels, **options)


def val(*numbers):
    return {f'ILSVRC2012_val_{number:08d}.JPEG': b'%d' % number for number in numbers}


def test_validation_by_number(tmp_path):
    labels, lines = [SYNSETS[1], SYNSETS[0], 'n00000001', SYNSETS[2]], []
    pictures = validation(
        tmp_path / 'val.tar', {f'val/{name}': data for name, data in val(4, 3, 1, 2).items()}, labels, log=lines.append
    )
    assert [(pictures.basename(i)[-6], pictures.synset(i), pictures.read_bytes(i)) for i in range(3)] == [
        ('2', SYNSETS[0], b'2'),
        ('1', SYNSETS[1], b'1'),
        ('4', SYNSETS[2], b'4'),
    ]
    assert 'left out 1 members' in lines[0]


def test_validation_mistakes(tmp_path):
    path, labels = tmp_path / 'val.tar', [SYNSETS[0]] * 3
    for files, message in (
        (val(1, 2, 4), "00000004.JPEG' .* has no label, there are 3"),
        (val(0, 1, 2, 3), 'no label'),
        ({'a.JPEG': b''}, 'has no image in ILSVRC2012_val_<number>'),
        (val(2), 'lacks 2 images, as ILSVRC2012_val_00000001.JPEG, ILSVRC2012_val_00000003.JPEG;'),
    ):
        with pytest.raises(UserError, match=message):
            validation(path, files, labels)
    assert len(validation(path, val(2), labels, allow_partial=True)) == 1


# --- the index that is kept -----------------------------------------------------------------------------------


def test_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    path, calls, real = tmp_path / 'train.tar', [], tars.index
    monkeypatch.setattr(tars, 'index', lambda *args, **options: (calls.append(1), real(*args, **options))[1])

    def index(synsets=SYNSETS):
        return tars.kept_index(Job(tmp_path, 'train', 1), str(path), list(synsets), [], False, log=lambda line: None)

    path.write_bytes(outer())
    for _ in range(2):
        assert contents(index()) == FILES
    assert len(calls) == 1 and isinstance(index().rows, np.memmap)
    os.utime(path, (1, 1))
    index()
    assert len(calls) == 2
    index(SYNSETS[:2])
    assert len(calls) == 3
    for name, text in (('key.json', '{'), ('key.json', json.dumps({})), ('images.json', '{'), ('images.npy', '')):
        pathlib.Path(tmp_path, '.train.index', name).write_text(text)
        assert set(contents(index(SYNSETS[:2]))) < FILES.keys()
    assert len(calls) == 7 and not list(tmp_path.rglob('part.*'))
