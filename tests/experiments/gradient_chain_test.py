"""The chain of one neuron a layer: gradients against GradientTape and by hand."""

import numpy as np
import pytest
import tensorflow as tf

from official_resnet.experiments import gradient_chain

FUNCTIONS = {'sigmoid': tf.sigmoid, 'relu': tf.nn.relu}


@pytest.mark.parametrize('shortcut', [False, True])
@pytest.mark.parametrize('activation', FUNCTIONS)
def test_gradients_are_those_of_the_tape_and_the_product(activation, shortcut):
    random = np.random.default_rng(1)
    weights, biases, x = *random.normal(size=(2, 3, 8)), random.normal(size=8)  # eight chains of three layers
    w, b, entered = tf.Variable(weights), tf.Variable(biases), []
    with tf.GradientTape() as tape:
        a = tf.constant(x)
        for i in range(3):
            tape.watch(a)
            entered.append(a)
            a = FUNCTIONS[activation](w[i] * a + b[i]) + (a if shortcut else 0)
    gw, gb, *ga = tape.gradient(a, [w, b, *entered])
    chain = gradient_chain.chain_gradients(weights, biases, x, activation, shortcut)
    np.testing.assert_allclose(chain.weights, tf.convert_to_tensor(gw), atol=1e-14)
    np.testing.assert_allclose(chain.biases, tf.convert_to_tensor(gb), atol=1e-14)
    np.testing.assert_allclose(chain.inputs, np.stack(ga), atol=1e-14)
    np.testing.assert_allclose(chain.factors, weights * chain.slopes + shortcut)
    np.testing.assert_allclose(chain.inputs[0], np.prod(chain.factors, axis=0))
    assert np.count_nonzero(chain.inputs)  # not all of them dead ReLUs
    alone = gradient_chain.chain_gradients(weights[:, 0], biases[:, 0], x[0], activation, shortcut)
    np.testing.assert_array_equal(alone.inputs, chain.inputs[:, 0])  # one chain needs no second axis


def test_the_documents_three_layers():
    chains = gradient_chain.document_chains()
    np.testing.assert_allclose(chains['largest']['slopes'], [0.25] * 3)  # the sigmoid's steepest, at 0
    np.testing.assert_allclose(chains['largest']['inputs'], [0.25**3, 0.25**2, 0.25])
    assert max(chains['saturated']['slopes']) < 0.01 and chains['saturated']['inputs'][0] < 1e-6
    np.testing.assert_allclose(chains['growing']['factors'], [2.0] * 3)
    np.testing.assert_allclose(chains['growing']['inputs'], [8.0, 4.0, 2.0])


def test_random_chains_shrink_by_a_sigmoid_and_not_with_shortcuts():
    rows = gradient_chain.chain_table(num_chains=2000)
    rows = {(row['activation'], row['shortcut'], row['layers']): row for row in rows}
    assert rows['sigmoid', False, 3]['median'] < 1e-2  # each factor about 0.1
    assert rows['sigmoid', False, 30]['median'] < 1e-25
    assert 0.5 < rows['sigmoid', True, 30]['median'] < 2
    assert rows['sigmoid', False, 3]['growing_share'] == 0
    assert rows['relu', False, 3]['zero_share'] == pytest.approx(1 - 0.5**3, abs=0.03)
    assert rows['relu', False, 30]['median'] is None and rows['relu', True, 30]['zero_share'] == 0
