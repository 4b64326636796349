"""Collect evidence while a network runs: called with each operation, it looks at samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .evidence import ActivationFact, AttentionFact, LayerFact, NormFact
from .filters import measure_filters
from .graph import Node
from .graph.nodes import memory_of
from .graph.ops import BATCH_NORMS, CONVOLUTIONS, MOVES, NORMS, SCALINGS
from .graph.tracer import Call, Tracer
from .parts import parts_of

RECTIFIERS = ('relu', 'clamp_min', 'hardtanh', 'gelu', 'silu', 'hardswish', 'mish')
"""Activations whose units can die: they never give a positive value."""
SATURATING = {'tanh': (-1.0, 1.0), 'erf': (-1.0, 1.0), 'sigmoid': (0.0, 1.0)}
SATURATING |= {'hardsigmoid': (0.0, 1.0), 'hardtanh': (-1.0, 1.0)}
"""Activations with two flat ends, and where these are."""
FLAT = 0.96
"""Beyond this share of the way to an end an activation is flat."""
FUSED_ATTENTIONS = 'scaled_dot_product'
SOFTMAXES = ('_softmax', '_safe_softmax')
_SAMPLE = 1 << 15  # values that are looked at
_LAYERS = 64  # whose filters are looked at together
_HELD = 1 << 19  # values of weights that are computed, such as standardized ones


class Numbers:
    """Scalars on the device that come to the host together."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.targets: list[tuple[Any, str]] = []

    def put(self, target: Any, name: str, value: Tensor) -> None:
        """Set an attribute of ``target`` to ``value``, a scalar, when the numbers are delivered."""
        self.tensors.append(value)
        self.targets.append((target, name))

    def deliver(self, digits: int | None = None) -> None:
        """Set the attributes; with ``digits``, to as many significant digits."""
        kinds: dict[torch.dtype, list[int]] = {}
        for place, tensor in enumerate(self.tensors):
            kinds.setdefault(tensor.dtype, []).append(place)
        for places in kinds.values():
            values = torch.stack([self.tensors[place] for place in places]).tolist()
            for (target, name), value in zip((self.targets[place] for place in places), values):
                setattr(target, name, value if digits is None else float(f'{value:.{digits}g}'))


def sample(x: Tensor, dim: int, size: int = _SAMPLE) -> Tensor:
    """Return some of the values of a signal as a matrix, a column per channel.

    Positions are left out first, then samples.
    """
    dim %= x.dim()
    for axis in [*range(1, x.dim()), 0]:
        if x.numel() > size and axis != dim:
            step = min(-(-x.numel() // size), x.shape[axis])
            x = x[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return x.movedim(dim, -1).flatten(0, -2)


class Observer:
    """Evidence of one pass; an instance is the tracer's ``observe``."""

    def __init__(self, model: nn.Module) -> None:
        self.numbers = Numbers()
        self.activations: list[tuple[Node, ActivationFact]] = []
        self.attentions: list[tuple[Node, AttentionFact]] = []
        self.norms: list[tuple[Node, NormFact]] = []
        self.layers: list[tuple[Node, LayerFact]] = []
        self.scales: list[tuple[NormFact, Tensor]] = []  # the weights of norms
        self.filters: list[tuple[LayerFact, Tensor]] = []  # that are left to look at
        self.held = 0  # values of computed weights among these
        parts = parts_of(model)
        self.parameters = {memory_of(p) for _, p in parts.parameters() if p.dim() > 1} - {0}
        self.buffers = {memory_of(buffer) for _, buffer in parts.buffers()} - {0}
        self.used: dict[int, list[Node]] = {}  # storage of a tensor that is no signal -> users
        self.batches = {
            module: int(count)
            for _, module in parts.modules
            if 'num_batches_tracked' in module._buffers
            and isinstance(count := module._buffers['num_batches_tracked'], Tensor)
            and count.numel() == 1
            and not count.is_meta
        }

    def __call__(self, tracer: Tracer, call: Call, result: Any) -> None:
        """Look at the output of an operation."""
        out, node = call.out, call.node
        if out is None or node is None:
            return
        for x in call.others:
            if memory := memory_of(x):
                self.used.setdefault(memory, []).append(node)
        if not out.is_floating_point() or out.is_meta or not out.numel() or out.dim() < 2:
            return
        op = call.op.removesuffix('_')
        look = Observer.see_fused if FUSED_ATTENTIONS in op else _LOOKS.get(op)
        if look is not None:
            look(self, tracer, call, out, node)
        if op in SATURATING and (op != 'hardtanh' or call.args[1:2] == (-1.0,)):
            self.see_saturation(node, op, out)

    def see_activation(self, tracer: Tracer, call: Call, out: Tensor, node: Node) -> None:
        """Count the units that give no positive value."""
        op, args = call.op.removesuffix('_'), call.args
        if op in ('hardtanh', 'clamp_min') and (len(args) < 2 or args[1] != 0):
            return
        dim = node.channel_dim % out.dim()
        fact = self._activation(node, op, out)
        if out.device.type != 'cpu':  # a closer look would wait for the device
            highest = sample(out, dim).amax(0)
            self.numbers.put(fact, 'dead', (highest <= 0).double().mean())
            return
        fact.dead = 0.0
        highest = sample(out, dim, max(1 << 13, 32 * fact.units)).amax(0)
        index = (highest <= 0).nonzero().flatten()
        if len(index):  # look at all their values
            rest = out.index_select(dim, index).movedim(dim, 0).flatten(1)
            self.numbers.put(fact, 'dead', (rest.amax(1) <= 0).sum().double() / fact.units)

    def see_saturation(self, node: Node, op: str, out: Tensor) -> None:
        """Count the values that are at the ends of a bounded activation."""
        fact = self._activation(node, op, out)
        low, high = SATURATING[op]
        values = sample(out, node.channel_dim)
        away = (values.float() - (low + high) / 2).abs_()
        flat = (away > FLAT * (high - low) / 2).sum().double()
        self.numbers.put(fact, 'saturated', flat / values.numel())

    def _activation(self, node: Node, op: str, out: Tensor) -> ActivationFact:
        units = out.shape[node.channel_dim % out.dim()]
        fact = ActivationFact(node.module, 0, op, units, out.numel() // max(1, units))
        fact.positions = max(1, fact.count // out.shape[0])
        self.activations.append((node, fact))
        return fact

    def see_softmax(self, tracer: Tracer, call: Call, out: Tensor, node: Node) -> None:
        """Measure the entropy of weights that sum to 1 over the last axis."""
        if call.args[1] in (-1, out.dim() - 1) and out.shape[-1] > 1 and out.dim() > 2:
            logits, p = (sample(x, -1) for x in (call.args[0], out))
            self._entropy(node, logits.float(), p.float())

    def see_fused(self, tracer: Tracer, call: Call, out: Tensor, node: Node) -> None:
        """Recompute the weights of some queries of a fused attention."""
        q, k = call.args[:2]
        if q.dim() != 4 or k.shape[-2] < 2:
            return
        given = call.named
        mask = given.get('attn_mask')
        mask = given.get('attn_bias') if mask is None else mask
        step = max(1, q.shape[-2] // 32)
        q, k = q[:2, :, ::step].float(), k[:2].float()
        if k.shape[1] != q.shape[1]:  # grouped queries
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scale = given.get('scale')
        logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if mask is not None:
            full = mask.expand(*call.args[0].shape[:-1], k.shape[-2])[:2, :, ::step]
            none = (
                torch.zeros_like(logits).masked_fill_(~full, -math.inf)
                if (full.dtype == torch.bool)
                else full
            )
            logits = logits + none
        elif given.get('is_causal'):
            rows = torch.arange(call.args[0].shape[-2], device=q.device)[::step, None]
            columns = torch.arange(k.shape[-2], device=q.device)
            logits = logits.masked_fill(columns > rows, -math.inf)
        logits = logits.flatten(0, -2)
        self._entropy(node, logits, logits.softmax(-1))

    def _entropy(self, node: Node, logits: Tensor, p: Tensor) -> None:
        fact = AttentionFact(node.module, 0, p.shape[-1], 1.0)
        self.attentions.append((node, fact))
        seen = (logits > -1e4).sum(-1)  # masked tokens are not attended to
        entropy = torch.special.entr(p).sum(-1) / seen.clamp(min=2).double().log()
        self.numbers.put(fact, 'entropy', entropy[seen > 1].mean())

    def see_norm(self, tracer: Tracer, call: Call, out: Tensor, node: Node) -> None:
        """Note what a norm divides by, and whether that fits the batch."""
        given = call.named
        fact = NormFact(node.module, 0, call.op)
        self.norms.append((node, fact))
        weight = given.get('weight')
        if isinstance(weight, Tensor) and weight.numel():
            self.scales.append((fact, weight.detach().clone()))
        if call.op not in BATCH_NORMS:
            return
        module = tracer.modules.get(node.module)
        fact.batches = self.batches.get(module) if module is not None else None
        mean, var = given.get('running_mean'), given.get('running_var')
        x = call.args[0]
        training = given.get('training', given.get('train', 'no_' not in call.op))
        if training or mean is None or var is None:
            fact.count = x.numel() // max(1, x.shape[1])
            return
        fact.running = True
        fact.untouched = not bool(mean.any()) and bool((var == 1).all())
        values = sample(x, 1).float()
        second = (values - mean.float()).square().mean(0)
        ratio = (second.clamp(min=1e-30) / var.float().clamp(min=1e-30)).log10().abs()
        self.numbers.put(fact, 'log_ratio', ratio.median())

    def see_layer(self, tracer: Tracer, call: Call, out: Tensor, node: Node) -> None:
        """Look at the weight of a convolution or a matrix product."""
        weight = _weight_of(tracer, call)
        if weight is None or not weight.numel() or weight.is_meta:
            return
        if memory_of(weight) in self.buffers:  # a fixed filter, such as one that blurs
            return
        rows = weight.flatten(1)
        fact = LayerFact(node.module, 0, call.op, rows.shape[0], rows.shape[1], 0.0)
        self.layers.append((node, fact))
        self.filters.append((fact, rows))
        if memory_of(weight) not in self.parameters:
            self.held += weight.numel()  # the network itself does not hold it any more
        if self.held > _HELD or len(self.filters) >= _LAYERS:
            self.look_at_filters()

    def deliver(self) -> None:
        """Fill in the numbers of all facts."""
        self.look_at_filters()
        for device in {weight.device for _, weight in self.scales}:
            chosen = [(fact, weight) for fact, weight in self.scales if weight.device == device]
            lengths = torch._foreach_norm([weight.float() for _, weight in chosen], 2)
            for (fact, weight), length in zip(chosen, lengths):
                self.numbers.put(fact, 'scale', length / weight.numel() ** 0.5)
        self.numbers.deliver(digits=5)

    def look_at_filters(self) -> None:
        """Look at the filters of the layers since the last time."""
        measure_filters(self.filters, self.numbers)
        self.filters, self.held = [], 0


def _weight_of(tracer: Tracer, call: Call) -> Tensor | None:
    """The weight of a layer, a filter per row; None where both factors are signals."""
    args = call.args
    place = {'addmm': 2, 'mm': 1}.get(call.op, 1)
    if len(args) <= place or not isinstance(args[place], Tensor) or args[place] in tracer.node_of:
        return None
    weight = args[place].detach()
    if weight.dim() < 2 or not weight.is_floating_point():
        return None
    if call.op in ('addmm', 'mm', 'conv_transpose'):
        return weight.transpose(0, 1)
    return weight


_LOOKS: dict[str, Callable] = {
    **dict.fromkeys(RECTIFIERS, Observer.see_activation),
    **dict.fromkeys(SOFTMAXES, Observer.see_softmax),
    **dict.fromkeys(NORMS, Observer.see_norm),
    **dict.fromkeys((*CONVOLUTIONS, 'conv_transpose', 'mm', 'addmm'), Observer.see_layer),
}


def multiplies(node: Node) -> bool:
    """Whether the output of a node only multiplies another signal, as a gate does."""
    todo, seen, found = [node], 0, False
    while todo and seen < 20:
        current = todo.pop()
        seen += 1
        for user in current.users:
            if user.op in ('mul', 'mul_') and len(user.parents) > 1:
                found = True
            elif user.op in _PASSED and len(user.parents) == 1:
                todo.append(user)
            else:
                return False
    return found


_PASSED = (*MOVES, *SCALINGS, 'add', 'add_', 'sub', 'rsub', 'copy_')


def feeds_a_gate(node: Node) -> bool:
    """Whether what follows a pooled activation ends in a multiplication with another signal."""
    todo = [node]
    seen: set[Node] = set()
    while todo and len(seen) < 40:
        current = todo.pop()
        for user in current.users:
            if user.op in ('mul', 'mul_') and len(user.parents) > 1:
                return True
            if user not in seen:
                seen.add(user)
                todo.append(user)
    return False
