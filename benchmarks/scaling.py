"""Measure what training costs here, and estimate from it what bounds a training on 8 to 1024 accelerators.

    python -m benchmarks.scaling --output_json=scaling.json    # measures, then estimates: 2 minutes on two cores
    python -m benchmarks.scaling --image_folder=DIR            # decodes these JPEGs instead of synthetic ones
    python -m benchmarks.scaling --input_json=scaling.json --variant=resnet152_v1.5 --set=link=1.25e9  # estimates only

Figures, machine and what follows from them: docs/scaling.md. What is measured (by scaling_measures, a process for
each measure) is of this machine. An accelerator and its network are not here, so their numbers are ASSUMED, each with
its source, and --set replaces any of them.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
from collections.abc import Collection
from typing import Any

from absl import flags

from benchmarks import jpeg_input, machine
from benchmarks.child import Child
from benchmarks.scaling_model import ADVICE, ASSUMED, COLLECTIVES, MEASURED, Net, constants, line, predict
from official_resnet import files
from official_resnet.command_line import program
from official_resnet.command_line.definer import Definer
from official_resnet.errors import UserError
from official_resnet.training import workers

MAY_BE_0 = {'overhead', 'jitter', 'latency', 'save', 'save_byte', 'restore_byte', 'evaluate', 'order', 'index'}
MEASURES = ('images', 'workers', 'model', 'input')
TIMEOUT = 600  # seconds for a measure


def start(task: str, *arguments, cores: Collection[int] | None = None, **environment: str) -> Child:
    """Return the Child that does a task of scaling_measures, on the CPU also where there is a GPU."""
    environment |= {'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': '-1'}
    return Child(f'benchmarks.scaling_measures:measure_{task}', *arguments, cores=cores, **environment)


def result(*arguments, **options) -> Any:
    """Return what the process that `start` starts finds."""
    with start(*arguments, **options) as child:
        return child.answer(TIMEOUT)


def measure_all(names: Collection[str], size: float, folder: str | None) -> dict:
    """Return {measure: its figures}, one after another."""
    cores, found = sorted(os.sched_getaffinity(0)), {}
    if 'images' in names:
        found |= result('images', size)
    if 'input' in names:
        found['input'] = result('input', size, folder, cores={cores[0]})
    if 'workers' in names:
        hosts = [f'localhost:{port}' for port in workers.free_ports(2)]
        with contextlib.ExitStack() as stack:
            options = [{'cores': {cores[i % len(cores)]}, 'TF_CONFIG': workers.tf_config(hosts, i)} for i in range(2)]
            pair = [stack.enter_context(start('workers', size, **options[i])) for i in range(2)]
            found['workers'] = [child.answer(TIMEOUT) for child in pair]
    if 'model' in names:
        found |= result('model', size)
        found['memory'] = [result('memory', max(scale, round(2 * scale * size))) for scale in (1, 2, 4)]
    return found


def predict_pair(pair: list[dict], clock: str = 'seconds') -> dict[str, float]:
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
        'predicted': predicted,
        'measured': middle['together'],
        'ratio': predicted / middle['together'],
    }


def format_found(found: dict) -> str:
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


def format_table(rows: list[dict]) -> str:
    """Return what `predict` says of several numbers of accelerators, a line each."""
    lines = ['   n    batch  step ms  all-reduce ms  images/s  cores/host  MB/s host  GB/accel.  epoch s  bottleneck']
    for row in rows:
        lines.append(
            f'{row["accelerators"]:4} {row["batch"]:3}x{row["accelerators"]:<4} {1e3 * row["step"]:7.1f} '
            f'{1e3 * row["all_reduce"]:13.1f} {row["images_per_second"]:10,.0f} {row["cores"]:10.0f} '
            f'{row["read_bytes"] / 1e6:10.0f} {row["memory"] / 1e9:10.1f} {row["epoch"]:8.1f}  {row["bottleneck"]}'
        )
    names = [part for part in ADVICE if any(part in row['parts'] for row in rows)]
    lines += ['', 'shares of an epoch, %: ' + ', '.join(names)]
    for row in rows:
        shares = (f'{100 * row["parts"].get(name, 0):{len(name) + 1}.1f}' for name in names)
        lines.append(f'{row["accelerators"]:4} {" ".join(shares)}')
    return '\n'.join(lines)


def _short(value):
    return f'{value:,}' if isinstance(value, int) else f'{value:,.0f}' if value >= 1000 else f'{value:.4g}'


def define_flags() -> flags.FlagValues:
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    define = Definer(values)
    flags.DEFINE_multi_enum(
        'measure', list(MEASURES), MEASURES, 'May be repeated. An estimate needs all but workers.', flag_values=values
    )
    define.string('variant', 'resnet50_v1.5', 'The network of the estimate.')
    define.names('accelerators', '8,16,64,256,1024', 'How many, a comma list.')
    flags.DEFINE_multi_string(
        'set', [], 'name=value of an assumption, or of a measured constant, to replace.', flag_values=values
    )
    define.number('size', 1.0, 'Share of the full measurements.', lower=0.01, upper=1)
    define.string('image_folder', None, 'JPEG files to decode; synthetic ones without.')
    define.string('input_json', None, 'Take the measurements of an earlier --output_json.')
    machine.define_output(values)
    flags.register_validator(
        'accelerators',
        lambda names: names and all(name.isdecimal() and 0 < int(name) <= 10**6 for name in names),
        'pass numbers in 1..1000000, as 8,64',
        values,
    )
    return values


def replacements(pairs: list[str]) -> dict[str, float]:
    """Return {name: number} of 'name=number', the names being of ASSUMED or MEASURED."""
    values = {}
    for pair in pairs:
        name, _, text = pair.partition('=')
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = math.nan
        is_known = name in ASSUMED or name in MEASURED
        if not is_known or not 0 <= values[name] < math.inf or (values[name] == 0 and name not in MAY_BE_0):
            raise UserError(
                f"set '{pair}' is no assumption and a number above 0; pass name=number with a name of "
                f'{", ".join([*ASSUMED, *MEASURED])}'
            )
    return values


def run_scaling(values: flags.FlagValues) -> None:
    """Measure, or read what was measured; estimate; print."""
    replaced = replacements(values.set)  # before what takes its time
    if values.image_folder:
        jpeg_input.list_files(values.image_folder)
    net = Net(**result('net', values.variant))
    if values.input_json:
        found, about = _read(values.input_json)
    else:
        before = f'load {os.getloadavg()[0]:.1f}'
        found = measure_all(values.measure, values.size, values.image_folder)
        about = f'{machine.describe()}, {before} before and {os.getloadavg()[0]:.1f} after'
    print(format_found(found))
    rows, measured = [], constants(found)
    if measured:
        c = {name: value for name, (value, *_) in ASSUMED.items()} | measured | replaced
        rows = [predict(net, c, int(n)) for n in values.accelerators]
        print('\nmeasured: ' + ', '.join(f'{name} {_short(c[name])} ({MEASURED[name][0]})' for name in measured))
        print('assumed:')
        for name, (value, what, source) in ASSUMED.items():
            print(f'  {name} {_short(c[name])} {what} ({source if c[name] == value else "--set"})')
        print(
            f'\n{values.variant}: {net.parameters:,} parameters, {net.multiply_adds / 1e6:,.0f} M multiply-adds, '
            f'checkpoint {net.checkpoint_bytes / 1e6:.0f} MB\n{format_table(rows)}'
        )
        for part in dict.fromkeys(row['bottleneck'] for row in rows):
            print(f'{part}: {ADVICE[part]}')
    print(f'\n{about}')
    figures = {'found': found, 'constants': measured, 'assumed': ASSUMED, 'net': dataclasses.asdict(net), 'rows': rows}
    machine.write_output(values, about, **figures)


def _read(path):
    """Return (what was found, the machine) of what --output_json wrote."""
    with files.read_errors(path, 'pass what --output_json wrote as --input_json'):
        content = pathlib.Path(path).expanduser().read_bytes()
    try:
        stored = json.loads(content)
        format_found(stored['found'])
        constants(stored['found'])
        return stored['found'], str(stored['machine'])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"input_json '{path}' holds something else; pass what --output_json wrote") from None


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_scaling))
