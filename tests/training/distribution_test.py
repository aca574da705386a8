"""One device, two replicas and two workers train the same net; whoever dies or errs costs a line and no step.

The workers are processes of worker_program.py or of cifar10_main.py on this machine; each pair does several checks,
since TensorFlow takes seconds to start.
"""

import dataclasses
import json
import pathlib
import re
import signal
import sys

import numpy as np
import pytest
from fixtures import worker_processes
from fixtures.batches import message_of
from fixtures.imagenet_shards import draw, write_shards
from fixtures.programs import finish, start
from fixtures.tiny_training import assert_equal_runs, make_config, synthetic_split
from fixtures.worker_processes import flags_of, last_step, start_pair, start_workers, wait_for

from official_resnet import checkpoints, resnet_run_loop
from official_resnet.inputs import datasets
from official_resnet.inputs.views import Views

pytestmark = pytest.mark.whole_runs

STEPS = 20  # of 7 an epoch: the last is cut
NOTICED = 30  # seconds, in which the end of a worker ends the others


# --- one device, two replicas, two workers -------------------------------------------------------------------


@pytest.fixture(scope='module')
def configs(cifar_dir, tmp_path_factory):
    """Trainings by name: (TrainConfig, the fields of its machine that worker 1 has of its own)."""
    folder = tmp_path_factory.mktemp('configs')
    write_shards(folder / 'shards', draw(40))
    write_shards(folder / 'shards', draw(13), 'test', 2)

    def config(name, **fields):
        return make_config(cifar_dir, name and folder / name, **{'max_train_steps': STEPS, 'train_epochs': 3} | fields)

    streamed = {'dataset': 'imagenet', 'max_train_steps': 4, 'train_epochs': 2, 'views': Views(16, 16)}
    plain = config('plain')
    # One device sums up a batch in another order, which differs in the last bits; steps of this size leave it at that,
    # at the usual rate each makes it several times as much.
    alike = {'sync_batch_norm': True, 'base_learning_rate': 0.005}
    return {
        'plain': (plain, {}),
        'synchronized': (config('synchronized', **alike), {}),
        'streamed': (config('streamed', **streamed | {'data_dir': str(folder / 'shards')}), {}),
        # 30 test images, of which worker 1 has none.
        'large batch': (config(None, batch_size=64, max_train_steps=2, train_epochs=2, **alike), {}),
        'another seed': (dataclasses.replace(plain, seed=5), {}),
        'another model_dir': (plain, {'model_dir': str(folder / 'nowhere')}),
        'another batch': (config(None, batch_size=15), {}),
    }


@pytest.fixture(scope='module')
def by_workers(configs, tmp_path_factory):
    """Name -> what each of two workers made of the training."""
    folder = tmp_path_factory.mktemp('workers')
    jobs = [
        config.with_machine(distribution_strategy='multi_worker_mirrored').to_json() | {'_worker_1': own}
        for config, own in configs.values()
    ]
    (folder / 'jobs.json').write_text(json.dumps(jobs))
    program = pathlib.Path(worker_processes.__file__).with_name('worker_program.py')
    command = [sys.executable, str(program), str(folder / 'jobs.json'), str(folder / 'out')]
    for end in finish(start_workers(command, has_chief=True)):
        assert end.code == 0, end.err
    return {
        name: [dict(np.load(folder / f'out-{worker}-{number}.npz')) for worker in (0, 1)]
        for number, name in enumerate(configs)
    }


@pytest.fixture(scope='module')
def by_replicas(configs):
    """Name -> the TrainResult of a run on two logical CPUs."""
    return {
        name: resnet_run_loop.train(configs[name][0].with_machine(distribution_strategy='mirrored', model_dir=None))
        for name in ('plain', 'synchronized', 'streamed', 'large batch')
    }


def assert_same(trained, result, tolerance):
    """Variables, losses and evaluations, of which counts and images right must agree to the last digit."""
    for variable in trained.model.variables:
        np.testing.assert_allclose(result[variable.path], variable.numpy(), 0, tolerance, err_msg=variable.path)
    for name in ('loss', 'val_loss'):
        np.testing.assert_allclose(
            result[f'history/{name}'], trained.history.history[name], 10 * tolerance, err_msg=name
        )
    for name in ('accuracy', 'val_accuracy', 'val_accuracy_top_5'):
        assert result[f'history/{name}'].tolist() == trained.history.history[name], name


@pytest.mark.parametrize('name', ['plain', 'synchronized', 'streamed', 'large batch'])
def test_two_workers_equal_two_replicas(by_workers, by_replicas, name):
    assert_same(by_replicas[name], by_workers[name][0], 1e-6)
    one, other = by_workers[name]
    assert one.keys() == other.keys()
    for key in one:  # also the moving statistics, which each computes from images of its own
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.mark.parametrize('name', ['synchronized', 'large batch'])
def test_two_workers_equal_one_device(by_workers, configs, name):
    one = resnet_run_loop.train(configs[name][0].with_machine(model_dir=None))
    assert_same(one, by_workers[name][0], 5e-5)  # sums in another order: up to 2.4e-5 with AMX, below 1e-5 with AVX2


def test_replicas_hold_the_same_moving_statistics(by_replicas):
    for result in by_replicas.values():
        for variable in result.model.variables:
            values = result.process.strategy.experimental_local_results(variable.value)
            assert len(values) == 2 and np.array_equal(*values), variable.path


def test_the_checkpoint_holds_what_the_workers_hold(by_workers, configs):
    config = configs['plain'][0]
    arrays, state, path = checkpoints.restore_latest(pathlib.Path(config.machine.model_dir) / 'checkpoints')
    assert state['step'] == STEPS and any('moving_variance' in name for name in arrays)
    for name, value in by_workers['plain'][0].items():
        if '/' in name and not name.startswith('history/'):
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    evaluated = resnet_run_loop.evaluate(config)  # on one device
    assert evaluated['num_images'] == 30
    assert evaluated['accuracy'] == by_workers['plain'][0]['history/val_accuracy'][-1]


def test_only_the_chief_writes(by_workers, configs):
    model_dir = pathlib.Path(configs['plain'][0].machine.model_dir)
    lines = checkpoints.read_metrics(model_dir)
    assert [line['epoch'] for line in lines if line['split'] == 'test'] == [1, 2, 3]  # once each
    assert not (model_dir.parent / 'nowhere').exists()  # worker 1's own, in which it never wrote


@pytest.mark.parametrize(
    'name,messages',
    [
        ('another seed', ['--model_dir=.*/plain .*--seed 0, not 5'] * 2),
        ('another model_dir', [f'worker {i} is at step {step}.*one folder' for i, step in ((0, STEPS), (1, 0))]),
        ('another batch', ['batch_size=15 .* 2 .*--batch_size=14'] * 2),
    ],
)
def test_mistakes_are_said_by_all_workers(by_workers, name, messages):
    for result, message in zip(by_workers[name], messages, strict=True):
        assert re.search(message, str(result['error'])) and '\n' not in str(result['error'])


# --- the input of a worker -----------------------------------------------------------------------------------


def shared_batches(make_batches, count, **options):
    """Return [[(images, labels) of each worker's part] of each batch]."""
    parts = [list(make_batches(12, share=(i, count), **options).as_numpy_iterator()) for i in range(count)]
    return list(zip(*parts, strict=True))


def assert_shared(make_batches, count, **options):
    """The parts of all workers, without what only fills them, are the batch of one process."""
    whole = list(make_batches(12, **options).as_numpy_iterator())
    for (images, labels), parts in zip(whole, shared_batches(make_batches, count, **options), strict=True):
        assert all(len(part[1]) == 12 // count for part in parts)
        ours, ids = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        np.testing.assert_array_equal(ids[ids >= 0], labels)
        np.testing.assert_array_equal(ours[ids >= 0], images)  # augmented alike


@pytest.mark.parametrize('count', [2, 3, 4])
def test_workers_share_each_batch_without_overlap(count):
    examples = dataclasses.replace(synthetic_split(40), normalization='none')  # which would differ in its last bits
    assert_shared(examples.training_batches, count, seed=3, num_epochs=2)


@pytest.mark.parametrize('num_images', [1, 5, 12, 25, 40])
def test_workers_evaluate_each_image_once(num_images):
    assert_shared(dataclasses.replace(synthetic_split(num_images), normalization='none').evaluation_batches, 3)


def test_workers_share_streamed_batches(tmp_path):
    assert len(write_shards(tmp_path, draw(31))) == 4
    examples = datasets.open_split('imagenet', 'train', data_dir=tmp_path, views=Views(16, 16))
    assert_shared(examples.training_batches, 3, seed=3, num_epochs=2)
    assert_shared(examples.evaluation_batches, 3)


# --- faults --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def undisturbed(cifar_dir, tmp_path_factory):
    """The model_dir of a run by the launcher, which a second job tried to join."""
    model_dir = tmp_path_factory.mktemp('undisturbed') / 'model'
    process = start(f'cifar10_main {flags_of(cifar_dir, model_dir)} --local_workers=2')
    wait_for(2, model_dir, [process])
    message = message_of(resnet_run_loop.train, make_config(cifar_dir, model_dir))
    ((code, out, err),) = finish([process])
    assert code == 0 and 'after epoch 3 (step 21)' in out and err == '', err
    return model_dir, message


def test_a_second_job_on_one_model_dir_is_refused(undisturbed):
    assert re.search(rf"'{undisturbed[0]}' .*process \d+ on \S+; .*--model_dir", undisturbed[1])


def test_whoever_is_killed_loses_nothing(cifar_dir, tmp_path, undisturbed, monkeypatch):
    """Worker 1 is killed, then the chief, then worker 1 is asked to end; then they come to the end.

    After a signal, no files are left in the folder of temporary ones, where TensorFlow writes some for each function.
    """
    for victim, number, step in ((1, signal.SIGKILL, 3), (0, signal.SIGKILL, 8), (1, signal.SIGTERM, 12)):
        (temporary := tmp_path / f'temporary{step}').mkdir()
        monkeypatch.setenv('TMPDIR', str(temporary))
        processes = start_pair(flags_of(cifar_dir, tmp_path))
        wait_for(step, tmp_path, processes)
        processes[victim].send_signal(number)
        ends = finish(processes, NOTICED)
        if number == signal.SIGKILL:
            code, _, err = ends[1 - victim]
            assert code == 1 and re.fullmatch(f'cifar10_main: worker {1 - victim} of 2 .*start all .*\n', err), err
        else:
            assert [(code, err) for code, _, err in ends] == [(128 + signal.SIGTERM, '')] * 2
            saved = re.search(r'^SIGTERM at step (\d+): .*same command', ends[0].out, re.MULTILINE)
            assert int(saved[1]) == last_step(tmp_path) and ends[1].out == ''
            assert not list(temporary.iterdir())
    ends = finish(start_pair(flags_of(cifar_dir, tmp_path)))
    assert [code for code, _, _ in ends] == [0, 0] and ends[1].err == '', ends
    assert 'continuing from ' in ends[0].out and 'after epoch 3 (step 21)' in ends[0].out
    assert_equal_runs(tmp_path, undisturbed[0])


def test_a_chief_that_errs_ends_the_others(cifar_dir, tmp_path):
    """Its model_dir lies below a file; the others learn of it, whatever they do at that moment."""
    (tmp_path / 'file').touch()
    ends = finish(start_pair(flags_of(cifar_dir, tmp_path / 'file' / 'model')), NOTICED)
    assert [(code, err.count('\n')) for code, _, err in ends] == [(1, 1)] * 2, ends
    assert f"model_dir '{tmp_path}/file/model'" in ends[0].err and 'worker 1 of 2' in ends[1].err


FETCHING = """
import shutil, sys, time
from official_resnet.inputs import download

def fetch_missing(dataset, data_dir):
    time.sleep(3)
    shutil.copytree({source!r}, data_dir + '.part')
    shutil.move(data_dir + '.part', data_dir)

download.fetch_missing = fetch_missing
from official_resnet import cifar10_main
cifar10_main.run()
"""


def test_other_workers_wait_for_the_data_that_the_chief_fetches(cifar_dir, tmp_path):
    code = FETCHING.format(source=str(cifar_dir))
    flags = flags_of(tmp_path / 'data', tmp_path / 'model', train_epochs=1)
    flags = flags.replace('--nodownload', '--distribution_strategy=multi_worker_mirrored')
    ends = finish(start_workers([sys.executable, '-c', code, *flags.split()]))
    assert f"cifar10 into '{tmp_path / 'data'}'\n" in ends[1].out, ends
    assert [code for code, _, _ in ends] == [0, 0] and ends[1].err == '', ends
    assert 'after epoch 1 (step 7)' in ends[0].out
