"""A build that survives being killed: where its files are, and who may write them.

OUTPUT/<name>-00003-of-01024             a finished shard
       <name>.manifest.json              written last
       .<name>.progress/lock             held by the build and its processes until the last of them ends
                        job.json         fingerprint of images and options
                        images.npy ...   images and options, for the processes
                        <name>-00003-of-01024.part   a shard that is being written
                        <name>-00003-of-01024.json   the summary of a finished shard
"""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeGuard

from official_resnet import files
from official_resnet.building.image_list import open_unbuffered
from official_resnet.building.sealed import seal, unseal
from official_resnet.errors import UserError

LOCK_SECONDS = 10  # the time that the processes of a killed build have to end
_POLL_SECONDS = 0.1


def absolute(path: str | os.PathLike) -> str:
    """Return the absolute path of a file of this machine. An address such as gs://a/b, for Beam, stays as it is."""
    return str(path).rstrip('/') if '://' in str(path) else os.path.abspath(os.path.expanduser(path))


def is_manifest(value: Any) -> TypeGuard[dict]:
    """Return whether a JSON value has the fields of a manifest that programs read."""
    kinds = {'records': int, 'bytes': int, 'layout': str, 'synsets': list, 'classes': dict, 'shards': list}
    notes = {'reencoded': dict, 'broken': dict, 'skipped': list}  # older manifests lack some
    of_shards = {'name': str, 'records': int, 'bytes': int, 'sha256': str}
    return (
        _has(value, kinds)
        and all(isinstance(value.get(name, kind()), kind) for name, kind in notes.items())
        and value['layout'] in ('imagenet', 'folder')
        and all(_has(shard, of_shards) for shard in value['shards'])
        and all(isinstance(name, str) for name in value['synsets'])
        and all(isinstance(count, int) for count in value['classes'].values())
    )


def manifest_fault(manifest: dict, shard_names: list[str]) -> str:
    """Return how a manifest contradicts itself or the names of its shards, or ''."""
    if [shard['name'] for shard in manifest['shards']] != shard_names:
        return f'its shards are not {shard_names[0]} to {shard_names[-1]}'
    for name in ('records', 'bytes'):
        if manifest[name] != (total := sum(shard[name] for shard in manifest['shards'])):
            return f'it has {manifest[name]} {name}, its shards have {total}'
    if manifest['records'] != (total := sum(manifest['classes'].values())):
        return f'it has {manifest["records"]} records, its classes have {total}'
    return ''


def _has(value: Any, kinds: dict[str, type]) -> TypeGuard[dict]:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def status(path: str | os.PathLike) -> list[int]:
    """Return [bytes, time of the last change in ns] of a file; [-1, 0] if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return [-1, 0]
    return [found.st_size, found.st_mtime_ns]


class Job:
    """A build on this machine, which one process at a time may have open. beam.BeamJob accesses files through Beam."""

    status, read_json, open_file = staticmethod(status), staticmethod(files.read_json), staticmethod(open_unbuffered)
    lock: IO[str] | None = None
    is_continued = False  # whether an earlier call of this build was stopped

    def __init__(self, output_dir: str | os.PathLike, name: str, num_shards: int, fingerprint: str = ''):
        self.output_dir, self.name, self.num_shards = absolute(output_dir), name, num_shards
        self.fingerprint = fingerprint  # of the images and options; `open` sets it
        self.folder = f'{self.output_dir}/.{name}.progress'
        self.manifest_path = f'{self.output_dir}/{name}.manifest.json'

    def shard_name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return f'{self.name}-{shard:05d}-of-{self.num_shards:05d}'

    def shard_path(self, shard: int) -> str:
        """Return the path of a shard's file."""
        return f'{self.output_dir}/{self.shard_name(shard)}'

    def missing(self, manifest: dict) -> list[int]:
        """Return the numbers of the shards of a manifest that are missing, or differ from what it says."""

        def differs(shard, entry) -> bool:
            if self.status(self.shard_path(shard))[0] != entry['bytes']:
                return True
            kept = self.summary(shard) if self.is_continued else None
            return kept is not None and kept['sha256'] != entry['sha256']

        return [shard for shard, entry in enumerate(manifest['shards']) if differs(shard, entry)]

    def read_manifest(self) -> dict | None:
        """Return the manifest; None if it is missing or damaged."""
        manifest = self.read_json(self.manifest_path)
        return manifest if is_manifest(manifest) else None

    def summary(self, shard: int, on_broken: str = 'skip') -> dict | None:
        """Return the summary of a shard; None if it is not finished or damaged, or on_broken='fail' refuses its images.

        The digest of a summary is that of this build, so that nothing in it has to be checked again.
        """
        try:
            summary = unseal(self.read_json(f'{self.folder}/{self.shard_name(shard)}.json'), self.fingerprint)
        except ValueError:
            return None
        if summary['shard'] != shard or self.status(self.shard_path(shard))[0] != summary['bytes']:
            return None
        return None if summary['broken'] and on_broken == 'fail' else summary

    def open(self, fingerprint: str) -> dict | None:
        """Create and lock the folder; return the manifest, if any. Files of another build raise UserError."""
        self.enter(self.read_manifest())
        manifest = self.read_manifest()  # another build may have written it while this one waited
        key_path, key = f'{self.folder}/job.json', None
        with contextlib.suppress(ValueError):  # without it, no summary is from this build, and it is written again
            key = unseal(self.read_json(key_path))
        for kept, where in ((manifest, self.manifest_path), (key, self.folder)):
            if kept and kept.get('fingerprint') != fingerprint:
                if not key:
                    self.remove()  # the folder was made only for the lock
                raise UserError(
                    f"'{where}' belongs to a build of other images or options; pass those again, or delete it and "
                    f"'{self.output_dir}/{self.name}-*' to start over, or pass another --output_directory"
                )
        if not key:
            self.write_json(key_path, seal({'fingerprint': fingerprint, 'num_shards': self.num_shards}))
        self.fingerprint, self.is_continued = fingerprint, key is not None
        if manifest and (fault := self.fault_of(manifest)):
            raise UserError(
                f"'{self.manifest_path}' is damaged ({fault}); put it back, or delete it and "
                f"'{self.output_dir}/{self.name}-*' to start over"
            )
        return manifest

    def fault_of(self, manifest: dict) -> str:
        """Return how a manifest of this build contradicts itself, or ''."""
        return manifest_fault(manifest, list(map(self.shard_name, range(self.num_shards))))

    def enter(self, manifest: dict | None) -> None:
        """Take the lock. The processes inherit it, so when it is free, no process of a killed build is left."""
        shards = pathlib.Path(self.output_dir).glob(f'{self.name}-[0-9]*-of-[0-9]*')
        foreign = None if manifest or os.path.isdir(self.folder) else next(shards, None)
        if foreign:
            whole = 'a whole ' * (self.status(self.manifest_path)[0] >= 0)
            raise UserError(
                f"'{foreign}' exists without {whole}'{self.name}.manifest.json', which would say how it was built; "
                'move it, or pass another --output_directory'
            )
        end = time.monotonic() + LOCK_SECONDS
        while True:
            files.make_folder(self.folder)
            with contextlib.suppress(
                BlockingIOError, FileNotFoundError
            ):  # another build holds it, or has just removed it
                self.lock = lock = files.lock(f'{self.folder}/lock')
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                    for part in itertools.chain(*map(pathlib.Path(self.folder).glob, ('*.part', 'part.*'))):
                        part.unlink()  # a killed build left it
                    return
            if time.monotonic() > end:
                raise UserError(
                    f"another build is writing '{self.output_dir}/{self.name}-*'; wait for it, or pass "
                    'another --output_directory'
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Release the lock. After a build that was stopped, its processes hold it until they end."""
        if self.lock is not None:
            self.lock.close()

    def remove(self) -> None:
        """Delete the folder of the job."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_shard(self, shard: int, write: Callable[[IO[bytes]], dict]) -> dict:
        """Call write(file), which writes the shard and returns its summary; rename the file, and keep the summary."""
        kept = f'{self.folder}/{self.shard_name(shard)}'
        with self.writing(self.shard_path(shard), part=f'{kept}.part') as file:
            summary = write(file)
        self.write_json(f'{kept}.json', seal(summary, self.fingerprint))
        return summary

    def write_json(self, path: str, value: dict) -> None:
        """Write a JSON file, whole or not at all."""
        with self.writing(path) as file:
            file.write(json.dumps(value, indent=1).encode())

    @contextlib.contextmanager
    def writing(self, path: str, part: str | None = None) -> Iterator[IO[bytes]]:
        """Yield a file to write, named `part`. It becomes `path` when the block ends; on an error it is deleted."""
        files.make_folder(os.path.dirname(path))
        with files.replacing(path, part=part) as part_path, open(part_path, 'wb', buffering=1 << 20) as file:
            yield file

    def save(self, value: Any, path: str) -> None:
        """Save an ImageList or Options as `<path>.npy` and `<path>.json`."""
        value.save(path)

    @staticmethod
    def load(kind: Any, path: str) -> Any:
        """Return what `save` saved, an object of the class `kind`: ImageList or Options."""
        return kind.load(path)
