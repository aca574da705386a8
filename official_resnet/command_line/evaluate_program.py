"""What --eval_only and --export_dir of a training program do."""

import dataclasses
import os
import pathlib

from official_resnet.command_line import train_program
from official_resnet.errors import UserError
from official_resnet.training import devices


def run(values, config, options, row):
    """Evaluate the newest checkpoint of model_dir, with the network and data set stored in it."""
    machine = config.machine
    devices.start_tensorflow(machine.inter_op_threads, machine.intra_op_threads)
    from official_resnet import checkpoints, resnet_run_loop

    asked = config
    found = checkpoints.restore_latest(pathlib.Path(machine.model_dir) / 'checkpoints')
    if not found and config.pretrained and row.streams:
        return _evaluate_converted(config, options, row)
    if not found:
        raise UserError(
            f"model_dir '{machine.model_dir}' has no checkpoint; train there first, or pass another --model_dir"
        )
    config = resnet_run_loop.TrainConfig.from_json(found[1]['config'])
    data_dir = os.path.expanduser(values.data_dir)
    if options.image_folder:  # the same classes, other images or another place
        config = dataclasses.replace(config, dataset=f'folder:{os.path.abspath(options.image_folder)}')
    if config.dataset.startswith('folder:') or (config.dataset.startswith('tfds:') and not values['data_dir'].present):
        data_dir = None
    config = config.with_machine(
        model_dir=machine.model_dir,
        data_dir=data_dir,
        num_gpus=machine.num_gpus,
        distribution_strategy=machine.distribution_strategy,
    )
    train_program.find_data(config, options, row)
    if config.views and values['eval_image_size'].present if row.streams else False:
        config = dataclasses.replace(config, views=dataclasses.replace(config.views, test_size=asked.views.test_size))
    results = resnet_run_loop.evaluate(config)
    top_5 = f', in the top 5 {results["accuracy_top_5"]:.4f}' if config.views else ''
    print(
        f'epoch {results["epoch"]}, step {results["step"]}: test loss {results["loss"]:.4f}, '
        f'test accuracy {results["accuracy"]:.4f}{top_5} ({results["num_images"]} images)'
    )
    if config.views and (options.eval_report or options.ten_crop):
        _report(results['model'], results['test'], config.batch_size, options)
    if options.export_dir:
        export_net(results['model'], config, options)
    return 0


def export_net(model, config, options):
    """Write the SavedModel of --export_dir, and say where it is."""
    from official_resnet import resnet_run_loop
    from official_resnet.inference import export

    test, folder = resnet_run_loop.read(config, 'test'), options.export_dir
    count = min(test.num_images, 16)
    encoded = test.example_bytes(count) if options.image_bytes_as_serving_input else None
    if encoded:
        path = export.export_bytes(model, test.normalization, test.views, folder, encoded)
    else:
        path = export.export(model, test.normalization, test.image_shape, folder, test.example_images(count))
    print(f'  {path} (SavedModel, reloaded and compared)')


def _evaluate_converted(config, options, row):
    """Evaluate a .keras file that is no training's, its images prepared as its card says."""
    from official_resnet.inference import predict
    from official_resnet.inputs import datasets
    from official_resnet.inputs.images import Views

    path = config.pretrained
    model, card = predict.load(path)
    train_program.find_data(config, options, row)
    views = Views(test_size=card.net_size[0])
    test = datasets.open_split(config.dataset, 'test', data_dir=config.machine.data_dir, views=views)
    if card.num_classes == test.num_classes + 1:
        test = test.with_background()
    if card.num_classes < test.num_classes:
        raise UserError(
            f'{path} has {card.num_classes} classes, the pictures of {test.name} have {test.num_classes}; '
            'pass the pictures of its classes'
        )
    test = test.with_normalization(card.normalization)
    _report(model, test, config.batch_size, options, predict.encoded_view(card))
    return 0


def _report(model, test, batch_size, options, view=None):
    """Print top-1 and top-5, class by class where a report is asked for; also of ten crops, if they are."""
    from official_resnet.inputs import augmentation
    from official_resnet.reports import evaluate

    unnamed = model.output_shape[-1] - test.num_classes  # logits for which there are no images
    names = [*test.class_names, *(f'class {test.num_classes + i}' for i in range(unnamed))]
    ids = [*test.class_ids, *[None] * unnamed] if test.class_ids else None
    views = {'one crop': view}
    if options.ten_crop:
        views['ten crops'] = lambda picture: augmentation.ten_views(picture, test.views)
    for name, function in views.items():
        batches = test.evaluation_batches(batch_size, view=function)
        with test.input_errors():
            labels, guesses = evaluate.guess(model, batches)
        report = evaluate.report(labels, guesses, names, ids)
        top_5 = '' if report['top5'] is None else f', top-5 {report["top5"]:.4f}'
        print(f'{name}: top-1 {report["top1"]:.4f}{top_5} ({report["n"]} images)')
        if options.eval_report and name == 'one crop':
            print('\n'.join(evaluate.format_report(report)))
            evaluate.write(report, options.eval_report)
            print(f'report.json, per_class.csv and confusion.csv are in {options.eval_report}')
