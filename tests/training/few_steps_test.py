"""How many steps a momentum of batch norms needs, and which one fits."""

import pytest

from official_resnet.training import few_steps


@pytest.mark.parametrize(
    'momentum,steps,words',
    [
        (0.997, 999, '--bn_momentum=0.997 |1,000 steps| 999:|--bn_momentum=0.9,'),
        (0.997, 60, '0.997 |1,000 steps| 60:|--bn_momentum=0.9,'),
        (0.9, 29, '--bn_momentum=0.9 |30 steps| 29:|--bn_momentum=0.89,'),
        (0.9, 6, '30 steps| 6:|--bn_momentum=0.5,'),
        (0.9, 5, '30 steps| 5:|; train longer'),
        (0.9, 1, '30 steps| 1:|; train longer'),
    ],
)
def test_the_advice(momentum, steps, words):
    advice = few_steps.advice(momentum, steps)
    assert all(word in advice for word in words.split('|')), advice
