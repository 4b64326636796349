"""The residual blocks of a pass: which additions close one, what is its branch, its name.

The rule is written down in ``docs/residual_blocks.md``. :func:`~.classify.classify` sees one
addition and what came before it; :func:`residual_blocks` sees the whole pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .nodes import Node, between, carried_by, is_ancestor, path_nodes, works
from .ops import ACTIVATIONS, ADDITIONS, HEAVY, JOINS, MOVES, NORMS


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


def residual_blocks(candidates: list[Residual], returned: list[Node]) -> list[Residual]:
    """The blocks among the residual additions of a pass, named, in order of execution.

    Args:
        candidates: All residual additions, in order of execution.
        returned: What the network returns.
    """
    # Others do not count as readers, such as weights of an attention that nobody wants.
    live = _live([*returned, *(r.node for r in candidates)])
    kept = [r for r in candidates if r.identity or not _is_read_later(r, live)]
    branches = {r: _name_block(r, live) for r in kept}
    kept = [r for r in kept if not _is_pyramid(r, live)]
    streams = {r: {item.node for item in carried_by(r.shortcut)} for r in kept}
    sources = {node for r in kept if r.source in streams[r] for node in streams[r]}
    beside = {r for r in kept if not r.identity and _is_one_of_parallel_paths(r, sources)}
    # With the first one of two branches on the same input the second one goes, too.
    kept = [r for r in kept if r not in beside and r.shortcut.root.sum not in beside]
    loops = _loops(kept, branches)
    kept = [r for r in kept if r not in loops]
    skips: dict[Node, Node] = {}  # sums of skips around several blocks, and their branches
    for outer in list(kept):
        if _spans_blocks(outer, kept, branches[outer], skips):
            kept.remove(outer)
            skips[outer.node] = outer.end
    inner = {r for r in kept for outer in kept if r is not outer and r.node in branches[outer]}
    kept = [r for r in kept if r not in inner]
    for r in kept:
        r.normalized = any(n.op in NORMS for n in branches[r])
        r.pooled = any(n.op == 'avg_pool2d' for n in path_nodes(r.shortcut, r.source))
    return kept


def _name_block(residual: Residual, live: set[Node]) -> set[Node]:
    """Set the name of a residual addition; return the nodes of its branch."""
    branch = between(residual.source, residual.end)
    # A sum in it that others read as well is another stream's (RevViT).
    inside = branch | {residual.node}
    outlets = {_outlet(n) for n in branch if n.sum}
    foreign = {n for n in outlets if n.returned or live.intersection(n.users) - inside}
    if foreign:
        branch &= path_nodes(residual.end, residual.source, foreign)
    paths = [n.module for n in branch if works(n)]
    owner = [residual.owner] if residual.owner else []
    residual.name = common_module([*owner, *paths] or [''])
    return branch


def _live(ends: list[Node]) -> set[Node]:
    """What some nodes are computed from; they themselves, too."""
    found, todo = set(), list(ends)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.parents)
    return found


def _is_read_later(residual: Residual, live: set[Node]) -> bool:
    """Whether others read the branch after the sum, which stands beside nothing (see below)."""
    if any(user.op in JOINS - {'copy_'} for user in _outlet(residual.node).users):
        return False
    source, last = residual.source, residual.node.index
    seen, todo = {source}, [residual.end]
    while todo:
        node = todo.pop()
        if node in seen or node.index < source.index:
            continue
        if node.depth > source.depth and any(
            user.index > last and user.op != 'copy_' and user in live for user in node.users
        ):
            return True
        seen.add(node)
        todo.extend(node.parents)
    return False


def _is_pyramid(residual: Residual, live: set[Node]) -> bool:
    """Whether the branch is a path of its own: others read what it computes.

    Of a projection nobody may; of an identity nobody where the branch is interpolated.
    """
    upsampled = _is_upsampled(residual.end, residual.source)
    if residual.identity and not upsampled:
        return False
    branch = between(residual.source, residual.end)
    shortcut = path_nodes(residual.shortcut, residual.source)
    own = branch - shortcut
    inside = branch | shortcut | {residual.node}
    # A sum that is written into a view of a tensor changes the tensor: nobody reads the old one.
    others = {user for n in own for user in n.users if user.op != 'copy_'} & live - inside
    if others and _leave(others, _outlet(residual.node)):
        return True
    return not residual.identity and upsampled != _is_upsampled(residual.shortcut, residual.source)


def _leave(nodes: set[Node], outlet: Node) -> bool:
    """Whether nodes lead elsewhere than to where a sum is put beside others (dual paths)."""
    joins = {user for user in outlet.users if user.op in JOINS}
    last, seen, todo = max((n.index for n in joins), default=0), set(joins), list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if not node.users or node.index > last:
                return True
            # A state that goes on beside the sum may be read again later.
            beside = node.op in JOINS and not joins.isdisjoint(node.users)
            todo.extend(() if beside else node.users)
    return False


def _on_every_path(end: Node, source: Node) -> Iterator[Node]:
    """The nodes through which every path from the source to the end goes, the end first."""
    while end.index > source.index:
        yield end
        end = end.idom


def _is_upsampled(end: Node, source: Node) -> bool:
    return any(n.op.startswith('upsample') for n in _on_every_path(end, source))


def _is_one_of_parallel_paths(residual: Residual, sources: set[Node]) -> bool:
    """Whether a sum only stands beside others that were computed from the same source."""
    outlet = _outlet(residual.node)
    if residual.node in sources or outlet.root in sources or not outlet.users:
        return False
    if not all(user.op in ADDITIONS or user.op in JOINS for user in outlet.users):
        return False
    beside = {p for user in outlet.users for p in user.parents if p is not outlet}
    return any(
        works(n)
        for other in beside
        for n in between(residual.source, other)
        if not is_ancestor(residual.node, other)
    )


def _loops(candidates: list[Residual], branches: dict[Residual, set[Node]]) -> set[Residual]:
    """The additions of a recurrence: the same layers again, on a state and what feeds it.

    A layer's sum is in the branch of its next one, or each of its branches reads the same
    tensor of other layers, or each step reads what one layer makes of a tensor of this step.
    """
    groups: dict[tuple, list[Residual]] = {}
    for r in candidates:
        layers = frozenset((n.module, id(n.weight)) for n in branches[r] if n.op in HEAVY)
        # Products of two signals (attention) have no weight that tells them apart: their number.
        products = sum(n.op in ('bmm', 'baddbmm') for n in branches[r])
        groups.setdefault((r.owner, layers, products), []).append(r)
    found = set()
    for group in groups.values():
        if len(group) < 2:
            continue
        feeds = [_feeds(r, branches[r]) for r in group]
        fed: set[Any] = set.intersection(*feeds)
        if not fed and _is_chain(group):  # each step reads what one layer makes of its own input
            fed = set.intersection(*({(p.module, p.op) for p in f if p.module} for f in feeds))
        if fed or any(r.node in branches[other] for r in group for other in group):
            found.update(group)
    return found


def _is_chain(group: list[Residual]) -> bool:
    """Whether each block reads what the one before it gives."""
    return all(is_ancestor(a.node, b.source) for a, b in itertools.pairwise(group))


def _feeds(residual: Residual, branch: set[Node]) -> set[Node]:
    """What layers computed outside a branch and the branch reads, beside its source."""
    given = {p.root for n in branch for p in n.parents} - branch - {residual.source.root}
    return {p for p in given if p.depth}


def _spans_blocks(
    outer: Residual, kept: list[Residual], branch: set[Node], skips: dict[Node, Node]
) -> bool:
    """Whether an addition closes a skip around several blocks, through all of which it leads.

    A path through another such skip is none (the levels of an additive U-Net).
    """
    on_the_way = set(_on_every_path(outer.end, outer.source))
    others = [r for r in kept if r is not outer]
    if sum(r.node in on_the_way for r in others) > 1:
        return True
    if skips.keys().isdisjoint(branch):
        return False
    inner = [r for r in others if r.node in branch]
    return sum(not _leads_past(r.node, outer, branch, skips) for r in inner) > 1


def _leads_past(node: Node, outer: Residual, branch: set[Node], skips: dict[Node, Node]) -> bool:
    """Whether a path leads from the source to the end of a branch, but not through a node."""
    seen, todo = {node}, [outer.end]
    while todo:
        current = todo.pop()
        if current is outer.source:
            return True
        if current not in seen and current in branch:
            seen.add(current)
            todo.extend([skips[current]] if current in skips else current.parents)
    return False


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
