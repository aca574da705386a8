"""After a power failure, what a program wrote under a final name is whole, and what it reported as written is there."""

import dataclasses
import functools
import importlib
import os
import pathlib

import keras
import numpy as np
import pytest
from fixtures import archives, data_commands, ilsvrc, loopback, power, programs, torch_files
from fixtures.imagenet_shards import draw, write_shards
from fixtures.tiny_training import StopAt, assert_equal_runs, make_config
from PIL import Image

from checkpoints_tools import convert
from official_resnet import checkpoints, files, resnet_run_loop
from official_resnet.building import shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.records import Options
from official_resnet.command_line import more_logging
from official_resnet.experiments import runs, transfer_main
from official_resnet.inference import export, runtimes
from official_resnet.inputs import download
from official_resnet.inputs.shards import Shards
from official_resnet.reports import evaluate, figures
from official_resnet.weights import pretrained
from official_resnet.weights.published import PUBLISHED


def train(root, get):
    """Train, plot the curves, log as a benchmark, and report."""
    config = make_config(get('cifar_dir'), root / 'new' / 'run', train_epochs=2)
    log = more_logging.BenchmarkLog(str(root / 'log'), {}, 100, ())
    log.set_params({'first_step': 0})
    log.on_train_begin()
    resnet_run_loop.train(config, ())
    figures.training_curves(root / 'new' / 'run')
    evaluate.write({'classes': [], 'confusions': []}, root / 'report')


def train_on_features(root, get):
    fields = {'transfer': 'head', 'augment': False, 'pretrained': str(get('source')), 'max_train_steps': 2}
    resnet_run_loop.train(make_config(get('cifar_dir'), root / 'head', **fields), ())
    assert {path.name for path in root.rglob('*.npz')} > {'features-train.npz', 'features-test.npz'}


def export_and_explain(root, get):
    Image.new('RGB', (32, 32), 'red').save(get('tmp_path') / 'a.png')
    line = f'predict_main --model {get("source")} --explain --output_dir {root}/pages {get("tmp_path")}/a.png'
    assert programs.call(line).code == 0 and (root / 'pages' / 'a_grad_cam.png').is_file()
    model = keras.models.load_model(get('source') / 'model.keras')
    export.export(model, 'none', (32, 32, 3), root / 'export', np.zeros((1, 32, 32, 3), np.uint8))


def export_by_program(root, get):
    """A file and a folder, each with its model card."""
    get('monkeypatch').setattr(runtimes, 'TURN_SECONDS', 0)
    for to, name in (('keras', 'net.keras'), ('savedmodel', '1')):
        programs.succeed(f'export_main --model {get("source")} --to {to} --output {root}/{to}/{name}')
    names = {str(path.relative_to(root)) for path in root.rglob('*')}
    assert names > {'keras/net.keras', 'keras/net.card.json', 'keras/README.md', 'savedmodel/1', 'savedmodel/README.md'}


def write_features(root, get):
    """predict_main --features in each format, of two images in two parts."""
    for name in 'ab':
        Image.new('RGB', (32, 32), 'red').save(get('tmp_path') / f'{name}.png')
    images = f'{get("tmp_path")}/a.png {get("tmp_path")}/b.png'
    for suffix in ('npz', 'csv'):
        output = f'--features=group1 --output {root}/new/{suffix}/features.{suffix}'
        programs.succeed(f'predict_main --model {get("source")} --batch_size 1 {output} {images}')
    assert len([path for path in root.rglob('features.*') if path.is_file()]) == 2


def fill_the_cache(root, get):
    """Fetch published weights; the conversion, which has a process of its own, is done in this one."""
    name, patch, mirror = 'akamaster/resnet20', get('monkeypatch'), get('tmp_path') / 'mirror'
    place = mirror / PUBLISHED[name].url.partition('://')[2]
    place.parent.mkdir(parents=True)
    shapes = torch_files.net_shapes((3, 3, 3), filters=16, classes=10, is_cifar=True, option='A')
    torch_files.write_zip(place, torch_files.random_weights(shapes))
    patch.setenv(pretrained.MIRROR, str(mirror))
    patch.setattr(pretrained, '_convert', lambda weights, source, output: convert.convert(source, output))
    path = pretrained.fetch(dataclasses.replace(PUBLISHED[name], checksum=''), root / 'cache')
    assert path.is_file() and path.with_suffix('.card.json').is_file()


def convert_both_ways(root, get):
    path = get('tmp_path') / 'net.pth'
    torch_files.write_zip(path, torch_files.random_weights(torch_files.TINY['bottleneck']))
    convert.convert(path, root / 'ours' / 'net.keras')
    convert.to_family(root / 'ours' / 'net.keras', root / 'theirs' / 'net.safetensors', 'torch')


def build(root, get):
    """From tar files; the processes' work is done in this process, where it is watched."""

    def run(job, todo, num_threads, progress):
        images, options = job.load(ImageList, f'{job.folder}/images'), job.load(Options, f'{job.folder}/options')
        for shard in todo:
            job.write_shard(shard, functools.partial(shards.build_shard, images, shard, job.num_shards, options))

    get('monkeypatch').setattr(shards, '_run_processes', run)
    layout = ilsvrc.make(get('tmp_path') / 'tars')
    for path in layout.folder.iterdir():
        (root / path.name).symlink_to(path)
    name = 'download_and_preprocess_imagenet'
    flags = [*layout.flags, '--train_shards=2', '--validation_shards=1', '--keep_extracted', '--verify']
    assert data_commands.load(name).main([name, str(root), *flags]) == 0
    assert len(list(root.rglob('*.JPEG'))) == len(layout.train) + len(layout.validation)


def write_by_beam(root, get):
    beam = importlib.import_module('official_resnet.building.beam')
    job = beam.BeamJob(root / 'out', 'train', 1)
    job.write_shard(0, lambda file: {'bytes': file.write(b'x' * 100)})
    job.save(Options(), f'{job.folder}/options')


def fetch(root, get):
    """Download an archive and unpack it, into an incomplete folder too; download a set of files."""
    patch, row = get('monkeypatch'), download.ARCHIVES['cifar10']
    sizes = {name: len(data) for name, data in archives.FILES.items()}
    patch.setitem(download.ARCHIVES, 'cifar10', type(row)(f'/{archives.NAME}', archives.SIZE, archives.MD5, sizes))
    patch.setenv('no_proxy', '127.0.0.1')
    patch.setattr(download, 'SYNC_BYTES', 1000)
    with loopback.serve(archives.Handler) as server:
        server.may_close = type('Event', (), {'set': lambda self: None, 'wait': lambda self, seconds: None})()
        archives.reset(server)
        rows = {name: (len(data), None) for name, data in archives.IDX.items()}
        patch.setitem(download.FILE_SETS, 'mnist', (f'{server.url}/mirror/', rows))
        download.fetch_missing('mnist', root / 'mnist_data')
        download.download_and_extract('cifar10', root / 'new', url=f'{server.url}/{archives.NAME}')
        next((root / 'new' / archives.FOLDER).glob('data*')).unlink()
        download.download_and_extract('cifar10', root / 'new', url=f'{server.url}/{archives.NAME}')


def index_shards(root, get):
    write_shards(get('tmp_path'), draw(4), num_shards=2)
    Shards(sorted(get('tmp_path').glob('train-*')), index_file=root / 'index.npz')
    assert (root / 'index.npz').is_file()


def experiment(root, get):
    files.make_folder(root / 'out')
    runs.claim_folder(root / 'out', {'a': 1})
    curves = {'epoch': [1], 'train_error': [50], 'test_error': [60]}
    runs.finish(f'{root}/out', 'all', {}, [('error_curves', {'a': {'b': curves}}, root / 'out' / 'all.png', '')])
    for name in 'abcd':
        for split in ('train', 'test'):
            (get('tmp_path') / 'images' / split / name).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(get('tmp_path') / 'images' / split / name / 'a.png')
    sizes = {'source_images': None, 'images_per_class': None}
    transfer_main.link_images(get('tmp_path') / 'images', root / 'out' / 'images', sizes, 1)


WRITERS = [train, train_on_features, export_and_explain, convert_both_ways, build, fetch, index_shards, experiment]
WRITERS += [export_by_program, write_features, fill_the_cache]
WRITERS += [pytest.param(write_by_beam, marks=pytest.mark.beam)]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    (tmp_path / 'disk').mkdir()
    return power.Disk(tmp_path / 'disk', monkeypatch)


@pytest.mark.parametrize('write', WRITERS)
def test_a_power_failure_takes_nothing(write, source, disk, request):
    """At each moment, a final name stands for a whole file; in the end, nothing is lost."""
    write(pathlib.Path(disk.root), request.getfixturevalue)
    assert (disk.faults, disk.lost()) == (set(), []) and any(pathlib.Path(disk.root).rglob('*'))


def write_at_once(path):
    path.write_text('x')


def rename_unflushed(path):
    part = path.with_name('part.x')
    part.write_text('x')
    part.rename(path)


def flush_no_name(path):
    with open(path, 'w') as file:
        file.write('x')
        file.flush()
        os.fsync(file.fileno())


def make_folder_only(path):
    path.parent.joinpath('new').mkdir()
    files.write_text(path.parent / 'new' / 'a', 'x')


@pytest.mark.parametrize(
    'write,faults,lost',
    [
        (write_at_once, set(), ['a']),
        (rename_unflushed, {'a'}, ['a']),
        (flush_no_name, set(), ['a']),
        (make_folder_only, set(), ['new']),
        (lambda path: files.write_text(path, 'x'), set(), []),
    ],
)
def test_the_disk_tells_what_is_not_flushed(write, faults, lost, disk):
    write(pathlib.Path(disk.root, 'a'))
    assert (disk.faults, disk.lost()) == (faults, lost)


@pytest.mark.whole_runs
def test_a_run_continues_after_a_power_failure(cifar_dir, tmp_path, disk):
    """With the same weights and the same lines, although the last lines were not flushed."""
    config = make_config(cifar_dir, f'{disk.root}/run', steps_per_call=1)
    with pytest.raises(RuntimeError, match='killed'):
        resnet_run_loop.train(config.with_machine(save_checkpoint_minutes=0), [StopAt(10)])
    with open(f'{disk.root}/run/{checkpoints.METRICS_FILE}', 'r+') as file:
        file.write('{"split": "train", "step": 7, "accuracy": 0}')
    disk.write_what_is_left(tmp_path / 'left')
    resnet_run_loop.train(config.with_machine(model_dir=str(tmp_path / 'left' / 'run')), ())
    resnet_run_loop.train(config.with_machine(model_dir=str(tmp_path / 'whole')), ())
    assert_equal_runs(tmp_path / 'left' / 'run', tmp_path / 'whole')
