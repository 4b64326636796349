"""Base of all residual blocks, and operations that work in place when this is safe."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def may_overwrite(conv: nn.Module, *later: nn.Module | None) -> bool:
    """Return whether the next operation may overwrite the output of a convolution.

    It may if no hook has seen this tensor, and no compiler records the operations.

    Args:
        conv: The convolution.
        *later: Modules between the convolution and the operation. A module may return its input
            tensor itself, as drop-path does in evaluation mode.
    """
    if torch.compiler.is_compiling() or not isinstance(conv, nn.Conv2d):
        return False
    return not any(map(is_watched, (conv, *later)))


def is_watched(module: nn.Module | None) -> bool:
    """Return whether a hook sees the inputs, outputs or gradients of a module."""
    every = torch.nn.modules.module
    return module is not None and bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or every._global_forward_pre_hooks
        or every._global_forward_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )


def activate(act: nn.Module, x: Tensor, conv: nn.Module | None = None) -> Tensor:
    """Compute ``act(x)``; a ReLU overwrites ``x`` if :func:`may_overwrite` allows it.

    Args:
        act: The activation.
        x: Its input: the output of ``conv``, or a new tensor if ``conv`` is None.
        conv: The convolution.
    """
    unseen = not torch.compiler.is_compiling() if conv is None else may_overwrite(conv)
    # Not with a proxy of torch.fx: users of its graph may read any value in it.
    if unseen and type(act) is nn.ReLU and isinstance(x, Tensor) and not is_watched(act):
        return torch.relu_(x)
    if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        # This is an export. Quantizers would count all calls of one module as one operation.
        return act.forward(x)
    return act(x)


def add_shortcut(branch: Tensor, shortcut: Tensor, inplace: bool) -> Tensor:
    """Add the shortcut to the branch; ``inplace`` allows to overwrite the branch."""
    inplace = inplace and isinstance(branch, Tensor) and branch.dtype == shortcut.dtype
    return branch.add_(shortcut) if inplace else branch + shortcut


class ResidualBlock(BaseModule):
    """Residual block ``x -> shortcut(x) + drop_path(branch(x))``, up to constant factors.

    Subclasses define :meth:`inner_forward` and ``downsample``, the module on the shortcut (None
    for an identity). Signal propagation is measured at the branch end, before the constant
    factors.

    Args:
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
    """

    downsample: nn.Module | None

    def __init__(self, with_cp: bool = False, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp

    def inner_forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.with_cp and torch.is_grad_enabled() and isinstance(x, Tensor)
        if recompute and x.requires_grad:
            return checkpoint(self.inner_forward, x, use_reentrant=False)
        return self.inner_forward(x)
