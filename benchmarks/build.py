"""Measure the builder of shards: its rate beside upstream's way, its memory, and a synthetic ImageNet on a real disk.

    python -m benchmarks.build --images=imagenet-sample.tar                # images/s of one core, both ways
    python -m benchmarks.build --images=imagenet-sample.tar --memory       # peak memory for N and 10 N images
    python -m benchmarks.build --images=imagenet-sample.tar --synthetic=100000 --folder=DIR

Images are repeated, each with another comment, until there are enough. Upstream's way (research/inception) decodes
every image in a session of TensorFlow for its size, then uses tf.train.Example and TFRecordWriter. Both take turns on
one core and read from memory what has just been written. Rates are by time of the core, which does not depend on the
disk, and by the clock, where only the builder waits for the disk (fsync). Starting TensorFlow or a process of the
builder (2 s, 0.2 s) does not count. --synthetic writes a tar of tars in ILSVRC2012's shape, about 0.1 MB an image, and
as much again of shards, has the system forget what it wrote, builds, and removes everything.

On two cores of an AMD EPYC: 4717 images/s of a core's time against 800, 5.9 times as many, and 5.0 times by the clock
(medians, n = 5, nothing beside it); peak memory 43 MB, a process 44 MB, for 300 and for 3000 images (n = 1);
--synthetic=100000: 2012 images/s, 211 MB/s, by two processes, where the disk wrote 317 MB/s (n = 1).
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

_CHUNK, _DISK_BYTES = 1 << 24, 1 << 31  # of a piece, and of all that is written and read to measure the disk
_log = functools.partial(print, flush=True)


def define_flags() -> flags.FlagValues:
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    define = definer.Definer(values)
    define.string('images', None, 'Tar file or folder of JPEGs.')
    define.string('folder', None, 'Where to write, and afterwards remove; the temporary folder without it.')
    for name, default, text in (
        ('count', 5000, 'Images.'),
        ('runs', 5, 'Of each way.'),
        ('num_threads', os.cpu_count(), 'Processes; one where rates are compared.'),
        ('synthetic', None, 'Measure with a tar of tars of so many images.'),
        ('shards', 16, 'Files.'),
    ):
        define.integer(name, default, text, lower=1, upper=None)
    define.boolean('memory', False, 'Measure memory.')
    return values


def run_build(values: flags.FlagValues) -> None:
    """Measure what the flags ask for."""
    if not values.images:
        raise UserError('--images is missing; pass a tar file or folder of JPEGs')
    sample = _read_sample(os.path.expanduser(values.images))
    with tempfile.TemporaryDirectory(prefix='benchmark-', dir=values.folder) as folder:
        measure = _measure_synthetic if values.synthetic else _measure_memory if values.memory else _measure_rate
        measure(values, sample, folder)


def _read_sample(path):
    """Return the whole RGB JPEGs of a tar file or folder."""
    try:
        if os.path.isdir(path):
            found = [file.read_bytes() for file in sorted(images.find_files(path, images.JPEG_SUFFIXES))]
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
    """Yield so many images, all different: those of the sample with a comment that counts."""
    for number, data in zip(range(count), itertools.cycle(sample), strict=False):
        yield b'\xff\xd8\xff\xfe\x00\x0a%08d' % number + data[2:]


def _lay_out(sample, folder, count):
    """Write images as <folder>/<class>/<number>.JPEG, a class for each of the sample; return their bytes."""
    total = 0
    for number, data in enumerate(_copies(sample, count)):
        path = pathlib.Path(folder, f'c{number % len(sample):04d}', f'{number}.JPEG')
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_bytes(data)
    return total


def _result(way, folder, *arguments, cores=None):
    """Return what a process of its own measures with the images in a folder."""
    with Child(f'benchmarks.build_ways:{way}', f'{folder}/raw', f'{folder}/out', *arguments, cores=cores) as child:
        found = child.answer()
    shutil.rmtree(f'{folder}/out')
    return found


def _measure_rate(values, sample, folder):
    size = _lay_out(sample, f'{folder}/raw', values.count) / values.count
    found, one_core = {'ours': [], 'upstream': []}, {min(os.sched_getaffinity(0))}
    for _, way in itertools.product(range(values.runs), found):
        found[way].append(_result(way, folder, values.shards, cores=one_core))
    for clock, text in ((1, 'by time of the core'), (0, 'by the clock')):
        middles = []
        for way, runs in found.items():
            rates = [values.count / run[clock] for run in runs]
            middles.append(statistics.median(rates))
            _log(
                f'{text}, {way}: {middles[-1]:.0f} images/s, {middles[-1] * size / 1e6:.0f} MB/s ({min(rates):.0f} to '
                f'{max(rates):.0f}, n = {len(rates)}, {values.count} images of {size / 1e3:.0f} kB)'
            )
        _log(f'{text}: {middles[0] / middles[1]:.1f} times as many')


def _measure_memory(values, sample, folder):
    for count in (values.count, 10 * values.count):
        _lay_out(sample, f'{folder}/raw', count)
        parent, largest = _result('memory', folder, values.shards, values.num_threads)
        other = f'the largest of {values.num_threads} processes {largest / 1e6:.1f} MB'
        _log(f'{count} images: peak memory {parent / 1e6:.1f} MB, {other}')


def _measure_synthetic(values, sample, folder):
    """Build and verify a synthetic ImageNet."""
    write, read = _measure_disk(f'{folder}/disk')
    _log(f'the disk: {write / 1e6:.0f} MB/s written, {read / 1e6:.0f} MB/s read, one after the other in big pieces')
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
    size, processes = manifest['bytes'], f'by {values.num_threads} processes in {seconds:.1f} s'
    at_best = f'at the rates of the disk: {size / read + size / write:.1f} s'
    _log(f'built: {len(raw) / seconds:.0f} images/s, {size / seconds / 1e6:.0f} MB/s {processes}; {at_best}')
    _log(f'peak memory {memory("VmHWM") / 1e6:.1f} MB, the largest of the processes {max(sizes) / 1e6:.1f} MB')
    code, seconds, _ = timed(verify, f'{folder}/out', 'train', _log)
    _log(f'verified: {len(raw) / seconds:.0f} images/s, {size / seconds / 1e6:.0f} MB/s by one process')
    if code:
        raise UserError('the shards have faults')


def _measure_disk(path):
    """Return the bytes a second that are written to and read from a disk, without what memory keeps."""
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
    """Write a tar of tars, `count` images spread over the classes; return its bytes."""
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
    """Have the system forget what it keeps of a file in memory."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_build))
