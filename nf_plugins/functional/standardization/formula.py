"""The formula of weight standardization, and both standardizations as pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nf_plugins.utils.checks import check_choice, check_integer, check_number, check_type

EPS = {'clamp': 1e-4, 'add': 1e-5}
"""Default ``eps`` of each ``eps_mode``: DeepMind's and timm's."""


@dataclass(frozen=True)
class Standardization:
    r"""The constants of a weight standardization.

    .. math::
        \hat W = c s \frac{W - \mu}{\sqrt v}, \qquad v = n (\sigma^2 + \epsilon)
        \quad\text{or, with clamp,}\quad v = \max(n \sigma^2, \epsilon)

    with the mean :math:`\mu` and the biased variance :math:`\sigma^2` of each filter, and a
    scale :math:`s` of each filter. Without :math:`\epsilon` the variance of the result is
    :math:`(c s)^2 / n`.

    Args:
        var_factor: :math:`n`.
        eps: :math:`\epsilon`. With 0 a filter whose weights are all equal has :math:`v = 0`:
            it becomes 0 and gets no gradient.
        clamp: Whether to use the second formula for :math:`v`.
        constant: :math:`c`.
    """

    var_factor: float
    eps: float
    clamp: bool = False
    constant: float = 1.0

    @classmethod
    def scaled(cls, fan_in: int, eps: float, eps_mode: str, gamma: float) -> Standardization:
        """Return the constants of :func:`scaled_standardize_weight`."""
        return cls(fan_in, eps, eps_mode == 'clamp', gamma)

    @classmethod
    def parametric(cls, fan: int, eps: float) -> Standardization:
        """Return the constants of :func:`parametric_standardize_weight`."""
        return cls(fan / 2, eps)


def standardize(weight: Tensor, scale: Tensor, constants: Standardization) -> Tensor:
    r"""Standardize each filter and scale it, see :class:`Standardization`.

    Args:
        weight: ``(out_channels, ...)``. The mean and the variance of a filter are taken over
            all axes except the first.
        scale: :math:`s`, ``(out_channels,)``.
        constants: The constants of the formula.

    Returns:
        The standardized weight, in float32 or wider.

    Example:
        >>> weight = torch.randn(8, 4, 3, 3)
        >>> w = standardize(weight, torch.ones(8), Standardization(var_factor=36, eps=0.0))
        >>> torch.allclose(w.square().sum(dim=(1, 2, 3)), torch.ones(8))
        True
    """
    n, eps = constants.var_factor, constants.eps
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight, scale = weight.float(), scale.float()
    dims = tuple(range(1, weight.dim()))
    # Divide each filter by its largest weight, so that the squares stay in range. This factor
    # cancels in the result; eps is divided by its square.
    least = 1e-10 if eps > 0 else 1e-37
    unit = weight.detach().abs().amax(dims, keepdim=True).clamp_min(least)
    weight = weight / unit
    var, mean = torch.var_mean(weight, dims, correction=0, keepdim=True)
    var = var.masked_fill(var == 0, 0)  # so the gradient of equal weights is 0, not 0 * inf
    floor = eps / unit / unit
    v = torch.maximum(n * var, floor) if constants.clamp else n * (var + floor)
    v = v.masked_fill(v == 0, torch.inf)  # so equal weights become 0 if eps is 0
    scale = scale.view(-1, *(1 for _ in dims))
    # Keep this order: the ONNX exporter would fold constant * scale, and lose it for equal scales.
    return (weight - mean) * (constants.constant * torch.rsqrt(v) * scale)


def scaled_standardize_weight(
    weight: Tensor,
    gain: Tensor | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    eps_mode: str = 'clamp',
) -> Tensor:
    r"""Apply Scaled Weight Standardization to the weight of a convolution.

    .. math::
        \hat W = g \gamma \frac{W - \mu}{\sqrt{\max(N \sigma^2, \epsilon)}}
        \quad\text{('clamp')}, \qquad
        \hat W = g \gamma \frac{W - \mu}{\sqrt{N (\sigma^2 + \epsilon)}}
        \quad\text{('add')}

    with mean :math:`\mu` and biased variance :math:`\sigma^2` over the
    :math:`N` = ``fan_in`` weights of each output filter.

    Args:
        weight: ``(out_channels, in_channels / groups, kh, kw)``.
        gain: Learnable gain :math:`g` of each filter, ``(out_channels,)``.
        gamma: Gain of the activation before the convolution, times any other constant factor
            of its input.
        eps: :math:`\epsilon`. The default is 1e-4 for 'clamp' and 1e-5 for 'add'.
        eps_mode: 'clamp' as in DeepMind's code, or 'add' as in timm's. The results differ
            visibly if ``fan_in`` is large, because the variance of a weight is about
            ``1 / fan_in``.

    Returns:
        The standardized weight in the dtype of ``weight``; the arithmetic is
        done in float32 or wider.

    Source: Brock et al. 2021a, equation 1; ``eps`` as in DeepMind's
    ``nfnets/base.py`` and timm's ``ScaledStdConv2d``.

    Example:
        >>> import torch
        >>> w = scaled_standardize_weight(torch.randn(8, 4, 3, 3))
        >>> torch.allclose(w.square().sum(dim=(1, 2, 3)), torch.ones(8))
        True
    """
    check_choice('eps_mode', eps_mode, EPS)
    eps = EPS[eps_mode] if eps is None else check_number('eps', eps, 'at least 0')
    gamma, gain = check_number('gamma', gamma), _scale(weight, 'gain', gain)
    constants = Standardization.scaled(weight[0].numel(), eps, eps_mode, gamma)
    return standardize(weight, gain, constants).to(weight.dtype)


def parametric_standardize_weight(
    weight: Tensor, alpha: Tensor | None = None, gamma: float = 1e-5, fan: int | None = None
) -> Tensor:
    r"""Apply Parametric Weight Standardization (PWS) to the weight of a convolution.

    .. math:: \hat W = \sqrt{2 / n}\, \alpha \frac{W - \mu}{\sqrt{\sigma^2 + \gamma}}

    Args:
        weight: ``(out_channels, in_channels / groups, kh, kw)``.
        alpha: Learnable scale of each filter, ``(out_channels, 1, 1, 1)``.
        gamma: Number that is added to :math:`\sigma^2`, the biased variance over the fan-in.
        fan: :math:`n`, the fan-in (the default) or the fan-out of the convolution.

    Returns:
        The standardized weight in the dtype of ``weight``; the arithmetic is
        done in float32 or wider.

    Source: "Delving into variance transmission and normalization"
    (arXiv 2103.11590).

    Example:
        >>> import torch
        >>> w = parametric_standardize_weight(torch.randn(8, 4, 3, 3), gamma=0.0)
        >>> torch.allclose(w.square().sum(dim=(1, 2, 3)), torch.full((8,), 2.0))
        True
    """
    alpha = _scale(weight, 'alpha', alpha)
    eps = check_number('gamma', gamma, 'at least 0')  # the paper's name for eps
    fan = weight[0].numel() if fan is None else check_integer('fan', fan)
    return standardize(weight, alpha, Standardization.parametric(fan, eps)).to(weight.dtype)


def _scale(weight: Tensor, name: str, scale: Tensor | None) -> Tensor:
    """Return the scale of each filter of a weight; ones if ``scale`` is None."""
    check_type('weight', weight, Tensor)
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(f'a weight needs (out_channels, ...) values, got {tuple(weight.shape)}')
    if scale is None:
        return weight.new_ones(len(weight))
    if check_type(name, scale, Tensor).numel() != len(weight):
        raise ValueError(
            f'{name} needs a value for each of {len(weight)} filters, got {tuple(scale.shape)}'
        )
    return scale.flatten()
