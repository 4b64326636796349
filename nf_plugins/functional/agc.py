"""Adaptive gradient clipping."""

from __future__ import annotations

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, nn

from nf_plugins.utils.checks import check_number, check_type

if TYPE_CHECKING:  # the import takes a second
    from torch.distributed.tensor import DTensor


def _is_vector(x: Tensor) -> bool:
    """Return whether a parameter is one unit: it has at most one axis longer than 1."""
    return sum(size > 1 for size in x.shape) <= 1


def _is_distributed(x: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is a DTensor, as the parameters of FSDP2 are."""
    return hasattr(x, 'device_mesh') and hasattr(x, 'placements')


def _is_flat_piece(x: Tensor) -> bool:
    """Return whether a parameter belongs to FSDP1, which flattens and cuts parameters."""
    return getattr(x, '_fsdp_flattened', False)


def _norm_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype for norms; None keeps the dtype of ``x``.

    It is float32 for half precision, where squares would overflow.
    """
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None


def _overflowed(norm: Tensor) -> bool:
    """Return whether a norm on the CPU is not finite.

    It is False on other devices, because reading the value would stall a GPU.
    """
    return norm.is_cpu and not _is_distributed(norm) and not math.isfinite(norm.detach().sum())


def _scaled_norm(x: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Compute the 2-norm in float64, scaled so that no square overflows."""
    x = x.double()
    largest = x.abs().amax(tuple(range(x.dim())) if dims is None else dims, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    return largest * torch.linalg.vector_norm(x / largest, dim=dims, keepdim=True)


def unitwise_norm(x: Tensor) -> Tensor:
    """Compute the 2-norm of each unit of a parameter or of its gradient.

    A unit is a row of a linear layer, a filter of a convolution, or a whole scalar or vector.
    A tensor with at most one axis longer than 1 counts as a vector.

    Args:
        x: ``(out, ...)``, a vector or a scalar. The units of a DTensor are whole units, even
            if it is sharded across them.

    Returns:
        The norms, in a shape that broadcasts against ``x``: ``(out, 1, ...)``, or a size of 1
        on every axis for a vector. They are float32 for half precision. On the CPU they are
        float64 if squares overflow.

    Source: Brock et al. 2021b, section 3; DeepMind's ``nfnets/agc_optax.py``.

    Example:
        >>> unitwise_norm(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
        tensor([[ 5.],
                [10.]])
        >>> unitwise_norm(torch.tensor([3.0, 4.0]))
        tensor([5.])
    """
    dims = None if _is_vector(check_type('x', x, Tensor)) else tuple(range(1, x.dim()))
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=_norm_dtype(x))
    if _overflowed(norm):
        return _scaled_norm(x, dims)
    if _is_distributed(norm) and any(p.is_partial() for p in norm.placements):
        from torch.distributed.tensor import Replicate

        # The unit is spread over ranks, so its norm needs a reduction over them.
        whole = [Replicate() if p.is_partial() else p for p in norm.placements]
        norm = norm.redistribute(placements=whole)
    return norm


def _factors(weight_norm: Tensor, norm: Tensor, clip_factor: float, eps: float) -> tuple:
    """Compute the factor of each unit of a gradient, and which units are clipped."""
    limit = weight_norm.clamp(min=eps) * clip_factor
    clipped = ~(norm < limit)  # also if the norm is NaN
    return torch.where(clipped, limit / norm.clamp(min=1e-6), 1.0), clipped


_PARAMETRIZED = re.compile(r'(^|\.)parametrizations\.([^.]+)\..+')
_WRAPPER = r'(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
_WRAPPERS_INSIDE = re.compile(rf'(?<=\.){_WRAPPER}')
_WRAPPERS_AROUND = re.compile(rf'({_WRAPPER})+')


def _names(name: str) -> tuple[str, str]:
    """Return a parameter's name, and the name without parts of wrappers and parametrizations."""
    around = _WRAPPERS_AROUND.match(name)
    name = name[around.end() :] if around else name
    return name, _WRAPPERS_INSIDE.sub('', _PARAMETRIZED.sub(r'\1\2', name))


def skipped_parameters(
    named: Iterable[tuple[str, Tensor]] | nn.Module, patterns: Sequence[str]
) -> set[int]:
    """Find the parameters whose names contain one of the patterns.

    Args:
        named: A module, or pairs of names and parameters.
        patterns: Parts of names. A tied parameter is found by each of its names. A
            parametrized one is found by its plain name: ``head.fc.weight`` finds
            ``head.fc.parametrizations.weight.original0``. Prefixes of wrappers
            (``module.``, ``_orig_mod.``) do not matter.

    Returns:
        The ids of the parameters.

    Raises:
        ValueError: A pattern is in no name. The message lists close names.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> skipped_parameters(net, ['weight']) == {id(net.weight)}
        True
    """
    if not patterns:
        return set()
    if isinstance(named, nn.Module):
        named = named.named_parameters(remove_duplicate=False)
    names = [(*_names(name), id(p)) for name, p in named]
    skipped = set()
    for pattern in patterns:
        found = [key for name, own, key in names if pattern in name or pattern in own]
        if not found:
            own = [own for _, own, _ in names]
            close = ', '.join(difflib.get_close_matches(pattern, own, n=3, cutoff=0.3)) or 'none'
            raise ValueError(f'skip={pattern!r} is in no parameter name; close names: {close}')
        skipped.update(found)
    return skipped


def check_patterns(skip: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several patterns as a tuple; raise unless they are non-empty strings."""
    skip = (skip,) if isinstance(skip, str) else check_type('skip', skip, Sequence)
    for pattern in skip:
        if not check_type('a pattern of skip', pattern, str):
            raise ValueError("a pattern of skip must not be empty: '' is a part of every name")
    return tuple(skip)


def _named(params: nn.Module | Tensor | Iterable) -> list[tuple[str, Tensor]]:
    """Return pairs of names and parameters; a parameter without a name gets an empty one."""
    if isinstance(params, nn.Module):
        return list(params.named_parameters(remove_duplicate=False))
    named = []
    for p in [params] if isinstance(params, Tensor) else params:
        name, p = p if isinstance(p, tuple) and len(p) == 2 else ('', p)
        named.append((name, check_type('each of params', p, Tensor)))
    return named


def _to_clip(named: list[tuple[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return each parameter that has a non-empty gradient once, with its gradient."""
    found = {}
    for name, p in named:
        if _is_flat_piece(p):
            raise ValueError(
                'adaptive gradient clipping needs whole units, and FullyShardedDataParallel cuts '
                'them: use DistributedDataParallel or torch.distributed.fsdp.fully_shard'
            )
        if p.grad is None or not p.numel():
            continue
        if p.grad.layout != torch.strided:
            raise ValueError(
                f'adaptive gradient clipping needs dense gradients, got {p.grad.layout} for '
                f'{name or "a parameter"} of the shape {tuple(p.shape)}: skip it, or build its '
                f'layer without sparse=True'
            )
        found[id(p)] = p, p.grad
    return list(found.values())


@torch.no_grad()
def adaptive_clip_grad_(
    params: nn.Module | Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    skip: str | Sequence[str] = (),
) -> Tensor:
    r"""Clip gradients unit by unit, relative to the norm of the unit's weights, in place.

    .. math::
        G_i \leftarrow \lambda \frac{\max(\|W_i\|, \epsilon)}{\|G_i\|}\, G_i
        \quad\text{if}\quad \frac{\|G_i\|}{\max(\|W_i\|, \epsilon)} \ge \lambda

    Call it between ``loss.backward()`` and ``optimizer.step()``, and after ``unscale_`` of an
    AMP scaler. Norms of half-precision tensors are computed in float32. If they overflow, they
    are computed in float64, but only on the CPU: elsewhere the check would stall the device. So
    on a GPU a unit with gradients larger than about 1e19 becomes zero.

    Parameters with the same number of weights per unit are handled together. So the number of
    kernels does not grow with the number of parameters. The units of sharded parameters (DTensors)
    are whole units, even if they are sharded. Ranks communicate once for all vectors, and once for
    each parameter whose rows are cut.

    Args:
        params: A module, parameters, or pairs of names and parameters. A parameter that occurs
            several times is clipped once. Empty parameters and parameters without a gradient
            are left out.
        clip_factor: :math:`\lambda`.
        eps: :math:`\epsilon`. It lets parameters that start at zero change.
        skip: One pattern or several. A parameter whose name contains one of them is not
            clipped. The papers do not clip the classifier's weight. ``params`` must be a
            module or contain names. The names are looked up in each call.

    Returns:
        The fraction of units that were clipped, a scalar tensor; 0 if there are no units.

    Raises:
        ValueError: ``clip_factor`` or ``eps`` is not positive; a pattern of ``skip`` is in no
            name; a gradient is sparse; or a parameter belongs to FullyShardedDataParallel,
            which cuts units.

    Source: Brock et al. 2021b, equation 3; DeepMind's ``nfnets/agc_optax.py``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        >>> w.grad = torch.tensor([[30.0, 40.0], [0.003, 0.004]])
        >>> adaptive_clip_grad_([w])
        tensor(0.5000)
        >>> w.grad
        tensor([[0.0300, 0.0400],
                [0.0030, 0.0040]])

        In a training loop:

        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> fraction = adaptive_clip_grad_(net, clip_factor=0.01, skip=['2.weight'])
        >>> optimizer.step()
    """
    check_number('clip_factor', clip_factor, 'a positive number')
    check_number('eps', eps, 'a positive number')
    named, skip = _named(params), check_patterns(skip)
    if skip and not any(name for name, _ in named):
        raise ValueError('skip needs names: give the module, or module.named_parameters()')
    skipped = skipped_parameters(named, skip)
    return _clip([x for x in named if id(x[1]) not in skipped], clip_factor, eps)


def _clip(named: list[tuple[str, Tensor]], clip_factor: float, eps: float) -> Tensor:
    vectors: dict[tuple, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    matrices: dict[tuple, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    sharded: dict[tuple, list[tuple[DTensor, DTensor]]] = defaultdict(list)
    for p, grad in _to_clip(named):
        kind = p.device, p.dtype, grad.dtype
        if _is_distributed(p):
            grad = cast('DTensor', grad)  # the gradient of a DTensor is a DTensor
            sharded[p.device_mesh, p.placements, grad.placements].append((p, grad))
        elif _is_vector(p):
            vectors[kind].append((p, grad))
        else:
            matrices[p[0].numel(), kind].append((p, grad))

    limits = clip_factor, eps
    counts = [_clip_vectors(group, *limits) for group in vectors.values()]
    for (unit, (device, *_)), group in matrices.items():
        if device.type == 'cpu':  # here a copy costs more than a call
            counts += [_clip_rows(p, grad, *limits) for p, grad in group]
        else:
            weights = torch.cat([p.reshape(-1, unit) for p, _ in group])
            grads = torch.cat([grad.reshape(-1, unit) for _, grad in group])
            counts.append(_clip_rows(weights, grads, *limits))
            rows = grads.split([len(p) for p, _ in group])
            rows = [r.view_as(p) for r, (p, _) in zip(rows, group)]
            torch._foreach_copy_([grad for _, grad in group], rows)
    for pairs in sharded.values():
        counts += _clip_sharded(pairs, *limits)
    return _fraction(counts)


def _clip_vectors(
    group: list[tuple[Tensor, Tensor]], clip_factor: float, eps: float
) -> tuple[Tensor, int]:
    params, grads = map(list, zip(*group))
    norms = []
    for tensors in (params, grads):
        norm = torch.stack(torch._foreach_norm(tensors, 2, _norm_dtype(tensors[0])))
        if _overflowed(norm):
            norm = torch.stack([_scaled_norm(x, None).view(()) for x in tensors])
        norms.append(norm)
    weight_norm, norm = norms
    factor, clipped = _factors(weight_norm, norm, clip_factor, eps)
    if _norm_dtype(grads[0]) is None:  # else the product is computed in float32
        factor = factor.to(grads[0].dtype)
    torch._foreach_mul_(grads, list(factor.unbind()))
    return clipped.sum(), clipped.numel()


def _clip_rows(
    weights: Tensor, grads: Tensor, clip_factor: float, eps: float
) -> tuple[Tensor, int]:
    """Clip gradients in place; their first axis counts the units."""
    factor, clipped = _factors(unitwise_norm(weights), unitwise_norm(grads), clip_factor, eps)
    count = clipped.sum()
    if not count.is_cpu or count:
        grads.mul_(factor)
    return count, clipped.numel()


def _clip_sharded(
    group: list[tuple[DTensor, DTensor]], clip_factor: float, eps: float
) -> list[tuple[Tensor, int]]:
    """Clip sharded gradients in place; ranks communicate once for all units that are spread."""
    first = group[0][0].placements
    same = first == group[0][1].placements
    rows_are_whole = same and all(x.is_replicate() or x.is_shard(0) for x in first)
    vectors: list[tuple[DTensor, DTensor]] = []
    rows: list[tuple[DTensor, DTensor]] = []
    others: list[tuple[DTensor, DTensor]] = []
    for p, grad in group:
        kind = vectors if same and _is_vector(p) else rows if rows_are_whole else others
        kind.append((p, grad))
    counts = [_clip_spread_rows(p, grad, clip_factor, eps) for p, grad in others]

    count = torch.zeros((), dtype=torch.float64, device=group[0][0].to_local().device)
    for p, grad in rows:
        if p.to_local().numel():
            count += _clip_rows(p.to_local(), grad.to_local(), clip_factor, eps)[0]
    squares = [_local_norms(tensors) ** 2 for tensors in zip(*vectors)]
    count, *squares = _sum_of_ranks([count.view(1), *squares], group[0][0])
    counts.append((count[0].long(), sum(len(p) for p, _ in rows)))
    if vectors:
        weight_norm, norm = (x.sqrt() for x in squares)
        factor, clipped = _factors(weight_norm, norm, clip_factor, eps)
        for (_, grad), number in zip(vectors, factor):
            grad.to_local().mul_(number)
        counts.append((clipped.sum(), clipped.numel()))
    return counts


def _local_norms(tensors: Sequence[DTensor]) -> Tensor:
    """Compute the norms of the parts of vectors that this rank has."""
    return torch.stack([unitwise_norm(x.to_local()).view(()).double() for x in tensors])


def _sum_of_ranks(values: list[Tensor], like: DTensor) -> list[Tensor]:
    """Add up what the ranks have computed from their parts, in one communication."""
    from torch.distributed.tensor import DTensor as Distributed
    from torch.distributed.tensor import Partial, Replicate

    placements = [Replicate() if x.is_replicate() else Partial() for x in like.placements]
    parts = Distributed.from_local(torch.cat(values), like.device_mesh, placements)
    return list(parts.full_tensor().split([len(x) for x in values]))


def _clip_spread_rows(
    weight: DTensor, grad: DTensor, clip_factor: float, eps: float
) -> tuple[Tensor, int]:
    """Clip the gradient of rows of which each rank has a part."""
    factor, clipped = _factors(unitwise_norm(weight), unitwise_norm(grad), clip_factor, eps)
    # Not in place: if a sharded axis has length 1, the product has another placement.
    product = cast('DTensor', grad * factor)
    grad.copy_(product.redistribute(placements=grad.placements))
    return clipped.sum(), clipped.numel()


def _fraction(counts: list[tuple[Tensor, int]]) -> Tensor:
    """Divide the sum of the first members by the sum of the second ones."""
    total = sum(number for _, number in counts)
    if not total:
        return torch.zeros(())
    local = [count for count, _ in counts if not _is_distributed(count)]
    sharded = [count for count, _ in counts if _is_distributed(count)]
    clipped = [torch.stack(local).sum()] if local else []
    if sharded:  # added up before the one reduction over the ranks
        clipped.append(sum(sharded[1:], sharded[0]).full_tensor())
    return sum(clipped[1:], clipped[0]) / total
