"""Images -> `<name>-00000-of-01024` ...: TFRecord files of tf.train.Example, built by several processes.

A shard's bytes depend on the images, the seed and its number alone. Each is written in `.<name>.progress`, the job's
folder, and put in place by a rename; so a build that is killed at any point goes on with the same command and ends with
the same bytes. `<name>.manifest.json` comes last and says what was written, encoded anew and left out.

Processes are programs of their own, which stop when the pipe to them closes; they map images and boxes from the job's
folder into memory and hold one image at a time.
"""

import collections
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import IO

import numpy as np

from official_resnet.building import processes
from official_resnet.building.image_list import ImageList, Opener, open_unbuffered
from official_resnet.building.job import Job, shard_name
from official_resnet.building.progress import Log, Progress
from official_resnet.building.records import Options, features
from official_resnet.errors import UserError
from official_resnet.inputs import jpeg, tfrecords
from official_resnet.inputs.images import to_rgb_jpeg

_VERSION = 1  # of what a shard's bytes depend on


def shard_rows(count: int, shard: int, num_shards: int, seed: int) -> np.ndarray:
    """Return which of `count` images a shard has, in its order."""
    return _order(count, seed)[count * shard // num_shards : count * (shard + 1) // num_shards]


@functools.lru_cache(maxsize=1)
def _order(count, seed):
    """Return 0..count-1 shuffled. By raw numbers, which numpy keeps forever; its shuffles may change (NEP 19)."""
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
    """Write one shard and return its summary.

    `on_image` is called with the bytes of each record written, 0 for a broken image.

    Returns:
        JSON values: 'shard', 'records', 'bytes', 'sha256', 'classes' {class: records}, 'reencoded' and 'broken', both
        {name of the image: reason}.

    Raises:
        UserError: an image cannot be read, or is broken and on_broken is 'fail'.
    """
    digest, classes = hashlib.sha256(), collections.Counter()
    summary = {'shard': shard, 'records': 0, 'bytes': 0, 'reencoded': {}, 'broken': {}}
    for i in shard_rows(len(images), shard, num_shards, options.seed).tolist():
        data, name = images.read_bytes(i, opener), images.name(i)
        try:
            encoded, width, height = to_rgb_jpeg(data, options.check)
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
        example = tfrecords.encode_example(features(images, i, options, encoded, width, height))
        record = tfrecords.frame(example)
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
    """Write all shards that are not there yet, then the manifest; return it.

    Args:
        images: of the data set.
        name: 'train', 'validation'; files begin with it.
        output_dir: made if need be.
        num_shards: files.
        num_threads: processes; upstream's name.
        options: what goes into the records, and what becomes of a broken image.
        log: called with lines.

    Returns:
        The manifest: 'name', 'layout', 'seed', 'check', 'fingerprint', 'records', 'bytes', 'synsets', 'classes'
        {class: records}, 'shards' [{'name', 'records', 'bytes', 'sha256'}], 'reencoded' and 'broken' {name: reason}.

    Raises:
        UserError: files of another build stand there, another one is going on, the disk is full or read-only, an image
            cannot be read, or is broken and on_broken is 'fail'. What is finished stays.
    """
    job = Job(output_dir, name, num_shards)
    try:
        return _build(job, images, options or Options(), num_threads, log)
    except OSError as error:
        raise _write_error(job, error) from None
    finally:
        job.close()


def _build(job, images, options, num_threads, log):
    kept = job.open(fingerprint(images, options, job.num_shards))
    if kept:
        todo = job.missing(kept)
    else:
        todo = [shard for shard in range(job.num_shards) if job.summary(shard, options.on_broken) is None]
    if kept and not todo:
        job.log_complete(kept, log)
    else:
        _require_space(job, images, len(todo))
        images.save(f'{job.folder}/images')  # also when going on: the images may have moved
        options.save(job.folder)
        _build_shards(job, images, todo, num_threads, log)
        if kept:
            _compare(job, kept, todo)
        else:
            kept = manifest(job.name, job.num_shards, images, options, _summaries(job))
            job.write_json(job.manifest_path, kept)
        job.log_built(kept, log)
    job.remove()
    return kept


def _require_space(job, images, num_shards):
    """Raise if the images yet to be written, as far as their sizes are known, do not fit on the disk."""
    sizes = images.rows['size']
    needed = int(sizes[sizes > 0].sum()) * num_shards // job.num_shards
    free = shutil.disk_usage(job.output_dir).free
    if needed > free:
        raise UserError(
            f"'{job.output_dir}' has {free / 1e9:.1f} GB free, {job.name} takes {needed / 1e9:.1f} GB; "
            'free some space, or pass another --output_directory'
        )


def _build_shards(job, images, todo, num_threads, log):
    done = len(images) - sum(len(shard_rows(len(images), shard, job.num_shards, 0)) for shard in todo)
    if done:
        log(f'{job.name}: going on, {job.num_shards - len(todo)} of {job.num_shards} shards are finished')
    num_bytes = 0
    with Progress(job.name, len(images), log, done) as progress:

        def on_message(message):
            nonlocal num_bytes
            if 'tick' in message:
                count, size = message['tick']
                num_bytes += size
                seconds = max(progress.format_dict['elapsed'], 1e-9)
                progress.update_to(progress.n + count, f'{num_bytes / seconds / 1e6:.1f} MB/s')
            for name, reason in message.get('broken', {}).items():
                progress.log(f"broken, left out: '{name}' ({reason})")

        arguments = [job.output_dir, job.name, str(job.num_shards)]
        processes.run(__name__, arguments, job.lock.fileno(), todo, num_threads, on_message)


def _compare(job, manifest, shards):
    """Raise if shards that were missing came out otherwise than the manifest has them."""
    for shard in shards:
        summary, entry = job.summary(shard), manifest['shards'][shard]
        if summary['sha256'] != entry['sha256']:
            raise UserError(
                f"'{entry['name']}' was missing, and the images now give another one than "
                f"'{job.manifest_path}' tells of; delete that and '{job.output_dir}/{job.name}-*' to start over"
            )


def fingerprint(images: ImageList, options: Options, num_shards: int) -> str:
    """Return a hash of all that the shards of a build depend on."""
    return hashlib.sha256(json.dumps([_VERSION, num_shards, images.digest(), options.digest()]).encode()).hexdigest()


def manifest(name: str, num_shards: int, images: ImageList, options: Options, summaries: Iterable[dict]) -> dict:
    """Return the manifest, see `build`, of the summaries of all shards, which build_shard gave, in any order."""
    result = {
        'name': name,
        'layout': options.layout,
        'seed': options.seed,
        'check': options.check,
        'fingerprint': fingerprint(images, options, num_shards),
        'records': 0,
        'bytes': 0,
        'synsets': list(images.synsets),
        'classes': dict.fromkeys(images.synsets[1:], 0),
        'shards': [],
        'reencoded': {},
        'broken': {},
    }
    for summary in sorted(summaries, key=lambda summary: summary['shard']):
        file = shard_name(name, summary['shard'], num_shards)
        result['shards'].append({'name': file} | {key: summary[key] for key in ('records', 'bytes', 'sha256')})
        for key in ('records', 'bytes'):
            result[key] += summary[key]
        for synset, count in summary['classes'].items():
            result['classes'][synset] += count
        for key in ('reencoded', 'broken'):
            result[key].update(summary[key])
    return result


def _summaries(job):
    """Yield the summary of each shard."""
    for shard in range(job.num_shards):
        summary = job.summary(shard)
        if summary is None:
            raise UserError(f"'{job.shard_path(shard)}' has gone away; run the same command again")
        yield summary


def _write_error(job, error):
    return UserError(
        f"'{job.output_dir}' cannot be written ({error.strerror or error}); fix that and run the same "
        'command again, which continues, or pass another --output_directory'
    )


def _serve(output_dir, name, num_shards):
    """Be a process of a build."""
    job = Job(output_dir, name, int(num_shards))
    images, options = ImageList.load(f'{job.folder}/images'), Options.load(job.folder)

    def build_one(shard, tick):
        try:
            summary = job.write_shard(
                shard, lambda file: build_shard(images, shard, job.num_shards, options, file, on_image=tick)
            )
        except OSError as error:
            raise _write_error(job, error) from None
        return {'shard': shard, 'broken': summary['broken']}

    processes.serve(build_one)


if __name__ == '__main__':
    _serve(*sys.argv[1:])
