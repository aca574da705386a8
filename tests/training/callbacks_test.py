"""What is shown and logged."""

import dataclasses
import io
import json
import resource
import zipfile

import pytest
from fixtures.tiny_training import StopAt, make_config

from official_resnet import resnet_run_loop, resnet_variants
from official_resnet.command_line import more_logging
from official_resnet.command_line.flags import RunOptions
from official_resnet.errors import UserError
from official_resnet.training import callbacks
from official_resnet.training.config import TrainConfig

PARAMS = {'epochs': 3, 'steps': 10, 'batch_size': 4, 'first_step': 0, 'last_step': 30}
# Keras hands floats over.
LOGS = {'loss': 1.5, 'accuracy': 0.5, 'learning_rate': 0.1, 'seconds': 1.0, 'step': 10.0}
LOGS |= {'images_per_second': 40.0, 'epoch_images_per_second': 30.0}
TEST = {'val_loss': 1.25, 'val_accuracy': 0.75, 'val_seconds': 0.5, 'val_images_per_second': 80.0}


def make(callback, **params):
    callback.set_params(PARAMS | params)
    return callback


def test_the_lines_of_a_run_are_those_of_its_trainer(cifar_dir, tmp_path):
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, tmp_path))
    trainer.rows.append({'split': 'test', 'accuracy': 0.8})
    record, rows = make(callbacks.Record(trainer)), trainer.rows
    record.set_model(trainer.model)
    record.path.write_text('{"split": "train", "step": 30}\n{"spl')
    record.on_train_begin()
    assert record.path.read_text() == '{"split": "test", "accuracy": 0.8}\n'
    record.on_epoch_end(0, LOGS | TEST)
    assert [(row['split'], row['accuracy']) for row in rows] == [('test', 0.8), ('train', 0.5), ('test', 0.75)]
    assert list(map(json.loads, record.path.read_text().splitlines())) == rows
    assert not (tmp_path / 'best.keras').exists()  # 0.75 is not better than 0.8


def test_the_rows_of_a_curve_are_means_over_equal_windows_however_long_the_run():
    """A window doubles before there are more than MOST; what a checkpoint keeps makes the same rows."""
    curve = callbacks.Curve()
    for step in range(1, 4 * callbacks.Curve.MOST + 6):
        curve.add(step, float(step), step % 2)
        if step % 1000 == 700:
            curve = callbacks.Curve(**json.loads(json.dumps(vars(curve))))
    assert curve.every == 8 and len(curve.rows) == callbacks.Curve.MOST // 2 + 1
    firsts = [1 + 8 * i for i in range(500)]
    assert curve.rows[:-1] == [[8, sum(range(first, first + 8)), 4] for first in firsts]
    assert curve.rows[-1] == [5, 5 * 4003, 3]
    curve = callbacks.Curve()  # of a checkpoint that had none
    curve.add(4001, 2.0, 1)
    assert curve.every == 8 and curve.rows[-1] == [1, 2.0, 1] and not any(map(any, curve.rows[:-1]))


def test_a_full_disk_at_the_end_names_the_file_and_leaves_no_part(cifar_dir, tmp_path):
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, tmp_path))
    record = make(callbacks.Record(trainer))
    record.set_model(trainer.model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, limits[1]))  # bytes
    try:
        with pytest.raises(UserError, match=f"'{tmp_path}/model.keras': .*free some space.* and run the same command"):
            record.on_train_end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir()) and trainer.model.compiled
    record.on_train_end()
    assert [path.name for path in tmp_path.iterdir()] == ['model.keras']
    with zipfile.ZipFile(tmp_path / 'model.keras') as archive:
        assert 'official_resnet' not in archive.read('config.json').decode()  # so it loads without this package
        assert b'optimizer' not in archive.read('model.weights.h5')


@pytest.mark.parametrize('is_terminal,last_step', [(True, 10**6), (False, 10**6), (False, 30)])
def test_progress(capsys, is_terminal, last_step):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    callback = make(callbacks.Progress(5, '--recipe=fast is quicker', stream), last_step=last_step)
    callback.on_epoch_begin(0)
    for step in (1, 4, 6, 10):
        callback.on_train_batch_end(step - 1, LOGS | {'step': step})
    callback.on_epoch_end(0, LOGS | TEST)
    out = capsys.readouterr().out
    assert ('27 h 47 min at 40 images/s' in out) == ('--recipe=fast is quicker' in out) == (last_step > 30)
    assert ('expected time' in out) == (last_step > 30)  # else it would be of 3 seconds
    [line] = [line for line in out.splitlines() if line.startswith('epoch 1/3: loss')]
    assert line == 'epoch 1/3: loss 1.5000, 50.00%; test loss 1.2500, 75.00%; 40 images/s'
    make(callback, epochs=182).on_epoch_end(181, LOGS | TEST | {'accuracy': 1, 'images_per_second': 98765.4})
    assert len(capsys.readouterr().out) <= 80  # with the end of the line
    assert f'\n{out}'.count('\nstep ') == (0 if is_terminal else 2)  # at 6 and 10
    assert ('epoch 1/3' in stream.getvalue() and 'images/s' in stream.getvalue()) == is_terminal


@pytest.mark.parametrize('transfer', ['all', 'head'])
def test_too_few_steps_for_the_statistics_of_batch_norms_are_told(cifar_dir, capsys, transfer):
    progress = make(callbacks.Progress())
    trainer = resnet_run_loop.Trainer(make_config(cifar_dir, None, transfer=transfer))
    progress.set_model(trainer.model)
    for steps, is_too_few in ((20, True), (29, True), (30, False)):  # with a momentum of 0.9
        make(progress, last_step=steps, trainer=trainer).on_train_begin()
        is_told = '--bn_momentum=0.9 needs 30 steps'
        # Frozen statistics need no steps.
        assert (is_told in capsys.readouterr().out) == (is_too_few and transfer == 'all')


def test_trained_statistics_of_batch_norms_need_no_steps(cifar_dir, tmp_path, capsys):
    network, config = tmp_path / 'network', make_config(cifar_dir, None, max_train_steps=2)
    resnet_run_loop.train(config.with_machine(model_dir=str(network)))
    assert '--bn_momentum=0.9 needs' in capsys.readouterr().out
    resnet_run_loop.train(dataclasses.replace(config, pretrained=str(network)))
    assert '--bn_momentum' not in capsys.readouterr().out


@pytest.mark.parametrize('optimizer,rate', [('momentum', '0.05'), ('muon', '0.4')])
def test_the_rate_that_is_used_is_printed(cifar_dir, capsys, optimizer, rate):
    config = make_config(cifar_dir, None, max_train_steps=1, optimizer=optimizer)  # 16 images, not 128
    resnet_run_loop.train(config, [callbacks.Summary(config, 'fast')])
    assert f'{optimizer}, rate {rate} ' in capsys.readouterr().out


def test_the_bar_is_removed_whatever_ends_the_training(cifar_dir):
    """Wherever it stands in the list; a second Ctrl-C and an error leave no half bar before their line."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = callbacks.Progress(stream=stream)
    with pytest.raises(RuntimeError, match='killed'):
        resnet_run_loop.train(make_config(cifar_dir, None), [StopAt(3), progress])
    assert stream.getvalue().endswith('\r')  # tqdm has wiped its line


@pytest.mark.parametrize(
    'hooks,names',
    [
        ({'examplespersecondhook'}, ['current_examples_per_sec', 'average_examples_per_sec']),
        ({'loggingmetrichook'}, ['learning_rate', 'cross_entropy', 'train_accuracy']),
    ],
)
def test_benchmark_log(tmp_path, capsys, hooks, names):
    for folder in (tmp_path, None):
        callback = make(more_logging.BenchmarkLog(folder, {'model_name': 'resnet'}, 10, hooks))
        callback.on_train_begin()
        callback.on_train_batch_end(8, LOGS | {'step': 9})  # no line yet
        callback.on_train_batch_end(9, LOGS)
        callback.on_epoch_end(0, LOGS | TEST)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = [json.loads(line) for line in (tmp_path / 'metric.log').read_text().splitlines()]
    assert [line['name'] for line in written] == [line['name'] for line in printed] == [*names, 'accuracy', 'loss']
    assert all(line['global_step'] == 10 for line in written)
    assert json.loads((tmp_path / 'benchmark_run.log').read_text())['model_name'] == 'resnet'


@pytest.mark.parametrize('kind,is_written', [('BaseBenchmarkLogger', False), ('BenchmarkFileLogger', True)])
def test_the_base_logger_prints_and_the_file_logger_writes(kind, is_written, tmp_path, capsys):
    """As in official/resnet, also where --benchmark_log_dir is given."""
    options = RunOptions(benchmark_logger_type=kind, benchmark_log_dir=str(tmp_path / 'log'))
    config = TrainConfig(resnet_variants.cifar_spec(8))
    [callback] = more_logging.callbacks_of(config, options, hooks=set())
    make(callback).on_train_begin()
    callback.on_epoch_end(0, LOGS | TEST)
    assert (tmp_path / 'log').exists() is is_written
    assert ('"accuracy"' in capsys.readouterr().out) is not is_written


@pytest.mark.parametrize('seconds,text', [(40, '40 s'), (720, '12 min'), (7500, '2 h 05 min'), (5399, '1 h 30 min')])
def test_format_seconds(seconds, text):
    assert callbacks.format_seconds(seconds) == text
