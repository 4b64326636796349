"""The loss of a network along directions in the space of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Direction = dict[str, Tensor]
"""Name of a parameter -> change of it. The other parameters do not change."""


def _unit_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(tuple(range(1, x.dim())), keepdim=True)


def standardized_weights(model: nn.Module) -> set[str]:
    """Return the names of the weights that are standardized before they are applied.

    These are the weights of modules that have a ``standardization`` (Scaled WS, PWS), and of
    mmcv's ``ConvWS2d``.
    """
    return {
        f'{name}.weight' if name else 'weight'
        for name, module in model.named_modules()
        if hasattr(module, 'standardization') or type(module).__name__ == 'ConvWS2d'
    }


def _has_filters(model: nn.Module, name: str, p: nn.Parameter) -> bool:
    """Return whether a parameter is a weight. PWS's alpha is a gain of shape (C, 1, 1, 1)."""
    owner, _, last = name.rpartition('.')
    if last == 'weight' and isinstance(model.get_submodule(owner), _ConvNd):
        return True
    return p.dim() == 2 or (p.dim() > 2 and p.numel() > max(p.shape))


def random_direction(model: nn.Module, seed: int = 0) -> Direction:
    r"""Draw a random direction, normalised by filter.

    .. math:: d_i \leftarrow \frac{d_i}{\|d_i\|} \|w_i\|

    for each filter or row i of a weight, so that networks whose weights have different scales can
    be compared. Biases, gains (of any shape with one value per channel) and the parameters of norms
    do not change, as in the authors' code.

    A standardized weight is applied as if it had mean 0 and a fixed norm. So its scale and its
    mean have no effect on the loss. There, the mean is removed from the direction, and
    :math:`\|w_i\|` is the norm of :math:`w_i` without its mean. A step of length 1 then turns the
    filter that is applied as far as it turns a filter without standardization.

    Args:
        model: The network.
        seed: Seed of the direction.

    Source: Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> d = random_direction(net)['weight']
        >>> torch.allclose(d.norm(dim=1), net.weight.norm(dim=1))
        True
    """
    generator = torch.Generator().manual_seed(seed)
    free = standardized_weights(model)
    direction = {}
    for name, p in model.named_parameters():
        if not p.is_floating_point() or not _has_filters(model, name, p):
            continue
        weight = p.detach().double().cpu()
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if name in free:
            weight, noise = _centred(weight), _centred(noise)
        noise = noise / _unit_norm(noise).clamp(min=1e-30) * _unit_norm(weight)
        direction[name] = noise.to(p)
    return direction


def gradient_direction(model: nn.Module, loss: Callable[[], Tensor]) -> Direction:
    """Return the direction of steepest descent: minus the gradient of the loss."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    return {name: -g for name, g in zip(named, grads) if g is not None}


@torch.no_grad()
def loss_along(
    model: nn.Module,
    loss: Callable[[], Tensor],
    directions: Sequence[Direction],
    coordinates: Sequence[Sequence[float]],
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Compute the loss at points of a line, a plane, ... through the weights of a network.

    Args:
        model: The network. Its parameters and buffers are as before afterwards.
        loss: Computes the loss of the network as it is.
        directions: The directions.
        coordinates: The coordinates along each direction.
        advance: Called after each point.

    Returns:
        The losses, with an axis for each direction.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 2.0)
        >>> ones = {'weight': torch.ones(1, 1)}
        >>> loss_along(net, lambda: net.weight.square().sum(), [ones], [[-2, 0, 1]]).tolist()
        [0.0, 4.0, 9.0]
    """
    if len(directions) != len(coordinates):
        raise ValueError(f'{len(directions)} directions need as many lists of coordinates, '
                         f'got {len(coordinates)}')  # fmt: skip
    named = dict(model.named_parameters())
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    start = {name: named[name].detach().clone() for d in directions for name in d}
    losses = []
    try:
        for point in product(*coordinates):
            for name, value in start.items():
                moved = value.clone()
                for factor, direction in zip(point, directions):
                    if name in direction:
                        moved.add_(direction[name], alpha=float(factor))
                named[name].copy_(moved)
            losses.append(loss().detach().double().cpu())
            advance()
    finally:
        model.load_state_dict(kept)
    return torch.stack(losses).reshape([len(c) for c in coordinates])
