"""Weights at which no layer is an identity, and signals neither die nor grow."""

import numpy as np


def randomize(model, scales=(0.5, 1.5), deviation=0.1, seed=0):
    """Draw BN's scales and variances from `scales`, offsets, means and biases around 0; return the model."""
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name in ('gamma', 'moving_variance'):
            variable.assign(random.uniform(*scales, variable.shape))
        elif variable.name in ('beta', 'moving_mean', 'bias'):
            variable.assign(random.normal(0, deviation, variable.shape))
    return model
