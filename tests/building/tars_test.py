"""building.tars finds images in tars of tars from any writer, and describes a broken one in one line."""

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
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet.building import tars
from official_resnet.building.job import Job
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n02092002', 'n02105855')
FIRST = 'n01440764.tar'
FILES = {
    f'{synset}_{number}.JPEG': random.Random(number).randbytes(300 * number + index)
    for index, synset in enumerate(SYNSETS)
    for number in (3, 1, 12)
}


def inner(synset=SYNSETS[0]):
    return ilsvrc.tar_bytes({name: data for name, data in FILES.items() if name.startswith(synset)})


def outer(synsets=SYNSETS, prefix='', **changed):
    return ilsvrc.tar_bytes({**{f'{prefix}{synset}.tar': inner(synset) for synset in synsets}, **changed})


def with_members(*members):
    """Return the whole tar file, with more (TarInfo, bytes) in its first inner one."""
    buffer = io.BytesIO(inner())
    with tarfile.open(fileobj=buffer, mode='a') as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return outer(**{FIRST: buffer.getvalue()})


def member(name, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, '/etc/passwd'
    return info


def index(path, data, split='train', image_synsets=(), synsets=SYNSETS, log=lambda line: None, **options):
    if data is not None:
        path.write_bytes(data)
    return tars.index(split, path, synsets, image_synsets, log=log, **options)


def contents(images):
    return {images.basename(i): images.read_bytes(i) for i in range(len(images))}


NAMES = st.from_regex(r'[a-zA-Z0-9_ é]{1,60}', fullmatch=True).map('{}.JPEG'.format)


@quick
@given(
    images=st.tuples(*[st.dictionaries(NAMES, st.binary(max_size=1200), min_size=1, max_size=4)] * 3),
    tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_images_in_a_tar_of_tars_are_found_where_they_are(images, tar_format):
    named = dict(zip(SYNSETS, images, strict=True))
    inner = {f'{synset}.tar': ilsvrc.tar_bytes(some, tar_format) for synset, some in named.items()}
    with files(ilsvrc.tar_bytes(inner, tar_format)) as [path]:
        found = index(path, None)
        by_synset = {synset: {} for synset in SYNSETS}
        for i in range(len(found)):
            by_synset[found.synset(i)][found.basename(i)] = found.read_bytes(i)
    assert by_synset == named


def test_the_order_of_the_tar_does_not_matter(tmp_path):
    images = index(tmp_path / 'a.tar', outer(synsets=SYNSETS[::-1], prefix='./train/'))
    names = [images.basename(i) for i in range(len(images))]
    assert names == [f'{synset}_{number}.JPEG' for synset in SYNSETS for number in (1, 12, 3)]
    assert contents(images) == FILES and images.files == (str(tmp_path / 'a.tar'),)
    assert images.rows['label'].tolist() == [1] * 3 + [2] * 3 + [3] * 3 and images.synsets == ('', *SYNSETS)


def test_gnu_tar_with_long_names(tmp_path):
    """The system's tar writes folders, gives a long name a header of its own, and pads to 20 blocks."""
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
        assert contents(index(tmp_path / 'train.tar', None)) == FILES, options


def test_members_that_are_not_images_are_left_out_and_counted(tmp_path):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
    links = [(member(f'n01440764_7{i}.JPEG', kind), b'') for i, kind in enumerate(kinds)]
    others = [(member(name), b'x') for name in ('README', '._n01440764_1.JPEG', 'thumbs.jpg')]
    data, lines = with_members(*others, *links), []
    with tarfile.open(fileobj=(buffer := io.BytesIO(data)), mode='a') as tar:
        for name in ('n09999999.tar', 'notes.txt', '._n01440764.tar'):
            tar.addfile(member(name))
    assert contents(index(tmp_path / 'a.tar', buffer.getvalue(), log=lines.append)) == FILES
    assert len(lines) == 1 and 'left out 9 members' in lines[0] and 'README' in lines[0]


def test_the_later_of_two_members_with_the_same_name_counts(tmp_path):
    lines = []
    images = index(tmp_path / 'a.tar', with_members((member('n01440764_3.JPEG'), b'late')), log=lines.append)
    assert contents(images) == {**FILES, 'n01440764_3.JPEG': b'late'} and '1 images twice' in lines[0]


def test_any_opener_serves():
    data = outer()
    images = tars.index('train', 'gs://bucket/train.tar', SYNSETS, opener=lambda path: io.BytesIO(data))
    assert images.files == ('gs://bucket/train.tar',)
    for row in images.rows:
        assert data[row['offset'] : row['offset'] + row['size']] == FILES[os.fsdecode(row['name'])]


# --- what is missing or wrong ---------------------------------------------------------------------------------


def test_missing_synsets(tmp_path):
    path, lines = tmp_path / 'a.tar', []
    with pytest.raises(UserError, match='2 synsets.* n02092002, n02105855;.*--allow_partial'):
        index(path, outer(synsets=SYNSETS[:1]))
    images = index(path, None, allow_partial=True, log=lines.append)
    assert len(images) == 3 and '2 synsets' in lines[-1] and images.synsets == ('', *SYNSETS)


def changed(data):
    """Return the whole tar file with other bytes for its first inner one."""
    return outer(**{FIRST: data})


def spoilt(data, place, value):
    return data[:place] + value + data[place + len(value) :]


def negative_size():
    info = member('n01440764_5.JPEG')
    info.size = -512
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


WHOLE, INNER = outer(), inner()
END = len(WHOLE.rstrip(b'\0'))
BROKEN = {
    'absent': (None, 'pass the tar file'),
    'empty': (b'', 'no tar file'),
    'random bytes': (random.Random(0).randbytes(5000), 'no tar file: .*byte 0'),
    'zeros': (bytes(10240), 'has no image in a <synset>.tar'),
    'packed': (gzip.compress(WHOLE), 'gzip; .*unpack'),
    'inner packed': (changed(gzip.compress(INNER)), "'n01440764.tar' in .*gzip"),
    'inner tar.gz': (outer(**{'n01440764.tar.gz': b'x'}), "'n01440764.tar.gz' in .*unpack"),
    'cut in the last': (WHOLE[: END - 50], "cut off: .*'n02105855.tar', byte"),
    'cut in the first': (WHOLE[:700], "cut off: .*'n01440764.tar', byte 0"),
    'no end': (WHOLE[: END // 512 * 512 + 512], 'cut off'),
    'outer header': (spoilt(WHOLE, 512 + len(INNER), b'garbage' * 40), "no header .*'n01440764.tar', byte 10752"),
    'inner login page': (changed(b'<html>' * 500), "'n01440764.tar' in .*no tar file"),
    'inner empty': (changed(b''), "'n01440764.tar' in .*cut off: .*byte 512"),
    'inner cut': (changed(INNER[:1500]), "'n01440764.tar' in .*cut off: .*'n01440764_3.JPEG', byte 512"),
    'inner header': (changed(spoilt(INNER, 1536, b'garbage' * 20)), "no header .*'n01440764_3.JPEG', byte 2048"),
    'negative size': (changed(negative_size()), 'no plain size|no header'),
    'sparse': (with_members((member('n01440764_5.JPEG', tarfile.GNUTYPE_SPARSE), b'')), "size .*'n01440764_5.JPEG'"),
    'not nested': (ilsvrc.tar_bytes(FILES), 'has no image in a <synset>.tar'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_train_tars(tmp_path, case):
    data, pattern = BROKEN[case]
    with pytest.raises(UserError, match=pattern) as error:
        index(tmp_path / 'train.tar', data)
    assert '\n' not in str(error.value) and 'train.tar' in str(error.value)


def test_any_cut_is_found(tmp_path):
    for size in random.Random(1).sample(range(END), 60):
        with pytest.raises(UserError):
            index(tmp_path / 'train.tar', WHOLE[:size])


@settings(quick, max_examples=150)
@given(edits=EDITS, aligned=st.booleans())
def test_a_changed_tar_is_indexed_or_refused(edits, aligned):
    """There is no image beyond the end of the file, and no exception but ours."""
    if aligned:  # so that whole headers are removed or replaced
        edits = [(place // 512 * 512, deleted // 512 * 512, inserted) for place, deleted, inserted in edits]
    data = edited(WHOLE, edits)
    with files(data) as [path]:
        try:
            found = index(path, None)
        except UserError as error:
            assert refused(error, path), error
        else:
            assert (found.rows['offset'] + found.rows['size'] <= len(data)).all()
            assert all(len(found.read_bytes(i)) == found.rows[i]['size'] for i in range(len(found)))


def test_any_damage_of_a_header_is_found_or_harmless(tmp_path):
    """No other exception, no endless loop, and no image beyond the end of the file."""
    generator = random.Random(2)
    for _ in range(300):
        data = bytearray(WHOLE)
        place = generator.choice([0, 512, 512 + len(INNER)])  # the first, its first, the second header
        for _ in range(generator.randint(1, 8)):
            data[place + generator.randrange(512)] = generator.randrange(256)
        header = data[place : place + 512]
        data[place + 148 : place + 156] = b'%06o\0 ' % (sum(header[:148]) + 256 + sum(header[156:]))  # a right checksum
        try:
            images = index(tmp_path / 'train.tar', bytes(data), allow_partial=True)
        except UserError:
            continue
        assert (images.rows['offset'] >= 0).all() and (images.rows['offset'] + images.rows['size'] <= len(WHOLE)).all()


def validation(*numbers, folder=''):
    return ilsvrc.tar_bytes({f'{folder}ILSVRC2012_val_{number:08d}.JPEG': b'%d' % number for number in numbers})


def test_validation_by_number(tmp_path):
    labels, lines = [SYNSETS[1], SYNSETS[0], 'n00000001', SYNSETS[2]], []
    data = validation(4, 3, 1, 2, folder='val/')
    images = index(tmp_path / 'val.tar', data, 'validation', labels, log=lines.append)
    assert [(images.synset(i), images.read_bytes(i)) for i in range(3)] == [
        *((SYNSETS[0], b'2'), (SYNSETS[1], b'1'), (SYNSETS[2], b'4'))
    ]
    assert images.basename(0)[-6] == '2' and 'left out 1 members' in lines[0]


def test_validation_mistakes(tmp_path):
    path, labels = tmp_path / 'val.tar', [SYNSETS[0]] * 3
    for data, pattern in (
        (validation(1, 2, 4), "00000004.JPEG' .*no label.* 3"),
        (validation(0, 1, 2, 3), '00000000.JPEG.* no label'),
        (ilsvrc.tar_bytes({'a.JPEG': b''}), 'ILSVRC2012_val_<number>'),
        (validation(2), '2 images.* ILSVRC2012_val_00000001.JPEG, ILSVRC2012_val_00000003.JPEG;'),
    ):
        with pytest.raises(UserError, match=pattern):
            index(path, data, 'validation', labels)
    assert len(index(path, validation(2), 'validation', labels, allow_partial=True)) == 1


def test_an_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    path, calls, real = tmp_path / 'train.tar', [], tars.index
    monkeypatch.setattr(tars, 'index', lambda *args, **options: (calls.append(1), real(*args, **options))[1])

    def kept(synsets=SYNSETS):
        return tars.kept_index(Job(tmp_path, 'train', 1), str(path), list(synsets), [], False, log=lambda line: None)

    path.write_bytes(WHOLE)
    for _ in range(2):
        assert contents(kept()) == FILES
    assert len(calls) == 1 and isinstance(kept().rows, np.memmap)
    os.utime(path, (1, 1))
    kept()
    assert len(calls) == 2
    kept(SYNSETS[:2])
    assert len(calls) == 3
    for name, text in (('key.json', '{'), ('key.json', json.dumps({})), ('images.json', '{'), ('images.npy', '')):
        pathlib.Path(tmp_path, '.train.index', name).write_text(text)
        assert set(contents(kept(SYNSETS[:2]))) < FILES.keys()
    assert len(calls) == 7 and not list(tmp_path.rglob('part.*'))
