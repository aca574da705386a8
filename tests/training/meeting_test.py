"""How workers meet: who is late, who contradicts the others, and what strangers do at the ports. No TensorFlow."""

import concurrent.futures
import contextlib
import re
import socket
import threading
import time
import tracemalloc

import pytest
from fixtures import strangers
from fixtures.batches import message_of

from official_resnet.errors import UserError
from official_resnet.training import meeting, workers

TOKEN = 'a secret of the job'


def local_hosts(count):
    return [f'localhost:{port}' for port in workers.free_ports(count)]


@pytest.fixture
def meet():
    """A function that lets a worker meet in a thread and returns the future of None, or of its message."""

    def end_of(*args):
        try:
            return meeting.meet(*args)
        except UserError as error:
            assert '\n' not in str(error)
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield lambda hosts, index, seconds, token=TOKEN: pool.submit(end_of, hosts, index, token, seconds)


def connected(host, seconds=10):
    """Return a connection to a worker that will listen."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection(meeting.split(host))
        assert time.monotonic() < end
        time.sleep(0.01)


def results(*futures):
    return [future.result(30) for future in futures]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0)])
def test_all_meet_whoever_comes_first(meet, order):
    hosts = local_hosts(3)
    assert results(*(meet(hosts, index, 20) for index in order)) == [None] * 3


def test_a_worker_that_leaves_may_call_again(meet):
    hosts = local_hosts(3)
    chief = meet(hosts, 0, 20)
    with connected(hosts[0]) as first:
        first.sendall(meeting._line(TOKEN, 'call', worker=2, of=meeting._listing(hosts)))
        assert results(meet(hosts, 1, 0)) != [None] and not chief.done()
    assert results(chief, meet(hosts, 1, 20), meet(hosts, 2, 20)) == [None] * 3


def test_who_does_not_come_is_named_by_all(meet):
    hosts = local_hosts(3)
    one, other = results(*(meet(hosts, i, 1) for i in (0, 2)))
    assert one == other and f'worker 1 ({hosts[1]})' in one and 'start all workers again' in one


@pytest.mark.parametrize('chief', ['localhost:1', 'no-such-host.invalid:2222'])
def test_a_chief_that_cannot_be_reached(chief):
    message = message_of(meeting.meet, [chief, *local_hosts(1)], 1, '', 0.5)
    assert f"worker 1 did not reach the chief at '{chief}' (" in message


def test_workers_that_contradict_each_other(meet):
    hosts, other = local_hosts(2), local_hosts(1)
    chief, worker = results(meet(hosts, 0, 10), meet([hosts[0], *other], 1, 10))
    assert chief == worker
    assert f'worker 1 was started with the workers {hosts[0]},{other[0]}, ' in chief and ','.join(hosts) in chief


def test_two_workers_with_one_index(meet):
    hosts = local_hosts(3)
    chief = meet(hosts, 0, 10)
    with connected(hosts[0]) as first, connected(hosts[0]) as second:
        for connection in (first, second):
            connection.sendall(meeting._line(TOKEN, 'call', worker=1, of=meeting._listing(hosts)))
            time.sleep(0.1)
        for connection in (first, second):
            answer, has_token = meeting._opened(TOKEN, 'answer', meeting._read_line(connection, time.monotonic() + 5))
            assert has_token and re.search('two processes are worker 1.*--task_index', answer['fault'])
            connection.close()
        assert results(chief) == [answer['fault']]


def test_another_token(meet):
    hosts = local_hosts(2)
    chief, worker = results(meet(hosts, 0, 1), meet(hosts, 1, 10, 'another'))
    assert re.search(f"worker 1 and the chief at '{hosts[0]}' .*--worker_token", worker)
    assert f'worker 1 ({hosts[1]}) did not arrive (1 calls had another --worker_token)' in chief
    assert TOKEN not in chief + worker


@pytest.mark.parametrize('index', [0, 1])
def test_a_port_in_use(index):
    with socket.create_server(('', 0)) as server:
        host = f'localhost:{server.getsockname()[1]}'
        hosts = [host, *local_hosts(1)] if index == 0 else [*local_hosts(1), host]
        message = message_of(meeting.meet, hosts, index, '', 5)
        assert re.search(rf"port {host.split(':')[1]} of '{host}': Address.*another port", message)


def test_one_worker_needs_no_meeting():
    meeting.meet(['localhost:1'], 0, '', 0)  # a port that it might not open


@pytest.mark.parametrize(
    'addresses,are_local',
    [
        (['localhost:1', '127.0.0.2:1', '[::1]:1'], True),
        (['localhost:1', 'host1:1'], False),
        (['0.0.0.0:1'], False),
        (['localhost.example.org:1'], False),
    ],
)
def test_who_is_local(addresses, are_local):
    assert meeting.are_local(addresses) == are_local


@pytest.mark.parametrize('host,place', [('localhost', '127.0.0.1'), ('127.0.0.2', '127.0.0.2'), ('host1', None)])
def test_workers_of_one_machine_listen_on_its_loopback_only(host, place):
    [port] = workers.free_ports(1)
    with meeting._listen([f'{host}:{port}', f'{host}:1'], 0) as listener:
        assert listener.getsockname()[0] == (place or ('::' if socket.has_dualstack_ipv6() else '0.0.0.0'))


# --- strangers -----------------------------------------------------------------------------------------------


def hello(token):
    def line(**changes):
        return meeting._line(token, 'call', **({'worker': 1, 'of': ' '} | changes))

    return line


@pytest.mark.whole_runs
@pytest.mark.parametrize('token', ['', TOKEN])
def test_strangers_at_the_chief_do_not_matter(meet, token):
    """All of the table, one after another and all still connected; those that need no secret know none."""
    hosts = local_hosts(3)
    table = strangers.at_the_chief(
        lambda **changes: hello('')(**{'of': meeting._listing(hosts), 'worker': 1, **changes})
    )
    assert len(table) >= 40
    tracemalloc.start()
    chief = meet(hosts, 0, 20, token)
    kept = [connected(hosts[0])]
    for what, row in table.items():
        kept.append(strangers.call(row, meeting.split(hosts[0])))
        assert not chief.done(), (what, chief.result())
    begin = time.monotonic()
    assert results(chief, meet(hosts, 1, 20, token), meet(hosts, 2, 20, token)) == [None] * 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begin < 3 and peak < 20e6


def test_strangers_do_not_move_the_deadline(meet):
    hosts, begin = local_hosts(2), time.monotonic()
    chief = meet(hosts, 0, 1)
    kept = [connected(hosts[0])]
    with contextlib.suppress(OSError):
        while not chief.done():
            kept[0].sendall(b'a')
            kept.append(socket.create_connection(meeting.split(hosts[0])))
            time.sleep(0.01)
    assert 'did not arrive' in chief.result() and time.monotonic() - begin < 4


@pytest.mark.parametrize('what', strangers.AT_THE_WORKER)
def test_a_stranger_in_the_place_of_the_chief(what, monkeypatch):
    """A worker tries again until its deadline, and takes at most 64 kB of an answer."""
    monkeypatch.setattr(meeting, '_LATE', 0)
    answer, has_ended = strangers.AT_THE_WORKER[what], threading.Event()

    def be_chief():
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            while True:
                connection = stack.enter_context(server.accept()[0])
                connection.recv(1000)
                while answer is strangers.DRIP and not has_ended.wait(0.02):
                    connection.sendall(b'a')
                with contextlib.suppress(OSError):
                    if answer is not None:
                        connection.sendall(b'' if answer is strangers.DRIP else answer)
                        connection.close()

    with socket.create_server(('127.0.0.1', 0)) as server:
        thread = threading.Thread(target=be_chief)
        thread.start()
        begin = time.monotonic()
        hosts = [f'127.0.0.1:{server.getsockname()[1]}', *local_hosts(1)]
        tracemalloc.start()
        message = message_of(meeting.meet, hosts, 1, TOKEN, 0.3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert f"worker 1 did not reach the chief at '{hosts[0]}' (" in message
        assert time.monotonic() - begin < 3 and peak < 5e6
        has_ended.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
