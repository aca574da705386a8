"""The benchmark measures and prints what it says, and ends its processes."""

import json
import os

import pytest
from PIL import Image

from benchmarks import jpeg_input, speed
from benchmarks.measuring import Child
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError


def test_table_and_ratios():
    rates = {'ours': [10.0, 40.0, 30.0], 'keras': [5.0, 10.0, 20.0]}
    lines = speed.format_table([('train', 'fp32', rates), ('input', 'fp32', {'ours': [7.0]})]).splitlines()
    assert lines[1].split() == ['train', 'fp32', 'ours', '3', '10.0', '30.0', '40.0']
    assert lines[2].split() == ['train', 'fp32', 'keras', '3', '5.0', '10.0', '20.0', '2.00']  # median of 2, 4, 1.5
    assert lines[3].split() == ['input', 'fp32', 'ours', '1', '7.0', '7.0', '7.0']


def test_a_tiny_run(tmp_path, capsys):
    argv = [
        'speed.py',
        '-rs',
        '8',
        '-bs',
        '16',
        '--runs',
        '2',
        '--steps',
        '1',
        '--dtype',
        'fp32',
        '--system',
        'ours',
        '--system',
        'keras',
        '--measure',
        'input',
        '--measure',
        'forward',
        '--measure',
        'train',
        '--output_json',
        str(tmp_path / 'b.json'),
    ]
    code = run_program(argv, '', speed.define_flags(), speed.run_benchmark)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    stored = json.loads((tmp_path / 'b.json').read_text())['results']
    assert [(row['measure'], sorted(row['images_per_second'])) for row in stored] == [
        ('input', ['ours']),
        ('forward', ['keras', 'ours']),
        ('train', ['keras', 'ours']),
    ]
    assert all(rate > 0 for row in stored for rates in row['images_per_second'].values() for rate in rates)
    assert 'tensorflow 2.21' in out and 'cores' in out


@pytest.fixture
def pictures(tmp_path):
    """A folder of five JPEGs of different sizes, one of them grey, and of other things."""
    folder = tmp_path / 'pictures'
    (folder / 'more').mkdir(parents=True)
    for i, name in enumerate(('a.JPEG', 'b.jpg', 'c.jpeg', 'more/d.jpg', 'more/e.JPG')):
        image = Image.effect_noise((40 + 10 * i, 50), 60).convert('L' if i == 2 else 'RGB')
        image.save(folder / name, 'JPEG')
    (folder / 'more' / 'notes.txt').write_text('x')
    return folder


def run_jpeg(*arguments):
    argv = ['speed.py', '--measure=jpeg', '-bs', '4', '--runs', '2', '--steps', '2', *arguments]
    return run_program(argv, '', speed.define_flags(), speed.run_benchmark)


def test_each_step_is_a_batch_of_training_pictures(pictures):
    """Also where there are more than pictures."""
    batches = list(jpeg_input.training_batches('tf1', 3, 4, pictures))
    assert [images.shape for images, _ in batches] == [(3, 224, 224, 3)] * 4
    assert max(float(abs(images.numpy()).max()) for images, _ in batches) < 2.7  # normalised as torchvision's


def test_list_files(pictures):
    assert [path.name for path in jpeg_input.list_files(pictures)] == [
        'a.JPEG',
        'b.jpg',
        'c.jpeg',
        'd.jpg',
        'e.JPG',
    ]


@pytest.mark.parametrize(
    'arguments,message',
    [
        ([], 'has no JPEG files (.jpeg .jpg); pass --image_folder with one that has'),
        (['--image_folder=/nowhere'], "image_folder '/nowhere' has no JPEG files (.jpeg .jpg); pass --image_folder"),
        (['--image_folder={tmp_path}'], 'has no JPEG files (.jpeg .jpg); pass --image_folder'),
    ],
)
def test_pictures_that_are_not_there(arguments, message, tmp_path, capsys):
    assert run_jpeg(*(argument.format(tmp_path=tmp_path) for argument in arguments)) == 1
    out, err = capsys.readouterr()
    assert message in err and err.count('\n') == 1 and out == ''


@pytest.mark.parity
def test_input_from_jpegs_beside_pytorch(pictures, tmp_path, capsys):
    code = run_jpeg(f'--image_folder={pictures}', f'--output_json={tmp_path / "b.json"}')
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    rows = [line.split('fp32') for line in out.splitlines() if line.startswith('jpeg')]
    names = ['jpeg', 'jpeg all'][: len(os.sched_getaffinity(0))]
    assert [(name.strip(), rest.split()[0]) for name, rest in rows] == [
        (name, system) for name in names for system in ('ours', 'antialias', 'decode', 'torch', 'pillow')
    ]
    stored = json.loads((tmp_path / 'b.json').read_text())['results']
    assert [row['measure'] for row in stored] == names
    assert all(min(rates) > 0 and len(rates) == 2 for row in stored for rates in row['images_per_second'].values())


def test_a_process_that_ends_is_one_line():
    with Child('benchmarks.speed:serve', 'training:nothing', 'fp32', 8, 1) as child:
        with pytest.raises(UserError, match='training:nothing", "fp32", 8, 1. ended: AttributeError: .*nothing'):
            child.answer()


@pytest.mark.parity
def test_inference_against_every_peer(monkeypatch, capsys):
    """All five systems run and answer; their speeds are for quieter machines."""
    monkeypatch.setattr(speed, 'INFERENCE_BATCH', 1)
    argv = ['speed.py', '--measure=inference', '--runs', '1', '--steps', '1']
    code = run_program(argv, '', speed.define_flags(), speed.run_benchmark)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    rows = [line.split()[:3] for line in out.splitlines() if line.startswith('inference')]
    systems = ['ours', 'applications', 'predict', 'torch', 'onnx']
    assert rows == [['inference', 'fp32', name] for name in systems] + [
        ['inference', 'bf16', name] for name in systems[:-1]
    ]
