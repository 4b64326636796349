"""Point-wise functions in the place of layer norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_number

_FORMATS = ('channel_first', 'channel_last')


class PointwiseNorm(nn.Module):
    """Base of the functions that replace layer norm: a bounded function, a weight and a bias.

    No statistics are computed, so each number of the output depends on one number of the input.

    Args:
        normalized_shape: As of :class:`torch.nn.LayerNorm`: the number of channels, or the sizes
            of the last axes.
        alpha: Initial value of the factor of the input.
        elementwise_affine: Whether there is a weight.
        bias: Whether there is a bias beside the weight.
        data_format: Where the channels are: 'channel_first' (the second axis), 'channel_last',
            or None: the last axis of tensors of up to 3 axes; of larger ones the second axis,
            as everywhere in mm, unless only the last one has as many channels.
        eps: Not used. mm's ``build_norm_layer`` gives it to each norm.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: A bad option.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        alpha: float = 0.5,
        elementwise_affine: bool = True,
        bias: bool = True,
        data_format: str | None = None,
        eps: float | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(shape)
        self.initial = dict(alpha=check_number('alpha', alpha, 'a positive number'))
        if data_format is not None:
            check_choice('data_format', data_format, _FORMATS)
        if len(self.normalized_shape) > 1:
            if data_format == 'channel_first':
                raise ValueError(
                    f"data_format='channel_first' takes one axis, got {normalized_shape!r}"
                )
            data_format = 'channel_last'
        self.data_format = data_format
        self.elementwise_affine = elementwise_affine
        # torch.nn.TransformerEncoder computes layer norms itself, from the weights of norms whose
        # eps are equal; NaN is equal to nothing.
        self.eps = float('nan')
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.alpha = nn.Parameter(torch.empty(1, **options))
        for name, wanted in dict(weight=True, bias=bias).items():
            empty = torch.empty(self.normalized_shape, **options)
            parameter = nn.Parameter(empty) if elementwise_affine and wanted else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: weight 1, bias 0, and of the numbers what the arguments say."""
        for name, value in self.initial.items():
            nn.init.constant_(getattr(self, name), value)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def bound(self, x: Tensor) -> Tensor:
        """The bounded function of the input."""
        raise NotImplementedError

    def forward(self, x: Tensor, data_format: str | None = None) -> Tensor:
        """Apply the function, the weight and the bias.

        Args:
            x: The input; its channels are where ``data_format`` says.
            data_format: Replaces that of the layer, as in mmpretrain's ``LN2d``.
        """
        y = self.bound(x)
        if self.weight is None:
            return y
        axes = [1] * (x.dim() - 2) if self._is_channel_first(x, data_format) else []
        y = y * self.weight.reshape(self.weight.shape + torch.Size(axes))
        return y if self.bias is None else y + self.bias.reshape(self.bias.shape + torch.Size(axes))

    def _is_channel_first(self, x: Tensor, data_format: str | None) -> bool:
        data_format = self.data_format if data_format is None else data_format
        if data_format is not None:
            return data_format == 'channel_first'
        if x.dim() < 4:
            return False
        channels = self.normalized_shape[0]
        return x.shape[1] == channels or x.shape[-1] != channels

    def extra_repr(self) -> str:
        initial = ', '.join(f'{name}={value:g}' for name, value in self.initial.items())
        return f'{self.normalized_shape}, {initial}, data_format={self.data_format}'


@MODELS.register_module()
class DyT(PointwiseNorm):
    r"""Dynamic tanh in the place of layer norm, ``norm_cfg=dict(type='nf_plugins.DyT')``.

    .. math:: y = w \tanh(\alpha x) + b

    :math:`\alpha` is one number, :math:`w` and :math:`b` have one for each channel. It takes the
    place of layer norm with channels first (mm's ``LN2d``) and last (``LN``). The authors say
    that it does not take the place of batch norm.

    Args:
        normalized_shape: As of :class:`torch.nn.LayerNorm`: the number of channels, or the sizes
            of the last axes.
        alpha: Initial value of :math:`\alpha`. 0.5 is good for all networks of the paper but
            large language models. Those need less the wider they are.
        elementwise_affine: Whether there are :math:`w` and :math:`b`.
        bias: Whether there is :math:`b` beside :math:`w`.
        data_format: Where the channels are: 'channel_first' (the second axis), 'channel_last',
            or None: the last axis of tensors of up to 3 axes; of larger ones the second axis,
            as everywhere in mm, unless only the last one has as many channels.
        eps: Not used. mm's ``build_norm_layer`` gives it to each norm.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: A bad option.

    Source: Zhu et al., "Transformers without Normalization", CVPR 2025 (arXiv 2503.10622). The
    parameters have the names of the authors' code.

    Example:
        >>> DyT(3)(torch.tensor([-4.0, 0.0, 2.0])).detach()
        tensor([-0.9640,  0.0000,  0.7616])
    """

    def bound(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x)


@MODELS.register_module()
class Derf(PointwiseNorm):
    r"""Dynamic erf in the place of layer norm, ``norm_cfg=dict(type='nf_plugins.Derf')``.

    .. math:: y = w\, \mathrm{erf}(\alpha x + s) + b

    :math:`\alpha` and :math:`s` are one number each; the rest is as of :class:`DyT`.

    Args:
        normalized_shape: As of :class:`torch.nn.LayerNorm`.
        alpha: Initial value of :math:`\alpha`.
        shift: Initial value of :math:`s`.
        **kwargs: The other arguments of :class:`DyT`.

    Source: Chen et al., "Stronger Normalization-Free Transformers" (arXiv 2512.10938). The
    parameters have the names of the authors' code.

    Example:
        >>> Derf(3)(torch.tensor([-4.0, 0.0, 2.0])).detach()
        tensor([-0.9953,  0.0000,  0.8427])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        alpha: float = 0.5,
        shift: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(normalized_shape, alpha, **kwargs)
        self.initial['shift'] = check_number('shift', shift)
        self.shift = nn.Parameter(torch.full_like(self.alpha, shift))

    def bound(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha * x + self.shift)
