"""Adaptive gradient clipping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from nf_plugins.utils.checks import check_number, check_type


def _is_vector(x: Tensor) -> bool:
    """Whether a parameter is one unit: it has at most one axis longer than 1."""
    return sum(size > 1 for size in x.shape) <= 1


def _is_distributed(x: Tensor) -> bool:
    """Whether it is a DTensor, as the parameters of FSDP2 are."""
    return hasattr(x, 'device_mesh') and hasattr(x, 'placements')


def _is_flat_piece(x: Tensor) -> bool:
    """Whether it belongs to the first FSDP, which flattens parameters and cuts anywhere."""
    return getattr(x, '_fsdp_flattened', False)


def unitwise_norm(x: Tensor) -> Tensor:
    """The 2-norm of each output unit of a parameter or of its gradient.

    A unit is a row of a linear layer, a filter of a convolution, or the whole of a
    scalar or vector; what has one axis longer than 1 is a vector, whatever its shape.

    Args:
        x: ``(out, ...)``, a vector or a scalar; of a DTensor the units are whole, however
            it is sharded.

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
    dims = None if _is_vector(check_type('x', x, Tensor)) else tuple(range(1, x.dim()))
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    if _is_distributed(norm) and any(p.is_partial() for p in norm.placements):
        from torch.distributed.tensor import Replicate

        # A unit in pieces: its norm is known after a reduction over their ranks.
        whole = [Replicate() if p.is_partial() else p for p in norm.placements]
        norm = norm.redistribute(placements=whole)
    return norm


def _factors(weight_norm: Tensor, norm: Tensor, clip_factor: float, eps: float) -> tuple:
    """What to multiply the units of a gradient with, and which of them are clipped."""
    limit = weight_norm.clamp(min=eps) * clip_factor
    clipped = ~(norm < limit)  # also where the norm is not a number
    return torch.where(clipped, limit / norm.clamp(min=1e-6), 1.0), clipped


@torch.no_grad()
def adaptive_clip_grad_(
    params: Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3
) -> Tensor:
    r"""Clip gradients unit by unit, relative to the norm of the unit's weights, in place.

    .. math::
        G_i \leftarrow \lambda \frac{\max(\|W_i\|, \epsilon)}{\|G_i\|}\, G_i
        \quad\text{if}\quad \frac{\|G_i\|}{\max(\|W_i\|, \epsilon)} \ge \lambda

    Parameters whose units have equal numbers of weights are handled together, so that the
    number of kernels does not grow with the number of parameters. Sharded parameters
    (DTensors) are handled one by one; their units are whole, whatever the sharding.

    Args:
        params: Parameters; those without a gradient are passed over.
        clip_factor: :math:`\lambda`.
        eps: :math:`\epsilon`, which lets zero-initialised parameters move.

    Returns:
        The fraction of units that were clipped, a scalar tensor (0 without any).

    Raises:
        ValueError: ``clip_factor`` or ``eps`` is not positive, or a parameter is a flat
            piece of FullyShardedDataParallel, which cuts units.

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
    check_number('clip_factor', clip_factor, 'a positive number')
    check_number('eps', eps, 'a positive number')
    if isinstance(params, Tensor):
        params = [params]
    params = [check_type('each of params', p, Tensor) for p in params]
    if any(_is_flat_piece(p) for p in params):
        raise ValueError(
            'adaptive gradient clipping needs whole units, and FullyShardedDataParallel cuts '
            'them: use DistributedDataParallel or torch.distributed.fsdp.fully_shard'
        )
    params = [p for p in params if p.grad is not None]
    vectors: dict[tuple, list[Tensor]] = defaultdict(list)
    matrices: dict[tuple, list[Tensor]] = defaultdict(list)
    sharded = []
    for p in params:
        kind = p.device, p.dtype, p.grad.dtype
        if _is_distributed(p):
            sharded.append(p)
        elif _is_vector(p):
            vectors[kind].append(p)
        else:
            matrices[(p[0].numel(), *kind)].append(p)

    limits = clip_factor, eps
    counts = [_clip_vectors(group, *limits) for group in vectors.values()]
    for (unit, device, *_), group in matrices.items():
        if device.type == 'cpu':  # where a copy costs more than a call
            counts += [_clip_rows(p, p.grad, *limits) for p in group]
        else:
            weights = torch.cat([p.reshape(-1, unit) for p in group])
            grads = torch.cat([p.grad.reshape(-1, unit) for p in group])
            counts.append(_clip_rows(weights, grads, *limits))
            rows = grads.split([len(p) for p in group])
            rows = [r.view_as(p) for r, p in zip(rows, group)]
            torch._foreach_copy_([p.grad for p in group], rows)
    for p in sharded:
        factor, clipped = _factors(unitwise_norm(p), unitwise_norm(p.grad), clip_factor, eps)
        # Not in place: where a sharded axis has length 1 the product is laid out anew.
        p.grad.copy_((p.grad * factor).redistribute(placements=p.grad.placements))
        counts.append((clipped.sum(), clipped.numel()))
    return _fraction(counts)


def _clip_vectors(params: list[Tensor], clip_factor: float, eps: float) -> tuple[Tensor, int]:
    grads = [p.grad for p in params]
    norms = (torch.stack(torch._foreach_norm(x)) for x in (params, grads))
    factor, clipped = _factors(*norms, clip_factor, eps)
    torch._foreach_mul_(grads, list(factor.to(grads[0].dtype).unbind()))
    return clipped.sum(), clipped.numel()


def _clip_rows(
    weights: Tensor, grads: Tensor, clip_factor: float, eps: float
) -> tuple[Tensor, int]:
    """Clip the gradients, whose first axis is that of the units, in place."""
    factor, clipped = _factors(unitwise_norm(weights), unitwise_norm(grads), clip_factor, eps)
    count = clipped.sum()
    if not count.is_cpu or count:
        grads.mul_(factor)
    return count, clipped.numel()


def _fraction(counts: list[tuple[Tensor, int]]) -> Tensor:
    """The sum of the first members over that of the second ones."""
    total = sum(number for _, number in counts)
    if not total:
        return torch.zeros(())
    local = [count for count, _ in counts if not _is_distributed(count)]
    sharded = [count for count, _ in counts if _is_distributed(count)]
    clipped = [torch.stack(local).sum()] if local else []
    if sharded:  # added up before the one reduction over the ranks
        clipped.append(sum(sharded[1:], sharded[0]).full_tensor())
    return sum(clipped) / total
