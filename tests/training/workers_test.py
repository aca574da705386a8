"""Who the workers are, how they meet, and the launcher: exit codes, signals, grace. No TensorFlow but in one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.training import workers

HOSTS = ['host1:2222', 'host2:2222', 'host3:2222']


def cluster(task_type='worker', index=0, **jobs):
    return json.dumps({'cluster': jobs, 'task': {'type': task_type, 'index': index}})


@pytest.fixture(autouse=True)
def no_config(monkeypatch):
    monkeypatch.setenv('TF_CONFIG', '')
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '2')


def message_of(function, *args):
    """Return the one line of the UserError that a call ends with."""
    with pytest.raises(UserError) as caught:
        function(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)


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
        (cluster('worker', 1, chief=HOSTS[:1], worker=HOSTS[1:]), (2, 3)),
        (cluster(worker=['[::1]:2222']), (0, 1)),
    ],
)
def test_tf_config(monkeypatch, config, expected):
    monkeypatch.setenv('TF_CONFIG', config)
    assert workers.configure() == expected


@pytest.mark.parametrize(
    'hosts,index,message',
    [
        (['host1'], 0, "worker_hosts has 'host1', which is no host:port; pass as host1:2222,host2:2222"),
        (['host1:0'], 0, "'host1:0', which is no host:port"),
        (['host1:65536'], 0, "'host1:65536', which is no host:port"),
        ([':2222'], 0, "':2222', which is no host:port"),
        (['host1:x'], 0, "'host1:x', which is no host:port"),
        (['host1:²'], 0, 'which is no host:port'),
        (['a:1', 'a:1'], 0, '--worker_hosts=a:1,a:1 names a worker twice; pass each once'),
        (HOSTS, 3, '--task_index=3 is none of the 3 --worker_hosts; pass 0..2'),
        (HOSTS, None, '--task_index=None is none of'),
        (HOSTS, -1, '--task_index=-1 is none of'),
    ],
)
def test_wrong_hosts(hosts, index, message):
    assert message in message_of(workers.configure, hosts, index)


@pytest.mark.parametrize(
    'text',
    [
        '{',
        '[]',
        '1',
        'null',
        '{}',
        '{"cluster": {}}',
        '{"cluster": {"worker": ["a:1"]}}',
        cluster(),
        cluster('ps', 0),
        cluster(index=3, worker=HOSTS),
        cluster(index=-1, worker=HOSTS),
        cluster(index='x', worker=HOSTS),
        cluster(worker='host1:2222'),
        cluster(worker=['host1']),
        cluster(worker=[1]),
        cluster('chief', 0, worker=HOSTS),
        cluster('evaluator', 0, worker=HOSTS),
        '{\n' * 9,
    ],
)
def test_a_tf_config_that_describes_no_worker(monkeypatch, text):
    monkeypatch.setenv('TF_CONFIG', text)
    message = message_of(workers.configure)
    assert message.startswith('TF_CONFIG ') and 'describes no worker; set it as {"cluster": {"worker": ["' in message


def test_nothing_said():
    assert message_of(workers.configure).endswith(
        'pass --worker_hosts and --task_index, or set TF_CONFIG, or try --local_workers=2'
    )


# --- how they meet -------------------------------------------------------------------------------------------


def start_meeting(hosts, index, seconds, address_list=None):
    """Start a process that comes to the meeting; it prints what became of it."""
    code = (
        'import sys; from official_resnet import errors; from official_resnet.training import workers\n'
        'try: workers.meet(float(sys.argv[1])); print("met", end="")\n'
        'except errors.UserError as error: print(error, end="")'
    )
    return subprocess.Popen(
        [sys.executable, '-c', code, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {'TF_CONFIG': workers.tf_config(hosts, index)},
    )


def ends(processes):
    return [process.communicate(timeout=30)[0] for process in processes]


def local_hosts(count):
    return [f'localhost:{port}' for port in workers.free_ports(count)]


def test_all_meet_whoever_comes_first_or_calls_besides():
    hosts = local_hosts(3)
    processes = [start_meeting(hosts, 2, 20), start_meeting(hosts, 0, 20)]
    deadline = time.monotonic() + 15
    while True:
        try:
            with socket.create_connection(('localhost', int(hosts[0].split(':')[1]))) as stranger:
                stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    time.sleep(0.3)
    assert [process.poll() for process in processes] == [None, None]
    processes[0].kill()  # and is started again
    processes[0].communicate()
    processes[0] = start_meeting(hosts, 2, 20)
    processes.append(start_meeting(hosts, 1, 20))
    assert ends(processes) == ['met'] * 3
    assert ends([start_meeting(hosts, i, 20) for i in range(3)]) == ['met'] * 3  # the ports are free at once


def test_who_does_not_come_is_named_by_all():
    hosts = local_hosts(3)
    line = f'worker 1 ({hosts[1]}) did not come; start all workers again, within minutes'
    assert ends([start_meeting(hosts, i, 2) for i in (0, 2)]) == [line] * 2


@pytest.mark.parametrize('chief', ['localhost:1', 'no-such-host.invalid:2222'])
def test_a_chief_that_cannot_be_reached(chief, monkeypatch):
    monkeypatch.setenv('TF_CONFIG', workers.tf_config([chief, *local_hosts(1)], 1))
    assert f"worker 1 did not reach the chief at '{chief}' (" in message_of(workers.meet, 0.5)


def test_workers_that_contradict_each_other():
    hosts, other = local_hosts(2), local_hosts(1)
    chief, worker = ends([start_meeting(hosts, 0, 10), start_meeting([hosts[0], *other], 1, 10)])
    assert (
        chief
        == worker
        == (
            f'worker 1 was started with the workers {hosts[0]},{other[0]}, the chief with '
            f'{",".join(hosts)}; give all the same list'
        )
    )


def test_a_port_in_use(monkeypatch):
    with socket.create_server(('', 0)) as server:
        host = f'localhost:{server.getsockname()[1]}'
        for index in (0, 1):
            hosts = [host, *local_hosts(1)] if index == 0 else [*local_hosts(1), host]
            monkeypatch.setenv('TF_CONFIG', workers.tf_config(hosts, index))
            assert message_of(workers.meet, 5) == (
                f"cannot listen at port {host.split(':')[1]} of '{host}': Address already in use; end what is there, "
                'or pass another port to all workers'
            )


def test_one_worker_needs_no_meeting(monkeypatch):
    monkeypatch.setenv('TF_CONFIG', workers.tf_config(['localhost:1'], 0))  # a port that it might not open
    workers.meet(0)


def test_data_that_nobody_brings_is_waited_for_with_an_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workers, 'POLL_SECONDS', 0)
    monkeypatch.setattr(workers, 'is_chief_there', lambda: True)
    monkeypatch.setattr(workers, 'DATA_SECONDS', 0)
    text = message_of(workers.await_data, 'cifar10', str(tmp_path))
    assert f"cifar10 is not in '{tmp_path}' after 0 minutes" in text and '--data_dir that all workers see' in text
    assert capsys.readouterr().out == f"waiting for the chief to fetch cifar10 into '{tmp_path}'\n"
    missing = iter([True, True, False])
    monkeypatch.setattr(workers, 'DATA_SECONDS', 60)
    monkeypatch.setattr(datasets, 'is_missing', lambda *args: next(missing))
    workers.await_data('cifar10', str(tmp_path))
    assert capsys.readouterr().out.count('\n') == 1 and next(missing, None) is None
    monkeypatch.setattr(datasets, 'is_missing', lambda *args: True)
    monkeypatch.setattr(workers, 'is_chief_there', lambda: False)
    assert 'the chief ended before cifar10 was there' in message_of(workers.await_data, 'cifar10', str(tmp_path))


def test_whether_the_chief_answers(monkeypatch):
    with socket.create_server(('localhost', 0)) as server:
        chief = f'localhost:{server.getsockname()[1]}'
        monkeypatch.setenv('TF_CONFIG', workers.tf_config([chief, 'localhost:1'], 1))
        assert workers.is_chief_there()
    assert not workers.is_chief_there()


def test_who_waits_too_long_for_a_worker_that_has_gone_is_killed():
    code = (
        'import time; from official_resnet.training import workers\n'
        'with workers.watched({}): time.sleep({})\nprint("on")'
    )
    ends = [
        subprocess.run([sys.executable, '-c', code.format(*seconds)], capture_output=True, text=True, timeout=30)
        for seconds in ((20, 0), (0.5, 20))
    ]
    assert [end.returncode for end in ends] == [0, -signal.SIGKILL] and [end.stdout for end in ends] == ['on\n', '']
    assert [end.stderr for end in ends] == [
        '',
        '-c: another worker ended while this one connected to it; start all '
        'workers again, they continue from the last checkpoint\n',
    ]


@pytest.mark.parametrize('count,is_lost', [(2, True), (1, False)])
def test_what_tensorflow_says_of_a_lost_worker(count, is_lost):
    """Whatever its text speaks of; too little memory, or a worker without others, is told as it is."""
    from tensorflow import errors

    worker = object.__new__(workers.Worker)
    worker.index, worker.count = 0, count
    with pytest.raises(workers.WorkerLost if is_lost else errors.UnavailableError) as caught, worker.explained():
        raise errors.UnavailableError(None, None, 'connection reset while it sent an image')
    if is_lost:
        assert 'worker 0 of 2 (from 0) has lost another; start all workers again' in str(caught.value)
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
    return subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def launch(code, **options):
    process = start_launcher(code, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


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
        ('sys.exit(4 if index == 1 else 0)', 4),
        ('time.sleep(index); sys.exit(5 + index)', 5),
        ('time.sleep(1 - index); sys.exit(5 + index)', 6),
        ('os.kill(os.getpid(), 9) if index else time.sleep(1)', 137),
    ],
)
def test_the_first_failure_decides_the_exit_code(code, expected):
    assert launch(code)[0] == expected


def test_the_others_have_grace_and_then_none():
    begin = time.monotonic()
    code, out, _ = launch('sys.exit(3) if index else time.sleep(1.5)\nprint("done")', grace=20)
    assert (code, out) == (3, 'done\n')
    assert launch('sys.exit(3) if index else time.sleep(100)', grace=1)[0] == 3
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_worker_once(number):
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
    assert message == f'--local_workers={cores + 1}, but there are {cores} cores; pass {cores} or fewer'


def test_free_ports_differ_and_are_free():
    ports = workers.free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(('localhost', port)).close()
