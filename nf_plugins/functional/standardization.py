"""What both weight standardizations share, with few passes over memory.

A network without norms pays for the standardization of its weights alone, so nothing is
read, written or kept here that need not be: the forward and the backward pass are one kernel
each, in C on the CPU, in Triton on CUDA. What takes PyTorch's operations apart
(``torch.compile``, export, ``torch.func``, dispatch modes) gets plain ones that do the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu_standardization

try:
    from . import triton_standardization
except ImportError:  # Triton comes with PyTorch for CUDA
    triton_standardization = None


class Memory:
    """Memory for results that are made anew in each step.

    On the CPU fresh memory costs more than the standardization does, because the system
    has to find and clear its pages. So that of the last time is written again, unless
    somebody refers to it still, as a graph does that waits for its backward pass.

    Example:
        >>> memory = Memory()
        >>> first = memory.take('weight', torch.empty(3))
        >>> second = memory.take('weight', torch.empty(3))
        >>> first.data_ptr() == second.data_ptr()
        False
        >>> address = second.data_ptr()
        >>> del second
        >>> memory.take('weight', torch.empty(3)).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """A tensor of the shape, strides, dtype and device of ``like``, with any content."""
        kept = self.kept.get(name)
        if kept is not None and _kind(kept) == _kind(like):
            alias = kept.detach()  # before the count, so that two threads see each other
            if _references(kept) <= 3:  # by `kept`, `alias`, and the counting itself
                return alias
        kept = self.kept[name] = torch.empty_like(like)
        return kept.detach()


def _kind(x: Tensor) -> tuple:
    return x.shape, x.stride(), x.dtype, x.device


def _references(x: Tensor) -> float:
    count = getattr(torch._C, '_storage_Use_Count', None)
    return count(x.untyped_storage()._cdata) if count else float('inf')


def standardize(
    weight: Tensor,
    scale: Tensor,
    fan: float,
    eps: float,
    clamp: bool = False,
    constant: float = 1.0,
    dtype: torch.dtype | None = None,
    memory: Memory | None = None,
) -> Tensor:
    r"""Standardize each filter and scale it.

    .. math::
        \hat W = c s \frac{W - \mu}{\sqrt v}, \qquad v = n (\sigma^2 + \epsilon)
        \quad\text{or, with clamp,}\quad v = \max(n \sigma^2, \epsilon)

    Args:
        weight: ``(out_channels, ...)``, with the mean :math:`\mu` and the biased variance
            :math:`\sigma^2` of each filter over all but the first axis.
        scale: :math:`s`, ``(out_channels,)``.
        fan: :math:`n`.
        eps: :math:`\epsilon`.
        clamp: Which :math:`v`.
        constant: :math:`c`.
        dtype: Of the result; None for that of ``weight``. The arithmetic is done in
            float32 or wider.
        memory: Where to put the result, on the CPU.

    Returns:
        The standardized weight.

    Example:
        >>> w = standardize(torch.randn(8, 4, 3, 3), torch.ones(8), fan=36, eps=0.0)
        >>> torch.allclose(w.square().sum(dim=(1, 2, 3)), torch.ones(8))
        True
    """
    dtype = dtype or weight.dtype
    kernels = _kernels(weight)
    if kernels is not None:
        return _FusedStandardization.apply(
            kernels, weight, scale, (float(fan), float(eps), clamp, float(constant)), dtype, memory
        )
    return plain_standardize(weight, scale, fan, eps, clamp, constant).to(dtype)


def plain_standardize(
    weight: Tensor,
    scale: Tensor,
    fan: float,
    eps: float,
    clamp: bool = False,
    constant: float = 1.0,
) -> Tensor:
    """:func:`standardize` by PyTorch's operations; the result has the arithmetic's dtype."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight, scale = weight.float(), scale.float()
    dims = tuple(range(1, weight.dim()))
    # A common factor of the filter, which cancels, keeps the squares (and eps over it) in range.
    least = 1e-10 if eps > 0 else 1e-37
    unit = weight.detach().abs().amax(dims, keepdim=True).clamp_min(least)
    weight = weight / unit
    var, mean = torch.var_mean(weight, dims, correction=0, keepdim=True)
    floor = eps / unit / unit
    v = torch.maximum(fan * var, floor) if clamp else fan * (var + floor)
    return (weight - mean) * (constant * scale.view_as(mean) * torch.rsqrt(v))


def _rows(x: Tensor) -> Tensor | None:
    """``(out_channels, fan_in)`` on the memory of ``x``, in the order that it has there."""
    if x.is_contiguous():
        return x.view(len(x), -1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)
    return None


def _kernels(weight: Tensor) -> ModuleType | None:
    """The module with the kernels for a weight, here and now; None for plain operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if type(weight) not in (Tensor, torch.nn.Parameter) or forward_ad._current_level >= 0:
        return None
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return None
    kernels = {'cpu': cpu_standardization, 'cuda': triton_standardization}.get(weight.device.type)
    rows = _rows(weight)
    if kernels is None or rows is None or not weight.numel() or not kernels.supports(rows):
        return None
    return kernels


class _FusedStandardization(torch.autograd.Function):
    """Keeps for the backward pass the parameters and a few numbers for each filter."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        weight: Tensor,
        scale: Tensor,
        law: tuple[float, float, bool, float],
        dtype: torch.dtype,
        memory: Memory | None,
    ) -> Tensor:
        if weight.is_cuda:
            out, memory = torch.empty_like(weight, dtype=dtype), None
        else:
            out = _result('weight', weight, memory)
        stats = kernels.forward(_rows(weight), scale, _rows(out), *law)
        ctx.save_for_backward(weight, scale, stats)
        ctx.kernels, ctx.law, ctx.memory = kernels, law, memory
        return out.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, scale, stats = ctx.saved_tensors
        if torch.is_grad_enabled():  # the result will be differentiated
            grads = _plain_grads(grad, weight, scale, ctx.law, ctx.needs_input_grad[1:3])
        else:
            if grad.stride() != weight.stride():
                grad = torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
            out = _result('gradient', weight, ctx.memory)
            rows = (_rows(x) for x in (grad, weight, out))
            grads = out, ctx.kernels.backward(*rows, scale, stats, ctx.law[-1])
        return None, *grads, None, None, None


def _result(name: str, weight: Tensor, memory: Memory | None) -> Tensor:
    return torch.empty_like(weight) if memory is None else memory.take(name, weight.detach())


def _plain_grads(
    grad: Tensor, weight: Tensor, scale: Tensor, law: tuple, needed: tuple[bool, bool]
) -> list[Tensor | None]:
    out = plain_standardize(weight, scale, *law).to(grad.dtype)
    wanted = [x for x, need in zip((weight, scale), needed) if need]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(grads) if need else None for need in needed]
