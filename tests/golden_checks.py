"""What tests/golden.py compares: each check runs commands of a checkout and returns what they made, by name.

A check is a function (checkout, working folder, working folders of the checks that it NEEDS) -> {name: value}. A name
is 'where: what', a value an array or a text.
"""

import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import h5py
import numpy as np
from PIL import Image

MAX_SECONDS = 900  # of a child
ENVIRONMENT = {
    'CUDA_VISIBLE_DEVICES': '-1',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'TF_NUM_INTRAOP_THREADS': '1',
    'KERAS_BACKEND': 'tensorflow',
    'COLUMNS': '120',
}
IRRELEVANT = ('module', 'registered_name', 'shared_object_id')  # of a Keras configuration: these may move
PROGRAMS = (
    'cifar10_main cifar100_main mnist_main imagenet_main predict_main cifar10_download_and_extract benchmark_main '
    'scaling_main degradation_main gradient_flow_main shortcuts_main transfer_main benchmark_build build_image_data '
    'build_imagenet_data build_imagenet_data_beam download_and_preprocess_imagenet read_ckpt'
).split()
NEW_NAMES = {'benchmark_main': 'speed', 'scaling_main': 'scaling', 'benchmark_build': 'build'}  # programs, since
RECIPES = {
    'cifar10': ('official', 'paper', 'fast', 'demo'),
    'cifar100': ('official',),
    'mnist': ('documents', 'fast', 'demo'),
    'imagenet': ('official', 'fb', 'fast'),
}
TABLE_ROWS = ('resnet20_v1', 'plain20', 'resnet164_v2', 'wrn16_4', 'resnext29_32x4d', 'resnet50_d', 'seresnet50_v1')
SEVERAL = r"""
# Run several commands, each a list of strings, in one process: TensorFlow is started once.
import json, os, runpy, sys
if sys.argv[2] == 'stop before the first step':
    import keras
    def stop(*args, **kwargs):
        raise SystemExit(130)
    keras.callbacks.CallbackList.on_epoch_begin = stop
for argv in json.loads(sys.argv[1]):
    sys.argv, sys.path[0], code = argv, os.path.dirname(argv[0]), 0
    try:
        runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as end:
        code = end.code
    print(f'\x1e{code or 0}', flush=True)
"""
REPLICAS = """
import runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices('CPU')[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# Layers, initial weights and logits of the rows of VARIANTS, and of tiny nets that differ from a row in some fields.
ROWS = r"""
import dataclasses, hashlib, sys, zlib
import keras, numpy as np
from official_resnet import resnet_model
try:
    from official_resnet import resnet_variants as rows
except ImportError:  # before the rows had a module of their own
    rows = resnet_model
stems, size, path = sys.argv[1].split(','), int(sys.argv[2]), sys.argv[3]
if 'cifar' in stems:
    base = dataclasses.replace(rows.VARIANTS['resnet20_v1'], group_blocks=(2, 1, 2), filters=8)
    nets = [dict(shortcut=shortcut, version=version) for shortcut in ('A', 'B', 'C', 'group', None)
            for version in ('1', '2')]
    nets += [dict(block=block, shortcut='B', version=version) for block in ('single', 'bottleneck')
             for version in ('1', '1.5', '2')]
    nets += [{'shortcut': 'B'} | fields for fields in (
        {'shortcut_padding': 'both', 'shortcut': 'A'}, {'stride_block': 'last'}, {'width': 2}, {'padding': 'same'},
        {'stride_conv': 'first', 'block': 'bottleneck', 'version': '2'}, {'stem_filters': 4}, {'projection_kernel': 3},
        {'stem_bn': True, 'version': '2'}, {'stem_bn': False}, {'stem_bias': True}, {'projection_pool': True},
        {'block': 'bottleneck', 'base_width': 16, 'cardinality': 4, 'version': '1.5'}, {'stochastic_depth': 0.5},
        {'se_reduction': 4}, {'zero_gamma': True}, {'bn_epsilon': 0.1})]
else:
    base = dataclasses.replace(rows.VARIANTS['resnet50_v1.5'], group_blocks=(1, 2, 2, 1), filters=8)
    nets = [dict(stem_pool=pool, block=block, version=version) for pool in ('pad1', 'same', 'ceil')
            for block, version in (('basic', '1'), ('bottleneck', '2'))]
    nets += [dict(output_stride=stride, version=version) for stride in (8, 16) for version in ('1', '1.5', '2')]
    nets += [{'stem': 'deep'}, {'stem': 'deep', 'version': '2', 'projection_pool': True}, {'shortcut': 'group'}]
specs = {name: spec for name, spec in rows.VARIANTS.items() if spec.stem in stems}
specs |= {' '.join(f'{name}={value}' for name, value in net.items()): dataclasses.replace(base, **net) for net in nets}

def seeded(variable):  # at which no layer is an identity and signals neither die nor grow
    random = np.random.default_rng(zlib.crc32(variable.path.encode()))
    if variable.name in ('gamma', 'moving_variance'):
        return random.uniform(0.4, 1.2, variable.shape)
    if variable.name in ('beta', 'moving_mean', 'bias'):
        return random.normal(0, 0.1, variable.shape)
    deviation = (1 / np.prod(variable.shape[:-1])) ** 0.5
    return deviation * random.standard_normal(variable.shape, 'float32')

values = {}
for name, spec in specs.items():
    blocks = sum(spec.group_blocks)
    if blocks > 70:
        continue
    shape = (32, 32, 1) if spec.stem == 'mnist' else (size, size, 3)
    is_whole = blocks * spec.filters <= 1024 and spec.base_width * spec.cardinality <= 512
    keras.utils.set_random_seed(3)
    if is_whole:
        model = resnet_model.resnet(spec, 10, shape)
    else:
        with keras.StatelessScope(initialize_variables=False):
            model = resnet_model.resnet(spec, 10, shape)
    values[f'{name}: layers'] = '\n'.join(
        [f'{type(layer).__name__} {layer.name} {layer.output.shape}' for layer in model.layers]
        + [f'{variable.path} {variable.shape}' for variable in model.variables])
    if is_whole:
        initial = b''.join(variable.numpy().tobytes() for variable in model.variables)
        values[f'{name}: initial weights'] = hashlib.sha256(initial).hexdigest()
        for variable in model.variables:
            variable.assign(seeded(variable))
        images = np.random.default_rng(0).standard_normal((2, *shape), 'float32')
        values[f'{name}: logits'] = model(images, training=False).numpy()
        assert np.isfinite(values[f'{name}: logits']).all() and values[f'{name}: logits'].std() > 1e-3, name
    keras.backend.clear_session()
np.savez(path, **{name: np.asarray(value) for name, value in values.items()})
"""


# --- commands ----------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A command ended with an error, or its results are not there."""


def run(checkout, folder, *command, code=None):
    """Run Python on a command, or on `code` with it as arguments; return its stdout. The working folder is `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(('TF_', 'IMAGENET_'))}
    own = {'PYTHONPATH': str(checkout.path), 'PYTHONPYCACHEPREFIX': str(checkout.inputs.parent / 'pycache')}
    done = subprocess.run(
        [sys.executable, *(('-c', code) if code else ()), *map(str, command)],
        cwd=folder,
        env=inherited | ENVIRONMENT | own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or 'it said nothing').splitlines()[-1]
        raise Failed(f'{" ".join(map(str, command))[:200]} ended with {done.returncode}: {last}')
    return done.stdout


def several(checkout, folder, commands, mode=''):
    """Run several commands in one process; return [(stdout, exit code)]."""
    found = re.split('\x1e(.*)\n', run(checkout, folder, json.dumps(commands), mode, code=SEVERAL))
    return list(zip(found[0::2], found[1::2], strict=False))


def program(checkout, name):
    """Return the path of a program, in whichever folder of the checkout it lies."""
    folders = (checkout.path / folder for folder in ('official_resnet', 'data', 'checkpoints_tools', 'benchmarks'))
    names = {f'{name}.py', f'{NEW_NAMES.get(name, name)}.py'}
    found = [path for folder in folders for path in folder.rglob('*.py') if path.name in names]
    if len(found) != 1:
        raise Failed(f'there are {len(found)} files {name}.py, not one')
    return str(found[0])


# --- what is compared ---------------------------------------------------------------------------------------------


def leaves(value, name=''):
    """Yield (name, text) of the leaves of what JSON holds; a list of plain values is a leaf. No times."""
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        yield name, json.dumps(value)
        return
    for key, item in value.items():
        if 'second' not in key:
            yield from leaves(item, f'{name}.{key}' if name else key)


def json_values(path, prefix):
    """Return the leaves of a JSON file."""
    return {f'{prefix}: {name}': text for name, text in leaves(json.loads(path.read_text()))}


def without_modules(config):
    """Return a Keras configuration without the names of the modules of its classes."""
    if isinstance(config, dict):
        return {k: without_modules(v) for k, v in config.items() if k not in IRRELEVANT}
    return [without_modules(item) for item in config] if isinstance(config, list) else config


def keras_values(path, prefix):
    """Return weights and configuration of a .keras file, and its card."""
    values = {}
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read('model.weights.h5'))) as weights:
        config = json.loads(archive.read('config.json'))['config']
        names = []
        weights.visit(names.append)
        values |= {
            f'{prefix} weights: {name}': np.asarray(weights[name]) for name in names if hasattr(weights[name], 'dtype')
        }
    for layer in config.pop('layers'):
        values[f'{prefix} layer: {layer["config"]["name"]}'] = json.dumps(without_modules(layer))
    values[f'{prefix} layer: all'] = json.dumps(without_modules(config))
    return values | json_values(path.with_suffix('.card.json'), f'{prefix} card')


def checkpoint_values(model_dir, prefix='checkpoint'):
    """Return the arrays of the newest checkpoint: the variables of model and optimizer."""
    path = max(model_dir.glob('checkpoints/step-*.npz'))
    with np.load(path) as archive:
        arrays = {f'{prefix}: {name}': archive[name] for name in archive.files if archive[name].dtype.kind in 'biuf'}
    return {f'{prefix}: file': path.name} | arrays


def files_values(paths, prefix):
    """Return the SHA-256 of files."""
    return {f'{prefix}: {path.name}': hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


# --- the checks: (checkout, working folder, folders of the checks that it needs) -> {name: value} ------------------


def train(checkout, folder, *needs, name, flags, code=None, further=('',)):
    """Train by a program, once or with `further` flags several times; return what is in model_dir."""
    for more in further:
        text = f'{flags} --model_dir=model --seed=3 --nodownload {more}'
        argv = [flag.format(inputs=checkout.inputs, needs=needs) for flag in text.split()]
        run(checkout, folder, program(checkout, name), *argv, code=code)
    model_dir = folder / 'model'
    values = checkpoint_values(model_dir) | keras_values(model_dir / 'model.keras', 'model')
    for line in (model_dir / 'metrics.jsonl').read_text().splitlines():
        line = json.loads(line)
        values |= {f'metrics {line["split"]} {line["step"]}: {key}': text for key, text in leaves(line)}
    return values


def shortcuts(checkout, folder):
    """Train the nets that shortcuts_main changes within the block, one epoch each."""
    rows = 'scaled_both,exclusive_gate,shortcut_gate,dropout_shortcut,bn_after_addition,relu_before_addition,'
    flags = f'-rs=8 -bs=52 -te=1 --dtype=fp32 --nodownload --rows={rows}relu_only_preactivation --output_dir=out'
    run(checkout, folder, program(checkout, 'shortcuts_main'), *flags.split(), f'--data_dir={checkout.inputs}')
    values = json_values(folder / 'out/shortcuts.json', 'shortcuts.json')
    for net in sorted((folder / 'out/runs').iterdir()):
        values |= checkpoint_values(net, net.name)
    return values


def gradients(checkout, folder):
    """Measure gradients of nets with and without batch norm, shortcuts and ReLU."""
    flags = '--depths=8 --steps=2 -bs=16 --nodownload --output_dir=out --auxiliary_loss'
    run(checkout, folder, program(checkout, 'gradient_flow_main'), *flags.split(), f'--data_dir={checkout.inputs}')
    return json_values(folder / 'out/gradient_flow.json', 'gradient_flow.json')


def rows(checkout, folder, *, stems, size):
    """Build the rows of VARIANTS with some stems: layers, initial weights, logits."""
    run(checkout, folder, stems, size, folder / 'rows.npz', code=ROWS)
    with np.load(folder / 'rows.npz') as archive:
        return {name: value if value.ndim else str(value) for name, value in archive.items()}


def table(checkout, folder):
    """Print Table 1 of some rows."""
    is_new = (checkout.path / 'official_resnet/resnet_variants.py').exists()
    module = f'official_resnet.{"resnet_variants" if is_new else "resnet_table"}'
    return {'stdout': run(checkout, folder, '-m', module, *TABLE_ROWS)}


def conversions(checkout, folder):
    """Convert and list a checkpoint of each family, and write one in PyTorch's names."""
    sources = {path.stem: path for path in (checkout.inputs / 'checkpoints').iterdir() if path.is_file()}
    sources |= {name: checkout.inputs / 'checkpoints' / name / 'model.ckpt' for name in ('slim', 'official_tf')}
    script = program(checkout, 'read_ckpt')
    lists = [[script, f'--list={path}'] for path in sources.values()]
    commands = [[script, f'--input={path}', f'--output={name}.keras'] for name, path in sources.items()]
    commands += [[script, '--input=akamaster.keras', '--output=out.safetensors', '--to=torch']]
    done = several(checkout, folder, lists + commands)
    data = (folder / 'out.safetensors').read_bytes()
    end = 8 + int.from_bytes(data[:8], 'little')  # of the header, whose metadata has no order of its own
    values = {f'torch: {name}': text for name, text in leaves(json.loads(data[8:end]))}
    values['torch: tensors'] = hashlib.sha256(data[end:]).hexdigest()
    for name, (text, _) in zip(sources, done, strict=False):
        values |= {f'{name}: --list': text} | keras_values(folder / f'{name}.keras', name)
    return values


def shards(checkout, folder):
    """Build shards from a small ILSVRC2012, from the folders that it leaves, and from a folder of images."""
    data = folder / 'ilsvrc'
    shutil.copytree(checkout.inputs / 'ilsvrc', data)
    counts = ['--train_shards=4', '--validation_shards=2', '--num_threads=2']
    counts_and_labels = [*counts, f'--labels_file={data}/imagenet_lsvrc_2015_synsets.txt']
    metadata = f'{data}/imagenet_metadata.txt'
    script = program(checkout, 'download_and_preprocess_imagenet')
    run(checkout, folder, script, data, *counts_and_labels, f'--metadata_file={metadata}', '--keep_extracted')
    raw = data / 'raw-data'
    folders = [f'--train_directory={raw}/train', f'--validation_directory={raw}/validation']
    texts = [f'--imagenet_metadata_file={metadata}', f'--bounding_box_file={raw}/imagenet_2012_bounding_boxes.csv']
    (folder / 'by_folder').mkdir()
    script = program(checkout, 'build_imagenet_data')
    run(checkout, folder, script, *folders, *counts_and_labels, *texts, '--output_directory=by_folder')
    (folder / 'own').mkdir()
    folders = [f'--{split}_directory={checkout.inputs}/folder/{split}' for split in ('train', 'validation')]
    run(checkout, folder, program(checkout, 'build_image_data'), *folders, *counts, '--output_directory=own')
    values = files_values([raw / 'imagenet_2012_bounding_boxes.csv'], 'boxes')
    return values | shard_values(data, folder / 'by_folder', folder / 'own')


def beam(checkout, folder):
    """Build the shards of the small ILSVRC2012 by Apache Beam."""
    data = checkout.inputs / 'ilsvrc'
    flags = {
        'train_tar': data / 'ILSVRC2012_img_train.tar',
        'validation_tar': data / 'ILSVRC2012_img_val.tar',
        'validation_labels_file': data / 'imagenet_2012_validation_synset_labels.txt',
        'bounding_box_file': data / 'ILSVRC2012_bbox_train_v2.tar.gz',
        'labels_file': data / 'imagenet_lsvrc_2015_synsets.txt',
        'metadata_file': data / 'imagenet_metadata.txt',
        'output_directory': folder / 'beam',
        'train_shards': 4,
        'validation_shards': 2,
    }
    run(checkout, folder, program(checkout, 'build_imagenet_data_beam'), *(f'--{k}={v}' for k, v in flags.items()))
    return shard_values(folder / 'beam')


def shard_values(*folders):
    """Return the SHA-256 of the shards in some folders, and the leaves of their manifests."""
    values = {}
    for folder in folders:
        values |= files_values(folder.glob('*-of-*'), folder.name)
        for path in sorted(folder.glob('*.manifest.json')):
            values |= json_values(path, f'{folder.name} {path.name}')
    return values


def predict(checkout, folder, conversions, cifar_v1):
    """Name what is in ten images, by a converted net and by a trained one."""
    script, images = program(checkout, 'predict_main'), f'{checkout.inputs}/images'
    models = {'converted': f'{conversions}/akamaster.keras', 'trained': f'{cifar_v1}/model'}
    extra = {'table': '--top=5', 'json': '--json --top=10', 'explained': '--json --explain --output_dir=explained'}
    commands = {f'{m} {e}': [script, f'--model={models[m]}', images, *extra[e].split()] for m in models for e in extra}
    values = {}
    for name, (out, code) in zip(commands, several(checkout, folder, list(commands.values())), strict=True):
        values |= {f'{name}: exit code': code} | {f'{name}: {i}': line for i, line in enumerate(out.splitlines())}
    explained = sorted((folder / 'explained').iterdir())
    return values | {f'explained: {path.name}': np.asarray(Image.open(path)) for path in explained}


def evaluation(checkout, folder, conversions, shards):
    """Evaluate a converted net on the shards, with ten crops and a report."""
    flags = f'--eval_only --ten_crop --eval_report=report -bs=4 --nodownload --data_dir={shards}/ilsvrc'
    path = f'--pretrained_model_checkpoint_path={conversions}/caffe.keras'
    out = run(checkout, folder, program(checkout, 'imagenet_main'), *flags.split(), '--model_dir=none', path)
    values = {f'stdout: {i}': line for i, line in enumerate(out.splitlines())}
    values |= json_values(folder / 'report/report.json', 'report')
    return values | files_values(folder.glob('report/*.csv'), 'report')


def program_flags(checkout, folder):
    """Read --helpfull of every program: names, short names, types, choices and defaults."""
    values = {}
    for name in PROGRAMS:
        text = run(checkout, folder, program(checkout, name), '--helpfull')
        for short, no, flag, body in re.findall(r'^  (?:-(\w+),)?--(\[no\])?(\w+):((?:.*\n)(?:    .*\n)*)', text, re.M):
            body = ' '.join(body.split())
            choices, kinds = re.findall(r'^<([^>]*)>:', body), re.findall(r'\((?!default: )([^()]*)\)$', body)
            values |= {
                f'{name} --{flag}: short name': short,
                f'{name} --{flag}: type': no or ''.join(choices or kinds).replace(' ', ''),
                f'{name} --{flag}: default': ''.join(re.findall(r'\(default: (.*?)\)(?: \(|$)', body)),
            }
    return values


def recipes(checkout, folder, shards):
    """Start a run with each recipe and stop it before its first step; return its configuration."""
    commands = {}
    for name, names in RECIPES.items():
        data_dir = f'{shards}/ilsvrc' if name == 'imagenet' else str(checkout.inputs)
        for recipe in names:
            flags = [f'--recipe={recipe}', f'--data_dir={data_dir}', f'--model_dir={name}-{recipe}', '--nodownload']
            commands[f'{name}-{recipe}'] = [program(checkout, f'{name}_main'), *flags, '--max_train_steps=1']
    several(checkout, folder, list(commands.values()), 'stop before the first step')
    missing = [name for name in commands if not (folder / name / 'config.json').is_file()]
    if missing:
        raise Failed(f'there is no config.json of {", ".join(missing)}')
    values = {}
    for name in commands:
        values |= json_values(folder / name / 'config.json', name)
    return values


CIFAR = '--data_dir={inputs} -rs=8 -bs=16 -te=3 --max_train_steps=40 --epochs_between_evals=1 --dtype=fp32'
TRANSFER = '--pretrained_model_checkpoint_path={needs[0]}/model --data_dir={inputs} -bs=16 -te=2 --max_train_steps=20'
FAST = '--recipe=fast -rv=2'
PAPER = '--recipe=paper --shortcut=group'  # the initial weights of official were others before
cifar = functools.partial(train, name='cifar10_main')
CHECKS = {
    'cifar_v1': functools.partial(cifar, flags=f'{CIFAR} {PAPER}'),
    'shards': shards,
    'conversions': conversions,
    'rows_imagenet': functools.partial(rows, stems='imagenet,deep', size=64),
    'rows_cifar': functools.partial(rows, stems='cifar,mnist', size=32),
    'recipes': recipes,
    'cifar_v2': functools.partial(cifar, flags=f'{CIFAR} {FAST}'),
    'cifar_resumed': functools.partial(cifar, flags=f'{CIFAR} {FAST}', further=('--max_train_steps=25', '')),
    'cifar100': functools.partial(train, name='cifar100_main', flags=f'{CIFAR} {PAPER} --max_train_steps=6'),
    'mnist': functools.partial(train, name='mnist_main', flags='--data_dir={inputs} -te=8 --max_train_steps=40'),
    'imagenet': functools.partial(
        train,
        name='imagenet_main',
        flags='--data_dir={needs[0]}/ilsvrc -rs=18 -bs=8 -te=1 --max_train_steps=10 --image_size=32',
    ),
    'image_folder': functools.partial(
        cifar, flags=PAPER + ' --image_folder={inputs}/folder -rs=8 -bs=8 -te=2 --max_train_steps=12'
    ),
    'transfer_last': functools.partial(cifar, flags=f'{TRANSFER} --transfer=last'),
    'transfer_head': functools.partial(cifar, flags=f'{TRANSFER} --transfer=head'),
    'replicas': functools.partial(cifar, flags=f'{CIFAR} {PAPER} --distribution_strategy=mirrored', code=REPLICAS),
    'workers': functools.partial(cifar, flags=f'{CIFAR} {PAPER} --local_workers=2'),
    'shortcuts': shortcuts,
    'gradients': gradients,
    'table': table,
    'beam': beam,
    'evaluation': evaluation,
    'predict': predict,
    'flags': program_flags,
}
NEEDS = {
    'recipes': ('shards',),
    'imagenet': ('shards',),
    'transfer_last': ('cifar_v1',),
    'transfer_head': ('cifar_v1',),
    'evaluation': ('conversions', 'shards'),
    'predict': ('conversions', 'cifar_v1'),
}
