"""Triton kernels of the weight standardization: one forward, one backward.

Each program holds whole rows (filters) in registers, so the weight is read once, and the
result is written in the dtype that the convolution computes in.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formula import Standardization

LONGEST_ROW = 32768
_ROW_BLOCK = 1024  # elements of a program of short rows


def supports(weight: Tensor) -> bool:
    """Whether the kernels take these filters: float32 or narrower, and not too long."""
    narrow = weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return narrow and weight.numel() <= LONGEST_ROW * len(weight)


@triton.jit
def _tile(num, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows of a program, which of them exist, and where their elements are."""
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
    # Equal weights are their mean, without a rounding error that would count as a variance.
    low = tl.min(tl.where(mask, w, float('inf')), 1)
    high = tl.max(tl.where(mask, w, float('-inf')), 1)
    mean = tl.where(low == high, low, tl.sum(w, 1) / size)
    w = tl.where(mask, w - mean[:, None], 0.0)
    # A common factor of the row, which cancels, keeps the squares (and eps over it) in range.
    unit = tl.maximum(tl.max(tl.abs(w), 1), tl.where(eps > 0, 1e-10, 1e-37))
    ratio = w / unit[:, None]
    v = var_factor * (tl.sum(ratio * ratio, 1) / size)
    floor = eps / unit / unit
    # How much the variance counts in the backward pass: not at all where it is clamped.
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
    """Fill ``out``, and return the mean, the factor and the slope of the variance per filter."""
    stats = weight.new_empty(3, len(weight), dtype=torch.float32)
    numbers = map(float, (constants.var_factor, constants.eps, constants.constant))
    _launch(_forward_kernel, weight, scale, out, stats, *numbers, CLAMP=constants.clamp)
    return stats


def recompute(weight: Tensor, scale: Tensor, out: Tensor, stats: Tensor, constant: float) -> None:
    """Fill ``out`` once more, from the ``stats`` that :func:`forward` has returned."""
    _launch(_recompute_kernel, weight, scale, out, stats, constant)


def backward(
    grad: Tensor, weight: Tensor, out: Tensor, scale: Tensor, stats: Tensor, constant: float
) -> Tensor:
    """Fill ``out``, which may be ``grad``, with the weight's gradient, and return the scale's."""
    grad_scale = torch.empty_like(scale)
    _launch(_backward_kernel, weight, grad, scale, stats, out, grad_scale, constant)
    return grad_scale
