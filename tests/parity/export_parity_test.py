"""The files of export_main in ONNX Runtime, LiteRT and OpenVINO compute what the network computes."""

import shutil

import numpy as np
import pytest
from fixtures import programs
from fixtures.networks import save_network
from fixtures.random_weights import randomize
from PIL import Image

from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.inference import predict, runtimes

pytestmark = pytest.mark.parity
NUM_IMAGES = 105
SUFFIXES = {'onnx': '.onnx', 'litert': '.tflite', 'openvino': '.xml'}
CASES = [  # format, precision, whether with preprocessing, the network, other flags
    ('onnx', 'float32', True, 'grey', ''),
    ('onnx', 'float16', False, 'rgb', ''),
    ('onnx', 'int8', True, 'rgb', ''),
    ('litert', 'float32', True, 'grey', '--batch_size=3'),
    ('litert', 'float16', False, 'rgb', ''),
    ('litert', 'int8', False, 'rgb', ''),
    ('litert', 'int8', True, 'rgb', ''),
    ('openvino', 'float32', True, 'rgb', '--batch_size=3'),
    ('openvino', 'float16', False, 'grey', ''),
    ('openvino', 'int8', False, 'rgb', ''),
]


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """Two model_dirs: ResNet-8 of CIFAR, and one of grey images that zeros surround."""
    found = {}
    for name, shape, image_shape, normalization in (
        ('rgb', (32, 32, 3), (32, 32, 3), 'per_image_standardization'),
        ('grey', (32, 32, 1), (28, 28, 1), 'unit_range'),
    ):
        found[name] = tmp_path_factory.mktemp(name)
        classes = tuple(f'class {i}' for i in range(10))
        net = save_network(found[name], classes, shape, resnet_variants.cifar_spec(8), normalization, image_shape)
        randomize(net).save(found[name] / 'model.keras')
    return found


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Images of one colour with noise."""
    folder, random = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        image = random.integers(0, 200, 3) + random.integers(0, 56, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f'{i}.png')
    return folder


@pytest.mark.parametrize('to,dtype,preprocessing,name,more', CASES)
def test_a_file_computes_the_same_in_its_runtime(
    to, dtype, preprocessing, name, more, networks, images, tmp_path, monkeypatch
):
    """And a file that is cut short does not pass, nor do images that are prepared in another way."""
    monkeypatch.setattr(runtimes, 'TURN_SECONDS', 0)
    path, which = tmp_path / f'net{SUFFIXES[to]}', 'calibration_images' if dtype == 'int8' else 'images'
    flags = f'--to {to} --dtype {dtype} --{which} {images} {more} {"--preprocessing" if preprocessing else ""}'
    programs.succeed(f'export_main --model {networks[name]} --output {path} {flags}')
    model, card = predict.load(networks[name])
    pixels = np.stack([predict.prepare(image, card) for image in sorted(images.iterdir())[:6]])
    expected = predict.probabilities(model, card, pixels)

    def compare(file, pixels=pixels, preprocessing=preprocessing):
        run = runtimes.load(to, file, preprocessing)
        return runtimes.compare(runtimes.probabilities(run, card, pixels, preprocessing, 3), expected)

    assert compare(path).difference <= min(runtimes.TOLERANCES[dtype].difference, 0.1)
    with pytest.raises(UserError, match='not written'):
        compare(path, np.flip(pixels, (1, 2)) // 2).require('float32', 'net')
    shutil.copytree(tmp_path, tmp_path / 'cut')
    largest = max((tmp_path / 'cut').glob('net.*'), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(UserError):
        compare(tmp_path / 'cut' / path.name).require('float32', 'net')
    assert (path.stat().st_size < 150_000) == (dtype == 'int8') or to == 'openvino' or dtype == 'float16'
