"""Images in, names out, as the card says; the export computes what the model computes."""

import dataclasses
import functools
import io
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.networks import TINY, normal, save_network
from PIL import Image

from official_resnet import resnet_model, resnet_variants
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, export, model_card, predict, rewrite
from official_resnet.inputs import encoded, image_folder, streamed
from official_resnet.inputs.affine import affine_name
from official_resnet.inputs.normalization import NORMALIZATIONS, per_image_standardization
from official_resnet.inputs.views import RESIZES, Views
from official_resnet.training import callbacks
from official_resnet.training.config import TrainConfig


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(image, kind='JPEG', orientation=1):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(file, kind, exif=exif)
    return file.getvalue()


NOISE = Image.fromarray(pixels(10, 14, 3)).resize((70, 50))
GREY, SMALL, CLEAR = NOISE.convert('L'), NOISE.resize((9, 40)), NOISE.convert('RGBA')
ENCODED = [encode(NOISE), encode(GREY), encode(NOISE, 'PNG'), encode(SMALL), encode(CLEAR, 'PNG', 6)]
CENTRED = ((0, 0), (2, 2), (2, 2), (0, 0))  # 28 x 28 in 32 x 32
RGB = affine_name('RGB', 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CASES = [  # the export's arguments between the model and the folder, the model's image shape, the views
    ('per_image_standardization', (6, 5, 3), (6, 5, 3), None),
    ('unit_range', (28, 28, 1), (32, 32, 1), None),  # centred in zeros
    (RGB, None, (16, 16, 3), Views(test_size=16, resize=RESIZES[0])),
    (RGB, None, (None, None, 3), Views(test_size=16, resize=RESIZES[1], uses_exif=True)),
]


@pytest.mark.parametrize('normalization,shape,net_shape,views', CASES)
def test_export_computes_what_the_model_computes(tmp_path, normalization, shape, net_shape, views):
    keras.utils.set_random_seed(1)
    model = resnet_model.resnet(TINY, 7, net_shape)
    for variable in model.variables:
        if variable.name in ('beta', 'moving_mean'):
            variable.assign(np.random.default_rng(0).normal(0, 0.5, variable.shape))
    inputs = tf.constant(ENCODED) if views else tf.constant(pixels(5, *shape), tf.float32)
    images = tf.stack([encoded.test_view(image, views) for image in ENCODED]) if views else inputs
    normalized = NORMALIZATIONS[normalization](images)
    expected = tf.nn.softmax(model(np.pad(normalized, CENTRED) if shape == (28, 28, 1) else normalized)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.001  # the images are told from each other
    folder, write = tmp_path / 'new' / 'folder', functools.partial(export.export, model, normalization, shape)
    path = write(folder, inputs.numpy(), views)
    assert path.name.isdigit() and (views or path != write(folder, inputs.numpy()))
    signatures = tf.saved_model.load(str(path)).signatures
    assert set(signatures) == {'serving_default', 'predict', *([] if views else ['predict_uint8'])}
    for name, call in signatures.items():
        for count in (0, 1, 5):
            given = tf.cast(inputs[:count], tf.uint8) if name == 'predict_uint8' else inputs[:count]
            got = call(**{'image_bytes' if views else 'input': given})
            assert got.keys() == {'classes', 'probabilities'} and got['probabilities'].shape == (count, 7)
            np.testing.assert_allclose(got['probabilities'], expected[:count], atol=1e-5)
            np.testing.assert_array_equal(got['classes'], expected[:count].argmax(-1))
    for garbage in (b'', b'no image', ENCODED[0][:200]) if views else ():
        with pytest.raises(tf.errors.InvalidArgumentError):
            signatures['predict'](image_bytes=tf.constant([ENCODED[0], garbage]))


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    class Broken:
        signatures = {'serving_default': lambda input: {'probabilities': tf.fill([len(input), 10], 0.5)}}

    monkeypatch.setattr(tf.saved_model, 'load', lambda path: Broken)
    with pytest.raises(UserError, match='differ from the model'):
        export.export(resnet_model.resnet(TINY, 10, (8, 8, 3)), 'none', (8, 8, 3), tmp_path, pixels(5, 8, 8, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'kind,text,message',
    [
        ('ResourceExhausted', 'a reason', 'No space left on device; free some space'),
        ('PermissionDenied', 'a reason', 'Permission denied; get the permission .*chmod'),
        ('Unknown', 'a reason\nmore', 'a reason; make it writable'),
        ('Unknown', '{{function_node __wrapped__SaveV2 /device:CPU:0}} a reason [Op:SaveV2]', "[^}]*': a reason; make"),
        ('Unknown', '{{function_node x}} /a/part; File too large [Op:SaveV2]', "[^}]*': File too large; .*ulimit -f"),
        ('Unknown', '/a/part; Input/output error', 'Input/output error; check its disk'),
    ],
)
def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, kind, text, message):
    def fail(module, path, **options):
        pathlib.Path(path).mkdir()
        raise getattr(tf.errors, f'{kind}Error')(None, None, text)

    monkeypatch.setattr(tf.saved_model, 'save', fail)
    with pytest.raises(UserError, match=f"'{tmp_path}/.*{message}.* or pass another --export_dir"):
        export.export(resnet_model.resnet(TINY, 10, (8, 8, 3)), 'none', (8, 8, 3), tmp_path, pixels(5, 8, 8, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'shape,views,message',
    [((8, 8, 3), None, 'another --export_dir'), ((8, 8, 1), 8, r'\(8, 8, 3\)'), ((9, 9, 3), 8, r'\(8, 8, 3\)')],
)
def test_what_cannot_be_exported(tmp_path, shape, views, message):
    """Into a file; images of other sizes or channels than those the network takes."""
    (tmp_path / 'file').write_text('x')
    model, views = resnet_model.resnet(TINY, 3, shape), views and Views(test_size=views)
    with pytest.raises(UserError, match=message) as error:
        export.export(model, 'none', shape, tmp_path / 'file', ENCODED if views else pixels(5, *shape), views)
    assert '\n' not in str(error.value) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('image_shape', [None, (32, 32, 3)])
def test_compiled_model_is_equal_and_keeps_its_weights(image_shape):
    model = resnet_model.resnet(resnet_variants.cifar_spec(8), 10, (None, None, 3))
    call, images = rewrite.compile_model(model, image_shape), normal(3, 32, 32, 3)
    expected = model(images).numpy()
    np.testing.assert_allclose(call(images), expected, atol=1e-5)
    model.get_layer('logits').bias.assign_add(np.ones(10))
    np.testing.assert_allclose(call(images[:2]), expected[:2], atol=1e-5)


CAFFE = {'channels': 'BGR', 'scale': 0.5, 'mean': [1.0, 2.0, 3.0], 'std': [1.0, 2.0, 4.0]}
CAFFE |= {'size': 4, 'resize': 6, 'interpolation': 'bilinear'}  # as checkpoints_tools writes it
OWN = {'normalization': 'none', 'size': [8, 8], 'channels': 'RGB'}


def card_of(tmp_path, fed, labels='unknown', num_classes=3, **changes):
    """Write a card and read it."""
    content = {'spec': dataclasses.asdict(TINY), 'num_classes': num_classes, 'labels': labels, 'input': fed} | changes
    path = tmp_path / 'x.card.json'
    path.write_text(json.dumps({name: value for name, value in content.items() if value != 'absent'}))
    return card_reader.read_card(path)


def own_card(tmp_path, shape=(8, 8, 3), input_shape=None, normalization='unit_range', **options):
    path = tmp_path / 'x.card.json'
    model_card.write_card(path, TINY, normalization, shape, input_shape or shape, ('a', 'b', 'c'), **options)
    return card_reader.read_card(path)


def test_converted_input_by_hand(tmp_path):
    """BGR, (value * scale - mean) / std."""
    card = card_of(tmp_path, CAFFE)
    image = np.zeros((4, 4, 3), np.uint8)
    image[1, 2] = (10, 20, 30)
    got = predict.network_input(card, image[None])
    assert got.shape == (1, 4, 4, 3) and got.dtype == tf.float32
    np.testing.assert_allclose(got[0, 1, 2], [15 - 1, (10 - 2) / 2, (5 - 3) / 4])
    np.testing.assert_allclose(got[0, 0, 0], [-1, -1, -0.75])


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('width,height', [(31, 47), (500, 375), (9, 11), (300, 20)])
def test_one_resizing_equals_resizing_and_cutting(tmp_path, width, height, interpolation):
    """As torchvision's Resize(16) and CenterCrop(14) do it, by Pillow."""
    card = card_of(tmp_path, CAFFE | {'size': 14, 'resize': 16, 'interpolation': interpolation})
    smooth = Image.fromarray(pixels(height // 4 + 2, width // 4 + 2, 3))
    image = smooth.resize((width, height), Image.Resampling.BICUBIC)
    size = tuple(16 if side == min(width, height) else int(16 * side / min(width, height)) for side in (width, height))
    resized = image.resize(size, Image.Resampling[interpolation.upper()])
    left, top = (round((side - 14) / 2) for side in size)
    expected = np.asarray(resized.crop((left, top, left + 14, top + 14)), np.int32)
    np.testing.assert_allclose(predict.prepare(image, card), expected, atol=1)


def test_without_resizing_the_image_is_squashed(tmp_path):
    image = Image.fromarray(pixels(10, 30, 3))
    got = predict.prepare(image, card_of(tmp_path, CAFFE | {'resize': None}))
    np.testing.assert_array_equal(got, image.resize((4, 4), Image.Resampling.BILINEAR))


def test_our_own_images_are_cut_as_in_training(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(pixels(20, 33, 3)).save(path)
    np.testing.assert_array_equal(predict.prepare(path, own_card(tmp_path)), image_folder.decode(path, 8))
    grey = predict.prepare(str(path), own_card(tmp_path, (8, 8, 1)))
    np.testing.assert_array_equal(grey, image_folder.decode(path, 8, channels=1))
    assert predict.prepare(path, own_card(tmp_path, (4, 8, 3))).shape == (4, 8, 3)  # 16.5 of 20 rows


def test_a_very_long_image_takes_no_memory(tmp_path):
    card = card_of(tmp_path, CAFFE | {'resize': 256, 'size': 224})  # 256 x 12,800,000 in between
    assert predict.prepare(np.full((50000, 1, 3), 9, np.uint8), card).max() == 9


def test_small_images_are_padded_as_in_training(tmp_path):
    card, image = own_card(tmp_path, (28, 28, 1), (32, 32, 1)), pixels(28, 28, 1)
    prepared = predict.prepare(image, card)
    np.testing.assert_array_equal(prepared, image)
    got = predict.network_input(card, prepared[None])
    np.testing.assert_allclose(got[0], np.pad(image, ((2, 2), (2, 2), (0, 0))) / np.float32(255))


def test_unreadable_images_are_named(tmp_path):
    card = own_card(tmp_path)
    Image.new('RGB', (8, 8)).save(tmp_path / 'program.png', 'EPS')  # Pillow would have Ghostscript run it
    for name in ('program.png', ''):
        with pytest.raises(UserError, match=f"'{tmp_path / name}': [^\n]+$"):
            predict.prepare(tmp_path / name, card)
    with pytest.raises(UserError, match='the image'):
        predict.prepare(np.zeros((2, 2, 2, 2)), card)


def test_predict(tmp_path):
    model = save_network(tmp_path, 'abc', (8, 8, 3), normalization='per_image_standardization')
    loaded, card = predict.load(tmp_path / 'model.keras')
    arrays = pixels(2, 8, 8, 3)
    Image.fromarray(arrays[0]).save(tmp_path / 'a.png')
    images = [tmp_path / 'a.png', arrays[1], Image.fromarray(arrays[1])]
    got = predict.predict(loaded, card, images)
    expected = tf.nn.softmax(model(per_image_standardization(arrays))).numpy()
    assert [len(guesses) for guesses in got] == [3, 3, 3] and got[1] == got[2]
    for guesses, row in zip(got, expected, strict=False):
        assert [guess.index for guess in guesses] == list(np.argsort(-row))
        assert all(guess.name == 'abc'[guess.index] and guess.id is None for guess in guesses)
        np.testing.assert_allclose([guess.probability for guess in guesses], np.sort(row)[::-1], rtol=1e-5)
    assert predict.predict(rewrite.compile_model(loaded), card, images, top=1)[0][0].index == got[0][0].index
    assert predict.predict(loaded, card, []) == []
    loaded.get_layer('logits').bias.assign([np.nan] * 3)
    with pytest.raises(UserError, match='finite'):
        predict.predict(loaded, card, images)


def test_labels(tmp_path):
    card = card_of(tmp_path, CAFFE, 'imagenet1000', 1000)
    assert (card.names[0], card.ids[0], card.ids[999]) == ('tench', 'n01440764', 'n15075141')
    card = card_of(tmp_path, CAFFE, 'imagenet1001', 1001)
    assert (card.names[:2], card.ids[:2]) == (('background', 'tench'), (None, 'n01440764'))
    assert card_of(tmp_path, CAFFE, 'cifar10', 10).names[8:] == ('ship', 'truck')
    card = card_of(tmp_path, CAFFE, 'unknown', 18)
    assert card.names[17] == 'class 17' and set(card.ids) == {None}
    card = own_card(tmp_path, num_classes=4)
    assert card.names == ('a', 'b', 'c', 'class 3')
    [guesses] = predict.guesses(card, np.array([[0.1, 0.4, 0.1, 0.4]]), 3)  # of equal ones, the first first
    assert guesses == [(1, 'b', None, 0.4), (3, 'class 3', None, 0.4), (0, 'a', None, 0.1)]


def test_names_of_a_file(tmp_path):
    card = own_card(tmp_path)
    (tmp_path / 'names.txt').write_bytes('\ufeffKäse\r\nBrot\r\n\r\n'.encode())
    assert card_reader.with_names(card, tmp_path / 'names.txt').names == ('Käse', 'Brot', '')


def test_what_is_written_is_read(tmp_path):
    written = own_card(tmp_path, (28, 28, 1), (32, 32, 1), num_classes=5, head='append')
    assert (written.size, written.net_size, written.num_channels, written.spec) == ((28, 28), (32, 32), 1, TINY)
    [path] = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert set(content) == {'spec', 'num_classes', 'labels', 'input', 'head'} and content['head'] == 'append'
    fed = {'normalization': 'unit_range', 'size': [32, 32], 'channels': 'grey', 'pad_from': [28, 28], 'exif': True}
    assert content['input'] == fed and written.uses_exif
    assert not own_card(tmp_path, view={'exif': False}).uses_exif
    assert card_of(tmp_path, OWN).uses_exif and not card_of(tmp_path, CAFFE | {'exif': False}).uses_exif
    affine = affine_name('BGR', 1.0, (1, 2, 3))  # of a network that was fine-tuned after a conversion
    assert own_card(tmp_path, normalization=affine).normalization == affine
    for wrong in ({'normalization': 'other'}, {'shape': (9, 9, 3), 'input_shape': (8, 8, 3)}, {'num_classes': 2}):
        with pytest.raises(UserError, match='x.card.json'):
            own_card(tmp_path, **wrong)


@pytest.mark.parametrize('resize', RESIZES[1:])
def test_a_network_sees_the_filter_of_its_training(tmp_path, resize):
    views = Views(16, 16, resize=resize, uses_exif=True)
    split = streamed.StreamedSplit(streamed.Files(['a.jpg'], [0]), 1, 'folder', ('a',), 'none', views)
    details = callbacks.card_of(TrainConfig(TINY, dataset='folder:x', views=views), split)
    model_card.write_card(path := tmp_path / 'x.card.json', **details)
    (image := tmp_path / 'a.jpg').write_bytes(encode(NOISE))
    card, expected = card_reader.read_card(path), encoded.test_view(image.read_bytes(), views)
    difference = predict.prepare(image, card) - expected.numpy()
    assert abs(difference).max() < 2  # Pillow rounds after each of two passes; the other filter differs by 10 and more
    assert card.interpolation == {'antialias': 'bilinear', 'bicubic': 'bicubic'}[resize]


def test_a_converted_network_may_name_its_normalization(tmp_path):
    """Standardisation image by image is no scale, mean and std."""
    fed = CAFFE | {'channels': 'RGB', 'normalization': 'per_image_standardization'}
    assert card_of(tmp_path, fed).normalization == 'per_image_standardization'
    assert card_of(tmp_path, fed | {'normalization': None}).normalization.startswith('affine:RGB:0.5:')


@pytest.mark.parametrize(
    'fed,field,values',
    [
        (CAFFE, 'channels', ['GBR']),
        (CAFFE, 'scale', [0, float('nan'), '1', True]),
        (CAFFE, 'mean', [[1, 2], [1, 2, 'x'], 3]),
        (CAFFE, 'std', [[1, 1, 0], [1, 1, float('inf')], [1, 1, 10**50]]),
        (CAFFE, 'size', [0, 4.0, 10**9, [4, 4]]),
        (CAFFE, 'resize', [3, '256']),
        (CAFFE, 'interpolation', ['nearest']),
        (CAFFE, 'normalization', ['x']),
        (OWN, 'normalization', ['x', 3, []]),
        (OWN, 'size', [8, [8], [8, -1], [8, True]]),
        (OWN, 'channels', ['BGR']),
        (OWN, 'exif', ['no', 0]),
        (OWN, 'interpolation', ['nearest', 3]),
        (OWN, 'pad_from', [[9, 8], 'x']),
        (None, 'num_classes', [-1, '3', 10**12]),
        (None, 'labels', [['a', 3], ['a'] * 4, 'imagenet', 'cifar10', None, {}]),
        (None, 'input', [None, [1]]),
        (None, 'spec', [{}, [], {'group_blocks': [0]}, {'group_blocks': [1], 'wings': 2}, {'group_blocks': 3}]),
    ],
)
def test_each_field_is_checked(tmp_path, fed, field, values):
    """`fed` is the input that has the field, None where the card itself has it."""
    optional = ('scale', 'normalization') if fed is CAFFE else ('pad_from', 'exif', 'interpolation')
    is_optional = field in optional
    for value in [*values, *([] if is_optional else ['absent'])]:
        changed = {name: old for name, old in ((fed or {}) | {field: value}).items() if old != 'absent'}
        with pytest.raises(
            UserError, match=rf'x.card.json .*\b{"input." if fed else ""}{field}\b.*; train or convert'
        ) as error:
            card_of(tmp_path, changed) if fed else card_of(tmp_path, CAFFE, **{field: value})
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'{', b'\xff', b'[' * 100000, b'[]', None])
def test_a_damaged_card(tmp_path, content):
    if content is not None:
        (tmp_path / 'x.card.json').write_bytes(content)
    with pytest.raises(UserError, match='x.card.json.*; train or convert'):
        card_reader.read_card(tmp_path / 'x.card.json')


def test_what_cannot_be_loaded(tmp_path):
    save_network(tmp_path, 'abc', (8, 8, 3))
    path, card = tmp_path / 'model.keras', tmp_path / 'model.card.json'
    with pytest.raises(UserError, match=f"'{card}'.*model_dir"):
        predict.load(card)
    for shape, names in (((9, 9, 3), 'abc'), ((8, 8, 3), 'abcd')):
        model_card.write_card(card, TINY, 'none', shape, shape, names)
        with pytest.raises(UserError, match='card'):
            predict.load(path)
    path.unlink()
    card.unlink()
    with pytest.raises(UserError, match='.keras file'):
        predict.load(tmp_path)
