"""Stems of the networks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from nf_plugins.functional import pad_same
from nf_plugins.utils.checks import check_choice

from .conv_builder import ConvBuilder


class StemShape(NamedTuple):
    """Layers of a stem.

    Args:
        convs: Kernel size, stride and output channels of each convolution. None instead of
            channels: the output channels of the stem.
        has_pool: Whether there is max-pooling after the convolutions.
    """

    convs: tuple[tuple[int, int, int | None], ...]
    has_pool: bool = False


STEMS = {
    'imagenet': StemShape(((7, 2, None),), has_pool=True),
    'cifar': StemShape(((3, 1, None),)),
    'regnet': StemShape(((3, 2, None),)),
    'nfnet': StemShape(((3, 2, 16), (3, 1, 32), (3, 1, 64), (3, 2, None))),
}
"""Name of a stem -> its layers."""


def scaled(x: Tensor, gain: float) -> Tensor:
    """Compute ``gain * x``, or return ``x`` if the gain is 1."""
    return x if gain == 1 else x * gain


class NFStem(nn.Module):
    """Convolutions, and max-pooling in some stems, before the first stage.

    Args:
        kind: A key of :data:`STEMS`.
        in_channels: Channels of the image.
        channels: Output channels.
        conv: Builder of the convolutions.
        act: Activation between the convolutions.
        gamma: Gain of the activation.
        first_gamma: Factor of the input of the first convolution, before which there is no
            activation; None takes the one of the builder's config.
        bias: Whether the convolutions have a bias; None takes the builder's ``bias``.
    """

    conv1: nn.Module

    def __init__(
        self,
        kind: str,
        in_channels: int,
        channels: int,
        conv: ConvBuilder,
        act: nn.Module | None = None,
        gamma: float = 1.0,
        first_gamma: float | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        layers, self.has_pool = STEMS[check_choice('stem', kind, STEMS)]
        if act is None and len(layers) > 1:
            raise ValueError(f'stem={kind!r} has several convolutions and needs an activation')
        self.same = conv.padding == 'same'
        self.act = act if len(layers) > 1 else None
        self.gamma = 1.0 if conv.folds_gamma else gamma
        self.num_convs = len(layers)
        for number, (kernel, stride, width) in enumerate(layers, start=1):
            factor = first_gamma if number == 1 else gamma
            sizes = (in_channels, width or channels, kernel, stride)
            layer = conv(*sizes, gamma=factor, bias=bias)
            self.add_module(f'conv{number}', layer)
            in_channels = width or channels

    def conv_factors(self) -> dict[nn.Module, tuple[float, float]]:
        """Return the factors of each convolution, see :func:`nf_plugins.fold`."""
        return {self.conv1: (1.0, 1.0), **dict.fromkeys(self.later_convs, (self.gamma, 1.0))}

    def drop_factors(self) -> None:
        """Stop applying the factors, see :func:`nf_plugins.fold`."""
        self.gamma = 1.0

    @property
    def later_convs(self) -> list[nn.Module]:
        """The convolutions after the first one."""
        return [getattr(self, f'conv{number}') for number in range(2, self.num_convs + 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for conv in self.later_convs:
            assert self.act is not None  # checked in __init__
            x = conv(scaled(self.act(x), self.gamma))
        return self.pool(x) if self.has_pool else x

    def pool(self, x: Tensor) -> Tensor:
        """Apply max-pooling of 3x3 windows with stride 2."""
        if not self.same:
            return F.max_pool2d(x, 3, 2, 1)
        odd = x.shape[2] % 2, x.shape[3] % 2
        if all(isinstance(number, int) for number in odd):  # even sizes: no padding at the start
            return F.max_pool2d(x, 3, 2, odd, ceil_mode=True)
        return F.max_pool2d(pad_same(x, (3, 3), (2, 2), value=-math.inf), 3, 2)
