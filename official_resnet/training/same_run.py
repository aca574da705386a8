"""A stored run: whether it is the one that is asked for, how they differ in terms of flags, and how to delete it."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from official_resnet import checkpoints, damage, files
from official_resnet.errors import UserError
from official_resnet.inputs import classes
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.inputs.views import Views
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training import devices
from official_resnet.training.config import MachineConfig, Schedule, TrainConfig, flags_of

IDENTITY = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata.get('is_identity'))
_CONTENTS = {'train_content': 'other training images', 'test_content': 'other test images'}
_PARTS: dict[str, Any] = {'schedule': Schedule, 'machine': MachineConfig, 'views': Views, 'augmentation': Augmentation}
_PREFIXES = {'': TrainConfig, 'spec.': ResNetSpec} | {f'{name}.': part for name, part in _PARTS.items()}
_FLAGS = {
    f'{prefix}{field.name}': f'--{flag}' for prefix, part in _PREFIXES.items() for flag, field in flags_of(part).items()
}

# What a run continues with, beside its config.
_STATE = {'sums': ('loss', 'correct', 'steps', 'seconds'), 'best': ('accuracy', 'epoch'), 'evaluation': ()}
_STATE['data'] = ('class_names', 'num_pictures')
# What a training writes into model_dir, besides the parts that checkpoints.lock deletes; below, what a report writes.
WRITTEN = """checkpoints/step-*.npz features-train.npz features-test.npz model.keras best.keras model.card.json
    best.card.json config.json network.json track.json steps.csv metrics.jsonl curves.png events.out.tfevents.*
    train/events.out.tfevents.* test/events.out.tfevents.* validation/events.out.tfevents.*
    train/plugins/profile/*/*""".split()
OF_REPORT = """report.json per_class.csv confusion.csv images.csv report.html comparison.html comparison.json
    comparison.csv""".split()
# Folders of these files, which are deleted once they are empty.
_EMPTIED = 'checkpoints train/plugins/profile/* train/plugins/profile train/plugins train test validation'.split()


def from_json(values: Mapping[str, Any]) -> TrainConfig:
    """Return the TrainConfig whose `to_json` these values are. A field that was added since then has its default.

    Raises:
        UserError: The values have a field that was removed since then.
    """
    values = {**values, 'spec': ResNetSpec.from_json(values['spec'])}
    try:
        parts = {name: part(**values[name]) for name, part in _PARTS.items() if values.get(name)}
        return TrainConfig(**{**values, **parts})
    except TypeError as error:
        reason = str(error).partition('() ')[2]
        raise UserError(f'an older version stored this run ({reason}); train again in another --model_dir') from None


def stored_config(
    state: dict, path: str | os.PathLike, remedy: str = 'pass another --model_dir, or --clean to delete it'
) -> TrainConfig:
    """Return the config in the state of the checkpoint `path`. Raise UserError if the state is not that of a run."""
    with damage.reported(path, remedy, 'checkpoint '):
        if missing := [name for name, keys in _STATE.items() if not {*keys} <= dict(state[name]).keys()]:
            raise ValueError(f'its {missing[0]} lacks a value')
        if type(state['step']) is not int or state['step'] < 0:
            raise ValueError(f'its step is {state["step"]!r}')
        return from_json(state['config'])


def resume(trainer: Any, variables: dict[str, Any], data: dict, found: tuple[dict, dict, pathlib.Path]) -> None:
    """Make a resnet_run_loop.Trainer continue from a checkpoint, which must be of its run and of its `data`.

    `found` is the result of checkpoints.restore_latest, and `data` that of datasets.describe.
    """
    arrays, state, path = found
    model_dir = trainer.config.machine.model_dir
    theirs = stored_config(state, path)
    if _read_the_same(trainer.config, theirs):  # the images decide flags, which the user did not pass
        require_same_data(data, state['data'], model_dir)
    require_same_run(trainer.config, theirs)
    require_same_data(data, state['data'], model_dir)
    checkpoints.assign(variables, arrays, path)
    trainer.step, trainer.sums = state['step'], state['sums']
    trainer.is_epoch_open = state.get('is_epoch_open', False)  # older checkpoints lack it
    trainer.best, trainer.evaluation = state['best'], state['evaluation']
    last_row = trainer.step - int(trainer.is_epoch_open)  # an open epoch will be evaluated, and logged, again
    trainer.curve = dataclasses.replace(trainer.curve, **state.get('curve', {}))
    trainer.rows = state['rows'] if 'rows' in state else checkpoints.read_metrics(model_dir, last_row)
    is_at_end = trainer.step >= trainer.last_step
    trainer.is_done = not trainer.is_epoch_open and (is_at_end or bool(trainer.why_stopped()))
    trainer.is_finished = trainer.is_done and _has_newer_network(path)
    if not trainer.process.is_chief:
        return
    is_changed = dataclasses.replace(theirs, machine=trainer.config.machine) != trainer.config
    if trainer.curve.rows and not (trainer.is_finished and is_changed):  # older checkpoints have none
        trainer.curve.write(trainer)
    epoch = trainer.step // trainer.steps_per_epoch
    if not trainer.is_finished:
        does, ours = ('already finished:', theirs) if trainer.is_done else ('continuing from', trainer.config)
        log_place(does, path, epoch, ours, state)
        return
    flag = '--max_train_steps' if trainer.config.max_train_steps == trainer.last_step else '--train_epochs'
    flag = flag if is_at_end else '--stop_threshold or --patience'
    text = f'already finished: {path}: epoch {epoch}, step {trainer.step}'
    text += f'; raise {flag} to train further, or pass --clean to train anew'
    logging.getLogger(__name__).info(text)


def _has_newer_network(checkpoint):
    """Return whether the run of a checkpoint has written its network since then: if not, it was killed at its end."""
    network = checkpoint.parents[1] / 'model.keras'
    return network.exists() and network.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def report_note(model_dir: pathlib.Path) -> list[str]:
    """Return a line if the report in a model_dir is older than the network there."""
    page, network = model_dir / 'report.html', model_dir / 'model.keras'
    if not page.exists() or not network.exists() or page.stat().st_mtime_ns >= network.stat().st_mtime_ns:
        return []
    return [f'{page} is of an earlier state of this run; to make it anew: resnet-report {shlex.quote(str(model_dir))}']


def require_same_run(ours: TrainConfig, theirs: TrainConfig) -> None:
    """Raise UserError if `ours` may not continue the stored run `theirs`: a field of a run's identity differs."""
    mine, stored = ours.to_json(), theirs.to_json()
    names = [name for name in IDENTITY if mine[name] != stored[name]]
    is_elsewhere = 'dataset' in names  # other images also decide flags that the user did not pass
    wrong = [difference(name, mine[name], stored[name]) for name in (['dataset'] if is_elsewhere else names)]
    sources = [source for source in (ours.pretrained, theirs.pretrained) if source]
    # A stored source that does not exist any more may have been moved.
    if len(sources) == 2 and pathlib.Path(sources[1]).exists() and len({*map(os.path.realpath, sources)}) > 1:
        wrong.append(difference('pretrained', *sources))
    if wrong:
        raise UserError(
            f'--model_dir={ours.machine.model_dir} holds a run {"trained on" if is_elsewhere else "with"} {wrong[0]}; '
            'pass its value, another --model_dir, or --clean to delete it'
        )


def require_same_data(ours: dict, theirs: dict, model_dir: str | None) -> None:
    """Raise UserError if a run would be continued on other data than it began with; both are of datasets.describe."""
    theirs = ours | theirs  # an older version did not store all
    names = [[classes.canonical(name) for name in data['class_names']] for data in (ours, theirs)]
    changes = []
    for i, text in ((0, 'new classes'), (1, 'missing classes')):
        if differing := [name for name in names[i] if name not in set(names[1 - i])]:
            changes.append(f'{text}: {classes.listed(differing)}')
    if ours['num_pictures'] != theirs['num_pictures']:
        changes.append(f'{ours["num_pictures"]:,} training images, not {theirs["num_pictures"]:,}')
    if not changes:
        changes = [text for name, text in _CONTENTS.items() if ours[name] != theirs[name]]
    if not changes and names[0] != names[1]:
        changes = [difference('class_names', names[0], names[1])]
    if not changes and ours.get('class_ids') != theirs.get('class_ids'):
        changes = [difference('class_ids', ours.get('class_ids'), theirs['class_ids'])]
    if changes:
        raise UserError(
            f'the images have changed since the run in --model_dir={model_dir} began ({", ".join(changes)}); put back '
            'those with which it began, or pass another --model_dir, or --clean to delete the run'
        )


def _read_the_same(ours, theirs):
    """Return whether two configs describe the same images in --image_folder, so that only the images can differ."""
    if not ours.dataset.startswith('folder:') or bool(ours.views) != bool(theirs.views):
        return False
    if not ours.views and ours.folder_options() != theirs.folder_options():
        return False
    names = ('dataset', 'num_train_images', 'validation_fraction', 'seed', 'background', 'head')
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)


def log_place(does: str, path: pathlib.Path, epoch: int, ours: TrainConfig, state: dict) -> None:
    """Log what is done with a checkpoint, its epoch and step, and what has changed since its state was stored."""
    theirs, used_onednn = stored_config(state, path), state.get('uses_onednn')
    # Older versions did not store it, nor did they set the variable, so that TensorFlow decided by the CPU
    # (tensorflow/core/util/util.cc).
    if used_onednn is None:
        by_itself = {'avx512_vnni', 'avx512_bf16', 'avx_vnni', 'amx_tile', 'amx_int8', 'amx_bf16'}
        used_onednn = bool(by_itself & devices.cpu_flags())
    new, old = ours.to_json(), theirs.to_json()
    for values in (new, old):
        values |= {f'machine.{name}': value for name, value in values.pop('machine').items()}
    names = [name for name in new if new[name] != old[name] and not name.endswith(('data_dir', 'model_dir'))]
    changes = [difference(name, new[name], old[name], 'now') for name in names]
    if used_onednn != devices.uses_onednn():
        was, now = int(used_onednn), int(not used_onednn)
        changes.append(f'TF_ENABLE_ONEDNN_OPTS {was}, now {now} (set it to {was} for the same last digits as before)')
    changed = ', '.join(changes)
    text = f'{does} {path}: epoch {epoch}, step {state["step"]}{changed and "; changed: "}{changed}'
    logging.getLogger(__name__).info(text)


def difference(name: str, ours: Any, theirs: Any, word: str = 'not') -> str:
    """Return '--flag theirs, not ours', for the fields of a spec or schedule that differ; `word` replaces 'not'.

    Args:
        name: A field of TrainConfig or of the data, for example 'class_names'.
        ours, theirs: Its JSON values in the run that is asked for and in the stored run.
    """
    if isinstance(ours, list) and isinstance(theirs, list):  # do not print a thousand class names
        i = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
        if i is None:
            return difference(name, len(ours), len(theirs), word)
        return difference(f'{name}[{i}]', ours[i], theirs[i], word)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        texts = []
        if name == 'spec':
            sizes = [ResNetSpec.from_json(spec).resnet_size for spec in (ours, theirs)]
            if sizes[0] != sizes[1]:  # resnet_size tells the blocks and their kind
                differing -= {'group_blocks', 'block'}
                texts = [difference('spec.group_blocks', sizes[0], sizes[1], word)]
        named = {key for key in differing if f'{name}.{key}' in _FLAGS}
        shown = named if named or texts else differing  # what has no flag follows from what has one
        texts += [difference(f'{name}.{key}', ours.get(key), theirs.get(key), word) for key in sorted(shown)]
        return ', '.join(texts)
    if name == 'dataset':
        return f'{_data_flag(theirs)}, {word} {_data_flag(ours)}'
    flag = _FLAGS.get(name)
    return f'{flag} {theirs}, {word} {ours}' if flag else f'{name} {theirs!r}, {word} {ours!r}'


def _data_flag(dataset):
    """Return the flag that stands for a dataset, with its value; for a program's own data set, its name."""
    kind, _, place = dataset.partition(':')
    flag = {
        'tfds': '--tfds',
        'folder': '--image_list' if os.path.isfile(place.split(',')[0]) else '--image_folder',
    }.get(kind)
    return f'{flag} {place}' if flag else f"dataset '{dataset}'"


def config_in(model_dir: str | os.PathLike) -> dict[str, Any]:
    """Return the JSON values of the config in model_dir/config.json, or {} if that is missing or not that of a run."""
    path = pathlib.Path(model_dir, 'config.json')
    config = (path.is_file() and files.read_json(path) or {}).get('config')
    return config if isinstance(config, dict) and isinstance(config.get('spec'), dict) else {}


def require_run(model_dir: str | os.PathLike) -> None:
    """Raise UserError if a folder has files, but neither the config nor a checkpoint of a run."""
    folder = pathlib.Path(model_dir)
    if not folder.exists() or not any(path.name != checkpoints.LOCK for path in folder.iterdir()):
        return
    if not config_in(folder) and not checkpoints.paths(folder / 'checkpoints'):
        fault = f'--clean: {folder} has files, but no run: neither its config.json nor its checkpoints'
        raise UserError(f'{fault}; leave --clean out, pass another --model_dir, or delete them yourself')


def clean(model_dir: str | os.PathLike) -> None:
    """Delete what earlier runs wrote into model_dir; other files stay.

    Raises:
        UserError: See `require_run`; or another job uses the folder.
    """
    require_run(model_dir)
    folder = pathlib.Path(model_dir)
    if not folder.exists():
        return
    with checkpoints.lock(folder):
        has_report = (folder / 'report.html').is_file()
        for pattern in WRITTEN + OF_REPORT * has_report:
            for path in [*folder.glob(pattern)]:
                path.unlink()
        for pattern in _EMPTIED:
            for path in [*folder.glob(pattern)]:
                with contextlib.suppress(OSError):  # it is not empty, or a link
                    path.rmdir()
