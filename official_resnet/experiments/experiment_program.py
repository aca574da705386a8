"""What the programs of the experiments share: flags, start, exit codes. No TensorFlow at import."""

import os
from collections.abc import Callable, Collection, Sequence

from absl import flags as absl_flags

from official_resnet.command_line import definer, program
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.resnet_spec import MAX_LAYERS
from official_resnet.training import devices


def define_flags(values: absl_flags.FlagValues, output_dir: str) -> None:
    """Define what every experiment has: where data comes from, where results go, how much is done."""
    define = definer.Definer(values)
    define.known('data_dir', '/tmp/cifar10_data')
    define.known('download', True)
    define.known('use_synthetic_data', False)
    define.string(
        'output_dir', output_dir, 'Folder of the figure, the results in JSON and the nets; finished ones stay.'
    )
    define.boolean('quick', False, 'Minutes on two cores, in place of the setting of the paper.')
    define.known('seed', 0)


def define_training_flags(values: absl_flags.FlagValues) -> None:
    """Define what changes the course of a training; each unset flag is the paper's, or quick's."""
    define = definer.Definer(values)
    text = 'Number of epochs of each net; the rate drops after 1/2 and 3/4 of them.'
    define.known('train_epochs', None, text=text)
    define.known('num_train_images', None)
    define.known('batch_size', 128)
    define_dtype(values)


def define_dtype(values: absl_flags.FlagValues) -> None:
    """Define --dtype, by default the best of the device."""
    definer.Definer(values).known('dtype', 'auto', choices=('auto', 'fp32', 'bf16'))


def define_names(values: absl_flags.FlagValues, name: str, choices: Collection[str], text: str) -> None:
    """Define a comma list of names, by default of all `choices`."""
    definer.Definer(values).names(name, ','.join(choices), text)
    absl_flags.register_validator(
        name,
        lambda names: names and set(names) <= set(choices),
        f'must be a comma list of {", ".join(choices)}',
        values,
    )


def define_depths(values, default, text=''):
    """Define --depths, a comma list of the numbers of layers; `text` explains a default None."""
    definer.Definer(values).names('depths', default, f'Layers of the nets, each 6n+2{text}.')
    absl_flags.register_validator(
        'depths',
        lambda depths: depths is None or depths and all(map(is_depth, depths)),
        'must be a comma list of numbers 6n+2: 8, 14, 20, ...',
        values,
    )


def is_depth(depth):
    """Return whether 20 or '20' is the number of layers of a CIFAR net, 6n+2."""
    text = str(depth).strip()
    return text.isdecimal() and len(text) < 6 and 8 <= int(text) <= MAX_LAYERS and int(text) % 6 == 2


def depths(values, default=()):
    """Return --depths as numbers, each once, in rising order; `default` where it is not given."""
    return sorted({int(depth) for depth in values.depths or default})


def find_data(values: absl_flags.FlagValues) -> tuple[str, str]:
    """Return the data set of the flags and its folder, and fetch it if it is missing and may be fetched."""
    dataset = 'synthetic' if values.use_synthetic_data else 'cifar10'
    data_dir = os.path.expanduser(values.data_dir)
    if values.download and datasets.is_missing(dataset, data_dir):
        from official_resnet.inputs import download

        download.fetch_missing(dataset, data_dir)
    return dataset, data_dir


def run_experiment(
    argv: Sequence[str], doc: str, values: absl_flags.FlagValues, body: Callable[[absl_flags.FlagValues], None]
) -> int:
    """Parse argv, start TensorFlow, make --output_dir, call body(values); return the exit code."""

    def start(values):
        devices.start_tensorflow()
        from official_resnet import resnet_run_loop

        values.output_dir = os.path.expanduser(values.output_dir)
        try:
            os.makedirs(values.output_dir, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make output_dir '{values.output_dir}': {error.strerror}; pass another --output_dir"
            ) from error
        try:
            return body(values)
        except resnet_run_loop.Interrupted as interruption:
            print(interruption, flush=True)
            return 128 + interruption.signal_number

    return program.run_program(argv, doc, values, start)
