"""Keras callbacks: what a run shows, and the files that it writes beside its checkpoints.

resnet_run_loop.train drives them; its docstring lists the logs that they read. It enters callbacks that are context
managers before training and leaves them afterwards, also if an exception ends the run.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any, TextIO

import keras
import numpy as np
import tqdm

from official_resnet import checkpoints, files
from official_resnet.inference import model_card
from official_resnet.training import devices
from official_resnet.training.config import TrainConfig


class Progress(keras.callbacks.Callback, contextlib.AbstractContextManager):
    """Show a bar per epoch on a terminal, or print a line every `log_steps`; print a line after each evaluation.

    It replaces official/resnet's LoggingTensorHook. With `log_steps` 0 there are no lines between evaluations.
    `quicker` is the advice to print if the training will take long, for example '--recipe=fast'.
    """

    LONG, SHORT, SILENT = 1800, 10, 60  # seconds: of advice; without the expected time; lines come at least so often
    BAR = '{desc}{percentage:4.0f} %|{bar}|{remaining} left, {rate_noinv_fmt}{postfix}'  # in 80 columns

    def __init__(self, log_steps: int = 100, quicker: str | None = None, stream: TextIO | None = None):
        super().__init__()
        self.log_steps, self.quicker, self.stream = log_steps, quicker, stream or sys.stderr
        self._bar: Any = None
        self._calls, self._logged, self._printed_at = 0, 0, time.monotonic()

    def on_train_begin(self, logs: Any = None) -> None:
        self._logged = self.params['first_step']
        norms = (layer for layer in self.model.layers if isinstance(layer, keras.layers.BatchNormalization))
        momentum = max((layer.momentum for layer in norms if layer.trainable), default=0.0)
        if self.params['last_step'] * (1 - momentum) < 3 - 1e-9 and not self.params['trainer'].config.pretrained:
            from official_resnet.training import few_steps

            print(few_steps.advice(momentum, self.params['last_step']), flush=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        steps, batch_size = self.params['steps'], self.params['batch_size']
        done = self.params['first_step'] % steps if not self._calls else 0
        options = {'unit': ' images', 'unit_scale': True, 'leave': False, 'dynamic_ncols': True, 'file': self.stream}
        options |= {'desc': f'epoch {epoch + 1}/{self.params["epochs"]}', 'disable': not self.stream.isatty()}
        options['postfix'] = 'compiling' if not self._calls else None
        self._bar = tqdm.tqdm(total=steps * batch_size, initial=done * batch_size, bar_format=self.BAR, **options)

    def on_test_begin(self, logs: Any = None) -> None:
        self._bar.set_postfix_str('evaluating')

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._calls += 1
        if self._calls == 2:  # the first call compiles
            self._say_expected_time(logs)
        self._bar.set_postfix_str(f'loss {logs["loss"]:.3f}, top-1 {logs["accuracy"]:.3f}', refresh=False)
        self._bar.update((batch + 1) * self.params['batch_size'] - self._bar.n)
        step = int(logs['step'])  # Keras turns the numbers in logs into floats
        is_silent = time.monotonic() - self._printed_at > self.SILENT
        is_due = self.log_steps and (is_silent or step // self.log_steps > self._logged // self.log_steps)
        if self._bar.disable and is_due:
            text = f'step {step}: loss {logs["loss"]:.4f}, accuracy {logs["accuracy"]:.4f}, '
            rates = f'learning rate {logs["learning_rate"]:.5g}, {logs["images_per_second"]:.0f} images/s'
            print(text + rates, flush=True)
            self._printed_at = time.monotonic()
        self._logged = step

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._bar.close()
        self._printed_at = time.monotonic()
        text = f'epoch {epoch + 1}/{self.params["epochs"]}: loss {logs["loss"]:.4f}, {logs["accuracy"]:.2%}'
        if 'val_accuracy' in logs:
            text += f'; {self._test_text(logs)}'
        print(f'{text}; {logs["images_per_second"]:.0f} images/s', flush=True)  # in 80 columns

    def on_train_end(self, logs: Any = None) -> None:
        if logs:
            print(self._test_text(logs), flush=True)

    def _test_text(self, logs):
        return f'test loss {logs["val_loss"]:.4f}, {logs["val_accuracy"]:.2%}'

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()  # it is still shown if an exception ends the run

    def _say_expected_time(self, logs):
        rate, left = logs['images_per_second'], self.params['last_step'] - logs['step']
        seconds = left * self.params['batch_size'] / rate
        advice = f'; no GPU was found: {self.quicker}' if self.quicker and seconds > self.LONG else ''
        text = f'expected time: {format_seconds(seconds)} at {rate:.0f} images/s, without evaluation{advice}'
        if seconds >= self.SHORT:
            tqdm.tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


class Summary(keras.callbacks.Callback):
    """Describe a run in three lines when it begins."""

    def __init__(self, config: TrainConfig, recipe: str):
        super().__init__()
        self.config, self.recipe = config, recipe

    def on_train_begin(self, logs: Any = None) -> None:
        config, spec, params = self.config, self.config.spec, self.params
        count = f'{sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables):,} parameters'
        if config.pretrained:
            from official_resnet.training import transfer

            print(f'starting from {config.pretrained}')
            count = transfer.parameters_of(self.model)
        network = f'ResNet-{spec.resnet_size} version {spec.version}, shortcut {spec.shortcut}, {count}'
        data = f'{config.dataset}: {params["num_images"]:,} training, {params["num_test_images"]:,} test images'
        course = f'{config.optimizer}, rate {config.learning_rate:.4g} {config.schedule.kind}, seed {config.seed}'
        print(f'network   {network}, {config.dtype}\ndata      {data} of {params["input_shape"]}')
        length = f'{config.train_epochs} epoch{"s" * (config.train_epochs > 1)}, batch {config.batch_size}'
        print(f'training  {self.recipe}: {length}, {course}', flush=True)


@dataclasses.dataclass
class Curve:
    """The rows of steps.csv: sums over windows of `every` steps, of their number, their loss and their hits.

    Before there are more than MOST, pairs of rows become one. So they depend on the steps, not on interruptions.
    """

    MOST = 1000
    every: int = 1
    rows: list[list[float]] = dataclasses.field(default_factory=list)

    def add(self, step: int, loss: float, hits: float) -> None:
        """Add the sums of the loss and the hits over a step's images. Steps are counted from 1."""
        while step > self.MOST * self.every:
            self.every, self.rows = 2 * self.every, np.add(self.rows[::2], self.rows[1::2]).tolist()
        while step > len(self.rows) * self.every:  # more than once if an older checkpoint had no rows
            self.rows.append([0, 0, 0])
        self.rows[-1] = [sum(pair) for pair in zip(self.rows[-1], (1, loss, hits), strict=True)]

    def write(self, trainer: Any) -> None:
        """Write steps.csv: the last step of each window, the mean loss and accuracy, and the learning rate there."""
        path = pathlib.Path(trainer.config.machine.model_dir) / checkpoints.STEPS_FILE
        count, *sums = np.reshape(self.rows, (-1, 3)).T
        steps = np.minimum(np.arange(1, len(count) + 1) * self.every, trainer.step)
        rates, means = trainer.schedule(steps - 1), sums / np.maximum(count, 1) / trainer.config.batch_size
        table = np.stack([steps, *means, np.broadcast_to(rates, steps.shape)], 1)[count > 0]
        with files.write_errors(f"'{path}'", checkpoints.AGAIN), files.replacing(path) as part:
            np.savetxt(part, table, ('%d', *['%.6g'] * 3), ',', header='step,loss,accuracy,learning_rate', comments='')


class Record(keras.callbacks.Callback):
    """Write a run into its model_dir; `train` adds this callback.

    When it begins: config.json; network.json and model.card.json, with which inference.predict.load reads a checkpoint.
    After an epoch: a line per split in metrics.jsonl, with the keys split ('train' or 'test'), epoch (from 1), step
    (global), loss, accuracy (0..1), learning_rate, images_per_second, seconds; for 'test' also accuracy_top_5. The file
    is written from the trainer's rows, which are in its checkpoint, so that a resumed run has the lines up to there.
    After an evaluation that is better than all before: best.keras. At its end: model.keras.
    """

    def __init__(self, trainer: Any, recipe: str | None = None):
        super().__init__()
        config, self._is_done, self._card, self._rows = trainer.config, trainer.is_done, trainer.card, trainer.rows
        self.folder, self._epoch = pathlib.Path(config.machine.model_dir), 0
        self.path = self.folder / checkpoints.METRICS_FILE
        self._about = {'recipe': recipe, 'config': config.to_json(), 'machine': devices.machine_info()}

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._is_done or not (self.folder / 'config.json').exists():
            files.write_json(self.folder / 'config.json', self._about)
        self.model.compiled = False  # loading it must not need our optimizer
        files.write_text(self.folder / checkpoints.NETWORK_FILE, self.model.to_json())
        self.model.compiled = True
        model_card.write_card(self.folder / 'model.card.json', **self._card)  # also of the checkpoints
        self._write_rows()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1
        self._add('train', '', logs)
        if 'val_loss' in logs:
            self._add_test(logs)
        self._write_rows()

    def on_train_end(self, logs: Any = None) -> None:
        if logs:
            self._add_test(logs)
            self._write_rows()
        self._write_network('model')

    def _add_test(self, logs):
        best = max((row['accuracy'] for row in self._rows if row['split'] == 'test'), default=-1)
        if logs['val_accuracy'] > best:  # before its row is saved, so that a run that is killed here writes it again
            model_card.write_card(self.folder / 'best.card.json', **self._card)
            self._write_network('best')
        self._add('test', 'val_', logs)

    def _write_network(self, name):
        model_card.write_network(self.folder / f'{name}.keras', self.model, checkpoints.AGAIN)

    def _add(self, split, prefix, logs):
        names = ('loss', 'accuracy', 'learning_rate', 'images_per_second', 'seconds', 'accuracy_top_5')
        found = {name: logs.get(prefix + name, logs.get(name)) for name in names}
        line = {'split': split, 'epoch': self._epoch, 'step': int(logs['step'])}
        self._rows.append(line | {name: value for name, value in found.items() if value is not None})

    def _write_rows(self):
        with files.write_errors(f"'{self.path}'", checkpoints.AGAIN):
            files.write_text(self.path, ''.join(json.dumps(row) + '\n' for row in self._rows))


def card_of(config: TrainConfig, test: Any) -> dict[str, Any]:
    """Return the arguments of model_card.write_card for the network of a config and images like those of a Split."""
    experiment = {'experiment': config.experiment} if config.experiment else {}
    filters = {'interpolation': 'bicubic'} if test.views and test.views.resize == 'bicubic' else {}
    return experiment | {
        'spec': config.spec,
        'normalization': test.normalization,
        'image_shape': test.image_shape,
        'input_shape': test.input_shape,
        'class_names': test.class_names,
        'ids': test.class_ids if test.class_ids != test.class_names else None,  # ids of own images are their names
        'num_classes': config.num_classes,
        'view': {'resize': test.resize, 'exif': not test.views or test.views.uses_exif} | filters,
        'head': config.head,
        'pretrained_classes': config.pretrained_classes,
    }


def format_seconds(seconds: float) -> str:
    """Return '2 h 05 min', '12 min' or '40 s'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 90 else f'{minutes} min'
