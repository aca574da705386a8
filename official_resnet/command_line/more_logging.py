"""Optional logs of a training program: official/resnet's benchmark log, TensorBoard, and trackers."""

import datetime
import importlib.util
import json
import os
import pathlib
from collections.abc import Collection
from typing import Any

import keras

from official_resnet import files, folders
from official_resnet.command_line.flags import RunOptions
from official_resnet.errors import UserError
from official_resnet.training import devices
from official_resnet.training.config import TrainConfig

_METRICS = (  # of a step: (hook that logs it, name in the log, name in the loop's logs)
    ('examplespersecondhook', 'current_examples_per_sec', 'images_per_second'),
    ('examplespersecondhook', 'average_examples_per_sec', 'epoch_images_per_second'),
    ('loggingmetrichook', 'learning_rate', 'learning_rate'),
    ('loggingmetrichook', 'cross_entropy', 'loss'),
    ('loggingmetrichook', 'train_accuracy', 'accuracy'),
)


class BenchmarkLog(keras.callbacks.Callback):
    """Write official/resnet's BenchmarkFileLogger files: benchmark_run.log (the run) and metric.log (JSON lines).

    With `folder` None, print the lines instead (BaseBenchmarkLogger). `hooks` says which of _METRICS to log.
    """

    def __init__(self, folder: str | None, run_info: dict, log_steps: int, hooks: Collection[str]):
        super().__init__()
        self.folder = folder and pathlib.Path(folder)
        self.run_info, self.log_steps, self.hooks, self._logged = run_info, log_steps, hooks, 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._logged = self.params['first_step']
        if self.folder:
            files.make_folder(self.folder)
            info = json.dumps(self.run_info | {'run_date': _now()}, indent=1)
            files.write_text(self.folder / 'benchmark_run.log', info + '\n')

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = int(logs['step'])
        if step // self.log_steps > self._logged // self.log_steps:
            self._logged = step
            self._write({name: logs[key] for hook, name, key in _METRICS if hook in self.hooks}, step)

    def on_epoch_end(self, epoch: int | None, logs: Any = None) -> None:
        names = [name for name in ('accuracy', 'accuracy_top_5', 'loss') if f'val_{name}' in logs]
        self._write({name: logs[f'val_{name}'] for name in names}, int(logs['step']))

    def on_train_end(self, logs: Any = None) -> None:
        if logs:
            self.on_epoch_end(None, logs)

    def _write(self, metrics, step):
        rest = {'unit': None, 'global_step': step, 'timestamp': _now(), 'extras': []}
        text = ''.join(json.dumps({'name': name, 'value': value, **rest}) + '\n' for name, value in metrics.items())
        if self.folder is None:
            print(text, end='', flush=True)
        else:
            with open(self.folder / 'metric.log', 'a', encoding='utf-8') as file:
                file.write(text)


def _now():
    return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')


def callbacks_of(config: TrainConfig, options: RunOptions, hooks: set[str]) -> list[keras.callbacks.Callback]:
    """Return the callbacks for the logging flags, without those that every run has.

    `hooks` are the names in --hooks, in lower case.
    """
    chosen: list[keras.callbacks.Callback] = []
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
        chosen.append(BenchmarkLog(folder, info, options.log_steps, hooks))
    profile_steps = options.profile_steps or ('10,20' if 'profilerhook' in hooks else None)
    is_shown = config.machine.enable_tensorboard
    if is_shown or profile_steps:
        if not importlib.util.find_spec('tensorboard'):  # without it, nothing could show what Keras writes
            raise UserError("TensorBoard is not installed; pip install -e '.[plots]' in the folder of the repository")
        folders.require_text(config.machine.model_dir or '', '--model_dir=', 'TensorBoard')
    if is_shown:
        from official_resnet.reports import summaries

        chosen.append(summaries.Summaries(str(config.machine.model_dir)))
    if profile_steps:
        profile = tuple(map(int, profile_steps.split(',')))
        chosen.append(keras.callbacks.TensorBoard(config.machine.model_dir, write_graph=False, profile_batch=profile))
    if options.track:
        from official_resnet.command_line import trackers

        chosen.append(trackers.Track(options.track, config))
    return chosen
