"""The stem's output is measured as it is, wherever the first block reads it."""

import numpy as np
import pytest
import torch
from torch import nn

from nf_plugins.spp import analyze


def conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class Block(nn.Module):
    """A pre-activation block; the projection reads the activation."""

    def __init__(self, inputs, outputs, in_place):
        super().__init__()
        self.act = nn.ReLU(in_place)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.conv1, self.conv2 = conv(inputs, outputs), conv(outputs, outputs)

    def forward(self, x):
        out = self.act(x)
        shortcut = self.shortcut(out if isinstance(self.shortcut, nn.Conv2d) else x)
        return self.conv2(torch.relu(self.conv1(out))) + shortcut


class Net(nn.Module):
    """A stem and two blocks, called by a container, one by one, or with one variable only."""

    def __init__(self, outputs, in_place, called):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.Sequential(conv(8, 8)))
        self.blocks = nn.Sequential(Block(8, outputs, in_place), Block(outputs, outputs, False))
        self.called = called

    def forward(self, x):
        x = self.stem(x)
        if self.called == 'container':
            return self.blocks(x)
        for block in self.blocks:
            x = block(x)
        return x


class Flat(nn.Module):
    """A network that adds in its own forward method."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = conv(3, 8), conv(8, 8), conv(8, 8)
        self.down = nn.Sequential(conv(8, 16, 2), nn.ReLU(), conv(16, 16))
        self.last = nn.Conv2d(8, 16, 1, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.second(torch.relu(self.first(x)))
        return self.down(torch.relu(x)) + self.last(x)


NETS = {
    f'{outputs} channels, {"in place" if in_place else "copied"}, {called}': (
        lambda outputs=outputs, in_place=in_place, called=called: Net(outputs, in_place, called)
    )
    for outputs, in_place in ((8, False), (16, False), (16, True))
    for called in ('container', 'variable')
}


@pytest.mark.parametrize('build', [*NETS.values(), Flat], ids=[*NETS, 'flat'])
@pytest.mark.parametrize('backward', [False, True])
def test_the_stem_is_measured_as_its_module_gives_it(build, backward):
    torch.manual_seed(0)
    net, x = build(), torch.randn(4, 3, 16, 16)
    outputs = []
    hook = net.stem.register_forward_hook(lambda *args: outputs.append(args[-1].detach().clone()))
    profile = analyze(net, x, backward=backward)
    hook.remove()
    values = outputs[0].double().numpy()
    stem = profile.blocks[0]
    assert stem.kind == 'stem' and len(profile.blocks) == 3
    assert stem.avg_sq_mean == pytest.approx(np.square(values.mean((0, 2, 3))).mean(), rel=1e-5)
    assert stem.avg_var == pytest.approx(values.var((0, 2, 3)).mean(), rel=1e-5)
    assert (stem.grad_avg_var is not None) == backward
