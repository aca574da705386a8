"""Classify images with a network that was trained here or converted.

    python predict_main.py --model /tmp/cifar10_model cat.jpg         # the model_dir of a training program
    python predict_main.py --model demo_model/best.keras cat.jpg      # the network of its best epoch
    python predict_main.py --model resnet50.keras --top 3 holiday/    # a file that checkpoints_tools/read_ckpt.py wrote
    python predict_main.py --model resnet50.keras --json *.jpg > names.jsonl
    python predict_main.py --model resnet50.keras --explain cat.jpg   # also show where it looked
    python predict_main.py --model resnet50 cat.jpg                   # published weights, fetched by their name
    python predict_main.py --model resnet50 --features=pre_logits \\
        --output=features.npz DIR

On two cores, while other jobs were running, akamaster's ResNet-20 named 82 of 100 test images of CIFAR-10 (as JPEG)
correctly in 11 seconds (n = 1), most of which TensorFlow needed to start. ImageNet networks: not yet measured.

The card beside the model, here resnet50.card.json, says how an image becomes the network's input. A model without a
card is refused. Folders are searched for images. An image that cannot be read is reported and skipped. With --json,
each image becomes one line: file, classes: [{index, name, id, probability}], explanation: {index, name, file} or null.

python -m official_resnet.weights.pretrained lists the names of published weights. --features writes a row for each
image into --output (.npz, .csv or .parquet): `pre_logits` is the input of the classifier, `group3` the mean over the
positions of the third residual group. If it is stopped, the same command continues.
"""

import contextlib
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

try:
    from absl import flags

    from official_resnet import files
    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
    from official_resnet.weights import pretrained
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

if TYPE_CHECKING:
    from official_resnet.inference.card_reader import Card

NUM_TO_COMPILE = 32  # least number of images for which folding and compiling, which takes seconds, is worth it
_NO_IMAGE = 'no image could be read; pass files or folders of images'
MAX_NAME_WIDTH = 32  # width limit of the table's column of names, in characters
_SOURCE = 'Source SHA-256'  # key of a PNG's text: only an explanation of the same image is overwritten
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
    define.string('labels', None, "Text file with the names of the classes, one on each line, that replace the card's.")
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


@program.reader_may_leave()
def _run(values, arguments):
    if values.explain_class is not None and not values.explain:
        raise UserError('--explain_class needs --explain; pass both')
    for name in ('features', 'output'):
        if values[name].value is not None and None in (values.features, values.output):
            raise UserError(f'--{name} needs --{"output" if name == "features" else "features"}; pass both')
    if values.features and (values.explain or values.json):
        raise UserError('--features writes a file, without --explain and --json; leave them out')
    from official_resnet import resnet_variants
    from official_resnet.inference import feature_file
    from official_resnet.training import devices

    if values.features:
        feature_file.check_output(values.output)
    path, published = values.model, pretrained.find(values.model)
    if published:  # mistakes are told before anything is fetched
        _require_features(values.features, resnet_variants.find_spec(published.network), has_head=True)
    else:
        network = _network(path, values.features)
    paths = find_images(arguments)
    if not paths:
        raise UserError(_NO_IMAGE)
    if published:
        with contextlib.redirect_stdout(sys.stderr):  # what is fetched is not part of the output
            path = pretrained.resolve(path, values.cache_dir)
        network = _network(path, values.features)
    return (_write_features if values.features else _name_images)(values, path, network, paths, devices)


def _network(path, features):
    """Return the files of the network, which has the layers of --features. TensorFlow is not imported yet."""
    from official_resnet.inference import network_files

    network = network_files.find(path, needs_head=not features)
    _require_features(features, network.card.spec, network.card.num_classes > 0)
    if network.weights is not None and network.path.suffix != pathlib.Path(path).suffix:
        print(f'predict_main: {path} has no model.keras yet; {network.path} is used', file=sys.stderr)
    return network


def _require_features(name, spec, has_head):
    """Raise UserError if --features is passed and names no layers of a network of this spec."""
    known = ['stem', *(f'group{i + 1}' for i in range(len(spec.group_blocks))), 'pre_logits']
    known += ['logits'] if has_head else []
    if name not in (None, *known):
        raise UserError(f'--features={name} must be one of {", ".join(known)}')


def _name_images(values, path, network, paths, devices):
    """Print the likeliest classes of each image."""
    from official_resnet.inference import card_reader

    card = network.card
    card = card_reader.with_names(card, values.labels) if values.labels else card
    explained = _explained_class(values, card)
    devices.start_tensorflow(1)  # one op at a time: the fastest in inference
    from official_resnet.inference import predict

    model, _ = predict.load(path)
    explain = _explainer(values, model, card, paths, explained) if values.explain else None
    call, num_read, table = _compiled(model, card, paths, values), 0, _table(paths, card.names)
    for batch, images in _batches(paths, card, values.batch_size):
        num_read += len(batch)
        if batch:
            probabilities = predict.probabilities(call, card, images)
            found = predict.guesses(card, probabilities, values.top)
            explanations = explain(batch, images, probabilities) if explain else [None] * len(batch)
            for file, classes, explanation in zip(batch, found, explanations, strict=True):
                if values.json:
                    row = {'file': str(file), 'classes': [guess._asdict() for guess in classes]}
                    print(json.dumps(row | {'explanation': explanation}), flush=True)
                else:
                    table(file, classes, explanation)
    if not num_read:
        raise UserError(_NO_IMAGE)
    return 0


def _write_features(values, path, network, paths, devices):
    """Write the features of each image into --output."""
    from official_resnet.inference import feature_file

    card, name, size = network.card, values.features, values.batch_size
    with open(network.path, 'rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    about = {'--model': sha256, '--features': name, '--batch_size': size, 'images': feature_file.digest(paths)}
    devices.start_tensorflow(1)
    import keras

    from official_resnet.inference import grad_cam, predict

    model, _ = predict.load(path, needs_head=False)
    output = grad_cam.features(model).output[name]
    output = keras.layers.GlobalAveragePooling2D()(output) if len(output.shape) == 4 else output
    call = _compiled(keras.Model(model.input, output), card, paths, values)
    with feature_file.collecting(values.output, about, output.shape[-1]) as rows:
        if rows.num_batches:
            print(f'{rows.num_rows} of {len(paths)} images are already done')
        for batch, images in _batches(paths[rows.num_batches * size :], card, size):
            rows.add([str(file) for file in batch], call(predict.network_input(card, images)).numpy() if batch else [])
        if not rows.num_rows:
            raise UserError(_NO_IMAGE)
        print(f'{values.output}: {name} of {rows.num_rows} images, {output.shape[-1]} features each')
    return 0


def _compiled(model, card, paths, values):
    """Return the model, compiled if there are enough images."""
    from official_resnet.inference import rewrite

    is_worth_it = len(paths) >= max(NUM_TO_COMPILE, 2 * values.batch_size)
    return rewrite.compile_model(model, (*card.net_size, card.num_channels)) if is_worth_it else model


def _batches(paths, card, batch_size):
    """Yield (paths, images uint8 [n, h, w, c]) of the images that can be read, and report the others on stderr."""
    import numpy as np

    from official_resnet.inference import predict

    for start in range(0, len(paths), batch_size):
        batch, images = [], []
        for path in paths[start : start + batch_size]:
            try:
                images.append(predict.prepare(path, card))
                batch.append(path)
            except UserError as error:
                _skip(error)
        yield batch, np.stack(images) if images else None


def find_images(arguments: Sequence[str]) -> list[pathlib.Path]:
    """Return the image files that the arguments name or contain, in order. Report skipped arguments on stderr.

    Raises:
        UserError: There are no arguments, or one is a URL.
    """
    from official_resnet.inputs import classes, images

    if not arguments:
        raise UserError('no images; pass files or folders of images')
    paths = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if '://' in argument:
            raise UserError(f'{argument} is not a local file; download it and pass the file')
        found, others = ([path] if path.exists() else []), []
        if path.is_dir():
            found, others = map(sorted, images.find_files(path))
        if others:
            _skip(f'not images ({len(others)}): {classes.listed(others)}')
        if not found:
            suffixes = ' '.join(images.SUFFIXES)
            _skip(f"'{path}' has no images ({suffixes})" if path.is_dir() else f"there is no '{path}'")
        paths += found
    return paths


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
    remedy = f'pass a number, 0..{card.num_classes - 1}, or a name from the table'
    raise UserError(f"--explain_class '{text}' is not a class of the network; {remedy}")


def _explained_class(values, card):
    """Return the number of the class of --explain_class, if any, and create --output_dir, if --explain needs it."""
    if values.explain:
        folder = pathlib.Path(values.output_dir).expanduser()
        with files.write_errors(f"output_dir '{folder}'", ' or pass another --output_dir'):
            files.make_folder(folder)
    return None if values.explain_class is None else class_index(card, values.explain_class)


def _explainer(values, model, card, paths, chosen):
    """Return a function that saves a page for each image, uint8 [n, h, w, c], and returns the entries of --json."""
    from PIL import PngImagePlugin

    from official_resnet.inference import grad_cam, predict

    folder = pathlib.Path(values.output_dir).expanduser()
    taken = {path.resolve() for path in paths}  # no image and no explanation is overwritten
    (rows, columns), (net_rows, net_columns) = card.size, card.net_size
    top, left = (net_rows - rows) // 2, (net_columns - columns) // 2  # place of the image inside its padding

    def explain(paths, images, probabilities) -> list[dict]:
        classes = [int(row.argmax()) if chosen is None else chosen for row in probabilities]
        maps = grad_cam.grad_cam(model, predict.network_input(card, images), classes)
        maps = maps[:, top : top + rows, left : left + columns]
        entries = []
        for path, image, cam, index, row in zip(paths, images, maps, classes, probabilities, strict=True):
            name = card.names[index]
            page = grad_cam.page(image, cam, f'{one_line(name)}, {row[index]:.1%}', EXPLANATION_SIZE)
            entries.append({'index': index, 'name': name, 'file': save(path, page)})
        return entries

    def save(image_path, page) -> str:
        source = hashlib.sha256(files.read_bytes(image_path, 'image_bytes')).hexdigest()
        about = PngImagePlugin.PngInfo()
        about.add_text(_SOURCE, source)
        path, number = folder / f'{image_path.stem}_grad_cam.png', 1
        while path.resolve() in taken or (path.exists() and _source_of(path) != source):
            number += 1
            path = path.with_name(f'{image_path.stem}_grad_cam_{number}.png')
        taken.add(path.resolve())
        with files.write_errors(f"'{path}'", ' or pass another --output_dir'):
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


def _table(paths, names):
    """Return a function that prints an image's rows, at its first call after a header; columns fit all rows."""
    file_width = max(len('file'), *(len(str(path)) for path in paths))
    name_width = min(max(len('name'), *map(len, names)), MAX_NAME_WIDTH)
    rows = [('file', 'rank', 'name', 'probability')]

    def show(path, guesses, explanation) -> None:
        for rank, guess in enumerate(guesses, 1):
            rows.append(('' if rank > 1 else str(path), rank, guess.name, f'{guess.probability:.4f}'))
        if explanation:
            rows.append(('', '', f'-> {explanation["file"]} ({explanation["name"]})', ''))
        for file, rank, name, probability in rows:
            line = f'{file:{file_width}}  {rank:>4}  {name:{name_width}}  {probability:>11}'
            print(one_line(line.rstrip()), flush=True)
        rows.clear()

    return show


def _skip(reason):
    print(f'predict_main: skipped: {one_line(reason)}', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
