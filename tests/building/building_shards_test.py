"""building.shards: what it writes, that it survives being killed, and that it finds damage."""

import hashlib
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from fixtures import ilsvrc
from PIL import Image

from official_resnet import errors
from official_resnet.building import boxes, image_list, job, progress, records, shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.records import Options
from official_resnet.building.verify import verify
from official_resnet.inputs import jpeg, tfrecords

SUFFIXES = ('.jpeg',)
BUILD = """
import sys
from official_resnet.building import image_list, shards
folder, name, num_shards, processes = sys.argv[1:]
shards.build(image_list.ImageList.load(folder), name, folder + '.out', int(num_shards), int(processes),
             log=lambda line: print(line, flush=True))
"""


def small(k=0, mode='RGB', size=(16, 12), kind='JPEG', **options):
    """Return a small picture as bytes, another one for each k."""
    buffer = io.BytesIO()
    Image.new('RGB', size, (k % 256, k // 256 % 256, 90)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def fill(root, files):
    """Write {class/name: bytes} and return the ImageList."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return image_list.from_folders(root, sorted({name.partition('/')[0] for name in files}), SUFFIXES)


@pytest.fixture
def simple(tmp_path):
    """40 small pictures of 4 classes."""
    return fill(tmp_path / 'raw', {f'c{k % 4}/c{k % 4}_{k}.JPEG': small(k) for k in range(40)})


@pytest.fixture(scope='module')
def built_once(tmp_path_factory):
    """The same pictures as 4 shards of training."""
    folder = tmp_path_factory.mktemp('built')
    raw = fill(folder / 'raw', {f'c{k % 4}/c{k % 4}_{k}.JPEG': small(k) for k in range(40)})
    shards.build(raw, 'train', folder / 'out', 4, 2, log=quiet)
    return raw, folder / 'out'


@pytest.fixture
def built(built_once, tmp_path):
    """(pictures, folder of 4 shards), to be damaged."""
    raw, out = built_once
    shutil.copytree(out, tmp_path / 'out')
    return raw, tmp_path / 'out'


def contents(folder, name='train'):
    """Return {shard: SHA-256}."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(f'{name}-*-of-*'))}


def examples(folder, name='train'):
    """Return {filename: features} of all shards."""
    found = [
        tfrecords.decode_example(data)
        for path in sorted(folder.glob(f'{name}-*-of-*'))
        for data in tfrecords.read(path)
    ]
    return {os.fsdecode(example['image/filename'][0]): example for example in found}


def quiet(line):
    """Tell nobody."""


# --- records -------------------------------------------------------------------------------------------------

# The table of the records that official/resnet reads; VarLen where there may be any number.
FEATURES = {
    **{
        f'image/{key}': tf.io.FixedLenFeature([], tf.string)
        for key in ('encoded', 'format', 'colorspace', 'filename', 'class/text', 'class/synset')
    },
    **{f'image/{key}': tf.io.FixedLenFeature([], tf.int64) for key in ('height', 'width', 'channels', 'class/label')},
    **{f'image/object/bbox/{key}': tf.io.VarLenFeature(tf.float32) for key in ('xmin', 'ymin', 'xmax', 'ymax')},
    'image/object/bbox/label': tf.io.VarLenFeature(tf.int64),
}


def plain(record):
    """Return {key: bytes, a number or a list} of tensors, without 'image/'."""
    values = {key.removeprefix('image/'): value.numpy() for key, value in record.items()}
    return {key: value if isinstance(value, bytes) else value.tolist() for key, value in values.items()}


def test_records_as_tensorflow_reads_them(tmp_path):
    raw = fill(
        tmp_path / 'raw', {'n1/n1_1.JPEG': small(1), 'n2/n2_1.JPEG': small(2), 'n2/n2_2.JPEG': small(3, size=(8, 9))}
    )
    (tmp_path / 'b.csv').write_text('n2_1.JPEG,0.1,0.2,0.3,0.4\nn2_1.JPEG,0,0,1,1\n')
    shards.build(
        raw,
        'train',
        tmp_path / 'out',
        2,
        1,
        options=Options({'n1': 'tench, fish', 'n2': 'Käfer'}, boxes.read_csv(tmp_path / 'b.csv')),
        log=quiet,
    )
    assert FEATURES.keys() == records.IMAGENET_KEYS
    found = {}
    for data in tf.data.TFRecordDataset(sorted(map(str, (tmp_path / 'out').glob('train-*-of-00002')))):
        record = {
            key: tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value
            for key, value in tf.io.parse_single_example(data, FEATURES).items()
        }
        assert tf.train.Example.FromString(data.numpy()).SerializeToString(deterministic=True) == data.numpy()
        assert tf.train.Example.FromString(data.numpy()).features.feature.keys() == FEATURES.keys()
        found[record['image/filename'].numpy()] = plain(record)
    expected = {'format': b'JPEG', 'colorspace': b'RGB', 'channels': 3}
    for name, label, text, size, encoded in (
        (b'n1_1.JPEG', 1, 'tench, fish', (16, 12), small(1)),
        (b'n2_1.JPEG', 2, 'Käfer', (16, 12), small(2)),
        (b'n2_2.JPEG', 2, 'Käfer', (8, 9), small(3, size=(8, 9))),
    ):
        record = found.pop(name)
        found_boxes = {key: record.pop(f'object/bbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax', 'label')}
        assert record == {
            **expected,
            'filename': name,
            'class/label': label,
            'class/text': text.encode(),
            'class/synset': name[:2],
            'width': size[0],
            'height': size[1],
            'encoded': encoded,
        }
        if name == b'n2_1.JPEG':
            assert found_boxes['label'] == [2, 2] and found_boxes['xmin'] == [np.float32(0.1), 0]
            assert [found_boxes[key][0] for key in ('ymin', 'xmax', 'ymax')] == np.float32([0.2, 0.3, 0.4]).tolist()
        else:
            assert set(map(tuple, found_boxes.values())) == {()}
    assert not found


# The 22 CMYK pictures, and the PNG named JPEG, of ILSVRC2012: official/resnet knew them by name.
CMYK = """n01739381_1309 n02077923_14822 n02447366_23489 n02492035_15739 n02747177_10752 n03018349_4028 n03062245_4620
    n03347037_9675 n03467068_12171 n03529860_11437 n03544143_17228 n03633091_5218 n03710637_5125 n03961711_5286
    n04033995_2932 n04258138_17003 n04264628_27969 n04336792_7448 n04371774_5854 n04596742_4225 n07583066_647
    n13037406_4650""".split()
PNG = 'n02105855_2933'


def test_odd_pictures(tmp_path):
    files = {f'{name[:9]}/{name}.JPEG': small(9 * k, 'CMYK', quality=100) for k, name in enumerate(CMYK)}
    files[f'{PNG[:9]}/{PNG}.JPEG'] = small(1234, kind='PNG')
    files['n00000001/grey.JPEG'] = small(40, 'L')
    files['n00000001/whole.JPEG'] = whole = small(41)
    files['n00000001/cut.JPEG'] = whole[:-2]
    files['n00000001/empty.JPEG'] = b''
    files['n00000001/text.JPEG'] = b'no picture'
    raw, lines = fill(tmp_path / 'raw', files), []
    manifest = shards.build(raw, 'train', tmp_path / 'out', 3, 2, log=lines.append)
    assert len(CMYK) == 22 and manifest['records'] == len(files) - 3
    assert manifest['reencoded'] == {
        **{f'{name[:9]}/{name}.JPEG': 'JPEG, CMYK' for name in CMYK},
        f'{PNG[:9]}/{PNG}.JPEG': 'PNG',
        'n00000001/grey.JPEG': 'JPEG, grey',
    }
    assert {name.rpartition('/')[2] for name in manifest['broken']} == {'cut.JPEG', 'empty.JPEG', 'text.JPEG'}
    assert 'no end of image' in manifest['broken']['n00000001/cut.JPEG']
    assert sum(line.startswith("broken, left out: 'n00000001/") for line in lines) == 3
    assert manifest['classes']['n00000001'] == 2 and sum(manifest['classes'].values()) == manifest['records']
    assert lines[-1] == f'Finished writing all {manifest["records"]} images in data set.'
    found = examples(tmp_path / 'out')
    assert found['whole.JPEG']['image/encoded'] == [whole]
    for name in CMYK:
        encoded = found[f'{name}.JPEG']['image/encoded'][0]
        assert jpeg.inspect(encoded).is_rgb_jpeg
        original = tf.io.decode_jpeg(files[f'{name[:9]}/{name}.JPEG'], channels=3).numpy().astype(int)
        np.testing.assert_allclose(tf.io.decode_jpeg(encoded).numpy(), original, atol=4, err_msg=name)
    assert verify(tmp_path / 'out', 'train', quiet) == 0
    with pytest.raises(errors.UserError, match='n00000001/(cut|empty|text).JPEG. is broken .*--on_broken=skip'):
        shards.build(raw, 'train', tmp_path / 'other', 3, 1, options=Options(on_broken='fail'), log=quiet)


def test_decoding_leaves_out_more(tmp_path):
    damaged = bytearray(small(5))
    damaged[damaged.index(b'\xff\xc4') + 8] ^= 255  # a Huffman table
    raw = fill(tmp_path / 'raw', {'a/1.JPEG': small(6), 'a/2.JPEG': bytes(damaged)})
    for check, count in (('structure', 2), ('decode', 1)):
        assert (
            shards.build(raw, 'train', tmp_path / check, 1, 1, options=Options(check=check), log=quiet)['records']
            == count
        )


def test_layout_of_own_folders(tmp_path, simple):
    manifest = shards.build(simple, 'train', tmp_path / 'out', 2, 1, options=Options(layout='folder'), log=quiet)
    for name, example in examples(tmp_path / 'out').items():
        assert example.keys() == records.FOLDER_KEYS and example['image/class/text'] == [name[:2].encode()]
        assert example['image/class/label'] == [int(name[1]) + 1]
    assert manifest['layout'] == 'folder' and verify(tmp_path / 'out', 'train', quiet) == 0


# --- shards --------------------------------------------------------------------------------------------------


def test_shards_depend_on_pictures_seed_and_number_alone(tmp_path, simple):
    simple.save(tmp_path / 'kept')
    kept = ImageList.load(tmp_path / 'kept')
    manifest = shards.build(simple, 'train', tmp_path / 'a', 7, 2, log=quiet)
    shards.build(kept, 'train', tmp_path / 'b', 7, 1, log=quiet)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    for shard, entry in enumerate(manifest['shards']):
        output = io.BytesIO()
        summary = shards.build_shard(kept, shard, 7, Options(), output, opener=lambda path: open(path, 'rb'))
        assert json.loads(json.dumps(summary)) == summary
        assert hashlib.sha256(output.getvalue()).hexdigest() == entry['sha256'] == summary['sha256']
        assert (entry['records'], entry['bytes']) == (summary['records'], len(output.getvalue()))
    assert [entry['records'] for entry in manifest['shards']] == [5, 6, 6, 5, 6, 6, 6]
    assert contents(tmp_path / 'a') == {entry['name']: entry['sha256'] for entry in manifest['shards']}
    assert json.loads((tmp_path / 'a' / 'train.manifest.json').read_text()) == manifest
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == sorted(
        [*contents(tmp_path / 'a'), 'train.manifest.json']
    )
    assert len(examples(tmp_path / 'a')) == 40
    shards.build(simple, 'train', tmp_path / 'c', 7, 2, options=Options(seed=1), log=quiet)
    assert not set(contents(tmp_path / 'a').values()) & set(contents(tmp_path / 'c').values())


def test_the_order_is_fixed():
    """Other numpy, other machine: the same order, or a build could not be continued there."""
    assert shards.shard_rows(12, 0, 1, 12345).tolist() == [7, 0, 10, 1, 5, 4, 6, 8, 3, 2, 9, 11]
    rows = np.concatenate([shards.shard_rows(1001, shard, 8, 12345) for shard in range(8)])
    assert sorted(rows.tolist()) == list(range(1001))


def test_more_shards_than_pictures(tmp_path, simple):
    manifest = shards.build(simple, 'train', tmp_path / 'out', 50, 2, log=quiet)
    assert sum(entry['records'] == 0 for entry in manifest['shards']) == 10
    assert verify(tmp_path / 'out', 'train', quiet) == 0


def test_nothing_to_do_and_what_is_missing(tmp_path, simple):
    out, lines = tmp_path / 'out', []
    manifest = shards.build(simple, 'train', out, 4, 1, log=quiet)
    before = contents(out)
    assert shards.build(simple, 'train', out, 4, 2, log=lines.append) == manifest
    assert len(lines) == 1 and 'nothing to do' in lines[0]
    (out / 'train-00001-of-00004').unlink()
    (out / 'train-00003-of-00004').write_bytes(b'short')
    assert shards.build(simple, 'train', out, 4, 2, log=quiet) == manifest and contents(out) == before
    (out / 'train-00001-of-00004').unlink()
    i = int(shards.shard_rows(40, 1, 4, 12345)[0])
    pathlib.Path(simple.files[0], simple.name(i)).write_bytes(small(999))
    with pytest.raises(errors.UserError, match='give another one'):
        shards.build(simple, 'train', out, 4, 2, log=quiet)


def test_other_builds_are_refused(built):
    simple, out = built
    shards.build(simple, 'validation', out, 4, 1, log=quiet)
    for change in ({'seed': 1}, {'texts': {'c1': 'x'}}, {'check': 'decode'}, {'layout': 'folder'}):
        with pytest.raises(errors.UserError, match="manifest.json' is of a build of other images or options; .*del"):
            shards.build(simple, 'train', out, 4, 2, options=Options(**change), log=quiet)
    with pytest.raises(errors.UserError, match='is of a build of other'):
        shards.build(simple, 'train', out, 5, 2, log=quiet)
    assert not list(out.glob('.*'))
    (out / 'train.manifest.json').unlink()
    with pytest.raises(errors.UserError, match='is there already, without'):
        shards.build(simple, 'train', out, 4, 2, log=quiet)


def test_pictures_that_cannot_be_read_stop_the_build(tmp_path, simple):
    lost = pathlib.Path(simple.files[0], simple.name(7))
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(errors.UserError, match=f'{lost.name}. cannot be read .*same command'):
        shards.build(simple, 'train', tmp_path / 'out', 8, 1, log=quiet)
    with pytest.raises(errors.UserError, match="'.*train.progress' is of a build of other"):
        shards.build(simple, 'train', tmp_path / 'out', 8, 1, options=Options(seed=1), log=quiet)
    lost.write_bytes(data)
    os.rename(tmp_path / 'raw', tmp_path / 'moved')  # where pictures lie does not count
    moved = ImageList((str(tmp_path / 'moved'),), simple.rows, simple.synsets)
    assert shards.build(moved, 'train', tmp_path / 'out', 8, 1, log=quiet)['records'] == 40


def test_no_room_on_the_disk(tmp_path, simple):
    """A file may not grow beyond 2000 bytes; what fits stays, and the build continues."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    simple.save(tmp_path / 'kept')
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else a signal comes instead of the error
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12000, limits[1]))
        with pytest.raises(errors.UserError, match="cannot write .*out': .*same command again") as error:
            shards.build(simple, 'train', tmp_path / 'out', 2, 2, log=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert '\n' not in str(error.value) and not contents(tmp_path / 'out')
    assert shards.build(simple, 'train', tmp_path / 'out', 2, 2, log=quiet)['records'] == 40


def test_a_disk_known_to_be_too_small(tmp_path):
    rows = np.array([(0, 0, 1 << 60, 1, b'a')], [*image_list.ROW_FIELDS, ('name', 'S1')])
    with pytest.raises(errors.UserError, match='GB free, train takes'):
        shards.build(ImageList((str(tmp_path),), rows, ('', 'x')), 'train', tmp_path / 'out', 1, 1, log=quiet)


def test_an_output_folder_that_is_none(tmp_path, simple):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(errors.UserError, match='cannot write .*--output_directory'):
        shards.build(simple, 'train', tmp_path / 'file' / 'out', 1, 1, log=quiet)


# --- killed, stopped, twice ----------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path):
    """100 pictures that take some time: PNGs, which are encoded anew."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, 'PNG', compress_level=0)
    raw = fill(tmp_path / 'raw', {f'c{k % 3}/{k}.JPEG': buffer.getvalue() + bytes([k]) for k in range(100)})
    raw.save(tmp_path / 'job')
    return tmp_path / 'job'


def start(folder, processes=2):
    """Start a build of 10 shards as a program."""
    return subprocess.Popen(
        [sys.executable, '-c', BUILD, str(folder), 'train', '10', str(processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.02)


def processes_of(folder):
    """Return the command lines of processes that name a folder."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(str(folder)) in command:
            found.append(command)
    return found


def test_killed_and_started_again(tmp_path, slow):
    out = pathlib.Path(f'{slow}.out')
    first = start(slow)
    wait_for(lambda: len(contents(out)) >= 2)
    first.kill()
    first.communicate()
    wait_for(lambda: not processes_of(tmp_path), 5)
    done = contents(out)
    assert 2 <= len(done) < 10 and not (out / 'train.manifest.json').exists()
    times = {name: os.stat(out / name).st_mtime_ns for name in done}
    second = start(slow)
    text, problems = second.communicate(timeout=60)
    assert second.returncode == 0 and not problems, problems
    assert re.search(r'going on, \d of 10 shards are finished', text) and 'Finished writing all 100 images' in text
    kept = sum(os.stat(out / name).st_mtime_ns == moment for name, moment in times.items())
    assert kept >= len(times) - 2  # one a process may have been in its place, but not in the journal
    shards.build(ImageList.load(slow), 'train', tmp_path / 'undisturbed', 10, 2, log=quiet)
    assert contents(out) == contents(tmp_path / 'undisturbed')
    assert (out / 'train.manifest.json').read_bytes() == (tmp_path / 'undisturbed' / 'train.manifest.json').read_bytes()
    assert not list(out.glob('.*')) and not list(out.glob('*.part'))


def test_interrupted(tmp_path, slow):
    """Ctrl-C ends the processes too; another build meanwhile is refused."""
    first = start(slow)
    wait_for(lambda: contents(pathlib.Path(f'{slow}.out')))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(errors.UserError, match='another build is writing'):
        patch.setattr(job, 'LOCK_SECONDS', 0)
        shards.build(ImageList.load(slow), 'train', f'{slow}.out', 10, 2, log=quiet)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)
    assert first.returncode != 0 and not processes_of(tmp_path)


def test_a_process_that_is_killed_is_told(tmp_path, slow):
    first = start(slow, processes=1)
    wait_for(lambda: contents(pathlib.Path(f'{slow}.out')))
    children = pathlib.Path(f'/proc/{first.pid}/task/{first.pid}/children').read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    _, problems = first.communicate(timeout=20)
    assert first.returncode == 1 and 'was ended by SIGKILL; run the same command again' in problems


def test_progress_without_a_terminal(tmp_path, simple, monkeypatch):
    monkeypatch.setattr(progress, 'SECONDS', 0)
    lines = []
    shards.build(simple, 'train', tmp_path / 'out', 4, 1, log=lines.append)
    told = [re.fullmatch(r'train: +\d+% (\d+)/40 \[.* images/s, [\d.]+ MB/s\]', line) for line in lines]
    assert [int(match[1]) for match in told if match][-1] == 40


# --- verify --------------------------------------------------------------------------------------------------


def change(out, name, edit):
    """Rewrite a shard and its entry in the manifest, so that only its contents can tell."""
    records = edit([tfrecords.decode_example(data) for data in tfrecords.read(out / name)])
    data = b''.join(
        tfrecords.frame(
            tfrecords.encode_example(
                {key: value or np.zeros(0, np.int64 if 'label' in key else np.float32) for key, value in record.items()}
            )
        )
        for record in records
    )
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
    assert re.search('train-00000-of-00004: has the SHA-256', text)
    assert re.search('train-00000-of-00004: .*wrong checksum', text)
    assert re.search('train-00001-of-00004: cannot be read', text)
    assert re.search('train-00002-of-00004: has .* bytes instead', text) and 'train-00003' not in text
    with pytest.raises(errors.UserError, match='is missing or damaged'):
        verify(out, 'validation', quiet)


@pytest.mark.parametrize(
    'key,value,message',
    [
        ('image/class/label', [9], 'label'),
        ('image/class/label', [2, 2], 'label'),
        ('image/height', [13], 'has the size'),
        ('image/class/synset', [b'c9'], 'has the class'),
        ('image/encoded', [small(1)[:-20]], 'cut off'),
        ('image/encoded', [b'x'], 'broken image'),
        ('image/encoded', [small(1, 'L')], 'no RGB JPEG'),
        ('image/depth', [3], 'keys'),
        (None, None, '9 records instead of 10'),
    ],
)
def test_verify_finds_wrong_contents(built, key, value, message):
    (_, out), lines = built, []
    change(
        out,
        'train-00002-of-00004',
        lambda records: [{**record, key: value} for record in records] if key else records[1:],
    )
    assert verify(out, 'train', lines.append) == 1
    faults = [line for line in lines if line.startswith('train-00002-of-00004: ') and re.search(message, line)]
    assert len(faults) == (10 if key else 1), lines


# --- tar of tars, as the sample has it -------------------------------------------------------------------------


def test_real_pictures(tmp_path):
    sample = ilsvrc.sample()
    raw = fill(tmp_path / 'raw', {f'{synset}/{synset}_1.JPEG': data for synset, (_, data) in sample.items()})
    manifest = shards.build(raw, 'validation', tmp_path / 'out', 2, 2, options=Options(check='decode'), log=quiet)
    assert manifest['records'] == len(sample) and not manifest['broken'] and len(manifest['reencoded']) in (6, 7)
    assert verify(tmp_path / 'out', 'validation', quiet) == 0
