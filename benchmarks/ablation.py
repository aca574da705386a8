"""What each part of the recipe `fast` of CIFAR-10 gives: train it as it is, and without one part at a time.

    python -m benchmarks.ablation --data_dir=DIR --output_dir=OUT --runs=2 \\
        --set=train_epochs=2
    python -m benchmarks.ablation --data_dir=DIR --output_dir=OUT --runs=2 \\
        --without=nothing --without=gelu --without=shortcut

Each line of the table is a mean over the seeds (0, 1, ..., or those from --first_seed on), beside its difference in
points from the whole recipe. If the command is stopped, the same command continues where it was, and finished runs are
kept. The runs are those of benchmarks.time_to_accuracy, which explains the figures. Short runs need not rank the parts
as long ones do.
"""

import dataclasses
import os
import sys
from typing import Any

from absl import flags as absl_flags

from benchmarks import measuring, time_to_accuracy
from official_resnet import files
from official_resnet.command_line import program
from official_resnet.errors import UserError
from official_resnet.training import devices
from official_resnet.training.config import TrainConfig

WHOLE = 'nothing'
SGD = 11.5 / 7.67 * 128 / 1024  # airbench94 (arXiv:2404.00498): 11.5 / 7.67 for the mean of a batch of 1,024
WITHOUT: dict[str, dict[str, dict[str, Any]]] = {  # part -> what it is replaced by, in the spec, ... of a TrainConfig
    WHOLE: {},
    'shortcut': {'spec': {'shortcut': None}},
    'dirac': {'spec': {'initializer': 'he'}},
    'gelu': {'spec': {'activation': 'relu'}},
    'whitening': {'spec': {'stem': 'cifar'}},  # a convolution of the same width, 3x3, with a batch norm
    'max_head': {'spec': {'head_pool': 'average'}},
    'bn_momentum': {'spec': {'bn_momentum': 0.9}},
    'alternating_flip': {'augmentation': {'alternating_flip': False}},  # each image by a coin in each epoch
    'reflection': {'augmentation': {'pad_mode': 'zeros'}},
    'crop': {'augmentation': {'pad': 0}},
    'label_smoothing': {'config': {'label_smoothing': 0.0}},
    'bias_rate': {'config': {'bias_learning_rate_factor': 1.0}},
    'muon': {'config': {'optimizer': 'momentum', 'nesterov': True, 'base_learning_rate': SGD}},
}


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program: those of time_to_accuracy but for --recipe, and --without."""
    values = time_to_accuracy.define_flags()
    for name in ('recipe', 'program'):
        delattr(values, name)
    text = 'What to leave out; pass this flag again for each further part. Default: each part in turn.'
    absl_flags.DEFINE_multi_enum('without', list(WITHOUT), list(WITHOUT), text, flag_values=values)
    return values


def left_out(config: TrainConfig, part: str) -> TrainConfig:
    """Return the config of a training without a part of WITHOUT."""
    changes = WITHOUT[part]
    fields = dict(changes.get('config', {}))
    if 'base_learning_rate' in fields:  # the rates of biases and of the head, products with that of the batch, stay
        ratio = config.learning_rate / dataclasses.replace(config, **fields).learning_rate
        for name in ('bias_learning_rate_factor', 'head_learning_rate_factor', 'weight_decay'):
            fields[name] = getattr(config, name) * ratio
    parts = {
        name: dataclasses.replace(getattr(config, name), **changes.get(name, {})) for name in ('spec', 'augmentation')
    }
    return dataclasses.replace(config, **parts, **fields)


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the results of time_to_accuracy.summary, whose `recipe` is the part left out, as lines of text."""
    whole = next((row['accuracy'] for row in rows if row['recipe'] == WHOLE), None)
    lines = [f'{"without":16} {"n":>3} {"accuracy":>9} {"(least, greatest)":19} {"difference":>10}']
    for row in rows:
        extent = f'({row["least_accuracy"]:.2%}, {row["greatest_accuracy"]:.2%})'
        difference = '' if whole is None else f'{100 * (row["accuracy"] - whole):+10.2f}'
        lines.append(f'{row["recipe"]:16} {row["n"]:3} {row["accuracy"]:9.2%} {extent:19} {difference}')
    return '\n'.join(lines)


def run_changes(values: absl_flags.FlagValues) -> None:
    """Train what the flags ask for, and print the table."""
    output = measuring.check_output(values.output_json)
    if not values.output_dir:
        raise UserError('--output_dir is missing; pass a folder for the runs')
    config = time_to_accuracy.config_of(values, 'cifar10', 'fast')
    devices.start_tensorflow()
    folder = os.path.expanduser(values.output_dir)
    parts, seeds = list(dict.fromkeys(values.without)), time_to_accuracy.seeds_of(values)
    results = [time_to_accuracy.measure(left_out(config, part), part, seeds, folder) for part in parts]
    rows = [time_to_accuracy.summary(result) for result in results]
    about = f'{config.train_epochs} epochs; {measuring.describe()}'
    print(f'\n{format_table(rows)}\n\n{about}')
    if output:
        files.write_json(output, {'flags': values.flag_values_dict(), 'machine': about, 'results': rows})


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_changes))
