"""The network for the tools, and its outputs, computed with the papers' formulas only."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nf_plugins
from nf_plugins.layers import PWSConv2d, ScaledWSConv2d

from ..test_layers.test_weight_changes import formula

LAYERS = {'ScaledWS': ScaledWSConv2d, 'PWS': PWSConv2d}


def network(layer: type[nn.Module], padding: int | str) -> nn.Sequential:
    """Two convolutions with batch norms, as in other people's networks, and a classifier."""
    parts = OrderedDict(
        conv1=layer(3, 8, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(8),
        act1=nn.ReLU(),
        conv2=layer(8, 6, 3, stride=2, padding=padding),
        bn2=nn.BatchNorm2d(6),
        act2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(6, 5),
    )
    net = nn.Sequential(parts)
    for bn in (net.bn1, net.bn2):
        nn.init.uniform_(bn.running_mean, -0.5, 0.5)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    for name, p in net.named_parameters():
        if p.dim() == 1 or 'alpha' in name:
            nn.init.uniform_(p, 0.5, 2)
    return net.eval()


def same_padding(conv: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Of TensorFlow: ``ceil(size / stride)`` outputs, an odd zero at the end; last axis first."""
    pads = []
    for size, kernel, stride in zip(shape[2:], conv.kernel_size, conv.stride):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    return pads


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of the network, in float64, unfolded or folded."""
    weight = formula(conv) if isinstance(conv, tuple(LAYERS.values())) else conv.weight.double()
    bias = None if conv.bias is None else conv.bias.double()
    padding = conv.padding
    if padding == 'same':
        x, padding = F.pad(x, same_padding(conv, x.shape)), 0
    return F.conv2d(x, weight.detach(), bias, conv.stride, padding)


@torch.no_grad()
def reference(net: nn.Module, x: Tensor, until: str = 'head') -> Tensor:
    """The output of a layer of the network in evaluation mode, in float64."""
    x = x.double()
    for name, module in net.named_children():
        if name.startswith('conv'):
            x = convolve(module, x)
        elif name.startswith('bn') and not isinstance(module, nn.Identity):
            rows = module.running_mean, module.running_var, module.weight, module.bias
            mean, var, scale, shift = (row.double().view(-1, 1, 1) for row in rows)
            x = (x - mean) / (var + module.eps).sqrt() * scale + shift
        elif name.startswith('act'):
            x = x.clamp_min(0)
        elif name == 'pool':
            x = x.mean((2, 3), keepdim=True)
        elif name == 'flatten':
            x = x.flatten(1)
        elif name == 'head':
            x = x @ module.weight.double().T + module.bias.double()
        if name == until:
            break
    return x


def plain_twin(net: nn.Module, x: Tensor) -> nn.Module:
    """Build an equal network of PyTorch's own layers, as a reference for the tools."""
    twin = copy.deepcopy(net)
    for name in ('conv1', 'conv2'):
        conv = net.get_submodule(name)
        same, bias = conv.padding == 'same', conv.bias is not None
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        padding = 0 if same else conv.padding
        plain = nn.Conv2d(*shape, padding, bias=bias, dtype=conv.weight.dtype)
        plain.weight.data.copy_(formula(conv))
        if bias:
            plain.bias.data.copy_(conv.bias.data)
        pads = same_padding(conv, x.shape)  # conv1 leaves the size
        setattr(twin, name, nn.Sequential(nn.ZeroPad2d(pads), plain) if same else plain)
    return twin.eval()


@dataclass
class Case:
    """What a tool is tried with.

    Attributes:
        layer: The type of its convolutions before any fold.
        folded: Whether it is folded.
        net: The network in evaluation mode.
        x: An input.
        expected: Its output in float64, by the formulas, before any fold.
        twin: The same network of :class:`torch.nn.Conv2d`, with weights by the formulas.
    """

    layer: str
    folded: bool
    net: nn.Module
    x: Tensor
    expected: Tensor
    twin: nn.Module


def another(case: Case) -> Case:
    """The same with a copy of the network."""
    return replace(case, net=copy.deepcopy(case.net))


def make_case(layer: str, folded: bool, padding: int | str, dtype: torch.dtype) -> Case:
    torch.manual_seed(0)
    net, x = network(LAYERS[layer], padding).to(dtype), torch.randn(2, 3, 9, 8).to(dtype)
    expected, twin = reference(net, x), plain_twin(net, x)
    if folded:
        nf_plugins.fold(net)
    return Case(layer, folded, net, x, expected, twin)
