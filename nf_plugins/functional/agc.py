"""Adaptive gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def unitwise_norm(x: Tensor) -> Tensor:
    """The 2-norm of each output unit of a parameter or of its gradient.

    A unit is a row of a linear layer, a filter of a convolution, or the whole of a
    scalar or vector; what has one axis longer than 1 is a vector, whatever its shape.

    Args:
        x: ``(out, ...)``, a vector or a scalar.

    Returns:
        The norms, of a shape that broadcasts against ``x``: ``(out, 1, ...)``, or
        all ones for a vector.

    Source: Brock et al. 2021b, section 3; DeepMind's ``nfnets/agc_optax.py``.

    Example:
        >>> unitwise_norm(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
        tensor([[ 5.],
                [10.]])
        >>> unitwise_norm(torch.tensor([3.0, 4.0]))
        tensor([5.])
    """
    is_vector = sum(size > 1 for size in x.shape) <= 1
    rows = x.reshape(1 if is_vector else len(x), -1)
    norm = torch.linalg.vector_norm(rows, dim=1)
    return norm.view([1 if is_vector else len(x)] + [1] * (x.dim() - 1) if x.dim() else [])


@torch.no_grad()
def adaptive_clip_grad_(
    params: Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3
) -> Tensor:
    r"""Clip gradients unit by unit, relative to the norm of the unit's weights, in place.

    .. math::
        G_i \leftarrow \lambda \frac{\max(\|W_i\|, \epsilon)}{\|G_i\|}\, G_i
        \quad\text{if}\quad \frac{\|G_i\|}{\max(\|W_i\|, \epsilon)} \ge \lambda

    Args:
        params: Parameters; those without a gradient are passed over.
        clip_factor: :math:`\lambda`.
        eps: :math:`\epsilon`, which lets zero-initialised parameters move.

    Returns:
        The fraction of units that were clipped, a scalar tensor (0 without any).

    Raises:
        ValueError: ``clip_factor`` or ``eps`` is not positive.

    Source: Brock et al. 2021b, equation 3; DeepMind's ``nfnets/agc_optax.py``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        >>> w.grad = torch.tensor([[30.0, 40.0], [0.003, 0.004]])
        >>> adaptive_clip_grad_([w])
        tensor(0.5000)
        >>> w.grad
        tensor([[0.0300, 0.0400],
                [0.0030, 0.0040]])
    """
    if not clip_factor > 0 or not eps > 0:
        raise ValueError(
            f'clip_factor and eps must be positive, got clip_factor={clip_factor!r}, eps={eps!r}'
        )
    if isinstance(params, Tensor):
        params = [params]
    params = [p for p in params if p.grad is not None]
    if not params:
        return torch.zeros(())
    grads = [p.grad for p in params]
    max_norms = [unitwise_norm(p) for p in params]
    torch._foreach_clamp_min_(max_norms, eps)
    torch._foreach_mul_(max_norms, clip_factor)
    norms = [unitwise_norm(g) for g in grads]
    clipped = [~(norm < max_norm) for norm, max_norm in zip(norms, max_norms)]
    factors = torch._foreach_div(max_norms, torch._foreach_clamp_min(norms, 1e-6))
    for factor, clip in zip(factors, clipped):
        factor.masked_fill_(~clip, 1.0)
    torch._foreach_mul_(grads, factors)
    return torch.cat([clip.flatten() for clip in clipped]).float().mean()
