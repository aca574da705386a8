"""Own images: how they are cut and resized, the split, what is left out, and what is a mistake."""

import os

import numpy as np
import pytest
from fixtures.batches import message_of
from PIL import Image

from official_resnet.inputs import datasets, image_folder
from official_resnet.inputs.views import Views

RED = (200, 30, 60)


def save(path, size=(8, 8), colour=RED, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path, **options)
    return path


def fill(folder, counts, **options):
    """Write counts {class: number} images, the k-th of a class with k as its blue; no two folders have the same."""
    green = sum(folder.name.encode()) % 256
    for label, (name, count) in enumerate(counts.items()):
        for k in range(count):
            save(folder / name / f'{k:03}.png', colour=(10 * label, green, k), **options)
    return folder


@pytest.mark.parametrize('width,height', [(12, 4), (4, 12), (4, 4)])
def test_the_middle_is_cut_out_as_it_is(tmp_path, width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    left, top = (width - 4) // 2, (height - 4) // 2
    np.testing.assert_array_equal(image_folder.decode(tmp_path / 'a.png', 4), pixels[top : top + 4, left : left + 4])


def test_resizing_is_antialiased(tmp_path):
    """A checkerboard of single pixels becomes grey; a bilinear reader without antialiasing keeps black and white."""
    Image.fromarray((np.indices((32, 48)).sum(0) % 2 * 255).astype(np.uint8)).save(tmp_path / 'a.png')
    got = image_folder.decode(tmp_path / 'a.png', 4)[1:-1, 1:-1]
    np.testing.assert_allclose(got, 127, atol=8)


# --- the split -----------------------------------------------------------------------------------------------


def test_split_of_each_class_by_seed(tmp_path):
    folder = fill(tmp_path, {'cat': 20, 'ant': 30, 'bee': 5})
    (folder / 'notes.txt').write_text('x')
    (folder / 'cat' / 'notes.txt').write_text('x')
    (folder / 'cat' / '._000.png').write_text('of macOS')
    (folder / '.git' / 'x').mkdir(parents=True)

    def read(split, **options):
        images, labels, names = image_folder.read(folder, split, image_size=8, **options)
        assert names == ('ant', 'bee', 'cat') and images.shape[1:] == (8, 8, 3) and labels.dtype == np.int32
        assert len(images) == len(labels)
        return [(label, *pixel) for label, pixel in zip(labels.tolist(), images[:, 0, 0].tolist(), strict=True)]

    train, test = read('train'), read('test')
    assert [sum(row[0] == label for row in test) for label in range(3)] == [3, 1, 2]  # round(0.5) is 0: at least one
    assert len(set(train + test)) == 55 and not set(train) & set(test)
    assert read('train') == train and read('test') == test  # the same order each time
    assert [row[0] for row in train] != sorted(row[0] for row in train)  # the first n are a sample
    other = read('test', seed=1)
    assert set(other) != set(test) and len(other) == 6
    assert [sum(row[0] == label for row in read('test', validation_fraction=0.5)) for label in range(3)] == [15, 2, 10]
    assert set(read('test', validation_fraction=1)) == set(train + test)
    assert '--validation_fraction=1 ' in message_of(lambda: read('train', validation_fraction=1))


@pytest.mark.parametrize('views', [None, Views(size=8, test_size=8)])
def test_balance_repeats_the_images_of_small_classes(tmp_path, views):
    fill(tmp_path / 'train', {'ant': 2, 'bee': 7, 'cat': 1})
    fill(tmp_path / 'test', {'ant': 1, 'bee': 3, 'cat': 2})
    folder = {'image_size': 8, 'channels': 3, 'seed': 0, 'balance': True}

    def paths(split, **options):
        opened = datasets.open_split(f'folder:{tmp_path}', split, views=views, folder=folder | options)
        return [os.path.relpath(path, tmp_path / split) for path in opened.paths]

    train = paths('train')
    counts = {path: train.count(path) for path in train}
    assert len(train) == 21 and counts['cat/000.png'] == 7 and {counts[f'bee/{k:03}.png'] for k in range(7)} == {1}
    assert sorted(counts[f'ant/{k:03}.png'] for k in range(2)) == [3, 4]
    assert paths('train') == train != paths('train', seed=1)
    assert len({path.split('/')[0] for path in train[:7]}) > 1  # the first n are a sample
    assert len(paths('test')) == 6 and len(paths('train', balance=False)) == 10


@pytest.mark.parametrize(
    'name',
    ['test', 'val', 'validation', 'valid', 'dev', 'Train Test', 'TRAIN VALID', 'train Val', 'Training Evaluation'],
)
def test_a_split_that_is_there_is_used(tmp_path, name):
    train, test = ['train', *name.split()][-2:]
    fill(tmp_path / train, {'ant': 4, 'bee': 2})
    fill(tmp_path / test, {'ant': 1, 'bee': 3})
    (tmp_path / train / 'bee' / 'more').mkdir()
    save(tmp_path / train / 'bee' / 'more' / 'x.png')  # of any depth
    lines = []
    labels = {part: image_folder.read(tmp_path, part, image_size=8, log=lines.append)[1] for part in ('train', 'test')}
    assert sorted(labels['train']) == [0] * 4 + [1] * 3 and sorted(labels['test']) == [0] + [1] * 3
    assert len(lines) == 1 and '2 classes' in lines[0] and f"'{test}'" in lines[0]
    assert '3 to 4 training and 1 to 3 test images' in lines[0] and '8 x 8 pixels' in lines[0]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {'bus': 2, 'train': 2})
    assert image_folder.list_files(tmp_path).classes == ('bus', 'train')


def test_names_in_two_unicode_forms_are_one_class(tmp_path):
    nfc, nfd = 'caf\u00e9', 'cafe\u0301'
    fill(tmp_path / 'train', {nfd: 2, 'caff': 1})
    fill(tmp_path / 'val', {nfc: 3})
    listing = image_folder.list_files(tmp_path)
    assert listing.classes == ('caff', nfc) and [label for _, label in listing.splits['test']] == [1] * 3
    assert [label for _, label in listing.splits['train']] == [0, 1, 1]
    fill(tmp_path / 'train', {nfc: 1})
    assert 'join them' in message_of(image_folder.list_files, tmp_path)


def test_what_is_no_image_of_a_class_is_named_and_counted(tmp_path):
    for part in ('train', 'test'):
        fill(tmp_path / part, {'ant': 2, 'bee': 2})
        save(tmp_path / part / 'ant' / 'a.jfif', format='JPEG')
        save(tmp_path / part / 'bee' / 'b.tif')
        save(tmp_path / part / 'bee' / 'c', format='PNG')
        (tmp_path / part / 'bee' / 'd.txt').write_text('no image')
    save(tmp_path / 'train' / 'of no class.png')
    for part, others in (
        ('train', "(2): 'train/bee/d.txt', 'train/of no class.png'"),
        ('test', "(1): 'test/bee/d"),
    ):
        lines = []
        assert sorted(image_folder.read(tmp_path, part, image_size=8, log=lines.append)[1]) == [0] * 3 + [1] * 4
        assert others in lines[-1], lines
        streamed = datasets.open_split(f'folder:{tmp_path}', part, views=Views(8, 8))
        images, labels = next(iter(streamed.evaluation_batches(9)))
        assert sorted(labels.numpy()) == [0] * 3 + [1] * 4 and images.shape == (7, 8, 8, 3)


@pytest.mark.parametrize('views', [None, Views(8, 8)])
def test_images_that_cannot_be_read_are_left_out_in_memory_and_streamed(tmp_path, capsys, views):
    for part in ('train', 'test'):
        fill(tmp_path / part, {'ant': 3, 'bee': 3})
    (tmp_path / 'train' / 'bee' / 'empty.jpg').touch()
    (tmp_path / 'train' / 'ant' / 'page.png').write_text('<html>')
    split = datasets.open_split(f'folder:{tmp_path}', 'train', views=views, folder={'image_size': 8})
    images, labels = next(iter(split.evaluation_batches(8)))
    assert split.num_images == len(images) == 6 and sorted(labels.numpy()) == [0, 0, 0, 1, 1, 1]
    out = capsys.readouterr().out
    assert 'empty.jpg' in out and 'page.png' in out and '2 of 8 training images' in out


@pytest.mark.parametrize('views', [None, Views()])
def test_a_fifo_is_left_out(tmp_path, capsys, views):
    os.mkfifo(fill(tmp_path, {'ant': 3, 'bee': 2}) / 'ant' / 'x.png')
    splits = [datasets.open_split(f'folder:{tmp_path}', name, views=views) for name in ('train', 'test')]
    assert sum(split.num_images for split in splits) == 5
    assert f'left out: {tmp_path}/ant/x.png (not a plain file)' in capsys.readouterr().out


def test_links_to_folders_and_images(tmp_path):
    fill(tmp_path / 'all', {'ant': 3, 'bee': 3})
    (tmp_path / 'some' / 'bee').mkdir(parents=True)
    (tmp_path / 'some' / 'ant').symlink_to(tmp_path / 'all' / 'ant')
    for k in range(2):
        (tmp_path / 'some' / 'bee' / f'{k}.png').symlink_to(tmp_path / 'all' / 'bee' / f'{k:03}.png')
    assert len(image_folder.read(tmp_path / 'some', 'train', image_size=8)[1]) == 3


def test_input_pipeline_reads_folders(tmp_path):
    fill(tmp_path, {'ant': 4, 'bee': 4}, size=(40, 36))
    examples = datasets.open_split(f'folder:{tmp_path}', 'test')
    assert examples.class_names == ('ant', 'bee') and examples.num_classes == 2
    assert examples.images.shape == (2, 32, 32, 3) and examples.normalization == 'per_image_standardization'
    options = {'image_size': 16, 'channels': 1, 'validation_fraction': 0.5}
    assert datasets.open_split(f'folder:{tmp_path}', 'test', folder=options).images.shape == (4, 16, 16, 1)
    images, labels = next(iter(datasets.open_split(f'folder:{tmp_path}', 'train').training_batches(4)))
    assert images.shape == (4, 32, 32, 3) and labels.shape == (4,)


# --- what is left out, what is a mistake ---------------------------------------------------------------------


def test_unreadable_files_are_named_counted_and_left_out(tmp_path, monkeypatch):
    fill(tmp_path / 'train', {'ant': 4, 'bee': 4})
    fill(tmp_path / 'test', {'ant': 1, 'bee': 1})
    whole = save(tmp_path / 'train' / 'ant' / 'cut.jpg', size=(64, 64)).read_bytes()
    (tmp_path / 'train' / 'ant' / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'train' / 'ant' / 'empty.png').write_bytes(b'')
    (tmp_path / 'train' / 'bee' / 'text.webp').write_text('no image')
    png = bytearray((tmp_path / 'train' / 'bee' / '000.png').read_bytes())
    png[20] ^= 255  # of its header, whose CRC is then wrong
    (tmp_path / 'train' / 'bee' / 'flipped.png').write_bytes(png)
    save(tmp_path / 'train' / 'bee' / 'other.png', format='EPS')  # which Pillow reads with another program
    save(tmp_path / 'train' / 'ant' / 'bomb.png', size=(300, 300))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000)
    lines = []
    images, labels, _ = image_folder.read(tmp_path, 'train', image_size=8, log=lines.append)
    assert sorted(labels) == [0] * 4 + [1] * 4 and len(images) == 8
    for image, label in zip(images, labels, strict=True):
        assert image[0, 0, 0] == 10 * label  # still together
    assert '2 classes' in lines.pop(0)
    assert len(lines) == 7 and '6 of 14 training images' in lines[-1] and 'decompression bomb' in lines[0]
    names = ('ant/bomb.png', 'ant/cut.jpg', 'ant/empty.png', 'bee/flipped.png', 'bee/other.png', 'bee/text.webp')
    assert all(name in line for line, name in zip(lines, names, strict=False)), lines


@pytest.mark.parametrize(
    'files, words',
    [
        ('a.png', 'no subfolders; put the'),
        ('ant/0.png ant/1.png cow/', "cow' has no images (.bmp"),
        ('ant/0.txt.png ant/1.txt.png bee/0.txt.png bee/1.txt.png', "class 'ant' for train|fix or remove"),
        ('train/ant/0.png train/bee/0.png val/cow/', "val/cow' |train'; remove"),
        ('train/ant/0.png train/bee/0.png val/ant/', "val' has no images"),
        ('train/ant/0.png train/bee/0.png', "'train'|is a split|a folder test|--image_folder="),
        ('train/0.png eval/0.png', "train' has no subfolders"),
        ('Train/ant/0.png Train/bee/0.png more/0.png', "'Train'|is a split|a folder test|/Train to|without|'more'"),
        (
            "Train/ant/0.png Train/bee/0.png it's/0.png held/bee/0.png Unlabelled/1.png",
            "rename 'held' to 'test'|/Train to set test images aside|without the images of 'Unlabelled'",
        ),
        (
            'train_images/ant/0.png train_images/bee/0.png test_photos/ant/0.png Unlabelled/0.png',
            "rename 'test_photos' to 'test'|train_images to set",
        ),
        ('ant/0.png bee/0.png test/ant/0.png', "'test'|is a split|a folder train"),
        ('all/ant/0.png some/bee/0.png', "'all', 'some'|hold only folders"),
    ],
)
def test_mistakes_of_structure(tmp_path, files, words):
    for name in files.split():
        if name.endswith('/'):
            (tmp_path / name).mkdir(parents=True)
        else:
            save(tmp_path / name)
        if '.txt' in name:
            (tmp_path / name).write_text('no image')
    message = message_of(lambda: image_folder.read(tmp_path, 'train', image_size=8, log=lambda line: None))
    assert all(word in message for word in words.split('|')), message


def test_too_many_images_for_the_memory(tmp_path, monkeypatch):
    fill(tmp_path, {'ant': 3, 'bee': 3})
    monkeypatch.setattr(image_folder, 'memory_bytes', lambda: 4 * 6 * 8 * 8 * 3)
    image_folder.read(tmp_path, 'train', image_size=8)
    message = message_of(lambda: image_folder.read(tmp_path, 'train', image_size=9))
    assert f"6 images of '{tmp_path}'" in message and '9 x 9' in message and 'lower --image_size' in message
