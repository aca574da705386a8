"""Measure images/s side by side: ours, the same net in stock Keras layers with fit, and PyTorch.

    python -m benchmarks.speed                      # ResNet-32, batch 128, fp32 and bf16: about 7 minutes on two cores
    python -m benchmarks.speed --measure=input      # the input pipeline alone, on one core
    python -m benchmarks.speed --measure=inference  # ResNet-50, batch 8, 224x224, also keras.applications, ONNX Runtime
    python -m benchmarks.speed --measure=build      # ResNet-50s built a second, beside keras.applications
    python -m benchmarks.speed --measure=jpeg --image_folder=DIR
                                                    # training input of 224x224 from JPEGs, beside PyTorch's DataLoader
                                                    # and decoding alone, on one core and on all
    python -m benchmarks.speed --measure=workers    # two workers that share the cores, beside one process with all
    python -m benchmarks.speed --measure=save       # what checkpoints cost of the training time

Each system lives in a process of its own and all take turns, one at a time, so that a machine that is faster or
slower for a while is so for all: read the ratios. What is not installed is left out: pip install -e '.[parity]'.
"""

import contextlib
import importlib.util
import os
import statistics
import sys
from collections.abc import Collection

from absl import flags

from benchmarks import inference, jpeg_input, report, several_workers, speed_systems
from benchmarks.child import Child
from official_resnet.command_line import program
from official_resnet.resnet_spec import MAX_LAYERS

SYSTEMS = ('ours', 'keras', 'torch')
MEASURES = ('input', 'forward', 'train', 'inference', 'build')
OTHER_MEASURES = ('jpeg', 'workers', 'save')  # not without being asked for
SAVE_MINUTES, EPOCH_IMAGES = 10, 50_000  # checkpoints of a training at its defaults: between two, and of CIFAR's epoch
INFERENCE_SIZE, INFERENCE_BATCH = 50, 8


def define_flags() -> flags.FlagValues:
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    flags.DEFINE_integer('resnet_size', 32, 'Layers: 6n+2.', 8, MAX_LAYERS, short_name='rs', flag_values=values)
    flags.DEFINE_integer('batch_size', 128, 'Images a step.', 1, short_name='bs', flag_values=values)
    flags.DEFINE_integer('runs', 7, 'Counted turns of each system.', 1, flag_values=values)
    flags.DEFINE_integer('steps', 10, 'Steps of a turn (input: 20 times as many).', 1, flag_values=values)
    flags.DEFINE_multi_enum(
        'dtype', ['fp32', 'bf16'], ['fp32', 'bf16'], 'Precision; may be given twice.', flag_values=values
    )
    for name, default, others in (('measure', MEASURES, OTHER_MEASURES), ('system', (*SYSTEMS, 'onnx'), ())):
        flags.DEFINE_multi_enum(
            name, list(default), (*default, *others), 'What to compare; may be repeated.', flag_values=values
        )
    flags.DEFINE_string('image_folder', None, 'JPEG files for --measure=jpeg, in any subfolders.', flag_values=values)
    flags.DEFINE_string('output_json', None, 'Also write every single figure there.', flag_values=values)
    flags.register_validator('resnet_size', lambda size: size % 6 == 2, 'must be 6n+2', values)
    return values


def start(system: str, *arguments, cores: Collection[int] | None = None) -> Child:
    """Return the Child that builds a system; its first answer is that it has."""
    return Child(system.rpartition(':')[2], speed_systems.serve, system, *arguments, cores=cores)


def measure_in_turns(
    systems: list[str],
    dtype: str,
    measures: list[str],
    values: flags.FlagValues,
    cores: Collection[int] | None = None,
    size: int | None = None,
    batch_size: int | None = None,
) -> list[tuple[str, str, dict]]:
    """Return [(measure, dtype, {system: [images/s of each run, or builds/s]})]; the first turn of each is not counted.

    Args:
        systems: of SYSTEMS, inference.SYSTEMS or jpeg_input.SYSTEMS; a process each.
        dtype: 'fp32' or 'bf16'.
        measures: of MEASURES and OTHER_MEASURES, and more words to tell two apart.
        values: the flags.
        cores: what the processes may use; None for all.
        size, batch_size: other than the flags say.
    """
    size, batch_size = size or values.resnet_size, batch_size or values.batch_size
    results = []
    with contextlib.ExitStack() as stack:
        children = []
        for system in systems:
            folder = [values.image_folder] if system in jpeg_input.SYSTEMS else []
            children.append(stack.enter_context(start(system, dtype, size, batch_size, *folder, cores=cores)))
            children[-1].answer()
        for measure in measures:
            steps = values.steps * (20 if measure == 'input' else 1)  # a batch of input takes milliseconds
            items = 1 if measure in ('build', 'save') else batch_size
            rates = {one.name: [] for one in children}
            for run in range(-1, values.runs):
                for one in children:
                    rate = steps * items / one.ask(measure.split()[0], steps)
                    if run >= 0:
                        rates[one.name].append(rate)
            results.append((measure, dtype, rates))
    return results


def run_benchmark(values: flags.FlagValues) -> None:
    """Measure what the flags ask for, print the table."""
    output = report.check_output(values.output_json)
    if 'jpeg' in values.measure:
        jpeg_input.list_files(values.image_folder)  # before the others take their time
    results, sentences = [], []
    for measures, systems, dtype, options in _plan(values):
        results += measure_in_turns(systems, dtype, measures, values, **options)
    if 'workers' in values.measure:
        results += _measure_workers(values, sentences)
    if 'save' in values.measure:
        results += _measure_saves(values, sentences)
    print('\n'.join([format_table(results), *sentences]))
    machine = f'{report.describe_machine()}, load {os.getloadavg()[0]:.1f}'
    print(
        f'\nResNet-{values.resnet_size}, batch {values.batch_size}, {values.runs} runs of {values.steps} steps, '
        f'input on one core; '
        f'inference ResNet-{INFERENCE_SIZE}, batch {INFERENCE_BATCH}, 224x224; {machine}'
    )
    rows = [{'measure': measure, 'dtype': dtype, 'images_per_second': rates} for measure, dtype, rates in results]
    report.write(output, values.flag_values_dict(), machine, results=rows)


def _plan(values):
    """Yield what is measured: (measures, systems, dtype, more arguments of measure_in_turns)."""
    cores, large = sorted(os.sched_getaffinity(0)), {'size': INFERENCE_SIZE, 'batch_size': INFERENCE_BATCH}
    if 'input' in values.measure:
        yield ['input'], ['ours'], 'fp32', {'cores': cores[:1]}
    steps = [measure for measure in ('forward', 'train') if measure in values.measure]
    systems = [system for system in SYSTEMS if system in values.system and _is_installed(system, ('torch',))]
    for dtype in values.dtype if steps else ():
        yield steps, systems, dtype, {}
    for dtype in values.dtype if 'inference' in values.measure else ():
        yield ['inference'], _inference_systems(values.system, dtype), dtype, large
    if 'build' in values.measure:
        yield ['build'], ['inference:ours', 'inference:applications'], 'fp32', large
    if 'jpeg' in values.measure:
        chosen = [system for system in values.system if _is_installed(system, jpeg_input.NEEDS.get(system, ()))]
        parts = [f'jpeg:{part}' for system in chosen for part in jpeg_input.PARTS.get(system, ())]
        for name, some in (('jpeg', cores[:1]), ('jpeg all', cores))[: len(cores)]:
            yield [name], parts, 'fp32', {'cores': some}


def _measure_workers(values, sentences):
    """Return the results of 'workers'; add to the sentences how they compare."""
    results = []
    for dtype in values.dtype:
        results += measure_in_turns(['workers:several', 'workers:one'], dtype, ['workers'], values)
        rates = results[-1][2]
        share = statistics.median(a / b for a, b in zip(rates['several'], rates['one'], strict=True))
        sentences.append(f'{dtype}: {several_workers.COUNT} workers reach {share:.0%} of the images/s of one process')
    return results


def _measure_saves(values, sentences):
    """Return the results of 'save'; add to the sentences what share of a training at its defaults they take."""
    results = []
    for size, batch_size in ((values.resnet_size, values.batch_size), (INFERENCE_SIZE, INFERENCE_BATCH)):
        ((_, _, saves),) = measure_in_turns(
            ['save:seconds'], 'fp32', ['save'], values, size=size, batch_size=batch_size
        )
        results.append(('save', 'fp32', {f'resnet{size}': saves['seconds']}))
        seconds = statistics.median(1 / rate for rate in saves['seconds'])
        text = (
            f'ResNet-{size}: {seconds:.3f} s a checkpoint; every {SAVE_MINUTES} minutes that is '
            f'{seconds / (60 * SAVE_MINUTES):.3%} of the time'
        )
        if size == values.resnet_size:
            ((_, _, rates),) = measure_in_turns(['workers:one'], 'fp32', ['workers'], values)
            results.append(('workers', 'fp32', rates))
            epoch = EPOCH_IMAGES / statistics.median(rates['one'])
            text += f', after each epoch of {EPOCH_IMAGES} images ({epoch:.0f} s here) {seconds / epoch:.3%}'
        sentences.append(text)
    return results


def _inference_systems(systems, dtype):
    """Return the names in inference.SYSTEMS that the --system flags ask for; 'keras' means two."""
    chosen = [name for system in systems for name in (('applications', 'predict') if system == 'keras' else (system,))]
    return [
        f'inference:{name}'
        for name in chosen
        if (name, dtype) != ('onnx', 'bf16') and _is_installed(name, inference.NEEDS.get(name, ()))
    ]


def _is_installed(system, packages):
    """Tell whether what a system needs is installed; say so if not."""
    if system in ('torch', 'onnx'):
        for package in packages:
            if importlib.util.find_spec(package) is None:
                print(f"{package} is not installed, {system} is left out: pip install -e '.[parity]'")
                return False
    return True


def format_table(results: list[tuple[str, str, dict]]) -> str:
    """Return lines: measure, precision, system, n, min, median, max images/s (builds/s), the ratio of ours to it."""
    lines = [f'{"":9} {"":5} {"system":12} {"n":>3} {"min":>9} {"median":>9} {"max":>9}  ours/it']
    for measure, dtype, rates in results:
        for system, values in rates.items():
            ratio = ''
            if system != 'ours' and 'ours' in rates:  # turn by turn, so that the machine's moods cancel
                ratio = f'{statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True)):.2f}'
            lines.append(
                f'{measure:9} {dtype:5} {system:12} {len(values):3} {min(values):9.1f} '
                f'{statistics.median(values):9.1f} {max(values):9.1f}  {ratio}'
            )
    return '\n'.join(lines)


def run() -> None:
    """Run with the arguments of the command line and exit."""
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), run_benchmark))


if __name__ == '__main__':
    run()
