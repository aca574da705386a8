"""Turn ILSVRC2012's tar files into TFRecord shards: all of ImageNet by one command, which can be stopped and repeated.

    python data/download_and_preprocess_imagenet.py DATA_DIR

Put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_bbox_train_v2.tar.gz and one of
imagenet_2012_validation_synset_labels.txt, ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_bbox_val_v3.tgz into DATA_DIR or
DATA_DIR/raw-data. What is missing is downloaded if IMAGENET_USERNAME and IMAGENET_ACCESS_KEY are set; files that are
there need no account. Without the tar file of boxes, records have none.

DATA_DIR gets train-00000-of-01024 ... and validation-00000-of-00128 ..., 155 GB, beside as much of tar files; pictures
are read in the tar files, which are not unpacked (--keep_extracted does that, too). data/README.md tells more.
"""

import base64
import dataclasses
import getpass
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import time

import bounding_boxes
import imagenet_tars
import shards
import validation_labels
from absl import flags
from build_imagenet_data import read_labels, read_texts

from official_resnet.command_line import program
from official_resnet.errors import UserError
from official_resnet.inputs import download

URL = 'https://image-net.org/data/ILSVRC/2012/'
CREDENTIALS = ('IMAGENET_USERNAME', 'IMAGENET_ACCESS_KEY')
BOXES, DEVKIT = 'ILSVRC2012_bbox_train_v2.tar.gz', 'ILSVRC2012_devkit_t12.tar.gz'
CSV = 'imagenet_2012_bounding_boxes.csv'
_CHUNK = 1 << 22  # bytes
_SECONDS = 30  # between two lines of progress


@dataclasses.dataclass(frozen=True)
class Tar:
    """One of the big tar files; size and MD5 are the official one's (image-net.org, torchvision's imagenet.py)."""

    name: str
    size: int  # bytes
    md5: str


TARS = {
    'validation': Tar('ILSVRC2012_img_val.tar', 6_744_924_160, '29b22e2961454d5413ddabcf34fc5622'),
    'train': Tar('ILSVRC2012_img_train.tar', 147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e'),
}


class _Flags(flags.FlagValues):
    """Flags, and one argument without a name: data_dir."""

    def __call__(self, argv, known_only=False):
        rest = super().__call__(argv, known_only)
        if len(rest) > 1 and not self['data_dir'].present:
            self['data_dir'].parse(rest.pop(1))
        if not self['data_dir'].value:
            raise flags.Error('DATA_DIR is missing; pass the folder of the tar files')
        return rest


def define_flags():
    """Return the flags, in a set of their own."""
    values = _Flags()
    values.set_gnu_getopt(True)  # flags may follow DATA_DIR
    for name, default, text in (
        ('data_dir', None, 'DATA_DIR by name.'),
        ('url', URL, 'Where missing files are downloaded from, a folder: a mirror needs no user name.'),
        (
            'labels_file',
            None,
            'Classes, one a line; the label of each is its place, from 1. Without it the 1000 of ILSVRC2012.',
        ),
        ('metadata_file', None, "Lines 'class TAB name'. Without it the names of ILSVRC2012's classes."),
        (
            'validation_labels_file',
            None,
            'The classes of the validation pictures: any of the three files named above, or a list like the first.',
        ),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, default, lower, upper, text in (
        ('train_shards', 1024, 1, 99999, 'Files of training pictures.'),
        ('validation_shards', 128, 1, 99999, 'Files of validation pictures.'),
        ('num_threads', 8, 1, 1000, 'Processes.'),
        ('seed', 12345, 0, None, 'Of the order of the pictures.'),
    ):
        flags.DEFINE_integer(name, default, text, lower, upper, flag_values=values)
    flags.DEFINE_enum(
        'check',
        'structure',
        ['structure', 'decode'],
        'How pictures are looked at: whole by their markers, or decoded.',
        flag_values=values,
    )
    flags.DEFINE_enum('on_broken', 'skip', ['skip', 'fail'], 'What to do about a broken picture.', flag_values=values)
    for name, default, text in (
        ('verify', False, 'Read all shards back and compare.'),
        ('verify_checksums', True, 'Compare the MD5 of the big tar files, once, if they have the official size.'),
        ('allow_partial', False, 'Take tar files that lack classes or pictures, or one of the two.'),
        ('keep_extracted', False, 'Also unpack pictures to DATA_DIR/raw-data/train/<class> and .../validation.'),
    ):
        flags.DEFINE_boolean(name, default, text, flag_values=values)
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    data_dir = pathlib.Path(os.path.abspath(os.path.expanduser(values.data_dir)))
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"DATA_DIR '{data_dir}' is a file; pass a folder")
    (data_dir / 'raw-data').mkdir(parents=True, exist_ok=True)
    synsets = read_labels(_expanded(values.labels_file))
    texts = read_texts(_expanded(values.metadata_file))
    counts = {'train': values.train_shards, 'validation': values.validation_shards}
    tars, labels, boxes = _acquire(values, data_dir, counts)
    _require_space(values, data_dir, tars)
    if values.verify_checksums:
        for name, path in tars.items():
            _check_md5(path, TARS[name], data_dir / 'raw-data' / '.checked.json')
    csv = _boxes(boxes, data_dir / 'raw-data', synsets)
    found = {name: _index(values, data_dir, name, path, synsets, labels) for name, path in tars.items()}
    for name, pictures in found.items():
        shards.build(
            pictures,
            name,
            data_dir,
            counts[name],
            values.num_threads,
            texts=texts,
            boxes=shards.read_boxes(csv) if csv and name == 'train' else None,
            seed=values.seed,
            check=values.check,
            on_broken=values.on_broken,
            log=_log,
        )
    if values.keep_extracted:
        for name, pictures in found.items():
            _extract(pictures, data_dir / 'raw-data' / name)
    if values.verify:
        return max(
            shards.verify(data_dir, name, log=_log)
            for name in counts
            if name in found or _is_built(data_dir, name, counts[name])
        )
    return 0


# --- what is there, what is downloaded ------------------------------------------------------------------------


def _acquire(values, data_dir, counts):
    """Return ({split: tar file}, validation labels or None, boxes or None): paths, downloaded if need be.

    Splits whose shards are complete and whose tar file is gone are left out.
    """
    folders = (data_dir, data_dir / 'raw-data')
    tars = {name: _find(folders, tar.name) for name, tar in TARS.items()}
    done = [name for name in TARS if not tars[name] and _is_built(data_dir, name, counts[name])]
    for name in done:
        _log(f'{name}: all {counts[name]} shards are in {data_dir}; its tar file is gone and not needed')
    labels = _expanded(values.validation_labels_file) or validation_labels.find(folders)
    boxes = _find(folders, BOXES)
    wanted = [TARS[name].name for name in TARS if not tars[name] and name not in done]
    if not labels and 'validation' not in done:
        wanted.append(DEVKIT)
    if not boxes and 'train' not in done and not (data_dir / 'raw-data' / CSV).exists():
        wanted.append(BOXES)
    authorization = _authorization(wanted)
    if authorization or values.url != URL:
        _require_space(values, data_dir, {name: path for name, path in tars.items() if path}, wanted)
        _download(values.url, data_dir, wanted, authorization)
        tars |= {name: _find(folders, tar.name) for name, tar in TARS.items()}
        labels, boxes = labels or validation_labels.find(folders), _find(folders, BOXES)
    else:
        _require_local(data_dir, wanted, values.allow_partial)
    tars = {name: path for name, path in tars.items() if path}
    return {name: path for name, path in tars.items() if name != 'validation' or labels}, labels, boxes


def _expanded(path):
    return os.path.expanduser(path) if path else None


def _find(folders, name):
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _is_built(data_dir, name, num_shards):
    """Tell whether the manifest is there, and each shard in full size."""
    try:
        listed = json.loads((data_dir / f'{name}.manifest.json').read_text())['shards']
        return len(listed) == num_shards and all(
            os.path.getsize(data_dir / shard['name']) == shard['bytes'] for shard in listed
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _authorization(wanted):
    """Return the HTTP header for what is to be downloaded, asking for it on a terminal; None without both parts."""
    user, key = (os.environ.get(name, '') for name in CREDENTIALS)
    if set(wanted) - {BOXES} and not (user and key) and sys.stdin is not None and sys.stdin.isatty():
        print(f'{", ".join(wanted)} must be downloaded, with your account at image-net.org:', flush=True)
        try:
            user = user or input('user name: ')
            key = key or getpass.getpass('access key: ')
        except EOFError:
            return None
    return 'Basic ' + base64.b64encode(f'{user}:{key}'.encode()).decode() if wanted and user and key else None


def _require_local(data_dir, wanted, allow_partial):
    """Say what is missing and cannot be downloaded; raise UserError for what cannot be done without."""
    names = {'train': TARS['train'].name, 'validation': TARS['validation'].name}
    missing = [name for name in wanted if name != BOXES]
    if missing == [DEVKIT] and not allow_partial:
        raise UserError(
            f"nothing in '{data_dir}' tells the labels of the validation pictures; "
            f'{validation_labels.remedy()}, or set {" and ".join(CREDENTIALS)} to download it'
        )
    is_useless = names['train'] in missing and (names['validation'] in missing or DEVKIT in missing)
    if missing and (not allow_partial or is_useless):
        raise UserError(
            f"'{data_dir}' lacks {', '.join(missing)}; put it there, or set {' and '.join(CREDENTIALS)} "
            'to those of your account at image-net.org to download it'
        )
    if missing:
        _log(f'{", ".join(missing)} not there; going on with what is')
    if BOXES in wanted:
        _log(
            f'{BOXES} is not there: records have no boxes (put it into {data_dir}, or set {" and ".join(CREDENTIALS)})'
        )


def _download(url, data_dir, wanted, authorization):
    for name in wanted:
        address = f'{url.rstrip("/")}/{name}'
        size = next((tar.size for tar in TARS.values() if tar.name == name and url == URL), None)
        remedy = f"correct {' and '.join(CREDENTIALS)}, or put {name} into '{data_dir}' yourself"
        _log(f'downloading {address} to {data_dir}')
        try:
            download.fetch(address, data_dir / name, size, remedy=remedy, authorization=authorization)
        except UserError as error:
            if name != BOXES:
                raise
            _log(f'{error}; going on without boxes')


def _require_space(values, data_dir, tars, wanted=()):
    """Raise UserError if the disk has no room for what is yet to be written; shards are as large as a tar file."""
    official = {tar.name: tar.size for tar in TARS.values()} if values.url == URL else {}
    downloads = sum(max(0, official.get(name, 0) - _size(data_dir / f'{name}.part')) for name in wanted)
    counts = {'train': values.train_shards, 'validation': values.validation_shards}
    sizes = {name: _size(path) for name, path in tars.items()}
    sizes |= {name: official.get(tar.name, 0) for name, tar in TARS.items() if tar.name in wanted}
    needed = {
        'shards': sum(
            max(0, size - _written(data_dir, name))
            for name, size in sizes.items()
            if not _is_built(data_dir, name, counts[name])
        ),
        'tar files to download': downloads,
    }
    if values.keep_extracted:
        needed['extracted pictures'] = sum(
            size for name, size in sizes.items() if not (data_dir / 'raw-data' / name).exists()
        )
    free, total = shutil.disk_usage(data_dir).free, sum(needed.values())
    if free < total:
        parts = ', '.join(f'{what} {size / 1e9:.1f}' for what, size in needed.items() if size)
        raise UserError(
            f"the disk of '{data_dir}' has {free / 1e9:.1f} GB free, {total / 1e9:.1f} are needed "
            f'({parts}); free some, or pass a DATA_DIR on another disk'
        )


def _written(data_dir, name):
    """Return the bytes of the shards of a split that are there, finished or not."""
    return sum(map(_size, [*data_dir.glob(f'{name}-*-of-*'), *(data_dir / f'.{name}.progress').glob('*')]))


def _size(path):
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


# --- tar files -> pictures, boxes, unpacked files -------------------------------------------------------------


def _check_md5(path, tar, stamps_path):
    """Compare the MD5 of a file of the official size, unless that was done; say so of another size."""
    status = os.stat(path)
    if status.st_size != tar.size:
        _log(f'{path} has {status.st_size} bytes, the official file {tar.size}: taken as a subset, MD5 not compared')
        return
    try:
        stamps = json.loads(stamps_path.read_text())
    except (OSError, ValueError):
        stamps = {}
    stamp = [status.st_size, status.st_mtime_ns, tar.md5]
    if stamps.get(tar.name) == stamp:
        return
    _log(f'comparing the MD5 of {path} (once; --noverify_checksums leaves it out)')
    found = _md5(path, tar.size)
    if found != tar.md5:
        raise UserError(
            f"'{path}' has MD5 {found} instead of {tar.md5}; remove it and get it again, or pass --noverify_checksums"
        )
    part = stamps_path.with_name(f'{stamps_path.name}.part')
    part.write_text(json.dumps({**stamps, tar.name: stamp}))
    os.replace(part, stamps_path)


def _md5(path, size):
    digest, done, last = hashlib.md5(usedforsecurity=False), 0, time.monotonic()
    with open(path, 'rb', buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if time.monotonic() - last >= _SECONDS:
                last = time.monotonic()
                _log(f'MD5 of {path}: {done / 1e9:.1f} of {size / 1e9:.1f} GB')
    return digest.hexdigest()


def _boxes(path, raw, synsets):
    """Return the CSV of boxes in raw-data, made of the tar file if that is new, or None."""
    csv, stamp_path = raw / CSV, raw / '.boxes.json'
    if path is None:
        return csv if csv.exists() else None
    status = os.stat(path)
    stamp = [status.st_size, status.st_mtime_ns, hashlib.sha256(json.dumps(synsets).encode()).hexdigest()]
    try:
        if csv.exists() and json.loads(stamp_path.read_text()) == stamp:
            return csv
    except (OSError, ValueError):
        pass
    _log(f'reading the boxes of {path}')
    stamp_path.unlink(missing_ok=True)
    bounding_boxes.write(path, csv, synsets, _log)
    stamp_path.write_text(json.dumps(stamp))
    return csv


def _index(values, data_dir, name, path, synsets, labels):
    """Return the Pictures of a split's tar file."""
    options = {'allow_partial': values.allow_partial, 'log': _log}
    if name == 'train':
        return imagenet_tars.indexed(
            data_dir,
            name,
            path,
            [synsets, values.allow_partial],
            lambda: imagenet_tars.train_pictures(path, synsets, **options),
            _log,
        )
    order = validation_labels.read(labels)
    return imagenet_tars.indexed(
        data_dir,
        name,
        path,
        [synsets, values.allow_partial, order],
        lambda: imagenet_tars.validation_pictures(path, order, synsets, **options),
        _log,
    )


def _extract(pictures, folder):
    """Write each picture to `<folder>/<class>/<name>`; those that are there in full size stay."""
    count, last = 0, time.monotonic()
    for i in range(len(pictures)):
        path = folder / pictures.synset(i) / pictures.basename(i)
        if _size(path) == pictures.rows[i]['size']:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.read_bytes(i))
        count += 1
        if time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            _log(f'unpacked {i + 1} of {len(pictures)} pictures to {folder}')
    _log(f'{len(pictures)} pictures are in {folder}, {count} of them written now')


def _log(line):
    print(line, flush=True)


def run():
    """Run with the arguments of the command line and exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv))


if __name__ == '__main__':
    run()
