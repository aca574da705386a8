"""Find the files of a trained network; read its card, or the weights of its checkpoint. Imports no TensorFlow."""

import os
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from official_resnet import checkpoints
from official_resnet.errors import UserError
from official_resnet.inference import card_reader

AVERAGE = 'average/'  # in a checkpoint, the prefix of the averages of weights, see training.weight_averaging
REMEDY = 'pass a .keras file that a training or resnet-convert (read_ckpt.py) wrote'


class NetworkFiles(NamedTuple):
    """What predict.load reads."""

    path: pathlib.Path  # the .keras file, or the checkpoint
    card: card_reader.Card
    source: pathlib.Path  # the file with the layers
    weights: dict[str, np.ndarray] | None  # those of a checkpoint; None: they are in `source`
    card_path: pathlib.Path  # the file of `card`


def find(path: str | os.PathLike, use_weights: str = 'average', needs_head: bool = True) -> NetworkFiles:
    """Return the files of a network, given its .keras file, a model_dir or a checkpoint in it; see predict.load.

    Raises:
        UserError: The network or its card is missing or damaged, or it has no classifier although it `needs_head`.
    """
    path = pathlib.Path(path).expanduser()
    folder, weights = path.parent, None
    if path.is_dir():
        folder, path = path, path / 'model.keras'
        if not path.is_file() or use_weights == 'plain':
            weights, _, path = restore_weights(folder, 'train there, or pass a .keras file', use_weights)
    elif path.suffix == '.npz' and path.is_file():
        folder, weights = path.parents[1], _of_network(checkpoints.read(path)[0], use_weights)
    elif path.suffix != '.keras' or not path.is_file():
        raise UserError(f"'{path}' is neither a .keras file nor a model_dir; pass one of them")
    card_path = path.with_suffix('.card.json') if weights is None else folder / 'model.card.json'
    card = card_reader.read_card(card_path)
    if needs_head and not card.num_classes:
        raise UserError(
            f'{path} has no classifier; train one, with --pretrained_model_checkpoint_path={path}, or get its features '
            'by predict_main --features=pre_logits'
        )
    if weights is None:
        require_keras_file(path)
    return NetworkFiles(path, card, path if weights is None else folder / checkpoints.NETWORK_FILE, weights, card_path)


def restore_weights(
    model_dir: str | os.PathLike | None,
    remedy: str = 'train there first, or pass another --model_dir',
    use_weights: str = 'average',
) -> tuple[dict[str, np.ndarray], dict, pathlib.Path]:
    """Return what `restore_latest` returns for a model_dir, but only the network's variables.

    `use_weights` is 'average', or 'plain' for the weights themselves, if the training also averaged them.

    Raises:
        UserError: There is no checkpoint. The message ends with `remedy`.
    """
    found = checkpoints.restore_latest(pathlib.Path(model_dir) / 'checkpoints') if model_dir else None
    if not found:
        raise UserError(f"model_dir '{model_dir}' has no checkpoint; {remedy}")
    arrays, state, path = found
    return _of_network(arrays, use_weights), state, path


def require_weights(path: str | os.PathLike) -> None:
    """Raise UserError unless transfer.describe can read `path`: a model_dir with a checkpoint, or a .keras file."""
    if os.path.isdir(path):
        restore_weights(path, 'pass a model_dir or a .keras file')
    else:
        require_keras_file(path, 'pass a model_dir or a .keras file')


def require_keras_file(path: str | os.PathLike, remedy: str = REMEDY) -> None:
    """Raise UserError unless a file exists and is a whole zip archive, as every .keras file is."""
    if not os.path.isfile(path):  # zipfile would open a FIFO
        raise UserError(f'cannot load {path}: there is no such file; {remedy}')
    if not zipfile.is_zipfile(path):
        fault = f'cannot load {path}: it is cut short, or not a .keras file'
        raise UserError(f'{fault}; {remedy}, or convert it with resnet-convert (read_ckpt.py)')


def _of_network(arrays: dict[str, np.ndarray], use_weights: str) -> dict[str, np.ndarray]:
    """Return the arrays of the network's variables: their averages, if there are any and if they are wanted."""
    plain = {name: array for name, array in arrays.items() if not name.startswith(('optimizer/', AVERAGE))}
    return {name: arrays.get(AVERAGE + name, plain[name]) for name in plain} if use_weights == 'average' else plain
