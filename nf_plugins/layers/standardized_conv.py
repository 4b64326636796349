"""Convolutions whose weight is standardized before use."""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmengine.dist import all_gather
from torch import Tensor, nn

from nf_plugins.functional import (
    ChannelStatistics,
    channel_statistics,
    same_padding,
)
from nf_plugins.functional.standardization import compute_dtype, standardize, standardized_conv2d
from nf_plugins.functional.weight_standardization import EPS
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_integer, check_number, check_pair


class _Cached(NamedTuple):
    """A standardized weight, and what it was computed from.

    ``sources`` shares its storage with the parameters, so that their addresses
    cannot be given to other tensors while they stand in ``key``.
    """

    key: tuple
    weight: Tensor
    sources: tuple[Tensor, ...]


class StandardizedConv2d(nn.Conv2d):
    r"""A 2-D convolution with a standardized weight: the base of the layers here.

    A subclass says how its weight is standardized and with which parameters; this
    class adds TF-style SAME padding, a cache for evaluation and the fold into a
    plain convolution.

    In training, and wherever a gradient may be wanted, the weight is standardized
    in each forward pass. In evaluation it is standardized once, and again after
    any change of the parameters: loading, an optimizer step, ``copy_``, a move to
    another device. Only writes through ``.data``, and steps of a fused optimizer without a
    forward pass in training mode, go unseen until the next call of ``train()`` or
    ``eval()``; mmengine's EMA hook is followed by one.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        stride: Stride.
        padding: As in :class:`torch.nn.Conv2d`; ``'same'`` is allowed for any
            stride and means TF-style SAME padding.
        dilation: Dilation.
        groups: Groups of channels.
        bias: Add a learnable bias.
        padding_mode: As in :class:`torch.nn.Conv2d`.
        **kwargs: ``device`` and ``dtype``.

    Raises:
        TypeError, ValueError: A size that is no positive integer, or a fan-in below 2: a
            single weight is always its own mean.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        **kwargs: Any,
    ) -> None:
        check_integer('in_channels', in_channels)
        check_integer('out_channels', out_channels)
        check_integer('groups', groups)
        kernel_size = check_pair('kernel_size', kernel_size)
        stride, dilation = check_pair('stride', stride), check_pair('dilation', dilation)
        self._strided_same = padding == 'same' and max(stride) > 1
        if self._strided_same and padding_mode != 'zeros':
            raise ValueError(
                "a strided convolution with padding='same' takes padding_mode='zeros' only, "
                f'got {padding_mode!r}'
            )
        fan_in = in_channels // groups * math.prod(kernel_size)
        if fan_in < 2:
            raise ValueError(
                f'{type(self).__name__} needs a fan-in of 2, got in_channels={in_channels}, '
                f'groups={groups}, kernel_size={kernel_size}: fan-in {fan_in}'
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if self._strided_same else padding,
            dilation,
            groups,
            bias,
            padding_mode,
            **kwargs,
        )
        self._cached: _Cached | None = None

    @property
    def fan_in(self) -> int:
        """Inputs of one output: ``in_channels / groups * kh * kw``."""
        return self.weight.numel() // self.out_channels

    def standardize(self, factor: float = 1.0, skip_gain: Tensor | None = None) -> Tensor:
        """The standardized weight, computed from the parameters of this moment.

        Args:
            factor: A factor of the output, which joins those of the weight.
            skip_gain: Another one, a learnable scalar.
        """
        scale, law = self._scaled_law(factor, skip_gain)
        return standardize(self.weight, scale, **law).to(self.weight.dtype)

    def _scaled_law(self, factor: float, skip_gain: Tensor | None) -> tuple[Tensor, dict]:
        scale, law = self.law()
        law['constant'] *= factor
        return (scale if skip_gain is None else scale * skip_gain), law

    def law(self) -> tuple[Tensor, dict[str, Any]]:
        """``scale`` of :func:`standardize`, and ``fan``, ``eps``, ``clamp`` and ``constant``."""
        raise NotImplementedError

    def weight_sources(self, skip_gain: Tensor | None = None) -> tuple[Tensor, ...]:
        """The parameters that :meth:`standardize` reads."""
        # By attribute: pruning, parametrizations and replicas keep them elsewhere.
        own = (getattr(self, name, None) for name in ('weight', 'gain', 'alpha'))
        return tuple(p for p in (*own, skip_gain) if p is not None)

    @staticmethod
    def _is_recomputed(sources: tuple[Tensor, ...]) -> bool:
        """Whether the weight is standardized in each forward pass, of evaluation too."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        return torch.is_grad_enabled() and any(p.requires_grad for p in sources)

    def _evaluation_weight(
        self, sources: tuple[Tensor, ...], factor: float, skip_gain: Tensor | None
    ) -> Tensor:
        """The weight of evaluation: standardized once per change of its sources."""
        dtype = compute_dtype(self.weight)
        try:
            key = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in sources)
        except RuntimeError:  # no version or address: inference tensors, torch.func transforms
            return self.standardize(factor, skip_gain).to(dtype)
        key = (factor, dtype, *key)
        cached = self._cached
        if cached is None or cached.key != key:
            # A tensor made in inference mode could not be used outside it.
            with torch.inference_mode(False), torch.no_grad():
                weight = self.standardize(factor, skip_gain).to(dtype)
                cached = _Cached(key, weight, tuple(p.detach() for p in sources))
            self._cached = cached
        return cached.weight

    def forward(self, x: Tensor, factor: float = 1.0, skip_gain: Tensor | None = None) -> Tensor:
        """Convolve; the output is multiplied by ``factor * skip_gain``, but in the weight."""
        bias = self.bias
        if bias is not None and (factor != 1 or skip_gain is not None):
            bias = bias * factor if skip_gain is None else bias * (factor * skip_gain)
        if not self.training:
            sources = self.weight_sources(skip_gain)
            if not self._is_recomputed(sources):
                weight = self._evaluation_weight(sources, factor, skip_gain)
                return self._conv_forward(x, weight, bias)
        if not torch.compiler.is_compiling():
            # Fused optimizers do not count versions, but a gradient comes before a step.
            self._cached = None
        scale, law = self._scaled_law(factor, skip_gain)
        x, padding = self._pad(x)
        geometry = (self.stride, padding, self.dilation, self.groups)
        return standardized_conv2d(x, self.weight, scale, bias, *geometry, **law)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, padded where a convolution cannot, and what the convolution pads."""
        if self.padding_mode != 'zeros':
            return F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), (0, 0)
        if self.padding == 'valid':
            return x, (0, 0)
        if self.padding != 'same' and not self._strided_same:
            return x, self.padding
        pads = [
            same_padding(x.shape[axis - 2], self.kernel_size[axis], *step)
            for axis, step in enumerate(zip(self.stride, self.dilation))
        ]
        if any(before != after for before, after in pads):
            return F.pad(x, [*pads[1], *pads[0]]), (0, 0)
        return x, tuple(before for before, _ in pads)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._strided_same:
            return super()._conv_forward(x, weight, bias)
        x, padding = self._pad(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Become a plain convolution with the same outputs, in place.

        The object turns into an :class:`torch.nn.Conv2d` (with strided SAME
        padding, into mmcv's ``Conv2dAdaptivePadding``, a subclass) whose weight is
        the standardized one, so whoever holds it need not know.
        """
        weight = self.standardize()
        for name in [name for name, _ in self.named_parameters() if name not in ('weight', 'bias')]:
            delattr(self, name)
        self._buffers.clear()
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        plain = Conv2dAdaptivePadding if self._strided_same else nn.Conv2d
        kept = vars(nn.Conv2d(1, 1, 1)).keys()
        for name in vars(self).keys() - kept:
            delattr(self, name)
        self.__class__ = plain

    def clear_cache(self) -> None:
        """Forget the standardized weight of evaluation."""
        self._cached = None

    def train(self, mode: bool = True) -> StandardizedConv2d:
        self.clear_cache()
        return super().train(mode)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> StandardizedConv2d:
        self.clear_cache()
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_cached': None}

    def extra_repr(self) -> str:
        padding = ', padding=same' if self._strided_same else ''
        return super().extra_repr() + padding


@MODELS.register_module('ScaledWS')
class ScaledWSConv2d(StandardizedConv2d, nn.Conv2d):  # init_cfg(layer='Conv2d') asks for a base
    r"""Convolution with Scaled Weight Standardization, ``conv_cfg=dict(type='ScaledWS')``.

    .. math:: \hat W = g \gamma \frac{W - \mu}{\sqrt{\max(N \sigma^2, \epsilon)}}

    See :func:`~nf_plugins.functional.scaled_standardize_weight` for the symbols.
    With a unit Gaussian input and ``gain`` 1 each output has variance
    :math:`\gamma^2` over the draw of the input.

    Args:
        *args: As :class:`torch.nn.Conv2d`: ``in_channels``, ``out_channels``,
            ``kernel_size``, ``stride``, ``padding`` (``'same'`` with any stride), ...
        gamma: Gain of the activation in front, a constant.
        eps: Floor of the variance; None takes the default of the mode.
        eps_mode: 'clamp' (DeepMind, 1e-4) or 'add' (timm, 1e-5).
        gain_init: Start of the learnable gain of each filter, a parameter of shape
            ``(out_channels,)``; None leaves it out.
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
        if gain_init is None:
            self.register_parameter('gain', None)
        else:
            self.gain = nn.Parameter(torch.full_like(self.weight[:, 0, 0, 0], self.gain_init))

    def reset_parameters(self) -> None:
        """Gaussian weights of variance ``1 / fan_in`` (standardization hides the scale)."""
        nn.init.normal_(self.weight, std=self.fan_in**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, 'gain') and self.gain is not None:
            nn.init.constant_(self.gain, self.gain_init)

    def law(self) -> tuple[Tensor, dict[str, Any]]:
        scale = self.weight.new_ones(self.out_channels) if self.gain is None else self.gain
        clamp = self.eps_mode == 'clamp'
        return scale, dict(fan=self.fan_in, eps=self.eps, clamp=clamp, constant=self.gamma)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, gamma={self.gamma:.4g}, {self.eps_mode} eps={self.eps:g}'


@MODELS.register_module('PWS')
class PWSConv2d(StandardizedConv2d, nn.Conv2d):
    r"""Convolution with Parametric Weight Standardization, ``conv_cfg=dict(type='PWS')``.

    .. math:: \hat W = \sqrt{2 / n}\, \alpha \frac{W - \mu}{\sqrt{\sigma^2 + \gamma}}

    Args:
        *args: As :class:`torch.nn.Conv2d`: ``in_channels``, ``out_channels``,
            ``kernel_size``, ``stride``, ``padding`` (``'same'`` with any stride), ...
        gamma: Added to the variance of the weight.
        mode: 'fan_in' or 'fan_out': the :math:`n` of the formula.
        equiv: Scale ``gamma`` by ``2 / n``, so that it is relative to the variance
            of a He-initialised weight.
        initalpha: On the first training batch set :math:`\alpha` to
            :math:`\sqrt{2 / \mathrm{Var}(\mathrm{output})}`, over the outputs of all
            ranks. The buffer ``alpha_initialized`` keeps a resumed or fine-tuned
            model from doing so again.
        **kwargs: As :class:`torch.nn.Conv2d`.

    Shape:
        As :class:`torch.nn.Conv2d`. ``alpha``: ``(out_channels, 1, 1, 1)``; it wants
        no weight decay.

    Raises:
        ValueError: Unknown ``mode``, negative ``gamma``, or a fan-in below 2.

    Source: arXiv 2103.11590 and the PWSConv repository.

    Example:
        >>> conv = PWSConv2d(3, 8, 3, padding=1, gamma=1e-3)
        >>> conv(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 7, 7])
    """

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
        # The buffer persists; this flag spares a look at it (a device sync) per step.
        self._may_initialize = initalpha
        if initalpha:
            self.register_buffer(
                'alpha_initialized', torch.zeros((), dtype=torch.bool, device=self.weight.device)
            )

    @property
    def fan(self) -> int:
        """The fan-in or the fan-out, as ``mode`` says."""
        if self.mode == 'fan_in':
            return self.fan_in
        return self.out_channels // self.groups * math.prod(self.kernel_size)

    def reset_parameters(self) -> None:
        """He initialisation (Gaussian, variance ``2 / fan``), zero bias, unit ``alpha``."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.fan))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, 'alpha'):
            nn.init.ones_(self.alpha)

    def law(self) -> tuple[Tensor, dict[str, Any]]:
        law = dict(fan=self.fan / 2, eps=self.gamma, clamp=False, constant=1.0)
        return self.alpha.flatten(), law

    def forward(self, x: Tensor, factor: float = 1.0, skip_gain: Tensor | None = None) -> Tensor:
        if self._may_initialize and self.training:
            self._initialize_alpha(x)
        return super().forward(x, factor, skip_gain)

    @torch.no_grad()
    def _initialize_alpha(self, x: Tensor) -> None:
        out = super().forward(x)
        local = channel_statistics(out.reshape(1, -1), channel_dim=0)  # all outputs as one channel
        count = torch.full_like(local.mean, local.count)
        gathered = all_gather(torch.stack([count, local.mean, local.m2]))
        stats = reduce(operator.add, (ChannelStatistics(*rank) for rank in gathered))
        var = stats.m2 / (stats.count - 1)
        usable = torch.isfinite(var) & (var > 0)
        first = usable & ~self.alpha_initialized
        self.alpha.copy_(torch.where(first, torch.sqrt(2 / var).to(self.alpha.dtype), self.alpha))
        self.alpha_initialized.logical_or_(usable.squeeze())
        # A batch without variance (all zeros) leaves it to the next one.
        self._may_initialize = not (torch.compiler.is_compiling() or self.alpha_initialized)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Weights from elsewhere (no flag among them) are trained already.
        if self.initalpha and prefix + 'alpha' in state_dict:
            state_dict.setdefault(
                prefix + 'alpha_initialized', torch.ones_like(self.alpha_initialized)
            )
            self._may_initialize = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, gamma={self.gamma:g}, mode={self.mode}, '
            f'initalpha={self.initalpha}'
        )
