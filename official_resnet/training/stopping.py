"""What ends a run before its last epoch: --stop_threshold and --patience, a signal, a loss that is not finite."""

import pathlib
import signal
from collections.abc import Mapping
from typing import Any, NoReturn

from official_resnet.errors import Interrupted, UserError
from official_resnet.training.config import TrainConfig


def reason(config: TrainConfig, evaluation: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Return why the newest evaluation ends the run, or '' if it does not; see Trainer's attributes."""
    threshold, patience = config.stop_threshold, config.patience
    waited = evaluation.get('epoch', 0) - (best['epoch'] or 0)  # older checkpoints lack the epoch
    if threshold is not None and evaluation.get('accuracy', -1) >= threshold:
        return f'stopped: test accuracy {evaluation["accuracy"]:.4f} reached --stop_threshold={threshold}'
    if patience is not None and waited >= patience:
        return f'stopped: no better test accuracy since epoch {best["epoch"]} (--patience={patience})'
    return ''


class Diverged(UserError):
    """The loss or a variable is not finite."""


def diverged(trainer: Any, what: str, step: int) -> Diverged:
    """Return the error of a resnet_run_loop.Trainer in which something is not finite after a step."""
    return Diverged(
        f'{what}, learning rate {float(trainer.schedule(step)):.6g}; lower --base_learning_rate or raise '
        '--warmup_epochs; the last good checkpoint is kept'
    )


def interrupt(trainer: Any, signal_number: int, path: pathlib.Path | None = None) -> NoReturn:
    """Save the state of a resnet_run_loop.Trainer, unless `path` holds it, and end its run with Interrupted.

    Only the chief's has a message.
    """
    path, where = path or trainer.save(), 'nothing is saved without a model_dir'
    if model_dir := trainer.config.machine.model_dir:
        saved = path or pathlib.Path(model_dir, 'checkpoints')
        where = f'state saved in {saved}; run the same command again to continue'
        if (best := pathlib.Path(model_dir, 'best.keras')).is_file():
            where += f', or use {best}, the best network so far'
    trainer.process.wait()  # until the state is saved
    text = f'{signal.Signals(signal_number).name} at step {trainer.step}: {where}'
    raise Interrupted(signal_number, text if trainer.process.is_chief else '')
