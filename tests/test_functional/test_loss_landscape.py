"""Losses along directions, against formulas."""

import pytest
import torch
from torch import nn

from nf_plugins.functional.loss_landscape import (
    gradient_direction,
    loss_along,
    random_direction,
    standardized_weights,
)
from nf_plugins.layers import PWSConv2d, ScaledWSConv2d


class Quadratic(nn.Module):
    """The loss w^T A w / 2 + b^T w, of a weight in two parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(3, dtype=torch.float64))
        a = torch.randn(7, 7, dtype=torch.float64)
        self.a, self.b = a @ a.T, torch.randn(7, dtype=torch.float64)

    def weights(self):
        return torch.cat([self.first.flatten(), self.second])

    def forward(self):
        return self.value(self.weights())

    def value(self, w):
        return w @ self.a @ w / 2 + self.b @ w


def test_losses_of_a_quadratic_in_two_dimensions():
    net = Quadratic()
    one = dict(first=torch.randn(2, 2).double())
    two = dict(first=torch.randn(2, 2).double(), second=torch.randn(3).double())
    xs, ys = [-1.0, 0.0, 0.5], [-2.0, 1.0]
    before = net.weights().clone()
    found = loss_along(net, net, [one, two], [xs, ys])
    w, zeros = before.detach(), torch.zeros(3, dtype=torch.float64)
    d1 = torch.cat([one['first'].flatten(), zeros])
    d2 = torch.cat([two['first'].flatten(), two['second']])
    expected = [[float(net.value(w + x * d1 + y * d2)) for y in ys] for x in xs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(net.weights(), before)


def test_the_gradient_of_a_quadratic():
    net = Quadratic()
    found = gradient_direction(net, net)
    w = net.weights().detach()
    expected = -(net.a @ w + net.b)
    torch.testing.assert_close(torch.cat([found['first'].flatten(), found['second']]), expected)
    # Along it, the loss is a parabola whose derivative at 0 is minus the square of its norm.
    h = 1e-5
    low, high = loss_along(net, net, [found], [[-h, h]]).tolist()
    assert (high - low) / (2 * h) == pytest.approx(-float(expected @ expected), rel=1e-6)


def test_the_network_is_as_before_after_an_error():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, calls = torch.randn(4, 3), []

    def loss():
        calls.append(net(x))  # changes the running statistics
        if len(calls) == 2:
            raise RuntimeError('stop')
        return calls[-1].sum()

    with pytest.raises(RuntimeError, match='stop'):
        loss_along(net, loss, [random_direction(net)], [[0.0, 1.0, 2.0]])
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize('kind', [ScaledWSConv2d, PWSConv2d])
def test_directions_of_standardized_weights_ignore_mean_and_scale(kind):
    """Scale and mean of a filter have no effect, so they have none on the landscape."""
    torch.manual_seed(0)
    net = nn.Sequential(kind(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    assert standardized_weights(net) == {'0.weight'}
    x = torch.randn(2, 3, 6, 6).double()

    def line():
        direction = random_direction(net)
        assert set(direction) == {'0.weight', '2.weight'}  # not alpha, which is a gain
        return loss_along(net, lambda: net(x).square().mean(), [direction], [[-0.5, 0.5, 1.0]])

    before = line()
    with torch.no_grad():
        net[0].weight.mul_(7).add_(0.3)
    tolerance = 1e-9 if kind is ScaledWSConv2d else 1e-2  # PWS adds gamma to the variance
    torch.testing.assert_close(line(), before, rtol=tolerance, atol=0)


class Gains(nn.Module):
    """Gains of the shapes that libraries use, between weights."""

    def __init__(self):
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.response_norm = nn.Parameter(torch.ones(1, 1, 1, 4))
        self.channels_first = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.positions = nn.Parameter(torch.ones(1, 5, 4))
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4)
        self.to_one = nn.Conv2d(4, 1, 1)
        self.linear = nn.Linear(4, 1)


def test_gains_of_any_shape_do_not_change():
    weights = {'positions', 'depthwise.weight', 'to_one.weight', 'linear.weight'}
    assert set(random_direction(Gains())) == weights


def test_directions_are_normalised_by_filter():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    direction = random_direction(net, 3)
    assert set(direction) == {'0.weight', '3.weight'}  # no biases, no norms
    for name, d in direction.items():
        weight = net.get_parameter(name)
        torch.testing.assert_close(d.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    other = random_direction(net, 4)['0.weight']
    assert not torch.allclose(direction['0.weight'], other)
    assert torch.equal(direction['0.weight'], random_direction(net, 3)['0.weight'])
    with pytest.raises(ValueError, match='1 directions need as many lists'):
        loss_along(net, lambda: torch.zeros(()), [direction], [[0.0], [1.0]])
