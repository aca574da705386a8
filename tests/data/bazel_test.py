"""Bazel: the documented command builds offline, and what it builds runs by the python3 of the environment."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from fixtures import ilsvrc

pytestmark = pytest.mark.bazel
ROOT = pathlib.Path(__file__).parents[2]
TARGETS = ('download_and_preprocess_imagenet', 'build_imagenet_data', 'build_image_data', 'build_imagenet_data_beam')


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A copy of what Bazel reads, with all targets built; its server is stopped at the end."""
    folder = tmp_path_factory.mktemp('workspace')
    for name in ('BUILD', 'WORKSPACE', 'MODULE.bazel', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, folder)
    for name in ('data', 'official_resnet'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    bazel = shutil.which('bazel')
    assert bazel, 'bazel is missing: apt-get install bazel-bootstrap'
    start = [bazel, f'--output_user_root={tmp_path_factory.mktemp("bazel")}', '--max_idle_secs=60']
    environment = {**os.environ, 'HOME': str(folder)}
    try:
        built = subprocess.run(
            [*start, 'build', '--jobs=2', *(f'//data:{name}' for name in TARGETS)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
        yield folder
    finally:
        subprocess.run([*start, 'shutdown'], cwd=folder, env=environment, capture_output=True)


@pytest.fixture
def environment(tmp_path):
    """A PATH on which python3 is this one."""
    (tmp_path / 'bin').mkdir()
    launcher = tmp_path / 'bin' / 'python3'
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    return {**os.environ, 'PATH': f'{launcher.parent}{os.pathsep}{os.environ["PATH"]}'}


def run(workspace, name, *arguments, **options):
    return subprocess.run(
        [f'bazel-bin/data/{name}', *map(str, arguments)],
        **{'cwd': workspace, 'capture_output': True, 'text': True, **options},
    )


def test_the_command_of_the_readme(workspace, environment, tmp_path):
    layout = ilsvrc.make(tmp_path / 'data')
    done = run(
        workspace,
        TARGETS[0],
        layout.folder,
        '--train_shards=2',
        '--validation_shards=1',
        *layout.flags,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert 'Finished writing all 24 images in data set.' in done.stdout.splitlines()[-1]
    done = run(workspace, TARGETS[0], env=environment)
    assert done.returncode == 1 and 'DATA_DIR' in done.stderr


@pytest.mark.parametrize('name', TARGETS[:3])
def test_each_target_runs_from_anywhere(workspace, environment, tmp_path, name):
    (tmp_path / 'link').symlink_to(workspace / 'bazel-bin' / 'data' / name)
    for command in (workspace / 'bazel-bin' / 'data' / name, tmp_path / 'link'):
        done = subprocess.run([command, '--help'], env=environment, cwd='/', capture_output=True, text=True)
        assert done.returncode == 0 and '--seed' in done.stdout, done.stderr


@pytest.mark.parametrize('name', TARGETS)
def test_the_runfiles_hold_the_script_alone(workspace, name):
    """All else is of the package, which is installed."""
    (runfiles,) = (workspace / 'bazel-bin' / 'data' / f'{name}.runfiles').glob('*/data')
    assert [path.name for path in runfiles.glob('*.py')] == [f'{name}.py']


def test_a_python_without_the_package(workspace, tmp_path):
    (tmp_path / 'python3').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path / 'python3').chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    done = run(workspace, TARGETS[0], tmp_path, env={**os.environ, 'PATH': path})
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert 'cannot import official_resnet;' in done.stderr and f"'{tmp_path}/python3 -m pip install .'" in done.stderr
    done = run(workspace, TARGETS[3], tmp_path, env={**os.environ, 'PATH': path})
    assert done.returncode == 1 and 'cannot import official_resnet, apache_beam;' in done.stderr
    assert "pip install .[beam]'" in done.stderr


def test_no_python(workspace, tmp_path):
    for name in ('bash', 'dirname', 'readlink'):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run(workspace, TARGETS[0], tmp_path, env={'PATH': str(tmp_path)})
    assert done.returncode == 1 and 'there is no python3 on the PATH' in done.stderr
