"""What a training program logs if it is asked to: official/resnet's benchmark log, and TensorBoard."""

import os

import keras

from official_resnet.command_line.flags import RunOptions
from official_resnet.errors import UserError
from official_resnet.training import benchmark_log, devices
from official_resnet.training.config import TrainConfig


def callbacks_of(config: TrainConfig, options: RunOptions, hooks: set[str]) -> list[keras.callbacks.Callback]:
    """Return the Keras callbacks that the flags of logging ask for, but those that every training has.

    Args:
        config: what is trained.
        options: the flags.
        hooks: names in --hooks, in small letters.
    """
    chosen = []
    if options.benchmark_log_dir or hooks & {'examplespersecondhook', 'loggingmetrichook', 'stepcounterhook'}:
        info = {
            'model_name': 'resnet',
            'dataset': {'name': config.dataset},
            'machine_config': devices.machine_info(),
            'test_id': options.benchmark_test_id,
            'run_parameters': config.to_json(),
            'tensorflow_environment_variables': {k: v for k, v in os.environ.items() if k.startswith('TF_')},
        }
        writes_files = options.benchmark_logger_type == 'BenchmarkFileLogger'
        folder = options.benchmark_log_dir if writes_files else None
        chosen.append(benchmark_log.BenchmarkLog(folder, info, options.log_steps, hooks))
    if options.enable_tensorboard or options.profile_steps or 'profilerhook' in hooks:
        chosen.append(_tensorboard(config.machine.model_dir, options.profile_steps, 'profilerhook' in hooks))
    return chosen


def _tensorboard(model_dir, profile_steps, is_profiling):
    """Return Keras' TensorBoard callback, or say what to install."""
    try:
        import tensorboard  # noqa: F401  Keras' callback writes what only tensorboard can show
    except ImportError:
        raise UserError("TensorBoard is not installed; pip install 'official-resnet[plots]'") from None
    profile = (10, 20) if is_profiling else 0
    if profile_steps:
        profile = tuple(int(step) for step in profile_steps.split(','))
    return keras.callbacks.TensorBoard(model_dir, write_graph=False, profile_batch=profile)
