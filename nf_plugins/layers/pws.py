"""Parametric Weight Standardization (arXiv 2103.11590)."""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn

from nf_plugins.functional import ChannelStatistics, channel_statistics
from nf_plugins.functional.standardization import Standardization
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_number

from .standardized_conv import StandardizedConv2d


@MODELS.register_module('PWS')
class PWSConv2d(StandardizedConv2d, nn.Conv2d):
    r"""Convolution with Parametric Weight Standardization, ``conv_cfg=dict(type='PWS')``.

    .. math:: \hat W = \sqrt{2 / n}\, \alpha \frac{W - \mu}{\sqrt{\sigma^2 + \gamma}}

    Args:
        *args: As :class:`torch.nn.Conv2d`: ``in_channels``, ``out_channels``,
            ``kernel_size``, ``stride``, ``padding`` (``'same'`` with any stride), ...
        gamma: Number that is added to the variance of the weight.
        mode: 'fan_in' or 'fan_out': the :math:`n` of the formula.
        equiv: Multiply ``gamma`` by ``2 / n``, so that it is relative to the variance of a
            He-initialised weight.
        initalpha: On the first training batch set :math:`\alpha` to
            :math:`\sqrt{2 / \mathrm{Var}(\mathrm{output})}`; the variance is taken over the
            outputs of all ranks. The buffer ``alpha_initialized`` remembers this, so a resumed
            or fine-tuned model does not do it a second time.
        **kwargs: As :class:`torch.nn.Conv2d`.

    Shape:
        As :class:`torch.nn.Conv2d`. ``alpha`` is ``(out_channels, 1, 1, 1)``; do not apply
        weight decay to it.

    Raises:
        ValueError: Unknown ``mode``, negative ``gamma``, or a fan-in below 2.

    Source: arXiv 2103.11590 and the PWSConv repository.

    Example:
        >>> conv = PWSConv2d(3, 8, 3, padding=1, gamma=1e-3)
        >>> conv(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 7, 7])
    """

    keys_set_on_load = ('alpha_initialized',)
    """Keys that a state dict may lack. Weights without this flag count as trained."""

    alpha_initialized: Tensor

    def __init__(
        self,
        *args: Any,
        gamma: float = 1e-5,
        mode: str = 'fan_in',
        equiv: bool = False,
        initalpha: bool = False,
        **kwargs: Any,
    ) -> None:
        self.mode = check_choice('mode', mode, ('fan_in', 'fan_out'))
        gamma = check_number('gamma', gamma, 'at least 0')
        self.equiv = equiv
        self.initalpha = initalpha
        super().__init__(*args, **kwargs)
        self.gamma = gamma * 2 / self.fan if equiv else gamma
        self.alpha = nn.Parameter(torch.ones_like(self.weight[:, :1, :1, :1]))
        # This copy of the buffer avoids a synchronization with the device in each step.
        self._may_initialize = initalpha
        if initalpha:  # 0 or 1: averages of models and DDP take numbers, not bools
            self.register_buffer('alpha_initialized', torch.zeros((), device=self.weight.device))

    @property
    def fan(self) -> int:
        """The fan-in or the fan-out, depending on ``mode``."""
        if self.mode == 'fan_in':
            return self.fan_in
        return self.out_channels // self.groups * math.prod(self.kernel_size)

    def reset_parameters(self) -> None:
        """Set a Gaussian weight of variance ``2 / fan`` (He), a zero bias, and ``alpha`` 1."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.fan))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, 'alpha'):
            nn.init.ones_(self.alpha)
        if hasattr(self, 'alpha_initialized'):
            nn.init.zeros_(self.alpha_initialized)
            self._may_initialize = True

    def standardization(self) -> Standardization:
        return Standardization.parametric(self.fan, self.gamma)

    def filter_scale(self) -> Tensor:
        return self.alpha[:, 0, 0, 0]

    def forward(self, x: Tensor, skip_gain: Tensor | None = None) -> Tensor:
        if self._may_initialize and self.training and not self.deployed:
            self._initialize_alpha(x)
        return super().forward(x, skip_gain)

    @torch.no_grad()
    def _initialize_alpha(self, x: Tensor) -> None:
        out = super().forward(x)
        local = channel_statistics(out.reshape(1, -1), channel_dim=0)  # all outputs are one channel
        count = torch.full_like(local.mean, local.count)
        gathered = all_gather(torch.stack([count, local.mean, local.m2]))
        stats = reduce(operator.add, (ChannelStatistics(*rank) for rank in gathered))
        var = stats.m2 / (stats.count - 1)
        usable = torch.isfinite(var) & (var > 0)
        first = usable & (self.alpha_initialized == 0)
        self.alpha.copy_(torch.where(first, torch.sqrt(2 / var).to(self.alpha.dtype), self.alpha))
        self.alpha_initialized.copy_(usable.squeeze() | (self.alpha_initialized > 0))
        # If a batch has no variance (all zeros), the next batch sets alpha. A compiled graph
        # cannot read the buffer, so it computes this in each step until train() is called.
        if not torch.compiler.is_compiling():
            self._may_initialize = not self.alpha_initialized

    def train(self, mode: bool = True) -> PWSConv2d:
        if self._may_initialize and not (self.deployed or self.alpha_initialized.is_meta):
            self._may_initialize = not self.alpha_initialized
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # A state dict without the flag comes from another program; its weights are trained.
        if self.initalpha and prefix + 'alpha' in state_dict:
            name, trained = prefix + 'alpha_initialized', torch.ones_like(self.alpha_initialized)
            # In version 0.1.0 the flag is a bool, and with assign=True it would stay one.
            state_dict[name] = state_dict.get(name, trained).to(trained.dtype)
            self._may_initialize = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, gamma={self.gamma:g}, mode={self.mode}, '
            f'initalpha={self.initalpha}'
        )
