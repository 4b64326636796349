"""The graph of the activations of one forward pass: its nodes and their order."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import copysign, prod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .ops import (
    BATCH_NORMS,
    CONVOLUTIONS,
    GATHERS,
    HEAVY,
    JOINS,
    MOVES,
    NORMS,
    POOLINGS,
    PRODUCTS,
)

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
    mixed: int = 0  # most in which positions or channels see others
    bends: int = 0  # most non-linear operations on a path from the input
    users: list[Node] = field(default_factory=list)
    scale: float | None = None  # of a multiplication by a number
    gain: Tensor | None = None  # of a multiplication by a parameter
    before: Any = None  # what was measured before that
    weight: Tensor | None = None  # of a convolution, see keeps_weight
    part: tuple[int, int, int] | None = None  # of a slice: axis, start, stop
    pair: tuple[Node, Node, int] | None = None  # two that were put beside each other; the axis
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


class NodeOf:
    """The node of each tensor that is alive, by the identity of the tensor."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Tensor], Any]] = {}

    def get(self, tensor: Tensor) -> Any:
        """The node of a tensor, or None."""
        entry = self._found.get(id(tensor))
        # Another tensor may have the identity of one that is gone.
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __contains__(self, tensor: Tensor) -> bool:
        return self.get(tensor) is not None

    def __getitem__(self, tensor: Tensor) -> Any:
        return self._found[id(tensor)][1]

    def __setitem__(self, tensor: Tensor, node: Any) -> None:
        self._found[id(tensor)] = weakref.ref(tensor), node


def skip_moves(node: Node) -> Node:
    """The last node before some moves and padding."""
    while node.op in (*MOVES, 'constant_pad_nd') and len(node.parents) == 1:
        node = node.parents[0]
    return node


def keeps_weight(node: Node, weight: Tensor) -> bool:
    """Whether the weight of a convolution is kept for the theory.

    One that is no parameter takes memory of its own. It is needed after a batch norm alone.
    """
    before = skip_moves(node.parents[0])
    normed = before.op in BATCH_NORMS or any(
        skip_moves(parent).op in BATCH_NORMS for parent in before.parents[:1]
    )
    return normed or isinstance(weight, nn.Parameter)


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


def between(start: Node, end: Node) -> set[Node]:
    """The nodes on the paths from ``start``, which is left out, to ``end``."""
    found = {start}
    for node in sorted(path_nodes(end, start), key=lambda node: node.index):
        if not found.isdisjoint(node.parents):
            found.add(node)
    return found - {start}


def dominates(node: Node, end: Node) -> bool:
    """Whether every path from the input to ``end`` goes through a node."""
    while end.level > node.level:
        end = end.idom
    return end is node


def is_ancestor(node: Node, of: Node) -> bool:
    """Whether ``of`` is computed from ``node``."""
    if of.index < node.index:
        return False
    if dominates(node, of):
        return True
    seen, todo = set(), [of]
    while todo:
        current = todo.pop()
        if current is node:
            return True
        if current not in seen and current.index > node.index:
            seen.add(current)
            todo.extend(current.parents)
    return False


@dataclass(slots=True)
class Carried:
    """A node whose values another has.

    Args:
        node: The node.
        sign: Of the factor that they are multiplied with.
        part: The slice of the node that the values are, the last one if there are several.
    """

    node: Node
    sign: float
    part: Node | None


def carried_by(node: Node) -> list[Carried]:
    """What a node carries, the last one first: values moved, scaled, cut out, put beside others."""
    found: dict[Node, Carried] = {}
    todo = [Carried(node.root, 1.0, None)]
    while todo:
        item = todo.pop()
        node = item.node
        if node in found:
            continue
        found[node] = item
        if node.scale is not None:
            sign = copysign(item.sign, item.sign * node.scale)
            todo.append(Carried(node.parents[0].root, sign, item.part))
        elif node.gain is not None or node.dropped:
            todo.append(Carried(node.parents[0].root, item.sign, item.part))
        elif node.op in GATHERS:
            part = node if node.part is not None else None
            todo.append(Carried(node.parents[0].root, item.sign, part))
        elif node.op in JOINS:
            todo.extend(Carried(p.root, item.sign, None) for p in node.parents)
    return sorted(found.values(), key=lambda item: -item.node.index)


def readers(node: Node) -> Iterator[Node]:
    """What is computed from a node or from its views."""
    todo = [node]
    while todo:
        for user in todo.pop().users:
            if user.root is node:
                todo.append(user)
            else:
                yield user


def disjoint(a: Node, b: Node) -> bool:
    """Whether two slices of one tensor have no element in common."""
    if a.part is None or b.part is None or a.parents[0].dims != b.parents[0].dims:
        return False
    (axis, start, stop), (other, first, last) = a.part, b.part
    return axis == other and (stop <= first or last <= start)


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
        return moved_axis(op, out, args, source, node.axis)
    if op in ('select', 'unbind', 'stack', 'sum', 'mean') and dims != node.dims:
        return None
    return next((p.axis for p, _ in parents if p.axis is not None and p.dims == dims), None)


def moved_axis(op: str, out: Tensor, args: tuple, source: Tensor, axis: int) -> int | None:
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


def moved_pair(
    pair: tuple[Node, Node, int], op: str, out: Tensor, args: tuple, source: Tensor
) -> tuple[Node, Node, int] | None:
    """Two tensors beside each other, and their axis, after an operation that moves values."""
    a, b, axis = pair
    moved = moved_axis(op, out, args, source, axis)
    if moved is None and source.shape[axis] != 2:  # a view that takes the two apart
        before = prod(source.shape[:axis])
        sizes = enumerate(out.shape)
        moved = next((d for d, n in sizes if n == 2 and prod(out.shape[:d]) == before), None)
    return None if moved is None else (a, b, moved)


def memory_of(tensor: Tensor) -> int:
    """Where the values of a tensor are, 0 where it has no memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
