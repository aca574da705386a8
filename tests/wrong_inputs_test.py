"""Everything that a user can get wrong, program by program: one line with the value and the remedy, code 1.

ROWS is the table; tables of single programs (mains_test, mnist_main_test, read_ckpt_test, ...) have more. What a flag's
type refuses is added to it for every flag of every program, so that a new flag is in the table at once.
"""

import collections
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from fixtures import data_commands, ilsvrc, imagenet_shards
from PIL import Image

import official_resnet
import official_resnet.building
from benchmarks import build, speed
from checkpoints_tools import read_ckpt
from official_resnet import (
    cifar10_download_and_extract,
    cifar10_main,
    cifar100_main,
    imagenet_main,
    mnist_main,
    predict_main,
    resnet_model,
    resnet_spec,
)
from official_resnet.building import downloads
from official_resnet.command_line import flags, train_program
from official_resnet.command_line.flags import Number
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError
from official_resnet.experiments import (
    degradation_main,
    experiment_program,
    gradient_flow_main,
    shortcuts_main,
    transfer_main,
)
from official_resnet.inference import model_card
from official_resnet.inputs import writers
from official_resnet.training import devices

PACKAGE = pathlib.Path(official_resnet.__file__).parent
Program = collections.namedtuple('Program', 'define_flags main base')  # base: arguments that are right
Row = collections.namedtuple('Row', 'program args message')
HUGE = '999999999999999999999'


def experiment(module, body, *base):
    return Program(
        module.define_flags,
        lambda argv: experiment_program.run_experiment(argv, module.__doc__, module.define_flags(), body),
        ['--data_dir={cifar}', '--nodownload', '--output_dir={new}/out', '--num_train_images=60', '-bs=20', *base],
    )


def plain(module, body, *base, start=run_program):
    return Program(
        module.define_flags,
        lambda argv: start(argv, module.__doc__, module.define_flags(), body),
        list(base),
    )


def data_command(name, *base):
    module = data_commands.load(name)
    return Program(getattr(module, 'define_flags', absl_flags.FlagValues), module.main, list(base))


def training(main, *base):
    return Program(
        lambda: flags.define(main.PROGRAM),
        lambda argv: train_program.main(argv, '', main.PROGRAM),
        [*base, '--model_dir={new}/model', '--nodownload', '-bs=16', '-te=1'],
    )


SHARDS = ['--train_shards=2', '--validation_shards=2', '--num_threads=1']
LISTS = ['--labels_file={ilsvrc}/imagenet_lsvrc_2015_synsets.txt']
DIRECTORIES = ['--train_directory={raw}/train', '--validation_directory={raw}/validation', '--output_directory={new}']
PROGRAMS = {
    'cifar10_main': training(cifar10_main, '--data_dir={cifar}', '-rs=8', '--shortcut=A'),
    'cifar100_main': training(cifar100_main, '--data_dir={cifar100}', '-rs=8', '--shortcut=A'),
    'mnist_main': training(mnist_main, '--data_dir={mnist}'),
    'imagenet_main': training(imagenet_main, '--data_dir={shards}', '-rs=18', '--image_size=32'),
    'cifar10_download_and_extract': Program(
        cifar10_download_and_extract.define_flags,
        cifar10_download_and_extract.main,
        ['--data_dir={new}', '--url={refused}'],
    ),
    'predict_main': Program(predict_main.define_flags, predict_main.main, ['--model={net}', '{picture}']),
    'speed': plain(speed, speed.run_benchmark, '--measure=jpeg', '--image_folder={empty}'),
    'degradation_main': experiment(degradation_main, degradation_main.run_degradation, '--depths=8'),
    'shortcuts_main': experiment(shortcuts_main, shortcuts_main.run_shortcuts, '--rows=original', '-rs=8'),
    'gradient_flow_main': Program(
        gradient_flow_main.define_flags,
        lambda argv: experiment_program.run_experiment(
            argv, '', gradient_flow_main.define_flags(), gradient_flow_main.run_gradient_flow
        ),
        ['--data_dir={cifar}', '--nodownload', '--output_dir={new}/out', '--depths=8', '-bs=20'],
    ),
    'transfer_main': plain(
        transfer_main,
        transfer_main.run_transfer,
        '--image_folder={raw}/train',
        '--output_dir={new}/out',
        '-rs=8',
        '--images_per_class=2',
        start=experiment_program.run_experiment,
    ),
    'read_ckpt': Program(read_ckpt.define_flags, read_ckpt.main, ['--input={text}', '--output={new}/net.keras']),
    'download_and_preprocess_imagenet': data_command(
        'download_and_preprocess_imagenet', '--data_dir={ilsvrc}', *LISTS, *SHARDS
    ),
    'build_imagenet_data': data_command('build_imagenet_data', *DIRECTORIES, *LISTS, *SHARDS),
    'build_image_data': data_command('build_image_data', *DIRECTORIES, *SHARDS),
    'bounding_boxes': data_command('bounding_boxes'),
    'build_imagenet_data_beam': data_command(
        'build_imagenet_data_beam',
        '--train_tar={ilsvrc}/ILSVRC2012_img_train.tar',
        '--output_directory={new}',
        *LISTS,
    ),
    'build': plain(build, build.run_build, '--images={text}'),
}
CIFAR = ('cifar10_main', 'cifar100_main')
TRAIN = (*CIFAR, 'mnist_main', 'imagenet_main')
CURVES = ('degradation_main', 'shortcuts_main')
EXPERIMENTS = (*CURVES, 'gradient_flow_main')
BUILDERS = ('build_imagenet_data', 'build_image_data')
FREE_TEXT = {'benchmark_test_id', *(name for name, _, _ in flags.OBSOLETE)}  # stored as it is, or ignored
ELSEWHERE = {
    'scaling': 'benchmarks/scaling_test',
    'measuring': 'a process of the benchmarks, without flags',
}
NOT_THERE = {  # what a program says of a data set that is missing and may not be fetched
    'cifar10_main': r"'{absent}' does not exist; run cifar10_download_and_extract.py --data_dir {absent} or pass anot",
    'cifar100_main': r"{absent}' does not exist; run cifar10_download_and_extract.py --dataset=cifar100 --data_dir",
    'mnist_main': r"'{absent}' does not exist; run mnist_main.py --data_dir",
    'imagenet_main': r"'{absent}' does not exist; pass the folder of .*-00000-of-..., or build them with data/",
}


def rows():
    """Yield the explicit part of the table: (programs, arguments after those of Program.base, pattern)."""
    yield from _rows_of_training()
    yield from _rows_of_data()
    yield from _rows_of_other_programs()
    yield from _rows_of_tools()


def _rows_of_training():
    path = '--pretrained_model_checkpoint_path'
    yield TRAIN, ['--clean', '--model_dir={raw}'], '--clean: {raw} holds no checkpoints .*delete it by hand'
    yield TRAIN, ['--model_dir={text}'], "model_dir '{text}'.*pass another --model_dir"
    yield TRAIN, ['--model_dir={text}/x'], "model_dir '{text}/x'.*pass another --model_dir"
    yield TRAIN, ['--model_dir='], '--model_dir= is empty; pass a path'
    yield TRAIN, ['--eval_only', '--model_dir={empty}'], "model_dir '{empty}' has no checkpoint; train there first, or"
    yield TRAIN, ['--eval_only', '--model_dir={damaged}'], 'no checkpoint in {damaged}/checkpoints can be read; delete'
    yield TRAIN, ['--batch_size=999'], '--batch_size=999 with .* pass --batch_size=1'
    yield TRAIN, ['--num_train_images=999999'], '--num_train_images=999999 of the .* pass 1..'
    yield TRAIN, ['--num_gpus=2'], r'num_gpus=2, but TensorFlow sees 0; lower --num_gpus, or pip install'
    yield TRAIN, ['--benchmark_logger_type=BenchmarkFileLogger'], 'BenchmarkFileLogger needs --benchmark_log_dir'
    yield TRAIN, ['--export_dir={text}/x'], "cannot make export_dir '{text}/x': '{text}' is a file; pass another --ex"
    file_logger = '--benchmark_logger_type=BenchmarkFileLogger'
    yield TRAIN, [file_logger, '--benchmark_log_dir={text}'], "'{text}'; mend that and run the same command again"
    yield TRAIN, ['--hooks=LoggingTensorHook,Fish'], '--hooks=Fish must be of LoggingTensorHook, '
    yield TRAIN, ['--loss_scale=inf'], "loss_scale=inf: pass a number above 0, or 'dynamic'"
    yield TRAIN, ['--profile_steps=²,³'], "profile_steps=²,³: pass 'first,last', as 10,20"
    yield TRAIN, ['--lr_boundaries=nan'], "--lr_boundaries=nan: 'nan' is no comma list of numbers"
    yield (
        TRAIN,
        ['--lr_boundaries=2,1', '--lr_factors=1,1,1', '--lr_schedule=piecewise'],
        '--lr_boundaries=2,1 must rise',
    )
    yield TRAIN, ['--lr_factors=1,inf'], "--lr_factors=1,inf: '1,inf' is no comma list of numbers"
    yield TRAIN, ['--tfds=no_such_set'], "tfds data set 'no_such_set'.*See tensorflow.org/datasets/catalog"
    yield (
        TRAIN,
        ['--tfds=mnist', '--use_synthetic_data'],
        '--tfds and --use_synthetic_data exclude each other; pass one',
    )
    yield TRAIN, ['--image_folder={absent}'], "image_folder '{absent}' is no folder; pass one that has a subfolder"
    yield TRAIN, ['--image_folder={empty}'], "'{empty}' has no subfolders; put the .* of each class into one"
    yield TRAIN, ['--image_folder={one}'], "'{one}' has one class only, 'cat'; add a subfolder for another"
    yield TRAIN, ['--image_folder={hollow}'], "class folder '{hollow}/.*' has no image .*add some, or remove it"
    yield TRAIN, ['--validation_fraction=0.2'], '--validation_fraction needs --image_folder; pass that'
    yield TRAIN, [f'{path}={{absent}}'], '{absent}.*pass'
    yield TRAIN, [f'{path}={{text}}'], 'cannot load {text}.*pass a model_dir or a .keras file'
    yield TRAIN, [f'{path}={{new}}', '--model_dir={new}'], 'is in --model_dir=.*pass another --model_dir'
    yield TRAIN, ['--transfer=last'], f'--transfer needs {path}; pass that'
    yield TRAIN, ['--fine_tune'], f'--fine_tune needs {path}; pass that'
    yield TRAIN, ['--head=append'], f'--head needs {path}; pass that'
    yield TRAIN, ['--train_last_groups=2'], '--train_last_groups needs --transfer=last; pass that too'
    yield TRAIN, ['--backbone_learning_rate_factor=2'], f'--backbone_learning_rate_factor needs {path}; pass that'
    yield TRAIN, ['--task_index=0'], '--task_index needs --worker_hosts; pass that too'
    yield TRAIN, ['--worker_hosts=a:1,b:1'], '--worker_hosts needs --task_index; pass that too'
    yield TRAIN, ['--worker_hosts=a,b', '--task_index=0'], "worker_hosts has 'a', which is no host:port; pass as host1"
    yield TRAIN, ['--local_workers=9999'], r'local_workers=9999, but there are \d+ cores; pass \d+ or fewer'
    yield TRAIN, ['stray'], "unexpected argument 'stray'"
    yield TRAIN, ['--no_such_flag=1'], 'there is no flag --no_such_flag'
    yield TRAIN, ['--model_dir'], 'model_dir'  # its value is missing
    yield TRAIN, ['--flagfile={absent}'], "Unable to open flagfile: .*'{absent}'"
    yield TRAIN, ['--flagfile={bytes}'], "can't decode byte 0xff"
    yield (*CIFAR, 'mnist_main'), ['--image_size=64'], '--image_size needs --image_folder; pass that'
    yield (*CIFAR, 'mnist_main'), ['--image_bytes_as_serving_input'], 'is for ImageNet; small images are exported as'
    yield CIFAR, ['--resnet_size=21'], r'resnet_size=21 is not 6n\+2; the nearest are 20 and 26'
    yield 'mnist_main', ['--weight_decay=1e-4'], 'pass --weight_decay=0, or --optimizer=momentum'
    yield 'mnist_main', ['--dataset=fashion_mnist'], '; run mnist_main.py --dataset=fashion_mnist --data_dir {mnist} or'
    yield 'imagenet_main', ['--resnet_size=20'], 'resnet_size=20 .*18, 34, 50, 101, 152, 200'
    yield 'imagenet_main', ['--min_crop_area=0'], '--min_crop_area=0.0 must be above 0'
    yield 'imagenet_main', ['--eval_report={new}'], '--eval_report needs --eval_only; pass that too'
    yield 'imagenet_main', ['--ten_crop'], '--ten_crop needs --eval_only; pass that too'


def _rows_of_data():
    for program, pattern in NOT_THERE.items():
        yield program, ['--data_dir={absent}'], pattern
    yield CURVES, ['--data_dir={absent}'], NOT_THERE['cifar10_main']
    yield 'gradient_flow_main', ['--data_dir={absent}'], NOT_THERE['cifar10_main']
    yield TRAIN, ['--tfds=mnist', '--data_dir={new}'], 'is not prepared in .*; allow the download, or pass its data_dir'
    yield (*TRAIN, *EXPERIMENTS), ['--data_dir={text}'], "data_dir '{text}' is not a folder; pass the folder of"
    yield ('cifar10_main', *EXPERIMENTS), ['--data_dir={empty}'], 'has no cifar-10-batches-bin; run cifar10_download_'
    yield 'cifar100_main', ['--data_dir={empty}'], "data_dir '{empty}' has no cifar-100-binary; run cifar10_download_"
    yield 'mnist_main', ['--data_dir={empty}'], "'{empty}' has no mnist; run mnist_main.py --data_dir {empty} or pass"
    yield 'imagenet_main', ['--data_dir={empty}'], "'{empty}' has no .*-00000-of-...; build them with data/"
    yield 'cifar100_main', ['--data_dir={cifar100_cut}'], "t.*.bin' has .* is cut off .*; delete it and run cifar10"
    yield 'cifar100_main', ['--data_dir={cifar100_label}'], "t.*.bin' has label 100 .* outside 0..99; delete it and"
    yield 'imagenet_main', ['--data_dir={shards_lost}'], 'lacks 1 of 4 train shards, .* 00001; build them with data'
    yield 'imagenet_main', ['--data_dir={shards_cut}'], "train-00001-of-00004' is cut off inside .*; build the file ag"
    yield 'imagenet_main', ['--data_dir={shards_text}'], "train-00001-of-00004' is damaged or no TFRecord .*; build the"
    yield 'imagenet_main', ['--data_dir={shards_list}'], "manifest of train in '{shards_list}' is damaged .*"


def _rows_of_other_programs():
    fetch, predict = 'cifar10_download_and_extract', 'predict_main'
    again = 'cifar10_download_and_extract.py another --url or a local --archive'
    yield fetch, [], f'cannot download {{refused}} .*: check the network and run the same command again, or .* {again}'
    yield fetch, ['--url=ftp://127.0.0.1/x'], f"'ftp://127.0.0.1/x' is not an http or https address.*, or pass {again}"
    yield fetch, ['--url=http://[::1/x'], r"'http://\[::1/x' is not an http or https address.*correct it"
    yield fetch, ['--url=http://127.0.0.1/é'], "'http://127.0.0.1/é' is not an http .*in ASCII: correct it"
    yield fetch, ['--md5=beef'], '--md5=beef must be 32 hexadecimal digits'
    yield fetch, ['--data_dir={text}'], "data_dir '{text}' is a file: pass a folder"
    yield fetch, ['--archive={text}'], '--archive and --url exclude each other'
    yield fetch, ['--url=', '--archive=file://[x'], "archive 'file://.x' .*exclude|--archive and --url exclude each"
    yield predict, ['--model={absent}'], "'{absent}' is no .keras file and no model_dir; pass one of them"
    yield predict, ['--model='], '--model=: pass a .keras file or a model_dir'
    yield predict, ['--model={no_card}/model.keras'], 'card.json. does not exist; .*; train or convert the net again'
    yield predict, ['--model={bad_card}'], 'the card {bad_card}/model.card.json is no JSON object; train or convert the'
    yield predict, ['--model={odd_card}'], 'model.card.json has .*; train or convert the net again'
    yield predict, ['--model={cut_net}'], 'cannot load {cut_net}/model.keras.*; pass a .keras model of ours'
    yield predict, ['--labels={text}'], "'{text}' has 1 lines, the net 3 classes; pass a file with the name"
    yield predict, ['--labels={bytes}'], "'{bytes}'.* is no text in UTF-8; pass a file with the name"
    yield predict, ['--labels={absent}'], "'{absent}': No such file or directory; pass a file with the name of a cla"
    yield predict, ['--explain', '--explain_class=-1'], "'-1' is no class of the net; pass its number, 0..2, or its n"
    yield predict, ['--explain_class=1'], '--explain_class belongs to --explain; pass that, too'
    yield predict, ['--explain', '--output_dir={text}'], "cannot write output_dir '{text}'.* pass another --output_dir"
    yield 'speed', [], "image_folder '{empty}' has no JPEG files .*; pass --image_folder"
    yield 'speed', ['--image_folder='], 'image_folder .* has no JPEG files .*; pass --image_folder'
    yield 'speed', ['--image_folder={text}'], "image_folder '{text}' has no JPEG files .*; pass --image_folder"
    yield 'speed', ['--resnet_size=33'], 'resnet_size=33: must be 6n.2'
    yield 'speed', ['--output_json={absent}/x'], '{absent}/x. is no file in a folder that is there; pass anoth'
    yield EXPERIMENTS, ['--output_dir={text}'], "cannot write output_dir '{text}': File exists; .* pass another --outp"
    yield EXPERIMENTS, ['--output_dir={other_experiment}'], 'runs|holds an experiment with .*; pass the same flags or'
    yield EXPERIMENTS, ['--output_dir={bad_experiment}'], "settings.json' is damaged.*; delete it and run the same c"
    yield ('degradation_main', 'gradient_flow_main'), ['--depths=20,²0'], r"'²0'\]: must be a comma list of numbers"
    yield ('degradation_main', 'gradient_flow_main'), [f'--depths={HUGE}'], 'must be a comma list of numbers 6n.2'
    yield CURVES, ['--num_train_images=999999'], '--num_train_images=999999 of the 120 training images .* pass 1..120'
    yield 'shortcuts_main', ['--rows=original,none'], 'must be a comma list of original, scaled_shortcut'
    yield 'shortcuts_main', ['-rs=9'], 'resnet_size=9: must be 6n.2: 8, 14'
    yield 'gradient_flow_main', ['--activations=tanh'], "'tanh'.*must be a comma list of sigmoid, relu"
    yield 'transfer_main', ['--image_folder={absent}'], "image_folder '{absent}' is no folder; pass one that has"
    yield 'transfer_main', ['--image_folder={one}'], "has one class only, 'cat'; add a subfolder for another"
    yield 'transfer_main', ['--images_per_class=99'], 'images, not 99; lower --images_per_class or --source_images'
    yield 'transfer_main', ['--source_images=99'], 'images, not 99; lower --images_per_class or --source_images'
    yield 'transfer_main', ['--output_dir={text}'], "cannot write output_dir '{text}': File exists; .* pass another"
    yield 'transfer_main', ['--ways=all,none'], 'must be a comma list of scratch, all, all_slow'
    yield 'transfer_main', ['-rs=21'], r'resnet_size=21 is not 6n\+2; the nearest are 20 and 26'


def _rows_of_tools():
    yield 'read_ckpt', [], '{text} is no checkpoint of torch, .*; if it is, say which by --source'
    yield 'read_ckpt', ['--input={absent}'], 'there is no {absent}; pass a checkpoint, of TensorFlow its'
    yield 'read_ckpt', ['--input='], 'pass --list PATH, or --input PATH and --output PATH'
    yield 'read_ckpt', ['--list={text}'], 'pass --list PATH, or --input PATH and --output PATH'
    yield 'read_ckpt', ['--output={new}/net.h5'], 'net.h5 does not end in .keras; name it so'
    yield 'read_ckpt', ['--to=torch', '--output={new}/net.pth'], r'net.pth does not end in .safetensors; name it so'
    yield 'read_ckpt', ['--input={bytes}', '--variant=resnet50_v9'], '{bytes} is no checkpoint of .*by --source'
    for family in read_ckpt.FAMILIES:
        yield 'read_ckpt', [f'--source={family}'], '{text}'
        yield 'read_ckpt', [f'--source={family}', '--input={empty}'], '{empty}'
    whole = 'download_and_preprocess_imagenet'
    yield whole, ['--data_dir='], 'DATA_DIR is missing; pass a folder'
    yield whole, ['--data_dir={text}'], "DATA_DIR '{text}' is a file; pass a folder"
    yield whole, ['--data_dir={new}'], "'{new}' lacks ILSVRC2012_img_val.tar.*; put it there, or set IMAGENET_USER"
    yield whole, ['--data_dir={new}', '--url=nonsense'], "'nonsense/.*' is not an http or https address.*: correct it"
    yield whole, ['--data_dir={new}', '--url=http://[x'], 'is not an http or https address in ASCII: correct it, or'
    yield whole, ['--labels_file={absent}'], "labels_file '{absent}' cannot be read .*; pass another"
    yield whole, ['--labels_file={bytes}'], "labels_file '{bytes}' cannot be read .not UTF-8.; pass another"
    yield (
        whole,
        ['--labels_file={text}'],
        'has no image in ILSVRC2012_val_<number>.JPEG of a listed synset.*; pass ILSVRC2012_i',
    )
    yield whole, ['--metadata_file={text}'], "'{text}' has no tabulator in line 1; write 'class TAB text'"
    yield whole, ['--validation_labels_file={text}'], "'{text}' has 'one' in line 1, no synset as n01440764; put"
    yield 'build_imagenet_data', ['--imagenet_metadata_file={text}'], "has no tabulator in line 1; write 'class TAB te"
    yield 'build_imagenet_data', ['--bounding_box_file={text}'], "'{text}': .*; make it by data/bounding_boxes.py, or"
    yield 'build_imagenet_data', ['--bounding_box_file={bytes}'], "'{bytes}': .*; make it by data/bounding_boxes.py, or"
    yield BUILDERS, ['--labels_file={absent}'], "labels_file '{absent}' cannot be read .*; pass another"
    yield BUILDERS, ['--labels_file={nul}'], "labels_file '{nul}' has a NUL byte in .*; write a class a line"
    yield BUILDERS, ['--labels_file={twice}'], "labels_file '{twice}' has 'cat' 2 times; keep one of them"
    yield BUILDERS, ['--output_directory={text}'], "cannot write '{text}.*pass another --output_directory"
    yield BUILDERS, ['--output_directory={shards}'], 'is of a build of other images or options; give those again, or'
    yield BUILDERS, ['--output_directory={strangers}'], "is there already, without '.*manifest.json'.*; move it, or pa"
    yield BUILDERS, ['--train_directory={absent}'], "'{absent}.*' cannot be read .*; (make it, pass|pass a folder)"
    yield BUILDERS, ['--validation_directory={absent}'], "'{absent}/.*' cannot be read .*; make it, pass another folder"
    yield 'build_image_data', ['--train_directory={empty}'], "'{empty}' has no folders; put the images of each class"
    yield 'bounding_boxes', [], 'bounding_boxes: pass the tar file or folder of boxes, and perhaps SYNSETS'
    yield 'bounding_boxes', ['--x'], 'there is no flag --x'
    yield 'bounding_boxes', ['{text}', '{text}', 'more'], "unexpected argument 'more'; pass the tar file or folder"
    yield 'bounding_boxes', ['{empty}', '{absent}'], "SYNSETS '{absent}' cannot be read .*; pass another"
    yield 'bounding_boxes', ['{absent}'], "'{absent}' does not exist; pass ILSVRC2012_bbox_train_v2.tar.gz, or"
    yield 'bounding_boxes', ['{text}'], "'{text}' is damaged or no tar file: .*; get it again"
    yield 'bounding_boxes', ['{empty}'], "'{empty}' has no <synset>/<image>.xml; pass ILSVRC2012_bbox_train_v2.tar"
    yield 'bounding_boxes', ['{ilsvrc}/ILSVRC2012_bbox_train_v2.tar.gz', '{bytes}'], "'{bytes}' cannot be read .*; pass"
    beam = 'build_imagenet_data_beam'
    yield beam, ['--output_directory='], '--output_directory=: pass where the shards go'
    yield beam, ['--train_tar='], 'pass --train_tar, --validation_tar or both'
    yield beam, ['--validation_tar={text}'], '--validation_tar and --validation_labels_file go together'
    yield beam, ['--validation_labels_file={text}'], '--validation_tar and --validation_labels_file go together'
    yield beam, ['--labels_file={absent}'], "labels_file '{absent}' cannot be read .*; pass another"
    yield beam, ['--metadata_file={text}'], "'{text}' has no tabulator in line 1; write 'class TAB text'"
    yield beam, ['--bounding_box_file={text}'], "'{text}' is damaged or no tar file: .*; get it again"
    yield beam, ['stray'], "unexpected argument 'stray'; --help lists the flags"
    yield 'build', [], "--images '{text}' cannot be read .*; pass a tar file or folder of JPEGs"
    yield 'build', ['--images='], '--images is missing; pass a tar file or folder of JPEGs'
    yield 'build', ['--images={empty}'], "'{empty}' has no colour JPEG; pass another"
    yield 'build', ['--images={raw}', '--folder={absent}'], "'{absent}/.*mend that and run the same comman"


def values_of_wrong_type(flag):
    """Return [(value, pattern)] that the type of a flag refuses."""
    name, parser = flag.name, flag.parser
    if isinstance(flag, absl_flags.BooleanFlag):
        return [('maybe', f'--{name}=maybe: .*boolean')]
    if hasattr(parser, 'enum_values'):
        return [('no_such', rf'--{name}=no_such: value should be one of <{re.escape("|".join(parser.enum_values))}>')]
    if not isinstance(parser, absl_flags.FloatParser | absl_flags.IntegerParser):
        return []
    wrong = ['x', *(['nan', 'inf'] if isinstance(parser, absl_flags.FloatParser) else ['1.5'])]
    wrong += [str(parser.lower_bound - 1)] if parser.lower_bound is not None else []
    wrong += [str(parser.upper_bound + 1)] if parser.upper_bound is not None else []
    return [(value, rf'--{name}={re.escape(value)}: .*{re.escape(value)}') for value in wrong]


def canonical(values):
    """Return {name: Flag}, each once."""
    return {name: values[name] for name in values if values[name].name == name}


def table():
    for programs, args, pattern in rows():
        for program in (programs,) if isinstance(programs, str) else programs:
            yield Row(program, args, pattern)
    for program, (define_flags, _, _) in PROGRAMS.items():
        for name, flag in canonical(define_flags()).items():
            for value, pattern in values_of_wrong_type(flag):
                yield Row(program, [f'--{name}={value}'], pattern)


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
    made('picture')
    Image.new('RGB', (20, 20)).save(folder / 'picture', 'PNG')
    for path in (made('one') / 'cat', made('hollow') / 'cat', found['hollow'] / 'dog'):
        path.mkdir(parents=True)
    shutil.copy(folder / 'picture', found['one'] / 'cat' / '1.png')
    (made('damaged') / 'checkpoints').mkdir(parents=True)
    (found['damaged'] / 'checkpoints' / 'step-000000001.npz').write_bytes(b'PK')
    _make_cifar100(made)
    _make_shards(made)
    _make_nets(made)
    _make_ilsvrc(made)
    for name, content in (('other_experiment', '{"dataset": "mine"}'), ('bad_experiment', '{"dataset"')):
        (made(name) / 'runs' / 'plain-20').mkdir(parents=True)
        (found[name] / 'settings.json').write_text(content)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        found['refused'] = f'http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz'
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


def _make_nets(made):
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
    layout, raw = ilsvrc.make(made('ilsvrc')), made('raw')
    for split, pictures, synsets in (
        ('train', layout.train, [name[:9] for name in layout.train]),
        ('validation', layout.validation, layout.validation_synsets),
    ):
        for (name, data), synset in zip(pictures.items(), synsets, strict=True):
            (raw / split / synset).mkdir(parents=True, exist_ok=True)
            (raw / split / synset / name).write_bytes(data)


@pytest.fixture
def network(monkeypatch):
    """Refuse every connection but to this machine; return the list of the others that were tried."""
    tried, real = (
        [],
        {'connect': socket.socket.connect, 'connect_ex': socket.socket.connect_ex, 'getaddrinfo': socket.getaddrinfo},
    )

    def is_here(host):
        return host is None or str(host) in ('localhost', '::1') or str(host).startswith('127.')

    def guarded(name):
        def connect(self, address):
            if isinstance(address, tuple) and not is_here(address[0]):
                tried.append(address)
                raise OSError('no network in this test')
            return real[name](self, address)

        return connect

    def getaddrinfo(host, *args, **options):
        if not is_here(host):
            tried.append(host)
            raise socket.gaierror('no network in this test')
        return real['getaddrinfo'](host, *args, **options)

    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
    return tried


def test_the_guard_of_the_network_works(network):
    with pytest.raises(OSError, match='no network'):
        socket.create_connection(('192.0.2.1', 80), timeout=1)  # of RFC 5737: nobody's
    with socket.socket() as one, pytest.raises(OSError, match='no network'):
        one.connect(('192.0.2.1', 80))
    assert network == ['192.0.2.1', ('192.0.2.1', 80)]


@pytest.fixture
def call(monkeypatch, capfd, network):
    """Run a program in this process, which has TensorFlow already; return (code, standard output, standard error)."""

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

    def run_here(program, args):
        capfd.readouterr()
        try:
            code = PROGRAMS[program].main([f'{program}.py', *map(str, args)])
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    yield run_here
    sys.stdin.close()
    assert network == []


@pytest.mark.parametrize('row', ROWS, ids=[f'{row.program} {" ".join(row.args)}' for row in ROWS])
def test_a_mistake_is_one_line_and_exit_code_1(row, places, call, tmp_path):
    named = {**places, 'new': tmp_path}
    args = [argument.format_map(named) for argument in (*PROGRAMS[row.program].base, *row.args)]
    code, out, err = call(row.program, args)
    pattern = row.message
    for name, path in named.items():
        pattern = pattern.replace(f'{{{name}}}', re.escape(str(path)))
    assert code == 1 and err.count('\n') == 1 and err.endswith('\n'), (code, out, err)
    assert err.startswith(f'{row.program}: ') and re.search(pattern, err), (pattern, err)
    assert 'Traceback' not in out and '\x1b' not in err


@pytest.mark.parametrize('program', PROGRAMS)
def test_every_flag_has_a_wrong_value_in_the_table_or_cannot_be_wrong(program):
    values = PROGRAMS[program].define_flags()
    used = {
        values[name].name
        for row in ROWS
        if row.program == program
        for argument in row.args
        for name in [argument.partition('=')[0].lstrip('-')]
        if argument.startswith('-') and name in values
    }
    assert canonical(values).keys() - used - FREE_TEXT == set()
    assert not used & FREE_TEXT - {'multi_gpu', 'use_train_and_evaluate', 'tf_data_experimental_slack'}  # switches


def test_every_program_is_in_the_table():
    benchmarks = pathlib.Path(build.__file__).parent
    folders = (PACKAGE.glob('*_main.py'), PACKAGE.glob('experiments/*_main.py'), data_commands.FOLDER.glob('*.py'))
    files = [*itertools.chain(*folders), *benchmarks.glob('*.py')]
    programs = {path.stem for path in files if "if __name__ == '__main__':" in path.read_text(encoding='utf-8')}
    assert programs - ELSEWHERE.keys() | {'cifar10_download_and_extract', 'read_ckpt'} == PROGRAMS.keys()


@pytest.mark.parametrize('program', [*TRAIN, *CURVES, 'gradient_flow_main', 'transfer_main', 'predict_main'])
def test_every_number_is_finite_and_has_bounds(program):
    """Where TensorFlow counts in 32 or 64 bits, a larger number would end in its traceback."""
    for flag in canonical(PROGRAMS[program].define_flags()).values():
        if isinstance(flag.parser, absl_flags.IntegerParser) and program != 'predict_main':
            assert flag.parser.lower_bound is not None and flag.parser.upper_bound is not None, flag.name
        if isinstance(flag.parser, absl_flags.FloatParser):
            assert isinstance(flag.parser, Number) and flag.parser.lower_bound is not None, flag.name


# What any program may meet.


@pytest.mark.parametrize(
    'error, line',
    [
        (UserError('a\nb \x1b[31m\udcff'), 'x: a b ?[31m?\n'),
        (
            FileNotFoundError(2, 'No such file', 'a\nb'),
            "x: [Errno 2] No such file: 'a\\nb'; mend that and run the same command again\n",
        ),
        (MemoryError(), 'x: the memory is too small (no more is free); lower what takes it, as --batch_size\n'),
        (
            tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating [9]\nmore'),
            'x: the memory is too small (OOM when allocating [9]); lower what takes it, as --batch_size\n',
        ),
    ],
)
def test_what_ends_a_program_is_one_line(error, line, capsys):
    def body(values):
        raise error

    assert run_program(['x.py'], '', absl_flags.FlagValues(), body) == 1
    assert capsys.readouterr() == ('', line)


def test_a_path_that_is_no_text_can_be_printed(capfdbinary):
    """Linux has such paths; Python reads their bytes as lone surrogates, which no encoding writes."""
    assert run_program(['x.py'], '', absl_flags.FlagValues(), lambda values: print('/tmp/\udcff')) == 0
    assert capfdbinary.readouterr() == (b'/tmp/\\udcff\n', b'')


@pytest.mark.parametrize('content', ['', '{', '[]', '{"nets": NaN', b'\xff'.decode('latin-1')])
@pytest.mark.parametrize('file', ['settings.json', 'runs/plain-8/result.json'])
def test_a_damaged_result_of_an_experiment(file, content, places, call, tmp_path):
    base = [argument.format_map({**places, 'new': tmp_path}) for argument in PROGRAMS['degradation_main'].base]
    (tmp_path / 'out' / 'runs' / 'plain-8').mkdir(parents=True)
    if file != 'settings.json':  # made by the program itself
        shutil.rmtree(tmp_path / 'out' / 'runs')
        spoil = tmp_path / 'out' / file
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('official_resnet.experiments.runs.train_nets', lambda *args: {})
            with pytest.raises(KeyError):
                call('degradation_main', base)
        spoil.parent.mkdir(parents=True)
    (tmp_path / 'out' / file).write_text(content, encoding='latin-1')
    code, _, err = call('degradation_main', base)
    assert code == 1 and err.count('\n') == 1, err
    assert f"{file}' is damaged" in err and 'delete it and run the same command again' in err


@pytest.mark.parametrize(
    'text',
    [
        '{',
        '[]',
        '{}',
        '{"cluster": 1, "task": 2}',
        json.dumps({'cluster': {'worker': ['a:1']}, 'task': {'type': 'worker', 'index': 1}}),
    ],
)
def test_a_wrong_tf_config(text, places, call, tmp_path, monkeypatch):
    monkeypatch.setenv('TF_CONFIG', text)
    base = [argument.format_map({**places, 'new': tmp_path}) for argument in PROGRAMS['cifar10_main'].base]
    code, _, err = call('cifar10_main', [*base, '--distribution_strategy=multi_worker_mirrored'])
    assert code == 1 and err.count('\n') == 1 and 'describes no worker; set it as' in err, err


def test_rows_are_no_copies():
    counts = collections.Counter((row.program, *row.args) for row in ROWS)
    assert [row for row, count in counts.items() if count > 1] == []
    assert len(ROWS) > 900 and len(set(itertools.chain(row.program for row in ROWS))) == len(PROGRAMS)
