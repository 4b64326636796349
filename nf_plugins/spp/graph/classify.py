"""What an addition adds: which operand is the shortcut, and where the block begins."""

from __future__ import annotations

from typing import NamedTuple

from .nodes import (
    Carried,
    Node,
    between,
    carried_by,
    common_dominator,
    disjoint,
    dominates,
    is_ancestor,
    path_nodes,
    readers,
    works,
)
from .ops import HEAVY, mixes


class Shortcut(NamedTuple):
    """The shortcut of an addition.

    Args:
        first: Which operand it is.
        source: The tensor that it and the branch come from.
        identity: Whether it is that tensor, but for views and factors.
    """

    first: int
    source: Node
    identity: bool


def classify(
    a: Node, b: Node, signs: tuple[float, float] = (1, 1), broadcast: bool = False
) -> Shortcut | None:
    """Whether ``a + b`` closes a residual block.

    Args:
        a: An operand.
        b: The other one.
        signs: Of the factors that they are added with.
        broadcast: Whether ``b`` is smaller than ``a``, which then has to be the identity.

    Returns:
        The shortcut, or None: the addition is another one.
    """
    if a.root is b.root:
        return None
    for first, (shortcut, branch) in enumerate(((a, b), (b, a))[: 2 - broadcast]):
        found = _identity(shortcut, branch, broadcast)
        if found is not None:
            if found.sign * signs[first] < 0 or _cancels(branch, found.node, signs[1 - first]):
                return None
            return Shortcut(first, found.node, True)
    if broadcast or min(signs) < 0:
        return None
    source = common_dominator(a, b)
    for first, shortcut in enumerate((a, b)):  # a second branch on the same input
        if shortcut.root.sum is not None and shortcut.root.sum.source is source.root:
            return Shortcut(first, source, True)
    return _projection(a, b, source)


def _identity(shortcut: Node, branch: Node, broadcast: bool) -> Carried | None:
    """What the shortcut carries that the branch was computed from, by more than elementwise."""
    for item in carried_by(shortcut):
        node, part = item.node, item.part
        if node is branch.carried or not is_ancestor(node, branch):
            continue
        # The part itself has been looked at; of other parts the shortcut has nothing.
        if part is not None and all(
            r is part or disjoint(part, r) or not is_ancestor(r, branch) for r in readers(node)
        ):
            continue
        if _is_computed(node, branch, broadcast):
            return item
    return None


def _is_computed(source: Node, end: Node, heavy: bool) -> bool:
    """Whether a layer, or else an operation in which positions see others, is in between."""
    if dominates(source, end):
        return end.depth > source.depth if heavy else end.mixed > source.mixed
    return any(n.op in HEAVY if heavy else mixes(n.op) for n in between(source, end))


def _cancels(branch: Node, source: Node, sign: float) -> bool:
    """Whether the branch is ``y - x``, so that its sum with ``x`` is ``y`` alone."""
    node = branch.root
    if node.op not in ('sub', 'sub_') or len(node.parents) < 2:
        return False
    return node.parents[int(sign > 0)].carried is source.carried


def _projection(a: Node, b: Node, source: Node) -> Shortcut | None:
    """A shortcut that is linear after its first layer, beside a branch of two layers or more."""
    if source.op == 'inputs':  # one of them reads another input of the network as well
        starts = (_start(a, b), _start(b, a))
        found = [(i, start) for i, start in enumerate(starts) if start is not None]
        shortcuts = [_projection(a, b, start) for _, start in found]
        return next((s for (i, _), s in zip(found, shortcuts) if s and s.first == i), None)
    if max(a.depth, b.depth) < source.depth + 2:
        return None
    linear = _is_linear(a, source), _is_linear(b, source)
    if linear[0] == linear[1]:
        return None
    first = int(linear[1])
    shortcut, branch = (a, b)[first], (b, a)[first]
    if branch.depth - source.depth < max(2, shortcut.depth - source.depth):
        return None
    return Shortcut(first, source, not any(works(n) for n in path_nodes(shortcut, source)))


def _start(shortcut: Node, branch: Node) -> Node | None:
    """The last tensor that all of a shortcut, by a layer or more, and a branch come from."""
    node = shortcut.idom
    while node.op != 'inputs':
        if node.depth < shortcut.depth and is_ancestor(node, branch):
            return node
        node = node.idom
    return None


_MOST_BENDS_OF_AN_ACTIVATION = 4


def _is_linear(node: Node, source: Node) -> bool:
    """Whether no path from the source bends after its first layer."""
    if node.bends == source.bends:
        return True
    if node.bends > source.bends + _MOST_BENDS_OF_AN_ACTIVATION:
        return False
    return not any(
        n.depth > source.depth and n.bends > max(p.bends for p in n.parents)
        for n in between(source, node)
    )
