"""build_image_data builds shards of your own images; wrong_inputs_test has its mistakes."""

import numpy as np
import pytest
import tensorflow as tf
from fixtures import data_commands
from fixtures.imagenet_shards import encoded
from PIL import Image

from official_resnet.building.records import FOLDER_KEYS

build_image_data = data_commands.load('build_image_data')
LEVELS = {'a.jpg': 10, 'b.PNG': 20, 'c.gif': 30, 'a.jpeg': 40, 'b.webp': 50, 'c.bmp': 60, 'd.png': 70}


def grey(level, kind='JPEG', mode='RGB'):
    return encoded(Image.new('RGB', (20, 10), (level, level, level)).convert(mode), kind)


@pytest.fixture
def folder(tmp_path):
    files = {
        'train/dog/a.jpg': grey(10),
        'train/dog/b.PNG': grey(20, 'PNG'),
        'train/dog/c.gif': grey(30, 'GIF'),
        'train/cat/a.jpeg': grey(40, 'PNG'),
        'train/cat/b.webp': grey(50, 'WEBP', 'RGBA'),
        'train/cat/c.bmp': grey(60, 'BMP'),
        'train/cat/d.png': grey(70),
        'train/cat/e.jpg': b'no image',
        'train/cat/notes.txt': b'x',
        'train/big cat/f.jpg': grey(80),
        'validation/cat/v.jpg': grey(90, mode='L'),
        'validation/dog/.hidden.jpg': b'x',
        'validation/big cat/w.jpg': grey(100),
    }
    data_commands.write_files(tmp_path, files)
    return tmp_path


def run(folder, *more):
    directories = [f'--{name}_directory={folder}/{name}' for name in ('train', 'validation')]
    return build_image_data.main(['build_image_data.py', *directories, f'--output_directory={folder}/out', *more])


def read(folder, name):
    """Return {file name: (label, text)}, and {file name: grey level} as TensorFlow decodes it."""
    found, levels = {}, {}
    for file, example in data_commands.examples(folder / 'out', name).items():
        assert example.keys() == FOLDER_KEYS
        pixels = tf.io.decode_jpeg(example['image/encoded'][0]).numpy()
        assert pixels.shape == (10, 20, 3) and example['image/height'] + example['image/width'] == [10, 20]
        found[file] = example['image/class/label'][0], example['image/class/text'][0].decode()
        levels[file] = int(np.median(pixels))
    return found, levels


def test_classes_of_a_list(folder, capfd):
    (folder / 'labels.txt').write_text('dog\ncat\n')
    assert run(folder, f'--labels_file={folder}/labels.txt', '--verify') == 0
    found, levels = read(folder, 'train')
    assert found == dict.fromkeys(list(LEVELS)[:3], (1, 'dog')) | dict.fromkeys(list(LEVELS)[3:], (2, 'cat'))
    assert levels == {name: pytest.approx(level, abs=3) for name, level in LEVELS.items()}
    assert read(folder, 'validation')[0].keys() == {'v.jpg'}
    assert "'cat/e.jpg'" in capfd.readouterr().out


def test_classes_of_the_folders(folder):
    assert run(folder) == 0
    assert read(folder, 'validation')[0] == {'v.jpg': (2, 'cat'), 'w.jpg': (1, 'big cat')}
    assert set(read(folder, 'train')[0].values()) == {(1, 'big cat'), (2, 'cat'), (3, 'dog')}


def test_defaults_are_upstreams():
    values = build_image_data.define_flags()
    assert [values[f'{name}_directory'].value for name in ('train', 'validation', 'output')] == ['/tmp/'] * 3
    assert [values[name].value for name in ('train_shards', 'validation_shards', 'num_threads')] == [2, 2, 2]
    assert values['labels_file'].value == ''
