"""Weight standardization as pure functions."""

from __future__ import annotations

from torch import Tensor

from nf_plugins.utils.checks import check_choice, check_integer, check_number, check_type

from .standardization import standardize

EPS = {'clamp': 1e-4, 'add': 1e-5}
"""Default ``eps`` of each ``eps_mode``: DeepMind's and timm's."""


def scaled_standardize_weight(
    weight: Tensor,
    gain: Tensor | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    eps_mode: str = 'clamp',
) -> Tensor:
    r"""Scaled Weight Standardization of a convolution's weight.

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
        gamma: Gain of the activation that feeds the convolution, times any other
            constant factor of its input.
        eps: Floor of the variance. Defaults to 1e-4 for 'clamp', 1e-5 for 'add'.
        eps_mode: 'clamp' as in DeepMind's code, or 'add' as in timm's. They
            differ visibly where ``fan_in`` is large, since the variance of a
            weight is about ``1 / fan_in``.

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
    gamma, scale = check_number('gamma', gamma), _scale(weight, 'gain', gain)
    fan_in, clamp = weight[0].numel(), eps_mode == 'clamp'
    return standardize(weight, scale, fan_in, eps, clamp, gamma).to(weight.dtype)


def _scale(weight: Tensor, name: str, scale: Tensor | None) -> Tensor:
    """The scale of each filter of a weight, ones without one."""
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


def parametric_standardize_weight(
    weight: Tensor, alpha: Tensor | None = None, gamma: float = 1e-5, fan: int | None = None
) -> Tensor:
    r"""Parametric Weight Standardization (PWS) of a convolution's weight.

    .. math:: \hat W = \sqrt{2 / n}\, \alpha \frac{W - \mu}{\sqrt{\sigma^2 + \gamma}}

    Args:
        weight: ``(out_channels, in_channels / groups, kh, kw)``.
        alpha: Learnable scale of each filter, ``(out_channels, 1, 1, 1)``.
        gamma: Added to the biased variance :math:`\sigma^2` over the fan-in.
        fan: :math:`n`, the fan-in (the default) or fan-out of the convolution.

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
    scale = _scale(weight, 'alpha', alpha)
    check_number('gamma', gamma, 'at least 0')
    fan = weight[0].numel() if fan is None else check_integer('fan', fan)
    return standardize(weight, scale, fan / 2, gamma).to(weight.dtype)
