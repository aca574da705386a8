"""Export a network for another runtime, and write it only if it computes the same there.

    python export_main.py --model demo_model --to onnx --output files/demo.onnx
    python export_main.py --model resnet50.keras --to litert --dtype int8 \\
        --calibration_images DIR --output resnet50/resnet50.tflite
    python export_main.py --model demo_model --to savedmodel --preprocessing \\
        --images DIR --output served/1
    python export_main.py --model resnet50.keras --to torch \\
        --output resnet50.safetensors                     # the weights alone
    python export_main.py --model resnet50 --to openvino --output r50/net.xml

On two quiet cores of an AMD EPYC, a ResNet-50 took about half a minute in each format (n = 1). docs/export.md has the
sizes and speeds: in int8, OpenVINO is 4.0 times and LiteRT 3.7 times as fast as our program in float32.

The file is loaded in its own runtime and compared with the network, on the images of --images, or else on those of the
calibration, or else on random ones. Probabilities may differ by 1e-4 in float32, 0.02 in float16 and 0.1 in bfloat16;
int8 must give the same class for 90 % of the images. A model card, README.md, is written beside the file.

Without --preprocessing, the file takes the network's own input, float32, and returns logits. With it, it takes uint8
images of the size in the network's card and returns probabilities; a SavedModel can also take JPEG and PNG files.
"""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Sequence

try:
    from absl import flags

    from official_resnet import files, folders
    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
    from official_resnet.inference import formats
    from official_resnet.weights import pretrained
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

BATCH = 8  # images at once in the comparison and in the measurement of speed, if --batch_size leaves it open
MAX_IMAGES = 500  # of a folder that are used, evenly spread
NUM_RANDOM = 32
_REMEDY = ', or pass another --output'


def define_flags() -> flags.FlagValues:
    """Return the flags of this program."""
    values = flags.FlagValues()
    define = definer.Definer(values)
    text = 'The network: a .keras file with its card beside it, a model_dir, or the name of published weights.'
    define.string('model', None, text, 'm')
    define.enum('to', None, tuple(formats.FORMATS), 'The format to write.')
    suffixes = ', '.join(row.suffix or 'a folder for savedmodel' for row in formats.FORMATS.values())
    define.string('output', None, f'What to write: {suffixes}. It must not exist.', 'o')
    define.boolean('preprocessing', False, 'Take uint8 images and prepare them inside the graph.')
    define.integer('batch_size', None, 'Number of images that the graph takes; by default any.', 'bs', 1, 4096)
    define.enum('dtype', 'float32', formats.DTYPES, 'Precision of the weights; int8 also of the activations.', 'dt')
    define.string('calibration_images', None, f'Folder of at least {formats.INT8_NEEDS} images for --dtype=int8.')
    define.string('images', None, 'Folder of images to compare on.')
    define.known('cache_dir', None)
    define.string('license', None, 'Licence of the weights for the model card, as the hub calls it: apache-2.0.')
    for name, wanted in (
        ('model', 'a .keras file, model_dir or name'),
        ('to', 'a format'),
        ('output', 'a path to write'),
    ):
        flags.register_validator(name, bool, f'pass {wanted}', values)
    return values


def main(argv: Sequence[str]) -> int:
    """Run the program with the arguments argv, the program's name first, and return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _export)


def _export(values):
    from official_resnet.inference import hub_card, network_files
    from official_resnet.training import devices

    path = values.model
    network = network_files.find(path) if pretrained.find(path) is None else None  # a wrong path is reported first
    has_calibration = values.calibration_images is not None
    formats.require(values.to, values.dtype, values.preprocessing, values.batch_size, has_calibration)
    if values.license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.-]*', values.license):
        raise UserError(f"--license='{values.license}' must be a short name of the hub, for example apache-2.0 or mit")
    output = _output(values)
    hub_card.require_place(output)
    paths = {name: _images(values, name) for name in ('calibration_images', 'images')}
    formats.require_packages(values.to)
    if network is None:
        path = pretrained.resolve(path, values.cache_dir)
        network = network_files.find(path)
    files.say(one_line(f'loading {path}; TensorFlow starts first'))
    devices.start_tensorflow(1)  # one op at a time: the fastest in inference
    with files.write_errors(f"'{output}'", _REMEDY):
        with folders.temporary(folders.existing_parent(output.parent, 'output'), 'export') as part:
            (part / 'files').mkdir()
            made = part / 'files' / output.name
            rows, lines = (_torch if values.to == 'torch' else _graph)(values, path, network, part, made, paths)
            run, choice = hub_card.of_run(network.path, network.card_path), values.flag_values_dict()
            command = shlex.join(['resnet-export', *_given(values)])
            text = hub_card.text(output.name, network.card, choice, run, rows, command)
            files.write_text(made.with_name(hub_card.NAME), text)
            files.make_folder(output.parent)
            folders.put_in_place(part / 'files', output.parent)
    for line in lines:
        print(one_line(line))
    print(f'{output}, with the model card {output.parent / hub_card.NAME}')


def _output(values):
    """Return the path to write. Raise UserError if its suffix is not the format's, it exists, or it cannot be used."""
    output, row = pathlib.Path(values.output).expanduser(), formats.FORMATS[values.to]
    if row.suffix and output.suffix != row.suffix:
        raise UserError(f'--output={values.output} must end in {row.suffix} for --to={values.to}; pass another name')
    (folders.require_text if row.suffix else folders.require_no_pattern)(output, '--output=', row.runtime)
    beside = {'openvino': '.bin', 'keras': '.card.json'}
    for path in (output, *([output.with_suffix(beside[values.to])] if values.to in beside else [])):
        if os.path.lexists(path) or not path.name:
            raise UserError(f"--output={values.output}: '{path}' exists; delete it, or pass another name")
    folders.existing_parent(output.parent, 'output')
    return output


def _images(values, flag):
    """Return the images in the folder of a flag, or [] if it is not passed."""
    from official_resnet.inputs import images

    folder = values[flag].value
    if folder is None:
        return []
    if not os.path.isdir(folder := os.path.expanduser(folder)):
        raise UserError(f"--{flag}='{folder}' is not a folder; pass a folder of images")
    found = sorted(images.find_files(folder)[0])
    _require_enough(found, values, flag)
    return found[:: -(-len(found) // MAX_IMAGES)]


def _require_enough(found, values, flag):
    least = formats.INT8_NEEDS if flag == 'calibration_images' else 1
    if len(found) < least:
        raise UserError(f"--{flag}='{values[flag].value}' has {len(found)} images; pass a folder of at least {least}")


def _readable(paths, card, values, flag):
    """Return ([path], uint8 [n, h, w, c]) of the images that can be read, and say which cannot."""
    import numpy as np

    from official_resnet.inference import predict

    found = {}
    for path in paths:
        try:
            found[path] = predict.prepare(path, card)
        except UserError as error:
            files.say(one_line(f'left out: {error}'))
    _require_enough(found, values, flag)
    return list(found), np.stack(list(found.values()))


def _given(values):
    """Return the flags that were passed, as arguments."""
    names = [name for name in sorted(values) if values[name].name == name and values[name].present]
    return [f'--{name}' if values[name].boolean else f'--{name}={values[name].value}' for name in names]


def _torch(values, path, network, part, made, paths):
    """Write PyTorch's weights, which checkpoints_tools verifies; return the text about them, see `_told`."""
    from checkpoints_tools import convert
    from official_resnet.inference import predict

    files.say(one_line(f'comparing and writing {values.output}'))
    source = network.path
    if network.weights is not None:
        source = part / 'network.keras'
        predict.load(path)[0].save(source)
    found = convert.to_family(source, made, 'torch')
    rows = {'compared': "with PyTorch's definition, rebuilt in TensorFlow, before it was written", 'as': found.variant}
    return rows, [f'the network is {found.variant} of PyTorch; compared before it was written']


def _graph(values, path, network, part, made, paths):
    """Write a graph or a Keras model, compare it and measure it; return the text about it, see `_told`."""
    import numpy as np

    from official_resnet.inference import exporters, predict, rewrite, runtimes

    model, card = predict.load(path)
    model = rewrite.in_float32(model)
    read = {name: _readable(some, card, values, name) for name, some in paths.items() if some}
    images = {name: pixels for name, (_, pixels) in read.items()}
    source = next((name for name in ('images', 'calibration_images') if name in images), None)
    shape, inside, calibration = (NUM_RANDOM, *card.size, card.num_channels), values.preprocessing, None
    compared = images[source] if source else np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch_size = values.batch_size or min(BATCH, len(compared))
    if values.dtype == 'int8':
        calibration = images['calibration_images']
        calibration = calibration if inside else predict.network_input(card, calibration).numpy()
    expected = runtimes.expected(model, card, compared, batch_size)
    where = f'{len(compared)} images of {values[source].value}' if source else f'{len(compared)} random images'
    files.say(one_line(f'writing {values.output}'))
    with _silent():
        exporters.write(model, card, values.to, made, values.dtype, inside, values.batch_size, calibration)
        files.say(one_line(f'comparing on {where}, then measuring the speed'))
        theirs = runtimes.load(values.to, made, inside)
        comparison = runtimes.compare(runtimes.probabilities(theirs, card, compared, inside, batch_size), expected)
        comparison.require(values.dtype, values.output)
        told = [(made.name, comparison)]
        if inside and values.to == 'savedmodel' and source and (by_bytes := runtimes.signature_of_bytes(made)):
            got, kept = runtimes.of_files(by_bytes, read[source][0], batch_size)
            if kept:
                told.append((f'{made.name}, JPEG and PNG files', runtimes.compare(got, expected[kept])))
                told[-1][1].require(runtimes.FILES, values.output)
        speeds = runtimes.rates(model, card, theirs, compared, inside, batch_size)
    if values.to == 'keras':
        shutil.copyfile(network.card_path, made.with_suffix('.card.json'))
    return _told(values.output, told, runtimes.size(made) / 1e6, speeds, where, batch_size)


def _told(name, told, size, speeds, where, batch_size):
    """Return ({what: result} for the model card, the lines of a table for a terminal)."""
    from official_resnet.inference import runtimes

    turns = f'median of {runtimes.TURNS} turns, batch {batch_size}; other jobs may have slowed them down'
    rows = {'compared on': where, 'size': f'{size:.2f} MB'}
    lines = [f'{"file":26}{"MB":>8}{"difference":>12}{"same class":>12}{"images/s":>10}{"ours":>10}']
    for number, (what, comparison) in enumerate(told):
        difference, same = f'{comparison.difference:.1e}', f'{comparison.agreement:.1%}'
        rows[f'largest difference of a probability: {what}'] = difference
        rows[f'same likeliest class: {what}'] = f'{same} of {comparison.num_images}'
        parts = [f'{size:.2f}', difference, same, *(f'{speed:,.0f}' for speed in reversed(speeds))]
        parts = parts if number == 0 else ['', difference, same, '', '']
        cells = ''.join(f'{part:>{width}}' for part, width in zip(parts, (8, 12, 12, 10, 10), strict=True))
        lines.append(f'{what[:25]:26}{cells}'.rstrip())
    rows[f'images/s, {turns}'] = f'{speeds[1]:,.0f}; of our program {speeds[0]:,.0f}'
    return rows, [*lines, f'compared on {where}', f'images/s: {turns}']


@contextlib.contextmanager
def _silent():
    """Hide what the converters and runtimes write to standard error; an error that is one line stays one."""
    from official_resnet.training import devices

    faults: list[Exception] = []
    with devices.hidden_stderr():
        try:
            yield
        except (UserError, OSError) as error:
            faults.append(error)
    for fault in faults:
        raise fault


def run() -> None:
    """Run with the arguments of the command line and exit."""
    sys.exit(main(sys.argv))


if __name__ == '__main__':
    run()
