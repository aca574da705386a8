"""What a training program does around resnet_run_loop: data set, callbacks, results. No TensorFlow at import."""

import dataclasses
import json
import os
import pathlib
import sys

from absl import flags as absl_flags

from official_resnet import files, resnet_variants
from official_resnet.command_line import flags, program
from official_resnet.errors import UserError, one_line
from official_resnet.inputs import datasets
from official_resnet.training import devices, recipes, workers

MNIST_RECIPES = {'mnist': recipes.MNIST, 'fashion_mnist': recipes.FASHION_MNIST}  # --dataset -> its table


def cifar_program(argv, doc, dataset):
    """Be cifar10_main or cifar100_main: parse argv (program name first), train, return the exit code."""
    return _program(argv, doc, cifar_flags(dataset), lambda _: (dataset, recipes.CIFAR), 'cifar_spec')


def mnist_program(argv, doc):
    """Be mnist_main: as `cifar_program`, with the data set chosen by --dataset."""
    return _program(
        argv, doc, mnist_flags(), lambda values: (values.dataset, MNIST_RECIPES[values.dataset]), 'mnist_spec'
    )


def cifar_flags(dataset):
    """Return the FlagValues of the program of a CIFAR data set."""
    values = _common_flags(dataset, recipes.CIFAR)
    flags.define_model_flags(values, '6n+2: 8, 14, 20, ...', lambda size: size >= 8 and size % 6 == 2)
    return values


def mnist_flags():
    """Return the FlagValues of the program of MNIST and Fashion-MNIST."""
    values = _common_flags('mnist', recipes.MNIST)
    absl_flags.DEFINE_enum('dataset', 'mnist', list(MNIST_RECIPES), 'Which data set.', flag_values=values)
    flags.define_model_flags(values)
    return values


def imagenet_program(argv, doc):
    """Be imagenet_main: as `cifar_program`, with pictures that are streamed."""
    return _program(argv, doc, imagenet_flags(), lambda _: ('imagenet', recipes.IMAGENET), 'imagenet_spec')


def _program(argv, doc, values, choose, make_spec):
    """Be a program whose data set and table of recipes `choose` takes from the flags; see `_run`."""
    has_team = False

    def body(values):
        nonlocal has_team
        resolved = flags.resolve(values, choose(values)[1])
        has_team = resolved['distribution_strategy'] == 'multi_worker_mirrored' and resolved['local_workers'] == 1
        return _run(values, resolved, argv, choose(values)[0], make_spec)

    code = program.run_program(argv, doc, values, body)
    if has_team:  # what TensorFlow does for the end of a worker takes it many seconds
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def imagenet_flags():
    """Return the FlagValues of the program of ImageNet."""
    values = _common_flags('imagenet', recipes.IMAGENET, is_imagenet=True)
    sizes = (18, 34, 50, 101, 152, 200)  # of resnet_variants.IMAGENET_BLOCKS, which would import TensorFlow
    flags.define_model_flags(values, ', '.join(map(str, sizes)), sizes.__contains__, ('1', '1.5', '2'))
    flags.define_imagenet_flags(values)
    flags.register_rules(values, is_imagenet=True)
    return values


def _common_flags(dataset, table, is_imagenet=False):
    """Return the FlagValues that all training programs have; `dataset` names the default folders."""
    values = absl_flags.FlagValues()
    flags.define_run_flags(values, f'/tmp/{dataset}_data', f'/tmp/{dataset}_model')
    flags.define_transfer_flags(values)
    flags.define_optimizer_flags(values, table)
    flags.define_performance_flags(values)
    flags.define_log_flags(values)
    flags.define_obsolete_flags(values)
    if not is_imagenet:
        flags.register_rules(values)
    return values


def _run(values, resolved, argv, dataset, make_spec):
    """Train (or with --eval_only evaluate) as the flags say; return the exit code.

    Args:
        values: parsed FlagValues.
        resolved: from flags.resolve.
        argv: of which they were parsed.
        dataset: a key of datasets.DATASETS.
        make_spec: name of the function of resnet_variants.
    """
    for name, _, text in flags.OBSOLETE:
        if resolved[name] is not None:
            print(f'--{name} is obsolete and ignored: {text}')
    if resolved['tfds']:
        dataset = f'tfds:{resolved["tfds"]}'
    elif resolved['image_folder']:
        dataset = f'folder:{os.path.abspath(resolved["image_folder"])}'
    elif resolved['use_synthetic_data']:
        dataset = 'synthetic224' if dataset == 'imagenet' else 'synthetic'
    if resolved['export_dir']:
        _require_export_dir(resolved['export_dir'])
    if resolved['local_workers'] > 1:
        return _launch(values, argv, dataset, resolved)
    is_chief, has_team = True, resolved['distribution_strategy'] == 'multi_worker_mirrored'
    if has_team:
        index, _ = workers.configure(resolved['worker_hosts'], resolved['task_index'])
        is_chief = index == 0
    devices.start_tensorflow(resolved['inter_op_parallelism_threads'], resolved['intra_op_parallelism_threads'])
    from official_resnet import checkpoints, resnet_run_loop

    if resolved['eval_only']:
        return _evaluate(values, resolved)
    if has_team:  # before all else that TensorFlow does
        workers.join(resolved['all_reduce_alg'])
    resolved['data_dir'] = _find_data(values, dataset, is_chief)
    _require_other_model_dir(resolved['model_dir'], resolved['pretrained_model_checkpoint_path'])
    config = flags.train_config(resolved, dataset, getattr(resnet_variants, make_spec))
    if not is_chief:
        return _follow(config)
    if resolved['clean']:
        checkpoints.clean(resolved['model_dir'])
    _make_folder(resolved['model_dir'])
    _show(config, resolved['recipe'])
    try:
        result = resnet_run_loop.train(config, _callbacks(config, resolved))
    except resnet_run_loop.Interrupted as interruption:
        print(interruption)
        return 128 + interruption.signal_number
    _finish(config, result, resolved)
    result.process.wait()
    return 0


def _follow(config):
    """Be a worker other than the chief."""
    from official_resnet import resnet_run_loop

    try:
        resnet_run_loop.train(config).process.wait()
    except resnet_run_loop.Interrupted as interruption:
        return 128 + interruption.signal_number
    return 0


def _launch(values, argv, dataset, resolved):
    """Start the workers of --local_workers, after what one alone should do."""
    _find_data(values, dataset)
    if resolved['clean']:
        from official_resnet import checkpoints

        checkpoints.clean(resolved['model_dir'])
    return workers.launch(
        resolved['local_workers'],
        [sys.executable, *argv, '--local_workers=1', '--distribution_strategy=multi_worker_mirrored', '--noclean'],
    )


def _find_data(values, dataset, may_fetch=True):
    """Return the data_dir of a data set, fetched if it is missing and may be.

    One that is damaged or cut down is left for its reader to judge.
    """
    may_fetch = may_fetch and values.download
    data_dir = os.path.expanduser(values.data_dir)
    if dataset.startswith('folder:'):
        return None
    if dataset.startswith('tfds:'):
        if not values['data_dir'].present:
            data_dir = None  # where tensorflow_datasets keeps its data itself
        from official_resnet.inputs import tfds_source

        tfds_source.prepare(
            dataset.removeprefix('tfds:'), data_dir, may_fetch, has_one_size='eval_image_size' not in values
        )  # ImageNet's program streams them
    elif may_fetch and datasets.is_missing(dataset, data_dir):
        from official_resnet.inputs import download

        download.fetch_missing(dataset, data_dir)
    return data_dir


def _require_other_model_dir(model_dir, pretrained):
    """Refuse to begin a run on top of the net it starts from, which --clean would delete."""
    if pretrained and pathlib.Path(pretrained).resolve().is_relative_to(pathlib.Path(model_dir).resolve()):
        raise UserError(f"the pretrained net {pretrained} is in model_dir '{model_dir}'; pass another --model_dir")


def _require_export_dir(export_dir):
    """Refuse a folder below a file, before the training that it is for."""
    path = pathlib.Path(export_dir).absolute()
    there = next(path for path in (path, *path.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"cannot make export_dir '{export_dir}': '{there}' is a file; pass another --export_dir")


def _make_folder(model_dir):
    try:
        os.makedirs(model_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make model_dir '{model_dir}': {error.strerror}; pass another --model_dir") from error


def _show(config, recipe):
    """Print the resolved configuration."""
    values = config.to_json()
    flat = {key: value for key, value in values.items() if key not in ('spec', 'schedule', 'machine')}
    flat |= values['machine']
    flat |= {f'{part}.{key}': value for part in ('spec', 'schedule') for key, value in values[part].items()}
    print(f'recipe {recipe}:')
    line = ''
    for text in (f'{key}={value}' for key, value in flat.items() if value is not None):
        if len(line) + len(text) > 110:
            print(f'  {line}')
            line = ''
        line += f'{text}  '
    print(f'  {line}', flush=True)


def _store(config, recipe):
    """Write model_dir/config.json; once training begins, so that a refused model_dir keeps its own."""
    from official_resnet import files

    content = {'recipe': recipe, 'config': config.to_json(), 'machine': devices.machine_info()}
    files.write_text(pathlib.Path(config.machine.model_dir) / 'config.json', json.dumps(content, indent=1) + '\n')


def _callbacks(config, resolved):
    """Return the Keras callbacks that the flags ask for."""
    import keras

    from official_resnet.training import callbacks

    hooks = {name.lower() for name in resolved['hooks']}
    log_steps = resolved['log_steps']
    quicker = None
    if not devices.has_gpu() and resolved['recipe'] not in ('fast', 'demo'):
        quicker = '--recipe=fast gives most of the accuracy in a fraction of the time'
    chosen = [
        callbacks.Progress(log_steps if 'loggingtensorhook' in hooks else 0, quicker),
        callbacks.MetricsJSON(config.machine.model_dir),
        keras.callbacks.LambdaCallback(on_train_begin=lambda logs: _store(config, resolved['recipe'])),
    ]
    if resolved['benchmark_log_dir'] or hooks & {'examplespersecondhook', 'loggingmetrichook', 'stepcounterhook'}:
        info = {
            'model_name': 'resnet',
            'dataset': {'name': config.dataset},
            'machine_config': devices.machine_info(),
            'test_id': resolved['benchmark_test_id'],
            'run_parameters': config.to_json(),
            'tensorflow_environment_variables': {k: v for k, v in os.environ.items() if k.startswith('TF_')},
        }
        chosen.append(callbacks.BenchmarkLog(resolved['benchmark_log_dir'], info, log_steps, hooks))
    if resolved['enable_tensorboard'] or resolved['profile_steps'] or 'profilerhook' in hooks:
        chosen.append(_tensorboard(config.machine.model_dir, resolved['profile_steps'], 'profilerhook' in hooks))
    return chosen


def _tensorboard(model_dir, profile_steps, is_profiling):
    """Return Keras' TensorBoard callback, or say what to install."""
    try:
        import tensorboard  # noqa: F401  Keras' callback writes what only tensorboard can show
    except ImportError:
        raise UserError("TensorBoard is not installed; pip install 'official-resnet[plots]'") from None
    import keras

    profile = (10, 20) if is_profiling else 0
    if profile_steps:
        profile = tuple(int(step) for step in profile_steps.split(','))
    return keras.callbacks.TensorBoard(model_dir, write_graph=False, profile_batch=profile)


def _evaluate(values, resolved):
    """Evaluate the newest checkpoint of model_dir, with the network and data set stored in it."""
    from official_resnet import checkpoints, resnet_run_loop

    model_dir = resolved['model_dir']
    found = checkpoints.restore_latest(pathlib.Path(model_dir) / 'checkpoints')
    if not found and resolved['pretrained_model_checkpoint_path'] and 'ten_crop' in resolved:
        return _evaluate_converted(values, resolved)
    if not found:
        raise UserError(f"model_dir '{model_dir}' has no checkpoint; train there first, or pass another --model_dir")
    config = resnet_run_loop.TrainConfig.from_json(found[1]['config'])
    if resolved['image_folder']:  # the same classes, other pictures or another place
        config = dataclasses.replace(config, dataset=f'folder:{os.path.abspath(resolved["image_folder"])}')
    config = config.with_machine(
        model_dir=model_dir,
        data_dir=_find_data(values, config.dataset),
        num_gpus=resolved['num_gpus'],
        distribution_strategy=resolved['distribution_strategy'],
    )
    if config.views and resolved.get('eval_image_size'):
        config = dataclasses.replace(
            config, views=dataclasses.replace(config.views, test_size=resolved['eval_image_size'])
        )
    results = resnet_run_loop.evaluate(config)
    top_5 = f', in the top 5 {results["accuracy_top_5"]:.4f}' if config.views else ''
    print(
        f'epoch {results["epoch"]}, step {results["step"]}: test loss {results["loss"]:.4f}, '
        f'test accuracy {results["accuracy"]:.4f}{top_5} ({results["num_images"]} images)'
    )
    if config.views and (resolved.get('eval_report') or resolved.get('ten_crop')):
        _report(results['model'], results['test'], config.batch_size, resolved)
    if resolved['export_dir']:
        _export(results['model'], config, resolved)
    return 0


def _finish(config, result, resolved):
    """Save the final model, its card and the curves, export, and say where everything is."""
    from official_resnet import checkpoints
    from official_resnet.inference import model_card
    from official_resnet.training import callbacks

    model_dir = pathlib.Path(config.machine.model_dir)
    final = model_dir / 'model.keras'
    result.model.compiled = False  # for inference: whoever loads it needs our layers, not our optimizer
    with files.replacing(final) as part:
        result.model.save(part)
    card = final.with_suffix('.card.json')
    model_card.write_card(card, **result.card)
    metrics = callbacks.read_metrics(model_dir / callbacks.METRICS_FILE)
    tests = [line for line in metrics if line['split'] == 'test']
    if tests:
        best = max(tests, key=lambda line: line['accuracy'])
        print(
            f'test accuracy {tests[-1]["accuracy"]:.4f} after epoch {tests[-1]["epoch"]} (step {result.step}); '
            f'best {best["accuracy"]:.4f} after epoch {best["epoch"]}'
        )
    paths = [
        final,
        card,
        model_dir / callbacks.METRICS_FILE,
        model_dir / 'config.json',
        *checkpoints.paths(model_dir / 'checkpoints')[-1:],
    ]
    try:
        from official_resnet.reports import figures
    except ImportError:
        print("curves.png needs matplotlib: pip install 'official-resnet[plots]'")
    else:
        title = one_line(model_dir.name)
        paths.append(figures.training_curves(metrics, model_dir / 'curves.png', title=title))
    for path in paths:
        print(f'  {path}')
    if resolved['export_dir']:
        _export(result.model, config, resolved)


def _export(model, config, resolved):
    from official_resnet import resnet_run_loop
    from official_resnet.inference import export

    test, folder = resnet_run_loop.read(config, 'test'), resolved['export_dir']
    count = min(test.num_images, 16)
    encoded = test.example_bytes(count) if resolved['image_bytes_as_serving_input'] else None
    if encoded:
        path = export.export_bytes(model, test.normalization, test.views, folder, encoded)
    else:
        path = export.export(model, test.normalization, test.image_shape, folder, test.example_images(count))
    print(f'  {path} (SavedModel, reloaded and compared)')


def _evaluate_converted(values, resolved):
    """Evaluate a .keras file that is no training's, its pictures prepared as its card says."""
    from official_resnet.inference import predict
    from official_resnet.inputs.images import Views

    path = resolved['pretrained_model_checkpoint_path']
    model, card = predict.load(path)
    dataset = 'imagenet'
    if resolved['tfds']:
        dataset = f'tfds:{resolved["tfds"]}'
    elif resolved['image_folder']:
        dataset = f'folder:{os.path.abspath(resolved["image_folder"])}'
    views = Views(test_size=card.net_size[0])
    test = datasets.open_split(dataset, 'test', data_dir=_find_data(values, dataset), views=views)
    if card.num_classes == test.num_classes + 1:
        test = test.with_background()
    if card.num_classes < test.num_classes:
        raise UserError(
            f'{path} has {card.num_classes} classes, the pictures of {test.name} have {test.num_classes}; '
            'pass the pictures of its classes'
        )
    test = test.with_normalization(card.normalization)
    _report(model, test, resolved['batch_size'], resolved, predict.encoded_view(card))
    return 0


def _report(model, test, batch_size, resolved, view=None):
    """Print top-1 and top-5, class by class where a report is asked for; also of ten crops, if they are."""
    from official_resnet.inputs import augmentation
    from official_resnet.reports import evaluate
    from official_resnet.training import step

    unnamed = model.output_shape[-1] - test.num_classes  # logits for which there are no pictures
    names = [*test.class_names, *(f'class {test.num_classes + i}' for i in range(unnamed))]
    ids = [*test.class_ids, *[None] * unnamed] if test.class_ids else None
    views = {'one crop': view}
    if resolved['ten_crop']:
        views['ten crops'] = lambda picture: augmentation.ten_views(picture, test.views)
    for name, function in views.items():
        batches = test.evaluation_batches(batch_size, view=function)
        with test.input_errors():
            labels, guesses = step.guess(model, batches)
        report = evaluate.report(labels, guesses, names, ids)
        top_5 = '' if report['top5'] is None else f', top-5 {report["top5"]:.4f}'
        print(f'{name}: top-1 {report["top1"]:.4f}{top_5} ({report["n"]} images)')
        if resolved['eval_report'] and name == 'one crop':
            print('\n'.join(evaluate.format_report(report)))
            evaluate.write(report, resolved['eval_report'])
            print(f'report.json, per_class.csv and confusion.csv are in {resolved["eval_report"]}')
