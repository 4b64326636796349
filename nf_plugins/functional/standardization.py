"""What both weight standardizations share: the formula, and a convolution that pays little for it.

A network without norms pays for the standardization of its weights alone, so nothing is
read, written or kept here that need not be.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu_standardization

try:
    from . import triton_standardization
except ImportError:  # Triton comes with PyTorch for CUDA
    triton_standardization = None


def standardize(
    weight: Tensor,
    scale: Tensor,
    fan: float,
    eps: float,
    clamp: bool = False,
    constant: float = 1.0,
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
        eps: :math:`\epsilon`. With 0 a filter whose weights are all equal has :math:`v = 0`:
            it becomes 0 and gets no gradient.
        clamp: Which :math:`v`.
        constant: :math:`c`.

    Returns:
        The standardized weight, in float32 or wider.

    Example:
        >>> w = standardize(torch.randn(8, 4, 3, 3), torch.ones(8), fan=36, eps=0.0)
        >>> torch.allclose(w.square().sum(dim=(1, 2, 3)), torch.ones(8))
        True
    """
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight, scale = weight.float(), scale.float()
    dims = tuple(range(1, weight.dim()))
    # A common factor of the filter, which cancels, keeps the squares (and eps over it) in range.
    least = 1e-10 if eps > 0 else 1e-37
    unit = weight.detach().abs().amax(dims, keepdim=True).clamp_min(least)
    weight = weight / unit
    var, mean = torch.var_mean(weight, dims, correction=0, keepdim=True)
    var = var.masked_fill(var == 0, 0)  # of equal weights the gradient is 0, not 0 * inf
    floor = eps / unit / unit
    v = torch.maximum(fan * var, floor) if clamp else fan * (var + floor)
    v = v.masked_fill(v == 0, torch.inf)  # without eps equal weights become 0
    # In this order: the ONNX exporter would fold constant * scale, and lose it for equal scales.
    return (weight - mean) * (constant * torch.rsqrt(v) * scale.view(-1, *(1 for _ in dims)))


class Workspace:
    """Memory of the CPU for a result that is soon forgotten.

    Fresh memory costs more than the standardization does, because the system has to find
    and clear its pages. This one is used again unless somebody, in another thread, still
    refers to it; and what is written again soon does not leave the processor's cache.

    Example:
        >>> workspace = Workspace()
        >>> first = workspace.take(torch.empty(3))
        >>> second = workspace.take(torch.empty(3))
        >>> first.data_ptr() == second.data_ptr()
        False
        >>> address = second.data_ptr()
        >>> del second
        >>> workspace.take(torch.empty(2)).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self.kept: dict[torch.dtype, Tensor] = {}

    def take(self, like: Tensor) -> Tensor:
        """A tensor of the shape, strides and dtype of ``like``, with any content."""
        kept = self.kept.get(like.dtype)
        if kept is not None and kept.numel() >= like.numel():
            taken = kept.as_strided(like.shape, like.stride())
            if _references(kept) <= 3:  # by `kept`, `taken` and `storage`; after `taken` is
                return taken  # there, so that two threads see each other
        kept = like.new_empty(like.numel())
        taken = kept.as_strided(like.shape, like.stride())
        self.kept[like.dtype] = kept  # not before `taken` is there
        return taken


def _references(x: Tensor) -> float:
    count = getattr(torch._C, '_storage_Use_Count', None)
    storage = x.untyped_storage()  # held: whether it counts afterwards depends on torch's version
    return count(storage._cdata) if count else float('inf')


_workspace = Workspace()


def _kernels(x: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> ModuleType | None:
    """The module with the kernels for a weight, here and now; None for plain operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if type(weight) not in (torch.nn.Parameter, Tensor) or forward_ad._current_level >= 0:
        return None
    if _is_transformed():
        return None
    if weight.is_cuda:
        kernels = triton_standardization
    else:
        kernels = cpu_standardization if weight.is_cpu and dtype == weight.dtype else None
    if kernels is None or not x.device == weight.device == scale.device:
        return None
    if x.dim() != 4 or not x.numel():
        return None
    return kernels if _is_dense(weight) and kernels.supports(weight) else None


def _is_transformed() -> bool:
    """Whether a dispatch mode or ``torch.func`` takes operations apart."""
    modes = torch._C._len_torch_dispatch_stack()
    return bool(modes) or torch._C._are_functorch_transforms_active()


def _is_dense(weight: Tensor) -> bool:
    """Whether each filter is one piece of memory after the other, in whatever order inside."""
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def standardized_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    **law: Any,
) -> Tensor:
    r"""A convolution with a standardized weight.

    The same as ``F.conv2d(x, standardize(weight, scale, **law), ...)``, but the standardized
    weight is made by one kernel (in C on the CPU, in Triton on CUDA) in the dtype that the
    convolution computes in, forgotten, and made again for the backward pass, in which one
    more kernel turns the gradient of the standardized weight into that of the weight, in
    place. So nothing is kept that an ordinary convolution would not keep. What takes
    PyTorch's operations apart (``torch.compile``, export, ``torch.func``, dispatch modes)
    gets plain ones that do the same.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(out_channels, C / groups, kh, kw)``, before it is standardized.
        scale: ``(out_channels,)``, of :func:`standardize`.
        bias: ``(out_channels,)``.
        stride: Stride of each axis.
        padding: Zeros on both sides of each axis.
        dilation: Dilation of each axis.
        groups: Groups of channels.
        **law: ``fan``, ``eps``, ``clamp`` and ``constant`` of :func:`standardize`.

    Returns:
        The output of the convolution.

    Example:
        >>> x, weight, scale = torch.randn(1, 4, 5, 5), torch.randn(8, 4, 3, 3), torch.ones(8)
        >>> out = standardized_conv2d(x, weight, scale, fan=36, eps=0.0)
        >>> torch.allclose(out, F.conv2d(x, standardize(weight, scale, 36, 0.0)), atol=1e-6)
        True
    """
    _check_scale(scale, weight)
    dtype = compute_dtype(weight)
    geometry = (stride, padding, dilation, groups)
    kernels = _kernels(x, weight, scale, dtype)
    if kernels is None:
        standardized = standardize(weight, scale, **law).to(weight.dtype)
        return F.conv2d(x, standardized, bias, *geometry)
    if dtype != weight.dtype:
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    scale, law = scale.to(weight.dtype).contiguous(), dict(clamp=False, constant=1.0) | law
    return _StandardizedConv2d.apply(kernels, x, weight, scale, bias, law, geometry)


@torch.no_grad()
def standardized_weight(weight: Tensor, scale: Tensor, **law: Any) -> Tensor:
    """The weight that :func:`standardized_conv2d` convolves with, to the bit, without a graph.

    Args:
        weight: ``(out_channels, C / groups, kh, kw)``.
        scale: ``(out_channels,)``, of :func:`standardize`.
        **law: ``fan``, ``eps``, ``clamp`` and ``constant`` of :func:`standardize`.

    Returns:
        The standardized weight, in the dtype of ``weight``.
    """
    _check_scale(scale, weight)
    kernels = _kernels(weight, weight, scale, weight.dtype)
    if kernels is None:
        return standardize(weight, scale, **law).to(weight.dtype)
    out = torch.empty_like(weight)
    scale, law = scale.to(weight.dtype).contiguous(), dict(clamp=False, constant=1.0) | law
    kernels.forward(weight, scale, out, **law)
    return out


def _check_scale(scale: Tensor, weight: Tensor) -> None:
    # The kernels would read memory that is not theirs. A traced shape is no number.
    if not torch.jit.is_tracing() and scale.shape != weight.shape[:1]:
        raise ValueError(
            f'scale needs the shape {tuple(weight.shape[:1])}, got {tuple(scale.shape)}'
        )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a convolution with this weight computes in."""
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.amp.is_autocast_available(device):
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return weight.dtype


class _StandardizedConv2d(torch.autograd.Function):
    """Keeps for the backward pass what a convolution keeps, and a few numbers per filter."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        law: dict[str, Any],
        geometry: tuple,
    ) -> Tensor:
        standardized = _empty(x, weight)
        stats = kernels.forward(weight, scale, standardized, **law)
        ctx.save_for_backward(x, weight, scale, bias, stats)
        ctx.kernels, ctx.law, ctx.geometry = kernels, law, geometry
        return F.conv2d(x, standardized, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, scale, bias, stats = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:5]
        again = torch.is_grad_enabled()  # the result will be differentiated
        if again or _is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad):
            wanted = [t for t, need in zip((x, weight, scale, bias), needs) if need]
            with torch.enable_grad():
                standardized = standardize(weight, scale, **ctx.law).to(x.dtype)
                out = F.conv2d(x, standardized, bias, *ctx.geometry)
                grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=again))
            return None, *(next(grads) if need else None for need in needs), None, None

        constant, standardized = ctx.law['constant'], _empty(x, weight)
        if needs[0]:
            ctx.kernels.again(weight, scale, standardized, stats, constant)
        stride, padding, dilation, groups = ctx.geometry
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            standardized,
            None if bias is None else bias.shape,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (needs[0], needs[1] or needs[2], needs[3]),
        )
        grad_scale = None
        if grad_weight is not None:
            if grad_weight.stride() != weight.stride():
                grad_weight = torch.empty_like(weight, dtype=x.dtype).copy_(grad_weight)
            same = grad_weight.dtype == weight.dtype
            out = grad_weight if same else torch.empty_like(weight)
            grad_scale = ctx.kernels.backward(grad_weight, weight, out, scale, stats, constant)
            grad_weight = out
        return None, grad_x, grad_weight, grad_scale, grad_bias, None, None


def _empty(x: Tensor, weight: Tensor) -> Tensor:
    """Room for the standardized weight, in the dtype of ``x``."""
    if weight.is_cuda:
        return torch.empty_like(weight, dtype=x.dtype)
    return _workspace.take(weight.detach())
