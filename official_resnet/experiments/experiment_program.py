"""What the programs of the experiments share: flags, start, exit codes. Importing this imports no TensorFlow."""

import os
from collections.abc import Callable, Collection, Sequence

from absl import flags as absl_flags

from official_resnet import files
from official_resnet.command_line import definer, program
from official_resnet.inputs import datasets
from official_resnet.resnet_spec import MAX_LAYERS
from official_resnet.training import devices

DTYPES = ('auto', 'fp32', 'bf16')


def cifar_flags(output_dir: str, *, trains: bool) -> definer.Definer:
    """Return a Definer with the flags of an experiment on CIFAR-10: data, output and duration.

    With `trains`, there are also flags of the training. A default is the paper's, where it has one, or that of --quick.
    """
    define = definer.Definer(absl_flags.FlagValues())
    define.known('data_dir', '/tmp/cifar10_data')
    define.known('download', True)
    define.known('use_synthetic_data', False)
    text = 'Folder of the figure, the results in JSON and the networks; finished networks are kept.'
    define.string('output_dir', output_dir, text)
    define.boolean('quick', False, "Train for minutes on two cores. Default: the paper's setting, where there is one.")
    define.known('seed', 0)
    if trains:
        text = 'Number of epochs of each network; the learning rate drops after 1/2 and 3/4 of them.'
        define.known('train_epochs', None, text=text)
        define.known('num_train_images', None)
        define.known('batch_size', 128)
        define.known('dtype', 'auto', choices=DTYPES)
    return define


def define_list(
    define: definer.Definer, name: str, default: Sequence[str] | None, text: str, choices: Collection[str] = ()
) -> None:
    """Define a flag for a comma-separated list of names in `choices` or, without choices, of depths (see is_depth)."""
    define.names(name, default, text)
    is_valid, valid = (choices.__contains__, ', '.join(choices)) if choices else (is_depth, 'numbers 6n+2: 8, 14, ...')
    absl_flags.register_validator(
        name,
        lambda items: items is None or items and all(map(is_valid, items)),
        f'must be a comma-separated list of {valid}',
        define.values,
    )


def is_depth(depth: int | str) -> bool:
    """Return whether `depth`, such as 20 or '20', is a number of layers of a CIFAR network: 6n+2, 8..MAX_LAYERS."""
    text = str(depth).strip()
    return text.isdecimal() and len(text) < 6 and 8 <= int(text) <= MAX_LAYERS and int(text) % 6 == 2


def find_data(values: absl_flags.FlagValues) -> tuple[str, str]:
    """Return the data set and its folder. Download it first if it is missing and --download allows it."""
    dataset = 'synthetic' if values.use_synthetic_data else 'cifar10'
    data_dir = os.path.expanduser(values.data_dir)
    if values.download and datasets.is_missing(dataset, data_dir):
        from official_resnet.inputs import download

        download.fetch_missing(dataset, data_dir)
    return dataset, data_dir


def run_experiment(
    argv: Sequence[str], doc: str, values: absl_flags.FlagValues, body: Callable[[absl_flags.FlagValues], None]
) -> int:
    """Parse argv, create --output_dir, find the data, start TensorFlow, call body(values), and return the exit code."""

    def start(values) -> int:
        values.output_dir = os.path.expanduser(values.output_dir)
        with files.write_errors(f"output_dir '{values.output_dir}'", ' or pass another --output_dir'):
            files.make_folder(values.output_dir)
        if 'image_folder' in values:
            datasets.require_data(f'folder:{os.path.expanduser(values.image_folder)}', None)
        else:
            datasets.require_data(*find_data(values))
        devices.start_tensorflow()
        body(values)
        return 0

    return program.run_program(argv, doc, values, start)
