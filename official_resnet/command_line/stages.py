"""Train a pretrained network in two stages: first a new last layer, then all layers, from that network on."""

import os
from collections.abc import Callable, Sequence

from absl import flags as absl_flags

from official_resnet import checkpoints
from official_resnet.command_line import flags, places, train_program
from official_resnet.command_line.places import HEAD_THEN_ALL
from official_resnet.errors import UserError
from official_resnet.inference import network_files
from official_resnet.training import same_run
from official_resnet.training.config import PRETRAINED
from official_resnet.weights import pretrained as weights

BACKBONE_RATE = ('backbone_learning_rate_factor', 0.3)  # of the second stage; docs/results.md compares others
_OF_ALL = {'backbone_learning_rate_factor', 'test_views'}  # refused with --transfer=head; see _of_all
_OF_THE_END = {'report', 'export_dir', 'image_bytes_as_serving_input'}  # what is made of the trained network


def run(
    program: str, values: absl_flags.FlagValues, row: flags.Program, train: Callable[[absl_flags.FlagValues, list], int]
) -> int:
    """Train both stages of --transfer=head,all, and return the exit code.

    The first stage has a folder of its own, --model_dir with '_head' after its name, where its run is kept. Once the
    second stage has a checkpoint, the first is not run again, so the same command continues the stage that was stopped.
    With --clean, the runs of both are deleted before the first.

    Args:
        program, values, row: argv[0], the flags, and the description of the program.
        train: Called with the flags of a stage and its arguments, the program's name first; returns its exit code.
    """
    for name, value, remedy in (
        ('eval_only', values.eval_only, 'leave one of them out'),
        ('fine_tune', values.fine_tune, 'leave one of them out'),
        ('head=append', values.head == 'append', 'pass --head=replace'),
    ):
        if value:
            raise UserError(f'--transfer={HEAD_THEN_ALL} and --{name} cannot be used together; {remedy}')
    if not values[PRETRAINED].value:
        raise UserError(f'--transfer needs --{PRETRAINED}; also pass it, or leave --transfer out')
    places.require_apart(values)
    model_dir, head_dir = places.model_dirs(values).values()
    given = {name: values[name].value for name in flags.given(values)}
    texts = {name: ','.join(map(str, v)) if isinstance(v, (list, tuple)) else v for name, v in given.items()}

    def stage(own: Sequence[str], left_out: set[str]) -> tuple[absl_flags.FlagValues, list[str]]:
        arguments = [program, *(f'--{name}={text}' for name, text in texts.items() if name not in left_out), *own]
        stage_values = flags.define(row)
        stage_values(arguments)
        return stage_values, arguments

    kept = ['--noclean'] if values.clean else []
    left_out = (
        _OF_THE_END
        | {'transfer', 'model_dir'}
        | (set() if values.augment and values['augment'].present else _of_all(row))
    )
    first = stage(['--transfer=head', f'--model_dir={head_dir}', *kept], left_out)
    if values.clean:
        _clean(first[0], row, model_dir, head_dir)
    if not checkpoints.paths(model_dir / 'checkpoints'):
        print(f'stage 1 of 2: the last layer, in {head_dir}')
        if code := train(*first):
            return code
    elif not _continues(model_dir, head_dir):
        raise UserError(f'--model_dir={values.model_dir} holds another run; pass another --model_dir, or --clean')
    print(f'stage 2 of 2: all layers, in {model_dir}')
    own = ['--transfer=all', f'--{PRETRAINED}={head_dir}', '--head=keep', *kept]
    if (flag := BACKBONE_RATE[0]) not in given:
        print(f'  --{flag}={BACKBONE_RATE[1]}  all layers but the last are trained already')
        own.append(f'--{flag}={BACKBONE_RATE[1]}')
    return train(*stage(own, {'transfer', PRETRAINED, 'cache_dir', 'head'}))


def _of_all(row):
    """Return the flags that have no effect on the first stage, whose images are not augmented."""
    needs = {flag: field.metadata.get('needs', '').split(', ') for flag, (field, _) in flags.fields_of(row).items()}
    return _OF_ALL | {flag for flag, others in needs.items() if {'augment', 'transfer=all|last'} & {*others}}


def _continues(model_dir, head_dir):
    """Return whether the run in a model_dir is the second stage of that in head_dir, which may have been deleted."""
    config = same_run.config_in(model_dir)
    source = config.get('pretrained')
    is_second = config.get('head') == 'keep' and config.get('transfer') == 'all' and bool(source)
    # A stored source that does not exist any more may have been moved.
    return is_second and (not os.path.exists(source) or os.path.realpath(source) == os.path.realpath(head_dir))


def _clean(first, row, model_dir, head_dir):
    """Delete the runs of both stages, after checking the flags of the first and what it reads.

    Raises:
        UserError: What is in head_dir is not the first stage of the run in model_dir, nor of this one.
    """
    config, options = flags.resolve(first, row)
    if config.machine.distribution_strategy == flags.MULTI_WORKER and options.local_workers == 1:
        raise UserError(f'--clean is not for several workers; delete {model_dir} and {head_dir} before you start them')
    train_program.find_data(config, options, row)
    network_files.require_weights(weights.resolve(str(config.pretrained), options.cache_dir))
    stored = same_run.config_in(head_dir)
    is_ours = stored.get('transfer') == 'head' and stored.get('dataset') == config.dataset
    if any(head_dir.glob('*')) and not (is_ours or _continues(model_dir, head_dir)):
        fault = f'--clean: {head_dir} is for the first stage, but holds something else'
        raise UserError(f'{fault}; pass another --model_dir, or delete it yourself')
    for check in (same_run.require_run, same_run.clean):
        for folder in (model_dir, head_dir):
            check(folder)
