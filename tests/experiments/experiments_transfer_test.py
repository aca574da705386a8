"""The comparison of the ways to transfer: which pictures, the nets end to end on a tiny folder, the table."""

import json

import numpy as np
import pytest
from PIL import Image

from official_resnet import checkpoints
from official_resnet.errors import UserError
from official_resnet.experiments import transfer_main
from official_resnet.experiments.experiment_program import run_experiment
from official_resnet.inputs import image_folder
from official_resnet.training import devices

CLASSES = ('ant', 'bee', 'cow', 'dog')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """12 training and 3 test pictures of each of four classes."""
    folder = tmp_path_factory.mktemp('pictures')
    random = np.random.default_rng(0)
    for split, count in (('train', 12), ('test', 3)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 50, (32, 32, 3))
                pixels[4 * label : 4 * label + 12] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f'{k:04}.jpg')
    return folder


@pytest.fixture
def call(monkeypatch, capsys, pictures, tmp_path):
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)

    def run_here(*args, folder=pictures):
        argv = [
            'transfer_main.py',
            '--image_folder',
            str(folder),
            '--output_dir',
            str(tmp_path / 'out'),
            '-rs',
            '8',
            '-bs',
            '8',
            '--source_epochs',
            '1',
            '--source_images',
            '10',
            '--train_epochs',
            '2',
            '--images_per_class',
            '6',
            '--dtype',
            'fp32',
            *args,
        ]
        code = run_experiment(argv, '', transfer_main.define_flags(), transfer_main.run_transfer)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


def test_three_ways_end_to_end(call, tmp_path):
    code, out, err = call('--ways', 'scratch,append,last')
    assert code == 0, err
    result = json.loads((tmp_path / 'out' / 'transfer.json').read_text())
    assert result['classes'] == {'source': ['ant', 'bee'], 'target': ['cow', 'dog']}
    nets = result['nets']
    assert list(nets) == ['scratch', 'last', 'append']  # in the order of the table
    assert nets['scratch']['parameters'] == 74_770 and nets['append']['parameters'] == 2 * 2 + 2
    assert nets['last']['parameters'] == 18_432 + 36_864 + 4 * 64 + 130
    for name, epochs in (('scratch', 2), ('last', 2), ('append', 10)):
        assert nets[name]['curves']['epoch'][-1] == epochs and 0 <= nets[name]['final']['test_error'] <= 100
        assert f'| {transfer_main.WAYS[name].label} | {nets[name]["parameters"]:,} | {epochs} | ' in out
    runs = tmp_path / 'out' / 'runs'
    arrays = {name: checkpoints.restore_latest(runs / name / 'checkpoints')[0] for name in ('source', 'append', 'last')}
    for name, array in arrays['source'].items():
        if not name.startswith('optimizer'):
            np.testing.assert_array_equal(array, arrays['append'][name], err_msg=name)
    assert not np.array_equal(
        arrays['source']['group3_block1_conv1/kernel'], arrays['last']['group3_block1_conv1/kernel']
    )
    code, out, _ = call('--ways', 'scratch')  # fewer ways of the same setting: nothing to train
    assert code == 0 and out.count('finished before') == 2
    code, _, err = call('--seed', '5')
    assert code == 1 and err.count('\n') == 1 and 'seed 0, not 5' in err


def test_which_pictures(pictures, tmp_path):
    sizes = {'source_images': None, 'images_per_class': 4}
    parts = transfer_main.link_pictures(pictures, tmp_path / 'a', sizes, 0)
    for part, names, count in (('source', ('ant', 'bee'), 12), ('target', ('cow', 'dog'), 4)):
        classes, files = image_folder.list_files(parts[part])
        assert classes == names
        assert [len(files[split]) for split in ('train', 'test')] == [2 * count, 2 * 3]
    chosen = {path.resolve() for path, _ in files['train']}
    for seed, is_same in ((0, True), (1, False)):
        other = transfer_main.link_pictures(pictures, tmp_path / str(seed), sizes, seed)['target']
        assert ({path.resolve() for path, _ in image_folder.list_files(other)[1]['train']} == chosen) is is_same
    flat = transfer_main.link_pictures(pictures / 'train', tmp_path / 'flat', sizes, 0)  # split by the seed
    assert len(image_folder.list_files(flat['target'])[1]['test']) == 2


def test_mistakes(call, pictures, tmp_path):
    with pytest.raises(UserError, match='has 12 training images, not 13; lower --images_per_class'):
        transfer_main.link_pictures(pictures, tmp_path / 'x', {'source_images': None, 'images_per_class': 13}, 0)
    for name in ('ant', 'bee', 'cow'):
        (tmp_path / 'three' / name).mkdir(parents=True)
        for k in range(2):
            Image.new('RGB', (4, 4)).save(tmp_path / 'three' / name / f'{k}.png')
    for args, folder, message in (
        ([], tmp_path / 'three', 'has 3 classes'),
        ([], tmp_path / 'no', 'is no folder'),
        (['--ways', 'none'], pictures, 'comma list'),
        (['-rs', '9'], pictures, '6n+2'),
        (['--images_per_class', '0'], pictures, 'images_per_class'),
    ):
        code, _, err = call(*args, folder=folder)
        assert code == 1 and err.count('\n') == 1 and message in err, (args, err)


def test_the_ways_are_those_of_the_program():
    """Each is a set of fields of TrainConfig; only what is frozen is not augmented."""
    for way in transfer_main.WAYS.values():
        is_frozen = way.fields.get('transfer') == 'head'
        assert (way.fields.get('augment', True) is False) == is_frozen == (way.epochs > 1)
    assert not transfer_main.WAYS['scratch'].is_pretrained
