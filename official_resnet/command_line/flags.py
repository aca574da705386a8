"""Make flags from the fields of configurations, and configurations from flags, without TensorFlow.

A `Program` describes a training program. Its flags are in a FlagValues of their own, so importing it defines no flags.
"""

import dataclasses
import functools
import os
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from official_resnet.errors import UserError
from official_resnet.inputs.augment_options import Augmentation
from official_resnet.resnet_spec import ResNetSpec
from official_resnet.training.config import PRETRAINED, MachineConfig, Schedule, TrainConfig, flags_of, part_of, setting

MAX_INTEGER = 2**31 - 1  # the largest count, because TensorFlow stores some in 32 bits
MAX_FLOAT = 3e38  # about the largest float32
MULTI_WORKER = 'multi_worker_mirrored'
HOOKS = ('LoggingTensorHook', 'ProfilerHook', 'ExamplesPerSecondHook', 'LoggingMetricHook', 'StepCounterHook')
_BIG_QUERY = 'there is no BigQuery upload; --benchmark_log_dir writes the same JSON'
# Flags of official/resnet that have no effect any more: (name, short name, what to use instead).
OBSOLETE = (
    ('gcp_project', 'gp', _BIG_QUERY),
    ('bigquery_data_set', 'bds', _BIG_QUERY),
    ('bigquery_run_table', 'brt', _BIG_QUERY),
    ('bigquery_run_status_table', 'brst', _BIG_QUERY),
    ('bigquery_metric_table', 'bmt', _BIG_QUERY),
    ('data_format', 'df', 'images are channels_last; TensorFlow chooses the layout for a GPU itself'),
    ('fp16_implementation', None, '--dtype=fp16 is Keras mixed precision'),
    ('num_packs', None, 'gradients are packed by TensorFlow itself'),
    ('tf_gpu_thread_mode', 'gt_mode', 'set the environment variable TF_GPU_THREAD_MODE'),
    ('per_gpu_thread_count', 'pgtc', 'set the environment variable TF_GPU_THREAD_COUNT'),
    ('datasets_num_parallel_batches', None, 'batches are made in parallel as needed'),
    ('num_parallel_calls', 'npc', 'batches are made in parallel as needed'),
    ('multi_gpu', None, 'use --num_gpus'),
    ('version', None, 'use --resnet_version, its name since May 2018'),
    ('use_train_and_evaluate', None, 'training and evaluation always alternate, see --epochs_between_evals'),
    ('tf_data_experimental_slack', None, 'the input prefetches as needed'),
    ('enable_lars', None, 'use --optimizer=lars'),
)
_RIVALS = {'tfds', 'image_folder', 'image_list', 'use_synthetic_data', PRETRAINED, 'local_workers', 'optimizer'}
OBSOLETE_SWITCHES = ('multi_gpu', 'use_train_and_evaluate', 'tf_data_experimental_slack', 'enable_lars')


@dataclasses.dataclass(frozen=True)
class Program:
    """What distinguishes one training program from another.

    `recipes` are {data set: {name: {flag: value}}}. The first data set and the first recipe are the defaults. The first
    recipe lists changes from the fields' defaults, the others list changes from the first.
    """

    recipes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    make_spec: Callable[..., ResNetSpec]  # see TrainConfig.from_settings
    sizes: str = ''  # the values of --resnet_size, in words; '' if there is only one
    versions: tuple[str, ...] = ('1', '2')  # the values of --resnet_version
    streams: bool = False  # whether its images are streamed: encoded, of any size
    synthetic: str = 'synthetic'  # the data set of --use_synthetic_data
    fine_tune: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what --fine_tune changes of first recipes
    chooses_network: bool = False  # whether the images of --image_folder, which it needs, decide the network, too


_data = functools.partial(setting, group='Data')
_evaluation = functools.partial(setting, group='Evaluation and export')
_of_evaluation = functools.partial(_evaluation, streams=True, needs='eval_only')
_workers = functools.partial(setting, group='Machine')
_logging = functools.partial(setting, group='Logging')


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The other options of a training program: data and recipe, evaluation, export, workers, logging."""

    recipe: str = setting('', 'Named set of hyperparameters; flags that you pass override it.', group='Training')
    variant: str | None = setting(
        None,
        'Train the network of this name, for example seresnet50_v1.5, resnext50_32x4d or wrn28_10, in place of '
        '--resnet_size, --resnet_version and --shortcut. python -m official_resnet.resnet_variants lists the names.',
        group='Network',
    )
    dataset: str = _data('', 'The data set.')
    tfds: str | None = _data(None, 'Train on a data set of tensorflow_datasets, given its name.')
    image_folder: str | None = _data(
        None,
        'Train on your own images: a folder with a subfolder for each class, or with folders train and test (or val, '
        'validation, valid, dev) of these. Fewer than 50,000 images decide --recipe, --batch_size and --train_epochs.',
        is_path=True,
    )
    image_list: str | None = _data(None, 'The same, in a CSV file (path,label) or in train.csv,test.csv.', is_path=True)
    use_synthetic_data: bool = _data(False, 'Train on synthetic images, without a download.', short='synth')
    download: bool = _data(True, 'Download a missing data set; --nodownload forbids it.')
    clean: bool = _data(False, 'First delete the run in --model_dir; with --transfer=head,all, its first stage too.')
    eval_only: bool = _evaluation(
        False, 'Evaluate the newest checkpoint in --model_dir, or a pretrained network. --export_dir also exports it.'
    )
    eval_report: str | None = _of_evaluation(
        None, 'Folder for report.json, per_class.csv and confusion.csv of --eval_only.', is_path=True
    )
    ten_crop: bool = _of_evaluation(False, 'Also evaluate the mean over ten crops: corners and centre, mirrored.')
    export_dir: str | None = _evaluation(None, 'Folder for a SavedModel of the network.', short='ed', is_path=True)
    report: bool = _evaluation(False, 'Write report.html into --model_dir at the end, see report_main.py.')
    image_bytes_as_serving_input: bool = _evaluation(
        False, 'The SavedModel takes JPEG or PNG files (ImageNet only).', needs='export_dir'
    )
    fine_tune: bool = setting(
        False,
        'The same as --transfer=head. With the recipe official of ImageNet, also 0.1 per 256 images and no warm-up, as '
        'in official/resnet.',
        group='Transfer',
        short='ft',
        needs=PRETRAINED,
    )
    cache_dir: str | None = setting(
        None,
        'Folder of converted published weights. Default: $XDG_CACHE_HOME/official-resnet or ~/.cache/official-resnet.',
        group='Transfer',
        is_path=True,
    )
    worker_hosts: tuple[str, ...] = _workers(
        (),
        'Addresses of all workers, for example host1:2222,host2:2222. Pass the same list to each. The first worker, '
        'the chief, writes all files.',
        is_open=True,
        needs='task_index',
    )
    task_index: int | None = _workers(
        None, 'The index of this worker in --worker_hosts, from 0.', least=0, needs='worker_hosts'
    )
    worker_token: str | None = _workers(
        None,
        'A secret that workers on several machines share. RESNET_WORKER_TOKEN in the environment does the same.',
        needs=f'distribution_strategy={MULTI_WORKER}',
    )
    local_workers: int = _workers(1, 'Number of workers on this machine, which share its cores.', least=1)
    hooks: tuple[str, ...] = _logging(('LoggingTensorHook',), f'What to log: any of {", ".join(HOOKS)}.', short='hk')
    log_steps: int = _logging(100, 'Number of steps between logged lines.', least=1)
    track: str | None = _logging(None, 'Also log the run to this tracker.', choices=('wandb', 'mlflow', 'trackio'))
    profile_steps: str | None = _logging(None, 'Steps to profile for TensorBoard: first,last, for example 10,20.')
    benchmark_log_dir: str | None = _logging(None, 'Folder for benchmark logs.', short='bld', is_path=True)
    benchmark_logger_type: str = _logging(
        'BaseBenchmarkLogger',
        'BaseBenchmarkLogger prints the metrics, BenchmarkFileLogger writes them into --benchmark_log_dir.',
        choices=('BaseBenchmarkLogger', 'BenchmarkFileLogger'),
    )
    benchmark_test_id: str | None = _logging(None, 'An identifier to store in the benchmark log.', short='bti')

    def __post_init__(self):
        object.__setattr__(self, 'image_folder', self.image_folder or self.image_list)  # image_folder reads both
        if wrong := [name for name in self.hooks if name.lower() not in {hook.lower() for hook in HOOKS}]:
            raise UserError(f'--hooks={",".join(wrong)} must be one of {", ".join(HOOKS)}; upper case does not matter')
        steps = re.fullmatch(r'(\d{1,9}),(\d{1,9})', self.profile_steps or '', re.ASCII)
        if self.profile_steps is not None and not (steps and int(steps[1]) <= int(steps[2])):
            raise UserError(f'--profile_steps={self.profile_steps}: pass the first and last step, for example 10,20')
        if self.benchmark_logger_type == 'BenchmarkFileLogger' and not self.benchmark_log_dir:
            raise UserError('--benchmark_logger_type=BenchmarkFileLogger needs --benchmark_log_dir; pass both')
        if self.local_workers > 1 and self.worker_hosts:
            raise UserError('--local_workers and --worker_hosts cannot be used together; pass one of them')
        if self.clean and self.worker_hosts:
            raise UserError('--clean cannot be combined with --worker_hosts; delete model_dir before you start them')


PARTS: tuple[type, ...] = (MachineConfig, RunOptions, ResNetSpec, TrainConfig, Augmentation, Schedule)


def types_of(part: type) -> dict[str, Any]:
    """Return {flag name: type} for a part of a configuration."""
    types = typing.get_type_hints(part, localns={'Views': Any})  # Views is imported only if it is needed
    return {flag: field.metadata.get('type', types[field.name]) for flag, field in flags_of(part).items()}


def fields_of(program: Program) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Return {flag name: (field, type of the field)} for a program."""
    found: dict[str, tuple[dataclasses.Field, Any]] = {}
    parts = PARTS
    if program.streams:
        from official_resnet.inputs.views import Views

        parts += (Views,)
    for part in parts:
        types = types_of(part)
        for flag, field in flags_of(part).items():
            if field.metadata.get('streams') in (None, program.streams):
                found[flag] = field, types[flag]
    left_out = {'dataset': len(program.recipes) == 1, 'resnet_size': not program.sizes, 'variant': not program.sizes}
    left_out |= dict.fromkeys(('tfds', 'use_synthetic_data', 'data_dir', 'download'), program.chooses_network)
    return {flag: found[flag] for flag in found if not left_out.get(flag)}


def define(program: Program) -> flags.FlagValues:
    """Return the flags of a program."""
    values = flags.FlagValues()
    dataset, table = next(iter(program.recipes.items()))
    words = {'recipe': list(table), 'dataset': list(program.recipes), 'resnet_version': program.versions}
    defaults = {'data_dir': f'/tmp/{dataset}_data', 'model_dir': f'/tmp/{dataset}_model'}
    for flag, (field, kind) in fields_of(program).items():
        about = dict(field.metadata)
        if flag == 'resnet_size':
            about['text'] = f'{about["text"][:-1]}: {program.sizes}.'
        default = defaults.get(flag, field.default)
        if flag in words:
            about['words'] = words[flag]
            default = words[flag][0]
        define_flag(values, flag, None if about.get('is_open') else default, kind, about)
    for name, short, text in OBSOLETE:
        kind = bool if name in OBSOLETE_SWITCHES else str
        define_flag(values, name, None, kind, {'text': f'Obsolete: {text}.', 'short': short})
    return values


def define_flag(values: flags.FlagValues, name: str, default: Any, kind: Any, about: Mapping[str, Any]) -> None:
    """Define the flag of a field. `kind` is the field's type, `about` its metadata, see config.setting."""
    common: dict[str, Any] = {'help': about['text'], 'short_name': about.get('short'), 'flag_values': values}
    low, high = about.get('least', about.get('above')), about.get('most', about.get('below'))
    if words := about.get('words', about.get('choices')):
        flags.DEFINE_enum(name, default, words, **common)
    elif kind is bool:
        flags.DEFINE_boolean(name, default, **common)
    elif kind in (int, int | None):
        flags.DEFINE_integer(name, default, **common, lower_bound=low, upper_bound=high or MAX_INTEGER)
    elif kind == tuple[str, ...]:
        flags.DEFINE_list(name, default and ','.join(default), **common)
    elif kind in (str, str | None):
        flags.DEFINE_string(name, default, **common)
    else:
        parsers = {tuple[float, ...]: Numbers(), float | str | None: Scale()}
        flags.DEFINE(parsers.get(kind) or Number(low, high), name, default, **common)


class Number(flags.FloatParser):
    """Parse a number within bounds and of float32. absl's own parser accepts nan."""

    def convert(self, argument: str | float) -> float:
        number = super().convert(argument)
        if not -MAX_FLOAT < number < MAX_FLOAT:  # nan is not, either
            raise ValueError(f'{argument} must be a finite number, smaller than {MAX_FLOAT:g}')
        return number


class Numbers(flags.ArgumentParser):
    """Parse '91,136' as (91.0, 136.0)."""

    def parse(self, argument: str) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in argument.split(',') if part)
        except ValueError:
            numbers = (MAX_FLOAT,)
        if not all(-MAX_FLOAT < number < MAX_FLOAT for number in numbers):
            raise ValueError(f'{argument!r} must be finite numbers with commas between them')
        return numbers

    def flag_type(self) -> str:
        return 'comma-separated list of numbers'


class Scale(flags.ArgumentParser):
    """Parse 'dynamic' or a number above 0."""

    def parse(self, argument: str) -> float | str:
        try:
            number = float(argument)
        except ValueError:
            number = 0.0
        if argument != 'dynamic' and not 0 < number < MAX_FLOAT:
            raise ValueError("pass a number above 0, or 'dynamic'")
        return number or argument

    def flag_type(self) -> str:
        return 'number'


def given(values: flags.FlagValues) -> set[str]:
    """Return the names of the flags that the user passed."""
    return {name for name in values if values[name].name == name and values[name].present}


def given_axes(values: flags.FlagValues) -> dict[str, str]:
    """Return {flag: field of ResNetSpec} for the flags that the user passed and that decide the network."""
    return {flag: field.name for flag, field in flags_of(ResNetSpec).items() if flag in given(values)}


def recipe_of(values: flags.FlagValues, program: Program, recipe: str | None = None) -> dict[str, Any]:
    """Return {flag: value} for a recipe, by default --recipe: the first one, with its own or --fine_tune's changes."""
    table = program.recipes[str(values['dataset'].value) if 'dataset' in values else next(iter(program.recipes))]
    first, name = next(iter(table)), recipe or str(values['recipe'].value)
    changes = program.fine_tune if values['fine_tune'].value and name == first else {}
    return {**table[first], **table[name], **changes}


def settings(values: flags.FlagValues, program: Program, by_size: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return {flag: value}: the recipe with what own_images.choose has chosen and the flags that the user passed."""
    by_size = by_size or {}
    chosen = {**recipe_of(values, program, by_size.get('recipe')), **by_size}
    for flag, (field, kind) in fields_of(program).items():
        value = values[flag].value
        if values[flag].present or (value is not None and flag not in chosen):
            if field.metadata.get('is_path') and value is not None:
                if not value:
                    raise UserError(f'--{flag}= is empty; pass a path')
                value = os.path.expanduser(value)
            chosen[flag] = tuple(value or ()) if kind == tuple[str, ...] else value
    return chosen


def data_dir_of(values: flags.FlagValues, dataset: str) -> str | None:
    """Return the data_dir of a data set, or None for a folder and for the default of tensorflow_datasets."""
    has_none = dataset.startswith(('folder:', 'image_')) or dataset[:5] == 'tfds:' and not values['data_dir'].present
    return None if has_none else os.path.expanduser(values.data_dir)


def resolve(
    values: flags.FlagValues, program: Program, by_size: Mapping[str, Any] | None = None
) -> tuple[TrainConfig, RunOptions]:
    """Return the configuration and the options that the flags describe, with what own_images.choose has chosen.

    dtype may still be 'auto', and the pretrained network has not been read yet, because both need TensorFlow.

    Raises:
        UserError: Flags contradict each other, or a value is wrong.
    """
    chosen = settings(values, program, by_size)
    if values.worker_hosts or values.local_workers > 1:
        chosen['distribution_strategy'] = MULTI_WORKER
    chosen['transfer'] = 'head' if values.fine_tune else chosen.get('transfer', 'all')
    if chosen['transfer'] == 'head' and not values['augment'].present:
        chosen['augment'] = False
    fields_passed = ((flag, field) for flag, (field, _) in fields_of(program).items() if values[flag].present)
    if any(flag in _RIVALS or 'needs' in field.metadata for flag, field in fields_passed):
        from official_resnet.command_line import partners

        partners.require(values, chosen, program)
    options = RunOptions(**part_of(RunOptions, chosen))
    dataset = options.dataset or next(iter(program.recipes))
    if options.tfds:
        dataset = f'tfds:{options.tfds}'
    elif options.image_folder:
        from official_resnet.inputs.listing import absolute

        dataset = f'folder:{absolute(options.image_folder)}'
    elif options.use_synthetic_data:
        dataset = program.synthetic
    chosen['data_dir'] = data_dir_of(values, dataset)
    fields: dict[str, Any] = {}
    if program.streams:
        from official_resnet.command_line import streamed_flags

        fields = streamed_flags.fields(values, chosen, dataset)
    elif name := chosen.get('input_normalization'):
        from official_resnet.inputs.affine import PUBLISHED

        fields = {'normalization': PUBLISHED[name]}
    make_spec = program.make_spec
    if options.variant:
        from official_resnet import resnet_variants

        make_spec = functools.partial(resnet_variants.with_flags, options.variant, given_axes(values))
    return TrainConfig.from_settings(chosen, make_spec, dataset=dataset, **fields), options
