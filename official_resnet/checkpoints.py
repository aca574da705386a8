"""The training checkpoint: one file, in place either whole or not at all.

A file `step-000012345.npz` is a NumPy archive (a zip, each array with its CRC-32): the model's and the
optimizer's variables by name, and the loop's state as JSON. It is written beside its final name,
flushed to the disk and renamed, so that a kill, a crash or a full disk leaves the last one intact.
"""

import json
import os
import pathlib
import socket
import zipfile
from collections.abc import Callable
from typing import IO

import numpy as np

from official_resnet import files
from official_resnet.errors import UserError

METRICS_FILE = 'metrics.jsonl'  # beside the folder of checkpoints; training.callbacks.MetricsJSON writes it
_STATE = 'state.json'
LOCK = '.lock'


def save(
    folder: str | os.PathLike, step: int, arrays: dict[str, np.ndarray], state: dict, max_to_keep: int = 5
) -> pathlib.Path:
    """Write the checkpoint of a global step, delete all but the newest `max_to_keep`, and return its path.

    The folder is made if it is missing; `state` is anything that JSON can hold.

    Raises:
        UserError: the disk is full or the folder not writable; earlier checkpoints are kept.
    """
    folder = pathlib.Path(folder)
    path = folder / f'step-{step:09d}.npz'
    remedy = ' and run the same command again, it continues from the last checkpoint'
    with files.write_errors(f'checkpoint {path}', remedy):
        folder.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as part, open(part, 'wb') as file:
            np.savez(file, **arrays, **{_STATE: np.array(json.dumps(state))})
    for old in paths(folder)[:-max_to_keep]:
        old.unlink(missing_ok=True)
    return path


def paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(pathlib.Path(folder).glob('step-*.npz'))


def restore_latest(
    folder: str | os.PathLike, log: Callable[[str], None] = print
) -> tuple[dict[str, np.ndarray], dict, pathlib.Path] | None:
    """Return (arrays, state, path) of the newest intact checkpoint, or None where there is none.

    A damaged file is named through `log` and passed over; when all are damaged, that is an error.
    """
    damaged = []
    for path in reversed(paths(folder)):
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            state = json.loads(str(arrays.pop(_STATE)))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log(f'checkpoint {path} is damaged ({error}); trying the one before')
            damaged.append(path)
        else:
            return arrays, state, path
    if damaged:
        raise UserError(f'no checkpoint in {folder} can be read; delete the folder to start anew')
    return None


def restore_weights(
    model_dir: str | os.PathLike | None, remedy: str = 'train there first, or pass another --model_dir'
) -> tuple[dict[str, np.ndarray], dict, pathlib.Path]:
    """Return what restore_latest does of a model_dir, without the variables of the optimizer.

    Raises:
        UserError: there is no checkpoint; the message ends with `remedy`.
    """
    found = restore_latest(pathlib.Path(model_dir) / 'checkpoints') if model_dir else None
    if not found:
        raise UserError(f"model_dir '{model_dir}' has no checkpoint; {remedy}")
    arrays, *others = found
    return {name: array for name, array in arrays.items() if not name.startswith('optimizer/')}, *others


def assign(
    variables: dict, arrays: dict[str, np.ndarray], path: str | os.PathLike, remedy: str = 'pass another --model_dir'
) -> None:
    """Set each of `variables` {name: variable} from `arrays` {name: ndarray} of a file; names and shapes must agree.

    Raises:
        UserError: names the first missing, unexpected or misshapen array.
    """
    for name in sorted(variables.keys() ^ arrays.keys()):
        what = 'lacks' if name in variables else 'has an unexpected'
        raise UserError(f"'{path}' {what} {name}: it belongs to another network; {remedy}")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(
                f"'{path}' holds {name} of shape {arrays[name].shape}, not {tuple(variable.shape)}; {remedy}"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def read_metrics(model_dir: str | os.PathLike) -> list[dict]:
    """Return the lines of model_dir/metrics.jsonl as dicts; a last line that a kill cut short is left out."""
    path, lines = pathlib.Path(model_dir) / METRICS_FILE, []
    if path.is_file():
        for text in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def lock(model_dir: str | os.PathLike) -> IO[str]:
    """Keep other jobs out of model_dir until the returned file is closed, at the latest when this process ends.

    Raises:
        UserError: another job is there, or nothing can be written.
    """
    path = pathlib.Path(model_dir) / LOCK
    with files.write_errors(f"into model_dir '{model_dir}'", ', or pass another --model_dir'):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = files.lock(path)
        except BlockingIOError:
            owner = path.read_text(encoding='utf-8').strip() or 'another process'
            raise UserError(
                f"model_dir '{model_dir}' is in use by {owner}; wait for it, or pass another --model_dir"
            ) from None
        file.truncate(0)
        print(f'process {os.getpid()} on {socket.gethostname()}', file=file, flush=True)
    return file
