"""What grows with a training, measured at 1x, 2x and 4x: the parts of scaling, each for a process of its own.

On two cores 5 to 25 seconds each. Time of index, order, decoding and reading is the processor's, of checkpoints and
evaluations the shortest of three: other jobs disturb it less. Two workers tell both, in turns.
"""

import functools
import io
import math
import pathlib
import statistics
import tempfile
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import jpeg_input
from benchmarks.memory import Peak, resident_bytes
from benchmarks.trainers import ready_batches, synthetic_trainer
from official_resnet import resnet_variants
from official_resnet.errors import UserError
from official_resnet.training import devices

if TYPE_CHECKING:
    import keras

BYTES = 4  # of float32
PARTS = 64  # tensors that the measured all-reduce packs into one
IMAGENET = 1281167


def measure_images(size: float) -> dict:
    """Index and order of 1x, 2x and 4x images, and the first batch of a late step."""
    from official_resnet.inputs import in_memory, shards, streamed, tfrecords

    rows = {'index': [], 'order': []}
    with tempfile.TemporaryDirectory() as temporary:
        record, paths = tfrecords.frame(bytes(500)), []
        for scale in (1, 2, 4):
            count = int(20000 * scale * size)
            while len(paths) < 4 * scale:
                paths.append(pathlib.Path(temporary) / f'train-{len(paths):05d}')
                paths[-1].write_bytes(record * (count // (4 * scale)))
            seconds, source = _shortest(lambda: shards.Shards(paths, log=lambda line: None), clock=time.process_time)
            tracemalloc.start()
            source = shards.Shards(paths, log=lambda line: None)
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            rows['index'].append({'records': source.num_images, 'seconds': seconds, 'bytes': held, 'peak_bytes': peak})
    for scale in (1, 2, 4):
        count = int(IMAGENET * scale / 4 * size)
        groups = np.sort(np.arange(count, dtype=np.int32) % 1024)

        def first(step, count=count, groups=groups):
            return next(iter(in_memory.training_rows(count, 256, 0, step, 1, (0, 1), streamed.mix_groups(groups))))

        late = count // 256 - 1
        with Peak(resident_bytes) as memory:
            seconds, _ = _shortest(functools.partial(first, 0), clock=time.process_time)
        rows['order'].append(
            {
                'images': count,
                'seconds': seconds,
                'peak_bytes': memory.grown,
                'late_step': late,
                'late_seconds': _shortest(functools.partial(first, late), clock=time.process_time)[0],
            }
        )
    return rows


def measure_workers(size: float) -> dict:
    """All-reduces of 1x, 2x and 4x bytes, and steps with and without them, by one of two workers that do the same."""
    import tensorflow as tf

    batch, runs = max(2, int(32 * size)), 7

    def trainer(strategy, images):
        return synthetic_trainer(resnet_variants.cifar_spec(20), images, {'distribution_strategy': strategy})

    def steps(trainer):
        ready = iter(ready_batches(trainer))
        return lambda: trainer.train_steps(ready, tf.constant(10)).numpy()

    together = trainer('multi_worker_mirrored', 2 * batch)
    process = together.process
    turns = {'together': (steps(together), 10), 'alone': (steps(trainer('off', batch)), 10)}
    for scale in (0, 1, 2, 4):
        count = max(PARTS, int(2**20 * scale * size) // PARTS * PARTS)
        turns[count * BYTES] = _exchange(process.strategy, count), 5
    seconds, busy, sent = {name: [] for name in turns}, {name: [] for name in turns}, {}
    for _ in range(runs + 1):
        for name, (function, count) in turns.items():
            process.total(0)  # both begin at once
            before, start, clock = _loopback_bytes(), time.perf_counter(), time.process_time()
            function()
            seconds[name].append((time.perf_counter() - start) / count)
            busy[name].append((time.process_time() - clock) / count)
            sent[name] = min(sent.get(name, math.inf), (_loopback_bytes() - before) / count)
    rows = [
        {'turn': str(name), 'seconds': seconds[name][1:], 'cpu_seconds': busy[name][1:], 'loopback_bytes': sent[name]}
        for name in turns
    ]
    net = describe(together.model)
    process.wait()
    return {
        'turns': rows,
        'batch': batch,
        'gradient_bytes': BYTES * net['parameters'],
        'state_bytes': BYTES * net['state'],
    }


def measure_model(size: float) -> dict:
    """Checkpoints of 1x, 2x and 4x bytes, 4x being ResNet-50's, and evaluations of 1x, 2x and 4x images."""
    from official_resnet import checkpoints

    rows = {'checkpoint': [], 'evaluation': []}
    with tempfile.TemporaryDirectory() as temporary:
        for scale in (1, 2, 4):
            random, count = np.random.default_rng(scale), int(128000 * scale * size)
            arrays = {str(i): random.random(count, np.float32) for i in range(100)}

            def save(arrays=arrays):
                if all(np.all(np.isfinite(array)) for array in arrays.values()):  # as the loop looks at them
                    return checkpoints.save(temporary, 1, arrays, {})

            seconds, path = _shortest(save)
            restoring, _ = _shortest(functools.partial(checkpoints.restore_latest, temporary))
            rows['checkpoint'].append(
                {'bytes': path.stat().st_size, 'save_seconds': seconds, 'restore_seconds': restoring}
            )
    trainer = synthetic_trainer(resnet_variants.cifar_spec(8), max(2, int(100 * size)))
    whole = trainer.test
    for scale in (1, 2, 4):
        count = int(500 * scale * size)
        trainer.test = whole.first(count)
        rows['evaluation'].append({'images': count, 'seconds': _shortest(trainer.evaluate)[0]})
    return rows


def measure_memory(size: float) -> dict:
    """The memory of two training steps of ResNet-50 at 224x224, float32, with a batch of `size`."""
    import tensorflow as tf

    trainer = synthetic_trainer(resnet_variants.VARIANTS['resnet50_v1.5'], int(size), num_train_images=64)
    iterator = iter(trainer.train_batches())
    with Peak(resident_bytes) as memory:
        trainer.train_steps(iterator, tf.constant(2)).numpy()
    return {'batch': int(size), 'peak_bytes': memory.grown, 'activations': describe(trainer.model)['activations']}


def measure_input(size: float, folder: str | None = None) -> dict:
    """Training images of 224x224 from shards, on one core, and records read by one thread."""
    from official_resnet.inputs import shards, streamed, tfrecords
    from official_resnet.inputs.affine import OFFICIAL
    from official_resnet.inputs.views import Views

    if folder:
        jpegs = [path.read_bytes() for path in jpeg_input.list_files(folder)]
    else:
        jpegs = _synthetic_jpegs(max(8, int(64 * size)))
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / 'train-00000'
        path.write_bytes(
            b''.join(
                tfrecords.frame(tfrecords.encode_example({'image/encoded': jpeg, 'image/class/label': 1}))
                for jpeg in jpegs
            )
        )
        source = shards.Shards([path])
        views = Views(224)
        examples = streamed.StreamedSplit(source, 1, 'synthetic', ('image',), OFFICIAL, views)
        batch = min(32, len(jpegs))
        iterator = iter(examples.training_batches(batch, num_epochs=10**6))
        steps, rates = max(1, int(8 * size)), []
        images = steps * batch
        for _ in range(steps):  # until the buffers are as full as they become
            next(iterator)
        for _ in range(5):
            start, clock = time.process_time(), time.perf_counter()
            for _ in range(steps):
                next(iterator)
            rates.append((images / (time.process_time() - start), images / (time.perf_counter() - clock)))
        reading = _shortest(lambda: source.read(np.arange(len(jpegs))), clock=time.thread_time)[0]
    return {
        'images_per_core_second': sorted(rate for rate, _ in rates),
        'images_per_second': sorted(rate for _, rate in rates),
        'records_per_second': len(jpegs) / reading,
        'image_bytes': statistics.mean(map(len, jpegs)),
        'images': len(jpegs),
    }


def describe(model: 'keras.Model') -> dict[str, int]:
    """Return {'parameters', 'state', 'multiply_adds', 'activations'} of a keras.Model of fixed image size.

    State is what is not trained, BN's moving statistics; activations are the numbers of an image that the gradients
    need: outputs of convolutions, ReLUs and pooling.
    """
    import keras

    from official_resnet.experiments import architecture_table

    kept = (keras.layers.Conv2D, keras.layers.ReLU, keras.layers.Activation, keras.layers.MaxPooling2D)
    activations = sum(math.prod(layer.output.shape[1:]) for layer in model.layers if isinstance(layer, kept))
    state = sum(math.prod(variable.shape) for variable in model.non_trainable_variables)
    return {
        'parameters': architecture_table.count_parameters(model),
        'state': state,
        'multiply_adds': architecture_table.count_multiply_adds(model),
        'activations': activations,
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


def _shortest(function, runs=3, clock=time.perf_counter):
    """Return (the least seconds of so many calls, what the last returned)."""
    seconds = []
    for _ in range(runs):
        start = clock()
        result = function()
        seconds.append(clock() - start)
    return min(seconds), result


def _exchange(strategy, count):
    """Return a function that adds up a vector of `count` float32 over the workers 5 times, as Keras does gradients."""
    import tensorflow as tf

    def replica(values):
        parts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.split(values, PARTS))
        return tf.concat(parts, 0) / 2

    @tf.function
    def five(values):
        for _ in tf.range(5):
            values = strategy.run(replica, args=(values,))
        return values[0]

    values = tf.ones([count])
    return lambda: five(values).numpy()


def _loopback_bytes():
    """Return the bytes that this machine has sent to itself; those of others among them."""
    with open('/proc/net/dev', encoding='ascii') as file:
        return next((int(line.split()[9]) for line in file if line.split()[0] == 'lo:'), 0)


def _synthetic_jpegs(count):
    """Return so many JPEGs of 500 x 375 pixels, of about the size of ImageNet's."""
    from PIL import Image

    result = []
    for _ in range(count):
        file = io.BytesIO()
        Image.effect_noise((250, 188), 90).resize((500, 375), Image.Resampling.BILINEAR).convert('RGB').save(
            file, 'JPEG', quality=93
        )
        result.append(file.getvalue())
    return result


TASKS = {
    'images': measure_images,
    'input': measure_input,
    'model': measure_model,
    'memory': measure_memory,
    'workers': measure_workers,
    'net': measure_net,
}


def measure(task: str, *arguments) -> dict:
    """Be the process of a task: start TensorFlow, then do it."""
    devices.start_tensorflow()
    return TASKS[task](*arguments)
