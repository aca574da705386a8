"""Deep residual networks on TensorFlow and Keras 3.

    import official_resnet as resnet

    model = resnet.cifar_resnet(20)            # or imagenet_resnet, mnist_resnet, build_model('resnet50_v1.5', 1000)
    result = resnet.train(resnet.TrainConfig(resnet.ResNetSpec((3, 3, 3)), dataset='synthetic'))
    model, card = resnet.load('model.keras')

These names are imported when they are first used, so importing the package takes almost no time. It sets two
environment variables unless you did: TF_ENABLE_ONEDNN_OPTS=1 (faster kernels) and KERAS_BACKEND=tensorflow.

Where to find things:

    resnet_model      the networks: residual_block, residual_group, resnet
    resnet_spec       ResNetSpec: what distinguishes one network from another
    resnet_variants   the named networks
    resnet_run_loop   the loop: train(), evaluate(), exact resume
    layers            the fused BatchNormalization
    inputs            data sets: from their files to batches
    training          configuration, recipes, steps, optimizers, devices, workers, transfer
    inference         the card beside a network, predictions, export, rewriting for faster inference
    weights           published weights by name: fetched, converted and kept in a cache
    reports           results of evaluations, figures
    command_line      flags and programs
    experiments       degradation, gradient flow, kinds of shortcut, transfer
    files, errors     atomic writes and locks; the exception whose message a user sees as one line
    damage            which exceptions mean that a file is damaged
    checkpoints       the container of a run's state
    *_main            the programs
"""

import importlib
import logging
import os
import sys

if 'tensorflow' not in sys.modules:  # TensorFlow reads the variable when it is imported
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
elif 'TF_ENABLE_ONEDNN_OPTS' not in os.environ:
    from official_resnet.training import devices

    if not devices.uses_onednn():
        logging.getLogger(__name__).warning(
            'TensorFlow was imported before official_resnet, and leaves oneDNN off on this CPU, with which a training '
            'may be almost twice as fast; import official_resnet first, or set TF_ENABLE_ONEDNN_OPTS=1'
        )
if 'keras' not in sys.modules:  # Keras reads the variable when it is imported, and prefers it to ~/.keras/keras.json
    os.environ.setdefault('KERAS_BACKEND', 'tensorflow')

__version__ = '0.1.0'

_HOMES = {
    'resnet_spec': ('ResNetSpec',),
    'resnet_model': ('residual_block', 'residual_group', 'resnet'),
    'resnet_variants': ('VARIANTS', 'build_model', 'cifar_resnet', 'imagenet_resnet', 'mnist_resnet'),
    'training.config': ('TrainConfig', 'MachineConfig', 'Schedule'),
    'errors': ('UserError',),
    'resnet_run_loop': ('train', 'evaluate'),
    'weights.pretrained': ('load',),
    'inference.predict': ('predict',),
    'inference.grad_cam': ('features',),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = list(_HOME_OF)


def require_tensorflow() -> None:
    """Raise UserError if Keras runs on another backend than TensorFlow, or would do so when it is imported."""
    keras = sys.modules.get('keras')
    backend = keras.config.backend() if keras else os.environ.get('KERAS_BACKEND')
    if backend not in (None, '', 'tensorflow'):
        from official_resnet.errors import UserError

        raise UserError(
            f'Keras runs on {backend}, but official_resnet needs TensorFlow; set KERAS_BACKEND=tensorflow before Keras '
            'is imported'
        )


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    require_tensorflow()
    return getattr(importlib.import_module(f'{__name__}.{_HOME_OF[name]}'), name)


def __dir__():
    return sorted({*globals(), *__all__})
