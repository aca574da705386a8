"""The measures of benchmarks.scaling: what grows with a run, at 1x, 2x and 4x, each in a separate process.

Each takes 5 to 25 seconds on two cores. Index, order, decoding and reading are measured in CPU time, checkpoints and
evaluations by the shortest of three runs, because other jobs disturb these less. Two workers measure both times.
"""

import functools
import gc
import io
import math
import pathlib
import statistics
import tempfile
import time
import timeit
import tracemalloc
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import jpeg_input
from benchmarks.measuring import sampled, timed
from benchmarks.scaling_model import BYTES
from benchmarks.training import ready_batches, stepping, synthetic_trainer
from official_resnet import checkpoints, resnet_model, resnet_variants
from official_resnet.errors import UserError
from official_resnet.experiments import architecture_table
from official_resnet.inputs import in_memory, shards, streamed, tfrecords
from official_resnet.inputs.affine import OFFICIAL
from official_resnet.inputs.views import Views

SCALES = (1, 2, 4)
PARTS = 64  # tensors that the measured all-reduce packs into one
IMAGENET = 1281167


def _shortest(function, clock=time.perf_counter):
    """Return the seconds of the shortest of three calls, with garbage collection on."""
    return min(timeit.repeat(function, gc.enable, clock, repeat=3, number=1))


def measure_images(size: float) -> dict[str, list]:
    """Measure the index and order of 1x, 2x and 4x images, and the first batch of a late step."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / f'train-{i:05d}' for i in range(4 * max(SCALES))]
        for path in paths:
            path.write_bytes(tfrecords.frame(bytes(500)) * int(5000 * size))
        index = [_index(paths[: 4 * scale]) for scale in SCALES]
    return {'index': index, 'order': [_order(int(IMAGENET * scale / 4 * size)) for scale in SCALES]}


def _index(paths):
    find = functools.partial(shards.Shards, paths, log=lambda line: None)
    seconds = _shortest(find, time.process_time)  # first, so that imports of the first call do not count below
    tracemalloc.start()
    source = find()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {'records': source.num_images, 'seconds': seconds, 'bytes': held, 'peak_bytes': peak}


def _order(count):
    numbers, late = np.sort(np.arange(count, dtype=np.int32) % 1024), count // 256 - 1

    def first(step=0) -> Any:
        return next(iter(in_memory.training_rows(count, 256, 0, step, 1, (0, 1), streamed.mix_shards(numbers))))

    with sampled() as sizes:
        first()
    return {
        'images': count,
        'seconds': _shortest(first, time.process_time),
        'peak_bytes': max(sizes) - sizes[0],
        'late_step': late,
        'late_seconds': _shortest(lambda: first(late), time.process_time),
    }


def measure_workers(size: float) -> dict:
    """Measure all-reduces of 1x, 2x and 4x bytes, and steps with and without them, as one of two equal workers."""
    batch, runs, spec = max(2, int(32 * size)), 7, resnet_variants.cifar_spec(20)
    together = synthetic_trainer(spec, 2 * batch, {'distribution_strategy': 'multi_worker_mirrored'})
    alone = synthetic_trainer(spec, batch, {'distribution_strategy': 'off'})
    trainers, process = {'together': together, 'alone': alone}, together.process
    turns = {name: (stepping(trainer, ready_batches(trainer)), 10) for name, trainer in trainers.items()}
    for scale in (0, *SCALES):
        count = max(PARTS, int(2**20 * scale * size) // PARTS * PARTS)
        turns[str(count * BYTES)] = _exchange(process.strategy, count), 5
    sent = pathlib.Path('/sys/class/net/lo/statistics/tx_bytes')  # to this machine itself, from any program
    rows: Any = [{'turn': name, 'seconds': [], 'cpu_seconds': [], 'loopback_bytes': math.inf} for name in turns]
    for run in range(runs + 1):
        for row, (function, count) in zip(rows, turns.values(), strict=True):
            process.total(0)  # both workers start at the same time
            before = int(sent.read_text())
            _, seconds, cpu = timed(function, count)
            row['loopback_bytes'] = min(row['loopback_bytes'], (int(sent.read_text()) - before) / count)
            row['seconds'] += [seconds / count] if run else []
            row['cpu_seconds'] += [cpu / count] if run else []
    net = describe(together.model)
    process.wait()
    sizes = {'gradient_bytes': BYTES * net['parameters'], 'state_bytes': BYTES * net['state']}
    return {'turns': rows, 'batch': batch, **sizes}


def measure_model(size: float) -> dict[str, list]:
    """Measure checkpoints of 1x, 2x and 4x bytes (4x is ResNet-50's), and evaluations of 1x, 2x and 4x images."""
    with tempfile.TemporaryDirectory() as folder:
        saved = [_checkpoint(folder, int(128000 * scale * size)) for scale in SCALES]
    trainer = synthetic_trainer(resnet_variants.cifar_spec(8), max(2, int(100 * size)))
    whole, evaluations = trainer.test, []
    for count in (int(500 * scale * size) for scale in SCALES):
        trainer.test = whole.first(count)
        evaluations.append({'images': count, 'seconds': _shortest(trainer.evaluate)})
    return {'checkpoint': saved, 'evaluation': evaluations}


def _checkpoint(folder, count):
    arrays = {str(i): np.random.default_rng(i).random(count, np.float32) for i in range(100)}

    def save() -> None:
        if all(np.all(np.isfinite(array)) for array in arrays.values()):  # as the training loop checks them
            checkpoints.save(folder, 1, arrays, {})

    return {
        'bytes': save().stat().st_size,
        'save_seconds': _shortest(save),
        'restore_seconds': _shortest(lambda: checkpoints.restore_latest(folder)),
    }


def measure_memory(batch: int) -> dict[str, int]:
    """Measure the memory of two training steps of ResNet-50 at 224x224 in float32."""
    trainer = synthetic_trainer(resnet_variants.VARIANTS['resnet50_v1.5'], batch, num_train_images=64)
    steps = stepping(trainer, trainer.train_batches())
    with sampled() as sizes:
        steps(2)
    activations = describe(trainer.model)['activations']
    return {'batch': batch, 'peak_bytes': max(sizes) - sizes[0], 'activations': activations}


def measure_input(size: float, folder: str | None = None) -> dict:
    """Measure training images of 224x224 from shards on one core, and records read by one thread."""
    if folder:
        jpegs = [path.read_bytes() for path in jpeg_input.list_files(folder)]
    else:
        jpegs = [_synthetic_jpeg() for _ in range(max(8, int(64 * size)))]
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / 'train-00000'
        records = [tfrecords.encode_example({'image/encoded': jpeg, 'image/class/label': 1}) for jpeg in jpegs]
        path.write_bytes(b''.join(map(tfrecords.frame, records)))
        source = shards.Shards([path])
        examples = streamed.StreamedSplit(source, 1, 'synthetic', ('image',), OFFICIAL, Views(224))
        batch, steps = min(32, len(jpegs)), max(1, int(8 * size))
        iterator = iter(examples.training_batches(batch, num_epochs=10**6))

        def take_batches() -> None:
            for _ in range(steps):
                next(iterator)

        take_batches()  # fills the buffers
        turns = [timed(take_batches) for _ in range(5)]
        reading = _shortest(lambda: source.read(np.arange(len(jpegs))), time.thread_time)
    return {
        'images_per_core_second': sorted(steps * batch / cpu for _, _, cpu in turns),
        'images_per_second': sorted(steps * batch / seconds for _, seconds, _ in turns),
        'records_per_second': len(jpegs) / reading,
        'image_bytes': statistics.mean(map(len, jpegs)),
        'images': len(jpegs),
    }


def measure_net(variant: str) -> dict[str, int]:
    """Return the numbers of a network of VARIANTS, at 224x224 if it takes any image size."""
    if variant not in resnet_variants.VARIANTS:
        raise UserError(f"variant '{variant}' is unknown; python -m official_resnet.resnet_variants prints them all")
    spec = resnet_variants.VARIANTS[variant]
    with keras.StatelessScope(initialize_variables=False):
        shape = cast(Any, tuple(side or 224 for side in resnet_variants.IMAGE_SHAPES[spec.stem]))
        return describe(resnet_model.resnet(spec, architecture_table.NUM_CLASSES[spec.stem], shape))


def describe(model: keras.Model) -> dict[str, int]:
    """Return the numbers that scaling_model needs of a model with a fixed image size.

    'parameters' are trainable; 'state' are the others, BN's moving statistics; 'activations' are the outputs of
    convolutions, ReLUs and pooling for one image, which the gradients need.
    """
    kept = (keras.layers.Conv2D, keras.layers.ReLU, keras.layers.Activation, keras.layers.MaxPooling2D)
    return {
        'parameters': architecture_table.count_parameters(model),
        'state': sum(math.prod(variable.shape) for variable in model.non_trainable_variables),
        'multiply_adds': architecture_table.count_multiply_adds(model),
        'activations': sum(math.prod(layer.output.shape[1:]) for layer in model.layers if isinstance(layer, kept)),
    }


def _exchange(strategy, count):
    """Return a function that sums `count` float32 over the workers a number of times, as Keras sums gradients."""

    def replica(values) -> tf.Tensor:
        parts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.split(values, PARTS))
        return tf.concat(parts, 0) / 2

    @tf.function
    def exchange(values, times) -> tf.Tensor:
        for _ in tf.range(times):
            values = strategy.run(replica, args=(values,))
        return values[0]

    values = tf.ones([count])
    return lambda times: exchange(values, tf.constant(times)).numpy()


def _synthetic_jpeg():
    """Return a JPEG of 500 x 375 pixels with about as many bytes as one of ImageNet."""
    file = io.BytesIO()
    noise = Image.effect_noise((250, 188), 90).resize((500, 375), Image.Resampling.BILINEAR)
    noise.convert('RGB').save(file, 'JPEG', quality=93)
    return file.getvalue()
