"""What the programs of the experiments share: flags, start, exit codes. No TensorFlow at import."""

import os

from absl import flags

from official_resnet.command_line import program
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.training import devices, recipes


def define_flags(values, output_dir):
    """Define what every experiment has: where data comes from, where results go, how much is done."""
    flags.DEFINE_string(
        'data_dir',
        '/tmp/cifar10_data',
        'Folder of CIFAR-10; fetched into it when missing.',
        short_name='dd',
        flag_values=values,
    )
    flags.DEFINE_boolean(
        'download', True, 'Fetch CIFAR-10 when it is missing; --nodownload forbids it.', flag_values=values
    )
    flags.DEFINE_boolean(
        'use_synthetic_data', False, 'Train on drawn pictures: no download.', short_name='synth', flag_values=values
    )
    flags.DEFINE_string(
        'output_dir',
        output_dir,
        'Figure, JSON result and the nets; what is finished there is kept.',
        flag_values=values,
    )
    flags.DEFINE_boolean(
        'quick', False, 'Minutes on two cores, in place of the setting of the paper.', flag_values=values
    )
    flags.DEFINE_integer('seed', 0, 'Of initial weights, order and augmentation.', 0, 2**63 - 1, flag_values=values)


def define_training_flags(values):
    """Define what changes the course of a training; each unset flag is the paper's, or quick's."""
    flags.DEFINE_integer(
        'train_epochs',
        None,
        'Epochs of each net; the rate drops after 1/2 and 3/4 of them.',
        1,
        program.MAX_INTEGER,
        short_name='te',
        flag_values=values,
    )
    flags.DEFINE_integer(
        'num_train_images',
        None,
        'Train on so many pictures, the first ones.',
        1,
        program.MAX_INTEGER,
        flag_values=values,
    )
    flags.DEFINE_integer(
        'batch_size',
        recipes.CIFAR['official']['batch_size'],
        'Images a step.',
        1,
        program.MAX_INTEGER,
        short_name='bs',
        flag_values=values,
    )
    flags.DEFINE_enum(
        'dtype',
        'auto',
        ['auto', 'fp32', 'bf16'],
        'Precision; auto is bf16 where the device has it.',
        short_name='dt',
        flag_values=values,
    )


def define_depths(values, default, text=''):
    """Define --depths, a comma list of the numbers of layers; `text` explains a default None."""
    flags.DEFINE_list('depths', default, f'Layers of the nets, each 6n+2{text}.', flag_values=values)
    flags.register_validator(
        'depths',
        lambda depths: depths is None or depths and all(map(is_depth, depths)),
        'must be a comma list of numbers 6n+2: 8, 14, 20, ...',
        values,
    )


def is_depth(depth):
    """Return whether 20 or '20' is the number of layers of a CIFAR net, 6n+2."""
    text = str(depth).strip()
    return text.isdecimal() and len(text) < 6 and 8 <= int(text) <= program.MAX_LAYERS and int(text) % 6 == 2


def depths(values, default=()):
    """Return --depths as numbers, each once, in rising order; `default` where it is not given."""
    return sorted({int(depth) for depth in values.depths or default})


def run_experiment(argv, doc, values, body):
    """Parse argv, start TensorFlow, find the data, call body(values, dataset, data_dir); return the exit code."""

    def start(values):
        devices.start_tensorflow()
        from official_resnet import resnet_run_loop

        dataset = 'synthetic' if values.use_synthetic_data else 'cifar10'
        data_dir = os.path.expanduser(values.data_dir)
        values.output_dir = os.path.expanduser(values.output_dir)
        if values.download and datasets.is_missing(dataset, data_dir):
            from official_resnet.inputs import download

            download.fetch_missing(dataset, data_dir)
        try:
            os.makedirs(values.output_dir, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make output_dir '{values.output_dir}': {error.strerror}; pass another --output_dir"
            ) from error
        try:
            return body(values, dataset, data_dir)
        except resnet_run_loop.Interrupted as interruption:
            print(interruption, flush=True)
            return 128 + interruption.signal_number

    return program.run_program(argv, doc, values, start)
