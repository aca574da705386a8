"""Measure the builder of shards: its rate beside upstream's, its memory, and a synthetic ImageNet on a real disk.

    python -m benchmarks.build --images=TAR             # images/s of one core, ours and upstream's
    python -m benchmarks.build --images=TAR --memory    # peak memory for N and 10 N images
    python -m benchmarks.build --images=TAR --synthetic=100000 --folder=DIR

Images are repeated with different comments until there are enough. Upstream (research/inception) decodes each image in
a TensorFlow session to find its size, then uses tf.train.Example and TFRecordWriter. The two take turns on one core and
read from memory what has just been written. Rates are measured in CPU time, which does not depend on the disk, and in
wall-clock time, where only our builder waits for the disk (fsync). Starting TensorFlow (2 s) or a builder process
(0.2 s) does not count. --synthetic writes a tar of tars like ILSVRC2012's, 0.1 MB per image, drops it from the page
cache, builds shards of the same size, and removes everything.

On two cores of an AMD EPYC: 4717 images per second of CPU time against 800, 5.9 times as many; 5.0 times in wall-clock
time (medians, n = 5, no other load); peak memory 43 MB, 44 MB for a process, for 300 and for 3000 images (n = 1);
--synthetic=100000: 2012 images/s, 211 MB/s, with two processes, where the disk wrote 317 MB/s (n = 1).
"""

import contextlib
import functools
import io
import itertools
import os
import pathlib
import shutil
import statistics
import sys
import tarfile
import tempfile

from absl import flags

from benchmarks.measuring import Child, largest_child, memory, sampled, timed
from official_resnet.building import labels, shards, tars
from official_resnet.building.verify import verify
from official_resnet.command_line import definer, program
from official_resnet.errors import UserError
from official_resnet.inputs import images, jpeg

_CHUNK, _DISK_BYTES = 1 << 24, 1 << 31  # for measuring the disk: bytes of a chunk, and in total
_log = functools.partial(print, flush=True)


def define_flags() -> flags.FlagValues:
    """Return the flags of this program."""
    values = flags.FlagValues()
    define = definer.Definer(values)
    define.string('images', None, 'Tar file or folder of JPEGs.')
    define.string(
        'folder', None, 'Folder for temporary files, which are removed. Default: the temporary folder of the system.'
    )
    for name, default, text in (
        ('count', 5000, 'Number of images.'),
        ('runs', 5, 'Runs of each builder.'),
        ('num_threads', os.cpu_count(), 'Number of processes; rates are measured with one.'),
        ('synthetic', None, 'Build shards from a synthetic tar of tars with this many images.'),
        ('shards', 16, 'Number of shards.'),
    ):
        define.integer(name, default, text, lower=1, upper=None)
    define.boolean('memory', False, 'Measure memory, not rates.')
    return values


def run_build(values: flags.FlagValues) -> None:
    """Measure what the flags ask for, and print it."""
    if not values.images:
        raise UserError('--images is missing; pass a tar file or folder of JPEGs')
    sample = _read_sample(os.path.expanduser(values.images))
    with tempfile.TemporaryDirectory(prefix='benchmark-', dir=values.folder) as folder:
        measure = _measure_synthetic if values.synthetic else _measure_memory if values.memory else _measure_rate
        measure(values, sample, folder)


def _read_sample(path):
    """Return the intact RGB JPEGs of a tar file or folder."""
    try:
        if os.path.isdir(path):
            found = [file.read_bytes() for file in sorted(images.find_files(path, images.is_jpeg_name)[0])]
        else:
            with tarfile.open(path) as tar:
                members = [one for one in tar if one.isreg() and one.name.lower().endswith(images.JPEG_SUFFIXES)]
                found = [tar.extractfile(member).read() for member in members]
    except (OSError, tarfile.TarError) as error:
        reason = str(error).splitlines()[0].rstrip(':')
        raise UserError(f"--images '{path}' cannot be read ({reason}); pass a tar file or folder of JPEGs") from None
    sample = []
    for data in found:
        with contextlib.suppress(ValueError):
            sample += [data] if jpeg.inspect(data).is_rgb_jpeg else []
    if not sample:
        raise UserError(f"--images '{path}' has no colour JPEG; pass another")
    return sample


def _copies(sample, count):
    """Yield `count` different images: those of the sample, each with its number in a comment."""
    for number, data in zip(range(count), itertools.cycle(sample), strict=False):
        yield b'\xff\xd8\xff\xfe\x00\x0a%08d' % number + data[2:]


def _lay_out(sample, folder, count):
    """Write <folder>/<class>/<number>.JPEG, with a class for each image of the sample; return the total bytes."""
    total = 0
    for number, data in enumerate(_copies(sample, count)):
        path = pathlib.Path(folder, f'c{number % len(sample):04d}', f'{number}.JPEG')
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_bytes(data)
    return total


def _result(way, folder, *arguments, cores=None):
    """Measure with the images in a folder in a separate process, and return its result."""
    with Child(f'benchmarks.build_ways:{way}', f'{folder}/raw', f'{folder}/out', *arguments, cores=cores) as child:
        found = child.answer()
    shutil.rmtree(f'{folder}/out')
    return found


def _measure_rate(values, sample, folder):
    size = _lay_out(sample, f'{folder}/raw', values.count) / values.count
    found, one_core = {'ours': [], 'upstream': []}, {min(os.sched_getaffinity(0))}
    for _, way in itertools.product(range(values.runs), found):
        found[way].append(_result(way, folder, values.shards, cores=one_core))
    for clock, text in ((1, 'CPU time'), (0, 'wall-clock time')):
        medians = []
        for way, runs in found.items():
            rates = [values.count / run[clock] for run in runs]
            medians.append(statistics.median(rates))
            _log(
                f'{text}, {way}: {medians[-1]:.0f} images/s, {medians[-1] * size / 1e6:.0f} MB/s ({min(rates):.0f} to '
                f'{max(rates):.0f}, n = {len(rates)}, {values.count} images of {size / 1e3:.0f} kB)'
            )
        _log(f'{text}: {medians[0] / medians[1]:.1f} times as many')


def _measure_memory(values, sample, folder):
    for count in (values.count, 10 * values.count):
        _lay_out(sample, f'{folder}/raw', count)
        parent, largest = _result('memory', folder, values.shards, values.num_threads)
        other = f'the largest of {values.num_threads} processes {largest / 1e6:.1f} MB'
        _log(f'{count} images: peak memory {parent / 1e6:.1f} MB, {other}')


def _measure_synthetic(values, sample, folder):
    """Build and verify a synthetic ImageNet."""
    write, read = _measure_disk(f'{folder}/disk')
    _log(f'the disk: {write / 1e6:.0f} MB/s written, {read / 1e6:.0f} MB/s read, sequentially in large chunks')
    path, synsets = f'{folder}/ILSVRC2012_img_train.tar', labels.read_classes()[: values.synthetic]
    total, seconds, _ = timed(_write_tar, path, sample, synsets, values.synthetic)
    _log(f'{path}: {values.synthetic} images, {total / 1e9:.2f} GB, written in {seconds:.1f} s')
    raw, seconds, _ = timed(lambda: tars.index('train', path, synsets, log=_log))
    _log(f'indexed: {len(raw)} images in {seconds:.1f} s')
    _forget(path)
    with sampled(largest_child, 0.05) as sizes:
        manifest, seconds, _ = timed(
            lambda: shards.build(raw, 'train', f'{folder}/out', values.shards, values.num_threads, log=_log)
        )
    size, processes = manifest['bytes'], f'with {values.num_threads} processes in {seconds:.1f} s'
    at_best = f'at the rates of the disk: {size / read + size / write:.1f} s'
    _log(f'built: {len(raw) / seconds:.0f} images/s, {size / seconds / 1e6:.0f} MB/s {processes}; {at_best}')
    _log(f'peak memory {memory("VmHWM") / 1e6:.1f} MB, the largest of the processes {max(sizes) / 1e6:.1f} MB')
    code, seconds, _ = timed(verify, f'{folder}/out', 'train', _log)
    _log(f'verified: {len(raw) / seconds:.0f} images/s, {size / seconds / 1e6:.0f} MB/s with one process')
    if code:
        raise UserError('the shards have faults')


def _measure_disk(path):
    """Return the bytes/s at which a disk is written and read, without the page cache."""
    chunk = bytearray(os.urandom(_CHUNK))
    chunks = itertools.repeat(chunk, _DISK_BYTES // _CHUNK)
    with open(path, 'w+b', buffering=0) as file:
        _, writing, _ = timed(lambda: (file.writelines(chunks), os.fsync(file.fileno())))
        _forget(path)
        file.seek(0)
        _, reading, _ = timed(lambda: sum(iter(lambda: file.readinto(chunk), 0)))
    os.remove(path)
    return _DISK_BYTES / writing, _DISK_BYTES / reading


def _write_tar(path, sample, synsets, count):
    """Write a tar of tars with `count` images spread over the classes; return its size in bytes."""
    copies, inner = _copies(sample, count), f'{path}.part'
    with open(path, 'wb') as file:
        with tarfile.open(fileobj=file, mode='w') as outer:
            for i, synset in enumerate(synsets):
                here = count * (i + 1) // len(synsets) - count * i // len(synsets)
                with tarfile.open(inner, 'w') as tar:
                    for k, data in enumerate(itertools.islice(copies, here)):
                        member = tarfile.TarInfo(f'{synset}_{k}.JPEG')
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                outer.add(inner, f'{synset}.tar')
        os.remove(inner)
        os.fsync(file.fileno())
        return file.tell()


def _forget(path):
    """Drop a file from the page cache."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_build))
