"""Compare what two checkouts of this project compute, bit for bit, through their commands.

    python tests/golden.py OLD NEW                      # all checks; about 4 minutes a side on two cores
    python tests/golden.py OLD NEW --only cifar_v1,flags
    python tests/golden.py --list

OLD and NEW are folders that hold a checkout each. Commands and flags are assumed to stay where they are; modules may
move. Results of a checkout whose work tree is clean are kept in --cache, so OLD is computed once. Children run with
one thread an operation, without a GPU, and offline. The exit code is 1 if anything differs that the table
EXPECTED does not list. This program is not part of the test suite.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import fnmatch
import functools
import hashlib
import importlib.metadata
import inspect
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types

import numpy as np
from golden_checks import CHECKS, NEEDS, run

# Changes on purpose since 0b63af2: {check: {value name, * and ? allowed: reason}}.
_NEW = 'it is new'
_TRAINED = {
    '* card: spec.identity_pool': "it is new; wenxinxu's networks average",
    '* card: input.exif': 'the card says whether images are turned as their EXIF says',
    '* card: ids': 'the card has the ids of the classes',
    'model weights: optimizer/*': 'a saved network loads without this package, so it has no optimizer',
}
_OF_CONVERSION = {name: reason for name, reason in _TRAINED.items() if 'card: ' in name and 'ids' not in name}
EXPECTED = {
    check: _TRAINED
    for check in (
        *('cifar_v1', 'cifar_v2', 'cifar_resumed', 'cifar100', 'mnist', 'image_folder', 'transfer_last'),
        *('transfer_head', 'replicas', 'workers'),
    )
} | {
    'conversions': {'* card: weights': 'the card says whether the weights are moving averages'} | _OF_CONVERSION,
    'flags': {
        'read_ckpt --source: type': 'it has four families more',
        **{f'read_ckpt --{name}: *': _NEW for name in ('weights', 'no_head', 'data_dir')},
        **{
            f'*_main --{name}: *': _NEW
            for name in ('initializer', 'variant', 'patience', 'enable_lars', 'worker_token', 'lr_*', 'muon_momentum')
        },
        **{
            f'*_main --{name}: *': _NEW
            for name in ('decay_form', '*_learning_rate_factor', 'clip_norm', 'optimizer', '*accumulation*')
        },
        'imagenet_main --crop_sampler: *': _NEW,
    },
    'imagenet': {'*': "initial weights and crops are official/resnet's"},
    'evaluation': {'stdout: *': 'a first line names the network that is evaluated'},
    'gradients': {'* machine.uses_onednn': _NEW},
    'shortcuts': {'* machine.uses_onednn': _NEW, '* settings.patience': _NEW},
    'recipes': {
        '*: machine.uses_onednn': _NEW,
        '*: config.patience': _NEW,
        '*-official: config.spec.initializer': "official/resnet's",
        '*: config.spec.identity_pool': _NEW,
        'imagenet-*: config.views.*': 'the crops of fb and fast are those of torchvision; EXIF is a choice',
    },
    'beam': {'*.manifest.json: skipped': _NEW},
    'shards': {
        '*.manifest.json: skipped': _NEW,
        'own*: *': 'own images are turned as their EXIF says',
    },
    'predict': {
        'explained: *': 'image, heat map and overlay are beside each other, under class and probability',
        **{f'* {extra}: *': 'is_unsure and copy are new' for extra in ('json', 'explained')},
    },
}
# Leaves that have another name since: {check: {old name after the first ': ': new name, or None if it is gone}}.
RENAMED: dict[str, dict[str, str | None]] = {}

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_VALUES = 20_000  # of an array that is kept whole; of a larger one the SHA-256 is


# --- one side -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    """What a check found in one checkout, {name: array or text}; seconds is None if it was kept from before."""

    values: dict
    folder: pathlib.Path
    seconds: float | None


class Checkout:
    """One side: its code, the inputs, and the results of its checks, each of which is computed once."""

    def __init__(self, path, results, inputs):
        self.path, self.results, self.inputs = pathlib.Path(path).resolve(), results.resolve(), inputs.resolve()
        self.lock, self.futures = threading.Lock(), {}

    def result(self, name):
        """Return the Result of a check; whoever comes second waits for the first."""
        with self.lock:
            is_first = name not in self.futures
            future = self.futures.setdefault(name, concurrent.futures.Future())
        if is_first:
            try:
                future.set_result(self._compute(name))
            except Exception as error:
                future.set_exception(error)
        return future.result()

    def _compute(self, name):
        folder = self.results / f'{name}-{key_of(name)}'
        stored, work = folder / 'values.pickle', folder / 'work'
        needs = [self.result(need).folder for need in NEEDS.get(name, ())]
        with locked(folder):
            if stored.is_file():
                return Result(pickle.loads(stored.read_bytes()), work, None)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            start = time.monotonic()
            values = {key: self._portable(value) for key, value in CHECKS[name](self, work, *needs).items()}
            if not any(name in others for others in NEEDS.values()):
                shutil.rmtree(work)
            part = folder / 'values.part'
            part.write_bytes(pickle.dumps(values))
            part.replace(stored)
            return Result(values, work, time.monotonic() - start)

    def _portable(self, value):
        """Return a value without this side's folders; of a large array its SHA-256."""
        if isinstance(value, np.ndarray) and value.size > MAX_VALUES:
            return f'{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}'
        if isinstance(value, str):
            for name in ('path', 'results', 'inputs'):
                value = value.replace(str(getattr(self, name)), f'<{name}>')
        return value


# --- the cache ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder):
    """Make a folder and keep other runs of this program out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def text_of(value, found=None):
    """Return the source of a function with all functions and constants of its file that it uses, by name."""
    found = {} if found is None else found
    if isinstance(value, functools.partial):
        found[''] = repr(sorted(value.keywords.items()))
        return text_of(value.func, found)
    found[value.__name__] = inspect.getsource(value)
    codes = [value.__code__]
    for code in codes:
        codes += [item for item in code.co_consts if isinstance(item, types.CodeType)]
        for name in sorted({*code.co_names} - found.keys()):
            item = value.__globals__.get(name)
            if inspect.isfunction(item) and item.__module__ == value.__module__:
                text_of(item, found)
            elif isinstance(item, str | tuple | list | dict):
                found[name] = repr(item)
    return found


@functools.cache
def key_of(name):
    """Return the key of the results of a check: a hash of its text, of the checks that it needs, and of the machine."""
    parts = [sorted(text_of(CHECKS[name]).items()), [key_of(need) for need in NEEDS.get(name, ())], machine()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def machine():
    """Return what the last bits depend on, and the text of the inputs."""
    cpu = [
        line
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        if line.startswith(('model name', 'flags'))
    ]
    versions = [importlib.metadata.version(name) for name in ('tensorflow', 'keras', 'numpy', 'pillow')]
    text = pathlib.Path(__file__).with_name('golden_inputs.py').read_text()
    return hashlib.sha256(repr([cpu[:2], sys.version, versions, text]).encode()).hexdigest()[:16]


def make_inputs(cache, shared):
    """Return the folder of the inputs, made if need be by the tests of the checkout in which this file lies."""
    folder = cache / f'inputs-{machine()}'
    with locked(folder):
        if not (folder / 'data').is_dir():
            shutil.rmtree(folder / 'part', ignore_errors=True)
            (folder / 'part').mkdir()
            script = pathlib.Path(__file__).with_name('golden_inputs.py')
            run(Checkout(ROOT, cache, folder), folder, script, 'part', shared.resolve())
            (folder / 'part').rename(folder / 'data')
    return folder / 'data'


def results_folder(path, folder, temporary):
    """Return where results of a checkout are kept: below `folder` by commit, unless its work tree has changes."""

    def git(*words):
        return subprocess.run(['git', '-C', path, *words], capture_output=True, text=True)

    commit, status = git('rev-parse', 'HEAD'), git('status', '--porcelain')
    if commit.returncode or status.returncode or status.stdout:
        return pathlib.Path(tempfile.mkdtemp(dir=temporary))
    return folder / commit.stdout.strip()


# --- comparison ---------------------------------------------------------------------------------------------------


def difference(old, new):
    """Return in what two values differ, '' if in nothing."""
    if type(old) is not type(new):
        return f'{type(old).__name__} -> {type(new).__name__}'
    if isinstance(old, np.ndarray):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            return f'{old.dtype} {old.shape} -> {new.dtype} {new.shape}'
        if old.tobytes() == new.tobytes():
            return ''
        return f'differs by at most {np.nanmax(np.abs(old.astype(float) - new.astype(float)), initial=0):.3g}'
    if old == new:
        return ''
    one, other = old.splitlines(), new.splitlines()
    i = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = next((k for k, (a, b) in enumerate(zip(''.join(one[i:]), ''.join(other[i:]), strict=False)) if a != b), 0)
    shown = [repr(''.join(lines[i : i + 1])[max(0, start - 30) :][:90]) for lines in (one, other)]
    return f'{shown[0]} -> {shown[1]}' + (f' in line {i + 1}' if len(one) > 1 else '')


def compare(check, old, new):
    """Return ({name: difference} that nobody expected, {expected name pattern: number of differences})."""
    renamed, expected = RENAMED.get(check, {}), dict.fromkeys(EXPECTED.get(check, {}), 0)
    moved = {}
    for name, value in old.items():
        where, _, leaf = name.partition(': ')
        if leaf not in renamed:
            moved[name] = value
        elif renamed[leaf] is not None:
            moved[f'{where}: {renamed[leaf]}'] = value
    found = {}
    for name in [*moved, *(name for name in new if name not in moved)]:
        if name not in new:
            text = 'is gone'
        elif name not in moved:
            text = 'is new'
        else:
            text = difference(moved[name], new[name])
        pattern = next((pattern for pattern in expected if fnmatch.fnmatchcase(name, pattern)), None)
        if text and pattern:
            expected[pattern] += 1
        elif text:
            found[name] = text
    return found, expected


def report(name, jobs, num_shown):
    """Print the line of a check and its first differences; return whether all is as expected.

    Args:
        name: of the check.
        jobs: {'OLD': future of a Result, 'NEW': another}.
        num_shown: differences to print.
    """
    results, faults = [], []
    for label, job in jobs.items():
        try:
            results.append(job.result())
        except Exception as error:  # also of files that are not as they should be
            faults.append(f'{label} failed: {type(error).__name__}: {error}')
    if faults:
        print(f'{name:16} {"":7} {"":>7} {"":>7}  not compared', *faults, sep='\n    ', flush=True)
        return False
    old, new = results
    found, expected = compare(name, old.values, new.values)
    seconds = ['kept' if result.seconds is None else f'{result.seconds:.0f}' for result in results]
    verdict = f'{len(found)} differ' if found else 'equal'
    verdict += f', {sum(expected.values())} changed on purpose' if any(expected.values()) else ''
    print(f'{name:16} {len(new.values):>7,} {seconds[0]:>7} {seconds[1]:>7}  {verdict}')
    for value, text in list(found.items())[:num_shown]:
        print(f'    {value} {text}')
    for pattern in (pattern for pattern, count in expected.items() if not count):
        print(f'    EXPECTED names {pattern!r}, which is as before')
    sys.stdout.flush()
    return not found


def main():
    """Run with the arguments of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', nargs='?', help='The folder of the checkout to compare with.')
    parser.add_argument('new', nargs='?', help='The folder of the checkout to judge.')
    parser.add_argument('--only', help='Run only these checks, a comma-separated list of their names.')
    parser.add_argument('--list', action='store_true', help='Print the names of the checks and what each does.')
    default = pathlib.Path(tempfile.gettempdir()) / 'resnet_golden'
    parser.add_argument('--cache', type=pathlib.Path, default=default, help='The folder that keeps inputs and results.')
    shared = [folder / 'shared' / 'data' for folder in ROOT.parents]
    shared = next((folder for folder in shared if folder.is_dir()), shared[0])
    parser.add_argument('--shared', type=pathlib.Path, default=shared, help='The folder of the real data.')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='The number of checks that run side by side.')
    parser.add_argument('--show', type=int, default=3, help='The number of differences to print of a check.')
    options = parser.parse_args()
    names = options.only.split(',') if options.only else list(CHECKS)
    if options.list:
        for name, check in CHECKS.items():
            keywords = getattr(check, 'keywords', {})
            text = inspect.getdoc(getattr(check, 'func', check)).splitlines()[0]
            print(f'{name:16} {" ".join((keywords.get("name") or text, keywords.get("flags", "")))}')
        return 0
    if options.new is None or not set(names) <= CHECKS.keys():
        parser.error(f'pass OLD and NEW; the checks are {", ".join(CHECKS)}')
    if not options.shared.is_dir():
        parser.error(f'there is no {options.shared}; pass --shared, the folder that holds akamaster-resnet20.th')
    with tempfile.TemporaryDirectory() as temporary, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        inputs = make_inputs(options.cache, options.shared)
        folders = [results_folder(path, inputs.parent, temporary) for path in (options.old, options.new)]
        if folders[0] == folders[1]:  # the same commit: is it deterministic?
            folders[1] = pathlib.Path(tempfile.mkdtemp(dir=temporary))
        old, new = (Checkout(*side, inputs) for side in zip((options.old, options.new), folders, strict=True))
        jobs = {name: {'OLD': pool.submit(old.result, name), 'NEW': pool.submit(new.result, name)} for name in names}
        start = time.monotonic()
        print(f'{"check":16} {"values":>7} {"OLD s":>7} {"NEW s":>7}  result', flush=True)
        is_equal = all([report(name, jobs[name], options.show) for name in names])
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = f'{time.monotonic() - start:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of a core'
    print(f'{"as expected" if is_equal else "NOT as expected"}; {seconds}')
    return 0 if is_equal else 1


if __name__ == '__main__':
    sys.exit(main())
