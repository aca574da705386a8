"""export_main as a user runs it: what is written computes the same, and what does not is not written."""

import dataclasses
import json
import re
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import programs
from fixtures.networks import TINY, save_network
from fixtures.random_weights import randomize
from PIL import Image

from official_resnet import resnet_model, resnet_spec
from official_resnet.inference import export, exporters, formats, hub_card, predict, rewrite, runtimes
from official_resnet.inputs import affine
from official_resnet.inputs.normalization import NORMALIZATIONS

NAMES = ('cat', 'dog', 'horse')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runtimes, 'TURN_SECONDS', 0)


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    """A model_dir as a run leaves it."""
    folder = tmp_path_factory.mktemp('model_dir')
    randomize(save_network(folder, NAMES, (16, 16, 3), normalization='per_image_standardization')).save(
        folder / 'model.keras'
    )
    line = {'split': 'test', 'epoch': 2, 'step': 9, 'loss': 1.0, 'accuracy': 0.75, 'learning_rate': 0.1}
    (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    (folder / 'config.json').write_text('{"config": {"dataset": "cifar10"}}')
    return folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (30, 20, 3), np.uint8)).save(folder / f'{i}.{"png" if i else "bmp"}')
    return folder


@pytest.fixture
def line(model_dir, images, tmp_path):
    return f'export_main --model {model_dir} --images {images} --output {tmp_path}/new/net'


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def expected(model_dir, paths):
    model, card = predict.load(model_dir)
    return predict.probabilities(model, card, np.stack([predict.prepare(path, card) for path in paths]))


def test_a_saved_model_takes_pixels_and_files(line, model_dir, images, tmp_path):
    out = programs.succeed(f'{line} --to savedmodel --preprocessing --license=mit')
    assert all(len(row) <= 80 for row in out.splitlines()[3:6]) and '5 images' in out
    starts = [row.split()[0] for row in out.splitlines()[:3]]  # of the steps that take long
    assert starts == ['loading', 'writing', 'comparing']
    assert listed(tmp_path / 'new') == ['README.md', 'net']
    signatures = tf.saved_model.load(str(tmp_path / 'new' / 'net')).signatures
    paths = sorted(images.iterdir())
    pixels = np.stack([predict.prepare(path, predict.load(model_dir)[1]) for path in paths])
    got = signatures['predict_uint8'](input=tf.constant(pixels))['probabilities']
    np.testing.assert_allclose(got, expected(model_dir, paths), atol=1e-5)
    contents = tf.constant([path.read_bytes() for path in paths[1:]])
    got = signatures['predict_bytes'](image_bytes=contents)['probabilities']
    np.testing.assert_allclose(got, expected(model_dir, paths[1:]), atol=0.02)  # Pillow rounds resized pixels
    text = (tmp_path / 'new' / 'README.md').read_text()
    header = dict(row.split(': ', 1) for row in text.split('---\n')[1].splitlines())
    assert json.loads(header['license']) == 'mit' and json.loads(header['datasets']) == ['uoft-cs/cifar10']
    [result] = json.loads(header['model-index'])[0]['results']
    assert result['metrics'][0]['value'] == 0.75
    for word in (
        '0 cat, 1 dog, 2 horse',
        'uint8 [n, 16, 16, 3]',
        'per_image_standardization',
        '--license=mit',
        'keras',
    ):
        assert word in text


@pytest.mark.parametrize(
    'stated,license,shown',
    [
        ('BSD-3-Clause; the weights may have terms', None, 'bsd-3-clause'),
        ('BSD-3-Clause', 'mit', 'mit'),
        ('none stated; code Apache-2.0 (keras)', None, None),
    ],
)
def test_the_card_of_published_weights(stated, license, shown, model_dir):
    """Its header has their licence, and its text says how pixels become the input."""
    card = dataclasses.replace(predict.load(model_dir)[1], normalization=affine.PUBLISHED['torch'])
    choice = {'to': 'keras', 'dtype': 'float32', 'preprocessing': False, 'batch_size': None, 'license': license}
    text = hub_card.text('net.keras', card, choice, {'published': {'licence': stated}}, {}, 'resnet-export')
    header = dict(row.split(': ', 1) for row in text.split('---\n')[1].splitlines())
    assert json.loads(header.get('license', 'null')) == shown and f'| licence | {stated} |' in text
    assert 'divided by 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)' in text


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'normalization': affine.PUBLISHED['torch'], 'resize': 24, 'interpolation': 'bicubic'},
        {'normalization': affine.affine_name('BGR', mean=(3.0, 2.0, 1.0)), 'uses_exif': False},
        {'normalization': 'none', 'size': (12, 10), 'resize': 13},
        {'normalization': 'unit_range', 'num_channels': 1, 'size': (12, 12)},
        {'preprocessing': True},
        {'preprocessing': True, 'bits': 16},
        {'normalization': 'unit_range', 'num_channels': 1, 'size': (12, 12), 'bits': 16},
    ],
)
def test_the_example_in_the_card_prepares_an_image_as_the_network_does(
    changes, model_dir, tmp_path, monkeypatch, capsys
):
    """It is run as it stands, and prints a class; ONNX Runtime is replaced by what takes the input."""
    choice = {'to': 'onnx', 'dtype': 'float32', 'preprocessing': False, 'batch_size': None, 'license': None}
    choice |= {name: changes[name] for name in choice.keys() & changes.keys()}
    others = {name: value for name, value in changes.items() if name not in (*choice, 'bits')}
    card = dataclasses.replace(predict.load(model_dir)[1], **others)
    pixels = np.random.default_rng(1).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    image, format_ = Image.fromarray(pixels), 'JPEG'
    if changes.get('bits') == 16:
        image, format_ = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 9), 'PNG'
    image.save(tmp_path / 'cat.jpg', format_, exif=exif)
    taken = []
    session = types.SimpleNamespace(
        get_inputs=lambda: [types.SimpleNamespace(name='input')],
        run=lambda names, given: taken.append(given['input']) or [np.array([[0.0, 2.0, 1.0]])],
    )
    runtime = types.SimpleNamespace(InferenceSession=lambda path: taken.append(path) or session)
    monkeypatch.setitem(sys.modules, 'onnxruntime', runtime)
    monkeypatch.setitem(formats.FORMATS, 'onnx', dataclasses.replace(formats.FORMATS['onnx'], packages={}))
    monkeypatch.chdir(tmp_path)
    text = hub_card.text("it's.onnx", card, choice, {}, {}, 'resnet-export')
    exec(text.partition('```python\n')[2].partition('```')[0], {})
    path, given = taken
    image = predict.prepare(tmp_path / 'cat.jpg', card)[None]
    expected = image if choice['preprocessing'] else predict.network_input(card, image).numpy()
    assert path == "it's.onnx" and given.dtype == expected.dtype
    one_level = 1 if changes.get('normalization') == 'none' else 1e-5  # Pillow rounds twice where it also crops
    np.testing.assert_allclose(given, expected, atol=one_level)
    assert ('is turned as its EXIF says' in text) == card.uses_exif
    name, probability = capsys.readouterr().out.split()
    assert name == 'dog' and float(probability) == pytest.approx(2 if choice['preprocessing'] else 0.665, abs=1e-3)


def test_names_of_classes_stay_and_are_no_markdown(model_dir):
    card = dataclasses.replace(predict.load(model_dir)[1], names=('teddy & co', '*x*', '\u9e45, a_b\n'))
    assert hub_card._labels(card) == '0 teddy \\& co, 1 \\*x\\*, 2 \u9e45, a\\_b'


@pytest.mark.parametrize(
    'name,words',
    [
        (affine.OFFICIAL, 'minus (123.68, 116.78, 103.94)'),
        (affine.PUBLISHED['inception'], 'divided by 127.5, minus 1'),
        (affine.affine_name('BGR', 2.0), 'in the order BGR, multiplied by 2'),
        (affine.affine_name(), 'unchanged'),
        ('none', 'unchanged'),
        ('unit_range', 'divided by 255'),
    ],
)
def test_normalizations_in_words(name, words):
    assert affine.in_words(name) == words
    assert all(affine.in_words(known) for known in NORMALIZATIONS)


def test_images_that_cannot_be_read_are_left_out(line, model_dir, images, tmp_path):
    folder = tmp_path / 'mixed'
    folder.mkdir()
    for number, path in enumerate(images.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes() if number else path.read_bytes()[:3])
    (folder / 'text.jpg').write_text('x')
    command = line.replace(str(images), str(folder))
    out = programs.succeed(f'{command} --to savedmodel')
    assert f'{folder}/text.jpg' in out and out.count('left out') == 2 and '4 images' in out
    for path in folder.iterdir():
        path.write_text('x')
    assert 'has 0 images; pass a folder' in programs.mistake(f'{command.replace("/new/", "/other/")} --to savedmodel')


def test_a_fixed_batch_and_16_bits(line, model_dir, images, tmp_path):
    programs.succeed(f'{line} --to savedmodel --batch_size=2 --dtype=bfloat16')
    function = tf.saved_model.load(str(tmp_path / 'new' / 'net')).signatures['serving_default']
    assert function.structured_input_signature[1]['input'].shape == (2, 16, 16, 3)
    assert function.structured_outputs['logits'].shape == (2, 3)


def test_a_keras_file_of_folded_stock_layers_is_a_network_of_ours(line, model_dir, images, tmp_path):
    programs.succeed(f'{line}.keras --to keras')
    path = tmp_path / 'new' / 'net.keras'
    assert listed(path.parent) == ['README.md', 'net.card.json', 'net.keras']
    assert not any('batch' in type(layer).__name__.lower() for layer in keras.models.load_model(path).layers)
    paths = sorted(images.iterdir())
    np.testing.assert_allclose(expected(path, paths), expected(model_dir, paths), atol=1e-5)


def test_pytorchs_names(tmp_path):
    spec = resnet_spec.ResNetSpec((1, 1, 1), shortcut='A', shortcut_padding='both')
    save_network(tmp_path, NAMES, (32, 32, 3), spec, 'per_image_standardization')
    out = programs.succeed(f'export_main --model {tmp_path} --to torch --output {tmp_path}/new/net.safetensors')
    assert 'resnet8' in out and listed(tmp_path / 'new') == ['README.md', 'net.safetensors']


def test_a_network_of_16_bits_computes_in_float32():
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        model = resnet_model.resnet(TINY, 3, (8, 8, 3))
    finally:
        keras.config.set_dtype_policy('float32')
    found = rewrite.in_float32(model)
    assert {layer.compute_dtype for layer in model.layers} == {'bfloat16', 'float32'}
    assert {layer.compute_dtype for layer in found.layers} == {'float32'} and rewrite.in_float32(found) is found
    for ours, theirs in zip(found.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def wrong_normalization(monkeypatch):
    real = export.serving
    monkeypatch.setattr(export, 'serving', lambda model, name, *rest: real(model, 'unit_range', *rest))


def other_weights(monkeypatch):
    real = exporters.rewritten

    def change(*args):
        network = real(*args)
        network.layers[-1].set_weights([2 * value for value in network.layers[-1].get_weights()])
        return network

    monkeypatch.setattr(exporters, 'rewritten', change)


def cut_short(monkeypatch):
    real = export.save

    def cut(module, signatures, path):
        real(module, signatures, path)
        file = max(path.rglob('variables.data*'))
        file.write_bytes(file.read_bytes()[:-200])

    monkeypatch.setattr(export, 'save', cut)


@pytest.mark.parametrize('spoil', [wrong_normalization, other_weights, cut_short])
def test_what_does_not_compute_the_same_is_not_written(spoil, line, tmp_path, monkeypatch):
    spoil(monkeypatch)
    more = '--preprocessing' if spoil is wrong_normalization else ''
    message = programs.mistake(f'{line} --to savedmodel {more}')
    assert 'it was not written' in message or 'is damaged' in message
    assert listed(tmp_path) == []


@pytest.mark.parametrize('content', ['# My network\n', None])
def test_a_readme_that_is_not_ours_stays(content, line, tmp_path):
    """Nor is one replaced that describes another file which is still there."""
    (tmp_path / 'new').mkdir()
    if content is None:
        (tmp_path / 'new' / 'other.onnx').write_text('')
        content = hub_card._MARK.format('other.onnx') + '\n'
    (tmp_path / 'new' / 'README.md').write_text(content)
    assert re.search("README.md'.*another folder", programs.mistake(f'{line}.keras --to keras'))
    assert (tmp_path / 'new' / 'README.md').read_text() == content


def test_a_missing_package_is_one_line(line, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, 'find_spec', lambda name: None)
    for to, suffix in (('onnx', '.onnx'), ('litert', '.tflite'), ('openvino', '.xml'), ('torch', '.safetensors')):
        assert formats.INSTALL in programs.mistake(f'{line}{suffix} --to {to}')


def test_a_full_disk_is_one_line(line, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise tf.errors.ResourceExhaustedError(None, None, 'x; No space left on device')

    monkeypatch.setattr(tf.saved_model, 'save', fail)
    assert 'free some space' in programs.mistake(f'{line} --to savedmodel')
    assert listed(tmp_path) == []


def test_a_card_that_resizes_in_another_way_has_no_signature_of_files(model_dir):
    card = predict.load(model_dir)[1]
    assert exporters.views_of(card).test_size == 16
    for changes in ({'resize': 'squash'}, {'size': (16, 12)}, {'num_channels': 1}):
        assert exporters.views_of(card.__class__(**{**vars(card), **changes})) is None


@pytest.mark.parametrize(
    'dtype,difference,agreement,is_right',
    [
        ('float32', 9e-5, 0.9, True),
        ('float32', 2e-4, 1.0, False),
        ('float32', float('nan'), 1.0, False),
        ('float16', 0.01, 0.96, True),
        ('float16', 0.01, 0.9, False),
        ('int8', 0.4, 0.9, True),
        ('int8', 0.1, 0.89, False),
    ],
)
def test_tolerances(dtype, difference, agreement, is_right):
    comparison = runtimes.Comparison(100, difference, agreement)
    if is_right:
        comparison.require(dtype, 'net')
    else:
        with pytest.raises(ValueError, match='not written'):
            comparison.require(dtype, 'net')
