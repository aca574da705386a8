"""Folders as people have them: what systems leave in them, links, odd splits, and images of odd sizes and names."""

import os

import numpy as np
import pytest
from fixtures.batches import message_of
from fixtures.odd_images import encode

from official_resnet.inputs import datasets, image_folder, listing
from official_resnet.inputs.views import Views

PIXELS = np.full([9, 8, 3], 90, np.uint8)
HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'


def make(root, files):
    """Make files: 'a/b.png', or 'a/*3.png' for three, or 'a/b -> c', a link to c from a."""
    for text in files.split(', '):
        name, _, target = text.partition(' -> ')
        first, star, rest = name.partition('*')
        for one in [f'{first}{k}{rest[1:]}' for k in range(int(rest[:1]))] if star else [name]:
            path = root / one
            path.parent.mkdir(parents=True, exist_ok=True)
            suffix = path.suffix.lower().removeprefix('.')
            kind = {'jpg': 'JPEG', 'gif': 'GIF', 'webp': 'WEBP'}.get(suffix, 'PNG')
            if target:
                path.symlink_to(target)
            elif suffix in ('txt', 'db', 'ini'):
                path.write_text('no image')
            else:
                path.write_bytes((HEIC if suffix == 'heic' else encode(PIXELS, kind)) + os.urandom(8))  # no copies
    return root


BOTH = 'a/*2.png, b/*3.png'
SPLIT = 'train/a/*2.png, train/b/*2.png, test/b/*3.png'


@pytest.mark.parametrize(
    'files,classes,counts,words',  # {class: number of images}, of training and test, and in what is printed
    [
        (f'{BOTH}, .git/*3.png, a/.x.png, a/.ipynb_checkpoints/*3.png', 'ab', (3, 2), None),
        (f'{BOTH}, Thumbs.db, a/thumbs.db, b/desktop.ini, __MACOSX/a/*3.png, b/.DS_Store', 'ab', (3, 2), None),
        (f'{BOTH}, @eaDir/*3.png, a/@eaDir/*3.png, $RECYCLE.BIN/*3.png', 'ab', (3, 2), None),
        (f'{BOTH}, notes.txt, a/notes.txt', 'ab', (3, 2), "(2): 'a/notes.txt', 'notes.txt'"),
        ('x/*3.png, a -> x, b/*2.png, b/c.png -> ../x/0.png', 'abx', (6, 3), '3 classes'),
        (f'{BOTH}, loop -> ., a/up -> .., a/self -> self, b/c -> nowhere', 'ab', (3, 2), "'loop'"),
        ('a/1/*2.png, a/2/3/*2.png, b/x.png, b/y/*2.png', 'ab', (5, 2), None),
        (f'{BOTH}, c/0.png', 'abc', (4, 2), "not tested (1): 'c'"),
        ('a/0.PNG, a/1.JPG, a/2, b/0.gif, b/1.WebP, b/2.doc', 'ab', (4, 2), None),
        ('Train/a/*2.png, Train/b/*2.png, validation/a/*3.png', 'ab', (4, 3), "from 'validation'"),
        ('train_images/a/*2.png, train_images/b/*2.png, test_images/b/*3.png', 'ab', (4, 3), "from 'test_images'"),
        ('training_set/a/*2.png, training_set/b/*2.png, test_set/b/*3.png', 'ab', (4, 3), "from 'test_set'"),
        ('train/a/*3.png, train/b/*2.png, test/*4.jpg', 'ab', (3, 2), '--model MODEL_DIR {root}/test'),
        ('train/a/*3.png, train/b/*2.png, val/*4.jpg', 'ab', (3, 2), '--model MODEL_DIR {root}/val'),
        ('train/a/*3.png, train/b/*2.png, val/a/*4.png, test/*4.jpg', 'ab', (5, 4), "from 'val'|{root}/test"),
        (f'{BOTH}, test/*4.jpg', 'ab', (3, 2), '--model MODEL_DIR {root}/test'),
        ('train/a/*3.png, train/b/*2.png, test set/*4.jpg', 'ab', (3, 2), "--model MODEL_DIR '{root}/test set'"),
        (f'{BOTH}, c/*2.png, valid/*2.png', ['a', 'b', 'c', 'valid'], (5, 4), None),  # a class may be called so
        ('control/*2.png, test/*3.png', ['control', 'test'], (3, 2), None),
        (
            f'{SPLIT}, holdout/a/*2.png, holdout/b/*3.png, holdout/c/0.png, x.txt, x/a.txt',
            'ab',
            (4, 3),
            "'holdout' is not used; it has 5 images of 2|--eval_only|--image_folder={root}/holdout|used (2): 'x', 'x.",
        ),
        (f'{SPLIT}, val/a/0.png', 'ab', (4, 3), "'val' is not used; it has 1 image of 1 of"),
        ('train/a/*3.png, train/b/*2.png, val/*4.jpg, holdout/b/*2.png', 'ab', (3, 2), 'it has 2 images of 1'),
        ('FROG/*2.png, cat/*2.png, frog/*3.png', ['FROG', 'cat', 'frog'], (4, 3), "case (1): 'FROG = frog'|one name"),
        (f'{BOTH}, a/*3.heic', 'ab', (3, 2), "(3): 'a/0.heic'|3 of these: HEIC|JPEG"),
    ],
)
def test_a_folder_is_read_as_a_person_would(tmp_path, files, classes, counts, words):
    make(tmp_path, files)
    lines = []
    read = [image_folder.read(tmp_path, split, image_size=8, log=lines.append) for split in ('train', 'test')]
    assert read[0][2] == tuple(classes) and tuple(len(labels) for _, labels, _ in read) == counts
    assert all((images == 90).all() for images, _, _ in read)
    assert len(lines) == 1 or words
    assert all(word in '\n'.join(lines) for word in (words or '').format(root=tmp_path).split('|')), lines


@pytest.mark.parametrize(
    'files,words',
    [
        ('*3.png', 'no subfolders|--image_list'),
        ('train/*3.png, test/*3.png', "train' has no subfolders|--image_list"),
        ('a/*3.png', "one class only, 'a'|add"),
        ('a/0.png, b/0.png', 'each class has one image|add'),
        ('a/*3.png, b/*2.heic', "/b': HEIC|convert it to JPEG"),
        ('a/*3.png, b/Thumbs.db', "/b' has no images|remove"),
        ('train/a/*3.png, train/b/*2.png, test/c/*2.png', "test/c' is not a class|rename"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_with_the_remedy(tmp_path, files, words):
    message = message_of(image_folder.list_files, make(tmp_path, files))
    assert all(word in message for word in words.split('|')) and '\n' not in message, message


@pytest.mark.parametrize(
    'views',
    [None, Views(16, 16), Views(16, 16, crop='torch', use_boxes=False), Views(16, 16, crop='pad', use_boxes=False)],
)
def test_images_of_any_size_and_with_wrong_names(tmp_path, capsys, views):
    for name, data in {
        'a/one pixel.png': encode(PIXELS[:1, :1], 'PNG'),
        'a/wide.jpg': encode(np.full([10, 5000, 3], 90, np.uint8), 'JPEG'),
        'a/high.jpg': encode(np.full([5000, 10, 3], 90, np.uint8), 'JPEG'),
        'b/png.jpg': encode(PIXELS, 'PNG'),
        'b/jpeg.png': encode(PIXELS, 'JPEG'),
        'b/heic.jpg': HEIC,
        'b/cut.jpg': encode(PIXELS, 'JPEG')[:-9],
        'b/no suffix': encode(PIXELS, 'WEBP'),
    }.items():
        (tmp_path / 'train' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'train' / name).write_bytes(data)
    make(tmp_path, 'test/a/0.png')
    split = datasets.open_split(f'folder:{tmp_path}', 'train', views=views, folder={'image_size': 16})
    split = split.with_normalization('none')
    out = capsys.readouterr().out
    assert 'b/heic.jpg (HEIC' in out and 'b/cut.jpg (' in out and split.num_images == 6
    for batches in (split.evaluation_batches(6), split.training_batches(6)):
        images, labels = next(iter(batches))
        assert sorted(labels.numpy()) == [0, 0, 0, 1, 1, 1]
        assert np.isin(np.round(images), [0, 90]).all()  # 0: the padding of shifted crops


def test_copies_of_training_images_among_the_test_images_are_named_and_counted(tmp_path, monkeypatch):
    """Files of another size are not read, nor are those with another end read whole."""
    monkeypatch.setattr(listing, 'END_BYTES', 8)
    for name, data in {
        'train/a/same.bmp': b'BM 0123456789',
        'train/a/end.bmp': b'BM 012345678x',
        'train/b/begin.bmp': b'BM xx23456789',
        'train/b/empty.bmp': b'',
        'test/a/same.bmp': b'BM 0123456789',
        'test/b/again.bmp': b'BM 0123456789',
        'test/b/end.bmp': b'BM 0123456abc',
        'test/b/long.bmp': b'BM 01234567890',
        'test/b/empty.bmp': b'',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    read = {'_end_of': [], '_digest_of': []}
    for name in read:
        function = getattr(listing, name)
        monkeypatch.setattr(listing, name, lambda path, f=function, n=name: read[n].append(path.stem) or f(path))
    lines = []
    image_folder._report(image_folder.list_files(tmp_path), str(tmp_path), 'train', 8, lines.append)
    assert '2 of 5' in lines[1] and 'remove' in lines[1] and lines[1].count('=') == 2
    assert 'test/a/same.bmp = train/a/same.bmp' in lines[1] and 'test/b/again.bmp = train/a/same.bmp' in lines[1]
    assert not {'long', 'empty'} & {*read['_end_of']} and 'end' not in read['_digest_of']


def test_copies_that_a_seed_sets_aside_are_named_too(tmp_path):
    make(tmp_path, BOTH)
    (tmp_path / 'a' / '0.png').write_bytes((tmp_path / 'a' / '1.png').read_bytes())
    lines = []
    image_folder._report(image_folder.list_files(tmp_path), str(tmp_path), 'train', 8, lines.append)
    assert '1 of 2' in lines[1] and "'a/" in lines[1]


def test_copies_in_two_classes_of_the_training_images_are_named(tmp_path):
    make(tmp_path, 'train/a/*3.png, train/b/*3.png, test/a/*2.png, test/b/*2.png')
    for name in ('train/a/1.png', 'train/b/2.png', 'test/b/0.png'):  # those in one class are no mistake
        (tmp_path / name).write_bytes((tmp_path / 'train/a/0.png').read_bytes())
    lines = []
    image_folder._report(image_folder.list_files(tmp_path), str(tmp_path), 'train', 8, lines.append)
    of_tests, of_train = lines[1:]
    assert '1 of 4' in of_tests and "'test/b/0.png = train/a/0.png'" in of_tests
    assert 'class: 1,' in of_train and 'remove' in of_train and "'train/b/2.png = train/a/0.png'" in of_train


@pytest.mark.parametrize('views', [None, Views(8, 16)])
def test_names_cannot_command_a_terminal_and_both_sizes_are_said(tmp_path, capsys, views):
    make(tmp_path, 'train/a/*2.png, train/b\x1b[2J/*2.png, test/a/0.png, train/a/1\n2.txt')
    (tmp_path / 'train' / 'b\x1b[2J' / '\x1b[1m.png').write_text('no image')
    datasets.open_split(f'folder:{tmp_path}', 'train', views=views, folder={'image_size': 8})
    out = capsys.readouterr().out
    assert '\x1b' not in out and 'b?[2J' in out and len(out.splitlines()) == 4
    assert ('8 x 8 pixels in training, 16 x 16 in tests' in out) == bool(views) and '1 of 5 training images' in out


@pytest.mark.parametrize('num_broken,words', [(1, 'so it is left out'), (2, 'so they are left out')])
def test_unreadable_images_are_counted_in_a_line(tmp_path, num_broken, words):
    make(tmp_path, 'train/a/*3.png, train/b/*3.png, test/a/0.png')
    for k in range(num_broken):
        (tmp_path / f'train/a/{k}.png').write_text('no image')
    lines = []
    image_folder.read(tmp_path, 'train', image_size=8, log=lines.append)
    assert f'{num_broken} of 6 training images' in lines[-1] and words in lines[-1]


def test_classes_of_a_list_that_differ_only_in_case_are_named(tmp_path):
    make(tmp_path, BOTH)
    rows = ['path,label', 'a/0.png,FROG', 'a/1.png,FROG', 'b/0.png,frog', 'b/1.png,frog']
    (tmp_path / 'list.csv').write_text('\n'.join(rows))
    lines = []
    assert image_folder.read(tmp_path / 'list.csv', 'train', image_size=8, log=lines.append)[2] == ('FROG', 'frog')
    assert "'FROG = frog'" in lines[1]


def test_a_thousand_classes_are_reported_in_a_line(tmp_path):
    make(tmp_path, ', '.join(f'{i:03}/*2.png' for i in range(1000)))
    lines = []
    assert len(image_folder.read(tmp_path, 'test', image_size=8, log=lines.append)[2]) == 1000 and lines == []
    image_folder.read(tmp_path, 'train', image_size=8, log=lines.append)
    assert len(lines) == 1 and len(lines[0]) < 300 and '1,000 classes' in lines[0]
