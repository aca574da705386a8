"""Named sets of hyperparameters for MNIST and Fashion-MNIST; see recipes."""

from official_resnet.training.recipes import ONE_CYCLE

_QUICK = ONE_CYCLE | {'batch_size': 128, 'optimizer': 'momentum', 'dtype': 'auto'}
MNIST = {
    # The PyTorch program that this network comes from (docs/mnist.md): "epochs 100, batch 32, lr 0.001", Pad(4), flips
    # (although a mirrored digit is a different digit, or none), RandomCrop(32), no weight decay. It names no optimizer;
    # Adam is the one in its template (yunjey/pytorch-tutorial, deep_residual_network), without the template's decay of
    # the rate. BN as in torch: our momentum 0.9 is its "0.1".
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
    # This project's own: CIFAR's fast, but half as long since these images are easier, and without mirrored digits.
    'fast': {
        'train_epochs': 10,
        'base_learning_rate': 0.4,
        **_QUICK,
        'flip': False,
        'label_smoothing': 0.1,
    },
    # No download: synthetic images, which keep their class when they are mirrored.
    'demo': {
        'use_synthetic_data': True,
        'train_epochs': 4,
        'base_learning_rate': 0.2,
        **_QUICK,
    },
}
FASHION_MNIST = MNIST | {'fast': MNIST['fast'] | {'flip': True}}  # a mirrored shirt is a shirt
