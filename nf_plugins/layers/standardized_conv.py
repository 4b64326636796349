"""Convolutions whose weight is standardized before use.

What other tools find in such a layer. ``weight`` is the parameter before its standardization:
under this name it is saved, loaded, initialised and optimized, in place, as that of any
convolution. So a tool that computes a new weight from ``conv.weight`` (the fusion of a batch
norm, an adapter that is merged) would compute from one that is not applied, and what it writes
would be standardized once more. The layers cannot see who reads a parameter. They do see the
steps that follow, and refuse them with an error that names :func:`nf_plugins.fold`: a new
parameter in the place of ``weight``, a call of ``_conv_forward`` with a weight of the caller's,
an adapter that is put around the layer.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, TypeGuard

import torch
import torch.fx
import torch.nn.functional as F
from mmengine.dist import all_gather
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils import parametrize

from nf_plugins.functional import (
    ChannelStatistics,
    channel_statistics,
    pad_same,
    same_padding,
)
from nf_plugins.functional.standardization import (
    EPS,
    Standardization,
    standardize,
    standardized_conv2d,
    standardized_weight,
)
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_integer, check_number, check_pair

Pair = tuple[int, int]
"""The type of a size on both axes; PyTorch's types say ``tuple[int, ...]``."""


class StandardizedConv2d(nn.Conv2d):
    r"""A 2-D convolution with a standardized weight: the base of the layers here.

    A subclass defines how its weight is standardized and with which parameters. This
    class adds TF-style SAME padding and the fold into a plain convolution. The weight is
    standardized in each forward pass, also in evaluation mode, so it is right after any
    change of the parameters. After :func:`nf_plugins.fold` inference does without it.

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

    Attributes:
        deployed: Whether :meth:`switch_to_deploy` was called: ``weight`` is applied as it is.

    Raises:
        TypeError, ValueError: A size that is no positive integer, or a fan-in below 2: a
            single weight is always its own mean.
        TypeError: A new parameter in the place of ``weight``, or a call of
            ``_conv_forward``: see the module's docstring.
    """

    deployed = False
    kernel_size: Pair
    stride: Pair
    padding: str | Pair
    dilation: Pair

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal['zeros', 'reflect', 'replicate', 'circular'] = 'zeros',
        **kwargs: Any,
    ) -> None:
        check_integer('in_channels', in_channels)
        check_integer('out_channels', out_channels)
        check_integer('groups', groups)
        kernel_size = check_pair('kernel_size', kernel_size)
        stride, dilation = check_pair('stride', stride), check_pair('dilation', dilation)
        strided_same = padding == 'same' and max(stride) > 1
        if strided_same and padding_mode != 'zeros':
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
            0 if strided_same else padding,
            dilation,
            groups,
            bias,
            padding_mode,
            **kwargs,
        )
        if strided_same:  # which torch refuses
            self.padding = 'same'

    @property
    def fan_in(self) -> int:
        """Inputs of one output: ``in_channels / groups * kh * kw``."""
        return self.weight.numel() // self.out_channels

    @property
    def _strided_same(self) -> bool:
        return self.padding == 'same' and max(self.stride) > 1

    def standardize(self, factor: float = 1.0, skip_gain: Tensor | None = None) -> Tensor:
        """The weight that is applied, computed from the parameters of this moment.

        Args:
            factor: A factor of the output, which joins those of the weight.
            skip_gain: Another one, a scalar tensor.
        """
        if self.deployed:
            weight = self.weight * factor
            return weight if skip_gain is None else weight * skip_gain
        scale, constants = self.filter_scale(), self.standardization()
        constants = replace(constants, constant=constants.constant * factor)
        scale = scale if skip_gain is None else scale * skip_gain
        if not torch.is_grad_enabled():
            return standardized_weight(self.weight, scale, constants)
        return standardize(self.weight, scale, constants).to(self.weight.dtype)

    def standardization(self) -> Standardization:
        """The constants of the standardization."""
        raise NotImplementedError

    def filter_scale(self) -> Tensor:
        """The learnable scale of each filter, ``(out_channels,)``."""
        raise NotImplementedError

    def forward(self, x: Tensor, skip_gain: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: The input.
            skip_gain: A scalar factor of the output; the weight and the bias are multiplied by it.
        """
        bias = self.bias
        if skip_gain is not None and bias is not None:
            bias = bias * skip_gain
        if self.deployed:
            weight = self.weight if skip_gain is None else self.weight * skip_gain
            return self._conv_forward(x, weight, bias)
        if isinstance(x, torch.fx.Proxy):
            raise TypeError(self._advice('cannot be traced symbolically'))
        if x.is_quantized:
            raise TypeError(self._advice('cannot convolve a quantized tensor'))
        scale = self.filter_scale()
        if skip_gain is not None:
            scale = scale * skip_gain
        x, padding = self._pad(x)
        geometry = (self.stride, padding, self.dilation, self.groups)
        return standardized_conv2d(x, self.weight, scale, self.standardization(), bias, *geometry)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, padded where a convolution cannot, and what the convolution pads."""
        if self.padding_mode != 'zeros':
            return F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), (0, 0)
        if self.padding == 'valid':
            return x, (0, 0)
        if not isinstance(self.padding, str):
            return x, self.padding
        if isinstance(x, torch.fx.Proxy):
            return pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)
        pads = [
            same_padding(x.shape[axis - 2], self.kernel_size[axis], *step)
            for axis, step in enumerate(zip(self.stride, self.dilation))
        ]
        # A traced size is no int: what pads for every size is recorded.
        known = all(isinstance(size, int) for size in x.shape)
        if not known or any(before != after for before, after in pads):
            return pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)
        (top, _), (left, _) = pads
        return x, (top, left)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.deployed:
            raise TypeError(self._advice('cannot convolve with a weight that a tool made'))
        x, padding = self._pad(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'weight' and isinstance(value, nn.Parameter) and not self.deployed:
            # Not there while it is made, and while pruning or weight_norm keeps it elsewhere.
            current = self._parameters.get('weight', value)
            if current is not value and '_loads' not in vars(self):
                raise TypeError(
                    self._advice('cannot take a new parameter as its weight')
                    + ', or set the weight before its standardization by conv.weight.data.copy_()'
                )
        super().__setattr__(name, value)

    def _advice(self, problem: str) -> str:
        return (
            f'{type(self).__name__} {problem}: the weight that it applies is not conv.weight '
            'but the standardized one. Call nf_plugins.fold(model) first, which makes plain '
            'convolutions of these layers'
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` takes instead of the layer."""
        from .folding import plain_convolution  # which imports this module

        if not self.deployed:
            raise TypeError(self._advice('cannot be scripted'))
        return plain_convolution(self)

    def _load_from_state_dict(self, *args: Any) -> None:
        vars(self)['_loads'] = True  # assign=True puts new parameters there
        try:
            super()._load_from_state_dict(*args)
        finally:
            del vars(self)['_loads']

    def switch_to_deploy(self) -> None:
        """Become a layer that applies its weight as it is, with the same outputs, in place.

        Its parameters are ``weight``, the standardized one, and ``bias``. A layer cannot put
        another object into the place of itself: :func:`nf_plugins.fold` makes
        :class:`torch.nn.Conv2d` of the layers of a model.

        Raises:
            ValueError: The layer cannot be folded; it is unchanged.
        """
        from .folding import plain_convolution  # which imports this module

        if parametrize.is_parametrized(self):
            raise ValueError(
                f'cannot deploy a {type(self).__name__} alone: call nf_plugins.fold(model)'
            )
        plain = plain_convolution(self)
        vars(self).pop('weight', None)  # which pruning and weight_norm set
        for name in ('_parameters', '_buffers', '_forward_pre_hooks'):
            setattr(self, name, getattr(plain, name))
        self.deployed = True

    def __setstate__(self, state: dict) -> None:
        if state.pop('_strided_same', False):  # a pickle of version 0.1.0
            state['padding'] = 'same'
        super().__setstate__(state)

    def extra_repr(self) -> str:
        return super().extra_repr() + (', deployed' if self.deployed else '')


def _refuse_adapter(module: nn.Module, name: str, layer: nn.Module | None) -> None:
    """Refuse to put a layer into an adapter (as peft's) that merges its own weight into it.

    ``base_layer.weight.data += delta`` changes a parameter as an optimizer does, so only the
    construction of the adapter can be told apart from that.
    """
    if name == 'base_layer' and isinstance(layer, StandardizedConv2d) and hasattr(module, 'merge'):
        if not layer.deployed:
            raise TypeError(layer._advice(f'cannot be adapted by {type(module).__name__}'))


def _refuse_merger(module: nn.Module, name: str, new: nn.Module | None) -> None:
    """Refuse what others compute from the weights of layers to put it into their place.

    That is the convolution ``branch_reparam`` (``reparam_conv``, ``lkb_reparam``) of RepVGG and
    its kind, beside the branches; what ``fuse()`` of a block of timm returns; and oneDNN's.
    """
    old = module._modules.get(name)
    if old is None:
        merges = 'reparam' in name and isinstance(new, nn.Conv2d)
    else:
        fused = hasattr(old, 'fuse') or type(new).__module__ == 'torch.utils.mkldnn'
        merges = fused and new is not None and not any(map(_is_standardized, new.modules()))
    if merges:
        for layer in (module if old is None else old).modules():
            if _is_standardized(layer):
                raise TypeError(layer._advice(f'cannot be merged into a {type(new).__name__}'))


def _is_standardized(module: nn.Module) -> TypeGuard[StandardizedConv2d]:
    return isinstance(module, StandardizedConv2d) and not module.deployed


register_module_module_registration_hook(_refuse_adapter)
register_module_module_registration_hook(_refuse_merger)


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
        gamma: Gain of the activation before the convolution, a constant.
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
        """Gaussian weights of variance ``1 / fan_in`` (standardization hides the scale)."""
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
        As :class:`torch.nn.Conv2d`. ``alpha``: ``(out_channels, 1, 1, 1)``; use no weight
        decay for it.

    Raises:
        ValueError: Unknown ``mode``, negative ``gamma``, or a fan-in below 2.

    Source: arXiv 2103.11590 and the PWSConv repository.

    Example:
        >>> conv = PWSConv2d(3, 8, 3, padding=1, gamma=1e-3)
        >>> conv(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 7, 7])
    """

    keys_set_on_load = ('alpha_initialized',)
    """Keys that need not be in a state dict: weights without the flag are trained already."""

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
        # Reading the saved buffer in each step would wait for the device: hence this flag.
        self._may_initialize = initalpha
        if initalpha:  # 0 or 1: averages of models and DDP take numbers, not bools
            self.register_buffer('alpha_initialized', torch.zeros((), device=self.weight.device))

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
        local = channel_statistics(out.reshape(1, -1), channel_dim=0)  # all outputs as one channel
        count = torch.full_like(local.mean, local.count)
        gathered = all_gather(torch.stack([count, local.mean, local.m2]))
        stats = reduce(operator.add, (ChannelStatistics(*rank) for rank in gathered))
        var = stats.m2 / (stats.count - 1)
        usable = torch.isfinite(var) & (var > 0)
        first = usable & (self.alpha_initialized == 0)
        self.alpha.copy_(torch.where(first, torch.sqrt(2 / var).to(self.alpha.dtype), self.alpha))
        self.alpha_initialized.copy_(usable.squeeze() | (self.alpha_initialized > 0))
        # After a batch without variance (all zeros) the next batch sets alpha. A compiled graph
        # cannot read the buffer: it computes this in each step until train() is called.
        if not torch.compiler.is_compiling():
            self._may_initialize = not self.alpha_initialized

    def train(self, mode: bool = True) -> PWSConv2d:
        if self._may_initialize and not (self.deployed or self.alpha_initialized.is_meta):
            self._may_initialize = not self.alpha_initialized
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Weights from elsewhere (no flag among them) are trained already.
        if self.initalpha and prefix + 'alpha' in state_dict:
            name, trained = prefix + 'alpha_initialized', torch.ones_like(self.alpha_initialized)
            # That of version 0.1.0 is a bool, which assign=True would leave one.
            state_dict[name] = state_dict.get(name, trained).to(trained.dtype)
            self._may_initialize = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, gamma={self.gamma:g}, mode={self.mode}, '
            f'initalpha={self.initalpha}'
        )
