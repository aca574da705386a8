"""Who the workers are, how they start, and the launcher: exit codes, signals, grace. No TensorFlow but in one."""

import json
import os
import re
import signal
import socket
import time

import pytest
from fixtures.batches import message_of
from fixtures.programs import finish
from fixtures.worker_processes import start_python

from official_resnet.errors import Interrupted
from official_resnet.inputs import datasets
from official_resnet.training import workers

HOSTS = ['host1:2222', 'host2:2222', 'host3:2222']


def cluster(task_type='worker', index=0, **jobs):
    return json.dumps({'cluster': jobs, 'task': {'type': task_type, 'index': index}})


@pytest.fixture(autouse=True)
def no_config(monkeypatch):
    monkeypatch.setenv('TF_CONFIG', '')
    monkeypatch.setenv(workers.TOKEN, 'secret')
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '2')


# --- who they are --------------------------------------------------------------------------------------------


def test_worker_hosts_become_tf_config():
    assert [workers.configure(HOSTS, i) for i in range(3)] == [(0, 3), (1, 3), (2, 3)]
    assert json.loads(os.environ['TF_CONFIG']) == {'cluster': {'worker': HOSTS}, 'task': {'type': 'worker', 'index': 2}}
    assert workers.configure() == (2, 3)  # as the loop asks again


@pytest.mark.parametrize(
    'config,expected',
    [
        (cluster(worker=HOSTS), (0, 3)),
        (cluster(index='2', worker=HOSTS), (2, 3)),
        (cluster('chief', 0, chief=HOSTS[:1], worker=HOSTS[1:]), (0, 3)),
        (cluster('worker', 0, chief=HOSTS[:1], worker=HOSTS[1:]), (1, 3)),
        (cluster(worker=['[::1]:2222']), (0, 1)),
    ],
)
def test_tf_config(monkeypatch, config, expected):
    monkeypatch.setenv('TF_CONFIG', config)
    assert workers.configure() == expected


@pytest.mark.parametrize(
    'hosts,index,message',
    [
        (['host1'], 0, "'host1'.* host1:2222,host2:2222"),
        (['host1:0'], 0, "'host1:0'"),
        (['host1..x:2222'], 0, "'host1..x:2222'"),
        (['host1:' + '9' * 6000], 0, "'host1:"),
        ([':2222'], 0, "':2222'"),
        (['host1:²'], 0, "'host1:²'"),
        (['a:1', 'a:1'], 0, '--worker_hosts=a:1,a:1 .*once'),
        (HOSTS, 3, '--task_index=3 .*0..2'),
        (HOSTS, None, '--task_index=None .*0..2'),
    ],
)
def test_wrong_hosts(hosts, index, message):
    assert re.search(message, message_of(workers.configure, hosts, index))


@pytest.mark.parametrize(
    'text',
    [
        *('{', '[]', '1', 'null', '{}', '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}}', '{\n' * 9),
        pytest.param('[' * 9000, id='brackets'),
        cluster(),
        cluster(index=3, worker=HOSTS),
        cluster(index='x', worker=HOSTS),
        cluster(worker='host1:2222'),
        cluster(worker=['host1']),
        cluster('chief', 0, worker=HOSTS),
    ],
)
def test_a_tf_config_that_describes_no_worker(monkeypatch, text):
    monkeypatch.setenv('TF_CONFIG', text)
    message = message_of(workers.configure)
    assert f'TF_CONFIG {" ".join(text.split())[:200]} ' in message and '{"cluster": {"worker": ["' in message


def test_workers_on_several_machines_need_a_token(monkeypatch):
    monkeypatch.setenv(workers.TOKEN, '')
    message = message_of(workers.configure, HOSTS, 0)
    assert re.search(f'{",".join(HOSTS)} .*--worker_token=.*RESNET_WORKER_TOKEN', message)
    assert workers.configure(['localhost:1', '127.0.0.1:2'], 0) == (0, 2) and workers.configure(HOSTS[:1], 0) == (0, 1)
    assert workers.configure(HOSTS, 0, 'word') == (0, 3) and os.environ[workers.TOKEN] == 'word'


def test_nothing_said():
    assert re.search('--worker_hosts and --task_index.*TF_CONFIG.*--local_workers=2', message_of(workers.configure))


# --- while they start -----------------------------------------------------------------------------------------


def test_data_that_nobody_brings_is_waited_for_with_an_end(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(workers, 'POLL_SECONDS', 0)
    monkeypatch.setattr(workers, 'is_chief_there', lambda: True)
    monkeypatch.setattr(workers, 'DATA_SECONDS', 0)
    text = message_of(workers.await_data, 'cifar10', str(tmp_path))
    assert f"cifar10 is not in '{tmp_path}' after 0 minutes" in text and '--data_dir' in text
    assert caplog.messages[-1].endswith(f"cifar10 into '{tmp_path}'")
    caplog.clear()
    missing = iter([True, True, False])
    monkeypatch.setattr(workers, 'DATA_SECONDS', 60)
    monkeypatch.setattr(datasets, 'is_missing', lambda *args: next(missing))
    workers.await_data('cifar10', str(tmp_path))
    assert len(caplog.messages) == 1 and next(missing, None) is None
    monkeypatch.setattr(datasets, 'is_missing', lambda *args: True)
    monkeypatch.setattr(workers, 'is_chief_there', lambda: False)
    assert 'cifar10' in message_of(workers.await_data, 'cifar10', str(tmp_path))


def test_whether_the_chief_answers(monkeypatch):
    with socket.create_server(('localhost', 0)) as server:
        chief = f'localhost:{server.getsockname()[1]}'
        monkeypatch.setenv('TF_CONFIG', workers.tf_config([chief, 'localhost:1'], 1))
        assert workers.is_chief_there()
    assert not workers.is_chief_there()


def test_who_waits_too_long_for_a_worker_that_has_gone_is_killed():
    code = 'import sys, time; from official_resnet.training import workers\n'
    code += 'with workers.watched(20): pass\nwith workers.watched(0.5): time.sleep(20)'
    [killed] = finish([start_python(code)], 30)
    assert killed[:2] == (-signal.SIGKILL, '')
    assert re.fullmatch('-c: .*start all workers again.*\n', killed.err)


@pytest.mark.parametrize('count,is_lost', [(2, True), (1, False)])
def test_what_tensorflow_says_of_a_lost_worker(count, is_lost):
    """Whatever its text speaks of; too little memory, or a worker without others, is told as it is."""
    from tensorflow import errors

    worker = object.__new__(workers.Worker)
    worker.index, worker.count = 0, count
    with pytest.raises(workers.WorkerLost if is_lost else errors.UnavailableError) as caught, worker.explained():
        raise errors.UnavailableError(None, None, 'connection reset while it sent an image')
    if is_lost:
        assert re.search('worker 0 of 2 .*start all workers again', str(caught.value))
    with pytest.raises(errors.ResourceExhaustedError), worker.explained():
        raise errors.ResourceExhaustedError(None, None, 'OOM when allocating a tensor')


# --- the launcher --------------------------------------------------------------------------------------------


HEAD = 'import json, os, signal, sys, time; index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]\n'


def start_launcher(code, grace=30, count=2):
    """Start a process that launches workers which run a piece of Python."""
    code = (
        f'import sys; from official_resnet.training import workers\nworkers.GRACE_SECONDS = {grace}\n'
        f'sys.exit(workers.launch({count}, [sys.executable, "-c", {HEAD + code!r}]))'
    )
    return start_python(code, start_new_session=True)


def launch(code, **options):
    return finish([start_launcher(code, **options)], 60)[0]


def test_each_worker_has_a_core_and_a_place():
    code, out, err = launch('print(index, sorted(os.sched_getaffinity(0)), os.environ["TF_CONFIG"])')
    lines = out.splitlines() + [line.removeprefix('worker 1: ') for line in err.splitlines()]
    assert code == 0 and [line[0] for line in lines] == ['0', '1']  # the chief's as it is, the other's with its name
    cores = [json.loads(line[2 : line.index(']') + 1]) for line in lines]
    assert not set(cores[0]) & set(cores[1]) and set(cores[0] + cores[1]) == os.sched_getaffinity(0)
    configs = [json.loads(line[line.index('{') :]) for line in lines]
    assert configs[0]['cluster'] == configs[1]['cluster'] and len(set(configs[0]['cluster']['worker'])) == 2


@pytest.mark.parametrize(
    'code,expected',
    [
        ('pass', 0),
        ('sys.exit(3 if index == 0 else 0)', 3),
        ('time.sleep(index); sys.exit(5 + index)', 5),
        ('os.kill(os.getpid(), 9) if index else time.sleep(1)', 137),
    ],
)
def test_the_first_failure_decides_the_exit_code(code, expected):
    assert launch(code)[0] == expected


@pytest.mark.whole_runs
def test_the_others_have_grace_and_then_none():
    begin = time.monotonic()
    code, out, _ = launch('sys.exit(3) if index else time.sleep(1)\nprint("done")', grace=20)
    assert (code, out) == (3, 'done\n')
    assert launch('sys.exit(3) if index else time.sleep(100)', grace=0.5)[0] == 3
    assert time.monotonic() - begin < 20


def test_a_signal_reaches_every_worker_once():
    number = signal.SIGINT
    code = (
        'count = []\n'
        f'signal.signal({int(number)}, lambda *args: count.append(1))\n'
        'print("ready", flush=True)\n'
        'while not count: time.sleep(0.05)\n'
        'time.sleep(0.3)\n'
        f'print(len(count), flush=True)\nsys.exit({128 + number})'
    )
    process = start_launcher(code)
    assert process.stdout.readline() == 'ready\n' and process.stderr.readline() == 'worker 1: ready\n'
    os.killpg(process.pid, number)  # as a terminal sends Ctrl-C: to all of the launcher's group
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, '1\n', 'worker 1: 1\n')


def test_a_killed_launcher_takes_its_workers_along():
    process = start_launcher('print(os.getpid(), flush=True)\ntime.sleep(100)')
    pids = [int(process.stdout.readline()), int(process.stderr.readline().removeprefix('worker 1: '))]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(map(_is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_more_workers_than_cores():
    cores = len(os.sched_getaffinity(0))
    message = message_of(workers.launch, cores + 1, ['false'])
    assert re.search(f'--local_workers={cores + 1}, .*{cores} or fewer', message)


def test_ctrl_c_while_a_worker_waits_for_the_others_is_no_error_of_tensorflow(monkeypatch):
    worker = object.__new__(workers.Worker)

    def total(text):
        raise RuntimeError(text)

    text = 'pybind11::error_already_set: KeyboardInterrupt: at'
    monkeypatch.setattr(worker, 'total', lambda number: total(text), raising=False)
    with pytest.raises(Interrupted, match='^$') as caught:
        worker.wait()
    assert caught.value.signal_number == signal.SIGINT
    monkeypatch.setattr(worker, 'total', lambda number: total('another'))
    with pytest.raises(RuntimeError, match='another'):
        worker.wait()
