"""Triton kernels of the weight standardization: forward, recompute and backward.

A row is a filter. Each program keeps whole rows in registers, so it reads the weight once. The
result is written in the dtype of the convolution.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formula import Standardization

LONGEST_ROW = 32768
_ROW_BLOCK = 1024  # elements of one program, if its rows are short


def supports(weight: Tensor) -> bool:
    """Return whether the kernels accept a weight: float32 or narrower, and not too long filters."""
    narrow = weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return narrow and weight.numel() <= LONGEST_ROW * len(weight)


@triton.jit
def _tile(num, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the rows of a program, which of them exist, and the offsets and mask of elements."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < num
    mask = inside[:, None] & (column < size)[None, :]
    offset = row.to(tl.int64)[:, None] * size + column[None, :]
    return row, inside, offset, mask


@triton.jit
def _forward_kernel(
    weight,
    scale,
    out,
    stats,
    var_factor,
    eps,
    constant,
    num,
    size,
    CLAMP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, inside, offset, mask = _tile(num, size, ROWS, COLUMNS)
    w = tl.load(weight + offset, mask, 0.0).to(tl.float32)
    # If all weights are equal, the mean is that weight. A rounding error would count as variance.
    low = tl.min(tl.where(mask, w, float('inf')), 1)
    high = tl.max(tl.where(mask, w, float('-inf')), 1)
    mean = tl.where(low == high, low, tl.sum(w, 1) / size)
    w = tl.where(mask, w - mean[:, None], 0.0)
    # Divide the row by its largest weight, so that the squares stay in range. This factor
    # cancels in the result; eps is divided by its square.
    unit = tl.maximum(tl.max(tl.abs(w), 1), tl.where(eps > 0, 1e-10, 1e-37))
    ratio = w / unit[:, None]
    v = var_factor * (tl.sum(ratio * ratio, 1) / size)
    floor = eps / unit / unit
    # The factor of the variance's gradient in the backward pass: 0 if the variance is clamped.
    slope = tl.zeros_like(v) + var_factor / size
    if CLAMP:
        slope = tl.where(v < floor, 0.0, slope)
        v = tl.maximum(v, floor)
    else:
        v += var_factor * floor
    factor = tl.where(v == 0.0, 0.0, 1.0 / (tl.sqrt(v) * unit))
    s = tl.load(scale + row, inside, 0.0).to(tl.float32) * constant
    result = w * (s * factor)[:, None]
    tl.store(out + offset, result.to(out.dtype.element_ty), mask)
    tl.store(stats + row, mean, inside)
    tl.store(stats + num + row, factor, inside)
    tl.store(stats + 2 * num + row, slope, inside)


@triton.jit
def _recompute_kernel(
    weight,
    scale,
    out,
    stats,
    constant,
    num,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, inside, offset, mask = _tile(num, size, ROWS, COLUMNS)
    mean = tl.load(stats + row, inside, 0.0)
    factor = tl.load(stats + num + row, inside, 0.0)
    s = tl.load(scale + row, inside, 0.0).to(tl.float32) * constant
    w = tl.load(weight + offset, mask, 0.0).to(tl.float32)
    result = (w - mean[:, None]) * (s * factor)[:, None]
    tl.store(out + offset, result.to(out.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(
    weight,
    grad,
    scale,
    stats,
    grad_weight,
    grad_scale,
    constant,
    num,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, inside, offset, mask = _tile(num, size, ROWS, COLUMNS)
    mean = tl.load(stats + row, inside, 0.0)
    factor = tl.load(stats + num + row, inside, 0.0)
    slope = tl.load(stats + 2 * num + row, inside, 0.0)
    s = tl.load(scale + row, inside, 0.0).to(tl.float32) * constant
    g = tl.load(grad + offset, mask, 0.0).to(tl.float32)
    w = tl.load(weight + offset, mask, 0.0).to(tl.float32)
    normal = tl.where(mask, (w - mean[:, None]) * factor[:, None], 0.0)
    along = tl.sum(g * normal, 1)  # the gradient of the scale
    g -= (tl.sum(g, 1) / size)[:, None]
    result = (s * factor)[:, None] * (g - normal * (along * slope)[:, None])
    tl.store(grad_weight + offset, result.to(grad_weight.dtype.element_ty), mask)
    tl.store(grad_scale + row, (along * constant).to(grad_scale.dtype.element_ty), inside)


def _launch(kernel, weight: Tensor, *args, **constants) -> None:
    num = len(weight)
    size = weight.numel() // num
    columns = triton.next_power_of_2(size)
    block = max(1, min(_ROW_BLOCK // columns, triton.next_power_of_2(num)))
    warps = min(32, max(4, block * columns // 1024))
    with torch.cuda.device(weight.device) if weight.is_cuda else nullcontext():
        kernel[(triton.cdiv(num, block),)](
            weight, *args, num, size, **constants, ROWS=block, COLUMNS=columns, num_warps=warps
        )


def forward(weight: Tensor, scale: Tensor, out: Tensor, constants: Standardization) -> Tensor:
    """Write the standardized weight into ``out``.

    Returns:
        The mean, the factor and the slope of the variance of each filter, ``(3, filters)``.
    """
    stats = weight.new_empty(3, len(weight), dtype=torch.float32)
    numbers = map(float, (constants.var_factor, constants.eps, constants.constant))
    _launch(_forward_kernel, weight, scale, out, stats, *numbers, CLAMP=constants.clamp)
    return stats


def recompute(weight: Tensor, scale: Tensor, out: Tensor, stats: Tensor, constant: float) -> None:
    """Write the standardized weight into ``out`` from the ``stats`` of :func:`forward`."""
    _launch(_recompute_kernel, weight, scale, out, stats, constant)


def backward(
    grad: Tensor, weight: Tensor, out: Tensor, scale: Tensor, stats: Tensor, constant: float
) -> Tensor:
    """Write the gradient of the weight into ``out``, and return the gradient of the scale.

    ``out`` may be ``grad``, the gradient of the standardized weight.
    """
    grad_scale = torch.empty_like(scale)
    _launch(_backward_kernel, weight, grad, scale, stats, out, grad_scale, constant)
    return grad_scale
