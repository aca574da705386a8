"""A build that survives being killed: its folder, its processes and what it tells meanwhile.

.<name>.progress/lock                            held by the build and its processes as long as one of them lives
                 job.json                        fingerprint of pictures and options
                 pictures.npy ...                the job, as the processes read it
                 <name>-00003-of-01024.part      a shard being written
                 <name>-00003-of-01024.json      summary of a finished one, which stands in the folder above
<name>.manifest.json                             written last
"""

import contextlib
import fcntl
import json
import os
import pathlib
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time

from official_resnet.errors import UserError

SECONDS = 30  # between two lines of progress where no terminal is
LOCK_SECONDS = 10  # that the processes of a killed build may take to end
_POLL_SECONDS = 0.1


class Job:
    """The folder of a build."""

    def __init__(self, output_dir, name, num_shards):
        self.output_dir, self.name, self.num_shards = pathlib.Path(output_dir), name, num_shards
        self.folder = self.output_dir / f'.{name}.progress'
        self.manifest_path = self.output_dir / f'{name}.manifest.json'
        self.lock = None

    def shard_name(self, shard):
        """Return the name of a shard's file."""
        return shard_name(self.name, shard, self.num_shards)

    def open(self, fingerprint):
        """Lock the folder, making it if need be; refuse the files of another build.

        Args:
            fingerprint: of pictures and options.

        Returns:
            The manifest if it is there already, else None.
        """
        manifest = read_json(self.manifest_path)
        is_new = not self.folder.is_dir()
        if is_new and not manifest and self.output_dir.is_dir():
            stranger = next(self.output_dir.glob(f'{self.name}-[0-9]*-of-[0-9]*'), None)
            if stranger:
                raise UserError(
                    f"'{stranger}' is there already, without '{self.manifest_path.name}' that would tell "
                    'how it was built; move it, or pass another --output_directory'
                )
        self._take_lock()
        try:
            self._refuse(fingerprint, manifest, self.manifest_path)
            self._refuse(fingerprint, read_json(self.folder / 'job.json'), self.folder)
        except UserError:
            if is_new:
                self.remove()
            raise
        if not read_json(self.folder / 'job.json'):
            write_json(self.folder / 'job.json', {'fingerprint': fingerprint, 'num_shards': self.num_shards})
        return manifest

    def close(self):
        """Let another build in; after a build that was stopped its processes still keep it out until they end."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def remove(self):
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def summary(self, shard):
        """Return the summary of a finished shard, None if it is not finished."""
        summary = read_json(self.folder / f'{self.shard_name(shard)}.json')
        return summary if summary and self.has_size(shard, summary['bytes']) else None

    def has_size(self, shard, size):
        """Tell whether a shard is in its place and has so many bytes."""
        try:
            return os.path.getsize(self.output_dir / self.shard_name(shard)) == size
        except OSError:
            return False

    def write_shard(self, shard, write):
        """Write a shard by write(file) -> summary, put it in its place, then keep the summary; return that."""
        part = self.folder / f'{self.shard_name(shard)}.part'
        with open(part, 'wb', buffering=1 << 20) as file:
            summary = write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.output_dir / self.shard_name(shard))
        _sync(self.output_dir)
        write_json(self.folder / f'{self.shard_name(shard)}.json', summary)
        return summary

    def _take_lock(self):
        """Hold the lock; the processes inherit it, so that none of a killed build is left when it is free."""
        end = time.monotonic() + LOCK_SECONDS
        while not self._try_lock():
            if time.monotonic() > end:
                raise UserError(
                    f"another build is writing '{self.output_dir / self.name}-*'; wait for it, or pass "
                    'another --output_directory'
                )
            time.sleep(_POLL_SECONDS)

    def _try_lock(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / 'lock'
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                self.lock, lock = lock, None
                return True
        except (BlockingIOError, FileNotFoundError):
            pass  # held, or a build that ended removed it
        finally:
            if lock is not None:
                os.close(lock)
        return False

    def _refuse(self, fingerprint, kept, where):
        if kept and kept.get('fingerprint') != fingerprint:
            raise UserError(
                f"'{where}' is of a build of other pictures or options; give those again, or delete it and "
                f"'{self.output_dir / self.name}-*' to start over, or pass another --output_directory"
            )


def shard_name(name, shard, num_shards):
    """Return the name of a shard's file."""
    return f'{name}-{shard:05d}-of-{num_shards:05d}'


def read_json(path):
    """Return what write_json wrote, None if it is missing or damaged."""
    try:
        value = json.loads(pathlib.Path(path).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path, value):
    """Write a file that is there whole or not at all."""
    part = pathlib.Path(f'{path}.part')
    with open(part, 'w') as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync(part.parent)


def run_processes(command, inherited, todo, count, on_message):
    """Give shards to `count` processes until all are built.

    A process reads the number of a shard from its standard input, a line, and writes lines of JSON: as many as it
    likes with a key 'tick', then one with 'shard', when it gets the next, or with 'error'.

    Args:
        command: starts a process.
        inherited: file descriptors that it gets.
        todo: numbers of shards.
        count: processes at most.
        on_message: called with each message.

    Raises:
        UserError: a process told of an error, or ended.
    """
    todo, messages, workers = list(reversed(todo)), queue.SimpleQueue(), []
    try:
        for _ in range(min(count, len(todo))):
            workers.append(_Worker(command, inherited, messages))
            workers[-1].give(todo)
        running = len(workers)
        while running:
            worker, message = messages.get()
            if message is None:
                running -= 1
                if worker.is_busy:
                    raise UserError(
                        f'a process of the build {worker.ending()}; run the same command again, which '
                        'continues, with a lower --num_threads if memory was short'
                    )
            elif 'error' in message:
                raise UserError(message['error'])
            else:
                on_message(message)
                if 'shard' in message:
                    worker.give(todo)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process, and the thread that reads what it says."""

    def __init__(self, command, inherited, messages):
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A session of its own: Ctrl-C on the terminal reaches the build alone, which ends its processes.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=inherited,
            start_new_session=True,
            env={**os.environ, 'PYTHONPATH': path},
        )
        self.is_busy = False
        self.thread = threading.Thread(target=self._read, args=(messages,), daemon=True)
        self.thread.start()

    def _read(self, messages):
        for line in self.process.stdout:
            messages.put((self, json.loads(line)))
        messages.put((self, None))

    def give(self, todo):
        """Have it build the next shard; without any, end."""
        self.is_busy = bool(todo)
        try:
            if todo:
                self.process.stdin.write(b'%d\n' % todo.pop())
                self.process.stdin.flush()
            else:
                self.process.stdin.close()
        except BrokenPipeError:
            pass  # it ended; its last message says so

    def ending(self):
        """Return how it ended, in words."""
        code = self.process.wait()
        return f'was ended by {signal.Signals(-code).name}' if code < 0 else f'ended with {code}'

    def end(self):
        """End it and wait for that."""
        self.process.kill()
        self.process.wait()
        self.thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def serve(build):
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
        if time.monotonic() - last > _POLL_SECONDS:
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


class Progress:
    """Pictures and bytes done: a bar on a terminal, else a line from time to time."""

    def __init__(self, name, total, done, log):
        self.name, self.total, self.done, self.bytes, self.first, self._log = name, total, done, 0, done, log
        self.start = self.last = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # not of use to the processes

            self.bar = tqdm(total=total, initial=done, desc=name, unit=' pictures', dynamic_ncols=True)

    def add(self, count, size):
        """Count pictures, and the bytes written for them."""
        self.done, self.bytes, now = self.done + count, self.bytes + size, time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(f'{self._rate(self.bytes, now) / 1e6:.1f} MB/s', refresh=False)
            self.bar.update(count)
        elif now - self.last >= SECONDS:
            self.last = now
            self._log(self.line(now))

    def line(self, now):
        """Return how far it is, how fast, and how long it takes yet."""
        rate = self._rate(self.done - self.first, now)
        left = (self.total - self.done) / rate if rate else 0
        return (
            f'{self.name}: {self.done} of {self.total} pictures, {rate:.0f} pictures/s, '
            f'{self._rate(self.bytes, now) / 1e6:.1f} MB/s, {left / 60:.0f} min left'
        )

    def log(self, line):
        """Write a line beside the bar."""
        if self.bar is not None:
            self.bar.clear()
        self._log(line)

    def close(self):
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def _rate(self, amount, now):
        return amount / max(now - self.start, 1e-9)


def _sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
