"""The arithmetic of a training on many accelerators: what bounds it, from a few constants.

What is measured (MEASURED) comes from scaling_measures. An accelerator and its network are not here, so their numbers
are ASSUMED, each with its source.
"""

import math
import statistics

import numpy as np

_DGX = 'NVIDIA DGX A100 data sheet'
_NONE = 'no source: measure yours'
ASSUMED = {  # name: (value, what it is, source)
    'flops': (312e12, 'FLOP/s of an accelerator', 'NVIDIA A100 data sheet, bfloat16, dense'),
    'efficiency': (
        0.196,
        'share of that which arithmetic reaches',
        'with the overhead 2375 images/s of ResNet-50 v1.5 '
        'on an A100, batch 256, mixed precision, XLA: NVIDIA DeepLearningExamples, its TensorFlow README',
    ),
    'overhead': (5e-3, 's a step that no batch shortens', f'a thousand kernels of 5 us; {_NONE}'),
    'jitter': (0.02, 'deviation of a step, relative, from one accelerator to another', _NONE),
    'per_host': (8, 'accelerators of a host, which are one worker', _DGX),
    'cores': (128, 'cores of a host, taken to be as fast as one here', _DGX),
    'memory': (40e9, 'bytes of an accelerator', _DGX),
    'link': (0.8 * 25e9, 'bytes/s from an accelerator to the next in the ring', f'200 Gb/s a port: {_DGX}; 0.8 of it'),
    'latency': (5e-6, 's of a message to the next', _NONE),
    'packs': (1, 'all-reduces that the gradients are split into', 'TensorFlow 2.21 with bytes_per_pack=0'),
    'disk': (5e9, 'bytes/s that a host reads', _NONE),
    'batch': (256, 'images a step of an accelerator, at most', 'as efficiency'),
    'max_batch': (8192, 'images a step of all, at most', 'arXiv:1706.02677 Fig. 1: SGD loses accuracy above'),
    'images': (1281167, 'training images', 'ILSVRC2012'),
    'test_images': (50000, 'images of an evaluation', 'ILSVRC2012'),
    'image_bytes': (107.7e3, 'bytes of an image', 'ILSVRC2012: 138 GB of training images'),
    'save_minutes': (10, 'minutes between checkpoints inside an epoch', 'default of --save_checkpoint_minutes'),
}
ADVICE = {  # part of the time -> what makes it smaller
    'arithmetic': 'nothing is lost that is worth a flag',
    'overhead': 'fewer accelerators, or a larger --batch_size with a rate that bears it (--warmup_epochs)',
    'all-reduce': 'a faster network, --all_reduce_alg=nccl; a larger --batch_size',
    'stragglers': 'equal hosts with nothing else on them; --datasets_num_private_threads below the cores',
    'input cores': 'more cores a host; fewer accelerators a host; smaller --image_size',
    'reading thread': 'fewer accelerators a worker (one process reads with one Python thread at a time)',
    'disk': 'shards on a local disk, or in memory',
    'evaluation': '--epochs_between_evals',
    'checkpoints': 'a faster disk for --model_dir; one is written after each epoch, however short',
    'epoch order': 'nothing yet: each worker shuffles all numbers once an epoch',
    'memory': 'a smaller --batch_size, --dtype=bf16, a smaller --variant',
}
MEASURED = {  # name: (what it is, rows of scaling_measures, x, y, whether the slope of y over x is it, or y at x = 0)
    'decode': ('training images a core makes in a second',),
    'read': ('records/s that a process reads',),
    'save': ('s of a checkpoint of no size', 'checkpoint', 'bytes', 'save_seconds', False),
    'save_byte': ('s a byte', 'checkpoint', 'bytes', 'save_seconds', True),
    'restore_byte': ('s a byte', 'checkpoint', 'bytes', 'restore_seconds', True),
    'evaluate': ('s of an evaluation of nothing', 'evaluation', 'images', 'seconds', False),
    'order': ('s an image, to shuffle an epoch', 'order', 'images', 'seconds', True),
    'index': ('s a record, to find it', 'index', 'records', 'seconds', True),
    'index_bytes': ('bytes a record', 'index', 'records', 'bytes', True),
    'kept': ('numbers in memory for each activation', 'memory', 'batch', 'peak_bytes', True),
}
BYTES, COLLECTIVES = 4, 3  # of float32; a step: gradients, BN statistics, loss and accuracy


def line(rows: list[dict], x: str, y: str) -> tuple[float, float]:
    """Return (y at x = 0, slope) of the straight line through rows of numbers, neither below 0."""
    slope, intercept = np.polyfit([row[x] for row in rows], [row[y] for row in rows], 1)
    return max(0.0, float(intercept)), max(0.0, float(slope))


def constants(found: dict) -> dict[str, float]:
    """Return {name: value} of MEASURED, from what was found at 1x, 2x and 4x; {} if something is missing."""
    if not {'order', 'input', 'checkpoint'} <= found.keys():
        return {}
    values = {'decode': statistics.median(found['input']['images_per_core_second'])}
    values['read'] = found['input']['records_per_second']
    for name, (_, *law) in MEASURED.items():
        if law:
            rows, x, y, is_slope = law
            values[name] = line(found[rows], x, y)[is_slope]
    values['kept'] /= BYTES * found['memory'][0]['activations']
    return values


def ring_seconds(n: int, size: float, link: float, latency: float) -> float:
    """Return the time of a ring all-reduce: 2(n-1) rounds, in each a chunk of size/n bytes to the next of n."""
    return 2 * (n - 1) * (size / n / link + latency)


def step_seconds(forward: float, backward: float, exchange: float, packs: int) -> float:
    """Return the time of a step whose gradients are ready, and sent, in so many equal packs, one after another."""
    return forward + max(backward + exchange / packs, backward / packs + exchange)


def expected_maximum(n: int) -> float:
    """Return the expected largest of n standard normal numbers, within 0.03 (Blom 1958)."""
    return 0.0 if n == 1 else statistics.NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def checkpoint_bytes(net: dict[str, int]) -> int:
    """Return the size of a checkpoint: weights, momentum, BN statistics."""
    return BYTES * (2 * net['parameters'] + net['state'])


def predict(net: dict[str, int], c: dict[str, float], n: int) -> dict:
    """Return what a training on n accelerators takes, a dict of plain numbers.

    Args:
        net: 'parameters', 'state', 'multiply_adds' and 'activations' of an image; see scaling_measures.describe.
        c: {name: value} of ASSUMED and of what `constants` returns.
        n: accelerators.

    Returns:
        'batch' (an accelerator's), 'global_batch', 'step' (s), 'all_reduce' (s), 'images_per_second', 'cores' and
        'read_bytes' (a host's, to keep up), 'memory' (bytes of an accelerator), 'epoch' (s), 'parts' ({name: share of
        the epoch}), 'bottleneck' (the largest part but the arithmetic, if 5 % or more).
    """
    batch = max(1, min(int(c['batch']), int(c['max_batch']) // n))
    hosts, steps = math.ceil(n / c['per_host']), max(1, int(c['images']) // (batch * n))
    arithmetic = 3 * batch * 2 * net['multiply_adds'] / (c['flops'] * c['efficiency'])  # backward is twice forward
    compute = arithmetic + c['overhead']
    gradients = ring_seconds(n, BYTES * net['parameters'], c['link'], c['packs'] * c['latency'])
    others = ring_seconds(n, BYTES * net['state'], c['link'], (COLLECTIVES - 1) * c['latency'])
    exposed = step_seconds(compute / 3, compute * 2 / 3, gradients, c['packs']) - compute + others
    wait = compute * c['jitter'] * expected_maximum(n)
    # images/s that a host's input can deliver
    rates = {'input cores': c['cores'] * c['decode'], 'reading thread': c['read'], 'disk': c['disk'] / c['image_bytes']}
    slowest = min(rates, key=rates.get)
    seconds = compute + exposed + wait
    step = max(seconds, batch * n / hosts / rates[slowest])
    parts = {
        'arithmetic': steps * arithmetic,
        'overhead': steps * c['overhead'],
        'all-reduce': steps * exposed,
        'stragglers': steps * wait,
        slowest: steps * (step - seconds),
    }
    per_image = 2 * net['multiply_adds'] / (c['flops'] * c['efficiency'])
    parts['evaluation'] = c['evaluate'] + c['test_images'] * max(per_image / n, 1 / rates[slowest] / hosts)
    parts['epoch order'] = c['order'] * c['images']
    save = c['save'] + c['save_byte'] * checkpoint_bytes(net)
    parts['checkpoints'] = save * (1 + sum(parts.values()) // (60 * c['save_minutes']))
    epoch = sum(parts.values())
    # in bfloat16: weights, momentum, gradients twice (packed); activations, of which `kept` numbers each are in memory
    memory = (4 * BYTES + 2) * net['parameters'] + 2 * c['kept'] * net['activations'] * batch
    lost = max((part for part in parts if part != 'arithmetic'), key=parts.get)
    bottleneck = 'memory' if memory > c['memory'] else lost if parts[lost] >= 0.05 * epoch else 'arithmetic'
    per_second = batch * n / seconds / hosts
    return {
        'accelerators': n,
        'batch': batch,
        'global_batch': batch * n,
        'step': step,
        'all_reduce': gradients + others,
        'images_per_second': batch * n / step,
        'cores': per_second / c['decode'],
        'read_bytes': per_second * c['image_bytes'],
        'memory': memory,
        'epoch': epoch,
        'parts': {part: value / epoch for part, value in parts.items()},
        'bottleneck': bottleneck,
    }
