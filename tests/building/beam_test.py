"""building.beam and its command: by Beam the same bytes as by the local builder, wherever the files lie."""

import importlib
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
from fixtures import data_commands, ilsvrc

from official_resnet.building import shards

pytestmark = pytest.mark.beam
SHARDS = ['--train_shards=6', '--validation_shards=2']
RUNNER = ['--runner=DirectRunner']
program = data_commands.load('build_imagenet_data_beam')
download_and_preprocess_imagenet = data_commands.load('download_and_preprocess_imagenet')


@pytest.fixture(scope='module', autouse=True)
def elsewhere():
    """Make Beam know elsewhere://; not at import, since tests that are deselected are imported, too."""
    importlib.import_module('fixtures.beam_elsewhere')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A layout with the shards of the local builder."""
    layout = ilsvrc.make(tmp_path_factory.mktemp('built'))
    assert download_and_preprocess_imagenet.main(['x', str(layout.folder), *layout.flags, *SHARDS]) == 0
    return layout


def arguments(layout, output, **changed):
    values = {
        'train_tar': layout.folder / ilsvrc.TRAIN,
        'validation_tar': layout.folder / ilsvrc.VALIDATION,
        'validation_labels_file': layout.folder / ilsvrc.LABELS,
        'output_directory': output,
        'bounding_box_file': layout.folder / ilsvrc.BOXES,
        **changed,
    }
    return [
        'build_imagenet_data_beam.py',
        *(f'--{name}={value}' for name, value in values.items() if value),
        *layout.flags,
        *SHARDS,
    ]


def run(layout, output, *more, **changed):
    return program.main([*arguments(layout, output, **changed), *RUNNER, *more])


def outputs(folder, suffix=''):
    return {
        path.name.removesuffix(suffix): path.read_bytes()
        for path in pathlib.Path(folder).iterdir()
        if path.name.startswith(('train', 'validation')) and path.name.endswith(suffix)
    }


def test_the_bytes_of_the_local_builder(built, tmp_path, capsys):
    assert run(built, tmp_path) == 0
    assert outputs(tmp_path) == outputs(built.folder)  # shards and manifests
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('.')) == [
        '.train.index',
        '.validation.index',
    ]
    assert capsys.readouterr().out.count('Finished writing all') == 2
    assert run(built, tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count('nothing to do') == out.count('has the index of') == 2


def test_workers_of_their_own_by_command(built, tmp_path):
    """Two processes, to which functions and settings travel pickled, as on a cluster; without TensorFlow."""
    script = data_commands.FOLDER / 'build_imagenet_data_beam.py'
    code = (
        'import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'except SystemExit as end: assert not end.code\nprint("tensorflow" in sys.modules)'
    )
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            code,
            script,
            *arguments(built, tmp_path)[1:],
            *RUNNER,
            '--direct_running_mode=multi_processing',
            '--direct_num_workers=2',
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == 'False'
    assert outputs(tmp_path) == outputs(built.folder)


def test_another_file_system(built, tmp_path):
    for name in (ilsvrc.TRAIN, ilsvrc.VALIDATION, ilsvrc.LABELS, ilsvrc.BOXES):
        os.link(built.folder / name, tmp_path / f'{name}.elsewhere')
    url = f'elsewhere://{tmp_path}'
    assert (
        run(
            built,
            f'{url}/out',
            train_tar=f'{url}/{ilsvrc.TRAIN}',
            validation_tar=f'{url}/{ilsvrc.VALIDATION}',
            validation_labels_file=f'{url}/{ilsvrc.LABELS}',
            bounding_box_file=f'{url}/{ilsvrc.BOXES}',
        )
        == 0
    )
    assert outputs(tmp_path / 'out', '.elsewhere') == outputs(built.folder)
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file() and 'progress' in str(path.parent)]


def test_it_goes_on(built, tmp_path, monkeypatch, capfd):
    real, calls = shards.build_shard, []

    def build_shard(pictures, shard, *arguments, **options):
        calls.append(shard)
        if shard == 4 and len(pictures) == len(built.train):
            raise OSError('the disk went away')
        return real(pictures, shard, *arguments, **options)

    monkeypatch.setattr(shards, 'build_shard', build_shard)
    assert run(built, tmp_path) == 1
    assert not (tmp_path / 'train.manifest.json').exists() and 'Traceback' not in capfd.readouterr().err[-300:]
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob('train-*-of-*')}
    assert finished and 'train-00004-of-00006' not in finished
    calls.clear()
    monkeypatch.setattr(
        shards,
        'build_shard',
        lambda *arguments, **options: (calls.append(arguments[1]), real(*arguments, **options))[1],
    )
    assert run(built, tmp_path) == 0
    assert sorted(calls) == sorted(set(range(6)) - {int(name[6:11]) for name in finished})
    assert outputs(tmp_path) == outputs(built.folder)
    (tmp_path / 'train-00003-of-00006').unlink()
    assert run(built, tmp_path) == 0
    assert outputs(tmp_path) == outputs(built.folder)


def test_the_local_program_knows_what_beam_built(built, tmp_path, capsys):
    for name in (ilsvrc.TRAIN, ilsvrc.VALIDATION, ilsvrc.LABELS, ilsvrc.BOXES):
        os.link(built.folder / name, tmp_path / name)
    assert run(built, tmp_path) == 0
    assert download_and_preprocess_imagenet.main(['x', str(tmp_path), *built.flags, *SHARDS, '--verify']) == 0
    assert capsys.readouterr().out.count('nothing to do') == 2


def test_broken_pictures(built, tmp_path, capfd):
    files = {name: data for name, data in built.train.items() if name.startswith(built.synsets[0])}
    name = next(iter(files))
    tars = {
        f'{synset}.tar': ilsvrc.tar_bytes(
            {other: data[:50] if other == name else data for other, data in built.train.items() if synset in other}
        )
        for synset in built.synsets
    }
    ilsvrc.write_tar(tmp_path / 'train.tar', tars)
    changed = {'train_tar': tmp_path / 'train.tar', 'validation_tar': '', 'validation_labels_file': ''}
    assert run(built, tmp_path / 'out', '--on_broken=fail', **changed) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith('build_imagenet_data_beam: image') and name in error
    assert run(built, tmp_path / 'out', **changed) == 0
    manifest = json.loads((tmp_path / 'out' / 'train.manifest.json').read_text())
    assert list(manifest['broken']) == [name] and manifest['records'] == len(built.train) - 1


def one_line(capfd, expected):
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('build_imagenet_data_beam: ') and expected in lines[0], lines


def test_mistakes(built, tmp_path, capfd):
    for changed, more, expected in (
        ({'output_directory': ''}, [], 'pass where the shards go'),
        ({'train_tar': '', 'validation_tar': '', 'validation_labels_file': ''}, [], 'pass --train_tar, --valid'),
        ({'validation_labels_file': ''}, [], 'go together'),
        ({'train_tar': '/nowhere'}, [], 'does not exist'),
        (
            {'train_tar': built.folder / ilsvrc.LABELS, 'validation_tar': '', 'validation_labels_file': ''},
            [],
            'no tar file',
        ),
        ({}, ['extra'], "unexpected argument 'extra'"),
        ({}, ['--seed=x'], 'seed'),
        ({}, ['--runner=Nobody'], 'Beam refuses its flags --runner=Nobody'),
    ):
        if 'train_tar' in changed and changed['train_tar'] == '/nowhere':
            changed |= {'validation_tar': '', 'validation_labels_file': ''}
        values = [argument for argument in arguments(built, tmp_path, **changed)]
        assert program.main([*values[:1], *more, *values[1:]]) == 1
        one_line(capfd, expected)
    assert program.main(['build_imagenet_data_beam.py', '--help']) == 0


def test_another_build_stands_there(built, tmp_path, capfd):
    assert run(built, tmp_path) == 0
    capfd.readouterr()
    assert run(built, tmp_path, '--seed=1') == 1
    one_line(capfd, 'is of a build of other images or options')


def test_without_beam(built, tmp_path, capfd, monkeypatch):
    import official_resnet.building

    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    monkeypatch.delitem(sys.modules, 'official_resnet.building.beam', raising=False)
    monkeypatch.delattr(official_resnet.building, 'beam', raising=False)
    assert run(built, tmp_path) == 1
    one_line(capfd, "pip install '.[beam]'")


def test_the_file_system_of_the_test_is_used(tmp_path):
    import apache_beam

    from official_resnet.building import beam

    assert apache_beam.io.filesystems.FileSystems.get_filesystem('elsewhere://x').scheme() == 'elsewhere'
    with beam.BeamJob('/nowhere', 'x', 1).writing(f'elsewhere://{tmp_path}/a') as file:
        file.write(b'abc')
    with beam.BeamJob.open_file(f'elsewhere://{tmp_path}/a') as file:
        assert file.seek(0, io.SEEK_END) == 3
    assert [path.name for path in tmp_path.iterdir()] == ['a.elsewhere']
