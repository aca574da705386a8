"""Build shards with Apache Beam, on any file system that Beam knows, with the same bytes as `shards.build`.

Each element is a shard. Beam's workers import this module and receive pickled strings, numbers and a BeamJob.
"""

import contextlib
import functools
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

import apache_beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from official_resnet import files, folders
from official_resnet.building import shards
from official_resnet.building.image_list import ImageList
from official_resnet.building.job import Job, absolute
from official_resnet.building.records import Options
from official_resnet.building.sealed import seal, unseal
from official_resnet.errors import UserError

_UNCHANGED = {'compression_type': CompressionTypes.UNCOMPRESSED}
_CHUNK = 1 << 20  # bytes
_loaded: dict[str, tuple[ImageList, Options]] = {}  # the last run's


class BeamJob(Job):
    """A build on any file system that Beam knows, without a lock."""

    @staticmethod
    def open_file(path: str) -> IO[bytes]:
        """Open a file without decompressing it."""
        return FileSystems.open(path, **_UNCHANGED)

    @staticmethod
    def status(path: str | os.PathLike) -> list[int]:
        """Return [bytes, time of the last change in seconds] of a file; [-1, 0] if it is missing."""
        found = FileSystems.match([str(path)])[0].metadata_list
        return [found[0].size_in_bytes, found[0].last_updated_in_seconds] if found else [-1, 0]

    @staticmethod
    def read_json(path: str | os.PathLike) -> dict | None:
        """Return what write_json wrote; None if it is missing or damaged."""
        with folders.temporary() as folder:
            return files.read_json(to_local(str(path), str(folder))) if BeamJob.status(path)[0] >= 0 else None

    def enter(self, manifest: dict | None) -> None:
        """Do nothing, as there is no lock."""

    @contextlib.contextmanager
    def writing(self, path: str, part: str | None = None) -> Iterator[IO[bytes]]:
        """Yield a file to write. It becomes `path` when the block ends; on an error it is deleted."""
        part = f'{part or path}.{uuid.uuid4().hex}'  # a runner may build a shard twice at the same time
        if '://' not in path:
            files.make_folder(os.path.dirname(path))
        try:
            with FileSystems.create(part, **_UNCHANGED) as file:
                yield file
        except BaseException:
            _delete(part)
            raise
        if '://' in path:
            _delete(path)  # because HDFS does not rename a file to an existing name
            FileSystems.rename([part], [path])
        else:  # Beam does not flush files to the disk
            files.put_in_place(part, path)

    def remove(self) -> None:
        """Delete the folder of the job, or, on a file system without folders, the files whose names begin with it."""
        matches = FileSystems.match([f'{self.folder}/*'])[0].metadata_list  # match reads '[1]' as a pattern
        if paths := [match.path for match in matches if match.path.startswith(f'{self.folder}/')]:
            FileSystems.delete(paths)
        _delete(self.folder)

    def save(self, value: Any, path: str) -> None:
        """Write an ImageList or Options to files whose names begin with `path`."""
        place, _, stem = path.rpartition('/')
        with folders.temporary() as folder:
            value.save(f'{folder}/{stem}')
            for name in os.listdir(folder):
                with open(f'{folder}/{name}', 'rb') as source, self.writing(f'{place}/{name}') as file:
                    shutil.copyfileobj(source, file, _CHUNK)

    @staticmethod
    def load(kind: Any, path: str) -> Any:
        """Return the ImageList or Options that `save` kept, mapped from a copy on the disk of this machine."""
        with folders.temporary() as folder:
            for found in FileSystems.match([f'{path}.*'])[0].metadata_list:
                _download(found.path, str(folder))
            return kind.load(f'{folder}/{os.path.basename(path)}')  # mapped files can be read after their deletion


def write_shards(job: BeamJob, arguments: Sequence[str], todo: list[int]) -> list[dict]:
    """Build the unfinished shards of `todo` in a pipeline; `arguments` are the flags for Beam.

    Returns:
        The summaries of all shards of `todo`, for shards.complete.

    Raises:
        UserError: Beam refuses the flags; an image cannot be read, or is broken and on_broken is 'fail'.
    """
    path = f'{job.folder}/summaries.json'
    job.write_json(path, {})
    try:
        pipeline = apache_beam.Pipeline(options=PipelineOptions(arguments))
    except ValueError as error:
        raise UserError(f'Beam refuses its flags {" ".join(arguments)}: {" ".join(str(error).split())}') from None
    with pipeline:
        _ = (
            pipeline
            | 'Shards' >> apache_beam.Create(todo)
            | 'Spread' >> apache_beam.Reshuffle()
            | 'Build' >> apache_beam.Map(build_one, job, uuid.uuid4().hex)
            | 'Gather' >> apache_beam.combiners.ToList()
            | 'Keep' >> apache_beam.Map(lambda summaries: job.write_json(path, seal({'summaries': summaries})))
        )
    try:
        summaries = unseal(job.read_json(path))['summaries']
    except ValueError:
        raise UserError(
            f"'{path}' was not written; read the runner's messages, and run the same command again to continue"
        ) from None
    errors = sorted(summary['error'] for summary in summaries if 'error' in summary)
    if errors:
        raise UserError(errors[0])
    return summaries


def build_one(shard: int, job: BeamJob, run: str) -> dict:
    """Write a shard unless it is finished; return its summary, or {'error': message} for an error of the user."""
    try:
        images, options = _load(job, run)
    except UserError as error:
        return {'error': str(error)}
    summary = job.summary(shard, options.on_broken)
    if summary:
        return summary
    with contextlib.ExitStack() as stack:

        @functools.cache  # one handle for each tar file; other threads have their own
        def open_once(path) -> Any:
            return contextlib.nullcontext(stack.enter_context(BeamJob.open_file(path)))

        write = functools.partial(shards.build_shard, images, shard, job.num_shards, options, opener=open_once)
        try:
            return job.write_shard(shard, write)
        except UserError as error:
            return {'error': str(error)}


def _load(job, run):
    """Return the ImageList and the Options of a job, loaded once for each process and run of the pipeline."""
    if run not in _loaded:
        _loaded.clear()
        _loaded[run] = shards.load(job)
    return _loaded[run]


def to_local(path: str, folder: str) -> str:
    """Return the path of a file on this machine. A file from elsewhere is first copied into `folder`."""
    return _download(path, folder) if '://' in path else absolute(path)


def _delete(path):
    """Delete a file or folder if it exists. Its name is not read as a pattern."""
    if FileSystems.exists(path):
        FileSystems.delete([path])


def _download(path, folder):
    target = f'{folder}/{path.rpartition("/")[2]}'
    with BeamJob.open_file(path) as source, open(target, 'wb') as file:
        shutil.copyfileobj(source, file, _CHUNK)
    return target
