"""building.shards: what it writes, that a killed build continues, and that verify finds damage."""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import sys

import numpy as np
import pytest
from fixtures import programs, slow_files
from fixtures.data_commands import examples, outputs, write_images
from fixtures.imagenet_shards import encoded
from PIL import Image

from official_resnet import errors
from official_resnet.building import boxes, image_list, job, progress, shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.records import Options
from official_resnet.building.verify import verify
from official_resnet.inputs import tfrecords

BUILD = """
import sys
from official_resnet.building import image_list, shards
shards.build(image_list.ImageList.load(sys.argv[1]), 'train', sys.argv[1] + '.out', 4, 1)
"""


def small(k=0, mode='RGB', size=(16, 12), kind='JPEG', **options):
    """Return the bytes of a small image, another one for each k."""
    return encoded(Image.new('RGB', size, (k % 256, k // 256 % 256, 90)).convert(mode), kind, **options)


def quiet(line):
    """Tell nobody."""


build = functools.partial(shards.build, log=quiet)
SIMPLE = {f'c{k % 4}/c{k % 4}_{k}.JPEG': small(k) for k in range(40)}


@pytest.fixture
def simple(tmp_path):
    """40 small images of 4 classes."""
    return write_images(tmp_path / 'raw', SIMPLE)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(images, folder of 4 shards), to be left as they are."""
    folder = tmp_path_factory.mktemp('whole')
    images = write_images(folder / 'raw', SIMPLE)
    build(images, 'train', folder / 'out', 4, 1)
    return images, folder / 'out'


@pytest.fixture
def built(whole, tmp_path):
    """(images, folder of 4 shards), to be damaged."""
    return whole[0], pathlib.Path(shutil.copytree(whole[1], tmp_path / 'out'))


def contents(folder):
    """Return {name: bytes} of the training shards."""
    return {name: data for name, data in outputs(folder).items() if '-of-' in name} if folder.is_dir() else {}


# --- records -------------------------------------------------------------------------------------------------


def test_records(tmp_path):
    """Those of the Inception pipeline. That TensorFlow reads them, and their types, is in tfrecords_test."""
    files = {'n1/n1_1.JPEG': small(1), 'n2/n2_1.JPEG': small(2), 'n2/n2_2.JPEG': small(3, size=(8, 9))}
    raw = write_images(tmp_path / 'raw', files)
    (tmp_path / 'b.csv').write_text('n2_1.JPEG,0.1,0.2,0.3,0.4\nn2_1.JPEG,0,0,1,1\n')
    options = Options({'n1': 'tench, fish', 'n2': 'Käfer'}, boxes.read_csv(tmp_path / 'b.csv'))
    build(raw, 'train', tmp_path / 'out', 2, 1, options=options)
    two = {'xmin': [0.1, 0], 'ymin': [0.2, 0], 'xmax': [0.3, 1], 'ymax': [0.4, 1]}
    two = {f'object/bbox/{key}': np.float32(values).tolist() for key, values in two.items()}
    two['object/bbox/label'] = [2, 2]
    found = examples(tmp_path / 'out')
    for name, data in files.items():
        expected = {
            **{'format': [b'JPEG'], 'colorspace': [b'RGB'], 'channels': [3], 'encoded': [data]},
            **{'filename': [name[3:].encode()], 'class/synset': [name[:2].encode()], 'class/label': [int(name[1])]},
            **{'class/text': ['Käfer'.encode() if name[1] == '2' else b'tench, fish']},
            **({'width': [8], 'height': [9]} if name[3:] == 'n2_2.JPEG' else {'width': [16], 'height': [12]}),
            **(two if name[3:] == 'n2_1.JPEG' else dict.fromkeys(two, [])),
        }
        assert found.pop(name[3:]) == {f'image/{key}': value for key, value in expected.items()}
    assert not found


def test_odd_images(tmp_path):
    """Odd ones are encoded anew, broken ones left out; how is in jpeg_test."""
    damaged = bytearray(small(5))
    damaged[damaged.index(b'\xff\xc4') + 8] ^= 255  # a Huffman table, which only decoding reads
    plain = {'a/whole.JPEG': small(41), 'b/damaged.JPEG': bytes(damaged)}
    odd = {'a/cmyk.JPEG': small(9, 'CMYK'), 'a/png.JPEG': small(1234, kind='PNG'), 'b/grey.JPEG': small(40, 'L')}
    broken = {'a/cut.JPEG': small(41)[:-2], 'b/empty.JPEG': b'', 'b/text.JPEG': b'no image'}
    raw, lines = write_images(tmp_path / 'raw', plain | odd | broken), []
    manifest = build(raw, 'train', tmp_path / 'out', 2, 2, log=lines.append)
    assert manifest['records'] == 5 and manifest['classes'] == {'a': 3, 'b': 2}
    assert manifest['reencoded'] == dict(zip(odd, ('JPEG, CMYK', 'PNG', 'JPEG, grey'), strict=True))
    assert manifest['broken'].keys() == broken.keys() and 'no end of image' in manifest['broken']['a/cut.JPEG']
    for name in broken:
        assert sum(f"'{name}'" in line for line in lines) == 1
    assert lines[-1] == 'Finished writing all 5 images in data set.'
    found = {name: example['image/encoded'][0] for name, example in examples(tmp_path / 'out').items()}
    assert [found[name[2:]] for name in plain] == list(plain.values()) and verify(tmp_path / 'out', 'train', quiet) == 0
    manifest = build(raw, 'train', tmp_path / 'decoded', 1, 1, options=Options(check='decode'))
    assert manifest['broken'].keys() - broken.keys() == {'b/damaged.JPEG'}


# --- shards --------------------------------------------------------------------------------------------------


def test_shards_depend_on_images_seed_and_number_alone(tmp_path, whole):
    whole[0].save(tmp_path / 'kept')
    kept, options, out = ImageList.load(tmp_path / 'kept'), Options(seed=1), tmp_path / 'out'
    manifest, found = build(whole[0], 'train', out, 50, 2, options=options), contents(out)  # more shards than images
    for shard, entry in enumerate(manifest['shards']):
        output = io.BytesIO()
        summary = shards.build_shard(kept, shard, 50, options, output, opener=lambda path: open(path, 'rb'))
        assert json.loads(json.dumps(summary)) == summary and output.getvalue() == found[entry['name']]
        assert hashlib.sha256(output.getvalue()).hexdigest() == entry['sha256'] == summary['sha256']
        assert (entry['records'], entry['bytes']) == (summary['records'], len(output.getvalue()))
    assert sorted(entry['records'] for entry in manifest['shards']) == [0] * 10 + [1] * 40
    assert json.loads((out / 'train.manifest.json').read_text()) == manifest
    assert sorted(os.listdir(out)) == sorted([*found, 'train.manifest.json'])
    assert verify(out, 'train', quiet) == 0 and [*examples(out)] != [*examples(whole[1])]


def test_the_order_is_fixed():
    """With another numpy or machine the order is the same, or a build could not be continued there."""
    assert shards.shard_rows(12, 0, 1, 12345).tolist() == [7, 0, 10, 1, 5, 4, 6, 8, 3, 2, 9, 11]
    rows = np.concatenate([shards.shard_rows(1001, shard, 8, 12345) for shard in range(8)])
    assert sorted(rows.tolist()) == list(range(1001))


def test_nothing_to_do_and_what_is_missing(built):
    (raw, out), lines = built, []
    before, manifest = outputs(out), json.loads((out / 'train.manifest.json').read_text())
    assert build(raw, 'train', out, 4, 2, log=lines.append) == manifest
    assert len(lines) == 1 and 'nothing to do' in lines[0]
    (out / 'train-00001-of-00004').unlink()
    (out / 'train-00003-of-00004').write_bytes(b'short')
    assert build(raw, 'train', out, 4, 2) == manifest and outputs(out) == before
    (out / 'train-00001-of-00004').unlink()
    write_images(out / 'other', {raw.name(i): small(999) for i in range(40)})
    other = ImageList((str(out / 'other'),), raw.rows, raw.synsets)
    for _ in range(2):  # also when it is run again, although the shard is there
        with pytest.raises(errors.UserError, match="train-00001-of-00004'.*delete"):
            build(other, 'train', out, 4, 2)


def test_other_builds_are_refused(built):
    raw, out = built
    for change in ({'seed': 1}, {'texts': {'c1': 'x'}}, {'check': 'decode'}, {'layout': 'folder'}):
        with pytest.raises(errors.UserError, match="train.manifest.json' .*other .*delete"):
            build(raw, 'train', out, 4, 2, options=Options(**change))
    with pytest.raises(errors.UserError, match="train.manifest.json' .*other .*delete"):
        build(raw, 'train', out, 5, 2)
    build(raw, 'validation', out, 4, 1)
    assert not list(out.glob('.*'))
    (out / 'train.manifest.json').unlink()
    with pytest.raises(errors.UserError, match="without 'train.manifest.json'.* --output_directory"):
        build(raw, 'train', out, 4, 2)


def test_images_that_cannot_be_read_stop_the_build(tmp_path, simple):
    lost = pathlib.Path(simple.files[0], simple.name(7))
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(errors.UserError, match=f"{lost.name}' cannot be read .*same command"):
        build(simple, 'train', tmp_path / 'out', 8, 1)
    with pytest.raises(errors.UserError, match=r"\.train\.progress' .*other .*delete"):
        build(simple, 'train', tmp_path / 'out', 8, 1, options=Options(seed=1))
    lost.write_bytes(data)
    os.rename(tmp_path / 'raw', tmp_path / 'moved')  # where images lie does not count
    moved = ImageList((str(tmp_path / 'moved'),), simple.rows, simple.synsets)
    assert build(moved, 'train', tmp_path / 'out', 8, 1)['records'] == 40


def test_no_room_on_the_disk(tmp_path, simple):
    """A file may not grow beyond 12000 bytes. What fits stays, and the build continues."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else a signal comes instead of the error
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12000, limits[1]))
        with pytest.raises(errors.UserError, match="out': .*same command") as error:
            build(simple, 'train', tmp_path / 'out', 2, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert '\n' not in str(error.value) and not contents(tmp_path / 'out')
    assert build(simple, 'train', tmp_path / 'out', 2, 2)['records'] == 40


def test_a_disk_that_is_too_small_is_noticed_before(tmp_path):
    rows = np.array([(0, 0, 1 << 60, 1, b'a')], [*image_list.ROW_FIELDS, ('name', 'S1')])
    with pytest.raises(errors.UserError, match='GB free.* --output_directory'):
        build(ImageList((str(tmp_path),), rows, ('', 'x')), 'train', tmp_path / 'out', 1, 1)


# --- killed, stopped, twice ----------------------------------------------------------------------------------


@pytest.fixture
def waiting(tmp_path, simple):
    """(build, its process, function): it has written 2 of 4 shards, and waits for an image until the call."""
    simple.save(tmp_path / 'job')
    image = pathlib.Path(simple.files[0], simple.name(shards.shard_rows(40, 2, 4, Options().seed)[-1]))
    (gate := tmp_path / 'gate').mkdir()
    environment = slow_files.hold(gate, image)
    started = programs.start([sys.executable, '-c', BUILD, str(tmp_path / 'job')], env=environment)
    programs.wait_for((tmp_path / 'job.out' / '.train.progress' / 'train-00002-of-00004.part').exists, started)
    [process] = pathlib.Path(f'/proc/{started.pid}/task/{started.pid}/children').read_text().split()
    yield started, int(process), functools.partial(slow_files.release, gate)
    programs.finish([started])


def test_killed_and_started_again(tmp_path, whole, simple, waiting, monkeypatch):
    """Its process holds the lock and dies with it, even if it waits for an image or has been stopped."""
    killed, process, _ = waiting
    out = tmp_path / 'job.out'
    with monkeypatch.context() as patch, pytest.raises(errors.UserError, match='wait .*another --output_directory'):
        patch.setattr(job, 'LOCK_SECONDS', 0)
        build(simple, 'train', out, 4, 1)
    os.kill(process, signal.SIGSTOP)
    killed.kill()
    killed.wait()
    times = {path: path.stat().st_mtime_ns for path in out.glob('train-*')}
    assert [int(path.name[6:11]) for path in sorted(times)] == [0, 1]
    lines = []
    build(simple, 'train', out, 4, 1, log=lines.append)
    assert re.search('[23] of 4 shards', lines[0]) and lines[-1] == 'Finished writing all 40 images in data set.'
    assert not [line for line in programs.command_lines() if os.fsencode(out) in line]
    assert all(path.stat().st_mtime_ns == moment for path, moment in times.items())
    assert outputs(out) == outputs(whole[1])


def test_a_process_that_is_killed_is_reported(tmp_path, simple, waiting):
    failed, process, go_on = waiting
    os.kill(process, signal.SIGKILL)
    [(code, _, problems)] = programs.finish([failed])
    assert code == 1 and re.search('SIGKILL; .*same command', problems)
    assert list((tmp_path / 'job.out').rglob('*.part'))
    go_on()
    build(simple, 'train', tmp_path / 'job.out', 4, 1)
    assert sorted(os.listdir(tmp_path / 'job.out')) == sorted([*contents(tmp_path / 'job.out'), 'train.manifest.json'])


def test_what_a_killed_build_left_is_deleted_under_the_lock(tmp_path, monkeypatch):
    folder = tmp_path / '.train.progress'
    folder.mkdir()
    left, kept = ('train-00001-of-00002.part', 'part.images.npy', 'part.job.json'), ('images.npy', 'a.part.b')
    monkeypatch.setattr(job, 'LOCK_SECONDS', 0)
    with contextlib.closing(job.Job(tmp_path, 'train', 2)) as ours:
        ours.open('x')
        for name in (*left, *kept):
            (folder / name).write_text('x')
        with pytest.raises(errors.UserError, match='another build is writing'):
            job.Job(tmp_path, 'train', 2).open('x')
        assert {*left, *kept} <= {path.name for path in folder.iterdir()}
    with contextlib.closing(job.Job(tmp_path, 'train', 2)) as ours:
        ours.open('x')
        assert {path.name for path in folder.iterdir()} == {*kept, 'lock', 'job.json'}


@pytest.fixture(scope='module')
def killed(whole, tmp_path_factory):
    """The folder of a build that was killed before it wrote the manifest, to be left as it is."""
    out = tmp_path_factory.mktemp('killed') / 'out'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.Job, 'remove', lambda self: None)
        build(whole[0], 'train', out, 4, 1)
    (out / 'train.manifest.json').unlink()
    return out


@pytest.fixture
def unfinished(whole, killed, tmp_path):
    """(images, folder of 4 shards) of a build that was killed before it wrote the manifest."""
    return whole[0], pathlib.Path(shutil.copytree(killed, tmp_path / 'out'))


@pytest.mark.parametrize(
    'name,old,new',
    [
        ('train-00001-of-00004', '"shard": 1', '"shard": 5'),
        ('train-00001-of-00004', '"shard": 1', '"shard": 0'),
        ('train-00001-of-00004', '"records": 10', '"records": 14'),
        ('train-00001-of-00004', '"c0": ', '"c0": "x", "c9": '),
        ('train-00001-of-00004', '"sha256": "', '"sha256": "f'),
        ('train-00001-of-00004', '"bytes"', '"Bytes"'),
        ('train-00001-of-00004', '"digest"', '"Digest"'),
        ('train-00001-of-00004', '{', '['),
        ('job', '"fingerprint": "', '"fingerprint": "f'),
        ('job', '{', '[{'),
        ('images', '"files"', '"Files"'),
        ('options', '{', '[{'),
    ],
)
def test_what_a_killed_build_left_is_damaged(unfinished, whole, name, old, new):
    """It is written again from the images, once: the shards and the manifest are those of a build in one go."""
    (raw, out), lines = unfinished, []
    path = out / '.train.progress' / f'{name}.json'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    build(raw, 'train', out, 4, 1, log=lines.append)
    finished = {'job': 0, 'images': 4, 'options': 4}.get(name, 3) or 4  # the summaries say whose they are
    assert f'{finished} of 4 shards are finished' in lines[0] and outputs(out) == outputs(whole[1])


def test_a_summary_is_of_its_shard_and_its_build(unfinished, whole):
    raw, out = unfinished
    folder = out / '.train.progress'
    shutil.copy(folder / 'train-00001-of-00004.json', folder / 'train-00002-of-00004.json')
    (folder / 'job.json').unlink()
    other = build(raw, 'train', out, 4, 1, options=Options(seed=1))
    assert other['records'] == 40 and verify(out, 'train', quiet) == 0
    assert outputs(out).keys() == outputs(whole[1]).keys() and outputs(out) != outputs(whole[1])


@pytest.mark.parametrize('name', ['images.npy', 'images.json', 'options.json'])
def test_a_process_gets_what_was_saved(unfinished, name):
    """Or says in a line that it did not: a changed bit there would be a wrong shard."""
    raw, out = unfinished
    given, path = shards.fingerprint(raw, Options(), 4), out / '.train.progress' / name
    ours = job.Job(out, 'train', 4, given)
    assert shards.load(ours)[0].digest() == raw.digest()
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.Damaged, match='progress.*same command'):
        shards.load(ours)


@pytest.mark.parametrize(
    'change,words',
    [
        ({'bytes': None}, "without a whole 'train.manifest.json'"),
        ({'skipped': 3}, "without a whole 'train.manifest.json'"),
        ({'classes': {'c0': 'x'}}, "without a whole 'train.manifest.json'"),
        ({'records': 44}, 'it has 44 records, its shards have 40'),
        ({'bytes': 1}, 'it has 1 bytes, its shards have '),
        ({'classes': {'c0': 3}}, 'it has 40 records, its classes have 3'),
        ({'shards': []}, 'its shards are not train-00000-of-00004 to train-00003-of-00004'),
    ],
)
def test_a_manifest_that_contradicts_itself_is_said_in_a_line(built, change, words):
    raw, out = built
    path = out / 'train.manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (out / 'train-00001-of-00004').unlink()
    before = outputs(out)
    with pytest.raises(errors.UserError, match=words):
        build(raw, 'train', out, 4, 1)
    assert outputs(out) == before


def test_wrong_summaries_make_no_manifest(tmp_path, simple, monkeypatch):
    """Whatever wrote them: the manifest is checked before it is written."""
    real = shards.build_shard
    monkeypatch.setattr(shards, '_write_shards', lambda *_: [{**real_summary(simple, k), 'records': 9} for k in (0, 1)])

    def real_summary(images, shard) -> dict:
        return real(images, shard, 2, Options(), io.BytesIO())

    with pytest.raises(errors.UserError, match='it has 18 records, its classes have 40'):
        build(simple, 'train', tmp_path / 'out', 2, 1)
    assert not (tmp_path / 'out' / 'train.manifest.json').exists()


def test_progress_without_a_terminal(tmp_path, simple, monkeypatch):
    monkeypatch.setattr(progress, 'SECONDS', 0)
    lines = []
    build(simple, 'train', tmp_path / 'out', 4, 1, log=lines.append)
    told = [re.fullmatch(r'train: +\d+% (\d+)/40 \[.* images/s, [\d.]+ MB/s\]', line) for line in lines]
    assert [int(match[1]) for match in told if match][-1] == 40


# --- verify --------------------------------------------------------------------------------------------------


def change(out, name, edit):
    """Rewrite a shard and its entry in the manifest, so that only its contents can tell."""
    data = b''
    for record in edit([tfrecords.decode_example(data) for data in tfrecords.read(out / name)]):
        empty = {key: np.zeros(0, np.int64 if 'label' in key else np.float32) for key in record}
        data += tfrecords.frame(tfrecords.encode_example({key: record[key] or empty[key] for key in record}))
    (out / name).write_bytes(data)
    manifest = json.loads((out / 'train.manifest.json').read_text())
    entry = next(entry for entry in manifest['shards'] if entry['name'] == name)
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (out / 'train.manifest.json').write_text(json.dumps(manifest))


def test_verify_finds_damage_to_files(built):
    (_, out), lines = built, []
    flipped = bytearray((out / 'train-00000-of-00004').read_bytes())
    flipped[5000] ^= 1
    (out / 'train-00000-of-00004').write_bytes(flipped)
    (out / 'train-00001-of-00004').unlink()
    with open(out / 'train-00002-of-00004', 'ab') as file:
        file.write(b'more')
    assert verify(out, 'train', lines.append) == 1
    text = '\n'.join(lines)
    for pattern in ('00000-of-00004: .*SHA-256', '00000-of-00004: .*checksum', '00001-of-00004: cannot be read'):
        assert re.search(f'train-{pattern}', text)
    assert re.search(r'train-00002-of-00004: .* \d+ bytes', text) and 'train-00003' not in text
    with pytest.raises(errors.UserError, match='validation.manifest.json.* --output_directory'):
        verify(out, 'validation', quiet)


def test_verify_finds_wrong_contents(built):
    (_, out), lines, name = built, [], 'train-00002-of-00004'
    wrong = (
        ('image/class/label', [9], 'label'),
        ('image/class/label', [2, 2], 'label'),
        ('image/height', [13], '13'),
        ('image/class/synset', [b'c9'], 'c9'),
        ('image/encoded', [small(1)[:-20]], 'cut off'),
        ('image/encoded', [b'x'], 'broken image'),
        ('image/encoded', [small(1, 'L')], 'RGB JPEG'),
        ('image/depth', [3], 'image/depth'),
    )
    change(out, name, lambda rows: [row | {key: value} for row, (key, value, _) in zip(rows[:8], wrong, strict=True)])
    assert verify(out, 'train', lines.append) == 1
    patterns = [*(f'record {i} .*{pattern}' for i, (_, _, pattern) in enumerate(wrong)), '8 records .* 10']
    found = [line.removeprefix(f'{name}: ') for line in lines if line.startswith('train-')]
    for line, pattern in zip(found, patterns, strict=True):
        assert re.match(f'.*{pattern}', line), line
