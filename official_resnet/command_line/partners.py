"""Flags that have no effect without another flag, or that contradict each other."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from official_resnet.command_line.flags import MULTI_WORKER, Program, fields_of, recipe_of
from official_resnet.errors import UserError
from official_resnet.training.config import PRETRAINED


def require(values: flags.FlagValues, chosen: Mapping[str, Any], program: Program) -> None:
    """Raise UserError for flags that the user passed, and that need another flag or cannot be used together.

    `chosen` is {flag: value} with the values of the recipe, so a flag may need what only the recipe has.
    """
    fields = fields_of(program)
    if values.image_bytes_as_serving_input and not program.streams:
        raise UserError('--image_bytes_as_serving_input is only for ImageNet; leave it out')

    def is_met(option) -> bool:
        flag, _, wanted = option.partition('=')
        value = chosen.get(flag, fields[flag][0].default)
        if flag == 'task_index':  # which may be 0
            return bool(values[flag].present)
        return value in wanted.split('|') if wanted else value not in (None, False, '', (), 'none')

    for flag, (field, _) in fields.items():
        for need in filter(None, field.metadata.get('needs', '').split(', ')):
            if values[flag].value != values[flag].default and not any(map(is_met, need.split(' or '))):
                partner = need.replace(' or ', ' or --')
                raise UserError(f'--{flag} needs --{partner}; also pass it, or leave --{flag} out')
    if chosen.get('variant') and chosen.get(PRETRAINED):
        cause = f'--variant={values.variant}' if values.variant else f'--recipe={values.recipe}'
        raise UserError(
            f'{cause} has the network {chosen["variant"]}, and --{PRETRAINED} its own; leave one of them out'
        )
    names = 'tfds', 'image_folder', 'image_list', 'use_synthetic_data'
    sources = [f'--{name}' for name in names if name in values and values[name].value]
    if len(sources) > 1:
        raise UserError(f'{" and ".join(sources)} cannot be used together; pass one of them')
    if values['image_list'].present > 1:
        raise UserError('--image_list was passed more than once; pass several lists at once: train.csv,test.csv')
    if values.fine_tune and values.transfer not in (None, 'head'):
        raise UserError(f'--fine_tune means --transfer=head, not --transfer={values.transfer}; pass one of them')
    optimizer = recipe_of(values, program, chosen.get('recipe')).get('optimizer', 'momentum')
    if values.optimizer not in (None, optimizer) and not values['base_learning_rate'].present:
        raise UserError(
            f'--optimizer={values.optimizer} needs --base_learning_rate; that of --recipe={values.recipe} is for '
            f'{optimizer}, and docs/optimizers.md has rates to begin with'
        )
    asks_for_workers = values.worker_hosts or values.local_workers > 1
    if asks_for_workers and values.distribution_strategy not in ('default', MULTI_WORKER):
        flag = '--worker_hosts' if values.worker_hosts else '--local_workers'
        strategy = f'--distribution_strategy={MULTI_WORKER}, not {values.distribution_strategy}'
        raise UserError(f'{flag} needs {strategy}; leave that out')
