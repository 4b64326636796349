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
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nf_plugins.functional import pad_same, same_padding
from nf_plugins.functional.standardization import (
    Standardization,
    standardize,
    standardized_conv2d,
    standardized_weight,
)
from nf_plugins.utils.checks import check_integer, check_pair

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


def __getattr__(name: str) -> Any:
    """The layers, which version 0.1.0 had here: pickles of whole models name them so."""
    if name in ('ScaledWSConv2d', 'PWSConv2d'):
        from nf_plugins import layers

        return getattr(layers, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
