"""Train a pretrained network in two stages: first a new last layer, then all layers, from that network on."""

import pathlib
from collections.abc import Callable, Sequence

from absl import flags as absl_flags

from official_resnet import checkpoints
from official_resnet.command_line import flags
from official_resnet.errors import UserError
from official_resnet.training.config import PRETRAINED

HEAD_THEN_ALL = 'head,all'
_OF_THE_END = {'report', 'export_dir', 'image_bytes_as_serving_input'}  # what is made of the trained network


def run(
    program: str, values: absl_flags.FlagValues, row: flags.Program, train: Callable[[absl_flags.FlagValues, list], int]
) -> int:
    """Train both stages of --transfer=head,all, and return the exit code.

    The first stage has a folder of its own, --model_dir with '_head' after its name, where it is kept. It is not
    looked at again once the second has a checkpoint, so the same command continues in the stage that was stopped.

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
    given = {name: values[name].value for name in flags.given(values)}
    texts = {name: ','.join(map(str, v)) if isinstance(v, (list, tuple)) else v for name, v in given.items()}
    model_dir = pathlib.Path(values.model_dir).expanduser()
    head_dir = model_dir.with_name(f'{model_dir.name}_head')

    def stage(own: Sequence[str], left_out: set[str]) -> int:
        arguments = [program, *(f'--{name}={text}' for name, text in texts.items() if name not in left_out), *own]
        stage_values = flags.define(row)
        stage_values(arguments)
        return train(stage_values, arguments)

    if values.clean or not checkpoints.paths(model_dir / 'checkpoints'):
        print(f'stage 1 of 2: the last layer, in {head_dir}')
        if code := stage(['--transfer=head', f'--model_dir={head_dir}'], _OF_THE_END | {'transfer', 'model_dir'}):
            return code
    print(f'stage 2 of 2: all layers, in {model_dir}')
    own = ['--transfer=all', f'--{PRETRAINED}={head_dir}', '--head=keep']
    return stage(own, {'transfer', PRETRAINED, 'cache_dir', 'head'})
