"""A build by Apache Beam, wherever Beam reads and writes: the bytes of `shards.build`, one element a shard.

Beam's workers import this module by its name; what they call gets strings, numbers and a BeamJob, which travel pickled.
apache_beam is imported late, since the flags and --help of the command do not need it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from typing import IO

from official_resnet.building import boxes, shards, tars
from official_resnet.building.image_list import ImageList
from official_resnet.building.job import Layout
from official_resnet.building.progress import Log
from official_resnet.building.records import Options
from official_resnet.errors import UserError

_IMAGES = ('images.npy', 'images.json')
_PARTS = (*_IMAGES, 'options.json', 'box_names.npy', 'box_coordinates.npy')  # of a job
_CHUNK = 1 << 20  # bytes


class BeamJob(Layout):
    """A build on whatever file system Beam knows, with the layout of job.Job."""

    def __init__(self, output_dir: str, name: str, num_shards: int):
        super().__init__(absolute(output_dir).rstrip('/'), name, num_shards)

    @staticmethod
    def file_size(path: str) -> int:
        """Return the bytes of a file, -1 if there is none."""
        found = match(path)
        return found.size_in_bytes if found else -1

    @staticmethod
    def read_json(path: str) -> dict | None:
        """Return what write_json wrote, None if it is missing or damaged."""
        if not match(path):
            return None
        try:
            with open_file(path) as file:
                value = json.loads(file.read())
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def write_json(self, path: str, value: dict) -> None:
        """Write a file that is there whole or not at all."""
        part = f'{path}.{uuid.uuid4().hex}'
        with _create(part) as file:
            file.write(json.dumps(value, indent=1).encode())
        self.rename(part, path)

    def upload(self, source: str | os.PathLike, path: str) -> None:
        """Copy a file of this machine."""
        with open(source, 'rb') as file, _create(path) as target:
            shutil.copyfileobj(file, target, _CHUNK)

    def rename(self, source: str, path: str) -> None:
        """Put a file in its place; HDFS does not replace one by itself."""
        self.delete(path)
        _filesystems().rename([source], [path])

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        if match(path):
            _filesystems().delete([path])

    def delete_folder(self) -> None:
        """Delete the job's folder; where there are no folders, all that is named so."""
        filesystems = _filesystems()
        found = [file.path for file in filesystems.match([f'{self.folder}/*'])[0].metadata_list]
        if found:
            filesystems.delete(found)
        if filesystems.exists(self.folder):
            filesystems.delete([self.folder])


def build(
    job: BeamJob, images: ImageList, options: Options, arguments: Sequence[str], temp_dir: str, log: Log = print
) -> None:
    """Write all shards that are not there yet, then the manifest; `arguments` are Beam's flags.

    Raises:
        UserError: files of another build stand there, an image cannot be read, or is broken and on_broken is 'fail'.
    """
    fingerprint = shards.fingerprint(images, options, job.num_shards)  # either builder knows what the other built
    manifest = job.read_json(job.manifest_path)
    job.require_own(fingerprint, manifest)
    if manifest and not job.missing(manifest):
        job.log_complete(manifest, log)
        return
    local = pathlib.Path(temp_dir, job.name)
    local.mkdir(exist_ok=True)
    images.save(local / 'images')
    options.save(local)
    for part in _PARTS:
        job.upload(local / part, f'{job.folder}/{part}')
    job.write_key(fingerprint)
    errors_path = f'{job.folder}/errors.json'
    job.delete(errors_path)
    _run_pipeline(job, fingerprint, options.on_broken, arguments)
    errors, manifest = job.read_json(errors_path), job.read_json(job.manifest_path)
    if errors:
        raise UserError(errors['errors'][0])
    if not manifest:
        raise UserError(
            f"'{job.manifest_path}' was not written; see what the runner says, and run the same command again, which "
            'continues'
        )
    job.log_built(manifest, log)
    job.delete_folder()


def _run_pipeline(job, fingerprint, on_broken, arguments):
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    except ValueError as error:
        raise UserError(f'Beam refuses its flags {" ".join(arguments)}: {" ".join(str(error).split())}') from None
    with pipeline:
        _ = (
            pipeline
            | 'Shards' >> beam.Create(range(job.num_shards))
            | 'Spread' >> beam.Reshuffle()
            | 'Build' >> beam.Map(build_one, job, fingerprint, on_broken)
            | 'Gather' >> beam.combiners.ToList()
            | 'Manifest' >> beam.Map(write_manifest, job, fingerprint)
        )


def build_one(shard: int, job: BeamJob, fingerprint: str, on_broken: str) -> dict:
    """Write a shard, unless that was done; return its summary, or {'error': message} of what a user can fix."""
    summary = job.summary(shard, on_broken)
    if summary:
        return summary
    images, options = _load(job.folder, fingerprint)
    options = dataclasses.replace(options, on_broken=on_broken)  # which the fingerprint leaves open
    with contextlib.ExitStack() as stack:

        @functools.cache  # one handle a tar file, of this shard: other threads have theirs
        def open_once(path):
            return contextlib.nullcontext(stack.enter_context(open_file(path)))

        kept = f'{job.folder}/{job.shard_name(shard)}'
        part = f'{kept}.{uuid.uuid4().hex}'  # a runner may build a shard twice at a time
        try:
            with _create(part) as file:
                summary = shards.build_shard(images, shard, job.num_shards, options, file, opener=open_once)
        except UserError as error:
            job.delete(part)
            return {'error': str(error)}
    job.rename(part, job.shard_path(shard))
    job.write_json(f'{kept}.json', summary)
    return summary


def write_manifest(summaries: list[dict], job: BeamJob, fingerprint: str) -> None:
    """Write the manifest, or errors.json if a shard could not be built."""
    errors = sorted(summary['error'] for summary in summaries if 'error' in summary)
    if errors:
        job.write_json(f'{job.folder}/errors.json', {'errors': errors})
        return
    images, options = _load(job.folder, fingerprint)
    job.write_json(job.manifest_path, shards.manifest(job.name, job.num_shards, images, options, summaries))


@functools.lru_cache(maxsize=2)
def _load(job_folder, fingerprint):
    """Return the ImageList and Options of a job, mapped from a copy on this machine's disk; once a process."""
    with tempfile.TemporaryDirectory(prefix=f'{fingerprint[:8]}-', ignore_cleanup_errors=True) as folder:
        for part in _PARTS:
            download(f'{job_folder}/{part}', f'{folder}/{part}')
        return ImageList.load(f'{folder}/images'), Options.load(folder)  # the maps stay


def index(
    job: BeamJob, tar: str, synsets: list[str], image_synsets: list[str], allow_partial: bool, temp_dir: str, log: Log
) -> ImageList:
    """Return the images of a tar file as tars.index does, from beside the output if it was indexed already."""
    tar = absolute(tar)
    found = match(tar)
    if found is None:
        raise UserError(f"'{tar}' does not exist; pass the tar file to --{job.name}_tar")
    digest = hashlib.sha256(json.dumps([synsets, image_synsets, allow_partial]).encode()).hexdigest()
    source = {'path': tar, 'size': found.size_in_bytes, 'time': found.last_updated_in_seconds, 'labels': digest}
    kept, local = f'{job.output_dir}/.{job.name}.index', pathlib.Path(temp_dir, f'{job.name}.index')
    local.mkdir()
    if job.read_json(f'{kept}/source.json') == source:
        for part in _IMAGES:
            download(f'{kept}/{part}', local / part)
        images = ImageList.load(local / 'images')
        log(f"'{tar}' is indexed already: {len(images)} images")
        return images
    images = tars.index(job.name, tar, synsets, image_synsets, allow_partial=allow_partial, log=log, opener=open_file)
    images.save(local / 'images')
    job.delete(f'{kept}/source.json')
    for part in _IMAGES:
        job.upload(local / part, f'{kept}/{part}')
    job.write_json(f'{kept}/source.json', source)
    return images


def read_boxes(path: str | None, temp_dir: str, synsets: list[str], log: Log) -> boxes.Boxes | None:
    """Return the Boxes of a CSV file, or of the tar file that such a one is made of; None without a path."""
    if path is None:
        return None
    path = to_local(path, temp_dir)
    if not path.endswith('.csv'):
        boxes.write_csv(path, f'{temp_dir}/boxes.csv', synsets, log)
        path = f'{temp_dir}/boxes.csv'
    return boxes.read_csv(path)


def to_local(path: str, temp_dir: str) -> str:
    """Return the path of a file on this machine, copied there if it lies elsewhere."""
    if '://' not in path:
        return absolute(path)
    target = os.path.join(temp_dir, path.rpartition('/')[2])
    download(path, target)
    return target


def download(path: str, target: str | os.PathLike) -> None:
    """Copy a file to this machine."""
    with open_file(path) as source, open(target, 'wb') as file:
        shutil.copyfileobj(source, file, _CHUNK)


def absolute(path: str) -> str:
    """Return an address as it is, and the absolute path of a file of this machine."""
    return path if '://' in path else os.path.abspath(os.path.expanduser(path))


def open_file(path: str) -> IO[bytes]:
    """Open a file as it is, packed or not."""
    from apache_beam.io.filesystem import CompressionTypes

    return _filesystems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def match(path: str):
    """Return the FileMetadata of a file, None if there is none."""
    found = _filesystems().match([path])[0].metadata_list
    return found[0] if found else None


def _create(path):
    from apache_beam.io.filesystem import CompressionTypes

    return _filesystems().create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _filesystems():
    from apache_beam.io.filesystems import FileSystems

    return FileSystems
