"""A fast convolution with a standardized weight.

The standardization of weights is the only extra cost of a network without norms. So this code
reads, writes and keeps as little memory as possible.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import kernels_c
from .formula import Standardization, standardize


@cache
def _kernels_triton() -> ModuleType | None:
    """Import the kernels in Triton at their first use: it takes as long as the package."""
    try:
        return import_module('.kernels_triton', __package__)
    except ImportError:  # Triton comes with PyTorch for CUDA
        return None


def _kernels(x: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> ModuleType | None:
    """Return the module with the kernels for a weight, or None to use plain operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if type(weight) not in (torch.nn.Parameter, Tensor) or forward_ad._current_level >= 0:
        return None
    if _is_transformed():
        return None
    kernels: ModuleType | None = None
    if weight.is_cuda:
        kernels = _kernels_triton()
    elif weight.is_cpu and dtype == weight.dtype:
        kernels = kernels_c
    if kernels is None or not x.device == weight.device == scale.device:
        return None
    if x.dim() != 4 or not x.numel():
        return None
    return kernels if _is_dense(weight) and kernels.supports(weight) else None


def _is_transformed() -> bool:
    """Return whether a dispatch mode or ``torch.func`` intercepts operations on weights.

    A mode with an attribute ``ignores_weights`` that is true does not.
    """
    modes = _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else []
    if not all(getattr(mode, 'ignores_weights', False) for mode in modes):
        return True
    return torch._C._are_functorch_transforms_active()


def _is_dense(weight: Tensor) -> bool:
    """Return whether the filters lie one after the other in memory, without gaps."""
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def standardized_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    constants: Standardization,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    r"""Convolve with a standardized weight.

    The result is that of ``F.conv2d(x, standardize(weight, scale, constants), ...)``. One kernel
    (C on the CPU, Triton on CUDA) computes the standardized weight in the dtype of the
    convolution. The standardized weight is not kept for the backward pass, which computes it once
    more. Another kernel converts its gradient into the gradient of the weight, in place. So this
    convolution needs no more memory than an ordinary one. Tools that intercept PyTorch's
    operations (``torch.compile``, export, ``torch.func``, dispatch modes) get plain operations
    with the same result. A dispatch mode that need not see what happens to weights sets its
    attribute ``ignores_weights`` to True, and gets the kernels.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(out_channels, C / groups, kh, kw)``, before the standardization.
        scale: ``(out_channels,)``, see :func:`standardize`.
        constants: The constants of the standardization.
        bias: ``(out_channels,)``.
        stride: Stride of each axis.
        padding: Zeros on both sides of each axis.
        dilation: Dilation of each axis.
        groups: Groups of channels.

    Returns:
        The output of the convolution.

    Raises:
        ValueError: ``scale`` has another shape.

    Example:
        >>> x, weight, scale = torch.randn(1, 4, 5, 5), torch.randn(8, 4, 3, 3), torch.ones(8)
        >>> constants = Standardization(var_factor=36, eps=0.0)
        >>> out = standardized_conv2d(x, weight, scale, constants)
        >>> torch.allclose(out, F.conv2d(x, standardize(weight, scale, constants)), atol=1e-6)
        True
    """
    _check_scale(scale, weight)
    dtype = compute_dtype(weight)
    geometry = (stride, padding, dilation, groups)
    kernels = _kernels(x, weight, scale, dtype)
    if kernels is None:
        standardized = standardize(weight, scale, constants).to(weight.dtype)
        return F.conv2d(x, standardized, bias, *geometry)
    if dtype != weight.dtype:
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    scale = scale.to(weight.dtype).contiguous()
    return _StandardizedConv2d.apply(kernels, x, weight, scale, bias, constants, geometry)


@torch.no_grad()
def standardized_weight(weight: Tensor, scale: Tensor, constants: Standardization) -> Tensor:
    """Compute the standardized weight of :func:`standardized_conv2d`, without a graph.

    It is equal to that weight to the last bit.

    Args:
        weight: ``(out_channels, C / groups, kh, kw)``.
        scale: ``(out_channels,)``, see :func:`standardize`.
        constants: The constants of the standardization.

    Returns:
        The standardized weight, in the dtype of ``weight``.
    """
    _check_scale(scale, weight)
    kernels = _kernels(weight, weight, scale, weight.dtype)
    if kernels is None:
        return standardize(weight, scale, constants).to(weight.dtype)
    out = torch.empty_like(weight)
    kernels.forward(weight, scale.to(weight.dtype).contiguous(), out, constants)
    return out


def _check_scale(scale: Tensor, weight: Tensor) -> None:
    # With another shape the kernels would read outside the tensor. A traced shape is no number.
    if not torch.jit.is_tracing() and scale.shape != weight.shape[:1]:
        raise ValueError(
            f'scale needs the shape {tuple(weight.shape[:1])}, got {tuple(scale.shape)}'
        )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution with this weight is computed."""
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.amp.is_autocast_available(device):
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return weight.dtype


class _StandardizedConv2d(torch.autograd.Function):
    """Convolution that keeps three numbers per filter more than an ordinary one."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        constants: Standardization,
        geometry: tuple,
    ) -> Tensor:
        standardized = _room(x, weight)
        stats = kernels.forward(weight, scale, standardized, constants)
        ctx.save_for_backward(x, weight, scale, bias, stats)
        ctx.kernels, ctx.constants, ctx.geometry = kernels, constants, geometry
        return F.conv2d(x, standardized, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, scale, bias, stats = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:5]
        differentiable = torch.is_grad_enabled()  # create_graph: the result will be differentiated
        batched = torch._C._functorch.is_legacy_batchedtensor(grad)
        if differentiable or _is_transformed() or batched:
            wanted = [t for t, need in zip((x, weight, scale, bias), needs) if need]
            with torch.enable_grad():
                standardized = standardize(weight, scale, ctx.constants).to(x.dtype)
                out = F.conv2d(x, standardized, bias, *ctx.geometry)
                grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=differentiable))
            return None, *(next(grads) if need else None for need in needs), None, None

        constant = ctx.constants.constant
        standardized = _room(x, weight)
        if needs[0]:
            ctx.kernels.recompute(weight, scale, standardized, stats, constant)
        stride, padding, dilation, groups = ctx.geometry
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward.default(
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


class _Buffers(threading.local):
    """Memory for standardized weights: one buffer per thread and dtype."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}


_buffers = _Buffers()


def _room(x: Tensor, weight: Tensor) -> Tensor:
    """Return memory for the standardized weight, which only the next convolution reads.

    On the CPU it is one buffer per thread and dtype. New memory would cost more time than the
    standardization, because the system has to find and clear its pages.
    """
    if weight.is_cuda:
        return torch.empty_like(weight, dtype=x.dtype)
    watched = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    if type(x) is not Tensor or watched:
        return torch.empty_like(weight)  # Python code may see the weight and keep it
    buffers, dtype = _buffers.by_dtype, weight.dtype
    buffer = buffers.get(dtype)
    if buffer is None or buffer.numel() < weight.numel():
        buffer = buffers[dtype] = torch.empty(weight.numel(), dtype=dtype)
    return buffer.as_strided(weight.shape, weight.stride())
