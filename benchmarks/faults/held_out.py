"""The faults of the held-out split: other kinds, places and strengths than in ``faults``.

They were written after the rules, without a look at what the rules compare, and are placed in the
first, a middle or the last of all candidates: the stem, the last block and the head have them, too.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.layers import ScaledWSConv2d

from .faults import Fault, blocks, replace, scale_layer, scale_matters

GATES = ('se.', 'attention.fc', 'attention_last.fc', 'attn.conv', 'attn.fc', 'squeeze', '.fc1_')
GATES += ('relative', 'rel_pos', 'cpb', 'sgu', 'spatial_gating', '.gate.')
"""Parts of the names of layers whose output only multiplies another signal, or that make tables."""
JUMP = ('branch_jump', 'explosion', 'low_precision')


@dataclass
class Site:
    """A network that gets a fault, what it is called with, and its modules as they run."""

    net: nn.Module
    x: Tensor
    rng: random.Random
    order: list[str]
    tokens: bool = field(default=False)

    def module(self, name: str) -> Any:
        return self.net.get_submodule(name)

    def pick(self, names: list[str]) -> str:
        """The first, the last, or any of some names."""
        place = self.rng.choice(['first', 'last', 'any', 'any'])
        return {'first': names[0], 'last': names[-1], 'any': self.rng.choice(names)}[place]

    def layers(self) -> list[str]:
        """Layers whose weights are a matrix or a filter bank, gates left out."""
        found = []
        for name in self.order:
            m = self.module(name)
            if isinstance(m, nn.Conv2d | nn.Linear) and not any(g in f'{name}.' for g in GATES):
                if len(m.weight) >= 8 and m.weight[0].numel() >= 8 and bool(m.weight.any()):
                    found.append(name)
        return found

    def norms(self) -> list[str]:
        return [n for n in self.order if is_norm(self.module(n))]

    def activations(self) -> list[str]:
        kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ReLU6)
        names = [n for n in self.order if isinstance(self.module(n), kinds)]
        return [n for n in names if not any(g in f'{n}.' for g in GATES)]

    def following(self, name: str) -> str:
        """The module that runs next."""
        place = self.order.index(name) + 1
        return self.order[place] if place < len(self.order) else ''

    def blocks(self) -> list[str]:
        return [b for b in blocks(self.net) if any(n.startswith(f'{b}.') for n in self.order)]

    def branch_ends(self) -> list[str]:
        """The last layer or norm of each block."""
        ends = []
        for block in self.blocks():
            own = [n for n in self.order if n.startswith(f'{block}.')]
            own = [n for n in own if not any(s in n for s in ('downsample', 'shortcut', 'proj_'))]
            own = [n for n in own if n in self.layers() or is_norm(self.module(n))]
            ends += own[-1:]
        return ends


def is_norm(m: nn.Module) -> bool:
    """Whether a module is an activation norm with weights of its own."""
    vectors = [p for p in m.parameters(recurse=False) if p.dim() == 1]
    affine = type(m).__name__ == 'Affine'
    return 'norm' in type(m).__name__.lower() and bool(vectors) and not affine


def execution_order(net: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules with no children, or with weights of their own, as they ran first."""
    net = copy.deepcopy(net)
    net.train()  # some libraries' returns None
    order: dict[str, None] = {}
    for name, m in net.named_modules():
        own = next(m.parameters(recurse=False), None) is not None
        if name and (own or next(m.children(), None) is None):
            m.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
    with torch.no_grad():
        net(x)
    return list(order)


HELD_OUT_FAULTS: dict[str, Callable[[Site], Fault | list[Fault] | None]] = {}


def fault(function: Callable) -> Callable:
    HELD_OUT_FAULTS[function.__name__] = function
    return function


# ------------------------------------------------------------------ inputs
@fault
def centred_pixels(site):
    """The mean was taken away, and the division by the deviation forgotten."""
    return None if site.tokens else Fault(('bad_input',), inputs=site.x * 60)


@fault
def divided_twice(site):
    return None if site.tokens else Fault(('bad_input',), inputs=site.x / 255)


@fault
def off_centre(site):
    return None if site.tokens else Fault(('bad_input',), inputs=site.x * 0.3 - 1.8)


@fault
def one_image(site):
    if site.tokens:
        return Fault(('bad_input',), inputs=site.x[:1].expand_as(site.x).clone())
    return Fault(('bad_input',), inputs=site.x.mean(0, keepdim=True).repeat(4, 1, 1, 1))


@fault
def broken_last_image(site):
    if site.tokens:
        return None
    x = site.x.clone()
    x[-1, -1, -1, -1] = site.rng.choice([float('nan'), float('-inf')])
    return Fault(('non_finite',), inputs=x)


# ------------------------------------------------------------------ weights
@fault
def pruned_filters(site):
    name = site.pick(site.layers())
    m = site.module(name)
    rows = torch.randperm(len(m.weight))[: int(len(m.weight) * site.rng.uniform(0.15, 0.5)) + 1]
    m.weight.data[rows] = 0
    return Fault(('zero_weights', 'constant_channels', 'dead_units'), name)


@fault
def dead_stem(site):
    name = site.layers()[0]
    m = site.module(name)
    m.weight.data[: int(0.9 * len(m.weight))] = 0
    return Fault(('zero_weights', 'constant_channels', 'dead_units'), name)


@fault
def widened_by_copies(site):
    """A narrow layer was tiled to the width of this one."""
    names = [n for n in site.layers() if len(site.module(n).weight) % 4 == 0]
    name = site.pick(names)
    m = site.module(name)
    m.weight.data = torch.cat([m.weight.data[: len(m.weight) // 4]] * 4)
    return Fault(('duplicate_channels',), name)


@fault
def strong_layer(site):
    """A layer of a block is 12 to 25 times too large."""
    inside = tuple(f'{b}.' for b in site.blocks())
    names = [n for n in site.layers() if n.startswith(inside) and scale_matters(site.module(n))]
    if not names:
        return None
    name = site.pick(names)
    scale_layer(site.module(name), site.rng.choice([12.0, 16.0, 25.0]))
    return Fault((*JUMP, 'attention_saturated', 'saturated_units'), name)


@fault
def strong_end(site):
    """Something multiplies the end of one branch by 20, and no weight shows it."""
    names = site.branch_ends()
    if len(names) < 3:
        return None
    name = site.pick(names)
    site.module(name).register_forward_hook(lambda m, args, out: out * 20)
    return Fault(JUMP, name)


@fault
def strong_stem(site):
    """The first layer is 30 times too large, and no norm follows at once."""
    name = site.layers()[0]
    following = site.following(name)
    if any(name.startswith(f'{b}.') for b in site.blocks()):
        return None
    if not scale_matters(site.module(name)) or (following and is_norm(site.module(following))):
        return None
    scale_layer(site.module(name), 30.0)
    return Fault((*JUMP, 'stem_scale', 'bad_input'), name)


@fault
def strong_head(site):
    name = site.layers()[-1]
    m = site.module(name)
    if not isinstance(m, nn.Linear) or any(name.startswith(f'{b}.') for b in site.blocks()):
        return None
    m.weight.data.mul_(100)
    return Fault(JUMP, name)


@fault
def strong_norm(site):
    names = [n for n in site.norms() if getattr(site.module(n), 'weight', None) is not None]
    names = [n for n in names if any(n.startswith(f'{b}.') for b in site.blocks())]
    if not names:
        return None
    name = site.pick(names)
    site.module(name).weight.data.mul_(15)
    return Fault((*JUMP, 'attention_saturated', 'saturated_units'), name)


@fault
def wide_start(site):
    """All weights are drawn from N(0, 0.2), in a network without norms."""
    if site.norms() or any(isinstance(m, ScaledWSConv2d) for m in site.net.modules()):
        return None
    names = [n for n in site.layers() if type(site.module(n)) in (nn.Conv2d, nn.Linear)]
    if len(names) < 4:
        return None
    for name in names:
        nn.init.normal_(site.module(name).weight, std=0.2)
    return Fault(('explosion', 'non_finite', 'low_precision'))


@fault
def positive_weights(site):
    """All weights are drawn from U(0, 2/sqrt(fan_in)), in a network without norms."""
    names = [n for n in site.layers() if type(site.module(n)) in (nn.Conv2d, nn.Linear)]
    if site.norms() or len(names) < 4:
        return None
    for name in names:
        weight = site.module(name).weight
        nn.init.uniform_(weight, 0, 2 / weight[0].numel() ** 0.5)
    return Fault(('mean_shift', 'explosion', 'collapsed_images', 'collapsed_tokens'))


@fault
def tiny_start(site):
    """All weights are drawn from N(0, 1e-4)."""
    if any(isinstance(m, nn.BatchNorm2d | ScaledWSConv2d) for m in site.net.modules()):
        return None
    names = [n for n in site.layers() if type(site.module(n)) in (nn.Conv2d, nn.Linear)]
    if len(names) < 4:
        return None
    for name in names:
        nn.init.normal_(site.module(name).weight, std=1e-4)
    return Fault(('attenuation', 'dead_branch'))


@fault
def broken_parameter(site):
    """One value of a norm, a bias or the head is not finite."""
    names = [n for n in site.order if getattr(site.module(n), 'bias', None) is not None]
    if not names:
        return None
    name = site.pick(names)
    site.module(name).bias.data[0] = site.rng.choice([float('nan'), float('inf')])
    return Fault(('non_finite',), name)


class Divided(nn.Module):
    """Divide by the deviation over a dimension in which nothing varies."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x[:1, :1].std((0, 1), correction=0)


@fault
def division_by_zero(site):
    names = site.activations()
    if not names:
        return None
    name = site.pick(names)
    replace(site.net, name, Divided())
    return Fault(('non_finite',), name)


@fault
def beyond_half(site):
    """A bias lifts the end of one branch to the end of float16."""
    names = [n for n in site.branch_ends() if getattr(site.module(n), 'bias', None) is not None]
    if not names:
        return None
    name = site.pick(names)
    site.module(name).bias.data += 5e4
    return Fault(('low_precision', 'mean_shift', 'branch_jump'), name)


# ------------------------------------------------------------------ units
@fault
def shifted_norm(site):
    """The bias of a norm before an activation is -8 in 60 % of the channels."""
    names = []
    for name in site.norms():
        m, following = site.module(name), site.following(name)
        after = following in site.activations() or isinstance(
            getattr(m, 'act', None), nn.ReLU | nn.SiLU | nn.GELU
        )
        if after and getattr(m, 'bias', None) is not None:
            names.append(name)
    if not names:
        return None
    name = site.pick(names)
    bias = site.module(name).bias
    bias.data[: int(0.6 * len(bias)) + 1] = -8.0
    return Fault(('dead_units', 'dead_branch', 'constant_channels'), name)


@fault
def negated_input(site):
    """An activation reads negative values alone."""
    names = site.activations()
    if not names:
        return None
    name = site.pick(names)
    site.module(name).register_forward_pre_hook(lambda m, args: (-3 * args[0].abs() - 1,))
    return Fault(('dead_units', 'dead_branch', 'constant_channels', 'zero_branch'), name)


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(60 * x)


@fault
def hard_sigmoid(site):
    names = site.activations()
    if not names:
        return None
    name = site.pick(names)
    replace(site.net, name, HardSigmoid())
    return Fault(('saturated_units',), name)


class DynamicTanh(nn.Module):
    """DyT, a replacement of norms, with a slope that is far too large."""

    def __init__(self, slope: float = 40.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.slope * x)


@fault
def steep_dyt(site):
    """Every layer norm is replaced by DyT, one of them with a slope of 3000."""
    names = [n for n in site.norms() if isinstance(site.module(n), nn.LayerNorm)]
    if len(names) < 4:
        return None
    chosen = site.pick(names)
    for name in names:
        replace(site.net, name, DynamicTanh(3000.0 if name == chosen else 0.5))
    return Fault(('saturated_units',), chosen)


@fault
def hot_attention(site):
    """The queries are 40 times too large, more where the weights are small."""
    names = [n for n in site.order if n.endswith(('qkv', '.q', '.query', 'wqkv', '.to_q'))]
    names = [n for n in names if isinstance(site.module(n), nn.Linear | nn.Conv2d)]
    if not names or any(n.endswith(('norm_q', 'q_norm', 'pool_q')) for n in site.norms()):
        return None  # a norm takes the scale away
    name = site.pick(names)
    rows = len(site.module(name).weight) // (3 if 'qkv' in name else 1)

    def heat(m: nn.Module, args: tuple, out: Tensor) -> Tensor:
        factor = torch.ones(out.shape[-1 if isinstance(m, nn.Linear) else 1])
        factor[:rows] = 40 / min(1.0, m.weight.flatten(1).square().sum(1).mean().item())
        return out * (factor if isinstance(m, nn.Linear) else factor[:, None, None])

    site.module(name).register_forward_hook(heat)
    return Fault(('attention_saturated', 'branch_jump'), name)


@fault
def loud_positions(site):
    """The position embedding outweighs what it is added to."""
    found = {n: p for n, p in site.net.named_parameters() if 'pos_embed' in n and p.dim() > 1}
    if not found:
        return None
    parameter = next(iter(found.values()))
    nn.init.normal_(parameter, std=300.0)
    return Fault(('collapsed_images', 'branch_jump', 'explosion'))


@fault
def loud_stem_bias(site):
    """The bias of the first layer outweighs its weights, and no norm follows at once."""
    name = site.layers()[0]
    m, following = site.module(name), site.following(name)
    inside = any(name.startswith(f'{b}.') for b in site.blocks())
    if inside or m.bias is None or (following and is_norm(site.module(following))):
        return None
    nn.init.normal_(m.bias, std=100.0)
    return Fault(('collapsed_images', 'collapsed_tokens', 'mean_shift', *JUMP))


@fault
def averaged_tokens(site):
    """A block gives all tokens their mean."""
    names = [n for n in site.blocks() if 'cls' not in n and 'token_only' not in n]
    if len(names) < 3 or not any(isinstance(m, nn.LayerNorm) for m in site.net.modules()):
        return None
    name = names[len(names) // 2]
    shapes = []
    probe = copy.deepcopy(site.net)
    probe.get_submodule(name).register_forward_hook(lambda m, a, out: shapes.append(out))
    with torch.no_grad():
        probe(site.x)
    if not isinstance(shapes[0], Tensor) or shapes[0].dim() != 3:
        return None
    site.module(name).register_forward_hook(
        lambda m, args, out: out.mean(1, keepdim=True).expand_as(out)
    )
    return Fault(('collapsed_tokens',))


# ------------------------------------------------------------------ norms
def _repeated_norms(site):
    names = []
    classes = [type(site.module(b)) for b in site.blocks()]
    for block in site.blocks():
        if classes.count(type(site.module(block))) > 3:
            names += [n for n in site.norms() if n.startswith(f'{block}.')]
    return names


def _without(m):
    rest = [p for p in (getattr(m, 'drop', None), getattr(m, 'act', None)) if p is not None]
    return nn.Sequential(*rest) if rest else nn.Identity()


@fault
def forgotten_norm(site):
    """A norm is an identity, in the first, a middle or the last block."""
    names = _repeated_norms(site)
    if not names:
        return None
    name = site.pick(names)
    replace(site.net, name, _without(site.module(name)))
    return Fault(('norm_missing',), name)


@fault
def block_without_norms(site):
    """A block has none of its norms."""
    names = _repeated_norms(site)
    if not names:
        return None
    name = site.pick(names)
    block = next(b for b in site.blocks() if name.startswith(f'{b}.'))
    for name in names:
        if name.startswith(f'{block}.'):
            replace(site.net, name, _without(site.module(name)))
    return Fault(('norm_missing',), block)


def _batch_norms(site):
    return [n for n in site.norms() if isinstance(site.module(n), nn.BatchNorm2d)]


def _train_statistics(site, steps=12):
    for name in _batch_norms(site):
        site.module(name).momentum = None
    site.net.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(steps):
            site.net(torch.randn(site.x.shape, generator=generator))
    site.net.eval()


@fault
def statistics_of_other_data(site):
    """The statistics are of other data: all means are off by 3 deviations."""
    names = _batch_norms(site)
    if not names:
        return None
    _train_statistics(site, 2)
    for name in names:
        m = site.module(name)
        m.running_mean += 3 * m.running_var.sqrt()
    return Fault(('norm_statistics',), options=dict(mode='eval'))


@fault
def statistics_of_one_norm(site):
    """One norm alone has a wrong running variance."""
    names = _batch_norms(site)
    if not names:
        return None
    _train_statistics(site)
    name = site.pick(names)
    site.module(name).running_var.mul_(site.rng.choice([300.0, 1 / 300]))
    return Fault(('norm_statistics',), name, options=dict(mode='eval'))


@fault
def last_norms_frozen(site):
    """The batch norms of the last block are in evaluation mode, never trained."""
    found = [b for b in site.blocks() if any(n.startswith(f'{b}.') for n in _batch_norms(site))]
    if not found:
        return None
    site.net.train()
    for name in _batch_norms(site):
        if name.startswith(f'{found[-1]}.'):
            site.module(name).eval()
    return Fault(('norm_statistics',), found[-1], options=dict(mode='asis'))


@fault
def single_image(site):
    if not _batch_norms(site) or site.tokens:
        return None
    return Fault(('norm_statistics',), inputs=site.x[:1])


# ------------------------------------------------------------------ training
@fault
def drop_instead_of_keep(site):
    """The rate to keep was given as the rate to drop."""
    names = [n for n in site.order if isinstance(site.module(n), nn.Dropout | nn.Identity)]
    names = [n for n in names if not n.endswith('q_norm')]
    if not names:
        return None
    name = site.pick(names)
    kind = site.rng.choice([nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout])
    replace(site.net, name, kind(site.rng.choice([0.8, 0.9])))
    return Fault(('high_dropout',), name)


@fault
def frozen_layer(site):
    """One layer of the middle does not train."""
    names = site.layers()
    name = names[len(names) // 2]
    for p in site.module(name).parameters():
        p.requires_grad_(False)
    return Fault(('frozen_weights',), name)


@fault
def frozen_trunk(site):
    """All but the last layer are frozen."""
    last = site.layers()[-1]
    for name, p in site.net.named_parameters():
        p.requires_grad_(name.startswith(f'{last}.'))
    return Fault(('frozen_weights',))


@fault
def detached_end(site):
    """The end of one branch is detached."""
    names = site.branch_ends()
    if len(names) < 3:
        return None
    name = site.pick(names)
    site.module(name).register_forward_hook(lambda m, args, out: out.detach())
    block = next(b for b in site.blocks() if name.startswith(f'{b}.'))
    return Fault(('no_gradient',), block, options=dict(backward=site.rng.random() < 0.5))


@fault
def block_without_graph(site):
    """A block runs without a graph."""
    names = site.blocks()
    if len(names) < 3:
        return None
    name = site.pick(names[:-1])
    block = site.module(name)
    forward = block.forward

    def without_graph(*args, **kwargs):
        with torch.no_grad():
            return forward(*args, **kwargs)

    block.forward = without_graph
    return Fault(('no_gradient',), options=dict(backward=site.rng.random() < 0.5))


@fault
def layer_never_called(site):
    """A block has a layer that its forward does not use."""
    containers = (nn.Sequential, nn.ModuleDict, nn.ModuleList)
    names = [b for b in site.blocks() if not isinstance(site.module(b), containers)]
    if len(names) < 2:
        return None
    name = site.pick(names)
    site.module(name).extra = nn.Conv2d(16, 16, 3)
    where = f'{name}.extra'
    return Fault(('no_gradient',), where, options=dict(backward=site.rng.random() < 0.5))


@fault
def tied_layers(site):
    """Two layers of two blocks have one weight."""
    names = site.layers()
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = site.module(first), site.module(second)
            if type(a) is type(b) and a.weight.shape == b.weight.shape:
                b.weight = a.weight
                return Fault(('shared_weights',), second)
    return None


@fault
def head_at_zero(site):
    name = site.layers()[-1]
    m = site.module(name)
    if not isinstance(m, nn.Linear) or len(m.weight) not in (10, 1000):
        return None
    nn.init.zeros_(m.weight)
    return Fault(('no_gradient',), name, options=dict(backward=True))


@fault
def decayed_block(site):
    """Weight decay has taken the norms and the weights of one block."""
    names = [b for b in site.blocks() if any(n.startswith(f'{b}.') for n in site.norms())]
    names = [n for n in names if not isinstance(site.module(n), nn.Sequential)]
    if len(names) < 3 or 'densenet' in type(site.net).__name__.lower():
        return None
    name = site.pick(names)
    if any('downsample' in n or 'shortcut' in n for n, _ in site.module(name).named_modules()):
        name = names[-1]
    for p in site.module(name).parameters():
        p.data.mul_(1e-4)
    return Fault(('dead_branch', 'zero_branch', 'attenuation'), name, options=dict(state='trained'))


@fault
def decayed_scales(site):
    """Weight decay has taken every LayerScale or gain."""
    names = ('gamma', 'layer_scale', 'skip_gain', 'gain', 'ls1', 'ls2')
    found = [p for n, p in site.net.named_parameters() if any(k in n for k in names)]
    found = [p for p in found if p.dim() <= 1]
    if len(found) < 4:
        return None
    for p in found:
        p.data.fill_(3e-6)
    return Fault(('dead_branch',), options=dict(state='trained'))


# ------------------------------------------------------------------ the normalizer-free method
def _nf_blocks(site):
    return [
        (n, m)
        for n, m in site.net.named_modules()
        if hasattr(m, 'beta') and isinstance(getattr(m, 'alpha', None), float)
    ]


@fault
def one_alpha(site):
    """One block has alpha 1.5."""
    found = _nf_blocks(site)
    if not found or not any(
        isinstance(m, ScaledWSConv2d) or hasattr(m, 'gain') for m in site.net.modules()
    ):
        return None
    name, m = site.rng.choice(found)
    m.alpha = 1.5
    return Fault(('off_theory', 'branch_jump', 'not_reset'), name)


@fault
def other_gamma(site):
    """The gains are those of another activation."""
    found = [m for _, m in _nf_blocks(site)]
    if not found:
        return None
    count = 0
    for block in found:
        for conv in block.modules():
            if isinstance(conv, ScaledWSConv2d):
                conv.gamma *= 1.2716 / 1.7015
                count += 1
            elif isinstance(conv, nn.Conv2d) and hasattr(conv, 'scale'):
                conv.scale *= 1.2716 / 1.7015
                count += 1
    return Fault(('off_theory',)) if count else None


@fault
def plain_shortcut(site):
    """The projection of a transition is a plain convolution."""
    for name, m in _nf_blocks(site):
        shortcut = getattr(m, 'downsample', None)
        for leaf, conv in shortcut.named_modules() if shortcut is not None else ():
            if isinstance(conv, nn.Conv2d) and type(conv) is not nn.Conv2d:
                new = nn.Conv2d(conv.in_channels, conv.out_channels, 1, conv.stride)
                replace(site.net, '.'.join(p for p in (name, 'downsample', leaf) if p), new)
                return Fault(('off_theory',), name)
    return None


# ------------------------------------------------------------------ two at once
@fault
def copies_and_a_missing_norm(site):
    return _both(site, 'widened_by_copies', 'forgotten_norm')


@fault
def pruned_and_frozen(site):
    return _both(site, 'pruned_filters', 'frozen_layer')


@fault
def strong_end_and_dead_units(site):
    return _both(site, 'strong_end', 'shifted_norm')


def _both(site: Site, *kinds: str) -> list[Fault] | None:
    found = [HELD_OUT_FAULTS[kind](site) for kind in kinds]
    return found if all(found) else None  # type: ignore[return-value]
