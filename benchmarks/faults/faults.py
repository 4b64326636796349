"""The faults: each changes a network, or what it is called with, and says what is right to say."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.layers import ScaledWSConv2d
from nf_plugins.spp.structure import is_norm


@dataclass
class Fault:
    """A seeded fault.

    Args:
        rules: The rules that name it rightly.
        where: Path of the module that has it, None where it has no place.
        inputs: What the network is called with instead of noise.
        options: Arguments of ``analyze``.
    """

    rules: tuple[str, ...]
    where: str | None = None
    inputs: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)


FAULTS: dict[str, Callable[[nn.Module, Tensor, random.Random], Fault | None]] = {}


def fault(function: Callable) -> Callable:
    FAULTS[function.__name__] = function
    return function


# ------------------------------------------------------------------ where
def weighted(net: nn.Module, middle: bool = True) -> list[str]:
    """Paths of convolutions and linear layers with their own weight, without stem and head."""
    names = [
        name
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
        and m.weight.dim() in (2, 4)
        and m.weight[0].numel() >= 8
        and m.weight.shape[0] >= 8
        and not any(x in name for x in ('se.', '.fc1_', 'attn.fc', 'attention.'))
    ]
    return names[2:-1] if middle and len(names) > 6 else names


def scale_matters(m: nn.Module) -> bool:
    """Whether the scale of a layer's weight reaches its output."""
    return type(m) in (nn.Conv2d, nn.Linear) or hasattr(m, 'gain')


def scale_layer(m: nn.Module, factor: float) -> None:
    target = getattr(m, 'gain', None)
    target = m.weight if target is None else target
    if hasattr(m, 'alpha') and isinstance(m.alpha, nn.Parameter):
        target = m.alpha
    target.data.mul_(factor)


def norms(net: nn.Module) -> list[str]:
    return [
        n for n, m in net.named_modules() if is_norm(m) and getattr(m, 'weight', None) is not None
    ]


def replace(net: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition('.')
    setattr(net.get_submodule(owner), leaf, module)


def blocks(net: nn.Module) -> list[str]:
    """Paths of the repeated blocks: members of containers of several of one class with weights."""
    found = []
    for name, m in net.named_modules():
        if isinstance(m, nn.Sequential | nn.ModuleList):
            kinds = [type(c) for c in m]
            for key, child in m.named_children():
                heavy = sum(p.dim() > 1 for p in child.parameters()) >= 2
                if kinds.count(type(child)) > 1 and heavy and not isinstance(child, nn.Sequential):
                    found.append(f'{name}.{key}' if name else key)
    return [n for n in found if not any(n.startswith(f'{o}.') for o in found)]


def last_layer(net: nn.Module, block: str) -> str | None:
    names = [n for n in weighted(net, middle=False) if n.startswith(f'{block}.')]
    names = [n for n in names if 'downsample' not in n and 'shortcut' not in n]
    return names[-1] if names else None


# ------------------------------------------------------------------ inputs
@fault
def raw_pixels(net, x, rng):
    return Fault(('bad_input',), inputs=torch.rand_like(x) * 255)


@fault
def constant_input(net, x, rng):
    return Fault(('bad_input',), inputs=torch.full_like(x, rng.choice([0.0, 0.5, 1.0])))


@fault
def same_images(net, x, rng):
    return Fault(('bad_input',), inputs=x[:1].expand_as(x).clone())


@fault
def broken_input(net, x, rng):
    x = x.clone()
    x[0, 0, 3, 3] = rng.choice([float('nan'), float('inf')])
    return Fault(('non_finite',), inputs=x)


# ------------------------------------------------------------------ weights
@fault
def zero_filters(net, x, rng):
    name = rng.choice(weighted(net))
    m = net.get_submodule(name)
    rows = rng.randint(int(0.3 * len(m.weight)), len(m.weight) - 1)
    m.weight.data[:rows] = 0
    return Fault(('zero_weights', 'constant_channels', 'dead_units'), name)


@fault
def copied_filters(net, x, rng):
    name = rng.choice(weighted(net))
    m = net.get_submodule(name)
    half = len(m.weight) // 2
    m.weight.data[half : 2 * half] = m.weight.data[:half]
    return Fault(('duplicate_channels',), name)


@fault
def constant_weights(net, x, rng):
    name = rng.choice(weighted(net))
    nn.init.constant_(net.get_submodule(name).weight, 0.05)
    return Fault(('duplicate_channels', 'zero_weights'), name)


@fault
def large_layer(net, x, rng):
    names = [n for n in weighted(net) if scale_matters(net.get_submodule(n))]
    if not names:
        return None
    name = rng.choice(names)
    scale_layer(net.get_submodule(name), rng.choice([20.0, 50.0, 100.0]))
    return Fault(('branch_jump', 'explosion', 'attention_saturated', 'low_precision'), name)


@fault
def large_branch(net, x, rng):
    """The last layer, or norm, of one branch is far too large."""
    names = blocks(net)
    block = rng.choice(names[1:] or names or [''])
    own = [n for n in norms(net) if n.startswith(f'{block}.') and 'downsample' not in n]
    name = last_layer(net, block)
    after = [m for m, _ in net.get_submodule(block).named_modules()]
    if name is None:
        return None
    last_norm = own and after.index(own[-1][len(block) + 1 :]) > after.index(name[len(block) + 1 :])
    if last_norm:
        name = own[-1]
        net.get_submodule(name).weight.data.fill_(20)
    else:
        scale_layer(net.get_submodule(name), 20)
    return Fault(('branch_jump', 'explosion'), name)


@fault
def all_large(net, x, rng):
    if norms(net):
        return None
    for name in weighted(net, middle=False):
        scale_layer(net.get_submodule(name), 4.0)
    return Fault(('explosion', 'non_finite', 'low_precision'))


@fault
def without_norms(net, x, rng):
    """All norms gone: the plain network explodes or dies."""
    names = norms(net)
    if not names or any(isinstance(m, nn.LayerNorm) for m in net.modules()):
        return None
    for name in names:
        m = net.get_submodule(name)
        rest = getattr(m, 'act', None)
        drop = getattr(m, 'drop', None)
        replace(net, name, nn.Sequential(*(p for p in (drop, rest) if p is not None)))
    return Fault(('explosion', 'attenuation', 'mean_shift', 'not_reset', 'collapsed_images'))


@fault
def small_weights(net, x, rng):
    """All layers of a network whose norms are gone are far too small."""
    if without_norms(net, x, rng) is None:
        return None
    for name in weighted(net, middle=False):
        net.get_submodule(name).weight.data.mul_(0.1)
    return Fault(('attenuation', 'dead_branch'))


@fault
def silent_branch(net, x, rng):
    """All layers of one block are nearly zero."""
    names = [b for b in blocks(net) if last_layer(net, b)]
    names = [b for b in names if scale_matters(net.get_submodule(last_layer(net, b)))]
    if not names or not any(isinstance(m, nn.LayerNorm) for m in net.modules()):
        return None
    block = rng.choice(names)
    for p in net.get_submodule(block).parameters():
        if p.dim() > 1:
            p.data.mul_(1e-5)
    return Fault(('dead_branch', 'zero_branch'), block)


@fault
def broken_weight(net, x, rng):
    name = rng.choice(weighted(net))
    net.get_submodule(name).weight.data.view(-1)[0] = rng.choice([float('nan'), float('inf')])
    return Fault(('non_finite',), name)


@fault
def half_precision_range(net, x, rng):
    """The signal of one block is beyond float16."""
    names = [b for b in blocks(net) if last_layer(net, b)]
    if not names:
        return None
    name = last_layer(net, names[-1])
    m = net.get_submodule(name)
    if m.bias is None:
        m.bias = nn.Parameter(torch.zeros(len(m.weight)))
    own = [n for n in norms(net) if n.startswith(names[-1])]
    if own and not any(isinstance(q, nn.LayerNorm) for q in net.modules()):
        m, name = net.get_submodule(own[-1]), own[-1]
    m.bias.data += 3e4
    return Fault(('low_precision', 'mean_shift', 'branch_jump'), name)


# ------------------------------------------------------------------ units
@fault
def dead_relus(net, x, rng):
    """The bias before a ReLU-like activation is far below 0."""
    names = []
    for block in blocks(net):
        own = [n for n in norms(net) if n.startswith(f'{block}.') and 'downsample' not in n]
        fc1 = [n for n in weighted(net, False) if n.startswith(f'{block}.') and 'fc1' in n]
        if fc1 and isinstance(net.get_submodule(fc1[0]), nn.Linear):
            names.append(fc1[0])
        elif len(own) > 1 and isinstance(net.get_submodule(own[0]), nn.BatchNorm2d):
            names.append(own[0])
        else:
            convs = [n for n in weighted(net, False) if n.startswith(f'{block}.conv1')]
            names += [n for n in convs if hasattr(net.get_submodule(n), 'gain')]
    if not names:
        return None
    name = rng.choice(names)
    m = net.get_submodule(name)
    if m.bias is None:
        return None
    m.bias.data[: int(rng.uniform(0.5, 1) * len(m.bias))] = -30.0
    return Fault(('dead_units', 'dead_branch', 'constant_channels'), name)


@fault
def saturated_tanh(net, x, rng):
    class Sharp(nn.Module):
        def forward(self, x):
            return torch.tanh(30 * x)

    kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ReLU6)
    names = [n for n, m in net.named_modules() if isinstance(m, kinds) and '.se' not in n]
    if not names:
        return None
    name = rng.choice(names[1:] or names)
    replace(net, name, Sharp())
    return Fault(('saturated_units',), name)


@fault
def sharp_attention(net, x, rng):
    names = [n for n, _ in net.named_modules() if n.endswith(('attn.qkv', 'in_proj'))]
    if not names:
        return None
    name = rng.choice(names)
    net.get_submodule(name).weight.data[: -len(net.get_submodule(name).weight) // 3] *= 30
    return Fault(('attention_saturated', 'branch_jump'), name)


@fault
def same_tokens(net, x, rng):
    """A bias that outweighs everything is added to all tokens."""
    if not any(n.endswith('attn.qkv') for n, _ in net.named_modules()):
        return None
    names = [n for n in weighted(net, False) if n.endswith(('mlp.fc2', 'attn.proj'))]
    name = rng.choice(names[: len(names) // 2])
    nn.init.normal_(net.get_submodule(name).bias, std=100.0)
    return Fault(('collapsed_tokens', 'collapsed_images', 'mean_shift', 'branch_jump'), name)


# ------------------------------------------------------------------ norms
@fault
def missing_norm(net, x, rng):
    names = []
    for block in blocks(net):
        own = [n for n in norms(net) if n.startswith(f'{block}.')]
        same = [
            b for b in blocks(net) if type(net.get_submodule(b)) is type(net.get_submodule(block))
        ]
        if own and len(same) > 3:
            names += own
    if not names:
        return None
    name = rng.choice(names)
    m = net.get_submodule(name)
    parts = [p for p in (getattr(m, 'drop', None), getattr(m, 'act', None)) if p is not None]
    replace(net, name, nn.Sequential(*parts))
    return Fault(('norm_missing',), name)


def _batch_norms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


@fault
def untrained_statistics(net, x, rng):
    if not _batch_norms(net):
        return None
    return Fault(('norm_statistics',), options=dict(mode='eval'))


@fault
def wrong_statistics(net, x, rng):
    """Running statistics of other data, in evaluation mode."""
    if not _batch_norms(net):
        return None
    for m in _batch_norms(net):
        m.momentum = None
    net.train()
    with torch.no_grad():
        net(x * 20 + 3)
        net(x * 20 + 3)
    for m in _batch_norms(net):
        if rng.random() < 0.5:
            m.running_var.mul_(30)
    return Fault(('norm_statistics', 'attenuation'), options=dict(mode='eval', state='trained'))


@fault
def frozen_norms(net, x, rng):
    """Batch norms in evaluation mode, never trained, in a network that trains."""
    if not _batch_norms(net):
        return None
    net.train()
    for m in _batch_norms(net):
        m.eval()
    return Fault(('norm_statistics',), options=dict(mode='asis'))


# ------------------------------------------------------------------ training
@fault
def heavy_dropout(net, x, rng):
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Dropout | nn.Identity)]
    names = [n for n in names if n]
    rate = rng.choice([0.9, 0.95, 0.99])
    if not names:
        return None
    name = rng.choice(names)
    replace(net, name, nn.Dropout(rate))
    return Fault(('high_dropout',), name)


@fault
def frozen_block(net, x, rng):
    names = blocks(net)
    block = rng.choice(names[1:] or names or [None])
    if block is None:
        return None
    for p in net.get_submodule(block).parameters():
        p.requires_grad_(False)
    return Fault(('frozen_weights',), block)


@fault
def detached_trunk(net, x, rng):
    names = blocks(net)
    if len(names) < 3:
        return None
    block = rng.choice(names[1:-1])
    net.get_submodule(block).register_forward_pre_hook(lambda m, args: (args[0].detach(),))
    return Fault(('no_gradient',), options=dict(backward=rng.random() < 0.5))


@fault
def unused_layer(net, x, rng):
    net.forgotten = nn.Linear(64, 64)
    return Fault(('no_gradient',), options=dict(backward=rng.random() < 0.5))


@fault
def shared_blocks(net, x, rng):
    for name, m in net.named_modules():
        if isinstance(m, nn.Sequential | nn.ModuleList) and len(m) > 2:
            first, second = m[1], m[2]
            same = type(first) is type(second) and f'{name}.1' in blocks(net)
            if same and [p.shape for p in first.parameters()] == [
                p.shape for p in second.parameters()
            ]:
                m[2] = first
                return Fault(('shared_weights',), f'{name}.2')
    return None


@fault
def zero_head(net, x, rng):
    """By design, but it has to be said: all gradients are 0."""
    heads = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not heads or type(net).__module__.startswith('nf_plugins'):
        return None
    head = net.get_submodule(heads[-1])
    if len(head.weight) != 1000:
        return None
    nn.init.zeros_(head.weight)
    return Fault(('no_gradient',), heads[-1], options=dict(backward=True))


# ------------------------------------------------------------------ the normalizer-free method
def _nf_blocks(net):
    return [
        (n, m)
        for n, m in net.named_modules()
        if hasattr(m, 'alpha') and hasattr(m, 'beta') and isinstance(m.alpha, float)
    ]


@fault
def alpha_one(net, x, rng):
    for _, m in _nf_blocks(net):
        m.alpha = rng.choice([1.0, 2.0])
    return Fault(('off_theory', 'explosion', 'not_reset')) if _nf_blocks(net) else None


@fault
def no_beta(net, x, rng):
    found = _nf_blocks(net)
    for _, m in found:
        if isinstance(m.conv1, ScaledWSConv2d):
            first = [m.conv1, *([m.downsample[-1]] if m.downsample is not None else [])]
            for conv in first:
                conv.gamma = m.conv2.gamma
        else:
            m.beta = 1.0
    return Fault(('off_theory',)) if found else None


@fault
def wrong_gamma(net, x, rng):
    found = _nf_blocks(net)
    for _, m in found:
        for conv in m.modules():
            if isinstance(conv, ScaledWSConv2d):
                conv.gamma /= 1.714
            elif hasattr(conv, 'scale') and isinstance(conv, nn.Conv2d):
                conv.scale /= 1.714
    return Fault(('off_theory', 'attenuation')) if found else None


@fault
def plain_convolution(net, x, rng):
    found = _nf_blocks(net)
    if not found:
        return None
    name, m = rng.choice(found)
    leaf = rng.choice(['conv1', 'conv2', 'conv3'])
    conv = getattr(m, leaf)
    new = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.kernel_size[0] // 2,
        conv.dilation,
        conv.groups,
    )
    if not hasattr(m, 'expected_var') or m.conv3 is not conv:
        setattr(m, leaf, new)
    else:
        m.conv2 = nn.Conv2d(
            m.conv2.in_channels, m.conv2.out_channels, 3, m.conv2.stride, 1, 1, m.conv2.groups
        )
        leaf = 'conv2'
    return Fault(('off_theory',), f'{name}.{leaf}')
