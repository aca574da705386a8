"""building.shards: what it writes, that a killed build continues, and that verify finds damage."""

import functools
import hashlib
import io
import json
import os
import pathlib
import re
import resource
import signal
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from fixtures import ilsvrc, programs
from fixtures.data_commands import examples, outputs, write_images
from fixtures.imagenet_shards import encoded
from PIL import Image

from official_resnet import errors
from official_resnet.building import boxes, image_list, job, progress, records, shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.records import Options
from official_resnet.building.verify import verify
from official_resnet.inputs import jpeg, tfrecords

BUILD = """
import sys
from official_resnet.building import image_list, shards
folder, processes = sys.argv[1:]
shards.build(image_list.ImageList.load(folder), 'train', folder + '.out', 10, int(processes))
"""


def small(k=0, mode='RGB', size=(16, 12), kind='JPEG', **options):
    """Return the bytes of a small image, another one for each k."""
    return encoded(Image.new('RGB', size, (k % 256, k // 256 % 256, 90)).convert(mode), kind, **options)


def quiet(line):
    """Tell nobody."""


build = functools.partial(shards.build, log=quiet)


@pytest.fixture
def simple(tmp_path):
    """40 small images of 4 classes."""
    return write_images(tmp_path / 'raw', {f'c{k % 4}/c{k % 4}_{k}.JPEG': small(k) for k in range(40)})


@pytest.fixture
def built(simple, tmp_path):
    """(images, folder of 4 shards), to be damaged."""
    build(simple, 'train', tmp_path / 'out', 4, 1)
    return simple, tmp_path / 'out'


def contents(folder):
    """Return {name: bytes} of the training shards."""
    return {name: data for name, data in outputs(folder).items() if '-of-' in name} if folder.is_dir() else {}


# --- records -------------------------------------------------------------------------------------------------

# What official/resnet reads; VarLen where there may be any number.
STRINGS = ('encoded', 'format', 'colorspace', 'filename', 'class/text', 'class/synset')
FEATURES = {
    **{f'image/{key}': tf.io.FixedLenFeature([], tf.string) for key in STRINGS},
    **{f'image/{key}': tf.io.FixedLenFeature([], tf.int64) for key in ('height', 'width', 'channels', 'class/label')},
    **{f'image/object/bbox/{key}': tf.io.VarLenFeature(tf.float32) for key in ('xmin', 'ymin', 'xmax', 'ymax')},
    'image/object/bbox/label': tf.io.VarLenFeature(tf.int64),
}


def as_tensorflow_reads(data):
    """Return {key: bytes, a number or a list} of a record, without 'image/'."""
    assert tf.train.Example.FromString(data).SerializeToString(deterministic=True) == data
    assert tf.train.Example.FromString(data).features.feature.keys() == FEATURES.keys()
    values = {}
    for key, value in tf.io.parse_single_example(data, FEATURES).items():
        value = (value.values if isinstance(value, tf.SparseTensor) else value).numpy()
        values[key.removeprefix('image/')] = value if isinstance(value, bytes) else value.tolist()
    return values


def test_records_as_tensorflow_reads_them(tmp_path):
    files = {'n1/n1_1.JPEG': small(1), 'n2/n2_1.JPEG': small(2), 'n2/n2_2.JPEG': small(3, size=(8, 9))}
    raw = write_images(tmp_path / 'raw', files)
    (tmp_path / 'b.csv').write_text('n2_1.JPEG,0.1,0.2,0.3,0.4\nn2_1.JPEG,0,0,1,1\n')
    options = Options({'n1': 'tench, fish', 'n2': 'Käfer'}, boxes.read_csv(tmp_path / 'b.csv'))
    build(raw, 'train', tmp_path / 'out', 2, 1, options=options)
    assert FEATURES.keys() == records.IMAGENET_KEYS
    paths = sorted(map(str, (tmp_path / 'out').glob('train-*-of-00002')))
    found = [as_tensorflow_reads(data.numpy()) for data in tf.data.TFRecordDataset(paths)]
    two = {'xmin': [0.1, 0], 'ymin': [0.2, 0], 'xmax': [0.3, 1], 'ymax': [0.4, 1], 'label': [2, 2]}
    two = {f'object/bbox/{key}': np.float32(values).tolist() for key, values in two.items()}
    expected = [
        {
            **{'format': b'JPEG', 'colorspace': b'RGB', 'channels': 3, 'encoded': data},
            **{'filename': name[3:].encode(), 'class/synset': name[:2].encode(), 'class/label': int(name[1])},
            **{'class/text': 'Käfer'.encode() if name[1] == '2' else b'tench, fish'},
            **({'width': 8, 'height': 9} if name[3:] == 'n2_2.JPEG' else {'width': 16, 'height': 12}),
            **(two if name[3:] == 'n2_1.JPEG' else dict.fromkeys(two, [])),
        }
        for name, data in files.items()
    ]
    assert sorted(found, key=lambda record: record['filename']) == expected


# The 22 CMYK images, and the PNG named JPEG, of ILSVRC2012: official/resnet knew them by name.
CMYK = """n01739381_1309 n02077923_14822 n02447366_23489 n02492035_15739 n02747177_10752 n03018349_4028 n03062245_4620
    n03347037_9675 n03467068_12171 n03529860_11437 n03544143_17228 n03633091_5218 n03710637_5125 n03961711_5286
    n04033995_2932 n04258138_17003 n04264628_27969 n04336792_7448 n04371774_5854 n04596742_4225 n07583066_647
    n13037406_4650""".split()
PNG = 'n02105855_2933'


def test_odd_images(tmp_path):
    files = {f'{name[:9]}/{name}.JPEG': small(9 * k, 'CMYK', quality=100) for k, name in enumerate(CMYK)}
    odd = dict.fromkeys(files, 'JPEG, CMYK') | {f'{PNG[:9]}/{PNG}.JPEG': 'PNG', 'n1/grey.JPEG': 'JPEG, grey'}
    files |= {f'{PNG[:9]}/{PNG}.JPEG': small(1234, kind='PNG'), 'n1/grey.JPEG': small(40, 'L')}
    broken = {'n1/cut.JPEG': small(41)[:-2], 'n1/empty.JPEG': b'', 'n1/text.JPEG': b'no image'}
    files |= {'n1/whole.JPEG': small(41), **broken}
    raw, lines = write_images(tmp_path / 'raw', files), []
    manifest = build(raw, 'train', tmp_path / 'out', 3, 2, log=lines.append)
    assert manifest['records'] == len(files) - 3 == 25 and manifest['reencoded'] == odd
    assert manifest['broken'].keys() == broken.keys() and 'no end of image' in manifest['broken']['n1/cut.JPEG']
    for name in broken:
        assert sum(f"'{name}'" in line for line in lines) == 1
    assert manifest['classes']['n1'] == 2 and sum(manifest['classes'].values()) == manifest['records']
    assert lines[-1] == 'Finished writing all 25 images in data set.'
    found = {name: example['image/encoded'][0] for name, example in examples(tmp_path / 'out').items()}
    assert found['whole.JPEG'] == small(41)
    for name in CMYK:
        assert jpeg.inspect(found[f'{name}.JPEG']).is_rgb_jpeg
        original = tf.io.decode_jpeg(files[f'{name[:9]}/{name}.JPEG'], channels=3).numpy().astype(int)
        np.testing.assert_allclose(tf.io.decode_jpeg(found[f'{name}.JPEG']).numpy(), original, atol=4, err_msg=name)
    assert verify(tmp_path / 'out', 'train', quiet) == 0
    with pytest.raises(errors.UserError, match="'n1/(cut|empty|text).JPEG' .*--on_broken=skip"):
        build(raw, 'train', tmp_path / 'other', 3, 1, options=Options(on_broken='fail'))


def test_decoding_leaves_out_more(tmp_path):
    damaged = bytearray(small(5))
    damaged[damaged.index(b'\xff\xc4') + 8] ^= 255  # a Huffman table
    raw = write_images(tmp_path / 'raw', {'a/1.JPEG': small(6), 'a/2.JPEG': bytes(damaged)})
    for check, count in (('structure', 2), ('decode', 1)):
        assert build(raw, 'train', tmp_path / check, 1, 1, options=Options(check=check))['records'] == count


# --- shards --------------------------------------------------------------------------------------------------


def test_shards_depend_on_images_seed_and_number_alone(tmp_path, simple):
    simple.save(tmp_path / 'kept')
    kept = ImageList.load(tmp_path / 'kept')
    manifest = build(simple, 'train', tmp_path / 'a', 7, 2)
    build(kept, 'train', tmp_path / 'b', 7, 1)
    found = contents(tmp_path / 'a')
    assert found == contents(tmp_path / 'b') and len(examples(tmp_path / 'a')) == 40
    for shard, entry in enumerate(manifest['shards']):
        output = io.BytesIO()
        summary = shards.build_shard(kept, shard, 7, Options(), output, opener=lambda path: open(path, 'rb'))
        assert json.loads(json.dumps(summary)) == summary and output.getvalue() == found[entry['name']]
        assert hashlib.sha256(output.getvalue()).hexdigest() == entry['sha256'] == summary['sha256']
        assert (entry['records'], entry['bytes']) == (summary['records'], len(output.getvalue()))
    assert [entry['records'] for entry in manifest['shards']] == [5, 6, 6, 5, 6, 6, 6]
    assert json.loads((tmp_path / 'a' / 'train.manifest.json').read_text()) == manifest
    assert sorted(os.listdir(tmp_path / 'a')) == sorted([*found, 'train.manifest.json'])
    manifest = build(simple, 'train', tmp_path / 'c', 50, 2, options=Options(seed=1))  # more shards than images
    assert sum(entry['records'] == 0 for entry in manifest['shards']) == 10
    assert verify(tmp_path / 'c', 'train', quiet) == 0 and list(examples(tmp_path / 'c')) != list(
        examples(tmp_path / 'a')
    )


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
def slow(tmp_path):
    """100 images that take some time: PNGs, which are encoded anew."""
    noise = encoded(np.random.default_rng(0).integers(0, 256, (300, 300, 3)), 'PNG', compress_level=0)
    raw = write_images(tmp_path / 'raw', {f'c{k % 3}/{k}.JPEG': noise + bytes([k]) for k in range(100)})
    raw.save(tmp_path / 'job')
    return tmp_path / 'job'


def start(folder, processes=2):
    """Start a build of 10 shards as a program, and wait for the first shard."""
    process = programs.start_interruptible([sys.executable, '-c', BUILD, str(folder), str(processes)])
    wait_for(lambda: contents(pathlib.Path(f'{folder}.out')))
    return process


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.02)


def processes_of(folder):
    """Return the command lines of processes that name a folder."""
    return [line for line in programs.command_lines() if os.fsencode(folder) in line]


def test_killed_and_started_again(tmp_path, slow):
    out = pathlib.Path(f'{slow}.out')
    first = start(slow)
    first.kill()
    first.communicate()
    wait_for(lambda: not processes_of(tmp_path))
    times = {name: os.stat(out / name).st_mtime_ns for name in contents(out)}
    assert 1 <= len(times) < 10 and not (out / 'train.manifest.json').exists()
    lines = []
    build(ImageList.load(slow), 'train', out, 10, 2, log=lines.append)
    assert re.search(r'\d of 10 shards', lines[0]) and lines[-1] == 'Finished writing all 100 images in data set.'
    kept = sum(os.stat(out / name).st_mtime_ns == moment for name, moment in times.items())
    assert kept >= len(times) - 2  # one a process may have been in its place, but not in the journal
    build(ImageList.load(slow), 'train', tmp_path / 'undisturbed', 10, 2)
    assert outputs(out) == outputs(tmp_path / 'undisturbed')
    assert not list(out.glob('.*')) and not list(out.glob('*.part'))


def test_interrupted(tmp_path, slow):
    """Ctrl-C ends the processes too. Another build meanwhile is refused."""
    first = start(slow)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(errors.UserError, match='another --output_directory'):
        patch.setattr(job, 'LOCK_SECONDS', 0)
        build(ImageList.load(slow), 'train', f'{slow}.out', 10, 2)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode != 0 and not processes_of(tmp_path)


def test_a_process_that_is_killed_is_reported(slow):
    first = start(slow, processes=1)
    [child] = pathlib.Path(f'/proc/{first.pid}/task/{first.pid}/children').read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _, problems = first.communicate(timeout=60)
    assert first.returncode == 1 and re.search('SIGKILL; .*same command', problems)


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


@pytest.mark.parametrize(
    'key,value,pattern',
    [
        ('image/class/label', [9], 'label'),
        ('image/class/label', [2, 2], 'label'),
        ('image/height', [13], '13'),
        ('image/class/synset', [b'c9'], 'c9'),
        ('image/encoded', [small(1)[:-20]], 'cut off'),
        ('image/encoded', [b'x'], 'broken image'),
        ('image/encoded', [small(1, 'L')], 'RGB JPEG'),
        ('image/depth', [3], 'image/depth'),
        (None, None, '9 records .* 10'),
    ],
)
def test_verify_finds_wrong_contents(built, key, value, pattern):
    (_, out), lines, name = built, [], 'train-00002-of-00004'
    change(out, name, lambda rows: [{**row, key: value} for row in rows] if key else rows[1:])
    assert verify(out, 'train', lines.append) == 1
    faults = [line for line in lines if re.search(f'^{name}: .*{pattern}', line)]
    assert len(faults) == (10 if key else 1), lines


def test_real_images(tmp_path):
    sample = ilsvrc.sample()
    raw = write_images(tmp_path / 'raw', {f'{synset}/{synset}_1.JPEG': data for synset, (_, data) in sample.items()})
    manifest = build(raw, 'validation', tmp_path / 'out', 2, 2, options=Options(check='decode'))
    assert manifest['records'] == len(sample) and not manifest['broken'] and len(manifest['reencoded']) in (6, 7)
    assert verify(tmp_path / 'out', 'validation', quiet) == 0
