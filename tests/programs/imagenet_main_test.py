"""imagenet_main as a user runs it, on tiny shards; networks of two blocks stand for ResNet-18 and ResNet-50."""

import dataclasses
import json
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from fixtures import programs
from fixtures.imagenet_shards import CLASSES, draw, write_folder, write_shards
from fixtures.tiny_training import SendAt, StopAt, assert_equal_runs, metrics
from PIL import Image

from official_resnet import cifar10_main, imagenet_main, resnet_variants
from official_resnet.command_line import train_program
from official_resnet.inference import predict
from official_resnet.inputs import datasets, encoded
from official_resnet.inputs.normalization import NORMALIZATIONS
from official_resnet.inputs.views import Views

SMALL = '-rs 18 --recipe=fast --image_size=32 --eval_image_size=40 -bs 8 --dtype=fp32 --steps_per_loop=1'
NUM_TRAIN, NUM_TEST = 24, 14


def small_spec(size, **axes):
    """Return a spec with two blocks and 16 filters: with fewer, TensorFlow 2.21 ruins its memory at 224 pixels."""
    return dataclasses.replace(resnet_variants.imagenet_spec(size, **axes | {'filters': 16}), group_blocks=(1, 1))


PROGRAM = dataclasses.replace(imagenet_main.PROGRAM, make_spec=small_spec)


def succeed(args):
    return programs.succeed(f'imagenet_main {args}', PROGRAM)


def mistake(args):
    return programs.mistake(f'imagenet_main {args}', PROGRAM)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """24 training images in four shards, 14 of the test in two, of six classes."""
    folder = tmp_path_factory.mktemp('imagenet')
    write_shards(folder, draw(NUM_TRAIN), 'train', 4)
    write_shards(folder, draw(NUM_TEST, seed=1), 'test', 2)
    return folder


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
    """(model_dir, stdout) of two epochs."""
    model_dir = tmp_path_factory.mktemp('trained') / 'model'
    return model_dir, succeed(f'--data_dir {data_dir} --model_dir {model_dir} {SMALL} -te 2')


# --- training ------------------------------------------------------------------------------------------------


def test_training_leaves_everything_behind(trained):
    model_dir, out = trained
    assert re.search(r'epoch 2/2: loss .*; test loss \d+\.\d{4}, \d+\.\d\d%; \d+ images/s', out)
    assert re.search(r'data +imagenet: 24 training, 14 test images', out)
    for name in ('model.keras', 'model.card.json', 'metrics.jsonl', 'config.json', 'curves.png'):
        assert str(model_dir / name) in out and (model_dir / name).is_file()
    lines = metrics(model_dir)
    assert [(line['split'], line['step']) for line in lines] == [('train', 3), ('test', 3), ('train', 6), ('test', 6)]
    for line in lines[1::2]:
        assert line['accuracy'] <= line['accuracy_top_5'] <= 1
        for name in ('accuracy', 'accuracy_top_5'):  # of all test images, each once
            assert line[name] * NUM_TEST == pytest.approx(round(line[name] * NUM_TEST))
    model, card = predict.load(model_dir)
    assert (card.num_classes, card.size, card.resize, card.uses_exif) == (6, (40, 40), 46, False)  # 40 * 256 / 224
    assert card.names == tuple(name for _, name in CLASSES)
    assert len(predict.predict(model, card, [np.zeros((50, 60, 3), np.uint8)])[0]) == 5


@pytest.mark.parametrize(
    'recipe,num_logits,size', [('official', 7, 18), pytest.param('fb', 6, 50, marks=pytest.mark.slow)]
)
def test_other_recipes_take_a_step(data_dir, tmp_path, recipe, num_logits, size):
    args = f'--recipe={recipe} -rs {size} -bs 8 --image_size=32 -mts 1'
    assert '(step 1)' in succeed(f'--data_dir {data_dir} --model_dir {tmp_path} {args}')
    model, card = predict.load(tmp_path)
    assert model.output_shape == (None, num_logits) and card.size == (32, 32)
    assert card.names[:1] == (('background',) if recipe == 'official' else (CLASSES[0][1],))


@pytest.mark.whole_runs
def test_own_images_need_no_shards(tmp_path):
    names = ('ant', 'bee', 'cat')
    write_folder(tmp_path / 'images', draw(15, num_classes=3), names)
    own = f'--image_folder {tmp_path}/images --model_dir {tmp_path}/model'
    assert f'folder:{tmp_path}/images: ' in succeed(f'{own} {SMALL} -te 1 --validation_fraction=0.4')
    card = predict.load(tmp_path / 'model')[1]
    assert card.names == names and card.uses_exif
    out = succeed(f'--eval_only {own}')
    assert '(6 images)' in out and 'top-5 1.0000' in out


@pytest.mark.whole_runs
def test_a_new_head_on_features_that_are_computed_once(data_dir, trained, tmp_path):
    command = f'--data_dir {data_dir} --model_dir {tmp_path} {SMALL} -pmcp {trained[0]}/model.keras --transfer=head'
    assert 'computing the features of 24' in succeed(f'{command} -te 1')
    out = succeed(f'{command} -te 2')
    assert 'features of 24' in out and 'computing' not in out and '(step 6)' in out


@pytest.mark.whole_runs
def test_killed_and_resumed_is_bit_identical(data_dir, trained, tmp_path, monkeypatch):
    """Killed inside the first epoch, ended by SIGTERM inside the second; then to the end."""
    command = f'--data_dir {data_dir} --model_dir {tmp_path} {SMALL} -te 2 --save_checkpoint_minutes=0'
    make = train_program._callbacks
    monkeypatch.setattr(train_program, '_callbacks', lambda *args: [*make(*args), StopAt(2)])
    with pytest.raises(RuntimeError, match='killed'):
        succeed(command)
    monkeypatch.setattr(train_program, '_callbacks', lambda *args: [*make(*args), SendAt(5, signal.SIGTERM)])
    code, out, err = programs.call(f'imagenet_main {command}', PROGRAM)
    assert code == 128 + signal.SIGTERM and 'epoch 0, step 1\n' in out and 'SIGTERM at step 5: ' in out, (out, err)
    monkeypatch.undo()
    assert 'epoch 1, step 5' in succeed(command)
    assert_equal_runs(trained[0], tmp_path)


# --- evaluation and export -----------------------------------------------------------------------------------


def test_evaluation_alone_gives_the_last_numbers_and_a_report(data_dir, trained, tmp_path):
    last = metrics(trained[0])[-1]
    there = f'--data_dir {data_dir} --model_dir {trained[0]}'
    out = succeed(f'--eval_only {there} -bs 5 --ten_crop --eval_report {tmp_path}/report')
    numbers = f'{last["accuracy"]:.4f}, top-5 {last["accuracy_top_5"]:.4f} ({NUM_TEST} images)'
    assert f'epoch 2, step 6: test loss {last["loss"]:.4f}, top-1 {numbers}' in out
    assert f'one crop: top-1 {last["accuracy"]:.4f}, top-5 {last["accuracy_top_5"]:.4f} ({NUM_TEST} images)' in out
    assert re.search(rf'ten crops: top-1 \d\.\d{{4}}, top-5 \d\.\d{{4}} \({NUM_TEST} images\)', out)
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert report['n'] == NUM_TEST and report['top1'] == pytest.approx(last['accuracy'])
    assert report['top5'] == pytest.approx(last['accuracy_top_5'])
    assert [row['count'] for row in report['classes']] == [3, 3, 2, 2, 2, 2]
    assert [(row['id'], row['name']) for row in report['classes']] == list(CLASSES)
    assert {path.name for path in (tmp_path / 'report').iterdir()} == {'report.json', 'per_class.csv', 'confusion.csv'}


def test_a_run_on_ilsvrc_is_evaluated_on_a_folder_as_its_card_says(trained, tmp_path):
    """Without EXIF, as in training and as predict_main names the same files."""
    exif, images, found = Image.Exif(), draw(12), set()
    exif[0x0112] = 3
    segment = b'\xff\xe1' + (len(exif.tobytes()) + 2).to_bytes(2, 'big') + exif.tobytes()
    for name, added in (('plain', b''), ('turned', segment)):
        write_folder(tmp_path / name, [(jpeg[:2] + added + jpeg[2:], *rest) for jpeg, *rest in images])
        out = succeed(f'--eval_only --model_dir {trained[0]} --image_folder {tmp_path}/{name}')
        found.add(re.search('test loss .*', out)[0])
    assert len(found) == 1


def test_a_network_that_was_not_trained_here_is_evaluated_too(data_dir, trained, tmp_path):
    command = f'--eval_only --model_dir {tmp_path} -pmcp {trained[0]}/model.keras'
    out = succeed(f'{command} --data_dir {data_dir} --eval_report {tmp_path}/report --ten_crop')
    assert out.count(f'({NUM_TEST} images)') == 2 and 'one crop: top-1' in out
    assert json.loads((tmp_path / 'report' / 'report.json').read_text())['n'] == NUM_TEST
    write_shards(tmp_path / 'thousand', draw(4), 'test', 1, classes=None)
    out = succeed(f'{command} --data_dir {tmp_path}/thousand')
    assert '6 of the 1000 classes are among the 6' in out and "'hammerhead'" not in out and '(4 images)' in out


def test_images_of_some_classes_are_scored_by_the_ids_or_names_of_their_classes(data_dir, trained, tmp_path):
    command = f'--eval_only -pmcp {trained[0]}/model.keras --eval_report {tmp_path}/report'
    succeed(f'{command} --data_dir {data_dir}')
    rows = json.loads((tmp_path / 'report' / 'report.json').read_text())['classes']
    right = sum(round(row['top1'] * row['count']) for row in rows[1:])
    images = [image for image in draw(NUM_TEST, seed=1) if image[1]]
    for i in (0, 1):  # folders named by ids, and by names
        names = [*(row[i] for row in CLASSES)]
        names[5] = names[5] if i else CLASSES[5][1].title()
        write_folder(tmp_path / f'{i}' / 'train', images, names)
        write_folder(tmp_path / f'{i}' / 'val', images, names)
    out = succeed(f'{command} --image_folder {tmp_path}/1')
    assert '5 of the 5 classes are among the 6' in out and f'top-1 {right / 11:.4f}, ' in out and '(11 images)' in out
    out = succeed(f'{command} --image_folder {tmp_path}/0')
    right -= round(rows[5]['top1'] * rows[5]['count'])
    assert (
        '4 of the 5 classes' in out
        and f"rename them if they are '{CLASSES[5][1]}'" in out
        and f'top-1 {right / 9:.4f}, ' in out
    )
    assert '(9 images, without 2 ' in out
    out = succeed(f'{command} --image_folder {tmp_path}/1/val --validation_fraction=0.4')  # one or two of each class
    assert 'evaluating 5 of the 11 images' in out and '--validation_fraction=0.4' in out and '(5 images)' in out
    out = succeed(f'{command} --image_folder {tmp_path}/1/val --validation_fraction=1')
    assert f'top-1 {right / 11:.4f}, ' in out or '(11 images)' in out and 'evaluating' not in out
    write_folder(tmp_path / 'none' / 'train', images, tuple('abcdef'))
    write_folder(tmp_path / 'none' / 'val', images, tuple('abcdef'))
    error = mistake(f'{command} --image_folder {tmp_path}/none')
    assert "'b', 'c', 'd' and 2 more" in error and f"'{CLASSES[0][1]}'" in error


def test_the_export_takes_files(data_dir, trained, tmp_path):
    flags = f'--export_dir {tmp_path} --image_bytes_as_serving_input'
    succeed(f'--eval_only --data_dir {data_dir} --model_dir {trained[0]} {flags}')
    views = Views(32, 40, min_area=0.08, use_boxes=False)
    test = datasets.open_split('imagenet', 'test', data_dir=data_dir, views=views)
    model, card = predict.load(trained[0])
    jpegs = [jpeg for jpeg, _, _ in draw(NUM_TEST, seed=1)]
    images = tf.stack([encoded.test_view(jpeg, test.views) for jpeg in jpegs])
    expected = tf.nn.softmax(model(NORMALIZATIONS[card.normalization](images))).numpy()
    served = tf.saved_model.load(str(next(tmp_path.iterdir()))).signatures['serving_default']
    np.testing.assert_allclose(served(image_bytes=tf.constant(jpegs))['probabilities'], expected, atol=1e-5)


def test_a_model_dir_of_imagenet_under_cifars_program(data_dir, trained):
    command = f'imagenet_main --eval_only --data_dir {data_dir} --model_dir {trained[0]}'
    assert f'({NUM_TEST} images)' in programs.succeed(command, cifar10_main.PROGRAM)


# --- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('args', ['--model_dir {new} {small} -te 1', '--model_dir {trained} --eval_only'])
def test_damage_that_only_reading_finds_is_one_line(data_dir, trained, tmp_path, args):
    shutil.copytree(data_dir, tmp_path / 'data')
    path = tmp_path / 'data' / 'validation-00001-of-00002'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    args = args.format(new=tmp_path / 'model', small=SMALL, trained=trained[0])
    assert re.search(f"'{path}' .*at byte", mistake(f'--data_dir {tmp_path}/data {args}'))


@pytest.mark.parametrize(
    'args,message',
    [
        ('-rs 50', '--resnet_size 6, not 8'),
        ('--image_size=48', '--image_size 32, not 48'),
        ('--background_class', '--background_class False'),
    ],
)
def test_another_run_in_model_dir_is_refused(data_dir, trained, args, message):
    assert message in mistake(f'--data_dir {data_dir} --model_dir {trained[0]} {SMALL} {args}')


@pytest.mark.parametrize(
    'args,message',
    [
        ('--eval_only -pmcp /tmp/x.keras', '.keras'),
        ('--num_classes=3', '--num_classes=3 with 6'),
        ('-pmcp {trained} --head=keep --background_class', '--head=replace'),
    ],
)
def test_other_mistakes_are_one_line(data_dir, trained, tmp_path, args, message):
    small = '' if '--eval_only' in args else SMALL
    command = f'--data_dir {data_dir} --model_dir {tmp_path} {small} {args.format(trained=trained[0])}'
    assert message in mistake(command)
