"""Name what is in pictures, by a net of ours or a converted one.

    python predict_main.py --model /tmp/cifar10_model cat.jpg         # a model_dir of a training program
    python predict_main.py --model resnet50.keras --top 3 holiday/    # what checkpoints_tools/read_ckpt.py writes
    python predict_main.py --model resnet50.keras --json *.jpg > names.jsonl
    python predict_main.py --model resnet50.keras --explain --output_dir /tmp cat.jpg    # and where it looked

On two cores, akamaster's ResNet-20 named 82 of 100 test pictures of CIFAR-10, as JPEG files, in 11
seconds beside other jobs (n = 1), most of them the start of TensorFlow. A converted ImageNet net: not yet measured.

The card beside the model, resnet50.card.json, says how a picture becomes the net's input; a model without one is
refused. Pictures are files, or folders, which are searched through; those that cannot be read are named and left out.
With --json, each picture is a line: file, classes: [{index, name, id, probability}], explanation: {index, name, file}
or null.
"""

import json
import pathlib
import sys

try:
    from absl import flags

    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

NUM_TO_COMPILE = 32  # pictures from which on folding and compiling, seconds, pays
MAX_NAME_WIDTH = 32  # characters of a class's name that the table keeps free
EXPLANATION_SIZE = 224  # pixels that an explanation has at least


def define_flags():
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow pictures
    define = definer.Definer(values)
    define.string('model', None, 'The net: a .keras file with its card beside it, or a model_dir.', 'm')
    define.integer('top', 5, 'Classes to name for each picture.', None, 1, None)
    define.boolean('json', False, 'Print a line of JSON for each picture.')
    define.string('labels', None, "Names of the classes in place of the card's: a text file, one a line.")
    define.boolean('explain', False, 'Save where the net sees the class, NAME_grad_cam.png (arXiv:1610.02391).')
    define.string('explain_class', None, 'Number, name or WordNet id of the class to explain; without, the likeliest.')
    define.string('output_dir', '.', 'Folder of the explanations.')
    define.integer('batch_size', 8, 'Pictures computed at once.', 'bs', 1, None)
    flags.register_validator('model', bool, 'pass a .keras file or a model_dir', values)
    flags.register_multi_flags_validator(
        ['explain', 'explain_class'],
        lambda v: v['explain'] or v['explain_class'] is None,
        '--explain_class belongs to --explain; pass that, too',
        values,
    )
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _name_pictures, takes_arguments=True)


@program.reader_may_leave()
def _name_pictures(values, arguments):
    files = find_pictures(arguments)
    if not files:
        return 1
    from official_resnet.training import devices

    devices.start_tensorflow(1)  # one op at a time: the fastest in inference
    from official_resnet.inference import card_reader, predict, rewrite

    model, card = predict.load(values.model)
    if values.labels:
        card = card_reader.with_names(card, values.labels)
    explain = Explainer(values, model, card, files) if values.explain else None
    is_compiled = len(files) >= max(NUM_TO_COMPILE, 2 * values.batch_size)
    shape = (*card.net_size, card.num_channels)
    call = rewrite.compile_model(model, shape) if is_compiled else model
    show = _show_json if values.json else Table(files, card.names).show
    num_read = 0
    for start in range(0, len(files), values.batch_size):
        batch, images = _read(predict, card, files[start : start + values.batch_size])
        num_read += len(batch)
        if batch:
            found = predict.guesses(card, predict.probabilities(call, card, images), values.top)
            explanations = explain(batch, images, found) if explain else [None] * len(batch)
            for row in zip(batch, found, explanations, strict=True):
                show(*row)
    return 0 if num_read else 1


def find_pictures(arguments):
    """Return the files of files and folders, in this order; say on stderr what is none and what has none.

    Raises:
        UserError: there are no arguments, or one is a URL.
    """
    from official_resnet.inputs import images

    if not arguments:
        raise UserError('no pictures; pass files or folders of them')
    files = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if '://' in argument:
            raise UserError(f'{argument} is on the network, which is not used here; fetch it and pass the file')
        if path.is_dir():
            found = sorted(images.find_files(path, images.PREDICTION_SUFFIXES))
            if not found:
                _say(f"left out: '{path}' has no image ({' '.join(images.PREDICTION_SUFFIXES)})")
            files += found
        elif path.exists():
            files.append(path)
        else:
            _say(f"left out: there is no '{path}'")
    return files


def _read(predict, card, files):
    """Return (those of the files that can be read, uint8 [n, h, w, c]); name the others on stderr."""
    import numpy as np

    read, images = [], []
    for file in files:
        try:
            images.append(predict.prepare(file, card))
            read.append(file)
        except UserError as error:
            _say(f'left out: {error}')
    return read, np.stack(images) if images else None


def class_index(card, text):
    """Return the number of a class given by number, name or WordNet id.

    Raises:
        UserError: there is none, or there are several.
    """
    if text.isdecimal():
        found = [int(text)] if int(text) < card.num_classes else []
    else:
        found = [i for i in range(card.num_classes) if text in (card.names[i], card.ids[i])]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--explain_class '{text}' are the classes {', '.join(map(str, found))}; pass one of these")
    raise UserError(
        f"--explain_class '{text}' is no class of the net; pass its number, 0..{card.num_classes - 1}, "
        'or its name as the table has it'
    )


class Explainer:
    """Writes Grad-CAM overlays into a folder."""

    def __init__(self, values, model, card, files):
        self.model, self.card = model, card
        self.index = None if values.explain_class is None else class_index(card, values.explain_class)
        self.folder = pathlib.Path(values.output_dir).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make output_dir '{self.folder}': {error.strerror}; pass another --output_dir"
            ) from error
        self.taken = {file.resolve() for file in files}  # and nothing that is written twice

    def __call__(self, files, images, found):
        """Return [{'index', 'name', 'file'}] of pictures, uint8 [n, h, w, c], and their guesses."""
        from official_resnet.inference import grad_cam, predict

        classes = [guesses[0].index if self.index is None else self.index for guesses in found]
        maps = grad_cam.grad_cam(self.model, predict.network_input(self.card, images), classes)
        (rows, columns), (net_rows, net_columns) = self.card.size, self.card.net_size
        top, left = (net_rows - rows) // 2, (net_columns - columns) // 2  # of the picture inside its padding
        maps = maps[:, top : top + rows, left : left + columns]
        return [
            {'index': index, 'name': self.card.names[index], 'file': self._save(file, grad_cam.overlay(image, cam))}
            for file, image, cam, index in zip(files, images, maps, classes, strict=True)
        ]

    def _save(self, file, pixels):
        from PIL import Image

        path, number = self.folder / f'{file.stem}_grad_cam.png', 1
        while path.resolve() in self.taken:
            number += 1
            path = path.with_name(f'{file.stem}_grad_cam_{number}.png')
        self.taken.add(path.resolve())
        factor = max(1, EXPLANATION_SIZE // max(pixels.shape[:2]))
        image = Image.fromarray(pixels)
        try:
            image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror or error}; pass another --output_dir") from error
        return str(path)


def _show_json(file, guesses, explanation):
    classes = [guess._asdict() for guess in guesses]
    print(json.dumps({'file': str(file), 'classes': classes, 'explanation': explanation}), flush=True)


class Table:
    """Prints a row for each class of each picture, under a head; widths are those of all files and names."""

    def __init__(self, files, names):
        self.file_width = max(len('file'), *(len(str(file)) for file in files))
        self.name_width = min(max(len('name'), *map(len, names)), MAX_NAME_WIDTH)
        self.is_begun = False

    def show(self, file, guesses, explanation):
        """Print the rows of a picture."""
        if not self.is_begun:
            self._print('file', 'rank', 'name', 'probability')
            self.is_begun = True
        for rank, guess in enumerate(guesses, 1):
            self._print(str(file) if rank == 1 else '', rank, guess.name, f'{guess.probability:.4f}')
        if explanation:
            self._print('', '', f'-> {explanation["file"]} ({explanation["name"]})', '')

    def _print(self, file, rank, name, probability):
        line = f'{file:{self.file_width}}  {rank:>4}  {name:{self.name_width}}  {probability:>11}'
        print(one_line(line.rstrip()), flush=True)


def _say(message):
    print(f'predict_main: {one_line(message)}', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
