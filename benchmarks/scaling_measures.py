"""What grows with a training, measured at 1x, 2x and 4x: the parts of scaling, each for a process of its own.

On two cores 5 to 25 seconds each. Time of index, order, decoding and reading is the processor's, of checkpoints and
evaluations the shortest of three: other jobs disturb it less. Two workers tell both, in turns.
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
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import jpeg_input
from benchmarks.machine import memory, sampled, timed
from benchmarks.scaling_model import BYTES
from benchmarks.training import ready_batches, stepping, synthetic_trainer
from official_resnet import resnet_variants
from official_resnet.errors import UserError

if TYPE_CHECKING:
    import keras

SCALES = (1, 2, 4)
PARTS = 64  # tensors that the measured all-reduce packs into one
IMAGENET = 1281167
resident = functools.partial(memory, 'VmRSS')


def shortest(function: Callable, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the least seconds of three calls, garbage collected as ever."""
    return min(timeit.repeat(function, gc.enable, clock, repeat=3, number=1))


def measure_images(size: float) -> dict[str, list]:
    """Index and order of 1x, 2x and 4x images, and the first batch of a late step."""
    from official_resnet.inputs import in_memory, shards, streamed, tfrecords

    rows = {'index': [], 'order': []}
    with tempfile.TemporaryDirectory() as temporary:
        paths = [pathlib.Path(temporary) / f'train-{i:05d}' for i in range(4 * max(SCALES))]
        for path in paths:
            path.write_bytes(tfrecords.frame(bytes(500)) * int(5000 * size))
        for scale in SCALES:
            index = functools.partial(shards.Shards, paths[: 4 * scale], log=lambda line: None)
            seconds = shortest(index, time.process_time)
            tracemalloc.start()
            source = index()
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            rows['index'].append({'records': source.num_images, 'seconds': seconds, 'bytes': held, 'peak_bytes': peak})
    for scale in SCALES:
        count = int(IMAGENET * scale / 4 * size)
        groups, late = np.sort(np.arange(count, dtype=np.int32) % 1024), count // 256 - 1

        def first(step, count=count, groups=groups):
            return next(iter(in_memory.training_rows(count, 256, 0, step, 1, (0, 1), streamed.mix_groups(groups))))

        with sampled(resident) as sizes:
            first(0)
        rows['order'].append(
            {
                'images': count,
                'seconds': shortest(functools.partial(first, 0), time.process_time),
                'peak_bytes': max(sizes) - sizes[0],
                'late_step': late,
                'late_seconds': shortest(functools.partial(first, late), time.process_time),
            }
        )
    return rows


def measure_workers(size: float) -> dict:
    """All-reduces of 1x, 2x and 4x bytes, and steps with and without them, by one of two workers that do the same."""
    batch, runs, spec = max(2, int(32 * size)), 7, resnet_variants.cifar_spec(20)
    together = synthetic_trainer(spec, 2 * batch, {'distribution_strategy': 'multi_worker_mirrored'})
    alone = synthetic_trainer(spec, batch, {'distribution_strategy': 'off'})
    trainers, process = {'together': together, 'alone': alone}, together.process
    turns = {name: (stepping(trainer, ready_batches(trainer)), 10) for name, trainer in trainers.items()}
    for scale in (0, *SCALES):
        count = max(PARTS, int(2**20 * scale * size) // PARTS * PARTS)
        turns[str(count * BYTES)] = _exchange(process.strategy, count), 5
    rows = [{'turn': name, 'seconds': [], 'cpu_seconds': [], 'loopback_bytes': math.inf} for name in turns]
    for run in range(runs + 1):
        for row, (function, count) in zip(rows, turns.values(), strict=True):
            process.total(0)  # both begin at once
            before = _loopback_bytes()
            _, seconds, cpu = timed(function, count)
            row['loopback_bytes'] = min(row['loopback_bytes'], (_loopback_bytes() - before) / count)
            row['seconds'] += [seconds / count] if run else []
            row['cpu_seconds'] += [cpu / count] if run else []
    net = describe(together.model)
    process.wait()
    sizes = {'gradient_bytes': BYTES * net['parameters'], 'state_bytes': BYTES * net['state']}
    return {'turns': rows, 'batch': batch, **sizes}


def measure_model(size: float) -> dict[str, list]:
    """Checkpoints of 1x, 2x and 4x bytes, 4x being ResNet-50's, and evaluations of 1x, 2x and 4x images."""
    from official_resnet import checkpoints

    rows = {'checkpoint': [], 'evaluation': []}
    with tempfile.TemporaryDirectory() as temporary:
        for scale in SCALES:
            random, count = np.random.default_rng(scale), int(128000 * scale * size)
            arrays = {str(i): random.random(count, np.float32) for i in range(100)}

            def save(arrays=arrays):
                if all(np.all(np.isfinite(array)) for array in arrays.values()):  # as the loop looks at them
                    return checkpoints.save(temporary, 1, arrays, {})

            saving = shortest(save)
            restoring = shortest(functools.partial(checkpoints.restore_latest, temporary))
            num_bytes = checkpoints.paths(temporary)[-1].stat().st_size
            rows['checkpoint'].append({'bytes': num_bytes, 'save_seconds': saving, 'restore_seconds': restoring})
    trainer = synthetic_trainer(resnet_variants.cifar_spec(8), max(2, int(100 * size)))
    whole = trainer.test
    for scale in SCALES:
        trainer.test = whole.first(int(500 * scale * size))
        rows['evaluation'].append({'images': int(500 * scale * size), 'seconds': shortest(trainer.evaluate)})
    return rows


def measure_memory(batch: int) -> dict[str, int]:
    """The memory of two training steps of ResNet-50 at 224x224, float32."""
    trainer = synthetic_trainer(resnet_variants.VARIANTS['resnet50_v1.5'], batch, num_train_images=64)
    steps = stepping(trainer, trainer.train_batches())
    with sampled(resident) as sizes:
        steps(2)
    activations = describe(trainer.model)['activations']
    return {'batch': batch, 'peak_bytes': max(sizes) - sizes[0], 'activations': activations}


def measure_input(size: float, folder: str | None = None) -> dict:
    """Training images of 224x224 from shards, on one core, and records read by one thread."""
    from official_resnet.inputs import shards, streamed, tfrecords
    from official_resnet.inputs.affine import OFFICIAL
    from official_resnet.inputs.views import Views

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

        def draw():
            for _ in range(steps):
                next(iterator)

        draw()  # until the buffers are as full as they become
        turns = [timed(draw) for _ in range(5)]
        reading = shortest(lambda: source.read(np.arange(len(jpegs))), time.thread_time)
    return {
        'images_per_core_second': sorted(steps * batch / cpu for _, _, cpu in turns),
        'images_per_second': sorted(steps * batch / seconds for _, seconds, _ in turns),
        'records_per_second': len(jpegs) / reading,
        'image_bytes': statistics.mean(map(len, jpegs)),
        'images': len(jpegs),
    }


def measure_net(variant: str) -> dict[str, int]:
    """Return the numbers of a network of VARIANTS, at 224x224 where it does not say."""
    import keras

    from official_resnet import resnet_model
    from official_resnet.experiments import architecture_table

    if variant not in resnet_variants.VARIANTS:
        raise UserError(f"variant '{variant}' is unknown; python -m official_resnet.resnet_variants prints them all")
    spec = resnet_variants.VARIANTS[variant]
    with keras.StatelessScope(initialize_variables=False):
        shape = tuple(side or 224 for side in resnet_variants.IMAGE_SHAPES[spec.stem])
        return describe(resnet_model.resnet(spec, architecture_table.NUM_CLASSES[spec.stem], shape))


def describe(model: 'keras.Model') -> dict[str, int]:
    """Return the fields of scaling_model.Net for a model of fixed image size."""
    import keras

    from official_resnet.experiments import architecture_table

    kept = (keras.layers.Conv2D, keras.layers.ReLU, keras.layers.Activation, keras.layers.MaxPooling2D)
    return {
        'parameters': architecture_table.count_parameters(model),
        'state': sum(math.prod(variable.shape) for variable in model.non_trainable_variables),
        'multiply_adds': architecture_table.count_multiply_adds(model),
        'activations': sum(math.prod(layer.output.shape[1:]) for layer in model.layers if isinstance(layer, kept)),
    }


def _exchange(strategy, count):
    """Return a function that adds up `count` float32 over the workers so many times, as Keras does gradients."""
    import tensorflow as tf

    def replica(values):
        parts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.split(values, PARTS))
        return tf.concat(parts, 0) / 2

    @tf.function
    def exchange(values, times):
        for _ in tf.range(times):
            values = strategy.run(replica, args=(values,))
        return values[0]

    values = tf.ones([count])
    return lambda times: exchange(values, tf.constant(times)).numpy()


def _loopback_bytes():
    """Return the bytes that this machine has sent to itself; those of others among them."""
    with open('/proc/net/dev', encoding='ascii') as file:
        return next((int(line.split()[9]) for line in file if line.split()[0] == 'lo:'), 0)


def _synthetic_jpeg():
    """Return a JPEG of 500 x 375 pixels, of about the size of ImageNet's."""
    from PIL import Image

    file = io.BytesIO()
    noise = Image.effect_noise((250, 188), 90).resize((500, 375), Image.Resampling.BILINEAR)
    noise.convert('RGB').save(file, 'JPEG', quality=93)
    return file.getvalue()
