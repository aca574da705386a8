"""What the number of images in a folder decides, and the stages of a transfer: what they find, and delete."""

import json
import os

import pytest
from PIL import Image

from official_resnet import cifar10_main, image_folder_main, imagenet_main, mnist_main
from official_resnet.command_line import flags, own_images, places, stages, train_program
from official_resnet.errors import UserError
from official_resnet.inference import network_files
from official_resnet.inputs import image_folder

PROGRAMS = {'cifar10': cifar10_main.PROGRAM, 'imagenet': imagenet_main.PROGRAM, 'mnist': mnist_main.PROGRAM}


@pytest.mark.parametrize(
    'program,num_images,line,expected',  # recipe, batch size, epochs
    [
        ('cifar10', 146, '', ('classic_fast', 16, 100)),  # 9 steps an epoch
        ('imagenet', 146, '', ('fast', 16, 100)),
        ('mnist', 146, '', ('fast', 16, 100)),
        ('cifar10', 5, '', ('classic_fast', 5, 100)),
        ('cifar10', 20, '', ('classic_fast', 8, 100)),
        ('cifar10', 1000, '', ('classic_fast', 64, 67)),  # 15 steps an epoch
        ('cifar10', 10_000, '', ('classic_fast', 128, 20)),  # the recipe's
        ('imagenet', 5000, '', ('fast', 256, 53)),
        ('cifar10', 49_999, '', ('classic_fast', 128, 20)),
        ('cifar10', 50_000, '', ('official', 128, 182)),
        ('imagenet', 50_000, '', ('official', 32, 90)),
        ('cifar10', 60_000, '--num_train_images=100', ('classic_fast', 8, 84)),
        ('cifar10', 146, '-bs 32', ('classic_fast', 32, 100)),
        ('cifar10', 146, '-bs 100 -te 5', ('classic_fast', 100, 5)),
        ('cifar10', 146, '-bs 500', ('classic_fast', 500, 100)),  # refused when it is read
        ('cifar10', 146, '--recipe=paper', ('paper', 128, 165)),
        ('cifar10', 146, '--recipe=official', ('official', 128, 182)),
        ('imagenet', 146, '-pmcp x --fine_tune', ('official', 16, 100)),
    ],
)
def test_recipe_batch_size_and_epochs_by_the_number_of_images(monkeypatch, program, num_images, line, expected):
    listed = image_folder.Listing(('a', 'b'), {'train': [('x.png', 0)] * num_images, 'test': []}, {}, '')
    monkeypatch.setattr(image_folder, 'list_files', lambda *args: listed)
    values, row = flags.define(PROGRAMS[program]), PROGRAMS[program]
    values(['main.py', '--image_folder=x', *line.split()])
    chosen = own_images.choose(values, row, flags.resolve(values, row)[0])
    config, options = flags.resolve(values, row, chosen)
    assert (options.recipe, config.batch_size, config.train_epochs) == expected
    assert config.spec.resnet_size == (flags.recipe_of(values, row, expected[0]).get('resnet_size') or 14)
    if 'fine_tune' in line:
        assert config.learning_rate == pytest.approx(0.1 * 16 / 256)


@pytest.mark.parametrize(
    'num_images,side,line,expected',  # recipe, network, input in training and evaluation, batch size, epochs
    [
        (146, 32, '', ('small', 'resnet20_v1', 32, 32, 16, 100)),
        (40_000, 47, '', ('small', 'resnet20_v1', 32, 32, 128, 20)),
        (146, 48, '', ('fast', 18, 64, 96, 16, 100)),
        (5000, 127, '', ('fast', 18, 96, 128, 256, 53)),
        (5000, 128, '', ('fast', 18, 128, 160, 256, 53)),
        (49_999, 375, '', ('fast', 18, 160, 224, 256, 16)),
        (50_000, 375, '', ('fast', 50, 160, 224, 256, 16)),
        (5000, 375, '-rs 34 --image_size=96 -bs 32 -te 5', ('fast', 34, 96, 128, 32, 5)),
        (146, 375, '--image_size=100', ('fast', 18, 100, 128, 16, 100)),
        (146, 375, '--image_size=192', ('fast', 18, 192, 224, 16, 100)),
        (146, 375, '--image_size=256', ('fast', 18, 256, 256, 16, 100)),
        (146, 375, '--image_size=48', ('fast', 18, 48, 48, 16, 100)),
        (146, 375, '--eval_image_size=128', ('fast', 18, 96, 128, 16, 100)),
        (146, 375, '--image_size=96 --eval_image_size=96', ('fast', 18, 96, 96, 16, 100)),
        (146, 375, '--noaugment', ('fast', 18, 160, 160, 16, 100)),
        (146, 32, '--image_size=64', ('small', 'resnet20_v1', 64, 64, 16, 100)),
        (146, 32, '--eval_image_size=64', ('small', 'resnet20_v1', 64, 64, 16, 100)),
        (146, 375, '-pmcp resnet34 --image_size=96', ('fast', None, 96, 128, 16, 100)),
        (146, 375, '-pmcp resnet34 --image_size=96 --noaugment', ('fast', None, 96, 96, 16, 100)),
        (146, 375, '-pmcp resnet34 --eval_image_size=160', ('fast', None, 128, 160, 16, 100)),
        (146, 375, '--variant=seresnet50_v1.5', ('fast', 'seresnet50_v1.5', 160, 224, 16, 100)),
        (146, 375, '-pmcp resnet34', ('fast', None, 160, 224, 16, 100)),
        (146, 32, '-pmcp resnet34', ('fast', None, 160, 224, 16, 100)),
        (146, 375, '-pmcp resnet34 --transfer=head', ('fast', None, 224, 224, 16, 100)),  # which are not augmented
        (146, 375, '-pmcp akamaster/resnet20', ('small', None, 32, 32, 16, 100)),
        (146, 375, '--recipe=a3', ('a3', 50, 160, 224, 2048, 100)),
    ],
)
def test_network_and_input_by_number_and_size_of_the_images(monkeypatch, caplog, num_images, side, line, expected):
    listed = image_folder.Listing(('a', 'b'), {'train': [('x.png', 0)] * num_images, 'test': []}, {}, '')
    monkeypatch.setattr(image_folder, 'list_files', lambda *args: listed)
    monkeypatch.setattr(own_images, 'median_side', lambda paths: side)
    row = image_folder_main.PROGRAM
    values = flags.define(row)
    values(['main.py', '--image_folder=x', '--cache_dir=none', *line.split()])
    with caplog.at_level('INFO'):
        chosen = own_images.choose(values, row, flags.resolve(values, row)[0])
    config, options = flags.resolve(values, row, chosen)
    recipe, network, *numbers = expected
    views = config.views
    assert chosen == {} or f'{num_images:,} training images, the shorter side {side} pixels:' in caplog.messages
    assert (options.recipe, [views.size, views.test_size, config.batch_size, config.train_epochs]) == (recipe, numbers)
    if network:  # else the pretrained network's
        assert network == (options.variant or config.spec.resnet_size)
        if not line:  # each choice is printed with its flag, and nothing is downloaded unasked
            assert all(f'--{flag}={value} ' in caplog.text for flag, value in chosen.items())
            assert '--pretrained_model_checkpoint_path=' in caplog.text
    assert views.crop == ('pad' if recipe == 'small' else 'torch')


@pytest.mark.parametrize(
    'train,test,line,expected',  # --epochs_between_evals
    [
        (1000, 1999, '', 1),
        (1000, 3000, '', 3),
        (1000, 10_000, '', 6),  # ten evaluations in 67 epochs
        (1000, 10_000, '--train_epochs=25', 2),
        (1000, 10_000, '--epochs_between_evals=1', 1),
        (1000, 10_000, '--num_train_images=10000', 6),
    ],
)
def test_many_test_images_are_evaluated_less_often(monkeypatch, train, test, line, expected):
    listed = image_folder.Listing(('a', 'b'), {'train': [('x', 0)] * train, 'test': [('y', 0)] * test}, {}, 'test')
    monkeypatch.setattr(image_folder, 'list_files', lambda *args: listed)
    monkeypatch.setattr(own_images, 'median_side', lambda paths: 32)
    values, row = flags.define(image_folder_main.PROGRAM), image_folder_main.PROGRAM
    values(['main.py', '--image_folder=x', '--cache_dir=none', *line.split()])
    chosen = own_images.choose(values, row, flags.resolve(values, row)[0])
    assert flags.resolve(values, row, chosen)[0].epochs_between_evals == expected


@pytest.mark.parametrize('side,line', [(32, ''), (375, ''), (32, '-pmcp x/resnet20'), (375, '-pmcp resnet34 -bs 9')])
def test_local_workers_are_told_what_was_chosen(monkeypatch, side, line):
    """By flags that describe the same training, although a worker chooses nothing."""
    listed = image_folder.Listing(('a', 'b'), {'train': [('x.png', 0)] * 146, 'test': []}, {}, '')
    monkeypatch.setattr(image_folder, 'list_files', lambda *args: listed)
    monkeypatch.setattr(own_images, 'median_side', lambda paths: side)
    monkeypatch.setattr(own_images, 'input_side', lambda pretrained: side if pretrained else None)
    found = []
    monkeypatch.setattr(
        train_program, '_run', lambda values, config, options, row, argv: found.append((config, options, argv)) or 0
    )
    row = image_folder_main.PROGRAM
    argv = ['main.py', '--image_folder=x', '--cache_dir=none', *line.split()]
    for _ in range(2):  # the second time as a worker, which gets the flags of the first
        assert train_program.main(argv, '', row) == 0
        argv = found[-1][2]
    (config, options, argv), (of_worker, its_options, again) = found
    assert again == argv and of_worker == config
    assert (its_options.recipe, its_options.variant or None) == (options.recipe, options.variant or None)


@pytest.mark.parametrize(
    'num_images,batch_size,reason',
    [(7, 7, 'all images'), (63, 8, 'a batch has at least 8 images'), (64, 8, 'at least 8 batches')],
)
def test_what_is_printed_is_true_of_few_images_and_of_the_cache(
    tmp_path, monkeypatch, caplog, num_images, batch_size, reason
):
    """A network for CIFAR, whose input has 32 pixels, is not offered for photographs."""
    listed = image_folder.Listing(('a', 'b'), {'train': [('x.png', 0)] * num_images, 'test': []}, {}, '')
    monkeypatch.setattr(image_folder, 'list_files', lambda *args: listed)
    monkeypatch.setattr(own_images, 'median_side', lambda paths: 375)
    row, offers = image_folder_main.PROGRAM, []
    for name in ('akamaster/resnet20', 'torchvision/resnet34_v1'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f'{name.partition("/")[2]}.keras').touch()
        values = flags.define(row)
        values(['main.py', '--image_folder=x', f'--cache_dir={tmp_path}'])
        with caplog.at_level('INFO'):
            own_images.choose(values, row, flags.resolve(values, row)[0])
        assert f'--batch_size={batch_size} ' in caplog.text
        assert reason in next(line for line in caplog.text.splitlines() if '--batch_size=' in line)
        offers.append(' '.join(caplog.messages))
        assert max(map(len, caplog.messages)) <= 80
        caplog.clear()
    assert 'resnet18 downloads' in offers[0] and 'torchvision/resnet34_v1' in offers[1] and 'cache' in offers[1]


@pytest.mark.parametrize(
    'side,is_stored,line,is_offered',
    [(32, False, '', True), (375, False, '', True), (32, True, '', False), (32, True, '--clean', True)],
)
def test_trained_weights_are_offered_to_a_new_run_only(
    tmp_path, monkeypatch, caplog, side, is_stored, line, is_offered
):
    listed = image_folder.Listing(('a', 'b'), {'train': [('x.png', 0)] * 146, 'test': []}, {}, '')
    monkeypatch.setattr(image_folder, 'list_files', lambda *args: listed)
    monkeypatch.setattr(own_images, 'median_side', lambda paths: side)
    if is_stored:
        write_run(tmp_path)
    values, row = flags.define(image_folder_main.PROGRAM), image_folder_main.PROGRAM
    values(['main.py', '--image_folder=x', '--cache_dir=none', f'--model_dir={tmp_path}', *line.split()])
    with caplog.at_level('INFO'):
        own_images.choose(values, row, flags.resolve(values, row)[0])
    assert ('--pretrained_model_checkpoint_path=' in caplog.text) == is_offered
    assert ('.keras file' in ' '.join(caplog.messages)) == (is_offered and side == 32)  # what NET stands for


def test_the_size_of_images_is_the_median_of_their_shorter_sides(tmp_path):
    for i, size in enumerate([(20, 90), (50, 30), (300, 200)]):
        Image.new('RGB', size).save(tmp_path / f'{i}.png')
    (tmp_path / '3.jpg').write_text('no image')
    assert own_images.median_side(sorted(tmp_path.iterdir())) == 30
    assert own_images.median_side([tmp_path / '3.jpg']) == 0
    os.mkfifo(tmp_path / '4.png')  # whose reader would wait
    assert own_images.median_side(sorted(tmp_path.iterdir())) == 30


# --- two stages ----------------------------------------------------------------------------------------------


def write_run(folder, **config):
    (folder / 'checkpoints').mkdir(parents=True)
    (folder / 'checkpoints' / 'step-000000001.npz').touch()
    (folder / 'config.json').write_text(json.dumps({'config': {'spec': {}, 'dataset': 'folder:/x'} | config}))


@pytest.fixture
def train_stages(tmp_path, monkeypatch):
    """Return a function that runs the stages of tmp_path/run, and returns [arguments of each that trains]."""
    monkeypatch.setattr(train_program, 'find_data', lambda *args: None)
    monkeypatch.setattr(network_files, 'require_weights', lambda path: None)

    def run(*args):
        row, found = cifar10_main.PROGRAM, []
        values = flags.define(row)
        model_dir = [f'--model_dir={tmp_path}/run']
        network = ['--pretrained_model_checkpoint_path=./net', '--transfer=head,all']
        values(['main.py', '--image_folder=/x', *network, *model_dir, *args])
        assert stages.run('main.py', values, row, lambda values, arguments: found.append(arguments) or 0) == 0
        return found

    return run


SECOND = {'transfer': 'all', 'head': 'keep'}


@pytest.mark.parametrize(
    'stored,trained',  # config of the run in model_dir; stages that train, 0 if it is refused
    [
        (None, 2),
        (SECOND | {'pretrained': '{run}_head'}, 1),
        (SECOND | {'pretrained': '/moved'}, 1),
        (SECOND | {'pretrained': '{run}'}, 0),
        ({'transfer': 'all', 'head': 'replace', 'pretrained': '{run}_head'}, 0),
        ({'transfer': 'all', 'head': 'replace', 'pretrained': ''}, 0),
        ({}, 0),
    ],
)
def test_the_first_stage_is_left_out_if_the_second_continues_it(train_stages, tmp_path, stored, trained):
    run = tmp_path / 'run'
    write_run(tmp_path / 'run_head', transfer='head')
    if stored is not None:
        write_run(run, **{name: text.format(run=run) for name, text in stored.items()})
    if trained:
        assert len(train_stages()) == trained
    else:
        with pytest.raises(UserError, match=f'--model_dir={run} holds another run; .*--clean'):
            train_stages()


@pytest.mark.parametrize(
    'head,second,is_refused',  # config in the folder of the first stage, and in model_dir
    [
        (None, None, False),
        ({'transfer': 'head'}, None, False),
        ({'transfer': 'head', 'dataset': 'folder:/y'}, {'pretrained': '{head}'} | SECOND, False),
        ({'transfer': 'head', 'dataset': 'folder:/y'}, None, True),
        ({'transfer': 'head', 'dataset': 'folder:/y'}, {}, True),
        ({'transfer': 'all'}, None, True),
    ],
)
def test_clean_deletes_both_stages_before_the_first_but_no_other_run(train_stages, tmp_path, head, second, is_refused):
    folders = {tmp_path / 'run_head': head, tmp_path / 'run': second}
    for folder, config in folders.items():
        if config is not None:
            write_run(folder, **{name: text.format(head=tmp_path / 'run_head') for name, text in config.items()})
            (folder / 'notes.txt').touch()
    if is_refused:
        with pytest.raises(UserError, match=f'--clean: {tmp_path}/run_head .*pass another'):
            train_stages('--clean')
    else:
        assert ['--clean' in line or '--noclean' not in line for line in train_stages('--clean')] == [False, False]
    for folder, config in folders.items():
        assert (folder / 'config.json').exists() == (config is not None and is_refused)
        assert (folder / 'notes.txt').exists() == (config is not None)


def test_the_folder_of_the_first_stage_is_beside_model_dir_and_apart_from_the_images(tmp_path, monkeypatch):
    (tmp_path / 'run').mkdir()
    monkeypatch.chdir(tmp_path / 'run')

    def parse(*args):
        values = flags.define(cifar10_main.PROGRAM)
        values(['main.py', *args])
        return values

    for text in ('.', '../run', '../run/', str(tmp_path / 'run')):
        found = places.model_dirs(parse(f'--model_dir={text}', '--transfer=head,all'))
        assert [*found.values()] == [tmp_path / 'run', tmp_path / 'run_head']
    for name in ('run_head', 'split/train', 'split/val', 'split/model'):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / 'split', tmp_path / 'link')
    images = f'--image_folder={tmp_path}'
    with pytest.raises(UserError, match=f'{tmp_path}/run_head, the folder of the first stage, is in'):
        places.require_apart(parse(f'{images}/run_head', '--model_dir=../run', '--transfer=head,all'))
    with pytest.raises(UserError, match=r'link/train/m is in'):
        places.require_apart(parse(f'{images}/split', f'--model_dir={tmp_path}/link/train/m'))
    places.require_apart(parse(f'{images}/split', f'--model_dir={tmp_path}/split/model'))  # beside train and val
