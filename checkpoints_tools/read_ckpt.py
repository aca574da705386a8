"""List the variables of a foreign checkpoint, or convert it to a verified Keras model.

    python checkpoints_tools/read_ckpt.py --list resnet50.pth
    python checkpoints_tools/read_ckpt.py --input net.pth --output net.keras
    python checkpoints_tools/read_ckpt.py --input net.keras --to torch \\
        --output net.safetensors

The model takes float32 images [n, h, w, 3] as its card, net.card.json, describes, and returns float32 logits. It is
written only if it computes the same as its source. Name a TensorFlow checkpoint without .index. More: README.md.
"""

import os
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

try:
    from absl import flags

    from checkpoints_tools import FAMILIES, TARGETS
    from official_resnet import files
    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError, one_line
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

if TYPE_CHECKING:
    from checkpoints_tools.selection import Choice


def define_flags() -> flags.FlagValues:
    """Return the program's flags in a new FlagValues."""
    values = flags.FlagValues()
    define = definer.Definer(values)
    define.string('list', None, 'Print the variables of this checkpoint: name, shape, dtype, and where it goes.')
    define.string('input', None, 'The checkpoint to convert; with --to, a .keras model of ours.')
    define.string('output', None, 'The file to write: .keras, also with --to keras_hub; with --to torch, .safetensors.')
    define.enum('source', 'auto', ('auto', *FAMILIES), 'Family of the checkpoint.')
    define.string('variant', None, 'Name of the network, if the variables leave it open, for example resnet50_v1.')
    define.integer('num_classes', None, '1000 drops the background of a checkpoint with 1001 classes.', None, 1, None)
    define.enum('weights', None, ('plain', 'ema'), 'Take the weights, or their moving averages. Default: the weights.')
    define.boolean('no_head', False, 'Leave the classifier out: the model returns features, [n, channels].')
    define.string('data_dir', None, 'Data set of a checkpoint without moving statistics, which are estimated from it.')
    define.enum('to', 'keras', ('keras', *TARGETS), 'What to write: a Keras model, or what PyTorch or KerasHub reads.')
    paths = ['list', 'input', 'output']
    flags.register_multi_flags_validator(
        paths,
        lambda v: [bool(v[name]) for name in paths] in ([True, False, False], [False, True, True]),
        'pass --list PATH, or --input PATH and --output PATH',
        values,
    )
    return values


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    _check_paths(values)
    if not values.list:
        files.say(one_line(f'reading {values.input}; TensorFlow starts first'))
    from official_resnet.training import devices

    devices.start_tensorflow()
    from checkpoints_tools import convert

    choice = convert.Choice(values.weights, not values.no_head, values.data_dir)
    if values.list:
        with program.reader_may_leave():
            for line in list_lines(convert, values.list, values.source, values.variant, choice):
                print(line)
    elif values.to in TARGETS:
        source = convert.to_family(values.input, values.output, values.to)
        print(f'{values.output}: {source.variant}, {source.num_classes} classes')
    else:
        card = convert.convert(
            values.input, values.output, values.source, values.variant, values.num_classes, choice=choice
        )
        print(f'{values.output}: {_summary(card)}')


def _check_paths(values):
    """Raise UserError for a wrong path before TensorFlow is imported, which takes a while."""
    from checkpoints_tools import source, tf_checkpoint, torch_file
    from official_resnet.inference import network_files

    path = os.path.expanduser(values.list or values.input)
    if values.data_dir and not os.path.isdir(values.data_dir):
        raise UserError(f"--data_dir='{values.data_dir}' is not a folder; pass the folder of the data set")
    if values.output:
        source.output_path(path, values.output, TARGETS.get(values.to, '.keras'))
    if values.to in TARGETS and not values.list:
        network_files.require_keras_file(path, 'pass a .keras model')
    elif torch_file.locate(path).is_file():
        torch_file.list_files(path)
    else:  # a prefix, or a folder of TensorFlow
        tf_checkpoint.locate(path)


def _summary(card):
    """Return a line about a conversion: what was converted, what was not, and how exact it is."""
    outputs = f'{card["num_classes"]} classes ({card["labels"]})' if card['num_classes'] else 'no classifier, '
    outputs += f'{card["num_features"]} features' if 'num_features' in card else ''
    kinds = _kinds(card['weights'], card.get('other_weights', ()))
    left_out = f'; left out: {", ".join(card["left_out"])}' if 'left_out' in card else ''
    left_out += f'; {card["statistics"]}' if 'statistics' in card else ''
    verified = card['verified']
    return one_line(
        f'{card["family"]} {card["variant"]}, {outputs}{kinds}{left_out}; largest difference '
        f'{verified["max_relative_difference"]:.1e} of the largest {"logit" if card["num_classes"] else "feature"} '
        f'{verified["max_logit"]:.3g}'
    )


def _kinds(weights, others):
    """Return the words for which weights were taken, if there was a choice or if they are averages."""
    words = ''.join(f'; there are {kind} ones, too: --weights={kind}' for kind in others)
    return f', {weights} weights{words}' if others or weights != 'plain' else ''


def list_lines(
    convert: types.ModuleType, path: str, family: str, variant: str | None, choice: 'Choice'
) -> Iterator[str]:
    """Yield a line for each variable of a checkpoint, and one for the checkpoint. `convert` is the module."""
    module, shapes = convert.identify(path, family)
    targets: dict[str, list[str]] = {}
    ignored, summary = {}, f'{len(shapes)} variables that no family knows; pass --source'
    if module:
        ignored = module.ignored(shapes)
        try:
            selected = convert.selection.select(module, shapes, path, choice, variant)
            ignored |= selected.left_out
            source = module.describe(selected.shapes, variant)
            for entry in module.name_map(source, selected.shapes):
                for name in entry.sources:
                    targets.setdefault(selected.names.get(name, name), []).append(entry.target)
            convert.fit(module, selected.shapes, path, variant)
            summary = f'{len(shapes)} variables: {source.family} {source.variant}, {source.num_classes} '
            summary += 'features' if selected.stand_in else 'classes'
            summary += _kinds(selected.weights, selected.others)
        except convert.UserError as error:
            summary = f'{len(shapes)} variables: {error}'
    for name, (shape, dtype) in shapes.items():
        goal = ', '.join(targets.get(name, [])) or (f'ignored: {ignored[name]}' if name in ignored else 'unknown')
        yield f'{one_line(name)}  {tuple(shape)} {dtype}  {goal}'
    yield one_line(summary)


def run() -> None:
    """Run with the arguments of the command line and exit."""
    sys.exit(main(sys.argv))


if __name__ == '__main__':
    run()
