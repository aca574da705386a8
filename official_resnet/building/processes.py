"""Several processes build shards: how they are started, fed and ended, and what one of them does."""

import concurrent.futures
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from official_resnet.errors import UserError

_TICK_SECONDS = 0.1


def run(
    module: str,
    arguments: Sequence[str],
    lock: int,
    todo: Sequence[int],
    count: int,
    on_message: Callable[[dict], None],
) -> None:
    """Give shards to `count` processes until all are built.

    A process reads the number of a shard from its standard input, a line, and writes lines of JSON: as many as it
    likes with a key 'tick', then one with 'shard', when it gets the next, or with 'error'.

    Args:
        module: whose __main__ calls `serve`.
        arguments: of the module's command line.
        lock: file descriptor that a process holds as long as it lives.
        todo: numbers of shards.
        count: processes at most.
        on_message: called with each message, by one thread at a time.

    Raises:
        UserError: a process told of an error, or ended.
    """
    if not todo:
        return
    todo_left, turn = iter(todo), threading.Lock()

    def feed(process):
        for shard in todo_left:  # of which all threads take
            with contextlib.suppress(BrokenPipeError):  # it ended; the next line says so
                os.write(process.stdin.fileno(), b'%d\n' % shard)
            message = {}
            while 'shard' not in message:
                line = process.stdout.readline()
                if not line.endswith(b'\n'):
                    raise UserError(
                        f'a process of the build {_ending(process)}; run the same command again, which continues, '
                        'with a lower --num_threads if memory was short'
                    )
                message = json.loads(line)
                if 'error' in message:
                    raise UserError(message['error'])
                with turn:
                    on_message(message)

    # A session of their own: Ctrl-C on the terminal reaches the build alone, which ends its processes.
    options = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'pass_fds': [lock], 'start_new_session': True}
    command = [sys.executable, '-P', '-m', module, *arguments]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, **options)) for _ in range(min(count, len(todo)))]
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(processes)))
        for process in processes:
            stack.callback(process.kill)
        for future in concurrent.futures.as_completed([threads.submit(feed, process) for process in processes]):
            future.result()


def _ending(process):
    """Return how a process ended, in words."""
    code = process.wait()
    return f'was ended by {signal.Signals(-code).name}' if code < 0 else f'ended with {code}'


def serve(build: Callable[[int, Callable[[int], None]], dict]) -> None:
    """Be a process of the build: build(shard, tick) -> message, for each shard that standard input names.

    tick(bytes) ends the process at once if the build that started it is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll, pending, last = select.poll(), [0, 0], time.monotonic()
    poll.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)

    def tick(size):
        nonlocal last
        if poll.poll(0):
            os._exit(1)  # nothing comes before the shard is done: the pipe is closed
        pending[0] += 1
        pending[1] += size
        if time.monotonic() - last > _TICK_SECONDS:
            flush()

    def flush():
        nonlocal last
        send({'tick': pending[:]})
        pending[:], last = [0, 0], time.monotonic()

    def send(message):
        try:
            print(json.dumps(message), flush=True)
        except BrokenPipeError:
            os._exit(1)

    while line := os.read(sys.stdin.fileno(), 64):
        try:
            message = build(int(line), tick)
        except UserError as error:
            message = {'error': str(error)}
        flush()
        send(message)
