"""Several workers: starting them on this machine, and being one that follows the chief."""

import sys
import time
from collections.abc import Sequence

from official_resnet.command_line import flags, train_program
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.training import same_run, workers
from official_resnet.training.config import TrainConfig

WAIT_SECONDS = 1800  # for the data set
POLL_SECONDS = 1


def launch(config: TrainConfig, options: flags.RunOptions, row: flags.Program, argv: Sequence[str]) -> int:
    """Start the workers of --local_workers, after what one alone should do; return the exit code of all."""
    train_program.find_data(config, options, row)
    if options.clean:
        same_run.clean(config.machine.model_dir)
    own = ['--local_workers=1', f'--distribution_strategy={flags.MULTI_WORKER}', '--noclean']
    return workers.launch(options.local_workers, [sys.executable, *argv, *own])


def await_data(config: TrainConfig) -> None:
    """Wait until the data set that the chief fetches is there; for a worker other than the chief.

    Raises:
        UserError: the chief ended before, or it took too long.
    """
    data_dir, deadline = config.machine.data_dir, time.monotonic() + WAIT_SECONDS
    has_waited = False
    while not _is_there(config.dataset, data_dir):
        if not has_waited:
            has_waited = True
            print(f"waiting for the chief to fetch {config.dataset} into '{data_dir}'", flush=True)
        if not workers.is_chief_there():
            raise UserError(
                f'the chief ended before {config.dataset} was there; read what it says, then start all workers again'
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"{config.dataset} is not in '{data_dir}' after {WAIT_SECONDS // 60} minutes; pass a --data_dir that "
                'all workers see, or fetch it for each of them before you start them'
            )
        time.sleep(POLL_SECONDS)


def _is_there(dataset, data_dir):
    if not dataset.startswith('tfds:'):
        return not datasets.is_missing(dataset, data_dir)
    from official_resnet.inputs import tfds_source

    return tfds_source.is_prepared(dataset, data_dir)


def follow(config: TrainConfig) -> int:
    """Be a worker other than the chief; return the exit code."""
    from official_resnet import resnet_run_loop

    try:
        resnet_run_loop.train(config).process.wait()
    except resnet_run_loop.Interrupted as interruption:
        return 128 + interruption.signal_number
    return 0
