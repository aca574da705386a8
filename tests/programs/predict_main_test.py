"""predict_main as a user runs it: tables, JSON, explanations, odd pictures, one line for each mistake."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import official_resnet
from official_resnet import predict_main, resnet_model, resnet_spec
from official_resnet.inference import model_card, predict
from official_resnet.training import devices

PROGRAM = pathlib.Path(official_resnet.__file__).with_name('predict_main.py')
SPEC = resnet_spec.ResNetSpec((1, 1), filters=4)
NAMES = ('dark', 'red', 'green\tand\x1b blue')


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    """A model_dir of a net with three classes, as a training leaves it."""
    folder = tmp_path_factory.mktemp('model_dir')
    keras.utils.set_random_seed(0)
    model = resnet_model.resnet(SPEC, 3, (16, 16, 3))
    model.save(folder / 'model.keras')
    model_card.write_card(folder / 'model.card.json', SPEC, 'unit_range', (16, 16, 3), (16, 16, 3), NAMES)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of two pictures, one of them deeper, and what is none."""
    folder = tmp_path / 'pictures'
    (folder / 'deeper').mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ('b.png', 'deeper/b.jpg'):
        Image.fromarray(random.integers(0, 256, (30, 20, 3), np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('no picture')
    (folder / '._b.png').write_bytes(b'not one either')
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program in this process, which has TensorFlow already."""
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)

    def run_here(*args):
        code = predict_main.main(['predict_main.py', *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


def expected_guesses(model_dir, paths, top):
    model, card = predict.load(model_dir)
    return predict.predict(model, card, paths, top)


def test_json(call, model_dir, pictures):
    code, out, err = call('--model', model_dir, pictures, pictures / 'b.png', '--json', '--top', '2')  # flags follow
    assert (code, err) == (0, '')
    rows = [json.loads(line) for line in out.splitlines()]
    paths = [pictures / 'b.png', pictures / 'deeper' / 'b.jpg', pictures / 'b.png']
    assert [row['file'] for row in rows] == list(map(str, paths))
    for row, guesses in zip(rows, expected_guesses(model_dir, paths, 2), strict=True):
        assert set(row) == {'file', 'classes', 'explanation'} and row['explanation'] is None
        assert [(guess['index'], guess['name'], guess['id']) for guess in row['classes']] == [
            guess[:3] for guess in guesses
        ]
        np.testing.assert_allclose(
            [guess['probability'] for guess in row['classes']], [guess.probability for guess in guesses], rtol=1e-5
        )
        assert row['classes'][0]['probability'] >= row['classes'][1]['probability']


def test_the_table_is_aligned_and_obeys_no_name(call, model_dir, pictures):
    code, out, err = call('--model', model_dir / 'model.keras', pictures)
    assert (code, err) == (0, '')
    lines = out.splitlines()
    assert lines[0].split() == ['file', 'rank', 'name', 'probability'] and len(lines) == 1 + 2 * 3
    assert len(set(map(len, lines))) == 1
    assert [line.split()[0] for line in lines[1::3]] == [str(pictures / 'b.png'), str(pictures / 'deeper' / 'b.jpg')]
    assert [line[lines[0].index('rank') :].split()[0] for line in lines[1:]] == ['1', '2', '3'] * 2
    assert out.count('green?and? blue') == 2 and '\x1b' not in out
    first = expected_guesses(model_dir, [pictures / 'b.png'], 1)[0][0]
    assert lines[1].endswith(f'{first.probability:.4f}')


def test_many_pictures_are_computed_by_a_compiled_net(call, model_dir, pictures):
    few = call('--model', model_dir, pictures, '--json')[1].splitlines()
    code, out, err = call('--model', model_dir, *[pictures] * 16, '--json', '--batch_size', '5')
    assert code == 0 and err == ''
    many = out.splitlines()
    assert len(many) == predict_main.NUM_TO_COMPILE
    for got, expected in zip(map(json.loads, many), map(json.loads, few * 16), strict=True):
        assert got['file'] == expected['file']
        np.testing.assert_allclose(got['classes'][0]['probability'], expected['classes'][0]['probability'], rtol=1e-4)


def test_explanations(call, model_dir, pictures, tmp_path):
    output_dir = tmp_path / 'new' / 'folder'
    code, out, err = call('--model', model_dir, pictures, '--explain', '--output_dir', output_dir, '--json')
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row['explanation']['file'] for row in rows] == [
        str(output_dir / name) for name in ('b_grad_cam.png', 'b_grad_cam_2.png')
    ]  # two pictures are called b
    for row in rows:
        assert row['explanation']['index'] == row['classes'][0]['index']
        with Image.open(row['explanation']['file']) as image:
            assert image.size == (224, 224) and image.mode == 'RGB'  # 16 x 16, enlarged
    for text in ('1', 'red'):
        code, out, err = call(
            '--model', model_dir, pictures / 'b.png', '--explain', '--explain_class', text, '--output_dir', output_dir
        )
        assert code == 0 and out.splitlines()[-1].split() == ['->', str(output_dir / 'b_grad_cam.png'), '(red)'], err


def test_an_explanation_overwrites_no_picture(call, model_dir, pictures):
    (pictures / 'b.png').rename(pictures / 'b_grad_cam.png')
    Image.new('RGB', (9, 9)).save(pictures / 'b.bmp')
    before = (pictures / 'b_grad_cam.png').read_bytes()
    code, out, _ = call('--model', model_dir, pictures, '--explain', '--output_dir', pictures)
    assert code == 0 and str(pictures / 'b_grad_cam_2.png') in out
    assert (pictures / 'b_grad_cam.png').read_bytes() == before


def test_grey_padded_pictures_are_explained_without_the_padding(call, tmp_path):
    spec = resnet_spec.ResNetSpec((1, 1), filters=4, stem='mnist')
    resnet_model.resnet(spec, 10, (32, 32, 1)).save(tmp_path / 'm.keras')
    model_card.write_card(tmp_path / 'm.card.json', spec, 'unit_range', (28, 28, 1), (32, 32, 1), list('0123456789'))
    Image.new('L', (28, 28), 90).save(tmp_path / 'a.png')
    code, out, err = call('--model', tmp_path / 'm.keras', tmp_path / 'a.png', '--explain', '--output_dir', tmp_path)
    assert code == 0, err
    with Image.open(tmp_path / 'a_grad_cam.png') as image:
        assert image.size == (224, 224)  # 8 times 28


def test_what_cannot_be_read_is_named_and_left_out(call, model_dir, pictures, tmp_path):
    whole = (pictures / 'deeper' / 'b.jpg').read_bytes()
    bad = {'cut.jpg': whole[: len(whole) // 2], 'text.png': b'hello', 'empty.gif': b'', 'nul.bmp': bytes(100)}
    for name, content in bad.items():
        (pictures / name).write_bytes(content)
    (tmp_path / 'nothing').mkdir()
    code, out, err = call(
        '--model',
        model_dir,
        pictures,
        tmp_path / 'nothing',
        tmp_path / 'absent.png',
        pictures / 'notes.txt',
        '--json',
        '--batch_size',
        '2',
    )
    assert code == 0 and len(out.splitlines()) == 2
    lines = err.splitlines()
    assert len(lines) == len(bad) + 3 and all(line.startswith('predict_main: left out: ') for line in lines), err
    for name in (*bad, 'nothing', 'absent.png', 'notes.txt'):
        assert sum(name in line for line in lines) == 1, err
    code, out, err = call('--model', model_dir, *[pictures / name for name in bad])
    assert code == 1 and out == '' and len(err.splitlines()) == len(bad)
    code, out, err = call('--model', model_dir, tmp_path / 'nothing')
    assert code == 1 and 'has no image' in err and err.count('\n') == 1


def test_other_names(call, model_dir, pictures, tmp_path):
    (tmp_path / 'names.txt').write_text('eins\nzwei\ndrei\n')
    code, out, err = call('--model', model_dir, pictures / 'b.png', '--labels', tmp_path / 'names.txt', '--json')
    assert code == 0, err
    assert {guess['name'] for guess in json.loads(out)['classes']} == {'eins', 'zwei', 'drei'}


def test_mistakes_are_one_line(call, model_dir, pictures, tmp_path):
    picture = pictures / 'b.png'
    (tmp_path / 'two.txt').write_text('a\nb\n')
    (tmp_path / 'bytes.txt').write_bytes(b'\xff\xfe\xff')
    (tmp_path / 'same.txt').write_text('crane\ncrane\nx\n')
    (tmp_path / 'bare.keras').write_bytes((model_dir / 'model.keras').read_bytes())
    (tmp_path / 'broken.keras').write_bytes(b'PK')
    (tmp_path / 'broken.card.json').write_bytes((model_dir / 'model.card.json').read_bytes())
    model = ['--model', model_dir]
    wrong = [
        ([picture], 'model_dir'),
        ([*model], 'no images'),
        ([*model, 'http://a.b/c.jpg'], 'network'),
        (['--model', tmp_path, picture], 'has no model.keras'),
        (['--model', tmp_path / 'bare.keras', picture], "bare.card.json' does not exist"),
        (['--model', tmp_path / 'broken.keras', picture], 'cannot load'),
        (['--model', picture, picture], 'no .keras file'),
        ([*model, picture, '--labels', tmp_path / 'two.txt'], '2 lines, the net 3 classes'),
        ([*model, picture, '--labels', tmp_path / 'bytes.txt'], 'UTF-8'),
        ([*model, picture, '--labels', tmp_path / 'none.txt'], 'none.txt'),
        ([*model, picture, '--labels', tmp_path / 'same.txt', '--explain', '--explain_class', 'crane'], '0, 1'),
        ([*model, picture, '--explain', '--explain_class', '3'], 'pass its number, 0..2'),
        ([*model, picture, '--explain', '--explain_class', 'blue'], "'blue' is no class"),
        ([*model, picture, '--explain_class', '1'], '--explain_class belongs to --explain'),
        ([*model, picture, '--explain', '--output_dir', picture / 'x'], 'output_dir'),
        ([*model, picture, '--top', '0'], 'top'),
        ([*model, picture, '--batch_size', '0'], 'batch_size'),
        ([*model, picture, '--nonsense'], 'nonsense'),
    ]
    for args, message in wrong:
        code, out, err = call(*args)
        assert (code, out) == (1, '') and err.count('\n') == 1 and message in err, (args, out, err)


def test_the_program_itself(model_dir, pictures, tmp_path):
    command = [
        sys.executable,
        str(PROGRAM),
        '--model',
        str(model_dir),
        '--top=1',
        str(pictures / 'b.png'),
        str(pictures / 'notes.txt'),
    ]
    environment = os.environ | {'CUDA_VISIBLE_DEVICES': '-1'}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr.count('\n') == 1, result.stderr  # no start-up noise
    assert 'notes.txt' in result.stderr and len(result.stdout.splitlines()) == 2


def test_a_reader_that_has_enough(model_dir, pictures, monkeypatch, capfd):
    replaced = []

    def closed(*args):
        raise BrokenPipeError

    monkeypatch.setattr(predict_main, 'find_pictures', closed)
    monkeypatch.setattr(os, 'dup2', lambda *args: replaced.append(args))
    assert predict_main.main(['predict_main.py', '--model', str(model_dir), str(pictures)]) == 0
    assert replaced and capfd.readouterr().err == ''
