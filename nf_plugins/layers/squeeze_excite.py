"""Squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nf_plugins.utils.checks import check_integer, check_number

from .start import start, truncated_normal


def channel_means(x: Tensor) -> Tensor:
    """Compute the means over the positions, ``(N, C)``.

    In the backward pass the division by the number of positions happens before the gradient is
    expanded to the size of ``x``. ``x.mean()`` divides after that, which is slower.
    """
    if not isinstance(x, Tensor):  # a proxy of torch.fx; its dtype is not known
        return x.mean(dim=(2, 3))
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    total = x.sum(dim=(2, 3), dtype=torch.float32 if narrow else None)
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype)


class SqueezeExcite(nn.Module):
    r"""Gate each channel by a small network on the channel means.

    .. math:: y = 2\, \sigma(W_1\, \mathrm{relu}(W_0 \bar x + b_0) + b_1)\, x

    The factor 2 keeps the variance of the signal, because the gate is about 1/2 at
    initialisation.

    Args:
        channels: Channels of the input and output.
        hidden_channels: Channels between the two layers.
        factor: The factor before the gate.

    Source: DeepMind's ``nfnets/base.py``. The factor is in the blocks of its networks.

    Example:
        >>> SqueezeExcite(8, 4)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, hidden_channels: int, factor: float = 2.0) -> None:
        super().__init__()
        check_integer('channels', channels)
        check_integer('hidden_channels', hidden_channels)
        self.factor = check_number('factor', factor)
        self.fc0 = nn.Linear(channels, hidden_channels)
        self.fc1 = nn.Linear(hidden_channels, channels)
        for fc in (self.fc0, self.fc1):
            start(fc, truncated_normal, std=fc.in_features**-0.5)

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors of the channels, ``(N, C, 1, 1)``."""
        gate = torch.sigmoid(self.fc1(torch.relu(self.fc0(channel_means(x)))))
        return (self.factor * gate)[:, :, None, None]

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Multiply the channels by the gate, and the gate by a scalar ``scale`` if it is given."""
        gate = self.gate(x)
        return x * (gate if scale is None else gate * scale)
