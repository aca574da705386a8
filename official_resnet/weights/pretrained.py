"""Published weights by name: list them, or fetch, verify and convert them into the cache.

    python -m official_resnet.weights.pretrained                     # name, top-1 accuracy, size in MB, licence
    python -m official_resnet.weights.pretrained timm resnet50       # the rows with these words
    python -m official_resnet.weights.pretrained fetch resnet50      # prepare a machine without a network

Wherever a program takes a network, it also takes such a name: predict_main --model, export_main --model, report_main,
--pretrained_model_checkpoint_path, official_resnet.load. What exists as a file or a folder is never taken for a name,
and nothing is downloaded unless a name was given.

The cache is --cache_dir, or $XDG_CACHE_HOME/official-resnet, or ~/.cache/official-resnet. It keeps the converted
network with its card, not the file that was fetched. OFFICIAL_RESNET_MIRROR is an address or a folder to fetch from
instead: the file of https://host/path is MIRROR/host/path, which is where `wget --force-directories` puts it.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import pathlib
import subprocess
import sys
import textwrap
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from official_resnet import bounds, damage, files, folders
from official_resnet.errors import UserError, one_line
from official_resnet.inputs import archives, download, web
from official_resnet.weights.published import ALIASES, PUBLISHED, Weights

if TYPE_CHECKING:
    import keras

    from official_resnet.inference import card_reader

_LOG = logging.getLogger(__name__)
MIRROR = 'OFFICIAL_RESNET_MIRROR'
LISTING = 'python -m official_resnet.weights.pretrained lists the names'
_WAIT = 0.2  # seconds between attempts to get the lock
_PATH_SUFFIXES = ('.keras', '.npz')  # what has one of them is a path, even if it does not exist


def load(path: str | os.PathLike, use_weights: str = 'average') -> 'tuple[keras.Model, card_reader.Card]':
    """Return what inference.predict.load returns, also for the name of published weights, such as 'resnet50'.

    >>> model, card = load('demo_model')
    >>> card.num_classes
    10

    Raises:
        UserError: The network is missing or damaged, or cannot be fetched.
    """
    from official_resnet.inference import predict

    return predict.load(resolve(path), use_weights)


def resolve(text: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> str:
    """Return the path of a network that a path or a name of published weights stands for.

    The weights are fetched, verified and converted if they are not in the cache. A path is returned as it is, for its
    reader to complain about.

    Raises:
        UserError: The text looks like a name and is none, or the weights cannot be had.
    """
    weights = find(text)
    if weights is None:
        return str(text)
    if text != weights.name:
        _LOG.info(f'{text} is {weights.name}; {LISTING}')
    return str(fetch(weights, cache_dir))


def find(text: str | os.PathLike) -> Weights | None:
    """Return the row of a name, or None for a path, which need not exist. UserError: a name that the table lacks."""
    name = str(text)
    if pathlib.Path(name).expanduser().exists() or name.endswith(_PATH_SUFFIXES) or name.startswith(('.', '/', '~')):
        return None
    weights = PUBLISHED.get(ALIASES.get(name, name))
    if weights is None and os.sep not in name:
        raise UserError(f"'{name}' is no file, no folder and no name of published weights{_near(name)}; {LISTING}")
    return weights


def fetch(weights: Weights, cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Return the path of published weights in the cache, NAME.keras with its card; convert them if they are missing.

    Other processes that want the same weights wait.

    Raises:
        UserError: The file cannot be had or converted, or it holds another network than the table says.
    """
    folder = cache_folder(cache_dir) / weights.name
    path = folder / f'{folder.name}.keras'
    if path.is_file():
        return path
    with files.write_errors(f"'{folder}'", ', or pass another --cache_dir'):
        files.make_folder(folder)
        with _lock(folder / '.lock'):
            if not path.is_file():
                _make(weights, path)
    return path


def cache_folder(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Return the folder of the cache, which need not exist."""
    if cache_dir:
        return pathlib.Path(cache_dir).expanduser().absolute()
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser().absolute() / 'official-resnet'


def cached(cache_dir: str | os.PathLike | None = None) -> list[str]:
    """Return the names of the published weights that are in the cache."""
    folder = cache_folder(cache_dir)
    return [name for name in PUBLISHED if (folder / name / f'{pathlib.PurePosixPath(name).name}.keras').is_file()]


def _make(weights, path):
    """Fetch and convert weights, and put the network and its card into the cache."""
    with _source(weights, path.parent) as (source, sha256), folders.temporary(path.parent, 'convert') as temp_dir:
        _LOG.info(f'{weights.name}: converting and verifying {source.name}')
        found = temp_dir / path.name
        _convert(weights, source, found)
        card_path = found.with_suffix('.card.json')
        card = json.loads(files.read_text(card_path))
        _require_network(weights, card)
        card['published'] = weights.facts() | {'sha256': sha256}
        if convention := weights.card_input():
            card['input'] = dataclasses.asdict(convention)
        files.write_text(path.with_suffix('.card.json'), json.dumps(card, indent=2) + '\n')
        files.put_in_place(found, path)
    _LOG.info(f'{weights.name} is {path}; the SHA-256 of the fetched file is {sha256}')


@contextlib.contextmanager
def _source(weights, folder) -> Iterator[tuple[pathlib.Path, str]]:
    """Yield the path of the checkpoint and the SHA-256 of the file that was fetched. What was fetched is deleted."""
    parts = urllib.parse.urlsplit(weights.url)
    place, mirror = parts.netloc + parts.path, os.environ.get(MIRROR, '')
    if mirror and not web.is_address(mirror):
        path, fetched = pathlib.Path(mirror).expanduser() / place, None
        if fault := download.mismatch(path, None, weights.checksum or None):
            raise UserError(f"{MIRROR}={mirror}: '{path}' {fault}; put the published file there, or unset {MIRROR}")
    else:
        path = fetched = folder / pathlib.PurePosixPath(parts.path).name
        remedy = f'put the file at FOLDER/{place} and set {MIRROR}=FOLDER'
        if weights.page and not mirror:
            raise UserError(f'no program can fetch {weights.name}: get {path.name} from {weights.page}, {remedy}')
        if not path.is_file():  # a whole and checked one was left when its conversion was stopped
            url = f'{mirror.rstrip("/")}/{place}' if mirror else weights.url
            size = f' ({int(weights.bytes) / 1e6:.0f} MB)' if weights.bytes else ''
            _LOG.info(f'{weights.name}: downloading {url}{size}')
            most = bounds.limit('weights_bytes')
            download.fetch(url, path, None, weights.checksum or None, remedy, most=most, flag='--cache_dir')
    with open(path, 'rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    if path.name.endswith('.tar.gz'):
        with folders.temporary(folder, 'unpack') as unpacked:
            yield _unpack(path, unpacked), sha256
    else:
        yield path, sha256
    if fetched:
        fetched.unlink()


def _unpack(archive, folder):
    """Unpack the plain files of a tar.gz into a folder, and return the path of the one checkpoint among them."""
    where, remedy = f"'{archive}'", 'get it from a source you trust'
    with archives.unpacked(archive, always=True) as tar, damage.reported(archive, remedy, kind='a tar.gz'):
        for info in archives.members(tar, 0, 1 << 62, where, 'archive_members'):
            name = pathlib.PurePosixPath(info.name.replace('\\', '/')).name
            if info.isreg() and name:
                bounds.require('weights_bytes', info.offset_data + info.size, where, remedy)
                with files.write_errors(f"'{folder}'", ', or pass another --cache_dir'):
                    archives.copy(tar, info, folder / name)
    found = [path for path in sorted(folder.iterdir()) if path.suffix in ('.index', '.ckpt')]
    if len(found) != 1:
        raise UserError(f'{where} has {len(found)} checkpoints of TensorFlow, not one; get the published archive')
    return found[0].with_suffix('') if found[0].suffix == '.index' else found[0]


def _convert(weights, source, output):
    """Convert a checkpoint in a process of its own, whose TensorFlow leaves this process as it is."""
    arguments = [f'--input={source}', f'--output={output}', f'--source={weights.family}']
    command = [sys.executable, '-P', '-m', 'checkpoints_tools.read_ckpt', *arguments]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}  # so that it finds the same packages
    child = subprocess.run(command, env=environment, capture_output=True, text=True, errors='replace')
    if child.returncode:
        lines = child.stderr.splitlines() or [f'its process ended with code {child.returncode}']
        raise UserError(f'{weights.name} cannot be converted: {one_line(lines[-1].removeprefix("read_ckpt: "))}')


def _require_network(weights, card):
    """Raise UserError if a converted network is not the one that the table names."""
    from official_resnet import resnet_spec, resnet_variants

    found = resnet_spec.ResNetSpec.from_json(card['spec'])
    wanted = resnet_variants.find_spec(weights.network)
    for field in ('block', 'group_blocks', 'filters', 'base_width', 'cardinality', 'version'):
        ours, theirs = getattr(wanted, field), getattr(found, field)
        if ours != theirs:
            raise UserError(
                f'{weights.url} holds a network with {field}={theirs}, but {weights.name} has {ours}: it is another '
                'file than the table of published weights says'
            )


@contextlib.contextmanager
def _lock(path):
    """Hold the lock of a file; wait while another process has it."""
    file = None
    while file is None:
        try:
            file = files.lock(path)
        except BlockingIOError:
            _LOG.info(f'waiting for another process that fetches {path.parent.name}')
            while file is None:
                time.sleep(_WAIT)
                with contextlib.suppress(BlockingIOError):
                    file = files.lock(path)
    with file:
        yield


def _near(name):
    known = {*PUBLISHED, *ALIASES}
    near = difflib.get_close_matches(name, known, 3, 0.7) or [row for row in PUBLISHED if name in row][:3]
    return f' (near: {", ".join(near)})' if near else ''


def list_rows(words: Sequence[str] = ()) -> list[str]:
    """Return the table as lines of text: the rows whose names or networks have all of these words, and the aliases."""
    rows = [('name', 'top-1', 'MB', 'licence')]
    for row in PUBLISHED.values():
        if all(word in f'{row.name} {row.network}' for word in words):
            rows.append(
                (row.name, row.top1, row.bytes and f'{int(row.bytes) / 1e6:.0f}', row.licence.partition(';')[0])
            )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f'{name:{widths[0]}}  {top1:>{widths[1]}}  {size:>{widths[2]}}  {licence}' for name, top1, size, licence in rows
    ]
    short = [f'{alias}={name}' for alias, name in ALIASES.items() if all(word in f'{alias} {name}' for word in words)]
    return lines + (['', *textwrap.wrap(f'short names: {", ".join(short)}', 80)] if short else [])


def _run(values, arguments):
    if arguments[:1] == ['fetch']:
        names = arguments[1:]
        if not names:
            raise UserError(f'fetch what? pass names; {LISTING}')
        for name in names:  # a wrong name is told before the first download
            if ALIASES.get(name, name) not in PUBLISHED:
                raise UserError(f"'{name}' is no name of published weights{_near(name)}; {LISTING}")
        for name in names:
            files.say(str(fetch(PUBLISHED[ALIASES.get(name, name)], values.cache_dir)))
        return
    lines = list_rows(arguments)
    if len(lines) == 1:
        raise UserError(f'no published weights have {" and ".join(arguments)} in their names; pass fewer words')
    for line in lines:
        files.say(line)


if __name__ == '__main__':
    from absl import flags

    from official_resnet.command_line import definer, program

    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # the flag may follow the words
    definer.Definer(values).known('cache_dir', None)
    show = program.reader_may_leave()(_run)
    sys.exit(program.run_program(sys.argv, __doc__, values, show, takes_arguments=True))
