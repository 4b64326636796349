"""Base of the convolutions that standardize their weight before use.

``weight`` is the parameter before the standardization. Under this name it is saved, loaded,
initialised and optimized, as the weight of any convolution. But some tools compute a new weight
from ``conv.weight``, for instance to fuse a batch norm or to merge an adapter. They would start
from a weight that is not the applied one, and their result would be standardized once more.

A layer cannot see that a tool reads its parameter. It does see the next step of these tools, and
raises an error that names :func:`nf_plugins.fold`. These steps are: a new parameter in the place
of ``weight``, a call of ``_conv_forward`` with another weight, and an adapter around the layer.
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
"""Type of a size on both axes; PyTorch's types say ``tuple[int, ...]``."""


class StandardizedConv2d(nn.Conv2d):
    r"""Base class of 2-D convolutions with a standardized weight.

    A subclass defines the constants of the standardization and the scale of each filter. This
    class adds TF-style SAME padding and the fold into a plain convolution. The weight is
    standardized in each forward pass, also in evaluation mode, so any change of the parameters
    takes effect. After :func:`nf_plugins.fold` there is no standardization any more.

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
        deployed: Whether :meth:`switch_to_deploy` was called. Then ``weight`` is the applied
            weight.

    Raises:
        TypeError, ValueError: A size is no positive integer, or the fan-in is below 2. (With
            one weight per filter, the standardized weight would always be 0.)
        TypeError: ``weight`` is replaced by a new parameter, or ``_conv_forward`` is called. See
            the docstring of this module.
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
        if strided_same:  # torch does not accept 'same' with a stride
            self.padding = 'same'

    @property
    def fan_in(self) -> int:
        """Number of inputs of one output: ``in_channels / groups * kh * kw``."""
        return self.weight.numel() // self.out_channels

    @property
    def _strided_same(self) -> bool:
        return self.padding == 'same' and max(self.stride) > 1

    def standardize(self, factor: float = 1.0, skip_gain: Tensor | None = None) -> Tensor:
        """Compute the weight that the convolution applies, from the present parameters.

        Args:
            factor: A factor of the weight.
            skip_gain: Another factor of the weight, a scalar tensor.
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
        """Return the constants of the standardization."""
        raise NotImplementedError

    def filter_scale(self) -> Tensor:
        """Return the learnable scale of each filter, ``(out_channels,)``."""
        raise NotImplementedError

    def forward(self, x: Tensor, skip_gain: Tensor | None = None) -> Tensor:
        """Convolve with the standardized weight.

        Args:
            x: The input.
            skip_gain: A scalar factor of the weight and the bias, and so of the output.
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
        """Return the input and the padding of the convolution.

        If the convolution cannot pad this way, the input is padded and the padding is 0.
        """
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
        # A traced size is no int. Then record the operations that compute the padding.
        known = all(isinstance(size, int) for size in x.shape)
        if not known or any(before != after for before, after in pads):
            return pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)
        (top, _), (left, _) = pads
        return x, (top, left)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.deployed:
            raise TypeError(self._advice('cannot convolve with a weight from outside'))
        x, padding = self._pad(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'weight' and isinstance(value, nn.Parameter) and not self.deployed:
            # In the constructor, and with pruning or weight_norm, there is no such parameter.
            current = self._parameters.get('weight', value)
            known = current is value or _is_sharded(current) or _is_sharded(value)
            if not known and '_loads' not in vars(self):
                raise TypeError(
                    self._advice('cannot take a new parameter as its weight')
                    + ', or set the weight before its standardization by conv.weight.data.copy_()'
                )
        super().__setattr__(name, value)

    def _advice(self, problem: str) -> str:
        return (
            f'{type(self).__name__} {problem}: the weight that it applies is not conv.weight '
            'but the standardized one. Call nf_plugins.fold(model) first: it replaces these '
            'layers by plain convolutions'
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the module that ``torch.jit.script`` compiles instead of the layer."""
        from .folding import plain_convolution  # which imports this module

        if not self.deployed:
            raise TypeError(self._advice('cannot be scripted'))
        return plain_convolution(self)

    def _load_from_state_dict(self, *args: Any) -> None:
        vars(self)['_loads'] = True  # with assign=True, new parameters are allowed
        try:
            super()._load_from_state_dict(*args)
        finally:
            del vars(self)['_loads']

    def switch_to_deploy(self) -> None:
        """Replace the parameters by the standardized weight, which is applied as it is.

        The outputs stay the same. The parameters are ``weight`` and ``bias``. The class stays the
        same, because a layer cannot replace itself in the model. :func:`nf_plugins.fold` replaces
        the layers of a model by :class:`torch.nn.Conv2d`.

        Raises:
            ValueError: The layer cannot be folded; it is unchanged.
        """
        from .folding import plain_convolution  # which imports this module

        if parametrize.is_parametrized(self):
            raise ValueError(
                f'cannot deploy a {type(self).__name__} alone: call nf_plugins.fold(model)'
            )
        plain = plain_convolution(self)
        vars(self).pop('weight', None)  # set by pruning and weight_norm
        for name in ('_parameters', '_buffers', '_forward_pre_hooks'):
            setattr(self, name, getattr(plain, name))
        self.deployed = True

    def __setstate__(self, state: dict) -> None:
        if state.pop('_strided_same', False):  # from a pickle of version 0.1.0
            state['padding'] = 'same'
        super().__setstate__(state)

    def extra_repr(self) -> str:
        return super().extra_repr() + (', deployed' if self.deployed else '')


def __getattr__(name: str) -> Any:
    """Find the layers that were here in version 0.1.0; pickles of whole models name this path."""
    if name in ('ScaledWSConv2d', 'PWSConv2d'):
        from nf_plugins import layers

        return getattr(layers, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _is_sharded(weight: Tensor | None) -> bool:
    """Return whether FSDP2, which changes parameters for parts of them and back, made a weight."""
    return hasattr(weight, 'placements')  # a DTensor; to import its class takes a second
