"""Measure the signal in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nf_plugins.functional import ChannelStatistics, channel_statistics
from nf_plugins.layers import StandardizedConv2d

from .profile import BlockSignal, SignalProfile
from .trace import find_blocks

_ADDITIONS = {
    torch.add,
    torch.addcmul,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
}


@contextmanager
def preserved(model: nn.Module, mode: str) -> Iterator[None]:
    """Run a block with ``model`` in a mode, and give it back unchanged to the bit.

    Buffers (batch norm's running statistics), what a first training batch
    initialises, the training flags and the random state are restored, also after an
    exception. Stochastic depth is off.

    Args:
        model: The model.
        mode: 'train' or 'eval'.
    """
    flags = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    lazily_initialised = [
        (module, {key: value.clone() for key, value in module.state_dict().items()})
        for module in model.modules()
        if getattr(module, 'initalpha', False)
    ]
    devices = list({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        try:
            # Not `model.train()`, which others override; so drop the layers' caches, too.
            for module in flags:
                if isinstance(module, StandardizedConv2d):
                    module.clear_cache()
                module.training = mode == 'train' and 'DropPath' not in type(module).__name__
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for module, state in lazily_initialised:
                module.load_state_dict(state)
            for module, flag in flags.items():
                module.training = flag
                if isinstance(module, StandardizedConv2d):
                    module.clear_cache()


class _ResidualAdditions(TorchFunctionMode):
    """Measures what is added to the shortcut of the current block, before it is added.

    The branch is the other operand of the first addition of the shortcut, so factors
    that the addition itself applies (alpha, SkipInit gain) are not in it.
    """

    def __init__(self, branches: dict[str, ChannelStatistics]) -> None:
        super().__init__()
        self.branches = branches
        self.block: str | None = None
        self.shortcut: Tensor | None = None

    def enter(self, block: str, shortcut: Tensor) -> None:
        self.block, self.shortcut = block, shortcut

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _ADDITIONS and self.shortcut is not None:
            for shortcut, branch in (args[:2], args[1::-1]):
                if (
                    shortcut is self.shortcut
                    and isinstance(branch, Tensor)
                    and branch.shape == shortcut.shape
                ):
                    self.branches[self.block] = channel_statistics(branch)
                    self.shortcut = None
                    break
        return func(*args, **(kwargs or {}))


def analyze(
    model: nn.Module,
    inputs: Tensor,
    mode: str = 'train',
    seed: int | None = 0,
    input_info: dict[str, Any] | None = None,
    label: str = '',
) -> SignalProfile:
    """Measure how a signal propagates through the residual blocks of a backbone.

    One forward pass without gradients; the model is unchanged afterwards.

    Args:
        model: A backbone, or a model with one as ``backbone``.
        inputs: A batch, ``(N, C, H, W)``, on the device of the model.
        mode: 'train' (batch norm uses the batch, as in the papers' plots) or 'eval'.
        seed: Seed for what is random in the network.
        input_info: What the batch is, for the record.
        label: Name for legends.

    Returns:
        The profile: the stem, then every block in order of execution.

    Raises:
        ValueError: Unknown ``mode``, or no block that can be measured.

    Source: Brock et al. 2021a, section 3: signal propagation plots.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> profile = analyze(NFResNet(26, base_channels=8), torch.randn(2, 3, 64, 64))
        >>> [block.kind for block in profile.blocks[:3]]
        ['stem', 'transition', 'residual']
    """
    if mode not in ('train', 'eval'):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    model = getattr(model, 'backbone', model)
    blocks = find_blocks(model)
    measured: list[tuple[str, str, tuple[int, ...], ChannelStatistics]] = []
    branches: dict[str, ChannelStatistics] = {}
    additions = _ResidualAdditions(branches)

    def watch(name: str, block: nn.Module) -> list:
        def enter(module: nn.Module, args: tuple) -> None:
            if not measured:
                stats = channel_statistics(args[0])
                measured.append(('stem', 'stem', tuple(args[0].shape), stats))
            additions.enter(name, args[0])

        def project(module: nn.Module, args: tuple, out: Tensor) -> None:
            additions.enter(name, out)

        def leave(module: nn.Module, args: tuple, out: Tensor) -> None:
            kind = 'residual' if block.downsample is None else 'transition'
            measured.append((name, kind, tuple(out.shape), channel_statistics(out)))

        handles = [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        if block.downsample is not None:
            handles.append(block.downsample.register_forward_hook(project))
        return handles

    with ExitStack() as stack:
        for name, block in blocks.items():
            for handle in watch(name, block):
                stack.callback(handle.remove)
        stack.enter_context(preserved(model, mode))
        if seed is not None:
            torch.manual_seed(seed)
        with torch.no_grad(), additions:
            model(inputs)

    # One transfer from the device for all numbers.
    numbers = torch.stack(
        [s.avg_sq_mean for *_, s in measured]
        + [s.avg_var for *_, s in measured]
        + [s.avg_var for s in branches.values()]
    ).tolist()
    count = len(measured)
    branch_vars = dict(zip(branches, numbers[2 * count :]))
    has_theory = getattr(next(iter(blocks.values())), 'expected_var', None) is not None
    return SignalProfile(
        [
            BlockSignal(
                index=index,
                name=name,
                kind=kind,
                shape=shape,
                avg_sq_mean=numbers[index],
                avg_var=numbers[count + index],
                res_avg_var=branch_vars.get(name),
                expected_var=getattr(blocks.get(name), 'expected_var', 1.0) if has_theory else None,
            )
            for index, (name, kind, shape, _) in enumerate(measured)
        ],
        mode=mode,
        input=dict(shape=list(inputs.shape), **(input_info or {})),
        seed=seed,
        label=label,
    )
