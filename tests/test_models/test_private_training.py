"""Gradients of single images: opacus and torch.func against a loop, and DP-SGD."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from nf_plugins.layers import DyT
from nf_plugins.models import NFNet, NFResNet, PWSResNet


class Classifier(nn.Module):
    def __init__(self, backbone, channels):
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(channels, 3)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1].relu().mean((2, 3)))


class DyTBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), DyT(8)

    def forward(self, x):
        return (self.norm(self.conv(x)),)


NETS = {
    'NFResNet': lambda: (
        NFResNet([1, 1, 1, 1], base_channels=4, stem='cifar', skipinit=0.5), 128
    ),
    'NFNet': lambda: (
        NFNet(dict(base='f0', depths=(1,) * 4, widths=(8,) * 4, group_width=4), skipinit=0.5), 16
    ),
    'PWSResNet': lambda: (PWSResNet(18, base_channels=4, stem_channels=4, stem='cifar'), 32),
    'DyT': lambda: (DyTBlock(), 8),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    net = Classifier(*NETS[name]()).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    return net, images, torch.tensor([0, 1, 2])


def by_a_loop(net, images, labels):
    names, params = zip(*net.named_parameters())
    rows = []
    for image, label in zip(images, labels):
        loss = nn.functional.cross_entropy(net(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, params))
    return {name: torch.stack(grads) for name, grads in zip(names, zip(*rows))}


@pytest.mark.parametrize('name', NETS)
def test_torch_func(name):
    net, images, labels = make(name)
    params = {key: p.detach() for key, p in net.named_parameters()}

    def loss(params, image, label):
        return nn.functional.cross_entropy(
            functional_call(net, params, (image[None],)), label[None]
        )

    found = vmap(grad(loss), in_dims=(None, 0, 0))(params, images, labels)
    expected = by_a_loop(net, images, labels)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5, msg=key)
    assert not torch.allclose(expected['fc.weight'][0], expected['fc.weight'][1])


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('mode', ['hooks', 'functorch'])
@pytest.mark.parametrize('name', NETS)
def test_opacus(name, mode):
    opacus = pytest.importorskip('opacus')
    net, images, labels = make(name)
    expected = by_a_loop(net, images, labels)
    wrapped = opacus.GradSampleModule(
        net, loss_reduction='mean', force_functorch=mode == 'functorch', strict=False
    )
    nn.functional.cross_entropy(wrapped(images), labels).backward()
    for key, p in net.named_parameters():
        torch.testing.assert_close(p.grad_sample, expected[key], rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_dp_sgd():
    """Without noise and with a large bound it is SGD; with a small one each image is clipped."""
    opacus = pytest.importorskip('opacus')
    net, images, labels = make('NFResNet')
    expected = by_a_loop(net, images, labels)
    norms = (
        torch.stack([g.reshape(len(g), -1).square().sum(1) for g in expected.values()])
        .sum(0)
        .sqrt()
    )
    bound = norms.median().item()
    factors = (bound / norms).clamp(max=1.0)
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    data = torch.utils.data.TensorDataset(images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(data, batch_size=3),
            noise_multiplier=0.0,
            max_grad_norm=bound,
            poisson_sampling=False,
        )
    ((x, y),) = list(loader)
    order = [next(i for i in range(3) if torch.equal(images[i], image)) for image in x]
    assert sorted(order) == [0, 1, 2]
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert 0 < (factors < 1).sum() < 3
    for key, p in net.named_parameters():
        clipped = (expected[key] * factors.view(-1, *[1] * p.dim())).sum(0) / 3
        torch.testing.assert_close(p.detach(), before[key] - 0.1 * clipped, rtol=1e-5, atol=1e-6)
