"""Vanishing and exploding gradients in the smallest network that shows them, a chain with one neuron in each layer.

    z_i = w_i a_(i-1) + b_i;  a_i = f(z_i), with a shortcut f(z_i) + a_(i-1);  a_0 = x

By the chain rule, d a_n / d a_(i-1) is the product over j >= i of w_j f'(z_j), or of 1 + w_j f'(z_j) with shortcuts.
The derivative of a sigmoid is at most 0.25, at z = 0, so weights drawn from N(0, 1) shrink the product in each layer;
it grows where |w f'(z)| > 1. The derivative of a ReLU is 1 or 0. It does not saturate, but half of the neurons pass
nothing on if weights and biases are drawn from N(0, 1).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


# name -> (f, f')
ACTIVATIONS = {
    'sigmoid': (_sigmoid, lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    'relu': (lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
}
TABLE_LENGTHS = (1, 2, 3, 5, 10, 20, 30, 50)  # layers; the chain of document_chains has 3


class ChainGradients(NamedTuple):
    """The gradients of chains, float64 [layers, ...] each, the first layer first."""

    slopes: np.ndarray  # f'(z_i)
    factors: np.ndarray  # d a_i / d a_(i-1) = w_i f'(z_i), plus 1 with a shortcut
    inputs: np.ndarray  # d a_n / d a_(i-1), the product of the factors from layer i to the last
    weights: np.ndarray  # d a_n / d w_i
    biases: np.ndarray  # d a_n / d b_i


def chain_gradients(
    weights: np.ndarray | Sequence[float],
    biases: np.ndarray | Sequence[float],
    x: np.ndarray | float,
    activation: str,
    shortcut: bool = False,
) -> ChainGradients:
    """Return the gradients of one chain, or of n chains side by side.

    Args:
        weights, biases: [layers] or [layers, n].
        x: The input of the chain, a number or [n].
        activation: 'sigmoid' or 'relu'.
        shortcut: Whether each layer adds its input to its output.
    """
    function, derivative = ACTIVATIONS[activation]
    weights, biases = np.asarray(weights, np.float64), np.asarray(biases, np.float64)
    layer_inputs, derivatives = [], []
    a = np.broadcast_to(np.asarray(x, np.float64), weights.shape[1:])
    for w, b in zip(weights, biases, strict=True):
        z = w * a + b
        layer_inputs.append(a)
        derivatives.append(derivative(z))
        a = function(z) + a * shortcut
    inputs, slopes = np.array(layer_inputs), np.array(derivatives)
    factors = weights * slopes + shortcut
    products = np.cumprod(factors[::-1], axis=0)[::-1]
    after = np.concatenate([products[1:], np.ones_like(products[:1])])  # d a_n / d a_i
    return ChainGradients(slopes, factors, products, inputs * slopes * after, slopes * after)


def chain_table(
    seed: int = 0, num_chains: int = 10_000, lengths: Sequence[int] = TABLE_LENGTHS
) -> list[dict[str, Any]]:
    """Return |d output / d input| of chains whose weights, biases and inputs are drawn from N(0, 1).

    Each row has activation, shortcut, layers; median, low and high (quartiles) of the gradients that are not 0, or None
    if there are fewer than 20; and the fractions zero_share and growing_share (|gradient| > 1) of all chains.
    """
    random = np.random.default_rng(seed)
    rows = []
    for activation, shortcut, layers in itertools.product(ACTIVATIONS, (False, True), lengths):
        weights, biases = random.standard_normal((2, layers, num_chains))
        inputs = random.standard_normal(num_chains)
        sizes = np.abs(chain_gradients(weights, biases, inputs, activation, shortcut).inputs[0])
        alive = sizes[sizes > 0]
        quartiles = np.quantile(alive, (0.25, 0.5, 0.75)).tolist() if alive.size >= 20 else (None,) * 3
        row: dict[str, Any] = {'activation': activation, 'shortcut': shortcut, 'layers': layers}
        row |= zip(('low', 'median', 'high'), quartiles, strict=True)
        rows.append(row | {'zero_share': float(np.mean(sizes == 0)), 'growing_share': float(np.mean(sizes > 1))})
    return rows


def document_chains() -> dict[str, dict[str, list[float]]]:
    """Return three chains of 3 layers, as tutorials draw them, as examples: {case: {'slopes', 'factors', 'inputs'}}."""
    cases = {  # weights and biases; the bias b = z - w a gives the wanted z, and the sigmoid of 0 is 0.5
        'largest': ((1, 1, 1), (0, -0.5, -0.5)),  # z = 0, where the sigmoid is steepest: 0.25 a layer
        'saturated': ((1, 1, 1), (5, 4, 4)),  # z near 5
        'growing': ((8, 8, 8), (0, -4, -4)),  # z = 0: 2 a layer
    }
    chains = {name: chain_gradients(*case, 0, 'sigmoid') for name, case in cases.items()}
    fields = ('slopes', 'factors', 'inputs')
    return {name: {field: getattr(chain, field).tolist() for field in fields} for name, chain in chains.items()}
