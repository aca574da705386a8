"""Named sets of hyperparameters for ImageNet; see recipes."""

# Shared by fb, which gives the sources, and fast.
_TORCH = {
    'shortcut': 'B',
    'initializer': 'he',
    'bn_momentum': 0.9,
    'stem_pool': 'pad1',
    'zero_gamma': True,
    'background_class': False,
    'batch_size': 256,
    'nesterov': True,
    'min_crop_area': 0.08,
    'use_boxes': False,
    'crop_sampler': 'torch',
    'input_normalization': 'torch',
}
IMAGENET = {
    # official/resnet since September 2018 (imagenet_main.py): 76.5 top-1 with ResNet-50 in fp32; its regression test
    # allows 76.3 to 76.6. 0.128 per 256 images; its "version 1" is our 1.5, and a batch of 32 is its flag's default.
    'official': {
        'resnet_size': 50,
        'resnet_version': '1.5',
        'shortcut': 'group',
        'initializer': 'official',
        'stem_pool': 'same',
        'background_class': True,
        'train_epochs': 90,
        'batch_size': 32,
        'base_learning_rate': 0.128 / 2,
        'lr_boundaries': (30, 60, 80, 90),
        'lr_factors': (1, 0.1, 0.01, 0.001, 1e-4),
        'warmup_epochs': 5.0,
        'weight_decay': 1e-4,
        'decay': 'no_batch_norm',
        'input_normalization': 'official',
    },
    # 1706.02677 Sec. 5.1, "Accurate, large minibatch SGD": 0.1 per 256 images, 5 epochs of warm-up, drops at 30, 60
    # and 80 of 90, Nesterov, no decay of BN, the last gamma of a block is 0; ResNet-50 has 23.6 % top-1 error with
    # batches of 256 and 23.7 % with 8192. Crops as in fb.resnet.torch: 8 % to 100 % of the area, no boxes.
    'fb': {
        **_TORCH,
        'base_learning_rate': 0.1 / 2,
        'lr_boundaries': (30, 60, 80),
        'lr_factors': (1, 0.1, 0.01, 0.001),
        'resize': 'antialias',
    },
    # Our own, after libffcv/ffcv-imagenet (rn50_16_epochs.yaml: 16 epochs at 160 to 192 pixels, evaluated at
    # 256, label smoothing 0.1): small images in training, larger ones in evaluation (1906.06423).
    'fast': {
        **_TORCH,
        'train_epochs': 16,
        'base_learning_rate': 0.2,
        'lr_schedule': 'one_cycle',
        'warmup_epochs': 0.0,
        'decay': 'kernels',
        'image_size': 160,
        'eval_image_size': 224,
        'label_smoothing': 0.1,
        'dtype': 'auto',
    },
}
# What --fine_tune changes of official, as in official/resnet: 0.1 per 256 images, and no warm-up.
FINE_TUNE = {'base_learning_rate': 0.1 / 2, 'warmup_epochs': 0.0}
