"""Measure images/s side by side: ours, the same network in stock Keras layers with fit, and PyTorch.

    python -m benchmarks.speed                      # ResNet-32, batch 128, fp32 and bf16: about 7 minutes on two cores
    python -m benchmarks.speed --measure=train --network=pooled --batch_size=500    # the network of the recipe fast
    python -m benchmarks.speed --measure=input      # the input pipeline alone, on one core
    python -m benchmarks.speed --measure=inference  # ResNet-50, batch 8, 224x224, beside Keras, PyTorch, ONNX Runtime
                                                    # and OpenVINO; --version=1.5 without Keras
    python -m benchmarks.speed --measure=build      # ResNet-50s built per second, beside keras.applications
    python -m benchmarks.speed --measure=jpeg --image_folder=DIR    # training input of 224x224 from JPEGs, beside
                                                    # PyTorch's DataLoader and decoding alone, on one core and on all
    python -m benchmarks.speed --measure=augment    # input with TrivialAugment and RandAugment, on one core: 32x32
                                                    # images in memory, or with --image_folder=DIR its JPEGs at 224x224
    python -m benchmarks.speed --measure=workers    # two workers that share the cores, beside one process
    python -m benchmarks.speed --measure=save       # the fraction of the training time that checkpoints take

Each system runs in a separate process, and all take turns, one at a time. If the machine is faster or slower for a
while, this affects all of them, so read the ratios. Missing systems are left out: pip install -e '.[parity]'.
"""

import contextlib
import itertools
import os
import pkgutil
import statistics
import sys
import tempfile
from collections.abc import Callable

from absl import flags

from benchmarks import jpeg_input, measuring
from official_resnet import files
from official_resnet.command_line import program
from official_resnet.resnet_spec import MAX_LAYERS

SYSTEMS = {  # module: {--system: its functions}
    'training': {'ours': ['ours'], 'keras': ['keras'], 'torch': ['torch']},
    'inference': {
        'ours': ['ours'],
        'keras': ['applications', 'predict'],  # only version 1
        'torch': ['torch'],
        'onnx': ['onnx'],  # only float32
        'openvino': ['openvino'],
    },
    'jpeg_input': {'ours': ['ours', 'antialias', 'decoded', 'decode'], 'torch': ['torch', 'pillow']},
}
CLOCKS = {'wall': 1, 'cpu': 2}  # places in what measuring.timed returns
POOLED = 'resnet8_pooled'  # as training.POOLED, whose module imports TensorFlow
MEASURES = ('input', 'forward', 'train', 'inference', 'build')
OTHER_MEASURES = ('jpeg', 'augment', 'workers', 'save')  # only on request
SAVE_MINUTES, EPOCH_IMAGES = 10, 50_000  # between checkpoints by default; of an epoch of CIFAR
INFERENCE_SIZE, INFERENCE_BATCH = 50, 8


def define_flags() -> flags.FlagValues:
    """Return the flags of this program."""
    values = flags.FlagValues()
    flags.DEFINE_integer('resnet_size', 32, 'Layers, 6n+2.', 8, MAX_LAYERS, short_name='rs', flag_values=values)
    text = 'The network of input, forward and train: that of --resnet_size, or that of the CIFAR recipe fast.'
    flags.DEFINE_enum('network', 'resnet', ['resnet', 'pooled'], text, flag_values=values)
    flags.DEFINE_integer('batch_size', 128, 'Images per step.', 1, short_name='bs', flag_values=values)
    flags.DEFINE_integer('runs', 7, 'Counted turns of each system.', 1, flag_values=values)
    flags.DEFINE_integer('steps', 10, 'Steps per turn (20 times as many for input in memory).', 1, flag_values=values)
    for name, default, others, text in (
        ('dtype', ('fp32', 'bf16'), (), 'Precision; may be repeated.'),
        ('measure', MEASURES, OTHER_MEASURES, 'What to measure; may be repeated.'),
        ('system', tuple(SYSTEMS['inference']), (), 'Systems to compare; may be repeated.'),
    ):
        flags.DEFINE_multi_enum(name, list(default), (*default, *others), text, flag_values=values)
    text = 'Time that counts: of the clock, or of the cores (cpu), which other jobs disturb less. Busy waiting counts.'
    flags.DEFINE_enum('clock', 'wall', list(CLOCKS), text, flag_values=values)
    text = 'Version of the ResNet of --measure=inference; keras.applications has only 1.'
    flags.DEFINE_enum('version', '1', ['1', '1.5'], text, flag_values=values)
    flags.DEFINE_string(
        'image_folder', None, 'Folder with the JPEG files for --measure=jpeg or augment.', flag_values=values
    )
    flags.DEFINE_string('output_json', None, 'JSON file for all figures.', flag_values=values)
    flags.register_validator('resnet_size', lambda size: size % 6 == 2, 'must be 6n+2', values)
    return values


def serve(system: str, clock: str, *arguments: object) -> Callable[[str, int], float] | str:
    """Build a system, 'module:function'; return (measure, steps) -> seconds, or the name of a missing package."""
    try:
        measures = pkgutil.resolve_name(f'benchmarks.{system}')(*arguments)
    except ModuleNotFoundError as error:
        return error.name or str(error)
    return lambda measure, steps: measuring.timed(measures[measure], steps)[CLOCKS[clock]]


def run_benchmark(values: flags.FlagValues) -> None:
    """Measure what the flags ask for, and print the table."""
    output = measuring.check_output(values.output_json)
    if 'jpeg' in values.measure or 'augment' in values.measure and values.image_folder:
        jpeg_input.list_files(values.image_folder)  # before the slow measurements
    results = [row for arguments, options in _plan(values) for row in _measure_in_turns(values, *arguments, **options)]
    print('\n'.join([format_table(results), *_conclusions(results)]))
    about = f'{measuring.describe()}, load {os.getloadavg()[0]:.1f}'
    network = POOLED if values.network == 'pooled' else f'ResNet-{values.resnet_size}'
    print(
        f'\n{network}, batch {values.batch_size}, {values.runs} runs of {values.steps} steps, '
        f'input on one core; inference ResNet-{INFERENCE_SIZE}, batch {INFERENCE_BATCH}, 224x224; {about}'
    )
    rows = [{'measure': measure, 'dtype': dtype, 'images_per_second': rates} for measure, dtype, rates in results]
    if output:
        files.write_json(output, {'flags': values.flag_values_dict(), 'machine': about, 'results': rows})


def _measure_in_turns(values, systems, dtype, measures, cores=None, size=None, batch_size=None):
    """Return [(measure, dtype, {system: [images/s or builds/s of each run]})]; the first turn of each does not count.

    Each system is a process on all or some cores. A second word, as in 'jpeg all', only labels a measure.
    """
    size, batch_size, results = size or values.resnet_size, batch_size or values.batch_size, []
    with contextlib.ExitStack() as stack:
        children, temporary = {}, stack.enter_context(tempfile.TemporaryDirectory())  # for processes that are killed
        for system in systems:
            module, _, name = system.partition(':')
            folder = [values.image_folder]
            more = {'jpeg_input': folder, 'augment': folder, 'inference': [values.version]}.get(module, [])
            arguments = (system, values.clock, dtype, size, batch_size, *more)
            child = measuring.Child('benchmarks.speed:serve', *arguments, cores=cores, TMPDIR=temporary)
            if missing := stack.enter_context(child).answer():
                print(f"{missing} is not installed, so {name} is left out; run pip install -e '.[parity]'")
            else:
                children[f'resnet{size}' if name == 'save' else name] = child
        for measure in measures:
            steps = values.steps * (20 if measure in ('input', 'augment') else 1)  # a batch of input takes milliseconds
            items = 1 if measure in ('build', 'save') else batch_size
            rates = {name: [] for name in children}
            for _, (name, child) in itertools.product(range(values.runs + 1), children.items()):
                child.tell(measure.split()[0], steps)
                rates[name].append(steps * items / child.answer())
            results.append((measure, dtype, {name: counted for name, (_, *counted) in rates.items()}))
    return results


def _plan(values):
    """Yield the measurements as arguments of _measure_in_turns: (systems, dtype, measures), and options."""
    cores, large = sorted(os.sched_getaffinity(0)), {'size': INFERENCE_SIZE, 'batch_size': INFERENCE_BATCH}
    chosen = {
        module: [f'{module}:{name}' for system, names in rows.items() if system in values.system for name in names]
        for module, rows in SYSTEMS.items()
    }
    if values.version != '1':
        keras = [f'inference:{name}' for name in SYSTEMS['inference']['keras']]
        chosen['inference'] = [system for system in chosen['inference'] if system not in keras]
    if 'input' in values.measure:
        yield (['training:ours'], 'fp32', ['input']), {'cores': cores[:1]}
    steps = [measure for measure in ('forward', 'train') if measure in values.measure]
    for dtype in values.dtype if steps else ():
        yield (chosen['training'], dtype, steps), {'size': POOLED} if values.network == 'pooled' else {}
    for dtype in values.dtype if 'inference' in values.measure else ():
        systems = [system for system in chosen['inference'] if (system, dtype) != ('inference:onnx', 'bf16')]
        yield (systems, dtype, ['inference']), large
    if 'build' in values.measure:
        yield (['inference:ours', 'inference:applications'], 'fp32', ['build']), large
    if 'jpeg' in values.measure:
        for name, some in (('jpeg', cores[:1]), ('jpeg all', cores))[: len(cores)]:
            yield (chosen['jpeg_input'], 'fp32', [name]), {'cores': some}
    if 'augment' in values.measure:
        systems = [f'augment:{name}' for name in ('ours', 'trivial_wide', 'randaugment')]
        yield (systems, 'fp32', ['augment jpeg' if values.image_folder else 'augment']), {'cores': cores[:1]}
    for dtype in values.dtype if 'workers' in values.measure else ():
        yield (['training:several', 'training:one'], dtype, ['workers']), {}
    if 'save' in values.measure:
        yield (['training:save'], 'fp32', ['save']), {}
        yield (['training:one'], 'fp32', ['workers']), {}  # for the duration of an epoch
        yield (['training:save'], 'fp32', ['save']), large


def _conclusions(results):
    """Yield sentences: how workers compare, and the fraction of a default training that checkpoints take."""
    for (measure, dtype, rates), (_, _, after) in itertools.pairwise([*results, ('', '', {})]):
        if 'several' in rates:
            share = _median_ratio(rates['several'], rates['one'])
            yield f'{dtype}: 2 workers reach {share:.0%} of the images/s of one process'
        if measure == 'save':
            ((name, saves),) = rates.items()
            seconds = statistics.median(1 / rate for rate in saves)
            text = (
                f'{name.replace("resnet", "ResNet-")}: {seconds:.3f} s per checkpoint; every {SAVE_MINUTES} minutes '
                f'that is {seconds / (60 * SAVE_MINUTES):.3%} of the time'
            )
            if 'one' in after:
                epoch = EPOCH_IMAGES / statistics.median(after['one'])
                text += f', after each epoch of {EPOCH_IMAGES} images ({epoch:.0f} s here) {seconds / epoch:.3%}'
            yield text


def _median_ratio(ours, others):
    """Compare turn by turn, so that changes of the machine's speed cancel out."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def format_table(results: list[tuple[str, str, dict]]) -> str:
    """Return lines with measure, precision, system, n, min, median and max images/s (builds/s), and ours / system."""
    lines = [f'{"":9} {"":5} {"system":12} {"n":>3} {"min":>9} {"median":>9} {"max":>9}  ours/it']
    for measure, dtype, rates in results:
        for system, values in rates.items():
            ratio = f'{_median_ratio(rates["ours"], values):.2f}' if system != 'ours' and 'ours' in rates else ''
            lines.append(
                f'{measure:9} {dtype:5} {system:12} {len(values):3} {min(values):9.1f} '
                f'{statistics.median(values):9.1f} {max(values):9.1f}  {ratio}'
            )
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_benchmark))
