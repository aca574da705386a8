"""What a training keeps in memory of the images of a folder changes its speed and nothing else."""

import collections

import numpy as np
import pytest
from fixtures import tiny_training
from fixtures.tiny_training import StopAt, assert_equal_runs
from PIL import Image

from official_resnet import resnet_run_loop, resnet_spec
from official_resnet.inputs import images, streamed
from official_resnet.inputs.views import Views

SPEC = resnet_spec.ResNetSpec((1, 1), filters=4, stem='imagenet', bn_momentum=0.5)
VIEWS = Views(32, 32, 36, 0.3, False, 'antialias', crop='torch')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve images for training, of which training gets reduced ones, and four for testing."""
    folder, random = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for split, count in (('train', 6), ('test', 2)):
        for name in ('cat', 'dog'):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
                kind = ('png', 'jpg')[i % 2]
                small.resize((200, 150), Image.Resampling.BICUBIC).save(place / f'{i}.{kind}')
    return folder


def train(folder, model_dir, *callbacks):
    fields = {'dataset': f'folder:{folder}', 'views': VIEWS, 'batch_size': 4, 'train_epochs': 3, 'steps_per_call': 1}
    config = tiny_training.make_config(None, model_dir, SPEC, **fields, save_checkpoint_minutes=0)
    resnet_run_loop.train(config.with_machine(data_dir=None), callbacks)


@pytest.mark.whole_runs
def test_kept_read_again_and_interrupted_are_equal(folder, tmp_path, monkeypatch):
    decoded, reads = collections.Counter(), collections.Counter()
    convert, read = images.to_rgb_jpeg, streamed.Files.read

    def counting(data, **options):
        found = convert(data, **options)
        decoded[options['side'], found[0] is data] += 1
        return found

    def counting_reads(source, rows):
        reads.update(source.paths[row].split('/')[-3] for row in rows)
        return read(source, rows)

    monkeypatch.setattr(images, 'to_rgb_jpeg', counting)
    monkeypatch.setattr(streamed.Files, 'read', counting_reads)
    # Each image is read once more, to tell how large all will be.
    for name, num_reads, limit in (('decoded', 12 + 12, streamed.DECODED_BYTES), ('kept', 12 + 3 * 12, 0)):
        monkeypatch.setattr(streamed, 'DECODED_BYTES', limit)
        reads.clear()
        decoded.clear()
        train(folder, tmp_path / name)
        assert reads == {'train': num_reads, 'test': 4}
        assert decoded == {(64, False): 12, (None, False): 2, (None, True): 2}  # the PNG files of the test
        with pytest.raises(RuntimeError, match='killed'):
            train(folder, tmp_path / f'killed_{name}', StopAt(5))
        train(folder, tmp_path / f'killed_{name}')
        assert_equal_runs(tmp_path / name, tmp_path / f'killed_{name}')

    for module in (streamed, resnet_run_loop):
        monkeypatch.setattr(module, 'KEPT_BYTES', 0)
    reads.clear()
    decoded.clear()
    train(folder, tmp_path / 'read')
    assert reads == {'train': 12 + 3 * 12, 'test': 3 * 4}
    assert decoded == {(64, False): 12 + 3 * 12, (None, False): 3 * 2, (None, True): 3 * 2}
    assert_equal_runs(tmp_path / 'kept', tmp_path / 'read')
