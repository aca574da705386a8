"""Measure what training costs on this machine, and estimate what limits training on 8 to 1024 accelerators.

    python -m benchmarks.scaling --output_json=scaling.json    # measures, then estimates: 2 minutes on two cores
    python -m benchmarks.scaling --image_folder=DIR            # decodes these JPEGs instead of synthetic ones
    python -m benchmarks.scaling --input_json=scaling.json --set=link=1.25e9    # estimates only

docs/scaling.md has figures and conclusions. scaling_measures measures this machine, with a process for each measure.
The numbers of accelerators and their network are ASSUMED, each with its source; --set replaces any of them.
"""

import contextlib
import json
import math
import os
import pathlib
import statistics
import sys
from typing import Any

from absl import flags

from benchmarks import jpeg_input, measuring
from benchmarks.scaling_model import ADVICE, ASSUMED, COLLECTIVES, MEASURED, checkpoint_bytes, constants, line, predict
from official_resnet import files
from official_resnet.command_line import program
from official_resnet.command_line.definer import Definer
from official_resnet.errors import UserError
from official_resnet.training import workers

MAY_BE_0 = {'overhead', 'jitter', 'latency', 'save', 'save_byte', 'restore_byte', 'evaluate', 'order', 'index'}
MEASURES = ('images', 'workers', 'model', 'input')
TIMEOUT = 600  # seconds for a measure


def start(task: str, *arguments: Any, **options: Any) -> measuring.Child:
    """Return the process that runs a measure of scaling_measures, always on the CPU."""
    function = f'benchmarks.scaling_measures:measure_{task}'
    return measuring.Child(function, *arguments, CUDA_VISIBLE_DEVICES='-1', **options)


def result(*arguments: Any, **options: Any) -> dict:
    """Start a process, see `start`, and return its result."""
    with start(*arguments, **options) as child:
        return child.answer(TIMEOUT)


def measure_all(names: list[str], size: float, folder: str | None) -> dict:
    """Run the measures one after another; return {measure: figures}."""
    cores, found = sorted(os.sched_getaffinity(0)), dict[str, Any]()
    if 'images' in names:
        found |= result('images', size)
    if 'input' in names:
        found['input'] = result('input', size, folder, cores={cores[0]})
    if 'workers' in names:
        hosts = [f'localhost:{port}' for port in workers.free_ports(2)]
        options = [{'cores': {cores[i % len(cores)]}, 'TF_CONFIG': workers.tf_config(hosts, i)} for i in range(2)]
        with contextlib.ExitStack() as stack:
            pair = [stack.enter_context(start('workers', size, **some)) for some in options]
            found['workers'] = [child.answer(TIMEOUT) for child in pair]
    if 'model' in names:
        found |= result('model', size)
        found['memory'] = [result('memory', max(scale, round(2 * scale * size))) for scale in (1, 2, 4)]
    return found


def predict_pair(pair: list[dict], clock: str = 'seconds') -> dict[str, float]:
    """Return the predicted and the measured seconds of two workers' steps.

    A turn of `alone` is that of the slower worker, because the other one waits for it; the exchanges are added. The
    clock is 'seconds' (wall-clock time) or 'cpu_seconds' (CPU time), which other jobs disturb less.
    """
    turns = [{row['turn']: row[clock] for row in worker['turns']} for worker in pair]
    medians = {name: statistics.median(map(max, *(worker[name] for worker in turns))) for name in turns[0]}
    sizes = [{'bytes': int(name), 'seconds': seconds} for name, seconds in medians.items() if name.isdigit()]
    per_byte = line(sizes, 'bytes', 'seconds')[1]
    sent = pair[0]['gradient_bytes'] + pair[0]['state_bytes']
    predicted = medians['alone'] + COLLECTIVES * sizes[0]['seconds'] + sent * per_byte
    measured = medians['together']
    return {'alone': medians['alone'], 'predicted': predicted, 'measured': measured, 'ratio': predicted / measured}


def format_found(found: dict) -> str:
    """Return the measured figures as lines of text."""
    lines = []
    for name in ('index', 'order', 'checkpoint', 'evaluation', 'memory'):
        for row in found.get(name, ()):
            lines.append(f'{name:11} ' + '  '.join(f'{key} {_short(value)}' for key, value in row.items()))
    for name, value in found.get('input', {}).items():
        values = value if isinstance(value, list) else [value]
        lines.append(f'input       {name} {" ".join(map(_short, values))}')
    if 'workers' in found:
        clocks = ('seconds', 'cpu_seconds')
        for row in found['workers'][0]['turns']:
            by_clock, busy = (_short(statistics.median(row[clock])) for clock in clocks)
            sent = _short(row['loopback_bytes'])
            lines.append(f'two workers {row["turn"]:>9}  s {by_clock}  CPU s {busy}  bytes sent {sent}')
        for clock in clocks:
            row = predict_pair(found['workers'], clock)
            predicted, measured = _short(row['predicted']), _short(row['measured'])
            lines.append(f'two workers, {clock}: predicted {predicted}, measured {measured}, ratio {row["ratio"]:.2f}')
    return '\n'.join(lines)


def format_table(rows: list[dict]) -> str:
    """Return a line of text for each result of `predict`."""
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
    """Return the flags of this program."""
    values = flags.FlagValues()
    define = Definer(values)
    text = 'What to measure; may be repeated. An estimate needs all but workers.'
    flags.DEFINE_multi_enum('measure', list(MEASURES), MEASURES, text, flag_values=values)
    define.string('variant', 'resnet50_v1.5', 'Network of the estimate.')
    define.names('accelerators', '8,16,64,256,1024', 'Numbers of accelerators, as a comma-separated list.')
    text = 'name=value replaces an assumption or a measured constant; may be repeated.'
    flags.DEFINE_multi_string('set', [], text, flag_values=values)
    define.number('size', 1.0, 'Size of the measurements, as a fraction of the full ones.', lower=0.01, upper=1)
    define.string('image_folder', None, 'Folder of JPEG files to decode. Default: synthetic images.')
    define.string('input_json', None, 'File that an earlier --output_json wrote; it replaces the measurements.')
    define.string('output_json', None, 'JSON file for all figures.')
    return values


def replacements(pairs: list[str]) -> dict[str, float]:
    """Return {name: number} from strings 'name=number' with names of ASSUMED or MEASURED."""
    values = {}
    for pair in pairs:
        name, _, text = pair.partition('=')
        number = math.nan
        with contextlib.suppress(ValueError):
            number = float(text)
        is_allowed = 0 < number < math.inf or number == 0 and name in MAY_BE_0
        if name not in [*ASSUMED, *MEASURED] or not is_allowed:
            names = ', '.join([*ASSUMED, *MEASURED])
            raise UserError(f"set '{pair}' must be name=number, with a number above 0 and a name of {names}")
        values[name] = number
    return values


def run_scaling(values: flags.FlagValues) -> None:
    """Measure, or read measurements; estimate; print."""
    replaced = replacements(values.set)  # before the slow measurements
    if not values.accelerators or not all(n.isdecimal() and 0 < int(n) <= 10**6 for n in values.accelerators):
        raise UserError(f'accelerators {",".join(values.accelerators)!r}: pass numbers in 1..1000000, such as 8,64')
    output = measuring.check_output(values.output_json)
    if values.image_folder:
        jpeg_input.list_files(values.image_folder)
    net = result('net', values.variant)
    if values.input_json:
        found, about = _read(values.input_json)
    else:
        before = f'load {os.getloadavg()[0]:.1f}'
        found = measure_all(values.measure, values.size, values.image_folder)
        about = f'{measuring.describe()}, {before} before and {os.getloadavg()[0]:.1f} after'
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
            f'\n{values.variant}: {net["parameters"]:,} parameters, {net["multiply_adds"] / 1e6:,.0f} M multiply-adds, '
            f'checkpoint {checkpoint_bytes(net) / 1e6:.0f} MB\n{format_table(rows)}'
        )
        for part in dict.fromkeys(row['bottleneck'] for row in rows):
            print(f'{part}: {ADVICE[part]}')
    print(f'\n{about}')
    if output:
        figures = {'found': found, 'constants': measured, 'assumed': ASSUMED, 'net': net, 'rows': rows}
        files.write_json(output, {'flags': values.flag_values_dict(), 'machine': about, **figures})


def _read(path):
    """Return (measurements, description of the machine) from a file that --output_json wrote."""
    with files.read_errors(path, 'pass what --output_json wrote as --input_json'):
        content = pathlib.Path(path).expanduser().read_bytes()
    try:
        stored = json.loads(content)
        format_found(stored['found'])
        constants(stored['found'])
        return stored['found'], str(stored['machine'])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"input_json '{path}' was not written by --output_json; pass a file that was") from None


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_scaling))
