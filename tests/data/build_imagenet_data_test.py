"""build_imagenet_data builds ImageNet's shards from folders, with upstream's flags. Mistakes: wrong_inputs_test."""

import os
import signal

import pytest
from fixtures import data_commands, ilsvrc, programs, slow_files
from fixtures.data_commands import examples, write_files

build_imagenet_data = data_commands.load('build_imagenet_data')


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """(folder, layout): the folders and lists that upstream's download left; the working folder is elsewhere."""
    layout = ilsvrc.make(tmp_path / 'lists', num_synsets=3, train_images=4, validation_images=2)
    ilsvrc.unpack(layout, tmp_path)
    write_files(tmp_path, {'boxes.csv': layout.csv, 'cwd/x': b''})
    monkeypatch.chdir(tmp_path / 'cwd')
    return tmp_path, layout


def arguments(folder, **changed):
    values = {
        **{f'{name}_directory': folder / name for name in ('train', 'validation')},
        'output_directory': folder / 'out',
        **{'train_shards': 3, 'validation_shards': 2, 'num_threads': 2},
        'labels_file': folder / 'lists' / 'imagenet_lsvrc_2015_synsets.txt',
        'imagenet_metadata_file': folder / 'lists' / 'imagenet_metadata.txt',
        'bounding_box_file': folder / 'boxes.csv',
        **changed,
    }
    return [f'--{name}={value}' for name, value in values.items() if value is not None]


def run(folder, *more, **changed):
    return build_imagenet_data.main(['build_imagenet_data.py', *arguments(folder, **changed), *more])


def test_by_its_path_and_without_tensorflow(raw, capfd):
    """It runs from another folder, and its processes import nothing heavy; what is built is verified without images."""
    folder, _ = raw
    imported = data_commands.imports('build_imagenet_data', *arguments(folder))
    assert 'official_resnet.building.shards' in imported and not {'tensorflow', 'keras', 'PIL.Image'} & imported
    # The records are those of download_and_preprocess_imagenet, see its test_keep_extracted.
    assert run(folder, '--verify', train_directory='/absent', validation_directory='/absent') == 0
    assert capfd.readouterr().out.count('no faults') == 2
    (folder / 'out' / 'train-00001-of-00003').unlink()
    assert run(folder, '--verify') == 1


@pytest.mark.parametrize('name', [name for name in data_commands.NAMES if name != 'build_imagenet_data'])
def test_no_command_imports_tensorflow(name):
    """A worker of a cluster has none, and a program that moves images should start at once."""
    imported = data_commands.imports(name, '--help')
    assert 'official_resnet.errors' in imported and not {'tensorflow', 'keras'} & imported


def test_defaults_are_upstreams():
    expected = {
        **dict.fromkeys(('train_directory', 'validation_directory', 'output_directory'), '/tmp/'),
        **{'train_shards': 1024, 'validation_shards': 128, 'num_threads': 8, 'seed': 12345},
        **{'labels_file': 'imagenet_lsvrc_2015_synsets.txt', 'imagenet_metadata_file': 'imagenet_metadata.txt'},
        'bounding_box_file': './imagenet_2012_bounding_boxes.csv',
    }
    values = build_imagenet_data.define_flags()
    assert {name: values[name].value for name in expected} == expected


def test_without_lists_and_boxes(raw, capfd):
    """Files with the default names may be missing: it takes the 1000 classes, most of which this folder lacks."""
    folder, _ = raw
    assert run(folder, labels_file=None, imagenet_metadata_file=None, bounding_box_file=None) == 1
    out, err = capfd.readouterr()
    assert "'./imagenet_2012_bounding_boxes.csv'" in out and "validation/n01440764' cannot be read" in err
    for name in ('imagenet_metadata_file', 'bounding_box_file'):
        assert run(folder, **{name: 'absent'}) == 1
        assert f"{name} 'absent' cannot be read" in capfd.readouterr().err
    assert run(folder, bounding_box_file='', validation_directory='') == 0  # empty flags
    assert not any(example['image/object/bbox/xmin'] for example in examples(folder / 'out').values())
    assert not list((folder / 'out').glob('validation*'))


def test_a_broken_image(raw, capfd):
    folder, layout = raw
    name = next(iter(layout.train))
    (folder / 'train' / name[:9] / name).write_bytes(layout.train[name][:-100])
    assert run(folder, '--on_broken=fail', validation_directory='') == 1
    assert f"'{name[:9]}/{name}'" in capfd.readouterr().err
    assert run(folder, validation_directory='') == 0
    out = capfd.readouterr().out
    assert f"'{name[:9]}/{name}' (cut off" in out and 'Finished writing all 11 images' in out


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal(number, raw):
    """Ctrl-C or SIGTERM ends it and its processes, with one line, and code 130 or 143; the same command continues."""
    folder, layout = raw
    slow = folder / 'train' / layout.synsets[0] / next(iter(layout.train))
    (gate := folder / 'gate').mkdir()
    environment = slow_files.hold(gate, slow)
    argv = arguments(folder, validation_directory='', train_shards=1)
    process = programs.start_interruptible(data_commands.command('build_imagenet_data', *argv), env=environment)
    programs.wait_for((folder / 'out' / '.train.progress' / 'train-00000-of-00001.part').exists, process)
    process.send_signal(number)
    [(code, _, problems)] = programs.finish([process])
    assert code == 128 + number and problems.count('\n') == 1 and 'same command again' in problems
    assert not [line for line in programs.command_lines() if os.fsencode(folder) in line]
    assert run(folder, validation_directory='', train_shards=1) == 0
