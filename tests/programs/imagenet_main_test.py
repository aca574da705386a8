"""imagenet_main as a user runs it, on tiny shards; a net of two blocks stands for ResNet-18."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.imagenet_shards import CLASSES, draw, write_folder, write_shards

import official_resnet
from official_resnet import checkpoints, cifar10_main, imagenet_main, resnet_variants
from official_resnet.command_line import train_program
from official_resnet.inference import predict
from official_resnet.inputs import datasets, encoded
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.inputs.views import Views
from official_resnet.training import devices

PROGRAM = pathlib.Path(official_resnet.__file__).with_name('imagenet_main.py')
SMALL = [
    '-rs',
    '18',
    '--recipe=fast',
    '--image_size=32',
    '--eval_image_size=40',
    '-bs',
    '8',
    '--dtype=fp32',
    '--steps_per_loop=1',
]
NUM_TRAIN, NUM_TEST = 24, 14
# In place of ResNet-18 and -50, and 16 filters: with fewer, TensorFlow 2.21 ruins its memory at 224 pixels.
BLOCKS = {18: ('basic', (1, 1)), 50: ('bottleneck', (1, 1))}
imagenet_spec = resnet_variants.imagenet_spec


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """24 training pictures in four shards, 14 of the test in two, of six classes."""
    folder = tmp_path_factory.mktemp('imagenet')
    write_shards(folder, draw(NUM_TRAIN), 'train', 4)
    write_shards(folder, draw(NUM_TEST, seed=1), 'test', 2)
    return folder


def small_spec(size, **axes):
    return imagenet_spec(size, **axes | {'filters': 16})


def main(*args, program=None):
    """Run the program in this process, which has TensorFlow already, with smaller nets: (code, stdout, stderr)."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(devices, 'start_tensorflow', lambda *threads: None)
        patch.setattr(resnet_variants, 'IMAGENET_BLOCKS', resnet_variants.IMAGENET_BLOCKS | BLOCKS)
        small = dataclasses.replace(imagenet_main.PROGRAM, make_spec=small_spec)
        code = train_program.main(['imagenet_main.py', *map(str, args)], imagenet_main.__doc__, program or small)
    return code, out.getvalue(), err.getvalue()


def one_line(*args):
    """Return what the program says of a mistake, which is one line."""
    code, out, err = main(*args)
    assert code == 1 and err.count('\n') == 1 and err.startswith('imagenet_main: ') and 'Traceback' not in out, err
    return err


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
    """(model_dir, stdout) of two epochs."""
    model_dir = tmp_path_factory.mktemp('trained') / 'model'
    code, out, err = main('--data_dir', data_dir, '--model_dir', model_dir, *SMALL, '-te', '2')
    assert code == 0, err
    return model_dir, out


def metrics(model_dir):
    """Return the lines of metrics.jsonl without what the clock says."""
    lines = checkpoints.read_metrics(model_dir)
    return [{name: value for name, value in line.items() if 'second' not in name} for line in lines]


# --- training ------------------------------------------------------------------------------------------------


def test_training_leaves_everything_behind(trained):
    model_dir, out = trained
    assert re.search(r'epoch 2/2: loss .*images/s; test loss .*, test accuracy 0\.\d{4}', out)
    assert 'dataset=imagenet' in out and 'views=' in out
    for name in ('model.keras', 'model.card.json', 'metrics.jsonl', 'config.json', 'curves.png'):
        assert str(model_dir / name) in out and (model_dir / name).is_file()
    lines = metrics(model_dir)
    assert [(line['split'], line['step']) for line in lines] == [('train', 3), ('test', 3), ('train', 6), ('test', 6)]
    for line in lines[1::2]:
        assert line['accuracy'] <= line['accuracy_top_5'] <= 1
        for name in ('accuracy', 'accuracy_top_5'):  # of all test pictures, each once
            assert line[name] * NUM_TEST == pytest.approx(round(line[name] * NUM_TEST))
    model, card = predict.load(model_dir)
    assert (card.names, card.num_classes, card.size, card.resize) == (
        tuple(name for _, name in CLASSES),
        6,
        (40, 40),
        46,
    )  # 40 * 256 / 224
    assert len(predict.predict(model, card, [np.zeros((50, 60, 3), np.uint8)])[0]) == 5


def test_the_program_continues_where_it_ended(data_dir, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / 'model')
    code, out, err = main('--data_dir', data_dir, '--model_dir', tmp_path / 'model', *SMALL, '-te', '3')
    assert code == 0 and 'continuing from' in out and '(step 9)' in out, (out, err)


@pytest.mark.parametrize('recipe,num_logits,size', [('official', 7, 18), ('fb', 6, 50)])
def test_other_recipes_take_a_step(data_dir, tmp_path, recipe, num_logits, size):
    code, out, err = main(
        '--data_dir',
        data_dir,
        '--model_dir',
        tmp_path,
        f'--recipe={recipe}',
        '-rs',
        size,
        '-bs',
        8,
        '--image_size=32',
        '-mts',
        '1',
    )
    assert code == 0 and '(step 1)' in out, err
    model, card = predict.load(tmp_path)
    assert model.output_shape == (None, num_logits) and card.size == (32, 32)
    assert card.names[:1] == (('background',) if recipe == 'official' else (CLASSES[0][1],))


def test_drawn_pictures_need_no_data(tmp_path):
    code, out, err = main('--use_synthetic_data', '--model_dir', tmp_path, '-rs', '18', '-bs', '4', '-mts', '1')
    assert code == 0 and 'dataset=synthetic224' in out and '(step 1)' in out, err


def test_own_pictures_need_no_shards(tmp_path):
    names = ('ant', 'bee', 'cat')
    write_folder(tmp_path / 'pictures', draw(15, num_classes=3), names)
    args = [
        '--image_folder',
        tmp_path / 'pictures',
        '--model_dir',
        tmp_path / 'model',
        *SMALL,
        '-te',
        '1',
        '--validation_fraction=0.4',
    ]
    code, out, err = main(*args)
    assert code == 0 and f'dataset=folder:{tmp_path / "pictures"}' in out, err
    assert predict.load(tmp_path / 'model')[1].names == names
    code, out, err = main('--eval_only', '--model_dir', tmp_path / 'model', '--image_folder', tmp_path / 'pictures')
    assert code == 0 and '(6 images)' in out and 'in the top 5 1.0000' in out, err


def test_a_new_head_on_features_that_are_computed_once(data_dir, trained, tmp_path):
    args = [
        '--data_dir',
        data_dir,
        '--model_dir',
        tmp_path,
        *SMALL,
        '-pmcp',
        trained[0] / 'model.keras',
        '--transfer=head',
    ]
    code, out, err = main(*args, '-te', '1')
    assert code == 0 and 'computing the features of 24 pictures' in out and 'augment=False' in out, err
    code, out, err = main(*args, '-te', '3')
    assert code == 0 and 'features of 24 pictures taken from' in out and '(step 9)' in out, err
    accuracy = re.search(r'test accuracy (\S+) after epoch 3', out)[1]
    before, after = (keras.models.load_model(folder / 'model.keras') for folder in (trained[0], tmp_path))
    for one, other in zip(before.variables[:-2], after.variables[:-2], strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    code, out, err = main('--eval_only', '--model_dir', tmp_path, '--data_dir', data_dir)
    assert code == 0 and f'test accuracy {accuracy}, in the top 5' in out, err


# --- an end that is no end -----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from official_resnet.training import devices
devices.start_tensorflow()  # as the program does
import imagenet_main_test
imagenet_main_test.end_at(int(sys.argv[1]), signal.SIGKILL)
print(*imagenet_main_test.main(*sys.argv[2:]))
"""


def end_at(step, number, patch=None):
    """Let the program get a signal after a step."""

    class EndAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if logs['step'] == step:
                os.kill(os.getpid(), number)

    make = train_program._callbacks
    (patch or pytest.MonkeyPatch()).setattr(train_program, '_callbacks', lambda *args: [*make(*args), EndAt()])


def test_killed_and_resumed_is_bit_identical(data_dir, trained, tmp_path):
    """SIGKILL inside the first epoch, in a process of its own; SIGTERM inside the second; then to the end."""
    args = ['--data_dir', data_dir, '--model_dir', tmp_path, *SMALL, '-te', '2', '--save_checkpoint_minutes=0']
    process = subprocess.run(
        [sys.executable, '-c', KILLED, '2', *map(str, args)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    with pytest.MonkeyPatch.context() as patch:
        end_at(5, signal.SIGTERM, patch)
        code, out, err = main(*args)
    assert code == 128 + signal.SIGTERM and re.search(r'continuing from .*: epoch 0, step [12]\n', out), (out, err)
    assert 'SIGTERM at step 5: state saved in' in out and 'the same command continues' in out
    code, out, err = main(*args)
    assert code == 0 and 'epoch 1, step 5' in out, (out, err)
    (arrays, state, _), (others, other_state, _) = (
        checkpoints.restore_latest(folder / 'checkpoints') for folder in (trained[0], tmp_path)
    )
    assert state['step'] == other_state['step'] == 6 and arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert metrics(trained[0]) == metrics(tmp_path)


# --- evaluation and export -----------------------------------------------------------------------------------


def test_evaluation_alone_gives_the_last_numbers_and_a_report(data_dir, trained, tmp_path):
    model_dir, out = trained
    last = metrics(model_dir)[-1]
    code, out, err = main(
        '--eval_only',
        '--data_dir',
        data_dir,
        '--model_dir',
        model_dir,
        '-bs',
        '5',
        '--ten_crop',
        '--eval_report',
        tmp_path / 'report',
    )
    assert code == 0, err
    numbers = f'{last["accuracy"]:.4f}, in the top 5 {last["accuracy_top_5"]:.4f} ({NUM_TEST} images)'
    assert f'epoch 2, step 6: test loss {last["loss"]:.4f}, test accuracy {numbers}' in out
    assert f'one crop: top-1 {last["accuracy"]:.4f}, top-5 {last["accuracy_top_5"]:.4f} ({NUM_TEST} images)' in out
    assert re.search(rf'ten crops: top-1 \d\.\d{{4}}, top-5 \d\.\d{{4}} \({NUM_TEST} images\)', out)
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert report['n'] == NUM_TEST and report['top1'] == pytest.approx(last['accuracy'])
    assert report['top5'] == pytest.approx(last['accuracy_top_5'])
    assert [row['count'] for row in report['classes']] == [3, 3, 2, 2, 2, 2]
    assert [(row['id'], row['name']) for row in report['classes']] == list(CLASSES)
    assert {path.name for path in (tmp_path / 'report').iterdir()} == {'report.json', 'per_class.csv', 'confusion.csv'}


def test_a_net_that_was_not_trained_here_is_judged_too(data_dir, trained, tmp_path):
    net = ['--eval_only', '--model_dir', tmp_path, '-pmcp', trained[0] / 'model.keras']
    code, out, err = main(*net, '--data_dir', data_dir, '--eval_report', tmp_path / 'report', '--ten_crop')
    assert code == 0 and out.count(f'({NUM_TEST} images)') == 2 and 'one crop: top-1' in out, err
    assert json.loads((tmp_path / 'report' / 'report.json').read_text())['n'] == NUM_TEST
    write_shards(tmp_path / 'thousand', draw(4), 'test', 1, classes=None)
    assert 'has 6 classes, the images of imagenet have 1000; pass the images of its classes' in one_line(
        *net, '--data_dir', tmp_path / 'thousand'
    )


@pytest.mark.parametrize('takes_bytes', [False, True])
def test_the_export_takes_pictures_or_files(data_dir, trained, tmp_path, takes_bytes):
    flag = ['--image_bytes_as_serving_input'] if takes_bytes else []
    code, out, err = main(
        '--eval_only', '--data_dir', data_dir, '--model_dir', trained[0], '--export_dir', tmp_path, *flag
    )
    assert code == 0 and 'SavedModel, reloaded and compared' in out, err
    views = Views(32, 40, min_area=0.08, use_boxes=False)
    test = datasets.open_split('imagenet', 'test', data_dir=data_dir, views=views)
    model, card = predict.load(trained[0])
    jpegs = [jpeg for jpeg, _, _ in draw(NUM_TEST, seed=1)]
    pictures = tf.stack([encoded.test_view(jpeg, test.views) for jpeg in jpegs])
    expected = tf.nn.softmax(model(NORMALIZATIONS[card.normalization](pictures))).numpy()
    served = tf.saved_model.load(str(next(tmp_path.iterdir()))).signatures['serving_default']
    for count in (1, NUM_TEST):
        got = served(image_bytes=tf.constant(jpegs[:count])) if takes_bytes else served(input=pictures[:count])
        np.testing.assert_allclose(got['probabilities'], expected[:count], atol=1e-5)
        np.testing.assert_array_equal(got['classes'], expected[:count].argmax(-1))


# --- mistakes ------------------------------------------------------------------------------------------------


def test_a_wrong_data_dir_is_one_line(data_dir, tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    shutil.copytree(data_dir, tmp_path / 'partial')
    (tmp_path / 'partial' / 'validation-00001-of-00002').unlink()
    shutil.copytree(data_dir, tmp_path / 'damaged', ignore=shutil.ignore_patterns('.*'))
    path = tmp_path / 'damaged' / 'train-00002-of-00004'
    path.write_bytes(path.read_bytes()[:-9])
    for name, message in (
        ('absent', 'does not exist; pass the folder of train-00000-of-'),
        ('file', 'not a folder'),
        ('empty', 'has no train-00000-of-...; build them with data/build_imagenet_data.py'),
        ('partial', 'lacks 1 of 2 validation shards, the first is 00001'),
        ('damaged', "train-00002-of-00004' is cut off inside the record"),
    ):
        assert message in one_line('--data_dir', tmp_path / name, '--model_dir', tmp_path / 'model', *SMALL)
    assert not list((tmp_path / 'model').glob('checkpoints/*'))


def test_damage_that_only_reading_finds_is_one_line(data_dir, trained, tmp_path):
    shutil.copytree(data_dir, tmp_path / 'data')
    path = tmp_path / 'data' / 'validation-00001-of-00002'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    data = ['--data_dir', tmp_path / 'data']
    for args in (
        ['--model_dir', tmp_path / 'model', *SMALL, '-te', '1'],
        ['--model_dir', trained[0], '--eval_only'],
        ['--model_dir', tmp_path / 'no', '--eval_only', '-pmcp', trained[0] / 'model.keras'],
    ):
        assert f"'{path}' is damaged: wrong checksum of the record at byte" in one_line(*data, *args)


def test_another_run_in_model_dir_is_refused(data_dir, trained):
    for args, message in (
        (['-rs', '50'], '--resnet_size 6, not 8'),
        (['--seed=4'], '--seed 0, not 4'),
        (['--image_size=48'], '--image_size 32, not 48'),
        (['--background_class'], '--background_class False'),
        (['--num_train_images=16'], '--num_train_images None, not 16'),
    ):
        assert message in one_line('--data_dir', data_dir, '--model_dir', trained[0], *SMALL, *args)


def test_other_mistakes_are_one_line(data_dir, trained, tmp_path):
    there = ['--data_dir', data_dir, '--model_dir', tmp_path]
    for args, message in (
        (['--eval_only', *there], 'has no checkpoint; train there first'),
        (['--eval_only', *there, '-pmcp', tmp_path / 'x.keras'], 'no .keras file and no model_dir'),
        ([*there, *SMALL, '-bs', '99'], '--batch_size=99 with 24 training images'),
        ([*there, *SMALL, '--num_classes=3'], '--num_classes=3 with 6 classes'),
        ([*there, *SMALL, '--tfds=no_such_pictures'], "'no_such_pictures': "),
        ([*there, *SMALL, '--image_folder', tmp_path / 'no'], 'is no folder'),
        ([*there, *SMALL, '-pmcp', trained[0], '--head=keep', '--background_class'], 'head=replace'),
    ):
        assert message in one_line(*args), args


def test_a_model_dir_of_imagenet_under_cifars_program(data_dir, trained):
    program = cifar10_main.PROGRAM
    code, out, err = main('--eval_only', '--data_dir', data_dir, '--model_dir', trained[0], program=program)
    assert code == 0 and f'({NUM_TEST} images)' in out, err


def test_help_and_wrong_flags_answer_at_once():
    for args, code in ((['--help'], 0), (['-rs', '19'], 1)):
        seconds = []
        for _ in range(3):  # the best of three: the machine may be busy
            begin = time.monotonic()
            process = subprocess.run([sys.executable, PROGRAM, *args], capture_output=True, text=True)
            seconds.append(time.monotonic() - begin)
            assert process.returncode == code and (code == 0 or process.stderr.count('\n') == 1)
        assert min(seconds) < 1
