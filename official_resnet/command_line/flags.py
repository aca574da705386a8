"""The command line: flags by group, names and short names as in official/resnet; flags -> TrainConfig.

Nothing here imports TensorFlow until the flags have been read, so that --help and a wrong flag answer
at once. Flags live in a FlagValues of their own: importing a program defines none.
"""

import os

from absl import flags

from official_resnet.command_line.program import MAX_CLASSES, MAX_IMAGE_SIZE, MAX_LAYERS, MAX_THREADS, Definer

HOOKS = ('loggingtensorhook', 'profilerhook', 'examplespersecondhook', 'loggingmetrichook', 'stepcounterhook')
# Flags of official/resnet that have no meaning any more: (name, short name, what to do instead).
OBSOLETE = (
    ('gcp_project', 'gp', 'BigQuery upload is gone; --benchmark_log_dir writes the same JSON'),
    ('bigquery_data_set', 'bds', 'BigQuery upload is gone; --benchmark_log_dir writes the same JSON'),
    ('bigquery_run_table', 'brt', 'BigQuery upload is gone; --benchmark_log_dir writes the same JSON'),
    ('bigquery_run_status_table', 'brst', 'BigQuery upload is gone; --benchmark_log_dir writes the same JSON'),
    ('bigquery_metric_table', 'bmt', 'BigQuery upload is gone; --benchmark_log_dir writes the same JSON'),
    ('data_format', 'df', 'images are channels_last; TensorFlow itself arranges them as a GPU likes'),
    ('fp16_implementation', None, '--dtype=fp16 is Keras mixed precision'),
    ('num_packs', None, 'gradients are packed by TensorFlow itself'),
    ('tf_gpu_thread_mode', 'gt_mode', 'the environment variable TF_GPU_THREAD_MODE does that'),
    ('per_gpu_thread_count', 'pgtc', 'the environment variable TF_GPU_THREAD_COUNT does that'),
    ('datasets_num_parallel_batches', None, 'batches are made in parallel as needed'),
    ('num_parallel_calls', 'npc', 'batches are made in parallel as needed'),
    ('multi_gpu', None, '--num_gpus says how many'),
    ('version', None, '--resnet_version is its name since May 2018'),
    ('use_train_and_evaluate', None, 'training and evaluation always alternate, by --epochs_between_evals'),
    ('tf_data_experimental_slack', None, 'the input prefetches as needed'),
)
_OBSOLETE_SWITCHES = ('multi_gpu', 'use_train_and_evaluate', 'tf_data_experimental_slack')
SPEC_FLAGS = {
    'resnet_size': 'group_blocks',
    'resnet_version': 'version',
    'shortcut': 'shortcut',
    'bn_momentum': 'bn_momentum',
}  # flag -> the field of ResNetSpec that it decides


def define_run_flags(values, data_dir, model_dir):
    """Define what says where data comes from, where results go, and how long to run."""
    define = Definer(values)
    define.string('data_dir', data_dir, 'Folder of the data set; fetched into it when missing.', 'dd')
    define.string('model_dir', model_dir, 'Checkpoints, metrics and the final model; a run found there goes on.', 'md')
    define.boolean('clean', False, 'Delete model_dir first.')
    define.integer('train_epochs', None, 'Epochs to train in total, over all restarts.', 'te', 1)
    define.integer('epochs_between_evals', None, 'Evaluate after so many epochs, and after the last.', 'ebe', 1)
    define.integer('max_train_steps', None, 'Stop at this global step, if it comes first.', 'mts', 1)
    define.number('stop_threshold', None, 'Stop when the test accuracy (0..1) reaches it.', 'st', 0, 1)
    define.integer('num_train_images', None, 'Train on the first so many images only.', None, 1)
    define.integer('batch_size', None, 'Images a step, over all devices.', 'bs', 1)
    define.integer('seed', 0, 'Of initial weights, order and augmentation.', None, 0, 2**63 - 1)
    define.number('save_checkpoint_minutes', 10.0, 'Between checkpoints inside an epoch; may be a fraction.', None, 0)
    define.boolean('eval_only', False, 'Evaluate the newest checkpoint in model_dir; with --export_dir also export it.')
    define.string('export_dir', None, 'Write a SavedModel (pictures in, classes and probabilities out) below it.', 'ed')
    define.boolean('image_bytes_as_serving_input', False, 'Export for JPEG bytes; ImageNet only.')
    define.boolean('use_synthetic_data', False, 'Train on drawn pictures: no download.', 'synth')
    define.string('tfds', None, 'Train on a data set of tensorflow_datasets, by its name.')
    define.string(
        'image_folder',
        None,
        'Train on own pictures: a folder with a subfolder for each class, or with '
        'such folders train and test (or val, validation).',
    )
    define.integer(
        'image_size',
        None,
        'Height and width that pictures of any size are cut and resized to; for ImageNet in training.',
        None,
        8,
        MAX_IMAGE_SIZE,
    )
    define.number(
        'validation_fraction',
        None,
        'Of each class of image_folder, set aside for testing, by --seed; '
        '0.1. A folder that has a test folder uses that.',
        None,
        0,
        1,
    )
    define.boolean('download', True, 'Fetch a data set that is missing; --nodownload forbids it.')
    define.boolean('augment', True, 'Crop and flip the training images at random.')


def define_model_flags(values, sizes=None, is_size=None, versions=('1', '2')):
    """Define what network to train. `sizes` says what `is_size` accepts; without, the net has one size."""
    define = Definer(values)
    if sizes:
        define.integer('resnet_size', None, f'Layers: {sizes}.', 'rs', 1, MAX_LAYERS)
        flags.register_validator('resnet_size', lambda size: size is None or is_size(size), f'must be {sizes}', values)
    middle = '1.5 the same with the stride in the 3x3 convolution, ' if '1.5' in versions else ''
    define.enum('resnet_version', None, versions, f'1 is the ReLU after the sum, {middle}2 is pre-activation.', 'rv')
    define.enum(
        'shortcut',
        None,
        ['A', 'B', 'C', 'group', 'none'],
        'A zero-padded, B projections where the shape changes, C everywhere, group in the first block of '
        'every group (official/resnet), none a plain network.',
    )
    define.number('bn_momentum', None, 'Of the moving statistics.', None, 0, 1)


def define_imagenet_flags(values):
    """Define how pictures of any size become the net's input, what its outputs are, and how it is judged."""
    define = Definer(values)
    define.integer(
        'eval_image_size', None, 'Height and width cut out of the middle for evaluation.', None, 8, MAX_IMAGE_SIZE
    )
    define.number('min_crop_area', None, 'Of a training crop, share of the picture.', None, 0, 1)
    define.boolean('use_boxes', None, 'Whether training crops contain a tenth of a bounding box.')
    define.enum('resize', None, ['tf1', 'antialias'], "TensorFlow 1's bilinear, or Pillow's (torchvision).")
    define.enum(
        'input_normalization',
        None,
        ['official', 'torch', 'inception'],
        'official subtracts the RGB means, torch also divides by deviations, inception scales to -1..1.',
    )
    define.boolean('background_class', None, 'Logit 0 is of no class (1001 logits), as in official/resnet.')
    define.boolean('zero_gamma', None, 'The last BN of each block starts at 0.')
    define.enum('stem_pool', None, ['pad1', 'same'], "Padding of the stem's pool: a row on each side, or TensorFlow's.")
    define.string('eval_report', None, 'With --eval_only: write report.json, per_class.csv and confusion.csv there.')
    define.boolean('ten_crop', False, 'With --eval_only: also the mean over corners and middle and their mirrors.')


def define_transfer_flags(values):
    """Define what is taken from another net, and what of it is trained."""
    define = Definer(values)
    define.string(
        'pretrained_model_checkpoint_path',
        None,
        'Start from the weights of this model_dir or .keras file; the network is its network.',
        'pmcp',
    )
    define.enum(
        'transfer',
        None,
        ['all', 'last', 'head'],
        'What is trained of the pretrained net: all of it (default), the last groups and the head, or the last '
        'layer alone, on features that are computed once; head turns --augment off until it is given.',
    )
    define.boolean('fine_tune', False, 'The same as --transfer=head.', 'ft')
    define.integer('train_last_groups', None, 'Groups that --transfer=last trains; 1.', None, 1)
    define.enum(
        'head',
        'replace',
        ['replace', 'append', 'keep'],
        'A new last layer in place of the pretrained one or after it, or the pretrained one itself.',
    )
    define.number('backbone_learning_rate_factor', 1.0, 'Multiplies the rate of all layers but the last.', None, 0)
    define.integer('num_classes', None, 'Logits; as many as the data has classes, if not more.', None, 2, MAX_CLASSES)


def define_optimizer_flags(values, recipes):
    """Define the recipe and what it consists of: all of these have the recipe's value until given.

    The first recipe is the default, and has a value for everything that any of them has.
    """
    define = Definer(values)
    define.enum(
        'recipe', next(iter(recipes)), list(recipes), 'Named set of hyperparameters; a flag that is given overrides it.'
    )
    define.enum('optimizer', None, ['momentum', 'adam'], 'SGD with momentum, or Adam.')
    define.number(
        'base_learning_rate',
        None,
        'Per 128 images of batch, but with Adam the rate itself; the peak of cosine and one_cycle.',
        None,
        0,
    )
    define.enum('lr_schedule', None, ['piecewise', 'cosine', 'one_cycle', 'constant'], 'Course of the learning rate.')
    define.numbers('lr_boundaries', None, 'Epochs at which a piecewise rate changes.')
    define.numbers('lr_factors', None, 'What the rate is multiplied with in each piece: one more than lr_boundaries.')
    define.number('warmup_epochs', None, 'Linear rise of the rate from 0.', None, 0)
    define.number('momentum', None, 'Of SGD.', None, 0, 1)
    define.boolean('nesterov', None, "Nesterov's momentum.")
    define.number('weight_decay', None, 'L2 as part of the gradient: l2 * w.', None, 0)
    define.enum('decay', None, ['all', 'kernels', 'no_batch_norm'], 'Which variables decay.')
    define.boolean('flip', None, 'Whether augmentation flips; digits are others in the mirror.')
    define.number('label_smoothing', None, 'Probability taken from the label and spread.', None, 0, 0.999)


def define_performance_flags(values):
    """Define what changes the speed, not the meaning."""
    define = Definer(values)
    define.enum(
        'dtype', None, ['fp32', 'bf16', 'fp16', 'auto'], 'Precision; auto is bf16 where the device has it.', 'dt'
    )
    define.string('loss_scale', None, "A number above 0, or 'dynamic'; 128 with fp16 and 1 otherwise.", 'ls')
    define.integer('num_gpus', None, 'GPUs to use; one if there is one, -1 for all.', 'ng', -1)
    define.enum(
        'distribution_strategy',
        'default',
        ['off', 'default', 'one_device', 'mirrored', 'multi_worker_mirrored'],
        'default goes by num_gpus and worker_hosts; multi_worker_mirrored takes these, or TF_CONFIG.',
        'ds',
    )
    flags.DEFINE_list(
        'worker_hosts',
        None,
        'All workers, as host1:2222,host2:2222, the same list for each; the first is the chief, which alone writes.',
        flag_values=values,
    )
    define.integer('task_index', None, 'Which of worker_hosts this process is, from 0.', None, 0)
    define.integer(
        'local_workers', 1, 'Start so many workers on this machine, each with its share of the cores.', None, 1
    )
    define.enum('all_reduce_alg', None, ['ring', 'nccl'], "How replicas add up gradients; TensorFlow's choice.", 'ara')
    define.boolean('sync_batch_norm', False, 'BN normalises by the images of all devices, not of its own.')
    define.integer(
        'inter_op_parallelism_threads', 0, 'Ops run side by side; 0 is as many as cores.', 'inter', 0, MAX_THREADS
    )
    define.integer('intra_op_parallelism_threads', 0, 'Threads of one op; 0 is all cores.', 'intra', 0, MAX_THREADS)
    define.integer('datasets_num_private_threads', 0, 'Threads of the input pipeline; 0 is one.', None, 0, MAX_THREADS)
    define.integer('steps_per_loop', 0, 'Steps between two looks of Python at the results; 0: a second.', None, 0)
    define.boolean('enable_xla', False, 'Compile the step with XLA; slower on a CPU.')


def define_log_flags(values):
    """Define what is shown and logged."""
    define = Definer(values)
    flags.DEFINE_list(
        'hooks',
        'LoggingTensorHook',
        'What to log during training, a comma list of LoggingTensorHook, '
        'ProfilerHook, ExamplesPerSecondHook, LoggingMetricHook, StepCounterHook.',
        short_name='hk',
        flag_values=values,
    )
    define.integer('log_steps', 100, 'Steps between the lines of hooks.', None, 1)
    define.boolean('enable_tensorboard', False, 'Write TensorBoard summaries into model_dir.')
    define.string('profile_steps', None, "Profile the steps 'first,last' for TensorBoard.")
    define.string('benchmark_log_dir', None, 'Write metric.log and benchmark_run.log there.', 'bld')
    define.enum(
        'benchmark_logger_type',
        'BaseBenchmarkLogger',
        ['BaseBenchmarkLogger', 'BenchmarkFileLogger'],
        'Base prints its metrics, File needs benchmark_log_dir.',
    )
    define.string('benchmark_test_id', None, 'Stored with the benchmark log.', 'bti')
    flags.register_validator(
        'hooks',
        lambda names: all(name.lower() in HOOKS for name in names),
        'names are LoggingTensorHook, ProfilerHook, ExamplesPerSecondHook, LoggingMetricHook, '
        'StepCounterHook, in any case',
        values,
    )


def define_obsolete_flags(values):
    """Accept what official/resnet took and nothing needs any more."""
    for name, short, text in OBSOLETE:
        define = flags.DEFINE_boolean if name in _OBSOLETE_SWITCHES else flags.DEFINE_string
        define(name, None, f'Obsolete: {text}.', short_name=short, flag_values=values)


def register_rules(values, is_imagenet=False):
    """Check flags against each other and those that a type cannot check."""

    def rule(names, check, message):
        flags.register_multi_flags_validator(names, check, message, values)

    rule(
        ['loss_scale'],
        lambda v: v['loss_scale'] in (None, 'dynamic') or _is_positive(v['loss_scale']),
        "pass a number above 0, or 'dynamic'",
    )
    rule(
        ['benchmark_logger_type', 'benchmark_log_dir'],
        lambda v: v['benchmark_logger_type'] != 'BenchmarkFileLogger' or v['benchmark_log_dir'],
        'BenchmarkFileLogger needs --benchmark_log_dir',
    )
    rule(
        ['tfds', 'use_synthetic_data', 'image_folder'],
        lambda v: sum(map(bool, v.values())) < 2,
        '--tfds, --use_synthetic_data and --image_folder exclude each other',
    )
    for name in ('validation_fraction',) if is_imagenet else ('image_size', 'validation_fraction'):
        rule(
            [name, 'image_folder'],
            lambda v, name=name: v[name] is None or v['image_folder'],
            f'--{name} is of the pictures of --image_folder; pass that, too',
        )
    rule(['validation_fraction'], lambda v: v['validation_fraction'] not in (0, 1), 'pass a number between 0 and 1')
    _register_transfer_rules(rule)
    _register_worker_rules(rule)
    if is_imagenet:
        for name in ('eval_report', 'ten_crop'):
            rule(
                [name, 'eval_only'],
                lambda v, name=name: not v[name] or v['eval_only'],
                f'--{name} belongs to --eval_only; pass that, too',
            )
        rule(['min_crop_area'], lambda v: v['min_crop_area'] != 0, 'pass a number above 0')
    else:
        rule(
            ['image_bytes_as_serving_input'],
            lambda v: not v['image_bytes_as_serving_input'],
            'is for ImageNet; small pictures are exported as arrays',
        )
    rule(
        ['profile_steps'],
        lambda v: v['profile_steps'] is None or _is_range(v['profile_steps']),
        "pass 'first,last', as 10,20",
    )
    rule(
        ['lr_boundaries', 'lr_factors'],
        lambda v: (
            v['lr_boundaries'] is None or v['lr_factors'] is None or len(v['lr_factors']) == len(v['lr_boundaries']) + 1
        ),
        'lr_factors must be one more than lr_boundaries',
    )


def _register_worker_rules(rule):
    rule(
        ['worker_hosts', 'task_index'],
        lambda v: bool(v['worker_hosts']) == (v['task_index'] is not None),
        '--worker_hosts and --task_index belong together; pass both',
    )
    rule(
        ['local_workers', 'worker_hosts'],
        lambda v: v['local_workers'] == 1 or not v['worker_hosts'],
        '--local_workers and --worker_hosts exclude each other',
    )
    several = ('default', 'multi_worker_mirrored')
    for name, single in (('worker_hosts', (None, [])), ('local_workers', (1,))):
        rule(
            [name, 'distribution_strategy'],
            lambda v, name=name, single=single: v[name] in single or v['distribution_strategy'] in several,
            f'--{name} needs --distribution_strategy=multi_worker_mirrored',
        )
    for name, single in (('worker_hosts', (None, [])), ('local_workers', (1,))):
        rule(
            [name, 'eval_only'],
            lambda v, name=name, single=single: v[name] in single or not v['eval_only'],
            f'--{name} is for training, evaluation is one process; leave it out',
        )
    rule(
        ['clean', 'worker_hosts'],
        lambda v: not (v['clean'] and v['worker_hosts']),
        'several workers cannot clean; delete model_dir before you start them',
    )


def _register_transfer_rules(rule):
    path = 'pretrained_model_checkpoint_path'
    rule(
        ['transfer', 'fine_tune'],
        lambda v: not v['fine_tune'] or v['transfer'] in (None, 'head'),
        '--fine_tune is --transfer=head; pass one of them',
    )
    for name, default in (
        ('transfer', None),
        ('fine_tune', False),
        ('head', 'replace'),
        ('backbone_learning_rate_factor', 1),
    ):
        rule(
            [name, path],
            lambda v, name=name, default=default: v[name] == default or v[path],
            f'--{name} is for a pretrained net; pass --{path}',
        )
    rule(
        ['train_last_groups', 'transfer'],
        lambda v: v['train_last_groups'] is None or v['transfer'] == 'last',
        '--train_last_groups belongs to --transfer=last; pass that, too',
    )
    rule(
        ['backbone_learning_rate_factor', 'transfer', 'fine_tune'],
        lambda v: v['backbone_learning_rate_factor'] == 1 or not (v['transfer'] == 'head' or v['fine_tune']),
        '--transfer=head freezes the backbone, which then has no learning rate; leave the factor out',
    )
    rule(
        ['backbone_learning_rate_factor'],
        lambda v: v['backbone_learning_rate_factor'] > 0,
        'pass a number above 0; --transfer freezes',
    )


def resolve(values, recipes):
    """Return {flag: value}: the first recipe, changed by --recipe, changed by the flags that were given."""
    resolved = values.flag_values_dict()
    for recipe in (next(iter(recipes.values())), recipes[values.recipe]):
        resolved |= {name: value for name, value in recipe.items() if not values[name].present}
    for name in (
        'data_dir',
        'model_dir',
        'export_dir',
        'benchmark_log_dir',
        'pretrained_model_checkpoint_path',
        'image_folder',
        'eval_report',
    ):
        if resolved.get(name) is not None:
            resolved[name] = os.path.expanduser(resolved[name])
    resolved['transfer'] = 'head' if resolved['fine_tune'] else resolved['transfer'] or 'all'
    if resolved['transfer'] == 'head' and not values['augment'].present:
        resolved['augment'] = False
    if resolved['worker_hosts'] or resolved['local_workers'] > 1:
        resolved['distribution_strategy'] = 'multi_worker_mirrored'
    resolved['given'] = {name for name in resolved if values[name].present}
    return resolved


def train_config(resolved, dataset, make_spec):
    """Return the TrainConfig of resolved flags. Imports TensorFlow.

    The network is that of the pretrained net, if there is one and it is known.

    Args:
        resolved: from `resolve`.
        dataset: name for datasets.open_split.
        make_spec: (resnet_size, **axes) -> ResNetSpec, without resnet_size where there is no such flag.

    Raises:
        UserError: a flag contradicts the pretrained net, or that cannot be read.
    """
    from official_resnet import resnet_run_loop
    from official_resnet.training import devices, transfer
    from official_resnet.training.config import MachineConfig, Schedule

    spec = make_spec(
        *(resolved[name] for name in ('resnet_size',) if name in resolved),
        version=resolved['resnet_version'],
        shortcut=None if resolved['shortcut'] == 'none' else resolved['shortcut'],
        bn_momentum=resolved['bn_momentum'],
        **{name: resolved[name] for name in ('zero_gamma', 'stem_pool') if name in resolved},
    )
    scale = resolved['loss_scale']
    is_piecewise = resolved['lr_schedule'] == 'piecewise'
    schedule = Schedule(
        resolved['lr_schedule'],
        resolved['lr_boundaries'] if is_piecewise else (),
        resolved['lr_factors'] if is_piecewise else (1.0,),
        warmup_epochs=resolved['warmup_epochs'],
    )
    same = (
        'num_train_images',
        'train_epochs',
        'max_train_steps',
        'batch_size',
        'epochs_between_evals',
        'stop_threshold',
        'optimizer',
        'base_learning_rate',
        'momentum',
        'nesterov',
        'weight_decay',
        'decay',
        'label_smoothing',
        'augment',
        'flip',
        'seed',
        'sync_batch_norm',
        'transfer',
        'head',
        'backbone_learning_rate_factor',
        'image_size',
        'num_classes',
    )
    machine = MachineConfig(
        steps_per_call=resolved['steps_per_loop'],
        input_threads=resolved['datasets_num_private_threads'],
        **{
            name: resolved[name]
            for name in (
                'data_dir',
                'model_dir',
                'save_checkpoint_minutes',
                'num_gpus',
                'distribution_strategy',
                'all_reduce_alg',
                'enable_xla',
            )
        },
    )
    config = resnet_run_loop.TrainConfig(
        spec=spec,
        dataset=dataset,
        schedule=schedule,
        dtype=devices.best_dtype() if resolved['dtype'] == 'auto' else resolved['dtype'],
        loss_scale=scale if scale in (None, 'dynamic') else float(scale),
        pretrained=resolved['pretrained_model_checkpoint_path'],
        train_last_groups=resolved['train_last_groups'] or 1,
        validation_fraction=resolved['validation_fraction'] or 0.1,
        machine=machine,
        **{name: resolved[name] for name in same}
        | (_encoded_fields(resolved, dataset) if 'background_class' in resolved else {}),
    )
    if not config.pretrained:
        return config
    given = {flag: field for flag, field in SPEC_FLAGS.items() if flag in resolved['given']}
    return transfer.adopt(config, transfer.describe(config.pretrained), given)


def _encoded_fields(resolved, dataset):
    """Return the fields of TrainConfig that the flags of ImageNet decide."""
    from official_resnet.inputs.images import Views
    from official_resnet.inputs.normalization import PUBLISHED

    if dataset.startswith('synthetic'):
        return {'image_size': None, 'num_classes': None}
    views = Views(
        resolved['image_size'],
        resolved['eval_image_size'] or resolved['image_size'],
        min_area=resolved['min_crop_area'],
        use_boxes=resolved['use_boxes'],
        resize=resolved['resize'],
    )
    fields = {'views': views, 'background': resolved['background_class'], 'image_size': None}
    is_imagenet = dataset.removeprefix('tfds:').startswith('imagenet')
    if is_imagenet and resolved['num_classes'] in (1000, 1001):  # with or without the background, as official/resnet
        fields |= {'background': resolved['num_classes'] == 1001, 'num_classes': None}
    if not resolved['pretrained_model_checkpoint_path'] or 'input_normalization' in resolved['given']:
        fields['normalization'] = PUBLISHED[resolved['input_normalization']]
    return fields


def _is_positive(text):
    try:
        return 0 < float(text) < float('inf')
    except ValueError:
        return False


def _is_range(text):
    parts = text.split(',')
    return (
        len(parts) == 2
        and all(part.isdecimal() and len(part) < 10 for part in parts)
        and (int(parts[0]) <= int(parts[1]))
    )
