"""Measure what training costs here, and estimate from it what bounds a training on 8 to 1024 accelerators.

    python -m benchmarks.scaling --output_json=scaling.json    # measures, then estimates: 2 minutes on two cores
    python -m benchmarks.scaling --image_folder=DIR            # decodes these JPEGs instead of synthetic ones
    python -m benchmarks.scaling --input_json=scaling.json --variant=resnet152_v1.5 --set=link=1.25e9  # estimates only

Figures, machine and what follows from them: docs/scaling.md. What is measured (by scaling_measures, a process for
each measure) is of this machine. An accelerator and its network are not here, so their numbers are ASSUMED, each with
its source, and --set replaces any of them.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

from benchmarks import jpeg_input
from official_resnet.command_line import program
from official_resnet.errors import UserError
from official_resnet.training import devices, workers

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
    'images': (1281167, 'training pictures', 'ILSVRC2012'),
    'test_images': (50000, 'pictures of an evaluation', 'ILSVRC2012'),
    'image_bytes': (107.7e3, 'bytes of a picture', 'ILSVRC2012: 138 GB of training pictures'),
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
MEASURED = {  # name: what it is; see `constants`
    'decode': 'training pictures a core makes in a second',
    'read': 'records/s that a process reads',
    'save': 's of a checkpoint of no size',
    'save_byte': 's a byte',
    'restore_byte': 's a byte',
    'evaluate': 's of an evaluation of nothing',
    'order': 's a picture, to shuffle an epoch',
    'index': 's a record, to find it',
    'index_bytes': 'bytes a record',
    'kept': 'numbers in memory for each activation',
}
_MAY_BE_0 = {'overhead', 'jitter', 'latency', 'save', 'save_byte', 'restore_byte', 'evaluate', 'order', 'index'}
MEASURES = ('images', 'workers', 'model', 'input')
TIMEOUT = 600  # seconds for a task
BYTES, COLLECTIVES = 4, 3  # of float32; a step: gradients, BN statistics, loss and accuracy


@dataclasses.dataclass(frozen=True)
class Net:
    """What the arithmetic needs of a network.

    Attributes:
        parameters: trainable.
        state: numbers that are not, BN's moving statistics.
        multiply_adds: of an image.
        activations: outputs of convolutions, ReLUs and pooling of an image, which the gradients need.
    """

    parameters: int
    state: int
    multiply_adds: int
    activations: int


# --- the arithmetic ------------------------------------------------------------------------------------------


def ring_seconds(n, size, link, latency):
    """Return the time of a ring all-reduce: 2(n-1) rounds, in each a chunk of size/n bytes to the next of n."""
    return 2 * (n - 1) * (size / n / link + latency)


def step_seconds(forward, backward, exchange, packs):
    """Return the time of a step whose gradients are ready, and sent, in so many equal packs, one after another."""
    return forward + max(backward + exchange / packs, backward / packs + exchange)


def expected_maximum(n):
    """Return the expected largest of n standard normal numbers, within 0.03 (Blom 1958)."""
    return 0.0 if n == 1 else statistics.NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def checkpoint_bytes(net):
    """Return the size of a checkpoint: weights, momentum, BN statistics."""
    return BYTES * (2 * net.parameters + net.state)


def accelerator_bytes(net, batch, kept):
    """Return the memory of training in bfloat16: weights, momentum, gradients twice (packed), activations.

    Args:
        net: Net.
        batch: images on the accelerator.
        kept: numbers in memory for each of net.activations, measured.
    """
    return (4 * BYTES + 2) * net.parameters + 2 * kept * net.activations * batch


def host_rates(c):
    """Return {part: images/s that a host's input can deliver}."""
    return {'input cores': c['cores'] * c['decode'], 'reading thread': c['read'], 'disk': c['disk'] / c['image_bytes']}


def predict(net, c, n):
    """Return what a training on n accelerators takes, a dict of plain numbers.

    Args:
        net: Net.
        c: {name: value} of ASSUMED and of what `constants` returns.
        n: accelerators.

    Returns:
        'batch' (an accelerator's), 'global_batch', 'step' (s), 'all_reduce' (s), 'images_per_second', 'cores' and
        'read_bytes' (a host's, to keep up), 'memory' (bytes of an accelerator), 'epoch' (s), 'parts' ({name: share of
        the epoch}), 'bottleneck' (the largest part but the arithmetic, if 5 % or more).
    """
    batch = max(1, min(int(c['batch']), int(c['max_batch']) // n))
    hosts, steps = math.ceil(n / c['per_host']), max(1, int(c['images']) // (batch * n))
    arithmetic = 3 * batch * 2 * net.multiply_adds / (c['flops'] * c['efficiency'])  # backward is twice forward
    compute = arithmetic + c['overhead']
    gradients = ring_seconds(n, BYTES * net.parameters, c['link'], c['packs'] * c['latency'])
    others = ring_seconds(n, BYTES * net.state, c['link'], (COLLECTIVES - 1) * c['latency'])
    exposed = step_seconds(compute / 3, compute * 2 / 3, gradients, c['packs']) - compute + others
    wait = compute * c['jitter'] * expected_maximum(n)
    rates = host_rates(c)
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
    per_image = 2 * net.multiply_adds / (c['flops'] * c['efficiency'])
    parts['evaluation'] = c['evaluate'] + c['test_images'] * max(per_image / n, 1 / rates[slowest] / hosts)
    parts['epoch order'] = c['order'] * c['images']
    save = c['save'] + c['save_byte'] * checkpoint_bytes(net)
    parts['checkpoints'] = save * (1 + sum(parts.values()) // (60 * c['save_minutes']))
    epoch = sum(parts.values())
    memory = accelerator_bytes(net, batch, c['kept'])
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


# --- the same, simulated -------------------------------------------------------------------------------------


def simulate_ring(starts, size, link, latency):
    """Return when each worker has the sum, from when each begins: every chunk is sent for itself, none overtakes."""
    chunk, have, free = size / len(starts) / link, np.array(starts, float), np.array(starts, float)
    for _ in range(2 * (len(starts) - 1)):
        free = np.maximum(have, free) + chunk
        have = np.roll(free, 1) + latency
    return np.maximum(have, free)


def simulate_step(n, forward, backward, size, link, latency, packs=1, jitter=0.0, steps=50, seed=0):
    """Return the mean seconds of steps of n workers, each as fast as chance will have it."""
    random, now = np.random.default_rng(seed), np.zeros(n)
    for _ in range(steps):
        pace = 1 + jitter * random.standard_normal(n)
        network = now
        for pack in range(packs):
            ready = now + pace * (forward + backward * (pack + 1) / packs)
            network = simulate_ring(np.maximum(ready, network), size / packs, link, latency)
        now = np.maximum(network, now + pace * (forward + backward))
    return float(now.max() / steps)


# --- the program ---------------------------------------------------------------------------------------------


class Task:
    """A task of scaling_measures in a process of its own, on the CPU also where there is a GPU."""

    def __init__(self, name, *arguments, cores=None, config=None):
        self.name = name
        self.errors = tempfile.TemporaryFile('w+')  # not a pipe, which blocks when nobody reads it
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.scaling_measures', name, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ
            | {'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': '-1'}
            | ({'TF_CONFIG': config} if config else {}),
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )

    def result(self):
        """Wait for it; return what it found.

        Raises:
            UserError: it failed, with its last words.
        """
        try:
            lines = self.process.communicate(timeout=TIMEOUT)[0].splitlines()
            self.errors.seek(0)
            words = self.errors.read().splitlines()
        except subprocess.TimeoutExpired:
            lines, words = [], [f'no end after {TIMEOUT} s; lower --size']
        finally:
            self.close()
        if self.process.returncode or not lines:
            raise UserError(f'measuring {self.name} failed: {words[-1] if words else "no message"}')
        return json.loads(lines[-1])

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def measure_all(names, size, folder):
    """Return {measure: its figures}, one after another."""
    cores, found = sorted(os.sched_getaffinity(0)), {}
    if 'images' in names:
        found |= Task('images', size).result()
    if 'input' in names:
        found['input'] = Task('input', size, *([folder] if folder else []), cores={cores[0]}).result()
    if 'workers' in names:
        hosts = [f'localhost:{port}' for port in workers.free_ports(2)]
        pair = [
            Task('workers', size, cores={cores[i % len(cores)]}, config=workers.tf_config(hosts, i)) for i in range(2)
        ]
        try:
            found['workers'] = [task.result() for task in pair]
        finally:
            for task in pair:
                task.close()
    if 'model' in names:
        found |= Task('model', size).result()
        found['memory'] = [Task('memory', max(scale, round(2 * scale * size))).result() for scale in (1, 2, 4)]
    return found


def line(rows, x, y):
    """Return (intercept, slope) of the straight line through rows of numbers, neither below 0."""
    slope, intercept = np.polyfit([row[x] for row in rows], [row[y] for row in rows], 1)
    return max(0.0, float(intercept)), max(0.0, float(slope))


def constants(found):
    """Return {name: value} for `predict` of what `measure_all` found."""
    save, save_byte = line(found['checkpoint'], 'bytes', 'save_seconds')
    memory = line(found['memory'], 'batch', 'peak_bytes')[1]
    return {
        'decode': statistics.median(found['input']['images_per_core_second']),
        'read': found['input']['records_per_second'],
        'save': save,
        'save_byte': save_byte,
        'restore_byte': line(found['checkpoint'], 'bytes', 'restore_seconds')[1],
        'evaluate': line(found['evaluation'], 'images', 'seconds')[0],
        'order': line(found['order'], 'images', 'seconds')[1],
        'index': line(found['index'], 'records', 'seconds')[1],
        'index_bytes': line(found['index'], 'records', 'bytes')[1],
        'kept': memory / BYTES / found['memory'][0]['activations'],
    }


def predict_pair(pair, clock='seconds'):
    """Return what two workers' steps should take by their constants, beside what they take.

    A turn of `alone` is that of the slower worker, for whom the other waits; the exchanges come on top.

    Args:
        pair: what the two tasks found.
        clock: 'seconds', or 'cpu_seconds' of the processor, which other jobs disturb less.
    """
    turns = [{row['turn']: row[clock] for row in worker['turns']} for worker in pair]
    middle = {name: statistics.median(map(max, *(worker[name] for worker in turns))) for name in turns[0]}
    sizes = [{'bytes': int(name), 'seconds': seconds} for name, seconds in middle.items() if name.isdigit()]
    per_byte = line(sizes, 'bytes', 'seconds')[1]
    sent = pair[0]['gradient_bytes'] + pair[0]['state_bytes']
    predicted = middle['alone'] + COLLECTIVES * sizes[0]['seconds'] + sent * per_byte
    return {
        'alone': middle['alone'],
        'exchange_of_nothing': sizes[0]['seconds'],
        'exchanged_bytes_per_second': 1 / per_byte if per_byte else 0.0,
        'exchanged_bytes': sent,
        'predicted': predicted,
        'measured': middle['together'],
        'ratio': predicted / middle['together'],
    }


def format_found(found):
    """Return the measured figures as lines."""
    lines = []
    for name in ('index', 'order', 'checkpoint', 'evaluation', 'memory'):
        for row in found.get(name, ()):
            lines.append(f'{name:11} ' + '  '.join(f'{key} {_short(value)}' for key, value in row.items()))
    for name, value in found.get('input', {}).items():
        values = value if isinstance(value, list) else [value]
        lines.append(f'input       {name} {" ".join(map(_short, values))}')
    if 'workers' in found:
        for row in found['workers'][0]['turns']:
            lines.append(
                f'two workers {row["turn"]:>9}  s {_short(statistics.median(row["seconds"]))}  processor s '
                f'{_short(statistics.median(row["cpu_seconds"]))}  bytes sent {_short(row["loopback_bytes"])}'
            )
        for clock in ('seconds', 'cpu_seconds'):
            row = predict_pair(found['workers'], clock)
            lines.append(
                f'two workers, {clock}: predicted {_short(row["predicted"])}, measured '
                f'{_short(row["measured"])}, ratio {row["ratio"]:.2f}'
            )
    return '\n'.join(lines)


def format_table(rows):
    """Return what `predict` says of several numbers of accelerators, a line each."""
    lines = ['   n    batch  step ms  all-reduce ms  images/s  cores/host  MB/s host  GB/accel.  epoch s  bottleneck']
    for row in rows:
        lines.append(
            f'{row["accelerators"]:4} {row["batch"]:3}x{row["accelerators"]:<4} {1e3 * row["step"]:7.1f} '
            f'{1e3 * row["all_reduce"]:13.1f} {row["images_per_second"]:10,.0f} {row["cores"]:10.0f} '
            f'{row["read_bytes"] / 1e6:10.0f} {row["memory"] / 1e9:10.1f} {row["epoch"]:8.1f} '
            f' {row["bottleneck"]}'
        )
    names = [part for part in ADVICE if any(part in row['parts'] for row in rows)]
    lines += ['', 'shares of an epoch, %: ' + ', '.join(names)]
    for row in rows:
        lines.append(
            f'{row["accelerators"]:4} '
            + ' '.join(f'{100 * row["parts"].get(name, 0):{len(name) + 1}.1f}' for name in names)
        )
    return '\n'.join(lines)


def _short(value):
    return f'{value:,}' if isinstance(value, int) else f'{value:,.0f}' if value >= 1000 else f'{value:.4g}'


def define_flags():
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    flags.DEFINE_multi_enum(
        'measure',
        list(MEASURES),
        MEASURES,
        'What to measure; may be repeated. Reckoning needs all but workers.',
        flag_values=values,
    )
    flags.DEFINE_string('variant', 'resnet50_v1.5', 'The network to reckon with.', flag_values=values)
    flags.DEFINE_list('accelerators', '8,16,64,256,1024', 'How many, a comma list.', flag_values=values)
    flags.DEFINE_multi_string(
        'set', [], 'name=value of an assumption, or of a measured constant, to replace.', flag_values=values
    )
    flags.DEFINE(program.Number(0.01, 1), 'size', 1.0, 'Share of the full measurements.', flag_values=values)
    flags.DEFINE_string('image_folder', None, 'JPEG files to decode; drawn ones without.', flag_values=values)
    flags.DEFINE_string('input_json', None, 'Take the measurements of an earlier --output_json.', flag_values=values)
    flags.DEFINE_string('output_json', None, 'Also write every single figure there.', flag_values=values)
    flags.register_validator(
        'accelerators',
        lambda names: names and all(name.isdecimal() and 0 < int(name) <= 10**6 for name in names),
        'pass numbers in 1..1000000, as 8,64',
        values,
    )
    return values


def replaced(values, pairs):
    """Return {name: number} with those of 'name=number' replaced."""
    values = dict(values)
    for pair in pairs:
        name, _, text = pair.partition('=')
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if name not in values or not 0 <= number < math.inf or (number == 0 and name not in _MAY_BE_0):
            raise UserError(
                f"set '{pair}' is no assumption and a number above 0; pass name=number with a name of "
                f'{", ".join(values)}'
            )
        values[name] = number
    return values


def run_scaling(values):
    """Measure or read what was measured, reckon, print."""
    replaced({name: 0 for name in (*ASSUMED, *MEASURED)}, values.set)  # before what takes its time
    output = os.path.expanduser(values.output_json or '')
    if output and (os.path.isdir(output) or not os.path.isdir(os.path.dirname(output) or '.')):
        raise UserError(f"output_json '{output}' is no file in a folder that is there; pass another")
    if values.image_folder:
        jpeg_input.list_files(values.image_folder)
    net = Net(**Task('net', values.variant).result())
    if values.input_json:
        stored = _read(values.input_json)
        found, machine = stored['found'], stored['machine']
    else:
        before = f'load {os.getloadavg()[0]:.1f}'
        found = measure_all(values.measure, values.size, values.image_folder)
        machine = f'{_machine()}, {before} before and {os.getloadavg()[0]:.1f} after'
    print(format_found(found))
    rows, measured = [], {}
    if _is_complete(found):
        measured = constants(found)
        c = replaced({name: value for name, (value, *_) in ASSUMED.items()} | measured, values.set)
        rows = [predict(net, c, int(n)) for n in values.accelerators]
        print('\nmeasured: ' + ', '.join(f'{name} {_short(c[name])} ({MEASURED[name]})' for name in measured))
        print(
            'assumed:\n'
            + '\n'.join(
                f'  {name} {_short(c[name])} {what} ({source if c[name] == value else "--set"})'
                for name, (value, what, source) in ASSUMED.items()
            )
        )
        print(
            f'\n{values.variant}: {net.parameters:,} parameters, {net.multiply_adds / 1e6:,.0f} M multiply-adds, '
            f'checkpoint {checkpoint_bytes(net) / 1e6:.0f} MB\n{format_table(rows)}'
        )
        for part in dict.fromkeys(row['bottleneck'] for row in rows):
            print(f'{part}: {ADVICE[part]}')
    print(f'\n{machine}')
    if output:
        with open(output, 'w', encoding='utf-8') as file:
            json.dump(
                {
                    'flags': values.flag_values_dict(),
                    'machine': machine,
                    'found': found,
                    'constants': measured,
                    'assumed': ASSUMED,
                    'net': dataclasses.asdict(net),
                    'rows': rows,
                },
                file,
                indent=1,
            )


def _read(path):
    """Return what --output_json wrote."""
    try:
        with open(os.path.expanduser(path), encoding='utf-8') as file:
            stored = json.load(file)
        format_found(stored['found'])
        if _is_complete(stored['found']):
            constants(stored['found'])
        return {'found': stored['found'], 'machine': str(stored['machine'])}
    except OSError as error:
        raise UserError(
            f"input_json '{path}' cannot be read ({error.strerror}); pass what --output_json wrote"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"input_json '{path}' is none; pass what --output_json wrote") from None


def _is_complete(found):
    """Whether there is all that `constants` needs."""
    return {'order', 'input', 'checkpoint'} <= found.keys()


def _machine():
    """Return one line: CPU, cores, memory, versions."""
    gibibytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('tensorflow', 'keras', 'numpy'))
    return (
        f'{devices.cpu_model()}, {os.cpu_count()} cores, {gibibytes:.0f} GiB; Python {sys.version.split()[0]}, '
        f'{versions}'
    )


def run():
    """Run with the arguments of the command line and exit."""
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_scaling))


if __name__ == '__main__':
    run()
