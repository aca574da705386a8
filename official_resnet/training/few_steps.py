"""What to do if a training has too few steps for the moving statistics of its batch norms, which evaluation uses."""

import math

ENOUGH = 3  # steps x (1 - momentum), after which exp(-3), 5 %, of the first statistics are left


def advice(bn_momentum: float, steps: int) -> str:
    """Return the fault and the remedy: a momentum of which `steps` are enough, if it is not below 0.5."""
    fitting = min(0.9, math.floor(100 * (1 - ENOUGH / steps)) / 100)
    needs = f'--bn_momentum={bn_momentum:g} needs {ENOUGH / (1 - bn_momentum):,.0f} steps'
    remedy = f'pass --bn_momentum={fitting:g}, or train longer' if fitting >= 0.5 else 'train longer'
    return (
        f'{needs} to learn the means and variances that batch norms use in tests, and this run has {steps:,}: '
        f'the test accuracy may be far too low; {remedy}'
    )
