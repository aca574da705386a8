"""Pictures in, names out, as the card says; the export computes what the model computes."""

import copy
import dataclasses
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official_resnet import resnet_model, resnet_spec, resnet_variants
from official_resnet.errors import UserError
from official_resnet.inference import card_reader, export, model_card, predict, rewrite
from official_resnet.inputs import encoded, image_folder
from official_resnet.inputs.affine import affine_name
from official_resnet.inputs.normalization import per_image_standardization
from official_resnet.inputs.views import RESIZES, Views

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def test_export(tmp_path):
    model = resnet_variants.cifar_resnet(8, num_classes=7)
    path = export.export(model, 'per_image_standardization', (32, 32, 3), tmp_path / 'new' / 'folder', IMAGES)
    other = export.export(model, 'per_image_standardization', (32, 32, 3), tmp_path / 'new' / 'folder', IMAGES)
    assert path != other and path.name.isdigit()
    loaded = tf.saved_model.load(str(path))
    assert set(loaded.signatures) == {'serving_default', 'predict'}
    expected = tf.nn.softmax(model(tf.image.per_image_standardization(tf.cast(IMAGES, tf.float32))))
    for count in (0, 1, 5):
        got = loaded.signatures['predict'](input=tf.constant(IMAGES[:count], tf.float32))
        assert got['classes'].dtype == tf.int64 and got['probabilities'].shape == (count, 7)
        np.testing.assert_allclose(got['probabilities'], expected[:count], atol=1e-5)


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    model = resnet_variants.cifar_resnet(8)

    class Broken:
        signatures = {'serving_default': lambda input: {'probabilities': tf.fill([len(input), 10], 0.5)}}

    monkeypatch.setattr(tf.saved_model, 'load', lambda path: Broken)
    with pytest.raises(UserError, match='differs from the model by .* do not use it'):
        export.export(model, 'none', (32, 32, 3), tmp_path, IMAGES)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='pass another --export_dir'):
        export.export(resnet_variants.cifar_resnet(8), 'none', (32, 32, 3), tmp_path / 'file', IMAGES)


@pytest.mark.parametrize('shape', [(28, 28, 1), (6, 5, 1)])
def test_small_pictures_are_centred_in_what_the_net_takes(tmp_path, shape):
    net_shape = (32, 32, 1) if shape[0] == 28 else shape
    model = resnet_model.resnet(resnet_spec.ResNetSpec((1, 1), filters=4), 10, net_shape)
    images = IMAGES[:, : shape[0], : shape[1], :1]
    path = export.export(model, 'unit_range', shape, tmp_path, images)
    got = tf.saved_model.load(str(path)).signatures['serving_default'](input=tf.constant(images, tf.float32))
    rows, columns = ((net_shape[axis] - shape[axis]) // 2 for axis in (0, 1))
    centred = np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0))) / np.float32(255)
    np.testing.assert_allclose(got['probabilities'], tf.nn.softmax(model(centred)), atol=1e-5)


def encode(image, kind='JPEG'):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)).resize((70, 50))
PICTURES = [
    encode(NOISE),
    encode(NOISE.convert('L')),
    encode(NOISE, 'PNG'),
    encode(NOISE.resize((9, 40))),
    encode(NOISE.convert('RGBA'), 'PNG'),
]
TORCH_INPUT = affine_name('RGB', 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize('resize', RESIZES)
@pytest.mark.parametrize('input_size', [16, None])
def test_export_of_bytes(tmp_path, input_size, resize):
    """As the net in this process sees the test views: grey ones, PNG, 0, 1 and several at once."""
    spec = resnet_spec.ResNetSpec((1, 1), filters=4)
    model = resnet_model.resnet(spec, 7, (input_size, input_size, 3))
    for variable in model.variables:
        if variable.name in ('beta', 'moving_mean'):
            variable.assign(np.random.default_rng(0).normal(0, 0.5, variable.shape))
    views = Views(test_size=16, resize=resize)
    path = export.export(model, TORCH_INPUT, None, tmp_path / 'new', PICTURES, views)
    loaded = tf.saved_model.load(str(path))
    assert set(loaded.signatures) == {'serving_default', 'predict'} and path.name.isdigit()
    images = tf.stack([encoded.test_view(picture, views) for picture in PICTURES])
    expected = tf.nn.softmax(model((images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01  # the pictures are told from each other
    for name in loaded.signatures:
        for count in (0, 1, len(PICTURES)):
            got = loaded.signatures[name](image_bytes=tf.constant(PICTURES[:count], tf.string, [count]))
            assert got.keys() == {'classes', 'probabilities'}
            assert got['classes'].dtype == tf.int64 and got['probabilities'].shape == (count, 7)
            np.testing.assert_allclose(got['probabilities'], expected[:count], atol=1e-5)
            np.testing.assert_array_equal(got['classes'], expected[:count].argmax(-1))
    for garbage in (b'', b'no picture', PICTURES[0][:200]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            loaded.signatures['predict'](image_bytes=tf.constant([PICTURES[0], garbage]))


@pytest.mark.parametrize('shape', [(8, 8, 1), (9, 9, 3)])
def test_bytes_for_a_net_of_other_pictures(tmp_path, shape):
    model = resnet_model.resnet(SPEC, 3, shape)
    with pytest.raises(UserError, match=r'^the net takes images \(.*\), not \(8, 8, 3\), [^\n]*; export it without'):
        export.export(model, 'none', None, tmp_path, PICTURES, Views(test_size=8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('image_shape', [None, (32, 32, 3)])
def test_compiled_model_is_equal_and_keeps_its_weights(image_shape):
    model = resnet_model.resnet(resnet_variants.cifar_spec(8), 10, (None, None, 3))
    call = rewrite.compile_model(model, image_shape)
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype('float32')
    expected = model(images).numpy()
    np.testing.assert_allclose(call(images), expected, atol=1e-5)
    model.get_layer('logits').bias.assign_add(np.ones(10))
    np.testing.assert_allclose(call(images[:2]), expected[:2], atol=1e-5)


SPEC = resnet_spec.ResNetSpec((1, 1), filters=4)
CAFFE = {
    'channels': 'BGR',
    'scale': 0.5,
    'mean': [1.0, 2.0, 3.0],
    'std': [1.0, 2.0, 4.0],
    'size': 4,
    'resize': 6,
    'interpolation': 'bilinear',
}  # as checkpoints_tools writes it


def card_of(tmp_path, fed, labels='unknown', num_classes=3, **changes):
    """Write a card and read it."""
    content = {'spec': dataclasses.asdict(SPEC), 'num_classes': num_classes, 'labels': labels, 'input': fed} | changes
    path = tmp_path / 'x.card.json'
    path.write_text(json.dumps({name: value for name, value in content.items() if value != 'absent'}))
    return card_reader.read_card(path)


def own_card(shape=(8, 8, 3), input_shape=None, normalization='unit_range', **options):
    path, names = options.pop('path'), options.pop('names', ('a', 'b', 'c'))
    model_card.write_card(path, SPEC, normalization, shape, input_shape or shape, names, **options)
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


def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path):
    """12 x 18 pixels halve to 6 x 9, of which 4 x 4 begin in row 1 and column 2: (9 - 4) / 2 = 2.5 rounds to 2."""
    card = card_of(tmp_path, CAFFE)
    small = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    np.testing.assert_array_equal(predict.prepare(small, card), small[1:5, 2:6])
    flat = np.full((12, 18, 3), 7, np.uint8)
    flat[2:10, 4:12] = 200  # what the cut sees, but for the filter's reach
    got = predict.prepare(flat, card)
    assert got.shape == (4, 4, 3) and (got[1:3, 1:3] == 200).all() and got[0, 0, 0] < 200


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('width,height', [(31, 47), (500, 375), (9, 11), (300, 20)])
def test_one_resizing_equals_resizing_and_cutting(tmp_path, width, height, interpolation):
    """As torchvision's Resize(16) and CenterCrop(14) do it, by Pillow."""
    card = card_of(tmp_path, CAFFE | {'size': 14, 'resize': 16, 'interpolation': interpolation})
    random = np.random.default_rng(1)
    smooth = random.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    image = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    shorter = min(width, height)
    size = tuple(16 if side == shorter else int(16 * side / shorter) for side in (width, height))
    resized = image.resize(size, Image.Resampling[interpolation.upper()])
    left, top = (round((side - 14) / 2) for side in size)
    expected = np.asarray(resized.crop((left, top, left + 14, top + 14)), np.int32)
    np.testing.assert_allclose(predict.prepare(image, card), expected, atol=1)


def test_without_resizing_the_picture_is_squashed(tmp_path):
    card = card_of(tmp_path, CAFFE | {'resize': None})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 30, 3), np.uint8))
    np.testing.assert_array_equal(predict.prepare(image, card), image.resize((4, 4), Image.Resampling.BILINEAR))


def test_our_own_pictures_are_cut_as_in_training(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 33, 3), np.uint8)).save(path)
    card = own_card(path=tmp_path / 'x.card.json')
    np.testing.assert_array_equal(predict.prepare(path, card), image_folder.decode(path, 8))
    grey = own_card((8, 8, 1), path=tmp_path / 'x.card.json')
    np.testing.assert_array_equal(predict.prepare(str(path), grey), image_folder.decode(path, 8, channels=1))
    wide = own_card((4, 8, 3), path=tmp_path / 'x.card.json')  # 16.5 of 20 rows
    assert predict.prepare(path, wide).shape == (4, 8, 3)


def test_a_very_long_picture_takes_no_memory(tmp_path):
    card = card_of(tmp_path, CAFFE | {'resize': 256, 'size': 224})  # 256 x 12,800,000 in between
    assert predict.prepare(np.full((50000, 1, 3), 9, np.uint8), card).max() == 9


def test_small_pictures_are_padded_as_in_training(tmp_path):
    card = own_card((28, 28, 1), (32, 32, 1), path=tmp_path / 'x.card.json')
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    prepared = predict.prepare(image, card)
    np.testing.assert_array_equal(prepared, image)
    got = predict.network_input(card, prepared[None])
    np.testing.assert_allclose(got[0], np.pad(image, ((2, 2), (2, 2), (0, 0))) / np.float32(255))


def test_unreadable_pictures_are_named(tmp_path):
    card = own_card(path=tmp_path / 'x.card.json')
    whole = tmp_path / 'whole.jpg'
    Image.effect_noise((64, 64), 90).save(whole)
    for name, content in (('cut.jpg', whole.read_bytes()[:900]), ('text.png', b'hello'), ('empty.gif', b'')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"^cannot read '.*{name}': [^\n]+$"):
            predict.prepare(tmp_path / name, card)
    Image.new('RGB', (8, 8)).save(tmp_path / 'program.png', 'EPS')  # Pillow would have Ghostscript run it
    with pytest.raises(UserError, match='cannot identify'):
        predict.prepare(tmp_path / 'program.png', card)
    for path in (tmp_path / 'none.png', tmp_path):
        with pytest.raises(UserError, match='(No such file|Is a directory)'):
            predict.prepare(path, card)
    with pytest.raises(UserError, match='cannot read the image'):
        predict.prepare(np.zeros((2, 2, 2, 2)), card)


def saved(tmp_path, spec=SPEC, shape=(8, 8, 3), names=('a', 'b', 'c')):
    """Save a net with a card; return (path, model)."""
    keras.utils.set_random_seed(5)
    model = resnet_model.resnet(spec, 3, shape)
    model.save(tmp_path / 'model.keras')
    model_card.write_card(tmp_path / 'model.card.json', spec, 'per_image_standardization', shape, shape, names)
    return tmp_path / 'model.keras', model


def test_predict(tmp_path):
    path, model = saved(tmp_path)
    loaded, card = predict.load(path)
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 3), np.uint8)
    Image.fromarray(images[0]).save(tmp_path / 'a.png')
    pictures = [tmp_path / 'a.png', images[1], Image.fromarray(images[1])]
    got = predict.predict(loaded, card, pictures)
    expected = tf.nn.softmax(model(per_image_standardization(images))).numpy()
    assert [len(guesses) for guesses in got] == [3, 3, 3] and got[1] == got[2]
    for guesses, row in zip(got, expected, strict=False):
        assert [guess.index for guess in guesses] == list(np.argsort(-row))
        assert all(guess.name == 'abc'[guess.index] and guess.id is None for guess in guesses)
        np.testing.assert_allclose([guess.probability for guess in guesses], np.sort(row)[::-1], rtol=1e-5)
    assert predict.predict(rewrite.compile_model(loaded), card, pictures, top=1)[0][0].index == got[0][0].index
    assert predict.predict(loaded, card, []) == []
    loaded.get_layer('logits').bias.assign([np.nan] * 3)
    with pytest.raises(UserError, match='no finite numbers'):
        predict.predict(loaded, card, pictures)


def test_labels(tmp_path):
    card = card_of(tmp_path, CAFFE, 'imagenet1000', 1000)
    assert (card.names[0], card.ids[0], card.ids[999]) == ('tench', 'n01440764', 'n15075141')
    card = card_of(tmp_path, CAFFE, 'imagenet1001', 1001)
    assert (card.names[:2], card.ids[:2]) == (('background', 'tench'), (None, 'n01440764'))
    assert card_of(tmp_path, CAFFE, 'cifar10', 10).names[8:] == ('ship', 'truck')
    card = card_of(tmp_path, CAFFE, 'unknown', 18)
    assert card.names[17] == 'class 17' and set(card.ids) == {None}
    card = own_card(path=tmp_path / 'x.card.json', num_classes=4)
    assert card.names == ('a', 'b', 'c', 'class 3')
    guesses = predict.guesses(card, np.array([[0.1, 0.4, 0.1, 0.4]]), 3)  # of equal ones, the first first
    assert [tuple(guess) for guess in guesses[0]] == [
        (1, 'b', None, 0.4),
        (3, 'class 3', None, 0.4),
        (0, 'a', None, 0.1),
    ]


def test_names_of_a_file(tmp_path):
    card = own_card(path=tmp_path / 'x.card.json')
    (tmp_path / 'names.txt').write_bytes('\ufeffKäse\r\nBrot\r\n\r\n'.encode())
    assert card_reader.with_names(card, tmp_path / 'names.txt').names == ('Käse', 'Brot', '')
    (tmp_path / 'names.txt').write_text('a\nb\n')
    with pytest.raises(UserError, match='has 2 lines, the net 3 classes'):
        card_reader.with_names(card, tmp_path / 'names.txt')


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / 'm.card.json'
    written = own_card((28, 28, 1), (32, 32, 1), path=path, num_classes=5, head='append')
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert (written.size, written.net_size, written.num_channels, written.spec) == ((28, 28), (32, 32), 1, SPEC)
    content = json.loads(path.read_text())
    assert set(content) == {'spec', 'num_classes', 'labels', 'input', 'head'} and content['head'] == 'append'
    assert content['input'] == {
        'normalization': 'unit_range',
        'size': [32, 32],
        'channels': 'grey',
        'pad_from': [28, 28],
    }
    affine = affine_name('BGR', 1.0, (1, 2, 3))  # of a net that was fine-tuned after a conversion
    assert own_card(normalization=affine, path=path).normalization == affine
    before = path.read_bytes()
    for wrong in ({'normalization': 'other'}, {'shape': (9, 9, 3), 'input_shape': (8, 8, 3)}, {'num_classes': 2}):
        with pytest.raises(UserError, match='m.card.json has '):
            own_card(path=path, **wrong)
    assert path.read_bytes() == before


def test_a_converted_net_may_name_its_normalization(tmp_path):
    """Standardisation picture by picture is no scale, mean and std."""
    fed = CAFFE | {'channels': 'RGB', 'normalization': 'per_image_standardization'}
    assert card_of(tmp_path, fed).normalization == 'per_image_standardization'
    assert card_of(tmp_path, fed | {'normalization': None}).normalization.startswith('affine:RGB:0.5:')


OWN = {'normalization': 'none', 'size': [8, 8], 'channels': 'RGB'}


@pytest.mark.parametrize(
    'fed,field,value',
    [
        *[
            (CAFFE, *case)
            for case in (
                ('channels', 'GBR'),
                ('scale', 0),
                ('scale', float('nan')),
                ('scale', '1'),
                ('scale', True),
                ('mean', [1, 2]),
                ('mean', [1, 2, 'x']),
                ('mean', 3),
                ('std', [1, 1, 0]),
                ('std', [1, 1, float('inf')]),
                ('std', [1, 1, 10**50]),
                ('size', 0),
                ('size', 4.0),
                ('size', 10**9),
                ('size', [4, 4]),
                ('resize', 3),
                ('resize', '256'),
                ('interpolation', 'nearest'),
                ('normalization', 'x'),
                *((name, 'absent') for name in CAFFE if name != 'scale'),
            )
        ],
        *[
            (OWN, *case)
            for case in (
                ('normalization', 'x'),
                ('normalization', 3),
                ('normalization', []),
                ('size', 8),
                ('size', [8]),
                ('size', [8, -1]),
                ('size', [8, True]),
                ('channels', 'BGR'),
                ('pad_from', [9, 8]),
                ('pad_from', 'x'),
                *((name, 'absent') for name in OWN),
            )
        ],
    ],
)
def test_each_field_of_the_input_is_checked(tmp_path, fed, field, value):
    fed = {name: old for name, old in (copy.deepcopy(fed) | {field: value}).items() if old != 'absent'}
    with pytest.raises(UserError, match=f'x.card.json has (no )?input.{field}[^\n]*; train or convert') as caught:
        card_of(tmp_path, fed)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'field,value',
    [
        ('num_classes', 0),
        ('num_classes', '3'),
        ('num_classes', 10**12),
        ('labels', ['a', 3]),
        ('labels', ['a'] * 4),
        ('labels', 'imagenet'),
        ('labels', 'cifar10'),
        ('labels', None),
        ('labels', {}),
        ('input', None),
        ('input', [1]),
        ('spec', {}),
        ('spec', []),
        ('spec', {'group_blocks': [0]}),
        ('spec', {'group_blocks': [1], 'wings': 2}),
        ('spec', {'group_blocks': 3}),
        ('spec', {'group_blocks': [1], 'experiment': 'x', 'zero_gamma': True}),
        *((name, 'absent') for name in ('spec', 'num_classes', 'labels', 'input')),
    ],
)
def test_each_other_field_is_checked(tmp_path, field, value):
    with pytest.raises(UserError, match=f'x.card.json has (no |a )?{field}') as caught:
        card_of(tmp_path, CAFFE, **{field: value})
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'content,message',
    [
        (b'{', 'is no JSON'),
        (b'\xff', 'is no JSON'),
        (b'[' * 100000, 'is no JSON'),
        (b'[]', 'no JSON object'),
        (None, 'does not exist'),
    ],
)
def test_a_damaged_card(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'x.card.json').write_bytes(content)
    with pytest.raises(UserError, match=message):
        card_reader.read_card(tmp_path / 'x.card.json')


def test_what_cannot_be_loaded(tmp_path):
    path, _ = saved(tmp_path)
    for wrong in (tmp_path / 'none', tmp_path / 'model.card.json'):
        with pytest.raises(UserError, match='is no .keras file and no model_dir'):
            predict.load(wrong)
    with pytest.raises(UserError, match='do not belong together'):
        model_card.write_card(tmp_path / 'model.card.json', SPEC, 'none', (9, 9, 3), (9, 9, 3), 'abc')
        predict.load(path)
    with pytest.raises(UserError, match='do not belong together'):
        model_card.write_card(tmp_path / 'model.card.json', SPEC, 'none', (8, 8, 3), (8, 8, 3), 'abcd')
        predict.load(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match='^cannot load [^\n]*; pass a .keras model of ours$'):
        predict.load(path)
    path.unlink()
    (tmp_path / 'model.card.json').unlink()
    with pytest.raises(UserError, match='has no model.keras'):
        predict.load(tmp_path)
