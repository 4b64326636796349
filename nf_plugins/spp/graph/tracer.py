"""Record one forward pass as a graph of activations."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle

from ..execution import arguments, entered, grad_mode, plain_execution
from ..parts import parts_of
from ..snapshot import restoring, written_tensors
from .classify import classify
from .names import block_names
from .nodes import (
    Node,
    NodeOf,
    channel_axis,
    common_dominator,
    keeps_weight,
    memory_of,
    moved_pair,
)
from .ops import (
    ACTIVATIONS,
    ADDITIONS,
    CONVOLUTIONS,
    HEAVY,
    MOVES,
    NORMS,
    PARTIAL_ADDITIONS,
    PRODUCT_ADDITIONS,
    RECIPROCALS,
    REDUCTIONS,
    SCALINGS,
    SLICES,
    addends,
    adds_zero,
    bends,
    is_alias,
    is_constant,
    mixes,
    real,
    slice_range,
    stacked_axis,
)
from .residuals import Residual, is_inside, residual_blocks, walk_back_gains
from .units import Unit, has_weights, repeated_modules


class Operation:
    """What the tables say of an operation; one object per overload."""

    __slots__ = (
        'adds',
        'alias',
        'arguments',
        'foreach',
        'func',
        'mutable',
        'name',
        'norm',
        'product',
        'scales',
        'shape',
    )

    def __init__(self, func: Any) -> None:
        self.func = func
        self.arguments = [argument.name for argument in func._schema.arguments]
        self.name: str = func.__name__.partition('.')[0]
        self.mutable: bool = func._schema.is_mutable
        self.alias = is_alias(func)
        self.norm = self.name in NORMS
        self.scales = self.name in SCALINGS
        self.adds = self.name in ADDITIONS or self.name.startswith('index_put')
        self.product: str | None = PRODUCT_ADDITIONS.get(self.name)
        self.foreach = self.name.startswith('_foreach_add')
        self.shape = is_constant(self.name)


_OPERATIONS: dict[Any, Operation] = {}


def unwatched() -> AbstractContextManager:
    """Return a context in which no mode of torch sees operations."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


@dataclass(slots=True)
class Call:
    """An operation on tensors of the graph."""

    operation: Operation
    args: tuple
    kwargs: dict[str, Any]
    given: list[tuple[Node, Tensor]]  # its arguments that are in the graph
    others: list[Tensor]  # its other tensors
    op: str  # its name in the tables
    out: Tensor | None = None  # its first output
    node: Node | None = None  # that of the first output
    residual: Residual | None = None
    scaling: dict[str, Any] | None = None

    @property
    def named(self) -> dict[str, Any]:
        """Its arguments by their names."""
        return {**dict(zip(self.operation.arguments, self.args)), **self.kwargs}

    @property
    def mutates(self) -> bool:
        """Whether it writes into its first argument."""
        return bool(self.op.endswith('_') and isinstance(self.args[0], Tensor))

    @property
    def moves(self) -> bool:
        """Whether its output has the values of its first argument."""
        return self.op in MOVES or (self.op == 'add' and adds_zero(self.args))


_PLAIN = (Tensor, nn.Parameter)


class Tracer(TorchDispatchMode):
    """Follows one forward pass; use :func:`tracing`.

    Each operation on a tensor of the graph is seen once, by ``__torch_dispatch__``; each of
    its outputs becomes a node by :meth:`record`. What ``observe`` computes does not join the graph.

    Args:
        names: Module -> path.
        measure: Called with a tensor and its channel axis; what it returns is kept with
            the residual addition. None measures nothing.
        before_write: Called with each tensor that an operation is about to write into.
        observe: Called after each operation on tensors of the graph, with the tracer, the
            operation and its result.
        measure_output: Called instead of ``measure`` with the outputs of blocks.
    """

    def __init__(
        self,
        names: dict[nn.Module, str],
        measure: Callable[[Tensor, int], Any] | None = None,
        before_write: Callable[[Tensor], None] | None = None,
        observe: Callable[[Tracer, Call, Any], None] | None = None,
        measure_output: Callable[[Tensor, int], Any] | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        self.modules = {name: module for module, name in names.items()}
        self._measure = measure
        self._before_write = before_write
        self._observe = observe
        self._measure_output = measure_output
        self.nodes: list[Node] = []
        self.node_of, self.base_of = NodeOf(), NodeOf()
        self.stack: list[str] = ['']
        self.entries: list[int] = [0]  # candidates when a module was entered
        self.entered: set[str] = set()  # modules that ran
        self.touched: set[int] = set()  # memory of the tensors that weights are computed from
        self.candidates: list[Residual] = []
        self.units: list[Unit] = []
        self.pending: dict[int, tuple[Tensor, Residual]] = {}
        # Up to the first residual addition: the inputs of modules, to find the stem's output.
        self.read_by: dict[str, Node] = {}
        self.read: dict[Node, weakref.ref[Tensor]] = {}  # those that are not measured yet
        self.inputs_measured: dict[Node, Any] = {}
        self.measured: dict[tuple[Node, int], Any] = {}  # as the outputs of blocks
        self.repeated = repeated_modules(names)
        # Beside residual blocks, modules of their classes alone are measured.
        self.kinds: set[type] | None = set()

    def measure(self, tensor: Tensor, axis: int) -> Any:
        """Measure a tensor; what that computes is not part of the graph."""
        return self._measured(self._measure, tensor, axis)

    def measure_output(self, tensor: Tensor, node: Node, axis: int | None = None) -> Any:
        """Measure the output of a block, of which more is measured where that is asked for.

        It may be the output of several modules, and the input of another one: it is measured once.
        """
        axis = node.channel_dim if axis is None else axis
        if (node, axis) not in self.measured:
            look = self._measure_output or self._measure
            self.measured[node, axis] = self._measured(look, tensor, axis)
        return self.measured[node, axis]

    def _measured(self, measure: Callable | None, tensor: Tensor, axis: int) -> Any:
        if measure is None:
            return None
        with unwatched():
            if tensor.is_complex():  # its parts are two positions
                tensor = torch.view_as_real(tensor)
            return measure(tensor, axis)

    # ---------------------------------------------------------------- the graph
    def add_node(self, tensor: Tensor, op: str, parents: list[Node], axis: int | None) -> Node:
        """Add a tensor to the graph.

        Args:
            tensor: The tensor; a node that it has already is replaced.
            op: What made it.
            parents: What it was computed from; a dividend comes first.
            axis: Of its channels.
        """
        node = Node(len(self.nodes), op, tuple(parents), self.stack[-1], axis, tensor.dim())
        node.root = node
        self.nodes.append(node)
        if parents:
            idom = parents[0]
            depth, mixed = idom.depth, idom.mixed
            for parent in parents:
                parent.users.append(node)
                if parent is not idom:
                    idom = common_dominator(idom, parent)
                    depth, mixed = max(depth, parent.depth), max(mixed, parent.mixed)
            node.depth = depth + (op in HEAVY or 'attention' in op)
            node.mixed = mixed + mixes(op)
            node.bends = bends(op, parents)
            node.idom, node.level = idom, idom.level + 1
        self.node_of[tensor] = node
        return node

    def add_inputs(self, inputs: Any) -> None:
        """Start the graph with all tensors among the inputs; several come after one node."""
        tensors = [x for x in tree_iter(inputs) if isinstance(x, Tensor)]
        top = [self.add_node(torch.empty(0), 'inputs', [], None)] if len(tensors) != 1 else []
        for tensor in tensors:
            if tensor not in self.node_of:
                self.add_node(tensor, 'input', top, 1 if tensor.dim() == 4 else None)

    ignores_weights = True  # what standardizes them may be a kernel, which no mode sees

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled meanwhile; the guard would cost at each operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation = _OPERATIONS.get(func) or _OPERATIONS.setdefault(func, Operation(func))
        if operation.mutable and self._before_write is not None:
            for tensor in written_tensors(func, args, kwargs):
                self._before_write(tensor)
                if self.read:
                    self.measure_read(memory=memory_of(tensor))
        given: list[tuple[Node, Tensor]] = []
        others: list[Tensor] = []
        self.sort(args, given, others)
        if kwargs:
            self.sort(kwargs.values(), given, others)
        if not given:
            self.touched.update(memory_of(x) for x in args if type(x) in _PLAIN)
            return func(*args, **kwargs)
        if operation.product and self.adds_to_graph(args, kwargs):
            return self.run_product(func, operation.product, args, kwargs)
        if operation.foreach:
            return self.run_each(operation.name, args, kwargs)
        call = Call(operation, args, kwargs, given, others, operation.name)
        if call.op == 'convolution' and args[6]:
            call.op = 'conv_transpose'
        self.before(call)
        result = func(*args, **kwargs)
        self.after(call, result)
        if self._observe is not None:
            with unwatched(), grad_mode(False):
                self._observe(self, call, result)
        return result

    def sort(self, values: Iterable, given: list[tuple[Node, Tensor]], others: list) -> None:
        """Sort the tensors among some arguments: those in the graph, and the others."""
        get = self.node_of.get
        for x in values:
            if isinstance(x, Tensor):
                node = get(x)
                if node is not None:
                    given.append((node, x))
                else:
                    others.append(x)
            elif isinstance(x, (list, tuple)):
                self.sort(x, given, others)

    def before(self, call: Call) -> None:
        """Measure what the operation may overwrite, and what it may be the end of."""
        if self.pending and call.op not in ACTIVATIONS:
            for _, tensor in call.given:
                if id(tensor) in self.pending:
                    self.settle(tensor)
        if call.operation.adds:
            call.residual = self.find_residual(call.op, call.args, call.kwargs)
        elif call.operation.scales:
            call.scaling = self.scaling(call.op, call.args)
        elif call.op in REDUCTIONS and call.given[0][0].pair is not None:
            call.residual = self.find_reduced(call)

    def after(self, call: Call, result: Any) -> None:
        """Add the outputs of an operation to the graph."""
        if isinstance(result, Tensor):
            outputs = [result]
        elif isinstance(result, (list, tuple)):
            outputs = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        else:
            return
        for i, out in enumerate(outputs[:1] if call.operation.norm else outputs):
            node = self.record(call, out)  # the other outputs of a norm are saved statistics
            if call.op in SLICES:
                node.part = slice_range(call.op, call.args, outputs, i)
            for name, value in (call.scaling or {}).items():
                setattr(node, name, value)
        if outputs:
            call.out, call.node = outputs[0], self.node_of[outputs[0]]
            self.follow(call, outputs[0])
        if call.mutates:
            self.propagate_mutation(call.args[0])

    def adds_to_graph(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether ``self + a @ b`` adds to a tensor of the graph of the sum's size."""
        x = args[0]
        if x not in self.node_of or kwargs.get('beta', 1) != 1 or not x.is_floating_point():
            return False
        rows = args[1].shape[:-1]
        return x.shape == (rows if args[2].dim() == 1 else (*rows, args[2].shape[-1]))

    def run_product(self, func: Any, product: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run ``self + a @ b`` in two steps, so that the product may be the end of a branch."""
        aten = torch.ops.aten
        branch = self.__torch_dispatch__(getattr(aten, product).default, (), args[1:3])
        alpha = dict(alpha=kwargs.get('alpha', 1))
        if func._schema.name.endswith('_'):
            return self.__torch_dispatch__(aten.add_.Tensor, (), (args[0], branch), alpha)
        return self.__torch_dispatch__(aten.add.Tensor, (), (args[0], branch), alpha)

    def run_each(self, name: str, args: tuple, kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Run additions of the pairs of two lists one by one."""
        aten = torch.ops.aten
        add = aten.add_.Tensor if name.endswith('_') else aten.add.Tensor
        others = args[1] if isinstance(args[1], (list, tuple)) else [args[1]] * len(args[0])
        sums = [
            self.__torch_dispatch__(add, (), (x, other), kwargs)
            for x, other in zip(args[0], others)
        ]
        return None if name.endswith('_') else sums

    def record(self, call: Call, out: Tensor) -> Node:
        """Add an output of an operation to the graph."""
        op, given = call.op, call.given
        parents = [given[0][0]] if len(given) == 1 else list(dict.fromkeys(n for n, _ in given))
        if call.operation.shape:  # its values do not depend on the tensor
            parents = self.nodes[:1]
        elif len(parents) > 1:  # what is written into zeros is all that is in them
            parents = [p for p in parents if not is_constant(p.op)] or parents
        if len(parents) > 1 and op in ('mul', 'mul_') and parents[0].op in RECIPROCALS:
            parents.reverse()
        node = self.add_node(out, op, parents, channel_axis(op, out, call.args, given))
        source, tensor = given[0]
        if call.moves and out.numel() == tensor.numel():
            node.root = source.root
            if source.pair is not None:
                node.pair = moved_pair(source.pair, op, out, call.args, tensor)
        elif op in ('cat', 'stack') and len(given) == 2 and len(parents) == 2:
            first, second = parents
            node.pair = first, second, stacked_axis(op, call.args)
        if call.operation.alias and not call.mutates and isinstance(call.args[0], Tensor):
            self.base_of[out] = weakref.ref(call.args[0])
        if op in CONVOLUTIONS and len(call.args) > 1 and keeps_weight(node, call.args[1]):
            node.weight = call.args[1]
        return node

    def follow(self, call: Call, out: Tensor) -> None:
        """Note that an operation's first output is a residual sum, or the activation of one."""
        residual = call.residual
        if residual is not None:
            node = self.node_of[out]
            node.axis, node.sum, residual.node = residual.channel_dim, residual, node
            residual.shape = tuple(out.shape)
            self.candidates.append(residual)
            self.note_kinds(residual.owner)
            self.pending[id(out)] = (out, residual)
        elif self.pending and call.op in ACTIVATIONS and id(call.given[0][1]) in self.pending:
            self.follow_activation(call.given[0][1], out)

    def propagate_mutation(self, tensor: Tensor) -> None:
        """A write through a view changes what it is a view of."""
        base = self.base(tensor)
        while base is not None and base is not tensor:
            known = self.node_of.get(base)
            written = self.node_of[tensor]
            self.add_node(
                base,
                'copy_',
                [written] if known is None else [known, written],
                written.axis if known is None else known.axis,
            )
            tensor, base = base, self.base(base)

    def base(self, tensor: Tensor) -> Tensor | None:
        """What a tensor is a view of, as far as it is alive."""
        found = self.base_of.get(tensor)
        return None if found is None else found()

    # ------------------------------------------------------- the residual rules
    def find_residual(self, op: str, args: tuple, kwargs: dict) -> Residual | None:
        """Whether an addition closes a residual block; measures its branch if so."""
        found = addends(op, args, kwargs, self.node_of)
        if found is None:
            return None
        a, b, factors, alpha = found
        if not all(isinstance(x, Tensor) and x in self.node_of for x in (a, b)):
            return None
        whole = a.shape == b.shape and op not in PARTIAL_ADDITIONS
        if a.dim() < 2 or not (a.is_floating_point() or a.is_complex()):
            return None
        if not whole and op not in PARTIAL_ADDITIONS:
            if op.startswith('sub') or a.dim() != b.dim():
                return None
            if torch.broadcast_shapes(a.shape, b.shape) == b.shape:
                a, b, alpha = b, a, 1
            elif torch.broadcast_shapes(a.shape, b.shape) != a.shape:
                return None
        return self.residual_of((a, b), factors, alpha, whole)

    def find_reduced(self, call: Call) -> Residual | None:
        """Whether a sum over two tensors that were put beside each other closes a block."""
        if call.given[0][0].pair is None:
            return None
        x, (first, second, axis) = call.args[0], call.given[0][0].pair
        dims = call.args[1] if len(call.args) > 1 else None
        dims = [dims] if isinstance(dims, int) else dims
        if not dims or [d % x.dim() for d in dims] != [axis] or x.shape[axis] != 2:
            return None
        if x.dim() < 3 or not x.is_floating_point():
            return None
        factors: list[float | Tensor] = [0.5] if call.op == 'mean' else []
        with unwatched():
            parts = x.select(axis, 0), x.select(axis, 1)
        for part, node in zip(parts, (first, second)):
            self.node_of[part] = node
        return self.residual_of(parts, factors, 1, True)

    def residual_of(
        self, operands: tuple[Tensor, Tensor], factors: list, alpha: float, whole: bool
    ) -> Residual | None:
        """The residual addition of two tensors, if it is one.

        Args:
            operands: The tensors.
            factors: What the addition multiplies the branch with.
            alpha: What it multiplies the second one with.
            whole: Whether both have the size of the sum.
        """
        nodes = self.node_of[operands[0]], self.node_of[operands[1]]
        found = classify(*nodes, (1, 1 if isinstance(alpha, Tensor) else alpha), not whole)
        if found is None:
            return None
        first, source, identity = found
        if first == 0 and alpha != 1:
            factors = [*factors, alpha]
        shortcut, branch = nodes[first], nodes[1 - first]
        tensor = operands[1 - first]
        axis = shortcut.axis if shortcut.axis is not None else branch.channel_dim
        axis = min(axis, operands[first].dim() - 1)
        bare, gains, measured, scale = walk_back_gains(branch, factors)
        self.measure_read(depth=source.depth)
        if not self.candidates and identity and source not in self.inputs_measured:
            if shortcut.root is source:
                self.inputs_measured[source] = self.measure_output(operands[first], shortcut, axis)
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
        if op.startswith('neg'):
            return dict(scale=-1.0)
        x, factor = args[:2]
        if not isinstance(factor, Tensor):
            value = real(factor)
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
            return dict(scale=1 / real(factor) if op.startswith('div') else real(factor))
        gain = 1 / factor if op.startswith('div') else factor
        return dict(gain=gain, before=self.measure(x, axis))

    # ------------------------------------------------------------------ outputs
    def settle(self, tensor: Tensor) -> None:
        """Measure a block's output, right before something uses it."""
        _, residual = self.pending.pop(id(tensor))
        if residual.measured_output is None:
            residual.measured_output = self.measure_output(
                tensor, self.node_of[tensor], residual.channel_dim
            )

    def note_kinds(self, owner: str) -> None:
        """Note of which class a block may be: of the module that adds, or of one around it."""
        if owner == '':  # or else of any module: that of the branch
            self.kinds = None
        while self.kinds is not None and owner:
            self.kinds.add(type(self.modules[owner]))
            owner = owner.rpartition('.')[0]
            if owner not in self.modules:
                break

    def follow_activation(self, tensor: Tensor, out: Tensor) -> None:
        """An activation after the addition, in the same module, is part of the block."""
        _, residual = self.pending.pop(id(tensor))
        if self.stack[-1] != '' and is_inside(self.stack[-1], residual.owner):
            residual.activated = True
            self.pending[id(out)] = (out, residual)
        elif residual.measured_output is None:
            residual.measured_output = self.measure_output(
                tensor, self.node_of[tensor], residual.channel_dim
            )

    # ------------------------------------------------------------------ modules
    def enter(self, module: nn.Module, args: tuple) -> None:
        name = self.names.get(module, self.stack[-1])
        if not self.candidates and next(module.children(), None) is not None:
            tensor = next((x for x in tree_iter(args) if isinstance(x, Tensor)), None)
            node = None if tensor is None else self.node_of.get(tensor)
            if tensor is not None and tensor.dim() > 1 and node is not None and node.index:
                self.read_by.setdefault(name, node)
                self.read.setdefault(node, weakref.ref(tensor))
        self.stack.append(name)
        self.entered.add(name)
        self.entries.append(len(self.candidates))

    def measure_read(self, depth: int | None = None, memory: int | None = None) -> None:
        """Measure inputs of modules: of a depth, or in memory that is about to be overwritten.

        The first block has found its source when it adds. Its input has the same depth, and is
        still alive, since the caller of a module holds the arguments until the module returns.
        """
        for node, reference in list(self.read.items()):
            tensor = reference()
            if tensor is None:
                del self.read[node]
            elif depth == node.depth or memory == memory_of(tensor):
                del self.read[node]
                self.inputs_measured.setdefault(node, self.measure_output(tensor, node))

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
        if self.candidates and self.kinds is not None and type(module) not in self.kinds:
            return
        tensor = next((x for x in tree_iter(output) if isinstance(x, Tensor)), None)
        if tensor is None or tensor not in self.node_of or tensor.dim() < 2:
            return
        if name and has_weights(module):
            node = self.node_of[tensor]
            value = self.measure_output(tensor, node)
            unit = Unit(name, type(module), repeated, tuple(tensor.shape), node, value)
            self.units.append(unit)

    def finish(self, output: Any) -> None:
        """Note what the network returns."""
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor) and tensor in self.node_of:
                self.node_of[tensor].root.returned = True

    def residuals(self) -> list[Residual]:
        """The residual blocks in order of execution, named."""
        return residual_blocks(self.candidates, [n for n in self.nodes if n.returned])


@contextmanager
def tracing(
    model: nn.Module,
    inputs: Any,
    measure: Callable[[Tensor, int], Any] | None = None,
    before_write: Callable[[Tensor], None] | None = None,
    observe: Callable[[Tracer, Call, Any], None] | None = None,
    measure_output: Callable[[Tensor, int], Any] | None = None,
) -> Iterator[Tracer]:
    """Follow what a model does with ``inputs``, tensors in any containers, inside the block."""
    names = {m: name.replace('_orig_mod.', '') for name, m in parts_of(model).modules}
    tracer = Tracer(names, measure, before_write, observe, measure_output)
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
        # Two hooks for all modules are faster, and those of TorchScript take none of their own. But
        # torch.compile warns of them.
        together = scripted or len(watched) == len(names)
        if together:
            hooks.append(nn_module.register_module_forward_pre_hook(enter))
            hooks.append(nn_module.register_module_forward_hook(leave))
        for module in () if together else watched:
            hooks.append(module.register_forward_pre_hook(enter, prepend=True))
            hooks.append(module.register_forward_hook(leave, prepend=True))
        tracer.add_inputs(inputs)
        with entered(tracer):
            yield tracer


def stem_of(first: Residual, tracer: Tracer) -> Any:
    """What was measured of the first block's input: its module's, or else its addition's."""
    node = tracer.read_by.get(first.name)
    if node is not None and node.depth == first.source.depth:  # else the module has the stem
        return tracer.inputs_measured.get(node) or tracer.inputs_measured.get(first.source)
    return tracer.inputs_measured.get(first.source)


def find_residuals(model: nn.Module, inputs: Any) -> list[Residual]:
    """The residual additions that a model executes on a batch, in order.

    Nothing is measured, so model and batch may be on the meta device.

    Args:
        model: Any network, in the mode that it shall run in.
        inputs: What it is called with: a tensor, a tuple of positional or a dict of named
            arguments.

    Returns:
        The residual additions.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> found = find_residuals(NFResNet(26, base_channels=8), torch.randn(1, 3, 64, 64))
        >>> [(r.name, r.identity) for r in found[:3]]
        [('layer1.0', False), ('layer1.1', True), ('layer2.0', False)]
    """
    given = arguments(model, inputs)
    with (
        grad_mode(False),
        plain_execution(model, *given.batch),
        tracing(model, given.tensors()) as tracer,
    ):
        tracer.finish(given.pass_to(model))
    residuals = tracer.residuals()
    for residual, name in zip(residuals, block_names(residuals)):
        residual.name = name
    return residuals
