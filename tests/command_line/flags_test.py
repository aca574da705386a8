"""Flags: names, short names and defaults of official/resnet; recipes; --help; unknown flags."""

import dataclasses
import re
import types

import pytest
from fixtures.programs import mistake, start, succeed

from official_resnet import cifar10_main, cifar100_main, imagenet_main, mnist_main, resnet_model, resnet_variants
from official_resnet.command_line import flags, own_images
from official_resnet.errors import UserError
from official_resnet.inputs.affine import OFFICIAL, PUBLISHED, affine_name
from official_resnet.inputs.views import Views
from official_resnet.training import optimizers, recipes, recipes_mnist, same_run, transfer

MAINS = {'cifar10': cifar10_main, 'cifar100': cifar100_main, 'mnist': mnist_main, 'imagenet': imagenet_main}
PROGRAMS = {name: main.PROGRAM for name, main in MAINS.items()}
# Flags of official/resnet: name/short name.
OFFICIAL_FLAGS = """
data_dir/dd model_dir/md train_epochs/te epochs_between_evals/ebe stop_threshold/st batch_size/bs num_gpus/ng hooks/hk
export_dir/ed inter_op_parallelism_threads/inter intra_op_parallelism_threads/intra use_synthetic_data/synth dtype/dt
max_train_steps/mts loss_scale/ls data_format/df benchmark_log_dir/bld benchmark_logger_type/ resnet_version/rv
resnet_size/rs fine_tune/ft pretrained_model_checkpoint_path/pmcp eval_only/ image_bytes_as_serving_input/ clean/
benchmark_test_id/bti log_steps/ distribution_strategy/ds label_smoothing/ weight_decay/ datasets_num_private_threads/
gcp_project/gp bigquery_data_set/bds bigquery_run_table/brt bigquery_metric_table/bmt use_train_and_evaluate/
enable_lars/
"""


def parse(line='', program='cifar10'):
    values = flags.define(PROGRAMS[program])
    values(['main.py', *line.split()])
    return values


def config(line='', program='cifar10'):
    """Return the TrainConfig that a command line asks for."""
    return flags.resolve(parse(line, program), PROGRAMS[program])[0]


def adopted(line, program='cifar10'):
    """Return the TrainConfig with the network of the pretrained network."""
    made = config(line, program)
    return transfer.adopt(made, transfer.describe(made.pretrained), flags.given_axes(parse(line, program)))


def fields_of(part, names):
    return tuple(getattr(part, name) for name in names.split())


@pytest.mark.parametrize('program', ['cifar10', 'imagenet'])
def test_official_names(program):
    values = parse('-rs 50 --image_bytes_as_serving_input --num_parallel_calls=5 -ls 128', program)
    for name, short in (pair.split('/') for pair in OFFICIAL_FLAGS.split()):
        assert name in values and (not short or values[short] is values[name]), name


def test_official_defaults():
    made, options = flags.resolve(parse(), PROGRAMS['cifar10'])
    assert fields_of(made.machine, 'data_dir model_dir') == ('/tmp/cifar10_data', '/tmp/cifar10_model')
    assert fields_of(made, 'train_epochs epochs_between_evals batch_size stop_threshold') == (182, 10, 128, None)
    assert fields_of(made.spec, 'resnet_size version shortcut') == (56, '1', 'group')
    assert fields_of(made.spec, 'bn_momentum bn_epsilon initializer') == (0.997, 1e-5, 'official')
    assert fields_of(made, 'learning_rate weight_decay decay dtype') == (0.1, 2e-4, 'all', 'fp32')
    assert fields_of(made.schedule, 'boundaries factors') == ((91, 136, 182), (1, 0.1, 0.01, 0.001))
    assert fields_of(options, 'hooks benchmark_logger_type') == (('LoggingTensorHook',), 'BaseBenchmarkLogger')
    assert fields_of(made, 'optimizer num_train_images flip') == ('momentum', None, True)
    assert fields_of(made, 'transfer augment head') == ('all', True, 'replace')
    assert config('-bs 256').learning_rate == 0.2


def test_flags_override_the_recipe_even_with_its_default():
    assert config('--recipe=classic_fast').spec.resnet_size == 20
    assert config('--recipe=classic_fast -rs 56').spec.resnet_size == 56
    assert config('--recipe=classic_fast --nonesterov').nesterov is False
    assert config('--recipe=paper').max_train_steps == 64000
    assert config('--recipe=paper -mts 10').max_train_steps == 10


@pytest.mark.parametrize('program', ['cifar10', 'imagenet'])
def test_every_variant_has_a_flag(program):
    """--variant leaves to the recipe what batch norms, initial weights, drops and filters are, and nothing else."""
    table = next(iter(PROGRAMS[program].recipes.values()))
    names = 'bn_momentum', 'initializer', 'stochastic_depth', 'blur_pool'
    for i, (name, spec) in enumerate(resnet_variants.VARIANTS.items()):
        recipe = list(table)[i % len(table)]
        settings = {**next(iter(table.values())), **table[recipe]}
        made = config(f'--variant={name} --recipe={recipe}', program).spec
        is_zero = settings.get('zero_gamma', False) and spec.version != '2'
        kept = {field: settings.get(field, getattr(spec, field)) for field in names}
        kept['stochastic_depth'] *= spec.shortcut is not None
        assert made == dataclasses.replace(spec, zero_gamma=is_zero and spec.bn_scale, **kept), name
    assert config('--variant=seresnet50_v1.5 -rs 50 --bn_momentum=0.5', 'imagenet').spec.bn_momentum == 0.5


@pytest.mark.parametrize(
    'line,message',
    [
        ('--variant=se', "no network 'se'"),
        ('--variant=seresnet50_v1.5 -rs 18', '--resnet_size=18, but the network seresnet50_v1.5 has 50'),
        ('--variant=resnet50_v2 -rv 1', '--resnet_version=1, but the network resnet50_v2 has 2'),
        ('--variant=plain18 --shortcut=B', '--shortcut=B, but the network plain18 has None'),
        ('--variant=resnet50_v2 --zero_gamma', 'zero_gamma'),
        ('--variant=resnet50_v2 -pmcp x.keras', '--variant=resnet50_v2 has the network'),
    ],
)
def test_a_variant_is_not_contradicted(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config(line, 'imagenet')


def test_every_recipe_makes_a_config():
    for recipe in recipes.CIFAR:
        initializer = {'official': 'official', 'fast': 'dirac', 'record': 'dirac'}.get(recipe, 'he')
        assert config(f'--recipe={recipe}').spec.initializer == initializer
    fast = config('--recipe=classic_fast')
    assert fields_of(fast, 'dtype label_smoothing') == ('auto', 0.1)
    assert fields_of(fast.schedule, 'kind boundaries factors') == ('one_cycle', (), (1.0,))
    with pytest.raises(UserError, match='--resnet_size=20, but the network resnet8_pooled has 8'):
        config('--recipe=fast -rs 20')
    with pytest.raises(UserError, match='--recipe=fast has the network resnet8_pooled'):
        config('--recipe=fast -pmcp x.keras')


def test_the_fast_recipe_has_the_numbers_of_airbench94_muon():
    made = config('--recipe=fast')  # the program's are for a sum over 2000 images and for logits divided by 256
    assert fields_of(made, 'optimizer base_learning_rate muon_momentum momentum') == ('muon', 0.24, 0.6, 0.85)
    assert made.base_learning_rate * made.bias_learning_rate_factor / made.batch_size == pytest.approx(0.053)
    head = made.base_learning_rate * made.head_learning_rate_factor * 256**2 / made.batch_size
    assert head == pytest.approx(0.67) and made.spec.group_filters[-1] == 256
    assert made.base_learning_rate * made.weight_decay / made.batch_size == pytest.approx(2e-6)
    assert fields_of(made, 'train_epochs batch_size label_smoothing decay') == (8, 2000, 0.2, 'all')
    assert fields_of(made.augmentation, 'pad pad_mode alternating_flip') == (2, 'reflect', True)
    assert fields_of(made.schedule, 'kind peak start_factor end_factor power') == ('one_cycle', 0, 1, 0, 1)
    assert fields_of(made.spec, 'stem stem_filters activation bn_momentum bn_scale') == (
        'whitening',
        24,
        'gelu',
        0.6,
        False,
    )


def test_the_record_recipe_has_the_numbers_of_airbench96():
    made, fast = config('--recipe=record'), config('--recipe=fast')
    assert fields_of(made.spec, 'group_filters group_blocks') == ((128, 384, 512), (2, 2, 2))
    assert fields_of(made, 'train_epochs batch_size') == (45, 2000)
    assert fields_of(made.augmentation, 'pad cutout alternating_flip') == (4, 12, True)
    assert fields_of(made.schedule, 'kind end_factor warmup_epochs') == ('cosine', 0, 0)
    heads = [made.base_learning_rate * made.head_learning_rate_factor for made in (made, fast)]
    assert heads[0] * 512**2 == pytest.approx(heads[1] * 256**2)  # logits are divided by the number of filters


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
    values, fields = parse(program=name), flags.fields_of(PROGRAMS[name])
    obsolete = {flag for flag, _, _ in flags.OBSOLETE}
    assert {flag for flag in values if values[flag].name == flag} == fields.keys() | obsolete
    for flag, (field, _) in fields.items():
        about = field.metadata
        assert about['text'].rstrip('.') in values[flag].help and about['text'].endswith('.'), flag
        assert values[flag].default is None or not about.get('is_open')
        if 'least' in about:
            assert values[flag].parser.lower_bound == about['least']


def test_home_folder_is_expanded_once(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    assert config('--data_dir ~').machine.data_dir == '/home/someone'


def test_obsolete_flags_are_accepted():
    values = parse('--gcp_project=x --use_train_and_evaluate --multi_gpu -brt y --version 2')
    assert values.gcp_project == 'x' and values.multi_gpu is True
    assert flags.resolve(values, PROGRAMS['cifar10']) == flags.resolve(parse(), PROGRAMS['cifar10'])


@pytest.mark.parametrize(
    'typed,meant',
    [
        ('--learning_rate=1', 'base_learning_rate'),
        ('-lr', 'base_learning_rate'),
        ('--resnet-size=20', 'resnet_size'),
        ('--mode=se', 'variant'),
        ('--randaugment=2', 'auto_augment'),
        ('--ema', 'weight_averaging'),
        ('--tta', 'test_views'),
        ('--grad-accum-steps=2', 'gradient_accumulation_steps'),
        ('--trian_epochs=3', 'train_epochs'),
        ('--notensorboard', 'enable_tensorboard'),
        ('--xyzzy', None),
    ],
)
def test_an_unknown_flag_names_the_right_one(typed, meant):
    error = mistake(f'cifar10_main {typed}')
    assert f'--{typed.lstrip("-").partition("=")[0]}' in error and '--help' in error
    assert (f'use --{meant} ' in error) if meant else 'use' not in error


def test_documents_is_the_default_of_mnist_and_what_the_pytorch_program_does():
    """100 epochs of batches of 32, Adam at 0.001, constant; pad 4, flip, crop; BN of torch; no decay, no smoothing."""
    made = config(program='mnist')
    assert fields_of(made, 'dataset train_epochs batch_size num_train_images') == ('mnist', 100, 32, None)
    assert fields_of(made, 'optimizer learning_rate dtype') == ('adam', 0.001, 'fp32')
    assert fields_of(made.schedule, 'kind warmup_epochs') == ('constant', 0)
    rate = optimizers.make_schedule(made.schedule, made.learning_rate, 1875, 187500)
    assert float(rate(187499)) == pytest.approx(0.001)
    assert fields_of(made, 'augment flip weight_decay label_smoothing') == (True, True, 0, 0)
    assert fields_of(made.spec, 'group_blocks filters block version') == ((2, 2, 2), 16, 'basic', '1')
    assert fields_of(made.spec, 'shortcut projection_kernel') == ('B', 3)
    assert fields_of(made.spec, 'bn_momentum bn_epsilon') == (0.9, 1e-5)
    model = resnet_model.resnet(made.spec, 10, (32, 32, 1))
    assert sum(variable.numpy().size for variable in model.trainable_variables) == 195_450


@pytest.mark.parametrize('dataset,flips', [('mnist', False), ('fashion_mnist', True)])
def test_every_mnist_recipe_makes_a_config(dataset, flips):
    made = {name: config(f'--dataset={dataset} --recipe={name}', 'mnist') for name in recipes_mnist.MNIST}
    assert {config.dataset for config in made.values()} == {dataset, 'synthetic'}
    assert made['fast'].flip is flips and made['documents'].flip is True
    assert fields_of(made['fast'], 'optimizer learning_rate') == ('momentum', 0.4)
    assert config('--recipe=fast --flip', 'mnist').flip is True


def test_transfer_flags(monkeypatch):
    for args in ('--transfer=head', '--fine_tune', '-ft --transfer head'):
        made = config(f'-pmcp x {args}')
        assert (made.transfer, made.augment) == ('head', False)
    assert config('-pmcp x -ft --augment').augment is True
    assert config('-pmcp x --transfer=last').augment is True
    monkeypatch.setattr(transfer, 'describe', lambda path: transfer.Pretrained(resnet_variants.cifar_spec(8), 7))
    made = adopted('-pmcp x --transfer=last --train_last_groups=2 --backbone_learning_rate_factor=0.1')
    assert (made.spec.group_blocks, made.transfer, made.train_last_groups) == ((1, 1, 1), 'last', 2)
    assert fields_of(made, 'backbone_learning_rate_factor head pretrained_classes') == (0.1, 'replace', None)
    assert adopted('-pmcp x --initializer=official').spec.initializer == 'official'  # of what is computed, no part
    assert adopted('-pmcp x --head=append --recipe=classic_fast').pretrained_classes == 7
    with pytest.raises(UserError, match='--shortcut=B.* A'):
        adopted('-pmcp x -rs 8 --shortcut B')


@pytest.mark.parametrize(
    'line,program,rate,warmup',
    [
        ('', 'imagenet', 0.128, 5),
        ('-pmcp x --fine_tune', 'imagenet', 0.1, 0),  # official/resnet's imagenet_main.py
        ('-pmcp x -ft --warmup_epochs=2 --base_learning_rate=0.2', 'imagenet', 0.4, 2),
        ('-pmcp x --transfer=head', 'imagenet', 0.128, 5),
        ('-pmcp x -ft --recipe=fb', 'imagenet', 0.1, 5),
        ('-pmcp x -ft', 'cifar10', 0.2, 0),  # its cifar10_main.py has one rate
    ],
)
def test_the_rate_of_fine_tuning(line, program, rate, warmup):
    made = config(f'-bs 256 {line}', program)
    assert (made.learning_rate, made.schedule.warmup_epochs) == (pytest.approx(rate), warmup)


@pytest.mark.parametrize('names', ['ProfilerHook', 'loggingtensorhook,EXAMPLESPERSECONDHOOK', 'LoggingMetricHook'])
def test_hook_names_in_any_case(names):
    assert flags.resolve(parse(f'--hooks {names}'), PROGRAMS['cifar10'])[1].hooks == tuple(names.split(','))


# --- help ----------------------------------------------------------------------------------------------------


def test_help_is_grouped_by_task_and_shows_the_defaults_of_the_recipe():
    text = succeed('cifar10_main --help')
    headings = [
        'Data',
        'Augmentation',
        'Network',
        'Training',
        'Transfer',
        'Evaluation and export',
        'Machine',
        'Logging',
    ]
    assert re.findall(r'^(\w[\w ]*):$', text, re.M) == headings
    assert text.startswith('Train a residual network')
    assert re.search(r'--train_epochs, -te N\n .*\[182\]', text) and re.search(r'--recipe [^[]*\[official\]', text)
    fast = succeed('cifar10_main --recipe=classic_fast -h')
    assert re.search(r'--train_epochs, -te N\n .*\[20\]', fast) and re.search(r'--dtype, [^[]*\[auto\]', fast)
    for args, epochs in (('--recipe=fast --help', 8), ('--help', 182)):  # whatever other flags are wrong
        assert re.search(rf'--train_epochs, -te N\n .*\[{epochs}\]', succeed(f'cifar10_main {args} --lr=3'))
    assert 'fashion_mnist' in succeed('mnist_main --help')


def test_help_says_what_the_images_decide():
    typed = types.SimpleNamespace(image_size=None, eval_image_size=None)
    rules = own_images._network_rules(100, 300, types.SimpleNamespace(pretrained=None, augment=True), typed)
    flags_of_images = {'batch_size', 'train_epochs', *(flag for flag, _, _ in rules)}
    for args, expected in (('', flags_of_images), ('--recipe=fast', set())):
        entries = re.split(r'^  --', succeed(f'image_folder_main {args} --help'), flags=re.M)
        assert {
            re.match(r'\w+', entry)[0] for entry in entries if '[chosen by the images]' in ' '.join(entry.split())
        } == expected


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_has_every_flag_but_the_obsolete_ones(name):
    text, full = (succeed(f'{name}_main {argument}') for argument in ('--help', '--helpfull'))
    obsolete = {name for name, _, _ in flags.OBSOLETE}
    names = set(re.findall(r'^  --(?:\[no\])?(\w+)', text, re.M))
    assert names == flags.fields_of(PROGRAMS[name]).keys() and not names & obsolete
    listed = set(re.findall(r'^  (?:-\w+,)?--(?:\[no\])?(\w+):', full, re.M))
    assert listed - {'flagfile', 'undefok'} == names | obsolete  # those two are absl's own


def test_whoever_reads_help_may_leave_early():
    process = start('cifar10_main --help')
    process.stdout.close()  # before it has printed anything
    assert process.stderr.read() == '' and process.wait() == 0


# --- ImageNet ------------------------------------------------------------------------------------------------

OFFICIAL_VIEWS = Views(224, 224, min_area=0.05, use_boxes=True, resize='tf1', crop='tensorflow')


def test_official_is_the_default_of_imagenet():
    """ResNet-50 v1.5, 90 epochs, 0.128 per 256 images, batches of 32 by the flag's default, 1001 logits."""
    made = config(program='imagenet')
    assert fields_of(made.machine, 'data_dir model_dir') == ('/tmp/imagenet_data', '/tmp/imagenet_model')
    assert fields_of(made, 'dataset train_epochs batch_size') == ('imagenet', 90, 32)
    assert made.learning_rate == pytest.approx(0.128 / 8)
    assert fields_of(made.spec, 'group_blocks version shortcut stem_pool') == ((3, 4, 6, 3), '1.5', 'group', 'same')
    assert fields_of(made.spec, 'bn_momentum bn_epsilon zero_gamma initializer') == (0.997, 1e-5, False, 'official')
    assert fields_of(made, 'optimizer momentum nesterov') == ('momentum', 0.9, False)
    assert fields_of(made, 'weight_decay decay') == (1e-4, 'no_batch_norm')
    assert fields_of(made, 'dtype label_smoothing background num_classes') == ('fp32', 0, True, None)
    assert made.views == OFFICIAL_VIEWS and made.views.shorter_side == 256
    assert made.normalization == OFFICIAL == affine_name(mean=(123.68, 116.78, 103.94))
    assert same_run.from_json(made.to_json()) == made


def test_the_schedule_of_imagenet_has_the_steps_of_official_resnet():
    made = config('-bs 256', 'imagenet')
    per_epoch = 1_281_167 / 256
    steps = [int(epoch * per_epoch) for epoch in (5, *made.schedule.boundaries)]
    assert steps == [25_022, 150_136, 300_273, 400_364, 450_410]
    rate = optimizers.make_schedule(made.schedule, made.learning_rate, per_epoch, int(90 * per_epoch))
    rates = {0: 0, 12_511: 0.064, 25_022: 0.128, 25_023: 0.128, 150_136: 0.128, 150_137: 0.0128, 300_273: 0.0128}
    rates |= {300_274: 1.28e-3, 400_364: 1.28e-3, 400_365: 1.28e-4, 450_410: 1.28e-4, 450_411: 1.28e-5}
    assert {step: float(rate(step)) for step in rates} == pytest.approx(rates, rel=1e-4)


def test_every_recipe_of_imagenet_makes_a_config():
    fb, fast = (config(f'--recipe={name}', 'imagenet') for name in ('fb', 'fast'))
    assert fields_of(fb, 'batch_size nesterov background') == (256, True, False)
    assert fb.learning_rate == pytest.approx(0.1)
    assert fields_of(fb.spec, 'shortcut zero_gamma bn_momentum stem_pool initializer') == ('B', True, 0.9, 'pad1', 'he')
    assert fb.views == Views(min_area=0.08, use_boxes=False, resize='antialias', crop='torch')
    assert fields_of(fast.views, 'min_area crop resize') == (0.08, 'torch', 'tf1')
    assert fb.schedule.boundaries == (30, 60, 80) and fb.schedule.warmup_epochs == 5
    assert (*fields_of(fast.views, 'size test_size'), fast.schedule.kind) == (160, 224, 'one_cycle')
    assert fields_of(fast, 'train_epochs dtype label_smoothing') == (16, 'auto', 0.1)
    assert fb.normalization == fast.normalization == PUBLISHED['torch'] != OFFICIAL


@pytest.mark.parametrize(
    'args,expected',
    [
        ('', (True, None)),
        ('--num_classes=1001', (True, None)),
        ('--recipe=fb', (False, None)),
        ('--num_classes=1200', (True, 1200)),
        ('--recipe=fb --background_class', (True, None)),
    ],
)
def test_how_many_classes_imagenet_has(args, expected):
    """1001 with the background and 1000 without, as official/resnet counts; more are only more logits."""
    assert fields_of(config(args, 'imagenet'), 'background num_classes') == expected


def test_flags_of_imagenet():
    views = '--image_size=64 --min_crop_area=0.25 --nouse_boxes --resize=antialias --input_normalization=inception'
    made = config(f'{views} --zero_gamma --stem_pool=pad1 -rs 18', 'imagenet')
    assert made.views == Views(64, 64, min_area=0.25, use_boxes=False, resize='antialias')
    assert made.normalization == PUBLISHED['inception'] and made.image_size is None
    assert fields_of(made.spec, 'zero_gamma stem_pool block') == (True, 'pad1', 'basic')
    assert config('--eval_image_size=288', 'imagenet').views.test_size == 288
    for size, version in ((18, '1'), (34, '2'), (101, '1.5'), (152, '2'), (200, '2')):
        made = config(f'-rs {size} -rv {version}', 'imagenet')
        assert (made.spec.version, made.spec.group_blocks) == (version, resnet_variants.IMAGENET_BLOCKS[size][1])
    synthetic = config('-synth', 'imagenet')
    assert fields_of(synthetic, 'dataset views background normalization') == ('synthetic224', None, False, None)
    own = config('--image_folder=/x --validation_fraction=0.3', 'imagenet')
    assert (own.dataset, own.machine.data_dir) == ('folder:/x', None)
    assert (own.views, own.validation_fraction) == (OFFICIAL_VIEWS, 0.3)


PRETRAINED = '--pretrained_model_checkpoint_path=x'


@pytest.mark.parametrize(
    'line,missing,remedy',
    [
        ('--lr_boundaries=4 --lr_factors=1,0.1 --recipe=fast', '--lr_schedule=piecewise', '--lr_schedule=piecewise'),
        ('--lr_peak=0.3', '--lr_schedule=one_cycle', '--lr_schedule=one_cycle'),
        ('--lr_power=2 --lr_schedule=cosine', '--lr_schedule=one_cycle', '--lr_schedule=one_cycle'),
        ('--lr_end_factor=0.1', '--lr_schedule=cosine|one_cycle', '--lr_schedule=cosine'),
        ('--lr_start_factor=0.1', '--lr_schedule=one_cycle or --warmup_epochs', '--warmup_epochs=1'),
        ('--lr_after_warmup --lr_schedule=cosine', '--warmup_epochs', '--warmup_epochs=1'),
        ('--lr_after_warmup --warmup_epochs=1', '--lr_schedule=cosine|one_cycle', '--lr_schedule=one_cycle'),
        ('--momentum=0.8', '--optimizer=momentum|lars|muon', '--optimizer=muon'),
        ('--nesterov', '--optimizer=momentum|lars', '--optimizer=lars'),
        ('--decay=kernels', '--optimizer=momentum|lamb|lars|muon', '--optimizer=lamb'),
        ('--muon_momentum=0.3', '--optimizer=muon', '--optimizer=muon'),
        ('--average_decay=0.9 --recipe=fast', '--weight_averaging', '--weight_averaging=lookahead'),
        ('--average_every=3', '--weight_averaging', '--weight_averaging=ema'),
        ('--noaverage_warmup --weight_averaging=lookahead', '--weight_averaging=ema', '--weight_averaging=ema'),
        ('--use_weights=plain', '--weight_averaging or --eval_only', '--eval_only'),
        ('--mix_probability=0.5', '--mixup or --cutmix', '--cutmix=1'),
        ('--mix_switch=0.1 --mixup=1', '--cutmix', '--cutmix=1'),
        ('--alternating_flip --noflip', '--flip', '--flip'),
        ('--pad_mode=reflect --crop_pad=0', '--crop_pad', '--crop_pad=1'),
        (f'--cutout=8 --transfer=head {PRETRAINED}', '--augment', '--augment'),
        (f'--cutout=8 --fine_tune {PRETRAINED}', '--augment', '--augment'),
        (f'--bias_learning_rate_factor=2 --transfer=head {PRETRAINED}', '--transfer=all|last', '--transfer=last'),
    ],
)
def test_a_flag_that_would_have_no_effect_is_refused(line, missing, remedy):
    """It names what it needs; with that, whether a flag or a recipe has it, it is accepted."""
    without = (
        f'--optimizer=adam --base_learning_rate=1e-3 --weight_decay=0 {line}'
        if missing.startswith('--optimizer')
        else line
    )
    with pytest.raises(UserError, match=rf'^--\w+ needs {re.escape(missing)};'):
        config(without)
    config(f'{without} {remedy}')


@pytest.mark.parametrize(
    'line,missing', [('--size_ramp=0,1', '--first_image_size'), ('--first_image_size=96 --noaugment', '--augment')]
)
def test_a_flag_for_streamed_images_that_would_have_no_effect_is_refused(line, missing):
    with pytest.raises(UserError, match=f'needs {missing};'):
        config(line, 'imagenet')


def test_what_a_recipe_has_a_flag_does_not_need():
    assert config('--recipe=mosaic_mild --average_every=5 --size_ramp=0,1', 'imagenet').average_every == 5
    assert config('--recipe=a1 --mix_switch=0.3', 'imagenet').augmentation.mix_switch == 0.3
    assert config('--lr_factors=1,1,1,1').schedule.factors == (1, 1, 1, 1)
