"""Scaled Weight Standardization (Brock et al. 2021a)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.functional.standardization import EPS, Standardization
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_number

from .standardized_conv import StandardizedConv2d


@MODELS.register_module('ScaledWS')
class ScaledWSConv2d(StandardizedConv2d, nn.Conv2d):  # init_cfg(layer='Conv2d') looks at bases
    r"""Convolution with Scaled Weight Standardization, ``conv_cfg=dict(type='ScaledWS')``.

    .. math:: \hat W = g \gamma \frac{W - \mu}{\sqrt{\max(N \sigma^2, \epsilon)}}

    See :func:`~nf_plugins.functional.scaled_standardize_weight` for the symbols.
    For a unit Gaussian input and ``gain`` 1, each output has the variance :math:`\gamma^2`.

    Args:
        *args: As :class:`torch.nn.Conv2d`: ``in_channels``, ``out_channels``,
            ``kernel_size``, ``stride``, ``padding`` (``'same'`` with any stride), ...
        gamma: Gain of the activation before the convolution, a constant.
        eps: :math:`\epsilon`; None takes the default of ``eps_mode``.
        eps_mode: 'clamp' (DeepMind, default 1e-4) or 'add' (timm, default 1e-5).
        gain_init: Initial value of ``gain``, the learnable factor of each filter, with the
            shape ``(out_channels,)``. None: there is no such parameter.
        **kwargs: As :class:`torch.nn.Conv2d`.

    Shape:
        As :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: Unknown ``eps_mode``, negative ``eps``, or a fan-in below 2.

    Source: Brock et al. 2021a, section 4.2; DeepMind's ``nfnets/base.py``.

    Example:
        >>> conv = ScaledWSConv2d(3, 8, 3, stride=2, padding='same')
        >>> conv(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 4, 4])
    """

    gain: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        gamma: float = 1.0,
        eps: float | None = None,
        eps_mode: str = 'clamp',
        gain_init: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        self.eps_mode = check_choice('eps_mode', eps_mode, EPS)
        self.eps = EPS[eps_mode] if eps is None else check_number('eps', eps, 'at least 0')
        self.gamma = check_number('gamma', gamma)
        self.gain_init = None if gain_init is None else check_number('gain_init', gain_init)
        super().__init__(*args, **kwargs)
        if self.gain_init is None:
            self.register_parameter('gain', None)
        else:
            self.gain = nn.Parameter(torch.full_like(self.weight[:, 0, 0, 0], self.gain_init))

    def reset_parameters(self) -> None:
        """Set Gaussian weights of variance ``1 / fan_in``; standardization removes the scale."""
        nn.init.normal_(self.weight, std=self.fan_in**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, 'gain') and self.gain is not None and self.gain_init is not None:
            nn.init.constant_(self.gain, self.gain_init)

    def standardization(self) -> Standardization:
        return Standardization.scaled(self.fan_in, self.eps, self.eps_mode, self.gamma)

    def filter_scale(self) -> Tensor:
        return self.weight.new_ones(self.out_channels) if self.gain is None else self.gain

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, gamma={self.gamma:.4g}, {self.eps_mode} eps={self.eps:g}'
