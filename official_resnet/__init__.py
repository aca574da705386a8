"""Deep residual networks on TensorFlow and Keras 3.

Where to find things:

    resnet_model      the networks: residual_block, residual_group, resnet
    resnet_spec       ResNetSpec: what distinguishes one network from another
    resnet_variants   the named networks
    resnet_run_loop   the loop: train(), evaluate(), exact resume
    layers            the fused BatchNormalization
    inputs            data sets: from their files to batches
    training          configuration, recipes, steps, optimizers, devices, workers, transfer
    inference         the card beside a net, predictions, export, rewriting as an equal and faster net
    reports           what an evaluation found, figures
    command_line      flags and programs
    experiments       degradation, gradient flow, kinds of shortcut, transfer
    files, errors     atomic writes and locks; the one exception that a user sees as a line
    checkpoints       the container of a run's state
    *_main            the programs
"""

__version__ = '0.1.0'
