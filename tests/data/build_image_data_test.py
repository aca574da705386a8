"""build_image_data builds shards of your own images; wrong_inputs_test has its mistakes."""

import pytest
from fixtures import data_commands
from fixtures.imagenet_shards import encoded
from PIL import Image

from official_resnet.building.records import FOLDER_KEYS

build_image_data = data_commands.load('build_image_data')


@pytest.fixture
def folder(tmp_path):
    formats = {'a.jpg': 'JPEG', 'b.PNG': 'PNG', 'c.gif': 'GIF', 'd.bmp': 'BMP', 'e.jpeg': 'WEBP'}
    images = {name: encoded(Image.new('RGB', (20, 10)), kind) for name, kind in formats.items()}
    files = {f'train/dog/{name}': images[name] for name in ('a.jpg', 'b.PNG', 'c.gif')}
    files |= {f'train/cat/{name}': images[name] for name in ('d.bmp', 'e.jpeg')}
    files |= {'train/cat/broken.jpg': b'no image', 'train/cat/notes.txt': b'x', 'train/big cat/f.jpg': images['a.jpg']}
    files |= {'validation/cat/v.jpg': encoded(Image.new('L', (20, 10))), 'validation/dog/.hidden.jpg': b'x'}
    files |= {'validation/big cat/w.jpg': images['a.jpg']}
    data_commands.write_files(tmp_path, files)
    return tmp_path


def run(folder, *more):
    """Build with --verify, which inspects the records, and return {split: {file name: (label, text)}}."""
    directories = [f'--{name}_directory={folder}/{name}' for name in ('train', 'validation')]
    arguments = [*directories, f'--output_directory={folder}/out', '--verify', *more]
    assert build_image_data.main(['build_image_data.py', *arguments]) == 0
    found = {name: data_commands.examples(folder / 'out', name) for name in ('train', 'validation')}
    assert all(example.keys() == FOLDER_KEYS for rows in found.values() for example in rows.values())
    return {
        split: {
            name: (example['image/class/label'][0], example['image/class/text'][0].decode())
            for name, example in rows.items()
        }
        for split, rows in found.items()
    }


def test_classes_of_a_list(folder, capfd):
    (folder / 'labels.txt').write_text('dog\ncat\n')
    assert run(folder, f'--labels_file={folder}/labels.txt') == {
        'train': dict.fromkeys(('a.jpg', 'b.PNG', 'c.gif'), (1, 'dog'))
        | dict.fromkeys(('d.bmp', 'e.jpeg'), (2, 'cat')),
        'validation': {'v.jpg': (2, 'cat')},
    }
    assert "'cat/broken.jpg'" in capfd.readouterr().out


def test_classes_of_the_folders(folder):
    found = run(folder)
    assert found['validation'] == {'v.jpg': (2, 'cat'), 'w.jpg': (1, 'big cat')}
    assert set(found['train'].values()) == {(1, 'big cat'), (2, 'cat'), (3, 'dog')}


def test_defaults_are_upstreams():
    values = build_image_data.define_flags()
    assert [values[f'{name}_directory'].value for name in ('train', 'validation', 'output')] == ['/tmp/'] * 3
    assert [values[name].value for name in ('train_shards', 'validation_shards', 'num_threads')] == [2, 2, 2]
    assert values['labels_file'].value == ''
