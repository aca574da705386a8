"""building.image_list knows where the bytes of images lie, in folders and in tar files."""

import os

import numpy as np
import pytest
from fixtures import data_commands

from official_resnet import errors
from official_resnet.building import image_list
from official_resnet.building.image_list import ImageList


def test_images_of_folders(tmp_path):
    files = {'b/2.JPEG': b'bb', 'a/10.jpeg': b'x', 'a/1.JPEG': b'y', 'b/umlaut_ü.JPEG': b'zz'}
    (tmp_path / 'c').mkdir()
    data_commands.write_files(tmp_path, {'a/.1.JPEG': b'hidden', 'a/notes.txt': b'other'})
    found = data_commands.write_images(tmp_path, files)
    found.save(tmp_path / 'kept')
    for kept in (found, ImageList.load(tmp_path / 'kept')):
        assert [kept.name(i) for i in range(len(kept))] == ['a/1.JPEG', 'a/10.jpeg', 'b/2.JPEG', 'b/umlaut_ü.JPEG']
        assert [kept.label(i) for i in range(4)] == [1, 1, 2, 2] and kept.synset(3) == 'b'
        assert kept.basename(3) == 'umlaut_ü.JPEG' and kept.synsets == ('', 'a', 'b')
        assert [kept.read_bytes(i) for i in range(4)] == [files[kept.name(i)] for i in range(4)]
        assert kept.digest() == found.digest()
    assert isinstance(kept.rows, np.memmap)


def test_images_of_a_tar_file(tmp_path):
    (tmp_path / 'a.tar').write_bytes(b'0123456789')
    rows = np.array([(0, 2, 3, 1, b'a'), (0, 8, 5, 1, b'b')], [*image_list.ROW_FIELDS, ('name', 'S1')])
    found = ImageList((str(tmp_path / 'a.tar'),), rows, ('', 'x'))
    for opener in (image_list.open_unbuffered, lambda path: open(path, 'rb')):
        assert found.read_bytes(0, opener) == b'234'
        with pytest.raises(errors.UserError, match="'b' at byte 8"):
            found.read_bytes(1, opener)
    os.remove(tmp_path / 'a.tar')
    with pytest.raises(errors.UserError, match='cannot be read'):
        found.read_bytes(0)


def test_images_are_known_by_their_bytes_and_the_rest_is_listed(tmp_path):
    nfc, nfd = 'caf\u00e9', 'cafe\u0301'
    files = {
        'a/1.jpg': b'x',
        'a/2.jfif': b'\xff\xd8\xff',
        'a/3': b'II*\0',
        f'{nfd}/4.txt': b'no',
        f'{nfd}/b/5.png': b'',
    }
    data_commands.write_files(tmp_path, files | {'b/6.jpg': b'', 'a/.hidden': b''})
    found = image_list.from_folders(tmp_path, ['a', nfc], by_bytes=True)
    assert [found.name(i) for i in range(4)] == ['a/1.jpg', 'a/2.jfif', 'a/3', f'{nfd}/b/5.png']
    assert found.skipped == (f'{nfd}/4.txt', 'b/') and [found.synset(i) for i in (2, 3)] == ['a', nfc]
    assert image_list.from_folders(tmp_path, ['a'], ('.jpg',)).skipped == ('a/2.jfif', 'a/3', 'b/', f'{nfd}/')


def test_classes_without_images(tmp_path):
    data_commands.write_files(tmp_path, {'a/1.JPEG': b'x', 'b/notes.txt': b''})
    for classes, is_complete in ((['a', 'b'], True), (['b'], False)):
        with pytest.raises(errors.UserError, match='has no images.*--labels_file'):
            image_list.from_folders(tmp_path, classes, ('.jpeg',), is_complete=is_complete)
    assert len(image_list.from_folders(tmp_path, ['a', 'b'], ('.jpeg',), is_complete=False)) == 1
