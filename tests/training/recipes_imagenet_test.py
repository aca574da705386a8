"""The recipes for ImageNet have the numbers of their sources, in the sources' units, and train on real images."""

import math

import numpy as np
import pytest
from fixtures import programs
from fixtures.imagenet_shards import write_sample
from fixtures.tiny_training import metrics

from official_resnet import imagenet_main
from official_resnet.command_line import flags
from official_resnet.training import optimizers, recipes_imagenet

NUM_IMAGES = 1_281_167
RSB = {  # arXiv:2110.00476 Table 2, where A1 to A3 agree, and timm
    'batch_size': 2048,
    'optimizer': 'lamb',
    'decay': 'kernels',  # --no-weight-decay of 1-D weights
    'loss': 'sigmoid',  # --bce-loss
    'target_threshold': 0.2,  # --bce-target-thresh
    'mixup': 0.1,
    'cutmix': 1.0,
    'label_smoothing': 0.0,
    'repeats': 3,  # --aug-repeats
    'stochastic_depth': 0.05,  # --drop-path
    'size': 224,
    'test_size': 224,
    'test_resize': 235,  # --crop-pct 0.95: floor(224 / 0.95)
    'resize': 'bicubic',
    'zero_gamma': True,
    'policy': 'rand-m7-mstd0.5-inc1',  # --aa
}
MOSAIC = {  # mosaicml/examples, resnet_imagenet: yamls/resnet50.yaml, and main.py for mild and medium
    'batch_size': 2048,
    'rate': 2.048,
    'momentum': 0.875,
    'nesterov': False,
    'weight_decay': 5e-4,
    'decay_form': 'decoupled',
    'decay': 'all',
    'loss': 'sigmoid_sum',  # binary_cross_entropy_with_logits of composer adds up the classes
    'blur_pool': 'all',
    'kept_by_an_update': 2 ** -(20 / 100),  # EMA(half_life='100ba', update_interval='20ba')
    'average_every': 20,
    'average_warmup': False,
    'first_size': 88,  # initial_scale=0.5
    'size_ramp': (0.4, 1 - 0.2),  # delay_fraction, finetune_fraction
    'size': 176,
    'test_size': 224,
    'test_resize': 232,
    'cutmix': 0.0,
}
FFCV = {  # libffcv/ffcv-imagenet: rn50_configs/*.yaml
    'batch_size': 512 * 8,
    'rate': 1.7,
    'momentum': 0.9,
    'nesterov': False,
    'weight_decay': 1e-4,
    'decay': 'no_batch_norm',  # bn_wd: 0
    'loss': 'softmax',
    'label_smoothing': 0.1,
    'blur_pool': 'convolutions',
    'first_size': 160,
    'size': 192,
    'test_size': 256,
    'shorter_side': round(256 / (224 / 256)),
    'test_views': 'flip',  # lr_tta
    'mixup': 0.0,
}
TORCHVISION = {  # references/classification: --opt sgd and --lr 0.5 with 8 devices of 128 images
    'train_epochs': 600,
    'batch_size': 1024,
    'rate': 0.5,
    'momentum': 0.9,
    'nesterov': False,
    'weight_decay': 2e-5,
    'decay': 'no_batch_norm',  # --norm-weight-decay 0
    'loss': 'softmax',
    'label_smoothing': 0.1,
    'mixup': 0.2,
    'cutmix': 1.0,
    'mix_switch': 0.5,  # RandomChoice
    'policy': 'trivial_wide',
    'erasing': 0.1,
    'repeats': 4,  # --ra-reps
    'kept_by_an_update': 1 - (1 - 0.99998) * 8 * 128 * 32 / 600,  # --model-ema-decay, as train.py adjusts it
    'average_every': 32,
    'size': 176,
    'test_size': 224,
    'test_resize': 232,
    'resize': 'antialias',
    'zero_gamma': False,
}
A3 = {'rate': 8e-3, 'size': 160, 'repeats': 1, 'stochastic_depth': 0.0, 'policy': 'rand-m6-mstd0.5-inc1'}
SOURCES = {
    'a1': RSB | {'train_epochs': 600, 'rate': 5e-3, 'weight_decay': 0.01, 'mixup': 0.2} | {'label_smoothing': 0.1},
    'a2': RSB | {'train_epochs': 300, 'rate': 5e-3, 'weight_decay': 0.02},
    'a3': RSB | {'train_epochs': 100, 'weight_decay': 0.02} | A3,
    'mosaic_mild': MOSAIC | {'train_epochs': 36, 'label_smoothing': 0.08, 'mixup': 0.0},
    'mosaic_medium': MOSAIC | {'train_epochs': 135, 'label_smoothing': 0.1, 'mixup': 0.2},
    'ffcv_16': FFCV | {'train_epochs': 16},
    'ffcv_40': FFCV | {'train_epochs': 40},
    'ffcv_88': FFCV | {'train_epochs': 88},
    'torchvision_v2': TORCHVISION,
}
# Of all of them: torchvision's or timm's ResNet-50, whose batch norms have the momentum 0.1 in torch.
NETWORK = {'resnet_size': 50, 'version': '1.5', 'shortcut': 'B', 'bn_momentum': 0.9, 'stem_pool': 'pad1'}
INPUT = {'min_area': 0.08, 'crop': 'torch', 'use_boxes': False, 'background': False}


def resolve(line):
    values = flags.define(imagenet_main.PROGRAM)
    values(['main.py', *line.split()])
    return flags.resolve(values, imagenet_main.PROGRAM)[0]


def numbers_of(config):
    """Return {name: value} of the fields of a config and of its parts, and what follows from several."""
    found = {'rate': config.learning_rate, 'shorter_side': config.views.shorter_side}
    found['resnet_size'] = config.spec.resnet_size
    found['kept_by_an_update'] = (config.average_decay or 0) ** (config.average_every or 1)
    for part in (config.schedule, config.views, config.spec, config.augmentation, config):
        found |= vars(part)
    return found


@pytest.mark.parametrize('name', SOURCES)
def test_a_recipe_has_the_numbers_of_its_source(name):
    numbers = numbers_of(resolve(f'--recipe={name}'))
    for field, value in (SOURCES[name] | NETWORK | INPUT).items():
        assert numbers[field] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), field


def timm_rate(epoch, num_epochs, peak):
    """CosineLRScheduler(lr_min=1e-6, warmup_lr_init=1e-4, warmup_t=5), whose cosine begins at epoch 0."""
    if epoch < 5:
        return 1e-4 + (peak - 1e-4) * epoch / 5
    return 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2


def warm_cosine(epoch, num_epochs, peak, warmup, start):
    """SequentialLR of LinearLR and CosineAnnealingLR, and composer's schedule: the cosine follows the warm-up."""
    if epoch < warmup:
        return peak * (start + (1 - start) * epoch / warmup)
    return peak * (1 + math.cos(math.pi * (epoch - warmup) / (num_epochs - warmup))) / 2


def source_rate(name, epoch, num_epochs):
    if name.startswith('ffcv'):  # get_cyclic_lr
        return np.interp(epoch, [0, 2, num_epochs], [1.7e-4, 1.7, 0])
    if name.startswith('a'):
        return timm_rate(epoch, num_epochs, SOURCES[name]['rate'])
    numbers = (8, 0.0) if name.startswith('mosaic') else (5, 0.01)
    return warm_cosine(epoch, num_epochs, SOURCES[name]['rate'], *numbers)


@pytest.mark.parametrize('name', SOURCES)
def test_the_rate_of_a_recipe_is_that_of_its_source(name):
    config = resolve(f'--recipe={name}')
    per_epoch, epochs = NUM_IMAGES / config.batch_size, config.train_epochs
    total = int(epochs * per_epoch)
    rate = optimizers.make_schedule(config.schedule, config.learning_rate, per_epoch, total)
    # timm rises to the peak and begins the cosine then, which is 0.6 % lower in a3; ours rises to that rate.
    within = (7e-3 if name == 'a3' else 1e-3) * config.learning_rate
    for epoch in (0, 1, 2, 4, 6, 9, epochs / 2, epochs - 1, epochs):
        step = int(epoch * per_epoch)
        assert float(rate(step)) == pytest.approx(source_rate(name, step / per_epoch, epochs), abs=within), epoch
    assert float(rate(total)) == pytest.approx(1e-6 if name.startswith('a') else 0, abs=1e-6)


@pytest.mark.parametrize('epochs,first,last', [(16, 11, 13), (40, 29, 34), (88, 65, 76)])
def test_images_grow_as_in_ffcv(epochs, first, last):
    """`resolution` of the yaml files: to the nearest multiple of 32, between two epochs (get_resolution)."""
    views = resolve(f'--recipe=ffcv_{epochs}').views
    exact = np.interp(np.arange(epochs), [first, last], [160, 192])
    assert [views.size_in(epoch, epochs) for epoch in range(epochs)] == list(np.round(exact / 32) * 32)


def test_flags_of_the_network_override_a_recipe():
    spec = resolve('--recipe=ffcv_16 --blur_pool=none --stochastic_depth=0.2').spec
    assert (spec.blur_pool, spec.stochastic_depth) == (None, 0.2)
    spec = resolve('--recipe=a2 --blur_pool=all --variant=resnet101_v1.5').spec
    assert (spec.blur_pool, spec.stochastic_depth, spec.resnet_size) == ('all', 0.05, 101)
    assert resolve('--recipe=ffcv_16 --blur_pool=none --variant=resnet18_v1').spec.blur_pool is None


@pytest.fixture(scope='module')
def sample_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sample')
    return folder, len(write_sample(folder))


@pytest.mark.slow  # 10 s each
@pytest.mark.parametrize('name', recipes_imagenet.IMAGENET)
def test_a_recipe_trains_on_real_images(sample_dir, tmp_path, name):
    """An epoch of at least 20 steps on the images of ilsvrc.sample, with a ResNet-18 of 64 pixels; then evaluation."""
    folder, num_images = sample_dir
    command = f'--recipe={name} --data_dir {folder} --model_dir {tmp_path}'
    sizes = '--image_size=64 --eval_image_size=72 -bs 5 -rs 18 -te 1'
    if recipes_imagenet.IMAGENET[name].get('first_image_size'):
        sizes += ' --first_image_size=32 --size_ramp=0,0'
    if recipes_imagenet.IMAGENET[name].get('eval_resize'):
        sizes += ' --eval_resize=80'
    out = programs.succeed(f'imagenet_main {command} {sizes}')
    train, test = metrics(tmp_path)
    assert train['step'] == test['step'] == num_images // 5 >= 20 and f'{tmp_path}/model.keras' in out
    assert math.isfinite(train['loss']) and math.isfinite(test['loss'])
    evaluated = programs.succeed(f'imagenet_main --eval_only {command} {sizes}')
    assert f'test loss {test["loss"]:.4f}, top-1 {test["accuracy"]:.4f}' in evaluated
