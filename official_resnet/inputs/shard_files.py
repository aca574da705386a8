"""Find TFRecord shards, and the classes in their manifest. Importing this module imports no TensorFlow."""

import json
import os
import pathlib
import re

from official_resnet import damage, errors, files
from official_resnet.inputs import other_datasets

PREFIXES = {'train': 'train', 'test': 'validation'}  # of the file names of a split
_SHARD = re.compile(r'-(\d{5})-of-(\d{5})$')
_BUILD = 'build them with data/build_imagenet_data.py'
AGAIN = 'get it again, or delete it and run its build again'


def find_shards(data_dir: str | os.PathLike, split: str) -> list[pathlib.Path]:
    """Return the paths of all shards of a split in a folder: train-00000-of-01024 ..., or for 'test' validation-...

    Raises:
        UserError: There are no shards, some are missing or have another size than the manifest says, or they belong to
            two builds.
    """
    folder, prefix = pathlib.Path(data_dir), PREFIXES[split]
    if not folder.is_dir():
        fault = 'is not a folder' if folder.exists() else 'does not exist'
        raise errors.UserError(f"data_dir '{folder}' {fault}; pass the folder of {prefix}-00000-of-..., or {_BUILD}")
    matches = [(match, path) for path in sorted(folder.glob(f'{prefix}-*-of-*')) if (match := _SHARD.search(path.name))]
    if not matches:
        raise errors.UserError(f"data_dir '{folder}' has no {prefix}-00000-of-...; {_BUILD}, or pass another")
    totals = sorted({int(match[2]) for match, _ in matches})
    if len(totals) > 1:
        fault = f'has {prefix} shards of a set of {totals[0]} and of one of {totals[1]}'
        raise errors.UserError(f"data_dir '{folder}' {fault}; remove the shards of one set")
    missing = sorted(set(range(totals[0])) - {int(match[1]) for match, _ in matches})
    if missing:
        fault = f'lacks {len(missing)} of {totals[0]} {prefix} shards; the first is {missing[0]:05d}'
        raise errors.UserError(f"data_dir '{folder}' {fault}; {_BUILD}, which continues where it stopped")
    paths = [path for _, path in matches]
    kept = manifest_counts(data_dir, split)
    for path in paths if kept else ():
        with files.read_errors(path, AGAIN):
            size = path.stat().st_size
        if size != (wanted := kept.get(path.name, (size, 0))[0]):
            raise errors.UserError(f"'{path}' has {size} bytes, not {wanted} as the manifest says; {AGAIN}")
    return paths


def manifest_path(data_dir: str | os.PathLike, split: str) -> pathlib.Path:
    """Return the path of the manifest of a split. Shards of other builders have none."""
    return pathlib.Path(data_dir) / f'{PREFIXES[split]}.manifest.json'


def manifest_counts(data_dir: str | os.PathLike, split: str) -> dict[str, tuple[int, int]]:
    """Return {name of a shard: (bytes, records)} of a manifest, or {} if there is none."""

    def counts(manifest) -> dict[str, tuple[int, int]]:
        return {shard['name']: (int(shard['bytes']), int(shard['records'])) for shard in manifest.get('shards', [])}

    return _of_manifest(data_dir, split, counts, {})


def manifest_classes(data_dir: str | os.PathLike, split: str) -> list[tuple[str, str]]:
    """Return [(id, name), ...] of the manifest's classes, by default ILSVRC2012's."""
    known = dict(other_datasets.imagenet_classes())

    def classes(manifest) -> list[tuple[str, str]]:
        return [(synset, known.get(synset, synset)) for synset in manifest['synsets'][1:]]

    return _of_manifest(data_dir, split, classes, list(known.items()))


def are_own_images(data_dir: str | os.PathLike, split: str) -> bool:
    """Return whether data/build_image_data.py wrote the shards, which once did not turn images as EXIF says."""
    return _of_manifest(data_dir, split, lambda manifest: manifest.get('layout') == 'folder', False)


def _of_manifest(data_dir, split, use, otherwise):
    """Return what `use` finds in a manifest, or `otherwise` if there is none. Raise UserError if it is damaged."""
    path = manifest_path(data_dir, split)
    if not path.exists():
        return otherwise
    with damage.reported(path, _BUILD, 'the manifest '):
        return use(json.loads(files.read_text(path)))
