"""Classify images with a network that was trained here or converted.

    python predict_main.py --model /tmp/cifar10_model cat.jpg         # the model_dir of a training program
    python predict_main.py --model demo_model/best.keras cat.jpg      # the network of its best epoch
    python predict_main.py --model resnet50.keras --top 3 holiday/    # a file that checkpoints_tools/read_ckpt.py wrote
    python predict_main.py --model resnet50.keras --csv holiday/ > holiday.csv
    python predict_main.py --model resnet50.keras --explain cat.jpg   # also show where it looked
    python predict_main.py --model demo_model --copy_to=sorted DIR    # sort copies into sorted/CLASS
    python predict_main.py --model resnet50 cat.jpg                   # published weights, fetched by their name
    python predict_main.py --model resnet50 --features=pre_logits \\
        --output=features.npz DIR

On two cores, while other jobs were running, akamaster's ResNet-20 named 82 of 100 test images of CIFAR-10 (as JPEG)
correctly in 11 seconds (n = 1), most of which TensorFlow needed to start. ImageNet networks: not yet measured.

The card beside the model, here resnet50.card.json, says how an image becomes the network's input. A model without a
card is refused. Folders are searched for images. What cannot be read is reported, skipped and counted on the last line;
the exit code is 1 if a path that was passed does not exist. In a terminal, long paths are shortened to fit the table
into its width. With --json, each image becomes one line: file, classes: [{index, name, id,
probability}], is_unsure, copy: a file or null, explanation: {index, name, file} or null. With --csv, it becomes a row,
with a column for each of them, and further columns for the classes of rank 2 to --top.

--copy_to copies each image into a folder for its likeliest class, or into _unsure if the probability of that class is
below --min_probability. Nothing is overwritten: a copy that is there already stays, and another image of that name gets
a number. The same command, run again, changes nothing, even if the copies lie in the folder that is searched. The last
line counts the new copies and those that were there already.

python -m official_resnet.weights.pretrained lists the names of published weights. --features writes a row for each
image into --output (.npz, .csv or .parquet): `pre_logits` is the input of the classifier, `group3` the mean over the
positions of the third residual group. If it is stopped, the same command continues.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

try:
    from absl import flags
    from tqdm import tqdm

    from official_resnet import files, folders
    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
    from official_resnet.weights import pretrained
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

if TYPE_CHECKING:
    from official_resnet.inference.card_reader import Card

NUM_TO_COMPILE = 32  # least number of images for which folding and compiling, which takes seconds, is worth it
_NO_IMAGE = 'no image could be read; pass files or folders of images'
_SOURCE = 'Source SHA-256'  # key of a PNG's text: only an explanation of the same image is overwritten
_BAR = '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'
EXPLANATION_SIZE = 224  # least height or width of an image in an explanation, in pixels


def define_flags() -> flags.FlagValues:
    """Return the flags of this program."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow images
    define = definer.Definer(values)
    text = 'The network: a .keras file with its card beside it, a model_dir, or the name of published weights.'
    define.string('model', None, text, 'm')
    define.integer('top', 5, 'Number of classes to name for each image.', None, 1, None)
    define.boolean('json', False, 'Print one line of JSON for each image.')
    define.boolean('csv', False, 'Print CSV for a spreadsheet, with one row for each image.')
    define.string('copy_to', None, 'Copy each image into a folder for its class, below this folder.')
    text = 'Mark an image as unsure if its best probability is lower; --copy_to then copies it into _unsure.'
    define.number('min_probability', 0.0, text, None, 0.0, 1.0)
    define.string('labels', None, "Text file of class names, one on each line, to use in place of the card's.")
    define.boolean('explain', False, 'Save NAME_grad_cam.png: where the network sees the class (arXiv:1610.02391).')
    define.string('explain_class', None, 'Number, name or WordNet id of the class to explain; default: the likeliest.')
    define.string('output_dir', '.', 'Folder to save explanations in.')
    define.string('features', None, 'Write features, not classes: pre_logits, stem, group1, group2, ... or logits.')
    define.string('output', None, 'The file of --features: NAME.npz, NAME.csv or NAME.parquet.')
    define.known('cache_dir', None)
    define.integer('batch_size', 8, 'Number of images processed at once.', 'bs', 1, None)
    text = 'pass a .keras file, a model_dir or a name that python -m official_resnet.weights.pretrained lists'
    flags.register_validator('model', bool, text, values)
    return values


def main(argv: Sequence[str]) -> int:
    """Run the program with the arguments argv, the program's name first, and return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run, takes_arguments=True)


def _run(values, arguments):
    if not arguments:
        raise UserError('no images; pass files or folders of images')
    if values.explain_class is not None and not values.explain:
        raise UserError('--explain_class needs --explain; pass both')
    for name in ('features', 'output'):
        if values[name].value is not None and None in (values.features, values.output):
            raise UserError(f'--{name} needs --{"output" if name == "features" else "features"}; pass both')
    for name in ('explain', 'json', 'csv', 'copy_to', 'min_probability'):
        if values.features and values[name].value:
            raise UserError(f'--features writes a file, without --{name}; leave it out')
    if values.json and values.csv:
        raise UserError('--json and --csv cannot be used together; pass one of them')
    if values.copy_to == '':
        raise UserError('--copy_to= is empty; pass a folder')
    writes_files = values.features or values.explain or values.copy_to  # a reader that leaves is an error for these
    with contextlib.nullcontext() if writes_files else program.reader_may_leave():
        return _answer(values, arguments)


def _answer(values, arguments):
    """Find the network and the images, and write features or name the images."""
    from official_resnet import resnet_variants
    from official_resnet.inference import feature_file
    from official_resnet.training import devices

    if values.features:
        feature_file.check_output(values.output)
    path, published = values.model, pretrained.find(values.model)
    if published:  # mistakes are reported before anything is fetched
        _require_features(values.features, resnet_variants.find_spec(published.network), has_head=True)
    else:
        network = _network(path, values.features)
    paths, others, missing = find_images(arguments, values.copy_to)
    if not paths:
        raise UserError(_NO_IMAGE)
    if published:
        with contextlib.redirect_stdout(sys.stderr):  # what is fetched is not part of the output
            path = pretrained.resolve(path, values.cache_dir)
        network = _network(path, values.features)
    counts = (_write_features if values.features else _name_images)(values, path, network, paths, devices)
    num_read = next(iter(counts.values()))
    if skipped := len(paths) - num_read + len(others) + len(missing):
        counts['skipped'] = skipped
    if len(counts) > 1:
        _say(', '.join(f'{count} {what}' for what, count in counts.items()) + '\n', sys.stderr)
    return 1 if missing else 0


def _start(path, devices):
    """Start TensorFlow, which takes seconds; a terminal is told, as is the bar."""
    if sys.stderr.isatty():
        _say(one_line(f'loading {path}; TensorFlow starts first') + '\n', sys.stderr)
    devices.start_tensorflow(1)  # one op at a time: the fastest in inference


def _network(path, features):
    """Return the files of the network, without TensorFlow. Raise UserError if it lacks the layers of --features."""
    from official_resnet.inference import network_files

    network = network_files.find(path, needs_head=not features)
    _require_features(features, network.card.spec, network.card.num_classes > 0)
    if network.weights is not None and network.path.suffix != pathlib.Path(path).suffix:
        _say(f'{path} has no model.keras yet; {network.path} is used\n', sys.stderr)
    return network


def _require_features(name, spec, has_head):
    """Raise UserError if --features is passed and names no layers of a network of this spec."""
    known = ['stem', *(f'group{i + 1}' for i in range(len(spec.group_blocks))), 'pre_logits']
    known += ['logits'] if has_head else []
    if name not in (None, *known):
        raise UserError(f'--features={name} must be one of {", ".join(known)}')


def _name_images(values, path, network, paths, devices):
    """Print the likeliest classes of each image, and copy or explain it; return {what was done: number of images}."""
    from official_resnet.inference import answers, card_reader, sorted_copies

    card = network.card
    card = card_reader.with_names(card, values.labels) if values.labels else card
    explained, counts = _explained_class(values, card), {'classified': 0}
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    as_table = functools.partial(answers.table, width=width)
    write_format = answers.json_lines if values.json else answers.csv_rows if values.csv else as_table
    header, text_of = write_format(paths, card, values.top)
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(_copier(values, card, counts)) if values.copy_to else None
        _start(path, devices)
        from official_resnet.inference import predict

        model, _ = predict.load(path)
        explain = _explainer(values, model, card, paths, explained) if values.explain else None
        call = _compiled(model, card, paths, values)
        for batch, images in stack.enter_context(contextlib.closing(_batches(paths, card, values.batch_size))):
            if not batch:
                continue
            if not counts['classified']:
                is_utf8 = 'utf' in (sys.stdout.encoding or 'utf').lower()
                _say(header if is_utf8 else header.removeprefix('\ufeff'))
            counts['classified'] += len(batch)
            probabilities = predict.probabilities(call, card, images)
            found = predict.guesses(card, probabilities, values.top)
            explanations = explain(batch, images, probabilities) if explain else [None] * len(batch)
            for file, guesses, explanation in zip(batch, found, explanations, strict=True):
                is_unsure = guesses[0].probability < values.min_probability
                copied = copy(file, sorted_copies.UNSURE if is_unsure else guesses[0].index) if copy else None
                _say(text_of(answers.Answer(file, guesses, is_unsure, copied, explanation)))
    if not counts['classified']:
        raise UserError(_NO_IMAGE)
    return counts


@contextlib.contextmanager
def _copier(values, card, counts):
    """Yield a function that copies a file into the folder of a class, given its number, or into another folder.

    It adds the copies to `counts`.
    """
    from official_resnet.inference import sorted_copies

    folder = pathlib.Path(values.copy_to).expanduser()
    names = dict(enumerate(sorted_copies.folder_names(card.names, card.ids)))
    counts |= {'copied': 0, 'already there': 0}
    with sorted_copies.copying(folder) as copy:

        def count(path, place) -> pathlib.Path:
            copied, is_new = copy(path, names.get(place, place))
            counts['copied' if is_new else 'already there'] += 1
            return copied

        yield count


def _write_features(values, path, network, paths, devices):
    """Write the features of each image into --output; return {'written': number of images}."""
    from official_resnet.inference import feature_file

    card, name, size = network.card, values.features, values.batch_size
    with open(network.path, 'rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    about = {'--model': sha256, '--features': name, '--batch_size': size, 'images': feature_file.digest(paths)}
    _start(path, devices)
    import keras

    from official_resnet.inference import grad_cam, predict

    model, _ = predict.load(path, needs_head=False)
    output = grad_cam.features(model).output[name]
    output = keras.layers.GlobalAveragePooling2D()(output) if len(output.shape) == 4 else output
    call = _compiled(keras.Model(model.input, output), card, paths, values)
    with feature_file.collecting(values.output, about, output.shape[-1]) as rows:
        if rows.num_batches:
            print(f'{rows.num_rows} of {len(paths)} images are already done')
        with contextlib.closing(_batches(paths[rows.num_batches * size :], card, size)) as batches:
            for batch, images in batches:
                found = call(predict.network_input(card, images)).numpy() if batch else []
                rows.add([str(file) for file in batch], found)
        if not rows.num_rows:
            raise UserError(_NO_IMAGE)
        print(f'{values.output}: {name} of {rows.num_rows} images, {output.shape[-1]} features each')
        return {'written': rows.num_rows}


def _compiled(model, card, paths, values):
    """Return the model, compiled if there are enough images."""
    from official_resnet.inference import rewrite

    is_worth_it = len(paths) >= max(NUM_TO_COMPILE, 2 * values.batch_size)
    return rewrite.compile_model(model, (*card.net_size, card.num_channels)) if is_worth_it else model


def _batches(paths, card, batch_size):
    """Yield (paths, images uint8 [n, h, w, c]) of the images that can be read, and report the others on stderr.

    A terminal also shows a bar, if there is more than one batch.
    """
    import numpy as np

    from official_resnet.inference import predict

    is_hidden = True if len(paths) <= batch_size else None  # None: unless stderr is a terminal
    shape = {'unit': ' images', 'leave': False, 'dynamic_ncols': True, 'bar_format': _BAR}
    with tqdm(total=len(paths), disable=is_hidden, **shape) as bar:
        for start in range(0, len(paths), batch_size):
            batch, images = [], []
            for path in paths[start : start + batch_size]:
                try:
                    images.append(predict.prepare(path, card))
                    batch.append(path)
                except UserError as error:
                    _skip(error)
            yield batch, np.stack(images) if images else None
            bar.update(min(batch_size, len(paths) - start))


def find_images(
    arguments: Sequence[str], copy_to: str | None = None
) -> tuple[list[pathlib.Path], list[pathlib.Path], list[pathlib.Path]]:
    """Return (the image files that the arguments name or contain, in order; other files; arguments that do not exist).

    What is skipped is reported on stderr. What earlier runs wrote is left out: explanations that lie in the folders,
    and everything in the folder `copy_to`.

    Raises:
        UserError: An argument is a URL, or lies in `copy_to`.
    """
    from official_resnet.inputs import classes, images

    paths, skipped, missing = [], [], []
    copies = os.path.join(os.path.realpath(os.path.expanduser(copy_to)), '') if copy_to else None

    def is_copy(path) -> bool:
        return copies is not None and os.path.join(os.path.realpath(path), '').startswith(copies)

    for argument in arguments:
        path = pathlib.Path(argument)
        if '://' in argument:
            raise UserError(f'{argument} is not a local file; download it and pass the file')
        if is_copy(path):
            raise UserError(f"'{path}' lies in --copy_to={copy_to}; pass another --copy_to, or images outside of it")
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except OSError as error:
            is_absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
            _skip(f"there is no '{path}'" if is_absent else f"cannot read '{path}': {error.strerror}")
            missing.append(path)
            continue
        found, others = [path], []
        if is_folder:
            found, others = ([file for file in sorted(some) if not is_copy(file)] for some in images.find_files(path))
            found = [file for file in found if not ('_grad_cam' in file.name and _source_of(file))]
        if others:
            _skip(f'files in no known format of images ({len(others)}): {classes.listed(others)}')
            if heic := images.heic_line(others):
                _skip(heic)
        if not found:
            _skip(f"'{path}' has no images ({' '.join(images.SUFFIXES)})")
        paths += found
        skipped += others
    return paths, skipped, missing


def class_index(card: 'Card', text: str) -> int:
    """Return the number of the class that `text` gives as a number, a name or a WordNet id.

    Raises:
        UserError: There is no such class, or several classes have this name.
    """
    from official_resnet.inputs import classes

    name = classes.canonical(text)
    found = [i for i in range(card.num_classes) if name in (classes.canonical(card.names[i]), card.ids[i])]
    if text.isdecimal() and not found:  # a class may be called '10'
        found = [int(text)] if int(text) < card.num_classes else []
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ', '.join(map(str, found))
        raise UserError(f"--explain_class '{text}' is the name of classes {numbers}; pass one of these")
    remedy = f'pass one of {classes.nearest([text], card.names)}, or a number, 0..{card.num_classes - 1}'
    raise UserError(f"--explain_class '{text}' is not a class of the network; {remedy}")


def _explained_class(values, card):
    """Return the number of the class of --explain_class, or None. Raise UserError if a folder cannot be written to."""
    chosen = None if values.explain_class is None else class_index(card, values.explain_class)
    if values.explain:
        folders.require_writable(pathlib.Path(values.output_dir).expanduser(), 'output_dir')
    if values.copy_to:
        folders.require_writable(pathlib.Path(values.copy_to).expanduser(), 'copy_to')
    return chosen


def _explainer(values, model, card, paths, chosen):
    """Return a function that saves a page for each image, uint8 [n, h, w, c], and returns the entries of --json."""
    from PIL import PngImagePlugin

    from official_resnet.inference import grad_cam, predict

    folder = pathlib.Path(values.output_dir).expanduser()
    taken = {path.resolve() for path in paths}  # no image and no explanation is overwritten
    (rows, columns), (net_rows, net_columns) = card.size, card.net_size
    top, left = (net_rows - rows) // 2, (net_columns - columns) // 2  # place of the image inside its padding

    @functools.cache  # one line for each class
    def told(index, name) -> str:
        remedy = 'install one that has them, such as Noto Sans CJK'
        _say(f"no font here has the letters of '{name}', so its pages say class {index}; {remedy}\n", sys.stderr)
        return f'class {index}'

    def explain(paths, images, probabilities) -> list[dict]:
        classes = [int(row.argmax()) if chosen is None else chosen for row in probabilities]
        maps = grad_cam.grad_cam(model, predict.network_input(card, images), classes)
        maps = maps[:, top : top + rows, left : left + columns]
        entries = []
        for path, image, cam, index, row in zip(paths, images, maps, classes, probabilities, strict=True):
            name = card.names[index]
            title = one_line(name) if grad_cam.can_draw(one_line(name)) else told(index, one_line(name))
            page = grad_cam.page(image, cam, f'{title}, {row[index]:.1%}', EXPLANATION_SIZE)
            entries.append({'index': index, 'name': name, 'file': save(path, page)})
        return entries

    def save(image_path, page) -> str:
        source = hashlib.sha256(files.read_bytes(image_path, 'image_bytes')).hexdigest()
        about = PngImagePlugin.PngInfo()
        about.add_text(_SOURCE, source)
        path, number = folder / folders.fitting_name(image_path.stem, '_grad_cam.png'), 1
        while path.resolve() in taken or (path.exists() and _source_of(path) != source):
            number += 1
            path = folder / folders.fitting_name(image_path.stem, f'_grad_cam_{number}.png')
        taken.add(path.resolve())
        with files.write_errors(f"'{path}'", ' or pass another --output_dir'):
            files.make_folder(folder)
            with files.replacing(path) as part:
                page.save(part, pnginfo=about)
        return str(path)

    return explain


def _source_of(path):
    """Return the SHA-256 of the image that an explanation in a file explains, or None for any other file."""
    from PIL import Image

    try:
        with open(path, 'rb', opener=files.plain) as file, Image.open(file) as image:
            return image.info.get(_SOURCE)
    except OSError:
        return None


def _say(text, file=None):
    """Print a text at once, to standard output or a file, above the bar."""
    tqdm.write(text, file or sys.stdout, end='')
    (file or sys.stdout).flush()


def _skip(reason):
    _say(f'skipped: {one_line(reason)}\n', sys.stderr)


def run() -> None:
    """Run with the arguments of the command line and exit."""
    sys.exit(main(sys.argv))


if __name__ == '__main__':
    run()
