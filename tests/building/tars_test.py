"""building.tars finds images in tars of tars from any writer, and describes a broken one in one line."""

import collections
import gzip
import io
import os
import random
import tarfile

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


def outer(synsets=SYNSETS, **changed):
    return ilsvrc.tar_bytes({**{f'{synset}.tar': inner(synset) for synset in synsets}, **changed})


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


def quiet(line):
    """Tell nobody."""


def index(path, data, split='train', image_synsets=(), synsets=SYNSETS, log=quiet, **options):
    if data is not None:
        path.write_bytes(data)
    return tars.index(split, path, synsets, image_synsets, log=log, **options)


def contents(images):
    return {images.basename(i): images.read_bytes(i) for i in range(len(images))}


NAMES = st.from_regex(r'[a-zA-Z0-9_ é]{1,60}', fullmatch=True).map('{}.JPEG'.format)


@quick
@given(
    images=st.tuples(*[st.dictionaries(NAMES, st.binary(max_size=1200), min_size=1, max_size=4)] * 3),
    order=st.permutations(SYNSETS),
    folder=st.sampled_from(['', './train/', 'long' * 30 + '/']),
    tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_images_in_a_tar_of_tars_are_found_where_they_are_and_sorted(images, order, folder, tar_format):
    """Whatever opens the file."""
    named = dict(zip(SYNSETS, images, strict=True))
    inner = {synset: {folder + name: data for name, data in named[synset].items()} for synset in order}
    inner = {f'{folder}{synset}.tar': ilsvrc.tar_bytes(inner[synset], tar_format) for synset in order}
    whole = ilsvrc.tar_bytes(inner, tar_format)
    found = tars.index('train', 'gs://x', SYNSETS, log=quiet, opener=lambda path: io.BytesIO(whole))
    assert found.files == ('gs://x',) and found.synsets == ('', *SYNSETS)
    rows = [(found.synset(i), found.basename(i), row['offset'], row['size']) for i, row in enumerate(found.rows)]
    expected = [(synset, name) for synset in SYNSETS for name in sorted(named[synset], key=os.fsencode)]
    assert [row[:2] for row in rows] == expected
    for synset, name, offset, size in rows:
        assert whole[offset : offset + size] == named[synset][name]


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


WHOLE, INNER = outer(), inner()
END = len(WHOLE.rstrip(b'\0'))
BROKEN = {
    'absent': (None, 'pass the tar file'),
    'packed': (gzip.compress(WHOLE), 'gzip; .*unpack'),
    'inner packed': (changed(gzip.compress(INNER)), "'n01440764.tar' in .*gzip"),
    'inner tar.gz': (outer(**{'n01440764.tar.gz': b'x'}), "'n01440764.tar.gz' in .*unpack"),
    'cut in the last': (WHOLE[: END - 50], "cut off: .*'n02105855.tar', byte"),
    'outer header': (WHOLE[: 512 + len(INNER)] + b'garbage' * 400, "no header .*'n01440764.tar', byte 10752"),
    'inner login page': (changed(b'<html>' * 500), "'n01440764.tar' in .*not a tar file"),
    'inner cut': (changed(INNER[:1500]), "'n01440764.tar' in .*cut off: .*'n01440764_3.JPEG', byte 512"),
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
    for size in [*random.Random(1).sample(range(END), 30), END // 512 * 512 + 512]:  # with its last byte, but no end
        with pytest.raises(UserError):
            index(tmp_path / 'train.tar', WHOLE[:size])


@st.composite
def damaged(draw):
    """Return the tar file with any bytes changed, with whole headers removed or replaced, or with a changed header."""
    kind = draw(st.sampled_from(['bytes', 'blocks', 'header']))
    if kind != 'header':
        edits, unit = draw(EDITS), 512 if kind == 'blocks' else 1
        return edited(WHOLE, [(place // unit * unit, deleted // unit * unit, new) for place, deleted, new in edits])
    data, place = (
        bytearray(WHOLE),
        draw(st.sampled_from([0, 512, 512 + len(INNER)])),
    )  # the first, its first, the second
    for offset, byte in draw(st.dictionaries(st.integers(0, 511), st.integers(0, 255), min_size=1, max_size=8)).items():
        data[place + offset] = byte
    header = data[place : place + 512]
    data[place + 148 : place + 156] = b'%06o\0 ' % (sum(header[:148]) + 256 + sum(header[156:]))  # a right checksum
    return bytes(data)


@settings(quick, max_examples=150)
@given(data=damaged(), allow_partial=st.booleans())
def test_a_damaged_tar_is_indexed_or_refused(data, allow_partial):
    """There is no image beyond the end of the file, no endless loop, and no exception but ours."""
    with files(data) as [path]:
        try:
            found = index(path, None, allow_partial=allow_partial)
        except UserError as error:
            assert refused(error, path), error
        else:
            assert (found.rows['offset'] >= 0).all()
            assert (found.rows['offset'] + found.rows['size'] <= len(data)).all()
            assert all(len(found.read_bytes(i)) == found.rows[i]['size'] for i in range(len(found)))


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
        (validation(0), '00000000.JPEG.* no label'),
        (ilsvrc.tar_bytes({'a.JPEG': b''}), 'ILSVRC2012_val_<number>'),
        (validation(2), '2 images.* ILSVRC2012_val_00000001.JPEG, ILSVRC2012_val_00000003.JPEG;'),
    ):
        with pytest.raises(UserError, match=pattern):
            index(path, data, 'validation', labels)
    assert len(index(path, validation(2), 'validation', labels, allow_partial=True)) == 1


def test_an_index_is_kept_until_the_file_changes(tmp_path):
    path, kept = tmp_path / 'train.tar', tmp_path / '.train.index'
    path.write_bytes(WHOLE)

    def get(synsets=SYNSETS):
        """Return the images, and whether their index was kept."""
        lines = []
        images = tars.kept_index(Job(tmp_path, 'train', 1), str(path), list(synsets), [], False, log=lines.append)
        return contents(images), any('already has the index' in line for line in lines)

    assert [get(), get()] == [(FILES, False), (FILES, True)]
    os.utime(path, (1, 1))
    assert get() == (FILES, False) and get(SYNSETS[:2])[1] is False
    for name, text in (('key.json', '{'), ('key.json', '{}'), ('images.json', '{'), ('images.npy', '')):
        get()
        (kept / name).write_text(text)
        assert get() == (FILES, False)
    assert get() == (FILES, True) and not list(tmp_path.rglob('part.*'))


def test_no_index_is_believed_whose_end_is_zero_or_missing(tmp_path, monkeypatch):
    """As after a power failure, at each length of each of its files: 1,825 indexes, none wrong, none a traceback."""
    path, kept, outcomes = tmp_path / 'train.tar', tmp_path / '.train.index', collections.Counter()
    path.write_bytes(WHOLE)
    job = Job(tmp_path, 'train', 1)

    def get():
        images = tars.kept_index(job, str(path), list(SYNSETS), [], False, log=quiet)
        return images.files, images.synsets, images.rows.tolist()

    def make_again(*args, **options):
        raise RuntimeError('made again')

    expected = get()
    monkeypatch.setattr(tars, 'index', make_again)
    for name, data in [(found.name, found.read_bytes()) for found in kept.iterdir()]:
        for size in range(len(data)):
            for changed in {data[:size], data[:size].ljust(len(data), b'\0')} - {data}:
                (kept / name).write_bytes(changed)
                try:
                    outcomes[get() == expected] += 1
                except RuntimeError as error:
                    outcomes[str(error)] += 1
        (kept / name).write_bytes(data)
    assert outcomes.keys() <= {True, 'made again'} and outcomes['made again'] > 1800, outcomes
    assert get() == expected
