"""The arithmetic of training on many accelerators: what limits it, from a few constants.

scaling_measures finds the constants in MEASURED. Those of accelerators and their network are ASSUMED, with sources.
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
        'fraction of these FLOP/s that the arithmetic reaches',
        'with the overhead 2375 images/s of ResNet-50 v1.5 on an A100, batch 256, mixed precision, XLA: NVIDIA README',
    ),
    'overhead': (5e-3, 's of each step that do not shrink with the batch', f'a thousand kernels of 5 us; {_NONE}'),
    'jitter': (0.02, 'relative deviation of step times between accelerators', _NONE),
    'per_host': (8, 'accelerators of a host, which are one worker', _DGX),
    'cores': (128, 'cores of a host, assumed to be as fast as one here', _DGX),
    'memory': (40e9, 'bytes of an accelerator', _DGX),
    'link': (0.8 * 25e9, 'bytes/s from an accelerator to the next in the ring', f'200 Gb/s a port: {_DGX}; 0.8 of it'),
    'latency': (5e-6, 's for a message to the next', _NONE),
    'packs': (1, 'all-reduces into which the gradients are split', 'TensorFlow 2.21 with bytes_per_pack=0'),
    'disk': (5e9, 'bytes/s that a host reads', _NONE),
    'batch': (256, 'maximum number of images of an accelerator in a step', 'as for efficiency'),
    'max_batch': (8192, 'maximum number of images in a step', 'arXiv:1706.02677 Fig. 1: SGD loses accuracy above'),
    'images': (1281167, 'training images', 'ILSVRC2012'),
    'test_images': (50000, 'images of an evaluation', 'ILSVRC2012'),
    'image_bytes': (107.7e3, 'bytes of an image', 'ILSVRC2012: 138 GB of training images'),
    'save_minutes': (10, 'minutes between checkpoints inside an epoch', 'default of --save_checkpoint_minutes'),
}
ADVICE = {  # part of the time: what makes it smaller
    'arithmetic': 'no flag would gain much',
    'overhead': 'fewer accelerators, or a larger --batch_size with a learning rate that allows it (--warmup_epochs)',
    'all-reduce': 'a faster network, --all_reduce_alg=nccl; a larger --batch_size',
    'stragglers': 'equal hosts without other load; --datasets_num_private_threads below the number of cores',
    'input cores': 'more cores or fewer accelerators in a host; a smaller --image_size',
    'reading thread': 'fewer accelerators for each worker (a process reads with one Python thread at a time)',
    'disk': 'shards on a local disk, or in memory',
    'evaluation': '--epochs_between_evals',
    'checkpoints': 'a faster disk for --model_dir; one is written after every epoch, however short',
    'epoch order': 'nothing yet: each worker shuffles all numbers once in each epoch',
    'memory': 'a smaller --batch_size, --dtype=bf16, a smaller --variant',
}
# name: (what it is, rows of scaling_measures, x, y, whether it is the slope of y over x, or else y at x = 0)
MEASURED: dict[str, tuple] = {
    'decode': ('training images/s of a core',),
    'read': ('records/s of a reading process',),
    'save': ('s for an empty checkpoint', 'checkpoint', 'bytes', 'save_seconds', False),
    'save_byte': ('s per byte', 'checkpoint', 'bytes', 'save_seconds', True),
    'restore_byte': ('s per byte', 'checkpoint', 'bytes', 'restore_seconds', True),
    'evaluate': ('s for an empty evaluation', 'evaluation', 'images', 'seconds', False),
    'order': ('s per image, to shuffle an epoch', 'order', 'images', 'seconds', True),
    'index': ('s per record, to index it', 'index', 'records', 'seconds', True),
    'index_bytes': ('bytes per record', 'index', 'records', 'bytes', True),
    'kept': ('numbers in memory per activation', 'memory', 'batch', 'peak_bytes', True),
}
BYTES, COLLECTIVES = 4, 3  # of a float32; of a step: gradients, BN statistics, loss and accuracy


def line(rows: list[dict], x: str, y: str) -> tuple[float, float]:
    """Return (y at x = 0, slope) of the least-squares line through rows of numbers; both at least 0."""
    slope, intercept = np.polyfit([row[x] for row in rows], [row[y] for row in rows], 1)
    return max(0.0, float(intercept)), max(0.0, float(slope))


def constants(found: dict) -> dict[str, float]:
    """Return {name: value} of MEASURED from measurements at 1x, 2x and 4x; {} if some are missing."""
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
    """Return the seconds of a ring all-reduce of n: 2(n-1) rounds, each sending size/n bytes to the next."""
    return 2 * (n - 1) * (size / n / link + latency)


def step_seconds(forward: float, backward: float, exchange: float, packs: float) -> float:
    """Return the seconds of a step whose gradients are ready, and sent, in `packs` equal parts, one after another."""
    return forward + max(backward + exchange / packs, backward / packs + exchange)


def expected_maximum(n: int) -> float:
    """Return the expected maximum of n standard normal numbers, within 0.03 (Blom 1958)."""
    return 0.0 if n == 1 else statistics.NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def checkpoint_bytes(net: dict[str, int]) -> int:
    """Return the bytes of a checkpoint: weights, momentum, BN statistics."""
    return BYTES * (2 * net['parameters'] + net['state'])


def predict(net: dict[str, int], c: dict[str, float], n: int) -> dict:
    """Return the estimate of a training run on n accelerators, a dict of plain numbers.

    Args:
        net: What scaling_measures.describe returns.
        c: {name: value} of ASSUMED and of what `constants` returns.
        n: Number of accelerators.

    Returns:
        'batch' (of an accelerator), 'global_batch', 'step' (s), 'all_reduce' (s), 'images_per_second', 'cores' and
        'read_bytes' (that a host needs), 'memory' (bytes of an accelerator), 'epoch' (s), 'parts' ({name: fraction of
        the epoch}), 'bottleneck' (the largest part other than arithmetic, if it is 5 % or more).
    """
    batch = max(1, min(int(c['batch']), int(c['max_batch']) // n))
    hosts, steps = math.ceil(n / c['per_host']), max(1, int(c['images']) // (batch * n))
    arithmetic = 3 * batch * 2 * net['multiply_adds'] / (c['flops'] * c['efficiency'])  # backward is twice forward
    compute = arithmetic + c['overhead']
    gradients = ring_seconds(n, BYTES * net['parameters'], c['link'], c['packs'] * c['latency'])
    others = ring_seconds(n, BYTES * net['state'], c['link'], (COLLECTIVES - 1) * c['latency'])
    exposed = step_seconds(compute / 3, compute * 2 / 3, gradients, c['packs']) - compute + others
    wait = compute * c['jitter'] * expected_maximum(n)
    # images/s of a host's input
    rates = {'input cores': c['cores'] * c['decode'], 'reading thread': c['read'], 'disk': c['disk'] / c['image_bytes']}
    slowest = min(rates, key=lambda name: rates[name])
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
    # in bfloat16: weights, momentum, gradients twice (packed), and `kept` numbers in memory for each activation
    memory = (4 * BYTES + 2) * net['parameters'] + 2 * c['kept'] * net['activations'] * batch
    lost = max((part for part in parts if part != 'arithmetic'), key=lambda part: parts[part])
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
