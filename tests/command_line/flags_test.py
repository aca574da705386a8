"""Flags: names, short names and defaults of official/resnet; recipes; --help; what a wrong flag answers."""

import re
import subprocess
import sys

import pytest

from official_resnet import cifar10_main, cifar100_main, imagenet_main, mnist_main, resnet_model, resnet_variants
from official_resnet.command_line import flags, train_program
from official_resnet.command_line.program import run_program
from official_resnet.errors import UserError
from official_resnet.inputs.affine import OFFICIAL, PUBLISHED, affine_name
from official_resnet.inputs.views import Views
from official_resnet.training import optimizers, recipes, recipes_imagenet, recipes_mnist, transfer
from official_resnet.training.config import TrainConfig

MAINS = {'cifar10': cifar10_main, 'cifar100': cifar100_main, 'mnist': mnist_main, 'imagenet': imagenet_main}
PROGRAMS = {name: main.PROGRAM for name, main in MAINS.items()}

# official-resnet flags: (name, short name).
OFFICIAL_FLAGS = [
    ('data_dir', 'dd'),
    ('model_dir', 'md'),
    ('train_epochs', 'te'),
    ('epochs_between_evals', 'ebe'),
    ('stop_threshold', 'st'),
    ('batch_size', 'bs'),
    ('num_gpus', 'ng'),
    ('hooks', 'hk'),
    ('export_dir', 'ed'),
    ('inter_op_parallelism_threads', 'inter'),
    ('intra_op_parallelism_threads', 'intra'),
    ('use_synthetic_data', 'synth'),
    ('max_train_steps', 'mts'),
    ('dtype', 'dt'),
    ('loss_scale', 'ls'),
    ('data_format', 'df'),
    ('benchmark_log_dir', 'bld'),
    ('benchmark_logger_type', None),
    ('resnet_version', 'rv'),
    ('resnet_size', 'rs'),
    ('fine_tune', 'ft'),
    ('pretrained_model_checkpoint_path', 'pmcp'),
    ('eval_only', None),
    ('image_bytes_as_serving_input', None),
    ('clean', None),
    ('benchmark_test_id', 'bti'),
    ('log_steps', None),
    ('distribution_strategy', 'ds'),
    ('label_smoothing', None),
    ('weight_decay', None),
    ('datasets_num_private_threads', None),
    ('gcp_project', 'gp'),
    ('bigquery_data_set', 'bds'),
    ('bigquery_run_table', 'brt'),
    ('bigquery_metric_table', 'bmt'),
    ('use_train_and_evaluate', None),
]


def parse(*args, program=cifar10_main.PROGRAM):
    values = flags.define(program)
    values(['main.py', *args])
    return values


def resolve(*args, program=cifar10_main.PROGRAM):
    """The TrainConfig and the RunOptions that arguments ask for."""
    return flags.resolve(parse(*args, program=program), program)


def config(*args, program=cifar10_main.PROGRAM):
    return resolve(*args, program=program)[0]


def adopted(*args, program=cifar10_main.PROGRAM):
    """The TrainConfig with the network of the pretrained net."""
    made = config(*args, program=program)
    return transfer.adopt(made, transfer.describe(made.pretrained), flags.given_axes(parse(*args, program=program)))


def answer(args, program, capsys):
    """What a program says of wrong flags: one line."""
    values = flags.define(program)
    code = run_program(['x_main.py', *args], 'doc', values, lambda values: flags.resolve(values, program) and 0)
    error = capsys.readouterr().err
    assert code == 1 and error.count('\n') == 1 and error.startswith('x_main: '), (code, error)
    return error


@pytest.mark.parametrize('name,short', OFFICIAL_FLAGS)
def test_official_names(name, short):
    values = parse()
    assert name in values
    if short:
        assert values[short] is values[name]


def test_official_defaults():
    made, options = resolve()
    assert (made.machine.data_dir, made.machine.model_dir) == ('/tmp/cifar10_data', '/tmp/cifar10_model')
    assert (made.train_epochs, made.epochs_between_evals, made.batch_size, made.stop_threshold) == (182, 10, 128, None)
    assert (made.spec.resnet_size, made.spec.version, made.spec.shortcut) == (56, '1', 'group')
    assert (made.spec.bn_momentum, made.spec.bn_epsilon) == (0.997, 1e-5)
    assert (made.learning_rate, made.weight_decay, made.decay, made.dtype) == (0.1, 2e-4, 'all', 'fp32')
    assert (made.schedule.boundaries, made.schedule.factors) == ((91, 136, 182), (1, 0.1, 0.01, 0.001))
    assert (options.hooks, options.benchmark_logger_type) == (('LoggingTensorHook',), 'BaseBenchmarkLogger')
    assert config('-bs', '256').learning_rate == 0.2


def test_flags_override_the_recipe_even_with_its_default():
    assert config('--recipe=fast').spec.resnet_size == 20
    assert config('--recipe=fast', '-rs', '56').spec.resnet_size == 56
    assert config('--recipe=fast', '--nonesterov').nesterov is False
    assert config('--recipe=paper').max_train_steps == 64000
    assert config('--recipe=paper', '-mts', '10').max_train_steps == 10


def test_every_recipe_makes_a_config():
    for recipe in recipes.CIFAR:
        assert isinstance(config(f'--recipe={recipe}'), TrainConfig)
    fast = config('--recipe=fast')
    assert (fast.dtype, fast.label_smoothing, fast.spec.group_blocks) == ('auto', 0.1, (3, 3, 3))
    assert (fast.schedule.kind, fast.schedule.boundaries, fast.schedule.factors) == ('one_cycle', (), (1.0,))


@pytest.mark.parametrize('name', PROGRAMS)
def test_a_recipe_names_flags_and_the_first_repeats_no_default(name):
    fields = flags.fields_of(PROGRAMS[name])
    for table in PROGRAMS[name].recipes.values():
        for recipe in table.values():
            assert recipe.keys() <= fields.keys()
        assert all(fields[flag][0].default != value for flag, value in next(iter(table.values())).items())


@pytest.mark.parametrize('name', PROGRAMS)
def test_every_flag_is_a_field_or_obsolete(name):
    """A hyperparameter is written once: a flag has the help, the default and the bounds of its field."""
    program, obsolete = PROGRAMS[name], {name for name, _, _ in flags.OBSOLETE}
    values, fields = flags.define(program), flags.fields_of(program)
    assert {name for name in values if values[name].name == name} == fields.keys() | obsolete
    for flag, (field, _) in fields.items():
        about = field.metadata
        assert about['text'].rstrip('.') in values[flag].help and about['text'].endswith('.'), flag
        assert values[flag].default is None or not about.get('is_open')
        if 'least' in about:
            assert values[flag].parser.lower_bound == about['least']


def test_home_folder_is_expanded_once(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    assert config('--data_dir', '~').machine.data_dir == '/home/someone'


@pytest.mark.parametrize(
    'args,message',
    [
        (['-rs', '21'], 'resnet_size=21 is not 6n+2; the nearest are 20 and 26'),
        (['--resnet_size', 'big'], 'invalid'),
        (['-bs', '0'], 'batch_size'),
        (['-te', '-1'], 'train_epochs'),
        (['--stop_threshold', '2'], 'stop_threshold'),
        (['--dtype', 'fp8'], 'dtype'),
        (['-ls', '0'], 'loss_scale'),
        (['-ls', 'x'], 'loss_scale'),
        (['--resnet_version', '3'], 'resnet_version'),
        (['--hooks', 'NoSuchHook'], 'LoggingTensorHook'),
        (['--benchmark_logger_type', 'BenchmarkFileLogger'], 'benchmark_log_dir'),
        (['--recipe', 'slow'], 'recipe'),
        (['--lr_boundaries', '1,x'], 'comma list'),
        (['--lr_boundaries', '1', '--lr_factors', '1'], 'one number more in --lr_factors=1'),
        (['--tfds', 'mnist', '-synth'], 'exclude'),
        (['--image_bytes_as_serving_input'], 'ImageNet'),
        (['--profile_steps', '9,3'], 'first,last'),
        (['--no_such_flag'], 'there is no flag --no_such_flag'),
        (['stray'], "'stray'"),
        (['--seed', '-1'], 'seed'),
        (['--optimizer', 'sgd'], 'optimizer'),
        (['--num_train_images', '0'], 'num_train'),
        (['--transfer', 'some', '-pmcp', 'x'], 'transfer'),
        (['--transfer', 'last'], 'pretrained_model_checkpoint_path'),
        (['-ft'], '--fine_tune needs --pretrained_model_checkpoint_path'),
        (['--head', 'append'], '--head needs --pretrained_model_checkpoint_path'),
        (['-ft', '--transfer', 'last', '-pmcp', 'x'], '--fine_tune is --transfer=head'),
        (['--train_last_groups', '2', '-pmcp', 'x'], '--train_last_groups needs --transfer=last'),
        (['--backbone_learning_rate_factor', '0.1'], 'needs --pretrained_model_checkpoint_path'),
        (['--backbone_learning_rate_factor', '0', '-pmcp', 'x'], 'factor=0.0 must be above 0'),
        (['--backbone_learning_rate_factor', '0.1', '-pmcp', 'x', '-ft'], 'freezes the backbone'),
        (['--image_folder', 'x', '-synth'], 'exclude'),
        (['--image_size', '64'], '--image_size needs --image_folder'),
        (['--validation_fraction', '0.2'], '--validation_fraction needs --image_folder'),
        (['--num_classes', '1'], 'num_classes'),
        (['--image_folder', 'x', '--validation_fraction', '1'], '--validation_fraction=1.0 must be below 1'),
        (['--momentum', '1.5'], 'momentum'),
    ],
)
def test_wrong_flags_answer_in_one_line(args, message, capsys):
    assert message in answer(args, cifar10_main.PROGRAM, capsys)


def test_obsolete_flags_are_accepted():
    values = parse('--gcp_project=x', '--use_train_and_evaluate', '--multi_gpu', '-brt', 'y', '--version', '2')
    assert values.gcp_project == 'x' and values.multi_gpu is True
    assert flags.resolve(values, cifar10_main.PROGRAM) == resolve()


@pytest.mark.parametrize(
    'typed,meant',
    [
        ('--learning_rate=1', 'base_learning_rate'),
        ('--lr=1', 'base_learning_rate'),
        ('-lr', 'base_learning_rate'),
        ('--epochs=3', 'train_epochs'),
        ('--batch=3', 'batch_size'),
        ('--model=resnet20', 'resnet_size'),
        ('--resnet-size=20', 'resnet_size'),
        ('--trian_epochs=3', 'train_epochs'),
        ('--data=/tmp', 'data_dir'),
        ('--gpus=1', 'num_gpus'),
        ('--notensorboard', 'enable_tensorboard'),
        ('--xyzzy', None),
    ],
)
def test_an_unknown_flag_names_the_right_one(typed, meant, capsys):
    error = answer([typed], cifar10_main.PROGRAM, capsys)
    assert f'--{typed.lstrip("-").partition("=")[0]}' in error and '--help' in error
    assert (f'use --{meant} ' in error) if meant else 'use' not in error


def mnist_config(*args):
    return config(*args, program=mnist_main.PROGRAM)


def test_documents_is_the_default_of_mnist_and_what_the_pytorch_program_does():
    """100 epochs of batches of 32, Adam at 0.001, constant; pad 4, flip, crop; BN of torch; no decay, no smoothing."""
    made = mnist_config()
    assert (made.dataset, made.train_epochs, made.batch_size, made.num_train_images) == ('mnist', 100, 32, None)
    assert (made.optimizer, made.learning_rate, made.schedule.kind, made.schedule.warmup_epochs) == (
        'adam',
        0.001,
        'constant',
        0,
    )
    assert float(optimizers.make_schedule(made.schedule, made.learning_rate, 1875, 187500)(187499)) == pytest.approx(
        0.001
    )
    assert (made.augment, made.flip, made.weight_decay, made.label_smoothing) == (True, True, 0, 0)
    assert made.dtype == 'fp32'
    assert (made.spec.group_blocks, made.spec.filters, made.spec.block, made.spec.version) == (
        (2, 2, 2),
        16,
        'basic',
        '1',
    )
    assert (made.spec.shortcut, made.spec.projection_kernel) == ('B', 3)
    assert (made.spec.bn_momentum, made.spec.bn_epsilon) == (0.9, 1e-5)
    model = resnet_model.resnet(made.spec, 10, (32, 32, 1))
    assert sum(variable.numpy().size for variable in model.trainable_variables) == 195_450


def test_every_mnist_recipe_makes_a_config():
    for dataset, flips in (('mnist', False), ('fashion_mnist', True)):
        made = {name: mnist_config(f'--dataset={dataset}', f'--recipe={name}') for name in recipes_mnist.MNIST}
        assert {config.dataset for config in made.values()} == {dataset, 'synthetic'}
        assert made['fast'].flip is flips and made['documents'].flip is True
        assert (made['fast'].optimizer, made['fast'].learning_rate) == ('momentum', 0.4)
    assert mnist_config('--recipe=fast', '--flip').flip is True
    assert mnist_config('--noflip', '--shortcut=A', '--resnet_version=2').spec.version == '2'
    assert 'resnet_size' not in parse(program=mnist_main.PROGRAM)


def test_the_new_flags_of_all_programs():
    made = config('--optimizer=adam', '--base_learning_rate=1e-3', '--num_train_images=1000', '--noflip')
    assert (made.optimizer, made.learning_rate, made.num_train_images, made.flip) == ('adam', 1e-3, 1000, False)
    made = config()
    assert (made.optimizer, made.num_train_images, made.flip) == ('momentum', None, True)


def test_transfer_flags(monkeypatch):
    made = config()
    assert (made.transfer, made.augment, made.head) == ('all', True, 'replace')
    for args in (['--transfer=head'], ['--fine_tune'], ['-ft', '--transfer', 'head']):
        made = config('-pmcp', 'x', *args)
        assert (made.transfer, made.augment) == ('head', False)
    assert config('-pmcp', 'x', '-ft', '--augment').augment is True
    assert config('-pmcp', 'x', '--transfer=last').augment is True
    monkeypatch.setattr(transfer, 'describe', lambda path: transfer.Pretrained(resnet_variants.cifar_spec(8), 7))
    made = adopted('-pmcp', 'x', '--transfer=last', '--train_last_groups=2', '--backbone_learning_rate_factor=0.1')
    assert (made.spec.group_blocks, made.transfer, made.train_last_groups) == ((1, 1, 1), 'last', 2)
    assert (made.backbone_learning_rate_factor, made.head, made.pretrained_classes) == (0.1, 'replace', None)
    assert adopted('-pmcp', 'x', '--head=append', '--recipe=fast').pretrained_classes == 7
    with pytest.raises(UserError, match='--resnet_size=20, but x has 8; leave the flag out'):
        adopted('-pmcp', 'x', '-rs', '20')
    with pytest.raises(UserError, match='--shortcut=B, but x has A; leave the flag out'):
        adopted('-pmcp', 'x', '--shortcut', 'B')
    assert adopted('-pmcp', 'x', '-rs', '8', '--shortcut', 'A', '--bn_momentum=0.5').spec.bn_momentum == 0.5


def test_image_folder_flags():
    made = config('--image_folder=x', '--image_size=48', '--validation_fraction=0.25', '--num_classes=4')
    assert (made.image_size, made.validation_fraction, made.num_classes) == (48, 0.25, 4)
    assert (config().image_size, config().validation_fraction, config().num_classes) == (None, 0.1, None)


@pytest.mark.parametrize('names', ['ProfilerHook', 'loggingtensorhook,EXAMPLESPERSECONDHOOK', 'LoggingMetricHook'])
def test_hook_names_in_any_case(names):
    assert parse('--hooks', names).hooks == names.split(',')


# --- help ----------------------------------------------------------------------------------------------------


def shown(capsys, *args, program=cifar10_main.PROGRAM):
    """What --help prints."""
    assert train_program.main(['x_main.py', *args], 'What it does.', program) == 0
    return capsys.readouterr().out


def test_help_is_grouped_by_task_and_shows_the_defaults_of_the_recipe(capsys):
    text = shown(capsys, '--help')
    headings = ['Data', 'Network', 'Training', 'Transfer', 'Evaluation and export', 'Machine', 'Logging']
    assert re.findall(r'^(\w.*):$', text, re.M) == headings
    assert text.startswith('What it does.\n') and max(map(len, text.splitlines())) <= 80
    assert re.search(r'--train_epochs, -te N\n .*\[182\]', text) and re.search(r'--recipe [^[]*\[official\]', text)
    fast = shown(capsys, '--recipe=fast', '-h')
    assert re.search(r'--train_epochs, -te N\n .*\[20\]', fast) and re.search(r'--dtype, [^[]*\[auto\]', fast)
    assert re.search(r'--train_epochs, -te N\n .*\[20\]', shown(capsys, '--recipe=fast', '--help', '--lr=3'))
    assert 'fashion_mnist' in shown(capsys, '--help', program=mnist_main.PROGRAM)


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_has_every_flag_but_the_obsolete_ones(name, capsys):
    obsolete = {name for name, _, _ in flags.OBSOLETE}
    text, full = (shown(capsys, argument, program=PROGRAMS[name]) for argument in ('--help', '--helpfull'))
    names = set(re.findall(r'^  --(?:\[no\])?(\w+)', text, re.M))
    assert names == flags.fields_of(PROGRAMS[name]).keys() and not names & obsolete
    listed = set(re.findall(r'^  (?:-\w+,)?--(?:\[no\])?(\w+):', full, re.M))
    assert listed - {'flagfile', 'undefok'} == names | obsolete  # those two are absl's own


def test_whoever_reads_help_may_leave_early():
    code = 'import sys; from official_resnet import cifar10_main; cifar10_main.run()'
    process = subprocess.Popen(
        [sys.executable, '-c', code, '--help'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # before it has printed anything
    assert process.stderr.read() == '' and process.wait() == 0


# --- ImageNet ------------------------------------------------------------------------------------------------

OFFICIAL_VIEWS = {'size': 224, 'test_size': 224, 'min_area': 0.05, 'use_boxes': True, 'resize': 'tf1'}


def imagenet_config(*args):
    return config(*args, program=imagenet_main.PROGRAM)


def test_official_is_the_default_of_imagenet():
    """ResNet-50 v1.5, 90 epochs, 0.128 per 256 images, batches of 32 by the flag's default, 1001 logits."""
    made = imagenet_config()
    assert (made.dataset, made.machine.data_dir, made.machine.model_dir) == (
        'imagenet',
        '/tmp/imagenet_data',
        '/tmp/imagenet_model',
    )
    assert (made.train_epochs, made.batch_size, made.learning_rate) == (90, 32, pytest.approx(0.128 / 8))
    assert (made.spec.group_blocks, made.spec.version, made.spec.shortcut, made.spec.stem_pool) == (
        (3, 4, 6, 3),
        '1.5',
        'group',
        'same',
    )
    assert (made.spec.bn_momentum, made.spec.bn_epsilon, made.spec.zero_gamma) == (0.997, 1e-5, False)
    assert (made.optimizer, made.momentum, made.nesterov, made.weight_decay, made.decay) == (
        'momentum',
        0.9,
        False,
        1e-4,
        'no_batch_norm',
    )
    assert (made.dtype, made.label_smoothing, made.background, made.num_classes) == ('fp32', 0, True, None)
    assert made.views == Views(**OFFICIAL_VIEWS) and made.views.shorter_side == 256
    assert made.normalization == OFFICIAL == affine_name(mean=(123.68, 116.78, 103.94))
    assert TrainConfig.from_json(made.to_json()) == made


def test_the_schedule_of_imagenet_has_the_steps_of_official_resnet():
    made = imagenet_config('-bs', '256')
    assert made.learning_rate == pytest.approx(0.128)
    per_epoch = 1_281_167 / 256
    rate = optimizers.make_schedule(made.schedule, made.learning_rate, per_epoch, int(90 * per_epoch))
    assert [int(epoch * per_epoch) for epoch in (5, *made.schedule.boundaries)] == [
        25_022,
        150_136,
        300_273,
        400_364,
        450_410,
    ]
    assert float(rate(25_023)) == float(rate(150_136)) == pytest.approx(0.128)
    for step, expected in (
        (0, 0),
        (12_511, 0.064),
        (25_022, 0.128),
        (150_137, 0.0128),
        (300_273, 0.0128),
        (300_274, 1.28e-3),
        (400_364, 1.28e-3),
        (400_365, 1.28e-4),
        (450_410, 1.28e-4),
        (450_411, 1.28e-5),
    ):
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4), step


def test_every_recipe_of_imagenet_makes_a_config():
    assert list(recipes_imagenet.IMAGENET) == ['official', 'fb', 'fast']
    made = {name: imagenet_config(f'--recipe={name}') for name in recipes_imagenet.IMAGENET}
    fb, fast = made['fb'], made['fast']
    assert (fb.batch_size, fb.learning_rate, fb.nesterov, fb.background) == (256, pytest.approx(0.1), True, False)
    assert (fb.spec.shortcut, fb.spec.zero_gamma, fb.spec.bn_momentum, fb.spec.stem_pool) == ('B', True, 0.9, 'pad1')
    assert fb.views == Views(min_area=0.08, use_boxes=False, resize='antialias')
    assert fb.schedule.boundaries == (30, 60, 80) and fb.schedule.warmup_epochs == 5
    assert (fast.views.size, fast.views.test_size, fast.schedule.kind, fast.label_smoothing) == (
        160,
        224,
        'one_cycle',
        0.1,
    )
    assert (fast.train_epochs, fast.dtype) == (16, 'auto')
    assert fb.normalization == fast.normalization == PUBLISHED['torch'] != OFFICIAL


def test_how_many_classes_imagenet_has():
    """1001 with the background and 1000 without, as official/resnet counts; more are only more logits."""
    for args, expected in (
        ([], (True, None)),
        (['--num_classes=1000'], (False, None)),
        (['--num_classes=1001'], (True, None)),
        (['--recipe=fb'], (False, None)),
        (['--recipe=fb', '--num_classes=1001'], (True, None)),
        (['--nobackground_class'], (False, None)),
        (['--num_classes=1200'], (True, 1200)),
        (['--recipe=fb', '--background_class'], (True, None)),
    ):
        made = imagenet_config(*args)
        assert (made.background, made.num_classes) == expected, args


def test_flags_of_imagenet():
    made = imagenet_config(
        '--image_size=64',
        '--min_crop_area=0.25',
        '--nouse_boxes',
        '--resize=antialias',
        '--input_normalization=inception',
        '--zero_gamma',
        '--stem_pool=pad1',
        '-rs',
        '18',
    )
    assert made.views == Views(64, 64, min_area=0.25, use_boxes=False, resize='antialias')
    assert made.normalization == PUBLISHED['inception'] and made.image_size is None
    assert (made.spec.zero_gamma, made.spec.stem_pool, made.spec.block) == (True, 'pad1', 'basic')
    assert imagenet_config('--eval_image_size=288').views.test_size == 288
    for size, version in ((18, '1'), (34, '2'), (101, '1.5'), (152, '2'), (200, '2')):
        made = imagenet_config('-rs', str(size), '-rv', version)
        assert (made.spec.version, made.spec.group_blocks) == (version, resnet_variants.IMAGENET_BLOCKS[size][1])
    drawn = imagenet_config('-synth')
    assert drawn.dataset == 'synthetic224'
    assert (drawn.views, drawn.background, drawn.normalization) == (None, False, None)
    own = imagenet_config('--image_folder=/x', '--validation_fraction=0.3')
    assert (own.dataset, own.machine.data_dir) == ('folder:/x', None)
    assert (own.views, own.validation_fraction) == (Views(**OFFICIAL_VIEWS), 0.3)


def test_a_pretrained_net_brings_its_normalization_to_imagenet(monkeypatch):
    theirs = PUBLISHED['torch']
    monkeypatch.setattr(
        transfer, 'describe', lambda path: transfer.Pretrained(resnet_variants.imagenet_spec(18), 1000, theirs, 224)
    )
    made = adopted('-pmcp', 'x', '--transfer=head', program=imagenet_main.PROGRAM)
    assert (made.normalization, made.spec.group_blocks, made.augment) == (theirs, (2, 2, 2, 2), False)
    given = adopted('-pmcp', 'x', '--input_normalization=inception', program=imagenet_main.PROGRAM)
    assert given.normalization == PUBLISHED['inception']


@pytest.mark.parametrize(
    'args,message',
    [
        (['-rs', '20'], 'resnet_size=20 '),
        (['-rv', '3'], 'resnet_version'),
        (['--ten_crop'], '--ten_crop needs --eval_only; pass that too'),
        (['--eval_report=x'], '--eval_report needs --eval_only; pass that too'),
        (['--min_crop_area=0'], '--min_crop_area=0.0 must be above 0'),
        (['--min_crop_area=1.5'], 'min_crop_area'),
        (['--eval_image_size=4'], 'eval_image_size'),
        (['--image_size=x'], 'image_size'),
        (['--resize=bicubic'], 'resize'),
        (['--input_normalization=caffe'], 'input_normalization'),
        (['--stem_pool=ceil'], 'stem_pool'),
        (['--recipe=paper'], 'recipe'),
        (['--tfds=x', '-synth'], 'exclude'),
        (['--validation_fraction=0.2'], '--validation_fraction needs --image_folder'),
        (['--num_classes=1'], 'num_classes'),
        (['--dataset=imagenet'], 'dataset'),
    ],
)
def test_wrong_flags_of_imagenet_answer_in_one_line(args, message, capsys):
    assert message in answer(args, imagenet_main.PROGRAM, capsys)


def test_imagenet_accepts_what_official_resnet_did():
    args = ['-rs', '50', '--image_bytes_as_serving_input', '--num_parallel_calls=5', '-ls', '128']
    values = parse(*args, program=imagenet_main.PROGRAM)
    for name, short in OFFICIAL_FLAGS:
        assert name in values and (not short or values[short] is values[name])
