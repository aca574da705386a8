"""predict_main --features: the rows are the network's own features, and a stopped run continues to the same file."""

import csv
import json
import os

import keras
import numpy as np
import pytest
from fixtures import programs
from fixtures.networks import save_network
from PIL import Image
from pyarrow import parquet

from official_resnet.errors import UserError
from official_resnet.inference import feature_file, grad_cam, predict


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('net')
    save_network(folder, ('a', 'b', 'c'), (16, 16, 3))
    return folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of seven images of odd sizes, and of two files that are none."""
    folder, random = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(random.integers(0, 256, (20 + i, 31, 3), np.uint8)).save(folder / f'{i}é.png')
    (folder / '2broken.png').write_bytes(b'no image')
    (folder / 'notes.txt').write_text('no image')
    return folder


def expected(model_dir, images, name):
    """Return the names and the features of all images in one batch, by the API and numpy's mean."""
    model, card = predict.load(model_dir)
    paths = sorted(path for path in images.glob('*.png') if 'broken' not in path.name)
    pixels = np.stack([predict.prepare(path, card) for path in paths])
    rows = grad_cam.features(model)(predict.network_input(card, pixels))[name].numpy()
    return [str(path) for path in paths], rows.mean((1, 2)) if rows.ndim == 4 else rows


def read(path):
    """Return the names and the features in a file, as its users would read them."""
    if path.suffix == '.npz':
        with np.load(path) as arrays:
            return arrays['files'].tolist(), arrays['features']
    if path.suffix == '.csv':
        with open(path, newline='', encoding='utf-8') as file:
            header, *rows = csv.reader(file)
        assert header == ['file', *(f'feature{i}' for i in range(len(header) - 1))]
        return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)
    table = parquet.read_table(path)
    return table['file'].to_pylist(), np.array(table['features'].to_pylist(), np.float32)


@pytest.mark.parametrize('name,suffix', [('pre_logits', '.npz'), ('group1', '.csv'), ('logits', '.parquet')])
def test_a_row_for_each_image(model_dir, images, tmp_path, name, suffix):
    path = tmp_path / f'out{suffix}'
    command = f'predict_main --model {model_dir} {images} --features={name} --output={path} -bs 3'
    code, out, err = programs.call(command)
    assert code == 0 and 'of 7 images' in out and '2broken.png' in err and 'notes.txt' in err
    names, rows = expected(model_dir, images, name)
    found_names, found = read(path)
    assert found_names == names and found.dtype == np.float32
    np.testing.assert_allclose(found, rows, rtol=1e-5, atol=1e-6)
    assert np.ptp(found, axis=0).max() > 1e-3 and list(tmp_path.iterdir()) == [path]  # and nothing is left over


@pytest.mark.parametrize('suffix', feature_file.FORMATS)
@pytest.mark.parametrize('cut', ['between', 'rows', 'names'])
def test_a_stopped_run_continues_to_the_same_file(tmp_path, suffix, cut):
    batches = [(['a', 'b'], 2), (['c'], 1), ([], 0), (['d', 'e'], 2)]
    random = np.random.default_rng(0)
    batches = [(names, random.normal(size=(count, 5)).astype(np.float32)) for names, count in batches]

    def run(path, stop=None) -> None:
        with feature_file.collecting(path, {'--features': 'x'}, 5) as rows:
            for names, values in batches[rows.num_batches : stop]:
                rows.add(names, values)
            if stop:
                raise KeyboardInterrupt

    run(tmp_path / f'whole{suffix}')
    path = tmp_path / f'stopped{suffix}'
    with pytest.raises(KeyboardInterrupt):
        run(path, 3 if cut == 'between' else 4)
    folder = path.with_name(f'{path.name}.part')
    for name in {'between': (), 'rows': ['rows.float32'], 'names': ['files.jsonl']}[cut]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-3])  # the end of the last batch was not written
    assert not path.exists()
    run(path)
    (names, rows), (other_names, others) = read(path), read(tmp_path / f'whole{suffix}')
    assert names == other_names == list('abcde')
    assert rows.tobytes() == others.tobytes() and not folder.exists()


@pytest.mark.parametrize('suffix', feature_file.FORMATS)
def test_names_that_are_no_text_are_written(tmp_path, suffix):
    path = tmp_path / f'f{suffix}'
    with feature_file.collecting(path, {}, 2) as rows:
        rows.add(['a/\udcff.jpg', 'löwe.jpg'], np.zeros((2, 2), np.float32))
    name = r'a/\udcff.jpg' if suffix == '.parquet' else 'a/\udcff.jpg'  # as programs print it
    if suffix == '.csv':
        assert os.fsencode(name) in path.read_bytes() and 'löwe.jpg' in path.read_text(errors='replace')
    else:
        assert read(path)[0] == [name, 'löwe.jpg']


def test_features_of_another_command_are_not_mixed_in(tmp_path):
    path = tmp_path / 'f.npz'
    with pytest.raises(KeyboardInterrupt), feature_file.collecting(path, {'--features': 'group1', 'n': 1}, 2):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r'f\.npz\.part.*--features.*--output'):
        with feature_file.collecting(path, {'--features': 'group2', 'n': 1}, 2):
            pass
    (tmp_path / 'f.npz.part' / 'about.json').write_text('{')
    with feature_file.collecting(path, {'--features': 'group1', 'n': 1}, 2) as rows:
        rows.add(['a'], np.zeros((1, 2), np.float32))
        with pytest.raises(UserError, match='another process'), feature_file.collecting(path, {}, 2):
            pass


def test_a_backbone_without_a_classifier_gives_features(model_dir, images, tmp_path):
    """As read_ckpt --no_head writes it: class numbers are refused, features are not."""
    net = keras.models.load_model(model_dir / 'model.keras')
    keras.Model(net.input, net.get_layer('head_pool').output).save(tmp_path / 'net.keras')
    card = json.loads((model_dir / 'model.card.json').read_text()) | {'num_classes': 0, 'labels': 'unknown'}
    (tmp_path / 'net.card.json').write_text(json.dumps(card))
    path = tmp_path / 'f.npz'
    command = f'predict_main --model {tmp_path}/net.keras {images}'
    assert '--features=pre_logits' in programs.mistake(command)
    assert programs.call(f'{command} --features=pre_logits --output={path}').code == 0
    np.testing.assert_allclose(read(path)[1], expected(model_dir, images, 'pre_logits')[1], rtol=1e-5, atol=1e-6)
    assert 'must be one of stem, group1, group2, pre_logits' in programs.mistake(
        f'{command} --features=logits --output={tmp_path}/g.npz'
    )
    assert str(path) in programs.mistake(f'{command} --features=pre_logits --output={path}')  # it exists
