"""A Keras callback that writes what the benchmark logger of official/resnet writes."""

import datetime
import json
import pathlib
from collections.abc import Collection

import keras

# Of a step: hook -> (name there, name in the logs of the loop).
_METRICS = {
    'examplespersecondhook': (
        ('current_examples_per_sec', 'images_per_second'),
        ('average_examples_per_sec', 'epoch_images_per_second'),
    ),
    'loggingmetrichook': (
        ('learning_rate', 'learning_rate'),
        ('cross_entropy', 'loss'),
        ('train_accuracy', 'accuracy'),
    ),
}


class BenchmarkLog(keras.callbacks.Callback):
    """official/resnet's BenchmarkFileLogger: benchmark_run.log (the run) and metric.log (JSON lines).

    Args:
        folder: --benchmark_log_dir; None prints the lines (its BaseBenchmarkLogger).
        run_info: what to store of the run: machine, versions, parameters.
        log_steps: between the lines of training.
        hooks: which per-step metrics: 'examplespersecondhook' (current and average images/s) and
            'loggingmetrichook' (learning_rate, cross_entropy, train_accuracy).
    """

    def __init__(
        self,
        folder: str | None,
        run_info: dict,
        log_steps: int = 100,
        hooks: Collection[str] = ('examplespersecondhook', 'loggingmetrichook'),
    ):
        super().__init__()
        self.folder = folder and pathlib.Path(folder)
        self.run_info, self.log_steps, self.hooks, self._logged = run_info, log_steps, hooks, 0

    def on_train_begin(self, logs=None):
        self._logged = self.params['first_step']
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        info = self.run_info | {'run_date': _now()}
        (self.folder / 'benchmark_run.log').write_text(json.dumps(info, indent=1) + '\n', encoding='utf-8')

    def on_train_batch_end(self, batch, logs=None):
        step = int(logs['step'])
        if step // self.log_steps == self._logged // self.log_steps:
            return
        self._logged = step
        self._write(
            [(name, logs[key]) for hook in _METRICS if hook in self.hooks for name, key in _METRICS[hook]], step
        )

    def on_epoch_end(self, epoch, logs=None):
        names = [name for name in ('accuracy', 'accuracy_top_5', 'loss') if f'val_{name}' in logs]
        if names:
            self._write([(name, logs[f'val_{name}']) for name in names], int(logs['step']))

    def on_train_end(self, logs=None):
        if logs:
            self.on_epoch_end(None, logs)

    def _write(self, metrics, step):
        rest = {'unit': None, 'global_step': step, 'timestamp': _now(), 'extras': []}
        lines = [json.dumps({'name': name, 'value': value, **rest}) for name, value in metrics]
        if self.folder is None:
            print(*lines, sep='\n', flush=True)
            return
        with open(self.folder / 'metric.log', 'a', encoding='utf-8') as file:
            file.writelines(f'{line}\n' for line in lines)


def _now():
    return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
