"""What both weight standardizations share, with few passes over memory.

A network without norms pays for the standardization of its weights alone, so nothing is
read, written or kept here that need not be: a forward and a backward pass of our own, on
CUDA of one kernel each. What takes PyTorch's operations apart (``torch.compile``, export,
``torch.func``, dispatch modes) gets plain operations that do the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from . import triton_standardization as triton_kernels
except ImportError:  # Triton comes with PyTorch for CUDA
    triton_kernels = None

# What a filter is divided by at least: `eps` over its square has to be finite.
LEAST_UNIT = {True: 1e-10, False: 1e-37}


class Memory:
    """Memory for a result that is made anew in each step.

    On the CPU fresh memory costs more than the standardization does, because the system
    has to find and clear its pages. So that of the last time is written again, unless
    somebody refers to it still, as a graph does that waits for its backward pass.

    Example:
        >>> memory = Memory()
        >>> first = memory.take(torch.empty(3))
        >>> second = memory.take(torch.empty(3))
        >>> first.data_ptr() == second.data_ptr()
        False
        >>> address = second.data_ptr()
        >>> del second
        >>> memory.take(torch.empty(3)).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def take(self, like: Tensor) -> Tensor:
        """A tensor of the shape, strides, dtype and device of ``like``, with any content."""
        if self.kept is not None and _kind(self.kept) == _kind(like):
            alias = self.kept.detach()  # before the count, so that two threads see each other
            if _references(self.kept) <= 3:  # by `kept`, `alias`, and the counting itself
                return alias
        self.kept = torch.empty_like(like)
        return self.kept.detach()


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
    dtype: torch.dtype | None = None,
    memory: Memory | None = None,
) -> Tensor:
    r"""Standardize each filter and scale it.

    .. math::
        \hat W = s \frac{W - \mu}{\sqrt v}, \qquad v = n (\sigma^2 + \epsilon)
        \quad\text{or, with clamp,}\quad v = \max(n \sigma^2, \epsilon)

    Args:
        weight: ``(out_channels, ...)``, with the mean :math:`\mu` and the biased variance
            :math:`\sigma^2` of each filter over all but the first axis.
        scale: :math:`s`, ``(out_channels,)``.
        fan: :math:`n`.
        eps: :math:`\epsilon`.
        clamp: Which :math:`v`.
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
    if _can_fuse(weight):
        return _FusedStandardization.apply(weight, scale, fan, eps, clamp, dtype, memory)
    return plain_standardize(weight, scale, fan, eps, clamp).to(dtype)


def plain_standardize(
    weight: Tensor, scale: Tensor, fan: float, eps: float, clamp: bool = False
) -> Tensor:
    """:func:`standardize` by PyTorch's operations; the result has the arithmetic's dtype."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight, scale = weight.float(), scale.float()
    dims = tuple(range(1, weight.dim()))
    # A common factor of the filter, which cancels, keeps the squares in range.
    unit = weight.detach().abs().amax(dims, keepdim=True).clamp_min(LEAST_UNIT[eps > 0])
    weight = weight / unit
    var, mean = torch.var_mean(weight, dims, correction=0, keepdim=True)
    floor = eps / unit / unit
    v = torch.maximum(fan * var, floor) if clamp else fan * (var + floor)
    return (weight - mean) * (scale.view_as(mean) * torch.rsqrt(v))


def _rows(x: Tensor) -> Tensor | None:
    """``(out_channels, fan_in)`` on the memory of ``x``, in the order that it has there."""
    if x.is_contiguous():
        return x.view(len(x), -1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)
    return None


def _can_fuse(weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(weight) not in (Tensor, torch.nn.Parameter) or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if not weight.numel() or _rows(weight) is None:
        return False
    if weight.is_cuda:
        return triton_kernels is not None and triton_kernels.supports(_rows(weight))
    return weight.device.type == 'cpu' and weight.dtype in (torch.float32, torch.float64)


class _FusedStandardization(torch.autograd.Function):
    """Keeps for the backward pass the parameters and a few numbers for each filter."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor,
        fan: float,
        eps: float,
        clamp: bool,
        dtype: torch.dtype,
        memory: Memory | None,
    ) -> Tensor:
        if weight.is_cuda:
            out = torch.empty_like(weight, dtype=dtype)
            law = (fan, eps, clamp, LEAST_UNIT[eps > 0])
            stats = triton_kernels.forward(_rows(weight), scale, *law, _rows(out))
        else:
            out = torch.empty_like(weight) if memory is None else memory.take(weight.detach())
            stats = _cpu_forward(_rows(weight), scale, fan, eps, clamp, _rows(out))
            if not stats:
                out = plain_standardize(weight, scale, fan, eps, clamp)
        ctx.save_for_backward(weight, scale, *stats)
        ctx.law = fan, eps, clamp
        return out.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, scale, *stats = ctx.saved_tensors
        if torch.is_grad_enabled() or not stats:  # to be differentiated again, or irregular
            grads = _plain_backward(grad, weight, scale, ctx.law, ctx.needs_input_grad)
        else:
            backward = triton_kernels.backward if weight.is_cuda else _cpu_backward
            if grad.stride() != weight.stride():
                grad = torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
            rows, grad_scale = backward(_rows(grad), _rows(weight), scale, ctx.law[0], *stats)
            grads = rows.as_strided(weight.shape, weight.stride()), grad_scale
        return *grads, None, None, None, None, None


def _plain_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, law: tuple, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            weight, scale = (x.detach().requires_grad_() for x in (weight, scale))
        out = plain_standardize(weight, scale, *law).to(grad.dtype)
        wanted = [x for x, need in zip((weight, scale), needed) if need]
        grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=again))
    return [next(grads) if need else None for need in needed[:2]]


def _cpu_forward(
    rows: Tensor, scale: Tensor, fan: float, eps: float, clamp: bool, out: Tensor
) -> tuple[Tensor, ...]:
    """Fill ``out``; returns the mean and the factor of each row, or nothing if it cannot."""
    mean = rows.mean(dim=1, keepdim=True)
    torch.sub(rows, mean, out=out)
    v = torch.linalg.vector_norm(out, dim=1, keepdim=True).square_().mul_(fan / rows.shape[1])
    if not clamp:
        v += fan * eps
    least, most = v.aminmax()
    # Beyond it the cube of the factor, which the backward pass needs, leaves float32.
    if not (least >= (eps if clamp else 0) and least > 1e-20 and most < 1e20):
        return ()
    factor = v.rsqrt_()
    out.mul_(factor * scale.view(-1, 1))
    return mean, factor


def _cpu_backward(
    grad: Tensor, rows: Tensor, scale: Tensor, fan: float, mean: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the scale: those of a group norm with a group per row."""
    shape = (1, *rows.shape)
    num, size = rows.shape
    root = fan**0.5
    grad_rows, grad_scale, _ = torch.ops.aten.native_group_norm_backward(
        grad.to(rows.dtype).view(shape),
        rows.view(shape),
        mean.view(1, num),
        factor.view(1, num) * root,
        scale / root,
        1,
        num,
        size,
        num,
        [True, True, False],
    )
    return grad_rows, grad_scale / root
