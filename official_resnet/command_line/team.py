"""Several workers: starting them on this machine, and being one that follows the chief."""

import sys
from collections.abc import Sequence

from official_resnet import checkpoints
from official_resnet.command_line import flags, train_program
from official_resnet.training import workers
from official_resnet.training.config import TrainConfig


def launch(config: TrainConfig, options: flags.RunOptions, row: flags.Program, argv: Sequence[str]) -> int:
    """Start the workers of --local_workers, after what one alone should do; return the exit code of all."""
    train_program.find_data(config, options, row)
    if options.clean:
        checkpoints.clean(config.machine.model_dir)
    own = ['--local_workers=1', f'--distribution_strategy={flags.MULTI_WORKER}', '--noclean']
    return workers.launch(options.local_workers, [sys.executable, *argv, *own])


def follow(config: TrainConfig) -> int:
    """Be a worker other than the chief; return the exit code."""
    from official_resnet import resnet_run_loop

    try:
        resnet_run_loop.train(config).process.wait()
    except resnet_run_loop.Interrupted as interruption:
        return 128 + interruption.signal_number
    return 0
