"""The images that are held out are the last of the training split, and those of the same names in the archive."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import jpeg_cost
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError
from official_resnet.inputs import datasets


@pytest.fixture
def archive(tmp_path):
    """A tar of 2 classes x 5 training and 2 test images, of brightness 10 x number, and the path of each."""
    path, names = tmp_path / 'jpeg.tar', {}
    with tarfile.open(path, 'w') as tar:
        for split, count in (('train', 5), ('test', 1)):
            for i, class_name in enumerate(('cat', 'dog') * count):
                buffer = io.BytesIO()
                Image.new('RGB', (32, 32), (10 * i, 0, 0)).save(buffer, 'JPEG', quality=95)
                member = tarfile.TarInfo(name := f'{split}/{class_name}/{i}.jpg')
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
                names[name] = 10 * i
    return path, names


def test_held_out_images_come_last(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(jpeg_cost, 'PER_FILE', 2)
    folder = tmp_path / 'data' / 'cifar-10-batches-bin'
    folder.mkdir(parents=True)
    held_out = ['train/dog/7.jpg', 'train/cat/0.jpg']
    found = jpeg_cost.write_data(str(archive[0]), held_out, folder)
    np.testing.assert_allclose(found[:, 0, 0, 0], [70, 0], atol=2)
    splits = {
        split: datasets.open_split('cifar10', split, data_dir=str(tmp_path / 'data')) for split in ('train', 'test')
    }
    np.testing.assert_array_equal(splits['train'].images[-2:], found)
    assert splits['train'].labels[-2:].tolist() == [1, 0]
    reds = {int(red) // 9 for red in splits['train'].images[:-2, 0, 0, 0]}
    assert len(reds) == 8 and splits['test'].num_images == 2
    with pytest.raises(UserError, match='jpeg.tar has no train/cat/1.jpg, .*pass the archive'):
        jpeg_cost.write_data(str(archive[0]), ['train/cat/1.jpg'], folder)


def test_a_missing_file_is_named(capsys):
    assert run_program(['jpeg_cost.py', '--archive=x', '--lossless='], '', jpeg_cost.define_flags(), jpeg_cost.measure)
    assert '--lossless is missing; pass its path' in capsys.readouterr().err
