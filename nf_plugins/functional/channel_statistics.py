"""Statistics of each channel of a signal. They can be merged over batches and ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nf_plugins.utils.checks import check_type


@dataclass
class ChannelStatistics:
    r"""Count, mean and sum of squared deviations of each channel.

    The sum of two statistics is exact (Chan et al. 1979). So a signal can be measured
    batch by batch or rank by rank:

    .. math::
        \mu = \mu_a + \delta \tfrac{n_b}{n}, \quad
        M = M_a + M_b + \delta^2 \tfrac{n_a n_b}{n}, \quad
        \delta = \mu_b - \mu_a, \; n = n_a + n_b

    Args:
        count: Values per channel.
        mean: ``(C,)``, float32 or wider.
        m2: ``(C,)``, the sum of squared deviations from ``mean``.

    Example:
        >>> x = torch.randn(4, 3, 8, 8)
        >>> one = channel_statistics(x)
        >>> two = channel_statistics(x[:1]) + channel_statistics(x[1:])
        >>> torch.allclose(one.var, two.var)
        True
    """

    count: int
    mean: Tensor
    m2: Tensor

    @property
    def var(self) -> Tensor:
        """Biased variance of each channel, ``(C,)``."""
        return self.m2 / self.count

    @property
    def avg_sq_mean(self) -> Tensor:
        """Mean over the channels of the squared channel mean."""
        return self.mean.square().mean()

    @property
    def avg_var(self) -> Tensor:
        """Mean over the channels of the channel variance."""
        return self.var.mean()

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return ChannelStatistics(count, mean, m2)


def channel_statistics(x: Tensor, channel_dim: int = 1) -> ChannelStatistics:
    """Measure a signal over all its axes but the channels.

    Args:
        x: A signal, ``(N, C, H, W)`` unless ``channel_dim`` says otherwise.
        channel_dim: Axis of the channels.

    Returns:
        Its statistics, in float32 or wider, on the device of ``x``.

    Raises:
        ValueError: ``x`` has no values, or no such axis.

    Example:
        >>> stats = channel_statistics(torch.ones(2, 3, 4, 4))
        >>> stats.count, stats.avg_sq_mean.item(), stats.avg_var.item()
        (32, 1.0, 0.0)
    """
    if check_type('x', x, Tensor).numel() == 0:
        raise ValueError(f'a signal needs values, got one of shape {tuple(x.shape)}')
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    elif not x.is_floating_point():
        x = x.double()
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(
            f'channel_dim={channel_dim} is no axis of a signal of shape {tuple(x.shape)}'
        )
    given, dim = x, channel_dim % x.dim()
    count = x.numel() // x.shape[dim]
    others = [d for d in range(x.dim()) if d != dim]
    if x.device.type != 'cpu':
        var, mean = torch.var_mean(x, dim=others, correction=0)
        return ChannelStatistics(count, mean, var * count)
    # On a CPU `var_mean` takes ten times as long as plain sums.
    if x.numel() < 1 << 16:
        x = x.double()
        mean = x.mean(others, keepdim=True)
        return ChannelStatistics(count, mean.flatten(), (x - mean).square_().sum(others))
    if dim == x.dim() - 1 or (x.dim() == 4 and dim == 1 and x.stride(1) == 1):
        x, over = x.movedim(dim, -1).flatten(0, -2), 0  # (positions, C)
    else:
        x, over = (x.flatten(0, dim - 1) if dim else x[None]).flatten(2), 2  # (N, C, positions)
    mean, square = _mean_and_square(x, over, count)
    of_mean = mean.square().mul_(count)
    m2 = square - of_mean
    if not bool(((of_mean <= _LEVEL * m2) & (m2 < math.inf)).all()):
        if x.dtype == torch.float32 and not math.isfinite(square.sum().item()):
            return channel_statistics(given.double(), channel_dim)  # squares beyond float32
        # The mean is far from 0, so the difference above has lost digits. Subtract the mean of
        # the first values and compute once more.
        shift = x[: _ROWS if over == 0 else 1].mean(over, keepdim=True)
        mean, square = _mean_and_square(x, over, count, shift)
        m2 = (square - count * mean.square()).clamp_(min=0)
        mean = shift.flatten() + mean
    return ChannelStatistics(count, mean, m2)


def _mean_and_square(
    x: Tensor, over: int, count: int, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the mean and the sum of squares of each channel, or of its deviations from ``shift``.

    With ``over=0``, ``x`` is ``(positions, C)`` and its rows are summed. With ``over=2``, ``x`` is
    ``(N, C, positions)``, and first the positions and then the samples are summed.
    """
    # Where deviations or squares are written, a chunk has to fit into the cache. A norm along rows
    # writes nothing, but across rows it takes five times as long as squares and their sum.
    writes = shift is not None or over == 0
    chunk = _CHUNK >> 4 if writes else _CHUNK
    parts = x.split(min(max(1, chunk // x[0].numel()), _ROWS if over == 0 else len(x)))
    if over and x.shape[2] > _SUM:
        parts = [piece for part in parts for piece in part.split(_SUM, 2)]
    buffer = torch.empty(parts[0].numel() if writes else 0, dtype=x.dtype)
    sums, squares = [], []
    for part in parts:
        written = buffer[: part.numel()].view(part.shape) if writes else buffer
        if shift is not None:
            part = torch.sub(part, shift, out=written)
        sums.append(part.sum(over))
        if over:
            squares.append(torch.linalg.vector_norm(part, dim=over).square_())
        else:
            squares.append(torch.square(part, out=written).sum(over))
    return _total(sums, over).div_(count), _total(squares, over)


def _total(parts: list[Tensor], over: int) -> Tensor:
    """Add the sums of some parts, and with ``over=2`` those of their samples."""
    if over:  # (samples, C) each
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).sum(0)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)  # (C,) each


# Largest ratio of squared mean to variance for which the plain sums are exact enough.
_LEVEL = 8
_CHUNK = 1 << 23  # values
# The number of squares in one norm, along the rows and across them. float32 loses digits in
# longer sums.
_SUM, _ROWS = 1 << 15, 1 << 12
