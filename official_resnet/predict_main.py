"""Name what is in images, by a net of ours or a converted one.

    python predict_main.py --model /tmp/cifar10_model cat.jpg         # a model_dir of a training program
    python predict_main.py --model resnet50.keras --top 3 holiday/    # what checkpoints_tools/read_ckpt.py writes
    python predict_main.py --model resnet50.keras --json *.jpg > names.jsonl
    python predict_main.py --model resnet50.keras --explain --output_dir /tmp cat.jpg    # and where it looked

On two cores, akamaster's ResNet-20 named 82 of 100 test images of CIFAR-10, as JPEG files, in 11
seconds beside other jobs (n = 1), most of them the start of TensorFlow. A converted ImageNet net: not yet measured.

The card beside the model, resnet50.card.json, says how an image becomes the net's input; a model without one is
refused. Images are files, or folders, which are searched through; those that cannot be read are named and left out.
With --json, each image is a line: file, classes: [{index, name, id, probability}], explanation: {index, name, file}
or null.
"""

import json
import pathlib
import sys

try:
    from absl import flags

    from official_resnet import files
    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

NUM_TO_COMPILE = 32  # images from which on folding and compiling, seconds, pays
MAX_NAME_WIDTH = 32  # characters of a class's name that the table keeps free
EXPLANATION_SIZE = 224  # pixels that an explanation has at least


def define_flags():
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow images
    define = definer.Definer(values)
    define.string('model', None, 'The net: a .keras file with its card beside it, or a model_dir.', 'm')
    define.integer('top', 5, 'Classes to name for each image.', None, 1, None)
    define.boolean('json', False, 'Print a line of JSON for each image.')
    define.string('labels', None, "Names of the classes in place of the card's: a text file, one a line.")
    define.boolean('explain', False, 'Save where the net sees the class, NAME_grad_cam.png (arXiv:1610.02391).')
    define.string('explain_class', None, 'Number, name or WordNet id of the class to explain; without, the likeliest.')
    define.string('output_dir', '.', 'Folder of the explanations.')
    define.integer('batch_size', 8, 'Images computed at once.', 'bs', 1, None)
    flags.register_validator('model', bool, 'pass a .keras file or a model_dir', values)
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _name_images, takes_arguments=True)


@program.reader_may_leave()
def _name_images(values, arguments):
    if values.explain_class is not None and not values.explain:
        raise UserError('--explain_class belongs to --explain; pass that, too')
    pictures = find_images(arguments)
    if not pictures:
        return 1
    import numpy as np

    from official_resnet.training import devices

    devices.start_tensorflow(1)  # one op at a time: the fastest in inference
    from official_resnet.inference import card_reader, predict, rewrite

    model, card = predict.load(values.model)
    if values.labels:
        card = card_reader.with_names(card, values.labels)
    explain = _explainer(values, model, card, pictures) if values.explain else None
    is_compiled = len(pictures) >= max(NUM_TO_COMPILE, 2 * values.batch_size)
    call = rewrite.compile_model(model, (*card.net_size, card.num_channels)) if is_compiled else model
    table = _table(pictures, card.names)
    num_read = 0
    for start in range(0, len(pictures), values.batch_size):
        batch, images = [], []
        for picture in pictures[start : start + values.batch_size]:
            try:
                images.append(predict.prepare(picture, card))
                batch.append(picture)
            except UserError as error:
                _leave_out(error)
        num_read += len(batch)
        if batch:
            found = predict.guesses(card, predict.probabilities(call, card, np.stack(images)), values.top)
            explanations = explain(batch, images, found) if explain else [None] * len(batch)
            for picture, classes, explanation in zip(batch, found, explanations, strict=True):
                if values.json:
                    row = {'file': str(picture), 'classes': [guess._asdict() for guess in classes]}
                    print(json.dumps(row | {'explanation': explanation}), flush=True)
                else:
                    table(picture, classes, explanation)
    return 0 if num_read else 1


def find_images(arguments):
    """Return the files of files and folders, in this order; say on stderr what is none and what has none.

    Raises:
        UserError: there are no arguments, or one is a URL.
    """
    from official_resnet.inputs import images

    if not arguments:
        raise UserError('no images; pass files or folders of them')
    pictures = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if '://' in argument:
            raise UserError(f'{argument} is on the network, which is not used here; fetch it and pass the file')
        found = [path] if path.exists() else []
        if path.is_dir():
            found = sorted(images.find_files(path, images.PREDICTION_SUFFIXES))
        if not found:
            suffixes = ' '.join(images.PREDICTION_SUFFIXES)
            _leave_out(f"'{path}' has no image ({suffixes})" if path.is_dir() else f"there is no '{path}'")
        pictures += found
    return pictures


def class_index(card, text):
    """Return the number of a class given by number, name or WordNet id.

    Raises:
        UserError: there is none, or there are several.
    """
    found = [i for i in range(card.num_classes) if text in (card.names[i], card.ids[i])]
    if text.isdecimal():
        found = [int(text)] if int(text) < card.num_classes else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--explain_class '{text}' are the classes {', '.join(map(str, found))}; pass one of these")
    remedy = f'pass its number, 0..{card.num_classes - 1}, or its name as the table has it'
    raise UserError(f"--explain_class '{text}' is no class of the net; {remedy}")


def _explainer(values, model, card, pictures):
    """Return what saves Grad-CAM overlays of images, uint8 [n, h, w, c]: its result is [{'index', 'name', 'file'}]."""
    from PIL import Image

    from official_resnet.inference import grad_cam, predict

    chosen = None if values.explain_class is None else class_index(card, values.explain_class)
    folder = pathlib.Path(values.output_dir).expanduser()
    with files.write_errors(f"output_dir '{folder}'", ' or pass another --output_dir'):
        folder.mkdir(parents=True, exist_ok=True)
    taken = {picture.resolve() for picture in pictures}  # and nothing that is written twice
    (rows, columns), (net_rows, net_columns) = card.size, card.net_size
    top, left = (net_rows - rows) // 2, (net_columns - columns) // 2  # of the image inside its padding

    def explain(pictures, images, found):
        classes = [guesses[0].index if chosen is None else chosen for guesses in found]
        maps = grad_cam.grad_cam(model, predict.network_input(card, images), classes)
        maps = maps[:, top : top + rows, left : left + columns]
        return [
            {'index': index, 'name': card.names[index], 'file': save(picture, grad_cam.overlay(image, cam))}
            for picture, image, cam, index in zip(pictures, images, maps, classes, strict=True)
        ]

    def save(picture, pixels):
        path, number = folder / f'{picture.stem}_grad_cam.png', 1
        while path.resolve() in taken:
            number += 1
            path = path.with_name(f'{picture.stem}_grad_cam_{number}.png')
        taken.add(path.resolve())
        factor = max(1, EXPLANATION_SIZE // max(pixels.shape[:2]))
        image = Image.fromarray(pixels)
        with files.write_errors(f"'{path}'", ' or pass another --output_dir'):
            image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
        return str(path)

    return explain


def _table(pictures, names):
    """Return what prints the rows of an image, before the first a head; widths are those of all files and names."""
    file_width = max(len('file'), *(len(str(picture)) for picture in pictures))
    name_width = min(max(len('name'), *map(len, names)), MAX_NAME_WIDTH)
    rows = [('file', 'rank', 'name', 'probability')]

    def show(picture, guesses, explanation):
        for rank, guess in enumerate(guesses, 1):
            rows.append(('' if rank > 1 else str(picture), rank, guess.name, f'{guess.probability:.4f}'))
        if explanation:
            rows.append(('', '', f'-> {explanation["file"]} ({explanation["name"]})', ''))
        for file, rank, name, probability in rows:
            line = f'{file:{file_width}}  {rank:>4}  {name:{name_width}}  {probability:>11}'
            print(one_line(line.rstrip()), flush=True)
        rows.clear()

    return show


def _leave_out(reason):
    print(f'predict_main: left out: {one_line(reason)}', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
