"""Own images that a CSV file lists: the same as in folders, and what is a mistake."""

import codecs
import functools
import itertools

import numpy as np
import pytest
from fixtures.batches import message_of
from PIL import Image

from official_resnet.inputs import datasets, image_folder
from official_resnet.inputs.views import Views


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images of 'ant' and 'café', split into train and test, and the same in classes only."""
    folder = tmp_path_factory.mktemp('images')
    for split, counts in (('train', (5, 3)), ('test', (2, 1))):
        for label, (name, count) in enumerate(zip(('ant', 'caf\u00e9'), counts, strict=True)):
            for k in range(count):
                for place in (folder / 'split' / split / name, folder / 'whole' / name):
                    place.mkdir(parents=True, exist_ok=True)
                    Image.new('RGB', (12, 10), (90 * label, 0, 10 * k)).save(place / f'{split}{k}.png')
    return folder


def write(folder, text, name='list.csv', encoding='utf-8'):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize('kind', ['split', 'whole'])
@pytest.mark.parametrize(
    'columns,delimiter,start,end,is_absolute',
    [
        ('path,label,split', ',', b'', '\n', False),
        ('Split,id,filename,Class', ';', codecs.BOM_UTF8, '\r\n', True),
        ('category,image,other,split', '\t', b'', '\n', False),
    ],
)
def test_a_list_is_read_as_the_folder_that_it_lists(folder, kind, columns, delimiter, start, end, is_absolute):
    root, columns, rows = folder / kind, columns.split(','), []
    for path in sorted(root.rglob('*.png'), key=lambda path: path.stem[::-1]):
        values = dict.fromkeys(columns, 'x') | dict.fromkeys(['label', 'Class', 'category'], path.parent.name)
        values |= dict.fromkeys(['path', 'filename', 'image'], str(path if is_absolute else path.relative_to(root)))
        values |= dict.fromkeys(['split', 'Split'], {'train': 'Train', 'test': 'val'}.get(path.parent.parent.name))
        rows.append([values[name] for name in columns if kind == 'split' or name not in ('split', 'Split')])
    header = [name for name in columns if kind == 'split' or name not in ('split', 'Split')]
    path = root.parent / kind / 'list.csv'
    path.write_bytes(start + end.join([*(delimiter.join(row) for row in [header, *rows]), '', delimiter, '']).encode())
    try:
        ours, theirs = image_folder.list_files(path, 0.3, 1), None
    finally:
        path.unlink()
    theirs = image_folder.list_files(root, 0.3, 1)
    assert ours.splits == theirs.splits and ours.classes == theirs.classes == ('ant', 'caf\u00e9')
    assert bool(ours.test_name) == bool(theirs.test_name) == (kind == 'split')
    assert len(ours.splits['train']) in (7, 8) and not any(ours.others.values())


@pytest.mark.parametrize('views', [None, Views(8, 8)])
def test_both_kinds_of_opening_read_a_list(folder, views, capsys):
    (folder / 'whole' / 'ant' / 'broken.jpg').write_text('no image')
    rows = 'ant/train0.png,x,train\nant/test0.png,x,train\ncaf\u00e9/train2.png,y,train\n./ant/train1.png,y,test\n'
    path = write(folder / 'whole', f'path,label,split\n{rows}ant/broken.jpg,x,train\ncaf\u00e9/test0.png,y,dev\n')
    for split, labels in (('train', [0, 0, 1]), ('test', [1])):
        opened = datasets.open_split(f'folder:{path}', split, views=views, folder={'image_size': 8})
        images, got = next(iter(opened.with_normalization('none').evaluation_batches(9)))
        assert sorted(got.numpy()) == labels and opened.class_names == ('x', 'y')
        blue = {'train': {0, 20}, 'test': {10}}[split]
        assert {round(float(value)) for value in np.asarray(images)[:, 0, 0, 2]} == blue
    out = capsys.readouterr().out
    assert 'broken.jpg' in out and "(1): 'caf\u00e9/test0.png'" in out and "test images from 'test'" in out


TWO = 'ant/train0.png,a\nant/train1.png,b\n'


@pytest.mark.parametrize(
    'text,words',
    [
        ('', 'is empty|path,label'),
        ('\n' + TWO, 'empty first line|path,label'),
        ('path,label\n', 'no rows|add'),
        (TWO, "'ant/train0.png', 'a'|none is called path|path,label"),
        ('path,name\n' + TWO, "'path', 'name'|none is called label|category|path,label"),
        ('path,label\n' + TWO + 'ant/train2.png,\n', 'line 4|label is empty|remove'),
        ('path,label\n' + TWO + ',b\n', 'line 4|path is empty|remove'),
        ('path,label\nant/train0.png\n', 'line 2|label is empty'),
        ('path,label\n' + TWO + 'x.png,a\ny\0.png,b\n', "2 of the 4|'x.png' in line 4|where paths begin|remove"),
        ('path,label\n' + TWO + 'ant,a\n', "1 of the 3|'ant' in line 4"),
        ('path,label\nant/train0.png,a\n', "one class only, 'a'|add rows"),
        ('path,label\n' + TWO + 'ant/train0.png,b\n', "line 4|'ant/train0.png'|'b'|'a' in line 2|remove"),
        ('path,label\n' + TWO + './ant/../ant/train0.png,b\n', "line 4|'b'|'a' in line 2|remove"),
        ('path,label\n/nowhere/x.png,a\n' + TWO, "1 of the 3|'/nowhere/x.png' in line 2|correct its path"),
        ('path,label\n~/nowhere/x.png,a\n' + TWO, "1 of the 3|'~/nowhere/x.png' in line 2|correct its path"),
        ('path,label\n' + TWO + '"ant/train2.png,a\n' + TWO, 'line 4:|close its quotes'),
        ('path,label\n' + TWO + 'ant/train2.png,a,"note\n' + TWO, 'line 4:|close its quotes'),
        ('path,label,Fold\nant/train0.png,a,Train\nant/train1.png,b,val\n', "'Fold'|call it split"),
        ('path,label,split\na/0.png,a,train\na/0.png,a,test\n', "line 3|'test'|'train' in line 2|remove"),
        ('path,label,split\nant/train0.png,a,fold1\n', "line 2|'fold1'|train or test"),
        ('path,label,split\nant/train0.png,a,\n', 'line 2|split is empty'),
        (
            'path,label,split\nant/train0.png,a,train\nant/train1.png,b,train\nant/test0.png,c,test\n',
            "'c'|none for training",
        ),
        ('path,label\n' + 'x' * 200_000 + ',a\n', 'line |path,label'),
    ],
)
def test_mistakes(folder, text, words):
    message = message_of(image_folder.list_files, write(folder / 'whole', text))
    assert all(word in message for word in words.split('|')), message
    assert '\n' not in message and ('list.csv' in message)


def test_a_second_list_is_for_testing(folder):
    train = write(folder / 'whole', 'path,label\nant\\train0.png,b\nant/train1.png,a\n', 'train.csv')
    test = write(folder, 'label;path\nb;whole\\ant\\test0.png\n', 'test.csv')
    both = f'{train},{test}'
    found = image_folder.list_files(both)
    assert found.classes == ('a', 'b') and found.test_name == 'test'
    names = {split: [(path.name, label) for path, label in files] for split, files in found.splits.items()}
    assert names == {'train': [('train1.png', 0), ('train0.png', 1)], 'test': [('test0.png', 1)]}
    write(folder, 'path,label\nwhole/ant/train0.png,b\n', 'test.csv')
    message = message_of(image_folder.list_files, both)
    assert f"'{test}', line 2" in message and f"'train' in '{train}', line 2" in message and 'remove' in message
    assert "b.csv' is not a file" in message_of(image_folder.list_files, f'{train}, {folder}/b.csv')
    zebra = write(folder, 'path,label,split\nwhole/ant/test0.png,zebra,test\n', 'zebra.csv')
    write(folder, 'path,label\nwhole/ant/test1.png,b\n', 'test.csv')
    assert f"'{zebra}' has test images of 'zebra'" in message_of(image_folder.list_files, f'{train},{zebra},{test}')


def test_a_list_of_test_images_can_only_be_tested(folder):
    path = write(folder / 'whole', 'path,label,split\nant/train0.png,a,test\n')
    for split, views in itertools.product(('test', 'train'), (None, Views(8, 8))):
        opening = functools.partial(datasets.open_split, f'folder:{path}', split, views=views)
        if split == 'test':
            assert opening().num_images == 1
        else:
            assert 'column split' in message_of(opening)


def test_a_comma_in_a_name_is_no_second_list(folder):
    assert (
        len(
            image_folder.list_files(
                write(folder / 'whole', 'path,label\n' + TWO + 'ant/train2.png,a\n', 'a,b.csv')
            ).classes
        )
        == 2
    )


def test_a_list_that_is_not_utf_8(folder):
    path = write(folder / 'whole', f'path,label\n{TWO}ant/train2.png,caf\u00e9\n', encoding='latin-1')
    assert 'list.csv' in (message := message_of(image_folder.list_files, path)) and 'UTF-8' in message


TRAIN = 'ant/train0.png,a,Training\nant/train1.png,b,Training\n'


@pytest.mark.parametrize(
    'text,test_name,notes',
    [
        (f'Image Path,label,Split\n{TRAIN}ant/test0.png,a,Validation\n', 'Validation', ''),
        ('path,label,set\nant/train0.png,a,red\nant/train1.png,b,test\nant/train2.png,a,\n', '', "(1): 'set'"),
        (f'path,label,split,x\n{TRAIN}ant/test0.png,a,test,test\n', 'test', "(1): 'x'"),
        (f'path,label,split\n{TRAIN}ant/test0.png,a,test\nant/test1.png,b,Val\n', 'test', "'Val'|(1): 'ant/test1.png'"),
        ('path;label;"a, b, c, d"\nant/train0.png;a;x\nant/train1.png;b;y\nant/train2.png;a\n', '', "'a, b, c, d'"),
        (f'path,label,y z\n{TWO}ant/train2.png,a,"two\n""lines"""\n', '', "(1): 'y z'"),
        (f'path,label,x\n{TRAIN}ant/train2.png,a,Training\n', '', "(1): 'x'"),
    ],
)
def test_columns_and_splits_by_their_usual_names(folder, text, test_name, notes):
    """A line says what is not used."""
    found = image_folder.list_files(write(folder / 'whole', text), 0.5)
    assert found.test_name == test_name and found.classes == ('a', 'b')
    assert bool(found.notes) == bool(notes) and all(word in '\n'.join(found.notes) for word in notes.split('|'))


def test_a_path_may_begin_at_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder))
    path = write(folder / 'whole', f'path,label\n{TWO}~/split/train/ant/train0.png,b\n')
    files = image_folder.list_files(path, 0.5).splits
    assert (folder / 'split/train/ant/train0.png', 1) in files['train'] + files['test']


def test_a_row_that_is_repeated_is_one_image(folder):
    path = write(folder / 'whole', f'path,label\n{TWO}{TWO}ant/test0.png,a\n caf\u00e9/test0.png , b \n')
    assert len(image_folder.list_files(path, 0.5).splits['train']) == 2
