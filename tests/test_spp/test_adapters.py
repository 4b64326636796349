"""What is known of single libraries is in adapters, and a user can add one."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nf_plugins.registry import ADAPTERS
from nf_plugins.spp import analyze, unwrap, zero_gains
from nf_plugins.spp.adapters import Adapter, Arguments, Expectation, adapters
from nf_plugins.spp.execution import is_random_depth
from nf_plugins.spp.inputs import output_size

from ..conftest import ROOT

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


LOG: list = []


class Skip(nn.Module):
    """Drops every branch in train mode."""

    def forward(self, x):
        return x * (not self.training)


class Part(nn.Module):
    seen = None

    def __init__(self):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 3, 3, padding=1), Skip()
        self.position, self.scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))
        self.recompute, self.made_for = True, 0.5

    def forward(self, x, factor):
        LOG.append((self.recompute, Part.seen))
        return x + 0.5 * factor * torch.tanh(self.drop(self.conv(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x, factor):
        return self.part(x, factor)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Network()


class Mine(Adapter):
    random_depth = ('skip',)
    switched_off = ('recompute',)
    not_gains = ('pos*',)
    image_sizes = {'Shrink': ('to', 'wh'), 'Resize': ('scale', 'hw')}

    def unwrap(self, model):
        return getattr(model, 'network', None)

    def prepare(self, model, batch, device):
        return [(Part, 'seen', (batch, str(device)))]

    def call(self, model, inputs):
        return Arguments((inputs,), dict(factor=1)) if isinstance(model, Network) else None

    def expectation(self, block):
        alpha = getattr(block, 'made_for', None)
        return None if alpha is None else Expectation(alpha)


@pytest.fixture
def mine():
    ADAPTERS.register_module(name='mine', module=Mine)
    yield
    del ADAPTERS._module_dict['mine']


def test_an_adapter_of_the_user(mine):
    net = Whole()
    assert unwrap(net) is net.network
    assert list(zero_gains(net)) == ['network.part.scale']
    assert is_random_depth(Skip())
    assert output_size(dict(type='Shrink', to=(4, 5))) == (5, 4)
    assert output_size(dict(type='Resize', scale=(4, 5))) == (4, 5)  # the user's is heard first
    LOG.clear()
    stem, block = analyze(net, X).blocks
    assert block.res_avg_var > 0
    assert (stem.expected_var, block.expected_var) == (1.0, 1.25)
    assert LOG == [(False, (4, 'cpu'))]
    assert net.network.part.recompute
    assert Part.seen is None


def test_without_it(mine):
    assert isinstance(adapters()[0], Mine)
    del ADAPTERS._module_dict['mine']
    ADAPTERS._module_dict['mine'] = Adapter  # knows nothing
    net = Whole()
    assert unwrap(net) is net
    assert list(zero_gains(net)) == ['network.part.position', 'network.part.scale']
    assert not is_random_depth(Skip())


@pytest.mark.parametrize(
    ('made', 'before', 'identity', 'var'),
    [
        (Expectation(0.2), 1.0, True, 1.04),
        (Expectation(0.2), 3.0, True, 3.04),
        (Expectation(0.2), 3.0, False, 1.04),
        (Expectation(0.2), None, True, None),
        (Expectation(0.2, 1.5), None, True, 1.5),
        (Expectation(0.2, 1.5), 3.0, False, 1.5),
    ],
)
def test_expectation(made, before, identity, var):
    assert made.output_var(before, identity) == (var and pytest.approx(var))


@pytest.mark.slow
def test_no_library_is_imported_for_its_adapter():
    libraries = ['timm', 'transformers', 'mmpretrain', 'mmdet', 'mmseg', 'torchvision', 'diffusers']
    code = (
        'import sys, nf_plugins.spp.adapters as a\n'
        'assert len(a.adapters()) > 4\n'
        f'print(*sorted(set({libraries}) & set(sys.modules)))'
    )
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=env, check=True
    )
    assert out.stdout.split() == []
