"""The training loop: TrainConfig in, TrainResult out; a run that is killed continues exactly where it was.

One compiled function runs several steps a call over `strategy.run`; around it stand standard Keras
callbacks. Keras' own `fit` can neither resume inside an epoch nor run several workers.

    train(config, callbacks)   -> TrainResult
    evaluate(config)           -> {'loss': ..., 'accuracy': ..., ...}
"""

import contextlib
import dataclasses
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from official_resnet import checkpoints
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.training import devices, feature_cache, optimizers, schedules, step, transfer
from official_resnet.training.config import IDENTITY, TrainConfig, difference

_VERIFY = 'find it with data/build_imagenet_data.py --verify'
POLICIES = {'fp32': 'float32', 'bf16': 'mixed_bfloat16', 'fp16': 'mixed_float16'}


class Diverged(UserError):
    """The loss or a variable is not finite any more."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C: the state is saved, the message says where."""

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.signal_number = signal_number


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Attributes:
        history: the logs of the epochs that this call trained.
        model: the trained net.
        step: global steps done, over all restarts.
        best: {'accuracy', 'epoch'} of the best evaluation on the test split, over all restarts.
        card: what model_card.write_card is to say of the model.
        process: the process that trained. Whoever is done with the result calls its wait().
    """

    history: keras.callbacks.History
    model: keras.Model
    step: int
    best: dict
    card: dict
    process: devices.Process


def train(
    config: TrainConfig, callbacks: Sequence[keras.callbacks.Callback] = (), *, block: Callable | None = None
) -> TrainResult:
    """Train to the end of config.train_epochs, from the newest checkpoint in model_dir if there is one.

    Args:
        config: TrainConfig.
        callbacks: keras.callbacks.Callback objects. Logs of an epoch: loss, accuracy (training),
            learning_rate, images_per_second, seconds, step; after an evaluation also val_loss, val_accuracy,
            val_accuracy_top_5, val_seconds, val_images_per_second (of the test split: Keras' prefix).
            One that is a context manager, as callbacks.Progress, is entered and left as such.
        block: the block function that config.experiment names, see resnet_model.resnet.

    Raises:
        UserError: wrong input, a checkpoint of another run, a full disk; Diverged: a loss that is not finite.
        Interrupted: after SIGTERM or Ctrl-C, the state being saved.
    """
    process = devices.this_process(config)
    with contextlib.ExitStack() as stack:
        if config.machine.model_dir and process.is_chief:
            stack.enter_context(checkpoints.lock(config.machine.model_dir))
        received = stack.enter_context(catch_signals())
        callbacks = callbacks if process.is_chief else ()
        for callback in callbacks:
            if isinstance(callback, contextlib.AbstractContextManager):
                stack.enter_context(callback)
        stack.enter_context(process.explained())
        return Trainer(config, process, block=block).run(callbacks, received)


def evaluate(config: TrainConfig, *, block: Callable | None = None) -> dict:
    """Evaluate the newest checkpoint in config.machine.model_dir on the whole test split.

    Returns:
        {'loss': mean cross-entropy, 'accuracy': 0..1, 'accuracy_top_5', 'num_images', 'step', 'epoch',
        'images_per_second', 'seconds', 'model', 'test': the Split}.
    """
    trainer = Trainer(config, needs_checkpoint=True, block=block)
    return trainer.evaluate() | {
        'num_images': trainer.test.num_images,
        'step': trainer.step,
        'epoch': trainer.epoch,
        'model': trainer.model,
        'test': trainer.test,
    }


def read(config, split):
    """Return the datasets.Split of a config's 'train' or 'test'; see datasets.open_split for errors."""
    examples = datasets.open_split(
        config.dataset,
        split,
        data_dir=config.machine.data_dir,
        views=config.views,
        folder=config.folder_options(),
    )
    if split == 'train':
        examples = examples.first(config.num_train_images)
    if config.background:
        examples = examples.with_background()
    return examples.with_normalization(config.normalization or examples.normalization)


class Trainer:
    """One training: the model, its optimizer, the data and the place reached in it."""

    def __init__(self, config, process=None, needs_checkpoint=False, block=None):
        self.config, self.process = config, process or devices.this_process(config)
        self.strategy = self.process.strategy
        keras.utils.set_random_seed(config.seed % 2**32)
        data = None if needs_checkpoint else read(config, 'train')  # evaluation needs no training pictures
        self.test = read(config, 'test')
        self.data = data or self.test
        self.steps_per_epoch = (
            1 if needs_checkpoint else datasets.steps_per_epoch(self.data.num_images, config.batch_size)
        )
        total_steps = config.train_epochs * self.steps_per_epoch  # the schedule's end, whatever max_train_steps cuts
        self.last_step = min(total_steps, config.max_train_steps or total_steps)
        self.model, self.optimizer = build(config, self.strategy, self.data, self.steps_per_epoch, total_steps, block)
        self.train_steps = step.make_train_function(self.strategy, self.model, self.optimizer, config)
        self._evaluate_batch = step.make_evaluate_function(self.strategy, self.model)
        self._data_info = {'class_names': list(self.test.class_names), 'num_pictures': self.data.num_images}
        self.card = transfer.card(config, self.test)
        self.step = 0  # global steps done
        self.sums = dict.fromkeys(('loss', 'correct', 'steps', 'seconds'), 0)  # of the epoch under way
        self.evaluation = {}  # the last
        self.best = {'accuracy': None, 'epoch': None}
        self._saved_at = time.monotonic()
        self._restore(needs_checkpoint)
        self._require_one_place()

    @property
    def epoch(self):
        """Epochs done."""
        return self.step // self.steps_per_epoch

    def run(self, callbacks, received):
        """Train; return a TrainResult. `received` is a list that a signal's number is appended to."""
        config = self.config
        if config.trains_on_features:
            self._use_features(received)
        callback_list = keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,
            model=self.model,
            epochs=config.train_epochs,
            steps=self.steps_per_epoch,
            batch_size=config.batch_size,
            first_step=self.step,
            last_step=self.last_step,
        )
        history = self.model.history
        self.model.stop_training = self._has_reached_threshold()
        iterator = iter(self.train_batches())
        callback_list.on_train_begin()
        while self.step < self.last_step and not self.model.stop_training:
            epoch = self.step // self.steps_per_epoch
            callback_list.on_epoch_begin(epoch)
            self._train_epoch(iterator, callback_list, received)
            logs = self._epoch_logs()
            if (epoch + 1) % config.epochs_between_evals == 0 or self.step == self.last_step:
                callback_list.on_test_begin()
                self.evaluation = self.evaluate()
                logs |= {f'val_{name}': value for name, value in self.evaluation.items()}
                if self.best['accuracy'] is None or self.evaluation['accuracy'] > self.best['accuracy']:
                    self.best = {'accuracy': self.evaluation['accuracy'], 'epoch': epoch + 1}
                callback_list.on_test_end({'loss': logs['val_loss'], 'accuracy': logs['val_accuracy']})
                self.model.stop_training |= self._has_reached_threshold()
            callback_list.on_epoch_end(epoch, logs)
            self.model.stop_training = any(self.process.total(self.model.stop_training))  # also the chief's callbacks
            if self.step % self.steps_per_epoch == 0:
                self.sums = dict.fromkeys(self.sums, 0)
            self.save()
        callback_list.on_train_end(logs=None)
        return TrainResult(history, self.model, self.step, self.best, self.card, self.process)

    def _use_features(self, received):
        """Train and evaluate the last layer on what the frozen ones make of the pictures, computed once."""

        def features(examples, split):
            folder = self.config.machine.model_dir if self.process.is_chief else None
            with examples.input_errors(_VERIFY):
                return feature_cache.features(
                    self.model,
                    examples,
                    folder and pathlib.Path(folder) / feature_cache.FILES[split],
                    check=lambda: received and self.process.count == 1 and self._interrupt(received[0]),
                )

        self.test = features(self.test, 'test')
        start = time.monotonic()
        self.data = features(self.data, 'train')
        head = feature_cache.Head(self.model)
        self.train_steps = step.make_train_function(self.strategy, head, self.optimizer, self.config)
        self._evaluate_batch = step.make_evaluate_function(self.strategy, head)
        if self.step == 0:
            self.sums['seconds'] += time.monotonic() - start  # the price of training's features is the first epoch's

    def _train_epoch(self, iterator, callback_list, received):
        """Take steps to the end of the epoch, or of the training."""
        end = min((self.step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.last_step)
        per_call = self.config.machine.steps_per_call or 1
        while self.step < end and not self.model.stop_training:
            count = min(per_call, end - self.step)
            callback_list.on_train_batch_begin(self.step % self.steps_per_epoch)
            start = time.monotonic()
            with self.data.input_errors(_VERIFY):
                results = self.train_steps(iterator, tf.constant(count)).numpy()  # [count, 2]: sums of loss, correct
            seconds = time.monotonic() - start
            self._check_finite(results[:, 0])
            for loss, correct in results.tolist():  # one by one, so that no sum depends on `count`
                self.sums['loss'] += loss
                self.sums['correct'] += correct
            self.sums['steps'] += count
            self.sums['seconds'] += seconds
            self.step += count
            callback_list.on_train_batch_end((self.step - 1) % self.steps_per_epoch, self._call_logs(count, seconds))
            is_due = (
                self.process.is_chief
                and time.monotonic() - self._saved_at > 60 * self.config.machine.save_checkpoint_minutes
            )
            signal_number, is_due, is_stopped, seconds = self.process.total(
                received[0] if received else 0, is_due, self.model.stop_training, seconds / self.process.count
            )
            if not self.config.machine.steps_per_call:  # at most double, since a first call compiles as well
                per_call = max(1, min(2 * count, int(count / seconds), 1000))
            self.model.stop_training = bool(is_stopped)
            if signal_number:
                self._interrupt(received[0] if received else signal.SIGTERM)
            if self.step < end and is_due:
                self.save()

    def evaluate(self):
        """Return loss, accuracy, accuracy_top_5, seconds, images_per_second over the test split, each image once."""
        start = time.monotonic()
        batches = self.test.evaluation_batches(self.config.batch_size, share=self._share)
        totals = np.zeros(3)
        with self.test.input_errors(_VERIFY):
            for images, labels in self._distribute(batches, self.test.num_cpu_threads):
                totals += self._evaluate_batch(images, labels).numpy()
        seconds = time.monotonic() - start
        count = self.test.num_images
        loss, accuracy, top_5 = (totals / count).tolist()
        return {
            'loss': loss,
            'accuracy': accuracy,
            'accuracy_top_5': top_5,
            'seconds': seconds,
            'images_per_second': count / seconds,
        }

    def save(self):
        """Write a checkpoint, unless a variable is not finite: then the last good one stays the last."""
        if self.config.machine.model_dir is None or not self.process.is_chief:
            return None
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        for name, array in arrays.items():
            if not np.all(np.isfinite(array)):
                raise Diverged(
                    f'{name} is not finite after step {self.step}, {self._rate_text(self.step - 1)}; '
                    'lower --base_learning_rate or raise --warmup_epochs; the last good checkpoint is kept'
                )
        state = {
            'step': self.step,
            'sums': self.sums,
            'best': self.best,
            'evaluation': self.evaluation,
            'config': self.config.to_json(),
            'data': self._data_info,
        }
        path = checkpoints.save(self._folder, self.step, arrays, state)
        self._saved_at = time.monotonic()
        return path

    def train_batches(self):
        """Return the batches from here to the end of the training, as `train_steps` takes them."""
        config = self.config
        return self._distribute(
            self.data.training_batches(
                config.batch_size,
                seed=config.seed,
                first_step=self.step,
                num_epochs=config.train_epochs,
                augment=config.augment,
                flip=config.flip,
                share=self._share,
            ),
            self.data.num_cpu_threads,
        )

    @property
    def _share(self):
        return self.process.index, self.process.count

    def _distribute(self, batches, num_threads):
        """Return the batches, split over the replicas where there are several."""
        options = tf.data.Options()
        options.threading.private_threadpool_size = self.config.machine.input_threads or num_threads
        batches = batches.with_options(options)
        return self.process.distribute(batches, self.config.batch_size)

    @property
    def _folder(self):
        return pathlib.Path(self.config.machine.model_dir) / 'checkpoints'

    def _variables(self):
        named = {variable.path: variable for variable in self.model.variables}
        # Numbered: Keras counts optimizers up within a process, and wrapped ones share names.
        return named | {
            f'optimizer/{i}/{variable.name}': variable for i, variable in enumerate(self.optimizer.variables)
        }

    def _restore(self, needs_checkpoint):
        model_dir = self.config.machine.model_dir
        found = model_dir and checkpoints.restore_latest(self._folder)
        if not found:
            if needs_checkpoint:
                raise UserError(
                    f'model_dir {model_dir!r} has no checkpoint; train there first, or pass another --model_dir'
                )
            if self.config.pretrained:
                transfer.load_backbone(self.model, self.config.pretrained, self.config.head)
            return
        arrays, state, path = found
        ours, theirs = self.config.to_json(), TrainConfig.from_json(state['config']).to_json()
        self._require_same_run(ours, theirs, state.get('data', {}), needs_checkpoint)
        checkpoints.assign(self._variables(), arrays, path)
        self.step, self.sums = state['step'], state['sums']
        self.best, self.evaluation = state['best'], state['evaluation']
        if needs_checkpoint:
            self.steps_per_epoch = datasets.steps_per_epoch(state['data']['num_pictures'], self.config.batch_size)
        for values in (ours, theirs):
            values |= values.pop('machine')
        changed = [
            difference(name, ours[name], theirs[name])
            for name in ours
            if ours[name] != theirs[name] and name not in ('data_dir', 'model_dir')
        ]
        if self.process.is_chief:
            print(
                f'continuing from {path}: epoch {self.epoch}, step {self.step}'
                + (f'; changed: {", ".join(changed)}' if changed else ''),
                flush=True,
            )

    def _require_one_place(self):
        if self.process.total(self.step) != [self.step * self.process.count]:
            raise UserError(
                f'worker {self.process.index} is at step {self.step}, another is not; model_dir '
                f'{self.config.machine.model_dir!r} must be one folder that all workers see'
            )

    def _require_same_run(self, ours, theirs, data, is_evaluation):
        """Refuse the checkpoint of another run, or of other classes or pictures than are there now."""
        wrong = [difference(field, ours[field], theirs[field]) for field in IDENTITY if ours[field] != theirs[field]]
        if transfer.is_another(ours['pretrained'], theirs['pretrained']):
            wrong.append(difference('pretrained', ours['pretrained'], theirs['pretrained']))
        changed = [
            difference(name, self._data_info[name], stored)
            for name, stored in data.items()
            if self._data_info[name] != stored
        ]
        if is_evaluation:
            wrong, changed = [], [text for text in changed if text.startswith('class_names')]
        model_dir = self.config.machine.model_dir
        if wrong:
            raise UserError(
                f'model_dir {model_dir!r} holds a run with {wrong[0]}; '
                'pass its value, another --model_dir, or --clean to delete it'
            )
        if changed:
            raise UserError(
                f'model_dir {model_dir!r} holds a run on data with {changed[0]}; pass that data, or another --model_dir'
            )

    def _has_reached_threshold(self):
        threshold = self.config.stop_threshold
        return threshold is not None and self.evaluation.get('accuracy', -1) >= threshold

    def _check_finite(self, losses):
        if not np.all(np.isfinite(losses)):
            bad = int(np.argmin(np.isfinite(losses)))
            raise Diverged(
                f'the loss is {losses[bad]} at step {self.step + bad + 1}, '
                f'{self._rate_text(self.step + bad)}; lower --base_learning_rate or raise '
                '--warmup_epochs; the last good checkpoint is kept'
            )

    def _rate_text(self, step):
        return f'learning rate {self._learning_rate(step):.6g}'

    def _learning_rate(self, step):
        rate = self.optimizer._learning_rate  # the schedule itself; the public property evaluates it at `iterations`
        return float(rate(step)) if callable(rate) else float(self.optimizer.learning_rate)

    def _epoch_logs(self):
        images = max(self.sums['steps'], 1) * self.config.batch_size
        return {
            'loss': self.sums['loss'] / images,
            'accuracy': self.sums['correct'] / images,
            'learning_rate': self._learning_rate(max(self.step - 1, 0)),
            'images_per_second': images / max(self.sums['seconds'], 1e-9),
            'seconds': self.sums['seconds'],
            'step': self.step,
        }

    def _call_logs(self, count, seconds):
        logs = self._epoch_logs()
        return logs | {
            'epoch_images_per_second': logs['images_per_second'],
            'images_per_second': count * self.config.batch_size / seconds,
        }

    def _interrupt(self, signal_number):
        path = self.save()
        where = 'nothing saved without a model_dir'
        if self.config.machine.model_dir:
            where = f'state saved in {path or self._folder}; the same command continues'
        self.process.wait()  # none ends before the state is saved
        raise Interrupted(signal_number, f'{signal.Signals(signal_number).name} at step {self.step}: {where}')


def build(config, strategy, data, steps_per_epoch, total_steps, block=None):
    """Return (model, optimizer) of a config, built, their variables created under the strategy."""
    with strategy.scope(), _dtype_policy(POLICIES[config.dtype]):
        model = transfer.build(config, data, block)
        optimizer = _make_optimizer(
            config, schedules.build(config.schedule, config.learning_rate, steps_per_epoch, total_steps)
        )
        optimizer.build(model.trainable_variables)
        # For callbacks that look at model.optimizer, and for model.evaluate of who loads the model.
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy'])
    return model, optimizer


def _make_optimizer(config, schedule):
    """Return the optimizer of a config, which scales the loss where that is asked for."""
    scale = config.loss_scale or (128.0 if config.dtype == 'fp16' else 1.0)
    factor = None if scale in (1, 'dynamic') else float(scale)
    if config.optimizer == 'momentum':
        optimizer = optimizers.CoupledSGD(
            schedule,
            config.momentum,
            config.nesterov,
            l2=config.weight_decay,
            decay=config.decay,
            backbone_factor=config.backbone_learning_rate_factor,
            head_layers=transfer.new_layers(config),
            loss_scale_factor=factor,
        )
    elif config.optimizer != 'adam':
        raise UserError(f"optimizer {config.optimizer!r} is none of 'momentum', 'adam'")
    elif config.weight_decay:
        raise UserError(
            f'weight_decay {config.weight_decay} with optimizer adam, which has none here; '
            'pass --weight_decay=0, or --optimizer=momentum'
        )
    else:  # 1412.6980 Alg. 1, with its numbers, which are torch.optim.Adam's; Keras' epsilon is 1e-7
        optimizer = optimizers.Adam(
            schedule,
            beta_1=0.9,
            beta_2=0.999,
            epsilon=1e-8,
            loss_scale_factor=factor,
            backbone_factor=config.backbone_learning_rate_factor,
            head_layers=transfer.new_layers(config),
        )
    return keras.optimizers.LossScaleOptimizer(optimizer) if scale == 'dynamic' else optimizer


@contextlib.contextmanager
def catch_signals():
    """Yield a list to which SIGTERM and the first Ctrl-C append their number; a second Ctrl-C works as ever."""
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python allows handlers in the main thread only
        return

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _dtype_policy(name):
    """Make a Keras dtype policy the default inside the context only."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
