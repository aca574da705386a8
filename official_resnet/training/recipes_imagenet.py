"""Named sets of hyperparameters for ImageNet; see recipes. docs/imagenet.md says when to choose which."""

from official_resnet.training.recipes import ONE_CYCLE

# Shared by all but official: torchvision's ResNet-50 v1.5 and its crops of 8 % to 100 % of the area, without boxes.
_TORCH = {
    'shortcut': 'B',
    'initializer': 'he',
    'bn_momentum': 0.9,  # torch calls it 0.1
    'stem_pool': 'pad1',
    'background_class': False,
    'min_crop_area': 0.08,
    'use_boxes': False,
    'crop_sampler': 'torch',
    'input_normalization': 'torch',
}
# Shared by fb, which gives the sources, and fast.
_FB = _TORCH | {'zero_gamma': True, 'batch_size': 256, 'nesterov': True}
# 2110.00476 Table 2, and timm where that says nothing: first and last rate (its defaults of 2021), threshold, the last
# gamma of a block is 0, biases and batch norms do not decay, gradients are clipped to the norm 1 by LAMB itself. Here
# rates change by the step, not by the epoch, without the ten epochs at the last rate that timm adds. All resizes are
# bicubic; timm also draws the bilinear one in training, unless --train-interpolation says otherwise.
_TIMM = _TORCH | {
    'zero_gamma': True,
    'batch_size': 2048,
    'optimizer': 'lamb',
    'base_learning_rate': 5e-3,
    'lr_schedule': 'cosine',
    'warmup_epochs': 5.0,
    'lr_start_factor': 1e-4 / 5e-3,
    'lr_end_factor': 1e-6 / 5e-3,
    'weight_decay': 0.02,
    'decay': 'kernels',
    'loss': 'sigmoid',
    'target_threshold': 0.2,
    'auto_augment': 'rand-m7-mstd0.5-inc1',
    'mixup': 0.1,
    'cutmix': 1.0,
    'repeated_augmentation': 3,
    'stochastic_depth': 0.05,
    'resize': 'bicubic',
    'eval_resize': 235,  # test crop ratio 0.95: 224 / 0.95, rounded down as timm does
    'dtype': 'auto',
}
# The recipes mild and medium of github.com/mosaicml/examples, resnet_imagenet/main.py and yamls/resnet50.yaml. All
# weights decay, since DecoupledSGDW gets all of them. Their code draws the first gammas from 0..1, and resizes batches
# by the nearest pixel, in steps of 4 pixels; here the crops themselves are smaller, in steps of 32.
_MOSAIC = _TORCH | {
    'batch_size': 2048,
    'base_learning_rate': 2.048 * 128 / 2048,
    'momentum': 0.875,
    'lr_schedule': 'cosine',
    'lr_after_warmup': True,
    'warmup_epochs': 8.0,
    'weight_decay': 5e-4,
    'decay': 'all',
    'decay_form': 'decoupled',
    'loss': 'sigmoid_sum',
    'blur_pool': 'all',
    'weight_averaging': 'ema',
    'average_decay': 0.5 ** (1 / 100),  # half-life of 100 batches
    'average_every': 20,
    'average_warmup': False,
    'image_size': 176,
    'first_image_size': 88,  # initial scale 0.5
    'size_ramp': (0.4, 0.8),  # delayed by 0.4 of the training; the last 0.2 has whole images
    'eval_image_size': 224,
    'eval_resize': 232,
    'resize': 'antialias',
    'dtype': 'auto',
}


def _ffcv(epochs: int, first: int, last: int) -> dict:
    """Return a recipe of github.com/libffcv/ffcv-imagenet, rn50_configs/rn50_*_epochs.yaml.

    Its batches are of 512 images on each of 8 devices, and 1.7 is the rate for all. The rate peaks at epoch 2. Images
    grow between epochs `first` and `last`. There, the batch norms of shortcuts decay, because a name without 'bn' does,
    and images were stored with up to 500 pixels, half of them as JPEGs of quality 90. Its README says 224 pixels in
    evaluation; the files, followed here, say 256, cropped from 293 (ratio 224 / 256).
    """
    return _TORCH | {
        'train_epochs': epochs,
        'batch_size': 4096,
        'base_learning_rate': 1.7 * 128 / 4096,
        'lr_schedule': 'one_cycle',
        'lr_peak': 2 / epochs,
        'lr_start_factor': 1e-4,
        'warmup_epochs': 0.0,
        'weight_decay': 1e-4,
        'decay': 'no_batch_norm',
        'label_smoothing': 0.1,
        'blur_pool': 'convolutions',
        'image_size': 192,
        'first_image_size': 160,
        'size_ramp': (first / epochs, last / epochs),
        'eval_image_size': 256,
        'test_views': 'flip',
        'resize': 'antialias',
        'dtype': 'auto',
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
        **_FB,
        'base_learning_rate': 0.1 / 2,
        'lr_boundaries': (30, 60, 80),
        'lr_factors': (1, 0.1, 0.01, 0.001),
        'resize': 'antialias',
    },
    # This project's, after libffcv/ffcv-imagenet (rn50_16_epochs.yaml: 16 epochs at 160 to 192 pixels, evaluated at
    # 256, label smoothing 0.1): small images in training, larger ones in evaluation (1906.06423).
    'fast': {
        **_FB,
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
    # Published: 73.8, 77.2 and 78.4 (its README).
    'ffcv_16': _ffcv(16, 11, 13),
    'ffcv_40': _ffcv(40, 29, 34),
    'ffcv_88': _ffcv(88, 65, 76),
    # Published: 76.6 in 32.4 epochs (composer, docs/source/tutorials/train_resnet50_on_aws.md: 0.36 of the 90 in
    # mosaicml/examples, blogs/resnet/recipes/resnet50_mild.yaml). The 36 epochs are those of resnet50.yaml.
    'mosaic_mild': _MOSAIC | {'train_epochs': 36, 'label_smoothing': 0.08},
    # Published: 78.1 to 79.5 with 60 to 240 epochs. Without its SAM (2010.01412) in every tenth step.
    'mosaic_medium': _MOSAIC | {'train_epochs': 135, 'label_smoothing': 0.1, 'mixup': 0.2},
    # Published: 78.1.
    'a3': _TIMM
    | {
        'train_epochs': 100,
        'base_learning_rate': 8e-3,
        'lr_start_factor': 1e-4 / 8e-3,
        'lr_end_factor': 1e-6 / 8e-3,
        'auto_augment': 'rand-m6-mstd0.5-inc1',
        'repeated_augmentation': 1,
        'stochastic_depth': 0.0,
        'image_size': 160,
        'eval_image_size': 224,
    },
    # Published: 79.8.
    'a2': _TIMM | {'train_epochs': 300},
    # Published: 80.4. As in timm, the threshold follows the label smoothing, which then has no effect.
    'a1': _TIMM | {'train_epochs': 600, 'weight_decay': 0.01, 'label_smoothing': 0.1, 'mixup': 0.2},
    # The weights IMAGENET1K_V2 of torchvision (references/classification, pytorch/vision issue 3995): 80.86. 0.5 for
    # 8 devices with 128 images each. --norm-weight-decay=0 leaves out batch norms, not the bias of the last layer. Its
    # average is a copy of the weights while the rate warms up; ours has the warm-up of --average_warmup instead.
    'torchvision_v2': _TORCH
    | {
        'train_epochs': 600,
        'batch_size': 1024,
        'base_learning_rate': 0.5 * 128 / 1024,
        'lr_schedule': 'cosine',
        'lr_after_warmup': True,
        'warmup_epochs': 5.0,
        'lr_start_factor': 0.01,
        'weight_decay': 2e-5,
        'decay': 'no_batch_norm',
        'label_smoothing': 0.1,
        'mixup': 0.2,
        'cutmix': 1.0,
        'auto_augment': 'trivial_wide',
        'random_erasing': 0.1,
        'repeated_augmentation': 4,
        'weight_averaging': 'ema',
        # 1 - 0.99998 times batch * 32 / epochs for 32 steps, as train.py rescales it
        'average_decay': (1 - (1 - 0.99998) * 1024 * 32 / 600) ** (1 / 32),
        'average_every': 32,
        'image_size': 176,
        'eval_image_size': 224,
        'eval_resize': 232,
        'resize': 'antialias',
    },
}
# What --fine_tune changes of official, as in official/resnet: 0.1 per 256 images, and no warm-up.
FINE_TUNE = {'base_learning_rate': 0.1 / 2, 'warmup_epochs': 0.0}

# classic_fast of recipes.CIFAR for small images in files, which image_folder_main streams: crops are only shifted.
SMALL_IMAGES = {
    'variant': 'resnet20_v1',
    'initializer': 'he',
    'bn_momentum': 0.9,
    'background_class': False,
    'train_epochs': 20,
    'batch_size': 128,
    'base_learning_rate': 0.4,
    **ONE_CYCLE,
    'warmup_epochs': 0.0,
    'label_smoothing': 0.1,
    'input_normalization': 'cifar10',
    'image_size': 32,
    'eval_image_size': 32,
    'eval_resize': 32,
    'crop_sampler': 'pad',
    'use_boxes': False,
    'resize': 'antialias',
    'dtype': 'auto',
}
