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

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from .execution import entered, grad_mode, plain_execution, run
from .snapshot import restoring

ADDITIONS = {'add', 'add_', 'sub', 'sub_', 'addcmul', 'addcmul_', 'lerp', 'lerp_'}
CONVOLUTIONS = {'convolution', '_convolution', 'convolution_overrideable', 'linear'}
PRODUCTS = {'mm', 'addmm', 'bmm', 'baddbmm', 'addbmm', 'addmv', 'mv'}
HEAVY = CONVOLUTIONS | PRODUCTS | {'conv_transpose'}
BATCH_NORMS = {
    'native_batch_norm',
    'cudnn_batch_norm',
    '_native_batch_norm_legit',
    '_native_batch_norm_legit_no_training',
    '_batch_norm_with_update',
    '_batch_norm_no_update',
    'batch_norm_elemt',
    'miopen_batch_norm',
}
NORMS = BATCH_NORMS | {'native_group_norm', 'native_layer_norm', '_fused_rms_norm'}
POOLINGS = {'avg_pool2d', 'max_pool2d_with_indices', '_adaptive_avg_pool2d'}
# Those that are part of others (a swish of x * sigmoid(x)) are not among them.
ACTIVATIONS = {
    name + suffix
    for name in (
        *('relu', 'leaky_relu', '_prelu_kernel', 'elu', 'celu', 'selu', 'gelu', 'silu', 'mish'),
        *('hardtanh', 'hardswish'),
    )
    for suffix in ('', '_')
}
# They move values about, or copy them, and change none.
MOVES = {
    *('view', '_unsafe_view', 'reshape', '_reshape_alias', '_reshape_copy', 'alias', 'detach'),
    *('permute', 'transpose', 't', 'squeeze', 'unsqueeze', 'clone', '_to_copy', 'contiguous'),
    *('roll', 'flip', 'lift_fresh', 'expand', 'as_strided', 'pixel_shuffle', 'pixel_unshuffle'),
}
SCALINGS = {'mul', 'mul_', 'div', 'div_'}

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


@dataclass(eq=False)
class Unit:
    """A module without a residual addition that ran: one of several alike, or a stage."""

    name: str
    kind: type
    repeated: bool
    shape: tuple[int, ...]
    node: Node
    measured_output: Any = None


def _real(factor: Any) -> float:
    """A number or a tensor with one as a float: of a complex one its absolute value."""
    factor = factor.item() if isinstance(factor, Tensor) else factor
    return abs(factor) if isinstance(factor, complex) else float(factor)


def _channel_axis(op: str, out: Tensor, args: tuple, parents: list[tuple[Node, Tensor]]):
    """Axis of the channels of an operation's output, None if unknown."""
    dims = out.dim()
    if op == 'conv_transpose' or (op in CONVOLUTIONS and op != 'linear'):
        return 1
    if op in BATCH_NORMS or op == 'native_group_norm':
        return 1
    if op in PRODUCTS or op == 'linear':
        return dims - 1
    if op == 'native_layer_norm' and len(args[1]) == 1:
        return dims - 1
    node, source = parents[0]
    axis = node.axis
    if op == 'permute' and axis is not None:
        order = [d % dims for d in args[1]]
        return order.index(axis)
    if op in ('transpose', 't') and axis is not None:
        i, j = (args[1] % dims, args[2] % dims) if op == 'transpose' else (0, dims - 1)
        return {i: j, j: i}.get(axis, axis)
    if op in MOVES and axis is not None and tuple(source.shape) != tuple(out.shape):
        before = prod(source.shape[:axis])
        for d in range(dims):
            if out.shape[d] == source.shape[axis] and prod(out.shape[:d]) == before:
                return d
        return None
    if op in ('select', 'unbind', 'stack', 'sum', 'mean') and dims != node.dims:
        return None
    for parent, _ in parents:
        if parent.axis is not None and parent.dims == dims:
            return parent.axis
    return None


class Tracer(TorchDispatchMode):
    """Follows one forward pass; use :func:`tracing`.

    Args:
        names: Module -> path.
        measure: Called with a tensor and its channel axis; what it returns is kept with
            the residual addition. None measures nothing.
        before_write: Called with each tensor that an operation is about to write into.
    """

    def __init__(
        self,
        names: dict[nn.Module, str],
        measure: Callable[[Tensor, int], Any] | None = None,
        before_write: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        self.modules = {name: module for module, name in names.items()}
        self._measure = measure
        self._before_write = before_write
        self.nodes: list[Node] = []
        self.node_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.base_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.stack: list[str] = ['']
        self.entries: list[int] = [0]  # candidates when a module was entered
        self.candidates: list[Residual] = []
        self.units: list[Unit] = []
        self.pending: dict[int, tuple[Tensor, Residual]] = {}
        # Up to the first residual addition: what the modules read, to find the stem's output.
        self.read_by: dict[str, Node] = {}
        self.inputs_measured: dict[Node, Any] = {}
        self.repeated = _repeated_modules(names)

    def measure(self, tensor: Tensor, axis: int) -> Any:
        """Measure a tensor; what that computes is not part of the graph."""
        if self._measure is None:
            return None
        with _disable_current_modes():
            return self._measure(tensor, axis)

    # ---------------------------------------------------------------- the graph
    def add_node(self, tensor: Tensor, op: str, parents: list[Node], axis: int | None) -> Node:
        node = Node(
            len(self.nodes), op, tuple(parents), self.stack[-1], axis, tensor.dim(), depth=0
        )
        node.root = node
        self.nodes.append(node)
        if parents:
            for parent in parents:
                parent.users.append(node)
            node.depth = max(p.depth for p in parents) + (op in HEAVY or 'attention' in op)
            idom = parents[0]
            for parent in parents[1:]:
                idom = common_dominator(idom, parent)
            node.idom, node.level = idom, idom.level + 1
        self.node_of[tensor] = node
        return node

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._before_write is not None and func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                self._before_write(tensor)
        given = [
            (self.node_of[x], x)
            for x in tree_iter((args, kwargs))
            if isinstance(x, Tensor) and x in self.node_of
        ]
        if not given:
            return func(*args, **kwargs)
        op = func.__name__.partition('.')[0]
        if op == 'convolution' and args[6]:
            op = 'conv_transpose'
        for _, tensor in given:
            if id(tensor) in self.pending and op not in ACTIVATIONS:
                self.settle(tensor)
        residual = self.find_residual(op, args, kwargs) if op in ADDITIONS else None
        scaling = self.scaling(op, args) if op in SCALINGS else {}

        result = func(*args, **kwargs)

        mutated = bool(op.endswith('_') and given and isinstance(args[0], Tensor))
        parents = list(dict.fromkeys(node for node, _ in given))
        outputs = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        for number, out in enumerate(outputs):
            if not (out.is_floating_point() or out.is_complex()):
                continue
            if number and op in NORMS:  # saved statistics
                continue
            axis = _channel_axis(op, out, args, given)
            node = self.add_node(out, op, parents, axis)
            moved = op in MOVES or (op == 'add' and _adds_zero(args))
            if moved and out.numel() == given[0][1].numel():
                node.root = given[0][0].root
            if not mutated and _is_alias(func) and isinstance(args[0], Tensor):
                self.base_of[out] = args[0]
            for name, value in scaling.items():
                setattr(node, name, value)
            if op in CONVOLUTIONS and len(args) > 1:
                node.weight = args[1]
            if residual is not None and number == 0:
                node.axis, node.sum, residual.node = residual.channel_dim, residual, node
                residual.shape = tuple(out.shape)
                self.candidates.append(residual)
                self.pending[id(out)] = (out, residual)
            elif op in ACTIVATIONS and number == 0 and id(given[0][1]) in self.pending:
                self.follow_activation(given[0][1], out)
        if mutated:
            self.propagate_mutation(args[0])
        return result

    def propagate_mutation(self, tensor: Tensor) -> None:
        """A write through a view changes what it is a view of."""
        base = self.base_of.get(tensor)
        while base is not None and base is not tensor:
            known = self.node_of.get(base)
            written = self.node_of[tensor]
            self.add_node(
                base,
                'copy_',
                [written] if known is None else [known, written],
                written.axis if known is None else known.axis,
            )
            tensor, base = base, self.base_of.get(base)

    # ------------------------------------------------------- the residual rules
    def find_residual(self, op: str, args: tuple, kwargs: dict) -> Residual | None:
        """Whether an addition closes a residual block; measures its branch if so."""
        factors: list[float | Tensor] = []
        a = args[0]
        if op.startswith('addcmul'):
            pair = [x for x in args[1:3] if x in self.node_of]
            if not pair:
                return None
            b = max(pair, key=lambda x: (x.shape == a.shape, self.node_of[x].depth))
            factors += [x for x in args[1:3] if x is not b]
            factors.append(kwargs.get('value', 1))
        elif op.startswith('lerp'):
            b = args[1]
            factors.append(args[2])
        else:
            b = args[1]
        operands = (a, b)
        if not all(isinstance(x, Tensor) and x in self.node_of for x in operands):
            return None
        if a.shape != b.shape or a.dim() < 2 or not a.is_floating_point():
            return None
        nodes = self.node_of[a], self.node_of[b]
        found = classify(*nodes)
        if found is None:
            return None
        first, source, identity = found
        if op.startswith('sub'):
            if first == 1:  # a difference to the stream, as of PoolFormer's token mixer
                return None
            factors.append(-1)
        if first == 0 and op in ('add', 'add_', 'sub', 'sub_'):
            factors.append(kwargs.get('alpha', 1))
        shortcut, branch = nodes[first], nodes[1 - first]
        tensor = operands[1 - first]
        axis = shortcut.axis if shortcut.axis is not None else branch.channel_dim
        bare, gains, measured, scale = walk_back_gains(branch, factors)
        if not self.candidates and identity and source not in self.inputs_measured:
            if shortcut.root is source:
                self.inputs_measured[source] = self.measure(operands[first], axis)
        return Residual(
            name='',
            identity=identity,
            shape=(),
            channel_dim=axis,
            gains=gains,
            source=source,
            shortcut=shortcut,
            end=branch,
            bare=bare,
            owner=self.stack[-1],
            measured_branch=self.measure(tensor, axis) if measured is None else measured,
            branch_scale=scale,
        )

    def scaling(self, op: str, args: tuple) -> dict[str, Any]:
        """What an activation is multiplied with: attributes of the product's node.

        That is a number, a parameter (one value, or one per channel), or a mask over the
        samples. Before the latter two the activation is measured: it may be at the end of
        a branch, and a gain of zero leaves nothing to measure.
        """
        x, factor = args[:2]
        if not isinstance(factor, Tensor):
            value = _real(factor)
            if value != 0:
                return dict(scale=1 / value if op.startswith('div') else value)
            factor = torch.zeros(())
        elif not (isinstance(x, Tensor) and x in self.node_of):
            if op.endswith('_') or op.startswith('div'):
                return {}
            x, factor = factor, x
        if not isinstance(x, Tensor) or not isinstance(factor, Tensor):
            return {}
        if x.dim() < 2 or factor in self.node_of or factor.dim() > x.dim():
            return {}
        axis = self.node_of[x].channel_dim
        own = factor.dim() - x.dim()  # the axes of the factor are the last ones
        varying = [d for d in range(x.dim()) if d + own >= 0 and factor.shape[d + own] != 1]
        constant = not isinstance(factor, nn.Parameter) and not factor.requires_grad
        if varying in ([], [0]) and factor.dim() == x.dim() and constant:
            return dict(dropped=True, before=self.measure(x, axis))
        if varying not in ([], [axis]):
            return {}
        if constant and factor.dim() == 0 and factor.device.type == 'cpu' and factor != 0:
            return dict(scale=1 / _real(factor) if op.startswith('div') else _real(factor))
        gain = 1 / factor if op.startswith('div') else factor
        return dict(gain=gain, before=self.measure(x, axis))

    # ------------------------------------------------------------------ outputs
    def settle(self, tensor: Tensor) -> None:
        """Measure a block's output, right before something uses it."""
        _, residual = self.pending.pop(id(tensor))
        if residual.measured_output is None:
            residual.measured_output = self.measure(tensor, residual.channel_dim)

    def follow_activation(self, tensor: Tensor, out: Tensor) -> None:
        """An activation after the addition, in the same module, is part of the block."""
        _, residual = self.pending.pop(id(tensor))
        if self.stack[-1] != '' and is_inside(self.stack[-1], residual.owner):
            residual.activated = True
            self.pending[id(out)] = (out, residual)
        elif residual.measured_output is None:
            residual.measured_output = self.measure(tensor, residual.channel_dim)

    # ------------------------------------------------------------------ modules
    def enter(self, module: nn.Module, args: tuple) -> None:
        name = self.names.get(module, self.stack[-1])
        tensor = next((x for x in tree_iter(args) if isinstance(x, Tensor)), None)
        if tensor is not None and tensor in self.node_of:
            node = self.node_of[tensor]
            if not self.candidates and node.index and next(module.children(), None) is not None:
                self.read_by.setdefault(name, node)
                if node not in self.inputs_measured:
                    self.inputs_measured[node] = self.measure(tensor, node.channel_dim)
        self.stack.append(name)
        self.entries.append(len(self.candidates))

    def leave(self, module: nn.Module, output: Any) -> None:
        name = self.stack.pop()
        count = self.entries.pop()
        for pending, residual in list(self.pending.values()):
            if residual.owner == name and id(pending) in self.pending:
                self.settle(pending)
        repeated = module in self.repeated
        early = not self.candidates and name.count('.') == 0
        if count != len(self.candidates) or not (repeated or early):
            return
        tensor = next((x for x in tree_iter(output) if isinstance(x, Tensor)), None)
        if tensor is None or tensor not in self.node_of or tensor.dim() < 2:
            return
        if name and _has_weights(module):
            node = self.node_of[tensor]
            value = self.measure(tensor, node.channel_dim)
            unit = Unit(name, type(module), repeated, tuple(tensor.shape), node, value)
            self.units.append(unit)

    def finish(self, output: Any) -> None:
        """Note what the network returns."""
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor) and tensor in self.node_of:
                self.node_of[tensor].root.returned = True

    # -------------------------------------------------------------- the verdict
    def residuals(self) -> list[Residual]:
        """The residual blocks in order of execution, named."""
        branches = {}
        for r in self.candidates:
            branch = path_nodes(r.end, r.source)
            # A sum in it that others read as well is another stream's (RevViT).
            outlets = {_outlet(n) for n in branch if n.sum}
            foreign = {n for n in outlets if n.returned or not branch.issuperset(n.users)}
            branches[r] = path_nodes(r.end, r.source, foreign) if foreign else branch
            works = [n.module for n in branches[r] if _works(n)]
            r.name = common_module([r.owner, *works] if r.owner else works or [''])
        # A projection is part of its block (TNT joins streams that were split far above).
        self.candidates = [
            r
            for r in self.candidates
            if r.identity
            or all(is_inside(n.module, r.name) for n in path_nodes(r.shortcut, r.source))
        ]
        kept = list(self.candidates)
        for outer in self.candidates:  # a skip around blocks is none itself
            names = {r.name for r in kept if r is not outer and r.node in branches[outer]}
            types = [type(self.modules.get(name)) for name in names - {outer.name}]
            if len(set(types)) < len(types):
                kept.remove(outer)
        inner = {r for r in kept for outer in kept if r is not outer and r.node in branches[outer]}
        kept = [r for r in kept if r not in inner]
        for r in kept:
            r.normalized = any(n.op in NORMS for n in branches[r])
            r.pooled = any(n.op == 'avg_pool2d' for n in path_nodes(r.shortcut, r.source))
        return kept


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
        The branch's end; all factors but 1; what was measured in front of the innermost
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


def _adds_zero(args: tuple) -> bool:
    """``0 + x``, as ``sum`` starts."""
    return any(isinstance(x, (int, float)) and x == 0 for x in args[:2])


def _is_alias(func: Any) -> bool:
    return any(r.alias_info is not None for r in func._schema.returns)


def _written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operation writes into."""
    values = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [x for x in tree_iter(values) if isinstance(x, Tensor)]


def _outlet(node: Node) -> Node:
    """A sum behind the views and the activation that are all that reads it."""
    while len(node.users) == 1 and node.users[0].op in (*ACTIVATIONS, *MOVES):
        node = node.users[0]
    return node


def _works(node: Node) -> bool:
    return node.op in HEAVY or node.op in NORMS or node.op in POOLINGS


def _has_weights(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters())


def _repeated_modules(names: dict[nn.Module, str]) -> set[nn.Module]:
    """Modules like others: beside one of their class in a container, or several weights large."""
    found: set[nn.Module] = set()
    kinds = Counter(type(module) for module in names)
    for module in names:
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            beside = Counter(type(child) for child in module)
            found.update(child for child in module if beside[type(child)] > 1)
        elif kinds[type(module)] > 1 and next(module.children(), None) is not None:
            if sum(p.dim() > 1 for p in module.parameters()) > 1:
                found.add(module)
    return found


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


def classify(a: Node, b: Node) -> tuple[int, Node, bool] | None:
    """Whether ``a + b`` is residual: which operand is the shortcut, its source, identity."""
    if a.root is b.root:
        return None
    for first, (shortcut, other) in enumerate(((a, b), (b, a))):
        if other.carried is not shortcut.carried and is_ancestor(shortcut.carried, other):
            return first, shortcut.carried, True
    source = common_dominator(a, b)
    for first, shortcut in enumerate((a, b)):  # a second branch on the same input
        if shortcut.root.sum is not None and shortcut.root.sum.source is source.root:
            return first, source, True
    depths = [a.depth - source.depth, b.depth - source.depth]
    first = int(depths[1] < depths[0])
    if min(depths) > 1 or max(depths) < 2 or depths[0] == depths[1]:
        return None
    changed = any(_works(n) for n in path_nodes((a, b)[first], source))
    return first, source, not changed


@contextmanager
def tracing(
    model: nn.Module,
    inputs: Tensor,
    measure: Callable[[Tensor, int], Any] | None = None,
    before_write: Callable[[Tensor], None] | None = None,
) -> Iterator[Tracer]:
    """Follow what a model does with ``inputs`` inside the block."""
    names = {m: name.replace('_orig_mod.', '') for name, m in model.named_modules()}
    tracer = Tracer(names, measure, before_write)
    thread = threading.get_ident()
    hooks: list[RemovableHandle] = []
    # The compiled and what it was made of are one.
    watched = {module for module in names if '_orig_mod' not in module._modules}
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in watched)

    def enter(module: nn.Module, args: tuple) -> None:
        # Others may use the network as well.
        if module in watched and threading.get_ident() == thread:
            tracer.enter(module, args)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        if module in watched and threading.get_ident() == thread:
            tracer.leave(module, output)

    def clean() -> None:
        for hook in hooks:
            hook.remove()
        tracer.pending.clear()

    with restoring(clean):
        if scripted:  # such modules take no hooks of their own
            hooks.append(nn_module.register_module_forward_pre_hook(enter))
            hooks.append(nn_module.register_module_forward_hook(leave))
        for module in () if scripted else watched:
            hooks.append(module.register_forward_pre_hook(enter, prepend=True))
            hooks.append(module.register_forward_hook(leave, prepend=True))
        tracer.add_node(inputs, 'input', [], 1 if inputs.dim() == 4 else None)
        with entered(tracer):
            yield tracer


def find_residuals(model: nn.Module, inputs: Tensor) -> list[Residual]:
    """The residual additions that a model executes on a batch, in order.

    Nothing is measured, so model and batch may be on the meta device.

    Args:
        model: Any network, in the mode that it shall run in.
        inputs: A batch.

    Returns:
        The residual additions.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> found = find_residuals(NFResNet(26, base_channels=8), torch.randn(1, 3, 64, 64))
        >>> [(r.name, r.identity) for r in found[:3]]
        [('layer1.0', False), ('layer1.1', True), ('layer2.0', False)]
    """
    with (
        grad_mode(False),
        plain_execution(model, len(inputs), inputs.device),
        tracing(model, inputs) as tracer,
    ):
        tracer.finish(run(model, inputs))
    return tracer.residuals()
