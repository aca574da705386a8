"""The training loop: it turns a TrainConfig into a TrainResult. A run that is killed continues exactly where it was:
a checkpoint has every variable and the open epoch's sums, and the input is a function of (seed, step) alone.

    result = train(config, callbacks)        # result.model, result.best, ...
    evaluate(config)['accuracy']

Start reading at Trainer.run, the loop over epochs, then _train_epoch, the loop over steps (the step itself is in
training/step.py), evaluate, save and _resume. The loop calls standard Keras callbacks. It does not use Keras' own
`fit`, which cannot resume inside an epoch and cannot train in several processes.
"""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from official_resnet import checkpoints, resnet_model
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.training import devices, optimizers, step
from official_resnet.training.callbacks import Curve, Progress, Record, card_of
from official_resnet.training.config import TrainConfig

if TYPE_CHECKING:
    from official_resnet.inputs.split import Split


_TRAINING = threading.Lock()
KEPT_BYTES = 2**28  # most that the decoded images of a test may take


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns: the trained network and a summary of its training."""

    history: keras.callbacks.History  # logs of the epochs trained by this call
    model: keras.Model
    step: int  # number of steps done, over all restarts
    best: dict  # {'accuracy', 'epoch'} of the best evaluation on the test split, over all restarts
    process: devices.Process  # the process that trained; call its wait() before the process ends


def train(
    config: TrainConfig,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    *,
    block: Callable | None = None,
    recipe: str | None = None,
) -> TrainResult:
    """Train until config.train_epochs are done, starting from the newest checkpoint in model_dir if there is one.

    What callbacks.Record lists is written into config.machine.model_dir, unless that is None or the run is finished.

    >>> network, machine = resnet.ResNetSpec((1, 1), filters=4), resnet.MachineConfig(model_dir='run')
    >>> config = resnet.TrainConfig(network, dataset='synthetic', max_train_steps=2, machine=machine)
    >>> train(config).step
    --bn_momentum=0.997 needs ...
    epoch 1/1: loss ...
    2

    Args:
        config: What to train, and where.
        callbacks: Keras callbacks; None shows the progress. An epoch's logs are loss, accuracy (training),
            learning_rate, images_per_second, seconds, step; after an evaluation also val_loss, val_accuracy,
            val_accuracy_top_5, val_seconds, val_images_per_second (of the test split: 'val_' is Keras' prefix). Those
            that are context managers, like callbacks.Progress, are entered before training and left afterwards. If a
            callback stops the run, the loop evaluates (unless it just has) and passes the logs to on_train_end.
        block: The block function for config.experiment, see resnet_model.resnet; None for that of the spec.
        recipe: The name of the recipe that made the config, for config.json.

    Raises:
        UserError: Wrong input, a checkpoint of another run, a full disk, another train() in this process;
            stopping.Diverged: a loss that is not finite.
        Interrupted: SIGTERM or Ctrl-C arrived. The state has been saved.
    """
    with contextlib.ExitStack() as stack:
        if not _TRAINING.acquire(blocking=False):  # two would draw from the random generators of one process
            raise UserError('another train() runs in this process; wait until it returns, or train in another process')
        stack.callback(_TRAINING.release)
        process = devices.this_process(config)
        if config.machine.model_dir and process.is_chief:
            stack.enter_context(checkpoints.lock(config.machine.model_dir))
        received = stack.enter_context(devices.catch_signals())
        chosen = list((Progress(),) if callbacks is None else callbacks) if process.is_chief else []
        for callback in chosen:
            if isinstance(callback, contextlib.AbstractContextManager):
                stack.enter_context(callback)
        stack.enter_context(process.explained())
        trainer = Trainer(config, process, block=block)
        if config.machine.model_dir and process.is_chief:
            chosen.insert(0, Record(trainer, recipe))
        return trainer.run([] if trainer.is_finished else chosen, received)  # its files stay as they are


def evaluate(config: TrainConfig, *, block: Callable | None = None) -> dict:
    """Evaluate the newest checkpoint in config.machine.model_dir on the whole test split.

    >>> network, machine = resnet.ResNetSpec((1, 1), filters=4), resnet.MachineConfig(model_dir='run')
    >>> config = resnet.TrainConfig(network, dataset='synthetic', max_train_steps=2, machine=machine)
    >>> _ = resnet.train(config, callbacks=())
    >>> evaluate(config)['num_images']
    2000

    Returns:
        {'loss': mean cross-entropy, 'accuracy': 0..1, 'accuracy_top_5': 0..1, 'num_images', 'step', 'epoch',
        'images_per_second', 'seconds', 'model', 'test': the Split}.
    """
    from official_resnet.inference import network_files
    from official_resnet.inputs import classes
    from official_resnet.training import same_run

    process, model_dir = devices.this_process(config), config.machine.model_dir
    weights, state, path = network_files.restore_weights(model_dir, use_weights=config.use_weights)
    batch_size = same_run.stored_config(state, path).batch_size
    names, ids = state['data']['class_names'], state['data'].get('class_ids')  # older checkpoints have no ids
    test = classes.align(read(config, 'test'), names, ids, f'the training images of {model_dir}')
    with process.strategy.scope(), devices.dtype_policy(config.dtype):
        model = build_model(config, test, block)
    checkpoints.assign(checkpoints.named(model), weights, path)
    epoch = state['step'] // datasets.steps_per_epoch(state['data']['num_pictures'], batch_size)
    if process.is_chief:
        same_run.log_place('evaluating', path, epoch, config, state)
    process.require_same_step(state['step'], model_dir)
    evaluate_batch = step.make_evaluate_function(process.strategy, model, config.test_views)
    about = {'step': state['step'], 'epoch': epoch, 'num_images': test.num_images, 'model': model, 'test': test}
    return _score(test, _test_batches(test, process, config), evaluate_batch) | about


def read(config: TrainConfig, split: str) -> 'Split':
    """Return the 'train' or 'test' split of a config. datasets.open_split lists the errors."""
    opened = datasets.open_split(
        config.dataset, split, data_dir=config.machine.data_dir, views=config.views, folder=config.folder_options()
    )
    if split == 'train':
        opened = opened.first(config.num_train_images)
    if config.background:
        opened = opened.with_background()
    return opened.with_normalization(config.normalization or opened.normalization)


def build_model(config: TrainConfig, split: 'Split', block: Callable | None = None) -> keras.Model:
    """Return the untrained network of a config for the images and classes of a split.

    Raises:
        UserError: The split has more classes than config.num_classes, or an experiment lacks its `block`.
    """
    if bool(config.experiment) != bool(block):
        raise UserError(
            f'config.experiment={config.experiment} and block={block} belong together; run the program of the '
            'experiment, or pass block=experiments.blocks.make_block(config.experiment)'
        )
    num_classes = config.num_classes or split.num_classes
    if num_classes < split.num_classes:
        raise UserError(
            f'--num_classes={num_classes} with {split.num_classes} classes in {split.name}; '
            f'pass {split.num_classes} or more, or leave the flag out'
        )
    if config.transfer == 'all' and config.head != 'append':
        return resnet_model.resnet(config.spec, num_classes, split.model_shape, block)
    from official_resnet.training import transfer

    return transfer.build(config, num_classes, split.model_shape, block)


class Trainer:
    """A run: the network, its optimizer, the data, and how far it has come.

    Attributes:
        data, test: The training split and the test split.
        step: Number of steps done, over all restarts. is_done: no step is left; is_finished: nor a file to write.
        sums: Sums over the current epoch: the loss and number correct of its images, its steps and seconds.
        is_epoch_open: Whether the current epoch has steps that have not been evaluated, logged and saved.
        card: Arguments of model_card.write_card.
        evaluation: The newest result of `evaluate`, with its epoch; best: {'accuracy', 'epoch'} of the best one.
        rows, curve: Those of metrics.jsonl, which callbacks.Record adds, and of steps.csv; saved with the state.
        averages: The weight_averaging.WeightAverages, or None.
        train_steps: The compiled function of step.make_train_function, called with train_batches' iterator.
    """

    def __init__(self, config: TrainConfig, process: devices.Process | None = None, *, block: Callable | None = None):
        self.config, self.process = config, process or devices.this_process(config)
        keras.utils.set_random_seed(config.seed % 2**32)
        self.data, self.test = read(config, 'train'), read(config, 'test')
        if config.head == 'keep' or self.test.class_names != self.data.class_names:
            from official_resnet.training import transfer

            self.data, self.test = transfer.with_same_classes(self.data, self.test, config)
        self.steps_per_epoch = datasets.steps_per_epoch(self.data.num_images, config.batch_size)
        total_steps = config.train_epochs * self.steps_per_epoch  # the schedule ends here, also with max_train_steps
        self.last_step = min(total_steps, config.max_train_steps or total_steps)
        # For the schedule, an epoch has images / batch_size steps, not rounded, as in official/resnet.
        schedule_epoch = self.data.num_images / config.batch_size
        self.schedule = optimizers.make_schedule(config.schedule, config.learning_rate, schedule_epoch, total_steps)
        with self.process.strategy.scope(), devices.dtype_policy(config.dtype):
            self.model = build_model(config, self.data, block)
            devices.require_right_gradients(self.model)
            self.optimizer = optimizers.build(config, self.schedule)
            self.optimizer.build(self.model.trainable_variables)
            # For callbacks that use model.optimizer, and for model.evaluate after the model is loaded.
            self.model.compile(
                self.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy']
            )
        if config.loss == 'sigmoid_sum':
            from official_resnet.training import losses

            losses.start_head(self.model)
        self.step, self.is_epoch_open, self._received, self._saved_at = 0, False, list[int](), time.monotonic()
        self.sums: dict[str, float] = dict.fromkeys(('loss', 'correct', 'steps', 'seconds'), 0)
        self.best: dict[str, Any] = {'accuracy': None, 'epoch': None}
        self.evaluation, self.rows, self.curve = dict[str, float](), list[dict[str, Any]](), Curve()
        self._data_info = datasets.describe(self.data, self.test)
        self.card, self.is_done, self.is_finished = card_of(config, self.test), False, False
        self.averages: Any = None
        self._resume()
        self.compile(self.model)

    def compile(self, net: keras.Model) -> None:
        """Create the functions that train and evaluate a network. They are compiled when they are first called."""
        strategy, after_step = self.process.strategy, self.averages and self.averages.update
        optimizer = self.optimizer
        if self.config.machine.enable_tensorboard:
            from official_resnet.training import gradient_norm

            optimizer = self.watched = gradient_norm.Watched(optimizer, strategy, self.config.machine.steps_per_call)
        self.train_steps = step.make_train_function(strategy, net, optimizer, self.config, after_step)
        self._evaluate_batch = step.make_evaluate_function(strategy, net, self.config.test_views)
        self._test_batches = _test_batches(self.test, self.process, self.config, is_repeated=True)

    def run(self, callbacks: Sequence[keras.callbacks.Callback], received: list[int]) -> TrainResult:
        """Train; see `train`. `received` is the list to which the number of a signal is appended."""
        config, test = self.config, self.test
        if config.trains_on_features and not self.is_finished:
            from official_resnet.training import feature_cache

            feature_cache.replace_images(self, received)
        params: dict[str, Any] = {'trainer': self, 'test': test, 'input_shape': self.card['input_shape']}
        params |= {'epochs': -(-max(self.last_step, self.step) // self.steps_per_epoch), 'steps': self.steps_per_epoch}
        params |= {'batch_size': config.batch_size, 'first_step': self.step, 'last_step': self.last_step}
        params |= {'num_images': self.data.num_images, 'num_test_images': self.test.num_images}
        callback_list = keras.callbacks.CallbackList(list(callbacks), add_history=True, model=self.model, **params)
        history = self.model.history
        self.model.stop_training = bool(self.why_stopped()) and not self.is_epoch_open  # which is not evaluated
        iterator = iter(self.train_batches())
        self._received = received
        callback_list.on_train_begin()
        final_logs, path = None, None
        while (self.step < self.last_step or self.is_epoch_open) and not self.model.stop_training:
            epoch = (self.step - int(self.is_epoch_open)) // self.steps_per_epoch
            callback_list.on_epoch_begin(epoch)
            self._train_epoch(epoch, iterator, callback_list)
            logs = self._epoch_logs()
            is_end = self.step == self.last_step or self.model.stop_training
            if is_end or (epoch + 1) % config.epochs_between_evals == 0:
                logs |= self._test(epoch, callback_list)
            callback_list.on_epoch_end(epoch, logs)
            # Also by the chief's callbacks.
            self.model.stop_training = any(self.process.total(self.model.stop_training))
            self.is_epoch_open = False
            if self.step % self.steps_per_epoch == 0:
                self.sums = dict.fromkeys(self.sums, 0)
            if self.model.stop_training and 'val_loss' not in logs:  # a callback stopped the run here
                final_logs = logs | self._test(epoch, callback_list)
            path = self.save()
        if self.process.is_chief and (reason := self.why_stopped()):
            logging.getLogger(__name__).info(reason)
        if self.averages:
            self.averages.show(True)
        callback_list.on_train_end(final_logs)
        if final_logs:  # whose row has only now been added
            self.save()
        self._heed(path)
        return TrainResult(history, self.model, self.step, self.best, self.process)

    def _train_epoch(self, epoch, iterator, callback_list):
        """Train to the end of the epoch, or of the training, with several steps in each call of the compiled loop."""
        if self.averages:
            self.averages.show(False)
        end = min((epoch + 1) * self.steps_per_epoch, self.last_step)
        fixed = self.config.machine.steps_per_call
        per_call = fixed or 1
        while self.step < end and not self.model.stop_training:
            count = min(per_call, end - self.step)
            callback_list.on_train_batch_begin(self.step % self.steps_per_epoch)
            seconds = self._take_steps(iterator, count)
            logs = self._epoch_logs()
            logs['epoch_images_per_second'] = logs['images_per_second']
            logs['images_per_second'] = count * self.config.batch_size / seconds
            callback_list.on_train_batch_end((self.step - 1) % self.steps_per_epoch, logs)
            is_save_due = time.monotonic() - self._saved_at > self.config.machine.save_checkpoint_minutes * 60
            asked = self.process.is_chief and is_save_due, self.model.stop_training, seconds / self.process.count
            is_save_due, is_stopped, seconds = self.process.total(*asked)
            if not fixed:  # aim at a second; at most double, since the first call also compiles
                per_call = max(1, min(2 * count, int(count / seconds), 1000))
            self.model.stop_training = bool(is_stopped)
            self._heed()
            if is_save_due and self.step < end:  # at the end of an epoch, run() saves
                self.save()

    def _take_steps(self, iterator, count):
        """Train on the next `count` batches and add up their results; return the seconds that it took."""
        start = time.monotonic()
        with self.data.input_errors():
            results = self.train_steps(iterator, tf.constant(count)).numpy()  # [count, 2]: sums of loss, correct
        seconds = time.monotonic() - start
        losses = results[:, 0]
        if not np.all(np.isfinite(losses)):
            from official_resnet.training import stopping

            bad = int(np.argmin(np.isfinite(losses)))
            raise stopping.diverged(self, f'the loss is {losses[bad]} at step {self.step + bad + 1}', self.step + bad)
        for loss, correct in results.tolist():  # one by one, so that the sums do not depend on `count`
            self.step += 1
            self.sums['loss'] += loss
            self.sums['correct'] += correct
            self.curve.add(self.step, loss, correct)
        self.results = results
        self.sums['steps'] += count
        self.sums['seconds'] += seconds
        self.is_epoch_open = True
        return seconds

    def train_batches(self) -> Iterable:
        """Return the batches from the current step to the end of the training, for `train_steps`."""
        batches = self.data.training_batches(
            self.config.batch_size,
            seed=self.config.seed,
            first_step=self.step,
            num_epochs=self.config.train_epochs,
            augment=self.config.augment,
            flip=self.config.flip,
            options=self.config.augmentation,
            share=(self.process.index, self.process.count),
        )
        return _feed(batches, self.data.num_cpu_threads, self.process, self.config)

    def evaluate(self, check: Callable[[], None] = lambda: None) -> dict:
        """Return loss, accuracy, accuracy_top_5, seconds, images_per_second over the test split, each image once.

        `check` is called after each batch and may raise.
        """
        return _score(self.test, self._test_batches, self._evaluate_batch, check)

    def _test(self, epoch, callback_list):
        """Save, so that a signal has nothing to wait for; evaluate after an epoch, update `best`, return the logs."""
        callback_list.on_test_begin()
        path = self.save()
        if self.averages:
            self.averages.show(True)
        scores = self.evaluate(lambda: self._heed(path))
        self.evaluation, accuracy = scores | {'epoch': epoch + 1}, scores['accuracy']
        if self.best['accuracy'] is None or accuracy > self.best['accuracy']:
            self.best = {'accuracy': accuracy, 'epoch': epoch + 1}
        callback_list.on_test_end({'loss': scores['loss'], 'accuracy': accuracy})
        self.model.stop_training |= bool(self.why_stopped())
        return {f'val_{name}': value for name, value in scores.items()}

    def why_stopped(self):
        """Return why the newest evaluation ends the run, or '' if it does not: stop_threshold or patience."""
        if self.config.stop_threshold is None and self.config.patience is None:
            return ''
        from official_resnet.training import stopping

        return stopping.reason(self.config, self.evaluation, self.best)

    def _epoch_logs(self):
        images = max(self.sums['steps'], 1) * self.config.batch_size
        return {
            'loss': self.sums['loss'] / images,
            'accuracy': self.sums['correct'] / images,
            'learning_rate': float(self.schedule(max(self.step - 1, 0))),
            'images_per_second': images / max(self.sums['seconds'], 1e-9),
            'seconds': self.sums['seconds'],
            'step': self.step,
        }

    # --- save and resume -----------------------------------------------------------------------------------------

    def save(self) -> pathlib.Path | None:
        """Write a checkpoint and steps.csv; return its path. If a variable is not finite, raise and write nothing."""
        if self.config.machine.model_dir is None or not self.process.is_chief:
            return None
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        if wrong := next((name for name, array in arrays.items() if not np.all(np.isfinite(array))), ''):
            from official_resnet.training import stopping

            raise stopping.diverged(self, f'{wrong} is not finite after step {self.step}', self.step - 1)
        state = {
            'step': self.step,
            'is_epoch_open': self.is_epoch_open,
            'sums': self.sums,
            'best': self.best,
            'evaluation': self.evaluation,
            'rows': self.rows,
            'curve': vars(self.curve),
            'config': self.config.to_json(),
            'data': self._data_info,
            'uses_onednn': devices.uses_onednn(),
        }
        path = checkpoints.save(self._folder, self.step, arrays, state)
        self.curve.write(self)
        self._saved_at = time.monotonic()
        return path

    def _resume(self):
        """Continue from the newest checkpoint, which must be of this run and data, else load pretrained weights."""
        model_dir = self.config.machine.model_dir
        found = model_dir and checkpoints.restore_latest(self._folder)
        if self.config.pretrained and not found:
            from official_resnet.training import transfer

            transfer.load_backbone(self.model, self.config.pretrained, self.config.head)
        elif self.config.spec.stem == 'whitening' and not found:
            from official_resnet.training import whitening

            whitening.set_stem(self.model, self.data)
        if self.config.weight_averaging != 'none':  # from the weights on with which the run begins
            from official_resnet.training import weight_averaging

            self.averages = weight_averaging.WeightAverages(self)
        if found:
            from official_resnet.training import same_run

            same_run.resume(self, self._variables(), self._data_info, found)
        self.process.require_same_step(self.step, model_dir)

    def _heed(self, path=None):
        """End the run if a process has received a signal. `path` is the checkpoint of the present state, if any."""
        number = self._received[0] if self._received else 0
        if any(self.process.total(number)):
            from official_resnet.training import stopping

            stopping.interrupt(self, number or signal.SIGTERM, path)

    @property
    def _folder(self):
        return pathlib.Path(self.config.machine.model_dir) / 'checkpoints'

    def _variables(self):
        named = checkpoints.named(self.model) | (self.averages.named() if self.averages else {})
        # Numbered, because Keras numbers optimizers within a process, and a wrapped optimizer repeats names.
        return named | {
            f'optimizer/{i}/{variable.name}': variable for i, variable in enumerate(self.optimizer.variables)
        }


def _test_batches(test, process, config, is_repeated=False):
    """Return the batches of an evaluation. If they are few and read repeatedly, encoded images are decoded once."""
    batches = test.evaluation_batches(config.batch_size, share=(process.index, process.count))
    if is_repeated and test.views and 4 * test.num_images * np.prod(test.input_shape) <= KEPT_BYTES:  # float32
        batches = batches.cache()
    return _feed(batches, test.num_cpu_threads, process, config)


def _score(test, batches, evaluate_batch, check=lambda: None):
    """Return loss, accuracy, accuracy_top_5, seconds, images_per_second; each image of the split counts once."""
    start = time.monotonic()
    totals = np.zeros(3)
    with test.input_errors():
        for images, labels in batches:
            totals += evaluate_batch(images, labels).numpy()
            check()
    seconds = time.monotonic() - start
    loss, accuracy, top_5 = (totals / test.num_images).tolist()
    scores = {'loss': loss, 'accuracy': accuracy, 'accuracy_top_5': top_5}
    return scores | {'seconds': seconds, 'images_per_second': test.num_images / seconds}


def _feed(batches, num_threads, process, config):
    """Return batches that are made by private threads and split over the devices of a process."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = config.machine.input_threads or num_threads
    return process.distribute(batches.with_options(options), config.batch_size)
