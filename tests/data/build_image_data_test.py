"""The program that builds shards of own pictures."""

import io

import numpy as np
import pytest
import tensorflow as tf
from fixtures import data_commands
from PIL import Image

from official_resnet.inputs import tfrecords

build_image_data = data_commands.load('build_image_data')


def picture(level, kind='JPEG', mode='RGB'):
    buffer = io.BytesIO()
    Image.new('RGB', (20, 10), (level, level, level)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    files = {
        'train/dog/a.jpg': picture(10),
        'train/dog/b.PNG': picture(20, 'PNG'),
        'train/dog/c.gif': picture(30, 'GIF'),
        'train/cat/a.jpeg': picture(40, 'PNG'),
        'train/cat/b.webp': picture(50, 'WEBP', 'RGBA'),
        'train/cat/c.bmp': picture(60, 'BMP'),
        'train/cat/d.png': picture(70),
        'train/cat/e.jpg': b'no picture',
        'train/cat/notes.txt': b'x',
        'train/big cat/f.jpg': picture(80),
        'validation/cat/v.jpg': picture(90, mode='L'),
        'validation/dog/.hidden.jpg': b'x',
        'validation/big cat/w.jpg': picture(100),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def run(folder, *more):
    return build_image_data.main(
        [
            'build_image_data.py',
            f'--train_directory={folder}/train',
            f'--validation_directory={folder}/validation',
            f'--output_directory={folder}/out',
            *more,
        ]
    )


def read(folder, name):
    """Return {filename: (label, text, grey level)}, decoded by TensorFlow."""
    found = {}
    for path in sorted((folder / 'out').glob(f'{name}-*-of-00002')):
        for data in tfrecords.read(path):
            example = tfrecords.decode_example(data)
            assert set(example) == {
                f'image/{key}'
                for key in (
                    'encoded',
                    'format',
                    'colorspace',
                    'channels',
                    'height',
                    'width',
                    'filename',
                    'class/label',
                    'class/text',
                )
            }
            pixels = tf.io.decode_jpeg(example['image/encoded'][0]).numpy()
            assert pixels.shape == (10, 20, 3) and example['image/height'] + example['image/width'] == [10, 20]
            found[example['image/filename'][0].decode()] = (
                example['image/class/label'][0],
                example['image/class/text'][0].decode(),
                int(np.median(pixels)),
            )
    return found


def test_classes_of_a_list(folder, capfd):
    (folder / 'labels.txt').write_text('dog\ncat\n')
    assert run(folder, f'--labels_file={folder}/labels.txt', '--verify') == 0
    found = read(folder, 'train')
    assert {name: values[:2] for name, values in found.items()} == {
        'a.jpg': (1, 'dog'),
        'b.PNG': (1, 'dog'),
        'c.gif': (1, 'dog'),
        'a.jpeg': (2, 'cat'),
        'b.webp': (2, 'cat'),
        'c.bmp': (2, 'cat'),
        'd.png': (2, 'cat'),
    }
    levels = {'a.jpg': 10, 'b.PNG': 20, 'c.gif': 30, 'a.jpeg': 40, 'b.webp': 50, 'c.bmp': 60, 'd.png': 70}
    for name, level in levels.items():
        assert abs(found[name][2] - level) <= 3, name
    assert read(folder, 'validation').keys() == {'v.jpg'}
    assert "broken, left out: 'cat/e.jpg'" in capfd.readouterr().out


def test_classes_of_the_folders(folder):
    assert run(folder) == 0
    assert {name: values[:2] for name, values in read(folder, 'validation').items()} == {
        'v.jpg': (2, 'cat'),
        'w.jpg': (1, 'big cat'),
    }
    assert {values[:2] for values in read(folder, 'train').values()} == {(1, 'big cat'), (2, 'cat'), (3, 'dog')}


def test_defaults_are_upstreams():
    values = build_image_data.define_flags()
    values(['x'])
    names = (
        'train_directory',
        'validation_directory',
        'output_directory',
        'train_shards',
        'validation_shards',
        'num_threads',
        'labels_file',
    )
    assert {name: values[name].value for name in names} == {
        'train_directory': '/tmp/',
        'validation_directory': '/tmp/',
        'output_directory': '/tmp/',
        'train_shards': 2,
        'validation_shards': 2,
        'num_threads': 2,
        'labels_file': '',
    }


@pytest.mark.parametrize(
    'more,message',
    [
        (['--labels_file=absent'], "labels_file 'absent' cannot be read"),
        (['--train_directory=absent'], 'cannot be read'),
        (['--num_threads=0'], 'num_threads'),
    ],
)
def test_mistakes(folder, capfd, more, message):
    assert run(folder, *more) == 1
    err = capfd.readouterr().err
    assert err.startswith('build_image_data: ') and message in err and err.count('\n') == 1


def test_a_folder_without_folders(folder, capfd):
    assert run(folder, f'--train_directory={folder}/train/dog') == 1
    assert 'has no folders; put the images of each class' in capfd.readouterr().err
