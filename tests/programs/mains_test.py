"""The programs as a user runs them: processes, exit codes, one line for a mistake, help at once."""

import contextlib
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import official_resnet
from official_resnet import cifar10_main, layers
from official_resnet.command_line import train_program
from official_resnet.inference import predict
from official_resnet.inputs import download
from official_resnet.training import devices

PACKAGE = pathlib.Path(official_resnet.__file__).parent
PROGRAMS = ['cifar10_main', 'cifar100_main', 'mnist_main', 'cifar10_download_and_extract']
TINY = [
    '-rs',
    '8',
    '-bs',
    '16',
    '--train_epochs',
    '2',
    '--base_learning_rate',
    '0.2',
    '--lr_schedule',
    'constant',
    '--epochs_between_evals',
    '1',
    '--shortcut',
    'A',
    '--bn_momentum',
    '0.9',
]


def start(program, *args, cwd='/', **options):
    command = [sys.executable, str(PACKAGE / f'{program}.py'), *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(program, *args, **options):
    process = start(program, *args, **options)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture
def call(monkeypatch, capsys):
    """Run cifar10_main in this process, which has TensorFlow already: seconds less for each mistake."""
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)

    def run_here(*args):
        code = train_program.main(['cifar10_main.py', *map(str, args)], '', cifar10_main.PROGRAM)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


@pytest.mark.parametrize('program', PROGRAMS)
def test_help_and_flag_errors_answer_at_once(program):
    def seconds(*args, code):
        begin = time.monotonic()
        returned, out, err = run(program, *args)
        assert returned == code and (out if code == 0 else err.count('\n') == 1), (out, err)
        return time.monotonic() - begin

    for args, code in ((['--help'], 0), (['-h'], 0), (['--no_such_flag'], 1)):
        assert min(seconds(*args, code=code) for _ in range(3)) < 1  # the best of three: the machine may be busy


def test_every_way_to_start_a_program(tmp_path):
    ways = [
        ([sys.executable, 'cifar10_main.py'], PACKAGE),
        ([sys.executable, str(PACKAGE / 'cifar10_main.py')], tmp_path),
        ([sys.executable, '-m', 'official_resnet.cifar10_main'], tmp_path),
    ]
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    for command, folder in ways:
        result = subprocess.run([*command, '-rs', '9'], cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 1 and '6n+2' in result.stderr, result.stderr


@pytest.fixture(scope='module')
def trained(cifar_dir, tmp_path_factory):
    """A tiny run through the whole program, with every output asked for."""
    folder = tmp_path_factory.mktemp('trained')
    result = run(
        'cifar10_main',
        '--data_dir',
        cifar_dir,
        '--model_dir',
        folder / 'model',
        '--export_dir',
        folder / 'export',
        '--benchmark_log_dir',
        folder / 'log',
        '--benchmark_logger_type=BenchmarkFileLogger',
        '--log_steps',
        '5',
        '--enable_tensorboard',
        '--gcp_project',
        'x',
        '--data_format',
        'channels_first',
        '--hooks',
        'LoggingTensorHook,ExamplesPerSecondHook',
        *TINY,
    )
    return folder, result


def test_what_a_person_sees(trained):
    folder, (code, out, err) = trained
    assert code == 0, err
    assert err == ''  # no start-up noise
    assert '--gcp_project is obsolete and ignored' in out and '--data_format is obsolete and ignored' in out
    assert re.search(r'expected time: .* at \d+ images/s', out)
    assert re.search(r'epoch 2/2: loss .*images/s; test loss .*, test accuracy 0\.\d{4}', out)
    assert re.search(r'test accuracy 0\.\d+ after epoch 2 \(step 14\); best 0\.\d+ after epoch [12]', out)
    assert 'SavedModel, reloaded and compared' in out
    for name in ('model.keras', 'metrics.jsonl', 'config.json', 'curves.png', 'checkpoints'):
        assert str(folder / 'model' / name) in out
        assert (folder / 'model' / name).exists()
    assert list((folder / 'model').rglob('events.*'))
    assert (folder / 'model' / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def test_stored_configuration_and_benchmark_log(trained):
    folder, _ = trained
    stored = json.loads((folder / 'model' / 'config.json').read_text())
    assert stored['recipe'] == 'official' and stored['config']['batch_size'] == 16
    info = json.loads((folder / 'log' / 'benchmark_run.log').read_text())
    assert info['model_name'] == 'resnet' and info['machine_config']['tensorflow'] == tf.__version__
    lines = [json.loads(line) for line in (folder / 'log' / 'metric.log').read_text().splitlines()]
    assert {line['name'] for line in lines} == {
        'current_examples_per_sec',
        'average_examples_per_sec',
        'accuracy',
        'accuracy_top_5',
        'loss',
    }
    assert {'name', 'value', 'unit', 'global_step', 'timestamp', 'extras'} == set(lines[0])


def test_savedmodel_takes_pictures_and_equals_the_model(trained, cifar_dir):
    folder, _ = trained
    from official_resnet.inputs import datasets

    test = datasets.open_split('cifar10', 'test', data_dir=str(cifar_dir))
    model = keras.models.load_model(folder / 'model' / 'model.keras')
    assert type(model.get_layer('stem_bn')) is layers.BatchNormalization
    expected = tf.nn.softmax(model(tf.image.per_image_standardization(tf.cast(test.images, tf.float32)))).numpy()
    served = tf.saved_model.load(str(next((folder / 'export').iterdir()))).signatures['serving_default']
    for count in (1, 30):  # any batch size
        got = served(input=tf.constant(test.images[:count], tf.float32))
        np.testing.assert_allclose(got['probabilities'], expected[:count], atol=1e-5)
        np.testing.assert_array_equal(got['classes'], expected[:count].argmax(-1))


def test_eval_only_needs_no_other_flag(call, trained, cifar_dir):
    folder, (_, out, _) = trained
    code, evaluated, err = call('--eval_only', '--data_dir', cifar_dir, '--model_dir', folder / 'model')
    assert code == 0, err
    accuracy = re.search(r'test accuracy (\S+) after', out)[1]
    assert f'test accuracy {accuracy} (30 images)' in evaluated


def test_eval_only_honours_what_it_can_and_refuses_the_rest(call, trained, cifar_dir):
    model_dir, (_, out, _) = trained[0] / 'model', trained[1]
    accuracy = re.search(r'test accuracy (\S+) after', out)[1]
    there = ['--eval_only', '--data_dir', cifar_dir, '--model_dir', model_dir]
    alike = [*TINY, '--seed', '0', '--datasets_num_private_threads', '2', '--data_format', 'channels_last']
    for args in (alike, ['-bs', '7'], ['--num_gpus', '0', '--distribution_strategy', 'off']):
        code, out, err = call(*there, *args)
        assert code == 0 and f'test accuracy {accuracy} (30 images)' in out and 'epoch 2, step 14' in out, (args, err)
    for args, message in (
        (['-rs', '14'], '--resnet_size asks for resnet_size 14, but the run in .* has 8; leave --resnet_size out'),
        (['-te', '3'], '--train_epochs asks for train_epochs 3, but .* has 2; leave'),
        (['--recipe', 'fast'], '--recipe=fast asks for .*; leave --recipe=fast out'),
        (['--use_synthetic_data'], 'asks for .* synthetic, but .* has cifar10'),
        (['--clean'], '--clean is for training, not for --eval_only; leave it out'),
        (['--hooks', 'ProfilerHook'], '--hooks is for training'),
        (['--steps_per_loop', '3'], '--steps_per_loop is for training'),
        (['--export_dir', model_dir, '--image_bytes_as_serving_input'], 'is for ImageNet'),
        (['--local_workers', '2'], '--eval_only is for one process'),
        (['--augment'], None),  # as the run has it
    ):
        code, _, err = call(*there, *args)
        assert (code, err) == (0, '') if message is None else code == 1 and re.search(message, err), (args, err)
        assert err.count('\n') == (message is not None)


def test_a_pretrained_net_that_is_named_is_evaluated_in_place_of_a_run(call, trained, source, cifar_dir):
    """Not the checkpoint of --model_dir, as that of a program that trained something else there."""
    folder, (_, out, _) = trained
    accuracy = re.search(r'test accuracy (\S+) after', out)[1]
    net = ['--eval_only', '--data_dir', cifar_dir, '-pmcp', folder / 'model' / 'model.keras']
    for args in ([], ['--model_dir', source], ['-bs', '7']):
        code, out, err = call(*net, *args)
        assert code == 0 and f'test: top-1 {accuracy}, top-5' in out and '(30 images)' in out, (args, err)
    assert f'not what is in --model_dir={source}' in call(*net, '--model_dir', source)[1]
    for args in (['-rs', '8'], ['--export_dir', folder / 'x'], ['--num_gpus', '0'], ['--transfer', 'head']):
        code, _, err = call(*net, *args)
        assert code == 1 and f'{args[0]} is for training, not for'.replace('-rs', '--resnet_size') in err, err


def test_a_refused_model_dir_keeps_its_files(call, trained, cifar_dir):
    model_dir = trained[0] / 'model'
    before = {path: path.read_bytes() for path in model_dir.iterdir() if path.is_file() and path.name != '.lock'}
    code, _, err = call('--data_dir', cifar_dir, '--model_dir', model_dir, *TINY, '--seed', '5')
    assert code == 1 and '--seed 0, not 5' in err
    assert {path: path.read_bytes() for path in before} == before


def test_eval_only_fetches_nothing_for_drawn_pictures(call, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'download_and_extract', lambda *args: pytest.fail('fetched'))
    code, _, err = call('--recipe', 'demo', '--max_train_steps', '1', '--model_dir', tmp_path)
    assert code == 0, err
    code, out, err = call('--eval_only', '--model_dir', tmp_path, '--data_dir', tmp_path)
    assert code == 0 and '(2000 images)' in out, err


def test_sigterm_saves_and_the_same_command_continues(cifar_dir, tmp_path):
    args = [
        '--data_dir',
        cifar_dir,
        '--model_dir',
        tmp_path,
        *TINY,
        '--train_epochs',
        '100000',
        '--steps_per_loop',
        '1',
        '--epochs_between_evals',
        '1000',
    ]
    process = start('cifar10_main', *args)
    for line in process.stdout:
        if line.startswith('epoch 2/'):
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and err == ''
    step = int(re.search(r'SIGTERM at step (\d+): state saved in .*; the same command continues', out)[1])
    code, out, err = run('cifar10_main', *args, '--max_train_steps', step + 2)
    assert code == 0 and f'step {step}' in out and f'(step {step + 2})' in out, (out, err)


def _folder(tmp_path, cifar_dir, case):
    """A data_dir that is wrong in one way."""
    path = tmp_path / 'cifar-10-batches-bin'
    if case == 'missing':
        return tmp_path / 'absent'
    if case == 'file':
        (tmp_path / 'file').write_text('x')
        return tmp_path / 'file'
    if case == 'no such folder in it':
        return tmp_path
    path.mkdir()
    for source in (cifar_dir / 'cifar-10-batches-bin').iterdir():
        (path / source.name).write_bytes(source.read_bytes())
    broken = path / 'data_batch_3.bin'
    data = bytearray(broken.read_bytes())
    if case == 'truncated record':
        broken.write_bytes(data[:-1])
    elif case == 'empty file':
        broken.write_bytes(b'')
    elif case == 'missing file':
        broken.unlink()
    elif case == 'label 10':
        data[3073 * 2] = 10
        broken.write_bytes(data)
    elif case == 'unreadable':
        broken.unlink()
        broken.mkdir()
    return tmp_path


@pytest.mark.parametrize(
    'case,message',
    [
        ('missing', 'does not exist'),
        ('file', 'is not a folder'),
        ('no such folder in it', 'has no cifar-10-batches-bin'),
        ('truncated record', 'data_batch_3.bin'),
        ('empty file', 'data_batch_3.bin'),
        ('missing file', 'data_batch_3.bin'),
        ('label 10', '10'),
        ('unreadable', 'data_batch_3.bin'),
    ],
)
def test_wrong_data_is_one_line_and_exit_code_1(call, cifar_dir, tmp_path, case, message):
    data_dir = _folder(tmp_path, cifar_dir, case)
    code, _, err = call('--data_dir', data_dir, '--nodownload', '--model_dir', tmp_path / 'model', *TINY)
    assert code == 1 and err.count('\n') == 1 and message in err and 'Traceback' not in err, err
    assert not list((tmp_path / 'model').glob('checkpoints/*'))


def test_other_mistakes_are_one_line_too(call, cifar_dir, tmp_path):
    (tmp_path / 'file').write_text('x')
    wrong = [
        (['--model_dir', tmp_path / 'file'], 'model_dir'),
        (['--eval_only', '--model_dir', tmp_path], 'no checkpoint'),
        (['--tfds', 'cifar10', '--nodownload', '--data_dir', tmp_path, '--model_dir', tmp_path / 'm'], 'not prepared'),
        (['--num_gpus', '2', '--model_dir', tmp_path / 'm'], '--num_gpus'),
        (['--batch_size', '999', '--model_dir', tmp_path / 'm'], '999'),
    ]
    for args, message in wrong:
        code, _, err = call('--data_dir', cifar_dir, *TINY, *args)
        assert code == 1 and err.count('\n') == 1 and message in err, err


def test_a_missing_data_set_is_fetched_but_not_into_what_is_there(call, cifar_dir, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(download, 'download_and_extract', lambda *args: asked.append(args))
    call('--data_dir', cifar_dir, '--model_dir', tmp_path / 'm', *TINY, '--max_train_steps', '1')
    call('--data_dir', tmp_path / 'new', '--nodownload', '--model_dir', tmp_path / 'm', *TINY)
    assert asked == []
    code, _, err = call('--data_dir', tmp_path / 'new', '--model_dir', tmp_path / 'm', *TINY)
    assert asked == [('cifar10', str(tmp_path / 'new'))] and code == 1


# --- own pictures and transfer -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Folders of a few pictures: 'old' with three classes, 'new' with two others, split into train and test."""
    folder = tmp_path_factory.mktemp('pictures')
    random = np.random.default_rng(0)
    for name, count in (
        ('old/red', 24),
        ('old/green', 24),
        ('old/blue', 24),
        ('new/train/dark', 16),
        ('new/train/bright', 16),
        ('new/test/dark', 5),
        ('new/test/bright', 5),
    ):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = random.integers(0, 80, (36, 40, 3))
            pixels[8:20, 8:20] += 170 * (np.array(['red', 'green', 'blue']) == name[4:]) + 100 * ('bright' in name)
            mode = ('RGB', 'CMYK')[k % 2]
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / name / f'{k}.jpg', quality=95)
    (folder / 'old' / 'red' / 'broken.jpg').write_text('x')
    (folder / 'old' / 'red' / 'readme.txt').write_text('x')
    return folder


@pytest.fixture(scope='module')
def old_net(pictures, tmp_path_factory):
    """The model_dir of a net of 8 layers trained on 'old'."""
    folder, out = tmp_path_factory.mktemp('old_net') / 'model', io.StringIO()
    args = [
        '--image_folder',
        pictures / 'old',
        '--model_dir',
        folder,
        *TINY[:4],
        '--train_epochs',
        '1',
        '--recipe',
        'fast',
        '--validation_fraction',
        '0.25',
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(devices, 'start_tensorflow', lambda *threads: None)
        assert train_program.main(['cifar10_main.py', *map(str, args)], '', cifar10_main.PROGRAM) == 0
    text = out.getvalue()
    assert text.count('unreadable, left out: ') == 1 and 'red/broken.jpg' in text and ' are unreadable' in text
    assert f'dataset=folder:{pictures / "old"}' in text
    return folder


def test_own_pictures_and_a_new_head_end_to_end(call, pictures, old_net, tmp_path):
    card = json.loads((old_net / 'model.card.json').read_text())
    assert card['labels'] == ['blue', 'green', 'red'] and card['num_classes'] == 3
    code, out, err = call('--eval_only', '--model_dir', old_net, '--export_dir', tmp_path / 'export')
    assert code == 0 and '(18 images)' in out, (out, err)
    code, _, err = call('--eval_only', '--model_dir', old_net, '--image_folder', pictures / 'new')
    assert code == 1 and err.count('\n') == 1 and 'class_names' in err

    head = [
        '--image_folder',
        pictures / 'new',
        '--model_dir',
        tmp_path / 'new_net',
        '-pmcp',
        old_net / 'model.keras',
        '--transfer',
        'head',
        '--recipe',
        'fast',
        '-bs',
        '8',
    ]
    code, out, err = call(*head, '--train_epochs', '1')
    assert code == 0 and 'computing the features of 32 pictures' in out and 'augment=False' in out, err
    code, out, err = call(*head, '--train_epochs', '3', '--export_dir', tmp_path / 'export')
    assert code == 0 and 'features of 10 pictures taken from' in out and 'SavedModel, reloaded' in out, err
    accuracy = re.search(r'test accuracy (\S+) after epoch 3 \(step 12\)', out)[1]
    old, new = (keras.models.load_model(folder / 'model.keras') for folder in (old_net, tmp_path / 'new_net'))
    for one, other in zip(old.variables[:-2], new.variables[:-2], strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    assert new.output_shape == (None, 2)
    code, out, err = call('--eval_only', '--model_dir', tmp_path / 'new_net')
    assert code == 0 and f'test accuracy {accuracy} (10 images)' in out, err


def test_an_appended_head_by_flags(call, pictures, old_net, tmp_path):
    args = ['--image_folder', pictures / 'new', '-pmcp', old_net, '--recipe', 'fast', '-bs', '8', '-te', '1']
    code, out, err = call(*args, '--model_dir', tmp_path / 'appended', '--fine_tune', '--head', 'append')
    assert code == 0 and 'pretrained_classes=3' in out, err
    model = keras.models.load_model(tmp_path / 'appended' / 'model.keras')
    assert [layer.name for layer in model.layers[-2:]] == ['logits', 'appended_logits']
    model, card = predict.load(tmp_path / 'appended')  # with what it needs to name a picture
    assert predict.predict(model, card, [pictures / 'new/test/dark/0.jpg'])[0][0].name in ('bright', 'dark')
    code, out, err = call('--eval_only', '--model_dir', tmp_path / 'appended')
    assert code == 0 and '(10 images)' in out, err


def test_mistakes_of_transfer_and_folders_are_one_line(call, pictures, old_net, tmp_path):
    (tmp_path / 'one' / 'class').mkdir(parents=True)
    new = ['--image_folder', pictures / 'new', '-pmcp', old_net]
    for args, message in (
        ([*new, '-rs', '20'], '--resnet_size=20'),
        ([*new[:2], '-pmcp', tmp_path / 'no'], 'cannot load'),
        ([*new, '--train_last_groups', '4', '--transfer', 'last'], 'pass 1..3'),
        ([*new, '--num_classes', '1'], 'num_classes'),
        ([*new, '--head', 'keep'], '--head=replace'),
        ([*new, '--model_dir', old_net, '--clean'], 'pass another --model_dir'),
        (['--image_folder', tmp_path / 'no'], 'is no folder'),
        (['--image_folder', tmp_path / 'one'], 'one class'),
    ):
        code, _, err = call('--model_dir', tmp_path / 'm', '--recipe', 'fast', '-bs', '8', '-te', '1', *args)
        assert code == 1 and err.count('\n') == 1 and message in err, (args, err)
    assert (old_net / 'model.keras').exists()
