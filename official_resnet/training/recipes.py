"""Named sets of hyperparameters for CIFAR-10 and CIFAR-100, by the names of their flags, with their sources.

The first recipe of a table is the default. It lists the changes from the defaults of the fields (config.py), and the
others list their changes from the first. Learning rates of SGD are for 128 images, and those of other optimizers are
used as they are. Boundaries are epochs. See recipes_mnist and recipes_imagenet for the other programs.
"""

# Shared by the quick recipes, also those for MNIST.
ONE_CYCLE = {'lr_schedule': 'one_cycle', 'nesterov': True, 'weight_decay': 5e-4, 'decay': 'kernels'}
CIFAR = {
    # official/resnet since September 2018 (cifar10_main.py): 93.12 +- 0.2 over 5 runs on CIFAR-10. All weights decay.
    'official': {
        'resnet_size': 56,
        'shortcut': 'group',
        'initializer': 'official',
        'epochs_between_evals': 10,
        'lr_boundaries': (91, 136, 182),  # the third is step 71,093 of 128 images, after the last: 182 x 390 = 70,980
        'lr_factors': (1, 0.1, 0.01, 0.001),
    },
    # 1512.03385 Sec. 4.2: option A, 64k iterations of 128, drops at 32k and 48k. Its ResNet-110 needs
    # --warmup_epochs=1 ("0.01 to warm up until the training error is below 80 %, about 400 iterations").
    'paper': {
        'shortcut': 'A',
        'initializer': 'he',
        'bn_momentum': 0.9,
        'train_epochs': 165,
        'max_train_steps': 64000,
        'epochs_between_evals': 1,
        'lr_boundaries': (81.92, 122.88),  # steps 32,000 and 48,000 of 128 images: 390.625 steps for 50,000 images
        'lr_factors': (1, 0.1, 0.01),
        'weight_decay': 1e-4,
    },
    # airbench94_muon (github.com/KellerJordan/cifar10-airbench, arXiv:2404.00498) with shortcuts. Its rates are for the
    # sum of the losses of 2000 images and for logits divided by 256, ours for their mean and for logits as they are.
    'fast': {
        'variant': 'resnet8_pooled',
        'initializer': 'dirac',
        'bn_momentum': 0.6,
        'train_epochs': 8,
        'epochs_between_evals': 2,
        'batch_size': 2000,
        'optimizer': 'muon',
        'base_learning_rate': 0.24,  # of the kernels of convolutions
        'bias_learning_rate_factor': 0.053 * 2000 / 0.24,
        'head_learning_rate_factor': 0.67 * 2000 / 256**2 / 0.24,
        'muon_momentum': 0.6,
        'momentum': 0.85,  # of all other weights
        'lr_schedule': 'one_cycle',
        'lr_peak': 0.0,
        'lr_start_factor': 1.0,
        'weight_decay': 2e-6 * 2000 / 0.24,  # times the rate, this is 2e-6 an image for biases and head alike
        'label_smoothing': 0.2,
        'crop_pad': 2,
        'pad_mode': 'reflect',
        'alternating_flip': True,
        'input_normalization': 'cifar10',
        'test_views': 'flip',
        'dtype': 'auto',
    },
    # One cycle (after 1708.07120) of an eighth of the epochs, on a smaller network. It was fast until November 2026.
    'classic_fast': {
        'resnet_size': 20,
        'shortcut': 'A',
        'initializer': 'he',
        'bn_momentum': 0.9,
        'train_epochs': 20,
        'epochs_between_evals': 1,
        'base_learning_rate': 0.4,
        **ONE_CYCLE,
        'label_smoothing': 0.1,
        'dtype': 'auto',  # bf16 where the device supports it
    },
    'demo': {
        'use_synthetic_data': True,
        'resnet_size': 8,
        'shortcut': 'A',
        'initializer': 'he',
        'bn_momentum': 0.9,
        'train_epochs': 6,
        'epochs_between_evals': 1,
        'base_learning_rate': 0.2,
        **ONE_CYCLE,
    },
}
# Not yet measured. The network, 45 epochs, crops of 4 pixels and cutout of 12 come from airbench96 (arXiv:2404.00498,
# 96.03 %), which also leaves out images that a small network finds easy. The cosine is ours, the rest comes from fast.
CIFAR['record'] = CIFAR['fast'] | {
    'variant': 'resnet11_pooled',
    'train_epochs': 45,
    'head_learning_rate_factor': 0.67 * 2000 / 512**2 / 0.24,  # logits divided by 512
    'lr_schedule': 'cosine',
    'crop_pad': 4,
    'cutout': 12,
}
