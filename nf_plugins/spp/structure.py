"""What a network is, beside what its signal does: the evidence that needs no number of a pass."""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nf_plugins.functional import channel_statistics
from nf_plugins.layers import ScaledWSConv2d

from .evidence import (
    MOST_NAMES,
    ActivationFact,
    DropFact,
    Evidence,
    InputFact,
    MethodFact,
    ParameterFact,
)
from .graph import Node, Residual, Tracer, Unit
from .graph.nodes import memory_of, path_nodes
from .graph.ops import ACTIVATIONS, ADDITIONS, HEAVY, MOVES, NORMS, POOLINGS, SCALINGS
from .observer import SATURATING, Observer, feeds_a_gate, multiplies
from .parts import parts_of
from .snapshot import without_copies

if TYPE_CHECKING:
    from .profile import BlockSignal

LAYERS = HEAVY - {'bmm', 'baddbmm'}
"""Products with a weight: the others are of two signals, as in attention."""
Blocks = Sequence[tuple['BlockSignal', 'Residual | Unit | None']]


# ------------------------------------------------------------------ before the pass
def find_state(model: nn.Module) -> str | None:
    """Tell an initialised network from a trained one, None where nothing in it says which.

    Trained: batch norms have seen batches, or most norms, gains and LayerScales have values that
    differ from channel to channel, which no usual initialisation gives them.

    Args:
        model: The network, before it is measured.

    Example:
        >>> find_state(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        'init'
    """
    vectors = []
    for _, module in parts_of(model).modules:
        batches = getattr(module, 'num_batches_tracked', None)
        if isinstance(batches, Tensor) and not batches.is_meta and bool((batches > 0).any()):
            return 'trained'
        for name, p in module._parameters.items():
            if p is not None and is_scale(module, name, p):
                vectors.append(p.detach())
    if not vectors:
        return None
    extremes = [torch.aminmax(v) for v in vectors if v.numel() > 1]
    changed = sum(bool(low != high) for low, high in extremes)  # nan differs from nan
    several = sum(v.numel() > 1 for v in vectors)
    if several:
        return 'trained' if changed > several / 2 else 'init'
    values = {round(float(v), 6) for v in vectors}
    return 'init' if len(values) == 1 else 'trained'


def is_scale(module: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a norm, a gain or a LayerScale."""
    if parameter.is_meta or not parameter.numel() or not parameter.is_floating_point():
        return False
    vector = parameter.numel() == max(parameter.shape, default=1)
    norm = 'norm' in type(module).__name__.lower() and name == 'weight'
    return vector and (norm or 'gain' in name or 'gamma' in name or 'layer_scale' in name)


def input_facts(tensors: Iterable[Tensor]) -> list[InputFact]:
    """Describe the tensors of numbers, or of tokens, that a network is called with."""
    facts = []
    for x in tensors:
        if x.is_complex() or x.dtype == torch.bool or not x.numel() or x.is_meta:
            continue
        x = x.detach()
        images, tokens = x.dim() == 4, not x.is_floating_point()
        values = x.double() if tokens else x
        stats = channel_statistics(values if images else values.reshape(1, -1), int(images))
        means = stats.mean.double()
        mean = means.mean()
        std = (stats.var.double().mean() + (means - mean).square().mean()).sqrt()
        equal = x.dim() > 1 and len(x) > 1 and all(torch.equal(x[0], other) for other in x[1:])
        constant = _constant_channels(x) if images and x[0, 0].numel() > 1 else 0.0
        facts.append(InputFact(tuple(x.shape), float(mean), float(std), equal, constant, tokens))
    return facts


def _constant_channels(x: Tensor) -> float:
    """Share of the channels of images that have one value everywhere."""
    first = x[0, :, 0]
    alike = (first == first[:, :1]).all(1).tolist()  # to look at the others takes long
    constant = [a and bool((x[:, c] == first[c, 0]).all()) for c, a in enumerate(alike)]
    return sum(constant) / len(constant)


# ------------------------------------------------------------------ after the pass
def describe(
    blocks: Blocks,
    tracer: Tracer,
    observer: Observer,
    model: nn.Module,
    inputs: list[InputFact],
    gradients: set[int] | None,
) -> Evidence:
    """Put the evidence of a pass together.

    Args:
        blocks: The blocks with their traces.
        tracer: The tracer of the pass.
        observer: What it was observed with.
        model: The network.
        inputs: What it was called with.
        gradients: The identities of the parameters that the output depends on, None where no
            gradient was measured.
    """
    describe_blocks(blocks, tracer)
    observer.deliver()
    ends = [(item.node.index, b.index) for b, item in blocks if item is not None]
    places = [index for index, _ in ends]
    first = blocks[0][1]
    start = first.source.index if isinstance(first, Residual) else -1
    if blocks[0][0].kind == 'stem' and len(blocks) > 1:
        item = blocks[1][1]
        start = item.source.index if isinstance(item, Residual) else -1
    stem = blocks[0][0].index if blocks[0][0].kind == 'stem' else ends[0][1]

    def block_of(node: Node) -> int:
        if node.index <= start:
            return stem
        return ends[min(bisect.bisect_left(places, node.index), len(ends) - 1)][1]

    _complete_activations(observer)
    inner, after = _layers_after(tracer.nodes)
    for node, layer in observer.layers:
        layer.inner, layer.last = node in inner, node not in after
        layer.normed = bool(node.users) and all(user.op in NORMS for user in node.users)
    for facts in (observer.activations, observer.attentions, observer.norms, observer.layers):
        for node, fact in facts:
            fact.block = block_of(node)
    attended = {node for node in tracer.nodes if _feeds_product(node)}
    return Evidence(
        type(model).__name__,
        tuple(sorted(_options(model))),
        inputs,
        [fact for _, fact in observer.activations],
        [
            fact
            for node, fact in observer.attentions
            if node in attended or 'softmax' not in node.op
        ],
        [fact for _, fact in observer.norms],
        [fact for _, fact in observer.layers],
        find_drops(model),
        method_facts(blocks, tracer, [fact for _, fact in observer.activations]),
        parameter_facts(model, tracer, observer, blocks, gradients),
    )


def _complete_activations(observer: Observer) -> None:
    for node, fact in observer.activations:
        bounded = fact.op in SATURATING and fact.dead is None
        pooled = fact.positions == 1
        fact.gate = multiplies(node) if bounded else pooled and feeds_a_gate(node)


def _feeds_product(node: Node) -> bool:
    todo, seen = [node], 0
    while todo and seen < 20 and 'softmax' in node.op:
        current = todo.pop()
        seen += 1
        for user in current.users:
            if user.op in HEAVY or user.op == 'mul':
                return True
            todo.append(user)
    return False


def _layers_after(nodes: list[Node]) -> tuple[set[Node], set[Node]]:
    """The nodes whose values go through another layer of the same branch, and through any at all.

    A value that is added to another signal before the next layer is at the end of a branch, also
    where a gate is computed from it.
    """
    direct: set[Node] = set()  # they reach an addition, or the output, before any layer
    after: set[Node] = set()
    for node in reversed(nodes):
        if node.returned or not node.users:
            direct.add(node)
        for user in node.users:
            heavy = user.op in HEAVY or 'attention' in user.op
            if heavy or user in after:
                after.add(node)
            added = user.op in ADDITIONS and len(user.parents) > 1
            if added or (user in direct and not heavy):
                direct.add(node)
    return after - direct, after


def _options(model: nn.Module) -> set[str]:
    """Names of the arguments that the constructor of a network and of its base classes take."""
    names: set[str] = set()
    for cls in type(model).__mro__:
        if cls is nn.Module:
            break
        if '__init__' in vars(cls):
            try:
                names.update(inspect.signature(cls).parameters)
            except (TypeError, ValueError):
                continue
    return names - {'self', 'args', 'kwargs'}


# ------------------------------------------------------------------ blocks
def describe_blocks(blocks: Blocks, tracer: Tracer) -> None:
    """Fill in what the blocks are made of."""
    modules = tracer.modules
    for block, item in blocks:
        block.module = getattr(item, 'name', '')
        module = modules.get(block.module)
        block.family = type(module).__name__ if module is not None and block.module else ''
        if isinstance(item, Residual):
            branch = path_nodes(item.end, item.source)
            shortcut = path_nodes(item.shortcut, item.source) - branch
            layers = [n for n in branch if n.op in LAYERS]
            block.max_pooled = any('max_pool' in n.op for n in shortcut)
            block.shortcut_norms = len(_norms(shortcut, modules))
            block.pre_norm = _starts_with_norm(branch, item.source, modules)
            block.pre_norm |= _ends_with_norm(item.bare, modules)
        elif isinstance(item, Unit):
            branch = {n for n in tracer.nodes if _inside(n.module, item.name)}
            layers = [n for n in branch if n.op in LAYERS]
        else:
            continue
        block.layers = len(layers)
        block.norms = len(_norms(branch, modules))
        used = sorted({n.op.removesuffix('_') for n in branch if _is_activation(n)})
        block.activation = ' '.join(used)


def _is_activation(node: Node) -> bool:
    return node.op in ACTIVATIONS or node.op.removesuffix('_') in SATURATING


def _inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f'{outer}.')


def _norms(nodes: Iterable[Node], modules: dict[str, nn.Module]) -> set[Any]:
    """The norms among some nodes: modules, or operations that no module of a norm runs."""
    found: set[Any] = set()
    for node in nodes:
        if node.op in MOVES:
            continue
        if is_norm(modules.get(node.module)):
            found.add(node.module)
        elif node.op in NORMS:
            found.add(node)
    return found


def is_norm(module: nn.Module | None) -> bool:
    """Whether a module is an activation norm, by the name of its class: libraries share none."""
    name = type(module).__name__.lower()
    if module is None or 'norm' not in name or 'nonorm' in name:
        return False
    own = next(module.parameters(recurse=False), None)
    return own is not None or next(module.children(), None) is None


def _starts_with_norm(branch: set[Node], source: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the scale of a branch's input has no effect: a norm comes before any activation."""
    todo, seen, found = [source], {source}, False
    while todo:
        for user in todo.pop().users:
            if user in seen or (user not in branch and user.root is not source):
                continue
            seen.add(user)
            if user.op in NORMS or is_norm(modules.get(user.module)):
                found = True
            elif _is_activation(user) or 'softmax' in user.op or 'attention' in user.op:
                return False
            else:
                todo.append(user)
    return found


def _ends_with_norm(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the last operation of a branch is a norm."""
    while node.op in MOVES and node.parents:
        node = node.parents[0]
    return node.op in NORMS or is_norm(modules.get(node.module))


# ------------------------------------------------------------------ parameters
def find_drops(model: nn.Module, least: float = 0.3) -> list[DropFact]:
    """The dropouts and stochastic depths of a network whose rate is at least ``least``."""
    facts = []
    for name, module in parts_of(model).modules:
        kind = type(module).__name__.lower()
        for attribute, value in vars(module).items():
            if not isinstance(value, float) or not least <= value <= 1:
                continue
            named = attribute in ('p', 'prob', 'rate') and 'drop' in kind
            named |= 'drop' in attribute and 'keep' not in attribute
            if named or (attribute == 'p' and 'stochasticdepth' in kind):
                facts.append(DropFact(name, value))
                break
    return facts


def parameter_facts(
    model: nn.Module,
    tracer: Tracer,
    observer: Observer,
    blocks: Blocks,
    gradients: set[int] | None,
) -> list[ParameterFact]:
    """Find frozen, unreached and shared parameters."""
    parameters = dict(parts_of(model).parameters())
    facts = []

    def add(kind: str, names: list[str], total: int, reason: str = '') -> None:
        if names:
            own = [
                b.index for b, _ in blocks if any(_inside(n, b.module) for n in names) and b.module
            ]
            short = tuple(names[:MOST_NAMES])
            facts.append(ParameterFact(kind, short, len(names), total, tuple(own), reason))

    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    add('frozen', [name for name in parameters if name not in trainable], len(parameters))
    matrices = {name for name, p in parameters.items() if p.numel() > max(p.shape, default=1)}
    if gradients is not None:
        lost = [name for name, p in trainable.items() if id(p) not in gradients]
    else:
        lost = _unreached(trainable, tracer, observer)
    used = [name for name in lost if _was_used(name, parameters[name], tracer, observer)]
    unused = [name for name in lost if name not in used]
    add('no_gradient', [n for n in used if n in matrices] or used, len(trainable), 'detached')
    add('no_gradient', [n for n in unused if n in matrices], len(trainable), 'unused')
    twice, parts = _shared(model)
    reason = 'part' if parts == len(twice) else ''
    add('shared', twice, len(parameters), reason)
    return facts


def _shared(model: nn.Module) -> tuple[list[str], int]:
    """Parameters in two places, as 'first = second', and how many of them a shared part has.

    A part is a module that several blocks hold as an attribute; a block itself is none.
    """
    if not parts_of(model).shares():
        return [], 0
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    repeated = sorted(name for names in places.values() if len(names) > 1 for name in names)
    first: dict[int, str] = {}
    twice, parts = [], 0
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in first and p.numel() > max(p.shape, default=1):
            twice.append(f'{first[id(p)]} = {name}')
            outer = next((path for path in repeated if name.startswith(f'{path}.')), None)
            owner = model.get_submodule(outer.rpartition('.')[0]) if outer else None
            containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
            parts += owner is not None and not isinstance(owner, containers)
        first.setdefault(id(p), name)
    return twice, parts


def _was_used(name: str, parameter: Tensor, tracer: Tracer, observer: Observer) -> bool:
    owner = name.rpartition('.')[0]
    return memory_of(parameter) in observer.used or owner in tracer.entered


def _unreached(trainable: dict[str, nn.Parameter], tracer: Tracer, observer: Observer) -> list[str]:
    """Parameters that no path without a ``detach`` leads to from the output."""
    reached: set[Node] = set()
    todo = [node for node in tracer.nodes if node.returned]
    if not todo:
        return []
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            if node.op != 'detach':
                todo += node.parents
    by_module: dict[str, list[Node]] = {}
    for node in tracer.nodes:
        by_module.setdefault(node.module, []).append(node)
    lost = []
    for name, parameter in trainable.items():
        owner = name.rpartition('.')[0]
        users = observer.used.get(memory_of(parameter)) or by_module.get(owner)
        if users is None:
            if owner not in tracer.entered and memory_of(parameter) not in tracer.touched:
                lost.append(name)
        elif not any(node in reached for node in users):
            lost.append(name)
    return lost


def reached_parameters(outputs: Iterable[Tensor]) -> set[int]:
    """Identities of the leaves that some tensors were computed from."""
    todo = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen, found = set(todo), set()
    while todo:
        function = todo.pop()
        variable = getattr(function, 'variable', None)
        if variable is not None:
            found.add(id(variable))
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return found


def is_broken(x: Tensor, masked: bool = True) -> bool:
    """Whether a tensor has values that are not finite; ``masked``: -inf is none of them."""
    if bool(torch.isfinite(x.sum())):
        return False
    return not bool(torch.isfinite(x.clamp(min=0) if masked else x).all())


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


_SMALL = 1 << 12  # values of a tensor


def _are_finite(tensors: list[Tensor]) -> bool:
    """Whether all values are finite; False, too, where the sum of their squares is not."""
    groups: dict[tuple, list[Tensor]] = {}
    for x in tensors:
        groups.setdefault((x.device, x.dtype), []).append(x)
    for group in groups.values():
        small = [x.reshape(-1) for x in group if x.numel() <= _SMALL]
        large = [x for x in group if x.numel() > _SMALL]
        together = [torch.cat(small)] if small else []
        norms = torch._foreach_norm([*together, *large], 2)
        if not bool(torch.stack(norms).isfinite().all()):
            return False
    return True


def non_finite_names(model: nn.Module) -> ParameterFact | None:
    """The parameters and buffers that are not finite themselves."""
    parts = parts_of(model)
    buffers = dict(parts.buffers())
    tensors: dict[str, Tensor] = {**dict(parts.parameters()), **buffers}
    numbers = {
        n: without_copies(t.detach())
        for n, t in tensors.items()
        if t.dtype in _FLOATS and not t.is_meta and t.layout == torch.strided
    }
    # One call for all of them, and a closer look only where it says that one is suspect.
    if _are_finite([t for t in numbers.values() if t.numel()]):
        return None
    # In buffers -inf is for what is not to be attended to.
    names = [n for n, t in numbers.items() if is_broken(t, n in buffers)]
    if not names:
        return None
    return ParameterFact('non_finite', tuple(names[:MOST_NAMES]), len(names), len(numbers))


# ------------------------------------------------------------------ the normalizer-free method
def method_facts(
    blocks: Blocks, tracer: Tracer, activations: list[ActivationFact]
) -> list[MethodFact]:
    """Read how the blocks of a normalizer-free network scale their signal: ours, and timm's."""
    modules = tracer.modules
    facts: list[MethodFact] = []
    place = 0
    for block, item in blocks:
        module = modules.get(block.module)
        alpha = getattr(module, 'alpha', None)
        if module is None or not isinstance(item, Residual) or not isinstance(alpha, float | int):
            continue
        convs = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
        scaled = {n: g for n, m in convs.items() if (g := _conv_gamma(m)) is not None}
        if not scaled or not hasattr(module, 'beta'):
            continue
        place = 0 if block.kind == 'transition' or not facts else place + 1
        own = {n: m for n, m in convs.items() if '.' not in n}
        path = {n for n in convs if n in own or n.startswith(('downsample', 'shortcut'))}
        plain = [n for n in convs if n in path and n not in scaled]
        fact = MethodFact(block.index, float(alpha), place)
        fact.plain = tuple(f'{block.module}.{name}' for name in plain)
        used = {a.op for a in activations if a.block == block.index and not a.gate}
        fact.activation = ' '.join(sorted(used)) or block.activation
        if set(own) <= set(scaled):
            _read_factors(fact, module, [n for n in own if n in scaled], scaled)
        if block.kind == 'transition':
            fact.raw_shortcut = _reads_raw(item)
        facts.append(fact)
    return facts


def _conv_gamma(conv: nn.Module) -> float | None:
    """gamma of a standardized convolution, ours or timm's."""
    if isinstance(conv, ScaledWSConv2d):
        return float(conv.gamma)
    scale, weight = getattr(conv, 'scale', None), getattr(conv, 'weight', None)
    if isinstance(scale, float) and isinstance(weight, Tensor) and hasattr(conv, 'gain_init'):
        return scale * weight[0].numel() ** 0.5
    return None


def _read_factors(
    fact: MethodFact, module: nn.Module, order: list[str], scaled: dict[str, float]
) -> None:
    """Set gamma / beta of the first convolution, and gamma of the others."""
    beta = float(module.beta)  # type: ignore[arg-type]
    own = float(getattr(module, 'gamma', 1.0))  # of activations whose factor is not folded
    ours = hasattr(module, 'expected_var')
    acts = [getattr(m, 'gamma', None) for m in module.children()]
    own *= 1.0 if ours else next((float(g) for g in acts if isinstance(g, float)), 1.0)
    fact.factor = round(scaled[order[0]] * own * (1 / beta if ours else beta), 6)
    fact.gammas = tuple(round(scaled[name] * own, 6) for name in order[1:])


def _reads_raw(item: Residual) -> bool:
    """Whether the projection of a block reads its input without an activation."""
    path = path_nodes(item.shortcut, item.source)
    layers = [n for n in path if n.op in HEAVY]
    if not layers:
        return False
    node = min(layers, key=lambda n: n.index)
    passed = (*MOVES, *POOLINGS, *SCALINGS, 'constant_pad_nd', 'copy_')
    while node.parents:
        node = node.parents[0]
        if _is_activation(node) or (node.op in ('mul', 'mul_') and len(node.parents) > 1):
            return False
        if node.sum is not None or node.op not in passed:
            return True
    return True
