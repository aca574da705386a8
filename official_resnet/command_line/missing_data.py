"""Get the data of a training program that is missing: download it, prepare it, or wait for the chief to do so."""

from official_resnet.command_line.flags import Program, RunOptions
from official_resnet.training import devices
from official_resnet.training.config import TrainConfig


def fetch(config: TrainConfig, options: RunOptions, row: Program, is_chief: bool) -> None:
    """Do what train_program.find_data says, if the data set of a config is missing or of tensorflow_datasets."""
    dataset, data_dir = config.dataset, config.machine.data_dir
    if options.download and not is_chief:
        from official_resnet.training import workers

        workers.await_data(dataset, data_dir)
    if dataset.startswith('tfds:'):
        devices.start_tensorflow(config.machine.inter_op_threads, config.machine.intra_op_threads)
        from official_resnet.inputs import tfds_source

        tfds_source.prepare(dataset, data_dir, options.download and is_chief, has_one_size=not row.streams)
    elif is_chief:
        from official_resnet.inputs import download

        download.fetch_missing(dataset, str(data_dir))
