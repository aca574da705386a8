"""The --eval_only and --export_dir of a training program.

Each flag that is passed with --eval_only has an effect, agrees with the evaluated run, or is refused.
"""

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from official_resnet import folders
from official_resnet.command_line import flags, own_images, train_program
from official_resnet.command_line.flags import Program, RunOptions
from official_resnet.errors import UserError, one_line
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training import devices, same_run
from official_resnet.training.config import PRETRAINED, TrainConfig, flags_of

if TYPE_CHECKING:
    import keras

    from official_resnet.inference import card_reader
    from official_resnet.inputs.split import Split

_BOTH = {
    *('eval_only', 'eval_report', 'ten_crop', 'model_dir', 'data_dir', 'download', 'image_folder', 'image_list'),
    *('batch_size', 'test_views', 'inter_op_parallelism_threads', 'intra_op_parallelism_threads'),
}
# The flags that have an effect when a run in a model_dir is evaluated, and when another network is.
_OF_RUN = _BOTH | {
    *('num_gpus', 'distribution_strategy', 'all_reduce_alg', 'datasets_num_private_threads', 'eval_image_size'),
    *('export_dir', 'image_bytes_as_serving_input', 'use_weights'),
}
_OF_NET = _BOTH | {PRETRAINED, 'cache_dir', 'tfds', 'use_synthetic_data', 'dataset', 'validation_fraction', 'seed'}
_SOURCES = {'tfds', 'use_synthetic_data', 'dataset'}


def run(values: absl_flags.FlagValues, asked: TrainConfig, options: RunOptions, row: Program) -> int:
    """Evaluate the pretrained network if the flags name one, else the newest checkpoint of model_dir; return 0.

    A checkpoint defines its network and data set. `asked` is the training that the flags describe.
    """
    given = flags.given(values) - {name for name, _, _ in flags.OBSOLETE}
    if asked.machine.distribution_strategy == flags.MULTI_WORKER:
        raise UserError('--eval_only runs in one process; leave the flags for workers out')
    if asked.pretrained:
        _refuse(given - _OF_NET, f'not for --{PRETRAINED}')
        if row.chooses_network:
            own_images.require_folder(values)
        return _evaluate_net(values, asked, options, row)
    _refuse(given - _OF_RUN - _SOURCES - {'recipe', 'variant'} - _settings(asked).keys(), 'not for --eval_only')
    return _evaluate_run(values, asked, options, row, given)


def check_outputs(options: RunOptions) -> None:
    """Raise UserError if what --export_dir, --report or --track ask for cannot be written; called before a training."""
    if (name := options.track) and not importlib.util.find_spec(name):
        remedy = f"run pip install -e '.[{name}]' in the folder of the repository"
        raise UserError(f'--track={name} needs {name} (not installed here); {remedy}')
    if options.report:
        from official_resnet.reports import report

        report.require_packages()
    if folder := options.export_dir:
        folders.require_no_pattern(folder, '--export_dir=')
        folders.existing_parent(folder, 'export_dir')


def _refuse(names, purpose):
    for name in sorted(names):
        raise UserError(f'--{name} is for training, {purpose}; leave it out')


def _evaluate_run(values, asked, options, row, given):
    """Evaluate the newest checkpoint of model_dir, with the network and data set stored in it."""
    from official_resnet.inference import card_reader, network_files

    machine = asked.machine
    state, path = network_files.restore_weights(machine.model_dir)[1:]
    config = same_run.stored_config(state, path)
    if asked.dtype == 'auto':  # depends on the devices
        devices.start_tensorflow(machine.inter_op_threads, machine.intra_op_threads)
    _require_same(values, asked, config, row, given)
    changes = {name: getattr(asked, name) for name in ('batch_size', 'use_weights', 'test_views') if name in given}
    views = {'test_size': asked.views.test_size} if 'eval_image_size' in given else {}
    if options.image_folder:  # it has the same classes, but may have other images
        changes['dataset'] = asked.dataset
        card = pathlib.Path(machine.model_dir, 'model.card.json')
        if config.views and card.exists() and not card_reader.read_card(card).uses_exif:  # as in prediction
            views['uses_exif'] = False
    if views:
        changes['views'] = dataclasses.replace(config.views, **views)
    config = dataclasses.replace(config, machine=machine, **changes)
    config = config.with_machine(data_dir=flags.data_dir_of(values, config.dataset))
    train_program.find_data(config, options, row, ('test',))
    own_images.require_other_files(config.dataset, options.eval_report, '--eval_report')
    devices.start_tensorflow(machine.inter_op_threads, machine.intra_op_threads)
    config, notes = with_other_images(config, state)
    _print(notes + share_note(config))
    from official_resnet import resnet_run_loop

    results = resnet_run_loop.evaluate(config)
    _print(doubts(config, results['test'], state))
    top_5 = f', top-5 {results["accuracy_top_5"]:.4f}' if results['test'].resize else ''
    print(
        f'epoch {results["epoch"]}, step {results["step"]}: test loss {results["loss"]:.4f}, '
        f'{"top-1" if top_5 else "test accuracy"} {results["accuracy"]:.4f}{top_5} ({results["num_images"]} images)'
    )
    if options.eval_report or options.ten_crop:
        _report(results['model'], results['test'], config, options)
    if options.export_dir:
        export_net(results['model'], config, options)
    return 0


def _require_same(values, asked, stored, row, given):
    """Raise UserError if a flag that was passed differs from the stored training."""
    names = given | (flags.recipe_of(values, row).keys() if 'recipe' in given else set())
    names |= flags_of(ResNetSpec).keys() if 'variant' in given else set()
    asked = dataclasses.replace(asked, dtype=devices.known_dtype(asked.dtype))
    ours, theirs = _settings(asked), _settings(stored)
    for name in _SOURCES:
        ours[name], theirs[name] = asked.dataset, stored.dataset
    if 'num_classes' in given:  # for ImageNet, 1000 and 1001 mean without and with the background
        names |= {'background_class'}
    for name in sorted(names - _OF_RUN - {'recipe', 'variant'}):
        if ours[name] != theirs.get(name):
            of_spec = 'variant' in given and name in flags_of(ResNetSpec)
            whole = f'--variant={values.variant}' if of_spec else f'--recipe={values.recipe}'
            flag = f'--{name}' if name in given or not (of_spec or 'recipe' in given) else whole
            raise UserError(
                f'{flag}: {name} would be {ours[name]}, but the run in {asked.machine.model_dir} has '
                f'{theirs.get(name)}; leave {flag} out'
            )
    if 'use_weights' in given and stored.weight_averaging == 'none':
        fault = f'--use_weights={asked.use_weights}, but the run in {asked.machine.model_dir} averaged no weights'
        raise UserError(f'{fault}; leave it out')
    if not stored.views:
        for name in given & {'eval_image_size', 'image_bytes_as_serving_input'}:
            raise UserError(f'--{name} needs encoded images, and {stored.dataset} has none; leave it out')


def _settings(config):
    """Return {flag: value} for a TrainConfig and its parts, without the machine."""
    parts = filter(None, (config, config.spec, config.schedule, config.views, config.augmentation))
    found = {flag: getattr(part, field.name) for part in parts for flag, field in flags_of(type(part)).items()}
    return found | {'resnet_size': config.spec.resnet_size}


def write_outputs(model: 'keras.Model', config: TrainConfig, options: RunOptions) -> None:
    """Write what --report and --export_dir ask for at the end of a training, and print the paths.

    Without --report, a line says if there is a report that is older.
    """
    folder = pathlib.Path(str(config.machine.model_dir))
    if options.report:
        print('making the report')  # another process tests the network again
        names = 'report.html', 'report.json', 'per_class.csv', 'confusion.csv', 'images.csv'
        for path in train_program.made('report_main', folder, *names):
            print(f'  {path}')
    else:
        _print(same_run.report_note(folder))
    if options.export_dir:
        export_net(model, config, options)


def export_net(model: 'keras.Model', config: TrainConfig, options: RunOptions) -> None:
    """Write the SavedModel for --export_dir, and print its path."""
    from official_resnet import resnet_run_loop
    from official_resnet.inference import export

    test, folder = resnet_run_loop.read(config, 'test'), options.export_dir or ''
    count = min(test.num_images, 16)
    encoded = test.example_bytes(count) if options.image_bytes_as_serving_input else None
    views, examples = (test.views, encoded) if encoded else (None, test.example_images(count))
    path = export.export(model, test.normalization, test.image_shape, folder, examples, views)
    print(f'  {path} (SavedModel, reloaded and compared)')


def _evaluate_net(values, asked, options, row):
    """Evaluate a trained or converted network on images that are prepared as its card says."""
    machine, path = asked.machine, asked.pretrained
    from official_resnet.inference import network_files

    network_files.find(path)
    train_program.find_data(asked, options, row, ('test',))
    own_images.require_other_files(asked.dataset, options.eval_report, '--eval_report')
    _print(share_note(asked, '; --validation_fraction=1 evaluates all'))
    devices.start_tensorflow(machine.inter_op_threads, machine.intra_op_threads)
    from official_resnet.inference import predict

    if values['model_dir'].present:
        print(f'evaluating {path}, not the run in --model_dir={machine.model_dir}')
    model, card = predict.load(path)
    test, view = open_for_card(asked, card, path)
    _report(model, with_classes_of(card, test, path), asked, options, view)
    return 0


def open_for_card(
    config: TrainConfig, card: 'card_reader.Card', path: str | os.PathLike
) -> 'tuple[Split, Callable | None]':
    """Return (the test split of a config, prepared as the card of the network `path` says; its view, if encoded).

    The images are encoded if the config has views. The labels are still those of the data set.
    """
    from official_resnet.inference import predict
    from official_resnet.inputs import datasets

    views = config.views and dataclasses.replace(config.views, test_size=card.net_size[0])
    if views and not card.uses_exif:
        views = dataclasses.replace(views, uses_exif=False)
    folder = config.folder_options() | {'image_size': card.net_size[0], 'channels': card.num_channels}
    test = datasets.open_split(config.dataset, 'test', data_dir=config.machine.data_dir, views=views, folder=folder)
    if test.input_shape != (*card.net_size, card.num_channels):
        raise UserError(
            f'{path} takes images of shape {(*card.net_size, card.num_channels)}, but those of {test.name} have '
            f'{test.input_shape}; pass images of this size'
        )
    if test.views and not test.views.uses_exif:  # ILSVRC2012 stays as it was published
        card = dataclasses.replace(card, uses_exif=False)
    return test.with_normalization(card.normalization), predict.encoded_view(card) if test.views else None


def with_other_images(config: TrainConfig, state: Mapping[str, Any]) -> tuple[TrainConfig, list[str]]:
    """Return the config of an evaluation, changed to test on all images of a folder or list that is not the training's.

    A line says so. If the folder was moved, or a list has its images, only those that were set aside are tested, as
    their content tells. `state` is that of the checkpoint.
    """
    trained, contents = state.get('config', {}).get('dataset'), state.get('data', {})
    if config.dataset == trained or 'test_content' not in contents or not _set_aside(config):
        return config, []
    from official_resnet import resnet_run_loop

    for fraction in (config.validation_fraction, 1):  # the second finds a list of the test images
        config = dataclasses.replace(config, validation_fraction=fraction)
        if resnet_run_loop.read(config, 'test').content() == contents['test_content']:
            return config, []
    folder = config.dataset.removeprefix('folder:')
    line = f'the images of {folder} are not the test images of the training, so none of them is set aside; '
    return config, [f'{line}if it has seen some of them, the accuracy may be too high']


def _print(lines):
    for line in lines:
        print(one_line(line))


def share_note(config: TrainConfig, remedy: str = '') -> list[str]:
    """Return a line on how many images of --image_folder are evaluated, if they were set aside at random."""
    if not (listing := _set_aside(config)):
        return []
    num_test, num_train = (len(listing.splits[name]) for name in ('test', 'train'))
    chosen = f'set aside by --validation_fraction={config.validation_fraction:g} and --seed={config.seed}'
    folder = config.dataset.removeprefix('folder:')
    return [f'evaluating {num_test} of the {num_test + num_train} images of {folder}: those {chosen}{remedy}']


def doubts(config: TrainConfig, test: 'Split', state: Mapping[str, Any]) -> list[str]:
    """Return lines if the training may have seen some of the test images of a folder, or has images like them.

    One more image in a folder changes which images are set aside. `state` is that of the checkpoint.
    """
    if not (listing := _listing(config)):
        return []
    from official_resnet.inputs import image_folder

    folder, lines = config.dataset.removeprefix('folder:'), []
    stored = state.get('data', {}).get('test_content')  # older checkpoints have none
    if stored and stored != test.content() and _set_aside(config):
        lines.append(
            f'the images of {folder} are not those with which the training began, so it may have seen some of these '
            'test images, and the accuracy may be too high; put back those images, or put others into a folder test'
        )
    return lines + image_folder.copy_notes(listing, folder)


def _set_aside(config):
    """Return the Listing of the images of a config if those for testing are set aside at random, else None."""
    listing = _listing(config)
    return listing if listing and not listing.test_name and config.validation_fraction < 1 else None


def _listing(config):
    """Return the Listing of the images of a config, None if they are not the user's own."""
    if not config.dataset.startswith('folder:'):
        return None
    from official_resnet.inputs import image_folder

    folder = config.dataset.removeprefix('folder:')
    return image_folder.list_files(folder, config.validation_fraction, config.seed)


def with_classes_of(card: 'card_reader.Card', test: 'Split', path: str | os.PathLike) -> 'Split':
    """Return a test split with the classes of a card; print how many of its own are among them, if not all are."""
    from official_resnet.inputs import classes

    if not card.has_names:
        if test.views and card.num_classes == test.num_classes + 1:
            test = test.with_background()
        if card.num_classes < test.num_classes:
            raise UserError(
                f'{path} has {card.num_classes} classes, but {test.name} has {test.num_classes}; pass images of its '
                'classes'
            )
        print(f'the card of {path} names no classes, so those of {test.name} are taken in their order')
        return test
    outputs = classes.match(test.class_names, test.class_ids, card.names, card.ids)
    unknown = [name for name, i in zip(test.class_names, outputs, strict=True) if i < 0]
    if len(unknown) == test.num_classes:
        names = classes.nearest(unknown, card.names)
        fault = f'no class of {test.name} ({classes.listed(unknown)}) is one of {path} ({names})'
        raise UserError(f'{fault}; name the folders by its classes or their WordNet ids, or pass another network')
    count = test.num_classes - len(unknown)
    if not count == test.num_classes == card.num_classes:
        print(f'{count} of the {test.num_classes} classes are among the {card.num_classes} of {path}')
    if unknown:
        folded = {name.casefold() for name in unknown}
        near = [name for name in card.names if name.casefold() in folded]
        remedy = f'; rename them if they are {classes.listed(near)}' if near else ''
        print(f'the images of {classes.listed(unknown)} are left out{remedy}')
    return test.with_classes(card.names, card.known_ids, outputs)


def _report(model, test, config, options, view=None):
    """Print top-1 and top-5 accuracy; with --eval_report also per class, with --ten_crop also over ten crops."""
    from official_resnet.inputs import encoded
    from official_resnet.reports import evaluate

    names, ids = evaluate.names_of_outputs(test, model.output_shape[-1])
    name = 'one crop' if test.resize else 'test'
    views = {name: view}
    if options.ten_crop:
        views['ten crops'] = lambda image: encoded.ten_views(image, test.views)
    for name, function in views.items():
        batches = test.evaluation_batches(config.batch_size, view=function)
        with test.input_errors():
            found = evaluate.guess(model, batches, 'plain' if name == 'ten crops' else config.test_views)
        report = evaluate.report(found.labels, found.classes, names, ids)
        top_5 = '' if report['top5'] is None else f', top-5 {report["top5"]:.4f}'
        others = f', without {left} of other classes' if (left := test.num_images - len(found.labels)) else ''
        print(f'{name}: top-1 {report["top1"]:.4f}{top_5} ({report["n"]} images{others})')
        if options.eval_report and name != 'ten crops':
            print('\n'.join(evaluate.format_report(report)))
            evaluate.write(report, options.eval_report)
            print(f'report.json, per_class.csv and confusion.csv are in {options.eval_report}')
