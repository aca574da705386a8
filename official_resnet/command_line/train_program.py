"""A training program around resnet_run_loop: flags, data set, callbacks, results. It imports TensorFlow late."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from official_resnet.command_line import flags, program
from official_resnet.command_line.flags import Program, RunOptions
from official_resnet.errors import one_line
from official_resnet.inputs import datasets
from official_resnet.training import devices
from official_resnet.training.config import TrainConfig

_SPLITS = ('train', 'test')


def main(argv: Sequence[str], doc: str, row: Program) -> int:
    """Run the program described by a `Program` with the arguments `argv` (name first); return the exit code."""
    is_worker = False

    def body(values, argv=argv) -> int:
        nonlocal is_worker
        if values.transfer == 'head,all':
            from official_resnet.command_line import stages

            return stages.run(argv[0], values, row, body)
        (config, options), chosen = flags.resolve(values, row), {}
        if not options.eval_only and (values.clean or options.image_folder or config.pretrained or row.chooses_network):
            from official_resnet.command_line import own_images, places

            places.require_apart(values)
            chosen = own_images.choose(values, row, config)
            config, options = flags.resolve(values, row, chosen)
        is_worker = config.machine.distribution_strategy == flags.MULTI_WORKER and options.local_workers == 1
        return _run(values, config, options, row, [*argv, *(f'--{flag}={value}' for flag, value in chosen.items())])

    values = flags.define(row)
    code = program.run_program(argv, doc, values, body, row=row)
    if is_worker:
        from official_resnet.command_line import failures

        failures.end_now(code)
    return code


def entry(doc: str, row: Program) -> Callable[[], NoReturn]:
    """Return a function that runs the program described by a `Program` with sys.argv, and exits."""
    return lambda: sys.exit(main(sys.argv, doc, row))


def _run(values, config, options, row, argv):
    """Train, evaluate or start workers, depending on the flags; return the exit code."""
    for name, _, text in flags.OBSOLETE:
        if values[name].present:
            print(f'--{name} is obsolete and ignored: {text}')
    if config.pretrained:
        from official_resnet.weights import pretrained as weights

        config = dataclasses.replace(config, pretrained=weights.resolve(config.pretrained, options.cache_dir))
    if options.export_dir or options.eval_only or options.report or options.track:
        from official_resnet.command_line import evaluate_program

        evaluate_program.check_outputs(options)
    if options.eval_only:
        return evaluate_program.run(values, config, options, row)
    if options.local_workers > 1:
        from official_resnet.training import workers

        find_data(config, options, row)
        _clean(config, options)
        own = ['--local_workers=1', f'--distribution_strategy={flags.MULTI_WORKER}', *['--noclean'] * options.clean]
        return workers.launch(options.local_workers, [sys.executable, *argv, *own])
    return _train(config, options, row, flags.given_axes(values))


def _train(config, options, row, given_axes):
    """Train, as the only process or as one of several workers; return the exit code."""
    is_chief, has_team = True, config.machine.distribution_strategy == flags.MULTI_WORKER
    if has_team:
        from official_resnet.training import workers

        is_chief = workers.configure(list(options.worker_hosts), options.task_index, options.worker_token)[0] == 0
    if config.pretrained:
        from official_resnet.inference import network_files

        network_files.require_weights(config.pretrained)
    if not has_team:  # before TensorFlow is imported, which takes a while
        find_data(config, options, row)
    devices.start_tensorflow(config.machine.inter_op_threads, config.machine.intra_op_threads)
    from official_resnet import resnet_run_loop

    if has_team:  # must be the first thing that TensorFlow does
        workers.join(config.machine.all_reduce_alg)
        find_data(config, options, row, is_chief=is_chief)
    if config.pretrained:
        from official_resnet.training import transfer

        config = transfer.adopt(config, transfer.describe(config.pretrained), given_axes)
    config = dataclasses.replace(config, dtype=devices.known_dtype(config.dtype))
    if is_chief:
        _clean(config, options)
    result = resnet_run_loop.train(config, _callbacks(config, options) if is_chief else (), recipe=options.recipe)
    if is_chief:
        _finish(config, result, options)
    result.process.wait()
    return 0


def _clean(config, options):
    if options.clean:
        from official_resnet.training import same_run

        same_run.clean(config.machine.model_dir)


def find_data(
    config: TrainConfig, options: RunOptions, row: Program, splits: Sequence[str] = _SPLITS, is_chief: bool = True
) -> None:
    """Download the data set of a config if it is missing and if that is allowed; other workers wait for the chief.

    Raises:
        UserError: The data set is missing, incomplete or damaged, as far as datasets.require_data finds out.
    """
    dataset, data_dir = config.dataset, config.machine.data_dir
    if dataset.startswith('tfds:') or (options.download and data_dir and datasets.is_missing(dataset, data_dir)):
        from official_resnet.command_line import missing_data

        missing_data.fetch(config, options, row, is_chief)
    datasets.require_data(dataset, data_dir, config.folder_options(), splits)


def _callbacks(config, options):
    """Return the Keras callbacks that the flags ask for."""
    import tensorflow as tf

    from official_resnet.training import callbacks

    hooks = {name.lower() for name in options.hooks}
    is_slow = not tf.config.list_physical_devices('GPU') and options.recipe not in ('fast', 'classic_fast', 'demo')
    quicker = '--recipe=fast gives most of the accuracy in a fraction of the time' if is_slow else None
    log_steps = options.log_steps if 'loggingtensorhook' in hooks else 0
    chosen = [callbacks.Progress(log_steps, quicker), callbacks.Summary(config, options.recipe)]
    asks_for_logs = options.benchmark_log_dir or config.machine.enable_tensorboard or options.profile_steps
    if asks_for_logs or options.track or hooks - {'loggingtensorhook'}:
        from official_resnet.command_line import more_logging

        chosen += more_logging.callbacks_of(config, options, hooks)
    return chosen


def _finish(config, result, options):
    """Print the results and the paths of the files, plot the curves, and export the model."""
    from official_resnet import checkpoints

    model_dir = pathlib.Path(config.machine.model_dir)
    tests = [line for line in checkpoints.read_metrics(model_dir) if line['split'] == 'test']
    if tests:
        best, last = max(tests, key=lambda line: line['accuracy']), tests[-1]
        print(f'test accuracy {last["accuracy"]:.4f} after epoch {last["epoch"]} (step {result.step}): model.keras')
        if (model_dir / 'best.keras').exists():  # an older run may have none
            print(f'best {best["accuracy"]:.4f} after epoch {best["epoch"]}, chosen by these test images: best.keras')
    names = ('model.keras', 'model.card.json', 'best.keras', checkpoints.METRICS_FILE, 'config.json', 'steps.csv')
    paths = [path for name in names if (path := model_dir / name).exists()]
    paths += checkpoints.paths(model_dir / 'checkpoints')[-1:]
    kept = [path for path in (model_dir / 'curves.png',) if path.exists() and not result.history.epoch]
    for path in paths + (kept or made('reports.figures', model_dir, 'curves.png')):
        print(f'  {path}')
    if options.export_dir or options.report or (result.history.epoch and (model_dir / 'report.html').exists()):
        from official_resnet.command_line import evaluate_program

        evaluate_program.write_outputs(result.model, config, options)


def made(module: str, model_dir: pathlib.Path, *names: str) -> list[pathlib.Path]:
    """Return the paths of files that another process makes in model_dir; if that fails, print a line and return []."""
    command = [sys.executable, '-P', '-m', f'official_resnet.{module}', '--', str(model_dir)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'CUDA_VISIBLE_DEVICES': '-1'}  # ours is full
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, errors='replace')
    except OSError as error:  # for example too little memory for another process
        child = subprocess.CompletedProcess(command, 1, '', str(error))
    if child.returncode:
        lines = child.stderr.splitlines() or [f'its process ended with code {child.returncode}']
        print(one_line(lines[-1] if names[0] in lines[-1] else f'no {names[0]}: {lines[-1]}'))
    return [] if child.returncode else [model_dir / name for name in names]
