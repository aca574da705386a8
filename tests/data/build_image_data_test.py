"""build_image_data builds shards of your own images; wrong_inputs_test has its mistakes."""

import json
import os
import shutil

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


@pytest.mark.parametrize('classes', [['dog', 'cat'], ['big cat', 'cat', 'dog']])
def test_classes_of_a_list_or_of_the_folders(folder, capfd, classes):
    """With --verify, which inspects the records."""
    (folder / 'labels.txt').write_text('\n'.join(classes))
    arguments = [f'--{name}_directory={folder}/{name}' for name in ('train', 'validation')]
    arguments += [f'--labels_file={folder}/labels.txt'] if len(classes) == 2 else []
    assert build_image_data.main(['x', *arguments, f'--output_directory={folder}/out', '--verify']) == 0
    for split, files in (
        ('train', {'dog': ('a.jpg', 'b.PNG', 'c.gif'), 'cat': ('d.bmp', 'e.jpeg'), 'big cat': ('f.jpg',)}),
        ('validation', {'cat': ('v.jpg',), 'big cat': ('w.jpg',)}),
    ):
        found = data_commands.examples(folder / 'out', split)
        assert found.keys() == {name for text in classes for name in files.get(text, ())}
        for name, example in found.items():
            label, text = example['image/class/label'][0], example['image/class/text'][0].decode()
            assert example.keys() == FOLDER_KEYS and classes[label - 1] == text and name in files[text]
    assert "'cat/broken.jpg'" in capfd.readouterr().out


def test_classes_of_validation_images_that_are_built_later(folder, capfd):
    """They lack a class, and have the labels of the training images; another class is refused."""
    out = folder / 'out'

    def build(*arguments):
        code = build_image_data.main(['x', '--train_directory=', f'--output_directory={out}', *arguments])
        return code, ''.join(capfd.readouterr())

    assert build(f'--train_directory={folder}/train', '--validation_directory=')[0] == 0
    (folder / 'validation' / 'new').mkdir()
    code, text = build(f'--validation_directory={folder}/validation')
    assert code == 1 and "'new'" in text and not list(out.glob('validation*'))
    (folder / 'validation' / 'new').rename(folder / 'new')
    shutil.rmtree(folder / 'validation' / 'big cat')
    (folder / 'validation' / 'dog' / 'w').write_bytes((folder / 'train' / 'dog' / 'a.jpg').read_bytes())
    assert build(f'--validation_directory={folder}/validation', '--verify')[0] == 0
    found = data_commands.examples(out, 'validation')
    assert {name: example['image/class/label'] for name, example in found.items()} == {'v.jpg': [2], 'w': [3]}
    manifest = json.loads((out / 'train.manifest.json').read_text())
    assert manifest['skipped'] == ['cat/notes.txt'] and list(manifest['broken']) == ['cat/broken.jpg']
    manifest['synsets'][2:] = ['dog', 'cat']
    (out / 'train.manifest.json').write_text(json.dumps(manifest))
    code, text = build('--validation_directory=', '--verify')
    assert code == 1 and "class 'cat' has the label 2 in validation but 3 in train" in text


def test_what_is_in_the_place_of_a_file(folder, capfd):
    """A FIFO or a device among the images is a broken image; in the place of the manifest it is named with a remedy."""
    out = folder / 'out'
    os.mkfifo(folder / 'train' / 'cat' / 'fifo.jpg')
    (folder / 'train' / 'dog' / 'zero.PNG').symlink_to('/dev/zero')
    arguments = ['x', f'--train_directory={folder}/train', '--validation_directory=', f'--output_directory={out}']
    assert build_image_data.main([*arguments, '--on_broken=fail']) == 1
    assert 'left out' not in capfd.readouterr().out
    assert build_image_data.main(arguments) == 0
    names = 'cat/fifo.jpg', 'dog/zero.PNG'
    broken, path = json.loads((out / 'train.manifest.json').read_text())['broken'], out / 'train.manifest.json'
    assert [broken[name] for name in names] == ['not a plain file'] * 2
    out_text = capfd.readouterr().out
    assert all(f"left out the broken image '{name}' (not a plain file)" in out_text for name in names)
    later = [arguments[0], '--train_directory=', f'--validation_directory={folder}/validation', arguments[-1]]
    for content in ('{', '{"records": 3}', '{"synsets": [3]}'):
        path.write_text(content)
        assert build_image_data.main(later) == 1 and f"'{path}' is damaged; put it back, " in capfd.readouterr().err
    path.unlink()
    os.mkfifo(path)
    for words in (arguments, later, [*arguments, '--verify']):
        assert build_image_data.main(words) == 1
        text = capfd.readouterr().err
        assert f"'{path}'" in text and 'not a plain file' in text and '; move that away and run the same' in text


def test_defaults_are_upstreams():
    values = build_image_data.define_flags()
    assert [values[f'{name}_directory'].value for name in ('train', 'validation', 'output')] == ['/tmp/'] * 3
    assert [values[name].value for name in ('train_shards', 'validation_shards', 'num_threads')] == [2, 2, 2]
    assert values['labels_file'].value == ''
