"""Train the networks of an experiment one after the other, and write its results.

All networks of an output_dir have the same settings. settings.json records them, and other settings are refused. The
model_dir of a network is runs/NAME below it. A network with a result.json is finished, so the same command, or one that
asks for more networks, trains only those that are missing.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
from absl import flags as absl_flags

from official_resnet import checkpoints, damage, files, resnet_run_loop, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import architecture_table, blocks, experiment_program
from official_resnet.inputs import datasets
from official_resnet.training import callbacks, devices, recipes, step, stopping
from official_resnet.training.config import Schedule, TrainConfig

PAPER = recipes.CIFAR['official'] | recipes.CIFAR['paper']
# --quick uses the first fifth of the images and few epochs, with drops at 1/2 and 3/4 as in the paper.
QUICK_IMAGES = 10_000
# "0.01 to warm up ... about 400 iterations": 1512.03385 Sec. 4.2 for its ResNet-110, 1603.05027 for all networks.
WARM_UP_LAYERS, WARM_UP_FACTOR = 110, 0.1
WARM_UP_EPOCHS = 1.024  # 400 steps with 128 of 50,000 images
CURVES = 'epoch', 'step', 'learning_rate', 'train_loss', 'train_error', 'test_error'
FINAL = 'train_error', 'train_error_inference', 'test_error'
DATASET_NAMES = {'cifar10': 'CIFAR-10', 'synthetic': 'synthetic images'}


def run(
    values: absl_flags.FlagValues,
    name: str,
    quick_epochs: int,
    nets: dict[str, dict[str, Any]],
    conclude: Callable[[dict[str, Any]], Any],
    drawing: Callable[[dict[str, Any], str, str], tuple],
    **settings: Any,
) -> None:
    """Train the networks of an experiment, judge the claim, plot, and write everything into --output_dir.

    Args:
        values: The flags of experiment_program.cifar_flags.
        name: Name of the JSON file and of the figure, without their suffixes.
        quick_epochs: Number of epochs with --quick.
        nets: {name: fields from `network`}.
        conclude: A function from the results of train_nets to the claim.
        drawing: A function (results, 'CIFAR-10, 6 epochs on 10,000 images, bf16, seed 0', path) -> a drawing for
            `finish`.
        **settings: Further settings that the networks share.
    """
    config = train_config(values, *experiment_program.find_data(values), quick_epochs)
    shared = config.to_json()
    schedule = {f'schedule.{field}': value for field, value in shared.pop('schedule').items()}
    own = ('spec', 'experiment', 'machine')  # that each network has of its own
    settings |= {field: value for field, value in shared.items() if field not in own} | schedule
    claim_folder(values.output_dir, settings)
    for net in nets.values():
        is_deep = 2 * sum(net['spec'].group_blocks) + 2 >= WARM_UP_LAYERS
        net['schedule'] = warmed_up(config.schedule) if is_deep else config.schedule
    configs = {name: dataclasses.replace(config, **fields) for name, fields in nets.items()}
    nets = train_nets(configs, values.output_dir)
    result = {'settings': settings, 'nets': nets, 'claim': conclude(nets)}
    count = config.num_train_images or datasets.info_of(config.dataset).split_sizes['train']
    epochs = f'{config.train_epochs} epoch{"s" * (config.train_epochs != 1)}'
    length = f'{config.max_train_steps:,} steps' if config.max_train_steps else epochs
    seeds = sorted({one.seed for one in configs.values()})
    which = f'seed {seeds[0]}' if len(seeds) == 1 else f'mean of seeds {seeds[0]} to {seeds[-1]}'
    about = f'{DATASET_NAMES[config.dataset]}, {length} on {count:,} images, {config.dtype}, {which}'
    finish(values.output_dir, name, result, [drawing(nets, about, f'{values.output_dir}/{name}.png')])


def network(depth: int, experiment: dict[str, Any] | None = None, **axes: Any) -> dict[str, Any]:
    """Return the fields of TrainConfig for the papers' network with `depth` layers; `axes` are fields of its spec."""
    spec = resnet_variants.cifar_spec(depth, bn_momentum=PAPER['bn_momentum'], **axes)
    return {'spec': spec, 'experiment': experiment or None}


def train_config(values: absl_flags.FlagValues, dataset: str, data_dir: str | None, quick_epochs: int) -> TrainConfig:
    """Return the TrainConfig of the flags. Each network replaces its `spec` and `machine.model_dir`."""
    changes = {name: values[name].value for name in ('batch_size', 'seed')}
    changes['num_train_images'] = values.num_train_images or (QUICK_IMAGES if values.quick else None)
    epochs = values.train_epochs or (quick_epochs if values.quick else None)
    if epochs:
        changes |= {'train_epochs': epochs, 'lr_boundaries': (epochs / 2, epochs * 3 / 4), 'max_train_steps': None}
    if 'warmup_epochs' in values:
        changes['warmup_epochs'] = values['warmup_epochs'].value
    settings = PAPER | {'resnet_size': 20, 'dtype': devices.known_dtype(values.dtype)} | changes
    config = TrainConfig.from_settings(settings, resnet_variants.cifar_spec, dataset=dataset)
    return config.with_machine(data_dir=data_dir)


def warmed_up(schedule: Schedule) -> Schedule:
    """Return a piecewise schedule that begins with the papers' warm-up: constant at a tenth of the rate."""
    boundaries = (WARM_UP_EPOCHS, *(max(epoch, WARM_UP_EPOCHS) for epoch in schedule.boundaries))
    return dataclasses.replace(schedule, boundaries=boundaries, factors=(WARM_UP_FACTOR, *schedule.factors))


def claim_folder(output_dir: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Write output_dir/settings.json, the settings that all networks share.

    Raises:
        UserError: The folder holds networks with other settings.
    """
    path = pathlib.Path(output_dir) / 'settings.json'
    settings = json.loads(json.dumps(settings))
    if path.is_file() and any((path.parent / 'runs').glob('*')):
        stored = read_json(path)
        names = [name for name in settings | stored if stored.get(name) != settings.get(name)]
        if names:
            texts = ', '.join(f'{name} {stored.get(name)!r}, not {settings.get(name)!r}' for name in names)
            remedy = 'pass the same flags or another --output_dir'
            raise UserError(f"output_dir '{output_dir}' holds an experiment with {texts}; {remedy}")
    files.write_json(path, settings)


def read_json(path: str | os.PathLike, use: Callable[[dict[str, Any]], Any] = lambda content: None) -> dict[str, Any]:
    """Return the object in a JSON file of an experiment. A damaged file, or one that `use` cannot use, is UserError."""
    with damage.reported(path, 'delete it and run the same command again'):
        content = files.read_json(path)
        if content is None:
            raise ValueError('not an object of JSON')
        use(content)
    return content


def train_nets(configs: Mapping[str, TrainConfig], output_dir: str) -> dict[str, dict[str, Any]]:
    """Train networks one after the other; return {name: result of train_net}."""
    results: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        print(f'{name}, {len(results) + 1} of {len(configs)}:')
        results[name] = train_net(name, config, output_dir)
    return results


def train_net(name: str, config: TrainConfig, output_dir: str) -> dict[str, Any]:
    """Train a network in output_dir/runs/NAME and return its result, or return the stored result if it is finished.

    Returns:
        'failed': None, or the message of a run whose loss is not finite.
        'final': {'train_error', 'train_error_inference', 'test_error'} in %, each None if the run failed.
            train_error is the average over an epoch, on augmented images and while the weights change.
            train_error_inference is the error of the final weights on training images that are not augmented.
        'parameters': Number of trainable parameters.
        'seconds': Time of training and tests, over all restarts.
        'curves': {'epoch', 'step', 'learning_rate', 'train_loss', 'train_error', 'test_error'}, each a list with one
            entry for each epoch; test_error has one for each evaluation.
    """
    folder = pathlib.Path(f'{output_dir}/runs/{name}')
    config = config.with_machine(model_dir=f'{output_dir}/runs/{name}')
    path = folder / 'result.json'
    if path.is_file():
        result = read_json(path, _require_whole)
        print(f'  already finished, kept: {describe(result)}')
        return result
    progress, failed, train_error = callbacks.Progress(), None, None
    try:
        block = blocks.make_block(config.experiment) if config.experiment else None
        trained = resnet_run_loop.train(config, [progress], block=block)
        train_error = inference_error(trained.model, config)
    except stopping.Diverged as error:
        failed = str(error).partition(';')[0]  # without the loop's advice on flags
    lines = checkpoints.read_metrics(folder)
    train, test = ([line for line in lines if line['split'] == split] for split in ('train', 'test'))
    curves = {name: [line[name] for line in train] for name in ('epoch', 'step', 'learning_rate')}
    curves['train_loss'] = [line['loss'] for line in train]
    curves['train_error'], curves['test_error'] = ([_error(line['accuracy']) for line in run] for run in (train, test))
    errors = (None,) * 3 if failed else (curves['train_error'][-1], train_error, curves['test_error'][-1])
    result = {
        'failed': failed,
        'final': dict(zip(FINAL, errors, strict=True)),
        'parameters': architecture_table.count_parameters(progress.model),
        'seconds': round(sum(line['seconds'] for line in lines), 1),
        'curves': curves,
    }
    files.write_json(path, result)
    print(f'  {describe(result)}')
    return result


def _require_whole(result):
    """Raise any exception if a result lacks what is printed, compared and drawn."""
    describe(result)
    *columns, tested = (result['curves'][name] for name in CURVES)
    if {*map(len, columns)} != {len(columns[0])} or len(tested) > len(columns[0]) or result['final'].keys() != {*FINAL}:
        raise ValueError('its curves or errors are incomplete')
    sum(value for column in columns for value in column)  # all are numbers


def inference_error(model: keras.Model, config: TrainConfig) -> float:
    """Return the error, in %, of a model in inference mode on its training images without augmentation."""
    examples = resnet_run_loop.read(config, 'train')
    strategy = devices.make_strategy(config.machine, config.batch_size)
    evaluate_batch = step.make_evaluate_function(strategy, model)
    batches = examples.evaluation_batches(config.batch_size)
    correct = sum(float(evaluate_batch(images, labels)[1]) for images, labels in batches)
    return _error(correct / examples.num_images)


def describe(result: Mapping[str, Any]) -> str:
    """Return a result of train_net as one line of text."""
    if result['failed']:
        return f'failed: {result["failed"]}'
    training, inference, test = (f'{error:.2f} %' for error in result['final'].values())
    size, time = f'{result["parameters"]:,} parameters', callbacks.format_seconds(result['seconds'])
    return f'training error {training} ({inference} in inference), test error {test}, {size}, {time}'


def print_claim(claim: dict[str, bool | None]) -> dict[str, bool | None]:
    """Print the statements of a claim, one line each, and return the claim."""
    for name, is_true in claim.items():
        print(f'{name.replace("_", " ")}: {"not compared" if is_true is None else is_true}')
    return claim


def finish(output_dir: str, name: str, result: dict[str, Any], drawings: Iterable[tuple] = ()) -> None:
    """Write output_dir/NAME.json, plot each drawing, and print the paths.

    A drawing is the name of a function of reports.figures, followed by its arguments.
    """
    paths = [f'{output_dir}/{name}.json']
    text = json.dumps(result | {'machine': devices.machine_info()}, indent=1, allow_nan=False)
    files.write_text(paths[0], text + '\n')
    try:
        from official_resnet.reports import figures
    except ImportError:
        remedy = "pip install -e '.[plots]' in the folder of the repository, then run the same command again"
        print(f'the figure needs matplotlib: {remedy}')
    else:
        paths += [getattr(figures, function)(*arguments) for function, *arguments in drawings]
    for path in paths:
        print(f'  {path}')


def _error(accuracy):
    """Return the error in % for an accuracy in 0..1."""
    return round(100 * (1 - accuracy), 4)
