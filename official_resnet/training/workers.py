"""Several processes that train one network: how they are named, how they meet, and a launcher for one machine.

A worker is a process, on this or another machine, that uses all GPUs of its machine, or its CPU. All workers run the
same command; TF_CONFIG, or --worker_hosts and --task_index, tell a process which worker it is. The first worker is the
chief, and only the chief writes files. This module does not import TensorFlow until it is needed.
"""

import contextlib
import ctypes
import functools
import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.training import devices

if TYPE_CHECKING:
    import tensorflow as tf

GRACE_SECONDS = 30  # for the other workers to stop after one has failed, before they are killed
WAIT_SECONDS = 600  # for the last worker to arrive, before the others give up
DATA_SECONDS, POLL_SECONDS = 1800, 1  # for the chief to download the data set, and between two checks
JOIN_SECONDS = 30  # for TensorFlow to connect workers that have met
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


class WorkerLost(UserError):
    """Another worker ended without a message."""


class Worker(devices.Process):
    """One of several processes that train together, at the same time and with the same program.

    Create it before TensorFlow computes anything in this process.
    """

    def __init__(self, batch_size: int, all_reduce_alg: str | None = None):
        self.index, self.count = configure()
        super().__init__(join(all_reduce_alg))
        import tensorflow as tf

        from official_resnet.training import replicas

        replicas.require_even(batch_size, self.strategy.num_replicas_in_sync)
        strategy, per_worker = self.strategy, self.strategy.num_replicas_in_sync // self.count

        def first_replica_only(values) -> 'tf.Tensor':
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return values * tf.cast(number % per_worker == 0, values.dtype)

        @tf.function
        def total(values) -> 'tf.Tensor':
            parts = strategy.run(first_replica_only, args=(values,))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

        self._sum = lambda numbers: total(tf.constant(numbers, tf.float64)).numpy().tolist()

    def total(self, *numbers: float) -> list[float]:
        return self._sum([float(number) for number in numbers])

    def distribute(self, batches: 'tf.data.Dataset', batch_size: int) -> Iterable:
        replicas = self.strategy.num_replicas_in_sync
        if replicas == self.count:  # one device per worker, so the worker's shard is the device's
            return batches
        return self.strategy.distribute_datasets_from_function(lambda _: batches.rebatch(batch_size // replicas))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the errors that TensorFlow raises when another worker is gone into WorkerLost."""
        from tensorflow import errors

        lost = (errors.UnavailableError, errors.AbortedError, errors.CancelledError, errors.InternalError)
        try:
            yield
        except (*lost, errors.DeadlineExceededError, errors.FailedPreconditionError) as error:
            if self.count == 1:
                raise
            raise WorkerLost(
                f'worker {self.index} of {self.count} (from 0) has lost another worker; start all workers again, '
                'and they continue from the last checkpoint'
            ) from error

    def require_same_step(self, step: int, model_dir: str | None) -> None:
        if self.total(step) != [step * self.count]:
            raise UserError(
                f'worker {self.index} is at step {step}, but another is not; --model_dir={model_dir} must be one '
                'folder that all workers share'
            )

    def wait(self) -> None:
        """Wait for all workers: if one worker exits early, TensorFlow reports it to the others as lost."""
        from tensorflow import errors

        with contextlib.suppress(errors.OpError):
            self.total(0)


@functools.lru_cache
def join(all_reduce_alg: str | None) -> 'tf.distribute.Strategy':
    """Return the only tf.distribute.Strategy of the workers in TF_CONFIG, after all of them have arrived."""
    import tensorflow as tf

    implementation = tf.distribute.experimental.CommunicationImplementation
    chosen = implementation[(all_reduce_alg or 'auto').upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=chosen)
    meet()
    with watched(), devices.hidden_stderr():
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except (tf.errors.OpError, RuntimeError) as error:  # a worker arrived, but ended before it connected
            fault = str(error).splitlines()[0][:200]
    raise UserError(f'the workers cannot join: {fault}; start all workers again')


def configure(worker_hosts: list[str] | None = None, task_index: int | None = None) -> tuple[int, int]:
    """Return (index of this worker, number of workers), from TF_CONFIG or from the flags, which set TF_CONFIG.

    Call it before TensorFlow is imported, because it also silences TensorFlow. worker_hosts are ['host:port', ...].

    Raises:
        UserError: Neither names the workers, or a value is wrong.
    """
    if worker_hosts:
        for host in worker_hosts:
            if not _split(host):
                raise UserError(f"--worker_hosts has '{host}', not host:port; pass for example host1:2222,host2:2222")
        if len(set(worker_hosts)) < len(worker_hosts):
            raise UserError(f'--worker_hosts={",".join(worker_hosts)} lists a worker twice; list each once')
        if task_index is None or not 0 <= task_index < len(worker_hosts):
            raise UserError(
                f'--task_index={task_index} is not in --worker_hosts, which has {len(worker_hosts)}; '
                f'pass 0..{len(worker_hosts) - 1}'
            )
        os.environ['TF_CONFIG'] = tf_config(worker_hosts, task_index)
    addresses, index = _cluster()
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '2') == '2':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # TensorFlow prints pages of messages when a worker ends
    return index, len(addresses)


def _cluster():
    """Return (addresses of all workers, the chief first; index of this worker) from TF_CONFIG."""
    text = os.environ.get('TF_CONFIG', '')
    if not text:
        raise UserError(
            '--distribution_strategy=multi_worker_mirrored needs the workers; pass --worker_hosts and --task_index, '
            'or set TF_CONFIG, or try --local_workers=2'
        )
    try:
        config = json.loads(text)
        cluster, task = config['cluster'], config['task']
        chiefs, others = cluster.get('chief', []), cluster.get('worker', [])
        kind, index = task['type'], int(task['index'])
        if index < 0 or not all(isinstance(hosts, list) for hosts in (chiefs, others)):
            raise ValueError(index)
        {'chief': chiefs, 'worker': others}[kind][index]  # KeyError, IndexError
        if not all(map(_split, chiefs + others)):
            raise ValueError(chiefs + others)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f'TF_CONFIG {" ".join(text.split())[:200]} describes no worker; set it as {_EXAMPLE}') from None
    return chiefs + others, index + (len(chiefs) if kind == 'worker' else 0)


def _split(address):
    """Return (host, port) of 'host:port', or None if the address has another form."""
    host, _, port = address.rpartition(':')
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    return (host.removeprefix('[').removesuffix(']'), int(port)) if host and is_port else None


def meet(seconds: float = WAIT_SECONDS) -> None:
    """Wait at the chief's address until all workers in TF_CONFIG have arrived; TensorFlow itself would wait forever.

    Raises:
        UserError: A worker is late, two have the same index, their lists of workers differ, or a port is in use.
    """
    addresses, index = _cluster()
    if len(addresses) == 1:
        return
    deadline = time.monotonic() + seconds
    with _listen(addresses[index]) as listener:  # all listen, to see that the port which TensorFlow needs is free
        if index == 0:
            _await_all(listener, addresses, deadline)
        else:
            _call_chief(addresses, index, deadline)


def is_chief_there() -> bool:
    """Return whether the chief's TensorFlow server still answers, after all workers have joined."""
    with contextlib.suppress(OSError), socket.create_connection(_split(_cluster()[0][0]), timeout=10):
        return True
    return False


def await_data(dataset: str, data_dir: str | None) -> None:
    """Wait until the chief has downloaded the data set. The other workers call this.

    Raises:
        UserError: The chief ended before that, or it takes too long.
    """
    deadline, has_waited = time.monotonic() + DATA_SECONDS, False
    while not _is_there(dataset, data_dir):
        if not has_waited:
            has_waited = True
            logging.getLogger(__name__).info(f"waiting for the chief to download {dataset} into '{data_dir}'")
        if not is_chief_there():
            raise UserError(
                f'the chief ended before {dataset} was complete; read its message, then start all workers again'
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"{dataset} is not in '{data_dir}' after {DATA_SECONDS // 60} minutes; pass a --data_dir that "
                'all workers share, or download it for each worker before you start them'
            )
        time.sleep(POLL_SECONDS)


def _is_there(dataset, data_dir):
    if not dataset.startswith('tfds:'):
        return not datasets.is_missing(dataset, data_dir)
    from official_resnet.inputs import tfds_source

    return tfds_source.is_prepared(dataset, data_dir)


@contextlib.contextmanager
def watched(seconds: float = JOIN_SECONDS) -> Iterator[None]:
    """Print a line that says why and kill this process, if the block takes longer than `seconds`.

    In the block, TensorFlow may wait for another worker forever, without letting signals or Python threads run.
    """
    program = os.path.basename(sys.argv[0]).removesuffix('.py')
    line = (
        f'{program}: another worker ended while this one connected to it; start all workers again, and they '
        'continue from the last checkpoint'
    )
    code = (
        'import os, select, sys\n'
        'if not select.select([0], [], [], float(sys.argv[1]))[0]:\n'  # closed: the block or the process has ended
        '    print(sys.argv[2], file=sys.stderr, flush=True)\n'
        '    os.kill(os.getppid(), 9)\n'
    )
    watcher = subprocess.Popen([sys.executable, '-ISc', code, str(seconds), line], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        watcher.communicate()  # closes its input


def _listen(address):
    _, port = _split(address)
    try:
        family = {'family': socket.AF_INET6, 'dualstack_ipv6': True} if socket.has_dualstack_ipv6() else {}
        return socket.create_server(('', port), **family)
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} of '{address}': {os.strerror(error.errno)}; stop the "
            'program that uses it, or pass another port to all workers'
        ) from error


def _await_all(listener, addresses, deadline):
    """Wait for all workers but the chief, then let them continue, or tell all of them what is wrong."""
    arrived: dict[int, socket.socket] = {}
    fault = None
    listener.settimeout(2)
    while not fault and len(arrived) < len(addresses) - 1:
        ready, _, _ = select.select([listener, *arrived.values()], [], [], 0.2)
        for number in [number for number, connection in arrived.items() if connection in ready]:
            arrived.pop(number).close()  # a worker sends one message only, so this one has left; it may call again
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a message that is not from a worker
            if listener in ready:
                connection, _ = listener.accept()
                connection.settimeout(2)
                message = json.loads(connection.makefile().readline(100_000))
                number, theirs = message['worker'], message['of']
                if theirs != addresses:
                    fault = (
                        f'worker {number} was started with the workers {",".join(map(str, theirs))[:200]}, the chief '
                        f'with {",".join(addresses)[:200]}; pass the same list to all'
                    )
                elif number in arrived or number == 0:
                    fault = f'two processes are worker {number}; give each its own --task_index'
                arrived[number if number not in arrived else -1] = connection
        if not fault and len(arrived) < len(addresses) - 1 and time.monotonic() > deadline:
            missing = [f'{i} ({addresses[i]})' for i in range(1, len(addresses)) if i not in arrived]
            fault = f'worker {", ".join(missing)} did not arrive; start all workers again, within minutes'
    for connection in arrived.values():
        with contextlib.suppress(OSError), connection:
            connection.sendall(f'{json.dumps({"fault": fault})}\n'.encode())
            connection.recv(1)  # the other side closes first, so the port is free at once
    if fault:
        raise UserError(fault)


def _call_chief(addresses, index, deadline):
    """Tell the chief that this worker has arrived, and wait until all have."""
    reason = 'no answer'
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_split(addresses[0]), timeout=min(left, 10)) as connection:
                connection.settimeout(left + 5)  # a little longer than the chief, which says who is missing
                connection.sendall(f'{json.dumps({"worker": index, "of": addresses})}\n'.encode())
                answer = connection.makefile().readline()
            if not answer:
                raise ConnectionError(0, 'the chief ended')
            fault = json.loads(answer)['fault']
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, 'strerror', None) or str(error) or reason
            time.sleep(0.2)
        else:
            if fault:
                raise UserError(fault)
            return
    raise UserError(
        f"worker {index} did not reach the chief at '{addresses[0]}' ({reason}); check the address and "
        'start all workers again, within minutes'
    )


def tf_config(hosts: Sequence[str], index: int) -> str:
    """Return the value of TF_CONFIG for one of the workers."""
    return json.dumps({'cluster': {'worker': list(hosts)}, 'task': {'type': 'worker', 'index': index}})


def launch(count: int, command: list[str]) -> int:
    """Run `count` workers of a command on this machine, each with its part of the cores, and return their exit code.

    Each worker gets its TF_CONFIG. The first worker that fails decides the exit code; the others notice it themselves
    and have GRACE_SECONDS to stop. SIGTERM and Ctrl-C are passed on. If the launcher is killed, its workers also end.
    """
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise UserError(f'--local_workers={count}, but this machine has {len(cores)} cores; pass {len(cores)} or fewer')
    hosts = [f'localhost:{port}' for port in free_ports(count)]
    workers = [_start(command, tf_config(hosts, i), set(cores[i::count]), is_chief=i == 0) for i in range(count)]
    relays = [threading.Thread(target=_relay, args=(i, workers[i].stdout), daemon=True) for i in range(1, count)]
    for relay in relays:
        relay.start()
    with devices.handled_signals(lambda number, frame: [worker.send_signal(number) for worker in workers]):
        code = _wait(workers)
    for relay in relays:
        relay.join(5)
    return code


def free_ports(count: int) -> list[int]:
    """Return TCP ports of localhost that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(('localhost', 0))
        return [sock.getsockname()[1] for sock in sockets]


def _start(command, config, cores, is_chief):
    """Start a worker in its own session, so that Ctrl-C reaches it once. It gets SIGTERM if the launcher dies."""
    parent = os.getpid()

    def prepare() -> None:
        os.sched_setaffinity(0, cores)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getppid() != parent:  # the launcher died before prctl
            os._exit(1)

    output = {} if is_chief else {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return subprocess.Popen(
        command, env=os.environ | {'TF_CONFIG': config}, preexec_fn=prepare, start_new_session=True, **output
    )


def _relay(index, stream):
    """Print the output of a worker other than the chief."""
    for line in stream:
        print(f'worker {index}: {line}', end='', file=sys.stderr, flush=True)


def _wait(workers):
    """Wait until all workers have ended; return the exit code of the first that failed, or 0."""
    code, deadline = 0, math.inf
    while True:
        codes = [worker.poll() for worker in workers]
        if not code and any(codes):
            code, deadline = next(filter(None, codes)), time.monotonic() + GRACE_SECONDS
        if None not in codes:
            return 128 - code if code < 0 else code
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.1)
