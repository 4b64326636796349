"""Look at the filters of many layers together: zero ones, copies, and their energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .evidence import LayerFact

if TYPE_CHECKING:
    from .observer import Numbers

_COLUMNS = 32  # inputs of a filter that are looked at first
_LEAST = 8  # inputs of a filter that may be a copy
_SAME = 0.9999
"""Cosine beyond which two filters are the same."""


def measure_filters(layers: list[tuple[LayerFact, Tensor]], numbers: Numbers) -> None:
    """Fill in ``energy``, ``zero_rows`` and ``copies`` of layers.

    Args:
        layers: The layers and their weights, a filter per row.
        numbers: Takes what is measured.
    """
    for device in {rows.device for _, rows in layers}:
        chosen = [layer for layer in layers if layer[1].device == device]
        with torch.no_grad():
            _measure([fact for fact, _ in chosen], [rows for _, rows in chosen], numbers)


def _measure(facts: list[LayerFact], weights: list[Tensor], numbers: Numbers) -> None:
    part = torch.cat([_first_columns(rows) for rows in weights])
    counts = torch.tensor([len(rows) for rows in weights], device=part.device)
    layer = torch.arange(len(weights), device=part.device).repeat_interleave(counts)

    def mean(values: Tensor) -> Tensor:
        """Mean over the filters of each layer."""
        total = counts.new_zeros(len(counts), dtype=torch.float64)
        return total.index_add_(0, layer, values.double()) / counts

    squares = part.square().sum(1)
    wide = [max(1.0, rows.shape[1] / _COLUMNS) for rows in weights]
    energies = mean(squares) * torch.tensor(wide, dtype=torch.float64, device=part.device)
    zeros = mean(_zero_rows(squares == 0, weights))
    copies = mean(_copied_rows(part, squares, layer, weights))
    for fact, rows, energy, zero, copy in zip(
        facts, weights, energies.unbind(), zeros.unbind(), copies.unbind()
    ):
        numbers.put(fact, 'energy', energy)
        numbers.put(fact, 'zero_rows', zero)
        if _may_have_copies(rows):
            numbers.put(fact, 'copies', copy)


def _may_have_copies(rows: Tensor) -> bool:
    return rows.shape[1] >= _LEAST and rows.shape[0] > 1


def _first_columns(rows: Tensor) -> Tensor:
    part = rows[:, :_COLUMNS].float()
    missing = _COLUMNS - part.shape[1]
    return torch.nn.functional.pad(part, (0, missing)) if missing else part


def _zero_rows(zero: Tensor, weights: list[Tensor]) -> Tensor:
    """Which rows are zero, given which begin with zeros."""
    if not bool(zero.any()):
        return zero
    parts = zero.split([len(rows) for rows in weights])
    return torch.cat(
        [
            part & ~rows.bool().any(1) if rows.shape[1] > _COLUMNS and bool(part.any()) else part
            for part, rows in zip(parts, weights)
        ]
    )


def _copied_rows(part: Tensor, squares: Tensor, layer: Tensor, weights: list[Tensor]) -> Tensor:
    """Which rows have the direction of another one of the same layer.

    Copies have the same projection on any direction, so they are neighbours when sorted by it.
    """
    unit = part / squares.sqrt().clamp(min=1e-30)[:, None]
    direction = torch.sin(torch.arange(1, _COLUMNS + 1, device=part.device).float() ** 2)
    # A projection is less than the length of the direction, so that the layers stay apart.
    order = ((unit @ direction).double() + 2 * direction.norm() * layer).argsort()
    unit, layer = unit.index_select(0, order), layer[order]
    enough = torch.tensor([_may_have_copies(rows) for rows in weights], device=part.device)
    pairs = ((unit[1:] * unit[:-1]).sum(1) > _SAME) & (layer[1:] == layer[:-1]) & enough[layer[1:]]
    copied = torch.zeros(len(unit), dtype=torch.bool, device=part.device)
    if not bool(pairs.any()):
        return copied
    starts = [0]
    for rows in weights:
        starts.append(starts[-1] + len(rows))
    (index,) = pairs.nonzero(as_tuple=True)
    for number in set(layer[index].tolist()):
        own = index[layer[index] == number]
        first, second = order[own + 1], order[own]
        rows = weights[number]
        if rows.shape[1] > _COLUMNS:  # look at all their inputs
            a, b = rows[first - starts[number]].float(), rows[second - starts[number]].float()
            same = torch.cosine_similarity(a, b) > _SAME
            first, second = first[same], second[same]
        copied[first] = copied[second] = True
    return copied
