"""The nets of an experiment, trained one after the other, and its results.

An output_dir belongs to one setting: settings.json names it, and a command of another setting is refused. Below it
runs/NET is the model_dir of a net, whose result.json says that the net is finished: the same command trains only
what is missing, also when it asks for more nets than before.
"""

import dataclasses
import json
import pathlib

from official_resnet import checkpoints, files, resnet_run_loop, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import architecture_table, blocks, experiment_program
from official_resnet.inputs import datasets
from official_resnet.training import callbacks, devices, recipes, step
from official_resnet.training.config import TrainConfig

PAPER = recipes.CIFAR['official'] | recipes.CIFAR['paper']
# Minutes on two cores: the first fifth of the images, and the paper's shape (drops at 1/2 and 3/4) in few epochs.
QUICK_IMAGES = 10_000
# "0.01 to warm up ... about 400 iterations": 1512.03385 Sec. 4.2 of its ResNet-110, 1603.05027 of all its nets.
WARM_UP_LAYERS, WARM_UP_FACTOR = 110, 0.1
WARM_UP_EPOCHS = 1.024  # 400 steps of 128 images, of 50,000
DATASET_NAMES = {'cifar10': 'CIFAR-10', 'synthetic': 'drawn pictures'}


def run(values, name, quick_epochs, nets, conclude, drawing, **settings):
    """Train the nets of an experiment, conclude, draw, and write everything into --output_dir.

    Args:
        values: flags of experiment_program.cifar_flags; --quick trains `quick_epochs`.
        name: of the JSON file and the figure, without their endings.
        nets: {name: `network`}; besides a TrainConfig they share `settings`.
        conclude: (results of train_nets) -> the claim.
        drawing: (results, 'CIFAR-10, 6 epochs on 10,000 images, bf16, seed 0', path) -> one of `finish`.
    """
    config = train_config(values, *experiment_program.find_data(values), quick_epochs)
    shared = config.to_json()
    schedule = {f'schedule.{field}': value for field, value in shared.pop('schedule').items()}
    own = ('spec', 'experiment', 'machine')  # of each net
    settings |= {field: value for field, value in shared.items() if field not in own} | schedule
    claim_folder(values.output_dir, settings)
    for net in nets.values():
        is_deep = 2 * sum(net['spec'].group_blocks) + 2 >= WARM_UP_LAYERS
        net['schedule'] = warmed_up(config.schedule) if is_deep else config.schedule
    configs = {name: dataclasses.replace(config, **fields) for name, fields in nets.items()}
    nets = train_nets(configs, values.output_dir)
    result = {'settings': settings, 'nets': nets, 'claim': conclude(nets)}
    count = config.num_train_images or datasets.info_of(config.dataset).split_sizes['train']
    length = f'{config.max_train_steps:,} steps' if config.max_train_steps else f'{config.train_epochs} epochs'
    about = f'{DATASET_NAMES[config.dataset]}, {length} on {count:,} images, {config.dtype}, seed {config.seed}'
    finish(values.output_dir, name, result, [drawing(nets, about, f'{values.output_dir}/{name}.png')])


def network(depth, experiment=None, **axes):
    """Return the fields of TrainConfig that say which network is trained: the papers' of so many layers, but `axes`."""
    spec = resnet_variants.cifar_spec(depth, bn_momentum=PAPER['bn_momentum'], **axes)
    return {'spec': spec, 'experiment': experiment or None}


def train_config(values, dataset, data_dir, quick_epochs):
    """Return the TrainConfig of the flags, in which each net replaces `spec` and `machine.model_dir`."""
    changes = {name: values[name].value for name in ('batch_size', 'seed')}
    changes['num_train_images'] = values.num_train_images or (QUICK_IMAGES if values.quick else None)
    epochs = values.train_epochs or (quick_epochs if values.quick else None)
    if epochs:
        changes |= {'train_epochs': epochs, 'lr_boundaries': (epochs / 2, epochs * 3 / 4), 'max_train_steps': None}
    settings = PAPER | {'resnet_size': 20, 'dtype': devices.known_dtype(values.dtype)} | changes
    config = TrainConfig.from_settings(settings, resnet_variants.cifar_spec, dataset=dataset)
    return config.with_machine(data_dir=data_dir)


def warmed_up(schedule):
    """Return a piecewise schedule with the papers' warm-up before it: constant at a tenth, not a rise."""
    boundaries = (WARM_UP_EPOCHS, *(max(epoch, WARM_UP_EPOCHS) for epoch in schedule.boundaries))
    return dataclasses.replace(schedule, boundaries=boundaries, factors=(WARM_UP_FACTOR, *schedule.factors))


def claim_folder(output_dir, settings):
    """Write output_dir/settings.json, what all nets share; UserError if the folder holds nets of other settings."""
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


def read_json(path):
    """Return the object in a JSON file of an experiment; UserError if it is damaged, which a stopped run never is."""
    content = files.read_json(path)
    if content is None:
        raise UserError(f"'{path}' is damaged; delete it and run the same command again")
    return content


def train_nets(configs, output_dir):
    """Train the nets of {name: TrainConfig} one after the other; return {name: result of `train_net`}."""
    results = {}
    for name, config in configs.items():
        print(f'{name}, {len(results) + 1} of {len(configs)}:', flush=True)
        results[name] = train_net(name, config, output_dir)
    return results


def train_net(name, config, output_dir):
    """Train a net in output_dir/runs/NAME, or take up its stored result; a loss that is not finite is a result too.

    Returns:
        {'failed': None or the message, 'final': {'train_error', 'train_error_inference', 'test_error'}, None in a
        failed net, 'parameters': trainable, 'seconds': of training and test, over all restarts,
        'curves': {'epoch', 'step', 'learning_rate', 'train_loss', 'train_error', 'test_error'}: a list each, with an
        entry for each epoch}. Errors are in %. train_error is the running one of an epoch: augmented images, weights
        that still change; train_error_inference is that of the final weights on the training images as they are.
    """
    config = config.with_machine(model_dir=f'{output_dir}/runs/{name}')
    folder = pathlib.Path(config.machine.model_dir)
    path = folder / 'result.json'
    if path.is_file():
        result = read_json(path)
        print(f'  finished before, kept: {describe(result)}', flush=True)
        return result
    progress, failed, train_error = callbacks.Progress(), None, None
    try:
        block = blocks.make_block(config.experiment) if config.experiment else None
        result = resnet_run_loop.train(config, [progress, callbacks.MetricsJSON(folder)], block=block)
        train_error = inference_error(result.model, config)
    except resnet_run_loop.Diverged as error:
        failed = str(error).partition(';')[0]  # without the loop's advice on flags
    lines = checkpoints.read_metrics(folder)
    train, test = ([line for line in lines if line['split'] == split] for split in ('train', 'test'))
    curves = {name: [line[name] for line in train] for name in ('epoch', 'step', 'learning_rate')}
    curves['train_loss'] = [line['loss'] for line in train]
    curves['train_error'], curves['test_error'] = ([_error(line['accuracy']) for line in of] for of in (train, test))
    errors = (None,) * 3 if failed else (curves['train_error'][-1], train_error, curves['test_error'][-1])
    result = {
        'failed': failed,
        'final': dict(zip(('train_error', 'train_error_inference', 'test_error'), errors, strict=True)),
        'parameters': architecture_table.count_parameters(progress.model),
        'seconds': round(sum(line['seconds'] for line in lines), 1),
        'curves': curves,
    }
    files.write_json(path, result)
    print(f'  {describe(result)}', flush=True)
    return result


def inference_error(model, config):
    """Return the error, in %, of a model in inference mode on its training images, not augmented."""
    examples = resnet_run_loop.read(config, 'train')
    strategy = devices.make_strategy(config.machine, config.batch_size)
    evaluate_batch = step.make_evaluate_function(strategy, model)
    batches = examples.evaluation_batches(config.batch_size)
    correct = sum(float(evaluate_batch(images, labels)[1]) for images, labels in batches)
    return _error(correct / examples.num_images)


def describe(result):
    """Return one line of a result of `train_net`."""
    if result['failed']:
        return f'failed: {result["failed"]}'
    training, inference, test = (f'{error:.2f} %' for error in result['final'].values())
    size, time = f'{result["parameters"]:,} parameters', callbacks.format_seconds(result['seconds'])
    return f'training error {training} ({inference} in inference), test error {test}, {size}, {time}'


def print_claim(claim):
    """Print {statement: True, False or None}, a line each, and return it."""
    for name, is_true in claim.items():
        print(f'{name.replace("_", " ")}: {"not compared" if is_true is None else is_true}')
    return claim


def finish(output_dir, name, result, drawings=()):
    """Write output_dir/NAME.json and `drawings`, (name of a function of reports.figures, *arguments); print where."""
    paths = [f'{output_dir}/{name}.json']
    text = json.dumps(result | {'machine': devices.machine_info()}, indent=1, allow_nan=False)
    files.write_text(paths[0], text + '\n')
    try:
        from official_resnet.reports import figures
    except ImportError:
        print("the figure needs matplotlib: pip install 'official-resnet[plots]', then run the same command again")
    else:
        paths += [getattr(figures, function)(*arguments) for function, *arguments in drawings]
    for path in paths:
        print(f'  {path}')


def _error(accuracy):
    """Return the error in % of an accuracy 0..1."""
    return round(100 * (1 - accuracy), 4)
