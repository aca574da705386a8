"""Whether an evaluation ends a run before its last epoch: --stop_threshold and --patience."""

from collections.abc import Mapping
from typing import Any

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
