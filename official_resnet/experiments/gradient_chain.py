"""Vanishing and exploding gradients in the smallest net that shows them: a chain of one neuron a layer.

    z_i = w_i a_(i-1) + b_i;  a_i = f(z_i), with a shortcut f(z_i) + a_(i-1);  a_0 = x

The chain rule gives d a_n / d a_(i-1) = product over j >= i of w_j f'(z_j), with a shortcut of 1 + w_j f'(z_j). A
sigmoid's derivative is at most 0.25, at z = 0, so weights of N(0, 1) shrink the product layer by layer; it grows where
|w f'(z)| > 1. A ReLU's is 1 or 0: no saturation, but half of the neurons of N(0, 1) pass nothing on.
"""

import collections
import itertools

import numpy as np


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


# name -> (f, f')
ACTIVATIONS = {
    'sigmoid': (_sigmoid, lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    'relu': (lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
}
TABLE_LENGTHS = (1, 2, 3, 5, 10, 20, 30, 50)  # layers; the documents' chain has 3 hidden ones
# Per layer, input side first, float64 [layers, ...]: the slopes f'(z_i); the factors d a_i / d a_(i-1), which are
# w_i f'(z_i), plus 1 with a shortcut; the gradients of the chain's output with respect to what enters layer i (the
# product of the factors from i to the last), to w_i and to b_i.
ChainGradients = collections.namedtuple('ChainGradients', 'slopes factors inputs weights biases')


def chain_gradients(weights, biases, x, activation, shortcut=False):
    """Return the ChainGradients of a chain of one neuron a layer.

    Weights and biases are [layers], and the input x a number; or [layers, n] and [n] for n chains side by side. With
    `shortcut`, each layer adds its input to its output.
    """
    function, derivative = ACTIVATIONS[activation]
    weights, biases = np.asarray(weights, np.float64), np.asarray(biases, np.float64)
    inputs, slopes = [], []
    a = np.broadcast_to(np.asarray(x, np.float64), weights.shape[1:])
    for w, b in zip(weights, biases, strict=True):
        z = w * a + b
        inputs.append(a)
        slopes.append(derivative(z))
        a = function(z) + a * shortcut
    inputs, slopes = np.array(inputs), np.array(slopes)
    factors = weights * slopes + shortcut
    products = np.cumprod(factors[::-1], axis=0)[::-1]
    behind = np.concatenate([products[1:], np.ones_like(products[:1])])  # from the output of layer i on
    return ChainGradients(slopes, factors, products, inputs * slopes * behind, slopes * behind)


def chain_table(seed=0, num_chains=10_000, lengths=TABLE_LENGTHS):
    """Return what weights, biases and inputs of N(0, 1) do to |d output / d input|, one dict a case.

    Keys: activation, shortcut, layers; median, low and high (quartiles) of the chains whose gradient is not 0, None
    when they are fewer than 20; zero_share and growing_share (|gradient| > 1) of all chains.
    """
    random = np.random.default_rng(seed)
    rows = []
    for activation, shortcut, layers in itertools.product(ACTIVATIONS, (False, True), lengths):
        weights, biases = random.standard_normal((2, layers, num_chains))
        inputs = random.standard_normal(num_chains)
        sizes = np.abs(chain_gradients(weights, biases, inputs, activation, shortcut).inputs[0])
        alive = sizes[sizes > 0]
        quartiles = np.quantile(alive, (0.25, 0.5, 0.75)).tolist() if alive.size >= 20 else (None,) * 3
        row = {'activation': activation, 'shortcut': shortcut, 'layers': layers}
        row |= zip(('low', 'median', 'high'), quartiles, strict=True)
        rows.append(row | {'zero_share': float(np.mean(sizes == 0)), 'growing_share': float(np.mean(sizes > 1))})
    return rows


def document_chains():
    """Return the documents' chain of 3 hidden layers: {case: {'slopes', 'factors', 'inputs'}} as lists."""
    cases = {  # weights and biases, of which b = z - w a puts z where it is wanted; a sigmoid of 0 is 0.5
        'largest': ((1, 1, 1), (0, -0.5, -0.5)),  # z = 0, where the sigmoid is steepest: 0.25 a layer
        'saturated': ((1, 1, 1), (5, 4, 4)),  # z near 5
        'growing': ((8, 8, 8), (0, -4, -4)),  # z = 0: 2 a layer
    }
    chains = {name: chain_gradients(*case, 0, 'sigmoid') for name, case in cases.items()}
    fields = ('slopes', 'factors', 'inputs')
    return {name: {field: getattr(chain, field).tolist() for field in fields} for name, chain in chains.items()}
