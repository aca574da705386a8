"""The training checkpoint: one file, written atomically.

A file `step-000012345.npz` is a NumPy archive (a zip file with a CRC-32 for each array): the variables of the model
and the optimizer by name, and the loop's state as JSON. It is written under a temporary name, flushed to the disk and
renamed, so that a kill, a crash or a full disk leaves the previous checkpoint intact.
"""

import contextlib
import fnmatch
import itertools
import json
import logging
import math
import os
import pathlib
import socket
from typing import IO, Any

import numpy as np

from official_resnet import files
from official_resnet.errors import Damaged, UserError, one_line

# In model_dir; written by training.callbacks.Record.
METRICS_FILE, NETWORK_FILE, STEPS_FILE = 'metrics.jsonl', 'network.json', 'steps.csv'
MOST = 1e39  # above any float32; what is larger is damaged, or not a number
_STATE = 'state.json'
_SPLITS, _NUMBERS = ('train', 'test'), ('epoch', 'step', 'loss', 'accuracy', 'learning_rate')  # of a row of metrics
AGAIN = ' and run the same command again; it continues from the last checkpoint, if any'  # the end of a message
LOCK = '.lock'
# Temporary files of a training that was killed, in model_dir; see files.replacing.
_PARTS = """checkpoints/part.step-*.npz part.features-train.npz part.features-test.npz part.model.keras part.best.keras
    part.model.card.json part.best.card.json part.config.json part.network.json part.track.json part.steps.csv
    part.metrics.jsonl""".split()


def save(
    folder: str | os.PathLike, step: int, arrays: dict[str, np.ndarray], state: dict, max_to_keep: int = 5
) -> pathlib.Path:
    """Write the checkpoint of a global step, delete all but the newest `max_to_keep`, and return its path.

    The folder is created if it is missing. `state` holds JSON values.

    Raises:
        UserError: The disk is full or the folder is not writable. Earlier checkpoints are kept.
    """
    folder = pathlib.Path(folder)
    path = folder / f'step-{step:09d}.npz'
    with files.write_errors(f"checkpoint '{path}'", AGAIN):
        files.make_folder(folder)
        with files.replacing(path) as part, open(part, 'wb') as file:
            contents: dict[str, Any] = {**arrays, _STATE: np.array(json.dumps(state))}
            np.savez(file, **contents)
    for old in paths(folder)[:-max_to_keep]:
        old.unlink(missing_ok=True)
    return path


def paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Return the paths of the checkpoints in a folder, oldest first. Raise UserError if it cannot be read."""
    with files.read_errors(folder, 'pass another --model_dir'):  # a glob would find nothing in a closed folder
        names = os.listdir(folder) if os.path.exists(folder) else []
    return [pathlib.Path(folder) / name for name in sorted(fnmatch.filter(names, 'step-*.npz'))]


def restore_latest(folder: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict, pathlib.Path] | None:
    """Return (arrays, state, path) of the newest intact checkpoint, or None if there are no checkpoints.

    Damaged files are logged and skipped. If all are damaged, or a file cannot be read, UserError is raised.
    """
    found = paths(folder)
    for path in reversed(found):
        try:
            return *read(path), path
        except Damaged as error:
            logging.getLogger(__name__).warning(f'{str(error).rpartition(";")[0]}; trying the one before it')
    if found:
        raise UserError(f'all checkpoints in {folder} are damaged; delete the folder to start again')
    model_dir = pathlib.Path(folder).parent
    if (model_dir / 'checkpoint').is_file():
        fault = f"model_dir '{model_dir}' holds a TensorFlow checkpoint, which is not continued"
        raise UserError(f'{fault}; convert it with resnet-convert (read_ckpt.py), or pass another --model_dir')
    return None


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict]:
    """Return the (arrays, state) of a checkpoint. It raises UserError, which is Damaged if the file's content is."""
    from official_resnet import damage

    with damage.reported(path, 'use an earlier one', 'checkpoint '):
        arrays = damage.read_arrays(path)
        state = json.loads(str(arrays.pop(_STATE)))
        if not isinstance(state, dict):
            raise ValueError(f'{_STATE} is not an object')
        return arrays, state


def named(model: Any) -> dict[str, Any]:
    """Return {name in a checkpoint: variable} of a keras.Model: their paths, but random generators are numbered.

    Keras counts these (of stochastic depth, for example) within a process, so a second network has other paths.
    """
    found: dict[str, Any] = {}
    generators = 0
    for variable in model.variables:
        name = variable.path
        if variable.name == 'seed_generator_state':
            name, generators = f'seed_generator{f"_{generators}" * (generators > 0)}/{variable.name}', generators + 1
        found[name] = variable
    return found


def assign(
    variables: dict, arrays: dict[str, np.ndarray], path: str | os.PathLike, remedy: str = 'pass another --model_dir'
) -> None:
    """Set `variables` {name: variable} from the `arrays` {name: ndarray} of a file. Names and shapes must agree.

    Raises:
        UserError: An array is missing, unexpected or has another shape; the message names the first one.
    """
    for name in sorted(variables.keys() ^ arrays.keys()):
        what = 'has no' if name in variables else 'has an unexpected'
        raise UserError(f"'{path}' {what} {name}: it belongs to another network; {remedy}")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(f"'{path}' has {name} of shape {arrays[name].shape}, not {tuple(variable.shape)}; {remedy}")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def read_metrics(model_dir: str | os.PathLike, last_step: float = math.inf) -> list[dict]:
    """Return the lines of model_dir/metrics.jsonl up to a step, and up to one that is cut short or damaged."""
    path, lines = pathlib.Path(model_dir) / METRICS_FILE, []
    ends = contextlib.suppress(FileNotFoundError, ValueError, RecursionError, TypeError, KeyError)
    with files.read_errors(path, 'pass another folder'), ends:
        for text in str(files.read_bytes(path), 'utf-8', 'replace').splitlines():
            line = json.loads(text)
            numbers, counts = [abs(line[name]) for name in _NUMBERS], (line['epoch'], line['step'])
            if not all(number < MOST for number in numbers) or min(counts) < 0 or line['split'] not in _SPLITS:
                break
            lines.append(line)
    return [line for line in lines if line['step'] <= last_step]


def lock(model_dir: str | os.PathLike) -> IO[str]:
    """Keep other jobs out of model_dir until the returned file is closed or this process ends; delete left-overs.

    Raises:
        UserError: Another job uses model_dir, or it cannot be written.
    """
    path = pathlib.Path(model_dir) / LOCK
    with files.write_errors(f"into model_dir '{model_dir}'", ', or pass another --model_dir'):
        if path.parent.is_file():
            raise UserError(f"--model_dir='{model_dir}' is a file; pass a folder")
        files.make_folder(path.parent)
        try:
            file = files.lock(path)
        except BlockingIOError:
            owner = one_line(str(files.read_bytes(path)[:200], 'utf-8', 'replace').strip()) or 'another process'
            reason = f"model_dir '{model_dir}' is in use by {owner}"
            raise UserError(f'{reason}; wait for it, or pass another --model_dir') from None
        for part in itertools.chain(*map(path.parent.glob, _PARTS)):
            part.unlink()
        file.truncate(0)
        print(f'process {os.getpid()} on {socket.gethostname()}', file=file, flush=True)
    return file
