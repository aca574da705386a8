"""Train recipes to their end and measure accuracy, arithmetic and time, beside the machine's rate of matrix products.

    python -m benchmarks.time_to_accuracy --recipe=fast --data_dir=DIR \\
        --output_dir=OUT
    python -m benchmarks.time_to_accuracy --recipe=demo --runs=2 \\
        --output_dir=OUT    # synthetic images, 4 minutes
    python -m benchmarks.time_to_accuracy --program=mnist --recipe=fast \\
        --data_dir=DIR --output_dir=OUT
    python -m benchmarks.time_to_accuracy --recipe=paper --set=resnet_size=20 \\
        --set=dtype=bf16 --runs=1 --data_dir=DIR --output_dir=OUT

The runs have the seeds 0, 1, ..., or those from --first_seed on; that of seed 0 is in OUT/RECIPE/runs/seed_0. Runs
follow one another in one process. If the command is stopped, the same command continues where it was; finished runs are
kept.

What is counted: FLOP are those of training, 3 x 2 x multiply-adds x images, because the backward pass costs about twice
the forward pass, and a multiply-add is two operations. Multiply-adds are those of convolutions and dense layers for one
image; batch norm, activations, pooling, augmentation and evaluation are not counted, and a frozen layer counts like any
other. Minutes are those of training and evaluation, over all restarts; GFLOP/s are of training alone. The accuracy is
that of the last evaluation on the test split, not the best one. The machine's rate is that of products of two square
matrices of 2048 x 2048 in the recipe's precision; it is measured before the first run and after each, and the median
counts.
"""

import dataclasses
import importlib
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from benchmarks import measuring
from official_resnet import checkpoints, files
from official_resnet.command_line import flags, program, train_program, usage
from official_resnet.command_line.definer import Definer
from official_resnet.errors import UserError
from official_resnet.training import devices
from official_resnet.training.config import TrainConfig

PROGRAMS = ('cifar10', 'cifar100', 'mnist')
OWN = ('recipe', 'data_dir', 'model_dir', 'seed', 'clean', 'eval_only', 'local_workers', 'worker_hosts')
MATRIX_SIZE, REPEATS = 2048, 10  # of the products that measure the machine


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    values = absl_flags.FlagValues()
    define = Definer(values)
    define.enum('program', PROGRAMS[0], PROGRAMS, 'Whose recipes: NAME_main.py.')
    text = 'Recipe to train; pass this flag again for each further recipe.'
    absl_flags.DEFINE_multi_string('recipe', ['fast'], text, flag_values=values)
    define.integer('runs', 3, 'Number of runs of each recipe.', lower=1)
    define.integer('first_seed', 0, 'Seed of the first run; each run has the next one.', lower=0)
    define.string('data_dir', None, 'Folder of the data set. Default: that of the program.')
    text = 'A flag of the program and its value, for example train_epochs=5; pass --set again for each further one.'
    absl_flags.DEFINE_multi_string('set', [], text, flag_values=values)
    define.string('output_dir', None, 'Folder of the runs, which are kept. The same command continues them.')
    define.string('output_json', None, 'JSON file for all figures.')
    return values


def seeds_of(values: absl_flags.FlagValues) -> range:
    """Return the seeds of the runs that the flags ask for."""
    return range(values.first_seed, values.first_seed + values.runs)


def config_of(values: absl_flags.FlagValues, main: str, recipe: str) -> TrainConfig:
    """Return the TrainConfig of a recipe of `main`, one of PROGRAMS, and fetch its data set if that is missing."""
    row = importlib.import_module(f'official_resnet.{main}_main').PROGRAM
    given = flags.define(row)
    own = [pair for pair in values.set if pair.partition('=')[0] in OWN or '=' not in pair]
    if own:
        raise UserError(f"set '{own[0]}' must be flag=value, with another flag than {', '.join(OWN)}")
    data_dir = [f'--data_dir={values.data_dir}'] if values.data_dir else []
    try:
        given([main, f'--recipe={recipe}', *data_dir, *(f'--{pair}' for pair in values.set)])
    except (absl_flags.Error, ValueError) as error:
        raise UserError(usage.fault(error, given)) from None
    config, options = flags.resolve(given, row)
    train_program.find_data(config, options, row)
    return config


def matrix_rates(dtype: str) -> list[float]:
    """Return the FLOP/s of several products of two square matrices of MATRIX_SIZE in 'fp32', 'bf16' or 'fp16'."""
    import tensorflow as tf

    matrix = tf.random.stateless_normal([MATRIX_SIZE, MATRIX_SIZE], [0, 0])
    matrix = tf.cast(matrix, devices.POLICIES[dtype].removeprefix('mixed_'))
    product = tf.function(lambda one: tf.reduce_max(one @ one))
    product(matrix)  # which compiles
    seconds = [measuring.timed(lambda: product(matrix).numpy())[1] for _ in range(REPEATS)]
    return [2 * MATRIX_SIZE**3 / one for one in seconds]


def training_flop(multiply_adds: int, num_images: int) -> int:
    """Return the FLOP of forward and backward passes over images: a multiply-add is two, and backward is twice forward.

    >>> training_flop(40_551_040, 64_000 * 128) / 1e15  # ResNet-20 of the paper, whose forward pass has 41 million
    1.993152...
    """
    return 3 * 2 * multiply_adds * num_images


def train_once(config: TrainConfig, recipe: str) -> dict[str, Any]:
    """Train to the end, continuing what is in model_dir, and return what `summary` needs of the run."""
    from official_resnet import resnet_run_loop
    from official_resnet.experiments import architecture_table

    result = resnet_run_loop.train(config, recipe=recipe)
    rows = checkpoints.read_metrics(config.machine.model_dir or '')
    train, test = ([row for row in rows if row['split'] == split] for split in ('train', 'test'))
    images = result.step * config.batch_size
    return {
        'seed': config.seed,
        'parameters': architecture_table.count_parameters(result.model),
        'multiply_adds': (multiply_adds := architecture_table.count_multiply_adds(result.model)),
        'images': images,
        'flop': training_flop(multiply_adds, images),
        'epochs': result.step / result.history.params['steps'],
        'accuracy': test[-1]['accuracy'],
        'train_seconds': sum(row['seconds'] for row in train),
        'seconds': sum(row['seconds'] for row in rows),
    }


def measure(config: TrainConfig, recipe: str, seeds: Sequence[int], output_dir: str) -> dict[str, Any]:
    """Train a recipe with each seed in output_dir/RECIPE, and return its runs and the rates of matrix products."""
    from official_resnet.experiments import runs as experiment

    config = dataclasses.replace(config, dtype=devices.known_dtype(config.dtype))
    folder = os.path.join(output_dir, recipe)
    settings = {name: value for name, value in config.to_json().items() if name not in ('machine', 'seed')}
    with files.write_errors(f"output_dir '{output_dir}'", ' or pass another --output_dir'):
        files.make_folder(folder)
    experiment.claim_folder(folder, settings)
    found: list[dict] = []
    rates = matrix_rates(config.dtype)
    for seed in seeds:
        print(f'{recipe}, seed {seed} of {seeds[0]} to {seeds[-1]}:', flush=True)
        run = dataclasses.replace(config, seed=seed).with_machine(
            model_dir=os.path.join(folder, 'runs', f'seed_{seed}')
        )
        found.append(train_once(run, recipe))
        rates += matrix_rates(config.dtype)
    return {'recipe': recipe, 'dtype': config.dtype, 'runs': found, 'matrix_flop_per_second': rates}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a recipe's row in the table, from what `measure` returns."""
    runs = result['runs']

    def mean(of: Callable[[dict], float]) -> float:
        return statistics.fmean(map(of, runs))

    rate = mean(lambda run: run['flop'] / run['train_seconds'])
    accuracies = [run['accuracy'] for run in runs]
    return {
        'recipe': result['recipe'],
        'dtype': result['dtype'],
        'parameters': runs[0]['parameters'],
        'forward_multiply_adds': runs[0]['multiply_adds'],
        'petaflop': mean(lambda run: run['flop']) / 1e15,
        'epochs': mean(lambda run: run['epochs']),
        'n': len(runs),
        'accuracy': statistics.fmean(accuracies),
        'least_accuracy': min(accuracies),
        'greatest_accuracy': max(accuracies),
        'minutes': mean(lambda run: run['seconds']) / 60,
        'gigaflop_per_second': rate / 1e9,
        'share_of_matrix_product': rate / statistics.median(result['matrix_flop_per_second']),
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the results of `summary` as lines of text."""
    lines = [
        f'{"recipe":14} {"":5} {"parameters":>11} {"PFLOP":>8} {"epochs":>6} {"n":>3} {"accuracy":>9} '
        f'{"(least, greatest)":19} {"minutes":>8} {"GFLOP/s":>8}  of matrix products'
    ]
    for row in rows:
        extent = f'({row["least_accuracy"]:.2%}, {row["greatest_accuracy"]:.2%})'
        lines.append(
            f'{row["recipe"]:14} {row["dtype"]:5} {row["parameters"]:11,} {row["petaflop"]:8.4g} {row["epochs"]:6.4g} '
            f'{row["n"]:3} {row["accuracy"]:9.2%} {extent:19} {row["minutes"]:8.1f} '
            f'{row["gigaflop_per_second"]:8.1f}  {row["share_of_matrix_product"]:.0%}'
        )
    return '\n'.join(lines)


def run_recipes(values: absl_flags.FlagValues) -> None:
    """Train what the flags ask for, and print the table."""
    output = measuring.check_output(values.output_json)
    if not values.output_dir:
        raise UserError('--output_dir is missing; pass a folder for the runs')
    configs = {recipe: config_of(values, values.program, recipe) for recipe in values.recipe}
    devices.start_tensorflow()
    output_dir = os.path.expanduser(values.output_dir)
    results = [measure(config, recipe, seeds_of(values), output_dir) for recipe, config in configs.items()]
    rows = [summary(result) for result in results]
    about = f'{measuring.describe()}, load {os.getloadavg()[0]:.1f}'
    print(f'\n{format_table(rows)}\n\nFLOP are 3 x 2 x multiply-adds of a forward pass x images trained on.\n{about}')
    if output:
        stored = [row | result for row, result in zip(rows, results, strict=True)]
        files.write_json(output, {'flags': values.flag_values_dict(), 'machine': about, 'results': stored})


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_recipes))
