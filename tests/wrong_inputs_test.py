"""Everything that a user can get wrong, program by program: one line with the value and the remedy, exit code 1.

ROWS is the table; a pattern has the value and the remedy of the message, not its sentence. What a flag's type refuses
is added for every flag of every program, so that a new flag is in the table at once.
"""

import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import types
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from fixtures import data_commands, ilsvrc, imagenet_shards, loopback, programs, writers
from fixtures.program_table import EXPERIMENTS, PROGRAMS, TRAINING, canonical
from PIL import Image

import official_resnet
import official_resnet.building
from benchmarks import build
from checkpoints_tools import read_ckpt
from official_resnet import resnet_model, resnet_spec
from official_resnet.building import downloads
from official_resnet.command_line import flags
from official_resnet.command_line.flags import Number
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError
from official_resnet.inference import model_card
from official_resnet.training import devices

PACKAGE, TESTS = pathlib.Path(official_resnet.__file__).parent, pathlib.Path(__file__).parent
HUGE = '999999999999999999999'
CIFAR = ('cifar10_main', 'cifar100_main')
SMALL = (*CIFAR, 'mnist_main')
TRAIN = TRAINING
CURVES = ('degradation_main', 'shortcuts_main')
DEPTHS = ('degradation_main', 'gradient_flow_main')
TRAINED = (*DEPTHS, 'shortcuts_main')
BUILDERS = ('build_imagenet_data', 'build_image_data')
FREE_TEXT = {'benchmark_test_id', *(name for name, _, _ in flags.OBSOLETE)}  # stored as it is, or ignored
ELSEWHERE = {'scaling': 'benchmarks/scaling_test', 'measuring': 'a process of the benchmarks, without flags'}
PRETRAINED = '--pretrained_model_checkpoint_path'
GET_CIFAR = 'cifar10_download_and_extract.py'


class Row(NamedTuple):
    """A mistake: a program, or several; arguments after those of Program.base; a pattern of its line."""

    program: str
    args: str
    pattern: str


OF_TRAINING = [
    (TRAIN, '--clean --model_dir={raw}', '--clean.*{raw}'),
    (TRAIN, '--model_dir={text}/x', "'{text}/x'.*--model_dir"),
    (TRAIN, '--model_dir=', '--model_dir= .*pass'),
    (TRAIN, '--eval_only --model_dir={empty}', "'{empty}' .*--model_dir"),
    (TRAIN, '--eval_only --model_dir={damaged}', '{damaged}/checkpoints.*delete'),
    (TRAIN, '--batch_size=999', '--batch_size=999 .*--batch_size=1'),
    (TRAIN, '--num_train_images=999999', '--num_train_images=999999 .* 1..'),
    (TRAIN, '--num_gpus=2', '--num_gpus=2, .*lower --num_gpus'),
    (TRAIN, '--benchmark_logger_type=BenchmarkFileLogger', 'BenchmarkFileLogger .*--benchmark_log_dir'),
    (TRAIN, '--export_dir={text}/x', "{text}/x.*'{text}'.*--export_dir"),
    (TRAIN, '--export_dir={new}/ex[1]', r'--export_dir={new}/ex\[1\].* rename'),
    (TRAIN, '--eval_only --export_dir={new}/*', r'--export_dir={new}/\*.* rename'),
    (TRAIN, '--benchmark_logger_type=BenchmarkFileLogger --benchmark_log_dir={text}', "'{text}'.*same command again"),
    (TRAIN, '--hooks=LoggingTensorHook,Fish', '--hooks=Fish .*LoggingTensorHook'),
    (TRAIN, '--loss_scale=inf', "loss_scale=inf: .*'dynamic'"),
    (TRAIN, '--profile_steps=²,³', 'profile_steps=²,³.* 10,20'),
    (TRAIN, '--profile_steps=9,3', 'profile_steps=9,3.* 10,20'),
    (TRAIN, '--lr_boundaries=nan', '--lr_boundaries=nan'),
    (TRAIN, '--lr_boundaries=2,1 --lr_factors=1,1,1 --lr_schedule=piecewise', '--lr_boundaries=2,1 .*--lr_factors'),
    (TRAIN, '--tfds=no_such_set', "'no_such_set'.*tensorflow.org/datasets/catalog"),
    (TRAIN, '--tfds=mnist --use_synthetic_data', '--tfds and --use_synthetic_data'),
    (TRAIN, '--image_folder={absent} --use_synthetic_data', '--image_folder and --use_synthetic_data'),
    (TRAIN, '--image_folder={absent}', "'{absent}'.*subfolder"),
    (TRAIN, '--image_folder={empty}', "'{empty}' .*subfolder"),
    (TRAIN, '--image_folder={one}', "'{one}' .*'cat'.*add"),
    (TRAIN, '--image_folder={hollow}', "'{hollow}/.*' .*add"),
    (TRAIN, '--validation_fraction=0.2', '--validation_fraction needs --image_folder'),
    (TRAIN, f'{PRETRAINED}={{absent}}', '{absent}.*pass'),
    (TRAIN, f'{PRETRAINED}={{text}}', '{text}.*model_dir .*.keras'),
    (TRAIN, f'{PRETRAINED}={{new}} --model_dir={{new}}', '{new}.*pass another --model_dir'),
    (
        TRAIN,
        f'{PRETRAINED}={{new}}/model.keras --model_dir={{new}} --local_workers=2 --clean',
        '{new}.*pass another --model_dir',
    ),
    (TRAIN, f'{PRETRAINED}=x --fine_tune --transfer=last', '--fine_tune .*--transfer=last'),
    (TRAIN, '--transfer=last', f'--transfer needs {PRETRAINED}'),
    (TRAIN, '--fine_tune', f'--fine_tune needs {PRETRAINED}'),
    (TRAIN, '--head=append', f'--head needs {PRETRAINED}'),
    (TRAIN, '--train_last_groups=2', '--train_last_groups needs --transfer=last'),
    (TRAIN, '--backbone_learning_rate_factor=2', f'--backbone_learning_rate_factor needs {PRETRAINED}'),
    (TRAIN, '--task_index=0', '--task_index needs --worker_hosts'),
    (TRAIN, '--worker_hosts=a:1,b:1', '--worker_hosts needs --task_index'),
    (TRAIN, '--worker_token=secret', '--worker_token needs --distribution_strategy=multi_worker_mirrored'),
    (TRAIN, '--worker_hosts=a:1,b:1 --task_index=0', 'a:1,b:1 .*--worker_token=.*RESNET_WORKER_TOKEN'),
    (TRAIN, '--worker_hosts=a,b --task_index=0', "--worker_hosts.*'a'.* host1:2222"),
    (TRAIN, '--local_workers=9999', r'--local_workers=9999, .* \d+ or fewer'),
    (TRAIN, 'stray', "'stray'"),
    (TRAIN, '--no_such_flag=1', '--no_such_flag'),
    (TRAIN, '--model_dir', 'model_dir'),  # its value is missing
    (TRAIN, '--flagfile={absent}', "'{absent}'"),
    (TRAIN, '--flagfile={bytes}', '0xff'),
    (SMALL, '--image_size=64', '--image_size needs --image_folder'),
    (SMALL, '--image_bytes_as_serving_input', '--image_bytes_as_serving_input .*ImageNet'),
    (CIFAR, '--resnet_size=21', r'resnet_size=21 .*6n\+2.* 20 and 26'),
    ('mnist_main', '--weight_decay=1e-4', '--weight_decay=0.0001 .*--weight_decay=0, .*--optimizer=momentum'),
    ('mnist_main', '--resnet_size=20', '--resnet_size'),
    ((*CIFAR, 'imagenet_main'), '--variant=none', "'none'.*resnet20_v1"),
    ('mnist_main', '--dataset=fashion_mnist', '--dataset=fashion_mnist --data_dir {mnist}'),
    ('imagenet_main', '--resnet_size=20', 'resnet_size=20 .*18, 34, 50, 101, 152, 200'),
    ('imagenet_main', '--min_crop_area=0', '--min_crop_area=0.0 .*above 0'),
    ('imagenet_main', '--eval_report={new}', '--eval_report needs --eval_only'),
    ('imagenet_main', '--ten_crop', '--ten_crop needs --eval_only'),
]
OF_DATA = [
    (('cifar10_main', *TRAINED), '--data_dir={absent}', f"'{{absent}}' .*{GET_CIFAR} --data_dir {{absent}}"),
    ('cifar100_main', '--data_dir={absent}', f"{{absent}}' .*{GET_CIFAR} --dataset=cifar100 --data_dir"),
    ('mnist_main', '--data_dir={absent}', "'{absent}' .*mnist_main.py --data_dir"),
    ('imagenet_main', '--data_dir={absent}', "'{absent}' .*-00000-of-..., .*data/"),
    (TRAIN, '--tfds=mnist --data_dir={new}/[1]', r'--data_dir={new}/\[1\].* rename'),
    (TRAIN, '--tfds=mnist --data_dir={new}', 'mnist.*{new}.*data_dir'),
    ((*TRAIN, *TRAINED), '--data_dir={text}', "'{text}' .*folder"),
    (('cifar10_main', *TRAINED), '--data_dir={empty}', f'cifar-10-batches-bin.*{GET_CIFAR}'),
    ('cifar100_main', '--data_dir={cifar100_cut}', f"t.*.bin' .*{GET_CIFAR}"),
    ('cifar100_main', '--data_dir={cifar100_label}', "t.*.bin' .*100 .*0..99.*delete"),
    ('mnist_main', '--data_dir={mnist_lost}', "train-labels-idx1-ubyte' .*pass another --data_dir"),
    ('imagenet_main', '--data_dir={shards_lost}', '1 of 4 .*00001.*data'),
    ('imagenet_main', '--data_dir={shards_cut}', "train-00001-of-00004' .*again"),
    ('imagenet_main', '--data_dir={shards_text}', "train-00001-of-00004' .*again"),
    ('imagenet_main', '--data_dir={shards_list}', "train .*'{shards_list}'"),
]
OF_OTHER_PROGRAMS = [
    ('cifar10_download_and_extract', '', f'{{refused}} .*{GET_CIFAR}.*--url .*--archive'),
    ('cifar10_download_and_extract', '--url=ftp://127.0.0.1/x', "'ftp://127.0.0.1/x' .*--archive"),
    ('cifar10_download_and_extract', '--url=http://[::1/x', r"'http://\[::1/x' .*correct"),
    ('cifar10_download_and_extract', '--url=http://127.0.0.1/é', "'http://127.0.0.1/é' .*ASCII"),
    ('cifar10_download_and_extract', '--md5=beef', '--md5=beef .*32'),
    ('cifar10_download_and_extract', '--data_dir={text}', "'{text}' .*folder"),
    ('cifar10_download_and_extract', '--archive={text}', '--archive and --url'),
    ('predict_main', '--model={absent}', "'{absent}' .*.keras .*model_dir"),
    ('predict_main', '--model=', '--model=.*.keras .*model_dir'),
    ('predict_main', '--model={no_card}/model.keras', 'card.json. .*again'),
    ('predict_main', '--model={bad_card}', '{bad_card}/model.card.json .*again'),
    ('predict_main', '--model={odd_card}', 'model.card.json .*again'),
    ('predict_main', '--model={cut_net}', '{cut_net}/model.keras.*pass'),
    ('predict_main', '--labels={text}', "'{text}' .* 1 .* 3 .*pass"),
    ('predict_main', '--labels={bytes}', "'{bytes}'.*UTF-8.*pass"),
    ('predict_main', '--labels={absent}', "'{absent}'.*pass"),
    ('predict_main', '--explain --explain_class=-1', "'-1' .*0..2"),
    ('predict_main', '--explain_class=1', '--explain_class .*--explain'),
    ('predict_main', '--explain --output_dir={text}', "'{text}'.*--output_dir"),
    ('speed', '', "'{empty}' .*--image_folder"),
    ('speed', '--image_folder=', 'image_folder .*--image_folder'),
    ('speed', '--resnet_size=33', 'resnet_size=33.*6n.2'),
    ('speed', '--output_json={absent}/x', '{absent}/x. .*pass'),
    (TRAINED, '--output_dir={text}', "'{text}'.*--output_dir"),
    (TRAINED, '--output_dir={other_experiment}', 'runs|holds .*pass'),
    (TRAINED, '--output_dir={bad_experiment}', "settings.json' .*delete"),
    (DEPTHS, '--depths=20,²0', "'²0'"),
    (DEPTHS, f'--depths={HUGE}', '6n.2'),
    (CURVES, '--num_train_images=999999', '--num_train_images=999999 .* 1..120'),
    ('shortcuts_main', '--rows=original,none', 'none.* original, scaled_shortcut'),
    ('shortcuts_main', '-rs=9', 'resnet_size=9.*6n.2'),
    ('gradient_flow_main', '--activations=tanh', "'tanh'.* sigmoid, relu"),
    ('transfer_main', '--image_folder={one}', "'cat'.*add"),
    ('transfer_main', '--images_per_class=99', '99.*--images_per_class .*--source_images'),
    ('transfer_main', '--output_dir={text}', "'{text}'.*pass another"),
    ('transfer_main', '--ways=all,none', 'none.* scratch, all, all_slow'),
    ('transfer_main', '-rs=21', r'resnet_size=21 .*6n\+2.* 20 and 26'),
]
WHOLE, BEAM = 'download_and_preprocess_imagenet', 'build_imagenet_data_beam'
OF_TOOLS = [
    ('read_ckpt', '', '{text} .*--source'),
    ('read_ckpt', '--input={absent}', '{absent}.*pass'),
    ('read_ckpt', '--data_dir={absent}', '{absent}.*folder'),
    ('read_ckpt', '--list={text}', '--list .*--input .*--output'),
    ('read_ckpt', '--output={new}/net.h5', 'net.h5 .*.keras'),
    ('read_ckpt', '--to=torch --output={new}/net.pth', 'net.pth .*.safetensors'),
    ('read_ckpt', '--input={bytes} --variant=resnet50_v9', '{bytes} .*--source'),
    *(('read_ckpt', f'--source={family}', '{text}') for family in read_ckpt.FAMILIES),
    *(('read_ckpt', f'--source={family} --input={{empty}}', '{empty}') for family in read_ckpt.FAMILIES),
    (WHOLE, '--data_dir=', 'DATA_DIR .*folder'),
    (WHOLE, '--data_dir={text}', "'{text}' .*folder"),
    (WHOLE, '--data_dir={new}', "'{new}' .*ILSVRC2012_img_val.tar.*IMAGENET_USER"),
    (WHOLE, '--data_dir={new} --url=nonsense', "'nonsense/.*' .*correct"),
    (WHOLE, '--labels_file={absent}', "'{absent}' .*pass"),
    (WHOLE, '--labels_file={bytes}', "'{bytes}' .*UTF-8.*pass"),
    (WHOLE, '--labels_file={text}', 'ILSVRC2012_val_.*pass'),
    (WHOLE, '--metadata_file={text}', "'{text}' .*line 1.*TAB"),
    (WHOLE, '--validation_labels_file={text}', "'{text}' .*'one' .*line 1.*n01440764"),
    ('build_imagenet_data', '--imagenet_metadata_file={text}', 'line 1.*TAB'),
    ('build_imagenet_data', '--bounding_box_file={text}', "'{text}'.*data/bounding_boxes.py"),
    (BUILDERS, '--labels_file={absent}', "'{absent}' .*pass"),
    (BUILDERS, '--labels_file={nul}', "'{nul}' .*NUL"),
    (BUILDERS, '--labels_file={twice}', "'{twice}' .*'cat' .*one"),
    (BUILDERS, '--output_directory={text}', "'{text}.*--output_directory"),
    (BUILDERS, '--output_directory={shards}', '{shards}'),
    (BUILDERS, '--output_directory={strangers}', 'manifest.json.*move'),
    (BUILDERS, '--train_directory={absent}', "'{absent}.*' .*pass"),
    (BUILDERS, '--validation_directory={absent}', "'{absent}.*' .*pass"),
    ('build_image_data', '--train_directory={empty}', "'{empty}' .*folder"),
    ('bounding_boxes', '', 'SYNSETS'),
    ('bounding_boxes', '{text} {text} more', "'more'"),
    ('bounding_boxes', '{empty} {absent}', "SYNSETS '{absent}' .*pass"),
    ('bounding_boxes', '{absent}', "'{absent}' .*ILSVRC2012_bbox_train_v2.tar.gz"),
    ('bounding_boxes', '{text}', "'{text}' .*again"),
    ('bounding_boxes', '{empty}', "'{empty}' .*ILSVRC2012_bbox_train_v2.tar"),
    ('bounding_boxes', '{ilsvrc}/ILSVRC2012_bbox_train_v2.tar.gz {bytes}', "'{bytes}' .*pass"),
    (BEAM, '--output_directory=', '--output_directory=.*pass'),
    (BEAM, '--train_tar=', '--train_tar.*--validation_tar'),
    (BEAM, '--validation_tar={text}', '--validation_tar and --validation_labels_file'),
    (BEAM, '--validation_labels_file={text}', '--validation_tar and --validation_labels_file'),
    (BEAM, '--labels_file={absent}', "'{absent}' .*pass"),
    (BEAM, '--metadata_file={text}', "'{text}' .*line 1.*TAB"),
    (BEAM, '--bounding_box_file={text}', "'{text}' .*again"),
    (BEAM, '--output_directory={new}/x?', r'--output_directory={new}/x\?.* rename'),
    (BEAM, '--train_tar={new}/[1].tar', r'--train_tar={new}/\[1\].tar.* rename'),
    (BEAM, '--validation_tar={new}/*.tar --validation_labels_file={text}', r'--validation_tar={new}/\*.tar.* rename'),
    (BEAM, 'stray', "'stray'"),
    ('build', '', "--images '{text}' .*pass"),
    ('build', '--images={empty}', "'{empty}' .*pass"),
    ('build', '--images={raw} --folder={absent}', "'{absent}/.*same command"),
]


# A wrong path is told before TensorFlow is imported, but for what only TensorFlow or a large file's content tells.
PATHS = re.compile(r'eval_only|--\w*(data_dir|folder|model|path|input|list|labels|file|directory|tar|images|archive)=')
LATE = re.compile(r'--tfds|--num_train_images|shards_(cut|text)|--input={bytes}')


def values_of_wrong_type(flag):
    """Return [(value, pattern)] that the type of a flag refuses."""
    name, parser = flag.name, flag.parser
    if isinstance(flag, absl_flags.BooleanFlag):
        return [('maybe', f'--{name}=maybe: .*boolean')]
    if hasattr(parser, 'enum_values'):
        return [('no_such', f'--{name}=no_such: .*{re.escape("|".join(parser.enum_values))}')]
    if not isinstance(parser, absl_flags.FloatParser | absl_flags.IntegerParser):
        return []
    wrong = ['x', *(['nan', 'inf'] if isinstance(parser, absl_flags.FloatParser) else ['1.5'])]
    wrong += [str(parser.lower_bound - 1)] if parser.lower_bound is not None else []
    wrong += [str(parser.upper_bound + 1)] if parser.upper_bound is not None else []
    return [(value, rf'--{name}={re.escape(value)}: .*{re.escape(value)}') for value in wrong]


def table():
    for several, args, pattern in (*OF_TRAINING, *OF_DATA, *OF_OTHER_PROGRAMS, *OF_TOOLS):
        for program in (several,) if isinstance(several, str) else several:
            yield Row(program, args, pattern)
    for program, (define_flags, _, _) in PROGRAMS.items():
        for name, flag in canonical(define_flags()).items():
            for value, pattern in values_of_wrong_type(flag):
                yield Row(program, f'--{name}={value}', pattern)


ROWS = list(table())


@pytest.fixture(scope='module')
def places(tmp_path_factory, cifar_dir, mnist_dir):
    """The files and folders that rows name: right ones and wrong ones."""
    folder = tmp_path_factory.mktemp('places')
    found = {'cifar': cifar_dir, 'mnist': mnist_dir, 'absent': folder / 'absent'}

    def made(name):
        found[name] = folder / name
        return found[name]

    for name, content in (('text', b'one'), ('bytes', b'\xff\xfe\xff'), ('nul', b'a\0b\n'), ('twice', b'cat\ncat\n')):
        made(name).write_bytes(content)
    made('empty').mkdir()
    made('image')
    Image.new('RGB', (20, 20)).save(folder / 'image', 'PNG')
    for path in (made('one') / 'cat', made('hollow') / 'cat', found['hollow'] / 'dog'):
        path.mkdir(parents=True)
    shutil.copy(folder / 'image', found['one'] / 'cat' / '1.png')
    (made('damaged') / 'checkpoints').mkdir(parents=True)
    (found['damaged'] / 'checkpoints' / 'step-000000001.npz').write_bytes(b'PK')
    shutil.copytree(mnist_dir / 'mnist', made('mnist_lost'))
    (found['mnist_lost'] / 'train-labels-idx1-ubyte').unlink()
    _make_cifar100(made)
    _make_shards(made)
    _make_networks(made)
    _make_ilsvrc(made)
    for name, content in (('other_experiment', '{"dataset": "mine"}'), ('bad_experiment', '{"dataset"')):
        (made(name) / 'runs' / 'plain-20').mkdir(parents=True)
        (found[name] / 'settings.json').write_text(content)
    found['refused'] = loopback.refused_url()
    return found


def _make_cifar100(made):
    images = np.zeros([40, 32, 32, 3], np.uint8)
    for name, last_label in (('cifar100', 39), ('cifar100_cut', 39), ('cifar100_label', 100)):
        folder = made(name) / 'cifar-100-binary'
        folder.mkdir(parents=True)
        for file in ('train.bin', 'test.bin'):
            writers.write_cifar(folder / file, images, [[0, label] for label in (*range(39), last_label)])
        if name == 'cifar100_cut':
            (folder / 'train.bin').write_bytes((folder / 'train.bin').read_bytes()[:-1])


def _make_shards(made):
    whole = made('shards')
    for split, number in (('train', 4), ('test', 2)):
        imagenet_shards.write_shards(whole, imagenet_shards.draw(20), split, number)
    broken = whole / 'train-00001-of-00004'
    for name, change in (
        ('shards_lost', lambda path: path.unlink()),
        ('shards_cut', lambda path: path.write_bytes(broken.read_bytes()[:-9])),
        ('shards_text', lambda path: path.write_bytes(b'no TFRecord file at all')),
        ('shards_list', lambda path: (path.parent / 'train.manifest.json').write_text('[1]')),
    ):
        shutil.copytree(whole, made(name))
        change(made(name) / broken.name)
    made('strangers').mkdir()
    for prefix in ('train', 'validation'):
        (made('strangers') / f'{prefix}-00000-of-00002').write_bytes(b'')


def _make_networks(made):
    folder = made('net')
    folder.mkdir()
    spec = resnet_spec.ResNetSpec((1, 1), filters=4)
    resnet_model.resnet(spec, 3, (16, 16, 3)).save(folder / 'model.keras')
    model_card.write_card(folder / 'model.card.json', spec, 'unit_range', (16, 16, 3), (16, 16, 3), ('a', 'b', 'c'))
    for name in ('no_card', 'bad_card', 'odd_card', 'cut_net'):
        shutil.copytree(folder, made(name))
    (made('no_card') / 'model.card.json').unlink()
    (made('bad_card') / 'model.card.json').write_text('{')
    (made('odd_card') / 'model.card.json').write_text('{"num_classes": "three"}')
    (made('cut_net') / 'model.keras').write_bytes((folder / 'model.keras').read_bytes()[:-500])


def _make_ilsvrc(made):
    ilsvrc.unpack(ilsvrc.make(made('ilsvrc')), made('raw'))


@pytest.fixture
def network(monkeypatch):
    """Refuse every connection but to this machine; return the list of the other hosts that were tried."""
    tried = []

    def guarded(real, host_of):
        def connect(*args, **options):
            host = host_of(*args)
            if host is not None and not re.match(r'localhost$|::1$|127\.', str(host)):
                tried.append(host)
                raise socket.gaierror('no network in this test')
            return real(*args, **options)

        return connect

    def host_of(self, address):
        return address[0] if isinstance(address, tuple) else None

    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), host_of))
    monkeypatch.setattr(socket, 'getaddrinfo', guarded(socket.getaddrinfo, lambda host, *args: host))
    return tried


def test_the_guard_of_the_network_works(network):
    with pytest.raises(OSError, match='no network'):
        socket.create_connection(('192.0.2.1', 80), timeout=1)  # of RFC 5737: nobody's
    with socket.socket() as one, pytest.raises(OSError, match='no network'):
        one.connect(('192.0.2.1', 80))
    assert network == ['192.0.2.1'] * 2


@pytest.fixture
def call(monkeypatch, capfd, network, places, tmp_path):
    """Run a program in this process, with its right arguments and more; return (code, stdout, stderr)."""

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)
    monkeypatch.setattr(os, '_exit', end)  # as a worker of several ends
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))  # which asks for no account
    beam = types.SimpleNamespace(to_local=lambda path, folder: path)  # wrong inputs get no further
    monkeypatch.setattr(official_resnet.building, 'beam', beam, raising=False)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    for name in ('TF_CONFIG', *downloads.CREDENTIALS):
        monkeypatch.delenv(name, raising=False)

    def run_here(program, args=''):
        line = f'{PROGRAMS[program].base} {args}'.format_map({**places, 'new': tmp_path})
        capfd.readouterr()
        try:
            code = PROGRAMS[program].main([f'{program}.py', *line.split()])
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    yield run_here
    sys.stdin.close()
    assert network == []


@pytest.mark.parametrize('row', ROWS, ids=[f'{row.program} {row.args}' for row in ROWS])
def test_a_mistake_is_one_line_and_exit_code_1(row, places, call, tmp_path):
    code, out, err = call(row.program, row.args)
    pattern = row.pattern
    for name, path in {**places, 'new': tmp_path}.items():
        pattern = pattern.replace(f'{{{name}}}', re.escape(str(path)))
    assert code == 1 and err.count('\n') == 1 and err.endswith('\n'), (code, out, err)
    assert err.startswith(f'{row.program}: ') and re.search(pattern, err), (pattern, err)
    assert 'Traceback' not in out and '\x1b' not in err


def test_a_wrong_path_is_told_before_tensorflow_is_imported(places, tmp_path):
    rows = [row for row in ROWS if PATHS.search(text := f'{row.program} {row.args}') and not LATE.search(text)]
    assert {row.program for row in rows} | {'bounding_boxes'} == PROGRAMS.keys()  # which has no flags
    lines = [f'{PROGRAMS[row.program].base} {row.args}'.format_map({**places, 'new': tmp_path}) for row in rows]
    calls = [[row.program, line.split()] for row, line in zip(rows, lines, strict=True)]
    command = [sys.executable, '-m', 'fixtures.early_answers', json.dumps(calls)]
    answers = programs.run(command, cwd=TESTS.parent, env=os.environ | {'PYTHONPATH': str(TESTS)})
    assert answers.code == 0, answers.err
    answers = zip(rows, map(json.loads, answers.out.splitlines()), strict=True)
    wrong = [(row, *answer) for row, answer in answers if answer[:2] != [1, []] or 'network  ' in answer[2]]
    assert wrong == [], '\n'.join(f'{line[:4]}' for line in wrong)


@pytest.mark.parametrize('program', PROGRAMS)
def test_every_flag_has_a_wrong_value_in_the_table_or_cannot_be_wrong(program):
    values = PROGRAMS[program].define_flags()
    typed = re.findall(r'(?<!\S)-+(\w+)', ' '.join(row.args for row in ROWS if row.program == program))
    used = {values[name].name for name in typed if name in values}
    assert canonical(values).keys() - used - FREE_TEXT == set()
    assert not used & FREE_TEXT - {*flags.OBSOLETE_SWITCHES}


def test_every_program_is_in_the_table():
    benchmarks = pathlib.Path(build.__file__).parent
    folders = (PACKAGE.glob('*_main.py'), PACKAGE.glob('experiments/*_main.py'), data_commands.FOLDER.glob('*.py'))
    files = [*itertools.chain(*folders), *benchmarks.glob('*.py')]
    found = {path.stem for path in files if "if __name__ == '__main__':" in path.read_text(encoding='utf-8')}
    assert {row.program for row in ROWS} == PROGRAMS.keys()
    assert found - ELSEWHERE.keys() | {'cifar10_download_and_extract', 'read_ckpt'} == PROGRAMS.keys()


@pytest.mark.parametrize('program', [*TRAINING, *EXPERIMENTS, 'predict_main'])
def test_every_number_is_finite_and_has_bounds(program):
    """Where TensorFlow counts in 32 or 64 bits, a larger number would end in its traceback."""
    for flag in canonical(PROGRAMS[program].define_flags()).values():
        if isinstance(flag.parser, absl_flags.IntegerParser) and program != 'predict_main':
            assert flag.parser.lower_bound is not None and flag.parser.upper_bound is not None, flag.name
        if isinstance(flag.parser, absl_flags.FloatParser):
            assert isinstance(flag.parser, Number) and flag.parser.lower_bound is not None, flag.name


# --- what any program may meet -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'error,pattern',
    [
        (UserError('Löwe, 獅子\r\nb \x1b[2J\a\x7f\u202e\udcff\t'), r'Löwe, 獅子 b \?\[2J\?{5}'),
        (FileNotFoundError(2, 'No such file', 'a\nb'), 'No such file.*same command again'),
        (MemoryError(), '--batch_size'),
        (tf.errors.ResourceExhaustedError(None, None, 'OOM at [9]\nmore'), r'OOM at \[9\].*--batch_size'),
    ],
)
def test_what_ends_a_program_is_one_line(error, pattern, capsys):
    def body(values):
        raise error

    assert run_program(['x.py'], '', absl_flags.FlagValues(), body) == 1
    out, err = capsys.readouterr()
    assert out == '' and re.fullmatch(f'x: .*{pattern}.*\n', err) and 'more' not in err.replace('no more', '')


def test_a_path_that_is_no_text_can_be_printed(capfdbinary):
    """Linux has such paths; Python reads their bytes as lone surrogates, which no encoding writes."""
    assert run_program(['x.py'], '', absl_flags.FlagValues(), lambda values: print('/tmp/\udcff')) == 0
    assert capfdbinary.readouterr() == (b'/tmp/\\udcff\n', b'')


@pytest.mark.parametrize('content', ['', '{', '[]', '{"nets": NaN', b'\xff'.decode('latin-1')])
def test_a_damaged_result_of_an_experiment(content, call, tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # so that the program itself makes settings.json
        patch.setattr('official_resnet.experiments.runs.train_nets', lambda *args: {})
        with pytest.raises(KeyError):
            call('degradation_main')
    path = tmp_path / 'out' / 'runs' / 'plain-8' / 'result.json'
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding='latin-1')
    code, _, err = call('degradation_main')
    assert code == 1 and err.count('\n') == 1 and f"{path}'" in err and 'delete' in err, err
