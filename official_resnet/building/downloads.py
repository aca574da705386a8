"""ILSVRC2012's files: find them, download what is missing, and check their MD5 and the space on the disk."""

import base64
import dataclasses
import getpass
import hashlib
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable
from typing import NamedTuple

from official_resnet import bounds, files
from official_resnet.building import labels
from official_resnet.building.boxes import BOXES, CSV
from official_resnet.building.image_list import open_unbuffered
from official_resnet.building.job import Job, status
from official_resnet.building.progress import Log, Progress
from official_resnet.errors import UserError
from official_resnet.inputs import download

URL = 'https://image-net.org/data/ILSVRC/2012/'
CREDENTIALS = ('IMAGENET_USERNAME', 'IMAGENET_ACCESS_KEY')
DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
_CHUNK = 1 << 22  # bytes


class Tar(NamedTuple):
    """One of the two big tar files, with the official size and MD5 (image-net.org; torchvision's imagenet.py)."""

    name: str
    size: int  # bytes
    md5: str


TARS = {
    'validation': Tar('ILSVRC2012_img_val.tar', 6_744_924_160, '29b22e2961454d5413ddabcf34fc5622'),
    'train': Tar('ILSVRC2012_img_train.tar', 147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e'),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to build, and from which files.

    Attributes:
        data_dir: The folder of the shards. The tar files are here or in its raw-data; downloads go here.
        num_shards: {'train': number of files, 'validation': number of files}.
        url: The address of the folder from which missing files are downloaded.
        validation_labels: The path of the validation labels, if it is not one of labels.FILES in data_dir.
        allow_partial: Whether one of the two tar files may be missing.
        keep_extracted: Whether to unpack the images too.
    """

    data_dir: pathlib.Path
    num_shards: dict[str, int]
    url: str = URL
    validation_labels: str | None = None
    allow_partial: bool = False
    keep_extracted: bool = False

    def find(self, name: str) -> pathlib.Path | None:
        """Return the path of a file in DATA_DIR or its raw-data; None if it is missing."""
        folders = self.data_dir, self.data_dir / 'raw-data'
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def find_tars(self) -> dict[str, pathlib.Path]:
        """Return {split: path} of the big tar files that exist."""
        found = {name: self.find(tar.name) for name, tar in TARS.items()}
        return {name: path for name, path in found.items() if path}

    def find_labels(self) -> str | pathlib.Path | None:
        """Return the path of a file with the validation labels; None if there is none."""
        return self.validation_labels or next(filter(None, map(self.find, labels.FILES)), None)

    def official_size(self, name: str) -> int:
        """Return the size in bytes of a tar file at the official address; 0 for other files and addresses."""
        return {tar.name: tar.size for tar in TARS.values()}.get(name, 0) if self.url == URL else 0

    def is_built(self, name: str) -> bool:
        """Return whether a split has its manifest and every shard in full size."""
        job = Job(self.data_dir, name, self.num_shards[name])
        manifest = job.read_manifest()
        return manifest is not None and len(manifest['shards']) == job.num_shards and not job.missing(manifest)

    def require_space(self, tars: dict[str, pathlib.Path], wanted: Iterable[str] = ()) -> None:
        """Raise UserError if the disk lacks space for the rest of the build. Shards are as large as their tar file.

        Args:
            tars: {split: path} of the tar files that exist.
            wanted: Names of the files to download.
        """
        sizes = {name: status(path)[0] for name, path in tars.items()}
        sizes |= {name: self.official_size(tar.name) for name, tar in TARS.items() if tar.name in wanted}
        needed = {'shards': 0, 'tar files to download': 0, 'extracted images': 0}
        for name, size in sizes.items():
            if not self.is_built(name):
                begun = [*self.data_dir.glob(f'{name}-*-of-*'), *(self.data_dir / f'.{name}.progress').glob('*')]
                needed['shards'] += max(0, size - sum(status(path)[0] for path in begun))
            if self.keep_extracted and not (self.data_dir / 'raw-data' / name).exists():
                needed['extracted images'] += size
        for name in wanted:
            downloaded = max(0, status(self.data_dir / f'{name}.part')[0])
            needed['tar files to download'] += max(0, self.official_size(name) - downloaded)
        free, total = shutil.disk_usage(self.data_dir).free, sum(needed.values())
        if free < total:
            parts = ', '.join(f'{what} {size / 1e9:.1f}' for what, size in needed.items() if size)
            raise UserError(
                f"the disk of '{self.data_dir}' has {free / 1e9:.1f} GB free, but {total / 1e9:.1f} GB are needed "
                f'({parts}); free some space, or pass a DATA_DIR on another disk'
            )


def acquire(plan: Plan, log: Log = print) -> dict[str, pathlib.Path]:
    """Download the tar files, labels and boxes that are missing; return {split: path} of the tar files to build from.

    A split whose shards are complete and whose tar file is gone is left out.

    Raises:
        UserError: A file is missing and cannot be downloaded, or the disk lacks space.
    """
    tars = plan.find_tars()
    done = [name for name in TARS if name not in tars and plan.is_built(name)]
    for name in done:
        log(f'{name}: all {plan.num_shards[name]} shards are in {plan.data_dir}; the missing tar file is not needed')
    wanted = [tar.name for name, tar in TARS.items() if name not in tars and name not in done]
    if not plan.find_labels() and 'validation' not in done:
        wanted.append(DEVKIT)
    if not plan.find(BOXES) and 'train' not in done and not (plan.data_dir / 'raw-data' / CSV).exists():
        wanted.append(BOXES)
    authorization = _authorization(wanted)
    if authorization or plan.url != URL:
        plan.require_space(tars, wanted)
        _download(plan, wanted, authorization, log)
        tars = plan.find_tars()
    else:
        _require_local(plan, wanted, log)
    return {name: path for name, path in tars.items() if name != 'validation' or plan.find_labels()}


def _authorization(wanted):
    """Return the HTTP header for the downloads, or None without an account, which is asked for on a terminal."""
    user, key = (os.environ.get(name, '') for name in CREDENTIALS)
    if set(wanted) - {BOXES} and not (user and key) and sys.stdin is not None and sys.stdin.isatty():
        print(f'{", ".join(wanted)} must be downloaded with your account at image-net.org:')
        try:
            user = user or input('user name: ')
            key = key or getpass.getpass('access key: ')
        except EOFError:
            return None
    return 'Basic ' + base64.b64encode(f'{user}:{key}'.encode()).decode() if wanted and user and key else None


def _require_local(plan, wanted, log):
    """Log what is missing and cannot be downloaded. Raise UserError if the build needs it."""
    variables = ' and '.join(CREDENTIALS)
    missing = [name for name in wanted if name != BOXES]
    if missing == [DEVKIT] and not plan.allow_partial:
        raise UserError(
            f"'{plan.data_dir}' has no file with the labels of the validation images; "
            f'{labels.REMEDY}, or set {variables} to download it'
        )
    has_validation = not {TARS['validation'].name, DEVKIT} & set(missing)
    is_useless = TARS['train'].name in missing and not has_validation
    if missing and (not plan.allow_partial or is_useless):
        raise UserError(
            f"'{plan.data_dir}' lacks {', '.join(missing)}; put it there, or set {variables} "
            'to your account at image-net.org to download it'
        )
    if missing:
        log(f'continuing without {", ".join(missing)}')
    if BOXES in wanted:
        log(f'{BOXES} is missing, so records have no boxes; put it into {plan.data_dir}, or set {variables}')


def _download(plan, wanted, authorization, log):
    for name in wanted:
        address = f'{plan.url.rstrip("/")}/{name}'
        path, size = plan.data_dir / name, plan.official_size(name) or None
        remedy = f"correct {' and '.join(CREDENTIALS)}, or put {name} into '{plan.data_dir}' yourself"
        log(f'downloading {address} to {plan.data_dir}')
        try:
            most = bounds.limit('kit_bytes') if name in (BOXES, DEVKIT) else None
            download.fetch(address, path, size, remedy=remedy, authorization=authorization, most=most)
        except UserError as error:
            if name != BOXES:
                raise
            log(f'{error}; continuing without boxes')


def check_md5(path: pathlib.Path, tar: Tar, stamps_path: pathlib.Path, log: Log = print) -> None:
    """Raise UserError if a file of the official size has another MD5. `stamps_path` records what was compared."""
    stamps, stamp = files.read_json(stamps_path) or {}, [*status(path), tar.md5]
    if stamp[0] != tar.size:
        log(f'{path} has {stamp[0]} bytes, not the official {tar.size}: it is a subset, so its MD5 is not compared')
    elif stamps.get(tar.name) != stamp:
        log(f'comparing the MD5 of {path}, once (--noverify_checksums skips this)')
        digest = hashlib.md5(usedforsecurity=False)
        with open_unbuffered(str(path)) as file, Progress(f'MD5 of {path}', tar.size, log, unit='B') as progress:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                progress.update(len(chunk))
        if digest.hexdigest() != tar.md5:
            raise UserError(
                f"'{path}' has MD5 {digest.hexdigest()} instead of {tar.md5}; remove it and get it again, or pass "
                '--noverify_checksums'
            )
        files.write_json(stamps_path, {**stamps, tar.name: stamp})
