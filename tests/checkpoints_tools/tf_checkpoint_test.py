"""Reading TF1 checkpoints: whatever a path may be, and files that are missing; families_test.py damages them."""

import os
import shutil

import numpy as np
import pytest
from fixtures.conversion import refuse, refuse_file, shapes_of
from fixtures.foreign_files import write_tf

from checkpoints_tools import from_tensorpack, tf_checkpoint

VARIABLES = {
    f'scope/conv{i}/weights': np.random.default_rng(i).normal(size=(3, 3, 16, 8)).astype('float32') for i in range(20)
} | {'global_step': np.int64(1234), 'double': np.float64([1.5, 2])}
DATA = 'data-00000-of-00001'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """v1.ckpt, one file, and v2.ckpt.index, v2.ckpt.data-00000-of-00001; `checkpoint` names v2.ckpt."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for version in (1, 2):
        write_tf(folder / f'v{version}.ckpt', VARIABLES, version)
    return folder


def assert_read(path):
    values = dict(tf_checkpoint.read(path))
    assert values.keys() == VARIABLES.keys()
    for name, value in VARIABLES.items():
        assert values[name].dtype == value.dtype
        np.testing.assert_array_equal(values[name], value)


@pytest.mark.parametrize('name', ['v1.ckpt', 'v2.ckpt', 'v2.ckpt.index', f'v2.ckpt.{DATA}', 'checkpoint', ''])
def test_every_name_of_a_checkpoint(folder, name):
    assert_read(folder / name)
    assert tf_checkpoint.shapes(str(folder / name)) == shapes_of(VARIABLES)
    files = [file.rpartition('/')[2] for file in tf_checkpoint.list_files(folder / name)]
    assert files == (['v1.ckpt'] if name == 'v1.ckpt' else ['v2.ckpt.index', f'v2.ckpt.{DATA}'])


def test_folders(folder, tmp_path):
    """A folder that was moved, with or without the file `checkpoint`."""
    moved = tmp_path / 'moved here'
    shutil.copytree(folder, moved)
    (moved / 'checkpoint').write_text('model_checkpoint_path: "/elsewhere/v2.ckpt"\n')
    assert_read(moved)
    (moved / 'checkpoint').write_text('model_checkpoint_path: "v3.ckpt"\n')
    refuse_file('checkpoint names v3.ckpt.*; pass', tf_checkpoint, moved)
    (moved / 'checkpoint').write_bytes(b'\xff\x00')
    refuse_file('model_checkpoint_path; pass', tf_checkpoint, moved)
    (moved / 'checkpoint').unlink()
    refuse_file('2 checkpoints .*; pass', tf_checkpoint, moved)
    (moved / 'v1.ckpt').unlink()
    assert_read(moved)


@pytest.mark.parametrize(
    'name,content,asked,message',
    [
        ('y.ckpt', b'', 'x.ckpt', 'there is no .*x.ckpt; pass'),
        ('x.ckpt/y', b'', 'x.ckpt', '0 checkpoints'),
        ('x.ckpt', b'PK\x03\x04' * 500, 'x.ckpt', 'damaged or not a TensorFlow checkpoint'),
        (f'x.ckpt.{DATA}', b'', 'x.ckpt', 'there is no .*x.ckpt; pass'),
        (f'x.{DATA}', b'1', f'x.{DATA}', 'there is no .*x.index'),
        ('x[1].ckpt.index', b'', 'x[1].ckpt', r'x\[1\].ckpt: .*rename'),
    ],
)
def test_no_checkpoint_at_all(tmp_path, name, content, asked, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    refuse_file(message, tf_checkpoint, tmp_path / asked)


@pytest.mark.parametrize('name', ['x.ckpt', 'x.index', 'checkpoint'])
def test_a_fifo_in_a_folder_is_no_checkpoint(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refuse_file('0 checkpoints .*; pass', tf_checkpoint, tmp_path)
    for family in (tf_checkpoint, from_tensorpack):
        refuse('x|plain', family.shapes, tmp_path / name)


def test_a_fifo_in_place_of_data(folder, tmp_path):
    shutil.copy(folder / 'v2.ckpt.index', tmp_path)
    (tmp_path / 'v2.ckpt.data-00000-of-00002').write_bytes((folder / f'v2.ckpt.{DATA}').read_bytes())
    os.mkfifo(tmp_path / 'v2.ckpt.data-00001-of-00002')
    refuse_file('not a plain file', tf_checkpoint, tmp_path / 'v2.ckpt')


def test_missing_and_cut_off_data(folder, tmp_path):
    path, data = tmp_path / 'v2.ckpt', (folder / f'v2.ckpt.{DATA}').read_bytes()
    shutil.copy(folder / 'v2.ckpt.index', tmp_path)
    refuse_file(f'no data file .*{DATA}', tf_checkpoint, path)
    (tmp_path / 'v2.ckpt.data-00001-of-00002').write_bytes(data)
    refuse('No such file', lambda: dict(tf_checkpoint.read(path)))
    (tmp_path / 'v2.ckpt.data-00001-of-00002').rename(tmp_path / f'v2.ckpt.{DATA}')
    assert_read(path)
    (tmp_path / f'v2.ckpt.{DATA}').write_bytes(data[:-1])
    refuse('Read less bytes|declares .* bytes', lambda: dict(tf_checkpoint.read(path)))
    (tmp_path / f'v2.ckpt.{DATA}').write_bytes(data[: len(data) // 2])
    refuse_file('declares .* bytes', tf_checkpoint, path)
