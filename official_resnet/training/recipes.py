"""Named sets of hyperparameters, by the names of their flags, each number with its source.

Pure data, so that the programs can print it without TensorFlow. The first of a table is its default and says what it
changes of the defaults of the fields (config.py), which are those of official/resnet on CIFAR; the others say what
they change of the first. Learning rates are per 128 images of batch, Adam's as they are; boundaries are epochs.
"""

CIFAR = {
    # official/resnet since September 2018 (cifar10_main.py): 93.12 +- 0.2 over 5 runs on CIFAR-10. All weights decay,
    # BN and bias included: "it helped", its comment says.
    'official': {
        'resnet_size': 56,
        'shortcut': 'group',
        'epochs_between_evals': 10,
        'lr_boundaries': (91, 136, 182),
        'lr_factors': (1, 0.1, 0.01, 0.001),
    },
    # 1512.03385 Sec. 4.2: option A, 64k iterations of 128, drops at 32k and 48k. Its ResNet-110 needs
    # --warmup_epochs=1 ("0.01 to warm up until the training error is below 80 %, about 400 iterations").
    'paper': {
        'shortcut': 'A',
        'bn_momentum': 0.9,
        'train_epochs': 165,
        'max_train_steps': 64000,
        'epochs_between_evals': 1,
        'lr_boundaries': (81.92, 122.88),  # steps 32,000 and 48,000 of 128 images: 390.625 steps for 50,000 images
        'lr_factors': (1, 0.1, 0.01),
        'weight_decay': 1e-4,
    },
    # One cycle (after 1708.07120): most of the accuracy in an eighth of the time, for a machine without a GPU.
    'fast': {
        'resnet_size': 20,
        'shortcut': 'A',
        'bn_momentum': 0.9,
        'train_epochs': 20,
        'epochs_between_evals': 1,
        'base_learning_rate': 0.4,
        'lr_schedule': 'one_cycle',
        'nesterov': True,
        'weight_decay': 5e-4,
        'decay': 'kernels',
        'label_smoothing': 0.1,
        'dtype': 'auto',  # bf16 where it is
    },
    # Minutes on two cores and no download: synthetic images, a net of 8 layers.
    'demo': {
        'use_synthetic_data': True,
        'resnet_size': 8,
        'shortcut': 'A',
        'bn_momentum': 0.9,
        'train_epochs': 6,
        'epochs_between_evals': 1,
        'base_learning_rate': 0.2,
        'lr_schedule': 'one_cycle',
        'nesterov': True,
        'weight_decay': 5e-4,
        'decay': 'kernels',
    },
}

MNIST = {
    # The PyTorch program of which the net comes: "epochs 100, batch 32, lr 0.001", Pad(4), RandomHorizontalFlip
    # (although a mirrored digit is a different digit, or none), RandomCrop(32), no weight decay. It names no optimizer;
    # Adam is that of its template (yunjey/pytorch-tutorial, deep_residual_network), whose decay of the rate it leaves
    # out. BN as torch has it: 0.9 is its "0.1".
    'documents': {
        'shortcut': 'B',
        'bn_momentum': 0.9,
        'train_epochs': 100,
        'batch_size': 32,
        'optimizer': 'adam',
        'base_learning_rate': 1e-3,
        'lr_schedule': 'constant',
        'weight_decay': 0.0,
    },
    # This project's: CIFAR's fast, half as long since these images are easier, and no mirrored digits.
    'fast': {
        'train_epochs': 10,
        'batch_size': 128,
        'optimizer': 'momentum',
        'base_learning_rate': 0.4,
        'lr_schedule': 'one_cycle',
        'nesterov': True,
        'weight_decay': 5e-4,
        'decay': 'kernels',
        'flip': False,
        'label_smoothing': 0.1,
        'dtype': 'auto',
    },
    # No download: synthetic images, whose class a mirror keeps.
    'demo': {
        'use_synthetic_data': True,
        'train_epochs': 4,
        'batch_size': 128,
        'optimizer': 'momentum',
        'base_learning_rate': 0.2,
        'lr_schedule': 'one_cycle',
        'nesterov': True,
        'weight_decay': 5e-4,
        'decay': 'kernels',
        'dtype': 'auto',
    },
}
FASHION_MNIST = MNIST | {'fast': MNIST['fast'] | {'flip': True}}  # a mirrored shirt is a shirt

IMAGENET = {
    # official/resnet since September 2018 (imagenet_main.py): 76.5 top-1 with ResNet-50 in fp32, 76.3 to 76.6 its
    # regression bounds. 0.128 per 256 images; its "version 1" is 1.5, its batch of 32 is the default of its flag.
    'official': {
        'resnet_size': 50,
        'resnet_version': '1.5',
        'shortcut': 'group',
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
    # and 80 of 90, Nesterov, no decay of BN, last gamma of a block 0; ResNet-50 has 23.6 % top-1 error with batches of
    # 256 and 23.7 % with 8192. Crops of fb.resnet.torch: 8 % to all of the area, no boxes.
    'fb': {
        'shortcut': 'B',
        'bn_momentum': 0.9,
        'stem_pool': 'pad1',
        'zero_gamma': True,
        'background_class': False,
        'batch_size': 256,
        'base_learning_rate': 0.1 / 2,
        'lr_boundaries': (30, 60, 80),
        'lr_factors': (1, 0.1, 0.01, 0.001),
        'nesterov': True,
        'min_crop_area': 0.08,
        'use_boxes': False,
        'resize': 'antialias',
        'input_normalization': 'torch',
    },
    # This project's, after libffcv/ffcv-imagenet (rn50_16_epochs.yaml: 16 epochs at 160 to 192 pixels, evaluated at
    # 256, label smoothing 0.1): small images in training, larger ones in evaluation (1906.06423).
    'fast': {
        'shortcut': 'B',
        'bn_momentum': 0.9,
        'stem_pool': 'pad1',
        'zero_gamma': True,
        'background_class': False,
        'train_epochs': 16,
        'batch_size': 256,
        'base_learning_rate': 0.2,
        'lr_schedule': 'one_cycle',
        'warmup_epochs': 0.0,
        'nesterov': True,
        'decay': 'kernels',
        'image_size': 160,
        'eval_image_size': 224,
        'min_crop_area': 0.08,
        'use_boxes': False,
        'input_normalization': 'torch',
        'label_smoothing': 0.1,
        'dtype': 'auto',
    },
}
