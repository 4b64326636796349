"""The start of ordinary layers in these networks, where it is not that of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


def start(layer: nn.Module, init: Callable[..., None], **options: Any) -> None:
    """Initialise a layer, now and whenever its ``reset_parameters`` is called.

    Tools that build a network without memory (``torch.device('meta')``, FSDP) call
    ``reset_parameters`` of one module after the other, parents first. So the start has to
    belong to the layer itself, which stays of its ordinary class.

    Args:
        layer: The layer.
        init: Sets the parameters of a layer, ``init(layer, **options)``; at module level, so
            that the network can be pickled.
        **options: Passed on.

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
    kind: Any = type(layer)  # one of PyTorch's, which has the method
    kind.reset_parameters(layer)
    init(layer, **options)


def normal_weight(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """A Gaussian weight; the rest stays."""
    nn.init.normal_(layer.weight, std=std)


def truncated_normal(layer: nn.Conv2d, std: float) -> None:
    """A truncated Gaussian weight and no bias."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
