"""Efficient channel attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nf_plugins.utils.checks import check_integer, check_number

from .squeeze_excite import channel_means


class ECA(nn.Module):
    r"""Gate each channel by a convolution over the channel means of its neighbours.

    .. math:: y = 2\, \sigma(w * \bar x)\, x, \qquad
              k = |\tfrac{1}{2} (\log_2 C + 1)|_\mathrm{odd}

    Args:
        channels: Channels :math:`C` of the input and output.
        factor: The factor before the gate, see :class:`SqueezeExcite`.

    Source: Wang et al. 2020, "ECA-Net"; the factor: timm's ``nfnet.py``.

    Example:
        >>> ECA(256)(torch.randn(2, 256, 4, 4)).shape
        torch.Size([2, 256, 4, 4])
    """

    def __init__(self, channels: int, factor: float = 2.0) -> None:
        super().__init__()
        check_integer('channels', channels)
        self.factor = check_number('factor', factor)
        kernel_size = max(int((math.log2(channels) + 1) / 2) | 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors of the channels, ``(N, C, 1, 1)``."""
        gate = torch.sigmoid(self.conv(channel_means(x)[:, None]))[:, 0]
        return (self.factor * gate)[:, :, None, None]

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Multiply the channels by the gate, and the gate by a scalar ``scale`` if it is given."""
        gate = self.gate(x)
        return x * (gate if scale is None else gate * scale)
