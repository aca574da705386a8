"""Build shards, `<name>-00000-of-01024` ..., in several processes. They are TFRecord files of tf.train.Example.

The bytes of a shard depend only on the images, the options and its number. A shard is written in `.<name>.progress`,
the folder of the job, and then renamed. A build that is killed at any point therefore continues if the same command
is run again, and ends with the same bytes. `<name>.manifest.json`, written last, lists the shards, and the images that
were encoded again or are broken.

The processes are separate programs. They stop when the pipe to them closes, map images and boxes from the folder of the
job into memory, and hold one image at a time.
"""

import collections
import contextlib
import ctypes
import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from official_resnet import damage, files
from official_resnet.building.image_list import ImageList, Opener, open_unbuffered
from official_resnet.building.job import Job
from official_resnet.building.progress import Log, Progress
from official_resnet.building.records import Options, features
from official_resnet.errors import UserError
from official_resnet.inputs import jpeg, tfrecords
from official_resnet.inputs.images import to_rgb_jpeg

_TICK_SECONDS = 0.1  # between two messages of a process about its progress
_VERSIONS = {'imagenet': 1, 'folder': 2}  # of a layout; changes when the same images and options give other bytes


def shard_rows(count: int, shard: int, num_shards: int, seed: int) -> np.ndarray:
    """Return the numbers of the images in a shard, in their order: int32, from 0..count-1."""
    return _order(count, seed)[count * shard // num_shards : count * (shard + 1) // num_shards]


@functools.lru_cache(maxsize=1)
def _order(count, seed):
    """Return 0..count-1, shuffled by raw random numbers: numpy may change its shuffles, but not these (NEP 19)."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind='stable').astype(np.int32)


def build_shard(
    images: ImageList,
    shard: int,
    num_shards: int,
    options: Options,
    output: IO[bytes],
    *,
    opener: Opener = open_unbuffered,
    on_image: Callable[[int], None] = lambda num_bytes: None,
) -> dict:
    """Write one shard to `output` and return its summary.

    `on_image` is called with the number of bytes of each record, or with 0 for a broken image.

    Returns:
        JSON values: 'shard', 'records', 'bytes', 'sha256', 'classes' {class: records}, 'reencoded' and 'broken', both
        {name of the image: reason}.

    Raises:
        UserError: An image cannot be read, or is broken and on_broken is 'fail'.
    """
    digest, classes = hashlib.sha256(), collections.Counter[str]()
    summary: dict[str, Any] = {'shard': shard, 'records': 0, 'bytes': 0, 'reencoded': {}, 'broken': {}}
    for i in shard_rows(len(images), shard, num_shards, options.seed).tolist():
        name = images.name(i)
        try:
            data = images.read_bytes(i, opener)
            encoded, width, height = to_rgb_jpeg(data, options.check, options.rules)
        except UserError:  # which is a ValueError, too
            raise
        except ValueError as error:
            if options.on_broken == 'fail':
                raise UserError(
                    f"image '{name}' is broken ({error}); fix or remove it, or pass --on_broken=skip"
                ) from None
            summary['broken'][name] = str(error)
            on_image(0)
            continue
        if encoded is not data:
            summary['reencoded'][name] = jpeg.reason(jpeg.inspect(data))
        record = tfrecords.frame(tfrecords.encode_example(features(images, i, options, encoded, width, height)))
        output.write(record)
        digest.update(record)
        classes[images.synset(i)] += 1
        summary['records'] += 1
        summary['bytes'] += len(record)
        on_image(len(record))
    return {**summary, 'classes': dict(sorted(classes.items())), 'sha256': digest.hexdigest()}


def build(
    images: ImageList,
    name: str,
    output_dir: str | os.PathLike,
    num_shards: int,
    num_threads: int = 8,
    *,
    options: Options | None = None,
    log: Log = print,
) -> dict:
    """Write all shards that are missing, then the manifest; return the manifest.

    Args:
        name: 'train' or 'validation', the beginning of the file names.
        output_dir: Created if it does not exist.
        num_threads: Number of processes. The name is upstream's.

    Returns:
        The manifest: 'name', 'layout', 'seed', 'check', 'fingerprint', 'records', 'bytes', 'synsets', 'classes'
        {class: records}, 'shards' [{'name', 'records', 'bytes', 'sha256'}], 'reencoded' and 'broken' {name: reason},
        'skipped' [name]: files that are not images, and folders that are not classes.

    Raises:
        UserError: The folder has files of another build, or one is running there; the disk is full or read-only; an
            image cannot be read, or is broken and on_broken is 'fail'. Finished shards stay.
    """
    job, options = Job(output_dir, name, num_shards), options or Options()
    with _write_errors(job), contextlib.closing(job):
        write = functools.partial(_write_shards, job, images, options.on_broken, num_threads, log)
        return complete(job, images, options, write, log)


def complete(job: Job, images: ImageList, options: Options, write: Callable[[list[int]], list[dict]], log: Log) -> dict:
    """Complete a job: call write(missing shards), then write the manifest; return the manifest.

    `write` returns the summaries of build_shard, in any order.

    Raises:
        UserError: The folder has files of another build, or a shard that was missing now has other bytes.
    """
    kept = job.open(fingerprint(images, options, job.num_shards))
    todo = job.missing(kept) if kept else list(range(job.num_shards))
    if kept and not todo:
        what = f'{kept["records"]} images in {job.num_shards} shards'
        log(f"{job.name} is complete, {what} in '{job.output_dir}': nothing to do")
    else:
        job.save(images, f'{job.folder}/images')  # also when continuing, as the images may have moved
        job.save(options, f'{job.folder}/options')
        summaries = write(todo)
        if kept is None:
            kept = _manifest(job, images, options, summaries)
            job.write_json(job.manifest_path, kept)
        else:
            _require_same(job, kept, summaries)
        words = {
            'reencoded': 'images re-encoded',
            'broken': 'broken images left out',
            'skipped': 'other files left out',
        }
        notes = [
            f'{len(kept[key])} {text}' for key, text in words.items() if kept.get(key)
        ]  # older ones lack 'skipped'
        names = f"; {', '.join(notes)}, named in '{job.manifest_path}'" if notes else ''
        log(f'{job.name}: {kept["bytes"] / 1e9:.3f} GB in {job.num_shards} shards{names}')
        log(f'Finished writing all {kept["records"]} images in data set.')
    job.remove()
    return kept


def _require_same(job, manifest, summaries):
    """Raise UserError if a shard of a finished build that was missing now has other bytes."""
    for summary in summaries:
        entry = manifest['shards'][summary['shard']]
        if summary['sha256'] != entry['sha256']:
            raise UserError(
                f"'{entry['name']}' was missing, and the images now give other bytes than '{job.manifest_path}' "
                f"states; delete that and '{job.output_dir}/{job.name}-*' to start over"
            )


def fingerprint(images: ImageList, options: Options, num_shards: int) -> str:
    """Return a SHA-256 of what decides the bytes of the shards, but for the content of the images."""
    decisive = [_VERSIONS[options.layout], num_shards, images.digest(), options.digest()]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def load(job: Job) -> tuple[ImageList, Options]:
    """Return the images and options that `complete` saved for the processes. Raise Damaged if they have changed."""
    with damage.reported(job.folder, 'run the same command again'):
        images, options = job.load(ImageList, f'{job.folder}/images'), job.load(Options, f'{job.folder}/options')
        if fingerprint(images, options, job.num_shards) != job.fingerprint:
            raise ValueError('its images or options are not those that were saved')
    return images, options


def _manifest(job, images, options, summaries):
    """Return the manifest, as `build` describes it, from the summaries of all shards, and check it."""
    summaries = sorted(summaries, key=lambda summary: summary['shard'])
    classes = collections.Counter(dict.fromkeys(images.synsets[1:], 0))
    for summary in summaries:
        classes.update(summary['classes'])
    manifest = {
        'name': job.name,
        'layout': options.layout,
        'seed': options.seed,
        'check': options.check,
        'fingerprint': job.fingerprint,
        'records': sum(summary['records'] for summary in summaries),
        'bytes': sum(summary['bytes'] for summary in summaries),
        'synsets': list(images.synsets),
        'classes': dict(classes),
        'shards': [
            {'name': job.shard_name(summary['shard']), **{key: summary[key] for key in ('records', 'bytes', 'sha256')}}
            for summary in summaries
        ],
        'reencoded': {name: reason for summary in summaries for name, reason in summary['reencoded'].items()},
        'broken': {name: reason for summary in summaries for name, reason in summary['broken'].items()},
        'skipped': list(images.skipped),
    }
    fault = job.fault_of(manifest)
    if not fault and not manifest['broken'] and manifest['records'] != len(images):
        fault = f'they have {manifest["records"]} records of {len(images)} images'
    if fault:
        remedy = f"delete it and '{job.output_dir}/{job.name}-*' to start over"
        raise UserError(f"the summaries of shards in '{job.folder}' are wrong ({fault}); {remedy}")
    return manifest


def _write_errors(job):
    remedy = ' and run the same command again to continue, or pass another --output_directory'
    return files.write_errors(f"'{job.output_dir}'", remedy)


def _write_shards(job, images, on_broken, num_threads, log, todo):
    """Build the unfinished shards of `todo` in several processes; return the summaries of all shards of `todo`."""
    unfinished = [shard for shard in todo if job.summary(shard, on_broken) is None]
    sizes = images.rows['size']  # -1 for plain files
    needed, free = int(sizes[sizes > 0].sum()) * len(unfinished) // job.num_shards, shutil.disk_usage(job.folder).free
    if needed > free:
        raise UserError(
            f"'{job.output_dir}' has {free / 1e9:.1f} GB free, but {job.name} needs {needed / 1e9:.1f} GB; "
            'free some space, or pass another --output_directory'
        )
    done = len(images) - sum(len(shard_rows(len(images), shard, job.num_shards, 0)) for shard in unfinished)
    if done:
        log(f'{job.name}: continuing, {job.num_shards - len(unfinished)} of {job.num_shards} shards are finished')
    with Progress(job.name, len(images), log, done) as progress:
        _run_processes(job, unfinished, num_threads, progress)
    summaries = {shard: job.summary(shard) for shard in todo}
    for shard, summary in summaries.items():
        if summary is None:
            raise UserError(f"'{job.shard_path(shard)}' has disappeared; run the same command again")
    return list(summaries.values())


def _run_processes(job, todo, num_threads, progress):
    """Hand out shards to processes until all are built. However this function ends, the processes end with it."""
    num_bytes, left = 0, iter(todo)
    command = [sys.executable, '-P', '-m', __name__, job.output_dir, job.name, str(job.num_shards), job.fingerprint]
    with contextlib.ExitStack() as stack:
        processes = {}  # by the connection to each
        for _ in range(min(num_threads, len(todo))):
            ours, theirs = multiprocessing.Pipe()
            inherited = theirs.fileno(), job.lock.fileno()  # a process holds the lock as long as it lives
            # Each has its own session, so Ctrl-C on the terminal reaches only the build.
            process = subprocess.Popen(
                [*command, str(os.getpid()), str(inherited[0])], pass_fds=inherited, start_new_session=True
            )
            processes[ours] = stack.enter_context(process)
            stack.callback(process.kill)
            theirs.close()
        while processes:
            for connection in multiprocessing.connection.wait(processes):
                try:
                    sizes, result = connection.recv()
                except (EOFError, OSError):
                    code = processes[connection].wait()
                    ending = f'was ended by {signal.Signals(-code).name}' if code < 0 else f'ended with {code}'
                    raise UserError(
                        f'a process of the build {ending}; run the same command again to continue, with a lower '
                        '--num_threads if memory was short'
                    ) from None
                num_bytes += sum(sizes)
                rate = num_bytes / max(progress.format_dict['elapsed'], 1e-9)
                progress.update_to(progress.n + len(sizes), f'{rate / 1e6:.1f} MB/s')
                if isinstance(result, UserError):
                    raise result
                if result is None:
                    continue
                for name, reason in result.items():
                    progress.log(f"left out the broken image '{name}' ({reason})")
                shard = next(left, None)
                if shard is None:
                    del processes[connection]
                else:
                    with contextlib.suppress(ConnectionError):  # the process has ended, which the next recv() reports
                        connection.send(shard)


def _serve(output_dir, name, num_shards, fingerprint, parent, descriptor):
    """Run as a process of a build until the connection closes: receive the numbers of shards and write them.

    It sends (sizes of new records, result): None during a shard, and its broken images or the error at its end.
    """
    with contextlib.suppress(AttributeError):  # other than Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no process of a killed build holds its lock
    if os.getppid() != int(parent):
        return  # it has been killed already
    job = Job(output_dir, name, int(num_shards), fingerprint)
    connection = multiprocessing.connection.Connection(int(descriptor))
    sizes, last = [], time.monotonic()

    def send(result) -> None:
        nonlocal last
        connection.send((sizes, result))
        sizes.clear()
        last = time.monotonic()

    def tick(size) -> None:
        sizes.append(size)
        if time.monotonic() - last > _TICK_SECONDS:
            send(None)

    with contextlib.suppress(EOFError, ConnectionError):  # the build has ended
        try:
            images, options = load(job)
        except UserError as error:
            send(error)
            return
        send({})
        while True:
            shard = connection.recv()
            write = functools.partial(build_shard, images, shard, job.num_shards, options, on_image=tick)
            try:
                with _write_errors(job):
                    result = job.write_shard(shard, write)['broken']
            except UserError as error:
                result = error
            send(result)


if __name__ == '__main__':
    _serve(*sys.argv[1:])
