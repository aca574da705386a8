"""The program that builds ImageNet's shards from folders: upstream's flags and names, and its mistakes."""

import os
import signal
import subprocess
import sys

import pytest
from fixtures import data_commands, ilsvrc

from official_resnet.building.verify import verify
from official_resnet.inputs import tfrecords

PROGRAM = data_commands.FOLDER / 'build_imagenet_data.py'
build_imagenet_data = data_commands.load('build_imagenet_data')


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """The folders that upstream's downloading left, and its lists; the working folder is elsewhere."""
    layout = ilsvrc.make(tmp_path / 'lists', num_synsets=3, train_pictures=4, validation_pictures=2)
    for name, data in layout.train.items():
        _write(tmp_path / 'train' / name[:9] / name, data)
    for (name, data), synset in zip(layout.validation.items(), layout.validation_synsets, strict=True):
        _write(tmp_path / 'validation' / synset / name, data)
    (tmp_path / 'boxes.csv').write_bytes(layout.csv)
    (tmp_path / 'cwd').mkdir()
    monkeypatch.chdir(tmp_path / 'cwd')
    return tmp_path, layout


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def arguments(folder, **changed):
    values = {
        'train_directory': folder / 'train',
        'validation_directory': folder / 'validation',
        'output_directory': folder / 'out',
        'train_shards': 3,
        'validation_shards': 2,
        'num_threads': 2,
        'labels_file': folder / 'lists' / 'imagenet_lsvrc_2015_synsets.txt',
        'imagenet_metadata_file': folder / 'lists' / 'imagenet_metadata.txt',
        'bounding_box_file': folder / 'boxes.csv',
        **changed,
    }
    return ['build_imagenet_data.py', *(f'--{name}={value}' for name, value in values.items() if value is not None)]


def read(folder, name):
    return [
        tfrecords.decode_example(data)
        for path in sorted(folder.glob(f'{name}-*-of-*'))
        for data in tfrecords.read(path)
    ]


def test_the_program(raw, capfd):
    folder, layout = raw
    assert build_imagenet_data.main([*arguments(folder), '--verify']) == 0
    lines = capfd.readouterr().out.splitlines()
    finished = [line for line in lines if line.startswith('Finished')]
    assert finished == ['Finished writing all 6 images in data set.', 'Finished writing all 12 images in data set.']
    assert sum('no faults' in line for line in lines) == 2
    assert sorted(path.name for path in (folder / 'out').iterdir()) == [
        'train-00000-of-00003',
        'train-00001-of-00003',
        'train-00002-of-00003',
        'train.manifest.json',
        'validation-00000-of-00002',
        'validation-00001-of-00002',
        'validation.manifest.json',
    ]
    texts = dict(line.split('\t') for line in (folder / 'lists' / 'imagenet_metadata.txt').read_text().splitlines())
    train = read(folder / 'out', 'train')
    assert {example['image/filename'][0].decode(): example['image/encoded'][0] for example in train} == layout.train
    boxes = 0
    for example in train + read(folder / 'out', 'validation'):
        synset = example['image/class/synset'][0].decode()
        assert example['image/class/label'] == [layout.synsets.index(synset) + 1]
        assert example['image/class/text'] == [texts[synset].encode()]
        boxes += len(example['image/object/bbox/label'])
    assert boxes == len(layout.csv.splitlines()) > 0
    names = [name.decode() for example in read(folder / 'out', 'validation') for name in example['image/filename']]
    assert sorted(names) == sorted(layout.validation)
    # What is built needs no pictures to be looked at again.
    assert (
        build_imagenet_data.main(
            [*arguments(folder, train_directory='/absent', validation_directory='/absent'), '--verify']
        )
        == 0
    )
    (folder / 'out' / 'train-00001-of-00003').unlink()
    assert build_imagenet_data.main([*arguments(folder), '--verify']) == 1


def test_defaults_are_upstreams():
    values = build_imagenet_data.define_flags()
    values(['x'])
    names = (
        'train_directory',
        'validation_directory',
        'output_directory',
        'train_shards',
        'validation_shards',
        'num_threads',
        'labels_file',
        'imagenet_metadata_file',
        'bounding_box_file',
        'seed',
    )
    assert {name: values[name].value for name in names} == {
        'train_directory': '/tmp/',
        'validation_directory': '/tmp/',
        'output_directory': '/tmp/',
        'train_shards': 1024,
        'validation_shards': 128,
        'num_threads': 8,
        'labels_file': 'imagenet_lsvrc_2015_synsets.txt',
        'imagenet_metadata_file': 'imagenet_metadata.txt',
        'bounding_box_file': './imagenet_2012_bounding_boxes.csv',
        'seed': 12345,
    }


def test_without_lists_and_boxes(raw, capfd):
    """Default names that are not there: the 1000 classes, of which this folder lacks most."""
    folder, _ = raw
    argv = arguments(folder, labels_file=None, imagenet_metadata_file=None, bounding_box_file=None)
    assert build_imagenet_data.main(argv) == 1
    out, err = capfd.readouterr()
    assert 'records have no boxes' in out and "validation/n01440764' cannot be read" in err
    assert build_imagenet_data.main([*arguments(folder, bounding_box_file=None), '--validation_directory=']) == 0
    assert not any(example['image/object/bbox/xmin'] for example in read(folder / 'out', 'train'))
    assert not list((folder / 'out').glob('validation*'))


@pytest.mark.parametrize(
    'changed,message',
    [
        ({'labels_file': 'absent'}, "labels_file 'absent' cannot be read"),
        ({'imagenet_metadata_file': 'absent'}, "imagenet_metadata_file 'absent' cannot be read"),
        ({'bounding_box_file': 'absent'}, "bounding_box_file 'absent' cannot be read"),
        ({'train_directory': '/absent', 'validation_directory': ''}, "'/absent/n"),
        ({'train_shards': 0}, 'train_shards'),
        ({'on_broken': 'x'}, 'on_broken'),
        ({'output_directory': '/dev/null/x'}, "cannot write '/dev/null/x'"),
    ],
)
def test_mistakes(raw, capfd, changed, message):
    assert build_imagenet_data.main(arguments(raw[0], **changed)) == 1
    err = capfd.readouterr().err
    assert err.startswith('build_imagenet_data: ') and message in err and err.count('\n') == 1


def test_a_broken_picture(raw, capfd):
    folder, layout = raw
    name = next(iter(layout.train))
    (folder / 'train' / name[:9] / name).write_bytes(layout.train[name][:-100])
    argv = arguments(folder, validation_directory='')
    assert build_imagenet_data.main([*argv, '--on_broken=fail']) == 1
    assert f"image '{name[:9]}/{name}' is broken (cut off" in capfd.readouterr().err
    assert build_imagenet_data.main(argv) == 0
    out = capfd.readouterr().out
    assert f"broken, left out: '{name[:9]}/{name}' (cut off" in out and 'Finished writing all 11 images' in out


def test_no_tensorflow_and_a_quick_start(raw):
    """As a program: by path, from another folder, importing nothing heavy."""
    folder, _ = raw
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', PROGRAM, *arguments(folder)[1:]],
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'},
    )
    imported = {line.rpartition('|')[2].strip() for line in result.stderr.splitlines()}
    assert 'official_resnet.building.shards' in imported and not {'tensorflow', 'keras', 'PIL.Image'} & imported
    assert verify(folder / 'out', 'train', print) == 0


def test_ctrl_c(raw):
    """One line, 130, and the same command continues."""
    folder, layout = raw
    argv = arguments(folder, validation_directory='', num_threads=1)[1:]
    slow = folder / 'train' / layout.synsets[0] / next(iter(layout.train))
    slow.unlink()
    os.mkfifo(slow)  # opening it takes until somebody writes
    with subprocess.Popen(
        [sys.executable, PROGRAM, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        descriptor = os.open(slow, os.O_WRONLY)  # as long as nobody reads
        process.send_signal(signal.SIGINT)
        _, problems = process.communicate(timeout=20)
        os.close(descriptor)
    assert process.returncode == 130
    assert problems == 'build_imagenet_data: stopped; the same command continues\n'
    slow.unlink()
    slow.write_bytes(layout.train[slow.name])
    assert build_imagenet_data.main(arguments(folder, validation_directory='')) == 0
