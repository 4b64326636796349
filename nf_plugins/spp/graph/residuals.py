"""Find the residual additions of any network by following the tensors of one forward pass.

A dispatch mode sees every operation, whoever calls it. Each tensor that depends on the
input becomes a node of a graph, from which the additions that close a residual block can
be told from all other additions:

- *identity*: one operand is, but for views, a tensor that the other was computed from;
- *projection*: both come from one dominating tensor, the shortcut through at most one
  convolution or matrix product, the branch through at least two and more than that.

A sum that is only used inside the branch of another block (Res2Net's hierarchical sums)
belongs to that branch; a skip around several blocks (a feature pyramid) is no block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .nodes import Node, common_dominator, is_ancestor, path_nodes, works
from .ops import ACTIVATIONS, HEAVY, MOVES, NORMS


@dataclass(eq=False)
class Residual:
    """A residual addition.

    Args:
        name: Path of the block: the module that holds the addition and its branch.
        identity: Whether the shortcut is the identity, else a projection.
        shape: Shape of the sum.
        channel_dim: Axis of the channels.
        pooled: Whether the shortcut is average-pooled.
        normalized: Whether the branch has an activation norm.
        activated: Whether the block ends in an activation after the addition.
        gains: What the branch is multiplied with between its end and the addition:
            numbers (alpha) and parameters (SkipInit gain, LayerScale).
    """

    name: str
    identity: bool
    shape: tuple[int, ...]
    channel_dim: int
    source: Node = field(repr=False)
    shortcut: Node = field(repr=False)
    end: Node = field(repr=False)  # of the branch, its operand in the addition
    bare: Node = field(repr=False)  # the same without gains
    pooled: bool = False
    normalized: bool = False
    activated: bool = False
    gains: list[float | Tensor] = field(default_factory=list)

    node: Node = field(init=False, repr=False)  # the sum
    owner: str = field(default='', repr=False)  # the module that runs the addition
    measured_branch: Any = field(default=None, repr=False)
    branch_scale: float = field(default=1.0, repr=False)
    measured_output: Any = field(default=None, repr=False)


def classify(a: Node, b: Node) -> tuple[int, Node, bool] | None:
    """Whether ``a + b`` is residual: which operand is the shortcut, its source, identity."""
    if a.root is b.root:
        return None
    for first, (shortcut, other) in enumerate(((a, b), (b, a))):
        if other.carried is not shortcut.carried and is_ancestor(shortcut.carried, other):
            return first, shortcut.carried, True
    source = common_dominator(a, b)
    if source.op == 'inputs':  # of two inputs nothing is common
        return None
    for first, shortcut in enumerate((a, b)):  # a second branch on the same input
        if shortcut.root.sum is not None and shortcut.root.sum.source is source.root:
            return first, source, True
    depths = [a.depth - source.depth, b.depth - source.depth]
    first = int(depths[1] < depths[0])
    if min(depths) > 1 or max(depths) < 2 or depths[0] == depths[1]:
        return None
    changed = any(works(n) for n in path_nodes((a, b)[first], source))
    return first, source, not changed


def walk_back_gains(
    branch: Node, factors: list[float | Tensor]
) -> tuple[Node, list[float | Tensor], Any, float]:
    """From a branch's operand in the addition back to the branch's end.

    In between are gains of parameters, one number (a second one belongs to the branch,
    as the factor 2 of squeeze-excite), and stochastic depth.

    Args:
        branch: The operand.
        factors: What the addition itself multiplies it with.

    Returns:
        The branch's end; all factors but 1; what was measured before the innermost
        gain, if there is one; and the number between that, or else the operand, and the end.
    """
    factors, measured, scale, end = list(factors), None, 1.0, branch
    node = branch
    while True:
        number = any(not isinstance(f, Tensor) and abs(f) != 1 for f in factors)
        if node.gain is not None or node.dropped:
            if node.gain is not None:
                factors.append(node.gain)
            measured, scale = node.before, 1.0
        elif node.scale is not None and not number:
            factors.append(node.scale)
            scale *= node.scale
        elif node.op not in MOVES or len(node.parents) != 1:
            break
        moved = node.op in MOVES
        node = node.parents[0]
        end = end if moved else node
    gains = [f for f in factors if isinstance(f, Tensor) or f != 1]
    return end, gains, measured, scale


def residual_blocks(candidates: list[Residual], modules: dict[str, nn.Module]) -> list[Residual]:
    """The blocks among the residual additions of a pass, named, in order of execution.

    Args:
        candidates: All residual additions, in order of execution.
        modules: Module path -> module.
    """
    branches = {r: _name_block(r) for r in candidates}
    # A projection is part of its block (TNT joins streams that were split far above).
    candidates = [
        r
        for r in candidates
        if r.identity or all(is_inside(n.module, r.name) for n in path_nodes(r.shortcut, r.source))
    ]
    kept = list(candidates)
    for outer in candidates:
        if _spans_blocks(outer, kept, branches[outer], modules):
            kept.remove(outer)
    inner = {r for r in kept for outer in kept if r is not outer and r.node in branches[outer]}
    kept = [r for r in kept if r not in inner]
    for r in kept:
        r.normalized = any(n.op in NORMS for n in branches[r])
        r.pooled = any(n.op == 'avg_pool2d' for n in path_nodes(r.shortcut, r.source))
    return kept


def _name_block(residual: Residual) -> set[Node]:
    """Set the name of a residual addition; return the nodes of its branch."""
    branch = path_nodes(residual.end, residual.source)
    # A sum in it that others read as well is another stream's (RevViT).
    outlets = {_outlet(n) for n in branch if n.sum}
    foreign = {n for n in outlets if n.returned or not branch.issuperset(n.users)}
    if foreign:
        branch = path_nodes(residual.end, residual.source, foreign)
    paths = [n.module for n in branch if works(n)]
    owner = [residual.owner] if residual.owner else []
    residual.name = common_module([*owner, *paths] or [''])
    return branch


def _spans_blocks(
    outer: Residual, kept: list[Residual], branch: set[Node], modules: dict[str, nn.Module]
) -> bool:
    """Whether an addition closes a skip around several blocks of one class."""
    names = {r.name for r in kept if r is not outer and r.node in branch}
    types = [type(modules.get(name)) for name in names - {outer.name}]
    return len(set(types)) < len(types)


def _outlet(node: Node) -> Node:
    """A sum, or the last of the views and the activation that alone read it."""
    while len(node.users) == 1 and node.users[0].op in (*ACTIVATIONS, *MOVES):
        node = node.users[0]
    return node


def zero_parameter(
    residual: Residual, model: nn.Module, modules: dict[str, nn.Module]
) -> str | None:
    """The parameter, all zero, that silences a branch."""
    names = {id(p): name for name, p in model.named_parameters()}
    by_memory = {p.data_ptr(): name for name, p in model.named_parameters() if p.numel()}
    for gain in residual.gains:
        if isinstance(gain, Tensor) and not gain.any():
            return names.get(id(gain)) or by_memory.get(gain.data_ptr())
    seen: set[Node] = set()
    todo = [residual.bare]
    while todo:
        node = todo.pop()
        if node in seen or node.index <= residual.source.index:
            continue
        seen.add(node)
        if node.op not in HEAVY and node.op not in NORMS:
            todo.extend(node.parents)
        for name, parameter in modules.get(node.module, nn.Module()).named_parameters(
            recurse=False
        ):
            if name != 'bias' and not parameter.any():
                return f'{node.module}.{name}'
    return None


def is_inside(name: str, outer: str) -> bool:
    """Whether a module path is, or is below, another."""
    return outer == '' or name == outer or name.startswith(f'{outer}.')


def common_module(names: list[str]) -> str:
    """The deepest module path that all of some module paths are in."""
    parts = [name.split('.') if name else [] for name in names]
    common = []
    for level in zip(*parts):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return '.'.join(common)
