"""building.beam and its command write the bytes of the local builder, wherever the files are."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from fixtures import data_commands, ilsvrc
from fixtures.data_commands import outputs

from official_resnet.building import shards

pytestmark = pytest.mark.beam
SHARDS = ['--train_shards=6', '--validation_shards=2']
FILES = {
    'train_tar': ilsvrc.TRAIN,
    'validation_tar': ilsvrc.VALIDATION,
    'validation_labels_file': ilsvrc.LABELS,
    'bounding_box_file': ilsvrc.BOXES,
}
NO_VALIDATION = {'validation_tar': '', 'validation_labels_file': ''}
program = data_commands.load('build_imagenet_data_beam')
download_and_preprocess_imagenet = data_commands.load('download_and_preprocess_imagenet')


@pytest.fixture(scope='module', autouse=True)
def elsewhere():
    """Make Beam know elsewhere://; not at import, since deselected tests are also imported."""
    importlib.import_module('fixtures.beam_elsewhere')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A layout with the shards of the local builder."""
    layout = ilsvrc.make(tmp_path_factory.mktemp('built'))
    assert download_and_preprocess_imagenet.main(['x', str(layout.folder), *layout.flags, *SHARDS]) == 0
    return layout


def arguments(layout, output, **changed):
    values = {name: layout.folder / file for name, file in FILES.items()}
    values |= {'output_directory': output, 'runner': 'DirectRunner', **changed}
    return [*(f'--{name}={value}' for name, value in values.items() if value), *layout.flags, *SHARDS]


def run(layout, output, *more, **changed):
    return program.main(['build_imagenet_data_beam.py', *more, *arguments(layout, output, **changed)])


def one_line(capfd, expected):
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('build_imagenet_data_beam: ') and expected in lines[0], lines


def test_the_bytes_of_the_local_builder(built, tmp_path, capfd):
    assert run(built, tmp_path) == 0
    assert outputs(tmp_path) == outputs(built.folder)  # shards and manifests
    assert {path.name for path in tmp_path.glob('.*')} == {'.train.index', '.validation.index'}
    assert capfd.readouterr().out.count('Finished writing all') == 2
    assert run(built, tmp_path) == 0
    out = capfd.readouterr().out
    assert out.count('nothing to do') == out.count('.index') == 2
    assert run(built, tmp_path, '--seed=1') == 1
    one_line(capfd, "validation.manifest.json'")
    for name in FILES.values():  # the local program knows what Beam built
        os.link(built.folder / name, tmp_path / name)
    assert download_and_preprocess_imagenet.main(['x', str(tmp_path), *built.flags, *SHARDS, '--verify']) == 0
    assert capfd.readouterr().out.count('nothing to do') == 2


def test_workers_of_their_own_by_command(built, tmp_path):
    """Two processes get functions and settings pickled, as on a cluster, and need no TensorFlow."""
    code = (
        'import atexit, runpy, sys; atexit.register(lambda: print("tensorflow" in sys.modules)); '
        'sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    script = data_commands.FOLDER / 'build_imagenet_data_beam.py'
    processes = ['--direct_running_mode=multi_processing', '--direct_num_workers=2']
    done = subprocess.run(
        [sys.executable, '-c', code, script, *arguments(built, tmp_path), *processes],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == 'False' and outputs(tmp_path) == outputs(built.folder)


def test_another_file_system(built, tmp_path):
    for name in FILES.values():
        os.link(built.folder / name, tmp_path / f'{name}.elsewhere')
    url = f'elsewhere://{tmp_path}'
    assert run(built, f'{url}/out', **{name: f'{url}/{file}' for name, file in FILES.items()}) == 0
    assert outputs(tmp_path / 'out', '.elsewhere') == outputs(built.folder)
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file() and 'progress' in str(path.parent)]


def test_it_continues_after_a_broken_image(built, tmp_path, capfd):
    name = sorted(built.train)[shards.shard_rows(24, 4, 6, 12345)[0]]
    ilsvrc.write_train_tar(tmp_path / 'train.tar', built.synsets, built.train | {name: built.train[name][:50]})
    out, changed = tmp_path / 'out', {'train_tar': tmp_path / 'train.tar', **NO_VALIDATION}
    assert run(built, out, '--on_broken=fail', **changed) == 1
    error = capfd.readouterr().err
    assert f"'{name}'" in error.splitlines()[-1] and 'Traceback' not in error[-300:]
    assert not (out / 'train.manifest.json').exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob('train-*-of-*')}
    assert finished and out / 'train-00004-of-00006' not in finished
    assert run(built, out, **changed) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    manifest = json.loads((out / 'train.manifest.json').read_text())
    assert list(manifest['broken']) == [name] and manifest['records'] == 23
    before = outputs(out)
    (out / 'train-00003-of-00006').unlink()
    assert run(built, out, **changed) == 0 and outputs(out) == before


def test_mistakes(built, tmp_path, capfd, monkeypatch):
    for changed, expected in (
        ({'train_tar': '/nowhere', **NO_VALIDATION}, "'/nowhere' does not exist"),
        ({'train_tar': built.folder / ilsvrc.LABELS, **NO_VALIDATION}, 'not a tar file'),
        ({'runner': 'Nobody'}, '--runner=Nobody'),
    ):
        assert run(built, tmp_path, **changed) == 1
        one_line(capfd, expected)
    import official_resnet.building

    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    monkeypatch.delitem(sys.modules, 'official_resnet.building.beam', raising=False)
    monkeypatch.delattr(official_resnet.building, 'beam', raising=False)
    assert run(built, tmp_path) == 1
    one_line(capfd, "pip install '.[beam]'")
