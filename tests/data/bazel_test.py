"""Bazel builds the documented targets offline, and they run with the python3 of the environment."""

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
    options = {'cwd': folder, 'env': {**os.environ, 'HOME': str(folder)}, 'capture_output': True, 'text': True}
    try:
        built = subprocess.run([*start, 'build', '--jobs=2', *(f'//data:{name}' for name in TARGETS)], **options)
        assert built.returncode == 0, built.stderr
        yield folder
    finally:
        subprocess.run([*start, 'shutdown'], **options)


@pytest.fixture
def python_runs(tmp_path):
    """Return the environment with a PATH on which python3 is a script that ends with these lines."""

    def environment(*lines):
        launcher = tmp_path / 'bin' / 'python3'
        launcher.parent.mkdir()
        launcher.write_text('\n'.join(['#!/bin/sh', *lines]))
        launcher.chmod(0o755)
        return {**os.environ, 'PATH': f'{launcher.parent}{os.pathsep}{os.environ["PATH"]}'}

    return environment


def run(command, *arguments, env, cwd='/'):
    return subprocess.run([command, *arguments], env=env, cwd=cwd, capture_output=True, text=True)


def test_the_command_of_the_readme(workspace, python_runs, tmp_path):
    layout, environment = ilsvrc.make(tmp_path / 'data'), python_runs(f'exec {sys.executable} "$@"')
    shards = ['--train_shards=2', '--validation_shards=1']
    command = f'bazel-bin/data/{TARGETS[0]}'
    done = run(command, layout.folder, *shards, *layout.flags, env=environment, cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert 'Finished writing all 24 images in data set.' in done.stdout.splitlines()[-1]
    done = run(command, env=environment, cwd=workspace)
    assert done.returncode == 1 and 'DATA_DIR' in done.stderr


@pytest.mark.parametrize('name', TARGETS)
def test_each_target_runs_from_anywhere(workspace, python_runs, tmp_path, name):
    (tmp_path / 'link').symlink_to(workspace / 'bazel-bin' / 'data' / name)
    # All but the script belongs to the package, which is installed.
    (runfiles,) = (workspace / 'bazel-bin' / 'data' / f'{name}.runfiles').glob('*/data')
    assert [path.name for path in runfiles.glob('*.py')] == [f'{name}.py']
    environment = python_runs(f'exec {sys.executable} "$@"')
    for command in (workspace / 'bazel-bin' / 'data' / name, tmp_path / 'link') if name != TARGETS[3] else ():
        done = run(command, '--help', env=environment)
        assert done.returncode == 0 and '--seed' in done.stdout, done.stderr


def test_a_python_without_the_package(workspace, python_runs, tmp_path):
    environment = python_runs('exit 1')
    for name, parts in (
        (TARGETS[0], ('import official_resnet;', f"'{tmp_path}/bin/python3 -m pip install .'")),
        (TARGETS[3], ('import official_resnet, apache_beam;', "pip install .[beam]'")),
    ):
        done = run(workspace / 'bazel-bin' / 'data' / name, tmp_path, env=environment)
        assert done.returncode == 1 and done.stderr.count('\n') == 1 and all(part in done.stderr for part in parts)


def test_no_python(workspace, tmp_path):
    for name in ('bash', 'dirname', 'readlink'):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run(workspace / 'bazel-bin' / 'data' / TARGETS[0], tmp_path, env={'PATH': str(tmp_path)})
    assert done.returncode == 1 and 'no python3' in done.stderr
