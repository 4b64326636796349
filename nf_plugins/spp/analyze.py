"""Measure the signal in one forward pass, and the gradient in one backward pass."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather, get_world_size
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nf_plugins.functional import ChannelStatistics, channel_statistics
from nf_plugins.utils.checks import check_choice

from .adapters.arguments import tensors_in
from .execution import entered, grad_mode, has_fixed_mode, plain_execution, preserved, run, seed_all
from .feed import Feed, measured_part
from .graph import (
    Node,
    Residual,
    Tracer,
    Unit,
    block_names,
    plain_units,
    stem_of,
    tracing,
    zero_parameter,
)
from .graph.nodes import memory_of
from .graph.ops import ACTIVATIONS, MOVES, NORMS, POOLINGS
from .observer import Numbers, Observer, sample
from .parts import listed
from .profile import MODES, STATES, BlockSignal, SignalProfile
from .structure import (
    describe,
    describe_blocks,
    find_state,
    input_facts,
    is_broken,
    non_finite_names,
    reached_parameters,
)
from .theory import add_theory


@dataclass(eq=False)
class Measurement:
    """Statistics of an activation and of the gradient that reaches it."""

    stats: ChannelStatistics
    shape: tuple[int, ...]
    grad: ChannelStatistics | None = None
    largest: Tensor | None = None
    image_cosine: Tensor | None = None
    token_cosine: Tensor | None = None


class Samples:
    """Samples of signals, whose images and positions are compared: many signals at once."""

    def __init__(self) -> None:
        self.waiting: dict[tuple, list[tuple[Measurement, Tensor]]] = {}
        self.held = 0  # values

    def add(self, found: Measurement, x: Tensor, channel_dim: int) -> None:
        """Note the largest value of a signal, and some of its values."""
        low, high = torch.aminmax(x)
        found.largest = torch.maximum(high, -low)
        count, channels = len(x), x.shape[channel_dim]
        if channel_dim % x.dim() == 0 or channels < 2:
            return
        values = sample(x, channel_dim, max(1 << 15, 8 * count * channels))
        if len(values) % count or not len(values):
            return
        values = values.unflatten(0, (count, -1)).float()  # images, positions, channels
        if memory_of(values) == memory_of(x):
            values = values.clone()
        self.waiting.setdefault((values.device, values.shape), []).append((found, values))
        self.held += values.numel()
        if self.held > _HELD:
            self.compare()

    def compare(self) -> None:
        """Measure how much the images, and the positions of an image, are alike."""
        for (_, (images, positions, _)), signals in self.waiting.items():
            values = torch.stack([values for _, values in signals])
            if images > 1:
                for (found, _), cosine in zip(signals, mean_cosine(values.flatten(2)).unbind()):
                    found.image_cosine = cosine
            if positions > 1:
                for (found, _), cosine in zip(signals, mean_cosine(values).mean(1).unbind()):
                    found.token_cosine = cosine
        self.waiting, self.held = {}, 0


_HELD = 1 << 20  # values


def measure(
    tensor: Tensor, channel_dim: int, backward: bool = False, samples: Samples | None = None
) -> Measurement:
    found = Measurement(channel_statistics(tensor, channel_dim), tuple(tensor.shape))
    if samples is not None:
        with torch.no_grad():
            samples.add(found, tensor.detach(), channel_dim)
    if backward and tensor.requires_grad:

        def keep(gradient: Tensor) -> None:
            found.grad = channel_statistics(gradient, channel_dim)

        with torch.enable_grad():
            tensor.register_hook(keep)
    return found


def mean_cosine(values: Tensor) -> Tensor:
    """Mean cosine between two of the rows of ``(..., rows, features)``."""
    lengths = torch.linalg.vector_norm(values, dim=-1)
    scales = 1 / lengths.clamp(min=1e-12)
    rows = values.shape[-2]
    total = (scales.unsqueeze(-2) @ values).square().sum((-1, -2))  # of the unit vectors
    return (total - (lengths * scales).square().sum(-1)) / (rows * (rows - 1))


_ALLOCATIONS = ('empty', 'new_empty')
"""How the names of operations begin that return memory with any content."""


class _FirstNonFinite(TorchDispatchMode):
    """Finds the operation that first makes a non-finite value out of finite ones."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.found: str | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.found is None and _computes(func):
            op = func.__name__.partition('.')[0]
            masked = op.removesuffix('_') in _MASKS or any(
                bool(torch.isneginf(x).any()) for x in _numbers((args, kwargs))
            )
            if any(is_broken(out, masked) for out in _numbers(result)):
                self.found = f'{self.tracer.stack[-1] or "the backbone itself"} ({op})'
        return result


_MASKS = ('masked_fill', 'fill', 'full', 'full_like', 'new_full', 'where', 'scalar_tensor', 'log')
"""Operations that give -inf on purpose: attention masks hide what is not to be looked at."""


def _numbers(values: Any) -> list[Tensor]:
    found = [x for x in tree_iter(values) if isinstance(x, Tensor) and x.numel()]
    return [x for x in found if x.is_floating_point() and not x.is_meta]


def _computes(func: torch._ops.OpOverload) -> bool:
    """Whether an operation makes values: allocations and views only show what is in memory."""
    name = func.name().removeprefix('aten::')
    return not (name.startswith(_ALLOCATIONS) or func.is_view)


def first_non_finite(
    model: nn.Module,
    inputs: Any,
    call: Callable[[nn.Module, Any], Any] = run,
    before_write: Callable[[Tensor], None] | None = None,
) -> str | None:
    """The module that first makes a non-finite value, with the operation, or None.

    Args:
        model: The model.
        inputs: What it is called with: tensors, in whatever containers.
        call: Calls the model.
        before_write: Called with each tensor that an operation is about to write into.
    """
    tensors = list(tensors_in(inputs))
    numbers = [x for x in tensors if x.is_floating_point() or x.is_complex()]
    if not all(bool(torch.isfinite(x).all()) for x in numbers):
        return 'the input'
    with grad_mode(False), tracing(model, tensors, before_write=before_write) as tracer:
        watch = _FirstNonFinite(tracer)
        with entered(watch):
            call(model, inputs)
    return watch.found


def analyze(
    model: nn.Module,
    inputs: Any,
    mode: str = 'train',
    seed: int | None = 0,
    backward: bool = False,
    unit_gain: bool = False,
    sync: bool = False,
    input_info: dict[str, Any] | None = None,
    label: str = '',
    state: str | None = None,
    evidence: bool = True,
    call: Callable[[nn.Module, Any], Any] | None = None,
    module: str | None = None,
) -> SignalProfile:
    """Measure how a signal propagates through the residual blocks of any network.

    One forward pass; the model is unchanged afterwards. The residual additions are found
    by following the tensors (:mod:`nf_plugins.spp.graph`), so that nothing need be known
    of the model. A network without any is measured at its repeated modules.

    Analyses in several threads wait for one another. Other threads may train other networks
    meanwhile; only the random states, which are the process's, go back under them.

    Args:
        model: A network, or a wrapper of one (compiled, DDP, EMA, a program of
            ``torch.export``). Of a whole model of an mm library the backbone is measured if
            ``inputs`` is a tensor, and all of it if it is a batch of data.
        inputs: What the network is called with, on its device: a tensor (images, tokens, ...),
            a tuple of positional or a dict of named arguments, or a batch of an mm data loader.
        mode: 'train' (batch norm uses the batch, as in the papers' plots), 'eval', or 'asis':
            each module in the mode that it has, so that frozen batch norms are seen. Exported
            and frozen programs have one mode: they are measured 'asis'.
        seed: Seed for what is random in the network.
        backward: Measure, too, the gradient that flows back from unit Gaussian noise at
            the last output (the first one if they have names) to the inputs, or to the first
            floating point tensors that are computed from integers.
        unit_gain: Measure with the gains that are zero (SkipInit, zero-initialised last
            norms) at one.
        sync: Merge the statistics of all ranks, each of which has its own inputs.
        input_info: What the batch is; it becomes part of ``SignalProfile.input``.
        label: Name for legends.
        state: 'init' or 'trained': what is expected of the network; None to find out.
        evidence: Collect what rules need beside the curves (saturated units, weights that are
            zero, ...). It costs a tenth of a forward pass.
        call: Called with the network and ``inputs``; runs the network, and returns its output.
            For networks that want something else than a call with ``inputs``.
        module: Path of the part of the model to measure; ``inputs`` are for this part. '' is
            the whole model.

    Returns:
        The profile: the stem, then every block in order of execution.

    Raises:
        TypeError: The model is no network, or no tensor is among the inputs.
        ValueError: Unknown ``mode``, ``state`` or ``module``, or nothing in the model can be
            measured.
        Exception: What the network raises; the message ends with what it was called with.

    Source: Brock et al. 2021a, section 3: signal propagation plots.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> profile = analyze(NFResNet(26, base_channels=8), torch.randn(2, 3, 64, 64))
        >>> [block.kind for block in profile.blocks[:3]]
        ['stem', 'transition', 'residual']
        >>> layer = nn.TransformerDecoderLayer(8, 2, 16)
        >>> profile = analyze(layer, dict(tgt=torch.randn(4, 2, 8), memory=torch.randn(5, 2, 8)))
        >>> [block.kind for block in profile.blocks].count('residual')
        3
    """
    check_choice('mode', mode, MODES)
    if state is not None:
        check_choice('state', state, STATES)
    part, path = measured_part(model, inputs, module, call)
    mode = 'asis' if has_fixed_mode(part) else mode
    with (
        listed(part),
        preserved(part, mode, unit_gain) as before,
        grad_mode(backward),
        ExitStack() as stack,
    ):
        state = state or find_state(part)
        observer = Observer(part) if evidence else None
        feed = Feed(part, inputs, mode, call, backward)
        stack.enter_context(plain_execution(part, *feed.given.batch))
        if seed is not None:
            seed_all(seed)
        look = functools.partial(measure, backward=backward)
        samples = Samples() if evidence else None
        more = functools.partial(look, samples=samples)
        watch = feed.watching(observer) if backward else observer
        with tracing(part, feed.tensors, look, before.note_write, watch, more) as tracer:
            output = feed.run()
            tracer.finish(list(tensors_in(output)))
        gradients = None
        if backward:
            gradients = reached_parameters(tensors_in(output))
            feed.send_noise_back(output)
        broken_output = any(is_broken(x) for x in _numbers(list(tensors_in(output))))
        del output
        if samples is not None:
            samples.compare()
        blocks = collect(tracer, part, sync)
        found = None
        if observer is not None:
            facts = input_facts(feed.signals() or feed.given.tensors())
            found = describe(blocks, tracer, observer, part, facts, gradients)
        else:
            describe_blocks(blocks, tracer)
        add_theory(blocks, tracer, mode)
        profile = SignalProfile(
            [block for block, _ in blocks],
            mode=mode,
            input={**feed.shapes(), **({'module': path} if path else {}), **(input_info or {})},
            seed=seed,
            label=label,
            unit_gain=unit_gain,
            state=state,
            evidence=found,
        )
        if broken_output or not profile.is_finite():
            if seed is not None:
                seed_all(seed)
            again = Feed(part, inputs, mode, call, False)
            profile.non_finite_module = first_non_finite(
                part, again.tensors, lambda *_: again.run(), before.note_write
            )
    if profile.evidence is not None and (broken := non_finite_names(part)):
        profile.evidence.parameters.append(broken)  # of the network as it was given
    return profile


def collect(
    tracer: Tracer, model: nn.Module, sync: bool
) -> list[tuple[BlockSignal, Residual | Unit | None]]:
    """Return the blocks of a trace, with their numbers, in order of execution."""
    found = _measured_blocks(tracer)
    if not found:
        raise ValueError(
            f'{type(model).__name__} has nothing that can be measured: neither a residual '
            'addition nor repeated modules nor stages with weights ran on this input'
        )
    if sync and get_world_size() > 1:
        branches = [item.measured_branch for *_, item in found if isinstance(item, Residual)]
        merge_ranks([output for _, _, output, _ in found] + branches)

    numbers, blocks = Numbers(), []
    for index, (name, kind, output, item) in enumerate(found):
        block = BlockSignal(index, name, kind, output.shape, 0.0, 0.0)
        _fill_output(block, output, numbers)
        if isinstance(item, Unit):
            block.activated = _ends_in_activation(item.node)
            block.normalized = any(user.op in NORMS for user in item.node.users)
        if isinstance(item, Residual):
            _fill_branch(block, item, numbers)
        blocks.append((block, item))
    numbers.deliver()
    for block, item in blocks:
        if isinstance(item, Residual) and 0 in (block.res_avg_var, block.branch_gain):
            block.zero_parameter = zero_parameter(item, model, tracer.modules)
    return blocks


def _measured_blocks(
    tracer: Tracer,
) -> list[tuple[str, str, Measurement, Residual | Unit | None]]:
    """Return name, kind, measured output and trace of the stem and the blocks."""
    residuals = tracer.residuals()
    units = plain_units(tracer.units, residuals, tracer.modules)
    found: list[tuple[str, str, Measurement, Residual | Unit | None]] = []
    stem: Measurement | None = stem_of(residuals[0], tracer) if residuals else None
    if stem is not None:
        found.append(('stem', 'stem', stem, None))
    items: list[tuple[str, Residual | Unit]] = [(unit.name, unit) for unit in units]
    items += zip(block_names(residuals), residuals)
    for name, item in sorted(items, key=lambda pair: pair[1].node.index):
        kind = 'plain'
        if isinstance(item, Residual):
            kind = 'residual' if item.identity else 'transition'
        found.append((name, kind, item.measured_output, item))
    return found


def _fill_output(block: BlockSignal, output: Measurement, numbers: Numbers) -> None:
    """Fill in what is measured at the output of a block."""
    var = output.stats.var
    numbers.put(block, 'avg_sq_mean', output.stats.avg_sq_mean)
    numbers.put(block, 'avg_var', output.stats.avg_var)
    numbers.put(block, 'constant_channels', (var <= 1e-10 * var.mean()).double().mean())
    if output.grad is not None:
        numbers.put(block, 'grad_avg_sq_mean', output.grad.avg_sq_mean)
        numbers.put(block, 'grad_avg_var', output.grad.avg_var)
    block.positions = output.stats.count // output.shape[0]
    for name in ('largest', 'image_cosine', 'token_cosine'):
        if (value := getattr(output, name)) is not None:
            numbers.put(block, name, value)


def _fill_branch(block: BlockSignal, residual: Residual, numbers: Numbers) -> None:
    """Fill in what is measured at the end of the branch of a block."""
    branch = residual.measured_branch
    numbers.put(block, 'res_avg_var', branch.stats.avg_var / residual.branch_scale**2)
    constant = branch.stats.var <= 1e-12 * branch.stats.mean.square()
    numbers.put(block, 'constant_branch', constant.double().mean())
    if branch.grad is not None:
        grad_var = branch.grad.avg_var * residual.branch_scale**2
        numbers.put(block, 'grad_res_avg_var', grad_var)
    device = residual.measured_output.stats.var.device
    gain = torch.ones((), dtype=torch.float64, device=device)
    for factor in residual.gains:
        if isinstance(factor, Tensor):
            gain = gain * factor.detach().double().square().mean().to(device)
        else:
            gain = gain * factor**2
    numbers.put(block, 'branch_gain', gain.sqrt())
    block.activated, block.pooled = residual.activated, residual.pooled
    block.normalized = residual.normalized


def _ends_in_activation(node: Node) -> bool:
    if node.op in (*MOVES, *POOLINGS, 'cat'):
        return all(_ends_in_activation(parent) for parent in node.parents)
    return node.op in ACTIVATIONS


def merge_ranks(measurements: list[Measurement]) -> None:
    """Put the statistics of all ranks together; exact, as counts, means and M2 merge."""
    for kind in ('stats', 'grad'):
        chosen = [m for m in measurements if getattr(m, kind) is not None]
        if not chosen:
            continue
        stats = [getattr(m, kind) for m in chosen]
        flat = torch.cat(
            [
                part.double()
                for s in stats
                for part in (s.mean.new_tensor([s.count], dtype=torch.float64), s.mean, s.m2)
            ]
        )
        sizes = [size for s in stats for size in (1, len(s.mean), len(s.mean))]
        split = (vector.split(sizes) for vector in all_gather(flat))
        ranks = (
            [ChannelStatistics(int(n), mean, m2) for n, mean, m2 in zip(p[::3], p[1::3], p[2::3])]
            for p in split
        )
        for m, of_ranks in zip(chosen, zip(*ranks)):
            setattr(m, kind, functools.reduce(operator.add, of_ranks))
