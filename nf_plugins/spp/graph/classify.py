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
    mixes,
    path_nodes,
    readers,
    works,
)
from .ops import HEAVY


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
    items = carried_by(shortcut)
    before = path_nodes(branch, items[-1].node) | {items[-1].node}
    for item in items:
        node, part = item.node, item.part
        if node not in before or node is branch.carried:
            continue
        if part is not None and all(disjoint(part, r) for r in readers(node) if r in before):
            continue  # the branch was computed from other parts of it
        path = between(node, branch)
        if any(n.op in HEAVY if broadcast else mixes(n) for n in path):
            return item
    return None


def _cancels(branch: Node, source: Node, sign: float) -> bool:
    """Whether the branch is ``y - x``, so that its sum with ``x`` is ``y`` alone."""
    node = branch.root
    if node.op not in ('sub', 'sub_') or len(node.parents) < 2:
        return False
    return node.parents[int(sign > 0)].carried is source.carried


def _projection(a: Node, b: Node, source: Node) -> Shortcut | None:
    """A shortcut that is linear after its first layer, beside a branch of two layers or more."""
    if source.op == 'inputs' or a.bends == b.bends:
        return None
    first = int(b.bends < a.bends)
    shortcut, branch = (a, b)[first], (b, a)[first]
    if branch.depth - source.depth < max(2, shortcut.depth - source.depth):
        return None
    path = between(source, shortcut)
    if any(n.depth > source.depth and n.bends > max(p.bends for p in n.parents) for n in path):
        return None
    return Shortcut(first, source, not any(works(n) for n in path))
