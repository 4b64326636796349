"""The graph of the activations of one forward pass: its nodes and their order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .ops import BATCH_NORMS, CONVOLUTIONS, HEAVY, MOVES, NORMS, POOLINGS, PRODUCTS

if TYPE_CHECKING:
    from .residuals import Residual

# Where nothing in the graph says which axis the channels are: NC, NLC, NCHW, N..C.
_USUAL_AXIS = {2: 1, 3: 2, 4: 1, 5: 4}


@dataclass(slots=True, eq=False)
class Node:
    """One activation in the graph."""

    index: int
    op: str
    parents: tuple[Node, ...]
    module: str
    axis: int | None  # of the channels
    dims: int
    root: Node = field(init=False)  # what it is a view of
    idom: Node = field(init=False)  # immediate dominator; the input has none
    level: int = 0  # in the dominator tree
    depth: int = 0  # most heavy operations on a path from the input
    users: list[Node] = field(default_factory=list)
    scale: float | None = None  # of a multiplication by a number
    gain: Tensor | None = None  # of a multiplication by a parameter
    before: Any = None  # what was measured before that
    weight: Tensor | None = None  # of a convolution
    sum: Residual | None = None  # the residual addition that made it
    returned: bool = False  # by the network
    dropped: bool = False  # multiplied with a mask over the samples (stochastic depth)

    @property
    def channel_dim(self) -> int:
        """The axis of the channels, the usual one where nothing says which."""
        return _USUAL_AXIS.get(self.dims, 1) if self.axis is None else self.axis

    @property
    def carried(self) -> Node:
        """What it is a view or a multiple of."""
        node = self.root
        while node.scale is not None:
            node = node.parents[0].root
        return node


def works(node: Node) -> bool:
    """Whether a node was made by a convolution, a matrix product, a norm or a pooling."""
    return node.op in HEAVY or node.op in NORMS or node.op in POOLINGS


def common_dominator(a: Node, b: Node) -> Node:
    """The last node through which every path from the input to ``a`` and to ``b`` goes."""
    while a is not b:
        if a.level >= b.level:
            a = a.idom
        else:
            b = b.idom
    return a


def path_nodes(end: Node, start: Node, without: Collection[Node] = ()) -> set[Node]:
    """The nodes after ``start`` that ``end`` is computed from, and ``end`` itself."""
    seen, todo = set(), [end]
    while todo:
        node = todo.pop()
        if node not in seen and node.index > start.index and node not in without:
            seen.add(node)
            todo.extend(node.parents)
    return seen


def is_ancestor(node: Node, of: Node) -> bool:
    """Whether ``of`` is computed from ``node``."""
    seen, todo = set(), [of]
    while todo:
        current = todo.pop()
        if current is node:
            return True
        if current not in seen and current.index > node.index:
            seen.add(current)
            todo.extend(current.parents)
    return False


def channel_axis(
    op: str, out: Tensor, args: tuple, parents: list[tuple[Node, Tensor]]
) -> int | None:
    """Axis of the channels of an operation's output, None if unknown."""
    dims = out.dim()
    if op == 'conv_transpose' or (op in CONVOLUTIONS and op != 'linear'):
        return 1
    if op in BATCH_NORMS or op == 'native_group_norm':
        return 1
    if op in PRODUCTS or op == 'linear' or (op == 'native_layer_norm' and len(args[1]) == 1):
        return dims - 1
    node, source = parents[0]
    if op in MOVES and node.axis is not None:
        return _moved_axis(op, out, args, source, node.axis)
    if op in ('select', 'unbind', 'stack', 'sum', 'mean') and dims != node.dims:
        return None
    return next((p.axis for p, _ in parents if p.axis is not None and p.dims == dims), None)


def _moved_axis(op: str, out: Tensor, args: tuple, source: Tensor, axis: int) -> int | None:
    """Where an operation of :data:`~nf_plugins.spp.graph.ops.MOVES` puts an axis."""
    dims = out.dim()
    if op == 'permute':
        return [d % dims for d in args[1]].index(axis)
    if op in ('transpose', 't'):
        i, j = (args[1] % dims, args[2] % dims) if op == 'transpose' else (0, dims - 1)
        return {i: j, j: i}.get(axis, axis)
    if source.shape == out.shape:
        return axis
    before = prod(source.shape[:axis])
    for d in range(dims):
        if out.shape[d] == source.shape[axis] and prod(out.shape[:d]) == before:
            return d
    return None
