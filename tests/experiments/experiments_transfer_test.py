"""The comparison of the ways to transfer: which images, the networks end to end on a tiny folder, the table."""

import json

import numpy as np
import pytest
from fixtures import programs
from PIL import Image

from official_resnet import checkpoints
from official_resnet.errors import UserError
from official_resnet.experiments import transfer_main
from official_resnet.inputs import image_folder

CLASSES = ('ant', 'bee', 'cow', 'dog')
TINY = '-rs 8 -bs 8 --source_epochs 1 --source_images 10 --train_epochs 2 --images_per_class 6 --dtype fp32'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """12 training and 3 test images of each of four classes."""
    folder = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for split, count in (('train', 12), ('test', 3)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 50, (32, 32, 3))
                pixels[4 * label : 4 * label + 12] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f'{k:04}.jpg')
    return folder


@pytest.mark.whole_runs
def test_three_ways_end_to_end(folder, tmp_path):
    line = f'experiments.transfer_main --image_folder {folder} --output_dir {tmp_path} {TINY}'
    code, out, err = programs.call(f'{line} --ways scratch,append,last')
    assert code == 0, err
    result = json.loads((tmp_path / 'transfer.json').read_text())
    assert result['classes'] == {'source': ['ant', 'bee'], 'target': ['cow', 'dog']}
    nets = result['nets']
    assert list(nets) == ['scratch', 'last', 'append']  # in the order of the table
    assert nets['scratch']['parameters'] == 74_770 and nets['append']['parameters'] == 2 * 2 + 2
    assert nets['last']['parameters'] == 18_432 + 36_864 + 4 * 64 + 130
    for name, epochs in (('scratch', 2), ('last', 2), ('append', 10)):
        assert nets[name]['curves']['epoch'][-1] == epochs and 0 <= nets[name]['final']['test_error'] <= 100
        assert f'| {transfer_main.WAYS[name].label} | {nets[name]["parameters"]:,} | {epochs} | ' in out
    arrays = {
        name: checkpoints.restore_latest(tmp_path / 'runs' / name / 'checkpoints')[0] for name in ('source', *nets)
    }
    for name, array in arrays['source'].items():
        if not name.startswith('optimizer'):
            np.testing.assert_array_equal(array, arrays['append'][name], err_msg=name)
    kernels = [arrays[name]['group3_block1_conv1/kernel'] for name in ('source', 'last')]
    assert not np.array_equal(*kernels)
    code, out, err = programs.call(f'{line} --ways scratch')  # fewer ways of the same setting: nothing to train
    assert code == 0, err
    assert out.count('already finished') == 2


def test_which_images(folder, tmp_path):
    sizes = {'source_images': None, 'images_per_class': 4}
    parts = transfer_main.link_images(folder, tmp_path / 'a', sizes, 0)
    for part, names, count in (('source', ('ant', 'bee'), 12), ('target', ('cow', 'dog'), 4)):
        listing = image_folder.list_files(parts[part])
        classes, files = listing[:2]
        assert classes == names
        assert [len(files[split]) for split in ('train', 'test')] == [2 * count, 2 * 3]
    chosen = {path.resolve() for path, _ in files['train']}
    for seed, is_same in ((0, True), (1, False)):
        other = transfer_main.link_images(folder, tmp_path / str(seed), sizes, seed)['target']
        assert ({path.resolve() for path, _ in image_folder.list_files(other)[1]['train']} == chosen) is is_same
    flat = transfer_main.link_images(folder / 'train', tmp_path / 'flat', sizes, 0)  # split by the seed
    assert len(image_folder.list_files(flat['target'])[1]['test']) == 2


def test_a_folder_with_too_few_classes(folder, tmp_path):
    (tmp_path / 'three').mkdir()
    for name in CLASSES[:3]:
        (tmp_path / 'three' / name).symlink_to(folder / 'train' / name)
    with pytest.raises(UserError, match='3 classes'):
        transfer_main.link_images(tmp_path / 'three', tmp_path / 'x', {'source_images': None, 'images_per_class': 1}, 0)


def test_only_the_ways_that_freeze_the_network_do_not_augment_and_train_longer():
    for way in transfer_main.WAYS.values():
        is_frozen = way.fields.get('transfer') == 'head'
        assert (way.fields.get('augment', True) is False) == is_frozen == (way.epochs > 1)
