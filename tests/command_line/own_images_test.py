"""What the number of images in a folder decides."""

import pytest

from official_resnet import cifar10_main, imagenet_main, mnist_main
from official_resnet.command_line import flags, own_images
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
