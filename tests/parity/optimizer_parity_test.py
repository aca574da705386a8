"""Ten steps of our optimizers and of PyTorch's: the same weights from the same gradients. CI installs the peers."""

import functools

import keras
import numpy as np
import pytest
from fixtures.torch_peers import import_timm

from official_resnet.training import more_optimizers

pytestmark = pytest.mark.parity
# Our kernels are [h, w, in, out] and [in, out].
SHAPES = {'conv/kernel': (3, 3, 4, 6), 'point/kernel': (1, 1, 4, 6), 'bn/gamma': (6,), 'bn/beta': (6,)}
SHAPES |= {'logits/kernel': (6, 5), 'logits/bias': (5,)}
RATES = [0.1 / (1 + step) for step in range(10)]


def to_torch(array):
    """Return [h, w, in, out] as a tensor [out, in, h, w], and [in, out] as [out, in]."""
    import torch

    return torch.tensor(array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T).contiguous()


def compare(make_ours, make_theirs, clip=None):
    """Take ten steps with both, whose rate falls and whose gradients are sometimes large.

    make_ours: Schedule -> optimizer. make_theirs: {path: parameter} -> list of optimizers of PyTorch.
    """
    import torch

    random = np.random.default_rng(0)
    starts = {path: random.normal(size=shape).astype('float32') for path, shape in SHAPES.items()}
    ours = []
    for path, start in starts.items():
        ours.append(keras.Variable(start, name=path.partition('/')[2]))
        ours[-1]._path = path
    theirs = {path: torch.nn.Parameter(to_torch(start)) for path, start in starts.items()}
    optimizer = make_ours(keras.optimizers.schedules.PiecewiseConstantDecay(list(range(9)), RATES))
    peers = make_theirs(theirs)
    first = [[group['lr'] for group in peer.param_groups] for peer in peers]
    for step, rate in enumerate(RATES):
        scale = 10.0 if step % 3 == 0 else 0.01
        gradients = [scale * random.normal(size=shape).astype('float32') for shape in SHAPES.values()]
        optimizer.apply(gradients, ours)
        for parameter, gradient in zip(theirs.values(), gradients, strict=True):
            parameter.grad = to_torch(gradient)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        for peer, rates in zip(peers, first, strict=True):
            for group, own in zip(peer.param_groups, rates, strict=True):
                group['lr'] = own * rate / RATES[0]
            peer.step()
    for variable, (path, parameter) in zip(ours, theirs.items(), strict=True):
        expected = to_torch(variable.numpy()).numpy()
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=2e-6, err_msg=path)
        assert np.abs(variable.numpy() - starts[path]).max() > 1e-3, path


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_with_clipping_and_rates_by_kind(nesterov):
    """The factors of rates, which divide the decay, are the groups of airbench94; clip_grad_norm_ comes first."""
    import torch

    def theirs(parameters):
        factors = {'beta': 8.0, 'bias': 8.0}
        groups = []
        for path, parameter in parameters.items():
            factor = 4.0 if path.startswith('logits/') else factors.get(path.partition('/')[2], 1.0)
            groups.append({'params': [parameter], 'lr': RATES[0] * factor, 'weight_decay': 0.05 / factor})
        return [torch.optim.SGD(groups, momentum=0.85, nesterov=nesterov)]

    options = {'bias_factor': 8.0, 'head_factor': 4.0, 'head_layers': ['logits'], 'max_norm': 2.0}
    ours = functools.partial(more_optimizers.SGD, momentum=0.85, nesterov=nesterov, l2=0.05, **options)
    compare(ours, theirs, clip=2.0)


@pytest.mark.parametrize('decay', [0.02, 0.0])
def test_lamb_of_timm(decay):
    """With its defaults, which clip to the norm 1; its groups of parameters decide what decays."""
    lamb = import_timm('optim').Lamb

    def theirs(parameters):
        decaying = [parameter for parameter in parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
        groups = [{'params': others, 'weight_decay': 0.0}, {'params': decaying, 'weight_decay': decay}]
        return [lamb(groups, lr=RATES[0])]

    compare(functools.partial(more_optimizers.Lamb, l2=decay, decay='kernels', max_norm=1.0), theirs)


def test_lars_of_mlperf():
    """Written out after its rules: the rate is inside the momentum, biases and batch norms have no ratio and decay."""
    import torch

    class Lars(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for w in group['params']:
                    velocity = self.state[w].setdefault('velocity', torch.zeros_like(w))
                    gradient, rate = w.grad, group['lr']
                    if w.ndim > 1:
                        rate *= 0.001 * w.norm() / (gradient.norm() + 0.02 * w.norm())
                        gradient = gradient + 0.02 * w
                    velocity.mul_(0.9).add_(rate * gradient)
                    w.sub_(velocity)

    compare(
        lambda schedule: more_optimizers.Lars(schedule, 0.9, l2=0.02, decay='kernels'),
        lambda parameters: [Lars(parameters.values(), {'lr': RATES[0]})],
    )


def test_muon_of_airbench():
    """Written out in float32 after airbench94_muon, whose other parameters have torch's SGD with their own rates."""
    import torch

    class Muon(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for w in group['params']:
                    velocity = self.state[w].setdefault('velocity', torch.zeros_like(w))
                    velocity.mul_(0.6).add_(w.grad)
                    x = (w.grad + 0.6 * velocity).reshape(len(w), -1)
                    x = x / (x.norm() + 1e-7)
                    for _ in range(3):
                        square = x @ x.T
                        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                    w.mul_(len(w) ** 0.5 / w.norm()).sub_(x.reshape(w.shape), alpha=group['lr'])

    def theirs(parameters):
        kernels = [parameter for parameter in parameters.values() if parameter.ndim == 4]
        groups = []
        for path, factor in (('bn/beta', 5.0), ('logits/bias', 20.0), ('logits/kernel', 20.0), ('bn/gamma', 1.0)):
            groups.append({'params': [parameters[path]], 'lr': 0.1 * factor, 'weight_decay': 0.004 / factor})
        return [Muon(kernels, {'lr': 0.1}), torch.optim.SGD(groups, momentum=0.85, nesterov=True)]

    options = {'bias_factor': 5.0, 'head_factor': 20.0, 'head_layers': ['logits'], 'l2': 0.004}
    compare(lambda schedule: more_optimizers.Muon(schedule, 0.85, True, muon_momentum=0.6, **options), theirs)
