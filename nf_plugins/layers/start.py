"""Initialisation of ordinary layers that differs from PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


def start(layer: nn.Module, init: Callable[..., None], **options: Any) -> None:
    """Initialise a layer now, and in each later call of its ``reset_parameters``.

    Tools that build a network without memory (``torch.device('meta')``, FSDP) call
    ``reset_parameters`` of each module, parents first. So the layer itself must know its
    initialisation. Its class stays the ordinary one.

    Args:
        layer: The layer.
        init: Function that sets the parameters of a layer: ``init(layer, **options)``. It must
            be at module level, so that the network can be pickled.
        **options: Options of ``init``.

    Example:
        >>> conv = nn.Conv2d(3, 4, 1)
        >>> start(conv, normal_weight, std=0.0)
        >>> _ = nn.init.ones_(conv.weight)
        >>> conv.reset_parameters()
        >>> conv.weight.abs().max().item()
        0.0
    """
    init(layer, **options)
    vars(layer)['reset_parameters'] = partial(_reset, layer, init, options)


def _reset(layer: nn.Module, init: Callable[..., None], options: dict[str, Any]) -> None:
    kind: Any = type(layer)  # a class of PyTorch, which has this method
    kind.reset_parameters(layer)
    init(layer, **options)


def normal_weight(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Set a Gaussian weight; other parameters are not changed."""
    nn.init.normal_(layer.weight, std=std)


def truncated_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Set a Gaussian weight without the values beyond ``2 * std``, and a zero bias."""
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
