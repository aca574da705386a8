"""A build that survives being killed: where its files lie, and who may write them.

OUTPUT/<name>-00003-of-01024             a finished shard
       <name>.manifest.json              written last
       .<name>.progress/lock             held by the build and its processes as long as one of them lives
                        job.json         fingerprint of images and options
                        images.npy ...   the job, as the processes read it
                        <name>-00003-of-01024.part   a shard that is being written
                        <name>-00003-of-01024.json   summary of a finished one
"""

import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import IO

from official_resnet import files
from official_resnet.building.progress import Log
from official_resnet.errors import UserError

LOCK_SECONDS = 10  # that the processes of a killed build may take to end
_POLL_SECONDS = 0.1


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Return the name of a shard's file."""
    return f'{name}-{shard:05d}-of-{num_shards:05d}'


class Layout:
    """Where the files of a build lie. Subclasses say how they are accessed: read_json, write_json and file_size."""

    def __init__(self, output_dir: str, name: str, num_shards: int):
        self.output_dir, self.name, self.num_shards = output_dir, name, num_shards
        self.folder = f'{output_dir}/.{name}.progress'
        self.manifest_path = f'{output_dir}/{name}.manifest.json'
        self.key_path = f'{self.folder}/job.json'

    def shard_name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return shard_name(self.name, shard, self.num_shards)

    def shard_path(self, shard: int) -> str:
        """Return the path of a shard's file."""
        return f'{self.output_dir}/{self.shard_name(shard)}'

    def missing(self, manifest: dict) -> list[int]:
        """Return which shards of a manifest are not in their place in full size."""
        entries = enumerate(manifest['shards'])
        return [shard for shard, entry in entries if self.file_size(self.shard_path(shard)) != entry['bytes']]

    def summary(self, shard: int, on_broken: str = 'skip') -> dict | None:
        """Return the summary of a finished shard; None if it is not finished, or has what on_broken='fail' refuses."""
        summary = self.read_json(f'{self.folder}/{self.shard_name(shard)}.json')
        if not summary or self.file_size(self.shard_path(shard)) != summary['bytes']:
            return None
        return None if summary['broken'] and on_broken == 'fail' else summary

    def require_own(self, fingerprint: str, manifest: dict | None) -> None:
        """Raise UserError if a manifest, or a build that was stopped, has another fingerprint."""
        for kept, where in ((manifest, self.manifest_path), (self.read_json(self.key_path), self.folder)):
            if kept and kept.get('fingerprint') != fingerprint:
                raise UserError(
                    f"'{where}' is of a build of other images or options; give those again, or delete it and "
                    f"'{self.output_dir}/{self.name}-*' to start over, or pass another --output_directory"
                )

    def write_key(self, fingerprint: str) -> None:
        """Say whose the folder is."""
        self.write_json(self.key_path, {'fingerprint': fingerprint, 'num_shards': self.num_shards})

    def log_complete(self, manifest: dict, log: Log) -> None:
        """Log that nothing is left to do."""
        log(
            f'{self.name} is complete, {manifest["records"]} images in {self.num_shards} shards in '
            f"'{self.output_dir}': nothing to do"
        )

    def log_built(self, manifest: dict, log: Log) -> None:
        """Log what was built."""
        odd = [
            f'{len(manifest[key])} {what}'
            for key, what in (('reencoded', 'images encoded anew'), ('broken', 'broken ones left out'))
            if manifest[key]
        ]
        names = f"; {', '.join(odd)}, named in '{self.manifest_path}'" if odd else ''
        log(f'{self.name}: {manifest["bytes"] / 1e9:.3f} GB in {self.num_shards} shards{names}')
        log(f'Finished writing all {manifest["records"]} images in data set.')


class Job(Layout):
    """A build on this machine, which one process at a time may have open."""

    read_json, write_json = staticmethod(files.read_json), staticmethod(files.write_json)

    def __init__(self, output_dir: str | os.PathLike, name: str, num_shards: int):
        super().__init__(os.path.abspath(os.path.expanduser(output_dir)), name, num_shards)
        self.lock = None

    @staticmethod
    def file_size(path: str | os.PathLike) -> int:
        """Return the bytes of a file, -1 if there is none."""
        try:
            return os.path.getsize(path)
        except OSError:
            return -1

    def open(self, fingerprint: str) -> dict | None:
        """Lock the folder, made if need be; refuse the files of another build; return the manifest if there is one."""
        manifest, output = self.read_json(self.manifest_path), pathlib.Path(self.output_dir)
        is_new = not os.path.isdir(self.folder)
        if is_new and not manifest and output.is_dir():
            stranger = next(output.glob(f'{self.name}-[0-9]*-of-[0-9]*'), None)
            if stranger:
                raise UserError(
                    f"'{stranger}' is there already, without '{self.name}.manifest.json' that would tell "
                    'how it was built; move it, or pass another --output_directory'
                )
        self._take_lock()
        try:
            self.require_own(fingerprint, manifest)
        except UserError:
            if is_new:
                self.remove()
            raise
        if not self.read_json(self.key_path):
            self.write_key(fingerprint)
        return manifest

    def close(self) -> None:
        """Let another build in; after a build that was stopped its processes still keep it out until they end."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_shard(self, shard: int, write: Callable[[IO[bytes]], dict]) -> dict:
        """Write a shard by write(file) -> summary, put it in its place, then keep the summary; return that."""
        kept = f'{self.folder}/{self.shard_name(shard)}'
        with files.replacing(self.shard_path(shard), part=f'{kept}.part') as part:
            with open(part, 'wb', buffering=1 << 20) as file:
                summary = write(file)
        self.write_json(f'{kept}.json', summary)
        return summary

    def _take_lock(self):
        """Hold the lock; the processes inherit it, so that none of a killed build is left when it is free."""
        end = time.monotonic() + LOCK_SECONDS
        while not self._try_lock():
            if time.monotonic() > end:
                raise UserError(
                    f"another build is writing '{self.output_dir}/{self.name}-*'; wait for it, or pass "
                    'another --output_directory'
                )
            time.sleep(_POLL_SECONDS)

    def _try_lock(self):
        os.makedirs(self.folder, exist_ok=True)
        path = f'{self.folder}/lock'
        try:
            lock = files.lock(path)
        except (BlockingIOError, FileNotFoundError):
            return False  # held, or a build that ended removed the folder
        if os.path.exists(path) and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
            self.lock = lock
            return True
        lock.close()  # of a folder that was removed meanwhile
        return False
