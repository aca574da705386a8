"""A run that is stored: whether it is the one that is asked for, what differs in the words of the flags, its end."""

import dataclasses
import os
import pathlib
import shutil
from typing import Any

from official_resnet import checkpoints
from official_resnet.errors import UserError
from official_resnet.inputs.views import Views
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training.config import MachineConfig, Schedule, TrainConfig, flags_of

IDENTITY = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata.get('is_identity'))
_PREFIXES = {'': TrainConfig, 'machine.': MachineConfig, 'schedule.': Schedule, 'views.': Views, 'spec.': ResNetSpec}
_FLAGS = {
    f'{prefix}{field.name}': f'--{flag}' for prefix, part in _PREFIXES.items() for flag, field in flags_of(part).items()
}


def require_same_run(ours: TrainConfig, theirs: TrainConfig) -> None:
    """Refuse to continue a stored run `theirs` by a config of another.

    Raises:
        UserError: a field that is part of a run's identity differs.
    """
    mine, stored = ours.to_json(), theirs.to_json()
    wrong = [difference(name, mine[name], stored[name]) for name in IDENTITY if mine[name] != stored[name]]
    sources = ours.pretrained, theirs.pretrained
    # Where the stored source is not there any more, it may have been moved.
    if all(sources) and pathlib.Path(sources[1]).exists() and len({pathlib.Path(one).resolve() for one in sources}) > 1:
        wrong.append(difference('pretrained', *sources))
    if wrong:
        raise UserError(
            f'--model_dir={ours.machine.model_dir} holds a run with {wrong[0]}; '
            'pass its value, another --model_dir, or --clean to delete it'
        )


def require_same_data(ours: dict, theirs: dict, model_dir: str) -> None:
    """Refuse to continue a run, or to evaluate it, on other data: the two differ in a field that `ours` has."""
    for name, value in ours.items():
        if value != theirs[name]:
            raise UserError(
                f'--model_dir={model_dir} holds a run on data with {difference(name, value, theirs[name])}; '
                'pass that data, or another --model_dir'
            )


def print_place(path: pathlib.Path, epoch: int, step: int, ours: TrainConfig, theirs: TrainConfig) -> None:
    """Print from which checkpoint and place a stored run goes on, and what has changed since it was stored."""
    ours, theirs = ours.to_json(), theirs.to_json()
    for values in (ours, theirs):
        values |= {f'machine.{name}': value for name, value in values.pop('machine').items()}
    names = [name for name in ours if ours[name] != theirs[name] and not name.endswith(('data_dir', 'model_dir'))]
    changed = ', '.join(difference(name, ours[name], theirs[name]) for name in names)
    print(f'continuing from {path}: epoch {epoch}, step {step}{changed and "; changed: "}{changed}', flush=True)


def difference(name: str, ours: Any, theirs: Any) -> str:
    """Return '--flag old, not new', going into the field of a spec or schedule that differs.

    `name` is a field of TrainConfig, or anything else that two runs have, as 'class_names'; the others are its plain
    values, as to_json has them, in the run that is asked for and in the one that is there.
    """
    if isinstance(ours, list) and isinstance(theirs, list):  # a sentence holds no thousand class names
        i = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
        return difference(name, len(ours), len(theirs)) if i is None else difference(f'{name}[{i}]', ours[i], theirs[i])
    if isinstance(ours, dict) and isinstance(theirs, dict):
        differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        texts = []
        if name == 'spec':
            sizes = [ResNetSpec.from_json(spec).resnet_size for spec in (ours, theirs)]
            if sizes[0] != sizes[1]:  # which names the blocks and their kind
                differing -= {'group_blocks', 'block'}
                texts = [difference('spec.group_blocks', *sizes)]
        texts += [difference(f'{name}.{key}', ours.get(key), theirs.get(key)) for key in sorted(differing)]
        return ', '.join(texts)
    flag = _FLAGS.get(name)
    return f'{flag} {theirs}, not {ours}' if flag else f'{name} {theirs!r}, not {ours!r}'


def clean(model_dir: str | os.PathLike) -> None:
    """Delete what earlier runs left in model_dir; refuse a folder that is no model_dir.

    Raises:
        UserError: the folder holds something, but no checkpoints and no config.json; or another job is there.
    """
    folder = pathlib.Path(model_dir)
    if not folder.exists() or not any(path.name != checkpoints.LOCK for path in folder.iterdir()):
        return
    if not (folder / 'checkpoints').is_dir() and not (folder / 'config.json').is_file():
        raise UserError(f'--clean: {folder} holds no checkpoints and no config.json; delete it by hand if you mean it')
    with checkpoints.lock(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != checkpoints.LOCK:
                path.unlink()
