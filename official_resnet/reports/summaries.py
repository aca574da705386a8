"""What TensorBoard shows of a run: curves by step, and after each evaluation what is confused, and some mistakes."""

import contextlib
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from official_resnet.errors import one_line
from official_resnet.reports import evaluate, report
from official_resnet.training import feature_cache

CURVES = ('loss', 'accuracy', 'learning_rate', 'images_per_second', 'gradient_norm')
MAX_PAIRS, MAX_MISTAKES = 30, 8
CELL, TILE, CAPTION = 24, 128, 32  # pixels: of the matrix; of the side of a mistake; of the height of its caption


class Summaries(keras.callbacks.Callback, contextlib.AbstractContextManager):
    """Write summaries into folder/train and folder/test. Their steps are those of metrics.jsonl.

    train: loss, accuracy, learning_rate, images_per_second (of the call that took the step) and gradient_norm.
    test: loss, accuracy, accuracy_top_5; confusion_matrix, an image, for up to evaluate.MAX_MATRIX classes;
    confusions, a table; mistakes, images with their true and their guessed class, the most confident first.
    """

    def __init__(self, folder: str):
        super().__init__()
        self._writers = {
            split: tf.summary.create_file_writer(str(pathlib.Path(folder, split))) for split in ('train', 'test')
        }
        self._guess: Any = None

        @tf.function(reduce_retracing=True)  # 0.05 ms a step; one by one, eagerly, 4 ms
        def write(steps, values) -> None:
            with self._writers['train'].as_default():
                for i in tf.range(tf.size(steps)):
                    with tf.name_scope(''):  # or the names would begin with that of the loop
                        for j, name in enumerate(CURVES):
                            tf.summary.scalar(name, values[i, j], step=steps[i])

        self._write = write

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        trainer = self.params['trainer']
        count, batch_size = len(trainer.results), trainer.config.batch_size
        steps = np.arange(trainer.step - count, trainer.step)  # before each
        rates, norms = trainer.schedule(steps), trainer.watched.newest(count)
        columns = *trainer.results.T / batch_size, rates, logs['images_per_second'], norms  # those of CURVES
        values = np.stack([np.broadcast_to(column, count) for column in columns], 1).astype(np.float32)
        self._write(tf.constant(steps + 1, tf.int64), tf.constant(values))

    def on_epoch_end(self, epoch: int | None, logs: Any = None) -> None:
        if 'val_loss' in logs:
            with self._writers['test'].as_default(int(logs['step'])):
                for name in ('loss', 'accuracy', 'accuracy_top_5'):
                    tf.summary.scalar(name, logs[f'val_{name}'])
                self._show_mistakes()
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        if logs:
            self.on_epoch_end(None, logs)

    def __exit__(self, *exception):
        """Write what is left, also if an exception ends the run."""
        for writer in self._writers.values():
            writer.close()

    def _show_mistakes(self):
        trainer, test = self.params['trainer'], self.params['test']
        config, model = trainer.config, self.model
        if not self._guess:
            model = feature_cache.head_of(model) if config.trains_on_features else model
            self._guess = evaluate.make_guess(model, config.test_views)
        with test.input_errors():
            found = self._guess(trainer.test.evaluation_batches(config.batch_size))
        names, ids = evaluate.names_of_outputs(test, self.model.output_shape[-1])
        names = [one_line(name) for name in names]
        about = evaluate.report(found.labels, found.classes, names, ids)
        if len(names) <= evaluate.MAX_MATRIX:
            shares = np.array(evaluate.matrix(about)) / np.maximum([[row['count']] for row in about['classes']], 1)
            image = np.kron(shares, np.ones((CELL, CELL)))[None, :, :, None].astype(np.float32)
            tf.summary.image('confusion_matrix', image, description='Rows are the true classes; white is a whole row.')
        lines = ['true class | guess | images | fraction of the class', '---|---|---:|---:']
        for pair in about['confusions'][:MAX_PAIRS]:
            true, guessed = (names[pair[which]].replace('|', r'\|') for which in ('true', 'guessed'))
            lines.append(f'{true} | {guessed} | {pair["count"]} | {pair["share"]:.1%}')
        tf.summary.text('confusions', '\n'.join(lines))
        wrong = np.flatnonzero(found.classes[:, 0] != found.labels)
        wrong = wrong[np.argsort(-found.probabilities[wrong, 0], kind='stable')][:MAX_MISTAKES]
        if len(wrong):
            images = report.images_at(test, found.rows[wrong].tolist(), config.batch_size)
            tiles = [
                _tile(image, names[found.labels[i]], f'{names[found.classes[i, 0]]}, {found.probabilities[i, 0]:.0%}')
                for image, i in zip(images, wrong, strict=True)
            ]
            tf.summary.image('mistakes', np.stack(tiles), max_outputs=MAX_MISTAKES)


def _tile(image, true, guess):
    """Return an image, float [h, w, 1 or 3] in 0..255, with its classes below it, uint8 [h, w, 3] of a fixed size."""
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    tile = Image.new('RGB', (TILE, TILE + CAPTION), 'white')
    tile.paste(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).resize((TILE, TILE)))
    font, draw = ImageFont.load_default(11), ImageDraw.Draw(tile)
    for line, text in enumerate((f'true: {true}', f'guess: {guess}')):
        draw.text((2, TILE + 1 + line * CAPTION // 2), text, 'black', font)
    return np.asarray(tile)
