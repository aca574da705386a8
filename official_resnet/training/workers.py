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
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from official_resnet.errors import Interrupted, UserError
from official_resnet.inputs import datasets
from official_resnet.training import devices, meeting

if TYPE_CHECKING:
    import tensorflow as tf

GRACE_SECONDS = 30  # for the other workers to stop after one has failed, before they are killed
DATA_SECONDS, POLL_SECONDS = 1800, 1  # for the chief to download the data set, and between two checks
JOIN_SECONDS = 30  # for TensorFlow to connect workers that have met
TOKEN = 'RESNET_WORKER_TOKEN'  # the environment variable of the job's token
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
            try:
                self.total(0)
            except RuntimeError as error:  # pybind11's, of a Ctrl-C while TensorFlow waits
                if 'KeyboardInterrupt' not in str(error):
                    raise
                raise Interrupted(signal.SIGINT, '') from None


@functools.lru_cache
def join(all_reduce_alg: str | None) -> 'tf.distribute.Strategy':
    """Return the only tf.distribute.Strategy of the workers in TF_CONFIG, after all of them have arrived."""
    import tensorflow as tf

    implementation = tf.distribute.experimental.CommunicationImplementation
    chosen = implementation[(all_reduce_alg or 'auto').upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=chosen)
    addresses, index = _cluster()
    meeting.meet(addresses, index, os.environ.get(TOKEN, ''))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # TensorFlow may wait without letting handlers run
    with watched(), devices.hidden_stderr():
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except (tf.errors.OpError, RuntimeError) as error:  # a worker arrived, but ended before it connected
            fault = str(error).splitlines()[0][:200]
    raise UserError(f'the workers cannot join: {fault}; start all workers again')


def configure(
    worker_hosts: list[str] | None = None, task_index: int | None = None, worker_token: str | None = None
) -> tuple[int, int]:
    """Return (index of this worker, number of workers), from TF_CONFIG or from the flags.

    The flags set TF_CONFIG and TOKEN. Call it before TensorFlow is imported, because it also silences TensorFlow.
    worker_hosts are ['host:port', ...].

    Raises:
        UserError: Neither names the workers, or a value is wrong, or workers on several machines have no token.
    """
    if worker_token:
        os.environ[TOKEN] = worker_token
    if worker_hosts:
        for host in worker_hosts:
            try:
                meeting.split(host)
            except ValueError:
                example = 'pass for example host1:2222,host2:2222'
                raise UserError(f"--worker_hosts has '{host}', not host:port; {example}") from None
        if len(set(worker_hosts)) < len(worker_hosts):
            raise UserError(f'--worker_hosts={",".join(worker_hosts)} lists a worker twice; list each once')
        if task_index is None or not 0 <= task_index < len(worker_hosts):
            raise UserError(
                f'--task_index={task_index} is not in --worker_hosts, which has {len(worker_hosts)}; '
                f'pass 0..{len(worker_hosts) - 1}'
            )
        os.environ['TF_CONFIG'] = tf_config(worker_hosts, task_index)
    addresses, index = _cluster()
    if len(addresses) > 1 and not os.environ.get(TOKEN) and not meeting.are_local(addresses):
        raise UserError(
            f'the workers {",".join(addresses)[:200]} can be called by anybody who reaches their ports; pass the same '
            f'--worker_token=SECRET to all, or set {TOKEN} for all'
        )
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
        for address in chiefs + others:
            meeting.split(address)  # ValueError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UserError(f'TF_CONFIG {" ".join(text.split())[:200]} describes no worker; set it as {_EXAMPLE}') from None
    return chiefs + others, index + (len(chiefs) if kind == 'worker' else 0)


def is_chief_there() -> bool:
    """Return whether the chief's TensorFlow server still answers, after all workers have joined."""
    with contextlib.suppress(OSError), socket.create_connection(meeting.split(_cluster()[0][0]), timeout=10):
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


def tf_config(hosts: Sequence[str], index: int) -> str:
    """Return the value of TF_CONFIG for one of the workers."""
    return json.dumps({'cluster': {'worker': list(hosts)}, 'task': {'type': 'worker', 'index': index}})


def launch(count: int, command: list[str]) -> int:
    """Run `count` workers of a command on this machine, each with its part of the cores, and return their exit code.

    Each worker gets its TF_CONFIG and the job's token. The first worker that fails decides the exit code; the others
    notice it themselves and have GRACE_SECONDS to stop. SIGTERM and Ctrl-C are passed on. If the launcher is killed,
    its workers also end.
    """
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise UserError(f'--local_workers={count}, but this machine has {len(cores)} cores; pass {len(cores)} or fewer')
    hosts = [f'localhost:{port}' for port in free_ports(count)]
    token = secrets.token_hex()
    names = [{'TF_CONFIG': tf_config(hosts, i), TOKEN: token} for i in range(count)]
    workers = [_start(command, names[i], set(cores[i::count]), is_chief=i == 0) for i in range(count)]
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


def _start(command, names, cores, is_chief):
    """Start a worker in its own session, so that Ctrl-C reaches it once. It gets SIGTERM if the launcher dies."""
    parent = os.getpid()

    def prepare() -> None:
        os.sched_setaffinity(0, cores)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getppid() != parent:  # the launcher died before prctl
            os._exit(1)

    output = {} if is_chief else {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return subprocess.Popen(command, env=os.environ | names, preexec_fn=prepare, start_new_session=True, **output)


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
