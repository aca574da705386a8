"""Report on a network as one HTML file, or compare several.

    python report_main.py demo_model                            # the model_dir of a training program
    python report_main.py demo_model/best.keras --language=zh   # the network of its best epoch, in Chinese
    python report_main.py resnet50.keras --image_folder DIR     # a network that was converted, on your images
    python report_main.py resnet20.keras --dataset=cifar10 --data_dir ~
    python report_main.py run_a run_b run_c --output_dir DIR    # compare them

The page has the curves of the training, the accuracy with its confidence interval, precision, recall and F1 of each
class, the confusions, the calibration, the most confident mistakes and the least confident hits with Grad-CAM, filters
and feature maps of an image (--image), the architecture and the configuration. It works offline, needs no server, and
has no JavaScript. Beside report.html are report.json, per_class.csv, confusion.csv, and images.csv with a row for each
image. A comparison writes comparison.html, .json and .csv.

On two cores, while other jobs were running, the report on a ResNet-20 and the 10,000 test images of CIFAR-10 took 62
and 85 seconds (n = 2); the page has 0.3 MB. Networks and images of ImageNet: not yet measured.

A run is tested on the test images of its own data set. If they have moved, pass --data_dir, --image_folder or
--image_list. The report of a model_dir is written into it, that of a file NAME.keras into NAME_report beside it, unless
--output_dir says otherwise. Training programs make the page at their end with --report.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

try:
    from absl import flags

    from official_resnet import checkpoints, damage, files
    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
    from official_resnet.inputs import datasets, listing, other_datasets
    from official_resnet.reports import report, report_texts
    from official_resnet.resnet_spec import POOLED_STEMS
    from official_resnet.weights import pretrained
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

DATASETS = [name for name in other_datasets.DATASETS if name != 'synthetic224']  # that one only measures speed


class Source(NamedTuple):
    """A network to report on: what the user called it, and what is known about it before TensorFlow starts."""

    name: str
    path: str
    network: Any  # network_files.NetworkFiles
    model_dir: pathlib.Path | None  # of the run that it is from
    config: Any  # the TrainConfig that opens its test images
    is_run: bool  # whether `config` is that of the run; else images are prepared as the card says


def define_flags() -> flags.FlagValues:
    """Return the flags of this program."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow networks
    define = definer.Definer(values)
    define.string('data_dir', None, 'Folder of the data set; default: that of the run.', 'dd')
    define.enum('dataset', None, DATASETS, 'Data set to test on; default: that of the run.')
    define.string('image_folder', None, 'Your own images to test on, in a subfolder for each class.')
    define.string('image_list', None, 'Your own images to test on, in a CSV file that begins with path,label.')
    define.string('output_dir', None, 'Folder to write into; default: the model_dir, or NAME_report beside NAME.keras.')
    define.enum('language', 'en', report_texts.LANGUAGES, 'Language of the page.')
    define.string('image', None, 'Image whose feature maps are shown; default: the first test image.')
    define.integer('num_images', 12, 'Number of images in each list of the gallery.', None, 0, 200)
    define.integer('batch_size', 64, 'Number of images processed at once.', 'bs', 1, None)
    define.known('cache_dir', None)
    return values


def main(argv: Sequence[str]) -> int:
    """Run the program with the arguments argv, the program's name first, and return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run, takes_arguments=True)


def _run(values, runs):
    from official_resnet.command_line import own_images
    from official_resnet.training import devices

    if not runs:
        raise UserError('no RUN; pass a model_dir, a .keras file or the name of published weights')
    sources = [f'--{name}' for name in ('dataset', 'image_folder', 'image_list') if values[name].value]
    if len(sources) > 1:
        raise UserError(f'{" and ".join(sources)} cannot be used together; pass one of them')
    if values.image and not os.path.isfile(os.path.expanduser(values.image)):
        raise UserError(f"--image='{values.image}' is not a file; pass an image")
    report.require_packages()
    sources = [_source(values, run) for run in runs]
    folder = _output_dir(values, sources[0])
    for source in sources:
        own_images.require_other_files(source.config.dataset, folder, '--output_dir')
    files.say(one_line(f'loading {", ".join(source.name for source in sources)}; TensorFlow starts first'))
    devices.start_tensorflow(1)  # one op at a time: the fastest in inference
    return _report(values, sources[0], folder) if len(sources) == 1 else _compare(values, sources, folder)


def _source(values, name):
    """Return the Source of a network. Raise UserError if its test images are missing, as far as that shows early."""
    from official_resnet.inference import network_files

    published, path = pretrained.find(name), name
    network = None if published else network_files.find(path)
    if published and not (values.dataset or values.image_folder or values.image_list):
        raise UserError(f'{name} is published weights, without test images; pass --image_folder, or --dataset')
    if network is None:
        with contextlib.redirect_stdout(sys.stderr):
            path = pretrained.resolve(name, values.cache_dir)
        network = network_files.find(path)
    model_dir = None if published else _model_dir(pathlib.Path(path).expanduser())
    config, is_run = _config(values, name, network, model_dir)
    datasets.require_data(config.dataset, config.machine.data_dir, config.folder_options(), ('test',))
    return Source(name, path, network, model_dir, config, is_run)


def _model_dir(path):
    """Return the model_dir that a network is from, or None."""
    folder = path if path.is_dir() else path.parents[1] if path.suffix == '.npz' else path.parent
    is_of_run = path.is_dir() or path.suffix == '.npz' or path.name in ('model.keras', 'best.keras')
    return folder if is_of_run and (folder / 'config.json').is_file() else None


def _config(values, name, network, model_dir):
    """Return (the TrainConfig that opens the test images, whether it is that of a run)."""
    from official_resnet.training import same_run
    from official_resnet.training.config import MachineConfig, TrainConfig

    own = values.image_folder or values.image_list
    dataset = f'folder:{listing.absolute(own)}' if own else values.dataset
    data_dir = values.data_dir and os.path.expanduser(values.data_dir)
    if model_dir:
        with damage.reported(model_dir / 'config.json', 'train again, or pass the .keras file elsewhere'):
            config = same_run.from_json((files.read_json(model_dir / 'config.json') or {})['config'])
        is_moved = dataset and dataset.startswith('folder:') and config.dataset.startswith('folder:')
        if dataset in (None, config.dataset) or is_moved:
            config = config.with_machine(data_dir=data_dir or config.machine.data_dir)
            return dataclasses.replace(config, dataset=dataset or config.dataset), True
    if dataset is None:
        raise UserError(f'{name} has no run with test images beside it; pass --image_folder, or --dataset')
    views = None
    if dataset == 'imagenet' or (dataset != 'synthetic' and network.card.spec.stem in POOLED_STEMS):
        from official_resnet.inputs.views import Views

        views = Views()
    card_spec, machine = network.card.spec, MachineConfig(data_dir=data_dir or f'/tmp/{dataset}_data')
    return TrainConfig(card_spec, dataset=dataset, views=views, validation_fraction=1, machine=machine), False


def _output_dir(values, source):
    """Make the folder to write into, and return it. Raise UserError if nothing can be written there."""
    path = pathlib.Path(source.name).expanduser()
    default = path if path.is_dir() else path.with_name(f'{path.stem}_report')
    folder = pathlib.Path(values.output_dir or default).expanduser()
    if not path.exists() and not values.output_dir:  # published weights
        folder = pathlib.Path(folder.name)
    with files.write_errors(f"output_dir '{folder}'", ' or pass another --output_dir'):
        files.make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()  # fail now, not after the test of all images
    return folder


def _subject(values, source, name):
    """Load a network, open its test images, and return the report.Subject."""
    from official_resnet import resnet_run_loop
    from official_resnet.command_line import evaluate_program
    from official_resnet.experiments import architecture_table
    from official_resnet.inference import hub_card, predict

    config, is_run = source.config, source.is_run
    model, card = predict.load(source.path, config.use_weights if is_run else 'average')
    state, notes = _state(source) if is_run else {}, []
    if is_run:
        config, notes = evaluate_program.with_other_images(config, state)
        test, view = resnet_run_loop.read(config, 'test'), None
    else:
        test, view = evaluate_program.open_for_card(config, card, source.name)
    architecture = architecture_table.rows_of(card.spec, model.output_shape[-1], (*card.net_size, card.num_channels))
    if card.experiment:  # its blocks differ from those of the spec
        architecture |= {
            'parameters': [f'{architecture_table.count_parameters(model):,}'],
            'multiply-adds': [f'{architecture_table.count_multiply_adds(model) / 1e6:,.0f} M'],
        }
    test = evaluate_program.with_classes_of(card, test, source.name)
    if is_run:
        notes += evaluate_program.share_note(config) + evaluate_program.doubts(config, test, state)
    notes = [one_line(line) for line in notes]
    for line in notes:
        print(line)
    about = report.about_run(source.model_dir) if source.model_dir else {}
    if source.network.path.suffix == '.npz' and state:
        has_ended = (source.network.path.parents[1] / 'model.keras').is_file()
        about['checkpoint'] = report.progress(state, config) | {'has_ended': has_ended}
    about['origin'] = {'file': source.network.path.name} if source.model_dir else {}
    about['origin'] |= hub_card.of_run(source.network.path, source.network.card_path)
    return report.Subject(
        name,
        model,
        card,
        test,
        test.paths or test.content(),
        view,
        config.test_views if is_run else 'plain',
        values.batch_size,
        about,
        architecture,
        notes,
    )


def _state(source):
    """Return the state in the checkpoint that a network is from, else in the newest of its run, or {}."""
    with contextlib.suppress(UserError):  # it is damaged
        if source.network.path.suffix == '.npz':
            return checkpoints.read(source.network.path)[1]
        found = checkpoints.restore_latest(source.model_dir / 'checkpoints')
        return found[1] if found else {}
    return {}


def _report(values, source, folder):
    from official_resnet.reports import report_page

    subject = _subject(values, source, source.name)
    found = report.guess(subject)
    result = report.collect(subject, found, values.num_images)
    image = values.image and os.path.expanduser(values.image)
    page = report_page.show(
        result, values.language, report_page.gallery(subject, result), report_page.inside(subject, image)
    )
    report.write(result, subject, found, folder)
    report_page.write(page, folder / 'report.html')
    low, high = result['interval']
    print(f'top-1 {result["top1"]:.4f} ({low:.4f} to {high:.4f}), {result["n"]} images; ', end='')
    print(f'calibration error {result["calibration"]["ece"]:.4f}')
    for name in ('report.html', 'report.json', 'per_class.csv', 'confusion.csv', 'images.csv'):
        print(f'  {folder / name}')
    return 0


def _compare(values, sources, folder):
    from official_resnet.reports import report_page

    subjects, guesses, reports = [], [], []
    for source, name in zip(sources, report_page.names_of([source.name for source in sources]), strict=True):
        subject = _subject(values, source, name)
        guesses.append(report.guess(subject))
        reports.append(report.collect(subject, guesses[-1], 0))
        subjects.append(subject)
        print(f'{name}: top-1 {reports[-1]["top1"]:.4f}')
    found = report.compare(reports, subjects, guesses)
    page = report_page.show_comparison(found, values.language)
    report.write_comparison(found, folder)
    report_page.write(page, folder / 'comparison.html')
    for name in ('comparison.html', 'comparison.json', 'comparison.csv'):
        print(f'  {folder / name}')
    return 0


def run() -> None:
    """Run with the arguments of the command line and exit."""
    sys.exit(main(sys.argv))


if __name__ == '__main__':
    run()
